from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from sqla_watch.detectors._rule import Context, Facts, Found, Rule, Threshold, where
from sqla_watch.facts import EngineConfiguration
from sqla_watch.findings import Finding, Severity, SqlaWatchWarning


class EngineSettingsWarning(SqlaWatchWarning):
    """An engine is made in a way that will cost."""


class EngineSettings(Rule):
    """How the engine was made: what will hurt in production.

    ## What it sees
    The arguments of `create_engine`, read once when the watch begins: whether dead connections are noticed
    (`pool_pre_ping`, `pool_recycle`), whether the pool has a limit, whether connections are reset on their return,
    `echo`, and the size of the cache for compiled statements.

    ## Why it costs
    After a failover or a firewall's time-out each pooled connection that is dead costs a request an error. A pool
    without limit turns every peak into connections until PostgreSQL refuses them for all. A connection that is not
    reset carries its open transaction, with its locks, to the next user. `echo` writes every statement with its
    values to the log. Without a cache every statement is compiled anew.

    ## Example
    ```python
    small_cache = create_engine(engine.url, query_cache_size=0)
    sqla_watch.install(small_cache)
    with small_cache.connect() as connection:
        connection.execute(select(Rate.country))
    ```

    ## Use instead
    ```python
    usual_cache = create_engine(engine.url)
    sqla_watch.install(usual_cache)
    with usual_cache.connect() as connection:
        connection.execute(select(Rate.country))
    ```

    ## Thresholds
    `min_query_cache_size`: statements that the cache holds (100 in all).
    `in_production`: 1 to judge echo, pool_pre_ping and the pool's limit, too (production 1, else 0).

    ## How to silence it
    `with sqla_watch.ignore("engine-settings", "echo", reason="…"):` around `sqla_watch.install()`, or
    `# sqla-watch: ignore[engine-settings]` on its line; or one of the thresholds at 0.

    ## Limits
    Told once for each engine in a process, with the first scope after the watch began. Whether the pools of all
    processes fit into the server's `max_connections` is told when you ask: `watch.check_server(connection, workers=8)`.
    """

    id = "engine-settings"
    guide = (1,)
    warning = EngineSettingsWarning
    reads = "engines"
    thresholds: ClassVar = {
        "min_query_cache_size": Threshold(100, 100, 100, "statements that the cache holds"),
        "in_production": Threshold(0, 0, 1, "1 to judge what matters in production only"),
    }

    def find(self, facts: Facts, context: Context) -> Iterator[Found]:
        """Yield one finding for each setting of each engine."""
        for engine in facts.engines:
            for problem in self._problems(engine, context):
                yield Found(self._finding(engine, *problem), (), engine.ignores)

    @staticmethod
    def _problems(engine: EngineConfiguration, context: Context) -> Iterator[tuple[str, str, str, str, Severity]]:
        """Yield setting, value, what is wrong with it, what would be right, and how much it matters."""
        if engine.max_connections:
            yield from EngineSettings._too_many(engine)
            return
        pooled = engine.pool in ("QueuePool", "AsyncAdaptedQueuePool", "SingletonThreadPool")
        if engine.query_cache_size < context["min_query_cache_size"]:
            yield (
                "query_cache_size",
                str(engine.query_cache_size),
                "statements are compiled anew again and again",
                "leave it at its default of 500, or make it larger than the number of different statements",
                Severity.MEDIUM,
            )
        if not engine.reset_on_return and engine.isolation_level.upper() != "AUTOCOMMIT" and pooled:
            yield (
                "pool_reset_on_return",
                "None",
                "a connection comes back with its transaction and locks still open",
                'pool_reset_on_return="rollback", the default',
                Severity.HIGH,
            )
        if not context["in_production"]:
            return
        if engine.echo:
            yield (
                "echo",
                "True",
                "every statement is written to the log, with its values",
                "echo=False; the logger sqlalchemy.engine can be turned up when it is needed",
                Severity.MEDIUM,
            )
        remote = not engine.dialect.startswith("sqlite+")
        if pooled and remote and not engine.pre_ping and engine.recycle_seconds < 0:
            yield (
                "pool_pre_ping",
                "False",
                "after a failover or a firewall's time-out each dead connection costs a request an error",
                "pool_pre_ping=True (one round trip a checkout), or pool_recycle=1800",
                Severity.LOW,
            )
        if pooled and engine.max_overflow < 0:
            yield (
                "max_overflow",
                "-1",
                "the pool has no limit: a peak opens connections until PostgreSQL refuses them for everybody",
                "a limit: pool_size + max_overflow, times the number of processes, below max_connections",
                Severity.MEDIUM,
            )

    @staticmethod
    def _too_many(engine: EngineConfiguration) -> Iterator[tuple[str, str, str, str, Severity]]:
        """Yield what is wrong with the pool where all workers' together are larger than the server."""
        if engine.pool not in ("QueuePool", "AsyncAdaptedQueuePool"):
            return
        share = max(1, engine.max_connections // engine.workers)
        if engine.max_overflow < 0:
            most = "any number of"
        elif engine.workers * (engine.pool_size + engine.max_overflow) > engine.max_connections:
            most = str(engine.workers * (engine.pool_size + engine.max_overflow))
        else:
            return
        yield (
            "pool_size",
            f"{engine.pool_size}, max_overflow={engine.max_overflow}",
            f"{engine.workers} workers may open {most} connections, the server has {engine.max_connections} for all",
            f"pool_size + max_overflow of {share} or less for {engine.workers} workers, with room for migrations and "
            "people; or PgBouncer in front of the server",
            Severity.HIGH,
        )

    @staticmethod
    def _finding(
        engine: EngineConfiguration, setting: str, value: str, wrong: str, right: str, severity: Severity
    ) -> Finding:
        return Finding(
            rule=EngineSettings.id,
            target=setting,
            severity=severity,
            message=f"an engine has {setting}={value}: {wrong}",
            location=where(engine.call_site),
            evidence={
                "setting": setting,
                "value": value,
                "dialect": engine.dialect,
                "pool": engine.pool,
                **({"workers": engine.workers, "max_connections": engine.max_connections} if engine.workers else {}),
            },
            suggestion=f"In create_engine(): {right}",
        )
