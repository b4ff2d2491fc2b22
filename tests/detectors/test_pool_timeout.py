"""pool-timeout: who asked the pool in vain is found at their line, with those who had the connections."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, NullPool, create_engine, make_url, select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as LimitReached
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

import sqla_watch
from sqla_watch import Finding, PoolTimeoutWarning, Settings
from sqla_watch.demo.models import Order
from tests.support import connection_held_elsewhere, found, in_event_loop, line_of, only, place, watched_async_engine

pytestmark = pytest.mark.filterwarnings("ignore::sqla_watch.SqlaWatchWarning")

both_drivers = pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
PATIENCE = 0.2
HERE = Path(__file__).name


@pytest.fixture
def make_engine(shop_url: str) -> Iterator[Callable[..., Engine]]:
    """Makes watched engines whose pools give up after `PATIENCE` seconds."""
    engines: list[Engine] = []

    def make(settings: Settings | None = None, **options: Any) -> Engine:
        options = {"pool_size": 1, "max_overflow": 0, "pool_timeout": PATIENCE, **options}
        engines.append(create_engine(shop_url, **options))
        sqla_watch.install(engines[-1], settings=settings or Settings(profile="test"))
        return engines[-1]

    yield make
    for each in engines:
        each.dispose()


@pytest.fixture
def engine(make_engine: Callable[..., Engine]) -> Engine:
    """A watched engine with one connection."""
    return make_engine()


def assert_timed_out(finding: Finding, *, line: int, timeouts: int = 1) -> None:
    assert finding.rule == "pool-timeout"
    assert finding.severity == "high"
    assert place(finding) == (__file__, line)
    waited = finding.evidence["wait_seconds"]
    assert PATIENCE <= waited < PATIENCE + 0.3  # type: ignore[operator]
    assert finding.message.startswith(
        f"waited {waited:.1f} s for a connection and got none: all 1 of the pool were taken; held "
    )
    assert finding.evidence["timeouts"] == timeouts
    assert finding.evidence["pool_size"] == 1
    assert finding.evidence["max_overflow"] == 0
    assert finding.evidence["holders"] == 1


def test_a_connection_that_is_not_to_be_had_is_found_where_it_was_asked_for(engine: Engine) -> None:
    with connection_held_elsewhere(engine, 0.5), sqla_watch.scope("core") as scope, pytest.raises(LimitReached):
        engine.connect()  # asks in vain
    assert_timed_out(only(scope), line=line_of("asks in vain"))
    assert scope.connections == 0
    assert scope.wait_seconds == pytest.approx(only(scope).evidence["wait_seconds"], abs=1e-5)


def test_a_session_asks_where_it_sends_its_first_statement(engine: Engine) -> None:
    session = Session(engine)
    with connection_held_elsewhere(engine, 0.5), sqla_watch.scope("orm") as scope, pytest.raises(LimitReached):
        session.get(Order, 1)  # asks in vain in a session
    session.close()
    assert_timed_out(only(scope), line=line_of("asks in vain in a session"))


@both_drivers
@in_event_loop
async def test_async_a_connection_that_is_not_to_be_had_is_found(shop_url: str, driver: str) -> None:
    async with watched_async_engine(shop_url, driver, pool_size=1, max_overflow=0, pool_timeout=PATIENCE) as engine:
        taken = asyncio.Event()

        async def hold() -> None:
            async with engine.connect():
                taken.set()
                await asyncio.sleep(0.6)  # holds in a task

        holder = asyncio.create_task(hold())
        await taken.wait()
        with sqla_watch.scope("async") as scope:
            async with AsyncSession(engine) as session:
                with pytest.raises(LimitReached):
                    await session.get(Order, 1)  # asks in vain in a task
        await holder
    assert_timed_out(only(scope), line=line_of("asks in vain in a task"))
    assert f"idle, in asyncio.sleep at {HERE}:{line_of('holds in a task')}" in only(scope).message


def test_several_of_one_line_are_one_finding(engine: Engine) -> None:
    with connection_held_elsewhere(engine, 0.8), sqla_watch.scope("several") as scope:
        for _ in range(2):
            with pytest.raises(LimitReached):
                engine.connect()  # asks twice
    assert_timed_out(only(scope), line=line_of("asks twice"), timeouts=2)


def test_without_any_scope_it_warns_at_once(engine: Engine) -> None:
    warns = pytest.warns(PoolTimeoutWarning, match="got none")
    with connection_held_elsewhere(engine, 0.5), warns as warned, pytest.raises(LimitReached):
        engine.connect()  # asks without a scope
    (warning,) = warned
    assert (warning.filename, warning.lineno) == (__file__, line_of("asks without a scope"))


@pytest.mark.parametrize("kind", ["request", "block", "run"])
def test_it_is_found_in_every_scope(engine: Engine, kind: str) -> None:
    limit = pytest.raises(LimitReached)
    with connection_held_elsewhere(engine, 0.5), sqla_watch.scope("any", kind=kind) as scope, limit:
        engine.connect()
    assert [rule for rule, _ in found(scope)] == ["pool-timeout"]


# Those who had the connections


def test_no_more_than_three_lines_are_named_and_all_in_the_note(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(pool_size=22)
    with ExitStack() as stack, sqla_watch.scope("many") as scope:
        here = threading.Event()

        def hold(number: int, taken: threading.Semaphore) -> None:
            with engine.connect() as connection:
                connection.execute(text("SELECT 1"))
                taken.release()
                # Four lines, so that more are to be named than there is room for.
                match number:
                    case 0:
                        here.wait(5)
                    case 1:
                        here.wait(5)
                    case 2:
                        here.wait(5)
                    case _:
                        here.wait(5)

        taken = threading.Semaphore(0)
        holders = [threading.Thread(target=hold, args=(number, taken)) for number in range(22)]
        for holder in holders:
            holder.start()
            stack.callback(holder.join)
        stack.callback(here.set)
        for _ in holders:
            taken.acquire()
        with pytest.raises(LimitReached) as raised:
            engine.connect()
    finding = only(scope)
    assert len(finding.related) == 3
    assert finding.evidence["holders"] == 22
    assert finding.evidence["holders_in_transaction"] == 22
    (note,) = raised.value.__notes__
    assert len(note.splitlines()) == 22
    assert note.splitlines()[-1] == "  … and 2 more"


def test_alike_holders_at_one_line_are_counted(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(pool_size=2)
    one, other = connection_held_elsewhere(engine, 0.6), connection_held_elsewhere(engine, 0.6)
    with one, other, sqla_watch.scope("alike") as scope, pytest.raises(LimitReached):
        engine.connect()
    (related,) = only(scope).related
    assert related.role.startswith("2 held for 0.")
    assert "idle, in threading.Event.wait" in related.role


def test_connections_that_were_out_before_the_watch_came_are_not_named(shop_url: str) -> None:
    engine = create_engine(shop_url, pool_size=1, max_overflow=0, pool_timeout=PATIENCE)
    with engine.connect():
        sqla_watch.install(engine, settings=Settings(profile="test"))
        with sqla_watch.scope("late") as scope, pytest.raises(LimitReached) as raised:
            engine.connect()  # nobody is known
    engine.dispose()
    finding = only(scope)
    assert place(finding) == (__file__, line_of("nobody is known"))
    assert finding.related == ()
    assert finding.evidence["holders"] == 0
    assert not hasattr(raised.value, "__notes__")


def test_the_advice_is_to_end_transactions_where_these_sat_idle(engine: Engine) -> None:
    taken = threading.Event()

    def hold() -> None:
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
            taken.set()
            time.sleep(0.6)

    holder = threading.Thread(target=hold)
    holder.start()
    taken.wait()
    with sqla_watch.scope("idle") as scope, pytest.raises(LimitReached):
        engine.connect()
    holder.join()
    assert only(scope).suggestion.startswith("End transactions before slow work")


def test_the_advice_is_to_make_statements_faster_where_these_worked(engine: Engine) -> None:
    taken = threading.Event()

    def hold() -> None:
        with engine.connect() as connection:
            taken.set()
            connection.execute(text("SELECT pg_sleep(0.6)"))

    holder = threading.Thread(target=hold)
    holder.start()
    taken.wait()
    time.sleep(0.05)
    with sqla_watch.scope("working") as scope, pytest.raises(LimitReached):
        engine.connect()
    holder.join()
    assert only(scope).suggestion.startswith("Make the statements faster")
    assert "pool_size=1, max_overflow=0" in only(scope).suggestion


def test_who_waits_for_another_connection_is_not_told_to_have_done_nothing(make_engine: Callable[..., Engine]) -> None:
    """All connections are with threads that wait for a second one: ending idle transactions would not help."""
    engine = make_engine(pool_timeout=0.5)
    impatient = threading.Event()

    def nest() -> None:
        with engine.connect(), pytest.raises(LimitReached):
            impatient.set()
            engine.connect()

    nesting = threading.Thread(target=nest)
    nesting.start()
    impatient.wait()
    time.sleep(0.1)
    engine.pool._timeout = 0.1  # type: ignore[attr-defined] # gives up before the one who has it
    with sqla_watch.scope("beside") as scope, pytest.raises(LimitReached):
        engine.connect()
    nesting.join()
    finding = only(scope)
    assert "waiting for another connection" in finding.message
    assert "did nothing with it" not in finding.suggestion


# What is none


def test_a_wait_that_ends_with_a_connection_is_none(engine: Engine) -> None:
    with connection_held_elsewhere(engine, 0.15), sqla_watch.scope("waits") as scope, engine.connect():
        pass
    assert "pool-timeout" not in [rule for rule, _ in found(scope)]
    assert scope.wait_seconds > 0.1


def test_a_connection_that_cannot_be_opened_is_none(shop_url: str) -> None:
    engine = create_engine(make_url(shop_url).set(database="nowhere"), pool_timeout=PATIENCE)
    sqla_watch.install(engine, settings=Settings(profile="test"))
    with sqla_watch.scope("refused") as scope, pytest.raises(OperationalError):
        engine.connect()
    engine.dispose()
    assert found(scope) == []


def test_a_null_pool_has_no_limit(make_engine: Callable[..., Engine], shop_url: str) -> None:
    engine = create_engine(shop_url, poolclass=NullPool)
    sqla_watch.install(engine, settings=Settings(profile="test"))
    with sqla_watch.scope("null") as scope, engine.connect(), engine.connect(), engine.connect():
        pass
    assert found(scope) == []


@both_drivers
@in_event_loop
async def test_async_a_time_out_of_the_applications_own_is_none(shop_url: str, driver: str) -> None:
    async with watched_async_engine(shop_url, driver, pool_size=1, max_overflow=0) as engine:
        taken = asyncio.Event()

        async def hold() -> None:
            async with engine.connect():
                taken.set()
                await asyncio.sleep(0.4)

        holder = asyncio.create_task(hold())
        await taken.wait()
        with sqla_watch.scope("impatient") as scope, pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await engine.connect()
        await holder
    assert "pool-timeout" not in [rule for rule, _ in found(scope)]
    assert scope.connections == 0


def test_a_second_connection_of_the_same_thread_is_for_another_rule(engine: Engine) -> None:
    with sqla_watch.scope("nested") as scope, engine.connect(), pytest.raises(LimitReached):
        engine.connect()
    assert [rule for rule, _ in found(scope)] == ["nested-checkout"]


# Settings and ignores


def test_a_block_silences_it(engine: Engine) -> None:
    known, limit = sqla_watch.ignore("pool-timeout", reason="a load test"), pytest.raises(LimitReached)
    with connection_held_elsewhere(engine, 0.5), sqla_watch.scope("block") as scope, known as ignore, limit:
        engine.connect()
    assert found(scope) == []
    assert ignore.matched == 1


def test_a_comment_silences_it(engine: Engine) -> None:
    with connection_held_elsewhere(engine, 0.5), sqla_watch.scope("comment") as scope, pytest.raises(LimitReached):
        engine.connect()  # sqla-watch: ignore[pool-timeout]
    assert found(scope) == []


def test_switched_off_the_exception_keeps_its_note(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(Settings(profile="test", rules={"pool-timeout": "ignore", "pool-wait": "ignore"}))
    limit = pytest.raises(LimitReached)
    with connection_held_elsewhere(engine, 0.5), sqla_watch.scope("off") as scope, limit as raised:
        engine.connect()
    assert found(scope) == []
    assert len(raised.value.__notes__) == 1


def test_the_action_log_logs(make_engine: Callable[..., Engine], caplog: pytest.LogCaptureFixture) -> None:
    engine = make_engine(Settings(profile="test", rules={"pool-timeout": "log"}))
    with connection_held_elsewhere(engine, 0.5), sqla_watch.scope("log"), pytest.raises(LimitReached):
        engine.connect()
    (record,) = [each for each in caplog.records if each.name == "sqla_watch"]
    assert record.levelno == logging.WARNING
    assert "got none" in record.getMessage()


def test_the_action_raise_leaves_the_applications_own_exception_on_its_way(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(Settings(profile="test", rules={"pool-timeout": "raise"}))
    with connection_held_elsewhere(engine, 0.5), pytest.raises(LimitReached), sqla_watch.scope("raise"):
        engine.connect()


def test_the_action_raise_raises_at_the_end_where_the_application_went_on(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(Settings(profile="test", rules={"pool-timeout": "raise"}))
    raises, limit = pytest.raises(sqla_watch.FindingRaised), pytest.raises(LimitReached)
    with connection_held_elsewhere(engine, 0.5), raises as raised, sqla_watch.scope("went on"), limit:
        engine.connect()
    assert raised.value.finding.rule == "pool-timeout"


def test_a_wait_is_not_told_twice(engine: Engine) -> None:
    with connection_held_elsewhere(engine, 0.5), sqla_watch.scope("once") as scope, pytest.raises(LimitReached):
        engine.connect().execute(select(Order.id))
    assert [rule for rule, _ in found(scope)] == ["pool-timeout"]
