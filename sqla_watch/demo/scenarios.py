"""The mistakes, each with its repair: small pieces of a shop's code as one meets them.

A mistake and its repair return the same answer. `SCENARIOS` names them all; `sqla-watch demo` runs each in a scope of
its own.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
import warnings
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, create_engine, delete, func, insert, select, text, update
from sqlalchemy.exc import MissingGreenlet, TimeoutError
from sqlalchemy.orm import Session, aliased, joinedload, selectinload, undefer
from sqlalchemy.pool import AsyncAdaptedQueuePool

import sqla_watch
from sqla_watch import Budget
from sqla_watch.demo.data import COUNTRIES, STATUSES
from sqla_watch.demo.models import Customer, Item, Order, Product, Rate

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["SCENARIOS", "Scenario", "Shop"]


@dataclass(frozen=True)
class Shop:
    """The engines of the shop's database."""

    engine: Engine
    small_pool: Engine
    """An engine whose pool has two connections."""
    async_engine: AsyncEngine | None = None
    """None where there is no driver for asyncio."""


@dataclass(frozen=True)
class Scenario:
    """A mistake and its repair."""

    rule: str
    """The rule that finds the mistake."""
    title: str
    mistake: Callable[[Shop], object | Awaitable[object]]
    repair: Callable[[Shop], object | Awaitable[object]]
    findings: int = 1
    """How many findings the mistake has."""
    is_async: bool = False
    """Whether it needs the asynchronous engine."""
    not_on_sqlite: str = ""
    """Why it is left out on SQLite, if it is."""
    rules: Mapping[str, Any] = field(default_factory=dict)
    """Settings of its rule, where that is off by default, or the mistake would take too long to show."""
    undo: Callable[[Shop], None] | None = None
    """Takes back what mistake and repair write, after each of them."""
    note: str = ""
    """What the numbers do not show."""

    @property
    def name(self) -> str:
        """Rule and title: `n-plus-one, three levels`."""
        return f"{self.rule}, {self.title}"


# n-plus-one: a relationship is touched on one object after the other.


def n_plus_one_mistake(shop: Shop) -> dict[str, int]:
    """Count the orders of each customer: one statement for the customers, one more for each of them."""
    with Session(shop.engine) as session:
        customers = session.scalars(select(Customer).order_by(Customer.id).limit(100)).all()
        return {customer.name: len(customer.orders) for customer in customers}


def n_plus_one_repair(shop: Shop) -> dict[str, int]:
    """Load the orders of all customers at once."""
    with Session(shop.engine) as session:
        query = select(Customer).order_by(Customer.id).limit(100).options(selectinload(Customer.orders))
        return {customer.name: len(customer.orders) for customer in session.scalars(query).all()}


# n-plus-one, three relationships deep: each level multiplies.


def nested_mistake(shop: Shop) -> Decimal:
    """Add up what ten customers have bought, through orders and items to the products."""
    total = Decimal(0)
    with Session(shop.engine) as session:
        for customer in session.scalars(select(Customer).order_by(Customer.id).limit(10)).all():
            for order in customer.orders:
                for item in order.items:
                    total += item.quantity * item.product.price
    return total


def nested_repair(shop: Shop) -> Decimal:
    """Name the whole way with the query; every level is one statement for all, and products come with the items."""
    total = Decimal(0)
    way = selectinload(Customer.orders).selectinload(Order.items).joinedload(Item.product)
    with Session(shop.engine) as session:
        for customer in session.scalars(select(Customer).order_by(Customer.id).limit(10).options(way)).all():
            for order in customer.orders:
                for item in order.items:
                    total += item.quantity * item.product.price
    return total


# n-plus-one under asyncio: run_sync lets objects load lazily there, too, and makes it no cheaper.
# SQLAlchemy's asyncio package is imported late because it needs greenlet, which not everybody has.


async def async_mistake(shop: Shop) -> list[str]:
    """Name the customer of each order, one after the other."""
    from sqlalchemy.ext.asyncio import AsyncSession

    async with AsyncSession(shop.async_engine) as session:
        orders = (await session.scalars(select(Order).order_by(Order.id).limit(50))).all()
        return await session.run_sync(lambda _: [order.customer.name for order in orders])


