"""Who is measured by `benchmarks.overhead`: bare SQLAlchemy, empty listeners, sqla_watch, and the peers.

A contestant is set up once in a process of its own, as its documentation says: `prepare` before SQLAlchemy's engines
are made, `watch` for each engine, `around` for what belongs together (a scope, a span, a recording), `wsgi` and `asgi`
for an application. What it records is thrown away where it would be sent to somebody. Where a default is to a peer's
disadvantage here it is spared, and that is said at its class.
"""

from __future__ import annotations

import contextvars
import logging
import os
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib import metadata
from typing import Any, ClassVar

import sqlalchemy
from sqlalchemy import Engine, event

__all__ = ["AGAIN", "BARE", "CONTESTANTS", "DEVELOPMENT", "OUTSIDE", "PAIR", "PRODUCTION", "TRACED", "UNSAMPLED"]
__all__ += ["Contestant", "NotHere", "describe", "providers"]

BARE = "bare"
AGAIN = "bare again (A/A)"
PAIR = "empty listener pair"
PRODUCTION = "sqla_watch, production"
DEVELOPMENT = "sqla_watch, development"
TRACED = "sqla_watch with OpenTelemetry"
OUTSIDE = "sqla_watch, no implicit scopes"
UNSAMPLED = "sqla_watch, not in the sample"


class NotHere(Exception):
    """A contestant cannot take part; the message says why."""


class Contestant:
    """Bare SQLAlchemy, and what the others have in common."""

    distribution: ClassVar[str] = ""
    """Whose version is shown."""

    def prepare(self) -> None:
        """Set up what is there once in a process.

        Raises:
            ImportError, NotHere: It is not installed, or not for this version of SQLAlchemy.
        """

    def watch(self, engine: Engine) -> None:
        """Watch an engine; those who watch every engine of the process need not be told."""

    def leave(self, engine: Engine) -> None:
        """The engine is not used any more."""

    def around(self) -> AbstractContextManager[Any]:
        """Take what runs in a block as one unit."""
        return nullcontext()

    def wsgi(self, app: Any, engine: Engine) -> Any:
        """Wrap a WSGI application; without a middleware of its own each request is one unit."""
        if type(self).around is Contestant.around:
            return app

        def serve(environ: Any, start_response: Any) -> Iterable[bytes]:
            with self.around():
                return app(environ, start_response)  # type: ignore[no-any-return]

        return serve

    def asgi(self, app: Any, engine: Engine) -> Any:
        """Wrap an ASGI application; without a middleware of its own each request is one unit."""
        if type(self).around is Contestant.around:
            return app

        async def serve(scope: Any, receive: Any, send: Any) -> None:
            with self.around():
                await app(scope, receive, send)

        return serve


class ListenerPair(Contestant):
    """What everything that is built on events pays at least."""

    def watch(self, engine: Engine) -> None:
        event.listen(engine, "before_cursor_execute", lambda *arguments: None)
        event.listen(engine, "after_cursor_execute", lambda *arguments: None)


class Ours(Contestant):
    """sqla_watch with every rule that is on by default; what it finds is logged, or warned of, and thrown away.

    Each engine is taken off again, so that the watchdog has nothing to do with the workload before.
    """

    distribution = "sqla-watch"
    profile: ClassVar[str] = "production"
    settings: ClassVar[dict[str, Any]] = {}
    sample_rate: ClassVar[float] = 1.0

    def prepare(self) -> None:
        import sqla_watch

        self.sqla_watch = sqla_watch
        warnings.simplefilter("default")

    def watch(self, engine: Engine) -> None:
        settings = self.sqla_watch.Settings(profile=self.profile, **self.settings)
        self.sqla_watch.install(engine, settings=settings, **self.telemetry())

    def telemetry(self) -> dict[str, Any]:
        return {}

    def leave(self, engine: Engine) -> None:
        self.sqla_watch.uninstall()

    def around(self) -> AbstractContextManager[Any]:
        return self.sqla_watch.scope("block", kind="request")

    def wsgi(self, app: Any, engine: Engine) -> Any:
        from sqla_watch.integrations.wsgi import SqlaWatchMiddleware

        return SqlaWatchMiddleware(app, sample_rate=self.sample_rate)

    def asgi(self, app: Any, engine: Engine) -> Any:
        from sqla_watch.integrations.asgi import SqlaWatchMiddleware

        return SqlaWatchMiddleware(app, sample_rate=self.sample_rate)


