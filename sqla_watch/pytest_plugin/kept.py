"""Files that are kept between test runs and read by people in diffs: JSON with its kind and version, sorted, stable.

What is wrong with such a file, or with the folder that it should be in, is said before the first test runs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from sqla_watch.reporters import files

__all__ = ["GoneTests", "read", "write"]


class GoneTests:
    """The tests that are no longer there: deleted, renamed, or of a file that was.

    What is known of a test that only was not run this time has to stay; what is known of one that is gone has not.

    Args:
        rootdir: The folder that node ids are relative to.
        collected: Node ids of all tests that were collected of the files that were collected as a whole: before any of
            them were deselected by `-k` or `-m`, and without files of which only some were asked for
            (`test_orders.py::test_list`, `--lf`). None if that is not known: then only files that are gone are.

    Example::

        gone = GoneTests(config.rootpath, collected)
        "tests/test_orders.py::test_deleted_long_ago" in gone
    """

    def __init__(self, rootdir: Path, collected: Iterable[str] = ()) -> None:
        self._rootdir = rootdir
        self._collected = frozenset(collected)
        self._whole = frozenset(_file_of(nodeid) for nodeid in self._collected)
        self._files: dict[str, bool] = {}

    def __contains__(self, nodeid: object) -> bool:
        if not isinstance(nodeid, str):
            return False
        file = _file_of(nodeid)
        if file in self._whole:
            return nodeid not in self._collected
        if file not in self._files:
            self._files[file] = (self._rootdir / file).exists()
        return not self._files[file]


def _file_of(nodeid: str) -> str:
    return nodeid.partition("::")[0]


def read(path: str, kind: str, version: int, *, to_be_written: bool) -> dict[str, Any] | None:
    """Read a kept file.

    Args:
        path: Where it is.
        kind: What it is: `baseline`.
        version: The newest version of it that can be read.
        to_be_written: Whether it is going to be written at the end of the run, which is tried now.

    Returns:
        The document, or None if there is no such file.

    Raises:
        pytest.UsageError: It cannot be read, is no file of ours, is of a later version, or cannot be written.
    """
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise pytest.UsageError(
            f"sqla_watch: the {kind} {path!r} cannot be used: there is no folder {folder!r}; make it"
        )
    if to_be_written:
        try:
            files.check(path, kind)
        except files.ReportError as error:
            raise pytest.UsageError(f"sqla_watch: {error}") from error
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise pytest.UsageError(f"sqla_watch: cannot read the {kind} {path!r}: {error.strerror}") from error
    if to_be_written and not content:  # /dev/null, or a file somebody has made for us
        return None
    try:
        document = json.loads(content, object_pairs_hook=_without_repeated_keys)
    except (ValueError, RecursionError) as error:
        raise pytest.UsageError(
            f"sqla_watch: the {kind} {path!r} is no JSON: {error}; repair it (a merge conflict?), or delete it and "
            "have it written anew"
        ) from error
    if not isinstance(document, dict) or document.get("sqla_watch") != kind:
        raise pytest.UsageError(
            f'sqla_watch: {path!r} is no {kind} of sqla_watch: it does not begin with {{"sqla_watch": "{kind}"}}; '
            "name another file, or delete this one and have it written anew"
        )
    found = document.get("version")
    if isinstance(found, bool) or not isinstance(found, int) or not 1 <= found <= version:
        raise pytest.UsageError(
            f"sqla_watch: the {kind} {path!r} is of version {found!r}, and this sqla_watch reads {version}; "
            "install the sqla_watch that has written it, or delete it and have it written anew"
        )
    return document


def write(path: str, kind: str, version: int, **content: Any) -> None:
    """Write a kept file, whole or not at all; a file that would stay the same is left alone.

    Raises:
        ReportError: It cannot be written.
    """
    document = {"sqla_watch": kind, "version": version, **content}
    # A name that is no UTF-8 has lone surrogates; written out they are JSON's own escapes.
    text = json.dumps(document, ensure_ascii=False, indent=2).encode("utf-8", "backslashreplace") + b"\n"
    try:
        if Path(path).read_bytes() == text:
            return
    except OSError:
        pass
    files.write(text, path, kind)


def _without_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object; a key that is there twice, as after a bad merge, has one value too many."""
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"{repeated!r} is there twice")
    return found
