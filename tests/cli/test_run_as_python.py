"""`sqla-watch run` runs a program as `python` does: same output, same arguments, same end."""

from __future__ import annotations

import subprocess
import zipfile

import pytest

LOOK = """
    import sys
    main = sys.modules["__main__"]
    spec = __spec__ and (__spec__.name, __spec__.origin)
    print(__name__, __file__, __package__, spec, type(__loader__).__name__, main.__dict__ is globals())
    print(sys.argv, sys.path)
"""


def assert_same(workshop, *arguments, **options):
    """The program ends alike, says the same, and its errors are followed by nothing but the report."""
    plain = workshop.python(*arguments, **options)
    watched = workshop.sqla_watch("run", *arguments, **options)
    assert watched.stdout == plain.stdout
    assert watched.returncode == plain.returncode
    assert watched.stderr.startswith(plain.stderr)
    assert watched.stderr.removeprefix(plain.stderr).startswith("\nsqla-watch: ")
    return plain


def test_a_script_sees_itself_as_main_with_its_own_arguments(workshop):
    workshop.write("tools/look.py", LOOK)
    plain = assert_same(workshop, "tools/look.py", "--json", "x.json", "--profile", "-m", "--", "--help", "")
    assert "['tools/look.py', '--json', 'x.json', '--profile', '-m', '--', '--help', '']" in plain.stdout
    assert not (workshop.folder / "x.json").exists()


def test_a_script_behind_a_link_finds_its_neighbours(workshop):
    workshop.write("tools/look.py", LOOK)
    (workshop.folder / "link.py").symlink_to("tools/look.py")
    assert_same(workshop, "./link.py")


def test_a_directory_and_a_zip_file_run_their_main(workshop):
    main = workshop.write("tool/__main__.py", LOOK)
    assert_same(workshop, "tool", "all")
    with zipfile.ZipFile(workshop.folder / "tool.zip", "w") as archive:
        archive.write(main, "__main__.py")
    assert_same(workshop, "tool.zip", "all")


def test_a_module_and_a_package_run_by_their_names(workshop):
    workshop.write("tools/__init__.py", "import sys; print('before', sys.argv)")
    workshop.write("tools/__main__.py", LOOK)
    workshop.write("tools/look.py", LOOK)
    assert_same(workshop, "-m", "tools.look", "--json", "x")
    assert_same(workshop, "-m", "tools", "-m")


def test_a_safe_path_stays_safe(workshop):
    workshop.write("look.py", LOOK)
    assert_same(workshop, "look.py", environment={"PYTHONSAFEPATH": "1"})


@pytest.mark.parametrize(
    ("source", "status"),
    [
        ("import sys; sys.exit(3)", 3),
        ("import sys; sys.exit('no such customer')", 1),
        ("import sys; sys.exit(None)", 0),
        ("input()", 1),
        ("try:\n    1 / 0\nexcept ZeroDivisionError as error:\n    raise KeyError('x') from error", 1),
        ("print('a'", 1),
        ("import sys; sys.excepthook = lambda *error: print('ours', error[:2]); raise ValueError('x')", 1),
        ("import signal, os, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(5)", -2),  # 130 to a shell
    ],
    ids=["number", "text", "none", "end-of-input", "chain", "syntax", "excepthook", "interrupt"],
)
def test_it_ends_as_the_program_ends(workshop, source, status):
    workshop.write("end.py", source)
    assert assert_same(workshop, "end.py").returncode == status


def test_a_program_that_leaves_at_once_is_let_go(workshop):
    workshop.write("leave.py", "import os; print('gone', flush=True); os._exit(7)")
    watched = workshop.sqla_watch("run", "leave.py")
    assert (watched.returncode, watched.stdout, watched.stderr) == (7, "gone\n", "")


def test_its_classes_can_be_pickled_and_its_processes_spawned(workshop):
    workshop.write(
        "spawn.py",
        """
        import multiprocessing, pickle

        class Thing:
            def __eq__(self, other):
                return type(self) is type(other)

        def work(number):
            return number * 2, Thing()

        if __name__ == "__main__":
            print(pickle.loads(pickle.dumps(Thing())) == Thing())
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                print(pool.map(work, [1, 2]) == [(2, Thing()), (4, Thing())])
        """,
    )
    # Coverage of subprocesses and a pool of spawned ones wait for each other.
    alone = {"COVERAGE_PROCESS_CONFIG": None, "COVERAGE_PROCESS_START": None}
    assert assert_same(workshop, "spawn.py", environment=alone).stdout == "True\nTrue\n"


def test_threads_and_callbacks_of_its_end_come_before_the_report(workshop):
    workshop.write(
        "late.py",
        """
        import atexit, os, sys, threading, time
        atexit.register(print, "callback")
        print("main")
        sys.stdout.flush()
        if os.fork() == 0:  # a child which ends by itself has no report
            sys.exit()
        os.wait()
        threading.Thread(target=lambda: (time.sleep(0.2), print("thread"))).start()
        """,
    )
    together = workshop.sqla_watch("run", "late.py", errors=subprocess.STDOUT)
    assert together.stdout.index("thread") < together.stdout.index("sqla-watch: late.py")
    assert together.stdout.count("sqla-watch: ") == 1
    assert_same(workshop, "late.py")
