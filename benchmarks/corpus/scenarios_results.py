"""Results: how much of a table is read, in which pieces, and how much of it is of use."""

from __future__ import annotations

import random
from datetime import datetime
from itertools import islice
from typing import Any

from sqlalchemy import (
    ARRAY,
    Integer,
    any_,
    bindparam,
    delete,
    exists,
    func,
    inspect,
    literal,
    literal_column,
    select,
    text,
    tuple_,
)
from sqlalchemy.orm import Session, defer, joinedload, load_only, undefer

from benchmarks.corpus import Application, scenario
from benchmarks.corpus.models import Account, Article, Customer, Event, Item, Message, Order, Product, Tag, Ticket

# --- oversized-result ---


@scenario()
def export_of_all_events_by_one_core_select(app: Application) -> list[str]:
    """Builds a CSV file of a whole table, all rows of it at once."""
    with app.engine.connect() as connection:
        rows = connection.execute(  # finds: oversized-result
            select(Event.id, Event.kind, Event.happened_at).order_by(Event.id)
        ).all()
    return [f"{row.id};{row.kind};{row.happened_at:%Y-%m-%d}" for row in rows]


@scenario()
def statistics_by_counting_loaded_objects(app: Application) -> dict[str, int]:
    """Counts events by kind in Python, from entities."""
    counts: dict[str, int] = {}
    with Session(app.engine) as session:
        for event in session.scalars(select(Event)):  # finds: oversized-result
            counts[event.kind] = counts.get(event.kind, 0) + 1
    return counts


@scenario()
def legacy_query_for_most_of_a_table(app: Application) -> int:
    """Takes everything but the purchases, by a condition that hardly leaves anything out."""
    with Session(app.engine) as session:
        events = session.query(Event).filter(Event.kind != "buy").all()  # finds: oversized-result
        return sum(event.customer_id for event in events)


@scenario()
def driver_sql_fetched_as_a_whole(app: Application) -> int:
    """Hands the rows of a report to a data frame."""
    with app.engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT customer_id, kind FROM events").fetchall()  # finds: oversized-result
    return len({(customer_id, kind) for customer_id, kind in rows})


@scenario()
def partitions_of_a_result_that_is_not_streamed(app: Application) -> int:
    """Believes that `partitions` streams: it cuts up what has already come as a whole."""
    clicks = 0
    with app.engine.connect() as connection:
        result = connection.execute(select(Event.id, Event.kind).order_by(Event.id))  # finds: oversized-result
        for rows in result.partitions(1_000):
            clicks += sum(1 for row in rows if row.kind == "click")
    return clicks


@scenario()
def join_with_a_row_for_each_event(app: Application) -> dict[str, int]:
    """Joins customers to their events to find out in Python what GROUP BY would say."""
    visits: dict[str, int] = {}
    with Session(app.engine) as session:
        pairs = session.execute(  # finds: oversized-result
            select(Customer.name, Event.id).join(Event, Event.customer_id == Customer.id)
        )
        for name, _ in pairs:
            visits[name] = visits.get(name, 0) + 1
    return visits


@scenario(tempts="oversized-result, large-identity-map")
def export_of_entities_with_yield_per(app: Application) -> int:
    """Streams entities in portions of 500, and keeps none."""
    written = 0
    with Session(app.engine) as session:
        for event in session.scalars(select(Event).order_by(Event.id).execution_options(yield_per=500)):
            written += len(f"{event.id};{event.kind}")
    return written


@scenario(tempts="oversized-result, large-identity-map")
def legacy_query_with_yield_per(app: Application) -> int:
    """The same with the old interface."""
    with Session(app.engine) as session:
        return sum(1 for event in session.query(Event).yield_per(1_000) if event.kind == "click")


@scenario(tempts="oversized-result")
def partitions_of_a_streamed_core_result(app: Application) -> int:
    """Streams rows by a server-side cursor, a thousand at a time."""
    clicks = 0
    with app.engine.connect() as connection:
        streaming = connection.execution_options(stream_results=True, max_row_buffer=1_000)
        for rows in streaming.execute(select(Event.id, Event.kind)).partitions(1_000):
            clicks += sum(1 for row in rows if row.kind == "click")
    return clicks


