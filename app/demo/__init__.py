"""The main job, shown in a terminal: every call is real, every number is read back from the wire or the ledger."""
