"""The metrics: what the conventions name, and findings and transactions.

Attributes are bounded: past some hundred different ones, further statements, routes and errors are counted together.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from sqla_watch.findings import Finding
from sqla_watch.integrations.opentelemetry import names
from sqla_watch.integrations.opentelemetry.describing import OTHER
from sqla_watch.probes.checkout import all_out
from sqla_watch.probes.internals import stored_records
from sqla_watch.probes.pool import waits_of

if TYPE_CHECKING:
    from sqla_watch.integrations.opentelemetry.engine import EngineTelemetry

MOST_STATEMENTS = 200
"""Different statements of one engine that the metrics tell apart; the others come without summary and collection."""
MOST_ERRORS = 50
MOST_FINDINGS = 300
"""Different findings (rule, target, route) that are told apart."""

SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10)
"""The buckets that the conventions ask for."""
_ROWS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000)


class Metrics:
    """The instruments, once for each meter provider."""

    def __init__(self, meter: Meter) -> None:
        self.engines: WeakSet[EngineTelemetry] = WeakSet()
        """The engines whose pools are observed."""
        self._findings_seen: set[tuple[str, ...]] = set()

        def seconds(name: str, description: str) -> Any:
            return meter.create_histogram(
                name, unit="s", description=description, explicit_bucket_boundaries_advisory=list(SECONDS)
            )

        self.duration = seconds(names.DURATION, "Duration of database client operations.")
        self.rows = meter.create_histogram(
            names.ROWS,
            unit="{row}",
            description="The actual number of records returned by the database operation.",
            explicit_bucket_boundaries_advisory=list(_ROWS),
        )
        self.create_time = seconds(names.CREATE_TIME, "The time it took to create a new connection.")
        self.wait_time = seconds(names.WAIT_TIME, "The time it took to obtain an open connection from the pool.")
        self.use_time = seconds(names.USE_TIME, "The time between borrowing a connection and returning it to the pool.")
        self.timeouts = meter.create_counter(
            names.TIMEOUTS, unit="{timeout}", description="Connection timeouts while waiting for the pool."
        )
        self.findings = meter.create_counter(
            names.FINDINGS, unit="{finding}", description="Findings by rule, target and scope."
        )
        self.transaction_duration = seconds(
            names.TRANSACTION_DURATION, "Duration of transactions, from the first statement to the end of COMMIT."
        )
        self.transaction_idle = seconds(
            names.TRANSACTION_IDLE, "Time in which a transaction was open and the database had nothing to do for it."
        )
        for name, unit, description, observe in (
            (names.COUNT, "{connection}", "The number of connections in state idle or used.", self._counts),
            (names.IDLE_MAX, "{connection}", "The maximum number of idle open connections allowed.", self._most_idle),
            (names.MAX, "{connection}", "The maximum number of open connections allowed.", self._most),
            (names.PENDING, "{request}", "The number of pending requests for an open connection.", self._pending),
        ):
            meter.create_observable_up_down_counter(name, callbacks=[observe], unit=unit, description=description)

    def count_finding(self, finding: Finding, scope: str) -> None:
        """Count a finding."""
        key = (finding.rule, str(finding.severity), finding.target, scope)
        if key not in self._findings_seen:
            if len(self._findings_seen) < MOST_FINDINGS:
                self._findings_seen.add(key)
            else:
                key = (finding.rule, str(finding.severity), OTHER, OTHER)
        self.findings.add(1, dict(zip((names.RULE, names.SEVERITY, names.TARGET, names.SCOPE), key, strict=True)))

    # Two engines may have the same database, and so the same attributes: their pools are added up, because of two
    # observations with the same attributes the later one would be all there is.

    def _counts(self, options: CallbackOptions) -> Iterable[Observation]:
        counts: dict[tuple[str, str], int] = {}
        for engine in list(self.engines):
            name = engine.target.pool[names.POOL]
            idle, used = count_connections(engine.pool)
            counts[name, "idle"] = counts.get((name, "idle"), 0) + idle
            counts[name, "used"] = counts.get((name, "used"), 0) + used
        return [Observation(count, {names.POOL: name, names.STATE: state}) for (name, state), count in counts.items()]

    def _most_idle(self, options: CallbackOptions) -> Iterable[Observation]:
        return self._observe(_size)

    def _most(self, options: CallbackOptions) -> Iterable[Observation]:
        return self._observe(_limit)

    def _pending(self, options: CallbackOptions) -> Iterable[Observation]:
        return self._observe(lambda pool: len(waits_of(pool).waiters))

    def _observe(self, number_of: Any) -> list[Observation]:
        numbers: dict[str, int] = {}
        for engine in list(self.engines):
            number = number_of(engine.pool)
            if number is not None:
                name = engine.target.pool[names.POOL]
                numbers[name] = numbers.get(name, 0) + number
        return [Observation(number, {names.POOL: name}) for name, number in numbers.items()]


def count_connections(pool: Any) -> tuple[int, int]:
    """Return how many connections of a pool are idle, and how many are out; the pool itself knows best.

    With those of the engine's former pools: `Engine.dispose()` leaves to their owners what is out.
    """
    dialect = getattr(pool, "_dialect", None)
    mine = former = 0
    for record, checkout in all_out():
        taken_from = None if checkout.pool is None else checkout.pool()
        if taken_from is None:
            continue
        if taken_from is pool:
            mine += 1
        elif getattr(taken_from, "_dialect", None) is dialect and record.dbapi_connection is not None:
            former += 1
    try:
        return _idle(pool), max(0, pool.checkedout()) + former
    except AttributeError:  # a pool that counts nothing: those that were taken since it is watched
        return 0, mine + former


def _idle(pool: Any) -> int:
    """Count the open connections that a pool has in store; one that was invalidated is a place without a connection."""
    records = stored_records(pool)
    if records is None:
        return max(0, int(pool.checkedin()))
    return sum(record.dbapi_connection is not None for record in records)


def _size(pool: Any) -> int | None:
    size = getattr(pool, "size", None)
    return size() if callable(size) and hasattr(pool, "_max_overflow") else None


def _limit(pool: Any) -> int | None:
    size, overflow = _size(pool), getattr(pool, "_max_overflow", -1)
    return None if size is None or overflow < 0 else size + overflow


class StatementAttributes:
    """The attributes of the metrics of an engine's statements, of which there is a bounded number."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], dict[str, Any]] = {}
        self._errors: set[str] = set()

    def of(self, target: dict[str, Any], attributes: dict[str, Any], error: str, *, is_state: bool) -> dict[str, Any]:
        """Return the attributes of one execution; `error` is empty, or an SQLSTATE or an exception's class."""
        if error and error not in self._errors:
            if len(self._errors) < MOST_ERRORS:
                self._errors.add(error)
            else:
                error, is_state = OTHER, False
        summary = attributes[names.SUMMARY]
        key = (summary, error)
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= MOST_STATEMENTS:
                # Those that are counted already go on; of the others only that there was an error is told apart.
                key = ("", error)
                found = self._known.get(key)
                if found is not None:
                    return found
                found = dict(target)
            else:
                found = dict(attributes)
            if error:
                found[names.ERROR_TYPE] = error
                if is_state:
                    found[names.STATUS_CODE] = error
            self._known[key] = found
        return found
