"""Without a word in the settings: OpenTelemetry is told as soon as the application has given it a provider."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import opentelemetry.metrics._internal
import opentelemetry.trace
import pytest
from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor
from opentelemetry.metrics import set_meter_provider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import NoOpTracerProvider, set_tracer_provider
from opentelemetry.util._once import Once
from sqlalchemy import Engine, create_engine, select
from sqlalchemy.orm import Session

import sqla_watch
from sqla_watch import Settings, Telemetry
from sqla_watch.demo.models import Customer, Order
from sqla_watch.scopes import close_scope, open_scope
from sqla_watch.testing import watching
from tests.conftest import url_for
from tests.opentelemetry.conftest import Backend
from tests.opentelemetry.test_findings import load_lazily


@pytest.fixture
def providers(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    """A backend whose providers can be made the global ones, which is undone, though OpenTelemetry has no way to."""
    trace, metrics = opentelemetry.trace, opentelemetry.metrics._internal
    proxies: Any = metrics._ProxyMeterProvider
    for module, name, value in (
        (trace, "_TRACER_PROVIDER", None),
        (trace, "_TRACER_PROVIDER_SET_ONCE", Once()),
        (metrics, "_METER_PROVIDER", None),
        (metrics, "_METER_PROVIDER_SET_ONCE", Once()),
        (metrics, "_PROXY_METER_PROVIDER", proxies()),
    ):
        monkeypatch.setattr(module, name, value)
    from sqla_watch.integrations.opentelemetry import engine

    monkeypatch.setattr(engine, "_signals", [])  # those of the global providers of the test before
    yield backend
    sqla_watch.uninstall()


def make_global(backend: Backend) -> None:
    set_tracer_provider(backend.traces)
    set_meter_provider(backend.metrics)


def ask(engine: Engine) -> None:
    with engine.connect() as connection:
        connection.execute(select(Customer.id)).all()


def test_a_provider_that_is_there_is_told(engine: Engine, providers: Backend) -> None:
    make_global(providers)
    sqla_watch.install(engine)
    ask(engine)
    assert [span.name for span in providers.spans] == ["SELECT customers"]
    assert sum(point.count for point in providers.points("db.client.operation.duration")) == 1


def test_a_provider_that_comes_later_is_told_from_its_first_checkout_on(engine: Engine, providers: Backend) -> None:
    sqla_watch.install(engine)
    ask(engine)
    dialect = dict(vars(engine.dialect))
    make_global(providers)
    assert dict(vars(engine.dialect)) == dialect  # until then nothing is wrapped for it
    ask(engine)
    assert [span.name for span in providers.spans] == ["SELECT customers"]
    assert sum(point.count for point in providers.points("db.client.connection.wait_time")) == 1
    assert {point.attributes["db.client.connection.state"] for point in providers.points("db.client.connection.count")}


def test_the_first_connection_of_all_is_counted_though_the_provider_came_later(
    shop_url: str, providers: Backend
) -> None:
    engine = create_engine(url_for(shop_url, "psycopg"), pool_recycle=3600)
    sqla_watch.install(engine)
    make_global(providers)
    ask(engine)
    assert [point.count for point in providers.points("db.client.connection.create_time")] == [1]
    engine.dispose()


def test_a_request_that_begins_after_the_provider_came_has_its_findings_on_its_span(
    engine: Engine, providers: Backend
) -> None:
    sqla_watch.install(engine)
    make_global(providers)
    with providers.tracer.start_as_current_span("GET /orders"):
        scope = open_scope("GET /orders", "request")
        with providers.tracer.start_as_current_span("inside"):
            load_lazily(engine)
        close_scope(scope)
    assert "sqla_watch.n_plus_one" in [event.name for event in providers.one("GET /orders").events]


def test_a_connection_that_was_out_before_the_provider_came_is_told_of(engine: Engine, providers: Backend) -> None:
    sqla_watch.install(engine)
    with engine.connect() as connection:
        connection.execute(select(Customer.id))
        make_global(providers)
        with sqla_watch.scope("GET /"):
            connection.execute(select(Order.id)).all()
    assert [span.name for span in providers.spans] == ["SELECT orders"]
    assert providers.counting.started == providers.counting.ended


@pytest.mark.parametrize("telemetry", [False, Telemetry(statements="none", metrics=False)])
def test_what_the_settings_say_is_done(engine: Engine, providers: Backend, telemetry: Any) -> None:
    make_global(providers)
    sqla_watch.install(engine, settings=Settings(telemetry=telemetry))
    ask(engine)
    assert not providers.spans
    assert not providers.points("db.client.operation.duration")


def test_a_word_about_the_engine_counts_more_than_one_about_all(engine: Engine, providers: Backend) -> None:
    make_global(providers)
    sqla_watch.install(engine, settings=Settings(telemetry=False))
    sqla_watch.install()
    ask(engine)
    assert not providers.spans
    sqla_watch.install(engine, settings=Settings(telemetry=Telemetry(fold=False)))
    with engine.connect() as connection:
        for _ in range(3):
            connection.execute(select(Customer.id))
    assert len(providers.named("SELECT customers")) == 3


def test_findings_where_the_settings_of_a_request_say_no(engine: Engine, providers: Backend) -> None:
    make_global(providers)
    sqla_watch.install(engine)
    with sqla_watch.scope("GET /", settings=Settings(profile="test", telemetry=False)):
        load_lazily(engine)
    assert not providers.named("sqla_watch.n_plus_one")
    assert not providers.points("sqla_watch.findings")


def test_findings_where_the_settings_of_a_request_say_nothing(engine: Engine, providers: Backend) -> None:
    make_global(providers)
    sqla_watch.install(engine, settings=Settings(telemetry=Telemetry(findings=False)))
    with sqla_watch.scope("GET /", settings=Settings(profile="test")):
        load_lazily(engine)
    assert not providers.named("sqla_watch.n_plus_one")
    assert providers.points("sqla_watch.findings")


def test_watching_tests_tells_nothing_by_itself(engine: Engine, providers: Backend) -> None:
    """An application's tests may count the spans that it has written."""
    make_global(providers)
    watching.hold_engines()
    try:
        ask(engine)
        assert not providers.spans
        sqla_watch.install(engine)  # the application's own
        ask(engine)
        assert len(providers.spans) == 1
    finally:
        watching.release_engines()


