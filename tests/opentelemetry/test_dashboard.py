"""The dashboard asks for metrics and attributes that are written, by the names that Prometheus gives them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import Counter, Histogram
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.trace import NoOpTracerProvider
from prometheus_client import REGISTRY
from sqlalchemy import QueuePool, create_engine

import sqla_watch
from sqla_watch.detectors import RULES
from sqla_watch.integrations.opentelemetry import names

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "observability" / "grafana" / "sqla_watch.json"


@pytest.fixture(scope="module")
def prometheus_names() -> set[str]:
    """The names that OpenTelemetry's exporter for Prometheus gives our metrics; the collector's has the same rules."""
    provider = MeterProvider([PrometheusMetricReader()])
    engine = create_engine("sqlite://", poolclass=QueuePool)
    with sqla_watch.install(engine, tracer_provider=NoOpTracerProvider(), meter_provider=provider) as watch:
        assert watch._signals is not None
        for instrument in vars(watch._signals.metrics).values():
            if isinstance(instrument, Histogram):
                instrument.record(1)
            elif isinstance(instrument, Counter):
                instrument.add(1)
        found = {sample.name for family in REGISTRY.collect() for sample in family.samples}
    provider.shutdown()
    return found


LABELS = {value.replace(".", "_") for value in vars(names).values() if isinstance(value, str)} | {"le"}
QUERIES = [
    (panel["title"], target["expr"])
    for panel in json.loads(DASHBOARD.read_text())["panels"]
    for target in panel["targets"]
]


@pytest.mark.parametrize(("title", "query"), QUERIES, ids=[title for title, _ in QUERIES])
def test_a_query_asks_for_what_is_written(prometheus_names: set[str], title: str, query: str) -> None:
    metrics = set(re.findall(r"\b((?:db_client|sqla_watch)_\w+?)(?=[\[{)]|$)", re.sub(r"by \([^)]*\)", "", query)))
    assert metrics
    assert metrics <= prometheus_names
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


COMPOSE = (ROOT / "docker-compose.yml").read_text()


def test_compose_offers_its_ports_to_this_machine_alone() -> None:
    ports = re.findall(r'^ +- "([^"]*:\d+)"$', COMPOSE, re.MULTILINE)
    assert len(ports) == 5
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_compose_has_images_of_one_version_each() -> None:
    images = re.findall(r"^ +image: (\S+)$", COMPOSE, re.MULTILINE)
    assert len(images) == 5
    assert all(re.search(r":v?\d+(\.\d+\.\d+|-alpine)$", image) for image in images)


def test_nobody_logs_in_with_a_password_that_everybody_knows() -> None:
    for switch in ('GF_AUTH_DISABLE_LOGIN_FORM: "true"', 'GF_AUTH_BASIC_ENABLED: "false"', "ORG_ROLE: Viewer"):
        assert switch in COMPOSE