async def async_repair(shop: Shop) -> list[str]:
    """Join the customers to their orders."""
    from sqlalchemy.ext.asyncio import AsyncSession

    async with AsyncSession(shop.async_engine) as session:
        query = select(Order).order_by(Order.id).limit(50).options(joinedload(Order.customer))
        return [order.customer.name for order in await session.scalars(query)]


# query-in-loop: a list of ids, and a query for each.

BASKET = range(1, 101)


def query_in_loop_mistake(shop: Shop) -> list[str]:
    """Look up the customers of a mailing one by one."""
    with Session(shop.engine) as session:
        return [session.get_one(Customer, number).name for number in BASKET]


def query_in_loop_repair(shop: Shop) -> list[str]:
    """Ask for all of them at once."""
    with Session(shop.engine) as session:
        query = select(Customer.name).where(Customer.id.in_(BASKET)).order_by(Customer.id)
        return list(session.scalars(query))


# repeated-query: the same question, asked by a helper that keeps no answer.


def tax_rate(session: Session, country: str) -> Decimal:
    """Look up the tax rate of a country."""
    return session.scalars(select(Rate.percent).where(Rate.country == country)).one()


def repeated_query_mistake(shop: Shop) -> list[Decimal]:
    """Work out the tax of a hundred prices, asking for the same rate each time."""
    with Session(shop.engine) as session:
        return [price * tax_rate(session, "CH") / 100 for price in range(100)]


def repeated_query_repair(shop: Shop) -> list[Decimal]:
    """Ask once, and keep the answer."""
    with Session(shop.engine) as session:
        rate = tax_rate(session, "CH")
        return [price * rate / 100 for price in range(100)]


# over-budget: what a request may cost is written down; this is how it is told that it costs more.


def over_budget_mistake(shop: Shop) -> dict[str, int]:
    """Count for the shop's front page, whose budget is two statements, with a statement for each number."""
    with sqla_watch.scope("front page", budget=Budget(max_statements=2)), Session(shop.engine) as session:
        customers = session.scalar(select(func.count()).select_from(Customer))
        orders = session.scalar(select(func.count()).select_from(Order))
        products = session.scalar(select(func.count()).select_from(Product))
        return {"customers": customers or 0, "orders": orders or 0, "products": products or 0}


def over_budget_repair(shop: Shop) -> dict[str, int]:
    """Ask for all of them at once."""
    with sqla_watch.scope("front page", budget=Budget(max_statements=2)), Session(shop.engine) as session:
        numbers = session.execute(
            select(
                *(
                    select(func.count()).select_from(each).scalar_subquery().label(name)
                    for name, each in (("customers", Customer), ("orders", Order), ("products", Product))
                )
            )
        ).one()
        return dict(numbers._mapping)


# oversized-result: everything is fetched to use a little.


def oversized_result_mistake(shop: Shop) -> list[int]:
    """Show the twenty latest items, out of all that were ever sold."""
    with Session(shop.engine) as session:
        items = session.execute(select(Item.id, Item.order_id).order_by(Item.id.desc())).all()
        return [item.id for item in items[:20]]


def oversized_result_repair(shop: Shop) -> list[int]:
    """Let the database take the first twenty."""
    with Session(shop.engine) as session:
        items = session.execute(select(Item.id, Item.order_id).order_by(Item.id.desc()).limit(20)).all()
        return [item.id for item in items]


# slow-query: the database has to do far more than the answer needs.

PRIZE = 6_000


def slow_query_mistake(shop: Shop) -> int:
    """Find the 6,000th order by counting, for each order, how many came before it."""
    earlier = aliased(Order)
    before = select(func.count()).where(earlier.placed_at < Order.placed_at).scalar_subquery()
    with Session(shop.engine) as session:
        return session.scalars(select(Order.id).where(before == PRIZE - 1).limit(1)).one()


def slow_query_repair(shop: Shop) -> int:
    """Number the orders in one pass."""
    number = func.row_number().over(order_by=Order.placed_at)
    numbered = select(Order.id, number.label("number")).subquery()
    with Session(shop.engine) as session:
        found: int = session.scalars(select(numbered.c.id).where(numbered.c.number == PRIZE)).one()
        return found


# idle-in-transaction: locks and snapshot are held while somebody else is asked.


