"""What is watched, what fails, and what is changed for the tests: nothing."""

from __future__ import annotations

import pytest

from tests.pytest_plugin.conftest import Project

N_PLUS_ONE = """
    import pytest
    from shop import count, names

    def test_n_plus_one(session):
        names(session)

    def test_fine(engine):
        count(engine)
    """


@pytest.mark.parametrize(
    ("arguments", "failed"),
    [
        ((), 0),
        (("--sqla-watch=off",), 0),
        (("--sqla-watch=warn",), 0),
        (("--sqla-watch=fail",), 1),
        (("--sqla-watch=fail", "--sqla-watch-fail-on=slow-query"), 0),
        (("--sqla-watch=fail", "--sqla-watch-fail-on=none"), 0),
        (("--sqla-watch-fail-on=slow-query,n-plus-one",), 1),
        (("--sqla-watch-fail-on=all",), 1),
        (("--sqla-watch=warn", "--sqla-watch-fail-on=all"), 0),
    ],
)
def test_what_fails_in_which_mode(project: Project, arguments: tuple[str, ...], failed: int) -> None:
    project.run(N_PLUS_ONE, *arguments).assert_outcomes(passed=2 - failed, failed=failed)


def test_the_configuration_says_the_mode_and_the_command_line_wins(project: Project) -> None:
    project.configure("""
        sqla_watch_mode = fail
        sqla_watch_fail_on = n-plus-one slow-query
        """)
    project.run(N_PLUS_ONE).assert_outcomes(passed=1, failed=1)
    project.run("", "--sqla-watch=warn").assert_outcomes(passed=2)
    project.run("", "--sqla-watch-fail-on=slow-query").assert_outcomes(passed=2)


def test_a_finding_that_fails_a_test_is_told_with_what_to_change(project: Project) -> None:
    result = project.run(N_PLUS_ONE, "--sqla-watch=fail")
    result.stdout.fnmatch_lines(
        [
            "*__ test_n_plus_one __*",
            "found: n-plus-one",
            "6 statements, by line:",
            "      5 x shop.py:* in names (*ms, 5 rows)",
            "          SELECT customers.id* FROM customers WHERE customers.id = ?",
            "      1 x shop.py:* in names (*ms, 5 rows)",
            "1 finding:",
            "  shop.py:* in names: Order.customer was loaded lazily for 5 Order objects, one *[[]n-plus-one[]]",
            "      parents loaded by the query at shop.py:* in names",
            "      Add to the query at *shop.py:*:",
            "      .options(joinedload(Order.customer))",
            "FAILED test_shop.py::test_n_plus_one - found: n-plus-one",
        ]
    )
    shown = str(result.stdout)
    assert "watched.py" not in shown
    assert "pluggy/" not in shown


@pytest.mark.parametrize("style", ["long", "short", "line", "native", "no"])
def test_our_frames_are_hidden_in_each_style(project: Project, style: str) -> None:
    result = project.run(
        """
        import pytest
        from shop import count

        @pytest.mark.max_queries(1)
        def test_over(engine):
            count(engine, 2)

        @pytest.mark.max_queries(1)
        def test_own(engine):
            assert 1 == 2, "the test's own"
        """,
        f"--tb={style}",
    )
    result.assert_outcomes(failed=2)
    shown = str(result.stdout)
    assert "FAILED test_shop.py::test_over - 2 statements, and the budget is 1" in shown
    assert "FAILED test_shop.py::test_own - AssertionError: the test's own" in shown
    if style not in ("native", "no"):
        assert "watched.py" not in shown
    if style == "line":
        assert "test_shop.py:5: 2 statements, and the budget is 1" in shown


def test_the_tests_own_exception_wins(project: Project) -> None:
    result = project.run("""
        import pytest, unittest
        from shop import count, names

        pytestmark = pytest.mark.sqla_watch(max_queries=0)

        def test_assertion(session):
            names(session)
            assert 1 == 2

        def test_error(session):
            names(session)
            raise LookupError("the test's own")

        def test_skipped(session):
            names(session)
            pytest.skip("half-way")

        def test_xfail(session):
            names(session)
            pytest.xfail("known")

        @pytest.mark.xfail(raises=LookupError)
        def test_expected(session):
            names(session)
            raise LookupError

        class TestCase(unittest.TestCase):
            def test_in_a_class(self):
                from shop import fill, make_engine
                engine = make_engine()
                fill(engine)
                self.fail("the test's own")
        """)
    result.assert_outcomes(failed=3, skipped=1, xfailed=2)
    shown = str(result.stdout)
    assert "the budget is" not in shown
    assert "FAILED test_shop.py::test_assertion - assert 1 == 2" in shown
    assert "FAILED test_shop.py::test_error - LookupError: the test's own" in shown
    assert "FAILED test_shop.py::TestCase::test_in_a_class - AssertionError: the test's own" in shown


