"""Findings and lines as plain data, with files named as they are the same on each machine."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqla_watch.findings import Finding
    from sqla_watch.testing.watching import TestScope

__all__ = ["by_line", "findings_told", "shown_file"]

_SITE_PACKAGES = "/site-packages/"


def shown_file(file: str, root: str) -> str:
    """Return a file as it is the same on each machine: relative to a folder, or to site-packages.

    >>> shown_file("/srv/shop/views.py", "/srv"), shown_file("/usr/lib/site-packages/shop/views.py", "/srv")
    ('shop/views.py', 'shop/views.py')
    """
    path = file.replace(os.sep, "/")
    if _SITE_PACKAGES in path:
        return path.rpartition(_SITE_PACKAGES)[2]
    return path.removeprefix(root.replace(os.sep, "/").rstrip("/") + "/")


def findings_told(findings: Iterable[Finding], root: str) -> list[dict[str, Any]]:
    """Return findings as `Finding.to_dict` has them, each with `file`: its file as it is shown.

    Args:
        findings: The findings.
        root: The folder that files are relative to.
    """
    return [
        {**finding.to_dict(), "file": shown_file(finding.location.file, root) if finding.location else ""}
        for finding in findings
    ]


def by_line(scope: TestScope, root: str, most: int) -> list[dict[str, Any]]:
    """Return the lines that sent most statements, those first that sent most.

    Args:
        scope: The scope of a test.
        root: The folder that files are relative to.
        most: How many lines.
    """
    return [
        {
            "file": shown_file(line.location.file, root) if line.location else "",
            "line": line.location.line if line.location else 0,
            "function": line.location.function if line.location else "",
            "statement": line.statement,
            "count": line.count,
            "rows": line.rows,
            "seconds": round(line.seconds, 6),
        }
        for line in scope.lines[:most]
    ]
