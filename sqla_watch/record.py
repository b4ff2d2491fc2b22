"""The bounded record of one scope: facts flow in, groups, repeats and totals are what detectors read.

A scope may run 100,000 statements. They are added up as they come, in groups of what belongs together, so that
the record's size follows the number of different things that the code does and not how often it does them. What
has to be left out for want of room is counted in `dropped`; totals stay exact.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from types import CodeType
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeAlias, TypeVar

from sqla_watch.facts import (
    IGNORES,
    STARTED,
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
    RowCounter,
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
    """SQLAlchemy's number of the root query."""
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

    A question is a number; kept of it are when it was answered last and the group it belongs to, no object of its own.
    """

    __slots__ = ("answered", "groups", "repeats", "written")

    def __init__(self) -> None:
        self.answered: dict[int, int] = {}
        self.groups: dict[int, StatementGroup] = {}
        self.repeats: dict[int, Repeat] = {}
        self.written: dict[str, int] = {}

    def wrote(self, fingerprint: Fingerprint, moment: int) -> None:
        """Note that something was written: to the tables of a plain write, else to no one knows what."""
        if fingerprint.writes:
            for table in fingerprint.tables:
                self.written[table] = moment
        else:
            self.answered.clear()
            self.groups.clear()
            self.repeats.clear()


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
        """Add facts. Costs about 1 µs a statement; runs when the scope is read or closed, not in the statement."""
        groups = self._groups
        statements = all_rows = database = latest = 0
        room = self._room
        # In a loop, one statement is like the one before: then its group is found without a look-up. What tells them
        # apart is kept in local names, which are compared several times as fast as places in the tuple.
        before: Statement | None = None
        group: StatementGroup | None = None
        last_fingerprint: Any = None
        last_code: Any = None
        last_instruction = last_path = last_checkout = last_transaction = text_hash = 0
        last_load: Any = None
        last_ignores: Any = None
        asks = writes = False
        answers: Any = None
        asked: dict[int, int] = {}
        asked_by: dict[int, StatementGroup] = {}
        fact: Any
        for fact in facts:
            if fact.__class__ is not tuple:
                self._room = room
                self._other(fact)
                room = self._room
                before = last_fingerprint = None  # a transaction's end folds its groups
                continue
            (
                fingerprint, code, instruction, path, started, finished, rows, values, fixed,
                checkout, transaction, load, runid, ignores, error, extra, parent_runid,
            ) = fact  # fmt: skip
            elapsed = finished - started
            if fingerprint.housekeeping:
                database += elapsed
                if fingerprint.operation == "ROLLBACK":  # to a savepoint: what was written since is taken back
                    self._answers.pop(transaction, None)
                    last_fingerprint = None
                continue
            counter: RowCounter | None = None
            if rows.__class__ is not int:
                counter = rows
                rows = rows.rows
                elapsed += counter.nanoseconds
            statements += 1
            all_rows += rows
            database += elapsed
            if load is not None:
                if (
                    group is None
                    or last_load is not load
                    or last_fingerprint is not fingerprint
                    or last_code is not code
                    or last_instruction != instruction
                    or last_checkout != checkout
                    or last_ignores is not ignores
                ):
                    what = load.relationship if load.kind is _LAZY else fingerprint.text
                    on_event_loop = checkout in self._on_event_loop
                    key: Any = (what, id(code), instruction, load.session, ignores, load.cause, on_event_loop)
                    group = groups.get(key)
                    last_fingerprint, last_code, last_instruction = fingerprint, code, instruction
                    last_ignores = ignores
                    asks = writes = False
                last_load = load
            elif (
                last_fingerprint is not fingerprint
                or last_code is not code
                or last_instruction != instruction
                or last_path != path
                or last_checkout != checkout
                or last_transaction != transaction
                or last_ignores is not ignores
                or last_load is not None
            ):
                key = (fingerprint.text, id(code), instruction, path, checkout, ignores)
                group = groups.get(key)
                last_fingerprint, last_code, last_instruction, last_path = fingerprint, code, instruction, path
                last_ignores = ignores
                last_transaction, last_load = transaction, None
                asks = writes = False
                if transaction > 0:
                    asks, writes = fingerprint.asks, fingerprint.may_write
                    if asks:
                        text_hash = hash(fingerprint.text)
                        answers = self._answers.get(transaction)
                        if answers is None:
                            answers = self._answers[transaction] = _Answers()
                        asked, asked_by = answers.answered, answers.groups
            if group is None:
                self._room = room
                group = self._new_group(key, fingerprint, code, instruction, load, ignores, started, checkout)
                room = self._room
            if started < latest and before is not None and last_checkout == checkout > 0:
                self._overlap(before, fact)
            before = fact
            latest = finished
            last_checkout = checkout
            group.count += 1
            group.nanoseconds += elapsed
            if finished > group.finished:
                group.finished = finished
            if rows:
                group.rows += rows
                if rows > group.most_rows:
                    group.most_rows = rows
            if elapsed > group.slowest:
                group.slowest = elapsed
            if counter is not None and not counter.over:
                counter.group, counter.record, counter.elapsed = group, self, elapsed
                if counter.special:
                    group.count_rows(counter)
            if error or group.errors:
                if error:
                    statements -= self._fail(group, error)
                    continue
                group.failed_last = False
            if extra is not None:
                self._add_extra(group, extra, rows, values)
            kept = group.values
            if fixed not in kept and not (group.flushed and kept):
                if room > 0:
                    kept.add(fixed)
                    room -= 1
                else:
                    group.uncounted += 1
            if runid:
                self._load(group, load, runid, parent_runid, checkout)
            if asks:
                question = text_hash ^ values
                answered = asked.get(question)
                if answered is not None:
                    self._ask_again(answers, answered, question, group, started, finished, rows)
                else:
                    if len(asked) >= MOST_ANSWERS:
                        self.dropped += len(asked)
                        asked.clear()
                        asked_by.clear()
                    asked_by[question] = group
                asked[question] = finished
            elif writes and transaction in self._answers:
                self._answers[transaction].wrote(fingerprint, finished)
        self._room = room
        self.statements += statements
        self.rows += all_rows
        self.database += database

    def _fail(self, group: StatementGroup, error: str) -> int:
        """Count a statement that failed; return 1 for one that was never sent, and is none."""
        self.errors += 1
        group.errors += 1
        group.states = {**group.states, error: group.states.get(error, 0) + 1}
        group.failed_last = group.special = True
        if error != "MissingGreenlet":
            return 0
        group.count -= 1
        return 1

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
            self._remember(runid, entry)

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
            return self._loads[index]
        return self._parent.find_load(runid) if self._parent is not None else None

    def _load(self, group: StatementGroup, load: Load | None, runid: int, parent_runid: int, checkout: int) -> None:
        """Remember an ORM load, and for a lazy one count the query that loaded its parent."""
        if load is None:
            entry = self._queries[checkout] = LoadEntry(group.call_site, runid, ())
        elif parent_runid and parent_runid == group.parent_runid:  # loaded with the parent before
            entry = group.entry
        else:
            above = self.find_load(parent_runid) if parent_runid else self._queries.get(checkout)
            if above is None:  # loaded before the scope was opened
                above = LoadEntry(None, parent_runid or runid, ())
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
        if load is not None and group.kind is _LAZY:
            group.in_checkout = group.in_checkout + 1 if checkout == group.last_checkout else 1
            group.last_checkout = checkout
            if group.in_checkout > group.most_in_checkout:
                group.most_in_checkout = group.in_checkout
            if group.origin is not None:
                group.root_sites.add(group.origin)
            self._queries[checkout] = entry
        self._remember(runid, entry)

    def _remember(self, runid: int, entry: LoadEntry) -> None:
        """Keep a load for those who ask whence an object is. Of loads alike in a row the first and the last do."""
        runids, loads = self._runids, self._loads
        if not runids or runid >= runids[-1]:
            if runids and loads[-1] is entry and len(loads) > 1 and loads[-2] is entry:
                runids[-1] = runid
                return
            runids.append(runid)
            loads.append(entry)
        else:  # two threads of one scope; keep the order
            index = bisect_right(runids, runid)
            runids.insert(index, runid)
            loads.insert(index, entry)
        if len(runids) > MOST_LOADS:
            del runids[: MOST_LOADS // 2]
            del loads[: MOST_LOADS // 2]

    def _ask_again(
        self,
        answers: _Answers,
        answered: int,
        question: int,
        group: StatementGroup,
        started: int,
        finished: int,
        rows: int,
    ) -> None:
        """Count a question that the same transaction has asked before, if it wrote nothing to its tables since."""
        if not answered <= started < answered + POLL_NANOSECONDS:
            answers.groups[question] = group
            return
        written = answers.written
        if written and any(written.get(table, 0) > answered for table in group.fingerprint.tables):
            answers.repeats.pop(question, None)
            answers.groups[question] = group
            return
        repeat = answers.repeats.get(question)
        if repeat is None:
            repeat = answers.repeats[question] = Repeat(group.fingerprint, group.ignores)
            self.repeats.append(repeat)
            self.has["repeats"] = 1
            repeat.add(answers.groups[question], rows, 0)
        repeat.add(group, rows, finished - started)

    def _make_room(self) -> None:
        """Drop the oldest groups of a single statement; where all have more, the oldest groups."""
        single = [key for key, group in self._groups.items() if group.count == 1][: MOST_GROUPS // 2]
        drop: Callable[[Any], StatementGroup] = self._groups.pop
        for key in single or list(self._groups)[: MOST_GROUPS // 2]:
            group = drop(key)
            self._room += len(group.values)
            self.dropped += group.count
