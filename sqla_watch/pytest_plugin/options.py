"""The options of the plugin: the command line, and the keys `sqla_watch_*` of pytest's own configuration.

What is given on the command line is stronger. Files named there are relative to the working directory, files named in
the configuration to pytest's root directory.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import pytest

from sqla_watch.pytest_plugin.marks import FAIL_ON, Demands, demands

if TYPE_CHECKING:
    from sqla_watch.pytest_plugin.baseline import Baseline

__all__ = ["Options", "add", "read"]

Mode: TypeAlias = Literal["marked", "off", "warn", "fail"]
MODES = ("off", "warn", "fail")

_FILES = {
    "baseline": "known findings, which let no test fail",
    "budgets": "the statements of each test, of which a later run may not have more",
    "json": "a JSON report to write",
    "html": "an HTML report to write, with a waterfall of each test",
    "sarif": "a SARIF report to write",
}
_LINE = r"(?:(?P<pattern>\S.*?):\s+)?(?P<limits>\w+\s*=\s*\S+?(?:[,\s]+\w+\s*=\s*\S+?)*)\s*\Z"
_LIMIT = r"(\w+)\s*=\s*([^\s,]+)"


class Limits(NamedTuple):
    """Limits from the configuration, and which tests have them."""

    pattern: str
    """A folder, a file, a node id, or a pattern of node ids; empty for all tests."""
    demands: Demands

    def are_for(self, nodeid: str) -> bool:
        """Whether a test has them."""
        import fnmatch

        pattern = self.pattern.rstrip("/")
        if not pattern or nodeid == pattern or fnmatch.fnmatchcase(nodeid, pattern):
            return True
        return nodeid.startswith((f"{pattern}/", f"{pattern}::", f"{pattern}["))


class Options(NamedTuple):
    """What was asked for."""

    mode: Mode
    """`marked`, where none is given: the tests that ask for it by marker, hook or fixture."""
    general: Demands
    """What is demanded of all tests."""
    limits: tuple[Limits, ...]
    """What is demanded beside of that; a later one is stronger."""
    baseline: str | None
    update_baseline: bool
    unused_fails: bool
    """Whether entries of the baseline that no longer occur let the run fail."""
    budgets: str | None
    update_snapshots: bool
    json: str | None
    html: str | None
    sarif: str | None

    @property
    def wants_scopes(self) -> bool:
        """Whether a report has each test's scope with its timeline."""
        return self.json is not None or self.html is not None

    def known(self) -> Baseline | None:
        """Return the baseline.

        Raises:
            pytest.UsageError: It cannot be read.
        """
        if self.baseline is None:
            return None
        from sqla_watch.pytest_plugin import baseline

        return baseline.read(self.baseline, update=self.update_baseline)

    def measured(self) -> dict[str, int]:
        """Return the measured budgets, by node id.

        Raises:
            pytest.UsageError: They cannot be read.
        """
        if self.budgets is None:
            return {}
        from sqla_watch.pytest_plugin import measured

        return measured.read(self.budgets)


def add(parser: pytest.Parser) -> None:
    """Add the options to pytest's."""
    group = parser.getgroup("sqla_watch", "what tests make the database do")
    group.addoption(
        "--sqla-watch",
        metavar="MODE",
        dest="sqla_watch_mode",
        default=None,
        help="off: watch nothing; warn: watch all tests and tell; fail: let tests fail over their budgets and for the "
        "findings of --sqla-watch-fail-on. Without it, tests with the marker sqla_watch or max_queries are watched.",
    )
    parser.addini("sqla_watch_mode", "off, warn or fail, as --sqla-watch", default="")
    group.addoption(
        "--sqla-watch-fail-on",
        metavar="RULES",
        default=None,
        help=f"rules that let a test fail, or all, or none; by default {','.join(FAIL_ON)}",
    )
    parser.addini("sqla_watch_fail_on", "rules that let a test fail, or all, or none", type="args", default=None)
    parser.addini("sqla_watch_allow", "findings that are no fault: RULE or RULE:TARGET", type="linelist", default=[])
    parser.addini(
        "sqla_watch_limits",
        "budgets: max_queries=20, for all tests; or for some: tests/api: max_queries=10 max_rows=1000",
        type="linelist",
        default=[],
    )
    parser.addini("sqla_watch_profile", "test, development or production: the thresholds of the rules", default="")
    for name, what in _FILES.items():
        group.addoption(f"--sqla-watch-{name}", metavar="FILE", default=None, help=what)
        parser.addini(f"sqla_watch_{name}", what, default="")
    group.addoption(
        "--sqla-watch-update-baseline",
        action="store_true",
        default=False,
        help="write the findings of this run to the baseline; none of them lets a test fail",
    )
    group.addoption(
        "--sqla-watch-unused-baseline",
        metavar="MODE",
        default=None,
        help="what entries of the baseline do that no longer occur: warn (default) or fail",
    )
    parser.addini("sqla_watch_unused_baseline", "warn or fail", default="")
    group.addoption(
        "--sqla-watch-update-snapshots",
        action="store_true",
        default=False,
        help="write the snapshots of statements anew",
    )


