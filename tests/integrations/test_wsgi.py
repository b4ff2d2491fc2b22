"""The WSGI middleware: one scope until the body is closed, by the name of its route; nobody else notices."""

from __future__ import annotations

import gc
import io
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from wsgiref.util import FileWrapper, setup_testing_defaults
from wsgiref.validate import validator

import pytest
from flask import Blueprint, Flask, Response, abort, send_file
from sqlalchemy import Engine, text
from werkzeug.middleware.dispatcher import DispatcherMiddleware

import sqla_watch
from sqla_watch import Budget, FindingRaised, OverBudgetWarning, Scope, Settings, Watch
from sqla_watch.integrations import _requests
from sqla_watch.integrations.wsgi import SqlaWatchMiddleware
from sqla_watch.scopes import current
from tests.support import found

pytestmark = pytest.mark.filterwarnings("ignore::sqla_watch.SqlaWatchWarning")

SECRET = "kJ8s7Qz0aBcD3eF6"
TYPE = [("Content-Type", "text/plain")]


@pytest.fixture
def scopes(watch: Watch) -> list[Scope]:
    """The scopes that were closed."""
    closed: list[Scope] = []
    watch.reporters.append(closed.append)
    return closed


def ask(engine: Engine | None, times: int = 1) -> None:
    if engine is not None and times:
        with engine.connect() as connection:
            for number in range(times):
                connection.execute(text("SELECT name FROM customers WHERE id = :id"), {"id": number + 1})


def environ(path: str = "/", method: str = "GET", **further: Any) -> dict[str, Any]:
    made: dict[str, Any] = {
        "PATH_INFO": path,
        "SCRIPT_NAME": "",
        "REQUEST_METHOD": method,
        "QUERY_STRING": "",
        **further,
    }
    setup_testing_defaults(made)
    return made


class Exchange:
    """One request as a server makes it: what was started, what was written, whether the body was closed."""

    def __init__(self, app: Any, path: str = "/", method: str = "GET", **further: Any) -> None:
        self.started: list[tuple[Any, ...]] = []
        self.written: list[bytes] = []
        self.body = app(environ(path, method, **further), self.start_response)

    def start_response(self, *arguments: Any) -> Callable[[bytes], None]:
        self.started.append(arguments)
        return self.written.append

    def finish(self) -> Exchange:
        try:
            self.written.extend(self.body)
        finally:
            if hasattr(self.body, "close"):
                self.body.close()
        return self

    @property
    def sent(self) -> bytes:
        return b"".join(self.written)


def exchange(app: Any, path: str = "/", method: str = "GET", **further: Any) -> Exchange:
    return Exchange(app, path, method, **further).finish()


def answering(engine: Engine | None = None, statements: int = 0, status: str = "200 OK") -> Any:
    """An application without a framework."""

    def app(environ: Any, start_response: Any) -> list[bytes]:
        ask(engine, statements)
        start_response(status, TYPE)
        return [b"whole"]

    return app


class Pieces:
    """A body that says when it is closed."""

    def __init__(self, pieces: Iterable[bytes], at_end: Callable[[], Any] = lambda: None) -> None:
        self.pieces = pieces
        self.at_end = at_end
        self.closed = 0

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.pieces)

    def close(self) -> None:
        self.closed += 1
        self.at_end()


def with_body(body: Any) -> Any:
    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", TYPE)
        return body

    return app


# Names


def shop() -> Flask:
    app, blueprint = Flask("shop"), Blueprint("v1", __name__, url_prefix="/v1")

    @app.get("/orders/<int:number>")
    @blueprint.get("/items/<path:name>")
    def answer(**values: Any) -> str:
        return "here"

    @app.get("/fails/<int:number>")
    def fails(number: int) -> None:
        raise RuntimeError("of the application's own")

    @app.get("/forbidden")
    def forbidden() -> None:
        abort(403)

    app.register_blueprint(blueprint)
    return app


def mounted() -> Any:
    return DispatcherMiddleware(shop(), {"/below": shop(), f"/{SECRET}": shop()})