@scenario(tempts="oversized-result, unread-rows")
def fetchmany_to_the_end_of_a_streamed_result(app: Application) -> int:
    """Reads own SQL by a server-side cursor until nothing comes any more."""
    lines = 0
    with app.engine.connect().execution_options(stream_results=True) as connection:
        result = connection.execute(text("SELECT id, kind, happened_at FROM events ORDER BY id"))
        while rows := result.fetchmany(2_000):
            lines += len(rows)
    return lines


@scenario(tempts="oversized-result")
def one_kind_of_events(app: Application) -> set[int]:
    """Takes a third of the events: many rows, and not too many."""
    with app.engine.connect() as connection:
        return set(connection.scalars(select(Event.customer_id).where(Event.kind == "buy")))


@scenario(tempts="oversized-result, query-in-loop")
def export_by_keyset_pages(app: Application) -> int:
    """Walks a long table by its key, a thousand rows a statement."""
    last, written = 0, 0
    with app.engine.connect() as connection:
        while True:
            page = select(Event.id, Event.kind).where(Event.id > last).order_by(Event.id).limit(1_000)
            rows = connection.execute(page).all()
            if not rows:
                return written
            last, written = rows[-1].id, written + len(rows)


@scenario(tempts="oversized-result, select-star")
def statistics_by_the_database(app: Application) -> dict[str, int]:
    """Has the server count 12,000 rows, and gets three."""
    with app.engine.connect() as connection:
        rows = connection.execute(text("SELECT kind, count(*) AS events FROM events GROUP BY kind"))
        return {row.kind: row.events for row in rows}


# --- unread-rows ---


@scenario()
def latest_ticket_without_limit(app: Application) -> str:
    """Asks for the newest ticket, and gets all of them."""
    newest_first = select(Ticket.id, Ticket.title).order_by(Ticket.id.desc())
    with app.engine.connect() as connection:
        row = connection.execute(newest_first).first()  # finds: unread-rows
    return row.title if row else "none"


@scenario()
def orm_first_over_many_accounts(app: Application) -> str | None:
    """Looks for any open account, by `first` of a 2.0 style statement, which adds no LIMIT."""
    with Session(app.engine) as session:
        account = session.scalars(  # finds: unread-rows
            select(Account).where(Account.status == "open").order_by(Account.id)
        ).first()
        return account.owner if account else None


@scenario()
def scalar_of_a_long_result(app: Application) -> int:
    """Takes the highest key by sorting, as the first column of the first of 4,000 rows."""
    with Session(app.engine) as session:
        newest = text("SELECT id FROM events WHERE kind = :kind ORDER BY id DESC")
        return session.execute(newest, {"kind": "buy"}).scalar() or 0  # finds: unread-rows


@scenario()
def leaves_the_loop_at_the_first_match(app: Application) -> str | None:
    """Searches in Python for a row that WHERE would have found, and stops there."""
    with app.engine.connect() as connection:
        for row in connection.execute(select(Ticket.id, Ticket.title).order_by(Ticket.id)):  # finds: unread-rows
            if row.title.endswith("7"):
                return row.title
    return None


@scenario()
def takes_the_first_twenty_in_python(app: Application) -> list[str]:
    """A preview: 20 rows by `islice` from a result of 3,000."""
    with app.engine.connect() as connection:
        result = connection.exec_driver_sql("SELECT title FROM tickets ORDER BY title")  # finds: unread-rows
        return [row.title for row in islice(result, 20)]


@scenario()
def asks_for_the_row_count_of_a_select(app: Application) -> bool:
    """Has 2,000 rows sent to learn that there are some."""
    with app.engine.connect() as connection:
        result = connection.execute(select(Account.id).where(Account.balance >= 100))  # finds: unread-rows
        return result.rowcount > 0


@scenario()
def first_of_the_whole_event_log(app: Application) -> datetime | None:
    """When did it all begin? All 12,000 rows are sent in one piece, and one is read."""
    with app.engine.connect() as connection:
        row = connection.execute(  # finds: unread-rows
            select(Event.happened_at).order_by(Event.happened_at)
        ).first()
    return row.happened_at if row else None


