"""Where a statement's span begins: below what, and whether as the SDK's own or as one that it hears of late."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from opentelemetry.context import Context
from opentelemetry.trace import ProxyTracer, Span, SpanKind, TraceFlags, Tracer, get_current_span

if TYPE_CHECKING:
    from sqla_watch.integrations.opentelemetry.describing import Attributes

_CLIENT = SpanKind.CLIENT
_HANDED_DOWN = TraceFlags.SAMPLED | getattr(TraceFlags, "RANDOM_TRACE_ID", 0)
"""What a span's flags have of those above it."""


class Surroundings:
    """The context in which statements are sent, and what follows from it for their spans."""

    __slots__ = ("above", "context", "flags", "is_sampled", "is_valid", "span", "span_id", "trace_id", "trace_state")

    def __init__(self, context: Context) -> None:
        self.context = context
        self.span = get_current_span(context)
        self.above = above = self.span.get_span_context()
        self.is_valid = above.is_valid
        self.is_sampled = not above.is_valid or above.trace_flags.sampled
        """Whether there may be spans below it."""
        self.trace_id = above.trace_id
        self.span_id = above.span_id
        self.trace_state = above.trace_state
        self.flags = TraceFlags(above.trace_flags & _HANDED_DOWN)
        """Those of the spans below."""


class StatementSpans:
    """Begins the spans of statements with one tracer."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._late: Any = None
        """The SDK's tracer, if its spans may be late."""
        self._make_late: Any = None
        self._processors: object = None
        """The SDK's, by which that was told; when one is added there is another tuple of them."""

    def start(self, name: str, around: Surroundings, attributes: Attributes) -> Span:
        """Begin a span of which nothing else is known yet."""
        late = self._late
        if late is None or late.span_processor._span_processors is not self._processors:
            late = self._look()
        if late is None or not around.is_valid:
            return self._tracer.start_span(name, around.context, _CLIENT, attributes.known)
        span: Span = self._make_late(late, name, around, attributes)
        return span

    def _look(self) -> Any:
        tracer: Any = self._tracer
        if isinstance(tracer, ProxyTracer):
            tracer = tracer._tracer
        processors = getattr(getattr(tracer, "span_processor", None), "_span_processors", None)
        if processors is not self._processors:
            self._late, self._processors = None, processors
            if "opentelemetry.sdk.trace" in sys.modules:
                from sqla_watch.integrations.opentelemetry.late import LateSpan, may_be_late

                self._make_late = LateSpan
                self._late = tracer if may_be_late(tracer) else None
        return self._late
