"""What the services of the tests have in common: whose statement each one is, and what is written of each scope.

Each request for number `n` sends as many statements as `statements_of(n)` says, and all of them have its number in
their text, so that the timeline of its scope tells whose statements it has.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import Any

from sqlalchemy import Engine, create_engine, make_url, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from sqla_watch import Scope, Settings
from sqla_watch.detectors import RULES

SILENT = Settings(rules=dict.fromkeys(RULES, "ignore"), timeline=50)
"""No findings, but each statement."""


def statements_of(number: int) -> int:
    return 1 + number % 7


def own(number: int) -> Any:
    return text(f"SELECT pg_sleep(0.0005) AS request_{number}")


def numbers_of(report: dict[str, Any]) -> tuple[set[int], int]:
    """Return whose statements the report of a scope has, and how many."""
    entries = [entry for entry in report["timeline"]["entries"] if entry["kind"] == "statement"]
    texts = report["timeline"]["texts"]
    assert len(entries) == report["statements"]
    return {int(texts[entry["text"]].rpartition("request_")[2]) for entry in entries}, len(entries)


def assert_each_has_its_own(reports: Iterable[dict[str, Any]], numbers: Iterable[int]) -> None:
    """Each number has one scope, in which there is every statement of its own and no other."""
    seen = {}
    for report in reports:
        numbers_in_it, statements = numbers_of(report)
        (number,) = numbers_in_it
        assert number not in seen
        seen[number] = statements
    assert seen == {number: statements_of(number) for number in numbers}


def write_to(path: str) -> Any:
    """Return a reporter that writes a line of JSON for each scope."""

    def report(scope: Scope) -> None:
        with open(path, "a", encoding="utf-8") as file:  # one write a line, so that processes do not mix
            file.write(json.dumps({**scope.to_dict(), "process": os.getpid()}) + "\n")

    return report


def read(path: Any) -> list[dict[str, Any]]:
    """Return what such reporters have written by now."""
    try:
        with open(path, encoding="utf-8") as file:
            return [json.loads(line) for line in file.read().splitlines()]
    except FileNotFoundError:
        return []


def engines(url: str) -> tuple[Engine, AsyncEngine]:
    """Return an engine, and one for event loops."""
    made = make_url(url)
    options: dict[str, Any] = {"pool_size": 12, "max_overflow": 0, "pool_timeout": 60, "pool_recycle": 3600}
    return (
        create_engine(made.set(drivername="postgresql+psycopg"), **options),
        create_async_engine(made.set(drivername="postgresql+asyncpg"), **options),
    )
