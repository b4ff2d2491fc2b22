"""The benchmark of what sqla_watch costs: what it compares with what, and that its workloads run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, make_url, text

import sqla_watch
from benchmarks import bars, instructions
from benchmarks.contestants import AGAIN, CONTESTANTS, DEVELOPMENT, PAIR, PRODUCTION, Contestant
from benchmarks.footprint import CASES, Footprint, Kept
from benchmarks.measured import Measured
from benchmarks.workloads import ON_SQLITE, SQLITE, WORKLOADS, driver_of, fill

TABLE = {"core: bare": 100_000, f"core: {PRODUCTION}": 10_000}


@pytest.mark.parametrize("name", ON_SQLITE)
def test_each_workload_runs(name: str) -> None:
    workload = WORKLOADS[name](Contestant(), SQLITE)
    workload.block()
    workload.close()


@pytest.fixture(scope="module")
def workloads_url(database_url: str) -> Iterator[str]:
    """A database of their own: the shop of the other tests has tables of the same names."""
    server = make_url(database_url).set(drivername="postgresql+psycopg")
    url = server.set(database="workloads")
    outside = create_engine(server, isolation_level="AUTOCOMMIT")
    with outside.connect() as connection:
        connection.execute(text("DROP DATABASE IF EXISTS workloads WITH (FORCE)"))
        connection.execute(text("CREATE DATABASE workloads"))
    engine = create_engine(url)
    fill(engine)
    engine.dispose()
    yield url.render_as_string(hide_password=False)
    with outside.connect() as connection:
        connection.execute(text("DROP DATABASE workloads WITH (FORCE)"))
    outside.dispose()


@pytest.mark.parametrize("name", [name for name in WORKLOADS if driver_of(name)])
def test_each_workload_runs_on_the_server(name: str, workloads_url: str) -> None:
    driver = driver_of(name)
    workload = WORKLOADS[name](Contestant(), workloads_url.replace("+psycopg:", f"+{driver}:"))
    workload.block()
    workload.close()


def test_development_finds_the_lazy_loads_and_tells() -> None:
    contestant = CONTESTANTS[DEVELOPMENT]()
    contestant.prepare()
    workload = WORKLOADS["lazy"](contestant, SQLITE)
    with pytest.warns(sqla_watch.NPlusOneWarning, match=r"Order\.customer was loaded lazily for 100 Order objects"):
        workload.block()
    workload.close()


def test_what_takes_more_instructions_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    grown = instructions.compare({"core: bare": 100_000, f"core: {PRODUCTION}": 10_600}, TABLE)
    assert grown == [f"core: {PRODUCTION}: +10,600 instructions instead of +10,000, +6.0%"]
    assert "+6.0%" in capsys.readouterr().out


def test_what_is_within_the_margin_is_not() -> None:
    assert not instructions.compare({"core: bare": 100_000, f"core: {PRODUCTION}": 10_499}, TABLE)


def test_another_build_of_python_is_taken_in_proportion(capsys: pytest.CaptureFixture[str]) -> None:
    assert not instructions.compare({"core: bare": 200_000, f"core: {PRODUCTION}": 20_500}, TABLE)
    assert "The table is taken times 2.000" in capsys.readouterr().out
    assert instructions.compare({"core: bare": 50_000, f"core: {PRODUCTION}": 6_000}, TABLE)


def test_a_workload_that_is_not_in_the_table_is_named() -> None:
    assert instructions.compare({"core: bare": 100_000, f"lazy: {PRODUCTION}": 1}, TABLE)


def test_without_valgrind_it_says_that_nothing_was_compared(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(instructions.shutil, "which", lambda name: None)
    monkeypatch.setattr(instructions, "TABLE", tmp_path / "instructions.json")
    instructions.TABLE.write_text(json.dumps({instructions.version(): {"written on": "", "added": {}}}))
    assert instructions.main([]) == 0
    assert capsys.readouterr().out == ("Nothing was compared: valgrind is not installed (apt-get install valgrind)\n")
    assert instructions.main(["--update"]) == 1


def test_what_the_type_cache_misses_is_left_out(tmp_path: Path) -> None:
    first, second = tmp_path / "out.1", tmp_path / "out.2"
    first.write_text("fn=(1) _PyType_Lookup\n0 5\ncfn=(2) find_name_in_mro\ncalls=1 0 \n0 40\ntotals: 145\n")
    second.write_text(
        "fn=(3) other\ncfn=(1)\ncalls=1 0 \n0 70\n\nfn=(1)\n0 5\ncfn=(2)\ncalls=2 0 \n0 30\ntotals: 200\n"
    )
    assert instructions._without_cache_misses([first, second]) == [105, 170]


def _measured(*added: float) -> Measured:
    return Measured(list(added), list(added), list(added), list(added), [1.0] * len(added))


def test_a_bar_is_met_or_missed_with_its_figure() -> None:
    results = {
        "transaction": {PAIR: _measured(20, 20, 20), PRODUCTION: _measured(9, 9, 12)},
        "pg-request-5": {PRODUCTION: _measured(40, 55, 60)},
        "fetch": {AGAIN: _measured(-30, 10, 20), PRODUCTION: _measured(31, 31, 31)},
    }
    judged = {
        each.workload: (each.figure, each.met) for each in bars.judge(results, {"core": {PRODUCTION: 18_000}}, None)
    }
    assert judged == {
        "transaction": ("+9.00 µs, 45%", True),
        "pg-request-5": ("+11.00 µs", False),
        "fetch": ("+31 µs", False),
        "core": ("+18,000", False),
    }


def test_memory_closing_and_import_have_bars() -> None:
    nothing = {case: Kept(100_000, 9_000_000, 500) for case in CASES}
    found = Footprint(nothing, 5_000, 100_000, 0.1, 1.9, 0.2, 20.0, 24.0, 30.0, [])
    assert all(each.met for each in bars.judge({}, {}, found))
    leaking = Footprint(
        {**nothing, "outside": Kept(100_000, 0, 10_500)}, 5_000, 100_000, 0.1, 2.1, 0.2, 25.1, 27.0, 30.0, ["rich"]
    )
    missed = [each.workload for each in bars.judge({}, {}, leaking) if not each.met]
    assert missed == ["memory", "closing", "import", "import"]


def test_the_names_of_contestants_are_told_apart_from_workloads() -> None:
    assert not any(":" in name for name in (*CONTESTANTS, *WORKLOADS))  # `benchmarks.worker count` takes both in one
