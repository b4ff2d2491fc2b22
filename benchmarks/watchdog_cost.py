"""Processor time that the watchdog's thread takes while many transactions are open, and how late it looks.

Run it with ``uv run python -m benchmarks.watchdog_cost``. An embedded PostgreSQL is started with room for 1,000
connections; each has a transaction open. In each situation the clock of the watchdog's thread is read over 20 s. The
first look at a transaction is late by the time from when it has been idle for its threshold to when its first activity
is known; the main thread asks for that every 20 ms. Exits with 1 if the watchdog takes 0.1 % of a processor in any
situation.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine

import sqla_watch
from sqla_watch import Settings
from sqla_watch.demo.server import EmbeddedServer
from sqla_watch.probes.checkout import Checkout, all_out
from sqla_watch.probes.internals import RECORD_KEY
from sqla_watch.probes.watchdog import watchdog

BAR_PERCENT = 0.1
SECONDS = 20.0
WINDOW_SECONDS = 5.0
FEW = 20
BETWEEN_STATEMENTS = 0.2
"""Seconds between two statements of one of the active transactions, if the machine can do so many."""
ACTIVE_THREADS = 4
PROBES = 5
"""Transactions that go idle one after the other among those which are active."""
ASK_SECONDS = 0.02
ONE = text("SELECT 1")


@dataclass
class Measured:
    """What was seen in one situation."""

    seconds: float = 0.0
    processor_seconds: float = 0.0
    windows: list[float] = field(default_factory=list)
    """Processor seconds in each window."""
    stacks: int = 0
    statements: int = 0
    late: list[float] = field(default_factory=list)
    """Seconds by which the first looks were late."""
    unseen: int = 0
    """Idle transactions that were not looked at until the end."""

    @property
    def percent(self) -> float:
        """Of one processor."""
        return self.processor_seconds / self.seconds * 100

    @property
    def worst_percent(self) -> float:
        """Of one processor, in the worst window."""
        return max(self.windows) / WINDOW_SECONDS * 100


@contextmanager
def server_with_room(connections: int) -> Iterator[EmbeddedServer]:
    """Start an embedded server that takes so many connections."""
    with EmbeddedServer() as server:
        engine = create_engine(server.url(), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(f"ALTER SYSTEM SET max_connections = {connections + 100}"))
        engine.dispose()
        server._server._stop()
        server._server.ensure_postgres_running()
        yield server


def watchdog_clock() -> Callable[[], int]:
    """Return what tells the processor time of the watchdog's thread in nanoseconds."""
    thread = watchdog._thread
    assert thread is not None, "it has not been started"
    assert thread.ident is not None
    number = time.pthread_getcpuclockid(thread.ident)
    return lambda: time.clock_gettime_ns(number)


def open_checkouts() -> list[Checkout]:
    """Return what is known of all connections that are out."""
    return [checkout for _, checkout in all_out()]


class _Looks:
    """When each of some transactions was looked at first."""

    def __init__(self) -> None:
        self.unseen: dict[Checkout, int] = {}
        """By when it was to be looked at."""
        self.late: list[float] = []

    def expect(self, checkout: Checkout) -> None:
        """A transaction is idle since its last statement."""
        self.unseen[checkout] = checkout.idle_since() + watchdog.idle

    def ask(self) -> None:
        """Note those that have been looked at."""
        now = time.perf_counter_ns()
        for checkout, due in list(self.unseen.items()):
            if checkout.activities:
                del self.unseen[checkout]
                self.late.append(max(0, now - due) / 1e9)


def measure(seconds: float, looks: _Looks) -> Measured:
    """Read the clock of the watchdog's thread for some seconds."""
    clock, stacks = watchdog_clock(), watchdog.stacks
    started, spent = time.perf_counter(), clock()
    measured = Measured()
    window = spent
    for number in range(1, round(seconds / WINDOW_SECONDS) + 1):
        while time.perf_counter() < started + number * WINDOW_SECONDS:
            time.sleep(ASK_SECONDS)
            looks.ask()
        now = clock()
        measured.windows.append((now - window) / 1e9)
        window = now
    measured.seconds = time.perf_counter() - started
    measured.processor_seconds = (clock() - spent) / 1e9
    measured.stacks = watchdog.stacks - stacks
    measured.late, measured.unseen = looks.late, len(looks.unseen)
    return measured


def wait_until(what: Callable[[], bool]) -> None:
    while not what():
        time.sleep(0.01)


def idle_in_threads(engine: Engine, number: int, seconds: float) -> Measured:
    """Each transaction is one thread's, which waits for something else from the start to the end."""
    over = threading.Event()
    all_open = threading.Barrier(number + 1)

    def idle() -> None:
        with engine.connect() as connection:
            connection.execute(ONE)
            all_open.wait()
            over.wait()

    threads = [threading.Thread(target=idle) for _ in range(number)]
    for thread in threads:
        thread.start()
    all_open.wait()
    looks = _Looks()
    for checkout in open_checkouts():
        looks.expect(checkout)
    measured = measure(seconds, looks)
    over.set()
    for thread in threads:
        thread.join()
    return measured


