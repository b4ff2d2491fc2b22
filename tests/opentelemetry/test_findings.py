"""Findings as spans and as events on the request's span, and the metrics of pools, transactions and findings."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from opentelemetry.trace import SpanKind, get_current_span
from sqlalchemy import Engine, create_engine, select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

import sqla_watch
from sqla_watch import Finding, Scope, Severity
from sqla_watch.demo.models import Customer, Order
from sqla_watch.integrations.asgi import SqlaWatchMiddleware
from sqla_watch.integrations.wsgi import SqlaWatchMiddleware as WsgiMiddleware
from tests.conftest import url_for
from tests.opentelemetry.conftest import Backend, Install


def load_lazily(engine: Engine) -> None:
    with Session(engine) as session:
        for order in session.scalars(select(Order)):
            order.items


def test_a_finding_is_a_span_below_the_request_and_an_event_on_it(
    engine: Engine, backend: Backend, install: Install
) -> None:
    install()
    with backend.tracer.start_as_current_span("GET /orders") as request:
        with (
            sqla_watch.scope("GET /orders", kind="request") as scope,
            backend.tracer.start_as_current_span("load"),
        ):
            load_lazily(engine)
        request_id = request.get_span_context().span_id
    (finding,) = [each for each in scope.findings if each.rule == "n-plus-one"]
    span = backend.one("sqla_watch.n_plus_one")
    assert span.kind is SpanKind.INTERNAL
    assert span.parent is not None
    assert span.parent.span_id == request_id
    said = dict(span.attributes or {})
    assert said["sqla_watch.rule"] == "n-plus-one"
    assert said["sqla_watch.severity"] == "high"
    assert said["sqla_watch.target"] == "Order.items"
    assert said["sqla_watch.scope"] == "GET /orders"
    assert said["sqla_watch.suggestion"] == finding.suggestion
    assert ".options(selectinload(Order.items))" in finding.suggestion
    assert said["sqla_watch.evidence.distinct_parents"] == 100
    assert said["sqla_watch.statements"] == 100
    assert said["code.file.path"] == __file__
    assert said["code.line.number"] == finding.location.line  # type: ignore[union-attr]
    assert "db.query.text" not in said  # which backends take for a call of the database
    # It covers the loads, and nothing before or after them.
    loads = backend.one("SELECT items")
    assert abs(span.start_time - loads.start_time) < 20e6
    assert abs(span.end_time - loads.end_time) < 20e6
    (event,) = [each for each in backend.one("GET /orders").events if each.name == "sqla_watch.n_plus_one"]
    assert dict(event.attributes or {}) == said


def test_a_finding_of_a_scope_inside_is_told_once(engine: Engine, backend: Backend, install: Install) -> None:
    install()
    with sqla_watch.scope("outer"), sqla_watch.scope("inner"):
        load_lazily(engine)
    assert len(backend.named("sqla_watch.n_plus_one")) == 1
    points = backend.points("sqla_watch.findings")
    (point,) = [each for each in points if each.attributes["sqla_watch.rule"] == "n-plus-one"]
    assert point.value == 1
    assert dict(point.attributes) == {
        "sqla_watch.rule": "n-plus-one",
        "sqla_watch.severity": "high",
        "sqla_watch.target": "Order.items",
        "sqla_watch.scope": "inner",
    }


def test_installed_twice_all_is_told_once(engine: Engine, backend: Backend, install: Install) -> None:
    install()
    backend.install(None)  # every engine of the process
    install()
    load_lazily(engine)
    assert len(backend.named("sqla_watch.n_plus_one")) == 1
    assert len(backend.named("SELECT items")) == 1
    assert sum(point.count for point in backend.points("db.client.operation.duration")) == 101
    assert backend.counting.started == backend.counting.ended


def test_without_a_span_around_a_finding_has_a_trace_of_its_own(
    engine: Engine, backend: Backend, install: Install
) -> None:
    install(statements="none")
    with sqla_watch.scope("script"):
        load_lazily(engine)
    assert backend.one("sqla_watch.n_plus_one").parent is None


def test_findings_can_be_left_out(engine: Engine, backend: Backend, install: Install) -> None:
    install(findings=False)
    load_lazily(engine)
    assert not [span for span in backend.spans if span.name.startswith("sqla_watch")]


def test_with_fastapi_there_is_one_tree(engine: Engine, backend: Backend, install: Install) -> None:
    instrumentation = pytest.importorskip("opentelemetry.instrumentation.fastapi")
    install(transactions=True)
    app = FastAPI()
    app.add_middleware(SqlaWatchMiddleware)

    @app.get("/orders/{number}")
    def orders(number: int) -> int:
        load_lazily(engine)
        return number

    instrumentation.FastAPIInstrumentor.instrument_app(
        app, tracer_provider=backend.traces, meter_provider=backend.metrics
    )

    async def ask() -> Any:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop") as client:
            return (await client.get("/orders/7")).json()

    assert asyncio.run(ask()) == 7
    request = backend.one("GET /orders/{number}")
    finding = backend.one("sqla_watch.n_plus_one")
    transaction = backend.one("sqla_watch.transaction")
    assert finding.parent.span_id == transaction.parent.span_id == request.context.span_id  # type: ignore[union-attr]
    for name in ("SELECT orders", "SELECT items", "ROLLBACK"):
        assert backend.one(name).parent.span_id == transaction.context.span_id  # type: ignore[union-attr]
    assert "sqla_watch.n_plus_one" in [event.name for event in request.events]
    assert dict(finding.attributes or {})["sqla_watch.scope"] == "GET /orders/{number}"


def test_a_transaction_has_its_commit_apart(engine: Engine, backend: Backend, install: Install) -> None:
    install(transactions=True)
    with backend.tracer.start_as_current_span("POST /") as request, Session(engine) as session:
        session.scalar(select(Customer.id))
        with backend.tracer.start_as_current_span("inside"):
            session.scalar(select(Order.id))
        time.sleep(0.03)
        session.commit()
        assert get_current_span() is request
    transaction, commit = backend.one("sqla_watch.transaction"), backend.one("COMMIT")
    assert transaction.parent.span_id == request.get_span_context().span_id  # type: ignore[union-attr]
    assert commit.parent.span_id == transaction.context.span_id  # type: ignore[union-attr]
    assert commit.kind is SpanKind.CLIENT
    assert dict(transaction.attributes or {})["sqla_watch.transaction.outcome"] == "commit"
    assert dict(transaction.attributes or {})["sqla_watch.statements"] == 2
    assert backend.one("SELECT customers").parent.span_id == transaction.context.span_id  # type: ignore[union-attr]
    inside = backend.one("inside")
    assert backend.one("SELECT orders").parent.span_id == inside.context.span_id  # type: ignore[union-attr]
    (duration,) = backend.points("sqla_watch.transaction.duration")
    (idle,) = backend.points("sqla_watch.transaction.idle")
    assert dict(duration.attributes)["sqla_watch.transaction.outcome"] == "commit"
    assert 0.03 <= idle.sum <= duration.sum < 1


def test_autocommit_has_no_transaction(engine: Engine, backend: Backend, install: Install) -> None:
    install(transactions=True)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(select(Customer.id))
    assert not backend.named("sqla_watch.transaction")
    assert not backend.points("sqla_watch.transaction.duration")


def unsampled(function: Any) -> None:
    """Run something in a request that is not in the middleware's sample."""

    def app(environ: Any, start_response: Any) -> list[bytes]:
        function()
        return []

    WsgiMiddleware(app, sample_rate=0)({"REQUEST_METHOD": "GET", "PATH_INFO": "/"}, lambda *arguments: None)


