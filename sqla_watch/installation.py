"""Putting the probes on engines, and taking them off without a trace.

`install` gives a `Watch`, which knows its engines, its settings and who wants to hear of closed scopes. An engine
that several watches have is probed once, until the last of them is uninstalled.
"""

from __future__ import annotations

import functools
import gc
import inspect
import sys
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet

from sqlalchemy.engine import Connection, Engine

from sqla_watch import registry
from sqla_watch.callsite import call_site, user_code
from sqla_watch.findings import Finding
from sqla_watch.probes import internals, uncached
from sqla_watch.probes.attributes import tracking
from sqla_watch.probes.dialect import watch_dialect
from sqla_watch.probes.door import Door, logger
from sqla_watch.probes.engine import describe_engine, describe_server
from sqla_watch.probes.greenlets import watch_missing_greenlets
from sqla_watch.probes.pool import unwatch_pool, watch_pool
from sqla_watch.probes.rows import following
from sqla_watch.probes.session import session_door
from sqla_watch.probes.watchdog import watchdog
from sqla_watch.scopes import Scope, scope
from sqla_watch.settings import Settings, SettingsError
from sqla_watch.snapshot import Snapshot, take_snapshot

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["Watch", "install", "uninstall"]

_lock = threading.RLock()
_NEVER_SECONDS = 1e9


class _Probed:
    """The probes on one engine, and the watches that hold them there."""

    def __init__(self, engine: Engine) -> None:
        self.holders: set[Watch] = set()
        self.door: Door = watch_dialect(engine.dialect)
        watch_pool(engine.pool)

    def remove(self, engine: Engine) -> None:
        self.door.close()
        if not any(other.pool is engine.pool for other in _probed):  # engines may share a pool
            unwatch_pool(engine.pool)


_probed: WeakKeyDictionary[Engine, _Probed] = WeakKeyDictionary()


class Watch:
    """An installation. Made by `install`; ended by `uninstall`, also as a context manager.

    Example::

        with sqla_watch.install(engine):
            main()
    """

    def __init__(self, settings: Settings, everything: bool) -> None:
        self.settings = settings
        self.everything = everything
        """Whether it watches every engine of the process, also those still to come."""
        self.reporters: list[Callable[[Scope], None]] = []
        """Called with every scope that was closed, in the thread which closed it."""
        self._engines: WeakSet[Engine] = WeakSet()

    @property
    def engines(self) -> list[Engine]:
        """The engines it watches."""
        return list(self._engines)

    def snapshot(self) -> Snapshot:
        """Return what is open now of its engines: connections that are out, their transactions, the pools.

        Any thread may ask, at any time.
        """
        return take_snapshot(self._engines)

    def check_server(self, connection: Connection, *, workers: int) -> list[Finding]:
        """Judge whether the pools of all workers fit into what the server has; one statement is sent.

        Args:
            connection: A connection to PostgreSQL; of an AsyncConnection, by its `run_sync`.
            workers: Processes that have such an engine each.

        Returns:
            The findings of `engine-settings`, which are reported as all others; empty if all fit.

        Raises:
            TypeError: `connection` is no Connection.
            SettingsError: It is none to PostgreSQL, or `workers` is no whole number from 1 on.

        Example::

            with engine.connect() as connection:
                watch.check_server(connection, workers=8)

            async with async_engine.connect() as connection:
                await connection.run_sync(watch.check_server, workers=8)
        """
        if not isinstance(connection, Connection):
            hint = (
                "await connection.run_sync(watch.check_server, workers=…)"
                if "Async" in type(connection).__name__
                else ("with engine.connect() as connection: …")
            )
            raise TypeError(f"check_server() takes a Connection, not {type(connection).__name__}: {hint}")
        if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
            raise SettingsError(f"check_server(): workers is {workers!r}, but must be a whole number from 1 on")
        if connection.dialect.name != "postgresql":
            raise SettingsError(
                f"check_server(): the connection is to {connection.dialect.name}, but must be to PostgreSQL"
            )
        with scope("check_server", settings=self.settings) as checked:
            checked.pending.append(describe_server(connection, workers, call_site(sys._getframe())))
        return checked.findings

    @property
    def installed(self) -> bool:
        """Whether it is installed."""
        return self in registry.watches

    def uninstall(self) -> None:
        """Take the probes off the engines which no other watch has; leaves them as they were. May be repeated."""
        with _lock:
            if self in registry.watches:
                registry.watches.remove(self)
            for engine in list(self._engines):
                _release(engine, self)
            self._engines.clear()
            if not any(isinstance(watch, Watch) and watch.everything for watch in registry.watches):
                _future.close()
            _configure()
            if not registry.watches:
                _everywhere.close()
                watchdog.stop()
                registry.news.clear()
                internals.forget()
                uncached.forget()
                following.open = True

    def _add(self, engine: Engine) -> None:
        with _lock:
            probed = _probed.get(engine)
            if probed is None:
                probed = _probed[engine] = _Probed(engine)
                try:
                    registry.news.append(describe_engine(engine, call_site(sys._getframe(1))))
                except Exception:  # an engine of another make
                    logger.exception("sqla_watch: the settings of an engine could not be read; please report this")
            probed.holders.add(self)
            self._engines.add(engine)

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *error: object) -> None:
        self.uninstall()

    def __repr__(self) -> str:
        what = "every engine" if self.everything else ", ".join(repr(engine) for engine in self._engines)
        return f"<Watch of {what or 'no engine any more'}>"


