"""The ASGI middleware: one scope for each request, by the name of its route; application and client never notice."""

from __future__ import annotations

import asyncio
import random
import re
import warnings
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI, HTTPException
from litestar import Litestar, Router, get
from litestar.middleware import DefineMiddleware
from sqlalchemy import Engine, select, text
from sqlalchemy.orm import Session
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

import sqla_watch
from sqla_watch import Budget, FindingRaised, OverBudgetWarning, Scope, Settings, Watch
from sqla_watch.demo.models import Order
from sqla_watch.integrations import _requests
from sqla_watch.integrations.asgi import SqlaWatchMiddleware
from sqla_watch.scopes import current
from tests.integrations.serving import eventually
from tests.support import found, in_event_loop

pytestmark = [
    pytest.mark.filterwarnings("ignore::sqla_watch.SqlaWatchWarning"),
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:litestar"),
]

Messages = list[dict[str, Any]]
SECRET = "kJ8s7Qz0aBcD3eF6"


@pytest.fixture
def scopes(watch: Watch) -> list[Scope]:
    """The scopes that were closed."""
    closed: list[Scope] = []
    watch.settings = Settings(profile="test", rules={"blocking-call": "ignore"})  # it is easier to read
    watch.reporters.append(closed.append)
    return closed


async def call(app: Any, path: str = "/", method: str = "GET", **scope: Any) -> Messages:
    """Send one request, and return the messages of the response."""
    sent: Messages = []
    asked = iter([{"type": "http.request", "body": b"", "more_body": False}])

    async def receive() -> dict[str, Any]:
        for message in asked:
            return message
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Any) -> None:
        sent.append(message)

    await app(http(path, method, **scope), receive, send)
    return sent


def http(path: str = "/", method: str = "GET", **further: Any) -> dict[str, Any]:
    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http"}
    address = {"client": ("10.0.0.1", 5000), "server": ("shop", 80), "root_path": ""}
    return {**scope, **address, "path": path, "raw_path": b"", "query_string": b"", "headers": [], **further}


