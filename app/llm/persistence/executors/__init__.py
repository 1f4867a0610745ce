"""Who runs the statements: one executor for each database; what is queued is committed together."""
