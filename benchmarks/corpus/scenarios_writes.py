"""Writes: how many statements, flushes, commits and texts of SQL it takes to change some rows."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

from sqlalchemy import (
    Connection,
    DateTime,
    Dialect,
    String,
    TypeDecorator,
    bindparam,
    delete,
    event,
    func,
    insert,
    literal_column,
    select,
    text,
    type_coerce,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session, selectinload, sessionmaker
from sqlalchemy.sql.functions import FunctionElement

from benchmarks.corpus import Application, scenario
from benchmarks.corpus.models import (
    Account,
    Base,
    Customer,
    Entry,
    Event,
    Item,
    Order,
    Payment,
    Post,
    Product,
    Tag,
    Thread,
    Ticket,
    Visit,
)


def rows_of(number: int, prefix: str = "row") -> list[dict[str, Any]]:
    """Return rows for `Entry`, as an import would read them from a file."""
    return [{"name": f"{prefix} {index}", "value": index} for index in range(number)]


def in_chunks(rows: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


# --- row-by-row-write ---


@scenario(writes=True)
def core_import_row_by_row(app: Application) -> None:
    """Imports a file with an INSERT for each line."""
    with app.engine.begin() as connection:
        for row in rows_of(30):
            connection.execute(insert(Entry).values(name=row["name"], value=row["value"]))  # finds: row-by-row-write


@scenario(writes=True)
def session_updates_one_row_at_a_time(app: Application) -> None:
    """Writes new titles, one UPDATE for each of them."""
    titles = {number: f"Renamed {number}" for number in range(100, 120)}
    with Session(app.engine) as session:
        for ticket_id, title in titles.items():
            session.execute(  # finds: row-by-row-write
                update(Ticket).where(Ticket.id == ticket_id).values(title=title)
            )
        session.commit()


@scenario(writes=True)
def legacy_delete_one_row_at_a_time(app: Application) -> int:
    """Deletes what a list names, one key after the other."""
    deleted = 0
    with Session(app.engine) as session:
        for ticket_id in range(2_980, 3_000):
            deleted += session.query(Ticket).filter(Ticket.id == ticket_id).delete()  # finds: row-by-row-write
        session.commit()
    return deleted


@scenario(writes=True)
def text_insert_in_a_loop(app: Application) -> None:
    """Own SQL with bound values, row by row."""
    statement = text("INSERT INTO entries (name, value) VALUES (:name, :value)")
    with app.engine.begin() as connection:
        for row in rows_of(15):
            connection.execute(statement, row)  # finds: row-by-row-write


@scenario(writes=True)
def driver_sql_update_of_each_row_of_a_query(app: Application) -> None:
    """Reads accounts, and writes each of them back with interest."""
    with app.engine.begin() as connection:
        accounts = connection.exec_driver_sql("SELECT id, balance FROM accounts WHERE id <= 25").all()
        for account in accounts:
            connection.exec_driver_sql(  # finds: row-by-row-write
                "UPDATE accounts SET balance = %(new)s WHERE id = %(id)s",
                {"new": account.balance + account.id, "id": account.id},
            )


@scenario(writes=True)
def upsert_in_a_loop(app: Application) -> None:
    """Inserts or updates counters, one by one, by a helper."""

    def save(connection: Connection, name: str, value: int) -> None:
        statement = upsert(Entry).values(name=name, value=value)
        statement = statement.on_conflict_do_update(index_elements=["name"], set_={"value": value})
        connection.execute(statement)  # finds: row-by-row-write

    with app.engine.begin() as connection:
        for number in range(24):
            save(connection, f"counter {number % 12}", number)


@scenario(writes=True)
def transaction_for_each_insert(app: Application) -> None:
    """A connection, a transaction and an INSERT for each message of a queue."""
    for row in rows_of(12, "message"):
        with app.engine.begin() as connection:
            connection.execute(insert(Entry), row)  # finds: row-by-row-write


@scenario(writes=True)
def bulk_insert_of_single_rows(app: Application) -> None:
    """A bulk operation in a loop is none."""
    with Session(app.engine) as session:
        for row in rows_of(15):
            session.bulk_insert_mappings(Entry, [row])  # finds: row-by-row-write
        session.commit()


@scenario(writes=True)
def commits_each_new_object(app: Application) -> None:
    """Saves objects with one commit each."""
    with Session(app.engine) as session:
        for row in rows_of(15):
            session.add(Entry(**row))
            session.commit()  # finds: row-by-row-write


@scenario(writes=True)
def commits_each_changed_object(app: Application) -> None:
    """Charges a fee that differs by account, and commits each."""
    with Session(app.engine, expire_on_commit=False) as session:
        accounts = session.scalars(select(Account).order_by(Account.id).limit(20)).all()
        for account in accounts:
            account.balance -= account.id % 7 + 1
            session.commit()  # finds: row-by-row-write


@scenario(writes=True)
def session_for_each_new_object(app: Application) -> None:
    """Opens a session that commits at its end for each row of a file."""
    sessions = sessionmaker(app.engine)
    for row in rows_of(12):
        with sessions.begin() as session:  # finds: row-by-row-write
            session.add(Entry(**row))


@scenario(writes=True)
def deletes_a_thousand_loaded_objects(app: Application) -> None:
    """Loads 1,200 objects only to delete them."""
    with Session(app.engine) as session:
        for ticket in session.scalars(select(Ticket).where(Ticket.id <= 1_200)):
            session.delete(ticket)
        session.commit()  # finds: row-by-row-write


@scenario(writes=True)
def closes_loaded_tickets(app: Application) -> None:
    """Sets 500 loaded objects to the same status, which one UPDATE would have done."""
    with Session(app.engine) as session:
        for ticket in session.scalars(select(Ticket).where(Ticket.status == "open", Ticket.id <= 500)):
            ticket.status = "closed"
        session.commit()  # finds: row-by-row-write


@scenario(writes=True)
def archives_legacy_queried_events(app: Application) -> None:
    """The same with the old interface and a flush in between."""
    with Session(app.engine) as session:
        for seen in session.query(Event).filter(Event.customer_id == 3).limit(250):
            seen.kind = "archived"
        session.flush()  # finds: row-by-row-write
        session.add(Entry(name="archived events of customer 3"))
        session.commit()


@scenario(writes=True)
def one_executemany_for_ten_thousand_rows(app: Application) -> None:
    """Imports a whole file by one call, where COPY would do."""
    rows = rows_of(10_000)
    with app.engine.begin() as connection:
        connection.execute(insert(Entry), rows)  # finds: row-by-row-write


@scenario(writes=True)
def one_executemany_for_ten_thousand_updates(app: Application) -> None:
    """Sends 10,000 UPDATEs by one call, where a join with the new values would do."""
    kinds = [{"key": number, "new": f"kind {number % 17}"} for number in range(1, 10_001)]
    with Session(app.engine) as session:
        session.connection().execute(  # finds: row-by-row-write
            text("UPDATE events SET kind = :new WHERE id = :key"), kinds
        )
        session.commit()


@scenario(tempts="row-by-row-write", writes=True)
def executemany_for_some_thousand_rows(app: Application) -> None:
    """Imports in chunks of 2,000, by executemany."""
    with app.engine.begin() as connection:
        for chunk in in_chunks(rows_of(6_000), 2_000):
            connection.execute(insert(Entry), chunk)


@scenario(tempts="row-by-row-write", writes=True)
def bulk_insert_with_returning(app: Application) -> int:
    """SQLAlchemy makes several INSERTs with many rows of it, to get the keys back."""
    with Session(app.engine) as session:
        keys = session.scalars(insert(Entry).returning(Entry.id), rows_of(3_500)).all()
        session.commit()
    return len(keys)


@scenario(tempts="row-by-row-write, flush-storm", writes=True)
def adds_all_and_commits_once(app: Application) -> None:
    """The unit of work as it is meant to be."""
    with Session(app.engine) as session:
        session.add_all(Entry(**row) for row in rows_of(1_000))
        session.commit()


@scenario(tempts="row-by-row-write, flush-storm", writes=True)
def commits_each_chunk(app: Application) -> None:
    """Twelve commits, of 50 rows each."""
    with Session(app.engine) as session:
        for chunk in in_chunks(rows_of(600), 50):
            session.add_all(Entry(**row) for row in chunk)
            session.commit()


@scenario(tempts="row-by-row-write", writes=True)
def legacy_bulk_operations(app: Application) -> None:
    """bulk_save_objects and bulk_update_mappings, once each."""
    with Session(app.engine) as session:
        session.bulk_save_objects([Entry(**row) for row in rows_of(300)])
        session.bulk_update_mappings(Ticket, [{"id": n, "title": f"Ticket no. {n}"} for n in range(1, 301)])
        session.commit()


@scenario(tempts="row-by-row-write", writes=True)
def orm_update_by_primary_key(app: Application) -> None:
    """Different values for 400 rows, by one bulk UPDATE of the ORM."""
    with Session(app.engine) as session:
        session.execute(update(Ticket), [{"id": n, "title": f"Ticket no. {n}"} for n in range(1, 401)])
        session.commit()


@scenario(tempts="row-by-row-write", writes=True)
def core_update_by_executemany(app: Application) -> None:
    """Different values for 500 rows, by one executemany."""
    rename = update(Ticket.__table__).where(Ticket.id == bindparam("key")).values(title=bindparam("new"))
    with app.engine.begin() as connection:
        connection.execute(rename, [{"key": n, "new": f"T-{n:05}"} for n in range(1, 501)])


@scenario(tempts="row-by-row-write, uncached-statement", writes=True)
def upsert_of_many_rows(app: Application) -> None:
    """INSERT ... ON CONFLICT, once, for all rows."""
    statement = upsert(Entry)
    statement = statement.on_conflict_do_update(
        index_elements=["name"], set_={"value": Entry.value + statement.excluded.value}
    )
    with app.engine.begin() as connection:
        connection.execute(statement, rows_of(200))
        connection.execute(statement, rows_of(300))


@scenario(tempts="row-by-row-write", writes=True)
def update_and_delete_by_condition(app: Application) -> None:
    """Changes and deletes thousands of rows by two statements."""
    with Session(app.engine) as session:
        session.execute(update(Ticket).where(Ticket.status == "open", Ticket.id > 500).values(status="stale"))
        session.query(Event).filter(Event.kind == "view").delete(synchronize_session=False)
        session.execute(
            text("INSERT INTO entries (name, value) SELECT title, id FROM tickets WHERE id <= :last"), {"last": 900}
        )
        session.commit()


@scenario(tempts="row-by-row-write, query-in-loop, flush-storm", writes=True)
def worker_takes_jobs_from_a_queue(app: Application) -> int:
    """Takes a job, locks it against other workers, does it, and commits: a transaction a job is what is wanted."""
    done = 0
    with Session(app.engine) as session:
        next_job = select(Ticket).where(Ticket.status == "open", Ticket.id <= 14).order_by(Ticket.id).limit(1)
        while job := session.scalars(next_job.with_for_update(skip_locked=True)).first():
            job.title = job.title.upper()
            job.status = "done"
            session.commit()
            done += 1
    return done


@scenario(tempts="row-by-row-write", writes=True)
def reports_progress_of_a_long_job(app: Application) -> None:
    """Changes the same row again and again, so that others see how far it has got."""
    with app.engine.connect() as connection:
        for percent in range(0, 101, 5):
            connection.execute(update(Ticket).where(Ticket.id == 42).values(status=f"{percent} %"))
            connection.commit()


@scenario(tempts="row-by-row-write, flush-storm", writes=True)
def heartbeat_of_a_worker(app: Application) -> None:
    """Notes every now and then that it is alive, in one row of its own."""
    with Session(app.engine, expire_on_commit=False) as session:
        worker = Entry(name="worker 1", value=0)
        session.add(worker)
        session.commit()
        for beat in range(1, 16):
            worker.value = beat
            session.commit()


@scenario(tempts="row-by-row-write", writes=True)
def seeds_a_few_rows(app: Application) -> None:
    """Some inserts, each on a line of its own."""
    with app.engine.begin() as connection:
        connection.execute(insert(Tag).values(name="urgent"))
        connection.execute(insert(Tag).values(name="later"))
        connection.execute(insert(Tag).values(name="never"))
        connection.execute(insert(Entry).values(name="language", value=1))
        connection.execute(insert(Entry).values(name="currency", value=2))
        connection.execute(insert(Entry).values(name="time zone", value=3))


@scenario(tempts="row-by-row-write", writes=True)
def audit_log_of_an_order(app: Application) -> None:
    """A helper writes one row for each of some steps, called from a line of its own each time."""

    def audit(connection: Connection, action: str) -> None:
        connection.execute(insert(Entry).values(name=action))

    with app.engine.begin() as connection:
        audit(connection, "order 7 opened")
        connection.execute(update(Order).where(Order.id == 7).values(status="paid"))
        audit(connection, "order 7 paid")
        connection.execute(insert(Payment).values(order_id=7, amount=7))
        audit(connection, "payment booked")
        connection.execute(update(Item).where(Item.order_id == 7).values(quantity=2))
        audit(connection, "items doubled")
        connection.execute(update(Order).where(Order.id == 7).values(total=14))
        audit(connection, "total updated")


@scenario(tempts="row-by-row-write", writes=True)
def audit_log_of_many_different_steps(app: Application) -> None:
    """The helper is called often, and from eleven different lines."""

    def audit(action: str) -> None:
        connection.execute(insert(Entry).values(name=f"nightly job: {action}"))

    with app.engine.begin() as connection:
        audit("begin")
        audit(f"{connection.scalar(select(func.count()).select_from(Order))} orders")
        audit(f"{connection.scalar(select(func.count()).select_from(Item))} items")
        audit(f"{connection.scalar(select(func.count()).select_from(Ticket))} tickets")
        audit(f"{connection.scalar(select(func.count()).select_from(Visit))} visits")
        audit(f"{connection.scalar(select(func.max(Event.id)))} is the last event")
        audit(f"{connection.scalar(select(func.sum(Order.total)))} turnover")
        audit(f"{connection.execute(update(Ticket).values(status='old')).rowcount} tickets aged")
        audit(f"{connection.execute(delete(Visit).where(Visit.id < 100)).rowcount} visits deleted")
        audit(f"{connection.execute(delete(Event).where(Event.kind == 'view')).rowcount} views deleted")
        audit("end")


@scenario(tempts="row-by-row-write, query-in-loop", writes=True)
def backfill_by_ranges_of_keys(app: Application) -> int:
    """Fills a column batch by batch, with a commit after each, so as not to lock the table for long."""
    changed = 0
    with app.engine.connect() as connection:
        for low in range(1, 12_001, 1_000):
            batch = update(Event).where(Event.id.between(low, low + 999), Event.kind == "view").values(kind="seen")
            changed += connection.execute(batch).rowcount
            connection.commit()
    return changed


@scenario(tempts="row-by-row-write", writes=True)
def one_update_for_each_tenant(app: Application) -> None:
    """Forty statements, each of which changes many rows."""
    with Session(app.engine) as session:
        for customer_id in range(1, 41):
            session.execute(
                update(Visit).where(Visit.customer_id == customer_id).values(page=f"/archive/{customer_id}"),
                execution_options={"synchronize_session": False},
            )
        session.commit()


@scenario(tempts="row-by-row-write", writes=True)
def deletes_in_batches_until_nothing_is_left(app: Application) -> int:
    """Deletes old rows, 400 a transaction."""
    oldest = select(Event.id).where(Event.kind == "click").order_by(Event.id).limit(400).scalar_subquery()
    deleted = 0
    while True:
        with app.engine.begin() as connection:
            count = connection.execute(delete(Event).where(Event.id.in_(oldest))).rowcount
        if not count:
            return deleted
        deleted += count


@scenario(tempts="row-by-row-write", writes=True)
def deletes_some_threads_with_their_posts(app: Application) -> None:
    """The cascade of the ORM, for a few objects whose children are loaded."""
    with Session(app.engine) as session:
        stale = session.scalars(select(Thread).options(selectinload(Thread.posts)).where(Thread.id <= 6)).all()
        for thread in stale:
            session.delete(thread)
        session.commit()


@scenario(tempts="row-by-row-write", writes=True)
def deletes_some_hundred_loaded_objects(app: Application) -> list[str]:
    """Deletes 300 objects that had to be loaded for what is done with them before."""
    farewell = []
    with Session(app.engine) as session:
        for ticket in session.scalars(select(Ticket).where(Ticket.id > 2_700)):
            farewell.append(f"{ticket.title} ({ticket.status})")
            session.delete(ticket)
        session.commit()
    return farewell


@scenario(tempts="row-by-row-write", writes=True)
def different_titles_for_loaded_objects(app: Application) -> None:
    """300 loaded objects, each with a value of its own."""
    with Session(app.engine) as session:
        for ticket in session.scalars(select(Ticket).where(Ticket.id <= 300)):
            ticket.title = f"#{ticket.id}: {ticket.title.lower()}"
        session.commit()


@scenario(tempts="row-by-row-write", writes=True)
def same_status_for_not_so_many_objects(app: Application) -> None:
    """120 loaded objects are set to one status, with a check of each that only Python can do."""
    with Session(app.engine) as session:
        for ticket in session.scalars(select(Ticket).where(Ticket.id <= 240)):
            if sum(map(int, ticket.title.removeprefix("Ticket "))) % 2:
                ticket.status = "odd"
        session.commit()


@scenario(tempts="row-by-row-write, flush-storm", writes=True)
def interest_for_versioned_accounts(app: Application) -> None:
    """SQLAlchemy sends one UPDATE for each object with a version counter; the application flushes once."""
    with Session(app.engine) as session:
        for account in session.scalars(select(Account).where(Account.id <= 60)):
            account.balance += account.id % 13
        session.commit()


@scenario(tempts="row-by-row-write, flush-storm", writes=True)
def rows_with_alternating_columns(app: Application) -> None:
    """Every other object leaves a column to the server's default: SQLAlchemy cannot send them together."""
    with Session(app.engine) as session:
        moment = session.scalar(select(func.min(Event.happened_at)))
        for number, row in enumerate(rows_of(40)):
            session.add(Entry(**row) if number % 2 else Entry(**row, created_at=moment))
        session.commit()


