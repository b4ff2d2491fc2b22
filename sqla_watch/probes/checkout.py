"""What is known of a connection while it is checked out: its transaction, and its implicit scope.

Kept on the pool's connection record from checkout to return, so that it goes with the connection through threads,
tasks and greenlets.
"""

from __future__ import annotations

import os
import sys
from asyncio import Task, _get_running_loop, current_task
from collections.abc import Callable
from itertools import count
from threading import get_ident, get_native_id
from time import perf_counter_ns as clock
from types import FrameType
from typing import Any
from weakref import ref

from sqla_watch import registry
from sqla_watch.callsite import USER, call_site, location_of, user_code
from sqla_watch.facts import (
    ERROR,
    FINISHED,
    STARTED,
    TRANSACTION,
    CallSite,
    Fact,
    Holder,
    SessionEvent,
    SessionUse,
    Statement,
    Transaction,
    Wait,
    site_of,
)
from sqla_watch.ignores import active as active_ignores
from sqla_watch.probes.internals import RECORD_KEY
from sqla_watch.scopes import DIGEST, Scope, close_scope, current, current_scope

_WORKING = ("do_execute", "greenlet_spawn")
"""Functions in which a thread, or a coroutine, waits for the database."""
_DEEPEST = 200
SHORTEST_GAP = 10_000_000
"""Nanoseconds before the end of a transaction from which on it is worth the line of its end."""
_NEVER = 2**63
"""A moment which is later than any: nothing can have taken long since."""

next_checkout: Callable[[], int] = count(1).__next__
next_transaction: Callable[[], int] = count(1).__next__


class OpenTransaction:
    """A transaction that has begun. Statements append their facts (hot path); some hundred are added up at once."""

    __slots__ = (
        "database", "facts", "first", "gap", "gap_ends", "last", "last_write", "savepoints", "scope", "serial",
        "slowest", "statements", "temporary", "touched", "writes", "wrote",
    )  # fmt: skip

    def __init__(self, serial: int) -> None:
        self.serial = serial
        self.facts: list[Statement] = []
        """Not yet added up."""
        self.statements = 0
        self.database = 0
        self.slowest = 0
        self.touched = _NEVER
        """When its last statement had finished."""
        self.gap = 0
        """Nanoseconds of the longest time between two of its statements so far, and those statements."""
        self.gap_ends: tuple[Statement | None, Statement] | None = None
        self.wrote = False
        """Whether it sent anything that may have written."""
        self.writes = 0
        """INSERTs, UPDATEs and DELETEs that were not rolled back to a savepoint."""
        self.temporary = False
        """Whether it made a temporary table, to which its writes may go."""
        self.last_write: Statement | None = None
        self.savepoints: list[int] = []
        """Numbers of the savepoints that are open, the innermost last."""
        self.scope: Scope | None = None
        """Where its last statement was recorded."""
        self.first: Statement | None = None
        self.last: Statement | None = None

    def add_up(self) -> None:
        """Add up the facts that have come since the last time."""
        touched, gap = self.touched, self.gap
        for fact in self.facts:
            fingerprint, started, finished = fact[0], fact[STARTED], fact[FINISHED]
            elapsed = finished - started
            self.database += elapsed
            if fingerprint.housekeeping:
                continue
            if started - touched > gap:
                gap = started - touched
                self.gap_ends = self.last, fact
            touched = finished
            self.statements += 1
            if elapsed > self.slowest:
                self.slowest = elapsed
            if fingerprint.may_write:
                self.wrote = True
                if fingerprint.writes and not fact[ERROR]:
                    self.writes += 1
                    self.last_write = fact
                elif fingerprint.operation == "CREATE" and "TEMP" in fingerprint.text[:20].upper():
                    self.temporary = True
            if self.first is None:
                self.first = fact
            self.last = fact
        self.touched, self.gap = touched, gap
        self.facts.clear()


