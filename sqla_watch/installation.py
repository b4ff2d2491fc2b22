"""Putting the probes on engines, and taking them off without a trace.

`install` gives a `Watch`, which knows its engines, its settings and who wants to hear of closed scopes. An engine
that several watches have is probed once, until the last of them is uninstalled.
"""

from __future__ import annotations

import functools
import gc
import inspect
import os
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from importlib.util import find_spec
from operator import is_
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet, ref

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
from sqla_watch.probes.pool import listen, unwatch_pool, watch_pool
from sqla_watch.probes.rows import following
from sqla_watch.probes.session import session_door
from sqla_watch.probes.watchdog import watchdog
from sqla_watch.scopes import Scope, scope
from sqla_watch.settings import Settings, SettingsError
from sqla_watch.telemetry import AwaitingProvider, PoolTelemetry, Telemetry, provider_is_set

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider
    from sqlalchemy.ext.asyncio import AsyncEngine

    from sqla_watch.integrations.opentelemetry.engine import EngineTelemetry, Signals
    from sqla_watch.snapshot import Snapshot

__all__ = ["Watch", "install", "uninstall"]

_lock = threading.RLock()
_NEVER_SECONDS = 1e9


class _Probed:
    """The probes on one engine, and the watches that hold them there."""

    def __init__(self, engine: Engine) -> None:
        self.holders: set[Watch] = set()
        self.door: Door = watch_dialect(engine.dialect)
        self.telemetry: EngineTelemetry | None = None
        self.told_for: tuple[Any, ...] = ()
        """What its telemetry was made of: settings and providers."""
        watch_pool(engine.pool)

    def configure_telemetry(self, engine: Engine) -> None:
        """Have one telemetry on the engine, that of the latest watch which asks for it; or none."""
        watch = self._telling()
        wanted: tuple[Any, ...] = ()
        if watch is not None:
            wanted = (watch.settings, watch.telemetry, *watch.providers)
        if len(wanted) == len(self.told_for) and all(map(is_, wanted, self.told_for)):
            return
        if self.told_for:
            listen(engine.dialect, engine.pool, None)
        if self.telemetry is not None:
            self.telemetry.close()
            self.telemetry = None
        self.told_for = wanted
        if watch is None:
            return
        if watch.telemetry is None:
            found = ref(engine)
            listen(engine.dialect, engine.pool, AwaitingProvider(lambda: _begin_telling(found())))
            return
        from sqla_watch.integrations.opentelemetry.engine import start

        self.telemetry = start(engine, *wanted)

    def _telling(self) -> Watch | None:
        """Return the watch that says what is told of the engine; None if nothing is, nor will be.

        A watch of this engine comes before one of every engine, and a later one before an earlier one; one that says
        nothing leaves it to the next, and if all do so, to whether there is a provider.
        """
        holders = [watch for watch in reversed(registry.watches) if watch in self.holders and isinstance(watch, Watch)]
        automatic = None
        for watch in sorted(holders, key=lambda each: each.everything):
            if watch.settings.telemetry is not None:
                return watch if watch.settings.telemetry else automatic
            if automatic is None and watch.may_tell:
                automatic = watch
        return automatic

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
        self.providers: tuple[TracerProvider | None, MeterProvider | None] = (None, None)
        """Where OpenTelemetry is told, where the settings say so; None for the global providers."""
        self._signals: Signals | None = None
        self.everything = everything
        """Whether it watches every engine of the process, also those still to come."""
        self.reporters: list[Callable[[Scope], None]] = []
        """Called with every scope that was closed, in the thread which closed it."""
        self._engines: WeakSet[Engine] = WeakSet()

    @property
    def engines(self) -> list[Engine]:
        """The engines it watches."""
        return list(self._engines)

    @property
    def telemetry(self) -> Telemetry | None:
        """What is told to OpenTelemetry; None for nothing, or for nothing yet because there is no provider."""
        said = self.settings.telemetry
        if said is None:
            return _AUTOMATIC if self.may_tell and provider_is_set() else None
        assert said is False or isinstance(said, Telemetry)
        return said or None

    @property
    def may_tell(self) -> bool:
        """Whether OpenTelemetry is told now or as soon as there is a provider."""
        if self.settings.telemetry is not None:
            return self.settings.telemetry is not False
        return _could_be_told()

    def snapshot(self) -> Snapshot:
        """Return what is open now of its engines: connections that are out, their transactions, the pools.

        Any thread may ask, at any time.
        """
        from sqla_watch.snapshot import take_snapshot  # only now: most programs never ask

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

    @property
    def settings(self) -> Settings:
        """By what it judges; others may be set at any time."""
        return self._settings

    @settings.setter
    def settings(self, settings: Settings) -> None:
        self._settings = settings
        registry.look_at_settings()

    def uninstall(self) -> None:
        """Take the probes off the engines which no other watch has; leaves them as they were. May be repeated."""
        with _lock:
            if self in registry.watches:
                registry.watches.remove(self)
            for engine in list(self._engines):
                _release(engine, self)
            self._engines.clear()
            self._configure_telemetry()
            if not any(isinstance(watch, Watch) and watch.everything for watch in registry.watches):
                _future.close()
            _configure()
            if not registry.watches:
                _everywhere.close()
                watchdog.stop()
                registry.news.clear()
                internals.forget()
                user_code.forget_routes()
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
            probed.configure_telemetry(engine)

    def _configure_telemetry(self) -> None:
        """Tell OpenTelemetry of scopes and engines as the settings say; nothing of it is imported where they do not."""
        signals = None
        if self.telemetry is not None:
            from sqla_watch.integrations.opentelemetry import signals_of

            signals = signals_of(*self.providers)
        if signals is not self._signals:
            if self._signals is not None and self._signals.report in self.reporters:
                self.reporters.remove(self._signals.report)
            if signals is not None:
                self.reporters.append(signals.report)
            self._signals = signals
        used = {watch._signals: None for watch in registry.watches if isinstance(watch, Watch) and watch._signals}
        is_awaited = any(
            isinstance(watch, Watch) and watch.may_tell and watch.telemetry is None for watch in registry.watches
        )
        registry.opening[:] = [*([_look_for_provider] if is_awaited else []), *(signals.opening for signals in used)]
        registry.answering[:] = [signals.answering for signals in used]
        for engine in self._engines:
            _probed[engine].configure_telemetry(engine)

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


