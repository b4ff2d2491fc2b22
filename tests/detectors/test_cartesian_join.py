"""cartesian-join: joined collections that multiply the rows are found, with the factor; other joins are not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, ForeignKey, create_engine, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    aliased,
    contains_eager,
    joinedload,
    mapped_column,
    relationship,
    selectinload,
    subqueryload,
)

import sqla_watch
from sqla_watch import Settings, Watch
from tests.conftest import url_for
from tests.support import found, in_event_loop, line_of, only, place, watched_async_engine

pytestmark = [pytest.mark.usefixtures("watch"), pytest.mark.filterwarnings("ignore::sqla_watch.SqlaWatchWarning")]


class Base(DeclarativeBase):
    """Base of the classes here."""


class Band(Base):
    __tablename__ = "cartesian_bands"

    id: Mapped[int] = mapped_column(primary_key=True)
    members: Mapped[list[Member]] = relationship(order_by="Member.id")
    albums: Mapped[list[Album]] = relationship(back_populates="band", order_by="Album.id")


class Member(Base):
    __tablename__ = "cartesian_members"

    id: Mapped[int] = mapped_column(primary_key=True)
    band_id: Mapped[int] = mapped_column(ForeignKey(Band.id))


class Album(Base):
    __tablename__ = "cartesian_albums"

    id: Mapped[int] = mapped_column(primary_key=True)
    band_id: Mapped[int] = mapped_column(ForeignKey(Band.id))
    band: Mapped[Band] = relationship(back_populates="albums")
    songs: Mapped[list[Song]] = relationship(order_by="Song.id")


class Song(Base):
    __tablename__ = "cartesian_songs"

    id: Mapped[int] = mapped_column(primary_key=True)
    album_id: Mapped[int] = mapped_column(ForeignKey(Album.id))


BANDS, MEMBERS, ALBUMS, SONGS = 25, 4, 5, 4


@pytest.fixture(scope="module")
def _bands(shop_url: str) -> Iterator[None]:
    """25 bands of 4 members, with 5 albums of 4 songs each: 20 members by albums, and 20 songs."""
    engine = create_engine(url_for(shop_url, "psycopg"))
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        for number in range(1, BANDS + 1):
            albums = [Album(songs=[Song() for _ in range(SONGS)]) for _ in range(ALBUMS)]
            session.add(Band(id=number, members=[Member() for _ in range(MEMBERS)], albums=albums))
        session.commit()
    yield
    Base.metadata.drop_all(engine)
    engine.dispose()


pytestmark.append(pytest.mark.usefixtures("_bands"))

SIDE_BY_SIDE = select(Band).options(joinedload(Band.members), joinedload(Band.albums)).order_by(Band.id)
CHAIN = select(Band).options(joinedload(Band.albums).joinedload(Album.songs)).order_by(Band.id)


def test_two_collections_side_by_side_are_found(engine: Engine) -> None:
    with sqla_watch.scope("siblings") as scope, Session(engine) as session:
        bands = session.scalars(SIDE_BY_SIDE).unique().all()  # multiplies
    assert len(bands) == BANDS
    finding = only(scope)
    assert (finding.rule, finding.target, finding.severity) == ("cartesian-join", "Band", "high")
    assert place(finding) == (__file__, line_of("multiplies"))
    assert finding.evidence["rows"] == 500
    assert finding.evidence["distinct_parents"] == 25
    assert finding.evidence["multiplied"] == 20.0
    assert finding.evidence["cause"] == "several collections"
    assert sorted(str(finding.evidence["collections"]).split(", ")) == ["Band.albums", "Band.members"]
    assert finding.message.startswith("500 rows were fetched for 25 Band objects: 2 joined collections multiply each")
    assert "selectinload(Band.members)" in finding.suggestion
    assert "selectinload(Band.albums)" in finding.suggestion


def test_what_it_suggests_repairs_it(engine: Engine) -> None:
    for query in (
        select(Band).options(selectinload(Band.members), selectinload(Band.albums)),
        select(Band).options(joinedload(Band.members), selectinload(Band.albums)),
        select(Band).options(subqueryload(Band.members), subqueryload(Band.albums)),
        select(Band).options(selectinload(Band.albums).selectinload(Album.songs)),
    ):
        with sqla_watch.scope("repaired") as scope, Session(engine) as session:
            assert len(session.scalars(query).unique().all()) == BANDS
        assert found(scope) == []


def test_a_chain_of_collections_is_found_as_one(engine: Engine) -> None:
    with sqla_watch.scope("chain") as scope, Session(engine) as session:
        session.scalars(CHAIN).unique().all()
    finding = only(scope)
    assert (finding.rule, finding.severity) == ("cartesian-join", "medium")
    assert finding.evidence["cause"] == "one collection"
    assert finding.evidence["multiplied"] == 20.0
    assert "Band.albums.songs" in finding.message
    assert ".options(selectinload(Band.albums).selectinload(Album.songs))" in finding.suggestion


def test_contains_eager_multiplies_as_well(engine: Engine) -> None:
    query = (
        select(Band).join(Band.members).join(Band.albums)
        .options(contains_eager(Band.members), contains_eager(Band.albums))
    )  # fmt: skip
    with sqla_watch.scope("contains") as scope, Session(engine) as session:
        session.scalars(query).unique().all()
    assert found(scope) == [("cartesian-join", "Band")]


def test_an_alias_and_a_query_and_a_page_are_the_same_mistake(engine: Engine) -> None:
    other = aliased(Band)
    for read in (
        lambda session: session.scalars(
            select(other).options(joinedload(other.members), joinedload(other.albums))
        ).unique().all(),
        lambda session: session.query(Band).options(joinedload(Band.members), joinedload(Band.albums)).all(),
        lambda session: session.scalars(SIDE_BY_SIDE.limit(10)).unique().all(),
    ):  # fmt: skip
        with sqla_watch.scope("same") as scope, Session(engine) as session:
            read(session)
        assert found(scope) == [("cartesian-join", "Band")]
        assert only(scope).evidence["multiplied"] == 20.0


@pytest.mark.parametrize(("bands", "is_found"), [(4, False), (5, True)])
def test_side_by_side_it_begins_with_a_hundred_rows(engine: Engine, bands: int, is_found: bool) -> None:
    with sqla_watch.scope("rows") as scope, Session(engine) as session:
        session.scalars(SIDE_BY_SIDE.where(Band.id <= bands)).unique().all()
    assert len(scope.findings) == is_found


@pytest.mark.parametrize(("bands", "is_found"), [(24, False), (25, True)])
def test_in_a_chain_it_begins_with_five_hundred_rows(engine: Engine, bands: int, is_found: bool) -> None:
    with sqla_watch.scope("rows") as scope, Session(engine) as session:
        session.scalars(CHAIN.where(Band.id <= bands)).unique().all()
    assert len(scope.findings) == is_found


@pytest.mark.parametrize(("factor", "is_found"), [(20, True), (21, False)])
def test_the_factor_counts_as_well(watch: Watch, engine: Engine, factor: int, is_found: bool) -> None:
    for query, threshold in ((SIDE_BY_SIDE, "min_factor"), (CHAIN, "min_factor_of_one")):
        watch.settings = Settings(profile="test", rules={"cartesian-join": {threshold: factor}})
        with sqla_watch.scope("factor") as scope, Session(engine) as session:
            session.scalars(query).unique().all()
        assert len(scope.findings) == is_found


def test_production_has_floors_of_its_own(watch: Watch, engine: Engine) -> None:
    watch.settings = Settings(profile="production")
    with sqla_watch.scope("production") as scope, Session(engine) as session:
        session.scalars(SIDE_BY_SIDE).unique().all()
        session.scalars(CHAIN).unique().all()
    assert found(scope) == []
    three = select(Band).options(joinedload(Band.members), joinedload(Band.albums).joinedload(Album.songs))
    with sqla_watch.scope("production") as scope, Session(engine) as session:
        session.scalars(three).unique().all()
    assert only(scope).evidence["rows"] == 2000


def test_one_parent_with_much_of_one_thing_is_silent(watch: Watch, engine: Engine) -> None:
    watch.settings = Settings(
        profile="test", rules={"cartesian-join": {"min_rows_of_one": 10, "min_factor_of_one": 2, "min_rows": 10}}
    )
    with sqla_watch.scope("one parent") as scope, Session(engine) as session:
        session.get_one(Band, 1, options=[joinedload(Band.albums).joinedload(Album.songs)])
    assert found(scope) == []


def test_other_joins_are_silent(watch: Watch, engine: Engine) -> None:
    watch.settings = Settings(
        profile="test",
        rules={"cartesian-join": dict.fromkeys(("min_rows", "min_factor", "min_rows_of_one", "min_factor_of_one"), 2)},
    )
    with sqla_watch.scope("good") as scope, Session(engine) as session:
        session.scalars(select(Album).options(joinedload(Album.band))).all()
        session.execute(select(Band.id, Member.id).join(Band.members).join(Band.albums)).all()
        session.execute(select(Band, Album).join(Band.albums)).all()
        session.scalars(select(Band).join(Band.albums).distinct()).all()
    assert found(scope) == []


def test_it_can_be_ignored(engine: Engine) -> None:
    with sqla_watch.scope("ignored") as scope, Session(engine) as session:
        with sqla_watch.ignore("cartesian-join", "Band", reason="few bands"):
            session.scalars(SIDE_BY_SIDE).unique().all()
        session.scalars(SIDE_BY_SIDE).unique().all()  # sqla-watch: ignore[cartesian-join]
    assert found(scope) == []


@in_event_loop
async def test_async_it_is_found_on_both_drivers(shop_url: str) -> None:
    for driver in ("asyncpg", "psycopg"):
        async with watched_async_engine(shop_url, driver) as engine:
            with sqla_watch.scope("async") as scope:
                async with AsyncSession(engine) as session:
                    (await session.scalars(SIDE_BY_SIDE)).unique().all()  # multiplies asynchronously
        assert only(scope).evidence["distinct_parents"] == 25
        assert place(only(scope)) == (__file__, line_of("multiplies asynchronously"))


@pytest.mark.parametrize("url", ["psycopg2", "sqlite"])
def test_other_drivers(shop_url: str, url: str) -> None:
    engine = create_engine("sqlite://" if url == "sqlite" else url_for(shop_url, url))
    if url == "sqlite":
        Base.metadata.create_all(engine)
        with Session(engine) as session:
            for number in range(1, 6):
                session.add(Band(id=number, members=[Member() for _ in range(4)], albums=[Album() for _ in range(5)]))
            session.commit()
    sqla_watch.install(engine, settings=Settings(profile="test"))
    with sqla_watch.scope("driver") as scope, Session(engine) as session:
        session.scalars(SIDE_BY_SIDE).unique().all()
    engine.dispose()
    assert only(scope).evidence["multiplied"] == 20.0
