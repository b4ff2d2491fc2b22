"""Which line of the user's code sent a statement: a stack goes in, an instruction of their code comes out.

Code is told apart by its file: the database layer (SQLAlchemy, drivers, the standard library, this package),
other libraries (what lies under site-packages), and the user's own. The walk up the stack looks at file names
only; line numbers are worked out when somebody asks for them. Under AsyncSession the stack ends at a greenlet
and goes on in the coroutine which awaits it.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Iterable
from functools import lru_cache
from types import CodeType, FrameType
from typing import Any, Final

from sqla_watch.facts import CallSite
from sqla_watch.findings import Location

__all__ = ["call_site", "locate", "location_of", "user_code"]

DATABASE: Final = 0
LIBRARY: Final = 1
USER: Final = 2
EVENT_LOOP: Final = 3
"""Below these frames is whoever started the event loop, and not who wrote the task."""

_DATABASE_PACKAGES = (
    "sqlalchemy", "greenlet", "psycopg", "psycopg_pool", "psycopg2", "asyncpg", "aiosqlite", "pg8000",
    "sqlmodel", "flask_sqlalchemy", "flask_sqlalchemy_lite", "sqlalchemy_utils", "advanced_alchemy",
)  # fmt: skip
"""Packages between the user's line and the database: their frames never are the cause."""

_TYPED_IN = ("<stdin>", "<ipython-input", "<python-input", "<console>", "<doctest", "<input>")
"""Names of code that a person typed into a prompt or a notebook: user code without a file."""

