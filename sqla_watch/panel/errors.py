"""What is wrong with how the panel or the report was asked for."""

from __future__ import annotations

from importlib import import_module

from sqla_watch.findings import SqlaWatchError

__all__ = ["PanelError", "require_extra"]


class PanelError(SqlaWatchError):
    """A panel or report cannot be made of what was given; the message names it and says why."""


def require_extra() -> None:
    """Look whether the packages are there that make pages.

    Raises:
        PanelError: They are not.
    """
    for name in ("jinja2", "pygments", "sqlparse"):
        try:
            import_module(name)
        except ImportError as error:
            raise PanelError(f"the panel and the HTML report need {name}: pip install 'sqla-watch[panel]'") from error
