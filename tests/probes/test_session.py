"""The Session's door: flushes and endings are seen, the application sees nothing, and nothing of it is left."""

from __future__ import annotations

import gc
import inspect
import logging
import os
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, ForeignKey, event, func, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, scoped_session, sessionmaker

import sqla_watch
from sqla_watch import Scope, Settings, Watch
from sqla_watch.demo.models import Order, Rate
from sqla_watch.facts import FlushCause, SessionEvent
from sqla_watch.probes.session import flushing, session_door
from tests.conftest import url_for
from tests.probes.application import DRIVERS, Application, outcome
from tests.support import found, in_event_loop, line_of, only, watched_async_engine

pytestmark = pytest.mark.filterwarnings("ignore::sqla_watch.SqlaWatchWarning")


class Base(DeclarativeBase):
    """Base of the classes here."""


class Shelf(Base):
    __tablename__ = "session_shelves"

    id: Mapped[int] = mapped_column(primary_key=True)
    label: Mapped[str] = mapped_column(unique=True)
    boxes: Mapped[list[Box]] = relationship(back_populates="shelf")


class Box(Base):
    __tablename__ = "session_boxes"

    id: Mapped[int] = mapped_column(primary_key=True)
    weight: Mapped[int] = mapped_column(default=0)
    version: Mapped[int] = mapped_column(default=0)
    shelf_id: Mapped[int | None] = mapped_column(ForeignKey(Shelf.id))
    shelf: Mapped[Shelf | None] = relationship(back_populates="boxes")
    __mapper_args__ = {"version_id_col": version}  # for which each UPDATE is a statement of its own


@pytest.fixture
def shelves(engine: Engine) -> Iterator[Engine]:
    """The engine, with two tables: one box for each of 30 shelves."""
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all(Shelf(label=f"shelf {number}", boxes=[Box()]) for number in range(30))
        session.commit()
    yield engine
    Base.metadata.drop_all(engine)


def flushes(scope: Scope) -> list[tuple[str, int, int]]:
    """Cause, number and statements of the flushes in an open scope, by line."""
    return [(str(each.cause), each.count, each.statements) for each in scope.record.flushes]


# What is seen


@pytest.mark.usefixtures("watch")
def test_each_flush_has_its_cause_and_its_line(shelves: Engine) -> None:
    with sqla_watch.scope("causes") as scope, Session(shelves) as session:
        session.add(Shelf(label="explicit"))
        session.flush()  # explicit
        session.add(Shelf(label="autoflush"))
        session.scalar(select(func.count(Shelf.id)))  # autoflush
        session.add(Shelf(label="savepoint"))
        nested = session.begin_nested()  # savepoint
        session.add(Shelf(label="inside"))
        nested.commit()  # released
        session.add(Shelf(label="commit"))
        session.commit()  # commit
        kept = [(flush.cause, sqla_watch.callsite.location_of(flush.call_site)) for flush in scope.record.flushes]
    assert [(cause, location.line) for cause, location in kept if location is not None] == [
        (FlushCause.EXPLICIT, line_of("explicit")),
        (FlushCause.AUTOFLUSH, line_of("autoflush")),
        (FlushCause.SAVEPOINT, line_of("savepoint")),
        (FlushCause.SAVEPOINT, line_of("released")),
        (FlushCause.COMMIT, line_of("commit")),
    ]


@pytest.mark.usefixtures("watch")
@pytest.mark.parametrize(
    "trigger",
    [
        lambda session: session.query(Shelf).count(),
        lambda session: session.execute(select(Shelf.id).limit(1)).all(),
        lambda session: session.get_one(Order, 1).customer,
        lambda session: session.refresh(session.scalars(select(Shelf).limit(1)).one()),
        lambda session: session.merge(Box(id=1)),
    ],
    ids=["query", "execute", "lazy load", "refresh", "merge"],
)
def test_whatever_makes_a_session_flush_by_itself_is_autoflush(
    shelves: Engine, trigger: Callable[[Session], Any]
) -> None:
    with sqla_watch.scope("autoflush") as scope, Session(shelves) as session:
        session.add(Shelf(label="new"))
        trigger(session)
        assert flushes(scope) == [("autoflush", 1, 1)]
        session.rollback()