@pytest.mark.parametrize(
    ("framework", "path", "status", "name"),
    [
        (shop, "/orders/7", "200 OK", "GET /orders/<int:number>"),
        (shop, "/v1/items/a/b/c", "200 OK", "GET /v1/items/<path:name>"),
        (shop, "/fails/7", "500 INTERNAL SERVER ERROR", "GET /fails/<int:number>"),
        (shop, "/forbidden", "403 FORBIDDEN", "GET /forbidden"),
        (shop, "/nothing/7", "404 NOT FOUND", "GET /nothing/{number}"),
        (mounted, "/orders/7", "200 OK", "GET /orders/<int:number>"),
        (mounted, "/below/orders/7", "200 OK", "GET /below/orders/<int:number>"),
        (mounted, f"/{SECRET}/orders/7", "200 OK", "GET /{token}/orders/<int:number>"),
        (answering, "/any/7", "200 OK", "GET /any/{number}"),
        (answering, f"/reset/{SECRET}", "200 OK", "GET /reset/{token}"),
        (answering, "/\x1b[31m\n/\xff\xfe", "200 OK", "GET /{token}/{token}"),
        (answering, "/über".encode().decode("latin-1"), "200 OK", "GET /über"),
        (answering, "/" + "x" * 100_000, "200 OK", "GET /{token}"),
        (answering, "", "200 OK", "GET /"),
    ],
)
def test_a_request_is_named_by_its_route_else_by_its_path_without_what_is_one_of_many(
    framework: Callable[[], Any], path: str, status: str, name: str, scopes: list[Scope]
) -> None:
    app = SqlaWatchMiddleware(framework())
    assert exchange(app, path).started[0][0] == status
    assert exchange(app, path, SCRIPT_NAME="/root").started[0][0] == status
    assert [scope.name for scope in scopes] == [name, name]


@pytest.mark.parametrize(("method", "name"), [("BREW", "BREW"), ("a b", "?"), ("", "?"), ("X" * 50, "?")])
def test_a_method_is_shown_if_it_is_a_word(method: str, name: str, scopes: list[Scope]) -> None:
    exchange(SqlaWatchMiddleware(answering()), "/a", method)
    assert [scope.name for scope in scopes] == [f"{name} /a"]


def test_where_the_exception_leaves_flask_the_route_is_gone_and_the_path_names_it(scopes: list[Scope]) -> None:
    app = shop()
    app.config["PROPAGATE_EXCEPTIONS"] = True
    with pytest.raises(RuntimeError, match="of the application's own"):
        exchange(SqlaWatchMiddleware(app), "/fails/7")
    assert [scope.name for scope in scopes] == ["GET /fails/{number}"]


def test_bottle_tells_its_routes(scopes: list[Scope]) -> None:
    import bottle

    app = bottle.Bottle()
    app.route("/orders/<number:int>")(lambda number: "here")
    exchange(SqlaWatchMiddleware(app), "/orders/7")
    assert [scope.name for scope in scopes] == ["GET /orders/<number:int>"]


# What a scope covers


def test_a_list_is_sent_as_it_is_and_the_scope_ends_before(engine: Engine, scopes: list[Scope]) -> None:
    body = [b"a", b"b"]
    assert Exchange(SqlaWatchMiddleware(with_body(body))).body is body
    assert [scope.name for scope in scopes] == ["GET /"]
    assert current.get() is None


def test_a_generator_is_in_the_scope_until_it_is_closed(engine: Engine, scopes: list[Scope]) -> None:
    def pieces() -> Iterator[bytes]:
        try:
            for _ in range(3):
                ask(engine)
                yield b"piece"
        finally:
            ask(engine)

    asked = Exchange(SqlaWatchMiddleware(with_body(pieces())))
    assert current.get() is None
    assert [*asked.body] == [b"piece"] * 3
    assert scopes == []
    asked.body.close()
    assert [scope.statements for scope in scopes] == [4]
    assert current.get() is None


def test_an_application_that_is_a_generator_itself_is_in_the_scope(engine: Engine, scopes: list[Scope]) -> None:
    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        ask(engine)
        start_response("202 Accepted", TYPE)
        yield b"a"

    asked = exchange(SqlaWatchMiddleware(app))
    assert (asked.started[0][0], asked.sent) == ("202 Accepted", b"a")
    assert [scope.statements for scope in scopes] == [1]


def test_what_close_does_is_in_the_scope_and_it_is_called_once(engine: Engine, scopes: list[Scope]) -> None:
    body = Pieces([b"a"], lambda: ask(engine, 2))
    exchange(SqlaWatchMiddleware(with_body(body)))
    assert body.closed == 1
    assert [scope.statements for scope in scopes] == [2]


