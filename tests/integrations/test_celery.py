"""Celery: one scope for each task, in a worker's thread and in the processes it forks; the task never notices."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker
from sqlalchemy import Engine

import sqla_watch
from sqla_watch import Budget, Scope, Settings, SettingsError, Watch
from sqla_watch.integrations import celery as integration
from sqla_watch.integrations.celery import watch_tasks
from sqla_watch.scopes import current
from tests.integrations.celery_service import add_tasks, configured, leave_signals
from tests.integrations.service import SILENT, assert_each_has_its_own, engines, numbers_of, read, statements_of
from tests.integrations.serving import eventually, process

pytestmark = [
    pytest.mark.filterwarnings("ignore::sqla_watch.SqlaWatchWarning"),
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:(celery|kombu|billiard|vine)"),
]


@pytest.fixture(scope="module")
def module_engine(shop_url: str) -> Iterator[Engine]:
    engine, _ = engines(shop_url)
    yield engine
    engine.dispose()


@pytest.fixture(scope="module")
def app(module_engine: Engine) -> Iterator[Celery]:
    """An application with a worker in a thread, and its broker in memory."""
    app = Celery("shop", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.broker_transport_options = {"polling_interval": 0.01}
    add_tasks(app, module_engine)
    with start_worker(app, pool="solo", perform_ping_check=False, shutdown_timeout=20):
        yield app


@pytest.fixture(autouse=True)
def _watched() -> Iterator[None]:
    """Leave Celery's signals as they were."""
    watch_tasks()
    yield
    leave_signals()
    assert integration._tasks._scopes == {}


@pytest.fixture
def watch(module_engine: Engine) -> Watch:
    return sqla_watch.install(module_engine, settings=SILENT)


@pytest.fixture
def scopes(watch: Watch) -> list[Scope]:
    """The scopes that were closed; each statement is kept, no rule speaks."""
    closed: list[Scope] = []
    watch.reporters.append(closed.append)
    return closed


def result_of(app: Celery, name: str, *arguments: int) -> Any:
    return app.send_task(name, arguments).get(timeout=30, interval=0.01)


def reports(scopes: list[Scope]) -> list[tuple[str, str, int, int]]:
    """Name and kind of each scope, whose statements it has, and how many."""
    found = []
    for scope in scopes:
        (number,), statements = numbers_of(scope.to_dict())
        found.append((scope.name, scope.kind, number, statements))
    return found


def test_each_task_has_a_scope(app: Celery, scopes: list[Scope]) -> None:
    results = [app.send_task("works", (number,)) for number in range(60)]
    assert [result.get(timeout=30, interval=0.01) for result in results] == [*range(60)]
    assert {(scope.kind, scope.name, scope.parent) for scope in scopes} == {("task", "works", None)}
    assert_each_has_its_own([scope.to_dict() for scope in scopes], range(60))


def test_a_task_that_fails_is_ignored_or_rejected_has_one_too(app: Celery, scopes: list[Scope]) -> None:
    with pytest.raises(RuntimeError, match="of the application's own"):
        result_of(app, "fails", 3)
    app.send_task("ignored", (4,))
    app.send_task("rejected", (5,))
    assert result_of(app, "works", 6) == 6
    assert reports(scopes) == [
        ("fails", "task", 3, statements_of(3)),
        ("ignored", "task", 4, statements_of(4)),
        ("rejected", "task", 5, statements_of(5)),
        ("works", "task", 6, statements_of(6)),
    ]


def test_each_try_is_a_task(app: Celery, scopes: list[Scope]) -> None:
    assert result_of(app, "retries", 10) == 10
    assert reports(scopes) == [("retries", "task", number, statements_of(number)) for number in (10, 11, 12)]


def test_a_task_that_is_called_by_another_is_inside_of_it(app: Celery, scopes: list[Scope]) -> None:
    assert result_of(app, "calls_another", 2) == 3
    inner, outer = scopes
    assert (inner.name, inner.statements) == ("works", statements_of(3))
    assert (outer.name, outer.statements) == ("calls_another", statements_of(2) + statements_of(3))
    assert inner.parent is outer