def answering(engine: Engine | None = None, statements: int = 0, status: int = 200) -> Any:
    """An application without a framework."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        ask(engine, statements)
        await send({"type": "http.response.start", "status": status, "headers": [(b"x-one", b"1")]})
        await send({"type": "http.response.body", "body": b"whole"})

    return app


def ask(engine: Engine | None, times: int = 1) -> None:
    if engine is not None and times:
        with engine.connect() as connection:
            for number in range(times):
                connection.execute(text("SELECT name FROM customers WHERE id = :id"), {"id": number + 1})


# Names


def shop() -> FastAPI:
    """Routers in a router, applications mounted in an application."""
    app, orders, version = FastAPI(), APIRouter(prefix="/orders"), APIRouter(prefix="/v1")
    inner = FastAPI()

    async def answer() -> str:
        return "here"

    orders.add_api_route("/{number}/items", answer)
    version.include_router(orders)
    app.include_router(version)
    app.add_api_route("/plain/{name}", answer)
    inner.add_api_route("/inner/{number}", answer)
    app.mount("/below", inner)
    app.mount("/tenants/{tenant}", inner)
    plain = Starlette(routes=[Route("/starlette/{number}", lambda request: PlainTextResponse("here"))])
    app.mount("/other", plain)
    return app


@get("/items/{number:int}")
async def item(number: int) -> str:
    return "here"


def library() -> Litestar:
    return Litestar([Router("/v1", route_handlers=[item])], openapi_config=None)


@pytest.mark.parametrize(
    ("framework", "path", "status", "name"),
    [
        (shop, "/v1/orders/7/items", 200, "GET /v1/orders/{number}/items"),
        (shop, "/plain/someone", 200, "GET /plain/{name}"),
        (shop, "/below/inner/7", 200, "GET /below/inner/{number}"),
        (shop, f"/tenants/{SECRET}/inner/7", 200, "GET /tenants/{token}/inner/{number}"),
        (shop, "/other/starlette/7", 200, "GET /other/starlette/{number}"),
        (shop, "/plain/someone/", 307, "GET /plain/someone/"),
        (shop, "/nothing/7", 404, "GET /nothing/{number}"),
        (library, "/v1/items/7", 200, "GET /v1/items/{number}"),
        (library, "/v1/nothing/7", 404, "GET /v1/nothing/{number}"),
        (answering, "/any/7", 200, "GET /any/{number}"),
    ],
)
@in_event_loop
async def test_a_request_is_named_by_its_route_else_by_its_path_without_what_is_one_of_many(
    framework: Callable[[], Any], path: str, status: int, name: str, scopes: list[Scope]
) -> None:
    app = SqlaWatchMiddleware(framework())
    assert (await call(app, path))[0]["status"] == status
    assert (await call(app, "/root" + path, root_path="/root"))[0]["status"] == status
    assert [scope.name for scope in scopes] == [name, name]
    assert {scope.kind for scope in scopes} == {"request"}


@in_event_loop
async def test_inside_of_the_framework_it_knows_the_route_too(scopes: list[Scope]) -> None:
    app = shop()
    app.add_middleware(SqlaWatchMiddleware)
    await call(app, "/v1/orders/7/items")
    await call(Litestar([Router("/v1", route_handlers=[item])], middleware=[DefineMiddleware(SqlaWatchMiddleware)]),
               "/v1/items/7")  # fmt: skip
    assert [scope.name for scope in scopes] == ["GET /v1/orders/{number}/items", "GET /v1/items/{number}"]


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("HEAD", "HEAD /plain/{name}"),
        ("PATCH", "PATCH /plain/{name}"),
        ("BREW", "BREW /plain/{name}"),
        ("G\nT", "? /plain/{name}"),
        ("G" * 1000, "? /plain/{name}"),
        ("", "? /plain/{name}"),
    ],
)
@in_event_loop
async def test_a_method_is_shown_if_it_is_a_word(method: str, name: str, scopes: list[Scope]) -> None:
    assert (await call(SqlaWatchMiddleware(shop()), "/plain/a", method))[0]["status"] == 405
    assert [scope.name for scope in scopes] == [name]


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/", "/"),
        ("", "/"),
        ("*", "{token}"),
        ("/orders", "/orders"),
        ("/orders/", "/orders/"),
        ("//orders", "//orders"),
        ("/orders/17", "/orders/{number}"),
        ("/orders/-17/2026-11-22/48.2,16.4", "/orders/{number}/{number}/{number}"),
        ("/x/9f0c1d2e-0000-4000-8000-000000000001", "/x/{uuid}"),
        ("/x/9F0C1D2E000040008000000000000001/y", "/x/{uuid}/y"),
        ("/api/v1/oauth2/callback", "/api/v1/oauth2/callback"),
        ("/v1.2/v2beta1/2fa/sha256", "/v1.2/v2beta1/2fa/sha256"),
        (
            "/getAllCustomerOrders/a-rather-long-title-of-a-page.html",
            "/getAllCustomerOrders/a-rather-long-title-of-a-page.html",
        ),
        ("/über-uns/straße", "/über-uns/straße"),
        ("/.well-known/security.txt", "/.well-known/security.txt"),
        # secrets
        ("/reset/kJ8s7Qz0", "/reset/{token}"),
        ("/join/AB12CD", "/join/{token}"),
        (f"/reset/{SECRET}", "/reset/{token}"),
        ("/reset/eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl", "/reset/{token}"),
        ("/reset/deadbeefcafe", "/reset/{token}"),
        ("/reset/QmFzZSxTaXhUeUZvdXIhQW", "/reset/{token}"),
        ("/reset/" + "a" * 61, "/reset/{token}"),
        ("/users/alice@example.com", "/users/{token}"),
        ("/q/a=b;c=d", "/q/{token}"),
        # hostile
        ("/a\x1b[31m/b", "/a\x1b[31m/b".replace("a\x1b[31m", "{token}")),
        ("/a\nX-Injected: 1", "/{token}"),
        ("/\ud800", "/{token}"),
        ("/\u202egnp.exe", "/{token}"),
        ("/<script>alert(1)</script>", "/{token}/{token}"),
        ("/' OR 1=1 --", "/{token}"),
        ("/" + "x" * 100_000, "/{token}"),
        ("/" + "/".join("a" * 100_000), "/a/a/a/a/a/a/a/a/a/a/a/…"),
        ("/" + "1" * 100_000, "/{number}"),
    ],
)
@in_event_loop
async def test_a_path_without_a_route_shows_words_only(path: str, shown: str, scopes: list[Scope]) -> None:
    await call(SqlaWatchMiddleware(answering()), path)
    assert [scope.name for scope in scopes] == [f"GET {shown}"]
    assert len(scopes[0].name) <= 210


@in_event_loop
async def test_a_scope_of_asgi_with_nothing_in_it_is_served_too(scopes: list[Scope]) -> None:
    sent: Messages = []

    async def send(message: Any) -> None:
        sent.append(message)

    await SqlaWatchMiddleware(answering())({"type": "http"}, None, send)  # type: ignore[arg-type]
    assert len(sent) == 2
    assert [scope.name for scope in scopes] == ["? /"]


# What a scope covers


@in_event_loop
async def test_it_lasts_until_the_last_byte_of_a_stream(engine: Engine, scopes: list[Scope]) -> None:
    def pieces() -> Iterator[str]:
        for _ in range(3):
            ask(engine)
            assert scopes == []
            yield "piece"

    app = Starlette(routes=[Route("/", lambda request: StreamingResponse(pieces()))])
    await call(SqlaWatchMiddleware(app))
    assert [(scope.name, scope.statements) for scope in scopes] == [("GET /", 3)]


@in_event_loop
async def test_background_tasks_are_part_of_it(engine: Engine, scopes: list[Scope]) -> None:
    def answer(request: Any) -> PlainTextResponse:
        return PlainTextResponse("here", background=BackgroundTask(ask, engine, 2))

    await call(SqlaWatchMiddleware(Starlette(routes=[Route("/", answer)])))
    assert [scope.statements for scope in scopes] == [2]


@in_event_loop
async def test_what_a_task_does_after_the_response_is_not_part_of_it(engine: Engine, scopes: list[Scope]) -> None:
    tasks = []

    async def later() -> None:
        await asyncio.sleep(0.01)
        ask(engine)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        tasks.append(asyncio.create_task(later()))
        await answering()(scope, receive, send)

    await call(SqlaWatchMiddleware(app))
    assert [(scope.kind, scope.statements) for scope in scopes] == [("request", 0)]
    await tasks[0]
    assert [(scope.kind, scope.statements) for scope in scopes] == [("request", 0), ("implicit", 1)]


@in_event_loop
async def test_two_requests_in_one_task_after_each_other_do_not_nest(engine: Engine, scopes: list[Scope]) -> None:
    app = SqlaWatchMiddleware(answering(engine, 2))
    await call(app)
    assert current.get() is None
    await call(app)
    assert [(scope.statements, scope.parent) for scope in scopes] == [(2, None)] * 2


@in_event_loop
async def test_inside_of_another_scope_its_numbers_are_also_the_others(engine: Engine, scopes: list[Scope]) -> None:
    with sqla_watch.scope("test of a page") as outer:
        await call(SqlaWatchMiddleware(answering(engine, 3)))
    assert [(scope.name, scope.statements) for scope in scopes] == [("GET /", 3), ("test of a page", 3)]
    assert outer.statements == 3


@in_event_loop
async def test_an_exception_of_the_application_goes_its_way(engine: Engine, scopes: list[Scope]) -> None:
    own = RuntimeError("of the application's own")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        ask(engine)
        raise own

    with pytest.raises(RuntimeError) as raised:
        await call(SqlaWatchMiddleware(app))
    assert raised.value is own
    assert own.__context__ is None
    assert [scope.statements for scope in scopes] == [1]
    assert current.get() is None


@in_event_loop
async def test_a_cancelled_request_ends_its_scope(engine: Engine, scopes: list[Scope]) -> None:
    begun = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        ask(engine)
        begun.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(call(SqlaWatchMiddleware(app)))  # type: ignore[arg-type]
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [scope.statements for scope in scopes] == [1]


@in_event_loop
async def test_500_tasks_have_a_scope_each(engine: Engine, scopes: list[Scope]) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        for _ in range(int(scope["path"][1:]) % 3):
            ask(engine)
            await asyncio.sleep(0)
        await answering()(scope, receive, send)

    watched = SqlaWatchMiddleware(app)
    await asyncio.gather(*(call(watched, f"/{number}") for number in range(500)))
    assert sorted(scope.statements for scope in scopes) == sorted(number % 3 for number in range(500))


@in_event_loop
async def test_lifespan_has_no_scope(engine: Engine, scopes: list[Scope]) -> None:
    seen = []

    async def app(*arguments: Any) -> None:
        seen.append((arguments, current.get()))

    scope, receive, send = {"type": "lifespan"}, object(), object()
    await SqlaWatchMiddleware(app)(scope, receive, send)  # type: ignore[arg-type]
    assert seen == [((scope, receive, send), None)]
    assert scopes == []


def websocket(engine: Engine, *, accepts: bool = True) -> tuple[Any, Callable[[Any], Awaitable[Messages]]]:
    """An application which looks a customer up for each of twenty messages, and what calls it."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        if not accepts:
            await send({"type": "websocket.close", "code": 4000})
            return
        await send({"type": "websocket.accept"})
        for number in range(20):
            await receive()
            with Session(engine) as session:
                session.scalars(select(Order).where(Order.id == number + 1)).one().customer.name
            await send({"type": "websocket.send", "text": str(number)})

    async def run(app: Any) -> Messages:
        sent: Messages = []

        async def receive() -> dict[str, Any]:
            return {"type": "websocket.receive", "text": "next"}

        async def send(message: Any) -> None:
            sent.append(message)

        await app({"type": "websocket", "path": "/chat/7", "root_path": "", "headers": []}, receive, send)
        return sent

    return app, run


