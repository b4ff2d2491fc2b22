"""Snapshots: readable SQL that is the same on each line of SQLAlchemy and with each driver."""

from __future__ import annotations

import os
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, ForeignKey, Numeric, cast, create_engine, delete, func, insert, select, text, update
from sqlalchemy import String as Text
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    aliased,
    joinedload,
    mapped_column,
    relationship,
    selectinload,
    subqueryload,
    undefer,
)

import sqla_watch
from sqla_watch import Settings
from sqla_watch.pytest_plugin import snapshots
from sqla_watch.pytest_plugin.snapshots import SnapshotMismatch, readable, snapshot_file, statements_of
from tests.conftest import url_for

SETTINGS = Settings(profile="test", timeline=1_000)


class Base(DeclarativeBase):
    pass


class Band(Base):
    __tablename__ = "snapshot_bands"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    kind: Mapped[str] = mapped_column(default="band")
    notes: Mapped[str | None] = mapped_column(deferred=True)
    records: Mapped[list[Record]] = relationship(back_populates="band", order_by="Record.id")

    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "band"}


class Orchestra(Band):
    __tablename__ = "snapshot_orchestras"

    id: Mapped[int] = mapped_column(ForeignKey("snapshot_bands.id"), primary_key=True)
    hall: Mapped[str]

    __mapper_args__ = {"polymorphic_identity": "orchestra"}


class Record(Base):
    __tablename__ = "snapshot_records"

    id: Mapped[int] = mapped_column(primary_key=True)
    band_id: Mapped[int] = mapped_column(ForeignKey("snapshot_bands.id"))
    price: Mapped[Decimal] = mapped_column(Numeric(10, 2))
    a_column_with_a_name_that_is_so_long_that_its_label_is_cut_off: Mapped[str | None]
    band: Mapped[Band] = relationship(back_populates="records")


def load(engine: Engine) -> list[str]:
    """Load and write in the ways that SQLAlchemy writes differently; the statements."""
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    with Session(engine) as session, sqla_watch.scope("story", settings=SETTINGS) as scope:
        session.add_all([Band(id=1, name="one"), Band(id=2, name="two"), Orchestra(id=3, name="three", hall="hall")])
        session.flush()
        session.add_all([Record(band_id=number, price=Decimal("9.99")) for number in (1, 2, 3)])
        session.commit()
        assert session.get_one(Band, 1).records[0].band.notes is None
        session.rollback()
        for options in (selectinload(Band.records), subqueryload(Band.records), joinedload(Band.records)):
            session.scalars(
                select(Band).options(options, undefer(Band.notes)).order_by(Band.id).limit(2)
            ).unique().all()
            session.expire_all()
        assert session.get_one(Orchestra, 3).hall == "hall"
        other = aliased(Record)
        session.execute(
            select(func.count(Record.id), func.max(other.price))
            .join(other, other.band_id == Record.band_id)
            .where(Record.id.in_([1, 2, 3]), Record.price > 5)
        ).all()
        session.execute(select(Record.price + 1, cast(Record.id, Text)).where(Record.band.has(name="one"))).all()
        session.execute(update(Record).where(Record.id == 1).values(price=3))
        session.execute(insert(Record).returning(Record.id), [{"band_id": 1, "price": 1}, {"band_id": 2, "price": 2}])
        session.execute(delete(Record).where(Record.id == 99))
        session.execute(text("SELECT name FROM snapshot_bands WHERE id = :id AND name <> 'a secret'"), {"id": 1}).all()
        with session.begin_nested():
            session.execute(select(func.count()).select_from(Band)).scalar_one()
        session.query(Band.id, Band.name).filter_by(id=1).first()
        session.commit()
    return statements_of(scope)


@pytest.fixture(params=["psycopg", "psycopg2"])
def database(request: pytest.FixtureRequest, database_url: str) -> Iterator[Engine]:
    engine = create_engine(url_for(database_url, request.param))
    sqla_watch.install(engine, settings=SETTINGS)
    yield engine
    Base.metadata.drop_all(engine)
    engine.dispose()


EXPECTED = (Path(__file__).parent / "statements.sql").read_text(encoding="utf-8")


def test_the_statements_are_the_same_on_each_line_of_sqlalchemy_and_with_each_driver(database: Engine) -> None:
    assert "\n\n".join(load(database)) + "\n" == EXPECTED


