"""n-plus-one: relationships loaded one by one are found with both lines; good loading is silent."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Iterator
from datetime import datetime
from operator import attrgetter

import pytest
from sqlalchemy import Column, Engine, ForeignKey, ForeignKeyConstraint, Table, create_engine, func, select, text
from sqlalchemy.ext.asyncio import AsyncAttrs, AsyncSession
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    aliased,
    column_property,
    immediateload,
    joinedload,
    mapped_column,
    relationship,
    selectinload,
    subqueryload,
)

import sqla_watch
from sqla_watch import FindingRaised, Settings, Watch
from sqla_watch.demo.models import Customer, Item, Order
from tests.support import found, in_event_loop, line_of, only, place, watched_async_engine

pytestmark = [
    pytest.mark.usefixtures("watch"),
    pytest.mark.filterwarnings("ignore::sqla_watch.SqlaWatchWarning"),
]

both_drivers = pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])


def test_a_collection_touched_in_a_loop_is_found_with_both_lines_and_the_option(engine: Engine) -> None:
    with sqla_watch.scope("customers") as scope, Session(engine) as session:
        customers = session.scalars(select(Customer)).all()  # loads customers
        for customer in customers:
            len(customer.orders)  # touches orders
    finding = only(scope)
    assert finding.rule == "n-plus-one"
    assert finding.target == "Customer.orders"
    assert finding.evidence["distinct_parents"] == 20
    assert finding.evidence["statements"] == 20
    assert finding.evidence["rows"] == 100
    assert finding.location is not None
    assert finding.location.file == __file__
    assert finding.location.line == line_of("touches orders")
    assert [related.location.line for related in finding.related] == [line_of("loads customers")]
    assert ".options(selectinload(Customer.orders))" in finding.suggestion


def test_a_nested_relationship_is_chained_from_the_query_that_the_user_wrote(engine: Engine) -> None:
    with sqla_watch.scope("nested") as scope, Session(engine) as session:
        for customer in session.scalars(select(Customer)):  # query of all
            for order in customer.orders:
                for item in order.items:
                    item.product.name  # touches product
    by_target = {finding.target: finding for finding in scope.findings}
    assert set(by_target) == {"Customer.orders", "Order.items", "Item.product"}
    chain = "selectinload(Customer.orders).selectinload(Order.items)"
    assert f".options({chain})" in by_target["Order.items"].suggestion
    assert f".options({chain}.joinedload(Item.product))" in by_target["Item.product"].suggestion
    assert all(finding.related[0].location.line == line_of("query of all") for finding in scope.findings)


def test_pasting_the_suggested_option_makes_it_silent(engine: Engine) -> None:
    query = select(Customer)
    names = {
        "selectinload": selectinload,
        "joinedload": joinedload,
        "Customer": Customer,
        "Order": Order,
        "Item": Item,
    }
    for expected in (3, 0):
        with sqla_watch.scope("repaired") as scope, Session(engine) as session:
            for customer in session.scalars(query):
                for order in customer.orders:
                    for item in order.items:
                        item.product.name
        assert len(scope.findings) == expected
        for finding in scope.findings:
            query = eval("query" + finding.suggestion.splitlines()[-1], {**names, "query": query})
    assert scope.statements <= 3


def test_to_one_relationships_are_joined(engine: Engine) -> None:
    with sqla_watch.scope("orders") as scope, Session(engine) as session:
        for order in session.scalars(select(Order).limit(10)):
            order.customer.name
    finding = only(scope)
    assert finding.target == "Order.customer"
    assert finding.evidence["distinct_parents"] == 10
    assert ".options(joinedload(Order.customer))" in finding.suggestion


@pytest.mark.parametrize("strategy", [selectinload, joinedload, subqueryload])
def test_eager_loading_is_silent(engine: Engine, strategy: object) -> None:
    with sqla_watch.scope("eager") as scope, Session(engine) as session:
        for customer in session.scalars(select(Customer).options(strategy(Customer.orders))).unique():  # type: ignore[operator]
            len(customer.orders)
    assert found(scope) == []


def test_immediateload_is_no_better_than_loading_lazily(engine: Engine) -> None:
    with sqla_watch.scope("immediate") as scope, Session(engine) as session:
        session.scalars(select(Customer).options(immediateload(Customer.orders)).limit(5)).all()  # all at once
    finding = only(scope)
    assert (finding.rule, finding.target) == ("n-plus-one", "Customer.orders")
    assert place(finding) == (__file__, line_of("all at once"))
    assert "loaded by immediateload for 5 Customer objects" in finding.message
    assert ".options(selectinload(Customer.orders))" in finding.suggestion


def test_the_chain_starts_behind_what_is_eager_loaded_already(engine: Engine) -> None:
    with sqla_watch.scope("half") as scope, Session(engine) as session:
        customers = session.scalars(select(Customer).options(selectinload(Customer.orders)))  # half eager
        for customer in customers.all():
            for order in customer.orders:
                len(order.items)
    finding = only(scope)
    assert ".options(selectinload(Customer.orders).selectinload(Order.items))" in finding.suggestion


def test_one_parent_and_one_lazy_load_is_fine(engine: Engine) -> None:
    with sqla_watch.scope("one") as scope, Session(engine) as session:
        order = session.scalars(select(Order).limit(1)).one()
        order.customer.name
        order.customer.name
    assert found(scope) == []
    assert scope.statements == 2


def test_one_lazy_load_each_in_several_sessions_is_fine(engine: Engine) -> None:
    with sqla_watch.scope("sessions") as scope:
        for _ in range(4):
            with Session(engine) as session:
                session.scalars(select(Order).limit(1)).one().customer.name
    assert found(scope) == []


def test_two_parents_each_got_by_itself_are_fine(engine: Engine) -> None:
    with sqla_watch.scope("two") as scope, Session(engine) as session:
        for order in (session.get(Order, 1), session.get(Order, 2)):
            assert order is not None
            order.customer.name
    assert found(scope) == []


def test_parents_that_share_the_related_object_cost_one_statement(engine: Engine) -> None:
    with sqla_watch.scope("shared") as scope, Session(engine) as session:
        for order in session.scalars(select(Order).where(Order.customer_id == 3)):
            order.customer.name
    assert scope.statements == 2
    assert found(scope) == []


# Shapes of relationships


class Base(DeclarativeBase):
    """Base of the classes for shapes which the shop does not have."""


student_course = Table(
    "student_course",
    Base.metadata,
    Column("student_id", ForeignKey("students.id"), primary_key=True),
    Column("course_id", ForeignKey("courses.id"), primary_key=True),
)


class Student(AsyncAttrs, Base):
    __tablename__ = "students"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    courses: Mapped[list[Course]] = relationship(secondary=student_course, order_by="Course.id")


class Course(AsyncAttrs, Base):
    __tablename__ = "courses"

    id: Mapped[int] = mapped_column(primary_key=True)
    rooms: Mapped[list[Room]] = relationship()


class Room(Base):
    """Its key has two columns."""

    __tablename__ = "rooms"

    building: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    course_id: Mapped[int] = mapped_column(ForeignKey("courses.id"))
    seats: Mapped[list[Seat]] = relationship(back_populates="room")


class Seat(Base):
    __tablename__ = "seats"
    __table_args__ = (ForeignKeyConstraint(["building", "room_number"], ["rooms.building", "rooms.number"]),)

    id: Mapped[int] = mapped_column(primary_key=True)
    building: Mapped[str]
    room_number: Mapped[int]
    room: Mapped[Room] = relationship(back_populates="seats")


class Folder(Base):
    """A tree."""

    __tablename__ = "folders"

    id: Mapped[int] = mapped_column(primary_key=True)
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("folders.id"))
    parent: Mapped[Folder | None] = relationship(remote_side=[id], back_populates="children")
    children: Mapped[list[Folder]] = relationship(back_populates="parent", order_by="Folder.id")


class Person(Base):
    __tablename__ = "people"

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    folder_id: Mapped[int] = mapped_column(ForeignKey("folders.id"))
    folder: Mapped[Folder] = relationship()
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}


class Teacher(Person):
    __tablename__ = "teachers"

    id: Mapped[int] = mapped_column(ForeignKey("people.id"), primary_key=True)
    course_id: Mapped[int] = mapped_column(ForeignKey("courses.id"))
    course: Mapped[Course] = relationship()
    __mapper_args__ = {"polymorphic_identity": "teacher"}


@pytest.fixture
def school(shop_url: str) -> Iterator[None]:
    """Six students in two courses each, rooms with seats, a tree of folders; gone afterwards."""
    engine = create_engine(shop_url)
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        courses = [Course(id=number) for number in range(1, 7)]
        folders = [Folder(id=number, parent_id=number // 2 or None) for number in range(1, 8)]
        session.add_all([*courses, *folders])
        session.flush()
        for number in range(1, 7):
            session.add(
                Student(id=number, name=f"Student {number}", courses=[courses[number - 1], courses[number % 6]])
            )
            session.add(Room(building="A" if number % 2 else "B", number=number, course_id=number))
            session.add(Teacher(id=number, folder_id=number, course_id=number))
        session.flush()
        for number in range(1, 7):
            session.add(Seat(id=number, building="A" if number % 2 else "B", room_number=number))
        session.commit()
    yield
    Base.metadata.drop_all(engine)
    engine.dispose()


@pytest.mark.usefixtures("school")
def test_a_many_to_many_is_loaded_with_selectinload(engine: Engine) -> None:
    with sqla_watch.scope("many to many") as scope, Session(engine) as session:
        for student in session.scalars(select(Student)):  # loads students
            assert len(student.courses) == 2  # touches courses
    finding = only(scope)
    assert finding.target == "Student.courses"
    assert finding.evidence["distinct_parents"] == 6
    assert finding.evidence["rows"] == 12
    assert place(finding) == (__file__, line_of("touches courses"))
    assert [related.location.line for related in finding.related] == [line_of("loads students")]
    assert ".options(selectinload(Student.courses))" in finding.suggestion


@pytest.mark.usefixtures("school")
def test_parents_with_a_composite_key_are_told_apart(engine: Engine) -> None:
    with sqla_watch.scope("composite") as scope, Session(engine) as session:
        for room in session.scalars(select(Room)):
            assert len(room.seats) == 1
    finding = only(scope)
    assert finding.target == "Room.seats"
    assert finding.evidence["distinct_parents"] == 6


@pytest.mark.usefixtures("school")
def test_a_to_one_with_a_composite_key(engine: Engine) -> None:
    with sqla_watch.scope("to one, composite") as scope, Session(engine) as session:
        for seat in session.scalars(select(Seat)):
            assert seat.room.number == seat.room_number
    finding = only(scope)
    assert finding.target == "Seat.room"
    assert ".options(joinedload(Seat.room))" in finding.suggestion


@pytest.mark.usefixtures("school")
def test_a_walk_down_a_tree_is_found_for_all_below_the_root(engine: Engine) -> None:
    """The root's own children are one load for one parent; with the option for the rest they would be two."""

    def count(folder: Folder) -> int:
        return 1 + sum(count(child) for child in folder.children)  # goes down

    with sqla_watch.scope("tree") as scope, Session(engine) as session:
        root = session.scalars(select(Folder).where(Folder.parent_id.is_(None))).one()  # loads the root
        assert count(root) == 7
    finding = only(scope)
    assert finding.rule == "n-plus-one"
    assert finding.target == "Folder.children"
    assert finding.evidence["distinct_parents"] == 6
    assert place(finding) == (__file__, line_of("goes down"))
    assert [related.location.line for related in finding.related] == [line_of("loads the root")]
    assert ".options(selectinload(Folder.children).selectinload(Folder.children))" in finding.suggestion


