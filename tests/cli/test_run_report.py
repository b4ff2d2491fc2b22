"""What `sqla-watch run` tells at a program's end, on standard error and as JSON."""

from __future__ import annotations

import json

from sqlalchemy import make_url

LOADED_LAZILY = "Customer.orders was loaded lazily for 10 Customer objects"


def report_of(workshop, name="report.json"):
    return json.loads((workshop.folder / name).read_text(encoding="utf-8"))


def test_one_mistake_in_main_and_in_threads_is_told_once_with_its_sums(shop):
    shop.write(
        "export.py",
        """
        import threading
        import shop

        print(shop.count_orders())
        threads = [threading.Thread(target=shop.count_orders) for _ in range(3)]
        for thread in threads:
            thread.start()
        """,
    )
    run = shop.sqla_watch("run", "--json", "report.json", "export.py", "--all")
    assert (run.returncode, run.stdout) == (0, "10\n")
    assert run.stderr.count(LOADED_LAZILY) == 1
    assert "40 statements, " in run.stderr
    assert "in 4 scopes  shop.py:29 in count_orders  [n-plus-one]" in run.stderr
    assert "parents loaded by the query at shop.py:29 in count_orders" in run.stderr
    assert "    .options(selectinload(Customer.orders))\n" in run.stderr
    assert "44 statements, 80 rows, " in run.stderr

    report = report_of(shop)
    assert report["schema"] == 1
    assert report["program"] == {"name": "export.py", "arguments": ["--all"], "module": False}
    assert report["totals"]["statements"] == 44
    (finding,) = report["findings"]
    assert (finding["rule"], finding["scopes"], finding["statements"]) == ("n-plus-one", 4, 40)
    kinds = [(scope["kind"], scope["statements"], len(scope["findings"])) for scope in report["scopes"]]
    assert kinds == [("run", 11, 1), *[("implicit", 11, 1)] * 3]


def test_scopes_of_the_program_are_in_the_totals_once(shop):
    shop.write(
        "requests.py",
        """
        import shop, sqla_watch

        for number in range(3):
            with sqla_watch.scope("day"), sqla_watch.scope("shift"):
                shop.count_orders()
        """,
    )
    run = shop.sqla_watch("run", "--json", "report.json", "requests.py")
    assert run.stderr.count(LOADED_LAZILY) == 1
    assert "30 statements, " in run.stderr
    assert ", in 3 scopes  " in run.stderr
    report = report_of(shop)
    assert report["totals"]["statements"] == 33
    assert report["totals"]["scopes"] == 7
    assert [scope["name"] for scope in report["scopes"]][:3] == ["requests.py", "day", "shift"]
    assert report["scopes"][0]["statements"] == 33
    assert report["scopes"][0]["findings"] == []


def test_tasks_of_an_event_loop_belong_to_the_run(workshop, database_url):
    workshop.write(
        "tasks.py",
        """
        import asyncio, sys
        from sqlalchemy import text
        from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

        async def look_up(engine, first):
            async with AsyncSession(engine) as session:
                for number in range(first, first + 10):
                    await session.execute(text("SELECT * FROM generate_series(1, :number)"), {"number": number})

        async def main():
            engine = create_async_engine(sys.argv[1])
            await asyncio.gather(look_up(engine, 0), look_up(engine, 100))
            await engine.dispose()

        asyncio.run(main())
        """,
    )
    url = make_url(database_url).set(drivername="postgresql+asyncpg").render_as_string(hide_password=False)
    run = workshop.sqla_watch("run", "tasks.py", url)
    assert run.returncode == 0, run.stderr
    assert "tasks.py:9 in look_up  [query-in-loop]" in run.stderr
    assert "\n20 statements, " in run.stderr


def test_a_connection_that_a_thread_never_gave_back_is_in_the_report(shop):
    shop.write(
        "forget.py",
        """
        import threading
        import shop

        forgotten = []

        def work():
            session = shop.Session(shop.engine)
            forgotten.append(session)
            for customer in session.scalars(shop.select(shop.Customer)).all():
                customer.orders

        threading.Thread(target=work).start()
        """,
    )
    run = shop.sqla_watch("run", "forget.py")
    assert "forget.py:11 in work" in run.stderr
    assert LOADED_LAZILY in run.stderr