class Development(Ours):
    profile = "development"


class Outside(Ours):
    """Installed, and nothing is watched: there is no scope, and a connection makes none."""

    settings = {"implicit_scopes": False}
    around = Contestant.around
    wsgi = Contestant.wsgi
    asgi = Contestant.asgi


class Unsampled(Ours):
    """Installed, and each unit is one of those which are not in the sample."""

    sample_rate = 0.0

    def prepare(self) -> None:
        super().prepare()
        from sqla_watch.scopes import UNSAMPLED, current

        self._current, self._unsampled = current, UNSAMPLED

    @contextmanager
    def around(self) -> Iterator[None]:
        token = self._current.set(self._unsampled)
        try:
            yield
        finally:
            self._current.reset(token)


def providers(*, sampled: bool = True) -> tuple[Any, Any]:
    """Return providers of OpenTelemetry that record everything, or no trace, and export in batches to nobody."""
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON

    traces = TracerProvider(sampler=ALWAYS_ON if sampled else ALWAYS_OFF)
    traces.add_span_processor(BatchSpanProcessor(nobody(), 100_000))
    return traces, MeterProvider([InMemoryMetricReader()])


def nobody() -> Any:
    """Return an exporter of OpenTelemetry that throws away what it gets."""
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

    class Nobody(SpanExporter):
        def export(self, spans: Any) -> Any:
            return SpanExportResult.SUCCESS

    return Nobody()


class Traced(Ours):
    """With spans and metrics, as they are by default; a scope is within a span, as a request's is."""

    def prepare(self) -> None:
        try:
            import sqla_watch.telemetry  # noqa: F401
        except ImportError as error:
            raise NotHere(f"this sqla_watch has no telemetry: {error}") from error
        super().prepare()
        self._traces, self._metrics = providers()
        self._tracer = self._traces.get_tracer("benchmark")

    def telemetry(self) -> dict[str, Any]:
        return {"tracer_provider": self._traces, "meter_provider": self._metrics}

    @contextmanager
    def around(self) -> Iterator[None]:
        with self._tracer.start_as_current_span("block"), super().around():
            yield

    wsgi = Contestant.wsgi
    asgi = Contestant.asgi


class OpenTelemetry(Contestant):
    """The official instrumentation of SQLAlchemy; the dependency check, which refuses 2.1, is skipped."""

    distribution = "opentelemetry-instrumentation-sqlalchemy"

    def prepare(self) -> None:
        from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor

        self._instrumentor = SQLAlchemyInstrumentor()
        self._traces, self._metrics = providers()
        self._tracer = self._traces.get_tracer("benchmark")

    def watch(self, engine: Engine) -> None:
        self._instrumentor.instrument(
            engine=engine, tracer_provider=self._traces, meter_provider=self._metrics, skip_dep_check=True
        )

    def leave(self, engine: Engine) -> None:
        self._instrumentor.uninstrument()

    def around(self) -> AbstractContextManager[Any]:
        return self._tracer.start_as_current_span("block")  # type: ignore[no-any-return]


class Sentry(Contestant):
    """Every transaction sampled; only the integration with SQLAlchemy is on, and nothing is sent."""

    distribution = "sentry-sdk"

    def prepare(self) -> None:
        import sentry_sdk
        from sentry_sdk.integrations.sqlalchemy import SqlalchemyIntegration

        sentry_sdk.init(
            dsn="http://key@127.0.0.1:9/1",
            traces_sample_rate=1.0,
            integrations=[SqlalchemyIntegration()],
            default_integrations=False,
            transport=lambda event: None,
        )
        self._sentry = sentry_sdk

    def around(self) -> AbstractContextManager[Any]:
        return self._sentry.start_transaction(name="block")


