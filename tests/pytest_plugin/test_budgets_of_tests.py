"""Tests fail over their budgets: by marker, by hook, by configuration."""

from __future__ import annotations

import pytest

from tests.pytest_plugin.conftest import Project


def test_a_test_over_its_budget_fails_and_one_within_passes(project: Project) -> None:
    result = project.run("""
        import pytest
        from shop import count

        @pytest.mark.sqla_watch(max_queries=2)
        def test_over(engine):
            count(engine, 3)

        @pytest.mark.sqla_watch(max_queries=3)
        def test_within(engine):
            count(engine, 3)
        """)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        [
            "*__ test_over __*",
            "3 statements, and the budget is 2",
            "3 statements, by line:",
            "      3 x shop.py:* in count (*ms, 3 rows)",
            "          SELECT count([*]) FROM orders",
            "FAILED test_shop.py::test_over - 3 statements, and the budget is 2",
        ]
    )


@pytest.mark.parametrize(
    ("limit", "body", "said"),
    [
        ("max_rows=4", "session.execute(select(Order)).all()", "5 rows, and the budget is 4"),
        ("max_transactions=0", "count(engine); count(engine)", "2 transactions, and the budget is 0"),
        ("max_connections=1", "count(engine); count(engine)", "2 connections, and the budget is 1"),
        ("max_database_seconds=0", "count(engine)", "0.0?? s in the database, and the budget is 0 s"),
    ],
)
def test_what_else_a_budget_limits(project: Project, limit: str, body: str, said: str) -> None:
    result = project.run(f"""
        import pytest
        from sqlalchemy import select
        from shop import Order, count

        @pytest.mark.sqla_watch({limit})
        def test_it(engine, session):
            {body}
        """)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([said])


def test_waiting_for_the_pool_can_be_limited(project: Project) -> None:
    result = project.run("""
        import threading, time
        import pytest
        from sqlalchemy import create_engine
        from sqlalchemy.pool import QueuePool

        @pytest.mark.sqla_watch(max_wait_seconds=0.05)
        def test_it(tmp_path):
            engine = create_engine(f"sqlite:///{tmp_path}/x.db", poolclass=QueuePool, pool_size=1, max_overflow=0)
            held = engine.connect()
            timer = threading.Timer(0.2, held.close)
            timer.start()
            with engine.connect() as connection:
                connection.exec_driver_sql("SELECT 1")
            timer.join()
            engine.dispose()
        """)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["0.* s of waiting for the pool, and the budget is 0.05 s"])


def test_the_marker_of_the_ecosystem(project: Project) -> None:
    result = project.run("""
        import pytest
        from shop import count, names

        @pytest.mark.max_queries(1)
        def test_over(engine):
            count(engine, 2)

        @pytest.mark.max_queries(n=2)
        def test_by_name(engine):
            count(engine, 2)

        @pytest.mark.max_queries(limit=1)
        def test_by_another_name(engine):
            count(engine, 2)

        @pytest.mark.max_queries(6)
        def test_says_nothing_of_an_n_plus_one(session):
            names(session)
        """)
    result.assert_outcomes(passed=2, failed=2)
    result.stdout.fnmatch_lines(
        ["FAILED *::test_over - 2 statements*", "FAILED *::test_by_another_name - 2 statements*"]
    )


def test_a_marker_that_another_plugin_owns_is_left_to_it(project: Project) -> None:
    project.write(
        "peer.py",
        """
        import pytest

        def pytest_configure(config):
            config.addinivalue_line("markers", "max_queries(limit): of a peer.")

        @pytest.hookimpl(wrapper=True)
        def pytest_runtest_call(item):
            if item.get_closest_marker("max_queries"):
                print("the peer has looked")
            return (yield)
        """,
    )
    source = """
        import pytest
        from shop import count

        @pytest.mark.max_queries(1)
        def test_it(engine):
            count(engine, 2)

        @pytest.mark.max_queries("what only the peer understands")
        @pytest.mark.sqla_watch(max_queries=1)
        def test_ours(engine):
            count(engine, 2)
        """
    result = project.run(source, "-s", "--sqla-watch=fail", plugins=("peer",))
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["sqla_watch: fail; the marker max_queries is another plugin's, and left to it"])
    assert str(result.stdout).count("the peer has looked") == 2
    project.run(source, "--strict-markers", plugins=("peer",)).assert_outcomes(passed=1, failed=1)


def test_a_marker_that_only_the_configuration_names_is_ours(project: Project) -> None:
    project.configure("""
        markers =
            max_queries(n): so that nobody asks what it is
        """)
    project.run("""
        import pytest
        from shop import count

        @pytest.mark.max_queries(1)
        def test_it(engine):
            count(engine, 2)
        """).assert_outcomes(failed=1)


def test_the_markers_are_registered(project: Project) -> None:
    result = project.run("def test_it(): pass", "--markers", "--strict-markers")
    result.stdout.fnmatch_lines(["@pytest.mark.sqla_watch(max_queries=None, *", "@pytest.mark.max_queries(n): *"])


