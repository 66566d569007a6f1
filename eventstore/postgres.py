"""The event store on Postgres, for threads and for asyncio."""

from collections.abc import Sequence
from typing import Any

from psycopg import AsyncConnection, Connection

from eventstore import plans
from eventstore.database import AsyncDatabase, Database
from eventstore.event import LogPosition, NewEvent, RecordedEvent, StreamEnd
from eventstore.protocol import LOG_START

__all__ = ["AsyncPostgresEventStore", "PostgresEventStore"]


class PostgresEventStore:
    """An `EventStore` on Postgres. Threads may share it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def append(
        self,
        stream_id: str,
        expected_version: int,
        events: Sequence[NewEvent],
        *,
        connection: Connection[Any] | None = None,
    ) -> tuple[RecordedEvent, ...]:
        """As `EventStore.append`."""
        return self._database.run(plans.append(stream_id, expected_version, events), connection)

    def read_stream(self, stream_id: str, after_version: int = 0, limit: int | None = None) -> list[RecordedEvent]:
        """As `EventStore.read_stream`."""
        return self._database.run(plans.read_stream(stream_id, after_version, limit))

    def read_log(self, after: LogPosition = LOG_START, limit: int = 1000) -> list[RecordedEvent]:
        """As `EventStore.read_log`."""
        return self._database.run(plans.read_log(after, limit))

    def stream_end(self, stream_id: str) -> StreamEnd | None:
        """As `EventStore.stream_end`."""
        return self._database.run(plans.stream_end(stream_id))


class AsyncPostgresEventStore:
    """An `AsyncEventStore` on Postgres."""

    def __init__(self, database: AsyncDatabase) -> None:
        self._database = database

    async def append(
        self,
        stream_id: str,
        expected_version: int,
        events: Sequence[NewEvent],
        *,
        connection: AsyncConnection[Any] | None = None,
    ) -> tuple[RecordedEvent, ...]:
        """As `EventStore.append`."""
        return await self._database.run(plans.append(stream_id, expected_version, events), connection)

    async def read_stream(
        self, stream_id: str, after_version: int = 0, limit: int | None = None
    ) -> list[RecordedEvent]:
        """As `EventStore.read_stream`."""
        return await self._database.run(plans.read_stream(stream_id, after_version, limit))

    async def read_log(self, after: LogPosition = LOG_START, limit: int = 1000) -> list[RecordedEvent]:
        """As `EventStore.read_log`."""
        return await self._database.run(plans.read_log(after, limit))

    async def stream_end(self, stream_id: str) -> StreamEnd | None:
        """As `EventStore.stream_end`."""
        return await self._database.run(plans.stream_end(stream_id))
