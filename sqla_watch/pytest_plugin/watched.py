"""Tests that are watched: a scope around each one's call, what it came to, and the failure if it demanded less.

Loaded when the first test of a run is to be watched.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from sqla_watch.pytest_plugin.marks import FAIL_ON, Demands, demands, demands_of_mark, is_mark_of_ours
from sqla_watch.pytest_plugin.options import Options
from sqla_watch.pytest_plugin.outcome import Outcome, identity
from sqla_watch.settings import Settings, SettingsError
from sqla_watch.testing.failure import MOST_LINES, CheckFailed, describe, spent
from sqla_watch.testing.told import by_line, findings_told
from sqla_watch.testing.watching import (
    TestScope,
    engines_seen,
    hold_engines,
    release_engines,
    settings_of,
    settings_without_rules,
)

if TYPE_CHECKING:
    import unittest

    from sqla_watch.pytest_plugin.baseline import Baseline

__all__ = ["CallScope", "Reports", "WatchedTests"]

TIMELINE = 5_000
"""Statements of a test that are kept one by one, for a report's waterfall or a snapshot."""


class CallScope(TestScope):
    """The scope of a test's call phase: what the fixture `sqla_watch` is."""

    __slots__ = ("_item", "_snapshots", "_update_snapshots")

    is_whole_test = True

    def __init__(self, item: pytest.Item, settings: Settings, timeline: int, *, update_snapshots: bool) -> None:
        super().__init__(item.nodeid, settings, timeline)
        self._item = item
        self._snapshots = 0
        self._update_snapshots = update_snapshots

    def assert_matches_snapshot(self) -> None:
        """Compare the statements so far with those of the test's snapshot, in `__snapshots__` beside its file.

        `--sqla-watch-update-snapshots` writes them. A second call in the same test has a snapshot of its own.

        Raises:
            SnapshotMismatch: They differ, or there is no snapshot yet; an AssertionError.
        """
        __tracebackhide__ = True
        from sqla_watch.pytest_plugin import snapshots

        self._snapshots += 1
        name = self._item.nodeid.partition("::")[2].replace("::", ".") or self._item.name
        if self._snapshots > 1:
            name = f"{name}-{self._snapshots}"
        snapshots.check(self._item.path, name, snapshots.statements_of(self), self._update_snapshots)


