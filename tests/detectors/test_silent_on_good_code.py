"""Good code is silent: each pattern that other tools take for a mistake, and why it is none."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from datetime import date, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import (
    Date,
    Engine,
    ForeignKey,
    Integer,
    MetaData,
    Select,
    and_,
    bindparam,
    cast,
    create_engine,
    event,
    func,
    insert,
    inspect,
    literal,
    or_,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, joinedload, mapped_column, relationship, selectinload

import sqla_watch
from sqla_watch import Settings, Watch
from sqla_watch.demo.models import Customer, Item, Order, Product, Rate
from tests.support import found, in_event_loop, watched_async_engine

pytestmark = [
    pytest.mark.usefixtures("watch"),
    pytest.mark.filterwarnings("ignore::sqla_watch.SqlaWatchWarning"),
]

both_drivers = pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])


class Base(DeclarativeBase):
    """Base of the classes that only these stories need."""


class Author(Base):
    __tablename__ = "authors"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(default="", server_default="anonymous")
    joined: Mapped[datetime] = mapped_column(server_default=func.now())
    books: Mapped[list[Book]] = relationship(back_populates="author")


class Book(Base):
    __tablename__ = "books"

    id: Mapped[int] = mapped_column(primary_key=True)
    author_id: Mapped[int] = mapped_column(ForeignKey("authors.id"))
    author: Mapped[Author] = relationship(back_populates="books")


@pytest.fixture(autouse=True)
def _nothing_failed(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """A rule that fails is logged, and silent for the wrong reason."""
    yield
    assert [record.getMessage() for record in caplog.get_records("call") if record.name == "sqla_watch"] == []


@pytest.fixture
def library(shop_url: str) -> Iterator[None]:
    """1,200 authors with a book each, and tables that are gone afterwards."""
    engine = create_engine(shop_url)
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO authors (id) SELECT generate_series(1, 1200)"))
        connection.execute(text("INSERT INTO books (id, author_id) SELECT n, n FROM generate_series(1, 1200) n"))
        connection.execute(text("SELECT setval('authors_id_seq', 1200), setval('books_id_seq', 1200)"))
    yield
    Base.metadata.drop_all(engine)
    engine.dispose()


# Relationships


@pytest.mark.usefixtures("library")
def test_an_eager_load_in_batches(engine: Engine) -> None:
    """1,200 parents are three batches of 500: the same SQL three times, and no loop."""
    with sqla_watch.scope("selectinload") as scope, Session(engine) as session:
        authors = session.scalars(select(Author).options(selectinload(Author.books))).all()
        assert sum(len(author.books) for author in authors) == 1200
    assert scope.statements == 4
    assert found(scope) == []


@pytest.mark.usefixtures("library")
def test_an_eager_load_of_a_to_one_in_batches(engine: Engine) -> None:
    with sqla_watch.scope("selectinload to one") as scope, Session(engine) as session:
        books = session.scalars(select(Book).options(selectinload(Book.author))).all()
        assert len({book.author.id for book in books}) == 1200
    assert scope.statements == 4
    assert found(scope) == []


@pytest.mark.usefixtures("library")
def test_eager_loads_of_a_stream(engine: Engine) -> None:
    """With yield_per each partition has its own eager load: twelve times the same SQL from one line."""
    query = select(Author).options(selectinload(Author.books)).execution_options(yield_per=100)
    with sqla_watch.scope("selectinload of a stream") as scope, Session(engine) as session:
        assert sum(len(author.books) for author in session.scalars(query)) == 1200
    assert scope.statements == 13
    assert found(scope) == []


@both_drivers
@pytest.mark.usefixtures("library")
@in_event_loop
async def test_async_an_eager_load_in_batches(shop_url: str, driver: str) -> None:
    async with watched_async_engine(shop_url, driver) as engine:
        with sqla_watch.scope("async selectinload") as scope:
            async with AsyncSession(engine) as session:
                (await session.scalars(select(Author).options(selectinload(Author.books)))).all()
    assert scope.statements == 4
    assert found(scope) == []


def test_an_eager_loaded_collection_that_is_empty(engine: Engine) -> None:
    """Nothing is lazy about a collection without members."""
    with sqla_watch.scope("empty") as scope, Session(engine) as session:
        session.execute(
            insert(Customer), [{"id": number, "name": "new", "country": "CH"} for number in (901, 902, 903)]
        )
        new = select(Customer).where(Customer.name == "new").options(selectinload(Customer.orders))
        assert [customer.orders for customer in session.scalars(new)] == [[], [], []]
        session.rollback()
    assert found(scope) == []


def test_a_to_one_that_the_session_has_already(engine: Engine) -> None:
    """The identity map answers; no statement is sent."""
    with sqla_watch.scope("identity map") as scope, Session(engine) as session:
        customers = session.scalars(select(Customer)).all()
        orders = session.scalars(select(Order)).all()
        assert {order.customer for order in orders} == set(customers)
    assert scope.statements == 2
    assert found(scope) == []


def test_one_lazy_load_each_in_several_sessions(engine: Engine) -> None:
    """Ten requests, jobs or messages of one parent each are not one loop: a session is what could load at once."""
    with sqla_watch.scope("worker", kind="run") as scope:
        for number in range(1, 11):
            with Session(engine) as session:
                session.get_one(Order, number).customer.name
    assert scope.statements == 20
    assert found(scope) == []


def test_one_lazy_load_each_in_the_sessions_of_one_request(engine: Engine) -> None:
    """That somebody gets ten orders one by one is a loop of queries; their customers are no loop of lazy loads."""
    with sqla_watch.scope("request") as scope:
        for number in range(1, 11):
            with Session(engine) as session:
                session.get_one(Order, number).customer.name
    assert [rule for rule, _ in found(scope) if rule == "n-plus-one"] == []


def test_one_parent_with_several_relationships(engine: Engine) -> None:
    with sqla_watch.scope("one parent") as scope, Session(engine) as session:
        order = session.scalars(select(Order).limit(1)).one()
        assert order.customer.name
        assert order.items
        assert order.items[0].product.name
        assert order.items
    assert found(scope) == []


def test_rows_of_a_joined_eager_load(engine: Engine) -> None:
    with sqla_watch.scope("joined") as scope, Session(engine) as session:
        for item in session.scalars(select(Item).options(joinedload(Item.product), joinedload(Item.order))):
            assert item.product.name
            assert item.order.status
    assert scope.statements == 1
    assert found(scope) == []


# Walks over large results


def pages(query: Select[Any], size: int) -> Iterator[Select[Any]]:
    for page in range(8):
        yield query.limit(size).offset(page * size)


def test_a_loop_over_pages(engine: Engine) -> None:
    """The same statement with other values from one line, and yet the way to read pages."""
    with sqla_watch.scope("pages") as scope, Session(engine) as session:
        for page in pages(select(Item).where(Item.quantity == 1).order_by(Item.id), 50):
            assert len(session.scalars(page).all()) == 50
    assert scope.statements == 8
    assert found(scope) == []


def next_single(last: Any) -> Any:
    return Order.id > last[1]


def next_tuple(last: Any) -> Any:
    return tuple_(Order.placed_at, Order.id) > tuple_(*last)


def next_written_out(last: Any) -> Any:
    return or_(Order.placed_at > last[0], and_(Order.placed_at == last[0], Order.id > last[1]))


def next_reversed(last: Any) -> Any:
    return literal(last[1]) < Order.id


keysets = pytest.mark.parametrize("following", [next_single, next_tuple, next_written_out, next_reversed])


@keysets
def test_a_keyset_walk(engine: Engine, following: Any) -> None:
    """`WHERE id > last ORDER BY id LIMIT 10`: what the guide recommends for large feeds (section 15)."""
    last: Any = (datetime(2000, 1, 1), 0)
    with sqla_watch.scope("keyset") as scope, Session(engine) as session:
        for _ in range(10):
            query = select(Order).where(Order.status != "", following(last)).order_by(Order.placed_at, Order.id)
            orders = session.scalars(query.limit(10)).all()
            last = (orders[-1].placed_at, orders[-1].id)
    assert last[1] == 100
    assert scope.statements == 10
    assert found(scope) == []


@both_drivers
@keysets
@in_event_loop
async def test_async_a_keyset_walk(shop_url: str, driver: str, following: Any) -> None:
    last: Any = (datetime(2000, 1, 1), 0)
    async with watched_async_engine(shop_url, driver) as engine:
        with sqla_watch.scope("async keyset") as scope:
            async with AsyncSession(engine) as session:
                for _ in range(10):
                    query = select(Order).where(Order.status != "", following(last)).order_by(Order.placed_at, Order.id)
                    orders = (await session.scalars(query.limit(10))).all()
                    last = (orders[-1].placed_at, orders[-1].id)
    assert scope.statements == 10
    assert found(scope) == []


@pytest.mark.parametrize(
    "following",
    [
        "id > :last",
        "(:last IS NULL OR id > :last)",
        "id > CAST(:last AS integer)",
        r"id > :last\:\:integer",
        "orders.id >= :last + 1",
        "(orders.id, 0) > (:last, 0)",
        "NOT id <= :last",
    ],
)
def test_a_keyset_walk_in_plain_sql(engine: Engine, following: str) -> None:
    query = text(f"SELECT id FROM orders WHERE {following} ORDER BY id LIMIT 10").bindparams(
        bindparam("last", type_=Integer)
    )
    last = 0
    with sqla_watch.scope("plain keyset") as scope, engine.connect() as connection:
        for _ in range(8):
            last = connection.scalars(query, {"last": last}).all()[-1]
    assert last == 80
    assert found(scope) == []


def chunks(size: int) -> list[list[int]]:
    return [list(range(start, start + size)) for start in range(1, 6 * size, size)]


@pytest.mark.parametrize("size", [50, 500])
def test_a_long_list_in_chunks(engine: Engine, size: int) -> None:
    """3,000 ids do not fit into one statement well; six statements of 500 are right."""
    with sqla_watch.scope("chunks") as scope, Session(engine) as session:
        for chunk in chunks(size):
            session.scalars(select(Item).where(Item.id.in_(chunk), Item.quantity == 1)).all()
        for chunk in chunks(size):
            session.execute(text("SELECT id FROM items WHERE id = ANY(:ids)"), {"ids": chunk}).all()
        for chunk in chunks(size):
            session.execute(select(Item.id).where(tuple_(Item.id, Item.order_id).in_([(n, n) for n in chunk]))).all()
    assert scope.statements == 18
    assert found(scope) == []


@both_drivers
@in_event_loop
async def test_async_a_long_list_in_chunks(shop_url: str, driver: str) -> None:
    async with watched_async_engine(shop_url, driver) as engine:
        with sqla_watch.scope("async chunks") as scope:
            async with AsyncSession(engine) as session:
                for chunk in chunks(500):
                    await session.scalars(select(Item).where(Item.id.in_(chunk), Item.quantity == 1))
                for chunk in chunks(500):
                    (await session.execute(text("SELECT id FROM items WHERE id = ANY(:ids)"), {"ids": chunk})).all()
    assert scope.statements == 12
    assert found(scope) == []


MONTHS = [date(2026, month, 1) for month in range(1, 9)]


@pytest.mark.parametrize(
    "within",
    [
        lambda first, next_: and_(Order.placed_at >= first, Order.placed_at < next_),
        lambda first, next_: Order.placed_at.between(first, next_),
        lambda first, next_: Order.placed_at.between(cast(literal(first), Date), cast(literal(next_), Date)),
        lambda first, next_: and_(
            Order.placed_at >= cast(literal(first), Date), Order.placed_at < cast(literal(next_), Date)
        ),
        lambda first, next_: and_(func.date(Order.placed_at) >= first, func.date(Order.placed_at) < next_),
    ],
    ids=["from and to", "between", "between casts", "from and to casts", "function of the column"],
)
def test_a_report_month_by_month(engine: Engine, within: Any) -> None:
    """A walk over ranges: each statement does the work of its own range."""
    with sqla_watch.scope("months") as scope, Session(engine) as session:
        for first, next_ in pairwise(MONTHS):
            session.scalar(select(func.count()).where(Order.status == "paid", within(first, next_)))
    assert scope.statements == 7
    assert found(scope) == []


@pytest.mark.parametrize(
    "within",
    [
        "placed_at >= '{first}' AND placed_at < '{next}'",
        "placed_at BETWEEN '{first}' AND '{next}'",
        "placed_at >= DATE '{first}' AND placed_at < DATE '{next}'",
        "placed_at >= '{first}'::date AND placed_at < '{first}'::date + INTERVAL '1 month'",
    ],
)
def test_a_report_month_by_month_in_plain_sql(engine: Engine, within: str) -> None:
    with sqla_watch.scope("plain months") as scope, engine.connect() as connection:
        for first, next_ in pairwise(MONTHS):
            condition = within.format(first=first, next=next_)
            connection.exec_driver_sql(f"SELECT count(*) FROM orders WHERE status = 'paid' AND {condition}")
    assert scope.statements == 7
    assert found(scope) == []


def test_a_cursor_of_the_server(engine: Engine) -> None:
    """The FETCHes of one cursor are one logical statement."""
    with sqla_watch.scope("server side") as scope:
        with Session(engine) as session:
            streamed = session.scalars(select(Item).order_by(Item.id).execution_options(yield_per=20))
            assert sum(1 for _ in streamed) == 400
        with engine.connect() as connection:
            result = connection.execution_options(stream_results=True, max_row_buffer=10).execute(select(Order.id))
            assert [len(part) for part in result.partitions(25)] == [25] * 4
    assert scope.statements == 2
    assert scope.rows == 500
    assert found(scope) == []


def test_a_cursor_of_the_server_by_hand(engine: Engine) -> None:
    with sqla_watch.scope("by hand") as scope, engine.begin() as connection:
        connection.execute(text("DECLARE walk CURSOR FOR SELECT id FROM items"))
        for _ in range(8):
            assert len(connection.execute(text("FETCH 50 FROM walk")).all()) == 50
        connection.execute(text("CLOSE walk"))
    assert scope.rows == 400
    assert found(scope) == []


@both_drivers
@in_event_loop
async def test_async_a_stream(shop_url: str, driver: str) -> None:
    async with watched_async_engine(shop_url, driver) as engine:
        with sqla_watch.scope("stream") as scope:
            async with AsyncSession(engine) as session:
                query = select(Item).execution_options(yield_per=20)
                assert len([item async for item in await session.stream_scalars(query)]) == 400
    assert scope.statements == 1
    assert found(scope) == []


# Asking again


def test_polling_in_sessions_of_their_own(engine: Engine) -> None:
    """Each session is a new transaction and may get a new answer."""
    with sqla_watch.scope("polling") as scope:
        for _ in range(10):
            with Session(engine) as session:
                session.scalar(select(Order.status).where(Order.id == 1))
    assert found(scope) == []


def test_polling_in_one_session_that_commits(engine: Engine) -> None:
    with sqla_watch.scope("polling with commits") as scope, Session(engine) as session:
        for _ in range(10):
            session.scalar(select(Order.status).where(Order.id == 1))
            session.commit()
    assert found(scope) == []


def test_polling_in_autocommit(engine: Engine) -> None:
    autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
    with sqla_watch.scope("autocommit") as scope, autocommit.connect() as connection:
        for _ in range(10):
            connection.execute(select(Order.status).where(Order.id == 1))
    assert found(scope) == []


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
@in_event_loop
async def test_async_polling_in_autocommit(shop_url: str, driver: str) -> None:
    async with watched_async_engine(shop_url, driver, isolation_level="AUTOCOMMIT") as engine:
        with sqla_watch.scope("async autocommit") as scope:
            async with engine.connect() as connection:
                for _ in range(10):
                    await connection.execute(select(Order.status).where(Order.id == 1))
    assert found(scope) == []


def test_polling_slowly_in_one_transaction(engine: Engine, watch: Watch) -> None:
    """Who waits more than a second before asking again wants to know what others have committed meanwhile."""
    watch.settings = Settings(profile="test", rules={"repeated-query": {"min_repeats": 2}})
    with sqla_watch.scope("slowly") as scope, engine.connect() as connection:
        connection.execute(select(Order.status).where(Order.id == 1))
        time.sleep(1.01)
        connection.execute(select(Order.status).where(Order.id == 1))
    assert [rule for rule, _ in found(scope)] == ["idle-in-transaction"]


def test_locking_the_same_row_again(engine: Engine) -> None:
    """FOR UPDATE is not asked for its answer."""
    with sqla_watch.scope("locks") as scope, Session(engine) as session:
        for _ in range(6):
            session.scalars(select(Order).where(Order.id == 1).with_for_update()).one()
    assert found(scope) == []


def test_locking_rows_one_after_the_other(engine: Engine) -> None:
    """Taking locks in a fixed order is how deadlocks are avoided."""
    with sqla_watch.scope("locks in order") as scope, Session(engine) as session:
        for number in range(1, 9):
            session.get(Order, number, with_for_update=True)
        for number in range(1, 9):
            session.execute(select(func.pg_advisory_xact_lock(number)))
    assert found(scope) == []


def test_a_select_without_a_table(engine: Engine) -> None:
    """now(), nextval(), set_config(): there is nothing to read, so nothing to read once."""
    with engine.begin() as connection:
        connection.execute(text("CREATE SEQUENCE numbers"))
    with sqla_watch.scope("functions") as scope, engine.connect() as connection:
        for _ in range(6):
            connection.execute(select(func.clock_timestamp()))
        for _ in range(6):
            connection.execute(text("SELECT nextval('numbers')"))
        for _ in range(6):
            connection.execute(text("SELECT 1"))
    with engine.begin() as connection:
        connection.execute(text("DROP SEQUENCE numbers"))
    assert found(scope) == []


def test_calls_of_functions_without_a_table(engine: Engine) -> None:
    """A message each for NOTIFY, a setting each: no table has these values, so no IN can ask for all of them."""
    with sqla_watch.scope("calls") as scope, engine.connect() as connection:
        for number in range(8):
            connection.execute(select(func.pg_notify("orders", str(number))))
        for number in range(8):
            connection.execute(text("SELECT set_config('shop.customer', :number, true)"), {"number": str(number)})
    assert found(scope) == []


def test_reading_again_after_a_write_to_the_table(engine: Engine) -> None:
    with sqla_watch.scope("after writes") as scope, Session(engine) as session:
        for number in range(1, 7):
            session.execute(update(Order).where(Order.id == number).values(status="paid"))
            session.scalar(select(func.count()).where(Order.status == "paid"))
        session.rollback()
    assert found(scope) == []


def test_raw_sql_with_its_values_in_the_text(engine: Engine) -> None:
    """Three texts that differ in their values only are one statement, but three questions."""
    with sqla_watch.scope("literals") as scope, engine.connect() as connection:
        for status in ("new", "paid", "sent"):
            connection.exec_driver_sql(f"SELECT count(*) FROM orders WHERE status = '{status}'")
    assert found(scope) == []


# Refreshing


@pytest.mark.usefixtures("library")
def test_reading_what_the_server_has_set(engine: Engine) -> None:
    """A server default is fetched after the INSERT, per object where the database cannot return it at once."""
    with sqla_watch.scope("defaults") as scope, Session(engine) as session:
        authors = [Author(name=str(number)) for number in range(8)]
        session.add_all(authors)
        session.flush()
        assert {author.joined.year for author in authors} == {datetime.now().year}
        session.rollback()
    assert found(scope) == []


def test_refreshing_an_object(engine: Engine) -> None:
    with sqla_watch.scope("refresh") as scope, Session(engine) as session:
        order = session.get_one(Order, 1)
        session.refresh(order)
        session.refresh(order, ["customer"])
        session.refresh(order, ["status"])
    assert scope.statements in (4, 5)
    assert found(scope) == []


def test_expiring_an_object(engine: Engine) -> None:
    with sqla_watch.scope("expire") as scope, Session(engine) as session:
        order = session.get_one(Order, 1)
        session.expire(order)
        assert order.status
        session.commit()
        assert order.status
    assert scope.statements == 3
    assert found(scope) == []


def test_everything_expired_between_two_steps_of_a_test(engine: Engine) -> None:
    """Fixtures call expire_all(): the reloads that follow are theirs, and no relationship is loaded twice."""
    with sqla_watch.scope("expire all") as scope, Session(engine) as session:
        order = session.scalars(select(Order).options(joinedload(Order.customer)).limit(1)).one()
        for _ in range(2):
            session.expire_all()
            assert order.customer.name
    assert found(scope) == []


def test_a_deferred_column_of_one_object(engine: Engine) -> None:
    with sqla_watch.scope("deferred") as scope, Session(engine) as session:
        assert session.get_one(Customer, 1).notes == ""
    assert scope.statements == 2
    assert found(scope) == []


# Few, and in several places


def test_a_few_gets_on_lines_of_their_own(engine: Engine) -> None:
    with sqla_watch.scope("gets") as scope, Session(engine) as session:
        session.get(Product, 1)
        session.get(Product, 2)
        session.get(Product, 3)
        session.get(Product, 4)
        session.get(Product, 5)
        session.get(Product, 6)
    assert scope.statements == 6
    assert found(scope) == []


def product_name(session: Session, number: int) -> str:
    return session.scalars(select(Product.name).where(Product.id == number)).one()


def test_a_function_that_several_lines_call(engine: Engine) -> None:
    """The line in the function is one, the lines that call it are six: there is no loop."""
    with sqla_watch.scope("function") as scope, Session(engine) as session:
        product_name(session, 1)
        product_name(session, 2)
        product_name(session, 3)
        product_name(session, 4)
        product_name(session, 5)
        product_name(session, 6)
    assert scope.statements == 6
    assert found(scope) == []


@both_drivers
@in_event_loop
async def test_async_a_function_that_several_lines_await(shop_url: str, driver: str) -> None:
    async def name(session: AsyncSession, number: int) -> str:
        return (await session.scalars(select(Product.name).where(Product.id == number))).one()

    async with watched_async_engine(shop_url, driver) as engine:
        with sqla_watch.scope("async function") as scope:
            async with AsyncSession(engine) as session:
                await name(session, 1)
                await name(session, 2)
                await name(session, 3)
                await name(session, 4)
                await name(session, 5)
                await name(session, 6)
    assert scope.statements == 6
    assert found(scope) == []


# At once


@both_drivers
@in_event_loop
async def test_several_tasks_at_once(shop_url: str, driver: str) -> None:
    """They do not wait for each other: concurrent, not a loop."""

    async with watched_async_engine(shop_url, driver, pool_size=8) as engine:

        async def customer_of(number: int) -> str:
            async with AsyncSession(engine) as session:
                order = await session.get_one(Order, number)
                return await session.run_sync(lambda _: order.customer.name)

        with sqla_watch.scope("gather") as scope:
            assert len(await asyncio.gather(*(customer_of(number) for number in range(1, 9)))) == 8
    assert scope.statements == 16
    assert found(scope) == []


# Writing


@pytest.mark.usefixtures("library")
def test_one_flush_with_many_rows(engine: Engine) -> None:
    with sqla_watch.scope("flush") as scope, Session(engine) as session:
        session.add_all([Author(name=str(number), books=[Book(), Book()]) for number in range(50)])
        session.flush()
        for number, author in enumerate(session.scalars(select(Author).where(Author.id > 1200))):
            author.name = f"renamed {number}"
        session.flush()
        session.rollback()
    assert found(scope) == []


@pytest.mark.usefixtures("library")
def test_many_rows_in_one_call(engine: Engine) -> None:
    """executemany, and insertmanyvalues with RETURNING: many rows, few statements."""
    rows = [{"name": str(number)} for number in range(3000)]
    with sqla_watch.scope("many") as scope, engine.connect() as connection:
        connection.execute(insert(Author), rows)
        connection.execute(insert(Author).returning(Author.id), rows).all()
        connection.execute(update(Author.__table__).where(Author.id == bindparam("key")).values(name=bindparam("to")),
                           [{"key": number, "to": "x"} for number in range(1, 500)])  # fmt: skip
        connection.rollback()
    assert found(scope) == []


def test_rows_that_sqlite_has_to_insert_one_by_one(tmp_path: Path) -> None:
    """Without a way to tell which row got which key, SQLAlchemy sends one INSERT … RETURNING each: not the user."""
    engine = create_engine(f"sqlite:///{tmp_path / 'library.db'}")
    Base.metadata.create_all(engine)
    sqla_watch.install(engine, settings=Settings(profile="test"))
    with sqla_watch.scope("sqlite") as scope, Session(engine) as session:
        session.add_all([Author(name=str(number)) for number in range(20)])
        session.flush()
        session.rollback()
    engine.dispose()
    assert found(scope) == []


def test_savepoints(engine: Engine) -> None:
    """SAVEPOINT and RELEASE manage the transaction; they are no statements of the application."""
    with sqla_watch.scope("savepoints") as scope, Session(engine) as session:
        for number in range(1, 9):
            with session.begin_nested():
                session.execute(update(Order).where(Order.id == number).values(status="paid"))
            nested = session.begin_nested()
            nested.rollback()
        session.rollback()
    assert scope.statements == 8
    assert found(scope) == []


# What SQLAlchemy asks for itself


def test_reflection_of_the_schema(engine: Engine) -> None:
    """Look-ups in the catalogue repeat per table, by design; they are not the application's statements."""
    with sqla_watch.scope("reflection") as scope:
        inspector = inspect(engine)
        for table in inspector.get_table_names():
            inspector.get_columns(table)
            inspector.get_indexes(table)
            inspector.get_foreign_keys(table)
            inspector.get_pk_constraint(table)
            inspector.get_unique_constraints(table)
            inspector.get_check_constraints(table)
            inspector.get_table_comment(table)
        inspector.get_schema_names()
        inspector.get_view_names()
        inspector.get_enums()  # type: ignore[attr-defined]
        inspector.get_sequence_names()
        inspector.has_table("orders")
        metadata = MetaData()
        metadata.reflect(engine)
        assert {"customers", "orders", "items", "products", "rates"} <= set(metadata.tables)
    assert scope.statements == 0
    assert found(scope) == []


