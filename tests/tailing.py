"""Projectors of both kinds, here and in processes that are killed, and read models that show what they were given.

`python -m tests.tailing` is such a process: told on its standard input what to follow, it goes on until that ends.
"""

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Final, LiteralString, NamedTuple, TypeVar

import psycopg

from eventstore import RecordedEvent, StreamEvent, plans
from eventstore.database import AsyncDatabase, Database
from projections import Projection, StreamProjection, Table, Values
from projections.postgres import AsyncProjector, Projector
from tests.lending import on

__all__ = [
    "DIARY",
    "LEDGER",
    "TALLY",
    "Child",
    "Diary",
    "Following",
    "Job",
    "Ledger",
    "Seen",
    "Tally",
    "child",
    "committed",
    "expected",
    "following",
    "owner_of",
]

T = TypeVar("T")


def _columns(**columns: LiteralString) -> Mapping[LiteralString, LiteralString]:
    return MappingProxyType(columns)


class Seen(NamedTuple):
    """What a row was given: how many events, and a digest of them all in their order."""

    key: str
    events: int
    digest: str
    version: int


def _with(state: Seen | None, key: str, event: StreamEvent) -> Seen:
    before = state or Seen(key, 0, "", 0)
    text = f"{before.digest} {event.stream_id} {event.version}"
    return Seen(key, before.events + 1, hashlib.sha256(text.encode()).hexdigest()[:16], event.version)


class Diary(Projection[tuple[str, str]]):
    """A row for each stream: the versions of the events that it was given, as they came."""

    name = "diary"
    version = 1
    columns = _columns(stream_id='text COLLATE "C"', versions="text")

    def key(self, event: StreamEvent) -> str | None:
        return event.stream_id

    def fold(self, state: tuple[str, str] | None, event: StreamEvent) -> tuple[str, str]:
        return event.stream_id, f"{state[1]} {event.version}" if state else str(event.version)

    def row(self, state: tuple[str, str]) -> Values:
        return state

    def state(self, row: Values) -> tuple[str, str]:
        return (row[0], row[1])


class Tally(Projection[Seen]):
    """A row for each first letter of the streams' names: of the events of many streams, in the order of the log."""

    name = "tally"
    version = 1
    columns = _columns(letter='text COLLATE "C"', events="bigint", digest="text", last="int")

    def key(self, event: StreamEvent) -> str | None:
        return event.stream_id[0]

    def fold(self, state: Seen | None, event: StreamEvent) -> Seen:
        return _with(state, event.stream_id[0], event)

    def row(self, state: Seen) -> Values:
        return tuple(state)

    def state(self, row: Values) -> Seen:
        return Seen(*row)


class Ledger(StreamProjection[Seen]):
    """A row for each stream, with its version."""

    name = "ledger"
    version = 1
    columns = _columns(stream_id='text COLLATE "C"', events="bigint", digest="text", version="int")

    def fold(self, state: Seen | None, event: StreamEvent) -> Seen:
        return _with(state, event.stream_id, event)

    def row(self, state: Seen) -> Values:
        return tuple(state)

    def state(self, row: Values) -> Seen:
        return Seen(*row)


DIARY: Final = Table(Diary())
TALLY: Final = Table(Tally())
LEDGER: Final = Table(Ledger())
TABLES: Final[Mapping[str, Table[Any]]] = {table.projection.name: table for table in (DIARY, TALLY, LEDGER)}


def committed(observer: psycopg.Connection[Any]) -> list[RecordedEvent]:
    """Read every event that is committed, in the order of the log, whatever holds its readers back."""
    events: list[RecordedEvent] = on(observer, plans.read_all_streams(("", 0), 100_000))
    return sorted(events, key=lambda event: event.log_position)


def expected(observer: psycopg.Connection[Any], table: Table[T]) -> dict[str, T]:
    """Fold what is committed by hand."""
    states: dict[str, T] = {}
    for event in committed(observer):
        key = table.projection.key(event)
        if key is not None:
            states[key] = table.projection.fold(states.get(key), event)
    return states


def owner_of(observer: psycopg.Connection[Any], table: Table[Any]) -> str | None:
    """Tell who holds the lease of a table, by the server's clock."""
    rows = observer.execute(
        "SELECT owner FROM command_registry.projectors"
        " WHERE name = %s AND version = %s AND lease_until > clock_timestamp()",
        (table.projection.name, table.projection.version),
    ).fetchall()
    return rows[0][0] if rows else None


class Following:
    """A projector of either kind, from outside."""

    def __init__(self, wait_until: Callable[..., None], close: Callable[[], None]) -> None:
        self.wait_until = wait_until
        self.close = close


@contextmanager
def following(kind: str, dsn: str, *tables: Table[Any], **settings: Any) -> Iterator[Following]:
    """Follow the log for tables until the block ends: by threads, or by tasks of a loop in a thread of its own."""
    if kind == "threads":
        with Database(dsn, pool_size=len(tables) + 1) as database, Projector(database, tables, **settings) as threads:
            yield Following(threads.wait_until, threads.close)
        return
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="the loop of projectors")
    thread.start()

    def call(make: Callable[..., Any], *args: Any, **more: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(make(*args, **more), loop).result(60)

    try:
        opened = AsyncDatabase(dsn, pool_size=len(tables) + 1)
        call(opened.open)
        try:
            tasks = AsyncProjector(opened, tables, **settings)
            call(tasks.__aenter__)
            try:
                yield Following(partial(call, tasks.wait_until), partial(call, tasks.close))
            finally:
                call(tasks.close)
        finally:
            call(opened.close)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@dataclass(frozen=True)
class Job:
    """What a process is to follow: the tables of these names."""

    dsn: str
    tables: tuple[str, ...]
    kind: str = "threads"
    lease_seconds: float = 3.0


class Child:
    """A process that follows the log."""

    def __init__(self, job: Job) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.tailing"],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(asdict(job)) + "\n")
        self.process.stdin.flush()

    def leads(self, owner: str | None) -> bool:
        """Tell whether it is this process that is called so."""
        return owner is not None and owner.split(":")[-2] == str(self.process.pid)

    def send(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        """End it by force (-9)."""
        self.process.kill()
        self._end()

    def close(self) -> None:
        """Let it end by itself."""
        problem = self._end()
        assert self.process.returncode == 0, problem

    def _end(self) -> str:
        assert self.process.stderr is not None
        _, problem = self.process.communicate(timeout=60)
        return problem


@contextmanager
def child(job: Job) -> Iterator[Child]:
    """Start a process that follows the log; killed when the block ends, if it has not ended."""
    started = Child(job)
    try:
        yield started
    finally:
        if started.process.poll() is None:
            started.kill()


def main() -> None:
    """Follow the log until nobody listens any more."""
    job = Job(**json.loads(sys.stdin.readline()))
    with following(job.kind, job.dsn, *[TABLES[name] for name in job.tables], lease_seconds=job.lease_seconds):
        sys.stdin.read()


if __name__ == "__main__":
    main()
