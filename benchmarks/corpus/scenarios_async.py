"""Coroutines: event loops that are blocked, attributes that cannot load, loops that await, and what resembles them."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator
from datetime import datetime
from decimal import Decimal

from sqlalchemy import func, insert, select, update
from sqlalchemy.exc import MissingGreenlet
from sqlalchemy.ext.asyncio import AsyncAttrs, AsyncConnection, AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, joinedload, relationship, selectinload, undefer

from benchmarks.corpus import Application, scenario
from benchmarks.corpus.models import (
    Account,
    Category,
    Customer,
    Entry,
    Event,
    Item,
    Order,
    Product,
    Thread,
    Ticket,
    Visit,
)


class AsyncBase(AsyncAttrs, DeclarativeBase):
    """The base of the classes whose attributes can be awaited."""


class Invoice(AsyncBase):
    """The table of `Order`, for coroutines."""

    __table__ = Order.__table__
    lines: Mapped[list[InvoiceLine]] = relationship(viewonly=True, order_by="InvoiceLine.id")


class InvoiceLine(AsyncBase):
    """The table of `Item`, for coroutines."""

    __table__ = Item.__table__


# -- An event loop that waits for the database ------------------------------------------------------------------------


@scenario()
async def endpoint_with_sync_session(app: Application) -> None:
    """An `async def` endpoint counts a month's events with the synchronous Session."""
    with Session(app.engine) as session:
        kinds = select(Event.kind, func.count(Event.id)).group_by(Event.kind)
        report = {row.kind: row[1] for row in session.execute(kinds)}  # finds: blocking-call
    assert report["buy"] == 4000


@scenario()
async def coroutine_calls_sync_repository(app: Application) -> None:
    """The query is deep in a plain repository function, which a coroutine calls as if it cost nothing."""

    def busiest_customers(limit: int) -> list[int]:
        with app.engine.connect() as connection:
            events = func.count(Event.id)
            query = select(Event.customer_id).group_by(Event.customer_id).order_by(events.desc()).limit(limit)
            return list(connection.scalars(query))  # finds: blocking-call

    async def dashboard() -> dict[str, list[int]]:
        await asyncio.sleep(0)
        return {"busiest": busiest_customers(3)}

    assert len((await dashboard())["busiest"]) == 3


@scenario(writes=True)
async def audit_log_written_by_sync_session(app: Application) -> None:
    """The orders come asynchronously, and the audit log beside them is still written by the old synchronous code."""
    async with AsyncSession(app.async_engine) as session:
        new_orders = await session.scalar(select(func.count(Order.id)).where(Order.status == "new"))
    with Session(app.engine) as audit:
        audit.add(Entry(name="orders counted", value=new_orders))
        audit.commit()  # finds: blocking-call


@scenario()
async def sync_query_in_a_task(app: Application) -> None:
    """A background task of the event loop warms a cache by the synchronous engine."""
    cache: dict[int, datetime] = {}

    async def warm_up() -> None:
        with app.engine.connect() as connection:
            query = select(Event.customer_id, func.max(Event.happened_at)).group_by(Event.customer_id)
            cache.update({row.customer_id: row[1] for row in connection.execute(query)})  # finds: blocking-call

    async with asyncio.TaskGroup() as group:
        group.create_task(warm_up())
    assert len(cache) == 40


@scenario(tempts="blocking-call")
async def sync_session_in_to_thread(app: Application) -> None:
    """The synchronous report runs in a thread of its own, as it has to."""

    def report() -> int:
        with Session(app.engine) as session:
            return session.scalar(select(func.count(Order.id)).where(Order.status == "paid")) or 0

    assert await asyncio.to_thread(report) == 50


@scenario(tempts="blocking-call")
async def sync_engine_in_executor(app: Application) -> None:
    """Like `to_thread`, as it was written before there was one."""

    def customers_of(country: str) -> int:
        with app.engine.connect() as connection:
            return connection.scalar(select(func.count(Customer.id)).where(Customer.country == country)) or 0

    context = contextvars.copy_context()
    german = await asyncio.get_running_loop().run_in_executor(None, context.run, customers_of, "DE")
    assert german == 8


