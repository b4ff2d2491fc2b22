"""nested-checkout: who asks for a second connection while holding one is found with both lines; nobody else is."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, NullPool, StaticPool, create_engine, select, text
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

import sqla_watch
from sqla_watch import Finding, NestedCheckoutWarning, Scope, Settings, Watch
from sqla_watch.demo.models import Order
from tests.support import connection_held_elsewhere, found, in_event_loop, line_of, only, place, watched_async_engine

pytestmark = [pytest.mark.usefixtures("watch"), pytest.mark.filterwarnings("ignore::sqla_watch.SqlaWatchWarning")]

both_drivers = pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
HERE = Path(__file__).name


def request(name: str = "GET /") -> sqla_watch.scope:
    return sqla_watch.scope(name, kind="request")


def assert_nested(finding: Finding, *, first: int, second: int, limit: int = 15) -> None:
    assert finding.rule == "nested-checkout"
    assert place(finding) == (__file__, second)
    assert [(related.role, related.location.line) for related in finding.related] == [("first connection", first)]
    assert finding.message.startswith(f"asked for a second connection while holding one (taken at {HERE}:{first})")
    assert finding.message.endswith(f": {limit} of these at once, and none can go on")


@pytest.fixture
def another(shop_url: str) -> Iterator[Callable[..., Engine]]:
    """Makes watched engines on the same database, each with a pool of its own."""
    engines: list[Engine] = []

    def make(**options: Any) -> Engine:
        engines.append(create_engine(shop_url, **options))
        sqla_watch.install(engines[-1], settings=Settings(profile="test"))
        return engines[-1]

    yield make
    for each in engines:
        each.dispose()


def use(engine: Engine) -> None:
    with engine.connect() as connection:
        connection.execute(select(Order.id).limit(1))


def test_a_session_inside_of_a_session_is_found(engine: Engine) -> None:
    with request() as scope, Session(engine) as session:
        session.get(Order, 1)  # first of sessions
        with Session(engine) as audit:
            audit.get(Order, 2)  # second of sessions
        session.commit()
    finding = only(scope)
    assert_nested(finding, first=line_of("first of sessions"), second=line_of("second of sessions"))
    assert finding.severity == "medium"
    assert finding.evidence == {
        "nested": 1,
        "wait_seconds": 0.0,
        "timeouts": 0,
        "pool_size": 5,
        "max_overflow": 10,
        "holders": 0,
        "holders_in_transaction": 0,
        "holders_working": 0,
        "holders_left": 0,
    }
    assert "Hand the open session or connection on" in finding.suggestion


def test_a_connection_inside_of_a_session_is_found(engine: Engine) -> None:
    with request() as scope, Session(engine) as session:
        session.get(Order, 1)  # first, a session
        with engine.begin() as connection:  # second, a connection
            connection.execute(select(Order.id).limit(1))
    assert_nested(only(scope), first=line_of("first, a session"), second=line_of("second, a connection"))


def test_a_raw_connection_counts_as_any_other(engine: Engine) -> None:
    with request() as scope, engine.connect():  # first, before a raw one
        raw = engine.raw_connection()  # second, a raw one
        raw.close()
    assert_nested(only(scope), first=line_of("first, before a raw one"), second=line_of("second, a raw one"))


def test_a_view_of_the_engine_has_the_same_pool(engine: Engine) -> None:
    with request() as scope, Session(engine) as session:
        session.get(Order, 1)  # first, of the engine
        alone = engine.execution_options(isolation_level="AUTOCOMMIT")
        with alone.connect() as connection:  # second, of a view
            connection.execute(select(Order.id).limit(1))
    assert_nested(only(scope), first=line_of("first, of the engine"), second=line_of("second, of a view"))


def test_a_helper_three_functions_deep_is_found_at_its_own_line(engine: Engine) -> None:
    def rate(country: str) -> None:
        with Session(engine) as session:
            session.get(Order, 2)  # second, in a helper

    def price() -> None:
        rate("CH")

    with request() as scope, Session(engine) as session:
        session.get(Order, 1)  # first, around a helper
        price()
    assert_nested(only(scope), first=line_of("first, around a helper"), second=line_of("second, in a helper"))
    assert only(scope).target == "rate"


def test_a_third_connection_is_told_with_the_one_around_it(engine: Engine) -> None:
    with request() as scope:
        first = engine.connect()  # first of three
        second = engine.connect()  # second of three
        engine.connect().close()  # third of three
        second.close()
        first.close()
    assert sorted((place(finding)[1], finding.related[0].location.line) for finding in scope.findings) == [
        (line_of("second of three"), line_of("first of three")),
        (line_of("third of three"), line_of("second of three")),
    ]


def test_the_same_lines_several_times_are_one_finding(engine: Engine) -> None:
    with request() as scope:
        for _ in range(3):
            with engine.connect(), engine.connect():
                pass
    assert only(scope).evidence["nested"] == 3


def test_a_second_one_that_has_to_wait_is_grave(another: Callable[..., Engine]) -> None:
    pair = another(pool_size=2, max_overflow=0)
    with connection_held_elsewhere(pair, 0.3), request() as scope, pair.connect(), pair.connect():
        pass
    finding = only(scope)
    assert finding.rule == "nested-checkout"
    assert finding.severity == "high"
    assert 0.1 < finding.evidence["wait_seconds"] < 1  # type: ignore[operator]
    assert ", waited 0." in finding.message
    assert "got none" not in finding.message
    assert finding.evidence["timeouts"] == 0


def test_a_second_one_that_is_not_to_be_had_is_told_instead_of_the_time_out(another: Callable[..., Engine]) -> None:
    one = another(pool_size=1, max_overflow=0, pool_timeout=0.2)
    with request() as scope, one.connect(), pytest.raises(PoolTimeout):  # first, the only one
        one.connect()  # second, not to be had
    finding = only(scope)
    assert_nested(finding, first=line_of("first, the only one"), second=line_of("second, not to be had"), limit=1)
    assert f", waited {finding.evidence['wait_seconds']:.1f} s for it and got none: " in finding.message
    assert finding.evidence["timeouts"] == 1


def test_without_any_scope_it_is_found_where_it_had_to_wait(another: Callable[..., Engine]) -> None:
    one = another(pool_size=1, max_overflow=0, pool_timeout=0.1)
    warns = pytest.warns(NestedCheckoutWarning, match="got none")
    with one.connect(), warns as warned, pytest.raises(PoolTimeout):
        one.connect()  # without a scope
    (warning,) = warned
    assert (warning.filename, warning.lineno) == (__file__, line_of("without a scope"))


def test_without_any_scope_it_is_found_where_others_have_connections(engine: Engine) -> None:
    with connection_held_elsewhere(engine, 0.2), engine.connect():
        inner = engine.connect()  # beside others
        inner.execute(select(Order.id).limit(1))
        with pytest.warns(NestedCheckoutWarning) as warned:
            inner.close()
    (warning,) = warned
    assert (warning.filename, warning.lineno) == (__file__, line_of("beside others"))


@pytest.mark.parametrize("kind", ["request", "task", "job"])
def test_it_is_found_in_every_unit_of_work(engine: Engine, kind: str) -> None:
    with sqla_watch.scope("unit", kind=kind) as scope, sqla_watch.scope("inside"), engine.connect(), engine.connect():
        pass
    assert found(scope) == [("nested-checkout", "test_it_is_found_in_every_unit_of_work")]


@both_drivers
@in_event_loop
async def test_async_a_session_inside_of_a_session_is_found(shop_url: str, driver: str) -> None:
    async with watched_async_engine(shop_url, driver) as engine:
        with request() as scope:
            async with AsyncSession(engine) as session:
                await session.get(Order, 1)  # first of a task
                async with AsyncSession(engine) as audit:
                    await audit.get(Order, 2)  # second of a task
    assert_nested(only(scope), first=line_of("first of a task"), second=line_of("second of a task"))


@both_drivers
@in_event_loop
async def test_async_a_connection_inside_of_a_connection_is_found(shop_url: str, driver: str) -> None:
    async with watched_async_engine(shop_url, driver) as engine:
        with request() as scope:
            first_connection = await engine.connect()  # first connection of a task
            async with engine.begin() as connection:  # second connection of a task
                await connection.execute(select(Order.id).limit(1))
            await first_connection.close()
    first, second = line_of("first connection of a task"), line_of("second connection of a task")
    assert_nested(only(scope), first=first, second=second)


@both_drivers
@in_event_loop
async def test_async_what_a_task_gathers_while_it_has_one_is_found(shop_url: str, driver: str) -> None:
    async with watched_async_engine(shop_url, driver) as engine:

        async def price(number: int) -> None:
            async with AsyncSession(engine) as session:
                await session.get(Order, number)  # second, gathered

        with request() as scope:
            async with AsyncSession(engine) as session:
                await session.get(Order, 1)  # first, of who gathers
                await asyncio.gather(*(price(number) for number in range(1, 4)))
    (finding,) = [finding for finding in scope.findings if finding.rule == "nested-checkout"]
    assert_nested(finding, first=line_of("first, of who gathers"), second=line_of("second, gathered"))
    assert finding.evidence["nested"] == 3


@both_drivers
@in_event_loop
async def test_async_without_any_scope_it_is_found_where_it_had_to_wait(shop_url: str, driver: str) -> None:
    async with watched_async_engine(shop_url, driver, pool_size=1, max_overflow=0, pool_timeout=0.1) as engine:
        connection = await engine.connect()
        with pytest.warns(NestedCheckoutWarning) as warned, pytest.raises(PoolTimeout):
            await engine.connect()  # without a scope in a task
        await connection.close()
    (warning,) = warned
    assert (warning.filename, warning.lineno) == (__file__, line_of("without a scope in a task"))


# Good code


def test_one_connection_after_the_other_is_fine(engine: Engine) -> None:
    with request() as scope:
        for _ in range(3):
            use(engine)
    assert scope.connections == 3
    assert found(scope) == []


def test_a_session_that_has_committed_holds_nothing(engine: Engine) -> None:
    with request() as scope, Session(engine) as session:
        session.get(Order, 1)
        session.commit()
        use(engine)
        session.get(Order, 1)
    assert scope.connections == 3
    assert found(scope) == []


def test_a_session_that_is_open_and_has_sent_nothing_holds_nothing(engine: Engine) -> None:
    with request() as scope, Session(engine) as session:
        use(engine)
        session.get(Order, 1)
    assert scope.connections == 2
    assert found(scope) == []


def test_one_session_that_is_handed_down_is_fine(engine: Engine) -> None:
    def audit(session: Session) -> None:
        with session.begin_nested():
            session.get(Order, 2)
        session.connection().execute(select(Order.id).limit(1))
        Session(session.connection()).get(Order, 3)

    with request() as scope, Session(engine) as session:
        session.get(Order, 1)
        audit(session)
        session.commit()
    assert scope.connections == 1
    assert [rule for rule, _ in found(scope)] == []


def test_another_engine_has_a_pool_of_its_own(engine: Engine, another: Callable[..., Engine]) -> None:
    reports = another()
    with request() as scope, Session(engine) as session:
        session.get(Order, 1)
        use(reports)
        session.get(Order, 2)
    assert scope.connections == 2
    assert found(scope) == []


@pytest.mark.parametrize("options", [{"poolclass": NullPool}, {"max_overflow": -1}], ids=["null pool", "unlimited"])
def test_a_pool_without_a_limit_cannot_deadlock(another: Callable[..., Engine], options: dict[str, Any]) -> None:
    unlimited = another(**options)
    with request() as scope, unlimited.connect(), unlimited.connect():
        pass
    assert scope.connections == 2
    assert found(scope) == []


def test_a_static_pool_has_one_for_all() -> None:
    engine = create_engine("sqlite://", poolclass=StaticPool)
    sqla_watch.install(engine, settings=Settings(profile="test"))
    with request() as scope, engine.connect() as one, engine.connect() as other:
        one.execute(text("SELECT 1"))
        other.execute(text("SELECT 1"))
    engine.dispose()
    assert "nested-checkout" not in [rule for rule, _ in found(scope)]
    assert scope.statements == 2


def test_a_script_that_reads_from_one_connection_and_writes_to_another_is_fine(engine: Engine) -> None:
    with sqla_watch.scope("nightly export") as scope:
        reader = engine.connect()
        rows = reader.execution_options(yield_per=10).execute(select(Order.id).limit(30))
        for (number,) in rows:
            with engine.begin() as writer:
                writer.execute(text("SELECT :number"), {"number": number})
        reader.close()
    assert scope.connections == 31
    assert "nested-checkout" not in [rule for rule, _ in found(scope)]


def test_a_program_without_any_scope_that_does_one_thing_at_a_time_is_fine(
    engine: Engine, recwarn: pytest.WarningsRecorder
) -> None:
    with engine.connect(), engine.connect():
        pass
    assert [warning for warning in recwarn if issubclass(warning.category, NestedCheckoutWarning)] == []


def test_a_connection_that_the_program_has_around_its_requests_is_not_the_requests(engine: Engine) -> None:
    """A leader's advisory lock: the program needs one more connection, however many requests there are."""
    scopes = []
    with engine.connect() as leader:
        leader.execute(text("SELECT pg_advisory_lock(4711)"))
        leader.commit()
        for _ in range(2):
            with request() as scope, Session(engine) as session:
                session.get(Order, 1)
            scopes.append(scope)
        leader.execute(text("SELECT pg_advisory_unlock(4711)"))
    assert [found(scope) for scope in scopes] == [[], []]


