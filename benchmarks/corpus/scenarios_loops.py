"""Statements that the application itself sends again and again: one for each element, or the same one once more."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date, datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from itertools import count
from typing import Any

from sqlalchemy import Connection, Select, bindparam, exists, func, literal, select, text, update
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker

from benchmarks.corpus import Application, scenario
from benchmarks.corpus.models import (
    Account,
    Address,
    Article,
    Category,
    Customer,
    Entry,
    Event,
    Fee,
    Item,
    Membership,
    Message,
    Order,
    Product,
    Profile,
    Shelf,
    Tag,
    Ticket,
    Visit,
    Warehouse,
)

# --- query-in-loop ---------------------------------------------------------------------------------------------------


@scenario()
def orders_counted_customer_by_customer(app: Application) -> dict[str, int]:
    """A Core report counts the orders of each customer by a statement of its own."""
    counts = {}
    with app.engine.connect() as connection:
        for key, name in connection.execute(select(Customer.id, Customer.name)).all():
            statement = select(func.count()).select_from(Order).where(Order.customer_id == key)
            counts[name] = connection.scalar(statement)  # finds: query-in-loop
    return counts


@scenario()
def products_got_one_by_one(app: Application) -> Decimal:
    """The basket's products are got by their keys, one after the other."""
    basket = {3: 1, 11: 2, 17: 1, 20: 5, 33: 1, 48: 2}
    total = Decimal(0)
    with Session(app.engine) as session:
        for key, quantity in basket.items():
            product = session.get(Product, key)  # finds: query-in-loop
            assert product is not None
            total += product.price * quantity
    return total


@scenario()
def repository_opens_a_session_for_each_call(app: Application) -> list[str]:
    """Each call of the repository opens a session for one SELECT."""
    new_session = sessionmaker(app.engine)

    class Tickets:
        def title(self, key: int) -> str:
            with new_session() as session:
                return session.scalars(select(Ticket.title).where(Ticket.id == key)).one()  # finds: query-in-loop

    tickets = Tickets()
    return [tickets.title(key) for key in range(1, 13)]


@scenario()
def lookups_beside_an_outer_session(app: Application) -> list[tuple[int, str]]:
    """The outer session reads orders, and a helper opens another one for the name of each customer."""

    def customer_name(key: int) -> str:
        with Session(app.engine) as session:
            names = session.query(Customer.name)
            return names.filter(Customer.id == key).scalar()  # finds: query-in-loop, nested-checkout

    with Session(app.engine) as session:
        orders = session.scalars(select(Order).where(Order.id <= 9)).all()
        return [(order.id, customer_name(order.customer_id)) for order in orders]


@scenario()
def last_visits_of_a_write_only_collection(app: Application) -> dict[str, list[str]]:
    """The last three visits of each customer come from the write-only collection."""
    with Session(app.engine) as session:
        recent = {}
        for customer in session.scalars(select(Customer).where(Customer.country == "DE")).all():
            newest = customer.visits.select().order_by(Visit.id.desc()).limit(3)
            recent[customer.name] = [visit.page for visit in session.scalars(newest)]  # finds: query-in-loop
        return recent


@scenario()
def unread_badges_of_a_dynamic_relationship(app: Application) -> list[dict[str, Any]]:
    """The badge of each customer counts a dynamic collection."""
    with Session(app.engine) as session:
        customers = session.query(Customer).order_by(Customer.id).limit(10).all()
        return [
            {
                "name": customer.name,
                "unread": customer.messages.filter(Message.id > 200).count(),  # finds: query-in-loop
            }
            for customer in customers
        ]


@scenario()
def addresses_checked_for_existence(app: Application) -> list[int]:
    """The check asks for each customer whether there is an address in a certain city."""
    cities = {3: "City 2", 4: "City 3", 5: "City 44", 6: "City 5", 7: "City 1", 8: "City 7"}
    missing = []
    with Session(app.engine) as session:
        for key, city in cities.items():
            known = exists().where(Address.customer_id == key, Address.city == city)
            if not session.scalar(select(known)):  # finds: query-in-loop
                missing.append(key)
    return missing


