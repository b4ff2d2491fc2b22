"""Threads and tasks that do to a pool whatever can be done to one; nothing may be left open behind them.

Run it with ``uv run python -m benchmarks.pool_stress --minutes 10``. 64 threads share one pool, 500 asyncio tasks
another, of 5 + 5 connections each, because a pool is either synchronous or not; both are on one database: an embedded
server's, or the one of `SQLA_WATCH_TEST_DATABASE_URL`. At random they read, write, sleep in transactions, fail, run
into time-outs, set savepoints, break off streams, leave sessions to the garbage collector, take a second connection,
are cancelled at any moment, and have their backends killed and their pools disposed of. Half of the work is in scopes
of kind `request`. Meanwhile a thread looks at `watch.snapshot()` all the time.

Every lap (30 s) all of them pause between two pieces of work. Then nothing may be out or waiting, and no open record of
ours may be alive. At the end, when threads, tasks and engines are gone, no record at all may be. Memory, in blocks of
the interpreter's and in megabytes, must be the same at the end as after the first minute. An error in the logger
`sqla_watch`, an exception with a line of ours at its end, and one that the application did not ask for are failures.
Exits with 1 if anything of this is not so. ``--bare`` does the same without a watch: what SQLAlchemy does by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import faulthandler
import gc
import logging
import os
import random
import sys
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import psycopg
from asyncpg import InterfaceError, InternalClientError, PostgresError
from sqlalchemy import Engine, create_engine, make_url, select, text
from sqlalchemy.exc import DBAPIError, InvalidRequestError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import sqla_watch
from sqla_watch import Scope, Settings, Watch
from sqla_watch.demo.server import EmbeddedServer
from sqla_watch.probes import pool as pool_probe
from sqla_watch.probes.checkout import Checkout
from sqla_watch.probes.transaction import OpenTransaction
from sqla_watch.probes.watchdog import watchdog
from sqla_watch.record import Record
from sqla_watch.scopes import UNSAMPLED

__all__ = ["Outcome", "Plan", "run"]

NAME = "sqla_watch stress"
"""What the backends are called that may be killed; others of the server are left alone."""
ENTRIES = 40
EXPECTED = (
    DBAPIError, PoolTimeout, InvalidRequestError, TimeoutError, asyncio.CancelledError, ConnectionError,
    InternalClientError, PostgresError,
)  # fmt: skip
"""What the application runs into because it asked for it. `InvalidRequestError`: on with a transaction that was lost.

asyncpg's own errors pass SQLAlchemy where a result is streamed, and where a backend was killed; as without a watch.
"""
OURS = os.path.dirname(sqla_watch.__file__) + os.sep
KEPT = (Checkout, OpenTransaction, Scope, Record)
"""Our objects that live as long as something is open. Scopes live a little longer, in those who read them."""
PATIENCE_SECONDS = 15.0
"""For the last connections to be returned, once everybody has paused: closing is a task of its own under asyncio."""
SETTLE_SECONDS = 2.0
"""For the watchdog to let go of what it was to look at."""
MOST_BLOCKS = 1.03
"""Blocks of memory at the end, as a share of those after the first minute."""
MOST_RESIDENT = 1.1
"""The same of the process's resident memory, which is in pieces after a while; also without a watch."""


class Planned(Exception):
    """The application's own error, in the middle of its work."""


class Base(DeclarativeBase):
    """Base of the classes here."""


class Entry(Base):
    __tablename__ = "sqla_watch_stress"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(default="")
    number: Mapped[int] = mapped_column(default=0)


ONE = text("SELECT name FROM sqla_watch_stress WHERE id = :id")
CHANGE = text("UPDATE sqla_watch_stress SET number = number + 1 WHERE id = :id")
MANY = text("SELECT generate_series(1, 5000)")
NAP = text("SELECT pg_sleep(:seconds)")
WRONG = text("SELECT 1 / (CAST(:number AS integer) * 0)")
WRONG_ROW = text("SELECT 1 / (number - CAST(:row AS integer)) FROM generate_series(1, 30) AS number")
HURRY = text("SET LOCAL statement_timeout = '30ms'")
LOCK_HURRY = text("SET LOCAL lock_timeout = '60ms'")