def test_creating_tables_that_are_there(engine: Engine) -> None:
    """create_all looks for each table first."""
    with sqla_watch.scope("create all") as scope:
        Rate.metadata.create_all(engine)
    assert scope.statements == 0
    assert found(scope) == []


def test_the_pings_of_the_pool(shop_url: str) -> None:
    engine = create_engine(shop_url, pool_pre_ping=True)
    sqla_watch.install(engine, settings=Settings(profile="test"))
    with sqla_watch.scope("pre-ping") as scope:
        for _ in range(8):
            with engine.connect() as connection:
                connection.execute(select(Order.status).where(Order.id == 1))
    engine.dispose()
    assert scope.statements == 8
    assert scope.connections == 8
    assert found(scope) == []


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_the_first_connection(shop_url: str, driver: str) -> None:
    """The dialect asks for version, schema and settings when it connects for the first time."""
    engine = create_engine(shop_url.replace("+psycopg:", f"+{driver}:"))
    sqla_watch.install(engine, settings=Settings(profile="test"))
    with sqla_watch.scope("first") as scope, engine.connect() as connection:
        connection.execute(select(Order.status).where(Order.id == 1))
    engine.dispose()
    assert scope.statements == 1
    assert scope.transactions == 1
    assert found(scope) == []


@both_drivers
@in_event_loop
async def test_async_the_first_connection(shop_url: str, driver: str) -> None:
    async with watched_async_engine(shop_url, driver) as engine:
        with sqla_watch.scope("async first") as scope:
            async with engine.connect() as connection:
                await connection.execute(select(Order.status).where(Order.id == 1))
    assert scope.statements == 1
    assert scope.transactions == 1
    assert found(scope) == []