@pytest.mark.usefixtures("watch")
def test_a_flush_that_has_nothing_to_send_is_none(shelves: Engine) -> None:
    with sqla_watch.scope("nothing") as scope, Session(shelves) as session:
        shelf = session.scalars(select(Shelf).limit(1)).one()
        label = shelf.label
        for _ in range(12):
            session.flush()
            shelf.label = "other"
            shelf.label = label
            session.flush()
        assert flushes(scope) == []
    assert found(scope) == []


@in_event_loop
async def test_async_flushes_have_their_line_too(shop_url: str) -> None:
    for driver in ("asyncpg", "psycopg"):
        async with watched_async_engine(shop_url, driver) as engine:
            async with engine.begin() as connection:
                await connection.run_sync(Base.metadata.create_all)
            with sqla_watch.scope("async") as scope:
                async with AsyncSession(engine) as session:
                    session.add(Shelf(label="one"))
                    await session.flush()  # awaits the flush
                    session.add(Shelf(label="two"))
                    await session.commit()  # awaits the commit
                kept = [
                    (str(flush.cause), sqla_watch.callsite.location_of(flush.call_site))
                    for flush in scope.record.flushes
                ]
            async with engine.begin() as connection:
                await connection.run_sync(Base.metadata.drop_all)
        assert [(cause, location.line) for cause, location in kept if location is not None] == [
            ("explicit", line_of("awaits the flush")),
            ("commit", line_of("awaits the commit")),
        ]


def test_a_flush_that_failed_does_not_own_the_writes_behind_it(shelves: Engine, watch: Watch) -> None:
    """Twelve rows one by one, after a flush of the same session that told nobody how it ended."""
    with sqla_watch.scope("after a failure") as scope, Session(shelves) as session:
        session.add(Shelf(label="shelf 1"))
        with pytest.raises(IntegrityError):
            session.flush()
        session.rollback()
        for number in range(12):
            session.execute(text("UPDATE session_boxes SET weight = 1 WHERE id = :id"), {"id": number + 1})
        session.rollback()
    assert found(scope) == [("row-by-row-write", "UPDATE session_boxes")]
    assert only(scope).evidence["different_rows"] == 12


@pytest.mark.usefixtures("watch")
def test_a_flush_inside_of_a_flush_leaves_the_outer_one_its_writes(shelves: Engine) -> None:
    """An audit log with a session of its own, in a listener: what SQLAlchemy makes of one flush stays that."""
    with sqla_watch.scope("audited") as scope, Session(shelves) as session:

        @event.listens_for(session, "before_flush")
        def audit(session: Session, context: Any, instances: Any) -> None:
            with Session(shelves) as log:
                log.add(Shelf(label="audit"))
                log.flush()
                log.rollback()

        for box in session.scalars(select(Box)):
            box.weight += 1
        session.flush()  # thirty UPDATEs, for their versions
        assert sorted(flushes(scope)) == [("explicit", 1, 1), ("explicit", 1, 30)]
        session.rollback()
    assert found(scope) == []


@pytest.mark.usefixtures("watch")
def test_sessions_that_flush_in_turns_are_told_apart(shelves: Engine) -> None:
    with sqla_watch.scope("two") as scope, Session(shelves) as one, Session(shelves) as other:
        for number in range(3):
            for session in (one, other):
                session.add(Box(weight=number))
                session.flush()
        assert flushes(scope) == [("explicit", 3, 3), ("explicit", 3, 3)]
        one.rollback()
        other.rollback()


# The application never notices


@pytest.fixture(params=DRIVERS)
def application(request: pytest.FixtureRequest, shop_url: str, tmp_path: Path) -> Iterator[Application]:
    application = Application(request.param, shop_url, tmp_path)
    application.fill()
    yield application
    application.clear()