class _Everywhere:
    """The probes that belong to no engine: those of sessions, and of MissingGreenlet."""

    def __init__(self) -> None:
        self._greenlets: Door | None = None

    def open(self) -> None:
        session_door.start()
        if self._greenlets is None:
            self._greenlets = watch_missing_greenlets()

    def close(self) -> None:
        session_door.stop()
        if self._greenlets is not None:
            self._greenlets.close()
            self._greenlets = None


_everywhere = _Everywhere()


class _FutureEngines:
    """Engines still to be made: `Engine.__init__` is wrapped while a watch of everything is installed."""

    def __init__(self) -> None:
        self._wrapper: Any = None
        self._original: Any = None

    def open(self) -> None:
        if self._wrapper is not None:
            return
        self._original = Engine.__init__
        self._wrapper = _with_same_arguments(self._original, _watch_new)
        Engine.__init__ = self._wrapper  # type: ignore[method-assign]

    def close(self) -> None:
        if self._wrapper is not None and Engine.__init__ is self._wrapper:
            Engine.__init__ = self._original  # type: ignore[method-assign]
            self._wrapper = self._original = None


def _watch_new(engine: Engine) -> None:
    """Have the watches of everything watch an engine that was just made."""
    for watch in list(registry.watches):
        if isinstance(watch, Watch) and watch.everything:
            watch._add(_base(engine))


def _with_same_arguments(original: Any, afterwards: Callable[[Engine], None]) -> Any:
    """Return a function that calls `original` and then `afterwards` with its first argument.

    `create_engine` reads from the code of `Engine.__init__` which arguments it may pass on, so the function has to
    be written with the very same ones.
    """
    parameters = inspect.signature(original).parameters.values()
    bare = [
        parameter.replace(default=inspect.Parameter.empty, annotation=inspect.Parameter.empty)
        for parameter in parameters
    ]
    passed = [f"{each.name}={each.name}" if each.kind is each.KEYWORD_ONLY else str(each) for each in bare]
    source = (
        f"def __init__{inspect.Signature(bare)}:\n    original({', '.join(passed)})\n    afterwards({bare[0].name})\n"
    )
    namespace: dict[str, Any] = {"original": original, "afterwards": afterwards}
    exec(compile(source, __file__, "exec"), namespace)
    made = namespace["__init__"]
    functools.update_wrapper(made, original)
    del made.__wrapped__  # it would be asked instead of this one
    made.__defaults__, made.__kwdefaults__ = original.__defaults__, original.__kwdefaults__
    return made


_future = _FutureEngines()


