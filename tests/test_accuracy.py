"""The corpus under ours: every label is found, and nothing else; and the arithmetic of the accuracy benchmark."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import URL

from benchmarks import corpus
from benchmarks.accuracy import Outcome, Result, Score, Verdict, details, judge, measure, own_database, score, table
from benchmarks.corpus import Application, Label, Scenario, load, scenario
from benchmarks.peers import OBSERVERS, Lines, Ours, Peer, Said, statement_around
from sqla_watch import Settings
from sqla_watch.detectors import RULES
from tests.support import line_of

CORPUS = load()


@pytest.fixture(scope="module")
def corpus_url(database_url: str) -> Iterator[URL]:
    """A database of the corpus's own: other tests have tables of the same names."""
    with own_database(database_url, "sqla_watch_corpus") as url:
        yield url


@pytest.mark.parametrize("name", [scenario.name for scenario in CORPUS])
def test_each_label_is_found_and_nothing_else(corpus_url: URL, name: str) -> None:
    (played,) = [scenario for scenario in CORPUS if scenario.name == name]
    (outcome,) = measure(Ours, [played], corpus_url)
    assert not outcome.error, outcome.error
    assert list(details(Result(Ours, (outcome,)))) == []


def test_the_corpus_is_large_and_half_of_it_has_nothing_to_find() -> None:
    assert len(CORPUS) >= 120
    assert sum(scenario.silent for scenario in CORPUS) >= len(CORPUS) / 2


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_has_a_label_and_a_temptation(rule: str) -> None:
    assert any(label.rule == rule for scenario in CORPUS for label in scenario.labels)
    assert any(rule in scenario.tempts for scenario in CORPUS)


def test_labels_and_temptations_name_rules() -> None:
    named = {label.rule for scenario in CORPUS for label in scenario.labels}
    named |= {rule for scenario in CORPUS for rule in (*scenario.tempts, *scenario.rules)}
    assert named - set(RULES) == set()


def test_what_is_off_by_default_is_switched_on_where_it_is_labelled() -> None:
    for played in CORPUS:
        for label in played.labels:
            off = Settings(profile=played.profile).rule(label.rule).action == "ignore"
            assert not off or label.rule in played.rules, f"{played.name} has a label of {label.rule}, which is off"


# Scenarios and their labels.


@pytest.fixture
def _registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "SCENARIOS", [])


@pytest.mark.usefixtures("_registry")
def test_labels_are_read_from_comments() -> None:
    @scenario(tempts="slow-query, select-star", writes=True)
    def two_labels(app: Application) -> None:
        first = app.engine  # finds: n-plus-one
        first.connect()  # finds: query-in-loop, repeated-query
        first.dispose()  # finds nothing

    (made,) = corpus.SCENARIOS
    assert made.name == "two_labels"
    assert made.file == __file__
    assert made.labels == (
        Label("n-plus-one", line_of("finds: n-plus-one")),
        Label("query-in-loop", line_of("finds: query-in-loop, repeated-query")),
        Label("repeated-query", line_of("finds: query-in-loop, repeated-query")),
    )
    assert made.tempts == ("slow-query", "select-star")
    assert made.writes
    assert not made.silent
    assert not made.is_async


@pytest.mark.usefixtures("_registry")
def test_a_scenario_without_labels_says_what_it_tempts_to() -> None:
    with pytest.raises(ValueError, match="pointless has no label"):

        @scenario()
        def pointless(app: Application) -> None: ...


@pytest.mark.usefixtures("_registry")
def test_a_name_is_taken_once() -> None:
    @scenario(tempts="n-plus-one")
    def same(app: Application) -> None: ...

    with pytest.raises(ValueError, match="two scenarios same"):
        scenario(tempts="n-plus-one")(same)


def test_the_corpus_is_loaded_once_in_the_same_order() -> None:
    assert [scenario.name for scenario in load()] == [scenario.name for scenario in CORPUS]


# Judging and adding up.

FILE = "/app/views.py"


def scene(*labels: Label, **changes: Any) -> Scenario:
    usual = Scenario("scene", print, FILE, labels, ("repeated-query",), False, False, "test")
    return replace(usual, **changes)


def said(*rules: str, first: int = 10, last: int = 0, file: str = FILE) -> Said:
    return Said(rules[0], rules, (Lines(file, first, max(first, last)),), "")