@scenario(tempts="row-by-row-write, flush-storm", writes=True)
def counters_that_the_server_raises(app: Application) -> None:
    """Values as SQL expressions: SQLAlchemy sends one UPDATE an object, in one flush."""
    with Session(app.engine) as session:
        for item in session.scalars(select(Item).where(Item.id <= 30)):
            item.quantity = Item.quantity + item.id
        session.commit()


@scenario(tempts="row-by-row-write, column-load-loop", writes=True)
def reads_what_the_server_has_filled_in(app: Application) -> list[str]:
    """Keys and times of 50 new rows come back with the INSERT."""
    with Session(app.engine) as session:
        entries = [Entry(**row) for row in rows_of(50)]
        session.add_all(entries)
        session.flush()
        lines = [f"{entry.id} {entry.created_at:%H:%M}" for entry in entries]
        session.commit()
    return lines


@scenario(tempts="row-by-row-write, n-plus-one", writes=True)
def tags_for_many_customers(app: Application) -> None:
    """Rows of a many-to-many relationship, written by one flush."""
    with Session(app.engine) as session:
        sale = Tag(name="sale")
        for customer in session.scalars(select(Customer).options(selectinload(Customer.tags))):
            customer.tags.append(sale)
        session.commit()


@scenario(tempts="row-by-row-write, flush-storm", writes=True)
def threads_with_posts_by_cascade(app: Application) -> None:
    """Twenty new threads with their posts: the keys are SQLAlchemy's business."""
    with Session(app.engine) as session:
        for number in range(20):
            posts = [Post(body=f"post {index}") for index in range(4)]
            session.add(Thread(title=f"New thread {number}", posts=posts))
        session.commit()


