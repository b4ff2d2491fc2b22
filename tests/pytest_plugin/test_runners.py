"""The plugin beside others: pytest-xdist, pytest-asyncio, anyio, unittest, reruns, subtests, random order; threads."""

from __future__ import annotations

import json
import re

import pytest

from tests.pytest_plugin.conftest import Project


def report(project: Project) -> dict[str, dict[str, object]]:
    """The tests of a JSON report by the name behind their file."""
    document = json.loads((project.path / "report.json").read_text())
    return {test["nodeid"].partition("::")[2]: test for test in document["tests"]}


def statements(project: Project) -> dict[str, object]:
    return {name: test["statements"] for name, test in report(project).items()}


SEVERAL = """
    import pytest
    from shop import count, names

    @pytest.mark.parametrize("times", range(1, 7))
    @pytest.mark.max_queries(5)
    def test_count(engine, times):
        count(engine, times)

    def test_n_plus_one(session):
        names(session)
    """


@pytest.mark.parametrize("arguments", [(), ("-n2",), ("-n2", "--dist=loadfile"), ("-n0",)])
def test_with_and_without_workers_the_same(project: Project, arguments: tuple[str, ...]) -> None:
    result = project.run(SEVERAL, "--sqla-watch=fail", "--sqla-watch-json=report.json", *arguments, plugins=("xdist",))
    result.assert_outcomes(passed=5, failed=2)
    assert statements(project) == {
        **{f"test_count[{times}]": times for times in range(1, 7)},
        "test_n_plus_one": 6,
    }
    shown = str(result.stdout)
    assert shown.count("7 tests with the database, 27 statements") == 1
    assert "FAILED test_shop.py::test_count[6] - 6 statements, and the budget is 5" in shown
    assert "FAILED test_shop.py::test_n_plus_one - found: n-plus-one" in shown
    assert shown.count("6 statements, by line:") == 2


def test_workers_write_nothing_themselves(project: Project) -> None:
    arguments = ("--sqla-watch-baseline=known.json", "--sqla-watch-budgets=budgets.json", "-n2")
    source = SEVERAL.replace("max_queries(5)", "max_queries(6)")
    project.run(source, *arguments, "--sqla-watch-update-baseline", plugins=("xdist",)).assert_outcomes(passed=7)
    known = json.loads((project.path / "known.json").read_text())
    assert list(known["findings"]) == ["n-plus-one|Order.customer|shop.py|names"]
    budgets = json.loads((project.path / "budgets.json").read_text())
    assert budgets["statements"]["test_shop.py::test_count[4]"] == 4
    assert len(budgets["statements"]) == 7
    project.run("", *arguments, plugins=("xdist",)).assert_outcomes(passed=7)
    one_more = source.replace("    count(engine, times)", "    count(engine, times + (times == 3))")
    result = project.run(one_more, *arguments, plugins=("xdist",))
    result.assert_outcomes(passed=6, failed=1)
    result.stdout.fnmatch_lines(["4 statements, and the budget is 3 (as many as it has had so far: *"])
    assert json.loads((project.path / "budgets.json").read_text()) == budgets


ASYNC = """
    import asyncio
    import pytest
    from sqlalchemy import text
    from sqlalchemy.ext.asyncio import create_async_engine

    async def count(engine, times=1):
        async with engine.connect() as connection:
            for _ in range(times):
                await connection.execute(text("SELECT 1"))
    """


