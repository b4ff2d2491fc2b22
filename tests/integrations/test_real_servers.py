"""Real servers: each request has a scope with exactly its own statements, and the client sees what it saw before."""

from __future__ import annotations

import asyncio
import http.client
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import websockets
from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine

import sqla_watch
from sqla_watch import Budget, Scope, Settings
from sqla_watch.integrations.asgi import SqlaWatchMiddleware
from sqla_watch.integrations.wsgi import SqlaWatchMiddleware as WsgiMiddleware
from tests.integrations import serving
from tests.integrations.asgi_service import fastapi_service, litestar_service
from tests.integrations.service import SILENT, assert_each_has_its_own, engines, numbers_of, read, statements_of
from tests.integrations.serving import eventually, get, get_all
from tests.integrations.wsgi_service import flask_service
from tests.support import in_event_loop

pytestmark = [
    pytest.mark.filterwarnings("ignore::sqla_watch.SqlaWatchWarning"),
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:(uvicorn|hypercorn|granian|litestar|websockets)"),
]

MANY = range(500)
FLASK = "tests.integrations.wsgi_service:served_flask()"

Serve = Callable[..., AbstractContextManager[int]]


@pytest.fixture(params=["uvicorn", "hypercorn", "granian"])
def serve(request: pytest.FixtureRequest) -> Serve:
    """A server for ASGI, in a thread."""
    served: Serve = getattr(serving, request.param)
    return served


@pytest.fixture
def databases(shop_url: str) -> Iterator[tuple[Engine, AsyncEngine]]:
    """An engine, and one for the event loop of a server, which disposes of it."""
    engine, async_engine = engines(shop_url)
    yield engine, async_engine
    engine.dispose()


@pytest.fixture
def scopes(databases: tuple[Engine, AsyncEngine]) -> list[Scope]:
    """The scopes that a service of this process has closed; each statement is kept, no rule speaks."""
    closed: list[Scope] = []
    for engine in databases:
        watch = sqla_watch.install(engine, settings=SILENT)
    watch.reporters.append(closed.append)
    return closed


@pytest.mark.parametrize(
    ("server", "framework", "kinds"),
    [
        ("uvicorn", fastapi_service, ("tasks", "threads")),
        ("hypercorn", litestar_service, ("tasks",)),
        ("granian", fastapi_service, ("tasks",)),
    ],
)
def test_500_requests_at_once_never_see_each_others_statements(
    server: str,
    framework: Any,
    kinds: tuple[str, ...],
    databases: tuple[Engine, AsyncEngine],
    scopes: list[Scope],
) -> None:
    with getattr(serving, server)(SqlaWatchMiddleware(framework(*databases), server_timing=True)) as port:
        for kind in kinds:
            scopes.clear()
            answers = get_all(port, [f"/{kind}/{number}" for number in MANY])
            assert [(answer.status, int(answer.body)) for answer in answers] == [(200, number) for number in MANY]
            for number, answer in zip(MANY, answers, strict=True):
                (timing,) = answer.header("server-timing")
                plural = "" if statements_of(number) == 1 else "s"
                assert f'desc="{statements_of(number)} statement{plural}"' in timing
            eventually(lambda: len(scopes) >= len(MANY))
            assert {scope.kind for scope in scopes} == {"request"}
            assert len({scope.name for scope in scopes}) == 1
            assert_each_has_its_own([scope.to_dict() for scope in scopes], MANY)


