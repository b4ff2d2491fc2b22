"""Which statements are the same: SQL text goes in, a `Fingerprint` without any value comes out.

SQLAlchemy's compiled text is the same for every call of a statement, so a text is read once and then found
in a dictionary. Text with values pasted in is made equal by replacing its literals by `?`; that replaced
text is the only one which is kept and shown. Names of tables and columns stay. Of parameter values only
hashes are made, and told apart into those which a loop over pages, ranges or chunks changes by its nature
(OFFSET, `id > …`, a long IN list) and the fixed rest.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from sqla_watch.facts import Relationship

__all__ = ["Fingerprint", "Fingerprints", "Shape"]

LONGEST_TEXT = 65_536
"""Characters of a statement that are read; a longer text is told apart by the hash of the whole."""

CHUNK = 50
"""Values in one list from which on a query reads a chunk and not a single thing (as pytest-queryguard)."""

# One pass tells what may hold a value from what only looks like it. Comments, quoted names and words are
# matched so that nothing inside them is taken for a literal or a parameter.
_TOKENS = r"""(?xs)
      (?P<comment>--[^\n]*|/\*.*?(?:\*/|\Z))
    | (?P<literal>\$(?P<tag>[A-Za-z_]\w*|)\$.*?(?:\$(?P=tag)\$|\Z)|[eE]'(?:[^'\\]|\\.|'')*(?:'|\Z)
        |(?:[uU]&|[nNbBxX])?'(?:[^']|'')*(?:'|\Z)
        |(?<![\w.$])(?:0[xX][0-9a-fA-F_]+|0[oO][0-7_]+|0[bB][01_]+
            |(?:\d[\d_]*(?:\.[\d_]*)?|\.\d[\d_]*)(?:[eE][+-]?\d[\d_]*)?))
    | (?P<parameter>%\((?P<name>[^()%]{0,128})\)[sb]|%[sb]|\$(?P<number>\d+)|\?(?![|&?])
        |(?<!:):(?P<colon>[A-Za-z_]\w*)|__\[POSTCOMPILE_(?P<expanding>[^\[\]]{0,128})\])
    | (?P<kept>"(?:[^"]|"")*(?:"|\Z)|`[^`]*(?:`|\Z)|::|[A-Za-z_]\w*)
    | (?P<space>\s+)
    """

# The patterns below read the marked text, in which each parameter and literal is \x00number\x00.
_VALUE = r"\x00(\d+)\x00"
_NAME = r"""(?:[\w$]+|"(?:[^"]|"")+"|`[^`]+`)"""
_COLUMN = rf"""(?<![\w.$"])({_NAME}(?:\.{_NAME})*(?:\([^()]*\))?|\([^()]*\))"""
_CAST = (
    r"""(?:::\s*(?:(?:TIMESTAMP|TIME)(?:\s*\(\d+\))?(?:\s+WITH(?:OUT)?\s+TIME\s+ZONE)?|DOUBLE\s+PRECISION"""
    r"""|CHARACTER\s+VARYING|[\w."]+)(?:\s*\([\d, ]*\))?(?:\[\])*)*"""
)
_BEFORE = r"(?:CAST\s*\(\s*|DATE\s+|TIMESTAMP(?:TZ)?\s+|TIME\s+|INTERVAL\s+)?"
_OFFSET = rf"(?i)\bOFFSET\s*\(?{_VALUE}"
_RANGE = rf"(?i){_COLUMN}\s*(?:<=|>=|<(?!>)|>)\s*((?:\(|\s|,|{_BEFORE}{_VALUE}{_CAST})+)"
_RANGE_REVERSED = rf"(?i){_VALUE}{_CAST}\s*(?:<=|>=|<(?!>)|>)\s*{_COLUMN}"
_BETWEEN = rf"(?i){_COLUMN}\s+BETWEEN\s+{_BEFORE}{_VALUE}{_CAST}(?:\s+AS\s+\w+\s*\))?\s+AND\s+{_BEFORE}{_VALUE}"
_EQUAL = rf"{_COLUMN}\s*=\s*{_VALUE}"
_MARK = _VALUE
_SPACES = r" {2,}"
_LITERAL_LISTS = r"\(\?(?:\s*,\s*\?)+\)"
_LITERAL_ROWS = r"(\((?:\?|…)\))(?:\s*,\s*\((?:\?|…)\))+"

