"""The times which are told agree with what others saw: PostgreSQL itself, and the code that was measured.

Every time that is told lies between two which are not ours. A COMMIT takes longer than PostgreSQL has it, and not as
long as the code that called it sees; a transaction is idle for longer than the code has slept, and not as long as
PostgreSQL has waited. What comes late on a busy machine lies between the two, so that this holds there, too. And the
two agree with each other within 5 ms or 5 %, so that what is between them agrees with both; where they do not, it is
measured again. `-s` prints the figures.
"""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial, wraps
from itertools import pairwise
from statistics import median
from time import perf_counter as clock
from typing import Any, NamedTuple
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import Connection, Engine, TextClause, create_engine, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine

import sqla_watch
from sqla_watch import Scope, Settings, Watch
from tests.conftest import url_for
from tests.support import watched_async_engine

pytestmark = pytest.mark.filterwarnings("ignore::sqla_watch.SqlaWatchWarning")

WORKERS, POOL_SIZE = 50, 5
TOLERATED_SECONDS, TOLERATED_SHARE = 0.005, 0.05
ATTEMPTS = 3
CLOCKS = 0.0005
"""Seconds by which a bound may be crossed: the server has a clock of its own, and changes of state which are too short
to be sampled."""

SLOW_COMMIT = """
    CREATE TABLE job (worker integer, commit_seconds float, fails boolean);
    CREATE FUNCTION take_time() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        PERFORM pg_sleep(NEW.commit_seconds);
        IF NEW.fails THEN RAISE EXCEPTION 'not today'; END IF;
        RETURN NULL;
    END $$;
    CREATE CONSTRAINT TRIGGER slow_commit AFTER INSERT ON job
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION take_time();
"""
SAMPLES = """
    SET statement_timeout = '60s';
    DROP TABLE IF EXISTS sample;
    CREATE TEMPORARY TABLE sample (
        process integer, state text, query text, begun timestamptz, since timestamptz,
        PRIMARY KEY (process, state, since)
    );
"""
SAMPLE = """
    DO $$ BEGIN
        RAISE NOTICE 'from now on';
        WHILE EXISTS (SELECT FROM pg_stat_activity WHERE datname = '{name}') LOOP
            INSERT INTO sample
                SELECT pid, state, query, xact_start, state_change FROM pg_stat_activity
                WHERE datname = '{name}' AND backend_type = 'client backend' AND state IS NOT NULL
                ON CONFLICT DO NOTHING;
            PERFORM pg_sleep(0.002);
            PERFORM pg_stat_clear_snapshot();
        END LOOP;
    END $$
"""
READ_SAMPLES = """
    SELECT process, state, query, extract(epoch FROM begun)::float, extract(epoch FROM since)::float FROM sample
    ORDER BY process, since
"""
TOTALS = "SELECT active_time / 1000, idle_in_transaction_time / 1000 FROM pg_stat_database WHERE datname = %s"


class Sample(NamedTuple):
    """What a server's process was doing, and since when."""

    process: int
    state: str
    query: str
    begun: float | None
    """When its transaction began."""
    since: float


