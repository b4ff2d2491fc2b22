"""The stress of the pool for some seconds in each build, and what it has taught, each by itself."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import DBAPIError

import sqla_watch
from sqla_watch import Settings
from tests.conftest import url_for
from tests.support import in_event_loop, watched_async_engine

pytestmark = pytest.mark.filterwarnings("ignore::sqla_watch.SqlaWatchWarning")

REPOSITORY = Path(__file__).parents[1]
WRONG_ROW = text("SELECT 1 / (number - 1) FROM generate_series(1, 9) AS number")
"""Its very first row is an error."""


def run(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a process of its own; the stress finds the database there."""
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=180, cwd=REPOSITORY, check=False,
        env={**os.environ, "SQLA_WATCH_TEST_DATABASE_URL": url, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_threads_and_tasks_leave_nothing_open_behind(shop_url: str, driver: str) -> None:
    """It looks itself: at the snapshot, at what is alive, at the log and at each exception."""
    size = ["--minutes", "0.2", "--lap", "6", "--threads", "16", "--tasks", "60"]
    ended = run(shop_url, "-m", "benchmarks.pool_stress", *size, "--driver", driver)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "\n0 faults" in ended.stdout
    assert "idle-in-transaction" in ended.stdout, "the watchdog's rules have found something, too"


def test_the_stress_says_so_when_something_is_wrong(tmp_path: Path, shop_url: str) -> None:
    """Connections that are never noted as returned, and an error in our log: it ends with 1 and names both."""
    program = """
import sys
from sqla_watch.probes.checkout import Checkout
returned = Checkout.returned
def forgets(self, *arguments):
    if self.serial == 40:
        raise RuntimeError("broken on purpose")
    if self.serial % 50:
        returned(self, *arguments)
Checkout.returned = forgets
from benchmarks import pool_stress
pool_stress.PATIENCE_SECONDS = 1
sys.exit(pool_stress.main("--minutes 0.07 --lap 4 --threads 8 --tasks 20".split()))
"""
    (tmp_path / "broken.py").write_text(program)
    ended = run(shop_url, str(tmp_path / "broken.py"))
    assert ended.returncode == 1, ended.stderr
    assert "open checkouts" in ended.stdout
    assert "RuntimeError: broken on purpose" in ended.stdout


def test_an_error_in_the_first_row_of_a_stream_is_the_applications(engine: Engine) -> None:
    def stream() -> None:
        with engine.connect() as connection:
            connection.execution_options(stream_results=True).execute(WRONG_ROW)

    with pytest.raises(DBAPIError) as bare:
        stream()
    sqla_watch.install(engine)
    with sqla_watch.scope("stream") as scope, pytest.raises(DBAPIError) as watched:
        stream()
    assert (type(watched.value), type(watched.value.orig)) == (type(bare.value), type(bare.value.orig))
    assert str(watched.value) == str(bare.value)
    assert scope.errors == 1
    with sqla_watch.scope("afterwards") as scope, engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    assert scope.statements == 1, "it is still watched"


@in_event_loop
async def test_an_error_in_the_first_row_of_a_tasks_stream_is_the_applications(shop_url: str) -> None:
    async with watched_async_engine(shop_url, "psycopg") as engine:
        with sqla_watch.scope("stream") as scope:
            async with engine.connect() as connection:
                with pytest.raises(DBAPIError, match="division by zero"):
                    await connection.stream(WRONG_ROW)
        assert scope.errors == 1


def test_the_waits_of_a_pool_are_all_added_up(shop_url: str) -> None:
    """Threads that end their waits at the same moment take none from each other's sum."""
    engine = create_engine(url_for(shop_url, "psycopg"), pool_size=2, max_overflow=0, pool_timeout=60)
    watch = sqla_watch.install(engine, settings=Settings(profile="test", watchdog_seconds=0))
    seconds: list[float] = []

    def work() -> None:
        with sqla_watch.scope("waits") as scope:
            for _ in range(100):
                with engine.connect():
                    pass
        seconds.append(scope.wait_seconds)

    workers = [threading.Thread(target=work) for _ in range(16)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        sys.setswitchinterval(interval)
    (pool,) = watch.snapshot().pools
    engine.dispose()
    assert sum(seconds) > 0
    assert pool.wait_seconds >= sum(seconds)  # the scopes leave out what is shorter than a millisecond
