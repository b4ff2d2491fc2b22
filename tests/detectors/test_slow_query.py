"""slow-query: one statement that takes long is found with its time; fast ones and waiting elsewhere are not."""

from __future__ import annotations

import asyncio
import time

import pytest
from sqlalchemy import Engine, event, func, insert, select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

import sqla_watch
from sqla_watch import Settings, SlowQueryWarning, Watch
from sqla_watch.demo.models import Customer, Order, Rate
from tests.support import found, in_event_loop, line_of, only, place, watched_async_engine

pytestmark = [
    pytest.mark.usefixtures("watch"),
    pytest.mark.filterwarnings("ignore::sqla_watch.SqlaWatchWarning"),
]

both_drivers = pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
FROM_50_MS = {"slow-query": {"min_seconds": 0.05}}
sleeps_60_ms = select(func.pg_sleep(0.06))


@pytest.fixture
def from_50_ms(watch: Watch) -> None:
    watch.settings = Settings(profile="test", rules=FROM_50_MS)


@pytest.mark.usefixtures("from_50_ms")
def test_a_slow_core_statement_is_found_with_its_time(engine: Engine) -> None:
    with sqla_watch.scope("core") as scope, engine.connect() as connection:
        connection.execute(text("SELECT name, pg_sleep(0.06) FROM customers WHERE id = 1")).one()  # slow
    finding = only(scope)
    assert finding.rule == "slow-query"
    assert finding.target == "SELECT customers"
    assert finding.severity == "medium"
    assert place(finding) == (__file__, line_of("slow"))
    assert 0.06 <= finding.evidence["slowest_seconds"] < 0.5  # type: ignore[operator]
    assert finding.evidence["statements"] == 1
    assert finding.evidence["rows"] == 1
    assert finding.statement == "SELECT name, pg_sleep(?) FROM customers WHERE id = ?"
    assert "EXPLAIN (ANALYZE, BUFFERS)" in finding.suggestion


@pytest.mark.usefixtures("from_50_ms")
def test_a_slow_orm_query_is_found(engine: Engine) -> None:
    with sqla_watch.scope("orm") as scope, Session(engine) as session:
        session.execute(select(Customer, func.pg_sleep(0.06)).where(Customer.id == 1)).one()  # slow orm
    finding = only(scope)
    assert finding.rule == "slow-query"
    assert place(finding) == (__file__, line_of("slow orm"))


@both_drivers
@in_event_loop
async def test_async_slow_statements_are_found(shop_url: str, driver: str) -> None:
    async with watched_async_engine(shop_url, driver, rules=FROM_50_MS) as engine:
        with sqla_watch.scope("async") as scope:
            async with AsyncSession(engine) as session:
                await session.execute(sleeps_60_ms)  # slow in a session
            async with engine.connect() as connection:
                await connection.execute(sleeps_60_ms)  # slow on a connection
    assert {place(finding) for finding in scope.findings} == {
        (__file__, line_of("slow in a session")),
        (__file__, line_of("slow on a connection")),
    }
    assert all(finding.evidence["slowest_seconds"] >= 0.06 for finding in scope.findings)  # type: ignore[operator]


@pytest.mark.usefixtures("from_50_ms")
def test_the_slowest_of_several_is_named(engine: Engine) -> None:
    with sqla_watch.scope("several") as scope, engine.connect() as connection:
        for seconds in (0.0, 0.07, 0.01):
            connection.execute(select(func.pg_sleep(seconds)))
    finding = only(scope)
    assert 0.07 <= finding.evidence["slowest_seconds"] < 0.5  # type: ignore[operator]
    assert finding.evidence["statements"] == 3
    assert finding.evidence["database_seconds"] >= 0.08  # type: ignore[operator]


@pytest.mark.usefixtures("from_50_ms")
def test_a_slow_write_is_found(engine: Engine) -> None:
    with sqla_watch.scope("write") as scope, engine.connect() as connection:
        connection.execute(text("UPDATE rates SET percent = 1 WHERE country = 'CH' AND pg_sleep(0.06) IS NOT NULL"))
        connection.rollback()
    assert found(scope) == [("slow-query", "UPDATE rates")]


@pytest.mark.usefixtures("from_50_ms")
def test_a_slow_statement_that_fails_is_found(engine: Engine) -> None:
    with sqla_watch.scope("timeout") as scope, engine.connect() as connection:
        connection.execute(text("SET LOCAL statement_timeout = 60"))
        with pytest.raises(OperationalError, match="statement timeout"):
            connection.execute(select(func.pg_sleep(5)))  # times out
    finding = only(scope)
    assert place(finding) == (__file__, line_of("times out"))
    assert 0.06 <= finding.evidence["slowest_seconds"] < 0.5  # type: ignore[operator]
    assert scope.errors == 1