class ServersView:
    """A database of its own, and what PostgreSQL tells of it over a connection that nobody watches."""

    def __init__(self, url: str) -> None:
        self.name = f"agreement_{uuid4().hex[:12]}"
        self._connection = psycopg.connect(conninfo(url), autocommit=True)
        self._connection.execute(f"CREATE DATABASE {self.name}")
        self.url = make_url(url).set(database=self.name).render_as_string(hide_password=False)
        with psycopg.connect(conninfo(self.url)) as own:
            own.execute(SLOW_COMMIT)
        self._samples = threading.Event()
        self._connection.add_notice_handler(lambda notice: self._samples.set())
        self.samples: list[Sample] = []
        self.active = self.idle = 0.0
        """Seconds of all connections together, in statements and idle in transaction, by pg_stat_database."""
        self._late = 0.0

    def count(self, connection: Connection) -> None:
        """Have the server add up what a connection has done so far.

        The end of this is counted later; how long that may have taken is known from outside.
        """
        connection.execute(text("SELECT pg_stat_force_next_flush()"))
        started = clock()
        connection.rollback()
        self._late += clock() - started

    def begin(self) -> None:
        """Sample pg_stat_activity every two milliseconds, until the last connection to the database is closed."""
        self._connection.execute(SAMPLES)
        self._samples.clear()
        self._before = self._totals()
        self._sampler = threading.Thread(target=self._connection.execute, args=[SAMPLE.format(name=self.name)])
        self._sampler.start()
        assert self._samples.wait(10)

    def end(self) -> None:
        """Take what was seen; everybody has closed their connections."""
        self._sampler.join()
        self.samples = [Sample(*row) for row in self._connection.execute(READ_SAMPLES)]
        self.active, self.idle = (after - before for before, after in zip(self._before, self._totals(), strict=True))
        self.active -= self._late
        self._late = 0.0

    def close(self) -> None:
        with self._connection:
            self._connection.execute(f"DROP DATABASE {self.name} WITH (FORCE)")
        self._connection.close()

    def _totals(self) -> tuple[float, float]:
        (totals,) = self._connection.execute(TOTALS, [self.name])
        return totals


def conninfo(url: str) -> str:
    """The URL as PostgreSQL's own library has it."""
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


@contextmanager
def watched_engine(url: str, **options: Any) -> Iterator[Engine]:
    """An Engine with psycopg that is watched with the test profile's settings, and disposed of."""
    engine = create_engine(url_for(url, "psycopg"), **options)
    sqla_watch.install(engine, settings=Settings(profile="test"))
    try:
        yield engine
    finally:
        engine.dispose()


@pytest.fixture
def server(database_url: str) -> Iterator[ServersView]:
    view = ServersView(database_url)
    yield view
    view.close()


class Figure(NamedTuple):
    """A time that is told, and those two that are not ours and have to be around it, all in seconds."""

    what: str
    of: object
    least: float
    told: float
    most: float
    slack: float = CLOCKS

    @property
    def is_in_between(self) -> bool:
        return self.least - self.slack <= self.told <= self.most + self.slack


def tolerated(truth: float) -> float:
    return max(TOLERATED_SECONDS, TOLERATED_SHARE * truth)


def agreeing(measure: Callable[..., list[Figure]]) -> Callable[..., None]:
    """Make a test of what measures: each figure is between its two truths, and these agree with each other."""

    @wraps(measure)
    def test(**fixtures: Any) -> None:
        for _ in range(ATTEMPTS):
            figures = measure(**fixtures)
            assert figures
            by_kind: dict[str, list[Figure]] = {}
            for figure in figures:
                by_kind.setdefault(figure.what, []).append(figure)
            show(by_kind)
            assert not [figure for figure in figures if not figure.is_in_between]
            apart = [what for what, found in by_kind.items() if not truths_agree(found)]
            if not apart:
                return
        pytest.skip(f"the machine is too busy: {', '.join(apart)} as told is between its truths, which are apart")

    return test


def truths_agree(figures: list[Figure]) -> bool:
    """Whether half of the figures are so near to both of their truths that they agree with either."""
    apart = median(figure.most - figure.least for figure in figures)
    return apart <= tolerated(median(figure.least for figure in figures))


def show(by_kind: dict[str, list[Figure]]) -> None:
    """Print how far what is told is from the two truths."""
    print(f"\n{'':<12}{'times':>6}{'told s':>16}{'above the least, ms':>26}{'below the most, ms':>26}")
    for what, found in by_kind.items():
        told = [figure.told for figure in found]
        line = f"{what:<12}{len(found):>6}{min(told):>9.3f} …{max(told):>6.3f}"
        for distances in (
            [(figure.told - figure.least) * 1000 for figure in found],
            [(figure.most - figure.told) * 1000 for figure in found],
        ):
            line += f"{min(distances):>10.2f} …{median(distances):>5.2f} …{max(distances):>6.2f}"
        print(line)


