"""Connections and transactions: who holds them, who waits, what the code does meanwhile, and what resembles it."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import pdb
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import psycopg
from sqlalchemy import event, func, insert, inspect, select, text, update
from sqlalchemy.exc import OperationalError, TimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import NullPool, StaticPool

from benchmarks.corpus import Application, scenario
from benchmarks.corpus.models import (
    Account,
    Category,
    Customer,
    Entry,
    Event,
    Item,
    Message,
    Order,
    Product,
    Tag,
    Thread,
    Ticket,
    Visit,
)
from benchmarks.corpus.scenarios_sessions import in_thread


@contextmanager
def slow_service(seconds: float) -> Iterator[str]:
    """Another service of the company, which answers after that time."""

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            time.sleep(seconds)
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *values: Any) -> None:
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()


def post(url: str) -> None:
    with urllib.request.urlopen(urllib.request.Request(url, data=b"{}", method="POST")) as response:
        assert response.status == 204


async def language_model(seconds: float) -> str:
    """Ask a language model, which thinks."""
    await asyncio.sleep(seconds)
    return "Try switching it off and on again."


# -- idle-in-transaction ----------------------------------------------------------------------------------------------


@scenario(writes=True)
def charge_between_order_and_payment(app: Application) -> None:
    """The order is locked, the provider is called over HTTP, and the payment is written: all in one transaction."""
    with slow_service(0.65) as provider, Session(app.engine) as session, session.begin():
        order = session.get_one(Order, 30, with_for_update=True)  # finds: idle-in-transaction
        post(provider)
        order.status = "paid"
        session.execute(text("INSERT INTO payments (order_id, amount) VALUES (30, 30)"))


@scenario(writes=True)
async def model_asked_between_question_and_answer(app: Application) -> None:
    """A chat saves the question, asks the language model, and saves the answer."""
    async with AsyncSession(app.async_engine) as session:
        session.add(Message(customer_id=7, body="My printer does not print."))
        await session.flush()  # finds: idle-in-transaction
        answer = await language_model(0.65)
        session.add(Message(customer_id=7, body=answer))
        await session.commit()


@scenario(writes=True)
def mail_before_the_commit(app: Application) -> None:
    """The mail goes out before the ticket's new status is committed, so that one cannot be without the other."""
    with Session(app.engine) as session:
        ticket = session.get_one(Ticket, 20)
        ticket.status = "answered"
        session.flush()  # finds: idle-in-transaction
        time.sleep(0.65)  # sends the mail
        session.commit()


@scenario(writes=True)
def upload_inside_of_begin(app: Application) -> None:
    """The row of a document is written, and the file is uploaded before the block of `begin()` ends."""
    with slow_service(0.65) as storage, app.engine.begin() as connection:
        connection.execute(insert(Entry).values(name="contract.pdf"))  # finds: idle-in-transaction
        post(storage)


@scenario(writes=True)
def file_converted_by_another_program(app: Application) -> None:
    """A background job takes its work from a table, and runs a converter while it holds the row."""
    with app.engine.begin() as connection:
        job = select(Ticket.id).where(Ticket.status == "open").order_by(Ticket.id).limit(1)
        key = connection.scalar(job.with_for_update(skip_locked=True))  # finds: idle-in-transaction
        subprocess.run([sys.executable, "-S", "-c", "import time; time.sleep(0.65)"], check=True)
        connection.execute(update(Ticket).where(Ticket.id == key).values(status="converted"))


@scenario(writes=True)
def keys_derived_inside_of_a_transaction(app: Application) -> None:
    """A hash is computed by this very process, again and again, between reading an account and changing it."""
    with Session(app.engine) as session:
        account = session.get_one(Account, 9)  # finds: idle-in-transaction
        digest, until = b"secret", time.monotonic() + 0.65
        while time.monotonic() < until:
            digest = hashlib.pbkdf2_hmac("sha256", digest, b"salt", 500)
        account.owner = digest.hex()[:20]
        session.commit()


@scenario()
def lock_of_the_process_inside_of_a_transaction(app: Application) -> None:
    """A template may be rendered by one thread at a time, and this one has a transaction open while it waits."""
    rendering, others_turn, wanted = threading.Lock(), threading.Event(), threading.Event()

    def other_request() -> None:
        with rendering:
            others_turn.set()
            wanted.wait(5)
            time.sleep(0.65)

    other = in_thread(other_request)
    others_turn.wait()
    with app.engine.connect() as connection:
        total = connection.scalar(select(func.sum(Order.total)))  # finds: idle-in-transaction
        wanted.set()
        with rendering:
            page = f"<p>{total}</p>"
    other.join()
    assert page.startswith("<p>")


@scenario()
async def semaphore_inside_of_a_transaction(app: Application) -> None:
    """The customer is read first, and then the coroutine queues for its turn at a service."""
    turns, taken, wanted = asyncio.Semaphore(1), asyncio.Event(), asyncio.Event()

    async def other_request() -> None:
        async with turns:
            taken.set()
            await wanted.wait()
            await language_model(0.65)

    other = asyncio.create_task(other_request())
    await taken.wait()
    async with AsyncSession(app.async_engine) as session:
        customer = await session.get_one(Customer, 12)  # finds: idle-in-transaction
        wanted.set()
        async with turns:
            assert customer.name == "Customer 12"
    await other


@scenario()
def second_pause_is_the_longer_one(app: Application) -> None:
    """Two services are asked in one transaction; the second one is slow."""
    with Session(app.engine) as session:
        customer = session.get_one(Customer, 4)
        time.sleep(0.15)  # asks for the exchange rate
        of_customer = select(Order).where(Order.customer_id == customer.id)
        orders = session.scalars(of_customer).all()  # finds: idle-in-transaction
        time.sleep(0.65)  # asks for the shipping
        products = session.scalar(select(func.count(Product.id)))
        time.sleep(0.05)
    assert (len(orders), products) == (5, 50)


@scenario(writes=True)
def service_called_after_a_savepoint(app: Application) -> None:
    """What may fail is tried in a savepoint; the index is told before the whole is committed."""
    with Session(app.engine) as session:
        session.get_one(Thread, 5).title = "Edited"
        with session.begin_nested():  # finds: idle-in-transaction
            session.add(Entry(name="thread 5 edited"))
        time.sleep(0.65)  # tells the search index
        session.commit()


