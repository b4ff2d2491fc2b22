"""Spans that the SDK hears of late are the same as those it makes itself, and are made where nobody can tell."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, Sampler, TraceIdRatioBased
from opentelemetry.trace import (
    INVALID_SPAN,
    NonRecordingSpan,
    Span,
    SpanContext,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
    get_current_span,
    set_span_in_context,
)
from sqlalchemy import Connection, Engine, create_engine, event, select, text
from sqlalchemy.exc import DBAPIError, OperationalError

import sqla_watch
from sqla_watch.demo.models import Customer
from sqla_watch.integrations.opentelemetry.late import LateSpan


class SeesBeginnings(SpanProcessor):
    """A processor of somebody's own, for which each span has to be the SDK's from its beginning on."""


class Told:
    """An engine and the spans that are told of it, seen by the driver as well."""

    def __init__(self, provider: TracerProvider, **telemetry: Any) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = provider
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.engine = create_engine("sqlite://")
        self.seen: list[Span] = []
        self.while_driver_works: Callable[[Span], None] = self.seen.append

        def hear(*_: object) -> int:
            self.while_driver_works(get_current_span())
            return 1

        @event.listens_for(self.engine, "connect")
        def add_function(connection: Any, record: Any) -> None:
            connection.create_function("hear", 0, hear)

        settings = sqla_watch.Settings(
            profile="test", telemetry=sqla_watch.Telemetry(**{"metrics": False, "fold": False, **telemetry})
        )
        sqla_watch.install(self.engine, settings=settings, tracer_provider=provider)

    @contextmanager
    def connect(self, above: Span | None = None) -> Iterator[Connection]:
        if above is None:
            above = self.provider.get_tracer("test").start_span("request")
        with trace.use_span(above, end_on_exit=True), self.engine.connect() as connection:
            yield connection

    @property
    def spans(self) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name != "request"]


@pytest.fixture(autouse=True)
def uninstalled() -> Iterator[None]:
    yield
    sqla_watch.uninstall()


def fields_of(span: ReadableSpan) -> dict[str, Any]:
    """All that an exporter can see, but for numbers and times."""
    assert span.context is not None
    found = {
        name: getattr(span, name)
        for name in (
            "name", "kind", "status", "events", "links", "dropped_attributes", "dropped_events", "dropped_links",
            "instrumentation_scope", "instrumentation_info",
        )
    }  # fmt: skip
    found["status"] = (span.status.status_code, span.status.description)
    found["resource"] = span.resource.attributes
    found["attributes"] = [
        (name, value) for name, value in (span.attributes or {}).items() if name != "sqla_watch.database_seconds"
    ]
    found["types"] = [(name, type(value)) for name, value in (span.attributes or {}).items()]
    found["context"] = (
        span.context.trace_flags, type(span.context.trace_flags), dict(span.context.trace_state),
        span.context.is_remote, span.context.is_valid,
    )  # fmt: skip
    return found


REMOTE = SpanContext(7, 8, True, TraceFlags(TraceFlags.SAMPLED), TraceState([("vendor", "1")]))
RANDOM = SpanContext(7, 8, True, TraceFlags(0x03), TraceState())
NARROW = SpanLimits(max_span_attributes=4, max_span_attribute_length=6)


@pytest.mark.filterwarnings("ignore:.*You should use instrumentation_scope:DeprecationWarning")
@pytest.mark.parametrize("above", [None, REMOTE, RANDOM], ids=["local", "remote", "random"])
@pytest.mark.parametrize("limits", [SpanLimits(), NARROW], ids=["unlimited", "limited"])
@pytest.mark.parametrize("telemetry", [{}, {"fold": True}, {"rows": True}, {"transactions": True}], ids=str)
def test_an_exporter_sees_the_same(above: SpanContext | None, limits: SpanLimits, telemetry: dict[str, bool]) -> None:
    told = []
    for processors in ([], [SeesBeginnings()]):
        provider = TracerProvider(span_limits=limits)
        for each in processors:
            provider.add_span_processor(each)
        each = Told(provider, **telemetry)
        with each.connect(None if above is None else NonRecordingSpan(above)) as connection:
            for query in ("SELECT hear()", "SELECT hear() UNION SELECT 2", "SELECT nothing"):
                for _ in range(2):
                    try:
                        connection.execute(text(query)).all()
                    except OperationalError:
                        pass
        told.append(each)
    late, plain = told
    assert [type(span) is LateSpan for span in late.seen] == [True] * len(late.seen)
    assert not any(isinstance(span, LateSpan) for span in plain.seen)
    assert len(late.seen) == len(plain.seen) >= 2
    assert len(late.spans) == len(plain.spans) >= 4
    assert [fields_of(span) for span in late.spans] == [fields_of(span) for span in plain.spans]
    for span in late.spans:
        assert span.start_time is not None
        assert span.end_time is not None
        assert 0 < span.start_time <= span.end_time
    numbers = [span.context.span_id for span in late.spans if span.context is not None]
    assert len(set(numbers)) == len(numbers)
    assert {span.get_span_context().span_id for span in late.seen} <= set(numbers)
    if above is not None and "transactions" not in telemetry:
        assert all(span.parent == above for span in late.spans)


def test_what_the_driver_says_of_it_is_in_it() -> None:
    told = Told(TracerProvider())

    def say(span: Span) -> None:
        span.set_attribute("a", 1)
        span.set_attributes({"b": 2})
        span.add_event("event", {"c": 3})
        span.record_exception(ValueError("fourth"))
        span.add_link(REMOTE)
        span.update_name("fifth")
        span.set_status(Status(StatusCode.ERROR, "sixth"))
        assert span.is_recording()
        with told.provider.get_tracer("driver").start_as_current_span("request"):
            pass

    told.while_driver_works = say
    with told.connect() as connection:
        connection.execute(text("SELECT hear()")).all()
    (span,) = told.spans
    assert span.attributes is not None
    assert (span.attributes["a"], span.attributes["b"]) == (1, 2)
    assert span.attributes["db.query.text"] == "SELECT hear()"
    assert [each.name for each in span.events] == ["event", "exception"]
    assert [link.context for link in span.links] == [REMOTE]
    assert span.name == "fifth"
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "sixth")
    below = [each for each in told.exporter.get_finished_spans() if each.parent == span.context]
    assert [each.name for each in below] == ["request"]


def test_what_is_said_after_its_end_is_too_late() -> None:
    told = Told(TracerProvider())
    with told.connect() as connection:
        connection.execute(text("SELECT hear()")).all()
    (late,) = told.seen
    assert not late.is_recording()
    late.set_attribute("a", 1)
    late.end()
    (span,) = told.spans
    assert "a" not in (span.attributes or {})


class OwnSampler(ParentBased):
    """A sampler of somebody's own, which may look at anything."""

    def should_sample(self, *arguments: Any, **options: Any) -> Any:
        return super().should_sample(*arguments, **options)


