"""Files that are kept between runs: what is wrong with one is said before the first test runs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sqla_watch.pytest_plugin import baseline, kept, measured

READERS: list[tuple[str, Callable[[str], object]]] = [("baseline", baseline.read), ("budgets", measured.read)]


@pytest.mark.parametrize(("kind", "read"), READERS)
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "is no JSON"),
        (b"<<<<<<< HEAD\n{}\n", "merge conflict"),
        (b"\xff\xfe{", "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        (b"[]", "is no {kind} of sqla_watch"),
        (b'{"version": 1}', "is no {kind} of sqla_watch"),
        (b'{"sqla_watch": "something else", "version": 1}', "is no {kind} of sqla_watch"),
        (b'{"sqla_watch": "{kind}", "version": 2}', "is of version 2, and this sqla_watch reads 1"),
        (b'{"sqla_watch": "{kind}", "version": true}', "is of version True"),
        (b'{"sqla_watch": "{kind}"}', "is of version None"),
        (b'{"sqla_watch": "{kind}", "version": 1}', "is None, but must be an object"),
        (b'{"sqla_watch": "{kind}", "version": 1, "findings": [], "statements": []}', "is [], but must be an object"),
        (b'{"sqla_watch": "{kind}", "version": 1, "version": 1}', "'version' is there twice"),
    ],
)
def test_a_broken_foreign_or_too_new_file_is_an_error_that_names_it(
    tmp_path: Path, kind: str, read: Callable[[str], object], content: bytes, said: str
) -> None:
    file = tmp_path / "kept.json"
    file.write_bytes(content.replace(b"{kind}", kind.encode()))
    with pytest.raises(pytest.UsageError) as raised:
        read(str(file))
    assert str(raised.value).startswith("sqla_watch: ")
    assert said.replace("{kind}", kind) in str(raised.value)
    assert str(file) in str(raised.value)


@pytest.mark.parametrize(("kind", "read"), READERS)
def test_a_folder_that_is_not_there_is_named(tmp_path: Path, kind: str, read: Callable[[str], object]) -> None:
    with pytest.raises(pytest.UsageError, match=f"the {kind} .* cannot be used: there is no folder '.*nowhere'"):
        read(str(tmp_path / "nowhere" / "kept.json"))


@pytest.mark.parametrize(("kind", "read"), READERS)
def test_a_folder_is_no_file(tmp_path: Path, kind: str, read: Callable[[str], object]) -> None:
    with pytest.raises(pytest.UsageError, match=f"{kind}.*directory"):
        read(str(tmp_path))


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="there is no folder in which not even root may write")
def test_a_folder_that_cannot_be_written_to_is_found_out_before_the_run() -> None:
    with pytest.raises(pytest.UsageError, match=r"cannot write the budgets to '/proc/budgets.json'"):
        measured.read("/proc/budgets.json")


def test_a_file_is_written_as_people_can_compare_it(tmp_path: Path) -> None:
    file = tmp_path / "kept.json"
    kept.write(str(file), "budgets", 1, statements={"tests/test_ä.py::test_list[Привет]": 1})
    assert file.read_text(encoding="utf-8") == (
        '{\n  "sqla_watch": "budgets",\n  "version": 1,\n  "statements": {\n'
        '    "tests/test_ä.py::test_list[Привет]": 1\n  }\n}\n'
    )


def test_what_would_stay_the_same_is_not_written(tmp_path: Path) -> None:
    file = tmp_path / "kept.json"
    kept.write(str(file), "budgets", 1, statements={})
    before = file.stat().st_ino, file.stat().st_mtime_ns
    kept.write(str(file), "budgets", 1, statements={})
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == before
    kept.write(str(file), "budgets", 1, statements={"a": 1})
    assert file.stat().st_ino != before[0]  # another file, put in its place at once
    assert os.listdir(tmp_path) == ["kept.json"]


def test_a_name_that_is_no_utf_8_can_be_kept(tmp_path: Path) -> None:
    file = tmp_path / "kept.json"
    kept.write(str(file), "budgets", 1, statements={"tests/\udcff.py::test": 3})
    assert json.loads(file.read_bytes())["statements"] == {"tests/\udcff.py::test": 3}
    assert measured.read(str(file)) == {"tests/\udcff.py::test": 3}


class TestGoneTests:
    def test_a_test_is_gone_with_its_file(self, tmp_path: Path) -> None:
        (tmp_path / "test_here.py").touch()
        gone = kept.GoneTests(tmp_path)
        assert "test_there.py::test_a" in gone
        assert "test_here.py::test_deleted" not in gone  # nobody has looked into it
        assert None not in gone

    def test_of_a_file_that_was_collected_whole_every_test_is_known(self, tmp_path: Path) -> None:
        (tmp_path / "test_here.py").touch()
        (tmp_path / "test_other.py").touch()
        gone = kept.GoneTests(tmp_path, ["test_here.py::test_a", "test_here.py::TestB::test_c[1]"])
        assert "test_here.py::test_deleted" in gone
        assert "test_here.py::TestB::test_c[2]" in gone
        assert "test_here.py::TestB::test_c[1]" not in gone
        assert "test_other.py::test_a" not in gone
