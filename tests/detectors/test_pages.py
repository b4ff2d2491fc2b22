"""Every rule's page is complete, and its examples are true: the first is found, the repaired one is silent."""

from __future__ import annotations

import asyncio
import inspect
import re
import textwrap
import time
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy
import sqlalchemy.orm
from sqlalchemy import Engine, create_engine, make_url
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

import sqla_watch
from sqla_watch import Finding, Scope, Settings
from sqla_watch.demo import models
from sqla_watch.detectors import RULES
from sqla_watch.probes import session as session_probe

SECTIONS = ["What it sees", "Why it costs", "Example", "Use instead", "Thresholds", "How to silence it", "Limits"]

# The shop of the tests is small: thresholds of size are lowered to it.
SMALLER: dict[str, dict[str, Any]] = {
    "oversized-result": {"min_rows": 400},
    "deep-offset": {"min_offset": 300},
    "large-in-list": {"min_values": 100},
    "large-identity-map": {"min_objects": 400},
    "cartesian-join": {"min_rows_of_one": 400},
    "unused-eager-load": {"action": "warn"},
    "wide-rows": {"action": "warn", "min_columns": 4},
}

# Without findings in the scope of a connection, which is none of a unit of work, sees one connection only, and may end
# before its objects are read: the kind of scope that is around the example.
NEED_A_SCOPE = {
    "unused-eager-load": "block",
    "wide-rows": "block",
    "connection-held": "request",
    "nested-checkout": "request",
    "pool-fanout": "request",
}

# Where one connection is not enough for the example to come to its end.
MORE_CONNECTIONS = {"nested-checkout"}


def sections_of(rule: str) -> dict[str, str]:
    page = inspect.getdoc(type(RULES[rule])) or ""
    parts = re.split(r"^## (.+)$", page, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def code_of(section: str) -> str:
    match = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert match, "the section has no code"
    return match[1]


@pytest.mark.parametrize("rule", RULES)
def test_every_page_has_its_sections_in_order(rule: str) -> None:
    assert list(sections_of(rule)) == SECTIONS
    assert RULES[rule].guide
    assert all(f"`{name}`" in sections_of(rule)["Thresholds"] for name in RULES[rule].thresholds)
    assert f'ignore("{rule}"' in sections_of(rule)["How to silence it"]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("section", ["Example", "Use instead"])
@pytest.mark.filterwarnings("ignore::sqla_watch.SqlaWatchWarning")
def test_the_examples_are_true(
    rule: str, section: str, shop_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_probe, "MANY_OBJECTS", 400)
    source = tmp_path / "example.py"
    source.write_text(
        f"def example():\n{textwrap.indent(code_of(sections_of(rule)[section]), '    ')}", encoding="utf-8"
    )
    seen: list[Scope] = []
    settings = Settings(profile="test", rules={rule: SMALLER.get(rule, {})})
    with names_for(shop_url, settings, seen, 2 if rule in MORE_CONNECTIONS else 1) as names:
        exec(compile(source.read_text(encoding="utf-8"), str(source), "exec"), names)
        with names["session"] as session, ExitStack() as scope:
            if rule in NEED_A_SCOPE:
                scope.enter_context(sqla_watch.scope("example", kind=NEED_A_SCOPE[rule]))
            names["example"]()
            session.rollback()
    found = [finding for scope in seen for finding in scope.findings]
    expected = [rule] if section == "Example" else []
    assert sorted({finding.rule for finding in found}) == expected
    assert all(points_into(finding, source) for finding in found)


def points_into(finding: Finding, source: Path) -> bool:
    return finding.location is not None and finding.location.file == str(source)


@contextmanager
def names_for(url: str, settings: Settings, seen: list[Scope], connections: int) -> Iterator[dict[str, Any]]:
    """What an example may use: SQLAlchemy's names, the shop's classes, and things at hand in an application.

    The engines are watched; `seen` is given the scopes. Engines that the example makes are disposed of, too.
    """
    with ExitStack() as stack:

        def make_engine(*arguments: Any, **options: Any) -> Engine:
            made = create_engine(*arguments, **options)
            stack.callback(made.dispose)
            return made

        engine = make_engine(url, pool_size=connections, max_overflow=0, pool_timeout=0.5)
        async_url = make_url(url).set(drivername="postgresql+asyncpg")
        async_engine = create_async_engine(async_url, pool_size=2, max_overflow=0)

        async def closing(example: Coroutine[Any, Any, Any]) -> Any:
            """No connection may outlive the event loop of an example."""
            try:
                return await example
            finally:
                await async_engine.dispose()

        for each in (async_engine, engine):
            sqla_watch.install(each, settings=settings).reporters.append(seen.append)
        yield {
            **{
                name: getattr(sqlalchemy, name)
                for name in ("select", "insert", "text", "func", "tuple_", "literal", "ARRAY", "Integer")
            },
            **{name: getattr(sqlalchemy.orm, name) for name in ("Session", "joinedload", "selectinload", "undefer")},
            **{name: getattr(models, name) for name in ("Customer", "Order", "Item", "Product", "Rate")},
            "AsyncSession": AsyncSession,
            "DBAPIError": sqlalchemy.exc.DBAPIError,
            "MissingGreenlet": sqlalchemy.exc.MissingGreenlet,
            "ThreadPoolExecutor": ThreadPoolExecutor,
            "asyncio": SimpleNamespace(**{**vars(asyncio), "run": lambda example: asyncio.run(closing(example))}),
            "sqla_watch": sqla_watch,
            "time": time,
            "create_engine": make_engine,
            "engine": engine,
            "async_engine": async_engine,
            "session": Session(engine),
            "customer_ids": list(range(1, 11)),
            "orders": list(range(10)),
            "many_ids": list(range(1, 101)),
        }