@pytest.mark.usefixtures("school")
def test_the_way_up_a_tree_from_many_leaves(engine: Engine) -> None:
    with sqla_watch.scope("up") as scope, Session(engine) as session:
        leaves = session.scalars(select(Folder).where(Folder.id > 3)).all()
        assert {leaf.parent.id for leaf in leaves if leaf.parent} == {2, 3}
    assert scope.statements == 3
    assert found(scope) == [("n-plus-one", "Folder.parent")]


@pytest.mark.usefixtures("school")
def test_a_relationship_of_a_subclass_is_named_by_the_subclass(engine: Engine) -> None:
    with sqla_watch.scope("subclass") as scope, Session(engine) as session:
        for teacher in session.scalars(select(Teacher)):
            assert teacher.course.id == teacher.course_id
    finding = only(scope)
    assert finding.target == "Teacher.course"
    assert ".options(joinedload(Teacher.course))" in finding.suggestion


@pytest.mark.usefixtures("school")
def test_an_inherited_relationship_is_found_and_its_option_can_be_pasted(engine: Engine) -> None:
    query = select(Teacher)
    names = {"joinedload": joinedload, "Person": Person, "Teacher": Teacher}
    with sqla_watch.scope("inherited") as scope, Session(engine) as session:
        for teacher in session.scalars(query):
            assert teacher.folder.id == teacher.id
    finding = only(scope)
    assert finding.evidence["distinct_parents"] == 6
    repaired = eval("query" + finding.suggestion.splitlines()[-1], {**names, "query": query})
    with sqla_watch.scope("repaired") as scope, Session(engine) as session:
        for teacher in session.scalars(repaired):
            assert teacher.folder.id == teacher.id
    assert scope.statements == 1


