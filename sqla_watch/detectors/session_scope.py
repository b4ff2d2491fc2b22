from __future__ import annotations

from collections.abc import Iterator

from sqla_watch.detectors._rule import Context, Facts, Found, Rule, where
from sqla_watch.facts import SessionEvent, SessionUse
from sqla_watch.findings import Finding, RelatedLocation, Severity, SqlaWatchWarning


class SessionScopeWarning(SqlaWatchWarning):
    """A session outlived its request, was shared, or lost changes."""


class SessionScope(Rule):
    """A session that does not belong to one unit of work.

    ## What it sees
    Three things. *Outlived*: a transaction that one request (or task, or job) left open and another goes on with.
    *Shared*: two threads or tasks that used the connection of one session at the same moment. *Unsaved*: a session
    that the application's own code closed with new, changed or deleted objects, or with rows already written, that
    were neither committed nor rolled back.

    ## Why it costs
    A session is one conversation with the database. One that goes on from request to request shows each the stale
    objects of the one before, and holds its transaction open in between. One that is shared mixes two conversations
    into one transaction: each commits the other's half-done work. What is closed without a commit is lost without a
    word.

    ## Example
    ```python
    with Session(engine) as session:
        session.add(Rate(country="NO", percent=25))
        session.flush()
    ```

    ## Use instead
    ```python
    with Session(engine) as session:
        session.add(Rate(country="NO", percent=25))
        session.flush()
        session.rollback()  # or commit(): what is meant is said
    ```

    ## Thresholds
    None.

    ## How to silence it
    `with sqla_watch.ignore("session-scope", reason="…"):` or `# sqla-watch: ignore[session-scope]`.

    ## Limits
    Outlived is told in scopes of the kinds request, task and job only. Unsaved is not told where an exception is on
    its way, where a framework or `scoped_session.remove()` closes the session, or where it works on a connection
    that was given to it. Two that share a session and happen never to meet are not seen.
    """

    id = "session-scope"
    guide = (2,)
    warning = SessionScopeWarning
    reads = "sessions"

    def find(self, facts: Facts, context: Context) -> Iterator[Found]:
        """Yield one finding for each cause and line."""
        for use in facts.sessions:
            if use.event is SessionEvent.OUTLIVED:
                yield Found(self._outlived(use), (), use.ignores)
            elif use.event is SessionEvent.SHARED:
                yield Found(self._shared(use), (), use.ignores)
            elif use.event is SessionEvent.UNSAVED:
                yield Found(self._unsaved(use), (), use.ignores)

    @staticmethod
    def _outlived(use: SessionUse) -> Finding:
        return Finding(
            rule=SessionScope.id,
            target="outlived",
            severity=Severity.HIGH,
            message=f"a transaction that was begun in {use.where!r} is still in use here",
            location=where(use.call_site),
            evidence={"cause": "outlived", "begun_in": use.where},
            suggestion=(
                "Give each request a session of its own, and close it at its end:\nwith Session(engine) as session: ..."
            ),
            related=_related("last used there", use),
            statements=1,
        )

    @staticmethod
    def _shared(use: SessionUse) -> Finding:
        return Finding(
            rule=SessionScope.id,
            target="shared",
            severity=Severity.HIGH,
            message="two threads or tasks used the connection of one session at the same moment",
            location=where(use.call_site),
            evidence={"cause": "shared at once"},
            suggestion=(
                "Give each thread or task a session of its own:\n"
                "async with AsyncSession(engine) as session: ...  # inside of the task"
            ),
            related=_related("running then", use),
            statements=2,
        )

    @staticmethod
    def _unsaved(use: SessionUse) -> Finding:
        parts = [
            f"{number} {what}"
            for number, what in (
                (use.new, "new"),
                (use.changed, "changed"),
                (use.deleted, "deleted"),
            )
            if number
        ]
        lost = " and ".join(
            [
                *(
                    [f"{', '.join(parts)} object{'s' if use.new + use.changed + use.deleted > 1 else ''}"]
                    if parts
                    else []
                ),
                *([f"{use.flushed} writing statement{'s' if use.flushed > 1 else ''}"] if use.flushed else []),
            ]
        )
        return Finding(
            rule=SessionScope.id,
            target="unsaved",
            severity=Severity.MEDIUM,
            message=f"a session was closed with {lost} that were neither committed nor rolled back",
            location=where(use.call_site),
            evidence={
                "cause": "unsaved",
                "new": use.new,
                "changed": use.changed,
                "deleted": use.deleted,
                "statements_written": use.flushed,
            },
            suggestion=(
                "Say what is meant: session.commit(), session.rollback(), or\n"
                "with Session(engine) as session, session.begin(): ..."
            ),
            related=_related("written", use),
            statements=use.flushed,
        )


def _related(role: str, use: SessionUse) -> tuple[RelatedLocation, ...]:
    location = where(use.other)
    return () if location is None else (RelatedLocation(role, location),)
