"""Sessions and transactions: how long they live, who shares them, what is left unsaved, and what resembles it."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from sqlalchemy import event, func, select, text, update
from sqlalchemy.exc import IntegrityError, TimeoutError
from sqlalchemy.orm import Session, make_transient, scoped_session, selectinload, sessionmaker
from sqlalchemy.pool import NullPool

from benchmarks.corpus import Application, scenario
from benchmarks.corpus.models import (
    Account,
    Category,
    Customer,
    Entry,
    Event,
    Order,
    Post,
    Product,
    Tag,
    Thread,
    Ticket,
)


def in_thread(function: Callable[..., Any], *arguments: Any) -> threading.Thread:
    """Start a thread that belongs to the same request."""
    thread = threading.Thread(target=contextvars.copy_context().run, args=(function, *arguments))
    thread.start()
    return thread


# -- session-scope: a session that outlives its request ---------------------------------------------------------------


@scenario(own_requests=True)
def session_of_the_module(app: Application) -> None:
    """The application has one global session, whose transaction no request ends."""
    db_session = Session(app.engine)
    with app.request("GET /products"):
        products = db_session.scalars(select(Product).where(Product.category_id == 4)).all()
    with app.request("GET /categories"):
        category = db_session.scalar(select(Category).where(Category.id == 4))  # finds: session-scope
    assert (len(products), category.name) == (4, "Category 4")
    db_session.close()


@scenario(own_requests=True)
def scoped_session_never_removed(app: Application) -> None:
    """The thread's scoped session goes from one request into the next one, for nobody calls remove()."""
    db = scoped_session(sessionmaker(app.engine))

    def show_customer(customer_id: int) -> str:
        return db.scalars(select(Customer).where(Customer.id == customer_id)).one().name

    def show_tag(tag_id: int) -> str:
        return db.get_one(Tag, tag_id).name  # finds: session-scope

    with app.request("GET /customers/1"):
        assert show_customer(1) == "Customer 1"
    with app.request("GET /tags/2"):
        assert show_tag(2) == "tag 2"
    db.remove()


@scenario(own_requests=True)
def cached_object_still_attached(app: Application) -> None:
    """An object is cached together with the open session that loaded it, which the next request loads from."""
    cache: dict[str, Customer] = {}
    with app.request("POST /login"):
        session = Session(app.engine)
        cache["user"] = session.scalars(select(Customer).where(Customer.email == "customer8@example.org")).one()
    with app.request("GET /me"):
        bio = cache["user"].profile.bio  # finds: session-scope
    assert bio == "bio 8"
    session.close()


@scenario(tempts="session-scope", own_requests=True)
def session_per_request(app: Application) -> None:
    """Each request makes its session and closes it."""
    factory = sessionmaker(app.engine)
    for customer_id in (1, 2, 3):
        with app.request(f"GET /customers/{customer_id}"), factory() as session:
            assert session.get_one(Customer, customer_id).name == f"Customer {customer_id}"


@scenario(tempts="session-scope", own_requests=True)
def scoped_session_removed_after_each_request(app: Application) -> None:
    """A scoped session with remove() at the end of the request, as the documentation has it."""
    db = scoped_session(sessionmaker(app.engine))
    for tag_id in (1, 2, 3):
        with app.request(f"GET /tags/{tag_id}"):
            try:
                assert db.get_one(Tag, tag_id).name == f"tag {tag_id}"
            finally:
                db.remove()


@scenario(tempts="session-scope", own_requests=True)
def closed_session_used_again(app: Application) -> None:
    """One Session object serves two requests, and is closed in between: it begins anew."""
    session = Session(app.engine)
    with app.request("GET /orders"):
        assert session.scalar(select(func.count(Order.id))) == 200
        session.close()
    with app.request("GET /threads"):
        assert session.scalar(select(func.count(Thread.id))) == 60
        session.close()