@in_event_loop
async def test_a_websocket_has_one_scope_and_a_loop_over_its_messages_is_no_mistake(
    engine: Engine, scopes: list[Scope]
) -> None:
    app, run = websocket(engine)
    assert await run(SqlaWatchMiddleware(app)) == await run(app)
    watched = [scope for scope in scopes if scope.kind == "websocket"]
    assert [(scope.name, scope.statements) for scope in watched] == [("WS /chat/{number}", 40)]
    assert found(watched[0]) == []


@in_event_loop
async def test_a_websocket_has_limits_of_its_own(engine: Engine, scopes: list[Scope]) -> None:
    app, run = websocket(engine)
    small = Budget(max_statements=5)
    await run(SqlaWatchMiddleware(app, default_budget=small))
    await run(SqlaWatchMiddleware(app, budgets={"WS /chat/{number}": small}))
    assert [found(scope) for scope in scopes] == [[], [("over-budget", "WS /chat/{number} statements")]]


# The application never notices


@in_event_loop
async def test_messages_and_callables_pass_as_they_are(scopes: list[Scope]) -> None:
    messages: Messages = [
        {"type": "http.response.debug", "info": {}},
        {"type": "http.response.start", "status": 207, "headers": [(b"A", b"1"), (b"a", b"2")], "trailers": True},
        {"type": "http.response.body", "body": b"\xff", "more_body": True},
        {"type": "http.response.pathsend", "path": "/x"},
        {"type": "http.response.trailers", "headers": []},
        {"type": "of.tomorrow", "x": 1},
        {"no type": "at all"},
    ]
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.extend((scope, receive))
        for message in messages:
            assert await send(message) is None

    sent = []

    async def receive() -> Any:
        return None

    async def send(message: Any) -> None:
        sent.append(message)

    scope = http()
    await SqlaWatchMiddleware(app)(scope, receive, send)
    assert seen[0] is scope
    assert scope == http()
    assert seen[1] is receive
    assert len(sent) == len(messages)
    assert all(mine is theirs for mine, theirs in zip(sent, messages, strict=True))