# 50 interleaved on a pool of 5


class Plan(NamedTuple):
    """What a worker does; no two of them do the same."""

    number: int

    @property
    def reads(self) -> TextClause:
        return text(f"SELECT pg_sleep(0.12) /* worker {self.number} */")

    @property
    def gaps(self) -> tuple[float, float]:
        """Seconds for which its transaction sits idle: after the first statement, and after the second."""
        return 0.06 + 0.002 * self.number, 0.16 - 0.002 * self.number

    @property
    def writes(self) -> tuple[TextClause, dict[str, float]]:
        """An INSERT that makes the COMMIT slow."""
        insert = "INSERT INTO job SELECT :worker, :commit_seconds FROM pg_sleep(0.09)"
        return text(insert), {"worker": self.number, "commit_seconds": 0.03 + 0.001 * self.number}

    after = 0.03
    """Seconds for which it keeps the connection after its COMMIT."""


class Moments(NamedTuple):
    """A worker's own clock: before and after each of its calls."""

    asked: float
    got: float
    reads: float
    read: float
    writes: float
    wrote: float
    commits: float
    committed: float
    returns: float
    returned: float


class Worker(NamedTuple):
    """What a worker has seen itself, and what was told of it."""

    plan: Plan
    process: int
    """The server's process that it had."""
    at: Moments
    told: dict[str, float]


def told(scope: Scope) -> dict[str, float]:
    """What is told of a scope with one transaction, in seconds."""
    (transaction,) = scope.record.transactions
    length = transaction.finished - transaction.started
    return {
        "wait": scope.wait_seconds,
        "hold": scope.held_seconds,
        "length": length / 1e9,
        "statements": transaction.database / 1e9,
        "COMMIT": transaction.ending / 1e9,
        "idle": (length - transaction.database - transaction.ending) / 1e9,
        "longest gap": transaction.gap / 1e9,
    }


def work(engine: Engine, plan: Plan) -> Worker:
    with sqla_watch.scope(f"worker {plan.number}") as scope:
        at = [clock()]
        connection = engine.connect()
        at.append(clock())
        driver_connection: Any = connection.connection.driver_connection
        at.append(clock())
        connection.execute(plan.reads)
        at.append(clock())
        time.sleep(plan.gaps[0])
        at.append(clock())
        connection.execute(*plan.writes)
        at.append(clock())
        time.sleep(plan.gaps[1])
        at.append(clock())
        connection.commit()
        at.append(clock())
        time.sleep(plan.after)
        at.append(clock())
        connection.close()
        at.append(clock())
        return Worker(plan, process_of(driver_connection), Moments(*at), told(scope))


async def work_async(engine: AsyncEngine, plan: Plan) -> Worker:
    with sqla_watch.scope(f"worker {plan.number}") as scope:
        at = [clock()]
        connection = await engine.connect()
        at.append(clock())
        driver_connection: Any = (await connection.get_raw_connection()).driver_connection
        at.append(clock())
        await connection.execute(plan.reads)
        at.append(clock())
        await asyncio.sleep(plan.gaps[0])
        at.append(clock())
        await connection.execute(*plan.writes)
        at.append(clock())
        await asyncio.sleep(plan.gaps[1])
        at.append(clock())
        await connection.commit()
        at.append(clock())
        await asyncio.sleep(plan.after)
        at.append(clock())
        await connection.close()
        at.append(clock())
        return Worker(plan, process_of(driver_connection), Moments(*at), told(scope))


def process_of(driver_connection: Any) -> int:
    """The number of the server's process, as the driver knows it."""
    if hasattr(driver_connection, "get_server_pid"):
        return driver_connection.get_server_pid()
    return driver_connection.info.backend_pid