class Datadog(Contestant):
    """Its integration with SQLAlchemy alone; there is no agent, and what it tells of itself is off."""

    distribution = "ddtrace"

    def prepare(self) -> None:
        os.environ.update(DD_TRACE_AGENT_URL="http://127.0.0.1:9", DD_INSTRUMENTATION_TELEMETRY_ENABLED="false")
        os.environ.update(DD_REMOTE_CONFIGURATION_ENABLED="false", DD_TRACE_STARTUP_LOGS="false")
        logging.getLogger("ddtrace").setLevel(logging.CRITICAL)
        from ddtrace.contrib.sqlalchemy import trace_engine
        from ddtrace.trace import tracer

        self._trace_engine, self._tracer = trace_engine, tracer

    def watch(self, engine: Engine) -> None:
        self._trace_engine(engine)

    def around(self) -> AbstractContextManager[Any]:
        return self._tracer.trace("block")  # type: ignore[no-any-return]


class Logfire(Contestant):
    """Nothing is sent or shown; spans go to an exporter that throws them away."""

    distribution = "logfire"

    def prepare(self) -> None:
        import logfire
        from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        logfire.configure(
            send_to_logfire=False,
            console=False,
            additional_span_processors=[BatchSpanProcessor(nobody(), 100_000)],
        )
        self._logfire, self._instrumentor = logfire, SQLAlchemyInstrumentor()

    def watch(self, engine: Engine) -> None:
        self._logfire.instrument_sqlalchemy(engine, skip_dep_check=True)

    def leave(self, engine: Engine) -> None:
        self._instrumentor.uninstrument()

    def around(self) -> AbstractContextManager[Any]:
        return self._logfire.span("block")


class Tracepanel(Contestant):
    """Its traces are thrown away instead of sent to its agent."""

    distribution = "tracepanel"

    def prepare(self) -> None:
        self._folder = tempfile.TemporaryDirectory()  # its files would lie in the working directory
        os.environ["TRACEPANEL_DIR"] = self._folder.name
        import tracepanel.asgi
        import tracepanel.wsgi
        from tracepanel.storage import transport

        class Nowhere:
            def submit(self, trace: Any) -> None:
                """Throw it away."""

            def flush(self, timeout: float = 5.0) -> None:
                """There is nothing."""

        self._tracepanel = tracepanel
        tracepanel.wsgi.install(lambda environ, start_response: [], enabled=True)  # also listens to every engine
        transport.set_writer(Nowhere())

    def around(self) -> AbstractContextManager[Any]:
        return self._tracepanel.trace("block")  # type: ignore[no-any-return]

    def wsgi(self, app: Any, engine: Engine) -> Any:
        return self._tracepanel.wsgi.install(app, enabled=True)

    def asgi(self, app: Any, engine: Engine) -> Any:
        return self._tracepanel.asgi.install(app, enabled=True)


class QuerySpy(Contestant):
    """It listens all the time instead of anew for each recording."""

    distribution = "queryspy"

    def prepare(self) -> None:
        import queryspy
        from queryspy._recorder import Recorder, start

        self._queryspy = queryspy
        contextvars.copy_context().run(start, Recorder())  # of another context: it sees nothing

    @contextmanager
    def around(self) -> Iterator[None]:
        with self._queryspy.record() as recorder:
            yield
        recorder.findings()

    def wsgi(self, app: Any, engine: Engine) -> Any:
        from queryspy.wsgi import QuerySpyMiddleware

        return QuerySpyMiddleware(app)

    def asgi(self, app: Any, engine: Engine) -> Any:
        from queryspy.asgi import QuerySpyMiddleware

        return QuerySpyMiddleware(app)


