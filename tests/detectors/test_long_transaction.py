"""long-transaction: one that sits idle is found with both its lines; short ones and slow statements are not."""

from __future__ import annotations

import asyncio
import time

import pytest
from sqlalchemy import Engine, create_engine, event, func, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

import sqla_watch
from sqla_watch import Finding, LongTransactionWarning, Settings, Watch
from sqla_watch.demo.models import Customer, Order, Rate
from tests.support import found, in_event_loop, line_of, only, place, watched_async_engine

pytestmark = [
    pytest.mark.usefixtures("from_100_ms"),
    pytest.mark.filterwarnings("ignore::sqla_watch.SqlaWatchWarning"),
]

both_drivers = pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
FROM_100_MS = {"long-transaction": {"min_seconds": 0.1}, "slow-query": {"min_seconds": 0.1}}


@pytest.fixture
def from_100_ms(watch: Watch) -> None:
    watch.settings = Settings(profile="test", rules=FROM_100_MS)


def assert_sat_idle(finding: Finding, *, first: int, last: int, outcome: str) -> None:
    assert finding.rule == "long-transaction"
    assert finding.severity == "high"
    assert place(finding) == (__file__, first)
    assert [(related.role, related.location.line) for related in finding.related] == [("last statement", last)]
    numbers = finding.evidence
    assert 0.12 <= numbers["transaction_seconds"] < 0.5  # type: ignore[operator]
    assert 0.12 <= numbers["idle_seconds"] <= numbers["transaction_seconds"]  # type: ignore[operator]
    assert 0 < numbers["database_seconds"] < 0.1  # type: ignore[operator]
    assert numbers["idle_seconds"] + numbers["database_seconds"] + numbers["ending_seconds"] == pytest.approx(  # type: ignore[operator]
        numbers["transaction_seconds"], abs=1e-5
    )
    assert numbers["statements"] == 2
    assert numbers["transactions"] == 1
    assert numbers["outcome"] == outcome
    assert f"ended by {outcome}" in finding.message
    assert "before the transaction or after its commit" in finding.suggestion


def test_a_session_that_waits_between_two_statements_is_found(engine: Engine) -> None:
    with sqla_watch.scope("session") as scope, Session(engine) as session:
        order = session.get_one(Order, 1)  # first of session
        time.sleep(0.12)
        order.status = order.status + ""
        session.execute(update(Order).where(Order.id == 1).values(status=order.status))  # last of session
        session.commit()
    first, last = line_of("first of session"), line_of("last of session")
    assert_sat_idle(only(scope), first=first, last=last, outcome="commit")


def test_a_connection_that_waits_before_its_commit_is_found(engine: Engine) -> None:
    with sqla_watch.scope("core") as scope, engine.begin() as connection:
        connection.execute(select(Order.id).limit(1))  # first of core
        connection.execute(select(Rate.country).limit(1))  # last of core
        time.sleep(0.12)
    first, last = line_of("first of core"), line_of("last of core")
    assert_sat_idle(only(scope), first=first, last=last, outcome="commit")


def test_a_transaction_that_is_never_committed_is_found_where_the_connection_goes_back(engine: Engine) -> None:
    with sqla_watch.scope("rollback") as scope, engine.connect() as connection:
        connection.execute(select(Order.id).limit(1))  # first of rollback
        time.sleep(0.12)
        connection.execute(select(Rate.country).limit(1))  # last of rollback
    first, last = line_of("first of rollback"), line_of("last of rollback")
    assert_sat_idle(only(scope), first=first, last=last, outcome="rollback")


@both_drivers
@in_event_loop
async def test_an_async_session_that_awaits_something_else_is_found(shop_url: str, driver: str) -> None:
    async with watched_async_engine(shop_url, driver, rules=FROM_100_MS) as engine:
        with sqla_watch.scope("async session") as scope:
            async with AsyncSession(engine) as session:
                await session.get(Order, 1)  # first of async session
                await asyncio.sleep(0.12)
                await session.scalar(select(Rate.percent).limit(1))  # last of async session
                await session.commit()
    first, last = line_of("first of async session"), line_of("last of async session")
    assert_sat_idle(only(scope), first=first, last=last, outcome="commit")


