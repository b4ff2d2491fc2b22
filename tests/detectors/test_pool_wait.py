"""pool-wait: waiting for a connection is found where it waited; opening one, or getting one at once, is not."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from sqlalchemy import Engine, NullPool, create_engine, event, select
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

import sqla_watch
from sqla_watch import Finding, PoolWaitWarning, Settings
from sqla_watch.demo.models import Order
from tests.support import connection_held_elsewhere, found, in_event_loop, line_of, only, place, watched_async_engine

pytestmark = pytest.mark.filterwarnings("ignore::sqla_watch.SqlaWatchWarning")

both_drivers = pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])


@pytest.fixture
def engine(shop_url: str):  # type: ignore[no-untyped-def]
    """A watched engine with one connection, which is open already."""
    engine = create_engine(shop_url, pool_size=1, max_overflow=0, pool_timeout=0.15)
    sqla_watch.install(engine, settings=Settings(profile="test"))
    engine.connect().close()
    yield engine
    engine.dispose()


def assert_waited(finding: Finding, *, line: int, at_least: float) -> None:
    assert finding.rule == "pool-wait"
    assert finding.severity == "high"
    assert place(finding) == (__file__, line)
    assert at_least <= finding.evidence["wait_seconds"] < at_least + 0.5  # type: ignore[operator]
    assert finding.evidence["total_wait_seconds"] == finding.evidence["wait_seconds"]
    assert finding.evidence["waits"] == 1
    assert finding.evidence["pool_size"] == 1
    assert finding.evidence["max_overflow"] == 0
    assert "all 1 of the pool were taken" in finding.message
    assert "pool_size=1, max_overflow=0" in finding.suggestion


def test_a_connection_that_has_to_wait_is_found_at_its_line(engine: Engine) -> None:
    with connection_held_elsewhere(engine, 0.12), sqla_watch.scope("core") as scope:
        connection = engine.connect()  # waits for a connection
        connection.execute(select(Order.id).limit(1))
        connection.close()
    assert_waited(only(scope), line=line_of("waits for a connection"), at_least=0.11)
    assert scope.wait_seconds == pytest.approx(only(scope).evidence["wait_seconds"], abs=1e-5)


def test_a_session_waits_where_it_sends_its_first_statement(engine: Engine) -> None:
    with connection_held_elsewhere(engine, 0.12), sqla_watch.scope("orm") as scope, Session(engine) as session:
        session.get(Order, 1)  # waits in a session
        session.get(Order, 2)
    assert_waited(only(scope), line=line_of("waits in a session"), at_least=0.11)
    assert scope.connections == 1


@both_drivers
@in_event_loop
async def test_async_a_task_that_has_to_wait_is_found(shop_url: str, driver: str) -> None:
    async with watched_async_engine(shop_url, driver, pool_size=1, max_overflow=0) as engine:
        taken = asyncio.Event()

        async def hold() -> None:
            async with engine.connect():
                taken.set()
                await asyncio.sleep(0.12)

        async def wait() -> None:
            async with AsyncSession(engine) as session:
                await session.get(Order, 1)  # waits in a task

        with sqla_watch.scope("tasks") as scope:
            holder = asyncio.create_task(hold())
            await taken.wait()
            await wait()
            await holder
    assert_waited(only(scope), line=line_of("waits in a task"), at_least=0.11)


@both_drivers
@in_event_loop
async def test_async_a_wait_for_a_connection_of_the_engine_is_found(shop_url: str, driver: str) -> None:
    async with watched_async_engine(shop_url, driver, pool_size=1, max_overflow=0) as engine:

        async def use() -> None:
            async with engine.connect():  # waits in one of two
                await asyncio.sleep(0.12)

        with sqla_watch.scope("gather") as scope:
            await asyncio.gather(use(), use())
    assert_waited(only(scope), line=line_of("waits in one of two"), at_least=0.11)


def test_several_waits_of_one_line_are_one_finding(engine: Engine) -> None:
    with sqla_watch.scope("several") as scope:
        for seconds in (0.11, 0.14):
            with connection_held_elsewhere(engine, seconds), engine.connect():
                pass
    finding = only(scope)
    assert finding.evidence["waits"] == 2
    assert 0.13 < finding.evidence["wait_seconds"] < 0.6  # type: ignore[operator]
    assert 0.23 < finding.evidence["total_wait_seconds"] < 1.0  # type: ignore[operator]


def test_without_any_scope_the_warning_comes_when_the_connection_goes_back(engine: Engine) -> None:
    with connection_held_elsewhere(engine, 0.12), pytest.warns(PoolWaitWarning) as warned, engine.connect():  # no scope
        pass
    (warning,) = warned
    assert (warning.filename, warning.lineno) == (__file__, line_of("no scope"))


# Good code


def test_a_pool_with_a_connection_left_does_not_wait(engine: Engine) -> None:
    with sqla_watch.scope("free") as scope:
        for _ in range(3):
            with engine.connect() as connection:
                connection.execute(select(Order.id).limit(1))
    assert scope.wait_seconds == 0
    assert found(scope) == []


def test_a_short_wait_is_counted_and_not_found(engine: Engine) -> None:
    with connection_held_elsewhere(engine, 0.04), sqla_watch.scope("short") as scope, engine.connect():
        pass
    assert 0.03 < scope.wait_seconds < 0.09
    assert found(scope) == []


def test_a_connection_that_is_slow_to_open_is_no_wait(shop_url: str) -> None:
    engine = create_engine(shop_url)
    sqla_watch.install(engine, settings=Settings(profile="test"))

    @event.listens_for(engine, "do_connect")
    def slow_network(*arguments: object) -> None:
        time.sleep(0.12)

    with sqla_watch.scope("open") as scope, engine.connect() as connection:
        connection.execute(select(Order.id).limit(1))
    engine.dispose()
    assert scope.wait_seconds < 0.02
    assert found(scope) == []


def test_a_null_pool_never_waits(shop_url: str) -> None:
    engine = create_engine(shop_url, poolclass=NullPool)
    sqla_watch.install(engine, settings=Settings(profile="test", rules={"pool-wait": {"min_seconds": 0.005}}))
    with sqla_watch.scope("null pool") as scope:
        for _ in range(3):
            with engine.connect() as connection:
                connection.execute(select(Order.id).limit(1))
    assert scope.connections == 3
    assert scope.wait_seconds == 0
    assert found(scope) == []


def test_holding_a_connection_for_long_is_no_wait_of_its_own(engine: Engine) -> None:
    with sqla_watch.scope("holds") as scope, engine.connect() as connection:
        connection.execute(select(Order.id).limit(1))
        time.sleep(0.12)
    assert found(scope) == []


def test_a_wait_that_ends_with_nothing_is_for_another_rule(engine: Engine) -> None:
    limit = pytest.raises(PoolTimeout, match="QueuePool limit of size 1 overflow 0 reached")
    with connection_held_elsewhere(engine, 0.3), sqla_watch.scope("timeout") as scope, limit:
        engine.connect()
    assert [rule for rule, _ in found(scope)] == ["pool-timeout"]
    assert scope.connections == 0
    assert 0.15 <= scope.wait_seconds < 0.5


def test_a_wait_for_a_second_connection_is_for_another_rule(engine: Engine) -> None:
    with sqla_watch.scope("nested") as scope, engine.connect(), pytest.raises(PoolTimeout):
        engine.connect()
    assert [rule for rule, _ in found(scope)] == ["nested-checkout"]


@both_drivers
@in_event_loop
async def test_async_a_wait_that_the_application_gives_up_counts(shop_url: str, driver: str) -> None:
    """`asyncio.timeout` around a request: the task is cancelled while it waits."""
    async with watched_async_engine(shop_url, driver, pool_size=1, max_overflow=0) as engine:
        taken = asyncio.Event()

        async def hold() -> None:
            async with AsyncSession(engine) as session:
                await session.get(Order, 1)
                taken.set()
                await asyncio.sleep(0.6)  # holds it for longer than another has patience

        holder = asyncio.create_task(hold())
        await taken.wait()
        with sqla_watch.scope("gives up") as scope, pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3), engine.connect():  # has no patience
                pass
        await holder
    finding = only(scope)
    assert finding.rule == "pool-wait"
    assert place(finding) == (__file__, line_of("has no patience"))
    assert finding.related[0].location.line == line_of("holds it for longer than another has patience")
    assert 0.25 < scope.wait_seconds < 0.6


# Who held the connections


def test_who_held_the_connection_is_named(engine: Engine) -> None:
    """Another thread sleeps in a transaction of its own while this one waits."""
    patient = create_engine(engine.url, pool_size=1, max_overflow=0)
    sqla_watch.install(patient, settings=Settings(profile="test"))
    taken = threading.Event()

    def hold() -> None:
        with patient.connect() as connection:
            connection.execute(select(Order.id).limit(1))
            taken.set()
            time.sleep(0.4)  # does something else

    holder = threading.Thread(target=hold)
    holder.start()
    taken.wait()
    with sqla_watch.scope("waits") as scope, patient.connect() as connection:
        connection.execute(select(Order.id).limit(1))
    holder.join()
    patient.dispose()
    finding = only(scope)
    (related,) = finding.related
    line = line_of("does something else")
    assert (related.location.file, related.location.line) == (__file__, line)
    assert related.role.endswith(", idle in transaction, in time.sleep")
    assert f"idle in transaction, in time.sleep at test_pool_wait.py:{line}" in finding.message
    assert finding.evidence["holders_in_transaction"] == 1


def test_a_time_out_has_a_note_that_names_the_holder_and_is_unchanged_otherwise(engine: Engine) -> None:
    sqla_watch.uninstall()
    with engine.connect(), pytest.raises(PoolTimeout) as bare:
        engine.connect()
    sqla_watch.install(engine, settings=Settings(profile="test"))
    with sqla_watch.scope("leak") as scope, engine.connect() as leaked:
        leaked.execute(select(Order.id).limit(1))
        with pytest.raises(PoolTimeout) as watched:
            engine.connect()  # asks for a second one
    (note,) = watched.value.__notes__
    assert note.startswith("sqla_watch: the connections of the pool were held by\n  for 0.")
    assert f"test_pool_wait.py:{line_of('asks for a second one')}" in note  # where the holder's thread is
    assert "waiting for another connection" in note
    assert note.endswith("(leak)")
    assert (type(watched.value), watched.value.args) == (type(bare.value), bare.value.args)
    assert not hasattr(bare.value, "__notes__")
    assert only(scope).evidence["timeouts"] == 1


@both_drivers
@in_event_loop
async def test_async_a_task_that_holds_is_named_where_it_is(shop_url: str, driver: str) -> None:
    async with watched_async_engine(
        shop_url, driver, pool_size=1, max_overflow=0, rules={"pool-wait": {"min_seconds": 0.05}}
    ) as engine:

        async def hold() -> None:
            async with AsyncSession(engine) as session:
                await session.get(Order, 1)
                await asyncio.sleep(0.5)  # holds it here

        with sqla_watch.scope("tasks") as scope:
            holder = asyncio.create_task(hold())
            await asyncio.sleep(0.2)
            async with AsyncSession(engine) as session:
                await session.get(Order, 2)
            await holder
    (finding,) = [each for each in scope.findings if each.rule == "pool-wait"]
    assert [related.location.line for related in finding.related] == [line_of("holds it here")]
    assert finding.related[0].role.endswith("idle in transaction, in asyncio.sleep (tasks)")


def test_of_many_waits_of_one_line_the_longest_tells_who_held(engine: Engine) -> None:
    patient = create_engine(engine.url, pool_size=1, max_overflow=0)
    sqla_watch.install(patient, settings=Settings(profile="test"))
    with sqla_watch.scope("many") as scope:
        for seconds in (0.12, 0.4):
            with connection_held_elsewhere(patient, seconds), patient.connect():
                pass
    patient.dispose()
    finding = only(scope)
    assert finding.evidence["waits"] == 2
    assert "in threading.Event.wait" in finding.message
