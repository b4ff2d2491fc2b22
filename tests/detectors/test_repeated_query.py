"""repeated-query: a question the transaction has the answer to already is found; asking anew for a reason is not."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

import pytest
from sqlalchemy import Engine, func, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

import sqla_watch
from sqla_watch import RepeatedQueryWarning, Settings, Watch
from sqla_watch.demo.models import Customer, Item, Order, Rate
from tests.support import found, in_event_loop, line_of, only, place, watched_async_engine

pytestmark = [
    pytest.mark.usefixtures("watch"),
    pytest.mark.filterwarnings("ignore::sqla_watch.SqlaWatchWarning"),
]

rates = Rate.__table__
both_drivers = pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
swiss_rate = select(Rate.percent).where(Rate.country == "CH")


def test_the_same_question_in_a_loop_is_found(engine: Engine) -> None:
    with sqla_watch.scope("loop") as scope, engine.connect() as connection:
        for _ in range(4):
            connection.execute(select(rates.c.percent).where(rates.c.country == "CH")).one()  # core loop
    finding = only(scope)
    assert finding.rule == "repeated-query"
    assert finding.target == "SELECT rates"
    assert finding.severity == "medium"
    assert place(finding) == (__file__, line_of("core loop"))
    assert finding.evidence["statements"] == 4
    assert finding.evidence["call_sites"] == 1
    assert finding.evidence["rows"] == 4
    assert 0 < finding.evidence["saved_seconds"] < 5  # type: ignore[operator]
    assert finding.suggestion.startswith("Keep the first answer")
    assert finding.related == ()


def price_with_tax(session: Session, price: Decimal) -> Decimal:
    percent = session.scalar(swiss_rate) or Decimal(0)  # for the price
    return price * (1 + percent / 100)


def tax_line(session: Session) -> str:
    return f"incl. {session.scalar(swiss_rate)} % tax"  # for the text


def test_the_same_question_from_several_functions_is_found_with_their_lines(engine: Engine) -> None:
    with sqla_watch.scope("functions") as scope, Session(engine) as session:
        price_with_tax(session, Decimal(100))
        price_with_tax(session, Decimal(200))
        tax_line(session)
    finding = only(scope)
    assert place(finding) == (__file__, line_of("for the price"))
    assert [(related.role, related.location.line) for related in finding.related] == [
        ("also asked", line_of("for the text"))
    ]
    assert finding.evidence["statements"] == 3
    assert finding.evidence["call_sites"] == 2


def test_getting_an_object_that_nobody_keeps_asks_again(engine: Engine) -> None:
    """The identity map holds objects weakly: without a reference the next `get` is a query."""
    with sqla_watch.scope("get") as scope, Session(engine) as session:
        for _ in range(3):
            session.get(Customer, 1).name  # type: ignore[union-attr]  # get loop
    finding = only(scope)
    assert finding.rule == "repeated-query"
    assert place(finding) == (__file__, line_of("get loop"))


@both_drivers
@in_event_loop
async def test_async_the_same_question_in_a_loop_is_found(shop_url: str, driver: str) -> None:
    async with watched_async_engine(shop_url, driver) as engine:
        with sqla_watch.scope("async") as scope:
            async with AsyncSession(engine) as session:
                for _ in range(3):
                    await session.scalar(swiss_rate)  # async loop
            async with engine.connect() as connection:
                for _ in range(3):
                    await connection.execute(select(rates))  # async core loop
    assert found(scope) == [("repeated-query", "SELECT rates"), ("repeated-query", "SELECT rates")]
    assert {place(finding) for finding in scope.findings} == {
        (__file__, line_of("async loop")),
        (__file__, line_of("async core loop")),
    }
    assert {finding.evidence["statements"] for finding in scope.findings} == {3}


def test_a_question_without_values_and_one_with_pasted_values_count_the_same(engine: Engine) -> None:
    with sqla_watch.scope("text") as scope, engine.connect() as connection:
        for _ in range(3):
            connection.execute(text("SELECT count(*) FROM rates"))
        for _ in range(3):
            connection.exec_driver_sql("SELECT percent FROM rates WHERE country = 'CH'")
    assert found(scope) == [("repeated-query", "SELECT rates"), ("repeated-query", "SELECT rates")]
    assert {finding.statement for finding in scope.findings} == {
        "SELECT count(*) FROM rates",
        "SELECT percent FROM rates WHERE country = ?",
    }


def test_lists_are_compared_by_what_is_in_them(engine: Engine) -> None:
    query = text("SELECT name FROM customers WHERE id = ANY(:numbers)")
    with sqla_watch.scope("lists") as scope, engine.connect() as connection:
        for _ in range(3):
            connection.execute(query, {"numbers": [1, 2]})
        connection.execute(query, {"numbers": [3, 4]})
    assert only(scope).evidence["statements"] == 3


def test_a_savepoint_does_not_end_the_transaction(engine: Engine) -> None:
    with sqla_watch.scope("savepoints") as scope, Session(engine) as session:
        for _ in range(3):
            with session.begin_nested():
                session.scalar(swiss_rate)
    assert found(scope) == [("repeated-query", "SELECT rates")]


def test_a_write_to_another_table_does_not_excuse_asking_again(engine: Engine) -> None:
    with sqla_watch.scope("other table") as scope, Session(engine) as session:
        for number in range(1, 4):
            session.scalar(swiss_rate)
            session.execute(update(Order).where(Order.id == number).values(status="paid"))
        session.rollback()
    assert ("repeated-query", "SELECT rates") in found(scope)


def test_without_any_scope_the_warning_comes_when_the_connection_goes_back(engine: Engine) -> None:
    with Session(engine) as session:
        for _ in range(3):
            session.scalar(swiss_rate)  # no scope
        with pytest.warns(RepeatedQueryWarning) as warned:
            session.close()
    (warning,) = warned
    assert (warning.filename, warning.lineno) == (__file__, line_of("no scope"))


# Good code


def test_twice_is_fine(engine: Engine) -> None:
    with sqla_watch.scope("twice") as scope, Session(engine) as session:
        for _ in range(2):
            session.scalar(swiss_rate)
    assert found(scope) == []


def test_the_kept_answer_is_fine(engine: Engine) -> None:
    with sqla_watch.scope("repaired") as scope, Session(engine) as session:
        rate = session.scalar(swiss_rate)
        assert [rate for _ in range(4)] == [Decimal(21)] * 4
    assert found(scope) == []
    assert scope.statements == 1


def test_an_object_that_is_kept_is_not_asked_for_again(engine: Engine) -> None:
    with sqla_watch.scope("identity map") as scope, Session(engine) as session:
        kept = session.get(Customer, 1)
        for _ in range(5):
            assert session.get(Customer, 1) is kept
    assert scope.statements == 1
    assert found(scope) == []


def test_asking_again_in_a_new_transaction_is_fine(engine: Engine) -> None:
    with sqla_watch.scope("transactions") as scope, Session(engine) as session:
        for _ in range(4):
            session.scalar(swiss_rate)
            session.commit()
    assert found(scope) == []


def test_the_same_question_in_two_sessions_is_fine(engine: Engine) -> None:
    with sqla_watch.scope("sessions") as scope, Session(engine) as first, Session(engine) as second:
        for session in (first, second, first, second):
            session.scalar(swiss_rate)
    assert found(scope) == []


def test_the_same_text_with_other_values_is_another_question(engine: Engine) -> None:
    with sqla_watch.scope("values") as scope, Session(engine) as session:
        for country in ("AT", "CH", "DE", "FR"):
            session.scalar(select(Rate.percent).where(Rate.country == country))
    assert found(scope) == []


def test_asking_again_after_a_write_to_the_table_is_fine(engine: Engine) -> None:
    with sqla_watch.scope("core write") as scope, engine.connect() as connection:
        for _ in range(4):
            connection.execute(select(func.sum(rates.c.percent)))
            connection.execute(update(rates).values(percent=rates.c.percent + 1))
        connection.rollback()
    assert found(scope) == []


def test_asking_again_after_a_flush_to_the_table_is_fine(engine: Engine) -> None:
    with sqla_watch.scope("flush") as scope, Session(engine) as session:
        rate = session.get_one(Rate, "CH")
        for _ in range(4):
            rate.percent += 1
            session.flush()
            session.scalar(select(func.sum(Rate.percent)))
        session.rollback()
    assert found(scope) == []


def test_asking_again_after_a_write_to_one_of_its_tables_is_fine(engine: Engine) -> None:
    query = select(func.count()).select_from(Item).join(Order).where(Order.status == "new")
    with sqla_watch.scope("join") as scope, Session(engine) as session:
        for number in range(1, 5):
            session.scalar(query)
            session.execute(update(Order).where(Order.id == number).values(status="paid"))
        session.rollback()
    assert found(scope) == []


@pytest.fixture
def queue(engine: Engine) -> Iterator[None]:
    """A table of jobs, with functions that take one from it."""
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE jobs (id int PRIMARY KEY, done bool NOT NULL DEFAULT false)"))
        connection.execute(text("INSERT INTO jobs SELECT generate_series(1, 20)"))
        connection.execute(
            text(
                "CREATE FUNCTION next_job() RETURNS SETOF jobs LANGUAGE sql AS "
                "'UPDATE jobs SET done = true WHERE id = (SELECT min(id) FROM jobs WHERE NOT done) RETURNING *'"
            )
        )
        connection.execute(
            text("CREATE PROCEDURE finish_one() LANGUAGE sql AS 'UPDATE jobs SET done = true WHERE id = 1'")
        )
    yield
    with engine.begin() as connection:
        connection.execute(text("DROP PROCEDURE finish_one; DROP FUNCTION next_job; DROP TABLE jobs"))


@pytest.mark.usefixtures("queue")
def test_a_common_table_that_writes_is_no_question(engine: Engine) -> None:
    take_one = text(
        "WITH taken AS (UPDATE jobs SET done = true WHERE id = (SELECT min(id) FROM jobs WHERE NOT done) RETURNING id) "
        "SELECT id FROM taken"
    )
    with sqla_watch.scope("take") as scope, engine.begin() as connection:
        numbers = [connection.scalar(take_one) for _ in range(4)]
    assert numbers == [1, 2, 3, 4]
    assert found(scope) == []


@pytest.mark.usefixtures("queue")
def test_a_function_in_from_may_write_and_is_no_question(engine: Engine) -> None:
    with sqla_watch.scope("function") as scope, engine.begin() as connection:
        numbers = [connection.scalar(text("SELECT id FROM next_job()")) for _ in range(4)]
    assert numbers == [1, 2, 3, 4]
    assert found(scope) == []


@pytest.mark.usefixtures("queue")
@pytest.mark.parametrize(
    "writes",
    [
        "CALL finish_one()",
        "SELECT next_job()",
        "TRUNCATE jobs",
        "DO 'BEGIN PERFORM next_job(); END'",
        "WITH taken AS (DELETE FROM jobs WHERE id = 20 RETURNING id) SELECT id FROM taken",
        "WITH new AS (SELECT 1) INSERT INTO jobs SELECT 99 + count(*) FROM jobs",
        "MERGE INTO jobs USING (SELECT 1 AS id) new ON jobs.id = new.id WHEN MATCHED THEN UPDATE SET done = true",
    ],
)
def test_asking_again_after_whatever_may_have_written_is_fine(engine: Engine, writes: str) -> None:
    with sqla_watch.scope("progress") as scope, engine.connect() as connection:
        for _ in range(4):
            connection.execute(text("SELECT count(*) FROM jobs WHERE NOT done"))
            connection.execute(text(writes))
        connection.rollback()
    assert found(scope) == []


def test_asking_again_after_a_write_was_taken_back_is_fine(engine: Engine) -> None:
    """ROLLBACK TO SAVEPOINT changes the answer as the write before it did."""
    counts = []
    with sqla_watch.scope("taken back") as scope, engine.connect() as connection:
        for country in ("XA", "XB"):
            savepoint = connection.begin_nested()
            connection.execute(insert(rates), {"country": country, "percent": 1})
            counts.append(connection.scalar(select(func.count()).select_from(rates)))
            savepoint.rollback()
            counts.append(connection.scalar(select(func.count()).select_from(rates)))
        counts.append(connection.scalar(select(func.count()).select_from(rates)))
    assert counts == [6, 5, 6, 5, 5]
    assert found(scope) == []


def test_locking_reads_are_no_questions(engine: Engine) -> None:
    with sqla_watch.scope("locks") as scope, Session(engine) as session:
        for _ in range(4):
            session.execute(select(Order.id).where(Order.id == 1).with_for_update())
        for _ in range(4):
            session.execute(select(Order.id).where(Order.id == 1).with_for_update(read=True, key_share=True))
    assert found(scope) == []


def test_a_write_asks_nothing(engine: Engine) -> None:
    with sqla_watch.scope("writes") as scope, engine.connect() as connection:
        for _ in range(4):
            connection.execute(update(rates).values(percent=20).returning(rates.c.percent))
            connection.execute(insert(rates).from_select(["country", "percent"], select(rates).where(text("false"))))
        connection.rollback()
    assert found(scope) == []


def test_another_threshold_can_be_set(engine: Engine, watch: Watch) -> None:
    watch.settings = Settings(profile="test", rules={"repeated-query": {"min_repeats": 2}})
    with sqla_watch.scope("twice") as scope, Session(engine) as session:
        for _ in range(2):
            session.scalar(swiss_rate)
    assert only(scope).evidence["statements"] == 2


def test_production_is_silent_about_four_and_about_fast_ones(engine: Engine, watch: Watch) -> None:
    slow = select(rates.c.country, func.pg_sleep(0.01)).where(rates.c.country == "CH")
    for production, repeats, expected in (
        (Settings(profile="production"), 4, []),
        (Settings(profile="production"), 5, [("repeated-query", "SELECT rates")]),
        (Settings(profile="production", rules={"repeated-query": {"min_seconds": 5.0}}), 5, []),
    ):
        watch.settings = production
        with sqla_watch.scope("production") as scope, engine.connect() as connection:
            for _ in range(repeats):
                connection.execute(slow)
        assert found(scope) == expected
