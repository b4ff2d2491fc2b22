"""Snapshots: the statements of a test as readable SQL, in a file beside it that is committed with the code.

A scope's timeline flows in; out comes text that is the same on SQLAlchemy 2.0 and 2.1, with every driver of a database
and whatever the values are: parameters are `?`, lists of them `(?, …)`, the casts that drivers put around them are
gone, and so are labels that only say where a column is from.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqla_watch.scopes import Scope

__all__ = ["SnapshotMismatch", "check", "readable", "snapshot_file", "statements_of"]

VERSION = 1
FOLDER = "__snapshots__"
_HEAD = f"-- sqla_watch snapshot, version {VERSION}"

_WIDTH = 100
_LONGEST_NAME = 80

_QUOTED = r""""(?:[^"]|"")*"|`[^`]*`"""
_CAST = (
    r"""(?:\s*::\s*(?:(?:TIMESTAMP|TIME)(?:\s*\(\d+\))?(?:\s+WITH(?:OUT)?\s+TIME\s+ZONE)?|DOUBLE\s+PRECISION"""
    r"""|CHARACTER\s+VARYING|[\w."]+)(?:\s*\([\d, ]*\))?(?:\[\])*)*"""
)
_PARAMETER = re.compile(
    rf"""(?P<kept>{_QUOTED})|%(?P<percent>%)|(?:%\([^()%]*\)[sb]|%[sb]|\$\d+|\?(?![|&?])|(?<!:):(?!:)[A-Za-z_]\w*"""
    rf"""|__\[POSTCOMPILE_[^\[\]]*\]){_CAST}""",
    re.IGNORECASE,
)
_LIST = re.compile(r"\b(IN\s*)\(\s*\?(?:\s*,\s*\?)*\s*\)", re.IGNORECASE)
# What SQLAlchemy makes of an INSERT of many objects whose keys the server makes, so that it can tell their order.
_SENTINEL = re.compile(
    r"SELECT p\d+(?:::[^,()]+(?:\([^()]*\))?[^,()]*)?(?:, p\d+(?:::[^,()]+(?:\([^()]*\))?[^,()]*)?)* FROM "
    r"\(VALUES (\(.*?\))(?:, \(.*?\))*\) AS imp_sen\([^)]*\) ORDER BY sen_counter"
)
_SENTINEL_KEY = re.compile(r", [\w.\"]+ AS \w+__\d+")
_NAME = r"""(?:\w+|"(?:[^"]|"")+"|`[^`]+`)"""
_LABEL = re.compile(
    rf"(?P<column>(?P<table>{_NAME}(?:\.{_NAME})*)\.(?P<key>{_NAME}))\s+AS\s+(?P<label>{_NAME})(?![\w.])"
)
_ALIAS = re.compile(r"""\b(?P<stem>\w+?)"?\s+AS\s+"?(?P<alias>(?P=stem)_\d+)\b|\b(?P<anonymous>anon_\d+)\b""")
_CLAUSE = re.compile(
    r"\b(?:SELECT|FROM|WHERE|GROUP BY|HAVING|ORDER BY|LIMIT|OFFSET|FETCH"
    r"|FOR (?:NO KEY )?(?:UPDATE|SHARE|KEY SHARE)|RETURNING|ON CONFLICT|VALUES|SET|WINDOW"
    r"|(?:UNION|INTERSECT|EXCEPT)(?: ALL)?"
    r"|(?:LEFT |RIGHT |FULL )?(?:OUTER )?(?:INNER |CROSS )?JOIN)\b",
    re.IGNORECASE,
)
_GOES_ON = ("DISTINCT ", "DELETE ", "DO UPDATE ", ".")
"""Behind these a word begins no clause."""
_PIECE = re.compile(rf"{_QUOTED}|[()]|,\s*|{_CLAUSE.pattern}|.", re.IGNORECASE | re.DOTALL)


class SnapshotMismatch(AssertionError):
    """The statements of a test are not those of its snapshot, or there is none yet."""


