"""connection-held: kept out of the pool without need, or never returned, is found; kept on purpose is not."""

from __future__ import annotations

import asyncio
import gc
import select as readiness
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, StaticPool, create_engine, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

import sqla_watch
from sqla_watch import ConnectionHeldWarning, Finding, Settings, Watch
from sqla_watch.demo.models import Order
from tests.conftest import url_for
from tests.support import found, in_event_loop, line_of, only, place, watched_async_engine

pytestmark = [
    pytest.mark.usefixtures("from_300_ms"),
    pytest.mark.filterwarnings("ignore::sqla_watch.SqlaWatchWarning"),
]

both_drivers = pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
FROM_300_MS: dict[str, Any] = {"connection-held": {"min_seconds": 0.3}}
HELD = 0.7
"""Seconds for which a connection is held without need in these stories."""
HERE = Path(__file__).name
order = select(Order.id).limit(1)


@pytest.fixture
def from_300_ms(engine: Engine, watch: Watch) -> None:
    sqla_watch.install(engine, settings=Settings(profile="test", rules=FROM_300_MS))


def request(name: str = "GET /") -> sqla_watch.scope:
    return sqla_watch.scope(name, kind="request")


def alone(engine: Engine) -> Engine:
    """The engine without transactions."""
    return engine.execution_options(isolation_level="AUTOCOMMIT")


@pytest.fixture
def late(watch: Watch) -> list[Finding]:
    """What is told by itself, without any scope of the application's closing."""
    findings: list[Finding] = []
    watch.reporters.append(lambda scope: findings.extend(scope.findings if scope.kind == "implicit" else ()))
    return findings


def assert_held(finding: Finding, *, taken: int, meanwhile: int, doing: str = "in time.sleep") -> None:
    assert finding.rule == "connection-held"
    assert place(finding) == (__file__, taken)
    assert finding.severity == "medium"
    assert f"; meanwhile {doing} at {HERE}:{meanwhile}" in finding.message
    assert [(each.role, each.location.line) for each in finding.related] == [(f"meanwhile {doing}", meanwhile)]
    numbers = finding.evidence
    assert HELD <= numbers["longest_idle_seconds"] <= numbers["held_seconds"] < HELD + 0.5  # type: ignore[operator]
    assert numbers["worked_seconds"] < 0.1  # type: ignore[operator]
    assert numbers["returned"] is True
    assert "Take the connection when it is needed" in finding.suggestion


# Held without need


def test_a_connection_that_is_taken_before_slow_work_is_found(engine: Engine) -> None:
    with request() as scope, engine.connect() as connection:  # takes it early
        time.sleep(HELD)  # works before the first statement
        connection.execute(order)
    assert_held(only(scope), taken=line_of("takes it early"), meanwhile=line_of("works before the first statement"))


def test_a_connection_that_is_kept_after_its_commit_is_found(engine: Engine) -> None:
    with request() as scope, engine.connect() as connection:  # keeps it
        connection.execute(order)
        connection.commit()
        time.sleep(HELD)  # works after the commit
    assert_held(only(scope), taken=line_of("keeps it"), meanwhile=line_of("works after the commit"))


def test_a_session_that_is_bound_to_a_connection_is_found_at_the_line_that_took_it(engine: Engine) -> None:
    with request() as scope, engine.connect() as connection, Session(connection) as session:  # binds a session
        session.get(Order, 1)
        session.commit()
        connection.commit()
        time.sleep(HELD)  # works beside a session
    assert_held(only(scope), taken=line_of("binds a session"), meanwhile=line_of("works beside a session"))


def test_in_autocommit_the_time_between_two_statements_counts(engine: Engine) -> None:
    with request() as scope, alone(engine).connect() as connection:  # keeps it in autocommit
        connection.execute(order)
        time.sleep(HELD)  # works in autocommit
        connection.execute(order)
    assert_held(only(scope), taken=line_of("keeps it in autocommit"), meanwhile=line_of("works in autocommit"))


def test_a_helper_that_takes_it_does_not_hide_what_its_caller_does(engine: Engine) -> None:
    def take() -> Connection:
        return engine.connect()  # is taken by a helper

    with request() as scope, take() as connection:
        time.sleep(HELD)  # works after a helper
        connection.execute(order)
    assert_held(only(scope), taken=line_of("is taken by a helper"), meanwhile=line_of("works after a helper"))


