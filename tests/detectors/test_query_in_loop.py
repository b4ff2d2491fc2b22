"""query-in-loop: one SELECT sent again and again with other values is found at its line; few or various are not."""

from __future__ import annotations

import asyncio
from decimal import Decimal

import pytest
from sqlalchemy import Engine, Executable, ForeignKey, bindparam, func, select, text, union_all
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import DeclarativeBase, DynamicMapped, Mapped, Session, WriteOnlyMapped, mapped_column, relationship

import sqla_watch
from sqla_watch import Finding, FindingRaised, QueryInLoopWarning, Settings, Watch
from sqla_watch.demo.models import Customer, Item, Order, Product
from tests.support import found, in_event_loop, line_of, only, place, watched_async_engine

pytestmark = [
    pytest.mark.usefixtures("watch"),
    pytest.mark.filterwarnings("ignore::sqla_watch.SqlaWatchWarning"),
]

customers = Customer.__table__
orders = Order.__table__
both_drivers = pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])


def assert_is_the_loop_over_customers(finding: Finding, *, line: int) -> None:
    assert finding.rule == "query-in-loop"
    assert finding.target == "SELECT customers"
    assert finding.severity == "high"
    assert place(finding) == (__file__, line)
    assert finding.evidence["statements"] == 8
    assert finding.evidence["different_values"] == 8
    assert finding.evidence["rows"] == 8
    assert 0 < finding.evidence["database_seconds"] < 5  # type: ignore[operator]
    assert "select(...).where(customers.c.id.in_(values))" in finding.suggestion
    assert "WHERE customers.id = " in finding.statement


def test_a_core_query_in_a_loop_is_found_at_its_line(engine: Engine) -> None:
    with sqla_watch.scope("core") as scope, engine.connect() as connection:
        for number in range(1, 9):
            connection.execute(select(customers).where(customers.c.id == number)).one()  # core loop
    assert_is_the_loop_over_customers(only(scope), line=line_of("core loop"))


def test_session_get_in_a_loop_is_found(engine: Engine) -> None:
    with sqla_watch.scope("get") as scope, Session(engine) as session:
        for number in range(1, 9):
            session.get(Customer, number)  # get loop
    assert_is_the_loop_over_customers(only(scope), line=line_of("get loop"))


def test_an_orm_query_in_a_loop_is_found(engine: Engine) -> None:
    with sqla_watch.scope("orm") as scope, Session(engine) as session:
        for number in range(1, 9):
            session.scalars(select(Customer).where(Customer.id == number)).one()  # orm loop
    assert_is_the_loop_over_customers(only(scope), line=line_of("orm loop"))


def test_the_legacy_query_in_a_loop_is_found(engine: Engine) -> None:
    with sqla_watch.scope("legacy") as scope, Session(engine) as session:
        for number in range(1, 9):
            session.query(Customer).filter_by(id=number).one()  # legacy loop
    assert_is_the_loop_over_customers(only(scope), line=line_of("legacy loop"))


@both_drivers
@in_event_loop
async def test_an_async_core_query_in_a_loop_is_found(shop_url: str, driver: str) -> None:
    async with watched_async_engine(shop_url, driver) as engine:
        with sqla_watch.scope("async core") as scope:
            async with engine.connect() as connection:
                for number in range(1, 9):
                    query = select(customers).where(customers.c.id == number)
                    (await connection.execute(query)).one()  # async core loop
    assert_is_the_loop_over_customers(only(scope), line=line_of("async core loop"))


@both_drivers
@in_event_loop
async def test_async_session_get_in_a_loop_is_found(shop_url: str, driver: str) -> None:
    async with watched_async_engine(shop_url, driver) as engine:
        with sqla_watch.scope("async get") as scope:
            async with AsyncSession(engine) as session:
                for number in range(1, 9):
                    await session.get(Customer, number)  # async get loop
                    await asyncio.sleep(0)
    assert_is_the_loop_over_customers(only(scope), line=line_of("async get loop"))


def name_of(session: Session, number: int) -> str | None:
    return session.scalar(select(Customer.name).where(Customer.id == number))  # in the other function


def test_a_function_that_is_called_in_a_loop_is_found_at_its_own_line(engine: Engine) -> None:
    with sqla_watch.scope("function") as scope, Session(engine) as session:
        for number in range(1, 7):
            name_of(session, number)
    finding = only(scope)
    assert place(finding) == (__file__, line_of("in the other function"))
    assert finding.location is not None
    assert finding.location.function == "name_of"
    assert finding.evidence["different_values"] == 6