def in_threads(server: ServersView) -> list[Worker]:
    start = threading.Barrier(WORKERS)

    def begin(number: int) -> Worker:
        start.wait()
        return work(engine, Plan(number))

    with watched_engine(server.url, pool_size=POOL_SIZE, max_overflow=0) as engine:
        for connection in [engine.connect() for _ in range(POOL_SIZE)]:  # to open a connection is no wait
            server.count(connection)
            connection.close()
        server.begin()
        with ThreadPoolExecutor(WORKERS) as executor:
            return list(executor.map(begin, range(WORKERS)))


def in_tasks(server: ServersView, driver: str) -> list[Worker]:
    async def run() -> list[Worker]:
        engines = watched_async_engine(server.url, driver, pool_size=POOL_SIZE, max_overflow=0)
        async with engines as engine:
            for connection in [await engine.connect() for _ in range(POOL_SIZE)]:
                await connection.run_sync(server.count)
                await connection.close()
            server.begin()
            return await asyncio.gather(*(work_async(engine, Plan(number)) for number in range(WORKERS)))

    return asyncio.run(run())


def seen_by_the_server(samples: list[Sample]) -> dict[int, dict[str, float]]:
    """The seconds of each worker's transaction, from the moments at which its server's process changed its state."""
    transactions: dict[tuple[int, float], list[tuple[Sample, Sample]]] = {}
    for sample, after in pairwise(samples):
        if sample.begun is not None and sample.process == after.process:
            transactions.setdefault((sample.process, sample.begun), []).append((sample, after))
    found = {}
    for (_, begun), phases in transactions.items():
        spent: dict[tuple[str, str], float] = {}
        for sample, after in phases:
            phase = (sample.query.strip(";").split()[0], sample.state)
            spent[phase] = spent.get(phase, 0) + after.since - sample.since
        last = phases[-1][1]
        try:
            gaps = spent["SELECT", "idle in transaction"], spent["INSERT", "idle in transaction"]
            statements = spent["SELECT", "active"] + spent["INSERT", "active"]
            commit = spent["COMMIT", "active"]
        except KeyError:  # a state that had no sample
            continue
        (number,) = {int(number) for sample, _ in phases for number in re.findall(r"worker (\d+) ", sample.query)}
        if last.state == "idle":
            found[number] = {
                "length": last.since - begun,
                "statements": statements,
                "COMMIT": commit,
                "idle": sum(gaps),
                "longest gap": max(gaps),
            }
    return found


def figures_of(server: ServersView, workers: list[Worker]) -> Iterator[Figure]:
    """Everything that is told of the workers, each between what they and the server have seen."""
    seen = seen_by_the_server(server.samples)
    freed: dict[int, float] = {}
    for worker in sorted(workers, key=lambda worker: worker.at.got):
        number, at, told = worker.plan.number, worker.at, worker.told
        free_since = freed.get(worker.process, at.asked)  # the worker before began to return the same connection
        freed[worker.process] = at.returns
        if free_since > at.asked:
            least = free_since - at.asked
            # SQLAlchemy does a few things before it asks its pool.
            yield Figure("wait", number, least, told["wait"], at.got - at.asked, slack=tolerated(least))
        else:
            yield Figure("at once", number, 0, told["wait"], at.got - at.asked)
        yield Figure("hold", number, at.returns - at.got, told["hold"], at.returned - max(free_since, at.asked))
        if number not in seen:
            continue
        least = dict(seen[number])
        gaps = at.writes - at.read, at.commits - at.wrote
        most = {
            "length": at.committed - at.reads,
            "statements": at.read - at.reads + at.wrote - at.writes,
            "COMMIT": at.committed - at.commits,
            "idle": least["idle"],
            "longest gap": least["longest gap"],
        }
        least |= {"idle": sum(gaps), "longest gap": max(gaps)}
        for what in most:
            yield Figure(what, number, least[what], told[what], most[what])


