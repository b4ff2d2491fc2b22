"""Which attributes are read: the application sees its classes as ever, and they are as before when nobody asks."""

from __future__ import annotations

import gc
import logging
import pickle
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, ForeignKey, event, inspect, select
from sqlalchemy.ext.associationproxy import AssociationProxy, association_proxy
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    aliased,
    column_property,
    contains_eager,
    defer,
    joinedload,
    load_only,
    mapped_column,
    relationship,
    selectinload,
    synonym,
    undefer,
    with_loader_criteria,
)
from sqlalchemy.orm.attributes import QueryableAttribute, flag_modified

import sqla_watch
from sqla_watch import Settings
from sqla_watch.demo.models import Customer, Item, Order
from sqla_watch.probes.attributes import tracking
from tests.probes.application import outcome
from tests.support import in_event_loop, watched_async_engine

pytestmark = pytest.mark.filterwarnings("ignore::sqla_watch.SqlaWatchWarning")

BOTH = Settings(profile="test", rules={"unused-eager-load": "warn", "wide-rows": "warn"})


class Base(DeclarativeBase):
    """Base of the classes here."""


class Animal(Base):
    __tablename__ = "attributes_animals"

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    name: Mapped[str] = mapped_column(default="")
    owner_id: Mapped[int | None] = mapped_column(ForeignKey("attributes_owners.id"))
    owner: Mapped[Owner | None] = relationship(back_populates="animals")
    loud = synonym("name")
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}

    @hybrid_property
    def label(self) -> str:
        return self.kind + " " + self.name


class Dog(Animal):
    __tablename__ = "attributes_dogs"

    id: Mapped[int] = mapped_column(ForeignKey(Animal.id), primary_key=True)
    tricks: Mapped[int] = mapped_column(default=0)
    __mapper_args__ = {"polymorphic_identity": "dog"}


class Owner(Base):
    __tablename__ = "attributes_owners"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column()
    shout: Mapped[str] = column_property(name + "!")  # type: ignore[operator]
    animals: Mapped[list[Animal]] = relationship(back_populates="owner", order_by=Animal.id)
    animal_names: AssociationProxy[list[str]] = association_proxy("animals", "name")


MAPPED = (Animal, Dog, Owner, Order, Customer, Item)


@pytest.fixture
def animals(engine: Engine) -> Iterator[Engine]:
    """The engine, with ten owners of an animal and a dog each."""
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        for number in range(1, 11):
            pets = [Animal(kind="animal", name=f"cat {number}"), Dog(kind="dog", name=f"dog {number}", tricks=number)]
            session.add(Owner(id=number, name=f"owner {number}", animals=pets))
        session.commit()
    yield engine
    Base.metadata.drop_all(engine)


def classes() -> list[type]:
    """The class of each attribute of each mapped class."""
    return [type(attribute) for each in MAPPED for attribute in inspect(each).class_manager.values()]


def reads(scope: sqla_watch.Scope) -> set[str]:
    return {key for key, _ in scope.reads}


