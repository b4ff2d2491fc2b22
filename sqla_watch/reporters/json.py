r"""The JSON report, schema version 1: what was found, for other programs to read.

The document is one object in UTF-8. Seconds are numbers with a fraction; everything that is counted is a whole
number::

    {
      "schema": 1,
      "sqla_watch": "0.1.0",
      "generated_at": "2026-11-22T12:00:00+00:00",
      "scopes": [
        {
          "name": "export.py", "kind": "run", "started_at": 1795348800.0, "duration_seconds": 1.25,
          "statements": 104, "rows": 1300, "errors": 0, "database_seconds": 0.21, "commit_seconds": 0.002,
          "wait_seconds": 0.0, "held_seconds": 0.23, "connect_seconds": 0.004, "connections": 1, "transactions": 1,
          "dropped": 0,
          "findings": [
            {
              "rule": "n-plus-one", "severity": "high",
              "message": "Customer.orders was loaded lazily for 100 Customer objects, one by one: …",
              "location": {"file": "/srv/shop/export.py", "line": 12, "function": "export"},
              "evidence": {"distinct_parents": 100, "statements": 100, "database_seconds": 0.19},
              "suggestion": "Add to the query at export.py:10:\n.options(selectinload(Customer.orders))",
              "target": "Customer.orders",
              "related": [
                {"role": "parents loaded by the query", "file": "/srv/shop/export.py", "line": 10,
                 "function": "export"}
              ],
              "statement": "SELECT …", "statements": 100, "database_seconds": 0.19
            }
          ]
        }
      ]
    }

`severity` is `high`, `medium` or `low`. `location` is null where no line of the application's own code was on the
stack. The keys of `evidence` depend on the rule and carry their units. A scope's numbers and findings include those
of the scopes inside of it.

`sqla-watch run` adds:

- `program`: `name`, `arguments` and `module` (whether it was run by `-m`).
- `totals`: `scopes`, `statements`, `rows`, `errors`, `database_seconds`, `commit_seconds`, `wait_seconds`,
  `held_seconds`, `connect_seconds`, `connections`, `transactions` and `dropped` of the whole run, each statement
  counted once.
- `findings`: the findings of all scopes, worst first, the same one (rule, target, file and function) only once. Its
  `statements`, `database_seconds` and `cost_seconds` are sums over the `scopes` scopes which had it; `message`,
  `evidence` and lines are those of the dearest one.
- `findings_left_out`: how many findings were too many to keep; 0 as a rule.
- `scopes_left_out`: how many scopes were too many to keep. At most 1,000 are kept: those with the most findings, and
  among them the longest. The scope of the run itself always comes first; its numbers include those of the scopes
  opened inside of it, but of the findings it has only its own.

`sqla-watch demo` adds `scenarios`, a list of objects with `rule`, `title`, `mistake` and `repair`; the last two are
the names of scopes.

Other versions may add keys. A key is not removed, and does not change its meaning, without a new `schema`.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import sqla_watch
from sqla_watch.findings import SqlaWatchError

__all__ = ["SCHEMA", "JsonReportError", "check", "document", "write"]

SCHEMA = 1


class JsonReportError(SqlaWatchError):
    """The report cannot be written; the message names the path and says why."""


def document(scopes: Iterable[Mapping[str, Any]], **further: Any) -> dict[str, Any]:
    """Return a report of scopes, given as `Scope.to_dict` has them.

    Args:
        scopes: The scopes.
        further: Keys that are added at the top.
    """
    return {
        "schema": SCHEMA,
        "sqla_watch": sqla_watch.__version__,
        "generated_at": datetime.now(UTC).isoformat(timespec="seconds"),
        **further,
        "scopes": list(scopes),
    }


def check(path: str) -> None:
    """Look whether a report can be written, without leaving anything behind.

    Raises:
        JsonReportError: It cannot.
    """
    if os.path.isdir(path):
        raise JsonReportError(f"cannot write the JSON report to {path!r}: it is a directory")
    try:
        if _is_replaceable(path):
            os.unlink(_write_beside(path, b""))
        else:
            with open(path, "ab"):
                pass
    except OSError as error:
        raise JsonReportError(f"cannot write the JSON report to {path!r}: {error.strerror}") from error


def write(report: Mapping[str, Any], path: str) -> None:
    """Write a report as UTF-8, whole or not at all: readers never see a half of it.

    Raises:
        JsonReportError: It cannot be written.
    """
    # A file name that is no UTF-8 has lone surrogates; written out they are JSON's own escapes.
    content = json.dumps(report, ensure_ascii=False, indent=2).encode("utf-8", "backslashreplace") + b"\n"
    try:
        if not _is_replaceable(path):
            with open(path, "wb") as file:
                file.write(content)
            return
        beside = _write_beside(path, content)
        try:
            os.replace(beside, os.path.realpath(path))
        except OSError:
            os.unlink(beside)
            raise
    except OSError as error:
        raise JsonReportError(f"cannot write the JSON report to {path!r}: {error.strerror}") from error


def _is_replaceable(path: str) -> bool:
    """Whether a path is, or will be, an ordinary file; a device or a pipe is written to and stays what it is."""
    return not os.path.exists(path) or os.path.isfile(path)


def _write_beside(path: str, content: bytes) -> str:
    """Write a new file into the folder of a path, with the usual permissions, and return its name."""
    folder = os.path.dirname(os.path.realpath(path))
    beside = os.path.join(folder, f".sqla_watch_{secrets.token_hex(8)}.tmp")
    try:
        with open(beside, "xb") as file:
            file.write(content)
    except OSError:
        if os.path.exists(beside):
            os.unlink(beside)
        raise
    return beside