@scenario()
async def services_gathered_inside_of_begin(app: Application) -> None:
    """Three services are asked at the same time, which is still inside of the transaction."""
    async with app.async_engine.begin() as connection:
        rows = (await connection.execute(select(Product.id).limit(3))).all()  # finds: idle-in-transaction
        prices = await asyncio.gather(*(asyncio.sleep(0.55 + 0.05 * number, row.id) for number, row in enumerate(rows)))
        assert await connection.scalar(select(func.count(Product.id)).where(Product.id.in_(prices))) == 3


@scenario()
def future_of_a_thread_awaited_in_a_transaction(app: Application) -> None:
    """A thread resizes a picture, and the transaction waits for it."""
    with ThreadPoolExecutor(1) as threads, app.engine.connect() as connection:
        owner = connection.scalar(select(Customer.name).where(Customer.id == 31))  # finds: idle-in-transaction
        resized = threads.submit(time.sleep, 0.65)
        resized.result()
        assert connection.scalar(select(Customer.id).where(Customer.name == owner)) == 31


@scenario()
def export_stalls_between_two_fetches(app: Application) -> None:
    """A server-side cursor is open while the first part of the export is uploaded."""
    uploaded = 0
    with slow_service(0.7) as storage, app.engine.connect() as connection:
        streaming = connection.execution_options(yield_per=6000)
        for rows in streaming.execute(select(Event.id, Event.kind)).partitions():  # finds: idle-in-transaction
            if not uploaded:
                post(storage)
            uploaded += len(rows)
    assert uploaded == 12000


@scenario()
def busy_for_long_and_idle_for_a_part_of_it(app: Application) -> None:
    """Most of the transaction is the database's work; the pause in it is too long all the same."""
    work = select(func.count(Event.id), select(func.pg_sleep(0.42)).scalar_subquery())
    with Session(app.engine) as session:
        session.execute(work.where(Event.kind == "buy")).one()  # finds: long-transaction
        session.execute(work.where(Event.kind == "view")).one()
        session.execute(work.where(Event.customer_id == 3)).one()  # finds: idle-in-transaction
        time.sleep(0.6)  # draws the chart
        session.execute(select(func.count(Tag.id))).one()


@scenario(tempts="idle-in-transaction")
def the_database_works_all_the_time(app: Application) -> None:
    """Three statements of a report follow one another; the transaction is long and never idle."""
    work = select(func.count(Event.id), select(func.pg_sleep(0.4)).scalar_subquery())
    with app.engine.begin() as connection:
        connection.execute(work.where(Event.kind == "buy")).one()  # finds: long-transaction
        connection.execute(work.where(Event.kind == "view")).one()
        connection.execute(work.where(Event.kind == "click")).one()


@scenario(tempts="idle-in-transaction, long-transaction, slow-query")
async def two_longer_statements_awaited(app: Application) -> None:
    """Two statements of 0.4 s each; the event loop has nothing to do meanwhile, and the database has."""
    work = select(func.count(Order.id), select(func.pg_sleep(0.4)).scalar_subquery())
    async with AsyncSession(app.async_engine) as session:
        for status in ("new", "paid"):
            assert (await session.execute(work.where(Order.status == status))).one()[0] == 50


@scenario(tempts="idle-in-transaction, long-transaction")
def copied_out_by_the_driver(app: Application) -> None:
    """After its first statement, an export is left to the driver's COPY, which the server takes its time for."""
    with app.engine.connect() as connection:
        wanted = connection.scalar(select(func.count(Tag.id)))
        copied = 0
        with (
            connection.connection.driver_connection.cursor() as cursor,
            cursor.copy("COPY (SELECT id, pg_sleep(0.035) FROM tags) TO STDOUT") as copy,
        ):
            for _row in copy.rows():
                copied += 1
    assert copied == wanted == 20


@scenario(tempts="idle-in-transaction, long-transaction")
async def async_copy_by_the_driver(app: Application) -> None:
    """The same export with asyncpg."""
    parts: list[bytes] = []

    async def write(part: bytes) -> None:
        parts.append(part)

    async with app.async_engine.connect() as connection:
        wanted = await connection.scalar(select(func.count(Tag.id)))
        driver = (await connection.get_raw_connection()).driver_connection
        await driver.copy_from_query("SELECT id, pg_sleep(0.035) FROM tags", output=write)
    assert b"".join(parts).count(b"\n") == wanted


@scenario(tempts="idle-in-transaction, long-transaction, row-by-row-write", writes=True)
def copied_in_by_the_driver(app: Application) -> None:
    """Rows are copied as a slow feed brings them, in the transaction that emptied the table."""
    with app.engine.begin() as connection:
        connection.execute(text("DELETE FROM entries"))
        with (
            connection.connection.driver_connection.cursor() as cursor,
            cursor.copy("COPY entries (name, value) FROM STDIN") as copy,
        ):
            for number in range(14):
                time.sleep(0.05)  # reads the feed
                copy.write_row((f"article {number}", number))
        assert connection.scalar(select(func.count(Entry.id))) == 14


@scenario(tempts="idle-in-transaction, long-transaction, oversized-result")
def server_side_cursor_fetched_steadily(app: Application) -> None:
    """Each part of an export is written before the next one is fetched: no pause is long."""
    written = 0
    with app.engine.connect() as connection:
        streaming = connection.execution_options(yield_per=2000)
        for rows in streaming.execute(select(Event.id, Event.kind)).partitions():
            time.sleep(0.12)  # writes
            written += len(rows)
    assert written == 12000


@scenario(tempts="idle-in-transaction, long-transaction, oversized-result")
async def streamed_response_of_a_patient_client(app: Application) -> None:
    """A streaming response sends each part as the client takes it, which is never long."""

    async def body() -> AsyncIterator[bytes]:
        async with app.async_engine.connect() as connection:
            query = select(Event.kind).execution_options(yield_per=3000)
            async with connection.stream(query) as result:
                async for part in result.partitions():
                    yield ",".join(row.kind for row in part).encode()

    sent = 0
    async for part in body():
        await asyncio.sleep(0.15)
        sent += part.count(b"buy")
    assert sent == 4000