def test_settings_of_each_connection(shop_url: str) -> None:
    """A listener that sets the search path or the tenant repeats by design."""
    engine = create_engine(shop_url)
    sqla_watch.install(engine, settings=Settings(profile="test"))

    @event.listens_for(engine, "connect")
    def once(dbapi_connection: Any, record: object) -> None:
        dbapi_connection.execute("SET application_name = 'shop'")

    @event.listens_for(engine, "begin")
    def each_time(connection: Any) -> None:
        connection.exec_driver_sql("SET LOCAL search_path = public")
        connection.exec_driver_sql("SELECT set_config('shop.tenant', '7', true)")

    with sqla_watch.scope("settings") as scope, Session(engine) as session:
        for number in range(1, 9):
            session.scalar(select(Order.status).where(Order.id == number).where(Order.status != str(number)))
            session.commit()
            if number == 4:
                session.close()
    engine.dispose()
    assert [finding for finding in found(scope) if finding[1] != "SELECT orders"] == []


def test_a_transaction_that_is_long_only_because_one_statement_is_slow(engine: Engine, watch: Watch) -> None:
    """The statement is the mistake; telling of its transaction as well would be telling it twice."""
    rules = {"slow-query": {"min_seconds": 0.1}, "long-transaction": {"min_seconds": 0.1}}
    watch.settings = Settings(profile="test", rules=rules)
    with sqla_watch.scope("slow") as scope, engine.begin() as connection:
        connection.execute(select(func.pg_sleep(0.12)))
        connection.execute(select(Order.id).limit(1))
    assert [finding.rule for finding in scope.findings] == ["slow-query"]