def test_a_session_in_autocommit_is_found_at_its_first_statement(engine: Engine) -> None:
    with request() as scope, Session(alone(engine)) as session:
        session.get(Order, 1)  # first in autocommit
        time.sleep(HELD)  # works in a session in autocommit
        session.get(Order, 2)
    assert_held(
        only(scope),
        taken=line_of("first in autocommit"),
        meanwhile=line_of("works in a session in autocommit"),
    )


@both_drivers
@in_event_loop
async def test_async_a_connection_that_is_taken_before_slow_work_is_found(shop_url: str, driver: str) -> None:
    async with watched_async_engine(shop_url, driver, rules=FROM_300_MS) as engine:
        with request() as scope:
            async with engine.connect() as connection:  # takes it early in a task
                await asyncio.sleep(HELD)  # awaits before the first statement
                await connection.execute(order)
    assert_held(
        only(scope),
        taken=line_of("takes it early in a task"),
        meanwhile=line_of("awaits before the first statement"),
        doing="in asyncio.sleep",
    )


def test_the_same_line_several_times_is_one_finding(engine: Engine) -> None:
    with request() as scope:
        for seconds in (0.4, HELD):
            with engine.connect():
                time.sleep(seconds)
    finding = only(scope)
    assert finding.evidence["connections"] == 2
    assert HELD <= finding.evidence["longest_idle_seconds"] < HELD + 0.5  # type: ignore[operator]


def test_outside_of_a_request_it_is_found_where_others_had_to_wait(shop_url: str) -> None:
    engine = create_engine(shop_url, pool_size=1, max_overflow=0)
    sqla_watch.install(engine, settings=Settings(profile="test", rules={**FROM_300_MS, "pool-wait": "ignore"}))

    def wait() -> None:
        with engine.connect():
            pass

    waiter = threading.Thread(target=wait)
    with sqla_watch.scope("script") as scope:
        with engine.connect():  # holds while another waits
            waiter.start()
            time.sleep(HELD)
        waiter.join()  # it was waiting when the connection was returned
        with engine.connect():
            pass
    engine.dispose()
    findings = [finding for finding in scope.findings if finding.rule == "connection-held"]
    assert [place(finding)[1] for finding in findings] == [line_of("holds while another waits")]
    assert findings[0].severity == "high"
    assert findings[0].evidence["waits_meanwhile"] == 1


# Never returned


def wait_for(condition: Callable[[], bool], seconds: float = 8) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)


def leak(engine: Engine) -> Connection:
    connection = engine.connect()  # is left
    connection.execute(order)
    return connection


def test_a_connection_that_a_request_has_left_is_told_a_second_after_its_end(
    engine: Engine, late: list[Finding]
) -> None:
    kept = []
    with request("GET /leak") as scope:
        kept.append(leak(engine))
    ended = time.monotonic()
    wait_for(lambda: bool(late))
    told = time.monotonic()
    kept.pop().close()
    assert scope.findings == []
    finding = late[0]
    assert finding.rule == "connection-held"
    assert finding.severity == "high"
    assert place(finding) == (__file__, line_of("is left"))
    assert finding.message.startswith("a connection was not returned: taken ")
    assert finding.evidence["returned"] is False
    assert finding.target == "leak"
    assert told - ended >= 1


def test_it_is_told_once(engine: Engine, late: list[Finding]) -> None:
    kept = []
    with request():
        kept.append(leak(engine))
    wait_for(lambda: bool(late))
    time.sleep(1)
    assert [finding.rule for finding in late] == ["connection-held"]
    kept.pop().close()


def test_it_is_told_with_the_name_of_the_request_as_a_warning(engine: Engine, watch: Watch) -> None:
    names: list[str] = []
    watch.reporters.append(lambda scope: names.append(scope.name) if scope.kind == "implicit" else None)
    kept = []
    with request("GET /leak"):
        kept.append(leak(engine))
    with pytest.warns(ConnectionHeldWarning, match="not returned") as warned:
        wait_for(lambda: len(warned) > 0)
    kept.pop().close()
    (warning,) = warned
    assert (warning.filename, warning.lineno) == (__file__, line_of("is left"))
    assert names[0] == "GET /leak"