class QueryGuard(Contestant):
    """pytest-queryguard, as its plugin puts listeners, a collector and its detectors together for each test."""

    distribution = "pytest-queryguard"

    def prepare(self) -> None:
        from pytest_queryguard import collector, detectors, listeners

        listeners.install()
        self._collector, self._detectors = collector, detectors

    @contextmanager
    def around(self) -> Iterator[None]:
        recorded = self._collector.QueryCollector()
        self._collector.push(recorded)
        try:
            yield
        finally:
            self._collector.pop(recorded)
            self._detectors.detect(recorded, relationship_threshold=2, repeat_threshold=5, write_loop_threshold=None)


class SqlTap(Contestant):
    """It profiles all the time, and its statistics are collected after each unit."""

    distribution = "sqltap"

    def prepare(self) -> None:
        import sqltap

        self._sqltap = sqltap

    def watch(self, engine: Engine) -> None:
        self._profiler = self._sqltap.start(engine)

    def leave(self, engine: Engine) -> None:
        self._profiler.stop()

    @contextmanager
    def around(self) -> Iterator[None]:
        yield
        self._profiler.collect()


class Monitor(Contestant):
    """fastapi-sqlalchemy-monitor: it has an ASGI middleware; elsewhere its statistics are begun for each unit."""

    distribution = "fastapi-sqlalchemy-monitor"

    def prepare(self) -> None:
        import fastapi_sqlalchemy_monitor
        from fastapi_sqlalchemy_monitor.action import WarnMaxTotalInvocation

        self._middleware: Any = fastapi_sqlalchemy_monitor.SQLAlchemyMonitor
        self._actions = [WarnMaxTotalInvocation(max_invocations=10)]

    def watch(self, engine: Engine) -> None:
        async def no_application(scope: Any, receive: Any, send: Any) -> None:
            raise NotImplementedError

        self._monitor = self._middleware(
            no_application, engine=engine, actions=self._actions, allow_no_request_context=True
        )

    @contextmanager
    def around(self) -> Iterator[None]:
        self._monitor.init_statistics()
        yield
        for action in self._actions:
            action.handle(self._monitor.statistics)

    def asgi(self, app: Any, engine: Engine) -> Any:
        self._monitor.app = app  # the one that listens to the engine already
        return self._monitor


class NPlusOne(Contestant):
    """Its profiler around each unit; what it finds is logged, as its middleware does. It does not know 2.1."""

    distribution = "nplusone"

    def prepare(self) -> None:
        try:
            import nplusone.ext.sqlalchemy  # noqa: F401
        except AttributeError as error:
            raise NotHere(f"it does not work with SQLAlchemy {sqlalchemy.__version__}: {error}") from error
        from nplusone.core.profiler import Profiler

        class Logging(Profiler):  # type: ignore[misc]
            def notify(self, message: Any) -> None:
                logging.getLogger("nplusone").warning(message.message)

        self._profiler = Logging

    def around(self) -> AbstractContextManager[Any]:
        return self._profiler()  # type: ignore[no-any-return]


CONTESTANTS: dict[str, type[Contestant]] = {
    BARE: Contestant,
    AGAIN: Contestant,
    PAIR: ListenerPair,
    PRODUCTION: Ours,
    DEVELOPMENT: Development,
    TRACED: Traced,
    OUTSIDE: Outside,
    UNSAMPLED: Unsampled,
    "opentelemetry-instrumentation-sqlalchemy": OpenTelemetry,
    "sentry-sdk": Sentry,
    "ddtrace": Datadog,
    "logfire": Logfire,
    "tracepanel": Tracepanel,
    "queryspy": QuerySpy,
    "pytest-queryguard": QueryGuard,
    "sqltap": SqlTap,
    "fastapi-sqlalchemy-monitor": Monitor,
    "nplusone": NPlusOne,
}


def describe(name: str) -> str:
    """Return a contestant's name with the version that is installed."""
    distribution = CONTESTANTS[name].distribution
    if not distribution or distribution == "sqla-watch":
        return name
    try:
        return f"{name} {metadata.version(distribution)}"
    except metadata.PackageNotFoundError:
        return name
