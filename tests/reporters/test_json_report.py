"""The JSON report: its shape is the documented one, and a reader never sees half of it."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

import sqla_watch
from sqla_watch.cli.summary import Summary
from sqla_watch.demo.models import Customer
from sqla_watch.reporters import json as reporter
from sqla_watch.reporters.files import ReportError
from sqla_watch.reporters.json import check, document, write

PAGE = Path(__file__).parents[2] / "docs" / "json-report.md"


def shape(value):
    """The keys of a document and the kinds of its values; of a list the first one stands for all."""
    if isinstance(value, dict):
        return {key: shape(each) for key, each in value.items() if key != "evidence"}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return type(value).__name__


@pytest.fixture
def scope(watch, engine: Engine):
    def export():
        with sqla_watch.scope("export") as scope, Session(engine) as session:
            for customer in session.scalars(select(Customer)).all():
                len(customer.orders)
        return scope

    with pytest.warns(sqla_watch.NPlusOneWarning):
        return export()


def documented(text):
    return [json.loads(example) for example in re.findall(r"```json\n(.*?)```", text, re.DOTALL)]


def test_a_report_has_the_shape_that_is_documented(scope):
    report = json.loads(json.dumps(document([scope.to_dict()])))
    example, _ = documented(PAGE.read_text(encoding="utf-8"))
    assert shape(report) == shape(example)
    in_the_module = re.search(r"::\n\n((?:    .*\n)+)", reporter.__doc__)[1]
    assert shape(json.loads(in_the_module, strict=False)) == shape(example)


def test_the_totals_of_a_run_have_the_keys_that_are_documented():
    _, example = documented(PAGE.read_text(encoding="utf-8"))
    assert list(Summary().totals.to_dict()) == list(example["totals"])
    for key in example:
        assert f"`{key}`" in PAGE.read_text(encoding="utf-8")
        assert f"`{key}`" in reporter.__doc__


def test_a_report_is_utf_8_and_whole(tmp_path):
    path = tmp_path / "report.json"
    path.write_text("an older and much longer report")
    write(document([], name="Bücher \udc80 \\\udc81"), str(path))
    assert "Bücher" in path.read_text(encoding="utf-8")
    assert json.loads(path.read_bytes())["name"] == "Bücher \udc80 \\\udc81"
    assert [each.name for each in tmp_path.iterdir()] == ["report.json"]


def test_a_reader_sees_the_old_report_until_the_new_one_is_whole(tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    path.write_text("old")

    def interrupted(source, target):
        assert path.read_text() == "old"
        assert json.loads(Path(source).read_text())["schema"] == 1
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(ReportError, match=r"report.json': No space left on device"):
        write(document([]), str(path))
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("report.json", "old")]


def test_it_has_the_usual_permissions_and_a_link_stays_a_link(tmp_path):
    (tmp_path / "plain").touch()
    (tmp_path / "link.json").symlink_to("real.json")
    write(document([]), str(tmp_path / "link.json"))
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "real.json").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_device_is_written_to_and_stays_a_device():
    check(os.devnull)
    write(document([]), os.devnull)
    assert not os.path.isfile(os.devnull)


def test_looking_whether_a_path_can_be_written_leaves_nothing_behind(tmp_path):
    check(str(tmp_path / "report.json"))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ReportError, match="it is a directory"):
        check(str(tmp_path))
    with pytest.raises(ReportError, match="No such file or directory"):
        check(str(tmp_path / "nowhere" / "report.json"))
    with pytest.raises(ReportError, match="No such file or directory"):
        write(document([]), str(tmp_path / "nowhere" / "report.json"))