# --- flush-storm ---


@scenario(writes=True)
def flushes_each_new_object_for_its_key(app: Application) -> list[int]:
    """Wants the keys, and flushes after each object."""
    keys = []
    with Session(app.engine) as session:
        for row in rows_of(15):
            entry = Entry(**row)
            session.add(entry)
            session.flush()  # finds: flush-storm
            keys.append(entry.id)
        session.commit()
    return keys


@scenario(writes=True)
def flushes_each_booking(app: Application) -> None:
    """Books on loaded accounts, and flushes each booking 'to be sure'."""
    with Session(app.engine) as session:
        accounts = session.scalars(select(Account).where(Account.id <= 20).order_by(Account.id)).all()
        for account in accounts:
            account.balance += 5 * account.id
            session.flush()  # finds: flush-storm
        session.commit()


@scenario(writes=True)
def repository_that_flushes_in_save(app: Application) -> None:
    """A repository whose `save` flushes, called in a loop by somebody who cannot see that."""

    def save(session: Session, thread: Thread) -> Thread:
        session.add(thread)
        session.flush()  # finds: flush-storm
        return thread

    with Session(app.engine) as session:
        threads = [save(session, Thread(title=f"Topic {number}")) for number in range(12)]
        session.add(Entry(name="topics", value=len(threads)))
        session.commit()


