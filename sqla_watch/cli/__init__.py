"""The command `sqla-watch`. Its libraries are an extra, so they are imported when it runs and not before."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command with the arguments of the process; ends by `SystemExit` or as the watched program does."""
    try:
        import click
        import rich
    except ImportError as error:
        print(
            f"sqla-watch: the command needs the package {error.name}: pip install 'sqla-watch[cli]'",
            file=sys.stderr,
        )
        sys.exit(1)
    del click, rich
    from sqla_watch.cli.commands import start

    start()
