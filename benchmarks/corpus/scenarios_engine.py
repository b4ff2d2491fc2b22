"""Errors of the database, settings of engines, and statements of PostgreSQL that look like mistakes and are none."""

from __future__ import annotations

import contextvars
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import event, func, insert, inspect, select, text, update
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from benchmarks.corpus import Application, scenario
from benchmarks.corpus.models import Account, Customer, Entry, Event, Order, Tag, Ticket


def in_thread(function: Callable[..., Any], *arguments: Any) -> threading.Thread:
    """Start a thread that belongs to the same request."""
    thread = threading.Thread(target=contextvars.copy_context().run, args=(function, *arguments))
    thread.start()
    return thread


@contextmanager
def echo_into_nothing() -> Iterator[None]:
    """Let the output of `echo` vanish."""
    logger, handler = logging.getLogger("sqlalchemy.engine.Engine"), logging.NullHandler()
    propagated, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagated


# -- Errors of the database -------------------------------------------------------------------------------------------


@scenario(writes=True)
def transfers_in_opposite_order(app: Application) -> None:
    """Two transfers lock the same two accounts in opposite order, and one of them is refused."""
    engine = app.make_engine(connect_args={"options": "-c deadlock_timeout=100ms"})
    both_have_begun = threading.Barrier(2)
    refused: list[int] = []

    def transfer(source: int, target: int) -> None:
        try:
            with engine.begin() as connection:
                connection.execute(update(Account).where(Account.id == source).values(balance=Account.balance - 10))
                both_have_begun.wait(timeout=5)
                pay_in = update(Account).where(Account.id == target).values(balance=Account.balance + 10)
                connection.execute(pay_in)  # finds: database-error
        except DBAPIError:
            refused.append(source)

    threads = [in_thread(transfer, 1, 2), in_thread(transfer, 2, 1)]
    for thread in threads:
        thread.join()
    assert len(refused) == 1


@scenario()
def statement_timeout_hit(app: Application) -> None:
    """The report has 50 ms, and an empty answer is given when that is not enough."""
    with Session(app.engine) as session:
        session.execute(text("SET LOCAL statement_timeout = '50ms'"))
        report = select(func.count(Event.id), select(func.pg_sleep(0.4)).scalar_subquery())
        try:
            rows = session.execute(report).all()  # finds: database-error
        except DBAPIError:
            session.rollback()
            rows = []
    assert rows == []


@scenario()
async def statement_timeout_of_async_engine(app: Application) -> None:
    """The timeout is a setting of every connection."""
    engine = app.make_async_engine(connect_args={"server_settings": {"statement_timeout": "250"}})
    async with AsyncSession(engine) as session:
        try:
            report = select(func.count(Event.id), select(func.pg_sleep(0.8)).scalar_subquery())
            total = (await session.execute(report)).one()[0]  # finds: database-error
        except DBAPIError:
            total = -1
    await engine.dispose()
    assert total == -1


@scenario()
def lock_timeout_hit(app: Application) -> None:
    """A row is locked by another connection for longer than this one waits."""
    with app.make_engine().connect() as other, Session(app.engine) as session:
        other.execute(select(Order.id).where(Order.id == 90).with_for_update())
        session.execute(text("SET LOCAL lock_timeout = '50ms'"))
        try:
            order = session.scalar(select(Order).where(Order.id == 90).with_for_update())  # finds: database-error
        except DBAPIError:
            session.rollback()
            order = None
    assert order is None


@scenario()
def nowait_on_a_locked_row(app: Application) -> None:
    """FOR UPDATE NOWAIT fails at once."""
    with app.engine.connect() as editor, app.make_engine().connect() as second_editor:
        editor.execute(select(Ticket.id).where(Ticket.id == 70).with_for_update())
        try:
            ticket = select(Ticket.id).where(Ticket.id == 70)
            locked = second_editor.scalar(ticket.with_for_update(nowait=True))  # finds: database-error
        except DBAPIError:
            locked = None
    assert locked is None


