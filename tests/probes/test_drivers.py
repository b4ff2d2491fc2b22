"""The dialect's door on every driver: statements, rows, errors, transactions and lines are exact, results untouched."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, bindparam, delete, func, insert, select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError, ProgrammingError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

import sqla_watch
from sqla_watch import Scope, Settings
from sqla_watch.callsite import location_of
from sqla_watch.demo.models import Order
from tests.probes.application import DRIVERS, POSTGRESQL, ROWS, SQLITE, Application, Entry, entries, outcome
from tests.support import in_event_loop, watched_async_engine

pytestmark = pytest.mark.filterwarnings("ignore::sqla_watch.SqlaWatchWarning")

all_entries = select(entries.c.id, entries.c.name).order_by(entries.c.id)


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


@pytest.fixture(params=SQLITE)
def on_sqlite(request: pytest.FixtureRequest, shop_url: str, tmp_path: Path) -> Iterator[Application]:
    """The application on each driver of SQLite in turn."""
    yield from _application(request.param, shop_url, tmp_path)


# Rows


def fetch_all(connection: Connection) -> int:
    return len(connection.execute(all_entries).fetchall())


def fetch_scalars(connection: Connection) -> int:
    return len(connection.scalars(all_entries).all())


def fetch_mappings(connection: Connection) -> int:
    return len(list(connection.execute(all_entries).mappings()))


def fetch_in_partitions(connection: Connection) -> int:
    return sum(len(part) for part in connection.execute(all_entries).partitions(100))


def fetch_by_many(connection: Connection) -> int:
    rows = 0
    result = connection.execute(all_entries)
    while part := result.fetchmany(100):
        rows += len(part)
    return rows


def iterate(connection: Connection) -> int:
    return sum(1 for _ in connection.execute(all_entries))


def fetch_one_by_one(connection: Connection) -> int:
    result = connection.execute(all_entries)
    rows = 0
    while result.fetchone() is not None:
        rows += 1
    return rows


def freeze(connection: Connection) -> int:
    return len(connection.execute(all_entries).freeze()().all())


def fetch_entities(connection: Connection) -> int:
    with Session(connection) as session:
        return len(session.scalars(select(Entry)).all())


def fetch_with_the_legacy_query(connection: Connection) -> int:
    with Session(connection) as session:
        return len(session.query(Entry.id, Entry.name).all())


def fetch_plain_sql(connection: Connection) -> int:
    return len(connection.exec_driver_sql("SELECT id, name FROM entries").all())


def stream(connection: Connection) -> int:
    return sum(1 for _ in connection.execution_options(stream_results=True).execute(all_entries))


def stream_all_at_once(connection: Connection) -> int:
    return len(connection.execution_options(stream_results=True).execute(all_entries).all())


def stream_in_partitions(connection: Connection) -> int:
    result = connection.execution_options(stream_results=True).execute(all_entries)
    return sum(len(part) for part in result.partitions(60))


def yield_per(connection: Connection) -> int:
    return sum(1 for _ in connection.execution_options(yield_per=40).execute(all_entries))


def yield_per_of_the_result(connection: Connection) -> int:
    return sum(1 for _ in connection.execute(all_entries).yield_per(40))


def yield_per_entities(connection: Connection) -> int:
    with Session(connection) as session:
        return sum(1 for _ in session.scalars(select(Entry).execution_options(yield_per=40)))


@pytest.mark.parametrize(
    "story",
    [
        fetch_all,
        fetch_scalars,
        fetch_mappings,
        fetch_in_partitions,
        fetch_by_many,
        iterate,
        fetch_one_by_one,
        freeze,
        fetch_entities,
        fetch_with_the_legacy_query,
        fetch_plain_sql,
        stream,
        stream_all_at_once,
        stream_in_partitions,
        yield_per,
        yield_per_of_the_result,
        yield_per_entities,
    ],
)
def test_however_they_are_fetched_all_rows_count_once(
    application: Application, story: Callable[[Connection], int]
) -> None:
    fetched, scope = application.run(story)
    assert fetched == ROWS
    assert scope.rows == ROWS
    assert scope.statements == 1
    assert scope.errors == 0


def fetch_first(connection: Connection) -> int:
    return 1 if connection.execute(all_entries).first() else 0


def fetch_two_by_ten(connection: Connection) -> int:
    result = connection.execute(all_entries)
    rows = len(result.fetchmany(10)) + len(result.fetchmany(10))
    result.close()
    return rows


def break_after_seven(connection: Connection) -> int:
    result = connection.execute(all_entries)
    for number, _ in enumerate(result, 1):
        if number == 7:
            break
    result.close()
    return number


@pytest.mark.parametrize(("story", "used"), [(fetch_first, 1), (fetch_two_by_ten, 20), (break_after_seven, 7)])
def test_rows_that_came_count_and_not_those_that_were_used(
    application: Application, story: Callable[[Connection], int], used: int
) -> None:
    """PostgreSQL's drivers have them all before the first is used; SQLite makes each one when it is asked for."""
    fetched, scope = application.run(story)
    assert fetched == used
    assert scope.rows == (ROWS if application.fetches_at_once else used)
    assert scope.statements == 1


