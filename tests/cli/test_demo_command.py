"""`sqla-watch demo` on a database of the user's: what it shows, what it refuses, what it leaves behind."""

from __future__ import annotations

import base64
import json
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from sqlalchemy import create_engine, inspect, text

from sqla_watch.cli import database, demo
from sqla_watch.demo import scenarios
from sqla_watch.demo.scenarios import SCENARIOS, Scenario
from tests.opentelemetry.receiver import Receiver


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path / 'mine.db'}"


def tables(url):
    engine = create_engine(url)
    try:
        return inspect(engine).get_table_names()
    finally:
        engine.dispose()


def execute(url, statement):
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text(statement))
    engine.dispose()


@pytest.fixture
def one_mistake(monkeypatch):
    """The demo with a single scenario, where it is not about the scenarios."""
    monkeypatch.setattr(demo, "SCENARIOS", SCENARIOS[:1])


def test_on_sqlite_in_memory_every_mistake_and_no_repair_is_found(command, tmp_path, monkeypatch):
    monkeypatch.setattr(scenarios, "PRIZE", 2_500)
    status, output, errors = command("demo", "--url", "sqlite://", "--json", str(tmp_path / "demo.json"))
    assert status == 0, errors
    findings, _, table = output.partition("mistake → repair")
    assert findings.splitlines()[0].startswith("30 mistakes, each with its repair, on SQLite 3.")
    left_out = [scenario for scenario in SCENARIOS if scenario.not_on_sqlite]
    for scenario in left_out:
        assert f"\n{scenario.name}: left out, {scenario.not_on_sqlite}.\n" in table
    played = [scenario for scenario in SCENARIOS if scenario not in left_out]
    for scenario in played:
        assert f"[{scenario.rule}]" in findings
        assert f"\n{scenario.name} " in table
    assert re.search(r"\nn-plus-one, one level +101 → 2 +1,100 → 1,100  ", table)
    assert table.endswith("Each mistake was found, and no repair was found fault with.\n")
    blocks = [block for block in findings.split("\n\n") if "statement" in block.partition("\n")[0]]
    assert all(len(block.splitlines()) <= 6 for block in blocks)

    report = json.loads((tmp_path / "demo.json").read_text(encoding="utf-8"))
    scopes = {scope["name"]: scope for scope in report["scopes"]}
    assert len(report["scenarios"]) == len(played)
    for scenario in report["scenarios"]:
        assert {finding["rule"] for finding in scopes[scenario["mistake"]]["findings"]} == {scenario["rule"]}
        assert scopes[scenario["repair"]]["findings"] == []


def test_its_tables_are_gone_afterwards_and_others_are_not(command, url, one_mistake):
    execute(url, "CREATE TABLE invoices (id INTEGER)")
    status, output, errors = command("demo", "--url", url)
    assert (status, errors) == (0, "Filling a small shop: 1,000 customers, 10,000 orders, 40,000 items …\n")
    assert output.startswith("1 mistake, each with its repair, on SQLite 3.")
    assert tables(url) == ["invoices"]


def test_tables_of_the_users_own_are_refused_unless_they_may_be_replaced(command, url, one_mistake):
    execute(url, "CREATE TABLE orders (id INTEGER)")
    execute(url, "CREATE TABLE rates (id INTEGER)")
    status, output, errors = command("demo", "--url", url)
    assert (status, output) == (2, "")
    assert errors == (
        f"Error: {url} has tables which the demo would replace: orders, rates; name another database, or drop them "
        "with --force\n"
    )
    assert tables(url) == ["orders", "rates"]
    assert command("demo", "--url", url, "--force")[0] == 0
    assert tables(url) == []


def test_its_traces_and_metrics_go_to_a_receiver(command, url, one_mistake):
    with Receiver() as receiver:
        status, _, errors = command("demo", "--url", url, "--otlp", receiver.url)
    assert status == 0, errors
    by_name = {span.name: span for span in receiver.spans}
    mistake, finding = by_name["n-plus-one, one level: mistake"], by_name["sqla_watch.n_plus_one"]
    assert finding.parent_span_id == mistake.span_id
    assert [event.name for event in mistake.events] == ["sqla_watch.n_plus_one"]
    assert not by_name["n-plus-one, one level: repair"].events
    assert receiver.latest_metrics["sqla_watch.findings"].sum.data_points[0].as_int == 1


@pytest.mark.parametrize(
    "address",
    [
        "localhost:4318",
        "ftp://localhost:4318",
        "http://",
        "http://localhost:port",
        "http://localhost:99999",
        "http://[::1",
        "http://local host:4318",
        "http://localhost:4318?key=secret",
        "https://user:secret@:4318",
        "https://user:sec/ret@localhost:4318",
        "user:secret@localhost:4318",
    ],
)
def test_an_address_that_is_none_is_refused_before_anything_runs(command, url, address):
    status, output, errors = command("demo", "--url", url, "--otlp", address)
    assert (status, output) == (2, "")
    assert "is no address for OTLP over HTTP; one reads like http://localhost:4318" in errors
    assert "sec" not in errors


