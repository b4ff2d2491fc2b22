"""`sqla-watch demo`: mistakes and their repairs on a real database, each in a scope of its own.

The demo is its own test: it says so, and exits with 1, if a mistake is not found or a repair is found fault with.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import click
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import configure_mappers

import sqla_watch
from sqla_watch import registry
from sqla_watch.cli.database import first_line, open_shop
from sqla_watch.cli.otlp import Export, exporting
from sqla_watch.cli.summary import entered
from sqla_watch.demo.scenarios import SCENARIOS, Scenario, Shop
from sqla_watch.reporters import json
from sqla_watch.reporters.terminal import Terminal, Told
from sqla_watch.reporters.text import count
from sqla_watch.scopes import Scope

__all__ = ["Pair", "demo", "play"]


@dataclass(frozen=True)
class Pair:
    """A scenario, and what was seen of its mistake and its repair."""

    scenario: Scenario
    mistake: Scope
    repair: Scope
    same_answer: bool
    """Whether the repair returned what the mistake did."""

    def complaints(self) -> Iterator[str]:
        """Say what was found that should not have been, and the other way round."""
        expected = [self.scenario.rule] * self.scenario.findings
        for scope, wanted in ((self.mistake, expected), (self.repair, [])):
            found = [finding.rule for finding in scope.findings]
            if found != wanted:
                yield f"{scope.name}: expected {_listed(wanted)}, but found {_listed(found)}"
        if not self.same_answer:
            yield f"{self.scenario.name}: mistake and repair give different answers"


@click.command()
@click.option("--url", metavar="URL", help="Another database, PostgreSQL or SQLite, as in sqlite:///shop.db.")
@click.option("--json", "json_path", metavar="FILE", help="Write the report as JSON, too.")
@click.option("--otlp", metavar="URL", help="Send traces and metrics there, as to http://localhost:4318.")
@click.option("--force", is_flag=True, help="Replace tables of the same names. Their rows are lost.")
def demo(url: str | None, json_path: str | None, otlp: str | None, force: bool) -> int:
    """Show each mistake and its repair on a small shop.

    Starts a PostgreSQL of its own. On a database given by --url the demo makes the tables customers, orders, items,
    products and rates, and drops them at the end; it refuses where there are such tables already.
    """
    if json_path is not None:
        json.check(json_path)
    try:
        with (
            nullcontext() if otlp is None else exporting(otlp, "sqla-watch demo") as export,
            open_shop(url, force=force, say=partial(click.echo, err=True)) as shop,
        ):
            pairs = play(shop, export)
            database = _database(shop)
            left_out = {scenario.name: reason for scenario in SCENARIOS if (reason := _why_not(scenario, shop))}
    except SQLAlchemyError as error:
        raise click.ClickException(f"the demo broke off: {first_line(error)}") from error
    _print(Terminal(sys.stdout), database, pairs, left_out)
    if json_path is not None:
        json.write(_document(pairs), json_path)
    return _verdict(pairs)


def play(shop: Shop, export: Export | None = None) -> list[Pair]:
    """Run each mistake and its repair, watched, with the settings of the development profile.

    Scenarios that cannot be on the shop's database are left out.
    """
    providers: dict[str, Any] = {}
    if export is not None:
        providers = {"tracer_provider": export.tracer_provider, "meter_provider": export.meter_provider}
    watches = [sqla_watch.install(engine, **providers) for engine in (shop.engine, shop.small_pool)]
    if shop.async_engine is not None:
        watches.append(sqla_watch.install(shop.async_engine, **providers))
    if export is not None:  # some scenarios make engines of their own
        watches.append(sqla_watch.install(**providers))
    configure_mappers()
    with shop.engine.connect() as connection:  # the first mistake is not to pay for the first connection
        connection.execute(text("SELECT 1"))
    try:
        return [_pair(scenario, shop, export) for scenario in SCENARIOS if not _why_not(scenario, shop)]
    finally:
        for watch in watches:
            watch.uninstall()


def _why_not(scenario: Scenario, shop: Shop) -> str:
    """Say why a scenario cannot be on the shop's database; empty if it can."""
    if scenario.is_async and shop.async_engine is None:
        return "it needs greenlet and a driver for asyncio"
    return scenario.not_on_sqlite if shop.engine.dialect.name == "sqlite" else ""