class WatchedTest:
    """One run of one test."""

    def __init__(
        self,
        item: pytest.Item,
        wanted: Demands,
        fail_on: frozenset[str],
        watching: WatchedTests,
        *,
        has_fixture: bool,
    ) -> None:
        self._item = item
        self._watching = watching
        self._wanted = wanted
        self._fail_on = fail_on
        # Reports show a waterfall of each test; a test with the fixture may compare a snapshot.
        timeline = TIMELINE if has_fixture or watching.wants_scopes else 0
        settings = settings_of(wanted.profile or "test", timeline)
        self.scope = CallScope(item, settings, timeline, update_snapshots=watching.options.update_snapshots)
        self._setup: TestScope | None = None
        self._setup_statements = 0
        self._setup_seconds = 0.0
        self.outcome: Outcome | None = None

    def open_setup(self) -> None:
        """Record what fixtures do, apart from the test."""
        self._setup = self._watching.fixtures_scope(f"{self._item.nodeid} (setup)")
        self._setup.open()

    def close_setup(self) -> None:
        """The fixtures are there; may be called again."""
        setup, self._setup = self._setup, None
        if setup is not None:
            setup.finish()
            if setup.is_untouched:
                self._watching.unused_scope = setup
            else:
                self._setup_statements += setup.statements
                self._setup_seconds += setup.database_seconds

    def call_case(self, case: unittest.TestCase) -> Generator[None, Any, Any]:
        """Watch the method of a TestCase: `setUp` and `tearDown`, which pytest calls with it, are fixtures."""
        __tracebackhide__ = True
        original: Any = case._callTestMethod  # type: ignore[attr-defined]

        def call_test_method(method: Any) -> Any:
            __tracebackhide__ = True
            self.close_setup()
            self.scope.open()
            try:
                result = original(method)
            except BaseException as error:
                self.finish(error)
                raise
            self.finish(None)
            return result

        case._callTestMethod = call_test_method  # type: ignore[attr-defined]
        self.open_setup()
        try:
            return (yield)
        finally:
            self.close_setup()
            del case._callTestMethod  # type: ignore[attr-defined]

    def finish(self, error: BaseException | None) -> None:
        """The test itself has ended: see what it came to."""
        try:
            self.scope.finish(error)
        finally:
            self.outcome = self._outcome(completed=error is None)
            self._watching.take(self.outcome)

    def _outcome(self, *, completed: bool) -> Outcome:
        scope, item, watching = self.scope, self._item, self._watching
        untouched = scope.is_untouched
        numbers = _NOTHING if untouched else _numbers(scope)
        findings: list[dict[str, Any]] = []
        failing: set[str] = set()
        if not untouched and (found := scope.findings):
            allow, root = self._wanted.allow, str(item.config.rootpath)
            findings = findings_told(
                (finding for finding in found if not any(each.matches(finding) for each in allow)), root
            )
            known = watching.known
            failing = {
                identity(finding)
                for finding in findings
                if finding["rule"] in self._fail_on and not (known is not None and known.knows(identity(finding)))
            }
        budget = self._wanted.budget
        nodeid = item.nodeid
        measured = watching.measured.get(nodeid)
        if measured is not None:
            budget["max_statements"] = min(measured, budget.get("max_statements", measured))
        over = {name: used for name, limit in budget.items() if (used := numbers[name.removeprefix("max_")]) > limit}
        lines = []
        if over or failing or watching.wants_scopes:
            lines = by_line(scope, str(item.config.rootpath), MOST_LINES)
        file, line, _ = item.location
        return Outcome(
            nodeid=nodeid,
            file=file.replace("\\", "/"),
            line=0 if line is None else line + 1,
            **numbers,
            setup_statements=self._setup_statements,
            setup_database_seconds=round(self._setup_seconds, 6),
            duration_seconds=round(scope.duration_seconds, 6),
            findings=tuple(findings),
            failing=tuple(sorted(failing)),
            budget=budget,
            over=over,
            by_line=tuple(lines),
            engines=1 if numbers["statements"] else engines_seen(),
            completed=completed,
            scope=scope.to_dict() if watching.wants_scopes else None,
        )

    def fail(self) -> None:
        """Raise a failure, if the test ran to its end and something is wrong."""
        __tracebackhide__ = True
        outcome = self.outcome
        if outcome is None or not (outcome.over or outcome.failing) or not outcome.completed:
            return
        options = self._watching.options
        if options.mode in ("off", "warn"):
            return
        failing = [] if options.update_baseline else [
            finding for finding in outcome.findings if identity(finding) in outcome.failing
        ]  # fmt: skip
        if not outcome.over and not failing:
            return
        heads = [
            f"{spent(name, used, outcome.budget[name])}{self._source(name, outcome)}"
            for name, used in outcome.over.items()
        ]
        if failing:
            rules = ", ".join(dict.fromkeys(finding["rule"] for finding in failing))
            heads.append(f"found: {rules}")
        others = [finding for finding in outcome.findings if finding not in failing] if outcome.over else []
        root = str(self._item.config.rootpath)
        text = describe(heads, outcome.by_line, [*failing, *others], outcome.statements, root)
        failure = CheckFailed(text, outcome.over, failing)
        shown = self._item.repr_failure
        self._item.repr_failure = partial(_shown_plainly, self._item, failure, shown)  # type: ignore[method-assign]
        raise failure

    def _source(self, limit: str, outcome: Outcome) -> str:
        """Return where a limit is from, if no one has written it down by hand."""
        measured = self._watching.measured.get(outcome.nodeid)
        if limit == "max_statements" and measured == outcome.budget[limit] != self._wanted.limits.get(limit):
            return " (as many as it has had so far: --sqla-watch-budgets)"
        return ""