_WORD_OR_PARENTHESIS = r"""[A-Za-z_]\w*|[()]|"(?:[^"]|"")*"|`[^`]*`"""
_NOT_A_SOURCE = r"(?i)\b(?:EXTRACT|SUBSTRING|TRIM|OVERLAY|POSITION)\s*\([^()]*?\bFROM\b|\bDISTINCT\s+FROM\b"
_SOURCES = (
    r"(?i)(?:\bFROM|\bJOIN|\bINTO|(?<!FOR )(?<!KEY )\bUPDATE)\s+(?:ONLY\s+|LATERAL\s+)*"
    rf"({_NAME}(?:\.{_NAME})*(?:(?:\s+(?:AS\s+)?(?!JOIN|WHERE|LEFT|RIGHT|FULL|INNER|CROSS|ON|SET|ORDER|GROUP|LIMIT)"
    rf"{_NAME})?\s*,\s*{_NAME}(?:\.{_NAME})*)*)"
)
_CALLED_SOURCE = rf"(?i)(?:\bFROM|\bJOIN|,\s*LATERAL)\s+(?:LATERAL\s+)?{_NAME}(?:\.{_NAME})*\s*\("
_WRITES_INSIDE = r"(?i)\(\s*(?:INSERT|UPDATE|DELETE|MERGE)\b"
_SOURCE = rf"(?:^|,)\s*({_NAME}(?:\.{_NAME})*)"
_COMMON_TABLES = rf"(?i)(?:\bWITH(?:\s+RECURSIVE)?|,)\s+({_NAME})\s*(?:\([^()]*\)\s*)?AS\s"
_PARENTHESES = r"([()])"
_SELECT = r"(?i)\bSELECT\b"
_LIMIT = r"(?i)\bLIMIT\b(?!\s+ALL)|\bFETCH\s+(?:FIRST|NEXT)\b"
_ORDERED = r"(?is)\bORDER\s+BY\b(.*?)(?:\bLIMIT\b|\bOFFSET\b|\bFETCH\b|\bFOR\b|;|$)"
_STAR = rf"(?i)\bSELECT\s+(?:ALL\s+|DISTINCT\s+)?(?:[^;]*?,\s*)?(?:{_NAME}\.)*\*\s*(?:,|\bFROM\b)"
_FIRST_SOURCE = rf"(?i)\bFROM\s+(?:ONLY\s+)?({_NAME}(?:\.{_NAME})*)(?![\w.]|\s*\()"
_IN_LIST = r"(?i)\bIN\s*\((?:\s|,|\x00\d+\x00|::[\w\"]+)*\)"
_LOCKS = r"(?i)\bFOR\s+(?:NO\s+KEY\s+)?(?:UPDATE|SHARE|KEY\s+SHARE)\b|\bpg_(?:try_)?advisory"


_READS = frozenset({"SELECT", "VALUES", "TABLE", "FETCH"})
_WRITES = frozenset({"INSERT", "UPDATE", "DELETE", "MERGE"})
_HOUSEKEEPING = frozenset(
    {"SAVEPOINT", "RELEASE", "ROLLBACK", "BEGIN", "COMMIT", "START", "PREPARE", "SET", "RESET", "SHOW"}
    | {"DEALLOCATE", "DISCARD", "EXPLAIN", "PRAGMA", "LISTEN", "UNLISTEN"}
)
_CATALOGUES = (
    "pg_catalog.", "information_schema.", "pg_", "sqlite_master", "sqlite_schema", "sqlite_temp_master",
    "sqlite_temp_schema", "alembic_version",
)  # fmt: skip
"""Tables that are kept by the server, or by a migration tool, and are not the application's data."""


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    """Return a pattern, compiled for the first statement that needs it: to compile all takes 5 ms."""
    return re.compile(pattern)


class Shape(NamedTuple):
    """What an ORM SELECT of one class loads with each row."""

    owner: str
    """Name of the class."""
    key: tuple[int, ...]
    """Positions of its primary key in a row, where joined collections may multiply the rows; else empty."""
    collections: tuple[tuple[str, ...], ...]
    """The joined collections, each as the relationships that lead to it: `("Customer.orders", "Order.items")`."""
    relationships: tuple[Relationship, ...]
    """The relationships that are loaded by joins."""
    columns: tuple[str, ...]
    """The attributes of the class itself that are loaded."""

    @property
    def siblings(self) -> bool:
        """Whether two collections multiply each other: neither is on the way to the other."""
        return any(
            one[: len(two)] != two and two[: len(one)] != one for one in self.collections for two in self.collections
        )


