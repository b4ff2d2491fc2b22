"""What objects load beside the query that asked for them: relationships, columns, and joins that multiply rows."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import Any

from sqlalchemy import func, insert, inspect, select, update
from sqlalchemy.orm import (
    Session,
    contains_eager,
    defer,
    immediateload,
    joinedload,
    load_only,
    raiseload,
    selectin_polymorphic,
    selectinload,
    subqueryload,
    undefer,
    with_polymorphic,
)

from benchmarks.corpus import Application, scenario
from benchmarks.corpus.models import (
    Account,
    Address,
    Car,
    Category,
    Customer,
    CustomerSummary,
    Employee,
    Engineer,
    Entry,
    Fee,
    Item,
    Manager,
    Membership,
    Order,
    Post,
    Product,
    Shelf,
    Tag,
    Thread,
    Ticket,
    Truck,
    Vehicle,
    Warehouse,
)

UNUSED = {"unused-eager-load": "warn"}

# --- n-plus-one ------------------------------------------------------------------------------------------------------


@scenario()
def order_list_with_customer_names(app: Application) -> list[dict[str, Any]]:
    """The endpoint lists the paid orders, each with its customer's name."""
    with Session(app.engine) as session:
        orders = session.scalars(select(Order).where(Order.status == "paid").order_by(Order.id)).all()
        return [
            {
                "id": order.id,
                "total": order.total,
                "customer": order.customer.name,  # finds: n-plus-one
            }
            for order in orders
        ]


@scenario()
def customers_by_number_of_orders(app: Application) -> list[str]:
    """The ranking sorts customers by a collection that nobody loaded."""
    with Session(app.engine) as session:
        customers = session.query(Customer).filter(Customer.country == "AT").all()
        customers.sort(key=lambda customer: len(customer.orders), reverse=True)  # finds: n-plus-one
        return [customer.name for customer in customers]


@scenario()
def two_orders_side_by_side(app: Application) -> list[int]:
    """The comparison of two orders loads the items of each by a statement of its own."""
    with Session(app.engine) as session:
        orders = session.scalars(select(Order).where(Order.id.in_([17, 18]))).all()
        quantities = []
        for order in orders:
            quantities.append(sum(item.quantity for item in order.items))  # finds: n-plus-one
        return quantities


@scenario()
def invoice_lines_over_three_levels(app: Application) -> list[tuple[str, int, str]]:
    """The export goes from customers to orders to items to products, and loads something at each level."""
    lines = []
    with Session(app.engine) as session:
        customers = session.scalars(select(Customer).where(Customer.id <= 4).order_by(Customer.id)).all()
        for customer in customers:
            for order in customer.orders:  # finds: n-plus-one
                for item in order.items:  # finds: n-plus-one
                    lines.append((customer.name, order.id, item.product.name))  # finds: n-plus-one
    return lines


@scenario()
def eager_orders_but_forgotten_items(app: Application) -> Decimal:
    """The orders come eagerly, what is below them was forgotten."""
    with Session(app.engine) as session:
        statement = select(Customer).options(selectinload(Customer.orders)).where(Customer.country == "FR")
        volume = Decimal(0)
        for customer in session.scalars(statement):
            for order in customer.orders:
                volume += order.total * len(order.items)  # finds: n-plus-one
        return volume


@scenario()
def tag_names_through_the_proxy(app: Application) -> dict[str, list[str]]:
    """The association proxy looks like a plain list, and loads the tags behind it."""
    with Session(app.engine) as session:
        customers = session.scalars(select(Customer).order_by(Customer.id).limit(12)).all()
        return {customer.name: list(customer.tag_names) for customer in customers}  # finds: n-plus-one


@scenario()
def tag_cloud(app: Application) -> dict[str, int]:
    """The tag cloud counts the many-to-many collection in Python."""
    with Session(app.engine) as session:
        sizes: dict[str, int] = {}
        for tag in session.query(Tag).order_by(Tag.name):
            sizes[tag.name] = len(tag.customers)  # finds: n-plus-one
        return sizes


@scenario()
def category_menu(app: Application) -> dict[str, Any]:
    """The menu walks down the tree of categories by itself."""

    def render(category: Category) -> dict[str, Any]:
        return {
            "name": category.name,
            "children": [render(child) for child in category.children],  # finds: n-plus-one
        }

    with Session(app.engine) as session:
        root = session.scalars(select(Category).where(Category.parent_id.is_(None))).one()
        return render(root)


@scenario()
def open_orders_of_each_customer(app: Application) -> dict[int, int]:
    """The dashboard reads a viewonly relationship of every Swiss customer."""
    with Session(app.engine) as session:
        statement = select(Customer).where(Customer.country == "CH")
        waiting = {}
        for customer in session.scalars(statement).all():
            waiting[customer.id] = len(customer.open_orders)  # finds: n-plus-one
        return waiting


@scenario()
def shelf_labels(app: Application) -> list[str]:
    """Labels are printed for imperatively mapped shelves with their warehouse's city."""
    with Session(app.engine) as session:
        shelves = session.scalars(select(Shelf).order_by(Shelf.id)).all()
        return [f"{shelf.warehouse.city}/{shelf.label}" for shelf in shelves]  # finds: n-plus-one