def install(engine: Engine | AsyncEngine | None = None, *, settings: Settings | None = None) -> Watch:
    """Watch an engine, or every engine of the process.

    Args:
        engine: An `Engine` or `AsyncEngine`; None for all engines, those that exist and those still to come.
        settings: Settings from code; pyproject.toml and `SQLA_WATCH_*` in the environment are stronger.

    Returns:
        The watch. Installing again on the same engine returns the same watch, with the new settings if any are
        given.

    Raises:
        TypeError: `engine` is no engine.
        SettingsError: The settings, pyproject.toml or the environment have a mistake.

    Example::

        engine = create_engine("postgresql+psycopg://…")
        sqla_watch.install(engine)
    """
    target = None if engine is None else _engine_of(engine)
    if settings is not None and not isinstance(settings, Settings):
        raise TypeError(f"install() takes settings as sqla_watch.Settings(...), not {settings!r}")
    with _lock:
        watch = _installed(target)
        if watch is None:
            watch = Watch(Settings.load(settings), everything=target is None)
            registry.watches.append(watch)
        elif settings is not None:
            watch.settings = Settings.load(settings)
        _configure()
        _everywhere.open()
        if target is not None:
            watch._add(target)
        else:
            _future.open()
            for each in _existing_engines():
                watch._add(each)
        return watch


def uninstall() -> None:
    """Uninstall every watch; the engines are as they were before."""
    for watch in list(registry.watches):
        if isinstance(watch, Watch):
            watch.uninstall()


def _installed(target: Engine | None) -> Watch | None:
    for watch in registry.watches:
        if isinstance(watch, Watch) and (
            watch.everything if target is None else not watch.everything and target in watch._engines
        ):
            return watch
    return None


def _configure() -> None:
    """Tell the call sites which code is the user's, by the settings of all watches."""
    settings = [watch.settings for watch in registry.watches]
    user_code.configure(
        user=dict.fromkeys(name for each in settings for name in each.user_code),
        library=dict.fromkeys(name for each in settings for name in each.library_code),
    )
    active = {rule for each in settings for rule in each.active}
    _configure_watchdog(settings)
    tracking.configure(
        relationships="unused-eager-load" in active, columns=not active.isdisjoint(("wide-rows", "unused-eager-load"))
    )


def _configure_watchdog(settings: list[Settings]) -> None:
    """Have the watchdog look as often, and as early, as the most attentive of the settings asks for."""
    intervals = [each.watchdog_seconds for each in settings if each.watchdog_seconds]

    def least(*rules: str) -> float:
        return min(
            (each.rule(rule)["min_seconds"] for each in settings for rule in rules if rule in each.active),
            default=float("inf"),
        )

    idle, wait = least("idle-in-transaction", "connection-held"), least("pool-wait", "pool-fanout")
    if not intervals or idle == wait == float("inf"):
        watchdog.interval = 0
    else:
        watchdog.configure(min(intervals), min(idle, _NEVER_SECONDS), min(wait, _NEVER_SECONDS))


def _release(engine: Engine, watch: Watch) -> None:
    probed = _probed.get(engine)
    if probed is not None:
        probed.holders.discard(watch)
        if not probed.holders:
            del _probed[engine]
            probed.remove(engine)


def _engine_of(engine: object) -> Engine:
    """Return the synchronous engine whose dialect and pool do the work, or raise a `TypeError` that helps."""
    if isinstance(engine, Engine):
        return _base(engine)
    asynchronous: Any = sys.modules.get("sqlalchemy.ext.asyncio")
    if asynchronous is not None and isinstance(engine, asynchronous.AsyncEngine):
        return _base(engine.sync_engine)
    kind = type(engine).__name__
    hint = {
        "str": "make one with create_engine() first",
        "URL": "make one with create_engine() first",
        "Session": "pass session.get_bind()",
        "AsyncSession": "pass the AsyncEngine that it was made with",
        "Connection": "pass connection.engine",
        "AsyncConnection": "pass connection.engine",
        "sessionmaker": "pass the engine it is bound to",
        "async_sessionmaker": "pass the engine it is bound to",
    }.get(kind, "or nothing, to watch every engine")
    raise TypeError(f"install() takes a SQLAlchemy Engine or AsyncEngine, not {kind}: {hint}")


def _base(engine: Engine) -> Engine:
    """Return the engine that owns dialect and pool: `engine.execution_options()` makes views of it."""
    while True:
        proxied = getattr(engine, "_proxied", None)
        if not isinstance(proxied, Engine):
            return engine
        engine = proxied


def _existing_engines() -> Iterable[Engine]:
    classes: list[type] = [Engine]
    for each in classes:  # and those that are added meanwhile
        classes.extend(each.__subclasses__())
    found = {}
    # Whatever is of a class refers to it: the garbage collector finds these three times as fast as we do among all.
    for each in gc.get_referrers(*classes):
        if isinstance(each, Engine):
            base = _base(each)
            found[id(base)] = base
    return found.values()
