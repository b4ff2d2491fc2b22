"""The reports of a test run that go to files, and the properties of a test in JUnit's XML."""

from __future__ import annotations

import json as standard_json
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import pytest

from sqla_watch.panel import report_page
from sqla_watch.panel.errors import PanelError
from sqla_watch.pytest_plugin import sarif as sarif_document
from sqla_watch.pytest_plugin.grouped import found_in_tests, worst_tests
from sqla_watch.pytest_plugin.outcome import Outcome
from sqla_watch.reporters import files
from sqla_watch.reporters import json as json_report

__all__ = ["check", "html", "json", "junit_properties", "sarif"]

MOST_SCOPES = 1_000
"""Tests whose scopes are in a report: the worst ones, each with what was found in it."""

MOST_PAGES = 300
"""Tests that the HTML report shows, the worst ones: each is a page of about 30 kB in it."""

_TOTALS = ("statements", "rows", "database_seconds", "wait_seconds", "transactions", "connections")


def check(path: str, option: str) -> None:
    """Look whether a report can be written, before the first test runs.

    Args:
        path: Where it is to go.
        option: Which option asked for it: `--sqla-watch-html`.

    Raises:
        pytest.UsageError: It cannot, or the packages for it are not there.
    """
    if not path:
        raise pytest.UsageError(f"sqla_watch: {option} is empty, but must name a file, as {option}=report")
    try:
        files.check(path, "report")
        if option.endswith("html"):
            report_page([], title="")
    except (files.ReportError, PanelError) as error:
        raise pytest.UsageError(f"sqla_watch: {option}: {error}") from error


def json(outcomes: Iterable[Outcome], path: str, *, known: Collection[str] = ()) -> None:
    """Write the JSON report: that of `sqla-watch run`, with each test as a scope, and what is known of it as a test.

    It adds `totals`; `findings`, each once, with the `tests` in which it was found, whether it is `failing`, and
    whether it is `known` by the baseline; `tests`, by their node ids, as `Outcome.to_dict` has them; and
    `scopes_left_out`, where there are more than 1,000 tests.

    Raises:
        ReportError: It cannot be written.
    """
    outcomes = sorted(outcomes, key=lambda outcome: outcome.nodeid)
    kept = _worst_with_scope(outcomes)
    json_report.write(
        json_report.document(
            [_scope(outcome) for outcome in kept],
            program={"name": "pytest", "arguments": [], "module": False},
            totals={"tests": len(outcomes)}
            | {name: round(sum(getattr(outcome, name) for outcome in outcomes), 6) for name in _TOTALS},
            findings=[
                {
                    **each.finding,
                    "identity": each.identity,
                    "tests": [test.nodeid for test in each.tests],
                    "failing": each.failing,
                    "known": each.identity in known,
                    "statements": each.statements,
                    "database_seconds": round(each.database_seconds, 6),
                }
                for each in found_in_tests(outcomes)
            ],
            tests=[{key: value for key, value in outcome.to_dict().items() if key != "scope"} for outcome in outcomes],
            scopes_left_out=sum(outcome.scope is not None for outcome in outcomes) - len(kept),
        ),
        path,
    )


def html(outcomes: Iterable[Outcome], path: str, *, title: str = "pytest") -> None:
    """Write the HTML report: the panel's pages in one file, with each test as a scope, the worst first.

    Tests that had nothing to do with the database are not in it, and of many tests only the worst are.

    Raises:
        ReportError: It cannot be written.
        PanelError: The packages of the extra `panel` are not there.
    """
    outcomes = [outcome for outcome in outcomes if outcome.statements or outcome.findings or outcome.budget]
    scopes = [_scope(outcome) for outcome in _worst_with_scope(outcomes)[:MOST_PAGES]]
    if len(outcomes) > len(scopes):
        title = f"{title}: {len(scopes):,} of {len(outcomes):,} tests"
    files.write(report_page(scopes, title=title).encode("utf-8", "replace"), path, "HTML report")


def sarif(outcomes: Iterable[Outcome], path: str, *, known: Collection[str] = ()) -> None:
    """Write the SARIF report.

    Raises:
        ReportError: It cannot be written.
    """
    text = standard_json.dumps(sarif_document.document(outcomes, known=known), ensure_ascii=False, indent=2)
    files.write(text.encode("utf-8", "backslashreplace") + b"\n", path, "SARIF report")


def junit_properties(outcome: Outcome) -> list[tuple[str, str]]:
    """Return the properties of a test for `report.user_properties`, which JUnit's XML has; empty without database.

    Example::

        report.user_properties.extend(junit_properties(outcome))
    """
    if not (outcome.statements or outcome.findings or outcome.budget):
        return []
    numbers: dict[str, Any] = {
        "statements": outcome.statements,
        "rows": outcome.rows,
        "database_seconds": f"{outcome.database_seconds:.6f}",
        "transactions": outcome.transactions,
        "setup_statements": outcome.setup_statements,
        "findings": len(outcome.findings),
        **{f"budget.{name}": f"{limit:g}" for name, limit in sorted(outcome.budget.items())},
    }
    found = sorted({f"{finding['rule']} {finding['target']}" for finding in outcome.findings})
    return [
        *((f"sqla_watch.{name}", str(value)) for name, value in numbers.items()),
        *(("sqla_watch.finding", each) for each in found),
    ]


def _worst_with_scope(outcomes: Iterable[Outcome]) -> list[Outcome]:
    return [outcome for outcome in worst_tests(outcomes) if outcome.scope is not None][:MOST_SCOPES]


def _scope(outcome: Outcome) -> Mapping[str, Any]:
    """Return a test as a scope of a report, under the name by which pytest finds it again."""
    assert outcome.scope is not None
    return {**outcome.scope, "name": outcome.nodeid, "kind": "test"}
