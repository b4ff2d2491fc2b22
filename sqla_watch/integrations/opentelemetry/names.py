"""The names that are written: OpenTelemetry's own, and ours, which begin with `sqla_watch.`.

OpenTelemetry's are spelled out, because its package of names is not needed for anything else; a test compares them.
"""

from __future__ import annotations

from typing import Final

SYSTEM: Final = "db.system.name"
NAMESPACE: Final = "db.namespace"
SUMMARY: Final = "db.query.summary"
TEXT: Final = "db.query.text"
OPERATION: Final = "db.operation.name"
COLLECTION: Final = "db.collection.name"
BATCH_SIZE: Final = "db.operation.batch.size"
STATUS_CODE: Final = "db.response.status_code"
RETURNED_ROWS: Final = "db.response.returned_rows"
PARAMETER: Final = "db.query.parameter"
ERROR_TYPE: Final = "error.type"
ADDRESS: Final = "server.address"
PORT: Final = "server.port"
FILE: Final = "code.file.path"
LINE: Final = "code.line.number"
FUNCTION: Final = "code.function.name"
POOL: Final = "db.client.connection.pool.name"
STATE: Final = "db.client.connection.state"

DURATION: Final = "db.client.operation.duration"
ROWS: Final = "db.client.response.returned_rows"
COUNT: Final = "db.client.connection.count"
IDLE_MAX: Final = "db.client.connection.idle.max"
MAX: Final = "db.client.connection.max"
PENDING: Final = "db.client.connection.pending_requests"
TIMEOUTS: Final = "db.client.connection.timeouts"
CREATE_TIME: Final = "db.client.connection.create_time"
WAIT_TIME: Final = "db.client.connection.wait_time"
USE_TIME: Final = "db.client.connection.use_time"

STATEMENTS: Final = "sqla_watch.statements"
DATABASE_SECONDS: Final = "sqla_watch.database_seconds"
OUTCOME: Final = "sqla_watch.transaction.outcome"
TIMED_OUT: Final = "sqla_watch.wait.timed_out"
RULE: Final = "sqla_watch.rule"
SEVERITY: Final = "sqla_watch.severity"
TARGET: Final = "sqla_watch.target"
SCOPE: Final = "sqla_watch.scope"
MESSAGE: Final = "sqla_watch.message"
SUGGESTION: Final = "sqla_watch.suggestion"
STATEMENT: Final = "sqla_watch.statement"
RELATED: Final = "sqla_watch.related"
EVIDENCE: Final = "sqla_watch.evidence"

FINDINGS: Final = "sqla_watch.findings"
TRANSACTION_DURATION: Final = "sqla_watch.transaction.duration"
TRANSACTION_IDLE: Final = "sqla_watch.transaction.idle"