@scenario(writes=True)
def looks_up_and_adds_in_a_loop(app: Application) -> int:
    """Adds what is not there yet: each look-up flushes what the one before has added."""
    added = 0
    with Session(app.engine) as session:
        for row in rows_of(16):
            known = session.scalar(  # finds: flush-storm, query-in-loop
                select(Entry.id).where(Entry.name == row["name"])
            )
            if known is None:
                session.add(Entry(**row))
                added += 1
        session.commit()
    return added


@scenario(writes=True)
def legacy_get_or_create(app: Application) -> int:
    """The well-known helper, with the old interface."""

    def get_or_create(session: Session, name: str) -> Tag:
        tag = session.query(Tag).filter_by(name=name).first()  # finds: flush-storm, query-in-loop
        if tag is None:
            tag = Tag(name=name)
            session.add(tag)
        return tag

    with Session(app.engine) as session:
        tags = [get_or_create(session, f"tag of {number}") for number in range(14)]
        session.commit()
        return len(tags)


@scenario(writes=True)
def counts_after_each_change(app: Application) -> int:
    """Asks how much is left after each change, and so writes each change by itself."""
    left = 0
    with Session(app.engine) as session:
        open_tickets = select(func.count()).select_from(Ticket).where(Ticket.status == "open")
        for ticket in session.scalars(select(Ticket).where(Ticket.id <= 15)).all():
            ticket.status = "closed"
            left = session.scalar(open_tickets) or 0  # finds: flush-storm
        session.commit()
    return left


