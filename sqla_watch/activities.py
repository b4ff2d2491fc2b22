"""What code is doing at one moment: a stack goes in, a line of the user's and the name of what it calls come out.

Looking at a stack costs a few microseconds and keeps places in code only. Names are worked out when somebody asks:
from the callee's module and class, or, for functions that are not written in Python, from the source of the line.
"""

from __future__ import annotations

import ast
import dis
import linecache
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from types import CodeType, FrameType
from typing import Any, TypeAlias, cast

from sqla_watch.callsite import USER, user_code
from sqla_watch.facts import Activity, CallSite, Holder, HolderState

__all__ = ["activity_of", "doing_of", "doing_of_holder", "is_database", "is_debugger", "main_activity", "name_of"]

_DRIVERS = frozenset(
    {"psycopg", "psycopg_c", "psycopg_binary", "psycopg2", "asyncpg", "pg8000", "sqlite3", "aiosqlite"}
)
_DEBUGGERS = frozenset({"bdb", "pdb", "ipdb", "pudb", "pydevd", "_pydevd_bundle", "debugpy"})
_WITH = ("BEFORE_WITH", "BEFORE_ASYNC_WITH", "LOAD_SPECIAL")
_AWAITING = ("GET_AWAITABLE", "LOAD_CONST", "SEND", "YIELD_VALUE", "RESUME", "JUMP_BACKWARD_NO_INTERRUPT", "CACHE")
_ENTERING = ("__enter__", "__aenter__")
"""Instructions that enter a `with` block, those that await its beginning, and what they call."""


def activity_of(stack: Iterable[FrameType], *, computing: bool = False, database: bool = False) -> Activity:
    """Return what a stack, the innermost frame first, is doing; one without code of the user's has no call site."""
    inner: FrameType | None = None
    for frame in stack:
        if user_code.kind(frame.f_code.co_filename) == USER:
            site = CallSite(frame.f_code, frame.f_lasti)
            if inner is None:
                return Activity(site, computing=computing, database=database)
            module = str(inner.f_globals.get("__name__", ""))
            return Activity(site, inner.f_code, module, computing, database)
        if inner is None or frame.f_globals.get("__name__") != "contextlib":
            inner = frame
    return Activity(None)


def main_activity(activities: Sequence[Activity]) -> Activity:
    """Return what was seen most often; of several, what was seen last, in the longest of the distances."""
    if not activities:
        return Activity(None)
    counts = Counter(activities)
    most = max(counts.values())
    return next(activity for activity in reversed(activities) if counts[activity] == most)


def is_database(activity: Activity) -> bool:
    """Whether the database worked past SQLAlchemy, as for COPY: the driver says so, or it was in the driver."""
    return activity.database or (activity.callee is not None and activity.module.partition(".")[0] in _DRIVERS)


def is_debugger(activity: Activity) -> bool:
    """Whether a person had stopped the program."""
    return activity.module.partition(".")[0] in _DEBUGGERS


def name_of(activity: Activity) -> str:
    """Return the name of what was called, as a reader would write it: `requests.post`; empty for the line's own work.

    A function that is not written in Python has no frame: while the thread computes, nobody knows whether it is in it.

    >>> name_of(Activity(None))
    ''
    """
    if activity.callee is not None:
        if activity.callee.co_name in _ENTERING and activity.call_site is not None:
            entered = _called(*activity.call_site, activity.call_site.code.co_filename)
            if entered:
                return entered
        return _qualified(activity.module, activity.callee)
    if activity.call_site is None or activity.computing:
        return ""
    return _called(*activity.call_site, activity.call_site.code.co_filename)


def doing_of(activity: Activity) -> str:
    """Return in words what was done: `in requests.post`, `computing`; empty for nothing that is known."""
    name = name_of(activity)
    words = ["computing"] if activity.computing else []
    return " ".join([*words, f"in {name}"] if name else words)


def doing_of_holder(holder: Holder) -> str:
    """Return in words what the code did that had a connection; empty where the database, or nobody, did something."""
    idle = holder.state in (HolderState.IDLE, HolderState.IDLE_IN_TRANSACTION)
    return doing_of(holder.activity) if idle else ""


def _qualified(module: str, callee: CodeType) -> str:
    """Return the name of a function under the shortest of its packages that knows it: `requests.post`."""
    name = callee.co_qualname.replace(".<locals>", "")
    parts = module.split(".")
    for length in range(1, len(parts)):
        known: Any = sys.modules.get(".".join(parts[:length]))
        for part in name.split("."):
            known = getattr(known, "__dict__", {}).get(part)
        known = getattr(known, "__func__", known)  # of a classmethod
        if getattr(known, "__code__", None) is callee:
            return ".".join([*parts[:length], name])
    return f"{module}.{name}" if module else name


@lru_cache(maxsize=256)
def _called(code: CodeType, instruction: int, file: str) -> str:
    """Return the name of what an instruction calls or enters, by its source; empty where it does neither."""
    entering, place = _place(code, instruction)
    if place is None or None in place:
        return ""
    first, last, start, end = (number or 0 for number in place)
    lines = [line.encode() for line in linecache.getlines(file)[first - 1 : last]]
    if len(lines) != last - first + 1:
        return ""
    lines[-1] = lines[-1][:end]
    lines[0] = lines[0][start:]
    try:
        expression: ast.expr = ast.parse(b"(" + b"".join(lines) + b")", mode="eval").body
    except (SyntaxError, ValueError):
        return ""
    if isinstance(expression, ast.Await):
        expression = expression.value
    if isinstance(expression, ast.Call):
        expression = expression.func
    elif not entering:
        return ""
    return ast.unparse(expression) if _is_dotted(expression) else ""


_Place: TypeAlias = "tuple[int | None, int | None, int | None, int | None]"


def _place(code: CodeType, instruction: int) -> tuple[bool, _Place | None]:
    """Return whether an instruction enters a `with` block, and where its expression is: lines and columns.

    Before Python 3.12 the place of what enters a block is the whole of its statement; that of the instruction
    before is the expression that it enters. Behind `async with` come some that await.
    """
    before: _Place | None = None
    entered: _Place | None = None
    for each in dis.get_instructions(code):
        place = None if each.positions is None else tuple(each.positions)
        if each.opname in _WITH:
            entered = before
        elif each.opname not in _AWAITING:
            entered = None
        if each.offset >= instruction:
            return (True, entered) if entered is not None else (False, cast("_Place | None", place))
        if each.opname not in ("CACHE", "PRECALL", "COPY", "PUSH_NULL", "SWAP", "NOP"):
            before = cast("_Place | None", place)
    return False, None


def _is_dotted(expression: ast.expr) -> bool:
    """Whether it is made of names only, so that nothing of a value can be in it."""
    while isinstance(expression, ast.Attribute):
        expression = expression.value
    return isinstance(expression, ast.Name)
