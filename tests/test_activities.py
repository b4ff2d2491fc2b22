"""A stack goes in, a line of the user's and the name of what it calls come out; never a value."""

from __future__ import annotations

import asyncio
import bdb
import gc
import importlib
import linecache
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import psycopg
import pytest

from sqla_watch.activities import (
    activity_of,
    doing_of,
    doing_of_holder,
    is_database,
    is_debugger,
    main_activity,
    name_of,
)
from sqla_watch.callsite import location_of
from sqla_watch.facts import Activity, CallSite, Holder, HolderState
from sqla_watch.probes.owner import Owner, near_codes, user_codes
from tests.support import in_event_loop, line_of


def stack_of(thread: threading.Thread) -> list[FrameType]:
    """The frames of a thread, the innermost first."""
    frames = []
    frame = sys._current_frames().get(thread.ident or 0)
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    return frames


def seen(function: Callable[[], object], release: Callable[[], object] = lambda: None) -> Activity:
    """What a thread is seen doing that runs a function, a little after its beginning."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    time.sleep(0.1)
    activity = activity_of(stack_of(thread))
    release()
    thread.join()
    return activity


def line(activity: Activity) -> int:
    location = location_of(activity.call_site)
    assert location is not None
    assert location.file == __file__
    return location.line


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, dict[str, str]], ModuleType]]:
    """Makes a package that lies under site-packages."""
    made: list[str] = []

    def make(name: str, files: dict[str, str]) -> ModuleType:
        folder = tmp_path / "site-packages" / name
        folder.mkdir(parents=True)
        for file, source in files.items():
            (folder / file).write_text(source)
        monkeypatch.syspath_prepend(str(folder.parent))
        made.append(name)
        return importlib.import_module(name)

    yield make
    for module in list(sys.modules):
        if module.partition(".")[0] in made:
            del sys.modules[module]


# Functions that are not written in Python: named by the source of the line


def test_a_function_of_a_module_is_named_as_it_is_written() -> None:
    activity = seen(lambda: time.sleep(0.2))  # sleeps in a lambda
    assert name_of(activity) == "time.sleep"
    assert doing_of(activity) == "in time.sleep"
    assert line(activity) == line_of("sleeps in a lambda")


def test_a_method_of_an_attribute_is_named_as_it_is_written() -> None:
    class Account:
        def __init__(self) -> None:
            self.lock = threading.Lock()
            self.lock.acquire()

        def pay(self) -> None:
            self.lock.acquire()  # acquires

    account = Account()
    activity = seen(account.pay, account.lock.release)
    assert (name_of(activity), line(activity)) == ("self.lock.acquire", line_of("acquires"))


def test_a_lock_that_is_entered_is_named_as_it_is_written() -> None:
    lock = threading.Lock()
    lock.acquire()

    def pay() -> None:
        with lock:  # enters
            pass

    activity = seen(pay, lock.release)
    assert (name_of(activity), line(activity)) == ("lock", line_of("enters"))


def test_of_several_that_are_entered_the_one_is_named_that_keeps_it_waiting() -> None:
    free, taken = threading.Lock(), threading.Lock()
    taken.acquire()

    def pay() -> None:
        with free, taken:
            pass

    assert name_of(seen(pay, taken.release)) == "taken"


def test_a_call_over_several_lines_is_named_at_its_first() -> None:
    lock = threading.Lock()
    lock.acquire()

    def pay() -> None:
        lock.acquire(  # begins a call
            True,
            5,
        )

    activity = seen(pay, lock.release)
    assert (name_of(activity), line(activity)) == ("lock.acquire", line_of("begins a call"))


def test_letters_beyond_ascii_do_not_shift_the_name() -> None:
    größe, schloß = "ÄÖÜ", threading.Lock()
    schloß.acquire()

    def pay() -> object:
        return "äöü" + größe, schloß.acquire()

    assert name_of(seen(pay, schloß.release)) == "schloß.acquire"


def test_what_is_called_on_a_value_is_not_named() -> None:
    """`locks["secret"].acquire` would show a value; so would `connect("secret").send`."""
    locks = {"secret": threading.Lock()}
    locks["secret"].acquire()
    activity = seen(lambda: locks["secret"].acquire(), locks["secret"].release)
    assert name_of(activity) == ""
    assert doing_of(activity) == ""


def test_arguments_are_never_in_the_name(library: Callable[[str, dict[str, str]], ModuleType]) -> None:
    client = library("vault", {"__init__.py": "import time\ndef login(token):\n    time.sleep(0.2)\n"})
    assert "secret" not in repr(seen(lambda: client.login("secret")))
    assert name_of(seen(lambda: client.login("secret"))) == "vault.login"


def test_code_without_a_source_has_no_name() -> None:
    namespace: dict[str, Any] = {"sleep": time.sleep}
    exec(compile("def pay():\n    sleep(0.2)\n", "/nowhere/shop.py", "exec"), namespace)
    activity = seen(namespace["pay"])
    assert activity.call_site is not None
    assert name_of(activity) == ""


def test_a_source_that_has_changed_under_the_program_has_no_wrong_name(tmp_path: Path) -> None:
    file = tmp_path / "shop.py"
    file.write_text("def pay(sleep):\n    sleep(0.2)\n")
    namespace: dict[str, Any] = {}
    exec(compile(file.read_text(), str(file), "exec"), namespace)
    activity = seen(lambda: namespace["pay"](time.sleep))
    file.write_text("# nothing\n")
    linecache.checkcache(str(file))
    assert name_of(activity) == ""


def test_a_line_that_calls_nothing_has_no_name() -> None:
    def compute() -> None:
        deadline = time.perf_counter() + 0.3
        number = 0
        while number < 10**9:
            number += 1
            if number % 1_000_000 == 0 and time.perf_counter() > deadline:
                break

    activity = seen(compute)
    assert name_of(activity) in ("", "time.perf_counter")
    assert name_of(activity._replace(computing=True)) == ""
    assert doing_of(activity._replace(computing=True)) == "computing"


# Functions that are written in Python: named by the shortest of their packages that knows them


def test_a_library_is_named_by_what_it_offers(library: Callable[[str, dict[str, str]], ModuleType]) -> None:
    mailer = library(
        "mailer",
        {
            "__init__.py": "from mailer._api import send\nfrom mailer._client import Client\n",
            "_api.py": "import time\ndef send():\n    _wait()\ndef _wait():\n    time.sleep(0.2)\n",
            "_client.py": "import time\nclass Client:\n    def post(self):\n        time.sleep(0.2)\n",
        },
    )
    activity = seen(lambda: mailer.send())  # calls a library
    assert (name_of(activity), line(activity)) == ("mailer.send", line_of("calls a library"))
    assert name_of(seen(lambda: mailer.Client().post())) == "mailer.Client.post"


def test_a_library_that_renames_its_modules_is_named_by_what_it_offers(
    library: Callable[[str, dict[str, str]], ModuleType],
) -> None:
    """As httpx does: `httpx.Client.__module__` is `httpx`, although it is written in `httpx._client`."""
    client = library(
        "fetcher",
        {
            "__init__.py": (
                "from fetcher._api import get\nfrom fetcher._client import Client\n"
                "get.__module__ = Client.__module__ = 'fetcher'\n"
            ),
            "_api.py": "import time\ndef get():\n    time.sleep(0.2)\n",
            "_client.py": "import time\nclass Client:\n    def post(self):\n        time.sleep(0.2)\n",
        },
    )
    assert name_of(seen(lambda: client.get())) == "fetcher.get"
    assert name_of(seen(lambda: client.Client().post())) == "fetcher.Client.post"


def test_what_a_package_does_not_offer_is_named_by_its_module(
    library: Callable[[str, dict[str, str]], ModuleType],
) -> None:
    library("inner", {"__init__.py": "", "deep.py": "import time\ndef wait():\n    time.sleep(0.2)\n"})
    deep = importlib.import_module("inner.deep")
    assert name_of(seen(lambda: deep.wait())) == "inner.deep.wait"


def test_another_thing_of_the_same_name_is_not_taken_for_it(
    library: Callable[[str, dict[str, str]], ModuleType],
) -> None:
    library(
        "twins",
        {
            "__init__.py": "def wait():\n    pass\n",
            "deep.py": "import time\ndef wait():\n    time.sleep(0.2)\n",
        },
    )
    deep = importlib.import_module("twins.deep")
    assert name_of(seen(lambda: deep.wait())) == "twins.deep.wait"


def test_a_context_manager_of_a_library_is_named_and_not_contextlib(
    library: Callable[[str, dict[str, str]], ModuleType],
) -> None:
    """`@contextmanager`: what is entered lies behind contextlib's own function."""
    mutex = library(
        "mutex",
        {
            "__init__.py": (
                "import time\nfrom contextlib import contextmanager\n"
                "@contextmanager\ndef locked():\n    time.sleep(0.2)\n    yield\n"
            )
        },
    )

    def pay() -> None:
        with mutex.locked():
            pass

    assert name_of(seen(pay)) == "mutex.locked"