@scenario(tempts="session-scope", own_requests=True, writes=True)
def global_session_with_begin_blocks(app: Application) -> None:
    """A long-lived session whose every transaction is a block inside of one request."""
    session = Session(app.engine)
    for ticket_id in (1, 2):
        with app.request(f"POST /tickets/{ticket_id}/close"), session.begin():
            session.get_one(Ticket, ticket_id).status = "closed"
    session.close()


@scenario(tempts="session-scope", own_requests=True)
def global_session_rolled_back_each_time(app: Application) -> None:
    """A read-only job ends the transaction of its one session by a rollback after every round."""
    session = Session(app.engine)
    for number in range(3):
        with app.request(f"job {number}"):
            assert session.scalar(select(func.count(Ticket.id)).where(Ticket.status == "open")) == 3000
            session.rollback()
    session.close()


@scenario(tempts="session-scope", own_requests=True)
def detached_object_kept_between_requests(app: Application) -> None:
    """The user is loaded with all that is needed, detached, and kept in a cache."""
    cache: dict[str, Customer] = {}
    with app.request("POST /login"), Session(app.engine) as session:
        query = select(Customer).where(Customer.id == 8).options(selectinload(Customer.tags))
        cache["user"] = session.scalars(query).one()
    with app.request("GET /me"):
        assert len(cache["user"].tags) == 3


@scenario(tempts="session-scope", own_requests=True, writes=True)
def detached_object_merged_in_the_next_request(app: Application) -> None:
    """An object of the last request is changed, merged into this request's session and committed."""
    with app.request("GET /tickets/9/edit"), Session(app.engine) as session:
        ticket = session.get_one(Ticket, 9)
    with app.request("POST /tickets/9"), Session(app.engine) as session:
        ticket.title = "A better title"
        session.merge(ticket)
        session.commit()


# -- session-scope: a session that is shared --------------------------------------------------------------------------


@scenario()
def session_shared_by_two_threads(app: Application) -> None:
    """A thread still counts on the session when the main thread sends its own statement on it."""
    with Session(app.engine) as session:
        session.connection()
        started = threading.Event()

        def count_events() -> None:
            pause = select(func.pg_sleep(0.25)).scalar_subquery()
            query = select(func.count(Event.id), pause)
            started.set()
            session.execute(query).all()

        counting = in_thread(count_events)
        started.wait()
        time.sleep(0.08)
        name = session.scalar(select(Customer.name).where(Customer.id == 6))  # finds: session-scope
        counting.join()
    assert name == "Customer 6"


@scenario()
def thread_pool_over_one_session(app: Application) -> None:
    """The parts of a report are computed by a pool of threads, all with the session of the request."""
    with Session(app.engine) as session:
        session.connection()

        def part(delay: float, kind: str) -> int:
            time.sleep(delay)  # fetches the template
            query = select(func.count(Event.id), select(func.pg_sleep(0.2)).scalar_subquery())
            return session.execute(query.where(Event.kind == kind)).one()[0]  # finds: session-scope

        with ThreadPoolExecutor(2) as threads:
            views = threads.submit(contextvars.copy_context().run, part, 0.0, "view")
            clicks = threads.submit(contextvars.copy_context().run, part, 0.08, "click")
    assert views.result() + clicks.result() == 8000


@scenario(tempts="session-scope")
def two_threads_with_a_session_each(app: Application) -> None:
    """Two threads count at the same moment, each with its own session."""
    counts: dict[str, int] = {}

    def count(kind: str) -> None:
        with Session(app.engine) as session:
            query = select(func.count(Event.id), select(func.pg_sleep(0.1)).scalar_subquery())
            counts[kind] = session.execute(query.where(Event.kind == kind)).one()[0]

    threads = [in_thread(count, kind) for kind in ("view", "click")]
    for thread in threads:
        thread.join()
    assert counts == {"view": 4000, "click": 4000}


@scenario(tempts="session-scope")
def session_handed_over_to_a_thread(app: Application) -> None:
    """A thread works with the session while the main thread waits for it, and then goes on itself."""
    with Session(app.engine) as session:
        assert session.get_one(Customer, 1).name == "Customer 1"

        def load() -> None:
            assert session.get_one(Customer, 2).name == "Customer 2"

        in_thread(load).join()
        assert session.get_one(Customer, 3).name == "Customer 3"