def charge(order: int) -> str:
    """Stand for the payment provider, who takes his time."""
    time.sleep(0.6)
    return f"receipt {order}"


def idle_in_transaction_mistake(shop: Shop) -> str:
    """Pay an order, and wait for the provider in the middle of the transaction."""
    with Session(shop.engine) as session:
        order = session.get_one(Order, 7)
        receipt = charge(order.id)
        order.status = "paid"
        session.commit()
    return receipt


def idle_in_transaction_repair(shop: Shop) -> str:
    """Wait first, then open the transaction."""
    receipt = charge(7)
    with Session(shop.engine) as session:
        session.get_one(Order, 7).status = "paid"
        session.commit()
    return receipt


def take_back_payment(shop: Shop) -> None:
    """Give the order the status that it had."""
    with shop.engine.begin() as connection:
        connection.execute(update(Order).where(Order.id == 7).values(status="returned"))


# long-transaction: what is done for each of many is done for all in one transaction.

UNPAID = range(1, 5)


def remind(order: int) -> None:
    """Stand for the mail server."""
    time.sleep(0.14)


def long_transaction_mistake(shop: Shop) -> int:
    """Remind the customers of unpaid orders; the first order stays locked until the last mail has gone out."""
    with Session(shop.engine) as session:
        for number in UNPAID:
            session.execute(update(Order).where(Order.id == number).values(status="reminded"))
            remind(number)
        session.commit()
    return len(UNPAID)


def long_transaction_repair(shop: Shop) -> int:
    """Commit after each order, and send the mail after that."""
    with Session(shop.engine) as session:
        for number in UNPAID:
            session.execute(update(Order).where(Order.id == number).values(status="reminded"))
            session.commit()
            remind(number)
    return len(UNPAID)


def take_back_reminders(shop: Shop) -> None:
    """Give the orders the status that they had."""
    with shop.engine.begin() as connection:
        for number in UNPAID:
            connection.execute(update(Order).where(Order.id == number).values(status=STATUSES[number % len(STATUSES)]))


# pool-wait: connections are kept for work that needs none, and others stand in the queue.


def count_customers(session: Session, country: str) -> int:
    """Count the customers of a country."""
    return session.scalars(select(func.count()).where(Customer.country == country)).one()


def print_report(country: str, customers: int) -> str:
    """Stand for the slow part of a report, which needs no database."""
    time.sleep(0.15)
    return f"{country}: {customers}"


def in_threads(report: Callable[[str], str]) -> list[str]:
    """Make the report of each country in a thread of its own, all at once."""
    with ThreadPoolExecutor(len(COUNTRIES)) as threads:
        # A thread starts without the context of the one that asks: copying it takes the scope along.
        tasks = [threads.submit(contextvars.copy_context().run, report, country) for country in COUNTRIES]
        return [task.result() for task in tasks]


def pool_wait_mistake(shop: Shop) -> list[str]:
    """Hold the connection until the report is printed; two of five get one, three wait."""

    def report(country: str) -> str:
        with Session(shop.small_pool) as session:
            return print_report(country, count_customers(session, country))

    return in_threads(report)


def pool_wait_repair(shop: Shop) -> list[str]:
    """Give the connection back before the slow part."""

    def report(country: str) -> str:
        with Session(shop.small_pool) as session:
            customers = count_customers(session, country)
        return print_report(country, customers)

    return in_threads(report)


# connection-held: a connection is taken long before it is needed.


