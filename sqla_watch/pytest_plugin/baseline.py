"""The baseline: findings that a code base already had when the plugin came, which do not fail its tests.

Outcomes flow in, a file comes out that is committed with the code. A finding is told by its identity, which has no
line numbers: rule, target, file and function. With each stand the tests in which it occurs, so that a run of some of
the tests says nothing about the others.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass

import pytest

from sqla_watch.pytest_plugin import kept
from sqla_watch.pytest_plugin.outcome import Outcome, identity

__all__ = ["Baseline", "read", "write"]

VERSION = 1
_KIND = "baseline"


@dataclass(frozen=True, slots=True)
class Baseline:
    """The findings that are known, and the tests in which they occur."""

    entries: Mapping[str, frozenset[str]]
    """Node ids of tests, by the identity of a finding."""

    def knows(self, identity: str) -> bool:
        """Whether a finding is in it."""
        return identity in self.entries

    def unused(self, outcomes: Iterable[Outcome], *, gone: Container[str] = ()) -> list[str]:
        """Return the identities that no longer occur, sorted.

        That is said only of findings all of whose tests have run to their end, or are gone: what a test that was not
        run would have shown, or one that stopped half-way, is not known.

        Args:
            outcomes: Of all tests that were run.
            gone: Node ids of tests that are no longer there.
        """
        outcomes = list(outcomes)
        occurring = {identity(finding) for outcome in outcomes for finding in outcome.findings}
        judged = {outcome.nodeid for outcome in outcomes if outcome.completed}
        return sorted(
            known
            for known, tests in self.entries.items()
            if known not in occurring and all(test in judged or test in gone for test in tests)
        )


def read(path: str, *, update: bool = False) -> Baseline:
    """Read the baseline.

    Args:
        path: Where it is.
        update: Whether it is going to be written at the end of the run; then it need not be there yet.

    Raises:
        pytest.UsageError: It is not there, cannot be read or written, or is not a baseline of ours.
    """
    document = kept.read(path, _KIND, VERSION, to_be_written=update)
    if document is None:
        if update:
            return Baseline({})
        raise pytest.UsageError(
            f"sqla_watch: there is no baseline {path!r}; make it by a run with --sqla-watch-update-baseline"
        )
    findings = document.get("findings")
    if not isinstance(findings, dict):
        raise pytest.UsageError(f"sqla_watch: findings in the baseline {path!r} is {findings!r}, but must be an object")
    for known, tests in findings.items():
        if (
            known.count("|") < 3
            or not isinstance(tests, list)
            or not tests
            or not all(isinstance(t, str) for t in tests)
        ):
            raise pytest.UsageError(
                f"sqla_watch: the baseline {path!r} has {known!r}: {tests!r}, but must have the tests of a finding, as "
                '"rule|target|file|function": ["tests/test_orders.py::test_list"]'
            )
    return Baseline({known: frozenset(tests) for known, tests in findings.items()})


def write(path: str, outcomes: Iterable[Outcome], *, gone: Container[str] = ()) -> None:
    """Write the baseline anew: what fails tests now, and what is known already and occurs or may still occur.

    Entries of tests that were not run, or not to their end, are kept; those of tests that are gone are not.

    Args:
        path: Where it goes; what is there already is taken into account.
        outcomes: Of all tests that were run.
        gone: Node ids of tests that are no longer there.

    Raises:
        pytest.UsageError: What is there is not a baseline of ours.
        ReportError: It cannot be written.
    """
    before = read(path, update=True)
    outcomes = list(outcomes)
    judged = {outcome.nodeid for outcome in outcomes if outcome.completed}
    entries = {
        known: {test for test in tests if test not in judged and test not in gone}
        for known, tests in before.entries.items()
    }
    for outcome in outcomes:
        for found in {identity(finding) for finding in outcome.findings}:
            if found in outcome.failing or before.knows(found):
                entries.setdefault(found, set()).add(outcome.nodeid)
    kept.write(
        path, _KIND, VERSION, findings={known: sorted(entries[known]) for known in sorted(entries) if entries[known]}
    )
