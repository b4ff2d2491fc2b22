"""Annotations of GitHub Actions: findings at the lines that cause them, in the view of what a pull request changes.

They are commands in the log of the job. Names and messages come from the application under test, so whatever could end
a command and begin another one is escaped.
"""

import os
from collections.abc import Collection, Iterable
from pathlib import Path

from sqla_watch.pytest_plugin.grouped import FoundInTests, found_in_tests, worst_tests
from sqla_watch.pytest_plugin.outcome import Outcome
from sqla_watch.reporters.text import count, cut
from sqla_watch.testing.failure import spent

__all__ = ["annotations"]

MOST = 10
"""Annotations of one level that GitHub shows of a step; it drops the others without a word."""

_LONGEST = 4_000
_LEVELS = {"high": "warning", "medium": "warning", "low": "notice"}


def annotations(
    outcomes: Iterable[Outcome], *, known: Collection[str] = (), rootdir: str | os.PathLike[str] = "."
) -> list[str]:
    """Return the annotations of a run, one line each, the worst first, at most ten of each level.

    Args:
        outcomes: Of all tests that were run.
        known: Identities of findings that are in the baseline, and are left out.
        rootdir: The folder that the outcomes' files are relative to; GitHub wants them relative to the repository,
            which it names in `GITHUB_WORKSPACE`.

    Example::

        if os.environ.get("GITHUB_ACTIONS") == "true":
            print(*annotations(outcomes), sep="\\n")
    """
    outcomes = list(outcomes)
    folder = _folder(rootdir)
    made: dict[str, list[str]] = {"error": [], "warning": [], "notice": []}
    for outcome in worst_tests(outcomes):
        if outcome.over:
            made["error"].append(_over_budget(outcome, folder))
    for each in found_in_tests(outcomes):
        if each.identity not in known:
            level = "error" if each.failing else _LEVELS[each.finding["severity"]]
            made[level].append(_finding(level, each, folder))
    return [line for lines in made.values() for line in lines[:MOST]]


def _finding(level: str, each: FoundInTests, folder: str) -> str:
    finding, location = each.finding, each.finding["location"]
    first = each.tests[0]
    others = f" and {count(len(each.tests) - 1, 'other test')}" if len(each.tests) > 1 else ""
    message = f"{finding['message']}\n{finding['suggestion']}\nin {first.nodeid}{others}"
    if location is None:
        return _command(level, folder + first.file, first.line, f"sqla_watch: {finding['rule']}", message)
    return _command(level, folder + finding["file"], location["line"], f"sqla_watch: {finding['rule']}", message)


def _over_budget(outcome: Outcome, folder: str) -> str:
    used = "; ".join(spent(name, value, outcome.budget[name]) for name, value in sorted(outcome.over.items()))
    return _command(
        "error", folder + outcome.file, outcome.line, "sqla_watch: over budget", f"{outcome.nodeid}: {used}"
    )


def _command(level: str, file: str, line: int, title: str, message: str) -> str:
    properties = {"file": file, "line": str(max(line, 1)), "title": title}
    written = ",".join(f"{name}={_property(value)}" for name, value in properties.items())
    return f"::{level} {written}::{_escaped(cut(message, _LONGEST))}"


def _escaped(text: str) -> str:
    """Return a message as a command has it.

    >>> _escaped("100 %\\n::set-output name=x::y")
    '100 %25%0A::set-output name=x::y'
    """
    # Other ends of lines than GitHub's own: a log may be cut at any of them.
    text = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode("ascii") for each in text)


def _property(text: str) -> str:
    return _escaped(text).replace(":", "%3A").replace(",", "%2C")


def _folder(rootdir: str | os.PathLike[str]) -> str:
    """Return the way from the repository to the root directory, with a `/` behind it; empty where they are the same."""
    workspace = os.environ.get("GITHUB_WORKSPACE")
    if not workspace:
        return ""
    try:
        way = Path(rootdir).resolve().relative_to(Path(workspace).resolve()).as_posix()
    except ValueError:
        return ""
    return "" if way == "." else f"{way}/"