@both_drivers
@in_event_loop
async def test_an_async_connection_that_awaits_something_else_is_found(shop_url: str, driver: str) -> None:
    async with watched_async_engine(shop_url, driver, rules=FROM_100_MS) as engine:
        with sqla_watch.scope("async core") as scope:
            async with engine.begin() as connection:
                await connection.execute(select(Order.id).limit(1))  # first of async core
                await asyncio.sleep(0.12)
                await connection.execute(select(Rate.country).limit(1))  # last of async core
    first, last = line_of("first of async core"), line_of("last of async core")
    assert_sat_idle(only(scope), first=first, last=last, outcome="commit")


def test_one_that_works_all_the_time_is_told_to_do_less(engine: Engine) -> None:
    with sqla_watch.scope("busy") as scope, engine.begin() as connection:
        for _ in range(4):
            connection.execute(select(func.pg_sleep(0.03)))
    finding = only(scope)
    assert finding.rule == "long-transaction"
    assert finding.severity == "medium"
    assert finding.evidence["database_seconds"] >= 0.12  # type: ignore[operator]
    assert finding.evidence["idle_seconds"] < 0.05  # type: ignore[operator]
    assert "Commit in smaller pieces" in finding.suggestion


def test_one_with_a_slow_statement_and_a_long_wait_is_both(engine: Engine) -> None:
    with sqla_watch.scope("both") as scope, engine.begin() as connection:
        connection.execute(select(func.pg_sleep(0.11)))
        time.sleep(0.12)
    assert [finding.rule for finding in scope.findings] == ["long-transaction", "slow-query"]


def test_one_that_failed_is_found(engine: Engine) -> None:
    with sqla_watch.scope("failed") as scope, Session(engine) as session:
        session.get(Rate, "CH")  # first of failed
        time.sleep(0.12)
        session.add(Rate(country="CH", percent=1))
        with pytest.raises(IntegrityError):
            session.commit()
    finding = only(scope)
    assert finding.evidence["outcome"] == "rollback"
    assert place(finding) == (__file__, line_of("first of failed"))


def test_the_same_place_several_times_is_one_finding_with_the_longest(engine: Engine) -> None:
    with sqla_watch.scope("several") as scope, Session(engine) as session:
        for seconds in (0.1, 0.0, 0.14):
            session.get(Order, 1)
            time.sleep(seconds)
            session.commit()
    finding = only(scope)
    assert finding.evidence["transactions"] == 2
    assert finding.evidence["transaction_seconds"] >= 0.14  # type: ignore[operator]


def test_a_transaction_with_savepoints_is_one(engine: Engine) -> None:
    with sqla_watch.scope("savepoints") as scope, Session(engine) as session:
        for _ in range(3):
            with session.begin_nested():
                session.scalar(select(Order.status).limit(1))
                time.sleep(0.04)
        session.commit()
    finding = next(finding for finding in scope.findings if finding.rule == "long-transaction")
    assert finding.evidence["statements"] == 3
    assert finding.evidence["idle_seconds"] >= 0.12  # type: ignore[operator]


def test_without_any_scope_the_warning_comes_when_the_connection_goes_back(engine: Engine) -> None:
    with engine.connect() as connection:
        connection.execute(select(Order.id).limit(1))  # no scope
        time.sleep(0.12)
        with pytest.warns(LongTransactionWarning) as warned:
            connection.close()
    (warning,) = warned
    assert (warning.filename, warning.lineno) == (__file__, line_of("no scope"))


# Good code


def test_work_after_the_commit_is_fine(engine: Engine) -> None:
    with sqla_watch.scope("after") as scope, Session(engine, expire_on_commit=False) as session:
        session.get(Order, 1)
        session.commit()
        time.sleep(0.12)
        session.get(Customer, 1)
        session.commit()
    assert scope.transactions == 2
    assert found(scope) == []