@pytest.mark.usefixtures("school")
def test_relationships_of_a_polymorphic_query(engine: Engine) -> None:
    """The columns of the subclass are a load of their own each; the relationship of the base is the N+1."""
    with sqla_watch.scope("polymorphic") as scope, Session(engine) as session:
        for person in session.scalars(select(Person)):
            assert person.folder.id == person.id
    assert ("n-plus-one", "Person.folder") in found(scope)


# Ways to ask


def test_parents_from_the_legacy_query(engine: Engine) -> None:
    with sqla_watch.scope("legacy") as scope, Session(engine) as session:
        for order in session.query(Order).filter(Order.id <= 6):  # legacy query
            order.customer.name
    finding = only(scope)
    assert finding.evidence["distinct_parents"] == 6
    assert [related.location.line for related in finding.related] == [line_of("legacy query")]


def test_parents_from_an_aliased_entity(engine: Engine) -> None:
    other = aliased(Order)
    with sqla_watch.scope("alias") as scope, Session(engine) as session:
        for order in session.scalars(select(other).where(other.id <= 6)):  # aliased query
            order.customer.name
    finding = only(scope)
    assert finding.target == "Order.customer"
    assert finding.evidence["distinct_parents"] == 6
    assert [related.location.line for related in finding.related] == [line_of("aliased query")]


