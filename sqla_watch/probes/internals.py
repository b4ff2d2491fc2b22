"""The private names of SQLAlchemy which the probes rely on, each with what is done without it.

Everything here was read in SQLAlchemy 2.0.30 to 2.1 and is tested on the lowest and the newest of them. A name
that is gone costs a detail (whose lazy load, which query), never the statement.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from types import CodeType
from typing import Any

from sqlalchemy.engine import cursor as _cursor
from sqlalchemy.engine import default as _default

from sqla_watch.facts import Load, LoadKind, Relationship
from sqla_watch.fingerprint import Shape

RECORD_KEY = "_sqla_watch"
"""Attribute of a pool's connection record under which a checkout is kept while it lasts; the hot path spells it out."""

DEFAULT_FETCH: Any = getattr(_cursor, "_DEFAULT_FETCH", None)
"""How a plain cursor is fetched; None where the name is gone, and rows of such cursors are not counted."""

NO_CACHE_KEY: Any = getattr(getattr(_default, "CacheStats", None), "NO_CACHE_KEY", object())
"""What an execution context says of a statement that has no key for SQLAlchemy's cache."""

_MOST_RELATIONSHIPS = 2_000
_relationships: dict[Any, Relationship] = {}


def stored_records(pool: Any) -> list[Any] | None:
    """Return the connection records that a queued pool has in store; None of another pool, or where a name is gone."""
    store = getattr(pool, "_pool", None)
    queue = getattr(store, "queue", None)
    if queue is None:  # of AsyncAdaptedQueuePool
        queue = getattr(getattr(store, "_queue", None), "_queue", None)
    try:
        return None if queue is None else list(queue)
    except RuntimeError:  # it changes at this very moment
        return None


def executes_plainly(method: Any) -> bool:
    """Whether a dialect's `do_execute` is SQLAlchemy's own, which is `cursor.execute(statement, parameters)`.

    Then that can be called instead, and the probe takes the place of a call of Python's that was there before it.
    """
    function = getattr(method, "__func__", method)
    return bool(
        function is getattr(_default.DefaultDialect, "do_execute", None)
        and getattr(function, "__module__", "") == _default.__name__  # nobody has patched it
        and getattr(getattr(function, "__code__", None), "co_names", ()) == ("execute",)
    )


class _Orm:
    """What is used of `sqlalchemy.orm`, which an application without the ORM does not import, and neither do we."""

    def __init__(self) -> None:
        self._known = False
        self.compile_state: type | None = None
        """Class of an ORM SELECT's compile state."""
        self.asking_codes: dict[CodeType, str] = {}
        """Codes of those who load what they need before anybody touches it, and what they are called here."""
        self.plain_options: Any = None
        """The load options of a query that has none of its own; other loads have what they are for in theirs."""
        self.touching_code: CodeType | None = None
        """Code of what loads an attribute that somebody touches."""
        self.touching_depths: list[int] = []
        """How many frames above `_reason` it was met."""
        self.next_runid: Callable[[], int] = itertools.count(1).__next__
        """Gives the number which each object loaded from now on carries."""

    def look(self) -> None:
        """Look the names up, once the application has imported the ORM."""
        context: Any = sys.modules.get("sqlalchemy.orm.context")
        loading: Any = sys.modules.get("sqlalchemy.orm.loading")
        strategies: Any = sys.modules.get("sqlalchemy.orm.strategies")
        if self._known or context is None or loading is None or strategies is None:
            return
        self._known = True
        # The names with an underscore are those of 2.1.
        self.compile_state = getattr(context, "_ORMCompileState", None) or getattr(context, "ORMCompileState", None)
        self.plain_options = getattr(getattr(context, "QueryContext", None), "default_load_options", None)
        immediate = getattr(strategies, "_ImmediateLoader", None) or getattr(strategies, "ImmediateLoader", None)
        session: Any = getattr(sys.modules.get("sqlalchemy.orm.session"), "Session", None)
        for method, name in (
            (getattr(immediate, "_load_for_path", None), "immediate"),
            (getattr(session, "_delete_impl", None), "delete"),
            (getattr(session, "delete", None), "delete"),
        ):
            code = getattr(method, "__code__", None)
            if code is not None:
                self.asking_codes[code] = name
        attribute = getattr(sys.modules.get("sqlalchemy.orm.attributes"), "InstrumentedAttribute", None)
        self.touching_code = getattr(getattr(attribute, "__get__", None), "__code__", None)
        self.next_runid = _counter_of(getattr(loading, "_new_runid", None)) or self.next_runid


