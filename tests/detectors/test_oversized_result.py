"""oversized-result: a statement that brings very many rows at once is found; streams and writes are not."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, func, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, joinedload, selectinload

import sqla_watch
from sqla_watch import OversizedResultWarning, Settings, Watch
from sqla_watch.demo.models import Customer, Item, Order
from tests.support import found, in_event_loop, line_of, only, place, watched_async_engine

pytestmark = [
    pytest.mark.usefixtures("watch"),
    pytest.mark.filterwarnings("ignore::sqla_watch.SqlaWatchWarning"),
]

both_drivers = pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
FROM_400_ROWS = {"oversized-result": {"min_rows": 400}}
"""The shop has 400 items."""


@pytest.fixture
def from_400_rows(watch: Watch) -> None:
    watch.settings = Settings(profile="test", rules=FROM_400_ROWS)


def test_five_thousand_rows_of_a_core_query_are_found(engine: Engine) -> None:
    with sqla_watch.scope("core") as scope, engine.connect() as connection:
        connection.execute(select(func.generate_series(1, 5000))).all()  # core query
        connection.execute(select(func.generate_series(1, 4999))).all()
    finding = only(scope)
    assert finding.rule == "oversized-result"
    assert finding.severity == "medium"
    assert place(finding) == (__file__, line_of("core query"))
    assert finding.evidence["rows"] == 5000
    assert finding.evidence["has_limit"] is False
    assert finding.evidence["statements"] == 1
    assert "has no LIMIT" in finding.message
    assert ".execution_options(yield_per=500)" in finding.suggestion


@pytest.mark.usefixtures("from_400_rows")
def test_a_whole_table_of_entities_is_found(engine: Engine) -> None:
    with sqla_watch.scope("orm") as scope, Session(engine) as session:
        session.scalars(select(Item)).all()  # whole table
    finding = only(scope)
    assert finding.target == "SELECT items"
    assert finding.evidence["rows"] == 400
    assert place(finding) == (__file__, line_of("whole table"))


@pytest.mark.usefixtures("from_400_rows")
def test_rows_that_nobody_reads_are_another_rule_s(engine: Engine) -> None:
    """The driver has fetched them all before `first` takes one."""
    with sqla_watch.scope("first") as scope, Session(engine) as session:
        session.scalars(select(Item).order_by(Item.id)).first()
    assert found(scope) == [("unread-rows", "SELECT items")]


@pytest.mark.usefixtures("from_400_rows")
def test_rows_count_as_they_came_and_not_as_the_entities_they_make(engine: Engine) -> None:
    with sqla_watch.scope("joined") as scope, Session(engine) as session:
        query = select(Order).options(joinedload(Order.items).joinedload(Item.product))
        assert len(session.scalars(query).unique().all()) == 100
    assert only(scope).evidence["rows"] == 400


@pytest.mark.usefixtures("from_400_rows")
def test_a_limit_that_is_too_high_is_named(engine: Engine) -> None:
    with sqla_watch.scope("limit") as scope, Session(engine) as session:
        session.scalars(select(Item).order_by(Item.id).limit(1000)).all()
    finding = only(scope)
    assert finding.evidence["has_limit"] is True
    assert "in spite of its LIMIT" in finding.message
    assert finding.suggestion.startswith("Lower its LIMIT")


@pytest.mark.usefixtures("from_400_rows")
def test_rows_of_a_returning_count(engine: Engine) -> None:
    with sqla_watch.scope("returning") as scope, engine.connect() as connection:
        connection.execute(update(Item).values(quantity=1).returning(Item.id)).all()
        connection.rollback()
    finding = only(scope)
    assert finding.rule == "oversized-result"
    assert finding.evidence["rows"] == 400


@pytest.mark.usefixtures("from_400_rows")
def test_partitions_of_a_result_that_was_fetched_whole_are_no_stream(engine: Engine) -> None:
    with sqla_watch.scope("partitions") as scope, engine.connect() as connection:
        sizes = [len(part) for part in connection.execute(select(Item.id)).partitions(150)]
    assert sizes == [150, 150, 100]
    assert only(scope).evidence["rows"] == 400


@pytest.mark.usefixtures("from_400_rows")
def test_the_same_line_several_times_is_one_finding_with_its_largest_result(engine: Engine) -> None:
    with sqla_watch.scope("several") as scope, Session(engine) as session:
        for least in (1, 0):
            session.execute(select(Item.id).where(Item.id > least)).all()
    finding = only(scope)
    assert finding.evidence["rows"] == 400
    assert finding.evidence["statements"] == 2


@both_drivers
@in_event_loop
async def test_async_a_large_result_is_found(shop_url: str, driver: str) -> None:
    async with watched_async_engine(shop_url, driver, rules=FROM_400_ROWS) as engine:
        with sqla_watch.scope("async") as scope:
            async with AsyncSession(engine) as session:
                (await session.scalars(select(Item))).all()  # async session
            async with engine.connect() as connection:
                (await connection.execute(text("SELECT id, quantity FROM items"))).all()  # async engine
    assert {place(finding) for finding in scope.findings} == {
        (__file__, line_of("async session")),
        (__file__, line_of("async engine")),
    }
    assert [finding.evidence["rows"] for finding in scope.findings] == [400, 400]


def test_without_any_scope_the_warning_comes_when_the_connection_goes_back(engine: Engine) -> None:
    with engine.connect() as connection:
        connection.execute(select(func.generate_series(1, 5000))).all()  # no scope
        with pytest.warns(OversizedResultWarning) as warned:
            connection.close()
    (warning,) = warned
    assert (warning.filename, warning.lineno) == (__file__, line_of("no scope"))


# Good code


@pytest.mark.usefixtures("from_400_rows")
def test_a_page_is_fine(engine: Engine) -> None:
    with sqla_watch.scope("page") as scope, Session(engine) as session:
        session.scalars(select(Item).order_by(Item.id).limit(399)).all()
    assert found(scope) == []


@pytest.mark.usefixtures("from_400_rows")
def test_several_small_results_are_not_added_up(engine: Engine) -> None:
    with sqla_watch.scope("pages") as scope, Session(engine) as session:
        for page in range(4):
            session.execute(select(Item.id).order_by(Item.id).limit(100).offset(page * 100)).all()
    assert scope.rows == 400
    assert found(scope) == []


@pytest.mark.usefixtures("from_400_rows")
def test_streamed_results_are_fine(engine: Engine) -> None:
    with sqla_watch.scope("streams") as scope:
        with Session(engine) as session:
            for _ in session.scalars(select(Item).execution_options(yield_per=50)):
                pass
            for _ in session.scalars(select(Item)).yield_per(50):
                pass
        with engine.connect() as connection:
            for _ in connection.execution_options(stream_results=True).execute(select(Item.id)):
                pass
    assert scope.rows == 1200
    # `Result.yield_per` comes after the driver has fetched them all: that one is no stream.
    assert [finding.evidence["rows"] for finding in scope.findings] == [400]


def test_on_sqlite_which_makes_each_row_when_it_is_asked_for(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'numbers.db'}")
    sqla_watch.install(engine, settings=Settings(profile="test", rules=FROM_400_ROWS))
    numbers = text("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 400) SELECT i FROM n")
    with sqla_watch.scope("pieces") as pieces, engine.connect() as connection:
        assert sum(1 for _ in connection.execute(numbers).yield_per(50)) == 400
    with sqla_watch.scope("at once") as at_once, engine.connect() as connection:
        assert len(connection.execute(numbers).all()) == 400
    engine.dispose()
    assert (pieces.rows, found(pieces)) == (400, [])
    assert only(at_once).evidence["rows"] == 400


@both_drivers
@in_event_loop
async def test_async_streams_are_fine(shop_url: str, driver: str) -> None:
    async with watched_async_engine(shop_url, driver, rules=FROM_400_ROWS) as engine:
        with sqla_watch.scope("async streams") as scope:
            async with AsyncSession(engine) as session:
                async for _ in await session.stream_scalars(select(Item)):
                    pass
            async with engine.connect() as connection, connection.stream(select(Item.id)) as result:
                async for _ in result.partitions(100):
                    pass
    assert scope.rows == 800
    assert scope.statements == 2
    assert found(scope) == []


@pytest.mark.usefixtures("from_400_rows")
def test_rows_that_an_update_changed_did_not_come_to_the_application(engine: Engine) -> None:
    with sqla_watch.scope("update") as scope, engine.connect() as connection:
        assert connection.execute(update(Item).values(quantity=1)).rowcount == 400
        connection.rollback()
    assert scope.rows == 0
    assert found(scope) == []


@pytest.mark.usefixtures("from_400_rows")
def test_what_an_eager_load_brings_is_left_to_the_query_that_asked_for_it(engine: Engine) -> None:
    with sqla_watch.scope("eager") as scope, Session(engine) as session:
        session.scalars(select(Customer).options(selectinload(Customer.orders).selectinload(Order.items))).all()
    assert scope.rows == 20 + 100 + 400
    assert found(scope) == []


def test_production_allows_twice_as_many(engine: Engine, watch: Watch) -> None:
    watch.settings = Settings(profile="production")
    with sqla_watch.scope("production") as scope, engine.connect() as connection:
        connection.execute(select(func.generate_series(1, 9999))).all()
    assert found(scope) == []
    with sqla_watch.scope("production") as scope, engine.connect() as connection:
        connection.execute(select(func.generate_series(1, 10_000))).all()
    assert [finding.rule for finding in scope.findings] == ["oversized-result"]
