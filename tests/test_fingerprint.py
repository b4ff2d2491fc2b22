"""Statements are the same when only their values differ, and no value is ever kept."""

from __future__ import annotations

import doctest
import time

import pytest

import sqla_watch.fingerprint
from sqla_watch.fingerprint import LONGEST_TEXT, Fingerprints, read


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("SELECT name FROM users WHERE id = 7", "SELECT name FROM users WHERE id = ?"),
        ("SELECT  a\n FROM t -- c\n WHERE b = 'x''y' /* z */", "SELECT a FROM t WHERE b = ?"),
        ("SELECT a FROM t WHERE b IN (1, 2,3)", "SELECT a FROM t WHERE b IN (…)"),
        ("INSERT INTO t (a, b) VALUES (1, 'x'), (2, 'y'), (3, 'z')", "INSERT INTO t (a, b) VALUES (…), …"),
        (r"SELECT E'it\'s' || $tag$it's$tag$ || $$x$$ || U&'d' FROM t1", "SELECT ? || ? || ? || ? FROM t1"),
        ('SELECT "7 dwarfs", t2.c3 FROM "Snow 1"', 'SELECT "7 dwarfs", t2.c3 FROM "Snow 1"'),
        (
            "SELECT a FROM t WHERE j ?| array['x'] AND d ->> 'core' = %s",
            "SELECT a FROM t WHERE j ?| array[?] AND d ->> ? = %s",
        ),
        ("SELECT -1.5e3, 0xFF, .5, 1_0 FROM t", "SELECT -?, ?, ?, ? FROM t"),
        (
            "SELECT a FROM t WHERE b = %(b_1)s::INTEGER AND c = $2",
            "SELECT a FROM t WHERE b = %(b_1)s::INTEGER AND c = $2",
        ),
    ],
)
def test_what_is_shown_has_no_literals(text: str, shown: str) -> None:
    assert read(text).text == shown


def test_statements_that_differ_in_a_name_stay_different() -> None:
    assert read("SELECT a FROM t1 WHERE x = 1").text != read("SELECT a FROM t2 WHERE x = 1").text
    assert read('SELECT "A" FROM t').text != read('SELECT "B" FROM t').text


@pytest.mark.parametrize(
    ("text", "operation", "tables"),
    [
        ("SELECT o.id FROM orders AS o JOIN public.items i ON true, rates", "SELECT", ("orders", "public.items")),
        ("SELECT 1 FROM a, b AS c, d", "SELECT", ("a", "b", "d")),
        ("WITH q AS (SELECT 1 FROM z) SELECT * FROM q JOIN y ON true", "SELECT", ("z", "y")),
        ("WITH q AS (DELETE FROM z RETURNING id) INSERT INTO y SELECT * FROM q", "INSERT", ("z", "y")),
        ("UPDATE ONLY t SET a = 1", "UPDATE", ("t",)),
        ("SELECT extract(year FROM placed) FROM orders FOR UPDATE", "SELECT", ("orders",)),
        ("SELECT a FROM t WHERE a IS DISTINCT FROM b", "SELECT", ("t",)),
        ("(SELECT a FROM t) UNION (SELECT a FROM u)", "SELECT", ("t", "u")),
        ("SELECT now()", "SELECT", ()),
        ("", "", ()),
    ],
)
def test_operation_and_tables(text: str, operation: str, tables: tuple[str, ...]) -> None:
    found = read(text)
    assert (found.operation, found.tables) == (operation, tables)
    assert found.summary == " ".join((operation, *tables))


@pytest.mark.parametrize(
    ("text", "walking"),
    [
        ("SELECT a FROM t WHERE id > %(id_1)s ORDER BY id LIMIT %(param_1)s", {"id_1"}),
        ("SELECT a FROM t LIMIT $1 OFFSET $2", {1}),
        ("SELECT a FROM t WHERE b = ? AND c BETWEEN ? AND ?", {1, 2}),
        (
            "SELECT a FROM t WHERE (x, y) < (%(p1)s::TIMESTAMP WITHOUT TIME ZONE, %(p2)s::INTEGER) AND z = %(z)s",
            {"p1", "p2"},
        ),
        ("SELECT a FROM t WHERE x < :c OR (x = :c2 AND id < :i) AND q = :q", {"c", "c2", "i"}),
        ("SELECT a FROM t WHERE x >= $1::DATE AND x < $2::DATE AND y = $3", {0, 1}),
        ("SELECT a FROM t WHERE :low <= x AND y = :y", {"low"}),
        ("SELECT a FROM t WHERE x <> :x AND y = :y", set()),
    ],
)
def test_parameters_of_pages_ranges_and_keysets_walk(text: str, walking: set[str | int]) -> None:
    assert read(text).walking == walking