@in_event_loop
async def test_what_send_raises_reaches_the_application(scopes: list[Scope]) -> None:
    gone = OSError("client is gone")
    caught = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        except OSError as error:
            caught.append(error)

    async def send(message: Any) -> None:
        raise gone

    await SqlaWatchMiddleware(app, server_timing=True)(http(), None, send)  # type: ignore[arg-type]
    assert caught == [gone]
    assert len(scopes) == 1


@pytest.mark.faults
@in_event_loop
async def test_reporters_that_fail_and_a_full_disk_are_nothing_to_the_client(engine: Engine, watch: Watch) -> None:
    def full(scope: Scope) -> None:
        with open("/dev/full", "w") as file:
            file.write(scope.name)

    def failing(scope: Scope) -> None:
        raise ZeroDivisionError

    told: list[Scope] = []
    watch.reporters.extend([failing, full, told.append])
    bare = await call(answering(engine, 1))
    assert await call(SqlaWatchMiddleware(answering(engine, 1))) == bare
    assert [scope.kind for scope in told] == ["implicit", "request"]


@pytest.mark.faults
@in_event_loop
async def test_faults_of_ours_are_nothing_to_the_client(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    app = SqlaWatchMiddleware(shop(), server_timing=True)
    good = await call(SqlaWatchMiddleware(shop()), "/plain/a")

    def broken(*arguments: Any, **options: Any) -> None:
        raise ZeroDivisionError("of ours")

    for name in ("open_scope", "close_scope", "_server_timing"):
        with monkeypatch.context() as patch:
            patch.setattr(_requests, name, broken)
            sent = await call(app, "/plain/a")
            assert [message.get("status") for message in sent] == [200, None]
            assert sent[1] == good[1]
            assert "please report this" in caplog.records[-1].getMessage()
        current.set(None)


@in_event_loop
async def test_a_route_that_cannot_be_read_costs_only_the_name(
    scopes: list[Scope], caplog: pytest.LogCaptureFixture
) -> None:
    class Odd:
        original_route = path = 7

        @property
        def path_format(self) -> str:
            raise KeyError("not like this")

    await call(SqlaWatchMiddleware(answering()), "/a/7", route=Odd())
    await call(SqlaWatchMiddleware(answering()), "/b/7", route=object(), fastapi="text")
    await call(SqlaWatchMiddleware(answering()), "/c/7", path_template=7, endpoint=None)
    assert [scope.name for scope in scopes] == ["GET /a/{number}", "GET /b/{number}", "GET /c/{number}"]


test_a_route_that_cannot_be_read_costs_only_the_name = pytest.mark.faults(
    test_a_route_that_cannot_be_read_costs_only_the_name
)


def n_plus_one(engine: Engine) -> None:
    with Session(engine) as session:
        for order in session.scalars(select(Order).order_by(Order.id).limit(4)):
            order.customer.name


@in_event_loop
async def test_raise_in_a_statement_is_the_applications_to_handle(engine: Engine, watch: Watch) -> None:
    watch.settings = Settings(profile="test", rules={"n-plus-one": "raise"})

    async def handles(scope: Any, receive: Any, send: Any) -> None:
        with pytest.raises(FindingRaised):
            n_plus_one(engine)
        await answering(status=418)(scope, receive, send)

    async def does_not(scope: Any, receive: Any, send: Any) -> None:
        n_plus_one(engine)

    assert (await call(SqlaWatchMiddleware(handles)))[0]["status"] == 418
    with pytest.raises(FindingRaised, match=r"Order\.customer"):
        await call(SqlaWatchMiddleware(does_not))


def raising(profile: str) -> Settings:
    return Settings(profile=profile, rules={"over-budget": "raise"})


@pytest.mark.parametrize("profile", ["development", "production"])
@in_event_loop
async def test_raise_at_the_end_of_a_request_is_a_warning_because_the_response_has_been_sent(
    profile: str, engine: Engine, watch: Watch
) -> None:
    watch.settings = raising(profile)
    app = SqlaWatchMiddleware(answering(engine, 3), default_budget=Budget(max_statements=2))
    with pytest.warns(OverBudgetWarning, match="GET / sent statements: 3, and its budget is 2"):
        sent = await call(app)
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]