@scenario(tempts="unread-rows")
def first_with_limit(app: Application) -> str | None:
    """The newest ticket, with LIMIT 1."""
    with Session(app.engine) as session:
        ticket = session.scalars(select(Ticket).order_by(Ticket.id.desc()).limit(1)).first()
        return ticket.title if ticket else None


@scenario(tempts="unread-rows, limit-without-order-by")
def legacy_query_first(app: Application) -> str | None:
    """`Query.first()` adds LIMIT 1 itself."""
    with Session(app.engine) as session:
        ticket = session.query(Ticket).filter(Ticket.status == "open").first()
        return ticket.title if ticket else None


@scenario(tempts="unread-rows")
def one_by_key_and_one_by_a_unique_column(app: Application) -> tuple[str, str]:
    """`one` and `scalar_one` without LIMIT, on conditions that single rows meet."""
    with Session(app.engine) as session:
        customer = session.scalars(select(Customer).where(Customer.email == "customer7@example.org")).one()
        title = session.execute(select(Ticket.title).where(Ticket.id == 7)).scalar_one()
        return customer.name, title


@scenario(tempts="unread-rows")
def first_of_a_few_rows(app: Application) -> str | None:
    """The cheapest product of 50: a LIMIT would be nicer, and would save nothing."""
    with Session(app.engine) as session:
        product = session.scalars(select(Product).order_by(Product.price)).first()
        return product.name if product else None


@scenario(tempts="unread-rows")
def takes_the_first_suitable_of_fifty_candidates(app: Application) -> int | None:
    """Stops early in a result that was made short on purpose."""
    busy = {1, 2, 3}
    with app.engine.connect() as connection:
        candidates = select(Ticket.id).where(Ticket.status == "open").order_by(Ticket.id).limit(50)
        for (ticket_id,) in connection.execute(candidates):
            if ticket_id not in busy:
                return ticket_id
    return None


@scenario(tempts="unread-rows, oversized-result")
def early_break_of_a_streamed_result(app: Application) -> int:
    """Reads a long table by a server-side cursor until enough has been found."""
    found = 0
    with Session(app.engine) as session:
        stream = session.scalars(select(Event).order_by(Event.id).execution_options(yield_per=100))
        for event in stream:
            found += event.kind == "buy"
            if found == 10:
                stream.close()
                break
    return found


@scenario(tempts="unread-rows")
def spends_a_budget_on_two_thirds_of_the_rows(app: Application) -> int:
    """Leaves the loop when the money is gone, which is after most of the accounts."""
    budget, paid = 130_000, 0
    with app.engine.connect() as connection:
        for row in connection.execute(select(Account.id, Account.balance).order_by(Account.id)):
            if budget < row.balance:
                break
            budget, paid = budget - row.balance, paid + 1
    return paid


@scenario(tempts="unread-rows")
def fetchmany_to_the_end_of_a_short_result(app: Application) -> int:
    """Writes 3,000 tickets in portions of 400; the last portion is smaller."""
    written = 0
    with app.engine.connect() as connection:
        result = connection.execute(select(Ticket.id, Ticket.title))
        while rows := result.fetchmany(400):
            written += sum(len(row.title) for row in rows)
    return written


@scenario(tempts="unread-rows, select-star")
def existence_and_number_asked_properly(app: Application) -> tuple[bool, int]:
    """EXISTS and count(*): one row each, whatever the size of the table."""
    with Session(app.engine) as session:
        any_open = session.scalar(select(exists().where(Ticket.status == "open")))
        number = session.scalar(select(func.count()).select_from(Ticket))
        return bool(any_open), number or 0


# --- wide-rows ---


@scenario(rules={"wide-rows": "warn"})
def titles_of_whole_articles(app: Application) -> list[str]:
    """Makes a list of titles, and loads 14 columns for it, the body among them."""
    with Session(app.engine) as session:
        articles = session.scalars(select(Article).order_by(Article.id)).all()  # finds: wide-rows
        return [article.title for article in articles]


@scenario(rules={"wide-rows": "warn"})
def sitemap_of_whole_articles(app: Application) -> list[str]:
    """Writes a site map of slug and date, with the old interface."""
    lines = []
    with Session(app.engine) as session:
        for article in session.query(Article).filter(Article.status == "published"):  # finds: wide-rows
            lines.append(f"/articles/{article.slug} {article.published_at:%Y-%m-%d}")
    return lines