def idle_in_tasks(url: str, number: int, seconds: float) -> Measured:
    """Each transaction is one task's."""
    started, over = threading.Event(), threading.Event()

    async def main() -> None:
        engine = create_async_engine(url, pool_size=number, max_overflow=0)
        sqla_watch.install(engine, settings=SETTINGS)
        opened = 0

        async def idle() -> None:
            nonlocal opened
            async with engine.connect() as connection:
                await connection.execute(ONE)
                opened += 1
                await ended.wait()

        ended = asyncio.Event()
        tasks = [asyncio.create_task(idle()) for _ in range(number)]
        while opened < number:
            await asyncio.sleep(0.05)
        started.set()
        while not over.is_set():
            await asyncio.sleep(0.1)
        ended.set()
        await asyncio.gather(*tasks)
        await engine.dispose()

    loop = threading.Thread(target=lambda: asyncio.run(main()))
    loop.start()
    started.wait()
    looks = _Looks()
    for checkout in open_checkouts():
        looks.expect(checkout)
    measured = measure(seconds, looks)
    over.set()
    loop.join()
    return measured


def active(engine: Engine, number: int, seconds: float) -> Measured:
    """A few threads have all of them, and send a statement in each again and again; now and then one goes idle."""
    over = threading.Event()
    statements = [0] * ACTIVE_THREADS
    all_open = threading.Barrier(ACTIVE_THREADS + 1)

    def work(place: int) -> None:
        connections: list[Connection] = [engine.connect() for _ in range(number // ACTIVE_THREADS)]
        for connection in connections:
            connection.execute(ONE)
        all_open.wait()
        while not over.is_set():
            started = time.perf_counter()
            for connection in connections:
                connection.execute(ONE)
                statements[place] += 1
            over.wait(max(0.0, started + BETWEEN_STATEMENTS - time.perf_counter()))
        for connection in connections:
            connection.close()

    def go_idle() -> None:
        for _ in range(PROBES):
            with engine.connect() as connection:
                connection.execute(ONE)
                checkout: Checkout = vars(connection.connection._connection_record)[RECORD_KEY]  # type: ignore[attr-defined]
                looks.expect(checkout)
                over.wait(seconds / PROBES * 0.9)

    looks = _Looks()
    threads = [threading.Thread(target=work, args=(place,)) for place in range(ACTIVE_THREADS)]
    for thread in threads:
        thread.start()
    all_open.wait()
    prober = threading.Thread(target=go_idle)
    prober.start()
    before = sum(statements)
    measured = measure(seconds, looks)
    measured.statements = sum(statements) - before
    over.set()
    for thread in (*threads, prober):
        thread.join()
    return measured


SETTINGS = Settings(profile="test", rules={"query-in-loop": "ignore", "repeated-query": "ignore"})


def row(name: str, measured: Measured) -> str:
    """Return a line of the table."""
    late = sorted(measured.late)
    shown = "\N{EN DASH}"
    if late:
        shown = f"{late[0]:.2f} / {statistics.median(late):.2f} / {late[-1]:.2f}"
    rate = f"{measured.statements / measured.seconds:,.0f}" if measured.statements else "0"
    return (
        f"| {name} | {rate} | {measured.percent:.4f} | {measured.worst_percent:.4f} | "
        f"{measured.stacks / measured.seconds:.1f} | {shown} | {measured.unseen} |"
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.watchdog_cost", description=__doc__.partition("\n")[0])
    parser.add_argument("--connections", type=int, default=1_000)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    given = parser.parse_args(arguments)
    number, seconds = given.connections, given.seconds
    warnings.simplefilter("ignore")
    results = {}
    with server_with_room(number) as server:
        engine = create_engine(server.url(), pool_size=number + PROBES, max_overflow=0)
        for name, situation in (
            (f"{number:,} idle, each in a thread", lambda: idle_in_threads(engine, number, seconds)),
            (f"{number:,} active, in {ACTIVE_THREADS} threads", lambda: active(engine, number, seconds)),
            (f"{FEW} idle, each in a thread", lambda: idle_in_threads(engine, FEW, seconds)),
        ):
            sqla_watch.install(engine, settings=SETTINGS)
            results[name] = situation()
            sqla_watch.uninstall()
        engine.dispose()
        results[f"{number:,} idle, each in a task"] = idle_in_tasks(server.url("asyncpg"), number, seconds)
        sqla_watch.uninstall()
    print(f"Python {sys.version.split()[0]}, {seconds:.0f} s each, watchdog every {SETTINGS.watchdog_seconds} s\n")
    print(
        f"| open transactions | statements a second | % of a processor | in the worst {WINDOW_SECONDS:.0f} s | "
        "stacks taken a second | first look late by, s (least / median / most) | not looked at by the end |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, measured in results.items():
        print(row(name, measured))
    worst = max(measured.percent for measured in results.values())
    print(f"\nat most {worst:.4f} % of one processor (bar: below {BAR_PERCENT})")
    return 0 if worst < BAR_PERCENT else 1


if __name__ == "__main__":
    sys.exit(main())
