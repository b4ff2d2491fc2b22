"""Time that a suite of 1,000 small database tests takes longer with our plugin, and with those of the peers.

Run it with ``uv run --isolated --group bench python -m benchmarks.pytest_overhead``. Each turn runs the whole suite
once for each contestant, in a new process without any other plugin, in an order that moves on by one from turn to turn;
so what the machine does meanwhile is everybody's. Counted is the processor time of the process, user and system, start
included: that is what a developer and a build server pay. Of each contestant the turn with the least time is compared:
whatever else the machine does only adds to it.

A test is what most are: one fixture with a Session on SQLite in memory, an object added, committed and read again, a
query of three rows, a lazy load: seven statements. SQLite, because a server's answers would be most of the time and all
of the noise. Each plugin runs as its documentation says: watching every test, with a budget where it has one for all
tests, and every test passes. A second bare run shows the noise. Exits with 1 if ours is not cheaper than each peer.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

TESTS = 1_000
FILES = 20
TURNS = 9

ROOT = Path(__file__).parents[1]

CONFTEST = """
import pytest
from sqlalchemy import ForeignKey, StaticPool, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship


class Base(DeclarativeBase):
    pass


class Customer(Base):
    __tablename__ = "customers"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    orders: Mapped[list["Order"]] = relationship(back_populates="customer")


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    customer_id: Mapped[int] = mapped_column(ForeignKey("customers.id"))
    number: Mapped[int]
    customer: Mapped[Customer] = relationship(back_populates="orders")


@pytest.fixture(scope="session")
def engine():
    engine = create_engine("sqlite://", poolclass=StaticPool)
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all(Customer(id=number, name=f"customer {number}") for number in range(1, 11))
        session.commit()
    return engine


@pytest.fixture
def session(engine):
    with Session(engine) as session:
        yield session
        session.rollback()
"""

TEST = """
def test_{number}(session):
    order = Order(customer_id={customer}, number={number})
    session.add(order)
    session.flush()
    session.expire(order)
    assert order.number == {number}
    assert order.customer.id == {customer}
    names = session.scalars(select(Customer.name).order_by(Customer.id).limit(3)).all()
    assert len(names) == 3
    assert session.scalar(select(func.count()).select_from(Customer)) == 10
    order.number = 0
    session.flush()
    assert session.scalar(select(func.max(Order.number)).where(Order.customer_id == {customer})) >= 0