def stream_150_by_100(connection: Connection) -> int:
    result = connection.execution_options(yield_per=100).execute(all_entries)
    for number, _ in enumerate(result, 1):
        if number == 150:
            break
    result.close()
    return number


def test_of_a_stream_only_what_was_pulled_counts(application: Application) -> None:
    """SQLAlchemy pulls the first row to see what there is, and then twice 100."""
    used, scope = application.run(stream_150_by_100)
    assert used == 150
    assert scope.rows == 201
    assert scope.statements == 1


def test_a_stream_can_be_looked_at_while_it_runs(application: Application) -> None:
    def story(connection: Connection) -> list[int]:
        seen = []
        scope = sqla_watch.current_scope()
        assert scope is not None
        result = connection.execution_options(yield_per=100).execute(all_entries)
        for number, _ in enumerate(result, 1):
            if number in (1, 101, 250):
                seen.append(scope.rows)
        return seen

    seen, scope = application.run(story)
    assert seen == [1, 101, 250]
    assert scope.rows == 250


def test_empty_results_and_statements_without_rows_bring_none(application: Application) -> None:
    def story(connection: Connection) -> None:
        assert connection.execute(select(entries).where(entries.c.id < 0)).all() == []
        assert connection.execute(select(entries).where(entries.c.id < 0)).first() is None
        assert connection.execute(update(entries).values(name="x")).rowcount == ROWS
        assert connection.execute(delete(entries).where(entries.c.id < 100)).rowcount == 99
        connection.rollback()

    _, scope = application.run(story)
    assert scope.rows == 0
    assert scope.statements == 4


def test_rows_of_a_returning_count(on_postgresql: Application) -> None:
    def story(connection: Connection) -> list[int]:
        updated = connection.execute(update(entries).where(entries.c.id <= 30).values(name="x").returning(entries.c.id))
        deleted = connection.execute(delete(entries).where(entries.c.id <= 20).returning(entries.c.id))
        inserted = connection.execute(insert(entries).values(id=900).returning(entries.c.id))
        sizes = [len(result.all()) for result in (updated, deleted, inserted)]
        connection.rollback()
        return sizes

    sizes, scope = on_postgresql.run(story)
    assert sizes == [30, 20, 1]
    assert scope.rows == 51
    assert scope.statements == 3


def test_on_sqlite_a_returning_works_and_its_rows_are_not_known(on_sqlite: Application) -> None:
    def story(connection: Connection) -> int:
        updated = connection.execute(update(entries).where(entries.c.id <= 30).values(name="x").returning(entries.c.id))
        count = len(updated.all())
        connection.rollback()
        return count

    count, scope = on_sqlite.run(story)
    assert count == 30
    assert scope.statements == 1


# Many rows in one call