def everything(engine: Engine) -> list[Any]:
    """All that an application does with its attributes, and what it sees."""
    with Session(engine) as session:
        orders = session.scalars(select(Order).options(joinedload(Order.customer)).limit(3).order_by(Order.id)).all()
        owners = session.scalars(select(Owner).options(selectinload(Owner.animals)).order_by(Owner.id)).all()
        order, customer, owner = orders[0], orders[0].customer, owners[0]
        other = aliased(Order)
        cats = owner.animals[0]
        seen: list[Any] = [
            str(Order.customer), repr(Order.status), Order.customer.key,
            Order.customer.property is inspect(Order).attrs.customer,
            Order.customer.class_, Order.customer.parent is inspect(Order), type(Order.customer).__name__,
            isinstance(Order.customer, QueryableAttribute), Order.status.type, str(Order.status == "x"),
            str(Order.customer == customer), str(Order.customer.has(name="x")), str(~Customer.orders.any()),
            str(Customer.orders.contains(order)), str(Order.status.in_(["a"]).label("b")), str(other.customer_id == 1),
            str(select(other).join(other.customer).where(other.status.like("n%"))), str(Order.status.desc()),
            str(Animal.label == "x"), str(Owner.animal_names.contains("x")), str(Animal.loud), str(Owner.shout),
            str(select(Animal.label, Dog.tricks)), str(Owner.animals.of_type(Dog).any(Dog.tricks > 1)),
            str(select(Owner).join(Owner.animals.and_(Animal.name == "x"))), hash(Order.status) == hash(Order.status),
            sorted(inspect(Order).attrs.keys()), list(inspect(order).attrs.status.history),
            inspect(order).attrs.status.value, order.customer is customer,
            inspect(owner).attrs.animals.loaded_value is owner.animals, inspect(customer).unloaded,
            [animal.label for animal in owner.animals], list(owner.animal_names), cats.loud, owner.shout,
            order.status, hasattr(order, "nothing"), "status" in vars(order), sorted(vars(order))[1:],
        ]  # fmt: skip
        changes: list[Any] = []

        def changed(target: Order, value: str, old: str, initiator: Any) -> None:
            changes.append(value)

        event.listen(Order.status, "set", changed)
        order.status = "returned"
        event.remove(Order.status, "set", changed)
        seen += [changes, inspect(order).attrs.status.history, session.is_modified(order), order in session.dirty]
        cats.owner = None
        seen += [cats in owner.animals, len(owner.animals), inspect(cats).attrs.owner.history.deleted == [owner]]
        del order.status
        seen.append(order.status)
        order.status = "new"
        flag_modified(order, "placed_at")
        owner.animals.append(cats)
        seen += [
            cats.owner is owner,
            session.scalars(select(Order).where(Order.customer == customer)).first() is not None,
        ]
        for query in (
            select(Order).options(joinedload(Order.customer).load_only(Customer.name), defer(Order.status)),
            select(Order).options(load_only(Order.status), selectinload(Order.items).joinedload(Item.product)),
            select(Customer).options(
                undefer(Customer.notes), selectinload(Customer.orders.and_(Order.status == "new"))
            ),
            select(Order).join(Order.customer).options(contains_eager(Order.customer)),
            select(Order, Customer.name).join(Order.customer),
            select(Customer).options(with_loader_criteria(Order, Order.id < 50), selectinload(Customer.orders)),
            select(other).options(joinedload(other.customer)).order_by(other.id),
            select(Owner).options(selectinload(Owner.animals.of_type(Dog))),
            select(Animal).options(joinedload(Animal.owner)).order_by(Animal.label),
            select(Dog).where(Dog.owner.has(Owner.name == "owner 1")),
        ):
            rows = session.execute(query).unique().all()
            seen.append((str(query), len(rows), sorted(vars(rows[0][0]))[1:]))
        copied = pickle.loads(pickle.dumps(orders[1]))
        seen += [copied.customer.name, inspect(copied).detached]
        session.rollback()
        seen.append(order.status)
    return seen


def test_attributes_are_used_in_every_way_as_ever(animals: Engine) -> None:
    before = everything(animals)
    kinds = classes()
    for settings in (
        Settings(profile="test"),
        Settings(profile="test", rules={"unused-eager-load": "warn"}),
        Settings(profile="test", rules={"wide-rows": "warn"}),
        BOTH,
    ):
        watch = sqla_watch.install(animals, settings=settings)
        with sqla_watch.scope("watched") as scope:
            assert everything(animals) == before
        assert bool(scope.reads) is bool(settings.rules)
        assert (classes() == kinds) is not bool(settings.rules)
        watch.uninstall()
        assert classes() == kinds
        assert everything(animals) == before


def test_an_object_without_sqlalchemys_state_is_read_as_ever(engine: Engine) -> None:
    """As libraries make one that copy or decode without calling `__init__`."""

    def seen() -> list[Any]:
        bare = Order.__new__(Order)
        vars(bare)["status"] = "bare"
        return [outcome(lambda: bare.status), outcome(lambda: bare.placed_at)[1]]

    before = seen()
    sqla_watch.install(engine, settings=BOTH)
    with sqla_watch.scope("bare"), Session(engine) as session:
        session.scalars(select(Order).limit(1)).all()
        assert seen() == before