def test_the_closer_marker_is_stronger_limit_by_limit(project: Project) -> None:
    result = project.run("""
        import pytest
        from shop import count

        pytestmark = pytest.mark.sqla_watch(max_queries=1, max_rows=2)

        def test_by_its_module(engine):
            count(engine, 2)

        @pytest.mark.max_queries(2)
        def test_by_its_own(engine):
            count(engine, 2)

        @pytest.mark.sqla_watch(max_queries=10)
        class TestRows:
            def test_rows_are_still_limited(self, engine):
                count(engine, 3)

            @pytest.mark.sqla_watch(max_rows=None)
            def test_unless_that_is_taken_away(self, engine):
                count(engine, 3)
        """)
    result.assert_outcomes(passed=2, failed=2)
    result.stdout.fnmatch_lines(
        [
            "FAILED *::test_by_its_module - 2 statements, and the budget is 1",
            "FAILED *::TestRows::test_rows_are_still_limited - 3 rows, and *",
        ]
    )


def test_each_parameter_set_is_judged_by_its_own(project: Project) -> None:
    result = project.run("""
        import pytest
        from shop import count

        @pytest.mark.max_queries(2)
        @pytest.mark.parametrize("times", [1, 2, 3, pytest.param(4, marks=pytest.mark.max_queries(4))])
        def test_it(engine, times):
            count(engine, times)
        """)
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(["FAILED test_shop.py::test_it[[]3] - 3 statements, and the budget is 2"])


def test_limits_of_the_configuration(project: Project) -> None:
    project.configure("""
        sqla_watch_limits =
            max_queries=3
            tests/api: max_queries=1, max_rows=10
            tests/api/test_export.py: max_queries=2
            *::test_big*: max_queries=5
        """)
    source = "from shop import count\n" + "\n".join(
        f"def test_{name}(engine):\n    count(engine, {times})"
        for name, times in {"one": 1, "two": 2, "three": 3, "four": 4, "big": 5, "bigger": 6}.items()
    )
    for file in ("tests/api/test_list.py", "tests/api/test_export.py", "tests/apical/test_else.py"):
        project.write(file, source)
    result = project.run("", "--import-mode=importlib")
    failed = [line.split(" ")[1] for line in result.outlines if line.startswith("FAILED")]
    assert failed == [
        "tests/api/test_export.py::test_three",
        "tests/api/test_export.py::test_four",
        "tests/api/test_export.py::test_bigger",
        "tests/api/test_list.py::test_two",
        "tests/api/test_list.py::test_three",
        "tests/api/test_list.py::test_four",
        "tests/api/test_list.py::test_bigger",
        "tests/apical/test_else.py::test_four",
        "tests/apical/test_else.py::test_bigger",
    ]
    result.assert_outcomes(passed=9, failed=9)


def test_pyproject_has_the_same_keys(project: Project) -> None:
    (project.path / "tox.ini").unlink()
    project.write(
        "pyproject.toml",
        """
        [tool.pytest.ini_options]
        pythonpath = ["."]
        sqla_watch_mode = "fail"
        sqla_watch_limits = ["max_queries=6", "test_shop.py::test_over: max_queries=1"]
        sqla_watch_allow = ["n-plus-one:Order.customer"]
        """,
    )
    result = project.run("""
        from shop import count, names

        def test_over(engine):
            count(engine, 2)

        def test_allowed(session):
            names(session)
        """)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["FAILED *::test_over - 2 statements, and the budget is 1"])


def test_a_conftest_sets_what_holds_below_its_folder(project: Project) -> None:
    project.write(
        "api/conftest.py",
        """
        def pytest_sqla_watch(item):
            if "free" not in item.name:
                return {"max_queries": 1}
        """,
    )
    project.write(
        "api/deep/conftest.py",
        """
        def pytest_sqla_watch(item):
            return {"max_queries": 2}
        """,
    )
    source = """
        import pytest
        from shop import count

        def test_two(engine):
            count(engine, 2)

        def test_free(engine):
            count(engine, 3)

        @pytest.mark.max_queries(9)
        def test_marked(engine):
            count(engine, 3)
        """
    for file in ("test_top.py", "api/test_api.py", "api/deep/test_deep.py"):
        project.write(file, source)
    result = project.run("", "--import-mode=importlib")
    result.assert_outcomes(passed=7, failed=2)
    result.stdout.fnmatch_lines(
        [
            "FAILED api/deep/test_deep.py::test_free - 3 statements, and the budget is 2",
            "FAILED api/test_api.py::test_two - 2 statements, and the budget is 1",
        ]
    )