@contextmanager
def request(name: str) -> Iterator[None]:
    """Handle a request; what is found in it is the demo's to tell, so that there is no warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sqla_watch.SqlaWatchWarning)
        with sqla_watch.scope(name, kind="request"):
            yield


def read_upload() -> list[str]:
    """Stand for a browser that uploads a file over a slow line."""
    time.sleep(1.02)
    return ["CH", "FR"]


def connection_held_mistake(shop: Shop) -> list[Decimal]:
    """Take the connection where the request begins; nobody else can have it during the upload."""
    with request("POST /rates"), shop.engine.connect() as connection:
        countries = read_upload()
        return list(connection.scalars(select(Rate.percent).where(Rate.country.in_(countries)).order_by(Rate.country)))


def connection_held_repair(shop: Shop) -> list[Decimal]:
    """Take the connection where it is needed."""
    with request("POST /rates"):
        countries = read_upload()
        with shop.engine.connect() as connection:
            rates = select(Rate.percent).where(Rate.country.in_(countries)).order_by(Rate.country)
            return list(connection.scalars(rates))


# nested-checkout: a helper has a session of its own, inside of the session of the one that calls it.


def nested_checkout_mistake(shop: Shop) -> str:
    """Show whose an order is; the helper opens a second session."""

    def name_of(customer: int) -> str:
        with Session(shop.engine) as own:
            return own.get_one(Customer, customer).name

    with request("GET /orders/9"), Session(shop.engine) as session:
        order = session.get_one(Order, 9)
        return f"order {order.id} of {name_of(order.customer_id)}"


def nested_checkout_repair(shop: Shop) -> str:
    """Hand the session on."""

    def name_of(session: Session, customer: int) -> str:
        return session.get_one(Customer, customer).name

    with request("GET /orders/9"), Session(shop.engine) as session:
        order = session.get_one(Order, 9)
        return f"order {order.id} of {name_of(session, order.customer_id)}"


# pool-timeout: a connection that is not given back is gone, and who comes after waits in vain.


def serve(handler: Callable[[], int]) -> int:
    """Handle a request as a server does, in a thread of its own."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(contextvars.copy_context().run, handler).result()


def pool_timeout_mistake(shop: Shop) -> list[int]:
    """Serve two requests, of which the first keeps its session; the second fails, until somebody restarts the shop."""
    engine = create_engine(shop.engine.url, pool_size=1, max_overflow=0, pool_timeout=0.2)
    kept = []

    def count_swiss() -> int:
        session = Session(engine)
        kept.append(session)
        return count_customers(session, "CH")

    with sqla_watch.install(engine):
        answers = [serve(count_swiss)]
        try:
            answers.append(serve(count_swiss))
        except TimeoutError:
            kept[0].close()  # the restart
            answers.append(serve(count_swiss))
        for session in kept:
            session.close()
    engine.dispose()
    return answers


def pool_timeout_repair(shop: Shop) -> list[int]:
    """Close each session where its request ends."""
    engine = create_engine(shop.engine.url, pool_size=1, max_overflow=0, pool_timeout=0.2)

    def count_swiss() -> int:
        with Session(engine) as session:
            return count_customers(session, "CH")

    with sqla_watch.install(engine):
        answers = [serve(count_swiss), serve(count_swiss)]
    engine.dispose()
    return answers


# pool-fanout: a task for each thing, however many there are, and each wants a connection.


async def parcels(shop: Shop, at_once: int) -> list[str]:
    """Track the parcels of eight orders, no more than that many at the same time."""
    from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

    assert shop.async_engine is not None
    # Not every release of SQLAlchemy would give aiosqlite this pool by itself.
    pool = {"poolclass": AsyncAdaptedQueuePool, "pool_size": 2, "max_overflow": 0}
    engine = create_async_engine(shop.async_engine.url, **pool)
    places = asyncio.Semaphore(at_once)

    async def track(number: int) -> str:
        async with places, AsyncSession(engine) as session:
            order = await session.get_one(Order, number)
            await asyncio.sleep(0.06)  # asks the carrier
            return f"parcel {number}: {order.status}"

    with sqla_watch.install(engine):
        tracked = await asyncio.gather(*(track(number) for number in range(1, 9)))
        await engine.dispose()
    return tracked


async def pool_fanout_mistake(shop: Shop) -> list[str]:
    """Start them all; the pool has two connections, and six tasks queue for them in front of everybody else."""
    return await parcels(shop, at_once=8)


async def pool_fanout_repair(shop: Shop) -> list[str]:
    """Start no more than the pool can serve."""
    return await parcels(shop, at_once=2)


# column-load-loop: a column that the query leaves out is fetched for one object after the other.


def column_load_loop_mistake(shop: Shop) -> int:
    """Count the customers without notes."""
    with Session(shop.engine) as session:
        customers = session.scalars(select(Customer).where(Customer.country == "CH").limit(50))
        return sum(not customer.notes for customer in customers)


def column_load_loop_repair(shop: Shop) -> int:
    """Load the deferred column with the query."""
    with Session(shop.engine) as session:
        query = select(Customer).where(Customer.country == "CH").limit(50).options(undefer(Customer.notes))
        return sum(not customer.notes for customer in session.scalars(query))


