"""What is said of a server, a statement and a line: the attributes which are the same each time, made once."""

from __future__ import annotations

from collections.abc import Mapping
from types import CodeType, FrameType
from typing import Any

from opentelemetry.attributes import BoundedAttributes
from sqlalchemy.engine import Engine

from sqla_watch.findings import Location
from sqla_watch.fingerprint import Fingerprint
from sqla_watch.integrations.opentelemetry import names
from sqla_watch.probes.dialect import fingerprints
from sqla_watch.probes.transaction import SAVEPOINTS

MOST_STATEMENTS = 1_000
"""Statements whose attributes are kept; then it begins anew."""
MOST_PLACES = 50
"""Lines of one statement."""
LONGEST_TEXT = 8_000
"""Characters of a statement's text."""
OTHER = "_OTHER"
"""OpenTelemetry's word for what is too rare, or too much, to be told apart."""

_SYSTEMS = {"mssql": "microsoft.sql_server", "oracle": "oracle.db"}


class Target:
    """The database of an engine: address and names, without credentials."""

    def __init__(self, engine: Engine) -> None:
        url = engine.url
        self._engine = engine
        self._schema: str | None = None
        host = url.host or url.query.get("host")
        self._address = host if isinstance(host, str) and host else None
        self._port = url.port
        self._database = url.database
        self.attributes: dict[str, Any] = {}
        self.pool: dict[str, Any] = {}
        """The attributes of statements, and of the pool's metrics."""
        self.update()

    def update(self) -> bool:
        """Take over what SQLAlchemy has learnt at its first connection. Returns whether anything is new."""
        schema = getattr(self._engine.dialect, "default_schema_name", None)
        if self.attributes and schema == self._schema:
            return False
        self._schema = schema
        name = self._engine.dialect.name
        system = _SYSTEMS.get(name, name)
        namespace = self._database
        if namespace and schema and name == "postgresql":
            namespace = f"{namespace}|{schema}"
        found = {
            names.SYSTEM: system,
            names.NAMESPACE: namespace,
            names.ADDRESS: self._address,
            names.PORT: self._port if self._address else None,
        }
        self.attributes = {key: value for key, value in found.items() if value is not None}
        server = ":".join(str(part) for part in (self._address, self._port) if part)
        pool = getattr(self._engine.pool, "logging_name", None)
        # The schema is not part of it: a pool has one name from its first moment on.
        self.pool = {names.POOL: pool or "/".join(part for part in (server, self._database) if part) or system}
        return True


class Attributes:
    """What is said of a statement's executions from one place. They are checked once, and shared by their spans."""

    __slots__ = ("_checked", "_limits", "code", "known")

    def __init__(self, known: dict[str, Any], code: CodeType | None) -> None:
        self.known = known
        self.code = code
        """What has the place. It is known by its number, so it has to last as long."""
        self._checked: Mapping[str, Any] = {}
        self._limits: object = None

    def checked(self, limits: Any) -> Mapping[str, Any]:
        """Return them as the SDK's spans have them in the end, within its limits."""
        if self._limits is not limits:
            self._checked = BoundedAttributes(
                limits.max_span_attributes, self.known, immutable=True, max_value_len=limits.max_span_attribute_length
            )
            self._limits = limits
        return self._checked


class Described:
    """What is said of every execution of one statement."""

    __slots__ = ("_places", "attributes", "counted", "is_savepoint", "name", "returns_rows", "text")

    def __init__(
        self, target: Mapping[str, Any], fingerprint: Fingerprint, text: str, *, known: bool, batch: bool
    ) -> None:
        prefix = "BATCH " if batch else ""
        self.returns_rows = fingerprint.returns_rows
        self.is_savepoint = fingerprint.housekeeping and fingerprint.operation in SAVEPOINTS
        self.name = f"{prefix}{fingerprint.summary}"[:255].strip() or OTHER
        self.text = text
        self.attributes = {**target, names.SUMMARY: self.name}
        if known and fingerprint.operation:  # SQLAlchemy's own statement, and not text that somebody has written
            self.attributes[names.OPERATION] = f"{prefix}{fingerprint.operation}"
            if len(fingerprint.tables) == 1:
                self.attributes[names.COLLECTION] = fingerprint.tables[0]
        self.counted: dict[str, Any] | None = None
        """The attributes of its metrics, as long as it does not fail; once they are known."""
        self._places: dict[tuple[int, int] | None, Attributes] = {}

    def at(self, frame: FrameType | None) -> Attributes:
        """Return the attributes of its span where it was sent from; the same object for the same line."""
        code = None if frame is None else frame.f_code
        # By the number of the code, whose own hash is made of all its constants each time.
        place = None if frame is None else (id(code), frame.f_lasti)
        found = self._places.get(place)
        if found is None:
            if len(self._places) >= MOST_PLACES:
                self._places.clear()
            known = {**self.attributes, names.TEXT: self.text, **describe_line(frame)}
            found = self._places[place] = Attributes(known, code)
        return found


class Statements:
    """What is said of the statements of one engine; of the same text the same object, as far as there is room."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._by_text: dict[Any, Described] = {}

    def of(self, statement: Any, compiled: Any, batch: bool) -> Described:
        """Return what is said of a statement: its text as the driver gets it, and SQLAlchemy's compiled form."""
        key = (statement, batch) if batch else statement
        found = self._by_text.get(key)
        return self._describe(key, statement, compiled, batch) if found is None else found

    def _describe(self, key: Any, statement: Any, compiled: Any, batch: bool) -> Described:
        rendered = known = False
        text = statement
        if compiled is not None:
            rendered = bool(getattr(compiled, "literal_execute_params", None))  # values were put into its text
            known = not getattr(compiled, "isplaintext", False)
            # DDL has a compiler of its own, which does not say what it is.
            is_insert = getattr(compiled, "isinsert", False)
            if not rendered and not (is_insert and statement[:6].lower() == "select"):
                text = compiled.string  # in which lists of values are not written out
        fingerprint = fingerprints.of(text)
        shown = statement
        if rendered or fingerprint.literals or len(statement) > LONGEST_TEXT:
            # Its text has values in it, and is perhaps a new one each time: then what is said of it is not.
            shown = fingerprint.text[:LONGEST_TEXT]
            key = (shown, known, batch)
            found = self._by_text.get(key)
            if found is not None:
                return found
        if self._target.update() or len(self._by_text) >= MOST_STATEMENTS:
            self._by_text.clear()
        found = Described(self._target.attributes, fingerprint, shown, known=known, batch=batch)
        self._by_text[key] = found
        return found


def describe_line(frame: FrameType | None) -> dict[str, Any]:
    """Return the attributes of the line that a frame is at."""
    if frame is None:
        return {}
    module = frame.f_globals.get("__name__", "")
    return {
        names.FILE: frame.f_code.co_filename,
        names.LINE: frame.f_lineno or 0,
        names.FUNCTION: f"{module}.{frame.f_code.co_qualname}" if module else frame.f_code.co_qualname,
    }


def describe_location(location: Location | None) -> dict[str, Any]:
    """Return the attributes of a finding's line."""
    if location is None:
        return {}
    return {names.FILE: location.file, names.LINE: location.line, names.FUNCTION: location.function}


def describe_parameters(parameters: Any) -> dict[str, str]:
    """Return the values of one execution as attributes. They may be secrets: only for those who ask."""
    if isinstance(parameters, Mapping):
        named = list(parameters.items())
    elif isinstance(parameters, list | tuple):
        named = list(enumerate(parameters))
    else:
        return {}
    return {f"{names.PARAMETER}.{name}": str(value)[:1_000] for name, value in named[:100]}
