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
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import sqla_watch
from sqla_watch.reporters import files
from sqla_watch.reporters.files import ReportError

__all__ = ["SCHEMA", "check", "document", "read", "write"]

SCHEMA = 1
_WHAT = "JSON report"


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
        ReportError: It cannot.
    """
    files.check(path, _WHAT)


def write(report: Mapping[str, Any], path: str) -> None:
    """Write a report as UTF-8, whole or not at all.

    Raises:
        ReportError: It cannot be written.
    """
    # A file name that is no UTF-8 has lone surrogates; written out they are JSON's own escapes.
    content = json.dumps(report, ensure_ascii=False, indent=2).encode("utf-8", "backslashreplace") + b"\n"
    files.write(content, path, _WHAT)


def read(path: str) -> dict[str, Any]:
    """Read a report.

    Returns:
        The document, of which `scopes` is a list; nothing further has been looked at.

    Raises:
        ReportError: There is none, or it is not one that this version can read.
    """
    try:
        with open(path, "rb") as file:
            report = json.load(file)
    except OSError as error:
        raise ReportError(f"cannot read the {_WHAT} {path!r}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ReportError(f"cannot read the {_WHAT} {path!r}: it is no JSON: {error}") from error
    schema = report.get("schema") if isinstance(report, dict) else None
    if not isinstance(report, dict) or schema is None or not isinstance(report.get("scopes"), list):
        raise ReportError(f"cannot read {path!r}: it is no report of sqla-watch; make one with sqla-watch run --json")
    if schema != SCHEMA:
        raise ReportError(f"cannot read {path!r}: its schema is {schema!r}, and this version reads {SCHEMA}")
    return report
