"""The pytest plugin: tests that fail over a query budget, or for an N+1 in them. See docs/pytest.md.

It is loaded in every run of pytest where the package is installed, so it imports SQLAlchemy, and all that watches it,
only when a test is to be watched. It has no assertions for pytest to rewrite: PYTEST_DONT_REWRITE.
"""

from sqla_watch.pytest_plugin.plugin import (
    pytest_addhooks,
    pytest_addoption,
    pytest_configure,
    pytest_unconfigure,
    sqla_watch,
)

__all__ = ["pytest_addhooks", "pytest_addoption", "pytest_configure", "pytest_unconfigure", "sqla_watch"]