@both_drivers
@in_event_loop
async def test_async_a_connection_of_the_server_around_its_requests_is_not_theirs(shop_url: str, driver: str) -> None:
    """The main task listens for notifications, and starts a task for each request."""
    async with watched_async_engine(shop_url, driver) as engine:
        scopes: list[Scope] = []

        async def handle() -> None:
            with request() as scope:
                async with AsyncSession(engine) as session:
                    await session.get(Order, 1)
            scopes.append(scope)

        async with engine.connect() as listener:
            alone = await listener.execution_options(isolation_level="AUTOCOMMIT")
            await alone.execute(text("LISTEN orders"))
            async with asyncio.TaskGroup() as tasks:
                for _ in range(3):
                    tasks.create_task(handle())
    assert [found(scope) for scope in scopes] == [[], [], []]


def test_a_connection_of_the_tests_around_the_code_under_test_is_not_its_own(engine: Engine) -> None:
    """A fixture has a connection open to look at what the code under test does."""
    with engine.connect() as looking:
        looking.execute(select(Order.id).limit(1))
        with request() as scope:
            use(engine)
    assert found(scope) == []


@both_drivers
@in_event_loop
async def test_async_a_task_that_outlives_its_request_has_its_own(shop_url: str, driver: str) -> None:
    """It was started while the request had a connection, and asks for one when that is back."""
    async with watched_async_engine(shop_url, driver) as engine:
        told: list[Scope] = []
        sqla_watch.install(engine).reporters.append(told.append)
        returned = asyncio.Event()

        async def send_mail() -> None:
            await returned.wait()
            async with AsyncSession(engine) as session:
                await session.get(Order, 1)

        with request():
            async with AsyncSession(engine) as session:
                await session.get(Order, 1)
                mail = asyncio.create_task(send_mail())
        returned.set()
        await mail
    assert [found(scope) for scope in told] == [[], []]