def test_transactions_that_are_not_in_the_sample_are_told_all_the_same(
    engine: Engine, backend: Backend, install: Install
) -> None:
    install(transactions=True)

    def work() -> None:
        with Session(engine) as session:
            session.scalar(select(Customer.id))
            time.sleep(0.02)
            session.scalar(select(Order.id))
            session.commit()

    with backend.tracer.start_as_current_span("GET /") as request:
        unsampled(work)
    transaction = backend.one("sqla_watch.transaction")
    assert transaction.parent.span_id == request.get_span_context().span_id  # type: ignore[union-attr]
    assert dict(transaction.attributes or {})["sqla_watch.statements"] == 2
    assert backend.one("COMMIT").parent.span_id == transaction.context.span_id  # type: ignore[union-attr]
    (duration,) = backend.points("sqla_watch.transaction.duration")
    (idle,) = backend.points("sqla_watch.transaction.idle")
    assert dict(duration.attributes)["sqla_watch.transaction.outcome"] == "commit"
    assert 0.02 <= idle.sum <= duration.sum < 1
    assert not [span for span in backend.spans if span.name == "sqla_watch.n_plus_one"]


def test_autocommit_that_is_not_in_the_sample_has_no_transaction(
    engine: Engine, backend: Backend, install: Install
) -> None:
    install(transactions=True)

    def work() -> None:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(select(Customer.id))

    unsampled(work)
    assert [span.name for span in backend.spans] == ["SELECT customers"]
    assert not backend.points("sqla_watch.transaction.duration")


