"""Statement spans: a wrapper around the dialect's methods, outside of the probe's own.

What is measured here is what the application waits for; the probe inside measures the same without what we cost.
"""

from __future__ import annotations

from sys import _getframe
from time import perf_counter_ns as clock
from types import FrameType
from typing import TYPE_CHECKING, Any

from opentelemetry.context import Context, attach, detach, get_current
from opentelemetry.trace import INVALID_SPAN, Span, SpanKind, get_current_span, set_span_in_context

from sqla_watch.callsite import USER, locate, user_code
from sqla_watch.facts import RowCounter
from sqla_watch.findings import FindingRaised
from sqla_watch.integrations.opentelemetry import names
from sqla_watch.integrations.opentelemetry.connection import FAILED, ConnectionSpans, Held, time_of_day
from sqla_watch.integrations.opentelemetry.describing import Attributes, Described, describe_parameters
from sqla_watch.integrations.opentelemetry.enriching import has_official_span
from sqla_watch.integrations.opentelemetry.spans import Surroundings
from sqla_watch.probes.checkout import Checkout, checkout_of
from sqla_watch.probes.dialect import name_of
from sqla_watch.probes.door import Door
from sqla_watch.probes.internals import DEFAULT_FETCH
from sqla_watch.scopes import current

if TYPE_CHECKING:
    from sqla_watch.integrations.opentelemetry.engine import EngineTelemetry

_CLIENT = SpanKind.CLIENT
_NOTHING = Attributes({}, None)


class Running:
    """A statement on its way to the driver and back."""

    # Defaults of the class, not an __init__: one is made for each statement.
    checkout: Checkout
    connection: ConnectionSpans
    what: Described
    sent_in: Surroundings
    around: Surroundings
    """Where its span is made: the same, or below the transaction's span."""
    inside: Context
    """The context in which its span is current."""
    began: int = 0
    sampled: bool = False
    """Whether there may be a span of it."""
    batch: int = 0
    attributes: Attributes
    """What its span begins with, beside its parameters."""
    key: Any = None
    """What makes statements alike."""
    held: Held | None = None
    """The span of those before it, which it goes on with."""
    span: Span | None = None
    """Its own, if there is one yet."""
    token: Any = None
    enriching: Any = None


def wrap_execute(engine: EngineTelemetry, *, many: bool = False) -> Any:
    """Return what makes the wrapper of `do_execute`, or of `do_executemany`."""
    comments = engine.comments if engine.options.comments else None

    def make(door: Door, original: Any) -> Any:
        def do_execute(cursor: Any, statement: Any, parameters: Any, context: Any = None) -> Any:
            running = None
            sent = statement
            if door.open:
                try:
                    running = begin(engine, statement, parameters, context, many)
                    if running is not None:
                        if comments is not None:
                            sent = comments.append(statement, context, get_current_span(), current.get())
                        running.began = clock()
                except Exception:
                    door.fault()
                    if running is not None:
                        abandon(running)
                    running, sent = None, statement
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
                    token = running.token
                    if token is not None and running.span is None:
                        detach(token)
                    elif token is not None or running.enriching is not None:
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


def begin(engine: EngineTelemetry, statement: Any, parameters: Any, context: Any, many: bool) -> Running | None:
    """Make a statement's span, or find the one that it goes on with, and make it current; None for nothing to do."""
    try:
        checkout = context._dbapi_connection._connection_record._sqla_watch
    except AttributeError:
        unknown = getattr(context, "_dbapi_connection", None)
        checkout = checkout_of(getattr(unknown, "_connection_record", None))
        if checkout is None:  # SQLAlchemy's own look-ups while it connects
            return None
    connection = checkout.telemetry
    if connection is None or connection.engine is not engine:
        connection = engine.adopt(checkout)
    now_in = get_current()
    around = connection.around
    if around is None or around.context is not now_in:
        around = connection.around = Surroundings(now_in)
    scope = current.get()
    if scope is not None and scope.span is None and not scope.closed:
        scope.span = around.span
    options = engine.options
    if not around.is_sampled and not options.metrics and not options.comments:
        return None
    running = Running()
    batch = len(parameters) if many else 0
    running.what = what = engine.describe(statement, context.compiled, batch > 1)
    running.checkout, running.connection = checkout, connection
    running.sent_in = running.around = around
    if not around.is_sampled or (what.is_savepoint and not options.transactions):
        return running
    running.sampled = True
    running.batch = batch if batch > 1 else 0
    if options.transactions:
        opened = checkout.transaction
        running.around = around = connection.inside(around, begins=opened is None or opened.serial > 0)
    if options.enrich or (options.enrich is None and has_official_span(context)):
        running.enriching = engine.enrich(context, what.at(_sender(context)).known)
    elif options.statements == "all":
        running.attributes = attributes = what.at(_sender(context))
        if options.fold:
            running.key = key = (id(attributes), around.span_id)
            if key in connection.held and (held := connection.find(key, clock())) is not None:
                running.held = held
                running.token = attach(held.context)
                return running
        if running.batch or options.parameters:
            more = with_parameters(running, parameters)
            running.span = span = engine.tracer.start_span(what.name, around.context, _CLIENT, more)
        else:
            running.span = span = engine.spans.start(what.name, around, attributes)
        running.inside = inside = set_span_in_context(span, around.context)
        running.token = attach(inside)
    return running