@scenario(writes=True)
def lazy_load_that_flushes_each_change(app: Application) -> None:
    """Changes one order, then touches the next one's customer: both a flush and a load for each."""
    with Session(app.engine) as session:
        for order in session.scalars(select(Order).where(Order.id <= 20).order_by(Order.id)).all():
            order.status = f"for {order.customer.country}"  # finds: n-plus-one, flush-storm
        session.commit()


@scenario(tempts="flush-storm, row-by-row-write", writes=True)
def flushes_each_chunk_of_five_hundred(app: Application) -> None:
    """One flush for 500 new objects."""
    with Session(app.engine) as session:
        for chunk in in_chunks(rows_of(2_000), 500):
            session.add_all(Entry(**row) for row in chunk)
            session.flush()
            session.expunge_all()
        session.commit()


@scenario(tempts="flush-storm", writes=True)
def one_flush_for_a_key(app: Application) -> None:
    """Needs the key of a new row for a statement that the ORM does not know."""
    with Session(app.engine) as session:
        thread = Thread(title="Imported")
        session.add(thread)
        session.flush()
        session.execute(
            text("INSERT INTO posts (thread_id, body) SELECT :thread, body FROM messages WHERE customer_id = 1"),
            {"thread": thread.id},
        )
        session.commit()