@pytest.mark.parametrize("prepares", [True, False])
@pytest.mark.parametrize("commits", [True, False])
def test_two_phases(server_that_prepares: str, backend: Backend, prepares: bool, commits: bool) -> None:
    engine = create_engine(url_for(server_that_prepares, "psycopg"), pool_recycle=3600)
    backend.install(engine, transactions=True)
    with backend.tracer.start_as_current_span("POST /") as request, engine.connect() as connection:
        transaction = connection.begin_twophase()
        connection.execute(text("CREATE TABLE IF NOT EXISTS things (id int)"))
        if prepares:
            transaction.prepare()
        if commits:
            transaction.commit()
        else:
            transaction.rollback()
    engine.dispose()
    span = backend.one("sqla_watch.transaction")
    assert span.parent.span_id == request.get_span_context().span_id  # type: ignore[union-attr]
    below = [each.name for each in backend.spans if each.parent and each.parent.span_id == span.context.span_id]
    phases = ["PREPARE TRANSACTION"] if prepares else []
    assert below == ["CREATE", *phases, "COMMIT" if commits else "ROLLBACK"]
    outcome = "commit" if commits else "rollback"
    assert dict(span.attributes or {})["sqla_watch.transaction.outcome"] == outcome
    (duration,) = backend.points("sqla_watch.transaction.duration")
    assert (duration.count, dict(duration.attributes)["sqla_watch.transaction.outcome"]) == (1, outcome)
    assert backend.counting.started == backend.counting.ended


def test_savepoints_are_spans_of_their_transaction(engine: Engine, backend: Backend, install: Install) -> None:
    install(transactions=True, fold=False, rows=True)
    with engine.begin() as connection:
        with connection.begin_nested():
            connection.execute(select(Customer.id)).all()
        inner = connection.begin_nested()
        inner.rollback()
    transaction = backend.one("sqla_watch.transaction")
    below = [each for each in backend.spans if each.parent and each.parent.span_id == transaction.context.span_id]
    names = ["SAVEPOINT", "SELECT customers", "RELEASE", "SAVEPOINT", "ROLLBACK", "COMMIT"]
    assert [each.name for each in below] == names
    told = {each.name for each in below if "db.response.returned_rows" in dict(each.attributes or {})}
    assert told == {"SELECT customers"}  # what returns no rows says nothing of them
    assert [point.count for point in backend.points("sqla_watch.transaction.duration")] == [1]


def numbers(backend: Backend, name: str) -> dict[str, int]:
    return {point.attributes.get("db.client.connection.state", ""): point.value for point in backend.points(name)}


def test_the_pool_is_counted_also_what_was_open_before(shop_url: str, backend: Backend) -> None:
    engine = create_engine(url_for(shop_url, "psycopg"), pool_size=2, max_overflow=1, pool_recycle=3600)
    first, second = engine.connect(), engine.connect()
    second.close()
    backend.install(engine)
    assert numbers(backend, "db.client.connection.count") == {"idle": 1, "used": 1}
    assert numbers(backend, "db.client.connection.max") == {"": 3}
    assert numbers(backend, "db.client.connection.idle.max") == {"": 2}
    third = engine.connect()
    assert numbers(backend, "db.client.connection.count") == {"idle": 0, "used": 2}
    time.sleep(0.02)
    third.close()
    first.close()
    (use_time,) = backend.points("db.client.connection.use_time")
    assert use_time.count == 1  # since when the other one was out nobody has seen
    assert use_time.sum >= 0.02
    assert not backend.points("db.client.connection.create_time")
    engine.dispose()
    with engine.connect():
        assert numbers(backend, "db.client.connection.count") == {"idle": 0, "used": 1}
    (create_time,) = backend.points("db.client.connection.create_time")
    assert create_time.count == 1
    assert create_time.attributes["db.client.connection.pool.name"]
    engine.dispose()


def test_after_dispose_those_that_are_out_are_counted_and_invalidated_ones_are_not(
    shop_url: str, backend: Backend
) -> None:
    engine = create_engine(url_for(shop_url, "psycopg"), pool_recycle=3600)
    first, second = engine.connect(), engine.connect()
    driver_connection: Any = first.connection.driver_connection
    backend.install(engine)
    for connection in (first, second):
        connection.execute(select(Customer.id)).all()
    engine.dispose()
    assert numbers(backend, "db.client.connection.count") == {"idle": 0, "used": 2}
    third = engine.connect()
    assert numbers(backend, "db.client.connection.count") == {"idle": 0, "used": 3}
    first.close()
    driver_connection.close()  # SQLAlchemy leaves it to the former pool, and that to the garbage collector
    second.invalidate()
    assert numbers(backend, "db.client.connection.count") == {"idle": 0, "used": 1}
    third.invalidate()  # its place is in the pool again, and nothing is open
    assert numbers(backend, "db.client.connection.count") == {"idle": 0, "used": 0}
    third.rollback()
    third.execute(select(Customer.id)).all()
    assert numbers(backend, "db.client.connection.count") == {"idle": 0, "used": 1}
    third.close()
    second.close()
    assert numbers(backend, "db.client.connection.count") == {"idle": 1, "used": 0}
    engine.dispose()


