"""The scope of a test: what the test made the database do, from whichever thread or task it did it.

A thread begins with an empty context, and an event loop that a fixture has started keeps the context of that moment.
So a test's scope is not only found by the ContextVar: while it is open it is the one of the whole process, for every
statement that is in no other scope. The scopes inside of it, such as an application's requests, tell their findings to
the test instead of to the log or as Python warnings.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, cast

import sqla_watch
from sqla_watch import registry
from sqla_watch.callsite import location_of
from sqla_watch.detectors import RULES, judge, worst_first
from sqla_watch.facts import CallSite, Fact, StatementGroup
from sqla_watch.findings import Finding, FindingRaised, Location
from sqla_watch.fingerprint import Fingerprint
from sqla_watch.glance import FEW
from sqla_watch.installation import Watch
from sqla_watch.probes.door import Door
from sqla_watch.record import Record
from sqla_watch.reporters import deliver
from sqla_watch.scopes import MOST_FINDINGS, Scope, current, current_scope, scope
from sqla_watch.settings import Action, Settings

__all__ = [
    "LineStatements",
    "TestScope",
    "engines_seen",
    "hold_engines",
    "release_engines",
    "settings_of",
    "settings_without_rules",
    "watch_engines",
]

MOST_LINES = 2_000
"""Different statements by line that a test's scope tells apart, beside those of its own record."""


@dataclass(frozen=True, slots=True)
class LineStatements:
    """The statements alike that one line has sent."""

    statement: str
    """The SQL without its values."""
    tables: tuple[str, ...]
    """The tables that it names."""
    location: Location | None
    """The line of the user's code; None if no frame of theirs was on the stack."""
    count: int
    """How many were sent."""
    rows: int
    """Rows which they returned."""
    seconds: float
    """Seconds in the database."""

    def touches(self, table: str) -> bool:
        """Whether the statement names a table, with or without its schema."""
        wanted = table.lower()
        return any(name.lower() == wanted or name.lower().endswith(f".{wanted}") for name in self.tables)


class TestScope(Scope):
    """The scope of one test, or of a check within it, with what was seen; its numbers can be read at any time.

    It takes in what is sent from threads and tasks that are in no scope of their own.

    Args:
        name: What it is of: a test's node id.
        settings: What judges it.
        timeline: How many statements it keeps one by one, if not as many as the settings say.
    """

    __slots__ = ("_by_line", "_own_facts", "_own_groups", "judged_by")
    __test__ = False  # pytest would take it for a class of tests

    is_whole_test = False
    """Whether it is of a whole test, so that a check in a thread which knows of no test is in it."""

    def __init__(self, name: str, settings: Settings, timeline: int | None = None) -> None:
        super().__init__(name, "test", settings, timeline=timeline)
        self.judged_by = settings
        """What judges it; its `settings` are those that scopes inside of it inherit."""
        self._by_line: dict[tuple[str, int, int], _Line] = {}
        """Of the scopes inside of it that are closed."""
        self._own_groups: list[StatementGroup] = []
        """Of itself, once it is closed: added up by line only where somebody asks, as for a test that fails."""
        self._own_facts: list[Fact] = []
        """The same, of a scope that was not put in groups yet."""

    @property
    def lines(self) -> list[LineStatements]:
        """The statements so far by the line that sent them, those first of which there were most."""
        lines = {key: line.copy() for key, line in self._by_line.items()}
        _add_groups(lines, self._groups_of_its_own())
        return [line.told() for line in sorted(lines.values(), key=lambda line: (-line.count, -line.nanoseconds))]

    @property
    def findings(self) -> list[Finding]:
        """What was found, worst first; of an open scope, what would be found if it closed now."""
        if self.closed:
            return list(self._findings)
        return worst_first([*self._findings, *judge(self.record, self.judged_by)])

    def queries_for(self, table: str) -> list[LineStatements]:
        """Return the statements that name a table, by line.

        Args:
            table: Its name, with or without the schema; upper and lower case are the same.

        Example::

            assert sum(query.count for query in sqla_watch.queries_for("orders")) == 1
        """
        if not isinstance(table, str):
            raise TypeError(f"queries_for() takes the name of a table, not {table!r}")
        return [line for line in self.lines if line.touches(table)]

    def section(self, name: str) -> scope:
        """Open a scope inside of the test, around a `with` block; it has numbers and findings of its own.

        Example::

            with sqla_watch.section("load") as load:
                orders = load_orders(session)
            assert load.statements == 2
        """
        return scope(name, kind="section")

    @property
    def is_untouched(self) -> bool:
        """Whether nothing at all was seen so far, also not in scopes inside of it."""
        return self._record is None and not self.pending

    def open(self) -> None:
        """Begin to take in what is sent; again, of one that was untouched when it was finished."""
        watch_engines()
        self.closed = False
        self.parent = current_scope() or (None if self.is_whole_test else running.whole_test)
        self.started_at = time.time()
        self.started = time.perf_counter_ns()
        # What is opened inside inherits these, and an application that has settings of its own goes on with them.
        own = self.judged_by
        self.settings = around = _settings_around(own)
        self.watched_raises = own.raises if around is own else own.raises | around.raises
        self._token = current.set(self)
        running.push(self)

    def finish(self, error: BaseException | None = None) -> None:
        """Take in nothing further, and judge what was seen.

        Nothing is reported but what the project's pyproject.toml, or the environment, gives an action explicitly.

        Args:
            error: The exception which ended the test, if one did; then nothing is raised.

        Raises:
            FindingRaised: A rule's action is explicitly `raise`.
            SqlaWatchWarning: A rule's action is explicitly `warn`, and a filter turns that into an error.
        """
        if self.closed:
            return
        token, self._token = self._token, None
        if token is not None:
            try:
                current.reset(token)
            except ValueError:  # another context than it was opened in
                if current.get() is self:
                    current.set(self.parent)
        running.remove(self)
        if self.is_untouched:
            self.finished = time.perf_counter_ns()
            self.closed = True
            self.parent = self.parent or running.stand_in
            return
        self.settings = self.judged_by
        found = self.close()
        self.parent = self.parent or running.stand_in  # who has kept this context gets to the test that runs then
        told = [finding for finding in found if finding.key not in self._raised and finding.rule in _explicit()]
        raised = deliver(self, told, may_raise=error is None) if told else []
        if raised:
            raise FindingRaised(raised)

    def add_inner(self, inner: Scope, findings: list[Finding]) -> None:
        """Take over the totals and findings of a scope inside this one; one that was handed over before is known."""
        known = {id(finding) for finding in self._findings}
        super().add_inner(inner, [finding for finding in findings if id(finding) not in known])

    def hand_over(self, findings: list[Finding]) -> None:
        """Take over what was found in a scope further inside, which tells only the scope around it."""
        with self._lock:
            self._findings.extend(findings[: max(0, MOST_FINDINGS - len(self._findings))])

    def began_before(self, other: Scope) -> bool:
        """Whether another scope was opened while this one was open."""
        return other is not self and other.started >= self.started

    def keep(self, groups: Iterable[StatementGroup]) -> None:
        """Keep by line what a scope inside of it is about to forget."""
        with self._lock:
            _add_groups(self._by_line, groups)

    def keep_own(self) -> None:
        """Keep what it is about to forget itself."""
        if self._record is None and len(self.pending) <= FEW:
            self._own_facts = self.pending[:]
        else:
            self._own_groups = self.record.groups

    def _groups_of_its_own(self) -> list[StatementGroup]:
        if not self.closed:
            return self.record.groups
        if self._own_facts:
            again = Record()
            again.take(self._own_facts)
            self._own_groups, self._own_facts = again.groups, []
        return self._own_groups


