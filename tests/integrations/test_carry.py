"""What runs elsewhere for a scope: threads and executors with `carry`, tasks and `to_thread` by themselves."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Engine, text

import sqla_watch
from sqla_watch import Scope, Watch
from sqla_watch.integrations.asgi import SqlaWatchMiddleware
from sqla_watch.scopes import current
from tests.support import in_event_loop

pytestmark = pytest.mark.filterwarnings("ignore::sqla_watch.SqlaWatchWarning")


@pytest.fixture
def scopes(watch: Watch) -> list[Scope]:
    closed: list[Scope] = []
    watch.reporters.append(closed.append)
    return closed


def ask(engine: Engine, number: int = 1) -> int:
    with engine.connect() as connection:
        return int(connection.execute(text("SELECT CAST(:number AS integer)"), {"number": number}).scalar_one())


def in_thread(function: Callable[..., Any], *arguments: Any) -> None:
    thread = threading.Thread(target=function, args=arguments)
    thread.start()
    thread.join()


def test_a_thread_begins_without_the_scope_and_carry_brings_it(engine: Engine, scopes: list[Scope]) -> None:
    with sqla_watch.scope("report") as scope:
        in_thread(ask, engine)
        assert (scope.statements, [each.kind for each in scopes]) == (0, ["implicit"])
        in_thread(sqla_watch.carry(ask), engine)
        assert scope.statements == 1


def test_an_executor_runs_in_the_scope_of_the_call_and_its_threads_forget_it(
    engine: Engine, scopes: list[Scope]
) -> None:
    with ThreadPoolExecutor(4) as executor:
        for name in ("first", "second"):
            with sqla_watch.scope(name) as scope:
                numbers = executor.map(sqla_watch.carry(ask), [engine] * 12, range(12))
                assert list(numbers) == [*range(12)]
                assert scope.statements == 12
            assert {executor.submit(current.get).result() for _ in range(20)} == {None}
    assert [(scope.name, scope.statements) for scope in scopes] == [("first", 12), ("second", 12)]


def test_what_two_requests_hand_to_one_executor_does_not_mix(engine: Engine, scopes: list[Scope]) -> None:
    with ThreadPoolExecutor(4) as executor:

        def request(name: str, times: int) -> None:
            with sqla_watch.scope(name):
                carried = sqla_watch.carry(ask)
                for future in [executor.submit(carried, engine) for _ in range(times)]:
                    future.result()

        threads = [threading.Thread(target=request, args=(f"request {times}", times)) for times in (3, 7, 11)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted((scope.name, scope.statements) for scope in scopes) == [
        ("request 11", 11),
        ("request 3", 3),
        ("request 7", 7),
    ]


def test_it_is_the_scope_where_carry_was_called_not_where_the_function_runs(
    engine: Engine, scopes: list[Scope]
) -> None:
    with sqla_watch.scope("outer") as outer:
        carried = sqla_watch.carry(ask)
        with sqla_watch.scope("inner") as inner:
            carried(engine)
            assert current.get() is inner
    assert (inner.statements, outer.statements) == (0, 1)


def test_a_scope_that_is_opened_in_the_carried_function_is_inside_of_the_carried_one(
    engine: Engine, scopes: list[Scope]
) -> None:
    @sqla_watch.scope("part")
    def part() -> None:
        ask(engine)

    with sqla_watch.scope("whole") as whole:
        in_thread(sqla_watch.carry(part))
    assert [(scope.name, scope.statements) for scope in scopes] == [("part", 1), ("whole", 1)]
    assert scopes[0].parent is whole


def test_carried_functions_may_carry_others(engine: Engine, scopes: list[Scope]) -> None:
    def outer() -> None:
        ask(engine)
        in_thread(sqla_watch.carry(ask), engine)

    with sqla_watch.scope("report") as scope:
        in_thread(sqla_watch.carry(outer))
    assert scope.statements == 2


def test_arguments_results_and_exceptions_pass_and_the_scope_is_left(engine: Engine, watch: Watch) -> None:
    def add(one: int, *, other: int) -> int:
        """Add."""
        return one + other

    def fail() -> None:
        raise KeyError("own")

    with sqla_watch.scope("report"):
        carried, failing = sqla_watch.carry(add), sqla_watch.carry(fail)
    assert carried(1, other=2) == 3
    assert (carried.__name__, carried.__doc__) == ("add", "Add.")
    with pytest.raises(KeyError, match="own"):
        failing()
    assert current.get() is None


def test_without_a_scope_there_is_nothing_to_carry(engine: Engine, scopes: list[Scope]) -> None:
    carried = sqla_watch.carry(ask)
    with sqla_watch.scope("other") as other:
        carried(engine)
    assert other.statements == 0
    assert [scope.kind for scope in scopes] == ["implicit", "block"]


def test_what_runs_after_the_scope_is_none_of_it(engine: Engine, scopes: list[Scope]) -> None:
    with sqla_watch.scope("over") as scope:
        carried = sqla_watch.carry(ask)
    in_thread(carried, engine)
    assert scope.statements == 0
    assert [scope.kind for scope in scopes] == ["block", "implicit"]


def test_only_a_function_can_be_carried() -> None:
    with pytest.raises(TypeError, match=r"carry\(\) takes a function, not 7"):
        sqla_watch.carry(7)  # type: ignore[arg-type]


def test_a_generator_function_is_refused_because_its_body_runs_elsewhere() -> None:
    def numbers() -> Iterator[int]:
        yield 1

    async def later() -> AsyncIterator[int]:
        yield 1

    for each in (numbers, later):
        with pytest.raises(TypeError, match=rf"carry\(\) cannot take the generator function .*{each.__name__}"):
            sqla_watch.carry(each)


def test_a_coroutine_of_another_loop_is_in_the_scope(engine: Engine, watch: Watch) -> None:
    async def part() -> None:
        ask(engine)
        await asyncio.sleep(0)
        await asyncio.create_task(asyncio.to_thread(ask, engine))

    with sqla_watch.scope("report") as scope:
        carried = sqla_watch.carry(part)
        in_thread(lambda: asyncio.run(carried()))
        assert scope.statements == 2
        assert current.get() is scope


def test_a_copied_context_has_the_scope_too(engine: Engine, watch: Watch) -> None:
    with sqla_watch.scope("report") as scope:
        in_thread(contextvars.copy_context().run, ask, engine)
    assert scope.statements == 1


@in_event_loop
async def test_tasks_and_to_thread_have_it_by_themselves(engine: Engine, watch: Watch) -> None:
    with sqla_watch.scope("report") as scope:
        await asyncio.to_thread(ask, engine)
        await asyncio.gather(*(asyncio.create_task(asyncio.to_thread(ask, engine)) for _ in range(3)))
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.to_thread(ask, engine))
        assert scope.statements == 5
        await asyncio.get_running_loop().run_in_executor(None, ask, engine)  # this does not
        assert scope.statements == 5
        await asyncio.get_running_loop().run_in_executor(None, sqla_watch.carry(ask), engine)
    assert scope.statements == 6


@in_event_loop
async def test_a_request_that_is_not_in_the_sample_is_carried_as_that(engine: Engine, scopes: list[Scope]) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, sqla_watch.carry(ask), engine)

    scope = {"type": "http", "method": "GET", "path": "/"}
    await SqlaWatchMiddleware(app, sample_rate=0)(scope, None, None)  # type: ignore[arg-type]
    assert scopes == []
