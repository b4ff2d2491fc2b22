"""session-scope: sessions that outlive their request, are shared, or lose changes; what is meant is silent."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, text, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, scoped_session, sessionmaker

import sqla_watch
from sqla_watch import Finding, Scope, SessionScopeWarning, Settings
from sqla_watch.demo.models import Order, Product, Rate
from tests.conftest import url_for
from tests.support import found, in_event_loop, line_of, only, place, watched_async_engine

pytestmark = [pytest.mark.usefixtures("watch"), pytest.mark.filterwarnings("ignore::sqla_watch.SqlaWatchWarning")]

both_drivers = pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])


@pytest.fixture(autouse=True)
def _nothing_is_left(engine: Engine) -> Iterator[None]:
    yield
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM rates WHERE country LIKE 'X%'"))


def request(name: str) -> Any:
    return sqla_watch.scope(name, kind="request")


def related(finding: Finding) -> list[tuple[str, int]]:
    return [(each.role, each.location.line) for each in finding.related]


# Outlived


def test_a_transaction_that_goes_on_in_another_request_is_found(engine: Engine) -> None:
    session = Session(engine)
    with request("GET /orders") as first:
        session.get_one(Order, 1)  # used there
    with request("GET /products") as second:
        session.get_one(Product, 1)  # used here
        session.get_one(Product, 2)
    session.close()
    assert found(first) == []
    finding = only(second)
    assert (finding.rule, finding.target, finding.severity) == ("session-scope", "outlived", "high")
    assert place(finding) == (__file__, line_of("used here"))
    assert finding.message == "a transaction that was begun in 'GET /orders' is still in use here"
    assert finding.evidence == {"cause": "outlived", "begun_in": "GET /orders"}
    assert related(finding) == [("last used there", line_of("used there"))]
    assert "with Session(engine) as session" in finding.suggestion


@pytest.mark.parametrize("end", ["commit", "rollback", "close", "expire_all"])
def test_a_session_that_ended_its_transaction_is_silent(engine: Engine, end: str) -> None:
    session = Session(engine)
    with request("first"):
        session.get_one(Order, 1)
        getattr(session, end)()
    with request("second") as second:
        session.get_one(Product, 1)
    session.close()
    assert found(second) == ([("session-scope", "outlived")] if end == "expire_all" else [])


@pytest.mark.parametrize(
    ("first", "second", "is_found"),
    [("request", "request", True), ("task", "job", True), ("request", "block", False), ("block", "request", False)],
)
def test_only_units_of_work_can_be_outlived(engine: Engine, first: str, second: str, is_found: bool) -> None:
    session = Session(engine)
    with sqla_watch.scope("first", kind=first):
        session.get_one(Order, 1)
    with sqla_watch.scope("second", kind=second) as scope:
        session.get_one(Product, 1)
    session.close()
    assert len(scope.findings) == is_found


def test_blocks_inside_of_one_request_and_of_a_test_share_as_they_like(engine: Engine) -> None:
    with sqla_watch.scope("a test", kind="test"), Session(engine) as session, request("GET /orders") as scope:
        for number in (1, 2):
            with sqla_watch.scope("block"):
                session.get_one(Order, number)
        session.get_one(Product, 1)
    assert found(scope) == []


def test_a_connection_that_goes_on_is_the_same_mistake(engine: Engine) -> None:
    connection = engine.connect()
    with request("first"):
        connection.execute(text("SELECT 1"))
    with request("second") as scope:
        connection.execute(text("SELECT 2"))
    connection.close()
    assert found(scope) == [("session-scope", "outlived")]


@both_drivers
@in_event_loop
async def test_async_a_session_that_outlives_its_request(shop_url: str, driver: str) -> None:
    async with watched_async_engine(shop_url, driver) as engine:
        session = AsyncSession(engine)
        with request("first"):
            await session.get_one(Order, 1)
        with request("second") as scope:
            await session.get_one(Product, 1)  # awaited here
        await session.close()
    assert (found(scope), place(only(scope))) == ([("session-scope", "outlived")], (__file__, line_of("awaited here")))


# Shared


def test_two_threads_that_use_one_connection_at_once_are_found(engine: Engine) -> None:
    with sqla_watch.scope("threads") as scope, Session(engine) as session:
        connection = session.connection()

        def sleep() -> None:
            connection.execute(text("SELECT pg_sleep(0.2)"))  # runs then

        thread = threading.Thread(target=contextvars.copy_context().run, args=(sleep,))
        thread.start()
        threading.Event().wait(0.05)
        connection.execute(text("SELECT 1"))  # at the same moment
        thread.join()
    finding = only(scope)
    assert (finding.rule, finding.target, finding.severity) == ("session-scope", "shared", "high")
    assert place(finding) == (__file__, line_of("at the same moment"))
    assert related(finding) == [("running then", line_of("runs then"))]
    assert finding.evidence["cause"] == "shared at once"


@in_event_loop
async def test_async_two_tasks_that_use_one_session_at_once(shop_url: str) -> None:
    """psycopg lets the second one wait; SQLAlchemy and asyncpg refuse it, which is an error of its own."""
    async with watched_async_engine(shop_url, "psycopg") as engine:
        with sqla_watch.scope("tasks") as scope:
            async with engine.connect() as connection:

                async def ask(seconds: float) -> None:
                    await connection.execute(text("SELECT pg_sleep(:seconds)"), {"seconds": seconds})

                await asyncio.gather(ask(0.1), ask(0.01))
    assert found(scope) == [("session-scope", "shared")]


@both_drivers
@in_event_loop
async def test_async_a_session_for_each_task_is_silent(shop_url: str, driver: str) -> None:
    async with watched_async_engine(shop_url, driver) as engine:

        async def ask(number: int) -> None:
            async with AsyncSession(engine) as session:
                await session.execute(text("SELECT pg_sleep(0.02)"))

        with sqla_watch.scope("tasks") as scope:
            await asyncio.gather(*(ask(number) for number in range(4)))
    assert found(scope) == []


# Unsaved


def new(session: Session) -> None:
    session.add(Rate(country="XA", percent=1))


def flushed(session: Session) -> None:
    new(session)
    session.flush()


def changed(session: Session) -> None:
    order = session.get_one(Order, 1)
    order.status = "found" if order.status == "lost" else "lost"  # other tests here save it


def deleted(session: Session) -> None:
    session.delete(session.get_one(Rate, "AT"))


def executed(session: Session) -> None:
    session.execute(update(Order).where(Order.id == 1).values(status="lost"))


@pytest.mark.parametrize(
    ("change", "said", "evidence"),
    [
        (new, "1 new object", {"new": 1}),
        (changed, "1 changed object", {"changed": 1}),
        (deleted, "1 deleted object", {"deleted": 1}),
        (flushed, "1 writing statement", {"statements_written": 1}),
        (executed, "1 writing statement", {"statements_written": 1}),
    ],
)
def test_a_session_that_is_closed_with_changes_is_found(
    engine: Engine, change: Callable[[Session], None], said: str, evidence: dict[str, int]
) -> None:
    with sqla_watch.scope("unsaved") as scope:
        session = Session(engine)
        change(session)
        session.close()  # lets go of it
    finding = only(scope)
    assert (finding.rule, finding.target, finding.severity) == ("session-scope", "unsaved", "medium")
    assert place(finding) == (__file__, line_of("lets go of it"))
    assert finding.message == f"a session was closed with {said} that were neither committed nor rolled back"
    counted = {name: finding.evidence[name] for name in ("new", "changed", "deleted", "statements_written")}
    assert counted == {**dict.fromkeys(counted, 0), **evidence}
    assert "session.begin()" in finding.suggestion


def test_a_block_that_ends_without_a_commit_is_found_at_its_head(engine: Engine) -> None:
    with sqla_watch.scope("block") as scope, Session(engine) as session:  # the block
        session.add(Rate(country="XB", percent=1))
        session.flush()  # wrote it
        session.add(Rate(country="XC", percent=1))
    finding = only(scope)
    assert place(finding) == (__file__, line_of("the block"))
    assert related(finding) == [("written", line_of("wrote it"))]
    assert (finding.evidence["new"], finding.evidence["statements_written"]) == (1, 1)
    assert "1 new object and 1 writing statement " in finding.message


@pytest.mark.parametrize("change", [new, flushed, changed, deleted, executed])
@pytest.mark.parametrize("end", [Session.commit, Session.rollback])
def test_what_was_committed_or_rolled_back_is_silent(
    engine: Engine, change: Callable[[Session], None], end: Callable[[Session], None]
) -> None:
    with sqla_watch.scope("said") as scope, Session(engine) as session:
        change(session)
        end(session)
        session.get_one(Order, 2)
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO rates VALUES ('AT', 20) ON CONFLICT DO NOTHING"))
    assert found(scope) == []


def read_only(engine: Engine) -> None:
    with Session(engine) as session:
        order = session.get_one(Order, 1)
        order.status = order.status  # no change
        session.execute(text("SELECT 1"))


def in_a_failing_block(engine: Engine) -> None:
    with pytest.raises(LookupError), Session(engine) as session:
        flushed(session)
        raise LookupError


def closed_while_an_exception_is_on_its_way(engine: Engine) -> None:
    session = Session(engine)
    with pytest.raises(LookupError):
        try:
            flushed(session)
            raise LookupError
        finally:
            session.close()


def on_a_connection_that_was_given(engine: Engine) -> None:
    with engine.connect() as connection, connection.begin() as outer:
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            flushed(session)
        outer.rollback()


def with_begin(engine: Engine) -> None:
    with Session(engine) as session, session.begin():
        flushed(session)
    with sessionmaker(engine).begin() as session:
        changed(session)
        session.rollback()


def removed_from_its_registry(engine: Engine) -> None:
    registry = scoped_session(sessionmaker(engine))
    flushed(registry())
    registry.remove()


def rolled_back_to_a_savepoint(engine: Engine) -> None:
    with Session(engine) as session:
        nested = session.begin_nested()
        flushed(session)
        nested.rollback()


def dropped(engine: Engine) -> None:
    flushed(Session(engine))
    gc.collect()  # as long as the engine can have its connection back


@pytest.mark.parametrize(
    "use",
    [
        read_only,
        in_a_failing_block,
        closed_while_an_exception_is_on_its_way,
        on_a_connection_that_was_given,
        with_begin,
        removed_from_its_registry,
        rolled_back_to_a_savepoint,
        dropped,
    ],
)
def test_what_is_meant_to_go_is_silent(engine: Engine, use: Callable[[Engine], None]) -> None:
    with sqla_watch.scope("meant") as scope:
        use(engine)
    assert [rule for rule, _ in found(scope)] == []


@pytest.mark.parametrize("where", ["engine", "session"])
def test_with_autocommit_what_was_written_is_saved(shop_url: str, where: str) -> None:
    options = {"isolation_level": "AUTOCOMMIT"}
    engine = create_engine(url_for(shop_url, "psycopg"), **(options if where == "engine" else {}))  # type: ignore[arg-type]
    sqla_watch.install(engine, settings=Settings(profile="test"))
    with sqla_watch.scope("autocommit") as scope:
        with Session(engine) as session:
            if where == "session":
                session.connection(execution_options=options)
            flushed(session)
        with Session(engine) as session:
            assert session.get(Rate, "XA") is not None
    engine.dispose()
    assert found(scope) == []


def unsaved(engine: Any) -> AsyncSession:
    session = AsyncSession(engine)
    session.add(Rate(country="XD", percent=1))
    return session


@both_drivers
@in_event_loop
async def test_async_a_session_that_is_closed_with_changes(shop_url: str, driver: str) -> None:
    async with watched_async_engine(shop_url, driver) as engine:
        with sqla_watch.scope("closed") as closed:
            session = unsaved(engine)
            await session.flush()
            await session.close()  # awaits the close
        with sqla_watch.scope("block") as block:
            async with unsaved(engine):  # awaits the end
                pass
        with sqla_watch.scope("failed") as failed, pytest.raises(LookupError):
            async with unsaved(engine) as session:
                await session.flush()
                raise LookupError
        with sqla_watch.scope("committed") as committed:
            async with unsaved(engine) as session:
                await session.rollback()
    assert place(only(closed)) == (__file__, line_of("awaits the close"))
    assert place(only(block)) == (__file__, line_of("awaits the end"))
    assert (found(failed), found(committed)) == ([], [])


def test_without_a_scope_it_is_told_in_one_of_its_own(engine: Engine, watch: sqla_watch.Watch) -> None:
    heard: list[Scope] = []
    watch.reporters.append(heard.append)
    session = Session(engine)
    new(session)
    session.close()
    session = Session(engine)
    flushed(session)
    session.close()
    told = [finding.target for scope in heard for finding in scope.findings if finding.rule == "session-scope"]
    assert told == ["unsaved", "unsaved"]


def test_it_can_be_ignored(engine: Engine) -> None:
    with sqla_watch.scope("ignored") as scope:
        session = Session(engine)
        flushed(session)
        with sqla_watch.ignore("session-scope", "unsaved", reason="a preview"):
            session.close()
        session = Session(engine)
        flushed(session)
        session.close()  # sqla-watch: ignore[session-scope]
    assert found(scope) == []
    assert sqla_watch.unused_ignores() == []


def test_the_warning_has_its_own_class(engine: Engine) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with sqla_watch.scope("warned"):
            session = Session(engine)
            new(session)
            session.close()
    assert [each.category for each in caught] == [SessionScopeWarning]
