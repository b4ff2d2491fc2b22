"""A look at what is open now: connections that are out, their transactions, and the pools; from any thread.

Nothing is asked of the database, and nothing of the owners is touched: when a worker hangs, this still answers.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from time import perf_counter_ns as clock
from types import FrameType
from typing import Any, TextIO

from sqlalchemy.engine import Engine

from sqla_watch import registry
from sqla_watch.activities import doing_of_holder
from sqla_watch.callsite import location_of
from sqla_watch.facts import Holder, HolderState
from sqla_watch.findings import Location
from sqla_watch.probes.pool import holders_of, waits_of

__all__ = ["OpenConnection", "PoolState", "Snapshot", "dump", "dump_on_signal", "take_snapshot"]


@dataclass(frozen=True, slots=True)
class OpenConnection:
    """A connection that is checked out. Times are seconds."""

    engine: str
    """Dialect, driver and database: `postgresql+psycopg shop`."""
    state: str
    """`working`, `idle in transaction`, `idle`, `waiting for another connection`, or `never returned`."""
    held_seconds: float
    transaction_seconds: float
    """Since its transaction's first statement; 0 for none."""
    idle_seconds: float
    """Since its last statement had ended; 0 while it works, or has sent none."""
    statements: int
    """Statements of its transaction so far."""
    location: Location | None
    """The line at which its thread or task is; of one that was never returned, the line that took it."""
    doing: str
    """What that line does: `in requests.post`, `computing`; empty for nothing, and while the database works."""
    taken: Location | None
    """The line that took it."""
    scope: str
    """Name of the scope, empty for none."""

    def __str__(self) -> str:
        place = "no line of yours" if self.location is None else f"{self.location} in {self.location.function}"
        place += f", {self.doing}" if self.doing else ""
        scope = f" ({self.scope})" if self.scope else ""
        plural = "" if self.statements == 1 else "s"
        idle = f" for {self.idle_seconds:.1f} s" if self.idle_seconds else ""
        return (
            f"held {self.held_seconds:.1f} s, {self.state}{idle}, {self.statements} statement{plural}: {place}{scope}"
        )


@dataclass(frozen=True, slots=True)
class PoolState:
    """A pool, with those who wait for it."""

    engine: str
    kind: str
    """Its class: `QueuePool`."""
    size: int
    max_overflow: int
    """-1 for no limit."""
    checked_out: int
    waiting: int
    waits: int
    """Waits that have ended so far."""
    wait_seconds: float
    """Seconds of them together."""

    def __str__(self) -> str:
        return (
            f"{self.engine} {self.kind}: {self.checked_out} out of {self.size} + {self.max_overflow}, "
            f"{self.waiting} waiting; {self.waits} waits so far, {self.wait_seconds:.1f} s together"
        )


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is open at one moment."""

    pools: tuple[PoolState, ...]
    connections: tuple[OpenConnection, ...]
    """Those first that have been held longest."""

    def to_dict(self) -> dict[str, Any]:
        """Return it as numbers and texts, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return "\n".join([*map(str, self.pools), *(f"  {connection}" for connection in self.connections)])


def take_snapshot(engines: Iterable[Engine]) -> Snapshot:
    """Return what is open of these engines."""
    now = clock()
    pools = []
    found: list[tuple[int, OpenConnection]] = []
    for engine in engines:
        name = f"{engine.dialect.name}+{engine.dialect.driver} {engine.url.database or ''}".strip()
        pool: Any = engine.pool
        holders = holders_of(pool)
        waits = waits_of(pool)
        size = getattr(pool, "size", None)
        pools.append(
            PoolState(
                engine=name,
                kind=type(pool).__name__,
                size=size() if callable(size) else 0,
                max_overflow=getattr(pool, "_max_overflow", -1),
                checked_out=len(holders),
                waiting=len(waits.waiters),
                waits=waits.waits,
                wait_seconds=waits.nanoseconds / 1e9,
            )
        )
        found += [(holder.since, _connection(name, holder, now)) for holder in holders]
    found.sort(key=lambda each: each[0])
    return Snapshot(tuple(pools), tuple(connection for _, connection in found))


def _connection(engine: str, holder: Holder, now: int) -> OpenConnection:
    working = holder.state is HolderState.WORKING
    return OpenConnection(
        engine=engine,
        state=str(holder.state),
        held_seconds=max(0, now - holder.since) / 1e9,
        transaction_seconds=max(0, now - holder.transaction_started) / 1e9 if holder.in_transaction else 0.0,
        idle_seconds=0.0 if working or not holder.statements else max(0, now - holder.last_finished) / 1e9,
        statements=holder.statements,
        location=location_of(holder.activity.call_site),
        doing=doing_of_holder(holder),
        taken=location_of(holder.taken),
        scope=holder.scope,
    )


def dump(file: TextIO | None = None) -> None:
    """Write what is open of every watched engine, as text.

    Args:
        file: Where to; standard error by default.

    Example::

        sqla_watch.dump()  # postgresql+psycopg shop QueuePool: 5 out of 5 + 10, 0 waiting; …
    """
    engines = {id(engine): engine for watch in registry.watches for engine in watch.engines}
    text = str(take_snapshot(engines.values())) or "nothing is watched"
    print(f"sqla_watch, process {os.getpid()}:\n{text}", file=file or sys.stderr, flush=True)


def dump_on_signal(number: int) -> None:
    """Have `dump()` called when the process gets a signal: the first thing one wants when a worker hangs.

    Args:
        number: The signal, as `signal.SIGUSR2`. A handler that is there already is called, too.

    Raises:
        ValueError: Called outside of the main thread, where Python sets no handlers; or there is no such signal.

    Example::

        sqla_watch.dump_on_signal(signal.SIGUSR2)  # then: kill -USR2 PROCESS
    """
    before = signal.getsignal(number)

    def handle(received: int, frame: FrameType | None) -> None:
        dump()
        if callable(before):
            before(received, frame)

    signal.signal(number, handle)