class _Line:
    """Adds up what one line has sent."""

    __slots__ = ("count", "fingerprint", "nanoseconds", "rows", "site")

    def __init__(self, fingerprint: Fingerprint, site: CallSite | None) -> None:
        self.fingerprint = fingerprint
        self.site = site
        self.count = self.rows = self.nanoseconds = 0

    def copy(self) -> _Line:
        line = _Line(self.fingerprint, self.site)
        line.count, line.rows, line.nanoseconds = self.count, self.rows, self.nanoseconds
        return line

    def told(self) -> LineStatements:
        return LineStatements(
            self.fingerprint.text,
            self.fingerprint.tables,
            location_of(self.site),
            self.count,
            self.rows,
            self.nanoseconds / 1e9,
        )


def _add_groups(lines: dict[tuple[str, int, int], _Line], groups: Iterable[StatementGroup]) -> None:
    for group in groups:
        site = group.call_site
        key = (
            (group.fingerprint.text, 0, 0)
            if site is None
            else (group.fingerprint.text, id(site.code), site.instruction)
        )
        line = lines.get(key)
        if line is None:
            if len(lines) >= MOST_LINES:
                continue
            line = lines[key] = _Line(group.fingerprint, site)
        line.count += group.count
        line.rows += group.rows
        line.nanoseconds += group.nanoseconds


class _Running:
    """The tests' scopes that are open, the innermost last: what is sent in no scope is theirs."""

    def __init__(self) -> None:
        self._scopes = cast("list[TestScope]", registry.fallbacks)
        self.stand_in = Scope("tests", "test", Settings(timeline=0, implicit_scopes=False))
        """Closed, and around every test's scope that is over: leads on to the one that is open now."""
        self.stand_in.closed = True

    @property
    def innermost(self) -> TestScope | None:
        return self._scopes[-1] if self._scopes else None

    @property
    def whole_test(self) -> TestScope | None:
        for opened in reversed(self._scopes):
            if opened.is_whole_test:
                return opened
        return None

    def push(self, opened: TestScope) -> None:
        self._scopes.append(opened)
        self.stand_in.parent = opened

    def remove(self, closing: TestScope) -> None:
        scopes = self._scopes
        if closing in scopes:
            scopes.remove(closing)
        self.stand_in.parent = scopes[-1] if scopes else None


running = _Running()


