"""The dialect's door: statements, transactions and their times.

The methods of the engine's own dialect instance are wrapped, because listening to ConnectionEvents costs several
times as much and does not see how long a COMMIT takes. What flows out are `Statement` and `Transaction` facts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from sys import _getframe
from time import perf_counter_ns as clock
from types import CodeType
from typing import Any

from sqla_watch.callsite import find_user, user_code
from sqla_watch.facts import Extra, Load
from sqla_watch.fingerprint import Fingerprint, Fingerprints
from sqla_watch.ignores import active
from sqla_watch.ignores import entered as entered_ignores
from sqla_watch.probes.attributes import tracking
from sqla_watch.probes.checkout import Checkout, checkout_of, prepared
from sqla_watch.probes.door import Door
from sqla_watch.probes.internals import (
    DEFAULT_FETCH,
    NO_CACHE_KEY,
    RECORD_KEY,
    describe_load,
    describe_shape,
    executes_plainly,
    loads_entities,
    orm,
    path_of,
)
from sqla_watch.probes.rows import CountingFetch, count_stream, follow
from sqla_watch.probes.session import flushing, session_door
from sqla_watch.probes.transaction import OpenTransaction, next_transaction
from sqla_watch.probes.uncached import count_uncached
from sqla_watch.registry import fallbacks, outside
from sqla_watch.scopes import DIGEST, UNSAMPLED, Scope, current

__all__ = ["watch_dialect"]

_NOTHING = (0, 0, 0, 0, None, None)
"""What statements have of hashes, numbers, loads and more, until it is known better: set at once."""
MANY_ALIKE = 50
"""Parameter sets of one UPDATE from which on it is looked whether all set the same."""

fingerprints = Fingerprints()
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
    door.wrap("do_prepare_twophase", _prepare)
    door.wrap("do_commit_twophase", _end_twophase("commit"))
    door.wrap("do_rollback_twophase", _end_twophase("rollback"))
    door.wrap("do_ping", _ping)
    return door


def _execute(door: Door, original: Any) -> Any:
    # The hot path. Everything is in one function and in local names, because a call costs as much as ten attributes,
    # and what is rare is left to functions. Of 6.2 µs that a statement of Core costs on SQLite with CPython 3.11, this
    # takes 3.8 and counting rows 0.6; to add it up later, in loops, 1.8. A bytecode here takes 15 ns, in a loop 3.
    #
    # Five frames of SQLAlchemy's are below any user's; each frame that is looked at has to be made an object first.
    # Under AsyncSession the stack may end there, and goes on in another greenlet.
    nearest = 5 if getattr(door.target, "is_async", False) else 6
    routes = user_code.routes
    enough = DIGEST
    plain = executes_plainly(original)

    def do_execute(cursor: Any, statement: Any, parameters: Any, context: Any = None) -> Any:
        scope = _current()
        if scope is not None or fallbacks or outside.is_recorded:
            try:
                checkout = context._dbapi_connection._connection_record._sqla_watch
            except AttributeError:
                checkout = _adopt(context)
                if checkout is None:  # SQLAlchemy's own look-ups while it connects
                    return original(cursor, statement, parameters, context)
            if scope is None or scope.closed or not door.open:
                if scope is UNSAMPLED and checkout.telemetry is not None:
                    return _pass_by(checkout, original, cursor, statement, parameters, context)
                scope = checkout.find_scope() if scope is not UNSAMPLED and door.open else None
        if scope is None:
            if plain:
                cursor.execute(statement, parameters)
                return None
            return original(cursor, statement, parameters, context)
        error = ""
        frame: Any
        code: CodeType | None
        rows: Any
        load: Load | None
        started = clock()
        try:
            if plain:
                cursor.execute(statement, parameters)
                return None
            return original(cursor, statement, parameters, context)
        except BaseException as exception:
            error = name_of(exception)
            failure = None
            raise
        finally:
            finished = clock()
            try:
                compiled = context.compiled
                fresh = False
                try:
                    fingerprint = compiled._sqla_watch
                except AttributeError:
                    fingerprint = _fingerprint(statement, compiled)
                    fresh = bool(fingerprint.literals) or context.cache_hit is NO_CACHE_KEY
                try:
                    depth, code, instruction, entry = routes[fingerprint]
                    frame = _getframe(depth)
                    if frame.f_code is not code or frame.f_lasti != instruction:
                        raise KeyError
                    frame = frame.f_back  # the place in the caller tells calls through one helper apart
                    path = 0 if frame is None else frame.f_lasti
                except (KeyError, ValueError):  # from a greenlet, from another line, or in no way that is known yet
                    asking = None if fresh else fingerprint
                    code, instruction, path, entry = find_user(asking, 3 if compiled is None else nearest)

                values, fixed, runid, parent, load, extra = _NOTHING
                if fingerprint.reads:
                    rows = 0 if error else cursor.rowcount
                    if rows < 0:  # the driver cannot tell yet
                        if context.cursor_fetch_strategy is DEFAULT_FETCH and not (
                            context._is_server_side or "stream_results" in context.execution_options
                        ):
                            rows = context.cursor_fetch_strategy = CountingFetch()
                            shape = fingerprint.shape
                            if shape is not None and shape.key:
                                rows.key = shape.key
                        else:
                            rows, failure = count_stream(context, cursor, checkout)
                            finished = clock()  # its first rows were fetched with it
                            if failure is not None:
                                error = name_of(failure)
                    elif rows >= tracking.many_rows:
                        rows = follow(context, fingerprint, rows, checkout, code)
                    if fingerprint.simple:
                        try:
                            values = fixed = hash(
                                tuple(parameters.values()) if parameters.__class__ is dict else parameters
                            )
                        except Exception:  # a list, a dictionary, a type of the application's own
                            values, fixed = fingerprint.hash_values(parameters)
                    else:
                        rendered = fingerprints.of(statement) if fingerprint.rendered else fingerprint
                        values, fixed = rendered.hash_values(parameters)
                        skipped, listed = fingerprint.sizes(parameters)
                        if skipped or listed:
                            extra = Extra(skipped, listed)
                    if fingerprint.entities:
                        runid = orm.next_runid()
                        if tracking.columns:  # also where relationships are tracked
                            tracking.follow(compiled)
                        options = context.execution_options.get("_sa_orm_load_options")
                        if options is not None and (options is not orm.plain_options or fingerprint.path):
                            described = describe_load(context, options, fingerprint.path, entry)
                            if described is not None:
                                load, fixed, parent = described
                elif fingerprint.writes:
                    rows = 0
                    if statement[:6].lower() == "select":
                        fingerprint = fingerprints.of(statement)  # a default that is fetched before its INSERT
                    else:
                        values, fixed, extra = _write(fingerprint, parameters, context, cursor, checkout, scope)
                        if fingerprint.returns_rows and not error:
                            rows = max(cursor.rowcount, 0)
                else:
                    rows = 0

                if fresh and not fingerprint.housekeeping:
                    extra = count_uncached(extra, fingerprint, context, code, instruction)
                transaction = checkout.transaction
                if transaction is None:
                    transaction = _transaction_for(fingerprint, checkout)
                fact = (
                    fingerprint, code, instruction, path, started, finished, rows, values, fixed, checkout.serial,
                    transaction.serial, load, runid, _ignores() if entered_ignores else (), error, extra, parent,
                )  # fmt: skip
                pending = scope.pending
                pending.append(fact)
                if transaction.scope is not scope:
                    checkout.moved(scope, fact)
                sent = transaction.sent
                sent.append(fact)
                if fingerprint.housekeeping or len(sent) >= enough:  # and at the transaction's end
                    transaction.add_up()
                    if len(pending) >= enough:
                        scope.digest()
            except Exception:
                door.fault()
            if error:
                if failure is not None:
                    raise failure
            elif scope.watched_raises:
                scope.raise_now()

    return do_execute


def _transaction_for(fingerprint: Fingerprint, checkout: Checkout) -> OpenTransaction:
    """Return the transaction of a statement in whose connection none is known to be open.

    It was begun before this watch was installed; what only manages the connection is in none, and has one for itself.
    """
    if fingerprint.housekeeping:
        return OpenTransaction(0)
    transaction = checkout.transaction = OpenTransaction(next_transaction())
    return transaction


def _pass_by(checkout: Checkout, original: Any, *arguments: Any) -> Any:
    """Send a statement that is not in the sample; OpenTelemetry counts its transaction all the same."""
    transaction = checkout.transaction
    if transaction is None:
        return original(*arguments)
    started = clock()
    try:
        return original(*arguments)
    finally:
        transaction.pass_by(started, clock())


def _write(
    fingerprint: Fingerprint, parameters: Any, context: Any, cursor: Any, checkout: Checkout, scope: Scope
) -> tuple[int, int, Extra | None]:
    """Return the hash of what an UPDATE sets, the hash of which rows a write is about, and what else there is of it."""
    flush = flushing.get()
    serial = session = 0
    if flush is not None and flush.runs:
        serial, session = flush.serial, flush.key
        flush.statements += 1
        flush.scope = scope
        flush.transaction = 0 if checkout.transaction is None else checkout.transaction.serial
    if not context.executemany:
        fixed = fingerprint.hash_values(parameters)[1]
        listed = fingerprint.sizes(parameters)[1] if fingerprint.lists or fingerprint.listed else 0
        changed = cursor.rowcount
        opened = checkout.transaction
        savepoint = opened.savepoints[-1] if opened is not None and opened.savepoints else 0
        extra = None
        if serial or listed or savepoint or changed > 1:
            extra = Extra(listed=listed, changed=changed, savepoint=savepoint, flush=serial, session=session)
        return fingerprint.hash_assigned(parameters), fixed, extra
    every = context.compiled_parameters if context.compiled is not None else parameters
    sets = len(every)
    assigned = {fingerprint.hash_assigned(each) for each in parameters} if sets >= MANY_ALIKE else set()
    alike = len(assigned) == 1 and 0 not in assigned
    return 0, 0, Extra(sets=sets, alike=alike, flush=serial, session=session)


def _fingerprint(statement: Any, compiled: Any) -> Fingerprint:
    """Return a statement's fingerprint, and leave it on SQLAlchemy's compiled form, which is kept for the next time."""
    if compiled is None:
        return fingerprints.of(statement)
    found = fingerprints.of(compiled.string)
    if loads_entities(compiled):
        found = replace(found, entities=True, shape=describe_shape(compiled), path=path_of(compiled))
    if getattr(compiled, "literal_execute_params", None):
        found = replace(found, rendered=True, simple=False)
    session_door.start()  # now that the ORM may be there
    with contextlib.suppress(AttributeError):  # a compiled form that takes no attributes is looked up each time
        compiled._sqla_watch = found
    return found


def _execute_no_params(door: Door, original: Any) -> Any:
    def pass_on(cursor: Any, statement: Any, parameters: Any, context: Any) -> Any:
        return original(cursor, statement, context)

    execute = _execute(door, pass_on)

    def do_execute_no_params(cursor: Any, statement: Any, context: Any = None) -> Any:
        return execute(cursor, statement, (), context)

    return do_execute_no_params


def _adopt(context: Any) -> Checkout | None:
    """Return the checkout of a statement's connection, also of one that was out before the watch was installed."""
    connection = getattr(context, "_dbapi_connection", None)
    return checkout_of(getattr(connection, "_connection_record", None))


