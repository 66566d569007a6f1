"""The registry on Postgres, for threads and for asyncio. All logic is in the plans; these classes run them."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeAlias, TypeVar

from psycopg import AsyncConnection, Connection

from eventstore.batching import AsyncBatcher, Batcher
from eventstore.database import DEFAULT_POOL_SIZE, DEFAULT_TIMEOUT, AsyncDatabase, Database, Pooler
from eventstore.errors import SchemaMismatch, Unavailable
from eventstore.event import LogPosition, RecordedEvent
from eventstore.metrics import Metrics
from eventstore.plans import read_log
from eventstore.protocol import LOG_START
from registry import audit, deployment_table, embedded, plans
from registry.audit import Report
from registry.calls import AsyncRegistryCalls, RegistryCalls, utc_now
from registry.decider import Clock, Decide
from registry.deployment_table import AsyncDeploymentTable, DeploymentTable
from registry.deployments import AsyncDeploymentDirectory, Deployment, DeploymentDirectory, FixedDeployments, look_up
from registry.history import metadata_text
from registry.models import CommandStatus, EventContext, NewCommand
from registry.plans import StatusRead
from registry.writing import Write, answer_if_there, creation, work, write_in_time

__all__ = ["AsyncPostgresCommandRegistry", "PostgresCommandRegistry"]

R = TypeVar("R")
InTable: TypeAlias = Literal["table"]

EXPORT_PAGE: Final = 1_000
_CLOSED: Final = "the registry is not open: use it as a context manager, or call connect() first"


class _Opened:
    """An open database, and what brings the calls of many threads together in it."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self.database = database
        self.writes: Batcher[Write[Any]] = Batcher(database, work(clock))
        self.reads: Batcher[StatusRead] = Batcher(database, plans.read_all, lanes=1)


class _AsyncOpened:
    """An open database, and what brings the calls of many tasks together in it."""

    def __init__(self, database: AsyncDatabase, clock: Clock) -> None:
        self.database = database
        self.writes: AsyncBatcher[Write[Any]] = AsyncBatcher(database, work(clock))
        self.reads: AsyncBatcher[StatusRead] = AsyncBatcher(database, plans.read_all, lanes=1)

    async def close(self) -> None:
        await self.writes.close()
        await self.reads.close()
        await self.database.close()


