"""Texts and numbers as people read them, and the examples in their docstrings."""

from __future__ import annotations

import doctest
import unicodedata

import pytest

from sqla_watch.panel import reading, views
from sqla_watch.reporters import text
from sqla_watch.reporters.text import duration, visible


@pytest.mark.parametrize("module", [text, reading, views])
def test_examples(module: object) -> None:
    result = doctest.testmod(module)  # type: ignore[arg-type]
    assert result.attempted
    assert result.failed == 0


def test_every_character_that_cannot_be_seen_is_written_out() -> None:
    for number in [*range(0x3000), *range(0xD7F0, 0xE010), *range(0xFE00, 0x10000), 0xE0001, 0x10FFFF]:
        character = chr(number)
        shown = visible(f"a{character}b")
        shown.encode("utf-8")
        if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") and character not in "\n\t":
            assert shown.startswith("a\\"), hex(number)
            assert shown.isascii()


def test_what_people_write_stays_as_it_is() -> None:
    written = "SELECT 'größe', '数', 'עברית', '🙂' -- ok\n\tFROM t"
    assert visible(written) == written
    assert visible("one\r\ntwo\rthree") == "one\ntwo\\rthree"


@pytest.mark.parametrize(
    "seconds", [0.0, 4.9e-6, 5e-6, 9.949e-4, 0.00995, 0.0099499, 0.9994, 0.9995, 9.9949, 9.995, 99.95, 1e9]
)
def test_a_time_never_has_more_than_three_digits_and_a_unit_that_fits(seconds: float) -> None:
    number, _, unit = duration(seconds).partition(" ")
    digits = number.replace(",", "").replace("<", "").replace(".", "").lstrip("0")
    assert unit in ("ms", "s")
    if seconds < 1000:
        assert len(digits) <= 3
        value = float(number.replace("<", "")) * (0.001 if unit == "ms" else 1)
        assert value == pytest.approx(seconds, rel=0.06, abs=1e-5)
