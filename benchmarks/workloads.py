"""What `benchmarks.overhead` has its contestants do: each workload is a class, and a block of it is a few milliseconds.

The statements are those of an application: through SQLAlchemy's Core and ORM, of a pool, in a transaction. What is
counted is in `block` alone; engines, tables, rows and sessions that need not be new are made before.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

from sqlalchemy import Engine, ForeignKey, QueuePool, create_engine, func, insert, select, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine  # before anybody has patched it
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from benchmarks.contestants import Contestant

__all__ = ["SQLITE", "WORKLOADS", "Workload", "describe_workload", "driver_of", "fill"]

SQLITE = "sqlite://"
THREADS = 16
TASKS = 200


class Base(DeclarativeBase):
    pass


class Customer(Base):
    __tablename__ = "customers"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    customer_id: Mapped[int] = mapped_column(ForeignKey("customers.id"))
    kind: Mapped[str]
    customer: Mapped[Customer] = relationship()


class Number(Base):
    __tablename__ = "numbers"

    id: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[int]
    name: Mapped[str]


class Note(Base):
    """Nothing but what is inserted and rolled back."""

    __tablename__ = "notes"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


def fill(engine: Engine) -> None:
    """Create the tables anew: 100 customers, 100 orders, 10,000 numbers."""
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    rows: dict[type[Base], list[dict[str, Any]]] = {
        Customer: [{"id": number, "name": f"customer {number}"} for number in range(1, 101)],
        Order: [{"id": number, "customer_id": number, "kind": "ab"[number % 2]} for number in range(1, 101)],
        Number: [{"id": number, "value": number % 7, "name": f"number {number}"} for number in range(1, 10_001)],
    }
    with engine.begin() as connection:
        for table, values in rows.items():
            connection.execute(insert(table), values)


class Workload:
    """One kind of work of one contestant, ready to be done in blocks.

    Args:
        contestant: Who watches it.
        url: The database. SQLite is in memory, and filled here; a server's has been filled.
    """

    title: ClassVar[str]
    unit: ClassVar[str] = "statement"
    """What the figures are divided by."""
    units: ClassVar[int]
    """How many there are in a block."""
    turns: ClassVar[float] = 1.0
    """Share of the usual number of blocks; less where a block takes long."""
    pool_size: ClassVar[int] = 1

    def __init__(self, contestant: Contestant, url: str) -> None:
        self.contestant = contestant
        self.around = contestant.around
        self.engine = self.make_engine(url)
        if url == SQLITE:
            fill(self.engine)
        contestant.watch(self.engine)
        self.start()

    def make_engine(self, url: str) -> Engine:
        return create_engine(url, poolclass=QueuePool, pool_size=self.pool_size, max_overflow=0, pool_recycle=3600)

    def start(self) -> None:
        """Make what is there from block to block."""

    def block(self) -> None:
        """Do what is counted."""
        raise NotImplementedError

    def close(self) -> None:
        self.contestant.leave(self.engine)
        self.engine.dispose()


class CoreStatement(Workload):
    title = "Core statement in a scope"
    units = 200
    query = text("SELECT name FROM customers WHERE id = :number")

    def block(self) -> None:
        with self.around(), self.engine.connect() as connection:
            self.send(connection)

    def send(self, connection: Any) -> None:
        query = self.query
        for number in range(self.units):
            connection.execute(query, {"number": number % 100 + 1}).scalar_one()


class CoreStatementOutside(CoreStatement):
    title = "Core statement out of any scope"

    def block(self) -> None:
        with self.engine.connect() as connection:
            self.send(connection)


class SelectObjects(Workload):
    title = "ORM select of 100 objects"
    units = 20

    def block(self) -> None:
        with self.around(), Session(self.engine) as session:
            for _ in range(self.units):
                session.scalars(select(Order).order_by(Order.id)).all()  # let go of at once, so loaded anew


class LazyLoads(Workload):
    """The profile `development` finds them and tells; `production` does so from 50 ms in the database on."""

    title = "100 lazy loads"
    units = 101

    def block(self) -> None:
        with self.around(), Session(self.engine) as session:
            for order in session.scalars(select(Order)).all():
                assert order.customer.name


class InsertInOneFlush(Workload):
    title = "1,000 inserts in one flush"
    unit = "row"
    units = 1_000
    turns = 0.5

    def block(self) -> None:
        with self.around(), Session(self.engine) as session:
            session.add_all([Note(text=f"note {number}") for number in range(self.units)])
            session.flush()
            session.rollback()


class InsertOneByOne(Workload):
    title = "1,000 inserts one by one"
    units = 1_000
    turns = 0.25

    def block(self) -> None:
        with self.around(), Session(self.engine) as session:
            for number in range(self.units):
                session.add(Note(text=f"note {number}"))
                session.flush()
            session.rollback()


class FetchMany(Workload):
    title = "fetch of 10,000 rows"
    unit = "fetch"
    units = 1

    def block(self) -> None:
        with self.around(), self.engine.connect() as connection:
            rows = connection.execute(select(Number.id, Number.value, Number.name)).all()
            assert len(rows) == 10_000


class Transactions(Workload):
    title = "begin + statement + commit, in a scope"
    unit = "transaction"
    units = 100
    query = CoreStatement.query

    def block(self) -> None:
        with self.around():
            self.send()

    def send(self) -> None:
        engine, query = self.engine, self.query
        for number in range(self.units):
            with engine.begin() as connection:
                connection.execute(query, {"number": number % 100 + 1}).scalar_one()


class TransactionsOutside(Transactions):
    title = "begin + statement + commit, out of any scope"

    def block(self) -> None:
        self.send()


class EmptyScope(Workload):
    title = "empty scope"
    unit = "scope"
    units = 500

    def block(self) -> None:
        around = self.around
        for _ in range(self.units):
            with around():
                pass


class Requests(Workload):
    """A WSGI application that is called without a server, with one Session a request."""

    unit = "request"
    title = "request of 0 statements"
    units = 200
    rounds = 0

    def start(self) -> None:
        self.app = self.contestant.wsgi(self.application, self.engine)

    def application(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        number = int(environ["PATH_INFO"].rpartition("/")[2])
        with Session(self.engine) as session:
            for _ in range(self.rounds):
                answer_five(session, number)
                number = number % 100 + 1
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"done"]

    def block(self) -> None:
        app = self.app
        for number in range(self.units):
            environ = {
                "REQUEST_METHOD": "GET", "SCRIPT_NAME": "", "PATH_INFO": f"/orders/{number % 100 + 1}",
                "QUERY_STRING": "", "SERVER_NAME": "shop", "SERVER_PORT": "80", "SERVER_PROTOCOL": "HTTP/1.1",
                "REMOTE_ADDR": "127.0.0.1", "wsgi.url_scheme": "http",
            }  # fmt: skip
            body = app(environ, _start_response)
            for _ in body:
                pass
            close = getattr(body, "close", None)
            if close is not None:
                close()


class RequestsOfFive(Requests):
    title = "request of 5 statements"
    units = 10
    rounds = 1


class RequestsOfFifty(Requests):
    title = "request of 50 statements"
    units = 1
    rounds = 10


def _start_response(status: str, headers: list[tuple[str, str]], error: Any = None) -> None:
    assert status == "200 OK"


def answer_five(session: Session, number: int) -> int:
    """Send what a page of an order needs: five statements, 15 rows."""
    order = session.get_one(Order, number)
    customer = session.scalars(select(Customer).where(Customer.name == f"customer {number}")).one()
    alike = session.scalars(select(Order).where(Order.kind == order.kind).order_by(Order.id).limit(9)).all()
    total = session.scalar(select(func.count()).select_from(Order).where(Order.kind == order.kind))
    first = session.execute(select(Customer.id, Customer.name).order_by(Customer.id).limit(3)).all()
    return customer.id + len(alike) + (total or 0) + len(first)


class OneObject(Workload):
    """A workload of coroutines: they run in one event loop, which stays from block to block."""

    title = "AsyncSession: ORM select of one object"
    units = 25
    pool_size = 5

    def make_engine(self, url: str) -> Engine:
        self.runner = asyncio.Runner()
        self.async_engine = create_async_engine(url, pool_size=self.pool_size, max_overflow=0, pool_recycle=3600)
        return self.async_engine.sync_engine

    def block(self) -> None:
        self.runner.run(self.work())

    async def work(self) -> None:

        with self.around():
            async with AsyncSession(self.async_engine) as session:
                for number in range(self.units):
                    name = f"customer {number % 100 + 1}"
                    (await session.scalars(select(Customer).where(Customer.name == name))).one()

    def close(self) -> None:
        self.contestant.leave(self.engine)
        self.runner.run(self.async_engine.dispose())
        self.runner.close()


class AsyncRequests(OneObject):
    """A Starlette application that is called without a server, with one AsyncSession a request."""

    title = "AsyncSession: request of 5 statements"
    unit = "request"
    units = 5

    def start(self) -> None:
        from starlette.applications import Starlette
        from starlette.responses import PlainTextResponse
        from starlette.routing import Route

        async def order(request: Any) -> Any:
            number = int(request.path_params["number"])
            async with AsyncSession(self.async_engine) as session:
                await session.run_sync(answer_five, number)
            return PlainTextResponse("done")

        self.app = self.contestant.asgi(Starlette(routes=[Route("/orders/{number}", order)]), self.engine)

    async def work(self) -> None:
        for number in range(self.units):
            await self.request(number % 100 + 1)

    async def request(self, number: int) -> None:
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        path = f"/orders/{number}"
        await self.app(
            {
                "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1",
                "method": "GET", "scheme": "http", "path": path, "raw_path": path.encode(), "query_string": b"",
                "root_path": "", "headers": [(b"host", b"shop"), (b"accept", b"*/*")],
                "client": ("127.0.0.1", 5000), "server": ("127.0.0.1", 80),
            },
            receive,
            send,
        )  # fmt: skip
        assert sent[0]["status"] == 200, sent


class Tasks(OneObject):
    """Each task has a scope and a session of its own; most of them wait for a connection."""

    title = f"{TASKS} tasks on a pool of 20"
    units = TASKS
    turns = 0.5
    pool_size = 20

    async def work(self) -> None:
        await asyncio.gather(*(self.task(number) for number in range(self.units)))

    async def task(self, number: int) -> None:

        with self.around():
            async with AsyncSession(self.async_engine) as session:
                (await session.scalars(select(Customer).where(Customer.name == f"customer {number % 100 + 1}"))).one()


class Threads(Workload):
    """Each thread has a scope for what it does in a block, and takes a connection for each statement."""

    title = f"{THREADS} threads on a pool of {THREADS}"
    statements = 10
    units = THREADS * statements
    pool_size = THREADS

    def start(self) -> None:
        self.executor = ThreadPoolExecutor(THREADS)

    def block(self) -> None:
        list(self.executor.map(self.thread, range(THREADS)))

    def thread(self, place: int) -> None:
        with self.around():
            for number in range(self.statements):
                with self.engine.connect() as connection:
                    connection.execute(CoreStatement.query, {"number": (place + number) % 100 + 1}).scalar_one()

    def close(self) -> None:
        self.executor.shutdown()
        super().close()


ON_SQLITE: dict[str, type[Workload]] = {
    "core": CoreStatement,
    "core-outside": CoreStatementOutside,
    "objects": SelectObjects,
    "lazy": LazyLoads,
    "flush": InsertInOneFlush,
    "inserts": InsertOneByOne,
    "fetch": FetchMany,
    "transaction": Transactions,
    "transaction-outside": TransactionsOutside,
    "empty": EmptyScope,
    "request-0": Requests,
    "request-5": RequestsOfFive,
    "request-50": RequestsOfFifty,
}
WORKLOADS: dict[str, type[Workload]] = {
    **ON_SQLITE,
    # What has no statement needs no server.
    **{f"pg-{name}": kind for name, kind in ON_SQLITE.items() if name not in ("empty", "request-0")},
    "pg-threads": Threads,
    "asyncpg-object": OneObject,
    "asyncpg-request-5": AsyncRequests,
    "asyncpg-tasks": Tasks,
    "psycopg-async-object": OneObject,
    "psycopg-async-request-5": AsyncRequests,
}
"""By the name of the command line."""


def driver_of(name: str) -> str:
    """Return the driver of a workload; empty for SQLite."""
    if name in ON_SQLITE:
        return ""
    return "asyncpg" if name.startswith("asyncpg-") else "psycopg"


def describe_workload(name: str) -> str:
    """Return a workload's title with its database."""
    database = {"": "SQLite", "asyncpg": "PostgreSQL, asyncpg", "psycopg": "PostgreSQL, psycopg"}[driver_of(name)]
    return f"{WORKLOADS[name].title} ({database})"