@scenario()
def fees_with_their_memberships(app: Application) -> int:
    """The reminder run goes from each fee to its membership, over a composite key."""
    with Session(app.engine) as session:
        fees = session.query(Fee).filter(Fee.amount > 210).order_by(Fee.id).all()
        points = 0
        for fee in fees:
            membership = fee.membership  # finds: n-plus-one
            points += membership.points
        return points


@scenario()
def presenter_objects_around_customers(app: Application) -> list[str]:
    """A view model wraps each customer, and its property loads the profile."""

    class CustomerCard:
        def __init__(self, customer: Customer) -> None:
            self._customer = customer

        @property
        def subtitle(self) -> str:
            return self._customer.profile.bio  # finds: n-plus-one

    with Session(app.engine) as session:
        cards = [CustomerCard(customer) for customer in session.scalars(select(Customer).limit(8))]
        return [card.subtitle for card in cards]


@scenario()
def vehicles_of_domestic_owners(app: Application) -> list[str]:
    """The filter in Python asks a hybrid property of an owner who has to be loaded first."""
    with Session(app.engine) as session:
        vehicles = session.scalars(select(Vehicle).order_by(Vehicle.id)).all()
        return [vehicle.name for vehicle in vehicles if vehicle.owner.is_domestic]  # finds: n-plus-one


@scenario()
def organisation_chart(app: Application) -> dict[str, list[str]]:
    """The chart lists who reports to each manager."""
    chart: dict[str, list[str]] = {}
    with Session(app.engine) as session:
        for manager in session.scalars(select(Manager).order_by(Manager.name)).all():
            chart[manager.name] = sorted(report.name for report in manager.reports)  # finds: n-plus-one
    return chart


@scenario()
def streamed_export_that_loads_beside(app: Application) -> int:
    """The orders are streamed, but each of them loads its customer."""
    written = 0
    with Session(app.engine) as session:
        statement = select(Order).order_by(Order.id).limit(60).execution_options(yield_per=20)
        for order in session.scalars(statement):
            written += len(f"{order.id};{order.customer.email}\n")  # finds: n-plus-one
    return written


@scenario()
def generic_serialiser_of_relationships(app: Application) -> list[dict[str, Any]]:
    """The serialiser takes every relationship it is told, loaded or not."""

    def as_dict(record: Any, *related: str) -> dict[str, Any]:
        result = {column.key: getattr(record, column.key) for column in inspect(record).mapper.column_attrs}
        for name in related:
            result[name] = [child.id for child in getattr(record, name)]  # finds: n-plus-one
        return result

    with Session(app.engine) as session:
        orders = session.scalars(select(Order).where(Order.customer_id == 5)).all()
        return [as_dict(order, "items") for order in orders]


@scenario()
def products_immediately_with_category(app: Application) -> list[str]:
    """The option immediateload sends one statement for each category, at once."""
    with Session(app.engine) as session:
        statement = select(Product).options(immediateload(Product.category)).order_by(Product.id)
        products = session.scalars(statement).all()  # finds: n-plus-one
        return [f"{product.category.name}: {product.name}" for product in products]


@scenario(writes=True)
def closing_warehouses(app: Application) -> None:
    """The flush loads the shelves of each warehouse to take them out of it."""
    with Session(app.engine) as session:
        for warehouse in session.scalars(select(Warehouse).where(Warehouse.id > 4)).all():
            session.delete(warehouse)
        session.commit()  # finds: n-plus-one


@scenario(writes=True)
def retiring_tags(app: Application) -> None:
    """To delete the rows of the secondary table, the flush loads the customers of each tag."""
    with Session(app.engine) as session:
        for tag in session.query(Tag).filter(Tag.id > 14):
            session.delete(tag)
        session.flush()  # finds: n-plus-one
        session.commit()


@scenario(writes=True)
def deleting_threads_with_their_posts(app: Application) -> None:
    """The cascade of each delete loads the posts of that thread."""
    with Session(app.engine) as session:
        stale = session.scalars(select(Thread).where(Thread.id.between(1, 8))).all()
        for thread in stale:
            session.delete(thread)  # finds: n-plus-one
        session.commit()


@scenario(tempts="n-plus-one")
def order_list_with_joined_customers(app: Application) -> list[str]:
    """The endpoint lists orders with customers that came in the same statement."""
    with Session(app.engine) as session:
        statement = select(Order).options(joinedload(Order.customer)).where(Order.status == "paid")
        return [f"{order.id} {order.customer.name}" for order in session.scalars(statement)]


@scenario(tempts="n-plus-one, query-in-loop, repeated-query")
def selectin_over_two_levels(app: Application) -> int:
    """Orders and items come by one statement for each level."""
    with Session(app.engine) as session:
        statement = select(Customer).options(selectinload(Customer.orders).selectinload(Order.items))
        customers = session.scalars(statement).all()
        return sum(item.quantity for customer in customers for order in customer.orders for item in order.items)


