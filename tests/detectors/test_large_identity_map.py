"""large-identity-map: a session that holds thousands of objects is found where most came from; streams are silent."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, create_engine, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import sqla_watch
from sqla_watch import LargeIdentityMapWarning, Settings, Watch
from tests.conftest import url_for
from tests.support import found, in_event_loop, line_of, only, place, watched_async_engine

pytestmark = [
    pytest.mark.usefixtures("watch", "_stars"),
    pytest.mark.filterwarnings("ignore::sqla_watch.SqlaWatchWarning"),
]


class Base(DeclarativeBase):
    """Base of the classes here."""


class Star(Base):
    __tablename__ = "held_stars"

    id: Mapped[int] = mapped_column(primary_key=True)


@pytest.fixture(scope="module")
def _stars(shop_url: str) -> Iterator[None]:
    """11,000 stars."""
    engine = create_engine(url_for(shop_url, "psycopg"))
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO held_stars SELECT generate_series(1, 11000)"))
    yield
    Base.metadata.drop_all(engine)
    engine.dispose()


def load(session: Session, stars: int, *, piece: int = 1_000) -> list[Star]:
    """Load in pieces, and keep all."""
    kept: list[Star] = []
    for first in range(1, stars + 1, piece):
        last = min(first + piece - 1, stars)
        kept += session.scalars(select(Star).where(Star.id >= first, Star.id <= last))  # loads a piece
    return kept


def test_a_session_that_holds_what_it_loaded_in_pieces_is_found(engine: Engine) -> None:
    with sqla_watch.scope("pieces") as scope, Session(engine) as session:
        kept = load(session, 5_000)
    assert len(kept) == 5_000
    finding = only(scope)
    assert (finding.rule, finding.target, finding.severity) == ("large-identity-map", "Session", "medium")
    assert place(finding) == (__file__, line_of("loads a piece"))
    assert finding.message == "a session held 5000 objects, most of them from 5 statements here"
    assert (finding.evidence["objects"], finding.evidence["rows"]) == (5_000, 5_000)
    assert finding.evidence["statements"] == 5
    assert "yield_per=500" in finding.suggestion


@pytest.mark.parametrize(("stars", "is_found"), [(4_999, False), (5_000, True)])
@pytest.mark.parametrize("end", ["commit", "close"])
def test_it_begins_with_five_thousand_at_a_commit_or_the_end(
    engine: Engine, end: str, stars: int, is_found: bool
) -> None:
    with sqla_watch.scope("held") as scope:
        session = Session(engine)
        kept = load(session, stars)
        getattr(session, end)()
        del kept
        session.close()
    assert len(scope.findings) == is_found


def test_production_waits_for_ten_thousand(watch: Watch, engine: Engine) -> None:
    watch.settings = Settings(profile="production", rules={"query-in-loop": "ignore"})
    for stars, expected in ((9_999, []), (10_000, [("large-identity-map", "Session")])):
        with sqla_watch.scope("production") as scope, Session(engine) as session:
            kept = load(session, stars)
        assert len(kept) == stars
        assert found(scope) == expected


def test_one_statement_that_brought_them_is_an_oversized_result(engine: Engine) -> None:
    with sqla_watch.scope("at once") as scope, Session(engine) as session:
        kept = session.scalars(select(Star).where(Star.id <= 6_000)).all()
    assert len(kept) == 6_000
    assert found(scope) == [("oversized-result", "SELECT held_stars")]
    with sqla_watch.scope("half") as scope, Session(engine) as session:
        kept = [*session.scalars(select(Star).where(Star.id <= 5_000)), *load(session, 11_000)]
    assert found(scope) == [("large-identity-map", "Session"), ("oversized-result", "SELECT held_stars")]


def test_objects_that_nobody_holds_are_silent(engine: Engine) -> None:
    with sqla_watch.scope("let go") as scope, Session(engine) as session:
        for first in range(1, 11_001, 1_000):
            for star in session.scalars(select(Star).where(Star.id >= first, Star.id < first + 1_000)):
                star.id
        for star in session.scalars(select(Star).execution_options(yield_per=500)):
            star.id
        rows = [
            *session.scalars(select(Star.id).where(Star.id < 4_000)),
            *session.scalars(select(Star.id).limit(4_000)),
        ]
        kept = load(session, 6_000)
        session.expunge_all()
        assert len(rows) + len(kept) > 10_000
    assert found(scope) == []


def test_new_objects_are_held_as_well(engine: Engine) -> None:
    with sqla_watch.scope("new") as scope:
        session = Session(engine)
        kept = [Star(id=20_000 + number) for number in range(5_000)]
        session.add_all(kept)
        session.flush()
        session.rollback()
        session.add_all(Star(id=20_000 + number) for number in range(10))
        session.rollback()
        session.close()
    assert found(scope) == []
    with sqla_watch.scope("new, and closed") as scope:
        session = Session(engine)
        session.add_all(kept)
        session.flush()
        with sqla_watch.ignore("session-scope"):
            session.close()  # holds them
    finding = next(each for each in scope.findings if each.rule == "large-identity-map")
    assert place(finding) == (__file__, line_of("holds them"))
    assert finding.message == "a session held 5000 objects"


def test_it_can_be_ignored(engine: Engine) -> None:
    ignored = sqla_watch.ignore("large-identity-map", reason="a report")
    with sqla_watch.scope("ignored") as scope, ignored, Session(engine) as session:
        kept = load(session, 5_000)
    assert len(kept) == 5_000
    assert found(scope) == []


@in_event_loop
async def test_async_it_is_found(shop_url: str) -> None:
    for driver in ("asyncpg", "psycopg"):
        async with watched_async_engine(shop_url, driver) as engine:
            with sqla_watch.scope("async") as scope:
                async with AsyncSession(engine) as session:
                    kept: list[Star] = []
                    for first in range(1, 5_001, 1_000):
                        query = select(Star).where(Star.id >= first, Star.id < first + 1_000)
                        kept += await session.scalars(query)  # awaits a piece
                    await session.commit()
            assert place(only(scope)) == (__file__, line_of("awaits a piece"))
            assert only(scope).evidence["objects"] == 5_000


def test_the_warning_has_its_own_class(engine: Engine) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with sqla_watch.scope("warned"), Session(engine) as session:
            kept = load(session, 5_000)
    assert len(kept) == 5_000
    assert [each.category for each in caught] == [LargeIdentityMapWarning]