# Connections and pools


def from_seconds(seconds: float) -> dict[str, Any]:
    """The rules about connections and pools, all from so many seconds on."""
    rules = ("idle-in-transaction", "connection-held", "pool-wait", "pool-fanout")
    return {rule: {"min_seconds": seconds} for rule in rules}


def test_an_export_that_reads_from_one_connection_and_writes_by_another(shop_url: str) -> None:
    """While the reader waits its thread waits for the database as well: nothing is done in its transaction."""
    engine = create_engine(shop_url)
    sqla_watch.install(engine, settings=Settings(profile="test", rules=from_seconds(0.25)))
    with sqla_watch.scope("export") as scope, engine.connect() as reader:
        result = reader.execution_options(yield_per=5).execute(select(Order.id).limit(8))
        for rows in result.partitions():
            with engine.begin() as writer:
                for (number,) in rows:
                    writer.execute(text("SELECT :number, pg_sleep(0.1)"), {"number": number})
    engine.dispose()
    assert found(scope) == []


def test_a_busy_application_of_threads(shop_url: str) -> None:
    """A session for each request that a dependency closes after the response; a leader's lock; a reports engine."""
    engine = create_engine(shop_url, pool_size=5, max_overflow=5)
    reports = create_engine(shop_url, pool_size=5)
    watch = sqla_watch.install(engine, settings=Settings(profile="test", rules=from_seconds(0.6)))
    sqla_watch.install(reports, settings=watch.settings)
    told: list[str] = []
    watch.reporters.append(lambda scope: told.extend(finding.describe() for finding in scope.findings))

    @contextmanager
    def get_session() -> Iterator[Session]:
        with Session(engine) as session:
            yield session

    def price(session: Session, number: int) -> int:
        with session.begin_nested():
            return session.scalars(select(Order.customer_id).where(Order.id == number)).one()

    def view(session: Session, number: int) -> None:
        session.get(Order, number)
        price(session, number)
        with reports.connect() as connection:
            connection.execute(select(func.count()).select_from(Rate))
        session.commit()
        time.sleep(0.005)

    def serve(number: int) -> None:
        with get_session() as session, sqla_watch.scope("GET /order", kind="request"):
            view(session, number % 100 + 1)

    def lead(elected: threading.Event, over: threading.Event) -> None:
        with engine.connect() as connection:
            connection.execute(select(func.pg_advisory_lock(7)))
            connection.commit()
            elected.set()
            over.wait()

    elected, over = threading.Event(), threading.Event()
    leader = threading.Thread(target=lead, args=(elected, over))
    leader.start()
    elected.wait()
    with ThreadPoolExecutor(4) as executor:
        deadline = time.monotonic() + 2
        number = 0
        while time.monotonic() < deadline:
            list(executor.map(serve, range(number, number + 40)))
            number += 40
    over.set()
    leader.join()
    engine.dispose()
    reports.dispose()
    assert number >= 80
    assert told == []


