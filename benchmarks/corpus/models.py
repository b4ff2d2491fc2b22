"""The tables that the scenarios run on, and their rows."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import (
    Column,
    Engine,
    ForeignKey,
    ForeignKeyConstraint,
    Integer,
    Numeric,
    String,
    Table,
    Text,
    UniqueConstraint,
    func,
    select,
    text,
)
from sqlalchemy.ext.associationproxy import AssociationProxy, association_proxy
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import (
    DeclarativeBase,
    DynamicMapped,
    Mapped,
    WriteOnlyMapped,
    column_property,
    deferred,
    mapped_column,
    relationship,
)


class Base(DeclarativeBase):
    pass


customer_tags = Table(
    "customer_tags",
    Base.metadata,
    Column("customer_id", ForeignKey("customers.id"), primary_key=True),
    Column("tag_id", ForeignKey("tags.id"), primary_key=True),
)


class Tag(Base):
    """20 rows."""

    __tablename__ = "tags"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(40))
    customers: Mapped[list[Customer]] = relationship(secondary=customer_tags, back_populates="tags")


class Customer(Base):
    """40 rows; each has 5 orders, 8 addresses, 3 tags, 1 profile, 10 visits, 10 messages."""

    __tablename__ = "customers"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(100))
    country: Mapped[str] = mapped_column(String(2))
    email: Mapped[str] = mapped_column(String(200), unique=True)
    notes: Mapped[str] = deferred(mapped_column(Text))
    orders: Mapped[list[Order]] = relationship(back_populates="customer", order_by="Order.id")
    addresses: Mapped[list[Address]] = relationship(back_populates="customer", order_by="Address.id")
    profile: Mapped[Profile] = relationship(back_populates="customer", uselist=False)
    tags: Mapped[list[Tag]] = relationship(secondary=customer_tags, back_populates="customers", order_by=Tag.id)
    tag_names: AssociationProxy[list[str]] = association_proxy("tags", "name")
    visits: WriteOnlyMapped[Visit] = relationship()
    messages: DynamicMapped[Message] = relationship(lazy="dynamic")
    open_orders: Mapped[list[Order]] = relationship(
        primaryjoin="and_(Customer.id == Order.customer_id, Order.status == 'new')", viewonly=True
    )

    @hybrid_property
    def is_domestic(self) -> bool:
        return self.country == "DE"

    @property
    def order_total(self) -> Decimal:
        """Loads the orders where they are not there."""
        return sum((order.total for order in self.orders), Decimal(0))


class Profile(Base):
    """40 rows, one for each customer."""

    __tablename__ = "profiles"
    id: Mapped[int] = mapped_column(primary_key=True)
    customer_id: Mapped[int] = mapped_column(ForeignKey(Customer.id), unique=True)
    bio: Mapped[str]
    customer: Mapped[Customer] = relationship(back_populates="profile")


class Address(Base):
    """320 rows."""

    __tablename__ = "addresses"
    id: Mapped[int] = mapped_column(primary_key=True)
    customer_id: Mapped[int] = mapped_column(ForeignKey(Customer.id), index=True)
    city: Mapped[str]
    customer: Mapped[Customer] = relationship(back_populates="addresses")


class Visit(Base):
    """400 rows."""

    __tablename__ = "visits"
    id: Mapped[int] = mapped_column(primary_key=True)
    customer_id: Mapped[int] = mapped_column(ForeignKey(Customer.id), index=True)
    page: Mapped[str]


class Message(Base):
    """400 rows."""

    __tablename__ = "messages"
    id: Mapped[int] = mapped_column(primary_key=True)
    customer_id: Mapped[int] = mapped_column(ForeignKey(Customer.id), index=True)
    body: Mapped[str]


class Order(Base):
    """200 rows; each has 2 items, and no payments."""

    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    customer_id: Mapped[int] = mapped_column(ForeignKey(Customer.id), index=True)
    status: Mapped[str] = mapped_column(String(20))
    placed_at: Mapped[datetime]
    total: Mapped[Decimal] = mapped_column(Numeric(10, 2))
    customer: Mapped[Customer] = relationship(back_populates="orders")
    items: Mapped[list[Item]] = relationship(back_populates="order", order_by="Item.id")
    payments: Mapped[list[Payment]] = relationship()


class Payment(Base):
    """No rows."""

    __tablename__ = "payments"
    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int] = mapped_column(ForeignKey(Order.id), index=True)
    amount: Mapped[Decimal] = mapped_column(Numeric(10, 2))


class Category(Base):
    """15 rows: one root, 2 below it, 4 below those, 8 below those."""

    __tablename__ = "categories"
    id: Mapped[int] = mapped_column(primary_key=True)
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("categories.id"), index=True)
    name: Mapped[str]
    parent: Mapped[Category | None] = relationship(back_populates="children", remote_side="Category.id")
    children: Mapped[list[Category]] = relationship(back_populates="parent", order_by="Category.id")
    products: Mapped[list[Product]] = relationship(back_populates="category")


class Product(Base):
    """50 rows."""

    __tablename__ = "products"
    id: Mapped[int] = mapped_column(primary_key=True)
    category_id: Mapped[int] = mapped_column(ForeignKey(Category.id))
    name: Mapped[str]
    price: Mapped[Decimal] = mapped_column(Numeric(10, 2))
    category: Mapped[Category] = relationship(back_populates="products")


class Item(Base):
    """400 rows."""

    __tablename__ = "items"
    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int] = mapped_column(ForeignKey(Order.id), index=True)
    product_id: Mapped[int] = mapped_column(ForeignKey(Product.id))
    quantity: Mapped[int]
    order: Mapped[Order] = relationship(back_populates="items")
    product: Mapped[Product] = relationship()


# A scalar subquery that comes with every customer-like row is a column_property, and costs no statement of its own.
class CustomerSummary(Base):
    """The table of `Customer`, seen with the number of its orders."""

    __table__ = Customer.__table__
    __mapper_args__ = {"include_properties": ["id", "name"]}
    order_count: Mapped[int] = column_property(
        select(func.count(Order.id)).where(Order.customer_id == Customer.id).correlate_except(Order).scalar_subquery()
    )


class Employee(Base):
    """Joined-table inheritance: 30 employees, of whom 10 are managers and 10 engineers."""

    __tablename__ = "employees"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(20))
    name: Mapped[str]
    manager_id: Mapped[int | None] = mapped_column(ForeignKey("managers.id", name="employees_manager", use_alter=True))
    boss: Mapped[Manager | None] = relationship(back_populates="reports", foreign_keys=manager_id)
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "employee"}


class Manager(Employee):
    __tablename__ = "managers"
    id: Mapped[int] = mapped_column(ForeignKey(Employee.id), primary_key=True)
    bonus: Mapped[int]
    reports: Mapped[list[Employee]] = relationship(back_populates="boss", foreign_keys=Employee.manager_id)
    __mapper_args__ = {"polymorphic_identity": "manager", "inherit_condition": id == Employee.id}


class Engineer(Employee):
    __tablename__ = "engineers"
    id: Mapped[int] = mapped_column(ForeignKey(Employee.id), primary_key=True)
    language: Mapped[str]
    __mapper_args__ = {"polymorphic_identity": "engineer"}


class Vehicle(Base):
    """Single-table inheritance: 20 cars and 20 trucks."""

    __tablename__ = "vehicles"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(20))
    name: Mapped[str]
    owner_id: Mapped[int] = mapped_column(ForeignKey(Customer.id))
    owner: Mapped[Customer] = relationship()
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "vehicle"}


class Car(Vehicle):
    doors: Mapped[int | None]
    __mapper_args__ = {"polymorphic_identity": "car"}


class Truck(Vehicle):
    load: Mapped[int | None]
    __mapper_args__ = {"polymorphic_identity": "truck"}


class Membership(Base):
    """A composite key: 40 customers in 3 clubs each, 120 rows."""

    __tablename__ = "memberships"
    customer_id: Mapped[int] = mapped_column(ForeignKey(Customer.id), primary_key=True)
    club: Mapped[str] = mapped_column(String(20), primary_key=True)
    points: Mapped[int]
    fees: Mapped[list[Fee]] = relationship(back_populates="membership")


class Fee(Base):
    """240 rows; refers to a composite key."""

    __tablename__ = "fees"
    id: Mapped[int] = mapped_column(primary_key=True)
    customer_id: Mapped[int]
    club: Mapped[str] = mapped_column(String(20))
    amount: Mapped[int]
    membership: Mapped[Membership] = relationship(back_populates="fees")
    __table_args__ = (ForeignKeyConstraint(["customer_id", "club"], [Membership.customer_id, Membership.club]),)


class Article(Base):
    """A wide table: 300 rows of 14 columns, one of them long."""

    __tablename__ = "articles"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    slug: Mapped[str]
    summary: Mapped[str]
    body: Mapped[str] = mapped_column(Text)
    author: Mapped[str]
    editor: Mapped[str]
    language: Mapped[str]
    layout: Mapped[str]
    licence: Mapped[str]
    source: Mapped[str]
    status: Mapped[str]
    views: Mapped[int]
    published_at: Mapped[datetime]


class Event(Base):
    """A long table: 12,000 rows."""

    __tablename__ = "events"
    id: Mapped[int] = mapped_column(primary_key=True)
    customer_id: Mapped[int] = mapped_column(index=True)
    kind: Mapped[str] = mapped_column(String(20))
    happened_at: Mapped[datetime]


class Entry(Base):
    """Empty: something to write to. The server gives keys and times."""

    __tablename__ = "entries"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    value: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    __table_args__ = (UniqueConstraint("name"),)


class Account(Base):
    """2,000 rows of 100 each, with a version counter: something to change."""

    __tablename__ = "accounts"
    id: Mapped[int] = mapped_column(primary_key=True)
    owner: Mapped[str]
    balance: Mapped[int]
    status: Mapped[str] = mapped_column(String(20), default="open")
    version: Mapped[int] = mapped_column(default=1)
    __mapper_args__ = {"version_id_col": version}


class Ticket(Base):
    """3,000 rows without a version counter: something to change or delete."""

    __tablename__ = "tickets"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    status: Mapped[str] = mapped_column(String(20))
    description: Mapped[str] = deferred(mapped_column(Text))


class Thread(Base):
    """60 rows; each has 3 posts, which go with it."""

    __tablename__ = "threads"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    posts: Mapped[list[Post]] = relationship(back_populates="thread", cascade="all, delete-orphan")


class Post(Base):
    """180 rows."""

    __tablename__ = "posts"
    id: Mapped[int] = mapped_column(primary_key=True)
    thread_id: Mapped[int] = mapped_column(ForeignKey(Thread.id, ondelete="CASCADE"), index=True)
    body: Mapped[str]
    thread: Mapped[Thread] = relationship(back_populates="posts")


# Imperative mapping: 10 warehouses with 5 shelves each.
warehouses = Table(
    "warehouses", Base.metadata, Column("id", Integer, primary_key=True), Column("city", String(40), nullable=False)
)
shelves = Table(
    "shelves",
    Base.metadata,
    Column("id", Integer, primary_key=True),
    Column("warehouse_id", ForeignKey("warehouses.id"), index=True),
    Column("label", String(40), nullable=False),
)


class Warehouse:
    id: int
    city: str
    shelves: list[Shelf]


class Shelf:
    id: int
    label: str
    warehouse: Warehouse


Base.registry.map_imperatively(
    Warehouse, warehouses, properties={"shelves": relationship(Shelf, back_populates="warehouse")}
)
Base.registry.map_imperatively(
    Shelf, shelves, properties={"warehouse": relationship(Warehouse, back_populates="shelves")}
)

_FILL = """
INSERT INTO tags SELECT n, 'tag ' || n FROM generate_series(1, 20) n;
INSERT INTO customers SELECT n, 'Customer ' || n, (ARRAY['DE','AT','CH','FR','IT'])[n % 5 + 1],
    'customer' || n || '@example.org', 'notes ' || n FROM generate_series(1, 40) n;