@scenario(tempts="flush-storm", writes=True)
def a_few_flushes_in_a_loop(app: Application) -> None:
    """Five parents get their keys one by one."""
    with Session(app.engine) as session:
        for number in range(5):
            thread = Thread(title=f"Imported {number}")
            session.add(thread)
            session.flush()
            session.add_all([Entry(name=f"/threads/{thread.id}/{page}") for page in range(30)])
        session.commit()


@scenario(tempts="flush-storm", writes=True)
def flushes_that_have_nothing_to_write(app: Application) -> int:
    """Flushes after every object it has looked at, of which hardly any has changed."""
    with Session(app.engine) as session:
        tickets = session.scalars(select(Ticket).where(Ticket.id <= 50)).all()
        for ticket in tickets:
            if ticket.id % 25 == 0:
                ticket.status = "checked"
            session.flush()
        session.commit()
        return len(tickets)


@scenario(tempts="flush-storm, query-in-loop", writes=True)
def looks_up_all_at_once_before_it_adds(app: Application) -> None:
    """Asks once what is there, and adds the rest."""
    wanted = {row["name"]: row for row in rows_of(60)}
    with Session(app.engine) as session:
        known = set(session.scalars(select(Entry.name).where(Entry.name.in_(wanted))))
        for name in wanted.keys() - known:
            session.add(Entry(**wanted[name]))
        session.commit()


@scenario(tempts="flush-storm, n-plus-one", writes=True)
def changes_objects_that_are_loaded_with_relations(app: Application) -> None:
    """Reads related objects while it changes others; nothing is left to load, so nothing flushes."""
    with Session(app.engine) as session:
        orders = select(Order).options(selectinload(Order.customer)).where(Order.id <= 40)
        for order in session.scalars(orders):
            order.status = f"for {order.customer.country}"
        session.commit()


@scenario(tempts="flush-storm, row-by-row-write, database-error", writes=True)
def savepoint_for_each_object(app: Application) -> int:
    """Survives duplicates by a savepoint around each new object."""
    duplicates = 0
    with Session(app.engine) as session:
        for row in rows_of(15) + rows_of(3):
            try:
                with session.begin_nested():
                    session.add(Entry(**row))
            except IntegrityError:
                duplicates += 1
        session.commit()
    return duplicates


@scenario(tempts="flush-storm, row-by-row-write, database-error", writes=True)
def savepoint_for_each_core_insert(app: Application) -> int:
    """The same with Core."""
    duplicates = 0
    with app.engine.begin() as connection:
        for row in rows_of(12) + rows_of(2):
            try:
                with connection.begin_nested():
                    connection.execute(insert(Entry).values(**row))
            except IntegrityError:
                duplicates += 1
    return duplicates


# --- uncached-statement ---


class Code(TypeDecorator[str]):
    """Does not say whether it may be cached."""

    impl = String

    def process_result_value(self, value: str | None, dialect: Dialect) -> str | None:
        return value and value.replace(" ", "-").lower()


class CachedCode(Code):
    cache_ok = True


class midnight(FunctionElement[Any]):
    """Does not say whether it may be cached."""

    type = DateTime()
    name = "midnight"


class noon(FunctionElement[Any]):
    type = DateTime()
    name = "noon"
    inherit_cache = True


@compiles(midnight)
def _midnight(element: midnight, compiler: Any, **options: Any) -> str:
    return f"date_trunc('day', {compiler.process(element.clauses, **options)})"