def test_insertmanyvalues_of_3000_rows_is_three_statements(on_postgresql: Application) -> None:
    def story(connection: Connection) -> list[int]:
        rows = [{"id": number, "name": "new"} for number in range(1001, 4001)]
        new = connection.execute(insert(entries).returning(entries.c.id, sort_by_parameter_order=True), rows)
        return list(new.scalars())

    new, scope = on_postgresql.run(story)
    assert new == list(range(1001, 4001))
    assert scope.statements == 3
    assert scope.rows == 3000


def test_insertmanyvalues_works_on_sqlite(on_sqlite: Application) -> None:
    def story(connection: Connection) -> list[int]:
        rows = [{"id": number, "name": "new"} for number in range(1001, 4001)]
        return list(connection.execute(insert(entries).returning(entries.c.id), rows).scalars())

    new, scope = on_sqlite.run(story)
    assert new == list(range(1001, 4001))
    assert scope.statements == 3


def test_a_flush_of_3000_objects_is_a_few_statements(on_postgresql: Application) -> None:
    def story(connection: Connection) -> int:
        with Session(connection) as session:
            session.add_all([Entry(id=number) for number in range(1001, 4001)])
            session.flush()
            return session.scalars(select(func.count()).select_from(Entry)).one()

    count, scope = on_postgresql.run(story)
    assert count == ROWS + 3000
    assert scope.statements <= 5


def test_executemany_is_one_statement(application: Application) -> None:
    rename = update(entries).where(entries.c.id == bindparam("number")).values(name=bindparam("new"))

    def story(connection: Connection) -> list[str]:
        rows = [{"number": number, "new": f"renamed {number}"} for number in range(1, 101)]
        connection.execute(rename, rows)
        return list(connection.scalars(select(entries.c.name).where(entries.c.name.like("renamed%"))))

    names, scope = application.run(story)
    assert len(names) == 100
    assert scope.statements == 2
    assert scope.rows == 100


@pytest.mark.parametrize("driver", ["psycopg2"])
@pytest.mark.parametrize("mode", ["values_only", "values_plus_batch"])
def test_the_batch_modes_of_psycopg2(shop_url: str, tmp_path: Path, driver: str, mode: str) -> None:
    def story(connection: Connection) -> int:
        rows = [{"id": number, "name": "new"} for number in range(1001, 1501)]
        connection.execute(insert(entries), rows)
        rename = update(entries).where(entries.c.id == bindparam("number")).values(name=bindparam("new"))
        connection.execute(rename, [{"number": number, "new": "renamed"} for number in range(1001, 1501)])
        return connection.scalars(select(func.count()).where(entries.c.name == "renamed")).one()

    for application in _application(driver, shop_url, tmp_path):
        count, scope = application.run(story, executemany_mode=mode)
        assert count == 500
        assert scope.statements == 3


# Asynchronous results


@pytest.fixture(params=["asyncpg", "psycopg async", "aiosqlite"])
def asynchronous(request: pytest.FixtureRequest, shop_url: str, tmp_path: Path) -> Iterator[Application]:
    """The application on each asynchronous driver in turn."""
    yield from _application(request.param, shop_url, tmp_path)


@in_event_loop
async def test_an_asynchronous_stream_counts_what_was_pulled(asynchronous: Application) -> None:
    engine = create_async_engine(asynchronous.url)
    sqla_watch.install(engine)
    with sqla_watch.scope("stream") as whole:
        async with engine.connect() as connection, connection.stream(all_entries) as result:
            assert len([row async for row in result]) == ROWS
    with sqla_watch.scope("stream of a session") as of_session:
        async with AsyncSession(engine) as session:
            streamed = await session.stream_scalars(select(Entry).execution_options(yield_per=40))
            assert len([entry async for entry in streamed]) == ROWS
    with sqla_watch.scope("stream with a break") as part:
        by_100 = all_entries.execution_options(yield_per=100)
        async with engine.connect() as connection, connection.stream(by_100) as result:
            async for row in result:
                if row.id == 150:
                    break
    with sqla_watch.scope("partitions") as partitions:
        async with engine.connect() as connection:
            result = await connection.stream(all_entries)
            assert [len(rows) async for rows in result.partitions(100)] == [100, 100, 50]
    await engine.dispose()
    assert [scope.rows for scope in (whole, of_session, part, partitions)] == [ROWS, ROWS, 201, ROWS]
    assert [scope.statements for scope in (whole, of_session, part, partitions)] == [1, 1, 1, 1]


