"""over-budget: each limit that a scope exceeds is found, with the line that spent most; what stays within is not."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from sqlalchemy import Engine, create_engine, func, select, text
from sqlalchemy.orm import Session

import sqla_watch
from sqla_watch import Budget, FindingRaised, OverBudgetWarning, Settings, Watch
from sqla_watch.demo.models import Customer, Order
from tests.conftest import url_for
from tests.support import connection_held_elsewhere, found, line_of, only, place

pytestmark = [
    pytest.mark.usefixtures("watch"),
    pytest.mark.filterwarnings("ignore::sqla_watch.SqlaWatchWarning"),
]


def test_more_statements_than_allowed_are_found_with_the_line_that_sends_most(engine: Engine) -> None:
    with sqla_watch.scope("dashboard", budget=Budget(max_statements=3)) as scope, Session(engine) as session:
        session.execute(select(func.count()).select_from(Order)).scalar_one()  # once
        for country in ("AT", "CH", "DE", "FR"):
            session.execute(select(Customer.id).where(Customer.country == country)).all()  # most
    (finding,) = (each for each in scope.findings if each.rule == "over-budget")
    assert finding.message == "dashboard sent statements: 5, and its budget is 3"
    assert finding.target == "dashboard statements"
    assert finding.severity == "high"
    assert place(finding) == (__file__, line_of("most"))
    assert [related.location.line for related in finding.related] == [line_of("once")]
    assert "FROM customers" in finding.statement
    assert finding.evidence["budget"] == 3
    assert finding.evidence["used"] == finding.evidence["statements"] == finding.statements == 5
    assert finding.evidence["rows"] == scope.rows
    assert finding.evidence["database_seconds"] == pytest.approx(scope.database_seconds, abs=1e-6)


def test_more_rows_are_found_at_the_line_that_fetches_most(engine: Engine) -> None:
    with sqla_watch.scope("export", budget=Budget(max_rows=40)) as scope, engine.connect() as connection:
        for number in range(3):
            connection.execute(text("SELECT 1 WHERE 1 = :one"), {"one": number + 1}).all()
        connection.execute(text("SELECT id FROM orders")).all()  # rows
    finding = only(scope)
    assert finding.message == "export fetched rows: 101, and its budget is 40"
    assert place(finding) == (__file__, line_of("rows"))


def test_more_time_in_the_database_is_found_at_the_slowest_line(engine: Engine) -> None:
    with sqla_watch.scope("report", budget=Budget(max_database_seconds=0.05)) as scope, engine.connect() as connection:
        connection.execute(text("SELECT 1"))
        connection.execute(text("SELECT pg_sleep(0.06)"))  # slowest
    (finding,) = (each for each in scope.findings if each.rule == "over-budget")
    assert finding.message.startswith("report spent in the database 0.")
    assert finding.message.endswith(" s, and its budget is 0.05 s")
    assert place(finding) == (__file__, line_of("slowest"))
    assert finding.evidence["used"] >= 0.06  # type: ignore[operator]


def test_more_waiting_for_the_pool_is_found(shop_url: str) -> None:
    engine = create_engine(url_for(shop_url, "psycopg"), pool_size=1, max_overflow=0, pool_recycle=3600)
    sqla_watch.install(engine, settings=Settings(profile="test", rules={"pool-wait": "ignore"}))
    waits = sqla_watch.scope("page", budget=Budget(max_wait_seconds=0.02))
    with waits as scope, connection_held_elsewhere(engine, 0.08), engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    engine.dispose()
    assert found(scope) == [("over-budget", "page wait_seconds")]
    assert 0.02 < only(scope).evidence["used"] < 2  # type: ignore[operator]


@pytest.mark.parametrize(
    ("budget", "what"),
    [(Budget(max_connections=2), "took connections: 3"), (Budget(max_transactions=2), "made transactions: 3")],
)
def test_more_connections_and_transactions_are_found(budget: Budget, what: str, engine: Engine) -> None:
    with sqla_watch.scope("import", budget=budget) as scope:
        for number in range(3):
            with engine.begin() as connection:
                connection.execute(text("SELECT :number"), {"number": number})
    (finding,) = (each for each in scope.findings if each.rule == "over-budget")
    assert finding.message == f"import {what}, and its budget is 2"


def test_each_limit_is_a_finding_of_its_own(engine: Engine) -> None:
    budget = Budget(max_statements=1, max_rows=5, max_connections=9)
    with sqla_watch.scope("page", budget=budget) as scope, engine.connect() as connection:
        connection.execute(text("SELECT id FROM orders WHERE id < 5")).all()
        connection.execute(text("SELECT id FROM orders WHERE id < 8")).all()
    assert found(scope) == [("over-budget", "page rows"), ("over-budget", "page statements")]


def test_what_runs_in_scopes_inside_of_it_counts(engine: Engine) -> None:
    with sqla_watch.scope("outer", budget=Budget(max_statements=2)) as outer:
        for number in range(3):
            with sqla_watch.scope("inner"), engine.connect() as connection:
                connection.execute(text("SELECT :number"), {"number": number})
    assert [each.target for each in outer.findings if each.rule == "over-budget"] == ["outer statements"]


def test_a_decorated_function_is_judged_at_each_call(engine: Engine) -> None:
    @sqla_watch.scope("job", budget=Budget(max_statements=2))
    def job(times: int) -> None:
        with engine.connect() as connection:
            for _ in range(times):
                connection.execute(text("SELECT now()"))

    job(2)
    with pytest.warns(OverBudgetWarning, match="job sent statements: 3, and its budget is 2"):
        job(3)


def test_a_budget_may_be_set_while_the_scope_is_open(engine: Engine) -> None:
    with sqla_watch.scope("late") as scope, engine.connect() as connection:
        connection.execute(text("SELECT 1"))
        scope.budget = Budget(max_statements=0)
    assert found(scope) == [("over-budget", "late statements")]


def test_raise_raises_at_the_end_of_the_block_and_not_over_an_exception(engine: Engine, watch: Watch) -> None:
    watch.settings = Settings(profile="test", rules={"over-budget": "raise"})

    def block() -> None:
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))

    with pytest.raises(FindingRaised) as raised, sqla_watch.scope("strict", budget=Budget(max_statements=0)):
        block()
    assert raised.value.finding.rule == "over-budget"
    with pytest.raises(KeyError), sqla_watch.scope("strict", budget=Budget(max_statements=0)):
        block()
        raise KeyError


def test_statements_of_other_threads_that_carry_the_scope_count(engine: Engine) -> None:
    def ask() -> None:
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))

    with sqla_watch.scope("threads", budget=Budget(max_statements=3)) as scope:
        threads = [threading.Thread(target=sqla_watch.carry(ask)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert ("over-budget", "threads statements") in found(scope)


# Good code


def within_statements(engine: Engine) -> Budget:
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
        connection.execute(text("SELECT 2"))
    return Budget(max_statements=2, max_connections=1, max_transactions=1, max_rows=2)


def nothing_at_all(engine: Engine) -> Budget:
    return Budget(
        max_statements=0, max_rows=0, max_database_seconds=0, max_wait_seconds=0, max_connections=0, max_transactions=0
    )


def savepoints_and_settings(engine: Engine) -> Budget:
    with engine.begin() as connection:
        with connection.begin_nested():
            connection.execute(text("SELECT 1"))
        connection.execute(text("SET LOCAL statement_timeout = 1000"))
    return Budget(max_statements=1)


@pytest.mark.parametrize("work", [within_statements, nothing_at_all, savepoints_and_settings])
def test_what_stays_within_its_budget_is_fine(work: Callable[[Engine], Budget], engine: Engine) -> None:
    with sqla_watch.scope("good") as scope:
        scope.budget = work(engine)
    assert found(scope) == []


def test_without_a_budget_there_is_no_limit(engine: Engine) -> None:
    with sqla_watch.scope("free") as scope, engine.connect() as connection:
        connection.execute(text("SELECT id FROM orders")).all()
    assert found(scope) == []


def test_the_budget_of_the_outer_scope_is_not_the_inner_ones(engine: Engine) -> None:
    outer = sqla_watch.scope("outer", budget=Budget(max_statements=5))
    with outer, sqla_watch.scope("inner") as inner, engine.connect() as connection:
        for number in range(6):
            connection.execute(text(f"SELECT {number}"))
    assert [each for each in inner.findings if each.rule == "over-budget"] == []


def test_it_can_be_switched_off(engine: Engine, watch: Watch) -> None:
    watch.settings = Settings(profile="test", rules={"over-budget": "ignore"})
    with sqla_watch.scope("any", budget=Budget(max_statements=0)) as scope, engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    assert found(scope) == []
