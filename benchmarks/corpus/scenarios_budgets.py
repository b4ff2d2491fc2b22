"""Blocks and jobs with a budget: what exceeds it, and what stays within."""

from __future__ import annotations

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

import sqla_watch
from benchmarks.corpus import Application, scenario
from benchmarks.corpus.models import Customer, Order, Product
from sqla_watch import Budget


@scenario()
def a_front_page_with_one_number_too_many(app: Application) -> list[int | None]:
    """Three counts, where two were agreed on; each is one statement, and the first one took longest."""
    with sqla_watch.scope("front page", budget=Budget(max_statements=2)), Session(app.engine) as session:
        return [
            session.scalar(text("SELECT count(*), pg_sleep(0.05) FROM products")),  # finds: over-budget
            session.scalar(select(func.count()).select_from(Order)),
            session.scalar(select(func.count()).select_from(Customer)),
        ]


@scenario()
def an_export_of_more_rows_than_were_agreed_on(app: Application) -> int:
    with sqla_watch.scope("export", budget=Budget(max_rows=5)), Session(app.engine) as session:
        return len(session.scalars(select(Product.id).order_by(Product.id).limit(6)).all())  # finds: over-budget


@scenario(tempts="over-budget")
def an_export_of_exactly_what_was_agreed_on(app: Application) -> int:
    with (
        sqla_watch.scope("export", budget=Budget(max_rows=5, max_statements=1)),
        Session(app.engine) as session,
    ):
        return len(session.scalars(select(Product.id).order_by(Product.id).limit(5)).all())


@scenario(tempts="over-budget")
def savepoints_and_settings_are_no_statements_of_the_application(app: Application) -> int:
    """SAVEPOINT, RELEASE and SET are not counted: one statement was agreed on, one is sent."""
    with sqla_watch.scope("job", budget=Budget(max_statements=1)), Session(app.engine) as session:
        session.execute(text("SET LOCAL statement_timeout = '5s'"))
        with session.begin_nested():
            return session.scalar(select(func.count()).select_from(Product)) or 0


@scenario(tempts="over-budget")
def what_is_done_after_the_block_is_not_in_its_budget(app: Application) -> int:
    with Session(app.engine) as session:
        with sqla_watch.scope("head", budget=Budget(max_statements=1)):
            found = session.scalar(select(func.count()).select_from(Product)) or 0
        found += session.scalar(select(func.count()).select_from(Customer)) or 0
        found += session.scalar(select(func.count()).select_from(Order)) or 0
    return found
