"""Settings come from code, pyproject.toml and the environment; what is wrong is named with the nearest right one."""

from __future__ import annotations

import doctest
from pathlib import Path
from typing import Any

import pytest

import sqla_watch.settings
from sqla_watch import Action, Settings, SettingsError
from sqla_watch.detectors import RULES


def load(tmp_path: Path, toml: str = "", code: Settings | None = None, **environment: str) -> Settings:
    path = tmp_path / "pyproject.toml"
    path.write_text(toml, encoding="utf-8")
    return Settings.load(code, pyproject=path, environment=environment)


def test_profiles_differ_in_action_and_thresholds() -> None:
    assert Settings().rule("n-plus-one").action is Action.WARN
    assert Settings(profile="test").rule("n-plus-one")["min_parents"] == 2
    production = Settings(profile="production").rule("n-plus-one")
    assert (production.action, production["min_parents"], production["min_seconds"]) == (Action.LOG, 5, 0.05)


def test_the_environment_wins_over_pyproject_and_pyproject_over_code(tmp_path: Path) -> None:
    code = Settings(profile="test", rules={"n-plus-one": {"min_parents": 3, "action": "raise"}, "slow-query": "ignore"})
    toml = """
        [tool.sqla_watch]
        user_code = ["shop"]
        [tool.sqla_watch.rules]
        n-plus-one = {min_parents = 4}
        slow-query = {min_seconds = 2}
    """
    settings = load(tmp_path, toml, code, SQLA_WATCH_N_PLUS_ONE_MIN_PARENTS="6", SQLA_WATCH_POOL_WAIT="log")
    rule = settings.rule("n-plus-one")
    assert (rule.action, rule["min_parents"]) == (Action.RAISE, 6)
    assert (settings.rule("slow-query").action, settings.rule("slow-query")["min_seconds"]) == (Action.IGNORE, 2.0)
    assert settings.rule("pool-wait").action is Action.LOG
    assert (settings.profile, settings.user_code) == ("test", ("shop",))


