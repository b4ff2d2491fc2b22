"""After 10,000 statements with all that can go wrong, every span that has begun has ended."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import threading
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, create_engine, event, select, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

import sqla_watch
from sqla_watch.demo.models import Customer, Order
from tests.conftest import url_for
from tests.opentelemetry.conftest import Backend

STATEMENTS = 10_000
EVERYTHING: dict[str, Any] = {"transactions": True, "waits": True, "rows": True}


def work(engine: Engine, backend: Backend, seed: int, statements: int) -> None:
    """Send statements of all kinds, in the order that chance has it."""
    chance = random.Random(seed)
    sent = 0
    while sent < statements:
        try:
            with backend.tracer.start_as_current_span("request"), engine.connect() as connection:
                for _ in range(chance.randrange(1, 30)):
                    sent += 1
                    kind = chance.randrange(12)
                    if kind < 7:
                        connection.execute(select(Customer.id).where(Customer.id == chance.randrange(5)))
                    elif kind == 7:
                        connection.execution_options(yield_per=7).execute(select(Order.id)).fetchmany(3)
                    elif kind == 8:
                        with connection.begin_nested():
                            connection.execute(text("SELECT 1 / 0"))
                    elif kind == 9:
                        connection.execute(text("SELECT no_such_column FROM orders"))
                    elif kind == 10:
                        connection.commit()
                    else:
                        connection.rollback()
        except DBAPIError:
            pass


@pytest.mark.parametrize("level", ["all", "slow"])
def test_threads_with_errors_and_time_outs(shop_url: str, backend: Backend, level: str) -> None:
    engine = create_engine(
        url_for(shop_url, "psycopg"), pool_size=2, max_overflow=0, pool_timeout=30, pool_recycle=3600
    )
    backend.install(engine, "production", statements=level, slow_seconds=0.001, **EVERYTHING)
    backend.install(None, "production", statements=level, slow_seconds=0.001, **EVERYTHING)
    threads = [
        threading.Thread(target=work, args=(engine, backend, seed, STATEMENTS // 8 // (1 if level == "all" else 4)))
        for seed in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert backend.counting.started > 500
    # A stream whose result was dropped, and all else that a connection had open, ended with its return.
    assert backend.counting.started == backend.counting.ended
    engine.dispose()


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


# A task that is cancelled while SQLAlchemy opens its connection leaves that to the garbage collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_tasks_that_are_cancelled(shop_url: str, backend: Backend, driver: str) -> None:
    async def main() -> None:
        engine = create_async_engine(url_for(shop_url, driver), pool_size=5, pool_recycle=3600)
        backend.install(engine, "production", **EVERYTHING)

        async def one(number: int) -> None:
            with backend.tracer.start_as_current_span("task"):
                async with engine.connect() as connection:
                    for _ in range(10):
                        await connection.execute(text("SELECT pg_sleep(:seconds)"), {"seconds": number % 5 / 200})

        tasks = [asyncio.create_task(one(number)) for number in range(60)]
        for number, task in enumerate(tasks):
            if number % 3 == 0:
                asyncio.get_running_loop().call_later(number / 300, task.cancel)
        await asyncio.gather(*tasks, return_exceptions=True)
        await engine.dispose()

    asyncio.run(main())
    gc.collect()
    assert backend.counting.started > 60
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
