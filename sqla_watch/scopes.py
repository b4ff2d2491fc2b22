"""A scope: what belongs together, such as one request, task, test or script, and what was seen in it.

Probes append facts to the scope that the ContextVar names; reading or closing the scope adds them up, and closing
has the rules judge them and the reporters tell. Scopes nest: the totals and findings of an inner one are also the
outer one's. With no scope open, one lasts from a connection's checkout to its return; it is kept on the
connection's record, because connections of several tasks are out at once.
"""

from __future__ import annotations

import functools
import inspect
import logging
import time
from _thread import RLock  # which `threading` has a function of Python's around
from collections.abc import Callable
from contextvars import ContextVar, Token
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar, cast, overload

from sqla_watch import registry
from sqla_watch.detectors import judge, worst_first
from sqla_watch.facts import CallSite, Fact, Statement, site_of
from sqla_watch.findings import Finding, FindingRaised
from sqla_watch.flows import current_flow
from sqla_watch.glance import FEW, glance
from sqla_watch.record import Record, Totals
from sqla_watch.reporters import deliver
from sqla_watch.settings import Settings
from sqla_watch.timeline import Timeline

if TYPE_CHECKING:
    from sqla_watch.budgets import Budget

__all__ = ["UNSAMPLED", "Scope", "carry", "current_scope", "scope"]

logger = logging.getLogger("sqla_watch")

_F = TypeVar("_F", bound=Callable[..., Any])
_P = ParamSpec("_P")
_T = TypeVar("_T")

DIGEST = 128
"""Facts that a scope keeps before it adds them up: about 80 kB, which the processor's cache still holds."""

UNITS = frozenset({"request", "task", "job", "websocket"})
"""Kinds of scopes that are a unit of work: what is open in one must not be in the next."""

_MANY_THINGS = frozenset({"run", "test", "websocket"})
"""Kinds of scopes that are not one unit: the same statement for many things is no loop there."""

MOST_FINDINGS = 1_000
"""Findings of scopes inside of it that a scope keeps; they have been reported before, by their own scope."""

_NO_KEYS: frozenset[tuple[str, ...]] = frozenset()

current: ContextVar[Scope | None] = ContextVar("sqla_watch_scope", default=None)
"""The innermost scope; read for each statement (10 ns)."""


class Outliving(Protocol):
    """What is to know of the end of the unit of work that it began in."""

    def outlived(self, unit: Scope) -> None:
        """The unit is over."""