@scenario(tempts="session-scope")
def scoped_session_in_threads(app: Application) -> None:
    """The scoped session is another one in each thread."""
    db = scoped_session(sessionmaker(app.engine))

    def work(order_id: int) -> None:
        pause = select(func.pg_sleep(0.05)).scalar_subquery()
        try:
            assert db.execute(select(Order.status, pause).where(Order.id == order_id)).one()[0] == "new"
        finally:
            db.remove()

    threads = [in_thread(work, order_id) for order_id in (4, 8, 12)]
    for thread in threads:
        thread.join()


# -- session-scope: changes that nobody saves -------------------------------------------------------------------------


@scenario()
def added_and_not_committed(app: Application) -> None:
    """The handler adds an entry, and forgets the commit."""
    with Session(app.engine) as session:  # finds: session-scope
        number = session.scalar(select(func.count(Entry.id))) or 0
        session.add(Entry(name="feedback", value=number + 1))


@scenario()
def changed_and_not_committed(app: Application) -> None:
    """A customer's name is changed in a session that is closed at once."""
    with Session(app.engine) as session:  # finds: session-scope
        customer = session.scalars(select(Customer).where(Customer.email == "customer5@example.org")).one()
        customer.name = "Ada Lovelace"


@scenario()
def flushed_and_not_committed(app: Application) -> None:
    """The flush gives the entry its key, which makes it look saved."""
    session = Session(app.engine)
    try:
        entry = Entry(name="seemingly saved")
        session.add(entry)
        session.flush()
        assert entry.id is not None
    finally:
        session.close()  # finds: session-scope


@scenario()
def bulk_update_not_committed(app: Application) -> None:
    """A job marks overdue orders with one UPDATE, of which nothing is left."""
    with Session(app.engine) as session:  # finds: session-scope
        overdue = update(Order).where(Order.status == "new", Order.id < 20).values(status="overdue")
        assert session.execute(overdue).rowcount == 4


@scenario()
def dependency_that_does_not_commit(app: Application) -> None:
    """The framework's session dependency only closes, and this endpoint trusted it to commit."""

    @contextmanager
    def get_session() -> Iterator[Session]:
        session = Session(app.engine)
        try:
            yield session
        finally:
            session.close()  # finds: session-scope

    def delete_post(session: Session, post_id: int) -> dict[str, bool]:
        session.delete(session.get_one(Post, post_id))
        return {"deleted": True}

    with get_session() as db:
        assert delete_post(db, 17) == {"deleted": True}


@scenario(writes=True)
def second_change_after_the_commit(app: Application) -> None:
    """The first change is committed; the second one comes too late."""
    with Session(app.engine) as session:  # finds: session-scope
        ticket = session.get_one(Ticket, 100)
        ticket.status = "closed"
        session.commit()
        ticket.title = "Closed: " + ticket.title


@scenario()
def merged_and_not_committed(app: Application) -> None:
    """An edited object is merged into a session, which is closed without a commit."""
    with Session(app.engine) as session:
        ticket = session.get_one(Ticket, 5)
    ticket.title = "Edited"
    with Session(app.engine) as session:  # finds: session-scope
        session.merge(ticket)


@scenario(tempts="session-scope")
def exception_leaves_the_block(app: Application) -> None:
    """The validation fails after the object was added: the changes are to be lost."""

    def create_entry(name: str) -> None:
        with Session(app.engine) as session:
            session.add(Entry(name=name))
            if session.scalar(select(func.count(Tag.id)).where(Tag.name == name)):
                raise ValueError(f"{name} is a tag already")
            session.commit()

    try:
        create_entry("tag 3")
        created = True
    except ValueError:
        created = False
    assert not created


