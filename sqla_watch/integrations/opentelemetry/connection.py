"""The spans of one connection while it is out: those held open for more of the same, and its transaction's."""

from __future__ import annotations

from time import perf_counter_ns as clock
from time import time_ns
from typing import TYPE_CHECKING, Any

from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context

from sqla_watch.facts import RowCounter, Transaction
from sqla_watch.integrations.opentelemetry import names
from sqla_watch.integrations.opentelemetry.describing import Attributes
from sqla_watch.integrations.opentelemetry.spans import Surroundings
from sqla_watch.probes.door import logger

if TYPE_CHECKING:
    from sqla_watch.integrations.opentelemetry.engine import EngineTelemetry

MOST_HELD = 64
"""Spans that one connection holds open at once; of more, the one that was used longest ago ends."""
LONGEST_GAP = 1_000_000_000
"""Nanoseconds after which a further statement is no part of the burst before it."""

FAILED = Status(StatusCode.ERROR)


class Held:
    """A statement's span that has not ended yet: more of the same may come, or more of its rows."""

    # Defaults of the class: of most there is one statement, and nothing to set.
    count = 1
    rows: int | None = None
    """None as long as none of its statements has told."""
    counter: RowCounter | None = None
    """Counts the rows of its last statement, which are still to be fetched."""
    streamed = 0
    """Nanoseconds of that statement without the fetches to come, where those belong to its duration."""

    def __init__(
        self,
        span: Span,
        context: Context,
        attributes: Attributes,
        counted: dict[str, Any] | None,
        began: int,
        finished: int,
    ) -> None:
        self.span = span
        self.context = context
        self.attributes = attributes
        """What the span began with. By the number of this object others are known to be alike, so it has to last."""
        self.counted = counted
        """The attributes of the metrics, for rows that are counted later; None without metrics."""
        self.nanoseconds = finished - began
        self.finished = finished
        """When the last of its statements ended (`time.perf_counter_ns`)."""
        self.offset = time_ns() - finished
        """What is to be added to that for the time of day in nanoseconds."""

    def add(self, began: int, finished: int) -> None:
        """Add a statement."""
        self.count += 1
        self.nanoseconds += finished - began
        self.finished = finished
        self.offset = time_ns() - finished

    def fetch(self, counter: RowCounter, nanoseconds: int) -> None:
        """Have the rows of its last statement counted, which took so long and has them still to be fetched."""
        self.counter = counter
        self.streamed = nanoseconds if counter.streamed else 0

    def settle(self, engine: EngineTelemetry) -> None:
        """Add the rows that were fetched since."""
        counter, self.counter = self.counter, None
        if counter is None:
            return
        self.rows = counter.rows + (self.rows or 0)
        self.nanoseconds += counter.nanoseconds
        self.finished = max(self.finished, counter.fetched_at)
        if self.counted is not None:
            engine.metrics.rows.record(counter.rows, self.counted, self.context)
            if self.streamed:
                engine.metrics.duration.record((self.streamed + counter.nanoseconds) / 1e9, self.counted, self.context)

    def end(self, engine: EngineTelemetry) -> None:
        """End the span, with its last statement, or the last fetch of its rows."""
        if self.counter is not None:
            self.settle(engine)
        span = self.span
        if self.count > 1:
            span.set_attribute(names.STATEMENTS, self.count)
            span.set_attribute(names.DATABASE_SECONDS, self.nanoseconds / 1e9)
        if engine.options.rows and self.rows is not None:
            span.set_attribute(names.RETURNED_ROWS, self.rows)
        span.end(self.finished + self.offset)


class OpenSpan:
    """The span of a transaction, and the span that it is below."""

    __slots__ = ("inside", "parent", "span")

    def __init__(self, span: Span, inside: Surroundings, parent: int) -> None:
        self.span = span
        self.inside = inside
        self.parent = parent
        """Number of the span that was current when it began."""


