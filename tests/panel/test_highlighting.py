"""SQL laid out and coloured: never slow, and never anything but text."""

from __future__ import annotations

import time

import pytest
from markupsafe import escape

from sqla_watch.panel import highlighting
from sqla_watch.panel.highlighting import PAGE_COLOURED, Highlighter
from tests.panel.examples import ITEMS


def test_a_statement_is_laid_out_and_coloured_by_class_names() -> None:
    shown = Highlighter()(ITEMS)
    assert '<span class="k">SELECT</span>' in shown
    assert "style" not in shown
    lines = shown.splitlines()
    assert len(lines) > 4
    assert any(line.startswith('<span class="k">WHERE</span>') for line in lines)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT '</code></pre><script>window.pwned=1</script>'",
        'SELECT "<img src=x onerror=alert(1)>" FROM t',
        "SELECT 1 -- <script>alert(1)</script>",
        "/* <svg onload=alert(1)> */ SELECT 1",
        "SELECT $$<b>$$, $tag$<i>$tag$, E'<u>', U&'<s>'",
        "<script>alert(1)</script>",
        "&lt;script&gt;",
        "\u2028<\u2029>",
    ],
)
def test_nothing_in_a_statement_becomes_markup(sql: str) -> None:
    shown = Highlighter()(sql)
    tags = [part.partition(">")[0] for part in shown.split("<")[1:]]
    assert all(tag == "/span" or tag.startswith('span class="') for tag in tags), tags


@pytest.mark.parametrize("length", [2_900, 20_000])
@pytest.mark.parametrize(
    "part",
    [
        "(", "[", "'", '"', "--", "/*", "$$", "$a$", "a,", "a.", "a+", "?,", "(?,?),", "CASE WHEN ", "BEGIN ", "((((a",
        "select (select ", " ", "\n", "\\", "E'", "U&'", "do $$ language ", "1e", "::", "a=? AND ",
        "IN (?,", "é", "\x00", ";",
    ],
)  # fmt: skip
def test_no_statement_takes_long(part: str, length: int) -> None:
    sql = f"SELECT {part * (length // len(part))}"
    fastest = min(_seconds(sql) for _ in range(2))
    # Half a second of our own time at most; 20,000 characters of the worst kind take a fifth of that.
    assert fastest < 0.5


def _seconds(sql: str) -> float:
    highlighting._kept.cache_clear()
    begun = time.thread_time()
    Highlighter()(sql)
    return time.thread_time() - begun


def test_a_page_with_very_much_sql_shows_the_rest_plainly() -> None:
    highlighter = Highlighter()
    shown = [highlighter(f"SELECT {number}, '{'x' * 9_000}'") for number in range(PAGE_COLOURED // 9_000 + 5)]
    assert "<span" in shown[0]
    assert shown[-1] == escape(f"SELECT {len(shown) - 1}, '{'x' * 9_000}'")
    assert "<span" in highlighter("SELECT 1")  # there is room for something short


def test_long_statements_keep_their_own_layout() -> None:
    sql = "SELECT a\n      FROM t " + "-- x\n" * 1_000
    assert Highlighter()(sql).unescape().replace('<span class="k">', "").startswith("SELECT")
    assert Highlighter()(sql).count("\n") == sql.count("\n")


@pytest.mark.parametrize("broken", ["format", "highlight"])
def test_a_library_that_fails_leaves_the_plain_text(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> str:
        raise RecursionError("too deep")

    highlighting._kept.cache_clear()
    owner = "sqlparse." if broken == "format" else "sqla_watch.panel.highlighting."
    monkeypatch.setattr(owner + broken, fail)
    assert "&lt;" in Highlighter()("SELECT 1 < 2")
    highlighting._kept.cache_clear()
