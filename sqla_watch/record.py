"""The bounded record of one scope: facts flow in, groups, repeats and totals are what detectors read.

A scope may run 100,000 statements. They are added up as they come, in groups of what belongs together, so that
the record's size follows the number of different things that the code does and not how often it does them. What
has to be left out for want of room is counted in `dropped`; totals stay exact.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby, islice, pairwise
from itertools import repeat as always
from operator import attrgetter, gt, itemgetter, sub
from types import CodeType
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeAlias, TypeVar, cast

from sqla_watch.facts import (
    CHECKOUT,
    CODE,
    ERROR,
    FINGERPRINT,
    FINISHED,
    IGNORES,
    INSTRUCTION,
    LOAD,
    PATH,
    RUNID,
    STARTED,
    TRANSACTION,
    CallSite,
    EngineConfiguration,
    Extra,
    Fact,
    Flush,
    FlushGroup,
    Held,
    Load,
    LoadKind,
    MissingLoad,
    Repeat,
    SessionEvent,
    SessionUse,
    Spent,
    Statement,
    StatementGroup,
    Transaction,
    Wait,
    site_of,
)
from sqla_watch.ignores import active as active_ignores

if TYPE_CHECKING:
    from sqla_watch.budgets import Budget
    from sqla_watch.fingerprint import Fingerprint
    from sqla_watch.ignores import Ignore

__all__ = ["TOTALS", "Record", "Totals"]

MOST_GROUPS = 2_000
"""Different statements by line and checkout that are told apart at once; about 1 kB each."""
MOST_VALUES = 40_000
"""Hashes of values and parents that are kept for counting distinct ones; about 70 bytes each."""
MOST_ANSWERS = 4_000
"""Different questions of one transaction among which repeats are looked for; about 250 bytes each."""
MOST_LOADS = 10_000
"""Last ORM loads among which the query that loaded a parent is looked for; about 120 bytes each."""
HELPER_STATEMENTS = 1
"""Reads in one transaction up to which it is a helper's look-up, and not a unit of work of its own."""
IDLE_UNIT = 5
"""Times as long between the transactions as in them, from which on each row waits for work of another kind."""
MOST_KEPT = 200
"""Longest transactions, waits and idle connections that are kept."""
WORTH_KEEPING = 10_000_000
"""Nanoseconds without a statement from which on a connection's time out of the pool is kept for the rules."""
POLL_NANOSECONDS = 1_000_000_000
"""The same question after this long is polling for a new answer."""

_QUERY = LoadKind.QUERY
_LAZY = LoadKind.LAZY
_ANYTHING = ("",)
"""For the tables of a statement that may have written to any."""
_NOT_ASKED = (0, None, None)
_keeps_house = attrgetter("housekeeping")

_T = TypeVar("_T")
Path: TypeAlias = tuple[tuple[str, str, bool], ...]


class _Longest(Generic[_T]):
    """Keeps the facts with the largest size, counts the rest."""

    __slots__ = ("_heap", "dropped")

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, _T]] = []
        self.dropped = 0

    def add(self, size: int, fact: _T) -> None:
        heap = self._heap
        if len(heap) < MOST_KEPT:
            heapq.heappush(heap, (size, len(heap), fact))
        else:
            self.dropped += 1
            if size >= heap[0][0]:
                heapq.heappushpop(heap, (size, MOST_KEPT + self.dropped, fact))

    def clear(self) -> None:
        self._heap.clear()
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._heap)

    def __iter__(self) -> Any:
        """Yield the kept facts in the order in which they came."""
        return iter([fact for _, _, fact in sorted(self._heap, key=lambda entry: entry[1])])


class LoadEntry(NamedTuple):
    """An ORM load: where it was sent from, the query at the root of its chain, and the way from there."""

    site: CallSite | None
    root: int
    """SQLAlchemy's number of the root query; 0 where it is kept for queries alike, each of which is its own root."""
    path: Path
    """The relationships from the root query's entity to what this load brought."""


def _join(path: Path, further: Path) -> Path:
    """Join two paths where the second may repeat the end of the first.

    An object knows the path of the statement that loaded it. Where loader options are in force that starts at the
    root query, and otherwise at the lazy load.
    """
    for length in range(min(len(path), len(further)), 0, -1):
        if path[-length:] == further[:length]:
            return path + further[length:]
    return path + further


