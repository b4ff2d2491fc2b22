"""row-by-row-write: rows written one by one, with each cause; batches, flushes and savepoints are silent."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, delete, func, insert, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import sqla_watch
from sqla_watch import RowByRowWriteWarning, Settings, Watch
from tests.probes.application import DRIVERS, Application, entries
from tests.support import found, in_event_loop, line_of, only, place, watched_async_engine

pytestmark = [
    pytest.mark.usefixtures("watch", "_tables"),
    pytest.mark.filterwarnings("ignore::sqla_watch.SqlaWatchWarning"),
]


class Base(DeclarativeBase):
    """Base of the classes here."""


class Letter(Base):
    __tablename__ = "written_letters"

    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="new")
    sender: Mapped[str] = mapped_column("from", default="")
    """A name that has to be quoted."""


class Draft(Base):
    __tablename__ = "written_drafts"

    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="new")
    version: Mapped[int] = mapped_column(default=0)
    __mapper_args__ = {"version_id_col": version}


LETTERS = 1_200
letters, drafts = Letter.__table__, Draft.__table__


@pytest.fixture
def _tables(engine: Engine) -> Iterator[None]:
    """1,200 letters and 300 drafts."""
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO written_letters SELECT n, 'new', '' FROM generate_series(1, 1200) n"))
        connection.execute(text("INSERT INTO written_drafts SELECT n, 'new', 1 FROM generate_series(1, 300) n"))
    yield
    Base.metadata.drop_all(engine)


# A statement for each row


def test_an_insert_for_each_row_is_found_and_a_list_repairs_it(engine: Engine) -> None:
    with sqla_watch.scope("one by one") as scope, engine.begin() as connection:
        for number in range(5001, 5013):
            connection.execute(insert(letters).values(id=number))  # inserts one
    finding = only(scope)
    assert (finding.rule, finding.target, finding.severity) == ("row-by-row-write", "INSERT written_letters", "high")
    assert place(finding) == (__file__, line_of("inserts one"))
    assert finding.message == "INSERT on written_letters was sent 12 times for 12 different rows"
    assert finding.evidence["cause"] == "statement for each row"
    assert finding.evidence["different_rows"] == 12
    assert finding.evidence["statements"] == finding.statements == 12
    assert "[{...} for row in rows]" in finding.suggestion
    with sqla_watch.scope("at once") as scope, engine.begin() as connection:
        connection.execute(insert(letters), [{"id": number} for number in range(6001, 6013)])
    assert found(scope) == []


@pytest.mark.parametrize(
    ("write", "operation"),
    [
        (lambda session, n: session.execute(update(Letter).where(Letter.id == n).values(status=str(n))), "UPDATE"),
        (lambda session, n: session.execute(delete(Letter).where(Letter.id == n)), "DELETE"),
        (lambda session, n: session.query(Letter).filter(Letter.id == n).delete(), "DELETE"),
        (lambda session, n: session.execute(insert(Letter).values(id=7000 + n).returning(Letter.id)).one(), "INSERT"),
        (lambda session, n: session.execute(text("DELETE FROM written_letters WHERE id = :id"), {"id": n}), "DELETE"),
    ],
)
def test_so_are_other_writes(engine: Engine, write: Callable[[Session, int], Any], operation: str) -> None:
    with sqla_watch.scope("writes") as scope, Session(engine) as session:
        for number in range(1, 13):
            write(session, number)
        session.rollback()
    assert found(scope) == [("row-by-row-write", f"{operation} written_letters")]
    suggested = f"{operation.lower()}(written_letters" if operation != "INSERT" else "insert(written_letters)"
    assert suggested in only(scope).suggestion


@pytest.mark.parametrize(("rows", "is_found"), [(9, False), (10, True)])
def test_it_begins_with_ten_rows(engine: Engine, rows: int, is_found: bool) -> None:
    with sqla_watch.scope("rows") as scope, engine.begin() as connection:
        for number in range(1, rows + 1):
            connection.execute(delete(letters).where(letters.c.id == number))
    assert len(scope.findings) == is_found


@pytest.mark.parametrize(("rules", "is_found"), [({}, False), ({"min_seconds": 0.0}, True)])
def test_production_waits_for_fifty_rows_and_their_time(
    watch: Watch, engine: Engine, rules: dict[str, float], is_found: bool
) -> None:
    watch.settings = Settings(profile="production", rules={"row-by-row-write": rules})
    for rows, expected in ((49, False), (50, is_found)):
        with sqla_watch.scope("production") as scope, engine.connect() as connection:
            for number in range(1, rows + 1):
                connection.execute(delete(letters).where(letters.c.id == number))
        assert len(scope.findings) == expected


# A commit for each row


def test_a_commit_for_each_row_is_found(engine: Engine) -> None:
    with sqla_watch.scope("commits") as scope, Session(engine) as session:
        for number in range(5001, 5013):
            session.add(Letter(id=number))
            session.commit()  # each by itself
    finding = only(scope)
    assert (finding.rule, finding.target, finding.severity) == ("row-by-row-write", "INSERT written_letters", "high")
    assert place(finding) == (__file__, line_of("each by itself"))
    assert finding.evidence["cause"] == "commit for each row"
    assert finding.evidence["commits"] == 12
    assert "Commit once for all" in finding.suggestion


def test_a_connection_for_each_row_is_a_commit_for_each_row(engine: Engine) -> None:
    with sqla_watch.scope("connections") as scope:
        for number in range(1, 13):
            with engine.begin() as connection:
                connection.execute(delete(letters).where(letters.c.id == number))  # its own connection
    assert place(only(scope)) == (__file__, line_of("its own connection"))
    assert only(scope).evidence["commits"] == 12


def test_units_of_work_that_read_or_write_more_are_silent(engine: Engine) -> None:
    with sqla_watch.scope("units") as scope:
        for number in range(1, 13):
            with Session(engine) as session, session.begin():
                letter = session.get_one(Letter, number, with_for_update=True)
                letter.status = "sent"
        for number in range(13, 25):
            with engine.begin() as connection:
                connection.execute(delete(letters).where(letters.c.id == number))
                connection.execute(insert(drafts).values(id=5000 + number, version=1))
    assert [rule for rule, _ in found(scope) if rule == "row-by-row-write"] == []


# What a flush makes of tracked objects


def test_objects_that_are_loaded_to_be_deleted_are_found(watch: Watch, engine: Engine) -> None:
    with sqla_watch.scope("delete") as scope, Session(engine) as session:
        for letter in session.scalars(select(Letter).where(Letter.id <= 1000)):
            session.delete(letter)
        session.commit()  # deletes them
    finding = only(scope)
    assert (finding.target, finding.severity) == ("DELETE written_letters", "medium")
    assert place(finding) == (__file__, line_of("deletes them"))
    assert finding.evidence["cause"] == "objects loaded to be deleted"
    assert finding.evidence["objects"] == 1000
    assert "delete(written_letters)" in finding.suggestion


@pytest.mark.parametrize(("rows", "is_found"), [(199, False), (200, True)])
@pytest.mark.parametrize("entity", [Letter, Draft])
def test_objects_that_are_all_set_to_the_same_are_found(
    engine: Engine, entity: type[Letter | Draft], rows: int, is_found: bool
) -> None:
    """Sent as one executemany, or with a version counter one by one."""
    with sqla_watch.scope("alike") as scope, Session(engine) as session:
        for each in session.scalars(select(entity).where(entity.id <= rows)):
            each.status = "sent"
        session.commit()
    assert len(scope.findings) == is_found
    if is_found:
        assert only(scope).evidence["cause"] == "objects loaded to be changed alike"
        assert only(scope).evidence["objects"] == 200


def test_objects_that_are_set_to_different_values_are_silent(engine: Engine) -> None:
    with sqla_watch.scope("different") as scope, Session(engine) as session:
        for letter in session.scalars(select(Letter).where(Letter.id <= 300)):
            letter.status = f"sent {letter.id}"
        session.commit()
        for draft in session.scalars(select(Draft)):
            draft.status = f"sent {draft.id}"
        session.commit()
    assert found(scope) == []


def test_a_column_whose_name_is_a_word_of_sql_has_values_too(engine: Engine) -> None:
    with sqla_watch.scope("keyword") as scope, Session(engine) as session:
        for letter in session.scalars(select(Letter).where(Letter.id <= 300)):
            letter.sender = f"sender {letter.id}"
        session.commit()
    assert found(scope) == []


# One huge executemany


@pytest.mark.parametrize(("rows", "is_found"), [(9_999, False), (10_000, True)])
def test_a_huge_executemany_is_found(engine: Engine, rows: int, is_found: bool) -> None:
    with sqla_watch.scope("huge") as scope, engine.connect() as connection:
        connection.execute(text("INSERT INTO written_drafts VALUES (:n, '', 1)"), [{"n": 500 + n} for n in range(rows)])
    assert len(scope.findings) == is_found
    if is_found:
        assert only(scope).evidence["cause"] == "one huge executemany"
        assert only(scope).evidence["parameter_sets"] == 10_000
        assert "COPY written_drafts" in only(scope).suggestion


# What is silent


def test_what_is_no_row_by_row_write(engine: Engine) -> None:
    with sqla_watch.scope("good") as scope, Session(engine) as session:
        session.add_all(Letter(id=number) for number in range(5001, 5031))
        session.flush()
        session.add_all(Draft(id=number) for number in range(5001, 5031))
        session.flush()
        for draft in session.scalars(select(Draft).limit(30)):
            draft.status += "!"
        session.flush()  # thirty UPDATEs, for their versions
        for percent in range(12):
            session.execute(update(Letter).where(Letter.id == 1).values(status=f"{percent} %"))  # the same row
        for first in range(1, 1200, 100):
            session.execute(delete(Letter).where(Letter.id >= first, Letter.id < first + 100))  # ranges
        for first in range(1, 13):
            session.execute(insert(Letter), [{"id": 10 * first + n} for n in range(10)])  # batches
        session.rollback()
    assert found(scope) == []


def test_a_savepoint_for_each_row_survives_those_that_fail(engine: Engine) -> None:
    with sqla_watch.scope("savepoints") as scope, engine.begin() as connection:
        for number in range(1195, 1215):
            try:
                with connection.begin_nested():
                    connection.execute(insert(letters).values(id=number))
            except IntegrityError:
                pass
    assert found(scope) == []


def test_it_can_be_ignored(engine: Engine) -> None:
    with sqla_watch.scope("ignored") as scope, engine.begin() as connection:
        for number in range(1, 13):
            with sqla_watch.ignore("row-by-row-write", "* written_letters", reason="triggers"):
                connection.execute(delete(letters).where(letters.c.id == number))
        for number in range(1, 13):
            connection.execute(delete(drafts).where(drafts.c.id == number))  # sqla-watch: ignore[row-by-row-write]
    assert found(scope) == []
    assert sqla_watch.unused_ignores() == []


# Claims, drivers, warnings


def test_what_a_flush_storm_writes_is_told_once(engine: Engine) -> None:
    with sqla_watch.scope("storm") as scope, Session(engine) as session:
        for number in range(5001, 5013):
            session.add(Letter(id=number))
            session.flush()
        session.rollback()
    assert found(scope) == [("flush-storm", "written_letters")]


@pytest.fixture(params=DRIVERS)
def application(request: pytest.FixtureRequest, shop_url: str, tmp_path: Path) -> Iterator[Application]:
    application = Application(request.param, shop_url, tmp_path)
    application.fill()
    yield application
    application.clear()


def test_on_every_driver(application: Application) -> None:
    def story(connection: Connection) -> int:
        for number in range(1, 13):
            connection.execute(update(entries).where(entries.c.id == number).values(name=f"new {number}"))
        connection.execute(insert(entries), [{"id": number, "name": ""} for number in range(901, 921)])
        return connection.scalar(select(func.count()).select_from(entries)) or 0

    rows, scope = application.run(story)
    assert rows == 270
    finding = only(scope)
    assert (finding.rule, finding.evidence["different_rows"]) == ("row-by-row-write", 12)


@in_event_loop
async def test_async_writes_are_found_at_their_line(shop_url: str) -> None:
    for driver in ("asyncpg", "psycopg"):
        async with watched_async_engine(shop_url, driver) as engine:
            with sqla_watch.scope("async") as scope:
                async with AsyncSession(engine) as session:
                    for number in range(1, 13):
                        await session.execute(delete(Letter).where(Letter.id == number))  # awaits one
                    await session.rollback()
                    for letter in await session.scalars(select(Letter).where(Letter.id <= 200)):
                        letter.status = "sent"
                    await session.flush()  # awaits two hundred
                    await session.rollback()
        causes = {str(finding.evidence["cause"]): place(finding) for finding in scope.findings}
        assert causes == {
            "statement for each row": (__file__, line_of("awaits one")),
            "objects loaded to be changed alike": (__file__, line_of("awaits two hundred")),
        }


def test_the_warning_has_its_own_class(engine: Engine) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with sqla_watch.scope("warned"), engine.begin() as connection:
            for number in range(1, 13):
                connection.execute(delete(letters).where(letters.c.id == number))
    assert [each.category for each in caught] == [RowByRowWriteWarning]
