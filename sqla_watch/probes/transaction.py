"""A transaction that is open: what its statements add up to, and the longest time in which it had none."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from contextvars import ContextVar
from itertools import count
from time import perf_counter_ns as clock

from sqla_watch.callsite import call_site
from sqla_watch.facts import ERROR, FINGERPRINT, FINISHED, STARTED, CallSite, Statement, Transaction, site_of
from sqla_watch.fingerprint import Fingerprint
from sqla_watch.ignores import active as active_ignores
from sqla_watch.scopes import Scope

SHORTEST_GAP = 10_000_000
"""Nanoseconds from which on a time without a statement is worth the lines around it."""
_SESSION_LOCK = re.compile(r"\bpg_(?:try_)?advisory_lock", re.IGNORECASE)
SAVEPOINTS = ("SAVEPOINT", "RELEASE", "ROLLBACK")
"""Operations of the statements that set a savepoint, release it, and roll back to it."""
_NEVER = 2**63
"""A moment which is later than any: nothing can have taken long since."""

leaving: ContextVar[tuple[CallSite | None] | None] = ContextVar("sqla_watch_leaving", default=None)
"""The `async with` that is closing its session: it does so in a task of its own, which inherits this."""

next_transaction: Callable[[], int] = count(1).__next__


class OpenTransaction:
    """A transaction that has begun, and what its statements add up to (hot path)."""

    __slots__ = (
        "__dict__", "database", "first", "gap", "last", "previous", "savepoints", "scope", "sent", "serial", "slowest",
        "special", "started", "statements", "touched", "wrote",
    )  # fmt: skip

    # What few have stays on the class: a transaction is made for each connection's use.
    ending: int = 0
    """Nanoseconds of PREPARE TRANSACTION."""
    gap_started: int = 0
    """Since when the longest time between two of its statements was, and what is around it."""
    gap_ends: tuple[Statement | CallSite | None, Statement | CallSite | None] = (None, None)
    writes: int = 0
    """INSERTs, UPDATEs and DELETEs that were not rolled back to a savepoint."""
    last_write: Statement | None = None
    kept: bool = False
    """Whether it asked for what a session of PostgreSQL has beyond it: LISTEN, an advisory lock."""
    temporary: bool = False
    """Whether it made a temporary table, to which its writes may go."""
    savepoints_set: int = 0
    two_phase: bool = False

    def __init__(self, serial: int) -> None:
        self.serial = serial
        self.sent: list[Statement] = []
        """Its last statements, which are not added up yet; all else is what there was before them."""
        self.started = self.statements = self.database = self.slowest = self.gap = 0
        """When its first statement began, 0 before that; how many there were, the nanoseconds in them, in the slowest
        of them, and of the longest time between two of them."""
        self.touched = _NEVER
        """When its last statement or fetch had finished."""
        self.wrote = self.special = False
        """Whether it sent anything that may have written; and whether it has any of what few have."""
        self.savepoints: tuple[int, ...] = ()
        """Numbers of the savepoints that are open, the innermost last."""
        # The last statement or the line of the last fetch; the first statement, and the last one.
        self.previous: Statement | CallSite | None = None
        self.first: Statement | None = None
        self.last: Statement | None = None
        self.scope: Scope | None = None
        """Where its last statement was recorded."""

    def add_up(self) -> None:
        """Add up what was sent since the last time: after each housekeeping statement, after some others, at the end.

        A loop over many takes a fifth of what it takes to do it while each is sent, in between SQLAlchemy's own code.
        """
        facts = self.sent
        if not facts:
            return
        touched, previous, widest = self.touched, self.previous, self.gap
        database, slowest, statements = self.database, self.slowest, self.statements
        for fact in facts:
            fingerprint, started, finished = fact[FINGERPRINT], fact[STARTED], fact[FINISHED]
            if started - touched > widest:
                widest = started - touched
                self._widen(started, widest, previous, fact)
            touched, previous = finished, fact
            elapsed = finished - started
            database += elapsed
            if fingerprint.housekeeping:
                self._keep_house(fingerprint, fact)
                continue
            if self.first is None:
                self.first = fact
            statements += 1
            if elapsed > slowest:
                slowest = elapsed
            if fingerprint.may_write:
                self._write(fingerprint, fact)
            if fingerprint.locks and _SESSION_LOCK.search(fingerprint.text):
                self.kept = self.special = True
            self.last = fact
        self.started = self.started or facts[0][STARTED]
        self.touched, self.previous = touched, previous
        self.database, self.slowest, self.statements = database, slowest, statements
        self.sent = []  # last, because the watchdog may look at this moment

    def _write(self, fingerprint: Fingerprint, fact: Statement) -> None:
        self.wrote = True
        if fingerprint.writes and not fact[ERROR]:
            self.writes += 1
            self.last_write = fact
        elif fingerprint.operation == "CREATE" and "TEMP" in fingerprint.text[:20].upper():
            self.temporary = self.special = True

    def _widen(
        self, ended: int, gap: int, previous: Statement | CallSite | None, end: Statement | CallSite | None
    ) -> None:
        """Note the longest time without a statement so far: when it ended, how long it was, and what is around it."""
        self.gap, self.gap_started = gap, ended - gap
        self.gap_ends = (previous, end)

    def _keep_house(self, fingerprint: Fingerprint, fact: Statement) -> None:
        """Follow LISTEN, and the savepoints that are set, released or rolled back to."""
        operation = fingerprint.operation
        if operation == "LISTEN":
            self.kept = self.special = True
        if fact[ERROR]:
            return
        if operation == "SAVEPOINT":
            self.savepoints = (*self.savepoints, next_transaction())
            self.savepoints_set += 1
            self.special = True
        elif operation in SAVEPOINTS:
            self.savepoints = self.savepoints[:-1]
        if operation == "ROLLBACK":
            self.writes = 0

    def pass_by(self, started: int, finished: int) -> None:
        """Take the times of a statement that is not in the sample: for OpenTelemetry, which counts all."""
        self.started = self.started or started
        self.statements += 1
        self.database += finished - started

    def fetched(self, started: int, finished: int) -> None:
        """Rows of a streamed result were fetched: the database was at work until now."""
        self.add_up()
        site = call_site(sys._getframe(1))
        gap = started - self.touched
        if gap > self.gap:
            self._widen(started, gap, self.previous, site)
        self.database += finished - started
        self.touched, self.previous = finished, site

    def idle_since(self) -> int:
        """Return when its last statement had finished, 0 before the first. Any thread may ask."""
        sent = self.sent
        touched = sent[-1][FINISHED] if sent else self.touched
        return 0 if touched == _NEVER else touched

    def progress(self) -> tuple[Statement | None, Statement | CallSite | None, int]:
        """Return its first statement, its last one or the line of its last fetch, and how many it has sent.

        Any thread may ask.
        """
        sent = self.sent
        if not sent:
            return self.first, self.previous, self.statements
        return self.first or sent[0], sent[-1], self.statements + len(sent)

    def prepared(self, nanoseconds: int) -> None:
        """PREPARE TRANSACTION took so long."""
        self.ending += nanoseconds
        self.special = True

    def ended(self, outcome: str, started: int, checkout: int, owner: int, error: str) -> Transaction | None:
        """Return its fact, now that the COMMIT or ROLLBACK that began at `started` is over; None if it did nothing."""
        finished = clock()
        self.add_up()
        if not self.statements:
            return None
        ending = finished - started
        gap = started - self.touched
        if gap > self.gap and gap > SHORTEST_GAP:
            left = leaving.get()
            self._widen(started, gap, self.previous, call_site(sys._getframe(1)) if left is None else left[0])
        gap, gap_started, after, before = self.gap, 0, None, None
        if gap > SHORTEST_GAP:
            gap_started, (after, before) = self.gap_started, map(_line, self.gap_ends)
        first, last = self.first, self.last
        site = _line(first)
        savepoints, two_phase = 0, False
        if self.special:
            ending += self.ending
            savepoints, two_phase = self.savepoints_set, self.two_phase
        # As Transaction(…), in half of the time.
        return tuple.__new__(
            Transaction,
            (
                self.serial, checkout, self.wrote, self.started, finished, outcome, self.statements, self.database,
                ending, self.slowest, site, site if last is first else _line(last), active_ignores.get(), error,
                call_site(sys._getframe(1)) if error else None, owner, gap, gap_started, after, before, (), savepoints,
                two_phase,
            ),
        )  # fmt: skip


def _line(end: Statement | CallSite | None) -> CallSite | None:
    """Return the line of a statement, or of what else ended a gap."""
    return end if end is None or isinstance(end, CallSite) else site_of(end)
