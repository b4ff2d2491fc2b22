"""`sqla-watch rules`: all rules in a table, or the page of one, made from the docstring of its class."""

from __future__ import annotations

import inspect
import sys

import click

from sqla_watch.detectors import RULES, Rule
from sqla_watch.reporters.terminal import Terminal
from sqla_watch.settings import SettingsError, check_rule

__all__ = ["page", "rules"]


@click.command()
@click.argument("rule", required=False)
def rules(rule: str | None) -> int:
    """List the rules, or show the page of one RULE."""
    terminal = Terminal(sys.stdout)
    if rule is None:
        _list(terminal)
        return 0
    try:
        text = page(RULES[check_rule(rule, "sqla-watch rules")])
    except SettingsError as error:
        raise click.UsageError(str(error)) from error
    if sys.stdout.isatty():
        from rich.markdown import Markdown

        terminal.write(Markdown(text))
    else:
        click.echo(text)
    return 0


def page(rule: Rule) -> str:
    """Return the page of a rule as Markdown.

    >>> page(RULES["n-plus-one"]).splitlines()[0]
    '# n-plus-one'
    """
    return "\n\n".join(
        [
            f"# {rule.id}",
            inspect.cleandoc(rule.__doc__ or ""),
            "## In the guide",
            f"Section {_sections(rule)}. Its warning is `sqla_watch.{rule.warning.__name__}`.",
        ]
    )


def _list(terminal: Terminal) -> None:
    rows = [(rule.id, _sections(rule), _first_line(rule)) for rule in RULES.values()]
    terminal.table(("rule", "guide", "sees"), sorted(rows), text_columns=3)
    terminal.line()
    terminal.line("sqla-watch rules RULE shows what a rule sees, why it costs, and how to repair or silence it.")


def _sections(rule: Rule) -> str:
    return ", ".join(str(section) for section in rule.guide)


def _first_line(rule: Rule) -> str:
    return inspect.cleandoc(rule.__doc__ or "").partition("\n")[0]