def test_where_nobody_takes_it_nothing_runs(command, url):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        status, output, errors = command("demo", "--url", url, "--otlp", f"http://user:secret@{address}")
    assert (status, output) == (2, "")
    assert f"nobody takes OTLP over HTTP at http://{address}/v1/traces: Connection refused" in errors
    assert "secret" not in errors


def test_what_answers_something_else_is_named(command, url):
    class Refusing(BaseHTTPRequestHandler):
        def do_POST(self):
            self.send_error(401)

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        status, _, errors = command("demo", "--url", url, "--otlp", f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
        thread.join()
    assert status == 2
    assert "the answer is 401 Unauthorized" in errors


@pytest.mark.parametrize("path", ["/otlp", "/otlp/", "/otlp/v1/traces"])
def test_a_path_and_a_password_are_used(command, url, one_mistake, path):
    with Receiver() as receiver:
        address = receiver.url.replace("//", "//user:p%40ss@") + path
        status, output, errors = command("demo", "--url", url, "--otlp", address)
    assert status == 0, errors
    assert receiver.paths == {"/otlp/v1/traces", "/otlp/v1/metrics"}
    assert receiver.authorizations == {"Basic " + base64.b64encode(b"user:p@ss").decode()}
    assert receiver.spans
    assert "p@ss" not in output + errors
    assert "p%40ss" not in output + errors


def test_what_a_demo_that_was_killed_has_left_is_its_own(command, url, one_mistake, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(database, "_drop", lambda engine: None)
        assert command("demo", "--url", url)[0] == 0
    assert "orders" in tables(url)
    assert command("demo", "--url", url)[0] == 0
    assert tables(url) == []


def test_tables_are_gone_also_where_the_demo_breaks_off(command, url, monkeypatch):
    def mistake(shop):
        with shop.engine.connect() as connection:
            connection.execute(text("SELECT * FROM nowhere"))

    monkeypatch.setattr(demo, "SCENARIOS", [Scenario("n-plus-one", "broken", mistake, mistake)])
    status, _, errors = command("demo", "--url", url)
    assert status == 1
    assert errors.endswith("\nError: the demo broke off: no such table: nowhere\n")
    assert tables(url) == []


def test_a_demo_that_does_not_find_what_it_should_says_so(command, url, monkeypatch):
    first, other = SCENARIOS[0], SCENARIOS[4]
    wrong = [
        Scenario(first.rule, "twice wrong", first.mistake, first.mistake),
        Scenario(first.rule, "never wrong", other.repair, first.repair),
    ]
    monkeypatch.setattr(demo, "SCENARIOS", wrong)
    status, output, errors = command("demo", "--url", url)
    assert status == 1
    assert "Each mistake was found" not in output
    assert errors.splitlines()[1:] == [
        "Error: n-plus-one, twice wrong: repair: expected nothing, but found 1 of n-plus-one",
        "Error: n-plus-one, never wrong: mistake: expected 1 of n-plus-one, but found nothing",
        "Error: n-plus-one, never wrong: mistake and repair give different answers",
    ]


def test_without_a_driver_for_asyncio_that_scenario_is_left_out(command, url, monkeypatch):
    monkeypatch.setattr(demo, "SCENARIOS", [SCENARIOS[0], SCENARIOS[2]])
    monkeypatch.setitem(__import__("sys").modules, "aiosqlite", None)
    status, output, _ = command("demo", "--url", url)
    assert status == 0
    assert "n-plus-one, asyncio: left out, it needs greenlet and a driver for asyncio." in output


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("shop", "'shop' is no database URL; one reads like postgresql+psycopg://user@host/database"),
        ("user:secret@host/shop?password=secret", "'***@host/shop' is no database URL; "),
        ("mysql://user:secret@host/shop", "the demo runs on PostgreSQL and SQLite, not on 'mysql'"),
        (
            "postgresql+psycopg://user:secret@127.0.0.1:1/shop?password=secret",
            "cannot use postgresql+psycopg://user:***@127.0.0.1:1/shop?password=***: connection failed: ",
        ),
        ("postgresql+asyncpg://user:secret@127.0.0.1:1/shop", "cannot use postgresql+psycopg://user:***@127.0.0.1:1"),
        ("postgresql+pg8000://user:secret@host/shop", "the driver pg8000 of postgresql+pg8000://user:***@host/shop is"),
        ("sqlite:////nowhere/shop.db", "cannot use sqlite:////nowhere/shop.db: unable to open database file"),
        ("sqlite:///shop.db?timeout=soon", "cannot use sqlite:///shop.db?timeout=soon: "),
    ],
)
def test_a_database_that_cannot_be_used_is_named_in_one_line_without_its_password(command, url, says):
    status, output, errors = command("demo", "--url", url)
    assert (status, output) == (2, "")
    assert errors.startswith(f"Error: {says}")
    assert errors.count("\n") == 1
    assert "secret" not in errors