def test_every_setting_can_come_from_the_environment(tmp_path: Path) -> None:
    settings = load(
        tmp_path,
        SQLA_WATCH_PROFILE="production",
        SQLA_WATCH_USER_CODE="shop, ./vendor",
        SQLA_WATCH_LIBRARY_CODE="legacy",
        SQLA_WATCH_IMPLICIT_SCOPES="off",
        SQLA_WATCH_WATCHDOG_SECONDS="0.2",
        SQLA_WATCH_IDLE_IN_TRANSACTION="raise",
        SQLA_WATCH_SLOW_QUERY_MIN_SECONDS="0.25",
    )
    assert settings == Settings(
        profile="production",
        user_code=("shop", "./vendor"),
        library_code=("legacy",),
        implicit_scopes=False,
        watchdog_seconds=0.2,
        rules={"slow-query": {"min_seconds": 0.25}, "idle-in-transaction": {"action": "raise"}},
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"profile": "prod"}, "Settings: unknown profile 'prod'; did you mean 'production'?"),
        ({"rules": {"n_plus_one": "raise"}}, "Settings: unknown rule 'n_plus_one'; did you mean 'n-plus-one'?"),
        ({"rules": {"n-plus-one": "rais"}}, "Settings: unknown action of n-plus-one 'rais'; did you mean 'raise'?"),
        ({"rules": {"n-plus-one": 3}}, "Settings: n-plus-one is 3 (int), but must be an action, or a table"),
        ({"rules": {"n-plus-one": {"min_parent": 3}}}, "key of n-plus-one 'min_parent'; did you mean 'min_parents'?"),
        ({"rules": {"n-plus-one": {"min_parents": "3"}}}, "min_parents is '3' (str), but must be a whole number"),
        ({"rules": {"n-plus-one": {"min_parents": 2.5}}}, "is 2.5 (float), but must be a whole number"),
        ({"rules": {"n-plus-one": {"min_parents": True}}}, "is True (bool), but must be a whole number"),
        ({"rules": {"slow-query": {"min_seconds": -1}}}, "is -1, but must be 0 or more"),
        ({"rules": {"slow-query": {"min_seconds": float("nan")}}}, "is nan, but must be 0 or more"),
        ({"rules": ["n-plus-one"]}, "rules is ['n-plus-one'] (list), but must be a mapping of rule ids"),
        ({"user_code": "shop"}, "user_code is 'shop' (str), but must be a list"),
        ({"user_code": ["shop", 3]}, "user_code is 3 (int), but must be a list"),
        ({"implicit_scopes": "yes"}, "implicit_scopes is 'yes' (str), but must be true or false"),
        ({"watchdog_seconds": "often"}, "Settings: watchdog_seconds is 'often' (str), but must be a number"),
        ({"watchdog_seconds": True}, "watchdog_seconds is True (bool), but must be a number"),
        ({"watchdog_seconds": 0.001}, "watchdog_seconds is 0.001, but must be 0, or from 0.005 to 10 seconds"),
        ({"watchdog_seconds": float("nan")}, "watchdog_seconds is nan, but must be 0, or from 0.005 to 10 seconds"),
        ({"rules": {"connection-held": {"max_worked_percent": 2.5}}}, "is 2.5 (float), but must be a whole number"),
    ],
)  # fmt: skip
def test_a_mistake_in_code_is_named(given: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError) as error:
        Settings(**given)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ("[tool.sqla_watch]\nprofil = 'test'", "unknown key 'profil'; did you mean 'profile'?"),
        ("[tool.sqla_watch.rules]\nslow-querry = 'log'", "unknown rule 'slow-querry'; did you mean 'slow-query'?"),
        ("[tool.sqla_watch.rules.slow-query]\nmin_seconds = 'x'", "slow-query.min_seconds is 'x' (str)"),
        ("[tool.sqla_watch]\nrules = 3", "rules is 3 (int), but must be a table of rule ids"),
        ("[tool.sqla_watch]\nimplicit_scopes = 1", "implicit_scopes is 1 (int), but must be true or false"),
        ("[tool.sqla_watch]\nprofile = 'fast'", "unknown profile 'fast'"),
        ("[tool.sqla_watch]\nwatchdog_seconds = 11", "watchdog_seconds is 11, but must be 0, or from 0.005 to 10"),
        ("[tool.sqla_watch.rules]\nidle-in-transactions = 'log'", "did you mean 'idle-in-transaction'?"),
        ("[tool]\nsqla_watch = 3", "tool.sqla_watch is 3 (int), but must be a table"),
        ("[tool.sqla_watch", "is no TOML"),
    ],
)
def test_a_mistake_in_pyproject_is_named_with_its_file(tmp_path: Path, toml: str, said: str) -> None:
    with pytest.raises(SettingsError) as error:
        load(tmp_path, toml)
    assert said in str(error.value)
    assert "pyproject.toml" in str(error.value)


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("SQLA_WATCH_PROFIL", "test", "did you mean SQLA_WATCH_PROFILE?"),
        ("SQLA_WATCH_ZZZ", "1", "there is no such setting"),
        ("SQLA_WATCH_N_PLUS_ONE", "stop", "unknown action 'stop'"),
        ("SQLA_WATCH_N_PLUS_ONE_MIN_PARENTS", "many", "min_parents is 'many' (str), but must be a number"),
        ("SQLA_WATCH_N_PLUS_ONE_MIN_PARENTS", "2.5", "is 2.5 (float), but must be a whole number"),
        ("SQLA_WATCH_IMPLICIT_SCOPES", "perhaps", "must be true or false"),
        ("SQLA_WATCH_WATCHDOG_SECONDS", "often", "watchdog_seconds is 'often' (str), but must be a number"),
        ("SQLA_WATCH_WATCHDOG_SECONDS", "-1", "watchdog_seconds is -1, but must be 0, or from 0.005 to 10 seconds"),
        ("SQLA_WATCH_POOL_FANOUT_MIN_TASKS", "2.5", "is 2.5 (float), but must be a whole number"),
    ],
)
def test_a_mistake_in_the_environment_is_named_with_its_variable(
    tmp_path: Path, variable: str, value: str, said: str
) -> None:
    with pytest.raises(SettingsError) as error:
        load(tmp_path, **{variable: value})
    assert said in str(error.value)
    assert variable in str(error.value)


def test_the_watchdog_is_set_in_pyproject_and_may_be_switched_off(tmp_path: Path) -> None:
    assert Settings().watchdog_seconds == 0.05
    assert load(tmp_path, "[tool.sqla_watch]\nwatchdog_seconds = 1").watchdog_seconds == 1.0
    assert load(tmp_path, "[tool.sqla_watch]\nwatchdog_seconds = 0", SQLA_WATCH_PROFILE="test").watchdog_seconds == 0


def test_the_nearest_pyproject_is_found_from_the_working_directory_upwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.sqla_watch]\nprofile = 'production'\n", encoding="utf-8")
    inner = tmp_path / "src" / "shop"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    assert Settings.load().profile == "production"


def test_a_pyproject_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        Settings.load(pyproject=tmp_path / "missing.toml", environment={})


def test_an_unknown_rule_is_an_error_wherever_it_is_asked_for() -> None:
    with pytest.raises(SettingsError, match="did you mean 'long-transaction'"):
        Settings().rule("long-transactions")


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_has_a_page_a_warning_and_thresholds(rule: str) -> None:
    detector = RULES[rule]
    page = detector.__doc__ or ""
    for section in (
        "What it sees",
        "Why it costs",
        "Example",
        "Use instead",
        "Thresholds",
        "How to silence it",
        "Limits",
    ):
        assert f"## {section}" in page, f"{rule} has no section {section}"
    assert getattr(sqla_watch, detector.warning.__name__) is detector.warning
    assert all(name in page for name in detector.thresholds)


def test_the_examples_of_the_documentation() -> None:
    assert doctest.testmod(sqla_watch.settings).failed == 0
