"""The run of pytest: its options, which tests are watched, and what is told and written at its end.

Each process that runs tests has `Run`. With pytest-xdist the workers put what a test came to on its report, and the
controller alone writes files and tells.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sqla_watch.pytest_plugin import hooks, options
from sqla_watch.pytest_plugin.marks import is_mark_of_ours, max_queries_is_of_another
from sqla_watch.pytest_plugin.options import Options

if TYPE_CHECKING:
    from sqla_watch.pytest_plugin.baseline import Baseline
    from sqla_watch.pytest_plugin.outcome import Outcome
    from sqla_watch.pytest_plugin.watched import CallScope, WatchedTests

__all__ = ["pytest_addhooks", "pytest_addoption", "pytest_configure", "pytest_unconfigure", "sqla_watch"]

_MARKS = (
    "sqla_watch(max_queries=None, max_rows=None, max_database_seconds=None, max_wait_seconds=None, "
    "max_connections=None, max_transactions=None, allow=[], fail_on=[], profile=None): fail the test if its call makes "
    "the database do more, or for what the rules fail_on find in it.",
    "max_queries(n): fail the test if its call sends more than n statements to the database.",
)

_run = pytest.StashKey["Run"]()


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Offer the hook of conftest.py."""
    pluginmanager.add_hookspecs(hooks)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    options.add(parser)


@pytest.hookimpl(tryfirst=True)  # before other plugins add their markers
def pytest_configure(config: pytest.Config) -> None:
    """Begin the run."""
    run = Run(config)
    config.stash[_run] = run
    config.pluginmanager.register(run, "sqla_watch_run")


def pytest_unconfigure(config: pytest.Config) -> None:
    """End the run."""
    run = config.stash.get(_run, None)
    if run is not None:
        run.close()


@pytest.fixture
def sqla_watch(request: pytest.FixtureRequest) -> CallScope:
    """What the test makes the database do, live: `statements`, `rows`, `findings`, `queries_for("orders")`.

    Only its call counts, so all numbers are 0 before it.
    """
    return request.config.stash[_run].watching().scope_of(request.node)


