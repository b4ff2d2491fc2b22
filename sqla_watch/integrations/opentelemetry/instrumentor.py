"""What `opentelemetry-instrument` finds by the entry point `opentelemetry_instrumentor`: no line of code is needed."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined, unused-ignore]

from sqla_watch.installation import Watch, install
from sqla_watch.settings import Profile, Settings

__all__ = ["SqlaWatchInstrumentor"]


class SqlaWatchInstrumentor(BaseInstrumentor):  # type: ignore[misc, unused-ignore]
    """Watches the engines of a process, and tells OpenTelemetry of them.

    `instrument()` takes `engine` or `engines` (every engine of the process by default), `tracer_provider`,
    `meter_provider` (the global ones by default) and `settings` (the profile `production` by default, which logs what
    is found and warns of nothing). pyproject.toml and `SQLA_WATCH_*` in the environment are stronger.

    Example::

        SqlaWatchInstrumentor().instrument(engine=engine)
    """

    _watches: tuple[Watch, ...] = ()

    def instrumentation_dependencies(self) -> Collection[str]:
        """Return what has to be installed."""
        return ("sqlalchemy >= 2.0.30, < 2.2",)

    def _instrument(self, **options: Any) -> None:
        engines = options.get("engines") or [options.get("engine")]
        settings = options.get("settings") or Settings(profile=Profile.PRODUCTION, telemetry=True)
        self._watches = tuple(
            install(
                engine,
                settings=settings,
                tracer_provider=options.get("tracer_provider"),
                meter_provider=options.get("meter_provider"),
            )
            for engine in engines
        )

    def _uninstrument(self, **options: Any) -> None:
        for watch in self._watches:
            watch.uninstall()
        self._watches = ()
