"""Verifying a log and the read model of an inline projection against each other."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from eventstore import plans as log
from eventstore import queries as log_queries
from eventstore.event import RecordedEvent
from eventstore.steps import Plan, Step
from eventstore.verification import ChainCheck, Problem
from projections.projection import Values
from projections.table import Table

__all__ = ["Report", "verify"]

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
        expected = self._table.projection.row(self._state)
        return [
            Problem(self.stream_id, None, f"{self._table.full_name}.{column} is {found!r}, the log says {folded!r}")
            for column, found, folded in zip(self._table.projection.columns, row, expected, strict=True)
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
    rows = yield Step(table.select_rows, ([stream.stream_id for stream in streams],))
    by_key = {row[0]: table.values(row) for row in rows}
    for stream in streams:
        report.add(*stream.compare(by_key.get(stream.stream_id)))
    report.streams += len(streams)