@pytest.mark.usefixtures("from_50_ms")
def test_of_a_streamed_result_the_fetches_count(engine: Engine) -> None:
    slowly = text("SELECT pg_sleep(0.01) FROM generate_series(1, 8)")
    with sqla_watch.scope("stream") as scope, engine.connect() as connection:
        rows = connection.execution_options(stream_results=True, max_row_buffer=2).execute(slowly)  # streams
        assert len(rows.all()) == 8
    finding = only(scope)
    assert place(finding) == (__file__, line_of("streams"))
    assert finding.evidence["slowest_seconds"] >= 0.08  # type: ignore[operator]
    assert finding.evidence["rows"] == 8


@pytest.mark.usefixtures("from_50_ms")
def test_looking_at_the_scope_while_it_streams_changes_nothing(engine: Engine) -> None:
    slowly = text("SELECT pg_sleep(0.01) FROM generate_series(1, 8)")
    with sqla_watch.scope("looked at") as scope, engine.connect() as connection:
        rows = connection.execution_options(stream_results=True, max_row_buffer=2).execute(slowly)
        assert scope.statements == 1
        assert len(rows.all()) == 8
    assert found(scope) == [("slow-query", "SELECT generate_series")]
    assert only(scope).evidence["slowest_seconds"] >= 0.08  # type: ignore[operator]


def test_without_any_scope_the_warning_comes_when_the_connection_goes_back(engine: Engine, watch: Watch) -> None:
    watch.settings = Settings(profile="test", rules=FROM_50_MS)
    with engine.connect() as connection:
        connection.execute(sleeps_60_ms)  # no scope
        with pytest.warns(SlowQueryWarning) as warned:
            connection.close()
    (warning,) = warned
    assert (warning.filename, warning.lineno) == (__file__, line_of("no scope"))


# Good code


@pytest.mark.usefixtures("from_50_ms")
def test_fast_statements_are_fine_however_many(engine: Engine) -> None:
    with sqla_watch.scope("fast") as scope, engine.connect() as connection:
        for _ in range(8):
            connection.execute(select(func.pg_sleep(0.01)))
    assert scope.database_seconds >= 0.08
    assert found(scope) == []


@pytest.mark.usefixtures("from_50_ms")
def test_what_the_application_does_between_statements_is_not_the_statements_time(engine: Engine) -> None:
    with sqla_watch.scope("thinking") as scope, engine.connect() as connection:
        rows = connection.execute(select(Order.id))
        time.sleep(0.06)
        rows.all()
        streamed = connection.execution_options(stream_results=True).execute(select(Order.id))
        for number, _ in enumerate(streamed):
            if number == 3:
                time.sleep(0.06)
    assert found(scope) == []
    assert scope.database_seconds < 0.05


@both_drivers
@in_event_loop
async def test_async_a_slow_task_beside_does_not_make_a_statement_slow(shop_url: str, driver: str) -> None:
    async with watched_async_engine(shop_url, driver, rules=FROM_50_MS) as engine:

        async def think() -> None:
            await asyncio.sleep(0.06)

        with sqla_watch.scope("beside") as scope:
            async with AsyncSession(engine) as session:
                await asyncio.gather(think(), session.execute(select(Order.id)))
    assert found(scope) == []


@pytest.mark.usefixtures("from_50_ms")
def test_processing_of_values_by_sqlalchemy_is_not_the_statements_time(engine: Engine) -> None:
    @event.listens_for(engine, "before_cursor_execute")
    def think(*arguments: object) -> None:
        time.sleep(0.06)

    with sqla_watch.scope("listener") as scope, engine.connect() as connection:
        connection.execute(select(Rate.country))
    assert found(scope) == []


@pytest.mark.usefixtures("from_50_ms")
def test_one_statement_with_many_rows_to_write_is_judged_as_what_it_is(engine: Engine) -> None:
    rows = [{"country": f"{number:02}", "percent": 1} for number in range(50)]
    with sqla_watch.scope("many") as scope, engine.connect() as connection:
        connection.execute(insert(Rate.__table__), rows)
        connection.rollback()
    assert found(scope) == []


def test_half_a_second_is_slow_in_a_test_and_not_in_production(engine: Engine) -> None:
    with sqla_watch.scope("test") as scope, engine.connect() as connection:
        connection.execute(select(func.pg_sleep(0.5)))
    assert found(scope) == [("slow-query", "SELECT")]
    assert Settings(profile="development").rule("slow-query")["min_seconds"] == 0.5
    assert Settings(profile="production").rule("slow-query")["min_seconds"] == 1.0