@pytest.mark.parametrize(
    "run",
    [
        pytest.param(in_threads, id="threads-psycopg"),
        pytest.param(partial(in_tasks, driver="psycopg"), id="tasks-psycopg"),
        pytest.param(partial(in_tasks, driver="asyncpg"), id="tasks-asyncpg"),
    ],
)
@agreeing
def test_what_50_workers_wait_hold_idle_and_commit_is_what_the_server_and_they_have_seen(
    server: ServersView, run: Callable[[ServersView], list[Worker]]
) -> list[Figure]:
    workers = run(server)
    server.end()
    figures = list(figures_of(server, workers))
    slept = sum(at.writes - at.read + at.commits - at.wrote for *_, at, _ in workers)
    called = sum(at.committed - at.reads for *_, at, _ in workers) - slept
    worked = sum(worker.told["statements"] + worker.told["COMMIT"] for worker in workers)
    totals = [
        Figure("all idle", "pg_stat_database", slept, sum(worker.told["idle"] for worker in workers), server.idle),
        Figure("all work", "pg_stat_database", server.active, worked, called),
    ]

    counts = Counter(figure.what for figure in figures)
    assert (counts["at once"], counts["wait"], counts["hold"]) == (POOL_SIZE, WORKERS - POOL_SIZE, WORKERS)
    assert counts["idle"] == counts["COMMIT"] > WORKERS * 0.9  # a sample may come late
    return [*figures, *totals]


# One transaction of each kind


class Pauses:
    """Seconds for which a story sleeps, with a transaction open and without one, by a clock that is not ours."""

    def __init__(self) -> None:
        self.inside = self.outside = 0.0

    def in_transaction(self, seconds: float) -> None:
        started = clock()
        time.sleep(seconds)
        self.inside += clock() - started

    def without_transaction(self, seconds: float) -> None:
        started = clock()
        time.sleep(seconds)
        self.outside += clock() - started


def write(connection: Connection, *, commit_seconds: float, fails: bool = False) -> None:
    """Send an INSERT that makes the COMMIT slow."""
    values = {"commit_seconds": commit_seconds, "fails": fails}
    connection.execute(text("INSERT INTO job VALUES (0, :commit_seconds, :fails)"), values)


def commits(connection: Connection, pauses: Pauses) -> None:
    connection.execute(text("SELECT pg_sleep(0.2)"))
    pauses.in_transaction(0.1)
    write(connection, commit_seconds=0.1)
    pauses.in_transaction(0.1)
    connection.commit()


def commits_twice(connection: Connection, pauses: Pauses) -> None:
    for _ in range(2):
        write(connection, commit_seconds=0.1)
        pauses.in_transaction(0.1)
        connection.commit()
        pauses.without_transaction(0.1)


def rolls_back(connection: Connection, pauses: Pauses) -> None:
    connection.execute(text("SELECT pg_sleep(0.2)"))
    pauses.in_transaction(0.2)
    connection.rollback()


def is_returned_as_it_is(connection: Connection, pauses: Pauses) -> None:
    connection.execute(text("SELECT pg_sleep(0.2)"))
    pauses.in_transaction(0.2)


def fails_at_its_commit(connection: Connection, pauses: Pauses) -> None:
    write(connection, commit_seconds=0.2, fails=True)
    pauses.in_transaction(0.2)
    with pytest.raises(DBAPIError, match="not today"):
        connection.commit()


def has_failed_before(connection: Connection, pauses: Pauses) -> None:
    with pytest.raises(DBAPIError, match="division by zero"):
        connection.execute(text("SELECT 1 / (SELECT count(*) FROM job) FROM pg_sleep(0.2)"))
    pauses.in_transaction(0.2)
    connection.rollback()


def goes_back_to_a_savepoint(connection: Connection, pauses: Pauses) -> None:
    with connection.begin_nested() as savepoint:
        write(connection, commit_seconds=1)  # rolled back, so that the COMMIT is not slow
        pauses.in_transaction(0.1)
        savepoint.rollback()
    pauses.in_transaction(0.1)
    connection.execute(text("SELECT pg_sleep(0.2)"))
    connection.commit()


