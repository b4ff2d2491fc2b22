"""The watchdog's thread: when it lives and ends, what it costs, and that neither application nor process notices it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from random import Random
from textwrap import dedent
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.exc import SAWarning
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

import sqla_watch
from sqla_watch import Settings, SettingsError, Watch
from sqla_watch.callsite import location_of
from sqla_watch.demo.models import Order
from sqla_watch.facts import Activity
from sqla_watch.probes import pool as pool_probe
from sqla_watch.probes.checkout import Checkout
from sqla_watch.probes.internals import RECORD_KEY
from sqla_watch.probes.owner import Frames
from sqla_watch.probes.watchdog import watchdog
from tests.conftest import url_for
from tests.support import in_event_loop, line_of, only, watched_async_engine

pytestmark = pytest.mark.filterwarnings("ignore::sqla_watch.SqlaWatchWarning")

REPOSITORY = Path(__file__).parents[2]
ONE = text("SELECT 1")
SOON: dict[str, Any] = {"idle-in-transaction": {"min_seconds": 0.1}}
"""Looks at a transaction when it has been idle for 0.1 s."""
AT_ONCE: dict[str, Any] = {"idle-in-transaction": {"min_seconds": 0.001}, "pool-wait": {"min_seconds": 0.001}}
PATIENCE = 20.0
"""Seconds after which what has not come will not come; the machine may be busy with other things."""
PROMPT = 4.0
"""Seconds that are at once for a process on a busy machine, and less than a thread takes that keeps it alive."""
LOOKING = ("idle-in-transaction", "connection-held", "pool-wait", "pool-fanout")
"""Rules that want to know what code did meanwhile."""

has_thread_clocks = pytest.mark.skipif(not hasattr(time, "pthread_getcpuclockid"), reason="no clocks of threads")
has_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")


def settings(rules: Any = None, **options: Any) -> Settings:
    return Settings(profile="test", rules=rules or {}, **options)


def threads_of_it() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "sqla_watch watchdog"]


def comes(what: Callable[[], object]) -> bool:
    """Wait until something is so; return whether it has come to be."""
    deadline = time.monotonic() + PATIENCE
    while not what():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def checkout_of(connection: Connection) -> Checkout:
    """What is kept of a connection that is out."""
    checkout: Checkout = vars(connection.connection._connection_record)[RECORD_KEY]  # type: ignore[attr-defined]
    return checkout


def processor_time() -> Callable[[], int]:
    """What tells the processor time of the watchdog's thread."""
    (thread,) = threads_of_it()
    assert thread.ident is not None
    clock = time.pthread_getcpuclockid(thread.ident)
    return lambda: time.clock_gettime_ns(clock)


class Item:
    """Something that is looked at once, and does then what it was told to do."""

    def __init__(self, action: Callable[[], object]) -> None:
        self.open = True
        self.action = action
        self.looking = threading.Event()
        self.looked = threading.Event()

    def look(self, now: int, frames: Frames) -> int:
        self.looking.set()
        self.action()
        self.looked.set()
        return 0


@pytest.fixture
def soon(engine: Engine) -> Watch:
    """A watch that looks at a transaction which has been idle for 0.1 s."""
    return sqla_watch.install(engine, settings=settings(SOON))


@pytest.fixture
def program(tmp_path: Path, shop_url: str) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a program in a process of its own. It finds `url`, `engine`, `watch`, and functions which it shares."""

    def run(source: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        path = tmp_path / "program.py"
        path.write_text(dedent(PROGRAM) + dedent(source))
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        return subprocess.run(
            [sys.executable, str(path), shop_url, *arguments],
            capture_output=True, text=True, timeout=3 * PATIENCE, cwd=tmp_path, env=environment, check=False, **options,
        )  # fmt: skip

    return run


PROGRAM = """
    import asyncio, gc, json, multiprocessing, os, sys, threading, time, warnings
    from sqlalchemy import create_engine, text
    import sqla_watch
    from sqla_watch import Settings
    from sqla_watch.probes.watchdog import watchdog

    warnings.simplefilter("ignore", sqla_watch.SqlaWatchWarning)
    url = sys.argv[1]
    ONE = text("SELECT 1")
    engine = create_engine(url)
    watch = sqla_watch.install(engine, settings=Settings(
        profile="test", rules={"idle-in-transaction": {"min_seconds": 0.1}}, watchdog_seconds=0.02
    ))

    def idles(who):
        # What is found of a transaction in which nothing is done for a while.
        with sqla_watch.scope("idles") as scope, engine.connect() as connection:
            connection.execute(ONE)
            time.sleep(0.6)
            connection.execute(ONE)
        (finding,) = [each for each in scope.findings if each.rule == "idle-in-transaction"]
        return {"who": who, "doing": finding.evidence["meanwhile"], "looks": finding.evidence["looks"] > 0}

    def say(**what):
        os.write(1, json.dumps(what).encode() + b"\\n")  # at once, and whole, from any process