def test_parents_from_text_and_from_rows_of_several_entities(engine: Engine) -> None:
    with sqla_watch.scope("text") as scope, Session(engine) as session:
        written = select(Order).from_statement(
            text("SELECT id, customer_id, placed_at, status FROM orders WHERE id <= 6")
        )
        for order in session.scalars(written):
            order.customer.name
    assert found(scope) == [("n-plus-one", "Order.customer")]
    with sqla_watch.scope("rows") as scope, Session(engine) as session:
        for item, _ in session.execute(select(Item, Order).join(Order).where(Order.id <= 6)):
            item.product.name
    assert found(scope) == [("n-plus-one", "Item.product")]


def test_the_children_of_one_parent_which_get_has_brought(engine: Engine) -> None:
    """`session.get` is the query; its collection is one lazy load; what the members load are many."""
    with sqla_watch.scope("get") as scope, Session(engine) as session:
        customer = session.get_one(Customer, 7)  # gets the parent
        for order in customer.orders:
            len(order.items)  # touches the items of each
    finding = only(scope)
    assert finding.target == "Order.items"
    assert finding.evidence["distinct_parents"] == 5
    assert place(finding) == (__file__, line_of("touches the items of each"))
    assert [related.location.line for related in finding.related] == [line_of("gets the parent")]
    assert ".options(selectinload(Customer.orders).selectinload(Order.items))" in finding.suggestion


def test_a_stream_of_parents(engine: Engine) -> None:
    query = select(Order).where(Order.id <= 30).execution_options(yield_per=10)
    with sqla_watch.scope("stream") as scope, Session(engine) as session:
        for order in session.scalars(query):  # streams orders
            len(order.items)
    finding = only(scope)
    assert finding.evidence["distinct_parents"] == 30
    assert [related.location.line for related in finding.related] == [line_of("streams orders")]


def test_pages_of_parents_name_the_line_that_pages(engine: Engine) -> None:
    with sqla_watch.scope("pages") as scope, Session(engine) as session:
        for page in range(3):
            for order in session.scalars(select(Order).order_by(Order.id).limit(5).offset(5 * page)):  # pages
                len(order.items)
    finding = only(scope)
    assert finding.evidence["distinct_parents"] == 15
    assert [related.location.line for related in finding.related] == [line_of("pages")]