@scenario(writes=True)
def concurrent_update_not_retried(app: Application) -> None:
    """Under REPEATABLE READ a concurrent change makes the UPDATE fail, which the handler only reports."""
    engine = app.make_engine(isolation_level="REPEATABLE READ")
    with engine.connect() as connection:
        balance = connection.scalar(select(Account.balance).where(Account.id == 5)) or 0
        with app.engine.begin() as other:
            other.execute(update(Account).where(Account.id == 5).values(balance=70))
        try:
            withdraw = update(Account).where(Account.id == 5).values(balance=balance - 50)
            connection.execute(withdraw)  # finds: database-error
            answer = "paid"
        except DBAPIError:
            connection.rollback()
            answer = "try again later"
    assert answer == "try again later"


@scenario(writes=True)
def write_skew_found_at_commit(app: Application) -> None:
    """Two doctors go off duty at the same time; SERIALIZABLE refuses the second COMMIT."""
    engine, of_the_other = (app.make_engine(isolation_level="SERIALIZABLE") for _ in range(2))
    on_duty = select(func.count(Account.id)).where(Account.id.in_([11, 12]), Account.status == "open")
    with engine.connect() as first, of_the_other.connect() as second:
        assert first.scalar(on_duty) == 2
        assert second.scalar(on_duty) == 2
        first.execute(update(Account).where(Account.id == 11).values(status="off"))
        second.execute(update(Account).where(Account.id == 12).values(status="off"))
        first.commit()
        try:
            second.commit()  # finds: database-error
            refused = False
        except DBAPIError:
            second.rollback()
            refused = True
    assert refused


@scenario()
def idle_for_too_long(app: Application) -> None:
    """The server ends the connection of a transaction that was left idle."""
    engine = app.make_engine(connect_args={"options": "-c idle_in_transaction_session_timeout=100ms"})
    with Session(engine) as session:
        order = session.get_one(Order, 3)
        time.sleep(0.3)  # asks another service
        try:
            customer = session.get(Customer, order.customer_id)  # finds: database-error
        except DBAPIError:
            customer = None
    assert customer is None


@scenario()
def report_cancelled_by_the_administrator(app: Application) -> None:
    """Somebody cancels the running statement from outside."""
    with app.engine.connect() as connection:
        backend = connection.scalar(text("SELECT pg_backend_pid()"))

        def cancel() -> None:
            time.sleep(0.1)
            with app.make_engine().connect() as administrator:
                administrator.execute(text("SELECT pg_cancel_backend(:pid)"), {"pid": backend})

        cancelling = in_thread(cancel)
        try:
            report = select(func.count(Event.id), select(func.pg_sleep(0.9)).scalar_subquery())
            total = connection.execute(report).one()[0]  # finds: database-error
        except DBAPIError:
            total = None
        cancelling.join()
    assert total is None


@scenario(tempts="database-error", writes=True)
def serialization_failure_retried(app: Application) -> None:
    """A transaction that fails because of a concurrent one is done again, with success."""
    engine = app.make_engine(isolation_level="REPEATABLE READ")
    concurrent_balances = [105]

    def pay_in(amount: int) -> None:
        with Session(engine) as session, session.begin():
            account = session.get_one(Account, 6)
            while concurrent_balances:
                with app.engine.begin() as nightly_job:
                    balance = concurrent_balances.pop()
                    nightly_job.execute(update(Account).where(Account.id == 6).values(balance=balance))
            account.balance += amount

    for _attempt in range(3):
        try:
            pay_in(10)
            break
        except DBAPIError as error:
            if error.orig.sqlstate != "40001":
                raise
    with Session(app.engine) as session:
        assert session.get_one(Account, 6).balance == 115


@scenario(tempts="database-error, session-scope", writes=True)
def unique_violation_answered(app: Application) -> None:
    """A name that is taken is an answer, not an accident."""

    def register(name: str) -> bool:
        with Session(app.engine) as session:
            session.add(Entry(name=name))
            try:
                session.commit()
            except IntegrityError:
                session.rollback()
                return False
            return True

    assert [register("ada"), register("grace"), register("ada")] == [True, True, False]


