"""The pool's door: how long it took to get a connection, and when it came back.

SQLAlchemy has no event for asking, only for getting. So the pool gets a subclass of its own class, which survives
`Engine.dispose()` because a pool makes its successor from its own class. `Wait` facts flow out.
"""

from __future__ import annotations

import os
import sys
from asyncio import _get_running_loop as _running_loop
from time import perf_counter_ns as clock
from types import FrameType
from typing import Any
from weakref import WeakKeyDictionary, ref

from sqlalchemy import exc
from sqlalchemy.pool import NullPool, QueuePool

from sqla_watch import registry
from sqla_watch.activities import doing_of_holder
from sqla_watch.callsite import call_site, locate, location_of
from sqla_watch.facts import CallSite, Holder, Wait
from sqla_watch.ignores import active
from sqla_watch.probes.checkout import Checkout, all_out, holding, out, prepared, tell
from sqla_watch.probes.door import logger
from sqla_watch.probes.internals import RECORD_KEY
from sqla_watch.probes.owner import Frames, Owner, current_frames, is_worker, near_codes
from sqla_watch.probes.watchdog import watchdog
from sqla_watch.scopes import UNSAMPLED, Scope, current, current_scope
from sqla_watch.telemetry import PoolTelemetry

__all__ = ["holders_of", "unwatch_pool", "waits_of", "watch_pool"]

SHORTEST_WAIT = 1_000_000
"""Nanoseconds below which getting a connection is not waiting: it is the pool's own work, and the scheduler's."""

_MOST_NOTED = 20
"""Holders that the note of a time-out names."""
_ONE_EACH = (QueuePool, NullPool)
"""Pools of which a connection is one caller's at a time."""
_CREATED = "_sqla_watch_created"
_classes: dict[type, type] = {}
_STATE = "_sqla_watch"
"""Attribute of a watched pool under which its `PoolWaits` are."""


def watch_pool(pool: Any) -> None:
    """Give a pool the watching subclass of its class. A pool which is watched already stays as it is."""
    base = type(pool)
    _state_of(pool).on = True
    if not hasattr(base, "_sqla_watch_base"):
        pool.__class__ = _watched(base)


def unwatch_pool(pool: Any) -> None:
    """Give a pool its own class back."""
    base = getattr(type(pool), "_sqla_watch_base", None)
    if base is not None:
        _state_of(pool).on = False
        if type(pool) is _classes.get(base):
            pool.__class__ = base
            del pool.__dict__[_STATE]
        for record, checkout in all_out():
            if checkout.is_of(pool):
                out.discard(checkout.record)
                if record.__dict__.pop(RECORD_KEY, None) is not None:
                    checkout.returned()


def _watched(base: type) -> type:
    """Return the watching subclass of a pool class. It has its name, so that logs and messages stay the same."""
    found = _classes.get(base)
    if found is not None:
        return found
    pool_class: Any = base

    def _do_get(self: Any) -> Any:
        state = _state_of(self)
        if not state.on:
            return pool_class._do_get(self)
        asking, started, wait = state.asking, clock(), None
        if _is_exhausted(self, len(asking)):
            # Begun before it waits: a coroutine that is woken by a time-out has lost the stack of those awaiting it.
            wait = _Waiting(self, state, started)
            _guarded(state, wait.begin)
            started = wait.started
        token = object()
        asking.add(token)
        try:
            record = pool_class._do_get(self)
        except exc.TimeoutError as error:
            wait = wait or _Waiting(self, state, started)
            _guarded(state, _timed_out, wait, error)
            wait.end()
            raise
        except BaseException:
            if wait is not None:
                wait.end()
                _guarded(state, _given_up, wait)
            raise
        finally:
            asking.discard(token)
        if wait is not None:
            wait.end()
        _guarded(state, _taken, self, state, started, wait, record)
        return record

    def _create_connection(self: Any) -> Any:
        started = clock()
        token = holding.set(None)  # none of what is out already is being opened again
        try:
            record = pool_class._create_connection(self)
        finally:
            holding.reset(token)
        record.__dict__[_CREATED] = clock() - started
        return record

    def _get_creator(self: Any) -> Any:
        creator = self.__dict__["_invoke_creator"]

        def invoke(*arguments: Any) -> Any:
            started = clock()
            connection = creator(*arguments)
            state = _state_of(self)
            if state.on:
                elapsed = clock() - started
                prepared(elapsed, opened=True)
                if state.telemetry is not None:
                    state.telemetry.created(elapsed)
            return connection

        return invoke

    def _set_creator(self: Any, creator: Any) -> None:
        self.__dict__["_invoke_creator"] = creator

    def _delete_creator(self: Any) -> None:
        del self.__dict__["_invoke_creator"]

    def _do_return_conn(self: Any, record: Any) -> None:
        state, own = _state_of(self), record.__dict__
        checkout: Checkout | None = own.pop(RECORD_KEY, None) if state.one_each else _given_back(own)
        if checkout is None:
            pool_class._do_return_conn(self, record)
            return
        out.discard(checkout.record)
        pool_class._do_return_conn(self, record)
        _guarded(state, checkout.returned, state.begun)

    found = _classes[base] = type(
        base.__name__,
        (base,),
        {
            "__module__": base.__module__,
            "__qualname__": base.__qualname__,
            "__doc__": base.__doc__,
            "_sqla_watch_base": base,
            "_do_get": _do_get,
            "_create_connection": _create_connection,
            "_invoke_creator": property(_get_creator, _set_creator, _delete_creator),
            "_do_return_conn": _do_return_conn,
        },
    )
    return found


