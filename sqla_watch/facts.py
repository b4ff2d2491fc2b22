"""What was seen: the small, immutable facts which the probes write and the detectors read.

A `Statement` is one call of the DBAPI; it is a tuple because one is made for each statement that the
application sends. `StatementGroup` adds up the statements which belong together. Nothing here keeps a
parameter value, an entity, a session, a cursor or an execution context: values are compared by hash.
Times are nanoseconds of `time.perf_counter_ns` as int; findings turn them into seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum, StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from types import CodeType

    from sqla_watch.budgets import Budget
    from sqla_watch.fingerprint import Fingerprint
    from sqla_watch.ignores import Ignore
    from sqla_watch.record import Record, Totals


class LoadKind(IntEnum):
    """Why SQLAlchemy's ORM sent a SELECT."""

    QUERY = 0
    """The application's own query: a `select()`, a `Query`, a `session.get`."""
    LAZY = 1
    """A relationship which was touched before it was loaded."""
    COLUMN = 2
    """Columns of one object: deferred, expired, or refreshed."""
    EAGER = 3
    """The second query of a `selectinload` or `subqueryload`."""


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
    """What an ORM SELECT loads beyond a query of the application's own; mostly the same object for loads in a row."""

    kind: LoadKind
    relationship: Relationship | None
    session: int
    """`Session.hash_key` of the parent's session."""
    columns: tuple[str, ...]
    """Names of the columns of a column load, as `Customer.notes`."""
    cause: str = ""
    """Why it was needed: of columns `deferred`, `expired`, `thrown`, `expire`, `computed`, `subclass` or `refresh`; of
    relationships `flush` or `delete` where SQLAlchemy itself touched them, `immediate` where `immediateload` did."""


class Extra(NamedTuple):
    """What there is to know of some statements beyond what there is of all."""

    skipped: int = 0
    """Rows skipped by OFFSET."""
    listed: int = 0
    """Values in its longest list."""
    sets: int = 0
    """Of a write: parameter sets that were sent with one call."""
    alike: bool = False
    """Of an UPDATE with many sets: all of them set the same values."""
    changed: int = 0
    """Of a write that was sent once: rows that it changed, where these are more than one."""
    savepoint: int = 0
    """Number of the innermost savepoint that it was sent in, 0 for none."""
    flush: int = 0
    """Number of the flush that it belongs to, 0 for none."""
    session: int = 0
    """`Session.hash_key` of the flush's session."""
    uncached: int = 0
    """How often this line has sent a statement that SQLAlchemy's cache could not serve."""
    why: str = ""
    """What made it so: `literals`, `values`, or the name of the class without a cache key."""

    @property
    def is_ordinary(self) -> bool:
        """Whether it says no more than that a write belongs to a flush."""
        return not (self.skipped or self.listed or self.sets or self.savepoint or self.uncached) and self.changed <= 1


class CallSite(NamedTuple):
    """An instruction of the user's code, resolved to file and line only when somebody asks."""

    code: CodeType
    instruction: int
    """Offset of the instruction, `frame.f_lasti`."""

    @property
    def place(self) -> tuple[int, int]:
        """Where it is in memory: a key for as long as the code lives. To hash the code itself takes 1 to 14 µs."""
        return id(self[0]), self[1]


class Sites:
    """How often each of some lines was met."""

    __slots__ = ("_counts",)

    def __init__(self) -> None:
        self._counts: dict[tuple[int, int], list[Any]] = {}

    def add(self, site: CallSite, times: int = 1) -> None:
        """Count a line."""
        place = site.place
        counted = self._counts.get(place)
        if counted is None:
            self._counts[place] = [site, times]
        else:
            counted[1] += times

    def most_first(self) -> list[CallSite]:
        """Return the lines, those that were met most often first."""
        return [site for site, _ in sorted(self._counts.values(), key=lambda counted: -counted[1])]


class Activity(NamedTuple):
    """What a thread or task was doing at one moment, as places in code: no frame, no value of it."""

    call_site: CallSite | None
    """The innermost instruction of the user's code."""
    callee: CodeType | None = None
    """The code that it called; None for its own, or for a function that is not written in Python."""
    module: str = ""
    """Name of the callee's module."""
    computing: bool = False
    """Whether its thread had used the processor most of the time before."""
    database: bool = False
    """Whether the database was at work for it past SQLAlchemy, as for COPY."""