def test_our_failure_is_an_assertion_error(project: Project) -> None:
    project.run("""
        import pytest
        from shop import count

        @pytest.mark.xfail(raises=AssertionError, strict=True)
        @pytest.mark.max_queries(1)
        def test_it(engine):
            count(engine, 2)
        """).assert_outcomes(xfailed=1)


def test_only_the_call_counts_and_fixtures_are_recorded_apart(project: Project) -> None:
    project.write(
        "conftest.py",
        """
        import pytest
        from shop import count, fill, make_engine

        @pytest.fixture(scope="session")
        def engine():
            engine = make_engine()
            fill(engine)
            count(engine, 10)
            yield engine
            count(engine, 20)
            engine.dispose()

        @pytest.fixture(scope="module")
        def counted(engine):
            count(engine, 3)
            yield
            count(engine, 30)

        @pytest.fixture(autouse=True)
        def each(counted, engine):
            count(engine, 2)
            yield
            count(engine, 40)
        """,
    )
    result = project.run(
        """
        import pytest
        from shop import count

        def setup_module():
            pass

        @pytest.mark.max_queries(1)
        @pytest.mark.parametrize("number", [1, 2])
        def test_it(engine, number, sqla_watch):
            assert sqla_watch.statements == 0
            count(engine)
            assert sqla_watch.statements == 1
        """,
        "--sqla-watch=fail",
    )
    result.assert_outcomes(passed=2)
    # fill() sends 1 INSERT for each of 10 rows or one for many, depending on SQLAlchemy; what count() sends is sure.
    result.stdout.re_match_lines(
        [r"2 tests with the database, 2 statements, .* in it, fixtures: (2[0-9]|3[0-9]) statem.*"]
    )


def test_what_is_loaded_or_made_in_set_up_does_not_hide_an_n_plus_one(project: Project) -> None:
    result = project.run(
        """
        import pytest
        from sqlalchemy import select
        from sqlalchemy.orm import Session
        from shop import Customer, Order

        @pytest.fixture
        def loaded(session):
            return session.scalars(select(Order)).all()

        @pytest.fixture
        def made(session):
            orders = [Order(customer=Customer(name=f"New {number}")) for number in range(12)]
            session.add_all(orders)
            session.commit()
            return orders

        @pytest.fixture
        def customers_are_there(session):
            return session.scalars(select(Customer)).all()

        def test_loaded(loaded):
            assert len([order.customer.name for order in loaded]) == 5

        def test_made(made):
            assert len([order.customer.name for order in made]) == 12

        def test_nothing_to_load(customers_are_there, loaded):
            assert len([order.customer.name for order in loaded]) == 5
        """,
        "--sqla-watch=fail",
    )
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(["FAILED *::test_loaded - found: n-plus-one", "FAILED *::test_made - found: *"])


def test_what_is_allowed_is_no_fault(project: Project) -> None:
    result = project.run("""
        import pytest
        from shop import names

        @pytest.mark.sqla_watch(allow=["n-plus-one:Order.customer"])
        def test_allowed(session):
            names(session)

        @pytest.mark.sqla_watch(allow=["n-plus-one:Order.*"])
        def test_by_pattern(session):
            names(session)

        @pytest.mark.sqla_watch(allow=["n-plus-one"])
        def test_the_whole_rule(session):
            names(session)

        @pytest.mark.sqla_watch(allow=["n-plus-one:Order.items", "query-in-loop"])
        def test_something_else_is_allowed(session):
            names(session)

        @pytest.mark.sqla_watch(fail_on=["slow-query"])
        def test_fails_on_something_else(session):
            names(session)

        @pytest.mark.sqla_watch(profile="production")
        def test_is_too_few_for_production(session):
            from sqlalchemy import select
            from shop import Order
            [order.customer for order in session.scalars(select(Order).limit(4))]
        """)
    result.assert_outcomes(passed=5, failed=1)
    result.stdout.fnmatch_lines(["FAILED *::test_something_else_is_allowed - found: n-plus-one"])


def test_ignores_in_the_code_count(project: Project) -> None:
    project.run(
        """
        import sqla_watch
        from sqlalchemy import select
        from shop import Order, names

        def test_block(session):
            with sqla_watch.ignore("n-plus-one", "Order.customer"):
                names(session)

        def test_comment(session):
            for order in session.scalars(select(Order)):
                order.customer.name  # sqla-watch: ignore[n-plus-one]
        """,
        "--sqla-watch=fail",
    ).assert_outcomes(passed=2)


