"""A scope as a report has it, read: from an application of ours, or from a JSON file that somebody made.

A mapping as `Scope.to_dict` makes it goes in, perhaps with a timeline and a request; frozen data with checked numbers
and visible texts come out. Whatever is missing or of a wrong kind is named with its path and value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqla_watch.findings import Location, Severity
from sqla_watch.panel.reading import MOST_NAME, JsonObject, Path, Scalar

__all__ = [
    "Entry",
    "FoundEntry",
    "Moment",
    "Place",
    "RequestEntry",
    "Summary",
    "Timeline",
    "read_entry",
    "read_summary",
]

MOST_SQL = 20_000
"""Characters of a statement that are shown."""
MOST_TEXT = 4_000
"""Characters of a message or a suggestion."""
MOST_FINDINGS = 200
"""Findings of one scope that are shown."""
MOST_RELATED = 20
"""Further lines of one finding, and numbers of its evidence, that are shown."""
MOST_MOMENTS = 20_000
"""Entries of one timeline that are drawn."""

_LAST_MOMENT = 253_000_000_000
"""In the year 9987: what a calendar can tell."""
_EARLIEST = -1e9
"""Seconds before the scope began: a transaction may have been open."""
_SEVERITIES = tuple(str(severity) for severity in Severity)
_KINDS = ("statement", "wait", "transaction", "commit", "gap")


@dataclass(frozen=True, slots=True)
class Place:
    """A line of code, its texts visible and cut."""

    file: str
    line: int
    function: str

    @property
    def shown(self) -> str:
        """File and line, the file relative to the working directory where it lies below it."""
        return str(Location(self.file, self.line, self.function))

    @property
    def short(self) -> str:
        """The file without its folders, and the line."""
        return f"{self.file.replace(chr(92), '/').rpartition('/')[2]}:{self.line}"

    @property
    def full(self) -> str:
        """All that is known of it."""
        return f"{self.file}:{self.line} in {self.function}"


@dataclass(frozen=True, slots=True)
class RequestEntry:
    """What a middleware knows of a request."""

    method: str
    route: str
    status: int
    """0 where no response was sent."""
    failed: bool
    sampled: bool


@dataclass(frozen=True, slots=True)
class Summary:
    """A scope in one row of a list."""

    name: str
    kind: str
    started_at: float
    duration_seconds: float
    statements: int
    rows: int
    errors: int
    database_seconds: float
    high: int
    medium: int
    low: int
    request: RequestEntry | None

    @property
    def findings(self) -> int:
        """How many there are."""
        return self.high + self.medium + self.low


@dataclass(frozen=True, slots=True)
class FoundEntry:
    """A finding."""

    rule: str
    severity: str
    message: str
    place: Place | None
    evidence: tuple[tuple[str, Scalar], ...]
    suggestion: str
    target: str
    related: tuple[tuple[str, Place], ...]
    statement: str
    statements: int
    database_seconds: float


@dataclass(frozen=True, slots=True)
class Moment:
    """A statement, wait, transaction, COMMIT or gap, with its place on the axis of time."""

    kind: str
    start: float
    seconds: float
    line: int
    """Number of its line in the timeline, -1 for none."""
    text: int
    """Number of its text, -1 for what is no statement."""
    rows: int
    statements: int
    connection: int
    transaction: int
    """0 for none."""
    load: str
    error: str
    outcome: str
    doing: str


@dataclass(frozen=True, slots=True)
class Timeline:
    """What a scope has seen, moment by moment."""

    texts: tuple[str, ...]
    lines: tuple[Place, ...]
    moments: tuple[Moment, ...]
    left_out: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A scope with all that is known of it."""

    summary: Summary
    commit_seconds: float
    wait_seconds: float
    held_seconds: float
    connect_seconds: float
    connections: int
    transactions: int
    dropped: int
    findings: tuple[FoundEntry, ...]
    findings_left_out: int
    timeline: Timeline | None
    timeline_left_out: str
    """Why there is none, where it was taken out; empty where there never was."""