# select-star: all columns, whichever they are today.


def select_star_mistake(shop: Shop) -> list[str]:
    """Name the dearest products."""
    with Session(shop.engine) as session:
        products = session.execute(text("SELECT * FROM products ORDER BY price DESC LIMIT 3"))
        return [product.name for product in products]


def select_star_repair(shop: Shop) -> list[str]:
    """Ask for what is read."""
    with Session(shop.engine) as session:
        products = session.execute(text("SELECT name FROM products ORDER BY price DESC LIMIT 3"))
        return [product.name for product in products]


# deep-offset: the pages before are read to be thrown away.

PAGE = select(Item.id).order_by(Item.id).limit(20)


def deep_offset_mistake(shop: Shop) -> int:
    """Show the page behind the first 30,000 items."""
    with Session(shop.engine) as session:
        return session.scalars(PAGE.offset(30_000)).all()[-1]


def deep_offset_repair(shop: Shop) -> int:
    """Go on behind the last item of the page before."""
    last_seen = 30_000
    with Session(shop.engine) as session:
        return session.scalars(PAGE.where(Item.id > last_seen)).all()[-1]


# limit-without-order-by: which rows are on the second page?


def limit_without_order_by_mistake(shop: Shop) -> int:
    """Show the second page of the products."""
    with Session(shop.engine) as session:
        return len(session.scalars(select(Product).limit(10).offset(10)).all())


def limit_without_order_by_repair(shop: Shop) -> int:
    """Say in which order."""
    with Session(shop.engine) as session:
        return len(session.scalars(select(Product).order_by(Product.id).limit(10).offset(10)).all())


# large-in-list: the database is sent what it has just told.


def large_in_list_mistake(shop: Shop) -> int | None:
    """Count the items of the new orders."""
    with Session(shop.engine) as session:
        orders = session.scalars(select(Order.id).where(Order.status == "new")).all()
        return session.scalar(select(func.count(Item.id)).where(Item.order_id.in_(orders)))


def large_in_list_repair(shop: Shop) -> int | None:
    """Let the database join."""
    with Session(shop.engine) as session:
        return session.scalar(select(func.count(Item.id)).join(Item.order).where(Order.status == "new"))


# cartesian-join: two collections are joined, and multiply each other.


def cartesian_join_mistake(shop: Shop) -> dict[int, tuple[int, int]]:
    """Show a hundred orders with their items and all orders of their customers: 4 times 10 rows for each."""
    query = select(Order).options(joinedload(Order.items), joinedload(Order.customer).joinedload(Customer.orders))
    with Session(shop.engine) as session:
        orders = session.scalars(query.order_by(Order.id).limit(100)).unique().all()
        return {order.id: (len(order.items), len(order.customer.orders)) for order in orders}


def cartesian_join_repair(shop: Shop) -> dict[int, tuple[int, int]]:
    """Load each collection by a statement of its own."""
    query = select(Order).options(selectinload(Order.items), joinedload(Order.customer).selectinload(Customer.orders))
    with Session(shop.engine) as session:
        orders = session.scalars(query.order_by(Order.id).limit(100)).all()
        return {order.id: (len(order.items), len(order.customer.orders)) for order in orders}


# row-by-row-write: a list of new values, and a statement for each.

NEW_PRICES = [{"id": number, "price": Decimal(number)} for number in range(1, 101)]


def row_by_row_write_mistake(shop: Shop) -> Decimal | None:
    """Take over a price list, product by product."""
    with Session(shop.engine) as session:
        for new in NEW_PRICES:
            session.execute(update(Product).where(Product.id == new["id"]).values(price=new["price"]))
        session.commit()
        return session.scalar(select(func.sum(Product.price)))


def row_by_row_write_repair(shop: Shop) -> Decimal | None:
    """Send all of them at once."""
    with Session(shop.engine) as session:
        session.execute(update(Product), NEW_PRICES)
        session.commit()
        return session.scalar(select(func.sum(Product.price)))


def take_back_prices(shop: Shop) -> None:
    """Give the products the prices that they had."""
    with shop.engine.begin() as connection:
        connection.execute(update(Product).values(price=Product.id + Decimal("0.90")))


# flush-storm: each query flushes what was added before it.