@scenario(tempts="session-scope")
def exception_through_the_dependency(app: Application) -> None:
    """An endpoint raises with changes pending; the dependency closes while the exception is on its way."""

    @contextmanager
    def get_session() -> Iterator[Session]:
        session = Session(app.engine)
        try:
            yield session
        finally:
            session.close()

    def endpoint() -> None:
        with get_session() as session:
            session.get_one(Ticket, 3).status = "closed"
            raise PermissionError("not your ticket")

    try:
        endpoint()
        status = 200
    except PermissionError:
        status = 403
    assert status == 403


@scenario(tempts="session-scope")
def dry_run_rolled_back(app: Application) -> None:
    """A dry run flushes its changes to see whether they are possible, and takes them back."""
    with Session(app.engine) as session:
        session.add_all([Entry(name="first"), Entry(name="second")])
        session.flush()
        possible = session.scalar(select(func.count(Entry.id)))
        session.rollback()
    assert possible == 2


@scenario(tempts="session-scope")
def read_only_handler(app: Application) -> None:
    """Nothing is changed, so there is nothing to commit."""
    with Session(app.engine) as session:
        order = session.scalars(select(Order).where(Order.id == 7)).one()
        session.execute(text("SET LOCAL work_mem = '8MB'"))
        locked = session.scalars(select(Account).where(Account.id == 7).with_for_update()).one()
        assert (order.id, locked.balance) == (7, 100)


@scenario(tempts="session-scope")
def changed_back_to_the_old_value(app: Application) -> None:
    """A form assigns every field again, and none has another value than before."""
    form = {"name": "Customer 11", "country": "AT"}
    with Session(app.engine) as session:
        customer = session.get_one(Customer, 11)
        customer.name = customer.name.upper()
        for field, value in form.items():
            setattr(customer, field, value)


@scenario(tempts="session-scope")
def transient_object_never_added(app: Application) -> None:
    """A preview is an object that is not meant to be saved."""
    with Session(app.engine) as session:
        template = session.get_one(Ticket, 4)
        preview = Ticket(title=f"Copy of {template.title}", status="draft")
    assert preview.title == "Copy of Ticket 4"


@scenario(tempts="session-scope")
def expunged_before_the_change(app: Application) -> None:
    """The customer is taken out of the session, and made anonymous for an export."""
    with Session(app.engine) as session:
        customer = session.get_one(Customer, 21)
        session.expunge(customer)
        customer.name, customer.email = "anonymous", "-"
        draft = Entry(name="draft")
        session.add(draft)
        session.expunge(draft)
        country = session.scalar(select(Customer.country).where(Customer.id == 22))
    assert (customer.country, country) == ("AT", "CH")


@scenario(tempts="session-scope", writes=True)
def copied_by_make_transient(app: Application) -> None:
    """A ticket is copied by making it transient; the copy is saved."""
    with Session(app.engine) as session:
        ticket = session.get_one(Ticket, 8)
        session.expunge(ticket)
        make_transient(ticket)
        ticket.id, ticket.description = None, "copied"
        session.add(ticket)
        session.commit()
        assert ticket.id > 3000


@scenario(tempts="session-scope")
def changed_after_the_close(app: Application) -> None:
    """The response works on the detached object, after its session."""
    with Session(app.engine) as session:
        customer = session.get_one(Customer, 30)
    customer.name = customer.name.title()
    assert customer.name == "Customer 30"


@scenario(tempts="session-scope", writes=True)
def begin_blocks(app: Application) -> None:
    """Blocks of begin() commit by themselves."""
    with Session(app.engine) as session, session.begin():
        session.add(Entry(name="by the session"))
    with sessionmaker(app.engine).begin() as session:
        session.add(Entry(name="by the factory"))
    with Session(app.engine) as session:
        assert session.scalar(select(func.count(Entry.id))) == 2


@scenario(tempts="session-scope, database-error", writes=True)
def savepoint_for_a_duplicate(app: Application) -> None:
    """A duplicate is survived by a savepoint, and the rest is committed."""
    with Session(app.engine) as session:
        session.add(Entry(name="unique"))
        session.flush()
        try:
            with session.begin_nested():
                session.add(Entry(name="unique"))
        except IntegrityError:
            session.get_one(Ticket, 1).status = "duplicate"
        session.commit()


