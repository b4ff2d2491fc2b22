"""What a rule is, and how the rules are run over the facts of a scope."""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import ClassVar, NamedTuple, Protocol

from sqla_watch.callsite import location_of as where
from sqla_watch.facts import (
    CallSite,
    EngineConfiguration,
    FlushGroup,
    Held,
    LoadKind,
    MissingLoad,
    Repeat,
    SessionUse,
    Spent,
    StatementGroup,
    Transaction,
    Wait,
)
from sqla_watch.findings import Finding, Location, RelatedLocation, Severity, SqlaWatchWarning
from sqla_watch.ignores import Ignore, is_ignored
from sqla_watch.settings import Action, Number, Profile, RuleSettings, Settings, SettingsError

__all__ = [
    "Context",
    "Facts",
    "Found",
    "Rule",
    "Threshold",
    "about",
    "is_query",
    "judge",
    "seconds",
    "short",
    "where",
    "worst_first",
]

logger = logging.getLogger("sqla_watch")

_RANK = {Severity.HIGH: 0, Severity.MEDIUM: 1, Severity.LOW: 2}


class Facts(Protocol):
    """What a rule may read of a scope's record."""

    @property
    def sizes(self) -> Mapping[str, int]:
        """How much there is of what rules read: numbers of facts, or the largest of them, in nanoseconds for times."""

    @property
    def groups(self) -> list[StatementGroup]: ...
    @property
    def repeats(self) -> list[Repeat]: ...
    @property
    def transactions(self) -> Iterable[Transaction]: ...
    @property
    def waits(self) -> Iterable[Wait]: ...
    @property
    def nested(self) -> Iterable[Wait]: ...
    @property
    def holdings(self) -> Iterable[Held]: ...
    @property
    def flushes(self) -> list[FlushGroup]: ...
    @property
    def sessions(self) -> list[SessionUse]: ...
    @property
    def missing_loads(self) -> list[MissingLoad]: ...
    @property
    def engines(self) -> list[EngineConfiguration]: ...

    @property
    def spent(self) -> list[Spent]: ...

    @property
    def follows_attributes(self) -> bool: ...
    @property
    def in_unit(self) -> bool: ...

    def root_site(self, group: StatementGroup) -> CallSite | None: ...

    def attributes_read(self) -> set[tuple[str, CallSite]]: ...


class Threshold(NamedTuple):
    """A number from which on a rule speaks, by profile. Its name in the rule carries the unit."""

    development: Number
    test: Number
    production: Number
    meaning: str

    def of(self, profile: Profile) -> Number:
        """Return the default of a profile."""
        value: Number = getattr(self, str(profile))
        return value

    def check(self, name: str, value: object) -> Number:
        """Return `value` if it can be this threshold.

        Raises:
            SettingsError: It is no number, negative, or a fraction where whole things are counted.
        """
        whole = isinstance(self.development, int)
        wanted = "a whole number" if whole else "a number"
        if isinstance(value, bool) or not isinstance(value, int | float) or (whole and not isinstance(value, int)):
            raise SettingsError(f"{name} is {value!r} ({type(value).__name__}), but must be {wanted}")
        if not 0 <= value < float("inf"):
            raise SettingsError(f"{name} is {value!r}, but must be 0 or more")
        return value if whole else float(value)


class Context:
    """What a rule is given beside the facts: its settings, and what more specific rules have spoken for."""

    __slots__ = ("claimed", "settings")

    def __init__(self, settings: RuleSettings, claimed: set[object]) -> None:
        self.settings = settings
        self.claimed = claimed
        """Facts (groups, repeats, transactions) that a finding is about already."""

    def __getitem__(self, name: str) -> Number:
        return self.settings.thresholds[name]


class Found(NamedTuple):
    """A finding, the facts it speaks for, and the ignores around them."""

    finding: Finding
    about: Collection[object]
    ignores: tuple[Ignore, ...]


