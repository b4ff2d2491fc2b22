"""Strange things that applications do: they see the same as without the watch, and no probe fails."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest
from sqlalchemy import (
    ARRAY,
    DDL,
    JSON,
    Column,
    Connection,
    Engine,
    Integer,
    LargeBinary,
    MetaData,
    Sequence,
    String,
    Table,
    bindparam,
    column,
    event,
    func,
    insert,
    lambda_stmt,
    literal,
    literal_column,
    select,
    text,
    update,
    values,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.schema import DropTable
from sqlalchemy.types import TypeDecorator

import sqla_watch
from sqla_watch import Scope, Settings
from sqla_watch.demo.models import Customer, Order
from tests.probes.application import DRIVERS, POSTGRESQL, ROWS, Application, Entry, entries, outcome
from tests.support import in_event_loop, watched_async_engine

pytestmark = pytest.mark.filterwarnings("ignore::sqla_watch.SqlaWatchWarning")

both_drivers = pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])


@pytest.fixture(autouse=True)
def _no_probe_failed(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    assert [record.getMessage() for record in caplog.get_records("call") if record.name == "sqla_watch"] == []


def _application(driver: str, shop_url: str, folder: Path) -> Iterator[Application]:
    application = Application(driver, shop_url, folder)
    application.fill()
    yield application
    application.clear()


@pytest.fixture(params=DRIVERS)
def application(request: pytest.FixtureRequest, shop_url: str, tmp_path: Path) -> Iterator[Application]:
    """The application on each driver in turn."""
    yield from _application(request.param, shop_url, tmp_path)


@pytest.fixture(params=POSTGRESQL)
def on_postgresql(request: pytest.FixtureRequest, shop_url: str, tmp_path: Path) -> Iterator[Application]:
    """The application on each driver of PostgreSQL in turn."""
    yield from _application(request.param, shop_url, tmp_path)


def same(application: Application, story: Callable[[Connection], Any], **options: Any) -> Scope:
    """Run a story without and with the watch: the outcome is the same. Returns the scope of the watched run."""
    scopes: list[Scope] = []

    def remembered(connection: Connection) -> Any:
        scope = sqla_watch.current_scope()
        assert scope is not None
        scopes.append(scope)
        return story(connection)

    without = outcome(lambda: application.run(story, watched=False, **options)[0])
    application.fill()
    assert outcome(lambda: application.run(remembered, **options)[0]) == without
    (scope,) = scopes
    return scope


# Values


class HostileText(str):
    """A value that allows neither to be hashed, nor shown, nor compared, nor asked for its truth."""

    __slots__ = ("__weakref__",)

    def __hash__(self) -> int:
        raise RuntimeError("not to be hashed")

    def __repr__(self) -> str:
        raise RuntimeError("not to be shown")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("not to be compared")

    def __bool__(self) -> bool:
        raise RuntimeError("neither true nor false")


class Hostile(TypeDecorator[str]):
    """A type of the application's own whose bound values are hostile."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return HostileText(value)


def test_values_that_cannot_be_hashed_or_shown(application: Application) -> None:
    by_name = select(entries.c.id).where(entries.c.name == bindparam("name", type_=Hostile))

    def story(connection: Connection) -> list[int]:
        found = [connection.scalars(by_name, {"name": f"entry {number}"}).one() for number in (3, 4, 3)]
        connection.execute(update(entries).where(entries.c.id == 3).values(name=bindparam("new", "x", type_=Hostile)))
        found += [connection.scalars(by_name.where(entries.c.id > 1).limit(1), {"name": "x"}).one()]
        return found

    assert same(application, story).statements == 5


class Vector(list[int]):
    """A list whose representation fails, as that of a library's own container may."""

    def __repr__(self) -> str:
        raise RuntimeError("too long to be shown")


def test_values_of_every_type(on_postgresql: Application) -> None:
    def story(connection: Connection) -> list[Any]:
        seen = []
        for value, kind in (
            ([1, 2, 3], ARRAY(Integer)),
            (Vector([1, 2, 3]), ARRAY(Integer)),
            ({"a": [1, {"b": None}]}, JSON),
            (b"\x00\xff" * 10_000, LargeBinary),
            ("\N{SNOWMAN} 'quoted' \"twice\" %s %(x)s :y $1 ?", String),
            (None, String),
            (2**31 - 1, Integer),
        ):
            query = select(literal(value, kind)).where(entries.c.id == 1)
            answer = connection.execute(query).scalar_one()
            seen.append(bytes(answer) if isinstance(answer, memoryview) else answer)
        return seen

    assert same(on_postgresql, story).statements == 7