def test_nothing_of_the_values_is_in_them() -> None:
    for value in ("one", "9.99", "hall'", "secret", "99"):
        assert value not in EXPECTED


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ("SELECT a.b AS a_b FROM a", "SELECT a.b\nFROM a"),
        ("SELECT shop.a.b AS shop_a_b FROM shop.a", "SELECT shop.a.b\nFROM shop.a"),
        ('SELECT "order"."Total" AS "order_Total" FROM "order"', 'SELECT "order"."Total"\nFROM "order"'),
        ("SELECT a_1.id AS a_1_id, a_2.id AS a_2_id FROM a AS a_1", "SELECT a_1.id, a_2.id\nFROM a AS a_1"),
        ("SELECT a_1.id AS id_1, b_1.id AS id__2 FROM a AS a_1", "SELECT a_1.id, b_1.id\nFROM a AS a_1"),
        ("SELECT a.b AS total FROM a", "SELECT a.b AS total\nFROM a"),
        ("SELECT a.b AS b FROM a", "SELECT a.b AS b\nFROM a"),
        ("SELECT x FROM (SELECT a.b AS a_b FROM a) AS y", "SELECT x\nFROM (SELECT a.b AS a_b FROM a) AS y"),
        ("SELECT anon_3.x, anon_2.y AS anon_2_y FROM anon_2", "SELECT anon_1.x, anon_2.y\nFROM anon_2"),
        (
            "SELECT a_7.x FROM a AS a_7 JOIN a AS a_3 ON a_3.x = a_7.x",
            "SELECT a_1.x\nFROM a AS a_1\nJOIN a AS a_2 ON a_2.x = a_1.x",
        ),
        ("SELECT line_2, line_1 FROM address", "SELECT line_2, line_1\nFROM address"),
        ("SELECT a FROM b WHERE c = $1::VARCHAR(20)[] AND d = $2", "SELECT a\nFROM b\nWHERE c = ? AND d = ?"),
        ("SELECT a FROM b WHERE c = %(c)s::TIMESTAMP WITHOUT TIME ZONE", "SELECT a\nFROM b\nWHERE c = ?"),
        ("SELECT a FROM b WHERE c = :c AND d::text = :d", "SELECT a\nFROM b\nWHERE c = ? AND d::text = ?"),
        ("SELECT a FROM b WHERE c ? $1 AND d ?| $2", "SELECT a\nFROM b\nWHERE c ? ? AND d ?| ?"),
        ("SELECT a %% 2 FROM b WHERE c = %s", "SELECT a % 2\nFROM b\nWHERE c = ?"),
        ("SELECT a FROM b WHERE c IN (?, ?, ?)", "SELECT a\nFROM b\nWHERE c IN (?, …)"),
        ("SELECT a FROM b WHERE c NOT IN (__[POSTCOMPILE_c_1])", "SELECT a\nFROM b\nWHERE c NOT IN (?, …)"),
        ('SELECT "100%" FROM "from" WHERE "a:b" = ?', 'SELECT "100%"\nFROM "from"\nWHERE "a:b" = ?'),
        ("SELECT b.from, b.limit FROM b", "SELECT b.from, b.limit\nFROM b"),
        ("SELECT DISTINCT a FROM b FOR UPDATE SKIP LOCKED", "SELECT DISTINCT a\nFROM b\nFOR UPDATE SKIP LOCKED"),
        ("DELETE FROM a WHERE b = ?", "DELETE FROM a\nWHERE b = ?"),
        ("UPDATE a SET b=? WHERE c = ?", "UPDATE a\nSET b=?\nWHERE c = ?"),
        ("SELECT a WHERE b IS DISTINCT FROM ?", "SELECT a\nWHERE b IS DISTINCT FROM ?"),
        (
            "INSERT INTO a (b) VALUES (?) ON CONFLICT (b) DO UPDATE SET c = ? RETURNING a.b",
            "INSERT INTO a (b)\nVALUES (?)\nON CONFLICT (b) DO UPDATE SET c = ?\nRETURNING a.b",
        ),
        (
            "WITH RECURSIVE x AS (SELECT 1 FROM a) SELECT x.y FROM x UNION ALL SELECT z FROM w",
            "WITH RECURSIVE x AS (SELECT 1 FROM a)\nSELECT x.y\nFROM x\nUNION ALL\nSELECT z\nFROM w",
        ),
        ("VACUUM", "VACUUM"),
        ("", ""),
        (")(", ")("),
    ],
)  # fmt: skip
def test_a_statement_as_it_reads_best(sent: str, shown: str) -> None:
    assert readable(sent) == shown


def test_what_is_longer_than_a_line_is_broken_at_commas() -> None:
    columns = ", ".join(f"customers.column_{number:02}" for number in range(20))
    lines = readable(f"SELECT {columns} FROM customers").splitlines()
    assert max(map(len, lines)) <= 100
    assert [line[:4] == "    " for line in lines] == [False, *[True] * (len(lines) - 2), False]
    assert " ".join(line.strip() for line in lines) == f"SELECT {columns} FROM customers"


class TestScope:
    def test_without_a_timeline_there_is_nothing_to_compare(self) -> None:
        with (
            sqla_watch.scope("story", settings=Settings(timeline=0)) as scope,
            pytest.raises(SnapshotMismatch, match="the scope 'story' keeps no timeline"),
        ):
            statements_of(scope)

    def test_more_than_the_timeline_keeps_is_not_compared(self) -> None:
        engine = create_engine("sqlite://")
        with sqla_watch.install(engine), sqla_watch.scope("story", settings=Settings(timeline=2)) as scope:
            with engine.connect() as connection:
                for _ in range(2):
                    connection.execute(select(1))
                assert len(statements_of(scope)) == 2
                connection.execute(select(1))
            with pytest.raises(SnapshotMismatch, match=r"has seen more than its timeline keeps \(2\)"):
                statements_of(scope)
        engine.dispose()


