"""JSON that somebody made, read with care: what is missing or of a wrong kind is named with its path and value.

Objects of any kind go in; checked numbers, and texts that are cut and visible, come out.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any, TypeAlias, TypeVar

from sqla_watch.panel.errors import PanelError
from sqla_watch.reporters.text import cut, visible

__all__ = ["JsonObject", "Path", "Scalar"]

MOST_NAME = 500
"""Characters of a text that is no statement, message or suggestion."""

_MOST_COUNT = 2**63
_MOST_SECONDS = 1e9

Path: TypeAlias = tuple[str | int, ...]
"""The way to a value: `("scopes", 0, "name")`."""
Scalar: TypeAlias = int | float | str | bool
_T = TypeVar("_T")


class JsonObject:
    """A JSON object, with the way to it for those who are told what is wrong in it."""

    __slots__ = ("_path", "_value")

    def __init__(self, value: Any, path: Path) -> None:
        if not isinstance(value, Mapping):
            raise _wrong(path, value, "an object")
        self._value = value
        self._path = path

    def get(self, key: str) -> Any:
        """Return what there is at a key."""
        try:
            return self._value[key]
        except KeyError:
            raise PanelError(f"{_written(self._path)} has no {key!r}") from None

    def has(self, key: str) -> bool:
        """Whether there is anything at a key."""
        return self._value.get(key) is not None

    def wrong(self, key: str, expected: str) -> PanelError:
        """Return the error that says what is at a key, and what was expected."""
        return _wrong((*self._path, key), self.get(key), expected)

    def text(self, key: str, most: int = MOST_NAME) -> str:
        """Return a text, visible and cut to a length."""
        value = self.get(key)
        if not isinstance(value, str):
            raise self.wrong(key, "a text")
        return visible(cut(value, most))

    def optional_text(self, key: str) -> str:
        """Return a text, empty where there is none."""
        value = self._value.get(key)
        if value is None:
            return ""
        return _short_text(value) if value.__class__ is str and len(value) < 100 else self.text(key)

    def one_of(self, key: str, allowed: Sequence[str]) -> str:
        """Return one of the texts that there can be."""
        value = self.get(key)
        if not isinstance(value, str) or value not in allowed:
            raise self.wrong(key, f"one of {', '.join(allowed)}")
        return str(value)

    def flag(self, key: str) -> bool:
        """Return what is true or false."""
        value = self.get(key)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def count(self, key: str, *, least: int = 0, below: int = _MOST_COUNT) -> int:
        """Return a whole number."""
        value = self.get(key)
        if value.__class__ is int and least <= value < below:
            return int(value)
        raise self.wrong(key, f"a whole number from {least}" + (f" to {below - 1}" if below < _MOST_COUNT else ""))

    def optional_count(self, key: str) -> int:
        """Return a whole number, 0 where there is none."""
        return self.count(key) if self._value.get(key) is not None else 0

    def seconds(self, key: str, *, least: float = 0.0, most: float = _MOST_SECONDS) -> float:
        """Return a time."""
        value = self.get(key)
        if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
            raise self.wrong(key, f"seconds from {least:g} to {most:g}")
        return float(value)

    def object(self, key: str) -> JsonObject:
        """Return the object at a key."""
        return JsonObject(self.get(key), (*self._path, key))

    def items(self, key: str) -> Sequence[Any]:
        """Return a list as it is."""
        value = self.get(key)
        if not isinstance(value, Sequence) or isinstance(value, str | bytes):
            raise self.wrong(key, "a list")
        return value

    def each(self, key: str, read: Callable[[JsonObject], _T], most: int | None = None) -> tuple[_T, ...]:
        """Return what is read of the objects in a list, the first ones of many."""
        path = (*self._path, key)
        return tuple(read(JsonObject(item, (*path, number))) for number, item in enumerate(self.items(key)[:most]))

    def texts(self, key: str, most: int) -> tuple[str, ...]:
        """Return the texts in a list."""
        for number, item in enumerate(self.items(key)):
            if not isinstance(item, str):
                raise _wrong((*self._path, key, number), item, "a text")
        return tuple(visible(cut(item, most)) for item in self.items(key))

    def scalars(self, key: str, most: int) -> tuple[tuple[str, Scalar], ...]:
        """Return the names and values of an object that has numbers and texts only, the first ones of many."""
        found = self.object(key)
        read: list[tuple[str, Scalar]] = []
        for name, value in islice(found._value.items(), most):
            if not isinstance(name, str):
                raise _wrong(found._path, name, "an object whose keys are texts")
            if isinstance(value, str):
                value = visible(cut(value, MOST_NAME))
            elif not isinstance(value, int | float) or not abs(value) < _MOST_COUNT:
                raise found.wrong(name, "a number, a text, true or false")
            read.append((visible(cut(name, MOST_NAME)), value))
        return tuple(read)


_short_text = lru_cache(maxsize=1_024)(visible)
"""For what is the same in thousands of moments."""

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = 80


def _wrong(path: Path, value: Any, expected: str) -> PanelError:
    try:
        shown = _repr.repr(value)
    except Exception:  # whatever it is: an integer of too many digits, somebody's own class
        shown = f"an unspeakable {type(value).__name__}"
    return PanelError(f"{_written(path)} is {visible(shown)}, not {expected}")


def _written(path: Path) -> str:
    """Return a path as Python and JavaScript write it.

    >>> _written(("scopes", 0, "findings", 2, "rule"))
    'scopes[0].findings[2].rule'
    """
    steps = "".join(f"[{step}]" if isinstance(step, int) else f".{visible(cut(step, 80))}" for step in path)
    return steps.removeprefix(".")
