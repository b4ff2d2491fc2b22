"""The dashboard asks for metrics and attributes that are written, by the names that Prometheus gives them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from sqla_watch.detectors import RULES
from sqla_watch.integrations.opentelemetry import names

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "observability" / "grafana" / "sqla_watch.json"

HISTOGRAMS = {names.DURATION, names.CREATE_TIME, names.WAIT_TIME, names.USE_TIME, names.TRANSACTION_DURATION}
HISTOGRAMS |= {names.TRANSACTION_IDLE}
COUNTERS = {names.FINDINGS, names.TIMEOUTS}
GAUGES = {names.COUNT, names.MAX, names.IDLE_MAX, names.PENDING}


def prometheus_names() -> set[str]:
    """https://github.com/open-telemetry/opentelemetry-specification/blob/main/specification/compatibility/"""
    found = {f"{name}_seconds_{part}" for name in HISTOGRAMS for part in ("bucket", "sum", "count")}
    found |= {f"{name}_total" for name in COUNTERS} | GAUGES
    return {name.replace(".", "_") for name in found}


LABELS = {value.replace(".", "_") for value in vars(names).values() if isinstance(value, str)} | {"le"}
QUERIES = [
    (panel["title"], target["expr"])
    for panel in json.loads(DASHBOARD.read_text())["panels"]
    for target in panel["targets"]
]


@pytest.mark.parametrize(("title", "query"), QUERIES, ids=[title for title, _ in QUERIES])
def test_a_query_asks_for_what_is_written(title: str, query: str) -> None:
    metrics = set(re.findall(r"\b((?:db_client|sqla_watch)_\w+?)(?=[\[{)]|$)", re.sub(r"by \([^)]*\)", "", query)))
    assert metrics
    assert metrics <= prometheus_names()
    for labels in re.findall(r"by \(([^)]*)\)", query):
        assert {label.strip() for label in labels.split(",")} <= LABELS
    for rule in re.findall(r'sqla_watch_rule="([^"]*)"', query):
        assert rule in RULES


def test_it_shows_findings_pools_transactions_and_statements() -> None:
    titles = " ".join(title for title, _ in QUERIES)
    for wanted in ("by rule", "by route", "by relationship", "pool", "wait", "Idle in transaction", "Slowest"):
        assert wanted in titles


def test_compose_mounts_files_that_are_there() -> None:
    mounted = re.findall(r"- \./(observability/[^:]+):", (ROOT / "docker-compose.yml").read_text())
    assert len(mounted) == 5
    assert all((ROOT / path).is_file() for path in mounted)