class _Watching:
    """The watch of every engine that tests have, and what we add to scopes while it is there."""

    def __init__(self) -> None:
        self.watch: Watch | None = None
        self.door: Door | None = None
        self.seen = 0
        self.holders = 0
        """Test runs that want engines to stay watched: one may run inside of another."""

    def open(self) -> None:
        if self.door is None:
            self.door = Door("scopes of tests", Scope)
            self.door.wrap("close", _hand_to_test)
        if self.watch in registry.watches:
            return
        if any(isinstance(watch, Watch) and watch.everything for watch in registry.watches):
            return  # the application's own
        self.watch = sqla_watch.install(settings=settings_of())
        # In front of the others: what an application has installed for itself stays in force outside of tests.
        registry.watches.remove(self.watch)
        registry.watches.insert(0, self.watch)
        registry.look_at_settings()

    def close(self) -> None:
        watch, self.watch = self.watch, None
        if watch is not None:
            watch.uninstall()
        if self.door is not None:
            self.door.close()
            self.door = None
        self.seen = 0

    def engines(self) -> int:
        self.seen = max(self.seen, len({engine for watch in registry.watches for engine in watch.engines}))
        return self.seen


_watching = _Watching()


def watch_engines() -> None:
    """Watch every engine of the process, those that exist and those still to come, if nobody does yet.

    Raises:
        SettingsError: pyproject.toml or the environment have a mistake.
    """
    if _watching.watch not in registry.watches:
        _watching.open()


def hold_engines() -> None:
    """Watch every engine until `release_engines`, by the settings as they are now.

    Raises:
        SettingsError: pyproject.toml or the environment have a mistake.
    """
    _settings.cache_clear()
    _explicit.cache_clear()
    watch_engines()
    _watching.holders += 1


def release_engines() -> None:
    """Leave engines and scopes as they were, unless another test run holds them."""
    _watching.holders = max(0, _watching.holders - 1)
    if not _watching.holders:
        _watching.close()


def engines_seen() -> int:
    """Return how many engines there were at once, at most, as far as this was asked."""
    return _watching.engines()


def settings_of(profile: str = "test", timeline: int = 0) -> Settings:
    """Return the settings that judge tests: those of pyproject.toml and environment, with another profile.

    Args:
        profile: The profile, whatever the project's own is.
        timeline: Statements that a scope keeps one by one.

    Raises:
        SettingsError: The profile is none, or pyproject.toml or the environment have a mistake.
    """
    return _settings(profile, timeline)


@lru_cache(maxsize=32)
def _settings(profile: str, timeline: int) -> Settings:
    loaded = Settings.load()
    rules = dict(loaded.rules)
    rules.setdefault("engine-settings", Action.IGNORE)  # how an engine is made for tests is no matter of any test
    # An application's tests may look at the spans that it has written itself.
    telemetry = False if loaded.telemetry is None else loaded.telemetry
    return replace(
        loaded,
        profile=profile,
        rules=rules,
        timeline=timeline,
        implicit_scopes=False,
        watchdog_seconds=0,
        telemetry=telemetry,
    )


@lru_cache(maxsize=1)
def settings_without_rules() -> Settings:
    """Return settings that judge nothing: for what only is to be counted."""
    return Settings(
        profile="test",
        rules=dict.fromkeys(RULES, Action.IGNORE),
        timeline=0,
        implicit_scopes=False,
        watchdog_seconds=0,
    )


@lru_cache(maxsize=1)
def _explicit() -> frozenset[str]:
    """Return the rules to which pyproject.toml or the environment give an action."""
    return frozenset(
        rule for rule, value in Settings.load().rules.items() if isinstance(value, str) or "action" in value
    )


def _settings_around(own: Settings) -> Settings:
    """Return the settings of scopes inside of a test: those that the application has installed, if it has."""
    for watch in reversed(registry.watches):
        if watch is not _watching.watch:
            return watch.settings
    return own


def _tests_around(scope: Scope) -> list[TestScope]:
    """Return the open scopes of a test and of checks within it that a scope is in, or is."""
    found = []
    above: Scope | None = scope
    while above is not None:
        if isinstance(above, TestScope) and not above.closed:
            found.append(above)
        above = above.parent
    return found


def _hand_to_test(door: Door, original: Any) -> Any:
    def close(scope: Scope) -> list[Finding]:
        tests: list[TestScope] = []
        try:
            if door.open and not scope.closed:
                if scope.parent is None:
                    innermost = running.innermost
                    if isinstance(scope, TestScope):
                        scope.keep_own()  # it is in no other one: so there is nobody else to be told
                    elif innermost is not None and innermost.began_before(scope):
                        scope.parent = innermost  # opened in a thread which knew of no test
                if scope.parent is not None:
                    tests = _tests_around(scope)
                for test in tests:
                    if test is scope:
                        test.keep_own()
                    else:
                        test.keep(scope.record.groups)
        except Exception:
            door.fault()
        findings: list[Finding] = original(scope)
        for test in tests:
            if test is not scope and test is not scope.parent:
                test.hand_over(findings)
        if tests and scope is not tests[0] and any(scope.settings is test.judged_by for test in tests):
            # The test tells them: they are not reported a second time, as a warning or in the log.
            scope._raised |= {finding.key for finding in findings if finding.rule not in _explicit()}
        return findings

    return close
