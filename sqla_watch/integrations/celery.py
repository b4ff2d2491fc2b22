"""Celery: one task, one scope, by Celery's own signals.

https://docs.celeryq.dev/en/stable/userguide/signals.html
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from celery.signals import task_failure, task_postrun, task_prerun, task_retry, task_success

from sqla_watch import registry
from sqla_watch.budgets import Budget, check_budgets
from sqla_watch.scopes import Scope, close_scope, open_scope
from sqla_watch.settings import Settings, SettingsError

__all__ = ["watch_tasks"]

logger = logging.getLogger("sqla_watch")


class _Tasks:
    """The scopes of the tasks that are running in this process, by the id of their task."""

    def __init__(self) -> None:
        self.budgets: dict[str, Budget] = {}
        self.default_budget: Budget | None = None
        self.settings: Settings | None = None
        self._scopes: dict[str, Scope] = {}

    def begin(self, task_id: str = "", task: Any = None, **signal: Any) -> None:
        """Open the scope of a task, in the thread or greenlet that will run it."""
        try:
            scope = open_scope(str(getattr(task, "name", "") or "task"), "task", self.settings)
            scope.budget = self.budgets.get(scope.name, self.default_budget)
            self._scopes[task_id] = scope
        except Exception:
            logger.exception("sqla_watch: the scope of a Celery task could not be opened; please report this")

    def answer(self, sender: Any = None, **signal: Any) -> None:
        """The outcome of a task is known, and the span that another instrumentation has of it still open."""
        if not registry.answering:
            return
        scope = self._scopes.get(getattr(getattr(sender, "request", None), "id", None) or "")
        if scope is not None:
            scope.answer()

    def end(self, task_id: str = "", retval: Any = None, state: str | None = None, **signal: Any) -> None:
        """Close the scope of a task, whether it succeeded or not."""
        scope = self._scopes.pop(task_id, None)
        if scope is None:
            return
        error = retval if isinstance(retval, BaseException) else None
        if error is None and state not in (None, "SUCCESS"):
            error = RuntimeError(str(state))
        try:
            close_scope(scope, error, quiet=True)  # Celery would take an exception from here for its own
        except Exception:
            logger.exception("sqla_watch: the scope of a Celery task could not be closed; please report this")


_tasks = _Tasks()


def watch_tasks(
    *,
    budgets: Mapping[str, Budget] | None = None,
    default_budget: Budget | None = None,
    settings: Settings | None = None,
) -> None:
    """Have each task of this process, and of those that a worker forks from it, run in a scope of its own.

    Called where the Celery application is made, next to `sqla_watch.install()`. May be called again.

    Args:
        budgets: What a task may cost at most, by its name: `{"shop.tasks.invoice": Budget(max_statements=20)}`.
        default_budget: What any other task may cost at most.
        settings: Settings to judge by; those of the latest `install()` by default.

    Raises:
        SettingsError: An argument cannot be what it is.

    Example::

        app = Celery("shop", broker=…)
        sqla_watch.install(engine)
        sqla_watch.integrations.celery.watch_tasks()
    """
    checked = check_budgets("watch_tasks()", budgets if budgets is not None else {})
    if default_budget is not None and not isinstance(default_budget, Budget):
        raise SettingsError(f"watch_tasks(): default_budget is {default_budget!r}, but must be a Budget(…)")
    if settings is not None and not isinstance(settings, Settings):
        raise SettingsError(f"watch_tasks(): settings is {settings!r}, but must be sqla_watch.Settings(…)")
    _tasks.settings = None if settings is None else Settings.load(settings)
    _tasks.budgets, _tasks.default_budget = checked, default_budget
    task_prerun.connect(_tasks.begin, weak=False, dispatch_uid="sqla_watch")
    for outcome in (task_success, task_failure, task_retry):
        outcome.connect(_tasks.answer, weak=False, dispatch_uid="sqla_watch")
    task_postrun.connect(_tasks.end, weak=False, dispatch_uid="sqla_watch")