class RowCounter:
    """Counts the rows that a cursor hands out one after the other: SQLite, server-side cursors.

    The statement may have been added up already when its rows come; then they go to its group and record, too.
    """

    # All of it stays on the class until there is any: it is one object more for each statement of SQLite's.
    rows: int = 0
    nanoseconds: int = 0
    fetched_at: int = 0
    """When its last rows were fetched in one piece; 0 for one by one."""
    over: bool = False
    """Whether all of its rows have come, and there is nothing else to tell of them: nothing will be added any more."""
    group: StatementGroup | None = None
    record: Totals | None = None
    """Where the statement was counted; None as long as it was not, or if nothing more will come."""
    key: tuple[int, ...] = ()
    """Positions of the queried class's primary key in a row, where parents are to be counted."""
    special: bool = False
    """Whether it is streamed, or there is anything unread, or to be said of parents."""
    streamed: bool = False
    """Whether the rows come in pieces, and are not in memory all at once."""
    unread: int = 0
    """Rows that the driver had fetched and nobody asked for."""
    parents: int = 0
    """Distinct objects of the queried class in the rows, where a joined collection may have multiplied them."""
    elapsed: int = 0
    """Nanoseconds of the statement with the fetches so far, once it is in a group."""

    def stream(self) -> None:
        """Note that the rows come in pieces."""
        self.streamed = self.special = True

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
        if self.record is not None:
            self.record.add_rows(rows, nanoseconds)

    def leave(self, unread: int) -> None:
        """Note that a result was closed or dropped while rows of it were unread."""
        self.unread, self.special, self.over = unread, True, False
        if self.group is not None:
            self.group.count_rows(self)

    def count_parents(self, parents: int) -> None:
        """Note how many distinct objects there were in all rows of a joined query."""
        self.parents, self.special, self.over = parents, True, False
        if self.group is not None:
            self.group.count_rows(self)


Statement: TypeAlias = tuple[
    "Fingerprint",
    "CodeType | None",  # the code that sent it, and
    int,  # the offset of the instruction there
    int,  # the places in up to two callers of that code: tells calls through one helper apart
    int,  # nanoseconds: started
    int,  # and finished
    "int | RowCounter",  # rows that it returned, or their counter
    int,  # hash of all parameter values; of an UPDATE, of those that it sets
    int,  # hash of those that tell what it is about: without OFFSET, ranges, chunks of IN, and what an UPDATE sets; of
    # lazy and column loads, of the parent's identity key
    int,  # serial number of the connection's checkout
    int,  # serial number of the transaction; negative in autocommit, 0 outside of any
    "Load | None",
    int,  # SQLAlchemy's number of this load, 0 for what loads no entities
    "tuple[Ignore, ...]",
    str,  # SQLSTATE or exception's class if it failed
    "Extra | None",
    int,  # of lazy and column loads, SQLAlchemy's number of the load which brought the parent
]
"""One execution of a DBAPI cursor. A bare tuple, because one is made for each statement: half a microsecond less."""

FINGERPRINT: Final = 0
CODE: Final = 1
INSTRUCTION: Final = 2
STARTED: Final = 4
FINISHED: Final = 5
TRANSACTION: Final = 10
LOAD: Final = 11
IGNORES: Final = 13
ERROR: Final = 14
"""Places in a `Statement`."""


def site_of(statement: Statement) -> CallSite | None:
    """Return the line of a statement."""
    code = statement[CODE]
    return None if code is None else tuple.__new__(CallSite, (code, statement[INSTRUCTION]))