def _sender(context: Any) -> FrameType | None:
    """Return the frame of the user's code that sends a statement.

    Between it and `begin` there are at least so many of SQLAlchemy's, none of which then has to be made an object.
    """
    try:
        frame = _getframe(5 if context.compiled is None else 7 if context.dialect.is_async else 8)
    except ValueError:  # called from a greenlet or from compiled code, without a frame
        frame = _getframe()
    return frame if user_code.kinds.get(frame.f_code.co_filename) == USER else locate(frame)


def with_parameters(running: Running, parameters: Any) -> dict[str, Any]:
    """Return a statement's attributes with what is said of its parameters: how many sets, or their values."""
    if running.batch:
        return {**running.attributes.known, names.BATCH_SIZE: running.batch}
    return {**running.attributes.known, **describe_parameters(parameters)}


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
    rows: int | None = None
    counter: RowCounter | None = None
    if what.returns_rows and not error:
        strategy = context.cursor_fetch_strategy
        if strategy is DEFAULT_FETCH:
            rows = cursor.rowcount
            if rows is not None and rows < 0:
                rows = None
        else:
            counter = strategy if isinstance(strategy, RowCounter) else getattr(strategy, "counter", None)
            if counter is not None and not counter.streamed:
                if counter.__class__ is RowCounter:
                    rows, counter = counter.rows, None  # the driver has all of them
                elif not (options.rows or options.metrics):
                    counter = None  # SQLite's, to be fetched at once: nobody asks for their number
    counted = None
    if options.metrics:
        counted = None if error else what.counted
        if counted is None:
            counted = engine.counted.of(engine.target.attributes, what.attributes, error, is_state=is_state)
            if not error:
                what.counted = counted
        if counter is None or not counter.streamed:  # that of a stream is known with its last fetch
            engine.metrics.duration.record((finished - running.began) / 1e9, counted)
        if rows is not None:
            engine.metrics.rows.record(rows, counted)
    scope = running.checkout.scope
    if scope is not None and scope.span is None:
        scope.span = running.sent_in.span
    is_quick = options.statements == "slow" and not error and finished - running.began < options.slow_seconds * 1e9
    if not running.sampled or running.enriching is not None or options.statements == "none" or is_quick:
        if counter is not None and counted is not None:  # held without a span, for what there is to count of it
            unseen = Held(INVALID_SPAN, running.sent_in.context, _NOTHING, counted, running.began, finished)
            unseen.fetch(counter, finished - running.began)
            running.connection.hold(unseen, unseen)
        return
    if options.statements == "slow":
        running.attributes = what.at(locate(_getframe()))
        if options.fold and not error:
            running.key = (id(running.attributes), running.around.span_id)
            running.held = running.connection.find(running.key, running.began)
    held, span = running.held, running.span
    if held is not None and not error:
        if held.counter is not None:
            held.settle(engine)
        held.add(running.began, finished)
        if rows is not None:
            held.rows = rows + (held.rows or 0)
        if counter is not None:
            held.fetch(counter, finished - running.began)
        return
    if span is None:
        # Seen only now to be slow; or failed among others, which go on without it.
        around = running.around.context
        span = engine.tracer.start_span(
            what.name,
            around,
            _CLIENT,
            with_parameters(running, parameters) if running.batch or options.parameters else running.attributes.known,
            start_time=time_of_day(running.began),
        )
        running.inside = set_span_in_context(span, around)
    running.span = None
    if error:
        span.set_attribute(names.ERROR_TYPE, error)
        if is_state:
            span.set_attribute(names.STATUS_CODE, error)
        span.set_status(FAILED)
        span.end()
    elif options.fold or counter is not None:
        held = Held(span, running.inside, running.attributes, counted, running.began, finished)
        if rows is not None:
            held.rows = rows
        if counter is not None:
            held.fetch(counter, finished - running.began)
        running.connection.hold(running.key or held, held)
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