def test_a_client_that_goes_in_the_middle_ends_the_scope(engine: Engine, scopes: list[Scope]) -> None:
    def pieces() -> Iterator[bytes]:
        while True:
            ask(engine)
            yield b"piece"

    asked = Exchange(SqlaWatchMiddleware(with_body(pieces())))
    next(asked.body)
    next(asked.body)
    asked.body.close()  # as a server does then
    assert [scope.statements for scope in scopes] == [2]


def test_a_body_that_nobody_closes_ends_the_scope_when_it_is_let_go(engine: Engine, scopes: list[Scope]) -> None:
    def pieces() -> Iterator[bytes]:
        ask(engine)
        yield b"piece"

    asked = Exchange(SqlaWatchMiddleware(with_body(pieces())))
    assert next(asked.body) == b"piece"
    assert scopes == []
    del asked
    gc.collect()
    assert [scope.statements for scope in scopes] == [1]
    assert current.get() is None


def test_flasks_test_client_is_told_of_each_request(engine: Engine, scopes: list[Scope]) -> None:
    app = Flask("shop")

    @app.get("/orders/<int:number>")
    def orders(number: int) -> str:
        ask(engine, number)
        return "here"

    app.wsgi_app = SqlaWatchMiddleware(app.wsgi_app)  # type: ignore[method-assign]
    client = app.test_client()
    for number in (1, 2, 3):
        response = client.get(f"/orders/{number}")
        assert response.text == "here"
    del response
    gc.collect()
    assert [(scope.name, scope.statements) for scope in scopes] == [
        ("GET /orders/<int:number>", number) for number in (1, 2, 3)
    ]


def test_an_exception_of_the_application_goes_its_way(engine: Engine, scopes: list[Scope]) -> None:
    own = RuntimeError("of the application's own")

    def app(environ: Any, start_response: Any) -> list[bytes]:
        ask(engine)
        raise own

    with pytest.raises(RuntimeError) as raised:
        exchange(SqlaWatchMiddleware(app))
    assert raised.value is own
    assert own.__context__ is None
    assert [scope.statements for scope in scopes] == [1]
    assert current.get() is None


@pytest.mark.parametrize("sample_rate", [1, 0])
def test_an_exception_in_the_middle_of_the_body_too(sample_rate: int, engine: Engine, scopes: list[Scope]) -> None:
    own = RuntimeError("in the middle")

    def pieces() -> Iterator[bytes]:
        yield b"good so far"
        ask(engine)
        raise own

    asked = Exchange(SqlaWatchMiddleware(with_body(pieces()), sample_rate=sample_rate))
    with pytest.raises(RuntimeError) as raised:
        asked.finish()
    assert raised.value is own
    assert asked.sent == b"good so far"
    assert [(scope.kind, scope.statements) for scope in scopes] == [("request", sample_rate)]
    assert current.get() is None


def test_an_exception_of_close_too(engine: Engine, scopes: list[Scope]) -> None:
    own = RuntimeError("at the end")

    def at_end() -> None:
        ask(engine)
        raise own

    asked = Exchange(SqlaWatchMiddleware(with_body(Pieces([b"a"], at_end))))
    with pytest.raises(RuntimeError) as raised:
        asked.finish()
    assert raised.value is own
    assert [scope.statements for scope in scopes] == [1]
    assert current.get() is None


def test_a_body_that_is_none_is_the_applications_own_mistake(engine: Engine, scopes: list[Scope]) -> None:
    with pytest.raises(TypeError, match="NoneType"):
        exchange(SqlaWatchMiddleware(with_body(None)))
    assert len(scopes) == 1
    assert current.get() is None


def test_two_requests_that_are_sent_in_turns_in_one_thread_do_not_mix(engine: Engine, scopes: list[Scope]) -> None:
    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", TYPE)
        for _ in range(int(environ["PATH_INFO"][1:])):
            ask(engine)
            yield b"piece"

    watched = SqlaWatchMiddleware(app)
    first, second = Exchange(watched, "/3"), Exchange(watched, "/5")
    for _ in range(3):
        next(first.body)
        next(second.body)
        ask(engine)  # of the server's own, between two pieces
    first.finish()
    second.finish()
    assert sorted(scope.statements for scope in scopes if scope.kind == "request") == [3, 5]
    assert all(scope.parent is None for scope in scopes)
    assert current.get() is None


