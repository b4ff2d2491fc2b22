"""Following the rows that a driver has fetched: the application reads them as ever, and what it leaves is known."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import ARRAY, Connection, Engine, ForeignKey, Integer, insert, literal, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, joinedload, mapped_column, relationship, selectinload

import sqla_watch
from sqla_watch import Scope, Settings, Watch
from sqla_watch.demo.models import Customer, Item, Order
from tests.probes.application import DRIVERS, POSTGRESQL, Application, Entry, outcome
from tests.support import found, in_event_loop, only, watched_async_engine

pytestmark = pytest.mark.filterwarnings("ignore::sqla_watch.SqlaWatchWarning")

SIZES = [0, 1, 99, 100, 101, 5000]


def numbers(rows: int) -> Any:
    """A query of so many rows, on any database."""
    counted = select(literal(1).label("n")).cte("numbers", recursive=True)
    counted = counted.union_all(select(counted.c.n + 1).where(counted.c.n < rows))
    return select(counted.c.n, (counted.c.n * 2).label("twice")).where(counted.c.n <= rows).order_by(counted.c.n)


def again(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Read in a way, and then look what is left and how the result ends."""

    def read(result: Any) -> Any:
        return [outcome(lambda: function(result)), outcome(result.fetchone), outcome(result.close), outcome(result.all)]

    return read


def dropped(result: Any) -> Any:
    return [row.n for row, _ in zip(result, range(3), strict=False)]


def broken_off(result: Any) -> Any:
    for row in result:
        if row.n == 50:
            raise LookupError("in the middle")


def in_turns(result: Any) -> Any:
    seen = [result.fetchone(), *result.fetchmany(2), *result.fetchmany(), result.fetchone(), *result.fetchmany(0)]
    return [*seen, len(result.fetchall()), result.fetchone(), result.fetchmany(3), result.fetchall()]


def in_a_block(result: Any) -> Any:
    with result as inside:
        first = inside.fetchone()
    return [first, result.closed, outcome(result.fetchone)]


READS: dict[str, Callable[[Any], Any]] = {
    "all": again(lambda result: result.all()),
    "one": again(lambda result: result.one()),
    "one_or_none": again(lambda result: result.one_or_none()),
    "first": again(lambda result: result.first()),
    "scalar": again(lambda result: result.scalar()),
    "scalar_one_or_none": again(lambda result: result.scalar_one_or_none()),
    "scalars first": again(lambda result: result.scalars(1).first()),
    "partitions": again(lambda result: [len(part) for part in result.partitions(40)]),
    "unique": again(lambda result: len(result.unique(lambda row: row.n % 7).all())),
    "yield_per": again(lambda result: [row.n for row in result.yield_per(30)]),
    "yield_per first": again(lambda result: result.yield_per(30).first()),
    "mappings": again(lambda result: [dict(row) for row in result.mappings().fetchmany(2)]),
    "keys": again(lambda result: [list(result.keys()), result.returns_rows, result.rowcount]),
    "columns": again(lambda result: result.columns("twice").fetchmany(3)),
    "freeze": lambda result: [len(result.freeze()().all()), outcome(result.fetchone)],
    "in turns": again(in_turns),
    "dropped": dropped,
    "broken off": again(broken_off),
    "block": in_a_block,
}


def read_all_ways(connection: Connection) -> list[Any]:
    return [
        (rows, way, read(connection.execute(numbers(rows)))) for rows in SIZES[:-1] for way, read in READS.items()
    ] + [(5000, way, read(connection.execute(numbers(5000)))) for way, read in list(READS.items())[::4]]


@pytest.fixture(params=DRIVERS)
def application(request: pytest.FixtureRequest, shop_url: str, tmp_path: Path) -> Iterator[Application]:
    application = Application(request.param, shop_url, tmp_path)
    application.fill()
    yield application
    application.clear()


