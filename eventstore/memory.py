"""The event store in memory: for tests, and for a registry that nobody needs tomorrow."""

import threading
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from psycopg import AsyncConnection, Connection

from eventstore.errors import Conflict
from eventstore.event import LogPosition, NewEvent, RecordedEvent, StreamEnd, StreamEvent, check_name
from eventstore.hashing import chain
from eventstore.plans import check_limit
from eventstore.protocol import LOG_START

__all__ = ["AsyncMemoryEventStore", "MemoryEventStore", "no_transaction"]


def no_transaction(connection: object) -> None:
    """Refuse a `connection=`, which only a store in that database can honour.

    Raises:
        ValueError: one was given.
    """
    if connection is not None:
        raise ValueError("connection: a store in memory cannot take part in a transaction; leave it out")


class MemoryEventStore:
    """An `EventStore` that lives as long as the object. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._streams: dict[str, list[RecordedEvent]] = defaultdict(list)
        self._log: list[RecordedEvent] = []
        self._transactions = 0

    def append(
        self,
        stream_id: str,
        expected_version: int,
        events: Sequence[NewEvent],
        *,
        connection: Connection[Any] | None = None,
    ) -> tuple[RecordedEvent, ...]:
        """As `EventStore.append`."""
        no_transaction(connection)
        check_name("stream_id", stream_id)
        with self._lock:
            end = self._end(stream_id)
            actual = end.version if end else 0
            if actual != expected_version:
                raise Conflict(stream_id, expected_version, actual)
            chained = chain(stream_id, end, events)
            self._transactions += 1
            recorded = tuple(self._record(event, len(self._log) + n) for n, event in enumerate(chained, 1))
            self._streams[stream_id] += recorded
            self._log += recorded
            return recorded

    def _record(self, event: StreamEvent, position: int) -> RecordedEvent:
        return event.recorded(position, self._transactions, datetime.now(UTC))

    def _end(self, stream_id: str) -> StreamEnd | None:
        events = self._streams.get(stream_id)
        return StreamEnd(events[-1].version, events[-1].hash) if events else None

    def read_stream(self, stream_id: str, after_version: int = 0, limit: int | None = None) -> list[RecordedEvent]:
        """As `EventStore.read_stream`."""
        start = max(after_version, 0)
        stop = None if limit is None else start + check_limit(limit)
        with self._lock:
            return self._streams.get(stream_id, [])[start:stop]

    def read_log(self, after: LogPosition = LOG_START, limit: int = 1000) -> list[RecordedEvent]:
        """As `EventStore.read_log`."""
        check_limit(limit)
        with self._lock:
            start = bisect_right(self._log, after, key=lambda event: event.log_position)
            return self._log[start : start + limit]

    def read_all_streams(self) -> list[RecordedEvent]:
        """Read every event, ordered by stream id and version."""
        with self._lock:
            return sorted(self._log, key=lambda event: (event.stream_id, event.version))

    def stream_end(self, stream_id: str) -> StreamEnd | None:
        """As `EventStore.stream_end`."""
        with self._lock:
            return self._end(stream_id)


class AsyncMemoryEventStore:
    """An `AsyncEventStore` that lives as long as the object."""

    def __init__(self) -> None:
        self._store = MemoryEventStore()

    async def append(
        self,
        stream_id: str,
        expected_version: int,
        events: Sequence[NewEvent],
        *,
        connection: AsyncConnection[Any] | None = None,
    ) -> tuple[RecordedEvent, ...]:
        """As `EventStore.append`."""
        no_transaction(connection)
        return self._store.append(stream_id, expected_version, events)

    async def read_stream(
        self, stream_id: str, after_version: int = 0, limit: int | None = None
    ) -> list[RecordedEvent]:
        """As `EventStore.read_stream`."""
        return self._store.read_stream(stream_id, after_version, limit)

    async def read_log(self, after: LogPosition = LOG_START, limit: int = 1000) -> list[RecordedEvent]:
        """As `EventStore.read_log`."""
        return self._store.read_log(after, limit)

    async def stream_end(self, stream_id: str) -> StreamEnd | None:
        """As `EventStore.stream_end`."""
        return self._store.stream_end(stream_id)
