"""The installed watches: the one piece of process-wide state beside the scope's ContextVar.

Scopes ask here which settings judge them and who wants to hear of it; probes ask nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from sqla_watch.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

    from sqla_watch.facts import Fact
    from sqla_watch.scopes import Scope


class Installed(Protocol):
    """What is known of an installed watch here."""

    settings: Settings
    reporters: list[Callable[[Scope], None]]

    @property
    def engines(self) -> list[Engine]:
        """The engines it watches."""


watches: list[Installed] = []
"""Installed watches, the latest last."""

news: list[Fact] = []
"""Facts about engines, which the next scope takes: they belong to the process, and are told once."""

opening: list[Callable[[Scope], None]] = []
"""Called with each scope that is opened, before it is; they raise nothing."""

answering: list[Callable[[Scope], None]] = []
"""Called with the scope of a request, or task, when its answer is about to be complete: what others keep of it, as its
span, may be over when the scope is closed. They raise nothing."""

fallbacks: list[Scope] = []
"""Scopes for what is sent in none, the innermost last: those of a test that runs, of which its threads know nothing."""


class _Outside:
    """What is done about statements in no scope."""

    is_recorded = False
    """Whether a connection makes a scope of its own for them, as the latest watch's settings say."""


outside = _Outside()

_defaults: list[Settings] = []


def active_settings() -> Settings:
    """Return the settings of the latest watch, or those of pyproject.toml and environment without any."""
    if watches:
        return watches[-1].settings
    if not _defaults:
        _defaults.append(Settings.load())
    return _defaults[0]


def look_at_settings() -> None:
    """Take over what the latest watch's settings say of statements in no scope; to be called when they change."""
    outside.is_recorded = bool(watches) and watches[-1].settings.implicit_scopes


def take_news() -> list[Fact]:
    """Return the facts about engines that no scope has taken yet; they are the caller's from now on."""
    taken = news[:]
    del news[: len(taken)]
    return taken


def subscribers() -> list[Callable[[Scope], None]]:
    """Return those who want to be told of every closed scope, each once."""
    if len(watches) == 1:
        return watches[0].reporters[:]
    return list(dict.fromkeys(reporter for watch in watches for reporter in watch.reporters))
