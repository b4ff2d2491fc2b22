"""The way to a real backend: the SDK's own exporter of OTLP over HTTP, and a receiver at its other end."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from sqlalchemy import Engine, create_engine, select
from sqlalchemy.orm import Session

import sqla_watch
from sqla_watch.demo.models import Order
from sqla_watch.integrations.opentelemetry.instrumentor import SqlaWatchInstrumentor
from tests.conftest import url_for
from tests.opentelemetry.conftest import Backend
from tests.opentelemetry.receiver import Receiver, attributes_of


def test_traces_and_metrics_arrive(engine: Engine) -> None:
    with Receiver() as receiver:
        traces = TracerProvider()
        traces.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{receiver.url}/v1/traces")))
        reader = PeriodicExportingMetricReader(OTLPMetricExporter(f"{receiver.url}/v1/metrics"), 3_600_000)
        metrics = MeterProvider([reader])
        watch = sqla_watch.install(
            engine, settings=sqla_watch.Settings(profile="test"), tracer_provider=traces, meter_provider=metrics
        )
        with traces.get_tracer("test").start_as_current_span("GET /orders"), Session(engine) as session:
            for order in session.scalars(select(Order)):
                order.items
        watch.uninstall()
        traces.shutdown()
        metrics.shutdown()
    by_name = {span.name: span for span in receiver.spans}
    assert len(receiver.spans) < 10
    request, loads, finding = (by_name[name] for name in ("GET /orders", "SELECT items", "sqla_watch.n_plus_one"))
    assert loads.parent_span_id == finding.parent_span_id == request.span_id
    assert loads.kind == loads.SPAN_KIND_CLIENT
    assert finding.kind == finding.SPAN_KIND_INTERNAL
    assert attributes_of(loads)["sqla_watch.statements"] == 100
    assert attributes_of(finding)["sqla_watch.target"] == "Order.items"
    assert [event.name for event in request.events] == ["sqla_watch.n_plus_one"]
    metrics_by_name = receiver.latest_metrics
    duration = metrics_by_name["db.client.operation.duration"]
    assert duration.unit == "s"
    assert sum(point.count for point in duration.histogram.data_points) == 101
    assert list(duration.histogram.data_points[0].explicit_bounds) == [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10]
    assert metrics_by_name["sqla_watch.findings"].sum.data_points[0].as_int == 1


PROGRAM = """
import sys
from sqlalchemy import create_engine, text
engine = create_engine(sys.argv[1], pool_recycle=3600)
connection = engine.connect()
for number in range(5):
    connection.execute(text("SELECT name FROM customers WHERE id = :id"), {"id": number})
# Neither closed nor committed: the process ends.
"""


@pytest.mark.skipif(
    not any(each.name == "sqla_watch" for each in entry_points(group="opentelemetry_instrumentor")),
    reason="the package is not installed, so that there is no entry point",
)
def test_opentelemetry_instrument_needs_no_code(shop_url: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    with Receiver() as receiver:
        environment = {
            **os.environ,
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "sqlalchemy,psycopg",
            "SQLA_WATCH_TELEMETRY_TRANSACTIONS": "true",
        }
        command = [str(Path(sys.executable).with_name("opentelemetry-instrument")), sys.executable, str(program)]
        ran = subprocess.run(
            [*command, url_for(shop_url, "psycopg")], env=environment, capture_output=True, text=True, timeout=60
        )
        assert ran.returncode == 0, ran.stderr
    (statements,) = [span for span in receiver.spans if span.name == "SELECT customers"]
    assert attributes_of(statements)["sqla_watch.statements"] == 5
    assert [span.name for span in receiver.spans if span.name == "sqla_watch.transaction"]
    assert "db.client.operation.duration" in receiver.latest_metrics


def test_the_instrumentor_installs_and_takes_off(shop_url: str, backend: Backend) -> None:
    engine: Any = create_engine(url_for(shop_url, "psycopg"), pool_recycle=3600)
    instrumentor = SqlaWatchInstrumentor()
    for _ in range(2):  # the second time it says that it is on already
        instrumentor.instrument(engine=engine, tracer_provider=backend.traces, meter_provider=backend.metrics)
    with Session(engine) as session:
        session.scalars(select(Order.id)).all()
    assert [span.name for span in backend.spans] == ["SELECT orders"]
    instrumentor.uninstrument()
    with Session(engine) as session:
        session.scalars(select(Order.id)).all()
    assert len(backend.spans) == 1
    engine.dispose()