@in_event_loop
async def test_in_the_profile_of_tests_it_raises_for_the_test_client_to_see(engine: Engine, watch: Watch) -> None:
    watch.settings = raising("test")
    app = SqlaWatchMiddleware(answering(engine, 3), default_budget=Budget(max_statements=2))
    with pytest.raises(FindingRaised, match="GET / sent statements: 3, and its budget is 2"):
        await call(app)
    assert current.get() is None


@in_event_loop
async def test_where_the_request_failed_its_own_exception_is_the_one_that_is_raised(
    engine: Engine, watch: Watch
) -> None:
    watch.settings = raising("test")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        ask(engine, 3)
        raise HTTPException(400)

    with pytest.raises(HTTPException), pytest.warns(OverBudgetWarning):
        await call(SqlaWatchMiddleware(app, default_budget=Budget(max_statements=2)))


@pytest.mark.parametrize("profile", ["development", "test"])
@in_event_loop
async def test_warnings_that_are_made_errors_fail_no_request_but_in_tests(
    profile: str, engine: Engine, watch: Watch, caplog: pytest.LogCaptureFixture
) -> None:
    watch.settings = Settings(profile=profile, rules={"blocking-call": "ignore"})
    app = SqlaWatchMiddleware(answering(engine, 3), default_budget=Budget(max_statements=2))
    with warnings.catch_warnings():
        warnings.simplefilter("error", OverBudgetWarning)
        if profile == "test":
            with pytest.raises(OverBudgetWarning):
                await call(app)
        else:
            assert (await call(app))[0]["status"] == 200
    assert "its budget is 2" in caplog.text


