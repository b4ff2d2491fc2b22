"""CPU time that a request with five ORM statements costs more with ours and with the peers' middleware.

Run it with ``uv run --isolated --group bench python -m benchmarks.request_overhead``. A Starlette application is called
in process, without a server, on SQLite in memory, because a server's answers would be most of the time and all of the
noise. The contestants take turns in one process, a block of requests each. What listens to every engine or session of a
process, as queryspy and ours do, is put there before its turn and taken off after it. What cannot be taken off again,
tracepanel, has a process for itself with a bare application and ours; these then pay for its listeners, too, which is
in its favour.

Each is set up as its documentation says, with its own defaults, and where these are to a peer's disadvantage here, it
is spared: queryspy listens all the time instead of anew for each request, and tracepanel's traces are thrown away
instead of sent to its agent. Ours is counted with everything: recording, adding up, the rules at the request's end, and
the timeline that development has. A second bare application shows the noise. Exits with 1 if ours is not cheaper than
each of the peers.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from time import process_time_ns
from typing import Any

from sqlalchemy import Engine, StaticPool, create_engine, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import sqla_watch
from sqla_watch import Settings
from sqla_watch.integrations.asgi import SqlaWatchMiddleware

REQUESTS = 40
TURNS = 60
STATEMENTS = 5
# Synchronous statements in an event loop, and how the engine is made, are not what it is to find here.
RULES = {"blocking-call": "ignore", "engine-settings": "ignore"}


class Base(DeclarativeBase):
    pass


class Entry(Base):
    __tablename__ = "entries"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    kind: Mapped[str]


def make_engine() -> Engine:
    engine = create_engine("sqlite://", poolclass=StaticPool)
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all(Entry(id=number, name=f"entry {number}", kind="ab"[number % 2]) for number in range(1, 21))
        session.commit()
    return engine


def make_application(engine: Engine) -> Starlette:
    async def entry(request: Request) -> Response:
        with Session(engine) as session:
            found = session.get_one(Entry, int(request.path_params["number"]))
            named = session.scalars(select(Entry).where(Entry.name == found.name)).one()
            of_kind = session.scalars(select(Entry).where(Entry.kind == "a").order_by(Entry.id).limit(10)).all()
            total = session.scalar(select(func.count()).select_from(Entry))
            first = session.execute(select(Entry.id, Entry.name).order_by(Entry.id).limit(3)).all()
        return JSONResponse([found.id, named.name, len(of_kind), total, len(first)])

    return Starlette(routes=[Route("/entries/{number:int}", entry)])


class Contestant:
    """A middleware around an application with an engine of its own; entered for its turns."""

    distribution = ""

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.engine = make_engine()
        self.app: Any = self.wrap(make_application(self.engine))

    def wrap(self, app: Starlette) -> Any:
        return app

    def __enter__(self) -> None:
        return None

    def __exit__(self, *error: object) -> None:
        return None


class Ours(Contestant):
    distribution = "sqla-watch"

    def wrap(self, app: Starlette) -> Any:
        self.settings = Settings(profile=self.options.pop("profile", "development"), rules=RULES)
        return SqlaWatchMiddleware(app, **self.options)

    def __enter__(self) -> None:
        sqla_watch.install(self.engine, settings=self.settings)

    def __exit__(self, *error: object) -> None:
        sqla_watch.uninstall()


class QuerySpy(Contestant):
    distribution = "queryspy"

    def wrap(self, app: Starlette) -> Any:
        from queryspy.asgi import QuerySpyMiddleware

        return QuerySpyMiddleware(app, **self.options)

    def __enter__(self) -> None:
        from queryspy._recorder import Recorder, start

        self._window = Recorder()  # of another context: it sees nothing, but the listeners stay
        contextvars.copy_context().run(start, self._window)

    def __exit__(self, *error: object) -> None:
        from queryspy._recorder import stop

        contextvars.copy_context().run(stop, self._window)


class Monitor(Contestant):
    distribution = "fastapi-sqlalchemy-monitor"

    def wrap(self, app: Starlette) -> Any:
        from fastapi_sqlalchemy_monitor import SQLAlchemyMonitor
        from fastapi_sqlalchemy_monitor.action import WarnMaxTotalInvocation

        return SQLAlchemyMonitor(app, engine=self.engine, actions=[WarnMaxTotalInvocation(max_invocations=10)])


class Tracepanel(Contestant):
    distribution = "tracepanel"

    def wrap(self, app: Starlette) -> Any:
        import tracepanel.asgi
        from tracepanel.storage import transport

        class Nowhere:
            def submit(self, trace: Any) -> None:
                """Throw it away."""

            def flush(self, timeout: float = 5.0) -> None:
                """There is nothing."""

        with contextlib.redirect_stdout(sys.stderr):
            watched = tracepanel.asgi.install(app, enabled=True)
        transport.set_writer(Nowhere())
        return watched


BARE = "bare"
OURS = "sqla_watch"
TOGETHER: dict[str, Callable[[], Contestant]] = {
    BARE: Contestant,
    OURS: Ours,
    "sqla_watch, profile production": lambda: Ours(profile="production"),
    "sqla_watch with Server-Timing": lambda: Ours(server_timing=True),
    "sqla_watch, not in the sample": lambda: Ours(profile="production", sample_rate=0),
    "queryspy": QuerySpy,
    "queryspy without stacks": lambda: QuerySpy(capture_stacks=False),
    "fastapi-sqlalchemy-monitor": Monitor,
    "bare again (noise)": Contestant,
}
APART: dict[str, Callable[[], Contestant]] = {BARE: Contestant, OURS: Ours, "tracepanel": Tracepanel}
PEERS = ("queryspy", "queryspy without stacks", "fastapi-sqlalchemy-monitor", "tracepanel")


async def _request(app: Any, number: int) -> None:
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(
        {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "GET",
            "scheme": "http", "path": f"/entries/{number}", "raw_path": f"/entries/{number}".encode(),
            "query_string": b"", "root_path": "", "headers": [(b"host", b"shop"), (b"accept", b"*/*")],
            "client": ("127.0.0.1", 5000), "server": ("127.0.0.1", 80),
        },
        receive,
        send,
    )  # fmt: skip
    assert sent[0]["status"] == 200, sent


Times = dict[str, list[float]]


def measure(makers: dict[str, Callable[[], Contestant]]) -> tuple[Times, dict[str, str]]:
    """Return microseconds of CPU time a request, one number a turn, and who could not be measured, and why."""
    contestants: dict[str, Contestant] = {}
    failed: dict[str, str] = {}
    for name, make in makers.items():
        try:
            contestants[name] = make()
        except ImportError as error:
            failed[name] = str(error)
    taken: Times = {name: [] for name in contestants}

    async def block(app: Any) -> None:
        for number in range(REQUESTS):
            await _request(app, number % 20 + 1)

    for turn in range(TURNS + 2):
        for name, contestant in contestants.items():
            with contestant, asyncio.Runner() as runner:
                runner.run(_request(contestant.app, 1))
                gc.collect()  # nobody pays for what others have left
                started = process_time_ns()
                runner.run(block(contestant.app))
                elapsed = process_time_ns() - started
            if turn > 1:
                taken[name].append(elapsed / REQUESTS / 1e3)
    return taken, failed


def measure_apart() -> tuple[Times, dict[str, str]]:
    """Measure those of `APART` in a process of their own."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.request_overhead", "apart"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {}, {"tracepanel": (done.stderr.strip().splitlines() or ["it has ended"])[-1]}
    taken, failed = json.loads(done.stdout)
    return taken, failed


