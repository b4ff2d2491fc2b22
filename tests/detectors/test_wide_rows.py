"""wide-rows: whole entities of which few columns are read are found, if one asks for it; others are silent."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, insert, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, aliased, load_only, mapped_column

import sqla_watch
from sqla_watch import Settings, Watch, WideRowsWarning
from tests.conftest import url_for
from tests.support import found, in_event_loop, line_of, only, place, watched_async_engine

pytestmark = [
    pytest.mark.usefixtures("on", "_articles"),
    pytest.mark.filterwarnings("ignore::sqla_watch.SqlaWatchWarning"),
]

RULES = {"wide-rows": "warn"}


class Base(DeclarativeBase):
    """Base of the classes here."""


class Article(Base):
    """Twelve columns, of which one is deferred."""

    __tablename__ = "wide_articles"

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str] = mapped_column(default="")
    body: Mapped[str] = mapped_column(default="")
    c4: Mapped[int] = mapped_column(default=0)
    c5: Mapped[int] = mapped_column(default=0)
    c6: Mapped[int] = mapped_column(default=0)
    c7: Mapped[int] = mapped_column(default=0)
    c8: Mapped[int] = mapped_column(default=0)
    c9: Mapped[int] = mapped_column(default=0)
    c10: Mapped[int] = mapped_column(default=0)
    c11: Mapped[int] = mapped_column(default=0)
    history: Mapped[str] = mapped_column(default="", deferred=True)


@pytest.fixture(scope="module")
def _articles(shop_url: str) -> Iterator[None]:
    """1,000 articles."""
    engine = create_engine(url_for(shop_url, "psycopg"))
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(insert(Article), [{"title": "t"} for _ in range(1_000)])
    yield
    Base.metadata.drop_all(engine)
    engine.dispose()


@pytest.fixture
def on(engine: Engine) -> Watch:
    return sqla_watch.install(engine, settings=Settings(profile="test", rules=RULES))


HUNDRED = select(Article).where(Article.id <= 100)


def test_one_column_of_many_is_found_and_what_it_suggests_repairs_it(engine: Engine) -> None:
    with sqla_watch.scope("titles") as scope, Session(engine) as session:
        for article in session.scalars(HUNDRED):  # a list of titles
            assert article.title == "t"
    finding = only(scope)
    assert (finding.rule, finding.target, finding.severity) == ("wide-rows", "Article", "low")
    assert place(finding) == (__file__, line_of("a list of titles"))
    assert finding.message == "100 Article objects were loaded with 11 columns, of which 1 was read"
    assert (finding.evidence["rows"], finding.evidence["columns_loaded"]) == (100, 11)
    assert finding.evidence["columns_read"] == "title"
    assert "select(Article.title)" in finding.suggestion
    assert ".options(load_only(Article.title))" in finding.suggestion
    with sqla_watch.scope("repaired") as scope, Session(engine) as session:
        assert session.scalars(select(Article.title).where(Article.id <= 100)).all()
        query = HUNDRED.options(load_only(Article.title))
        assert [article.title for article in session.scalars(query)] == ["t"] * 100
    assert found(scope) == []


@pytest.mark.parametrize(
    ("read", "is_found"), [(["id"], True), (["id", "title"], True), (["id", "title", "c4"], False)]
)
def test_it_ends_with_a_quarter_of_the_columns(engine: Engine, read: list[str], is_found: bool) -> None:
    with sqla_watch.scope("quarter") as scope, Session(engine) as session:
        articles = session.scalars(HUNDRED).all()
        for number, key in enumerate(read):
            getattr(articles[number], key)  # each of another object
    assert len(scope.findings) == is_found
    if is_found:
        assert only(scope).evidence["columns_read"] == ", ".join(read)


@pytest.mark.parametrize(("rows", "is_found"), [(99, False), (100, True)])
def test_it_begins_with_a_hundred_objects(engine: Engine, rows: int, is_found: bool) -> None:
    with sqla_watch.scope("hundred") as scope, Session(engine) as session:
        assert [article.title for article in session.scalars(select(Article).where(Article.id <= rows))]
    assert len(scope.findings) == is_found


@pytest.mark.parametrize(("columns", "is_found"), [(11, True), (12, False)])
def test_the_columns_count_that_were_loaded(on: Watch, engine: Engine, columns: int, is_found: bool) -> None:
    rules = {"wide-rows": {"action": "warn", "min_columns": columns}}
    sqla_watch.install(engine, settings=Settings(profile="test", rules=rules))
    with sqla_watch.scope("columns") as scope, Session(engine) as session:
        assert [article.title for article in session.scalars(HUNDRED)]
    assert len(scope.findings) == is_found


def test_production_waits_for_a_thousand(engine: Engine) -> None:
    sqla_watch.install(engine, settings=Settings(profile="production", rules={"wide-rows": "log"}))
    for rows, expected in ((999, []), (1000, [("wide-rows", "Article")])):
        with sqla_watch.scope("production") as scope, Session(engine) as session:
            assert [article.title for article in session.scalars(select(Article).where(Article.id <= rows))]
        assert found(scope) == expected


@pytest.mark.parametrize(
    "use",
    [
        lambda session: [vars(article)["title"] for article in session.scalars(HUNDRED)],
        lambda session: session.scalars(HUNDRED).all(),
        lambda session: session.execute(select(Article.id, Article.title)).all(),
        lambda session: [(article.id, article.title, article.body, article.c4) for article in session.scalars(HUNDRED)],
    ],
)
def test_what_is_silent(engine: Engine, use: Callable[[Session], Any]) -> None:
    with sqla_watch.scope("good") as scope, Session(engine) as session:
        use(session)
    assert found(scope) == []


def test_a_serializer_that_reads_all_is_silent_and_two_queries_are_told_apart(engine: Engine) -> None:
    def dump(article: Article) -> dict[str, Any]:
        return {key: getattr(article, key) for key in ("id", "title", "body", "c4", "c5", "c6", "c7", "c8")}

    other = aliased(Article)
    with sqla_watch.scope("two") as scope:
        with Session(engine) as session:
            assert [dump(article) for article in session.scalars(HUNDRED)]
        with Session(engine) as session:
            articles = session.scalars(select(other).where(other.id <= 200)).all()  # narrow
            assert articles[0].title
    assert place(only(scope)) == (__file__, line_of("narrow"))


def test_off_by_default_in_every_profile(engine: Engine) -> None:
    for profile in ("development", "test", "production"):
        sqla_watch.install(engine, settings=Settings(profile=profile))
        with sqla_watch.scope("off") as scope, Session(engine) as session:
            assert [article.title for article in session.scalars(select(Article))]
        assert (found(scope), scope.reads) == ([], set())


def test_an_implicit_scope_ends_too_early_to_know(engine: Engine, on: Watch) -> None:
    told: list[str] = []
    on.reporters.append(lambda scope: told.extend(finding.rule for finding in scope.findings))
    with Session(engine) as session:
        assert [article.title for article in session.scalars(HUNDRED)]
    assert told == []


def test_it_can_be_ignored(engine: Engine) -> None:
    with sqla_watch.scope("ignored") as scope, Session(engine) as session:
        with sqla_watch.ignore("wide-rows", "Article", reason="short columns"):
            assert [article.title for article in session.scalars(HUNDRED)]
        assert [article.title for article in session.scalars(HUNDRED)]  # sqla-watch: ignore[wide-rows]
    assert found(scope) == []


@in_event_loop
async def test_async_it_is_found(shop_url: str) -> None:
    for driver in ("asyncpg", "psycopg"):
        async with watched_async_engine(shop_url, driver, rules=RULES) as engine:
            with sqla_watch.scope("async") as scope:
                async with AsyncSession(engine) as session:
                    articles = (await session.scalars(HUNDRED)).all()  # awaits them
                    assert [article.title for article in articles]
        assert found(scope) == [("wide-rows", "Article")]
        assert place(only(scope)) == (__file__, line_of("awaits them"))


@pytest.mark.parametrize("driver", ["psycopg2", "sqlite"])
def test_on_other_drivers(shop_url: str, driver: str) -> None:
    engine = create_engine("sqlite://" if driver == "sqlite" else url_for(shop_url, driver))
    if driver == "sqlite":
        Base.metadata.create_all(engine)
        with Session(engine) as session:
            session.add_all(Article(title="t") for _ in range(100))
            session.commit()
    sqla_watch.install(engine, settings=Settings(profile="test", rules=RULES))
    with sqla_watch.scope("driver") as scope, Session(engine) as session:
        assert [article.title for article in session.scalars(HUNDRED)]
    engine.dispose()
    assert found(scope) == [("wide-rows", "Article")]


def test_the_warning_has_its_own_class(engine: Engine) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with sqla_watch.scope("warned"), Session(engine) as session:
            assert [article.title for article in session.scalars(HUNDRED)]
    assert [each.category for each in caught] == [WideRowsWarning]