@in_event_loop
async def test_asynchronous_results_that_are_fetched_at_once(asynchronous: Application) -> None:
    engine = create_async_engine(asynchronous.url)
    sqla_watch.install(engine)
    with sqla_watch.scope("at once") as scope:
        async with AsyncSession(engine) as session:
            kept = (await session.scalars(select(Entry))).all()
            assert len(kept) == ROWS
            assert await session.scalar(select(func.count()).select_from(Entry)) == ROWS
            assert (await session.get_one(Entry, 7)).name == "entry 7"
    await engine.dispose()
    assert scope.statements == 2  # the session has entry 7
    assert scope.rows == ROWS + 1


# Errors


def violate(connection: Connection) -> None:
    connection.execute(insert(entries).values(id=1, name="again"))


def misspell(connection: Connection) -> None:
    connection.execute(text("SELEKT 1"))


def ask_for_what_is_not_there(connection: Connection) -> None:
    connection.execute(text("SELECT id FROM nowhere"))


def flush_a_violation(connection: Connection) -> None:
    with Session(connection) as session:
        session.add_all([Entry(id=1), Entry(id=2)])
        session.flush()


def violate_with_many(connection: Connection) -> None:
    connection.execute(insert(entries), [{"id": number, "name": "again"} for number in range(240, 280)])


def violate_with_plain_sql(connection: Connection) -> None:
    connection.exec_driver_sql("INSERT INTO entries (id, name) VALUES (1, 'again')")


def forget_a_parameter(connection: Connection) -> None:
    connection.execute(text("SELECT id FROM entries WHERE id = :number"), {"other": 1})


def expect_one_of_many(connection: Connection) -> None:
    connection.execute(all_entries).one()


def send_after_an_error(connection: Connection) -> None:
    with pytest.raises(DBAPIError):
        violate(connection)
    connection.execute(all_entries)
    raise RuntimeError("SQLite goes on after an error, PostgreSQL does not")


@pytest.mark.parametrize(
    ("story", "errors"),
    [
        (violate, 1),
        (misspell, 1),
        (ask_for_what_is_not_there, 1),
        (flush_a_violation, 1),
        (violate_with_many, 1),
        (violate_with_plain_sql, 1),
        (forget_a_parameter, 0),
        (expect_one_of_many, 0),
    ],
)
def test_the_applications_exception_is_its_own(
    application: Application, story: Callable[[Connection], None], errors: int
) -> None:
    scopes = []

    def watched() -> None:
        def remember(connection: Connection) -> None:
            scopes.append(sqla_watch.current_scope())
            story(connection)

        application.run(remember)

    without = outcome(lambda: application.run(story, watched=False))
    assert without[0] == "raised"
    assert outcome(watched) == without
    (scope,) = scopes
    assert scope is not None
    assert scope.errors == errors


def test_the_sqlstate_is_kept_with_the_fact(on_postgresql: Application) -> None:
    def story(connection: Connection) -> list[str]:
        states = []
        for failing in (violate, misspell, ask_for_what_is_not_there):
            with pytest.raises(DBAPIError) as raised:
                failing(connection)
            connection.rollback()
            original: Any = raised.value.orig
            states.append(getattr(original, "sqlstate", None) or original.pgcode)
        return states

    states, scope = on_postgresql.run(story)
    assert states == ["23505", "42601", "42P01"]
    assert scope.errors == 3
    assert scope.statements == 3


def test_after_an_error_everything_goes_on_as_without_the_watch(application: Application) -> None:
    without = outcome(lambda: application.run(send_after_an_error, watched=False))
    assert outcome(lambda: application.run(send_after_an_error)) == without