def streams(connection: Connection, pauses: Pauses) -> None:
    rows = connection.execution_options(stream_results=True).execute(SLOW_ROWS)
    for _ in rows.partitions(15):
        pauses.in_transaction(0.05)
    connection.commit()


def streams_and_reads_all(connection: Connection, pauses: Pauses) -> None:
    connection.execution_options(stream_results=True, yield_per=15).execute(SLOW_ROWS).fetchmany()
    pauses.in_transaction(0.1)
    connection.commit()


def commits_each_statement(connection: Connection, pauses: Pauses) -> None:
    connection.execution_options(isolation_level="AUTOCOMMIT")
    write(connection, commit_seconds=0.1)
    pauses.without_transaction(0.1)
    connection.execute(text("SELECT pg_sleep(0.1)"))
    pauses.without_transaction(0.1)


SLOW_ROWS = text("SELECT number, pg_sleep(0.004) FROM generate_series(1, 60) AS number")
STORIES = [
    commits,
    commits_twice,
    rolls_back,
    is_returned_as_it_is,
    fails_at_its_commit,
    has_failed_before,
    goes_back_to_a_savepoint,
    streams,
    streams_and_reads_all,
    commits_each_statement,
]


Story = Callable[[Connection, Pauses], None]


def idle_and_work(scope: Scope) -> tuple[float, float]:
    """Seconds idle in transactions, and in statements, COMMIT and ROLLBACK, as they are told."""
    idle = sum(each.finished - each.started - each.database - each.ending for each in scope.record.transactions)
    return idle / 1e9, scope.database_seconds + scope.commit_seconds


def story_in_a_thread(server: ServersView, story: Story, pauses: Pauses) -> tuple[float, float, float]:
    """Tell a story with psycopg; return the seconds idle, those at work, and how long it took."""
    with watched_engine(server.url) as engine:
        with engine.connect() as connection:
            server.count(connection)
        server.begin()
        with sqla_watch.scope("story") as scope:
            with engine.connect() as connection:
                started = clock()
                story(connection, pauses)
            took = clock() - started
            return *idle_and_work(scope), took


def story_in_a_task(server: ServersView, story: Story, pauses: Pauses) -> tuple[float, float, float]:
    """Tell a story with asyncpg."""

    async def run() -> tuple[float, float, float]:
        async with watched_async_engine(server.url) as engine:
            async with engine.connect() as connection:
                await connection.run_sync(server.count)
            server.begin()
            with sqla_watch.scope("story") as scope:
                async with engine.connect() as connection:
                    started = clock()
                    await connection.run_sync(story, pauses)
                took = clock() - started
                return *idle_and_work(scope), took

    return asyncio.run(run())


@pytest.mark.parametrize(
    "tell", [pytest.param(story_in_a_thread, id="psycopg"), pytest.param(story_in_a_task, id="asyncpg")]
)
@pytest.mark.parametrize("story", STORIES)
@agreeing
def test_idle_time_and_work_are_the_servers_when_a_transaction(
    server: ServersView, story: Story, tell: Callable[[ServersView, Story, Pauses], tuple[float, float, float]]
) -> list[Figure]:
    pauses = Pauses()
    idle, work, took = tell(server, story, pauses)
    server.end()
    return [
        Figure("idle", "pg_stat_database", pauses.inside, idle, server.idle),
        Figure("work", "pg_stat_database", server.active, work, took - pauses.inside - pauses.outside),
    ]


# Waits, and what is none


@contextmanager
def released_after(engine: Engine, seconds: float) -> Iterator[list[float]]:
    """Another thread has a connection out, and returns it after `seconds`; gives the moment at which it does."""
    taken = threading.Event()
    moments: list[float] = []

    def hold() -> None:
        connection = engine.connect()
        taken.set()
        time.sleep(seconds)
        moments.append(clock())
        connection.close()

    holder = threading.Thread(target=hold)
    holder.start()
    taken.wait()
    try:
        yield moments
    finally:
        holder.join()