@pytest.mark.parametrize("mode", ["off", "warn", "fail"])
def test_no_finding_is_a_warning_or_a_record_of_the_log(project: Project, mode: str) -> None:
    project.run(
        """
        import logging, warnings
        import pytest
        import sqla_watch
        from sqlalchemy.orm import Session
        from shop import names

        @pytest.mark.filterwarnings("error")
        def test_as_errors(session):
            names(session)

        def test_always(session, caplog, recwarn):
            warnings.simplefilter("always")
            names(session)
            with sqla_watch.scope("inner"):
                session.expunge_all()
                names(session)
                with sqla_watch.scope("innermost"):
                    session.expunge_all()
                    names(session)
            assert not recwarn.list
            assert not caplog.records

        @pytest.fixture
        def fixture_with_a_loop(engine):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                with Session(engine) as session:
                    names(session)

        def test_fixture(fixture_with_a_loop, caplog):
            assert not caplog.get_records("setup")
        """,
        f"--sqla-watch={mode}",
        "--sqla-watch-fail-on=none",
        "-Werror",
    ).assert_outcomes(passed=3)


def test_what_scopes_inside_of_a_test_find_is_the_tests(project: Project) -> None:
    result = project.run(
        """
        import sqla_watch
        from shop import names

        def test_it(session):
            with sqla_watch.scope("outer"), sqla_watch.scope("inner"):
                names(session)
        """,
        "--sqla-watch=fail",
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["found: n-plus-one", "6 statements, by line:", "      5 x shop.py:* in names *"])


def test_an_action_that_the_project_asks_for_is_taken(project: Project) -> None:
    project.write(
        "pyproject.toml",
        """
        [tool.sqla_watch]
        profile = "development"
        [tool.sqla_watch.rules]
        n-plus-one = "warn"
        slow-query = "log"
        """,
    )
    result = project.run(N_PLUS_ONE, "--sqla-watch=warn")
    result.assert_outcomes(passed=2, warnings=1)
    result.stdout.fnmatch_lines(["*NPlusOneWarning: Order.customer was loaded lazily *"])
    project.run("", "--sqla-watch=warn", "-Werror").assert_outcomes(passed=1, failed=1)


def test_a_mistake_in_the_projects_settings_is_said_before_the_first_test(project: Project) -> None:
    project.write("pyproject.toml", "[tool.sqla_watch.rules]\nn-plus-on = 'warn'")
    result = project.run(N_PLUS_ONE, "--sqla-watch=warn", apart=True)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*pyproject.toml: unknown rule 'n-plus-on'; did you mean 'n-plus-one'?"])


def test_a_run_without_an_engine_says_that_nothing_was_checked(project: Project) -> None:
    project.write("conftest.py", "")
    source = """
        import pytest

        @pytest.mark.max_queries(1)
        def test_one():
            pass

        @pytest.mark.max_queries(1)
        def test_two():
            pass
        """
    said = "sqla_watch: 2 tests have a budget, but no SQLAlchemy engine was seen in this run: nothing was checked"
    result = project.run(source, apart=True)
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines([said])
    project.run("", "-n2", plugins=("xdist",)).stdout.fnmatch_lines([said])
    assert "nothing was checked" not in str(project.run("", "--sqla-watch=off", apart=True).stdout)
    project.write(
        "test_other.py",
        "from sqlalchemy import create_engine\nengine = create_engine('sqlite://')\n" + source.replace("        ", ""),
    )
    assert "nothing was checked" not in str(project.run("", apart=True).stdout)


def test_engines_are_as_they_were_after_the_run(project: Project) -> None:
    import sqlalchemy
    from sqlalchemy import Engine

    import sqla_watch
    from sqla_watch import registry
    from sqla_watch.probes.checkout import Checkout
    from sqla_watch.scopes import Scope, current

    before = (Engine.__init__, Scope.close, Checkout.find_scope)
    engine = sqlalchemy.create_engine("sqlite://")
    methods = dict(vars(engine.dialect))
    project.run(N_PLUS_ONE, "--sqla-watch=warn").assert_outcomes(passed=2)
    assert (Engine.__init__, Scope.close, Checkout.find_scope) == before
    assert vars(engine.dialect) == methods
    assert registry.watches == []
    assert current.get() is None
    engine.dispose()
    assert sqla_watch.current_scope() is None


def test_an_application_that_takes_our_watch_off_does_not_blind_us(project: Project) -> None:
    result = project.run(
        """
        import sqla_watch
        from shop import names

        def test_first(session):
            sqla_watch.uninstall()

        def test_second(session):
            names(session)
        """,
        "--sqla-watch=fail",
    )
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["FAILED *::test_second - found: n-plus-one"])


def test_an_application_that_watches_itself_goes_on_as_before(project: Project) -> None:
    project.run(
        """
        import pytest
        import sqla_watch
        from shop import names

        @pytest.fixture(autouse=True)
        def watch(engine):
            with sqla_watch.install(engine, settings=sqla_watch.Settings(rules={"n-plus-one": "raise"})) as watch:
                yield watch

        def test_raises(session):
            with pytest.raises(sqla_watch.FindingRaised):
                names(session)

        def test_raises_in_a_scope(session):
            with pytest.raises(sqla_watch.FindingRaised), sqla_watch.scope("inner"):
                names(session)
        """,
        "--sqla-watch=warn",
    ).assert_outcomes(passed=2)
