"""The dialect's door: statements, transactions and their times.

The methods of the engine's own dialect instance are wrapped, because listening to ConnectionEvents costs several
times as much and does not see how long a COMMIT takes. What flows out are `Statement` and `Transaction` facts.
"""

from __future__ import annotations

import sys
from time import perf_counter_ns as clock
from typing import Any

from sqla_watch.callsite import locate
from sqla_watch.facts import Statement
from sqla_watch.fingerprint import Fingerprints
from sqla_watch.ignores import active
from sqla_watch.probes.checkout import Checkout, OpenTransaction, checkout_of, next_transaction
from sqla_watch.probes.door import Door
from sqla_watch.probes.internals import RECORD_KEY, describe_load, loads_entities, next_runid
from sqla_watch.probes.rows import count_rows
from sqla_watch.scopes import DIGEST, Scope, current

__all__ = ["watch_dialect"]

fingerprints = Fingerprints()
_fingerprint_of_seen = fingerprints.get
_new_statement = tuple.__new__
_current = current.get
_ignores = active.get


def watch_dialect(dialect: Any) -> Door:
    """Wrap the methods of a dialect instance; closing the returned door takes the wrappers off."""
    door = Door("dialect", dialect)
    door.wrap("do_execute", _execute)
    door.wrap("do_executemany", _execute)
    door.wrap("do_execute_no_params", _execute_no_params)
    door.wrap("do_begin", _begin)
    door.wrap("do_commit", _end("commit"))
    door.wrap("do_rollback", _end("rollback"))
    door.wrap("do_commit_twophase", _end_twophase("commit"))
    door.wrap("do_rollback_twophase", _end_twophase("rollback"))
    return door


def _execute(door: Door, original: Any) -> Any:
    def do_execute(cursor: Any, statement: Any, parameters: Any, context: Any = None) -> Any:
        # The hot path: about 2 µs a statement, most of it in finding the line.
        if context is None or not door.open:
            return original(cursor, statement, parameters, context)
        try:
            checkout: Checkout | None = context._dbapi_connection._connection_record.__dict__.get(RECORD_KEY)
            if checkout is None:
                checkout = checkout_of(context._dbapi_connection._connection_record)
        except AttributeError:
            checkout = None
        if checkout is None:  # SQLAlchemy's own look-ups while it connects
            return original(cursor, statement, parameters, context)
        scope = _current()
        if scope is None or scope.closed:
            scope = checkout.find_scope()
            if scope is None:
                return original(cursor, statement, parameters, context)
        started = clock()
        try:
            answer = original(cursor, statement, parameters, context)
        except BaseException as error:
            finished = clock()
            try:
                _observe(scope, checkout, cursor, statement, parameters, context, started, finished, error)
            except Exception:
                door.fault()
            raise
        finished = clock()
        try:
            _observe(scope, checkout, cursor, statement, parameters, context, started, finished, None)
        except Exception:
            door.fault()
        if scope.watched_raises:
            scope.raise_now()
        return answer

    return do_execute


def _execute_no_params(door: Door, original: Any) -> Any:
    def pass_on(cursor: Any, statement: Any, parameters: Any, context: Any) -> Any:
        return original(cursor, statement, context)

    execute = _execute(door, pass_on)

    def do_execute_no_params(cursor: Any, statement: Any, context: Any = None) -> Any:
        return execute(cursor, statement, (), context)

    return do_execute_no_params


