"""What is demanded of a test: its budget, and the rules that let it fail; from markers, hook and configuration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

if TYPE_CHECKING:
    from sqla_watch.testing.patterns import Pattern

__all__ = ["FAIL_ON", "LIMITS", "Demands", "demands", "demands_of_mark", "is_mark_of_ours", "max_queries_is_of_another"]

FAIL_ON = ("n-plus-one", "query-in-loop", "cartesian-join", "column-load-loop")
"""The rules that let a test fail where nothing else is said."""

LIMITS = {
    "max_queries": "max_statements",
    "max_rows": "max_rows",
    "max_database_seconds": "max_database_seconds",
    "max_wait_seconds": "max_wait_seconds",
    "max_connections": "max_connections",
    "max_transactions": "max_transactions",
}
"""What the marker takes as limits, each with its name in `sqla_watch.Budget`."""

_FURTHER = ("allow", "fail_on", "profile")

max_queries_is_of_another = pytest.StashKey[bool]()
"""Whether another plugin has the marker `max_queries`: then it is left to that one."""


class Demands(NamedTuple):
    """What is demanded of a test; what is not given is left to weaker ones."""

    limits: Mapping[str, float | None] = MappingProxyType({})
    """By their names in `sqla_watch.Budget`; None takes a weaker limit away."""
    allow: tuple[Pattern, ...] = ()
    """Findings that are no fault."""
    fail_on: frozenset[str] | None = None
    """Rules that let it fail."""
    profile: str | None = None

    def under(self, stronger: Demands) -> Demands:
        """Return both together, of which the other wins; what either allows is allowed."""
        return Demands(
            {**self.limits, **stronger.limits},
            (*self.allow, *stronger.allow),
            self.fail_on if stronger.fail_on is None else stronger.fail_on,
            stronger.profile or self.profile,
        )

    @property
    def budget(self) -> dict[str, float]:
        """The limits that there are, by name."""
        return {name: limit for name, limit in self.limits.items() if limit is not None}


def demands(source: str, given: Mapping[str, Any], *, only_limits: bool = False) -> Demands:
    """Read what is demanded.

    Args:
        source: Where it was said, for the message of an error.
        given: The keywords of the marker `sqla_watch`.
        only_limits: Whether nothing but limits can be given.

    Raises:
        SettingsError: A keyword or value cannot be; the message names it.
    """
    from sqla_watch.budgets import Budget
    from sqla_watch.settings import Profile, SettingsError, check_choice
    from sqla_watch.testing.patterns import patterns

    known = [*LIMITS] if only_limits else [*LIMITS, *_FURTHER]
    if not isinstance(given, Mapping):
        raise SettingsError(f"{source} gives {given!r}, but must give a mapping, as {{'max_queries': 10}}")
    for name in given:
        check_choice(source, "limit" if only_limits else "keyword", name, known)
    for name, value in given.items():
        if name in LIMITS and value is not None:
            try:
                Budget(**{LIMITS[name]: value})
            except SettingsError as error:
                said = str(error).removeprefix("Budget: ").replace(LIMITS[name], name, 1)
                raise SettingsError(f"{source}: {said}") from None
    fail_on = given.get("fail_on")
    profile = given.get("profile")
    if profile is not None:
        profile = check_choice(source, "profile", profile, [str(each) for each in Profile])
    return Demands(
        {LIMITS[name]: value for name, value in given.items() if name in LIMITS},
        patterns(f"{source}: allow", given["allow"]) if "allow" in given else (),
        None if fail_on is None else _rules(f"{source}: fail_on", fail_on),
        profile,
    )


def demands_of_mark(mark: pytest.Mark) -> Demands:
    """Return what a marker demands: `sqla_watch(…)` or `max_queries(n)`.

    Raises:
        SettingsError: It cannot be what it is; the message names it.
    """
    from sqla_watch.settings import SettingsError

    source = f"marker {mark.name}"
    if mark.name == "sqla_watch":
        if mark.args:
            raise SettingsError(f"{source} takes keywords, as sqla_watch(max_queries=10), not {mark.args[0]!r}")
        return demands(source, mark.kwargs)
    given = [*mark.args, *mark.kwargs.values()]
    if len(given) != 1 or not set(mark.kwargs) <= {"n", "limit"}:
        shown = ", ".join([*map(repr, mark.args), *(f"{name}={value!r}" for name, value in mark.kwargs.items())])
        raise SettingsError(f"{source} takes one number, as max_queries(10), not ({shown})")
    if given[0] is None:
        raise SettingsError(f"{source} takes one number, as max_queries(10), not None")
    return demands(source, {"max_queries": given[0]})


def _rules(source: str, given: object) -> frozenset[str]:
    from sqla_watch.detectors import RULES
    from sqla_watch.settings import SettingsError, check_rule

    if isinstance(given, str) or not isinstance(given, Iterable):
        raise SettingsError(f"{source} is {given!r}, but must be a list of rules, as ['n-plus-one']")
    rules = list(given)
    if rules == ["none"]:
        return frozenset()
    if rules == ["all"]:
        return frozenset(RULES)
    return frozenset(check_rule(rule, source) for rule in rules)


def is_mark_of_ours(mark: pytest.Mark, config: pytest.Config) -> bool:
    """Whether a marker demands something of us."""
    if mark.name == "max_queries":
        return not config.stash.get(max_queries_is_of_another, False)
    return mark.name == "sqla_watch"