def test_a_comprehension_is_a_loop(engine: Engine) -> None:
    with sqla_watch.scope("comprehension") as scope, Session(engine) as session:
        [session.get(Customer, number) for number in range(1, 7)]  # in a comprehension
    finding = only(scope)
    assert place(finding) == (__file__, line_of("in a comprehension"))
    assert finding.location is not None
    assert finding.location.function == "test_a_comprehension_is_a_loop"


def test_a_walk_down_a_tree_is_a_loop(engine: Engine) -> None:
    """Five levels of the same function: what is called from itself is still one place."""

    def visit(session: Session, number: int) -> None:
        session.scalar(select(Customer.name).where(Customer.id == number))  # each node
        for child in (2 * number, 2 * number + 1):
            if child <= 20:
                visit(session, child)

    with sqla_watch.scope("tree") as scope, Session(engine) as session:
        visit(session, 1)
    assert scope.statements == 20
    assert found(scope) == [("query-in-loop", "SELECT customers")]
    assert place(only(scope)) == (__file__, line_of("each node"))


def test_two_statements_in_one_loop_are_two_findings(engine: Engine) -> None:
    with sqla_watch.scope("two") as scope, Session(engine) as session:
        for number in range(1, 6):
            session.scalar(select(Customer.name).where(Customer.id == number))
            session.scalar(select(func.count()).where(Order.customer_id == number))
    assert found(scope) == [("query-in-loop", "SELECT customers"), ("query-in-loop", "SELECT orders")]


def test_the_worst_loop_comes_first(engine: Engine) -> None:
    with sqla_watch.scope("worst first") as scope, engine.connect() as connection:
        for number in range(1, 6):
            connection.execute(select(customers.c.name).where(customers.c.id == number))
        for number in range(1, 6):
            connection.execute(select(orders.c.id, func.pg_sleep(0.005)).where(orders.c.id == number))
    assert [finding.target for finding in scope.findings] == ["SELECT orders", "SELECT customers"]


@pytest.mark.parametrize(
    "query",
    [
        pytest.param(select(customers.c.id).where(customers.c.id == bindparam("number")), id="select"),
        pytest.param(text("SELECT name FROM customers WHERE id = :number"), id="text"),
        pytest.param(
            text("WITH one AS (SELECT id, name FROM customers WHERE id = :number) SELECT name FROM one"), id="cte"
        ),
        pytest.param(
            union_all(
                select(customers.c.id).where(customers.c.id == bindparam("number")),
                select(orders.c.id).where(orders.c.id == bindparam("number")),
            ),
            id="union",
        ),
        pytest.param(
            select(orders.c.id).where(orders.c.customer_id == bindparam("number"), orders.c.id > bindparam("least", 5)),
            id="a range beside the value that changes",
        ),
        pytest.param(
            select(orders.c.id)
            .where(orders.c.customer_id == bindparam("number"))
            .order_by(orders.c.id)
            .limit(3)
            .offset(0),
            id="a page beside the value that changes",
        ),
        pytest.param(
            select(customers.c.id).where(customers.c.name.like(func.concat("%", bindparam("number", 0)))), id="like"
        ),
    ],
)
def test_whatever_the_select_looks_like_its_loop_is_found(engine: Engine, query: Executable) -> None:
    with sqla_watch.scope("shapes") as scope, engine.connect() as connection:
        for number in range(1, 6):
            connection.execute(query, {"number": number})
    finding = only(scope)
    assert finding.rule == "query-in-loop"
    assert finding.evidence["different_values"] == 5


def test_values_pasted_into_the_text_are_values_too(engine: Engine) -> None:
    with sqla_watch.scope("pasted") as scope, engine.connect() as connection:
        for number in range(1, 6):
            connection.exec_driver_sql(f"SELECT name FROM customers WHERE id = {number}")
    finding = only(scope)
    assert finding.rule == "query-in-loop"
    assert finding.statement == "SELECT name FROM customers WHERE id = ?"
    assert finding.evidence["different_values"] == 5


def test_short_in_lists_are_no_chunks(engine: Engine) -> None:
    with sqla_watch.scope("short lists") as scope, engine.connect() as connection:
        for number in range(1, 7):
            connection.execute(select(customers).where(customers.c.id.in_([number, number + 1])))
    assert found(scope) == [("query-in-loop", "SELECT customers")]


def test_values_of_every_type_are_told_apart(engine: Engine) -> None:
    """Lists cannot be hashed by Python, and Decimal("1.0") equals 1."""
    with sqla_watch.scope("lists") as scope, engine.connect() as connection:
        for number in range(1, 6):
            connection.execute(text("SELECT id FROM customers WHERE id = ANY(:numbers)"), {"numbers": [number]})
        for number in range(1, 6):
            connection.execute(select(Product.__table__.c.id).where(Product.__table__.c.price == Decimal(number)))
    assert found(scope) == [("query-in-loop", "SELECT customers"), ("query-in-loop", "SELECT products")]