@scenario(tempts="idle-in-transaction, long-transaction, slow-query")
def slow_commit(app: Application) -> None:
    """A deferred constraint is checked by COMMIT, and the server takes its time."""
    engine = app.make_engine(pool_size=1)
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE FUNCTION pg_temp.check_balance() RETURNS trigger LANGUAGE plpgsql"
            " AS 'BEGIN PERFORM pg_sleep(0.65); RETURN NULL; END'"
        )
        connection.exec_driver_sql("CREATE TEMPORARY TABLE bookings (amount integer)")
        connection.exec_driver_sql(
            "CREATE CONSTRAINT TRIGGER balanced AFTER INSERT ON bookings DEFERRABLE INITIALLY DEFERRED"
            " FOR EACH ROW EXECUTE FUNCTION pg_temp.check_balance()"
        )
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO bookings VALUES (100)"))
    engine.dispose()


@scenario(tempts="idle-in-transaction, long-transaction", writes=True)
def short_pauses_in_one_transaction(app: Application) -> None:
    """An import looks things up in memory between its statements; no pause is long, nor are all of them together."""
    with Session(app.engine) as session, session.begin():
        customer = session.get_one(Customer, 15)
        time.sleep(0.2)
        order = session.get_one(Order, 15)
        time.sleep(0.2)
        session.add(Entry(name=f"{customer.name} {order.status}"))
        session.flush()
        time.sleep(0.2)


@scenario(tempts="idle-in-transaction")
def pauses_with_autocommit(app: Application) -> None:
    """A monitor asks, waits, and asks again, each time without a transaction."""
    with app.make_engine(isolation_level="AUTOCOMMIT").connect() as connection:
        before = connection.scalar(text("SELECT count(*) FROM pg_stat_activity"))
        time.sleep(0.65)
        after = connection.scalar(text("SELECT count(*) FROM pg_stat_activity WHERE state IS NOT NULL"))
    assert before > 0 < after


@scenario(tempts="idle-in-transaction", writes=True)
def model_asked_between_two_transactions(app: Application) -> None:
    """The question is read and its transaction ended; the answer is written in the next one."""
    with Session(app.engine, expire_on_commit=False) as session:
        with session.begin():
            question = session.get_one(Message, 12)
        time.sleep(0.65)  # asks the language model
        with session.begin():
            session.add(Entry(name=f"answer to {question.body}"))


@scenario(tempts="idle-in-transaction, connection-held")
def pause_between_begin_and_the_first_statement(app: Application) -> None:
    """The block of `begin()` starts with a look into a cache; for the server no transaction has begun yet."""
    with app.engine.begin() as connection:
        time.sleep(0.65)  # asks the cache
        assert connection.scalar(select(func.count(Tag.id))) == 20


@scenario(tempts="idle-in-transaction")
def waits_for_the_pool_of_the_other_database(app: Application) -> None:
    """While a transaction is open here, the request waits for the only connection to another database."""
    reports = app.make_engine(pool_size=1, max_overflow=0)
    busy = threading.Event()

    def other_request() -> None:
        with reports.connect() as connection:
            connection.execute(text("SELECT 1"))
            busy.set()
            connection.execute(text("SELECT pg_sleep(0.35)"))
            connection.execute(text("SELECT count(*), pg_sleep(0.35) FROM tags"))

    other = in_thread(other_request)
    busy.wait()
    with Session(app.engine) as session:
        customer = session.get_one(Customer, 16)
        with reports.connect() as connection:  # finds: pool-wait
            assert connection.scalar(select(func.count(Visit.id))) == 400
        assert session.get_one(Order, 16).customer_id == customer.id + 1
    other.join()


@scenario(tempts="idle-in-transaction, long-transaction")
def stopped_by_a_debugger(app: Application) -> None:
    """A developer has stopped the program inside of a transaction, reads the variables, and lets it go on."""

    keyboard, developer = (os.fdopen(end, mode) for end, mode in zip(os.pipe(), ("r", "w"), strict=True))

    def type_slowly() -> None:
        time.sleep(0.7)
        with developer:
            developer.write("continue\n")

    tracer = sys.gettrace()
    with keyboard, Session(app.engine) as session:
        customer = session.get_one(Customer, 17)
        typing = in_thread(type_slowly)
        pdb.Pdb(stdin=keyboard, stdout=io.StringIO(), nosigint=True, readrc=False).set_trace()
        orders = session.scalar(select(func.count(Order.id)).where(Order.customer_id == customer.id))
    sys.settrace(tracer)  # whoever traced before the debugger, as coverage does
    typing.join()
    assert orders == 5


# -- connection-held --------------------------------------------------------------------------------------------------


@scenario()
def connection_taken_before_it_is_needed(app: Application) -> None:
    """The handler takes its connection first, then calls the provider, and only then asks the database."""
    with app.engine.connect() as connection:  # finds: connection-held
        time.sleep(1.2)  # calls the provider
        assert connection.scalar(select(func.count(Customer.id))) == 40


@scenario(writes=True)
def mail_after_the_commit_of_a_connection(app: Application) -> None:
    """The transaction is committed; the connection stays out while the mail is sent."""
    with slow_service(1.2) as mail_server, app.engine.connect() as connection:  # finds: connection-held
        connection.execute(update(Ticket).where(Ticket.id == 30).values(status="answered"))
        connection.commit()
        post(mail_server)


@scenario()
async def job_awaited_with_a_connection_in_hand(app: Application) -> None:
    """A background job takes its connection when it starts, and then waits for something to do."""
    jobs: asyncio.Queue[int] = asyncio.Queue()

    async def worker() -> str:
        async with app.async_engine.connect() as connection:  # finds: connection-held
            job = await jobs.get()
            return await connection.scalar(select(Ticket.title).where(Ticket.id == job)) or ""

    working = asyncio.create_task(worker())
    await asyncio.sleep(1.2)
    jobs.put_nowait(33)
    assert await working == "Ticket 33"


@scenario(writes=True)
async def autocommit_session_beside_a_language_model(app: Application) -> None:
    """With AUTOCOMMIT no transaction is open while the model thinks, but the connection is nobody else's."""
    engine = app.make_async_engine(isolation_level="AUTOCOMMIT", pool_size=2)
    async with AsyncSession(engine) as session:
        question = await session.get_one(Message, 40)  # finds: connection-held
        answer = await language_model(1.2)
        session.add(Message(customer_id=question.customer_id, body=answer))
        await session.flush()
    await engine.dispose()


