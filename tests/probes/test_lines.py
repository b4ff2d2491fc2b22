"""A statement's line is looked for where it was the last time, and found wherever it is.

One statement, which SQLAlchemy keeps compiled, is sent in all ways that could be taken for one another.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, select, text
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.orm import Session

import sqla_watch
from sqla_watch import callsite
from sqla_watch.callsite import _MOST_CHANGES, location_of, user_code
from sqla_watch.demo.models import Customer
from sqla_watch.probes.internals import executes_plainly
from tests.support import in_event_loop, line_of, watched_async_engine

pytestmark = pytest.mark.filterwarnings("ignore::sqla_watch.SqlaWatchWarning")

QUERY = select(Customer.id).order_by(Customer.id).limit(1)
RAW = text("SELECT 1")


def lines(scope: sqla_watch.Scope) -> list[tuple[int, int]]:
    """The lines that statements were sent from, in order, with how many each has sent."""
    counted: dict[int, int] = {}
    for group in scope.record.groups:
        location = location_of(group.call_site)
        assert location is not None
        assert location.file == __file__
        counted[location.line] = counted.get(location.line, 0) + group.count
    return list(counted.items())


def ask(session: Session) -> Any:
    return session.scalar(QUERY)  # helper


def test_one_statement_of_two_lines_in_turns(engine: Engine) -> None:
    sqla_watch.install(engine)
    with sqla_watch.scope("turns") as scope, Session(engine) as session:
        for _ in range(30):
            session.scalar(QUERY)  # one
            session.scalar(QUERY)  # other
        assert lines(scope) == [(line_of("one"), 30), (line_of("other"), 30)]


def test_only_the_first_time_all_frames_are_gone_through(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[FrameType | None] = []
    locate = callsite.locate

    def note(frame: FrameType | None) -> FrameType | None:
        asked.append(frame)
        return locate(frame)

    sqla_watch.install(engine)
    with sqla_watch.scope("turns") as scope, Session(engine) as session:
        session.scalar(QUERY)  # first
        monkeypatch.setattr(callsite, "locate", note)
        for _ in range(3):
            session.scalar(QUERY)  # second
            session.scalar(QUERY)  # third
        assert not asked
        monkeypatch.undo()
        assert lines(scope) == [(line_of("first"), 1), (line_of("second"), 3), (line_of("third"), 3)]


def test_by_ways_of_other_lengths(engine: Engine) -> None:
    sqla_watch.install(engine)
    with sqla_watch.scope("ways") as scope, Session(engine) as session:
        for _ in range(_MOST_CHANGES + 5):  # more than are learned
            session.scalar(QUERY)  # scalar
            session.execute(QUERY).all()  # execute
            session.scalars(QUERY).all()  # scalars
            session.connection().execute(QUERY).all()  # connection
            ask(session)
        expected = ("scalar", "execute", "scalars", "connection", "helper")
        times = _MOST_CHANGES + 5
        assert lines(scope) == [(line_of(each), times) for each in expected]


def test_a_listener_of_the_users_that_sends_the_same_statement(engine: Engine) -> None:
    sqla_watch.install(engine)
    asking = False

    def listen(state: Any) -> None:
        nonlocal asking
        if not asking:
            asking = True
            state.session.scalar(QUERY)  # listener
            asking = False

    with sqla_watch.scope("listener") as scope, Session(engine) as session:
        session.scalar(QUERY)  # before
        event.listen(session, "do_orm_execute", listen)
        for _ in range(3):
            session.scalar(QUERY)  # after
        assert lines(scope) == [(line_of("before"), 1), (line_of("listener"), 3), (line_of("after"), 3)]


def test_a_session_of_the_users_own_class_in_between(engine: Engine) -> None:
    class Own(Session):
        def execute(self, *arguments: Any, **options: Any) -> Any:
            return super().execute(*arguments, **options)  # own

    sqla_watch.install(engine)
    with sqla_watch.scope("own") as scope, Session(engine) as plain, Own(engine) as own:
        for _ in range(3):
            plain.execute(QUERY).all()  # plain
            own.execute(QUERY).all()
        assert lines(scope) == [(line_of("plain"), 3), (line_of("own"), 3)]


def test_what_counts_as_the_users_may_change(engine: Engine) -> None:
    watch = sqla_watch.install(engine)
    with Session(engine) as session:
        session.scalar(QUERY)
        assert user_code.routes
        with sqla_watch.install(create_engine("sqlite://"), settings=sqla_watch.Settings(user_code=("shop",))):
            assert not user_code.routes
            session.scalar(QUERY)
            assert user_code.routes
    watch.uninstall()


@in_event_loop
async def test_behind_a_greenlet(shop_url: str) -> None:
    async with watched_async_engine(shop_url) as engine:
        with sqla_watch.scope("async") as scope:
            async with engine.connect() as connection:
                for _ in range(3):
                    await connection.execute(RAW)  # awaited
            assert lines(scope) == [(line_of("awaited"), 3)]
            assert set(user_code.routes.values()) == {callsite._NOWHERE}


def test_the_dialects_own_way_of_sending_is_taken_if_it_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []

    def note(send: Callable[..., None]) -> Callable[..., None]:
        def do_execute(*arguments: Any, **options: Any) -> None:
            sent.append(next(each for each in arguments if isinstance(each, str)))
            send(*arguments, **options)

        return do_execute

    plain = create_engine("sqlite://")
    assert executes_plainly(plain.dialect.do_execute)
    assert not executes_plainly(plain.dialect.do_executemany)
    own = create_engine("sqlite://")
    monkeypatch.setattr(own.dialect, "do_execute", note(own.dialect.do_execute))
    patched = create_engine("sqlite://")
    with monkeypatch.context() as patch:
        patch.setattr(DefaultDialect, "do_execute", note(DefaultDialect.do_execute))
        assert not executes_plainly(patched.dialect.do_execute)
        for engine in (own, patched):
            with sqla_watch.install(engine), sqla_watch.scope("sent") as scope, engine.connect() as connection:
                assert connection.scalar(RAW) == 1
            assert scope.statements == 1
    assert sent == ["SELECT 1", "SELECT 1"]


@pytest.mark.parametrize("url", ["postgresql+psycopg://", "postgresql+psycopg2://", "postgresql+asyncpg://"])
def test_the_drivers_for_postgresql_send_plainly(url: str) -> None:
    module = pytest.importorskip(url.removesuffix("://").rpartition("+")[2])
    assert module is not None
    assert executes_plainly(create_engine(url).dialect.do_execute) or "asyncpg" in url