def flush_storm_mistake(shop: Shop) -> list[str]:
    """Number a hundred new customers within their countries, counting for each how many there are."""
    names = []
    with Session(shop.engine) as session:
        for number in range(1_001, 1_101):
            country = COUNTRIES[number % 2]
            known = session.scalars(select(func.count()).where(Customer.country == country)).one()
            names.append(f"{country} {known + 1}")
            session.add(Customer(id=number, name=names[-1], country=country))
        session.commit()
    return names


def flush_storm_repair(shop: Shop) -> list[str]:
    """Count before the loop."""
    names = []
    with Session(shop.engine) as session:
        counts = select(Customer.country, func.count().label("known")).group_by(Customer.country)
        known = {row.country: row.known for row in session.execute(counts)}
        for number in range(1_001, 1_101):
            country = COUNTRIES[number % 2]
            known[country] += 1
            names.append(f"{country} {known[country]}")
            session.add(Customer(id=number, name=names[-1], country=country))
        session.commit()
    return names


def take_back_customers(shop: Shop) -> None:
    """Delete the new customers."""
    with shop.engine.begin() as connection:
        connection.execute(delete(Customer).where(Customer.id > 1_000))


# uncached-statement: a list of rows in values() makes a statement that no cache can keep.

NEW_CUSTOMERS = [
    {"id": number, "name": f"Customer {number}", "country": "CH", "notes": ""} for number in range(1_001, 2_001)
]


def uncached_statement_mistake(shop: Shop) -> int:
    """Import a thousand customers in chunks, each compiled into a statement of its own."""
    with Session(shop.engine) as session:
        for first in range(0, len(NEW_CUSTOMERS), 100):
            session.execute(insert(Customer).values(NEW_CUSTOMERS[first : first + 100]))
        session.commit()
        return count_customers(session, "CH")


def uncached_statement_repair(shop: Shop) -> int:
    """Give the rows beside the statement, which is then compiled once."""
    with Session(shop.engine) as session:
        for first in range(0, len(NEW_CUSTOMERS), 100):
            session.execute(insert(Customer), NEW_CUSTOMERS[first : first + 100])
        session.commit()
        return count_customers(session, "CH")


# session-scope: nobody says what becomes of a change.


def session_scope_mistake(shop: Shop) -> str:
    """Send an order, and forget the commit: the order stays as it was, and nobody hears of it."""
    with Session(shop.engine) as session:
        order = session.get_one(Order, 8)
        order.status = "sent"
        return f"order {order.id} was sent"


def session_scope_repair(shop: Shop) -> str:
    """Have the block commit."""
    with Session(shop.engine) as session, session.begin():
        order = session.get_one(Order, 8)
        order.status = "sent"
        return f"order {order.id} was sent"


def take_back_order(shop: Shop) -> None:
    """Give the order the status that it had."""
    with shop.engine.begin() as connection:
        connection.execute(update(Order).where(Order.id == 8).values(status="new"))


# async-lazy-load: where nothing can be awaited, nothing can load lazily.


async def async_lazy_load_mistake(shop: Shop) -> str:
    """Count the items of an order, which is an error at the first attempt."""
    from sqlalchemy.ext.asyncio import AsyncSession

    async with AsyncSession(shop.async_engine) as session:
        order = await session.get_one(Order, 1)
        try:
            return f"{len(order.items)} items"
        except MissingGreenlet:
            return await session.run_sync(lambda _: f"{len(order.items)} items")


async def async_lazy_load_repair(shop: Shop) -> str:
    """Load the items with the order."""
    from sqlalchemy.ext.asyncio import AsyncSession

    async with AsyncSession(shop.async_engine) as session:
        order = await session.get_one(Order, 1, options=[selectinload(Order.items)])
        return f"{len(order.items)} items"


# blocking-call: a coroutine that waits for the database in the event loop's own thread.


def turnover(shop: Shop, country: str) -> Decimal | None:
    """Add up what the customers of a country have bought."""
    query = select(func.sum(Product.price * Item.quantity)).join(Item.product).join(Item.order).join(Order.customer)
    with Session(shop.small_pool) as session:
        return session.scalar(query.where(Customer.country == country))