def _observe(
    scope: Scope,
    checkout: Checkout,
    cursor: Any,
    statement: Any,
    parameters: Any,
    context: Any,
    started: int,
    finished: int,
    error: BaseException | None,
) -> None:
    """Write the fact of one execution. Keeps nothing of its arguments but numbers and names."""
    compiled = context.compiled
    text = statement if compiled is None else compiled.string
    fingerprint = _fingerprint_of_seen(text)
    if fingerprint is None:
        fingerprint = fingerprints.of(text)

    rows: Any = 0
    values = fixed = 0
    load = None
    runid = 0
    if fingerprint.returns_rows:
        if error is None:
            rows = cursor.rowcount
            if rows < 0:
                rows = 0 if fingerprint.writes else count_rows(context, cursor)
        if not fingerprint.writes:
            if fingerprint.simple:
                try:
                    values = fixed = hash(tuple(parameters.values()) if parameters.__class__ is dict else parameters)
                except Exception:  # a list, a dictionary, a type of the application's own
                    values, fixed = fingerprint.hash_values(parameters)
            else:
                values, fixed = fingerprint.hash_values(parameters)
            options = context.execution_options.get("_sa_orm_load_options")
            if options is not None:
                load = describe_load(context, options)
                runid = next_runid()
            elif loads_entities(context):
                runid = next_runid()

    code, instruction, path = locate(sys._getframe(2))

    transaction = checkout.transaction
    if transaction is None:
        if fingerprint.housekeeping:
            serial = 0
        else:  # begun before this watch was installed
            transaction = checkout.transaction = OpenTransaction(next_transaction())
    if transaction is not None:
        serial = transaction.serial
        elapsed = finished - started
        transaction.database += elapsed
        if not fingerprint.housekeeping:
            if not transaction.statements:
                transaction.started = started
                transaction.first_code = code
                transaction.first_instruction = instruction
            transaction.statements += 1
            transaction.last_code = code
            transaction.last_instruction = instruction
            if elapsed > transaction.slowest:
                transaction.slowest = elapsed

    pending = scope.pending
    pending.append(
        _new_statement(
            Statement,
            (
                fingerprint, code, instruction, path, started, finished, rows, values, fixed,
                checkout.serial, serial, load, runid, _ignores(), "" if error is None else _name(error),
            ),
        )
    )  # fmt: skip
    if len(pending) >= DIGEST:
        scope.digest()


def _name(error: BaseException) -> str:
    """Return the SQLSTATE of a driver's error, or the name of its class."""
    state = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
    return state if isinstance(state, str) else type(error).__name__


def _begin(door: Door, original: Any) -> Any:
    def do_begin(connection: Any) -> Any:
        answer = original(connection)
        if door.open:
            try:
                checkout = checkout_of(getattr(connection, "_connection_record", None))
                if checkout is not None:
                    serial = next_transaction()
                    checkout.transaction = OpenTransaction(-serial if _autocommits(original, connection) else serial)
            except Exception:
                door.fault()
        return answer

    return do_begin


def _autocommits(do_begin: Any, connection: Any) -> bool:
    """Whether the connection commits each statement by itself, so that no transaction is open."""
    dialect = getattr(do_begin, "__self__", None)
    dbapi_connection = connection.dbapi_connection
    detect = getattr(dialect, "detect_autocommit_setting", None)
    if detect is not None:
        try:
            return bool(detect(dbapi_connection))
        except NotImplementedError:
            return False
    # SQLAlchemy before 2.0.43 has no way to ask.
    return getattr(dbapi_connection, "autocommit", None) is True or (
        getattr(dbapi_connection, "isolation_level", None) == "autocommit"
    )


def _end(outcome: str) -> Any:
    def make(door: Door, original: Any) -> Any:
        def end(connection: Any) -> Any:
            if not door.open:
                return original(connection)
            checkout = checkout_of(getattr(connection, "_connection_record", None))
            if checkout is None or checkout.transaction is None:  # the pool's reset after a COMMIT
                return original(connection)
            transaction, checkout.transaction = checkout.transaction, None
            return _timed(door, checkout, transaction, outcome, original, connection)

        return end

    return make


def _end_twophase(outcome: str) -> Any:
    def make(door: Door, original: Any) -> Any:
        def end(connection: Any, *arguments: Any, **options: Any) -> Any:
            if not door.open:
                return original(connection, *arguments, **options)
            record = getattr(getattr(connection, "_dbapi_connection", None), "_connection_record", None)
            checkout = checkout_of(record)
            if checkout is None:
                return original(connection, *arguments, **options)
            # Taken off first: the dialect may call do_rollback on its way to COMMIT PREPARED.
            transaction, checkout.transaction = checkout.transaction, None
            return _timed(door, checkout, transaction, outcome, original, connection, *arguments, **options)

        return end

    return make


def _timed(
    door: Door,
    checkout: Checkout,
    transaction: OpenTransaction | None,
    outcome: str,
    original: Any,
    *arguments: Any,
    **options: Any,
) -> Any:
    """Call COMMIT or ROLLBACK, and write the transaction's fact, also for a COMMIT that failed."""
    started = clock()
    try:
        answer = original(*arguments, **options)
    except BaseException:
        _ended(door, checkout, transaction, "rollback", started)
        raise
    _ended(door, checkout, transaction, outcome, started)
    return answer


def _ended(door: Door, checkout: Checkout, transaction: OpenTransaction | None, outcome: str, started: int) -> None:
    try:
        checkout.end_transaction(transaction, outcome, started)
    except Exception:
        door.fault()
