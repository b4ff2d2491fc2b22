"""What `benchmarks.overhead` has measured, in a form that tables, bars and JSON are made of."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Measured", "Results"]


@dataclass
class Measured:
    """What one contestant took in one workload: microseconds a unit, one number a turn."""

    spent: list[float] = field(default_factory=list)
    added: list[float] = field(default_factory=list)
    elapsed: list[float] = field(default_factory=list)
    added_elapsed: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)
    """What bare took before and after."""

    @property
    def median(self) -> float:
        """Added processor time."""
        return statistics.median(self.added)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Of the added processor time."""
        low, _, high = statistics.quantiles(self.added, n=4)
        return low, high

    @property
    def ratio(self) -> float:
        """To bare."""
        return statistics.median(
            mine / theirs for mine, theirs in zip(self.spent, self.bare, strict=True) if theirs > 0
        )

    def to_dict(self) -> dict[str, Any]:
        low, high = self.quartiles
        return {
            "microseconds": statistics.median(self.spent),
            "added": self.median,
            "added_quartiles": [low, high],
            "ratio": self.ratio,
            "elapsed": statistics.median(self.elapsed),
            "added_elapsed": statistics.median(self.added_elapsed),
            "turns": len(self.added),
        }


Results = dict[str, dict[str, Measured]]
"""By workload, then by contestant."""
