"""What was seen: the small, immutable facts which the probes write and the detectors read.

A `Statement` is one call of the DBAPI; it is a tuple because one is made for each statement that the
application sends. `StatementGroup` adds up the statements which belong together. Nothing here keeps a
parameter value, an entity, a session, a cursor or an execution context: values are compared by hash.
Times are nanoseconds of `time.perf_counter_ns` as int; findings turn them into seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

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
    """Names of the columns of a column load, as `Customer.notes`."""
    cause: str = ""
    """Why a column load was needed: `deferred`, `expired`, `subclass` or `refresh`."""


class CallSite(NamedTuple):
    """An instruction of the user's code, resolved to file and line only when somebody asks."""

    code: CodeType
    instruction: int
    """Offset of the instruction, `frame.f_lasti`."""


class RowCounter:
    """Counts the rows that a cursor hands out one after the other: SQLite, server-side cursors.

    The statement may have been added up already when its rows come; then they go to its group and record, too.
    """

    # Defaults of the class, not an __init__: one is made for each statement of a driver that cannot tell.
    streamed: bool = False
    """Whether the rows come in pieces, and are not in memory all at once."""
    rows: int = 0
    nanoseconds: int = 0
    elapsed: int = 0
    """Nanoseconds of the statement with the fetches so far, once it is in a group."""
    group: StatementGroup | None = None

    def add(self, rows: int, nanoseconds: int) -> None:
        """Add rows fetched and the time it took."""
        self.rows += rows
        self.nanoseconds += nanoseconds
        group = self.group
        if group is not None:
            group.rows += rows
            group.nanoseconds += nanoseconds
            group.most_rows = max(group.most_rows, self.rows)
            self.elapsed += nanoseconds
            group.slowest = max(group.slowest, self.elapsed)
            group.record.add_rows(rows, nanoseconds)


Statement: TypeAlias = tuple[
    "Fingerprint",
    "CodeType | None",  # the code that sent it, and
    int,  # the offset of the instruction there
    int,  # the places in up to two callers of that code: tells calls through one helper apart
    int,  # nanoseconds: started
    int,  # and finished
    "int | RowCounter",  # rows that it returned, or their counter
    int,  # hash of all parameter values
    int,  # hash of those that do not walk: without OFFSET, ranges, chunks of IN
    int,  # serial number of the connection's checkout
    int,  # serial number of the transaction; negative in autocommit, 0 outside of any
    "Load | None",
    int,  # SQLAlchemy's number of this load, 0 for what loads no entities
    "tuple[Ignore, ...]",
    str,  # SQLSTATE or exception's class if it failed
    "tuple[int, int] | None",  # rows skipped by OFFSET, and values in its longest list; None for neither
]
"""One execution of a DBAPI cursor. A bare tuple, because one is made for each statement: half a microsecond less."""

CODE: Final = 1
INSTRUCTION: Final = 2
STARTED: Final = 4
"""Places in a `Statement`."""


@dataclass(slots=True, eq=False)
class StatementGroup:
    """Statements alike: same SQL, same line of code, same checkout or session."""

    record: Record = field(repr=False)
    fingerprint: Fingerprint
    call_site: CallSite | None
    kind: LoadKind
    relationship: Relationship | None
    session: int
    ignores: tuple[Ignore, ...]
    count: int = 0
    errors: int = 0
    states: dict[str, int] = field(default_factory=dict)
    """SQLSTATEs, or exceptions' classes, of those that failed."""
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
    most_skipped: int = 0
    """Rows that one of its statements skipped by OFFSET, at most."""
    most_listed: int = 0
    """Values in the longest list of one of its statements."""
    columns: tuple[str, ...] = ()
    cause: str = ""
    """Of column loads: which columns, and why."""
    failed_last: bool = False
    """Whether the last of its statements failed."""
    checkouts: int = 1
    """Checkouts that its statements ran in: more than one where a helper gets a connection for each call."""
    in_checkout: int = 0
    """Statements in the checkout of the last one (lazy loads)."""
    most_in_checkout: int = 0
    last_checkout: int = 0
    overlapping: int = 0
    """Transactions begun before the one before them had ended: they ran at once, not in a loop."""
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

    def merge(self, other: StatementGroup) -> None:
        """Add the numbers of a group of the same statements in another checkout, but not its values."""
        self.overlapping += other.started < self.finished
        self.checkouts += other.checkouts
        self.count += other.count
        self.errors += other.errors
        self.rows += other.rows
        self.nanoseconds += other.nanoseconds
        self.most_rows = max(self.most_rows, other.most_rows)
        self.slowest = max(self.slowest, other.slowest)
        self.most_skipped = max(self.most_skipped, other.most_skipped)
        self.most_listed = max(self.most_listed, other.most_listed)
        self.failed_last = other.failed_last
        self.finished = max(self.finished, other.finished)
        self.streamed = self.streamed or other.streamed
        for state, count in other.states.items():
            self.states[state] = self.states.get(state, 0) + count


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

    def add(self, site: CallSite | None, rows: int, nanoseconds: int) -> None:
        """Add an execution, and the time it would have saved."""
        self.count += 1
        self.rows += rows
        self.nanoseconds += nanoseconds
        if site is not None:
            self.sites[site] = self.sites.get(site, 0) + 1


class Transaction(NamedTuple):
    """One transaction, from its first statement to the end of COMMIT or ROLLBACK."""

    serial: int
    """Its number in this process; negative for a connection in autocommit, where none is open."""
    checkout: int
    """Serial number of its connection's checkout."""
    wrote: bool
    """Whether it sent anything but reads."""
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
    error: str = ""
    """SQLSTATE or exception's class of a COMMIT or ROLLBACK that failed."""


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
