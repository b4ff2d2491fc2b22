"""Ignoring a finding on purpose: a `with` block or a comment goes in, what it silenced is counted.

An ignore that never matched is one that somebody forgot to take out; `unused_ignores` names them.
"""

from __future__ import annotations

import fnmatch
import io
import linecache
import re
import sys
import threading
import tokenize
from contextvars import ContextVar, Token
from dataclasses import dataclass
from types import TracebackType

from sqla_watch.findings import Finding, Location

__all__ = ["Ignore", "ignore", "unused_ignores"]

_COMMENT = re.compile(r"#\s*sqla-watch:\s*ignore(?:\[([^\]]*)\])?")
_MOST_IGNORES = 2_000


@dataclass(eq=False, slots=True)
class Ignore:
    """One place in the code which ignores a rule, and how often that silenced something."""

    rule: str
    """Id of the rule; a comment without brackets ignores every rule: `*`."""
    target: str
    """What it is about (`Order.customer`), with `*` and `?` as wildcards."""
    reason: str
    location: Location | None
    comment: bool = False
    matched: int = 0

    def matches(self, finding: Finding) -> bool:
        """Whether it silences this finding; counts if so."""
        if self.rule not in ("*", finding.rule) or not fnmatch.fnmatchcase(finding.target, self.target):
            return False
        self.matched += 1
        return True

    def __str__(self) -> str:
        place = f"{self.location}: " if self.location else ""
        target = "" if self.target == "*" else f" for {self.target}"
        reason = f" ({self.reason})" if self.reason else ""
        return f"{place}ignore of {self.rule}{target}{reason} silenced nothing"


active: ContextVar[tuple[Ignore, ...]] = ContextVar("sqla_watch_ignores", default=())
"""The ignores around the code that runs now; read for each statement (15 ns)."""


entered: list[Ignore] = []
"""The ignores whose blocks run anywhere in the process; while it is empty, nobody has to ask the ContextVar."""


class _Ignores:
    """The ignores met so far, by place, so that a loop over one `with` makes one entry."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blocks: dict[tuple[object, ...], Ignore] = {}
        self._comments: dict[str, dict[int, list[Ignore]]] = {}

    def block(self, rule: str, target: str, reason: str, location: Location | None) -> Ignore:
        key = (rule, target, location)
        with self._lock:
            found = self._blocks.get(key)
            if found is None:
                found = Ignore(rule, target, reason, location)
                if len(self._blocks) < _MOST_IGNORES:
                    self._blocks[key] = found
            return found

    def comments(self, location: Location) -> list[Ignore]:
        """Return the ignores written as comments on the lines of a location."""
        by_line = self.read(location.file)
        if not by_line:
            return []
        last = max(location.last_line, location.line)
        return [found for line in range(location.line, last + 1) for found in by_line.get(line, ())]

    def read(self, file: str) -> dict[int, list[Ignore]]:
        """Return the ignore comments of a file by line, reading it once."""
        by_line = self._comments.get(file)
        if by_line is None:
            by_line = self._comments[file] = _read_comments(file)
        return by_line

    def unused(self) -> list[Ignore]:
        with self._lock:
            known = list(self._blocks.values())
        known += [each for by_line in self._comments.values() for line in by_line.values() for each in line]
        return sorted(
            (each for each in known if not each.matched),
            key=lambda each: (each.location.file, each.location.line) if each.location else ("", 0),
        )

    def clear(self) -> None:
        with self._lock:
            self._blocks.clear()
            self._comments.clear()


registry = _Ignores()


def _read_comments(file: str) -> dict[int, list[Ignore]]:
    """Read the ignore comments of a source file; a string that looks like one is none."""
    lines = linecache.getlines(file)
    if not any("sqla-watch:" in line for line in lines):
        return {}
    found: dict[int, list[Ignore]] = {}
    try:
        for token in tokenize.generate_tokens(io.StringIO("".join(lines)).readline):
            match = _COMMENT.match(token.string) if token.type == tokenize.COMMENT else None
            if match is None:
                continue
            rules = [rule.strip() for rule in (match[1] or "*").split(",") if rule.strip()]
            location = Location(file, token.start[0], "")
            found[token.start[0]] = [Ignore(rule, "*", "", location, comment=True) for rule in rules]
    except (tokenize.TokenError, SyntaxError):  # a file that changed under the running program
        pass
    return found


class ignore:
    """Silence a rule for the statements sent inside of a `with` block.

    Args:
        rule: Id of a rule, as in `n-plus-one`.
        target: What to ignore it for, such as `Order.customer`; `*` and `?` are wildcards. Everything, by default.
        reason: Why, for those who read it later. It is shown when the ignore is no longer needed.

    Raises:
        SettingsError: There is no such rule.

    Example::

        with sqla_watch.ignore("n-plus-one", "Order.customer", reason="at most three orders"):
            names = [order.customer.name for order in orders]
    """

    def __init__(self, rule: str, target: str = "*", *, reason: str = "") -> None:
        from sqla_watch.settings import check_rule

        self._rule = check_rule(rule)
        self._target = target
        self._reason = reason
        self._tokens: list[Token[tuple[Ignore, ...]]] = []

    def __enter__(self) -> Ignore:
        from sqla_watch.callsite import location_of
        from sqla_watch.facts import CallSite

        caller = sys._getframe(1)
        location = location_of(CallSite(caller.f_code, caller.f_lasti))
        found = registry.block(self._rule, self._target, self._reason, location)
        self._tokens.append(active.set((*active.get(), found)))
        entered.append(found)
        return found

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        entered.remove(active.get()[-1])
        active.reset(self._tokens.pop())


def unused_ignores() -> list[Ignore]:
    """Return the ignores, blocks and comments, which were met but silenced nothing so far.

    Comments are looked for in the files of user code which sent statements. Call it at the end of a test run::

        for unused in sqla_watch.unused_ignores():
            print(unused)
    """
    from sqla_watch.callsite import user_code

    for file in user_code.files():
        registry.read(file)
    return registry.unused()


def is_ignored(finding: Finding, blocks: tuple[Ignore, ...]) -> bool:
    """Whether a block around its statements or a comment on one of its lines silences a finding."""
    for block in blocks:
        if block.matches(finding):
            return True
    if finding.location is None:
        return False
    return any(comment.matches(finding) for comment in registry.comments(finding.location))