def test_flushes_that_fail_and_listeners_that_raise_are_as_ever(application: Application) -> None:
    from tests.probes.application import Entry

    class Refused(Exception):
        pass

    def story(connection: Any) -> list[Any]:
        seen: list[Any] = []
        session = Session(connection)

        def refuse(session: Session, context: Any, instances: Any) -> None:
            raise Refused("not today")

        session.add(Entry(id=901, name="new"))
        event.listen(session, "before_flush", refuse)
        seen.append(outcome(session.flush)[:3])
        event.remove(session, "before_flush", refuse)
        session.flush()
        session.add(Entry(id=902))
        nested = session.begin_nested()
        session.add(Entry(id=901))
        seen.append(outcome(session.flush)[1])
        seen.append(outcome(lambda: session.scalar(select(func.count(Entry.id))))[1])
        nested.rollback()
        session.add(Entry(id=903))
        event.listen(session, "after_flush", lambda session, context: refuse(session, context, None))
        seen.append(outcome(session.commit)[:3])
        session.rollback()
        seen.append(session.scalar(select(func.count(Entry.id))))
        session.close()
        return seen

    without = application.run(story, watched=False)[0]
    application.fill()
    assert application.run(story)[0] == without


@pytest.mark.parametrize("watched", [False, True])
def test_sessions_end_in_every_way_as_ever(engine: Engine, watched: bool) -> None:
    if watched:
        sqla_watch.install(engine, settings=Settings(profile="test"))
    closed = []

    class Counted(Session):
        def close(self) -> None:
            closed.append("before")
            super().close()
            closed.append("after")

    session = Counted(engine)
    order = session.get_one(Order, 1)
    assert session.close() is None
    assert order not in session
    session.close()
    with session:
        again = session.get_one(Order, 1)
        assert again is not order
    assert closed == ["before", "after"] * 3
    session.get_one(Order, 1)
    session.reset()
    session.get_one(Order, 1)
    session.invalidate()
    once = Session(engine, close_resets_only=False)
    once.close()
    assert outcome(once.connection)[1].__name__ == "InvalidRequestError"
    registry = scoped_session(sessionmaker(engine))
    registry.get_one(Order, 1)
    registry.close()
    registry.remove()
    with pytest.raises(TypeError):
        session.close("now")  # type: ignore[call-arg]


@in_event_loop
async def test_asynchronous_sessions_end_in_every_way_as_ever(shop_url: str) -> None:
    closed = []

    class Counted(AsyncSession):
        async def close(self) -> None:
            closed.append("before")
            await super().close()
            closed.append("after")

    async with watched_async_engine(shop_url) as engine:
        with sqla_watch.scope("async") as scope:
            session = Counted(engine)
            order = await session.get_one(Order, 1)
            assert await session.close() is None  # type: ignore[func-returns-value]
            assert order not in session
            await session.close()
            async with session:
                assert await session.get_one(Order, 1) is not order
            assert closed == ["before", "after"] * 3
            with pytest.raises(LookupError, match="of the block"):
                async with session:
                    session.add(Rate(country="XX", percent=1))
                    await session.flush()
                    raise LookupError("of the block")
            await session.get_one(Order, 1)
            await session.reset()
            await session.invalidate()
    assert found(scope) == []


def test_what_is_wrapped_looks_like_what_it_wraps(engine: Engine) -> None:
    methods = [(Session, "close"), (AsyncSession, "close"), (AsyncSession, "__aexit__")]

    def seen() -> list[Any]:
        functions = [vars(owner)[name] for owner, name in methods]
        return [
            (
                inspect.signature(each),
                each.__doc__,
                each.__qualname__,
                each.__module__,
                inspect.iscoroutinefunction(each),
            )
            for each in functions
        ]

    before = seen()
    originals = [vars(owner)[name] for owner, name in methods]
    watch = sqla_watch.install(engine)
    assert seen() == before
    assert all(vars(owner)[name] is not original for (owner, name), original in zip(methods, originals, strict=True))
    watch.uninstall()
    assert [vars(owner)[name] for owner, name in methods] == originals


# Installing and uninstalling


def is_listening() -> list[bool]:
    return [event.contains(Session, name, listener) for name, listener in LISTENERS]


LISTENERS = [
    ("before_flush", session_door._before_flush),
    ("after_flush", session_door._after_flush),
    ("after_commit", session_door._after_commit),
]


def test_two_watches_leave_sessions_alone_when_the_last_is_gone(engine: Engine) -> None:
    close = Session.close
    for first_off in (0, 1):
        watches = [sqla_watch.install(engine), sqla_watch.install()]
        assert is_listening() == [True] * 3
        watches.pop(first_off).uninstall()
        assert is_listening() == [True] * 3
        assert Session.close is not close
        watches.pop().uninstall()
        assert is_listening() == [False] * 3
        assert Session.close is close
        assert not session_door.listening