def install(
    engine: Engine | AsyncEngine | None = None,
    *,
    settings: Settings | None = None,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
) -> Watch:
    """Watch an engine, or every engine of the process.

    Args:
        engine: An `Engine` or `AsyncEngine`; None for all engines, those that exist and those still to come.
        settings: Settings from code; pyproject.toml and `SQLA_WATCH_*` in the environment are stronger.
        tracer_provider: Where OpenTelemetry's spans go, instead of to the global provider. To give one, or a
            `meter_provider`, means `telemetry=True` where the settings do not say what is told. Without them, and
            without a word in the settings, the global providers are told as soon as the application has set one.
        meter_provider: Where its metrics go.

    Returns:
        The watch. Installing again on the same engine returns the same watch, with the new settings if any are
        given.

    Raises:
        TypeError: `engine` is no engine.
        SettingsError: The settings, pyproject.toml or the environment have a mistake; or they ask for telemetry, and
            the extra `otel` is not installed.

    Example::

        engine = create_engine("postgresql+psycopg://…")
        sqla_watch.install(engine)
    """
    target = None if engine is None else _engine_of(engine)
    if settings is not None and not isinstance(settings, Settings):
        raise TypeError(f"install() takes settings as sqla_watch.Settings(...), not {settings!r}")
    providers = (tracer_provider, meter_provider)
    with _lock:
        watch = _installed(target)
        given = providers if providers != (None, None) or watch is None else watch.providers
        if watch is None or settings is not None or given != watch.providers:
            loaded = _with_telemetry(Settings.load(settings) if watch is None or settings else watch.settings, given)
        else:
            loaded = watch.settings
        if watch is None:
            watch = Watch(loaded, everything=target is None)
            registry.watches.append(watch)
        watch.settings, watch.providers = loaded, given
        watch._configure_telemetry()
        _configure()
        _everywhere.open()
        if target is not None:
            watch._add(target)
        else:
            _future.open()
            for each in _existing_engines():
                watch._add(each)
        return watch


_AUTOMATIC = Telemetry()
"""What is told where nobody has said what."""


def _could_be_told() -> bool:
    """Whether OpenTelemetry's API is installed, and its SDK not switched off. Nothing is imported."""
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    return "opentelemetry" in sys.modules or find_spec("opentelemetry") is not None


def _look_for_provider(scope: Scope) -> None:
    """Begin to tell OpenTelemetry once the application has given it a provider; asked with each scope (0.2 µs)."""
    if provider_is_set() and _begin_telling_of_all():
        for opening in registry.opening:
            if opening is not _look_for_provider:
                opening(scope)


def _begin_telling(engine: Engine | None) -> PoolTelemetry | None:
    """Begin to tell OpenTelemetry, now that there is a provider; return the telemetry of an engine."""
    if engine is None or not _begin_telling_of_all():
        return None
    probed = _probed.get(engine)
    return None if probed is None else probed.telemetry


def _begin_telling_of_all() -> bool:
    """Configure the telemetry of all watches anew. Returns whether that could be done; it raises nothing."""
    if not _lock.acquire(blocking=False):  # somebody installs: the next scope, or checkout, asks again
        return False
    try:
        for watch in list(registry.watches):
            if isinstance(watch, Watch):
                watch._configure_telemetry()
        return True
    except Exception:
        logger.exception("sqla_watch: OpenTelemetry has a provider, but cannot be told; please report this")
        for watch in list(registry.watches):
            if isinstance(watch, Watch) and watch.settings.telemetry is None:
                watch.settings = replace(watch.settings, telemetry=False)
                watch._configure_telemetry()
        return False
    finally:
        _lock.release()


def _with_telemetry(settings: Settings, providers: tuple[object, object]) -> Settings:
    """Return settings that ask for telemetry where providers are given; check that it can be had.

    Raises:
        SettingsError: It is asked for, and OpenTelemetry is not installed.
    """
    if settings.telemetry is None and providers != (None, None):
        settings = replace(settings, telemetry=True)
    if not settings.telemetry:
        return settings
    if find_spec("opentelemetry") is None or find_spec("opentelemetry.trace") is None:
        raise SettingsError("telemetry is on, but OpenTelemetry is not installed: pip install 'sqla-watch[otel]'")
    return settings


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
    """Tell the probes what they are to do, by the settings of all watches."""
    settings = [watch.settings for watch in registry.watches]
    user_code.configure(
        user=dict.fromkeys(name for each in settings for name in each.user_code),
        library=dict.fromkeys(name for each in settings for name in each.library_code),
    )
    registry.look_at_settings()
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
        probed.configure_telemetry(engine)
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