@scenario(tempts="n-plus-one")
def subqueries_load_the_tags(app: Application) -> dict[str, set[str]]:
    """The tags come by subqueryload, for a legacy query."""
    with Session(app.engine) as session:
        customers = session.query(Customer).options(subqueryload(Customer.tags)).order_by(Customer.id).all()
        return {customer.name: set(customer.tag_names) for customer in customers}


@scenario(tempts="n-plus-one, query-in-loop, repeated-query", writes=True)
def selectin_in_batches_of_500(app: Application) -> int:
    """2,660 threads need six batches of the same SELECT for their posts."""
    with Session(app.engine) as session:
        session.execute(insert(Thread), [{"title": f"Imported {number}"} for number in range(2600)])
        session.commit()
        threads = session.scalars(select(Thread).options(selectinload(Thread.posts))).all()
        return sum(len(thread.posts) for thread in threads)


@scenario(tempts="n-plus-one, query-in-loop, repeated-query")
def streamed_orders_with_selectin_items(app: Application) -> int:
    """Every 20 streamed orders fetch their items by one statement."""
    count = 0
    with Session(app.engine) as session:
        statement = select(Order).options(selectinload(Order.items)).execution_options(yield_per=20)
        for order in session.scalars(statement):
            count += len(order.items)
    return count


@scenario(tempts="n-plus-one")
def customers_are_in_the_identity_map(app: Application) -> dict[int, str]:
    """All customers were loaded before, so that each order finds its own without a statement."""
    with Session(app.engine) as session:
        customers = session.scalars(select(Customer)).all()
        orders = session.scalars(select(Order).where(Order.total > 100)).all()
        names = {order.id: order.customer.name for order in orders}
        assert len(customers) == 40
        return names


@scenario(tempts="n-plus-one")
def employees_with_bosses_among_them(app: Application) -> list[str]:
    """The bosses are employees of the same list; managers themselves have none."""
    with Session(app.engine) as session:
        employees = session.scalars(select(Employee).order_by(Employee.id)).all()
        return [f"{employee.name} < {employee.boss.name}" for employee in employees if employee.boss]


@scenario(tempts="n-plus-one")
def breadcrumbs_from_a_loaded_tree(app: Application) -> list[str]:
    """The whole tree was loaded by one statement, and the way up is in the identity map."""

    def path(category: Category | None) -> str:
        return f"{path(category.parent)}/{category.name}" if category else ""

    with Session(app.engine) as session:
        categories = session.query(Category).all()
        return [path(category) for category in categories]


@scenario(tempts="n-plus-one, query-in-loop")
def detail_page_of_one_order(app: Application) -> dict[str, Any]:
    """One order was asked for, and each thing beside it loads once."""
    with Session(app.engine) as session:
        order = session.scalars(select(Order).where(Order.id == 12)).one()
        return {
            "customer": order.customer.name,
            "bio": order.customer.profile.bio,
            "quantities": [item.quantity for item in order.items],
            "payments": len(order.payments),
        }


@scenario(tempts="n-plus-one")
def newest_order_of_many(app: Application) -> str:
    """Many orders are listed by their columns, and only the newest one is looked into."""
    with Session(app.engine) as session:
        orders = session.query(Order).filter(Order.customer_id == 3).order_by(Order.placed_at.desc()).all()
        totals = [order.total for order in orders]
        return f"{orders[0].customer.name}: {len(totals)} orders, {len(orders[0].items)} items in the last"


@scenario(tempts="n-plus-one")
def orders_of_one_customer_share_it(app: Application) -> list[str]:
    """The first order loads the customer, the others find that customer there."""
    with Session(app.engine) as session:
        orders = session.scalars(select(Order).where(Order.customer_id == 9)).all()
        return [f"{order.customer.email} {order.status}" for order in orders]


@scenario(tempts="n-plus-one, query-in-loop")
def four_customers_looked_up_by_hand(app: Application) -> list[int]:
    """The support tool gets four customers, and one collection of each."""
    counts = []
    with Session(app.engine) as session:
        for key in (3, 14, 15, 35):
            customer = session.get(Customer, key)
            assert customer is not None
            counts.append(len(customer.addresses))
    return counts


@scenario(tempts="n-plus-one, column-load-loop")
def raiseload_guards_the_listing(app: Application) -> list[tuple[int, Decimal]]:
    """The listing forbids to load anything, and reads columns only."""
    with Session(app.engine) as session:
        orders = session.scalars(select(Order).options(raiseload("*")).where(Order.status == "sent")).all()
        return [(order.id, order.total) for order in orders]


@scenario(tempts="n-plus-one")
def contains_eager_fills_the_collection(app: Application) -> dict[str, list[str]]:
    """The join that filters also fills the relationship that is read."""
    with Session(app.engine) as session:
        statement = (
            select(Customer)
            .join(Customer.addresses)
            .where(Address.city.in_(["City 7", "City 8", "City 47"]))
            .options(contains_eager(Customer.addresses))
        )
        customers = session.scalars(statement).unique().all()
        return {customer.name: [address.city for address in customer.addresses] for customer in customers}