class StatementGroup:
    """Statements alike: same SQL, same line of code, same checkout or session.

    What most groups have nothing of stays on the class, which makes a group in a third of the time.
    """

    states: Mapping[str, int] = MappingProxyType({})
    """SQLSTATEs, or exceptions' classes, of those that failed."""
    streamed: bool = False
    """Its rows came in pieces."""
    most_unread: int = 0
    """Rows of one of its statements that were fetched and never read, at most; and those fetched with them."""
    unread_of: int = 0
    multiplied_rows: int = 0
    """Rows of the statement whose joined collections multiplied them most, and the distinct objects in them."""
    multiplied_parents: int = 0
    most_sets: int = 0
    """Parameter sets that one of its writes was sent with, at most."""
    most_alike: int = 0
    """The same, of UPDATEs that set the same values in all of them."""
    changed: int = 0
    """Rows beyond the first that its writes changed, all together."""
    savepoints: int = 0
    """Savepoints that its writes were in."""
    last_savepoint: int = 0
    most_in_flush: int = 0
    """Single-row writes of one flush, at most."""
    last_flush: int = 0
    in_flush: int = 0
    assigned: frozenset[int] = frozenset()
    """Hashes of the values that its UPDATEs set, 0 for unknown; two are enough."""
    unit: int = 0
    """Session or connection of its last transaction."""
    in_unit: int = 0
    """Transactions in a row, of one session or connection, that were nothing but one such write and its COMMIT."""
    most_in_unit: int = 0
    unit_started: int = 0
    unit_busy: int = 0
    """Since when, and nanoseconds of these transactions themselves."""
    uncached: int = 0
    """How often its line has sent a statement that SQLAlchemy's cache could not serve, and why."""
    why: str = ""
    most_skipped: int = 0
    """Rows that one of its statements skipped by OFFSET, at most."""
    most_listed: int = 0
    """Values in the longest list of one of its statements."""
    columns: tuple[str, ...] = ()
    cause: str = ""
    """Of column loads: which columns, and why."""
    failed_last: bool = False
    """Whether the last of its statements failed."""
    in_checkout: int = 0
    """Statements in the checkout of the last one (lazy loads)."""
    most_in_checkout: int = 0
    last_checkout: int = 0
    roots: set[int]
    """Numbers of the queries that loaded the parents; of lazy loads only."""
    above: Any = None
    """The load of the parents, and what this group's own loads are remembered as (`record.LoadEntry`)."""
    entry: Any = None
    origin: CallSite | None = None
    """The line of the query at the root, for the parent that was loaded by this load of SQLAlchemy's."""
    parent_runid: int = 0
    root_sites: Sites
    """Where those queries are, and how many of the parents each loaded; of lazy loads only."""

    def __init__(
        self,
        record: Record,
        fingerprint: Fingerprint,
        call_site: CallSite | None,
        kind: LoadKind,
        relationship: Relationship | None,
        session: int,
        ignores: tuple[Ignore, ...],
        started: int = 0,
        on_event_loop: bool = False,
    ) -> None:
        self.record = record
        self.fingerprint = fingerprint
        self.call_site = call_site
        self.kind = kind
        self.relationship = relationship
        self.session = session
        self.ignores = ignores
        self.count = self.errors = self.rows = self.nanoseconds = 0
        self.most_rows = self.slowest = 0
        """Of one of its statements, at most."""
        self.started = started
        self.finished = 0
        self.checkouts = 1
        """Checkouts that its statements ran in: more than one where a helper gets a connection for each call."""
        self.overlapping = self.owner = 0
        """Transactions of another thread or task than the one before, or begun before it had ended: not in a loop.
        And the thread or task of its last transaction."""
        self.flushed = 0
        """Writes that a flush sent."""
        self.special = False
        """Whether it has any of what few have."""
        self.on_event_loop = on_event_loop
        """Its connection was taken by a synchronous engine in a thread where an event loop runs."""
        self.values: set[int] = set()
        """Distinct fixed values; of lazy and column loads, distinct parents."""
        self.uncounted = 0
        """Statements whose values were not compared for want of room."""
        if kind is not LoadKind.QUERY:
            self.roots = set()
            self.root_sites = Sites()
            self.in_checkout = self.most_in_checkout = self.last_checkout = self.parent_runid = 0

    def count_rows(self, counter: RowCounter) -> None:
        """Take over what is known of the rows of one of its statements."""
        self.special = True
        if counter.streamed:
            self.streamed = True
        if counter.unread > self.most_unread:
            self.most_unread, self.unread_of = counter.unread, counter.rows
            self.record.has["unread"] = 1
        if counter.parents and counter.rows * (self.multiplied_parents or 1) > self.multiplied_rows * counter.parents:
            self.multiplied_rows, self.multiplied_parents = counter.rows, counter.parents
            self.record.has["multiplied"] = 1

    def merge(self, other: StatementGroup) -> None:
        """Add the numbers of a group of the same statements in another checkout, but not its values."""
        if other.started < self.finished or other.owner != self.owner:
            self.overlapping += 1
        self.owner = other.owner
        self.checkouts += 1
        self.count += other.count
        self.rows += other.rows
        self.nanoseconds += other.nanoseconds
        if other.most_rows > self.most_rows:
            self.most_rows = other.most_rows
        if other.slowest > self.slowest:
            self.slowest = other.slowest
        if other.finished > self.finished:
            self.finished = other.finished
        if other.special:
            self._merge_rest(other)
        elif self.errors:
            self.failed_last = False

    def _merge_rest(self, other: StatementGroup) -> None:
        """Add what few groups have."""
        self.special = True
        self.errors += other.errors
        self.failed_last = other.failed_last
        self.flushed += other.flushed
        self.streamed = self.streamed or other.streamed
        self.most_skipped = max(self.most_skipped, other.most_skipped)
        self.most_listed = max(self.most_listed, other.most_listed)
        if other.most_unread > self.most_unread:
            self.most_unread, self.unread_of = other.most_unread, other.unread_of
        if other.multiplied_rows > self.multiplied_rows:
            self.multiplied_rows, self.multiplied_parents = other.multiplied_rows, other.multiplied_parents
        self.most_sets = max(self.most_sets, other.most_sets)
        self.most_alike = max(self.most_alike, other.most_alike)
        self.changed += other.changed
        self.savepoints += other.savepoints
        self.most_in_flush = max(self.most_in_flush, other.most_in_flush)
        self.assigned |= other.assigned
        self.uncached = max(self.uncached, other.uncached)
        self.why = self.why or other.why
        if other.states:
            counts = dict(self.states)
            for state, count in other.states.items():
                counts[state] = counts.get(state, 0) + count
            self.states = counts


