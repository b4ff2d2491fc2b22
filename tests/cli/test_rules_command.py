"""`sqla-watch rules` shows what the rules' own docstrings say."""

from __future__ import annotations

import inspect

from sqla_watch.detectors import RULES


def test_the_list_has_every_rule_with_its_guide_sections_and_first_line(command):
    status, output, errors = command("rules")
    assert (status, errors) == (0, "")
    for rule in RULES.values():
        first_line = inspect.cleandoc(rule.__doc__).splitlines()[0]
        (line,) = [line for line in output.splitlines() if line.startswith(f"{rule.id} ")]
        assert line.endswith(f"  {first_line}")
        assert f"  {', '.join(str(section) for section in rule.guide)}  " in line


def test_the_page_of_a_rule_is_its_docstring(command):
    for rule in RULES.values():
        status, page, errors = command("rules", rule.id)
        assert (status, errors) == (0, "")
        assert page.startswith(f"# {rule.id}\n\n")
        assert inspect.cleandoc(rule.__doc__) in page
        assert rule.warning.__name__ in page


def test_a_terminal_gets_the_page_rendered(command, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    status, page, _ = command("rules", "n-plus-one")
    assert status == 0
    assert "n-plus-one" in page
    assert "## What it sees" not in page
