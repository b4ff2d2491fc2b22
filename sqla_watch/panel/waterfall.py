"""A timeline as rows and bars: what happened when, statements under their transaction, repeated ones in one row.

Checked moments go in; a tree of rows comes out, with bars in percent of the axis of time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import ceil, floor, log10

from sqla_watch.panel.entry import Entry, Moment, Place, Timeline
from sqla_watch.reporters.text import count, duration

__all__ = ["Bar", "Row", "Tick", "UsedText", "Waterfall", "draw"]

NARROWEST = 0.25
"""Percent of the axis: what is shorter is drawn as wide as this, and bars of one row that are closer are one."""
FOLDED_OTHERS = 3
"""Transactions, waits and the like are folded from this number on; statements from two on."""
MOST_ALIKE = 100
"""Of folded transactions those that show what is in them; of the further ones that are alike only the bars."""
MOST_TICKS = 6
SHORTEST_AXIS = 1e-4
"""Seconds: of less than that the marks could not be told apart."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A piece of a row on the axis, in percent of its width."""

    kind: str
    x: float
    width: float


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark on the axis."""

    x: float
    label: str


@dataclass(slots=True)
class Row:
    """A line of the waterfall; it may have others in it."""

    kind: str
    """`statement`, `wait`, `transaction`, `commit` or `gap`."""
    label: str
    """What it is, in words; empty for a statement."""
    start: float
    seconds: float
    text: int = -1
    place: Place | None = None
    rows: int | None = None
    count: int = 1
    notes: list[str] = field(default_factory=list)
    error: str = ""
    bars: list[Bar] = field(default_factory=list)
    inner: list[Row] = field(default_factory=list)
    folded: bool = False
    """Whether the rows in it are the same thing again and again, and not shown before they are asked for."""
    alike: bool = False
    """Whether it is one of these: then all but times and rows is told by the row around it."""

    @property
    def at(self) -> str:
        """When it began."""
        return duration(self.start)

    @property
    def took(self) -> str:
        """How long it took; of a folded row, all of them together."""
        return duration(self.seconds)


@dataclass(frozen=True, slots=True)
class UsedText:
    """One of the different statements of a timeline."""

    number: int
    text: str
    count: int
    rows: int
    seconds: float
    places: tuple[Place, ...]
    """Its lines, those first from which most were sent."""


@dataclass(frozen=True, slots=True)
class Waterfall:
    """What is to be drawn."""

    rows: tuple[Row, ...]
    ticks: tuple[Tick, ...]
    texts: tuple[UsedText, ...]
    """The different statements, those first that took longest."""
    kinds: tuple[str, ...]
    """What there is to explain in a legend."""
    left_out: int


def draw(entry: Entry) -> Waterfall | None:
    """Return the waterfall of a scope, or None if it has no timeline."""
    timeline = entry.timeline
    if timeline is None:
        return None
    moments = timeline.moments
    first = min([0.0, *(moment.start for moment in moments)])
    last = max([entry.summary.duration_seconds, *(moment.start + moment.seconds for moment in moments)])
    axis = _Axis(first, max(last - first, SHORTEST_AXIS))
    rows = _fold(_arranged(timeline))
    for row in rows:
        _draw_bars(row, axis)
    kinds = {moment.kind for moment in moments}
    return Waterfall(
        rows=tuple(rows),
        ticks=tuple(axis.ticks()),
        texts=tuple(sorted(_used(timeline), key=lambda used: (-used.seconds, used.number))),
        kinds=tuple(kind for kind in ("statement", "commit", "transaction", "gap", "wait") if kind in kinds),
        left_out=timeline.left_out,
    )


@dataclass(frozen=True, slots=True)
class _Axis:
    first: float
    length: float

    def bar(self, kind: str, start: float, seconds: float) -> Bar:
        x = min(max((start - self.first) / self.length * 100, 0.0), 100 - NARROWEST)
        return Bar(kind, round(x, 3), round(min(max(seconds / self.length * 100, NARROWEST), 100 - x), 3))

    def ticks(self) -> Iterator[Tick]:
        """Yield marks at round times, the first at the beginning of the scope."""
        step = self.length / MOST_TICKS
        unit = 10 ** floor(log10(step))
        step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= step * 0.999)
        for number in range(ceil(self.first / step), floor((self.first + self.length) / step) + 1):
            x = (number * step - self.first) / self.length * 100
            if x < 97:  # there would be no room for its label
                yield Tick(round(x, 3), "0" if number == 0 else duration(number * step))


def _arranged(timeline: Timeline) -> list[Row]:
    """Return rows in the order of their beginnings, what belongs to a transaction within its row."""
    connections = _Connections(timeline.moments)
    top: list[Row] = []
    transactions: dict[int, Row] = {}
    for moment in timeline.moments:
        if moment.kind == "transaction":
            row = transactions[moment.transaction] = _row_of(moment, timeline)
            row.notes += connections.note(moment)
            top.append(row)
    for moment in timeline.moments:
        if moment.kind == "transaction":
            continue
        row = _row_of(moment, timeline)
        around = transactions.get(moment.transaction) if moment.transaction else None
        if around is None and moment.transaction:  # its end is not in here: nobody knows how long it was
            around = transactions[moment.transaction] = Row("transaction", "Transaction", moment.start, 0.0)
            around.notes += ["its end was not seen", *connections.note(moment)]
            top.append(around)
        if around is None:
            row.notes += connections.note(moment)
            top.append(row)
        else:
            around.inner.append(row)
            around.seconds = max(around.seconds, moment.start + moment.seconds - around.start)
    for row in (*transactions.values(),):
        row.inner.sort(key=_begins)
    return sorted(top, key=_begins)


def _begins(row: Row) -> tuple[float, float]:
    return (row.start, -row.seconds)


class _Connections:
    """Numbers connections as they come, where there is more than one at a time to tell apart."""

    def __init__(self, moments: Iterable[Moment]) -> None:
        self._numbers: dict[int, int] = {}
        for moment in moments:
            if moment.connection and moment.kind != "wait":
                self._numbers.setdefault(moment.connection, len(self._numbers) + 1)

    def note(self, moment: Moment) -> list[str]:
        number = self._numbers.get(moment.connection)
        return [f"connection {number}"] if number is not None and len(self._numbers) > 1 else []


_ENDS = {"commit": "COMMIT", "rollback": "ROLLBACK", "prepare": "PREPARE TRANSACTION"}
_ENDED = {"commit": "committed", "rollback": "rolled back", "prepare": "prepared"}


def _row_of(moment: Moment, timeline: Timeline) -> Row:
    row = Row(
        kind=moment.kind,
        label="",
        start=moment.start,
        seconds=moment.seconds,
        text=moment.text,
        place=timeline.lines[moment.line] if moment.line >= 0 else None,
        error=moment.error,
    )
    if moment.kind == "statement":
        row.rows = moment.rows
        row.notes += [moment.load] if moment.load else []
    elif moment.kind == "transaction":
        row.label = "Transaction"
        row.notes += [_ENDED.get(moment.outcome, moment.outcome), count(moment.statements, "statement")]
    elif moment.kind == "commit":
        row.label = _ENDS.get(moment.outcome, "COMMIT")
    elif moment.kind == "gap":
        row.label = "Idle in transaction"
        row.notes += [moment.doing] if moment.doing else []
    else:
        row.label = "Wait for a connection"
    return row


def _fold(rows: Sequence[Row]) -> list[Row]:
    """Return rows of which those that are alike are in one, at the place of the first."""
    for row in rows:
        if row.inner:
            row.inner = _fold(row.inner)
    alike: dict[Hashable, list[Row]] = {}
    for row in rows:
        alike.setdefault(_key(row), []).append(row)
    folded: list[Row] = []
    for each in alike.values():
        if len(each) >= (2 if each[0].kind == "statement" else FOLDED_OTHERS):
            folded.append(_folded(each))
        else:
            folded += each
    return sorted(folded, key=_begins)


def _key(row: Row) -> Hashable:
    """What rows have in common that are the same thing again."""
    if row.kind == "transaction":
        return (
            row.kind,
            row.place,
            tuple((_key(inner), inner.count > 1) for inner in row.inner if inner.kind != "gap"),
        )
    return (row.kind, row.text, row.place, row.label)


def _folded(rows: Sequence[Row]) -> Row:
    first = rows[0]
    errors = [row.error for row in rows if row.error]
    notes = [note for note in first.notes if all(note in row.notes for row in rows)]
    for row in rows:
        row.alike = True
        row.notes = [note for note in row.notes if note not in notes]
    return Row(
        kind=first.kind,
        label=first.label,
        start=first.start,
        seconds=sum(row.seconds for row in rows),
        text=first.text,
        place=first.place,
        rows=sum(row.rows or 0 for row in rows) if first.kind == "statement" else None,
        count=len(rows),
        notes=notes,
        error=(count(len(errors), "error") if len(errors) > 1 else errors[0]) if errors else "",
        inner=list(rows),
        folded=True,
    )


def _draw_bars(row: Row, axis: _Axis) -> None:
    for inner in row.inner:
        _draw_bars(inner, axis)
    if row.folded:
        row.bars = list(_joined(bar for inner in row.inner for bar in inner.bars))
        for inner in row.inner[MOST_ALIKE:]:
            inner.inner = []
        return
    row.bars = [axis.bar(row.kind, row.start, row.seconds)]
    if row.kind == "transaction":
        row.bars += _joined(bar for inner in row.inner for bar in inner.bars if inner.kind in ("statement", "commit"))


def _joined(bars: Iterable[Bar]) -> Iterator[Bar]:
    """Yield bars of which those of one kind that touch are one: never more than a few hundred."""
    for kind, (first, *others) in _by_kind(bars):
        start, end = first.x, first.x + first.width
        for bar in others:
            if bar.x > end + NARROWEST / 2:
                yield Bar(kind, start, round(end - start, 3))
                start = end = bar.x
            end = max(end, bar.x + bar.width)
        yield Bar(kind, start, round(end - start, 3))


def _by_kind(bars: Iterable[Bar]) -> Iterator[tuple[str, list[Bar]]]:
    kinds: dict[str, list[Bar]] = {}
    for bar in bars:
        kinds.setdefault(bar.kind, []).append(bar)
    for kind in sorted(kinds, key=lambda kind: kind != "transaction"):  # what is in it is drawn over it
        yield kind, sorted(kinds[kind], key=lambda bar: bar.x)


def _used(timeline: Timeline) -> Iterator[UsedText]:
    sent: dict[int, list[Moment]] = {}
    for moment in timeline.moments:
        if moment.text >= 0:
            sent.setdefault(moment.text, []).append(moment)
    for number, moments in sent.items():
        lines = Counter(moment.line for moment in moments if moment.line >= 0)
        yield UsedText(
            number=number,
            text=timeline.texts[number],
            count=len(moments),
            rows=sum(moment.rows for moment in moments),
            seconds=sum(moment.seconds for moment in moments),
            places=tuple(timeline.lines[line] for line, _ in lines.most_common(3)),
        )
