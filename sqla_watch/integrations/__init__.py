"""What brings sqla_watch into frameworks and servers: each module is imported by those who use it."""