INSERT INTO customer_tags SELECT c, (c * 3 + t) % 20 + 1 FROM generate_series(1, 40) c, generate_series(1, 3) t;
INSERT INTO profiles SELECT n, n, 'bio ' || n FROM generate_series(1, 40) n;
INSERT INTO addresses SELECT n, n % 40 + 1, 'City ' || n FROM generate_series(1, 320) n;
INSERT INTO visits SELECT n, n % 40 + 1, '/page/' || n FROM generate_series(1, 400) n;
INSERT INTO messages SELECT n, n % 40 + 1, 'message ' || n FROM generate_series(1, 400) n;
INSERT INTO orders SELECT n, n % 40 + 1, (ARRAY['new','paid','sent','returned'])[n % 4 + 1],
    timestamp '2026-01-01' + n * interval '1 hour', n FROM generate_series(1, 200) n;
INSERT INTO categories SELECT n, nullif(n / 2, 0), 'Category ' || n FROM generate_series(1, 15) n;
INSERT INTO products SELECT n, n % 15 + 1, 'Product ' || n, n FROM generate_series(1, 50) n;
INSERT INTO items SELECT n, n % 200 + 1, n % 50 + 1, 1 FROM generate_series(1, 400) n;
INSERT INTO employees (id, kind, name) SELECT n, CASE WHEN n <= 10 THEN 'manager' WHEN n <= 20 THEN 'engineer'
    ELSE 'employee' END, 'Employee ' || n FROM generate_series(1, 30) n;