def test_pytest_asyncio(project: Project) -> None:
    project.configure("asyncio_default_fixture_loop_scope = function")
    result = project.run(
        ASYNC
        + """
    import pytest_asyncio

    @pytest_asyncio.fixture(scope="session", loop_scope="session")
    async def shared(tmp_path_factory):
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path_factory.getbasetemp()}/x.db")
        await count(engine, 3)
        yield engine
        await engine.dispose()

    @pytest_asyncio.fixture(loop_scope="session")
    async def connection(shared):
        async with shared.connect() as connection:
            await connection.execute(text("SELECT 1"))
            yield connection
            await connection.execute(text("SELECT 1"))

    @pytest_asyncio.fixture
    async def own():
        engine = create_async_engine("sqlite+aiosqlite://")
        await count(engine)
        yield engine
        await engine.dispose()

    @pytest.mark.asyncio(loop_scope="session")
    @pytest.mark.max_queries(2)
    async def test_shared_within(connection, shared):
        await connection.execute(text("SELECT 1"))
        await count(shared)

    @pytest.mark.asyncio(loop_scope="session")
    @pytest.mark.max_queries(2)
    async def test_shared_over(connection, shared):
        await connection.execute(text("SELECT 1"))
        await count(shared, 2)

    @pytest.mark.asyncio
    @pytest.mark.max_queries(3)
    async def test_own_over(own):
        await asyncio.gather(*[count(own) for _ in range(4)])

    @pytest.mark.asyncio
    async def test_live(own, sqla_watch):
        assert sqla_watch.statements == 0
        await asyncio.create_task(count(own, 2))
        assert sqla_watch.statements == 2
        with sqla_watch.section("more") as more:
            await asyncio.gather(count(own), count(own))
        assert (more.statements, sqla_watch.statements) == (2, 4)
    """,
        "--sqla-watch-json=report.json",
        plugins=("pytest_asyncio.plugin",),
    )
    result.assert_outcomes(passed=4)  # a report only tells
    result = project.run("", plugins=("pytest_asyncio.plugin",))
    result.assert_outcomes(passed=2, failed=2)
    assert statements(project) == {"test_shared_within": 2, "test_shared_over": 3, "test_own_over": 4, "test_live": 4}
    assert [test["setup_statements"] for test in report(project).values()] == [1, 1, 1, 4]
    result.stdout.fnmatch_lines(
        [
            "3 statements, and the budget is 2",
            "      * x test_shop.py:* in count *",
            "FAILED *::test_shared_over - 3 statements, and the budget is 2",
            "FAILED *::test_own_over - 4 statements, and the budget is 3",
        ]
    )


@pytest.mark.parametrize("scope", ["function", "session"])
def test_anyio(project: Project, scope: str) -> None:
    result = project.run(
        ASYNC
        + f"""
    @pytest.fixture(scope="{scope}")
    def anyio_backend():
        return "asyncio"

    @pytest.fixture(scope="{scope}")
    async def engine(anyio_backend, tmp_path_factory):
        engine = create_async_engine(f"sqlite+aiosqlite:///{{tmp_path_factory.getbasetemp()}}/x.db")
        await count(engine, 3)
        yield engine
        await count(engine, 5)
        await engine.dispose()

    @pytest.mark.anyio
    @pytest.mark.max_queries(2)
    async def test_within(engine):
        await count(engine, 2)

    @pytest.mark.anyio
    @pytest.mark.max_queries(2)
    async def test_over(engine):
        await count(engine, 3)
    """,
        plugins=("anyio.pytest_plugin",),
    )
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["FAILED *::test_over - 3 statements, and the budget is 2"])