def test_between_two_pieces_the_scope_around_is_the_current_one(engine: Engine, scopes: list[Scope]) -> None:
    for sample_rate in (1, 0):
        with sqla_watch.scope("outer") as outer:
            asked = Exchange(SqlaWatchMiddleware(with_body(Pieces([b"a"])), sample_rate=sample_rate))
            assert current.get() is outer
            asked.finish()
            assert current.get() is outer


@pytest.mark.parametrize("sample_rate", [1, 0])
def test_a_body_may_be_sent_from_another_thread(sample_rate: int, engine: Engine, scopes: list[Scope]) -> None:
    def pieces() -> Iterator[bytes]:
        ask(engine)
        yield b"piece"

    asked = Exchange(SqlaWatchMiddleware(with_body(pieces()), sample_rate=sample_rate))
    left = []

    def send() -> None:
        asked.finish()
        left.append(current.get())

    sender = threading.Thread(target=send)
    sender.start()
    sender.join()
    assert asked.sent == b"piece"
    assert [scope.statements for scope in scopes] == [1] * sample_rate
    assert left == [None]
    assert current.get() is None


# Application and server never notice


def test_environ_headers_and_status_pass_as_they_are(scopes: list[Scope]) -> None:
    seen: list[Any] = []
    headers = [("Content-Type", "text/plain"), ("X-A", "1"), ("X-A", "2")]

    def app(environ: Any, start_response: Any) -> list[bytes]:
        seen.append(environ)
        seen.append(start_response("299 Whatever", headers))
        return [b""]

    mine = environ("/a")
    asked: list[Any] = []
    written: Any = object()

    def start_response(*arguments: Any) -> Any:
        asked.append(arguments)
        return written

    SqlaWatchMiddleware(app)(mine, start_response)
    assert seen[0] is mine
    assert mine.keys() == environ("/a").keys()
    assert seen[1] is written
    ((status, given),) = asked
    assert status == "299 Whatever"
    assert given is headers


def test_what_is_written_is_written(engine: Engine, scopes: list[Scope]) -> None:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        write = start_response("200 OK", TYPE)
        write(b"written, ")
        ask(engine)
        return [b"returned"]

    assert exchange(SqlaWatchMiddleware(app)).sent == b"written, returned"
    assert [scope.statements for scope in scopes] == [1]


def test_start_response_may_be_called_again_with_an_exception(scopes: list[Scope]) -> None:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", TYPE)
        try:
            raise KeyError("too late")
        except KeyError as error:
            start_response("500 Failed", TYPE, (KeyError, error, error.__traceback__))
        return [b"sorry"]

    bare, watched = exchange(app), exchange(SqlaWatchMiddleware(app, sample_rate=0))
    assert [arguments[0] for arguments in watched.started] == ["200 OK", "500 Failed"]
    assert [len(arguments) for arguments in watched.started] == [len(arguments) for arguments in bare.started] == [2, 3]
    assert [scope.name for scope in scopes] == ["GET /"], "the last status counts: it has failed"


def test_what_start_response_raises_reaches_the_application() -> None:
    """So does a server when the headers have been sent."""
    gone = OSError("sent already")
    caught = []

    def app(environ: Any, start_response: Any) -> list[bytes]:
        try:
            start_response("200 OK", TYPE)
        except OSError as error:
            caught.append(error)
        return []

    def start_response(*arguments: Any) -> Any:
        raise gone

    SqlaWatchMiddleware(app)(environ(), start_response)
    assert caught == [gone]


@pytest.mark.parametrize("status", ["²00 what", "", "OK", 200, b"200 OK", None])
def test_a_status_that_is_none_is_for_the_server_to_judge(status: Any, scopes: list[Scope]) -> None:
    assert exchange(SqlaWatchMiddleware(answering(status=status))).started == [(status, TYPE)]


def test_a_body_with_a_length_keeps_it(engine: Engine, scopes: list[Scope]) -> None:
    class Sized(Pieces):
        def __len__(self) -> int:
            return 1

    asked = Exchange(SqlaWatchMiddleware(with_body(Sized([b"a"]))))
    assert len(asked.body) == 1  # from which a server makes Content-Length
    assert asked.finish().sent == b"a"
    assert not hasattr(Exchange(SqlaWatchMiddleware(with_body(Pieces([])))).body, "__len__")


