"""Rules that read the shape of one statement: select-star, deep-offset, limit-without-order-by, large-in-list."""

from __future__ import annotations

import doctest

import pytest
from sqlalchemy import ARRAY, Engine, Integer, func, literal, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, joinedload, selectinload

import sqla_watch
from sqla_watch import Settings, Watch
from sqla_watch.demo.models import Customer, Item, Order
from sqla_watch.detectors import deep_offset
from tests.support import found, in_event_loop, line_of, only, place, watched_async_engine

pytestmark = [pytest.mark.usefixtures("watch"), pytest.mark.filterwarnings("ignore::sqla_watch.SqlaWatchWarning")]


@pytest.fixture
def small(watch: Watch) -> None:
    """Thresholds for the shop of the tests."""
    watch.settings = Settings(
        profile="test", rules={"deep-offset": {"min_offset": 50}, "large-in-list": {"min_values": 60}}
    )


# select-star


@pytest.mark.parametrize(
    "query",
    [
        "SELECT * FROM orders",
        "select orders.* from orders where id = 3",
        "SELECT DISTINCT o.* FROM orders o",
        "SELECT id, o.* FROM orders AS o",
        "SELECT o.*, c.name FROM orders o JOIN customers c ON c.id = o.customer_id",
        "SELECT * FROM orders WHERE id IN (SELECT order_id FROM items)",
    ],
)
def test_a_star_over_a_table_is_found(engine: Engine, query: str) -> None:
    with sqla_watch.scope("star") as scope, engine.connect() as connection:
        connection.execute(text(query)).all()  # asks for all
    finding = only(scope)
    assert finding.rule == "select-star"
    assert place(finding) == (__file__, line_of("asks for all"))
    assert "FROM orders" in finding.suggestion


@pytest.mark.parametrize(
    "query",
    [
        "SELECT count(*) FROM orders",
        "SELECT id FROM orders WHERE EXISTS (SELECT * FROM items WHERE order_id = orders.id)",
        "SELECT * FROM (SELECT id, status FROM orders) AS o",
        "WITH o AS (SELECT id, status FROM orders) SELECT * FROM o",
        "SELECT id * customer_id FROM orders",
        "SELECT '*' FROM orders",
        "SELECT * FROM generate_series(1, 3)",
        "INSERT INTO rates SELECT * FROM rates WHERE false",
    ],
)
def test_other_stars_are_fine(engine: Engine, query: str) -> None:
    with sqla_watch.scope("no star") as scope, engine.connect() as connection:
        result = connection.execute(text(query))
        if result.returns_rows:
            result.all()
    assert found(scope) == []


def test_a_star_that_loads_entities_is_fine(engine: Engine) -> None:
    with sqla_watch.scope("entities") as scope, Session(engine) as session:
        session.scalars(select(Order).from_statement(text("SELECT * FROM orders"))).all()
        session.scalars(select(Order)).all()
    assert found(scope) == []


# deep-offset


@pytest.mark.usefixtures("small")
def test_a_deep_page_is_found_with_the_keyset_of_its_order(engine: Engine) -> None:
    page = select(Order).order_by(Order.placed_at.desc(), Order.id.desc()).limit(5)
    with sqla_watch.scope("deep") as scope, Session(engine) as session:
        for offset in (0, 20, 80):
            session.scalars(page.offset(offset)).all()  # turns the page
    finding = only(scope)
    assert finding.rule == "deep-offset"
    assert place(finding) == (__file__, line_of("turns the page"))
    assert finding.evidence["offset"] == 80
    assert finding.suggestion.endswith(".where(tuple_(orders.c.placed_at, orders.c.id) < (last.placed_at, last.id))")


@pytest.mark.usefixtures("small")
def test_a_deep_page_in_plain_sql_is_found_too(engine: Engine) -> None:
    with sqla_watch.scope("plain") as scope, engine.connect() as connection:
        connection.execute(text("SELECT id FROM orders ORDER BY id LIMIT 5 OFFSET 90"))
        connection.execute(text("SELECT status FROM orders ORDER BY id LIMIT :n OFFSET :skip"), {"n": 5, "skip": 90})
        connection.execute(text("SELECT placed_at FROM orders ORDER BY id OFFSET 90 ROWS FETCH NEXT 5 ROWS ONLY"))
    assert found(scope) == [("deep-offset", "SELECT orders")] * 3
    assert {finding.evidence["offset"] for finding in scope.findings} == {90}


@in_event_loop
async def test_async_a_deep_page_is_found(shop_url: str) -> None:
    async with watched_async_engine(shop_url, rules={"deep-offset": {"min_offset": 50}}) as engine:
        with sqla_watch.scope("async") as scope:
            async with AsyncSession(engine) as session:
                await session.scalars(select(Order).order_by(Order.id).limit(5).offset(60))
    assert only(scope).evidence["offset"] == 60