def _counter_of(function: Any) -> Callable[[], int] | None:
    """Return the counter inside of SQLAlchemy's function, which is ten times as fast because it takes no lock."""
    if function is None:
        return None
    try:
        cells = dict(zip(function.__code__.co_freevars, function.__closure__, strict=True))
        counter: Callable[[], int] = cells["counter"].cell_contents.__next__
    except (AttributeError, KeyError, TypeError, ValueError):
        counter = function
    return counter


orm = _Orm()


def loads_entities(compiled: Any) -> bool:
    """Whether a compiled statement is an ORM SELECT, whose result makes or refreshes objects."""
    orm.look()
    state = getattr(compiled, "compile_state", None)
    return orm.compile_state is not None and isinstance(state, orm.compile_state)


def path_of(compiled: Any) -> tuple[Any, ...]:
    """Return SQLAlchemy's path from a query to what a compiled ORM SELECT loads for its objects; empty for a query."""
    return tuple(getattr(getattr(compiled.compile_state, "current_path", None), "path", ()))


_last: tuple[Any, Any, int, str, Load | None] = (None, None, 0, "", None)
"""The latest lazy load, and what it was told by: the next one is mostly the same, and need not be made."""


def describe_load(
    context: Any, options: Any, path: tuple[Any, ...], entry: CodeType | None
) -> tuple[Load, int, int] | None:
    """Return what an ORM SELECT loads, or None for a query of the application's own.

    Args:
        context: The execution context.
        options: The ORM's load options of the statement's execution options.
        path: What `path_of` has told of the compiled statement.
        entry: The code of SQLAlchemy's that the user's code called, if it is known.

    Returns:
        What it is, and of lazy and column loads for whom: the hash of the parent's identity key, and SQLAlchemy's
        number of the load which brought it. Of an entity nothing else is kept.
    """
    global _last
    state = getattr(options, "_lazy_loaded_from", None)
    if state is not None and path:
        attribute, way, session = path[-1], state.load_path, state.session_id or 0
        reason = ""
        if entry is None or entry is not orm.touching_code:  # else the application has touched it
            reason = _reason()
            if not reason and getattr(state.session, "_flushing", False):
                reason = "flush"
        last_attribute, last_way, last_session, last_reason, load = _last
        if (
            load is None
            or last_attribute is not attribute
            or last_way is not way
            or last_session != session
            or last_reason != reason
        ):
            load = Load(LoadKind.LAZY, _relationship(attribute, way.path), session, (), reason)
            _last = attribute, way, session, reason, load
        key = state.key
        return load, hash(key and key[1]), state.runid or 0
    state = getattr(options, "_refresh_state", None)
    if state is not None:
        columns = getattr(getattr(context.invoked_statement, "_compile_options", None), "_only_load_props", None)
        names, cause = _why(state, frozenset(columns or ()), options)
        load = Load(LoadKind.COLUMN, None, state.session_id or 0, names, cause)
        return load, hash(state.key and state.key[1]), state.runid or 0
    if path:
        return Load(LoadKind.EAGER, _relationship(path[-1], path[:-1]), 0, ()), 0, 0
    return None


def _why(state: Any, columns: frozenset[str], options: Any) -> tuple[tuple[str, ...], str]:
    """Return which columns of an object are loaded by themselves, and why they were not there."""
    cause = "refresh" if getattr(options, "_is_user_refresh", False) else cause_of(state, columns)
    if cause in ("refresh", "expired", "thrown"):
        return (state.class_.__name__,), cause
    return tuple(f"{state.class_.__name__}.{name}" for name in sorted(columns)), cause


def cause_of(state: Any, columns: frozenset[str]) -> str:
    """Return why columns of an object are not there.

    `expired`: the whole object has, as by a commit. `thrown`: the same, where a commit expires nothing. `subclass`: the
    query loaded the base class only. `computed`: the database computed them in a flush. `expire`: the application
    expired just these. `deferred`: they were not asked for.
    """
    mapper = state.mapper
    attributes = [mapper.attrs[name] for name in columns if name in mapper.attrs]
    key = {mapper.get_property_by_column(column).key for column in mapper.primary_key}
    if state.expired or not columns or key <= columns:
        return "expired" if getattr(state.session, "expire_on_commit", True) else "thrown"
    if not columns & state.expired_attributes:
        return "deferred"
    if mapper.inherits is not None and not any(name in mapper.base_mapper.attrs for name in columns):
        return "subclass"  # SQLAlchemy calls them expired, too
    for attribute in attributes:
        for column in getattr(attribute, "columns", ()):
            if any(getattr(column, name, None) is not None for name in _BY_THE_SERVER) or any(
                getattr(getattr(column, name, None), "is_clause_element", False) for name in _BY_AN_EXPRESSION
            ):
                return "computed"
    return "expire"