def test_a_file_is_left_to_the_server_which_sends_it_better(scopes: list[Scope]) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", TYPE)
        return environ["wsgi.file_wrapper"](io.BytesIO(b"content"))

    asked = Exchange(SqlaWatchMiddleware(app), **{"wsgi.file_wrapper": FileWrapper})
    assert type(asked.body) is FileWrapper
    assert len(scopes) == 1
    assert asked.finish().sent == b"content"
    flask = Flask("files")
    flask.add_url_rule("/", view_func=lambda: send_file(io.BytesIO(b"content"), "text/plain"))
    asked = Exchange(SqlaWatchMiddleware(flask), **{"wsgi.file_wrapper": FileWrapper})
    assert type(asked.body) is FileWrapper
    assert asked.finish().sent == b"content"


def test_a_file_wrapper_that_is_a_function_works_too(scopes: list[Scope]) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", TYPE)
        return environ["wsgi.file_wrapper"](io.BytesIO(b"content"))

    asked = exchange(SqlaWatchMiddleware(app), **{"wsgi.file_wrapper": lambda file: FileWrapper(file)})
    assert asked.sent == b"content"
    assert len(scopes) == 1


@pytest.mark.parametrize("server_timing", [False, True])
@pytest.mark.parametrize("kind", [list, tuple, Pieces, iter])
def test_the_standards_own_validator_has_nothing_to_say(kind: Any, server_timing: bool, scopes: list[Scope]) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        return with_body(kind([b"a", b"b"]))(environ, start_response)

    for inner in (app, validator(app)):
        watched = validator(SqlaWatchMiddleware(inner, server_timing=server_timing))
        assert exchange(watched).sent == b"ab"
    assert len(scopes) == 2


def test_head_has_what_the_application_says(engine: Engine, scopes: list[Scope]) -> None:
    bare, watched = exchange(shop(), "/orders/7", "HEAD"), exchange(SqlaWatchMiddleware(shop()), "/orders/7", "HEAD")
    assert (watched.started[0][:2], watched.sent) == (bare.started[0][:2], b"")
    assert [scope.name for scope in scopes] == ["HEAD /orders/<int:number>"]


@pytest.mark.faults
@pytest.mark.parametrize("body", ["list", "generator"])
def test_reporters_that_fail_and_a_full_disk_are_nothing_to_the_client(body: str, engine: Engine, watch: Watch) -> None:
    def full(scope: Scope) -> None:
        with open("/dev/full", "w") as file:
            file.write(scope.name)

    def failing(scope: Scope) -> None:
        raise ZeroDivisionError

    told: list[Scope] = []
    watch.reporters.extend([failing, full, told.append])
    app = answering(engine, 1) if body == "list" else with_body(Pieces([b"whole"], lambda: ask(engine)))
    assert exchange(SqlaWatchMiddleware(app)).sent == b"whole"
    assert [(scope.kind, scope.statements) for scope in told] == [("request", 1)]


@pytest.mark.faults
@pytest.mark.parametrize("fault", ["open_scope", "close_scope", "_server_timing"])
def test_faults_of_ours_are_nothing_to_the_client(
    fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, watch: Watch
) -> None:
    def broken(*arguments: Any, **options: Any) -> None:
        raise ZeroDivisionError("of ours")

    monkeypatch.setattr(_requests, fault, broken)
    for app in (answering(), with_body(Pieces([b"whole"]))):
        asked = exchange(SqlaWatchMiddleware(app, server_timing=True))
        assert (asked.started[0][0], asked.sent) == ("200 OK", b"whole")
        assert "please report this" in caplog.records[-1].getMessage()
        caplog.clear()
        current.set(None)


@pytest.mark.parametrize("profile", ["development", "test", "production"])
def test_raise_at_the_end_never_costs_the_response(profile: str, engine: Engine, watch: Watch) -> None:
    watch.settings = Settings(profile=profile, rules={"over-budget": "raise"})
    budget = Budget(max_statements=2)
    with pytest.warns(OverBudgetWarning, match="GET / sent statements: 3, and its budget is 2"):
        assert exchange(SqlaWatchMiddleware(answering(engine, 3), default_budget=budget)).sent == b"whole"
    body = Pieces([b"whole"], lambda: ask(engine, 3))
    asked = Exchange(SqlaWatchMiddleware(with_body(body), default_budget=budget))
    if profile == "test":  # for a test client to see
        with pytest.raises(FindingRaised):
            asked.finish()
    else:
        with pytest.warns(OverBudgetWarning):
            asked.finish()
    assert (asked.sent, body.closed) == (b"whole", 1)