@scenario(tempts="wide-rows", rules={"wide-rows": "warn"})
def titles_with_load_only(app: Application) -> list[str]:
    """Entities of which just the two columns in use are loaded."""
    with Session(app.engine) as session:
        articles = session.scalars(select(Article).options(load_only(Article.title, Article.slug)))
        return [f"{article.slug}: {article.title}" for article in articles]


@scenario(tempts="wide-rows", rules={"wide-rows": "warn"})
def titles_as_columns(app: Application) -> list[tuple[str, int]]:
    """Selects columns instead of entities."""
    with Session(app.engine) as session:
        return [(row.title, row.views) for row in session.execute(select(Article.title, Article.views))]


@scenario(tempts="wide-rows", rules={"wide-rows": "warn"})
def index_page_without_the_body(app: Application) -> list[str]:
    """Leaves out the long column, and reads six of the others."""
    with Session(app.engine) as session:
        articles = session.scalars(select(Article).options(defer(Article.body)).order_by(Article.id))
        return [
            f"{article.title} {article.summary} {article.author} {article.language} {article.views} {article.slug}"
            for article in articles
        ]


@scenario(tempts="wide-rows", rules={"wide-rows": "warn"})
def front_page_of_twenty_articles(app: Application) -> list[str]:
    """Few rows of a wide table."""
    with Session(app.engine) as session:
        newest = session.scalars(select(Article).order_by(Article.published_at.desc()).limit(20))
        return [article.title for article in newest]


@scenario(tempts="wide-rows", rules={"wide-rows": "warn"})
def backup_of_every_column(app: Application) -> list[dict[str, Any]]:
    """Reads all columns, by their names in the mapper."""
    names = [attribute.key for attribute in inspect(Article).column_attrs]
    with Session(app.engine) as session:
        return [{name: getattr(article, name) for name in names} for article in session.scalars(select(Article))]


@scenario(tempts="wide-rows", rules={"wide-rows": "warn"})
def serialises_articles_by_their_dict(app: Application) -> list[dict[str, Any]]:
    """Reads all columns past their attributes, as home-made serialisers do."""
    with Session(app.engine) as session:
        articles = session.scalars(select(Article).order_by(Article.id)).all()
        return [{name: value for name, value in vars(article).items() if name[0] != "_"} for article in articles]


@scenario(tempts="wide-rows", rules={"wide-rows": "warn"})
def titles_of_many_narrow_rows(app: Application) -> list[str]:
    """One of three columns of 3,000 tickets."""
    with Session(app.engine) as session:
        return [ticket.title for ticket in session.scalars(select(Ticket))]


@scenario(tempts="column-load-loop, wide-rows", rules={"wide-rows": "warn"})
def deferred_column_that_is_wanted(app: Application) -> int:
    """Undefers the long column in the query that needs it."""
    with Session(app.engine) as session:
        tickets = session.scalars(select(Ticket).options(undefer(Ticket.description)).where(Ticket.id <= 200))
        return sum(len(ticket.description) for ticket in tickets)


# --- select-star ---


@scenario()
def star_in_text(app: Application) -> list[str]:
    """Takes every column there is or ever will be."""
    with app.engine.connect() as connection:
        found = connection.execute(  # finds: select-star
            text("SELECT * FROM customers WHERE country = :country ORDER BY id"), {"country": "AT"}
        )
        return [row.name for row in found]


@scenario()
def star_of_one_table_in_a_join(app: Application) -> list[int]:
    """All columns of one of two tables, in driver SQL over several lines."""
    sql = """
        SELECT o.*, c.name AS customer_name
        FROM orders AS o JOIN customers AS c ON c.id = o.customer_id
        WHERE o.status = 'new'
    """
    with app.engine.connect() as connection:
        return [row.id for row in connection.exec_driver_sql(sql)]  # finds: select-star


