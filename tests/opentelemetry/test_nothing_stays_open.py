"""After 10,000 statements with all that can go wrong, every span that has begun has ended."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import threading
from collections import Counter
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, Engine, create_engine, event, select, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.orm import Session

import sqla_watch
from sqla_watch.demo.models import Customer, Order
from tests.conftest import url_for
from tests.opentelemetry.conftest import Backend

STATEMENTS = 10_000
THREADS = 4
EVERYTHING: dict[str, Any] = {"transactions": True, "waits": True, "rows": True}


class Work:
    """Statements of all kinds, with all that can go wrong, in the order that chance has it."""

    def __init__(self, shop_url: str, backend: Backend) -> None:
        self.backend = backend
        self.url = url_for(shop_url, "psycopg")
        # Fewer connections than threads, and no patience: some ask in vain.
        self.engine = create_engine(self.url, pool_size=3, max_overflow=0, pool_timeout=0.02, pool_recycle=3600)
        self.failures: Counter[str] = Counter()
        self.refuses = random.Random(1)
        event.listen(self.engine, "do_connect", self.connect)

    def connect(self, dialect: Any, record: Any, arguments: Any, options: Any) -> None:
        if self.refuses.random() < 0.3:
            raise psycopg.OperationalError("no server")

    def run(self, seed: int, statements: int) -> None:
        chance = random.Random(seed)
        sent = 0
        while sent < statements:
            try:
                with self.backend.tracer.start_as_current_span("request"), self.engine.connect() as connection:
                    for _ in range(chance.randrange(1, 30)):
                        sent += 1
                        self.send(connection, chance)
            except (DBAPIError, PoolTimeout) as error:
                self.failures[getattr(getattr(error, "orig", error), "sqlstate", None) or type(error).__name__] += 1

    def send(self, connection: Connection, chance: random.Random) -> None:
        kind = chance.randrange(240)
        if kind < 150:
            connection.execute(select(Customer.id).where(Customer.id == chance.randrange(5)))
        elif kind < 170:
            connection.execution_options(yield_per=7).execute(select(Order.id)).fetchmany(3)
        elif kind < 190:
            with connection.begin_nested():
                connection.execute(text("SELECT 1 / 0"))
        elif kind < 200:
            connection.execute(text("SELECT no_such_column FROM orders"))
        elif kind < 218:
            connection.commit()
        elif kind < 236:
            connection.rollback()
        elif kind < 239:
            connection.execute(text("SET LOCAL statement_timeout = 3"))
            connection.execute(text("SELECT pg_sleep(1)"))
        else:
            pid = connection.scalar(text("SELECT pg_backend_pid()"))
            url = self.engine.url.set(drivername="postgresql").render_as_string(False)
            with psycopg.connect(url, autocommit=True) as other:
                other.execute("SELECT pg_terminate_backend(%s)", (pid,))
            connection.execute(select(Customer.id))

    def run_in_threads(self, statements: int) -> None:
        threads = [threading.Thread(target=self.run, args=(seed, statements // THREADS)) for seed in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    async def run_in_tasks(self, driver: str, statements: int) -> None:
        """Tasks of which a third is cancelled, while a statement runs or while they wait for a connection."""
        engine = create_async_engine(url_for(self.url, driver), pool_size=5, pool_recycle=3600)
        self.backend.install(engine, "production", **EVERYTHING)
        tasks = [asyncio.create_task(self.run_in_task(engine)) for _ in range(statements // 10)]
        for number, task in enumerate(tasks):
            if number % 3 == 0:
                asyncio.get_running_loop().call_later(number / 300, task.cancel)
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, BaseException):
                self.failures[type(outcome).__name__] += 1
        await engine.dispose()

    async def run_in_task(self, engine: AsyncEngine) -> None:
        with self.backend.tracer.start_as_current_span("task"):
            async with engine.connect() as connection:
                for number in range(10):
                    await connection.execute(text("SELECT pg_sleep(:seconds)"), {"seconds": number % 5 / 1000})


def statements_counted(backend: Backend) -> int:
    return sum(point.count for point in backend.points("db.client.operation.duration"))


# A task that is cancelled while SQLAlchemy opens its connection leaves that to the garbage collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_after_ten_thousand_statements_with_all_that_can_go_wrong(shop_url: str, backend: Backend) -> None:
    work = Work(shop_url, backend)
    for _ in range(2):
        backend.install(work.engine, "production", **EVERYTHING)
        backend.install(None, "production", **EVERYTHING)
    work.run_in_threads(STATEMENTS * 9 // 10)
    for driver in ("asyncpg", "psycopg"):
        asyncio.run(work.run_in_tasks(driver, STATEMENTS // 10))
    gc.collect()
    assert statements_counted(backend) >= STATEMENTS
    assert {
        "22012",  # division by zero
        "42703",  # no such column
        "57014",  # statement_timeout
        "57P01",  # the backend was killed
        "OperationalError",  # no connection
        "TimeoutError",  # none left in the pool
        "CancelledError",
    } <= set(work.failures)
    assert backend.counting.started > 3_000
    # A stream whose result was dropped, and all else that a connection had open, ended with its return.
    assert backend.counting.started == backend.counting.ended
    work.engine.dispose()


def test_at_level_slow_too(shop_url: str, backend: Backend) -> None:
    work = Work(shop_url, backend)
    backend.install(work.engine, "production", statements="slow", slow_seconds=0.001, **EVERYTHING)
    backend.install(None, "production", statements="slow", slow_seconds=0.001, **EVERYTHING)
    work.run_in_threads(1_000)
    assert backend.counting.started == backend.counting.ended > 100
    work.engine.dispose()


def test_connections_that_fail_and_pools_that_are_empty(shop_url: str, backend: Backend) -> None:
    engine = create_engine(
        url_for(shop_url, "psycopg"), pool_size=1, max_overflow=0, pool_timeout=0.05, pool_recycle=3600
    )
    backend.install(engine, "production", **EVERYTHING)
    with engine.connect() as connection:
        connection.execute(select(Customer.id))
        with pytest.raises(PoolTimeout):
            engine.connect()
        pid = connection.scalar(text("SELECT pg_backend_pid()"))
        with psycopg.connect(engine.url.set(drivername="postgresql").render_as_string(False), autocommit=True) as other:
            other.execute("SELECT pg_terminate_backend(%s)", (pid,))
        with pytest.raises(OperationalError):
            connection.execute(select(Customer.id))
    assert backend.counting.started == backend.counting.ended >= 3

    def refuse(*arguments: Any) -> None:
        raise psycopg.OperationalError("no server")

    engine.dispose()
    event.listen(engine, "do_connect", refuse)
    for _ in range(20):
        with pytest.raises(OperationalError):
            engine.connect()
    assert backend.counting.started == backend.counting.ended


def test_connections_that_nobody_returns(engine: Engine, backend: Backend) -> None:
    backend.install(engine, "production", **EVERYTHING)
    connection = engine.connect()
    connection.execute(select(Customer.id))
    assert backend.counting.started > backend.counting.ended
    connection.detach()
    connection.execute(select(Customer.id))
    connection.close()
    session = Session(engine)
    session.execute(select(Customer.id))
    del session
    gc.collect()
    sqla_watch.uninstall()
    assert backend.counting.started == backend.counting.ended


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_process_leaves_the_spans_to_its_parent(engine: Engine, backend: Backend) -> None:
    watch = backend.install(engine, "production", **EVERYTHING)
    with engine.connect() as connection:
        connection.execute(select(Customer.id))
        child = os.fork()
        if not child:
            status = 9
            try:
                watch.uninstall()
                status = backend.counting.ended
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert backend.counting.started == backend.counting.ended > 0
