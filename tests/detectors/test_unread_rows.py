"""unread-rows: rows that were fetched for nothing are found; what was read, streamed or locked is not."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, exists, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

import sqla_watch
from sqla_watch import Settings, UnreadRowsWarning, Watch
from sqla_watch.demo.models import Customer, Item, Order
from tests.probes.application import DRIVERS, Application, entries
from tests.support import found, in_event_loop, line_of, only, place, watched_async_engine

pytestmark = [pytest.mark.usefixtures("watch"), pytest.mark.filterwarnings("ignore::sqla_watch.SqlaWatchWarning")]

ITEMS = select(Item.id).order_by(Item.id)


def test_first_of_a_whole_table_is_found_and_limit_repairs_it(engine: Engine) -> None:
    with sqla_watch.scope("first") as scope, Session(engine) as session:
        for _ in range(2):
            session.scalars(select(Item).order_by(Item.id)).first()  # the first one
    finding = only(scope)
    assert (finding.rule, finding.target, finding.severity) == ("unread-rows", "SELECT items", "medium")
    assert place(finding) == (__file__, line_of("the first one"))
    assert finding.message == "400 rows were fetched, and 1 read (SELECT items)"
    assert finding.evidence["rows_fetched"] == 400
    assert finding.evidence["rows_read"] == 1
    assert finding.evidence["rows"] == 800
    assert finding.evidence["statements"] == finding.statements == 2
    assert ".limit(1)" in finding.suggestion
    with sqla_watch.scope("limited") as scope, Session(engine) as session:
        session.scalars(select(Item).order_by(Item.id).limit(1)).first()
        session.scalar(select(exists().where(Item.quantity == 1)))
    assert found(scope) == []


def core_loop(connection: Connection) -> None:
    for row in connection.execute(ITEMS):
        if row.id == 5:
            break


@pytest.mark.parametrize(
    ("read", "rows"),
    [
        (lambda connection: connection.execute(ITEMS).first(), 1),
        (lambda connection: connection.scalar(ITEMS), 1),
        (lambda connection: connection.scalars(ITEMS).first(), 1),
        (lambda connection: connection.execute(ITEMS).fetchmany(40), 40),
        (lambda connection: connection.execute(ITEMS).close(), 0),
        (core_loop, 5),
        (lambda connection: connection.exec_driver_sql("SELECT id FROM items").fetchone(), 1),
        (lambda connection: connection.execute(text("SELECT id FROM items")).first(), 1),
    ],
)
def test_core_results_that_end_early(engine: Engine, read: Callable[[Connection], Any], rows: int) -> None:
    with sqla_watch.scope("core") as scope, engine.connect() as connection:
        read(connection)
    assert only(scope).evidence["rows_read"] == rows


@pytest.mark.parametrize(
    "read",
    [
        lambda session: session.query(Item).first(),  # which adds its own LIMIT
        lambda session: session.scalars(select(Item)).all(),
        lambda session: [item for item, _ in zip(session.scalars(select(Item)), range(2), strict=False)],
        lambda session: session.execute(select(Item.id).execution_options(yield_per=50)).first(),
        lambda session: session.execute(select(Item.id), execution_options={"stream_results": True}).first(),
        lambda session: session.execute(select(Item.id)).fetchmany(41),
        lambda session: session.execute(select(Item.id).limit(99)).first(),
        lambda session: session.execute(select(Item.id).with_for_update()).first(),
        lambda session: session.scalars(select(Order.id).where(Order.id < 0)).first(),
        lambda session: session.get_one(Customer, 1).orders,
    ],
)  # fmt: skip
def test_what_is_read_or_limited_or_streamed_is_silent(engine: Engine, read: Callable[[Session], Any]) -> None:
    with sqla_watch.scope("good") as scope, Session(engine) as session:
        read(session)
    assert found(scope) == []


@pytest.mark.parametrize(("rows", "is_found"), [(99, False), (100, True)])
def test_it_begins_with_a_hundred_rows(engine: Engine, rows: int, is_found: bool) -> None:
    with sqla_watch.scope("hundred") as scope, engine.connect() as connection:
        connection.execute(ITEMS.limit(rows)).first()
    assert len(scope.findings) == is_found


@pytest.mark.parametrize(("read", "is_found"), [(40, True), (41, False)])
def test_it_ends_with_a_tenth_that_is_read(engine: Engine, read: int, is_found: bool) -> None:
    with sqla_watch.scope("tenth") as scope, engine.connect() as connection:
        connection.execute(ITEMS).fetchmany(read)
    assert len(scope.findings) == is_found


@pytest.mark.parametrize(("rows", "is_found"), [(1000, False), (1001, True)])
def test_production_waits_for_a_thousand_rows(watch: Watch, engine: Engine, rows: int, is_found: bool) -> None:
    watch.settings = Settings(profile="production")
    query = text("SELECT items.id FROM items, orders LIMIT :rows")
    with sqla_watch.scope("production") as scope, engine.connect() as connection:
        connection.execute(query, {"rows": rows}).first()
    assert [each.rule for each in scope.findings] == (["unread-rows"] if is_found else [])


def test_a_result_of_five_thousand_is_told_by_one_rule(watch: Watch, engine: Engine) -> None:
    watch.settings = Settings(profile="test", rules={"oversized-result": {"min_rows": 300}})
    with sqla_watch.scope("unread") as scope, engine.connect() as connection:
        connection.execute(ITEMS).first()
    assert found(scope) == [("unread-rows", "SELECT items")]
    with sqla_watch.scope("read") as scope, engine.connect() as connection:
        connection.execute(ITEMS).all()
    assert found(scope) == [("oversized-result", "SELECT items")]


def test_it_can_be_ignored(engine: Engine) -> None:
    with sqla_watch.scope("ignored") as scope, engine.connect() as connection:
        with sqla_watch.ignore("unread-rows", "SELECT items", reason="small table"):
            connection.execute(ITEMS).first()
        connection.execute(ITEMS).first()  # sqla-watch: ignore[unread-rows]
    assert found(scope) == []
    assert sqla_watch.unused_ignores() == []


def test_an_exception_in_the_middle_is_not_covered_up(engine: Engine) -> None:
    with sqla_watch.scope("exception") as scope, pytest.raises(LookupError), engine.connect() as connection:
        for row in connection.execute(ITEMS):
            raise LookupError(row.id)
    assert scope.rows == 400


@pytest.fixture(params=DRIVERS)
def application(request: pytest.FixtureRequest, shop_url: str, tmp_path: Path) -> Iterator[Application]:
    application = Application(request.param, shop_url, tmp_path)
    application.fill()
    yield application
    application.clear()


def test_each_driver_that_has_all_rows_tells_of_them(application: Application) -> None:
    _, scope = application.run(lambda connection: connection.execute(select(entries.c.id)).first())
    if application.fetches_at_once:
        finding = only(scope)
        assert (finding.evidence["rows_fetched"], finding.evidence["rows_read"]) == (250, 1)
    else:
        assert found(scope) == []  # SQLite has fetched no more than what was asked for


@in_event_loop
async def test_async_first_is_found_at_its_line(shop_url: str) -> None:
    for driver in ("asyncpg", "psycopg"):
        async with watched_async_engine(shop_url, driver) as engine:
            with sqla_watch.scope("async") as scope:
                async with AsyncSession(engine) as session:
                    items = await session.scalars(select(Item).order_by(Item.id))  # awaits all of them
                    assert items.first() is not None
                    assert (await session.stream_scalars(ITEMS)) is not None
        assert place(only(scope)) == (__file__, line_of("awaits all of them"))


def test_the_warning_has_its_own_class(engine: Engine) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with sqla_watch.scope("warned"), engine.connect() as connection:
            connection.execute(ITEMS).first()
    assert [each.category for each in caught] == [UnreadRowsWarning]
