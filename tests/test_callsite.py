"""The user's line is found among library frames, and named as a reader would."""

from __future__ import annotations

import asyncio
import os
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

from sqla_watch.callsite import DATABASE, LIBRARY, USER, call_site, locate, location_of, user_code
from sqla_watch.facts import CallSite


@pytest.fixture(autouse=True)
def _own_configuration() -> Iterator[None]:
    yield
    user_code.configure()


@pytest.mark.parametrize(
    ("filename", "kind"),
    [
        ("/srv/app/views.py", USER),
        ("/srv/app/.venv/lib/python3.11/site-packages/flask/app.py", LIBRARY),
        ("/srv/app/.venv/lib/python3.11/site-packages/six.py", LIBRARY),
        ("/usr/lib/python3/dist-packages/jinja2/environment.py", LIBRARY),
        ("/srv/app/.venv/lib/python3.11/site-packages/sqlalchemy/engine/base.py", DATABASE),
        ("/srv/app/.venv/lib/python3.11/site-packages/sqlmodel/orm/session.py", DATABASE),
        (os.path.join(sysconfig.get_path("stdlib"), "contextlib.py"), DATABASE),
        (os.path.join(sysconfig.get_path("scripts"), "gunicorn"), DATABASE),
        ("<string>", DATABASE),
        ("<sqlalchemy generated init>", DATABASE),
        ("<frozen runpy>", DATABASE),
        ("<stdin>", USER),
        ("<ipython-input-3-abc>", USER),
        ("<doctest guide[0]>", USER),
    ],
)
def test_code_is_told_apart_by_its_file(filename: str, kind: int) -> None:
    assert user_code.kind(filename) == kind


def test_settings_add_and_remove_packages_and_folders(tmp_path: Path) -> None:
    packaged = "/venv/lib/python3.11/site-packages/shop/views.py"
    vendored = str(tmp_path / "vendor" / "thing.py")
    assert (user_code.kind(packaged), user_code.kind(vendored)) == (LIBRARY, USER)
    user_code.configure(user=["shop"], library=[str(tmp_path / "vendor")])
    assert (user_code.kind(packaged), user_code.kind(vendored)) == (USER, LIBRARY)


def test_a_prefix_ends_at_a_folder_and_is_where_it_was_when_it_was_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    user_code.configure(user=["/venv/site-packages/shop/"], library=["./vendored"])
    monkeypatch.chdir("/")
    assert user_code.kind("/venv/site-packages/shop/views.py") == USER
    assert user_code.kind("/venv/site-packages/shop_plugin/views.py") == LIBRARY
    assert user_code.kind(str(tmp_path / "vendored" / "x.py")) == LIBRARY
    assert user_code.kind(str(tmp_path / "vendored_by_us.py")) == USER


def test_an_environment_inside_of_a_project_is_not_the_projects(tmp_path: Path) -> None:
    inside = f"{tmp_path}/shop/.venv/lib/python3.11/site-packages"
    user_code.configure(user=["shop", str(tmp_path / "shop")])
    assert user_code.kind(f"{inside}/sqlalchemy/engine/base.py") == DATABASE
    assert user_code.kind(f"{inside}/flask/app.py") == LIBRARY
    assert user_code.kind(f"{inside}/shop/views.py") == USER
    user_code.configure(user=[f"{inside}/flask"])
    assert user_code.kind(f"{inside}/flask/app.py") == USER


def test_a_task_of_a_library_is_not_charged_to_who_started_the_loop() -> None:
    execute = run_as(SQLALCHEMY, "def execute(): return here()", here=here)["execute"]
    work = run_as(LIBRARY_FILE, "async def work():\n    return execute()", execute=execute)["work"]

    async def main() -> CallSite | None:
        return await asyncio.create_task(work())  # type: ignore[operator]

    found = location_of(asyncio.run(main()))
    assert found is not None
    assert (found.file, found.function) == (LIBRARY_FILE, "work")


def run_as(filename: str, source: str, **names: object) -> dict[str, object]:
    namespace: dict[str, object] = dict(names)
    exec(compile(source, filename, "exec"), namespace)
    return namespace


SQLALCHEMY = "/venv/lib/python3.11/site-packages/sqlalchemy/engine/base.py"
LIBRARY_FILE = "/venv/lib/python3.11/site-packages/dagster/storage.py"


def here() -> CallSite | None:
    return call_site(sys._getframe(1))


def test_the_innermost_user_frame_is_found_through_library_frames() -> None:
    execute = run_as(SQLALCHEMY, "def execute(): return here()", here=here)["execute"]
    found = location_of(execute())  # type: ignore[operator]
    assert found is not None
    assert (found.file, found.function) == (__file__, "test_the_innermost_user_frame_is_found_through_library_frames")


def test_without_user_frames_the_innermost_library_frame_answers() -> None:
    execute = run_as(SQLALCHEMY, "def execute(): return here()", here=here)["execute"]
    store = run_as(LIBRARY_FILE, "def store():\n    return execute()", execute=execute)["store"]
    user_code.configure(library=[str(Path(__file__).parent)])
    found = location_of(store())  # type: ignore[operator]
    assert found is not None
    assert (found.file, found.line, found.function) == (LIBRARY_FILE, 2, "store")


def test_no_frame_of_anybody_is_no_location() -> None:
    assert locate(None) is None or user_code.kind(__file__) == USER
    assert location_of(None) is None


@pytest.mark.parametrize(
    ("source", "function"),
    [
        ("def f():\n    return [g() for _ in range(1)][0]", "f"),
        ("def f():\n    return (lambda: g())()", "f"),
        ("def f():\n    return next(g() for _ in range(1))", "f"),
        ("class Repository:\n    def get(self): return g()\nf = Repository().get", "Repository.get"),
        ("def make():\n    def inner(): return g()\n    return inner\nf = make()", "inner"),
        ("f = lambda: g()", "<lambda>"),
    ],
)
def test_functions_are_named_as_a_reader_would(source: str, function: str) -> None:
    f = run_as("/srv/app/code.py", source, g=here_of_caller)["f"]
    found = location_of(f())  # type: ignore[operator]
    assert found is not None
    assert found.function == function


def here_of_caller() -> CallSite:
    frame = sys._getframe(1)
    code: CodeType = frame.f_code
    return CallSite(code, frame.f_lasti)


def test_a_call_over_several_lines_knows_its_last_line() -> None:
    found = location_of(
        here(
        )
    )  # fmt: skip
    assert found is not None
    assert found.last_line - found.line == 1


def test_behind_a_greenlet_the_awaiting_coroutine_is_found() -> None:
    import greenlet
    from sqlalchemy.util import greenlet_spawn

    execute = run_as(SQLALCHEMY, "def execute(): return here()", here=here)["execute"]

    async def view() -> CallSite | None:
        await asyncio.sleep(0)
        return await greenlet_spawn(execute)  # type: ignore[arg-type]

    found = location_of(asyncio.run(view()))
    assert found is not None
    assert found.function == "view"
    assert greenlet.getcurrent().parent is None


def test_equal_functions_of_two_files_are_told_apart() -> None:
    """Python takes code objects for equal that differ in nothing but their file."""
    found = []
    for file in ("/shop/orders.py", "/shop/invoices.py"):
        names: dict[str, Any] = {}
        exec(compile("def load():\n    return 1\n", file, "exec"), names)
        found.append(location_of(CallSite(names["load"].__code__, 0)))
    assert [each.file for each in found if each is not None] == ["/shop/orders.py", "/shop/invoices.py"]
