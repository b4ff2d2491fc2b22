"""Wrong input has one clear line and status 2; a missing library says what to install."""

from __future__ import annotations

import re
import sys

import pytest

from sqla_watch.cli.program import Program, ProgramError


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "nowhere.py"], "there is no script 'nowhere.py'"),
        (["run", "empty"], "the directory 'empty' has no __main__.py to run"),
        (["run", "-m", ".relative"], "'.relative' is no name of a module"),
        (["run"], "Missing argument"),
        (["run", "--profile", "staging", "here.py"], "'staging' is not one of 'development', 'test', 'production'"),
        (["run", "--app", "./nowhere", "here.py"], "there is no file or directory './nowhere'"),
        (["run", "--json", "nowhere/x.json", "here.py"], "'nowhere/x.json': No such file or directory"),
        (["run", "--json", "empty", "here.py"], "'empty': it is a directory"),
        (["demo", "--json", "nowhere/x.json"], "'nowhere/x.json': No such file or directory"),
        (["rules", "n-plusone"], "unknown rule 'n-plusone'; did you mean 'n-plus-one'?"),
        (["rules", "xyzzy"], "unknown rule 'xyzzy'; known are async-lazy-load, blocking-call, "),
        (["fix"], "No such command 'fix'"),
    ],
)
def test_wrong_input_is_named(command, tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.py").write_text("raise AssertionError('was run')")
    (tmp_path / "empty").mkdir()
    status, output, errors = command(*arguments)
    assert (status, output) == (2, "")
    assert says in errors
    assert "Traceback" not in errors
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "here.py"]


def test_a_wrong_setting_is_named_with_its_source(command, tmp_path, monkeypatch):
    monkeypatch.setenv("SQLA_WATCH_PROFIL", "test")
    script = tmp_path / "here.py"
    script.write_text("")
    status, _, errors = command("run", str(script))
    assert status == 2
    assert errors == ("Error: environment variable SQLA_WATCH_PROFIL: unknown; did you mean SQLA_WATCH_PROFILE?\n")


@pytest.mark.parametrize(
    ("module", "says"),
    [
        ("nowhere", "there is no module 'nowhere'"),
        ("package", "'package' is a package without a __main__, which cannot be run"),
        ("package.nowhere", "there is no module 'package.nowhere'"),
        ("_struct", "the module '_struct' is not written in Python, and cannot be run"),
    ],
)
def test_a_module_that_cannot_be_run_is_named(workshop, monkeypatch, module, says):
    workshop.write("package/__init__.py", "")
    monkeypatch.chdir(workshop.folder)
    monkeypatch.setattr(sys, "argv", [""])
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    monkeypatch.delitem(sys.modules, "package", raising=False)
    with pytest.raises(ProgramError, match=f"^{re.escape(says)}$"):
        Program(module, is_module=True).run()
    sys.modules.pop("package", None)


def test_a_module_that_cannot_be_run_has_no_report(workshop):
    run = workshop.sqla_watch("run", "-m", "nowhere")
    assert (run.returncode, run.stdout, run.stderr) == (2, "", "Error: there is no module 'nowhere'\n")


def test_a_package_that_lacks_something_else_fails_as_it_does_without_us(workshop):
    workshop.write("package/__init__.py", "import nowhere_to_be_found")
    run = workshop.sqla_watch("run", "-m", "package.work")
    assert run.returncode == 1
    assert "ModuleNotFoundError: No module named 'nowhere_to_be_found'\n" in run.stderr
    assert "sqla-watch: package.work: nothing found" in run.stderr


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_its_libraries_the_command_says_what_to_install(workshop, missing):
    program = f"import sys; sys.modules[{missing!r}] = None; from sqla_watch.cli import main; main()"
    run = workshop.python("-c", program)
    assert run.returncode == 1
    assert run.stderr == f"sqla-watch: the command needs the package {missing}: pip install 'sqla-watch[cli]'\n"


def test_help_and_version(command):
    status, output, _ = command("--help")
    assert status == 0
    assert [line.split()[0] for line in output.partition("Commands:\n")[2].splitlines()] == [
        "demo",
        "report",
        "rules",
        "run",
    ]
    assert command("--version")[1].startswith("sqla-watch, version ")
    assert "SQLA_WATCH_PROFILE and\n" in command("run", "--help")[1]