_SHARED_ROOT = os.sep + "site-packages" + os.sep
_SYSTEM_ROOT = os.sep + "dist-packages" + os.sep
_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_DEMO = os.path.join(_PACKAGE, "demo") + os.sep
_STANDARD_LIBRARY = tuple(
    {sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib")} | {os.path.dirname(os.__file__) + os.sep}
)

_SCRIPTS = tuple({sysconfig.get_path("scripts") + os.sep, os.path.dirname(sys.executable) + os.sep})
"""Where installed commands are: they only start what somebody wrote."""

_EVENT_LOOP = tuple(os.path.join("asyncio", name) for name in ("events.py", "base_events.py", "runners.py"))

_MOST_FILES = 20_000
_MOST_ROUTES = 4_096
_MOST_CHANGES = 20
_NOWHERE: Final = (0, None, -1, None)
"""For statements that are sent in too many ways, or from behind a greenlet: they are not looked for any more."""


class _UserCode:
    """What counts as the user's own code; remembers its answer for each file name."""

    def __init__(self) -> None:
        self.kinds: dict[str, int] = {}
        self.routes: dict[object, tuple[int, CodeType | None, int, CodeType | None]] = {}
        """Where each statement was sent from last: how many frames above the probe, code and instruction, and the code
        that this has called."""
        self.changes: dict[object, int] = {}
        """How often that was another one than before."""
        self._user: tuple[str, ...] = ()
        self._library: tuple[str, ...] = ()

    def configure(self, user: Iterable[str] = (), library: Iterable[str] = ()) -> None:
        """Add path prefixes or package names which are, or are not, the user's own code."""
        self._user = tuple(_place(name) for name in user)
        self._library = tuple(_place(name) for name in library)
        self.kinds.clear()
        self.forget_routes()

    def forget_routes(self) -> None:
        """Let go of them, and of the statements."""
        self.routes.clear()
        self.changes.clear()

    def kind(self, filename: str) -> int:
        """Return DATABASE, LIBRARY, USER or EVENT_LOOP for the file of a code object."""
        found = self.kinds.get(filename)
        if found is None:
            if len(self.kinds) >= _MOST_FILES:
                self.kinds.clear()
            found = self.kinds[filename] = self._classify(filename)
        return found

    def files(self) -> list[str]:
        """Return the user's files that were met on a stack."""
        return [filename for filename, kind in list(self.kinds.items()) if kind == USER]

    def _classify(self, filename: str) -> int:
        if filename.startswith("<"):
            return USER if filename.startswith(_TYPED_IN) else DATABASE
        if any(_under(filename, place) for place in self._user):
            return USER
        if any(_under(filename, place) for place in self._library):
            return LIBRARY
        if filename.startswith(_PACKAGE):
            return USER if filename.startswith(_DEMO) else DATABASE
        _, installed = _installed(filename)
        if installed:
            package = installed.split(os.sep, 1)[0].removesuffix(".py")
            return DATABASE if package in _DATABASE_PACKAGES else LIBRARY
        if filename.startswith(_STANDARD_LIBRARY) and filename.endswith(_EVENT_LOOP):
            return EVENT_LOOP
        if filename.startswith(_STANDARD_LIBRARY) or filename.startswith(_SCRIPTS):
            return DATABASE
        return USER


def _place(name: str) -> str:
    """Return a folder or file as an absolute path, and a package as the end of one, both without a last separator."""
    if os.sep in name or name.startswith("."):
        return os.path.abspath(name)
    return name.replace(".", os.sep)


def _under(filename: str, place: str) -> bool:
    """Whether a file is, or lies under, a path; or belongs to a package of that name.

    What is installed in an environment inside of a folder is not the folder's: `.venv` mostly lies in the project.
    """
    folder, installed = _installed(filename)
    if os.path.isabs(place):
        if installed and not (place + os.sep).startswith(folder):
            return False
        return filename == place or filename.startswith(place + os.sep)
    if installed:
        return installed.startswith(place + os.sep) or installed == f"{place}.py"
    return f"{os.sep}{place}{os.sep}" in filename or filename.endswith(f"{os.sep}{place}.py")


def _installed(filename: str) -> tuple[str, str]:
    """Split the path of an installed file behind its innermost site-packages; two empty strings for any other."""
    for root in (_SHARED_ROOT, _SYSTEM_ROOT):
        before, found, inside = filename.rpartition(root)
        if found:
            return before + found, inside
    return "", ""


user_code: Final = _UserCode()


def _awaiting(frame: FrameType) -> FrameType | None:
    """Return the frame that awaits the greenlet whose outermost frame this is, or None outside of any."""
    greenlet: Any = sys.modules.get("greenlet")
    if greenlet is None:
        return None
    parent = greenlet.getcurrent().parent
    while parent is not None:
        outer: FrameType | None = parent.gr_frame
        if outer is not None and outer is not frame:
            return outer
        parent = parent.parent
    return None


def locate(frame: FrameType | None) -> FrameType | None:
    """Return the innermost frame of the user's code from `frame` upwards.

    Without any, the innermost library frame outside of the database layer answers; without that, None.

    The dearest part of the hot path, 0.3 to 1 µs: the loop does nothing for a frame of the database layer but
    look up its file name. What is rare (a new file, a library, the end of the stack) leaves it by an exception.
    """
    kinds = user_code.kinds
    try:
        while not kinds[frame.f_code.co_filename]:  # type: ignore[union-attr]
            frame = frame.f_back  # type: ignore[union-attr]
        if kinds[frame.f_code.co_filename] == USER:  # type: ignore[union-attr]
            return frame
    except (AttributeError, KeyError):
        pass
    return _locate_slowly(frame)


def find_user(asking: object, nearest: int) -> tuple[CodeType | None, int, int, CodeType | None]:
    """Find the line that `locate` finds for the probe which calls this, and remember where it was.

    A statement is mostly sent in one way: from the same line, or by as many frames of SQLAlchemy's which begin with the
    same function of its. To look there first costs a fifth of going there, which makes an object of each frame on the
    way. The probe itself looks whether it is the same line.

    Args:
        asking: What the way is remembered for, None for not at all.
        nearest: Frames above the probe that are not the user's for sure.

    Returns:
        The code and the instruction there, None and -1 without any; the instruction of its caller; and the code of
        what it has called, if that is known.
    """
    routes = user_code.routes
    known = routes.get(asking)
    if known is not None and known is not _NOWHERE:
        depth, _, _, entry = known
        frame = _frame(depth)
        if frame is not None and frame.f_code is entry:
            frame = frame.f_back
            if frame is not None and user_code.kinds.get(frame.f_code.co_filename) == USER:
                routes[asking] = depth, frame.f_code, frame.f_lasti, entry
                return *_place_in(frame), entry
    found = locate(_frame(nearest + 1))
    if found is None:
        return None, -1, 0, None
    if asking is None or known is _NOWHERE or user_code.kind(found.f_code.co_filename) != USER:
        return *_place_in(found), None
    if len(routes) >= _MOST_ROUTES:
        user_code.forget_routes()
    frame, depth = sys._getframe(1), 1
    while frame is not None and frame.f_back is not found:
        frame = frame.f_back
        depth += 1
    changes = user_code.changes[asking] = user_code.changes.get(asking, 0) + 1
    if frame is None or changes >= _MOST_CHANGES:  # it is in the coroutine that awaits this greenlet
        routes[asking] = _NOWHERE
        return *_place_in(found), None
    routes[asking] = depth, found.f_code, found.f_lasti, frame.f_code
    return *_place_in(found), frame.f_code


def _frame(depth: int) -> FrameType | None:
    """Return the frame so far above the one that asks; None in a greenlet, whose frames are few."""
    try:
        return sys._getframe(depth + 1)
    except ValueError:
        return None


def _place_in(frame: FrameType) -> tuple[CodeType, int, int]:
    above = frame.f_back
    return frame.f_code, frame.f_lasti, 0 if above is None else above.f_lasti


def _locate_slowly(frame: FrameType | None) -> FrameType | None:
    """Go on where `locate` met something rare: with new files, libraries, and coroutines behind a greenlet."""
    library: FrameType | None = None
    hopped = False
    while True:
        if frame is None:
            if hopped:
                return library
            hopped = True
            frame = _awaiting(sys._getframe())
            if frame is None:
                return library
        kind = user_code.kind(frame.f_code.co_filename)
        if kind == USER:
            return frame
        if kind == LIBRARY and library is None:
            library = frame
        frame = None if kind == EVENT_LOOP else frame.f_back


def call_site(frame: FrameType | None) -> CallSite | None:
    """Return the instruction of the innermost frame of the user's code from `frame` upwards."""
    found = locate(frame)
    return None if found is None else CallSite(found.f_code, found.f_lasti)


def location_of(site: CallSite | None) -> Location | None:
    """Resolve an instruction to file, line and function."""
    return None if site is None else _resolve(site.code, site.instruction, site.code.co_filename)


@lru_cache(maxsize=1_024)
def _resolve(code: CodeType, instruction: int, file: str) -> Location:
    # The file is in it for the cache: code objects are equal if only their files differ.
    line = code.co_firstlineno
    end = line
    index = max(instruction, 0) // 2
    for number, (start_line, end_line, _, _) in enumerate(code.co_positions()):
        if number == index:
            if start_line is not None:
                line = start_line
                end = end_line or start_line
            break
    return Location(file, line, _function(code), last_line=end)


def _function(code: CodeType) -> str:
    """Name the function as a reader would: comprehensions and lambdas belong to the function around them."""
    name = code.co_qualname
    while True:
        outer, separator, inner = name.rpartition(".<locals>.")
        if not separator:
            return name
        if inner not in ("<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>", "<lambda>"):
            return inner
        name = outer