def test_only_what_differs_is_counted(engine: Engine) -> None:
    with sqla_watch.scope("twelve of six") as scope, engine.connect() as connection:
        for number in [*range(1, 7), *range(1, 7)]:
            connection.execute(select(customers).where(customers.c.id == number))
    finding = next(finding for finding in scope.findings if finding.rule == "query-in-loop")
    assert finding.evidence["statements"] == 12
    assert finding.evidence["different_values"] == 6


def test_without_any_scope_the_warning_comes_when_the_connection_goes_back(engine: Engine) -> None:
    with engine.connect() as connection:
        for number in range(1, 6):
            connection.execute(select(customers).where(customers.c.id == number))  # no scope
        with pytest.warns(QueryInLoopWarning) as warned:
            connection.close()
    (warning,) = warned
    assert warning.filename == __file__
    assert warning.lineno == line_of("no scope")


def test_with_the_action_raise_the_statement_that_makes_it_a_loop_raises(engine: Engine, watch: Watch) -> None:
    watch.settings = Settings(profile="test", rules={"query-in-loop": "raise"})
    with sqla_watch.scope("raise") as scope, Session(engine) as session:
        with pytest.raises(FindingRaised) as raised:
            for number in range(1, 100):
                session.get(Customer, number)
        assert number == 5
    assert raised.value.finding.rule == "query-in-loop"
    assert scope.statements == 5


class Again(DeclarativeBase):
    """Base of the shop's classes once more, with a collection that is never loaded by itself."""


class CustomerOfMany(Again):
    __tablename__ = "customers"

    id: Mapped[int] = mapped_column(primary_key=True)
    orders: WriteOnlyMapped[OrderOfMany] = relationship()
    latest: DynamicMapped[OrderOfMany] = relationship(viewonly=True)


class OrderOfMany(Again):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    customer_id: Mapped[int] = mapped_column(ForeignKey("customers.id"))


def test_write_only_and_dynamic_relationships_send_queries_of_the_applications_own(engine: Engine) -> None:
    with sqla_watch.scope("write only") as scope, Session(engine) as session:
        for customer in session.scalars(select(CustomerOfMany).limit(6)):
            session.scalars(customer.orders.select()).all()  # write only
            customer.latest.all()  # dynamic
    assert found(scope) == [("query-in-loop", "SELECT orders"), ("query-in-loop", "SELECT orders")]
    assert {place(finding)[1] for finding in scope.findings} == {line_of("write only"), line_of("dynamic")}


# Good code


def test_four_values_are_fine(engine: Engine) -> None:
    with sqla_watch.scope("four") as scope, Session(engine) as session:
        for number in range(1, 5):
            session.get(Customer, number)
    assert found(scope) == []


def test_one_statement_for_all_values_is_fine(engine: Engine) -> None:
    numbers = list(range(1, 9))
    with sqla_watch.scope("repaired") as scope, Session(engine) as session:
        found_customers = session.scalars(select(Customer).where(Customer.id.in_(numbers))).all()
    assert len(found_customers) == 8
    assert found(scope) == []
    assert scope.statements == 1


def test_another_threshold_can_be_set(engine: Engine, watch: Watch) -> None:
    watch.settings = Settings(profile="test", rules={"query-in-loop": {"min_values": 3}})
    for values, expected in ((2, []), (3, [("query-in-loop", "SELECT customers")])):
        with sqla_watch.scope("threshold") as scope, Session(engine) as session:
            for number in range(1, values + 1):
                session.get(Customer, number)
        assert found(scope) == expected


def test_production_is_silent_about_nine_values_and_about_fast_ones(engine: Engine, watch: Watch) -> None:
    watch.settings = Settings(profile="production")
    with sqla_watch.scope("nine, slow") as scope, engine.connect() as connection:
        for number in range(1, 10):
            connection.execute(select(customers.c.id, func.pg_sleep(0.01)).where(customers.c.id == number))
    assert found(scope) == []
    watch.settings = Settings(profile="production", rules={"query-in-loop": {"min_seconds": 5.0}})
    with sqla_watch.scope("eleven, fast") as scope, engine.connect() as connection:
        for number in range(1, 12):
            connection.execute(select(customers.c.id).where(customers.c.id == number))
    assert found(scope) == []


