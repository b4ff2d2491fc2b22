"""The probes: they stand at SQLAlchemy's doors, write facts to the open scope, and never judge."""