"""


def said(ended: subprocess.CompletedProcess[str]) -> list[Any]:
    """What a program said; it ended well, and nothing else was said by anyone."""
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    return [json.loads(line) for line in ended.stdout.splitlines()]


# The process ends as if it were not there


@pytest.mark.parametrize("who", ["main thread", "daemon thread", "task", "looked at all the time", "asleep"])
def test_a_process_ends_at_once_and_silently_with_its_transactions_open(program: Any, who: str) -> None:
    ended = program(
        """
        who = sys.argv[2]

        def opens():
            connection = engine.connect()
            connection.execute(ONE)
            return connection

        def opens_and_sleeps():
            connection = opens()
            time.sleep(60)

        async def in_a_task():
            from sqlalchemy.ext.asyncio import create_async_engine
            other = create_async_engine(url.replace("+psycopg", "+asyncpg"))
            sqla_watch.install(other)
            connection = await other.connect()
            await connection.execute(ONE)
            await asyncio.sleep(0.4)
            return connection

        if who == "main thread":
            kept = opens()
        elif who == "daemon thread":
            for _ in range(3):
                threading.Thread(target=opens_and_sleeps, daemon=True).start()
        elif who == "task":
            kept = asyncio.run(in_a_task())
        elif who == "looked at all the time":
            kept = [opens() for _ in range(5)]
            class Busy:
                open = True
                def look(self, now, frames):
                    frames()
                    return now + 1
            watchdog.watch(Busy())
        elif who == "asleep":
            opens().close()
            time.sleep(2)
        time.sleep(0.4)
        say(running=watchdog.running, ends=time.time())
        """,
        who,
    )
    gone = time.time()
    if who == "task":  # SQLAlchemy says that nobody has returned the connection
        ended.stderr = ""
    (last,) = said(ended)
    assert last["running"]
    assert gone - last["ends"] < PROMPT


def test_the_thread_does_not_keep_a_process_alive(soon: Watch, engine: Engine) -> None:
    with engine.connect():
        (thread,) = threads_of_it()
    assert thread.daemon


# Forks


@has_fork
def test_after_a_fork_parent_and_child_have_a_thread_each(program: Any) -> None:
    both = said(
        program(
            """
            warnings.simplefilter("ignore")  # Python 3.12 warns of forks in a process with threads
            engine.connect().close()
            child = os.fork()
            if child == 0:
                engine.dispose(close=False)
                threads = threading.active_count()
                say(**idles("child"), threads=[threads, threading.active_count()])
                os._exit(0)
            say(**idles("parent"))
            os.waitpid(child, 0)
            """
        )
    )
    (child,) = [each for each in both if each["who"] == "child"]
    (parent,) = [each for each in both if each["who"] == "parent"]
    assert child == {"who": "child", "doing": "in time.sleep", "looks": True, "threads": [1, 2]}
    assert parent == {"who": "parent", "doing": "in time.sleep", "looks": True}


@has_fork
def test_a_fork_in_the_middle_of_a_look_harms_neither(program: Any) -> None:
    both = said(
        program(
            """
            warnings.simplefilter("ignore")
            looking, go_on = threading.Event(), threading.Event()

            class Slow:
                open = True
                def look(self, now, frames):
                    taken = frames()
                    looking.set()
                    go_on.wait(30)
                    return 0

            watchdog.watch(Slow())
            looking.wait(30)
            child = os.fork()
            if child == 0:
                engine.dispose(close=False)
                say(**idles("child"))
                os._exit(0)
            os.waitpid(child, 0)
            go_on.set()
            say(**idles("parent"))
            """
        )
    )
    assert both == [{"who": who, "doing": "in time.sleep", "looks": True} for who in ("child", "parent")]


@has_fork
def test_forks_at_any_moment_harm_nobody(program: Any) -> None:
    """The parent's transactions are looked at all the time while it forks, again and again."""
    lines = said(
        program(
            """
            warnings.simplefilter("ignore")
            over = False

            def works():
                while not over:
                    with engine.connect() as connection:
                        connection.execute(ONE)
                        time.sleep(0.15)

            workers = [threading.Thread(target=works) for _ in range(4)]
            for worker in workers:
                worker.start()
            statuses = []
            for number in range(12):
                time.sleep(0.013 * number)
                child = os.fork()
                if child == 0:
                    engine.dispose(close=False)
                    with engine.connect() as connection:
                        connection.execute(ONE)
                        before = watchdog.stacks
                        for _ in range(500):
                            if watchdog.stacks > before:
                                break
                            time.sleep(0.01)
                    os._exit(0 if watchdog.stacks > before else 3)
                statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            over = True
            for worker in workers:
                worker.join()
            say(statuses=statuses, connections=len(watch.snapshot().connections))
            """
        )
    )
    assert lines == [{"statuses": [0] * 12, "connections": 0}]


@has_fork
def test_nobody_waits_in_a_child_though_somebody_did_in_the_parent(program: Any) -> None:
    lines = said(
        program(
            """
            warnings.simplefilter("ignore")
            engine = create_engine(url, pool_size=1, max_overflow=0)
            watch = sqla_watch.install(engine)
            held = engine.connect()
            waiter = threading.Thread(target=lambda: engine.connect().close())
            waiter.start()
            while not watch.snapshot().pools[0].waiting:
                time.sleep(0.01)
            child = os.fork()
            if child == 0:
                say(waiting=watch.snapshot().pools[0].waiting)
                os._exit(0)
            os.waitpid(child, 0)
            held.close()
            waiter.join()
            say(waiting=watch.snapshot().pools[0].waiting)
            """
        )
    )
    assert lines == [{"waiting": 0}, {"waiting": 0}]


