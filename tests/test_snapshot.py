"""What is open now, told from another thread: connections, transactions, pools."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import threading
import time

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

import sqla_watch
from sqla_watch import Settings, Watch
from sqla_watch.demo.models import Order
from tests.support import in_event_loop, line_of, watched_async_engine

pytestmark = pytest.mark.filterwarnings("ignore::sqla_watch.SqlaWatchWarning")


def test_with_nothing_out_there_is_nothing(watch: Watch, engine: Engine) -> None:
    assert watch.snapshot().connections == ()
    with engine.connect():
        pass
    (pool,) = watch.snapshot().pools
    assert watch.snapshot().connections == ()
    assert (pool.kind, pool.size, pool.max_overflow, pool.checked_out, pool.waiting) == ("QueuePool", 5, 10, 0, 0)
    assert pool.engine.startswith("postgresql+psycopg ")


def test_a_thread_is_seen_idle_in_its_transaction_and_at_work(watch: Watch, engine: Engine) -> None:
    steps = [threading.Event() for _ in range(2)]

    def work() -> None:
        with sqla_watch.scope("export"), Session(engine) as session:
            session.get(Order, 1)
            steps[0].set()
            steps[1].wait()  # is elsewhere
            session.execute(text("SELECT pg_sleep(0.3)"))  # lets the database work

    worker = threading.Thread(target=work)
    worker.start()
    steps[0].wait()
    time.sleep(0.05)
    (idle,) = watch.snapshot().connections
    steps[1].set()
    time.sleep(0.15)
    (working,) = watch.snapshot().connections
    worker.join()
    assert (idle.state, idle.scope, idle.statements) == ("idle in transaction", "export", 1)
    assert 0.04 < idle.idle_seconds <= idle.transaction_seconds <= idle.held_seconds < 1
    assert idle.location is not None
    assert (idle.location.file, idle.location.line) == (__file__, line_of("is elsewhere"))
    assert (working.state, working.idle_seconds) == ("working", 0)
    assert working.location is not None
    assert working.location.line == line_of("lets the database work")
    assert watch.snapshot().connections == ()


def test_what_an_idle_owner_does_is_named(watch: Watch, engine: Engine) -> None:
    taken = threading.Event()

    def pay() -> None:
        with sqla_watch.scope("pay"), engine.connect() as connection:  # took it
            connection.execute(text("SELECT 1"))
            taken.set()
            time.sleep(0.3)  # pays

    payer = threading.Thread(target=pay)
    payer.start()
    taken.wait()
    time.sleep(0.05)
    snapshot = watch.snapshot()
    payer.join()
    (connection,) = snapshot.connections
    assert connection.doing == "in time.sleep"
    assert connection.location is not None
    assert connection.location.line == line_of("pays")
    assert connection.taken is not None
    assert connection.taken.line == line_of("took it")
    assert str(connection).endswith(f"test_snapshot.py:{line_of('pays')} in pay, in time.sleep (pay)")
    assert f"{connection}" in str(snapshot)


def test_an_owner_that_works_does_nothing_else(watch: Watch, engine: Engine) -> None:
    taken = threading.Event()

    def work() -> None:
        with engine.connect() as connection:
            taken.set()
            connection.execute(text("SELECT pg_sleep(0.6)"))

    worker = threading.Thread(target=work)
    worker.start()
    taken.wait()
    time.sleep(0.2)
    (connection,) = watch.snapshot().connections
    worker.join()
    assert (connection.state, connection.doing) == ("working", "")


def test_one_that_was_never_returned_is_seen_at_the_line_that_took_it(watch: Watch, engine: Engine) -> None:
    def leak() -> Session:
        session = Session(engine)
        session.get(Order, 1)  # leaks
        return session

    sessions: list[Session] = []
    thread = threading.Thread(target=lambda: sessions.append(leak()))
    thread.start()
    thread.join()
    (connection,) = watch.snapshot().connections
    assert (connection.state, connection.doing, connection.statements) == ("never returned", "", 1)
    assert connection.location == connection.taken
    assert connection.location is not None
    assert connection.location.line == line_of("leaks")
    sessions.pop().close()
    assert watch.snapshot().connections == ()


def test_an_owner_that_waits_for_another_connection_is_seen_waiting(shop_url: str) -> None:
    engine = create_engine(shop_url, pool_size=1, max_overflow=0, pool_timeout=0.4)
    watch = sqla_watch.install(engine, settings=Settings(profile="test"))

    def nest() -> None:
        with engine.connect():
            try:
                engine.connect()  # waits for a second
            except PoolTimeout:
                pass

    nesting = threading.Thread(target=nest)
    nesting.start()
    time.sleep(0.2)
    (connection,) = watch.snapshot().connections
    nesting.join()
    engine.dispose()
    assert connection.state == "waiting for another connection"
    assert connection.location is not None
    assert connection.location.line == line_of("waits for a second")


def test_a_connection_without_a_statement_is_idle(watch: Watch, engine: Engine) -> None:
    with engine.connect():
        (connection,) = watch.snapshot().connections
    assert (connection.state, connection.transaction_seconds, connection.statements) == ("idle", 0, 0)


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
@in_event_loop
async def test_async_tasks_are_seen_at_their_own_lines(shop_url: str, driver: str) -> None:
    async with watched_async_engine(shop_url, driver) as engine:
        watch = sqla_watch.install(engine)

        async def sleep() -> None:
            async with engine.connect() as connection:
                await connection.execute(text("SELECT 1"))
                await asyncio.sleep(0.6)  # sleeps in a transaction

        async def work() -> None:
            async with engine.connect() as connection:
                await connection.execute(text("SELECT pg_sleep(0.6)"))  # works in one

        async with engine.connect(), engine.connect():  # so that both are open
            pass
        tasks = [asyncio.create_task(sleep()), asyncio.create_task(work())]
        await asyncio.sleep(0.2)
        seen = {connection.state: connection for connection in watch.snapshot().connections}
        await asyncio.gather(*tasks)
    assert set(seen) == {"idle in transaction", "working"}
    lines = {state: connection.location and connection.location.line for state, connection in seen.items()}
    assert lines == {
        "idle in transaction": line_of("sleeps in a transaction"),
        "working": line_of("works in one"),
    }


def test_those_who_wait_are_counted(shop_url: str) -> None:
    engine = create_engine(shop_url, pool_size=1, max_overflow=0, pool_timeout=0.2)
    watch = sqla_watch.install(engine, settings=Settings(profile="test"))
    failed = threading.Event()

    def wait() -> None:
        try:
            engine.connect()
        except PoolTimeout:
            failed.set()

    with engine.connect():
        waiter = threading.Thread(target=wait)
        waiter.start()
        time.sleep(0.1)
        assert watch.snapshot().pools[0].waiting == 1
        waiter.join()
    engine.dispose()
    (pool,) = watch.snapshot().pools
    assert failed.is_set()
    assert (pool.waiting, pool.checked_out) == (0, 0)


def test_it_is_text_and_json_and_has_no_secrets(shop_url: str) -> None:
    engine = create_engine(shop_url, connect_args={"application_name": "hidden name"})
    watch = sqla_watch.install(engine)
    with engine.connect() as connection:
        connection.execute(text("SELECT :secret"), {"secret": "hidden value"})
        shown = str(watch.snapshot())
        assert json.loads(json.dumps(watch.snapshot().to_dict()))["connections"][0]["state"] == "idle in transaction"
        file = io.StringIO()
        sqla_watch.dump(file)
    engine.dispose()
    assert "idle in transaction" in shown
    assert "hidden" not in shown
    assert file.getvalue().startswith(f"sqla_watch, process {os.getpid()}:\npostgresql+psycopg ")


def test_a_signal_dumps_and_calls_the_handler_that_was_there(
    watch: Watch, engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    called = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: called.append(number))
    try:
        sqla_watch.dump_on_signal(signal.SIGUSR2)
        with engine.connect():
            os.kill(os.getpid(), signal.SIGUSR2)
            time.sleep(0.01)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert "1 out of 5 + 10" in capsys.readouterr().err
    assert called == [signal.SIGUSR2]
