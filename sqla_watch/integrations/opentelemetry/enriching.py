"""Where another instrumentation writes the statement spans: ours are not made, theirs get our attributes."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from opentelemetry.trace import Span, SpanKind, TracerProvider

_running: ContextVar[Mapping[str, Any] | None] = ContextVar("sqla_watch_enriching", default=None)
"""The attributes for spans that a driver's instrumentation makes while the driver works."""
OFFICIAL = "_otel_span"
"""Attribute of a statement's context in which opentelemetry-instrumentation-sqlalchemy keeps its span."""
_enriched: list[TracerProvider] = []
"""Providers of the SDK that have our processor: there is no way to take one off."""


def watch_spans(provider: TracerProvider) -> bool:
    """Have the spans of a provider of the SDK enriched as they begin. Returns whether that can be."""
    if any(provider is each for each in _enriched):
        return True
    add: Any = getattr(provider, "add_span_processor", None)
    if add is None:
        return False
    from opentelemetry.sdk.trace import SpanProcessor

    class Enricher(SpanProcessor):
        """Gives spans of kind CLIENT that begin within a statement what is known of it."""

        def on_start(self, span: Any, parent_context: Any = None) -> None:
            attributes = _running.get()
            if attributes is not None and span.kind is SpanKind.CLIENT:
                _add(span, attributes)

    add(Enricher())
    _enriched.append(provider)
    return True


def has_official_span(context: Any) -> bool:
    """Whether opentelemetry-instrumentation-sqlalchemy writes a span of a statement, be it sampled or not."""
    theirs = getattr(context, OFFICIAL, None)
    return theirs is not None and theirs.get_span_context().is_valid


def enrich(context: Any, attributes: Mapping[str, Any]) -> Any:
    """Enrich the span that a statement has already, and those to come while the driver works.

    Returns:
        What is to be called when the driver has answered.
    """
    theirs = getattr(context, OFFICIAL, None)
    if isinstance(theirs, Span) and theirs.is_recording():
        _add(theirs, attributes)
    token = _running.set(attributes)
    return lambda: _running.reset(token)


def _add(span: Any, attributes: Mapping[str, Any]) -> None:
    """Add attributes, without changing what the span says already."""
    known = getattr(span, "attributes", None) or {}
    for name, value in attributes.items():
        if name not in known:
            span.set_attribute(name, value)