@scenario(tempts="database-error")
def foreign_key_violation_answered(app: Application) -> None:
    """The database says that there is no such customer."""
    with app.engine.connect() as connection:
        try:
            connection.execute(text("INSERT INTO visits (customer_id, page) VALUES (999999, '/')"))
            known = True
        except IntegrityError:
            connection.rollback()
            known = False
    assert not known


@scenario(tempts="database-error, row-by-row-write", writes=True)
def upsert_without_errors(app: Application) -> None:
    """ON CONFLICT DO NOTHING leaves no duplicate to fail."""
    rows = [{"name": f"key {number % 20}", "value": number} for number in range(40)]
    with app.engine.begin() as connection:
        connection.execute(postgresql_insert(Entry).on_conflict_do_nothing(index_elements=["name"]), rows)
        assert connection.scalar(select(func.count(Entry.id))) == 20


@scenario(tempts="database-error, slow-query")
def skip_locked_takes_the_next_job(app: Application) -> None:
    """A worker takes the first ticket that no other worker has locked."""
    job = select(Ticket.id).where(Ticket.status == "open").order_by(Ticket.id).limit(1)
    with app.engine.connect() as worker, app.make_engine().connect() as second_worker:
        mine = worker.scalar(job.with_for_update(skip_locked=True))
        yours = second_worker.scalar(job.with_for_update(skip_locked=True))
    assert (mine, yours) == (1, 2)


@scenario(tempts="database-error")
def nowait_without_a_conflict(app: Application) -> None:
    """NOWAIT and a lock timeout harm nothing where the row is free."""
    with Session(app.engine) as session, session.begin():
        session.execute(text("SET LOCAL lock_timeout = '50ms'"))
        ticket = session.scalar(select(Ticket).where(Ticket.id == 71).with_for_update(nowait=True))
    assert ticket is not None


@scenario(tempts="database-error, slow-query")
def statement_timeout_not_reached(app: Application) -> None:
    """A guard of two seconds around a statement of a tenth of one."""
    with app.engine.begin() as connection:
        connection.execute(text("SET LOCAL statement_timeout = '2s'"))
        report = select(func.count(Event.id), select(func.pg_sleep(0.1)).scalar_subquery())
        assert connection.execute(report).one()[0] == 12000


# -- Settings of engines ----------------------------------------------------------------------------------------------


@scenario()
def connections_not_reset(app: Application) -> None:
    """Somebody saved the ROLLBACK at the end, and with it the end of every read-only transaction."""
    engine = app.make_engine(pool_reset_on_return=None)  # finds: engine-settings
    with engine.connect() as connection:
        assert connection.scalar(select(func.count(Tag.id))) == 20
        connection.rollback()


@scenario()
def small_statement_cache(app: Application) -> None:
    """The cache of compiled statements has been made tiny to save memory."""
    engine = app.make_engine(query_cache_size=20)  # finds: engine-settings
    with Session(engine) as session:
        assert session.get_one(Tag, 4).name == "tag 4"


@scenario()
def statement_cache_switched_off(app: Application) -> None:
    """The cache of compiled statements was switched off for a test, years ago."""
    engine = app.make_engine(
        pool_size=2,
        query_cache_size=0,  # finds: engine-settings
    )
    with engine.connect() as connection:
        assert connection.scalar(select(Tag.name).where(Tag.id == 5)) == "tag 5"


@scenario(profile="production")
def production_engine_without_pre_ping(app: Application) -> None:
    """The defaults: a connection that the network has dropped is noticed by the next user."""
    engine = app.make_engine()  # finds: engine-settings
    with Session(engine) as session:
        assert session.get_one(Customer, 1).country == "AT"