@scenario()
def autocommit_session_renders_a_document(app: Application) -> None:
    """A session in AUTOCOMMIT reads what a document needs, and stays open while it is rendered."""
    with Session(app.engine.execution_options(isolation_level="AUTOCOMMIT")) as session:
        customer = session.scalars(select(Customer).where(Customer.id == 18)).one()  # finds: connection-held
        items = session.scalar(select(func.count(Item.id)))
        time.sleep(1.2)  # renders
    assert (customer.name, items) == ("Customer 18", 400)


@scenario()
def connection_of_a_thread_that_waits_for_the_others(app: Application) -> None:
    """Each thread of an import takes its connection first; one of them is ready long before the other."""
    both_are_ready = threading.Barrier(2)

    def load(seconds: float) -> None:
        time.sleep(seconds)  # reads the file
        with app.engine.connect() as connection:  # finds: connection-held
            both_are_ready.wait()
            connection.execute(select(func.count(Product.id)))

    threads = [in_thread(load, 0.0), in_thread(load, 1.2)]
    for thread in threads:
        thread.join()


@scenario(writes=True)
def raw_connection_kept_during_an_upload(app: Application) -> None:
    """The driver's own connection is used for one statement, committed, and given back after the upload."""
    connection = app.engine.raw_connection()  # finds: connection-held
    try:
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO entries (name, value) VALUES ('picture.png', 1)")
        connection.commit()
        time.sleep(1.2)  # uploads the picture
    finally:
        connection.close()


@scenario(tempts="connection-held, idle-in-transaction")
def listener_waits_for_notifications(app: Application) -> None:
    """A worker listens, which needs a connection for as long as it takes."""
    with app.make_engine(isolation_level="AUTOCOMMIT").connect() as listener:
        listener.execute(text("LISTEN jobs_done"))
        received = list(listener.connection.driver_connection.notifies(timeout=1.2))
        listener.execute(text("UNLISTEN *"))
    assert received == []


@scenario(tempts="connection-held, idle-in-transaction")
async def async_listener_waits_for_notifications(app: Application) -> None:
    """Server-sent events: asyncpg's own listener on a connection that the request keeps."""
    heard: list[str] = []
    async with app.async_engine.connect() as connection:
        driver = (await connection.get_raw_connection()).driver_connection

        def hear(_connection: Any, _process: int, _channel: str, payload: str) -> None:
            heard.append(payload)

        await driver.add_listener("prices", hear)
        await asyncio.sleep(1.2)
        await driver.remove_listener("prices", hear)
    assert heard == []


@scenario(tempts="connection-held, idle-in-transaction")
def leader_holds_its_advisory_lock(app: Application) -> None:
    """Only one process may run the nightly work: a lock that belongs to the connection says which."""
    with app.engine.connect() as connection:
        leading = connection.scalar(select(func.pg_try_advisory_lock(815)))
        connection.commit()
        time.sleep(1.2)  # the nightly work, in files
        connection.execute(select(func.pg_advisory_unlock(815)))
        connection.commit()
    assert leading


@scenario(tempts="connection-held, idle-in-transaction")
async def async_lock_around_a_deployment(app: Application) -> None:
    """The same with asyncpg in AUTOCOMMIT."""
    engine = app.make_async_engine(isolation_level="AUTOCOMMIT", pool_size=1)
    async with engine.connect() as connection:
        await connection.execute(text("SELECT pg_advisory_lock(4712)"))
        await asyncio.sleep(1.2)
        await connection.execute(text("SELECT pg_advisory_unlock(4712)"))
    await engine.dispose()