@both_drivers
@in_event_loop
async def test_a_busy_application_of_tasks(shop_url: str, driver: str) -> None:
    """Fifty users at once and a semaphore; a listener; mails with sessions of their own that outlive their requests."""
    async with watched_async_engine(shop_url, driver, rules=from_seconds(0.6), pool_size=12) as engine:
        told: list[str] = []
        watch = sqla_watch.install(engine)
        watch.reporters.append(lambda scope: told.extend(finding.describe() for finding in scope.findings))
        limit = asyncio.Semaphore(5)
        mails: list[asyncio.Task[None]] = []

        @asynccontextmanager
        async def get_session(engine: AsyncEngine) -> AsyncIterator[AsyncSession]:
            async with AsyncSession(engine) as session:
                yield session

        async def send_mail(number: int) -> None:
            await asyncio.sleep(0.3)
            async with limit, AsyncSession(engine) as session:
                await session.get(Order, number)

        async def view(session: AsyncSession, number: int) -> None:
            await session.get(Order, number)
            await session.commit()
            mails.append(asyncio.create_task(send_mail(number)))
            await asyncio.sleep(0.05)

        async def serve(number: int) -> None:
            async with limit, get_session(engine) as session:
                with sqla_watch.scope("GET /order", kind="request"):
                    await view(session, number + 1)

        async def listen() -> None:
            async with engine.connect() as connection:
                alone = await connection.execution_options(isolation_level="AUTOCOMMIT")
                await alone.execute(text("LISTEN orders"))
                await asyncio.sleep(1.5)

        listener = asyncio.create_task(listen())
        for _ in range(2):
            await asyncio.gather(*(serve(number) for number in range(50)))
        await asyncio.gather(listener, *mails)
    assert len(mails) == 100
    assert told == []