@scenario(profile="production")
def production_engine_without_limit(app: Application) -> None:
    """A pool that opens as many connections as anybody asks for."""
    engine = app.make_engine(pool_size=5, max_overflow=-1, pool_pre_ping=True)  # finds: engine-settings
    with Session(engine) as session:
        assert session.get_one(Customer, 2).country == "CH"


@scenario(profile="production")
def production_engine_with_echo(app: Application) -> None:
    """Every statement goes into the log, with its values."""
    with echo_into_nothing():
        engine = app.make_engine(echo=True, pool_pre_ping=True)  # finds: engine-settings
        with engine.connect() as connection:
            assert connection.scalar(select(func.count(Tag.id))) == 20
        engine.dispose()


@scenario(profile="production")
async def production_async_engine_without_pre_ping(app: Application) -> None:
    """The same omission with an AsyncEngine."""
    engine = app.make_async_engine(pool_size=2)  # finds: engine-settings
    async with AsyncSession(engine) as session:
        assert (await session.get_one(Customer, 3)).country == "FR"
    await engine.dispose()


@scenario(tempts="engine-settings", profile="production")
def production_engine_with_pre_ping(app: Application) -> None:
    """Connections are tested when they are taken out of the pool."""
    engine = app.make_engine(pool_size=5, max_overflow=5, pool_pre_ping=True)
    for customer_id in (1, 2):
        with Session(engine) as session:
            assert session.get_one(Customer, customer_id).name


@scenario(tempts="engine-settings", profile="production")
def production_engine_with_recycling(app: Application) -> None:
    """Connections live for half an hour, which is less than the firewall allows."""
    engine = app.make_engine(pool_recycle=1800, pool_use_lifo=True)
    with Session(engine) as session:
        assert session.get_one(Customer, 1).name == "Customer 1"


@scenario(tempts="engine-settings", profile="production")
def production_engine_without_pool(app: Application) -> None:
    """Behind a pooler there is no pool of SQLAlchemy's, so that no old connection has to be tested."""
    engine = app.make_engine(poolclass=NullPool)
    with engine.connect() as connection:
        assert connection.scalar(select(func.count(Tag.id))) == 20


@scenario(tempts="engine-settings")
def autocommit_engine_without_reset(app: Application) -> None:
    """With AUTOCOMMIT there is no transaction to roll back."""
    engine = app.make_engine(isolation_level="AUTOCOMMIT", pool_reset_on_return=None)
    with engine.connect() as connection:
        assert connection.scalar(select(func.count(Tag.id))) == 20


@scenario(tempts="engine-settings")
def echo_in_tests(app: Application) -> None:
    """A developer looks at the statements of a test."""
    with echo_into_nothing():
        engine = app.make_engine(echo=True)
        with engine.connect() as connection:
            assert connection.scalar(select(func.count(Tag.id))) == 20
        engine.dispose()


@scenario(tempts="engine-settings")
def unlimited_pool_in_tests(app: Application) -> None:
    """What only matters in production: no limit, no test of connections; and a cache larger than usual."""
    engine = app.make_engine(max_overflow=-1, query_cache_size=2000)
    with engine.connect() as connection:
        assert connection.scalar(select(func.count(Tag.id))) == 20


@scenario(tempts="engine-settings", writes=True)
def autocommit_for_one_connection(app: Application) -> None:
    """One connection of an ordinary engine is switched to AUTOCOMMIT for maintenance."""
    with app.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE tags"))
        connection.execute(insert(Entry).values(name="vacuumed"))


# -- Statements that look like mistakes -------------------------------------------------------------------------------