def test_the_standard_library_is_named_like_any_other() -> None:
    event = threading.Event()
    assert name_of(seen(lambda: event.wait(1), event.set)) == "threading.Event.wait"
    with ThreadPoolExecutor(1) as executor:
        future = executor.submit(time.sleep, 0.3)
        assert name_of(seen(lambda: future.result())) == "concurrent.futures.Future.result"


def test_what_the_user_is_called_back_in_is_the_users(library: Callable[[str, dict[str, str]], ModuleType]) -> None:
    caller = library("caller", {"__init__.py": "def call(function):\n    function()\n"})

    def pay() -> None:
        time.sleep(0.2)  # is called by a library

    activity = seen(lambda: caller.call(pay))
    assert (name_of(activity), line(activity)) == ("time.sleep", line_of("is called by a library"))


def test_a_stack_without_code_of_the_users_has_no_place() -> None:
    lock = threading.Lock()
    lock.acquire()
    activity = seen(lock.acquire, lock.release)
    assert activity == Activity(None)
    assert (name_of(activity), doing_of(activity)) == ("", "")
    assert activity_of([]) == Activity(None)


# Tasks


async def seen_in_a_task(story: Callable[[], Any]) -> Activity:
    """What a task is seen doing a little after its beginning."""
    owners: list[Owner] = []

    async def run() -> None:
        owners.append(Owner.here())
        await story()

    task = asyncio.create_task(run())
    await asyncio.sleep(0.05)
    activity = activity_of(owners[0].stack(sys._current_frames))
    await task
    return activity