INSERT INTO managers SELECT n, n * 100 FROM generate_series(1, 10) n;
INSERT INTO engineers SELECT n, 'Python' FROM generate_series(11, 20) n;
UPDATE employees SET manager_id = id % 10 + 1 WHERE id > 10;
INSERT INTO vehicles (id, kind, name, owner_id, doors, load) SELECT n, CASE WHEN n <= 20 THEN 'car' ELSE 'truck' END,
    'Vehicle ' || n, n, CASE WHEN n <= 20 THEN 4 END, CASE WHEN n > 20 THEN 1000 END FROM generate_series(1, 40) n;
INSERT INTO memberships SELECT c, 'club ' || k, c * k FROM generate_series(1, 40) c, generate_series(1, 3) k;
INSERT INTO fees SELECT n, n % 40 + 1, 'club ' || n % 3 + 1, n FROM generate_series(1, 240) n;
INSERT INTO articles SELECT n, 'Title ' || n, 'title-' || n, 'Summary', repeat('words ', 500), 'author', 'editor', 'en',
    'wide', 'CC', 'press', 'published', n, timestamp '2026-01-01' + n * interval '1 day' FROM generate_series(1, 300) n;
INSERT INTO events SELECT n, n % 40 + 1, (ARRAY['view','click','buy'])[n % 3 + 1],
    timestamp '2026-01-01' + n * interval '1 minute' FROM generate_series(1, 12000) n;
