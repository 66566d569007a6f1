"""The registry on Postgres, for threads and for asyncio. All logic is in the plans; these classes run them."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeAlias, TypeVar

from psycopg import AsyncConnection, Connection

from eventstore.database import DEFAULT_POOL_SIZE, DEFAULT_TIMEOUT, AsyncDatabase, Database
from eventstore.errors import SchemaMismatch, Unavailable
from eventstore.event import LogPosition, RecordedEvent
from eventstore.plans import read_log
from eventstore.protocol import LOG_START
from eventstore.steps import Plan, constant
from registry import audit, deployment_table, embedded, plans
from registry.audit import Report
from registry.calls import AsyncRegistryCalls, RegistryCalls, utc_now
from registry.decider import Decide
from registry.deployment_table import AsyncDeploymentTable, DeploymentTable
from registry.deployments import AsyncDeploymentDirectory, Deployment, DeploymentDirectory, FixedDeployments, look_up
from registry.models import CommandStatus, EventContext, NewCommand
from registry.plans import Clock

__all__ = ["AsyncPostgresCommandRegistry", "PostgresCommandRegistry"]

R = TypeVar("R")
InTable: TypeAlias = Literal["table"]

EXPORT_PAGE: Final = 1_000
_CLOSED: Final = "the registry is not open: use it as a context manager, or call connect() first"


class PostgresCommandRegistry(RegistryCalls):
    """A `CommandRegistry` on Postgres. Threads may share it.

    Without a DSN it is in the embedded Postgres, which is started when need be, and stopped by the last process that
    leaves. `deployments`: the directory to ask (default: any id is a deployment that pulls), or "table" for
    `command_registry.deployments`. `migrate`: create what is missing on opening (default: only in the embedded
    Postgres). `timeout`: how long a call may wait for a server that is away, in seconds. `pool_size`: how many
    connections at most. `clock` tells the time that events occur at.
    """

    def __init__(
        self,
        dsn: str | None = None,
        *,
        deployments: DeploymentDirectory | InTable | None = None,
        migrate: bool | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        pool_size: int = DEFAULT_POOL_SIZE,
        clock: Clock = utc_now,
    ) -> None:
        super().__init__(clock)
        self._dsn = dsn
        self._directory = deployments or FixedDeployments()
        self._migrate = dsn is None if migrate is None else migrate
        self._timeout, self._pool_size = timeout, pool_size
        self._server: embedded.EmbeddedPostgres | None = None
        self._database: Database | None = None

    @classmethod
    def open(
        cls,
        dsn: str | None = None,
        *,
        deployments: DeploymentDirectory | InTable | None = None,
        migrate: bool | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        pool_size: int = DEFAULT_POOL_SIZE,
        clock: Clock = utc_now,
    ) -> Self:
        """Open the registry in a database, and connect. Arguments: see the class.

        Raises:
            SchemaMismatch: the database has no registry, or one of another version; says the command to run.
            InvalidDsn: the DSN cannot be read.
            Unavailable: the server cannot be reached.
            EmbeddedPostgresError: the embedded Postgres cannot be started here.
        """
        registry = cls(dsn, deployments=deployments, migrate=migrate, timeout=timeout, pool_size=pool_size, clock=clock)
        registry.connect()
        return registry

    def connect(self) -> None:
        """Start the embedded Postgres if it is wanted, connect, and check schema and read model. See `open`."""
        try:
            if self._dsn is None:
                self._server = embedded.start()
            dsn = self._server.dsn if self._server else self._dsn or ""
            self._database = Database(dsn, timeout=self._timeout, pool_size=self._pool_size)
            self._database.open()
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
        database, self._database = self._database, None
        if database is not None:
            database.close()
        server, self._server = self._server, None
        if server is not None:
            server.close()

    def __enter__(self) -> Self:
        if self._database is None:
            self.connect()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def database(self) -> Database:
        """The open database.

        Raises:
            Unavailable: the registry is not open.
        """
        if self._database is None:
            raise Unavailable(_CLOSED)
        return self._database

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

    def _create(self, call: NewCommand, context: EventContext, connection: Connection[Any] | None) -> CommandStatus:
        find = self._find_deployment(call.deployment_id)
        return self.database.run(plans.create(call, find, context, self._clock), connection)

    def _write(
        self, command_id: str, decide: Decide[R], context: EventContext, connection: Connection[Any] | None
    ) -> R:
        return self.database.run(plans.write(command_id, decide, context, self._clock), connection)

    def _status(self, command_id: str) -> CommandStatus | None:
        return self.database.run(plans.status(command_id))

    def _events(self, command_id: str) -> Sequence[RecordedEvent]:
        return self.database.run(plans.events(command_id))

    def _overdue(self, now: datetime, limit: int, connection: Connection[Any] | None) -> Sequence[str]:
        return self.database.run(plans.overdue(now, limit), connection)

    def _deployment(self, deployment_id: str) -> Deployment | None:
        return self.database.run(self._find_deployment(deployment_id))

    def _find_deployment(self, deployment_id: str) -> Plan[Deployment | None]:
        if self._directory == "table":
            return deployment_table.find(deployment_id)  # over the call's own connection
        return constant(self._directory.get(deployment_id))

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
    Postgres). `timeout`: how long a call may wait for a server that is away, in seconds. `pool_size`: how many
    connections at most. `clock` tells the time that events occur at.
    """

    def __init__(
        self,
        dsn: str | None = None,
        *,
        deployments: DeploymentDirectory | AsyncDeploymentDirectory | InTable | None = None,
        migrate: bool | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        pool_size: int = DEFAULT_POOL_SIZE,
        clock: Clock = utc_now,
    ) -> None:
        super().__init__(clock)
        self._dsn = dsn
        self._directory = deployments or FixedDeployments()
        self._migrate = dsn is None if migrate is None else migrate
        self._timeout, self._pool_size = timeout, pool_size
        self._server: embedded.EmbeddedPostgres | None = None
        self._database: AsyncDatabase | None = None

    @classmethod
    def open(
        cls,
        dsn: str | None = None,
        *,
        deployments: DeploymentDirectory | AsyncDeploymentDirectory | InTable | None = None,
        migrate: bool | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        pool_size: int = DEFAULT_POOL_SIZE,
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
        return cls(dsn, deployments=deployments, migrate=migrate, timeout=timeout, pool_size=pool_size, clock=clock)

    async def connect(self) -> None:
        """Start the embedded Postgres if it is wanted, connect, and check schema and read model. See `open`."""
        try:
            if self._dsn is None:
                self._server = await asyncio.to_thread(embedded.start)
            dsn = self._server.dsn if self._server else self._dsn or ""
            self._database = AsyncDatabase(dsn, timeout=self._timeout, pool_size=self._pool_size)
            await self._database.open()
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
        """Close every connection, and leave the embedded Postgres."""
        database, self._database = self._database, None
        if database is not None:
            await database.close()
        server, self._server = self._server, None
        if server is not None:
            await asyncio.to_thread(server.close)

    async def __aenter__(self) -> Self:
        if self._database is None:
            await self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def database(self) -> AsyncDatabase:
        """The open database.

        Raises:
            Unavailable: the registry is not open.
        """
        if self._database is None:
            raise Unavailable(_CLOSED)
        return self._database

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
        self, call: NewCommand, context: EventContext, connection: AsyncConnection[Any] | None
    ) -> CommandStatus:
        find = await self._find_deployment(call.deployment_id)
        return await self.database.run(plans.create(call, find, context, self._clock), connection)

    async def _write(
        self, command_id: str, decide: Decide[R], context: EventContext, connection: AsyncConnection[Any] | None
    ) -> R:
        return await self.database.run(plans.write(command_id, decide, context, self._clock), connection)

    async def _status(self, command_id: str) -> CommandStatus | None:
        return await self.database.run(plans.status(command_id))

    async def _events(self, command_id: str) -> Sequence[RecordedEvent]:
        return await self.database.run(plans.events(command_id))

    async def _overdue(self, now: datetime, limit: int, connection: AsyncConnection[Any] | None) -> Sequence[str]:
        return await self.database.run(plans.overdue(now, limit), connection)

    async def _deployment(self, deployment_id: str) -> Deployment | None:
        return await self.database.run(await self._find_deployment(deployment_id))

    async def _find_deployment(self, deployment_id: str) -> Plan[Deployment | None]:
        if self._directory == "table":
            return deployment_table.find(deployment_id)  # over the call's own connection
        return constant(await look_up(self._directory, deployment_id))

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