@scenario(tempts="select-star")
def entities_from_own_sql_with_star(app: Application) -> int:
    """Loads entities, which need all their columns, by a handwritten statement."""
    newest = text("select\n    *\nfrom orders\nwhere status = :status\norder by id desc\nlimit 10")
    with Session(app.engine) as session:
        orders = session.scalars(select(Order).from_statement(newest), {"status": "paid"}).all()
        return len([order.total for order in orders])


@scenario(tempts="select-star")
def stars_that_only_count_or_multiply(app: Application) -> tuple[int, float]:
    """count(*), count(i.*) and multiplications are no lists of columns."""
    counting = text("SELECT count(*) AS items, count(i.*) AS again FROM items AS i WHERE i.quantity > :least")
    with app.engine.connect() as connection:
        items = connection.execute(counting, {"least": 0}).one()
        worth = connection.execute(
            text("SELECT sum(2 * price) * 1.19 FROM products WHERE price * 2 < :most"), {"most": 100}
        ).scalar_one()
    return items.items, float(worth)


@scenario(tempts="select-star")
def star_inside_of_exists(app: Application) -> list[int]:
    """The list of columns of an EXISTS is never looked at, be it written by hand or by SQLAlchemy."""
    by_hand = text(
        "SELECT c.id FROM customers AS c WHERE EXISTS (SELECT * FROM orders AS o WHERE o.customer_id = c.id) LIMIT 10"
    )
    with Session(app.engine) as session:
        ids = list(session.scalars(by_hand))
        ids += session.scalars(select(Tag.id).where(Tag.customers.any())).all()
        ids += session.scalars(select(Product.id).where(exists().where(Item.product_id == Product.id)))
    return ids


@scenario(tempts="select-star")
def star_in_a_comment_and_in_a_string(app: Application) -> list[int]:
    """Names its columns; the star is in what it says and searches for."""
    sql = text(
        """
        /* was SELECT * FROM messages before the bodies grew */
        SELECT id FROM messages -- not select *
        WHERE body <> 'SELECT * FROM messages' AND customer_id = :customer ORDER BY id
        """
    )
    with app.engine.connect() as connection:
        return list(connection.scalars(sql, {"customer": 3}))


# --- deep-offset ---


@scenario()
def page_far_into_a_log(app: Application) -> list[int]:
    """Shows page 201 of a log."""
    page, size = 200, 50
    with app.engine.connect() as connection:
        entries = select(Event.id).order_by(Event.id).limit(size).offset(page * size)
        return connection.scalars(entries).all()  # finds: deep-offset


@scenario()
def export_by_offset_pages(app: Application) -> int:
    """Exports in pages; each of them makes the server read all before it anew."""
    size, written = 500, 0
    with Session(app.engine) as session:
        for start in range(0, 3_000, size):
            page = session.query(Ticket).order_by(Ticket.id).slice(start, start + size)
            written += len([ticket.title for ticket in page])  # finds: deep-offset
    return written


@scenario()
def deep_page_in_own_sql(app: Application) -> list[str]:
    """An end point of an administration page; the number comes in by the URL."""
    with app.engine.connect() as connection:
        return connection.scalars(  # finds: deep-offset
            text("SELECT title FROM tickets ORDER BY title LIMIT :size OFFSET :skip"), {"size": 25, "skip": 2_500}
        ).all()


@scenario()
def deep_page_with_constants_in_driver_sql(app: Application) -> int:
    """A one-time script that goes on where the last one has stopped."""
    with app.engine.connect() as connection:
        sql = "SELECT id, balance FROM accounts ORDER BY id OFFSET 1500 ROWS FETCH NEXT 100 ROWS ONLY"
        return sum(row.balance for row in connection.exec_driver_sql(sql))  # finds: deep-offset


@scenario(tempts="deep-offset, limit-without-order-by, query-in-loop")
def first_pages_of_a_list(app: Application) -> int:
    """Pages as people turn them: a few, in order, none of them deep."""
    shown = 0
    with app.engine.connect() as connection:
        for page in range(6):
            rows = connection.execute(select(Event.id, Event.kind).order_by(Event.id).limit(50).offset(page * 50))
            shown += len(rows.all())
    return shown


@scenario(tempts="deep-offset")
def last_page_below_a_thousand(app: Application) -> list[str]:
    """Skips 980 rows."""
    with Session(app.engine) as session:
        tickets = session.query(Ticket).order_by(Ticket.title, Ticket.id).offset(980).limit(20).all()
        return [ticket.title for ticket in tickets]


