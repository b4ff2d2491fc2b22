"""How much sqla_watch and its peers find in the corpus, and how often they find fault with honest code.

Run it with ``uv run --isolated --group bench python -m benchmarks.accuracy``. Every scenario runs once under each
contestant that is installed, in one process, on a real PostgreSQL: the one that SQLA_WATCH_TEST_DATABASE_URL names,
where a database of its own is made, else an embedded one. Exits with 1 if ours misses a label or finds what is not
labelled, and with 2 if a scenario fails.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import os
import platform
import sys
import traceback
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy import URL, Engine, create_engine, make_url, text
from sqlalchemy.exc import SAWarning
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.orm import configure_mappers

import sqla_watch
from benchmarks.corpus import Application, Label, Scenario, load, models
from benchmarks.peers import OBSERVERS, Observer, Ours, Said, installed, version
from sqla_watch.demo.server import EmbeddedServer
from sqla_watch.detectors import RULES

__all__ = ["Outcome", "Score", "Verdict", "judge", "measure", "own_database", "score"]


NONE = "\N{EN DASH}"


# What was said, and what is to be thought of it: nothing here runs anything.


@dataclass(frozen=True)
class Verdict:
    """What a contestant said of a scenario, held against its labels."""

    scenario: Scenario
    found: tuple[Label, ...]
    missed: tuple[Label, ...]
    false: tuple[Said, ...]
    """What is not labelled."""


@dataclass(frozen=True)
class Score:
    """Labels and findings of one rule, or of several added up."""

    labels: int = 0
    found: int = 0
    false: int = 0

    def __add__(self, other: Score) -> Score:
        return Score(self.labels + other.labels, self.found + other.found, self.false + other.false)

    @property
    def recall(self) -> float | None:
        """Labels found of all labels; None where there is none."""
        return self.found / self.labels if self.labels else None

    @property
    def precision(self) -> float | None:
        """Labels found of those and the false findings; None where nothing was found."""
        return self.found / (self.found + self.false) if self.found + self.false else None


def means(said: Said, label: Label, file: str) -> bool:
    """Whether a finding is what a label asks for: its rule, and its line where the finding names one."""
    return label.rule in said.rules and (not said.places or names(said, label, file))


def names(said: Said, label: Label, file: str) -> bool:
    """Whether a finding names the line of a label."""
    return any(place.hold(file, label.line) for place in said.places)


def judge(scenario: Scenario, said: Iterable[Said], *, lenient: bool = False) -> Verdict:
    """Hold findings against the labels of a scenario.

    Args:
        scenario: What ran.
        said: What was found in it.
        lenient: Whether a finding on a labelled line which the label calls something else is let pass.
    """
    said = list(said)
    labels, file = scenario.labels, scenario.file
    found = tuple(label for label in labels if any(means(each, label, file) for each in said))
    false = tuple(
        each
        for each in said
        if not any(means(each, label, file) or (lenient and names(each, label, file)) for label in labels)
    )
    return Verdict(scenario, found, tuple(label for label in labels if label not in found), false)


def charged(said: Said, scenario: Scenario) -> str:
    """Return the rule a false finding is counted under: one it may mean and the scenario tempts to, or its first."""
    return next((rule for rule in said.rules if rule in scenario.tempts), said.rules[0])


def score(verdicts: Iterable[Verdict]) -> dict[str, Score]:
    """Add the verdicts up for each rule that has a label or a false finding."""
    scores: dict[str, Score] = {}
    for verdict in verdicts:
        parts = [(label.rule, Score(1, 1, 0)) for label in verdict.found]
        parts += [(label.rule, Score(1, 0, 0)) for label in verdict.missed]
        parts += [(charged(said, verdict.scenario), Score(0, 0, 1)) for said in verdict.false]
        for rule, part in parts:
            scores[rule] = scores.get(rule, Score()) + part
    return scores


@dataclass(frozen=True)
class Outcome:
    """What one contestant made of one scenario."""

    scenario: Scenario
    said: tuple[Said, ...]
    error: str = ""
    """The traceback, where the scenario failed or the contestant broke down."""


@dataclass(frozen=True)
class Result:
    """What one contestant made of the corpus."""

    contestant: type[Observer]
    outcomes: tuple[Outcome, ...]

    @property
    def verdicts(self) -> list[Verdict]:
        return [judge(each.scenario, each.said, lenient=self.contestant.lenient) for each in self.outcomes]

    def has(self, rule: str) -> bool:
        """Whether it has a kind of finding for a rule; of ours, nothing that is labelled is let off."""
        return self.contestant is Ours or any(rule in rules for rules in self.contestant.stands_for.values())

    @property
    def faulted(self) -> list[str]:
        """Silent scenarios that it found fault with."""
        return [verdict.scenario.name for verdict in self.verdicts if verdict.scenario.silent and verdict.false]

    @property
    def failed(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.error]


# Running.


def measure(contestant: type[Observer], scenarios: Iterable[Scenario], url: URL) -> Iterator[Outcome]:
    """Run scenarios under a contestant, one after the other, on a database made by `own_database`."""
    # A scenario that leaves a transaction open is to fail here, and not to hang.
    patience = {"options": "-c lock_timeout=10s"}
    keeper = create_engine(url.set(drivername="postgresql+psycopg"), connect_args=patience)
    configure_mappers()
    try:
        for scenario in scenarios:
            if contestant.takes_part(scenario):
                yield run(contestant, scenario, url)
                if scenario.writes:
                    with quiet():
                        models.restore(keeper)
    finally:
        keeper.dispose()


def run(contestant: type[Observer], scenario: Scenario, url: URL) -> Outcome:
    """Run one scenario under a contestant, with engines that nobody had before."""
    said: list[Said] = []
    error = ""
    gc.freeze()  # what others have left behind is not to be collected here, nor looked through
    with quiet() as faults:
        try:
            with contestant(scenario) as observer:
                said = observer.said
                if scenario.is_async:
                    asyncio.run(_run_async(observer, url))
                else:
                    _run(observer, url)
        except Exception:
            error = traceback.format_exc()
        gc.collect()
    gc.unfreeze()
    return Outcome(scenario, tuple(said), error or "\n".join(faults))


def _run(observer: Observer, url: URL) -> None:
    engines = Engines(observer, url)
    try:
        application = engines.application()
        with _request(observer):
            observer.scenario.function(application)
            gc.collect()  # what the scenario has dropped, it dropped within its request
    finally:
        engines.dispose()


async def _run_async(observer: Observer, url: URL) -> None:
    engines = Engines(observer, url)
    try:
        application = engines.application()
        with _request(observer):
            await observer.scenario.function(application)
            gc.collect()
    finally:
        await engines.dispose_async()


def _request(observer: Observer) -> Any:
    return nullcontext() if observer.scenario.own_requests else observer.request(observer.scenario.name)


class Engines:
    """The engines of one scenario, each watched from its making on."""

    def __init__(self, observer: Observer, url: URL) -> None:
        self._observer = observer
        self._url = url
        self._engines: list[Engine] = []
        self._async_engines: list[AsyncEngine] = []

    def application(self) -> Application:
        """Return what a scenario gets; its first engines have nothing that a production engine should not have."""
        usual: dict[str, Any] = {"pool_size": 5, "max_overflow": 10}
        if self._observer.scenario.profile == "production":
            usual["pool_pre_ping"] = True
        return Application(
            engine=self.make_engine(**usual),
            async_engine=self.make_async_engine(**usual),
            make_engine=self.make_engine,
            make_async_engine=self.make_async_engine,
            request=self._observer.request,
        )

    def make_engine(self, **options: Any) -> Engine:
        engine = create_engine(self._url.set(drivername="postgresql+psycopg"), **options)
        self._engines.append(engine)
        self._observer.watch(engine)
        return engine

    def make_async_engine(self, **options: Any) -> AsyncEngine:
        engine = create_async_engine(self._url.set(drivername="postgresql+asyncpg"), **options)
        self._async_engines.append(engine)
        self._observer.watch(engine)
        return engine

    def dispose(self) -> None:
        for engine in self._engines:
            engine.dispose()
        for asynchronous in self._async_engines:
            asynchronous.sync_engine.dispose(close=False)  # there is no loop to close a connection in

    async def dispose_async(self) -> None:
        for asynchronous in self._async_engines:
            await asynchronous.dispose()
        for engine in self._engines:
            engine.dispose()


@contextmanager
def quiet() -> Iterator[list[str]]:
    """Silence what scenarios make SQLAlchemy and sqla_watch say; yield the faults which sqla_watch logs of itself."""
    faults: list[str] = []
    listener = logging.Handler(logging.ERROR)
    listener.emit = lambda record: faults.append(listener.format(record))  # type: ignore[method-assign]
    # An engine with echo=True puts a handler for standard output on a logger that has none.
    named = ("engine.Engine", "pool.impl.QueuePool", "pool.impl.AsyncAdaptedQueuePool", "pool.impl.NullPool")
    handlers = {f"sqlalchemy.{name}": logging.NullHandler() for name in named} | {"sqlalchemy": logging.NullHandler()}
    with ExitStack() as stack, warnings.catch_warnings():
        for name, handler in (*handlers.items(), ("sqla_watch", listener)):
            logging.getLogger(name).addHandler(handler)
            stack.callback(logging.getLogger(name).removeHandler, handler)
        for category in (sqla_watch.SqlaWatchWarning, SAWarning, ResourceWarning):
            warnings.simplefilter("ignore", category)
        yield faults


@contextmanager
def own_database(url: str, name: str) -> Iterator[URL]:
    """Make a database of that name on a server, with the corpus's tables.

    It is dropped in the end, even if a scenario has left connections to it open.
    """
    server = create_engine(make_url(url).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
    try:
        with server.connect() as connection:
            connection.execute(text(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))
            connection.execute(text(f"CREATE DATABASE {name}"))
        database = create_engine(server.url.set(database=name))
        with quiet():
            models.create(database)
        database.dispose()
        yield database.url
        with server.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    finally:
        server.dispose()


# Telling.


def table(results: Sequence[Result], labels: dict[str, int]) -> Iterator[str]:
    """Return the lines of the table: a row for each rule, and the totals."""
    columns = "".join(f" {result.contestant.name}: found | false | precision |" for result in results)
    yield f"| rule | labels |{columns}"
    yield "|---|--:|" + "--:|--:|--:|" * len(results)
    scores = [score(result.verdicts) for result in results]
    for rule in sorted({*labels, *(rule for each in scores for rule in each)}):
        cells = [
            _cells(each.get(rule, Score())) if result.has(rule) else f" {NONE} | {NONE} | {NONE} |"
            for result, each in zip(results, scores, strict=True)
        ]
        yield f"| {rule} | {labels.get(rule, 0)} |{''.join(cells)}"
    everything = "".join(_cells(_total(each, each)) for each in scores)
    yield f"| **all rules** | {sum(labels.values())} |{everything}"
    own = "".join(_cells(_total(each, filter(result.has, each))) for result, each in zip(results, scores, strict=True))
    yield f"| **the rules it has** | |{own}"
    faulted = "".join(
        f" {len(result.faulted)} of {sum(outcome.scenario.silent for outcome in result.outcomes)} | | |"
        for result in results
    )
    yield f"| **silent scenarios found fault with** | |{faulted}"


def _total(scores: dict[str, Score], rules: Iterable[str]) -> Score:
    return sum((scores[rule] for rule in rules), Score())


def _cells(given: Score) -> str:
    recall = "0/0" if given.recall is None else f"{given.found}/{given.labels} ({_percent(given.recall)})"
    return f" {recall} | {given.false} | {NONE if given.precision is None else _percent(given.precision)} |"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share in (0, 1) else f"{min(99.9, 100 * share):.1f} %"


def notes(results: Sequence[Result]) -> Iterator[str]:
    """Return what one has to know to read the table."""
    yield "found: labels found / labels of the scenarios it took part in (recall); false: findings without a label."
    for result in results:
        if result.contestant is Ours:
            continue
        kinds = "; ".join(f"{kind} for {', '.join(rules)}" for kind, rules in result.contestant.stands_for.items())
        yield f"{result.contestant.name} {version(result.contestant)}: {kinds}."
    if any(result.contestant is not Ours for result in results):
        yield (
            "The labels follow sqla_watch's definitions and thresholds, and the corpus was written in its project: "
            "where a peer means something else, that counts against it. "
            "Peers run with their default thresholds, and what is opt-in is on: write-loop from as many as a label "
            "means, unused-eager-load where our rule is on. They take no part in scenarios for production. A finding "
            "of theirs on a labelled line which the label calls something else is neither found nor false; a false one "
            "that may mean several rules is in the row of the one that the scenario tempts to."
        )
    for observer in OBSERVERS:
        if not installed(observer):
            yield f"{observer.name} is not installed."


def details(result: Result) -> Iterator[str]:
    """Return a line for each missed label and each false finding."""
    for verdict in result.verdicts:
        for label in verdict.missed:
            yield f"missed {label.rule} in {verdict.scenario.name} ({_shown(verdict.scenario.file)}:{label.line})"
        for said in verdict.false:
            yield f"false {_said(said)} in {verdict.scenario.name}"


def _said(said: Said) -> str:
    places = ", ".join(f"{_shown(place.file)}:{place.first}" for place in said.places) or "no line"
    return f"{said.kind} ({places}: {said.message})"


def _shown(file: str) -> str:
    shown = os.path.relpath(file)
    return file if shown.startswith("..") else shown


def document(results: Sequence[Result], labels: dict[str, int]) -> dict[str, Any]:
    """Return everything, for a file."""
    return {
        "python": platform.python_version(),
        "sqlalchemy": sqlalchemy.__version__,
        "labels": labels,
        "contestants": {result.contestant.name: _contestant(result) for result in results},
    }


def _contestant(result: Result) -> dict[str, Any]:
    verdicts = {verdict.scenario.name: verdict for verdict in result.verdicts}
    return {
        "version": version(result.contestant),
        "stands_for": {kind: list(rules) for kind, rules in result.contestant.stands_for.items()},
        "rules": {
            rule: {
                "labels": each.labels,
                "found": each.found,
                "false_positives": each.false,
                "recall": each.recall,
                "precision": each.precision,
            }
            for rule, each in sorted(score(verdicts.values()).items())
        },
        "silent_scenarios_found_fault_with": result.faulted,
        "scenarios": [
            {
                "name": outcome.scenario.name,
                "file": _shown(outcome.scenario.file),
                "silent": outcome.scenario.silent,
                "found": [label._asdict() for label in verdicts[outcome.scenario.name].found],
                "missed": [label._asdict() for label in verdicts[outcome.scenario.name].missed],
                "false_positives": [_as_dict(said) for said in verdicts[outcome.scenario.name].false],
                "findings": [_as_dict(said) for said in outcome.said],
                "error": outcome.error,
            }
            for outcome in result.outcomes
        ],
    }


def _as_dict(said: Said) -> dict[str, Any]:
    places = [{"file": _shown(place.file), "line": place.first, "last_line": place.last} for place in said.places]
    return {"kind": said.kind, "rules": list(said.rules), "places": places, "message": said.message}


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    scenarios = load()
    unknown = set(options.scenario) - {scenario.name for scenario in scenarios}
    if unknown:
        sys.exit(f"there is no scenario {', '.join(sorted(unknown))}")
    if options.scenario:
        scenarios = [scenario for scenario in scenarios if scenario.name in options.scenario]
    contestants = [each for each in OBSERVERS if installed(each) and (each is Ours or options.only != "ours")]
    labels = {} if options.scenario else dict.fromkeys(RULES, 0)
    for scenario in scenarios:
        for label in scenario.labels:
            labels[label.rule] = labels.get(label.rule, 0) + 1
    with ExitStack() as stack:
        named = os.environ.get("SQLA_WATCH_TEST_DATABASE_URL")
        server = named or stack.enter_context(EmbeddedServer()).url()
        url = stack.enter_context(own_database(server, "sqla_watch_accuracy"))
        results = [Result(each, tuple(measure(each, scenarios, url))) for each in contestants]
    _tell(results, labels, options)
    if options.json:
        Path(options.json).write_text(json.dumps(document(results, labels), indent=2, ensure_ascii=False) + "\n")
    return _status(results[0])


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--scenario", action="append", default=[], metavar="NAME", help="only this, with all findings")
    parser.add_argument("--only", choices=["ours"], help="leave the peers out")
    parser.add_argument("--peers-detail", action="store_true", help="also what peers miss and find without a label")
    parser.add_argument("--json", metavar="FILE", help="write everything to a file")
    return parser.parse_args(arguments)


def _tell(results: Sequence[Result], labels: dict[str, int], options: argparse.Namespace) -> None:
    ours = results[0].outcomes
    silent = sum(outcome.scenario.silent for outcome in ours)
    print(f"{len(ours)} scenarios, {silent} of them silent; {sum(labels.values())} labels for {len(labels)} rules")
    print(f"Python {platform.python_version()}, SQLAlchemy {sqlalchemy.__version__}\n")
    print(*table(results, labels), "", *notes(results), sep="\n")
    for result in results:
        if options.scenario:
            _section(f"{result.contestant.name} found", _findings(result))
        if result.contestant is Ours or options.peers_detail:
            _section(f"{result.contestant.name} is wrong about", details(result))
        for outcome in result.failed:
            _section(f"{outcome.scenario.name} failed under {result.contestant.name}", outcome.error.splitlines())


def _findings(result: Result) -> Iterator[str]:
    for outcome in result.outcomes:
        for said in outcome.said:
            yield f"{outcome.scenario.name}: {_said(said)}"


def _section(title: str, lines: Iterable[str]) -> None:
    print(f"\n{title}:", *(f"  {line}" for line in lines), sep="\n")


def _status(ours: Result) -> int:
    """Return the exit status; where a peer fails, that is told, but it is not ours to repair."""
    if ours.failed:
        return 2
    return 1 if any(verdict.missed or verdict.false for verdict in ours.verdicts) else 0


if __name__ == "__main__":
    sys.exit(main())