def added_by(taken: Times, name: str) -> tuple[float, float, float]:
    """Return the quartiles of what a request costs more than a bare one."""
    low, median, high = statistics.quantiles(
        [value - base for value, base in zip(taken[name], taken[BARE], strict=True)], n=4
    )
    return low, median, high


def version(distribution: str) -> str:
    try:
        return metadata.version(distribution) if distribution else ""
    except metadata.PackageNotFoundError:
        return ""


def main() -> int:
    together, failed = measure(TOGETHER)
    apart, failed_apart = measure_apart()
    print(
        f"Python {sys.version.split()[0]}, SQLAlchemy {version('sqlalchemy')}, {TURNS} turns of {REQUESTS} requests "
        f"with {STATEMENTS} ORM statements each, CPU time\n"
    )
    print("| contestant | µs a request (median) | added µs (median of the differences in a turn) | quartiles |")
    print("|---|---|---|---|")
    for taken, where in ((together, ""), (apart, " (apart)")):
        for name, values in taken.items():
            low, median, high = added_by(taken, name)
            shown = f"{name} {version(name)}".rstrip() + where
            print(f"| {shown} | {statistics.median(values):.0f} | {median:+.1f} | {low:+.1f} … {high:+.1f} |")
    print()
    for name, why in {**failed, **failed_apart}.items():
        print(f"{name} could not be measured: {why}")
    ratios = {
        name: added_by(taken, OURS)[1] / added_by(taken, name)[1]
        for taken in (together, apart)
        for name in PEERS
        if name in taken
    }
    for name, ratio in ratios.items():
        print(f"added by sqla_watch / added by {name}: {ratio:.2f} (bar: below 1)")
    return 0 if ratios and max(ratios.values()) < 1 else 1


if __name__ == "__main__":
    if sys.argv[1:] == ["apart"]:
        print(json.dumps(measure(APART)))
    else:
        sys.exit(main())
