"""COPY: as the limit of what one connection writes or reads (a process of its own), and to make a large log quickly."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from types import MappingProxyType
from typing import Any, Final

import psycopg
from psycopg import Connection

from benchmarks import queries
from benchmarks.life import EVENTS, Life, life
from benchmarks.rows import COPY_EVENTS, COPY_EVENTS_OUT, COPY_STATUSES, VACUUM, Batch, batch
from benchmarks.sample import Job, Sample, Window, serve

__all__ = ["load", "tidy"]

_COMMANDS: Final = 1_000
"""Commands in a transaction: a few thousand events, and their statuses."""

_MOST: Final = 150_000
"""Events a second that are made ready; should COPY be through with them sooner, its window ends there."""


def load(dsn: str, commands: int, progress: Callable[[int], None] = lambda _: None, lived: Life = life) -> None:
    """Fill an empty registry with so many commands that have `lived`; `progress` is told how many there are."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(queries.LAZY_COMMITS)
        for rows in _made_ahead(_parts(range(commands)), lived):
            _copy(connection, rows)
            progress(rows.numbers.stop)
    tidy(dsn)


def tidy(dsn: str) -> None:
    """Vacuum and analyse a registry: else the server would set about it by itself, in the midst of a measurement."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        for statement in VACUUM:
            connection.execute(statement)


def _copy_in(job: Job) -> Sample:
    """Copy what was made ready before, so that only COPY is measured.

    In text, the format that COPY has by default; in its binary one it is about a fifth faster.
    """
    parts = max(2, round(job.seconds * _MOST / EVENTS / _COMMANDS))
    first, *ready = map(batch, _parts(range(job.commands, job.commands + parts * _COMMANDS)))
    window = Window(job.postmaster)
    with psycopg.connect(job.dsn, autocommit=True) as connection:
        _copy(connection, first)  # the warm-up
        window.begin()
        end = time.perf_counter() + job.seconds
        for rows in ready:
            began = time.perf_counter()
            _copy(connection, rows)
            if window.note(began) > end:
                break
        return window.end(_COMMANDS * EVENTS)


def _copy_out(job: Job) -> Sample:
    """Copy the whole log out, and throw it away."""
    window = Window(job.postmaster)
    with psycopg.connect(job.dsn, autocommit=True) as connection:
        events = _read(connection)  # the warm-up
        window.begin()
        window.repeat(lambda: _read(connection), job.seconds)
        return window.end(events)


def _read(connection: Connection[Any]) -> int:
    cursor = connection.cursor()
    with cursor.copy(COPY_EVENTS_OUT) as copy:
        deque(copy, maxlen=0)
    return cursor.rowcount


def _copy(connection: Connection[Any], rows: Batch) -> None:
    with connection.transaction(), connection.cursor() as cursor:
        with cursor.copy(COPY_EVENTS) as copy:
            copy.write(rows.events)
        with cursor.copy(COPY_STATUSES) as copy:
            copy.write(rows.statuses)


def _parts(numbers: range) -> Iterator[range]:
    return (numbers[start : start + _COMMANDS] for start in range(0, len(numbers), _COMMANDS))


def _made_ahead(parts: Iterator[range], lived: Life) -> Iterator[Batch]:
    """Make rows in a thread, two batches ahead, while the server takes in those before."""
    with ThreadPoolExecutor(1) as thread:
        pending = deque(thread.submit(batch, part, lived) for part in islice(parts, 2))
        while pending:
            rows = pending.popleft().result()
            pending.extend(thread.submit(batch, part, lived) for part in islice(parts, 1))
            yield rows


LOADS: Final[Mapping[str, Callable[[Job], Sample]]] = MappingProxyType({"copy": _copy_in, "copy-out": _copy_out})
"""What this client can do, by name."""


if __name__ == "__main__":
    serve(LOADS)
