"""Which findings are meant: `n-plus-one` for all of a rule, `n-plus-one:Order.customer` for one target of it."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from typing import NamedTuple

from sqla_watch.findings import Finding
from sqla_watch.settings import SettingsError, check_rule

__all__ = ["Pattern", "patterns"]


class Pattern(NamedTuple):
    """A rule, and what it is about; `*` and `?` are wildcards."""

    rule: str
    target: str

    def matches(self, finding: Finding) -> bool:
        """Whether a finding is meant."""
        return self.rule in ("*", finding.rule) and fnmatch.fnmatchcase(finding.target, self.target)


def patterns(source: str, texts: object) -> tuple[Pattern, ...]:
    """Read patterns.

    Args:
        source: Where they are from, for the message of an error.
        texts: A list of strings.

    Raises:
        SettingsError: They are no list of strings, or name a rule that there is not.

    >>> patterns("allow", ["n-plus-one:Order.*"])
    (Pattern(rule='n-plus-one', target='Order.*'),)
    """
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        raise SettingsError(f"{source} is {texts!r}, but must be a list, as ['n-plus-one:Order.customer']")
    return tuple(_pattern(source, text) for text in texts)


def _pattern(source: str, text: object) -> Pattern:
    if not isinstance(text, str):
        raise SettingsError(f"{source}: {text!r} is no string, as 'n-plus-one:Order.customer'")
    rule, separator, target = text.partition(":")
    if separator and not target.strip():
        raise SettingsError(f"{source}: {text!r} names no target behind the colon, as 'n-plus-one:Order.customer'")
    return Pattern(check_rule(rule.strip(), source), target.strip() or "*")
