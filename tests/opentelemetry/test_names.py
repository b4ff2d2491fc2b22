"""Every name that is written is one of the installed conventions, or ours, and in the table of the documentation."""

from __future__ import annotations

import importlib
import pkgutil
import re
from dataclasses import fields
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

import sqla_watch
from sqla_watch import Telemetry
from sqla_watch.demo.models import Customer
from sqla_watch.integrations.opentelemetry import metrics, names
from tests.conftest import url_for
from tests.opentelemetry.conftest import Backend
from tests.opentelemetry.test_findings import load_lazily

OURS = "sqla_watch."
METRICS = {
    "DURATION",
    "ROWS",
    "COUNT",
    "IDLE_MAX",
    "MAX",
    "PENDING",
    "TIMEOUTS",
    "CREATE_TIME",
    "WAIT_TIME",
    "USE_TIME",
}
METRICS |= {"FINDINGS", "TRANSACTION_DURATION", "TRANSACTION_IDLE"}
ALL = {name: value for name, value in vars(names).items() if name.isupper()}
DOCUMENTATION = Path(__file__).parents[2] / "docs" / "opentelemetry.md"


def known(*packages: str) -> dict[str, str]:
    """The names that the conventions' package has, with the documentation of each."""
    found = {}
    for package in packages:
        path = importlib.import_module(f"opentelemetry.semconv.{package}").__path__
        for module in pkgutil.iter_modules(path):
            loaded = importlib.import_module(f"opentelemetry.semconv.{package}.{module.name}")
            source = Path(loaded.__file__ or "").read_text()
            for name, value in vars(loaded).items():
                if name.isupper() and isinstance(value, str):
                    found[value] = source.partition(f'{name}: Final = "{value}"\n"""')[2].partition('"""')[0]
    return found


def test_the_names_are_those_of_the_conventions() -> None:
    conventions = known("_incubating.attributes", "_incubating.metrics", "attributes", "metrics")
    for name in ALL.values():
        if not name.startswith(OURS):
            assert name in conventions, name
            assert "Deprecated" not in conventions[name], name


def test_what_is_not_said_to_be_in_development_is_stable() -> None:
    """The documentation lists the names that are no part of the stable conventions, with the reason."""
    stable = known("attributes", "metrics")
    unstable = {name for name in ALL.values() if name not in stable and not name.startswith(OURS)}
    text = DOCUMENTATION.read_text()
    _, _, listed = text.partition("## Names that are not stable")
    assert unstable
    for name in unstable:
        assert f"`{name}" in listed, name


def test_the_table_has_every_name() -> None:
    text = DOCUMENTATION.read_text()
    for name in ALL.values():
        assert f"`{name}" in text, name


def test_the_tables_have_no_other_name() -> None:
    tables = "\n".join(line for line in DOCUMENTATION.read_text().splitlines() if line.startswith("|"))
    others = {"sqla_watch.transaction", "sqla_watch.pool.wait", "sqla_watch.evidence.distinct_parents"}
    others |= {"db.client.connections"}  # which is deprecated
    for name in re.findall(r"`((?:db|code|server|error|sqla_watch)\.[a-z_.]*[a-z])", tables):
        assert name in {*ALL.values(), *others}, name


def test_every_attribute_that_is_written_is_one_of_them(shop_url: str, backend: Backend) -> None:
    engine = create_engine(
        url_for(shop_url, "psycopg"), pool_size=1, max_overflow=0, pool_timeout=0.3, pool_recycle=3600
    )
    backend.install(engine, transactions=True, waits=True, rows=True, parameters=True)
    with sqla_watch.scope("GET /orders", kind="request"):
        load_lazily(engine)
        with engine.begin() as connection:
            connection.execute(text("UPDATE customers SET name = name WHERE id = :id"), [{"id": 1}, {"id": 2}])
            with pytest.raises(PoolTimeout):
                engine.connect()
        with engine.connect() as connection, pytest.raises(DBAPIError):
            connection.execute(text("SELECT nothing FROM orders"))
    engine.dispose()
    written = {name for span in backend.spans for name in span.attributes or {}}
    written |= {name for span in backend.spans for event in span.events for name in event.attributes or {}}
    for metric in vars(names).values():
        if isinstance(metric, str):
            written |= {name for point in backend.points(metric) for name in point.attributes}
    one_by_one = {name for name in written if not name.startswith((f"{names.EVIDENCE}.", f"{names.PARAMETER}."))}
    assert one_by_one <= set(ALL.values())
    attributes = {value for name, value in ALL.items() if name not in METRICS} - {names.EVIDENCE, names.PARAMETER}
    # A socket has no port, and none of these findings is about several lines.
    assert attributes - written <= {names.PORT, names.RELATED}


BLOCKS = re.findall(r"```python\n(.*?)```", DOCUMENTATION.read_text(), re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS)
def test_the_examples_run(engine: Engine, backend: Backend, block: str) -> None:
    exec(block, {"sqla_watch": sqla_watch, "engine": engine, "traces": backend.traces, "metrics": backend.metrics})
    assert [watch.engines for watch in sqla_watch.registry.watches] == [[engine]]
    with engine.connect() as connection:
        connection.execute(select(Customer.id)).all()


def test_the_fields_and_their_defaults_are_in_the_table() -> None:
    rows = [line.split("|") for line in DOCUMENTATION.read_text().splitlines() if line.startswith("| `")]
    defaults = {row[1].strip(' `"'): row[2].strip(' `"') for row in rows}
    for field in fields(Telemetry):
        told = {True: "on", False: "off", None: "none"}.get(field.default, str(field.default))  # type: ignore[call-overload]
        assert defaults[field.name] == told, field.name


def test_the_buckets_are_those_of_the_conventions() -> None:
    assert metrics.SECONDS == (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10)
