"""MissingGreenlet: which attribute was touched where an asynchronous driver could not be waited for.

SQLAlchemy raises it from many depths (the pool, the connection, the cursor, the statement), on some of which nothing
has been sent yet. So the exception itself is looked at when it is made; until then nothing is there that could cost.
"""

from __future__ import annotations

import functools
import sys
from types import FrameType
from typing import Any

from sqlalchemy import exc

from sqla_watch import registry
from sqla_watch.callsite import DATABASE, call_site, user_code
from sqla_watch.facts import MissingLoad
from sqla_watch.ignores import active
from sqla_watch.probes.checkout import tell
from sqla_watch.probes.door import Door
from sqla_watch.probes.internals import cause_of

__all__ = ["watch_missing_greenlets"]


def watch_missing_greenlets() -> Door:
    """Look at every MissingGreenlet from now on; closing the returned door ends that."""
    door = Door("missing greenlets", exc.MissingGreenlet)
    door.wrap("__init__", _init)
    return door


def _init(door: Door, original: Any) -> Any:
    @functools.wraps(original)
    def __init__(self: Any, *arguments: Any, **options: Any) -> None:
        original(self, *arguments, **options)
        if door.open and registry.watches:
            try:
                raiser = sys._getframe().f_back
                if raiser is None or not str(raiser.f_globals.get("__name__")).startswith("sqlalchemy."):
                    return  # a copy, or somebody else's
                tell(_describe(raiser), name="session")
            except Exception:
                door.fault()

    return __init__


def _describe(frame: FrameType | None) -> MissingLoad:
    """Return what was touched, told by the frame of the attribute's `__get__`."""
    site = call_site(frame)
    touched: Any = None
    instance: Any = None
    while frame is not None and user_code.kind(frame.f_code.co_filename) == DATABASE:
        if frame.f_code.co_name == "__get__":
            values = frame.f_locals
            if values.get("instance") is not None and hasattr(values.get("self"), "impl"):
                touched, instance = values["self"], values["instance"]
                break
        frame = frame.f_back
    if touched is None:
        return MissingLoad("", "", "", False, 0, site, active.get())
    state = instance._sa_instance_state
    related = hasattr(touched.property, "direction")
    cause = "relationship" if related else cause_of(state, frozenset((touched.key,)))
    if related and (state.expired or (state.key and not state.dict)):
        cause = cause_of(state, frozenset())
    return MissingLoad(
        state.class_.__name__,
        touched.key,
        cause,
        bool(related and touched.property.uselist),
        state.runid or 0,
        site,
        active.get(),
    )
