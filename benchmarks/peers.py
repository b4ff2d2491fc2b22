"""Those whose accuracy is measured: sqla_watch, and the peers, each brought to one form.

An `Observer` watches one scenario and says what it found. A peer is driven as its pytest plugin drives it, with its
default thresholds, and what is off by default but can be switched on is on; each is imported only when it runs. Its
kinds of finding are translated to our rules in its favour: one that means less stands for every rule it may mean, and
a line counts as named when any line of the same statement is.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from sqlalchemy import Engine, event
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import Session

import sqla_watch
from benchmarks.corpus import Scenario
from sqla_watch.detectors import RULES

__all__ = ["OBSERVERS", "Lines", "Observer", "Ours", "Peer", "Said", "installed", "statement_around", "version"]

_RUNNER = (os.path.abspath(__file__), os.path.join(os.path.dirname(os.path.abspath(__file__)), "accuracy.py"))
"""Files which are no application: between a scenario and SQLAlchemy they stand for a framework."""


@dataclass(frozen=True)
class Lines:
    """A place in a file, from its first to its last line."""

    file: str
    first: int
    last: int

    def hold(self, file: str, line: int) -> bool:
        return os.path.abspath(self.file) == os.path.abspath(file) and self.first <= line <= self.last


@dataclass(frozen=True)
class Said:
    """One finding of a contestant."""

    kind: str
    """In its own words; of ours, the rule."""
    rules: tuple[str, ...]
    """What it may mean."""
    places: tuple[Lines, ...]
    """The lines it names, mostly one; none if it does not know."""
    message: str
    target: str = ""


class Observer:
    """One contestant for the time of one scenario; installed while it is entered, gone without a trace after it."""

    name: ClassVar[str]
    """Also the name of its distribution."""
    stands_for: ClassVar[Mapping[str, tuple[str, ...]]]
    """Our rules by its kinds; the usual one first."""
    lenient: ClassVar[bool] = True
    """Whether a finding on a labelled line which the label calls something else is let pass."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.said: list[Said] = []

    @classmethod
    def takes_part(cls, scenario: Scenario) -> bool:
        """Whether its settings can say what the scenario asks for."""
        return True

    def watch(self, engine: Engine | AsyncEngine) -> None:
        """Watch an engine of the scenario; those who watch every engine need not be told."""
        return None

    def request(self, name: str) -> AbstractContextManager[Any]:
        """Take what runs in a block as one request (or test)."""
        raise NotImplementedError

    def __enter__(self) -> Observer:
        return self

    def __exit__(self, *error: object) -> None:
        return None


class Ours(Observer):
    """sqla_watch, as the corpus is labelled for it."""

    name = "sqla-watch"
    stands_for = {rule: (rule,) for rule in RULES}
    lenient = False

    def __init__(self, scenario: Scenario) -> None:
        super().__init__(scenario)
        self._settings = sqla_watch.Settings(profile=scenario.profile, rules=scenario.rules, library_code=_RUNNER)
        self._watches: list[sqla_watch.Watch] = []
        self._known: set[tuple[str, ...]] = set()

    def watch(self, engine: Engine | AsyncEngine) -> None:
        watch = sqla_watch.install(engine, settings=self._settings)
        if self._hear not in watch.reporters:
            watch.reporters.append(self._hear)
        self._watches.append(watch)

    def _hear(self, scope: sqla_watch.Scope) -> None:
        """Take the findings of a closed scope; a scope around it repeats them."""
        for finding in scope.findings:
            if finding.key in self._known:
                continue
            self._known.add(finding.key)
            place = finding.location
            places = () if place is None else (Lines(place.file, place.line, max(place.line, place.last_line)),)
            self.said.append(Said(finding.rule, (finding.rule,), places, finding.message))

    def request(self, name: str) -> AbstractContextManager[Any]:
        return sqla_watch.scope(name, kind="request")

    def __exit__(self, *error: object) -> None:
        for watch in self._watches:
            watch.uninstall()


class Peer(Observer):
    """Another tool. All of them are made for tests, and know no other profile."""

    @classmethod
    def takes_part(cls, scenario: Scenario) -> bool:
        return scenario.profile == "test"

    def say(self, kind: str, label: str, count: int, places: Iterable[tuple[str, int]]) -> None:
        """Take a finding; the same one of a later request is not another."""
        around = tuple(statement_around(os.path.abspath(file), line) for file, line in places)
        if not any((said.kind, said.places, said.target) == (kind, around, label) for said in self.said):
            message = f"{count} times {' '.join(label.split())}"
            self.said.append(Said(kind, self.stands_for[kind], around, message, label))


class QuerySpy(Peer):
    """queryspy, as its middleware and its plugin drive it: `record()` around each request."""

    name = "queryspy"
    stands_for = {
        "lazy_load": ("n-plus-one",),
        "column_load": ("column-load-loop",),
        "repeated_statement": ("query-in-loop", "repeated-query", "n-plus-one", "column-load-loop"),
    }

    @contextmanager
    def request(self, name: str) -> Iterator[None]:
        import queryspy

        recorder = None
        try:
            with queryspy.record() as recorder:
                yield
        finally:
            for finding in recorder.findings() if recorder is not None else ():
                self.say(finding.kind, finding.label, finding.count, _place(finding.frame))