_BY_THE_SERVER = ("server_onupdate", "server_default", "computed", "identity")
_BY_AN_EXPRESSION = ("onupdate", "default")
"""What of a column says that its value may come from the database: always, or where it is a SQL expression."""


def _relationship(attribute: Any, path: tuple[Any, ...]) -> Relationship:
    """Return the names of a relationship and of the path to its owner; remembered per mapping."""
    key = (attribute, path)
    found = _relationships.get(key)
    if found is None:
        if len(_relationships) >= _MOST_RELATIONSHIPS:
            _relationships.clear()
        steps = [_step(element) for element in path if hasattr(element, "direction")]
        found = _relationships[key] = Relationship(
            attribute.parent.class_.__name__,
            attribute.key,
            attribute.mapper.class_.__name__,
            bool(attribute.uselist),
            tuple(steps),
        )
    return found


def _step(attribute: Any) -> tuple[str, str, bool]:
    return (attribute.parent.class_.__name__, attribute.key, bool(attribute.uselist))


def _reason() -> str:
    """Return who asked for a load that looks lazy: `immediate` for immediateload, `delete` for session.delete.

    Told by a frame of theirs; empty for anybody else. Nearly always somebody touches an attribute, and what SQLAlchemy
    then does lies as many frames above as the last time: to look there costs a twentieth of going there.
    """
    touching = orm.touching_code
    for depth in orm.touching_depths:
        try:
            if sys._getframe(depth).f_code is touching:
                return ""
        except ValueError:  # fewer frames than that
            break
    frame: Any = sys._getframe(2)
    codes = orm.asking_codes
    for depth in range(2, _FAR):
        if frame is None:
            return ""
        code = frame.f_code
        if code is touching:
            if len(orm.touching_depths) < _MOST_DEPTHS and depth not in orm.touching_depths:
                orm.touching_depths.append(depth)
            return ""
        if code in codes:
            return codes[code]
        frame = frame.f_back
    return ""


_FAR = 26
"""Frames among which it is looked for."""
_MOST_DEPTHS = 4


def describe_shape(compiled: Any) -> Shape | None:
    """Return what an ORM SELECT of one class loads with each row; None for several classes, or columns only."""
    try:
        state = compiled.compile_state
        # The second query of a selectinload has the keys of the parents before what it loads.
        (entity,) = state._entities[-1:] if state.current_path else state._entities
        mapper = entity.mapper
        places = _places(compiled._result_columns)
        composed = {prop for each in mapper.composites for prop in each.props}  # read through their composite
        key = mapper.primary_key if state.multi_row_eager_loaders else ()
        joined = [key[1] for key in state.attributes if isinstance(key, tuple) and key[0] in _EAGER_JOINS]
        chains = [tuple(each for each in path if hasattr(each, "direction")) for path in joined]
        return Shape(
            mapper.class_.__name__,
            tuple(_place_of(entity.selectable.corresponding_column(column), places, compiled) for column in key),
            tuple(
                tuple(f"{each.parent.class_.__name__}.{each.key}" for each in chain)
                for chain in chains
                if chain[-1].uselist
            ),
            tuple(_relationship(chain[-1], chain[:-1]) for chain in chains),
            tuple(
                each.key
                for each in mapper.column_attrs
                if each not in composed and id(entity.selectable.corresponding_column(each.columns[0])) in places
            ),
        )
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return None


_EAGER_JOINS = ("eager_row_processor", "user_defined_eager_row_processor")


def _places(result_columns: Any) -> dict[int, int]:
    """Return the position in a row by the identity of each object that the column stands for."""
    places: dict[int, int] = {}
    for place, (_, _, objects, *_) in enumerate(result_columns):
        for each in objects:
            if not isinstance(each, str):
                places.setdefault(id(each), place)
    return places


def _place_of(column: Any, places: dict[int, int], compiled: Any) -> int:
    """Return the position of a column in a row: its own, else that of a subquery's column that it became."""
    found = places.get(id(column))
    if found is not None:
        return found
    for place, (_, _, objects, *_) in enumerate(compiled._result_columns):
        if any(column in getattr(each, "proxy_set", ()) for each in objects if not isinstance(each, str)):
            return place
    raise ValueError("the key is not among the columns")


def forget() -> None:
    """Let go of the mappings of relationships, when nothing is watched any more."""
    global _last
    _relationships.clear()
    _last = (None, None, 0, "", None)