@scenario(tempts="blocking-call")
def sync_engine_after_the_loop_has_ended(app: Application) -> None:
    """A script asks a service in an event loop, and uses the synchronous engine when that is over."""

    async def exchange_rate() -> Decimal:
        await asyncio.sleep(0.01)
        return Decimal("1.08")

    rate = asyncio.run(exchange_rate())
    with Session(app.engine) as session:
        total = session.scalar(select(func.sum(Order.total)).where(Order.status == "paid"))
    assert total * rate > 0


@scenario(tempts="blocking-call")
async def sync_session_under_run_sync(app: Application) -> None:
    """A plain function gets the Session of an AsyncSession, and awaits by way of a greenlet."""

    def open_orders(session: Session) -> list[tuple[int, str]]:
        query = select(Order).where(Order.status == "new").options(joinedload(Order.customer)).limit(10)
        return [(order.id, order.customer.name) for order in session.scalars(query)]

    async with AsyncSession(app.async_engine) as session:
        assert len(await session.run_sync(open_orders)) == 10


# -- Attributes that would have to load -------------------------------------------------------------------------------


@scenario()
async def relationship_touched_in_coroutine(app: Application) -> None:
    """The author of this endpoint did not expect that `order.customer` has to be loaded."""
    async with AsyncSession(app.async_engine) as session:
        order = await session.scalar(select(Order).where(Order.id == 17))
        assert order is not None
        try:
            recipient = order.customer.name  # finds: async-lazy-load
        except MissingGreenlet:
            recipient = "unknown"
    assert recipient == "unknown"


@scenario(writes=True)
async def expired_after_commit_in_coroutine(app: Application) -> None:
    """The commit expires the ticket, whose title then goes into the response."""
    async with AsyncSession(app.async_engine) as session:
        ticket = await session.get_one(Ticket, 12)
        ticket.status = "closed"
        await session.commit()
        try:
            message = f"{ticket.title} is closed"  # finds: async-lazy-load
        except MissingGreenlet:
            message = "done"
    assert message == "done"


@scenario()
async def deferred_column_touched_in_coroutine(app: Application) -> None:
    """The column `notes` is deferred, which nobody sees here."""
    async with AsyncSession(app.async_engine) as session:
        customer = await session.get_one(Customer, 3)
        try:
            card = {"name": customer.name, "notes": customer.notes}  # finds: async-lazy-load
        except MissingGreenlet:
            card = {"name": customer.name}
    assert "notes" not in card


@scenario()
async def property_that_loads_a_collection(app: Application) -> None:
    """A serializer reads the collection two levels down; the levels above it are loaded well."""

    def serialize(category: Category) -> dict[str, list[int]]:
        return {child.name: [product.id for product in child.products] for child in category.children}

    def safely(category: Category) -> dict[str, list[int]]:
        tree = {}
        for child in category.children:
            try:
                tree[child.name] = [product.id for product in child.products]  # finds: async-lazy-load
            except MissingGreenlet:
                tree[child.name] = []
        return tree

    async with AsyncSession(app.async_engine) as session:
        root = select(Category).where(Category.parent_id.is_(None))
        shallow = await session.scalar(root.options(selectinload(Category.children)))
        assert shallow is not None
        assert safely(shallow) == {"Category 2": [], "Category 3": []}
        whole = root.options(selectinload(Category.children).selectinload(Category.products))
        deep = await session.scalar(whole.execution_options(populate_existing=True))
        assert deep is not None
        assert len(serialize(deep)["Category 2"]) == 4


@scenario(tempts="async-lazy-load, n-plus-one")
async def eager_loading_in_coroutine(app: Application) -> None:
    """All that the response needs comes with two options: one to-one by a join, one to-many by a second query."""
    async with AsyncSession(app.async_engine) as session:
        query = select(Order).options(joinedload(Order.customer), selectinload(Order.items)).limit(20)
        orders = (await session.scalars(query)).all()
    response = [{"customer": order.customer.name, "items": len(order.items)} for order in orders]
    assert len(response) == 20