def read(config: pytest.Config) -> Options:
    """Return what was asked for.

    Raises:
        pytest.UsageError: An option or key cannot be what it is; the message names it.
    """
    mode = _choice(config, "sqla_watch_mode", "--sqla-watch", MODES)
    files = {name: _file(config, name) for name in _FILES}
    if config.getoption("sqla_watch_update_baseline") and files["baseline"] is None:
        raise _wrong("--sqla-watch-update-baseline", "is given, but --sqla-watch-baseline=FILE is not")
    unused = _choice(config, "sqla_watch_unused_baseline", "--sqla-watch-unused-baseline", ("warn", "fail"))
    limits = [_limits(line) for line in config.getini("sqla_watch_limits")]
    general, fails_on = _general(config)
    if not mode:
        asked = bool(limits or fails_on or files["baseline"] or files["budgets"])
        mode = "fail" if asked else "warn" if any(files.values()) else "marked"
    while limits and not limits[0].pattern:  # for all tests, and weaker than all others: put together once for all
        general = general.under(limits.pop(0).demands)
    found = Options(
        mode=mode,
        general=general,
        limits=tuple(limits),
        update_baseline=config.getoption("sqla_watch_update_baseline"),
        unused_fails=unused == "fail",
        update_snapshots=config.getoption("sqla_watch_update_snapshots"),
        **files,
    )
    if mode != "off":
        _check_files(found)
    return found


def _check_files(options: Options) -> None:
    reports = {"json": options.json, "html": options.html, "sarif": options.sarif}
    for name, path in reports.items():
        if path is not None:
            from sqla_watch.pytest_plugin import exports

            exports.check(path, f"--sqla-watch-{name}")


def _limits(line: str) -> Limits:
    found = re.match(_LINE, line.strip())
    if found is None:
        raise _wrong(
            "sqla_watch_limits", f"has {line!r}, but must have lines as 'tests/api: max_queries=10 max_rows=1000'"
        )
    limits = {name: _number(line, name, text) for name, text in re.findall(_LIMIT, found["limits"])}
    return Limits(found["pattern"] or "", _demands(f"sqla_watch_limits: {line!r}", limits, only_limits=True))


def _number(line: str, name: str, text: str) -> float:
    try:
        return float(text) if "." in text else int(text)
    except ValueError:
        raise _wrong("sqla_watch_limits", f"has {line!r}, where {name} is {text!r}, but must be a number") from None


def _demands(source: str, given: dict[str, Any], *, only_limits: bool = False) -> Demands:
    from sqla_watch.settings import SettingsError

    try:
        return demands(source, given, only_limits=only_limits)
    except SettingsError as error:
        raise pytest.UsageError(f"sqla_watch: {error}") from None


def _general(config: pytest.Config) -> tuple[Demands, bool]:
    """Return what is demanded of all tests, and whether rules are named that let them fail."""
    option = config.getoption("sqla_watch_fail_on")
    rules = [option] if option is not None else config.getini("sqla_watch_fail_on")
    given: dict[str, Any] = {
        "allow": config.getini("sqla_watch_allow") or None,
        "profile": config.getini("sqla_watch_profile") or None,
        "fail_on": None if rules is None else [rule for each in rules for rule in re.split(r"[,\s]+", each) if rule],
    }
    general = Demands()
    for name, value in given.items():
        if value is not None:
            source = "--sqla-watch" if name == "fail_on" and option is not None else "the configuration"
            general = general.under(_demands(source, {name: value}))
    return general, rules is not None


def _choice(config: pytest.Config, key: str, option: str, choices: tuple[str, ...]) -> Any:
    given = config.getoption(key)
    source = option
    if given is None:
        given, source = config.getini(key), key
    if given and given not in choices:
        raise _wrong(source, f"is {given!r}, but must be {', '.join(choices[:-1])} or {choices[-1]}")
    return given


def _file(config: pytest.Config, name: str) -> str | None:
    given = config.getoption(f"sqla_watch_{name}")
    if given is not None:
        if not given:
            raise _wrong(f"--sqla-watch-{name}", "is empty, but must name a file")
        return os.path.join(config.invocation_params.dir, given)
    given = config.getini(f"sqla_watch_{name}")
    return os.path.join(config.rootpath, given) if given else None


def _wrong(source: str, what: str) -> pytest.UsageError:
    return pytest.UsageError(f"sqla_watch: {source} {what}")