@scenario(tempts="n-plus-one, query-in-loop, repeated-query", own_requests=True)
def one_order_for_each_request(app: Application) -> list[str]:
    """Eight requests show one order each, with its customer."""

    def show(order_id: int) -> str:
        with Session(app.engine) as session:
            order = session.get_one(Order, order_id)
            return f"{order.id} {order.customer.name}"

    pages = []
    for order_id in range(1, 9):
        with app.request(f"GET /orders/{order_id}"):
            pages.append(show(order_id))
    return pages


@scenario(tempts="n-plus-one, query-in-loop, row-by-row-write", writes=True)
def worker_with_a_session_for_each_job(app: Application) -> None:
    """The worker treats six orders, each as a unit of work: load, look at the items, change, commit."""
    for order_id in (21, 42, 63, 84, 105, 126):
        with Session(app.engine) as session, session.begin():
            order = session.get(Order, order_id)
            assert order is not None
            order.status = "packed" if all(item.quantity for item in order.items) else "empty"


@scenario(tempts="n-plus-one, row-by-row-write", writes=True)
def new_orders_with_items_are_flushed_at_once(app: Application) -> int:
    """A new thread's posts are put together in memory, and no collection of a new object loads anything."""
    with Session(app.engine, expire_on_commit=False) as session:
        threads = [Thread(title=f"Weekly {number}") for number in range(6)]
        for thread in threads:
            thread.posts.append(Post(body="first"))
            thread.posts.append(Post(body="second"))
        session.add_all(threads)
        session.commit()
        return sum(len(thread.posts) for thread in threads)


@scenario(tempts="n-plus-one", writes=True)
def posts_added_by_their_thread(app: Application) -> None:
    """A new post takes a loaded thread as its parent, whose other posts need not be loaded for that."""
    with Session(app.engine) as session:
        for thread in session.scalars(select(Thread).where(Thread.id <= 7)).all():
            session.add(Post(thread=thread, body=f"Welcome to {thread.title}"))
        session.commit()


@scenario(tempts="n-plus-one, query-in-loop")
def breadcrumb_of_one_category(app: Application) -> str:
    """The way up from one leaf loads three categories, each from the one before."""
    with Session(app.engine) as session:
        category = session.get(Category, 13)
        names: list[str] = []
        while category is not None:
            names.insert(0, category.name)
            category = category.parent
        return " > ".join(names)


@scenario(tempts="n-plus-one")
def customer_immediately_with_his_orders(app: Application) -> list[str]:
    """The option immediateload needs one statement, as all orders are of the same customer."""
    with Session(app.engine) as session:
        query = session.query(Order).options(immediateload(Order.customer)).filter(Order.customer_id == 6)
        orders = query.all()
    return [f"{order.customer.name}: {order.total}" for order in orders]


# --- column-load-loop ------------------------------------------------------------------------------------------------


@scenario()
def notes_of_all_customers(app: Application) -> list[str]:
    """The export reads a deferred column of each customer."""
    with Session(app.engine) as session:
        customers = session.scalars(select(Customer).where(Customer.country == "DE")).all()
        return [customer.notes.upper() for customer in customers]  # finds: column-load-loop


@scenario()
def load_only_too_little(app: Application) -> list[str]:
    """The query takes two columns, the template reads a third."""
    with Session(app.engine) as session:
        statement = select(Order).options(load_only(Order.id, Order.total)).where(Order.customer_id.in_([1, 2]))
        rows = []
        for order in session.scalars(statement).all():
            rows.append(f"{order.id} {order.total} {order.placed_at:%d.%m.%Y}")  # finds: column-load-loop
        return rows


@scenario()
def deferred_by_a_legacy_option(app: Application) -> int:
    """A query that spared the e-mail addresses is used to send e-mail."""
    with Session(app.engine) as session:
        recipients = session.query(Customer).options(defer(Customer.email)).filter(Customer.id <= 6)
        sent = 0
        for customer in recipients:
            sent += "@" in customer.email  # finds: column-load-loop
        return sent


@scenario(writes=True)
def names_after_the_commit(app: Application) -> list[str]:
    """The commit expires what the log message then reads, object by object."""
    with Session(app.engine) as session:
        tickets = session.scalars(select(Ticket).where(Ticket.id <= 7)).all()
        for ticket in tickets:
            ticket.status = "closed"
        session.commit()
        return [f"closed {ticket.title}" for ticket in tickets]  # finds: column-load-loop


@scenario(writes=True)
def customers_and_orders_after_the_commit(app: Application) -> list[tuple[str, int]]:
    """After the commit both the customer and the orders are loaded again, one customer at a time."""
    with Session(app.engine) as session:
        customers = session.query(Customer).filter(Customer.country == "CH").all()
        for customer in customers:
            customer.country = "LI"
        session.commit()
        summary = []
        for customer in customers:
            name = customer.name  # finds: column-load-loop
            summary.append((name, len(customer.orders)))  # finds: n-plus-one
        return summary