def test_unittest_classes(project: Project) -> None:
    result = project.run(
        """
        import unittest
        import pytest
        from sqlalchemy import text
        from sqlalchemy.ext.asyncio import create_async_engine
        from shop import count, fill, make_engine

        @pytest.mark.max_queries(2)
        class TestPlain(unittest.TestCase):
            @classmethod
            def setUpClass(cls):
                cls.engine = make_engine()
                fill(cls.engine)
                cls.addClassCleanup(cls.engine.dispose)

            def setUp(self):
                count(self.engine, 5)
                self.addCleanup(count, self.engine, 5)

            def tearDown(self):
                count(self.engine, 5)

            def test_within(self):
                count(self.engine, 2)

            def test_over(self):
                count(self.engine, 3)

            def test_its_own_failure(self):
                count(self.engine, 3)
                self.assertEqual(1, 2)

            @unittest.expectedFailure
            def test_expected(self):
                count(self.engine, 3)
                self.assertEqual(1, 2)

            def test_parts(self):
                for part in range(3):
                    with self.subTest(part=part):
                        count(self.engine)

        class TestAsync(unittest.IsolatedAsyncioTestCase):
            async def asyncSetUp(self):
                self.engine = create_async_engine("sqlite+aiosqlite://")
                self.addAsyncCleanup(self.engine.dispose)
                await self.count(5)

            async def asyncTearDown(self):
                await self.count(5)

            async def count(self, times):
                async with self.engine.connect() as connection:
                    for _ in range(times):
                        await connection.execute(text("SELECT 1"))

            @pytest.mark.max_queries(2)
            async def test_within(self):
                await self.count(2)

            @pytest.mark.max_queries(2)
            async def test_over(self):
                await self.count(3)
        """,
        "--sqla-watch-json=report.json",
        "--sqla-watch=fail",
        "--sqla-watch-fail-on=none",
    )
    result.stdout.fnmatch_lines(
        [
            "FAILED *::TestPlain::test_its_own_failure - AssertionError: 1 != 2",
            "FAILED *::TestPlain::test_over - 3 statements, and the budget is 2",
            "FAILED *::TestPlain::test_parts - 3 statements, and the budget is 2",
            "FAILED *::TestAsync::test_over - 3 statements, and the budget is 2",
        ]
    )
    found = report(project)
    assert {name: test["statements"] for name, test in found.items()} == {
        "TestPlain::test_within": 2,
        "TestPlain::test_over": 3,
        "TestPlain::test_its_own_failure": 3,
        "TestPlain::test_expected": 3,
        "TestPlain::test_parts": 3,
        "TestAsync::test_within": 2,
        "TestAsync::test_over": 3,
    }
    assert [name for name, test in found.items() if not test["completed"]] == [
        "TestPlain::test_expected", "TestPlain::test_its_own_failure",
    ]  # fmt: skip
    assert found["TestPlain::test_over"]["setup_statements"] == 5
    assert found["TestAsync::test_over"]["setup_statements"] == 5


def test_a_unittest_whose_set_up_fails_has_no_numbers(project: Project) -> None:
    result = project.run(
        """
        import unittest
        import pytest
        from shop import count, fill, make_engine

        class TestIt(unittest.TestCase):
            def setUp(self):
                self.engine = make_engine()
                fill(self.engine)
                raise LookupError("in setUp")

            @pytest.mark.max_queries(0)
            def test_it(self):
                count(self.engine)

            @unittest.skip("not now")
            def test_skipped(self):
                pass
        """,
        "--sqla-watch-json=report.json",
        "--sqla-watch=fail",
    )
    result.assert_outcomes(failed=1, skipped=1)
    result.stdout.fnmatch_lines(["FAILED *::TestIt::test_it - LookupError: in setUp"])
    assert statements(project) == {}


def test_of_reruns_the_last_one_counts(project: Project) -> None:
    result = project.run(
        """
        import pytest
        from shop import count

        runs = {"flaky": 0, "unsure": 0}

        @pytest.mark.max_queries(2)
        def test_flaky_in_its_statements(engine):
            runs["flaky"] += 1
            count(engine, 4 - runs["flaky"])

        def test_flaky_itself(engine):
            runs["unsure"] += 1
            count(engine, runs["unsure"])
            assert runs["unsure"] == 3
        """,
        "--reruns=3",
        "--sqla-watch-json=report.json",
        "--sqla-watch=fail",
        "--junit-xml=junit.xml",
        plugins=("pytest_rerunfailures",),
    )
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(
        [
            "*2 passed, 3 rerun*",
        ]
    )
    assert statements(project) == {"test_flaky_in_its_statements": 2, "test_flaky_itself": 3}
    xml = (project.path / "junit.xml").read_text()
    assert xml.count('name="sqla_watch.statements"') == xml.count("<testcase ") == 5  # each run by itself
    assert re.findall('name="sqla_watch.statements" value="([0-9])"', xml) == ["3", "2", "1", "2", "3"]


@pytest.mark.skipif(not hasattr(pytest, "Subtests"), reason="subtests come with pytest 9")
def test_subtests_count_for_their_test(project: Project) -> None:
    result = project.run(
        """
        import pytest
        from shop import count

        @pytest.mark.max_queries(3)
        def test_over(engine, subtests):
            for number in range(4):
                with subtests.test(number=number):
                    count(engine)

        @pytest.mark.max_queries(1)
        def test_own_failure(engine, subtests):
            with subtests.test("fails"):
                assert 1 == 2
            with subtests.test("passes"):
                count(engine)
        """,
        "--sqla-watch-json=report.json",
        "--sqla-watch=fail",
    )
    shown = str(result.stdout)
    assert "FAILED test_shop.py::test_over - 4 statements, and the budget is 3" in shown
    assert "assert 1 == 2" in shown
    assert statements(project) == {"test_over": 4, "test_own_failure": 1}


