"""Findings on a terminal: worst first, six lines at most, and nothing in them is obeyed."""

from __future__ import annotations

import io

import pytest
from rich.cells import cell_len

from sqla_watch import Finding, Location, RelatedLocation, Severity
from sqla_watch.reporters import terminal as module
from sqla_watch.reporters.terminal import Terminal, Told
from sqla_watch.reporters.text import plain

HOSTILE = "[bold red]x[/] \x1b[2J\x07\r\n\u202e\udc80 :smile:"


class Screen(io.StringIO):
    """A terminal."""

    def isatty(self):
        return True


def finding(**changes):
    return Finding(
        **{
            "rule": "n-plus-one",
            "target": "Order.customer",
            "severity": Severity.HIGH,
            "message": "Order.customer was loaded lazily for 100 Order objects, one by one: 100 statements where one",
            "location": Location("shop/views.py", 12, "overview"),
            "evidence": {"database_seconds": 0.0412},
            "suggestion": "Add to the query at shop/views.py:10:\n.options(joinedload(Order.customer))",
            "related": (RelatedLocation("parents loaded by the query", Location("shop/views.py", 10, "overview")),),
            "statements": 100,
            "database_seconds": 0.0412,
            **changes,
        }
    )


def shown(*findings, file=None, width=80):
    file = io.StringIO() if file is None else file
    Terminal(file, width=width).findings(each if isinstance(each, Told) else Told.once(each) for each in findings)
    return file.getvalue()


def test_a_finding_is_cost_and_place_sentence_related_line_and_what_to_change():
    assert shown(finding()) == (
        "\nHigh: grows with the data, or makes others wait\n"
        "\n"
        "100 statements, 41 ms  shop/views.py:12 in overview  [n-plus-one]\n"
        "  Order.customer was loaded lazily for 100 Order objects, one by one: 100\n"
        "  statements where one\n"
        "  parents loaded by the query at shop/views.py:10 in overview\n"
        "  Add to the query at shop/views.py:10:\n"
        "    .options(joinedload(Order.customer))\n"
    )


def test_the_worst_come_first_and_what_is_alike_has_its_sums():
    medium = finding(severity=Severity.MEDIUM, target="b", database_seconds=9.0)
    cheap = finding(rule="cheap")
    dear = Told(finding(rule="dear"), scopes=37, statements=1_204, database_seconds=0.3, seconds=0.5)
    lines = shown(medium, cheap, dear, finding(severity=Severity.LOW)).splitlines()
    heads = [line for line in lines if "[" in line]
    assert [head.rpartition("[")[2] for head in heads] == ["dear]", "cheap]", "n-plus-one]", "n-plus-one]"]
    assert heads[0].startswith("1,204 statements, 500 ms, in 37 scopes  shop/views.py:12 in overview")
    assert [line.partition(":")[0] for line in lines if line[:1].isalpha()] == ["High", "Medium", "Low"]


def test_waiting_is_a_cost_though_no_statement_was_sent():
    waited = finding(statements=0, database_seconds=0.0, evidence={"wait_seconds": 0.3, "total_wait_seconds": 0.6})
    assert "\n600 ms  shop/views.py:12" in shown(waited)


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"message": "word " * 200, "suggestion": "word " * 200},
        {"location": Location("/very/long" * 15 + "/views.py", 12, "overview")},
        {"suggestion": "Change:\n" + "\n".join(".options(selectinload(Customer.orders))" for _ in range(20))},
        {"location": None, "related": (), "suggestion": ""},
        {"message": "", "related": finding().related * 10},
    ],
    ids=["usual", "long", "path", "code", "nothing", "related"],
)
def test_a_finding_has_at_most_six_lines(width, changes):
    _, head, rest = shown(finding(**changes), width=width).partition("100 statements")
    lines = (head + rest).splitlines()
    assert 1 <= len(lines) <= 6
    assert all(cell_len(line) <= width or ".options" in line for line in lines)


def test_code_is_left_whole_so_that_it_can_be_pasted():
    code = ".options(" + ".".join(f"selectinload(Customer.orders{number})" for number in range(5)) + ")"
    output = shown(finding(suggestion=f"Add:\n{code}"), width=80)
    assert f"\n    {code}\n" in output


def test_hostile_text_is_shown_and_not_obeyed():
    location = Location(f"{HOSTILE}.py", 1, HOSTILE)
    output = shown(
        finding(
            message=HOSTILE,
            location=location,
            suggestion=HOSTILE,
            rule=HOSTILE,
            related=(RelatedLocation(HOSTILE, location),),
        ),
        file=Screen(),
        width=200,
    )
    assert r"[bold red]x[/] \x1b[2J\x07\r\n\u202e\udc80 :smile:" in output
    assert "\x1b[2J" not in output
    for character in "\x07\r\u202e\udc80":
        assert character not in output


def test_colour_is_for_terminals(monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    assert "\x1b[1;31m" in shown(finding(), file=Screen())
    assert "\x1b" not in shown(finding())
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[1;31m" not in shown(finding(), file=Screen())


def test_a_file_has_long_lines_unless_columns_are_set(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert f"\n  {finding().message}\n" in shown(finding(), width=None)
    monkeypatch.setenv("COLUMNS", "80")
    assert f"\n  {finding().message}\n" not in shown(finding(), width=None)


def test_an_encoding_without_a_character_has_it_written_out():
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii")
    Terminal(file).line("Bücher → \udc80")
    assert raw.getvalue() == b"B\\xfccher \\u2192 \\udc80\n"


def test_of_very_many_findings_the_rest_is_counted(monkeypatch):
    monkeypatch.setattr(module, "MOST_FINDINGS", 2)
    output = shown(*[finding(target=str(number)) for number in range(5)])
    assert output.count("[n-plus-one]") == 2
    assert output.endswith("\n… and 3 findings more; --json has them all.\n")


def test_scopes_are_a_table():
    file = io.StringIO()
    scope = {
        "name": "GET [bold]/\x1b",
        "kind": "request",
        "statements": 1_204,
        "rows": 9,
        "database_seconds": 0.0042,
        "findings": [],
    }
    Terminal(file, width=80).scopes([scope])
    assert file.getvalue().splitlines() == [
        "scope            kind     statements  rows  database  findings",
        r"GET [bold]/\x1b  request       1,204     9    4.2 ms         0",
    ]


def test_plain_leaves_what_can_be_printed_as_it_is():
    assert plain("SELECT 'Bücher' → 書") == "SELECT 'Bücher' → 書"