@scenario(tempts="query-in-loop, repeated-query")
def setup_of_each_connection(app: Application) -> None:
    """Every new connection is given its time zone by a listener; without a pool that is each time."""
    engine = app.make_engine(poolclass=NullPool)

    @event.listens_for(engine, "connect")
    def set_time_zone(connection: Any, _record: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SET TIME ZONE 'UTC'")
            cursor.execute("SELECT set_config('application_name', 'shop', false)")
        connection.commit()

    for _ in range(6):
        with engine.connect() as connection:
            assert connection.scalar(text("SHOW timezone")) == "UTC"


@scenario(tempts="query-in-loop, repeated-query, engine-settings")
def pre_ping_for_each_checkout(app: Application) -> None:
    """A health check takes a connection five times, and each is pinged."""
    engine = app.make_engine(pool_size=1, pool_pre_ping=True)
    for _ in range(5):
        with engine.connect() as connection:
            assert connection.scalar(text("SELECT 1")) == 1


@scenario(tempts="query-in-loop, repeated-query")
def tenant_set_in_each_transaction(app: Application) -> None:
    """A job serves eight tenants, and tells row-level security at the start of each transaction whose it is."""
    totals = {}
    for tenant in range(1, 9):
        with Session(app.engine) as session:
            session.execute(select(func.set_config("app.tenant", f"tenant-{tenant}", True)))
            totals[tenant] = session.scalar(select(func.count(Order.id)))
    assert set(totals.values()) == {200}


@scenario(tempts="query-in-loop, repeated-query")
def reflection_of_all_tables(app: Application) -> None:
    """A check at start compares the columns and indexes of every table."""
    inspector = inspect(app.engine)
    columns = {}
    for table in inspector.get_table_names():
        columns[table] = [column["name"] for column in inspector.get_columns(table)]
        assert inspector.get_pk_constraint(table)["constrained_columns"]
        inspector.get_indexes(table)
    assert columns["tags"] == ["id", "name"]


@scenario(tempts="query-in-loop")
def sizes_from_the_catalogue(app: Application) -> None:
    """A monitor asks the catalogue for the size of one table after another."""
    with app.engine.connect() as connection:
        sizes = {}
        for table in ("orders", "items", "events", "articles", "customers", "tickets"):
            query = text("SELECT pg_total_relation_size(oid) FROM pg_catalog.pg_class WHERE relname = :table")
            sizes[table] = connection.scalar(query, {"table": table})
    assert min(sizes.values()) > 0


@scenario(tempts="query-in-loop, repeated-query")
def advisory_locks(app: Application) -> None:
    """Six resources are locked one after the other, in the order of their keys."""
    with app.engine.begin() as connection:
        for key in (11, 12, 15, 21, 34, 55):
            assert connection.scalar(select(func.pg_try_advisory_xact_lock(key)))


@scenario(tempts="repeated-query")
def numbers_from_a_sequence(app: Application) -> None:
    """The same SELECT gives another number each time, which is what a sequence is for."""
    with app.engine.begin() as connection:
        connection.execute(text("CREATE TEMPORARY SEQUENCE invoice_numbers"))
        numbers = [connection.scalar(text("SELECT nextval('invoice_numbers')")) for _ in range(4)]
        connection.execute(text("DROP SEQUENCE invoice_numbers"))
    assert numbers == [1, 2, 3, 4]


@scenario(tempts="query-in-loop, row-by-row-write")
def notifications(app: Application) -> None:
    """Six notifications are sent, and a listener on a connection of its own gets them."""
    engine = app.make_engine(isolation_level="AUTOCOMMIT")
    with engine.connect() as listener:
        listener.execute(text("LISTEN jobs"))
        with app.engine.begin() as connection:
            for job in range(6):
                connection.execute(select(func.pg_notify("jobs", f"job {job}")))
        received = listener.connection.driver_connection.notifies(timeout=2, stop_after=6)
        assert [notification.payload for notification in received] == [f"job {job}" for job in range(6)]
        listener.execute(text("UNLISTEN *"))


@scenario(tempts="row-by-row-write, oversized-result", writes=True)
def copy_into_a_table(app: Application) -> None:
    """Two thousand rows are copied by the driver itself."""
    connection = app.engine.raw_connection()
    try:
        with connection.cursor() as cursor, cursor.copy("COPY entries (name, value) FROM STDIN") as copy:
            for number in range(2000):
                copy.write_row((f"row {number}", number))
        connection.commit()
    finally:
        connection.close()


@scenario(tempts="row-by-row-write, query-in-loop, large-in-list")
def keys_in_a_temporary_table(app: Application) -> None:
    """Two thousand keys go into a temporary table, and one join gets their rows."""
    with app.engine.begin() as connection:
        connection.execute(text("CREATE TEMPORARY TABLE wanted (id integer PRIMARY KEY) ON COMMIT DROP"))
        keys = [{"id": key} for key in range(1, 4001, 2)]
        connection.execute(text("INSERT INTO wanted VALUES (:id)"), keys)
        found = connection.execute(text("SELECT tickets.id, title FROM tickets JOIN wanted USING (id)")).all()
    assert len(found) == 1500


@scenario(tempts="oversized-result, unread-rows")
def server_side_cursor_left_early(app: Application) -> None:
    """An export by a server-side cursor is left when the file is full; most rows were never fetched."""
    query = select(Event.id, Event.kind).order_by(Event.id)
    written = 0
    with app.engine.connect() as connection, connection.execution_options(yield_per=50).execute(query) as result:
        for _row in result:
            written += 1
            if written == 40:
                break
    assert written == 40


@scenario(tempts="oversized-result, large-identity-map")
def export_by_server_side_cursor(app: Application) -> None:
    """All events go into a file, five hundred at a time."""
    lines = 0
    with app.engine.connect() as connection:
        result = connection.execution_options(yield_per=500).execute(select(Event.id, Event.happened_at))
        for partition in result.partitions():
            lines += len(partition)
    assert lines == 12000


@scenario(tempts="slow-query, repeated-query, deep-offset")
def plans_explained(app: Application) -> None:
    """An administrator's page shows the plans of three queries."""
    queries = {
        "orders": "SELECT count(*) FROM orders WHERE customer_id = 3",
        "events": "SELECT count(*) FROM events WHERE kind = 'buy'",
        "tickets": "SELECT id FROM tickets ORDER BY id OFFSET 2000 LIMIT 10",
    }
    with app.engine.connect() as connection:
        plans = {name: connection.execute(text(f"EXPLAIN (ANALYZE) {query}")).all() for name, query in queries.items()}
    assert all(plans.values())


@scenario(tempts="uncached-statement, row-by-row-write")
def maintenance_of_each_table(app: Application) -> None:
    """ANALYZE for twelve tables: names of tables cannot be parameters."""
    tables = "tags customers profiles addresses visits messages orders categories products items events accounts"
    with app.make_engine(isolation_level="AUTOCOMMIT").connect() as connection:
        for table in tables.split():
            connection.execute(text(f"ANALYZE {table}"))


@scenario(tempts="repeated-query, query-in-loop, long-transaction")
def readiness_probe(app: Application) -> None:
    """At start the application waits until the database answers and a table is there."""
    engine = app.make_engine(poolclass=NullPool)
    for _attempt in range(3):
        with engine.connect() as connection:
            ready = connection.scalar(text("SELECT to_regclass('public.not_yet_migrated')"))
        if ready:
            break
        time.sleep(0.02)


@scenario(tempts="repeated-query, long-transaction")
def clock_of_the_server(app: Application) -> None:
    """Work is timed by the server's clock, before, between and after."""
    with app.engine.connect() as connection:
        clock = select(func.clock_timestamp())
        times = [connection.scalar(clock)]
        connection.execute(select(func.count(Event.id)))
        times.append(connection.scalar(clock))
        connection.execute(select(func.sum(Order.total)))
        times.append(connection.scalar(clock))
    assert times == sorted(times)


@scenario(tempts="database-error, uncached-statement")
def ddl_in_a_migration(app: Application) -> None:
    """A migration adds a column to three tables, and is taken back in a rehearsal."""
    with app.engine.connect() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(4711)"))
        for table in ("tags", "warehouses", "shelves"):
            connection.execute(text(f"ALTER TABLE {table} ADD COLUMN checked boolean DEFAULT false"))
        connection.rollback()