def name_of(error: BaseException) -> str:
    """Return the SQLSTATE of a driver's error, or the name of its class."""
    state = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
    return state if isinstance(state, str) else type(error).__name__


def _begin(door: Door, original: Any) -> Any:
    autocommits = _autocommits(getattr(original, "__self__", None))

    def do_begin(connection: Any) -> Any:
        answer = original(connection)
        if door.open:
            try:
                checkout = checkout_of(getattr(connection, "_connection_record", None))
                if checkout is not None and (checkout.telemetry is not None or _current() is not UNSAMPLED):
                    serial = next_transaction()
                    checkout.transaction = OpenTransaction(-serial if autocommits(connection) else serial)
            except Exception:
                door.fault()
        return answer

    return do_begin


def _autocommits(dialect: Any) -> Callable[[Any], bool]:
    """Return what tells of a connection whether it commits each statement by itself, so that no transaction is open."""
    detect = getattr(dialect, "detect_autocommit_setting", None)
    if detect is None:  # SQLAlchemy before 2.0.43 has no way to ask
        return lambda connection: (
            getattr(connection.dbapi_connection, "autocommit", None) is True
            or getattr(connection.dbapi_connection, "isolation_level", None) == "autocommit"
        )

    def autocommits(connection: Any) -> bool:
        try:
            return bool(detect(connection.dbapi_connection))
        except NotImplementedError:
            return False

    return autocommits