def test_a_provider_that_does_nothing_is_none(engine: Engine, providers: Backend) -> None:
    set_tracer_provider(NoOpTracerProvider())
    watch = sqla_watch.install(engine)
    ask(engine)
    assert watch.telemetry is None


def test_an_sdk_that_is_switched_off_is_none(
    engine: Engine, providers: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    make_global(providers)
    watch = sqla_watch.install(engine)
    assert watch.telemetry is None


def test_threads_that_find_the_provider_at_once(shop_url: str, providers: Backend) -> None:
    engine = create_engine(url_for(shop_url, "psycopg"), pool_size=8, pool_recycle=3600)
    sqla_watch.install(engine)
    ready = threading.Barrier(8)

    def work() -> None:
        ready.wait()
        for _ in range(20):
            ask(engine)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    make_global(providers)
    for thread in threads:
        thread.join()
    ask(engine)
    assert providers.counting.started == providers.counting.ended > 0
    engine.dispose()


def test_uninstalled_nobody_looks_any_more(engine: Engine, providers: Backend) -> None:
    watch = sqla_watch.install(engine)
    watch.uninstall()
    make_global(providers)
    ask(engine)
    with sqla_watch.scope("GET /"):
        ask(engine)
    assert not providers.spans
    assert not [name for name in vars(engine.dialect) if name.startswith("do_")]


@pytest.mark.faults
def test_what_cannot_be_told_is_said_once_and_harms_nobody(
    engine: Engine, providers: Backend, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*arguments: Any) -> None:
        raise ImportError("too old")

    sqla_watch.install(engine)
    monkeypatch.setattr("sqla_watch.integrations.opentelemetry.signals_of", fail)
    make_global(providers)
    for _ in range(3):
        with sqla_watch.scope("GET /"):
            ask(engine)
    assert [record.message for record in caplog.records if "OpenTelemetry has a provider" in record.message] == [
        "sqla_watch: OpenTelemetry has a provider, but cannot be told; please report this"
    ]


@pytest.fixture
def official(engine: Engine, providers: Backend) -> Iterator[None]:
    """The engine has OpenTelemetry's own instrumentation, too."""
    instrumentor = SQLAlchemyInstrumentor()
    instrumentor.instrument(engine=engine, tracer_provider=providers.traces, skip_dep_check=True)
    yield
    instrumentor.uninstrument()


@pytest.mark.usefixtures("official")
@pytest.mark.parametrize("level", ["all", "slow", "none"])
def test_with_the_official_instrumentation_its_spans_are_enriched_and_none_is_written_twice(
    engine: Engine, providers: Backend, level: Any
) -> None:
    make_global(providers)
    telemetry = Telemetry(statements=level, slow_seconds=0)
    sqla_watch.install(engine, settings=Settings(profile="test", telemetry=None if level == "all" else telemetry))
    with providers.tracer.start_as_current_span("GET /orders"):
        load_lazily(engine)
    assert not providers.named("SELECT items")
    theirs = [span for span in providers.spans if dict(span.attributes or {}).get("db.query.summary") == "SELECT items"]
    assert len(theirs) == 100
    assert dict(theirs[0].attributes or {})["code.line.number"]
    assert providers.named("sqla_watch.n_plus_one")
    assert sum(point.count for point in providers.points("db.client.operation.duration")) == 101
    assert providers.counting.started == providers.counting.ended


@pytest.mark.usefixtures("official")
def test_whoever_wants_both_gets_both(engine: Engine, providers: Backend) -> None:
    make_global(providers)
    sqla_watch.install(engine, settings=Settings(telemetry=Telemetry(enrich=False)))
    ask(engine)
    assert len(providers.named("SELECT customers")) == 1
    assert len(
        [span for span in providers.spans if span.name.startswith("SELECT ") and span.name != "SELECT customers"]
    )


def test_an_official_instrumentation_without_a_provider_is_none(engine: Engine, backend: Backend) -> None:
    instrumentor = SQLAlchemyInstrumentor()
    instrumentor.instrument(engine=engine, tracer_provider=NoOpTracerProvider(), skip_dep_check=True)
    try:
        backend.install(engine)
        ask(engine)
    finally:
        instrumentor.uninstrument()
    assert len(backend.named("SELECT customers")) == 1


def test_what_the_official_instrumentation_did_not_sample_is_not_written_by_us(
    engine: Engine, providers: Backend
) -> None:
    instrumentor = SQLAlchemyInstrumentor()
    instrumentor.instrument(engine=engine, tracer_provider=TracerProvider(sampler=ALWAYS_OFF), skip_dep_check=True)
    try:
        make_global(providers)
        sqla_watch.install(engine)
        ask(engine)
    finally:
        instrumentor.uninstrument()
    assert not providers.spans


PROGRAM = """
import sys
import sqla_watch
from sqlalchemy import create_engine, text
engine = create_engine("sqlite://")
sqla_watch.install(engine)

def ask():
    with sqla_watch.scope("GET /"), engine.connect() as connection:
        connection.execute(text("SELECT 1 AS one FROM sqlite_schema"))

ask()
assert not [name for name in sys.modules if name.startswith("opentelemetry")]
from opentelemetry import trace
ask()
assert "sqla_watch.integrations.opentelemetry" not in sys.modules
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
ask()
print([span.name for span in exporter.get_finished_spans()])
"""


def test_opentelemetry_is_imported_by_the_application_alone() -> None:
    ran = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "['SELECT sqlite_schema']"


def test_sessions_too(engine: Engine, providers: Backend) -> None:
    make_global(providers)
    sqla_watch.install(engine)
    with Session(engine) as session:
        session.scalars(select(Order.id)).all()
    assert [span.name for span in providers.spans] == ["SELECT orders"]
