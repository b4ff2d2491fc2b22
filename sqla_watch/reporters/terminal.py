"""Findings and scopes as text for a terminal, worst first, each finding in at most six lines.

What flows in is `Told`: a finding, and how often it was found. Whatever comes from the application, its file names,
its SQL, its messages, is shown and never obeyed: no markup, no control characters.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, TextIO

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from sqla_watch.findings import Finding, RelatedLocation, Severity
from sqla_watch.reporters.text import count, milliseconds, plain

__all__ = ["Terminal", "Told", "cost_seconds", "worst_first"]

MOST_LINES = 6
"""Lines of one finding."""
MOST_FINDINGS = 50
"""Findings that are shown; the rest is counted."""

INDENT = 2
_UNBOUNDED = 1_000  # columns of a file, which needs no line breaks

_HEADINGS = {
    Severity.HIGH: ("High: grows with the data, or makes others wait", "bold red"),
    Severity.MEDIUM: ("Medium: costs time in every request", "bold yellow"),
    Severity.LOW: ("Low: worth knowing", "bold cyan"),
}


@dataclass(frozen=True, slots=True)
class Told:
    """A finding as it is told: once, though it may have been found in many scopes."""

    finding: Finding
    """The dearest one of those alike."""
    scopes: int
    """In how many scopes it was found."""
    statements: int
    """Statements of all of them together."""
    database_seconds: float
    """Seconds in the database of all of them together."""
    seconds: float
    """Seconds that all of them cost together, waiting included."""

    @classmethod
    def once(cls, finding: Finding) -> Told:
        """Return a finding as found in one scope."""
        return cls(finding, 1, finding.statements, finding.database_seconds, cost_seconds(finding))

    def to_dict(self) -> dict[str, Any]:
        """Return the finding as the JSON report has it: with sums, and the evidence of the dearest one."""
        return {
            **self.finding.to_dict(),
            "statements": self.statements,
            "database_seconds": round(self.database_seconds, 6),
            "scopes": self.scopes,
            "cost_seconds": round(self.seconds, 6),
        }


def cost_seconds(finding: Finding) -> float:
    """Return the seconds a finding cost: in the database, or waiting, where its evidence names a longer time."""
    named = [
        float(value)
        for key, value in finding.evidence.items()
        if key.endswith("_seconds") and isinstance(value, int | float)
    ]
    return max([finding.database_seconds, *named])


def worst_first(told: Iterable[Told]) -> list[Told]:
    """Return findings by severity, and among equals those first that cost most."""
    rank = {severity: number for number, severity in enumerate(_HEADINGS)}
    return sorted(told, key=lambda each: (rank[each.finding.severity], -each.seconds, -each.statements))


class Terminal:
    """Writes findings, tables and lines to a file: with colour and fitted to the width where it is a terminal.

    Args:
        file: Where to write; text of a file that is no terminal is neither coloured nor broken into lines.
        width: Columns; those of the terminal by default.
    """

    def __init__(self, file: TextIO, *, width: int | None = None) -> None:
        self._file = file
        if width is None and not file.isatty():
            columns = os.environ.get("COLUMNS", "")
            width = int(columns) if columns.isdecimal() and int(columns) else _UNBOUNDED
        self._console = Console(file=file, width=width, highlight=False, markup=False, emoji=False)

    def line(self, text: str = "", style: str = "") -> None:
        """Write one paragraph."""
        self.write(Text(plain(text), style=style))

    def write(self, *renderables: RenderableType, soft_wrap: bool = False) -> None:
        """Write what rich can render, in the characters that the file's encoding has.

        Args:
            renderables: What to write.
            soft_wrap: Whether lines that are too long are left to the terminal.
        """
        with self._console.capture() as capture:
            for renderable in renderables:
                self._console.print(renderable, soft_wrap=soft_wrap)
        text = "".join(f"{line.rstrip()}\n" for line in capture.get().splitlines())
        encoding = getattr(self._file, "encoding", None) or "utf-8"
        self._file.write(text.encode(encoding, "backslashreplace").decode(encoding))
        self._file.flush()

    def findings(self, told: Iterable[Told]) -> None:
        """Write findings by severity, the worst first."""
        ordered = worst_first(told)
        severity = None
        for each in ordered[:MOST_FINDINGS]:
            if each.finding.severity is not severity:
                severity = each.finding.severity
                heading, style = _HEADINGS[severity]
                self.line()
                self.line(heading, style)
            self.line()
            self.write(*self._finding(each), soft_wrap=True)
        if len(ordered) > MOST_FINDINGS:
            self.line()
            self.line(f"… and {count(len(ordered) - MOST_FINDINGS, 'finding')} more; --json has them all.")

    def scopes(self, scopes: Sequence[Mapping[str, Any]]) -> None:
        """Write a table of scopes, given as `Scope.to_dict` has them."""
        rows = [
            (
                plain(scope["name"]),
                plain(scope["kind"]),
                f"{scope['statements']:,}",
                f"{scope['rows']:,}",
                milliseconds(scope["database_seconds"]),
                f"{len(scope['findings']):,}",
            )
            for scope in scopes
        ]
        self.table(("scope", "kind", "statements", "rows", "database", "findings"), rows, text_columns=2)

    def table(self, heads: Sequence[str], rows: Iterable[Sequence[str]], *, text_columns: int = 1) -> None:
        """Write a table whose first columns are words and whose others are numbers."""
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        for number, head in enumerate(heads):
            text = number < text_columns
            table.add_column(head, justify="left" if text else "right", overflow="fold", no_wrap=not text)
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        self.write(table)

    def _finding(self, told: Told) -> list[Text]:
        """Return the lines of one finding: cost and place, sentence, related lines, what to change."""
        finding = told.finding
        head = self._head(told)
        room = MOST_LINES - len(head)
        suggestion = self._suggestion(finding, room - 1)
        room -= sum(self._rows(line) for line in suggestion)
        sentence = self._wrapped(finding.message, "", max(room, 1))
        room = max(room - len(sentence), 0)
        related = [line for each in finding.related[:room] for line in self._wrapped(_related(each), "dim", 1)]
        return [*head, *sentence, *related, *suggestion]

    def _head(self, told: Told) -> list[Text]:
        """Return cost, place and rule: one line, or the place on lines of its own where it is long."""
        cost = (_cost(told), "bold")
        rule = (f"[{plain(told.finding.rule)}]", "dim")
        place = _place(told.finding)
        line = Text.assemble(cost, "  ", (plain(place), "cyan"), "  ", rule)
        if line.cell_len <= self._console.width:
            return [line]
        return [Text.assemble(cost, "  ", rule), *self._wrapped(place, "cyan", 3)]

    def _suggestion(self, finding: Finding, room: int) -> list[Text]:
        """Return what to change: a sentence, and below it code, left whole so that it can be pasted."""
        sentence, *code = finding.suggestion.splitlines() or [""]
        lines = [Text(f"    {plain(line)}", style="green") for line in code][: room - 1]
        room -= sum(self._rows(line) for line in lines)
        return [*self._wrapped(sentence, "green", max(room, 1)), *lines]

    def _rows(self, line: Text) -> int:
        """Return how many rows of the terminal a line takes."""
        return max(1, ceil(line.cell_len / self._console.width))

    def _wrapped(self, text: str, style: str, most: int) -> list[Text]:
        """Return text broken into lines of the terminal's width; what is beyond the last one is cut off."""
        width = max(self._console.width - INDENT, 10)
        if not text:
            return []
        lines = list(Text(plain(text), style=style).wrap(self._console, width, overflow="fold"))
        if len(lines) > most:
            lines = lines[:most]
            lines[-1].truncate(width - 1)
            lines[-1].rstrip()
            lines[-1].append("…")
        for line in lines:
            line.rstrip()
            line.pad_left(INDENT)
        return lines


def _cost(told: Told) -> str:
    parts = [count(told.statements, "statement")] if told.statements else []
    if told.seconds or not parts:
        parts.append(milliseconds(told.seconds) if told.seconds else "no statement")
    if told.scopes > 1:
        parts.append(f"in {told.scopes:,} scopes")
    return ", ".join(parts)


def _place(finding: Finding) -> str:
    if finding.location is None:
        return "no line of the program's own code was on the stack"
    return f"{finding.location} in {finding.location.function}"


def _related(related: RelatedLocation) -> str:
    return f"{related.role} at {related.location} in {related.location.function}"