@dataclass(frozen=True)
class Plan:
    """How much of it."""

    seconds: float = 600.0
    threads: int = 64
    tasks: int = 500
    lap_seconds: float = 30.0
    first_seconds: float = 60.0
    """After which the memory is what that of the end is held against."""
    pool_size: int = 5
    max_overflow: int = 5
    pool_timeout: float = 0.5
    seed: int = 1
    async_driver: str = "asyncpg"
    watched: bool = True


@dataclass
class Outcome:
    """What came of it."""

    faults: list[str] = field(default_factory=list)
    """What should not be; empty if all is well."""
    stories: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    """What the application ran into, as it asked for."""
    findings: Counter[str] = field(default_factory=Counter)
    blocks: list[int] = field(default_factory=list)
    """Blocks of memory in each pause from the end of the first minute on."""
    megabytes: list[float] = field(default_factory=list)
    """Resident memory in each of them."""

    def fault(self, what: str) -> None:
        """Note what should not be, the same only once."""
        if what not in self.faults and len(self.faults) < 100:
            self.faults.append(what)
            print("FAULT", what, flush=True)


# The synchronous application. A story is a function of an engine; what it raises is the caller's.

SyncStory = Callable[[Engine, random.Random], None]
AsyncStory = Callable[[AsyncEngine, random.Random], Any]


def _number(dice: random.Random) -> dict[str, Any]:
    return {"id": dice.randrange(1, ENTRIES + 1)}


def reads(engine: Engine, dice: random.Random) -> None:
    with engine.begin() as connection:
        for _ in range(dice.randrange(1, 6)):
            connection.execute(ONE, _number(dice)).all()


def writes(engine: Engine, dice: random.Random) -> None:
    with engine.begin() as connection:
        connection.execute(LOCK_HURRY)
        for _ in range(dice.randrange(1, 4)):
            connection.execute(CHANGE, _number(dice))  # in any order: deadlocks, and time-outs of locks
            time.sleep(dice.random() * 0.01)


def idles(engine: Engine, dice: random.Random) -> None:
    with engine.connect() as connection:
        connection.execute(ONE, _number(dice))
        time.sleep(0.65 if dice.random() < 0.1 else dice.random() * 0.1)
        connection.execute(ONE, _number(dice))
        if dice.random() < 0.5:
            connection.commit()


def holds(engine: Engine, dice: random.Random) -> None:
    with engine.connect() as connection:
        time.sleep(dice.random() * 0.1)
        connection.execute(ONE, _number(dice))


def fails(engine: Engine, dice: random.Random) -> None:
    with engine.begin() as connection:
        connection.execute(WRONG, {"number": dice.randrange(9)})


def breaks_off(engine: Engine, dice: random.Random) -> None:
    with Session(engine) as session:
        session.get(Entry, dice.randrange(1, ENTRIES + 1))
        raise Planned("in the middle of a session")


def goes_on_after_an_error(engine: Engine, dice: random.Random) -> None:
    with Session(engine) as session:
        with contextlib.suppress(DBAPIError):
            session.execute(WRONG, {"number": 1})
        session.execute(ONE, _number(dice))


def saves(engine: Engine, dice: random.Random) -> None:
    with Session(engine) as session, session.begin():
        session.execute(LOCK_HURRY)
        for _ in range(dice.randrange(1, 4)):
            with contextlib.suppress(DBAPIError, Planned), session.begin_nested():
                session.execute(CHANGE, _number(dice))
                if dice.random() < 0.4:
                    session.execute(WRONG, {"number": 1})
                if dice.random() < 0.4:
                    raise Planned("in a savepoint")


def streams(engine: Engine, dice: random.Random) -> None:
    with engine.connect() as connection:
        result = connection.execution_options(yield_per=100).execute(MANY)
        for number, _ in enumerate(result):
            if number > dice.randrange(1, 4000):
                break


def streams_an_error(engine: Engine, dice: random.Random) -> None:
    with engine.connect() as connection:
        connection.execution_options(stream_results=True).execute(WRONG_ROW, {"row": dice.randrange(1, 30)}).all()


def takes_too_long(engine: Engine, dice: random.Random) -> None:
    with engine.begin() as connection:
        connection.execute(HURRY)
        connection.execute(NAP, {"seconds": dice.random() * 0.06})


