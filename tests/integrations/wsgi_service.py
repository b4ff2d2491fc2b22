"""The same service with Flask; also as the application of a process of its own."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

from flask import Flask, Response, send_file
from sqlalchemy import Engine

import sqla_watch
from sqla_watch import Settings
from sqla_watch.integrations.wsgi import SqlaWatchMiddleware
from tests.integrations.service import SILENT, engines, own, statements_of, write_to


def flask_service(engine: Engine) -> Flask:
    app = Flask(__name__)

    @app.get("/threads/<int:number>")
    def in_threads(number: int) -> str:
        with engine.connect() as connection:
            for _ in range(statements_of(number)):
                connection.execute(own(number))
        return str(number)

    @app.get("/stream/<int:number>")
    def stream(number: int) -> Response:
        def pieces() -> Iterator[bytes]:
            with engine.connect() as connection:
                for _ in range(statements_of(number)):
                    connection.execute(own(number))
                    yield b"piece\n"

        return Response(pieces())

    @app.get("/fails/<int:number>")
    def fails(number: int) -> str:
        in_threads(number)
        raise RuntimeError("of the application's own")

    @app.get("/breaks/<int:number>")
    def breaks(number: int) -> Response:
        def pieces() -> Iterator[bytes]:
            yield b"good so far\n"
            in_threads(number)
            raise RuntimeError("in the middle")

        return Response(pieces())

    @app.get("/file")
    def file() -> Response:
        return send_file(__file__)

    return app


def served_flask() -> Flask:
    """Return the Flask application of a process of its own, as its environment says."""
    engine, _ = engines(os.environ["SERVICE_DATABASE_URL"])
    rules = json.loads(os.environ.get("SERVICE_RULES", "{}"))
    settings = Settings(rules={**SILENT.rules, **rules}, timeline=SILENT.timeline)
    watch = sqla_watch.install(engine, settings=settings)
    watch.reporters.append(write_to(os.environ["SERVICE_REPORT"]))
    app = flask_service(engine)
    app.wsgi_app = SqlaWatchMiddleware(app.wsgi_app, server_timing="SERVICE_TIMING" in os.environ)
    return app
