"""Spans that the SDK hears of when they have ended, where nobody can tell the difference. Needs the SDK.

Most of what a recorded span costs is spent on what may still come: a lock, attributes that are checked and copied, room
for events and links, a sampler and processors that are asked. Of a statement that goes well nothing comes but its end.
So what is current while the driver works has a number and nothing else, and when it ends the processors get the span in
one go. Whoever has more to say of it (an attribute, an event, a status) gets a span of the SDK's behind it.
"""

from __future__ import annotations

from collections.abc import Mapping
from time import time_ns
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.trace import ReadableSpan, SynchronousMultiSpanProcessor
from opentelemetry.sdk.trace import Tracer as SDKTracer
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, SpanKind, Status, StatusCode

if TYPE_CHECKING:
    from sqla_watch.integrations.opentelemetry.describing import Attributes
    from sqla_watch.integrations.opentelemetry.spans import Surroundings

_CLIENT = SpanKind.CLIENT
_UNSET = Status(StatusCode.UNSET)
_SEE_ENDS_ONLY = {
    kind
    for kind in (BatchSpanProcessor, SimpleSpanProcessor)
    # Their methods for beginnings are empty; should that change one day, spans are not late any more.
    if not kind.on_start.__code__.co_names and not getattr(kind, "_on_ending", kind.on_start).__code__.co_names
}


def may_be_late(tracer: Any) -> bool:
    """Whether a tracer is the SDK's, records whatever is below a sampled span, and tells nobody else of it before."""
    try:
        enabled = getattr(tracer, "_is_enabled", True)
        return (
            type(tracer) is SDKTracer
            and type(tracer.span_processor) is SynchronousMultiSpanProcessor
            and _SEE_ENDS_ONLY.issuperset(map(type, tracer.span_processor._span_processors))
            and _follows_parents(tracer.sampler)
            and bool(enabled() if callable(enabled) else enabled)
            # Newer ones may count their own spans.
            and type(getattr(tracer, "_tracer_metrics", None)).__name__ in ("NoneType", "NoOpTracerMetrics")
            and hasattr(tracer, "_span_limits")
            and hasattr(tracer, "_instrumentation_scope")
        )
    except AttributeError:  # an SDK that is built differently
        return False


def _follows_parents(sampler: Any) -> bool:
    return sampler is ALWAYS_ON or (
        type(sampler).should_sample is ParentBased.should_sample
        and sampler._local_parent_sampled is sampler._remote_parent_sampled is ALWAYS_ON
    )


class LateSpan(Span):
    """The span of a statement below a sampled span, from its beginning to its end."""

    _is_open = True
    _sdk_span: Any = None
    """The SDK's span, if there had to be one."""

    def __init__(self, tracer: SDKTracer, name: str, around: Surroundings, attributes: Attributes) -> None:
        self._tracer = tracer
        self._name = name
        self._around = around
        self._attributes = attributes
        self._context = SpanContext(
            around.trace_id, tracer.id_generator.generate_span_id(), False, around.flags, around.trace_state
        )
        self._started = time_ns()

    def get_span_context(self) -> SpanContext:
        """Return its numbers."""
        return self._context

    def is_recording(self) -> bool:
        """Whether it has not ended."""
        return self._is_open

    def end(self, end_time: int | None = None) -> None:
        """End it, at a time of day in nanoseconds."""
        if not self._is_open:
            return
        self._is_open = False
        if self._sdk_span is not None:
            self._sdk_span.end(end_time)
            return
        tracer = self._tracer
        tracer.span_processor.on_end(
            ReadableSpan(
                name=self._name,
                context=self._context,
                parent=self._around.above,
                resource=tracer.resource,
                attributes=self._attributes.checked(tracer._span_limits),
                kind=_CLIENT,
                instrumentation_info=tracer.instrumentation_info,
                status=_UNSET,
                start_time=self._started,
                end_time=time_ns() if end_time is None else end_time,
                instrumentation_scope=tracer._instrumentation_scope,
            )
        )

    def _more(self) -> Any:
        """Return the SDK's span, in which there is room for more; after the end one that takes nothing."""
        if self._sdk_span is None:
            if not self._is_open:
                return NonRecordingSpan(self._context)
            self._sdk_span = self._tracer.start_span(
                self._name, self._around.context, _CLIENT, self._attributes.known, start_time=self._started
            )
            self._sdk_span._context = self._context  # the number that spans below it have seen
        return self._sdk_span

    # ruff: noqa: D102 - documented by OpenTelemetry's own class
    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        self._more().set_attributes(attributes)

    def set_attribute(self, key: str, value: Any) -> None:
        self._more().set_attribute(key, value)

    def add_event(self, name: str, attributes: Any = None, timestamp: int | None = None) -> None:
        self._more().add_event(name, attributes, timestamp)

    def add_link(self, context: SpanContext, attributes: Any = None) -> None:
        self._more().add_link(context, attributes)

    def update_name(self, name: str) -> None:
        self._more().update_name(name)

    def set_status(self, status: Any, description: str | None = None) -> None:
        self._more().set_status(status, description)

    def record_exception(
        self, exception: BaseException, attributes: Any = None, timestamp: int | None = None, escaped: bool = False
    ) -> None:
        self._more().record_exception(exception, attributes, timestamp, escaped)
