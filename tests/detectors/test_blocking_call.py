"""blocking-call: a synchronous engine on a running event loop is found; threads and asynchronous engines are not."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool, StaticPool

import sqla_watch
from sqla_watch import BlockingCallWarning, Settings, Watch
from sqla_watch.demo.models import Customer, Order
from tests.conftest import url_for
from tests.support import found, in_event_loop, line_of, only, place, watched_async_engine

pytestmark = [pytest.mark.usefixtures("watch"), pytest.mark.filterwarnings("ignore::sqla_watch.SqlaWatchWarning")]


def names(engine: Engine) -> list[str]:
    with Session(engine) as session:
        return list(session.scalars(select(Customer.name).limit(3)))


@in_event_loop
async def test_a_synchronous_session_in_a_coroutine_is_found_and_a_thread_repairs_it(engine: Engine) -> None:
    with sqla_watch.scope("blocks") as scope, Session(engine) as session:
        session.execute(text("SELECT pg_sleep(0.02) FROM rates LIMIT 1"))  # takes longest
        session.get_one(Order, 1)  # blocks, too
        session.get_one(Order, 2)
    finding = only(scope)
    assert (finding.rule, finding.target, finding.severity) == ("blocking-call", "SELECT rates", "high")
    assert place(finding) == (__file__, line_of("takes longest"))
    assert finding.message == "the event loop stood still for 3 statements of a synchronous engine"
    assert (finding.evidence["statements"], finding.evidence["lines"]) == (3, 3)
    slowest, total = float(finding.evidence["slowest_seconds"]), float(finding.evidence["database_seconds"])
    assert 0.02 <= slowest < total < 1
    assert line_of("blocks, too") in [each.location.line for each in finding.related]
    assert "await asyncio.to_thread(" in finding.suggestion
    with sqla_watch.scope("in a thread") as scope:
        assert len(await asyncio.to_thread(names, engine)) == 3
        assert len(await asyncio.get_running_loop().run_in_executor(None, names, engine)) == 3
    assert found(scope) == []


@in_event_loop
async def test_one_statement_is_enough(engine: Engine) -> None:
    with sqla_watch.scope("one") as scope, engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    assert only(scope).message == "the event loop stood still for one statement of a synchronous engine"
    assert only(scope).related == ()


def test_without_a_loop_it_is_silent(engine: Engine) -> None:
    with sqla_watch.scope("no loop") as scope:
        assert len(names(engine)) == 3
    assert found(scope) == []


def test_after_a_loop_has_ended_it_is_silent(engine: Engine) -> None:
    async def nothing() -> None: ...

    with sqla_watch.scope("after") as scope:
        asyncio.run(nothing())
        assert len(names(engine)) == 3
    assert found(scope) == []


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
@in_event_loop
async def test_asynchronous_engines_are_silent(shop_url: str, driver: str) -> None:
    async with watched_async_engine(shop_url, driver) as engine:
        with sqla_watch.scope("asynchronous") as scope:
            async with AsyncSession(engine) as session:
                await session.execute(text("SELECT pg_sleep(0.01)"))
                assert await session.run_sync(lambda each: each.get_one(Order, 1).customer.name)
                await session.commit()
    assert found(scope) == []


@pytest.mark.parametrize("options", [{}, {"poolclass": NullPool}, {"poolclass": StaticPool}], ids=str)
@pytest.mark.parametrize("driver", ["psycopg", "psycopg2", "sqlite"])
@in_event_loop
async def test_every_pool_and_driver(shop_url: str, driver: str, options: dict[str, Any]) -> None:
    engine = create_engine("sqlite://" if driver == "sqlite" else url_for(shop_url, driver), **options)
    sqla_watch.install(engine, settings=Settings(profile="test"))
    for _ in range(2):
        with sqla_watch.scope("pool") as scope, engine.connect() as connection:
            connection.execute(text("SELECT 1"))  # blocks
        assert place(only(scope)) == (__file__, line_of("blocks"))
    engine.dispose()


@in_event_loop
async def test_without_a_scope_it_is_told_for_the_connection(engine: Engine, watch: Watch) -> None:
    told: list[str] = []
    watch.reporters.append(lambda scope: told.extend(finding.rule for finding in scope.findings))
    names(engine)
    assert told == ["blocking-call"]


@pytest.mark.parametrize(("seconds", "is_found"), [(0.0, False), (0.06, True)])
@in_event_loop
async def test_production_waits_for_a_twentieth_of_a_second(
    engine: Engine, watch: Watch, seconds: float, is_found: bool
) -> None:
    watch.settings = Settings(profile="production")
    with sqla_watch.scope("production") as scope, engine.connect() as connection:
        connection.execute(text("SELECT pg_sleep(:seconds)"), {"seconds": seconds})
    assert len(scope.findings) == is_found


@in_event_loop
async def test_it_can_be_ignored(engine: Engine) -> None:
    with sqla_watch.scope("block") as scope, sqla_watch.ignore("blocking-call", reason="at the start only"):
        names(engine)
    assert found(scope) == []
    with sqla_watch.scope("comment") as scope, engine.connect() as connection:
        connection.execute(text("SELECT 1"))  # sqla-watch: ignore[blocking-call]
    assert found(scope) == []


@in_event_loop
async def test_an_ignored_statement_does_not_hide_another_one(engine: Engine) -> None:
    with sqla_watch.scope("two") as scope, engine.connect() as connection:
        with sqla_watch.ignore("blocking-call", reason="known"):
            connection.execute(text("SELECT pg_sleep(0.03)"))
        connection.execute(text("SELECT 1"))  # not known
    assert place(only(scope)) == (__file__, line_of("not known"))


@in_event_loop
async def test_the_warning_has_its_own_class(engine: Engine) -> None:
    def use(function: Callable[[Engine], Any]) -> list[type[Warning]]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with sqla_watch.scope("warned"):
                function(engine)
        return [each.category for each in caught]

    assert use(names) == [BlockingCallWarning]
