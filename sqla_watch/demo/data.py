"""Fills the shop with rows made up by rule, the same at every run."""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from sqlalchemy import Engine, insert

from sqla_watch.demo.models import Base, Customer, Item, Order, Product, Rate

COUNTRIES = ("AT", "CH", "DE", "FR", "IT")
STATUSES = ("new", "paid", "sent", "returned")
_FIRST_DAY = datetime(2026, 1, 1)


def fill(engine: Engine, *, customers: int = 1_000, orders: int = 10_000, items: int = 40_000) -> None:
    """Create the shop's tables anew, and fill them.

    Args:
        engine: Where to; tables of the same names are dropped first.
        customers: Number of customers.
        orders: Number of orders, evenly spread over the customers.
        items: Number of items, evenly spread over the orders.
    """
    products = 100
    rows: dict[type[Base], list[dict[str, Any]]] = {
        Customer: [
            {
                "id": number,
                "name": f"Customer {number}",
                "country": COUNTRIES[number % len(COUNTRIES)],
                "notes": "",
            }
            for number in range(1, customers + 1)
        ],
        Product: [
            {"id": number, "name": f"Product {number}", "price": Decimal(number) + Decimal("0.90")}
            for number in range(1, products + 1)
        ],
        Order: [
            {
                "id": number,
                "customer_id": number % customers + 1,
                "placed_at": _FIRST_DAY + timedelta(minutes=number),
                "status": STATUSES[number % len(STATUSES)],
            }
            for number in range(1, orders + 1)
        ],
        Item: [
            {
                "id": number,
                "order_id": number % orders + 1,
                "product_id": number % products + 1,
                "quantity": 1,
            }
            for number in range(1, items + 1)
        ],
        Rate: [{"country": country, "percent": Decimal(20) + number} for number, country in enumerate(COUNTRIES)],
    }
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        for table, values in rows.items():
            connection.execute(insert(table), values)