@pytest.mark.parametrize("workers", ["gthread", "sync"])
def test_gunicorn_too(workers: str, shop_url: str, tmp_path: Path) -> None:
    """Processes that were forked off after the watch was installed; one thread each, or many."""
    report, numbers = tmp_path / "scopes", MANY if workers == "gthread" else MANY[:100]
    options = ["--worker-class", workers, "--preload", "--workers", "2", "--threads", "12" if numbers == MANY else "1"]
    environment = {"SERVICE_DATABASE_URL": shop_url, "SERVICE_REPORT": str(report), "SERVICE_TIMING": "1"}
    with serving.gunicorn(FLASK, *options, **environment) as port:
        answers = get_all(port, [f"/threads/{number}" for number in numbers])
        assert [(answer.status, int(answer.body)) for answer in answers] == [(200, number) for number in numbers]
        for number, answer in zip(numbers, answers, strict=True):
            assert f'desc="{statements_of(number)} statement' in answer.header("server-timing")[0]
        scopes = eventually(lambda: len(found := read(report)) >= len(numbers) and found)
        assert {(scope["kind"], scope["name"]) for scope in scopes} == {("request", "GET /threads/<int:number>")}
        assert_each_has_its_own(scopes, numbers)
        report.unlink()
        for path in ("/stream/5", "/fails/6", "/file"):
            get(port, path)
        with pytest.raises((AssertionError, ValueError)):  # not all of it came
            get(port, "/breaks/4")
        scopes = eventually(lambda: len(found := read(report)) >= 4 and found)
    by_name = {scope["name"]: scope["statements"] for scope in scopes}
    assert by_name == {
        "GET /stream/<int:number>": statements_of(5),
        "GET /fails/<int:number>": statements_of(6),
        "GET /breaks/<int:number>": statements_of(4),
        "GET /file": 0,
    }


def test_a_full_disk_is_nothing_to_gunicorns_clients(shop_url: str) -> None:
    environment = {"SERVICE_DATABASE_URL": shop_url, "SERVICE_REPORT": "/dev/full"}
    with serving.gunicorn(FLASK, **environment) as port:
        for path, body in (("/threads/6", b"6"), ("/stream/1", b"piece\n" * 2)):
            answer = get(port, path)
            assert (answer.status, answer.body) == (200, body)


def test_wsgiref_too(databases: tuple[Engine, AsyncEngine], scopes: list[Scope]) -> None:
    bare = flask_service(databases[0])
    paths = ("/threads/4", "/stream/5", "/fails/6", "/file", "/nothing", "/breaks/3")
    with serving.wsgiref(bare) as port:
        before = [serving.exchange(port, path) for path in paths]
    scopes.clear()
    with serving.wsgiref(WsgiMiddleware(flask_service(databases[0]))) as port:
        after = [serving.exchange(port, path) for path in paths]
        eventually(lambda: len(scopes) == len(paths))
    assert [serving.without_date(raw) for raw in after] == [serving.without_date(raw) for raw in before]
    assert [(scope.name, scope.statements) for scope in scopes] == [
        ("GET /threads/<int:number>", statements_of(4)),
        ("GET /stream/<int:number>", statements_of(5)),
        ("GET /fails/<int:number>", statements_of(6)),
        ("GET /file", 0),
        ("GET /nothing", 0),
        ("GET /breaks/<int:number>", statements_of(3)),
    ]


def test_the_client_gets_the_same_bytes(
    serve: Serve, databases: tuple[Engine, AsyncEngine], scopes: list[Scope]
) -> None:
    requests = [
        ("/threads/4", "GET"), ("/tasks/4", "GET"), ("/tasks/4", "HEAD"), ("/tasks/x", "GET"), ("/tasks/4", "POST"),
        ("/headers", "GET"), ("/stream/3", "GET"), ("/background/3", "GET"), ("/nothing/1", "GET"), ("/fails/2", "GET"),
        ("/nothing/%ff%fe%00", "BREW"), ("/" + "x" * 5_000, "GET"),
    ]  # fmt: skip
    with serve(fastapi_service(*databases)) as port:
        before = [serving.exchange(port, *request) for request in requests]
    scopes.clear()
    with serve(SqlaWatchMiddleware(fastapi_service(*databases))) as port:
        after = [serving.exchange(port, *request) for request in requests]
        eventually(lambda: len(scopes) == len(requests))
    assert [serving.without_date(raw) for raw in after] == [serving.without_date(raw) for raw in before]
    assert sorted((scope.name, scope.statements) for scope in scopes) == sorted([
        ("GET /threads/{number}", 5), ("GET /tasks/{number}", 5), ("HEAD /tasks/{number}", 0),
        ("GET /tasks/{number}", 0), ("POST /tasks/{number}", 0), ("GET /headers", 0), ("GET /stream/{number}", 4),
        ("GET /background/{number}", 4), ("GET /nothing/{number}", 0), ("GET /fails/{number}", 3),
        ("BREW /nothing/{token}", 0), ("GET /{token}", 0),
    ])  # fmt: skip


