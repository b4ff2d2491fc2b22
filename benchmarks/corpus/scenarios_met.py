"""False alarms that were met in real applications: each was one once, and is to stay silent."""

from __future__ import annotations

import asyncio
import contextlib
import time

from sqlalchemy import Column, MetaData, String, Table, func, literal_column, select, text
from sqlalchemy.orm import Session, scoped_session, selectinload, sessionmaker

from benchmarks.corpus import Application, scenario
from benchmarks.corpus.models import Entry, Order, Ticket


@scenario(tempts="flush-storm, row-by-row-write", writes=True)
def worker_whose_scoped_session_is_never_removed(app: Application) -> None:
    """Optuna, Airflow: one Session object of the thread serves many units of work, each with one flush and commit."""
    registry = scoped_session(sessionmaker(app.engine))
    for number in range(15):
        session = registry()
        entry = Entry(name=f"unit {number}")
        session.add(entry)
        session.flush()
        entry.value = entry.id
        session.commit()
        session.close()


@scenario(tempts="flush-storm", writes=True)
def a_query_and_a_commit_for_each_job(app: Application) -> None:
    """Each job adds a row, looks up what it needs, and commits."""
    with Session(app.engine) as session:
        for number in range(12):
            session.add(Entry(name=f"job {number}"))
            session.scalar(select(func.count()).select_from(Ticket))
            session.commit()


@scenario(tempts="blocking-call")
async def a_loop_of_its_own_in_a_worker_thread(app: Application) -> int:
    """Dagster: a worker thread runs an event loop for itself, which keeps nobody else waiting."""

    async def work() -> int:
        with Session(app.engine) as session:
            return len(session.scalars(select(Ticket.id).limit(5)).all())

    return await asyncio.to_thread(lambda: asyncio.run(work()))


@scenario(tempts="row-by-row-write, uncached-statement", writes=True)
def a_migration_tool_moves_its_version(app: Application) -> None:
    """Alembic: one row, whose key is written anew with each migration, as literals."""
    version = Table("alembic_version", MetaData(), Column("version_num", String(32), nullable=False))
    with app.engine.connect() as connection:
        version.create(connection)
        connection.execute(version.insert().values(version_num=literal_column("'v00'")))
        for number in range(1, 20):
            connection.execute(
                version.update()
                .values(version_num=literal_column(f"'v{number:02}'"))
                .where(version.c.version_num == literal_column(f"'v{number - 1:02}'"))
            )
        version.drop(connection)
        connection.commit()


@scenario(tempts="session-scope", writes=True)
def a_session_in_autocommit(app: Application) -> None:
    """What is flushed is committed at once: closing the session loses nothing."""
    with Session(app.engine.execution_options(isolation_level="AUTOCOMMIT")) as session:
        session.add(Entry(name="at once"))
        session.flush()


@scenario(tempts="session-scope")
def a_temporary_table_to_join_with(app: Application) -> int:
    """Writes into a temporary table only, which is gone with the transaction."""
    with Session(app.engine) as session:
        session.execute(text("CREATE TEMPORARY TABLE chosen (id integer) ON COMMIT DROP"))
        session.execute(text("INSERT INTO chosen SELECT generate_series(1, 10)"))
        return len(session.execute(text("SELECT orders.id FROM chosen JOIN orders USING (id)")).all())


@scenario(tempts="uncached-statement")
def notifications_with_their_payload(app: Application) -> None:
    """NOTIFY takes no parameters."""
    with app.engine.begin() as connection:
        for number in range(12):
            connection.execute(text(f"NOTIFY jobs, 'job {number}'"))


@scenario(tempts="unread-rows")
def an_exception_leaves_the_loop(app: Application) -> None:
    """A row that cannot be: the exception leaves the loop over a result, and the connection's block."""
    with contextlib.suppress(ValueError), app.engine.connect() as connection:
        for row in connection.execute(select(Ticket.id, Ticket.title)):
            if row.id == 3:
                raise ValueError(row.title)


@scenario(tempts="row-by-row-write, column-load-loop", writes=True)
def a_mail_for_each_row(app: Application) -> None:
    """What went out has to be written down before the next one goes out."""
    with Session(app.engine, expire_on_commit=False) as session:
        for ticket in session.scalars(select(Ticket).order_by(Ticket.id).limit(12)).all():
            time.sleep(0.05)  # sends a mail
            ticket.status = "mailed"
            session.commit()


@scenario(tempts="unused-eager-load", rules={"unused-eager-load": "warn"})
def items_for_orders_that_were_there_before(app: Application) -> int:
    """An option brings items also to orders that an earlier query had loaded; they are read on these."""
    with Session(app.engine) as session:
        before = session.scalars(select(Order).where(Order.id <= 10)).all()
        after = session.scalars(select(Order).where(Order.id <= 20).options(selectinload(Order.items))).all()
        return sum(len(order.items) for order in before) + len([order.status for order in after])
