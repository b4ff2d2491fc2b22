"""`--otlp`: what a command sees goes to a collector, or a backend, that takes OTLP over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from sqla_watch.cli.errors import WrongInput

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import Tracer, TracerProvider

__all__ = ["Export", "OtlpError", "exporting"]

_INTERVAL_MILLISECONDS = 1_000
"""Between two exports of metrics, so that a short run has more than one."""


class OtlpError(WrongInput):
    """Nothing can be exported; the message says why."""


class Export(NamedTuple):
    """Where spans and metrics go."""

    tracer_provider: TracerProvider
    meter_provider: MeterProvider
    tracer: Tracer


@contextmanager
def exporting(url: str, service: str) -> Iterator[Export]:
    """Give providers that export to a URL; what they have left is sent at the end.

    Args:
        url: Where OTLP over HTTP is taken, without the path: `http://localhost:4318`.
        service: Name of the service in the backend.

    Raises:
        OtlpError: It is no such URL, or the SDK and its exporter are not installed.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise OtlpError(f"{url!r} is no address for OTLP over HTTP; one reads like http://localhost:4318")
    try:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise OtlpError(
            "--otlp needs OpenTelemetry's SDK: pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http"
        ) from error
    base = url.rstrip("/")
    resource = Resource.create({"service.name": service})
    traces = TracerProvider(resource=resource)
    traces.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{base}/v1/traces")))
    reader = PeriodicExportingMetricReader(OTLPMetricExporter(f"{base}/v1/metrics"), _INTERVAL_MILLISECONDS)
    metrics = MeterProvider([reader], resource=resource)
    try:
        yield Export(traces, metrics, traces.get_tracer("sqla_watch.demo"))
    finally:
        traces.shutdown()
        metrics.shutdown()
