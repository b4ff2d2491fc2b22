"""Servers for tests, each on a port that the system chooses and gone at the end; and a client that hides nothing."""

from __future__ import annotations

import asyncio
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

ROOT = Path(__file__).parents[2]
PATIENCE = 20
"""Seconds for which something is waited for that comes at once on a machine with nothing else to do."""


@dataclass(frozen=True)
class Answer:
    """What a server has sent."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name]


async def fetch(port: int, path: str, method: str = "GET") -> Answer:
    """Send one request on a connection of its own, and read until the server closes it."""
    return read_answer(await _bytes(port, path, method))


async def _bytes(port: int, path: str, method: str) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        lines = [f"{method} {path} HTTP/1.1", "Host: test", "Connection: close", "", ""]
        writer.write("\r\n".join(lines).encode("latin-1"))
        return await asyncio.wait_for(reader.read(), 60)
    finally:
        writer.close()
        await writer.wait_closed()


def exchange(port: int, path: str, method: str = "GET") -> bytes:
    """Send one request, and return the bytes of the response."""
    return asyncio.run(_bytes(port, path, method))


def without_date(raw: bytes) -> bytes:
    """Return a response without what differs from one time to the next."""
    return re.sub(rb"(?im)^(date|etag|last-modified): .*\r\n", b"", raw)


def get(port: int, path: str, method: str = "GET") -> Answer:
    """Send one request."""
    return read_answer(exchange(port, path, method))


def get_all(port: int, paths: Iterable[str]) -> list[Answer]:
    """Send many requests, all at once."""

    async def together() -> list[Answer]:
        return await asyncio.gather(*(fetch(port, path) for path in paths))

    return asyncio.run(together())


def read_answer(raw: bytes) -> Answer:
    """Read a response up to its last byte.

    >>> read_answer(b"HTTP/1.1 200 OK\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n2\\r\\nab\\r\\n0\\r\\n\\r\\n").body
    b'ab'
    """
    head, separator, body = raw.partition(b"\r\n\r\n")
    assert separator, raw
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    if ("transfer-encoding", "chunked") in headers:
        body = _unchunked(body)
    return Answer(int(status.split()[1]), headers, body)


def _unchunked(rest: bytes) -> bytes:
    pieces = []
    while True:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        if not length:
            assert rest == b"\r\n", "the last chunk is not there: the response was cut off"
            return b"".join(pieces)
        pieces.append(rest[:length])
        rest = rest[length + 2 :]


def eventually(done: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """Return what `done` returns as soon as that is true."""
    end = time.monotonic() + seconds
    while not (found := done()):
        assert time.monotonic() < end, "has not happened"
        time.sleep(0.01)
    return found


def _listening() -> socket.socket:
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen(1024)
    return listening


@contextmanager
def _in_thread(run: Callable[[], Any], stop: Callable[[], Any]) -> Iterator[threading.Thread]:
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield thread
    finally:
        stop()
        thread.join(PATIENCE)
        assert not thread.is_alive(), "the server does not end"


@contextmanager
def uvicorn(application: Any, **options: Any) -> Iterator[int]:
    import uvicorn

    with _listening() as listening:
        server = uvicorn.Server(uvicorn.Config(application, log_level="critical", lifespan="auto", **options))

        def stop() -> None:
            server.should_exit = True

        with _in_thread(lambda: server.run(sockets=[listening]), stop):
            eventually(lambda: server.started)
            yield listening.getsockname()[1]


@contextmanager
def hypercorn(application: Any, **options: Any) -> Iterator[int]:
    from hypercorn.asyncio import serve
    from hypercorn.config import Config

    with _listening() as listening:
        config = Config()
        config.bind = [f"fd://{os.dup(listening.fileno())}"]
        config.loglevel = "CRITICAL"
        config.graceful_timeout = 1
        end = asyncio.Event()
        loops: list[asyncio.AbstractEventLoop] = []

        async def run() -> None:
            loops.append(asyncio.get_running_loop())
            await serve(application, config, shutdown_trigger=end.wait)  # type: ignore[arg-type]

        with _in_thread(lambda: asyncio.run(run()), lambda: loops[0].call_soon_threadsafe(end.set)):
            eventually(lambda: loops)
            yield listening.getsockname()[1]


@contextmanager
def granian(application: Any) -> Iterator[int]:
    from granian.constants import Interfaces
    from granian.server.embed import Server

    with _listening() as listening:
        port = listening.getsockname()[1]
    server = Server(application, address="127.0.0.1", port=port, interface=Interfaces.ASGI, log_enabled=False)
    loops: list[asyncio.AbstractEventLoop] = []

    async def run() -> None:
        loops.append(asyncio.get_running_loop())
        await server.serve()

    with _in_thread(lambda: asyncio.run(run()), lambda: loops[0].call_soon_threadsafe(server.stop)):
        eventually(lambda: _answers(port))
        yield port


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *arguments: Any) -> None:
        """Write nothing."""


@contextmanager
def wsgiref(application: Any) -> Iterator[int]:
    class Server(WSGIServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            """Write nothing."""

    with (
        make_server("127.0.0.1", 0, application, Server, _Quiet) as server,
        _in_thread(lambda: server.serve_forever(0.05), server.shutdown),
    ):
        yield server.server_port


@contextmanager
def process(
    *arguments: str, until: str, end: int = signal.SIGTERM, patience: float = PATIENCE, **environment: str
) -> Iterator[str]:
    """Run Python in a process of its own; gives the line of its output that matches `until`.

    It is ended by the signal `end`; what is left of it and of its children after `patience` seconds is killed.
    """
    with subprocess.Popen(
        [sys.executable, "-u", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as started:
        output: list[bytes] = []
        try:
            yield _line(started, until, output)
        except BaseException as error:
            error.add_note(b"".join(output).decode(errors="replace"))
            raise
        finally:
            started.send_signal(end)
            with suppress(subprocess.TimeoutExpired):
                started.wait(patience)
            with suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGKILL)


def _line(started: subprocess.Popen[bytes], until: str, output: list[bytes]) -> str:
    """Return the line that matches; what comes after it is read, too, so that the process can go on writing."""
    assert started.stdout is not None
    stream, end = started.stdout, time.monotonic() + PATIENCE
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while time.monotonic() < end:
            if not selector.select(0.1):
                continue
            output.append(os.read(stream.fileno(), 65536))
            found = re.search(until, b"".join(output).decode(errors="replace"))
            if found:
                threading.Thread(target=lambda: output.extend(iter(stream.readline, b"")), daemon=True).start()
                return found[0]
            assert output[-1], "it has ended"
    raise AssertionError("the server does not start")


@contextmanager
def gunicorn(application: str, *options: str, **environment: str) -> Iterator[int]:
    """Gunicorn with an application by its name, in processes of its own."""
    with process(
        "-m", "gunicorn", "--bind", "127.0.0.1:0", "--graceful-timeout", "2", *options, application,
        until=r"Listening at: http://127\.0\.0\.1:\d+", **environment,
    ) as line:  # fmt: skip
        yield int(line.rsplit(":", 1)[1])
