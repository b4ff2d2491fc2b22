"""The pool's door: waits and connections are exact, opening one is no wait, and nothing is left behind on a record."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any
from weakref import ref

import psycopg
import pytest
from sqlalchemy import (
    AssertionPool,
    AsyncAdaptedQueuePool,
    Engine,
    NullPool,
    QueuePool,
    SingletonThreadPool,
    StaticPool,
    create_engine,
    event,
    func,
    make_url,
    select,
    text,
)
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

import sqla_watch
from sqla_watch import Settings
from sqla_watch.demo.models import Order
from sqla_watch.probes.checkout import all_out, out
from tests.support import connection_held_elsewhere, found, in_event_loop, watched_async_engine

pytestmark = pytest.mark.filterwarnings("ignore::sqla_watch.SqlaWatchWarning")

both_drivers = pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
TOLERANCE = 0.02
"""Seconds by which a wait may differ from the time around it."""

orders = select(Order.id).limit(1)


@pytest.fixture(autouse=True)
def _no_probe_failed(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    assert [record.getMessage() for record in caplog.get_records("call") if record.name == "sqla_watch"] == []


@pytest.fixture
def one(shop_url: str) -> Iterator[Engine]:
    """A watched engine with one connection, not open yet."""
    engine = create_engine(shop_url, pool_size=1, max_overflow=0, pool_timeout=0.1)
    sqla_watch.install(engine, settings=Settings(profile="test"))
    yield engine
    engine.dispose()


def traces(record: Any) -> list[str]:
    """What the watch has left on a pool's connection record."""
    return [name for name in vars(record) if "sqla_watch" in name]


# Waits


def test_a_wait_is_as_long_as_the_connection_was_held(one: Engine) -> None:
    one.connect().close()
    with connection_held_elsewhere(one, 0.08), sqla_watch.scope("waits") as scope:
        started = perf_counter()
        with one.connect() as connection:
            waited = perf_counter() - started
            connection.execute(orders)
    assert waited > 0.06
    assert scope.wait_seconds == pytest.approx(waited, abs=TOLERANCE)
    assert scope.connections == 1


@both_drivers
@in_event_loop
async def test_a_task_waits_as_long_as_the_connection_was_held(shop_url: str, driver: str) -> None:
    async with watched_async_engine(shop_url, driver, pool_size=1, max_overflow=0) as engine:
        await (await engine.connect()).close()
        waited = []

        async def use() -> None:
            started = perf_counter()
            async with engine.connect() as connection:
                waited.append(perf_counter() - started)
                await connection.execute(orders)
                await asyncio.sleep(0.06)

        with sqla_watch.scope("three in a row") as scope:
            await asyncio.gather(use(), use(), use())
    assert sum(waited) > 0.17
    assert scope.wait_seconds == pytest.approx(sum(waited), abs=3 * TOLERANCE)
    assert scope.connections == 3
    assert isinstance(engine.pool, AsyncAdaptedQueuePool)


