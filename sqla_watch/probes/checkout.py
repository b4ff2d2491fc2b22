"""What is known of a connection while it is checked out: who has it, its transaction, and its implicit scope.

Kept on the pool's connection record from checkout to return, so that it goes with the connection through threads,
tasks and greenlets.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from itertools import count
from time import perf_counter_ns as clock
from types import CodeType, FrameType, MappingProxyType
from typing import Any, cast
from weakref import ref

from sqla_watch import registry
from sqla_watch.activities import activity_of, is_database
from sqla_watch.callsite import location_of
from sqla_watch.facts import (
    STARTED,
    TRANSACTION,
    Activity,
    CallSite,
    Fact,
    Held,
    Holder,
    HolderState,
    SessionEvent,
    SessionUse,
    Statement,
    Wait,
    site_of,
)
from sqla_watch.ignores import active as active_ignores
from sqla_watch.probes.internals import RECORD_KEY
from sqla_watch.probes.owner import Frames, Owner, inner_frames, is_running, user_codes
from sqla_watch.probes.transaction import OpenTransaction
from sqla_watch.probes.watchdog import watchdog
from sqla_watch.scopes import DIGEST, UNSAMPLED, Scope, close_scope, current, current_scope
from sqla_watch.telemetry import ConnectionTelemetry

_AT_WORK = frozenset({"do_execute", "timed", "fetchmany", "fetchall"})
"""Our functions around what the database does."""
_ACTIVE = 1
"""PQTRANS_ACTIVE of libpq: a command is in progress."""
_PROBES = os.path.dirname(os.path.abspath(__file__)) + os.sep
GRACE = 1_000_000_000
"""Nanoseconds after the end of its unit of work from which on a connection that is still out was left."""
_MOMENT = 10_000_000
"""Nanoseconds after which something is looked at that was not seen before it was due."""
_MOST_SPANS = 8
"""Times without a statement whose activities a checkout keeps."""

next_checkout: Callable[[], int] = count(1).__next__

out: set[ref[Any]] = set()
"""The connection records that are checked out; nothing is kept alive by it."""

holding: ContextVar[Checkout | None] = ContextVar("sqla_watch_held", default=None)
"""The checkout that this thread or task, or the one that started it, has made last; it may be over."""


_NONE_SEEN: Mapping[int, list[Activity]] = MappingProxyType({})


class Checkout:
    """One connection from its checkout to its return."""

    __slots__ = (
        "__dict__", "activities", "codes", "connecting", "idle", "idle_started",
        "in_transactions", "kept", "limited", "open", "outer", "owner", "pinging", "pool", "quiet_since", "record",
        "requested", "scope", "serial", "taken", "taken_at", "taken_in", "telemetry", "transaction", "unit",
        "waits_before", "worked",
    )  # fmt: skip

    # What few have stays on the class: one of these is made whenever a connection is got.
    depth: int = 1
    """How many have it: more than one where the pool gives one connection to several."""
    ending: OpenTransaction | None = None
    """The transaction whose COMMIT or ROLLBACK is running."""
    failed: bool = False
    """Whether an exception was on its way when the connection was returned."""
    looked: int = 0
    processor_time: int = 0
    """When the watchdog has looked, and the processor time of the owner's thread by then."""
    outlived_at: int = 0
    outlived_by_owner: bool = False
    """Whether it was the thread or task of the unit of work itself that had taken it."""
    outlived_scope: Scope | None = None
    """The unit of work that has ended without returning it, and when, until that is told."""
    wait: Wait | None = None
    """The wait before it, where it was taken in no scope, until one has it."""
    waiting: int = 0
    """Requests of its owner, or of tasks that this has started, which wait for another connection."""

    def __init__(
        self,
        record: ref[Any],
        pool: ref[Any] | None,
        requested: int,
        taken: int,
        site: CallSite | None = None,
        codes: Sequence[CodeType] = (),
        unit: Scope | None = None,
        limited: bool = True,
        waits_before: int = 0,
        connecting: int = 0,
        telemetry: ConnectionTelemetry | None = None,
    ) -> None:
        self.serial = next_checkout()
        self.record = record
        self.pool = pool
        """Weak references to the pool's connection record, and the pool."""
        self.requested = requested
        self.taken = self.quiet_since = taken
        """When the connection was got; and since when no transaction has been open."""
        self.taken_at = site
        """The line that asked for it."""
        self.codes = codes
        """The functions of that line and of those that had called it: while one of the user's runs, it may be in use.
        Without any nobody can tell."""
        self.owner = Owner.here()
        self.outer: Checkout | None = None
        """The checkout that the same thread or task, or the one that started it, had when it asked for this one."""
        self.scope: Scope | None = None
        self.taken_in: Scope | None = None
        """The explicit scope in which it was taken."""
        self.unit = unit
        """The unit of work in which it was taken."""
        self.transaction: OpenTransaction | None = None
        self.waits_before = waits_before
        """Waits for a connection of its pool that had begun before it was taken."""
        self.connecting = connecting
        self.worked = self.in_transactions = self.pinging = 0
        """Nanoseconds in statements, in transactions, of opening and of pinging it."""
        self.idle = self.idle_started = 0
        """The longest time outside of a transaction without a statement, and when it began."""
        self.open = True
        """Whether it is out."""
        self.limited = limited
        """Whether its pool has a limit: what is held of another one is taken from nobody."""
        self.kept = False
        """Whether it is kept for what a session of PostgreSQL has, as LISTEN."""
        self.telemetry = telemetry
        """Who tells OpenTelemetry of it."""
        self.activities: Mapping[int, list[Activity]] = _NONE_SEEN
        """What the owner was seen doing, by when the time without a statement had begun. Written by the watchdog."""

    def is_of(self, pool: Any) -> bool:
        """Whether it is a connection of this pool."""
        return self.pool is not None and self.pool() is pool

    def prepared(self, nanoseconds: int, *, opened: bool) -> None:
        """The pool has pinged it, or opened it again, before it handed it out: only now it is in use."""
        if opened:
            self.connecting += nanoseconds
        else:
            self.pinging += nanoseconds
        if not self.worked:
            self.taken = self.quiet_since = clock()

    def look(self, now: int, frames: Frames) -> int:
        """See what the owner does, if it has sent no statement for long. Called by the watchdog's thread.

        Returns:
            When to look again; 0 for never.
        """
        if not self.open:
            return 0
        since = self.idle_since()
        activities = self.activities.get(since)
        if activities is not None and watchdog.is_short:
            return now + (now - since)
        looked, used = self.looked, self.processor_time
        self.looked, self.processor_time = now, self.owner.processor_time()
        if now < since + watchdog.idle:
            return since + watchdog.idle
        if not looked:  # whether its thread computes is told by two moments
            return now + _MOMENT
        stack = self.owner.stack(frames)
        left = self._is_left(stack)
        database = self._driver_works()
        if left and not database and self.outlived_scope is not None and now > self.outlived_at + GRACE:
            self._tell_left(now)
        if self.waiting or self._is_working(stack):
            return now + watchdog.idle
        computing = bool(used) and self.owner.has_thread and (self.processor_time - used) * 2 > now - looked
        if activities is None:
            seen = dict(self.activities)  # the owner may read it meanwhile
            if len(seen) >= _MOST_SPANS:
                del seen[min(seen, key=lambda moment: len(seen[moment]))]
            activities = seen[since] = []
            self.activities = seen
        database = database or self._is_working(stack, for_any=True)
        activities.append(Activity(None) if left else activity_of(stack, computing=computing, database=database))
        return now + (now - since)

    def idle_since(self) -> int:
        """Return when its last statement, or COMMIT, had finished; when it was taken, before the first."""
        transaction = self.transaction
        return self.quiet_since if transaction is None else transaction.idle_since() or self.quiet_since

    def holder(self, frames: Frames) -> Holder:
        """Return who has the connection. Any thread may ask; nothing of the owner's is touched."""
        transaction = self.transaction or self.ending
        last = begun = None
        statements = 0
        if transaction is not None:
            begun, previous, statements = transaction.progress()
            last = cast(Statement, previous) if previous.__class__ is tuple else transaction.last
            begun = begun or last
        in_transaction = last is not None and last[TRANSACTION] > 0
        scope = self.scope if transaction is None or transaction.scope is None else transaction.scope
        stack = self.owner.stack(frames)
        activity = activity_of(stack)
        if self.waiting:
            state = HolderState.WAITING
        elif self.owner.task is not None and self._is_left(stack):  # it works with another connection
            state, activity = HolderState.LEFT, Activity(self.taken_at)
        elif self._is_working(stack) or is_database(activity) or self._driver_works():
            state = HolderState.WORKING
        elif self._is_left(stack):
            state, activity = HolderState.LEFT, Activity(self.taken_at)
        else:
            state = HolderState.IDLE_IN_TRANSACTION if in_transaction else HolderState.IDLE
        if activity.call_site is None:
            activity = Activity(self.taken_at if last is None else site_of(last))
        return Holder(
            activity,
            state,
            self.taken,
            self.taken_at,
            self.taken_at is not None and not is_running((self.taken_at.code,), stack),
            in_transaction,
            "" if scope is None or scope.kind == "implicit" else scope.name,
            0 if begun is None else begun[STARTED],
            self.idle_since(),
            statements,
            self.unit is not None,
        )

    def _is_left(self, stack: list[FrameType]) -> bool:
        """Whether nobody has it in hands any more.

        While its unit of work lasts, somebody may. After that all is over which the thread or task did in it, unless
        it was used since; of others none of the functions must run that were there when it was taken.
        """
        if self.unit is not None:
            return False
        if self.outlived_at:
            if self.idle_since() > self.outlived_at:
                return False
            if self.outlived_by_owner:
                return True
        return not is_running(user_codes(self.codes), stack)

    def _driver_works(self) -> bool:
        """Whether the driver says that a command is running, as COPY past SQLAlchemy (psycopg, psycopg2)."""
        driver = getattr(self.record(), "driver_connection", None)
        if getattr(driver, "_listeners", None):  # asyncpg's
            self.kept = True
        return getattr(getattr(driver, "info", None), "transaction_status", None) == _ACTIVE

    def _is_working(self, stack: list[FrameType], *, for_any: bool = False) -> bool:
        """Whether the database is at work for this checkout, or for any, by what the user's innermost line called."""
        for frame in inner_frames(stack):
            code = frame.f_code
            if code.co_name == "greenlet_spawn":  # the greenlet's own frames are not linked
                return True
            if code.co_name in _AT_WORK and code.co_filename.startswith(_PROBES):
                mine = frame.f_locals.get("checkout")
                return for_any or mine is None or mine is self
        return False

    def find_scope(self) -> Scope | None:
        """Return the scope that is open here; else this checkout's own, if it may have one."""
        scope = current.get()
        if scope is None and registry.fallbacks:
            return registry.fallbacks[-1]
        while scope is not None and scope.closed:
            if scope is UNSAMPLED:
                return None
            scope = scope.parent
        if scope is None:
            scope = self.scope
            if scope is None and registry.outside.is_recorded:
                scope = self.scope = Scope("connection", "implicit", registry.active_settings())
                if self.wait is not None:
                    scope.pending.append(self.wait)
                    scope.started = self.wait.started
                    self.wait = None
        return scope

    def moved(self, scope: Scope, fact: Statement) -> None:
        """A transaction's statement is in another scope than the one before it: tell if that one was a request's."""
        transaction = self.transaction
        if transaction is None:
            return
        transaction.add_up()
        before, transaction.scope = transaction.scope, scope
        if before is None or transaction.last is None:
            return
        ended, now = before.unit, scope.unit
        if ended is not None and ended.closed and now is not None and now is not ended:
            site = site_of(transaction.last)
            scope.pending.append(
                SessionUse(SessionEvent.OUTLIVED, site_of(fact), active_ignores.get(), other=site, where=ended.name)
            )

    def end_transaction(self, transaction: OpenTransaction | None, outcome: str, started: int, error: str = "") -> None:
        """Write the fact of a transaction whose COMMIT or ROLLBACK began at `started` and has just ended."""
        if transaction is None:
            return
        fact = transaction.ended(outcome, started, self.serial, self.owner.number, error)
        if transaction.special and (transaction.kept or transaction.temporary):
            self.kept = True
        if fact is None:
            return
        if self.telemetry is not None:
            self.telemetry.ended(fact)
        if transaction.first is None:  # of a request that is not in the sample
            return
        begun, finished = fact.started, fact.finished
        self.worked += fact.database + fact.ending
        self._quiet_until(begun)
        self.quiet_since = finished
        if fact.serial > 0:
            self.in_transactions += finished - begun
            if self.activities and fact.gap_started in self.activities:
                fact = fact._replace(meanwhile=tuple(self.activities[fact.gap_started]))
        elif fact.gap > self.idle:  # in autocommit nothing is open between two statements
            self.idle, self.idle_started = fact.gap, fact.gap_started
        scope = self.find_scope()
        if scope is None:
            return
        pending = scope.pending
        pending.append(fact)
        if len(pending) >= DIGEST:
            scope.digest()

    def _quiet_until(self, moment: int) -> None:
        """Note a time in which no transaction was open."""
        if moment - self.quiet_since > self.idle:
            self.idle, self.idle_started = moment - self.quiet_since, self.quiet_since

    def told(self, finished: int, waits: int, *, returned: bool) -> Held:
        """Return the fact of its time out of the pool."""
        # As Held(…), in half of the time.
        return tuple.__new__(
            Held,
            (
                self.serial, self.taken, finished, returned, self.worked, self.in_transactions, self.connecting,
                self.pinging, self.idle if self.limited else 0,
                tuple(self.activities.get(self.idle_started, ())) if self.activities else (), self.taken_at,
                waits - self.waits_before, self.kept, active_ignores.get(),
            ),
        )  # fmt: skip

    def returned(self, waits: int = 0) -> None:
        """Close what belongs to this checkout, after the connection is back in the pool. Raises nothing."""
        if sys.exception() is not None:
            self.failed = True
        if self.transaction is not None:
            self.end_transaction(self.transaction, "rollback", clock())
            self.transaction = None
        finished = clock()
        self._quiet_until(finished)
        self.open = False
        watchdog.leave(self)
        if self.telemetry is not None:
            self.telemetry.returned(finished - self.taken)
            self.telemetry = None
        if holding.get() is self:
            holding.set(self.outer)
        self.outer = None
        taken_in, self.taken_in = self.taken_in, None
        if taken_in is None:
            if self.wait is not None and self.scope is None and self.wait.nanoseconds:
                self.find_scope()
            taken_in = self.scope
        unit = self.unit
        if unit is not None:
            unit.checkouts.discard(self)
            self.unit = None
        if taken_in is not None and not taken_in.closed:
            taken_in.pending.append(self.told(finished, waits, returned=True))
        if self.scope is not None:
            scope, self.scope = self.scope, None
            location = location_of(scope.first_line)
            if location is not None:
                scope.name = f"connection of {location.function} ({os.path.basename(location.file)}:{location.line})"
            close_scope(scope, quiet=True)

    def outlived(self, unit: Scope) -> None:
        """The unit of work that had taken it is over. Whether that is a mistake is seen by the watchdog a while later:
        code around the unit may still return it."""
        self.unit = None
        self.taken_in = None
        self.outlived_at = clock()
        self.outlived_by_owner = unit.opened_by == self.owner.number
        if not unit.in_test:  # which may have handed its own session to the application
            self.outlived_scope = unit

    def _tell_left(self, now: int) -> None:
        """Tell that it was not returned."""
        unit, self.outlived_scope = self.outlived_scope, None
        if unit is None:
            return
        late = Scope(unit.name, "implicit", unit.settings)
        late.started = unit.started
        late.span = unit.span
        late.pending.append(self.told(now, self.waits_before, returned=False))
        close_scope(late, quiet=True)