@scenario(tempts="async-lazy-load", writes=True)
async def kept_after_commit_in_coroutine(app: Application) -> None:
    """The factory says expire_on_commit=False, so that the ticket can be read after the commit."""
    factory = async_sessionmaker(app.async_engine, expire_on_commit=False)
    async with factory() as session:
        ticket = await session.get_one(Ticket, 12)
        ticket.status = "closed"
        await session.commit()
        message = f"{ticket.title} is {ticket.status}"
    assert message == "Ticket 12 is closed"


@scenario(tempts="async-lazy-load, column-load-loop", writes=True)
async def server_default_after_flush(app: Application) -> None:
    """The INSERT returns the key and the time that the server made."""
    async with AsyncSession(app.async_engine, expire_on_commit=False) as session:
        entry = Entry(name="made in a coroutine")
        session.add(entry)
        await session.commit()
        assert entry.created_at.year >= 2024
        assert entry.id is not None


@scenario(tempts="async-lazy-load, n-plus-one")
async def many_to_one_is_already_there(app: Application) -> None:
    """The few customers are loaded first, so that `order.customer` needs no query."""
    async with AsyncSession(app.async_engine) as session:
        customers = (await session.scalars(select(Customer).where(Customer.country == "DE"))).all()
        ids = [customer.id for customer in customers]
        orders = await session.scalars(select(Order).where(Order.customer_id.in_(ids)))
        names = {order.id: order.customer.name for order in orders}
    assert len(names) == 40


@scenario(tempts="async-lazy-load", writes=True)
async def reference_set_without_loading(app: Application) -> None:
    """To set `order.customer` does not load the customer it had before, nor the orders of the new one."""
    async with AsyncSession(app.async_engine) as session, session.begin():
        order = await session.get_one(Order, 20)
        order.customer = await session.get_one(Customer, 5)
        order.status = "paid"


@scenario(tempts="async-lazy-load, column-load-loop, n-plus-one")
async def refresh_with_attribute_names(app: Application) -> None:
    """One order's collection is fetched explicitly before it is read."""
    async with AsyncSession(app.async_engine) as session:
        order = await session.get_one(Order, 9)
        await session.refresh(order, attribute_names=["items"])
        assert sum(item.quantity for item in order.items) == 2


@scenario(tempts="async-lazy-load")
async def undeferred_in_coroutine(app: Application) -> None:
    """The deferred column is asked for in the query."""
    async with AsyncSession(app.async_engine) as session:
        customer = await session.get_one(Customer, 3, options=[undefer(Customer.notes)])
    assert customer.notes == "notes 3"


# -- Loops that await -------------------------------------------------------------------------------------------------


@scenario()
async def lazy_loads_under_run_sync(app: Application) -> None:
    """`run_sync` makes lazy loading possible in a coroutine, and its N+1 with it."""

    def shipping_labels(session: Session) -> list[str]:
        orders = session.scalars(select(Order).where(Order.status == "paid").order_by(Order.id).limit(12)).all()
        return [f"{order.id}: {order.customer.name}" for order in orders]  # finds: n-plus-one

    async with AsyncSession(app.async_engine) as session:
        assert len(await session.run_sync(shipping_labels)) == 12


@scenario()
async def awaitable_attribute_per_invoice(app: Application) -> None:
    """Every invoice awaits its own lines."""
    async with AsyncSession(app.async_engine) as session:
        invoices = (await session.scalars(select(Invoice).order_by(Invoice.id).limit(15))).all()
        quantities = {}
        for invoice in invoices:
            lines = await invoice.awaitable_attrs.lines  # finds: n-plus-one
            quantities[invoice.id] = sum(line.quantity for line in lines)
    assert set(quantities.values()) == {2}