@scenario(tempts="session-scope")
def savepoint_taken_back(app: Application) -> None:
    """A trial inside of a savepoint is rolled back, so that nothing is open when the session closes."""
    with Session(app.engine) as session:
        before = session.scalar(select(func.count(Entry.id)))
        trial = session.begin_nested()
        session.add(Entry(name="trial"))
        session.flush()
        trial.rollback()
        assert before == session.scalar(select(func.count(Entry.id)).where(Entry.value >= 0))


@scenario(tempts="session-scope")
def begin_block_left_by_an_exception(app: Application) -> None:
    """The begin() block rolls back because of the exception, which the handler answers."""
    with Session(app.engine) as session:
        try:
            with session.begin():
                session.get_one(Account, 3).balance -= 500
                session.flush()
                if session.get_one(Account, 3).balance < 0:
                    raise ValueError("overdrawn")
        except ValueError:
            answer = "refused"
    assert answer == "refused"


@scenario(tempts="session-scope")
def external_transaction_as_in_tests(app: Application) -> None:
    """A test runs the application's code, commits included, in a transaction that it takes back."""
    with app.engine.connect() as connection:
        transaction = connection.begin()
        with Session(bind=connection, join_transaction_mode="create_savepoint") as session:
            session.add(Entry(name="fixture"))
            session.commit()
            assert session.scalar(select(func.count(Entry.id))) == 1
        transaction.rollback()


@scenario(tempts="session-scope")
def external_transaction_with_flush_only(app: Application) -> None:
    """A test's fixture flushes its rows, and the teardown takes the outer transaction back on purpose."""
    connection = app.engine.connect()
    transaction = connection.begin()
    session = Session(bind=connection, join_transaction_mode="create_savepoint")
    session.add(Entry(name="fixture"))
    session.flush()
    assert session.scalar(select(func.count(Entry.id))) == 1
    session.close()
    transaction.rollback()
    connection.close()


@scenario(tempts="session-scope", writes=True)
def flushed_into_the_callers_transaction(app: Application) -> None:
    """The session only flushes; the connection it was given belongs to the caller, who commits."""

    def register(session: Session, name: str) -> None:
        session.add(Entry(name=name))
        session.flush()

    with app.engine.begin() as connection:
        connection.execute(update(Ticket).where(Ticket.id == 77).values(status="registered"))
        with Session(connection) as session:
            register(session, "ticket 77")
    with Session(app.engine) as session:
        assert session.scalar(select(func.count(Entry.id))) == 1


# -- Long transactions ------------------------------------------------------------------------------------------------


@scenario(writes=True)
def payment_inside_of_a_transaction(app: Application) -> None:
    """The payment provider is called while the order's transaction is open."""
    with Session(app.engine) as session:
        order = session.scalars(  # finds: idle-in-transaction
            select(Order).where(Order.id == 40).with_for_update()
        ).one()
        time.sleep(1.1)  # calls the payment provider
        order.status = "paid"
        session.commit()


@scenario()
def rendering_with_the_session_open(app: Application) -> None:
    """All has been loaded, and a document is rendered before the session is closed."""
    with Session(app.engine) as session:
        query = select(func.sum(Order.total)).where(Order.customer_id == 3)
        total = session.scalar(query)  # finds: idle-in-transaction
        time.sleep(1.1)  # renders the document
    assert total > 0


@scenario(writes=True)
def batch_in_one_transaction(app: Application) -> None:
    """A nightly job goes through all tickets in one transaction, with a pause between the batches."""
    with app.engine.begin() as connection:
        for first in range(1, 3000, 750):
            batch = update(Ticket).where(Ticket.id.between(first, first + 749)).values(status="archived")
            connection.execute(batch)  # finds: long-transaction
            time.sleep(0.3)


