"""Test runs inside of tests: a project with a small shop on SQLite, and pytest with the plugin and chosen others."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import greenlet  # noqa: F401  what is in C and loaded in a run in this process would be loaded a second time
import pytest

from sqla_watch.callsite import _resolve

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

SHOP = """
from sqlalchemy import ForeignKey, create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship
from sqlalchemy.pool import StaticPool


class Base(DeclarativeBase):
    pass


class Customer(Base):
    __tablename__ = "customers"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    customer_id: Mapped[int] = mapped_column(ForeignKey("customers.id"))
    customer: Mapped[Customer] = relationship()


def make_engine():
    return create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})


def fill(engine):
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all([Order(customer=Customer(name=f"Customer {number}")) for number in range(5)])
        session.commit()


def names(session):
    return [order.customer.name for order in session.scalars(select(Order))]


def count(engine, times=1):
    with engine.connect() as connection:
        for number in range(times):
            connection.exec_driver_sql("SELECT count(*) FROM orders").all()
"""

CONFTEST = """
import pytest
from sqlalchemy.orm import Session
from shop import fill, make_engine


@pytest.fixture
def engine():
    engine = make_engine()
    fill(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def session(engine):
    with Session(engine) as session:
        yield session
"""


class Project:
    """A project whose tests are run."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self.pytester = pytester
        self.path = pytester.path
        self.configure("")

    def configure(self, lines: str) -> None:
        """Write pytest's configuration: lines of an ini file."""
        self.pytester.makeini("[pytest]\npythonpath = .\n" + textwrap.dedent(lines))

    def write(self, name: str, source: str) -> None:
        """Write a file."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source), encoding="utf-8")

    def run(self, source: str = "", *arguments: str, plugins: tuple[str, ...] = (), apart: bool = False) -> Any:
        """Run the tests of `source`, or of the files that are there; `apart` in a process of their own."""
        if source:
            self.write("test_shop.py", source)
        loaded = [word for name in ("sqla_watch.pytest_plugin", *plugins) for word in ("-p", name)]
        run: Callable[..., Any] = (
            self.pytester.runpytest_subprocess if apart or "xdist" in plugins else self.pytester.runpytest_inprocess
        )
        return run(*loaded, "-p", "no:cacheprovider", *arguments)


@pytest.fixture(autouse=True)
def no_bytecode(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it a file that is changed within the second, and stays as long as it was, is taken from its bytecode."""
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project with the shop, run with the plugin and no other but those which are named."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [ROOT, os.environ.get("PYTHONPATH")])))
    _resolve.cache_clear()  # the same shop is in another folder each time
    pytester.syspathinsert()
    made = Project(pytester)
    made.write("shop.py", SHOP)
    made.write("conftest.py", CONFTEST)
    return made