class _Answers:
    """What one transaction has asked so far, and what it has written since.

    A question is a statement with the hash of its values; kept of it are when it was answered last, the group that
    asked it first, and how often it was asked again. Statements are taken by their groups, not in the order in which
    they were sent; so it is told by the moments what was written between two of them.
    """

    __slots__ = ("_asked", "_written", "size")

    def __init__(self) -> None:
        self.size = 0
        """Different questions."""
        self._asked: dict[str, dict[int, tuple[int, StatementGroup, Repeat | None]]] = {}
        self._written: dict[str, list[int]] = {}

    def wrote(self, tables: Iterable[str], moments: list[int]) -> None:
        """Note that something was written to tables."""
        for table in tables:
            self._written[table] = sorted([*self._written.get(table, ()), *moments])

    def forget_writes(self) -> None:
        """Keep the last moments only: all who asked before them have been counted."""
        for table, moments in self._written.items():
            self._written[table] = moments[-1:]

    def ask(self, group: StatementGroup, facts: list[Statement]) -> list[Repeat]:
        """Add a group's questions, all in this transaction; return those that are repeated for the first time."""
        known = self._asked.setdefault(group.fingerprint.text, {})
        _, _, _, _, starts, ends, rows, values, *_ = zip(*facts, strict=True)
        before = len(known)
        if known.keys().isdisjoint(values) and len({*values}) == len(values):
            known.update(zip(values, zip(ends, always(group), always(None)), strict=False))
            self.size += len(values)
            return []
        new = []
        for value, started, finished, many in zip(values, starts, ends, rows, strict=True):
            answered, asker, repeat = known.get(value, _NOT_ASKED)
            if asker is None or not answered <= started < answered + POLL_NANOSECONDS:
                asker = group
            elif self._written and self._wrote_since(answered, started, group.fingerprint):
                asker, repeat = group, None
            else:
                number = many if many.__class__ is int else many.rows
                if repeat is None:
                    repeat = Repeat(group.fingerprint, group.ignores)
                    new.append(repeat)
                    repeat.add(asker, number, 0)
                repeat.add(group, number, finished - started)
            known[value] = finished, asker, repeat
        self.size += len(known) - before
        return new

    def _wrote_since(self, answered: int, started: int, fingerprint: Fingerprint) -> bool:
        """Whether anything was written to a statement's tables between two moments."""
        for table in (*fingerprint.tables, *_ANYTHING):
            moments = self._written.get(table)
            if moments is not None:
                index = bisect_right(moments, started)
                if index and moments[index - 1] > answered:
                    return True
        return False

    def forget(self) -> None:
        """Let go of all questions that were asked once."""
        self.size = 0
        for text, known in self._asked.items():
            self._asked[text] = {value: each for value, each in known.items() if each[2] is not None}


class Totals:
    """How much a scope has seen. Times are nanoseconds."""

    __slots__ = (
        "_outer", "checkouts", "commits", "connecting", "database", "dropped", "ending", "errors", "held", "rollbacks",
        "rows", "statements", "wait",
    )  # fmt: skip

    def __init__(self) -> None:
        self.statements = 0
        self.rows = 0
        self.errors = 0
        self.database = 0
        self.ending = 0
        self.commits = 0
        self.rollbacks = 0
        self.wait = 0
        self.held = 0
        self.connecting = 0
        self.checkouts = 0
        self.dropped = 0
        self._outer: Totals | None = None

    def add_rows(self, rows: int, nanoseconds: int) -> None:
        """Add rows that were fetched after their statement had been counted, also where its totals went since."""
        self.rows += rows
        self.database += nanoseconds
        if self._outer is not None:
            self._outer.add_rows(rows, nanoseconds)

    def add(self, inner: Totals) -> None:
        """Add those of a scope inside this one."""
        inner._outer = self
        for name in TOTALS:
            setattr(self, name, getattr(self, name) + getattr(inner, name))


TOTALS = tuple(name for name in Totals.__slots__ if name != "_outer")
"""The names of all of them."""