def test_threads_wait_each_for_itself(one: Engine) -> None:
    one.connect().close()
    patient = create_engine(one.url, pool_size=1, max_overflow=0)
    sqla_watch.install(patient)
    waited = []

    def use() -> None:
        started = perf_counter()
        with patient.connect():
            waited.append(perf_counter() - started)
            time.sleep(0.05)

    with sqla_watch.scope("threads") as scope:
        threads = [threading.Thread(target=contextvars.copy_context().run, args=(use,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    patient.dispose()
    assert scope.connections == 3
    # The first one's time went into opening the connection; that is no wait.
    assert scope.wait_seconds == pytest.approx(sum(sorted(waited)[1:]), abs=3 * TOLERANCE)


def test_timeouts_are_counted_and_stay_the_applications(one: Engine) -> None:
    with one.connect(), sqla_watch.scope("timeouts") as scope:
        started = perf_counter()
        for _ in range(2):
            with pytest.raises(PoolTimeout, match="QueuePool limit of size 1 overflow 0 reached") as raised:
                one.connect()
            assert raised.value.code == "3o7r"
        waited = perf_counter() - started
    (finding,) = scope.findings
    assert finding.evidence["timeouts"] == 2
    assert waited >= 0.2
    assert scope.wait_seconds == pytest.approx(waited, abs=2 * TOLERANCE)
    assert scope.connections == 0


@both_drivers
@in_event_loop
async def test_a_task_that_is_cancelled_while_it_waits_takes_nothing_with_it(shop_url: str, driver: str) -> None:
    async with watched_async_engine(shop_url, driver, pool_size=1, max_overflow=0) as engine:

        async def use() -> None:
            async with engine.connect() as connection:
                await connection.execute(orders)

        with sqla_watch.scope("cancelled") as scope:
            async with engine.connect():
                task = asyncio.create_task(use())
                await asyncio.sleep(0.02)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            await use()
    assert scope.connections == 2
    assert scope.statements == 1


# Opening a connection is no wait


def slowly(url: str) -> Any:
    """A `creator` that takes 80 ms."""
    address = make_url(url)

    def create() -> Any:
        time.sleep(0.08)
        return psycopg.connect(
            host=address.query.get("host", address.host),
            port=address.port,
            user=address.username,
            password=address.password,
            dbname=address.database,
        )

    return create


def test_the_time_to_open_a_connection_is_no_wait(shop_url: str) -> None:
    engine = create_engine("postgresql+psycopg://", creator=slowly(shop_url), pool_size=1, max_overflow=2)
    sqla_watch.install(engine, settings=Settings(profile="test"))
    with sqla_watch.scope("opens three") as scope:
        started = perf_counter()
        with engine.connect(), engine.connect(), engine.connect() as connection:
            connection.execute(orders)
        assert perf_counter() - started > 0.24
    engine.dispose()
    assert scope.wait_seconds < TOLERANCE
    assert scope.connections == 3
    assert found(scope) == []


def test_of_waiting_and_then_opening_only_the_waiting_counts(shop_url: str) -> None:
    """The connection that comes back is broken; the one who waited opens another."""
    engine = create_engine("postgresql+psycopg://", creator=slowly(shop_url), pool_size=1, max_overflow=0)
    sqla_watch.install(engine)
    held = engine.connect()
    released = []

    def release() -> None:
        held.invalidate()
        released.append(perf_counter())
        held.close()

    thread = threading.Timer(0.06, release)
    with sqla_watch.scope("waits and opens") as scope:
        thread.start()
        started = perf_counter()
        with engine.connect() as connection:
            got = perf_counter()
            connection.execute(orders)
    thread.join()
    engine.dispose()
    assert got - released[0] > 0.08
    assert scope.wait_seconds == pytest.approx(released[0] - started, abs=TOLERANCE)
    assert scope.connections == 1


def test_a_connection_that_cannot_be_opened_is_none(shop_url: str) -> None:
    engine = create_engine(make_url(shop_url).set(database="nowhere"))
    sqla_watch.install(engine)
    with sqla_watch.scope("refused") as scope, pytest.raises(OperationalError, match="nowhere"):
        engine.connect()
    engine.dispose()
    assert scope.connections == 0
    assert scope.wait_seconds < TOLERANCE


# How long it was held, and how long it took to open


def test_connections_are_held_from_getting_one_to_its_return(one: Engine) -> None:
    one.connect().close()
    held = 0.0
    with sqla_watch.scope("held") as scope:
        for _ in range(3):
            with one.connect() as connection:
                got = perf_counter()
                connection.execute(orders)
                time.sleep(0.05)
                before = scope.held_seconds  # counted when it is returned
            held += perf_counter() - got
    assert held > 0.15
    assert scope.held_seconds == pytest.approx(held, abs=TOLERANCE)
    assert before < held - 0.05
    assert scope.connect_seconds == 0
    assert scope.to_dict()["held_seconds"] == round(scope.held_seconds, 6)


def test_a_wait_is_not_part_of_the_holding(one: Engine) -> None:
    patient = create_engine(one.url, pool_size=1, max_overflow=0)
    sqla_watch.install(patient, settings=Settings(profile="test"))
    with connection_held_elsewhere(patient, 0.15), sqla_watch.scope("waits") as scope:
        with patient.connect():
            got = perf_counter()
            time.sleep(0.05)
        held = perf_counter() - got
    patient.dispose()
    assert scope.held_seconds == pytest.approx(held, abs=TOLERANCE)
    assert scope.wait_seconds > 0.1


def test_the_time_to_open_connections_is_told_apart(shop_url: str) -> None:
    engine = create_engine("postgresql+psycopg://", creator=slowly(shop_url), pool_size=1, max_overflow=1)
    sqla_watch.install(engine, settings=Settings(profile="test"))
    with sqla_watch.scope("opens two") as scope:
        started = perf_counter()
        one, other = engine.connect(), engine.connect()
        opened = perf_counter() - started
        one.close()
        other.close()
        engine.connect().close()  # is open already
    engine.dispose()
    assert opened > 0.16
    assert scope.connect_seconds == pytest.approx(opened, abs=2 * TOLERANCE)
    assert scope.held_seconds < opened / 2 + 2 * TOLERANCE
    assert scope.to_dict()["connect_seconds"] == round(scope.connect_seconds, 6)


def test_the_time_to_ping_belongs_to_connecting(shop_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = create_engine(shop_url, pool_pre_ping=True, pool_size=1)
    ping = engine.dialect.do_ping

    pings = []

    def slow_ping(connection: Any) -> bool:
        started = perf_counter()
        time.sleep(0.05)
        alive = ping(connection)
        pings.append(perf_counter() - started)
        return alive

    monkeypatch.setattr(engine.dialect, "do_ping", slow_ping)
    sqla_watch.install(engine, settings=Settings(profile="test"))
    engine.connect().close()
    with sqla_watch.scope("pings") as scope, engine.connect():
        pass
    engine.dispose()
    (ping_seconds,) = pings  # one that was just opened is not pinged
    assert scope.connect_seconds == pytest.approx(ping_seconds, abs=TOLERANCE)
    assert scope.wait_seconds == 0


@both_drivers
@in_event_loop
async def test_tasks_hold_connections_each_for_itself(shop_url: str, driver: str) -> None:
    async with watched_async_engine(shop_url, driver, pool_size=3) as engine:
        held = []

        async def use(seconds: float) -> None:
            async with engine.connect() as connection:
                got = perf_counter()
                await connection.execute(orders)
                await asyncio.sleep(seconds)
            held.append(perf_counter() - got)

        with sqla_watch.scope("three at once") as scope:
            await asyncio.gather(use(0.05), use(0.1), use(0.15))
    assert scope.held_seconds == pytest.approx(sum(held), abs=3 * TOLERANCE)
    assert scope.connect_seconds > 0  # three were opened


# Every kind of pool


@pytest.mark.parametrize("kind", [QueuePool, NullPool, StaticPool, SingletonThreadPool, AssertionPool])
def test_every_pool_works_and_keeps_its_name(shop_url: str, kind: type) -> None:
    engine = create_engine(shop_url, poolclass=kind)
    name, shown = type(engine.pool).__name__, engine.pool.status().partition(":")[0]
    watch = sqla_watch.install(engine)
    for _ in range(2):  # before and after dispose()
        assert isinstance(engine.pool, kind)
        assert type(engine.pool).__name__ == name
        assert type(engine.pool).__module__ == kind.__module__
        assert engine.pool.status().partition(":")[0] == shown
        with sqla_watch.scope("pool") as scope:
            for _ in range(3):
                with engine.begin() as connection:
                    assert len(connection.execute(orders).all()) == 1
        assert scope.statements == 3
        assert scope.transactions == 3
        assert scope.connections == 3
        engine.dispose()
    watch.uninstall()
    assert type(engine.pool) is kind
    engine.dispose()
    assert type(engine.pool) is kind


def test_a_pool_that_two_engines_share_is_watched_until_the_last_of_them_is_not(shop_url: str) -> None:
    first = create_engine(shop_url, pool_size=1, max_overflow=0)
    second = create_engine(shop_url, pool=first.pool)
    watch_of_first = sqla_watch.install(first, settings=Settings(profile="test"))
    watch_of_second = sqla_watch.install(second)
    watch_of_first.uninstall()
    with sqla_watch.scope("shared") as scope, second.connect() as connection:
        connection.execute(orders)
    assert scope.connections == 1
    watch_of_second.uninstall()
    assert type(second.pool) is QueuePool
    first.dispose()


def test_a_pool_of_the_applications_own_keeps_its_methods(shop_url: str) -> None:
    class CountingPool(QueuePool):
        asked = 0

        def _do_get(self) -> Any:
            self.asked += 1
            return super()._do_get()

    engine = create_engine(shop_url, poolclass=CountingPool)
    watch = sqla_watch.install(engine)
    with sqla_watch.scope("own pool") as scope, engine.connect() as connection:
        connection.execute(orders)
    assert isinstance(engine.pool, CountingPool)
    assert engine.pool.asked == 1
    assert scope.connections == 1
    watch.uninstall()
    assert type(engine.pool) is CountingPool
    engine.dispose()


def test_a_static_pool_hands_its_one_connection_to_several(tmp_path: Path) -> None:
    engine = create_engine("sqlite://", poolclass=StaticPool)
    sqla_watch.install(engine)
    with sqla_watch.scope("static") as scope, engine.connect() as first:
        first.execute(text("SELECT 1")).all()
        with engine.connect() as second:
            second.execute(text("SELECT 2")).all()
        first.execute(text("SELECT 3")).all()
    engine.dispose()
    assert scope.statements == 3
    assert scope.rows == 3


def test_a_pool_for_each_thread(tmp_path: Path) -> None:
    """SQLite's databases in memory: one connection for each thread, also where it is asked for twice."""
    engine = create_engine("sqlite://", poolclass=SingletonThreadPool)
    sqla_watch.install(engine)

    def use() -> None:
        with engine.connect() as first, engine.connect() as second:
            first.execute(text("SELECT 1")).all()
            second.execute(text("SELECT 2")).all()

    with sqla_watch.scope("thread") as scope:
        use()
        thread = threading.Thread(target=contextvars.copy_context().run, args=(use,))
        thread.start()
        thread.join()
    engine.dispose()
    gc.collect()
    assert scope.statements == 4


def test_an_assertion_pool_asserts_as_ever(shop_url: str) -> None:
    engine = create_engine(shop_url, poolclass=AssertionPool)
    sqla_watch.install(engine)
    with sqla_watch.scope("assertion") as scope, engine.connect() as connection:
        with pytest.raises(AssertionError, match="connection is already checked out"):
            engine.connect()
        connection.execute(orders)
    engine.dispose()
    assert scope.connections == 1
    assert scope.statements == 1


@pytest.mark.parametrize("kind", [AsyncAdaptedQueuePool, NullPool, StaticPool])
@in_event_loop
async def test_every_asynchronous_pool_works(shop_url: str, kind: type) -> None:
    for driver in ("asyncpg", "psycopg"):
        engine = create_async_engine(make_url(shop_url).set(drivername=f"postgresql+{driver}"), poolclass=kind)
        watch = sqla_watch.install(engine)
        for _ in range(2):
            assert isinstance(engine.pool, kind)
            with sqla_watch.scope("pool") as scope:
                for _ in range(3):
                    async with AsyncSession(engine) as session:
                        assert await session.scalar(orders)
            assert scope.statements == 3
            assert scope.connections == 3
            await engine.dispose()
        watch.uninstall()
        assert type(engine.pool) is kind
        await engine.dispose()


def test_a_disposed_engine_is_still_watched(one: Engine) -> None:
    one.connect().close()
    one.dispose()
    one.connect().close()
    with connection_held_elsewhere(one, 0.06), sqla_watch.scope("disposed") as scope, one.connect() as connection:
        connection.execute(orders)
    assert scope.wait_seconds > 0.04
    assert scope.statements == 1


def test_a_connection_that_was_out_when_the_engine_was_disposed_goes_quietly(one: Engine) -> None:
    with sqla_watch.scope("disposed under it") as scope:
        with one.connect() as connection:
            driver_connection: Any = connection.connection.driver_connection
            connection.execute(orders)
            one.dispose()
            connection.execute(orders)
        driver_connection.close()  # its pool is gone
        with one.connect() as connection:
            connection.execute(orders)
    assert scope.statements == 3
    assert scope.connections == 2
    assert scope.transactions == 2


# Connections


def test_connections_are_counted_one_for_one(shop_url: str) -> None:
    engine = create_engine(shop_url, pool_size=1, max_overflow=4, pool_pre_ping=True)
    sqla_watch.install(engine)
    with sqla_watch.scope("connections") as scope:
        with engine.connect(), engine.connect(), engine.connect():
            pass
        with Session(engine) as session:
            session.scalar(orders)
            session.commit()
            session.scalar(orders)
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(orders)
        Session(engine).close()
        raw = engine.raw_connection()
        raw.close()
    engine.dispose()
    # Three, two of the session (a commit gives its connection back), one in autocommit, one raw.
    assert scope.connections == 7


def test_many_threads_are_counted_one_for_one(shop_url: str) -> None:
    engine = create_engine(shop_url, pool_size=2, max_overflow=1)
    sqla_watch.install(engine)

    def use() -> None:
        for _ in range(20):
            with engine.begin() as connection:
                connection.execute(orders)

    with sqla_watch.scope("threads") as scope:
        threads = [threading.Thread(target=contextvars.copy_context().run, args=(use,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    engine.dispose()
    assert scope.connections == 160
    assert scope.statements == 160
    assert scope.transactions == 160


def test_a_connection_that_died_in_the_pool_is_replaced_by_the_ping(shop_url: str, engine: Engine) -> None:
    pinged = create_engine(shop_url, pool_pre_ping=True, pool_size=1)
    sqla_watch.install(pinged)
    with pinged.connect() as connection:
        pid = connection.scalar(select(func.pg_backend_pid()))
    with engine.connect() as other:
        other.execute(select(func.pg_terminate_backend(pid)))
    with sqla_watch.scope("replaced") as scope, pinged.connect() as connection:
        record = connection.connection._connection_record
        assert connection.scalar(select(func.pg_backend_pid())) != pid
    pinged.dispose()
    assert scope.connections == 1
    assert scope.statements == 1
    assert scope.errors == 0
    assert traces(record) == []


# Nothing is left behind


def test_a_returned_connection_has_nothing_of_ours_on_it(one: Engine) -> None:
    with sqla_watch.scope("returned"), one.connect() as connection:
        record = connection.connection._connection_record
        connection.execute(orders)
        assert traces(record) != []
    assert traces(record) == []
    with one.connect():  # without a scope
        pass
    assert traces(record) == []


def test_a_leaked_connection_comes_back_with_the_garbage_collector(one: Engine) -> None:
    with sqla_watch.scope("leaked") as scope:
        leaked = one.connect()
        record = leaked.connection._connection_record
        leaked.execute(orders)
        del leaked
        gc.collect()
        with one.connect() as connection:
            connection.execute(orders)
    assert scope.connections == 2
    assert scope.statements == 2
    assert scope.transactions == 2
    assert traces(record) == []


def test_a_leaked_connection_outside_of_any_scope_ends_its_implicit_scope(shop_url: str) -> None:
    closed = []
    engine = create_engine(shop_url)
    watch = sqla_watch.install(engine)
    watch.reporters.append(closed.append)
    leaked = engine.connect()
    leaked.execute(orders)
    del leaked
    gc.collect()
    engine.dispose()
    (scope,) = closed
    assert scope.kind == "implicit"
    assert scope.statements == 1
    assert scope.transactions == 1


@in_event_loop
async def test_a_leaked_asynchronous_connection_is_dropped_as_ever(shop_url: str) -> None:
    async with watched_async_engine(shop_url, "asyncpg") as engine:
        with sqla_watch.scope("leaked") as scope:
            leaked = await engine.connect()
            await leaked.execute(orders)
            del leaked
            with pytest.warns(match="garbage collector is trying to clean up"):
                gc.collect()
            async with engine.connect() as connection:
                await connection.execute(orders)
    assert scope.connections == 2
    assert scope.statements == 2


def test_an_invalidated_connection_leaves_nothing(one: Engine) -> None:
    with sqla_watch.scope("invalidated") as scope, one.connect() as connection:
        record = connection.connection._connection_record
        connection.execute(orders)
        connection.invalidate()
        connection.rollback()
        connection.execute(orders)
        again = connection.connection._connection_record
    assert scope.statements == 2
    assert scope.connections == 2
    assert scope.transactions == 2  # the server rolls back what was open on the first
    assert traces(record) == []
    assert traces(again) == []


def test_a_detached_connection_leaves_nothing_and_works_on(one: Engine) -> None:
    with sqla_watch.scope("detached") as scope:
        with one.connect() as connection:
            record = connection.connection._connection_record
            connection.execute(orders)
            connection.detach()
            assert traces(record) == []
            assert len(connection.execute(orders).all()) == 1
            connection.commit()
        with one.connect() as connection:
            connection.execute(orders)
    assert scope.connections == 2
    assert scope.errors == 0
    assert traces(record) == []


def test_a_connection_which_is_out_while_the_watch_goes_has_nothing_left(one: Engine) -> None:
    with sqla_watch.scope("uninstalled") as scope, one.connect() as connection:
        record = connection.connection._connection_record
        connection.execute(orders)
        sqla_watch.uninstall()
        connection.execute(orders)
    assert scope.statements == 1
    with one.connect() as connection:
        connection.execute(orders)
    assert traces(record) == []


def test_a_connection_which_was_out_while_one_watch_went_is_counted_by_the_next(one: Engine) -> None:
    closed = []
    with one.connect() as connection:
        connection.execute(orders)
        sqla_watch.uninstall()
    watch = sqla_watch.install(one, settings=Settings(profile="test"))
    watch.reporters.append(closed.append)
    with sqla_watch.scope("again") as scope, one.connect() as connection:
        connection.execute(orders)
    assert scope.connections == 1
    assert scope.statements == 1
    assert scope.transactions == 1
    with one.connect() as connection:  # without a scope
        connection.execute(orders)
    assert [(each.kind, each.statements) for each in closed] == [("block", 1), ("implicit", 1)]


def test_a_connection_which_was_out_before_the_watch_came_is_watched_from_then_on(shop_url: str) -> None:
    engine = create_engine(shop_url)
    with engine.connect() as connection:
        record = connection.connection._connection_record
        connection.execute(orders)
        sqla_watch.install(engine)
        with sqla_watch.scope("late") as scope:
            connection.execute(orders)
            connection.commit()
    engine.dispose()
    assert scope.statements == 1
    assert scope.transactions == 1
    assert traces(record) == []


def test_the_pools_own_events_come_as_ever(shop_url: str) -> None:
    def story(watched: bool) -> list[str]:
        seen: list[str] = []
        engine = create_engine(shop_url, pool_size=1)
        if watched:
            sqla_watch.install(engine)
        for name in ("first_connect", "connect", "checkout", "checkin", "reset", "invalidate", "detach", "close"):
            event.listen(engine, name, lambda *arguments, name=name: seen.append(name))
        with engine.connect() as connection:
            connection.execute(orders)
        with engine.connect() as connection:
            connection.invalidate()
        with engine.connect() as connection:
            connection.detach()
        engine.dispose()
        return seen

    assert story(watched=True) == story(watched=False)


def test_a_listener_that_refuses_a_connection_is_heard(shop_url: str) -> None:
    engine = create_engine(shop_url, pool_size=1)
    sqla_watch.install(engine)

    @event.listens_for(engine, "checkout")
    def refuse(*arguments: Any) -> None:
        raise RuntimeError("not now")

    with sqla_watch.scope("refused"), pytest.raises(RuntimeError, match="not now"):
        engine.connect()
    event.remove(engine, "checkout", refuse)
    with sqla_watch.scope("allowed") as scope, engine.connect() as connection:
        record = connection.connection._connection_record
        connection.execute(orders)
    engine.dispose()
    assert scope.statements == 1
    assert traces(record) == []


def test_a_connection_that_breaks_on_its_way_back_is_dropped_as_ever(shop_url: str, engine: Engine) -> None:
    def story(watched: bool) -> tuple[int, str]:
        broken = create_engine(shop_url, pool_size=1)
        if watched:
            sqla_watch.install(broken)
        with broken.connect() as connection:
            pid = connection.scalar(select(func.pg_backend_pid()))
            with engine.connect() as other:
                other.execute(select(func.pg_terminate_backend(pid)))
            with pytest.raises(DBAPIError) as raised:
                connection.execute(orders)
        with broken.connect() as connection:
            rows = len(connection.execute(orders).all())
        broken.dispose()
        return rows, str(raised.value)

    assert story(watched=True) == story(watched=False)


def test_a_pause_of_the_interpreter_is_no_wait_where_a_connection_was_there(shop_url: str) -> None:
    """A garbage collection of 0.1 s while a connection was got: met in a large test suite."""

    engine = create_engine(shop_url, pool_size=5)
    sqla_watch.install(engine, settings=Settings(profile="test"))
    get = engine.pool._pool.get

    def slowly(*arguments: Any, **options: Any) -> Any:
        time.sleep(0.12)
        return get(*arguments, **options)

    engine.pool._pool.get = slowly  # type: ignore[attr-defined]
    with sqla_watch.scope("pause") as scope, engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    engine.dispose()
    assert scope.findings == []
    assert scope.wait_seconds == 0


def test_a_connection_that_is_gone_without_having_been_returned_is_forgotten() -> None:
    class Record:
        pass

    record = Record()
    known = ref(record)
    out.add(known)
    assert record not in [each for each, _ in all_out()], "nothing is known of it"
    assert known in out
    del record
    all_out()
    assert known not in out
