"""Measured budgets, which only ratchet down: the fewest statements that each test was ever seen with.

Outcomes flow in, a file comes out that is committed with the code; a test that sends more than it used to fails. Who
means a test to send more changes its number there, or deletes its line.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping

import pytest

from sqla_watch.pytest_plugin import kept
from sqla_watch.pytest_plugin.outcome import Outcome

__all__ = ["grown", "read", "write"]

VERSION = 1
_KIND = "budgets"


def read(path: str) -> dict[str, int]:
    """Read the statements of each test, by node id; empty if there is no such file yet.

    Raises:
        pytest.UsageError: It cannot be read or written, or is not a file of measured budgets.
    """
    document = kept.read(path, _KIND, VERSION, to_be_written=True)
    if document is None:
        return {}
    statements = document.get("statements")
    if not isinstance(statements, dict):
        raise pytest.UsageError(
            f"sqla_watch: statements in the budgets {path!r} is {statements!r}, but must be an object"
        )
    for nodeid, number in statements.items():
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise pytest.UsageError(
                f"sqla_watch: the budgets {path!r} have {number!r} for {nodeid!r}, but must have a number of statements"
            )
    return statements


def grown(old: Mapping[str, int], outcomes: Iterable[Outcome]) -> dict[str, tuple[int, int]]:
    """Return the tests that send more statements than they used to: how many they sent, and send now."""
    return {
        outcome.nodeid: (old[outcome.nodeid], outcome.statements)
        for outcome in outcomes
        if outcome.statements > old.get(outcome.nodeid, outcome.statements)
    }


def write(
    path: str,
    old: Mapping[str, int],
    outcomes: Iterable[Outcome],
    *,
    gone: Container[str] = (),
) -> None:
    """Write the budgets: new tests come in, numbers only go down, tests that are gone go.

    A test that did not run to its end tells nothing by its number, which is left out.

    Args:
        path: Where they go.
        old: The budgets before.
        outcomes: Of all tests that were run.
        gone: Node ids of tests that are no longer there.

    Raises:
        ReportError: They cannot be written.
    """
    new = {nodeid: number for nodeid, number in old.items() if nodeid not in gone}
    for outcome in outcomes:
        if outcome.completed:
            new[outcome.nodeid] = min(outcome.statements, new.get(outcome.nodeid, outcome.statements))
    kept.write(path, _KIND, VERSION, statements=dict(sorted(new.items())))
