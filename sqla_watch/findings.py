"""What was found: one mistake, where it is, what it cost in numbers, and what to change."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import Any

__all__ = ["Finding", "Location", "RelatedLocation", "Severity", "SqlaWatchError", "SqlaWatchWarning"]


class SqlaWatchWarning(UserWarning):
    """A finding, as a Python warning at the user's own line. Each rule has a subclass of its own.

    `finding` is the `Finding` itself. Python's own filters choose what happens with it::

        warnings.filterwarnings("error", category=sqla_watch.NPlusOneWarning)
    """

    def __init__(self, message: str, finding: Finding | None = None) -> None:
        super().__init__(message)
        self.finding = finding


class SqlaWatchError(Exception):
    """Base of the errors which this package raises about its own use."""


class FindingRaised(SqlaWatchError):
    """A finding of a rule whose action is `raise`; `finding` is the `Finding`, `findings` all of them."""

    def __init__(self, findings: list[Finding]) -> None:
        super().__init__("\n".join(finding.describe() for finding in findings))
        self.findings = findings
        self.finding = findings[0]


class Severity(StrEnum):
    """How much a finding matters."""

    HIGH = "high"
    """Grows with the data, or makes others wait: repair it first."""
    MEDIUM = "medium"
    """Costs time in every request."""
    LOW = "low"
    """Worth knowing."""


@dataclass(frozen=True, slots=True)
class Location:
    """A line of code."""

    file: str
    """Path as Python knows it, mostly absolute."""
    line: int
    """Number of the line, from 1."""
    function: str
    """Name of the function or method, `<module>` outside of any."""
    last_line: int = field(default=0, compare=False)
    """Number of the last line of the same expression."""

    def __str__(self) -> str:
        return f"{self.shown_file}:{self.line}"

    @property
    def shown_file(self) -> str:
        """The file relative to the working directory if it lies below it."""
        try:
            relative = _relative(self.file, os.getcwd())
        except (OSError, ValueError):  # another drive, or a working directory that is gone
            return self.file
        return self.file if relative.startswith("..") or self.file.startswith("<") else relative

    def to_dict(self) -> dict[str, Any]:
        """Return file, line and function as the JSON report has them."""
        return {"file": self.file, "line": self.line, "function": self.function}


@lru_cache(maxsize=1_024)
def _relative(file: str, folder: str) -> str:
    """Return the way from a folder to a file, which is cut to pieces and put together for it (10 µs)."""
    return os.path.relpath(file, folder)


@dataclass(frozen=True, slots=True)
class RelatedLocation:
    """Another line that has to do with a finding, and what it did."""

    role: str
    location: Location

    def to_dict(self) -> dict[str, Any]:
        """Return the role with file, line and function."""
        return {"role": self.role, **self.location.to_dict()}


@dataclass(frozen=True, slots=True, eq=False)
class Finding:
    """One mistake.

    Its message is a sentence, in which seconds are rounded to tenths so that the same mistake mostly reads the
    same; the numbers themselves are in `evidence`, whose keys carry their units.
    """

    rule: str
    """Id of the rule: `n-plus-one`."""
    target: str
    """What it is about: `Order.customer`, or the statement in short: `SELECT orders`."""
    severity: Severity
    message: str
    location: Location | None
    """The line of the user's code which causes it; None if no frame of theirs was on the stack."""
    evidence: Mapping[str, int | float | str | bool]
    suggestion: str
    """What to change; code in it can be pasted."""
    related: tuple[RelatedLocation, ...] = ()
    statement: str = ""
    """The statement without its values; empty where it is not about one."""
    statements: int = 0
    """How many statements it is about."""
    database_seconds: float = 0.0
    """Seconds the database layer spent on those statements."""
    started: int = 0
    """When that which it is about began and ended, nanoseconds of `time.perf_counter_ns`; 0 if that is not known."""
    finished: int = 0

    @property
    def identity(self) -> tuple[str, str, str, str]:
        """Rule, target, file and function: the same for the same mistake, also after lines have moved."""
        location = self.location
        if location is None:
            return (self.rule, self.target, "", "")
        return (self.rule, self.target, location.file, location.function)

    @property
    def key(self) -> tuple[str, ...]:
        """The identity with line and statement: the same for the same mistake in one run of a program."""
        return (*self.identity, str(self.location.line if self.location else 0), self.statement)

    def describe(self) -> str:
        """Return message, place and suggestion as a few lines of text."""
        place = f"{self.location} in {self.location.function}: " if self.location else ""
        lines = [f"{place}{self.message} [{self.rule}]"]
        lines += [f"  {related.role} at {related.location} in {related.location.function}" for related in self.related]
        lines += [f"  {line}" for line in self.suggestion.splitlines()]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return the finding as the JSON report has it (schema version 1)."""
        return {
            "rule": self.rule,
            "severity": str(self.severity),
            "message": self.message,
            "location": self.location.to_dict() if self.location else None,
            "evidence": dict(self.evidence),
            "suggestion": self.suggestion,
            "target": self.target,
            "related": [related.to_dict() for related in self.related],
            "statement": self.statement,
            "statements": self.statements,
            "database_seconds": self.database_seconds,
        }