class PostgresCommandRegistry(RegistryCalls):
    """A `CommandRegistry` on Postgres. Threads may share it.

    Without a DSN it is in the embedded Postgres, which is started when need be, and stopped by the last process that
    leaves. `deployments`: the directory to ask (default: any id is a deployment that pulls), or "table" for
    `command_registry.deployments`. `migrate`: create what is missing on opening (default: only in the embedded
    Postgres). `timeout`: how long a call may take, in seconds, unless it says another time. `pool_size`: how many
    connections at most. `pooler="transaction"`: the DSN leads to a pooler such as PgBouncer in transaction mode;
    nothing is prepared then, and no setting of a session relied upon. `clock` tells the time that events occur at.
    """

    def __init__(
        self,
        dsn: str | None = None,
        *,
        deployments: DeploymentDirectory | InTable | None = None,
        migrate: bool | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        pool_size: int = DEFAULT_POOL_SIZE,
        pooler: Pooler | None = None,
        clock: Clock = utc_now,
    ) -> None:
        super().__init__(clock, timeout)
        self._dsn = dsn
        self._directory = deployments or FixedDeployments()
        self._migrate = dsn is None if migrate is None else migrate
        self._pool_size, self._pooler = pool_size, pooler
        self._server: embedded.EmbeddedPostgres | None = None
        self._opened: _Opened | None = None

    @classmethod
    def open(
        cls,
        dsn: str | None = None,
        *,
        deployments: DeploymentDirectory | InTable | None = None,
        migrate: bool | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        pool_size: int = DEFAULT_POOL_SIZE,
        pooler: Pooler | None = None,
        clock: Clock = utc_now,
    ) -> Self:
        """Open the registry in a database, and connect. Arguments: see the class.

        Raises:
            SchemaMismatch: the database has no registry, or one of another version; says the command to run.
            InvalidDsn: the DSN cannot be read.
            Unavailable: the server cannot be reached.
            EmbeddedPostgresError: the embedded Postgres cannot be started here.
        """
        registry = cls(
            dsn,
            deployments=deployments,
            migrate=migrate,
            timeout=timeout,
            pool_size=pool_size,
            pooler=pooler,
            clock=clock,
        )
        registry.connect()
        return registry

    def connect(self) -> None:
        """Start the embedded Postgres if it is wanted, connect, and check schema and read model. See `open`."""
        try:
            if self._dsn is None:
                self._server = embedded.start()
            dsn = self._server.dsn if self._server else self._dsn or ""
            database = Database(dsn, timeout=self._timeout, pool_size=self._pool_size, pooler=self._pooler)
            self._opened = _Opened(database, self._clock)
            database.open()
            self._check()
        except BaseException:
            self.close()
            raise

    def _check(self) -> None:
        try:
            self.database.run(plans.check())
        except SchemaMismatch:
            if not self._migrate:
                raise
            self.migrate()

    def close(self) -> None:
        """Close every connection, and leave the embedded Postgres."""
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.database.close()
        server, self._server = self._server, None
        if server is not None:
            server.close()

    def __enter__(self) -> Self:
        if self._opened is None:
            self.connect()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def _open_now(self) -> "_Opened":
        if self._opened is None:
            raise Unavailable(_CLOSED)
        return self._opened

    @property
    def database(self) -> Database:
        """The open database.

        Raises:
            Unavailable: the registry is not open.
        """
        return self._open_now.database

    @property
    def deployment_table(self) -> DeploymentTable:
        """The directory in table `command_registry.deployments`, whether or not this registry asks it."""
        return DeploymentTable(self.database)

    def migrate(self, progress: Callable[[int], None] = lambda _: None) -> None:
        """Create what is missing of schema and read model; `progress` is told of events folded into it.

        Raises:
            SchemaMismatch: the database cannot hold this registry, or holds one of a later version.
        """
        self.database.run(plans.migrate(progress), lasting=True)

    def _create(
        self, call: NewCommand, context: EventContext, connection: Connection[Any] | None, timeout: float
    ) -> CommandStatus:
        began = time.monotonic()
        deployment = self._look_up(call.deployment_id, connection, timeout)
        time_left = max(0.0, timeout - (time.monotonic() - began))
        return self._settled(creation(call, deployment, context), connection, time_left)

    def _write(
        self,
        command_id: str,
        decide: Decide[R],
        context: EventContext,
        connection: Connection[Any] | None,
        timeout: float,
    ) -> R:
        return self._settled(Write(command_id, decide, metadata_text(context)), connection, timeout)

    def _settled(self, write: Write[R], connection: Connection[Any] | None, timeout: float) -> R:
        if connection is None:
            self._open_now.writes.submit(write, timeout)
        else:
            plan = write_in_time([write], self._clock, timeout, in_transaction=True)
            self.database.run(plan, connection, timeout=timeout)
        return write.result()

    def _write_each(
        self,
        command_ids: Sequence[str],
        decide: Decide[R],
        context: EventContext,
        connection: Connection[Any] | None,
        timeout: float,
    ) -> Sequence[R | None]:
        writes = [Write(command_id, decide, metadata_text(context)) for command_id in command_ids]
        plan = write_in_time(writes, self._clock, timeout, in_transaction=connection is not None)
        self.database.run(plan, connection, timeout=timeout)
        return [answer_if_there(write) for write in writes]

    def _status(self, command_id: str, timeout: float) -> CommandStatus | None:
        read = StatusRead(command_id)
        self._open_now.reads.submit(read, timeout)
        return read.result()

    def _events(self, command_id: str, timeout: float) -> Sequence[RecordedEvent]:
        return self.database.run(plans.events(command_id), timeout=timeout)

    def _overdue(self, now: datetime, limit: int, connection: Connection[Any] | None, timeout: float) -> Sequence[str]:
        return self.database.run(plans.overdue(now, limit), connection, timeout=timeout)

    def _deployment(self, deployment_id: str, timeout: float) -> Deployment | None:
        return self._look_up(deployment_id, None, timeout)

    def _look_up(self, deployment_id: str, connection: Connection[Any] | None, timeout: float) -> Deployment | None:
        if self._directory == "table":
            return self.database.run(deployment_table.find(deployment_id), connection, timeout=timeout)
        return self._directory.get(deployment_id)

    def stats(self) -> Metrics:
        """Count and time what this registry has done since it was opened: batches, conflicts, retries, statements.

        Raises:
            Unavailable: the registry is not open.
        """
        return self.database.metrics

    def verify(self, progress: Callable[[int], None] = lambda _: None) -> Report:
        """Verify, as of one moment, that nothing in the log was changed and that the read model is its fold.

        `progress` is told how many events each page had. Memory is bounded by a page, whatever the log's length.
        """
        return self.database.run(audit.verification(progress), lasting=True)

    def export(self, after: LogPosition = LOG_START) -> Iterator[RecordedEvent]:
        """Read the log in commit order, after a position; an event waits for all that may come before it."""
        while page := self.database.run(read_log(after, EXPORT_PAGE)):
            yield from page
            after = page[-1].log_position


