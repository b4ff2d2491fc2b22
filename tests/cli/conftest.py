"""A folder with programs in it, and two ways to run them: by `python`, and by `sqla-watch run`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]

SHOP = """
    import sys
    from sqlalchemy import ForeignKey, create_engine, select
    from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

    class Base(DeclarativeBase):
        pass

    class Customer(Base):
        __tablename__ = "customers"
        id: Mapped[int] = mapped_column(primary_key=True)
        orders: Mapped[list["Order"]] = relationship()

    class Order(Base):
        __tablename__ = "orders"
        id: Mapped[int] = mapped_column(primary_key=True)
        customer_id: Mapped[int] = mapped_column(ForeignKey("customers.id"))

    engine = create_engine("sqlite:///shop.db")

    def fill():
        Base.metadata.create_all(engine)
        with Session(engine) as session:
            session.add_all([Customer(orders=[Order()]) for _ in range(10)])
            session.commit()

    def count_orders():
        with Session(engine) as session:
            return sum(len(customer.orders) for customer in session.scalars(select(Customer)).all())
"""
"""A module with an N+1 in `count_orders`: 11 statements where two would do."""


class Workshop:
    """A working directory for programs.

    Args:
        folder: The directory.
        compiled: Where Python keeps compiled modules, so that not every program compiles SQLAlchemy again.
    """

    def __init__(self, folder: Path, compiled: Path) -> None:
        self.folder = folder
        self._variables = {
            "PYTHONPATH": str(REPOSITORY),
            "PYTHONPYCACHEPREFIX": str(compiled),
            "PYTHONDONTWRITEBYTECODE": "",
            "PYTHONUNBUFFERED": "",
            "NO_COLOR": "1",
        }

    def write(self, name: str, source: str) -> Path:
        """Write a file of source code."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))
        return path

    def python(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a program as everybody does."""
        return self._start([sys.executable, *arguments], **options)

    def sqla_watch(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run the command."""
        return self._start([sys.executable, "-m", "sqla_watch", *arguments], **options)

    def _start(
        self, command: list[str], *, environment: dict[str, str | None] | None = None, errors: int = subprocess.PIPE
    ) -> subprocess.CompletedProcess[str]:
        variables = {**os.environ, **self._variables, **(environment or {})}
        return subprocess.run(
            command,
            cwd=self.folder,
            env={name: value for name, value in variables.items() if value is not None},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            timeout=60,
            # A shell starts what runs in the background with SIGINT ignored, and children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )


@pytest.fixture(autouse=True)
def no_width_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests, as pytest-xdist does, may have set how wide the terminal is."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture
def workshop(tmp_path: Path, compiled: Path) -> Workshop:
    return Workshop(tmp_path, compiled)


@pytest.fixture
def shop(workshop: Workshop) -> Workshop:
    """A workshop with the module `shop` and its filled database."""
    workshop.write("shop.py", SHOP)
    filled = workshop.python("-c", "import shop; shop.fill()")
    assert filled.returncode == 0, filled.stderr
    return workshop


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """The command in this process: returns exit status, output and errors."""
    from sqla_watch.cli import main

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["sqla-watch", *arguments])
            with pytest.raises(SystemExit) as exit:
                main()
        captured = capsys.readouterr()
        return exit.value.code or 0, captured.out, captured.err

    return call