class Rule(ABC):
    """A named kind of mistake and the code that finds it. The subclass's docstring is its documentation."""

    id: ClassVar[str]
    guide: ClassVar[tuple[int, ...]]
    """Sections of the guide that it puts into practice."""
    warning: ClassVar[type[SqlaWatchWarning]]
    thresholds: ClassVar[Mapping[str, Threshold]] = {}
    actions: ClassVar[Mapping[Profile, Action]] = {}
    """What it does where that is not the profile's own action."""
    reads: ClassVar[str] = "groups"
    """That without which it finds nothing: a name as in `Facts.sizes`."""
    floor: ClassVar[tuple[str, ...]] = ()
    """The thresholds below the lowest of which it finds nothing in what it reads; any will do without one."""
    after: ClassVar[tuple[str, ...]] = ()
    """Ids of more specific rules: what they have found is not found again."""

    @abstractmethod
    def find(self, facts: Facts, context: Context) -> Iterator[Found]:
        """Yield what it finds in the facts of one scope."""


def judge(facts: Facts, settings: Settings, only: Collection[str] | None = None) -> list[Finding]:
    """Run the rules over the facts of a scope.

    Args:
        facts: The record of the scope.
        settings: Actions and thresholds.
        only: Ids of the rules to run; all by default.

    Returns:
        The findings that nobody ignores, worst first.
    """
    plan, floors = settings.plan, settings.floors
    # Most scopes have enough of one or two things, which few of the rules read.
    due = [
        planned
        for reads, size in facts.sizes.items()
        if size >= floors[reads]
        for planned in plan[reads]
        if size >= planned.least and (only is None or planned.rule.id in only)
    ]
    findings: list[Finding] = []
    claimed: set[object] = set()
    for _, _, rule, rule_settings in sorted(due):
        try:
            for found in rule.find(facts, Context(rule_settings, claimed)):
                claimed.update(found.about)
                if not is_ignored(found.finding, found.ignores):
                    findings.append(_with_times(found))
        except Exception:
            # A rule which fails must not take the others, or the application, with it.
            logger.exception("sqla_watch: rule %s failed; please report this", rule.id)
    return worst_first(findings) if len(findings) > 1 else findings


def _with_times(found: Found) -> Finding:
    """Return a finding with the time that the facts cover which it is about."""
    finding = found.finding
    started = [moment for fact in found.about if (moment := getattr(fact, "started", 0))]
    if started:
        finished = [
            getattr(fact, "finished", 0) or getattr(fact, "started", 0) + getattr(fact, "nanoseconds", 0)
            for fact in found.about
        ]
        # The rule has just made it and nobody else has seen it: another one like it would cost as much as all of this.
        object.__setattr__(finding, "started", min(started))
        object.__setattr__(finding, "finished", max(finished))
    return finding


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """Return findings by severity, then by the time and the statements they cost."""
    return sorted(
        findings, key=lambda finding: (_RANK[finding.severity], -finding.database_seconds, -finding.statements)
    )


def seconds(nanoseconds: int) -> float:
    """Return nanoseconds as seconds, rounded to the microsecond."""
    return round(nanoseconds / 1e9, 6)


def short(location: Location | None) -> str:
    """Return file and line without the folders, for a message: `orders.py:31`."""
    return "?" if location is None else f"{os.path.basename(location.file)}:{location.line}"


def about(
    rule: type[Rule],
    group: StatementGroup,
    *,
    severity: Severity,
    message: str,
    evidence: Mapping[str, int | float | str | bool],
    suggestion: str,
    target: str = "",
    related: tuple[RelatedLocation, ...] = (),
    site: CallSite | None = None,
) -> Finding:
    """Return a finding about the statements of a group; what they cost is put to its evidence.

    It is on the group's own line, or on that of `site`.
    """
    database_seconds = seconds(group.nanoseconds)
    return Finding(
        rule=rule.id,
        target=target or group.fingerprint.summary,
        severity=severity,
        message=message,
        location=where(site or group.call_site),
        evidence={**evidence, "statements": group.count, "database_seconds": database_seconds},
        suggestion=suggestion,
        related=related,
        statement=group.fingerprint.text,
        statements=group.count,
        database_seconds=database_seconds,
    )


def is_query(group: StatementGroup) -> bool:
    """Whether a group is made of the application's own SELECTs."""
    return group.kind is LoadKind.QUERY and group.fingerprint.operation == "SELECT"
