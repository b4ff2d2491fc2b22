"""Budgets say what they cannot be, and so do the options of the middlewares; each route is judged by its own."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import Engine, text

import sqla_watch
from sqla_watch import Budget, Scope, Settings, SettingsError, Watch
from sqla_watch.integrations import asgi, wsgi
from tests.support import found

pytestmark = pytest.mark.filterwarnings("ignore::sqla_watch.SqlaWatchWarning")


def app(*arguments: Any) -> Any:
    raise AssertionError("is not called")


def test_a_budget_knows_the_limits_that_were_given() -> None:
    assert Budget(max_statements=10, max_database_seconds=0.2).limits == {
        "max_statements": 10,
        "max_database_seconds": 0.2,
    }
    assert Budget(max_rows=0).limits == {"max_rows": 0}
    assert Budget(max_wait_seconds=1).limits == {"max_wait_seconds": 1}


def test_a_budget_is_a_value() -> None:
    assert Budget(max_rows=1) == Budget(max_rows=1) != Budget(max_rows=2)
    assert len({Budget(max_rows=1), Budget(max_rows=1)}) == 1
    with pytest.raises(AttributeError):
        Budget(max_rows=1).max_rows = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "Budget() has no limit; give one, as in Budget(max_statements=10)"),
        ({"max_statements": None}, "Budget() has no limit"),
        ({"max_statements": "10"}, "Budget: max_statements is '10' (str), but must be a whole number"),
        ({"max_statements": 2.5}, "Budget: max_statements is 2.5 (float), but must be a whole number"),
        ({"max_rows": True}, "Budget: max_rows is True (bool), but must be a whole number"),
        ({"max_connections": -1}, "Budget: max_connections is -1, but must be 0 or more"),
        ({"max_transactions": [1]}, "Budget: max_transactions is [1] (list), but must be a whole number"),
        ({"max_database_seconds": "fast"}, "max_database_seconds is 'fast' (str), but must be a number of seconds"),
        ({"max_database_seconds": False}, "max_database_seconds is False (bool), but must be a number of seconds"),
        ({"max_wait_seconds": float("nan")}, "Budget: max_wait_seconds is nan, but must be 0 or more"),
        ({"max_wait_seconds": float("inf")}, "Budget: max_wait_seconds is inf, but must be 0 or more"),
    ],
)
def test_what_a_budget_cannot_be_is_said(given: Any, said: str) -> None:
    with pytest.raises(SettingsError) as raised:
        Budget(**given)
    assert said in str(raised.value)


@pytest.mark.parametrize("given", [{"max_statement": 3}, {"statements": 3}])
def test_a_limit_that_there_is_not_is_an_error(given: Any) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        Budget(**given)
    with pytest.raises(TypeError):
        Budget(10)  # type: ignore[misc]


@pytest.mark.parametrize("given", [10, {"max_statements": 10}, "10"])
def test_a_scope_takes_no_other_thing_for_a_budget(given: Any) -> None:
    with pytest.raises(TypeError, match=r"scope\(\) takes budget as sqla_watch\.Budget\(…\), not "):
        sqla_watch.scope("export", budget=given)


@pytest.mark.parametrize("middleware", [asgi.SqlaWatchMiddleware, wsgi.SqlaWatchMiddleware])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"budgets": {"GET /orders": 10}}, "the budget of 'GET /orders' is 10, but must be a Budget(…)"),
        ({"budgets": {"orders": Budget(max_rows=1)}}, "a budget is for 'orders', but must be for a method and a route"),
        ({"budgets": {"get /orders": Budget(max_rows=1)}}, "a budget is for 'get /orders', but must be for a method"),
        (
            {"budgets": {"/orders": Budget(max_rows=1)}},
            "a budget is for '/orders', but must be for a method and a rout",
        ),
        ({"budgets": {"GET orders": Budget(max_rows=1)}}, "a budget is for 'GET orders', but must be for a method and"),
        ({"budgets": {7: Budget(max_rows=1)}}, "a budget is for 7, but must be for a name, as 'GET /orders'"),
        ({"budgets": {"": Budget(max_rows=1)}}, "a budget is for '', but must be for a name, as 'GET /orders'"),
        ({"budgets": Budget(max_rows=1)}, "but must be a mapping of names to Budget(…)"),
        ({"budgets": ["GET /orders"]}, "budgets is ['GET /orders'], but must be a mapping of names to Budget(…)"),
        ({"budgets": 0}, "budgets is 0, but must be a mapping of names to Budget(…)"),
        ({"default_budget": 10}, "default_budget is 10, but must be a Budget(…)"),
        ({"default_budget": {}}, "default_budget is {}, but must be a Budget(…)"),
        ({"sample_rate": 1.5}, "sample_rate is 1.5, but must be from 0 to 1"),
        ({"sample_rate": -0.1}, "sample_rate is -0.1, but must be from 0 to 1"),
        ({"sample_rate": True}, "sample_rate is True, but must be from 0 to 1"),
        ({"sample_rate": "0.5"}, "sample_rate is '0.5', but must be from 0 to 1"),
        ({"sample_rate": float("nan")}, "sample_rate is nan, but must be from 0 to 1"),
        ({"slow_seconds": -1}, "slow_seconds is -1, but must be seconds, 0 or more"),
        ({"slow_seconds": None}, "slow_seconds is None, but must be seconds, 0 or more"),
        ({"settings": {"profile": "test"}}, "settings is {'profile': 'test'}, but must be sqla_watch.Settings(…)"),
        ({"panel_token": "x" * 20}, "panel_token is given, but panel is not"),
    ],
)
def test_what_an_option_of_a_middleware_cannot_be_is_said(middleware: Any, options: Any, said: str) -> None:
    with pytest.raises(SettingsError) as raised:
        middleware(app, **options)
    assert str(raised.value).startswith("SqlaWatchMiddleware: ")
    assert said in str(raised.value)


@pytest.mark.parametrize("middleware", [asgi.SqlaWatchMiddleware, wsgi.SqlaWatchMiddleware])
def test_an_option_that_there_is_not_is_an_error(middleware: Any) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'sample'"):
        middleware(app, sample=0.5)
    with pytest.raises(TypeError):
        middleware(app, {})


@pytest.mark.parametrize("middleware", [asgi.SqlaWatchMiddleware, wsgi.SqlaWatchMiddleware])
def test_what_options_can_be(middleware: Any) -> None:
    middleware(app)
    middleware(app, budgets=None, default_budget=None, sample_rate=0, slow_seconds=0)
    middleware(app, sample_rate=1, slow_seconds=float("inf"), settings=Settings())
    middleware(app, budgets={"GET /": Budget(max_rows=1), "WS /chat": Budget(max_rows=1), "? /": Budget(max_rows=1)})


def test_changing_the_mapping_afterwards_changes_nothing(engine: Engine, watch: Watch) -> None:
    closed: list[Scope] = []
    watch.settings = Settings(profile="test", rules={"blocking-call": "ignore", "query-in-loop": "ignore"})
    watch.reporters.append(closed.append)
    budgets = {"GET /orders/{number}": Budget(max_statements=2)}
    watched = asgi.SqlaWatchMiddleware(orders(engine), budgets=budgets, default_budget=Budget(max_rows=4))
    budgets.clear()
    for path in ("/orders/2", "/orders/3", "/items/4", "/items/5"):
        asyncio.run(watched({"type": "http", "method": "GET", "path": path}, no_message, no_answer))
    assert [found(scope) for scope in closed] == [
        [],
        [("over-budget", "GET /orders/{number} statements")],
        [],
        [("over-budget", "GET /items/{number} rows")],
    ]


def orders(engine: Engine) -> Any:
    """An application that sends as many statements as its path says."""

    async def serve(scope: Any, receive: Any, send: Any) -> None:
        with engine.connect() as connection:
            for number in range(int(scope["path"].rpartition("/")[2])):
                connection.execute(text("SELECT name FROM customers WHERE id = :id"), {"id": number + 1}).all()

    return serve


async def no_message() -> Any:
    raise AssertionError


async def no_answer(message: Any) -> None:
    raise AssertionError