def test_a_result_is_read_in_every_way_as_ever(application: Application) -> None:
    without = application.run(read_all_ways, watched=False)[0]
    assert application.run(read_all_ways)[0] == without


def test_objects_are_read_in_every_way_as_ever(application: Application) -> None:
    def story(connection: Connection) -> list[Any]:
        seen: list[Any] = []
        for rows in SIZES[:-1]:
            query = select(Entry).where(Entry.id <= rows).order_by(Entry.id)
            session = Session(connection)
            seen += [
                len(session.scalars(query).all()),
                getattr(session.scalars(query).first(), "id", None),
                outcome(lambda query=query, session=session: session.scalars(query).one().id)[:2],  # type: ignore[misc]
                [len(part) for part in session.scalars(query).partitions(30)],
                [entry.id for entry, _ in zip(session.scalars(query), range(3), strict=False)],
                len(session.scalars(query.execution_options(yield_per=20)).all()),
                len(session.execute(select(Entry, Entry.name).where(Entry.id <= rows)).mappings().all()),
                session.query(Entry).filter(Entry.id <= rows).count(),
                len(session.scalars(query).unique().all()),
            ]
            one, same = session.scalars(query).first(), session.get(Entry, 1)
            seen.append(one is same)
            session.close()
        return seen

    without = application.run(story, watched=False)[0]
    assert application.run(story)[0] == without


@pytest.mark.parametrize("driver", POSTGRESQL)
def test_a_connection_that_is_lost_in_the_middle_is_told_as_ever(shop_url: str, tmp_path: Path, driver: str) -> None:
    application = Application(driver, shop_url, tmp_path)

    def story(connection: Connection) -> list[Any]:
        result = connection.execute(numbers(300))
        seen = [result.fetchone()]
        connection.invalidate()
        return [*seen, outcome(result.fetchone)[1:3], outcome(result.fetchall)[1:3]]

    without = outcome(lambda: application.run(story, watched=False)[0])
    assert outcome(lambda: application.run(story)[0]) == without