@compiles(noon)
def _noon(element: noon, compiler: Any, **options: Any) -> str:
    return f"date_trunc('day', {compiler.process(element.clauses, **options)}) + interval '12 hours'"


@scenario(writes=True)
def inserts_lists_of_values_again_and_again(app: Application) -> None:
    """Puts all rows of a chunk into the statement, which is compiled anew for each chunk."""
    with app.engine.begin() as connection:
        for chunk in in_chunks(rows_of(240), 40):
            connection.execute(insert(Entry).values(chunk))  # finds: uncached-statement


@scenario(writes=True)
def upserts_lists_of_values_again_and_again(app: Application) -> None:
    """The same with ON CONFLICT and a session."""
    with Session(app.engine) as session:
        for chunk in in_chunks(rows_of(300), 50):
            session.execute(  # finds: uncached-statement
                upsert(Entry).values(chunk).on_conflict_do_nothing(index_elements=["name"])
            )
        session.commit()


@scenario()
def type_decorator_that_cannot_be_cached(app: Application) -> int:
    """Reads pages with a type of its own that has no `cache_ok`."""
    codes: set[str] = set()
    last = 0
    with warnings.catch_warnings(), app.engine.connect() as connection:
        warnings.simplefilter("ignore")  # SQLAlchemy says what is wrong
        while last < 3_000:
            page = select(Ticket.id, type_coerce(Ticket.title, Code).label("code")).where(Ticket.id > last)
            rows = connection.execute(page.order_by(Ticket.id).limit(500)).all()  # finds: uncached-statement
            codes.update(row.code for row in rows)
            last = rows[-1].id
    return len(codes)


@scenario(writes=True)
def function_that_cannot_be_cached(app: Application) -> None:
    """Changes ranges of rows with a construct of its own that has no `inherit_cache`."""
    with warnings.catch_warnings(), Session(app.engine) as session:
        warnings.simplefilter("ignore")  # SQLAlchemy says what is wrong
        for low in range(1, 3_001, 500):
            session.execute(  # finds: uncached-statement
                update(Event).where(Event.id.between(low, low + 499)).values(happened_at=midnight(Event.happened_at)),
                execution_options={"synchronize_session": False},
            )
        session.commit()


@scenario()
def f_string_with_ranges(app: Application) -> int:
    """Counts by ranges of keys that are written into the statement."""
    clicks = 0
    with app.engine.connect() as connection:
        for low in range(0, 12_000, 1_000):
            clicks += connection.execute(  # finds: uncached-statement
                text(f"SELECT count(*) FROM events WHERE kind = 'click' AND id > {low} AND id <= {low + 1_000}")
            ).scalar_one()
    return clicks


@scenario(writes=True)
def percent_format_with_driver_sql(app: Application) -> None:
    """Changes each customer's orders by a text that is made for it."""
    with app.engine.begin() as connection:
        for customer_id in range(1, 13):
            connection.exec_driver_sql(  # finds: uncached-statement
                "UPDATE orders SET status = 'sent' WHERE status = 'paid' OR customer_id = %d" % customer_id  # noqa: UP031
            )


@scenario(writes=True)
def pasted_insert_in_a_loop(app: Application) -> None:
    """Two mistakes at once: row by row, and with the values in the text."""
    with Session(app.engine) as session:
        for row in rows_of(14):
            session.execute(  # finds: row-by-row-write, uncached-statement
                text(f"INSERT INTO entries (name, value) VALUES ('{row['name']}', {row['value']})")
            )
        session.commit()


@scenario()
def pasted_select_in_a_loop(app: Application) -> list[str]:
    """Looks up names one by one, by an f-string each."""
    with app.engine.connect() as connection:
        return [
            connection.scalar(  # finds: query-in-loop, uncached-statement
                text(f"SELECT name FROM customers WHERE id = {customer_id}")
            )
            for customer_id in range(11, 26)
        ]


@scenario(writes=True)
def condition_pasted_into_an_update(app: Application) -> None:
    """A Core statement with a condition in text, of which every customer gets another."""
    with app.engine.begin() as connection:
        for customer_id in range(1, 16):
            chosen = update(Visit).where(text(f"visits.customer_id = {customer_id}"))
            connection.execute(chosen.values(page="/"))  # finds: uncached-statement


@scenario(tempts="uncached-statement", writes=True)
def inserts_a_list_of_values_once(app: Application) -> None:
    """Lists of values in a statement, for a few statements only."""
    with app.engine.begin() as connection:
        for chunk in in_chunks(rows_of(300), 100):
            connection.execute(insert(Entry).values(chunk))


