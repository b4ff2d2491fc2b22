"""The plugin is light, says what it takes, and gives a test its scope."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import sqla_watch
from tests.pytest_plugin.conftest import Project

PACKAGE = Path(sqla_watch.__file__).parent


def test_the_plugin_by_itself_imports_nothing_heavy() -> None:
    program = """
import sys, sqla_watch.pytest_plugin
print([name for name in sys.modules if name.split(".")[0] in ("sqlalchemy", "jinja2", "rich")
       or (name.startswith("sqla_watch.") and not name.startswith("sqla_watch.pytest_plugin"))])
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_without_a_watched_test_nothing_of_it_is_loaded(project: Project) -> None:
    project.write("conftest.py", "")
    project.run(
        """
        import sys
        from sqla_watch import registry

        def test_it(pytestconfig):
            assert "sqla_watch.pytest_plugin.watched" not in sys.modules
            assert not pytestconfig.pluginmanager.has_plugin("sqla_watch_tests")
            assert registry.watches == []
        """,
        apart=True,
    ).assert_outcomes(passed=1)


def test_all_options_and_keys_are_documented(project: Project) -> None:
    shown = str(project.run("", "--help").stdout)
    page = (PACKAGE.parent / "docs" / "pytest.md").read_text(encoding="utf-8")
    options = set(re.findall(r"--sqla-watch[\w-]*", shown))
    keys = set(re.findall(r"\bsqla_watch_\w+(?= \()", shown))
    assert len(options) >= 10
    assert len(keys) >= 9
    page = page.replace("`-html`", "`--sqla-watch-html`").replace("`-sarif`", "`--sqla-watch-sarif`")
    page = page.replace("`sqla_watch_json`, …", "`sqla_watch_json` `sqla_watch_html` `sqla_watch_sarif`")
    assert [each for each in sorted(options | keys) if f"{each}" not in page] == []


def test_the_fixture_is_the_live_scope(project: Project) -> None:
    project.run("""
        import pytest
        from sqlalchemy import select
        from shop import Customer, Order, count, names

        @pytest.fixture
        def before(sqla_watch, engine):
            count(engine)
            assert (sqla_watch.statements, sqla_watch.rows, sqla_watch.findings, sqla_watch.lines) == (0, 0, [], [])

        def test_numbers(before, sqla_watch, session):
            names(session)
            assert sqla_watch.statements == 6
            assert sqla_watch.rows == 10
            assert sqla_watch.database_seconds > 0
            assert sqla_watch.transactions == 0
            session.commit()
            assert sqla_watch.transactions == 1
            assert [finding.target for finding in sqla_watch.findings] == ["Order.customer"]

        def test_lines(sqla_watch, session):
            names(session)
            loads, query = sqla_watch.lines
            assert (loads.count, loads.rows, loads.tables) == (5, 5, ("customers",))
            assert (query.count, query.rows, query.tables) == (1, 5, ("orders",))
            assert loads.location.function == "names"
            assert sqla_watch.queries_for("CUSTOMERS") == [loads]
            assert sqla_watch.queries_for("orders") == [query]
            assert sqla_watch.queries_for("order") == []
            with pytest.raises(TypeError, match="takes the name of a table, not"):
                sqla_watch.queries_for(Order)

        def test_sections(sqla_watch, session):
            with sqla_watch.section("load") as load:
                orders = session.scalars(select(Order)).all()
            with sqla_watch.section("use") as use:
                [order.customer for order in orders]
            assert (load.statements, use.statements, sqla_watch.statements) == (1, 5, 6)
            assert load.findings == []
            assert [finding.rule for finding in use.findings] == ["n-plus-one"]
            assert [finding.rule for finding in sqla_watch.findings] == ["n-plus-one"]
            assert sum(line.count for line in sqla_watch.lines) == 6

        def test_asked_for_late(request, engine):
            scope = request.getfixturevalue("sqla_watch")
            count(engine, 2)
            assert scope.statements == 2

        def test_the_one_before_is_over(engine, request):
            count(engine)
            scope = request.getfixturevalue("sqla_watch")
            count(engine, 3)
            assert scope.statements == 3

        def test_by_itself_it_fails_nothing(sqla_watch, session):
            names(session)

        class TestMethods:
            def test_method(self, sqla_watch, engine):
                count(engine)
                assert sqla_watch.statements == 1
        """).assert_outcomes(passed=7)


