"""install() puts probes on an engine, uninstall() leaves it exactly as it was."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, StaticPool, create_engine, make_url, text
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

import sqla_watch
from sqla_watch import Settings
from tests.conftest import url_for


def everything_of(engine: Engine) -> dict[str, object]:
    """Each attribute that the watch could have touched, by name."""
    seen: dict[str, object] = {"pool class": type(engine.pool), "dialect class": type(engine.dialect)}
    for name, thing in (("engine", engine), ("dialect", engine.dialect), ("pool", engine.pool)):
        for key, value in vars(thing).items():
            seen[f"{name}.{key}"] = value
    for kind in (Engine, Session, type(engine.dialect), type(engine.pool), *type(engine.pool).__mro__[:-1]):
        for key, value in vars(kind).items():
            seen[f"{kind.__name__}.{key}"] = value
    seen["events"] = engine._has_events, engine.dialect._has_events
    return seen


def count(engine: Engine) -> int:
    """How many statements a scope sees of one that is sent."""
    with sqla_watch.scope("count") as scope, engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    return scope.statements


def test_uninstall_leaves_everything_as_it_was(engine: Engine) -> None:
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    before = everything_of(engine)
    watch = sqla_watch.install(engine)
    assert count(engine) == 1
    with Session(engine) as session:
        session.execute(text("SELECT 1"))
        session.commit()
    watch.uninstall()
    assert everything_of(engine) == before
    assert count(engine) == 0


def test_watching_everything_leaves_the_classes_as_they_were(engine: Engine) -> None:
    count(engine)
    before = everything_of(engine)
    sqla_watch.install()
    later = create_engine(engine.url)
    assert (count(engine), count(later)) == (1, 1)
    sqla_watch.uninstall()
    assert (count(engine), count(later)) == (0, 0)
    assert everything_of(engine) == before
    assert "__init__" in vars(Engine)
    assert Engine.__init__.__module__ == "sqlalchemy.engine.base"
    later.dispose()


@pytest.mark.parametrize(
    "options",
    [
        {"echo": False},
        {"echo_pool": False},
        {"hide_parameters": True},
        {"query_cache_size": 10},
        {"logging_name": "shop"},
        {"execution_options": {"isolation_level": "AUTOCOMMIT"}},
        {"pool_size": 2, "max_overflow": 1, "pool_pre_ping": True},
    ],
    ids=lambda options: ",".join(options),
)
def test_every_argument_of_create_engine_is_taken_while_everything_is_watched(
    shop_url: str, options: dict[str, Any]
) -> None:
    """`create_engine` reads from `Engine.__init__` which arguments there are."""
    sqla_watch.install()
    engine = create_engine(url_for(shop_url, "psycopg"), **options)
    assert count(engine) == 1
    with pytest.raises(TypeError, match="Invalid argument"):
        create_engine(url_for(shop_url, "psycopg"), no_such_argument=1)
    engine.dispose()


def test_installing_twice_is_harmless(engine: Engine) -> None:
    first = sqla_watch.install(engine)
    second = sqla_watch.install(engine, settings=Settings(profile="production"))
    assert first is second
    assert first.settings.profile == "production"
    assert count(engine) == 1
    first.uninstall()
    first.uninstall()
    assert not first.installed
    assert count(engine) == 0


def test_two_watches_of_one_engine_come_off_in_any_order(engine: Engine) -> None:
    count(engine)
    before = everything_of(engine)
    of_all, of_one = sqla_watch.install(), sqla_watch.install(engine)
    assert of_all is not of_one
    of_all.uninstall()
    assert count(engine) == 1
    of_one.uninstall()
    assert count(engine) == 0
    assert everything_of(engine) == before


def test_a_view_of_an_engine_is_the_engine(engine: Engine) -> None:
    view = engine.execution_options(isolation_level="AUTOCOMMIT")
    watch = sqla_watch.install(view)
    assert watch.engines == [engine]
    assert (count(engine), count(view)) == (1, 1)
    watch.uninstall()
    assert (count(engine), count(view)) == (0, 0)


def test_an_async_engine_is_watched_by_its_own_name(shop_url: str) -> None:
    async def story() -> None:
        engine = create_async_engine(url_for(shop_url, "asyncpg"))
        watch = sqla_watch.install(engine)
        with sqla_watch.scope("async") as scope:
            async with engine.connect() as connection:
                await connection.execute(text("SELECT 1"))
        assert scope.statements == 1
        watch.uninstall()
        await engine.dispose()

    asyncio.run(story())


def test_dispose_does_not_end_the_watch(engine: Engine) -> None:
    before = everything_of(engine)
    with sqla_watch.install(engine):
        engine.dispose()
        assert count(engine) == 1
    assert type(engine.pool) is before["pool class"]


def other_tool(wrapped: Callable[..., Any]) -> Callable[..., Any]:
    def around(*arguments: Any, **options: Any) -> Any:
        around.calls += 1  # type: ignore[attr-defined]
        return wrapped(*arguments, **options)

    around.calls = 0  # type: ignore[attr-defined]
    return around


def test_it_composes_with_others_who_wrap_the_same_and_comes_off_under_them(engine: Engine) -> None:
    count(engine)
    dialect: Any = engine.dialect
    below = dialect.do_execute = other_tool(dialect.do_execute)
    watch = sqla_watch.install(engine)
    above = dialect.do_execute = other_tool(dialect.do_execute)
    assert count(engine) == 1
    watch.uninstall()
    assert dialect.do_execute is above
    assert count(engine) == 0
    assert below.calls == above.calls == 2  # type: ignore[attr-defined]
    again = sqla_watch.install(engine)
    assert count(engine) == 1
    again.uninstall()
    assert dialect.do_execute is above


def test_it_gives_back_what_somebody_had_wrapped_before(engine: Engine) -> None:
    dialect: Any = engine.dialect
    below = dialect.do_execute = other_tool(dialect.do_execute)
    sqla_watch.install(engine).uninstall()
    assert dialect.do_execute is below


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda engine: str(engine.url), "not str: make one with create_engine() first"),
        (lambda engine: make_url(engine.url), "not URL: make one with create_engine() first"),
        (lambda engine: Session(engine), "not Session: pass session.get_bind()"),
        (lambda engine: sessionmaker(engine), "not sessionmaker: pass the engine it is bound to"),
        (lambda engine: async_sessionmaker(), "not async_sessionmaker: pass the engine it is bound to"),
        (lambda engine: engine.dialect, "not PGDialect_psycopg: or nothing, to watch every engine"),
        (lambda engine: Engine, "not type: or nothing, to watch every engine"),
    ],
)
def test_what_is_no_engine_is_a_type_error_that_helps(
    engine: Engine, make: Callable[[Engine], object], said: str
) -> None:
    with pytest.raises(TypeError) as error:
        sqla_watch.install(make(engine))  # type: ignore[arg-type]
    assert said in str(error.value)


def test_the_password_of_a_url_is_not_in_the_message() -> None:
    with pytest.raises(TypeError) as error:
        sqla_watch.install("postgresql://shop:secret@localhost/shop")  # type: ignore[arg-type]
    assert "secret" not in str(error.value)


def test_settings_that_are_none_are_a_type_error(engine: Engine) -> None:
    with pytest.raises(TypeError, match=r"takes settings as sqla_watch\.Settings"):
        sqla_watch.install(engine, settings={"profile": "test"})  # type: ignore[arg-type]


def test_a_mistake_in_the_settings_installs_nothing(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    before = everything_of(engine)
    monkeypatch.setenv("SQLA_WATCH_PROFILE", "fast")
    with pytest.raises(sqla_watch.SettingsError, match="SQLA_WATCH_PROFILE"):
        sqla_watch.install(engine)
    assert everything_of(engine) == before


def test_an_engine_that_is_gone_is_let_go_of(shop_url: str) -> None:
    watch = sqla_watch.install()
    engine = create_engine(url_for(shop_url, "psycopg"))
    count(engine)
    assert engine in watch.engines
    gone = weakref.ref(engine)
    engine.dispose()
    del engine
    gc.collect()
    assert gone() is None


@pytest.mark.faults
def test_a_probe_that_fails_says_so_once_and_switches_itself_off(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A fault of ours cannot be had otherwise: the function that finds the line is broken on purpose."""
    sqla_watch.install(engine)
    monkeypatch.setattr("sqla_watch.probes.dialect.find_user", lambda *arguments: 1 / 0)
    caplog.set_level(logging.ERROR, "sqla_watch")
    with sqla_watch.scope("fault") as scope, engine.connect() as connection:
        for number in range(3):
            assert connection.scalar(text("SELECT :number"), {"number": number}) == number
    assert scope.statements == 0
    assert [record.message for record in caplog.records] == [
        "sqla_watch: the probe dialect failed and is switched off; please report this"
    ]