@agreeing
def test_a_wait_lasts_until_the_holder_lets_go(shop_url: str) -> list[Figure]:
    with (
        watched_engine(shop_url, pool_size=1, max_overflow=0) as engine,
        released_after(engine, 0.3) as released,
        sqla_watch.scope("waits") as scope,
    ):
        asked = clock()
        with engine.connect():
            got = clock()
        returned = clock()
        waited, held = scope.wait_seconds, scope.held_seconds
    least = released[0] - asked
    return [
        Figure("wait", "released", least, waited, got - asked, slack=tolerated(least)),
        Figure("hold", "own clock", 0, held, returned - released[0]),
    ]


@agreeing
def test_a_wait_in_vain_lasts_until_its_time_out(shop_url: str) -> list[Figure]:
    with (
        watched_engine(shop_url, pool_size=1, max_overflow=0, pool_timeout=0.3) as engine,
        released_after(engine, 1.0),
        sqla_watch.scope("waits") as scope,
    ):
        asked = clock()
        with pytest.raises(PoolTimeout):
            engine.connect()
        return [Figure("wait", "time-out", 0.3, scope.wait_seconds, clock() - asked)]


@pytest.mark.parametrize(
    ("error", "pool_timeout", "timeout"),
    [
        pytest.param(PoolTimeout, 0.3, 30, id="its time-out"),
        pytest.param(TimeoutError, 30, 0.3, id="its cancellation"),
    ],
)
@agreeing
def test_a_task_waits_in_vain_until(
    shop_url: str, error: type[Exception], pool_timeout: float, timeout: float
) -> list[Figure]:
    async def wait() -> list[Figure]:
        engines = watched_async_engine(shop_url, pool_size=1, max_overflow=0, pool_timeout=pool_timeout)
        async with engines as engine, engine.connect():
            with sqla_watch.scope("waits") as scope:
                asked = clock()
                with pytest.raises(error):
                    await asyncio.wait_for(engine.connect(), timeout)
                return [Figure("wait", "in vain", 0.3, scope.wait_seconds, clock() - asked)]

    return asyncio.run(wait())


@agreeing
def test_tasks_that_ask_all_at_once_are_seen_waiting(shop_url: str) -> list[Figure]:
    async def take(engine: AsyncEngine) -> tuple[float, float, float, float]:
        with sqla_watch.scope("takes") as scope:
            asked = clock()
            async with engine.connect():
                got = clock()
                await asyncio.sleep(0.2)
                returns = clock()
            return asked, got, returns, scope.wait_seconds

    async def ask_at_once() -> list[Figure]:
        async with watched_async_engine(shop_url, pool_size=1, max_overflow=0) as engine:
            async with engine.connect():
                pass  # the pool has its connection
            tasks = [asyncio.create_task(take(engine)) for _ in range(4)]
            await asyncio.sleep(0.1)
            (pool,) = sqla_watch.install(engine).snapshot().pools
            taken = sorted(await asyncio.gather(*tasks), key=lambda each: each[1])
            assert pool.waiting == 3
        return [
            Figure("wait", "released", before[2] - asked, waited, got - asked, slack=tolerated(before[2] - asked))
            for before, (asked, got, _, waited) in pairwise(taken)
        ]

    return asyncio.run(ask_at_once())


class Slow:
    """What can be made slow about a connection, and how long it has been in that."""

    def __init__(self, url: str) -> None:
        self._conninfo = conninfo(url)
        self.opening = self.statements = self.slept = 0.0

    def sleep(self, seconds: float) -> None:
        started = clock()
        time.sleep(seconds)
        self.slept += clock() - started

    def open(self) -> psycopg.Connection:
        slow = self

        class Cursor(psycopg.Cursor):
            def execute(self, *arguments: Any, **options: Any) -> Any:
                slow.sleep(slow.statements)
                return super().execute(*arguments, **options)

        self.sleep(self.opening)
        return psycopg.connect(self._conninfo, cursor_factory=Cursor)