class ConnectionSpans:
    """What is told of one connection while it is out of the pool (`ConnectionTelemetry`)."""

    __slots__ = ("__weakref__", "_fact", "around", "ending", "engine", "held", "transaction")

    def __init__(self, engine: EngineTelemetry) -> None:
        self.engine = engine
        self.around: Surroundings | None = None
        """Where its last statement was sent: mostly the next one is sent there, too."""
        self.held: dict[Any, Held] = {}
        """By what makes statements alike; those that were used last stand last."""
        self.transaction: OpenSpan | None = None
        self.ending = False
        """Whether its COMMIT or ROLLBACK is on its way, in which a dialect may send another one."""
        self._fact: Transaction | None = None

    def find(self, key: Any, now: int) -> Held | None:
        """Return the span that a statement goes on with; one that has waited for too long already is ended."""
        found = self.held.pop(key, None)
        if found is None:
            return None
        if now - found.finished < LONGEST_GAP:
            self.held[key] = found
            return found
        found.end(self.engine)
        return None

    def hold(self, key: Any, held: Held) -> None:
        """Hold a span open. Others that have waited for too long end, and of too many the one used longest ago."""
        others = self.held
        while others:
            oldest = next(iter(others))
            if len(others) < MOST_HELD and held.finished - others[oldest].finished < LONGEST_GAP:
                break
            self._end(oldest)
        others[key] = held

    def end_held(self) -> None:
        """End the spans of all statements so far."""
        while self.held:
            self._end(next(iter(self.held)))

    def _end(self, key: Any) -> None:
        held = self.held.pop(key, None)
        if held is not None:
            held.end(self.engine)

    def inside(self, around: Surroundings, *, begins: bool) -> Surroundings:
        """Return where a statement's span is to be made: below its transaction's span, if there is one.

        What the application has opened inside of the transaction comes between them.
        """
        transaction = self.transaction
        if transaction is None:
            if not begins:
                return around
            context = around.context
            span = self.engine.tracer.start_span(
                "sqla_watch.transaction", context, kind=SpanKind.INTERNAL, attributes=self.engine.target.attributes
            )
            inside = Surroundings(set_span_in_context(span, context))
            transaction = self.transaction = OpenSpan(span, inside, around.span_id)
        return transaction.inside if transaction.parent == around.span_id else around

    def ended(self, transaction: Transaction) -> None:
        """A transaction has ended, and its COMMIT or ROLLBACK with it."""
        self._fact = transaction
        try:
            metrics = self.engine.metrics
            if self.engine.options.metrics and transaction.serial > 0:
                elapsed = transaction.finished - transaction.started
                idle = elapsed - transaction.database - transaction.ending
                attributes = {**self.engine.target.attributes, names.OUTCOME: transaction.outcome}
                metrics.transaction_duration.record(elapsed / 1e9, attributes)
                metrics.transaction_idle.record(max(0, idle) / 1e9, attributes)
        except Exception:
            self.engine.door.fault()

    def end_transaction(self, outcome: str, error: str = "") -> None:
        """End the transaction's span."""
        self.end_held()
        transaction, self.transaction = self.transaction, None
        fact, self._fact = self._fact, None
        if transaction is None:
            return
        span = transaction.span
        span.set_attribute(names.OUTCOME, outcome)
        if fact is not None:
            span.set_attribute(names.STATEMENTS, fact.statements)
            span.set_attribute(names.DATABASE_SECONDS, fact.database / 1e9)
        if error:
            span.set_attribute(names.ERROR_TYPE, error)
            span.set_status(FAILED)
        span.end()

    def returned(self, nanoseconds: int) -> None:
        """The connection is back in the pool."""
        try:
            self.close()
            engine = self.engine
            if engine.options.metrics:
                engine.metrics.use_time.record(nanoseconds / 1e9, engine.target.pool)
        except Exception:
            self.engine.door.fault()

    def close(self) -> None:
        """End every span that is open."""
        self.end_held()
        if self.transaction is not None:
            self.end_transaction("rollback")

    def forget(self) -> None:
        """Let go of every span that is open: somebody else will end it."""
        self.held.clear()
        self.transaction = None

    def __del__(self) -> None:
        # A connection that was never returned: nobody else will end its spans.
        try:
            if self.held or self.transaction is not None:
                self.close()
        except Exception:
            logger.debug("sqla_watch: a span of a lost connection could not be ended", exc_info=True)


def time_of_day(started: int) -> int:
    """Return the time of day, in nanoseconds, of a moment of `time.perf_counter_ns`."""
    return time_ns() - (clock() - started)
