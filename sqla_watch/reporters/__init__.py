"""The reporters: findings flow in, and out to people. One module for each way."""

from __future__ import annotations

from logging import getLogger
from typing import TYPE_CHECKING

from sqla_watch import registry
from sqla_watch.findings import Finding
from sqla_watch.reporters.logging import report as write
from sqla_watch.reporters.warnings import report as warn
from sqla_watch.settings import Action

if TYPE_CHECKING:
    from sqla_watch.scopes import Scope

logger = getLogger("sqla_watch")


def deliver(scope: Scope, findings: list[Finding], *, may_raise: bool) -> list[Finding]:
    """Tell of a closed scope's own findings, each by the action of its rule.

    Args:
        scope: The scope, closed.
        findings: What was found in it, without what scopes inside of it have told already.
        may_raise: Whether an exception may leave: a warning that a filter turned into an error is logged
            where it may not.

    Returns:
        The findings whose action is `raise`.
    """
    for subscriber in registry.subscribers():
        try:
            subscriber(scope)
        except Exception:
            logger.exception("sqla_watch: a reporter failed")
    if not findings:
        return []
    raised = []
    errors: list[Warning] = []
    for finding in findings:
        action = scope.settings.rule(finding.rule).action
        if action is Action.RAISE and may_raise:
            raised.append(finding)
        elif action is Action.LOG:
            write(finding)
        else:
            try:
                warn(finding)
            except Warning as error:
                errors.append(error)
                write(finding)
    if errors and may_raise:
        raise errors[0]
    return raised