class Repeat:
    """One statement with the same values, several times in one transaction, with no write in between."""

    __slots__ = ("_groups", "count", "fingerprint", "ignores", "nanoseconds", "rows")

    def __init__(self, fingerprint: Fingerprint, ignores: tuple[Ignore, ...]) -> None:
        self.fingerprint = fingerprint
        self.ignores = ignores
        self.count = self.rows = self.nanoseconds = 0
        """Nanoseconds of all executions but the first: what keeping the first answer would save."""
        self._groups: dict[StatementGroup, int] = {}

    def add(self, group: StatementGroup, rows: int, nanoseconds: int) -> None:
        """Add an execution, and the time it would have saved."""
        self.count += 1
        self.rows += rows
        self.nanoseconds += nanoseconds
        groups = self._groups
        groups[group] = groups.get(group, 0) + 1

    @property
    def sites(self) -> list[CallSite]:
        """The lines that it was sent from, those most often first."""
        sites = Sites()
        for group, count in self._groups.items():
            if group.call_site is not None:
                sites.add(group.call_site, count)
        return sites.most_first()


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
    failed_at: CallSite | None = None
    """Line of that COMMIT or ROLLBACK."""
    owner: int = 0
    """The task, or else thread, that had asked for the connection."""
    gap: int = 0
    """Nanoseconds of the longest time between two of its statements, or the last one and its end; since when."""
    gap_started: int = 0
    gap_after: CallSite | None = None
    """Line of the statement before that gap, and of what ended it."""
    gap_before: CallSite | None = None
    meanwhile: tuple[Activity, ...] = ()
    """What its owner was seen doing in that gap, earliest first."""
    savepoints: int = 0
    """Savepoints that were set in it."""
    two_phase: bool = False


class HolderState(StrEnum):
    """What a connection that is out was doing."""

    WORKING = "working"
    """In a statement, a COMMIT or a ROLLBACK."""
    WAITING = "waiting for another connection"
    IDLE_IN_TRANSACTION = "idle in transaction"
    IDLE = "idle"
    LEFT = "never returned"
    """The functions that took it are not running any more."""


class Holder(NamedTuple):
    """Who has a connection of a pool, at one moment."""

    activity: Activity
    """Where its thread or task was; of one that was left, the line that took it."""
    state: HolderState
    since: int
    """When the connection was got."""
    taken: CallSite | None
    """The line that took it, and whether its function is over."""
    taken_is_over: bool
    in_transaction: bool
    """Whether it had a transaction open with at least one statement in it."""
    scope: str
    """Name of the scope of that statement."""
    transaction_started: int = 0
    """When the first statement of its transaction began, and the last one ended; 0 for none."""
    last_finished: int = 0
    statements: int = 0
    """Statements of its transaction so far."""
    in_unit: bool = False
    """Whether the unit of work that took it lasts."""


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
    checkout: int = 0
    """Serial number of the checkout that it led to; 0 for none."""
    on_event_loop: bool = False
    """Whether a synchronous engine was asked in a thread where an event loop runs."""
    holders: tuple[Holder, ...] = ()
    """Who had the connections when the wait had become long; where it was in vain, when it ended. Longest first."""
    owner: int = 0
    """Number of the task, or else thread, that waited; and whether it is a task."""
    is_task: bool = False
    inside: CallSite | None = None
    """The line that had taken a connection of the same pool, which the same thread or task still had."""
    shared: bool = False
    """Whether others had connections of the pool as well."""


