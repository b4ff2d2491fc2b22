"""Budgets: what a request, a task or a test may cost at most. More is a finding of the rule `over-budget`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from sqla_watch.settings import SettingsError

__all__ = ["Budget", "check_budgets"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a scope may cost at most. What is not given has no limit.

    Args:
        max_statements: Statements of the application; savepoints, settings and catalogue look-ups are not counted.
        max_rows: Rows which these returned.
        max_database_seconds: Seconds in statements, as the application saw them.
        max_wait_seconds: Seconds of waiting for connections of the pool.
        max_connections: Connections checked out.
        max_transactions: Transactions committed or rolled back after at least one statement.

    Raises:
        SettingsError: A limit is no number, or negative; or none is given.

    Example::

        Budget(max_statements=10, max_database_seconds=0.2)
    """

    max_statements: int | None = None
    max_rows: int | None = None
    max_database_seconds: float | None = None
    max_wait_seconds: float | None = None
    max_connections: int | None = None
    max_transactions: int | None = None

    def __post_init__(self) -> None:
        if not self.limits:
            raise SettingsError("Budget() has no limit; give one, as in Budget(max_statements=10)")
        for name, value in self.limits.items():
            in_seconds = name.endswith("_seconds")
            if isinstance(value, bool) or not isinstance(value, (int, float) if in_seconds else int):
                wanted = "a number of seconds" if in_seconds else "a whole number"
                raise SettingsError(f"Budget: {name} is {value!r} ({type(value).__name__}), but must be {wanted}")
            if not 0 <= value < float("inf"):
                raise SettingsError(f"Budget: {name} is {value!r}, but must be 0 or more")

    @property
    def limits(self) -> dict[str, float]:
        """The limits that are given, by name."""
        found = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in found.items() if value is not None}


def check_budgets(source: str, budgets: object) -> dict[str, Budget]:
    """Return budgets by name.

    Raises:
        SettingsError: They are no mapping of names to `Budget`; the message names the value.
    """
    if not isinstance(budgets, Mapping):
        raise SettingsError(f"{source}: budgets is {budgets!r}, but must be a mapping of names to Budget(…)")
    for name, budget in budgets.items():
        if not isinstance(name, str) or not name:
            raise SettingsError(f"{source}: a budget is for {name!r}, but must be for a name, as 'GET /orders'")
        if not isinstance(budget, Budget):
            raise SettingsError(f"{source}: the budget of {name!r} is {budget!r}, but must be a Budget(…)")
    return dict(budgets)