@scenario(writes=True)
def report_after_a_rollback(app: Application) -> list[str]:
    """A dry run is rolled back, which expires everything it reports on."""
    with Session(app.engine) as session:
        shelves = session.scalars(select(Shelf).where(Shelf.id <= 6)).all()
        for shelf in shelves:
            shelf.label = shelf.label.upper()
        session.flush()
        session.rollback()
        report = []
        for shelf in shelves:
            report.append(f"would rename {shelf.label}")  # finds: column-load-loop
        return report


@scenario()
def bonuses_of_a_mixed_list(app: Application) -> int:
    """The query asks for employees, and the bonus of each manager is in another table."""
    with Session(app.engine) as session:
        total = 0
        for employee in session.scalars(select(Employee)).all():
            if isinstance(employee, Manager):
                total += employee.bonus  # finds: column-load-loop
        return total


@scenario()
def doors_of_a_mixed_fleet(app: Application) -> int:
    """Also with one table for all, a subclass's column is not in the query for its base."""
    with Session(app.engine) as session:
        fleet = session.query(Vehicle).order_by(Vehicle.id).limit(10).all()
        return sum(car.doors or 0 for car in fleet if isinstance(car, Car))  # finds: column-load-loop


@scenario(writes=True)
def refreshing_every_ticket(app: Application) -> int:
    """A bulk update is followed by a refresh of each object."""
    with Session(app.engine) as session:
        tickets = session.scalars(select(Ticket).where(Ticket.id.between(100, 107))).all()
        session.execute(
            update(Ticket).where(Ticket.id.between(100, 107)).values(status="late"),
            execution_options={"synchronize_session": False},
        )
        for ticket in tickets:
            session.refresh(ticket)  # finds: column-load-loop
        session.commit()
        return len(tickets)


@scenario(writes=True)
def second_commit_loads_the_versions(app: Application) -> None:
    """The second flush needs the versions that the first commit expired, and loads them row by row."""
    with Session(app.engine) as session:
        accounts = session.scalars(select(Account).where(Account.id <= 8)).all()
        for account in accounts:
            account.status = "frozen"
        session.commit()
        for account in accounts:
            account.balance = 0
        session.commit()  # finds: column-load-loop


@scenario(tempts="column-load-loop")
def notes_undeferred_for_the_export(app: Application) -> list[str]:
    """The export asks for the deferred column with the query."""
    with Session(app.engine) as session:
        statement = select(Customer).options(undefer(Customer.notes)).order_by(Customer.id)
        return [customer.notes for customer in session.scalars(statement)]


@scenario(tempts="column-load-loop")
def description_of_the_selected_ticket(app: Application) -> dict[str, Any]:
    """The page lists fifteen titles, and the description of one."""
    with Session(app.engine) as session:
        tickets = session.scalars(select(Ticket).order_by(Ticket.id.desc()).limit(15)).all()
        return {"titles": [ticket.title for ticket in tickets], "description": tickets[0].description}


@scenario(tempts="column-load-loop", writes=True)
def names_kept_over_the_commit(app: Application) -> list[str]:
    """The session does not expire on commit, so that the log message loads nothing."""
    with Session(app.engine, expire_on_commit=False) as session:
        tickets = session.query(Ticket).filter(Ticket.id <= 7).all()
        for ticket in tickets:
            ticket.status = "closed"
        session.commit()
        return [f"closed {ticket.title}" for ticket in tickets]


@scenario(tempts="column-load-loop, repeated-query", writes=True)
def one_query_after_the_commit(app: Application) -> list[str]:
    """What the commit expired comes back by one query for all."""
    with Session(app.engine) as session:
        statement = select(Ticket).where(Ticket.id <= 7).order_by(Ticket.id)
        tickets = session.scalars(statement).all()
        for ticket in tickets:
            ticket.status = "closed"
        session.commit()
        assert session.scalars(statement).all() == tickets
        return [f"closed {ticket.title}" for ticket in tickets]


@scenario(tempts="column-load-loop", writes=True)
def new_entries_with_times_of_the_server(app: Application) -> list[str]:
    """Keys and times of new rows came back with the INSERT."""
    with Session(app.engine, expire_on_commit=False) as session:
        entries = [Entry(name=f"entry {number}") for number in range(6)]
        session.add_all(entries)
        session.commit()
        return [f"{entry.id} {entry.created_at:%H:%M}" for entry in entries]


@scenario(tempts="column-load-loop", writes=True)
def four_accounts_refreshed(app: Application) -> int:
    """A transfer between four accounts shows their balances as they are after it."""
    with Session(app.engine) as session:
        accounts = session.scalars(select(Account).where(Account.id.in_([1, 2, 3, 4]))).all()
        for account, change in zip(accounts, (-10, -20, 15, 15), strict=True):
            account.balance += change
        session.commit()
        return sum(account.balance for account in accounts)


@scenario(tempts="column-load-loop, repeated-query")
def one_ticket_refreshed_until_closed(app: Application) -> str:
    """The same object is refreshed at each beat, in a transaction of its own."""
    with Session(app.engine) as session:
        ticket = session.get_one(Ticket, 77)
        for _ in range(6):
            session.commit()
            session.refresh(ticket)
            if ticket.status != "open":
                break
            time.sleep(0.01)
        return ticket.status