class TestFile:
    @pytest.fixture
    def test_file(self, tmp_path: Path) -> Path:
        return tmp_path / "test_orders.py"

    @pytest.fixture
    def stored(self, test_file: Path) -> Path:
        return test_file.parent / "__snapshots__" / "test_orders" / "test_list.sql"

    def test_it_is_written_on_request_only(self, test_file: Path, stored: Path) -> None:
        with pytest.raises(SnapshotMismatch, match=r"there is no snapshot .*--sqla-watch-update-snapshots"):
            snapshots.check(test_file, "test_list", ["SELECT ?"], update=False)
        assert not stored.exists()
        snapshots.check(test_file, "test_list", ["SELECT ?"], update=True)
        assert stored.read_text() == "-- sqla_watch snapshot, version 1\n\nSELECT ?;\n"
        snapshots.check(test_file, "test_list", ["SELECT ?"], update=False)

    def test_a_difference_is_shown_as_one(self, test_file: Path) -> None:
        snapshots.check(test_file, "test_list", ["SELECT a\nFROM b", "SELECT c"], update=True)
        with pytest.raises(SnapshotMismatch) as raised:
            snapshots.check(test_file, "test_list", ["SELECT a\nFROM b\nWHERE d = ?", "SELECT c"], update=False)
        message = str(raised.value)
        assert "the statements of test_list are not those of" in message
        assert "-FROM b;\n+FROM b\n+WHERE d = ?;\n" in message

    def test_how_often_a_statement_is_sent_counts(self, test_file: Path, stored: Path) -> None:
        snapshots.check(test_file, "test_list", ["SELECT a", *["SELECT b"] * 20, "SELECT a"], update=True)
        assert stored.read_text().partition("\n\n")[2] == "SELECT a;\n\n-- 20 times\nSELECT b;\n\nSELECT a;\n"
        with pytest.raises(SnapshotMismatch, match=r"-- 21 times"):
            snapshots.check(test_file, "test_list", ["SELECT a", *["SELECT b"] * 21, "SELECT a"], update=False)

    def test_no_statement_is_something_to_compare_with(self, test_file: Path, stored: Path) -> None:
        snapshots.check(test_file, "test_list", [], update=True)
        assert "-- no statement\n" in stored.read_text()
        snapshots.check(test_file, "test_list", [], update=False)
        with pytest.raises(SnapshotMismatch):
            snapshots.check(test_file, "test_list", ["SELECT a"], update=False)

    @pytest.mark.parametrize(
        "content", [b"SELECT a;\n", b"-- sqla_watch snapshot, version 2\n\nSELECT a;\n", b"\xff", b""]
    )
    def test_a_foreign_or_later_file_is_told_apart(self, test_file: Path, stored: Path, content: bytes) -> None:
        stored.parent.mkdir(parents=True)
        stored.write_bytes(content)
        with pytest.raises(SnapshotMismatch, match=r"is no snapshot of ours of version 1"):
            snapshots.check(test_file, "test_list", ["SELECT a"], update=False)

    def test_ends_of_lines_that_git_has_changed_are_no_difference(self, test_file: Path, stored: Path) -> None:
        snapshots.check(test_file, "test_list", ["SELECT a\nFROM b"], update=True)
        stored.write_bytes(stored.read_bytes().replace(b"\n", b"\r\n"))
        snapshots.check(test_file, "test_list", ["SELECT a\nFROM b"], update=False)

    @pytest.mark.parametrize(
        "name",
        [
            "TestA.test[../../../etc/passwd]",
            "test[a/b]",
            "test[a\\b]",
            "test[\0]",
            f"test[{'x' * 500}]",
            "..",
            "",
            "test[\ud800]",
        ],
    )
    def test_no_name_leads_out_of_the_folder(self, test_file: Path, name: str) -> None:
        snapshots.check(test_file, name, ["SELECT a"], update=True)
        (written,) = (test_file.parent / "__snapshots__" / "test_orders").iterdir()
        assert written == snapshot_file(test_file, name)
        assert os.listdir(test_file.parent) == ["__snapshots__"]
        snapshots.check(test_file, name, ["SELECT a"], update=False)

    def test_two_tests_never_share_a_file(self, test_file: Path) -> None:
        names = ["test[a/b]", "test[a b]", "test_a_b_", "test[a_b]", "test" + "x" * 100, "test" + "x" * 101]
        assert len({snapshot_file(test_file, name) for name in names}) == len(names)


def test_a_value_of_any_kind_is_hidden() -> None:
    engine = create_engine("sqlite://")
    values: list[Any] = ["a secret", 4711, b"bytes"]
    with (
        sqla_watch.install(engine),
        sqla_watch.scope("story", settings=SETTINGS) as scope,
        engine.connect() as connection,
    ):
        for value in values:
            connection.execute(text("SELECT :value, 'a secret', 4711, x'6279746573'"), {"value": value})
    engine.dispose()
    assert statements_of(scope) == ["SELECT ?, ?, ?, ?"] * 3
