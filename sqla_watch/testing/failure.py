"""What a failed check says: the budget and what was used, the statements by line, the findings and what to change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqla_watch.reporters.text import count, milliseconds, plain
from sqla_watch.testing.told import shown_file

__all__ = ["LIMITS", "CheckFailed", "describe", "spent"]

LIMITS = {
    "max_statements": "statement",
    "max_rows": "row",
    "max_database_seconds": "s in the database",
    "max_wait_seconds": "s of waiting for the pool",
    "max_connections": "connection",
    "max_transactions": "transaction",
}
"""What is limited, by the name of the limit in `sqla_watch.Budget`."""

MOST_LINES = 10
"""Lines of code that are shown."""
MOST_FINDINGS = 10
_WIDEST = 110


class CheckFailed(AssertionError):
    """A test made the database do more than its budget, or what it must not.

    `over` has the limits that were exceeded, by name, with what was used; `findings` what was found fault with.
    """

    def __init__(
        self, message: str, over: Mapping[str, float] | None = None, findings: Iterable[Mapping[str, Any]] = ()
    ) -> None:
        super().__init__(message)
        self.over = dict(over or {})
        self.findings = list(findings)


CheckFailed.__module__ = "sqla_watch.testing"  # where it is imported from


def describe(
    heads: Iterable[str],
    by_line: Sequence[Mapping[str, Any]],
    findings: Sequence[Mapping[str, Any]],
    statements: int,
    root: str,
) -> str:
    """Return the text of a failure.

    Args:
        heads: What is wrong, a sentence each.
        by_line: The lines that sent most, as `Outcome.by_line` has them.
        findings: What is to be told, as `Outcome.findings` has it.
        statements: How many statements there were in all.
        root: The folder that files are relative to.
    """
    lines = list(heads)
    if by_line:
        lines += ["", f"{count(statements, 'statement')}, by line:"]
        shown = by_line[:MOST_LINES]
        for each in shown:
            lines += _line_lines(each)
        rest = statements - sum(each["count"] for each in shown)
        if rest > 0:
            lines.append(f"  … and {count(rest, 'statement')} of other lines")
    if findings:
        lines += ["", f"{count(len(findings), 'finding')}:"]
        for finding in findings[:MOST_FINDINGS]:
            lines += _finding_lines(finding, root)
        if len(findings) > MOST_FINDINGS:
            lines.append(f"  … and {count(len(findings) - MOST_FINDINGS, 'finding')} more")
    return "\n".join(plain(line) for line in lines)


def spent(name: str, used: float, limit: float) -> str:
    """Return a sentence on a limit that was exceeded.

    >>> spent("max_statements", 12, 10), spent("max_database_seconds", 0.31234, 0.2)
    ('12 statements, and the budget is 10', '0.312 s in the database, and the budget is 0.2 s')
    """
    thing = LIMITS[name]
    if name.endswith("_seconds"):
        return f"{used:.3f} {thing}, and the budget is {limit:g} s"
    return f"{count(int(used), thing)}, and the budget is {int(limit):,}"


def _line_lines(line: Mapping[str, Any]) -> list[str]:
    place = f"{line['file']}:{line['line']} in {line['function']}" if line["file"] else "no line of the user's code"
    rows = f", {count(line['rows'], 'row')}" if line["rows"] else ""
    statement = line["statement"]
    if len(statement) > _WIDEST:
        statement = statement[: _WIDEST - 1] + "…"
    return [f"  {line['count']:>5,} x {place} ({milliseconds(line['seconds'])}{rows})", f"          {statement}"]


def _finding_lines(finding: Mapping[str, Any], root: str) -> list[str]:
    location = finding["location"]
    place = f"{finding['file']}:{location['line']} in {location['function']}: " if location else ""
    lines = [f"  {place}{finding['message']} [{finding['rule']}]"]
    for each in finding["related"]:
        lines.append(f"      {each['role']} at {shown_file(each['file'], root)}:{each['line']} in {each['function']}")
    lines += [f"      {line}" for line in finding["suggestion"].splitlines()]
    return lines