@scenario(tempts="long-transaction, idle-in-transaction, connection-held")
def waits_before_the_first_statement(app: Application) -> None:
    """The session is made early, and sends its first statement when the provider has answered."""
    with Session(app.engine) as session:
        session.begin()
        time.sleep(1.1)  # calls the provider
        assert session.get_one(Order, 40).customer_id == 1


@scenario(tempts="long-transaction, idle-in-transaction, connection-held", writes=True)
def waits_after_the_commit(app: Application) -> None:
    """The mail is sent after the commit, in the same session block."""
    with Session(app.engine, expire_on_commit=False) as session:
        ticket = session.get_one(Ticket, 14)
        ticket.status = "answered"
        session.commit()
        time.sleep(1.1)  # sends the mail
    assert ticket.status == "answered"


@scenario(tempts="long-transaction, idle-in-transaction, engine-settings")
def slow_work_with_autocommit(app: Application) -> None:
    """With AUTOCOMMIT there is no transaction that could be long; but the connection is kept from others."""
    engine = app.make_engine(isolation_level="AUTOCOMMIT", pool_size=2)
    with engine.connect() as connection:  # finds: connection-held
        products = connection.execute(select(func.count(Product.id))).scalar_one()
        time.sleep(1.1)  # calculates
        categories = connection.execute(select(func.count(Category.id))).scalar_one()
    assert (products, categories) == (50, 15)


@scenario(tempts="long-transaction, query-in-loop, repeated-query")
def many_short_transactions(app: Application) -> None:
    """A worker looks for work four times within a second and more, and ends its transaction every time."""
    with Session(app.engine) as session:
        for _ in range(4):
            assert session.scalar(select(Ticket.id).where(Ticket.status == "urgent").limit(1)) is None
            session.rollback()
            time.sleep(0.28)


# -- Slow statements --------------------------------------------------------------------------------------------------


@scenario()
def slow_report(app: Application) -> None:
    """A report takes more than half a second in the server."""
    with Session(app.engine) as session:
        slow = select(func.sum(Order.total), select(func.pg_sleep(0.6)).scalar_subquery())
        total, _ = session.execute(slow.where(Order.status == "sent")).one()  # finds: slow-query
    assert total > 0


@scenario(writes=True)
def update_waits_for_a_lock(app: Application) -> None:
    """An UPDATE has to wait until another transaction lets go of the row."""
    locked = threading.Event()

    def audit() -> None:
        with app.engine.begin() as connection:
            account = select(Account.id).where(Account.id == 50)
            connection.execute(account.with_for_update())  # finds: idle-in-transaction
            locked.set()
            time.sleep(0.75)

    auditor = in_thread(audit)
    locked.wait()
    with app.engine.begin() as connection:
        pay_in = update(Account).where(Account.id == 50).values(balance=Account.balance + 10)
        connection.execute(pay_in)  # finds: slow-query
    auditor.join()


@scenario(tempts="slow-query, query-in-loop")
def ten_statements_of_some_time(app: Application) -> None:
    """Ten pages take 60 ms each; none of them is slow."""
    seen = last = 0
    with Session(app.engine) as session:
        for _ in range(10):
            pause = select(func.pg_sleep(0.06)).scalar_subquery()
            page = select(Ticket.id, pause).where(Ticket.id > last).order_by(Ticket.id).limit(20)
            keys = [row.id for row in session.execute(page)]
            seen, last = seen + len(keys), keys[-1]
    assert seen == 200


@scenario(tempts="slow-query, oversized-result, long-transaction")
def slow_consumer_of_a_stream(app: Application) -> None:
    """The statement is quick; what is done with its streamed rows is not."""
    with app.engine.connect() as connection:
        streaming = connection.execution_options(yield_per=3000)
        for partition in streaming.execute(select(Event.id, Event.kind)).partitions():
            assert len(partition) == 3000
            time.sleep(0.17)  # writes a file


# -- Waits for a connection -------------------------------------------------------------------------------------------


