"""SARIF: what is written is valid by the schema of OASIS, and tells what code scanning needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft4Validator, ValidationError

from sqla_watch.detectors import RULES
from sqla_watch.pytest_plugin import exports, sarif
from tests.pytest_plugin.made import N_PLUS_ONE, finding, outcome

SCHEMA = json.loads((Path(__file__).parent / "sarif-schema-2.1.0.json").read_bytes())
VALIDATOR = Draft4Validator(SCHEMA, format_checker=Draft4Validator.FORMAT_CHECKER)


def document(*outcomes: Any, **options: Any) -> Any:
    """Make a document, which has to be valid, and give it back as a reader gets it."""
    made = json.loads(json.dumps(sarif.document(outcomes, **options)))
    VALIDATOR.validate(made)
    return made


def results(*outcomes: Any, **options: Any) -> Any:
    return document(*outcomes, **options)["runs"][0]["results"]


def test_the_schema_is_that_of_oasis_and_finds_mistakes() -> None:
    assert SCHEMA["id"] == sarif.SCHEMA
    made = document(outcome("t.py::a", finding()))
    del made["runs"][0]["results"][0]["message"]
    with pytest.raises(ValidationError):
        VALIDATOR.validate(made)


def test_without_findings_it_is_valid_and_says_that_there_are_none() -> None:
    assert results() == []
    assert results(outcome()) == []


def test_a_finding_is_one_result_at_its_line() -> None:
    (result,) = results(outcome("t.py::b", finding()), outcome("t.py::a", finding()))
    (location,) = result["locations"]
    assert location == {
        "physicalLocation": {
            "artifactLocation": {"uri": "shop/views.py", "uriBaseId": "%SRCROOT%"},
            "region": {"startLine": 12},
        },
        "logicalLocations": [{"name": "list_customers", "kind": "function"}],
    }
    (related,) = result["relatedLocations"]
    assert related["message"]["text"] == "parents loaded by the query"
    assert related["physicalLocation"]["artifactLocation"]["uri"] == "shop/views.py"
    assert related["physicalLocation"]["region"] == {"startLine": 10}
    assert result["level"] == "error"
    assert "selectinload(Customer.orders)" in result["message"]["text"]
    assert result["properties"]["tests"] == ["t.py::a", "t.py::b"]
    assert (result["properties"]["statements"], result["properties"]["failsTests"]) == (40, True)


def test_every_rule_has_its_page() -> None:
    made = document(outcome("t.py::a", *[finding(rule) for rule in RULES]))
    rules = made["runs"][0]["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == sorted(RULES)
    for rule in rules:
        assert rule["help"]["markdown"].startswith(f"# {rule['id']}\n\n{rule['shortDescription']['text']}\n")
        assert "## Why it costs" in rule["help"]["markdown"]
    for result in made["runs"][0]["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]


def test_a_rule_of_another_version_has_no_page() -> None:
    assert document(outcome("t.py::a", finding("later-rule")))["runs"][0]["tool"]["driver"]["rules"] == [
        {"id": "later-rule"}
    ]


def test_the_fingerprint_is_that_of_the_identity() -> None:
    (before,) = results(outcome("t.py::a", finding(line=12)))
    (moved,) = results(outcome("t.py::z", finding(line=99, statements=3)))
    (other,) = results(outcome("t.py::a", finding(function="show")))
    assert before["partialFingerprints"] == moved["partialFingerprints"] != other["partialFingerprints"]


def test_what_the_baseline_knows_is_suppressed() -> None:
    known, new = results(outcome("t.py::a", finding(), finding("query-in-loop")), known={N_PLUS_ONE})
    assert [each["kind"] for each in known["suppressions"]] == ["external"]
    assert new["suppressions"] == []


@pytest.mark.parametrize(("severity", "level"), [("high", "error"), ("medium", "warning"), ("low", "note")])
def test_the_level_is_the_severity(severity: str, level: str) -> None:
    (result,) = results(outcome("t.py::a", finding(severity=severity)))
    assert result["level"] == level


def test_a_finding_without_a_line_is_at_its_test() -> None:
    (result,) = results(outcome("tests/test_a.py::a", finding(location=None, file="")))
    assert result["locations"][0]["physicalLocation"] == {
        "artifactLocation": {"uri": "tests/test_a.py", "uriBaseId": "%SRCROOT%"},
        "region": {"startLine": 7},
    }
    (unknown,) = results(outcome("tests/test_a.py::a", finding(location=None, file=""), line=0))
    assert unknown["locations"][0]["physicalLocation"]["region"] == {"startLine": 1}


@pytest.mark.parametrize(
    ("file", "uri"),
    [
        ("shop/a view [1] #2?.py", "shop/a%20view%20%5B1%5D%20%232%3F.py"),
        ("shop/заказы%.py", "shop/%D0%B7%D0%B0%D0%BA%D0%B0%D0%B7%D1%8B%25.py"),
        ("C:/shop/views.py", "file:///C%3A/shop/views.py"),
        ("/opt/shop/views.py", "file:///opt/shop/views.py"),
        ("a:b/views.py", "a%3Ab/views.py"),
    ],
)
def test_a_file_is_a_uri(file: str, uri: str) -> None:
    (result,) = results(outcome("t.py::a", finding(file=file)))
    artifact = result["locations"][0]["physicalLocation"]["artifactLocation"]
    assert artifact["uri"] == uri
    assert ("uriBaseId" in artifact) == ("file:" not in uri)


def test_what_is_installed_is_not_below_the_root_of_the_source_code() -> None:
    installed = finding(file="library/models.py")
    installed["location"]["file"] = "/srv/.venv/lib/python3.11/site-packages/library/models.py"
    (result,) = results(outcome("t.py::a", installed))
    assert result["locations"][0]["physicalLocation"]["artifactLocation"] == {"uri": "library/models.py"}


def test_the_paths_of_the_machine_are_not_in_it() -> None:
    assert "/srv/" not in json.dumps(document(outcome("t.py::a", finding())))


def test_it_is_written_whole_and_the_same_for_the_same_findings(tmp_path: Path) -> None:
    file = tmp_path / "found.sarif"
    outcomes = [outcome("t.py::a", finding(), finding("query-in-loop")), outcome("t.py::\ud800ä", finding())]
    exports.sarif(outcomes, str(file))
    first = file.read_bytes()
    VALIDATOR.validate(json.loads(first))
    exports.sarif(list(reversed(outcomes)), str(file))
    assert file.read_bytes() == first