@in_event_loop
async def test_a_task_is_seen_in_what_it_awaits() -> None:
    async def pay() -> None:
        await asyncio.sleep(0.15)  # awaits

    activity = await seen_in_a_task(pay)
    assert (name_of(activity), line(activity)) == ("asyncio.sleep", line_of("awaits"))


@in_event_loop
async def test_a_future_that_is_awaited_is_named_by_what_made_it() -> None:
    loop = asyncio.get_running_loop()

    async def pay() -> None:
        await loop.run_in_executor(None, time.sleep, 0.15)  # awaits a future

    activity = await seen_in_a_task(pay)
    assert (name_of(activity), line(activity)) == ("loop.run_in_executor", line_of("awaits a future"))


@in_event_loop
async def test_a_future_with_a_name_of_its_own_has_a_line_only() -> None:
    async def pay() -> None:
        future = asyncio.get_running_loop().run_in_executor(None, time.sleep, 0.15)
        await future  # awaits what was made before

    activity = await seen_in_a_task(pay)
    assert (name_of(activity), line(activity)) == ("", line_of("awaits what was made before"))


@in_event_loop
async def test_an_asyncio_lock_that_is_entered_is_named() -> None:
    lock = asyncio.Lock()
    await lock.acquire()
    asyncio.get_running_loop().call_later(0.15, lock.release)

    async def pay() -> None:
        async with lock:  # enters a lock of asyncio's
            pass

    activity = await seen_in_a_task(pay)
    assert name_of(activity) in ("lock", "asyncio.Lock.__aenter__", "asyncio.Lock.acquire")
    assert line(activity) == line_of("enters a lock of asyncio's")