class Run:
    """A run of pytest, in one process.

    Raises:
        pytest.UsageError: An option, or a file that it names, cannot be used.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._is_worker = hasattr(config, "workerinput")
        self._marks_before = list(config.getini("markers"))
        self.options: Options = options.read(config)
        # Read before the first test: what is wrong with a file is said now, and no worker sees what is written later.
        off = self.options.mode == "off"
        self._known: Baseline | None = None if off else self.options.known()
        self._measured: dict[str, int] = {} if off else self.options.measured()
        self._watching: WatchedTests | None = None
        self._outcomes: dict[str, Outcome] = {}
        self._collected: set[str] = set()
        self._unused: list[str] = []
        self._errors: list[str] = []
        for mark in _MARKS:
            if not (mark.startswith("max_queries") and _is_marker_of(self._marks_before)):
                config.addinivalue_line("markers", mark)

    def watching(self) -> WatchedTests:
        """Return the hooks around tests, which are there once a test is to be watched.

        Raises:
            pytest.UsageError: pyproject.toml or the environment have a mistake.
        """
        if self._watching is None:
            from sqla_watch.pytest_plugin.watched import Reports, WatchedTests
            from sqla_watch.settings import SettingsError

            try:
                self._watching = WatchedTests(self.options, self._known, self._measured, self._take)
            except SettingsError as error:
                raise pytest.UsageError(f"sqla_watch: {error}") from None
            self._config.pluginmanager.register(self._watching, "sqla_watch_tests")
            in_junit = bool(getattr(self._config.option, "xmlpath", None))
            if self._is_worker or in_junit:
                reports = Reports(self._watching, for_controller=self._is_worker, in_junit=in_junit)
                self._config.pluginmanager.register(reports, "sqla_watch_reports")
        return self._watching

    def close(self) -> None:
        """Leave engines as they were."""
        if self._watching is not None:
            self._watching.close()

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self) -> None:
        ours = [mark for mark in _MARKS if mark not in self._marks_before]
        others = [
            mark for mark in self._config.getini("markers") if mark not in self._marks_before and mark not in ours
        ]
        self._config.stash[max_queries_is_of_another] = _is_marker_of(others)
        if self.options.mode in ("warn", "fail"):
            self.watching()  # now, so that it sees every engine

    def pytest_report_header(self) -> list[str]:
        if self.options.mode not in ("warn", "fail"):
            return []
        of_another = self._config.stash[max_queries_is_of_another]
        further = "; the marker max_queries is another plugin's, and left to it" if of_another else ""
        return [f"sqla_watch: {self.options.mode}{further}"]

    @pytest.hookimpl(tryfirst=True)  # before some are deselected
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if self._known is not None or self.options.budgets is not None:
            partial = {argument.partition("::")[0] for argument in self._config.args if "::" in argument}
            files = {str(self._config.invocation_params.dir / each) for each in partial}
            if not getattr(self._config.option, "lf", False):
                self._collected.update(item.nodeid for item in items if str(item.path) not in files)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        if self._watching is None and any(self._asks(item) for item in session.items):
            self.watching()

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_setupnodes(self) -> None:
        """Have workers of pytest-xdist heard: without any, not each report of a test has to be looked at."""
        self._config.pluginmanager.register(Workers(self._take, self._collected), "sqla_watch_workers")

    def _take(self, outcome: Outcome) -> None:
        self._outcomes[outcome.nodeid] = outcome  # of a test that is run again, the last one

    @pytest.hookimpl(wrapper=True, tryfirst=True)  # pytest-xdist's workers end inside
    def pytest_sessionfinish(self, session: pytest.Session) -> Iterator[None]:
        if self._is_worker:
            workeroutput: dict[str, Any] = self._config.workeroutput  # type: ignore[attr-defined]
            workeroutput["sqla_watch_collected"] = sorted(self._collected)
            return (yield)
        if self.options.mode != "off":
            self._write(session)
        return (yield)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._is_worker or self.options.mode == "off":
            return
        outcomes = self.outcomes
        explicit = self.options.mode in ("warn", "fail")
        if explicit and terminalreporter.verbosity > -2:
            from sqla_watch.pytest_plugin import summary

            grown = {}
            if self._measured:
                from sqla_watch.pytest_plugin import measured

                grown = measured.grown(self._measured, outcomes)
            summary.write(
                terminalreporter,
                outcomes,
                known=self._known_identities,
                unused=self._unused,
                grown=grown,
            )
        budgets = sum(bool(outcome.budget) for outcome in outcomes)
        if budgets and not any(outcome.engines for outcome in outcomes):
            tests = "1 test has" if budgets == 1 else f"{budgets:,} tests have"
            terminalreporter.write_line(
                f"sqla_watch: {tests} a budget, but no SQLAlchemy engine was seen in this run: nothing was checked",
                yellow=True,
                bold=True,
            )
        for error in self._errors:
            terminalreporter.write_line(f"sqla_watch: {error}", red=True, bold=True)
        if outcomes and os.environ.get("GITHUB_ACTIONS") == "true":
            from sqla_watch.pytest_plugin import github

            for line in github.annotations(outcomes, known=self._known_identities, rootdir=self._config.rootpath):
                terminalreporter.write_line(line)

    @property
    def outcomes(self) -> list[Outcome]:
        """What the tests so far came to, in the order in which they ended."""
        return list(self._outcomes.values())

    @property
    def _known_identities(self) -> Collection[str]:
        return () if self._known is None else self._known.entries.keys()

    def _asks(self, item: pytest.Item) -> bool:
        """Whether a test asks to be watched, as far as that is known before it runs."""
        if "sqla_watch" in getattr(item, "fixturenames", ()):
            return True
        if self.options.mode == "off":
            return False
        if any(is_mark_of_ours(mark, self._config) for mark in item.iter_markers()):
            return True
        return bool(self._config.hook.pytest_sqla_watch.get_hookimpls())

    def _write(self, session: pytest.Session) -> None:
        """Write what is kept between runs, and the reports."""
        wanted = self.options
        outcomes = self.outcomes
        files = (wanted.baseline, wanted.budgets, wanted.json, wanted.html, wanted.sarif)
        if not any(files) or getattr(self._config.option, "collectonly", False):
            return
        from sqla_watch.panel.errors import PanelError
        from sqla_watch.pytest_plugin import baseline, exports, kept, measured
        from sqla_watch.reporters.files import ReportError

        gone = kept.GoneTests(Path(self._config.rootpath), self._collected)
        known = self._known_identities
        if self._known is not None:
            self._unused = self._known.unused(outcomes, gone=gone)
        writers: list[Any] = []
        if wanted.baseline and wanted.update_baseline:
            path = wanted.baseline
            writers.append(lambda: baseline.write(path, outcomes, gone=gone))
            self._unused = []  # they are taken out
        if wanted.budgets:
            budgets = wanted.budgets
            writers.append(lambda: measured.write(budgets, self._measured, outcomes, gone=gone))
        if wanted.json:
            json_path = wanted.json
            writers.append(lambda: exports.json(outcomes, json_path, known=known))
        if wanted.html:
            html_path = wanted.html
            writers.append(lambda: exports.html(outcomes, html_path))
        if wanted.sarif:
            sarif_path = wanted.sarif
            writers.append(lambda: exports.sarif(outcomes, sarif_path, known=known))
        for write in writers:
            try:
                write()
            except (ReportError, PanelError, pytest.UsageError) as error:
                self._errors.append(str(error))
        if self._unused and wanted.unused_fails:
            entries = "1 entry" if len(self._unused) == 1 else f"{len(self._unused):,} entries"
            self._errors.append(f"{entries} of the baseline no longer occur: --sqla-watch-unused-baseline is fail")
        if self._errors and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


class Workers:
    """What the controller of pytest-xdist learns from its workers.

    Args:
        take: Takes what each test came to.
        collected: Takes the node ids of the tests that there are.
    """

    def __init__(self, take: Callable[[Outcome], None], collected: set[str]) -> None:
        self._take = take
        self._collected = collected

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A worker has run a test: take over what it came to."""
        told = getattr(report, "sqla_watch", None)
        if told is not None:
            from sqla_watch.pytest_plugin.outcome import Outcome

            self._take(Outcome.from_dict(json.loads(told)))

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """A worker has ended: take over which tests there are."""
        self._collected.update(getattr(node, "workeroutput", {}).get("sqla_watch_collected", ()))


def _is_marker_of(marks: Collection[str]) -> bool:
    """Whether `max_queries` is among the lines that describe markers."""
    return any(mark.partition(":")[0].partition("(")[0].strip() == "max_queries" for mark in marks)
