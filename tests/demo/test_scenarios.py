"""The demo's mistakes on PostgreSQL: each is found where it is, and its repair is not found fault with."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, create_engine, inspect, make_url, text

from sqla_watch.cli.database import open_shop
from sqla_watch.cli.demo import Pair, play
from sqla_watch.demo import scenarios
from sqla_watch.demo.models import Base
from sqla_watch.demo.scenarios import SCENARIOS
from sqla_watch.detectors import RULES


@pytest.fixture(scope="module")
def own_database(database_url: str) -> Iterator[str]:
    """A database of the demo's own: other tests have tables of the same names."""
    url = make_url(database_url).set(drivername="postgresql+psycopg")
    server = create_engine(url, isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(text("DROP DATABASE IF EXISTS sqla_watch_demo"))
        connection.execute(text("CREATE DATABASE sqla_watch_demo"))
    yield url.set(database="sqla_watch_demo").render_as_string(hide_password=False)
    with server.connect() as connection:
        connection.execute(text("DROP DATABASE sqla_watch_demo"))
    server.dispose()


def rows_of(engine: Engine) -> dict[str, str]:
    """A digest of each of the shop's tables."""
    with engine.connect() as connection:
        return {
            name: connection.execute(
                text(f"SELECT md5(string_agg(t::text, '' ORDER BY t::text)) FROM {name} t")
            ).scalar_one()
            for name in Base.metadata.tables
        }


@pytest.fixture(scope="module")
def pairs(own_database: str) -> dict[str, Pair]:
    """The whole demo, run once."""
    with warnings.catch_warnings():  # the demo collects garbage: what other tests have left open is not its own
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
    with open_shop(own_database) as shop:
        before = rows_of(shop.engine)
        played = play(shop)
        assert rows_of(shop.engine) == before  # what a scenario writes it takes back
    engine = create_engine(own_database)
    assert inspect(engine).get_table_names() == []
    engine.dispose()
    return {pair.scenario.name: pair for pair in played}


# A statement for each collection instead of one that joins them all; and an UPDATE that was never sent.
MORE_STATEMENTS = {"cartesian-join", "session-scope"}


@pytest.mark.parametrize("name", [scenario.name for scenario in SCENARIOS])
def test_the_mistake_is_found_where_it_is_and_the_repair_is_silent(pairs: dict[str, Pair], name: str) -> None:
    pair = pairs[name]
    assert list(pair.complaints()) == []
    for finding in pair.mistake.findings:
        assert finding.location is not None
        assert finding.location.file == scenarios.__file__
    if pair.scenario.rule not in MORE_STATEMENTS:
        assert pair.repair.statements <= pair.mistake.statements
    assert pair.repair.rows <= pair.mistake.rows


# A demo in which statements fail would frighten; the rule's page has an example, and its tests have real deadlocks.
WITHOUT_A_SCENARIO = {"database-error"}


def test_every_rule_has_a_scenario() -> None:
    assert {scenario.rule for scenario in SCENARIOS} == set(RULES) - WITHOUT_A_SCENARIO


def test_the_suggestions_are_what_the_repairs_do(pairs: dict[str, Pair]) -> None:
    nested = {finding.target: finding.suggestion for finding in pairs["n-plus-one, three levels"].mistake.findings}
    assert (
        ".options(selectinload(Customer.orders).selectinload(Order.items).joinedload(Item.product))"
        in (nested["Item.product"])
    )
    (asynchronous,) = pairs["n-plus-one, asyncio"].mistake.findings
    assert ".options(joinedload(Order.customer))" in asynchronous.suggestion
    (loop,) = pairs["query-in-loop, session.get"].mistake.findings
    assert "customers.c.id.in_(values)" in loop.suggestion
    (joined,) = pairs["cartesian-join, orders and items"].mistake.findings
    assert "selectinload(Customer.orders), selectinload(Order.items)" in joined.suggestion
    (missing,) = pairs["async-lazy-load, items"].mistake.findings
    assert ".options(selectinload(Order.items))" in missing.suggestion
    (unused,) = pairs["unused-eager-load, order list"].mistake.findings
    assert unused.target == "Order.items"
    (wide,) = pairs["wide-rows, quantities"].mistake.findings
    assert "select(Item.quantity)" in wide.suggestion
    (fanout,) = pairs["pool-fanout, parcels"].mistake.findings
    assert "asyncio.Semaphore(2)" in fanout.suggestion


@pytest.mark.parametrize("name", ["idle-in-transaction, payment", "connection-held, upload"])
def test_what_was_done_meanwhile_is_named(pairs: dict[str, Pair], name: str) -> None:
    (finding,) = pairs[name].mistake.findings
    (slow,) = [related for related in finding.related if related.role == "meanwhile in time.sleep"]
    assert slow.location.function in ("charge", "read_upload")
    assert f"meanwhile in time.sleep at scenarios.py:{slow.location.line}" in finding.message


def test_the_first_of_two_connections_is_named(pairs: dict[str, Pair]) -> None:
    (finding,) = pairs["nested-checkout, helper"].mistake.findings
    assert [related.location.function for related in finding.related] == ["nested_checkout_mistake"]


def test_the_session_that_nobody_closed_is_told_from_one_in_use(pairs: dict[str, Pair]) -> None:
    (finding,) = pairs["pool-timeout, forgotten session"].mistake.findings
    assert finding.evidence["holders_left"] == 1
    assert "had been taken by functions that are over" in finding.suggestion
