"""Engine, metadata, migrations and unit of work: the only floor that knows how a database is opened."""
