"""The same service with FastAPI and with Litestar."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from litestar import Litestar, Router, get
from litestar.response import Stream
from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.background import BackgroundTask
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.websockets import WebSocket

from tests.integrations.service import own, statements_of


def fastapi_service(engine: Engine, async_engine: AsyncEngine) -> Any:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await async_engine.dispose()

    app = FastAPI(lifespan=lifespan)

    @app.get("/tasks/{number}")
    async def in_tasks(number: int) -> int:
        async with async_engine.connect() as connection:
            for _ in range(statements_of(number)):
                await connection.execute(own(number))
                await asyncio.sleep(0)
        return number

    @app.get("/threads/{number}")
    def in_threads(number: int) -> int:
        with engine.connect() as connection:
            for _ in range(statements_of(number)):
                connection.execute(own(number))
        return number

    @app.get("/stream/{number}")
    async def stream(number: int) -> Any:
        async def pieces() -> Any:
            async with async_engine.connect() as connection:
                for _ in range(statements_of(number)):
                    await connection.execute(own(number))
                    yield b"piece\n"

        return StreamingResponse(pieces())

    @app.get("/endless/{number}")
    async def endless(number: int) -> Any:
        async def pieces() -> Any:
            async with async_engine.connect() as connection:
                while True:
                    await connection.execute(own(number))
                    yield b"x" * 10_000

        return StreamingResponse(pieces())

    @app.get("/background/{number}")
    async def background(number: int) -> Any:
        async def later() -> None:
            await asyncio.sleep(0.02)
            await in_tasks(number)

        return PlainTextResponse("sent", background=BackgroundTask(later))

    @app.get("/fails/{number}")
    async def fails(number: int) -> None:
        await in_tasks(number)
        raise RuntimeError("of the application's own")

    @app.get("/headers")
    async def headers() -> Any:
        answer = JSONResponse({"a": "ö"}, 201, headers={"X-One": "1", "Server-Timing": "app;dur=1"})
        answer.set_cookie("a", "b")
        answer.set_cookie("c", "d")
        return answer

    @app.websocket("/chat/{number}")
    async def chat(socket: WebSocket, number: int) -> None:
        await socket.accept()
        async for message in socket.iter_text():
            if message == "end":
                await socket.close()
                break
            async with async_engine.connect() as connection:
                await connection.execute(own(number))
            await socket.send_text(message.upper())

    return app


def litestar_service(engine: Engine, async_engine: AsyncEngine) -> Any:
    @get("/tasks/{number:int}")
    async def in_tasks(number: int) -> int:
        async with async_engine.connect() as connection:
            for _ in range(statements_of(number)):
                await connection.execute(own(number))
                await asyncio.sleep(0)
        return number

    @get("/threads/{number:int}", sync_to_thread=True)
    def in_threads(number: int) -> int:
        with engine.connect() as connection:
            for _ in range(statements_of(number)):
                connection.execute(own(number))
        return number

    @get("/stream/{number:int}")
    async def stream(number: int) -> Stream:
        async def pieces() -> Any:
            async with async_engine.connect() as connection:
                for _ in range(statements_of(number)):
                    await connection.execute(own(number))
                    yield b"piece\n"

        return Stream(pieces())

    return Litestar(
        [Router("/", route_handlers=[in_tasks, in_threads, stream])],
        openapi_config=None,
        on_shutdown=[async_engine.dispose],
    )
