"""What one test made the database do: plain data, which the workers of pytest-xdist send to the controller."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = ["Outcome", "identity"]


class Outcome(NamedTuple):
    """What one test made the database do, in its call phase. Plain data, which goes between processes as JSON.

    Seconds are float. Of a test that was run again, the outcome is that of its last run.
    """

    nodeid: str
    file: str
    """File of the test, relative to pytest's root directory where it lies below it, with `/`."""
    line: int
    """Line of the test, from 1; 0 where it is not known."""
    statements: int
    rows: int
    database_seconds: float
    wait_seconds: float
    transactions: int
    connections: int
    setup_statements: int
    """Statements of the fixtures that were set up for it, which do not count."""
    setup_database_seconds: float
    duration_seconds: float
    findings: tuple[dict[str, Any], ...]
    """As `Finding.to_dict` has them, each with `file`: its file relative to pytest's root directory, or to
    site-packages. Without what is allowed."""
    failing: tuple[str, ...]
    """Identities of the findings that let the test fail; in mode `warn`, that would."""
    budget: dict[str, float]
    """Limits by name, as `max_statements`; empty if it has none."""
    over: dict[str, float]
    """Limits that were exceeded, by name, with what was used."""
    by_line: tuple[dict[str, Any], ...]
    """The lines that sent most: `file`, `line`, `function`, `statement`, `count`, `rows`, `seconds`; most first.
    Only of tests that fail or are over their budget, and where a report asks for it."""
    engines: int
    """Engines that were seen so far in the process that ran it."""
    completed: bool = True
    """Whether the test itself ran to its end: one that failed midway has not sent all of its statements."""
    scope: dict[str, Any] | None = None
    """As `Scope.to_dict` has it, with its timeline; only where a report asks for it."""

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it; what is in it is not copied."""
        return self._asdict()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Outcome:
        """Return what `to_dict` was made of; keys that are not known are left out."""
        values = {name: value for name, value in data.items() if name in cls._fields}
        for name in ("findings", "failing", "by_line"):
            values[name] = tuple(values[name])
        return cls(**values)


def identity(finding: Mapping[str, Any]) -> str:
    """Return rule, target, file and function of a finding: the same for the same mistake, also after lines have moved.

    Args:
        finding: As an `Outcome` has it.

    >>> identity({"rule": "n-plus-one", "target": "Order.customer", "file": "shop/views.py",
    ...           "location": {"file": "/srv/shop/views.py", "line": 31, "function": "orders"}})
    'n-plus-one|Order.customer|shop/views.py|orders'
    """
    location = finding["location"]
    function = location["function"] if location else ""
    return "|".join((finding["rule"], finding["target"], finding["file"], function))