class WatchedTests:
    """The hooks around the tests of a run.

    Args:
        options: What was asked for.
        known: The baseline.
        measured: The measured budgets, by node id.
        take: Takes what each test came to.

    Raises:
        SettingsError: pyproject.toml or the environment have a mistake.
    """

    def __init__(
        self,
        options: Options,
        known: Baseline | None,
        measured: Mapping[str, int],
        take: Callable[[Outcome], None],
    ) -> None:
        self.options = options
        self.wants_scopes = options.wants_scopes
        self.take = take
        self._latest: pytest.Item | None = None
        self._test: WatchedTest | None = None
        """The run of the latest test; None if that is not watched. Of others nothing is kept."""
        self._unwatched: pytest.Item | None = None
        """The test that is running without being watched."""
        self.unused_scope: TestScope | None = None
        """One of fixtures that sent nothing, for those of the next test."""
        self.known = known
        self.measured = measured
        hold_engines()

    @pytest.hookimpl(wrapper=True, trylast=True)  # inside of what other plugins do, and around the fixtures
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """Record what the fixtures of a test do."""
        __tracebackhide__ = True
        test = self.begin(item, has_fixture="sqla_watch" in getattr(item, "fixturenames", ()))
        if test is None:
            return (yield)
        test.open_setup()
        try:
            return (yield)
        finally:
            test.close_setup()

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """Watch the test itself."""
        __tracebackhide__ = True
        test = self.test_of(item)
        if test is not None:
            case = getattr(item, "instance", None)
            unittest = sys.modules.get("unittest")  # without it, no test is a TestCase
            if case is not None and unittest is not None and isinstance(case, unittest.TestCase):
                result = yield from test.call_case(case)
            else:
                test.scope.open()
                try:
                    result = yield
                except BaseException as error:
                    test.finish(error)
                    raise
                test.finish(None)
            test.fail()
            return result
        self._unwatched = item
        try:
            return (yield)
        finally:
            self._unwatched = None
            test = self.test_of(item)
            if test is not None:  # it has asked for the fixture meanwhile, by name
                test.scope.finish(sys.exception())

    def begin(self, item: pytest.Item, *, has_fixture: bool) -> WatchedTest | None:
        """Return a new run of a test, or None for one that is not watched."""
        __tracebackhide__ = True
        self._latest, self._test = item, None
        vars(item).pop("repr_failure", None)  # of a run before this one
        try:
            wanted = wanted_of(item, self.options, has_fixture=has_fixture)
            if wanted is not None:
                self._test = WatchedTest(item, *wanted, self, has_fixture=has_fixture)
        except SettingsError as error:
            pytest.fail(f"sqla_watch: {error}", pytrace=False)
        return self._test

    def test_of(self, item: pytest.Item) -> WatchedTest | None:
        """Return the run of a test, if it is the latest one, and watched."""
        return self._test if self._latest is item else None

    def scope_of(self, item: pytest.Item) -> CallScope:
        """Return the scope of a test that is running."""
        test = self.test_of(item)
        if test is None:
            test = self.begin(item, has_fixture=True)
            assert test is not None
            if self._unwatched is item:
                test.scope.open()
        return test.scope

    def fixtures_scope(self, name: str) -> TestScope:
        """Return a scope for what the fixtures of a test send, which mostly is nothing."""
        unused, self.unused_scope = self.unused_scope, None
        if unused is None:
            return TestScope(name, settings_without_rules())
        unused.name = name
        return unused

    def close(self) -> None:
        """Leave engines as they were."""
        self._latest = self._test = None
        release_engines()


