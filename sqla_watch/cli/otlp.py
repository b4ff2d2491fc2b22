"""`--otlp`: what a command sees goes to a collector, or a backend, that takes OTLP over HTTP."""

from __future__ import annotations

import base64
import http.client
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote, urlsplit

from sqla_watch.cli.errors import WrongInput

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import Tracer, TracerProvider

__all__ = ["Export", "OtlpError", "exporting"]

_INTERVAL_MILLISECONDS = 1_000
"""Between two exports of metrics, so that a short run has more than one."""
_ANSWER_SECONDS = 5
"""For which an answer is waited for before anything is sent."""


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
        url: Where OTLP over HTTP is taken, without `/v1/traces`: `http://localhost:4318`. A name and password in it are
            sent as HTTP's Basic authorization, and shown nowhere.
        service: Name of the service in the backend.

    Raises:
        OtlpError: It is no such URL, nobody takes OTLP there, or the SDK and its exporter are not installed.
    """
    base, headers = _address(url)
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
    _knock(base, headers)
    resource = Resource.create({"service.name": service})
    traces = TracerProvider(resource=resource)
    traces.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{base}/v1/traces", headers=headers)))
    reader = PeriodicExportingMetricReader(
        OTLPMetricExporter(f"{base}/v1/metrics", headers=headers), _INTERVAL_MILLISECONDS
    )
    metrics = MeterProvider([reader], resource=resource)
    try:
        yield Export(traces, metrics, traces.get_tracer("sqla_watch.demo"))
    finally:
        traces.shutdown()
        metrics.shutdown()


def _address(url: str) -> tuple[str, dict[str, str]]:
    """Return where the signals' paths are below, and the headers of each request."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = None
    if (
        not host
        or parts.scheme not in ("http", "https")
        or re.search(r"\s", url)
        or parts.query
        or parts.fragment
        or port == 0
    ):
        raise OtlpError(f"{_shown(url)!r} is no address for OTLP over HTTP; one reads like http://localhost:4318")
    headers = {}
    if parts.username or parts.password:
        credentials = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
        headers["Authorization"] = f"Basic {base64.b64encode(credentials.encode()).decode()}"
    path = parts.path.rstrip("/").removesuffix("/v1/traces").removesuffix("/v1/metrics")
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{path}", headers


def _shown(url: str) -> str:
    """Return a URL without what may be a name, a password or a key in it, however it is broken."""
    return re.sub(r"[?#].*", "?***", re.sub(r"^(.*?//)?.*@", r"\1***@", url))


def _knock(base: str, headers: dict[str, str]) -> None:
    """Send no spans at all, and see that they are taken: the exporter itself only writes to the log."""
    request = urllib.request.Request(
        f"{base}/v1/traces", b"", {**headers, "Content-Type": "application/x-protobuf"}, method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=_ANSWER_SECONDS):
            return
    except urllib.error.HTTPError as error:
        with error:
            if error.code in (400, 422):  # it takes spans, and does not like that there are none
                return
            why = f"the answer is {error.code} {error.reason}"
    except urllib.error.URLError as error:
        why = str(getattr(error.reason, "strerror", None) or error.reason)
    except (OSError, http.client.HTTPException) as error:  # a time-out while reading, an answer that is no HTTP
        why = str(error) or type(error).__name__
    raise OtlpError(f"nobody takes OTLP over HTTP at {base}/v1/traces: {why}")