@scenario()
async def lambda_under_run_sync_per_customer(app: Application) -> None:
    """A class without AsyncAttrs is helped along by `run_sync` with a lambda, for each customer."""
    async with AsyncSession(app.async_engine) as session:
        customers = (await session.scalars(select(Customer).where(Customer.country == "AT"))).all()
        cities: set[str] = set()
        for customer in customers:
            addresses = await session.run_sync(lambda _, owner: owner.addresses, customer)  # finds: n-plus-one
            cities.update(address.city for address in addresses)
    assert len(cities) == 64


@scenario()
async def get_in_awaiting_loop(app: Application) -> None:
    """A basket's products are fetched one after the other."""
    basket = [3, 7, 11, 19, 23, 42]
    async with AsyncSession(app.async_engine) as session:
        total = Decimal(0)
        for product_id in basket:
            product = await session.get_one(Product, product_id)  # finds: query-in-loop
            total += product.price
    assert total == sum(basket)


@scenario()
async def helper_with_session_of_its_own(app: Application) -> None:
    """A service function opens a session for its one query, and a loop awaits it for every customer."""
    factory = async_sessionmaker(app.async_engine)

    async def number_of_visits(customer_id: int) -> int:
        async with factory() as session:
            query = select(func.count(Visit.id)).where(Visit.customer_id == customer_id)
            return await session.scalar(query) or 0  # finds: query-in-loop

    visits = {}
    for customer_id in (1, 2, 3, 5, 8, 13, 21):
        visits[customer_id] = await number_of_visits(customer_id)
    assert set(visits.values()) == {10}


@scenario()
async def core_connection_in_awaiting_loop(app: Application) -> None:
    """Names are looked up one by one on an AsyncConnection."""

    async def category_name(connection: AsyncConnection, category_id: int) -> str | None:
        return await connection.scalar(select(Category.name).where(Category.id == category_id))  # finds: query-in-loop

    async with app.async_engine.connect() as connection:
        path = [await category_name(connection, category_id) for category_id in (15, 7, 3, 1, 2, 4)]
    assert path[0] == "Category 15"


@scenario(writes=True)
async def refresh_of_every_ticket(app: Application) -> None:
    """After a bulk UPDATE every ticket is refreshed by itself."""
    async with AsyncSession(app.async_engine) as session:
        tickets = (await session.scalars(select(Ticket).where(Ticket.id <= 8))).all()
        close = update(Ticket).where(Ticket.id <= 8).values(status="closed")
        await session.execute(close, execution_options={"synchronize_session": False})
        for ticket in tickets:
            await session.refresh(ticket)  # finds: column-load-loop
        assert {ticket.status for ticket in tickets} == {"closed"}
        await session.commit()


@scenario(writes=True)
async def insert_awaited_per_row(app: Application) -> None:
    """An import awaits one INSERT for every line of a file."""
    lines = [f"line {number}" for number in range(25)]
    async with app.async_engine.begin() as connection:
        for number, line in enumerate(lines):
            await connection.execute(insert(Entry).values(name=line, value=number))  # finds: row-by-row-write


@scenario(tempts="query-in-loop, session-scope")
async def gather_with_a_session_each(app: Application) -> None:
    """Eight counts run at the same time, each in a session of its own."""
    factory = async_sessionmaker(app.async_engine)

    async def number_of_orders(customer_id: int) -> int:
        async with factory() as session:
            pause = select(func.pg_sleep(0.05)).scalar_subquery()
            count = select(func.count(Order.id), pause).where(Order.customer_id == customer_id)
            return (await session.execute(count)).one()[0]

    counts = await asyncio.gather(*(number_of_orders(customer_id) for customer_id in range(1, 9)))
    assert counts == [5] * 8


@scenario(tempts="query-in-loop, session-scope", writes=True)
async def task_group_with_a_session_per_task(app: Application) -> None:
    """Three tasks of a group each use a session of their own: two read, one writes."""
    factory = async_sessionmaker(app.async_engine)
    report: dict[str, int] = {}

    async def count(name: str, status: str) -> None:
        async with factory() as session:
            report[name] = await session.scalar(select(func.count(Order.id)).where(Order.status == status)) or 0

    async def note() -> None:
        async with factory.begin() as session:
            session.add(Entry(name="report made"))

    async with asyncio.TaskGroup() as group:
        group.create_task(count("unpaid", "new"))
        group.create_task(count("underway", "sent"))
        group.create_task(note())
    assert report == {"unpaid": 50, "underway": 50}


