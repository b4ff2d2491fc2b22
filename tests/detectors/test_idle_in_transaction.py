"""idle-in-transaction: the time, both of its lines, and what the code did meanwhile; never where PostgreSQL works."""

from __future__ import annotations

import asyncio
import importlib
import io
import os
import queue
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import requests
from sqlalchemy import Engine, create_engine, make_url, select, text, update
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

import sqla_watch
from sqla_watch import Finding, IdleInTransactionWarning, Scope, Settings, Watch
from sqla_watch.demo.models import Order
from tests.conftest import url_for
from tests.support import found, in_event_loop, line_of, only, place, watched_async_engine

pytestmark = [
    pytest.mark.usefixtures("from_200_ms"),
    pytest.mark.filterwarnings("ignore::sqla_watch.SqlaWatchWarning"),
]

both_drivers = pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
FROM_200_MS: dict[str, Any] = {"idle-in-transaction": {"min_seconds": 0.2}}
IDLE = 0.8
"""Seconds for which a transaction sits idle in these stories: four times the threshold, for a busy machine."""


@pytest.fixture
def from_200_ms(watch: Watch, engine: Engine) -> None:
    watch.settings = Settings(profile="test", rules=FROM_200_MS)
    sqla_watch.install(engine, settings=watch.settings)  # the watchdog is told, too


class _Slow(BaseHTTPRequestHandler):
    """A partner's server that takes its time."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        time.sleep(IDLE)
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    do_GET = do_POST

    def log_message(self, *arguments: Any) -> None: ...


@pytest.fixture(scope="module")
def partner() -> Iterator[str]:
    """The address of a server that answers after `IDLE` seconds."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Slow)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/charge"
    server.shutdown()
    server.server_close()
    thread.join()


def assert_meanwhile(finding: Finding, *, doing: str, line: int, before: int, after: int) -> None:
    """The finding has both lines of the gap, and in message, evidence and related lines what was done in it."""
    here = Path(__file__).name
    assert finding.rule == "idle-in-transaction"
    assert finding.severity == "high"
    assert place(finding) == (__file__, before)
    assert finding.evidence["meanwhile"] == doing
    assert finding.evidence["looks"] >= 1  # type: ignore[operator]
    assert f"between {here}:{before} and {here}:{after}; meanwhile {doing} at {here}:{line}" in finding.message
    assert [(related.role, related.location.line) for related in finding.related] == [
        (f"meanwhile {doing}", line),
        ("next statement, or its end", after),
    ]
    idle, longest = finding.evidence["idle_seconds"], finding.evidence["longest_gap_seconds"]
    assert IDLE * 0.9 <= longest <= idle < IDLE + 1  # type: ignore[operator]
    assert f"transaction idle for {idle:.1f} s of " in finding.message


# What a thread does meanwhile. Each function sits for `IDLE` seconds in the line that is marked.


def held_elsewhere() -> threading.Lock:
    """A lock that another thread has for so long."""
    lock = threading.Lock()
    lock.acquire()
    threading.Timer(IDLE, lock.release).start()
    return lock


def sleeps(partner: str) -> None:
    time.sleep(IDLE)  # 1 sleeps


def posts(partner: str) -> None:
    requests.post(partner, json={"order": 1}, timeout=5)  # 1 posts


def posts_with_a_session(partner: str) -> None:
    with requests.Session() as client:
        client.post(partner, timeout=5)  # 1 posts with a session


def posts_with_httpx(partner: str) -> None:
    httpx.post(partner, timeout=5, verify=False)  # 1 posts with httpx


def reads_a_url(partner: str) -> None:
    urllib.request.urlopen(partner, b"{}", timeout=5).close()  # 1 reads a URL


def enters_a_lock(partner: str) -> None:
    lock = held_elsewhere()
    with lock:  # 1 enters a lock
        pass


def acquires_a_lock(partner: str) -> None:
    lock = held_elsewhere()
    lock.acquire()  # 1 acquires a lock


def waits_for_an_event(partner: str) -> None:
    event = threading.Event()
    event.wait(IDLE)  # 1 waits for an event


def waits_for_a_queue(partner: str) -> None:
    jobs: queue.Queue[int] = queue.Queue()
    threading.Timer(IDLE, jobs.put, (1,)).start()
    jobs.get()  # 1 waits for a queue


def waits_for_a_simple_queue(partner: str) -> None:
    jobs: queue.SimpleQueue[int] = queue.SimpleQueue()
    threading.Timer(IDLE, jobs.put, (1,)).start()
    jobs.get()  # 1 waits for a simple queue


def runs_a_program(partner: str) -> None:
    subprocess.run(["sleep", str(IDLE)], check=True)  # 1 runs a program


def waits_for_a_thread(partner: str) -> None:
    thread = threading.Thread(target=time.sleep, args=(IDLE,))
    thread.start()
    thread.join()  # 1 waits for a thread


def waits_for_a_future(partner: str) -> None:
    with ThreadPoolExecutor(1) as executor:
        future = executor.submit(time.sleep, IDLE)
        future.result()  # 1 waits for a future


def computes(partner: str) -> None:
    deadline = time.perf_counter() + IDLE
    total = 0
    while time.perf_counter() < deadline:
        for number in range(10_000):
            total += number * number  # 1 computes


def is_three_functions_deep(partner: str) -> None:
    _charge()


def _charge() -> None:
    _call_the_bank()


def _call_the_bank() -> None:
    time.sleep(IDLE)  # 1 is three functions deep