@pytest.mark.parametrize(
    ("sampler", "late"),
    [
        (ALWAYS_ON, True),
        (ParentBased(ALWAYS_ON), True),
        (ParentBased(TraceIdRatioBased(0.5)), True),
        (ParentBased(ALWAYS_ON, local_parent_sampled=ALWAYS_OFF), False),
        (TraceIdRatioBased(1.0), False),
        (OwnSampler(ALWAYS_ON), False),
    ],
    ids=lambda value: value.get_description()[:60] if isinstance(value, Sampler) else str(value),
)
def test_only_a_sampler_that_follows_the_span_above_is_not_asked(sampler: Sampler, late: bool) -> None:
    told = Told(TracerProvider(sampler=sampler))
    with told.connect(NonRecordingSpan(SpanContext(7, 8, False, TraceFlags(1), TraceState()))) as connection:
        connection.execute(text("SELECT hear()")).all()
    assert [isinstance(span, LateSpan) for span in told.seen] == [late]


def test_a_processor_that_is_added_sees_spans_begin_from_then_on() -> None:
    told = Told(TracerProvider())
    query = text("SELECT hear()")
    with told.connect() as connection:
        connection.execute(query).all()
        told.provider.add_span_processor(BatchSpanProcessor(InMemorySpanExporter()))
        connection.execute(query).all()
        told.provider.add_span_processor(SeesBeginnings())
        connection.execute(query).all()
    assert [isinstance(span, LateSpan) for span in told.seen] == [True, True, False]
    told.provider.shutdown()