def test_warnings_that_are_made_errors_never_cost_the_response(
    engine: Engine, watch: Watch, caplog: pytest.LogCaptureFixture
) -> None:
    app = SqlaWatchMiddleware(answering(engine, 3), default_budget=Budget(max_statements=2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert exchange(app).sent == b"whole"
    assert "its budget is 2" in caplog.text


def test_raise_in_a_statement_is_the_applications_to_handle(engine: Engine, watch: Watch) -> None:
    watch.settings = Settings(profile="test", rules={"query-in-loop": {"action": "raise", "min_values": 2}})
    app = Flask("shop")

    @app.get("/")
    def answer() -> str:
        ask(engine, 3)
        return "here"

    @app.errorhandler(FindingRaised)
    def handle(error: FindingRaised) -> tuple[str, int]:
        return error.finding.rule, 418

    asked = exchange(SqlaWatchMiddleware(app))
    assert (asked.started[0][0], asked.sent) == ("418 I'M A TEAPOT", b"query-in-loop")


# Options


def test_server_timing_is_beside_the_applications_own(engine: Engine, scopes: list[Scope]) -> None:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        ask(engine, 2)
        start_response("200 OK", [("Server-Timing", "app;dur=1")])
        return [b"a"]

    own, ours = exchange(SqlaWatchMiddleware(app, server_timing=True)).started[0][1]
    assert own == ("Server-Timing", "app;dur=1")
    assert ours[0] == "Server-Timing"
    assert ours[1].startswith("db;dur=")
    assert ';desc="2 statements"' in ours[1]
    assert len(exchange(SqlaWatchMiddleware(app)).started[0][1]) == 1
    assert len(exchange(SqlaWatchMiddleware(app, server_timing=True, sample_rate=0)).started[0][1]) == 1


def test_what_is_not_in_the_sample_makes_no_scope_but_where_it_failed(engine: Engine, scopes: list[Scope]) -> None:
    def pieces() -> Iterator[bytes]:
        ask(engine)
        yield b"piece"

    def exchanges(**options: Any) -> None:
        exchange(SqlaWatchMiddleware(answering(engine, 3), **options), "/list")
        exchange(SqlaWatchMiddleware(with_body(pieces()), **options), "/pieces")
        exchange(SqlaWatchMiddleware(answering(engine, 3, "500 Failed"), **options), "/failed")

    exchanges(sample_rate=0)
    assert [(scope.name, scope.statements) for scope in scopes] == [("GET /failed", 0)]
    scopes.clear()
    exchanges(sample_rate=0, slow_seconds=0)
    assert [scope.name for scope in scopes] == ["GET /list", "GET /pieces", "GET /failed"]
    assert current.get() is None
    ask(engine)
    assert scopes[-1].kind == "implicit"


def test_budgets_are_by_route_with_a_default_for_the_others(engine: Engine, scopes: list[Scope]) -> None:
    app = Flask("shop")
    for path in ("/orders/<int:number>", "/items/<int:number>", "/free/<int:number>"):
        app.add_url_rule(path, path, lambda number: (ask(engine, number), "here")[1])
    watched = SqlaWatchMiddleware(
        app,
        budgets={"GET /orders/<int:number>": Budget(max_statements=2), "GET /free/<int:number>": Budget(max_rows=1000)},
        default_budget=Budget(max_statements=4),
    )
    for path in ("/orders/2", "/orders/3", "/items/4", "/items/5", "/free/9", "/nothing/9"):
        exchange(watched, path)
    over = [(scope.name, finding.evidence["used"], finding.evidence["budget"])
            for scope in scopes for finding in scope.findings if finding.rule == "over-budget"]  # fmt: skip
    assert over == [("GET /orders/<int:number>", 3, 2), ("GET /items/<int:number>", 5, 4)]
    assert found(scopes[0]) == []


def test_a_response_object_of_werkzeug_streams_in_the_scope(engine: Engine, scopes: list[Scope]) -> None:
    app = Flask("shop")

    @app.get("/")
    def answer() -> Response:
        def pieces() -> Iterator[str]:
            ask(engine, 2)
            yield "piece"

        response = Response(pieces())
        response.call_on_close(lambda: ask(engine))
        return response

    assert exchange(SqlaWatchMiddleware(app)).sent == b"piece"
    assert [scope.statements for scope in scopes] == [3]