def opening(engine: Engine, slow: Slow) -> list[Figure]:
    """Take a connection that has to be opened, slowly."""
    slow.opening, slow.slept = 0.2, 0
    with sqla_watch.scope("opens") as scope:
        asked = clock()
        with engine.connect():
            got = clock()
        assert scope.wait_seconds == 0
        returned = clock()
        return [
            Figure("opening", "own clock", slow.slept, scope.connect_seconds, got - asked),
            Figure("hold", "own clock", 0, scope.held_seconds, returned - asked - slow.slept),
        ]


@agreeing
def test_to_open_a_connection_is_no_wait(shop_url: str) -> list[Figure]:
    slow = Slow(shop_url)
    with watched_engine(shop_url, creator=slow.open, pool_size=1, max_overflow=0) as engine:
        engine.connect().close()
        engine.dispose()
        return opening(engine, slow)


@agreeing
def test_to_open_a_connection_again_is_not_to_hold_it(shop_url: str) -> list[Figure]:
    slow = Slow(shop_url)
    with watched_engine(shop_url, creator=slow.open, pool_size=1, max_overflow=0, pool_recycle=0) as engine:
        engine.connect().close()
        return opening(engine, slow)


@agreeing
def test_a_ping_after_a_wait_is_no_part_of_it(shop_url: str) -> list[Figure]:
    slow = Slow(shop_url)
    with watched_engine(shop_url, creator=slow.open, pool_size=1, max_overflow=0, pool_pre_ping=True) as engine:
        engine.connect().close()
        with released_after(engine, 0.3) as released, sqla_watch.scope("pings") as scope:
            slow.statements, slow.slept = 0.2, 0
            asked = clock()
            with engine.connect():
                got = clock()
            waited, pinged = scope.wait_seconds, scope.connect_seconds
    least = released[0] - asked
    return [
        Figure("wait", "released", least, waited, got - asked - slow.slept, slack=tolerated(least)),
        Figure("ping", "own clock", slow.slept, pinged, got - released[0]),
    ]


# What is open now


@contextmanager
def ages_by_the_server(process: int, url: str) -> Iterator[list[tuple[float, float]]]:
    """Seconds since the last change of state and since the transaction's beginning, before the block and after it."""
    ages = """
        SELECT extract(epoch FROM clock_timestamp() - state_change)::float,
            extract(epoch FROM clock_timestamp() - xact_start)::float
        FROM pg_stat_activity WHERE pid = %s
    """
    with psycopg.connect(conninfo(url), autocommit=True) as other:
        found = other.execute(ages, [process]).fetchall()
        yield found
        found += other.execute(ages, [process]).fetchall()


@agreeing
def test_a_snapshot_says_what_the_server_says(watch: Watch, engine: Engine, shop_url: str) -> list[Figure]:
    asked = clock()
    with engine.connect() as connection:
        got = begun = clock()
        connection.execute(text("SELECT pg_sleep(0.1)"))
        done = clock()
        time.sleep(0.2)
        process = process_of(connection.connection.driver_connection)
        with ages_by_the_server(process, shop_url) as ages:
            before = clock()
            (told,) = watch.snapshot().connections
            after = clock()
    return [
        Figure("held", "own clock", before - got, told.held_seconds, after - asked),
        Figure("transaction", "server", ages[0][1], told.transaction_seconds, after - begun),
        Figure("idle", "server", before - done, told.idle_seconds, ages[1][0]),
    ]


@agreeing
def test_a_snapshot_counts_no_wait_as_held(shop_url: str) -> list[Figure]:
    with (
        watched_engine(shop_url, pool_size=1, max_overflow=0) as engine,
        released_after(engine, 0.3) as released,
        engine.connect(),
    ):
        got = clock()
        time.sleep(0.1)
        before = clock()
        (told,) = sqla_watch.install(engine).snapshot().connections
        after = clock()
    return [Figure("held", "own clock", before - got, told.held_seconds, after - released[0])]