def test_workers_that_share_no_request_are_fine(engine: Engine) -> None:
    """The main thread has one connection, its workers have one each: their threads know nothing of it."""
    with sqla_watch.scope("report") as scope, engine.connect() as connection:
        connection.execute(select(Order.id).limit(1))
        with ThreadPoolExecutor(2) as executor:
            list(executor.map(use, [engine] * 4))
    assert found(scope) == []


def test_connections_that_go_back_in_any_order_leave_nothing_behind(engine: Engine) -> None:
    with sqla_watch.scope("order"):
        first, second, third = engine.connect(), engine.connect(), engine.connect()
        second.close()
        first.close()
        third.close()
    with request() as scope:
        use(engine)
        fourth = engine.connect()
        fourth.close()
        use(engine)
    assert found(scope) == []


def test_a_connection_that_another_thread_returns_is_no_longer_held(engine: Engine) -> None:
    with request() as scope:
        connection = engine.connect()
        closer = threading.Thread(target=connection.close)
        closer.start()
        closer.join()
        use(engine)
    assert found(scope) == []


def test_a_generator_that_gives_its_connection_back_first_is_fine(engine: Engine) -> None:
    def numbers() -> Iterator[int]:
        with engine.connect() as connection:
            rows = connection.execute(select(Order.id).limit(3)).all()
        for (number,) in rows:
            yield number

    with request() as scope:
        for _ in numbers():
            time.sleep(0)
            use(engine)
    assert "nested-checkout" not in [rule for rule, _ in found(scope)]


