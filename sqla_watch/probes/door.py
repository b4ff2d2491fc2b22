"""What probes have in common: a fault of theirs is said once and switches them off; wrappers come off again.

Wrappers are put on an object's methods and taken off in any order with others who do the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

logger = logging.getLogger("sqla_watch")


class Probe:
    """Whether a probe is on."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.open = True

    def fault(self) -> None:
        """Say that this probe failed, once, and switch it off. Called while handling the exception."""
        if self.open:
            self.open = False
            logger.exception("sqla_watch: the probe %s failed and is switched off; please report this", self.name)


class Door(Probe):
    """A set of wrapped methods of one object, kept in its `__dict__` in front of the class's own.

    The wrappers look at `open` first: one that somebody else has wrapped meanwhile cannot be taken off, but only
    passes on from then.
    """

    def __init__(self, name: str, target: Any) -> None:
        super().__init__(name)
        self.target = target
        self._wrapped: dict[str, tuple[Any, bool, Any]] = {}

    def wrap(self, method: str, make: Callable[[Door, Any], Any]) -> None:
        """Put `make(self, original)` in front of a method; a method that is not there stays away."""
        original = getattr(self.target, method, None)
        if original is None:
            return
        own = method in vars(self.target)
        wrapper = make(self, original)
        setattr(self.target, method, wrapper)
        self._wrapped[method] = (wrapper, own, original)

    def close(self) -> None:
        """Take the wrappers off; those which somebody wrapped in turn pass on from now."""
        self.open = False
        for method, (wrapper, own, original) in self._wrapped.items():
            if vars(self.target).get(method) is wrapper:
                if own:
                    setattr(self.target, method, original)
                else:
                    delattr(self.target, method)
        self._wrapped.clear()