def works_long(engine: Engine, dice: random.Random) -> None:
    with engine.connect() as connection:
        connection.execute(NAP, {"seconds": dice.random() * 0.2})


def leaks(engine: Engine, dice: random.Random) -> None:
    session = Session(engine)
    session.execute(ONE, _number(dice))
    session.info["itself"] = session  # so that the garbage collector has to find it


def leaks_plainly(engine: Engine, dice: random.Random) -> None:
    connection = engine.connect()
    connection.execute(ONE, _number(dice))


def nests(engine: Engine, dice: random.Random) -> None:
    with engine.connect() as connection:
        connection.execute(ONE, _number(dice))
        with engine.connect() as other:
            other.execute(ONE, _number(dice))


def keeps_objects(engine: Engine, dice: random.Random) -> None:
    with Session(engine) as session:
        session.execute(LOCK_HURRY)
        for entry in session.scalars(select(Entry).order_by(Entry.id).limit(dice.randrange(1, 9))):
            entry.name = f"name {dice.random()}"
        session.add(Entry(name="new"))
        session.flush()
        if dice.random() < 0.3:
            session.commit()


def throws_away(engine: Engine, dice: random.Random) -> None:
    with engine.connect() as connection:
        connection.execute(ONE, _number(dice))
        if dice.random() < 0.5:
            connection.invalidate()
        else:
            connection.detach()


def commits_by_itself(engine: Engine, dice: random.Random) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(ONE, _number(dice))
        time.sleep(dice.random() * 0.02)
        connection.execute(ONE, _number(dice))


def hands_over(engine: Engine, dice: random.Random) -> None:
    """Another thread returns the connection."""
    connection = engine.connect()
    connection.execute(ONE, _number(dice))
    closer = threading.Thread(target=connection.close)
    closer.start()
    closer.join()


SYNC: dict[SyncStory, int] = {
    reads: 20, writes: 10, idles: 10, holds: 5, fails: 5, breaks_off: 5, goes_on_after_an_error: 3, saves: 8,
    streams: 6, streams_an_error: 2, takes_too_long: 6, works_long: 6, leaks: 2, leaks_plainly: 2, nests: 3,
    keeps_objects: 8, throws_away: 3, commits_by_itself: 4, hands_over: 2,
}  # fmt: skip


# The asynchronous application.


async def _reads(engine: AsyncEngine, dice: random.Random) -> None:
    async with engine.begin() as connection:
        for _ in range(dice.randrange(1, 6)):
            await connection.execute(ONE, _number(dice))


async def _writes(engine: AsyncEngine, dice: random.Random) -> None:
    async with engine.begin() as connection:
        await connection.execute(LOCK_HURRY)
        for _ in range(dice.randrange(1, 4)):
            await connection.execute(CHANGE, _number(dice))
            await asyncio.sleep(dice.random() * 0.01)


async def _idles(engine: AsyncEngine, dice: random.Random) -> None:
    async with engine.connect() as connection:
        await connection.execute(ONE, _number(dice))
        await asyncio.sleep(0.65 if dice.random() < 0.1 else dice.random() * 0.1)
        await connection.execute(ONE, _number(dice))
        if dice.random() < 0.5:
            await connection.commit()


async def _holds(engine: AsyncEngine, dice: random.Random) -> None:
    async with engine.connect() as connection:
        await asyncio.sleep(dice.random() * 0.1)
        await connection.execute(ONE, _number(dice))


async def _fails(engine: AsyncEngine, dice: random.Random) -> None:
    async with engine.begin() as connection:
        await connection.execute(WRONG, {"number": dice.randrange(9)})


async def _breaks_off(engine: AsyncEngine, dice: random.Random) -> None:
    async with AsyncSession(engine) as session:
        await session.get(Entry, dice.randrange(1, ENTRIES + 1))
        raise Planned("in the middle of a session")


async def _saves(engine: AsyncEngine, dice: random.Random) -> None:
    async with AsyncSession(engine) as session, session.begin():
        await session.execute(LOCK_HURRY)
        for _ in range(dice.randrange(1, 4)):
            with contextlib.suppress(DBAPIError, Planned):
                async with session.begin_nested():
                    await session.execute(CHANGE, _number(dice))
                    if dice.random() < 0.4:
                        await session.execute(WRONG, {"number": 1})
                    if dice.random() < 0.4:
                        raise Planned("in a savepoint")