def test_random_order_changes_nothing(project: Project) -> None:
    for seed in ("1", "2"):
        result = project.run(
            SEVERAL,
            "--sqla-watch=fail",
            "--sqla-watch-json=report.json",
            f"--randomly-seed={seed}",
            plugins=("pytest_randomly",),
        )
        result.assert_outcomes(passed=5, failed=2)
        assert statements(project)["test_count[6]"] == 6


def test_the_same_random_numbers_with_and_without_us(project: Project) -> None:
    source = """
        import random
        from shop import count

        def test_it(engine):
            count(engine)
            print("drawn", random.random())
        """
    drawn = set()
    for mode in ("off", "warn", "fail"):
        result = project.run(source, "-s", f"--sqla-watch={mode}", "--randomly-seed=7", plugins=("pytest_randomly",))
        drawn.update(line for line in result.outlines if "drawn" in line)
    assert len(drawn) == 1


def test_threads_count_wherever_they_come_from(project: Project) -> None:
    project.run("""
        import asyncio, threading
        from concurrent.futures import ThreadPoolExecutor
        import pytest
        from shop import count

        @pytest.fixture(scope="module")
        def pool():
            with ThreadPoolExecutor(1) as pool:
                pool.submit(int).result()  # its thread is there before the test
                yield pool

        def test_thread(engine, sqla_watch):
            thread = threading.Thread(target=count, args=(engine, 2))
            thread.start()
            thread.join()
            assert sqla_watch.statements == 2
            assert [line.count for line in sqla_watch.queries_for("orders")] == [2]

        def test_executor_of_a_fixture(engine, pool, sqla_watch):
            pool.submit(count, engine, 3).result()
            assert sqla_watch.statements == 3

        def test_to_thread(engine, sqla_watch):
            async def main():
                await asyncio.to_thread(count, engine)
                await asyncio.get_running_loop().run_in_executor(None, count, engine)
            asyncio.run(main())
            assert sqla_watch.statements == 2
        """).assert_outcomes(passed=3)


def test_an_n_plus_one_in_a_thread_is_found(project: Project) -> None:
    result = project.run(
        """
        import threading
        from sqlalchemy.orm import Session
        from shop import names

        def test_it(engine):
            def work():
                with Session(engine) as session:
                    names(session)
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
        """,
        "--sqla-watch=fail",
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["FAILED *::test_it - found: n-plus-one"])


def test_a_connection_held_by_a_fixture_counts_by_when_it_is_used(project: Project) -> None:
    project.run("""
        import threading, queue
        import pytest
        from sqlalchemy import text

        @pytest.fixture(scope="module")
        def shop():
            from shop import fill, make_engine
            engine = make_engine()
            fill(engine)
            yield engine
            engine.dispose()

        @pytest.fixture(scope="module")
        def connection(shop):
            with shop.connect() as connection:
                connection.execute(text("SELECT 1"))
                yield connection

        @pytest.fixture(scope="module")
        def worker(shop):
            '''A thread that has a connection of its own for as long as all tests last.'''
            asked, done = queue.Queue(), queue.Queue()
            def work():
                with shop.connect() as connection:
                    while (times := asked.get()) is not None:
                        for _ in range(times):
                            connection.execute(text("SELECT 1"))
                        done.put(None)
            thread = threading.Thread(target=work)
            thread.start()
            def ask(times):
                asked.put(times)
                done.get()
            ask(7)
            yield ask
            asked.put(None)
            thread.join()

        @pytest.mark.max_queries(2)
        def test_first(connection, worker, sqla_watch):
            connection.execute(text("SELECT 1"))
            worker(1)
            assert sqla_watch.statements == 2

        @pytest.mark.max_queries(3)
        def test_second(connection, worker, sqla_watch):
            worker(3)
            assert sqla_watch.statements == 3
        """).assert_outcomes(passed=2)