def read_entry(value: Any, path: Path) -> Entry:
    """Read a scope.

    Args:
        value: As `Scope.to_dict` makes it, perhaps with `timeline` and `request`.
        path: How to get there, for messages: `("scopes", 0)`.

    Raises:
        PanelError: Something is missing or of a wrong kind.
    """
    scope = JsonObject(value, path)
    return Entry(
        summary=read_summary(value, path),
        commit_seconds=scope.seconds("commit_seconds"),
        wait_seconds=scope.seconds("wait_seconds"),
        held_seconds=scope.seconds("held_seconds"),
        connect_seconds=scope.seconds("connect_seconds"),
        connections=scope.count("connections"),
        transactions=scope.count("transactions"),
        dropped=scope.count("dropped"),
        findings=scope.each("findings", _read_finding, MOST_FINDINGS),
        findings_left_out=max(0, len(scope.items("findings")) - MOST_FINDINGS),
        timeline=_read_timeline(scope.object("timeline")) if scope.has("timeline") else None,
        timeline_left_out=scope.optional_text("timeline_left_out"),
    )


def read_summary(value: Any, path: Path) -> Summary:
    """Read of a scope what a list shows.

    Raises:
        PanelError: Something is missing or of a wrong kind.
    """
    scope = JsonObject(value, path)
    severities = scope.each("findings", lambda finding: finding.one_of("severity", _SEVERITIES))
    return Summary(
        name=scope.text("name"),
        kind=scope.text("kind"),
        started_at=scope.seconds("started_at", most=_LAST_MOMENT),
        duration_seconds=scope.seconds("duration_seconds"),
        statements=scope.count("statements"),
        rows=scope.count("rows"),
        errors=scope.count("errors"),
        database_seconds=scope.seconds("database_seconds"),
        high=severities.count("high"),
        medium=severities.count("medium"),
        low=severities.count("low"),
        request=_read_request(scope.object("request")) if scope.has("request") else None,
    )


def _read_request(request: JsonObject) -> RequestEntry:
    return RequestEntry(
        method=request.text("method"),
        route=request.text("route"),
        status=request.count("status", below=1_000),
        failed=request.flag("failed"),
        sampled=request.flag("sampled"),
    )


def _read_finding(finding: JsonObject) -> FoundEntry:
    return FoundEntry(
        rule=finding.text("rule"),
        severity=finding.one_of("severity", _SEVERITIES),
        message=finding.text("message", MOST_TEXT),
        place=None if finding.get("location") is None else _read_place(finding.object("location")),
        evidence=finding.scalars("evidence", MOST_RELATED),
        suggestion=finding.text("suggestion", MOST_TEXT),
        target=finding.text("target"),
        related=finding.each("related", lambda related: (related.text("role"), _read_place(related)), MOST_RELATED),
        statement=finding.text("statement", MOST_SQL),
        statements=finding.count("statements"),
        database_seconds=finding.seconds("database_seconds"),
    )


def _read_place(place: JsonObject) -> Place:
    return Place(place.text("file", 2 * MOST_NAME), place.count("line"), place.text("function"))


def _read_timeline(timeline: JsonObject) -> Timeline:
    texts = timeline.texts("texts", MOST_SQL)
    lines = timeline.each("lines", _read_place)

    def read(moment: JsonObject) -> Moment:
        kind = moment.one_of("kind", _KINDS)
        return Moment(
            kind=kind,
            start=moment.seconds("start", least=_EARLIEST),
            seconds=moment.seconds("seconds"),
            line=moment.count("line", least=-1, below=len(lines)),
            text=moment.count("text", below=len(texts)) if kind == "statement" else -1,
            rows=moment.optional_count("rows"),
            statements=moment.optional_count("statements"),
            connection=moment.optional_count("connection"),
            transaction=moment.optional_count("transaction"),
            load=moment.optional_text("load"),
            error=moment.optional_text("error"),
            outcome=moment.optional_text("outcome"),
            doing=moment.optional_text("doing"),
        )

    return Timeline(
        texts=texts,
        lines=lines,
        moments=timeline.each("entries", read, MOST_MOMENTS),
        left_out=timeline.count("left_out") + max(0, len(timeline.items("entries")) - MOST_MOMENTS),
    )
