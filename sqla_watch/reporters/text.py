"""Texts and numbers as people read them; whatever comes from the application is cut to a length and made visible."""

from __future__ import annotations

from datetime import datetime
from functools import lru_cache

__all__ = ["bytes_of", "count", "cut", "duration", "milliseconds", "moment", "number", "percent", "plain", "visible"]


def visible(text: str) -> str:
    r"""Return text in which every character can be seen: all others but line breaks and tabs are written out.

    That takes care of escapes for terminals, marks that turn the direction of writing, and lone surrogates, which no
    UTF-8 has.

    >>> visible("SELECT \x1b[31m1\u202e")
    'SELECT \\x1b[31m1\\u202e'
    """
    text = text.replace("\r\n", "\n")
    if text.replace("\n", "").replace("\t", "").isprintable():
        return text
    return "".join(map(_visible, text))


def plain(text: str) -> str:
    r"""Return one line in which every character can be seen: line breaks and tabs are written out, too.

    >>> plain("SELECT \x1b[31m1")
    'SELECT \\x1b[31m1'
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode("ascii") for each in text)


@lru_cache(maxsize=4_096)
def _visible(character: str) -> str:
    if character in "\n\t" or character.isprintable():
        return character
    return character.encode("unicode_escape").decode("ascii")


def cut(text: str, most: int) -> str:
    """Return a text, or its beginning and how long it was.

    >>> cut("abcdefgh", 3)
    'abc … (8 characters)'
    """
    return text if len(text) <= most else f"{text[:most]} … ({len(text):,} characters)"


def number(value: int | float) -> str:
    """Return a number with thousands apart.

    >>> number(12345), number(0.25)
    ('12,345', '0.25')
    """
    return f"{value:,}" if isinstance(value, int) else f"{value:,.6g}"


def count(value: int, thing: str) -> str:
    """Return a number with its noun.

    >>> count(1, "statement"), count(1204, "row")
    ('1 statement', '1,204 rows')
    """
    return f"{value:,} {thing}{'' if value == 1 else 's'}"


def milliseconds(seconds: float) -> str:
    """Return a time as people read it.

    >>> milliseconds(0.0123), milliseconds(0.0012), milliseconds(2.5)
    ('12 ms', '1.2 ms', '2,500 ms')
    """
    return f"{seconds * 1e3:,.0f} ms" if seconds >= 0.01 else f"{seconds * 1e3:.1f} ms"


def duration(seconds: float) -> str:
    """Return a time in the unit that reads best, with three digits at most.

    >>> [duration(each) for each in (0, 0.0000004, 0.00042, 0.0042, 0.042, 0.42, 4.2, 42.04, 4200)]
    ['0 ms', '<0.01 ms', '0.42 ms', '4.2 ms', '42 ms', '420 ms', '4.20 s', '42.0 s', '4,200 s']
    """
    milliseconds = seconds * 1e3
    if abs(milliseconds) >= 999.5:
        return (
            f"{seconds:.2f} s"
            if abs(seconds) < 9.995
            else f"{seconds:.1f} s"
            if seconds < 99.95
            else f"{seconds:,.0f} s"
        )
    if abs(milliseconds) >= 9.95:
        return f"{milliseconds:.0f} ms"
    if abs(milliseconds) >= 0.995:
        return f"{milliseconds:.1f} ms"
    if abs(milliseconds) >= 0.005:
        return f"{milliseconds:.2f} ms"
    return "0 ms" if not seconds else "<0.01 ms"


def percent(share: float) -> str:
    """Return a share, of which something small is not nothing.

    >>> percent(0), percent(0.001), percent(0.434), percent(3)
    ('0 %', '<1 %', '43 %', '300 %')
    """
    return "<1 %" if 0 < share < 0.005 else f"{share * 100:,.0f} %"


def bytes_of(size: int) -> str:
    """Return a number of bytes.

    >>> bytes_of(12_300_000)
    '12.3 MB'
    """
    return f"{size / 1e6:,.1f} MB"


def moment(seconds: float) -> datetime:
    """Return a moment, seconds since 1970, in the time zone of this machine."""
    return datetime.fromtimestamp(seconds).astimezone()
