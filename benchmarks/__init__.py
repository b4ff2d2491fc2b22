"""What the watch costs, measured against bare SQLAlchemy and against the cheapest thing that others do."""
