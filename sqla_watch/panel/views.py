"""What a page shows, as texts: scopes that were read go in; rows, facts and findings for the templates come out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqla_watch.panel.entry import Entry, FoundEntry, Summary
from sqla_watch.panel.highlighting import Highlighter
from sqla_watch.panel.waterfall import UsedText, Waterfall, draw
from sqla_watch.reporters.text import count, duration, moment, number, percent

__all__ = ["BLANK", "ListRow", "row_of", "view_of"]

MOST_TEXTS = 30
"""Different statements of a waterfall that are listed and coloured; the further ones are there when asked for."""


@dataclass(frozen=True, slots=True)
class ListRow:
    """A scope in a list, as texts."""

    key: str
    href: str
    iso: str
    clock: str
    method: str
    name: str
    failed: str
    status: str
    tone: str
    took: str
    share: str
    """Percent, at most 100."""
    percent: str
    statements: str
    errors: str
    rows: str
    high: int
    medium: int
    low: int


BLANK = ListRow("", "#", "", "", "", "", "", "", "", "", "0", "", "", "", "", 0, 0, 0)
"""What the script makes the rows of new requests of."""


def row_of(summary: Summary, *, href: str, key: str = "") -> ListRow:
    """Return a scope as a row.

    Args:
        summary: The scope.
        href: Where it is shown whole.
        key: What tells it from all others, also from those of another process.
    """
    request = summary.request
    started = moment(summary.started_at)
    share = summary.database_seconds / summary.duration_seconds if summary.duration_seconds else 0.0
    return ListRow(
        key=key,
        href=href,
        iso=started.isoformat(timespec="milliseconds"),
        clock=f"{started:%H:%M:%S}",
        method=request.method if request else "",
        name=request.route if request else summary.name,
        failed="failed" if request and request.failed else "",
        status=(str(request.status) if request.status else "no response") if request else "",
        tone=f"tone{request.status // 100}" if request else "",
        took=duration(summary.duration_seconds),
        share=f"{min(share, 1.0) * 100:.3g}",
        percent=percent(share),
        statements=number(summary.statements),
        errors=f"{number(summary.errors)} failed" if summary.errors else "",
        rows=number(summary.rows),
        high=summary.high,
        medium=summary.medium,
        low=summary.low,
    )


def view_of(entry: Entry, highlighter: Highlighter, *, href: str = "") -> dict[str, Any]:
    """Return a scope as a template takes it that shows it whole.

    Args:
        entry: The scope.
        highlighter: Of the page.
        href: Where it is shown, for a list of such.
    """
    row = row_of(entry.summary, href=href)
    drawn = draw(entry)
    findings = [_found(found, highlighter) for found in entry.findings]
    return {
        "row": row,
        "facts": _facts(entry, row),
        "tags": _tags(entry),
        "findings": findings,
        "findings_left_out": number(entry.findings_left_out) if entry.findings_left_out else "",
        "numbers": _numbers(entry),
        "fall": drawn and _fall(drawn, highlighter),
        "no_fall": _why_no_waterfall(entry),
    }


def _facts(entry: Entry, row: ListRow) -> list[str]:
    summary = entry.summary
    facts = [] if summary.request else [summary.kind]
    facts += [row.took, count(summary.statements, "statement"), count(summary.rows, "row")]
    if summary.duration_seconds and summary.statements:
        facts.append(f"{row.percent} in the database")
    started = moment(summary.started_at)
    return [*facts, f"{started:%Y-%m-%d %H:%M:%S %Z}"]


def _tags(entry: Entry) -> list[dict[str, str]]:
    request = entry.summary.request
    tags = []
    if request and request.failed:
        tags.append(
            {"word": "failed", "title": "An exception left the application, or the response was not sent whole"}
        )
    if request and not request.sampled:
        tags.append({"word": "not sampled", "title": "Kept because it was slow or failed; some facts may be missing"})
    return tags


def _why_no_waterfall(entry: Entry) -> str:
    if entry.timeline_left_out:
        return f"The waterfall was left out: {entry.timeline_left_out}."
    if entry.timeline is not None:
        return "Nothing to draw: no statement, and no wait for a connection."
    return "No timeline was kept, which it is drawn from: Settings(timeline=10_000) has room for 10,000 statements."


def _numbers(entry: Entry) -> list[dict[str, str]]:
    summary = entry.summary
    return [
        {"label": label, "value": value, "more": more}
        for label, value, more, shown in (
            ("Took", duration(summary.duration_seconds), "", True),
            ("In statements", duration(summary.database_seconds), "", True),
            ("COMMIT, ROLLBACK", duration(entry.commit_seconds), "", True),
            ("Waited for the pool", duration(entry.wait_seconds), "", True),
            ("Connections held", duration(entry.held_seconds), "", True),
            ("Connecting", duration(entry.connect_seconds), "", True),
            (
                "Statements",
                number(summary.statements),
                f"{number(summary.errors)} failed" if summary.errors else "",
                True,
            ),
            ("Rows", number(summary.rows), "", True),
            ("Transactions", number(entry.transactions), "", True),
            ("Connections", number(entry.connections), "", True),
            ("Facts left out", number(entry.dropped), "", bool(entry.dropped)),
        )
        if shown
    ]


def _found(found: FoundEntry, highlighter: Highlighter) -> dict[str, Any]:
    advice, _, code = found.suggestion.partition("\n")
    return {
        "severity": found.severity,
        "rule": found.rule,
        "target": found.target,
        "message": found.message,
        "place": found.place,
        "related": found.related,
        "advice": advice,
        "code": code.strip("\n"),
        "evidence": list(_evidence(found)),
        "sql": highlighter(found.statement) if found.statement else "",
    }


def _evidence(found: FoundEntry) -> Iterable[tuple[str, str]]:
    evidence: dict[str, int | float | str | bool] = dict(found.evidence)
    if found.statements:
        evidence.setdefault("statements", found.statements)
        evidence.setdefault("database_seconds", found.database_seconds)
    for key, value in evidence.items():
        label = key.replace("_", " ")
        if isinstance(value, bool):
            yield label, "yes" if value else "no"
        elif isinstance(value, str):
            if value:
                yield label, value
        elif key.endswith("_seconds"):
            yield label.removesuffix(" seconds"), duration(value)
        else:
            yield label, number(value)


_WORDS = {
    "statement": "Statement",
    "commit": "COMMIT, ROLLBACK",
    "transaction": "Transaction",
    "gap": "Idle in transaction",
    "wait": "Wait for a connection",
}


def _fall(drawn: Waterfall, highlighter: Highlighter) -> dict[str, Any]:
    short = {used.number: short_sql(used.text) for used in drawn.texts}
    texts = [_used(used, short, highlighter) for used in drawn.texts[:MOST_TEXTS]]
    further = [_used(used, short, str) for used in drawn.texts[MOST_TEXTS:]]
    return {
        "rows": drawn.rows,
        "ticks": drawn.ticks,
        "short": short,
        "texts": texts,
        "further": further,
        "texts_count": number(len(drawn.texts)),
        "further_count": number(len(further)),
        "legend": [(kind, _WORDS[kind]) for kind in drawn.kinds],
        "left_out": number(drawn.left_out) if drawn.left_out else "",
        "can_fold": any(row.inner for row in drawn.rows),
    }


def _used(used: UsedText, short: Mapping[int, str], highlighter: Callable[[str], str]) -> dict[str, Any]:
    return {
        "number": used.number,
        "short": short[used.number],
        "sql": highlighter(used.text),
        "count": number(used.count),
        "rows": number(used.rows),
        "took": duration(used.seconds),
        "places": used.places,
    }


def short_sql(sql: str) -> str:
    """Return a statement in one line, without the columns of a long SELECT: what tells it from others comes after them.

    >>> short_sql("SELECT orders.id, orders.customer_id, orders.total FROM orders WHERE orders.id = ?")
    'SELECT … FROM orders WHERE orders.id = ?'
    """
    line = " ".join(sql[:2_000].split())
    start = line.upper().find(" FROM ")
    if line[:7].upper() == "SELECT " and start > 30:
        line = f"SELECT …{line[start:]}"
    return line if len(line) <= 160 else f"{line[:160]}…"