STORIES: list[tuple[Callable[[str], None], str]] = [
    (sleeps, "in time.sleep"),
    (posts, "in requests.post"),
    (posts_with_a_session, "in requests.Session.post"),
    (posts_with_httpx, "in httpx.post"),
    (reads_a_url, "in urllib.request.urlopen"),
    (enters_a_lock, "in lock"),
    (acquires_a_lock, "in lock.acquire"),
    (waits_for_an_event, "in threading.Event.wait"),
    (waits_for_a_queue, "in queue.Queue.get"),
    (waits_for_a_simple_queue, "in jobs.get"),
    (runs_a_program, "in subprocess.run"),
    (waits_for_a_thread, "in threading.Thread.join"),
    (waits_for_a_future, "in concurrent.futures.Future.result"),
    (is_three_functions_deep, "in time.sleep"),
]


@pytest.mark.parametrize(("work", "doing"), STORIES, ids=[work.__name__ for work, _ in STORIES])
def test_what_a_thread_did_meanwhile_is_named(
    engine: Engine, partner: str, work: Callable[[str], None], doing: str
) -> None:
    with sqla_watch.scope("thread") as scope, Session(engine) as session:
        order = session.get_one(Order, 1)  # before the work of a thread
        work(partner)
        order.status = order.status + ""
        session.execute(update(Order).where(Order.id == 1).values(status=order.status))  # after the work of a thread
        session.commit()
    before, after = line_of("before the work of a thread"), line_of("after the work of a thread")
    line = line_of(f"1 {work.__name__.replace('_', ' ').replace('url', 'URL')}")
    assert_meanwhile(only(scope), doing=doing, line=line, before=before, after=after)


def test_a_loop_that_computes_is_named(engine: Engine) -> None:
    share = 0.0
    for _ in range(3):  # until the machine gives a processor
        with sqla_watch.scope("loop") as scope, engine.begin() as connection:  # ends the loop's
            connection.execute(select(Order.id).limit(1))  # before a loop
            started, used = time.perf_counter(), time.thread_time()
            computes("")
            share = (time.thread_time() - used) / (time.perf_counter() - started)
        if share > 0.8:
            break
    finding = only(scope)
    assert place(finding) == (__file__, line_of("before a loop"))
    meanwhile, end = finding.related
    # Any line of the loop's: it is in each of them once in a while.
    assert meanwhile.location.function == "computes"
    assert f" at {Path(__file__).name}:{meanwhile.location.line}" in finding.message
    assert end.location.line == line_of("ends the loop's")
    if share > 0.8:  # else others had the processor, and nobody can tell
        assert finding.evidence["meanwhile"] == "computing"
        assert meanwhile.role == "meanwhile computing"


def test_without_a_statement_after_it_the_line_of_its_end_is_named(engine: Engine) -> None:
    with sqla_watch.scope("end") as scope, Session(engine) as session:
        session.get(Order, 1)  # before the end
        time.sleep(IDLE)  # meanwhile before the end
        session.commit()  # is the end
    assert_meanwhile(
        only(scope),
        doing="in time.sleep",
        line=line_of("meanwhile before the end"),
        before=line_of("before the end"),
        after=line_of("is the end"),
    )