@scenario(tempts="deep-offset")
def page_behind_the_end(app: Application) -> list[int]:
    """A crawler asks for a page that does not exist, and gets nothing."""
    with app.engine.connect() as connection:
        return connection.scalars(select(Order.id).order_by(Order.id).limit(20).offset(20_000)).all()


@scenario(tempts="deep-offset, limit-without-order-by")
def page_deep_in_a_log_by_its_key(app: Application) -> list[int]:
    """Goes on behind row 11,000 by a condition; the offset it sends is 0."""
    after = text("SELECT id, kind FROM events WHERE id > :last ORDER BY id LIMIT :size OFFSET :skip")
    with app.engine.connect() as connection:
        return [row.id for row in connection.execute(after, {"last": 11_000, "size": 50, "skip": 0})]


# --- limit-without-order-by ---


@scenario()
def second_page_of_unsorted_orders(app: Application) -> list[int]:
    """Pages of which nobody knows what is on them."""
    with app.engine.connect() as connection:
        page = connection.execute(select(Order.id, Order.status).limit(20).offset(20))  # finds: limit-without-order-by
        return [row.id for row in page if row.status == "new"]


@scenario()
def legacy_page_of_unsorted_customers(app: Application) -> list[str]:
    """The same with the old interface and entities."""
    page = 3
    with Session(app.engine) as session:
        customers = session.query(Customer).filter(Customer.id > 2).offset(page * 10).limit(10)
        return [customer.name for customer in customers.all()]  # finds: limit-without-order-by


@scenario()
def page_that_is_sorted_in_a_window_only(app: Application) -> list[int]:
    """ORDER BY of a window function says how to number the rows, not which of them the page is to have."""
    ranked = text("SELECT id, rank() OVER (ORDER BY total DESC) AS place FROM orders LIMIT :size OFFSET :skip")
    with app.engine.connect() as connection:
        rows = connection.execute(ranked, {"size": 10, "skip": 10})  # finds: limit-without-order-by
        return [row.place for row in rows]


@scenario()
def deep_page_of_an_unsorted_log(app: Application) -> list[int]:
    """Neither sorted nor cheap."""
    with app.engine.connect() as connection:
        return connection.scalars(  # finds: deep-offset, limit-without-order-by
            select(Event.id).where(Event.kind == "click").limit(100).offset(3_000)
        ).all()


@scenario(tempts="limit-without-order-by")
def sample_of_unsorted_rows(app: Application) -> list[str]:
    """Any ten will do: LIMIT without OFFSET."""
    with Session(app.engine) as session:
        sample = [message.body for message in session.scalars(select(Message).limit(10))]
        return sample + [message.body for message in session.query(Message)[0:5]]


@scenario(tempts="limit-without-order-by, deep-offset")
def one_random_product(app: Application) -> str | None:
    """Picks a row at random by skipping some: which one comes is of no matter."""
    with app.engine.connect() as connection:
        return connection.scalar(select(Product.name).offset(random.randrange(1, 50)).limit(1))


@scenario(tempts="limit-without-order-by, deep-offset")
def best_of_a_list(app: Application) -> list[int]:
    """The top ten."""
    with app.engine.connect() as connection:
        return connection.scalars(select(Order.id).order_by(Order.total.desc()).limit(10)).all()


@scenario(tempts="limit-without-order-by, cartesian-join")
def page_with_a_joined_collection(app: Application) -> dict[str, list[str]]:
    """SQLAlchemy puts the sorted page into a subquery, to join the collection to it."""
    with Session(app.engine) as session:
        page = select(Customer).options(joinedload(Customer.addresses)).order_by(Customer.name, Customer.id)
        customers = session.scalars(page.limit(10).offset(10)).unique()
        return {customer.name: [address.city for address in customer.addresses] for customer in customers}


@scenario(tempts="limit-without-order-by")
def page_in_a_sorted_subquery(app: Application) -> list[str]:
    """Sorts and cuts inside, and joins outside."""
    page = select(Order.id, Order.customer_id).order_by(Order.placed_at.desc()).limit(20).offset(20).subquery()
    with app.engine.connect() as connection:
        rows = connection.execute(select(page.c.id, Customer.name).join(Customer, Customer.id == page.c.customer_id))
        return [f"{row.id} {row.name}" for row in rows]