async def _streams(engine: AsyncEngine, dice: random.Random) -> None:
    async with engine.connect() as connection:
        number = 0
        async for _ in await connection.stream(MANY, execution_options={"yield_per": 100}):
            number += 1
            if number > dice.randrange(1, 4000):
                break


async def _streams_an_error(engine: AsyncEngine, dice: random.Random) -> None:
    async with engine.connect() as connection:
        await (await connection.stream(WRONG_ROW, {"row": dice.randrange(1, 30)})).all()


async def _takes_too_long(engine: AsyncEngine, dice: random.Random) -> None:
    async with engine.begin() as connection:
        await connection.execute(HURRY)
        await connection.execute(NAP, {"seconds": dice.random() * 0.06})


async def _works_long(engine: AsyncEngine, dice: random.Random) -> None:
    async with engine.connect() as connection:
        await connection.execute(NAP, {"seconds": dice.random() * 0.2})


async def _is_overtaken(engine: AsyncEngine, dice: random.Random) -> None:
    async with asyncio.timeout(dice.random() * 0.2):
        await _works_long(engine, dice)


async def _leaks(engine: AsyncEngine, dice: random.Random) -> None:
    session = AsyncSession(engine)
    await session.execute(ONE, _number(dice))
    session.info["itself"] = session


async def _nests(engine: AsyncEngine, dice: random.Random) -> None:
    async with engine.connect() as connection:
        await connection.execute(ONE, _number(dice))
        async with engine.connect() as other:
            await other.execute(ONE, _number(dice))


async def _keeps_objects(engine: AsyncEngine, dice: random.Random) -> None:
    async with AsyncSession(engine, expire_on_commit=False) as session:
        await session.execute(LOCK_HURRY)
        for entry in await session.scalars(select(Entry).order_by(Entry.id).limit(dice.randrange(1, 9))):
            entry.name = f"name {dice.random()}"
        session.add(Entry(name="new"))
        await session.flush()
        if dice.random() < 0.3:
            await session.commit()


async def _throws_away(engine: AsyncEngine, dice: random.Random) -> None:
    async with engine.connect() as connection:
        await connection.execute(ONE, _number(dice))
        await connection.invalidate()


async def _runs_synchronously(engine: AsyncEngine, dice: random.Random) -> None:
    async with engine.connect() as connection:
        await connection.run_sync(lambda plain: plain.execute(ONE, _number(dice)).all())


async def _fans_out(engine: AsyncEngine, dice: random.Random) -> None:
    async def one(connection: AsyncConnection) -> None:
        async with connection:
            await connection.execute(ONE, _number(dice))

    async with asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(one(engine.connect()))


ASYNC: dict[AsyncStory, int] = {
    _reads: 20, _writes: 10, _idles: 10, _holds: 5, _fails: 5, _breaks_off: 5, _saves: 8, _streams: 6,
    _streams_an_error: 2, _takes_too_long: 6, _works_long: 6, _is_overtaken: 6, _leaks: 2, _nests: 3,
    _keeps_objects: 8, _throws_away: 2, _runs_synchronously: 4, _fans_out: 3,
}  # fmt: skip


# Those who do it


class _Crowd:
    """Workers that begin a story when they may, and pause between two."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self.open = threading.Event()
        """Whether a new story may begin."""
        self.over = False
        self.busy = 0
        self.lock = threading.Lock()

    @contextlib.contextmanager
    def story(self, name: str) -> Iterator[None]:
        """Count who is in a story, and what came of it. Half of the stories are a request."""
        with self.lock:
            self.busy += 1
            self.outcome.stories[name] += 1
        try:
            yield
        except BaseException as error:
            self.ran_into(error, name)
        finally:
            with self.lock:
                self.busy -= 1

    def ran_into(self, error: BaseException, name: str) -> None:
        """Count an exception of the application's; of a group, each."""
        if isinstance(error, BaseExceptionGroup):
            for each in error.exceptions:
                self.ran_into(each, name)
            return
        what = _what(error)
        with self.lock:
            self.outcome.errors[what] += 1
        if not isinstance(error, (*EXPECTED, Planned)) and not _was_killed_while_connecting(error):
            self.outcome.fault(f"{name} ran into {what}: {''.join(traceback.format_exception(error))}")
        elif _ends_in_ours(error):
            self.outcome.fault(f"{name} has a line of ours: {''.join(traceback.format_exception(error))}")