def test_plain_values_of_the_driver(application: Application) -> None:
    """exec_driver_sql takes what the driver takes: tuples, lists of tuples, dictionaries, or nothing."""
    marks = {"psycopg": "%s", "psycopg2": "%s", "asyncpg": "$1"}
    mark = marks.get(application.url.get_driver_name(), "?")

    def story(connection: Connection) -> list[Any]:
        seen = [connection.exec_driver_sql(f"SELECT name FROM entries WHERE id = {mark}", (7,)).all()]
        connection.exec_driver_sql(f"DELETE FROM entries WHERE id = {mark}", [(1,), (2,), (3,)])
        seen.append(connection.exec_driver_sql("SELECT count(*) FROM entries").all())
        return seen

    assert same(application, story).statements == 3


def test_signs_that_look_like_parameters(application: Application) -> None:
    def story(connection: Connection) -> list[Any]:
        plain = connection.execution_options(no_parameters=True)
        return [
            plain.exec_driver_sql("SELECT '100%', '%s', '%(a)s', '$1', '?', ':b' FROM entries WHERE id = 1").all(),
            plain.exec_driver_sql("SELECT '--', '/*', ';', '''' -- a comment with 'a quote\n FROM entries").first(),
        ]

    assert same(application, story).statements == 2


# Texts


MEGABYTE = 1_000_000


@pytest.mark.parametrize(
    "sql",
    [
        pytest.param(f"SELECT 1 /* {'x' * MEGABYTE} */", id="comment"),
        pytest.param(f"SELECT length('{'x' * MEGABYTE}')", id="literal"),
        pytest.param(f"SELECT id FROM entries WHERE id IN ({', '.join(map(str, range(60_000)))})", id="list"),
        pytest.param(f"SELECT 1{' ' * MEGABYTE}+ 1", id="spaces"),
        pytest.param(f"SELECT {'(' * 500}1{')' * 500}", id="parentheses"),
        pytest.param(f"SELECT 1{' + 1' * 2000}", id="numbers"),
        pytest.param("SELECT 1 FROM " + ", ".join(f"entries e{n}" for n in range(60)) + " LIMIT 0", id="tables"),
        pytest.param("", id="nothing"),
        pytest.param("-- nothing but a comment", id="only a comment"),
        pytest.param("SELECT 'unfinished", id="unfinished literal"),
        pytest.param("SELECT /* unfinished" + "/*" * 5_000, id="unfinished comment"),
        pytest.param('SELECT "' + 'x"' * 5_000, id="unfinished name"),
        pytest.param("SELECT $a$ " + "$b$ $c$" * 5_000, id="unfinished dollars"),
    ],
)
@pytest.mark.parametrize("driver", ["psycopg", "asyncpg", "sqlite"])
def test_texts_of_every_length_and_shape(shop_url: str, tmp_path: Path, driver: str, sql: str) -> None:
    def story(connection: Connection) -> Any:
        result = connection.exec_driver_sql(sql)
        return result.all() if result.returns_rows else None

    for application in _application(driver, shop_url, tmp_path):
        started = perf_counter()
        scope = same(application, story)
        assert perf_counter() - started < 3
        assert scope.statements <= 1


def test_a_text_of_unfinished_parameters_is_read_as_fast(shop_url: str, tmp_path: Path) -> None:
    """On SQLite, because psycopg itself needs seconds for it."""

    def story(connection: Connection) -> Any:
        return connection.exec_driver_sql("SELECT " + "%(" * 30_000).all()

    for application in _application("sqlite", shop_url, tmp_path):
        started = perf_counter()
        same(application, story)
        assert perf_counter() - started < 3


def test_a_statement_with_thousands_of_values_in_its_text(application: Application) -> None:
    rows = [{"id": number, "name": "new"} for number in range(1001, 3001)]

    def story(connection: Connection) -> int:
        connection.execute(insert(entries).values(rows))
        pasted = values(column("number", Integer), literal_binds=True, name="pasted").data([(n,) for n in range(900)])
        return len(connection.execute(select(pasted.c.number)).all())

    assert same(application, story).statements == 2