class AsyncPostgresCommandRegistry(AsyncRegistryCalls):
    """An `AsyncCommandRegistry` on Postgres, for the event loop that connects it.

    Without a DSN it is in the embedded Postgres, which is started when need be, and stopped by the last process that
    leaves. `deployments`: the directory to ask (default: any id is a deployment that pulls), or "table" for
    `command_registry.deployments`. `migrate`: create what is missing on opening (default: only in the embedded
    Postgres). `timeout`: how long a call may take, in seconds, unless it says another time. `pool_size`: how many
    connections at most. `pooler="transaction"`: the DSN leads to a pooler such as PgBouncer in transaction mode;
    nothing is prepared then, and no setting of a session relied upon. `clock` tells the time that events occur at.
    """

    def __init__(
        self,
        dsn: str | None = None,
        *,
        deployments: DeploymentDirectory | AsyncDeploymentDirectory | InTable | None = None,
        migrate: bool | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        pool_size: int = DEFAULT_POOL_SIZE,
        pooler: Pooler | None = None,
        clock: Clock = utc_now,
    ) -> None:
        super().__init__(clock, timeout)
        self._dsn = dsn
        self._directory = deployments or FixedDeployments()
        self._migrate = dsn is None if migrate is None else migrate
        self._pool_size, self._pooler = pool_size, pooler
        self._server: embedded.EmbeddedPostgres | None = None
        self._opened: _AsyncOpened | None = None
        self._closing: asyncio.Task[None] | None = None

    @classmethod
    def open(
        cls,
        dsn: str | None = None,
        *,
        deployments: DeploymentDirectory | AsyncDeploymentDirectory | InTable | None = None,
        migrate: bool | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        pool_size: int = DEFAULT_POOL_SIZE,
        pooler: Pooler | None = None,
        clock: Clock = utc_now,
    ) -> Self:
        """Prepare the registry in a database; `async with`, or `await registry.connect()`, opens it.

        Arguments: see the class.

        Raises (when it is opened):
            SchemaMismatch: the database has no registry, or one of another version; says the command to run.
            InvalidDsn: the DSN cannot be read.
            Unavailable: the server cannot be reached.
            EmbeddedPostgresError: the embedded Postgres cannot be started here.
        """
        return cls(
            dsn,
            deployments=deployments,
            migrate=migrate,
            timeout=timeout,
            pool_size=pool_size,
            pooler=pooler,
            clock=clock,
        )

    async def connect(self) -> None:
        """Start the embedded Postgres if it is wanted, connect, and check schema and read model. See `open`."""
        try:
            if self._dsn is None:
                self._server = await asyncio.to_thread(embedded.start)
            dsn = self._server.dsn if self._server else self._dsn or ""
            database = AsyncDatabase(dsn, timeout=self._timeout, pool_size=self._pool_size, pooler=self._pooler)
            self._opened = _AsyncOpened(database, self._clock)
            await database.open()
            await self._check()
        except BaseException:
            await self.close()
            raise

    async def _check(self) -> None:
        try:
            await self.database.run(plans.check())
        except SchemaMismatch:
            if not self._migrate:
                raise
            await self.migrate()

    async def close(self) -> None:
        """Close every connection, and leave the embedded Postgres; who is cancelled here only waits no more."""
        if self._closing is None or self._closing.done():
            self._closing = asyncio.create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        opened, self._opened = self._opened, None
        if opened is not None:
            await opened.close()
        server, self._server = self._server, None
        if server is not None:
            await asyncio.to_thread(server.close)

    async def __aenter__(self) -> Self:
        if self._opened is None:
            await self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def _open_now(self) -> "_AsyncOpened":
        if self._opened is None:
            raise Unavailable(_CLOSED)
        return self._opened

    @property
    def database(self) -> AsyncDatabase:
        """The open database.

        Raises:
            Unavailable: the registry is not open.
        """
        return self._open_now.database

    @property
    def deployment_table(self) -> AsyncDeploymentTable:
        """The directory in table `command_registry.deployments`, whether or not this registry asks it."""
        return AsyncDeploymentTable(self.database)

    async def migrate(self, progress: Callable[[int], None] = lambda _: None) -> None:
        """Create what is missing of schema and read model; `progress` is told of events folded into it.

        Raises:
            SchemaMismatch: the database cannot hold this registry, or holds one of a later version.
        """
        await self.database.run(plans.migrate(progress), lasting=True)

    async def _create(
        self, call: NewCommand, context: EventContext, connection: AsyncConnection[Any] | None, timeout: float
    ) -> CommandStatus:
        began = time.monotonic()
        deployment = await self._look_up(call.deployment_id, connection, timeout)
        time_left = max(0.0, timeout - (time.monotonic() - began))
        return await self._settled(creation(call, deployment, context), connection, time_left)

    async def _write(
        self,
        command_id: str,
        decide: Decide[R],
        context: EventContext,
        connection: AsyncConnection[Any] | None,
        timeout: float,
    ) -> R:
        return await self._settled(Write(command_id, decide, metadata_text(context)), connection, timeout)

    async def _settled(self, write: Write[R], connection: AsyncConnection[Any] | None, timeout: float) -> R:
        if connection is None:
            await self._open_now.writes.submit(write, timeout)
        else:
            plan = write_in_time([write], self._clock, timeout, in_transaction=True)
            await self.database.run(plan, connection, timeout=timeout)
        return write.result()

    async def _write_each(
        self,
        command_ids: Sequence[str],
        decide: Decide[R],
        context: EventContext,
        connection: AsyncConnection[Any] | None,
        timeout: float,
    ) -> Sequence[R | None]:
        writes = [Write(command_id, decide, metadata_text(context)) for command_id in command_ids]
        plan = write_in_time(writes, self._clock, timeout, in_transaction=connection is not None)
        await self.database.run(plan, connection, timeout=timeout)
        return [answer_if_there(write) for write in writes]

    async def _status(self, command_id: str, timeout: float) -> CommandStatus | None:
        read = StatusRead(command_id)
        await self._open_now.reads.submit(read, timeout)
        return read.result()

    async def _events(self, command_id: str, timeout: float) -> Sequence[RecordedEvent]:
        return await self.database.run(plans.events(command_id), timeout=timeout)

    async def _overdue(
        self, now: datetime, limit: int, connection: AsyncConnection[Any] | None, timeout: float
    ) -> Sequence[str]:
        return await self.database.run(plans.overdue(now, limit), connection, timeout=timeout)

    async def _deployment(self, deployment_id: str, timeout: float) -> Deployment | None:
        return await self._look_up(deployment_id, None, timeout)

    async def _look_up(
        self, deployment_id: str, connection: AsyncConnection[Any] | None, timeout: float
    ) -> Deployment | None:
        if self._directory == "table":
            return await self.database.run(deployment_table.find(deployment_id), connection, timeout=timeout)
        return await look_up(self._directory, deployment_id)

    def stats(self) -> Metrics:
        """Count and time what this registry has done since it was opened: batches, conflicts, retries, statements.

        Raises:
            Unavailable: the registry is not open.
        """
        return self.database.metrics

    async def verify(self, progress: Callable[[int], None] = lambda _: None) -> Report:
        """Verify, as of one moment, that nothing in the log was changed and that the read model is its fold.

        `progress` is told how many events each page had. Memory is bounded by a page, whatever the log's length.
        """
        return await self.database.run(audit.verification(progress), lasting=True)

    async def export(self, after: LogPosition = LOG_START) -> AsyncIterator[RecordedEvent]:
        """Read the log in commit order, after a position; an event waits for all that may come before it."""
        while page := await self.database.run(read_log(after, EXPORT_PAGE)):
            for event in page:
                yield event
            after = page[-1].log_position