class QueryGuard(Peer):
    """pytest-queryguard: its listeners, a collector and its detectors, as its plugin puts them together."""

    name = "pytest-queryguard"
    stands_for = {
        "relationship-load": ("n-plus-one",),
        "repeated-statement": ("query-in-loop", "repeated-query", "n-plus-one", "column-load-loop"),
        "column-load": ("column-load-loop",),
        "write-loop": ("row-by-row-write", "flush-storm"),
        "unused-eager-load": ("unused-eager-load",),
    }

    # Opt-in, and without a default: as many as a label means.
    WRITE_LOOP_THRESHOLD = 10

    def __enter__(self) -> Observer:
        from pytest_queryguard import eager, listeners

        listeners.swap_error(None)
        listeners.install()
        if self._looks_for_unused:
            eager.enable()
        return self

    @property
    def _looks_for_unused(self) -> bool:
        """Off by default, like our rule: on where ours is."""
        return "unused-eager-load" in self.scenario.rules

    @contextmanager
    def request(self, name: str) -> Iterator[None]:
        from pytest_queryguard import collector, detectors, eager, messages

        recorded = collector.QueryCollector()
        tracker = eager.start() if self._looks_for_unused else None
        collector.push(recorded)
        try:
            yield
        finally:
            collector.pop(recorded)
            for detection in detectors.detect(
                recorded,
                relationship_threshold=2,
                repeat_threshold=5,
                write_loop_threshold=self.WRITE_LOOP_THRESHOLD,
            ):
                finding = messages.make_finding(detection)
                self.say(finding.kind, finding.label, finding.count, _place(detection.first))
            if tracker is not None:
                eager.stop(tracker)
                for load in eager.unused(tracker):
                    self.say("unused-eager-load", f"{load.loader}({load.label})", 1, _place(load.callsite))

    def __exit__(self, *error: object) -> None:
        from pytest_queryguard import eager, listeners

        if self._looks_for_unused:
            eager.disable()
        for target, name, listener in (
            (Session, "do_orm_execute", listeners._on_orm_execute),
            (Session, "do_orm_execute", listeners._on_orm_execute_heal),
            (Session, "after_begin", listeners._on_after_begin),
            (Session, "after_flush", listeners._on_after_flush),
            (Engine, "before_cursor_execute", listeners._on_cursor_execute),
            (Engine, "after_cursor_execute", listeners._on_timing_after),
        ):
            if event.contains(target, name, listener):
                event.remove(target, name, listener)
        listeners._installed = False
        fault = listeners.internal_error()
        if fault is not None:
            raise RuntimeError("pytest-queryguard switched itself off") from fault


class QueryCount(Peer):
    """pytest-querycount: a recorder, asked for duplicates as its marker `no_n_plus_one` does."""

    name = "pytest-querycount"
    stands_for = {"duplicate": ("n-plus-one", "query-in-loop", "repeated-query", "column-load-loop")}

    # Its message shows as many places of a duplicate.
    SHOWN = 3

    def __enter__(self) -> Observer:
        from pytest_querycount import backends

        backends.install_all()
        return self

    @contextmanager
    def request(self, name: str) -> Iterator[None]:
        from pytest_querycount import backends, recorder

        recorded = recorder.Recorder()
        backends.push(recorded)
        try:
            yield
        finally:
            backends.pop(recorded)
            for duplicate in recorded.duplicates():
                shown = [place.rpartition(":") for place, _ in duplicate.locations.most_common(self.SHOWN)]
                # It takes SQLAlchemy's generated code for the application's: as good as no line.
                places = [(file, int(line)) for file, _, line in shown if not file.startswith("<")]
                self.say("duplicate", duplicate.sample.short_sql(), duplicate.count, places)

    def __exit__(self, *error: object) -> None:
        from pytest_querycount.backends import sqlalchemy as backend

        for name, listener in (
            ("before_cursor_execute", backend._before_cursor_execute),
            ("after_cursor_execute", backend._after_cursor_execute),
        ):
            if event.contains(Engine, name, listener):
                event.remove(Engine, name, listener)
        backend._installed = False


OBSERVERS: tuple[type[Observer], ...] = (Ours, QuerySpy, QueryGuard, QueryCount)


def installed(observer: type[Observer]) -> bool:
    """Whether a contestant can take part."""
    return find_spec(observer.name.replace("-", "_")) is not None


def version(observer: type[Observer]) -> str:
    """The version of a contestant's distribution; empty where it runs from its sources."""
    try:
        return metadata.version(observer.name)
    except metadata.PackageNotFoundError:
        return ""


def _place(site: Any) -> list[tuple[str, int]]:
    return [] if site is None else [(site.filename, site.lineno)]


def statement_around(file: str, line: int) -> Lines:
    """Return the lines of the innermost statement that a line belongs to; of a loop or block only its head."""
    best = Lines(file, line, line)
    size = None
    for first, last in _statements(file):
        if first <= line <= last and (size is None or last - first < size):
            best, size = Lines(file, first, last), last - first
    return best


@lru_cache
def _statements(file: str) -> tuple[tuple[int, int], ...]:
    try:
        tree = ast.parse(Path(file).read_text())
    except (OSError, SyntaxError, ValueError):  # code without a file
        return ()
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.stmt):
            body = getattr(node, "body", None)
            last = body[0].lineno - 1 if body else node.end_lineno or node.lineno
            found.append((node.lineno, max(node.lineno, last)))
    return tuple(found)