def statements_of(scope: Scope) -> list[str]:
    """Return the statements of a scope so far as readable SQL, in the order in which they began.

    Savepoints, settings and catalogue look-ups are none. Where several threads or tasks send statements at once their
    order is by chance, and so is a snapshot of them.

    Args:
        scope: A scope with a timeline.

    Raises:
        SnapshotMismatch: It has no timeline, or has seen more than its timeline has room for.
    """
    from sqla_watch.fingerprint import read

    scope.digest()
    if scope.timeline is None:
        raise SnapshotMismatch(
            f"the scope {scope.name!r} keeps no timeline, so there is nothing to compare with a snapshot: "
            "set timeline in the settings, as in sqla_watch.Settings(timeline=1000)"
        )
    if scope.timeline.left_out:
        raise SnapshotMismatch(
            f"the scope {scope.name!r} has seen more than its timeline keeps ({scope.timeline.most:,}); "
            "take a snapshot of a smaller part, or set timeline in the settings"
        )
    timeline = scope.timeline.to_dict(scope.started)
    texts = [None if read(text).housekeeping else readable(text) for text in timeline["texts"]]
    sent = [texts[entry["text"]] for entry in timeline["entries"] if entry["kind"] == "statement"]
    return [text for text in sent if text is not None]


@lru_cache(maxsize=1_024)
def readable(text: str) -> str:
    """Return a statement as it reads best, the same for all drivers and lines of SQLAlchemy, without any value.

    Args:
        text: The text of a fingerprint: without literals, white space folded.

    >>> print(readable("SELECT orders.id AS orders_id FROM orders WHERE orders.id = %(pk_1)s::INTEGER"))
    SELECT orders.id
    FROM orders
    WHERE orders.id = ?
    """
    text = _PARAMETER.sub(lambda found: found["kept"] or found["percent"] or "?", text)
    text = _LIST.sub(r"\1(?, …)", text)
    text, of_many = _SENTINEL.subn(r"VALUES \1", text)
    if of_many:
        text = re.sub(r"\((\?(?:, \?)*)\)", lambda found: f"({found[1]})", text)
        text = _SENTINEL_KEY.sub("", text)
    return _in_lines(_renumbered(_without_labels(text)))


def _without_labels(text: str) -> str:
    """Take out of the outermost SELECT the labels that SQLAlchemy makes of a table's and a column's name."""
    pieces: list[str] = []
    depth = 0
    outer: list[str] = []
    for piece in _PARENTHESIS.split(text):
        if piece in ("(", ")"):
            if piece == "(" and depth == 0:
                pieces.append(_LABEL.sub(_unlabelled, "".join(outer)))
                outer.clear()
            depth += 1 if piece == "(" else -1
            pieces.append(piece)
        elif depth:
            pieces.append(piece)
        else:
            outer.append(piece)
    return "".join([*pieces, _LABEL.sub(_unlabelled, "".join(outer))])


_PARENTHESIS = re.compile(r"([()])")


def _unlabelled(found: re.Match[str]) -> str:
    table, key, label = (re.sub(r'["`]', "", found[name]) for name in ("table", "key", "label"))
    full = f"{table.replace('.', '_')}_{key}"
    stem = re.sub(r"_[0-9a-f]+$", "", label)
    made = label == full or stem in (full, key, f"{key}_") or (len(stem) > 40 and full.startswith(stem))
    return found["column"] if made and label != key else found[0]


def _renumbered(text: str) -> str:
    """Number the names that SQLAlchemy makes up in the order in which they come."""
    names: dict[str, str] = {}
    numbers: dict[str, int] = {}
    for found in _ALIAS.finditer(text):
        name = found["alias"] or found["anonymous"]
        if name not in names:
            stem = name.rpartition("_")[0]
            numbers[stem] = numbers.get(stem, 0) + 1
            names[name] = f"{stem}_{numbers[stem]}"
    if all(old == new for old, new in names.items()):
        return text
    return re.sub(rf"\b(?:{'|'.join(map(re.escape, names))})\b", lambda found: names[found[0]], text)