def test_work_before_the_first_statement_is_fine(engine: Engine) -> None:
    """BEGIN is sent with the first statement: until then the server knows of no transaction."""
    with sqla_watch.scope("before") as scope, engine.begin() as connection:
        time.sleep(0.12)
        connection.execute(select(Order.id).limit(1))
    assert found(scope) == []


def test_in_autocommit_no_transaction_is_open(engine: Engine) -> None:
    with sqla_watch.scope("autocommit") as scope:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(select(Order.id).limit(1))
            time.sleep(0.12)
            connection.execute(select(Order.id).limit(1))
        with Session(engine.execution_options(isolation_level="AUTOCOMMIT")) as session:
            session.get(Order, 1)
            time.sleep(0.12)
            session.get(Order, 2)
    assert scope.statements == 4
    assert found(scope) == []


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
def test_an_engine_in_autocommit_has_no_transactions(shop_url: str, driver: str) -> None:
    address = shop_url.replace("+psycopg:", f"+{driver}:")
    engine = create_engine(address, isolation_level="AUTOCOMMIT")
    sqla_watch.install(engine, settings=Settings(profile="test", rules=FROM_100_MS))
    with sqla_watch.scope("autocommit engine") as scope, engine.connect() as connection:
        connection.execute(select(Order.id).limit(1))
        time.sleep(0.12)
    engine.dispose()
    assert found(scope) == []


@both_drivers
@in_event_loop
async def test_an_async_engine_in_autocommit_has_no_transactions(shop_url: str, driver: str) -> None:
    async with watched_async_engine(shop_url, driver, rules=FROM_100_MS, isolation_level="AUTOCOMMIT") as engine:
        with sqla_watch.scope("async autocommit") as scope:
            async with engine.connect() as connection:
                await connection.execute(select(Order.id).limit(1))
                await asyncio.sleep(0.12)
    assert found(scope) == []


def test_one_that_is_long_because_one_statement_is_slow_is_left_to_slow_query(engine: Engine) -> None:
    with sqla_watch.scope("slow") as scope, engine.begin() as connection:
        connection.execute(select(Order.id).limit(1))
        connection.execute(select(func.pg_sleep(0.12)))
    assert [finding.rule for finding in scope.findings] == ["slow-query"]


def test_several_short_ones_are_fine(engine: Engine) -> None:
    with sqla_watch.scope("short") as scope:
        for _ in range(4):
            with engine.begin() as connection:
                connection.execute(text("SELECT status FROM orders LIMIT 1"))
                time.sleep(0.03)
    assert scope.transactions == 4
    assert found(scope) == []


def test_a_transaction_without_a_statement_is_none(engine: Engine) -> None:
    with sqla_watch.scope("empty") as scope, engine.begin():
        time.sleep(0.12)
    assert scope.transactions == 0
    assert found(scope) == []


def test_settings_of_the_connection_do_not_begin_the_clock(engine: Engine) -> None:
    """What a checkout listener sends (`SET search_path`) comes before the application's first statement."""

    @event.listens_for(engine, "begin")
    def set_role(connection: object) -> None:
        connection.exec_driver_sql("SET LOCAL lock_timeout = 1000")  # type: ignore[attr-defined]

    with sqla_watch.scope("settings") as scope, engine.begin() as connection:
        time.sleep(0.06)
        connection.execute(select(Order.id).limit(1))
        time.sleep(0.06)
    assert scope.statements == 1
    assert found(scope) == []


def test_the_profiles_begin_at_one_second_and_at_two() -> None:
    assert Settings(profile="development").rule("long-transaction")["min_seconds"] == 1.0
    assert Settings(profile="test").rule("long-transaction")["min_seconds"] == 1.0
    assert Settings(profile="production").rule("long-transaction")["min_seconds"] == 2.0
