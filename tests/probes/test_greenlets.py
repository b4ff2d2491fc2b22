"""MissingGreenlet is looked at when it is made; the exception itself is the same as ever."""

from __future__ import annotations

import copy
import gc
import inspect
import logging
import pickle
import traceback
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.exc import InvalidRequestError, MissingGreenlet, StatementError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

import sqla_watch
from sqla_watch.demo.models import Customer, Order
from tests.probes.application import outcome
from tests.support import found, in_event_loop, watched_async_engine

pytestmark = [
    pytest.mark.filterwarnings("ignore::sqla_watch.SqlaWatchWarning"),
    # What SQLAlchemy could not await, it leaves behind.
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

Story = Callable[[AsyncSession], Awaitable[Any]]


@asynccontextmanager
async def unwatched(url: str, driver: str) -> AsyncIterator[AsyncEngine]:
    async with watched_async_engine(url, driver) as engine:
        sqla_watch.uninstall()
        yield engine


async def a_relationship(session: AsyncSession) -> Any:
    order = await session.get_one(Order, 1)
    return order.items


async def an_expired_column(session: AsyncSession) -> Any:
    order = await session.get_one(Order, 1)
    await session.commit()
    return order.status


async def a_deferred_column(session: AsyncSession) -> Any:
    customer = await session.get_one(Customer, 1)
    return customer.notes


async def a_synchronous_method(session: AsyncSession) -> Any:
    return session.sync_session.execute(select(Order.id))


async def a_connection_first(session: AsyncSession) -> Any:
    return session.sync_session.connection()


STORIES: list[Story] = [
    a_relationship, an_expired_column, a_deferred_column, a_synchronous_method, a_connection_first
]  # fmt: skip


def look(error: MissingGreenlet) -> list[Any]:
    """All that an application can see of the exception."""
    return [
        type(error),
        error.args,
        str(error),
        error.code,
        isinstance(error, InvalidRequestError),
        vars(error),
        type(error.__context__),
        type(error.__cause__),
        [frame.name for frame in traceback.extract_tb(error.__traceback__)][-1:],
    ]


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.__name__)
@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
@in_event_loop
async def test_the_exception_is_as_ever(shop_url: str, driver: str, story: Story) -> None:
    seen = []
    for make in (unwatched, watched_async_engine):
        async with make(shop_url, driver) as engine, AsyncSession(engine) as session:
            with pytest.raises((MissingGreenlet, StatementError)) as raised:
                await story(session)
            error: Any = raised.value  # of 2.1 on psycopg, where the statement has been made already
            seen.append([type(error), *look(getattr(error, "orig", error))])
            await session.rollback()
            assert await session.scalar(select(Order.id).where(Order.id == 7)) == 7  # and the session goes on
    assert seen[0] == seen[1]


@in_event_loop
async def test_copies_and_pickles_are_no_new_mistake(shop_url: str) -> None:
    """A result backend pickles the exception of a task, and its caller unpickles it."""
    async with watched_async_engine(shop_url) as engine:
        with sqla_watch.scope("request") as scope:
            async with AsyncSession(engine) as session:
                with pytest.raises(MissingGreenlet) as raised:
                    await a_relationship(session)
        for again in (pickle.loads(pickle.dumps(raised.value)), copy.copy(raised.value), copy.deepcopy(raised.value)):
            assert look(again)[:5] == look(raised.value)[:5]
        assert found(scope) == [("async-lazy-load", "Order.items")]
        with sqla_watch.scope("caller") as scope:
            pickle.loads(pickle.dumps(raised.value))
            copy.copy(raised.value)
            MissingGreenlet("made by a test of the application")
    assert found(scope) == []


@in_event_loop
async def test_subclasses_and_further_arguments_are_as_ever(shop_url: str) -> None:
    class Missing(MissingGreenlet):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, code="abcd")
            self.own = True

    def seen() -> list[Any]:
        return [
            inspect.signature(MissingGreenlet),
            MissingGreenlet("a", "b", code="xyz").code,
            str(MissingGreenlet("a", code="xyz")),
            (Missing("c").args, Missing("c").code, Missing("c").own),
            outcome(lambda: MissingGreenlet(nothing=1))[1:3],
        ]

    before = seen()
    async with watched_async_engine(shop_url):
        assert seen() == before


@pytest.mark.parametrize("first_off", [0, 1])
def test_the_class_is_as_before_when_the_last_watch_is_gone(engine: Engine, first_off: int) -> None:
    before = dict(vars(MissingGreenlet))
    watches = [sqla_watch.install(engine), sqla_watch.install()]
    assert "__init__" in vars(MissingGreenlet)
    watches.pop(first_off).uninstall()
    assert "__init__" in vars(MissingGreenlet)
    watches.pop().uninstall()
    assert dict(vars(MissingGreenlet)) == before


@in_event_loop
async def test_neither_object_nor_exception_is_kept(shop_url: str) -> None:
    async with watched_async_engine(shop_url) as engine:

        async def story() -> list[weakref.ref[Any]]:
            async with AsyncSession(engine) as session:
                order = await session.get_one(Order, 1)
                try:
                    return [order.items]  # type: ignore[list-item]
                except MissingGreenlet as error:
                    return [weakref.ref(each) for each in (session.sync_session, order, error)]

        with sqla_watch.scope("open") as scope:
            kept = await story()
            gc.collect()
            assert [reference() for reference in kept] == [None] * 3
        assert found(scope) == [("async-lazy-load", "Order.items")]


@in_event_loop
async def test_what_is_awaited_or_run_in_a_greenlet_is_none(shop_url: str) -> None:
    async with watched_async_engine(shop_url) as engine:
        with sqla_watch.scope("fine") as scope:
            async with AsyncSession(engine) as session:
                order = await session.get_one(Order, 1)
                assert await session.run_sync(lambda _: len(order.items)) == 4
                await session.commit()
                await session.refresh(order)
                assert order.status
    assert found(scope) == []


def test_a_synchronous_application_has_none(engine: Engine) -> None:
    sqla_watch.install(engine)
    with sqla_watch.scope("synchronous") as scope, Session(engine) as session:
        assert len(session.get_one(Order, 1).items) == 4
    assert scope.statements == 2
    assert found(scope) == []


@pytest.mark.faults
@in_event_loop
async def test_a_fault_is_said_once_and_the_exception_is_raised_as_ever(shop_url: str) -> None:
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("sqla_watch").addHandler(handler)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("sqla_watch.probes.greenlets._describe", lambda frame: 1 / 0)
        try:
            async with watched_async_engine(shop_url) as engine, AsyncSession(engine) as session:
                for _ in range(3):
                    with pytest.raises(MissingGreenlet) as raised:
                        await a_relationship(session)
                    assert raised.value.__context__ is None
        finally:
            logging.getLogger("sqla_watch").removeHandler(handler)
    assert said == ["sqla_watch: the probe missing greenlets failed and is switched off; please report this"]
