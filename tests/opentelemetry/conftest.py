"""The real SDK with exporters in memory, for each test its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import Engine

import sqla_watch


class Counting(SpanProcessor):
    """Counts what begins and what ends."""

    def __init__(self) -> None:
        self.started = self.ended = 0

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        self.started += 1

    def on_end(self, span: ReadableSpan) -> None:
        self.ended += 1


class Backend:
    """What has come out of the SDK."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.counting = Counting()
        self.traces = TracerProvider()
        self.traces.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.traces.add_span_processor(self.counting)
        self.reader = InMemoryMetricReader()
        self.metrics = MeterProvider([self.reader])
        self.tracer = self.traces.get_tracer("test")

    @property
    def spans(self) -> list[ReadableSpan]:
        """All spans that have ended, by their beginning."""
        return sorted(self.exporter.get_finished_spans(), key=lambda span: span.start_time or 0)

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.spans if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        (span,) = self.named(name)
        return span

    def points(self, name: str) -> list[Any]:
        """The data points of a metric."""
        data = self.reader.get_metrics_data()
        if data is None:
            return []
        return [
            point
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]

    def install(self, engine: Any, profile: str = "test", **telemetry: Any) -> sqla_watch.Watch:
        settings = sqla_watch.Settings(profile=profile, telemetry=sqla_watch.Telemetry(**telemetry))
        return sqla_watch.install(engine, settings=settings, tracer_provider=self.traces, meter_provider=self.metrics)


@pytest.fixture
def backend() -> Iterator[Backend]:
    made = Backend()
    yield made
    sqla_watch.uninstall()
    made.traces.shutdown()
    made.metrics.shutdown()


Install = Callable[..., sqla_watch.Watch]


@pytest.fixture
def install(backend: Backend, engine: Engine) -> Install:
    """Install on the shop's engine, with fields of `Telemetry`."""

    def on_shop(**telemetry: Any) -> sqla_watch.Watch:
        return backend.install(engine, **telemetry)

    return on_shop