def test_a_finding_matches_by_rule_file_and_line() -> None:
    label = Label("n-plus-one", 10)
    right = said("n-plus-one")
    assert judge(scene(label), [right]) == Verdict(scene(label), (label,), (), ())
    for wrong in (said("query-in-loop"), said("n-plus-one", first=11), said("n-plus-one", file="/app/models.py")):
        assert judge(scene(label), [wrong]) == Verdict(scene(label), (), (label,), (wrong,))


def test_a_label_may_stand_on_any_line_of_the_expression() -> None:
    label = Label("n-plus-one", 12)
    assert judge(scene(label), [said("n-plus-one", first=10, last=13)]).found == (label,)
    assert judge(scene(label), [said("n-plus-one", first=10, last=11)]).found == ()


def test_a_second_finding_of_the_same_label_is_neither_counted_again_nor_false() -> None:
    label = Label("n-plus-one", 10)
    verdict = judge(scene(label), [said("n-plus-one"), said("n-plus-one", first=9, last=10)])
    assert (verdict.found, verdict.missed, verdict.false) == ((label,), (), ())


def test_a_finding_without_a_line_matches_by_its_rule() -> None:
    label = Label("n-plus-one", 10)
    unplaced = Said("duplicate", ("query-in-loop", "n-plus-one"), (), "")
    assert judge(scene(label), [unplaced]).found == (label,)
    assert judge(scene(Label("slow-query", 10)), [unplaced]).false == (unplaced,)


def test_a_peer_may_call_a_labelled_line_something_else() -> None:
    label = Label("blocking-call", 10)
    otherwise, elsewhere = said("query-in-loop"), said("query-in-loop", first=11)
    assert judge(scene(label), [otherwise, elsewhere], lenient=True).false == (elsewhere,)
    assert judge(scene(label), [otherwise, elsewhere]).false == (otherwise, elsewhere)


def test_scores_are_added_up_by_rule() -> None:
    loop, star = Label("query-in-loop", 10), Label("select-star", 20)
    verdicts = [
        judge(scene(loop, star), [said("query-in-loop", "repeated-query")]),
        judge(scene(), [said("query-in-loop", "repeated-query")]),
        judge(scene(tempts=("n-plus-one",)), [said("query-in-loop", "repeated-query")]),
    ]
    assert score(verdicts) == {
        "query-in-loop": Score(labels=1, found=1, false=1),
        "select-star": Score(labels=1),
        "repeated-query": Score(false=1),  # the scenario tempts to it
    }


def test_recall_and_precision() -> None:
    assert (Score(4, 3, 1).recall, Score(4, 3, 1).precision) == (0.75, 0.75)
    assert (Score().recall, Score().precision) == (None, None)
    assert Score(2, 1, 0) + Score(1, 1, 3) == Score(3, 2, 3)


def test_the_table_leaves_out_what_a_contestant_has_no_kind_for() -> None:
    class Half(Peer):
        name = "half"
        stands_for = {"loop": ("query-in-loop",)}

    labelled = scene(Label("query-in-loop", 10), Label("select-star", 20))
    outcomes = (Outcome(labelled, (said("query-in-loop"),)), Outcome(scene(), (said("query-in-loop"),)))
    lines = list(table([Result(Half, outcomes)], {"query-in-loop": 1, "select-star": 1}))
    dash = "\N{EN DASH}"
    assert lines[2:] == [
        "| query-in-loop | 1 | 1/1 (100 %) | 1 | 50.0 % |",
        f"| select-star | 1 | {dash} | {dash} | {dash} |",
        "| **all rules** | 2 | 1/2 (50.0 %) | 1 | 50.0 % |",
        "| **the rules it has** | | 1/1 (100 %) | 1 | 50.0 % |",
        "| **silent scenarios found fault with** | | 1 of 1 | | |",
    ]


def test_kinds_of_peers_stand_for_rules() -> None:
    for observer in OBSERVERS:
        for rules in observer.stands_for.values():
            assert set(rules) <= set(RULES)


def test_a_line_belongs_to_its_statement() -> None:
    first = line_of("the statement begins")
    several = (  # the statement begins
        "of",
        "lines",
    )
    for each in several:  # the head
        str(each)  # the body
    assert statement_around(__file__, first + 2) == Lines(__file__, first, first + 3)
    assert statement_around(__file__, line_of("the head")) == Lines(__file__, line_of("the head"), line_of("the head"))
    assert statement_around(__file__, line_of("the body")) == Lines(__file__, line_of("the body"), line_of("the body"))
    assert statement_around("<generated>", 3) == Lines("<generated>", 3, 3)