"""


@dataclass(frozen=True)
class Contestant:
    """A plugin, and how it is asked to watch every test."""

    name: str
    options: tuple[str, ...] = ()
    module: str = ""
    """Loaded by ``-p``; empty for none."""
    distribution: str = ""
    is_peer: bool = False
    settings: str = ""
    """Lines of pytest.ini."""


BARE = "bare"
OURS = "sqla_watch, fail with a budget"
CONTESTANTS = (
    Contestant(BARE),
    Contestant("sqla_watch, loaded and not used", (), "sqla_watch.pytest_plugin", "sqla-watch"),
    Contestant("sqla_watch, off", ("--sqla-watch=off",), "sqla_watch.pytest_plugin", "sqla-watch"),
    Contestant("sqla_watch, warn", ("--sqla-watch=warn",), "sqla_watch.pytest_plugin", "sqla-watch"),
    Contestant(
        OURS,
        ("--sqla-watch=fail",),
        "sqla_watch.pytest_plugin",
        "sqla-watch",
        settings="sqla_watch_limits = max_queries=20\n",
    ),
    Contestant(
        "queryspy, strict with a budget",
        ("--queryspy-strict",),
        "queryspy.pytest_plugin",
        "queryspy",
        is_peer=True,
        settings="queryspy_budget = 20\n",
    ),
    Contestant("pytest-queryguard, fail", ("--queryguard-mode=fail",), "", "pytest-queryguard", is_peer=True),
    Contestant(
        "pytest-querycount, with a budget", (), "", "pytest-querycount", is_peer=True, settings="querycount_max = 20\n"
    ),
    Contestant("bare again (noise)"),
)


def plugin_of(contestant: Contestant) -> str:
    """Return the module that pytest loads for a contestant: named here, or its entry point."""
    if contestant.module:
        if find_spec(contestant.module.partition(".")[0]) is None:
            raise metadata.PackageNotFoundError(contestant.distribution)
        if contestant.distribution == "sqla-watch":
            return contestant.module
    points = metadata.distribution(contestant.distribution).entry_points
    (point,) = [point for point in points if point.group == "pytest11"]
    return point.value


def write_suite(folder: Path) -> None:
    """Write the tests into a folder."""
    (folder / "conftest.py").write_text(CONFTEST)
    for file in range(FILES):
        tests = [
            TEST.format(number=number, customer=number % 10 + 1)
            for number in range(file * TESTS // FILES, (file + 1) * TESTS // FILES)
        ]
        head = "from conftest import Customer, Order\nfrom sqlalchemy import func, select\n"
        (folder / f"test_file_{file}.py").write_text(head + "".join(tests))


def run(contestant: Contestant, plugin: str, folder: Path) -> float:
    """Run the suite; the seconds of processor time that it took.

    Raises:
        RuntimeError: It did not pass as it should.
    """
    (folder / "pytest.ini").write_text(f"[pytest]\n{contestant.settings}")
    loaded = ("-p", plugin) if plugin else ()
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        *loaded,
        *contestant.options,
        str(folder),
    ]
    environment = {
        **os.environ,
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTEST_ADDOPTS": "",
        "PYTHONPATH": str(ROOT),
        # Everybody's modules, and the rewritten tests, are compiled once, in the run that is not counted: so it is
        # where nothing has switched that off.
        "PYTHONDONTWRITEBYTECODE": "",
        "PYTHONPYCACHEPREFIX": str(folder / "bytecode"),
        "PYTHONHASHSEED": "0",
    }
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode or f"{TESTS} passed" not in done.stdout:
        raise RuntimeError(f"{contestant.name}: {done.stdout[-2_000:]}{done.stderr[-2_000:]}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(turns: int) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Return seconds of processor time by contestant, one number a turn; and who could not be measured, and why."""
    taken: dict[str, list[float]] = {}
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_suite(folder)
        entered: list[tuple[Contestant, str]] = []
        for contestant in CONTESTANTS:
            try:
                plugin = plugin_of(contestant) if contestant.distribution else ""
                run(contestant, plugin, folder)  # not counted: bytecode is written
            except (metadata.PackageNotFoundError, RuntimeError) as error:
                failed[contestant.name] = str(error)
                continue
            entered.append((contestant, plugin))
            taken[contestant.name] = []
        for turn in range(turns):
            for place in range(len(entered)):
                contestant, plugin = entered[(turn + place) % len(entered)]
                taken[contestant.name].append(run(contestant, plugin, folder))
    return taken, failed


def added_by(taken: dict[str, list[float]], name: str) -> float:
    """Return the seconds that a suite takes longer than a bare one, each by its turn that was disturbed least."""
    return min(taken[name]) - min(taken[BARE])


def version(distribution: str) -> str:
    try:
        return metadata.version(distribution) if distribution else ""
    except metadata.PackageNotFoundError:
        return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--turns", type=int, default=TURNS, help="how often each contestant runs the suite")
    taken, failed = measure(parser.parse_args().turns)
    print(
        f"Python {sys.version.split()[0]}, pytest {version('pytest')}, SQLAlchemy {version('sqlalchemy')}, "
        f"{TESTS} tests, {len(taken[BARE])} turns, processor time\n"
    )
    print("| contestant | least seconds | to bare | added ms a test | median of the ratios in a turn | quartiles |")
    print("|---|---|---|---|---|---|")
    distributions = {each.name: each.distribution for each in CONTESTANTS}
    for name, values in taken.items():
        ratios = [value / base for value, base in zip(values, taken[BARE], strict=True)]
        low, median, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        shown = f"{name} {version(distributions[name])}".rstrip()
        least = min(values)
        added = added_by(taken, name) / TESTS * 1e3
        print(
            f"| {shown} | {least:.2f} | {least / min(taken[BARE]):.3f} | {added:+.3f} | {median:.3f} "
            f"| {low:.3f} … {high:.3f} |"
        )
    print()
    for name, why in failed.items():
        print(f"{name} could not be measured: {why}")
    peers = [each.name for each in CONTESTANTS if each.is_peer and each.name in taken]
    for ours in ("sqla_watch, warn", OURS):
        for peer in peers if ours in taken else ():
            print(
                f"added by {ours} / added by {peer}: {added_by(taken, ours) / added_by(taken, peer):.2f} (bar: below 1)"
            )
    cheapest = OURS in taken and bool(peers) and all(added_by(taken, OURS) < added_by(taken, peer) for peer in peers)
    return 0 if cheapest and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
