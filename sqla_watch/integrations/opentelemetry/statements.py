"""Statement spans: a wrapper around the dialect's methods, outside of the probe's own.

What is measured here is what the application waits for; the probe inside measures the same without what we cost.
"""

from __future__ import annotations

from sys import _getframe
from time import perf_counter_ns as clock
from time import time_ns
from typing import TYPE_CHECKING, Any

from opentelemetry.context import Context, attach, detach, get_current
from opentelemetry.trace import Span, SpanKind, get_current_span, set_span_in_context

from sqla_watch.callsite import locate
from sqla_watch.facts import RowCounter
from sqla_watch.findings import FindingRaised
from sqla_watch.integrations.opentelemetry import names
from sqla_watch.integrations.opentelemetry.connection import FAILED, ConnectionSpans, Held
from sqla_watch.integrations.opentelemetry.describing import LONGEST_TEXT, Described, describe_parameters
from sqla_watch.probes.checkout import Checkout, checkout_of
from sqla_watch.probes.dialect import SAVEPOINTS, name_of
from sqla_watch.probes.door import Door
from sqla_watch.scopes import current

if TYPE_CHECKING:
    from sqla_watch.integrations.opentelemetry.engine import EngineTelemetry

_CLIENT = SpanKind.CLIENT


class Running:
    """A statement on its way to the driver and back."""

    __slots__ = (
        "around", "batch", "began", "checkout", "connection", "enriching", "held", "key", "lines", "parent", "sampled",
        "span", "statement", "token", "what",
    )  # fmt: skip

    def __init__(
        self, checkout: Checkout, connection: ConnectionSpans, what: Described, statement: Any, around: Context
    ) -> None:
        self.checkout = checkout
        self.connection = connection
        self.what = what
        self.statement = statement
        self.around = around
        """The context that its span is made in, or has been made in."""
        self.sampled = False
        """Whether there may be a span of it."""
        self.parent: Span | None = None
        self.batch = 0
        self.began = 0
        self.lines: dict[str, Any] = {}
        self.key: Any = None
        """What makes statements alike."""
        self.held: Held | None = None
        """The span of those before it, which it goes on with."""
        self.span: Span | None = None
        """Its own, if there is one yet."""
        self.token: Any = None
        self.enriching: Any = None


def wrap_execute(engine: EngineTelemetry, *, many: bool = False) -> Any:
    """Return what makes the wrapper of `do_execute`, or of `do_executemany`."""

    def make(door: Door, original: Any) -> Any:
        def do_execute(cursor: Any, statement: Any, parameters: Any, context: Any = None) -> Any:
            running = None
            sent = statement
            if door.open:
                try:
                    running = begin(engine, cursor, statement, parameters, context, many)
                    if running is not None:
                        sent = running.statement
                        running.began = clock()
                except Exception:
                    door.fault()
                    if running is not None:
                        abandon(running)
                    running = None
            if running is None:
                return original(cursor, sent, parameters, context)
            error = ""
            is_state = False
            try:
                return original(cursor, sent, parameters, context)
            except FindingRaised:  # by the probe, about a statement that went well
                raise
            except BaseException as raised:
                error = name_of(raised)
                is_state = error != type(raised).__name__
                raise
            finally:
                finished = clock()
                try:
                    finish(engine, running, cursor, statement, parameters, context, finished, error, is_state)
                except Exception:
                    door.fault()
                finally:
                    abandon(running)

        return do_execute

    return make


def wrap_execute_without_parameters(engine: EngineTelemetry) -> Any:
    """Return what makes the wrapper of `do_execute_no_params`, whose arguments are fewer."""

    def make(door: Door, original: Any) -> Any:
        def pass_on(cursor: Any, statement: Any, parameters: Any, context: Any) -> Any:
            return original(cursor, statement, context)

        execute = wrap_execute(engine)(door, pass_on)

        def do_execute_no_params(cursor: Any, statement: Any, context: Any = None) -> Any:
            return execute(cursor, statement, (), context)

        return do_execute_no_params

    return make