def test_a_connection_that_the_garbage_collector_returns_in_time_is_not_told(
    engine: Engine, late: list[Finding]
) -> None:
    with request():
        leak(engine)
        gc.collect()
    time.sleep(1.5)
    assert [finding.rule for finding in late] == []


def test_what_is_around_a_request_may_still_return_it(engine: Engine, late: list[Finding]) -> None:
    """A dependency that is closed after the response, as those of FastAPI."""

    def get_session() -> Iterator[Session]:
        with Session(engine) as session:
            yield session

    def view(session: Session) -> None:
        session.get(Order, 1)

    dependency = get_session()
    with request():
        view(next(dependency))
    time.sleep(0.5)
    assert list(dependency) == []
    time.sleep(1)
    assert "connection-held" not in [finding.rule for finding in late]


def test_a_session_that_the_program_uses_on_after_a_task_is_not_left(engine: Engine, late: list[Finding]) -> None:
    """One session over many tasks: whoever has it is still running."""

    def step(session: Session, number: int) -> None:
        session.get(Order, number)

    with Session(engine) as session:
        with sqla_watch.scope("step", kind="task"):
            step(session, 1)
        for number in range(2, 6):  # whoever has it is at work with it, time and again
            time.sleep(0.4)
            step(session, number)
    assert "connection-held" not in [finding.rule for finding in late]


def test_a_session_that_is_handed_to_a_thread_which_works_with_it_is_not_left(
    engine: Engine, late: list[Finding]
) -> None:
    def work(session: Session) -> None:
        for _ in range(3):
            session.execute(text("SELECT pg_sleep(0.7)"))
        session.close()

    def view() -> threading.Thread:
        session = Session(engine)
        session.get(Order, 1)
        worker = threading.Thread(target=work, args=(session,))
        worker.start()
        return worker

    with request():
        worker = view()
    worker.join()
    assert "connection-held" not in [finding.rule for finding in late]


@both_drivers
@in_event_loop
async def test_async_a_response_that_is_streamed_after_its_request_is_not_left(shop_url: str, driver: str) -> None:
    async with watched_async_engine(shop_url, driver, rules=FROM_300_MS) as engine:
        late: list[Finding] = []
        sqla_watch.install(engine).reporters.append(lambda scope: late.extend(scope.findings))

        async def rows(session: AsyncSession) -> AsyncIterator[int]:
            result = await session.stream(select(Order.id).limit(4), execution_options={"yield_per": 1})
            async for (number,) in result:
                await asyncio.sleep(0.5)
                yield number
            await session.close()

        async def view() -> AsyncIterator[int]:
            session = AsyncSession(engine)
            await session.get(Order, 1)
            return rows(session)

        with request():
            response = await view()
        assert len([number async for number in response]) == 4
    assert "connection-held" not in [finding.rule for finding in late]


@both_drivers
@in_event_loop
async def test_async_a_task_that_outlives_its_request_may_keep_its_own(shop_url: str, driver: str) -> None:
    async with watched_async_engine(shop_url, driver, rules=FROM_300_MS) as engine:
        late: list[Finding] = []
        sqla_watch.install(engine).reporters.append(lambda scope: late.extend(scope.findings))

        async def send_mail() -> None:
            async with engine.connect() as connection:
                await connection.execute(order)
                await connection.commit()
                await asyncio.sleep(1.8)

        with request():
            mail = asyncio.create_task(send_mail())
            await asyncio.sleep(0.1)
        await mail
    assert [finding.rule for finding in late] == []


# The watchdog only looks


class Value:
    """Something of the application's."""


def test_a_look_keeps_nothing_alive_that_a_function_lets_go(engine: Engine, late: list[Finding]) -> None:
    """Neither a value nor the forgotten session itself, which Python collects, and so returns its connection."""

    def serve() -> tuple[bool, bool]:
        with request("GET /leak"):
            session = Session(engine)
            session.get(Order, 1)
        value = Value()
        session_ref, value_ref = weakref.ref(session), weakref.ref(value)
        time.sleep(1.8)  # is looked at here
        del session, value
        gc.collect()
        return session_ref() is None, value_ref() is None

    let_go = serve()
    gc.collect()
    assert let_go == (True, True)
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]