# --- large-in-list ---


@scenario()
def tickets_of_a_long_list(app: Application) -> int:
    """Loads what a file names, all of it by one IN."""
    wanted = list(range(1, 3_000, 2))
    with Session(app.engine) as session:
        tickets = session.scalars(select(Ticket).where(Ticket.id.in_(wanted))).all()  # finds: large-in-list
        return sum(len(ticket.title) for ticket in tickets)


@scenario()
def text_with_a_long_expanding_parameter(app: Application) -> int:
    """The same with own SQL."""
    statement = text("SELECT sum(balance) FROM accounts WHERE id IN :ids")
    with app.engine.connect() as connection:
        ids = [number for number in range(1, 2_001) if number % 3]
        return connection.execute(  # finds: large-in-list
            statement.bindparams(bindparam("ids", expanding=True)), {"ids": ids}
        ).scalar_one()


@scenario()
def long_list_pasted_into_driver_sql(app: Application) -> int:
    """Writes the keys of another system's answer into the statement."""
    keys = ", ".join(str(number * 5) for number in range(1, 1_201))
    with app.engine.connect() as connection:
        rows = connection.exec_driver_sql(  # finds: large-in-list
            f"SELECT id, kind FROM events WHERE kind <> 'view' AND id IN ({keys})"
        )
        return len(rows.all())


@scenario()
def pairs_in_a_long_list(app: Application) -> int:
    """Looks up pairs by a row-wise IN."""
    pairs = [(number, number % 40 + 1) for number in range(1, 1_101)]
    with app.engine.connect() as connection:
        found = connection.scalars(  # finds: large-in-list
            select(Event.id).where(tuple_(Event.id, Event.customer_id).in_(pairs))
        )
        return len(found.all())


@scenario(writes=True)
def deletes_all_but_a_long_list(app: Application) -> int:
    """Removes what a synchronisation has not seen."""
    seen = list(range(1, 2_801))
    with Session(app.engine) as session:
        gone = session.execute(delete(Ticket).where(Ticket.id.not_in(seen)))  # finds: large-in-list
        session.commit()
        return gone.rowcount


@scenario(tempts="large-in-list, query-in-loop")
def long_list_in_chunks(app: Application) -> int:
    """Looks up 3,000 keys, 500 a statement."""
    wanted, found = list(range(1, 6_000, 2)), 0
    with app.engine.connect() as connection:
        for start in range(0, len(wanted), 500):
            rows = connection.execute(select(Event.id, Event.kind).where(Event.id.in_(wanted[start : start + 500])))
            found += len(rows.all())
    return found


@scenario(tempts="large-in-list")
def long_list_as_an_array(app: Application) -> int:
    """Sends 2,000 keys as one value, in two ways."""
    wanted = list(range(1, 2_001))
    with app.engine.connect() as connection:
        ids = connection.scalars(select(Ticket.id).where(Ticket.id == any_(literal(wanted, ARRAY(Integer))))).all()
        total = connection.scalar(text("SELECT sum(balance) FROM accounts WHERE id = ANY(:ids)"), {"ids": wanted})
    return len(ids) + (total or 0)


@scenario(tempts="large-in-list, row-by-row-write", writes=True)
def long_list_in_a_temporary_table(app: Application) -> int:
    """Puts the keys into a temporary table, and joins it."""
    with app.engine.begin() as connection:
        connection.exec_driver_sql("CREATE TEMPORARY TABLE wanted (id integer PRIMARY KEY) ON COMMIT DROP")
        connection.execute(text("INSERT INTO wanted (id) VALUES (:id)"), [{"id": number} for number in range(1, 2_001)])
        return len(connection.execute(text("SELECT t.id, t.title FROM tickets AS t JOIN wanted USING (id)")).all())