@scenario()
def import_looks_up_each_email(app: Application) -> tuple[list[str], list[str]]:
    """The import looks up each address of its file."""
    lines = [f"customer{number}@example.org" for number in range(35, 46)]
    known, unknown = [], []
    with Session(app.engine) as session:
        for line in lines:
            found = session.query(Customer).filter_by(email=line.strip().lower()).one_or_none()  # finds: query-in-loop
            (known if found else unknown).append(line)
    return known, unknown


@scenario()
def stock_by_handwritten_sql(app: Application) -> dict[int, int]:
    """Handwritten SQL is executed once for each product."""
    statement = text("SELECT coalesce(sum(quantity), 0) FROM items WHERE product_id = :product")
    sold = {}
    with app.engine.connect() as connection:
        for product in range(10, 20):
            result = connection.execute(statement, {"product": product})  # finds: query-in-loop
            sold[product] = result.scalar_one()
    return sold


@scenario()
def points_by_composite_key(app: Application) -> int:
    """Each membership is got by its two-part key."""
    with Session(app.engine) as session:
        members = range(1, 8)
        memberships = (session.get(Membership, (key, "club 1")) for key in members)  # finds: query-in-loop
        return sum(membership.points for membership in memberships if membership)


@scenario()
def category_tree_by_recursive_queries(app: Application) -> list[str]:
    """A recursive function asks for the children of each category."""
    lines: list[str] = []

    def walk(session: Session, parent: int | None, depth: int) -> None:
        statement = select(Category).where(Category.parent_id == parent).order_by(Category.id)
        for category in session.scalars(statement).all():  # finds: query-in-loop
            lines.append("  " * depth + category.name)
            walk(session, category.id, depth + 1)

    with Session(app.engine) as session:
        walk(session, 1, 0)
    return lines


@scenario()
def cached_lookup_of_ever_new_keys(app: Application) -> Decimal:
    """The cache spares nothing, since no key comes twice."""
    with Session(app.engine) as session:

        @lru_cache(maxsize=256)
        def price(key: int) -> Decimal:
            return session.execute(select(Product.price).where(Product.id == key)).scalar_one()  # finds: query-in-loop

        return sum((price(key) for key in range(1, 50, 4)), Decimal(0))


@scenario()
def connection_for_each_warehouse(app: Application) -> list[int]:
    """The report checks out a connection for each warehouse."""

    def shelf_count(warehouse: Warehouse) -> int:
        statement = select(func.count(Shelf.id)).join(Shelf.warehouse).where(Warehouse.city == warehouse.city)
        with app.engine.connect() as connection:
            return connection.execute(statement).scalar_one()  # finds: query-in-loop

    with Session(app.engine) as session:
        stocked = session.query(Warehouse).all()
    return list(map(shelf_count, stocked))


@scenario()
def customers_and_their_orders_each_by_its_own(app: Application) -> list[str]:
    """Customers are got one by one, and each then loads its orders: two mistakes in one loop."""
    report = []
    with Session(app.engine) as session:
        for key in (2, 4, 6, 8, 10, 12):
            customer = session.get_one(Customer, key)  # finds: query-in-loop
            report.append(f"{customer.name}: {len(customer.orders)} orders")  # finds: n-plus-one
    return report


@scenario(writes=True)
def totals_recomputed_order_by_order(app: Application) -> None:
    """The total of each order is computed by a query of its own, then written at the end."""
    with Session(app.engine) as session, session.no_autoflush:
        orders = session.scalars(select(Order).where(Order.customer_id == 20)).all()
        for order in orders:
            statement = (
                select(func.sum(Item.quantity * Product.price))
                .join(Product, Item.product_id == Product.id)
                .where(Item.order_id == order.id)
            )
            order.total = session.scalar(statement) or Decimal(0)  # finds: query-in-loop
        session.commit()