@scenario(tempts="query-in-loop, pool-wait")
async def bounded_concurrency(app: Application) -> None:
    """A semaphore lets four look-ups run at a time, which is fewer than the pool has connections."""
    free_places = asyncio.Semaphore(4)

    async def city_count(customer_id: int) -> int:
        async with free_places, app.async_engine.connect() as connection:
            pause = select(func.pg_sleep(0.04)).scalar_subquery()
            return (await connection.execute(select(Customer.id, pause).where(Customer.id == customer_id))).one()[0]

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(city_count(customer_id)) for customer_id in range(1, 13)]
    assert len({task.result() for task in tasks}) == 12


@scenario(tempts="query-in-loop, repeated-query")
async def async_generator_walks_by_key(app: Application) -> None:
    """An async generator yields tickets, fetched 500 at a time after the last key."""

    async def tickets(session: AsyncSession) -> AsyncIterator[int]:
        last = 0
        while True:
            query = select(Ticket.id).where(Ticket.id > last).order_by(Ticket.id).limit(500)
            page = (await session.scalars(query)).all()
            if not page:
                return
            for ticket_id in page:
                yield ticket_id
            last = page[-1]

    async with AsyncSession(app.async_engine) as session:
        assert len([ticket_id async for ticket_id in tickets(session)]) == 3000


@scenario(tempts="query-in-loop, large-in-list")
async def chunks_of_keys_awaited(app: Application) -> None:
    """Six hundred accounts are fetched in six statements of a hundred keys."""
    wanted = list(range(1, 1201, 2))
    balances: dict[int, int] = {}
    async with app.async_engine.connect() as connection:
        for start in range(0, len(wanted), 100):
            query = select(Account.id, Account.balance).where(Account.id.in_(wanted[start : start + 100]))
            balances.update({row.id: row.balance for row in await connection.execute(query)})
    assert len(balances) == 600


@scenario(tempts="n-plus-one")
async def awaitable_attribute_of_one_invoice(app: Application) -> None:
    """A page about one invoice awaits its lines, twice."""
    async with AsyncSession(app.async_engine) as session:
        invoice = await session.get_one(Invoice, 30)
        lines = await invoice.awaitable_attrs.lines
        assert lines == await invoice.awaitable_attrs.lines


@scenario(tempts="n-plus-one, query-in-loop")
async def awaitable_attribute_after_selectin(app: Application) -> None:
    """The lines have been loaded with the invoices; to await them costs nothing."""
    async with AsyncSession(app.async_engine) as session:
        query = select(Invoice).order_by(Invoice.id).limit(15).options(selectinload(Invoice.lines))
        invoices = (await session.scalars(query)).all()
        assert sum([len(await invoice.awaitable_attrs.lines) for invoice in invoices]) == 30


@scenario(tempts="repeated-query, query-in-loop")
async def polls_until_done(app: Application) -> None:
    """A coroutine looks every few milliseconds, each time in a new session, whether a ticket has been closed."""
    for _ in range(6):
        async with AsyncSession(app.async_engine) as session:
            if await session.scalar(select(Ticket.status).where(Ticket.id == 5)) == "closed":
                break
        await asyncio.sleep(0.01)


# -- Many rows, long waits --------------------------------------------------------------------------------------------


@scenario()
async def all_events_at_once(app: Application) -> None:
    """An export awaits the whole table."""
    async with app.async_engine.connect() as connection:
        rows = (await connection.execute(select(Event.id, Event.kind))).all()  # finds: oversized-result
    assert len(rows) == 12000


@scenario()
async def heavy_statement_awaited(app: Application) -> None:
    """The statement takes long; the event loop goes on meanwhile."""
    async with AsyncSession(app.async_engine) as session:
        slow = select(func.count(Order.id), select(func.pg_sleep(0.6)).scalar_subquery())
        row = (await session.execute(slow)).one()  # finds: slow-query
    assert row[0] == 200


