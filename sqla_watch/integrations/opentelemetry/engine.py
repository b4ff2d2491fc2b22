"""The telemetry of one engine, and what all engines with the same providers share."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable
from sys import _getframe
from time import time_ns
from typing import Any
from weakref import WeakSet, ref

from opentelemetry import metrics, trace
from opentelemetry.context import attach, detach, get_current
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import SpanKind, TracerProvider, get_current_span, set_span_in_context
from sqlalchemy.engine import Engine

from sqla_watch import __version__, registry
from sqla_watch.callsite import locate
from sqla_watch.integrations.opentelemetry import names
from sqla_watch.integrations.opentelemetry.comments import Comments
from sqla_watch.integrations.opentelemetry.connection import FAILED, ConnectionSpans
from sqla_watch.integrations.opentelemetry.describing import Described, Statements, Target, describe_line
from sqla_watch.integrations.opentelemetry.enriching import enrich, watch_spans
from sqla_watch.integrations.opentelemetry.findings import tell, tell_request
from sqla_watch.integrations.opentelemetry.metrics import Metrics, StatementAttributes
from sqla_watch.integrations.opentelemetry.spans import StatementSpans
from sqla_watch.integrations.opentelemetry.statements import (
    wrap_execute,
    wrap_execute_without_parameters,
)
from sqla_watch.probes.checkout import Checkout, checkout_of
from sqla_watch.probes.dialect import name_of
from sqla_watch.probes.door import Door, logger
from sqla_watch.probes.pool import listen
from sqla_watch.scopes import Scope
from sqla_watch.settings import Settings
from sqla_watch.telemetry import Telemetry

SCHEMA = "https://opentelemetry.io/schemas/1.40.0"
"""The version of the conventions whose names are written."""


class Signals:
    """A tracer and the instruments of a pair of providers, whatever number of engines writes to them."""

    def __init__(self, tracer_provider: TracerProvider | None, meter_provider: MeterProvider | None) -> None:
        self.tracer_provider = tracer_provider
        self.meter_provider = meter_provider
        self.tracer = trace.get_tracer("sqla_watch", __version__, tracer_provider, SCHEMA)
        self.spans = StatementSpans(self.tracer)
        self.metrics = Metrics(metrics.get_meter("sqla_watch", __version__, meter_provider, SCHEMA))

    def opening(self, scope: Scope) -> None:
        """A scope is opened: the span that is current here is the one of the request, the task, the job."""
        span = get_current_span()
        if span.get_span_context().is_valid:
            scope.span = span

    def answering(self, scope: Scope) -> None:
        """The response is about to be complete: instrumentations of ASGI end the request's span with it."""
        try:
            telemetry = _wanted(scope)
            if telemetry is not None and telemetry.findings and scope.span is not None and scope.span.is_recording():
                tell_request(scope, scope.judge_now())
        except Exception:
            logger.exception("sqla_watch: findings could not be told as events; please report this")

    def report(self, scope: Scope) -> None:
        """A scope was closed."""
        telemetry = _wanted(scope)
        try:
            if telemetry is None or not scope.own_findings:
                return
            if telemetry.findings:
                tell(self.tracer, scope)
            if telemetry.metrics:
                for finding in scope.own_findings:
                    self.metrics.count_finding(finding, scope.name)
        finally:
            scope.span = None


def _wanted(scope: Scope) -> Telemetry | None:
    """Return what is told of a scope, None for nothing. Its settings may be a middleware's, which say nothing of it."""
    for telemetry in (scope.settings.telemetry, registry.active_settings().telemetry):
        if telemetry is not None:
            return telemetry if isinstance(telemetry, Telemetry) else None
    return Telemetry()


_signals: list[Signals] = []


