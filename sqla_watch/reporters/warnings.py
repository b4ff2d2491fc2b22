"""Findings as Python warnings at the user's own line, so that Python's own filters choose what happens."""

from __future__ import annotations

import sys
import warnings
from typing import Any

from sqla_watch.findings import Finding, SqlaWatchWarning


def report(finding: Finding) -> None:
    """Issue the rule's warning at the finding's line.

    Raises:
        SqlaWatchWarning: A filter turns it into an error.
    """
    from sqla_watch.detectors import RULES

    category: type[SqlaWatchWarning] = RULES[finding.rule].warning
    location = finding.location
    file = location.file if location else "sqla_watch"
    line = location.line if location else 0
    module = _module(file)
    lines = [finding.message]
    lines += [f"{related.role} at {related.location}" for related in finding.related]
    lines += finding.suggestion.splitlines()
    warnings.warn_explicit(
        category("\n  ".join(lines), finding),
        category,
        file,
        line,
        module=module.__name__ if module is not None else None,
        registry=module.__dict__.setdefault("__warningregistry__", {}) if module is not None else None,
    )


_names: dict[str, str] = {}
"""Names of the modules that were made from files, as they were found."""


def _module(file: str) -> Any:
    """Return the module that was made from a file, for filters by module and for showing a place only once."""
    known = sys.modules.get(_names.get(file, ""))
    if getattr(known, "__file__", None) == file:
        return known
    for name, module in list(sys.modules.items()):
        if getattr(module, "__file__", None) == file:
            _names[file] = name
            return module
    return None