def test_a_look_leaves_what_a_function_has_asked_of_its_variables(engine: Engine) -> None:
    """`locals()` is what it was when it was called."""

    def serve() -> int:
        with request("GET /leak"):
            session = Session(engine)
            session.get(Order, 1)
        number = 1
        before = locals()
        number = 2
        time.sleep(1.8)  # is looked at here, too
        session.close()
        return before["number"] * 10 + number

    assert serve() == 12


# Kept on purpose


def test_a_connection_that_listens_is_kept_on_purpose(engine: Engine) -> None:
    with request() as scope, alone(engine).connect() as connection:
        connection.execute(text("LISTEN orders"))
        time.sleep(HELD)
    assert found(scope) == []


def test_a_psycopg2_connection_that_listens_is_kept_on_purpose(shop_url: str) -> None:
    """As in psycopg2's documentation: `select.select` waits for notifications."""
    engine = create_engine(url_for(shop_url, "psycopg2"))
    sqla_watch.install(engine, settings=Settings(profile="test", rules=FROM_300_MS))
    with request() as scope, alone(engine).connect() as connection:
        connection.execute(text("LISTEN orders"))
        readiness.select([connection.connection.driver_connection], [], [], HELD)
    engine.dispose()
    assert found(scope) == []


def test_psycopgs_own_wait_for_notifications_is_no_idling(engine: Engine) -> None:
    with request() as scope, alone(engine).connect() as connection:
        driver: Any = connection.connection.driver_connection
        driver.execute("LISTEN orders")
        assert list(driver.notifies(timeout=HELD)) == []
    assert found(scope) == []


@pytest.mark.parametrize(
    "statement",
    ["SELECT pg_advisory_lock(4711)", "SELECT pg_try_advisory_lock(4711)", "SELECT pg_advisory_lock_shared(4711)"],
)
def test_a_connection_with_an_advisory_lock_is_kept_on_purpose(engine: Engine, statement: str) -> None:
    with request() as scope, engine.connect() as connection:
        connection.execute(text(statement))
        connection.commit()
        time.sleep(HELD)
        connection.execute(text("SELECT pg_advisory_unlock_all()"))
        connection.commit()
    assert found(scope) == []


def test_an_advisory_lock_of_a_transaction_ends_with_it(engine: Engine) -> None:
    with request() as scope, engine.connect() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(4711)"))
        connection.commit()
        time.sleep(HELD)
    assert [rule for rule, _ in found(scope)] == ["connection-held"]


@pytest.mark.parametrize(
    "statement",
    ["CREATE TEMP TABLE own (id integer)", "create temporary table own (id integer) ON COMMIT PRESERVE ROWS"],
)
def test_a_connection_with_a_temporary_table_is_kept_on_purpose(engine: Engine, statement: str) -> None:
    with request() as scope, engine.connect() as connection:
        connection.execute(text(statement))
        connection.commit()
        time.sleep(HELD)
        connection.execute(text("DROP TABLE own"))
        connection.commit()
    assert found(scope) == []


# Good code


def test_a_connection_that_is_taken_when_it_is_needed_is_fine(engine: Engine) -> None:
    with request() as scope:
        time.sleep(HELD)
        with engine.connect() as connection:
            connection.execute(order)
        time.sleep(HELD)
    assert found(scope) == []


def test_a_session_holds_nothing_before_its_first_statement_and_after_its_commit(engine: Engine) -> None:
    with request() as scope, Session(engine) as session:
        time.sleep(0.4)
        session.get(Order, 1)
        session.commit()
        time.sleep(0.4)
    assert found(scope) == []


def test_a_connection_that_works_is_fine_however_long(engine: Engine) -> None:
    with request() as scope, alone(engine).connect() as connection:
        for _ in range(3):
            connection.execute(text("SELECT pg_sleep(0.2)"))
    assert found(scope) == []


def test_one_that_works_more_than_a_fifth_of_its_time_is_fine(engine: Engine) -> None:
    with request() as scope, alone(engine).connect() as connection:
        connection.execute(text("SELECT pg_sleep(0.4)"))
        time.sleep(0.4)
    assert found(scope) == []


