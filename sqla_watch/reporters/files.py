"""Writing reports to files: whole or not at all, so that readers never see a half of one."""

from __future__ import annotations

import os
import secrets

from sqla_watch.findings import SqlaWatchError

__all__ = ["ReportError", "check", "write"]


class ReportError(SqlaWatchError):
    """A report cannot be written or read; the message names the path and says why."""


def check(path: str, what: str) -> None:
    """Look whether a report can be written, without leaving anything behind.

    Args:
        path: Where it is to go.
        what: What it is called in a message: `JSON report`.

    Raises:
        ReportError: It cannot.
    """
    if os.path.isdir(path):
        raise ReportError(f"cannot write the {what} to {path!r}: it is a directory")
    try:
        if _is_replaceable(path):
            os.unlink(_write_beside(path, b""))
        else:
            with open(path, "ab"):
                pass
    except OSError as error:
        raise ReportError(f"cannot write the {what} to {path!r}: {error.strerror}") from error


def write(content: bytes, path: str, what: str) -> None:
    """Write a report, under another name first, which is then changed.

    Raises:
        ReportError: It cannot be written.
    """
    try:
        if not _is_replaceable(path):
            with open(path, "wb") as file:
                file.write(content)
            return
        beside = _write_beside(path, content)
        try:
            os.replace(beside, os.path.realpath(path))
        except OSError:
            os.unlink(beside)
            raise
    except OSError as error:
        raise ReportError(f"cannot write the {what} to {path!r}: {error.strerror}") from error


def _is_replaceable(path: str) -> bool:
    """Whether a path is, or will be, an ordinary file; a device or a pipe is written to and stays what it is."""
    return not os.path.exists(path) or os.path.isfile(path)


def _write_beside(path: str, content: bytes) -> str:
    """Write a new file into the folder of a path, with the usual permissions, and return its name."""
    folder = os.path.dirname(os.path.realpath(path))
    beside = os.path.join(folder, f".sqla_watch_{secrets.token_hex(8)}.tmp")
    try:
        with open(beside, "xb") as file:
            file.write(content)
    except OSError:
        if os.path.exists(beside):
            os.unlink(beside)
        raise
    return beside