class Checkout:
    """One connection from its checkout to its return."""

    __slots__ = (
        "depth",
        "failed",
        "implicit",
        "owner",
        "requested",
        "scope",
        "serial",
        "task",
        "thread",
        "transaction",
        "wait",
    )

    def __init__(self, requested: int, implicit: bool) -> None:
        self.serial = next_checkout()
        self.requested = requested
        self.depth = 1
        self.owner, self.thread, self.task = _owner()
        """Number of the task, or else thread, that asked for the connection; the thread's identifier, or the task."""
        self.implicit = implicit
        """Whether it makes a scope of its own where none is open."""
        self.failed = False
        """Whether an exception was on its way when the connection was returned."""
        self.scope: Scope | None = None
        self.transaction: OpenTransaction | None = None
        self.wait: Wait | None = None
        """The wait before it, until a scope has it."""

    def holder(self, frames: dict[int, FrameType]) -> Holder:
        """Return who has the connection. Any thread may ask; nothing of the owner's is touched.

        `frames` are those of `sys._current_frames`: they tell where a thread is, also in its first statement.
        """
        transaction = self.transaction
        last = begun = None
        statements = 0
        if transaction is not None:
            facts = transaction.facts[:]  # the owner may go on meanwhile
            last = facts[-1] if facts else transaction.last
            begun = transaction.first or (facts[0] if facts else None)
            statements = transaction.statements + len(facts)
        scope = self.scope if transaction is None or transaction.scope is None else transaction.scope
        stack = self._stack(frames)
        site = None if last is None else site_of(last)
        for frame in stack:  # the frames of a coroutine that waits are not linked
            if user_code.kind(frame.f_code.co_filename) == USER:
                site = CallSite(frame.f_code, frame.f_lasti)
                break
        return Holder(
            site,
            self.requested,
            last is not None and last[TRANSACTION] > 0,
            "" if scope is None or scope.kind == "implicit" else scope.name,
            any(frame.f_code.co_name in _WORKING and self._is_in(frame) for frame in stack),
            0 if begun is None else begun[STARTED],
            0 if last is None else last[FINISHED],
            statements,
        )

    def _stack(self, frames: dict[int, FrameType]) -> list[FrameType]:
        """Return the frames of the owner, the innermost first: of its thread, or of the coroutines of its task."""
        found: list[FrameType] = []
        if self.thread:
            frame = frames.get(self.thread)
            while frame is not None and len(found) < _DEEPEST:
                found.append(frame)
                frame = frame.f_back
            return found
        task = None if self.task is None else self.task()
        awaited: Any = None if task is None or task.done() else task.get_coro()
        while awaited is not None and len(found) < _DEEPEST:
            frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "gi_frame", None)
            if frame is not None:
                found.insert(0, frame)
            awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None)
        return found

    def _is_in(self, frame: FrameType) -> bool:
        """Whether a frame is a statement's of this checkout: what a coroutine awaits there is the database."""
        return not self.thread or frame.f_locals.get("checkout") is self

    def find_scope(self) -> Scope | None:
        """Return the scope that is open here; else this checkout's own, if it may have one."""
        scope = current.get()
        while scope is not None and scope.closed:
            scope = scope.parent
        if scope is None and self.implicit:
            scope = self.scope
            if scope is None:
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
        before, transaction.scope = transaction.scope, scope
        transaction.add_up()
        if before is None or transaction.last is None:
            return
        ended, now = before.unit, scope.unit
        if ended is not None and ended.closed and now is not None and now is not ended:
            site = site_of(transaction.last)
            scope.pending.append(
                SessionUse(SessionEvent.OUTLIVED, site_of(fact), active_ignores.get(), other=site, where=ended.name)
            )

    def savepoint(self, operation: str) -> None:
        """A savepoint was set, released or rolled back to."""
        transaction = self.transaction
        if transaction is None:
            return
        transaction.add_up()
        if operation == "SAVEPOINT":
            transaction.savepoints.append(next_transaction())
        elif transaction.savepoints:
            transaction.savepoints.pop()
        if operation == "ROLLBACK":
            transaction.writes = 0

    def end_transaction(self, transaction: OpenTransaction | None, outcome: str, started: int, error: str = "") -> None:
        """Write the fact of a transaction whose COMMIT or ROLLBACK began at `started` and has just ended."""
        if transaction is None:
            return
        transaction.add_up()
        if transaction.first is None or transaction.last is None:
            return
        finished = clock()
        scope = self.find_scope()
        if scope is None:
            return
        pending = scope.pending
        gap, (before, after) = transaction.gap, _lines(transaction.gap_ends)
        if started - transaction.touched > max(gap, SHORTEST_GAP):
            gap, before, after = started - transaction.touched, site_of(transaction.last), call_site(sys._getframe())
        pending.append(
            Transaction(
                transaction.serial,
                self.serial,
                transaction.wrote,
                transaction.first[STARTED],
                finished,
                outcome,
                transaction.statements,
                transaction.database,
                finished - started,
                transaction.slowest,
                site_of(transaction.first),
                site_of(transaction.last),
                active_ignores.get(),
                error,
                call_site(sys._getframe()) if error else None,
                self.owner,
                gap,
                before,
                after,
            )
        )
        if len(pending) >= DIGEST:
            scope.digest()

    def returned(self) -> None:
        """Close what belongs to this checkout, after the connection is back in the pool. Raises nothing."""
        self.failed = sys.exc_info()[0] is not None
        if self.transaction is not None:
            self.end_transaction(self.transaction, "rollback", clock())
            self.transaction = None
        if self.scope is None and self.wait is not None and self.wait.nanoseconds:
            self.find_scope()
        scope, self.scope = self.scope, None
        if scope is not None:
            groups = scope.record.groups
            location = location_of(groups[0].call_site) if groups else None
            if location is not None:
                scope.name = f"connection of {location.function} ({os.path.basename(location.file)}:{location.line})"
            close_scope(scope, quiet=True)


def _lines(ends: tuple[Statement | None, Statement] | None) -> tuple[CallSite | None, CallSite | None]:
    """Return the lines of the statements around a gap."""
    if ends is None:
        return None, None
    before, after = ends
    return None if before is None else site_of(before), site_of(after)


def _owner() -> tuple[int, int, ref[Task[Any]] | None]:
    """Return a number of the running task, or else thread; the thread's identifier if it is no task; the task.

    Identifiers of threads are given to later ones again; the operating system's numbers are not, for long.
    """
    loop = _get_running_loop()
    task = None if loop is None else current_task(loop)
    return (get_native_id(), get_ident(), None) if task is None else (id(task), 0, ref(task))


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
    elif registry.watches and registry.active_settings().implicit_scopes:
        scope = Scope(name, "implicit", registry.active_settings())
        scope.started = started or scope.started
        scope.pending.append(fact)
        close_scope(scope, quiet=True)


def checkout_of(record: Any) -> Checkout | None:
    """Return the checkout of a pool's connection record; makes one for a connection that was out before."""
    if record is None:
        return None
    found: Checkout | None = record.__dict__.get(RECORD_KEY)
    if found is None and getattr(record, "fairy_ref", None) is not None:
        found = Checkout(clock(), any(watch.settings.implicit_scopes for watch in registry.watches[-1:]))
        record.__dict__[RECORD_KEY] = found
    return found
