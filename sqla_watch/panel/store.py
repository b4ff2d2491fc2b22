"""The last requests of an application, as many as there is room for: numbered, packed, the oldest go first."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqla_watch.panel.entry import MOST_MOMENTS, MOST_SQL, Summary, read_summary
from sqla_watch.panel.errors import PanelError
from sqla_watch.reporters.text import bytes_of

__all__ = ["Kept", "Store"]

MOST_BYTES = 20_000_000
"""Of all requests together."""
MOST_BYTES_OF_ONE = 8_000_000

_SHORT = 500
"""Characters that a text keeps where a request would take too much room."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A request that is kept."""

    number: int
    """From 1, in the order in which they came."""
    summary: Summary
    packed: bytes

    def unpack(self) -> Any:
        """Return it as it was given; a request that took too much room has lost something."""
        return json.loads(self.packed)


class Store:
    """Keeps requests; any thread may call it.

    Args:
        most: How many it keeps.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: deque[Kept] = deque()
        self._bytes = 0
        self._last = 0
        # One that is reentered: a scope may close, and be added, while the garbage collector runs in here.
        self._lock = threading.RLock()

    def add(self, entry: Mapping[str, Any]) -> None:
        """Keep a request.

        Raises:
            PanelError: It is not as `Scope.to_dict` makes it.
            TypeError: There is something in it that JSON does not have.
        """
        summary = read_summary(entry, ("entry",))
        packed = _packed(entry)
        with self._lock:
            self._last += 1
            self._kept.append(Kept(self._last, summary, packed))
            self._bytes += len(packed)
            while len(self._kept) > self._most or self._bytes > MOST_BYTES:
                self._bytes -= len(self._kept.popleft().packed)

    def last(self, after: int = 0) -> list[Kept]:
        """Return those that came after a number, the newest first."""
        with self._lock:
            kept = list(self._kept)
        return [each for each in reversed(kept) if each.number > after]


def _packed(entry: Mapping[str, Any]) -> bytes:
    """Return an entry as JSON; of a very large one first the texts get shorter, then there is no timeline."""
    packed = _json(dict(entry))
    size = len(packed)
    if size > MOST_BYTES_OF_ONE:
        packed = _json(_shortened(entry, MOST_SQL))
    if len(packed) > MOST_BYTES_OF_ONE:
        packed = _json(_shortened(entry, _SHORT))
    if len(packed) > MOST_BYTES_OF_ONE:
        why = f"it would take {bytes_of(size)}, more than one request may have"
        packed = _json(_shortened({**entry, "timeline": None, "timeline_left_out": why}, _SHORT))
    if len(packed) > MOST_BYTES_OF_ONE:
        raise PanelError(f"a request of {bytes_of(size)} was not kept: there is room for {bytes_of(MOST_BYTES_OF_ONE)}")
    return packed


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()  # ASCII: lone surrogates are JSON's own escapes


def _shortened(value: Any, most: int) -> Any:
    """Return JSON with shorter texts and lists."""
    if isinstance(value, str):
        return value if len(value) <= most else f"{value[:most]} … ({len(value):,} characters)"
    if isinstance(value, Mapping):
        return {_shortened(key, most): _shortened(each, most) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_shortened(each, most) for each in value[:MOST_MOMENTS]]
    return value