def _what(error: BaseException) -> str:
    original = getattr(error, "orig", None)
    state = getattr(original, "sqlstate", None) or getattr(original, "pgcode", None)
    name = type(error).__name__
    return f"{name} {state or type(original).__name__}" if original is not None else name


def _was_killed_while_connecting(error: BaseException) -> bool:
    """Whether asyncpg says so in its own words: SQLAlchemy does not translate what it meets while it connects."""
    return isinstance(error, InterfaceError) and "connection is closed" in str(error)


def _ends_in_ours(error: BaseException) -> bool:
    """Whether an exception, or one that it came from, was raised by a line of sqla_watch's."""
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        frames = traceback.extract_tb(each.__traceback__)
        if frames and frames[-1].filename.startswith(OURS):
            return True
        each = each.__cause__ or each.__context__
    return False


def _scoped(name: str, dice: random.Random) -> contextlib.AbstractContextManager[Any]:
    """Return a request's scope for one half, and for the other a block's or none."""
    if dice.random() < 0.5:
        return sqla_watch.scope(name, kind="request")
    return sqla_watch.scope(name) if dice.random() < 0.5 else contextlib.nullcontext()


class _Threads(_Crowd):
    """Threads on one engine."""

    def __init__(self, outcome: Outcome, engine: Engine, plan: Plan) -> None:
        super().__init__(outcome)
        self.engine = engine
        self.threads = [
            threading.Thread(target=self._work, args=(random.Random(f"{plan.seed} thread {number}"),), daemon=True)
            for number in range(plan.threads)
        ]
        for thread in self.threads:
            thread.start()

    def _work(self, dice: random.Random) -> None:
        stories, weights = list(SYNC), list(SYNC.values())
        while not self.over:
            if not self.open.wait(0.1):
                continue
            (story,) = dice.choices(stories, weights)
            with self.story(story.__name__), _scoped(story.__name__, dice):
                story(self.engine, dice)
            time.sleep(dice.random() * 0.3)

    def end(self) -> None:
        self.over = True
        for thread in self.threads:
            thread.join()