# Transactions


def count(connection: Connection) -> int:
    return connection.scalars(select(func.count()).select_from(entries)).one()


def test_commits_and_rollbacks_are_counted(application: Application) -> None:
    def story(connection: Connection) -> tuple[int, int]:
        connection.execute(insert(entries).values(id=901))
        connection.commit()
        connection.execute(insert(entries).values(id=902))
        connection.rollback()
        with connection.begin():
            connection.execute(insert(entries).values(id=903))
        with pytest.raises(IntegrityError), connection.begin():
            violate(connection)
        number = count(connection)
        connection.commit()
        connection.commit()
        connection.rollback()
        scope = sqla_watch.current_scope()
        assert scope is not None
        return number, scope.transactions

    (number, transactions), scope = application.run(story)
    assert number == ROWS + 2
    assert transactions == 5
    assert scope.transactions == 5
    assert scope.record.commits == 3
    assert scope.record.rollbacks == 2
    assert scope.commit_seconds > 0


def test_what_is_left_open_is_rolled_back_when_the_connection_goes_back(application: Application) -> None:
    def story(connection: Connection) -> None:
        connection.execute(insert(entries).values(id=901))

    _, scope = application.run(story)
    assert scope.record.commits == 0
    assert scope.record.rollbacks == 1
    assert application.run(count, watched=False)[0] == ROWS


def test_savepoints_are_no_transactions_and_no_statements(application: Application) -> None:
    def story(connection: Connection) -> int:
        for number in (901, 902, 903):
            nested = connection.begin_nested()
            connection.execute(insert(entries).values(id=number))
            if number == 902:
                nested.rollback()
            else:
                nested.commit()
        connection.commit()
        return 0

    _, scope = application.run(story)
    assert scope.statements == 3
    assert scope.transactions == 1
    assert application.run(count, watched=False)[0] == ROWS + 2


def test_in_autocommit_each_statement_stands_for_itself(on_postgresql: Application) -> None:
    def story(connection: Connection) -> None:
        connection.execute(insert(entries).values(id=901))
        connection.rollback()
        connection.execute(insert(entries).values(id=902))
        connection.commit()

    _, scope = on_postgresql.run(story, isolation_level="AUTOCOMMIT")
    assert on_postgresql.run(count, watched=False)[0] == ROWS + 2
    assert scope.statements == 2
    assert scope.transactions == 0


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_two_phase_transactions_without_a_prepare(shop_url: str, tmp_path: Path, driver: str) -> None:
    def story(connection: Connection) -> None:
        transaction = connection.begin_twophase()
        connection.execute(insert(entries).values(id=901))
        transaction.commit()
        transaction = connection.begin_twophase()
        connection.execute(insert(entries).values(id=902))
        transaction.rollback()

    for application in _application(driver, shop_url, tmp_path):
        _, scope = application.run(story)
        assert (scope.record.commits, scope.record.rollbacks) == (1, 1)
        assert scope.statements == 2
        assert application.run(count, watched=False)[0] == ROWS + 1


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_two_phase_transactions_with_a_prepare(server_that_prepares: str, tmp_path: Path, driver: str) -> None:
    def story(connection: Connection) -> list[str]:
        transaction = connection.begin_twophase("first")
        connection.execute(insert(entries).values(id=901))
        transaction.prepare()
        transaction.commit()
        transaction = connection.begin_twophase("second")
        connection.execute(insert(entries).values(id=902))
        transaction.prepare()
        transaction.rollback()
        left = list(connection.scalars(text("SELECT gid FROM pg_prepared_xacts")))
        connection.rollback()
        return left

    for application in _application(driver, server_that_prepares, tmp_path):
        left, scope = application.run(story)
        assert left == []
        assert scope.errors == 0
        assert scope.statements == 2
        assert (scope.record.commits, scope.record.rollbacks) == (1, 1)
        assert application.run(count, watched=False)[0] == ROWS + 1


# Lines


