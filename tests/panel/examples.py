"""Requests of a shop as a middleware would hand them over: for tests, and for pictures that look like life."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SHOP = "/srv/shop/shop"

ORDERS = (
    "SELECT orders.id, orders.customer_id, orders.state, orders.placed_at, orders.total FROM orders "
    "WHERE orders.state = ? ORDER BY orders.placed_at DESC LIMIT ?"
)
CUSTOMER = (
    "SELECT customers.id, customers.name, customers.email, customers.country FROM customers WHERE customers.id = ?"
)
ITEMS = (
    "SELECT items.order_id, items.id, items.product_id, items.quantity, items.price, products.id, products.name, "
    "products.sku FROM items LEFT OUTER JOIN products ON products.id = items.product_id WHERE items.order_id IN (?) "
    "AND items.removed_at IS NULL ORDER BY items.id"
)
STOCK = (
    "SELECT stock.product_id, sum(stock.quantity) AS left FROM stock WHERE stock.product_id IN (?) "
    "AND stock.warehouse = ? GROUP BY stock.product_id HAVING sum(stock.quantity) > 0"
)
AUDIT = "INSERT INTO audit (at, actor, what, subject) VALUES (now(), ?, 'order shown', ?) RETURNING audit.id"
UPDATE = "UPDATE orders SET state = ?, changed_at = now() WHERE orders.id = ?"


def line(file: str, number: int, function: str) -> dict[str, Any]:
    """A line of the shop."""
    return {"file": f"{SHOP}/{file}", "line": number, "function": function}


def finding(rule: str, severity: str, message: str, **further: Any) -> dict[str, Any]:
    """A finding as `Finding.to_dict` has it."""
    return {
        "rule": rule,
        "severity": severity,
        "message": message,
        "location": None,
        "evidence": {},
        "suggestion": "",
        "target": "",
        "related": [],
        "statement": "",
        "statements": 0,
        "database_seconds": 0.0,
        **further,
    }


def entry(name: str = "GET /orders", **further: Any) -> dict[str, Any]:
    """A scope as `Scope.to_dict` has it."""
    return {
        "name": name,
        "kind": "request",
        "started_at": 1795348800.0,
        "duration_seconds": 0.1,
        "statements": 0,
        "rows": 0,
        "errors": 0,
        "database_seconds": 0.0,
        "commit_seconds": 0.0,
        "wait_seconds": 0.0,
        "held_seconds": 0.0,
        "connect_seconds": 0.0,
        "connections": 0,
        "transactions": 0,
        "dropped": 0,
        "findings": [],
        **further,
    }


def request(method: str, route: str, status: int = 200, **further: Any) -> dict[str, Any]:
    """What the middleware knows of a request."""
    return {"method": method, "route": route, "status": status, "failed": False, "sampled": True, **further}


def statement(start: float, seconds: float, text: int, line: int, **further: Any) -> dict[str, Any]:
    """A statement of a timeline."""
    return {
        "kind": "statement",
        "start": start,
        "seconds": seconds,
        "text": text,
        "line": line,
        "rows": 1,
        "connection": 1,
        "transaction": 1,
        **further,
    }


def timeline(
    texts: Sequence[str], lines: Sequence[Mapping[str, Any]], entries: Sequence[Mapping[str, Any]], left_out: int = 0
) -> dict[str, Any]:
    """A timeline as `Timeline.to_dict` has it."""
    ordered = sorted(entries, key=lambda each: (each["start"], -each["seconds"]))
    return {"texts": list(texts), "lines": list(lines), "entries": ordered, "left_out": left_out}


def slow_order_list() -> dict[str, Any]:
    """A request with one of everything: a wait, an N+1, a call to elsewhere in the transaction, a failed statement."""
    lines = [
        line("views/orders.py", 38, "list_orders"),
        line("views/orders.py", 44, "list_orders"),
        line("templates/orders.html", 12, "block 'rows'"),
        line("services/rates.py", 21, "current_rates"),
        line("services/stock.py", 57, "left_of"),
        line("audit.py", 15, "note"),
        line("db.py", 9, "session"),
    ]
    entries = [
        {"kind": "wait", "start": 0.0012, "seconds": 0.0483, "line": 6, "connection": 1},
        statement(0.0513, 0.0092, 0, 0, rows=50),
    ]
    at = 0.0631
    for number in range(50):
        seconds = 0.0011 + number % 7 * 0.00017
        entries.append(statement(at, seconds, 1, 2, load="lazy load"))
        at += seconds + 0.0004
    entries += [
        {
            "kind": "gap",
            "start": at,
            "seconds": 0.1184,
            "line": 3,
            "doing": "in requests.get",
            "connection": 1,
            "transaction": 1,
        },
        statement(at + 0.1184, 0.0171, 2, 1, rows=212, load="eager load"),
        statement(at + 0.1371, 0.0312, 3, 4, rows=48),
        {
            "kind": "commit",
            "start": at + 0.1694,
            "seconds": 0.0007,
            "line": 4,
            "outcome": "rollback",
            "connection": 1,
            "transaction": 1,
        },
        {
            "kind": "transaction",
            "start": 0.0513,
            "seconds": at + 0.1701 - 0.0513,
            "line": 0,
            "outcome": "rollback",
            "statements": 53,
            "connection": 1,
            "transaction": 1,
        },
        statement(at + 0.1731, 0.0023, 4, 5, rows=0, connection=2, transaction=2, error="40001"),
        statement(at + 0.1771, 0.0026, 4, 5, rows=1, connection=2, transaction=2),
        {
            "kind": "commit",
            "start": at + 0.1801,
            "seconds": 0.0094,
            "line": 5,
            "outcome": "commit",
            "connection": 2,
            "transaction": 2,
        },
        {
            "kind": "transaction",
            "start": at + 0.1731,
            "seconds": 0.0164,
            "line": 5,
            "outcome": "commit",
            "statements": 2,
            "connection": 2,
            "transaction": 2,
        },
    ]
    database = sum(each["seconds"] for each in entries if each["kind"] == "statement")
    lazy = sum(each["seconds"] for each in entries if each.get("text") == 1)
    return entry(
        "GET /orders",
        duration_seconds=round(at + 0.1954, 6),
        statements=55,
        rows=361,
        errors=1,
        database_seconds=round(database, 6),
        commit_seconds=0.0101,
        wait_seconds=0.0483,
        held_seconds=round(at + 0.14, 6),
        connect_seconds=0.0031,
        connections=2,
        transactions=2,
        request=request("GET", "/orders"),
        timeline=timeline([ORDERS, CUSTOMER, ITEMS, STOCK, AUDIT], lines, entries),
        findings=[
            finding(
                "n-plus-one",
                "high",
                "Order.customer was loaded lazily for 50 Order objects, one by one: 50 statements where one would do",
                location=lines[2],
                evidence={"relationship": "Order.customer", "distinct_parents": 50, "rows": 50},
                suggestion=f"Add to the query at {SHOP}/views/orders.py:38:\n.options(joinedload(Order.customer))",
                target="Order.customer",
                related=[{"role": "parents loaded by the query", **lines[0]}],
                statement=CUSTOMER,
                statements=50,
                database_seconds=round(lazy, 6),
            ),
            finding(
                "idle-in-transaction",
                "high",
                "transaction idle for 0.1 s of 0.3 s between orders.html:12 and orders.py:44; "
                "meanwhile in requests.get at rates.py:21",
                location=lines[2],
                evidence={
                    "idle_seconds": 0.1184,
                    "transaction_seconds": 0.2854,
                    "transactions": 1,
                    "wrote": False,
                    "meanwhile": "in requests.get",
                },
                suggestion="Call requests.get before the first statement, or after the transaction: read what is "
                "needed, end the session, then do it.",
                target="list_orders",
                related=[{"role": "meanwhile in requests.get", **lines[3]}],
                statements=53,
                database_seconds=0.138,
            ),
            finding(
                "database-error",
                "medium",
                "INSERT audit failed once with 40001, serialization_failure; it was tried again",
                location=lines[5],
                evidence={"errors": 1, "sqlstate": "40001"},
                suggestion="Try the whole transaction again, not its last statement.",
                target="INSERT audit",
                statement=AUDIT,
                statements=1,
                database_seconds=0.0023,
            ),
            finding(
                "limit-without-order-by",
                "low",
                "rows of SELECT stock come in an order that is not defined",
                location=lines[4],
                evidence={"rows": 48},
                suggestion="Add an ORDER BY that tells rows apart:\n.order_by(Stock.product_id)",
                target="SELECT stock",
                statement=STOCK,
                statements=1,
                database_seconds=0.0312,
            ),
        ],
    )


def busy_shop() -> list[dict[str, Any]]:
    """The last requests of a shop, the oldest first."""
    plain = [
        ("GET", "/", 200, 0.0214, 3, 24, 0.0061, ""),
        ("GET", "/products/{slug}", 200, 0.0342, 4, 31, 0.0118, ""),
        ("GET", "/static/app.css", 304, 0.0009, 0, 0, 0.0, ""),
        ("POST", "/login", 303, 0.2412, 2, 2, 0.0031, ""),
        ("GET", "/account/orders", 200, 0.1841, 41, 212, 0.1203, "hm"),
        ("GET", "/search", 200, 0.9315, 2, 4120, 0.8102, "hml"),
        ("POST", "/cart/items", 201, 0.0276, 5, 5, 0.0109, ""),
        ("GET", "/cart", 200, 0.0423, 6, 18, 0.0154, "l"),
        ("POST", "/checkout", 500, 1.3127, 17, 38, 0.2204, "hh"),
        ("GET", "/products/{slug}/reviews", 200, 0.0318, 2, 20, 0.0104, ""),
        ("PUT", "/admin/products/{id}", 404, 0.0073, 1, 0, 0.0012, ""),
        ("GET", "/healthz", 200, 0.0012, 1, 1, 0.0004, ""),
    ]
    severities = {"h": "high", "m": "medium", "l": "low"}
    entries = []
    for place, (method, route, status, seconds, statements, rows, database, found) in enumerate(plain):
        entries.append(
            entry(
                f"{method} {route}",
                started_at=1795348800.0 + place * 1.7,
                duration_seconds=seconds,
                statements=statements,
                rows=rows,
                database_seconds=database,
                errors=int(status == 500),
                request=request(method, route, status, failed=status == 500),
                findings=[finding("slow-query", severities[each], "one statement took long") for each in found],
            )
        )
    entries.append(slow_order_list() | {"started_at": 1795348800.0 + len(plain) * 1.7})
    return entries


def many_statements(number: int, *, different: bool) -> dict[str, Any]:
    """A request with very many statements: the same again and again, or each another one."""
    lines = [line("reports/monthly.py", 10 + place, f"step_{place}") for place in range(40 if different else 1)]
    texts = [
        f"SELECT t{place}.id, t{place}.name, t{place}.value, t{place}.changed_at FROM table_{place} AS t{place} "
        f"JOIN other ON other.id = t{place}.other_id WHERE t{place}.id = ? AND other.kind IN (?) ORDER BY t{place}.id"
        for place in range(number if different else 1)
    ]
    entries: list[dict[str, Any]] = [
        statement(0.001 + place * 0.001, 0.0007, place % len(texts), place % len(lines)) for place in range(number)
    ]
    whole = number * 0.001
    common = {"outcome": "commit", "connection": 1, "transaction": 1}
    entries.append({"kind": "commit", "start": whole + 0.001, "seconds": 0.002, "line": 0, **common})
    entries.append(
        {"kind": "transaction", "start": 0.001, "seconds": whole + 0.002, "line": 0, "statements": number, **common}
    )
    return entry(
        "GET /reports/monthly",
        duration_seconds=whole + 0.01,
        statements=number,
        rows=number,
        database_seconds=number * 0.0007,
        transactions=1,
        connections=1,
        request=request("GET", "/reports/monthly"),
        timeline=timeline(texts, lines, entries),
        findings=[
            finding(
                "query-in-loop",
                "high",
                f"the same SELECT was sent {number:,} times from one line",
                location=lines[0],
                evidence={"statements": number},
                suggestion="Ask for all of them at once:\nsession.scalars(select(T).where(T.id.in_(ids)))",
                target="SELECT table_0",
                statement=texts[0],
                statements=number,
                database_seconds=number * 0.0007,
            )
        ],
    )


def commit_for_each_row(number: int) -> dict[str, Any]:
    """A request that commits very many times, one row each."""
    lines = [line("imports.py", 21, "take_over"), line("imports.py", 22, "take_over")]
    entries: list[dict[str, Any]] = []
    for place in range(number):
        common = {"connection": 1, "transaction": place + 1}
        start = 0.001 + place * 0.003
        entries += [
            statement(start, 0.0008, 0, 0, rows=0, **common),
            {"kind": "commit", "start": start + 0.001, "seconds": 0.0015, "line": 1, "outcome": "commit", **common},
            {
                "kind": "transaction",
                "start": start,
                "seconds": 0.0025,
                "line": 0,
                "outcome": "commit",
                "statements": 1,
                **common,
            },
        ]
    return entry(
        "POST /imports",
        duration_seconds=number * 0.003,
        statements=number,
        transactions=number,
        request=request("POST", "/imports", 201),
        timeline=timeline([AUDIT], lines, entries),
    )