@pytest.mark.faults
def test_a_pool_probe_that_fails_does_the_same(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sqla_watch.install(engine)
    monkeypatch.setattr("sqla_watch.probes.pool.Checkout", lambda *arguments: 1 / 0)
    with caplog.at_level(logging.ERROR, "sqla_watch"):
        for _ in range(3):
            count(engine)
    assert [record.message for record in caplog.records] == [
        "sqla_watch: the probe of the pool failed and is switched off; please report this"
    ]


@pytest.mark.faults
def test_so_does_one_of_a_pool_that_gives_one_connection_to_several(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = create_engine("sqlite://", poolclass=StaticPool)
    sqla_watch.install(engine)
    monkeypatch.setattr("sqla_watch.probes.pool.Checkout", lambda *arguments: 1 / 0)
    with caplog.at_level(logging.ERROR, "sqla_watch"), engine.connect(), engine.connect() as connection:
        assert connection.scalar(text("SELECT 1")) == 1
    assert [record.message for record in caplog.records] == [
        "sqla_watch: the probe of the pool failed and is switched off; please report this"
    ]


def test_a_watch_can_be_looked_at(engine: Engine) -> None:
    watch = sqla_watch.install(engine)
    assert repr(engine) in repr(watch)
    assert watch.installed
    watch.uninstall()
    assert repr(watch) == "<Watch of no engine any more>"
    assert repr(sqla_watch.install()) == "<Watch of every engine>"
    assert isinstance(create_async_engine("postgresql+asyncpg://"), AsyncEngine)