# Places to touch from


def header(order: Order) -> str:
    """What a template calls."""
    return f"{order.id} for {order.customer.name}"  # in the template


def test_the_line_is_that_of_the_function_which_touches(engine: Engine) -> None:
    with sqla_watch.scope("template") as scope, Session(engine) as session:
        for order in session.scalars(select(Order).where(Order.id <= 6)):
            header(order)
    finding = only(scope)
    assert place(finding) == (__file__, line_of("in the template"))
    assert finding.location is not None
    assert finding.location.function == "header"


def test_comprehensions_generators_and_lambdas_belong_to_their_function(engine: Engine) -> None:
    orders = select(Order).where(Order.id <= 6)
    with Session(engine) as session:
        with sqla_watch.scope("comprehension") as in_comprehension:
            [order.customer.name for order in session.scalars(orders)]  # comprehension
        session.expunge_all()
        with sqla_watch.scope("generator") as in_generator:
            max(order.customer.name for order in session.scalars(orders))  # generator
        session.expunge_all()
        with sqla_watch.scope("lambda") as in_lambda:
            sorted(session.scalars(orders), key=lambda order: order.customer.name)  # lambda
        session.expunge_all()
        with sqla_watch.scope("attrgetter") as in_attrgetter:
            sorted(session.scalars(orders), key=attrgetter("customer.name"))  # attrgetter
        session.expunge_all()
        with sqla_watch.scope("map") as in_map:
            list(map(header, session.scalars(orders)))
    for scope, marker in (
        (in_comprehension, "comprehension"),
        (in_generator, "generator"),
        (in_lambda, "lambda"),
        (in_attrgetter, "attrgetter"),
    ):
        finding = only(scope)
        assert place(finding) == (__file__, line_of(marker))
        assert finding.location is not None
        assert finding.location.function == "test_comprehensions_generators_and_lambdas_belong_to_their_function"
    assert place(only(in_map)) == (__file__, line_of("in the template"))


def test_two_lines_that_touch_the_same_relationship_are_two_findings(engine: Engine) -> None:
    with sqla_watch.scope("two lines") as scope, Session(engine) as session:
        orders = session.scalars(select(Order).order_by(Order.id).limit(12)).all()
        for order in orders[:6]:
            order.customer.name  # first half
        for order in orders[6:]:
            order.customer.name  # second half
    assert {place(finding)[1] for finding in scope.findings} == {line_of("first half"), line_of("second half")}
    assert [finding.evidence["distinct_parents"] for finding in scope.findings] == [6, 6]


def test_a_query_in_a_function_of_its_own_is_named_where_it_is(engine: Engine) -> None:
    def recent(session: Session) -> list[Order]:
        return list(session.scalars(select(Order).order_by(Order.id.desc()).limit(6)))  # in the repository

    with sqla_watch.scope("repository") as scope, Session(engine) as session:
        for order in recent(session):
            order.customer.name
    (related,) = only(scope).related
    assert related.location.line == line_of("in the repository")
    assert related.location.function == "recent"


# Sessions and scopes


def test_parents_loaded_in_an_outer_scope_and_touched_in_an_inner_one(engine: Engine) -> None:
    with sqla_watch.scope("outer") as outer, Session(engine) as session:
        orders = session.scalars(select(Order).where(Order.id <= 6)).all()  # in the outer scope
        with sqla_watch.scope("inner") as inner:
            for order in orders:
                order.customer.name
    finding = only(inner)
    assert [related.location.line for related in finding.related] == [line_of("in the outer scope")]
    assert found(outer) == found(inner) == [("n-plus-one", "Order.customer")]
    assert inner.statements == 6
    assert outer.statements == 7


def test_parents_loaded_in_an_inner_scope_and_touched_in_the_outer_one(engine: Engine) -> None:
    with sqla_watch.scope("outer") as outer, Session(engine) as session:
        with sqla_watch.scope("inner") as inner:
            orders = session.scalars(select(Order).where(Order.id <= 6)).all()  # in the inner scope
        for order in orders:
            order.customer.name
    assert found(inner) == []
    assert [related.location.line for related in only(outer).related] == [line_of("in the inner scope")]


