"""What the rules about the pool say of those who had its connections."""

from __future__ import annotations

from sqla_watch.activities import doing_of_holder
from sqla_watch.detectors._rule import short, where
from sqla_watch.facts import CallSite, Holder, HolderState, Wait
from sqla_watch.findings import Location, RelatedLocation

MOST_NAMED = 3
"""Lines that a finding names; the note of a time-out has them all."""

_IDLE = (HolderState.IDLE, HolderState.IDLE_IN_TRANSACTION)
_BLAME = {
    HolderState.LEFT: 0,
    HolderState.IDLE_IN_TRANSACTION: 1,
    HolderState.IDLE: 1,
    HolderState.WORKING: 2,
    HolderState.WAITING: 3,
}
"""Whom to name first: who will never return it, who does nothing with it, who uses it, who waits like the others."""


def limit_of(wait: Wait) -> int:
    """Return how many connections the pool has at most."""
    return wait.pool_size + max(wait.max_overflow, 0)


def evidence_of(wait: Wait) -> dict[str, int | float | str | bool]:
    """Return the numbers of the pool and of the holders."""
    return {
        "pool_size": wait.pool_size,
        "max_overflow": wait.max_overflow,
        "holders": len(wait.holders),
        "holders_in_transaction": sum(holder.in_transaction for holder in wait.holders),
        "holders_working": sum(holder.state is HolderState.WORKING for holder in wait.holders),
        "holders_left": sum(holder.state is HolderState.LEFT for holder in wait.holders),
    }


def culprits(wait: Wait, without: Location | None = None) -> tuple[tuple[RelatedLocation, ...], str]:
    """Return the lines of those who had the connections, those first who are most to blame; and the first in words.

    Those that are at the line `without`, and of the same kind as who waited, are left out.
    """
    moment = wait.started + wait.nanoseconds
    by_line: dict[tuple[Location, HolderState], list[Holder]] = {}
    for holder in sorted(wait.holders, key=lambda each: (_BLAME[each.state], each.since)):
        place = where(_site(holder))
        if place is not None and (without is None or without not in (place, where(holder.taken))):
            by_line.setdefault((place, holder.state), []).append(holder)
    named = list(by_line.items())[:MOST_NAMED]
    related = [RelatedLocation(_words(holders, moment), place) for (place, _), holders in named]
    words = "".join(f"; {each.role} at {short(each.location)}" for each in related[:1])
    return tuple(related), words


def _site(holder: Holder) -> CallSite | None:
    """Return the line to name: that which took it where its function is over, else where its owner is."""
    return holder.taken if _is_taken_elsewhere(holder) else holder.activity.call_site


def _is_taken_elsewhere(holder: Holder) -> bool:
    return holder.taken_is_over and not holder.in_unit and holder.taken is not None and holder.state in _IDLE


def _words(holders: list[Holder], moment: int) -> str:
    """Say of holders at one line: `2 held for 0.4 s by then, idle in transaction, in requests.post`."""
    first = holders[0]
    count = f"{len(holders)} " if len(holders) > 1 else ""
    what = doing_of_holder(first)
    scope = f" ({first.scope})" if first.scope else ""
    doing = f", {what}" if what else ""
    if _is_taken_elsewhere(first):
        doing += f" at {short(where(first.activity.call_site))}, taken"
    elif first.taken_is_over and first.state in _IDLE:
        doing += f", taken at {short(where(first.taken))}"
    return f"{count}held for {(moment - first.since) / 1e9:.1f} s by then, {first.state}{doing}{scope}"