INSERT INTO accounts SELECT n, 'Owner ' || n, 100, 'open', 1 FROM generate_series(1, 2000) n;
INSERT INTO tickets SELECT n, 'Ticket ' || n, 'open', 'description' FROM generate_series(1, 3000) n;
INSERT INTO threads SELECT n, 'Thread ' || n FROM generate_series(1, 60) n;
INSERT INTO posts SELECT n, n % 60 + 1, 'post' FROM generate_series(1, 180) n;
INSERT INTO warehouses SELECT n, 'City ' || n FROM generate_series(1, 10) n;
INSERT INTO shelves SELECT n, n % 10 + 1, 'Shelf ' || n FROM generate_series(1, 50) n;
"""


def create(engine: Engine) -> None:
    """Create the tables anew, with their rows."""
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    restore(engine)


def restore(engine: Engine) -> None:
    """Put every row back as it was."""
    tables = ", ".join(table.name for table in Base.metadata.tables.values())
    with engine.begin() as connection:
        connection.execute(text(f"TRUNCATE {tables} RESTART IDENTITY CASCADE"))
        for statement in _FILL.split(";\n"):
            if statement.strip():
                connection.exec_driver_sql(statement.replace("%", "%%"))
        for table in Base.metadata.tables.values():
            _move_sequence(connection, table)
        connection.exec_driver_sql("ANALYZE")


def _move_sequence(connection: Any, table: Table) -> None:
    """Let the server's keys begin behind the rows that have been given theirs."""
    if [column.name for column in table.primary_key] == ["id"]:
        sequence = connection.scalar(text(f"SELECT pg_get_serial_sequence('{table.name}', 'id')"))
        if sequence is not None:
            highest = f"(SELECT coalesce(max(id), 0) + 1 FROM {table.name})"
            connection.execute(text(f"SELECT setval('{sequence}', {highest}, false)"))