def _guarded(state: PoolWaits, function: Any, *arguments: Any) -> None:
    """Call a function of ours while the pool is watched; a fault in it is said once and ends that."""
    if not state.on:
        return
    if sys is None or sys.is_finalizing():  # nothing can be judged, or told, in an interpreter that ends
        return
    try:
        function(*arguments)
    except Exception:
        state.on = False
        logger.exception("sqla_watch: the probe of the pool failed and is switched off; please report this")


def _is_exhausted(pool: Any, asking: int) -> bool:
    """Whether the next request will have to wait, as far as can be seen without the pool's lock.

    Those that are asking already will be first: tasks may all ask before one of them has taken anything.
    """
    try:
        return pool._overflow >= pool._max_overflow > -1 and pool._pool.qsize() <= asking  # type: ignore[no-any-return]
    except AttributeError:  # a pool without a limit
        return False


class PoolWaits:
    """How many wait for a connection of a pool, and how many have."""

    __slots__ = (
        "asking", "begun", "limited", "nanoseconds", "on", "one_each", "pool", "telemetry", "waiters", "waits",
    )  # fmt: skip

    def __init__(self, pool: Any) -> None:
        self.pool = ref(pool)
        self.limited = getattr(pool, "_max_overflow", -1) >= 0
        """Whether it has a limit, at which one has to wait."""
        self.one_each = isinstance(pool, _ONE_EACH)
        self.on = True
        """Whether the pool is watched; no longer after `uninstall()`, or when its probe has failed."""
        # Sets, because adding and taking away is one step for a thread, and counting up is not.
        self.asking: set[object] = set()
        """One for each request that has no answer yet, those included that will not have to wait."""
        self.waiters: set[_Waiting] = set()
        """Those of them that have to."""
        self.begun = self.waits = 0
        """Waits that have begun, and that are over."""
        self.nanoseconds = 0
        self.telemetry: PoolTelemetry | None = None


_listening: WeakKeyDictionary[Any, PoolTelemetry] = WeakKeyDictionary()
"""Who tells OpenTelemetry of the pools of a dialect: that stays the same when `Engine.dispose()` makes a new pool."""


def listen(dialect: Any, pool: Any, telemetry: PoolTelemetry | None) -> None:
    """Have somebody be told what happens at the pools of an engine; None for nobody any more."""
    if telemetry is None:
        _listening.pop(dialect, None)
    else:
        _listening[dialect] = telemetry
    _state_of(pool).telemetry = telemetry


def _state_of(pool: Any) -> PoolWaits:
    try:
        return pool.__dict__[_STATE]  # type: ignore[no-any-return]
    except KeyError:  # a new one: the pool that `Engine.dispose()` makes has the class of the one before
        state = PoolWaits(pool)
        if _listening:
            state.telemetry = _listening.get(getattr(pool, "_dialect", None))
        return pool.__dict__.setdefault(_STATE, state)  # type: ignore[no-any-return]


def waits_of(pool: Any) -> PoolWaits:
    """Return the waits for a pool so far."""
    return pool.__dict__.get(_STATE) or PoolWaits(pool)


