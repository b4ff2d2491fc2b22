"""Ignoring on purpose: a block or a comment silences a rule, and one that is no longer needed is named."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

import sqla_watch
from sqla_watch import Ignore, SettingsError
from sqla_watch.demo.models import Customer, Order
from sqla_watch.ignores import active, entered

pytestmark = [pytest.mark.usefixtures("watch"), pytest.mark.filterwarnings("ignore::sqla_watch.SqlaWatchWarning")]


def unused_blocks() -> list[Ignore]:
    """Blocks alone: the comments further down in this file are ignores, too."""
    return [unused for unused in sqla_watch.unused_ignores() if not unused.comment]


def customers_of_orders(engine: Engine) -> None:
    with Session(engine) as session:
        for order in session.scalars(select(Order).order_by(Order.id).limit(4)):
            order.customer.name


def test_a_block_silences_a_rule(engine: Engine) -> None:
    with sqla_watch.scope("ignored") as scope, sqla_watch.ignore("n-plus-one", reason="few"):
        customers_of_orders(engine)
    assert scope.findings == []
    assert scope.statements == 5
    assert unused_blocks() == []


@pytest.mark.parametrize(("target", "silent"), [("Order.customer", True), ("Order.*", True), ("Order.items", False)])
def test_a_block_silences_one_target(engine: Engine, target: str, silent: bool) -> None:
    with sqla_watch.scope("ignored") as scope, sqla_watch.ignore("n-plus-one", target):
        customers_of_orders(engine)
    assert (scope.findings == []) is silent
    assert (unused_blocks() == []) is silent


def test_only_what_runs_inside_of_the_block_is_silenced(engine: Engine) -> None:
    with sqla_watch.scope("half") as scope:
        with sqla_watch.ignore("n-plus-one"):
            customers_of_orders(engine)
        customers_of_orders(engine)
    assert len(scope.findings) == 1
    assert scope.findings[0].evidence["statements"] == 4
    assert (active.get(), entered) == ((), [])


def test_an_ignore_in_one_task_does_not_reach_another(engine: Engine) -> None:
    async def quiet(started: asyncio.Event, done: asyncio.Event) -> None:
        with sqla_watch.ignore("n-plus-one"):
            started.set()
            await done.wait()

    async def story() -> None:
        started, done = asyncio.Event(), asyncio.Event()
        task = asyncio.create_task(quiet(started, done))
        await started.wait()
        with sqla_watch.ignore("blocking-call"):  # a synchronous engine in a coroutine
            customers_of_orders(engine)
        done.set()
        await task

    with sqla_watch.scope("tasks") as scope:
        asyncio.run(story())
    assert len(scope.findings) == 1


def test_a_comment_on_the_line_silences_a_rule(engine: Engine) -> None:
    with sqla_watch.scope("comment") as scope, Session(engine) as session:
        for order in session.scalars(select(Order).order_by(Order.id).limit(4)):
            order.customer.name  # sqla-watch: ignore[n-plus-one]
        for order_id in range(50, 57):
            session.get(  # sqla-watch: ignore[query-in-loop, slow-query]
                Order,
                order_id,
            )
        for customer_id in range(10, 17):
            session.get(Customer, customer_id)  # sqla-watch: ignore
    assert scope.findings == []


def test_a_comment_for_another_rule_silences_nothing(engine: Engine) -> None:
    text = "# sqla-watch: ignore[n-plus-one]"
    with sqla_watch.scope("other") as scope, Session(engine) as session:
        for order in session.scalars(select(Order).order_by(Order.id).limit(4)):
            order.customer.name  # sqla-watch: ignore[slow-query]
            assert text
    assert [finding.rule for finding in scope.findings] == ["n-plus-one"]


def test_ignores_that_silenced_nothing_are_named(engine: Engine) -> None:
    with sqla_watch.scope("unused"):
        with sqla_watch.ignore("n-plus-one", "Order.items", reason="at most three"):
            customers_of_orders(engine)
        with sqla_watch.ignore("slow-query"):
            pass
    blocks = unused_blocks()
    assert [(unused.rule, unused.target, unused.reason) for unused in blocks] == [
        ("n-plus-one", "Order.items", "at most three"),
        ("slow-query", "*", ""),
    ]
    assert "ignore of n-plus-one for Order.items (at most three) silenced nothing" in str(blocks[0])
    assert str(Path(__file__).name) in str(blocks[0])
    comments = [unused for unused in sqla_watch.unused_ignores() if unused.comment]
    assert {unused.rule for unused in comments} == {"n-plus-one", "slow-query", "query-in-loop", "*"}


def test_a_rule_that_does_not_exist_cannot_be_ignored() -> None:
    with pytest.raises(SettingsError, match=r"unknown rule 'n\+1'"):
        sqla_watch.ignore("n+1")
    with pytest.raises(SettingsError, match="did you mean 'slow-query'"):
        sqla_watch.ignore("slow-querry")


def test_a_loop_over_one_block_is_one_ignore(engine: Engine) -> None:
    for _ in range(5):
        with sqla_watch.ignore("slow-query"):
            pass
    assert len(unused_blocks()) == 1
