"""Clock, ids and logging: what every floor may use; imports nothing of the application."""
