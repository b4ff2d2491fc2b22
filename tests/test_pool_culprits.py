"""An exhausted pool on a real PostgreSQL: the finding, the exception's note and the snapshot name the true culprit.

The culprit's line is the finding's own, or the first of its related lines, and stands in its message. Thresholds are
those of the test profile, but for the time that a pool waits before it gives up.
"""

from __future__ import annotations

import asyncio
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

import sqla_watch
from sqla_watch import Finding, Scope, Settings, Watch
from sqla_watch.demo.models import Order
from tests.support import in_event_loop, line_of, only, place, watched_async_engine

pytestmark = pytest.mark.filterwarnings("ignore::sqla_watch.SqlaWatchWarning")

both_drivers = pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
PATIENCE = 0.3
"""Seconds for which a pool waits before it gives up."""
HERE = Path(__file__).name


class Waits:
    """What became of a request for a connection, asked for in a scope of its own."""

    def __init__(self, name: str = "asks") -> None:
        self.name = name
        self.scope: Scope | None = None
        self.error: PoolTimeout | None = None

    @contextmanager
    def request(self) -> Iterator[None]:
        with sqla_watch.scope(self.name, kind="request") as self.scope:
            try:
                yield
            except PoolTimeout as error:
                self.error = error

    @property
    def finding(self) -> Finding:
        assert self.scope is not None
        return only(self.scope)

    @property
    def note(self) -> str:
        assert self.error is not None
        (note,) = self.error.__notes__
        return note


@pytest.fixture
def engine(shop_url: str) -> Iterator[Engine]:
    """A watched engine with two connections, which are open already."""
    engine = create_engine(shop_url, pool_size=2, max_overflow=0, pool_timeout=PATIENCE)
    sqla_watch.install(engine, settings=Settings(profile="test"))
    with engine.connect(), engine.connect():
        pass
    yield engine
    engine.dispose()


@pytest.fixture
def watch(engine: Engine) -> Watch:
    return sqla_watch.install(engine)


@pytest.fixture(scope="module")
def slow_commit(shop_url: str) -> Iterator[str]:
    """An INSERT whose COMMIT takes 0.8 s: PostgreSQL checks its constraint then."""
    engine = create_engine(shop_url)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE slow_to_commit (id integer)")
        connection.exec_driver_sql(
            "CREATE FUNCTION check_slowly() RETURNS trigger AS "
            "$$ BEGIN PERFORM pg_sleep(0.8); RETURN NULL; END $$ LANGUAGE plpgsql"
        )
        connection.exec_driver_sql(
            "CREATE CONSTRAINT TRIGGER slowly AFTER INSERT ON slow_to_commit DEFERRABLE INITIALLY DEFERRED "
            "FOR EACH ROW EXECUTE FUNCTION check_slowly()"
        )
    yield "INSERT INTO slow_to_commit VALUES (1)"
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE slow_to_commit")
        connection.exec_driver_sql("DROP FUNCTION check_slowly()")
    engine.dispose()


def assert_blames(finding: Finding, rule: str, *, asked: int, culprit: int, state: str, doing: str = "") -> None:
    """The finding is where a connection was asked for, and names before any other line the one that is to blame."""
    assert (finding.rule, place(finding)) == (rule, (__file__, asked))
    first = finding.related[0]
    assert (first.location.file, first.location.line) == (__file__, culprit)
    assert f"{HERE}:{culprit}" in finding.message
    assert state in first.role
    assert state in finding.message
    assert doing in first.role


def assert_noted(waits: Waits, *, culprit: int, state: str, doing: str = "") -> None:
    """The exception has a note that names the culprit in its first line, and is SQLAlchemy's own otherwise."""
    heading, first, *_ = waits.note.splitlines()
    assert heading == "sqla_watch: the connections of the pool were held by"
    assert f"{HERE}:{culprit}" in first
    assert f"{state}:" in first
    assert doing in first
    assert_unchanged(waits.error)


def assert_unchanged(error: PoolTimeout | None) -> None:
    bare = create_engine("postgresql+psycopg://", pool_size=2, max_overflow=0, pool_timeout=PATIENCE)
    expected = (
        f"QueuePool limit of size 2 overflow 0 reached, connection timed out, timeout {PATIENCE:.2f}"
        " (Background on this error at: https://sqlalche.me/e/"
    )
    bare.dispose()
    assert type(error) is PoolTimeout
    assert str(error).startswith(expected)
    assert error.args == (expected.partition(" (Background")[0],)
    assert error.code == "3o7r"


