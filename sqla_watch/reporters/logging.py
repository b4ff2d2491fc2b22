"""Findings as log records of the logger `sqla_watch`, level WARNING, with the finding as `record.finding`.

A request that runs a thousand times an hour has its N+1 a thousand times an hour. So the same finding is logged
once a minute, with the number of times it came in between.
"""

from __future__ import annotations

import logging
import threading
import time

from sqla_watch.findings import Finding

logger = logging.getLogger("sqla_watch")

INTERVAL_SECONDS = 60.0
"""The same finding is logged once in this time."""
_MOST_REMEMBERED = 1_000


class _Pace:
    """When each finding was logged last, and how often it came since."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: dict[tuple[str, ...], tuple[float, int]] = {}

    def due(self, key: tuple[str, ...]) -> int | None:
        """Return how often it was held back if it is to be logged now, else None."""
        now = time.monotonic()
        with self._lock:
            last, held = self._seen.get(key, (None, 0))
            if last is not None and now - last < INTERVAL_SECONDS:
                self._seen[key] = (last, held + 1)
                return None
            if len(self._seen) >= _MOST_REMEMBERED:
                self._seen.clear()
            self._seen[key] = (now, 0)
            return held

    def clear(self) -> None:
        with self._lock:
            self._seen.clear()


pace = _Pace()


def report(finding: Finding) -> None:
    """Log a finding, unless the same was logged less than a minute ago."""
    held = pace.due(finding.key)
    if held is None:
        return
    times = f" ({held} more times since it was logged last)" if held else ""
    logger.warning("%s%s", finding.describe(), times, extra={"finding": finding})
