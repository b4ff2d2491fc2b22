"""A small shop on real tables, with each mistake and its repair."""