class Scope:
    """One request, task, test or script, with what was seen in it. Made by `sqla_watch.scope`.

    Its numbers can be read at any time, also while it is open. Seconds are float, the rest are whole numbers.
    """

    __slots__ = (
        "_findings", "_lock", "_raised", "_record", "_token", "budget", "checkouts", "closed", "finished",
        "kind", "name", "opened_by", "own_findings", "parent", "pending", "reads", "settings", "span", "started",
        "started_at", "timeline", "told", "watched_raises",
    )  # fmt: skip

    def __init__(
        self, name: str, kind: str, settings: Settings, parent: Scope | None = None, timeline: int | None = None
    ) -> None:
        self.name = name
        self.kind = kind
        """`block` for a `with` or decorator, `implicit` for a connection's checkout, or what an integration says."""
        self.settings = settings
        self.parent = parent
        self.pending: list[Fact] = []
        """Facts not yet added up; probes append to it."""
        self.reads: set[tuple[str, int | None]] = set()
        """Attributes that were read, by the number of the statement that loaded their object; where that is tracked."""
        self.opened_by = 0
        """Of a unit of work, the number of the task, or else thread, that has opened it."""
        self.checkouts: set[Outliving] = set()
        """Of a unit of work, the connections that were taken in it and are still out."""
        self.budget: Budget | None = None
        """What it may cost at most."""
        room = settings.timeline_room if timeline is None else timeline
        self.timeline = Timeline(room) if room else None
        """What was seen, one by one; None if that is not kept."""
        self.closed = False
        self.watched_raises = settings.raises
        """Rules that raise: then each statement is judged at once."""
        self.started_at = time.time()
        self.started = time.perf_counter_ns()
        self.finished = 0
        self.span: Any = None
        """Where telemetry is on: the span that it was opened in, or that its first statement was sent in."""
        self.told = _NO_KEYS
        """Keys of the findings that are events of that span already."""
        self.own_findings: list[Finding] = []
        """What was found in it once it is closed, without what scopes inside of it have told already."""
        self._findings: list[Finding] = []
        self._raised = _NO_KEYS
        self._record: Totals | None = None
        self._lock = RLock()
        self._token: Token[Scope | None] | None = None

    @property
    def unit(self) -> Scope | None:
        """The unit of work that it is, or is part of: a request, a task, a job."""
        scope: Scope | None = self
        while scope is not None and scope.kind not in UNITS:
            scope = scope.parent
        return scope

    @property
    def in_test(self) -> bool:
        """Whether it is part of a test."""
        scope: Scope | None = self
        while scope is not None and scope.kind != "test":
            scope = scope.parent
        return scope is not None

    @property
    def record(self) -> Record:
        """Everything seen so far, added up; of a closed scope the totals only."""
        if self.pending or self._record.__class__ is not Record:
            self.digest()
        return cast(Record, self._record)

    @property
    def totals(self) -> Totals:
        """How much was seen so far."""
        if self.pending or self._record is None:
            self.digest()
        return cast(Totals, self._record)

    @property
    def first_line(self) -> CallSite | None:
        """The line of its first statement; of an open scope only."""
        if self._record is None:
            return next((site_of(cast(Statement, fact)) for fact in self.pending if fact.__class__ is tuple), None)
        return next((group.call_site for group in self.record.groups), None)

    @property
    def findings(self) -> list[Finding]:
        """What was found, worst first; of an open scope, what would be found if it closed now."""
        if self.closed:
            return list(self._findings)
        return worst_first([*self._findings, *judge(self.record, self.settings)])

    @property
    def statements(self) -> int:
        """Statements of the application; savepoints, settings and catalogue look-ups are not counted."""
        return self.totals.statements

    @property
    def rows(self) -> int:
        """Rows which those statements returned."""
        return self.totals.rows

    @property
    def errors(self) -> int:
        """Statements which failed."""
        return self.totals.errors

    @property
    def database_seconds(self) -> float:
        """Seconds spent in statements, as the application saw them."""
        return self.totals.database / 1e9

    @property
    def commit_seconds(self) -> float:
        """Seconds spent in COMMIT and ROLLBACK."""
        return self.totals.ending / 1e9

    @property
    def wait_seconds(self) -> float:
        """Seconds spent waiting for a connection of the pool."""
        return self.totals.wait / 1e9

    @property
    def held_seconds(self) -> float:
        """Seconds for which connections were out of the pool, counted when they are returned."""
        return self.totals.held / 1e9

    @property
    def connect_seconds(self) -> float:
        """Seconds spent on opening connections and pinging them before their use."""
        return self.totals.connecting / 1e9

    @property
    def connections(self) -> int:
        """Connections checked out."""
        return self.totals.checkouts

    @property
    def transactions(self) -> int:
        """Transactions which were committed or rolled back after at least one statement."""
        totals = self.totals
        return totals.commits + totals.rollbacks

    @property
    def duration_seconds(self) -> float:
        """Seconds from opening to closing; to now while it is open."""
        return ((self.finished or time.perf_counter_ns()) - self.started) / 1e9

    def digest(self) -> None:
        """Add up the pending facts. Any thread may call it; facts appended meanwhile stay for the next time."""
        with self._lock:
            record = self._record
            if not isinstance(record, Record):
                # A program, a test or a websocket does the same for many things by its nature.
                above = self.parent.record if self.parent is not None else None
                reads = None if self.kind == "implicit" else self.reads
                one_unit, in_unit = self.kind not in _MANY_THINGS, self.unit is not None
                counted, record = record, Record(above, one_unit=one_unit, in_unit=in_unit, reads=reads)
                if counted is not None:  # by a first look, before the scope was closed
                    record.add(counted)
                record.take(registry.take_news())
                self._record = record
            pending = self.pending
            number = len(pending)
            record.take(islice(pending, number))
            if self.timeline is not None:
                self.timeline.take(islice(pending, number))
            del pending[:number]

    def judge_now(self) -> list[Finding]:
        """Return what would be found if it closed now, without what scopes inside of it have told."""
        record = self.record
        if self.budget is None:
            return judge(record, self.settings)
        with record.spending(self.name, self.budget):
            return judge(record, self.settings)

    def answer(self) -> None:
        """Tell those who want to know that the answer of its request, or task, is about to be complete."""
        for tell in registry.answering:
            tell(self)

    def raise_now(self) -> None:
        """Judge what was seen so far and raise what has the action `raise`, each thing once.

        Called after each statement where a rule has that action.
        """
        new = [
            finding
            for finding in judge(self.record, self.settings, only=self.watched_raises)
            if finding.key not in self._raised
        ]
        if new:
            with self._lock:
                self._raised |= {finding.key for finding in new}
            raise FindingRaised(new)

    def close(self) -> list[Finding]:
        """Close the scope: judge, hand numbers and findings to the scope around it. Returns its own findings."""
        if self.closed:
            return []
        self.finished = time.perf_counter_ns()
        found = [] if self._is_ordinary() else self._judge()
        if self.checkouts:
            for checkout in tuple(self.checkouts):
                checkout.outlived(self)
            self.checkouts.clear()
        with self._lock:
            self.closed = True
            self.own_findings = found
            if self._findings:
                self._findings = worst_first([*self._findings, *found])
            else:
                self._findings = found
        if self.parent is not None and not self.parent.closed:
            self.parent.add_inner(self, self._findings)
        if isinstance(self._record, Record):
            self._record.forget()
        return found

    def _is_ordinary(self) -> bool:
        """Whether a first look tells that there is nothing to be found; then only the totals are kept."""
        if self.budget is not None or registry.news:
            return False
        if self.parent is not None and not self.parent.closed:
            return False  # it goes on with what was loaded here
        with self._lock:  # another thread may read it at this moment, and have it added up
            number = len(self.pending)
            if self._record is not None or number > FEW:
                return False
            totals = glance(self.pending[:number], self.settings.floors) if number else Totals()
            if totals is None:
                return False
            self._record = totals
            if self.timeline is not None:
                self.timeline.take(islice(self.pending, number))
            del self.pending[:number]
        return True

    def _judge(self) -> list[Finding]:
        record = self.record
        if self.budget is not None:
            record.spend(self.name, self.budget)
        return judge(record, self.settings)

    def add_inner(self, inner: Scope, findings: list[Finding]) -> None:
        """Take over the totals, findings and timeline of a scope inside this one."""
        own = self.record
        with self._lock:
            own.add_totals(inner.record)
            if self.timeline is not None and inner.timeline is not None:
                self.timeline.add(inner.timeline)
            room = max(0, MOST_FINDINGS - len(self._findings))
            self._findings.extend(findings[:room])
            own.dropped += len(findings[room:])

    def to_dict(self) -> dict[str, Any]:
        """Return the scope as the JSON report has it (schema version 1)."""
        totals = self.totals
        return {
            "name": self.name,
            "kind": self.kind,
            "started_at": self.started_at,
            "duration_seconds": round(self.duration_seconds, 6),
            "statements": totals.statements,
            "rows": totals.rows,
            "errors": totals.errors,
            "database_seconds": round(self.database_seconds, 6),
            "commit_seconds": round(self.commit_seconds, 6),
            "wait_seconds": round(self.wait_seconds, 6),
            "held_seconds": round(self.held_seconds, 6),
            "connect_seconds": round(self.connect_seconds, 6),
            "connections": totals.checkouts,
            "transactions": self.transactions,
            "dropped": totals.dropped,
            "findings": [finding.to_dict() for finding in self.findings],
            **({} if self.timeline is None else {"timeline": self.timeline.to_dict(self.started)}),
        }

    def to_html(self) -> str:
        """Return the scope as one self-contained HTML document: findings, numbers, and a waterfall.

        Raises:
            PanelError: The extra `panel` is not installed.

        Example::

            Path("export.html").write_text(scope.to_html(), encoding="utf-8")
        """
        from sqla_watch.panel import report_page

        return report_page([self.to_dict()], title=self.name)

    def __repr__(self) -> str:
        state = "closed" if self.closed else "open"
        return f"<Scope {self.name!r} ({self.kind}, {state}): {self.statements} statements>"