def test_a_library_between_is_named_by_its_package(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site-packages" / "payfast"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("from payfast._client import Client\n")
    (package / "_client.py").write_text(
        "import time\n\nclass Client:\n    def charge(self, seconds):\n        self._send(seconds)\n\n"
        "    def _send(self, seconds):\n        time.sleep(seconds)\n"
    )
    monkeypatch.syspath_prepend(str(package.parent))
    client = importlib.import_module("payfast").Client()
    with sqla_watch.scope("library") as scope, Session(engine) as session:
        session.get(Order, 1)  # before a library
        client.charge(IDLE)  # calls a library
        session.commit()  # after a library
    assert_meanwhile(
        only(scope),
        doing="in payfast.Client.charge",
        line=line_of("calls a library"),
        before=line_of("before a library"),
        after=line_of("after a library"),
    )
    assert only(scope).suggestion.startswith("Call payfast.Client.charge before the first statement")
    monkeypatch.delitem(sys.modules, "payfast")
    monkeypatch.delitem(sys.modules, "payfast._client")


def test_what_a_library_calls_back_is_named_at_its_own_line(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site-packages" / "retrying_twice"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("def retry(function):\n    return function()\n")
    monkeypatch.syspath_prepend(str(package.parent))
    library = importlib.import_module("retrying_twice")

    def call() -> None:
        time.sleep(IDLE)  # is called back

    with sqla_watch.scope("callback") as scope, Session(engine) as session:
        session.get(Order, 1)  # before a callback
        library.retry(call)
        session.commit()  # after a callback
    monkeypatch.delitem(sys.modules, "retrying_twice")
    assert_meanwhile(
        only(scope),
        doing="in time.sleep",
        line=line_of("is called back"),
        before=line_of("before a callback"),
        after=line_of("after a callback"),
    )


def test_a_helper_that_sends_the_first_statement_does_not_hide_what_its_caller_does(engine: Engine) -> None:
    def first_order(session: Session) -> Order | None:
        return session.get(Order, 1)  # is sent by a helper

    with sqla_watch.scope("helper", kind="request") as scope, Session(engine) as session:
        first_order(session)
        time.sleep(IDLE)  # after a helper
        session.commit()  # ends a helper's transaction
    assert_meanwhile(
        only(scope),
        doing="in time.sleep",
        line=line_of("after a helper"),
        before=line_of("is sent by a helper"),
        after=line_of("ends a helper's transaction"),
    )


def test_a_session_of_a_dependency_is_named_in_the_code_that_uses_it(engine: Engine) -> None:
    def get_session() -> Iterator[Session]:
        with Session(engine) as session:
            yield session
            session.commit()  # the dependency commits

    def view(session: Session) -> None:
        session.get(Order, 1)  # the view reads
        time.sleep(IDLE)  # the view sleeps

    with sqla_watch.scope("GET /", kind="request") as scope:
        dependency = get_session()
        view(next(dependency))
        assert list(dependency) == []
    assert_meanwhile(
        only(scope),
        doing="in time.sleep",
        line=line_of("the view sleeps"),
        before=line_of("the view reads"),
        after=line_of("the dependency commits"),
    )


def test_of_several_gaps_the_longest_is_named(engine: Engine) -> None:
    with sqla_watch.scope("several") as scope, Session(engine) as session:
        session.get(Order, 1)
        time.sleep(0.3)
        session.get(Order, 2)  # before the longest
        time.sleep(IDLE)  # in the longest
        session.get(Order, 3)  # after the longest
        time.sleep(0.25)
        session.commit()
    finding = only(scope)
    assert place(finding) == (__file__, line_of("before the longest"))
    longest, idle = finding.evidence["longest_gap_seconds"], finding.evidence["idle_seconds"]
    assert IDLE <= longest < IDLE + 0.3  # type: ignore[operator]
    assert longest + 0.5 < idle < longest + 1  # type: ignore[operator]
    assert f"the longest time {longest:.1f} s between" in finding.message
    assert [related.location.line for related in finding.related] == [
        line_of("in the longest"),
        line_of("after the longest"),
    ]


def test_the_same_lines_several_times_are_one_finding_with_the_longest(engine: Engine) -> None:
    with sqla_watch.scope("again") as scope, Session(engine) as session:
        for seconds in (0.25, IDLE, 0.0):
            session.get(Order, 1)
            time.sleep(seconds)
            session.commit()
    finding = only(scope)
    assert finding.evidence["transactions"] == 2
    assert IDLE <= finding.evidence["idle_seconds"] < IDLE + 0.3  # type: ignore[operator]


def test_idle_database_and_commit_time_make_up_the_whole(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE slow_to_end (id integer)")
        connection.exec_driver_sql(
            "CREATE FUNCTION end_slowly() RETURNS trigger AS "
            "$$ BEGIN PERFORM pg_sleep(0.3); RETURN NULL; END $$ LANGUAGE plpgsql"
        )
        connection.exec_driver_sql(
            "CREATE CONSTRAINT TRIGGER slowly AFTER INSERT ON slow_to_end DEFERRABLE INITIALLY DEFERRED "
            "FOR EACH ROW EXECUTE FUNCTION end_slowly()"
        )
    with sqla_watch.scope("split") as scope, engine.connect() as connection:
        started = time.perf_counter()
        connection.execute(text("INSERT INTO slow_to_end VALUES (1)"))
        connection.execute(text("SELECT pg_sleep(0.2)"))
        asked = time.perf_counter()
        time.sleep(IDLE)
        committing = time.perf_counter()
        connection.commit()
        ended = time.perf_counter()
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE slow_to_end")
        connection.exec_driver_sql("DROP FUNCTION end_slowly()")
    finding = only(scope)
    numbers = {key: float(value) for key, value in finding.evidence.items() if key.endswith("_seconds")}
    assert numbers["idle_seconds"] + numbers["database_seconds"] + numbers["ending_seconds"] == pytest.approx(
        numbers["transaction_seconds"], abs=1e-5
    )
    assert numbers["transaction_seconds"] == pytest.approx(ended - started, abs=0.02)
    assert numbers["database_seconds"] == pytest.approx(asked - started, abs=0.02)
    assert numbers["idle_seconds"] == pytest.approx(committing - asked, abs=0.02)
    assert numbers["ending_seconds"] == pytest.approx(ended - committing, abs=0.02)


def test_savepoints_do_not_hide_it(engine: Engine) -> None:
    with sqla_watch.scope("savepoint") as scope, Session(engine) as session:
        with session.begin_nested():
            session.get(Order, 1)  # before, in a savepoint
            time.sleep(IDLE)  # in a savepoint
        session.commit()
    finding = only(scope)
    assert place(finding) == (__file__, line_of("before, in a savepoint"))
    assert finding.evidence["meanwhile"] == "in time.sleep"


def test_a_two_phase_transaction_is_like_any_other(engine: Engine) -> None:
    with sqla_watch.scope("two phases") as scope, engine.connect() as connection:
        transaction = connection.begin_twophase()
        connection.execute(select(Order.id).limit(1))  # before a prepare
        time.sleep(IDLE)  # idle before a prepare
        transaction.rollback()
    finding = only(scope)
    assert finding.rule == "idle-in-transaction"
    assert place(finding) == (__file__, line_of("before a prepare"))
    assert finding.evidence["meanwhile"] == "in time.sleep"


def test_without_any_scope_the_warning_comes_with_the_end(engine: Engine) -> None:
    connection = engine.connect()
    connection.execute(select(Order.id).limit(1))  # without a scope
    time.sleep(IDLE)
    with pytest.warns(IdleInTransactionWarning, match="meanwhile in time.sleep") as warned:
        connection.close()
    (warning,) = warned
    assert (warning.filename, warning.lineno) == (__file__, line_of("without a scope"))


def test_a_connection_that_nobody_closes_is_told_once_it_is(engine: Engine) -> None:
    connection = engine.connect()
    with sqla_watch.scope("open") as scope:
        connection.execute(select(Order.id).limit(1))
        time.sleep(0.3)
        assert found(scope) == []
        connection.rollback()
        assert [rule for rule, _ in found(scope)] == ["idle-in-transaction"]
    connection.close()


def test_advice_for_a_transaction_that_wrote_is_to_commit_first(engine: Engine) -> None:
    with sqla_watch.scope("wrote") as scope, Session(engine) as session:
        session.execute(update(Order).where(Order.id == 1).values(status="paid"))
        time.sleep(0.4)
        session.rollback()
    finding = only(scope)
    assert finding.evidence["wrote"] is True
    assert finding.evidence["outcome"] == "rollback"
    assert "do it in between two transactions" in finding.suggestion


# What a task does meanwhile


async def awaits_sleep(partner: str) -> None:
    await asyncio.sleep(IDLE)  # 2 awaits sleep


async def awaits_httpx(partner: str) -> None:
    async with httpx.AsyncClient(verify=False) as client:
        await client.post(partner, timeout=5)  # 2 awaits httpx


async def awaits_a_lock(partner: str) -> None:
    lock = asyncio.Lock()
    await lock.acquire()
    asyncio.get_running_loop().call_later(IDLE, lock.release)
    await lock.acquire()  # 2 awaits a lock


async def enters_an_asyncio_lock(partner: str) -> None:
    lock = asyncio.Lock()
    await lock.acquire()
    asyncio.get_running_loop().call_later(IDLE, lock.release)
    async with lock:  # 2 enters an asyncio lock
        pass


async def awaits_a_queue(partner: str) -> None:
    jobs: asyncio.Queue[int] = asyncio.Queue()
    asyncio.get_running_loop().call_later(IDLE, jobs.put_nowait, 1)
    await jobs.get()  # 2 awaits a queue


async def awaits_a_thread(partner: str) -> None:
    await asyncio.to_thread(time.sleep, IDLE)  # 2 awaits a thread


async def awaits_an_executor(partner: str) -> None:
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, time.sleep, IDLE)  # 2 awaits an executor


async def gathers(partner: str) -> None:
    await asyncio.gather(asyncio.sleep(IDLE), asyncio.sleep(0))  # 2 gathers


async def waits_for(partner: str) -> None:
    await asyncio.wait_for(asyncio.sleep(IDLE), 5)  # 2 waits for


async def runs_a_process(partner: str) -> None:
    process = await asyncio.create_subprocess_exec("sleep", str(IDLE))
    await process.wait()  # 2 runs a process


async def blocks_the_loop(partner: str) -> None:
    time.sleep(IDLE)  # 2 blocks the loop


TASKS: list[tuple[Callable[[str], Any], str]] = [
    (awaits_sleep, "in asyncio.sleep"),
    (awaits_httpx, "in httpx.AsyncClient.post"),
    (awaits_a_lock, "in asyncio.Lock.acquire"),
    (awaits_a_queue, "in asyncio.Queue.get"),
    (awaits_a_thread, "in asyncio.to_thread"),
    (awaits_an_executor, "in loop.run_in_executor"),
    (gathers, "in asyncio.gather"),
    (waits_for, "in asyncio.wait_for"),
    (runs_a_process, "in asyncio.subprocess.Process.wait"),
    (blocks_the_loop, "in time.sleep"),
]


async def story_of_a_task(url: str, driver: str, work: Callable[[], Any]) -> Scope:
    async with watched_async_engine(url, driver, rules=FROM_200_MS) as engine:
        with sqla_watch.scope("task") as scope:
            async with AsyncSession(engine) as session:
                await session.get(Order, 1)  # before the work of a task
                await work()
                await session.commit()  # after the work of a task
    return scope


@pytest.mark.parametrize(("work", "doing"), TASKS, ids=[work.__name__ for work, _ in TASKS])
@in_event_loop
async def test_async_what_a_task_did_meanwhile_is_named(
    shop_url: str, partner: str, work: Callable[[str], Any], doing: str
) -> None:
    scope = await story_of_a_task(shop_url, "asyncpg", lambda: work(partner))
    before, after = line_of("before the work of a task"), line_of("after the work of a task")
    line = line_of(f"2 {work.__name__.replace('_', ' ')}")
    assert_meanwhile(only(scope), doing=doing, line=line, before=before, after=after)


@both_drivers
@in_event_loop
async def test_async_a_lock_that_is_entered_is_named(shop_url: str, driver: str) -> None:
    scope = await story_of_a_task(shop_url, driver, lambda: enters_an_asyncio_lock(""))
    finding = only(scope)
    assert finding.evidence["meanwhile"] in ("in lock", "in asyncio.Lock.acquire", "in asyncio.Lock.__aenter__")
    assert finding.related[0].location.line == line_of("2 enters an asyncio lock")


@both_drivers
@in_event_loop
async def test_async_psycopg_and_asyncpg_are_alike(shop_url: str, partner: str, driver: str) -> None:
    scope = await story_of_a_task(shop_url, driver, lambda: awaits_httpx(partner))
    before, after = line_of("before the work of a task"), line_of("after the work of a task")
    line = line_of("2 awaits httpx")
    assert_meanwhile(only(scope), doing="in httpx.AsyncClient.post", line=line, before=before, after=after)


@both_drivers
@in_event_loop
async def test_async_a_session_that_is_closed_without_a_commit_has_both_lines(shop_url: str, driver: str) -> None:
    async with watched_async_engine(shop_url, driver, rules=FROM_200_MS) as engine:
        with sqla_watch.scope("closed") as scope:
            async with AsyncSession(engine) as session:  # closes a task's session
                await session.get(Order, 1)  # before a close
                await asyncio.sleep(IDLE)  # until a close
    assert_meanwhile(
        only(scope),
        doing="in asyncio.sleep",
        line=line_of("until a close"),
        before=line_of("before a close"),
        after=line_of("closes a task's session"),
    )


@both_drivers
@in_event_loop
async def test_async_a_function_in_run_sync_that_blocks_is_named(shop_url: str, driver: str) -> None:
    def charge(session: Session) -> None:
        session.get(Order, 1)  # before, in run_sync
        time.sleep(IDLE)  # blocks in run_sync
        session.get(Order, 2)  # after, in run_sync

    async with watched_async_engine(shop_url, driver, rules=FROM_200_MS) as engine:
        with sqla_watch.scope("run_sync") as scope:
            async with AsyncSession(engine) as session:
                await session.run_sync(charge)
                await session.commit()
    assert_meanwhile(
        only(scope),
        doing="in time.sleep",
        line=line_of("blocks in run_sync"),
        before=line_of("before, in run_sync"),
        after=line_of("after, in run_sync"),
    )


@both_drivers
@in_event_loop
async def test_async_a_task_that_waits_while_others_compute_is_not_said_to_compute(shop_url: str, driver: str) -> None:
    async with watched_async_engine(shop_url, driver, rules=FROM_200_MS) as engine:

        async def compute() -> None:
            deadline = time.perf_counter() + 2.5 * IDLE
            while time.perf_counter() < deadline:
                pause = time.perf_counter() + 0.02
                while time.perf_counter() < pause:
                    sum(range(1_000))
                await asyncio.sleep(0.002)

        with sqla_watch.scope("busy loop") as scope:
            computing = asyncio.create_task(compute())
            async with AsyncSession(engine) as session:
                await session.get(Order, 1)
                await asyncio.gather(asyncio.sleep(2 * IDLE))  # waits in a busy loop
                await session.commit()
            await computing
    finding = only(scope)
    assert finding.evidence["meanwhile"] == "in asyncio.gather"
    assert finding.related[0].location.line == line_of("waits in a busy loop")


@both_drivers
@in_event_loop
async def test_async_each_of_several_tasks_is_named_at_its_own_line(shop_url: str, driver: str) -> None:
    async with watched_async_engine(shop_url, driver, rules=FROM_200_MS, pool_size=10) as engine:

        async def one() -> None:
            async with AsyncSession(engine) as session:
                await session.get(Order, 1)
                await asyncio.sleep(IDLE)  # one task sleeps
                await session.commit()

        async def other() -> None:
            event = asyncio.Event()
            asyncio.get_running_loop().call_later(IDLE, event.set)
            async with AsyncSession(engine) as session:
                await session.get(Order, 2)
                await event.wait()  # the other waits
                await session.commit()

        with sqla_watch.scope("tasks") as scope:
            await asyncio.gather(one(), other())
    told = {(finding.evidence["meanwhile"], finding.related[0].location.line) for finding in scope.findings}
    assert told == {
        ("in asyncio.sleep", line_of("one task sleeps")),
        ("in asyncio.Event.wait", line_of("the other waits")),
    }


# What PostgreSQL does is not idle


def long_work() -> Any:
    return text("SELECT pg_sleep(0.5)")


def assert_not_idle(scope: Scope) -> None:
    assert "idle-in-transaction" not in [rule for rule, _ in found(scope)]
    assert scope.transactions >= 1


def test_a_slow_statement_is_not_idle(engine: Engine) -> None:
    with sqla_watch.scope("slow") as scope, engine.begin() as connection:
        connection.execute(select(Order.id).limit(1))
        connection.execute(long_work())
        connection.execute(select(Order.id).limit(1))
    assert_not_idle(scope)


@both_drivers
@in_event_loop
async def test_async_a_slow_statement_is_not_idle(shop_url: str, driver: str) -> None:
    async with watched_async_engine(shop_url, driver, rules=FROM_200_MS) as engine:
        with sqla_watch.scope("slow") as scope:
            async with engine.begin() as connection:
                await connection.execute(select(Order.id).limit(1))
                await connection.execute(long_work())
    assert_not_idle(scope)


def test_a_wait_for_a_lock_of_the_database_is_not_idle(engine: Engine, shop_url: str) -> None:
    other = create_engine(shop_url)
    locked = threading.Event()

    def hold() -> None:
        with other.begin() as connection:
            connection.execute(select(Order.id).where(Order.id == 1).with_for_update())
            locked.set()
            time.sleep(0.6)

    holder = threading.Thread(target=hold)
    holder.start()
    locked.wait()
    with sqla_watch.scope("lock") as scope, Session(engine) as session:
        session.get(Order, 2)
        session.execute(update(Order).where(Order.id == 1).values(status="paid"))
        session.rollback()
    holder.join()
    other.dispose()
    assert scope.database_seconds > 0.4
    assert_not_idle(scope)


def test_a_slow_commit_is_not_idle(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE slow_at_the_end (id integer)")
        connection.exec_driver_sql(
            "CREATE FUNCTION slow_end() RETURNS trigger AS "
            "$$ BEGIN PERFORM pg_sleep(0.5); RETURN NULL; END $$ LANGUAGE plpgsql"
        )
        connection.exec_driver_sql(
            "CREATE CONSTRAINT TRIGGER slowly AFTER INSERT ON slow_at_the_end DEFERRABLE INITIALLY DEFERRED "
            "FOR EACH ROW EXECUTE FUNCTION slow_end()"
        )
    with sqla_watch.scope("commit") as scope, engine.begin() as connection:
        connection.execute(text("INSERT INTO slow_at_the_end VALUES (1)"))
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE slow_at_the_end")
        connection.exec_driver_sql("DROP FUNCTION slow_end()")
    assert scope.commit_seconds > 0.5
    assert_not_idle(scope)


SLOW_COPY = "COPY (SELECT number, pg_sleep(0.03) FROM generate_series(1, 20) AS number) TO STDOUT"


def test_copy_by_psycopg_is_not_idle(engine: Engine) -> None:
    with sqla_watch.scope("copy") as scope, engine.connect() as connection:
        connection.execute(select(Order.id).limit(1))
        cursor: Any = connection.connection.cursor()
        with cursor, cursor.copy(SLOW_COPY) as copy:
            rows = list(copy.rows())
        connection.commit()
    assert len(rows) == 20
    assert_not_idle(scope)


def test_copy_into_a_table_by_psycopg_is_not_idle(engine: Engine) -> None:
    """The rows are sent at once; PostgreSQL is slow to take them."""
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE slow_to_copy (id integer)")
        connection.exec_driver_sql(
            "CREATE FUNCTION copy_slowly() RETURNS trigger AS "
            "$$ BEGIN PERFORM pg_sleep(0.03); RETURN NEW; END $$ LANGUAGE plpgsql"
        )
        connection.exec_driver_sql(
            "CREATE TRIGGER slowly BEFORE INSERT ON slow_to_copy FOR EACH ROW EXECUTE FUNCTION copy_slowly()"
        )
    with sqla_watch.scope("copy") as scope, engine.connect() as connection:
        connection.execute(select(Order.id).limit(1))
        cursor: Any = connection.connection.cursor()
        with cursor, cursor.copy("COPY slow_to_copy FROM STDIN") as copy:
            for number in range(20):
                copy.write_row((number,))
        connection.commit()
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE slow_to_copy")
        connection.exec_driver_sql("DROP FUNCTION copy_slowly()")
    assert_not_idle(scope)


def test_copy_by_psycopg2_is_not_idle(shop_url: str) -> None:
    engine = create_engine(url_for(shop_url, "psycopg2"))
    sqla_watch.install(engine, settings=Settings(profile="test", rules=FROM_200_MS))
    file = io.StringIO()
    with sqla_watch.scope("copy") as scope, engine.connect() as connection:
        connection.execute(select(Order.id).limit(1))
        cursor: Any = connection.connection.cursor()
        cursor.copy_expert(SLOW_COPY, file)
        connection.commit()
    engine.dispose()
    assert len(file.getvalue().splitlines()) == 20
    assert_not_idle(scope)


@in_event_loop
async def test_async_copy_by_asyncpg_is_not_idle(shop_url: str) -> None:
    async with watched_async_engine(shop_url, "asyncpg", rules=FROM_200_MS) as engine:
        with sqla_watch.scope("copy") as scope:
            async with engine.connect() as connection:
                await connection.execute(select(Order.id).limit(1))
                raw: Any = await connection.get_raw_connection()
                await raw.driver_connection.copy_from_query(
                    "SELECT number, pg_sleep(0.03) FROM generate_series(1, 20) AS number", output=io.BytesIO()
                )
                await connection.commit()
    assert_not_idle(scope)


def test_statements_on_the_drivers_own_cursor_are_not_idle(shop_url: str) -> None:
    for driver in ("psycopg", "psycopg2"):
        engine = create_engine(url_for(shop_url, driver))
        sqla_watch.install(engine, settings=Settings(profile="test", rules=FROM_200_MS))
        with sqla_watch.scope(driver) as scope, engine.connect() as connection:
            connection.execute(select(Order.id).limit(1))
            cursor: Any = connection.connection.cursor()
            cursor.execute("SELECT pg_sleep(0.5)")
            cursor.close()
            connection.commit()
        engine.dispose()
        assert_not_idle(scope)


STREAM = text("SELECT number, pg_sleep(0.03) FROM generate_series(1, 20) AS number")


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_a_stream_whose_fetches_take_long_is_not_idle(shop_url: str, driver: str) -> None:
    engine = create_engine(url_for(shop_url, driver))
    sqla_watch.install(engine, settings=Settings(profile="test", rules=FROM_200_MS))
    with sqla_watch.scope("stream") as scope, engine.connect() as connection:
        rows = connection.execution_options(yield_per=10).execute(STREAM).all()
        connection.commit()
    engine.dispose()
    assert len(rows) == 20
    assert scope.database_seconds > 0.5
    assert_not_idle(scope)


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_a_stream_whose_first_row_takes_long_is_not_idle(shop_url: str, driver: str) -> None:
    """A large sort: PostgreSQL begins with the first FETCH, and has all rows then."""
    engine = create_engine(url_for(shop_url, driver))
    sqla_watch.install(engine, settings=Settings(profile="test", rules=FROM_200_MS))
    slowly = text("SELECT number FROM generate_series(1, 20) AS number, LATERAL (SELECT pg_sleep(0.5)) AS once")
    with sqla_watch.scope("stream") as scope, engine.connect() as connection:
        rows = connection.execution_options(yield_per=30).execute(slowly).all()
        connection.commit()
    engine.dispose()
    assert len(rows) == 20
    assert_not_idle(scope)


@both_drivers
@in_event_loop
async def test_async_a_stream_whose_fetches_take_long_is_not_idle(shop_url: str, driver: str) -> None:
    async with watched_async_engine(shop_url, driver, rules=FROM_200_MS) as engine:
        with sqla_watch.scope("stream") as scope:
            async with engine.connect() as connection:
                result = await connection.stream(STREAM, execution_options={"yield_per": 10})
                rows = [row async for row in result]
                await connection.commit()
    assert len(rows) == 20
    assert_not_idle(scope)


def test_a_stream_whose_reader_is_slow_is_idle(engine: Engine) -> None:
    with sqla_watch.scope("slow reader") as scope, engine.connect() as connection:
        result = connection.execution_options(yield_per=10).execute(select(Order.id).limit(30))
        for number, _ in enumerate(result):  # fetches in pieces
            if number == 9:
                time.sleep(IDLE)  # reads slowly
        connection.commit()
    finding = only(scope)
    assert finding.rule == "idle-in-transaction"
    assert finding.evidence["meanwhile"] == "in time.sleep"
    assert finding.related[0].location.line == line_of("reads slowly")
    assert place(finding) == (__file__, line_of("fetches in pieces"))


def test_short_gaps_are_fine_however_many(engine: Engine) -> None:
    with sqla_watch.scope("short") as scope, Session(engine) as session:
        for number in range(1, 8):
            session.get(Order, number)
            time.sleep(0.1)
        session.commit()
    assert_not_idle(scope)


def test_in_autocommit_no_transaction_is_idle(engine: Engine) -> None:
    alone = engine.execution_options(isolation_level="AUTOCOMMIT")
    with sqla_watch.scope("autocommit") as scope, alone.connect() as connection:
        connection.execute(select(Order.id).limit(1))
        time.sleep(0.3)
        connection.execute(select(Order.id).limit(1))
    assert found(scope) == []
    assert scope.statements == 2


@both_drivers
@in_event_loop
async def test_async_in_autocommit_no_transaction_is_idle(shop_url: str, driver: str) -> None:
    async with watched_async_engine(shop_url, driver, rules=FROM_200_MS, isolation_level="AUTOCOMMIT") as engine:
        with sqla_watch.scope("autocommit") as scope:
            async with engine.connect() as connection:
                await connection.execute(select(Order.id).limit(1))
                await asyncio.sleep(0.3)
                await connection.execute(select(Order.id).limit(1))
    assert found(scope) == []
    assert scope.statements == 2


def test_before_the_first_statement_and_after_the_commit_nothing_is_open(engine: Engine) -> None:
    with sqla_watch.scope("around") as scope, Session(engine) as session:
        time.sleep(0.3)
        session.get(Order, 1)
        session.commit()
        time.sleep(0.3)
        session.get(Order, 1)
        session.commit()
    assert scope.transactions == 2
    assert found(scope) == []


def test_a_wait_for_another_connection_is_not_idle(shop_url: str) -> None:
    engine = create_engine(shop_url, pool_size=1, max_overflow=0, pool_timeout=0.5)
    sqla_watch.install(engine, settings=Settings(profile="test", rules=FROM_200_MS))
    with sqla_watch.scope("nested") as scope, Session(engine) as session:
        session.get(Order, 1)
        with pytest.raises(PoolTimeout):
            engine.connect()
        session.commit()
    engine.dispose()
    assert [rule for rule, _ in found(scope)] == ["nested-checkout"]


@pytest.mark.parametrize("stop", ["breakpoint()", "import pdb; pdb.set_trace()"])
def test_a_stop_in_a_debugger_is_silent(shop_url: str, tmp_path: Path, stop: str) -> None:
    program = tmp_path / "debugged.py"
    program.write_text(
        "import time\n"
        "from sqlalchemy import create_engine, text\n"
        "import sqla_watch\n"
        f"engine = create_engine({shop_url!r})\n"
        "rules = {'idle-in-transaction': {'min_seconds': 0.2}}\n"
        "sqla_watch.install(engine, settings=sqla_watch.Settings(profile='test', rules=rules))\n"
        "def view(stops):\n"
        "    with engine.begin() as connection:\n"
        "        connection.execute(text('SELECT 1'))\n"
        "        if stops:\n"
        f"            {stop}\n"
        "        else:\n"
        "            time.sleep(0.6)\n"
        "for stops in (True, False):\n"
        "    with sqla_watch.scope('debugged') as scope:\n"
        "        view(stops)\n"
        "    print('found', [finding.rule for finding in scope.findings], flush=True)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(sqla_watch.__file__).parents[1])}
    debugged = subprocess.Popen(
        [sys.executable, "-W", "ignore", str(program)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=environment,
    )
    assert debugged.stdin is not None
    assert debugged.stdout is not None
    prompt = ""
    while not prompt.endswith("(Pdb) "):
        prompt += debugged.stdout.read(1)
    time.sleep(IDLE)
    output, _ = debugged.communicate("c\n", timeout=30)
    assert debugged.returncode == 0
    assert [line for line in output.splitlines() if line.startswith("found")] == [
        "found []",
        "found ['idle-in-transaction']",
    ]


def test_what_a_person_types_into_a_prompt_is_silent(shop_url: str, tmp_path: Path) -> None:
    lines = [
        "import time, sqla_watch",
        "from sqlalchemy import create_engine, text",
        f"engine = create_engine({shop_url!r})",
        "rules = {'idle-in-transaction': {'min_seconds': 0.2}}",
        "watch = sqla_watch.install(engine, settings=sqla_watch.Settings(profile='test', rules=rules))",
        "watch.reporters.append(lambda scope: print('closed', [each.rule for each in scope.findings]))",
        "connection = engine.connect()",
        "_ = connection.execute(text('SELECT 1'))",
        "time.sleep(0.6)",
        "connection.close()",
    ]
    typed = subprocess.run(
        [sys.executable, "-i", "-q", "-W", "ignore"],
        input="\n".join(lines) + "\n",
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(sqla_watch.__file__).parents[1])},
        timeout=30,
        check=True,
    )
    assert "closed []" in typed.stdout


# Beside long-transaction


def test_where_idle_time_is_most_of_a_long_transaction_it_is_all_there_is_to_say(engine: Engine, watch: Watch) -> None:
    watch.settings = Settings(profile="test", rules={**FROM_200_MS, "long-transaction": {"min_seconds": 0.3}})
    with sqla_watch.scope("mostly idle") as scope, Session(engine) as session:
        session.get(Order, 1)
        time.sleep(0.4)
        session.commit()
    assert [rule for rule, _ in found(scope)] == ["idle-in-transaction"]


def test_where_the_database_worked_most_of_the_time_both_are_told(engine: Engine, watch: Watch) -> None:
    watch.settings = Settings(profile="test", rules={**FROM_200_MS, "long-transaction": {"min_seconds": 0.3}})
    with sqla_watch.scope("mostly work") as scope, engine.begin() as connection:
        for _ in range(3):
            connection.execute(text("SELECT pg_sleep(0.25)"))
        time.sleep(0.3)
    assert sorted(rule for rule, _ in found(scope)) == ["idle-in-transaction", "long-transaction"]


# Settings and ignores


def test_a_block_around_the_end_silences_it(engine: Engine) -> None:
    with sqla_watch.scope("block") as scope, Session(engine) as session:
        session.get(Order, 1)
        time.sleep(0.3)
        with sqla_watch.ignore("idle-in-transaction", reason="the demo waits for a person") as ignore:
            session.commit()
    assert found(scope) == []
    assert ignore.matched == 1


def test_a_comment_on_the_line_of_the_statement_before_silences_it(engine: Engine) -> None:
    with sqla_watch.scope("comment") as scope, Session(engine) as session:
        session.get(Order, 1)  # sqla-watch: ignore[idle-in-transaction]
        time.sleep(0.3)
        session.commit()
    assert found(scope) == []
    assert not [unused for unused in sqla_watch.unused_ignores() if unused.rule == "idle-in-transaction"]


def test_a_comment_for_another_rule_does_not(engine: Engine) -> None:
    with sqla_watch.scope("other comment") as scope, Session(engine) as session:
        session.get(Order, 1)  # sqla-watch: ignore[long-transaction]
        time.sleep(0.3)
        session.commit()
    assert [rule for rule, _ in found(scope)] == ["idle-in-transaction"]


def test_below_the_threshold_it_is_silent(engine: Engine, watch: Watch) -> None:
    watch.settings = Settings(profile="test", rules={"idle-in-transaction": {"min_seconds": 5}})
    with sqla_watch.scope("below") as scope, Session(engine) as session:
        session.get(Order, 1)
        time.sleep(0.6)
        session.commit()
    assert found(scope) == []


def test_switched_off_it_is_silent_and_long_transaction_speaks(engine: Engine, watch: Watch) -> None:
    watch.settings = Settings(
        profile="test", rules={"idle-in-transaction": "ignore", "long-transaction": {"min_seconds": 0.2}}
    )
    with sqla_watch.scope("off") as scope, Session(engine) as session:
        session.get(Order, 1)
        time.sleep(0.3)
        session.commit()
    assert [rule for rule, _ in found(scope)] == ["long-transaction"]


def test_without_the_watchdog_the_time_and_its_lines_are_known(engine: Engine) -> None:
    sqla_watch.install(engine, settings=Settings(profile="test", rules=FROM_200_MS, watchdog_seconds=0))
    with sqla_watch.scope("no watchdog") as scope, Session(engine) as session:
        session.get(Order, 1)  # before nobody looks
        time.sleep(0.4)
        session.commit()  # after nobody looked
    finding = only(scope)
    assert place(finding) == (__file__, line_of("before nobody looks"))
    assert [related.location.line for related in finding.related] == [line_of("after nobody looked")]
    assert (finding.evidence["meanwhile"], finding.evidence["looks"]) == ("", 0)


def test_the_profiles_begin_at_half_a_second_and_at_one() -> None:
    assert Settings(profile="development").rule("idle-in-transaction")["min_seconds"] == 0.5
    assert Settings(profile="test").rule("idle-in-transaction")["min_seconds"] == 0.5
    assert Settings(profile="production").rule("idle-in-transaction")["min_seconds"] == 1.0


def test_it_agrees_with_what_the_server_says(engine: Engine, shop_url: str) -> None:
    """`pg_stat_activity`, asked by a connection that is not watched, calls it idle in transaction meanwhile."""
    address = make_url(shop_url)
    states: list[str] = []

    def ask(pid: int) -> None:
        with psycopg.connect(
            host=address.query.get("host", address.host), port=address.port, user=address.username,
            password=address.password, dbname=address.database, autocommit=True,
        ) as server:  # fmt: skip
            row = server.execute("SELECT state FROM pg_stat_activity WHERE pid = %s", (pid,)).fetchone()
            states.append(row[0] if row else "")

    with sqla_watch.scope("server") as scope, engine.begin() as connection:
        pid = connection.scalar(text("SELECT pg_backend_pid()"))
        time.sleep(0.2)
        asker = threading.Thread(target=ask, args=(pid,))
        asker.start()
        time.sleep(0.2)
        asker.join()
    assert states == ["idle in transaction"]
    assert [rule for rule, _ in found(scope)] == ["idle-in-transaction"]