# Server-Timing


def parse_server_timing(header: str) -> list[tuple[str, dict[str, str]]]:
    """Parse the header as https://www.w3.org/TR/server-timing/ says: metrics with parameters, tokens or quoted."""
    token, quoted = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+", r'"(?:[\t \x21\x23-\x5b\x5d-\x7e]|\\[\t \x21-\x7e])*"'
    parameter = rf"\s*;\s*({token})\s*=\s*({token}|{quoted})"
    metrics = []
    for metric in re.findall(rf"\s*({token}(?:{parameter})*)\s*(?:,|\Z)", header):
        name = re.match(token, metric[0])
        assert name is not None
        metrics.append((name[0], {key: value.strip('"') for key, value in re.findall(parameter, metric[0])}))
    rest = re.sub(rf"\s*{token}(?:{parameter})*\s*(?:,|\Z)", "", header)
    assert rest == "", f"this cannot be parsed: {rest}"
    return metrics


@in_event_loop
async def test_server_timing_has_the_numbers_so_far(engine: Engine, scopes: list[Scope]) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        with engine.begin() as connection:
            connection.execute(text("SELECT pg_sleep(0.02)"))
            connection.execute(text("SELECT 1"))
        await answering()(scope, receive, send)
        ask(engine)

    sent = await call(SqlaWatchMiddleware(app, server_timing=True))
    assert sent[0]["headers"][0] == (b"x-one", b"1")
    name, value = sent[0]["headers"][1]
    assert name == b"server-timing"
    metrics = dict(parse_server_timing(value.decode("ascii")))
    assert metrics["db"]["desc"] == "2 statements"
    assert 20 <= float(metrics["db"]["dur"]) <= scopes[0].database_seconds * 1e3 + 0.1
    assert 0 <= float(metrics["db_commit"]["dur"]) <= scopes[0].commit_seconds * 1e3 + 0.1
    assert "db_wait" not in metrics
    assert sent[1:] == (await call(answering()))[1:]
    assert scopes[0].statements == 3


