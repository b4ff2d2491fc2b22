"""Which attributes are read: for the rules that need to know it, and only while one of them is on.

The class of an attribute that an ORM SELECT loads is swapped for a subclass whose `__get__` remembers the reading in
the open scope, by the number of the statement that loaded the object. A relationship's reading costs 20 to 60 ns
more, a column's about 60; attributes that nobody asked about cost nothing, and off it is one look at a flag for
each ORM SELECT.
"""

from __future__ import annotations

import sys
from typing import Any
from weakref import WeakSet

from sqla_watch.probes.door import Probe
from sqla_watch.probes.rows import MANY_ROWS
from sqla_watch.scopes import current

__all__ = ["tracking"]

_MOST_READS = 50_000


class _Tracking(Probe):
    """What is tracked, and the attributes whose class was swapped."""

    def __init__(self) -> None:
        super().__init__("of attributes")
        self.relationships = False
        self.columns = False
        self.many_rows = MANY_ROWS
        """Rows from which on it is followed what becomes of them."""
        self._seen: WeakSet[Any] = WeakSet()
        self._swapped: list[tuple[Any, type]] = []
        self._classes: dict[type, type] = {}

    def configure(self, *, relationships: bool, columns: bool) -> None:
        """Say what is to be tracked; what is no longer is put back."""
        if (relationships, columns) != (self.relationships, self.columns):
            self.close()
            self.relationships, self.columns = relationships, columns
            self.many_rows = 2 if relationships else MANY_ROWS

    def close(self) -> None:
        """Put every attribute back as it was."""
        for attribute, original in self._swapped:
            attribute.__class__ = original
        self._swapped.clear()
        self._seen.clear()
        self.relationships = self.columns = False
        self.many_rows = MANY_ROWS
        self.open = True

    def follow(self, compiled: Any) -> None:
        """Track what an ORM SELECT loads; each compiled statement is looked at once."""
        if compiled in self._seen:
            return
        self._seen.add(compiled)
        state = compiled.compile_state
        for entity in getattr(state, "_entities", ()):
            mapper = getattr(entity, "mapper", None)
            if mapper is not None and self.columns:
                for attribute in mapper.column_attrs:
                    self._swap(mapper, attribute.key)
        if self.relationships:
            current_path = getattr(getattr(state, "current_path", None), "path", ())
            paths = [key[1] for key in state.attributes if isinstance(key, tuple) and len(key) == 2]
            for path in (current_path, *paths):
                last: Any = path[-1] if isinstance(path, tuple) and path else None
                if hasattr(last, "direction"):
                    self._swap(last.parent, last.key)

    def _swap(self, mapper: Any, key: str) -> None:
        for each in mapper.self_and_descendants:  # each mapped class has an attribute of its own
            attribute = each.class_manager.get(key)
            kind = type(attribute)
            if attribute is None or kind in self._classes.values():
                continue
            tracked = self._classes.get(kind)
            if tracked is None:
                tracked = self._classes[kind] = _tracked(kind)
            try:
                attribute.__class__ = tracked
            except TypeError:  # an attribute of another make, whose class cannot be changed
                continue
            self._swapped.append((attribute, kind))


tracking = _Tracking()


def _tracked(kind: type) -> type:
    """Return a subclass of an attribute's class that remembers who is read."""
    read: Any = kind.__get__  # type: ignore[attr-defined]
    compute: Any = kind._gen_cache_key  # type: ignore[attr-defined]

    def __get__(self: Any, instance: Any, owner: Any) -> Any:
        if instance is not None and tracking.open:
            try:
                _remember(self.key, instance)
            except Exception:
                tracking.fault()
        return read(self, instance, owner)

    def _gen_cache_key(self: Any, anon_map: Any, bindparams: Any) -> Any:
        # The class is part of a statement's cache key: it has to stay what it was.
        key = compute(self, anon_map, bindparams)
        return key if key is None else tuple(kind if each is tracked else each for each in key)

    tracked = type(
        kind.__name__,
        (kind,),
        {
            "__slots__": (),
            "__module__": kind.__module__,
            "__get__": __get__,
            "_gen_cache_key": _gen_cache_key,
            "inherit_cache": True,
        },
    )
    return tracked


def _remember(key: str, instance: Any) -> None:
    """Note in the open scopes that an attribute was read, unless SQLAlchemy itself reads it."""
    scope = current.get()
    state = getattr(instance, "_sa_instance_state", None)
    if scope is None or state is None or _is_internal():
        return
    while scope is not None:
        if not scope.closed and len(scope.reads) < _MOST_READS:
            scope.reads.add((key, state.runid))
        scope = scope.parent


def _is_internal() -> bool:
    """Whether SQLAlchemy itself reads the attribute, as `AttributeState.value` does."""
    return str(sys._getframe(3).f_globals.get("__name__")).startswith("sqlalchemy.orm.")