def tell(fact: Fact, checkout: Checkout | None = None, *, name: str, started: int = 0) -> None:
    """Add a fact to the open scope; else to its checkout's; else to one that is opened and closed for it.

    Args:
        fact: What was seen.
        checkout: The checkout that it is about, if there is one.
        name: What a scope of its own is called.
        started: Since when that lasts, if not from now.
    """
    scope = current_scope()
    if scope is None and checkout is not None:
        scope = checkout.find_scope()
    if scope is not None:
        scope.pending.append(fact)
    elif current.get() is not UNSAMPLED and registry.outside.is_recorded:
        scope = Scope(name, "implicit", registry.active_settings())
        scope.started = started or scope.started
        scope.pending.append(fact)
        close_scope(scope, quiet=True)


def prepared(nanoseconds: int, *, opened: bool) -> None:
    """The pool has pinged, or opened again, the connection that it is about to hand out."""
    checkout = holding.get()
    if checkout is not None and checkout.open and checkout.transaction is None:
        checkout.prepared(nanoseconds, opened=opened)


def all_out() -> list[tuple[Any, Checkout]]:
    """Return the connection records that are out, each with its checkout. Any thread may ask."""
    found = []
    for record_ref in list(out):
        record = record_ref()
        if record is None:
            out.discard(record_ref)
            continue
        checkout = record.__dict__.get(RECORD_KEY)
        if checkout is not None:  # it is not being returned at this moment
            found.append((record, checkout))
    return found


def checkout_of(record: Any) -> Checkout | None:
    """Return the checkout of a pool's connection record; makes one for a connection that was out before."""
    if record is None:
        return None
    found: Checkout | None = record.__dict__.get(RECORD_KEY)
    if found is None and getattr(record, "fairy_ref", None) is not None:
        pool = getattr(record, "_ConnectionRecord__pool", None)
        now = clock()
        found = Checkout(ref(record), None if pool is None else ref(pool), now, now)
        record.__dict__[RECORD_KEY] = found
        if pool is not None:
            out.add(found.record)
    return found
