"""Outcomes as a test run has them, made by hand: for what only reads them."""

from __future__ import annotations

from typing import Any

from sqla_watch.pytest_plugin.outcome import Outcome, identity

N_PLUS_ONE = "n-plus-one|Customer.orders|shop/views.py|list_customers"


def finding(
    rule: str = "n-plus-one",
    target: str = "Customer.orders",
    file: str = "shop/views.py",
    line: int = 12,
    function: str = "list_customers",
    severity: str = "high",
    **further: Any,
) -> dict[str, Any]:
    """A finding, as an outcome has it."""
    return {
        "rule": rule,
        "severity": severity,
        "message": f"{target} was loaded lazily for 20 Customer objects, one by one",
        "location": {"file": f"/srv/{file}", "line": line, "function": function},
        "evidence": {"distinct_parents": 20},
        "suggestion": "Add to the query at views.py:10:\n.options(selectinload(Customer.orders))",
        "target": target,
        "related": [
            {"role": "parents loaded by the query", "file": f"/srv/{file}", "line": line - 2, "function": function}
        ],
        "statement": "SELECT orders.id FROM orders WHERE ? = orders.customer_id",
        "statements": 20,
        "database_seconds": 0.02,
        "file": file,
        **further,
    }


def outcome(nodeid: str = "tests/test_views.py::test_list", *findings: dict[str, Any], **further: Any) -> Outcome:
    """What came of a test; its findings let it fail where their severity is high."""
    values: dict[str, Any] = {
        "nodeid": nodeid,
        "file": nodeid.partition("::")[0],
        "line": 7,
        "statements": 21,
        "rows": 120,
        "database_seconds": 0.025,
        "wait_seconds": 0.0,
        "transactions": 1,
        "connections": 1,
        "setup_statements": 3,
        "setup_database_seconds": 0.004,
        "duration_seconds": 0.1,
        "findings": findings,
        "failing": tuple(identity(each) for each in findings if each["severity"] == "high"),
        "budget": {},
        "over": {},
        "by_line": (),
        "engines": 1,
        **further,
    }
    return Outcome(**values)
