"""Verifying a log and the read models folded from it against each other."""

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from eventstore import plans as log
from eventstore import queries as log_queries
from eventstore.event import LogPosition, RecordedEvent
from eventstore.protocol import LOG_START
from eventstore.steps import Plan, Step
from eventstore.verification import ChainCheck, Problem
from projections.plans import read_rows
from projections.projection import StreamProjection, Values
from projections.table import Table

__all__ = ["Report", "compare", "verify"]

S = TypeVar("S")

PAGE = 1_000  # events: at most some hundred MB, were each as large as can be
MOST_PROBLEMS = 1_000


@dataclass(slots=True)
class Report:
    """What a verification read, and what it found (the first 1,000 problems; `problem_count` counts all)."""

    events: int = 0
    streams: int = 0
    rows: int = 0
    problem_count: int = 0
    problems: list[Problem] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether everything is as it was written."""
        return self.problem_count == 0

    def add(self, *problems: Problem) -> None:
        """Note problems."""
        self.problem_count += len(problems)
        self.problems += problems[: max(0, MOST_PROBLEMS - len(self.problems))]


class _Stream(Generic[S]):
    """One stream as it is read: its chain, and the state folded so far (None once it cannot be folded)."""

    def __init__(self, table: Table[S], stream_id: str) -> None:
        self._table = table
        self._chain = ChainCheck(stream_id)
        self._state: S | None = None
        self._foldable = True
        self.stream_id = stream_id

    def feed(self, event: RecordedEvent) -> list[Problem]:
        problems = self._chain.feed(event)
        if self._foldable:
            try:
                self._state = self._table.projection.fold(self._state, event)
            except Exception as error:
                self._foldable, self._state = False, None
                problems.append(Problem(event.stream_id, event.version, f"cannot be folded: {_first_line(error)}"))
        return problems

    def compare(self, row: Values | None) -> list[Problem]:
        if row is None:
            return [Problem(self.stream_id, None, f"has no row in {self._table.full_name}")]
        if self._state is None:
            return []
        return _differences(self._table, self.stream_id, row, self._state)


def _differences(table: Table[S], key: str, row: Values, state: S) -> list[Problem]:
    return [
        Problem(key, None, f"{table.full_name}.{column} is {found!r}, the log says {folded!r}")
        for column, found, folded in zip(table.projection.columns, row, table.projection.row(state), strict=True)
        if found != folded
    ]


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".replace("\n", " ")[:200]


def verify(table: Table[S], progress: Callable[[int], None] = lambda _: None) -> Plan[Report]:
    """Verify, as of one moment: every chain, every row against its stream's fold, neither there without the other.

    Memory is bounded by the page, whatever the log's length. `progress` is told how many events each page had.
    """
    report = Report()
    yield Step(log_queries.BEGIN_SNAPSHOT)
    stream: _Stream[S] | None = None
    after = ("", 0)
    while page := (yield from log.read_all_streams(after, PAGE)):
        finished: list[_Stream[S]] = []
        for event in page:
            if stream is None or stream.stream_id != event.stream_id:
                finished += [stream] if stream else []
                stream = _Stream(table, event.stream_id)
            report.add(*stream.feed(event))
        yield from _compare(table, finished, report)
        report.events += len(page)
        after = (page[-1].stream_id, page[-1].version)
        progress(len(page))
    yield from _compare(table, [stream] if stream else [], report)
    orphans = yield Step(table.select_orphans, (MOST_PROBLEMS,))
    report.add(*(Problem(key, None, f"has a row in {table.full_name}, and no events") for key, _ in orphans))
    report.problem_count += orphans[0][1] - len(orphans) if orphans else 0
    [(report.rows,)] = yield Step(table.count)
    yield Step(log_queries.COMMIT)
    return report


def _compare(table: Table[S], streams: list[_Stream[S]], report: Report) -> Plan[None]:
    if not streams:
        return
    rows = yield from read_rows(table, [stream.stream_id for stream in streams])
    for stream in streams:
        report.add(*stream.compare(rows.get(stream.stream_id)))
    report.streams += len(streams)


SAMPLE: Final = 1_000
"""Streams or keys that are compared when not all are."""


def compare(
    table: Table[S],
    checkpoint: LogPosition,
    skips: Container[tuple[str, int]],
    *,
    full: bool,
    told: Callable[[int], None] = lambda _: None,
) -> Plan[Report]:
    """Compare rows, some or all, with what the log folds to, as of one moment.

    A row may be as old as the checkpoint, and as new as its stream. `told`: events read.
    """
    report = Report()
    yield Step(log_queries.BEGIN_SNAPSHOT)
    if not isinstance(table.projection, StreamProjection):
        yield from _compare_keys(table, checkpoint, skips, report, full=full, told=told)
    elif full:
        yield from _compare_all(table, checkpoint, skips, report, told)
    else:
        streams = yield from log.sample_streams(SAMPLE)
        comparison = _Comparison(table, checkpoint, skips, report)
        for first in range(0, len(streams), SAMPLE // 10):
            events = yield from log.read_these_streams(streams[first : first + SAMPLE // 10])
            yield from comparison.feed(events)
            told(len(events))
        comparison.end()
    yield Step(log_queries.COMMIT)
    return report


def _compare_all(
    table: Table[S],
    checkpoint: LogPosition,
    skips: Container[tuple[str, int]],
    report: Report,
    told: Callable[[int], None],
) -> Plan[None]:
    comparison, after = _Comparison(table, checkpoint, skips, report), ("", 0)
    while events := (yield from log.read_all_streams(after, PAGE)):
        yield from comparison.feed(events)
        after = (events[-1].stream_id, events[-1].version)
        told(len(events))
    comparison.end()
    orphans = yield Step(table.select_orphans, (MOST_PROBLEMS,))
    report.add(*(Problem(key, None, f"has a row in {table.full_name}, and no events") for key, _ in orphans))


class _Comparison(Generic[S]):
    """Streams one after the other, each folded up to the version that its row has."""

    def __init__(
        self, table: Table[S], checkpoint: LogPosition, skips: Container[tuple[str, int]], report: Report
    ) -> None:
        self._table, self._checkpoint, self._skips, self._report = table, checkpoint, skips, report
        self._stream_id = ""
        self._row: Values | None = None
        self._state: S | None = None
        self._until = self._last = self._due = 0

    def feed(self, events: Sequence[RecordedEvent]) -> Plan[None]:
        new = list(dict.fromkeys(event.stream_id for event in events if event.stream_id != self._stream_id))
        rows = (yield from read_rows(self._table, new)) if new else {}
        for event in events:
            if event.stream_id != self._stream_id:
                self.end()
                self._begin(event.stream_id, rows.get(event.stream_id))
            self._take(event)

    def _begin(self, stream_id: str, row: Values | None) -> None:
        self._stream_id, self._row, self._state = stream_id, row, None
        self._until = self._table.stream_version(row) if row else 0
        self._last = self._due = 0

    def _take(self, event: RecordedEvent) -> None:
        self._last = event.version
        if event.version <= self._until:
            if (event.stream_id, event.version) not in self._skips:
                self._fold(event)
        elif event.log_position <= self._checkpoint and (event.stream_id, event.version) not in self._skips:
            self._due = event.version

    def _fold(self, event: RecordedEvent) -> None:
        if self._row is None:
            return
        try:
            self._state = self._table.projection.fold(self._state, event)
        except Exception as error:  # it could, when the row was made: the fold is not pure, or the row of another hand
            problem = Problem(event.stream_id, event.version, f"cannot be folded: {_first_line(error)}")
            self._report.add(problem)
            self._row = None

    def end(self) -> None:
        if not self._stream_id:
            return
        report, name = self._report, self._table.full_name
        report.streams += 1
        if self._due:
            report.add(Problem(self._stream_id, self._due, f"is not in {name}, which has version {self._until}"))
        if self._until > self._last:
            ahead = f"{name} has version {self._until}, the log ends at {self._last}"
            report.add(Problem(self._stream_id, None, ahead))
        if self._row is not None and self._state is not None:
            report.add(*_differences(self._table, self._stream_id, self._row, self._state))
        self._stream_id = ""


def _compare_keys(
    table: Table[S],
    checkpoint: LogPosition,
    skips: Container[tuple[str, int]],
    report: Report,
    *,
    full: bool,
    told: Callable[[int], None],
) -> Plan[None]:
    """Fold the log once more for keys of several streams; in memory, so that only some are when not all are."""
    projection = table.projection
    chosen = yield Step(table.sample_keys, (None if full else SAMPLE,))
    rows = (yield from read_rows(table, [key for (key,) in chosen])) if chosen else {}
    states: dict[str, S] = {}
    after = LOG_START
    while events := (yield from log.read_log(after, PAGE)):
        for event in events:
            if event.log_position > checkpoint or (event.stream_id, event.version) in skips:
                continue
            key = projection.key(event)
            if key is not None and (full or key in rows):
                states[key] = projection.fold(states.get(key), event)
        after = events[-1].log_position
        told(len(events))
        if after >= checkpoint:
            break
    report.streams += len(rows)
    for key, state in states.items():
        row = rows.get(key)
        missing = [Problem(key, None, f"has no row in {table.full_name}")]
        report.add(*(missing if row is None else _differences(table, key, row, state)))
    report.add(*(Problem(key, None, f"has a row in {table.full_name}, and no events") for key in rows.keys() - states))