class Record(Totals):
    """Everything a scope has seen, added up. Written by one thread at a time (the scope's lock)."""

    def __init__(
        self,
        parent: Record | None = None,
        *,
        one_unit: bool = True,
        in_unit: bool = False,
        reads: Collection[tuple[str, int | None]] | None = None,
    ) -> None:
        super().__init__()
        self.one_unit = one_unit
        """Whether all in it belongs together, so that a helper called for each of many things is a loop."""
        self.in_unit = in_unit
        """Whether it is a unit of work, or of a part of one: a request, a task, a job, of which many run at once."""
        self.has: dict[str, int] = {}
        """What there is at all of what only some rules read, by name."""
        self.transactions: _Longest[Transaction] = _Longest()
        self.waits: _Longest[Wait] = _Longest()
        self.nested: _Longest[Wait] = _Longest()
        self.holdings: _Longest[Held] = _Longest()
        self.repeats: list[Repeat] = []
        self.sessions: list[SessionUse] = []
        self.missing_loads: list[MissingLoad] = []
        self.engines: list[EngineConfiguration] = []
        self.spent: list[Spent] = []
        self._reads = reads
        self._flushes: dict[Any, FlushGroup] = {}
        self._most_flushes: dict[Any, FlushGroup] = {}
        self._on_event_loop: set[int] = set()
        self._parent = parent
        self._groups: dict[Any, StatementGroup] = {}
        self._room = MOST_VALUES
        self._answers: dict[int, _Answers] = {}
        self._runids: list[int] = []
        self._loads: list[LoadEntry] = []
        self._queries: dict[int, LoadEntry] = {}
        self._by_checkout: dict[int, list[Any]] = {}

    @property
    def groups(self) -> list[StatementGroup]:
        """The groups in the order in which their first statements came."""
        return list(self._groups.values())

    @property
    def sizes(self) -> dict[str, int]:
        """How much it has of what the rules read, by name; most scopes have little, and most rules are not run."""
        most = rows = slowest = writes = 0
        loads = {_LAZY: 0, LoadKind.COLUMN: 0, LoadKind.EAGER: 0}
        for group in self._groups.values():
            count = group.count
            if count > most:
                most = count
            if group.most_rows > rows:
                rows = group.most_rows
            if group.slowest > slowest:
                slowest = group.slowest
            if group.kind is not _QUERY:
                if count > loads[group.kind]:
                    loads[group.kind] = count
            elif group.fingerprint.writes:
                writes = max(writes, count, group.most_sets, group.most_in_unit)
        sizes = dict(self.has)
        if most:
            sizes["groups"], sizes["statements of a group"] = len(self._groups), most
            sizes["rows of a statement"], sizes["slowest statement"] = rows, slowest
            sizes["writes"] = writes
            sizes["lazy loads"], sizes["column loads"] = loads[_LAZY], loads[LoadKind.COLUMN]
        if self._flushes:
            sizes["flushes"] = max(group.count for group in self.flushes)
        if self.errors:
            sizes["errors"] = self.errors
        return sizes

    @property
    def flushes(self) -> list[FlushGroup]:
        """The flushes of one session from one line, in the transaction that had most of them."""
        return [
            max(group, self._most_flushes.get(key, group), key=lambda each: each.count)
            for key, group in self._flushes.items()
        ]

    @property
    def follows_attributes(self) -> bool:
        """Whether it is known which attributes were read; in an implicit scope, which ends too early, it is not."""
        return self._reads is not None

    def attributes_read(self) -> set[tuple[str, CallSite]]:
        """Return the attributes that were read, each with the line of the query at the root of its object's loading."""
        found = set()
        for key, runid in list(self._reads or ()):
            site = self._root_site(self.find_load(runid)) if runid is not None else None
            if site is not None:
                found.add((key, site))
        return found

    def root_site(self, group: StatementGroup) -> CallSite | None:
        """Return the line of the query that a group's loads go back to; its own, if it is that query."""
        return group.call_site if group.kind is LoadKind.QUERY else self._root_site(group.above)

    def _root_site(self, entry: LoadEntry | None) -> CallSite | None:
        while entry is not None and entry.path:
            root = self.find_load(entry.root)
            entry = None if root is entry else root
        return None if entry is None else entry.site

    def take(self, facts: Iterable[Fact]) -> None:
        """Add facts. Runs when the scope is read or closed, not in the statement.

        In a loop, statements are like the ones before. So they are put together by what tells them apart, and added up
        in columns, which C does in some nanoseconds a statement; one by one it takes the interpreter a microsecond.
        """
        for kind, run in groupby(facts, type):
            if kind is tuple:
                self._take_statements(cast("list[Statement]", [*run]))
            else:
                for fact in run:
                    self._other(fact)

    def _take_statements(self, facts: list[Statement]) -> None:
        """Add statements between which no transaction has ended."""
        (
            fingerprints, codes, instructions, paths, starts, ends, _, _, _, checkouts, transactions, loads, runids,
            ignores, _, _, parents,
        ) = zip(*facts, strict=True)  # fmt: skip
        if any(map(_keeps_house, fingerprints)):
            facts = self._keep_house(facts)
            if facts:
                self._take_statements(facts)
            return
        if any(map(gt, ends, starts[1:])):
            self._find_overlaps(facts)
        # By identity, because Python hashes the whole code of a code object.
        keys: list[Any] = [
            *zip(
                map(id, fingerprints), map(id, codes), instructions, paths, checkouts, transactions, map(id, loads),
                map(id, ignores), strict=True,
            )
        ]  # fmt: skip
        alike: dict[Any, list[Statement]] = {}
        if keys.count(keys[0]) == len(keys):
            alike[keys[0]] = facts
        else:
            for key, fact in zip(keys, facts, strict=True):
                if key in alike:
                    alike[key].append(fact)
                else:
                    alike[key] = [fact]
        groups: dict[Any, StatementGroup] = {}
        asked, wrote = [], []
        for key, some in alike.items():
            fact = some[0]
            group = groups[key] = self._group_of(fact)
            some = self._add_alike(group, some)
            if some and fact[TRANSACTION] > 0 and fact[LOAD] is None:
                if fact[FINGERPRINT].asks:
                    asked.append((group, some))
                elif fact[FINGERPRINT].may_write:
                    wrote.append(some)
        if asked:
            self._take_questions(asked, wrote)
        elif wrote and self._answers:
            self._take_questions((), wrote)
        if any(runids):
            for (key, parent), run in groupby(zip(keys, parents, facts, strict=True), itemgetter(0, 1)):
                some = [fact for _, _, fact in run if not fact[ERROR]]
                if some and some[0][RUNID]:
                    self._load(groups[key], some[0][LOAD], parent, [fact[RUNID] for fact in some], some[0][CHECKOUT])

    def _keep_house(self, facts: list[Statement]) -> list[Statement]:
        """Add those that manage the connection; return the rest."""
        rest = []
        for fact in facts:
            fingerprint = fact[FINGERPRINT]
            if not fingerprint.housekeeping:
                rest.append(fact)
                continue
            self.database += fact[FINISHED] - fact[STARTED]
            if fingerprint.operation == "ROLLBACK":  # to a savepoint: what was written since is taken back
                self._answers_in(fact[TRANSACTION]).wrote(_ANYTHING, [fact[FINISHED]])
        return rest

    def _find_overlaps(self, facts: list[Statement]) -> None:
        """Note statements of one connection that ran at the same time."""
        for one, other in pairwise(facts):
            if other[STARTED] < one[FINISHED] and one[CHECKOUT] == other[CHECKOUT] > 0:
                self._overlap(one, other)

    def _group_of(self, fact: Statement) -> StatementGroup:
        """Return the group that a statement belongs to."""
        fingerprint, code, instruction, path, load, ignores = (
            fact[FINGERPRINT], fact[CODE], fact[INSTRUCTION], fact[PATH], fact[LOAD], fact[IGNORES],
        )  # fmt: skip
        checkout = fact[CHECKOUT]
        key: Any
        if load is None:
            key = (fingerprint.text, id(code), instruction, path, checkout, ignores)
        else:
            what = load.relationship if load.kind is _LAZY else fingerprint.text
            key = (what, id(code), instruction, load.session, ignores, load.cause, checkout in self._on_event_loop)
        group = self._groups.get(key)
        if group is None:
            group = self._new_group(key, fingerprint, code, instruction, load, ignores, fact[STARTED], checkout)
        return group

    def _add_alike(self, group: StatementGroup, facts: list[Statement]) -> list[Statement]:
        """Add statements of one group, sent with one connection in one transaction; return those that did not fail."""
        rows: Sequence[Any]
        _, _, _, _, starts, ends, rows, values, fixed, _, _, _, _, _, errors, extras, _ = zip(*facts, strict=True)
        elapsed = [*map(sub, ends, starts)]
        if {*map(type, rows)} != {int}:
            rows = self._count_rows(group, rows, elapsed)
        count, all_rows, database = len(facts), sum(rows), sum(elapsed)
        self.statements += count
        self.rows += all_rows
        self.database += database
        group.count += count
        group.nanoseconds += database
        slowest, finished = max(elapsed), max(ends)
        if finished > group.finished:
            group.finished = finished
        if slowest > group.slowest:
            group.slowest = slowest
        if all_rows:
            group.rows += all_rows
            most = max(rows)
            if most > group.most_rows:
                group.most_rows = most
        if group.errors or any(errors):
            facts = self._fail(group, facts)
            if not facts:
                return facts
            _, _, _, _, _, _, rows, values, fixed, _, _, _, _, _, _, extras, _ = zip(*facts, strict=True)
        if any(extras):
            for extra, many, value in zip(extras, rows, values, strict=True):
                if extra is not None:
                    self._add_extra(group, extra, many, value)
        self._add_values(group, fixed)
        return facts

    def _count_rows(self, group: StatementGroup, rows: Any, elapsed: list[int]) -> list[int]:
        """Return the numbers of rows, add the time of fetching them to `elapsed`; further rows go to the group."""
        numbers = []
        for place, counter in enumerate(rows):
            if counter.__class__ is int:
                numbers.append(counter)
                continue
            numbers.append(counter.rows)
            elapsed[place] += counter.nanoseconds
            if not counter.over:
                counter.group, counter.record, counter.elapsed = group, self, elapsed[place]
            if counter.special:
                group.count_rows(counter)
        return numbers

    def _add_values(self, group: StatementGroup, fixed: Iterable[int]) -> None:
        """Keep the hashes of values, as long as there is room for them; of a flush one is enough."""
        known = group.values
        if group.flushed:
            if known:
                return
            fixed = (next(iter(fixed)),)
        new = {*fixed}
        new -= known
        if len(new) > self._room:
            kept = {*islice(new, self._room)}
            group.uncounted += sum(1 for value in fixed if value in new and value not in kept)
            new = kept
        known |= new
        self._room -= len(new)

    def _answers_in(self, transaction: int) -> _Answers:
        answers = self._answers.get(transaction)
        if answers is None:
            answers = self._answers[transaction] = _Answers()
        return answers

    def _take_questions(
        self, asked: Iterable[tuple[StatementGroup, list[Statement]]], wrote: list[list[Statement]]
    ) -> None:
        """Count the questions that one transaction has asked before, if it wrote nothing to their tables since."""
        for _, facts in asked:
            self._answers_in(facts[0][TRANSACTION])
        for facts in wrote:
            answers = self._answers.get(facts[0][TRANSACTION])
            if answers is not None:
                fingerprint = facts[0][FINGERPRINT]
                tables = fingerprint.tables if fingerprint.writes else _ANYTHING
                answers.wrote(tables, [fact[FINISHED] for fact in facts])
        for group, facts in asked:
            answers = self._answers[facts[0][TRANSACTION]]
            if answers.size >= MOST_ANSWERS:
                self.dropped += answers.size
                answers.forget()
            new = answers.ask(group, facts)
            if new:
                self.repeats += new
                self.has["repeats"] = 1
        for facts in wrote:
            if facts[0][TRANSACTION] in self._answers:
                self._answers[facts[0][TRANSACTION]].forget_writes()

    def _fail(self, group: StatementGroup, facts: list[Statement]) -> list[Statement]:
        """Count those of a group's statements that failed; return the others."""
        group.failed_last = bool(facts[-1][ERROR])
        good = []
        for fact in facts:
            error = fact[ERROR]
            if not error:
                good.append(fact)
                continue
            self.errors += 1
            group.errors += 1
            group.special = True
            group.states = {**group.states, error: group.states.get(error, 0) + 1}
            if error == "MissingGreenlet":  # it was never sent
                group.count -= 1
                self.statements -= 1
        return good

    def _add_extra(self, group: StatementGroup, extra: Extra, rows: int, values: int) -> None:
        """Add what there is to know of some statements only."""
        group.special = True
        if extra.skipped > group.most_skipped and rows:  # behind the end there was less to skip
            group.most_skipped = extra.skipped
            self.has["skipped"] = 1
        if extra.listed > group.most_listed:
            group.most_listed = extra.listed
            self.has["listed"] = 1
        if extra.uncached > group.uncached:
            group.uncached, group.why = extra.uncached, extra.why
            self.has["uncached"] = 1
        group.changed += max(0, extra.changed - 1)
        if extra.savepoint and extra.savepoint != group.last_savepoint:
            group.savepoints += 1
            group.last_savepoint = extra.savepoint
        if extra.sets:
            group.most_sets = max(group.most_sets, extra.sets)
            if extra.alike:
                group.most_alike = max(group.most_alike, extra.sets)
        if extra.flush:
            group.flushed += 1
            group.session = extra.session
            group.in_flush = group.in_flush + 1 if extra.flush == group.last_flush else 1
            group.last_flush = extra.flush
            if not extra.sets:
                if len(group.assigned) < 2:
                    group.assigned |= {values}
                group.most_in_flush = max(group.most_in_flush, group.in_flush)

    def _overlap(self, one: Statement, other: Statement) -> None:
        """Note that two statements of one connection ran at the same time, once for each pair of lines."""
        if other[STARTED] < one[STARTED]:  # which of them came while the other ran
            one, other = other, one
        self._add_session(SessionUse(SessionEvent.SHARED, site_of(other), other[IGNORES], other=site_of(one)))

    def _add_session(self, use: SessionUse) -> None:
        """Keep what is known of a session's life; the same of the same line once, the largest."""
        for index, known in enumerate(self.sessions):
            if known.event is use.event and (use.event is SessionEvent.HELD or known.call_site == use.call_site):
                if use.objects > known.objects:
                    self.sessions[index] = use
                return
        if len(self.sessions) < MOST_KEPT:
            self.sessions.append(use)
            self.has["sessions"] = 1
        else:
            self.dropped += 1

    def _other(self, fact: Any) -> None:
        """Add a fact that is no statement."""
        kind = fact.__class__
        if kind is Transaction:
            self._add_transaction(fact)
        elif kind is Wait:
            self._add_wait(fact)
        elif kind is Held:
            if fact.returned:  # one that was not may yet be
                self.held += fact.finished - fact.started
                self.connecting += fact.connecting + fact.pinging
            if fact.idle > WORTH_KEEPING or not fact.returned:
                self.holdings.add(fact.idle, fact)
                self.has["holdings"] = 1
        elif kind is Flush:
            self._add_flush(fact)
        elif kind is SessionUse:
            self._add_session(fact)
        elif kind is MissingLoad:
            if len(self.missing_loads) < MOST_KEPT:
                query = self.find_load(fact.parent_runid) if fact.parent_runid else None
                self.has["missing loads"] = 1
                self.missing_loads.append(fact._replace(query=None if query is None else query.site))
        else:
            self.engines.append(fact)
            self.has["engines"] = 1

    def _add_transaction(self, fact: Transaction) -> None:
        self.ending += fact.ending
        self._fold(fact)
        if fact.serial < 0:  # autocommit: there was no transaction
            return
        if fact.outcome == "commit":
            self.commits += 1
        elif fact.outcome == "rollback":
            self.rollbacks += 1
        self._answers.pop(fact.serial, None)
        length, gap = fact.finished - fact.started, fact.gap
        self.transactions.add(length, fact)
        has = self.has
        if length > has.get("longest transaction", -1):
            has["longest transaction"] = length
        if gap > has.get("longest gap", -1):
            has["longest gap"] = gap
        if fact.error:
            has["errors"] = 1

    def _add_wait(self, fact: Wait) -> None:
        if fact.checkout:
            self.checkouts += 1
        if fact.on_event_loop:
            self._on_event_loop.add(fact.checkout)
            self.has["blocking"] = 1
        if fact.nanoseconds:
            self.wait += fact.nanoseconds
            self.waits.add(fact.nanoseconds, fact)
            self.has["waits"] = 1
        if fact.inside is not None:
            self.nested.add(fact.nanoseconds, fact)
            self.has["nested"] = 1

    def _add_flush(self, fact: Flush) -> None:
        site = fact.call_site
        key = (fact.session, fact.cause, None if site is None else site.place, fact.ignores)
        group = self._flushes.get(key)
        if group is None or group.transaction != fact.transaction:
            if group is not None:  # of the transactions before, the one with most is kept
                most = self._most_flushes.setdefault(key, group)
                self._most_flushes[key] = max(most, group, key=lambda each: each.count)
            elif len(self._flushes) >= MOST_GROUPS:
                self._flushes.clear()
                self._most_flushes.clear()
            group = self._flushes[key] = FlushGroup(
                fact.session, fact.cause, fact.call_site, fact.ignores, fact.transaction
            )
        group.count += 1
        group.statements += fact.statements
        group.objects += fact.objects
        group.nanoseconds += fact.finished - fact.started

    def _new_group(
        self,
        key: Any,
        fingerprint: Fingerprint,
        code: CodeType | None,
        instruction: int,
        load: Load | None,
        ignores: tuple[Ignore, ...],
        started: int,
        checkout: int,
    ) -> StatementGroup:
        if len(self._groups) >= MOST_GROUPS:
            self._make_room()
        group = self._groups[key] = StatementGroup(
            self,
            fingerprint,
            None if code is None else CallSite(code, instruction),
            LoadKind.QUERY if load is None else load.kind,
            None if load is None else load.relationship,
            0 if load is None else load.session,
            ignores,
            started,
            checkout in self._on_event_loop,
        )
        if fingerprint.star:
            self.has["stars"] = 1
        if load is not None:
            group.columns, group.cause = load.columns, load.cause
        else:
            self._by_checkout.setdefault(checkout, []).append(key)
        return group

    def _fold(self, transaction: Transaction) -> None:
        """Fold what a transaction sent into one group for each line, over all transactions.

        So memory follows the number of lines and not of connections, and a loop around a helper that gets a
        connection of its own for each call is seen. A loop inside of the transaction stays a group of its own.
        """
        looks_up = self.one_unit and not transaction.wrote and transaction.statements <= HELPER_STATEMENTS
        keys = self._by_checkout.pop(transaction.checkout, ())
        all_groups = self._groups
        writes_one = False
        if transaction.wrote and transaction.outcome == "commit":
            # One row written and committed; objects that were read again for it (loads) are not among these groups.
            groups = [group for key in keys if (group := all_groups.get(key)) is not None]
            writes_one = (
                len(groups) == 1 and groups[0].fingerprint.writes and groups[0].count == 1 and groups[0].most_sets <= 1
            )
        for key in keys:
            group = all_groups.get(key)
            if group is None or len(group.values) > 1:
                continue
            del all_groups[key]
            # From here on its times are the transaction's: connections that are out at once are no loop.
            group.started, group.finished = transaction.started, transaction.finished
            group.owner = transaction.owner
            text, code, instruction, path, _, ignores = key
            line = (text, code, instruction, path, ignores, group.on_event_loop)
            folded = all_groups.get(line)
            values = group.values
            if folded is not None:
                folded.merge(group)
            else:
                folded = all_groups[line] = group
                if looks_up and not writes_one:
                    continue
                group.values = set()
            self._room += len(values)
            if writes_one:
                self._count_unit(folded, group.session or transaction.checkout, transaction)
            if looks_up or writes_one:
                for value in values:
                    if value in folded.values:
                        continue
                    if self._room > 0:
                        folded.values.add(value)
                        self._room -= 1
                    else:
                        folded.uncounted += 1
                if writes_one and folded.unit_busy * IDLE_UNIT > transaction.finished - folded.unit_started:
                    folded.most_in_unit = max(folded.most_in_unit, min(len(folded.values), folded.in_unit))

    def _count_unit(self, folded: StatementGroup, unit: int, transaction: Transaction) -> None:
        """Count transactions in a row that wrote one row each, of one session or connection.

        A scope that is one unit of work has all of them in it, whoever's session they are.
        """
        if self.one_unit or unit == folded.unit:
            folded.in_unit += 1
        else:
            folded.in_unit = 1
            folded.unit_busy = 0
            self._room += len(folded.values)
            folded.values.clear()
        if not folded.unit_busy:
            folded.unit_started = transaction.started
        folded.unit_busy += transaction.finished - transaction.started
        folded.unit = unit

    def add_totals(self, inner: Record) -> None:
        """Add the totals of a scope inside this one; its groups were judged there."""
        self.add(inner)
        for runid, entry in zip(inner._runids, inner._loads, strict=True):
            self._remember((runid,), entry)

    def spend(self, name: str, budget: Budget) -> None:
        """Note what was spent of a budget, now that all is known."""
        self.has["spent"] = 1
        self.spent.append(
            Spent(
                name,
                budget,
                self.statements,
                self.rows,
                self.database / 1e9,
                self.wait / 1e9,
                self.checkouts,
                self.commits + self.rollbacks,
                active_ignores.get(),
            )
        )

    @contextmanager
    def spending(self, name: str, budget: Budget) -> Iterator[None]:
        """Have what was spent of a budget so far noted within a block."""
        self.spend(name, budget)
        try:
            yield
        finally:
            self.spent.pop()

    def forget(self) -> None:
        """Let go of everything but the totals, once it has been judged."""
        for kept in (
            self._groups,
            self._answers,
            self._runids,
            self._loads,
            self._queries,
            self._by_checkout,
            self._flushes,
            self._most_flushes,
            self._on_event_loop,
            self.repeats,
            self.sessions,
            self.missing_loads,
            self.engines,
            self.spent,
            self.transactions,
            self.waits,
            self.nested,
            self.holdings,
        ):
            if kept:
                kept.clear()

    def find_load(self, runid: int) -> LoadEntry | None:
        """Return the ORM load with SQLAlchemy's number `runid`: the last one of ours that is not later."""
        index = bisect_right(self._runids, runid) - 1
        if index >= 0:
            entry = self._loads[index]
            return entry if entry.root else entry._replace(root=self._runids[index])
        return self._parent.find_load(runid) if self._parent is not None else None

    def _load(
        self, group: StatementGroup, load: Load | None, parent_runid: int, runids: list[int], checkout: int
    ) -> None:
        """Remember ORM loads of one group in a row; of lazy ones count the query that loaded their parents.

        Args:
            group: Their group.
            load: What they loaded.
            parent_runid: SQLAlchemy's number of the load that brought the parents of all of them.
            runids: Their own numbers.
            checkout: The checkout that they were sent in.
        """
        if load is None:
            entry = group.entry
            if entry is None:
                entry = group.entry = LoadEntry(group.call_site, 0, ())
            self._queries[checkout] = entry._replace(root=runids[-1])
            self._remember(runids, entry)
            return
        if parent_runid and parent_runid == group.parent_runid:  # loaded with the parent before
            entry = group.entry
        else:
            above = self.find_load(parent_runid) if parent_runid else self._queries.get(checkout)
            if above is None:  # loaded before the scope was opened
                above = LoadEntry(None, parent_runid or runids[0], ())
            if load.relationship is None:  # a refresh: the object keeps its way from the root query
                entry = above
            elif group.above is not None and group.above.root == above.root and group.above.path == above.path:
                entry = group.entry
            else:
                relationship = load.relationship
                way = _join(above.path, relationship.path)
                entry = LoadEntry(
                    group.call_site, above.root, _join(above.path, (*relationship.path, relationship.step))
                )
                group.above, group.entry = above, entry
                if group.relationship is relationship:
                    group.relationship = relationship._replace(path=way)
            if group.kind is _LAZY:
                if len(group.roots) < MOST_KEPT:
                    # Up or down a tree, each generation was loaded by the one before, not by the query at its root.
                    generation = above.path.count(load.relationship.step) if load.relationship is not None else 0
                    group.roots.add(hash((above.root, generation)) if generation else above.root)
                origin = above if not above.path else self.find_load(above.root)
                group.origin = None if origin is None else origin.site
                group.parent_runid = parent_runid
        if group.kind is _LAZY:
            group.in_checkout = len(runids) + (group.in_checkout if checkout == group.last_checkout else 0)
            group.last_checkout = checkout
            if group.in_checkout > group.most_in_checkout:
                group.most_in_checkout = group.in_checkout
            if group.origin is not None:
                group.root_sites.add(group.origin, len(runids))
            self._queries[checkout] = entry
        self._remember(runids, entry)

    def _remember(self, numbers: Sequence[int], entry: LoadEntry) -> None:
        """Keep loads for those who ask whence an object is. Of loads alike in a row the first and the last do."""
        runids, loads = self._runids, self._loads
        if runids and numbers[0] < runids[-1]:  # two threads of one scope; keep the order
            for number in numbers:
                index = bisect_right(runids, number)
                runids.insert(index, number)
                loads.insert(index, entry)
        elif not entry.root:
            runids.extend(numbers)
            loads.extend([entry] * len(numbers))
        else:
            if len(loads) > 1 and loads[-1] is entry is loads[-2]:
                runids[-1] = numbers[-1]
                return
            for number in {numbers[0]: None, numbers[-1]: None}:
                runids.append(number)
                loads.append(entry)
        if len(runids) > MOST_LOADS:
            del runids[: MOST_LOADS // 2]
            del loads[: MOST_LOADS // 2]

    def _make_room(self) -> None:
        """Drop the oldest groups of a single statement; where all have more, the oldest groups."""
        single = [key for key, group in self._groups.items() if group.count == 1][: MOST_GROUPS // 2]
        drop: Callable[[Any], StatementGroup] = self._groups.pop
        for key in single or list(self._groups)[: MOST_GROUPS // 2]:
            group = drop(key)
            self._room += len(group.values)
            self.dropped += group.count
