"""column-load-loop: columns loaded object by object, with the cause; single refreshes are silent."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, ForeignKey, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, defer, mapped_column, undefer

import sqla_watch
from sqla_watch.demo.models import Customer, Order
from tests.support import found, in_event_loop, line_of, only, place, watched_async_engine

pytestmark = [pytest.mark.usefixtures("watch"), pytest.mark.filterwarnings("ignore::sqla_watch.SqlaWatchWarning")]


def test_a_deferred_column_in_a_loop_is_found_and_the_option_repairs_it(engine: Engine) -> None:
    for query, expected in ((select(Customer), 1), (select(Customer).options(undefer(Customer.notes)), 0)):
        with sqla_watch.scope("deferred") as scope, Session(engine) as session:
            for customer in session.scalars(query):
                customer.notes  # touches notes
        assert len(scope.findings) == expected
        if expected:
            finding = only(scope)
            assert (finding.rule, finding.target) == ("column-load-loop", "Customer.notes")
            assert place(finding) == (__file__, line_of("touches notes"))
            assert finding.evidence["cause"] == "deferred"
            assert finding.evidence["distinct_objects"] == 20
            assert ".options(undefer(Customer.notes))" in finding.suggestion


def test_a_column_that_the_query_deferred_is_deferred_too(engine: Engine) -> None:
    with sqla_watch.scope("defer") as scope, Session(engine) as session:
        for order in session.scalars(select(Order).options(defer(Order.status)).limit(6)):
            order.status
    finding = only(scope)
    assert (finding.target, finding.evidence["cause"]) == ("Order.status", "deferred")


def test_what_a_commit_expired_is_told_as_that(engine: Engine) -> None:
    with sqla_watch.scope("expired") as scope, Session(engine) as session:
        orders = session.scalars(select(Order).limit(6)).all()
        session.commit()
        for order in orders:
            order.status  # reads again
    finding = only(scope)
    assert finding.rule == "column-load-loop"
    assert finding.evidence["cause"] == "expired"
    assert place(finding) == (__file__, line_of("reads again"))
    assert "expire_on_commit=False" in finding.suggestion


def test_objects_refreshed_one_by_one_are_told_as_that(engine: Engine) -> None:
    with sqla_watch.scope("refresh") as scope, Session(engine) as session:
        for order in session.scalars(select(Order).limit(6)).all():
            session.refresh(order)
    assert only(scope).evidence["cause"] == "refresh"


class Base(DeclarativeBase):
    pass


class Employee(Base):
    __tablename__ = "column_load_employees"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "employee"}


class Manager(Employee):
    __tablename__ = "column_load_managers"
    id: Mapped[int] = mapped_column(ForeignKey(Employee.id), primary_key=True)
    bonus: Mapped[int]
    __mapper_args__ = {"polymorphic_identity": "manager"}


def test_a_subclass_whose_columns_were_not_loaded_is_told_as_that(engine: Engine) -> None:
    Base.metadata.create_all(engine)
    try:
        with Session(engine) as session:
            session.add_all(Manager(bonus=number) for number in range(6))
            session.commit()
        with sqla_watch.scope("subclass") as scope, Session(engine) as session:
            for employee in session.scalars(select(Employee)):
                employee.bonus  # type: ignore[attr-defined]
    finally:
        Base.metadata.drop_all(engine)
    finding = only(scope)
    assert (finding.target, finding.evidence["cause"]) == ("Manager.bonus", "subclass")
    assert "selectin_polymorphic(" in finding.suggestion


@in_event_loop
async def test_async_a_deferred_column_in_a_loop_is_found(shop_url: str) -> None:
    def read(session: Session) -> None:
        for customer in session.scalars(select(Customer)):
            customer.notes  # touches them in run_sync

    async with watched_async_engine(shop_url) as engine:
        with sqla_watch.scope("async") as scope:
            async with AsyncSession(engine) as session:
                await session.run_sync(read)
    assert place(only(scope)) == (__file__, line_of("touches them in run_sync"))


def test_a_few_are_fine(engine: Engine) -> None:
    with sqla_watch.scope("few") as scope, Session(engine) as session:
        for customer in session.scalars(select(Customer).limit(4)):
            customer.notes
    assert found(scope) == []


def test_one_object_again_and_again_is_one_object(engine: Engine) -> None:
    with sqla_watch.scope("one") as scope, Session(engine) as session:
        order = session.get_one(Order, 1)
        for _ in range(8):
            session.expire(order)
            order.status
    assert found(scope) == []