class _Waiting:
    """A request for a connection that a pool has none left for, or did not get one in time."""

    def __init__(self, pool: Any, state: PoolWaits, started: int) -> None:
        self.pool = pool
        self.state = state
        self.started = started
        self.begun = False
        self.open = True
        self.site: CallSite | None = None
        """The line that asks; known where the pool had no connection left."""
        self.holders: tuple[Holder, ...] = ()
        """Who had the connections when the wait had become long; the watchdog looks."""
        self.outer: tuple[Checkout, ...] = ()
        """What the same thread or task has out already while it waits for another one."""

    def begin(self) -> None:
        """The pool has none left: there will be a wait."""
        self.site = call_site(sys._getframe(3))
        self.begun = True
        self.state.waiters.add(self)
        self.state.begun += 1
        outer = holding.get()
        while outer is not None:
            if not outer.outlived_at:
                outer.waiting += 1
                self.outer = (*self.outer, outer)
            outer = outer.outer
        self.started = clock()
        watchdog.watch(self, soon=True)

    def end(self) -> None:
        """It has an answer."""
        self.open = False
        if self.begun:
            for outer in self.outer:
                outer.waiting -= 1
            self.state.waiters.discard(self)
            self.state.waits += 1
            self.state.nanoseconds += clock() - self.started

    def look(self, now: int, frames: Frames) -> int:
        """See who has the connections, once it has waited for long. Called by the watchdog's thread."""
        if now < self.started + watchdog.wait:
            return self.started + watchdog.wait
        self.holders = holders_of(self.pool, frames)
        return 0


def holders_of(pool: Any, frames: Frames | None = None) -> tuple[Holder, ...]:
    """Return who has the connections of a pool, those first that have had theirs longest."""
    if frames is None:
        now = current_frames()

        def frames() -> dict[int, FrameType]:
            return now

    found = [checkout.holder(frames) for _, checkout in all_out() if checkout.is_of(pool)]
    return tuple(sorted(found, key=lambda holder: holder.since))


def _note(holders: tuple[Holder, ...]) -> str:
    """Return what a time-out's note says: who had the connections."""
    now = clock()
    lines = []
    for holder in holders[:_MOST_NOTED]:
        location = location_of(holder.activity.call_site)
        place = "no line of yours" if location is None else f"{location} in {location.function}"
        doing = doing_of_holder(holder)
        scope = f" ({holder.scope})" if holder.scope else ""
        if holder.taken_is_over and (taken := location_of(holder.taken)) is not None and taken != location:
            scope = f"; taken at {taken} in {taken.function}{scope}"
        place += f", {doing}" if doing else ""
        lines.append(f"  for {(now - holder.since) / 1e9:.1f} s, {holder.state}: {place}{scope}")
    if len(holders) > _MOST_NOTED:
        lines.append(f"  … and {len(holders) - _MOST_NOTED} more")
    return "sqla_watch: the connections of the pool were held by\n" + "\n".join(lines)


def _taken(pool: Any, state: PoolWaits, started: int, waited: _Waiting | None, record: Any) -> None:
    """A connection was got: remember since when, and how long it took without opening it."""
    taken = clock()
    own = record.__dict__
    connecting = own.pop(_CREATED, 0)
    if RECORD_KEY in own and _is_out_already(own[RECORD_KEY], state, started):
        return
    wait = taken - started - connecting
    scope = current_scope()
    if scope is None:
        sampled, unit = current.get() is not UNSAMPLED, None
    else:
        sampled, unit = True, scope.unit
    frame = locate(sys._getframe(3))
    telemetry = state.telemetry
    checkout = own[RECORD_KEY] = Checkout(
        ref(record),
        state.pool,
        started,
        taken,
        None if frame is None else tuple.__new__(CallSite, (frame.f_code, frame.f_lasti)),
        near_codes(frame) if sampled else (),
        unit,
        state.limited,
        state.begun,
        connecting,
        None if telemetry is None else telemetry.taken(started, wait),
    )
    out.add(checkout.record)
    if not sampled:  # others are told who has the connection, and that is all
        return
    if wait < SHORTEST_WAIT or not state.limited:
        wait = 0  # its own work, or a pool without a limit which the scheduler has held up
    elif waited is None and not _is_exhausted(pool, len(state.asking)):
        wait = 0  # there was one all the time: the scheduler, or the garbage collector
    outer = holding.get()
    while outer is not None and not outer.open:
        outer = outer.outer
    inside = None
    if outer is not None:
        checkout.outer = outer
        inside = _inside(outer, pool, unit) if state.limited else None
    holding.set(checkout)
    if wait or inside is not None:
        site, holders = (checkout.taken_at, ()) if waited is None else (waited.site, waited.holders)
        fact = _wait(pool, started, wait, site, holders, inside, checkout)
    else:  # as Wait(…), in half of the time
        fact = tuple.__new__(
            Wait, (started, 0, False, None, 0, 0, (), checkout.serial, _is_on_loop(pool), (), 0, False, None, False)
        )
    if scope is None:
        checkout.wait = fact
    else:
        scope.pending.append(fact)
        checkout.taken_in = scope
        if unit is not None and (state.limited or type(pool).__name__ == "NullPool"):
            unit.checkouts.add(checkout)
    watchdog.watch(checkout)