def test_production_speaks_of_ten_values_that_take_long(engine: Engine, watch: Watch) -> None:
    watch.settings = Settings(profile="production")
    with sqla_watch.scope("ten, slow") as scope, engine.connect() as connection:
        for number in range(1, 11):
            connection.execute(select(customers.c.id, func.pg_sleep(0.006)).where(customers.c.id == number))
    finding = only(scope)
    assert finding.rule == "query-in-loop"
    assert finding.evidence["database_seconds"] >= 0.06  # type: ignore[operator]


def test_what_n_plus_one_explains_is_not_told_twice(engine: Engine) -> None:
    with sqla_watch.scope("lazy") as scope, Session(engine) as session:
        for item in session.scalars(select(Item).limit(10)):
            item.product.name
    assert found(scope) == [("n-plus-one", "Item.product")]


def look_up(engine: Engine, number: int) -> str | None:
    with Session(engine) as session:
        return session.scalar(select(Customer.name).where(Customer.id == number))  # looks one up


def test_a_helper_that_gets_a_session_for_each_call_is_a_loop(engine: Engine) -> None:
    with sqla_watch.scope("repository") as scope, Session(engine) as outer:
        outer.scalars(select(Order).limit(1)).one()
        names = [look_up(engine, number) for number in range(1, 8)]
    assert len(set(names)) == 7
    finding = only(scope)
    assert place(finding) == (__file__, line_of("looks one up"))
    assert finding.evidence["different_values"] == 7
    assert finding.evidence["connections"] == 7
    assert "over 7 connections" in finding.message


def test_the_helper_that_asks_the_same_again_is_polling(engine: Engine) -> None:
    with sqla_watch.scope("polling") as scope:
        for _ in range(7):
            look_up(engine, 3)
    assert scope.findings == []


def test_units_of_work_are_no_loop(engine: Engine) -> None:
    with sqla_watch.scope("units") as scope:
        for number in range(1, 8):
            with Session(engine) as session:
                order = session.get_one(Order, number)
                order.status = "seen"
                session.flush()
                session.rollback()
    assert scope.findings == []


def test_a_whole_program_is_no_loop_over_connections(engine: Engine) -> None:
    with sqla_watch.scope("worker", kind="run") as scope:
        for number in range(1, 8):
            look_up(engine, number)
    assert scope.findings == []


@pytest.mark.parametrize(
    ("query", "advice"),
    [
        ("select id from orders where id = :number", "orders.c.id.in_(values)"),
        ("SELECT id FROM orders WHERE status = 'new' AND id = :number", "tuple_(...).in_(values)"),
        ("SELECT id FROM orders WHERE customer_id = :number ORDER BY id DESC LIMIT 1", "join with LATERAL"),
        ("WITH o AS (SELECT id FROM orders WHERE id = :number) SELECT id FROM o", "tuple_(...).in_(values)"),
    ],
)
def test_the_advice_fits_the_statement(engine: Engine, query: str, advice: str) -> None:
    with sqla_watch.scope("advice") as scope, engine.connect() as connection:
        for number in range(1, 8):
            connection.execute(text(query), {"number": number}).all()
    assert advice in only(scope).suggestion


def test_two_loops_in_one_function_are_two_findings(engine: Engine) -> None:
    with sqla_watch.scope("two") as scope, engine.connect() as connection:
        for number in range(1, 8):
            connection.execute(text("SELECT id FROM orders WHERE id = :number"), {"number": number})
        for number in range(1, 8):
            connection.execute(text("SELECT id FROM orders WHERE customer_id = :number"), {"number": number})
    assert len(scope.findings) == 2
    assert len({finding.key for finding in scope.findings}) == 2


@in_event_loop
async def test_look_ups_at_once_are_no_loop(shop_url: str) -> None:
    async def look_up_one(engine: AsyncEngine, number: int) -> str | None:
        async with AsyncSession(engine) as session:
            return await session.scalar(
                select(Customer.name).where(Customer.id == number, func.pg_sleep(0.05).is_not(None))
            )

    async with watched_async_engine(shop_url, pool_size=10) as engine:
        with sqla_watch.scope("gather") as scope:
            names = await asyncio.gather(*(look_up_one(engine, number) for number in range(1, 8)))
        assert len(set(names)) == 7
        assert found(scope) == []
        with sqla_watch.scope("one after the other") as scope:
            for number in range(1, 8):
                await look_up_one(engine, number)
        assert found(scope) == [("query-in-loop", "SELECT customers")]


def test_a_test_that_asks_for_many_things_is_no_loop_over_connections(engine: Engine) -> None:
    with sqla_watch.scope("test_orders", kind="test") as scope:
        for number in range(1, 9):
            look_up(engine, number)
    assert found(scope) == []