@scenario()
def events_of_january_for_each_customer(app: Application) -> dict[int, int]:
    """Every statement has the same range of days, and another customer."""
    start, end = datetime(2026, 1, 1), datetime(2026, 2, 1)
    activity = {}
    with app.engine.connect() as connection:
        for customer in range(1, 16):
            statement = select(func.count(Event.id)).where(Event.happened_at >= start, Event.happened_at < end)
            statement = statement.where(Event.customer_id == customer)
            activity[customer] = connection.execute(statement).scalar_one()  # finds: query-in-loop
    return activity


@scenario()
def driver_sql_for_each_address(app: Application) -> set[str]:
    """The driver's own SQL is no less a loop."""
    cities = set()
    with app.engine.connect() as connection:
        for key in (11, 22, 33, 44, 55, 66, 77):
            sql = "SELECT city FROM addresses WHERE id = %s"
            cities.add(connection.exec_driver_sql(sql, (key,)).scalar_one())  # finds: query-in-loop
    return cities


@scenario(writes=True)
def looked_up_before_it_is_added(app: Application) -> int:
    """Each name of a short list is looked up, and added where it is missing."""
    added = 0
    with Session(app.engine) as session:
        for name in ("ink", "paper", "pens", "clips", "ink", "glue", "tape"):
            entry = session.scalars(select(Entry).where(Entry.name == name)).one_or_none()  # finds: query-in-loop
            if entry is None:
                session.add(Entry(name=name))
                added += 1
        session.commit()
    return added


@scenario(tempts="query-in-loop")
def four_statuses_counted(app: Application) -> dict[str, int]:
    """There are four statuses, and four statements."""
    counts = {}
    with Session(app.engine) as session:
        for status in ("new", "paid", "sent", "returned"):
            counts[status] = session.scalar(select(func.count(Order.id)).where(Order.status == status)) or 0
    return counts


@scenario(tempts="query-in-loop, deep-offset, limit-without-order-by")
def pages_of_fifty_articles(app: Application) -> int:
    """The sitemap goes through the articles page by page."""
    size, urls = 50, 0
    with Session(app.engine) as session:
        for page in count():
            statement = select(Article.slug).order_by(Article.id).limit(size).offset(page * size)
            slugs = session.scalars(statement).all()
            urls += len(slugs)
            if len(slugs) < size:
                return urls
    return urls


def _batches_of_events(connection: Connection, size: int) -> Iterator[Sequence[Any]]:
    last = 0
    while True:
        statement = select(Event.id, Event.kind).where(Event.id > last).order_by(Event.id).limit(size)
        rows = connection.execute(statement).all()
        if not rows:
            return
        yield rows
        last = rows[-1].id


@scenario(tempts="query-in-loop, n-plus-one, oversized-result")
def keyset_walk_over_events(app: Application) -> Counter[str]:
    """The export walks over the events, each time from the last key on."""
    kinds: Counter[str] = Counter()
    with app.engine.connect() as connection:
        for rows in _batches_of_events(connection, 1000):
            kinds.update(row.kind for row in rows)
    return kinds


@scenario(tempts="query-in-loop")
def ranges_of_keys(app: Application) -> int:
    """The reindexing takes a range of 250 keys at a time."""
    indexed = 0
    with Session(app.engine) as session:
        highest = session.scalar(select(func.max(Ticket.id))) or 0
        for low in range(1, highest + 1, 250):
            tickets = session.execute(select(Ticket.id, Ticket.title).where(Ticket.id.between(low, low + 249)))
            indexed += len(tickets.all())
    return indexed


@scenario(tempts="query-in-loop")
def events_of_each_day(app: Application) -> dict[date, int]:
    """The archive is written one day at a time, so that no day has to be in memory with another."""
    written = {}
    with Session(app.engine) as session:
        for day in (datetime(2026, 1, 2) + timedelta(days=number) for number in range(7)):
            statement = select(Event.id, Event.kind, Event.happened_at).where(
                Event.happened_at >= day, Event.happened_at < day + timedelta(days=1)
            )
            written[day.date()] = len(session.execute(statement).all())
    return written