@scenario(tempts="column-load-loop, n-plus-one")
def staff_with_selectin_polymorphic(app: Application) -> list[str]:
    """The columns of each subclass come by one statement for each subclass."""
    with Session(app.engine) as session:
        statement = select(Employee).options(selectin_polymorphic(Employee, [Manager, Engineer]))
        described = []
        for employee in session.scalars(statement).all():
            match employee:
                case Manager():
                    described.append(f"{employee.name} {employee.bonus}")
                case Engineer():
                    described.append(f"{employee.name} {employee.language}")
        return described


@scenario(tempts="column-load-loop")
def staff_with_polymorphic_join(app: Application) -> int:
    """The tables of the subclasses are joined to the query for the base."""
    with Session(app.engine) as session:
        staff = with_polymorphic(Employee, [Manager, Engineer])
        statement = select(staff).where((staff.Manager.bonus > 200) | (staff.Engineer.language == "Python"))
        employees = session.scalars(statement).all()
        return sum(employee.bonus for employee in employees if isinstance(employee, Manager))


@scenario(tempts="column-load-loop")
def trucks_by_their_own_class(app: Application) -> int:
    """The query for the subclass has the subclass's columns."""
    with Session(app.engine) as session:
        return sum(truck.load or 0 for truck in session.scalars(select(Truck)))


@scenario(tempts="column-load-loop, n-plus-one, query-in-loop")
def order_counts_by_column_property(app: Application) -> dict[str, int]:
    """The number of orders is a scalar subquery of the one statement."""
    with Session(app.engine) as session:
        return {summary.name: summary.order_count for summary in session.scalars(select(CustomerSummary))}


# --- cartesian-join --------------------------------------------------------------------------------------------------


@scenario()
def customers_with_two_joined_collections(app: Application) -> int:
    """Five orders times eight addresses make forty rows of each customer."""
    with Session(app.engine) as session:
        statement = select(Customer).options(joinedload(Customer.orders), joinedload(Customer.addresses))
        customers = session.scalars(statement).unique().all()  # finds: cartesian-join
        return sum(len(customer.orders) + len(customer.addresses) for customer in customers)


@scenario()
def page_of_customers_with_joined_collections(app: Application) -> list[str]:
    """The LIMIT counts customers, and each of the ten comes as fifteen rows."""
    with Session(app.engine) as session:
        query = (
            session.query(Customer)
            .options(joinedload(Customer.orders), joinedload(Customer.tags))
            .order_by(Customer.name)
            .limit(10)
        )
        page = []
        for customer in query:  # finds: cartesian-join
            page.append(f"{customer.name} {len(customer.orders)} {', '.join(customer.tag_names)}")
        return page


@scenario()
def tags_joined_down_to_the_orders(app: Application) -> dict[str, Decimal]:
    """Each tag repeats itself for every order of its customers: thirty rows a tag."""
    with Session(app.engine) as session:
        statement = select(Tag).options(joinedload(Tag.customers).joinedload(Customer.orders))
        revenue = {}
        for tag in session.scalars(statement).unique():  # finds: cartesian-join
            revenue[tag.name] = sum((customer.order_total for customer in tag.customers), Decimal(0))
        return revenue


@scenario()
def cities_of_each_tag_by_contains_eager(app: Application) -> dict[str, set[str]]:
    """An explicit join over two levels fills both collections, with 48 rows for each tag."""
    with Session(app.engine) as session:
        statement = (
            select(Tag)
            .join(Tag.customers)
            .join(Customer.addresses)
            .options(contains_eager(Tag.customers).contains_eager(Customer.addresses))
        )
        tags = session.execute(statement).unique().scalars().all()  # finds: cartesian-join
        return {tag.name: {address.city for owner in tag.customers for address in owner.addresses} for tag in tags}


@scenario()
def two_joins_fill_two_collections(app: Application) -> list[str]:
    """Joined by hand, orders and addresses of a customer multiply each other no less."""
    with Session(app.engine) as session:
        query = (
            session.query(Customer)
            .join(Customer.orders)
            .join(Customer.addresses)
            .options(contains_eager(Customer.orders), contains_eager(Customer.addresses))
            .filter(Customer.country == "DE")
        )
        domestic = query.all()  # finds: cartesian-join
        return [f"{customer.name}: {len(customer.orders)}, {len(customer.addresses)}" for customer in domestic]


@scenario(tempts="cartesian-join")
def sibling_collections_of_which_most_are_empty(app: Application) -> dict[str, int]:
    """A few customers have open orders, so that six rows for each are the mean."""
    with Session(app.engine) as session:
        statement = select(Customer).options(joinedload(Customer.open_orders), joinedload(Customer.tags))
        customers = session.scalars(statement).unique().all()
        return {customer.name: len(customer.open_orders) for customer in customers if len(customer.tags) > 2}


@scenario(tempts="cartesian-join")
def one_collection_joined(app: Application) -> int:
    """Two hundred rows for forty customers are what one collection costs."""
    with Session(app.engine) as session:
        customers = session.scalars(select(Customer).options(joinedload(Customer.orders))).unique().all()
        return sum(len(customer.orders) for customer in customers)


