"""What an event store does, for threads and for asyncio."""

from collections.abc import Sequence
from typing import Any, Protocol

from psycopg import AsyncConnection, Connection

from eventstore.event import LogPosition, NewEvent, RecordedEvent, StreamEnd

__all__ = ["LOG_START", "AsyncEventStore", "EventStore"]

LOG_START = LogPosition(0, 0)
"""The place before the first event of the log."""


class EventStore(Protocol):
    """Streams of events, appended under optimistic concurrency, never changed."""

    def append(
        self,
        stream_id: str,
        expected_version: int,
        events: Sequence[NewEvent],
        *,
        connection: Connection[Any] | None = None,
    ) -> tuple[RecordedEvent, ...]:
        """Append events to a stream that is at the expected version (0: it has no events), all or none.

        With a `connection`, they are appended in its transaction, and commit or vanish with it.

        Raises:
            Conflict: the stream is at another version.
            InvalidEvent: the stream id is no name.
            Unavailable: no connection could be had in time.
            OutcomeUnknown: the connection was lost, and what became of the append could not be found out in time.
        """
        ...

    def read_stream(self, stream_id: str, after_version: int = 0, limit: int | None = None) -> list[RecordedEvent]:
        """Read a stream forwards, from the event after `after_version` on; an unknown stream is empty."""
        ...

    def read_log(self, after: LogPosition = LOG_START, limit: int = 1000) -> list[RecordedEvent]:
        """Read up to `limit` (1..100,000) events of the log in commit order, after a position.

        An event is given only when no transaction still under way can come before it: who goes on from the last
        position skips nothing.
        """
        ...

    def stream_end(self, stream_id: str) -> StreamEnd | None:
        """Read the version and hash of a stream's last event; None when it has no events."""
        ...


class AsyncEventStore(Protocol):
    """`EventStore` for asyncio."""

    async def append(
        self,
        stream_id: str,
        expected_version: int,
        events: Sequence[NewEvent],
        *,
        connection: AsyncConnection[Any] | None = None,
    ) -> tuple[RecordedEvent, ...]:
        """As `EventStore.append`."""
        ...

    async def read_stream(
        self, stream_id: str, after_version: int = 0, limit: int | None = None
    ) -> list[RecordedEvent]:
        """As `EventStore.read_stream`."""
        ...

    async def read_log(self, after: LogPosition = LOG_START, limit: int = 1000) -> list[RecordedEvent]:
        """As `EventStore.read_log`."""
        ...

    async def stream_end(self, stream_id: str) -> StreamEnd | None:
        """As `EventStore.stream_end`."""
        ...
