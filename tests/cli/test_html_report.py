"""`sqla-watch run --html` and `sqla-watch report`: one page, of the run itself or of what it has written."""

from __future__ import annotations

import json

import pytest

from tests.cli.conftest import REPOSITORY

JOB = """
    from sqlalchemy import create_engine, text

    engine = create_engine("sqlite://")
    with engine.connect() as connection:
        connection.execute(text("CREATE TABLE stock (id int)"))
        for number in range(8):
            connection.execute(text("SELECT id FROM stock WHERE id = :id"), {"id": 770_000 + number}).all()
    print("done")
"""


def test_run_writes_the_page_and_report_makes_the_same_of_its_json(workshop):
    workshop.write("job.py", JOB)
    run = workshop.sqla_watch("run", "--html", "run.html", "--json", "run.json", "job.py")
    assert (run.returncode, run.stdout) == (0, "done\n")
    made = workshop.sqla_watch("report", "run.json", "--html", "made.html")
    assert (made.returncode, made.stdout, made.stderr) == (0, "", "")
    for name in ("run.html", "made.html"):
        page = (workshop.folder / name).read_text(encoding="utf-8")
        assert "<title>job.py" in page
        assert "query-in-loop" in page
        assert "job.py:8" in page
        assert "SELECT id" in page.replace("</span>", "").replace('<span class="k">', "")
        assert "770" not in page, "a value of a parameter"


def test_the_page_goes_where_it_was_meant_to_though_the_program_changes_its_folder(workshop):
    workshop.write("moves.py", "import os, tempfile\nos.chdir(tempfile.mkdtemp())\n")
    assert workshop.sqla_watch("run", "--html", "run.html", "moves.py").returncode == 0
    assert (workshop.folder / "run.html").exists()


@pytest.mark.parametrize(
    "arguments",
    [("run", "--html", "nowhere/page.html", "job.py"), ("report", "run.json", "--html", "nowhere/page.html")],
)
def test_a_folder_that_is_not_there_is_named_before_anything_is_done(workshop, arguments):
    workshop.write("job.py", JOB)
    workshop.write("run.json", '{"schema": 1, "scopes": []}')
    run = workshop.sqla_watch(*arguments)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == "Error: cannot write the HTML report to 'nowhere/page.html': No such file or directory\n"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "cannot read the JSON report 'run.json': No such file or directory"),
        ("hello", "cannot read the JSON report 'run.json': it is no JSON: Expecting value: line 1 column 1 (char 0)"),
        ("[]", "cannot read 'run.json': it is no report of sqla-watch; make one with sqla-watch run --json"),
        ('{"schema": 1, "scopes": [{"name": 5}]}', "scopes[0] has no 'findings'"),
    ],
)
def test_what_is_no_report_is_one_line_that_says_why(workshop, content, complaint):
    if content is not None:
        workshop.write("run.json", content)
    run = workshop.sqla_watch("report", "run.json", "--html", "page.html")
    assert (run.returncode, run.stdout, run.stderr) == (2, "", f"Error: {complaint}\n")
    assert not (workshop.folder / "page.html").exists()


def test_without_the_packages_of_the_extra_it_says_what_to_install(workshop):
    workshop.write("job.py", JOB)
    workshop.write("jinja2.py", "raise ImportError('not here')\n")
    run = workshop.sqla_watch(
        "run", "--html", "run.html", "job.py", environment={"PYTHONPATH": f"{workshop.folder}:{REPOSITORY}"}
    )
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == "Error: the panel and the HTML report need jinja2: pip install 'sqla-watch[panel]'\n"


def test_a_report_of_a_later_version_is_refused(workshop):
    workshop.write("run.json", json.dumps({"schema": 2, "scopes": []}))
    run = workshop.sqla_watch("report", "run.json", "--html", "page.html")
    assert run.returncode == 2
    assert "run.json" in run.stderr