@scenario(tempts="cartesian-join, oversized-result")
def one_customer_with_two_joined_collections(app: Application) -> tuple[int, int]:
    """For a single customer forty rows do no harm."""
    with Session(app.engine) as session:
        statement = select(Customer).options(joinedload(Customer.orders), joinedload(Customer.addresses))
        customer = session.scalars(statement.where(Customer.id == 8)).unique().one()
        return len(customer.orders), len(customer.addresses)


@scenario(tempts="cartesian-join")
def items_joined_to_one_thing_each(app: Application) -> list[str]:
    """Joins to an order, its customer and a product add columns, not rows."""
    with Session(app.engine) as session:
        statement = select(Item).options(joinedload(Item.order).joinedload(Order.customer), joinedload(Item.product))
        items = session.scalars(statement).all()
        return [f"{item.order.customer.name}: {item.quantity} x {item.product.name}" for item in items]


@scenario(tempts="cartesian-join")
def joined_items_and_payments_that_are_not_there(app: Application) -> Decimal:
    """Of the two sibling collections one is empty, so that nothing multiplies."""
    with Session(app.engine) as session:
        statement = select(Order).options(joinedload(Order.items), joinedload(Order.payments))
        orders = session.scalars(statement).unique().all()
        paid = sum((payment.amount for order in orders for payment in order.payments), Decimal(0))
        return sum((order.total for order in orders if order.items), Decimal(0)) - paid


@scenario(tempts="cartesian-join, n-plus-one")
def two_collections_loaded_side_by_side(app: Application) -> int:
    """One collection is joined, the other has a statement of its own."""
    with Session(app.engine) as session:
        statement = select(Customer).options(joinedload(Customer.orders), selectinload(Customer.addresses))
        customers = session.scalars(statement).unique().all()
        return sum(len(customer.orders) * len(customer.addresses) for customer in customers)


@scenario(tempts="cartesian-join, limit-without-order-by")
def page_of_customers_with_one_joined_collection(app: Application) -> list[int]:
    """The page is wrapped into a subquery, and its ten customers come as fifty rows."""
    with Session(app.engine) as session:
        statement = select(Customer).options(joinedload(Customer.orders)).order_by(Customer.id).limit(10).offset(10)
        return [len(customer.orders) for customer in session.scalars(statement).unique()]


@scenario(tempts="cartesian-join")
def joined_chain_of_moderate_size(app: Application) -> int:
    """Orders and items in one chain: four hundred rows, ten for each customer, none of them superfluous."""
    with Session(app.engine) as session:
        query = session.query(Customer).options(joinedload(Customer.orders).joinedload(Order.items))
        return sum(len(order.items) for customer in query for order in customer.orders)


@scenario(tempts="cartesian-join")
def rows_of_a_sales_export(app: Application) -> list[tuple[str, str, Decimal]]:
    """The export wants a row for each tag of each order, and loads no objects."""
    with Session(app.engine) as session:
        statement = (
            select(Tag.name, Customer.name, func.sum(Order.total))
            .join(Tag.customers)
            .join(Customer.orders)
            .group_by(Tag.name, Customer.name, Order.id)
        )
        return [tuple(row) for row in session.execute(statement)]


# --- unused-eager-load -----------------------------------------------------------------------------------------------


@scenario(rules=UNUSED)
def customers_joined_for_nothing(app: Application) -> Decimal:
    """A sum over orders needs no customers."""
    with Session(app.engine) as session:
        statement = select(Order).options(joinedload(Order.customer)).where(Order.status == "new")
        return sum((order.total for order in session.scalars(statement)), Decimal(0))  # finds: unused-eager-load


@scenario(rules=UNUSED)
def items_selected_for_nothing(app: Application) -> list[str]:
    """The listing inherited an option from the detail page."""
    with Session(app.engine) as session:
        statement = select(Order).options(selectinload(Order.items)).order_by(Order.id).limit(30)
        orders = session.scalars(statement).all()  # finds: unused-eager-load
        return [f"{order.id} {order.status}" for order in orders]


@scenario(rules=UNUSED)
def addresses_by_subquery_for_nothing(app: Application) -> int:
    """A legacy query loads addresses, and only names are read."""
    with Session(app.engine) as session:
        query = session.query(Customer).options(subqueryload(Customer.addresses)).filter(Customer.country == "DE")
        longest = 0
        for customer in query:  # finds: unused-eager-load
            longest = max(longest, len(customer.name))
        return longest


@scenario(rules=UNUSED)
def second_level_for_nothing(app: Application) -> dict[str, int]:
    """The orders are counted, and nobody looks at their items."""
    with Session(app.engine) as session:
        statement = select(Customer).options(selectinload(Customer.orders).selectinload(Order.items))
        customers = session.scalars(statement).all()  # finds: unused-eager-load
        return {customer.name: len(customer.orders) for customer in customers}


@scenario(rules=UNUSED, tempts="unused-eager-load")
def payments_are_read_and_empty(app: Application) -> int:
    """The check reads the payments of every order, and finds none."""
    with Session(app.engine) as session:
        orders = session.scalars(select(Order).options(selectinload(Order.payments))).all()
        return sum(1 for order in orders if not order.payments)


