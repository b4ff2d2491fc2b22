"""With the instrumentations of frameworks, workers and drivers: one trace, properly nested, findings on its spans."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker
from fastapi import BackgroundTasks, FastAPI
from flask import Flask, Response
from opentelemetry.instrumentation.asyncpg import AsyncPGInstrumentor
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.instrumentation.flask import FlaskInstrumentor
from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware
from opentelemetry.sdk.trace import ReadableSpan
from sqlalchemy import Engine, select, text
from sqlalchemy.ext.asyncio import create_async_engine

import sqla_watch
from sqla_watch import Budget
from sqla_watch.demo.models import Customer
from sqla_watch.integrations.asgi import SqlaWatchMiddleware
from sqla_watch.integrations.celery import watch_tasks
from sqla_watch.integrations.wsgi import SqlaWatchMiddleware as WsgiMiddleware
from tests.conftest import url_for
from tests.integrations.celery_service import leave_signals
from tests.opentelemetry.conftest import Backend, Install
from tests.opentelemetry.test_findings import load_lazily

pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:(celery|kombu|billiard|vine|opentelemetry)")


FOUND = ("sqla_watch.n_plus_one", "sqla_watch.over_budget")
"""What is looked for; on a slow machine there may be a transaction that is idle for long, too."""


def events_of(span: ReadableSpan) -> list[str]:
    return [event.name for event in span.events if event.name in FOUND]


def below(span: ReadableSpan, backend: Backend) -> list[str]:
    """Names of the spans whose parent is this one."""
    return [each.name for each in backend.spans if each.parent and each.parent.span_id == span.context.span_id]


def assert_one_tree(backend: Backend) -> None:
    """All spans are of one trace, each within the time of what is above it, and none is open."""
    spans = {span.context.span_id: span for span in backend.spans}
    assert len({span.context.trace_id for span in spans.values()}) == 1
    assert len([span for span in spans.values() if span.parent is None]) == 1
    for span in spans.values():
        if span.parent is not None:
            above = spans[span.parent.span_id]
            assert above.start_time <= span.start_time  # type: ignore[operator]
    assert backend.counting.started == backend.counting.ended


# ASGI


def ask(app: FastAPI, path: str, backend: Backend, afterwards: Callable[[], Awaitable[None]] | None = None) -> None:
    """Ask the application, with FastAPI's instrumentation around it."""

    async def main() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop") as client:
            assert (await client.get(path)).status_code == 200
        if afterwards is not None:
            await afterwards()

    FastAPIInstrumentor.instrument_app(
        app, tracer_provider=backend.traces, meter_provider=backend.metrics, exclude_spans=["receive", "send"]
    )
    try:
        asyncio.run(main())
    finally:
        FastAPIInstrumentor.uninstrument_app(app)  # what it does to background tasks is for all applications


def test_a_budget_that_is_exceeded_is_an_event_of_the_request(
    engine: Engine, backend: Backend, install: Install
) -> None:
    install()
    app = FastAPI()
    app.add_middleware(SqlaWatchMiddleware, budgets={"GET /orders": Budget(max_statements=10)})
    app.get("/orders")(lambda: load_lazily(engine))
    ask(app, "/orders", backend)
    request = backend.one("GET /orders")
    assert sorted(events_of(request)) == ["sqla_watch.n_plus_one", "sqla_watch.over_budget"]
    told = sorted(name for name in below(request, backend) if name in FOUND)
    assert told == sorted(events_of(request))
    assert len(backend.named("sqla_watch.over_budget")) == 1
    assert_one_tree(backend)


def test_what_a_background_task_does_has_a_span_below_the_request_and_no_event(
    engine: Engine, backend: Backend, install: Install
) -> None:
    install()
    app = FastAPI()
    app.add_middleware(SqlaWatchMiddleware)

    @app.get("/orders")
    def orders(background: BackgroundTasks) -> None:
        background.add_task(load_lazily, engine)

    ask(app, "/orders", backend)
    request = backend.one("GET /orders")
    assert events_of(request) == []  # which has ended with its response
    finding = backend.one("sqla_watch.n_plus_one")
    assert finding.parent.span_id == request.context.span_id  # type: ignore[union-attr]
    assert finding.start_time > request.end_time  # type: ignore[operator]
    assert_one_tree(backend)