class Failing:
    """A cursor whose rows are gone."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"no {name}")


@pytest.mark.parametrize("fetch", ["fetchone", "fetchmany", "fetchall"])
def test_a_driver_that_fails_while_it_is_read_fails_as_ever(engine: Engine, fetch: str) -> None:
    def story() -> Any:
        with engine.connect() as connection:
            result = connection.execute(numbers(300))
            real, result.cursor = result.cursor, Failing()  # type: ignore[assignment]
            try:
                return outcome(getattr(result, fetch))
            finally:
                real.close()

    without = story()
    assert without[1] is RuntimeError
    sqla_watch.install(engine, settings=Settings(profile="test"))
    assert story() == without


# What is seen


def leave(watch: Watch, engine: Engine, read: Callable[[Any], Any], rows: int = 200) -> tuple[int, int]:
    """Rows fetched and rows left, of one result."""
    with sqla_watch.scope("left") as scope:
        with engine.connect() as connection:
            result = connection.execute(numbers(rows))
            read(result)
            del result
        (group,) = scope.record.groups
        return group.unread_of, group.most_unread


@pytest.mark.parametrize(
    ("read", "left"),
    [
        (lambda result: result.first(), 199),
        (lambda result: result.scalar(), 199),
        (lambda result: result.scalars().first(), 199),
        (dropped, 196),
        (lambda result: result.fetchmany(150), 50),
        (lambda result: result.close(), 200),
        (lambda result: None, 200),
        (in_a_block, 199),
        (lambda result: result.all(), 0),
        (lambda result: list(result), 0),
        (lambda result: result.fetchmany(200), 0),
        (lambda result: [*result.fetchmany(100), *result.fetchmany(100)], 0),
        (lambda result: list(result.partitions(60)), 0),
        (lambda result: result.unique().all(), 0),
        (lambda result: list(result.yield_per(30)), 0),
    ],
)
def test_the_rows_that_were_left_are_counted(
    watch: Watch, engine: Engine, read: Callable[[Any], Any], left: int
) -> None:
    assert leave(watch, engine, read) == ((200, left) if left else (0, 0))


def test_results_below_a_hundred_rows_are_not_followed(watch: Watch, engine: Engine) -> None:
    assert leave(watch, engine, lambda result: result.first(), 99) == (0, 0)
    assert leave(watch, engine, lambda result: result.first(), 100) == (100, 99)


def test_what_is_read_and_closed_later_is_known_by_then(watch: Watch, engine: Engine) -> None:
    with sqla_watch.scope("later") as scope, engine.connect() as connection:
        result = connection.execute(select(Item.id).where(Item.id <= 300))
        assert scope.rows == 300  # it is in the record, and not read yet
        assert result.fetchone() is not None
        assert found(scope) == []
        result.close()
        finding = only(scope)
    assert (finding.rule, finding.evidence["rows_fetched"], finding.evidence["rows_read"]) == ("unread-rows", 300, 1)
    assert scope.rows == 300


def test_a_result_that_was_dropped_is_known_while_its_transaction_goes_on(watch: Watch, engine: Engine) -> None:
    with engine.connect() as connection:
        with sqla_watch.scope("a part of it") as scope:
            for row in connection.execute(select(Item.id).order_by(Item.id)):
                if row.id == 3:
                    break
            del row
        assert found(scope) == [("unread-rows", "SELECT items")]


class Base(DeclarativeBase):
    """Base of the classes here."""


class Shop(DeclarativeBase):
    """Base of the classes that any database takes."""


class Shelf(Shop):
    __tablename__ = "rows_shelves"

    id: Mapped[int] = mapped_column(primary_key=True)
    books: Mapped[list[Book]] = relationship()


class Book(Shop):
    __tablename__ = "rows_books"

    id: Mapped[int] = mapped_column(primary_key=True)
    shelf_id: Mapped[int] = mapped_column(ForeignKey(Shelf.id))


class Parent(Base):
    """Its primary key comes from the driver as a list, of which SQLAlchemy makes a tuple."""

    __tablename__ = "rows_parents"

    id: Mapped[tuple[int, ...]] = mapped_column(ARRAY(Integer, as_tuple=True), primary_key=True)
    children: Mapped[list[Child]] = relationship()


class Child(Base):
    __tablename__ = "rows_children"

    id: Mapped[int] = mapped_column(primary_key=True)
    parent_id: Mapped[tuple[int, ...]] = mapped_column(ARRAY(Integer, as_tuple=True), ForeignKey(Parent.id))


def test_a_primary_key_that_the_driver_gives_as_a_list(engine: Engine) -> None:
    Base.metadata.create_all(engine)
    try:
        with Session(engine) as session:
            parents = [Parent(id=(number, 0)) for number in range(2)]
            session.add_all(parents)
            session.flush()
            session.add_all(Child(id=number, parent_id=(number % 2, 0)) for number in range(120))
            session.commit()
        sqla_watch.install(engine, settings=Settings(profile="test"))
        with sqla_watch.scope("arrays") as scope, Session(engine) as session:
            query = select(Parent).options(joinedload(Parent.children))
            assert sorted(len(parent.children) for parent in session.scalars(query).unique()) == [60, 60]
        assert scope.rows == 120
    finally:
        Base.metadata.drop_all(engine)


@pytest.mark.parametrize("driver", POSTGRESQL)
def test_the_parents_of_joined_rows_are_counted(shop_url: str, tmp_path: Path, driver: str) -> None:
    application = Application(driver, shop_url, tmp_path)
    counted: list[tuple[int, int]] = []

    def story(connection: Connection) -> None:
        scope = sqla_watch.current_scope()
        assert scope is not None
        session = Session(connection)
        for query in (
            select(Customer).options(joinedload(Customer.orders).joinedload(Order.items)),
            select(Order).options(joinedload(Order.items)),
            select(Order).options(selectinload(Order.items)),
            select(Item.id, Order.id).join(Item.order),
        ):
            session.execute(query).unique().all()
            group = scope.record.groups[-1]
            counted.append((group.multiplied_rows, group.multiplied_parents))
        session.close()

    application.run(story)
    assert counted[:2] == [(400, 20), (400, 100)]
    assert set(counted[2:]) == {(0, 0)}


# Memory


def test_results_rows_and_objects_are_not_kept(watch: Watch, engine: Engine) -> None:
    def story() -> list[weakref.ref[Any]]:
        with Session(engine) as session:
            result = session.execute(numbers(200))
            result.fetchone()
            half = session.connection().execute(numbers(300))
            half.fetchone()
            objects = session.scalars(select(Item)).all()
            first = session.scalars(select(Item).order_by(Item.id)).first()
            every = (session, result.context, half.context, objects[7], first)  # type: ignore[attr-defined]
            return [weakref.ref(each) for each in every]

    with sqla_watch.scope("open") as scope:
        kept = story()
        gc.collect()
        assert [reference() for reference in kept] == [None] * 5
        assert scope.statements == 4


def test_a_result_that_outlives_its_scope_and_its_watch(engine: Engine) -> None:
    watch = sqla_watch.install(engine, settings=Settings(profile="test"))
    with engine.connect() as connection:
        with sqla_watch.scope("first") as scope:
            result = connection.execute(numbers(200))
        assert result.fetchone() == (1, 2)
        watch.uninstall()
        assert len(result.fetchall()) == 199
        result = connection.execute(numbers(200))
        assert result.first() == (1, 2)
    assert (scope.rows, found(scope)) == (200, [])


@in_event_loop
async def test_async_results_that_are_dropped_or_cut_short(shop_url: str) -> None:
    async def read(scope: Scope, session: AsyncSession) -> list[Any]:
        return [
            (await session.execute(select(Item.id).order_by(Item.id))).first()[0],  # type: ignore[index]
            (await session.scalars(select(Item).order_by(Item.id))).first().id,  # type: ignore[union-attr]
            [row.n async for row in await session.stream(numbers(120))][-1],
            (await session.execute(numbers(150))).fetchmany(149)[-1].n,
        ]

    for driver in ("asyncpg", "psycopg"):
        async with watched_async_engine(shop_url, driver) as engine:
            with sqla_watch.scope("async") as scope:
                async with AsyncSession(engine) as session:
                    assert await read(scope, session) == [1, 1, 120, 149]
        assert sorted(finding.evidence["rows_read"] for finding in scope.findings) == [1, 1]


# Faults


@pytest.mark.faults
@pytest.mark.parametrize("function", ["_count_parents", "_asked_for"])
@pytest.mark.parametrize("driver", ["psycopg", "sqlite"])
def test_a_fault_while_rows_are_followed_never_reaches_the_application(
    shop_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, driver: str,
    function: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(f"sqla_watch.probes.rows.{function}", lambda *arguments: 1 / 0)
    application = Application(driver, shop_url, tmp_path)

    def story(connection: Connection) -> None:
        Shop.metadata.create_all(connection)
        connection.execute(insert(Shelf), [{"id": number} for number in range(2)])
        connection.execute(insert(Book), [{"id": number, "shelf_id": number % 2} for number in range(120)])
        session = Session(connection)
        for _ in range(2):
            shelves = session.scalars(select(Shelf).options(joinedload(Shelf.books))).unique().all()
            assert [len(shelf.books) for shelf in shelves] == [60, 60]
            book = session.scalars(select(Book).order_by(Book.id)).first()
            assert book is not None
        session.close()
        Shop.metadata.drop_all(connection)

    with caplog.at_level(logging.ERROR, "sqla_watch"):
        application.run(story)
    assert len([record for record in caplog.records if record.name == "sqla_watch"]) <= 1
    if driver == "psycopg":
        assert "please report this" in caplog.text
