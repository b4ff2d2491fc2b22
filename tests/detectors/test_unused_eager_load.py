"""unused-eager-load: relationships that were loaded for nothing are found, if one asks for it; read ones are not."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, ForeignKey, create_engine, inspect, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    contains_eager,
    joinedload,
    mapped_column,
    relationship,
    selectinload,
    subqueryload,
)

import sqla_watch
from sqla_watch import Settings, UnusedEagerLoadWarning, Watch
from sqla_watch.demo.models import Customer, Item, Order
from tests.conftest import url_for
from tests.support import found, in_event_loop, line_of, only, place, watched_async_engine

pytestmark = [pytest.mark.usefixtures("on"), pytest.mark.filterwarnings("ignore::sqla_watch.SqlaWatchWarning")]

RULES = {"unused-eager-load": "warn"}


@pytest.fixture
def on(engine: Engine) -> Watch:
    return sqla_watch.install(engine, settings=Settings(profile="test", rules=RULES))


def test_items_that_nobody_reads_are_found_and_no_option_repairs_it(engine: Engine) -> None:
    with sqla_watch.scope("unused") as scope, Session(engine) as session:
        query = select(Order).options(selectinload(Order.items)).order_by(Order.id).limit(10)
        for order in session.scalars(query):  # loads them
            order.status
    finding = only(scope)
    assert (finding.rule, finding.target, finding.severity) == ("unused-eager-load", "Order.items", "low")
    assert place(finding) == (__file__, line_of("loads them"))
    assert finding.message == "Order.items was loaded eagerly and never read (40 rows)"
    assert finding.evidence["relationship"] == "Order.items"
    assert (finding.evidence["objects"], finding.evidence["rows"], finding.evidence["statements"]) == (10, 40, 1)
    assert ".options(lazyload(Order.items))" in finding.suggestion
    with sqla_watch.scope("repaired") as scope, Session(engine) as session:
        assert [order.status for order in session.scalars(select(Order).limit(10))]
    assert found(scope) == []


@pytest.mark.parametrize("option", [selectinload, subqueryload, joinedload])
def test_each_way_to_load_is_judged(engine: Engine, option: Callable[..., object]) -> None:
    for reads, expected in ((False, [("unused-eager-load", "Order.items")]), (True, [])):
        with sqla_watch.scope("ways") as scope, Session(engine) as session:
            query = select(Order).options(option(Order.items)).order_by(Order.id).limit(10)  # type: ignore[arg-type]
            for order in session.scalars(query).unique():
                order.status
            if reads:
                assert len(order.items) == 4  # of one of them only
        assert found(scope) == expected


def test_contains_eager_is_judged_as_well(engine: Engine) -> None:
    query = select(Order).join(Order.customer).options(contains_eager(Order.customer)).limit(10)
    with sqla_watch.scope("contains") as scope, Session(engine) as session:
        assert [order.status for order in session.scalars(query)]
    assert found(scope) == [("unused-eager-load", "Order.customer")]


@pytest.mark.parametrize(
    "option",
    [
        selectinload(Order.items).selectinload(Item.product),
        joinedload(Order.items).joinedload(Item.product),
        joinedload(Order.items).selectinload(Item.product),
        selectinload(Order.items).joinedload(Item.product),
    ],
    ids=["selectin, selectin", "joined, joined", "joined, selectin", "selectin, joined"],
)
def test_only_the_end_of_a_chain_is_unused(engine: Engine, option: Any) -> None:
    with sqla_watch.scope("chain") as scope, Session(engine) as session:
        query = select(Order).options(option).limit(10)
        orders = session.scalars(query).unique().all()  # the root
        assert [[item.quantity for item in order.items] for order in orders] == [[1] * 4] * 10
    finding = only(scope)
    assert finding.target == "Item.product"
    assert place(finding) == (__file__, line_of("the root"))


@pytest.mark.parametrize(("parents", "is_found"), [(4, False), (5, True)])
@pytest.mark.parametrize("option", [selectinload, joinedload])
def test_it_begins_with_five_objects(
    engine: Engine, option: Callable[..., object], parents: int, is_found: bool
) -> None:
    with sqla_watch.scope("five") as scope, Session(engine) as session:
        query = select(Order).options(option(Order.customer)).order_by(Order.id).limit(parents)  # type: ignore[arg-type]
        assert [order.status for order in session.scalars(query)]
    assert len(scope.findings) == is_found


@pytest.mark.parametrize(
    "read",
    [
        lambda order, session: order.items,
        lambda order, session: [item.id for item in order.items],
        lambda order, session: hasattr(order, "items"),
        lambda order, session: order.items.append(Item(product_id=1, quantity=1)),
    ],
)
def test_every_reading_counts(engine: Engine, read: Callable[[Order, Session], object]) -> None:
    with sqla_watch.scope("read") as scope, Session(engine) as session:
        orders = session.scalars(select(Order).options(selectinload(Order.items)).limit(10)).all()
        read(orders[3], session)
        orders[0].status
        session.rollback()
    assert found(scope) == []


def test_what_is_not_loaded_eagerly_is_silent(engine: Engine) -> None:
    with sqla_watch.scope("good") as scope, Session(engine) as session:
        for query in (
            select(Order).limit(10),
            select(Order, Customer).join(Order.customer).limit(10),
            select(Order.status).join(Order.customer).limit(10),
            select(Order).join(Order.customer).where(Customer.country == "DE").limit(10),
        ):
            for row in session.execute(query):
                row[0]
    assert found(scope) == []


def test_objects_of_which_nothing_was_read_are_silent(engine: Engine) -> None:
    """Read by their `__dict__`, or handed on to whoever will read them."""
    with sqla_watch.scope("nothing") as scope, Session(engine) as session:
        orders = session.scalars(select(Order).options(selectinload(Order.items)).limit(10)).all()
        assert [vars(order)["items"] for order in orders]
        assert [inspect(order).dict for order in orders]
    assert found(scope) == []


def test_a_reading_in_another_session_or_query_does_not_count(engine: Engine) -> None:
    with sqla_watch.scope("two") as scope:
        with Session(engine) as session:
            first = select(Order).options(selectinload(Order.items)).limit(10)
            assert [order.status for order in session.scalars(first)]  # unused here
        with Session(engine) as session:
            assert [order.items for order in session.scalars(first)]
    assert place(only(scope)) == (__file__, line_of("unused here"))


class Base(DeclarativeBase):
    """Base of the classes here."""


class House(Base):
    __tablename__ = "eager_houses"

    id: Mapped[int] = mapped_column(primary_key=True)
    street: Mapped[str] = mapped_column(default="")
    rooms: Mapped[list[Room]] = relationship(lazy="selectin", cascade="all, delete-orphan")


class Room(Base):
    __tablename__ = "eager_rooms"

    id: Mapped[int] = mapped_column(primary_key=True)
    house_id: Mapped[int] = mapped_column(ForeignKey(House.id))


@pytest.fixture
def houses(engine: Engine) -> Iterator[Engine]:
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all(House(id=number, rooms=[Room(), Room()]) for number in range(1, 11))
        session.commit()
    yield engine
    Base.metadata.drop_all(engine)


def test_what_the_mapping_loads_is_judged_and_a_cascade_is_a_use(houses: Engine) -> None:
    with sqla_watch.scope("mapping") as scope, Session(houses) as session:
        assert [house.street for house in session.scalars(select(House))] == [""] * 10
    assert found(scope) == [("unused-eager-load", "House.rooms")]
    with sqla_watch.scope("deleted") as scope, Session(houses) as session:
        for house in session.scalars(select(House)):
            house.street
            session.delete(house)
        session.flush()
        session.rollback()
    assert found(scope) == []


def test_off_by_default_in_every_profile(watch: Watch, engine: Engine) -> None:
    for profile in ("development", "test", "production"):
        sqla_watch.install(engine, settings=Settings(profile=profile))
        with sqla_watch.scope("off") as scope, Session(engine) as session:
            query = select(Order).options(selectinload(Order.items)).limit(10)
            assert [order.status for order in session.scalars(query)]
        assert found(scope) == []
        assert scope.reads == set()


def test_an_implicit_scope_ends_too_early_to_know(engine: Engine, on: Watch) -> None:
    told: list[str] = []
    on.reporters.append(lambda scope: told.extend(finding.rule for finding in scope.findings))
    with Session(engine) as session:
        orders = session.scalars(select(Order).options(selectinload(Order.items)).limit(10)).all()
        assert orders[0].status
    assert told == []


def test_it_can_be_ignored(engine: Engine) -> None:
    query = select(Order).options(selectinload(Order.items)).limit(10)
    with sqla_watch.scope("ignored") as scope, Session(engine) as session:
        with sqla_watch.ignore("unused-eager-load", "Order.items", reason="the template's choice"):
            assert [order.status for order in session.scalars(query)]
        assert [order.status for order in session.scalars(query)]  # sqla-watch: ignore[unused-eager-load]
    assert found(scope) == []


@in_event_loop
async def test_async_it_is_found(shop_url: str) -> None:
    for driver in ("asyncpg", "psycopg"):
        async with watched_async_engine(shop_url, driver, rules=RULES) as engine:
            for option in (selectinload, joinedload):
                with sqla_watch.scope("async") as scope:
                    async with AsyncSession(engine) as session:
                        query = select(Order).options(option(Order.customer)).limit(10)
                        orders = (await session.scalars(query)).all()  # awaits them
                        assert [order.status for order in orders]
                assert found(scope) == [("unused-eager-load", "Order.customer")]
                assert place(only(scope)) == (__file__, line_of("awaits them"))


@pytest.mark.parametrize("driver", ["psycopg2", "sqlite"])
def test_on_other_drivers(shop_url: str, driver: str) -> None:
    engine = create_engine("sqlite://" if driver == "sqlite" else url_for(shop_url, driver))
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all(House(id=number, rooms=[Room(), Room()]) for number in range(1, 11))
        session.commit()
    sqla_watch.install(engine, settings=Settings(profile="test", rules=RULES))
    told = []
    for option in (selectinload(House.rooms), joinedload(House.rooms)):
        with sqla_watch.scope("driver") as scope, Session(engine) as session:
            houses = session.scalars(select(House).options(option)).unique().all()
            assert [house.street for house in houses]
        told.append(found(scope))
    Base.metadata.drop_all(engine)
    engine.dispose()
    assert told == [[("unused-eager-load", "House.rooms")]] * 2


def test_the_warning_has_its_own_class(engine: Engine) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with sqla_watch.scope("warned"), Session(engine) as session:
            query = select(Order).options(selectinload(Order.items)).limit(10)
            assert [order.status for order in session.scalars(query)]
    assert [each.category for each in caught] == [UnusedEagerLoadWarning]
