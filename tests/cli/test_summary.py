"""The summary of a run merges what is alike and keeps a bounded part of the rest."""

from __future__ import annotations

import pytest

from sqla_watch import Finding, Location, Settings, Severity
from sqla_watch.cli import summary as module
from sqla_watch.cli.summary import CommandScope, Summary
from sqla_watch.scopes import Scope


def finding(target="Order.customer", *, seconds=0.1, rule="n-plus-one"):
    return Finding(
        rule=rule,
        target=target,
        severity=Severity.HIGH,
        message=f"{target} again",
        location=Location("/shop/views.py", 12, "overview"),
        evidence={"wait_seconds": seconds},
        suggestion="Change it.",
        statements=10,
        database_seconds=seconds / 2,
    )


def closed(*findings, parent=None, name="GET /"):
    scope = Scope(name, "request", Settings(), parent)
    scope.close()
    scope._findings = list(findings)
    if parent is not None:
        parent.add_inner(scope, list(findings))
    return scope


def test_the_same_finding_of_many_scopes_is_one_with_sums_and_the_dearest_evidence():
    summary = Summary()
    for seconds in (0.1, 0.4, 0.2):
        summary.add(closed(finding(seconds=seconds), finding(seconds=0.1)))
    (told,) = summary.findings
    assert told.scopes == 3
    assert told.statements == 60
    assert told.seconds == pytest.approx(1.0)
    assert told.database_seconds == pytest.approx(0.5)
    assert told.finding.evidence == {"wait_seconds": 0.4}


def test_what_an_inner_scope_has_told_its_outer_one_does_not_tell_again():
    summary = Summary()
    root = CommandScope("export.py", "run", Settings())
    outer = Scope("day", "block", Settings(), root)
    for _ in range(2):
        summary.add(closed(finding(), parent=outer))
    outer.close()
    summary.add(outer)
    root.close()
    summary.add(root)
    (told,) = summary.findings
    assert (told.scopes, told.statements) == (2, 20)
    assert summary.totals.scopes == 4
    assert [len(scope["findings"]) for scope in summary.scopes if scope["name"] == "day"] == [2]
    assert root.findings == []
    assert summary._inner == {}


def test_of_too_many_scopes_the_ones_with_most_findings_are_kept_and_always_the_run(monkeypatch):
    monkeypatch.setattr(module, "MOST_SCOPES", 3)
    summary = Summary()
    root = CommandScope("export.py", "run", Settings())
    for number in range(10):
        summary.add(closed(*[finding(f"Order.{index}") for index in range(number)], name=f"GET /{number}"))
    root.close()
    summary.add(root)
    assert {scope["name"] for scope in summary.scopes} == {"export.py", "GET /9", "GET /8"}
    assert summary.totals.scopes == 11
    assert summary.scopes_left_out == 8


def test_findings_for_which_there_is_no_room_are_counted(monkeypatch):
    monkeypatch.setattr(module, "MOST_FINDINGS", 2)
    monkeypatch.setattr(module, "MOST_FINDINGS_OF_SCOPE", 3)
    summary = Summary()
    summary.add(closed(*[finding(f"Order.{index}") for index in range(5)]))
    summary.add(closed(finding("Order.0")))
    assert [told.scopes for told in summary.findings] == [2, 1]
    assert summary.findings_left_out == 3
    assert [len(scope["findings"]) for scope in summary.scopes] == [3, 1]
