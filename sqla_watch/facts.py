"""What was seen: the small, immutable facts which the probes write and the detectors read.

A `Statement` is one call of the DBAPI; it is a tuple because one is made for each statement that the
application sends. `StatementGroup` adds up the statements which belong together. Nothing here keeps a
parameter value, an entity, a session, a cursor or an execution context: values are compared by hash.
Times are nanoseconds of `time.perf_counter_ns` as int; findings turn them into seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from types import CodeType

    from sqla_watch.fingerprint import Fingerprint
    from sqla_watch.ignores import Ignore
    from sqla_watch.record import Record


class LoadKind(IntEnum):
    """Why SQLAlchemy's ORM sent a SELECT."""

    QUERY = 0
    """The application's own query: a `select()`, a `Query`, a `session.get`."""
    LAZY = 1
    """A relationship which was touched before it was loaded."""
    COLUMN = 2
    """Columns of one object: deferred, expired, or refreshed."""
    EAGER = 3
    """The second query of a `selectinload`, `subqueryload` or `immediateload`."""


class Relationship(NamedTuple):
    """A relationship by its names: what an N+1 is called, and how to load it at once."""

    owner: str
    """Name of the class that has it: `Order`."""
    key: str
    """Name of the attribute: `customer`."""
    target: str
    """Name of the related class: `Customer`."""
    to_many: bool
    """Whether it holds a collection."""
    path: tuple[tuple[str, str, bool], ...]
    """The relationships from the query's entity to the owner, each as (owner, key, to_many)."""

    @property
    def name(self) -> str:
        """The relationship as its class attribute is written: `Order.customer`."""
        return f"{self.owner}.{self.key}"

    @property
    def step(self) -> tuple[str, str, bool]:
        """The relationship as an element of a path."""
        return (self.owner, self.key, self.to_many)


class Load(NamedTuple):
    """What one ORM SELECT loaded, and for whom. Of an entity only hashes are kept."""

    kind: LoadKind
    relationship: Relationship | None
    parent: int
    """Hash of the parent's identity key (lazy and column loads)."""
    parent_runid: int
    """SQLAlchemy's number of the load which brought the parent."""
    session: int
    """`Session.hash_key` of the parent's session."""
    columns: tuple[str, ...]
    """Names of the columns of a column load."""


class CallSite(NamedTuple):
    """An instruction of the user's code, resolved to file and line only when somebody asks."""

    code: CodeType
    instruction: int
    """Offset of the instruction, `frame.f_lasti`."""


class RowCounter:
    """Counts the rows that a cursor hands out one after the other: SQLite, server-side cursors."""

    __slots__ = ("group", "nanoseconds", "record", "rows", "streamed")

    def __init__(self, streamed: bool) -> None:
        self.streamed = streamed
        """Whether the rows come in pieces, and are not in memory all at once."""
        self.rows = 0
        self.nanoseconds = 0
        self.group: StatementGroup | None = None
        self.record: Record | None = None

    def add(self, rows: int, nanoseconds: int) -> None:
        """Add rows fetched and the time it took, also to the group and record that have the statement already."""
        self.rows += rows
        self.nanoseconds += nanoseconds
        for total in (self.group, self.record):
            if total is not None:
                total.add_rows(rows, nanoseconds)
        if self.group is not None:
            self.group.most_rows = max(self.group.most_rows, self.rows)


class Statement(NamedTuple):
    """One execution of a DBAPI cursor. Made on the hot path with `tuple.__new__`: mind the order."""

    fingerprint: Fingerprint
    code: CodeType | None
    instruction: int
    path: int
    """Hash of the innermost frames of the user's code: tells calls through one helper apart."""
    started: int
    finished: int
    rows: int | RowCounter
    """Rows that the statement returned, or their counter; 0 for one that returns none."""
    values: int
    """Hash of all parameter values."""
    fixed: int
    """Hash of those parameter values which do not walk: without OFFSET, ranges, chunks of IN."""
    checkout: int
    """Serial number of the connection's checkout."""
    transaction: int
    """Serial number of the transaction."""
    load: Load | None
    runid: int
    """SQLAlchemy's number of this load, or 0 for what loads no entities."""
    ignores: tuple[Ignore, ...]
    error: str


@dataclass(slots=True, eq=False)
class StatementGroup:
    """Statements alike: same SQL, same line of code, same checkout or session."""

    fingerprint: Fingerprint
    call_site: CallSite | None
    kind: LoadKind
    relationship: Relationship | None
    session: int
    ignores: tuple[Ignore, ...]
    count: int = 0
    errors: int = 0
    rows: int = 0
    most_rows: int = 0
    """Rows of the statement of this group which returned most."""
    nanoseconds: int = 0
    slowest: int = 0
    """Nanoseconds of the slowest statement of this group."""
    started: int = 0
    finished: int = 0
    streamed: bool = False
    """Its rows came in pieces."""
    overlapping: int = 0
    """Statements begun before the one before them had ended: they ran at once, not in a loop."""
    values: set[int] = field(default_factory=set)
    """Distinct fixed values; of lazy and column loads, distinct parents."""
    uncounted: int = 0
    """Statements whose values were not compared for want of room."""
    roots: set[int] = field(default_factory=set)
    """Numbers of the queries that loaded the parents of lazy loads."""
    above: Any = None
    """The load of the parents, and what this group's own loads are remembered as (`record.LoadEntry`)."""
    entry: Any = None
    root_sites: dict[CallSite, int] = field(default_factory=dict)
    """Where those queries are, and how many of the parents each loaded."""

    def add_rows(self, rows: int, nanoseconds: int) -> None:
        """Add rows that were fetched after their statement had been counted."""
        self.rows += rows
        self.nanoseconds += nanoseconds


@dataclass(slots=True, eq=False)
class Repeat:
    """One statement with the same values, several times in one transaction, with no write in between."""

    fingerprint: Fingerprint
    ignores: tuple[Ignore, ...]
    count: int = 0
    rows: int = 0
    nanoseconds: int = 0
    """Of all executions but the first: what keeping the first answer would save."""
    sites: dict[CallSite, int] = field(default_factory=dict)
    """Where it was sent from, and how often."""


class Transaction(NamedTuple):
    """One transaction, from its first statement to the end of COMMIT or ROLLBACK."""

    serial: int
    """Its number in this process; negative for a connection in autocommit, where none is open."""
    started: int
    finished: int
    outcome: str
    """`commit`, `rollback`, or `prepare` for the first phase of a two-phase transaction."""
    statements: int
    database: int
    """Nanoseconds in its statements."""
    ending: int
    """Nanoseconds in COMMIT or ROLLBACK."""
    slowest: int
    """Nanoseconds of its slowest statement."""
    first: CallSite | None
    """Line of its first statement."""
    last: CallSite | None
    """Line of its last statement."""
    ignores: tuple[Ignore, ...]


class Wait(NamedTuple):
    """A request for a connection, and how long it had to wait for the pool."""

    started: int
    nanoseconds: int
    """Time in the pool's queue, opening a connection is not part of it; 0 where it got one at once."""
    timed_out: bool
    call_site: CallSite | None
    pool_size: int
    max_overflow: int
    ignores: tuple[Ignore, ...]


Fact: TypeAlias = Statement | Transaction | Wait
