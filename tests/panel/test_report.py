"""The HTML report: one file with everything in it, and mistakes in a JSON file named."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import re
from collections.abc import Callable
from typing import Any

import pytest

import sqla_watch
from sqla_watch.panel import PanelError, report_page
from tests.panel.examples import busy_shop, entry, finding, many_statements, request, slow_order_list, timeline


def test_every_scope_is_listed_and_has_its_place() -> None:
    html = report_page(busy_shop(), title="Report of a test run")
    assert "<title>Report of a test run</title>" in html
    assert "13 scopes" in html
    assert "5 with findings" in html
    for number in range(1, 14):
        assert html.count(f'id="scope-{number}"') == html.count(f'href="#scope-{number}"') == 1


def test_no_two_things_have_the_same_id() -> None:
    html = report_page([slow_order_list(), slow_order_list()], title="twice")
    ids = re.findall(r'\bid="([^"]*)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'data-copy="([^"]*)"', html)) <= set(ids)
    assert {href for href in re.findall(r'href="#([^"]*)"', html) if href} <= set(ids)


def test_a_report_needs_nothing_else() -> None:
    html = report_page(busy_shop(), title="alone")
    assert re.findall(r'(?:src|href|action|data)="(?!#|data:image/svg)[^"]*"', html) == []
    assert "url(#hatch)" in html
    assert re.findall(r"@import|url\((?!#hatch)", html) == []
    assert "style=" not in re.sub(r"<script>.*?</script>", "", html, flags=re.DOTALL)


def test_its_policy_allows_its_own_style_and_script_only() -> None:
    html = report_page(busy_shop(), title="alone")
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)
    rules = dict(rule.partition(" ")[::2] for rule in policy.replace("&#39;", "'").split("; "))
    for tag in ("script", "style"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules[f"{tag}-src"] == f"'sha256-{digest}'"
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert html.index("Content-Security-Policy") < html.index("<style>")


def test_without_scopes_it_says_so() -> None:
    assert "Nothing was recorded." in report_page([], title="nothing")


def test_scopes_that_are_no_requests_have_no_column_for_a_status() -> None:
    assert 'class="requests plain"' in report_page([entry("export.py", kind="run")], title="run")
    assert 'class="requests"' in report_page([entry(request=request("GET", "/"))], title="requests")


def test_a_scope_of_ours_is_taken_as_it_is(watch: sqla_watch.Watch) -> None:
    with sqla_watch.scope("nothing to see") as scope:
        pass
    assert "nothing to see" in report_page([json.loads(json.dumps(scope.to_dict()))], title="ours")


def test_a_scope_makes_a_page_of_itself(watch: sqla_watch.Watch) -> None:
    with sqla_watch.scope("nightly <script>alert(1)</script>") as scope:
        pass
    page = scope.to_html()
    assert "nightly &lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script>alert" not in page


def test_what_there_is_no_room_for_is_said() -> None:
    scopes = [many_statements(9_000, different=False) for _ in range(7)]
    html = report_page(scopes, title="large")
    assert html.count("The waterfall was left out: the report would be too large.") == 2
    assert len(html) < 40_000_000
    many = entry(findings=[finding("slow-query", "low", f"finding {number}") for number in range(250)])
    html = report_page([many], title="many")
    assert "50 more are not shown" in html
    assert "finding 199<" in html
    assert "finding 200<" not in html


# What is wrong is named

COMPLETE = slow_order_list()
_KEYS = [key for key in COMPLETE if key not in ("timeline", "request")]
_FINDING_KEYS = list(COMPLETE["findings"][0])


def complaint_of(change: Callable[[dict[str, Any]], object]) -> str:
    broken = copy.deepcopy(COMPLETE)
    change(broken)
    with pytest.raises(PanelError) as raised:
        report_page([entry(), broken], title="broken")
    return str(raised.value)


@pytest.mark.parametrize("key", _KEYS)
def test_a_key_that_is_missing_is_named(key: str) -> None:
    assert complaint_of(lambda scope: scope.pop(key)) == f"scopes[1] has no {key!r}"


@pytest.mark.parametrize("key", _KEYS)
@pytest.mark.parametrize("value", [None, -1, float("nan"), float("inf"), True, b"bytes", object(), {"a": 1}])
def test_a_value_of_a_wrong_kind_is_named(key: str, value: Any) -> None:
    complaint = complaint_of(lambda scope: scope.update({key: value}))
    assert complaint.startswith(f"scopes[1].{key} is ")
    assert ", not " in complaint
    assert len(complaint) < 300


@pytest.mark.parametrize("key", _FINDING_KEYS)
def test_a_key_of_a_finding_that_is_missing_is_named(key: str) -> None:
    assert complaint_of(lambda scope: scope["findings"][2].pop(key)) == f"scopes[1].findings[2] has no {key!r}"


@pytest.mark.parametrize("key", [key for key in _FINDING_KEYS if key != "location"])
@pytest.mark.parametrize("value", [None, -1, float("nan"), True, b"bytes"])
def test_a_value_of_a_finding_of_a_wrong_kind_is_named(key: str, value: Any) -> None:
    complaint = complaint_of(lambda scope: scope["findings"][2].update({key: value}))
    assert complaint.startswith(f"scopes[1].findings[2].{key} is {value!r}, not ")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda scope: scope.update(statements=1.5), "scopes[1].statements is 1.5, not a whole number from 0"),
        (lambda scope: scope.update(rows="12"), "scopes[1].rows is '12', not a whole number from 0"),
        (
            lambda scope: scope.update(started_at=1e300),
            "scopes[1].started_at is 1e+300, not seconds from 0 to 2.53e+11",
        ),
        (lambda scope: scope.update(findings="none"), "scopes[1].findings is 'none', not a list"),
        (lambda scope: scope["findings"].append(7), "scopes[1].findings[4] is 7, not an object"),
        (
            lambda scope: scope["findings"][0].update(severity="fatal"),
            "scopes[1].findings[0].severity is 'fatal', not one of high, medium, low",
        ),
        (
            lambda scope: scope["findings"][0].update(location={"file": "a.py", "line": "1", "function": "f"}),
            "scopes[1].findings[0].location.line is '1', not a whole number from 0",
        ),
        (
            lambda scope: scope["findings"][0]["related"][0].pop("role"),
            "scopes[1].findings[0].related[0] has no 'role'",
        ),
        (
            lambda scope: scope["findings"][0]["evidence"].update(looks=[1]),
            "scopes[1].findings[0].evidence.looks is [1], not a number, a text, true or false",
        ),
        (
            lambda scope: scope["findings"][0].update(evidence={7: 1}),
            "scopes[1].findings[0].evidence is 7, not an object whose keys are texts",
        ),
        (
            lambda scope: scope["request"].update(status=1000),
            "scopes[1].request.status is 1000, not a whole number from 0 to 999",
        ),
        (lambda scope: scope["request"].update(failed=0), "scopes[1].request.failed is 0, not true or false"),
        (lambda scope: scope["request"].pop("method"), "scopes[1].request has no 'method'"),
        (lambda scope: scope.update(request="GET /"), "scopes[1].request is 'GET /', not an object"),
        (lambda scope: scope.update(timeline=[]), "scopes[1].timeline is [], not an object"),
        (lambda scope: scope["timeline"].pop("left_out"), "scopes[1].timeline has no 'left_out'"),
        (lambda scope: scope["timeline"]["texts"].append(1), "scopes[1].timeline.texts[5] is 1, not a text"),
        (
            lambda scope: scope["timeline"]["entries"][2].update(text=5),
            "scopes[1].timeline.entries[2].text is 5, not a whole number from 0 to 4",
        ),
        (
            lambda scope: scope["timeline"]["entries"][1].update(line=-2),
            "scopes[1].timeline.entries[1].line is -2, not a whole number from -1 to 6",
        ),
        (
            lambda scope: scope["timeline"]["entries"][0].update(kind="dance"),
            "scopes[1].timeline.entries[0].kind is 'dance', not one of statement, wait, transaction, commit, gap",
        ),
        (
            lambda scope: scope["timeline"]["entries"][0].update(seconds=-0.5),
            "scopes[1].timeline.entries[0].seconds is -0.5, not seconds from 0 to 1e+09",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_value(change: Callable[[dict[str, Any]], object], complaint: str) -> None:
    assert complaint_of(change) == complaint


@pytest.mark.parametrize("scopes", [None, 5, "scopes", b"scopes", {"scopes": []}, entry()])
def test_scopes_are_a_list(scopes: Any) -> None:
    with pytest.raises(PanelError, match="scopes are a list"):
        report_page(scopes, title="wrong")


@pytest.mark.parametrize("scope", [None, 5, "scope", []])
def test_a_scope_is_an_object(scope: Any) -> None:
    with pytest.raises(PanelError, match=r"scopes\[0\] is .*, not an object"):
        report_page([scope], title="wrong")


def test_a_title_is_a_text() -> None:
    with pytest.raises(PanelError, match="title"):
        report_page([], title=None)  # type: ignore[arg-type]


def test_a_complaint_shows_no_control_characters() -> None:
    complaint = complaint_of(lambda scope: scope["findings"][0]["evidence"].update({"\x1b[31m\u202e": None}))
    assert complaint.isprintable()


def test_a_value_that_cannot_be_shown_is_named_all_the_same() -> None:
    class Hostile:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    assert complaint_of(lambda scope: scope.update(name=Hostile())).startswith("scopes[1].name is <Hostile instance")


def test_a_number_of_very_many_digits_is_named_all_the_same() -> None:
    assert complaint_of(lambda scope: scope.update(rows=10**5_000)).startswith(
        "scopes[1].rows is an unspeakable int, not"
    )
    assert "evidence.rows" in complaint_of(lambda scope: scope["findings"][0]["evidence"].update(rows=10**5_000))


def test_keys_of_later_versions_do_no_harm() -> None:
    scope = entry(
        new_key=[1, 2], request=request("GET", "/") | {"host": "x"}, timeline=timeline([], [], []) | {"more": 1}
    )
    assert "<h1" in report_page([scope], title="later")