def begin(
    engine: EngineTelemetry, cursor: Any, statement: Any, parameters: Any, context: Any, many: bool
) -> Running | None:
    """Make a statement's span, or find the one that it goes on with, and make it current; None for nothing to do."""
    try:
        checkout = context._dbapi_connection._connection_record._sqla_watch
    except AttributeError:
        connection = getattr(context, "_dbapi_connection", None)
        checkout = checkout_of(getattr(connection, "_connection_record", None))
        if checkout is None:  # SQLAlchemy's own look-ups while it connects
            return None
    around = get_current()
    parent = get_current_span(around)
    above = parent.get_span_context()
    scope = current.get()
    if scope is not None and not scope.closed and scope.span is None:
        scope.span = parent
    sampled = not above.is_valid or above.trace_flags.sampled
    options = engine.options
    if not sampled and not options.metrics:
        return None
    connection = checkout.telemetry
    if connection is None or connection.engine is not engine:
        connection = engine.adopt(checkout)
    batch = len(parameters) if many else 0
    what = engine.describe(statement, context.compiled, batch > 1)
    running = Running(checkout, connection, what, statement, around)
    running.parent = parent
    if not sampled or (what.operation in SAVEPOINTS and not options.transactions):
        return running
    running.sampled = True
    running.batch = batch if batch > 1 else 0
    if options.transactions:
        opened = checkout.transaction
        running.around = around = connection.context_for(around, begins=opened is not None and opened.serial > 0)
    if options.enrich:
        running.enriching = engine.enrich(context, what, engine.lines.of(locate(_getframe())))
    elif options.statements == "all":
        running.lines = lines = engine.lines.of(locate(_getframe()))
        if options.fold:
            running.key = key = (what, id(lines), above.span_id)
            if connection.held:
                running.held = connection.find(key, clock())
        if running.held is not None:
            around = running.held.context
        else:
            running.span = span = engine.tracer.start_span(
                what.name, around, _CLIENT, attributes_of(engine, running, statement, parameters)
            )
            running.around = around = set_span_in_context(span, around)
        running.token = attach(around)
    if options.comments:
        running.statement = engine.comments.append(statement, cursor, context, get_current_span(around), scope)
    return running


def attributes_of(engine: EngineTelemetry, running: Running, statement: Any, parameters: Any) -> dict[str, Any]:
    """Return the attributes that a statement's span begins with."""
    what = running.what
    attributes = {
        **what.attributes,
        names.TEXT: what.text if what.is_literal or len(statement) > LONGEST_TEXT else statement,
        **running.lines,
    }
    if running.batch:
        attributes[names.BATCH_SIZE] = running.batch
    elif engine.options.parameters:
        attributes.update(describe_parameters(parameters))
    return attributes


def finish(
    engine: EngineTelemetry,
    running: Running,
    cursor: Any,
    statement: Any,
    parameters: Any,
    context: Any,
    finished: int,
    error: str,
    is_state: bool,
) -> None:
    """Write the metrics of a statement that has ended, and end its span, or hold it open for more."""
    options = engine.options
    what = running.what
    elapsed = finished - running.began
    rows: int | None = None
    counter: RowCounter | None = None
    if what.returns_rows and not error:
        strategy = context.cursor_fetch_strategy
        counter = strategy if isinstance(strategy, RowCounter) else getattr(strategy, "counter", None)
        if counter is None:
            rows = cursor.rowcount
            if rows is not None and rows < 0:
                rows = None
        elif counter.__class__ is RowCounter and not counter.streamed:  # the driver has all of them
            rows, counter = counter.rows, None
    counted = None
    if options.metrics:
        counted = engine.counted.of(engine.target.attributes, what.attributes, error, is_state=is_state)
        engine.metrics.duration.record(elapsed / 1e9, counted)
        if rows is not None:
            engine.metrics.rows.record(rows, counted)
    scope = running.checkout.scope
    if scope is not None and scope.span is None:
        scope.span = running.parent
    if not running.sampled or options.enrich or options.statements == "none":
        return
    if options.statements == "slow":
        if not error and elapsed < options.slow_seconds * 1e9:
            return
        running.lines = lines = engine.lines.of(locate(_getframe()))
        assert running.parent is not None
        running.key = (what, id(lines), running.parent.get_span_context().span_id)
        if options.fold and not error:
            running.held = running.connection.find(running.key, running.began)
    held, span = running.held, running.span
    if held is not None and not error:
        held.settle(engine)
        held.add(running.began, finished, rows, counter)
        return
    if span is None:
        # Seen only now to be slow; or failed among others, which go on without it.
        around = running.around if held is None else engine.outside(running)
        moment = time_ns()
        span = engine.tracer.start_span(
            what.name,
            around,
            _CLIENT,
            attributes_of(engine, running, statement, parameters),
            start_time=moment - (clock() - running.began),
        )
        running.around = set_span_in_context(span, around)
    running.span = None
    if error:
        span.set_attribute(names.ERROR_TYPE, error)
        if is_state:
            span.set_attribute(names.STATUS_CODE, error)
        span.set_status(FAILED)
        span.end()
    elif options.fold or counter is not None:
        held = Held(span, running.around, counted)
        held.add(running.began, finished, rows, counter)
        running.connection.held[running.key if options.fold else object()] = held
    else:
        if options.rows and rows is not None:
            span.set_attribute(names.RETURNED_ROWS, rows)
        span.end()


def abandon(running: Running) -> None:
    """Leave nothing current, and no span open that nobody else will end."""
    token, running.token = running.token, None
    if token is not None:
        detach(token)
    enriching, running.enriching = running.enriching, None
    if enriching is not None:
        enriching()
    span, running.span = running.span, None
    if span is not None:
        span.end()