class _Tasks(_Crowd):
    """Tasks on one engine, in an event loop in a thread of its own."""

    def __init__(self, outcome: Outcome, engine: AsyncEngine, plan: Plan) -> None:
        super().__init__(outcome)
        self.engine, self.plan = engine, plan
        self.thread = threading.Thread(target=lambda: asyncio.run(self._main()), daemon=True)
        self.thread.start()

    async def _main(self) -> None:
        asyncio.get_running_loop().set_exception_handler(self._handle)
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(self.plan.tasks):
                    group.create_task(self._work(random.Random(f"{self.plan.seed} task {number}")))
        finally:
            await _settle()
            await self.engine.dispose()

    async def _work(self, dice: random.Random) -> None:
        stories, weights = list(ASYNC), list(ASYNC.values())
        while not self.over:
            await asyncio.sleep(dice.random() * 3)
            if not self.open.is_set():
                continue
            (story,) = dice.choices(stories, weights)
            with self.story(story.__name__):
                await self._perhaps_cancelled(story, dice)

    async def _perhaps_cancelled(self, story: AsyncStory, dice: random.Random) -> None:
        task = asyncio.create_task(self._one(story, dice))
        if dice.random() < 0.25:
            await asyncio.sleep(dice.random() * dice.choice((0.01, 0.1, 0.6)))
            task.cancel()
        await asyncio.wait({task})
        await task

    async def _one(self, story: AsyncStory, dice: random.Random) -> None:
        with _scoped(story.__name__, dice):
            await story(self.engine, dice)

    def _handle(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Note what an event loop says of a task whose exception nobody has asked for."""
        error = context.get("exception")
        what = f"the loop: {context['message']}"
        with self.lock:
            self.outcome.errors[f"{what} {'' if error is None else _what(error)}".strip()] += 1
        if error is not None and _ends_in_ours(error):
            self.outcome.fault(f"{what} {''.join(traceback.format_exception(error))}")

    def end(self) -> None:
        self.over = True
        self.thread.join()


async def _settle() -> None:
    """Let the tasks end that close connections of those which were cancelled."""
    for _ in range(100):
        if len(asyncio.all_tasks()) == 1:
            return
        await asyncio.sleep(0.1)


class _Elsewhere:
    """Threads that disturb: one kills backends, one disposes of pools, one looks at the snapshot."""

    def __init__(self, outcome: Outcome, url: str, plan: Plan, engine: Engine, tasks: _Tasks, watch: Watch | None):
        self.outcome, self.url, self.engine, self.tasks, self.watch = outcome, url, engine, tasks, watch
        self.dice = random.Random(f"{plan.seed} elsewhere")
        self.over = threading.Event()
        self.open = threading.Event()
        self.killed = self.disposed = self.snapshots = 0
        self.threads = [threading.Thread(target=self._safely, args=(each,)) for each in (self._kill, self._dispose)]
        if watch is not None:
            self.threads.append(threading.Thread(target=self._safely, args=(self._look,)))
        for thread in self.threads:
            thread.start()

    def _safely(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception:
            self.outcome.fault(f"{work.__name__} ended: {traceback.format_exc()}")

    def _kill(self) -> None:
        address = make_url(self.url).set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(address, autocommit=True) as connection:
            while not self.over.wait(self.dice.random() * 1.0):
                if self.open.is_set():
                    query = (
                        "SELECT count(pg_terminate_backend(pid)) FROM (SELECT pid FROM pg_stat_activity "
                        "WHERE application_name = %s AND datname = current_database() ORDER BY random() LIMIT 1) one"
                    )
                    row = connection.execute(query, [NAME]).fetchone()
                    self.killed += 0 if row is None else row[0]

    def _dispose(self) -> None:
        while not self.over.wait(5 + self.dice.random() * 10):
            if self.open.is_set():
                self.engine.dispose(close=self.dice.random() < 0.5)
                # The asynchronous pool's connections belong to its loop; those who have one out return it later.
                self.tasks.engine.sync_engine.dispose(close=False)
                self.disposed += 1

    def _look(self) -> None:
        assert self.watch is not None
        while not self.over.wait(0.05):
            str(self.watch.snapshot())
            self.snapshots += 1

    def end(self) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join()


# The judge


class _Listener(logging.Handler):
    """Errors in our logger are failures."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(logging.ERROR)
        self.outcome = outcome

    def emit(self, record: logging.LogRecord) -> None:
        """Note it with its traceback."""
        self.outcome.fault(f"logged: {logging.Formatter().format(record)}")


def _objects() -> Counter[str]:
    """Count our objects that live as long as something is open."""
    return Counter(type(each).__name__ for each in gc.get_objects() if type(each) in KEPT and each is not UNSAMPLED)


def _open_checkouts() -> list[Checkout]:
    return [each for each in gc.get_objects() if type(each) is Checkout and each.open]


def _resident_megabytes() -> float:
    """Return the process's memory, without what `malloc` keeps in pieces for later."""
    with contextlib.suppress(OSError, AttributeError):  # the C library of Linux only
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except OSError:
        return 0.0


def _pools(engines: list[Engine]) -> list[Any]:
    """Return all pools that are alive: those in use, and those disposed of."""
    kinds = tuple({type(engine.pool) for engine in engines})
    return [each for each in gc.get_objects() if isinstance(each, kinds)]


class _Run:
    def __init__(self, url: str, plan: Plan, say: Callable[[str], None]) -> None:
        self.plan, self.say, self.outcome = plan, say, Outcome()
        sizes = {"pool_size": plan.pool_size, "max_overflow": plan.max_overflow, "pool_timeout": plan.pool_timeout}
        plain = make_url(url).set(drivername="postgresql+psycopg")
        self.engine = create_engine(
            plain, pool_pre_ping=True, pool_recycle=20, connect_args={"application_name": NAME}, **sizes
        )
        named: dict[str, Any] = {"application_name": NAME}
        if plan.async_driver == "asyncpg":
            named = {"server_settings": named}
        self.async_engine = create_async_engine(
            plain.set(drivername=f"postgresql+{plan.async_driver}"), connect_args=named, **sizes
        )
        self.watch: Watch | None = None
        if plan.watched:
            self.watch = sqla_watch.install(self.engine, settings=Settings(profile="test"))
            sqla_watch.install(self.async_engine, settings=Settings(profile="test"))
            for watch in (self.watch, sqla_watch.install(self.async_engine)):
                watch.reporters.append(self._count)
        Base.metadata.drop_all(self.engine)
        Base.metadata.create_all(self.engine)
        with Session(self.engine) as session:
            session.add_all(Entry(name=f"name {number}") for number in range(ENTRIES))
            session.commit()
        self.threads = _Threads(self.outcome, self.engine, plan)
        self.tasks = _Tasks(self.outcome, self.async_engine, plan)
        self.elsewhere = _Elsewhere(self.outcome, url, plan, self.engine, self.tasks, self.watch)
        self.crowds = (self.threads, self.tasks)

    def _count(self, scope: Scope) -> None:
        for finding in scope.findings:
            self.outcome.findings[finding.rule] += 1

    def laps(self) -> None:
        """Let them work, lap by lap, and look in the pauses."""
        started = time.monotonic()
        while time.monotonic() < started + self.plan.seconds and len(self.outcome.faults) < 20:
            for each in (*self.crowds, self.elsewhere):
                each.open.set()
            time.sleep(min(self.plan.lap_seconds, max(0.1, started + self.plan.seconds - time.monotonic())))
            for each in (*self.crowds, self.elsewhere):
                each.open.clear()
            self._pause(time.monotonic() - started)

    def _pause(self, moment: float) -> None:
        """Wait until all have paused; then nothing may be open."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (sum(crowd.busy for crowd in self.crowds) or self._left()) and time.monotonic() < deadline:
            time.sleep(0.1)
            gc.collect()
        time.sleep(SETTLE_SECONDS)
        gc.collect()
        busy = sum(crowd.busy for crowd in self.crowds)
        if busy:
            self.outcome.fault(f"{moment:.0f} s: {busy} stories did not end")
            faulthandler.dump_traceback()
        for what in self._left():
            self.outcome.fault(f"{moment:.0f} s: {what}")
        objects = _objects()
        counted = ", ".join(f"{objects[kind.__name__]} {kind.__name__}" for kind in KEPT)
        if moment >= self.plan.first_seconds:
            self.outcome.blocks.append(sys.getallocatedblocks())
            self.outcome.megabytes.append(_resident_megabytes())
        self.say(
            f"{moment:5.0f} s  {self.outcome.stories.total():6} stories  {self.outcome.errors.total():6} errors  "
            f"{self.elsewhere.killed:4} killed  {self.elsewhere.disposed:3} disposed  "
            f"{self.elsewhere.snapshots:5} snapshots  {self.outcome.findings.total():6} findings  "
            f"{_resident_megabytes():6.1f} MB  {sys.getallocatedblocks():8} blocks  {counted}  "
            f"{len(self.outcome.faults)} faults"
        )

    def _left(self) -> list[str]:
        """Return what is still open, though nobody works."""
        if self.watch is None:
            return []
        left = []
        engines = [self.engine, self.async_engine.sync_engine]
        for watch in list(sqla_watch.registry.watches):
            assert isinstance(watch, Watch)
            snapshot = watch.snapshot()
            if snapshot.connections:
                left.append(f"in the snapshot: {snapshot}")
        for pool in _pools(engines):
            waiting = len(pool_probe.waits_of(pool).waiters)
            if waiting:
                left.append(f"{waiting} waiting for {pool}")
        if pool_probe.out:
            left.append(f"{len(pool_probe.out)} records out: {list(pool_probe.out)}")
        still = _open_checkouts()
        if still:
            left.append(f"{len(still)} open checkouts, one of {still[0].taken_at}")
        return left

    def end(self) -> Outcome:
        """End everybody; then nothing of ours may be alive."""
        for each in (self.threads, self.tasks, self.elsewhere):
            each.end()
        with self.engine.begin() as connection:
            connection.execute(text("SET LOCAL lock_timeout = '9s'"))  # a backend that still has a lock is a failure
            Base.metadata.drop_all(connection)
        self.engine.dispose()
        outcome = self.outcome
        if self.watch is not None:
            deadline = time.monotonic() + PATIENCE_SECONDS
            while self._left() and time.monotonic() < deadline:
                gc.collect()
                time.sleep(0.1)
            for what in self._left():
                outcome.fault(f"at the end: {what}")
            if not (watchdog.open and watchdog.interval):
                outcome.fault("the watchdog has ended")
            sqla_watch.uninstall()
            if watchdog.running or any("watchdog" in thread.name for thread in threading.enumerate()):
                outcome.fault("the watchdog's thread is still there")
            sqla_watch.scopes.current.set(None)
            del self.threads, self.tasks, self.elsewhere, self.crowds
            gc.collect()
            for name, number in _objects().items():
                outcome.fault(f"at the end {number} {name} alive")
        for what, numbers, most in (
            ("blocks", outcome.blocks, MOST_BLOCKS),
            ("megabytes", outcome.megabytes, MOST_RESIDENT),
        ):
            if len(numbers) > 1 and min(numbers[-2:]) > most * numbers[0]:
                outcome.fault(f"memory grows, in {what}: {numbers}")
        return outcome


def run(url: str, plan: Plan, say: Callable[[str], None] = print) -> Outcome:
    """Do it all, and return what came of it."""
    logger = logging.getLogger("sqla_watch")
    hooks = sys.unraisablehook, threading.excepthook

    def unraisable(said: Any) -> None:
        if said.exc_value is not None and _ends_in_ours(said.exc_value):
            working.outcome.fault(f"unraisable: {''.join(traceback.format_exception(said.exc_value))}")
        working.outcome.errors[f"unraisable {type(said.exc_value).__name__}"] += 1

    def in_thread(said: Any) -> None:
        if isinstance(said.exc_value, EXPECTED) and not _ends_in_ours(said.exc_value):
            # A thread that was handed a connection to close, whose backend was killed.
            working.outcome.errors[f"in a thread {type(said.exc_value).__name__}"] += 1
            return
        working.outcome.fault(f"a thread ended: {''.join(traceback.format_exception(said.exc_value))}")

    working = _Run(url, plan, say)
    listener = _Listener(working.outcome)
    logger.addHandler(listener)
    sys.unraisablehook, threading.excepthook = unraisable, in_thread
    try:
        working.laps()
        return working.end()
    finally:
        sys.unraisablehook, threading.excepthook = hooks
        logger.removeHandler(listener)


def main(arguments: list[str] | None = None) -> int:
    plan = Plan()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pool_stress", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=plan.seconds / 60)
    parser.add_argument("--threads", type=int, default=plan.threads)
    parser.add_argument("--tasks", type=int, default=plan.tasks)
    parser.add_argument("--lap", type=float, default=plan.lap_seconds, help="seconds between two pauses")
    parser.add_argument("--seed", type=int, default=plan.seed)
    parser.add_argument("--driver", choices=("asyncpg", "psycopg"), default=plan.async_driver, help="of the tasks")
    parser.add_argument("--bare", action="store_true", help="without a watch")
    given = parser.parse_args(arguments)
    plan = Plan(
        seconds=given.minutes * 60,
        threads=given.threads,
        tasks=given.tasks,
        lap_seconds=given.lap,
        seed=given.seed,
        async_driver=given.driver,
        watched=not given.bare,
    )
    warnings.simplefilter("ignore")
    for name in ("sqlalchemy.pool", "sqla_watch"):  # what they say is counted, or meant to be
        logging.getLogger(name).addHandler(logging.NullHandler())
        logging.getLogger(name).propagate = False
    named = os.environ.get("SQLA_WATCH_TEST_DATABASE_URL")
    with contextlib.ExitStack() as stack:
        url = named or stack.enter_context(EmbeddedServer()).url()
        outcome = run(url, plan, lambda line: print(line, flush=True))
    print("\nstories:", dict(outcome.stories.most_common()))
    print("errors of the application:", dict(outcome.errors.most_common()))
    print("findings:", dict(outcome.findings.most_common()))
    for fault in outcome.faults:
        print(f"\nFAULT {fault}")
    for what, numbers in (("blocks of memory", outcome.blocks), ("resident megabytes", outcome.megabytes)):
        if numbers:
            print(f"{what}: {numbers[0]:.0f} after the first minute, {numbers[-1]:.0f} at the end")
    print(f"\n{len(outcome.faults)} faults")
    return 1 if outcome.faults else 0


if __name__ == "__main__":
    sys.exit(main())