@scenario(tempts="oversized-result, unread-rows")
async def events_streamed(app: Application) -> None:
    """The same export, streamed by a server-side cursor."""
    exported = 0
    async with app.async_engine.connect() as connection:
        result = await connection.stream(select(Event.id, Event.kind))
        async for _event_id, _kind in result:
            exported += 1
    assert exported == 12000


@scenario(tempts="oversized-result, large-identity-map")
async def scalars_streamed_in_partitions(app: Application) -> None:
    """Events are streamed as objects, a thousand at a time, none of which is kept."""
    bought = 0
    async with AsyncSession(app.async_engine) as session:
        events = await session.stream_scalars(select(Event).execution_options(yield_per=1000))
        async for partition in events.partitions():
            bought += sum(event.kind == "buy" for event in partition)
    assert bought == 4000


@scenario(tempts="unread-rows, oversized-result")
async def stream_left_early(app: Application) -> None:
    """A stream is left when the first match has been seen; the server never sent the rest."""
    query = select(Event.id, Event.kind).order_by(Event.id)
    first_sale = 0
    async with app.async_engine.connect() as connection, connection.stream(query) as result:
        async for row in result:
            if row.kind == "buy":
                first_sale = row.id
                break
    assert first_sale == 2


@scenario(tempts="database-error, slow-query")
async def cancelled_by_its_own_timeout(app: Application) -> None:
    """The endpoint gives up on a statement after 50 ms, and answers without it."""
    try:
        async with asyncio.timeout(0.05), AsyncSession(app.async_engine) as session:
            total = await session.scalar(select(func.count(Order.id), select(func.pg_sleep(0.4)).scalar_subquery()))
    except TimeoutError:
        total = None
    assert total is None


@scenario(tempts="long-transaction, slow-query")
async def slow_service_before_the_first_statement(app: Application) -> None:
    """A slow service is awaited in a session that has not begun anything yet."""
    async with AsyncSession(app.async_engine) as session:
        await asyncio.sleep(1.1)
        assert await session.scalar(select(func.count(Thread.id))) == 60


@scenario()
async def slow_service_inside_of_a_transaction(app: Application) -> None:
    """A slow service is awaited between two statements of one transaction."""
    async with AsyncSession(app.async_engine) as session:
        order = await session.get_one(Order, 4)  # finds: idle-in-transaction
        await asyncio.sleep(1.1)
        query = select(Customer.name).where(Customer.id == order.customer_id)
        name = await session.scalar(query)
    assert name == "Customer 5"


# -- Sessions of coroutines -------------------------------------------------------------------------------------------


@scenario()
async def async_session_closed_unsaved(app: Application) -> None:
    """The new entry is added, and the commit forgotten."""
    async with AsyncSession(app.async_engine) as session:  # finds: session-scope
        known = await session.scalar(select(func.count(Entry.id)))
        session.add(Entry(name="lost", value=known))


@scenario()
async def async_deletion_not_committed(app: Application) -> None:
    """A thread is deleted and flushed, but the session is closed without a commit."""
    session = AsyncSession(app.async_engine)
    thread = await session.get_one(Thread, 7, options=[selectinload(Thread.posts)])
    await session.delete(thread)
    await session.flush()
    await session.close()  # finds: session-scope


@scenario()
async def gather_over_one_session(app: Application) -> None:
    """Three counts are gathered, all over the session that has loaded the customer."""
    async with AsyncSession(app.async_engine) as session:
        customer = await session.get_one(Customer, 1)

        async def count(status: str) -> int:
            pause = select(func.pg_sleep(0.05)).scalar_subquery()
            query = select(func.count(Order.id), pause).where(Order.status == status)
            return (await session.execute(query)).one()[0]  # finds: session-scope

        counts = await asyncio.gather(count("new"), count("paid"), count("sent"))
    assert counts == [50, 50, 50]
    assert customer.name == "Customer 1"


