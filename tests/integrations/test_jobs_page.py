"""The examples of docs/jobs.md do what the page says; those of what is not installed here were tried by hand."""

from __future__ import annotations

import asyncio
import queue
import re
from datetime import datetime
from typing import Any

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

import sqla_watch
from sqla_watch import Scope, Settings, Watch
from sqla_watch.demo.models import Order
from tests.conftest import url_for
from tests.integrations.celery_service import leave_signals
from tests.integrations.serving import ROOT, eventually

pytestmark = [
    pytest.mark.filterwarnings("ignore::sqla_watch.SqlaWatchWarning"),
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:(celery|kombu|apscheduler|dramatiq|django)"),
]

PAGE = (ROOT / "docs" / "jobs.md").read_text(encoding="utf-8")
SECTIONS = {
    title: re.findall(r"```python\n(.*?)```", rest, re.DOTALL)
    for title, _, rest in (section.partition("\n") for section in PAGE.split("\n## ")[1:])
}


@pytest.fixture
def scopes(watch: Watch) -> list[Scope]:
    watch.settings = Settings(profile="test")
    closed: list[Scope] = []
    watch.reporters.append(closed.append)
    return closed


@pytest.fixture
def page(engine: Engine) -> dict[str, Any]:
    """What the examples take as given: the shop's engine and classes."""
    return {"engine": engine, "Session": Session, "AsyncSession": AsyncSession, "Order": Order, "select": select}


def run(title: str, names: dict[str, Any], number: int = 0) -> dict[str, Any]:
    (found,) = [blocks for heading, blocks in SECTIONS.items() if heading.startswith(title)]
    exec(compile(found[number], f"docs/jobs.md, {title}", "exec"), names)
    return names


def told(scopes: list[Scope]) -> list[tuple[str, str, int]]:
    return [(scope.name, scope.kind, scope.statements) for scope in scopes]


def test_every_example_is_tried_here_or_at_least_compiles() -> None:
    assert len(SECTIONS) == 9
    for title, blocks in SECTIONS.items():
        assert blocks, title
        for block in blocks:
            compile(block, title, "exec")


def test_the_first_example(page: dict[str, Any], scopes: list[Scope]) -> None:
    (example, *_) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(example, page)
    page["send_invoices"]()
    assert told(scopes) == [("send invoices", "job", 0)]


def test_celery(page: dict[str, Any], scopes: list[Scope]) -> None:
    try:
        names = run("Celery", page)
        assert names["invoice"].apply((4,)).get() == "new"
    finally:
        leave_signals()
    assert told(scopes) == [("shop.invoice", "task", 1)]


def test_rq(page: dict[str, Any], scopes: list[Scope]) -> None:
    assert run("RQ", page)["invoice"](4) == "new"
    assert told(scopes) == [("rq: invoice", "job", 1)]


def test_dramatiq(page: dict[str, Any], scopes: list[Scope]) -> None:
    import dramatiq
    from dramatiq.brokers.stub import StubBroker

    for number, expected in ((0, "dramatiq: invoice"), (1, "plain")):
        broker = StubBroker()
        dramatiq.set_broker(broker)
        names = run("Dramatiq", page, number)
        if number:
            broker.add_middleware(names["Watched"]())
            actor = dramatiq.actor(actor_name="plain")(names["invoice"].fn.__wrapped__)
        else:
            actor = names["invoice"]
        worker = dramatiq.Worker(broker, worker_timeout=10)
        worker.start()
        try:
            actor.send(4)
            broker.join(actor.queue_name, timeout=10_000)
            worker.join()
        finally:
            worker.stop()
        assert told(scopes) == [(expected, "job", 1)]
        scopes.clear()


def test_arq(page: dict[str, Any], shop_url: str, scopes: list[Scope]) -> None:
    async_engine = create_async_engine(url_for(shop_url, "asyncpg"))
    sqla_watch.install(async_engine)
    names = run("ARQ", {**page, "async_engine": async_engine})

    async def call() -> None:
        assert await names["WorkerSettings"].functions[0]({}, 4) == "new"
        await async_engine.dispose()

    asyncio.run(call())
    assert told(scopes) == [("arq: invoice", "job", 1)]


def test_apscheduler(page: dict[str, Any], scopes: list[Scope]) -> None:
    scheduler = run("APScheduler", page)["scheduler"]
    scheduler.start()
    (job,) = scheduler.get_jobs()
    job.modify(next_run_time=datetime.now(scheduler.timezone))
    eventually(lambda: scopes)
    scheduler.shutdown(wait=True)
    assert told(scopes) == [("nightly report", "job", 1)]


def test_flask_commands(page: dict[str, Any], scopes: list[Scope]) -> None:
    app = run("Flask", page)["app"]
    result = app.test_cli_runner().invoke(args=["close-month"])
    assert (result.exit_code, result.exception) == (0, None)
    assert told(scopes) == [("close-month", "job", 1)]


def test_django_commands(page: dict[str, Any], scopes: list[Scope]) -> None:
    run("Django", page)["Command"]().handle()
    assert told(scopes) == [("close_month", "job", 1)]


def test_a_loop_that_works_for_ever(page: dict[str, Any], scopes: list[Scope]) -> None:
    orders: queue.Queue[int | None] = queue.Queue()
    for order in (1, 2, 3, None):
        orders.put(order)
    run("A loop", page)["work"](orders)
    assert told(scopes) == [("invoice", "job", 1)] * 3
    assert [scope.findings for scope in scopes] == [[], [], []]


def test_threads(page: dict[str, Any], scopes: list[Scope]) -> None:
    assert run("Threads", page)["totals"] == [*range(1, 9)]
    assert told(scopes) == [("report", "job", 8)]