@pytest.mark.parametrize("scope", ["function", "session"])
def test_a_test_client_and_its_portal(project: Project, scope: str) -> None:
    result = project.run(
        f"""
        import pytest
        from fastapi import FastAPI
        from fastapi.testclient import TestClient
        from sqlalchemy.ext.asyncio import create_async_engine
        from sqlalchemy import text
        from sqla_watch.integrations.asgi import SqlaWatchMiddleware
        from shop import count, fill, make_engine

        @pytest.fixture(scope="{scope}", params=["bare", "with middleware"])
        def client(request):
            engine = make_engine()
            fill(engine)
            app = FastAPI()

            @app.get("/threads/{{times}}")
            def in_a_thread(times: int):
                count(engine, times)
                return times

            @app.get("/loop/{{times}}")
            async def on_the_loop(times: int):
                count(engine, times)
                return times

            if request.param == "with middleware":
                app.add_middleware(SqlaWatchMiddleware)
            with TestClient(app) as client:
                client.get("/threads/3")
                yield client
            engine.dispose()

        @pytest.mark.max_queries(5)
        def test_within(client, sqla_watch):
            assert client.get("/threads/2").json() == 2
            assert client.get("/loop/3").json() == 3
            assert sqla_watch.statements == 5
            assert sum(line.count for line in sqla_watch.queries_for("orders")) == 5

        @pytest.mark.max_queries(5)
        def test_over(client):
            client.get("/threads/2")
            client.get("/loop/4")
        """,
        "-Wdefault",
        "-Werror::sqla_watch.SqlaWatchWarning",
    )
    result.assert_outcomes(passed=2, failed=2)
    result.stdout.fnmatch_lines(["6 statements, by line:", "      6 x shop.py:* in count (*"])


def test_a_server_in_a_thread_of_a_fixture(project: Project) -> None:
    """Its thread knows of no test, and its requests are scopes of their own."""
    project.run("""
        import threading, urllib.request
        from wsgiref.simple_server import WSGIRequestHandler, make_server
        import pytest
        from sqla_watch.integrations.wsgi import SqlaWatchMiddleware
        from shop import count, fill, make_engine, names

        class Quiet(WSGIRequestHandler):
            def log_message(self, *arguments):
                pass

        @pytest.fixture(scope="module")
        def url():
            engine = make_engine()
            fill(engine)
            def app(environ, start_response):
                count(engine, 3)
                start_response("200 OK", [])
                return [b"done"]
            server = make_server("127.0.0.1", 0, SqlaWatchMiddleware(app), handler_class=Quiet)
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            yield f"http://127.0.0.1:{server.server_port}/"
            server.shutdown()
            thread.join()
            server.server_close()
            engine.dispose()

        @pytest.mark.parametrize("requests", [1, 2])
        def test_it(url, requests, sqla_watch):
            for _ in range(requests):
                urllib.request.urlopen(url).read()
            assert sqla_watch.statements == 3 * requests
            assert [line.count for line in sqla_watch.queries_for("orders")] == [3 * requests]
        """).assert_outcomes(passed=2)


@pytest.mark.parametrize("where", ["before", "after"])
def test_engines_made_before_and_after_the_run_began(project: Project, where: str) -> None:
    project.write(
        "conftest.py",
        "import pytest\nfrom shop import fill, make_engine\n"
        + ("early = make_engine()\nfill(early)\n" if where == "before" else "")
        + "@pytest.fixture\ndef engine():\n"
        + ("    yield early\n" if where == "before" else "    made = make_engine()\n    fill(made)\n    yield made\n"),
    )
    project.run("""
        import pytest
        from shop import count

        @pytest.mark.max_queries(1)
        def test_it(engine):
            count(engine, 2)
        """).assert_outcomes(failed=1)


def test_doctests_and_other_items_are_watched_as_well(project: Project) -> None:
    project.write(
        "documented.py",
        '''
        """
        >>> from shop import count, fill, make_engine
        >>> engine = make_engine()
        >>> fill(engine)
        >>> count(engine, 2)
        """
        ''',
    )
    result = project.run("", "--doctest-modules", "documented.py", "--sqla-watch=warn", "--sqla-watch-json=report.json")
    result.assert_outcomes(passed=1)
    assert int(statements(project)["documented"]) > 2  # type: ignore[call-overload]