def test_a_program_without_statements_is_told_apart_from_one_without_engine(workshop):
    workshop.write("idle.py", "print('idle')")
    workshop.write("ready.py", "import sqlalchemy; engine = sqlalchemy.create_engine('sqlite://')")
    idle = workshop.sqla_watch("run", "idle.py")
    assert "sqla-watch: idle.py: nothing found" in idle.stderr
    assert "The program sent no statement: it opened no engine, or let go of it unused." in idle.stderr
    ready = workshop.sqla_watch("run", "--json", "report.json", "ready.py")
    assert "The program opened 1 engine but sent no statement." in ready.stderr
    assert report_of(workshop)["totals"]["statements"] == 0


def test_a_program_that_fails_has_its_report_below_its_traceback(shop):
    shop.write("fail.py", "import shop\nshop.count_orders()\nraise RuntimeError('sold out')\n")
    run = shop.sqla_watch("run", "fail.py")
    assert run.returncode == 1
    traceback, _, report = run.stderr.partition("\nsqla-watch: ")
    assert traceback.count("File ") == 1
    assert traceback.endswith("RuntimeError: sold out\n")
    assert LOADED_LAZILY in report


def test_findings_are_in_the_report_and_not_logged_as_well(shop):
    shop.write("log.py", "import logging, shop\nlogging.basicConfig()\nlogging.warning('mine')\nshop.count_orders()\n")
    run = shop.sqla_watch("run", "log.py", environment={"SQLA_WATCH_N_PLUS_ONE": "log"})
    assert run.stderr.startswith("WARNING:root:mine\n\nsqla-watch: log.py: 1 finding\n")
    assert run.stderr.count(LOADED_LAZILY) == 1


def test_who_wants_findings_raised_gets_them_raised(shop):
    shop.write("raise.py", "import shop\nprint('before')\nshop.count_orders()\nprint('after')\n")
    run = shop.sqla_watch("run", "raise.py", environment={"SQLA_WATCH_N_PLUS_ONE": "raise"})
    assert (run.returncode, run.stdout) == (1, "before\n")
    assert "sqla_watch.findings.FindingRaised: shop.py:29 in count_orders: " in run.stderr
    assert "sqla-watch: raise.py: 1 finding" in run.stderr


def test_the_profile_of_the_command_gives_way_to_the_environment(shop):
    program = (shop.folder / "shop.py").read_text()
    shop.write("shop.py", program.replace('"sqlite:///shop.db"', '"sqlite:///shop.db", pool_pre_ping=True'))
    shop.write("few.py", "import shop\nshop.count_orders()\n")
    production = shop.sqla_watch("run", "--profile", "production", "few.py")
    assert "nothing found" in production.stderr  # ten parents cost less than its 50 ms
    both = shop.sqla_watch("run", "--profile", "production", "few.py", environment={"SQLA_WATCH_PROFILE": "test"})
    assert "1 finding" in both.stderr


def test_an_installed_application_is_named_as_the_users_own_code(shop):
    (shop.folder / "lib/site-packages").mkdir(parents=True)
    (shop.folder / "shop.py").rename(shop.folder / "lib/site-packages/shop.py")
    shop.write("start.py", "import sys; sys.path.append('lib/site-packages')\nimport shop\nshop.count_orders()\n")
    assert "start.py:3 in <module>" in shop.sqla_watch("run", "start.py").stderr
    for name in ("shop", "./lib/site-packages/shop.py"):
        run = shop.sqla_watch("run", "--app", "other", "--app", name, "start.py")
        assert "shop.py:29 in count_orders" in run.stderr


def test_a_report_that_can_no_longer_be_written_is_said_after_the_one_that_can(workshop):
    workshop.write("tidy.py", "import os, shutil, sys\nshutil.rmtree('out')\nos.chdir('/')\nsys.exit(5)\n")
    (workshop.folder / "out").mkdir()
    run = workshop.sqla_watch("run", "--json", "out/report.json", "tidy.py")
    assert run.returncode == 5
    assert "sqla-watch: tidy.py: nothing found" in run.stderr
    assert run.stderr.endswith("out/report.json': No such file or directory\n")


def test_a_closed_standard_error_takes_nothing_from_the_program(workshop):
    workshop.write("quiet.py", "import os, sys\nsys.stderr.close()\nos.chdir('/')\nsys.exit(6)\n")
    run = workshop.sqla_watch("run", "--json", "report.json", "quiet.py")
    assert (run.returncode, run.stderr) == (6, "")
    assert report_of(workshop)["program"]["name"] == "quiet.py"