def test_walking_values_do_not_count_as_different_questions() -> None:
    page = read("SELECT a FROM t WHERE b = %(b)s LIMIT 10 OFFSET %(o)s")
    first, second, other = (page.hash_values({"b": b, "o": o}) for b, o in ((1, 0), (1, 10), (2, 0)))
    assert first[0] != second[0]
    assert first[1] == second[1] != other[1]


def test_pasted_literals_are_values_too() -> None:
    first, second = (read(f"SELECT a FROM t WHERE b = {value}") for value in (1, 2))
    assert first.text == second.text
    assert first.hash_values(())[1] != second.hash_values(())[1]


def test_a_long_list_is_a_chunk_and_a_short_one_a_question() -> None:
    query = read("SELECT a FROM t WHERE id IN (__[POSTCOMPILE_id_1])")
    long = [query.hash_values({f"id_1_{n}": n + start for n in range(60)})[1] for start in (0, 60)]
    short = [query.hash_values({f"id_1_{n}": n + start for n in range(3)})[1] for start in (0, 3)]
    assert long[0] == long[1]
    assert short[0] != short[1]


class Hostile:
    def __hash__(self) -> int:
        raise RuntimeError("no hash")

    def __repr__(self) -> str:
        raise RuntimeError("no name")


@pytest.mark.parametrize("value", [[1, 2], {"a": [1]}, b"x", Hostile(), None])
def test_any_value_can_be_hashed(value: object) -> None:
    assert read("SELECT a FROM t WHERE b = %s").hash_values([value]) is not None


@pytest.mark.parametrize(
    "text",
    [
        "SAVEPOINT a",
        "SET x = 1",
        "SHOW x",
        "SELECT 1 FROM pg_catalog.pg_class",
        "SELECT name FROM sqlite_temp_master",
        "PRAGMA x",
    ],
)
def test_housekeeping(text: str) -> None:
    assert read(text).housekeeping


def test_what_may_write() -> None:
    assert read("CALL work()").may_write
    assert read("SELECT id FROM work()").may_write
    assert read("WITH q AS (DELETE FROM t RETURNING id) SELECT id FROM q JOIN u ON true").may_write
    assert not read("SELECT count(id) FROM t").may_write


def test_memory_is_bounded_and_a_long_text_is_not_cut_into_another() -> None:
    fingerprints = Fingerprints(limit=10)
    for number in range(100):
        fingerprints.of(f"SELECT {number} FROM t{number}")
    assert len(fingerprints._by_text) <= 10
    long = "SELECT a FROM t WHERE b IN (" + "1," * LONGEST_TEXT
    assert read(long + "2)").text != read(long + "3)").text
    assert len(read(long).text) < 3_000


@pytest.mark.parametrize(
    "text",
    ["SELECT " + "(" * 30_000, "a.b <" * 12_000, "SELECT x FROM " + "a , " * 15_000, "'" * 60_000, "$$" * 30_000,
     "(" * 20_000 + ")" * 20_000 + " < 1", "SELECT 1 FROM " + "a " * 30_000, "WITH " + "a AS (, " * 8_000,
     "x::" + "timestamp " * 6_000, "CAST (" * 10_000],
    ids=lambda text: text[:12],
)  # fmt: skip
def test_hostile_text_is_read_in_linear_time(text: str) -> None:
    started = time.process_time()
    read(text)
    assert time.process_time() - started < 1.0


def test_the_examples_of_the_documentation() -> None:
    assert doctest.testmod(sqla_watch.fingerprint).failed == 0
