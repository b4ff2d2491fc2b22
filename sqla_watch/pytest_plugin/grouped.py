"""The same finding from many tests, as one: what every report of a whole run begins with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from sqla_watch.pytest_plugin.outcome import Outcome, identity

__all__ = ["FoundInTests", "found_in_tests", "worst_tests"]

_RANK = {"high": 0, "medium": 1, "low": 2}


class FoundInTests(NamedTuple):
    """One finding, by its identity, and the tests in which it was found."""

    identity: str
    finding: Mapping[str, Any]
    """The dearest one of those alike, as an `Outcome` has it."""
    tests: tuple[Outcome, ...]
    """Each once, in the order of their names."""
    failing: bool
    """Whether it lets a test fail; in mode `warn`, would."""
    statements: int
    """Statements of all of them together."""
    database_seconds: float
    """Seconds in the database of all of them together."""


def found_in_tests(outcomes: Iterable[Outcome]) -> list[FoundInTests]:
    """Return the findings of a run, each once: first those that let tests fail, then by severity and cost."""
    alike: dict[str, list[tuple[Outcome, Mapping[str, Any]]]] = {}
    for outcome in sorted(outcomes, key=lambda outcome: outcome.nodeid):
        for finding in outcome.findings:
            alike.setdefault(identity(finding), []).append((outcome, finding))
    found = [
        FoundInTests(
            identity=known,
            finding=max((finding for _, finding in pairs), key=_cost),
            tests=tuple({outcome.nodeid: outcome for outcome, _ in pairs}.values()),
            failing=any(known in outcome.failing for outcome, _ in pairs),
            statements=sum(finding["statements"] for _, finding in pairs),
            database_seconds=sum(finding["database_seconds"] for _, finding in pairs),
        )
        for known, pairs in alike.items()
    ]
    return sorted(
        found,
        key=lambda each: (
            not each.failing, _RANK[each.finding["severity"]], -each.database_seconds, -each.statements, each.identity
        ),
    )  # fmt: skip


def worst_tests(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Return tests, worst first: over their budget, with findings that let them fail, with most statements."""
    return sorted(
        outcomes,
        key=lambda outcome: (
            not outcome.over, not outcome.failing, -outcome.statements, -outcome.database_seconds, outcome.nodeid
        ),
    )  # fmt: skip


def _cost(finding: Mapping[str, Any]) -> tuple[float, int]:
    return (finding["statements"], finding["database_seconds"])
