"""A histogram with the same attributes each time.

For each measurement the SDK checks, copies, sorts and hashes the attributes, to find the point that it belongs to: four
fifths of what a measurement costs. Here the point is kept once the first measurement has made it. The API has no way
to do that, so the SDK's own objects are looked at; where they are not as expected each measurement takes the plain way.
"""

from __future__ import annotations

from time import time_ns
from typing import Any

from opentelemetry.context import Context, get_current
from opentelemetry.metrics import Histogram


class _Measurement:
    """What a point takes of the SDK's `Measurement`, without checking the attributes once more."""

    __slots__ = ("attributes", "context", "time_unix_nano", "value")

    value: float
    time_unix_nano: int
    attributes: dict[str, Any]
    context: Context


class Series:
    """The measurements of one histogram that have the same attributes."""

    __slots__ = ("_attributes", "_consumer", "_histogram", "_is_example", "_points", "_readers")

    def __init__(self, histogram: Histogram, attributes: dict[str, Any]) -> None:
        self._histogram: Any = histogram
        self._attributes = attributes
        self._consumer: Any = None
        self._is_example: Any = None
        self._readers: object = None
        """The SDK's readers when it was looked for points; there is another mapping once one is added."""
        self._points: list[Any] = []
        """A point for each reader and view; none where it cannot be told."""

    def record(self, amount: float) -> None:
        """Record a measurement, below the current span."""
        if not self._points or self._consumer._reader_storages is not self._readers:
            self._histogram.record(amount, self._attributes)
            self._find()
            return
        made = _Measurement()
        made.value = amount
        made.time_unix_nano = now = time_ns()
        made.attributes = attributes = self._attributes
        made.context = context = get_current()
        is_example = self._is_example(amount, now, attributes, context)
        for point in self._points:
            point.aggregate(made, is_example)

    def _find(self) -> None:
        """Look for the points of the measurement that was just made, once for each set of readers."""
        histogram = getattr(self._histogram, "_real_instrument", None) or self._histogram
        consumer: Any = getattr(histogram, "_measurement_consumer", None)
        readers = getattr(consumer, "_reader_storages", None)
        if readers is None or readers is self._readers:
            return
        self._consumer, self._readers, self._points = consumer, readers, []
        try:
            self._is_example = consumer._sdk_config.exemplar_filter.should_sample
            self._points = [
                _point_of(view, self._attributes)
                for reader in readers.values()
                for view in reader._get_or_init_view_instrument_match(histogram)
            ]
        except (AttributeError, LookupError, TypeError):  # an SDK that is built differently
            self._points = []


def _point_of(view: Any, attributes: dict[str, Any]) -> Any:
    """Return the point that measurements with these attributes belong to, as far as a view keeps them.

    Raises:
        LookupError: There is none.
    """
    wanted = view._view._attribute_keys
    kept = attributes if wanted is None else {name: value for name, value in attributes.items() if name in wanted}
    for point in list(view._attributes_aggregation.values()):
        if point._attributes == kept:
            point.aggregate  # noqa: B018 - there has to be one
            return point
    raise LookupError(kept)