@scenario(tempts="query-in-loop, large-in-list")
def hundred_keys_at_a_time(app: Application) -> int:
    """Some seven hundred keys are looked up in chunks of a hundred."""
    keys = list(range(500, 1230))
    found = 0
    with Session(app.engine) as session:
        for start in range(0, len(keys), 100):
            chunk = keys[start : start + 100]
            found += len(session.scalars(select(Account).where(Account.id.in_(chunk))).all())
    return found


@scenario(tempts="query-in-loop, repeated-query")
def waiting_for_a_ticket(app: Application) -> str:
    """The client asks for the state of a ticket until it has changed, or patience is over."""
    status = "unknown"
    for _ in range(6):
        with Session(app.engine) as session:
            status = session.scalars(select(Ticket.status).where(Ticket.id == 1)).one()
        if status != "open":
            break
        time.sleep(0.03)
    return status


@scenario(tempts="query-in-loop, repeated-query, row-by-row-write", writes=True)
def queue_of_tickets(app: Application) -> int:
    """The worker takes one open ticket after the other, past those that are locked."""
    done = 0
    while done < 7:
        with Session(app.engine) as session, session.begin():
            statement = select(Ticket).where(Ticket.status == "open").order_by(Ticket.id).limit(1)
            ticket = session.scalars(statement.with_for_update(skip_locked=True)).one_or_none()
            if ticket is None:
                break
            ticket.status = "done"
            done += 1
    return done


