"""Checks for the tests of any runner: how many statements a block sends, and what must not be found in it.

Each is a context manager and a decorator, of functions and coroutine functions; `with` gives the scope, whose numbers
can be read. What fails is a `CheckFailed`, an AssertionError which says which line sent what, and what to change.

Example::

    from sqla_watch.testing import assert_max_queries, assert_no

    def test_list(client):
        with assert_max_queries(3):
            client.get("/orders")

    @assert_no("n-plus-one")
    async def test_detail(client):
        await client.get("/orders/1")
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, TypeVar

from sqla_watch.settings import SettingsError
from sqla_watch.testing.failure import MOST_LINES, CheckFailed, describe
from sqla_watch.testing.patterns import Pattern, patterns
from sqla_watch.testing.told import by_line, findings_told
from sqla_watch.testing.watching import LineStatements, TestScope, engines_seen, settings_of

__all__ = [
    "CheckFailed",
    "LineStatements",
    "TestScope",
    "assert_max_queries",
    "assert_no",
    "assert_no_findings",
    "assert_num_queries",
]

_F = TypeVar("_F", bound=Callable[..., Any])


class _Check:
    """A context manager and decorator that looks at the statements of a block or function."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._open: list[TestScope] = []

    def __enter__(self) -> TestScope:
        opened = TestScope(self._name, settings_of())
        opened.open()
        self._open.append(opened)
        return opened

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        __tracebackhide__ = True
        scope = self._open.pop()
        scope.finish(error)
        if error is None:
            self._check(scope)

    def __call__(self, function: _F) -> _F:
        """Return `function` with the check around each of its calls."""
        if not callable(function):
            raise TypeError(f"@{self._name} decorates a function, not {function!r}")
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(
                f"@{self._name} cannot decorate the generator function {function.__qualname__}: its body runs where "
                "the next value is asked for; put a with block into it"
            )
        run: Any
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def run(*args: Any, **kwargs: Any) -> Any:
                __tracebackhide__ = True
                with self._again():
                    return await function(*args, **kwargs)

        else:

            @functools.wraps(function)
            def run(*args: Any, **kwargs: Any) -> Any:
                __tracebackhide__ = True
                with self._again():
                    return function(*args, **kwargs)

        decorated: _F = run
        return decorated

    def _again(self) -> _Check:
        """Return a check alike: calls of one function may overlap."""
        other = type(self).__new__(type(self))
        other.__dict__.update(self.__dict__)
        other._open = []
        return other

    def _check(self, scope: TestScope) -> None:
        raise NotImplementedError

    def _fail(self, head: str, scope: TestScope, over: Mapping[str, float], findings: list[dict[str, Any]]) -> None:
        __tracebackhide__ = True
        folder = os.getcwd()
        shown = findings or findings_told(scope.findings, folder)
        lines = by_line(scope, folder, MOST_LINES)
        raise CheckFailed(describe([f"{self._name}: {head}"], lines, shown, scope.statements, folder), over, findings)

    def _fail_if_nothing_was_watched(self) -> None:
        __tracebackhide__ = True
        if not engines_seen():
            raise CheckFailed(f"{self._name}: there was no SQLAlchemy engine in this process, so nothing was checked")


class _Queries(_Check):
    def __init__(self, function: str, number: int, exactly: bool) -> None:
        super().__init__(f"{function}({number!r})")
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise SettingsError(f"{function}() takes a number of statements, 0 or more, not {number!r}")
        self._number = number
        self._exactly = exactly

    def _check(self, scope: TestScope) -> None:
        __tracebackhide__ = True
        sent = scope.statements
        if sent > self._number or (self._exactly and sent != self._number):
            self._fail(f"{_count(sent)} sent", scope, {"max_statements": sent} if sent > self._number else {}, [])
        if self._number:
            self._fail_if_nothing_was_watched()


class _NoFindings(_Check):
    def __init__(self, name: str, unwanted: Iterable[Pattern], allowed: Iterable[Pattern]) -> None:
        super().__init__(name)
        self._unwanted = list(unwanted)
        self._allowed = list(allowed)

    def _check(self, scope: TestScope) -> None:
        __tracebackhide__ = True
        found = [
            finding
            for finding in scope.findings
            if any(each.matches(finding) for each in self._unwanted)
            and not any(each.matches(finding) for each in self._allowed)
        ]
        if found:
            self._fail("found", scope, {}, findings_told(found, os.getcwd()))
        self._fail_if_nothing_was_watched()


def assert_max_queries(number: int) -> _Queries:
    """Check that at most so many statements are sent.

    Args:
        number: Statements of the application; savepoints, settings and catalogue look-ups are not counted.

    Raises:
        SettingsError: `number` is no whole number, or negative.
        CheckFailed: At the end of the block, if it sent more; or if there was no engine at all that could be watched.

    Example::

        with assert_max_queries(3):
            client.get("/orders")
    """
    return _Queries("assert_max_queries", number, exactly=False)


def assert_num_queries(number: int) -> _Queries:
    """Check that exactly so many statements are sent.

    Args:
        number: Statements of the application; savepoints, settings and catalogue look-ups are not counted.

    Raises:
        SettingsError: `number` is no whole number, or negative.
        CheckFailed: At the end of the block, if it sent more or fewer.

    Example::

        with assert_num_queries(2) as scope:
            load_orders(session)
        print(scope.rows, scope.lines)
    """
    return _Queries("assert_num_queries", number, exactly=True)


def assert_no(*rules: str) -> _NoFindings:
    """Check that rules find nothing.

    Args:
        rules: Ids of rules, as `n-plus-one`, each with a target if it is about that only: `n-plus-one:Order.customer`;
            `*` and `?` in a target are wildcards.

    Raises:
        SettingsError: There is no such rule, or none is given.
        CheckFailed: At the end of the block, if one of them found something; or if there was no engine to be watched.

    Example::

        with assert_no("n-plus-one", "query-in-loop"):
            client.get("/orders")
    """
    if not rules:
        raise SettingsError('assert_no() takes ids of rules, as in assert_no("n-plus-one")')
    name = f"assert_no({', '.join(map(repr, rules))})"
    return _NoFindings(name, patterns("assert_no()", rules), ())


def assert_no_findings(*, allow: Iterable[str] = ()) -> _NoFindings:
    """Check that no rule finds anything.

    Args:
        allow: What may be found, as `n-plus-one:Order.customer`, or `n-plus-one` for all of a rule.

    Raises:
        SettingsError: There is no such rule.
        CheckFailed: At the end of the block, if something else was found; or if there was no engine to be watched.

    Example::

        with assert_no_findings(allow=["slow-query"]):
            client.get("/report")
    """
    return _NoFindings("assert_no_findings()", [Pattern("*", "*")], patterns("assert_no_findings(): allow", allow))


def _count(number: int) -> str:
    return f"{number:,} statement{' was' if number == 1 else 's were'}"
