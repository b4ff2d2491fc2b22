"""Findings as spans of kind INTERNAL, and as events on the request's span.

No span of kind CLIENT: backends count those as calls of the database.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from opentelemetry.context import Context
from opentelemetry.trace import INVALID_SPAN, Span, SpanKind, Tracer, set_span_in_context

from sqla_watch.findings import Finding
from sqla_watch.integrations.opentelemetry import names
from sqla_watch.integrations.opentelemetry.describing import describe_location
from sqla_watch.scopes import Scope


def tell(tracer: Tracer, scope: Scope) -> None:
    """Write what was found in a scope that has just been closed."""
    request: Span = INVALID_SPAN if scope.span is None else scope.span
    above = request.get_span_context()
    if above.is_valid and not above.trace_flags.sampled:
        return
    # Without a span around it a finding is the root of a trace of its own, whatever is current where the scope ends.
    context = set_span_in_context(request, Context())
    origin = round(scope.started_at * 1e9) - scope.started
    # The request's span may have begun after the scope, where its instrumentation is inside of ours.
    earliest = getattr(request, "start_time", None) or 0
    for finding in scope.own_findings:
        attributes = attributes_of(finding, scope.name)
        started = max(origin + (finding.started or scope.started), earliest)
        finished = max(origin + (finding.finished or scope.finished), started)
        span = tracer.start_span(
            name_of(finding), context, kind=SpanKind.INTERNAL, attributes=attributes, start_time=started
        )
        span.end(finished)
    tell_request(scope, scope.own_findings)


def tell_request(scope: Scope, findings: Iterable[Finding]) -> None:
    """Write findings of a scope as events on the span of its request, each once, as long as that lasts."""
    request = scope.span
    if request is None or not request.is_recording():
        return
    for finding in findings:
        if finding.key not in scope.told:
            scope.told |= {finding.key}
            request.add_event(name_of(finding), attributes_of(finding, scope.name))


def name_of(finding: Finding) -> str:
    """Return the name of a finding's span and event."""
    return f"sqla_watch.{finding.rule.replace('-', '_')}"


def attributes_of(finding: Finding, scope: str) -> dict[str, Any]:
    """Return a finding as attributes."""
    attributes: dict[str, Any] = {
        names.RULE: finding.rule,
        names.SEVERITY: str(finding.severity),
        names.TARGET: finding.target,
        names.SCOPE: scope,
        names.MESSAGE: finding.message,
        names.SUGGESTION: finding.suggestion,
        names.STATEMENT: finding.statement,
        names.STATEMENTS: finding.statements,
        names.DATABASE_SECONDS: finding.database_seconds,
        names.RELATED: [
            f"{related.role} at {related.location.file}:{related.location.line}" for related in finding.related
        ],
        **describe_location(finding.location),
    }
    attributes.update((f"{names.EVIDENCE}.{name}", value) for name, value in finding.evidence.items())
    return {name: value for name, value in attributes.items() if value not in ("", [])}