@in_event_loop
async def test_server_timing_is_beside_the_applications_own(engine: Engine, scopes: list[Scope]) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        ask(engine)
        headers = ((name, value) for name, value in [(b"server-timing", b"app;dur=1")])  # any iterable may be sent
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.start", "status": 200})

    sent = await call(SqlaWatchMiddleware(app, server_timing=True))
    own, ours = sent[0]["headers"]
    assert own == (b"server-timing", b"app;dur=1")
    assert parse_server_timing(ours[1].decode())[0][1]["desc"] == "1 statement"
    assert [name for name, _ in sent[1]["headers"]] == [b"server-timing"]


@in_event_loop
async def test_without_it_nothing_is_added(engine: Engine, scopes: list[Scope]) -> None:
    assert await call(SqlaWatchMiddleware(answering(engine, 2))) == await call(answering())
    unsampled = SqlaWatchMiddleware(answering(engine, 2), server_timing=True, sample_rate=0)
    assert await call(unsampled) == await call(answering())


# Sampling


@in_event_loop
async def test_of_a_half_sample_half_is_watched(engine: Engine, scopes: list[Scope]) -> None:
    app = SqlaWatchMiddleware(answering(engine, 1), sample_rate=0.5)
    _requests._randomly.seed(7)
    random.seed(7)
    before = random.getstate()
    for _ in range(400):
        await call(app)
    assert 160 <= len(scopes) <= 240  # four standard deviations
    assert all((scope.kind, scope.statements) == ("request", 1) for scope in scopes)
    assert random.getstate() == before, "the application's own random numbers have changed"


@in_event_loop
async def test_what_is_not_in_the_sample_makes_no_scope_at_all(engine: Engine, scopes: list[Scope]) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        ask(engine)
        await asyncio.to_thread(ask, engine)
        await asyncio.create_task(asyncio.to_thread(ask, engine))
        n_plus_one(engine)
        assert sqla_watch.current_scope() is None
        await answering()(scope, receive, send)

    await call(SqlaWatchMiddleware(app, sample_rate=0))
    assert scopes == []
    assert current.get() is None
    ask(engine)
    assert [scope.kind for scope in scopes] == ["implicit"]


@in_event_loop
async def test_nor_does_what_is_told_without_a_statement(engine: Engine, scopes: list[Scope]) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        with Session(engine) as session:
            session.scalars(select(Order).limit(1)).one().status = "forgotten"
        await answering()(scope, receive, send)

    await call(SqlaWatchMiddleware(app, sample_rate=0))
    assert scopes == []


@in_event_loop
async def test_with_the_rate_1_all_are_watched(engine: Engine, scopes: list[Scope]) -> None:
    app = SqlaWatchMiddleware(answering(engine, 1), sample_rate=1)
    for _ in range(50):
        await call(app)
    assert len(scopes) == 50


@in_event_loop
async def test_the_slow_and_the_failed_of_the_others_are_told_without_statements(
    engine: Engine, scopes: list[Scope]
) -> None:
    async def slow(scope: Any, receive: Any, send: Any) -> None:
        ask(engine, 5)
        await asyncio.sleep(0.05)
        await answering()(scope, receive, send)

    async def fails(scope: Any, receive: Any, send: Any) -> None:
        raise KeyError

    options: dict[str, Any] = {"sample_rate": 0, "slow_seconds": 0.05, "default_budget": Budget(max_statements=0)}
    await call(SqlaWatchMiddleware(slow, **options), "/slow")
    await call(SqlaWatchMiddleware(answering(engine, 5, status=503), **options), "/status")
    with pytest.raises(KeyError):
        await call(SqlaWatchMiddleware(fails, **options), "/fails")
    await call(SqlaWatchMiddleware(answering(engine, 5, status=404), **options), "/not-found")
    assert [(scope.name, scope.statements, scope.findings) for scope in scopes] == [
        ("GET /slow", 0, []),
        ("GET /status", 0, []),
        ("GET /fails", 0, []),
    ]
    assert all(scope.settings is sqla_watch.registry.active_settings() for scope in scopes)
    assert 0.05 <= scopes[0].duration_seconds < 5
    assert scopes[0].to_dict()["started_at"] <= scopes[1].to_dict()["started_at"] - 0.04


