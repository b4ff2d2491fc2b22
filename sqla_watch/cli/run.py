"""`sqla-watch run`: any Python program with every engine watched, and a report at its end.

The program is not to notice: its output, arguments and exit status stay what they are. So the report is written by
the last of the `atexit` callbacks, after its threads have ended, to standard error.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TextIO

import click

import sqla_watch
from sqla_watch.callsite import user_code
from sqla_watch.cli.program import Program, ProgramError
from sqla_watch.cli.report import HTML
from sqla_watch.cli.summary import CommandScope, Summary, open_scopes
from sqla_watch.panel.errors import PanelError, require_extra
from sqla_watch.reporters import files, json
from sqla_watch.reporters.files import ReportError
from sqla_watch.reporters.terminal import Terminal
from sqla_watch.reporters.text import count, milliseconds
from sqla_watch.scopes import current

__all__ = ["Run", "run"]

MOST_SCOPES_SHOWN = 10


@click.command(
    context_settings={"allow_interspersed_args": False},
    options_metavar="[OPTIONS]",
    epilog="Everything after SCRIPT or MODULE belongs to the program. What it does in child processes is not seen.",
)
@click.option(
    "--profile",
    type=click.Choice([str(profile) for profile in sqla_watch.Profile]),
    help="Defaults of the rules: development, test or production. SQLA_WATCH_PROFILE and pyproject.toml win.",
)
@click.option("--json", "json_path", metavar="FILE", help="Write the report as JSON, too.")
@click.option("--html", "html_path", metavar="FILE", help="Write the report as one HTML page, too.")
@click.option(
    "--app",
    "applications",
    metavar="PACKAGE_OR_PATH",
    multiple=True,
    help="Code that counts as the program's own though it is installed among the libraries. May be repeated.",
)
@click.option("-m", "is_module", is_flag=True, help="Run a module, as python -m does.")
@click.argument("target", metavar="{SCRIPT | -m MODULE}", type=click.UNPROCESSED)
@click.argument("arguments", metavar="[ARGUMENTS]...", nargs=-1, type=click.UNPROCESSED)
def run(
    profile: str | None,
    json_path: str | None,
    html_path: str | None,
    applications: tuple[str, ...],
    is_module: bool,
    target: str,
    arguments: tuple[str, ...],
) -> Callable[[], None]:
    """Run a Python program and report what it made the database do.

    SCRIPT is a file, or a directory or zip file with a __main__.py. The report goes to standard error; the program's
    own output, exit status and arguments stay as they are.
    """
    program = Program(target, arguments, is_module)
    program.check()
    if json_path is not None:
        json.check(json_path)
        json_path = os.path.abspath(json_path)  # the program may change the working directory
    if html_path is not None:
        require_extra()
        files.check(html_path, HTML)
        html_path = os.path.abspath(html_path)
    own_code = [_application(each) for each in applications]
    settings = sqla_watch.Settings(profile=profile) if profile is not None else None
    watch = sqla_watch.install(settings=settings)
    _add_user_code(watch, own_code)
    return Run(program, watch, json_path, html_path).start


def _application(name: str) -> str:
    """Return a package as it is, and a path as it stays when the program changes the working directory."""
    if os.sep not in name and not name.startswith(".") and not name.endswith(".py"):
        return name
    if not os.path.exists(name):
        raise click.BadParameter(f"there is no file or directory {name!r}", param_hint="--app")
    return os.path.abspath(name)


def _add_user_code(watch: sqla_watch.Watch, names: list[str]) -> None:
    """Add to what the watch's settings say is the user's own code, whichever source they are from."""
    if names:
        watch.settings = replace(watch.settings, user_code=(*watch.settings.user_code, *names))
        user_code.configure(watch.settings.user_code, watch.settings.library_code)


class Run:
    """One program under watch, from its start to the report.

    Args:
        program: What to run.
        watch: The installation that watches every engine.
        json_path: Where the JSON report goes, if anywhere.
        html_path: Where the HTML report goes, if anywhere.
    """

    def __init__(
        self,
        program: Program,
        watch: sqla_watch.Watch,
        json_path: str | None = None,
        html_path: str | None = None,
    ) -> None:
        self._html_path = html_path
        self._program = program
        self._watch = watch
        self._json_path = json_path
        self._summary = Summary()
        self._scope = CommandScope(program.name, "run", watch.settings)
        self._process = os.getpid()
        self._stderr = sys.stderr
        self._engines = 0

    def start(self) -> None:
        """Run the program in this process, in which it ends as it likes.

        Raises:
            ProgramError: There is no such module; then there is no report either.
        """
        self._watch.reporters.append(self._summary.add)
        _leave_telling_to_the_report()
        atexit.register(self._finish)  # before the program's own callbacks, so that it comes after them
        current.set(self._scope)
        try:
            self._program.run()
        except ProgramError:
            atexit.unregister(self._finish)
            raise

    def _finish(self) -> None:
        if os.getpid() != self._process:  # a fork which the program let end by itself
            return
        with contextlib.suppress(OSError, ValueError, AttributeError):
            sys.stdout.flush()  # what the program printed comes before the report
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._collect()
            file = self._standard_error()
            if file is not None:
                with contextlib.suppress(OSError):  # nobody reads it any more
                    self._print(Terminal(file))
            self._write_json(file)
            self._write_html(file)

    def _collect(self) -> None:
        """Close what the program left open, and take the probes off before the interpreter takes itself apart."""
        left_open = [scope for scope in open_scopes() if scope is not self._scope]
        for scope in (*left_open, self._scope):
            scope.close()
            self._summary.add(scope)
        self._engines = len(self._watch.engines)
        self._watch.uninstall()

    def _standard_error(self) -> TextIO | None:
        """Return the standard error of the process, which the program may have replaced or closed."""
        for file in (self._stderr, sys.stderr):
            with contextlib.suppress(ValueError, AttributeError):  # detached from its buffer, or None
                if not file.closed:
                    return file
        return None

    def _print(self, terminal: Terminal) -> None:
        found = self._summary.findings
        terminal.line()
        outcome = count(len(found), "finding") if found else "nothing found"
        terminal.line(f"sqla-watch: {self._program.name}: {outcome}", "bold")
        terminal.findings(found)
        if self._summary.findings_left_out:
            terminal.line(f"{count(self._summary.findings_left_out, 'finding')} more had no room.")
        terminal.line()
        if self._summary.totals.statements:
            self._print_scopes(terminal)
            terminal.line(self._totals())
        else:
            terminal.line(self._why_nothing())

    def _print_scopes(self, terminal: Terminal) -> None:
        """Write the dearest scopes, if the program has more than its own."""
        number = self._summary.totals.scopes
        if number == 1:
            return
        dearest = sorted(self._summary.scopes, key=lambda scope: -float(scope["database_seconds"]))
        terminal.scopes(dearest[:MOST_SCOPES_SHOWN])
        if number > MOST_SCOPES_SHOWN:
            terminal.line(f"… and {count(number - MOST_SCOPES_SHOWN, 'scope')} more.")
        terminal.line()

    def _totals(self) -> str:
        totals = self._summary.totals
        parts = [
            count(totals.statements, "statement"),
            count(totals.rows, "row"),
            f"{milliseconds(totals.database_seconds)} in the database",
            f"{milliseconds(totals.commit_seconds)} in COMMIT and ROLLBACK",
            count(totals.transactions, "transaction"),
            f"{milliseconds(self._scope.duration_seconds)} altogether",
        ]
        if totals.errors:
            parts.insert(1, f"{totals.errors:,} of them failed")
        if totals.wait_seconds:
            parts.insert(-2, f"{milliseconds(totals.wait_seconds)} waiting for the pool")
        if totals.dropped:
            parts.append(f"{count(totals.dropped, 'fact')} left out for want of room")
        return ", ".join(parts) + "."

    def _why_nothing(self) -> str:
        if self._engines:
            return f"The program opened {count(self._engines, 'engine')} but sent no statement."
        return "The program sent no statement: it opened no engine, or let go of it unused."

    def _write_json(self, errors: TextIO | None) -> None:
        if self._json_path is None:
            return
        try:
            json.write(self._document(), self._json_path)
        except ReportError as error:
            print(f"sqla-watch: {error}", file=errors)

    def _write_html(self, errors: TextIO | None) -> None:
        if self._html_path is None:
            return
        from sqla_watch.panel import report_page

        try:
            page = report_page(self._summary.scopes, title=self._program.name)
            files.write(page.encode("utf-8", "replace"), self._html_path, HTML)
        except (PanelError, ReportError) as error:
            print(f"sqla-watch: {error}", file=errors)

    def _document(self) -> dict[str, Any]:
        summary = self._summary
        return json.document(
            summary.scopes,
            program={
                "name": self._program.name,
                "arguments": list(self._program.arguments),
                "module": self._program.is_module,
            },
            totals=summary.totals.to_dict(),
            findings=[told.to_dict() for told in summary.findings],
            findings_left_out=summary.findings_left_out,
            scopes_left_out=summary.scopes_left_out,
        )


def _leave_telling_to_the_report() -> None:
    """Keep findings from being shown as warnings or log records, too; a filter of the program's own is stronger."""
    warnings.filterwarnings("ignore", category=sqla_watch.SqlaWatchWarning)
    logging.getLogger("sqla_watch").addFilter(lambda record: not hasattr(record, "finding"))