@pytest.mark.parametrize("mode", ["off", "warn", "fail"])
def test_the_fixture_counts_in_each_mode(project: Project, mode: str) -> None:
    project.run(
        """
        import pytest
        from shop import count

        @pytest.fixture
        def late(request, engine):
            return request.getfixturevalue("sqla_watch")

        def test_it(engine, sqla_watch):
            count(engine, 3)
            assert sqla_watch.statements == 3

        def test_asked_for_by_a_fixture(engine, late):
            count(engine, 2)
            assert late.statements == 2
        """,
        f"--sqla-watch={mode}",
    ).assert_outcomes(passed=2)


def test_a_marker_counts_nothing_when_it_is_off(project: Project) -> None:
    project.run(
        """
        import pytest
        from shop import count

        @pytest.mark.sqla_watch(max_queries=0, no_such_keyword=True)
        def test_it(engine, sqla_watch):
            count(engine, 3)
        """,
        "--sqla-watch=off",
    ).assert_outcomes(passed=1)


def test_a_run_inside_of_a_watched_test_leaves_it_watched(project: Project) -> None:
    project.write(
        "test_outer.py",
        """
        import pytest
        from shop import count

        pytest_plugins = "pytester"

        @pytest.mark.max_queries(2)
        def test_outer(pytester, engine):
            pytester.makepyfile(test_inner='''
                import pytest
                @pytest.mark.max_queries(1)
                def test_inner(): pass
            ''')
            pytester.runpytest_inprocess("-p", "sqla_watch.pytest_plugin").assert_outcomes(passed=1)
            count(engine, 3)
        """,
    )
    result = project.run("", "test_outer.py", apart=True)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["FAILED *::test_outer - 3 statements, and the budget is 2"])


def test_real_postgresql(project: Project, shop_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_URL", shop_url)
    project.write("conftest.py", "")
    result = project.run(
        """
        import os
        import pytest
        from sqlalchemy import create_engine, make_url, select
        from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
        from sqlalchemy.orm import Session
        from sqla_watch.demo.models import Order

        URL = make_url(os.environ["SHOP_URL"])

        @pytest.fixture(scope="module")
        def engine():
            engine = create_engine(URL.set(drivername="postgresql+psycopg"))
            yield engine
            engine.dispose()

        def names(session):
            return [order.customer.name for order in session.scalars(select(Order).order_by(Order.id).limit(30))]

        @pytest.mark.sqla_watch(max_queries=200)
        def test_n_plus_one(engine):
            with Session(engine) as session:
                names(session)

        @pytest.mark.sqla_watch
        @pytest.mark.max_queries(5)
        def test_over(engine):
            with Session(engine) as session:
                for number in range(6):
                    session.get(Order, number + 1)

        @pytest.mark.anyio
        @pytest.mark.parametrize("anyio_backend", ["asyncio"])
        async def test_async(anyio_backend, sqla_watch):
            engine = create_async_engine(URL.set(drivername="postgresql+asyncpg"))
            async with AsyncSession(engine) as session:
                await session.run_sync(names)
            await engine.dispose()
            assert sqla_watch.findings[0].target == "Order.customer"
        """,
        plugins=("anyio.pytest_plugin",),
        apart=True,  # asyncpg cannot be loaded a second time
    )
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(
        [
            "found: n-plus-one",
            "      Add to the query at *test_shop.py:*:",
            "      .options(joinedload(Order.customer))",
            "6 statements, and the budget is 5",
        ]
    )


def test_a_run_without_a_watched_test_does_not_import_sqlalchemy(project: Project) -> None:
    project.write("conftest.py", "")
    project.run(
        """
        import sys

        def test_it():
            assert "sqlalchemy" not in sys.modules
        """,
        apart=True,
    ).assert_outcomes(passed=1)