@in_event_loop
async def test_a_websocket_that_lasts_is_not_slow(engine: Engine, scopes: list[Scope]) -> None:
    app, run = websocket(engine)
    await run(SqlaWatchMiddleware(app, sample_rate=0, slow_seconds=0))
    assert scopes == []


@in_event_loop
async def test_a_scope_of_the_applications_own_is_watched_in_any_request(engine: Engine, scopes: list[Scope]) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        with sqla_watch.scope("always"):
            ask(engine)
        ask(engine)
        await answering()(scope, receive, send)

    await call(SqlaWatchMiddleware(app, sample_rate=0))
    assert [(scope.name, scope.statements) for scope in scopes] == [("always", 1)]


# What is told beside the scope


@in_event_loop
async def test_status_route_and_outcome_are_those_of_the_response(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, scopes: list[Scope]
) -> None:
    told: list[dict[str, Any]] = []

    def show(self: Any, scope: Scope, error: BaseException | None, *, sampled: bool) -> None:
        told.append(self._facts(error, sampled=sampled))

    monkeypatch.setattr(_requests.Request, "_show", show)

    async def fails(scope: Any, receive: Any, send: Any) -> None:
        raise KeyError

    async def breaks(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 206, "headers": []})
        raise KeyError

    await call(SqlaWatchMiddleware(shop()), "/plain/a")
    await call(SqlaWatchMiddleware(answering(status=404)), "/b/7")
    await call(SqlaWatchMiddleware(answering(status=503), sample_rate=0), "/c")
    for app in (fails, breaks):
        with pytest.raises(KeyError):
            await call(SqlaWatchMiddleware(app), "/d")
    for accepts in (True, False):
        app, run = websocket(engine, accepts=accepts)
        await run(SqlaWatchMiddleware(app))
    assert [(each["method"], each["route"], each["status"], each["failed"], each["sampled"]) for each in told] == [
        ("GET", "/plain/{name}", 200, False, True),
        ("GET", "/b/{number}", 404, False, True),
        ("GET", "/c", 503, True, False),
        ("GET", "/d", 500, True, True),
        ("GET", "/d", 206, True, True),
        ("WS", "/chat/{number}", 101, False, True),
        ("WS", "/chat/{number}", 403, False, True),
    ]


def test_a_connection_that_a_request_leaves_behind_is_told_though_its_caller_goes_on(
    engine: Engine, scopes: list[Scope]
) -> None:
    """Who has called the middleware has nothing to do with the connection: a server's main function runs for ever."""
    left = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        left.append(engine.connect())
        left[0].execute(text("SELECT 1"))

    with pytest.raises(StopIteration):
        SqlaWatchMiddleware(app)(http(), None, None).send(None)  # type: ignore[arg-type]
    (finding,) = eventually(lambda: [each for scope in scopes for each in found(scope) if each[0] == "connection-held"])
    left[0].close()
    assert finding[0] == "connection-held"


# Settings


@in_event_loop
async def test_a_middleware_may_have_settings_of_its_own(engine: Engine, scopes: list[Scope]) -> None:
    strict = Settings(profile="test", rules={"query-in-loop": {"min_values": 2}, "blocking-call": "ignore"})
    await call(SqlaWatchMiddleware(answering(engine, 3), settings=strict))
    await call(SqlaWatchMiddleware(answering(engine, 3), settings=Settings(profile="production")))
    assert [[rule for rule, _ in found(scope)] for scope in scopes] == [["query-in-loop"], []]