@scenario()
async def session_methods_gathered(app: Application) -> None:
    """The coroutines of one session are given to `gather` as they are."""
    pause = select(func.pg_sleep(0.05)).scalar_subquery()
    orders, visits = select(func.count(Order.id), pause), select(func.count(Visit.id), pause)
    async with AsyncSession(app.async_engine) as session:
        await session.get_one(Customer, 1)
        results = await asyncio.gather(session.execute(orders), session.execute(visits))  # finds: session-scope
    assert [result.one()[0] for result in results] == [200, 400]


@scenario()
async def prefetch_task_shares_the_session(app: Application) -> None:
    """A prefetching task still runs on the session when the endpoint's own statement comes."""
    async with AsyncSession(app.async_engine) as session:
        await session.connection()

        async def prefetch() -> int:
            query = select(func.count(Product.id), select(func.pg_sleep(0.15)).scalar_subquery())
            return (await session.execute(query)).one()[0]

        task = asyncio.create_task(prefetch())
        await asyncio.sleep(0.05)
        name = await session.scalar(select(Customer.name).where(Customer.id == 9))  # finds: session-scope
        assert (name, await task) == ("Customer 9", 50)


@scenario(tempts="session-scope")
async def session_handed_to_a_task(app: Application) -> None:
    """One session goes through several tasks, each of which is awaited before the next statement."""
    async with AsyncSession(app.async_engine) as session:
        customer = await asyncio.create_task(session.get_one(Customer, 2))

        async def orders_of(customer_id: int) -> int:
            return await session.scalar(select(func.count(Order.id)).where(Order.customer_id == customer_id)) or 0

        assert await asyncio.create_task(orders_of(customer.id)) == 5
        assert await asyncio.wait_for(orders_of(3), timeout=5) == 5


@scenario(tempts="session-scope")
async def async_failure_with_pending_changes(app: Application) -> None:
    """A validation error leaves the session with a pending entry in it: that is what closing is for."""

    async def create(name: str) -> None:
        async with AsyncSession(app.async_engine) as session:
            session.add(Entry(name=name))
            await session.flush()
            if not name.isidentifier():
                raise ValueError(name)
            await session.commit()

    try:
        await create("no identifier")
        created = True
    except ValueError:
        created = False
    assert not created


@scenario(own_requests=True)
async def async_session_kept_for_the_next_request(app: Application) -> None:
    """The application keeps one AsyncSession in its state, and never ends its transaction."""
    session = AsyncSession(app.async_engine)
    with app.request("GET /customers"):
        customers = (await session.scalars(select(Customer).order_by(Customer.id).limit(5))).all()
    with app.request("GET /orders"):
        orders = await session.scalar(select(func.count(Order.id)))  # finds: session-scope
    assert (len(customers), orders) == (5, 200)
    await session.close()


@scenario(tempts="session-scope", own_requests=True)
async def concurrent_requests_with_a_session_each(app: Application) -> None:
    """Two requests are served at the same time, each with its own session."""
    factory = async_sessionmaker(app.async_engine)

    async def serve(path: str, customer_id: int) -> str:
        with app.request(f"GET {path}"):
            async with factory() as session:
                await session.execute(select(func.pg_sleep(0.05)))
                return (await session.get_one(Customer, customer_id)).name

    assert await asyncio.gather(serve("/a", 1), serve("/b", 2)) == ["Customer 1", "Customer 2"]


@scenario()
async def waits_for_the_only_connection(app: Application) -> None:
    """Two tasks share a pool of one connection, so that one of them waits."""
    engine = app.make_async_engine(pool_size=1, max_overflow=0)

    async def count(kind: str) -> int:
        async with AsyncSession(engine) as session:
            pause = select(func.pg_sleep(0.25)).scalar_subquery()
            query = select(func.count(Event.id), pause).where(Event.kind == kind)
            return (await session.execute(query)).one()[0]  # finds: pool-wait

    assert await asyncio.gather(count("view"), count("click")) == [4000, 4000]
    await engine.dispose()