class Held(NamedTuple):
    """A connection's time out of the pool: to its return, or to the end of the unit of work that had taken it."""

    checkout: int
    started: int
    """When it was got."""
    finished: int
    returned: bool
    worked: int
    """Nanoseconds in statements, COMMIT and ROLLBACK."""
    in_transactions: int
    """Nanoseconds in which a transaction was open."""
    connecting: int
    """Nanoseconds that it took to open the connection, 0 for one that was open; and to ping it."""
    pinging: int
    idle: int
    """Nanoseconds of the longest time outside of a transaction without a statement, and what was done meanwhile."""
    meanwhile: tuple[Activity, ...]
    call_site: CallSite | None
    """The line that took it."""
    waits: int
    """Requests for a connection that had to wait meanwhile."""
    kept: bool
    """It is kept for what a session of PostgreSQL has: LISTEN, an advisory lock, a temporary table."""
    ignores: tuple[Ignore, ...]


class FlushCause(StrEnum):
    """What made a session flush."""

    EXPLICIT = "explicit"
    AUTOFLUSH = "autoflush"
    COMMIT = "commit"
    SAVEPOINT = "savepoint"


class Flush(NamedTuple):
    """One flush of a session that sent statements."""

    serial: int
    session: int
    cause: FlushCause
    call_site: CallSite | None
    statements: int
    objects: int
    """New, changed and deleted objects."""
    started: int
    finished: int
    ignores: tuple[Ignore, ...]
    transaction: int = 0
    """Serial number of the transaction that its statements were in."""


class FlushGroup:
    """Flushes of one session from one line, in one transaction: the one with most of them."""

    __slots__ = (
        "call_site", "cause", "count", "ignores", "nanoseconds", "objects", "session", "statements", "transaction",
    )  # fmt: skip

    def __init__(
        self,
        session: int,
        cause: FlushCause,
        call_site: CallSite | None,
        ignores: tuple[Ignore, ...],
        transaction: int = 0,
    ) -> None:
        self.session = session
        self.cause = cause
        self.call_site = call_site
        self.ignores = ignores
        self.transaction = transaction
        self.count = self.statements = self.objects = self.nanoseconds = 0


class SessionEvent(StrEnum):
    """What can be wrong with a session's life."""

    HELD = "held"
    """It held many objects when it committed or was closed."""
    UNSAVED = "unsaved"
    """It was closed with changes that were neither committed nor rolled back."""
    OUTLIVED = "outlived"
    """A transaction of one request went on in another."""
    SHARED = "shared"
    """Two threads or tasks used its connection at the same moment."""


class SessionUse(NamedTuple):
    """Something about the life of a session."""

    event: SessionEvent
    call_site: CallSite | None
    ignores: tuple[Ignore, ...]
    objects: int = 0
    """Objects in its identity map."""
    new: int = 0
    changed: int = 0
    deleted: int = 0
    flushed: int = 0
    """Statements that had written, in a transaction that was not committed."""
    other: CallSite | None = None
    """The other line: of the write, of the first request's statement, of the statement that was running."""
    where: str = ""
    """Name of the scope it had been used in before."""


class MissingLoad(NamedTuple):
    """An attribute that was touched outside of a greenlet, where an asynchronous driver cannot be waited for."""

    owner: str
    """Name of the class; empty where no attribute was touched."""
    key: str
    cause: str
    """`relationship`, `deferred`, `expired`, `thrown`, `expire`, `computed`, `subclass`, or empty."""
    to_many: bool
    parent_runid: int
    call_site: CallSite | None
    ignores: tuple[Ignore, ...]
    query: CallSite | None = None
    """The query that loaded the object; the record fills it in."""


class EngineConfiguration(NamedTuple):
    """How an engine was made, as far as it can be wrong; no address, no credentials."""

    dialect: str
    """Names of dialect and driver: `postgresql+psycopg`."""
    pool: str
    """Class of the pool."""
    pool_size: int
    max_overflow: int
    """-1 for no limit."""
    pre_ping: bool
    recycle_seconds: float
    """-1 for never."""
    reset_on_return: bool
    echo: bool
    isolation_level: str
    """As given to `create_engine`; empty if it was not."""
    query_cache_size: int
    call_site: CallSite | None
    """The line that installed the watch or made the engine."""
    ignores: tuple[Ignore, ...]
    workers: int = 0
    """Processes with such a pool each, and the connections that the server has for them all; 0 where nobody asked."""
    max_connections: int = 0


class Spent(NamedTuple):
    """What a scope with a budget has cost."""

    name: str
    """Name of the scope."""
    budget: Budget
    statements: int
    rows: int
    database_seconds: float
    wait_seconds: float
    connections: int
    transactions: int
    ignores: tuple[Ignore, ...] = ()


Fact: TypeAlias = Statement | Transaction | Wait | Held | Flush | SessionUse | MissingLoad | EngineConfiguration