def _is_out_already(checkout: Checkout, state: PoolWaits, started: int) -> bool:
    """Whether what was got belongs to a checkout that is known."""
    if checkout.requested >= started:  # the pool's own second try
        return True
    if state.one_each:  # it was taken while somebody uninstalled, and its return was not seen
        return False
    checkout.depth += 1  # such as StaticPool: one connection for several
    checkout.serial = -abs(checkout.serial)  # whose statements may overlap
    return True


def _given_back(own: dict[str, Any]) -> Checkout | None:
    """Return the checkout of a connection that several may have, if this was the last of them."""
    checkout: Checkout | None = own.get(RECORD_KEY)
    if checkout is None:
        return None
    checkout.depth -= 1
    return own.pop(RECORD_KEY, None) if checkout.depth <= 0 else None


def _inside(outer: Checkout | None, pool: Any, unit: Scope | None) -> Checkout | None:
    """Return the innermost checkout around this one that is of the same pool, and of the same unit of work.

    What a test has open while it calls the application is nobody's in production.
    """
    while outer is not None:
        if outer.open and outer.unit is unit and not outer.outlived_at and outer.is_of(pool):
            return outer
        outer = outer.outer
    return None


def _timed_out(wait: _Waiting, error: BaseException) -> None:
    """The pool's limit was reached: there will be no checkout, the wait is all there is.

    The exception gets a note that names the holders; nothing else of it is changed.
    """
    wait.holders = holders_of(wait.pool)
    if wait.holders:
        error.add_note(_note(wait.holders))
    _in_vain(wait, wait.site or call_site(sys._getframe(3)), timed_out=True)


def _given_up(wait: _Waiting) -> None:
    """Whoever waited was cancelled, or had an error: there will be no checkout, either."""
    if wait.begun and clock() - wait.started >= SHORTEST_WAIT:
        _in_vain(wait, wait.site, timed_out=False)


def _in_vain(wait: _Waiting, site: CallSite | None, *, timed_out: bool) -> None:
    """Tell of a wait that led to nothing."""
    waited = clock() - wait.started
    if wait.state.telemetry is not None:
        wait.state.telemetry.in_vain(wait.started, waited, timed_out=timed_out)
    scope = current_scope()
    inside = _inside(holding.get(), wait.pool, None if scope is None else scope.unit)
    fact = _wait(wait.pool, wait.started, waited, site, wait.holders, inside, None)._replace(timed_out=timed_out)
    tell(fact, name="connection", started=wait.started)


def _wait(
    pool: Any,
    started: int,
    nanoseconds: int,
    site: CallSite | None,
    holders: tuple[Holder, ...],
    inside: Checkout | None,
    checkout: Checkout | None,
) -> Wait:
    """Return the fact of a request that had to wait, or that was made with a connection in hands.

    Without a checkout it was in vain.
    """
    owner = Owner.here() if checkout is None else checkout.owner
    size = getattr(pool, "size", None)
    return Wait(
        started,
        nanoseconds,
        False,
        site,
        size() if callable(size) else 0,
        getattr(pool, "_max_overflow", 0),
        active.get(),
        0 if checkout is None else checkout.serial,
        _is_on_loop(pool),
        holders,
        owner.number,
        owner.task is not None,
        None if inside is None else inside.taken_at,
        _is_shared(pool, owner),
    )


def _is_shared(pool: Any, owner: Owner) -> bool:
    """Whether another thread or task has a connection of a pool, too."""
    return any(other.is_of(pool) and other.owner.number != owner.number for _, other in all_out())


def _begin_anew() -> None:
    """In a process that was forked off nobody waits: who did is in the other one."""
    for watch in registry.watches:
        for engine in watch.engines:
            _state_of(engine.pool).asking.clear()
            _state_of(engine.pool).waiters.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)


def _is_on_loop(pool: Any) -> bool:
    """Whether a synchronous engine is asked in a thread where an event loop runs, which it keeps waiting."""
    return _running_loop() is not None and not _is_async(pool) and not is_worker()


def _is_async(pool: Any) -> bool:
    """Whether a pool's connections are those of an asynchronous driver; also where that cannot be told."""
    return getattr(getattr(pool, "_dialect", None), "is_async", True) is not False or "ipykernel" in sys.modules