def test_connections_of_an_async_engine(shop_url: str, backend: Backend) -> None:
    async def main() -> None:
        engine = create_async_engine(url_for(shop_url, "asyncpg"), pool_recycle=3600)
        backend.install(engine)
        async with engine.connect() as first:
            async with engine.connect():
                assert numbers(backend, "db.client.connection.count") == {"idle": 0, "used": 2}
            assert numbers(backend, "db.client.connection.count") == {"idle": 1, "used": 1}
            await first.invalidate()
            assert numbers(backend, "db.client.connection.count") == {"idle": 1, "used": 0}
        await engine.dispose()

    asyncio.run(main())


def test_waits_and_time_outs_are_counted_and_shown(shop_url: str, backend: Backend) -> None:
    engine = create_engine(
        url_for(shop_url, "psycopg"), pool_size=1, max_overflow=0, pool_timeout=0.3, pool_recycle=3600
    )
    backend.install(engine, waits=True)
    pending: list[dict[str, int]] = []

    def ask() -> None:
        with backend.tracer.start_as_current_span("GET /"), pytest.raises(PoolTimeout):
            engine.connect()

    with engine.connect():
        thread = threading.Thread(target=ask)
        thread.start()
        time.sleep(0.15)
        pending.append(numbers(backend, "db.client.connection.pending_requests"))
        thread.join()
    assert pending == [{"": 1}]
    assert numbers(backend, "db.client.connection.pending_requests") == {"": 0}
    (timeouts,) = backend.points("db.client.connection.timeouts")
    assert timeouts.value == 1
    (waits,) = backend.points("db.client.connection.wait_time")
    assert waits.count == 2
    assert 0.29 < waits.sum < 1
    span = backend.one("sqla_watch.pool.wait")
    assert dict(span.attributes or {})["sqla_watch.wait.timed_out"] is True
    assert 0.29e9 < span.end_time - span.start_time < 1e9
    assert span.parent.span_id == backend.one("GET /").context.span_id  # type: ignore[union-attr]
    engine.dispose()


def test_a_pool_that_counts_nothing_is_counted_here(shop_url: str, backend: Backend) -> None:
    engine = create_engine(url_for(shop_url, "psycopg"), poolclass=NullPool)
    backend.install(engine)
    with engine.connect():
        assert numbers(backend, "db.client.connection.count") == {"idle": 0, "used": 1}
    assert numbers(backend, "db.client.connection.count") == {"idle": 0, "used": 0}
    assert not backend.points("db.client.connection.max")


def test_an_exemplar_leads_to_the_statement(engine: Engine, backend: Backend, install: Install) -> None:
    install()
    with backend.tracer.start_as_current_span("GET /"), engine.connect() as connection:
        connection.execute(select(Customer.id))
    (point,) = backend.points("db.client.operation.duration")
    (exemplar,) = point.exemplars
    assert exemplar.span_id == backend.one("SELECT customers").context.span_id


def test_there_are_never_more_than_some_hundred_series(backend: Backend) -> None:
    """10,000 different statements, tables, errors and routes."""
    engine = create_engine("sqlite://")
    watch = backend.install(engine, statements="none")
    with engine.connect() as connection:
        for number in range(10_000):
            statement = f"SELECT 1 AS column_{number} FROM (SELECT 1) AS t, (SELECT 1 FROM sqlite_schema) AS s{number}"
            connection.exec_driver_sql(statement)
    with engine.connect() as connection:
        for number in range(2_000):
            with pytest.raises(OperationalError):
                connection.exec_driver_sql(f"SELECT 1 FROM missing_{number}")
    points = backend.points("db.client.operation.duration")
    assert len(points) <= 260
    assert sum(point.count for point in points) == 12_000
    assert sum(point.count for point in points if "error.type" in point.attributes) == 2_000

    finding = Finding("n-plus-one", "Order.items", Severity.HIGH, "", None, {}, "")
    for number in range(10_000):
        scope = Scope(f"GET /route/{number}", "request", watch.settings)
        scope.own_findings = [finding]
        watch.reporters[0](scope)
    points = backend.points("sqla_watch.findings")
    assert len(points) <= 310
    assert sum(point.value for point in points if point.attributes["sqla_watch.rule"] == "n-plus-one") == 10_000