@pytest.mark.parametrize("driver", ["psycopg", "sqlite"])
def test_many_different_texts(shop_url: str, tmp_path: Path, driver: str) -> None:
    """More than a record keeps apart; the scope counts them all."""

    def story(connection: Connection) -> int:
        return sum(connection.exec_driver_sql(f"SELECT 1 AS column_{number}").scalar_one() for number in range(2500))

    for application in _application(driver, shop_url, tmp_path):
        assert same(application, story).statements == 2500


# Statements from inside of SQLAlchemy


def test_statements_that_listeners_send(application: Application) -> None:
    """Before and after each statement of the application another one, on the same connection."""

    def story(connection: Connection) -> list[Any]:
        seen: list[Any] = []

        def beside(conn: Connection, cursor: Any, statement: str, *arguments: Any) -> None:
            if "beside" not in statement:
                seen.append(conn.execute(select(literal_column("1").label("beside"))).scalar_one())

        event.listen(connection, "before_cursor_execute", beside)
        event.listen(connection, "after_cursor_execute", beside)
        seen.append(len(connection.execute(select(entries.c.id)).all()))
        seen.append(connection.execute(update(entries).values(name="x")).rowcount)
        return seen

    assert same(application, story).statements == 6


def test_a_listener_that_changes_statements(application: Application) -> None:
    def story(connection: Connection) -> Any:
        @event.listens_for(connection, "before_cursor_execute", retval=True)
        def comment(conn: Any, cursor: Any, statement: str, parameters: Any, *more: Any) -> Any:
            return f"{statement} /* by the story */", parameters

        return connection.execute(select(entries.c.name).where(entries.c.id == 7)).all()

    assert same(application, story).statements == 1


def test_a_listener_that_executes_in_place_of_the_dialect(on_postgresql: Application) -> None:
    def story(connection: Connection) -> Any:
        @event.listens_for(connection.engine, "do_execute")
        def instead(cursor: Any, statement: str, parameters: Any, context: Any) -> bool:
            cursor.execute(statement, parameters)
            return True

        return connection.execute(select(entries.c.name).where(entries.c.id == 7)).all()

    same(on_postgresql, story)


def test_a_listener_that_translates_errors(application: Application) -> None:
    class NotThere(Exception):
        pass

    def story(connection: Connection) -> None:
        @event.listens_for(connection.engine, "handle_error")
        def translate(context: Any) -> None:
            raise NotThere("no such table") from context.original_exception

        connection.execute(text("SELECT id FROM nowhere"))

    scope = same(application, story)
    assert scope.errors == 1


def test_a_session_that_is_used_in_its_own_events(application: Application) -> None:
    def story(connection: Connection) -> list[Any]:
        seen: list[Any] = []
        session = Session(connection)

        @event.listens_for(session, "after_flush")
        def after_flush(session: Session, context: Any) -> None:
            seen.append(session.scalar(select(func.count()).select_from(Entry)))

        @event.listens_for(session, "do_orm_execute")
        def each(state: Any) -> None:
            if state.is_select and not state.execution_options.get("inner"):
                seen.append(state.session.scalar(select(func.max(Entry.id)), execution_options={"inner": True}))

        @event.listens_for(session, "loaded_as_persistent")
        def loaded(session: Session, entry: Entry) -> None:
            if entry.id == 7:
                seen.append(session.connection().scalar(select(entries.c.name).where(entries.c.id == 8)))

        session.add(Entry(id=901))
        session.flush()
        seen.append([entry.name for entry in session.scalars(select(Entry).where(Entry.id.in_([7, 9])))])
        session.rollback()
        session.close()
        return seen

    same(application, story)


def test_everything_that_can_be_executed(on_postgresql: Application) -> None:
    def story(connection: Connection) -> list[Any]:
        new = select(values(column("id", Integer), name="new").data([(901,), (902,)]))
        inserting = insert(entries).from_select(["id"], new).returning(entries.c.id).cte("inserted")
        return [
            connection.execute(func.lower("X")).all(),
            connection.scalar(func.length("four")),
            connection.execute(DDL("SELECT 1")).all(),
            connection.execute(text("SELECT 7 AS id").columns(entries.c.id)).all(),
            connection.execute(values(column("n", Integer), name="pairs").data([(1,), (2,)]).select()).all(),
            connection.execute(lambda_stmt(lambda: select(entries.c.id).where(entries.c.id == 7))).all(),
            connection.execute(select(func.count()).select_from(inserting)).all(),
            connection.execute(select(entries).where(entries.c.id == 7).exists().select()).all(),
            connection.exec_driver_sql("VALUES (1), (2)").all(),
            connection.exec_driver_sql("SHOW server_encoding").all(),
            connection.exec_driver_sql("EXPLAIN (COSTS OFF) SELECT 1").all(),
            connection.execute(text("CREATE TEMPORARY TABLE kept AS SELECT 1 AS n")).returns_rows,
            connection.execute(DropTable(Table("kept", MetaData(), Column("n", Integer)))).returns_rows,
        ]

    assert same(on_postgresql, story).errors == 0