def lines(scope: Scope) -> list[tuple[str, str]]:
    """Function and source line of each place that has sent statements in an open scope."""
    source = Path(__file__).read_text().splitlines()
    places = []
    for group in scope.record.groups:
        location = location_of(group.call_site)
        assert location is not None
        assert location.file == __file__
        places.append((location.function, source[location.line - 1].rpartition("# ")[2]))
    return places


def open_scope() -> Scope:
    scope = sqla_watch.current_scope()
    assert scope is not None
    return scope


def test_the_line_is_the_applications(application: Application) -> None:
    def story(connection: Connection) -> list[tuple[str, str]]:
        connection.execute(all_entries)  # core
        connection.scalar(select(func.count()))  # scalar
        connection.exec_driver_sql("SELECT 1")  # plain
        list(connection.execute(all_entries.execution_options(stream_results=True)))  # stream
        connection.execute(update(entries).values(name="x"))  # write
        connection.execute(insert(entries), [{"id": 901, "name": ""}, {"id": 902, "name": ""}])  # many
        with Session(connection) as session:
            session.get(Entry, 1)  # get
            entry = session.scalars(select(Entry).where(Entry.id == 2)).one()  # query
            session.query(Entry.name).filter_by(id=3).first()  # legacy
            entry.name = "y"
            session.flush()  # flush
            session.refresh(entry)  # refresh
        with pytest.raises(ProgrammingError if application.fetches_at_once else DBAPIError):
            connection.execute(  # fails
                text("SELECT id FROM nowhere")
            )
        return lines(open_scope())

    found, _ = application.run(story)
    assert {function for function, _ in found} == {"story"}
    assert [line for _, line in found] == [
        "core", "scalar", "plain", "stream", "write", "many", "get", "query", "legacy", "flush", "refresh", "fails",
    ]  # fmt: skip


async def name_of(connection: AsyncConnection, number: int) -> str | None:
    await asyncio.sleep(0)
    query = select(entries.c.name).where(entries.c.id == number)
    return await connection.scalar(query)  # in a coroutine


async def deeper(connection: AsyncConnection) -> str | None:
    return await asyncio.create_task(name_of(connection, 1))


@in_event_loop
async def test_the_line_is_that_of_the_coroutine(asynchronous: Application) -> None:
    engine = create_async_engine(asynchronous.url)
    sqla_watch.install(engine)

    async def story(engine: AsyncEngine) -> None:
        async with engine.connect() as connection:
            await connection.execute(all_entries)  # before any await
            await asyncio.sleep(0.001)
            await connection.execute(select(entries.c.id))  # after an await
            await connection.scalar(  # over several lines
                select(
                    func.count(),
                )
            )
            await name_of(connection, 1)
            await deeper(connection)
            result = await connection.stream(select(entries.c.name))  # stream
            assert len([row async for row in result]) == ROWS
        async with AsyncSession(engine) as session, session.begin():
            await asyncio.sleep(0)
            await session.get(Entry, 5)  # get
            session.add(Entry(id=901))
            await session.flush()  # flush
            await session.rollback()

    with sqla_watch.scope("coroutines") as scope:
        await story(engine)
        found = lines(scope)
    await engine.dispose()
    assert found == [
        ("story", "before any await"),
        ("story", "after an await"),
        ("story", "over several lines"),
        ("name_of", "in a coroutine"),
        ("name_of", "in a coroutine"),
        ("story", "stream"),
        ("story", "get"),
        ("story", "flush"),
    ]