def test_short_pauses_are_fine(engine: Engine) -> None:
    with request() as scope, alone(engine).connect() as connection:
        for _ in range(6):
            connection.execute(order)
            time.sleep(0.1)
    assert [rule for rule, _ in found(scope) if rule == "connection-held"] == []


def test_idle_time_in_a_transaction_is_for_another_rule(engine: Engine) -> None:
    with request() as scope, engine.connect() as connection:
        connection.execute(order)
        time.sleep(HELD)
        connection.commit()
    assert [rule for rule, _ in found(scope)] == ["idle-in-transaction"]


def test_a_script_may_keep_its_only_connection(engine: Engine) -> None:
    with sqla_watch.scope("script") as scope, engine.connect() as connection:
        time.sleep(HELD)
        connection.execute(order)
    assert found(scope) == []


def test_without_any_scope_it_is_silent(engine: Engine, late: list[Finding]) -> None:
    with engine.connect() as connection:
        connection.execute(order)
        connection.commit()
        time.sleep(HELD)
    assert late == []


def test_a_connection_that_was_taken_around_the_request_is_not_the_requests(engine: Engine) -> None:
    with engine.connect() as connection, request() as scope:
        connection.execute(order)
        connection.commit()
        time.sleep(HELD)
    assert found(scope) == []


def test_copy_by_the_driver_is_work(engine: Engine) -> None:
    with request() as scope, alone(engine).connect() as connection:
        cursor: Any = connection.connection.cursor()
        query = "COPY (SELECT number, pg_sleep(0.03) FROM generate_series(1, 24) AS number) TO STDOUT"
        with cursor, cursor.copy(query) as copy:
            assert len(list(copy.rows())) == 24
    assert found(scope) == []


def test_a_static_pool_has_nothing_to_return() -> None:
    """One connection for all, for as long as the program runs: nobody waits for it, and closing gives nothing back."""
    engine = create_engine("sqlite://", poolclass=StaticPool)
    sqla_watch.install(engine, settings=Settings(profile="test", rules=FROM_300_MS))
    with request() as scope, engine.connect() as connection:
        time.sleep(HELD)
        connection.execute(text("SELECT 1"))
    engine.dispose()
    assert [rule for rule, _ in found(scope) if rule == "connection-held"] == []


# Settings and ignores


def test_a_block_around_its_return_silences_it(engine: Engine) -> None:
    with request() as scope:
        connection = engine.connect()
        time.sleep(HELD)
        with sqla_watch.ignore("connection-held", reason="a long poll") as ignore:
            connection.close()
    assert found(scope) == []
    assert ignore.matched == 1


def test_a_comment_on_the_line_that_took_it_silences_it(engine: Engine) -> None:
    with request() as scope:
        connection = engine.connect()  # sqla-watch: ignore[connection-held]
        time.sleep(HELD)
        connection.close()
    assert found(scope) == []


def test_a_comment_silences_one_that_was_left_as_well(engine: Engine, late: list[Finding]) -> None:
    def keep() -> Connection:
        return engine.connect()  # sqla-watch: ignore[connection-held]

    with request():
        connection = keep()
    time.sleep(1.6)
    connection.close()
    assert late == []


def test_below_the_threshold_it_is_silent(engine: Engine) -> None:
    sqla_watch.install(engine, settings=Settings(profile="test", rules={"connection-held": {"min_seconds": 5}}))
    with request() as scope, engine.connect():
        time.sleep(HELD)
    assert found(scope) == []


def test_the_share_of_work_is_a_setting(engine: Engine) -> None:
    rules = {"connection-held": {"min_seconds": 0.3, "max_worked_percent": 60}}
    sqla_watch.install(engine, settings=Settings(profile="test", rules=rules))
    with request() as scope, alone(engine).connect() as connection:
        connection.execute(text("SELECT pg_sleep(0.4)"))
        time.sleep(0.5)
    assert [rule for rule, _ in found(scope)] == ["connection-held"]


def test_the_profiles_begin_at_one_second_and_at_two() -> None:
    assert Settings(profile="development").rule("connection-held")["min_seconds"] == 1.0
    assert Settings(profile="test").rule("connection-held")["min_seconds"] == 1.0
    assert Settings(profile="production").rule("connection-held")["min_seconds"] == 2.0
    assert Settings(profile="production").rule("connection-held")["max_worked_percent"] == 20
