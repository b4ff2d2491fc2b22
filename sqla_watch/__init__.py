"""Tells what a SQLAlchemy application makes PostgreSQL do, which line causes it, and what to change.

Example::

    import sqla_watch

    sqla_watch.install(engine)
    with sqla_watch.scope("nightly export") as scope:
        export(engine)
    for finding in scope.findings:
        print(finding.describe())
"""

import importlib
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqla_watch.budgets import Budget
    from sqla_watch.detectors.async_lazy_load import AsyncLazyLoadWarning
    from sqla_watch.detectors.blocking_call import BlockingCallWarning
    from sqla_watch.detectors.cartesian_join import CartesianJoinWarning
    from sqla_watch.detectors.column_load_loop import ColumnLoadLoopWarning
    from sqla_watch.detectors.connection_held import ConnectionHeldWarning
    from sqla_watch.detectors.database_error import DatabaseErrorWarning
    from sqla_watch.detectors.deep_offset import DeepOffsetWarning
    from sqla_watch.detectors.engine_settings import EngineSettingsWarning
    from sqla_watch.detectors.flush_storm import FlushStormWarning
    from sqla_watch.detectors.idle_in_transaction import IdleInTransactionWarning
    from sqla_watch.detectors.large_identity_map import LargeIdentityMapWarning
    from sqla_watch.detectors.large_in_list import LargeInListWarning
    from sqla_watch.detectors.limit_without_order_by import LimitWithoutOrderByWarning
    from sqla_watch.detectors.long_transaction import LongTransactionWarning
    from sqla_watch.detectors.n_plus_one import NPlusOneWarning
    from sqla_watch.detectors.nested_checkout import NestedCheckoutWarning
    from sqla_watch.detectors.over_budget import OverBudgetWarning
    from sqla_watch.detectors.oversized_result import OversizedResultWarning
    from sqla_watch.detectors.pool_fanout import PoolFanoutWarning
    from sqla_watch.detectors.pool_timeout import PoolTimeoutWarning
    from sqla_watch.detectors.pool_wait import PoolWaitWarning
    from sqla_watch.detectors.query_in_loop import QueryInLoopWarning
    from sqla_watch.detectors.repeated_query import RepeatedQueryWarning
    from sqla_watch.detectors.row_by_row_write import RowByRowWriteWarning
    from sqla_watch.detectors.select_star import SelectStarWarning
    from sqla_watch.detectors.session_scope import SessionScopeWarning
    from sqla_watch.detectors.slow_query import SlowQueryWarning
    from sqla_watch.detectors.uncached_statement import UncachedStatementWarning
    from sqla_watch.detectors.unread_rows import UnreadRowsWarning
    from sqla_watch.detectors.unused_eager_load import UnusedEagerLoadWarning
    from sqla_watch.detectors.wide_rows import WideRowsWarning
    from sqla_watch.findings import (
        Finding,
        FindingRaised,
        Location,
        RelatedLocation,
        Severity,
        SqlaWatchError,
        SqlaWatchWarning,
    )
    from sqla_watch.ignores import Ignore, ignore, unused_ignores
    from sqla_watch.installation import Watch, install, uninstall
    from sqla_watch.scopes import Scope, carry, current_scope, scope
    from sqla_watch.settings import Action, Profile, RuleSettings, Settings, SettingsError
    from sqla_watch.snapshot import OpenConnection, PoolState, Snapshot, dump, dump_on_signal
    from sqla_watch.telemetry import Telemetry

__version__ = "0.1.0"

__all__ = [
    "Action",
    "AsyncLazyLoadWarning",
    "BlockingCallWarning",
    "Budget",
    "CartesianJoinWarning",
    "ColumnLoadLoopWarning",
    "ConnectionHeldWarning",
    "DatabaseErrorWarning",
    "DeepOffsetWarning",
    "EngineSettingsWarning",
    "Finding",
    "FindingRaised",
    "FlushStormWarning",
    "IdleInTransactionWarning",
    "Ignore",
    "LargeIdentityMapWarning",
    "LargeInListWarning",
    "LimitWithoutOrderByWarning",
    "Location",
    "LongTransactionWarning",
    "NPlusOneWarning",
    "NestedCheckoutWarning",
    "OpenConnection",
    "OverBudgetWarning",
    "OversizedResultWarning",
    "PoolFanoutWarning",
    "PoolState",
    "PoolTimeoutWarning",
    "PoolWaitWarning",
    "Profile",
    "QueryInLoopWarning",
    "RelatedLocation",
    "RepeatedQueryWarning",
    "RowByRowWriteWarning",
    "RuleSettings",
    "Scope",
    "SelectStarWarning",
    "SessionScopeWarning",
    "Settings",
    "SettingsError",
    "Severity",
    "SlowQueryWarning",
    "Snapshot",
    "SqlaWatchError",
    "SqlaWatchWarning",
    "Telemetry",
    "UncachedStatementWarning",
    "UnreadRowsWarning",
    "UnusedEagerLoadWarning",
    "Watch",
    "WideRowsWarning",
    "__version__",
    "carry",
    "current_scope",
    "dump",
    "dump_on_signal",
    "ignore",
    "install",
    "scope",
    "uninstall",
    "unused_ignores",
]

_HOMES = {
    "sqla_watch.budgets": ("Budget",),
    "sqla_watch.findings": (
        "Finding",
        "FindingRaised",
        "Location",
        "RelatedLocation",
        "Severity",
        "SqlaWatchError",
        "SqlaWatchWarning",
    ),
    "sqla_watch.ignores": ("Ignore", "ignore", "unused_ignores"),
    "sqla_watch.installation": ("Watch", "install", "uninstall"),
    "sqla_watch.scopes": ("Scope", "carry", "current_scope", "scope"),
    "sqla_watch.settings": ("Action", "Profile", "RuleSettings", "Settings", "SettingsError"),
    "sqla_watch.snapshot": ("OpenConnection", "PoolState", "Snapshot", "dump", "dump_on_signal"),
    "sqla_watch.telemetry": ("Telemetry",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    # Imported when they are asked for, because the pytest plugin, which lies in here, is loaded by every run of pytest
    # where the package is installed, and SQLAlchemy takes half a second.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _HOME_OF.get(name)
    if home is None:  # a rule's warning is in the module of its rule: NPlusOneWarning in n_plus_one
        rule = re.sub(r"(?<!^)(?=[A-Z])", "_", name.removesuffix("Warning")).lower()
        home = f"sqla_watch.detectors.{rule}"
    found = globals()[name] = getattr(importlib.import_module(home), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
