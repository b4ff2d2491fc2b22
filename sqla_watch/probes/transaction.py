"""A transaction that is open: what its statements add up to, and the longest time in which it had none."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from contextvars import ContextVar
from itertools import count
from time import perf_counter_ns as clock

from sqla_watch.callsite import call_site
from sqla_watch.facts import ERROR, FINISHED, STARTED, CallSite, Statement, Transaction, site_of
from sqla_watch.ignores import active as active_ignores
from sqla_watch.scopes import Scope

SHORTEST_GAP = 10_000_000
"""Nanoseconds from which on a time without a statement is worth the lines around it."""
_SESSION_LOCK = re.compile(r"\bpg_(?:try_)?advisory_lock", re.IGNORECASE)
_NEVER = 2**63
"""A moment which is later than any: nothing can have taken long since."""

leaving: ContextVar[tuple[CallSite | None] | None] = ContextVar("sqla_watch_leaving", default=None)
"""The `async with` that is closing its session: it does so in a task of its own, which inherits this."""

next_transaction: Callable[[], int] = count(1).__next__


class OpenTransaction:
    """A transaction that has begun. Statements append their facts (hot path); some hundred are added up at once."""

    __slots__ = (
        "database", "ending", "facts", "first", "gap", "gap_ends", "gap_started", "kept", "last", "last_write",
        "previous", "savepoints", "savepoints_set", "scope", "serial", "slowest", "started", "statements", "temporary",
        "touched", "two_phase", "writes", "wrote",
    )  # fmt: skip

    def __init__(self, serial: int) -> None:
        self.serial = serial
        self.facts: list[Statement] = []
        """Not yet added up."""
        self.started = 0
        """When its first statement began; 0 before that."""
        self.statements = 0
        self.database = 0
        self.slowest = 0
        self.ending = 0
        """Nanoseconds of PREPARE TRANSACTION."""
        self.touched = _NEVER
        """When its last statement or fetch had finished, and the line of that."""
        self.previous: Statement | CallSite | None = None
        self.gap = 0
        """Nanoseconds of the longest time between two of its statements so far, since when, and what is around it."""
        self.gap_started = 0
        self.gap_ends: tuple[Statement | CallSite | None, Statement | CallSite | None] = (None, None)
        self.wrote = False
        """Whether it sent anything that may have written."""
        self.writes = 0
        """INSERTs, UPDATEs and DELETEs that were not rolled back to a savepoint."""
        self.kept = False
        """Whether it asked for what a session of PostgreSQL has beyond it: LISTEN, an advisory lock."""
        self.temporary = False
        """Whether it made a temporary table, to which its writes may go."""
        self.last_write: Statement | None = None
        self.savepoints: list[int] = []
        """Numbers of the savepoints that are open, the innermost last."""
        self.savepoints_set = 0
        self.two_phase = False
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
            if started - touched > gap:
                gap = started - touched
                self.gap_started, self.gap_ends = touched, (self.previous, fact)
            touched = finished
            self.previous = fact
            if not self.started:
                self.started = started
            if fingerprint.housekeeping:
                self.kept = self.kept or fingerprint.operation == "LISTEN"
                continue
            if fingerprint.locks and _SESSION_LOCK.search(fingerprint.text):
                self.kept = True
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

    def pass_by(self, started: int, finished: int) -> None:
        """Take the times of a statement that is not in the sample: for OpenTelemetry, which counts all."""
        self.started = self.started or started
        self.statements += 1
        self.database += finished - started

    def fetched(self, started: int, finished: int) -> None:
        """Rows of a streamed result were fetched: the database was at work until now."""
        self.add_up()
        site = call_site(sys._getframe(1))
        if started - self.touched > self.gap:
            self.gap = started - self.touched
            self.gap_started, self.gap_ends = self.touched, (self.previous, site)
        self.database += finished - started
        self.touched, self.previous = finished, site

    def idle_since(self) -> int:
        """Return when its last statement had finished, 0 before the first. Any thread may ask."""
        last = self.facts[-1:]  # the owner may go on meanwhile
        if last:
            return last[0][FINISHED]
        return 0 if self.touched == _NEVER else self.touched

    def savepoint(self, operation: str) -> None:
        """A savepoint was set, released or rolled back to."""
        self.add_up()
        if operation == "SAVEPOINT":
            self.savepoints.append(next_transaction())
            self.savepoints_set += 1
        elif self.savepoints:
            self.savepoints.pop()
        if operation == "ROLLBACK":
            self.writes = 0

    def ended(self, outcome: str, started: int, checkout: int, owner: int, error: str) -> Transaction | None:
        """Return its fact, now that the COMMIT or ROLLBACK that began at `started` is over; None if it did nothing."""
        self.add_up()
        if not self.statements:
            return None
        finished = clock()
        gap, gap_started, (before, after) = self.gap, self.gap_started, self.gap_ends
        here = call_site(sys._getframe(1)) if error else None
        if started - self.touched > max(gap, SHORTEST_GAP):
            gap, gap_started = started - self.touched, self.touched
            left = leaving.get()
            before, after = self.previous, call_site(sys._getframe(1)) if left is None else left[0]
        return Transaction(
            self.serial,
            checkout,
            self.wrote,
            self.started,
            finished,
            outcome,
            self.statements,
            self.database,
            finished - started + self.ending,
            self.slowest,
            _line(self.first),
            _line(self.last),
            active_ignores.get(),
            error,
            here,
            owner,
            gap,
            gap_started,
            _line(before),
            _line(after),
            (),
            self.savepoints_set,
            self.two_phase,
        )


def _line(end: Statement | CallSite | None) -> CallSite | None:
    """Return the line of a statement, or of what else ended a gap."""
    return end if end is None or isinstance(end, CallSite) else site_of(end)