async def blocking_call_mistake(shop: Shop) -> Sequence[Decimal | None]:
    """Handle two requests as if at once; while the database answers one, the event loop stands still."""

    async def handle(country: str) -> Decimal | None:
        return turnover(shop, country)

    return await asyncio.gather(handle("CH"), handle("FR"))


async def blocking_call_repair(shop: Shop) -> Sequence[Decimal | None]:
    """Wait in a thread."""

    async def handle(country: str) -> Decimal | None:
        return await asyncio.to_thread(turnover, shop, country)

    return await asyncio.gather(handle("CH"), handle("FR"))


# large-identity-map: a session keeps every object that somebody still holds.


def large_identity_map_mistake(shop: Shop) -> Counter[str]:
    """Count all orders by status; they are read in pieces, and kept nevertheless."""
    orders: list[Order] = []
    with Session(shop.engine) as session:
        for first in range(1, 10_001, 1_000):
            orders += session.scalars(select(Order).where(Order.id >= first, Order.id < first + 1_000))
        return Counter(order.status for order in orders)


def large_identity_map_repair(shop: Shop) -> Counter[str]:
    """Keep what is needed of each piece."""
    statuses: Counter[str] = Counter()
    with Session(shop.engine) as session:
        for first in range(1, 10_001, 1_000):
            orders = session.scalars(select(Order).where(Order.id >= first, Order.id < first + 1_000))
            statuses.update(order.status for order in orders)
        return statuses


# unread-rows: everything is sorted and sent for the sake of the first.


def unread_rows_mistake(shop: Shop) -> int | None:
    """Find the latest new order."""
    with Session(shop.engine) as session:
        return session.scalars(select(Order.id).where(Order.status == "new").order_by(Order.id.desc())).first()


def unread_rows_repair(shop: Shop) -> int | None:
    """Ask for one."""
    with Session(shop.engine) as session:
        return session.scalars(select(Order.id).where(Order.status == "new").order_by(Order.id.desc()).limit(1)).first()


# engine-settings: an engine that throws away every compiled statement.


def poll(engine: Engine) -> list[str]:
    """Ask fifty times who has ordered last, as the browsers of those who wait do."""
    query = select(Order).options(joinedload(Order.customer)).order_by(Order.id.desc()).limit(1)
    names = []
    with sqla_watch.install(engine):
        for _ in range(50):
            with Session(engine) as session:
                names.append(session.scalars(query).one().customer.name)
    engine.dispose()
    return names


def engine_settings_mistake(shop: Shop) -> list[str]:
    """Save the memory of the cache for compiled statements."""
    return poll(create_engine(shop.engine.url, query_cache_size=0))


def engine_settings_repair(shop: Shop) -> list[str]:
    """Leave the cache as it is."""
    return poll(create_engine(shop.engine.url))


# unused-eager-load: a list whose template once showed the items, too.


def unused_eager_load_mistake(shop: Shop) -> list[str]:
    """List the status of a hundred orders."""
    query = select(Order).order_by(Order.id).limit(100)
    with Session(shop.engine) as session:
        return [order.status for order in session.scalars(query.options(selectinload(Order.items)))]


def unused_eager_load_repair(shop: Shop) -> list[str]:
    """Load what is shown."""
    query = select(Order).order_by(Order.id).limit(100)
    with Session(shop.engine) as session:
        return [order.status for order in session.scalars(query)]


# wide-rows: all columns of each object, and one of them is read.


def wide_rows_mistake(shop: Shop) -> int:
    """Add up the pieces of some thousand items."""
    with Session(shop.engine) as session:
        return sum(item.quantity for item in session.scalars(select(Item).where(Item.order_id <= 1_000)))


def wide_rows_repair(shop: Shop) -> int:
    """Ask for the one column."""
    with Session(shop.engine) as session:
        return sum(session.scalars(select(Item.quantity).where(Item.order_id <= 1_000)))


