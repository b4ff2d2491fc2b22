"""n-plus-one: relationships loaded one by one are found with both lines; good loading is silent."""

from __future__ import annotations

import inspect

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session, immediateload, joinedload, selectinload, subqueryload

import sqla_watch
from sqla_watch import Finding, Scope
from sqla_watch.demo.models import Customer, Item, Order

pytestmark = [
    pytest.mark.usefixtures("watch"),
    pytest.mark.filterwarnings("ignore::sqla_watch.SqlaWatchWarning"),
]


def line_of(marker: str) -> int:
    """The number of the line in this file that carries a comment."""
    source = inspect.getsource(inspect.getmodule(line_of)).splitlines()
    (found,) = [number for number, line in enumerate(source, 1) if line.rstrip().endswith(f"# {marker}")]
    return found


def found(scope: Scope) -> list[tuple[str, str]]:
    return sorted((finding.rule, finding.target) for finding in scope.findings)


def only(scope: Scope) -> Finding:
    (finding,) = scope.findings
    return finding


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


@pytest.mark.parametrize("strategy", [selectinload, joinedload, subqueryload, immediateload])
def test_eager_loading_is_silent(engine: Engine, strategy: object) -> None:
    with sqla_watch.scope("eager") as scope, Session(engine) as session:
        for customer in session.scalars(select(Customer).options(strategy(Customer.orders))).unique():  # type: ignore[operator]
            len(customer.orders)
    assert found(scope) == []


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