def _in_lines(text: str) -> str:
    """Begin a line with each clause, and break what is longer than a line at its commas."""
    lines = [""]
    breaks: list[list[int]] = [[]]
    depth = 0
    for found in _PIECE.finditer(text):
        piece = found[0]
        if piece in ("(", ")"):
            depth += 1 if piece == "(" else -1
        elif depth == 0 and piece.startswith(","):
            breaks[-1].append(len(lines[-1]) + 1)
        elif depth == 0 and _CLAUSE.fullmatch(piece) and not lines[-1].endswith(_GOES_ON):
            lines.append("")
            breaks.append([])
        lines[-1] += piece
    return "\n".join(
        line for text, places in zip(lines, breaks, strict=True) for line in _broken(text.rstrip(), places) if line
    )


def _broken(line: str, places: Sequence[int]) -> list[str]:
    """Break a line at some of the given places, so that each is as long as it may be."""
    broken: list[str] = []
    start = 0
    indent = ""
    for this, following in pairwise([*places, len(line)]):
        if following - start + len(indent) > _WIDTH and this > start:
            broken.append(indent + line[start:this].strip())
            start, indent = this, "    "
    return [*broken, indent + line[start:].strip()]


def snapshot_file(test_file: str | os.PathLike[str], name: str) -> Path:
    """Return where the snapshot of a test is: `__snapshots__/test_orders/test_list.sql` beside its file.

    Each has a file of its own, so that several processes can write theirs at once. Characters that a file name cannot
    have everywhere become `_`, with a hash behind the name so that two tests never share a file.
    """
    safe = re.sub(r"[^\w.-]+", "_", name, flags=re.ASCII).strip("._")[:_LONGEST_NAME]
    if safe != name:
        safe = f"{safe}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"
    test_file = Path(test_file)
    return test_file.parent / FOLDER / test_file.stem / f"{safe}.sql"


def check(path: str | os.PathLike[str], name: str, statements: Iterable[str], update: bool) -> None:
    """Compare the statements of a test with its snapshot, or write it.

    Args:
        path: The file of the test.
        name: Of the test within its file, as `TestOrders.test_list[few]`; with a number for its second snapshot.
        statements: As `statements_of` returns them.
        update: Whether the snapshot is written instead, by `--sqla-watch-update-snapshots`.

    Raises:
        SnapshotMismatch: They differ, or there is no snapshot yet, or it is not one of ours.
        ReportError: It cannot be written.
    """
    __tracebackhide__ = True
    file = snapshot_file(path, name)
    new = _written(statements)
    try:
        old = file.read_bytes().decode("utf-8", "backslashreplace").replace("\r\n", "\n")
    except FileNotFoundError:
        old = None
    if old == new:
        return
    if update:
        from sqla_watch.reporters import files

        file.parent.mkdir(parents=True, exist_ok=True)
        files.write(new.encode("utf-8", "backslashreplace"), str(file), "snapshot")
        return
    shown = os.path.relpath(file) if file.is_relative_to(os.getcwd()) else str(file)
    accept = "run it with --sqla-watch-update-snapshots"
    if old is None:
        raise SnapshotMismatch(f"there is no snapshot {shown} of the statements of {name}; {accept} to write it")
    if not old.startswith(_HEAD + "\n"):
        raise SnapshotMismatch(
            f"{shown} is no snapshot of ours of version {VERSION}: it does not begin with {_HEAD!r}; "
            f"delete it, and {accept} to write it anew"
        )
    difference = difflib.unified_diff(
        old.splitlines()[1:], new.splitlines()[1:], "the snapshot", "the statements now", lineterm="", n=2
    )
    raise SnapshotMismatch(
        "\n".join([f"the statements of {name} are not those of {shown}; if that is meant, {accept}", *difference])
    )


def _written(statements: Iterable[str]) -> str:
    """Return the content of a snapshot's file; what is sent several times in a row stands there once."""
    blocks = []
    for statement, alike in groupby(statements):
        times = len(list(alike))
        blocks.append((f"-- {times} times\n" if times > 1 else "") + f"{statement};\n")
    return "\n".join([_HEAD + "\n", *(blocks or ["-- no statement\n"])])