# Settings and ignores


def test_a_block_around_the_inner_one_silences_it(engine: Engine) -> None:
    kept = sqla_watch.ignore("nested-checkout", reason="an audit log that stays")
    with request() as scope, engine.connect(), kept as ignore, engine.connect():
        pass
    assert found(scope) == []
    assert ignore.matched == 1


def test_a_comment_on_the_line_of_the_inner_one_silences_it(engine: Engine) -> None:
    with request() as scope, Session(engine) as session:
        session.get(Order, 1)
        with Session(engine) as audit:
            audit.get(Order, 2)  # sqla-watch: ignore[nested-checkout]
    assert found(scope) == []


def test_a_block_around_the_outer_one_only_does_not(engine: Engine) -> None:
    with request() as scope:
        with sqla_watch.ignore("nested-checkout"):
            outer = engine.connect()
        with engine.connect():
            pass
        outer.close()
    assert [rule for rule, _ in found(scope)] == ["nested-checkout"]


def test_switched_off_it_is_silent(engine: Engine, watch: Watch) -> None:
    watch.settings = Settings(profile="test", rules={"nested-checkout": "ignore"})
    with request() as scope, engine.connect(), engine.connect():
        pass
    assert found(scope) == []


def test_the_action_raise_raises_where_the_request_ends(engine: Engine, watch: Watch) -> None:
    watch.settings = Settings(profile="test", rules={"nested-checkout": "raise"})
    with pytest.raises(sqla_watch.FindingRaised) as raised, request(), engine.connect(), engine.connect():
        pass
    assert raised.value.finding.rule == "nested-checkout"
