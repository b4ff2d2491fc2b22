"""Tells what a SQLAlchemy application makes PostgreSQL do, which line causes it, and what to change.

Example::

    import sqla_watch

    sqla_watch.install(engine)
    with sqla_watch.scope("nightly export") as scope:
        export(engine)
    for finding in scope.findings:
        print(finding.describe())
"""

from sqla_watch.detectors.column_load_loop import ColumnLoadLoopWarning
from sqla_watch.detectors.database_error import DatabaseErrorWarning
from sqla_watch.detectors.deep_offset import DeepOffsetWarning
from sqla_watch.detectors.large_in_list import LargeInListWarning
from sqla_watch.detectors.limit_without_order_by import LimitWithoutOrderByWarning
from sqla_watch.detectors.long_transaction import LongTransactionWarning
from sqla_watch.detectors.n_plus_one import NPlusOneWarning
from sqla_watch.detectors.oversized_result import OversizedResultWarning
from sqla_watch.detectors.pool_wait import PoolWaitWarning
from sqla_watch.detectors.query_in_loop import QueryInLoopWarning
from sqla_watch.detectors.repeated_query import RepeatedQueryWarning
from sqla_watch.detectors.select_star import SelectStarWarning
from sqla_watch.detectors.slow_query import SlowQueryWarning
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
from sqla_watch.scopes import Scope, current_scope, scope
from sqla_watch.settings import Action, Profile, RuleSettings, Settings, SettingsError

__version__ = "0.1.0"

__all__ = [
    "Action",
    "ColumnLoadLoopWarning",
    "DatabaseErrorWarning",
    "DeepOffsetWarning",
    "Finding",
    "FindingRaised",
    "Ignore",
    "LargeInListWarning",
    "LimitWithoutOrderByWarning",
    "Location",
    "LongTransactionWarning",
    "NPlusOneWarning",
    "OversizedResultWarning",
    "PoolWaitWarning",
    "Profile",
    "QueryInLoopWarning",
    "RelatedLocation",
    "RepeatedQueryWarning",
    "RuleSettings",
    "Scope",
    "SelectStarWarning",
    "Settings",
    "SettingsError",
    "Severity",
    "SlowQueryWarning",
    "SqlaWatchError",
    "SqlaWatchWarning",
    "Watch",
    "__version__",
    "current_scope",
    "ignore",
    "install",
    "scope",
    "uninstall",
    "unused_ignores",
]