@in_event_loop
async def test_a_statement_that_fails_has_the_line_of_its_coroutine(asynchronous: Application) -> None:
    engine = create_async_engine(asynchronous.url)
    sqla_watch.install(engine)
    with sqla_watch.scope("failing") as scope:
        async with engine.connect() as connection:
            await asyncio.sleep(0)
            with pytest.raises(DBAPIError):
                await connection.execute(text("SELECT id FROM nowhere"))  # fails in a coroutine
        found = lines(scope)
    await engine.dispose()
    assert [line for _, line in found] == ["fails in a coroutine"]


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
@in_event_loop
async def test_a_statement_that_is_cancelled_has_the_line_of_its_coroutine(shop_url: str, driver: str) -> None:
    async with watched_async_engine(shop_url, driver) as engine:
        with sqla_watch.scope("cancelled") as scope:
            async with engine.connect() as connection:
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await connection.execute(select(func.pg_sleep(5)))  # is cancelled
                await connection.invalidate()
            found = lines(scope)
    assert [line for _, line in found] == ["is cancelled"]
    assert scope.errors == 1


@in_event_loop
async def test_lines_of_tasks_that_run_at_once_are_not_mixed_up(asynchronous: Application) -> None:
    engine = create_async_engine(asynchronous.url)
    sqla_watch.install(engine)

    async def first() -> None:
        async with engine.connect() as connection:
            for _ in range(3):
                await connection.execute(select(entries.c.id))  # in the first
                await asyncio.sleep(0)

    async def second() -> None:
        async with engine.connect() as connection:
            for _ in range(3):
                await connection.execute(select(entries.c.name))  # in the second
                await asyncio.sleep(0)

    with sqla_watch.scope("tasks") as scope:
        await asyncio.gather(first(), second())
        found = lines(scope)
    await engine.dispose()
    assert sorted(found) == [("first", "in the first"), ("second", "in the second")]
    assert scope.statements == 6


# Nothing changes


def everything_once(connection: Connection) -> list[Any]:
    seen: list[Any] = []
    see = seen.append
    see(connection.execute(all_entries).all())
    see(connection.execute(all_entries).first())
    see(connection.execute(all_entries).keys())
    see(list(connection.execute(all_entries).columns("name").partitions(99)))
    see(connection.execute(all_entries).mappings().fetchmany(3))
    see(connection.execute(all_entries.execution_options(yield_per=60)).all())
    see(connection.execute(update(entries).where(entries.c.id < 9).values(name="x")).rowcount)
    see(connection.execute(insert(entries).values(id=901)).inserted_primary_key)
    see(connection.execute(insert(entries).returning(entries.c.id), [{"id": 902}, {"id": 903}]).all())
    see(connection.execute(delete(entries).where(entries.c.id > 900).returning(entries.c.id)).all())
    see(connection.exec_driver_sql("SELECT count(*) FROM entries").scalar_one())
    see(connection.execute(text("SELECT id FROM entries WHERE id IN :ids").bindparams(bindparam("ids", expanding=True)),
                           {"ids": [3, 2, 1]}).all())  # fmt: skip
    with Session(connection) as session:
        see([(entry.id, entry.name) for entry in session.scalars(select(Entry).order_by(Entry.id))])
        session.add(Entry(id=904, name="flushed"))
        session.flush()
        session.get_one(Entry, 904).name = "changed"
        see(session.scalars(select(Entry.name).where(Entry.id == 904)).one())
        see(session.execute(select(Entry.id).where(Entry.id > 240).order_by(Entry.id)).scalars().unique().all())
    connection.rollback()
    see(count(connection))
    return seen


def test_results_are_the_same_with_and_without_the_watch(application: Application) -> None:
    without = outcome(lambda: application.run(everything_once, watched=False)[0])
    assert without[0] == "returned"
    assert outcome(lambda: application.run(everything_once)[0]) == without


def test_two_watches_count_each_statement_once(application: Application) -> None:
    """An engine that is watched by itself and as one of all is probed once."""
    with sqla_watch.install(settings=Settings(profile="test")):
        fetched, scope = application.run(fetch_all)
    assert fetched == ROWS
    assert scope.statements == 1
    assert scope.rows == ROWS


def test_orders_of_the_shop_have_the_same_number_of_rows_on_every_driver(on_postgresql: Application) -> None:
    def story(connection: Connection) -> int:
        return len(connection.execute(select(Order.id, Order.placed_at)).all())

    fetched, scope = on_postgresql.run(story)
    assert (fetched, scope.rows) == (100, 100)