def test_parents_loaded_before_the_scope_have_no_query_to_name_and_are_found(engine: Engine) -> None:
    with Session(engine) as session:
        orders = session.scalars(select(Order).where(Order.id <= 6)).all()
        with sqla_watch.scope("late") as scope:
            for order in orders:
                order.customer.name  # touches what is old
    finding = only(scope)
    assert finding.related == ()
    assert finding.evidence["distinct_parents"] == 6
    assert place(finding) == (__file__, line_of("touches what is old"))
    assert "Add to the query that loads them" in finding.suggestion
    assert ".options(joinedload(Order.customer))" in finding.suggestion


def test_parents_loaded_before_the_watch_was_installed_are_found(engine: Engine) -> None:
    sqla_watch.uninstall()
    with Session(engine) as session:
        orders = session.scalars(select(Order).where(Order.id <= 6)).all()
        sqla_watch.install(engine, settings=Settings(profile="test"))
        with sqla_watch.scope("late watch") as scope:
            for order in orders:
                order.customer.name
    finding = only(scope)
    assert finding.related == ()
    assert finding.evidence["distinct_parents"] == 6


def test_parents_that_the_session_has_just_inserted_are_found(engine: Engine) -> None:
    with sqla_watch.scope("new parents") as scope, Session(engine) as session:
        orders = [
            Order(id=1000 + number, customer_id=number, placed_at=datetime(2026, 1, 1), status="new")
            for number in range(1, 7)
        ]
        session.add_all(orders)
        session.flush()
        for order in orders:
            assert order.customer.id == order.customer_id  # touches what is new
        session.rollback()
    finding = only(scope)
    assert finding.rule == "n-plus-one"
    assert finding.evidence["distinct_parents"] == 6
    assert place(finding) == (__file__, line_of("touches what is new"))


def test_refreshed_parents_keep_the_query_that_brought_them(engine: Engine) -> None:
    with sqla_watch.scope("refreshed") as scope, Session(engine) as session:
        orders = session.scalars(select(Order).where(Order.id <= 6)).all()  # brings them
        for order in orders:
            session.refresh(order)
        for order in orders:
            order.customer.name
    finding = next(finding for finding in scope.findings if finding.rule == "n-plus-one")
    assert finding.evidence["distinct_parents"] == 6
    assert [related.location.line for related in finding.related] == [line_of("brings them")]


def test_columns_reloaded_after_a_commit_are_no_relationship(engine: Engine) -> None:
    with sqla_watch.scope("expired") as scope, Session(engine) as session:
        orders = session.scalars(select(Order).where(Order.id <= 6)).all()  # before the commit
        session.commit()
        assert len([order.status for order in orders]) == 6
    assert scope.statements == 7
    assert [rule for rule, _ in found(scope) if rule == "n-plus-one"] == []


def test_relationships_touched_after_a_commit_are_found_apart_from_the_columns(engine: Engine) -> None:
    with sqla_watch.scope("expired relationships") as scope, Session(engine) as session:
        orders = session.scalars(select(Order).where(Order.id <= 6)).all()  # long before
        session.commit()
        for order in orders:
            order.customer.name  # after the commit
    finding = next(finding for finding in scope.findings if finding.rule == "n-plus-one")
    assert finding.evidence["statements"] == 6
    assert place(finding) == (__file__, line_of("after the commit"))
    assert [related.location.line for related in finding.related] == [line_of("long before")]


def test_two_sessions_are_counted_apart(engine: Engine) -> None:
    orders = select(Order).where(Order.id <= 6)
    with sqla_watch.scope("two sessions") as scope:
        for _ in range(2):
            with Session(engine) as session:
                for order in session.scalars(orders):
                    order.customer.name
    assert [finding.evidence["distinct_parents"] for finding in scope.findings] == [6, 6]


