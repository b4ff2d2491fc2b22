"""async-lazy-load: MissingGreenlet explained, by attribute, cause and the query that loaded the object."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.exc import MissingGreenlet, StatementError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import defer, selectinload

import sqla_watch
from sqla_watch import AsyncLazyLoadWarning, Finding, Scope, Settings
from sqla_watch.demo.models import Customer, Order
from sqla_watch.findings import FindingRaised
from tests.support import found, in_event_loop, line_of, only, place, watched_async_engine

pytestmark = [
    pytest.mark.filterwarnings("ignore::sqla_watch.SqlaWatchWarning"),
    # What SQLAlchemy could not await, it leaves behind.
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

Missing = (MissingGreenlet, StatementError)
"""SQLAlchemy 2.1 wraps it where psycopg was about to send the statement."""

drivers = pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])


async def handle(url: str, driver: str, story: Callable[[AsyncSession], Awaitable[Any]]) -> Scope:
    """Run a story that fails, as a framework's error handler would."""
    async with watched_async_engine(url, driver) as engine:
        with sqla_watch.scope("request", kind="request") as scope:
            async with AsyncSession(engine) as session:
                with pytest.raises(Missing):
                    await story(session)
                await session.rollback()
    return scope


def related(finding: Finding) -> list[tuple[str, int]]:
    return [(each.role, each.location.line) for each in finding.related]


@drivers
@in_event_loop
async def test_a_collection_is_named_with_its_query_and_its_option(shop_url: str, driver: str) -> None:
    async def story(session: AsyncSession) -> Any:
        orders = (await session.scalars(select(Order).limit(3))).all()  # the query
        return [len(order.items) for order in orders]  # touches the items

    finding = only(await handle(shop_url, driver, story))
    assert (finding.rule, finding.target, finding.severity) == ("async-lazy-load", "Order.items", "high")
    assert place(finding) == (__file__, line_of("touches the items"))
    assert finding.message.startswith("MissingGreenlet: Order.items was touched before it was loaded")
    assert finding.evidence == {"attribute": "Order.items", "cause": "relationship"}
    assert related(finding) == [("loaded by the query", line_of("the query"))]
    assert ".options(selectinload(Order.items))" in finding.suggestion
    assert f"test_async_lazy_load.py:{line_of('the query')}" in finding.suggestion
    assert "await order.awaitable_attrs.items" in finding.suggestion


@drivers
@in_event_loop
async def test_a_reference_is_joined(shop_url: str, driver: str) -> None:
    async def story(session: AsyncSession) -> Any:
        order = await session.get_one(Order, 1)
        return order.customer

    finding = only(await handle(shop_url, driver, story))
    assert finding.target == "Order.customer"
    assert ".options(joinedload(Order.customer))" in finding.suggestion


@drivers
@pytest.mark.parametrize("late", [False, True])
@in_event_loop
async def test_a_deferred_column(shop_url: str, driver: str, late: bool) -> None:
    async def story(session: AsyncSession) -> Any:
        if late:
            return (await session.scalars(select(Order).options(defer(Order.status)).limit(1))).one().status
        return (await session.get_one(Customer, 1)).notes

    finding = only(await handle(shop_url, driver, story))
    assert finding.evidence["cause"] == "deferred"
    assert finding.target == ("Order.status" if late else "Customer.notes")
    assert f".options(undefer({finding.target}))" in finding.suggestion


@drivers
@pytest.mark.parametrize("key", ["status", "customer", "id"])
@in_event_loop
async def test_what_a_commit_expired(shop_url: str, driver: str, key: str) -> None:
    async def story(session: AsyncSession) -> Any:
        order = await session.get_one(Order, 1)
        await session.commit()
        return getattr(order, key)  # expired

    finding = only(await handle(shop_url, driver, story))
    assert finding.target == f"Order.{key}"
    assert place(finding) == (__file__, line_of("expired"))
    assert finding.evidence["cause"] == "expired"
    assert "expire_on_commit=False" in finding.suggestion
    assert "await session.refresh(order)" in finding.suggestion


