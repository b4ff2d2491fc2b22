"""A scope has the numbers and findings of what ran in it, also nested, decorated, implicit, shared and late."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import threading
import tracemalloc
import warnings
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from sqlalchemy import Engine, select, text
from sqlalchemy.orm import Session

import sqla_watch
from sqla_watch import FindingRaised, NPlusOneWarning, Scope, Settings, Watch
from sqla_watch.demo.models import Customer, Order
from sqla_watch.scopes import DIGEST, close_scope, open_scope

pytestmark = [pytest.mark.usefixtures("watch"), pytest.mark.filterwarnings("ignore::sqla_watch.SqlaWatchWarning")]


def one(engine: Engine) -> None:
    with engine.connect() as connection:
        connection.execute(text("SELECT id FROM orders ORDER BY id LIMIT 3"))


def n_plus_one(engine: Engine) -> None:
    with Session(engine) as session:
        for order in session.scalars(select(Order).order_by(Order.id).limit(4)):
            order.customer.name


@contextmanager
def reported() -> Iterator[list[Scope]]:
    """The scopes that subscribers are told of."""
    seen: list[Scope] = []
    (watch,) = (each for each in sqla_watch.registry.watches if isinstance(each, Watch))
    watch.reporters.append(seen.append)
    yield seen


def test_a_scope_has_the_numbers_of_what_ran_in_it(engine: Engine) -> None:
    with sqla_watch.scope("numbers") as scope, engine.begin() as connection:
        connection.execute(text("SELECT id FROM orders ORDER BY id LIMIT 3"))
        connection.execute(text("CREATE TEMPORARY TABLE t (a integer) ON COMMIT DROP"))
        connection.execute(text("INSERT INTO t VALUES (1), (2)"))
    assert (scope.statements, scope.rows, scope.errors, scope.connections, scope.transactions) == (3, 3, 0, 1, 1)
    assert 0 < scope.database_seconds < scope.duration_seconds
    assert 0 < scope.commit_seconds < scope.duration_seconds
    assert scope.wait_seconds == 0
    assert scope.findings == []
    assert repr(scope) == "<Scope 'numbers' (block, closed): 3 statements>"


def test_numbers_can_be_read_while_it_is_open(engine: Engine) -> None:
    with sqla_watch.scope("open") as scope:
        one(engine)
        assert scope.statements == 1
        n_plus_one(engine)
        assert scope.statements == 6
        assert [finding.rule for finding in scope.findings] == ["n-plus-one"]
        assert sqla_watch.current_scope() is scope
    assert [finding.rule for finding in scope.findings] == ["n-plus-one"]
    assert sqla_watch.current_scope() is None


def test_the_inner_numbers_and_findings_count_in_the_outer_one_but_are_told_once(engine: Engine) -> None:
    with warnings.catch_warnings(record=True) as caught, sqla_watch.scope("outer") as outer:
        warnings.simplefilter("always")
        one(engine)
        with sqla_watch.scope("inner") as inner:
            n_plus_one(engine)
    assert (inner.statements, outer.statements) == (5, 6)
    assert [finding.target for finding in outer.findings] == ["Order.customer"]
    assert inner.findings == outer.findings
    assert len([each for each in caught if issubclass(each.category, NPlusOneWarning)]) == 1


def test_what_was_found_two_scopes_deep_is_found_in_each_of_them(engine: Engine) -> None:
    with (
        sqla_watch.scope("outermost") as outermost,
        sqla_watch.scope("outer") as outer,
        sqla_watch.scope("inner") as inner,
    ):
        n_plus_one(engine)
    assert [finding.target for finding in inner.findings] == ["Order.customer"]
    assert inner.findings == outer.findings == outermost.findings


def test_the_sqlite_and_postgresql_numbers_of_a_dictionary(engine: Engine) -> None:
    with sqla_watch.scope("report") as scope:
        n_plus_one(engine)
    report = scope.to_dict()
    assert report["name"] == "report"
    assert (report["kind"], report["statements"], report["rows"]) == ("block", 5, 8)
    assert report["database_seconds"] > 0
    (finding,) = report["findings"]
    assert finding["location"]["function"] == "n_plus_one"
    assert finding["evidence"]["distinct_parents"] == 4


def test_a_decorated_function_has_a_scope_for_each_call(engine: Engine) -> None:
    @sqla_watch.scope("decorated")
    def work(number: int) -> int:
        one(engine)
        return number

    with reported() as scopes:
        assert [work(1), work(2)] == [1, 2]
    assert [(scope.name, scope.statements) for scope in scopes] == [("decorated", 1)] * 2
    assert work.__name__ == "work"


def test_coroutines_and_generators_can_be_decorated_too(engine: Engine) -> None:
    @sqla_watch.scope("coroutine")
    async def coroutine() -> str:
        await asyncio.sleep(0)
        one(engine)
        return "done"

    @sqla_watch.scope("generator")
    def generator() -> Iterator[int]:
        one(engine)
        yield 1
        one(engine)

    @sqla_watch.scope("async generator")
    async def async_generator() -> AsyncIterator[int]:
        one(engine)
        yield 1
        one(engine)

    async def story() -> list[int]:
        assert await coroutine() == "done"
        return [value async for value in async_generator()]

    with reported() as scopes:
        assert list(generator()) == [1]
        assert asyncio.run(story()) == [1]
    numbers = {scope.name: scope.statements for scope in scopes}
    assert numbers == {"generator": 2, "coroutine": 1, "async generator": 2}


@pytest.mark.parametrize("wrong", [3, None, b"name"])
def test_a_scope_without_a_name_is_a_type_error(wrong: object) -> None:
    with pytest.raises(TypeError, match="takes a name"):
        sqla_watch.scope(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="decorates a function"):
        sqla_watch.scope("x")(wrong)


def test_without_a_scope_a_connection_has_one_from_checkout_to_return(engine: Engine) -> None:
    with reported() as scopes, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        n_plus_one(engine)
        one(engine)
    assert [(scope.kind, scope.statements, scope.connections, scope.transactions) for scope in scopes] == [
        ("implicit", 5, 1, 1),
        ("implicit", 1, 1, 1),
    ]
    (warning,) = caught
    assert warning.category is NPlusOneWarning
    assert warning.filename == __file__
    assert scopes[0].name.startswith("connection of n_plus_one (test_scopes.py:")


def test_implicit_scopes_can_be_switched_off(engine: Engine, watch: Watch) -> None:
    watch.settings = Settings(implicit_scopes=False)
    with reported() as scopes:
        n_plus_one(engine)
    assert scopes == []


def test_tasks_share_the_scope_they_were_made_in_and_others_have_their_own(engine: Engine) -> None:
    async def request(name: str, inner: int) -> Scope:
        with sqla_watch.scope(name) as scope:
            await asyncio.gather(*(asyncio.to_thread(one, engine) for _ in range(inner)))
        return scope

    async def story() -> list[Scope]:
        return list(await asyncio.gather(*(request(f"request {n}", n) for n in range(1, 5))))

    assert [scope.statements for scope in asyncio.run(story())] == [1, 2, 3, 4]


def test_a_thread_is_in_the_scope_if_the_context_is_handed_on(engine: Engine) -> None:
    with sqla_watch.scope("threads") as scope, ThreadPoolExecutor(4) as executor:
        for future in [executor.submit(contextvars.copy_context().run, one, engine) for _ in range(20)]:
            future.result()
    assert scope.statements == 20


def test_what_runs_after_its_scope_was_closed_is_not_kept_by_it(engine: Engine) -> None:
    async def story() -> tuple[Scope, int]:
        with sqla_watch.scope("request") as scope:
            closed = asyncio.Event()

            async def background() -> None:
                await closed.wait()
                one(engine)

            task = asyncio.create_task(background())
        closed.set()
        await task
        return scope, len(scope.pending)

    with reported() as scopes:
        scope, pending = asyncio.run(story())
    assert (scope.statements, pending) == (0, 0)
    assert [each.kind for each in scopes] == ["block", "implicit"]


def test_a_scope_can_be_closed_in_another_context(engine: Engine) -> None:
    context = contextvars.copy_context()
    scope = context.run(open_scope, "elsewhere", "request")
    context.run(one, engine)
    close_scope(scope)
    assert scope.statements == 1
    assert sqla_watch.current_scope() is None


def test_the_action_raise_raises_in_the_line_that_made_it_a_finding(engine: Engine, watch: Watch) -> None:
    watch.settings = Settings(profile="test", rules={"n-plus-one": "raise"})
    with pytest.raises(FindingRaised) as error, sqla_watch.scope("raise") as scope:
        n_plus_one(engine)
    assert error.value.finding.target == "Order.customer"
    assert error.value.finding.evidence["distinct_parents"] == 2
    assert any(entry.name == "n_plus_one" for entry in error.traceback)
    assert scope.closed
    one(engine)


def test_what_ends_with_the_scope_raises_there(engine: Engine, watch: Watch) -> None:
    watch.settings = Settings(profile="test", rules={"long-transaction": {"action": "raise", "min_seconds": 0.0}})
    with pytest.raises(FindingRaised, match="a transaction stayed open"), sqla_watch.scope("raise"):
        one(engine)


def test_the_blocks_own_exception_always_wins(engine: Engine, watch: Watch) -> None:
    watch.settings = Settings(profile="test", rules={"long-transaction": {"action": "raise", "min_seconds": 0.0}})
    with pytest.raises(KeyError), sqla_watch.scope("raise"):
        one(engine)
        raise KeyError
    watch.settings = Settings(profile="test")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(KeyError), sqla_watch.scope("warn"):
            n_plus_one(engine)
            raise KeyError
        with pytest.raises(NPlusOneWarning), sqla_watch.scope("warn"):
            n_plus_one(engine)


def test_a_commit_never_fails_because_of_a_finding(
    engine: Engine, watch: Watch, caplog: pytest.LogCaptureFixture
) -> None:
    """An implicit scope ends inside of SQLAlchemy: what would be raised there is logged."""
    watch.settings = Settings(profile="test", rules={"long-transaction": {"action": "raise", "min_seconds": 0.0}})
    with caplog.at_level(logging.WARNING, "sqla_watch"), warnings.catch_warnings():
        warnings.simplefilter("error")
        with engine.begin() as connection:
            connection.execute(text("SELECT id FROM orders LIMIT 1"))
    assert [record.finding.rule for record in caplog.records] == ["long-transaction"]  # type: ignore[attr-defined]


@pytest.mark.faults
def test_a_reporter_that_fails_is_said_and_does_no_harm(
    engine: Engine, watch: Watch, caplog: pytest.LogCaptureFixture
) -> None:
    watch.reporters.append(lambda scope: 1 / 0)
    with sqla_watch.scope("reported") as scope:
        one(engine)
    assert scope.statements == 1
    assert [record.message for record in caplog.records] == ["sqla_watch: a reporter failed"]


def test_a_transaction_without_any_line_of_the_users_counts(engine: Engine) -> None:
    with sqla_watch.scope("elsewhere") as scope, engine.connect() as connection:
        run = contextvars.copy_context().run
        thread = threading.Thread(target=run, args=(connection.exec_driver_sql, "SELECT 1"))
        thread.start()
        thread.join()
        connection.commit()
    assert (scope.statements, scope.transactions) == (1, 1)


def test_two_threads_may_write_while_a_third_reads(engine: Engine) -> None:
    stop = threading.Event()
    numbers: list[int] = []

    def read(scope: Scope) -> None:
        while not stop.is_set():
            numbers.append(scope.statements)

    def write(scope: Scope) -> None:
        with engine.connect() as connection:
            for number in range(DIGEST):
                connection.execute(text("SELECT id FROM orders WHERE id = :id"), {"id": number})

    with sqla_watch.scope("threads") as scope:
        reader = threading.Thread(target=read, args=[scope])
        writers = [threading.Thread(target=contextvars.copy_context().run, args=[write, scope]) for _ in range(2)]
        for thread in (reader, *writers):
            thread.start()
        for thread in writers:
            thread.join()
        stop.set()
        reader.join()
    assert scope.statements == 2 * DIGEST
    assert numbers == sorted(numbers)


def test_a_large_scope_is_bounded_and_loses_no_number(engine: Engine) -> None:
    query = text("SELECT :number AS number FROM orders LIMIT 1")
    with engine.connect() as connection:
        connection.execute(query, {"number": "0"})
        with sqla_watch.scope("large") as scope:
            gc.collect()
            tracemalloc.start()
            for number in range(20_000):
                connection.execute(query, {"number": str(number)}).close()
            scope.digest()
            gc.collect()
            kept, _ = tracemalloc.get_traced_memory()
            tracemalloc.stop()
    assert scope.statements == 20_000
    assert kept < 10_000_000
    (finding,) = scope.findings
    assert finding.rule == "query-in-loop"
    assert finding.evidence["different_values"] == 20_000


def test_many_checkouts_of_one_line_are_one_group(engine: Engine) -> None:
    with sqla_watch.scope("checkouts") as scope:
        for _ in range(2_500):
            one(engine)
        assert [(group.count, group.checkouts) for group in scope.record.groups] == [(2_500, 2_500)]
    assert (scope.statements, scope.rows, scope.connections) == (2_500, 7_500, 2_500)
    assert scope.to_dict()["dropped"] == 0


def test_many_different_statements_are_bounded_and_what_is_dropped_is_counted(engine: Engine) -> None:
    with sqla_watch.scope("different") as scope, engine.connect() as connection:
        for number in range(2_500):
            connection.exec_driver_sql(f"SELECT id AS id_{number} FROM orders LIMIT 1")
        assert len(scope.record.groups) <= 2_000
    assert (scope.statements, scope.rows) == (2_500, 2_500)
    assert scope.to_dict()["dropped"] > 0


def test_nothing_of_the_application_is_kept(engine: Engine) -> None:
    with Session(engine) as session, sqla_watch.scope("kept"):
        customers = session.scalars(select(Customer).limit(3)).all()
        number = len(customers)
        session.expunge_all()
        del customers
        gc.collect()
        assert number == 3
        assert not [each for each in gc.get_objects() if type(each) is Customer]


def test_implicit_scopes_can_be_switched_on_again(engine: Engine, watch: Watch) -> None:
    watch.settings = Settings(implicit_scopes=False)
    n_plus_one(engine)
    watch.settings = Settings(profile="test")
    with reported() as scopes:
        n_plus_one(engine)
    assert [scope.kind for scope in scopes] == ["implicit"]
