"""A series of measurements comes out as it does without one, whatever readers and views there are."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry import metrics
from opentelemetry.metrics import Histogram
from opentelemetry.sdk.metrics import Histogram as SDKHistogram
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader, MetricReader
from opentelemetry.sdk.metrics.view import (
    DropAggregation,
    ExponentialBucketHistogramAggregation,
    SumAggregation,
    View,
)
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.util._once import Once

from sqla_watch.integrations.opentelemetry.metrics import SECONDS
from sqla_watch.integrations.opentelemetry.series import Series

SELECT = {"db.system.name": "postgresql", "db.query.summary": "SELECT orders", "server.port": 5432}
UPDATE = {**SELECT, "db.query.summary": "UPDATE orders"}

Record = Callable[[float, dict[str, Any]], None]


def make_histogram(provider: Any) -> Histogram:
    return metrics.get_meter("test", "1", provider).create_histogram(
        "duration", unit="s", explicit_bucket_boundaries_advisory=list(SECONDS)
    )


def plainly(histogram: Histogram) -> Record:
    return lambda amount, attributes: histogram.record(amount, attributes)


def in_series(histogram: Histogram) -> Record:
    series = {attributes["db.query.summary"]: Series(histogram, attributes) for attributes in (SELECT, UPDATE)}
    return lambda amount, attributes: series[attributes["db.query.summary"]].record(amount)


def points_of(reader: InMemoryMetricReader) -> list[dict[str, Any]]:
    """All that a reader gets, but for times and the numbers of spans."""
    data = reader.get_metrics_data()
    found = []
    for resource in [] if data is None else data.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                for point in metric.data.data_points:
                    said: dict[str, Any] = {
                        name: getattr(point, name)
                        for name in ("count", "sum", "min", "max", "value", "bucket_counts", "explicit_bounds", "scale")
                        if hasattr(point, name)
                    }
                    said["name"] = metric.name
                    said["attributes"] = dict(point.attributes or {})
                    said["exemplars"] = sorted(
                        (each.value, sorted((each.filtered_attributes or {}).items()), bool(each.span_id))
                        for each in point.exemplars
                    )
                    found.append(said)
    return found


VIEWS: dict[str, list[View]] = {
    "none": [],
    "fewer attributes": [View(instrument_name="duration", attribute_keys={"db.system.name"})],
    "exponential": [View(instrument_name="duration", aggregation=ExponentialBucketHistogramAggregation())],
    "dropped": [View(instrument_name="duration", aggregation=DropAggregation())],
    "two": [
        View(instrument_name="duration", name="first", aggregation=SumAggregation()),
        View(instrument_name="duration", name="second", attribute_keys={"db.query.summary"}),
    ],
}


@pytest.mark.parametrize("views", VIEWS)
@pytest.mark.parametrize("temporality", [AggregationTemporality.DELTA, AggregationTemporality.CUMULATIVE], ids=str)
def test_readers_get_the_same(views: str, temporality: AggregationTemporality) -> None:
    tracer = TracerProvider().get_tracer("test")
    seen = []
    for make in (plainly, in_series):
        random.seed(1)  # by which the SDK chooses examples
        readers = [InMemoryMetricReader(preferred_temporality={SDKHistogram: temporality}), InMemoryMetricReader()]
        provider = MeterProvider(readers, views=VIEWS[views])
        record = make(make_histogram(provider))
        rounds = []
        for start in (0.0004, 0.02, 3.0):
            for number in range(20):
                with tracer.start_as_current_span("statement"):
                    record(start * (number + 1), SELECT)
                record(start, UPDATE if number % 3 else SELECT)
            rounds.append([points_of(reader) for reader in readers])
        seen.append(rounds)
        provider.shutdown()
    plain, series = seen
    assert series == plain
    assert all(bool(points) == (views != "dropped") for reading in series for points in reading)


def test_from_the_second_measurement_on_nothing_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = InMemoryMetricReader()
    histogram = make_histogram(MeterProvider([reader]))
    series = Series(histogram, SELECT)
    series.record(0.1)
    monkeypatch.setattr(type(histogram), "record", None)
    series.record(0.1)
    assert [point["count"] for point in points_of(reader)] == [2]


def test_a_reader_that_is_added_gets_them_from_then_on() -> None:
    first, second = InMemoryMetricReader(), InMemoryMetricReader()
    provider = MeterProvider([first])
    add: Callable[[MetricReader], None] | None = getattr(provider, "add_metric_reader", None)
    record = in_series(make_histogram(provider))
    for _ in range(3):
        record(0.1, SELECT)
    if add is None:
        pytest.skip("this SDK cannot add readers")
    add(second)
    for _ in range(2):
        record(0.1, SELECT)
    assert [point["count"] for point in points_of(first)] == [5]
    assert [point["count"] for point in points_of(second)] == [2]


def test_a_provider_that_is_set_later_gets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from opentelemetry.metrics import _internal

    monkeypatch.setattr(_internal, "_METER_PROVIDER", None)
    monkeypatch.setattr(_internal, "_METER_PROVIDER_SET_ONCE", Once())
    monkeypatch.setattr(_internal, "_PROXY_METER_PROVIDER", _internal._ProxyMeterProvider())
    record = in_series(make_histogram(None))
    record(0.1, SELECT)
    reader = InMemoryMetricReader()
    metrics.set_meter_provider(MeterProvider([reader]))
    for _ in range(3):
        record(0.1, SELECT)
    assert [point["count"] for point in points_of(reader)] == [3]


def test_without_the_sdk_nothing_is_kept() -> None:
    class Own(metrics.NoOpHistogram):
        def __init__(self) -> None:
            super().__init__("duration")
            self.recorded: list[Any] = []

        def record(self, amount: Any, attributes: Any = None, context: Any = None) -> None:
            self.recorded.append((amount, attributes))

    histogram = Own()
    record = in_series(histogram)
    record(0.1, SELECT)
    record(0.2, SELECT)
    assert histogram.recorded == [(0.1, SELECT), (0.2, SELECT)]


class Different:
    """A consumer of measurements whose readers keep their points elsewhere."""

    def __init__(self, consumer: Any) -> None:
        self.consume_measurement = consumer.consume_measurement
        self._sdk_config = consumer._sdk_config
        self._reader_storages = {"reader": object()}


def test_an_sdk_that_is_built_differently_gets_them_plainly() -> None:
    reader = InMemoryMetricReader()
    histogram: Any = make_histogram(MeterProvider([reader]))
    histogram._measurement_consumer = Different(histogram._measurement_consumer)
    record = in_series(histogram)
    for _ in range(3):
        record(0.1, SELECT)
    assert [point["count"] for point in points_of(reader)] == [3]


def test_threads_that_begin_at_once() -> None:
    reader = InMemoryMetricReader()
    record = in_series(make_histogram(MeterProvider([reader])))
    begin = threading.Barrier(8)

    def many() -> None:
        begin.wait()
        for number in range(500):
            record(0.1, SELECT if number % 2 else UPDATE)

    threads = [threading.Thread(target=many) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(point["count"] for point in points_of(reader)) == [2_000, 2_000]
