"""The subcommands under one name, and what becomes of their outcome: an exit status, or a program to start."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import click

import sqla_watch
from sqla_watch.cli.errors import WrongInput
from sqla_watch.cli.program import ProgramError
from sqla_watch.panel.errors import PanelError
from sqla_watch.reporters.files import ReportError
from sqla_watch.settings import SettingsError

__all__ = ["commands", "start"]

WRONG_INPUT = 2
INTERRUPTED = 130


class _Commands(click.Group):
    """Subcommands in modules of their names, imported when they are asked for: `run` needs no demo."""

    names = ("demo", "report", "rules", "run")

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.names)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.names:
            return None
        command: click.Command = getattr(importlib.import_module(f"sqla_watch.cli.{cmd_name}"), cmd_name)
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(sqla_watch.__version__, prog_name="sqla-watch")
def commands() -> None:
    """Tell what a SQLAlchemy application makes PostgreSQL do, and which line causes it."""


def start() -> None:
    """Read the command line, do what it says, and exit.

    `run` only hands back what it is to start. The program is started out here because click turns some exceptions
    (Ctrl-C, the end of input, a closed pipe) into exit statuses of its own: they would not be the program's.
    """
    outcome = _read_command_line()
    if not callable(outcome):
        sys.exit(outcome)
    try:
        outcome()
    except ProgramError as error:
        _fail(error)


def _fail(error: Exception) -> NoReturn:
    print(f"Error: {error}", file=sys.stderr)
    sys.exit(WRONG_INPUT)


def _read_command_line() -> Callable[[], None] | int | None:
    try:
        outcome: Any = commands.main(prog_name="sqla-watch", standalone_mode=False, windows_expand_args=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(INTERRUPTED)
    except (PanelError, ReportError, SettingsError, WrongInput) as error:
        _fail(error)
    return outcome  # type: ignore[no-any-return]
