"""The service's tasks for Celery; also as the application of a worker in a process of its own."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from celery import Celery
from celery.exceptions import Ignore, Reject
from celery.signals import task_failure, task_postrun, task_prerun, task_retry, task_success
from sqlalchemy import Engine, text

import sqla_watch
from sqla_watch import Budget, Settings
from sqla_watch.integrations.celery import watch_tasks
from tests.integrations.service import SILENT, engines, own, statements_of, write_to


def add_tasks(app: Celery, engine: Engine) -> Celery:
    """Register the tasks."""

    def ask(number: int) -> int:
        with engine.connect() as connection:
            for _ in range(statements_of(number)):
                connection.execute(own(number))
        return number

    @app.task(shared=False, name="works")
    def works(number: int) -> int:
        return ask(number)

    @app.task(shared=False, name="fails")
    def fails(number: int) -> None:
        ask(number)
        raise RuntimeError("of the application's own")

    @app.task(shared=False, name="retries", bind=True, max_retries=2)
    def retries(self, number: int) -> int:  # type: ignore[no-untyped-def]
        ask(number + self.request.retries)
        if self.request.retries < 2:
            raise self.retry(countdown=0)
        return number

    @app.task(shared=False, name="ignored")
    def ignored(number: int) -> None:
        ask(number)
        raise Ignore

    @app.task(shared=False, name="rejected", acks_late=True)
    def rejected(number: int) -> None:
        ask(number)
        raise Reject("not for me", requeue=False)

    @app.task(shared=False, name="calls_another")
    def calls_another(number: int) -> int:
        ask(number)
        return int(works.apply(args=(number + 1,)).get(disable_sync_subtasks=False))

    @app.task(shared=False, name="idles")
    def idles(number: int) -> int:
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
            time.sleep(0.4)
        return os.getpid()

    return app


def configured(folder: str) -> Celery:
    """Return an application whose broker and results are files in a folder."""
    for name in ("queue", "control", "results"):
        (Path(folder) / name).mkdir(exist_ok=True)
    app = Celery("shop", broker="filesystem://", backend=f"file://{folder}/results")
    app.conf.update(
        broker_transport_options={
            "data_folder_in": f"{folder}/queue",
            "data_folder_out": f"{folder}/queue",
            "control_folder": f"{folder}/control",
            "polling_interval": 0.02,
        },
        worker_prefetch_multiplier=1,
        broker_connection_retry_on_startup=True,
    )
    return app


def served() -> Celery:
    """Return the application of a process of its own, as its environment says."""
    app = configured(os.environ["SERVICE_FOLDER"])
    engine, _ = engines(os.environ["SERVICE_DATABASE_URL"])
    rules = json.loads(os.environ["SERVICE_RULES"])
    watch = sqla_watch.install(engine, settings=Settings(rules={**SILENT.rules, **rules}, timeline=SILENT.timeline))
    watch.reporters.append(write_to(os.environ["SERVICE_REPORT"]))
    watch_tasks(budgets={"idles": Budget(max_statements=0)})
    return add_tasks(app, engine)


if "SERVICE_FOLDER" in os.environ:
    app = served()


def leave_signals() -> None:
    """Leave Celery's signals as they were before `watch_tasks()`."""
    for signal in (task_prerun, task_success, task_failure, task_retry, task_postrun):
        signal.disconnect(dispatch_uid="sqla_watch")