@in_event_loop
async def test_a_task_that_is_over_has_no_place() -> None:
    async def ended() -> Owner:
        return Owner.here()

    owner = await asyncio.create_task(ended())
    assert activity_of(owner.stack(sys._current_frames)) == Activity(None)


# Of several looks


def site(number: int) -> CallSite:
    return CallSite(test_what_was_seen_most_often_is_the_main_activity.__code__, number)


def test_what_was_seen_most_often_is_the_main_activity() -> None:
    one, other = Activity(site(2)), Activity(site(4))
    assert main_activity([one, other, one]) is one
    assert main_activity([other, one, one, other, other]) is other


def test_of_what_was_seen_as_often_the_last_is_the_main_activity() -> None:
    """The looks are at growing distances: the last one stands for the longest time."""
    one, other = Activity(site(2)), Activity(site(4))
    assert main_activity([one, other]) is other
    assert main_activity([]) == Activity(None)


# The database and the debugger


def test_drivers_are_the_database_and_others_are_not() -> None:
    inside = psycopg.Cursor.execute.__code__
    assert is_database(Activity(site(2), inside, "psycopg.cursor"))
    assert is_database(Activity(site(2), inside, "asyncpg.connection"))
    assert not is_database(Activity(site(2), inside, "requests.api"))
    assert not is_database(Activity(site(2), inside, "psycopgish.cursor"))
    assert not is_database(Activity(None))


def test_debuggers_are_told_by_their_module() -> None:
    inside = bdb.Bdb.trace_dispatch.__code__
    for module in ("bdb", "pdb", "_pydevd_bundle.pydevd_frame", "debugpy.server"):
        assert is_debugger(Activity(site(2), inside, module))
    assert not is_debugger(Activity(site(2), inside, "pdbless"))
    assert not is_debugger(Activity(site(2)))


def holder(state: HolderState, activity: Activity) -> Holder:
    return Holder(activity, state, 0, None, False, True, "")


@pytest.mark.parametrize(
    ("state", "shown"),
    [
        (HolderState.IDLE, "in time.sleep"),
        (HolderState.IDLE_IN_TRANSACTION, "in time.sleep"),
        (HolderState.WORKING, ""),
        (HolderState.WAITING, ""),
        (HolderState.LEFT, ""),
    ],
)
def test_of_a_holder_that_works_or_is_gone_nothing_is_said(state: HolderState, shown: str) -> None:
    activity = seen(lambda: time.sleep(0.2))
    assert doing_of_holder(holder(state, activity)) == shown


def test_no_frame_is_kept() -> None:
    """A stack that was looked at goes when its function ends, with everything in it."""

    class Entity: ...

    references: list[Any] = []

    def pay() -> None:
        entity = Entity()
        references.append(weakref.ref(entity))
        time.sleep(0.2)

    activity = seen(pay)
    gc.collect()
    assert name_of(activity) == "time.sleep"
    assert references[0]() is None


def test_functions_of_files_that_were_never_seen_before_have_the_connection_in_hands_too(tmp_path: Path) -> None:
    names: dict[str, Any] = {}
    exec(compile("def outer(call):\n    return call()", str(tmp_path / "never_seen.py"), "exec"), names)
    codes = names["outer"](lambda: user_codes(near_codes(sys._getframe())))
    assert names["outer"].__code__ in codes