@pytest.mark.usefixtures("small")
def test_a_page_behind_the_end_is_fine(engine: Engine) -> None:
    """A walk that stops at the first empty page skipped no more than there was."""
    with sqla_watch.scope("end") as scope, Session(engine) as session:
        session.scalars(select(Order).order_by(Order.id).limit(5).offset(1_000)).all()
    assert found(scope) == []


@pytest.mark.usefixtures("small")
def test_shallow_pages_and_offsets_inside_are_fine(engine: Engine) -> None:
    inner = select(Order.id).order_by(Order.id).offset(80).limit(5).subquery()
    with sqla_watch.scope("shallow") as scope, Session(engine) as session:
        session.scalars(select(Order).order_by(Order.id).limit(5).offset(49)).all()
        session.scalars(select(func.count()).select_from(inner)).all()
    assert found(scope) == []


@pytest.mark.parametrize(
    ("order", "condition"),
    [
        ("orders.id", ".where(orders.c.id > last.id)"),
        ("id DESC NULLS LAST", ".where(id < last.id)"),
        ("a ASC, b ASC", ".where(tuple_(a, b) > (last.a, last.b))"),
        ("t.a DESC, t.id", ".where(or_(t.c.a < last.a, and_(t.c.a == last.a, t.c.id > last.id)))"),
        ("lower(name)", ".order_by(table.c.id).where(table.c.id > last.id)  # an order by a unique key comes first"),
        ("", ".order_by(table.c.id).where(table.c.id > last.id)  # an order by a unique key comes first"),
    ],
)
def test_the_keyset_fits_the_order(order: str, condition: str) -> None:
    assert deep_offset.keyset(order) == condition


def test_the_examples_of_the_documentation() -> None:
    assert doctest.testmod(deep_offset).failed == 0


# limit-without-order-by


def test_pages_without_an_order_are_found(engine: Engine) -> None:
    with sqla_watch.scope("pages") as scope, Session(engine) as session:
        session.scalars(select(Order).limit(10).offset(20)).all()
        session.execute(text("SELECT id FROM customers LIMIT 5 OFFSET 5")).all()
    assert found(scope) == [
        ("limit-without-order-by", "SELECT customers"),
        ("limit-without-order-by", "SELECT orders"),
    ]
    assert any(".order_by(orders.c.id)" in finding.suggestion for finding in scope.findings)


def test_what_needs_no_order_is_fine(engine: Engine) -> None:
    with sqla_watch.scope("fine") as scope, Session(engine) as session:
        session.scalars(select(Order).limit(1).offset(3)).first()
        session.scalars(select(Order).order_by(Order.id).limit(10).offset(20)).all()
        session.scalars(select(Order).limit(10)).all()
        session.scalars(select(Order).limit(10).offset(3).with_for_update(skip_locked=True)).all()
        session.scalars(
            select(Order).options(joinedload(Order.items)).order_by(Order.id).limit(5).offset(2)
        ).unique().all()
        session.scalars(select(func.generate_series(1, 20)).limit(5).offset(2)).all()
    assert found(scope) == []


# large-in-list


@pytest.mark.usefixtures("small")
def test_a_long_list_is_found(engine: Engine) -> None:
    many = list(range(1, 81))
    with sqla_watch.scope("long") as scope, Session(engine) as session:
        session.scalars(select(Item.id).where(Item.order_id.in_(many), Item.quantity == 1)).all()
        session.execute(text(f"SELECT id FROM orders WHERE id IN ({', '.join(map(str, many))})")).all()
    assert found(scope) == [("large-in-list", "SELECT items"), ("large-in-list", "SELECT orders")]
    assert {finding.evidence["values"] for finding in scope.findings} == {80}


@in_event_loop
async def test_async_a_long_list_is_found(shop_url: str) -> None:
    async with watched_async_engine(shop_url, rules={"large-in-list": {"min_values": 60}}) as engine:
        with sqla_watch.scope("async") as scope:
            async with AsyncSession(engine) as session:
                await session.scalars(select(Item.id).where(Item.order_id.in_(range(80)), Item.quantity == 1))
    assert only(scope).evidence["values"] == 80


@pytest.mark.usefixtures("small")
def test_short_lists_arrays_and_batches_are_fine(engine: Engine) -> None:
    many = list(range(1, 81))
    with sqla_watch.scope("fine") as scope, Session(engine) as session:
        session.scalars(select(Item.id).where(Item.order_id.in_(many[:50]))).all()
        session.scalars(select(Item.id).where(Item.order_id == func.any(literal(many, ARRAY(Integer))))).all()
        session.scalars(select(Customer).options(selectinload(Customer.orders).selectinload(Order.items))).all()
    assert found(scope) == []