@dataclass(slots=True, eq=False)  # not frozen, which takes ten times as long to make, once for each statement
class Fingerprint:
    """The identity of a statement without its values. Two are the same if their `text` is."""

    text: str
    """The statement with literals replaced by `?`, white space folded, literal lists as `(…)`."""
    operation: str = ""
    """Its first word in upper case; of a WITH, the first word of the main statement."""
    tables: tuple[str, ...] = ()
    """What it reads and writes: the names after FROM, JOIN, INTO and UPDATE, in order, each once."""
    returns_rows: bool = False
    writes: bool = False
    reads: bool = False
    """Returns rows and writes none."""
    housekeeping: bool = False
    """Sent to manage the connection or to read the catalogue: not one of the application's statements."""
    limited: bool = False
    """Has a LIMIT or FETCH FIRST."""
    ordered: bool = False
    """Has an ORDER BY."""
    may_write: bool = False
    """Changes its tables, or perhaps others: a call, a function as source, a write inside of a WITH."""
    locks: bool = False
    """Takes row or advisory locks: asking again is not asking the same thing."""
    asks: bool = False
    """A plain SELECT from tables: asked again in one transaction, it has the same answer."""
    star: bool = False
    """Selects every column of a table by `*`."""
    order: str = ""
    """What its outermost ORDER BY says."""
    offset: str | int | None = None
    """The parameter, by name or position, of its OFFSET."""
    pasted_offset: int = 0
    """The number pasted in as its OFFSET."""
    listed: int = 0
    """Values in the longest list after IN, as written; SQLAlchemy's expanded lists come to it."""
    plain: int = 0
    """Parameters that are not those of an expanded list."""
    key_column: str = ""
    """The one column which it compares with a value by `=`; empty for none or several, or another shape."""
    lists: int = 0
    """IN lists that SQLAlchemy expands."""
    rendered: bool = False
    """SQLAlchemy puts some values into the text when it is sent, and not among the parameters."""
    walking: frozenset[str | int] = frozenset()
    """Parameters, by name or position, of OFFSET, ranges and keyset comparisons, and those that an UPDATE sets."""
    rekeys: bool = False
    """An UPDATE that sets the very columns which its row is found by."""
    assigned: tuple[str | int, ...] = ()
    """Parameters, by name or position, that an UPDATE sets its columns to."""
    literals: int = 0
    """Hash of the literals pasted into the text; 0 for none."""
    fixed_literals: int = 0
    """The same without those of OFFSET, ranges and keyset comparisons."""
    simple: bool = True
    """No literals, nothing that walks, no lists: the hash of the parameters says it all."""
    entities: bool = False
    """Known to be an ORM SELECT, which makes or refreshes objects."""
    shape: Shape | None = None
    """What an ORM SELECT of one class loads with each row."""
    path: tuple[Any, ...] = ()
    """Of an ORM SELECT for objects that are there already, SQLAlchemy's path from their query to what it loads."""

    @property
    def summary(self) -> str:
        """Operation and tables, the form of OpenTelemetry's `db.query.summary`: `SELECT orders`."""
        return " ".join((self.operation, *self.tables))[:255]

    def hash_assigned(self, parameters: Any) -> int:
        """Return the hash of the values that an UPDATE sets; 0 where positions moved, or for another statement."""
        try:
            return hash(tuple(_hash(parameters[name]) for name in self.assigned)) if self.assigned else 0
        except (LookupError, TypeError):
            return 0

    def sizes(self, parameters: Any) -> tuple[int, int]:
        """Return how many rows an execution skips by OFFSET, and how many values its longest list has."""
        skipped = self.pasted_offset
        if self.offset is not None:
            try:
                skipped = int(parameters[self.offset])
            except (LookupError, TypeError, ValueError):  # positions moved, or no number
                skipped = 0
        listed = self.listed
        if self.lists == 1:
            listed = max(listed, len(parameters) - self.plain)
        elif self.lists and isinstance(parameters, Mapping):  # SQLAlchemy names the values `list_1`, `list_2`, …
            lengths = Counter(name.rpartition("_")[0] for name in parameters)
            listed = max(listed, *lengths.values())
        return skipped, listed

    def hash_values(self, parameters: Any) -> tuple[int, int]:
        """Return the hash of all values of one execution, and the hash of the fixed ones.

        `parameters` is what the DBAPI gets: a mapping or a sequence. Nothing of it is kept.
        """
        if not self.lists:
            try:
                if self.simple:
                    every = hash(tuple(parameters.values()) if parameters.__class__ is dict else parameters)
                    return every, every
                return self._hash_plain(parameters)
            except Exception:  # a list, or a type of the application's own that cannot be hashed
                pass
        if isinstance(parameters, Mapping):
            named: list[tuple[Any, Any]] = list(parameters.items())
        elif isinstance(parameters, Sequence):
            named = list(enumerate(parameters))
        else:
            named = []
        values = [_hash(value) for _, value in named]
        every = hash((self.literals, *values))
        if self.lists and len(values) >= CHUNK:
            return every, 0
        if self.lists and self.walking and not isinstance(parameters, Mapping):
            return every, 0  # positions moved when the list was expanded
        fixed = [
            hashed
            for (name, value), hashed in zip(named, values, strict=True)
            if name not in self.walking and not (isinstance(value, list | tuple) and len(value) >= CHUNK)
        ]
        return every, hash((self.fixed_literals, *fixed))

    def _hash_plain(self, parameters: Any) -> tuple[int, int]:
        """Do it for values of which none is a list, in a third of the time; TypeError for others."""
        walking = self.walking
        if parameters.__class__ is dict:
            values: Any = parameters.values()
            fixed = [value for name, value in parameters.items() if name not in walking]
        elif parameters.__class__ is tuple:
            values = parameters
            fixed = [value for place, value in enumerate(parameters) if place not in walking]
        else:
            raise TypeError
        if tuple in map(type, fixed):  # may be a long list
            raise TypeError
        return hash((self.literals, *values)), hash((self.fixed_literals, *fixed))


