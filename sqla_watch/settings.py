"""What each rule does and from which threshold: profiles, code, pyproject.toml and environment, merged.

The weakest word comes first: the profile's defaults, then the `Settings` given in code, then `[tool.sqla_watch]`
in the nearest pyproject.toml, then `SQLA_WATCH_*` in the environment, which wins. So the same installation is
developed, tested and run in production without a change of code.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from sqla_watch.findings import SqlaWatchError
from sqla_watch.telemetry import Telemetry

if TYPE_CHECKING:
    from sqla_watch.detectors import Rule

__all__ = ["Action", "Profile", "RuleSettings", "Settings", "SettingsError"]

Number: TypeAlias = int | float
ENVIRONMENT_PREFIX = "SQLA_WATCH_"
TIMELINE = 5_000
"""Facts that a scope keeps one by one in development; some 300 bytes each."""
MOST_TIMELINE = 1_000_000


class SettingsError(SqlaWatchError, ValueError):
    """A setting that cannot be: the message names it, where it came from, and the nearest right one."""


class Action(StrEnum):
    """What a rule does when it finds something."""

    IGNORE = "ignore"
    """Nothing; the finding is not even made."""
    LOG = "log"
    """Write it to the logger `sqla_watch`, level WARNING."""
    WARN = "warn"
    """Issue a Python warning of the rule's own class at the user's line."""
    RAISE = "raise"
    """Raise `FindingRaised` from the statement that made it a finding, or where the scope ends."""


class Profile(StrEnum):
    """A set of defaults: how many it takes, and what happens then."""

    DEVELOPMENT = "development"
    TEST = "test"
    PRODUCTION = "production"


PROFILE_ACTIONS = {
    Profile.DEVELOPMENT: Action.WARN,
    Profile.TEST: Action.WARN,
    Profile.PRODUCTION: Action.LOG,
}


@dataclass(frozen=True, slots=True)
class RuleSettings:
    """What one rule does, and its thresholds by name."""

    action: Action
    thresholds: Mapping[str, Number]

    def __getitem__(self, name: str) -> Number:
        return self.thresholds[name]


RuleValue: TypeAlias = "str | Mapping[str, str | Number]"


class Planned(NamedTuple):
    """A rule that is on."""

    place: int
    """Its number in the order in which they are run: each behind those that it gives way to."""
    least: float
    """From how much on of what it reads it may find anything, as its thresholds say."""
    rule: Rule
    settings: RuleSettings


class _Floors(dict[str, float]):
    def __missing__(self, reads: str) -> float:
        return float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How sqla_watch judges and reports.

    Args:
        profile: `development`, `test` or `production`; sets what is not set otherwise.
        rules: By id of the rule an action (`"raise"`), or a mapping with `action` and thresholds.
        user_code: Path prefixes or package names that are the user's own code although they lie among libraries.
        library_code: Path prefixes or package names that are not the user's own code although they lie elsewhere.
        implicit_scopes: Whether a connection's checkout outside of any scope makes one of its own.
        timeline: Statements, waits and transactions that a scope keeps one by one, for the waterfall of an HTML report;
            by default 5,000 in development and none in test and production.
        watchdog_seconds: Seconds between two looks of the watchdog's thread at connections that are out; 0 for none.
        telemetry: What is told to OpenTelemetry: a `Telemetry`, a mapping of its fields, True for its defaults, or
            False for nothing. None, the default, is True as soon as the application has set a global provider.

    Raises:
        SettingsError: A rule, key or value is not known or of the wrong type.

    Example::

        Settings(profile="test", rules={"n-plus-one": "raise", "slow-query": {"min_seconds": 0.2}})
    """

    profile: str = Profile.DEVELOPMENT
    rules: Mapping[str, RuleValue] = field(default_factory=dict)
    user_code: tuple[str, ...] = ()
    library_code: tuple[str, ...] = ()
    implicit_scopes: bool = True
    watchdog_seconds: float = 0.05
    timeline: int | None = None
    telemetry: Telemetry | Mapping[str, Any] | bool | None = None
    _rules: Mapping[str, RuleSettings] = field(default_factory=dict, init=False, repr=False, compare=False)
    active: tuple[str, ...] = field(default=(), init=False, repr=False, compare=False)
    """Ids of the rules that are on, each behind those that it gives way to."""
    plan: Mapping[str, list[Planned]] = field(default_factory=dict, init=False, repr=False, compare=False)
    """The same rules by what they read."""
    floors: Mapping[str, float] = field(default_factory=dict, init=False, repr=False, compare=False)
    """From how much on any of them may find anything, by what they read; infinity for what none reads."""
    raises: frozenset[str] = field(default=frozenset(), init=False, repr=False, compare=False)
    """Ids of the rules whose action is `raise`."""
    timeline_room: int = field(default=0, init=False, repr=False, compare=False)
    """How many statements, waits and transactions a scope keeps one by one."""

    def __post_init__(self) -> None:
        source = "Settings"
        profile = check_choice(source, "profile", self.profile, [str(each) for each in Profile])
        object.__setattr__(self, "profile", profile)
        for name in ("user_code", "library_code"):
            object.__setattr__(self, name, _names(source, name, getattr(self, name)))
        if not isinstance(self.implicit_scopes, bool):
            raise _wrong_type(source, "implicit_scopes", self.implicit_scopes, "true or false")
        object.__setattr__(self, "watchdog_seconds", _watchdog_seconds(source, self.watchdog_seconds))
        room = _check_timeline(source, self.timeline)
        if room is None:
            room = TIMELINE if profile == Profile.DEVELOPMENT else 0
        object.__setattr__(self, "timeline_room", room)
        object.__setattr__(self, "telemetry", _telemetry(source, self.telemetry))
        if not isinstance(self.rules, Mapping):
            raise _wrong_type(source, "rules", self.rules, "a mapping of rule ids")
        rules = _resolve(source, Profile(profile), self.rules)
        object.__setattr__(self, "_rules", rules)
        on = tuple(rule for rule in _in_order() if rules[rule].action is not Action.IGNORE)
        object.__setattr__(self, "active", on)
        plan = _planned(on, rules)
        object.__setattr__(self, "plan", plan)
        floors = {reads: min(planned.least for planned in those) for reads, those in plan.items()}
        object.__setattr__(self, "floors", _Floors(floors))
        object.__setattr__(self, "raises", frozenset(rule for rule in on if rules[rule].action is Action.RAISE))

    def rule(self, rule: str) -> RuleSettings:
        """Return the action and thresholds of a rule.

        Raises:
            SettingsError: There is no such rule.

        >>> Settings(profile="production").rule("n-plus-one")["min_parents"]
        5
        """
        found = self._rules.get(rule)
        return found if found is not None else self._rules[check_rule(rule)]

    @classmethod
    def load(
        cls,
        code: Settings | None = None,
        *,
        pyproject: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Settings:
        """Merge settings from code with those of pyproject.toml and the environment.

        Args:
            code: Settings given in code; the defaults if None.
            pyproject: A pyproject.toml; by default the nearest one from the working directory upwards.
            environment: By default `os.environ`.

        Raises:
            SettingsError: A rule, key or value there is not known or of the wrong type; names file or variable.
        """
        settings = code if code is not None else cls()
        path = pyproject if pyproject is not None else _nearest_pyproject()
        if path is not None:
            settings = _with(settings, _read_pyproject(path))
        return _with(settings, _read_environment(os.environ if environment is None else environment))


class _Source(NamedTuple):
    """Where settings were read, and what they say."""

    name: str
    values: Mapping[str, Any]


def _with(settings: Settings, source: _Source) -> Settings:
    """Return `settings` with what a stronger source says."""
    if not source.values:
        return settings
    known = [each.name for each in fields(Settings) if each.init]
    changes: dict[str, Any] = {}
    for key, value in source.values.items():
        check_choice(source.name, "key", key, known)
        if key == "rules":
            if not isinstance(value, Mapping):
                raise _wrong_type(source.name, key, value, "a table of rule ids")
            changes["rules"] = _merge_rules(source.name, settings.rules, value)
        elif key == "implicit_scopes":
            if not isinstance(value, bool):
                raise _wrong_type(source.name, key, value, "true or false")
            changes[key] = value
        elif key == "timeline":
            changes[key] = _check_timeline(source.name, value)
        elif key == "telemetry":
            weaker = settings.telemetry
            changes[key] = _telemetry(source.name, value, weaker if isinstance(weaker, Telemetry) else None)
        elif key == "watchdog_seconds":
            changes[key] = _watchdog_seconds(source.name, value)
        elif key == "profile":
            changes[key] = check_choice(source.name, key, value, [str(each) for each in Profile])
        else:
            changes[key] = _names(source.name, key, value)
    return replace(settings, **changes)


def _merge_rules(
    source: str, weaker: Mapping[str, RuleValue], stronger: Mapping[str, RuleValue]
) -> dict[str, RuleValue]:
    _resolve(source, Profile.DEVELOPMENT, stronger)  # says what is wrong in its own source's name
    merged: dict[str, RuleValue] = dict(weaker)
    for rule, value in stronger.items():
        merged[rule] = {**_as_mapping(merged.get(rule, {})), **_as_mapping(value)}
    return merged


def _as_mapping(value: RuleValue) -> Mapping[str, str | Number]:
    return {"action": value} if isinstance(value, str) else value


def _resolve(source: str, profile: Profile, given: Mapping[str, RuleValue]) -> dict[str, RuleSettings]:
    """Give each rule its action and thresholds, from the profile and what was given."""
    from sqla_watch.detectors import RULES

    for rule in given:
        check_choice(source, "rule", rule, list(RULES))
    resolved = {}
    for rule, detector in RULES.items():
        thresholds = {name: threshold.of(profile) for name, threshold in detector.thresholds.items()}
        action = detector.actions.get(profile, PROFILE_ACTIONS[profile])
        value = given.get(rule, {})
        if not isinstance(value, str | Mapping):
            raise _wrong_type(source, rule, value, "an action, or a table with an action and thresholds")
        for name, number in _as_mapping(value).items():
            if name == "action":
                action = Action(check_choice(source, f"action of {rule}", number, [str(each) for each in Action]))
                continue
            check_choice(source, f"key of {rule}", name, ["action", *detector.thresholds])
            thresholds[name] = detector.thresholds[name].check(f"{source}: {rule}.{name}", number)
        resolved[rule] = RuleSettings(action, thresholds)
    return resolved


def _planned(on: Iterable[str], rules: Mapping[str, RuleSettings]) -> dict[str, list[Planned]]:
    """Return the rules that are on by what they read, with from how much of it on each may find anything."""
    from sqla_watch.detectors import RULES

    plan: dict[str, list[Planned]] = {}
    for place, rule in enumerate(on):
        detector, settings = RULES[rule], rules[rule]
        floors = (settings[name] * (1e9 if name.endswith("_seconds") else 1) for name in detector.floor)
        plan.setdefault(detector.reads, []).append(Planned(place, max(1, min(floors, default=1)), detector, settings))
    return plan


def _in_order() -> list[str]:
    """Return the ids of all rules, each behind those that it gives way to."""
    from sqla_watch.detectors import RULES

    ordered: dict[str, None] = {}

    def place(rule: str) -> None:
        for before in RULES[rule].after:
            place(before)
        ordered.setdefault(rule)

    for rule in RULES:
        place(rule)
    return list(ordered)


def check_rule(rule: object, source: str = "sqla_watch") -> str:
    """Return `rule` if it is the id of one.

    Raises:
        SettingsError: It is not; the message has the nearest one.
    """
    from sqla_watch.detectors import RULES

    return check_choice(source, "rule", rule, list(RULES))


def check_choice(source: str, what: str, value: object, choices: Iterable[str]) -> str:
    """Return `value` if it is one of `choices`, else raise a `SettingsError` which names the nearest."""
    known = list(choices)
    if isinstance(value, str) and value in known:
        return str(value)
    text = str(value).lower()
    near = _nearest(text.replace("_", "-"), known, 0.4) or _nearest(text, known, 0.4)
    hint = f"did you mean {near!r}?" if near else "known are " + ", ".join(known)
    raise SettingsError(f"{source}: unknown {what} {value!r}; {hint}")


def _nearest(text: str, known: Iterable[str], least: float) -> str:
    """Return the one of `known` that is meant, if any is as near as `least`, from 0 to 1; else an empty text."""
    from difflib import get_close_matches  # 0.6 ms, for what mostly does not happen

    return next(iter(get_close_matches(text, list(known), 1, least)), "")


def _wrong_type(source: str, key: str, value: object, wanted: str) -> SettingsError:
    return SettingsError(f"{source}: {key} is {value!r} ({type(value).__name__}), but must be {wanted}")


def _check_timeline(source: str, value: object) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise _wrong_type(source, "timeline", value, "a whole number")
    if value is not None and not 0 <= value <= MOST_TIMELINE:
        raise SettingsError(f"{source}: timeline is {value!r}, but must be from 0 to {MOST_TIMELINE}")
    return value


def _watchdog_seconds(source: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong_type(source, "watchdog_seconds", value, "a number")
    if value != 0 and not 0.005 <= value <= 10:
        raise SettingsError(f"{source}: watchdog_seconds is {value!r}, but must be 0, or from 0.005 to 10 seconds")
    return float(value)


def _telemetry(source: str, value: object, weaker: Telemetry | None = None) -> Telemetry | Literal[False] | None:
    try:
        return Telemetry.of(value, weaker)
    except ValueError as error:
        raise SettingsError(f"{source}: telemetry: {error}") from error


def _names(source: str, key: str, value: object) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise _wrong_type(source, key, value, "a list of path prefixes or package names")
    names = tuple(value)
    for name in names:
        if not isinstance(name, str) or not name:
            raise _wrong_type(source, key, name, "a list of path prefixes or package names")
    return names


def _nearest_pyproject() -> Path | None:
    try:
        directory = Path.cwd()
    except OSError:  # the working directory is gone
        return None
    for folder in (directory, *directory.parents):
        path = folder / "pyproject.toml"
        if path.is_file():
            return path
    return None


def _read_pyproject(path: Path) -> _Source:
    import tomllib  # 1.5 ms, and where there is no such file nobody needs it

    try:
        with path.open("rb") as file:
            document = tomllib.load(file)
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path}: is no TOML: {error}") from error
    table = document.get("tool", {}).get("sqla_watch", {})
    if not isinstance(table, dict):
        raise _wrong_type(str(path), "tool.sqla_watch", table, "a table")
    return _Source(str(path), table)


def _read_environment(environment: Mapping[str, str]) -> _Source:
    """Read `SQLA_WATCH_PROFILE`, `SQLA_WATCH_<RULE>` (its action) and `SQLA_WATCH_<RULE>_<THRESHOLD>`."""
    from sqla_watch.detectors import RULES

    plain = {"PROFILE": "profile", "USER_CODE": "user_code", "LIBRARY_CODE": "library_code"}
    names = {
        **plain,
        "IMPLICIT_SCOPES": "implicit_scopes",
        "WATCHDOG_SECONDS": "watchdog_seconds",
        "TIMELINE": "timeline",
        "TELEMETRY": "telemetry",
        **{f"TELEMETRY_{each.name.upper()}": f"telemetry.{each.name}" for each in fields(Telemetry)},
    }
    for rule, detector in RULES.items():
        stem = rule.upper().replace("-", "_")
        names[stem] = f"{rule}/action"
        for threshold in detector.thresholds:
            names[f"{stem}_{threshold.upper()}"] = f"{rule}/{threshold}"
    values: dict[str, Any] = {}
    rules: dict[str, dict[str, str | Number]] = {}
    telemetry: dict[str, Any] = {}
    for variable, text in environment.items():
        if not variable.startswith(ENVIRONMENT_PREFIX):
            continue
        name = variable.removeprefix(ENVIRONMENT_PREFIX)
        if name.startswith("TEST_"):  # this package's own test suite
            continue
        source = f"environment variable {variable}"
        if name not in names:
            near = _nearest(name, names, 0.5)
            hint = f"did you mean {ENVIRONMENT_PREFIX}{near}?" if near else "there is no such setting"
            raise SettingsError(f"{source}: unknown; {hint}")
        setting = names[name]
        rule, separator, key = setting.partition("/")
        if separator and key == "action":
            rules.setdefault(rule, {})[key] = check_choice(source, "action", text, [str(each) for each in Action])
        elif separator:
            rules.setdefault(rule, {})[key] = RULES[rule].thresholds[key].check(source, _number(source, key, text))
        elif setting in ("implicit_scopes", "telemetry"):
            values[setting] = _flag(source, setting, text)
        elif setting.startswith("telemetry."):
            name = setting.removeprefix("telemetry.")
            if name == "slow_seconds":
                telemetry[name] = _number(source, setting, text)
            else:
                telemetry[name] = text if name in ("statements", "application") else _flag(source, setting, text)
            _telemetry(source, {name: telemetry[name]})
        elif setting == "timeline":
            values[setting] = _check_timeline(source, _number(source, setting, text))
        elif setting == "watchdog_seconds":
            values[setting] = _watchdog_seconds(source, _number(source, setting, text))
        elif setting == "profile":
            values[setting] = check_choice(source, setting, text, [str(each) for each in Profile])
        else:
            values[setting] = tuple(part.strip() for part in text.split(",") if part.strip())
    if rules:
        values["rules"] = rules
    if telemetry and values.get("telemetry", True):
        values["telemetry"] = telemetry
    return _Source("environment", values)


def _flag(source: str, key: str, text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0", "yes", "no", "on", "off"):
        raise _wrong_type(source, key, text, "true or false")
    return text.lower() in ("true", "1", "yes", "on")


def _number(source: str, key: str, text: str) -> Number:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        raise _wrong_type(source, key, text, "a number") from None