@pytest.mark.parametrize(
    ("marker", "said"),
    [
        ("sqla_watch(3)", "marker sqla_watch takes keywords, as sqla_watch(max_queries=10), not 3"),
        ("sqla_watch(max_query=3)", "marker sqla_watch: unknown keyword 'max_query'; did you mean 'max_queries'?"),
        ("sqla_watch(max_queries='3')", "marker sqla_watch: max_queries is '3' (str), but must be a whole number"),
        ("sqla_watch(max_rows=-1)", "marker sqla_watch: max_rows is -1, but must be 0 or more"),
        ("sqla_watch(max_rows=True)", "marker sqla_watch: max_rows is True (bool), but must be a whole number"),
        ("sqla_watch(max_database_seconds=float('nan'))", "max_database_seconds is nan, but must be 0 or more"),
        ("sqla_watch(fail_on='n-plus-one')", "marker sqla_watch: fail_on is 'n-plus-one', but must be a list of rules"),
        (
            "sqla_watch(fail_on=['n-plus-on'])",
            "marker sqla_watch: fail_on: unknown rule 'n-plus-on'; did you mean 'n-plus-one'?",
        ),
        ("sqla_watch(allow='n-plus-one')", "marker sqla_watch: allow is 'n-plus-one', but must be a list"),
        ("sqla_watch(allow=['nplus:Order.customer'])", "marker sqla_watch: allow: unknown rule 'nplus'; did you mean"),
        ("sqla_watch(allow=['n-plus-one:'])", "'n-plus-one:' names no target behind the colon"),
        ("sqla_watch(allow=[7])", "marker sqla_watch: allow: 7 is no string"),
        ("sqla_watch(profile='prod')", "marker sqla_watch: unknown profile 'prod'; did you mean 'production'?"),
        ("max_queries()", "marker max_queries takes one number, as max_queries(10), not ()"),
        ("max_queries(1, 2)", "marker max_queries takes one number, as max_queries(10), not (1, 2)"),
        ("max_queries(most=1)", "marker max_queries takes one number, as max_queries(10), not (most=1)"),
        ("max_queries(None)", "marker max_queries takes one number, as max_queries(10), not None"),
        ("max_queries(2.5)", "marker max_queries: max_queries is 2.5 (float), but must be a whole number"),
    ],
)
def test_what_a_marker_cannot_be_is_said(project: Project, marker: str, said: str) -> None:
    result = project.run(f"""
        import pytest

        @pytest.mark.{marker}
        def test_it():
            pass

        def test_others_run():
            pass
        """)
    result.assert_outcomes(errors=1, passed=1)
    assert f"sqla_watch: {said}" in str(result.stdout) or said in str(result.stdout)
    assert "watched.py" not in str(result.stdout)


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ("10", "hook pytest_sqla_watch gives 10, but must give a mapping, as {'max_queries': 10}"),
        ("{'max_statement': 1}", "hook pytest_sqla_watch: unknown keyword 'max_statement'; did you mean"),
    ],
)
def test_what_the_hook_cannot_return_is_said(project: Project, returned: str, said: str) -> None:
    project.write("sub/conftest.py", f"def pytest_sqla_watch(item): return {returned}")
    project.write("sub/test_it.py", "def test_it(): pass")
    result = project.run("", "--import-mode=importlib")
    result.assert_outcomes(errors=1)
    assert said in str(result.stdout)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("sqla_watch_limits = 10", "sqla_watch_limits has '10', but must have lines as 'tests/api: max_queries=10"),
        ("sqla_watch_limits = tests/api max_queries=1", "sqla_watch_limits has 'tests/api max_queries=1', but must"),
        ("sqla_watch_limits = max_query=1", "unknown limit 'max_query'; did you mean 'max_queries'?"),
        ("sqla_watch_limits = max_queries=ten", "where max_queries is 'ten', but must be a number"),
        ("sqla_watch_limits = max_queries=1.5", "max_queries is 1.5 (float), but must be a whole number"),
        ("sqla_watch_limits = a: fail_on=1", "unknown limit 'fail_on'"),
        ("sqla_watch_mode = on", "sqla_watch_mode is 'on', but must be off, warn or fail"),
        ("sqla_watch_fail_on = n-plus-on", "fail_on: unknown rule 'n-plus-on'; did you mean 'n-plus-one'?"),
        ("sqla_watch_allow = n-plus-on:Order", "allow: unknown rule 'n-plus-on'; did you mean 'n-plus-one'?"),
        ("sqla_watch_profile = prod", "unknown profile 'prod'; did you mean 'production'?"),
        ("sqla_watch_unused_baseline = error", "sqla_watch_unused_baseline is 'error', but must be warn or fail"),
    ],
)
def test_what_the_configuration_cannot_be_is_said_before_the_first_test(project: Project, line: str, said: str) -> None:
    project.configure(line)
    result = project.run("def test_it(): pass")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert said in str(result.stderr)
    assert "Traceback" not in str(result.stderr)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--sqla-watch=on", "--sqla-watch is 'on', but must be off, warn or fail"),
        ("--sqla-watch-fail-on=n-plus-on", "fail_on: unknown rule 'n-plus-on'; did you mean 'n-plus-one'?"),
        ("--sqla-watch-update-baseline", "is given, but --sqla-watch-baseline=FILE is not"),
        ("--sqla-watch-json=", "--sqla-watch-json is empty, but must name a file"),
        ("--sqla-watch-sarif=missing/report", "missing/report"),
        ("--sqla-watch-baseline=missing.json", "there is no baseline"),
    ],
)
def test_what_an_option_cannot_be_is_said_before_the_first_test(project: Project, option: str, said: str) -> None:
    result = project.run("def test_it(): pass", option)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert said in str(result.stderr)
    assert "Traceback" not in str(result.stderr)