@scenario(tempts="query-in-loop, n-plus-one", writes=True)
def accounts_locked_in_order(app: Application) -> int:
    """The settlement locks its accounts one by one, always in the same order."""
    with Session(app.engine) as session, session.begin():
        accounts = [session.get(Account, key, with_for_update=True) for key in sorted({90, 7, 55, 23, 61, 12})]
        fee = sum(account.balance // 100 for account in accounts if account)
        for account in accounts:
            if account:
                account.balance -= account.balance // 100
    return fee


@scenario(tempts="query-in-loop, repeated-query")
def clock_read_in_a_loop(app: Application) -> timedelta:
    """The difference between the clocks is measured six times, and the least one counts."""
    differences = []
    with app.engine.connect() as connection:
        for _ in range(6):
            server = connection.scalar(select(func.clock_timestamp()))
            differences.append(abs(datetime.now(server.tzinfo) - server))
    return min(differences)


@scenario(tempts="query-in-loop")
def advisory_locks_of_some_shards(app: Application) -> list[bool]:
    """The job locks its shards, of which none is a table."""
    with app.engine.begin() as connection:
        return [bool(connection.scalar(select(func.pg_try_advisory_xact_lock(4711, shard)))) for shard in range(8)]


@scenario(tempts="query-in-loop, repeated-query, oversized-result")
def events_streamed_in_partitions(app: Application) -> int:
    """One statement is read in pieces of five hundred rows by a cursor of the server."""
    seen = 0
    with app.engine.connect() as connection:
        statement = select(Event.id, Event.kind).where(Event.id <= 6000)
        result = connection.execution_options(yield_per=500).execute(statement)
        for partition in result.partitions():
            seen += len(partition)
    return seen


@scenario(tempts="query-in-loop, repeated-query")
def tables_counted(app: Application) -> dict[str, int]:
    """The health page counts each of seven tables: one line, seven different statements."""
    tables: tuple[type[DeclarativeBase], ...] = (Customer, Order, Item, Product, Tag, Visit, Address)
    with Session(app.engine) as session:
        return {table.__tablename__: session.scalar(select(func.count()).select_from(table)) or 0 for table in tables}


def _rows(session: Session, statement: Select[Any]) -> list[Any]:
    return list(session.scalars(statement))


@scenario(tempts="query-in-loop, n-plus-one")
def search_with_different_filters(app: Application) -> list[int]:
    """The search goes from strict to loose, and each step is another statement."""
    orders = select(Order.id).order_by(Order.id)
    steps = [
        orders.where(Order.total == 20, Order.status == "new"),
        orders.where(Order.total.between(18, 22), Order.status == "new"),
        orders.where(Order.total < 22, Order.status != "returned").limit(5),
        orders.where(Order.customer_id == 21),
        orders.join(Order.customer).where(Customer.name.ilike("customer 21")),
        orders.where(Order.id == select(func.max(Order.id)).scalar_subquery()),
    ]
    with Session(app.engine) as session:
        return [key for step in steps for key in _rows(session, step)]


def _find_tag(session: Session, name: str) -> Tag:
    return session.scalars(select(Tag).where(Tag.name == name)).one()


@scenario(tempts="query-in-loop, n-plus-one")
def a_handful_of_well_known_tags(app: Application) -> dict[str, int]:
    """Six places of the program each ask for the one tag they need."""
    with Session(app.engine) as session:
        news = _find_tag(session, "tag 1")
        sport = _find_tag(session, "tag 2")
        culture = _find_tag(session, "tag 3")
        travel = _find_tag(session, "tag 4")
        science = _find_tag(session, "tag 5")
        weather = _find_tag(session, "tag 6")
        return {
            "front": news.id,
            "back": sport.id,
            "weekend": culture.id + travel.id,
            "extra": science.id + weather.id,
        }


@scenario(tempts="query-in-loop, repeated-query, n-plus-one")
def gets_from_the_identity_map(app: Application) -> list[str]:
    """The categories are loaded once, and each get finds its own without a statement."""
    with Session(app.engine) as session:
        known = session.scalars(select(Category)).all()
        names = []
        for product_category in session.scalars(select(Product.category_id).order_by(Product.id)).all():
            category = session.get(Category, product_category)
            assert category in known
            names.append(category.name)
        return names


@scenario(tempts="repeated-query, query-in-loop")
def current_user_got_again_and_again(app: Application) -> int:
    """Each step of the request gets the same user by the same key, which costs one statement."""
    with Session(app.engine) as session:
        allowed = 0
        users = set()
        for _ in ("read", "write", "delete", "share", "invite"):
            user = session.get(Customer, 13)
            assert user is not None
            users.add(user)
            allowed += user.is_domestic
        assert len(users) == 1
        return allowed


@scenario(tempts="query-in-loop, n-plus-one")
def category_tree_by_a_common_table_expression(app: Application) -> dict[int, int]:
    """The database does the recursion, for a root at a time of three."""
    depths = {}
    with Session(app.engine) as session:
        for root in (1, 2, 3):
            tree = select(Category.id, literal(0).label("depth")).where(Category.id == root).cte("tree", recursive=True)
            below = select(Category.id, tree.c.depth + 1).where(Category.parent_id == tree.c.id)
            tree = tree.union_all(below)
            depths[root] = session.scalar(select(func.max(tree.c.depth))) or 0
    return depths


@scenario(tempts="query-in-loop, repeated-query")
def cached_rates_of_four_countries(app: Application) -> dict[int, int]:
    """Each of the thirty customers needs the number of customers of one of few countries, which is cached."""
    with Session(app.engine) as session:

        @lru_cache
        def population(country: str) -> int:
            return session.scalar(select(func.count(Customer.id)).where(Customer.country == country)) or 0

        countries = session.execute(select(Customer.id, Customer.country).where(Customer.country != "IT"))
        return {key: population(country) for key, country in countries.all()}


@scenario(tempts="query-in-loop", own_requests=True)
def one_lookup_for_each_request(app: Application) -> int:
    """Ten requests authenticate one user each."""
    new_session = sessionmaker(app.engine)

    def authenticate(token: str) -> str | None:
        with new_session() as session:
            return session.scalar(select(Customer.name).where(Customer.email == token))

    recognised = 0
    for number in range(36, 46):
        with app.request("POST /login"):
            recognised += authenticate(f"customer{number}@example.org") is not None
    return recognised


@scenario(tempts="query-in-loop")
def five_counts_side_by_side(app: Application) -> list[int]:
    """Five threads count at the same time, each on a connection of its own."""

    def events_of(customer: int) -> int:
        statement = select(func.count(Event.id), func.pg_sleep(0.1)).where(Event.customer_id == customer)
        with app.engine.connect() as connection:
            return connection.execute(statement).one()[0]

    with ThreadPoolExecutor(max_workers=5) as pool:
        return list(pool.map(events_of, range(1, 6)))


@scenario(tempts="query-in-loop, repeated-query")
def one_statement_for_all_elements(app: Application) -> dict[int, int]:
    """What would have been a loop is one statement with a list and a grouping."""
    wanted = [1, 5, 9, 13, 17, 21]
    statement = (
        select(Order.customer_id, func.count())
        .where(Order.customer_id.in_(bindparam("wanted", expanding=True)))
        .group_by(Order.customer_id)
    )
    with app.engine.connect() as connection:
        counts = {row.customer_id: row[1] for row in connection.execute(statement, {"wanted": wanted})}
    return {key: counts.get(key, 0) for key in wanted}


@scenario(tempts="query-in-loop, row-by-row-write, flush-storm", writes=True)
def new_names_under_savepoints(app: Application) -> int:
    """Each of six names is tried under a savepoint, and nothing is looked up before."""
    stored = 0
    with Session(app.engine) as session:
        for name in ("ada", "grace", "edsger", "barbara", "donald", "tony"):
            with session.begin_nested():
                session.add(Entry(name=name))
            stored += 1
        session.commit()
    return stored


# --- repeated-query --------------------------------------------------------------------------------------------------


@scenario()
def permissions_asked_for_each_action(app: Application) -> dict[str, bool]:
    """The check of a permission reads the user's clubs again for each action."""
    with Session(app.engine) as session:

        def may(user: int, action: str) -> bool:
            statement = select(Membership.club).where(Membership.customer_id == user)
            return f"club {len(action)}" in session.scalars(statement).all()  # finds: repeated-query

        return {action: may(7, action) for action in ("eat", "go", "see", "run")}


@scenario()
def share_of_each_country(app: Application) -> dict[str, float]:
    """The total is counted again for each country, though it cannot have changed."""
    shares = {}
    with app.engine.connect() as connection:
        by_country = select(Customer.country, func.count()).group_by(Customer.country)
        for country, number in connection.execute(by_country).all():
            total = connection.execute(select(func.count()).select_from(Customer)).scalar_one()  # finds: repeated-query
            shares[country] = number / total
    return shares


@scenario()
def choices_of_each_form_row(app: Application) -> list[list[str]]:
    """Each row of the form asks for all tags again."""

    def tag_choices(session: Session) -> list[str]:
        return [tag.name for tag in session.query(Tag).order_by(Tag.name).all()]  # finds: repeated-query

    with Session(app.engine) as session:
        orders = session.scalars(select(Order).order_by(Order.id).limit(8)).all()
        return [[order.status, *tag_choices(session)] for order in orders]


@scenario()
def dynamic_count_for_every_link(app: Application) -> list[str]:
    """The pager counts the messages again for every link."""
    with Session(app.engine) as session:
        customer = session.get_one(Customer, 30)
        links = []
        for page in range(5):
            number = customer.messages.count()  # finds: repeated-query
            if page * 2 < number:
                links.append(f"?page={page + 1} of {number // 2}")
        return links


@scenario()
def missing_customer_is_asked_for_again(app: Application) -> list[str]:
    """What does not exist is in no identity map, and each get asks the database again."""
    senders = [9001, 9001, 4, 9001, 9001, 4]
    with Session(app.engine) as session:
        names = []
        for sender in senders:
            customer = session.get(Customer, sender)  # finds: repeated-query
            names.append(customer.name if customer else "unknown")
        return names


@scenario()
def settings_read_by_each_step(app: Application) -> Decimal:
    """Each step of the price calculation reads the same product by handwritten SQL."""

    statement = text("SELECT price FROM products WHERE id = 9")
    with app.engine.connect() as connection:

        def base_price() -> Decimal:
            return connection.execute(statement).scalar_one()  # finds: repeated-query

        discount = base_price() / 10
        tax = (base_price() - discount) * Decimal("0.19")
        return base_price() - discount + tax


@scenario()
def total_fetched_in_three_places(app: Application) -> dict[str, Any]:
    """Heading, table and footer of a page each count the open tickets."""
    with Session(app.engine) as session:
        tickets = session.query(Ticket).filter(Ticket.status == "open")
        page: dict[str, Any] = {"heading": f"{tickets.count()} tickets"}
        page["rows"] = []
        for ticket in tickets.order_by(Ticket.id).limit(3).all():
            page["rows"].append(f"{ticket.title} of {tickets.count()}")  # finds: repeated-query
        page["footer"] = tickets.count() > 3
        return page


@scenario(writes=True)
def price_read_between_writes_to_another_table(app: Application) -> None:
    """The price is read again for each new entry, though only entries are written."""
    with Session(app.engine) as session:
        for number in range(6):
            product = select(Product.price).where(Product.id == 7)
            price = session.scalars(product).one()  # finds: repeated-query
            session.add(Entry(name=f"offer {number}", value=int(price) + number))
        session.commit()


@scenario(tempts="repeated-query", writes=True)
def balance_before_and_after(app: Application) -> list[int]:
    """The balance is read, changed and read again, three times in one transaction."""
    balance = select(Account.balance).where(Account.id == 5)
    with app.engine.begin() as connection:
        history = [connection.scalar(balance)]
        for amount in (10, -30, 5):
            connection.execute(update(Account).where(Account.id == 5).values(balance=Account.balance + amount))
            history.append(connection.scalar(balance))
    return history


@scenario(tempts="repeated-query, query-in-loop")
def same_question_in_separate_transactions(app: Application) -> list[int]:
    """Each step commits, so that the next one has to see what others did in between."""
    counts = []
    with Session(app.engine) as session:
        for _ in range(5):
            counts.append(session.scalar(select(func.count(Ticket.id)).where(Ticket.status == "open")) or 0)
            session.commit()
    return counts


@scenario(tempts="repeated-query")
def asked_twice(app: Application) -> bool:
    """The form asks whether an e-mail address is taken when it checks it, and once more when it stores it."""

    def taken(session: Session) -> bool:
        return session.query(Customer.id).filter(Customer.email == "somebody@example.org").first() is not None

    with Session(app.engine) as session:
        errors = ["taken"] if taken(session) else []
        return not errors and not taken(session)


@scenario(tempts="repeated-query, query-in-loop", own_requests=True)
def same_page_for_many_visitors(app: Application) -> int:
    """Six requests show the same start page."""
    length = 0
    for _ in range(6):
        with app.request("GET /"), Session(app.engine) as session:
            newest = session.scalars(select(Article.title).order_by(Article.id.desc()).limit(5)).all()
            length += len("".join(newest))
    return length


@scenario(tempts="repeated-query, query-in-loop, row-by-row-write", writes=True)
def last_number_plus_one(app: Application) -> list[int]:
    """Each new entry takes the highest number so far and one more: what it reads, it has just written."""
    numbers = []
    with Session(app.engine) as session:
        for name in ("first", "second", "third", "fourth", "fifth"):
            highest = session.scalar(select(func.coalesce(func.max(Entry.value), 0))) or 0
            session.add(Entry(name=name, value=highest + 1))
            session.flush()
            numbers.append(highest + 1)
        session.commit()
    return numbers


@scenario(tempts="repeated-query, query-in-loop")
def different_questions_about_one_customer(app: Application) -> list[int]:
    """The same key is asked for in five tables."""
    with Session(app.engine) as session:
        return [
            session.scalar(select(func.count()).select_from(table).where(table.customer_id == 11)) or 0
            for table in (Order, Address, Visit, Message, Fee, Profile)
        ]


@scenario(tempts="repeated-query")
def own_cache_in_front_of_the_query(app: Application) -> list[str]:
    """A dictionary remembers what was asked for already."""
    names: dict[int, str] = {}
    with Session(app.engine) as session:
        lines = []
        for customer in (4, 4, 8, 4, 8, 8, 4):
            if customer not in names:
                names[customer] = session.scalars(select(Customer.name).where(Customer.id == customer)).one()
            lines.append(names[customer])
        return lines