@scenario(tempts="connection-held, idle-in-transaction")
def temporary_table_lives_with_its_connection(app: Application) -> None:
    """What a temporary table holds is gone with the connection, so it is kept while a file is read."""
    with app.make_engine(isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(text("CREATE TEMPORARY TABLE imported (id integer)"))
        time.sleep(1.2)  # reads the file
        connection.execute(text("INSERT INTO imported SELECT generate_series(1, 10)"))
        assert connection.scalar(text("SELECT count(*) FROM imported")) == 10


@scenario(tempts="connection-held")
def works_for_a_good_part_of_its_time(app: Application) -> None:
    """A report keeps its connection, and works with it for a third of the time."""
    work = select(func.count(Event.id), select(func.pg_sleep(0.4)).scalar_subquery())
    with app.make_engine(isolation_level="AUTOCOMMIT").connect() as connection:
        assert connection.execute(work).one()[0] == 12000
        time.sleep(1.15)  # draws
        assert connection.execute(work.where(Event.kind == "buy")).one()[0] == 4000


@scenario(tempts="connection-held, long-transaction")
def works_without_a_pause(app: Application) -> None:
    """A checkup in AUTOCOMMIT takes more than a second, all of it in the database."""
    with app.make_engine(isolation_level="AUTOCOMMIT").connect() as connection:
        for table in ("events", "tickets", "accounts"):
            connection.execute(text(f"SELECT count(*), pg_sleep(0.4) FROM {table}"))


@scenario(tempts="connection-held, idle-in-transaction, row-by-row-write")
def copied_out_for_more_than_a_second(app: Application) -> None:
    """The driver's COPY in AUTOCOMMIT: SQLAlchemy sends no statement, and yet the connection works."""
    copied = 0
    with app.make_engine(isolation_level="AUTOCOMMIT").connect() as connection:
        copying = "COPY (SELECT id, pg_sleep(0.06) FROM tags) TO STDOUT"
        with connection.connection.driver_connection.cursor() as cursor, cursor.copy(copying) as copy:
            for _row in copy.rows():
                copied += 1
    assert copied == 20


@scenario(tempts="connection-held, idle-in-transaction")
def raw_cursor_at_work(app: Application) -> None:
    """A stored procedure is called with the driver's own cursor, past SQLAlchemy, and takes its time."""
    connection = app.engine.raw_connection()
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_sleep(1.2)")
        connection.commit()
    finally:
        connection.close()


@scenario(tempts="connection-held")
def connection_given_back_before_the_pause(app: Application) -> None:
    """A poller takes a connection for each look, and none while it sleeps."""
    for _ in range(2):
        with app.engine.connect() as connection:
            assert not connection.scalar(select(Ticket.id).where(Ticket.status == "urgent").limit(1))
        time.sleep(0.6)


@scenario(tempts="connection-held, idle-in-transaction")
async def async_session_committed_before_the_pause(app: Application) -> None:
    """After the commit, the session has no connection while the model thinks."""
    async with AsyncSession(app.async_engine, expire_on_commit=False) as session:
        message = await session.get_one(Message, 41)
        await session.commit()
        assert await language_model(1.2)
        assert (await session.get_one(Customer, message.customer_id)).id == 2


# -- nested-checkout --------------------------------------------------------------------------------------------------


@scenario(writes=True)
def audit_log_in_a_session_of_its_own(app: Application) -> None:
    """What is audited is to stay even if the transaction fails, so it has a session of its own, inside the first."""

    def audit(what: str) -> None:
        with Session(app.engine) as session:
            session.add(Entry(name=what))
            session.commit()  # finds: nested-checkout

    with Session(app.engine) as session:
        session.get_one(Account, 21).balance += 5
        session.flush()
        audit("account 21 changed")
        session.commit()


@scenario(writes=True)
def invoice_number_from_another_connection(app: Application) -> None:
    """Numbers of invoices have to be committed at once, and are taken with a second connection."""

    def next_number() -> int:
        with app.engine.begin() as connection:  # finds: nested-checkout
            raised = update(Account).where(Account.id == 1).values(balance=Account.balance + 1)
            return connection.scalar(raised.returning(Account.balance)) or 0

    with app.engine.begin() as connection:
        connection.execute(update(Order).where(Order.id == 8).values(status="invoiced"))
        connection.execute(insert(Entry).values(name="invoice", value=next_number()))


@scenario()
async def repository_opens_its_own_session(app: Application) -> None:
    """A repository makes a session for each call, although its caller has one."""
    factory = async_sessionmaker(app.async_engine)

    async def name_of(customer_id: int) -> str | None:
        async with factory() as session:
            query = select(Customer.name).where(Customer.id == customer_id)
            return await session.scalar(query)  # finds: nested-checkout

    async with factory() as session:
        order = await session.get_one(Order, 6)
        assert await name_of(order.customer_id) == "Customer 7"


@scenario()
async def children_gathered_while_the_parent_holds(app: Application) -> None:
    """Three tasks have a session each, while the task that started them keeps its transaction open."""
    factory = async_sessionmaker(app.async_engine)

    async def count(status: str) -> int:
        async with factory() as session:
            query = select(func.count(Order.id)).where(Order.status == status)
            return await session.scalar(query) or 0  # finds: nested-checkout

    async with factory() as session:
        total = await session.scalar(select(func.count(Order.id)))
        counts = await asyncio.gather(count("new"), count("paid"), count("sent"))
    assert (total, counts) == (200, [50, 50, 50])


@scenario()
async def task_group_inside_of_a_connection_block(app: Application) -> None:
    """Two tasks of a group take connections of their own inside of the block of another one."""
    sizes: dict[str, int] = {}

    async def measure(table: str) -> None:
        async with app.async_engine.connect() as own:  # finds: nested-checkout
            sizes[table] = await own.scalar(text("SELECT pg_table_size(CAST(:name AS regclass))"), {"name": table})

    async with app.async_engine.connect() as connection:
        await connection.execute(text("SELECT 1"))
        async with asyncio.TaskGroup() as group:
            group.create_task(measure("orders"))
            group.create_task(measure("items"))
    assert min(sizes.values()) > 0


@scenario()
def two_dependencies_with_a_session_each(app: Application) -> None:
    """Who is logged in is found out by one dependency, whose session lives as long as the endpoint's own."""
    factory = sessionmaker(app.engine)

    @contextmanager
    def current_user() -> Iterator[Customer]:
        with factory() as session:
            yield session.scalars(select(Customer).where(Customer.email == "customer3@example.org")).one()

    @contextmanager
    def database() -> Iterator[Session]:
        with factory() as session:
            yield session

    with current_user() as user, database() as session:
        of_user = select(func.count(Order.id)).where(Order.customer_id == user.id)
        orders = session.scalar(of_user)  # finds: nested-checkout
    assert orders == 5


@scenario(writes=True)
def listener_of_a_flush_writes_elsewhere(app: Application) -> None:
    """An event listener notes what was flushed, by a connection of its own."""
    factory = sessionmaker(app.engine)

    @event.listens_for(factory, "after_flush")
    def note(session: Session, _context: Any) -> None:
        names = [{"name": f"{type(each).__name__} changed"} for each in session.dirty]
        with app.engine.begin() as connection:  # finds: nested-checkout
            connection.execute(insert(Entry), names)

    with factory.begin() as session:
        session.get_one(Thread, 8).title = "Renamed"


@scenario(writes=True)
def progress_written_beside_a_stream(app: Application) -> None:
    """While one connection streams an export, another one tells how far it is."""
    with app.engine.connect() as connection:
        streaming = connection.execution_options(yield_per=6000)
        for number, rows in enumerate(streaming.execute(select(Event.id, Event.kind)).partitions()):
            with app.engine.begin() as progress:  # finds: nested-checkout
                progress.execute(insert(Entry).values(name=f"part {number}", value=len(rows)))


@scenario(writes=True)
def work_of_the_leader_beside_its_lock(app: Application) -> None:
    """The connection that has the advisory lock does nothing else; the work needs another one."""
    with app.engine.connect() as leader:
        assert leader.scalar(select(func.pg_try_advisory_lock(816)))
        leader.commit()
        with Session(app.engine) as session:
            session.get_one(Ticket, 50).status = "archived"  # finds: nested-checkout
            session.commit()
        leader.execute(select(func.pg_advisory_unlock(816)))
        leader.commit()


@scenario()
def reflection_inside_of_a_connection_block(app: Application) -> None:
    """The inspector was made of the engine, and takes another connection, although there is one at hand."""
    with app.engine.connect() as connection:
        rows = connection.execute(select(Tag.id)).all()
        columns = inspect(app.engine).get_columns("tags")  # finds: nested-checkout
    assert (len(rows), len(columns)) == (20, 2)


@scenario(tempts="nested-checkout")
def sessions_one_after_the_other(app: Application) -> None:
    """A handler uses two sessions, the second one when the first one is closed."""
    with Session(app.engine) as session:
        order = session.get_one(Order, 9)
    with Session(app.engine) as session:
        assert session.get_one(Customer, order.customer_id).name == "Customer 10"


@scenario(tempts="nested-checkout, session-scope", writes=True)
def inner_session_while_the_outer_one_holds_nothing(app: Application) -> None:
    """The outer session has not begun yet, and has committed the next time: it holds no connection either time."""
    with Session(app.engine) as outer:
        with Session(app.engine) as inner:
            assert inner.get_one(Tag, 1).name == "tag 1"
        outer.get_one(Ticket, 51).status = "closed"
        outer.commit()
        with Session(app.engine) as inner:
            assert inner.scalar(select(Ticket.status).where(Ticket.id == 51)) == "closed"


@scenario(tempts="nested-checkout")
def second_session_of_another_database(app: Application) -> None:
    """Archive and shop are two engines, so that neither waits for the other's connections."""
    archive = app.make_engine(pool_size=1, max_overflow=0)
    with Session(app.engine) as session, Session(archive) as old:
        order = session.get_one(Order, 10)
        assert old.scalar(select(func.count(Order.id)).where(Order.customer_id == order.customer_id)) == 5


@scenario(tempts="nested-checkout")
async def synchronous_engine_in_a_thread(app: Application) -> None:
    """An old library has a synchronous engine, and is called in a thread while the session is open."""

    def old_library() -> int:
        with app.engine.connect() as connection:
            return connection.scalar(select(func.count(Product.id))) or 0

    async with AsyncSession(app.async_engine) as session:
        assert (await session.get_one(Customer, 19)).name == "Customer 19"
        assert await asyncio.to_thread(old_library) == 50


@scenario(tempts="nested-checkout")
def inner_connection_without_a_pool(app: Application) -> None:
    """With NullPool there is no limit that two connections could use up."""
    engine = app.make_engine(poolclass=NullPool)
    with Session(engine) as session:
        assert session.get_one(Tag, 2).name == "tag 2"
        with engine.connect() as connection:
            assert connection.scalar(select(func.count(Tag.id))) == 20


@scenario(tempts="nested-checkout")
def the_one_connection_of_a_test(app: Application) -> None:
    """With StaticPool whoever asks gets the same connection."""
    engine = app.make_engine(poolclass=StaticPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as outer, engine.connect() as inner:
        assert outer.scalar(select(func.count(Tag.id))) == inner.scalar(text("SELECT count(*) FROM tags"))


@scenario(tempts="nested-checkout")
def inner_connection_of_a_pool_without_limit(app: Application) -> None:
    """This pool opens as many connections as are asked for."""
    engine = app.make_engine(pool_size=1, max_overflow=-1)
    with engine.connect() as outer, engine.connect() as inner:
        assert outer.scalar(select(func.count(Tag.id))) == inner.scalar(select(func.count(Tag.name)))


@scenario(tempts="nested-checkout", writes=True)
def savepoints_and_sessions_on_one_connection(app: Application) -> None:
    """Sessions that are given the connection, and savepoints, need no second one."""
    with app.engine.begin() as connection:
        connection.execute(update(Ticket).where(Ticket.id == 52).values(status="closed"))
        with Session(connection) as session, session.begin_nested():
            session.add(Entry(name="ticket 52"))
        with connection.begin_nested():
            assert inspect(connection).has_table("tickets")


@scenario(tempts="nested-checkout")
def two_threads_hold_one_each(app: Application) -> None:
    """Two threads hold a connection at the same moment, neither of them two."""
    both_hold = threading.Barrier(2)

    def count(model: Any) -> None:
        with app.engine.connect() as connection:
            both_hold.wait()
            connection.execute(select(func.count(model.id)))

    threads = [in_thread(count, Tag), in_thread(count, Category)]
    for thread in threads:
        thread.join()


@scenario(tempts="nested-checkout", writes=True)
async def background_task_after_the_commit(app: Application) -> None:
    """A task is started while the transaction is open, but takes its connection after the commit."""
    committed = asyncio.Event()

    async def tell() -> None:
        await committed.wait()
        async with AsyncSession(app.async_engine) as session:
            assert await session.scalar(select(Ticket.status).where(Ticket.id == 53)) == "closed"

    async with AsyncSession(app.async_engine) as session:
        (await session.get_one(Ticket, 53)).status = "closed"
        telling = asyncio.create_task(tell())
        await session.commit()
    committed.set()
    await telling


@scenario(tempts="nested-checkout, session-scope")
async def siblings_hold_one_each(app: Application) -> None:
    """Two tasks hold a connection at the same moment; who started them holds none."""
    factory = async_sessionmaker(app.async_engine)
    both_hold = asyncio.Barrier(2)

    async def load(model: Any) -> int:
        async with factory() as session:
            await session.connection()
            await both_hold.wait()
            return await session.scalar(select(func.count(model.id))) or 0

    assert await asyncio.gather(load(Tag), load(Category)) == [20, 15]


# -- pool-timeout -----------------------------------------------------------------------------------------------------


@scenario()
def refused_while_a_report_runs(app: Application) -> None:
    """A report has the only connection for longer than the request waits, which answers 503."""
    engine = app.make_engine(pool_size=1, max_overflow=0, pool_timeout=0.2)
    holding, refused = threading.Event(), threading.Event()

    def report() -> None:
        with engine.connect() as connection:
            connection.execute(select(func.count(Event.id)))
            holding.set()
            refused.wait(5)

    reporting = in_thread(report)
    holding.wait()
    try:
        with Session(engine) as session:
            status = 200 if session.get(Customer, 1) else 404  # finds: pool-timeout
    except TimeoutError:
        status = 503
    refused.set()
    reporting.join()
    assert status == 503


@scenario(own_requests=True)
def connection_forgotten_by_an_earlier_request(app: Application) -> None:
    """A request keeps its connection by mistake, and the next one that the same thread serves asks in vain."""
    engine = app.make_engine(pool_size=1, max_overflow=0, pool_timeout=0.2)
    forgotten = []

    def show_tags() -> int:
        connection = engine.connect()
        forgotten.append(connection)
        return len(connection.execute(select(Tag.id)).all())

    def show_categories() -> int:
        try:
            with engine.connect() as connection:  # finds: pool-timeout
                return len(connection.execute(select(Category.id)).all())
        except TimeoutError:
            return 503

    with app.request("GET /tags"):
        assert show_tags() == 20
    with app.request("GET /categories"):
        assert show_categories() == 503
    forgotten.pop().close()


@scenario(own_requests=True)
def health_check_beside_a_stream(app: Application) -> None:
    """The health check of a server that streams an export finds no connection left."""
    engine = app.make_engine(pool_size=1, max_overflow=0, pool_timeout=0.15)
    answers: list[str] = []

    def health_check() -> None:
        try:
            with app.request("GET /health"), engine.connect() as connection:  # finds: pool-timeout
                connection.execute(text("SELECT 1"))
            answers.append("well")
        except TimeoutError:
            answers.append("unwell")

    checking = threading.Thread(target=health_check)
    with app.request("GET /export"), engine.connect() as connection:
        streaming = connection.execution_options(yield_per=3000)
        for number, _rows in enumerate(streaming.execute(select(Event.id, Event.kind)).partitions()):
            if number == 0:
                checking.start()
            time.sleep(0.15)  # sends
    checking.join()
    assert answers == ["unwell"]


@scenario(tempts="pool-timeout", writes=True)
async def inner_session_starves(app: Application) -> None:
    """The only connection is held by the very task that waits for one: that says it all, time-out included."""
    engine = app.make_async_engine(pool_size=1, max_overflow=0, pool_timeout=0.2)
    audited = True
    async with AsyncSession(engine) as session:
        (await session.get_one(Account, 30)).balance += 1
        await session.flush()
        try:
            async with AsyncSession(engine) as audit:
                audit.add(Entry(name="account 30"))
                await audit.commit()  # finds: nested-checkout
        except TimeoutError:
            audited = False
        await session.commit()
    await engine.dispose()
    assert not audited


@scenario(tempts="pool-timeout")
def connection_comes_back_in_time(app: Application) -> None:
    """The pool would wait for two seconds, and has to for a few milliseconds."""
    engine = app.make_engine(pool_size=1, max_overflow=0, pool_timeout=2)
    holding = threading.Event()

    def hold() -> None:
        with engine.connect() as connection:
            connection.execute(select(func.count(Tag.id)))
            holding.set()
            time.sleep(0.02)

    holder = in_thread(hold)
    holding.wait()
    with Session(engine) as session:
        assert session.get_one(Category, 3).name == "Category 3"
    holder.join()


@scenario(tempts="pool-timeout, pool-wait, database-error")
async def request_gives_up_before_the_pool_does(app: Application) -> None:
    """The endpoint has a time limit of its own, which cancels it while it waits for a connection."""
    engine = app.make_async_engine(pool_size=1, max_overflow=0, pool_timeout=5)
    holding, given_up = asyncio.Event(), asyncio.Event()

    async def other_request() -> None:
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
            holding.set()
            await given_up.wait()

    other = asyncio.create_task(other_request())
    await holding.wait()
    with suppress(asyncio.TimeoutError):
        async with asyncio.timeout(0.04), AsyncSession(engine) as session:
            await session.scalar(select(func.count(Tag.id)))
    given_up.set()
    await other
    await engine.dispose()


@scenario(tempts="pool-timeout, pool-wait, database-error")
def server_not_there_at_first(app: Application) -> None:
    """The server refuses the first connection, and the second attempt succeeds: nothing of it is the pool's doing."""
    engine = app.make_engine(pool_size=1, max_overflow=0, pool_timeout=0.2)
    refusals = [psycopg.OperationalError("connection refused")]

    @event.listens_for(engine, "do_connect")
    def not_yet(*_: Any) -> None:
        if refusals:
            raise refusals.pop()

    for _attempt in range(2):
        with suppress(OperationalError), engine.connect() as connection:
            assert connection.scalar(select(func.count(Tag.id))) == 20


@scenario(tempts="pool-timeout, pool-wait")
def own_limit_in_front_of_the_pool(app: Application) -> None:
    """Who finds no place within 50 ms is sent away by the application itself, before it asks the pool."""
    engine = app.make_engine(pool_size=1, max_overflow=0, pool_timeout=0.2)
    places, answers = threading.BoundedSemaphore(1), []
    working = threading.Event()

    def handle() -> None:
        if not places.acquire(timeout=0.05):
            answers.append(429)
            return
        try:
            with engine.connect() as connection:
                working.set()
                connection.execute(text("SELECT pg_sleep(0.3)"))
            answers.append(200)
        finally:
            places.release()

    first = in_thread(handle)
    working.wait()
    second = in_thread(handle)
    for thread in (first, second):
        thread.join()
    assert sorted(answers) == [200, 429]


# -- pool-fanout, and what waits without being one --------------------------------------------------------------------


async def order_status(engine: AsyncEngine, order_id: int) -> str:
    """Look one order up, with a session of its own, which takes 0.1 s."""
    async with AsyncSession(engine) as session:
        pause = select(func.pg_sleep(0.1)).scalar_subquery()
        return (await session.execute(select(Order.status, pause).where(Order.id == order_id))).one()[0]


@scenario()
async def gather_over_everything(app: Application) -> None:
    """Forty look-ups are gathered at once, for which an engine has fifteen connections."""

    async def look_up(order_id: int) -> str:
        async with AsyncSession(app.async_engine) as session:
            pause = select(func.pg_sleep(0.15)).scalar_subquery()
            query = select(Order.status, pause).where(Order.id == order_id)
            return (await session.execute(query)).one()[0]  # finds: pool-fanout

    assert len(await asyncio.gather(*(look_up(order_id) for order_id in range(1, 41)))) == 40


@scenario()
async def a_task_for_each_message(app: Application) -> None:
    """A consumer starts a task for each message, and each takes a connection from a pool of two."""
    engine = app.make_async_engine(pool_size=2, max_overflow=0)
    handled: list[str] = []

    async def handle(message_id: int) -> None:
        async with engine.connect() as connection:  # finds: pool-fanout
            await connection.execute(text("SELECT pg_sleep(0.08)"))
            handled.append(await connection.scalar(select(Message.body).where(Message.id == message_id)) or "")

    async with asyncio.TaskGroup() as group:
        for message_id in range(1, 9):
            group.create_task(handle(message_id))
    await engine.dispose()
    assert len(handled) == 8


@scenario()
async def fan_out_beyond_the_time_limit(app: Application) -> None:
    """Six tasks ask a pool of two, and those behind are refused before it is their turn."""
    engine = app.make_async_engine(pool_size=2, max_overflow=0, pool_timeout=0.2)

    async def report(status: str) -> int:
        async with AsyncSession(engine) as session:
            pause = select(func.pg_sleep(0.4)).scalar_subquery()
            query = select(func.count(Order.id), pause).where(Order.status == status)
            return (await session.execute(query)).one()[0]  # finds: pool-fanout

    statuses = ("new", "paid", "sent", "returned", "lost", "found")
    results = await asyncio.gather(*(report(status) for status in statuses), return_exceptions=True)
    await engine.dispose()
    assert sum(isinstance(result, TimeoutError) for result in results) == 4


@scenario(tempts="pool-fanout, pool-wait")
async def children_of_a_holder_crowd_its_pool(app: Application) -> None:
    """The parent keeps one of three connections, and eight children share the others: three parents would starve."""
    engine = app.make_async_engine(pool_size=3, max_overflow=0)

    async def look_up(customer_id: int) -> str:
        async with AsyncSession(engine) as session:
            pause = select(func.pg_sleep(0.08)).scalar_subquery()
            query = select(Customer.name, pause).where(Customer.id == customer_id)
            return (await session.execute(query)).one()[0]  # finds: nested-checkout

    async with AsyncSession(engine) as session:
        keys = (await session.scalars(select(Customer.id).order_by(Customer.id).limit(8))).all()
        names = await asyncio.gather(*map(look_up, keys))
    await engine.dispose()
    assert names[-1] == "Customer 8"


@scenario(tempts="pool-wait, query-in-loop")
async def completed_in_any_order(app: Application) -> None:
    """Answers are sent as they come, from a pool that has one connection for nine look-ups."""
    engine = app.make_async_engine(pool_size=1, max_overflow=0)

    @asynccontextmanager
    async def connected() -> AsyncIterator[Any]:
        async with engine.connect() as connection:  # finds: pool-fanout
            yield connection

    async def price(product_id: int) -> int:
        async with connected() as connection:
            await connection.execute(text("SELECT pg_sleep(0.04)"))
            return await connection.scalar(select(Product.price).where(Product.id == product_id)) or 0

    prices = [await answer for answer in asyncio.as_completed([price(product_id) for product_id in range(1, 10)])]
    await engine.dispose()
    assert sum(prices) == 45


@scenario(tempts="pool-fanout, pool-wait, query-in-loop")
async def semaphore_of_the_size_of_the_pool(app: Application) -> None:
    """As many tasks as the pool has connections may run, and the others wait before they ask for one."""
    engine = app.make_async_engine(pool_size=3, max_overflow=0)
    places = asyncio.Semaphore(3)

    async def bounded(order_id: int) -> str:
        async with places:
            return await order_status(engine, order_id)

    assert len(await asyncio.gather(*map(bounded, range(1, 10)))) == 9
    await engine.dispose()


@scenario(tempts="pool-fanout, pool-wait, query-in-loop")
async def workers_share_a_queue(app: Application) -> None:
    """Three workers take nine jobs from a queue, each with its own connection of a pool of four."""
    engine = app.make_async_engine(pool_size=4, max_overflow=0)
    jobs: asyncio.Queue[int] = asyncio.Queue()
    for order_id in range(1, 10):
        jobs.put_nowait(order_id)
    done: list[str] = []

    async def worker() -> None:
        while not jobs.empty():
            done.append(await order_status(engine, jobs.get_nowait()))

    await asyncio.gather(worker(), worker(), worker())
    await engine.dispose()
    assert len(done) == 9


@scenario(tempts="pool-fanout, pool-wait, query-in-loop")
async def as_many_tasks_as_connections(app: Application) -> None:
    """Twelve tasks at once, for which pool and overflow have room."""
    assert len(await asyncio.gather(*(order_status(app.async_engine, order_id) for order_id in range(1, 13)))) == 12


@scenario(tempts="pool-fanout, pool-wait, query-in-loop")
async def gather_without_a_pool(app: Application) -> None:
    """With NullPool each of the tasks has a connection made for it."""
    engine = app.make_async_engine(poolclass=NullPool)
    assert len(await asyncio.gather(*(order_status(engine, order_id) for order_id in range(1, 9)))) == 8


@scenario(tempts="pool-fanout, pool-wait")
async def crowd_that_is_served_at_once(app: Application) -> None:
    """Six tasks queue for two connections that are there already, each for a millisecond."""
    engine = app.make_async_engine(pool_size=2, max_overflow=0)

    async def ping() -> int:
        async with engine.connect() as connection:
            return await connection.scalar(text("SELECT 3")) or 0

    await asyncio.gather(ping(), ping())
    assert await asyncio.gather(*(ping() for _ in range(6))) == [3] * 6
    await engine.dispose()


@scenario(tempts="pool-fanout")
async def two_wait_for_the_third(app: Application) -> None:
    """Three tasks share a pool of one: two wait, which is not yet a crowd."""
    engine = app.make_async_engine(pool_size=1, max_overflow=0)

    async def count(status: str) -> int:
        async with AsyncSession(engine) as session:
            pause = select(func.pg_sleep(0.2)).scalar_subquery()
            query = select(func.count(Order.id), pause).where(Order.status == status)
            return (await session.execute(query)).one()[0]  # finds: pool-wait

    assert await asyncio.gather(count("new"), count("paid"), count("sent")) == [50, 50, 50]
    await engine.dispose()


@scenario(tempts="pool-fanout")
async def parts_of_a_dashboard_at_different_lines(app: Application) -> None:
    """Four different queries are gathered over a pool of one; no two of them ask at the same line."""
    engine = app.make_async_engine(pool_size=1, max_overflow=0)
    pause = text("SELECT pg_sleep(0.2)")

    async def orders() -> None:
        async with engine.connect() as connection:
            await connection.execute(pause)

    async def tickets() -> None:
        async with engine.connect() as connection:  # finds: pool-wait
            await connection.execute(pause)

    async def visits() -> None:
        async with engine.connect() as connection:  # finds: pool-wait
            await connection.execute(pause)

    async def messages() -> None:
        async with engine.connect() as connection:  # finds: pool-wait
            await connection.execute(pause)

    await asyncio.gather(orders(), tickets(), visits(), messages())
    await engine.dispose()


@scenario(tempts="pool-fanout")
def threads_queue_for_a_pool_of_two(app: Application) -> None:
    """Six threads share a pool of two: they wait, but they are no tasks of an event loop."""
    engine = app.make_engine(pool_size=2, max_overflow=0)

    def count(customer_id: int) -> None:
        with engine.connect() as connection:  # finds: pool-wait
            connection.execute(text("SELECT pg_sleep(0.2)"))

    threads = [in_thread(count, customer_id) for customer_id in range(1, 7)]
    for thread in threads:
        thread.join()