def test_threads_with_a_session_each_share_the_scope_they_were_started_in(engine: Engine) -> None:
    def report(least: int) -> None:
        with Session(engine) as session:
            for order in session.scalars(select(Order).where(Order.id.between(least, least + 5))):  # in a thread
                order.customer.name

    with sqla_watch.scope("threads") as scope:
        threads = [threading.Thread(target=contextvars.copy_context().run, args=(report, least)) for least in (1, 7)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert scope.statements == 14
    assert [finding.target for finding in scope.findings] == ["Order.customer", "Order.customer"]
    for finding in scope.findings:
        assert finding.evidence["distinct_parents"] == 6
        assert [related.location.line for related in finding.related] == [line_of("in a thread")]


def test_six_parents_each_got_by_itself_are_two_loops(engine: Engine) -> None:
    """One of `get`, and one of lazy loads: an option for each get would still leave six statements."""
    with sqla_watch.scope("gets") as scope, Session(engine) as session:
        for number in range(1, 7):
            session.get_one(Order, number).customer.name
    assert found(scope) == [("n-plus-one", "Order.customer"), ("query-in-loop", "SELECT orders")]


def test_four_parents_each_got_by_itself_are_fine(engine: Engine) -> None:
    with sqla_watch.scope("gets") as scope, Session(engine) as session:
        for number in range(1, 5):
            session.get_one(Order, number).customer.name
    assert found(scope) == []


def test_with_the_action_raise_the_second_lazy_load_raises_and_the_session_goes_on(
    engine: Engine, watch: Watch
) -> None:
    watch.settings = Settings(profile="test", rules={"n-plus-one": "raise"})
    with sqla_watch.scope("raise") as scope, Session(engine) as session:
        names = []
        with pytest.raises(FindingRaised, match="customer was loaded lazily for 2 Order objects"):
            for order in session.scalars(select(Order).order_by(Order.id).limit(6)).all():
                names.append(order.customer.name)
        assert len(names) == 1
        assert session.scalar(select(func.count()).select_from(Order)) == 100
        session.commit()
    assert scope.statements == 4
    assert scope.transactions == 1


# AsyncSession


@both_drivers
@pytest.mark.usefixtures("school")
@in_event_loop
async def test_awaitable_attributes_in_a_loop_are_found(shop_url: str, driver: str) -> None:
    async with watched_async_engine(shop_url, driver) as engine:
        with sqla_watch.scope("awaitable") as scope:
            async with AsyncSession(engine) as session:
                for student in await session.scalars(select(Student)):  # awaits students
                    for course in await student.awaitable_attrs.courses:  # awaits courses
                        await asyncio.sleep(0)
                        await course.awaitable_attrs.rooms  # awaits rooms
    by_target = {finding.target: finding for finding in scope.findings}
    assert set(by_target) == {"Student.courses", "Course.rooms"}
    assert place(by_target["Student.courses"]) == (__file__, line_of("awaits courses"))
    assert place(by_target["Course.rooms"]) == (__file__, line_of("awaits rooms"))
    for finding in scope.findings:
        assert finding.evidence["distinct_parents"] == 6
        assert [related.location.line for related in finding.related] == [line_of("awaits students")]
    chain = ".options(selectinload(Student.courses).selectinload(Course.rooms))"
    assert chain in by_target["Course.rooms"].suggestion


@both_drivers
@in_event_loop
async def test_lazy_loads_inside_of_run_sync_are_found(shop_url: str, driver: str) -> None:
    def names(session: Session) -> list[str]:
        orders = session.scalars(select(Order).where(Order.id <= 6))  # queries in run_sync
        return [order.customer.name for order in orders]  # touches in run_sync

    async with watched_async_engine(shop_url, driver) as engine:
        with sqla_watch.scope("run_sync") as scope:
            async with AsyncSession(engine) as session:
                assert len(await session.run_sync(names)) == 6
    finding = only(scope)
    assert place(finding) == (__file__, line_of("touches in run_sync"))
    assert finding.location is not None
    assert finding.location.function == "names"
    assert [related.location.line for related in finding.related] == [line_of("queries in run_sync")]


@both_drivers
@in_event_loop
async def test_parents_of_an_async_query_that_run_sync_touches_one_by_one(shop_url: str, driver: str) -> None:
    async with watched_async_engine(shop_url, driver) as engine:
        with sqla_watch.scope("run_sync each") as scope:
            async with AsyncSession(engine) as session:
                orders = (await session.scalars(select(Order).where(Order.id <= 6))).all()  # async parents
                for order in orders:
                    await session.run_sync(lambda _, order=order: order.customer.name)  # touches each
    finding = only(scope)
    assert finding.evidence["distinct_parents"] == 6
    assert place(finding) == (__file__, line_of("touches each"))
    assert [related.location.line for related in finding.related] == [line_of("async parents")]


@both_drivers
@in_event_loop
async def test_two_tasks_at_once_do_not_mix_up_their_queries(shop_url: str, driver: str) -> None:
    async with watched_async_engine(shop_url, driver) as engine:

        async def customers_of_orders() -> None:
            async with AsyncSession(engine) as session:
                orders = (await session.scalars(select(Order).where(Order.id <= 6))).all()  # one task
                for order in orders:
                    await session.refresh(order, ["customer"])
                    await asyncio.sleep(0)
                for order in orders:
                    await session.run_sync(lambda _, order=order: order.items)

        async def products_of_items() -> None:
            async with AsyncSession(engine) as session:
                items = (await session.scalars(select(Item).where(Item.id <= 6))).all()  # other task
                for item in items:
                    await asyncio.sleep(0)
                    await session.run_sync(lambda _, item=item: item.product.name)

        with sqla_watch.scope("tasks") as scope:
            await asyncio.gather(customers_of_orders(), products_of_items())
    lines = {
        finding.target: [related.location.line for related in finding.related]
        for finding in scope.findings
        if finding.rule == "n-plus-one"
    }
    assert lines["Order.items"] == [line_of("one task")]
    assert lines["Item.product"] == [line_of("other task")]


@both_drivers
@in_event_loop
async def test_async_eager_loading_is_silent(shop_url: str, driver: str) -> None:
    query = select(Order).options(selectinload(Order.items).joinedload(Item.product)).where(Order.id <= 6)
    async with watched_async_engine(shop_url, driver) as engine:
        with sqla_watch.scope("async eager") as scope:
            async with AsyncSession(engine) as session:
                for order in await session.scalars(query):
                    assert {item.product.name for item in order.items}
    assert scope.statements == 2
    assert found(scope) == []


# Thresholds


def test_production_is_silent_below_five_parents(engine: Engine, watch: Watch) -> None:
    watch.settings = Settings(profile="production", rules={"n-plus-one": {"min_seconds": 0.0}})
    for parents, expected in ((4, []), (5, [("n-plus-one", "Order.customer")])):
        with sqla_watch.scope("production") as scope, Session(engine) as session:
            for order in session.scalars(select(Order).where(Order.id <= parents)):
                order.customer.name
        assert found(scope) == expected


def test_production_is_silent_below_fifty_milliseconds(engine: Engine, watch: Watch) -> None:
    assert Settings(profile="production").rule("n-plus-one")["min_seconds"] == 0.05
    watch.settings = Settings(profile="production", rules={"n-plus-one": {"min_seconds": 5.0}})
    with sqla_watch.scope("fast") as scope, Session(engine) as session:
        for order in session.scalars(select(Order).where(Order.id <= 8)):
            order.customer.name
    assert scope.statements == 9
    assert found(scope) == []


class Again(DeclarativeBase):
    """Base of the shop's classes once more, with customers that are slow to load."""


class SlowCustomer(Again):
    __tablename__ = "customers"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    pause: Mapped[str] = column_property(select(func.pg_sleep(0.015)).scalar_subquery())


class OrderOfSlowCustomer(Again):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    customer_id: Mapped[int] = mapped_column(ForeignKey("customers.id"))
    customer: Mapped[SlowCustomer] = relationship()


def test_production_speaks_from_fifty_milliseconds_on(
    engine: Engine, watch: Watch, caplog: pytest.LogCaptureFixture
) -> None:
    watch.settings = Settings(profile="production")
    with sqla_watch.scope("slow") as scope, Session(engine) as session:
        for order in session.scalars(select(OrderOfSlowCustomer).where(OrderOfSlowCustomer.id <= 5)):
            order.customer.name
    finding = only(scope)
    assert finding.target == "OrderOfSlowCustomer.customer"
    assert 0.075 <= finding.evidence["database_seconds"] < 1  # type: ignore[operator]
    assert [(record.name, record.levelname) for record in caplog.records] == [("sqla_watch", "WARNING")]


def test_parents_of_a_long_session_each_in_a_transaction_of_its_own_are_fine(engine: Engine) -> None:
    """A job asks for one thing, then for the next: no query could have loaded their relations together."""
    with sqla_watch.scope("jobs") as scope, Session(engine) as session:
        for number in range(1, 8):
            session.get_one(Order, number).customer.name
            session.commit()
    assert "n-plus-one" not in {finding.rule for finding in scope.findings}