@scenario(tempts="uncached-statement, row-by-row-write", writes=True)
def executes_chunks_with_lists_of_parameters(app: Application) -> None:
    """The chunk is the parameter, so that the statement stays the same."""
    with Session(app.engine) as session:
        for chunk in in_chunks(rows_of(480), 40):
            session.execute(insert(Entry), chunk)
        session.commit()


@scenario(tempts="uncached-statement, query-in-loop")
def type_decorator_that_can_be_cached(app: Application) -> int:
    """Reads pages with a type of its own that says `cache_ok = True`."""
    codes: set[str] = set()
    last = 0
    with app.engine.connect() as connection:
        while last < 3_000:
            page = select(Ticket.id, type_coerce(Ticket.title, CachedCode).label("code")).where(Ticket.id > last)
            rows = connection.execute(page.order_by(Ticket.id).limit(500)).all()
            codes.update(row.code for row in rows)
            last = rows[-1].id
    return len(codes)


@scenario(tempts="uncached-statement, row-by-row-write", writes=True)
def function_that_can_be_cached(app: Application) -> None:
    """Changes ranges of rows with a construct of its own that says `inherit_cache = True`."""
    with app.engine.begin() as connection:
        for low in range(1, 5_001, 500):
            connection.execute(
                update(Event).where(Event.id.between(low, low + 499)).values(happened_at=noon(Event.happened_at))
            )


@scenario(tempts="uncached-statement, query-in-loop")
def f_string_that_chooses_between_columns(app: Application) -> list[Any]:
    """Pages through a list whose order the user has chosen; only names out of a fixed list get into the text."""
    shown: list[Any] = []
    with app.engine.connect() as connection:
        for page in range(12):
            column = "title" if page % 2 else "status"
            listing = text(f"SELECT id, {column} FROM tickets ORDER BY {column}, id LIMIT 20 OFFSET :skip")
            shown += connection.execute(listing, {"skip": page * 20}).scalars()
    return shown


@scenario(tempts="uncached-statement, query-in-loop, select-star")
def rows_of_every_table(app: Application) -> dict[str, int]:
    """Counts the rows of 20 tables: a table's name cannot be a parameter."""
    names = sorted(Base.metadata.tables)[:20]
    with app.engine.connect() as connection:
        return {name: connection.execute(text(f'SELECT count(*) FROM "{name}"')).scalar_one() for name in names}


@scenario(tempts="uncached-statement, large-in-list, query-in-loop")
def lists_of_different_lengths(app: Application) -> int:
    """Expanding parameters: the text that is sent differs by the number of values, the statement does not."""
    balances = text("SELECT sum(balance) FROM accounts WHERE id IN :ids").bindparams(bindparam("ids", expanding=True))
    total, start = 0, 1
    with app.engine.connect() as connection:
        for size in range(60, 180, 10):
            total += connection.scalar(balances, {"ids": list(range(start, start + size))}) or 0
            start += size
    return total


@scenario(tempts="uncached-statement, query-in-loop")
def literals_that_sqlalchemy_renders(app: Application) -> int:
    """Values that the planner is to see: SQLAlchemy renders them into a statement that stays in its cache."""
    low, high = bindparam("low", literal_execute=True), bindparam("high", literal_execute=True)
    ranges = select(func.count()).where(Event.id > low, Event.id <= high, Event.kind == "buy")
    with app.engine.connect() as connection:
        return sum(
            connection.scalar(ranges, {"low": start, "high": start + 1_000}) or 0 for start in range(0, 12_000, 1_000)
        )


@scenario(tempts="uncached-statement, row-by-row-write", writes=True)
def constants_of_a_core_statement(app: Application) -> None:
    """The same constants each time, and bound values for what differs."""
    with app.engine.begin() as connection:
        for category_id in range(1, 16):
            price = func.round(Product.price * literal_column("1.05"), 2)
            connection.execute(update(Product).where(Product.category_id == category_id).values(price=price))


@scenario(tempts="uncached-statement, query-in-loop")
def comments_that_say_where_a_statement_comes_from(app: Application) -> int:
    """A hook puts the number of the job before each statement, for those who look at the server's log."""
    engine = app.make_engine()
    job = 0

    @event.listens_for(engine, "before_cursor_execute", retval=True)
    def comment(
        connection: Connection, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool
    ) -> tuple[str, Any]:
        return f"/* job {job} */ {statement}", parameters

    seen = 0
    with engine.connect() as connection:
        for job in range(12):
            part = select(func.count()).where(Event.id > job * 1_000, Event.id <= job * 1_000 + 1_000)
            seen += connection.scalar(part) or 0
    engine.dispose()
    return seen