@pytest.mark.parametrize("how", ["to_thread", "executor", "bare thread"])
def test_threads_of_a_request(engine: Engine, backend: Backend, install: Install, how: str) -> None:
    install(fold=False)
    app = FastAPI()
    app.add_middleware(SqlaWatchMiddleware)

    def one() -> None:
        with engine.connect() as connection:
            connection.execute(select(Customer.name)).all()

    @app.get("/customers")
    async def customers() -> None:
        if how == "to_thread":
            await asyncio.gather(*(asyncio.to_thread(one) for _ in range(3)))
        elif how == "executor":
            with ThreadPoolExecutor(3) as executor:
                for _ in range(3):
                    executor.submit(contextvars.copy_context().run, one)
        else:
            for _ in range(3):
                thread = threading.Thread(target=one)
                thread.start()
                thread.join()

    ask(app, "/customers", backend)
    request = backend.one("GET /customers")
    statements = backend.named("SELECT customers")
    assert len(statements) == 3
    if how == "bare thread":  # which begins with an empty context: OpenTelemetry's own rule
        assert [span.parent for span in statements] == [None] * 3
    else:
        assert {span.parent.span_id for span in statements if span.parent} == {request.context.span_id}
        assert_one_tree(backend)


def test_asyncpg_below_ours_with_gather(shop_url: str, backend: Backend) -> None:
    driver = AsyncPGInstrumentor()
    driver.instrument(tracer_provider=backend.traces, skip_dep_check=True)
    engine = create_async_engine(url_for(shop_url, "asyncpg"), pool_recycle=3600)
    backend.install(engine, fold=False)
    app = FastAPI()
    app.add_middleware(SqlaWatchMiddleware)

    async def one(number: int) -> Any:
        with backend.tracer.start_as_current_span(f"part {number}"):
            async with engine.connect() as connection:
                query = text("SELECT pg_sleep(0.01), name FROM customers WHERE id = :id")
                return (await connection.execute(query, {"id": number})).one().name

    @app.get("/customers")
    async def customers() -> Any:
        return await asyncio.gather(*(one(number) for number in (1, 2, 3)))

    try:
        ask(app, "/customers", backend, engine.dispose)
    finally:
        driver.uninstrument()
    request = backend.one("GET /customers")
    assert sorted(name for name in below(request, backend) if name.startswith("part")) == ["part 1", "part 2", "part 3"]
    for number in (1, 2, 3):
        part = backend.one(f"part {number}")
        (ours,) = [
            span
            for span in backend.named("SELECT customers")
            if span.parent and span.parent.span_id == part.context.span_id
        ]
        assert below(ours, backend)  # asyncpg's
    assert_one_tree(backend)


# WSGI


def call(app: Any, path: str) -> bytes:
    """Serve one request as a WSGI server does."""
    environ = {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": path,
        "SCRIPT_NAME": "",
        "SERVER_NAME": "shop",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.url_scheme": "http",
        "wsgi.input": None,
        "wsgi.errors": None,
    }
    body = app(environ, lambda status, headers, *further: None)
    try:
        return b"".join(body)
    finally:
        if hasattr(body, "close"):
            body.close()


def flask_app(engine: Engine) -> Flask:
    app = Flask("shop")

    @app.get("/orders/<int:number>")
    def orders(number: int) -> str:
        load_lazily(engine)
        return str(number)

    @app.get("/stream")
    def stream() -> Response:
        def pieces() -> Iterator[bytes]:
            yield b"first"
            load_lazily(engine)

        return Response(pieces())

    return app