@drivers
@in_event_loop
async def test_a_synchronous_method(shop_url: str, driver: str) -> None:
    async def story(session: AsyncSession) -> Any:
        return session.sync_session.get(Order, 1)  # synchronous

    finding = only(await handle(shop_url, driver, story))
    assert finding.target == "a synchronous method"
    assert place(finding) == (__file__, line_of("synchronous"))
    assert finding.evidence["cause"] == "synchronous call"
    assert "await session.run_sync(function)" in finding.suggestion
    assert finding.related == ()


class Shown:
    """A serializer, far from the query."""

    def __init__(self, order: Order) -> None:
        self.order = order

    def to_dict(self) -> dict[str, Any]:
        return {"id": self.order.id, "items": self.items()}

    def items(self) -> list[int]:
        return [item.id for item in self.order.items]  # in the serializer


@drivers
@in_event_loop
async def test_a_serializer_far_from_the_query(shop_url: str, driver: str) -> None:
    async def story(session: AsyncSession) -> Any:
        order = await session.get_one(Order, 1)  # queried here
        await asyncio.sleep(0)
        return Shown(order).to_dict()

    finding = only(await handle(shop_url, driver, story))
    assert place(finding) == (__file__, line_of("in the serializer"))
    assert related(finding) == [("loaded by the query", line_of("queried here"))]


@drivers
@in_event_loop
async def test_the_same_line_is_told_once_and_different_attributes_each(shop_url: str, driver: str) -> None:
    async def story(session: AsyncSession) -> Any:
        orders = (await session.scalars(select(Order).limit(4))).all()
        for order in orders:
            for key in ("items", "customer"):
                with pytest.raises(Missing):
                    getattr(order, key)
        return orders[0].items

    scope = await handle(shop_url, driver, story)
    assert sorted(target for _, target in found(scope)) == ["Order.customer", "Order.items", "Order.items"]


@drivers
@in_event_loop
async def test_what_was_loaded_awaited_or_kept_is_silent(shop_url: str, driver: str) -> None:
    async with watched_async_engine(shop_url, driver) as engine:
        make = async_sessionmaker(engine, expire_on_commit=False)
        with sqla_watch.scope("good") as scope:
            async with make() as session:
                query = select(Order).limit(3).options(selectinload(Order.items))
                orders = (await session.scalars(query)).all()
                await session.commit()
                assert [len(order.items) for order in orders] == [4, 4, 4]
                assert orders[0].status
                await session.refresh(orders[0], ["customer"])
                assert orders[0].customer.name
                assert await session.run_sync(lambda _: orders[1].customer.name)
    assert found(scope) == []


@in_event_loop
async def test_without_a_scope_it_is_told_all_the_same(shop_url: str) -> None:
    told: list[Finding] = []
    async with watched_async_engine(shop_url) as engine:
        sqla_watch.install(engine).reporters.append(lambda scope: told.extend(scope.findings))
        async with AsyncSession(engine) as session:
            order = await session.get_one(Order, 1)
            with pytest.raises(MissingGreenlet):
                order.items
    assert [(finding.rule, finding.target) for finding in told] == [("async-lazy-load", "Order.items")]


@in_event_loop
async def test_it_can_be_ignored_and_raised(shop_url: str) -> None:
    async with watched_async_engine(shop_url) as engine, AsyncSession(engine) as session:
        order = await session.get_one(Order, 1)
        with sqla_watch.scope("ignored") as scope:
            with sqla_watch.ignore("async-lazy-load", "Order.items", reason="tried"), pytest.raises(MissingGreenlet):
                order.items
            with pytest.raises(MissingGreenlet):
                order.customer  # sqla-watch: ignore[async-lazy-load]
        assert found(scope) == []
        raising = Settings(profile="test", rules={"async-lazy-load": "raise"})
        scope = sqla_watch.scope("raised", settings=raising)
        with pytest.raises(FindingRaised, match=r"Order\.items"), scope, pytest.raises(MissingGreenlet):
            order.items


@in_event_loop
async def test_the_warning_has_its_own_class(shop_url: str) -> None:
    async def story(session: AsyncSession) -> Any:
        return (await session.get_one(Order, 1)).items

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        await handle(shop_url, "asyncpg", story)
    assert [each.category for each in caught if issubclass(each.category, UserWarning)] == [AsyncLazyLoadWarning]