@has_fork
def test_it_does_not_make_python_warn_of_a_fork(program: Any) -> None:
    """From 3.12 on Python warns of forks in a process with threads; this one has none of its own."""
    lines = said(
        program(
            """
            connection = engine.connect()
            connection.execute(ONE)
            time.sleep(0.2)
            for _ in range(5):
                child = os.fork()
                if child == 0:
                    os._exit(0)
                os.waitpid(child, 0)
            say(**idles("parent"))
            """
        )
    )
    assert lines == [{"who": "parent", "doing": "in time.sleep", "looks": True}]


@has_fork
def test_what_it_had_to_look_at_before_a_fork_it_looks_at_after_it(program: Any) -> None:
    lines = said(
        program(
            """
            with sqla_watch.scope("idles") as scope, engine.connect() as connection:
                connection.execute(ONE)
                time.sleep(0.06)  # it has been taken over by the thread, and is not due yet
                child = os.fork()
                if child == 0:
                    os._exit(0)
                os.waitpid(child, 0)
                engine.connect().close()  # something new
                time.sleep(0.6)
                connection.execute(ONE)
            (finding,) = [each for each in scope.findings if each.rule == "idle-in-transaction"]
            say(doing=finding.evidence["meanwhile"])
            """
        )
    )
    assert lines == [{"doing": "in time.sleep"}]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_of_multiprocessing_have_one_each(program: Any, method: str) -> None:
    lines = said(
        program(
            """
            warnings.simplefilter("ignore")

            def work(who):
                engine.dispose(close=False)
                say(**idles(who))

            if __name__ == "__main__":
                engine.connect().close()
                methods = multiprocessing.get_context(sys.argv[2])
                workers = [methods.Process(target=work, args=(f"worker {number}",)) for number in range(2)]
                for worker in workers:
                    worker.start()
                for worker in workers:
                    worker.join()
                say(**idles("parent"))
            """,
            method,
        )
    )
    assert sorted(lines, key=lambda each: each["who"]) == [
        {"who": who, "doing": "in time.sleep", "looks": True} for who in ("parent", "worker 0", "worker 1")
    ]


# It begins with what is to be looked at, and ends with the last watch


def test_there_is_no_thread_before_the_first_connection(watch: Watch, engine: Engine) -> None:
    assert threads_of_it() == []
    assert not watchdog.running
    with engine.connect():
        assert len(threads_of_it()) == 1
        assert watchdog.running


def test_uninstalling_again_and_again_leaves_no_thread(engine: Engine) -> None:
    for _ in range(30):
        with sqla_watch.install(engine, settings=settings(SOON)), engine.connect() as connection:
            connection.execute(ONE)
            assert len(threads_of_it()) == 1
        assert threads_of_it() == []
    with sqla_watch.install(engine, settings=settings(SOON)), engine.connect() as connection:
        connection.execute(ONE)
        assert comes(lambda: checkout_of(connection).activities), "it still looks"


def test_it_ends_with_the_last_of_two_watches(shop_url: str, engine: Engine) -> None:
    other = create_engine(url_for(shop_url, "psycopg"))
    first, second = sqla_watch.install(engine, settings=settings(SOON)), sqla_watch.install(other)
    with engine.connect(), other.connect() as connection:
        first.uninstall()
        assert len(threads_of_it()) == 1
        connection.execute(ONE)
        second.settings = settings(SOON)
        assert comes(lambda: checkout_of(connection).activities)
        second.uninstall()
        assert threads_of_it() == []
    other.dispose()


def test_uninstalling_waits_for_a_look_that_is_on(soon: Watch) -> None:
    item = Item(lambda: time.sleep(0.3))
    watchdog.watch(item)
    assert item.looking.wait(PATIENCE)
    soon.uninstall()
    assert item.looked.is_set()
    assert threads_of_it() == []


def test_its_own_thread_may_uninstall(soon: Watch, engine: Engine) -> None:
    """As a reporter can, which is told of a connection that was never returned."""
    item = Item(soon.uninstall)
    watchdog.watch(item)
    assert item.looked.wait(PATIENCE)
    assert comes(lambda: threads_of_it() == [])
    sqla_watch.install(engine, settings=settings(SOON))
    with engine.connect() as connection:
        connection.execute(ONE)
        assert comes(lambda: checkout_of(connection).activities)