@pytest.mark.parametrize("outside", ["theirs", "ours"])
def test_flask(engine: Engine, backend: Backend, install: Install, outside: str) -> None:
    install()
    app = flask_app(engine)
    if outside == "theirs":
        app.wsgi_app = WsgiMiddleware(app.wsgi_app)  # type: ignore[method-assign]
    FlaskInstrumentor.instrument_app(app, tracer_provider=backend.traces, meter_provider=backend.metrics)
    if outside == "ours":
        app.wsgi_app = WsgiMiddleware(app.wsgi_app, budgets={"GET /orders/<int:number>": Budget(max_statements=5)})  # type: ignore[method-assign]
    assert call(app, "/orders/7") == b"7"
    request = backend.one("GET /orders/<int:number>")
    assert "SELECT items" in below(request, backend)
    assert "sqla_watch.n_plus_one" in below(request, backend)
    assert "sqla_watch.n_plus_one" in events_of(request)
    assert ("sqla_watch.over_budget" in events_of(request)) is (outside == "ours")
    assert_one_tree(backend)


@pytest.mark.parametrize("path", ["/orders/7", "/stream"])
def test_any_wsgi_application(engine: Engine, backend: Backend, install: Install, path: str) -> None:
    install()
    app = OpenTelemetryMiddleware(
        WsgiMiddleware(flask_app(engine)), tracer_provider=backend.traces, meter_provider=backend.metrics
    )
    assert call(app, path) in (b"7", b"first")
    (request,) = [span for span in backend.spans if span.parent is None]
    assert "sqla_watch.n_plus_one" in below(request, backend)
    assert events_of(request) == ["sqla_watch.n_plus_one"]
    assert "SELECT items" in below(request, backend)
    assert_one_tree(backend)


# Celery


@pytest.fixture
def celery_app() -> Iterator[Celery]:
    app = Celery("shop", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.broker_transport_options = {"polling_interval": 0.01}
    yield app
    leave_signals()


@pytest.mark.parametrize("first", ["ours", "theirs"])
@pytest.mark.parametrize("fails", [False, True])
def test_celery(
    engine: Engine, backend: Backend, install: Install, celery_app: Celery, first: str, fails: bool
) -> None:
    install()

    @celery_app.task(name="shop.load", shared=False)
    def load() -> None:
        load_lazily(engine)
        if fails:
            raise LookupError("of the application's own")

    instrumentor = CeleryInstrumentor()
    both: list[Callable[[], Any]] = [
        lambda: watch_tasks(default_budget=Budget(max_statements=5)),
        lambda: instrumentor.instrument(tracer_provider=backend.traces, skip_dep_check=True),
    ]
    for begin in both if first == "ours" else reversed(both):
        begin()
    try:
        with (
            start_worker(celery_app, pool="solo", perform_ping_check=False, shutdown_timeout=20),
            backend.tracer.start_as_current_span("POST /orders"),
        ):
            result = load.delay()
            if fails:
                with pytest.raises(LookupError):
                    result.get(timeout=20, interval=0.01)
            else:
                result.get(timeout=20, interval=0.01)
    finally:
        instrumentor.uninstrument()
    (task,) = [span for span in backend.spans if span.name == "run/shop.load"]
    found = {"sqla_watch.n_plus_one", "sqla_watch.over_budget"}
    assert {"SELECT orders", "SELECT items", *found} <= set(below(task, backend))
    assert sorted(events_of(task)) == sorted(found)
    said = dict(backend.one("sqla_watch.n_plus_one").attributes or {})
    assert said["sqla_watch.scope"] == "shop.load"
    assert_one_tree(backend)


def test_celery_without_telemetry(engine: Engine, celery_app: Celery) -> None:
    watch = sqla_watch.install(engine, settings=sqla_watch.Settings(profile="production", telemetry=False))
    closed: list[str] = []
    watch.reporters.append(lambda scope: closed.append(scope.name))

    @celery_app.task(name="shop.load_in_place", shared=False)
    def load() -> None:
        load_lazily(engine)

    watch_tasks()
    load.apply()
    assert closed == ["shop.load_in_place"]