def _end(outcome: str) -> Any:
    def make(door: Door, original: Any) -> Any:
        def end(connection: Any) -> Any:
            record = getattr(connection, "_connection_record", None)
            checkout: Checkout | None = None if record is None else record.__dict__.get(RECORD_KEY)
            transaction = None if checkout is None else checkout.transaction
            if checkout is None or transaction is None or not door.open:  # the pool's reset after a COMMIT
                return original(connection)
            checkout.transaction = None
            return timed(door, checkout, transaction, outcome, original, connection)

        return end

    return make


def _prepare(door: Door, original: Any) -> Any:
    def do_prepare_twophase(connection: Any, *arguments: Any, **options: Any) -> Any:
        started = clock()
        try:
            return original(connection, *arguments, **options)
        finally:
            checkout = _checkout_under(connection) if door.open else None
            if checkout is not None and checkout.transaction is not None:
                checkout.transaction.prepared(clock() - started)

    return do_prepare_twophase


def _ping(door: Door, original: Any) -> Any:
    def do_ping(*arguments: Any, **options: Any) -> Any:
        started = clock()
        try:
            return original(*arguments, **options)
        finally:
            prepared(clock() - started, opened=False)

    return do_ping


def _checkout_under(connection: Any) -> Checkout | None:
    """Return the checkout of a Connection of SQLAlchemy's."""
    return checkout_of(getattr(getattr(connection, "_dbapi_connection", None), "_connection_record", None))


def _end_twophase(outcome: str) -> Any:
    def make(door: Door, original: Any) -> Any:
        def end(connection: Any, *arguments: Any, **options: Any) -> Any:
            checkout = _checkout_under(connection) if door.open else None
            if checkout is None:
                return original(connection, *arguments, **options)
            # Taken off first: the dialect may call do_rollback on its way to COMMIT PREPARED.
            transaction, checkout.transaction = checkout.transaction, None
            if transaction is not None:
                transaction.two_phase = transaction.special = True
            return timed(door, checkout, transaction, outcome, original, connection, *arguments, **options)

        return end

    return make


def timed(
    door: Door,
    checkout: Checkout,
    transaction: OpenTransaction | None,
    outcome: str,
    original: Any,
    *arguments: Any,
    **options: Any,
) -> Any:
    """Call COMMIT or ROLLBACK, and write the transaction's fact, also for a COMMIT that failed."""
    checkout.ending = transaction
    error = ""
    started = clock()
    try:
        return original(*arguments, **options)
    except BaseException as exception:
        outcome, error = "rollback", name_of(exception)
        raise
    finally:
        try:
            checkout.ending = None
            checkout.end_transaction(transaction, outcome, started, error)
        except Exception:
            door.fault()