class Reports:
    """Puts on the reports of tests what they came to, for those who read only reports.

    Args:
        watching: Knows what they came to.
        for_controller: Whether this is a worker of pytest-xdist, from which nothing but the report gets out.
        in_junit: Whether JUnit's XML is to have each test's numbers.
    """

    def __init__(self, watching: WatchedTests, *, for_controller: bool, in_junit: bool) -> None:
        self._watching = watching
        self._for_controller = for_controller
        self._in_junit = in_junit

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
        """Put on the report what the test came to."""
        report: pytest.TestReport = yield
        test = self._watching.test_of(item)
        if test is None or call.when != "call" or test.outcome is None:
            return report
        if self._for_controller:  # as text: not all that a file may be called goes through execnet
            report.sqla_watch = json.dumps(test.outcome.to_dict())  # type: ignore[attr-defined]
        if self._in_junit:
            from sqla_watch.pytest_plugin.exports import junit_properties

            # The report of the teardown, whose properties JUnit's XML has, is made of the item's; it may be a rerun.
            others = [pair for pair in item.user_properties if not pair[0].startswith("sqla_watch.")]
            item.user_properties[:] = [*others, *junit_properties(test.outcome)]
            report.user_properties = list(item.user_properties)
        return report


_FAIL_ON = frozenset(FAIL_ON)
_NOTHING: dict[str, Any] = {
    "statements": 0,
    "rows": 0,
    "database_seconds": 0.0,
    "wait_seconds": 0.0,
    "transactions": 0,
    "connections": 0,
}


def _numbers(scope: CallScope) -> dict[str, Any]:
    totals = scope.totals
    return {
        "statements": totals.statements,
        "rows": totals.rows,
        "database_seconds": round(totals.database / 1e9, 6),
        "wait_seconds": round(totals.wait / 1e9, 6),
        "transactions": totals.commits + totals.rollbacks,
        "connections": totals.checkouts,
    }


def wanted_of(item: pytest.Item, options: Options, *, has_fixture: bool) -> tuple[Demands, frozenset[str]] | None:
    """Return what is demanded of a test, and the rules that let it fail; None for one that is not watched.

    Raises:
        SettingsError: A marker, or what the hook returned, cannot be what it is.
    """
    if options.mode == "off":
        return (Demands(), frozenset()) if has_fixture else None
    wanted = options.general
    for limits in options.limits:
        if limits.are_for(item.nodeid):
            wanted = wanted.under(limits.demands)
    by_rule = options.mode != "marked"
    asked = by_rule or has_fixture
    if item.config.hook.pytest_sqla_watch.get_hookimpls():
        given = item.ihook.pytest_sqla_watch(item=item)
        if given is not None:
            wanted = wanted.under(demands("hook pytest_sqla_watch", given))
            asked = by_rule = True
    for mark in _marks_of(item):
        wanted = wanted.under(demands_of_mark(mark))
        asked = True
        by_rule = by_rule or mark.name == "sqla_watch"
    if not asked:
        return None
    fail_on = wanted.fail_on
    if fail_on is None:
        fail_on = _FAIL_ON if by_rule else frozenset()
    return wanted, fail_on


def _marks_of(item: pytest.Item) -> Sequence[pytest.Mark]:
    """Return the markers that demand something of a test, the weakest first."""
    node: Any = item
    while not node.own_markers:  # of most tests nobody on the way up has any: a third of what iter_markers() takes
        node = node.parent
        if node is None:
            return ()
    # The farthest first; behind them those of the parameter set, which pytest has among those of the function.
    marks = [mark for mark in item.iter_markers() if is_mark_of_ours(mark, item.config)][::-1]
    of_parameters = getattr(getattr(item, "callspec", None), "marks", ()) if marks else ()
    return sorted(marks, key=lambda mark: mark in of_parameters)


def _shown_plainly(
    item: pytest.Item, failure: CheckFailed, shown: Any, raised: pytest.ExceptionInfo[BaseException]
) -> Any:
    """Show a failure of ours without a traceback, which has no line of the test in it: as a failure at the test."""
    if raised.value is not failure:
        return shown(raised)
    plain = raised.getrepr(style="value")
    if plain.reprcrash is not None:
        file, line, _ = item.location
        plain.reprcrash.path = str(item.config.rootpath / file)
        plain.reprcrash.lineno = (line or 0) + 1
        plain.reprcrash.message = str(failure).partition("\n")[0]
    return plain
