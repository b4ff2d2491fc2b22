"""The hook that the plugin offers to a project's conftest.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest


@pytest.hookspec(firstresult=True)
def pytest_sqla_watch(item: pytest.Item) -> Mapping[str, Any] | None:
    """Return what is demanded of a test: what the marker `sqla_watch` takes, by name; None for nothing further.

    That of the nearest conftest.py is asked first, and only for the tests below its folder. A marker is stronger.

    Example::

        # tests/api/conftest.py
        def pytest_sqla_watch(item):
            return {"max_queries": 10}
    """