@scenario(rules=UNUSED, tempts="unused-eager-load")
def tags_read_through_the_proxy(app: Application) -> set[str]:
    """The eager tags are read, by way of the association proxy."""
    with Session(app.engine) as session:
        customers = session.query(Customer).options(selectinload(Customer.tags)).all()
        return {name for customer in customers for name in customer.tag_names}


@scenario(rules=UNUSED, tempts="unused-eager-load, n-plus-one")
def orders_read_by_a_property(app: Application) -> list[Decimal]:
    """The eager orders are read, by the model's own property."""
    with Session(app.engine) as session:
        customers = session.scalars(select(Customer).options(selectinload(Customer.orders))).all()
        return [customer.order_total for customer in customers]


def _serialise(record: Any, depth: int = 1) -> dict[str, Any]:
    state = inspect(record)
    loaded = [column.key for column in state.mapper.column_attrs if column.key not in state.unloaded]
    result = {key: getattr(record, key) for key in loaded}
    for relation in state.mapper.relationships:
        if depth and relation.key not in state.unloaded:
            value = getattr(record, relation.key)
            many = isinstance(value, list)
            result[relation.key] = [_serialise(child, 0) for child in value] if many else _serialise(value, 0)
    return result


@scenario(rules=UNUSED, tempts="unused-eager-load, n-plus-one")
def serialiser_takes_what_is_loaded(app: Application) -> list[dict[str, Any]]:
    """The serialiser never names the relationships, and takes those that are there."""
    with Session(app.engine) as session:
        statement = select(Order).options(joinedload(Order.customer), selectinload(Order.items)).limit(20)
        return [_serialise(order) for order in session.scalars(statement).all()]


@scenario(rules=UNUSED, tempts="unused-eager-load")
def encoder_takes_the_instance_dict(app: Application) -> list[dict[str, Any]]:
    """A JSON encoder of the kind that takes `vars(record)` uses what was loaded for it."""

    def encode(value: Any) -> Any:
        if isinstance(value, list):
            return [encode(element) for element in value]
        if hasattr(value, "_sa_instance_state"):
            return {key: encode(content) for key, content in vars(value).items() if not key.startswith("_")}
        return str(value)

    with Session(app.engine) as session:
        memberships = session.scalars(select(Membership).options(selectinload(Membership.fees)).limit(12)).all()
        return encode(memberships)


@scenario(rules=UNUSED, tempts="unused-eager-load")
def only_returned_orders_are_looked_into(app: Application) -> list[str]:
    """Of all orders just the last one is read to the ground, which could not be known before."""
    with Session(app.engine) as session:
        orders = session.scalars(select(Order).options(joinedload(Order.customer)).where(Order.total > 150)).all()
        return [order.customer.email for order in orders if order.total >= 200]


@scenario(rules=UNUSED, tempts="unused-eager-load")
def eager_load_for_three_threads(app: Application) -> list[str]:
    """Three parents are too few to make something of it."""
    with Session(app.engine) as session:
        threads = session.scalars(select(Thread).options(selectinload(Thread.posts)).limit(3)).all()
        return [thread.title for thread in threads]


@scenario(rules=UNUSED, tempts="unused-eager-load, n-plus-one", writes=True)
def posts_loaded_for_the_cascade(app: Application) -> None:
    """The posts are loaded at once so that the cascade does not load them thread by thread."""
    with Session(app.engine) as session:
        for thread in session.scalars(select(Thread).where(Thread.id <= 8).options(selectinload(Thread.posts))).all():
            session.delete(thread)
        session.commit()


def _load_customers(app: Application) -> list[Customer]:
    with Session(app.engine) as session:
        statement = select(Customer).options(joinedload(Customer.profile), selectinload(Customer.tags))
        return list(session.scalars(statement))


def _cards(customers: Iterable[Customer]) -> Iterator[str]:
    for customer in customers:
        yield f"{customer.name}: {customer.profile.bio} ({len(customer.tags)})"


@scenario(rules=UNUSED, tempts="unused-eager-load, n-plus-one")
def template_renders_detached_customers(app: Application) -> str:
    """The repository closes its session, and the template reads what was loaded."""
    return "\n".join(_cards(_load_customers(app)))


@scenario(rules=UNUSED, tempts="unused-eager-load", writes=True)
def post_appended_to_loaded_threads(app: Application) -> None:
    """The collections are loaded to be added to."""
    with Session(app.engine) as session:
        for thread in session.query(Thread).options(selectinload(Thread.posts)).filter(Thread.id <= 6):
            thread.posts.append(Post(body="This thread is closed."))
        session.commit()


@scenario(rules=UNUSED, tempts="unused-eager-load, column-load-loop")
def owners_of_a_polymorphic_fleet(app: Application) -> dict[str, bool]:
    """The eager owner of each vehicle is read by a hybrid property."""
    with Session(app.engine) as session:
        fleet = session.scalars(select(Vehicle).options(joinedload(Vehicle.owner)))
        return {vehicle.name: vehicle.owner.is_domestic for vehicle in fleet}