def test_sequences_and_defaults_that_are_executed_first(on_postgresql: Application) -> None:
    numbers = Sequence("story_numbers")

    def story(connection: Connection) -> list[Any]:
        numbers.create(connection, checkfirst=True)
        seen = [connection.scalar(numbers), connection.scalar(numbers.next_value())]
        seen.append(connection.execute(insert(entries).values(id=numbers.next_value() + 5000)).inserted_primary_key)
        numbers.drop(connection)
        return seen

    assert same(on_postgresql, story).errors == 0


# Engines and connections


def test_an_engine_that_logs_everything(application: Application, caplog: pytest.LogCaptureFixture) -> None:
    def story(connection: Connection) -> Any:
        return connection.execute(select(entries.c.id).where(entries.c.id < 4)).all()

    with caplog.at_level(logging.CRITICAL, "sqlalchemy.engine"):
        for echo in (True, "debug"):
            assert same(application, story, echo=echo, hide_parameters=True).rows == 3


def test_views_of_an_engine(engine: Engine) -> None:
    """`Engine.execution_options` makes a view that shares pool and dialect."""
    view = engine.execution_options(logging_token="view")
    of_view = view.execution_options(stream_results=True)
    watch = sqla_watch.install(of_view, settings=Settings(profile="test"))
    assert watch.engines == [engine]
    assert sqla_watch.install(engine) is watch
    for each in (engine, view, of_view):
        with sqla_watch.scope("view") as scope, Session(each) as session:
            assert session.scalar(select(func.count()).select_from(Order)) == 100
        assert (scope.statements, scope.connections, scope.transactions) == (1, 1, 1)


def test_autocommit_for_one_connection(on_postgresql: Application) -> None:
    def story(connection: Connection) -> int:
        connection.execution_options(isolation_level="AUTOCOMMIT")
        connection.execute(insert(entries).values(id=901))
        connection.rollback()
        connection.exec_driver_sql("VACUUM entries")  # not possible in a transaction
        return connection.scalars(select(func.count()).select_from(entries)).one()

    assert same(on_postgresql, story).errors == 0


def test_a_raw_connection_is_out_of_sight(application: Application) -> None:
    def story(connection: Connection) -> Any:
        cursor = connection.connection.cursor()
        cursor.execute("SELECT name FROM entries WHERE id = 7")
        rows = [tuple(row) for row in cursor.fetchall()]
        cursor.close()
        return rows

    assert same(application, story).statements == 0


def test_an_option_that_switches_the_cache_off(application: Application) -> None:
    def story(connection: Connection) -> Any:
        uncached = connection.execution_options(compiled_cache=None)
        return [uncached.execute(select(entries.c.id).where(entries.c.id == number)).all() for number in (1, 2, 3)]

    assert same(application, story).statements == 3


def test_a_schema_that_is_translated(on_postgresql: Application) -> None:
    def story(connection: Connection) -> Any:
        translated = connection.execution_options(schema_translate_map={None: "public"})
        return translated.execute(select(entries.c.id).where(entries.c.id < 4)).all()

    assert same(on_postgresql, story).rows == 3


def test_a_session_with_its_own_connections(engine: Engine) -> None:
    sqla_watch.install(engine, settings=Settings(profile="test"))
    with sqla_watch.scope("bound") as scope, engine.connect() as connection:
        outer = connection.begin()
        make_session = sessionmaker(connection, join_transaction_mode="create_savepoint")
        with make_session() as session:
            session.get_one(Customer, 1).name = "changed"
            session.commit()
        with make_session() as session:
            assert session.get_one(Customer, 1).name == "changed"
        outer.rollback()
    assert scope.statements == 3
    assert scope.transactions == 1
    assert scope.connections == 1


# Interruptions


def test_a_statement_that_the_server_cancels(on_postgresql: Application) -> None:
    def story(connection: Connection) -> list[Any]:
        connection.exec_driver_sql("SET LOCAL statement_timeout = 50")
        with pytest.raises(DBAPIError, match="canceling statement due to statement timeout"):
            connection.execute(select(func.pg_sleep(5)))
        connection.rollback()
        return connection.execute(select(entries.c.id).where(entries.c.id < 4)).all()

    scope = same(on_postgresql, story)
    assert (scope.statements, scope.errors) == (2, 1)