def test_without_a_span_above_the_sampler_is_asked() -> None:
    told = Told(TracerProvider(sampler=ParentBased(ALWAYS_OFF)))
    with told.engine.connect() as connection:
        connection.execute(text("SELECT hear()")).all()
    assert not told.spans
    assert [isinstance(span, LateSpan) for span in told.seen] == [False]


def test_the_global_provider_that_is_set_later_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from opentelemetry.util._once import Once

    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
    monkeypatch.setattr(trace, "_TRACER_PROVIDER_SET_ONCE", Once())
    from sqla_watch.integrations.opentelemetry.spans import StatementSpans, Surroundings
    from tests.opentelemetry.conftest import Backend

    spans = StatementSpans(trace.get_tracer("late"))
    above = set_span_in_context(NonRecordingSpan(REMOTE))
    from sqla_watch.integrations.opentelemetry.describing import Attributes

    attributes = Attributes({"a": 1}, None)
    assert not isinstance(spans.start("before", Surroundings(above), attributes), LateSpan)
    backend = Backend()
    provider = TracerProvider()
    trace.set_tracer_provider(provider)
    assert isinstance(spans.start("after", Surroundings(above), attributes), LateSpan)
    backend.traces.shutdown()


@pytest.mark.parametrize("fold", [False, True])
def test_each_statement_is_in_one_span_that_has_ended(engine: Engine, fold: bool) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    settings = sqla_watch.Settings(
        profile="production", telemetry=sqla_watch.Telemetry(fold=fold, findings=False, rows=True)
    )
    sqla_watch.install(engine, settings=settings, tracer_provider=provider)
    sqla_watch.install(None, settings=settings, tracer_provider=provider)
    query = text("SELECT 1 / (:number % 7) FROM rates LIMIT 1")

    def work() -> None:
        for request in range(10):
            with provider.get_tracer("test").start_as_current_span("request"), engine.connect() as connection:
                connection = connection.execution_options(isolation_level="AUTOCOMMIT")
                for number in range(request, request + 20):
                    try:
                        connection.execute(query, {"number": number})
                    except DBAPIError:
                        pass
            assert get_current_span() is INVALID_SPAN

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spans = [span for span in exporter.get_finished_spans() if span.name != "request"]
    requests = {span.context.span_id for span in exporter.get_finished_spans() if span.name == "request"}
    counts = [(span.attributes or {}).get("sqla_watch.statements", 1) for span in spans]
    assert sum(counts) == 4 * 10 * 20
    assert len({span.context.span_id for span in spans}) == len(spans)
    assert {span.parent.span_id for span in spans if span.parent} == requests
    failed = [span for span in spans if span.status.status_code is StatusCode.ERROR]
    assert len(failed) == 4 * sum(number % 7 == 0 for start in range(10) for number in range(start, start + 20))
    assert all((span.attributes or {})["db.response.status_code"] == "22012" for span in failed)
    assert len(spans) == (len(failed) + 40 if fold else 800)


def test_on_postgresql(engine: Engine) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    settings = sqla_watch.Settings(profile="test", telemetry=sqla_watch.Telemetry())
    sqla_watch.install(engine, settings=settings, tracer_provider=provider)
    with provider.get_tracer("test").start_as_current_span("request") as request, engine.connect() as connection:
        for number in range(3):
            connection.execute(select(Customer.name).where(Customer.id == number)).all()
    (span, _) = exporter.get_finished_spans()
    assert span.name == "SELECT customers"
    assert span.parent == request.get_span_context()
    assert (span.attributes or {})["sqla_watch.statements"] == 3