SCENARIOS = [
    Scenario("n-plus-one", "one level", n_plus_one_mistake, n_plus_one_repair),
    Scenario("n-plus-one", "three levels", nested_mistake, nested_repair, findings=3),
    Scenario("n-plus-one", "asyncio", async_mistake, async_repair, is_async=True),
    Scenario("query-in-loop", "session.get", query_in_loop_mistake, query_in_loop_repair),
    Scenario("repeated-query", "tax rate", repeated_query_mistake, repeated_query_repair),
    Scenario("oversized-result", "all items", oversized_result_mistake, oversized_result_repair),
    Scenario("slow-query", "prize", slow_query_mistake, slow_query_repair),
    Scenario(
        "idle-in-transaction",
        "payment",
        idle_in_transaction_mistake,
        idle_in_transaction_repair,
        undo=take_back_payment,
        note="the provider takes as long as before, but no lock and no connection is held meanwhile",
    ),
    Scenario(
        "long-transaction",
        "reminders",
        long_transaction_mistake,
        long_transaction_repair,
        rules={"long-transaction": {"min_seconds": 0.5}},  # four mails instead of hundreds
        undo=take_back_reminders,
        note="the mails take as long as before, but no order is locked for longer than its own statement",
    ),
    Scenario("pool-wait", "reports", pool_wait_mistake, pool_wait_repair),
    Scenario(
        "connection-held",
        "upload",
        connection_held_mistake,
        connection_held_repair,
        note="the upload takes as long as before, but others have the connection meanwhile",
    ),
    Scenario(
        "nested-checkout",
        "helper",
        nested_checkout_mistake,
        nested_checkout_repair,
        note="as many of these at once as the pool has connections, and each waits for the others until pool_timeout",
    ),
    Scenario(
        "pool-timeout",
        "forgotten session",
        pool_timeout_mistake,
        pool_timeout_repair,
        note="the mistake is an error page for everybody, after pool_timeout, which is 30 seconds elsewhere",
    ),
    Scenario(
        "pool-fanout",
        "parcels",
        pool_fanout_mistake,
        pool_fanout_repair,
        is_async=True,
        note="the parcels take as long as before, but other requests find a connection in between",
    ),
    Scenario("over-budget", "front page", over_budget_mistake, over_budget_repair),
    Scenario("column-load-loop", "notes", column_load_loop_mistake, column_load_loop_repair),
    Scenario("select-star", "products", select_star_mistake, select_star_repair),
    Scenario("deep-offset", "items", deep_offset_mistake, deep_offset_repair),
    Scenario("limit-without-order-by", "products", limit_without_order_by_mistake, limit_without_order_by_repair),
    Scenario("large-in-list", "new orders", large_in_list_mistake, large_in_list_repair),
    Scenario("cartesian-join", "orders and items", cartesian_join_mistake, cartesian_join_repair),
    Scenario(
        "row-by-row-write", "price list", row_by_row_write_mistake, row_by_row_write_repair, undo=take_back_prices
    ),
    Scenario("flush-storm", "new customers", flush_storm_mistake, flush_storm_repair, undo=take_back_customers),
    Scenario(
        "uncached-statement",
        "import",
        uncached_statement_mistake,
        uncached_statement_repair,
        undo=take_back_customers,
    ),
    Scenario(
        "session-scope",
        "forgotten commit",
        session_scope_mistake,
        session_scope_repair,
        undo=take_back_order,
        note="the mistake is quicker, and the order was never sent",
    ),
    Scenario(
        "async-lazy-load",
        "items",
        async_lazy_load_mistake,
        async_lazy_load_repair,
        is_async=True,
        not_on_sqlite="with aiosqlite SQLAlchemy wraps the error in another one",
        note="the mistake is an error page for the customer",
    ),
    Scenario(
        "blocking-call",
        "two requests",
        blocking_call_mistake,
        blocking_call_repair,
        note="the database takes as long as before, but the event loop serves others meanwhile",
    ),
    Scenario("large-identity-map", "all orders", large_identity_map_mistake, large_identity_map_repair),
    Scenario(
        "unread-rows",
        "latest order",
        unread_rows_mistake,
        unread_rows_repair,
        not_on_sqlite="results of SQLite are not followed",
    ),
    Scenario("engine-settings", "no cache", engine_settings_mistake, engine_settings_repair),
    Scenario(
        "unused-eager-load",
        "order list",
        unused_eager_load_mistake,
        unused_eager_load_repair,
        rules={"unused-eager-load": "warn"},
    ),
    Scenario(
        "wide-rows",
        "quantities",
        wide_rows_mistake,
        wide_rows_repair,
        rules={"wide-rows": {"action": "warn", "min_columns": 4}},  # the shop's tables are narrow
    ),
]
"""Every mistake with its repair."""