def test_somebody_elses_wrapper_and_listener_stay(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    watch = sqla_watch.install(engine)
    below = Session.close

    def close(self: Session) -> None:
        calls.append("close")
        below(self)

    monkeypatch.setattr(Session, "close", close)
    event.listen(Session, "before_flush", listener := lambda session, context, instances: calls.append("flush"))
    try:
        watch.uninstall()
        assert Session.close is close
        with Session(engine) as session:
            session.add(Rate(country="XX", percent=1))
            session.flush()
            session.rollback()
        assert calls == ["flush", "close"]
    finally:
        event.remove(Session, "before_flush", listener)


def test_a_flush_during_which_the_watch_goes(shelves: Engine) -> None:
    watch = sqla_watch.install(shelves)
    with Session(shelves) as session:

        @event.listens_for(session, "before_flush")
        def gone(session: Session, context: Any, instances: Any) -> None:
            watch.uninstall()

        session.add(Shelf(label="gone"))
        session.flush()
        session.rollback()
    again = sqla_watch.install(shelves, settings=Settings(profile="test"))
    with sqla_watch.scope("again") as scope, Session(shelves) as session:
        session.add(Shelf(label="again"))
        session.flush()
        assert flushes(scope) == [("explicit", 1, 1)]
        session.rollback()
    again.uninstall()


ROOT = str(Path(sqla_watch.__file__).parents[1])


def run(folder: Path, program: str, *arguments: str) -> str:
    """Run a program in a fresh Python; return what it printed."""
    file = folder / "program.py"
    file.write_text(program)
    command = [sys.executable, "-W", "ignore", str(file), *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, cwd=folder, env={**os.environ, "PYTHONPATH": ROOT}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_an_orm_that_is_imported_after_the_watch_began_is_watched(shop_url: str, tmp_path: Path) -> None:
    program = """
import sys
from sqlalchemy import create_engine, func, select
import sqla_watch
engine = create_engine(sys.argv[1])
watch = sqla_watch.install(engine, settings=sqla_watch.Settings(profile="test"))
assert "sqlalchemy.orm" not in sys.modules
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, selectinload
from sqlalchemy.ext.asyncio import AsyncSession
original = Session.close, AsyncSession.close
class Base(DeclarativeBase):
    pass
class Thing(Base):
    __tablename__ = "late_things"
    id: Mapped[int] = mapped_column(primary_key=True)
with sqla_watch.scope("late") as scope, Session(engine) as session:
    Base.metadata.create_all(session.connection())
    for number in range(12):
        session.add(Thing(id=number))
        session.flush()
    session.add(Thing(id=99))
    session.flush()
print(sorted((finding.rule, finding.target) for finding in scope.findings))
print([finding.evidence["flushes"] >= 11 for finding in scope.findings if finding.rule == "flush-storm"])
with sqla_watch.scope("opened by then") as scope:
    session = Session(engine)
    session.add(Thing(id=77))
    session.close()
print([finding.rule for finding in scope.findings])
watch.uninstall()
print((Session.close, AsyncSession.close) == original)
"""
    for url in (url_for(shop_url, "psycopg"), f"sqlite:///{tmp_path / 'late.db'}"):
        assert run(tmp_path, program, url).splitlines() == [
            "[('flush-storm', 'late_things'), ('session-scope', 'unsaved')]",
            "[True]",
            "['session-scope']",
            "True",
        ]


def test_an_application_without_the_orm_gets_none(shop_url: str, tmp_path: Path) -> None:
    program = """
import sys
from sqlalchemy import create_engine, text
import sqla_watch
engine = create_engine(sys.argv[1])
watch = sqla_watch.install(engine, settings=sqla_watch.Settings(profile="test"))
with sqla_watch.scope("core") as scope, engine.connect() as connection:
    for number in range(12):
        connection.execute(text("SELECT name FROM customers WHERE id = :id"), {"id": number})
        connection.execute(text(f"SELECT name FROM products WHERE id = {number}"))
    connection.execute(text("SELECT id FROM items")).first()
print(scope.statements, sorted({finding.rule for finding in scope.findings}))
watch.uninstall()
print([name for name in sys.modules if name.startswith(("sqlalchemy.orm", "sqlalchemy.ext"))])
"""
    assert run(tmp_path, program, url_for(shop_url, "psycopg")).splitlines() == [
        "25 ['query-in-loop', 'uncached-statement', 'unread-rows']",
        "[]",
    ]


def test_in_production_findings_are_logged_in_a_fresh_process(shop_url: str, tmp_path: Path) -> None:
    """No module of ours stands in for the standard library's, whatever was imported first."""
    program = """
import logging, sys
import sqla_watch
from sqlalchemy import create_engine, text
logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(name)s %(message)s")
engine = create_engine(sys.argv[1], pool_pre_ping=True)
sqla_watch.install(engine, settings=sqla_watch.Settings(profile="production"))
with sqla_watch.scope("request", kind="request"), engine.connect() as connection:
    connection.execute(text("SELECT generate_series(1, 20000) FROM rates WHERE country = 'AT'")).all()
"""
    said = run(tmp_path, program, url_for(shop_url, "psycopg")).splitlines()
    assert said[0].startswith(
        "WARNING sqla_watch program.py:9 in <module>: one statement (SELECT rates) returned 20000"
    )
    assert said[0].endswith("[oversized-result]")


# Memory


def test_nothing_of_sessions_is_kept(shelves: Engine) -> None:
    sqla_watch.install(shelves, settings=Settings(profile="test"))

    def story() -> list[weakref.ref[Any]]:
        session = Session(shelves)
        shelf = Shelf(label="kept?")
        session.add(shelf)
        session.flush()
        box = Box(shelf=shelf)
        session.add(box)
        session.close()
        return [weakref.ref(each) for each in (session, shelf, box)]

    with sqla_watch.scope("open") as scope:
        kept = story()
        gc.collect()
        assert [reference() for reference in kept] == [None] * 3
    assert found(scope) == [("session-scope", "unsaved")]


def test_a_flush_lets_go_of_its_callers_without_the_garbage_collector(shelves: Engine, watch: Watch) -> None:
    """A frame that refers to itself would keep the local names of every function below the flush."""

    class Large:
        pass

    def save(session: Session) -> weakref.ref[Any]:
        large = Large()
        session.add(Shelf(label="let go"))
        session.flush()
        return weakref.ref(large)

    gc.disable()
    try:
        with Session(shelves) as session:
            assert save(session)() is None
            session.rollback()
    finally:
        gc.enable()


def test_a_flush_that_failed_keeps_nothing_either(shelves: Engine, watch: Watch) -> None:
    with Session(shelves) as session:
        session.add(Shelf(label="shelf 1"))
        with pytest.raises(IntegrityError):
            session.flush()
        session.rollback()
    gone = weakref.ref(session)
    del session
    gc.collect()
    assert gone() is None
    flushing.set(None)


# Faults


@pytest.mark.faults
def test_a_fault_among_flushes_is_said_once_and_ends_their_watching(
    shelves: Engine, watch: Watch, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("sqla_watch.probes.session.OpenFlush", lambda *arguments: 1 / 0)
    with caplog.at_level(logging.ERROR, "sqla_watch"), Session(shelves) as session:
        for number in range(3):
            session.add(Shelf(label=f"fault {number}"))
            session.flush()
        assert session.scalar(select(func.count(Shelf.id))) == 33
        session.rollback()
    assert [record.message for record in caplog.records] == [
        "sqla_watch: the probe of sessions failed and is switched off; please report this"
    ]


@pytest.mark.faults
def test_a_fault_at_the_end_of_a_session_is_said_once(
    engine: Engine, watch: Watch, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("sqla_watch.probes.session._before_close", lambda *arguments: 1 / 0)
    with caplog.at_level(logging.ERROR, "sqla_watch"):
        for _ in range(3):
            with Session(engine) as session:
                order = session.get_one(Order, 1)
            assert order not in session
    assert [record.message for record in caplog.records] == [
        "sqla_watch: the probe session failed and is switched off; please report this"
    ]


@pytest.mark.usefixtures("watch")
def test_what_a_session_holds_is_told_only_when_it_is_much(engine: Engine) -> None:
    with sqla_watch.scope("holds") as scope, Session(engine) as session:
        orders = session.scalars(select(Order)).all()
        session.commit()
        assert [use for use in scope.record.sessions if use.event is SessionEvent.HELD] == []
        assert len(orders) == 100