def test_a_statement_whose_timeout_is_not_caught(on_postgresql: Application) -> None:
    def story(connection: Connection) -> None:
        connection.exec_driver_sql("SET LOCAL statement_timeout = 50")
        connection.execute(select(func.pg_sleep(5)))

    assert same(on_postgresql, story).errors == 1


def test_a_connection_that_is_killed_in_the_middle(on_postgresql: Application, engine: Engine) -> None:
    def story(connection: Connection) -> list[Any]:
        pid = connection.scalar(select(func.pg_backend_pid()))
        with engine.connect() as other:
            other.execute(select(func.pg_terminate_backend(pid)))
        # How it is told depends on whether asyncpg has heard of the end before it is asked.
        with pytest.raises(DBAPIError) as failed:
            connection.execute(select(entries.c.id)).all()
        refused = outcome(lambda: connection.execute(select(entries.c.id)).all())
        connection.rollback()
        again = len(connection.execute(select(entries.c.id)).all())
        return [failed.value.connection_invalidated, refused, again]

    scope = same(on_postgresql, story)
    assert scope.rows == 1 + ROWS
    assert scope.errors == 1


@pytest.mark.filterwarnings("ignore:.*ServerCursor object .* was deleted while still open:ResourceWarning")
def test_a_connection_that_is_killed_while_it_streams(on_postgresql: Application, engine: Engine) -> None:
    def story(connection: Connection) -> list[Any]:
        pid = connection.scalar(select(func.pg_backend_pid()))
        rows = connection.execute(select(entries.c.id).execution_options(yield_per=10))
        first = rows.fetchone()
        with engine.connect() as other:
            other.execute(select(func.pg_terminate_backend(pid)))
        with pytest.raises(DBAPIError) as failed:
            list(rows)
        connection.rollback()
        return [first, failed.value.connection_invalidated, len(connection.execute(select(entries.c.id)).all())]

    same(on_postgresql, story)
    gc.collect()  # the cursors of psycopg complain here, and not in another test


def test_an_interrupt_of_the_user_in_the_middle_of_a_statement(shop_url: str, tmp_path: Path) -> None:
    def interrupt(*arguments: Any) -> None:
        raise KeyboardInterrupt

    def story(connection: Connection) -> None:
        before = signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        try:
            connection.execute(select(func.pg_sleep(5)))
        finally:
            signal.signal(signal.SIGALRM, before)

    for application in _application("psycopg", shop_url, tmp_path):
        scope = same(application, story)
        assert scope.errors == 1


@both_drivers
@in_event_loop
async def test_a_task_that_is_cancelled_in_the_middle_of_a_statement(shop_url: str, driver: str) -> None:
    async with watched_async_engine(shop_url, driver, pool_size=1, max_overflow=0) as engine:

        async def sleep() -> None:
            async with AsyncSession(engine) as session:
                await session.execute(select(func.pg_sleep(5)))

        with sqla_watch.scope("cancelled") as scope:
            task = asyncio.create_task(sleep())
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            async with AsyncSession(engine) as session:
                assert await session.scalar(select(func.count()).select_from(Order)) == 100
    assert scope.statements == 2
    assert scope.errors == 1


@both_drivers
@in_event_loop
async def test_a_group_of_tasks_of_which_one_fails(shop_url: str, driver: str) -> None:
    async with watched_async_engine(shop_url, driver) as engine:

        async def ask(sql: str) -> None:
            async with engine.connect() as connection:
                await connection.execute(text(sql))

        with sqla_watch.scope("group") as scope:
            with pytest.raises(ExceptionGroup) as raised:
                async with asyncio.TaskGroup() as group:
                    group.create_task(ask("SELECT pg_sleep(5)"))
                    while not scope.connections:
                        await asyncio.sleep(0.01)
                    await asyncio.sleep(0.05)
                    group.create_task(ask("SELECT id FROM nowhere"))
            async with engine.connect() as connection:
                await connection.execute(text("SELECT 1"))
    assert all(isinstance(error, DBAPIError) for error in raised.value.exceptions)
    assert scope.statements == 3
    assert scope.errors == 2


# Results