def seen(watch: Watch) -> set[tuple[int, str]]:
    """Line and state of the connections that are out, by the snapshot."""
    return {
        (connection.location.line if connection.location else 0, connection.state)
        for connection in watch.snapshot().connections
    }


def run_in_threads(*functions: Callable[[], None]) -> None:
    threads = [threading.Thread(target=function) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@contextmanager
def busy(*functions: Callable[[threading.Event], None], seconds: float = 0.1) -> Iterator[None]:
    """Threads run these functions, which set an event once they have a connection; the block begins a little later."""
    events = [threading.Event() for _ in functions]
    threads = [
        threading.Thread(target=function, args=(event,)) for function, event in zip(functions, events, strict=True)
    ]
    for thread, event in zip(threads, events, strict=True):
        thread.start()
        event.wait()
    time.sleep(seconds)
    try:
        yield
    finally:
        for thread in threads:
            thread.join()


@pytest.fixture
def told(watch: Watch) -> list[Finding]:
    """The findings of scopes that close from now on, also of implicit ones."""
    findings: list[Finding] = []
    watch.reporters.append(lambda scope: findings.extend(scope.findings))
    return findings


def wait_for(findings: list[Finding], rule: str, number: int = 1) -> list[Finding]:
    """Return the findings of a rule once there are so many: the watchdog tells them by itself."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        of_rule = [finding for finding in findings if finding.rule == rule]
        if len(of_rule) >= number:
            return of_rule
        time.sleep(0.05)
    raise AssertionError(f"{len(of_rule)} findings of {rule} instead of {number}: {findings}")


# Threads that do something else in their transactions


def test_threads_that_sit_idle_in_their_transactions_are_named(engine: Engine, watch: Watch) -> None:
    done = threading.Event()

    def pay(taken: threading.Event) -> None:
        with sqla_watch.scope("pay", kind="request"), Session(engine) as session:
            session.get(Order, 1)
            taken.set()
            done.wait(5)  # sits idle in a thread

    waits = Waits()
    with busy(pay, pay):
        open_then = seen(watch)
        with waits.request():
            engine.connect()  # asks beside idle threads
        done.set()
    culprit = line_of("sits idle in a thread")
    asked = line_of("asks beside idle threads")
    assert_blames(waits.finding, "pool-timeout", asked=asked, culprit=culprit, state="idle in transaction")
    assert waits.finding.related[0].role.startswith("2 held for 0.")
    assert waits.finding.related[0].role.endswith("idle in transaction, in threading.Event.wait (pay)")
    assert waits.finding.evidence["holders_in_transaction"] == 2
    assert "End transactions before slow work" in waits.finding.suggestion
    assert_noted(waits, culprit=culprit, state="idle in transaction", doing="threading.Event.wait (pay)")
    assert open_then == {(culprit, "idle in transaction")}


def test_a_wait_that_ends_well_names_them_too(engine: Engine) -> None:
    patient = create_engine(engine.url, pool_size=1, max_overflow=0)
    sqla_watch.install(patient)

    def pay(taken: threading.Event) -> None:
        with Session(patient) as session:
            session.get(Order, 1)
            taken.set()
            time.sleep(0.6)  # sleeps while another waits

    waits = Waits()
    with busy(pay, seconds=0), waits.request(), patient.connect():  # asks and gets one
        pass
    patient.dispose()
    assert waits.error is None
    assert_blames(
        waits.finding,
        "pool-wait",
        asked=line_of("asks and gets one"),
        culprit=line_of("sleeps while another waits"),
        state="idle in transaction",
        doing="in time.sleep",
    )


def test_who_sits_idle_is_named_before_who_works_and_has_it_for_longer(engine: Engine, watch: Watch) -> None:
    def report(taken: threading.Event) -> None:
        with engine.connect() as connection:
            taken.set()
            connection.execute(text("SELECT pg_sleep(0.9)"))  # lets the database work

    def mail(taken: threading.Event) -> None:
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
            taken.set()
            time.sleep(0.8)  # sends a mail

    waits = Waits()
    with busy(report, mail):
        open_then = seen(watch)
        with waits.request():
            engine.connect()  # asks beside work and sleep
    works, sleeps = line_of("lets the database work"), line_of("sends a mail")
    asked = line_of("asks beside work and sleep")
    assert_blames(waits.finding, "pool-timeout", asked=asked, culprit=sleeps, state="idle in transaction")
    assert [related.location.line for related in waits.finding.related] == [sleeps, works]
    assert "working" in waits.finding.related[1].role
    assert waits.finding.evidence["holders_working"] == 1
    assert open_then == {(works, "working"), (sleeps, "idle in transaction")}


def test_a_connection_without_a_transaction_is_named_idle(engine: Engine, watch: Watch) -> None:
    def think(taken: threading.Event) -> None:
        with engine.connect():
            taken.set()
            time.sleep(0.8)  # has nothing to ask

    waits = Waits()
    with busy(think, think):
        open_then = seen(watch)
        with waits.request():
            engine.connect()  # asks beside idle connections
    culprit, asked = line_of("has nothing to ask"), line_of("asks beside idle connections")
    assert_blames(waits.finding, "pool-timeout", asked=asked, culprit=culprit, state="idle", doing="in time.sleep")
    assert waits.finding.evidence["holders_in_transaction"] == 0
    assert_noted(waits, culprit=culprit, state="idle", doing="in time.sleep")
    assert open_then == {(culprit, "idle")}


def first_order(session: Session) -> None:
    session.get(Order, 1)  # is a helper that is over


def test_who_uses_what_a_helper_has_taken_for_them_is_named(engine: Engine, watch: Watch) -> None:
    """The session's first statement is sent by a function that is over; the session is open and in use."""

    def pay(taken: threading.Event) -> None:
        with sqla_watch.scope("pay", kind="request"), Session(engine) as session:
            first_order(session)
            taken.set()
            time.sleep(0.8)  # uses what a helper has taken

    waits = Waits()
    with busy(pay, pay):
        open_then = seen(watch)
        with waits.request():
            engine.connect()  # asks beside users of a helper
    culprit, asked = line_of("uses what a helper has taken"), line_of("asks beside users of a helper")
    assert_blames(
        waits.finding, "pool-timeout", asked=asked, culprit=culprit, state="idle in transaction", doing="in time.sleep"
    )
    assert f"taken at {HERE}:{line_of('is a helper that is over')}" in waits.finding.message
    assert open_then == {(culprit, "idle in transaction")}


# Tasks


@both_drivers
@in_event_loop
async def test_tasks_that_await_something_else_in_their_transactions_are_named(shop_url: str, driver: str) -> None:
    async with watched_async_engine(shop_url, driver, pool_size=2, max_overflow=0, pool_timeout=PATIENCE) as engine:
        watch = sqla_watch.install(engine)

        async def pay() -> None:
            with sqla_watch.scope("pay", kind="request"):
                async with AsyncSession(engine) as session:
                    await session.get(Order, 1)
                    await asyncio.sleep(0.9)  # awaits something else

        waits = Waits()
        payments = [asyncio.create_task(pay()) for _ in range(2)]
        await asyncio.sleep(0.3)
        open_then = seen(watch)
        with waits.request():
            await engine.connect()  # asks beside idle tasks
        await asyncio.gather(*payments)
    culprit, asked = line_of("awaits something else"), line_of("asks beside idle tasks")
    assert_blames(
        waits.finding,
        "pool-timeout",
        asked=asked,
        culprit=culprit,
        state="idle in transaction",
        doing="in asyncio.sleep (pay)",
    )
    assert_noted(waits, culprit=culprit, state="idle in transaction", doing="in asyncio.sleep (pay)")
    assert open_then == {(culprit, "idle in transaction")}


@both_drivers
@in_event_loop
async def test_a_request_that_fans_out_is_told_who_else_has_the_connections(shop_url: str, driver: str) -> None:
    """The pool is exhausted by another request; six tasks of this one wait, of which two would be served at once."""
    async with watched_async_engine(shop_url, driver, pool_size=2, max_overflow=0, pool_timeout=PATIENCE) as engine:

        async def pay() -> None:
            with sqla_watch.scope("pay", kind="request"):
                async with AsyncSession(engine) as session:
                    await session.get(Order, 1)
                    await asyncio.sleep(0.9)  # is another request

        async def count() -> None:
            async with engine.connect() as connection:  # fans out
                await connection.execute(text("SELECT 1"))

        payments = [asyncio.create_task(pay()) for _ in range(2)]
        await asyncio.sleep(0.3)
        with sqla_watch.scope("fans out", kind="request") as scope:
            results = await asyncio.gather(*(count() for _ in range(6)), return_exceptions=True)
        await asyncio.gather(*payments)
    assert [type(result) for result in results] == [PoolTimeout] * 6
    culprit = line_of("is another request")
    findings = [finding for finding in scope.findings if place(finding) == (__file__, line_of("fans out"))]
    assert any(f"{HERE}:{culprit}" in finding.message for finding in findings), findings
    assert any(finding.related and finding.related[0].location.line == culprit for finding in findings), findings


@both_drivers
@in_event_loop
async def test_more_tasks_than_the_pool_has_are_the_culprits_themselves(shop_url: str, driver: str) -> None:
    async with watched_async_engine(shop_url, driver, pool_size=2, max_overflow=0, pool_timeout=PATIENCE) as engine:

        async def total() -> None:
            async with engine.connect() as connection:  # asks in each of eight tasks
                await connection.execute(text("SELECT pg_sleep(0.2)"))

        with sqla_watch.scope("fans out", kind="request") as scope:
            results = await asyncio.gather(*(total() for _ in range(8)), return_exceptions=True)
    assert any(isinstance(result, PoolTimeout) for result in results)
    finding = next(finding for finding in scope.findings if finding.rule == "pool-fanout")
    line = line_of("asks in each of eight tasks")
    assert place(finding) == (__file__, line)
    assert finding.message.startswith("8 tasks asked for a connection at once, and the pool has 2: 6 waited")
    assert [each.rule for each in scope.findings if each.rule != "pool-fanout"] == []


# A leak: connections that nobody returns


def leak(engine: Engine, leaked: list[Any]) -> None:
    session = Session(engine)
    session.get(Order, 1)  # is never returned
    leaked.append(session)


@pytest.fixture
def leaked() -> Iterator[list[Any]]:
    sessions: list[Any] = []
    yield sessions
    for session in sessions:
        session.close()


def assert_blames_the_leak(waits: Waits, *, asked: int) -> None:
    culprit = line_of("is never returned")
    assert_blames(waits.finding, "pool-timeout", asked=asked, culprit=culprit, state="never returned")
    assert waits.finding.evidence["holders_left"] == 2
    assert "Return connections: 2 of them had been taken by functions that are over" in waits.finding.suggestion
    assert_noted(waits, culprit=culprit, state="never returned")


def test_a_leak_in_requests_in_threads_is_named(
    engine: Engine, watch: Watch, leaked: list[Any], told: list[Finding]
) -> None:
    """As many requests have leaked one as there are connections; the threads that served them are gone."""

    def serve() -> None:
        with sqla_watch.scope("GET /leak", kind="request"):
            leak(engine, leaked)

    for _ in range(2):
        run_in_threads(serve)
    waits = Waits()
    with waits.request():
        engine.connect()  # asks beside a leak of threads
    assert seen(watch) == {(line_of("is never returned"), "never returned")}
    assert_blames_the_leak(waits, asked=line_of("asks beside a leak of threads"))
    for finding in wait_for(told, "connection-held", 2):
        assert place(finding) == (__file__, line_of("is never returned"))
        assert finding.message.startswith("a connection was not returned: taken ")
        assert finding.evidence["returned"] is False


def test_a_thread_that_is_over_is_not_taken_for_the_one_that_asks(
    engine: Engine, watch: Watch, leaked: list[Any]
) -> None:
    """Python gives a thread the identifier of one that is over."""
    waits = Waits()

    def serve() -> None:
        with sqla_watch.scope("GET /leak", kind="request"):
            leak(engine, leaked)

    def ask() -> None:
        with waits.request():
            engine.connect()  # asks in a thread of the same number

    run_in_threads(serve, serve)
    run_in_threads(ask)
    assert_blames_the_leak(waits, asked=line_of("asks in a thread of the same number"))


def test_a_leak_in_requests_of_one_thread_is_named(engine: Engine, watch: Watch, leaked: list[Any]) -> None:
    """A worker that serves one request after the other: who asks in a later one has no connection in hands."""
    for _ in range(2):
        with sqla_watch.scope("GET /leak", kind="request"):
            leak(engine, leaked)
    waits = Waits()
    with waits.request():
        engine.connect()  # asks after leaks of its own thread
    assert_blames_the_leak(waits, asked=line_of("asks after leaks of its own thread"))
    assert seen(watch) == {(line_of("is never returned"), "never returned")}


def test_a_request_after_one_that_has_leaked_is_not_accused(engine: Engine, leaked: list[Any]) -> None:
    with sqla_watch.scope("GET /leak", kind="request"):
        leak(engine, leaked)
    with sqla_watch.scope("GET /innocent", kind="request") as scope, engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    assert scope.findings == []


@contextmanager
def served(name: str) -> Iterator[None]:
    """A scope in a context manager of the application's own."""
    with sqla_watch.scope(name, kind="request"):
        yield


def test_a_leak_in_a_scope_that_the_application_wraps_is_named(engine: Engine, watch: Watch, leaked: list[Any]) -> None:
    done = threading.Event()

    def serve() -> None:
        with served("GET /leak"):
            leak(engine, leaked)
        done.wait(5)  # serves on

    servers = [threading.Thread(target=serve) for _ in range(2)]
    for server in servers:
        server.start()
    time.sleep(0.1)
    open_then = seen(watch)
    waits = Waits()
    with waits.request():
        engine.connect()  # asks beside servers
    done.set()
    for server in servers:
        server.join()
    assert open_then == {(line_of("is never returned"), "never returned")}
    assert_blames_the_leak(waits, asked=line_of("asks beside servers"))


def test_a_leak_in_workers_of_an_executor_without_any_scope_is_named(
    engine: Engine, watch: Watch, leaked: list[Any]
) -> None:
    with ThreadPoolExecutor(2) as executor:
        for future in [executor.submit(leak, engine, leaked) for _ in range(2)]:
            future.result()
        waits = Waits()
        with waits.request():
            engine.connect()  # asks beside an executor
        assert seen(watch) == {(line_of("is never returned"), "never returned")}
    assert_blames_the_leak(waits, asked=line_of("asks beside an executor"))


def test_a_leak_in_workers_with_a_loop_of_their_own_without_any_scope_is_named(
    engine: Engine, watch: Watch, leaked: list[Any]
) -> None:
    jobs: queue.Queue[Callable[..., None] | None] = queue.Queue()

    def work() -> None:
        while (job := jobs.get()) is not None:  # waits for the next job
            job(engine, leaked)
            jobs.task_done()

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    for _ in range(2):
        jobs.put(leak)
    jobs.join()
    waits = Waits()
    with waits.request():
        engine.connect()  # asks beside workers
    for _ in range(2):
        jobs.put(None)
    for worker in workers:
        worker.join()
    culprit = line_of("is never returned")
    assert waits.finding.rule == "pool-timeout"
    assert f"{HERE}:{culprit}" in waits.finding.message
    assert waits.finding.related[0].location.line == culprit
    assert f"{HERE}:{culprit}" in waits.note


def test_a_leak_in_threads_that_are_over_without_any_scope_is_named_also_to_an_asker_without_one(
    engine: Engine, leaked: list[Any], told: list[Finding]
) -> None:
    for _ in range(2):
        run_in_threads(lambda: leak(engine, leaked))
    with pytest.raises(PoolTimeout) as error:
        engine.connect()  # asks without a scope
    waits = Waits()
    waits.error = error.value
    (finding,) = told
    asked, culprit = line_of("asks without a scope"), line_of("is never returned")
    assert_blames(finding, "pool-timeout", asked=asked, culprit=culprit, state="never returned")
    assert_noted(waits, culprit=culprit, state="never returned")


async def leak_in_a_task(engine: AsyncEngine, leaked: list[Any]) -> None:
    session = AsyncSession(engine)
    await session.get(Order, 1)  # is never returned by a task
    leaked.append(session)


def assert_blames_the_task(waits: Waits, *, asked: int) -> None:
    culprit = line_of("is never returned by a task")
    assert_blames(waits.finding, "pool-timeout", asked=asked, culprit=culprit, state="never returned")
    assert_noted(waits, culprit=culprit, state="never returned")


@both_drivers
@in_event_loop
async def test_a_leak_in_requests_in_tasks_is_named(shop_url: str, driver: str) -> None:
    async with watched_async_engine(shop_url, driver, pool_size=2, max_overflow=0, pool_timeout=PATIENCE) as engine:
        watch = sqla_watch.install(engine)
        told: list[Finding] = []
        watch.reporters.append(lambda scope: told.extend(scope.findings))
        sessions: list[AsyncSession] = []

        async def serve() -> None:
            with sqla_watch.scope("GET /leak", kind="request"):
                await leak_in_a_task(engine, sessions)

        for _ in range(2):
            await asyncio.create_task(serve())
        waits = Waits()
        with waits.request():
            await engine.connect()  # asks beside a leak of tasks
        open_then = seen(watch)
        held = await asyncio.to_thread(wait_for, told, "connection-held", 2)
        for session in sessions:
            await session.close()
    assert_blames_the_task(waits, asked=line_of("asks beside a leak of tasks"))
    assert open_then == {(line_of("is never returned by a task"), "never returned")}
    assert [place(finding) for finding in held] == [(__file__, line_of("is never returned by a task"))] * 2


@both_drivers
@in_event_loop
async def test_a_leak_in_tasks_without_any_scope_is_named(shop_url: str, driver: str) -> None:
    async with watched_async_engine(shop_url, driver, pool_size=2, max_overflow=0, pool_timeout=PATIENCE) as engine:
        watch = sqla_watch.install(engine)
        sessions: list[AsyncSession] = []
        for _ in range(2):
            await asyncio.create_task(leak_in_a_task(engine, sessions))
        waits = Waits()
        with waits.request():
            await engine.connect()  # asks beside tasks without a scope
        open_then = seen(watch)
        for session in sessions:
            await session.close()
    assert_blames_the_task(waits, asked=line_of("asks beside tasks without a scope"))
    assert open_then == {(line_of("is never returned by a task"), "never returned")}


@both_drivers
@in_event_loop
async def test_a_leak_of_a_task_that_goes_on_and_works_with_another_connection_is_named(
    shop_url: str, driver: str
) -> None:
    """A consumer that handles one message after the other, each a request, in one task."""
    async with watched_async_engine(shop_url, driver, pool_size=2, max_overflow=0, pool_timeout=PATIENCE) as engine:
        watch = sqla_watch.install(engine)
        sessions: list[AsyncSession] = []
        waits = Waits()

        async def consume() -> None:
            with sqla_watch.scope("message 1", kind="task"):
                await leak_in_a_task(engine, sessions)
            with sqla_watch.scope("message 2", kind="task"):
                async with engine.connect() as connection:
                    await connection.execute(text("SELECT pg_sleep(0.9)"))  # handles the second

        consumer = asyncio.create_task(consume())
        await asyncio.sleep(0.3)
        with waits.request():
            await engine.connect()  # asks beside a consumer
        open_then = seen(watch)
        await consumer
        for session in sessions:
            await session.close()
    assert_blames_the_task(waits, asked=line_of("asks beside a consumer"))
    assert open_then == {
        (line_of("is never returned by a task"), "never returned"),
        (line_of("handles the second"), "working"),
    }


# A nested checkout that deadlocks


def test_threads_that_each_ask_for_a_second_connection_are_named(engine: Engine, watch: Watch) -> None:
    both_have_one, both_have_failed = threading.Barrier(2), threading.Barrier(2)
    requests = [Waits("POST /order"), Waits("POST /order")]

    failed: list[Waits] = []

    def order(waits: Waits) -> None:
        with waits.request(), Session(engine) as session:
            session.get(Order, 1)  # takes the first
            both_have_one.wait()
            try:
                with Session(engine) as audit:
                    audit.get(Order, 2)  # asks for a second
            finally:
                failed.append(waits)
                both_have_failed.wait()

    run_in_threads(lambda: order(requests[0]), lambda: order(requests[1]))
    first, second = line_of("takes the first"), line_of("asks for a second")
    for waits in requests:
        assert place(waits.finding) == (__file__, second)
        assert waits.finding.rule == "nested-checkout"
        assert waits.finding.severity == "high"
        assert [related.location.line for related in waits.finding.related] == [first]
        waited = rf"holding one \(taken at {HERE}:{first}\), waited 0\.\d s for it and got none"
        assert re.search(waited, waits.finding.message)
    assert_noted(failed[0], culprit=second, state="waiting for another connection")
    assert watch.snapshot().connections == ()


def test_who_waits_beside_a_deadlock_is_told_where_the_others_wait(engine: Engine, watch: Watch) -> None:
    patient = create_engine(engine.url, pool_size=2, max_overflow=0, pool_timeout=0.9)
    sqla_watch.install(patient)
    both_have_one = threading.Barrier(2)

    def order(taken: threading.Event) -> None:
        with sqla_watch.scope("POST /order", kind="request"), Session(patient) as session:
            session.get(Order, 1)  # took the first
            taken.set()
            both_have_one.wait()
            with suppress(PoolTimeout), Session(patient) as audit:  # whose time is over first sets the other free
                audit.get(Order, 2)  # waits for a second

    waits = Waits()
    with busy(order, order):
        open_then = seen(sqla_watch.install(patient))
        with waits.request(), patient.connect():  # waits beside a deadlock
            pass
    patient.dispose()
    culprit = line_of("waits for a second")
    assert_blames(
        waits.finding,
        "pool-wait",
        asked=line_of("waits beside a deadlock"),
        culprit=culprit,
        state="waiting for another connection",
    )
    assert open_then == {(culprit, "waiting for another connection")}


def test_a_deadlock_of_threads_without_any_scope_is_named(engine: Engine, told: list[Finding]) -> None:
    both_have_one = threading.Barrier(2)
    errors: list[PoolTimeout] = []

    def order() -> None:
        with engine.connect() as connection:  # took one without a scope
            connection.execute(text("SELECT 1"))
            both_have_one.wait()
            try:
                with engine.connect():  # asks for another without a scope
                    pass
            except PoolTimeout as error:
                errors.append(error)
                time.sleep(0.1)

    run_in_threads(order, order)
    first, second = line_of("took one without a scope"), line_of("asks for another without a scope")
    assert len(errors) == 2
    assert {(finding.rule, finding.location and finding.location.line) for finding in told} == {
        ("nested-checkout", second)
    }
    for finding in told:
        assert [related.location.line for related in finding.related] == [first]
        assert f"taken at {HERE}:{first}" in finding.message


@both_drivers
@in_event_loop
async def test_tasks_that_each_ask_for_a_second_connection_are_named(shop_url: str, driver: str) -> None:
    async with watched_async_engine(shop_url, driver, pool_size=2, max_overflow=0, pool_timeout=PATIENCE) as engine:
        watch = sqla_watch.install(engine)
        both_have_one, both_have_failed = asyncio.Barrier(2), asyncio.Barrier(2)
        requests = [Waits("POST /order"), Waits("POST /order")]

        failed: list[Waits] = []

        async def order(waits: Waits) -> None:
            with waits.request():
                async with AsyncSession(engine) as session:
                    await session.get(Order, 1)  # takes the first in a task
                    await both_have_one.wait()
                    try:
                        async with AsyncSession(engine) as audit:
                            await audit.get(Order, 2)  # asks for a second in a task
                    finally:
                        failed.append(waits)
                        await both_have_failed.wait()

        await asyncio.gather(*(order(waits) for waits in requests))
        open_then = watch.snapshot().connections
    first, second = line_of("takes the first in a task"), line_of("asks for a second in a task")
    for waits in requests:
        assert place(waits.finding) == (__file__, second)
        assert waits.finding.rule == "nested-checkout"
        assert [related.location.line for related in waits.finding.related] == [first]
        waited = rf"holding one \(taken at {HERE}:{first}\), waited 0\.\d s for it and got none"
        assert re.search(waited, waits.finding.message)
    assert_noted(failed[0], culprit=second, state="waiting for another connection")
    assert open_then == ()


@both_drivers
@in_event_loop
async def test_who_waits_beside_a_deadlock_of_tasks_is_told_where_the_others_wait(shop_url: str, driver: str) -> None:
    async with watched_async_engine(shop_url, driver, pool_size=2, max_overflow=0, pool_timeout=0.9) as engine:
        watch = sqla_watch.install(engine)
        both_have_one = asyncio.Barrier(2)

        async def order() -> None:
            with sqla_watch.scope("POST /order", kind="request"):
                async with AsyncSession(engine) as session:
                    await session.get(Order, 1)
                    await both_have_one.wait()
                    with suppress(PoolTimeout):  # whose time is over first sets the other free
                        async with AsyncSession(engine) as audit:
                            await audit.get(Order, 2)  # waits for a second in a task

        waits = Waits()
        orders = [asyncio.create_task(order()) for _ in range(2)]
        await asyncio.sleep(0.3)
        open_then = seen(watch)
        with waits.request():
            async with engine.connect():  # waits beside a deadlock of tasks
                pass
        await asyncio.gather(*orders)
    culprit, asked = line_of("waits for a second in a task"), line_of("waits beside a deadlock of tasks")
    state = "waiting for another connection"
    assert_blames(waits.finding, "pool-wait", asked=asked, culprit=culprit, state=state)
    assert open_then == {(culprit, state)}


@both_drivers
@in_event_loop
async def test_a_task_that_waits_for_tasks_which_wait_for_its_connection_is_named(shop_url: str, driver: str) -> None:
    """The parent has one of two connections; what it gathers needs one each."""
    async with watched_async_engine(shop_url, driver, pool_size=2, max_overflow=0, pool_timeout=PATIENCE) as engine:

        async def price() -> None:
            async with AsyncSession(engine) as session:
                await session.get(Order, 2)  # asks in a child
                await asyncio.sleep(0.6)

        waits = Waits("POST /order")
        with waits.request():
            async with AsyncSession(engine) as session:
                await session.get(Order, 1)  # has one in the parent
                prices = await asyncio.gather(price(), price(), return_exceptions=True)
    assert PoolTimeout in [type(each) for each in prices]
    finding = next(each for each in waits.scope.findings if each.rule == "nested-checkout")  # type: ignore[union-attr]
    assert place(finding) == (__file__, line_of("asks in a child"))
    assert finding.related[0].location.line == line_of("has one in the parent")
    assert f"{HERE}:{line_of('has one in the parent')}" in finding.message


# A slow COMMIT


def test_a_slow_commit_is_named_as_work_to_those_who_wait(engine: Engine, watch: Watch, slow_commit: str) -> None:
    def write(taken: threading.Event) -> None:
        with sqla_watch.scope("POST /write", kind="request"), Session(engine) as session:
            session.execute(text(slow_commit))
            taken.set()
            session.commit()  # takes long to commit

    waits = Waits()
    with busy(write, write):
        open_then = seen(watch)
        with waits.request():
            engine.connect()  # asks during a commit
    culprit, asked = line_of("takes long to commit"), line_of("asks during a commit")
    assert_blames(waits.finding, "pool-timeout", asked=asked, culprit=culprit, state="working")
    assert waits.finding.evidence["holders_working"] == 2
    assert "idle" not in waits.finding.message
    assert "Make the statements faster" in waits.finding.suggestion
    assert_noted(waits, culprit=culprit, state="working")
    assert open_then == {(culprit, "working")}


def test_a_slow_commit_at_the_end_of_a_block_is_named_by_the_line_of_the_block(
    engine: Engine, slow_commit: str
) -> None:
    def write(taken: threading.Event) -> None:
        with engine.begin() as connection:  # commits at its end
            connection.execute(text(slow_commit))
            taken.set()

    waits = Waits()
    with busy(write, write), waits.request(), engine.connect():  # waits for a block's commit
        pass
    culprit, asked = line_of("commits at its end"), line_of("waits for a block's commit")
    assert_blames(waits.finding, "pool-timeout", asked=asked, culprit=culprit, state="working")


@both_drivers
@in_event_loop
async def test_a_slow_commit_of_a_task_is_named_as_work_to_those_who_wait(
    shop_url: str, driver: str, slow_commit: str
) -> None:
    async with watched_async_engine(shop_url, driver, pool_size=2, max_overflow=0, pool_timeout=PATIENCE) as engine:
        watch = sqla_watch.install(engine)

        async def write() -> None:
            with sqla_watch.scope("POST /write", kind="request"):
                async with AsyncSession(engine) as session:
                    await session.execute(text(slow_commit))
                    await session.commit()  # takes long to commit in a task

        waits = Waits()
        writers = [asyncio.create_task(write()) for _ in range(2)]
        await asyncio.sleep(0.3)
        open_then = seen(watch)
        with waits.request():
            await engine.connect()  # asks during a task's commit
        await asyncio.gather(*writers)
    culprit, asked = line_of("takes long to commit in a task"), line_of("asks during a task's commit")
    assert_blames(waits.finding, "pool-timeout", asked=asked, culprit=culprit, state="working")
    assert_noted(waits, culprit=culprit, state="working")
    assert open_then == {(culprit, "working")}


# The exception is SQLAlchemy's own


def test_the_exception_is_what_an_engine_that_is_not_watched_raises(engine: Engine) -> None:
    bare = create_engine(engine.url, pool_size=1, max_overflow=0, pool_timeout=0.05)
    watched = create_engine(engine.url, pool_size=1, max_overflow=0, pool_timeout=0.05)
    sqla_watch.install(watched)
    raised = []
    for each in (bare, watched):
        with each.connect(), pytest.raises(PoolTimeout) as error:
            each.connect()
        each.dispose()
        raised.append(error.value)
    one, other = raised
    assert (type(one), one.args, str(one), one.code) == (type(other), other.args, str(other), other.code)
    assert not hasattr(one, "__notes__")
    assert len(other.__notes__) == 1
    assert {key: value for key, value in vars(other).items() if key != "__notes__"} == vars(one)
    assert other.__cause__ is one.__cause__ is None