class scope:
    """Open a scope around a `with` block, or around each call of a function.

    Args:
        name: What it is, for those who read the report: `"nightly export"`.
        kind: What kind of thing it is: `block`, or `request`, `task`, `test` from an integration.
        settings: Settings to judge it by; those of the latest `install()` by default.
        budget: What it may cost at most; more is a finding of `over-budget`.

    Raises:
        TypeError: `name` is no string, or `budget` no `Budget`.
        FindingRaised: At the end of the block, where a rule's action is `raise` and the block itself did not fail.

    Example::

        with sqla_watch.scope("nightly export") as scope:
            export(session)
        print(scope.statements, scope.findings)

        @sqla_watch.scope("send invoices")
        async def send_invoices() -> None: ...
    """

    def __init__(
        self, name: str, *, kind: str = "block", settings: Settings | None = None, budget: Budget | None = None
    ) -> None:
        if not isinstance(name, str):
            raise TypeError(f"scope() takes a name, as in scope('nightly export'), not {name!r}")
        if budget is not None and not hasattr(budget, "limits"):
            raise TypeError(f"scope() takes budget as sqla_watch.Budget(…), not {budget!r}")
        self._name = name
        self._kind = kind
        self._settings = settings
        self._budget = budget
        self._open: list[Scope] = []

    def __enter__(self) -> Scope:
        opened = open_scope(self._name, self._kind, self._settings)
        opened.budget = self._budget
        self._open.append(opened)
        return opened

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        close_scope(self._open.pop(), error)

    @overload
    def __call__(self, function: _F) -> _F: ...
    @overload
    def __call__(self, function: object) -> object: ...
    def __call__(self, function: Any) -> Any:
        """Return `function` with a scope around each of its calls; a generator's lasts until it ends."""
        name, kind, settings, budget = self._name, self._kind, self._settings, self._budget
        if not callable(function):
            raise TypeError(f"@scope({name!r}) decorates a function, not {function!r}")
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def run(*args: Any, **kwargs: Any) -> Any:
                with scope(name, kind=kind, settings=settings, budget=budget):
                    return await function(*args, **kwargs)

        elif inspect.isasyncgenfunction(function):

            @functools.wraps(function)
            async def run(*args: Any, **kwargs: Any) -> Any:
                with scope(name, kind=kind, settings=settings, budget=budget):
                    async for value in function(*args, **kwargs):
                        yield value

        elif inspect.isgeneratorfunction(function):

            @functools.wraps(function)
            def run(*args: Any, **kwargs: Any) -> Any:
                with scope(name, kind=kind, settings=settings, budget=budget):
                    return (yield from function(*args, **kwargs))

        else:

            @functools.wraps(function)
            def run(*args: Any, **kwargs: Any) -> Any:
                with scope(name, kind=kind, settings=settings, budget=budget):
                    return function(*args, **kwargs)

        return run