def test_a_statement_that_was_compiled_stays_so(engine: Engine) -> None:
    """Neither the watch's coming nor its going makes SQLAlchemy compile the same statement again."""
    cache: Any = engine._compiled_cache

    def send() -> int:
        with Session(engine) as session:
            session.scalars(select(Order).options(joinedload(Order.customer)).where(Order.status == "new")).all()
            session.scalars(select(Order).options(selectinload(Order.items)).order_by(Order.id)).all()
            session.scalars(select(Order).join(Order.customer).where(Order.customer.has(Customer.id > 3))).all()
            session.execute(select(Order.status, Customer.name).join(Order.customer)).all()
            session.scalars(select(Order).where(Order.customer == session.get(Customer, 1))).all()
        return len(cache)

    send()
    compiled = send()
    for _ in range(2):
        watch = sqla_watch.install(engine, settings=BOTH)
        assert send() == compiled
        assert send() == compiled
        watch.uninstall()
        assert send() == compiled


def test_each_reading_is_known_by_its_name(animals: Engine) -> None:
    sqla_watch.install(animals, settings=BOTH)
    with Session(animals) as session:
        with sqla_watch.scope("loads") as scope:
            owners = session.scalars(select(Owner).options(selectinload(Owner.animals))).all()
            assert reads(scope) == set()
        with sqla_watch.scope("reads") as scope:
            owners[0].animals[0].name
            assert reads(scope) == {"animals", "name"}
            inspect(owners[0]).attrs.shout.value  # SQLAlchemy's own way to look
            assert "name" in vars(owners[0])
            assert reads(scope) == {"animals", "name"}
            owners[0].animals[1].label
            assert reads(scope) == {"animals", "name", "kind"}
        with sqla_watch.scope("writes") as scope:
            owners[0].name = "somebody else"
            assert "name" not in reads(scope)
            session.rollback()


def test_an_inherited_attribute_is_that_of_each_class(animals: Engine) -> None:
    sqla_watch.install(animals, settings=BOTH)
    for query, read in (
        (select(Dog).options(joinedload(Dog.owner)), "owner"),
        (select(Animal).options(joinedload(Animal.owner)), "owner"),
        (select(Dog), "name"),
    ):
        with sqla_watch.scope("dogs") as scope, Session(animals) as session:
            for animal in session.scalars(query):
                getattr(animal, read)
            assert read in reads(scope)


def test_outer_scopes_know_of_it_and_closed_ones_do_not(engine: Engine) -> None:
    sqla_watch.install(engine, settings=BOTH)
    with sqla_watch.scope("outer") as outer, Session(engine) as session:
        with sqla_watch.scope("inner") as inner:
            order = session.scalars(select(Order).options(joinedload(Order.customer)).limit(1)).one()
            order.customer
        before = set(inner.reads)
        order.status
        assert inner.reads == before
        assert {"customer", "status"} <= reads(outer)
    order.placed_at  # outside of any
    assert "placed_at" not in reads(outer)


def test_a_class_that_is_mapped_while_the_watch_is_on(engine: Engine) -> None:
    sqla_watch.install(engine, settings=BOTH)

    class Later(DeclarativeBase):
        pass

    class Ordered(Later):
        __tablename__ = "orders"

        id: Mapped[int] = mapped_column(primary_key=True)
        status: Mapped[str]
        items: Mapped[list[Line]] = relationship()

    class Line(Later):
        __tablename__ = "items"

        id: Mapped[int] = mapped_column(primary_key=True)
        order_id: Mapped[int] = mapped_column(ForeignKey("orders.id"))

    Ordered.items.property.argument = Line
    kinds = type(Ordered.status)
    with sqla_watch.scope("later") as scope, Session(engine) as session:
        for order in session.scalars(select(Ordered).options(selectinload(Ordered.items))):
            order.items
            order.status
        assert {"items", "status"} <= reads(scope)
    assert type(Ordered.status) is not kinds
    sqla_watch.uninstall()
    assert type(Ordered.status) is kinds
    assert tracking._swapped == []


