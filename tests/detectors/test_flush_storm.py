"""flush-storm: a session that flushes again and again from one line, with what made it; one flush is silent."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import Engine, create_engine, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import sqla_watch
from sqla_watch import FlushStormWarning, Settings, Watch
from sqla_watch.demo.models import Product
from tests.conftest import url_for
from tests.support import found, in_event_loop, line_of, only, place, watched_async_engine

pytestmark = [
    pytest.mark.usefixtures("watch", "_tables"),
    pytest.mark.filterwarnings("ignore::sqla_watch.SqlaWatchWarning"),
]


class Base(DeclarativeBase):
    """Base of the classes here."""


class Page(Base):
    __tablename__ = "storm_pages"

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str] = mapped_column(default="")


class Edit(Base):
    __tablename__ = "storm_edits"

    id: Mapped[int] = mapped_column(primary_key=True)
    page_id: Mapped[int]


@pytest.fixture
def _tables(engine: Engine) -> Iterator[None]:
    Base.metadata.create_all(engine)
    yield
    Base.metadata.drop_all(engine)


def test_a_flush_for_each_object_is_found_and_one_flush_repairs_it(engine: Engine) -> None:
    with sqla_watch.scope("explicit") as scope, Session(engine) as session:
        for number in range(12):
            session.add(Page(id=number))
            session.flush()  # one by one
        session.rollback()
    finding = only(scope)
    assert (finding.rule, finding.target, finding.severity) == ("flush-storm", "storm_pages", "high")
    assert place(finding) == (__file__, line_of("one by one"))
    assert finding.message == "session.flush() was called 12 times, 12 objects in all (storm_pages)"
    assert finding.evidence["cause"] == "explicit"
    assert finding.evidence["flushes"] == finding.evidence["objects"] == finding.evidence["statements"] == 12
    assert finding.evidence["flush_seconds"] == finding.database_seconds > 0
    assert "Flush once, behind the loop" in finding.suggestion
    with sqla_watch.scope("once") as scope, Session(engine) as session:
        session.add_all(Page(id=number) for number in range(12))
        session.flush()
        session.rollback()
    assert found(scope) == []


def test_a_query_that_flushes_each_time_is_found_at_the_query(engine: Engine) -> None:
    with sqla_watch.scope("autoflush") as scope, Session(engine) as session:
        for number in range(12):
            session.add(Page(id=number))
            session.scalar(select(func.count()).select_from(Product))  # flushes first
        session.rollback()
    finding = next(each for each in scope.findings if each.rule == "flush-storm")
    assert finding.target == "storm_pages"
    assert place(finding) == (__file__, line_of("flushes first"))
    assert finding.evidence["cause"] == "autoflush"
    assert finding.evidence["triggered_by"] == "SELECT products"
    assert finding.message.startswith("the session flushed 12 times before SELECT products")
    assert "no_autoflush" in finding.suggestion
    with sqla_watch.scope("held back") as scope, Session(engine) as session:
        for number in range(12):
            session.add(Page(id=number))
            with session.no_autoflush:
                session.scalar(select(Product.name).where(Product.id == 1 + number % 4))
        session.rollback()
    assert "flush-storm" not in [rule for rule, _ in found(scope)]


def test_what_it_writes_is_not_told_again(engine: Engine) -> None:
    """The pages are written by the flushes that are told; the edits of the same loop by a statement of their own."""
    with sqla_watch.scope("claims") as scope, Session(engine) as session:
        for number in range(12):
            session.add(Page(id=number))
            session.flush()
            session.connection().execute(Edit.__table__.insert().values(page_id=number))
        session.rollback()
    assert found(scope) == [("flush-storm", "storm_pages"), ("row-by-row-write", "INSERT storm_edits")]


@pytest.mark.parametrize(("flushes", "is_found"), [(9, False), (10, True)])
def test_it_begins_with_ten_flushes(engine: Engine, flushes: int, is_found: bool) -> None:
    with sqla_watch.scope("ten") as scope, Session(engine) as session:
        for number in range(flushes):
            session.add(Page(id=number))
            session.flush()
        session.rollback()
    assert len(scope.findings) == is_found


@pytest.mark.parametrize(("rules", "expected"), [({}, (False, False)), ({"min_seconds": 0.0}, (False, True))])
def test_production_waits_for_fifty_flushes_and_their_time(
    watch: Watch, engine: Engine, rules: dict[str, float], expected: tuple[bool, bool]
) -> None:
    watch.settings = Settings(profile="production", rules={"flush-storm": rules, "row-by-row-write": "ignore"})
    for flushes, is_found in zip((49, 50), expected, strict=True):
        with sqla_watch.scope("production") as scope, Session(engine) as session:
            for number in range(flushes):
                session.add(Page(id=number))
                session.flush()
            session.rollback()
        if rules or scope.database_seconds < 0.04:
            assert len(scope.findings) == is_found


def in_batches(session: Session) -> None:
    for first in range(0, 600, 50):
        session.add_all(Page(id=first + number) for number in range(50))
        session.flush()


def with_nothing_to_do(session: Session) -> None:
    for number in range(20):
        session.flush()
        session.add(page := Page(id=number))
        session.expunge(page)


def from_different_lines(session: Session) -> None:
    session.add(Page(id=1))
    session.flush()
    session.add(Page(id=2))
    session.flush()
    session.add(Page(id=3))
    session.flush()


@pytest.mark.parametrize("use", [in_batches, with_nothing_to_do, from_different_lines])
def test_good_code_is_silent(engine: Engine, use: Callable[[Session], None]) -> None:
    with sqla_watch.scope("good") as scope, Session(engine) as session:
        use(session)
        session.rollback()
    assert found(scope) == []


@pytest.mark.parametrize("flush", [False, True])
def test_begin_nested_for_each_row_is_how_duplicates_are_survived(engine: Engine, flush: bool) -> None:
    with sqla_watch.scope("savepoints") as scope, Session(engine) as session:
        for number in range(20):
            try:
                with session.begin_nested():
                    session.add(Page(id=number // 2))
                    if flush:
                        session.flush()
            except IntegrityError:
                pass
        session.rollback()
    assert found(scope) == []


def test_sessions_of_their_own_are_no_storm(engine: Engine) -> None:
    """Twelve requests of one scope, each with its session: each flushed once."""
    with sqla_watch.scope("sessions") as scope:
        for number in range(12):
            with Session(engine) as session:
                session.add(Page(id=number))
                session.flush()
                session.rollback()
    assert "flush-storm" not in [rule for rule, _ in found(scope)]


def test_it_can_be_ignored(engine: Engine) -> None:
    with sqla_watch.scope("ignored") as scope, Session(engine) as session:
        for number in range(12):
            session.add(Page(id=number))
            with sqla_watch.ignore("flush-storm", "storm_pages", reason="needs its key"):
                session.flush()
        for number in range(12):
            session.add(Edit(page_id=number))
            session.flush()  # sqla-watch: ignore[flush-storm]
        session.rollback()
    assert found(scope) == []
    assert sqla_watch.unused_ignores() == []


@in_event_loop
async def test_async_it_is_found_at_the_line_that_awaits(shop_url: str) -> None:
    for driver in ("asyncpg", "psycopg"):
        async with watched_async_engine(shop_url, driver) as engine:
            with sqla_watch.scope("async") as scope:
                async with AsyncSession(engine) as session:
                    for number in range(12):
                        session.add(Page(id=number))
                        await session.flush()  # awaits each
                    await session.rollback()
        assert found(scope) == [("flush-storm", "storm_pages")]
        assert place(only(scope)) == (__file__, line_of("awaits each"))


@pytest.mark.parametrize("driver", ["psycopg2", "sqlite"])
def test_on_other_drivers(shop_url: str, driver: str) -> None:
    engine = create_engine("sqlite://" if driver == "sqlite" else url_for(shop_url, driver))
    if driver == "sqlite":
        Base.metadata.create_all(engine)
    sqla_watch.install(engine, settings=Settings(profile="test"))
    with sqla_watch.scope("driver") as scope, Session(engine) as session:
        for number in range(12):
            session.add(Page(id=number))
            session.flush()
        session.rollback()
    engine.dispose()
    assert found(scope) == [("flush-storm", "storm_pages")]


def test_the_warning_has_its_own_class(engine: Engine) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with sqla_watch.scope("warned"), Session(engine) as session:
            for number in range(12):
                session.add(Page(id=number))
                session.flush()
            session.rollback()
    assert [each.category for each in caught] == [FlushStormWarning]