def test_a_task_that_is_called_in_place_has_one_too(app: Celery, scopes: list[Scope]) -> None:
    with sqla_watch.scope("request") as request:
        assert app.tasks["works"].apply((5,)).get() == 5
    assert [scope.name for scope in scopes] == ["works", "request"]
    assert request.statements == statements_of(5)
    assert current.get() is None


def test_budgets_are_by_the_name_of_the_task(app: Celery, scopes: list[Scope], watch: Watch) -> None:
    watch_tasks(
        budgets={"works": Budget(max_statements=3)},
        default_budget=Budget(max_statements=0),
        settings=Settings(rules={**SILENT.rules, "over-budget": "raise"}),
    )
    for number in (2, 3):
        assert result_of(app, "works", number) == number, "raise must not fail a task that is done"
    app.send_task("ignored", (0,))
    result_of(app, "works", 0)
    over = [[(finding.rule, finding.target) for finding in scope.findings] for scope in scopes]
    assert over == [[], [("over-budget", "works statements")], [("over-budget", "ignored statements")], []]


@pytest.mark.faults
def test_reporters_that_fail_are_nothing_to_a_task(app: Celery, watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(scope: Scope) -> None:
        raise ZeroDivisionError

    watch.reporters.append(failing)
    assert result_of(app, "works", 1) == 1
    for name in ("close_scope", "open_scope"):
        monkeypatch.setattr(integration, name, failing)
        assert result_of(app, "works", 2) == 2
    current.set(None)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"budgets": {"works": 3}}, "watch_tasks(): the budget of 'works' is 3, but must be a Budget(…)"),
        ({"budgets": {3: Budget(max_rows=1)}}, "watch_tasks(): a budget is for 3, but must be for a name"),
        ({"budgets": "works"}, "watch_tasks(): budgets is 'works', but must be a mapping"),
        ({"default_budget": 3}, "watch_tasks(): default_budget is 3, but must be a Budget(…)"),
        ({"settings": "test"}, "watch_tasks(): settings is 'test', but must be sqla_watch.Settings(…)"),
    ],
)
def test_a_mistake_in_an_argument_is_said_and_changes_nothing(options: Any, said: str) -> None:
    tasks = integration._tasks
    before = (tasks.budgets, tasks.default_budget, tasks.settings)
    with pytest.raises(SettingsError) as raised:
        watch_tasks(**options)
    assert said in str(raised.value)
    assert (tasks.budgets, tasks.default_budget, tasks.settings) == before


def test_the_processes_that_a_worker_forks_are_watched(shop_url: str, tmp_path: Path) -> None:
    """Installed before the fork, in the process which has no tasks; also the watchdog is there after it."""
    report = tmp_path / "scopes"
    environment = {
        "SERVICE_FOLDER": str(tmp_path),
        "SERVICE_DATABASE_URL": shop_url,
        "SERVICE_REPORT": str(report),
        "SERVICE_RULES": json.dumps(
            {"idle-in-transaction": {"action": "log", "min_seconds": 0.1}, "over-budget": "log"}
        ),
    }
    app = configured(str(tmp_path))
    worker = ["-m", "celery", "-A", "tests.integrations.celery_service", "worker", "--pool", "prefork"]
    options = ["--concurrency", "2", "--loglevel", "info", "--without-gossip", "--without-mingle"]
    ending: Any = {"end": signal.SIGQUIT, "patience": 1.5}  # of itself it takes five seconds
    with process(*worker, *options, until=r"celery@\S+ ready", **ending, **environment):
        results = [app.send_task("works", (number,)) for number in range(40)]
        idle = app.send_task("idles", (1,))
        assert [result.get(timeout=30, interval=0.02) for result in results] == [*range(40)]
        child = idle.get(timeout=30, interval=0.02)
        scopes = eventually(lambda: len(found := read(report)) >= 41 and found)
    app.close()
    works = [scope for scope in scopes if scope["name"] == "works"]
    assert_each_has_its_own(works, range(40))
    assert len({scope["process"] for scope in works} - {os.getpid()}) == 2
    (idles,) = (scope for scope in scopes if scope["name"] == "idles")
    assert idles["process"] == child
    by_rule = {finding["rule"]: finding for finding in idles["findings"]}
    assert by_rule.keys() == {"over-budget", "idle-in-transaction"}
    assert "sleep" in by_rule["idle-in-transaction"]["message"]
