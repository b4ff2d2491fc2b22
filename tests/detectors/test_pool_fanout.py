"""pool-fanout: more tasks at once than the pool can serve are found where they ask; limited ones are not."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import create_engine, select, text
from sqlalchemy.exc import TimeoutError as LimitReached
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

import sqla_watch
from sqla_watch import Finding, Scope, Settings
from sqla_watch.demo.models import Order
from tests.support import found, in_event_loop, line_of, only, place, watched_async_engine

pytestmark = pytest.mark.filterwarnings("ignore::sqla_watch.SqlaWatchWarning")

both_drivers = pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
WORK = text("SELECT pg_sleep(0.15)")


def pair_of(url: str, driver: str = "asyncpg", **options: Any) -> Any:
    """A watched engine with two connections."""
    return watched_async_engine(url, driver, **{"pool_size": 2, "max_overflow": 0, **options})


async def total(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:  # each asks
        await connection.execute(WORK)


def assert_fans_out(finding: Finding, *, line: int, tasks: int) -> None:
    assert finding.rule == "pool-fanout"
    assert place(finding) == (__file__, line)
    assert finding.evidence["tasks"] == tasks
    assert finding.evidence["waiting_at_once"] == tasks - 2
    assert finding.evidence["waits"] == tasks - 2
    assert finding.evidence["pool_size"] == 2
    assert 0.1 <= finding.evidence["wait_seconds"] < 2  # type: ignore[operator]
    assert finding.message.startswith(
        f"{tasks} tasks asked for a connection at once, and the pool has 2: {tasks - 2} waited, up to "
    )
    assert "asyncio.Semaphore(2) or less" in finding.suggestion


@both_drivers
@in_event_loop
async def test_more_gathered_tasks_than_connections_are_found(shop_url: str, driver: str) -> None:
    async with pair_of(shop_url, driver) as engine:
        with sqla_watch.scope("gather") as scope:
            await asyncio.gather(*(total(engine) for _ in range(8)))
    assert_fans_out(only(scope), line=line_of("each asks"), tasks=8)
    assert only(scope).severity == "medium"
    assert only(scope).target == "total"
    assert only(scope).evidence["timeouts"] == 0


@both_drivers
@in_event_loop
async def test_tasks_of_a_group_with_sessions_are_found_in_a_request(shop_url: str, driver: str) -> None:
    async def price(engine: AsyncEngine) -> None:
        async with AsyncSession(engine) as session:
            await session.execute(WORK)  # each session asks

    async with pair_of(shop_url, driver) as engine:
        with sqla_watch.scope("GET /prices", kind="request") as scope:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(5):
                    tasks.create_task(price(engine))
    assert_fans_out(only(scope), line=line_of("each session asks"), tasks=5)


@both_drivers
@in_event_loop
async def test_time_outs_make_it_grave(shop_url: str, driver: str) -> None:
    async with pair_of(shop_url, driver, pool_timeout=0.2) as engine:
        with sqla_watch.scope("time-outs") as scope:
            results = await asyncio.gather(*(total(engine) for _ in range(8)), return_exceptions=True)
    failed = sum(isinstance(result, LimitReached) for result in results)
    finding = next(finding for finding in scope.findings if finding.rule == "pool-fanout")
    assert failed > 0
    assert finding.severity == "high"
    assert finding.evidence["timeouts"] == failed
    assert f", {failed} of them in vain" in finding.message
    assert [rule for rule, _ in found(scope) if rule == "pool-wait"] == []


@in_event_loop
async def test_of_several_lines_each_is_found(shop_url: str) -> None:
    async def other(engine: AsyncEngine) -> None:
        async with engine.connect() as connection:  # each of the others asks
            await connection.execute(WORK)

    async with pair_of(shop_url) as engine:
        with sqla_watch.scope("two lines") as scope:
            await asyncio.gather(*(total(engine) for _ in range(6)))
            await asyncio.gather(*(other(engine) for _ in range(6)))
    assert sorted(place(finding)[1] for finding in scope.findings) == sorted(
        [line_of("each asks"), line_of("each of the others asks")]
    )
    assert {finding.rule for finding in scope.findings} == {"pool-fanout"}


@in_event_loop
async def test_overflow_belongs_to_the_limit(shop_url: str) -> None:
    async with pair_of(shop_url, pool_size=1, max_overflow=1) as engine:
        await asyncio.gather(*(total(engine) for _ in range(2)))
        with sqla_watch.scope("overflow") as scope:
            await asyncio.gather(*(total(engine) for _ in range(8)))
    finding = next(finding for finding in scope.findings if finding.rule == "pool-fanout")
    assert "and the pool has 2" in finding.message


@in_event_loop
async def test_waits_in_turn_are_not_added_up(shop_url: str) -> None:
    """Three rounds of four tasks: no more than two of them wait at the same moment."""
    async with pair_of(shop_url) as engine:
        await asyncio.gather(total(engine), total(engine))  # opens both
        with sqla_watch.scope("rounds") as scope:
            for _ in range(3):
                await asyncio.gather(*(total(engine) for _ in range(4)))
    assert [finding.rule for finding in scope.findings] == ["pool-wait"]
    assert only(scope).evidence["waits"] > 2  # type: ignore[operator] # more than in one of the rounds


# Good code


async def story(url: str, work: Callable[[AsyncEngine], Awaitable[Any]], **options: Any) -> Scope:
    async with pair_of(url, **options) as engine:
        with sqla_watch.scope("good", kind="request") as scope:
            await work(engine)
    return scope


@in_event_loop
async def test_a_semaphore_of_the_pools_size_is_fine(shop_url: str) -> None:
    limit = asyncio.Semaphore(2)

    async def limited(engine: AsyncEngine) -> None:
        async with limit:
            await total(engine)

    async def work(engine: AsyncEngine) -> None:
        await asyncio.gather(*(limited(engine) for _ in range(8)))

    scope = await story(shop_url, work)
    assert found(scope) == []
    assert scope.connections == 8


@in_event_loop
async def test_workers_with_a_queue_are_fine(shop_url: str) -> None:
    async def work(engine: AsyncEngine) -> None:
        jobs = iter(range(8))

        async def worker() -> None:
            for _ in jobs:
                await total(engine)

        await asyncio.gather(worker(), worker())

    assert found(await story(shop_url, work)) == []


@in_event_loop
async def test_tasks_that_wait_shortly_are_fine(shop_url: str) -> None:
    async def lookup(engine: AsyncEngine) -> None:
        async with AsyncSession(engine) as session:
            await session.execute(text("SELECT pg_sleep(0.005)"))

    async def work(engine: AsyncEngine) -> None:
        await asyncio.gather(*(lookup(engine) for _ in range(8)))

    scope = await story(shop_url, work)
    assert found(scope) == []
    assert scope.wait_seconds > 0


@in_event_loop
async def test_as_many_tasks_as_the_pool_has_are_fine(shop_url: str) -> None:
    async def work(engine: AsyncEngine) -> None:
        await asyncio.gather(*(total(engine) for _ in range(5)))

    assert found(await story(shop_url, work, pool_size=2, max_overflow=3)) == []


@in_event_loop
async def test_tasks_that_share_one_read_are_fine(shop_url: str) -> None:
    """What is gathered works with what was read before: no connection is asked for."""

    async def price(order: Order) -> int:
        await asyncio.sleep(0.01)
        return order.id

    async def work(engine: AsyncEngine) -> None:
        async with AsyncSession(engine) as session:
            orders = (await session.scalars(select(Order).order_by(Order.id).limit(8))).all()
        await asyncio.gather(*(price(order) for order in orders))

    scope = await story(shop_url, work)
    assert scope.connections == 1
    assert found(scope) == []


@in_event_loop
async def test_one_or_two_tasks_that_wait_are_for_another_rule(shop_url: str) -> None:
    async def work(engine: AsyncEngine) -> None:
        await asyncio.gather(*(total(engine) for _ in range(4)))

    assert [rule for rule, _ in found(await story(shop_url, work))] == ["pool-wait"]


@in_event_loop
async def test_requests_of_one_task_each_do_not_fan_out(shop_url: str) -> None:
    """Eight users at once: none of the requests asks for more than one."""
    async with pair_of(shop_url) as engine:
        scopes = []

        async def serve() -> None:
            with sqla_watch.scope("GET /", kind="request") as scope:
                await total(engine)
            scopes.append(scope)

        await asyncio.gather(*(serve() for _ in range(8)))
    rules = {rule for scope in scopes for rule, _ in found(scope)}
    assert rules == {"pool-wait"}


def test_threads_are_for_another_rule(shop_url: str) -> None:
    engine = create_engine(shop_url, pool_size=2, max_overflow=0)
    sqla_watch.install(engine, settings=Settings(profile="test"))

    def report() -> None:
        with engine.connect() as connection:
            connection.execute(WORK)

    with sqla_watch.scope("threads") as scope:
        threads = [threading.Thread(target=contextvars.copy_context().run, args=(report,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    engine.dispose()
    assert [rule for rule, _ in found(scope)] == ["pool-wait"]


@in_event_loop
async def test_tasks_that_ask_while_their_parent_has_one_are_for_another_rule(shop_url: str) -> None:
    async def work(engine: AsyncEngine) -> None:
        async with engine.connect():
            await asyncio.gather(*(total(engine) for _ in range(6)))

    scope = await story(shop_url, work)
    assert [rule for rule, _ in found(scope) if rule.startswith(("pool", "nested"))] == ["nested-checkout"]


# Settings and ignores


@in_event_loop
async def test_a_block_silences_it(shop_url: str) -> None:
    async with pair_of(shop_url) as engine:
        known = sqla_watch.ignore("pool-fanout", reason="a nightly job of its own")
        with sqla_watch.scope("block") as scope, known as ignore:
            await asyncio.gather(*(total(engine) for _ in range(6)))
    assert found(scope) == []
    assert ignore.matched == 1


@in_event_loop
async def test_a_comment_silences_it(shop_url: str) -> None:
    async def quietly(engine: AsyncEngine) -> None:
        async with engine.connect() as connection:  # sqla-watch: ignore[pool-fanout]
            await connection.execute(WORK)

    async with pair_of(shop_url) as engine:
        with sqla_watch.scope("comment") as scope:
            await asyncio.gather(*(quietly(engine) for _ in range(6)))
    assert found(scope) == []


@in_event_loop
async def test_the_number_of_tasks_is_a_setting(shop_url: str) -> None:
    async def work(engine: AsyncEngine) -> None:
        await asyncio.gather(*(total(engine) for _ in range(6)))

    scope = await story(shop_url, work, rules={"pool-fanout": {"min_tasks": 5}})
    assert [rule for rule, _ in found(scope)] == ["pool-wait"]
    scope = await story(shop_url, work, rules={"pool-fanout": {"min_tasks": 4}})
    assert [rule for rule, _ in found(scope)] == ["pool-fanout"]


@in_event_loop
async def test_the_length_of_the_longest_wait_is_a_setting(shop_url: str) -> None:
    async def work(engine: AsyncEngine) -> None:
        await asyncio.gather(*(total(engine) for _ in range(6)))

    scope = await story(shop_url, work, rules={"pool-fanout": {"min_seconds": 5}})
    assert [rule for rule, _ in found(scope)] == ["pool-wait"]


@in_event_loop
async def test_switched_off_pool_wait_speaks(shop_url: str) -> None:
    async def work(engine: AsyncEngine) -> None:
        await asyncio.gather(*(total(engine) for _ in range(6)))

    scope = await story(shop_url, work, rules={"pool-fanout": "ignore"})
    assert [rule for rule, _ in found(scope)] == ["pool-wait"]


def test_the_profiles_are_alike() -> None:
    for profile in ("development", "test", "production"):
        rule = Settings(profile=profile).rule("pool-fanout")
        assert (rule["min_tasks"], rule["min_seconds"]) == (3, 0.1)
