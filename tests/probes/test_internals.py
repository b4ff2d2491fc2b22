"""The private names of SQLAlchemy that the probes rely on are there on this line; without them little is lost."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import pytest
from sqlalchemy import Engine, NullPool, create_engine, select
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session, immediateload

import sqla_watch
from sqla_watch.demo.models import Customer, Order
from sqla_watch.probes import dialect, internals, rows
from sqla_watch.probes.internals import _counter_of, _Orm

pytestmark = pytest.mark.filterwarnings("ignore::sqla_watch.SqlaWatchWarning")


def test_every_name_is_there() -> None:
    orm = _Orm()
    first = orm.next_runid
    orm.look()
    assert orm.compile_state is not None
    assert set(orm.asking_codes.values()) == {"immediate", "delete"}
    assert orm.next_runid is not first
    assert internals.DEFAULT_FETCH is not None
    for url in ("postgresql+psycopg://", "postgresql+asyncpg://"):
        pool = (create_async_engine if "asyncpg" in url else create_engine)(url).pool
        assert internals.stored_records(pool) == []
    assert internals.stored_records(create_engine("sqlite://", poolclass=NullPool).pool) is None
    assert type(orm.next_runid.__self__).__name__ == "count"  # type: ignore[attr-defined]


def test_the_number_of_a_load_is_between_those_of_the_objects_before_and_after(engine: Engine) -> None:
    orm = _Orm()
    orm.look()
    with Session(engine) as session:
        before = session.scalars(select(Customer).limit(1)).one()
        between = orm.next_runid()
        after = session.scalars(select(Order).limit(1)).one()
    assert before._sa_instance_state.runid < between < after._sa_instance_state.runid


def test_without_the_orm_it_is_not_imported() -> None:
    code = """
import sys
import sqlalchemy, sqla_watch
engine = sqlalchemy.create_engine("sqlite://")
with sqla_watch.install(engine), sqla_watch.scope("core") as scope, engine.connect() as connection:
    connection.execute(sqlalchemy.select(sqlalchemy.literal(1))).all()
assert scope.statements == 1 and scope.rows == 1
extras = ("sqlalchemy.orm", "click", "rich", "pytest", "opentelemetry", "jinja2")
print([name for name in extras if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_without_the_counter_the_function_serves() -> None:
    calls = []

    def new_runid() -> int:
        calls.append(1)
        return len(calls)

    counter = _counter_of(new_runid)
    assert counter is not None
    assert (counter(), counter()) == (1, 2)
    assert _counter_of(None) is None


def test_without_the_orms_names_statements_are_still_counted(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("context", "loading", "strategies"):
        monkeypatch.setitem(sys.modules, f"sqlalchemy.orm.{name}", ModuleType(name))
    monkeypatch.setattr(internals, "orm", _Orm())
    monkeypatch.setattr(dialect, "orm", internals.orm)
    sqla_watch.install(engine)
    fresh = select(Order).where(Order.id < 4).order_by(Order.id.desc())
    with sqla_watch.scope("blind") as scope, Session(engine) as session:
        for order in session.scalars(fresh):
            order.customer.name
    assert scope.statements == 4


def test_without_the_default_fetch_rows_of_such_cursors_are_not_counted(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (rows, dialect):
        monkeypatch.setattr(module, "DEFAULT_FETCH", None)
    sqla_watch.install(engine)
    with sqla_watch.scope("stream") as scope, engine.connect() as connection:
        streamed = connection.execution_options(stream_results=True).execute(select(Order.id))
        assert len(streamed.all()) == 100
    assert (scope.statements, scope.rows) == (1, 0)


def test_an_immediate_load_is_told_from_a_lazy_one(engine: Engine) -> None:
    sqla_watch.install(engine)
    with sqla_watch.scope("immediate") as scope, Session(engine) as session:
        session.scalars(select(Customer).options(immediateload(Customer.orders))).all()
        causes = {(group.kind.name, group.cause) for group in scope.record.groups}
    assert causes == {("QUERY", ""), ("LAZY", "immediate")}