UNSAMPLED = Scope("not in the sample", "unsampled", Settings(timeline=0))
"""Stands for a request that is not watched: it is closed, and nothing that comes in it makes a scope of its own."""
UNSAMPLED.closed = True


def carry(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Return `function` so that it runs in the scope that is open here, also in another thread.

    Threads and executors begin with an empty context. `asyncio.to_thread` and tasks take the context with them by
    themselves; so does `contextvars.copy_context().run`, with all of its variables, where this takes the scope only.

    Args:
        function: What another thread, or another thread's event loop, will call; it may be a coroutine function.

    Raises:
        TypeError: `function` cannot be called, or is a generator function, whose body runs wherever it is asked for
            its next value: carry the function that goes through them.

    Example::

        with sqla_watch.scope("report"), ThreadPoolExecutor() as executor:
            executor.map(sqla_watch.carry(totals_of), range(12))
    """
    if not callable(function):
        raise TypeError(f"carry() takes a function, not {function!r}")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(
            f"carry() cannot take the generator function {function.__qualname__}: its body runs where the next "
            "value is asked for; carry the function that goes through them"
        )
    carried = current.get()

    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def run_coroutine(*args: _P.args, **kwargs: _P.kwargs) -> Any:
            token = current.set(carried)
            try:
                return await function(*args, **kwargs)
            finally:
                current.reset(token)

        return cast("Callable[_P, _T]", run_coroutine)

    @functools.wraps(function)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        token = current.set(carried)
        try:
            return function(*args, **kwargs)
        finally:
            current.reset(token)

    return run


def current_scope() -> Scope | None:
    """Return the innermost scope that is open here, or None; implicit scopes are not meant."""
    found = current.get()
    while found is not None and found.closed:
        found = found.parent
    return found


def open_scope(name: str, kind: str, settings: Settings | None = None, *, timeline: int | None = None) -> Scope:
    """Open a scope in the running context, inside of the one that is open there.

    `timeline` is how many statements, waits and transactions it keeps one by one, if not as many as its settings say.
    """
    parent = current_scope()
    if settings is None:
        settings = parent.settings if parent is not None else registry.active_settings()
    opened = Scope(name, kind, settings, parent, timeline)
    if kind in UNITS:
        opened.opened_by, _ = current_flow()
    for opening in registry.opening:
        opening(opened)
    opened._token = current.set(opened)
    return opened


def close_scope(closing: Scope, error: BaseException | None = None, *, quiet: bool = False) -> None:
    """Close a scope, tell what was found, and raise what is to be raised.

    Nothing is raised where the block failed itself, or where it is `quiet`: an implicit scope ends inside of
    SQLAlchemy, where an exception would make a successful COMMIT look like a failed one.
    """
    token = closing._token
    if token is not None:
        closing._token = None
        try:
            current.reset(token)
        except ValueError:  # closed in another context than it was opened in: a generator, a framework's hooks
            if current.get() is closing:
                current.set(closing.parent)
    findings = closing.close()
    if findings and closing._raised:
        findings = [finding for finding in findings if finding.key not in closing._raised]
    raised = deliver(closing, findings, may_raise=error is None and not quiet)
    if raised:
        raise FindingRaised(raised)
