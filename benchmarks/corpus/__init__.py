"""The corpus: small pieces of honest application code, each labelled with what there is to find, or with nothing.

A label is a comment at the end of the line that a finding has to name, ``# finds: n-plus-one``; several rules are
separated by commas. A scenario without such a comment has nothing to find; `tempts` says which rules a careless
detector would take it for. Scenarios come before the detectors: one is never bent until a detector is right about it.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["SCENARIOS", "Application", "Label", "Scenario", "load", "scenario"]

_LABEL = re.compile(r"#\s*finds:\s*([\w\-]+(?:\s*,\s*[\w\-]+)*)\s*$")


class Label(NamedTuple):
    """One finding that is to be made."""

    rule: str
    line: int


@dataclass(frozen=True)
class Application:
    """What a scenario runs on: engines that are watched by whoever is being measured."""

    engine: Engine
    """psycopg; pool of 5, overflow 10."""
    async_engine: AsyncEngine
    """asyncpg; the same."""
    make_engine: Callable[..., Engine]
    """Make another watched engine on the same database: `app.make_engine(pool_size=2, max_overflow=0)`."""
    make_async_engine: Callable[..., AsyncEngine]
    request: Callable[[str], AbstractContextManager[Any]]
    """`with app.request("GET /orders"):` one request; of use only in scenarios with `own_requests=True`."""


@dataclass(frozen=True)
class Scenario:
    """A function with its labels."""

    name: str
    function: Callable[..., Any]
    file: str
    labels: tuple[Label, ...]
    tempts: tuple[str, ...]
    """Rules that a careless detector would name here."""
    writes: bool
    """Changes the database, which is put right after it."""
    own_requests: bool
    """Opens its requests itself; else all of it is one request."""
    profile: str
    rules: Mapping[str, Any] = field(default_factory=dict)
    """Settings of rules, where the scenario is about one that is off by default."""

    @property
    def silent(self) -> bool:
        """Whether there is nothing to find."""
        return not self.labels

    @property
    def is_async(self) -> bool:
        return inspect.iscoroutinefunction(self.function)


SCENARIOS: list[Scenario] = []


def scenario(
    *,
    tempts: str = "",
    writes: bool = False,
    own_requests: bool = False,
    profile: str = "test",
    rules: Mapping[str, Any] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function of an `Application` as a scenario; one without labels must say what it `tempts` to.

    Raises:
        ValueError: It has neither a label nor a temptation, or its name is taken.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        lines, first = inspect.getsourcelines(function)
        labels = tuple(
            Label(rule.strip(), first + number)
            for number, line in enumerate(lines)
            if (found := _LABEL.search(line))
            for rule in found[1].split(",")
        )
        if not labels and not tempts:
            raise ValueError(f"{function.__name__} has no label, so say what it tempts to")
        if any(known.name == function.__name__ for known in SCENARIOS):
            raise ValueError(f"there are two scenarios {function.__name__}")
        SCENARIOS.append(
            Scenario(
                name=function.__name__,
                function=function,
                file=inspect.getsourcefile(function) or "",
                labels=labels,
                tempts=tuple(rule.strip() for rule in tempts.split(",") if rule.strip()),
                writes=writes,
                own_requests=own_requests,
                profile=profile,
                rules=dict(rules or {}),
            )
        )
        return function

    return register


def load() -> list[Scenario]:
    """Import every module of scenarios, and return all scenarios."""
    for module in _modules():
        importlib.import_module(module)
    return list(SCENARIOS)


def _modules() -> Iterator[str]:
    for module in pkgutil.iter_modules(__path__):
        if module.name.startswith("scenarios_"):
            yield f"{__name__}.{module.name}"