@scenario(tempts="large-in-list")
def lists_that_are_long_together(app: Application) -> int:
    """A thousand values in one list and some in two others: none of them has more."""
    ids, customers, kinds = list(range(1, 1_001)), list(range(1, 31)), ["view", "click"]
    with app.engine.connect() as connection:
        chosen = select(func.count()).where(Event.id.in_(ids), Event.customer_id.in_(customers), Event.kind.in_(kinds))
        return connection.scalar(chosen) or 0


@scenario(tempts="large-in-list, oversized-result")
def in_with_a_subquery(app: Application) -> int:
    """Leaves the list of 4,000 keys to the server."""
    buys = select(Event.customer_id).where(Event.kind == "buy")
    with Session(app.engine) as session:
        return len([customer.name for customer in session.scalars(select(Customer).where(Customer.id.in_(buys)))])


# --- large-identity-map ---


@scenario()
def collects_entities_from_pages(app: Application) -> int:
    """Reads in pages, and yet keeps every object of them."""
    events: list[Event] = []
    with Session(app.engine) as session:
        for start in range(0, 6_000, 1_000):
            page = select(Event).where(Event.id > start).order_by(Event.id).limit(1_000)
            events.extend(session.scalars(page))  # finds: large-identity-map
        return len({event.customer_id for event in events})


@scenario()
def keeps_every_streamed_entity(app: Application) -> int:
    """Streams with `yield_per`, into a dictionary that holds all of it."""
    with Session(app.engine) as session:
        stream = session.scalars(select(Event).execution_options(yield_per=1_000))  # finds: large-identity-map
        by_key = {event.id: event for event in stream}
        return max(by_key)


@scenario()
def entities_by_kind(app: Application) -> dict[str, int]:
    """Three results of 4,000 objects each, all of them alive in one session."""
    by_kind: dict[str, list[Event]] = {}
    with Session(app.engine) as session:
        for kind in ("view", "click", "buy"):
            by_kind[kind] = session.query(Event).filter(Event.kind == kind).all()  # finds: large-identity-map
        return {kind: len(events) for kind, events in by_kind.items()}


@scenario(tempts="large-identity-map, oversized-result, query-in-loop")
def drops_entities_of_each_page(app: Application) -> int:
    """Reads 6,000 objects in pages, and holds one page at a time."""
    buys = 0
    with Session(app.engine) as session:
        for start in range(0, 6_000, 1_000):
            page = select(Event).where(Event.id > start).order_by(Event.id).limit(1_000)
            events = session.scalars(page).all()
            buys += sum(1 for event in events if event.kind == "buy")
    return buys


@scenario(tempts="large-identity-map, query-in-loop")
def expunges_each_chunk(app: Application) -> int:
    """Keeps 6,000 objects for later, and takes them out of the session chunk by chunk."""
    kept: list[Event] = []
    with Session(app.engine) as session:
        for start in range(0, 6_000, 1_500):
            kept += session.scalars(select(Event).where(Event.id > start, Event.id <= start + 1_500))
            session.expunge_all()
    return len(kept)


@scenario(tempts="large-identity-map, query-in-loop")
def one_session_for_each_page(app: Application) -> int:
    """Collects detached objects from short sessions."""
    kept: list[Event] = []
    for start in range(0, 6_000, 2_000):
        with Session(app.engine) as session:
            kept += session.scalars(select(Event).where(Event.id.between(start + 1, start + 2_000)))
    return len(kept)


@scenario(tempts="large-identity-map, oversized-result")
def keeps_plain_rows_of_pages(app: Application) -> int:
    """Keeps 6,000 rows of columns, which no session knows of."""
    rows: list[Any] = []
    origin = literal_column("'events'").label("origin")
    with Session(app.engine) as session:
        for start in range(0, 6_000, 2_000):
            page = select(Event.id, Event.kind, origin).where(Event.id > start).order_by(Event.id).limit(2_000)
            rows += session.execute(page)
    return len(rows)


@scenario(tempts="large-identity-map, oversized-result")
def keeps_some_thousands_of_objects(app: Application) -> int:
    """Works on 4,500 objects at once, for good reasons."""
    with Session(app.engine) as session:
        tickets = session.scalars(select(Ticket)).all()
        events = session.scalars(select(Event).where(Event.id <= 1_500)).all()
        return len({ticket.status for ticket in tickets}) + len({event.kind for event in events})