def test_uninstalling_while_others_check_out_leaves_neither_thread_nor_trace(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'any.db'}", pool_size=6, max_overflow=0)
    over = False

    def work() -> None:
        while not over:
            with engine.connect() as connection:
                connection.execute(ONE)

    workers = [threading.Thread(target=work) for _ in range(6)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    left = 0
    try:
        for worker in workers:
            worker.start()
        deadline = time.monotonic() + 4
        while time.monotonic() < deadline:
            watch = sqla_watch.install(engine, settings=settings(SOON))
            time.sleep(0.001)
            watch.uninstall()
            time.sleep(0.001)
            left += len(threads_of_it())
    finally:
        over = True
        for worker in workers:
            worker.join()
        sys.setswitchinterval(interval)
    assert left == 0
    assert threads_of_it() == []
    watch = sqla_watch.install(engine, settings=settings(SOON))
    connections = [engine.connect() for _ in range(6)]
    assert len(watch.snapshot().connections) == 6, "each is seen again"
    connections[0].execute(ONE)
    assert comes(lambda: checkout_of(connections[0]).activities), "and looked at"
    for connection in connections:
        connection.close()
    assert watch.snapshot().connections == ()
    engine.dispose()


def test_it_wakes_after_it_was_uninstalled_in_its_sleep(soon: Watch, engine: Engine) -> None:
    engine.connect().close()
    time.sleep(2.5)
    soon.uninstall()
    sqla_watch.install(engine, settings=settings(SOON))
    with engine.connect() as connection:
        connection.execute(ONE)
        assert comes(lambda: checkout_of(connection).activities)


def test_a_connection_that_was_out_before_the_watch_leaves_no_trace(shop_url: str) -> None:
    engine = create_engine(url_for(shop_url, "psycopg"), pool_size=1)
    for _ in range(2):
        connection = engine.connect()
        watch = sqla_watch.install(engine, settings=settings(SOON))
        connection.execute(ONE)
        watch.uninstall()
        connection.close()
    watch = sqla_watch.install(engine, settings=settings(SOON))
    with engine.connect() as connection:
        connection.execute(ONE)
        assert len(watch.snapshot().connections) == 1
        assert comes(lambda: checkout_of(connection).activities)
    assert watch.snapshot().connections == ()
    engine.dispose()


# It sleeps while there is nothing to look at, and takes no stack while nothing takes long


def test_no_stack_is_taken_while_nothing_takes_long(shop_url: str) -> None:
    engine = create_engine(url_for(shop_url, "psycopg"), pool_size=8)
    rules: Any = {rule: {"min_seconds": PATIENCE} for rule in LOOKING}
    sqla_watch.install(engine, settings=settings(rules, watchdog_seconds=0.005))
    before = watchdog.stacks

    def work() -> None:
        for _ in range(60):
            with engine.begin() as connection:
                connection.execute(ONE)
                time.sleep(0.002)

    async def works() -> None:
        async with watched_async_engine(shop_url, pool_size=8, rules=rules) as asynchronous:

            async def work() -> None:
                for _ in range(10):
                    async with asynchronous.begin() as connection:
                        await connection.execute(ONE)
                        await asyncio.sleep(0.002)

            await asyncio.gather(*(work() for _ in range(30)))

    workers = [threading.Thread(target=work) for _ in range(8)]
    for worker in workers:
        worker.start()
    asyncio.run(works())
    for worker in workers:
        worker.join()
    assert watchdog.running
    assert watchdog.stacks == before
    with engine.connect() as connection:
        sqla_watch.install(engine, settings=settings(SOON))
        connection.execute(ONE)
        assert comes(lambda: watchdog.stacks > before), "it would have"
    engine.dispose()


@has_thread_clocks
def test_it_sleeps_without_an_end_while_nothing_is_out_and_wakes_again(soon: Watch, engine: Engine) -> None:
    engine.connect().close()
    clock = processor_time()

    def is_asleep() -> bool:
        before = clock()
        time.sleep(0.3)
        return clock() == before

    assert comes(is_asleep)
    before = clock()
    time.sleep(1.2)
    assert clock() == before, "not a nanosecond"
    with engine.connect() as connection:
        connection.execute(ONE)
        assert comes(lambda: checkout_of(connection).activities)
        assert clock() > before
    assert comes(is_asleep)


@has_thread_clocks
def test_looks_that_are_dear_come_seldom(soon: Watch) -> None:
    """A thousandth of a processor is all that it takes, and some milliseconds at once at most."""

    class Dear:
        open = True

        def look(self, now: int, frames: Frames) -> int:
            frames()
            until = time.thread_time_ns() + 500_000
            while time.thread_time_ns() < until:
                pass
            return now + 1

    dear = Dear()
    watchdog.watch(dear)
    clock = processor_time()
    started, before, stacks = time.perf_counter(), clock(), watchdog.stacks
    time.sleep(5)
    dear.open = False
    assert watchdog.stacks > stacks + 3
    assert (clock() - before) / 1e9 < (time.perf_counter() - started) / 1_000 + 0.01


def test_an_idle_transaction_is_looked_at_soon_and_then_ever_less(soon: Watch, engine: Engine) -> None:
    with engine.connect() as connection:
        connection.execute(ONE)
        started = time.perf_counter()
        checkout = checkout_of(connection)
        assert comes(lambda: checkout.activities)
        first = time.perf_counter() - started
        time.sleep(2)  # sleeps in its transaction
        ((activities),) = checkout.activities.values()
        activities = activities[:]
    assert 0.1 <= first < 0.1 + 1
    assert 2 <= len(activities) <= 9  # at 0.1, 0.15, 0.23, … s
    sites = {activity.call_site for activity in activities[1:]}
    assert {location_of(site).line for site in sites} == {line_of("sleeps in its transaction")}  # type: ignore[union-attr]


def test_with_nobody_to_look_the_list_of_what_to_look_at_is_bounded(soon: Watch) -> None:
    """As in a process whose threads do not run while a library computes."""
    stuck = threading.Event()
    item = Item(lambda: stuck.wait(PATIENCE))
    watchdog.watch(item)
    assert item.looking.wait(PATIENCE)
    others = [Item(lambda: 0) for _ in range(25_000)]
    for other in others:
        watchdog.watch(other)
    assert len(watchdog._arrivals) <= 10_001
    for each in (item, *others):
        each.open = False
    stuck.set()
    assert comes(lambda: not watchdog._arrivals)


def test_what_is_over_before_it_wakes_is_kept_by_nobody(soon: Watch) -> None:
    stuck = threading.Event()
    item = Item(lambda: stuck.wait(PATIENCE))
    watchdog.watch(item)
    assert item.looking.wait(PATIENCE)
    other = Item(lambda: 0)
    kept = sys.getrefcount(other)
    watchdog.watch(other)
    assert sys.getrefcount(other) > kept
    watchdog.leave(other)
    assert sys.getrefcount(other) == kept
    watchdog.leave(other)  # as what was looked at already
    item.open = False
    stuck.set()


# It can be switched off


def idle_finding(engine: Engine) -> Any:
    """What is found of a transaction that is idle for longer than 0.1 s."""
    with sqla_watch.scope("idle") as scope, engine.connect() as connection:
        connection.execute(ONE)
        time.sleep(0.4)
        connection.execute(ONE)
    return only(scope)


def test_without_it_the_rule_still_finds_but_cannot_say_what_was_done(engine: Engine) -> None:
    sqla_watch.install(engine, settings=settings(SOON, watchdog_seconds=0))
    finding = idle_finding(engine)
    assert (finding.rule, finding.evidence["meanwhile"], finding.evidence["looks"]) == ("idle-in-transaction", "", 0)
    assert threads_of_it() == []


def test_with_it_the_rule_says_what_was_done(soon: Watch, engine: Engine) -> None:
    finding = idle_finding(engine)
    assert finding.evidence["meanwhile"] == "in time.sleep"
    assert finding.evidence["looks"] > 0


def test_there_is_none_where_no_rule_wants_to_know(engine: Engine) -> None:
    sqla_watch.install(engine, settings=settings(dict.fromkeys(LOOKING, "ignore")))
    with engine.connect() as connection:
        connection.execute(ONE)
        time.sleep(0.1)
        assert threads_of_it() == []


@pytest.mark.parametrize("rule", LOOKING)
def test_one_rule_that_wants_to_know_is_enough(engine: Engine, rule: str) -> None:
    sqla_watch.install(engine, settings=settings({each: "ignore" for each in LOOKING if each != rule}))
    with engine.connect():
        assert len(threads_of_it()) == 1


def test_it_looks_as_often_as_the_most_attentive_watch_asks(shop_url: str, engine: Engine) -> None:
    other = create_engine(shop_url)
    slow = sqla_watch.install(engine, settings=settings(watchdog_seconds=0.2))
    fast = sqla_watch.install(other, settings=settings(SOON, watchdog_seconds=0.02))
    assert (watchdog.interval, watchdog.idle) == (20_000_000, 100_000_000)
    fast.uninstall()
    assert (watchdog.interval, watchdog.idle) == (200_000_000, 500_000_000)
    slow.uninstall()
    assert watchdog.interval == 0
    other.dispose()


def test_switching_it_off_later_ends_its_looks(soon: Watch, engine: Engine) -> None:
    sqla_watch.install(engine, settings=settings(SOON, watchdog_seconds=0))
    before = watchdog.stacks
    with engine.connect() as connection:
        connection.execute(ONE)
        time.sleep(0.5)
        assert checkout_of(connection).activities == {}
    assert watchdog.stacks == before


@pytest.mark.parametrize("seconds", [0, 0.005, 0.05, 1, 10])
def test_seconds_that_can_be(seconds: float) -> None:
    given = Settings(watchdog_seconds=seconds).watchdog_seconds
    assert given == seconds
    assert isinstance(given, float)


@pytest.mark.parametrize("seconds", [-1, 0.0049, 10.1, float("nan"), float("inf")])
def test_seconds_that_cannot_be(seconds: float) -> None:
    with pytest.raises(SettingsError, match=r"Settings: watchdog_seconds is .*, but must be 0, or from 0\.005 to 10"):
        Settings(watchdog_seconds=seconds)


@pytest.mark.parametrize("seconds", [True, "0.1", None, [0.1]])
def test_seconds_that_are_no_number(seconds: Any) -> None:
    with pytest.raises(SettingsError, match=r"watchdog_seconds is .* but must be a number"):
        Settings(watchdog_seconds=seconds)


def test_seconds_come_from_code_file_and_environment_the_last_strongest(tmp_path: Path) -> None:
    file = tmp_path / "pyproject.toml"
    file.write_text("[tool.sqla_watch]\nwatchdog_seconds = 0.2\n")
    nothing: dict[str, str] = {}
    code = Settings(watchdog_seconds=0.3)
    assert Settings.load(code, environment=nothing, pyproject=tmp_path / "pyproject.toml").watchdog_seconds == 0.2
    environment = {"SQLA_WATCH_WATCHDOG_SECONDS": "0"}
    assert Settings.load(code, environment=environment, pyproject=file).watchdog_seconds == 0
    file.write_text("[tool.sqla_watch]\n")
    assert Settings.load(code, environment=nothing, pyproject=file).watchdog_seconds == 0.3
    assert Settings.load(environment=nothing, pyproject=file).watchdog_seconds == 0.05


@pytest.mark.parametrize(
    ("value", "message"),
    [("20", "must be 0, or from 0.005 to 10"), ('"often"', "must be a number"), ("true", "must be a number")],
)
def test_wrong_seconds_in_a_file_are_told_with_its_name(tmp_path: Path, value: str, message: str) -> None:
    file = tmp_path / "pyproject.toml"
    file.write_text(f"[tool.sqla_watch]\nwatchdog_seconds = {value}\n")
    with pytest.raises(SettingsError) as raised:
        Settings.load(pyproject=file, environment={})
    assert str(raised.value).startswith(str(file))
    assert message in str(raised.value)


@pytest.mark.parametrize("value", ["often", "", "0.001", "nan"])
def test_wrong_seconds_in_the_environment_are_told_with_their_name(tmp_path: Path, value: str) -> None:
    (tmp_path / "pyproject.toml").write_text("")
    with pytest.raises(SettingsError, match="SQLA_WATCH_WATCHDOG_SECONDS"):
        Settings.load(pyproject=tmp_path / "pyproject.toml", environment={"SQLA_WATCH_WATCHDOG_SECONDS": value})


# A fault of its own


@pytest.fixture
def said_by_us(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What our logger has said so far."""
    return lambda: [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


FAILED = "sqla_watch: the probe watchdog failed and is switched off; please report this"


def break_it() -> None:
    """Have it look at something that fails."""

    def fail() -> None:
        raise RuntimeError("broken on purpose")

    watchdog.watch(Item(fail))
    assert comes(lambda: not threads_of_it())


@pytest.mark.faults
def test_a_fault_is_said_once_and_ends_it_and_the_application_goes_on(
    soon: Watch, engine: Engine, said_by_us: Callable[[], list[str]]
) -> None:
    break_it()
    finding = idle_finding(engine)
    assert (finding.rule, finding.evidence["looks"]) == ("idle-in-transaction", 0)
    for _ in range(100):
        with engine.connect() as connection:
            assert connection.execute(ONE).scalar_one() == 1
    assert said_by_us() == [FAILED]
    assert threads_of_it() == []
    assert not watchdog._arrivals


@pytest.mark.faults
def test_what_has_failed_stays_off_when_another_engine_is_watched(soon: Watch, engine: Engine, shop_url: str) -> None:
    break_it()
    other = create_engine(url_for(shop_url, "psycopg"))
    sqla_watch.install(other, settings=settings(SOON))
    for _ in range(100):
        with engine.connect(), other.connect():
            pass
    other.dispose()
    assert threads_of_it() == []
    assert not watchdog._arrivals, "nobody comes for what is collected here"


@pytest.mark.faults
def test_it_is_there_again_after_the_next_installation(
    soon: Watch, engine: Engine, said_by_us: Callable[[], list[str]]
) -> None:
    break_it()
    soon.uninstall()
    sqla_watch.install(engine, settings=settings(SOON))
    assert idle_finding(engine).evidence["looks"] > 0
    break_it()
    assert said_by_us() == [FAILED, FAILED]


@pytest.mark.faults
def test_a_fault_in_the_look_at_a_connection_leaves_the_connection_alone(
    soon: Watch, engine: Engine, monkeypatch: pytest.MonkeyPatch, said_by_us: Callable[[], list[str]]
) -> None:
    def fail(checkout: Checkout) -> int:
        raise RuntimeError("broken on purpose")

    with monkeypatch.context() as patch, engine.connect() as connection:
        patch.setattr(Checkout, "idle_since", fail)
        assert comes(lambda: not threads_of_it())
        assert connection.execute(ONE).scalar_one() == 1
    with engine.begin() as connection:
        assert connection.execute(ONE).scalar_one() == 1
    assert said_by_us() == [FAILED]
    assert soon.snapshot().connections == ()


# Nothing of the application is kept


class Local:
    """Something in a function's local names."""


def test_what_is_in_a_function_that_was_looked_at_ends_with_it(soon: Watch, engine: Engine) -> None:
    kept: list[weakref.ref[Any]] = []

    def work() -> None:
        local = Local()
        with Session(engine) as session:
            order = session.get_one(Order, 1)
            kept.extend(map(weakref.ref, (local, session, order)))
            assert comes(lambda: watchdog.stacks >= before + 3)

    before = watchdog.stacks
    gc.disable()
    try:
        work()
        time.sleep(0.2)  # a round that was on, and has the frames of that moment, is over
        assert kept[0]() is None, "without the garbage collector"
    finally:
        gc.enable()
    gc.collect()
    assert [each() for each in kept] == [None, None, None]


def test_what_a_function_lets_go_of_while_it_is_looked_at_is_let_go(soon: Watch, engine: Engine) -> None:
    """Also where its variables are looked into, for who has a connection in hands after a request has ended."""
    left: list[Connection] = []

    def take() -> None:
        connection = engine.connect()
        connection.execute(ONE)
        left.append(connection)

    with sqla_watch.scope("request", kind="request"):
        take()
    local: Local | None = Local()
    kept = weakref.ref(local)
    before = watchdog.stacks
    assert comes(lambda: watchdog.stacks >= before + 3)
    left.pop().close()
    time.sleep(0.2)
    local = None
    assert kept() is None


@in_event_loop
async def test_what_is_in_a_task_that_was_looked_at_ends_with_it(shop_url: str) -> None:
    kept: list[weakref.ref[Any]] = []

    async def work() -> None:
        local = Local()
        async with engine.connect() as connection:
            await connection.execute(ONE)
            checkout = checkout_of(connection.sync_connection)  # type: ignore[arg-type]
            kept.append(weakref.ref(local))
            while len(checkout.activities.get(checkout.idle_since(), ())) < 2:
                await asyncio.sleep(0.02)

    async with watched_async_engine(shop_url, rules=SOON) as engine:
        task = asyncio.create_task(work())
        await asyncio.wait({task}, timeout=PATIENCE)
        kept.append(weakref.ref(task))
        del task
        gc.collect()
        assert [each() for each in kept] == [None, None]


class Value(str):
    """A parameter's value that can be watched."""

    __slots__ = ("__weakref__",)


def test_no_value_of_a_long_statement_is_kept(soon: Watch, engine: Engine) -> None:
    value = Value("hidden")
    kept = weakref.ref(value)
    before = watchdog.stacks
    with engine.connect() as connection:
        result = connection.execute(text("SELECT pg_sleep(0.6), :value"), {"value": value})
        result.all()
        assert watchdog.stacks > before
        del value, result
        gc.collect()
        assert kept() is None


def test_what_it_has_seen_are_places_in_code_only(soon: Watch, engine: Engine) -> None:
    with engine.connect() as connection:
        connection.execute(ONE)
        checkout = checkout_of(connection)
        assert comes(lambda: checkout.activities)
        ((first, *_),) = checkout.activities.values()
        assert isinstance(first, Activity)
        (parts,) = [first._asdict()]
        flat = [*parts.pop("call_site"), *parts.values()]
    assert {type(each).__name__ for each in flat} <= {"code", "int", "str", "bool", "NoneType"}


def test_a_connection_that_was_returned_is_let_go(soon: Watch, engine: Engine) -> None:
    for _ in range(20):
        with engine.connect() as connection:
            connection.execute(ONE)
    assert comes(lambda: not [each for each in gc.get_objects() if type(each) is Checkout])


# Whatever else happens while it looks


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_threads_end_tasks_are_cancelled_and_loops_are_closed_while_it_looks(shop_url: str) -> None:
    engine = create_engine(url_for(shop_url, "psycopg"), pool_size=8, max_overflow=0)
    watch = sqla_watch.install(engine, settings=settings(AT_ONCE, watchdog_seconds=0.005))
    before = watchdog.stacks
    over = time.monotonic() + 5
    errors: list[BaseException] = []

    def short(dice: Random) -> None:
        """A thread that may leave its connection to the one that has started it."""
        connection = engine.connect()
        connection.execute(ONE)
        time.sleep(dice.random() * 0.02)
        left.append(connection)

    left: list[Connection] = []

    def starts_threads() -> None:
        dice = Random(1)
        while time.monotonic() < over:
            threads = [threading.Thread(target=short, args=(dice,)) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            time.sleep(dice.random() * 0.02)  # they are out, and their threads are gone
            while left:
                left.pop().close()

    async def cancels(dice: Random) -> None:
        other = create_async_engine(url_for(shop_url, "asyncpg"), pool_size=2, max_overflow=0)
        sqla_watch.install(other, settings=settings(AT_ONCE, watchdog_seconds=0.005))

        async def task() -> None:
            async with other.connect() as connection:
                await connection.execute(ONE)
                await asyncio.sleep(dice.random() * 0.02)

        tasks = [asyncio.create_task(task()) for _ in range(8)]
        for each in tasks:
            await asyncio.sleep(dice.random() * 0.01)
            each.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)
        await other.dispose()

    def runs_loops() -> None:
        dice = Random(2)
        while time.monotonic() < over:
            asyncio.run(cancels(dice))

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    workers = [threading.Thread(target=guarded, args=(work,)) for work in (starts_threads, runs_loops)]
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers):
        str(watch.snapshot())
        time.sleep(0.01)
    gc.collect()  # SQLAlchemy leaves it to the collector to close a connection that was cancelled
    assert errors == []
    assert watchdog.running
    assert watchdog.stacks > before + 5
    assert watch.snapshot().connections == ()
    assert not pool_probe.out
    engine.dispose()


def collect(kept: list[Any]) -> None:
    """Have what is in a list collected."""
    kept.clear()
    gc.collect()


@pytest.mark.filterwarnings("ignore:.*was deleted while still open:ResourceWarning")  # psycopg's own
def test_a_loop_that_is_closed_with_a_connection_out_is_survived(shop_url: str) -> None:
    kept: list[Any] = []
    engine = create_async_engine(url_for(shop_url, "psycopg"))
    watch = sqla_watch.install(engine, settings=settings(SOON, watchdog_seconds=0.02))

    async def leave() -> None:
        connection = await engine.connect()
        await connection.execute(ONE)
        kept.append(connection)

    asyncio.run(leave())
    time.sleep(0.5)
    (connection,) = watch.snapshot().connections
    assert connection.state == "never returned"
    assert watchdog.running
    kept[0].sync_connection.connection.driver_connection.pgconn.finish()
    with pytest.warns(SAWarning, match="non-checked-in"):
        collect(kept)
    assert comes(lambda: watch.snapshot().connections == ())


def deep(levels: int, then: Callable[[], Any]) -> Any:
    """Call something from so many calls further down."""
    return deep(levels - 1, then) if levels else then()


async def deep_in_a_task(levels: int, seconds: float) -> None:
    if levels:
        await deep_in_a_task(levels - 1, seconds)
    else:
        await asyncio.sleep(seconds)  # deep in a task


DEEP = 400
"""Calls between the line that has the connection and the one that runs; a recursion over a tree has as many."""


def test_who_has_a_connection_is_still_there_far_above_a_deep_stack(soon: Watch, engine: Engine) -> None:
    with sqla_watch.scope("deep") as scope, engine.connect() as connection:
        connection.execute(ONE)
        (seen,) = deep(DEEP, lambda: (time.sleep(0.4), watch_of(soon))[1])
        connection.execute(ONE)
    assert seen.state == "idle in transaction"
    finding = only(scope)
    assert finding.evidence["meanwhile"] == "in time.sleep"


def watch_of(watch: Watch) -> Any:
    return watch.snapshot().connections


@in_event_loop
async def test_a_task_that_waits_deep_down_is_named_by_its_innermost_line(shop_url: str) -> None:
    async with watched_async_engine(shop_url, rules=SOON) as engine:
        with sqla_watch.scope("deep") as scope:
            async with engine.connect() as connection:
                await connection.execute(ONE)
                await deep_in_a_task(DEEP, 0.5)
                await connection.execute(ONE)
    finding = only(scope)
    assert finding.evidence["meanwhile"] == "in asyncio.sleep"
    (meanwhile,) = [each for each in finding.related if each.role.startswith("meanwhile")]
    assert meanwhile.location.line == line_of("deep in a task")


def test_a_connection_that_a_thread_has_left_is_not_in_the_hands_of_the_next_one(soon: Watch, engine: Engine) -> None:
    """The system gives the identifier of a thread that is gone to the next one."""
    engine.connect().close()  # so that the watchdog's own thread does not get it
    left: list[Connection] = []
    threads: list[threading.Thread] = []

    def work(leaves: bool) -> None:
        if leaves:
            connection = engine.connect()
            connection.execute(ONE)
            left.append(connection)
        else:
            time.sleep(0.4)

    for leaves in (True, False):
        thread = threading.Thread(target=work, args=(leaves,))
        threads.append(thread)
        thread.start()
        if leaves:
            thread.join()
    (seen,) = soon.snapshot().connections
    same = threads[0].ident == threads[1].ident
    threads[1].join()
    left[0].close()
    if not same:
        pytest.skip("the system gave another identifier")
    assert seen.state == "never returned"
    assert seen.location == seen.taken


def test_the_garbage_collector_may_run_at_any_moment(program: Any) -> None:
    """What it collects may let other threads run: in CPython 3.11 also while the stacks of all threads are taken."""
    lines = said(
        program(
            """
            class Late:
                def __init__(self):
                    self.itself = self
                def __del__(self):
                    time.sleep(0.001)

            def leaks():
                while True:
                    Late()
                    time.sleep(0.0005)

            def nap():
                time.sleep(0.0005)

            def works():
                while True:
                    nap()

            def looks():
                while True:
                    watch.snapshot()

            gc.set_threshold(100)
            held = [engine.connect() for _ in range(5)]
            for work in [leaks, looks, looks, *[works] * 40]:
                threading.Thread(target=work, daemon=True).start()
            threading.Timer(15, os._exit, [3]).start()  # needs the interpreter, too: a time-out for all that still runs
            end = time.monotonic() + 5
            while time.monotonic() < end:
                time.sleep(0.05)
            say(lived=True)
            os._exit(0)
            """
        )
    )
    assert lines == [{"lived": True}]


# What it costs those who are looked at


def test_being_looked_at_costs_the_application_next_to_nothing(soon: Watch) -> None:
    """It is one more entry in a list; half a microsecond would be a machine under load."""
    watchdog.watch(Item(lambda: None))
    item = Item(lambda: None)
    item.open = False
    best = min(_seconds_for_a_thousand(item) for _ in range(30))
    assert best / 1_000 < 2e-6


def _seconds_for_a_thousand(item: Item) -> float:
    started = time.perf_counter()
    for _ in range(1_000):
        watchdog.watch(item)
    return time.perf_counter() - started
