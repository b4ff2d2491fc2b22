"""The rules: each module in this package has one, and is registered by being there.

A rule reads the facts of a scope and yields findings. It knows nothing of SQLAlchemy, does no I/O and keeps
nothing. `judge` runs the rules that are on, takes out what the user ignores, and puts the worst first.
"""

from __future__ import annotations

import importlib
import pkgutil

from sqla_watch.detectors._rule import Context, Rule, Threshold, judge, worst_first

__all__ = ["RULES", "Context", "Rule", "Threshold", "judge", "worst_first"]


def _discover() -> dict[str, Rule]:
    found: dict[str, Rule] = {}
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda module: module.name):
        if module.name.startswith("_"):
            continue
        loaded = importlib.import_module(f"{__name__}.{module.name}")
        for value in vars(loaded).values():
            # Its own classes alone: to ask of all that it has imported whether they are rules takes a millisecond.
            if isinstance(value, type) and value.__module__ == loaded.__name__ and issubclass(value, Rule):
                found[value.id] = value()
    return found


RULES: dict[str, Rule] = _discover()
"""Every rule by its id."""