@scenario()
def waits_for_a_busy_pool(app: Application) -> None:
    """A report holds the only connection while the request needs one."""
    engine = app.make_engine(pool_size=1, max_overflow=0)
    holding = threading.Event()

    def report() -> None:
        with Session(engine) as session:
            session.scalar(select(func.count(Event.id)))
            holding.set()
            time.sleep(0.3)

    reporting = in_thread(report)
    holding.wait()
    with Session(engine) as session:
        customer = session.get(Customer, 1)  # finds: pool-wait
    reporting.join()
    assert customer is not None


@scenario()
def waits_in_connect(app: Application) -> None:
    """With Core it is connect() that has to wait."""
    engine = app.make_engine(pool_size=1, max_overflow=0)
    holding = threading.Event()

    def hold() -> None:
        with engine.connect() as connection:
            connection.execute(select(Tag.name).where(Tag.id == 1))
            holding.set()
            time.sleep(0.3)

    holder = in_thread(hold)
    holding.wait()
    with engine.connect() as connection:  # finds: pool-wait
        assert connection.scalar(select(func.count(Tag.id))) == 20
    holder.join()


@scenario(tempts="pool-wait, pool-timeout")
def second_session_on_a_pool_of_one(app: Application) -> None:
    """The handler opens a second session inside of the first one, waits for its own connection, and gives up."""
    engine = app.make_engine(pool_size=1, max_overflow=0, pool_timeout=0.3)
    with Session(engine) as session:
        order = session.get_one(Order, 3)
        try:
            with Session(engine) as audit:
                audit.get(Entry, order.id)  # finds: nested-checkout
        except TimeoutError:
            audited = False
    assert not audited


@scenario(tempts="pool-wait")
def pool_of_one_used_in_turn(app: Application) -> None:
    """A pool of one connection is enough for sessions that come one after the other."""
    engine = app.make_engine(pool_size=1, max_overflow=0)
    for model in (Tag, Product, Category):
        with Session(engine) as session:
            assert session.scalar(select(func.count(model.id)))


@scenario(tempts="pool-wait")
def pool_with_room_for_both(app: Application) -> None:
    """Two threads hold a connection for a while, and the pool has two, one of them overflow."""
    engine = app.make_engine(pool_size=1, max_overflow=1)

    def work(order_id: int) -> None:
        with Session(engine) as session:
            assert session.get_one(Order, order_id).total == order_id
            time.sleep(0.25)

    threads = [in_thread(work, order_id) for order_id in (5, 6)]
    for thread in threads:
        thread.join()


@scenario(tempts="pool-wait")
def waits_for_a_moment(app: Application) -> None:
    """The only connection comes back after 20 ms."""
    engine = app.make_engine(pool_size=1, max_overflow=0)
    holding = threading.Event()

    def hold() -> None:
        with engine.connect() as connection:
            connection.execute(select(Tag.name).where(Tag.id == 1))
            holding.set()
            time.sleep(0.02)

    holder = in_thread(hold)
    holding.wait()
    with engine.connect() as connection:
        assert connection.scalar(select(func.count(Tag.id))) == 20
    holder.join()


@scenario(tempts="pool-wait")
def connections_made_slowly(app: Application) -> None:
    """A new connection takes 0.15 s over this network, but the pool has room for it."""
    engine = app.make_engine(pool_size=2)

    @event.listens_for(engine, "do_connect")
    def slow_network(*_: Any) -> None:
        time.sleep(0.15)

    with Session(engine) as session, Session(engine) as other:
        assert session.scalar(select(func.count(Tag.id))) == 20
        assert other.scalar(select(func.count(Category.id))) == 15  # finds: nested-checkout


@scenario(tempts="pool-wait")
def no_pool_at_all(app: Application) -> None:
    """With NullPool every thread makes a connection for itself."""
    engine = app.make_engine(poolclass=NullPool)

    def work(order_id: int) -> None:
        with Session(engine) as session:
            assert session.get_one(Order, order_id).total == order_id
            time.sleep(0.15)

    threads = [in_thread(work, order_id) for order_id in (7, 8, 9)]
    for thread in threads:
        thread.join()
