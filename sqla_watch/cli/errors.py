"""What all wrong input to the command has in common: one line that names it, and exit status 2."""

from __future__ import annotations

from sqla_watch.findings import SqlaWatchError

__all__ = ["WrongInput"]


class WrongInput(SqlaWatchError):
    """Something on the command line is not what it should be; the message is one line that says what."""