def _pair(scenario: Scenario, shop: Shop, export: Export | None) -> Pair:
    # Which attributes are read is followed only while a watch asks for it.
    sqla_watch.install(shop.engine, settings=sqla_watch.Settings(rules=scenario.rules))
    mistake, wrong_way = _run(scenario.mistake, shop, f"{scenario.name}: mistake", scenario, export)
    repair, right_way = _run(scenario.repair, shop, f"{scenario.name}: repair", scenario, export)
    return Pair(scenario, mistake, repair, same_answer=wrong_way == right_way)


def _run(
    function: Callable[[Shop], object], shop: Shop, name: str, scenario: Scenario, export: Export | None
) -> tuple[Scope, object]:
    gc.collect()  # what others left behind is not to be counted here: it takes longer than some repairs
    settings = sqla_watch.Settings(rules=scenario.rules)
    with (
        warnings.catch_warnings(),
        nullcontext() if export is None else export.tracer.start_as_current_span(name),
    ):
        warnings.simplefilter("ignore", sqla_watch.SqlaWatchWarning)  # of scopes inside: told at the end
        with entered(Scope(name, "demo", settings)) as scope:
            answer = function(shop)
            if inspect.iscoroutine(answer):
                answer = asyncio.run(answer)
        if export is not None:
            for tell in registry.subscribers():
                tell(scope)
    if scenario.undo is not None:
        scenario.undo(shop)
    return scope, answer


def _database(shop: Shop) -> str:
    dialect = shop.engine.dialect
    version = ".".join(str(part) for part in dialect.server_version_info or ())
    return f"{'PostgreSQL' if dialect.name == 'postgresql' else 'SQLite'} {version} with {dialect.driver}"


def _print(terminal: Terminal, database: str, pairs: list[Pair], left_out: dict[str, str]) -> None:
    terminal.line(f"{count(len(pairs), 'mistake')}, each with its repair, on {database}", "bold")
    terminal.findings(Told.once(finding) for pair in pairs for finding in pair.mistake.findings)
    terminal.line()
    terminal.table(
        ("mistake → repair", "statements", "rows", "milliseconds"),
        [(pair.scenario.name, *_compared(pair)) for pair in pairs],
    )
    terminal.line()
    for pair in pairs:
        if pair.scenario.note:
            terminal.line(f"{pair.scenario.name}: {pair.scenario.note}.")
    for name, reason in left_out.items():
        terminal.line(f"{name}: left out, {reason}.")


def _compared(pair: Pair) -> Iterator[str]:
    mistake, repair = pair.mistake, pair.repair
    yield f"{mistake.statements:,} → {repair.statements:,}"
    yield f"{mistake.rows:,} → {repair.rows:,}"
    yield f"{mistake.duration_seconds * 1e3:,.0f} → {repair.duration_seconds * 1e3:,.0f}"


def _document(pairs: list[Pair]) -> dict[str, Any]:
    return json.document(
        [scope.to_dict() for pair in pairs for scope in (pair.mistake, pair.repair)],
        scenarios=[
            {
                "rule": pair.scenario.rule,
                "title": pair.scenario.title,
                "mistake": pair.mistake.name,
                "repair": pair.repair.name,
            }
            for pair in pairs
        ],
    )


def _verdict(pairs: list[Pair]) -> int:
    """Say whether the demo found what it should, and return the exit status."""
    complaints = [complaint for pair in pairs for complaint in pair.complaints()]
    for complaint in complaints:
        click.echo(f"Error: {complaint}", err=True)
    if not complaints:
        click.echo("Each mistake was found, and no repair was found fault with.")
    return 1 if complaints else 0


def _listed(rules: list[str]) -> str:
    return " and ".join(f"{rules.count(rule)} of {rule}" for rule in dict.fromkeys(rules)) or "nothing"