def signals_of(tracer_provider: TracerProvider | None, meter_provider: MeterProvider | None) -> Signals:
    """Return the signals of two providers, None for the global ones; always the same of the same two."""
    for known in _signals:
        if known.tracer_provider is tracer_provider and known.meter_provider is meter_provider:
            return known
    made = Signals(tracer_provider, meter_provider)
    _signals.append(made)
    return made


class EngineTelemetry:
    """The spans and metrics of one engine, from `open` to `close` (`PoolTelemetry`)."""

    def __init__(self, engine: Engine, settings: Settings, telemetry: Telemetry, signals: Signals) -> None:
        self.options = telemetry
        self.signals = signals
        self.tracer = signals.tracer
        self.spans = signals.spans
        self.metrics = signals.metrics
        self.target = Target(engine)
        self.describe: Callable[[Any, Any, bool], Described] = Statements(self.target).of
        self.counted = StatementAttributes()
        self.comments = Comments(self.options.application)
        self.door = Door("telemetry", engine.dialect)
        self._engine = ref(engine)
        self._longest_wait = settings.rule("pool-wait")["min_seconds"]
        self._connections: WeakSet[ConnectionSpans] = WeakSet()

    @property
    def pool(self) -> Any:
        """The engine's pool, which is another one after `Engine.dispose()`; None once the engine is gone."""
        engine = self._engine()
        return None if engine is None else engine.pool

    def open(self) -> None:
        """Put the wrappers on."""
        door = self.door
        if self.options.metrics or self.options.enrich or self.options.statements != "none":
            door.wrap("do_execute", wrap_execute(self))
            door.wrap("do_executemany", wrap_execute(self, many=True))
            door.wrap("do_execute_no_params", wrap_execute_without_parameters(self))
        for method, name, outcome in (
            ("do_commit", "COMMIT", "commit"),
            ("do_rollback", "ROLLBACK", "rollback"),
            ("do_prepare_twophase", "PREPARE TRANSACTION", ""),
            ("do_commit_twophase", "COMMIT", "commit"),
            ("do_rollback_twophase", "ROLLBACK", "rollback"),
        ):
            door.wrap(method, self._wrap_end(name, outcome))
        engine = self._engine()
        if engine is not None:
            listen(engine.dialect, engine.pool, self)
        if self.options.metrics:
            self.metrics.engines.add(self)
        atexit.register(self.end_spans)
        _open.add(self)

    def close(self) -> None:
        """Take the wrappers off, and end the spans that are open."""
        self.door.close()
        engine = self._engine()
        if engine is not None:
            listen(engine.dialect, engine.pool, None)
        self.metrics.engines.discard(self)
        _open.discard(self)
        atexit.unregister(self.end_spans)
        self.end_spans()

    def forget_spans(self) -> None:
        """Let go of the spans of all connections without ending them: in a forked process they are the parent's."""
        for connection in list(self._connections):
            connection.forget()

    def end_spans(self) -> None:
        """End the spans of all connections that are out."""
        for connection in list(self._connections):
            connection.close()

    def adopt(self, checkout: Checkout) -> ConnectionSpans:
        """Return what is told of a connection that was out before this was opened."""
        checkout.telemetry = made = self._new()
        return made

    def _new(self) -> ConnectionSpans:
        made = ConnectionSpans(self)
        self._connections.add(made)
        return made

    def enrich(self, context: Any, attributes: dict[str, Any]) -> Any:
        """Enrich the spans that others make of a statement; returns what ends that."""
        if self.options.enrich:
            watch_spans(self.signals.tracer_provider or trace.get_tracer_provider())
        return enrich(context, attributes)

    # What the pools tell (`PoolTelemetry`).

    def created(self, nanoseconds: int) -> None:
        """A connection was opened."""
        try:
            if self.options.metrics:
                self.metrics.create_time.record(nanoseconds / 1e9, self.target.pool)
        except Exception:
            self.door.fault()

    def taken(self, started: int, nanoseconds: int) -> ConnectionSpans:
        """A connection was got."""
        try:
            if self.options.metrics:
                self.metrics.wait_time.record(max(0, nanoseconds) / 1e9, self.target.pool)
            self._waited(nanoseconds, timed_out=False)
        except Exception:
            self.door.fault()
        return self._new()

    def in_vain(self, started: int, nanoseconds: int, *, timed_out: bool) -> None:
        """Somebody waited and got none."""
        try:
            if self.options.metrics:
                self.metrics.wait_time.record(nanoseconds / 1e9, self.target.pool)
                if timed_out:
                    self.metrics.timeouts.add(1, self.target.pool)
            self._waited(nanoseconds, timed_out=timed_out)
        except Exception:
            self.door.fault()

    def _waited(self, nanoseconds: int, *, timed_out: bool) -> None:
        """Write the span of a wait that was long."""
        if not self.options.waits or nanoseconds < self._longest_wait * 1e9:
            return
        above = get_current_span().get_span_context()
        if above.is_valid and not above.trace_flags.sampled:
            return
        now = time_ns()
        span = self.tracer.start_span(
            "sqla_watch.pool.wait",
            kind=SpanKind.INTERNAL,
            attributes={
                **self.target.pool,
                names.TIMED_OUT: timed_out,
                **describe_line(locate(_getframe())),
            },
            start_time=now - nanoseconds,
        )
        if timed_out:
            span.set_status(FAILED)
        span.end(now)

    # Transactions.

    def _wrap_end(self, name: str, outcome: str) -> Any:
        """Return what makes the wrapper of a COMMIT or ROLLBACK; or of what comes before them, without an outcome."""

        def make(door: Door, original: Any) -> Any:
            def end(connection: Any, *arguments: Any, **options: Any) -> Any:
                spans = self._spans_of(connection) if door.open else None
                if spans is None or (spans.transaction is None and not spans.held):
                    return original(connection, *arguments, **options)
                span = token = None
                try:
                    spans.end_held()
                    if spans.transaction is not None and not spans.ending:
                        span = self.tracer.start_span(
                            name,
                            spans.transaction.inside.context,
                            SpanKind.CLIENT,
                            {**self.target.attributes, names.OPERATION: name, names.SUMMARY: name},
                        )
                        token = attach(set_span_in_context(span, get_current()))
                        spans.ending = True
                except Exception:
                    door.fault()
                error = ""
                try:
                    return original(connection, *arguments, **options)
                except BaseException as raised:
                    error = name_of(raised)
                    raise
                finally:
                    try:
                        if token is not None:
                            detach(token)
                        if span is not None:
                            spans.ending = False
                            if error:
                                span.set_attribute(names.ERROR_TYPE, error)
                                span.set_status(FAILED)
                            span.end()
                        if outcome and not spans.ending:
                            spans.end_transaction("rollback" if error else outcome, error)
                    except Exception:
                        door.fault()

            return end

        return make

    def _spans_of(self, connection: Any) -> ConnectionSpans | None:
        """Return what is told of a connection: the pool's, or of a two-phase transaction SQLAlchemy's own."""
        try:
            if not hasattr(connection, "_connection_record"):
                connection = getattr(connection, "_dbapi_connection", None)
            checkout = checkout_of(getattr(connection, "_connection_record", None))
            found = None if checkout is None else checkout.telemetry
            return found if isinstance(found, ConnectionSpans) and found.engine is self else None
        except Exception:
            self.door.fault()
            return None


def start(
    engine: Engine,
    settings: Settings,
    telemetry: Telemetry,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
) -> EngineTelemetry:
    """Begin to tell of an engine."""
    made = EngineTelemetry(engine, settings, telemetry, signals_of(tracer_provider, meter_provider))
    made.open()
    logger.debug("sqla_watch: telemetry of %r is on", engine)
    return made


_open: WeakSet[EngineTelemetry] = WeakSet()


def _begin_anew() -> None:
    for telemetry in list(_open):
        telemetry.forget_spans()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