def test_two_watches_and_new_settings(engine: Engine) -> None:
    kinds = classes()

    def is_tracked() -> bool:
        with sqla_watch.scope("look"), Session(engine) as session:
            session.scalars(select(Order).options(joinedload(Order.customer)).limit(2)).all()
        return classes() != kinds

    first = sqla_watch.install(engine, settings=BOTH)
    second = sqla_watch.install(settings=Settings(profile="test"))
    assert is_tracked()
    sqla_watch.install(engine, settings=Settings(profile="test"))
    assert not is_tracked()
    sqla_watch.install(settings=Settings(profile="test", rules={"wide-rows": "log"}))
    assert is_tracked()
    second.uninstall()
    assert not is_tracked()
    sqla_watch.install(engine, settings=BOTH)
    assert is_tracked()
    first.uninstall()
    assert classes() == kinds
    assert not tracking.columns
    assert not tracking.relationships
    assert tracking._swapped == []


@in_event_loop
async def test_async_readings_are_known(shop_url: str) -> None:
    for driver in ("asyncpg", "psycopg"):
        async with watched_async_engine(shop_url, driver, rules=BOTH.rules) as engine:
            with sqla_watch.scope("async") as scope:
                async with AsyncSession(engine) as session:
                    query = select(Order).options(selectinload(Order.items)).limit(2)
                    for order in await session.scalars(query):
                        order.items
                assert reads(scope) == {"items"}


def test_what_was_read_is_not_kept(engine: Engine) -> None:
    sqla_watch.install(engine, settings=BOTH)

    def story() -> list[weakref.ref[Any]]:
        with Session(engine) as session:
            orders = session.scalars(select(Order).options(selectinload(Order.items))).all()
            return [weakref.ref(each) for each in (session, orders[0], orders[0].items[0], orders[0].customer)]

    with sqla_watch.scope("open") as scope:
        kept = story()
        gc.collect()
        assert [reference() for reference in kept] == [None] * 4
    assert all(isinstance(key, str) and isinstance(runid, int | None) for key, runid in scope.reads)


def test_a_mapped_class_that_is_gone_is_let_go_of(engine: Engine) -> None:
    """Test suites map classes inside of functions."""
    sqla_watch.install(engine, settings=BOTH)

    def story() -> weakref.ref[Any]:
        class Passing(DeclarativeBase):
            pass

        class Row(Passing):
            __tablename__ = "orders"

            id: Mapped[int] = mapped_column(primary_key=True)

        with sqla_watch.scope("passing"), Session(engine) as session:
            session.scalars(select(Row)).all()
        return weakref.ref(Row)

    gone = story()
    engine._compiled_cache.clear()  # type: ignore[union-attr]
    sqla_watch.uninstall()
    for _ in range(3):
        gc.collect()
    assert gone() is None


def test_threads_that_read_the_same_attributes(engine: Engine) -> None:
    sqla_watch.install(engine, settings=BOTH)
    failed: list[BaseException] = []

    def use() -> None:
        try:
            with sqla_watch.scope("thread") as scope, Session(engine) as session:
                for order in session.scalars(select(Order).options(joinedload(Order.customer))):
                    order.customer
                assert reads(scope) == {"customer"}
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


@pytest.mark.faults
def test_a_fault_is_said_once_and_objects_load_as_ever(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sqla_watch.install(engine, settings=BOTH)
    monkeypatch.setattr("sqla_watch.probes.attributes._tracked", lambda kind: 1 / 0)
    monkeypatch.setattr(tracking, "_classes", {})
    with caplog.at_level(logging.ERROR, "sqla_watch"), sqla_watch.scope("fault"), Session(engine) as session:
        for _ in range(2):
            orders = session.scalars(select(Order).options(joinedload(Order.customer))).all()
            assert orders[0].customer.name
    assert [record.message for record in caplog.records] == [
        "sqla_watch: the probe dialect failed and is switched off; please report this"
    ]


@pytest.mark.faults
def test_a_fault_while_an_attribute_is_read_does_not_reach_the_application(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    sqla_watch.install(engine, settings=BOTH)
    monkeypatch.setattr("sqla_watch.probes.attributes._is_internal", lambda: 1 / 0)
    with sqla_watch.scope("fault"), Session(engine) as session:
        for order in session.scalars(select(Order).options(joinedload(Order.customer))):
            assert order.customer.name