@pytest.mark.parametrize("framework", [fastapi_service, litestar_service])
def test_a_stream_belongs_to_its_request_up_to_the_last_byte(
    framework: Any, databases: tuple[Engine, AsyncEngine], scopes: list[Scope]
) -> None:
    with serving.uvicorn(SqlaWatchMiddleware(framework(*databases))) as port:
        answers = get_all(port, [f"/stream/{number}" for number in range(100)])
        assert [answer.body for answer in answers] == [b"piece\n" * statements_of(number) for number in range(100)]
        eventually(lambda: len(scopes) >= 100)
    assert_each_has_its_own([scope.to_dict() for scope in scopes], range(100))


def test_background_tasks_belong_to_it_though_the_client_has_its_response(
    serve: Serve, databases: tuple[Engine, AsyncEngine], scopes: list[Scope]
) -> None:
    with serve(SqlaWatchMiddleware(fastapi_service(*databases))) as port:
        assert [answer.body for answer in get_all(port, [f"/background/{number}" for number in range(20)])] == [
            b"sent"
        ] * 20
        eventually(lambda: len(scopes) >= 20)
    assert_each_has_its_own([scope.to_dict() for scope in scopes], range(20))


def test_a_client_that_goes_in_the_middle_of_a_stream_ends_the_scope(
    serve: Serve, databases: tuple[Engine, AsyncEngine], scopes: list[Scope]
) -> None:
    with serve(SqlaWatchMiddleware(fastapi_service(*databases))) as port:
        with socket.create_connection(("127.0.0.1", port), 10) as client:
            client.sendall(b"GET /endless/7 HTTP/1.1\r\nHost: test\r\n\r\n")
            received = 0
            while received < 30_000:
                received += len(client.recv(10_000))
            assert scopes == []
        (scope,) = eventually(lambda: scopes)
        assert scope.name == "GET /endless/{number}"
        assert scope.statements >= 3
        (written,) = scope.to_dict()["timeline"]["texts"]
        assert written.endswith("request_7")
        eventually(lambda: databases[1].sync_engine.pool.checkedout() == 0)
        assert get(port, "/tasks/3").body == b"3"
        eventually(lambda: len(scopes) == 2)
        assert numbers_of(scopes[1].to_dict()) == ({3}, statements_of(3))


@in_event_loop
async def test_websockets_have_one_scope_for_each_connection(
    databases: tuple[Engine, AsyncEngine], scopes: list[Scope]
) -> None:
    app = SqlaWatchMiddleware(fastapi_service(*databases))

    async def chat(port: int, number: int) -> None:
        async with websockets.connect(f"ws://127.0.0.1:{port}/chat/{number}") as connection:
            for _ in range(statements_of(number)):
                await connection.send("hello")
                assert await connection.recv() == "HELLO"
            if number % 2:
                await connection.send("end")

    with serving.uvicorn(app) as port:
        await asyncio.gather(*(chat(port, number) for number in range(40)))
        await asyncio.to_thread(eventually, lambda: len(scopes) >= 40)
    assert {(scope.kind, scope.name) for scope in scopes} == {("websocket", "WS /chat/{number}")}
    assert_each_has_its_own([scope.to_dict() for scope in scopes], range(40))


@pytest.mark.parametrize("kind", ["threads", "stream"])
def test_raise_at_the_end_of_a_request_costs_no_request_on_the_same_connection(
    kind: str, serve: Serve, databases: tuple[Engine, AsyncEngine], scopes: list[Scope]
) -> None:
    """An exception after the response has uvicorn close the connection, on which the next request may be on its way."""
    settings = Settings(rules={**SILENT.rules, "over-budget": "raise"})
    app = SqlaWatchMiddleware(fastapi_service(*databases), default_budget=Budget(max_statements=0), settings=settings)
    with serve(app) as port:
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        for number in range(20):
            client.request("GET", f"/{kind}/{number}")
            response = client.getresponse()
            assert (response.status, len(response.read()) > 0) == (200, True)
        client.close()
        eventually(lambda: len(scopes) == 20)
    assert all([finding.rule for finding in scope.findings] == ["over-budget"] for scope in scopes)