def test_a_result_that_is_read_after_its_scope(engine: Engine) -> None:
    sqla_watch.install(engine, settings=Settings(profile="test"))
    with engine.connect() as connection:
        with sqla_watch.scope("begun") as scope:
            rows = connection.execute(select(Order.id).execution_options(yield_per=10))
            assert rows.fetchone() is not None
        assert len(rows.all()) == 99
    assert scope.statements == 1
    assert scope.rows == 100


def test_rows_of_a_result_that_leaves_an_inner_scope_still_count_in_the_outer_one(engine: Engine) -> None:
    sqla_watch.install(engine, settings=Settings(profile="test"))
    with sqla_watch.scope("outer") as outer, engine.connect() as connection:
        with sqla_watch.scope("inner"):
            rows = connection.execute(select(Order.id).execution_options(yield_per=10))
            assert rows.fetchone() is not None
        assert len(rows.all()) == 99
    assert outer.statements == 1
    assert outer.rows == 100


def test_a_result_that_is_read_after_the_watch_has_gone(application: Application) -> None:
    def story(connection: Connection) -> list[Any]:
        rows = connection.execute(select(entries.c.id).order_by(entries.c.id).execution_options(yield_per=10))
        seen = [rows.fetchone()]
        sqla_watch.uninstall()
        return seen + rows.all()

    same(application, story)


def test_a_closed_result_complains_as_ever(application: Application) -> None:
    def story(connection: Connection) -> list[Any]:
        seen = []
        for options in ({}, {"yield_per": 10}):
            result = connection.execute(select(entries.c.id), execution_options=options)
            result.fetchone()
            result.close()
            seen.append(outcome(result.fetchone))
        seen.append(outcome(lambda: connection.execute(update(entries).values(name="x")).all()))
        return seen

    same(application, story)


def test_results_that_are_merged_and_spliced(application: Application) -> None:
    def story(connection: Connection) -> list[Any]:
        first = connection.execute(select(entries.c.id).where(entries.c.id < 3))
        second = connection.execute(select(entries.c.id).where(entries.c.id > 249))
        merged = sorted(row.id for row in first.merge(second))
        rows = [{"id": number} for number in (901, 902)]
        inserted = connection.execute(insert(entries).return_defaults(supplemental_cols=[entries.c.name]), rows)
        return [merged, [tuple(row) for row in inserted.inserted_primary_key_rows]]

    assert same(application, story).statements == 3


# Memory and threads


class Note(str):
    """A value that can be watched being thrown away."""

    __slots__ = ("__weakref__",)


def test_nothing_of_the_application_is_kept_while_the_scope_is_open(engine: Engine) -> None:
    sqla_watch.install(engine, settings=Settings(profile="test"))

    def story() -> list[weakref.ref[Any]]:
        note = Note("nobody")
        session = Session(engine)
        customer = session.scalars(select(Customer).where(Customer.name != note).limit(1)).one()
        orders = customer.orders
        result = session.execute(select(Order.id).where(Order.status != note).execution_options(yield_per=5))
        result.fetchone()
        result.close()
        session.close()
        return [weakref.ref(each) for each in (note, session, customer, orders[0], result)]

    story()  # SQLAlchemy's cache keeps the values with which a statement was compiled first
    with sqla_watch.scope("keeps nothing") as scope:
        kept = story()
        gc.collect()
        assert [reference() for reference in kept] == [None] * 5
        assert scope.statements == 3


def test_an_exception_and_its_frames_are_not_kept(engine: Engine) -> None:
    sqla_watch.install(engine, settings=Settings(profile="test"))
    with sqla_watch.scope("keeps no exception") as scope, engine.connect() as connection:
        with pytest.raises(DBAPIError) as raised:
            connection.execute(text("SELECT id FROM nowhere"))
        kept = weakref.ref(raised.value)
        del raised
        gc.collect()
        assert kept() is None
    assert scope.errors == 1


def test_many_threads_in_one_scope_are_counted_one_for_one(engine: Engine) -> None:
    sqla_watch.install(engine, settings=Settings(profile="test"))

    def use() -> None:
        with Session(engine) as session:
            for number in range(100):
                session.execute(select(Order.id).where(Order.id == number % 10 + 1)).all()

    with sqla_watch.scope("threads") as scope:
        threads = [threading.Thread(target=contextvars.copy_context().run, args=(use,)) for _ in range(6)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            assert scope.statements <= 600  # reading it meanwhile disturbs nobody
            time.sleep(0.001)
        for thread in threads:
            thread.join()
    assert scope.statements == 600
    assert scope.rows == 600
    assert scope.transactions == 6