def _hash(value: Any) -> int:
    """Hash any bound value; what Python cannot hash (lists, JSON) is hashed by its representation."""
    try:
        return hash(tuple(value) if value.__class__ is list else value)  # ten times as fast as its representation
    except Exception:
        try:
            return hash(repr(value))
        except Exception:  # a type of the application's own that allows neither
            return id(value)


class Fingerprints:
    """Finds the fingerprint of a text; remembers a bounded number of texts.

    >>> fingerprints = Fingerprints()
    >>> fingerprints.of("SELECT name FROM users WHERE id = 7").text
    'SELECT name FROM users WHERE id = ?'
    """

    def __init__(self, limit: int = 4_096) -> None:
        self._limit = limit
        self._by_text: dict[str, Fingerprint] = {}

    def of(self, text: str) -> Fingerprint:
        """Return the fingerprint of `text`, reading it if it was not seen before."""
        found = self._by_text.get(text)
        if found is None:
            found = read(text)
            if len(text) <= LONGEST_TEXT:
                if len(self._by_text) >= self._limit:
                    for old in list(islice(self._by_text, self._limit // 2)):
                        self._by_text.pop(old, None)
                self._by_text[text] = found
        return found


def read(text: str) -> Fingerprint:
    """Read one statement, without remembering it.

    >>> read("SELECT id FROM orders WHERE id > %(id)s ORDER BY id LIMIT 10").walking
    frozenset({'id'})
    """
    names: list[str | int] = []  # of each marked value; a literal has none
    values: list[str] = []  # what stood there
    positional = 0
    lists: set[str] = set()

    def mark(token: re.Match[str]) -> str:
        nonlocal positional
        kind = token.lastgroup
        if kind == "kept":
            return token.group()
        if kind in ("space", "comment"):
            return " "
        values.append(token.group())
        if token.group("literal") is not None:
            names.append("")
        elif token.group("expanding") is not None:
            lists.add(token.group("expanding"))
            names.append(token.group("expanding"))
        elif token.group("number") is not None:
            names.append(int(token.group("number")) - 1)
        elif token.group("name") is not None or token.group("colon") is not None:
            names.append(token.group("name") or token.group("colon"))
        else:
            names.append(positional)
            positional += 1
        return f"\0{len(values) - 1}\0"

    marked = _compiled(_SPACES).sub(" ", _compiled(_TOKENS).sub(mark, text[:LONGEST_TEXT].replace("\0", " "))).strip()
    structure = _structure(marked)
    walking = structure.walking | structure.assigned
    pasted = [index for index, name in enumerate(names) if name == ""]
    walking_names = frozenset(names[index] for index in walking if names[index] != "")
    assigned = tuple(names[index] for index in sorted(structure.assigned) if names[index] != "")
    skipping = structure.offset
    shown = _compiled(_MARK).sub(lambda m: "?" if names[int(m[1])] == "" else values[int(m[1])], marked)
    if pasted:
        shown = _compiled(_LITERAL_ROWS).sub(r"\1, …", _compiled(_LITERAL_LISTS).sub("(…)", shown))
    if len(text) > LONGEST_TEXT:
        shown = f"{shown[:2_000]} … ({len(text)} characters, {hash(text) & 0xFFFFFFFF:08x})"
    return Fingerprint(
        text=shown,
        operation=structure.operation,
        tables=structure.tables,
        returns_rows=structure.returns_rows,
        writes=structure.operation in _WRITES,
        reads=structure.returns_rows and structure.operation not in _WRITES,
        housekeeping=structure.housekeeping,
        limited=structure.limited,
        ordered=structure.ordered,
        locks=structure.locks,
        may_write=structure.may_write,
        asks=not structure.may_write and structure.operation == "SELECT" and not structure.locks,
        star=structure.star,
        order=structure.order,
        offset=names[skipping] if skipping is not None and names[skipping] != "" else None,
        pasted_offset=_whole(values[skipping]) if skipping is not None and names[skipping] == "" else 0,
        listed=structure.listed,
        plain=sum(name != "" and name not in lists for name in names),
        key_column=structure.key_column,
        lists=len(lists),
        walking=walking_names,
        assigned=assigned,
        rekeys=structure.rekeys,
        literals=hash(tuple(values[index] for index in pasted)) if pasted else 0,
        fixed_literals=hash(tuple(values[index] for index in pasted if index not in walking)) if pasted else 0,
        simple=not (pasted or walking_names or lists or structure.listed > 1),
    )


def _whole(literal: str) -> int:
    return int(literal) if literal.isdigit() else 0


class _Structure(NamedTuple):
    """What a statement is, whatever its values: read once for all texts that differ in literals only."""

    operation: str
    tables: tuple[str, ...]
    walking: frozenset[int]
    assigned: frozenset[int]
    rekeys: bool
    returns_rows: bool
    housekeeping: bool
    may_write: bool
    key_column: str
    star: bool
    order: str
    offset: int | None
    listed: int
    limited: bool
    ordered: bool
    locks: bool


@lru_cache(maxsize=2_048)
def _structure(marked: str) -> _Structure:
    operation = _operation(marked)
    tables = _tables(marked)
    housekeeping = operation in _HOUSEKEEPING or (
        bool(tables) and all(table.lower().startswith(_CATALOGUES) for table in tables)
    )
    assignments, condition = _parts_of_update(marked) if operation == "UPDATE" else ("", "")
    outermost = _outermost(marked)
    offset = _compiled(_OFFSET).search(outermost)
    ordered = _compiled(_ORDERED).search(outermost)
    only_reads = (
        operation in _READS
        and bool(tables)
        and _compiled(_CALLED_SOURCE).search(marked) is None
        and _compiled(_WRITES_INSIDE).search(marked) is None
    )
    return _Structure(
        operation=operation,
        tables=tables,
        walking=frozenset(_walking(marked)),
        assigned=frozenset(int(number) for number in _compiled(_MARK).findall(assignments)),
        rekeys=_rekeys(assignments, condition),
        returns_rows=operation in _READS or " RETURNING " in marked.upper(),
        housekeeping=housekeeping,
        key_column=_key_column(marked),
        star="*" in outermost
        and _compiled(_STAR).search(outermost) is not None
        and bool(tables)
        and _named_source(outermost, tables),
        order=_compiled(_MARK).sub("?", ordered[1]).strip() if ordered else "",
        offset=int(offset[1]) if offset else None,
        listed=max(
            (len(_compiled(_MARK).findall(found[0])) for found in _compiled(_IN_LIST).finditer(marked)), default=0
        ),
        may_write=not (only_reads or housekeeping),
        limited=_compiled(_LIMIT).search(outermost) is not None,
        ordered=ordered is not None,
        locks=_compiled(_LOCKS).search(marked) is not None,
    )


def _walking(marked: str) -> set[int]:
    """Return the numbers of the values that a walk over pages or ranges changes by its nature."""
    found = {int(match[1]) for match in _compiled(_OFFSET).finditer(marked)}
    columns: set[str] = set()
    for match in _compiled(_RANGE).finditer(marked) if "<" in marked or ">" in marked else ():
        values = {int(number) for number in _compiled(_MARK).findall(match[2])}
        if values:
            found |= values
            columns.update(name.strip().lower() for name in match[1].strip("()").split(","))
    for match in _compiled(_RANGE_REVERSED).finditer(marked) if "<" in marked or ">" in marked else ():
        found.add(int(match[1]))
        columns.add(match[2].lower())
    for match in _compiled(_BETWEEN).finditer(marked) if "BETWEEN" in marked.upper() else ():
        found |= {int(match[2]), int(match[3])}
        columns.add(match[1].lower())
    # `created < x OR (created = x AND id < y)`: the keyset written out; its equality walks too.
    if columns:
        found |= {int(match[2]) for match in _compiled(_EQUAL).finditer(marked) if match[1].lower() in columns}
    return found


def _parts_of_update(marked: str) -> tuple[str, str]:
    """Return what stands between SET and WHERE of an UPDATE, and what stands behind WHERE."""
    depth = begin = 0
    for match in _compiled(_WORD_OR_PARENTHESIS).finditer(marked):
        word = match[0].upper()
        if word == "(":
            depth += 1
        elif word == ")":
            depth -= 1
        elif depth == 0 and not begin and word == "SET":
            begin = match.end()
        elif depth == 0 and begin and word in ("WHERE", "FROM", "RETURNING"):
            return marked[begin : match.start()], marked[match.end() :] if word == "WHERE" else ""
    return marked[begin:] if begin else "", ""


def _rekeys(assignments: str, condition: str) -> bool:
    """Whether every column that a condition compares by `=` is set anew."""
    compared = {match[1].rpartition(".")[2].lower() for match in _compiled(_EQUAL).finditer(condition)}
    assigned = {match[1].rpartition(".")[2].lower() for match in _compiled(_EQUAL).finditer(assignments)}
    return bool(compared) and compared <= assigned


def _outermost(marked: str) -> str:
    """Return a statement without what stands in parentheses, which become `()`."""
    depth = 0
    kept: list[str] = []
    for part in _compiled(_PARENTHESES).split(marked):
        if part == "(":
            depth += 1
            if depth == 1:
                kept.append("(")
        elif part == ")":
            depth = max(0, depth - 1)
            if depth == 0:
                kept.append(")")
        elif depth == 0:
            kept.append(part)
    return "".join(kept)


def _named_source(outermost: str, tables: tuple[str, ...]) -> bool:
    """Whether the outermost SELECT reads from a table, and not from a subquery or common table that names columns."""
    match = _compiled(_FIRST_SOURCE).search(outermost)
    return match is not None and match[1].replace('"', "").replace("`", "") in tables


def _key_column(marked: str) -> str:
    """Return the column of the only comparison of a simple SELECT, for which `IN` could ask for many values."""
    if len(_compiled(_MARK).findall(marked)) != 1 or len(_compiled(_SELECT).findall(marked)) != 1:
        return ""
    match = _compiled(_EQUAL).search(marked)
    return match[1].rpartition(".")[2].strip('"`') if match else ""


def _operation(marked: str) -> str:
    """Return the first word; for WITH, the first word of the statement behind the common tables."""
    depth = 0
    common = False
    for match in _compiled(_WORD_OR_PARENTHESIS).finditer(marked):
        word = match[0].upper()
        if word == "(":
            depth += 1
        elif word == ")":
            depth -= 1
        elif word == "WITH" and not common:
            common = True
        elif not common or (depth == 0 and (word in _READS or word in _WRITES)):
            return word
    return "WITH" if common else ""


def _tables(marked: str) -> tuple[str, ...]:
    """Return the names after FROM, JOIN, INTO and UPDATE, without those of common table expressions."""
    common = set()
    if marked[:4].upper() == "WITH":
        common = {name.strip('"`').lower() for name in _compiled(_COMMON_TABLES).findall(marked)}
    tables: dict[str, None] = {}
    for match in _compiled(_SOURCES).finditer(_compiled(_NOT_A_SOURCE).sub("(", marked)):
        for source in _compiled(_SOURCE).findall(match[1]):
            name = source.replace('"', "").replace("`", "")
            if name.lower() not in common and name.upper() not in _READS:
                tables[name] = None
    return tuple(tables)
