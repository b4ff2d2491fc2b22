"""database-error: deadlocks, serialization failures and time-outs by SQLSTATE and line, on a real server."""

from __future__ import annotations

import threading

import pytest
from sqlalchemy import Engine, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError, ProgrammingError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

import sqla_watch
from sqla_watch.demo.models import Order
from tests.support import found, in_event_loop, line_of, only, place, watched_async_engine

pytestmark = [pytest.mark.usefixtures("watch"), pytest.mark.filterwarnings("ignore::sqla_watch.SqlaWatchWarning")]

lock = text("SELECT id FROM orders WHERE id = :id FOR UPDATE")


def test_a_deadlock_is_found_with_its_line(engine: Engine) -> None:
    ready = threading.Barrier(2)
    found_in: list[sqla_watch.Scope] = []

    def cross(first: int, second: int) -> None:
        with sqla_watch.scope("cross") as scope, engine.connect() as connection:
            connection.execute(text("SET LOCAL deadlock_timeout = '50ms'"))
            connection.execute(lock, {"id": first})
            ready.wait()
            try:
                connection.execute(lock, {"id": second})  # crosses
            except DBAPIError:
                found_in.append(scope)

    threads = [threading.Thread(target=cross, args=pair) for pair in ((1, 2), (2, 1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (scope,) = found_in
    finding = only(scope)
    assert (finding.rule, finding.target, finding.evidence["sqlstate"]) == ("database-error", "deadlock", "40P01")
    assert place(finding) == (__file__, line_of("crosses"))
    assert finding.severity == "high"


def serialization(engine: Engine, again: bool) -> sqla_watch.Scope:
    with sqla_watch.scope("serialization") as scope:
        for attempt in range(2 if again else 1):
            with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
                connection.execute(text("SELECT status FROM orders WHERE id = 5"))
                if attempt == 0:
                    with engine.begin() as other:
                        other.execute(text("UPDATE orders SET status = status WHERE id = 5"))
                try:
                    connection.execute(text("UPDATE orders SET status = status WHERE id = 5"))
                    connection.commit()
                except DBAPIError:
                    connection.rollback()
    return scope


def test_a_serialization_failure_is_found_unless_it_was_tried_again(engine: Engine) -> None:
    finding = only(serialization(engine, again=False))
    assert (finding.target, finding.evidence["sqlstate"]) == ("serialization failure", "40001")
    assert found(serialization(engine, again=True)) == []


def test_a_lock_that_is_not_to_be_had_is_found(engine: Engine) -> None:
    with engine.connect() as holder, sqla_watch.scope("lock") as scope, Session(engine) as session:
        holder.execute(lock, {"id": 7})
        with pytest.raises(DBAPIError):
            session.scalars(select(Order).where(Order.id == 7).with_for_update(nowait=True)).all()
    finding = only(scope)
    assert (finding.target, finding.evidence["sqlstate"]) == ("lock not available", "55P03")


@in_event_loop
async def test_async_a_statement_that_ran_out_of_time_is_found(shop_url: str) -> None:
    async with watched_async_engine(shop_url) as engine:
        with sqla_watch.scope("time-out") as scope:
            async with AsyncSession(engine) as session:
                await session.execute(text("SET LOCAL statement_timeout = 50"))
                with pytest.raises(DBAPIError):
                    await session.execute(text("SELECT pg_sleep(2)"))  # runs out of time
    finding = only(scope)
    assert (finding.target, finding.evidence["sqlstate"]) == ("statement cancelled", "57014")
    assert place(finding) == (__file__, line_of("runs out of time"))


def test_a_commit_that_fails_is_found_at_its_line(engine: Engine) -> None:
    with sqla_watch.scope("commit") as scope, engine.connect() as one, engine.connect() as two:
        for connection in (one, two):
            connection.execution_options(isolation_level="SERIALIZABLE")
            connection.execute(text("SELECT sum(quantity) FROM items WHERE order_id IN (1, 2)")).all()
        one.execute(text("UPDATE items SET quantity = quantity WHERE order_id = 1"))
        two.execute(text("UPDATE items SET quantity = quantity WHERE order_id = 2"))
        one.commit()
        with pytest.raises(DBAPIError):
            two.commit()  # comes second
    finding = only(scope)
    assert (finding.target, finding.evidence["sqlstate"]) == ("serialization failure", "40001")
    assert place(finding) == (__file__, line_of("comes second"))
    assert "at the COMMIT" in finding.message


def test_the_applications_own_errors_are_fine(engine: Engine) -> None:
    with sqla_watch.scope("own") as scope, engine.connect() as connection:
        with pytest.raises(ProgrammingError):
            connection.execute(text("SELECT nothing FROM nowhere"))
        connection.rollback()
        with pytest.raises(IntegrityError):
            connection.execute(text("INSERT INTO rates (country, percent) VALUES ('CH', 1)"))
    assert scope.errors == 2
    assert found(scope) == []
