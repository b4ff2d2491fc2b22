"""What is said at the end of a test run in the terminal: the worst tests first, then the findings of all tests."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from sqla_watch.pytest_plugin.grouped import FoundInTests, found_in_tests, worst_tests
from sqla_watch.pytest_plugin.outcome import Outcome
from sqla_watch.reporters.text import count, cut, duration, visible

if TYPE_CHECKING:
    import pytest

__all__ = ["write"]

MOST_TESTS = 10
"""Tests that are listed; more only where more fail."""
MOST_FINDINGS = 20
"""Findings that are shown; the rest is counted."""
MOST_TESTS_OF_FINDING = 3
MOST_LINES_OF_SUGGESTION = 6

_LONGEST = 1_000
_COLOURS = {"high": {"red": True}, "medium": {"yellow": True}, "low": {"cyan": True}}
_HEADS = ("statements", "budget", "rows", "database", "findings")


def write(
    reporter: pytest.TerminalReporter,
    outcomes: Iterable[Outcome],
    *,
    known: Collection[str] = (),
    unused: Collection[str] = (),
    grown: Mapping[str, tuple[int, int]] | None = None,
) -> None:
    """Write the summary; nothing at all where no test has sent a statement and there is nothing else to say.

    Args:
        reporter: pytest's terminal.
        outcomes: Of all tests that were run.
        known: Identities of findings that are in the baseline: they are counted, not shown.
        unused: Identities in the baseline that no longer occur.
        grown: Tests that send more statements than they used to: how many they sent, and send now.
    """
    outcomes = list(outcomes)
    grown = grown or {}
    of_database = [outcome for outcome in outcomes if outcome.statements or outcome.findings or outcome.budget]
    if not of_database and not unused and not grown:
        return
    found = found_in_tests(outcomes)
    reporter.section("sqla_watch", sep="=")
    _line(reporter, _totals(of_database))
    _write_tests(reporter, of_database)
    _write_findings(reporter, [each for each in found if each.identity not in known])
    hidden = sum(each.identity in known for each in found)
    if hidden:
        _line(reporter)
        _line(reporter, f"{count(hidden, 'finding')} more {'is' if hidden == 1 else 'are'} in the baseline.")
    _write_list(
        reporter,
        "send more statements than they used to (their numbers in the budgets stay as they are):",
        [f"{nodeid}: {new:,}, before {old:,}" for nodeid, (old, new) in sorted(grown.items())],
    )
    _write_list(
        reporter,
        "in the baseline no longer occur (--sqla-watch-update-baseline takes them out):",
        [_told(known) for known in sorted(unused)],
    )


def _totals(outcomes: list[Outcome]) -> str:
    parts = [
        count(len(outcomes), "test") + " with the database",
        count(sum(outcome.statements for outcome in outcomes), "statement"),
        duration(sum(outcome.database_seconds for outcome in outcomes)) + " in it",
    ]
    setup = sum(outcome.setup_statements for outcome in outcomes)
    if setup:
        seconds = duration(sum(outcome.setup_database_seconds for outcome in outcomes))
        parts.append(f"fixtures: {count(setup, 'statement')}, {seconds}")
    return ", ".join(parts)


def _write_tests(reporter: pytest.TerminalReporter, outcomes: list[Outcome]) -> None:
    ordered = worst_tests(outcomes)
    bad = sum(bool(outcome.over or outcome.failing) for outcome in ordered)
    shown = ordered[: max(MOST_TESTS, bad)]
    if not shown:
        return
    rows = [
        (
            f"{outcome.statements:,}",
            _budget(outcome),
            f"{outcome.rows:,}",
            duration(outcome.database_seconds),
            f"{len(outcome.findings):,}" if outcome.findings else "",
        )
        for outcome in shown
    ]
    columns = [column for column, _ in enumerate(_HEADS) if any(row[column] for row in rows)]
    widths = [max(len(row[column]) for row in [_HEADS, *rows]) for column in columns]

    def line(row: Sequence[str]) -> str:
        return "".join(f"{row[column]:>{width}}  " for column, width in zip(columns, widths, strict=True))

    _line(reporter)
    _line(reporter, line(_HEADS) + "test", bold=True)
    for outcome, row in zip(shown, rows, strict=True):
        _line(reporter, line(row) + _name(outcome.nodeid), red=bool(outcome.over or outcome.failing))
    if len(ordered) > len(shown):
        _line(reporter, f"… and {count(len(ordered) - len(shown), 'test')} more")


def _budget(outcome: Outcome) -> str:
    """Return how much of its budget a test has used: of its limits, the one that is used up most."""
    shares = [
        (getattr(outcome, used) / limit if limit else (2.0 if getattr(outcome, used) else 1.0), name, limit)
        for name, limit in outcome.budget.items()
        if (used := name.removeprefix("max_")) in Outcome._fields
    ]
    if not shares:
        return ""
    share, name, limit = max(shares)
    what = name.removeprefix("max_").replace("_", " ")
    shown = duration(limit) if name.endswith("_seconds") else f"{limit:,.0f} {what}"
    return f"{share:.0%} of {shown}" if limit else f"{'over' if share > 1 else 'at'} 0 {what}"


def _write_findings(reporter: pytest.TerminalReporter, found: list[FoundInTests]) -> None:
    for each in found[:MOST_FINDINGS]:
        finding = each.finding
        _line(reporter)
        cost = [count(each.statements, "statement")] if each.statements else []
        cost += [duration(each.database_seconds)] if each.database_seconds else []
        cost.append(f"in {count(len(each.tests), 'test')}")
        _line(
            reporter,
            f"{finding['severity']}{', not allowed' if each.failing else ''}: {_name(finding['rule'])} "
            f"at {_place(finding)} ({', '.join(cost)})",
            bold=True,
            **_COLOURS[finding["severity"]],
        )
        _line(reporter, "  " + _name(finding["message"]))
        for line in cut(finding["suggestion"], _LONGEST).splitlines()[:MOST_LINES_OF_SUGGESTION]:
            _line(reporter, "    " + _name(line), green=True)
        for outcome in each.tests[:MOST_TESTS_OF_FINDING]:
            _line(reporter, "  in " + _name(outcome.nodeid))
        if len(each.tests) > MOST_TESTS_OF_FINDING:
            _line(reporter, f"  and {count(len(each.tests) - MOST_TESTS_OF_FINDING, 'test')} more")
    if len(found) > MOST_FINDINGS:
        _line(reporter)
        _line(reporter, f"… and {count(len(found) - MOST_FINDINGS, 'finding')} more; --sqla-watch-json has them all.")


def _write_list(reporter: pytest.TerminalReporter, what: str, lines: list[str]) -> None:
    if not lines:
        return
    _line(reporter)
    _line(reporter, f"{len(lines):,} {what}", yellow=True)
    for line in lines:
        _line(reporter, "  " + _name(line))


def _place(finding: Mapping[str, object]) -> str:
    location = finding["location"]
    if not isinstance(location, Mapping):
        return "no line of your code"
    return _name(f"{finding['file']}:{location['line']} in {location['function']}")


def _told(identity: str) -> str:
    rule, _, rest = identity.partition("|")
    target, _, place = rest.rpartition("|")[0].rpartition("|")
    function = identity.rpartition("|")[2]
    return f"{rule} {target} at {place} in {function}" if place else f"{rule} {target}"


def _name(text: str) -> str:
    """Return what comes from the application on one line, every character visible."""
    return visible(cut(text, _LONGEST)).replace("\n", " ").replace("\t", " ")


def _line(reporter: pytest.TerminalReporter, text: str = "", **markup: bool) -> None:
    """Write a line, in the characters that the terminal has; none is a command of GitHub's log."""
    if text.lstrip().startswith("::") or "##[" in text:
        text = text.replace("::", ": :", 1).replace("##[", "## [")
    encoding = getattr(reporter._tw._file, "encoding", None) or "utf-8"
    reporter.write_line(text.encode(encoding, "backslashreplace").decode(encoding), **markup)
