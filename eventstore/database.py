"""Connections to one Postgres, and running plans over them."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeAlias, TypeVar

import psycopg
from psycopg import AsyncConnection, Connection
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import PipelineStatus, TransactionStatus
from psycopg_pool import AsyncConnectionPool, ConnectionPool, PoolClosed, PoolTimeout

from eventstore.errors import InvalidDsn, OutcomeUnknown, Unavailable
from eventstore.line import AsyncLine, Line, Row
from eventstore.metrics import Metrics
from eventstore.steps import Plan, arun, run
from eventstore.watch import AsyncWatch, Watch

__all__ = ["DEFAULT_POOL_SIZE", "DEFAULT_TIMEOUT", "AsyncDatabase", "Database", "Pooler", "not_connected", "parse_dsn"]

T = TypeVar("T")

Pooler: TypeAlias = Literal["transaction"]
"""What stands between us and the server: a pooler such as PgBouncer, in transaction mode."""

DEFAULT_TIMEOUT: Final = 30.0
"""How long a call may take to find a server that is away, in seconds."""

DEFAULT_POOL_SIZE: Final = 10

# So that a server which vanished without a word is noticed; what the DSN says goes before. In seconds, but for
# tcp_user_timeout, which is in milliseconds.
_CONNECTION_DEFAULTS: Final = {
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
    "application_name": "command-registry",
}


# For how long the pool tries to connect by itself, in seconds. Its pauses double, and would come to minutes while the
# server is back already; so it gives up early, and whoever waits for a connection lets it begin anew.
_POOL_PATIENCE: Final = 2.0


# What the plans rely on, whatever the database's or the user's own defaults are.
# The statements look rows up by their keys. So a plan that Postgres makes once serves all (else it plans every small
# batch again, which takes longer than to run it); and it must not be the plan for the few rows that there once were.
_SESSION: Final = (
    "-c command_registry.session=on "
    r"-c default_transaction_isolation=read\ committed "
    "-c search_path=pg_catalog,pg_temp -c array_nulls=on "
    "-c plan_cache_mode=force_generic_plan -c enable_seqscan=off -c jit=off"
)

_SESSION_IN_FORCE: Final = "SELECT current_setting('command_registry.session', true) = 'on'"

# What the server says to who finds all its connections taken. (libpq does not tell the SQLSTATE, 53300.)
_NO_SLOT: Final = ("too many clients already", "remaining connection slots are reserved", "too many connections for")

# A write that waits for another transaction gives up, and says so, before its deadline comes.
_LOCK_SHARE: Final = 0.8


def parse_dsn(dsn: str) -> dict[str, Any]:
    """Read a connection string.

    Raises:
        InvalidDsn: it is none; the error does not repeat it.
    """
    try:
        settings = dict(conninfo_to_dict(dsn))
        for host in str(settings.get("host", "")).split(","):
            if not host.startswith(("/", "@")):
                host.encode("idna")  # as it will be looked up
    except (psycopg.ProgrammingError, UnicodeError):
        raise InvalidDsn from None
    if "\0" in dsn:  # where libpq stops reading
        raise InvalidDsn
    return settings


def _connection_settings(dsn: str, timeout: float, pooler: Pooler | None) -> dict[str, Any]:
    given = parse_dsn(dsn)
    given["client_encoding"] = "UTF8"  # that of the parameters, whatever the database's or the user's is
    if pooler is not None:  # which knows no options, and keeps no session's settings
        return {"autocommit": True, "prepare_threshold": None, **_CONNECTION_DEFAULTS, **given}
    ours = f"{_SESSION} -c lock_timeout={max(1, int(timeout * _LOCK_SHARE * 1000))}"
    options = " ".join(filter(None, [ours, given.pop("options", None)]))
    return {"autocommit": True, **_CONNECTION_DEFAULTS, **given, "options": options}


def not_connected(error: psycopg.OperationalError, pooler: Pooler | None) -> Unavailable:
    """Make the error that says why no connection could be made, and how to mend it."""
    return Unavailable(f"cannot connect to Postgres: {_refusal(error, pooler)}")


def _refusal(error: psycopg.OperationalError, pooler: Pooler | None) -> str:
    """Say why an attempt to connect failed, and how to mend it."""
    remedy = ""
    if "unsupported startup parameter" in str(error):  # so PgBouncer refuses a session's settings
        say = '; through a pooler such as PgBouncer, say pooler="transaction" (--pooler transaction)'
        remedy = say if pooler is None else "; leave options out of the DSN, and PGOPTIONS unset"
    elif any(words in str(error) for words in _NO_SLOT):
        remedy = "; raise max_connections, or have fewer connections open (pool_size; a pooler such as PgBouncer)"
    return f"{str(error).strip()}{remedy}"


@contextmanager
def _noted(metrics: Metrics, pooler: Pooler | None) -> Iterator[None]:
    """Note what becomes of an attempt to connect, which the pool makes out of sight."""
    try:
        yield
    except psycopg.OperationalError as error:
        metrics.refusal = _refusal(error, pooler)
        raise
    metrics.refusal = ""


def _line(metrics: Metrics, pooler: Pooler | None) -> type[Line]:
    """Make the class of a pool's connections."""

    class NotedLine(Line):
        @classmethod
        def connect(cls, *args: Any, **kwargs: Any) -> Self:  # noqa: ANN401 - psycopg's own
            with _noted(metrics, pooler):
                return super().connect(*args, **kwargs)

    return NotedLine


def _async_line(metrics: Metrics, pooler: Pooler | None) -> type[AsyncLine]:
    """Make the class of a pool's connections, for asyncio."""

    class NotedLine(AsyncLine):
        @classmethod
        async def connect(cls, *args: Any, **kwargs: Any) -> Self:  # noqa: ANN401 - psycopg's own
            with _noted(metrics, pooler):
                return await super().connect(*args, **kwargs)

    return NotedLine


def _check_session(row: Row | None, pooler: Pooler | None) -> None:
    if pooler is None and row != (True,):
        raise Unavailable(
            "something between here and Postgres drops the settings of a session; through a pooler such as PgBouncer, "
            'say pooler="transaction" (--pooler transaction)'
        )


def _not_lent(
    error: Exception, timeout: float, pool: ConnectionPool[Any] | AsyncConnectionPool[Any], refusal: str
) -> Unavailable:
    if isinstance(error, PoolClosed):
        return Unavailable("this is closed: open it first")
    within = f"within {round(timeout, 1):g} s" if timeout > 0 else "in time"
    if refusal:
        return Unavailable(f"no connection to Postgres {within}: {refusal}")
    stats = pool.get_stats()
    if stats.get("pool_size", 0) >= pool.max_size and not stats.get("pool_available", 0):
        return Unavailable(f"all {pool.max_size} connections were busy {within}: raise pool_size, or call less")
    return Unavailable(f"no connection to Postgres {within}: {error}")


class Database:
    """A pool of connections to one Postgres, for threads.

    Opening it connects once, so that a wrong DSN is told at once and in the server's words. `timeout`: how long a plan
    may take, in seconds, unless it is told another time. `pooler`: what the connections go through.

    Raises:
        Unavailable: the server cannot be reached.
    """

    def __init__(
        self,
        dsn: str,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        pool_size: int = DEFAULT_POOL_SIZE,
        pooler: Pooler | None = None,
    ) -> None:
        self.dsn, self.pooler = dsn, pooler
        self.timeout = timeout
        self.pool_size = pool_size
        self.metrics = Metrics()
        self._watch = Watch()
        self._pool = ConnectionPool(
            connection_class=_line(self.metrics, pooler),
            kwargs=_connection_settings(dsn, timeout, pooler),
            min_size=1,
            max_size=pool_size,
            open=False,
            name="command-registry",
            reconnect_timeout=_POOL_PATIENCE,
        )

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def open(self) -> None:
        """Connect."""
        try:
            with Connection.connect(**self._pool.kwargs) as connection:  # type: ignore[arg-type]
                _check_session(connection.execute(_SESSION_IN_FORCE).fetchone(), self.pooler)
        except psycopg.OperationalError as error:
            raise not_connected(error, self.pooler) from error
        self._pool.open()
        self._watch.open()

    @property
    def closed(self) -> bool:
        """Whether it was closed, or not opened yet."""
        return self._pool.closed

    def close(self) -> None:
        """Close every connection."""
        self._pool.close()
        self._watch.close()

    def run(
        self,
        plan: Plan[T],
        connection: Connection[Any] | None = None,
        *,
        timeout: float | None = None,
        lasting: bool = False,
    ) -> T:
        """Run a plan over a connection of the pool, or over the caller's, in the transaction it has or begins.

        Over the pool, a plan that is not `lasting` ends by its deadline: a server silent until then counts as lost.
        """
        time_left = self.timeout if timeout is None else timeout
        try:
            return self._run(plan, connection, time_left, lasting=lasting)
        except OutcomeUnknown:
            self.metrics.unknown += 1
            raise

    def _run(self, plan: Plan[T], connection: Connection[Any] | None, time_left: float, *, lasting: bool) -> T:
        if connection is None:
            lend = self._lend if lasting else self._lend_until
            return run(lend, plan, time_left, self.metrics, lasting=lasting)
        return run(lambda _: nullcontext(_checked(connection, Connection)), plan, time_left, self.metrics)

    def _lend(self, timeout: float) -> "_Lent":
        return _Lent(self, timeout)

    def _lend_until(self, timeout: float) -> "_Lent":
        return _Lent(self, timeout, self._watch)

    def take(self, timeout: float) -> Line:
        """Take a connection of the pool, waiting for it at most `timeout` seconds; `put_back` gives it back.

        Raises:
            Unavailable: there is none to be had in time.
        """
        try:
            return self._get(time.monotonic() + timeout)
        except (PoolTimeout, PoolClosed) as error:
            raise _not_lent(error, timeout, self._pool, self.metrics.refusal) from error

    def put_back(self, connection: Line) -> None:
        """Give a connection back."""
        self._pool.putconn(connection)

    def _get(self, deadline: float) -> Line:
        while (left := deadline - time.monotonic()) > _POOL_PATIENCE:
            with suppress(PoolTimeout):
                return self._pool.getconn(_POOL_PATIENCE)
        return self._pool.getconn(max(left, 0.0))


class AsyncDatabase:
    """A pool of connections to one Postgres, for asyncio.

    Opening it connects once, so that a wrong DSN is told at once and in the server's words. `timeout`: how long a plan
    may take, in seconds, unless it is told another time. `pooler`: what the connections go through.

    Raises:
        Unavailable: the server cannot be reached.
    """

    def __init__(
        self,
        dsn: str,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        pool_size: int = DEFAULT_POOL_SIZE,
        pooler: Pooler | None = None,
    ) -> None:
        self.dsn, self.pooler = dsn, pooler
        self.timeout = timeout
        self.pool_size = pool_size
        self.metrics = Metrics()
        self._watch = AsyncWatch()
        self._pool = AsyncConnectionPool(
            connection_class=_async_line(self.metrics, pooler),
            kwargs=_connection_settings(dsn, timeout, pooler),
            min_size=1,
            max_size=pool_size,
            open=False,
            name="command-registry",
            reconnect_timeout=_POOL_PATIENCE,
        )

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def open(self) -> None:
        """Connect."""
        try:
            async with await AsyncConnection.connect(**self._pool.kwargs) as connection:  # type: ignore[arg-type]
                cursor = await connection.execute(_SESSION_IN_FORCE)
                _check_session(await cursor.fetchone(), self.pooler)
        except psycopg.OperationalError as error:
            raise not_connected(error, self.pooler) from error
        await self._pool.open()

    @property
    def closed(self) -> bool:
        """Whether it was closed, or not opened yet."""
        return self._pool.closed

    async def close(self) -> None:
        """Close every connection."""
        await self._pool.close()
        self._watch.close()

    async def run(
        self,
        plan: Plan[T],
        connection: AsyncConnection[Any] | None = None,
        *,
        timeout: float | None = None,
        lasting: bool = False,
    ) -> T:
        """Run a plan over a connection of the pool, or over the caller's, in the transaction it has or begins.

        Over the pool, a plan that is not `lasting` ends by its deadline: a server silent until then counts as lost.
        """
        time_left = self.timeout if timeout is None else timeout
        try:
            return await self._run(plan, connection, time_left, lasting=lasting)
        except OutcomeUnknown:
            self.metrics.unknown += 1
            raise

    async def _run(
        self, plan: Plan[T], connection: AsyncConnection[Any] | None, time_left: float, *, lasting: bool
    ) -> T:
        if connection is None:
            lend = self._lend if lasting else self._lend_until
            return await arun(lend, plan, time_left, self.metrics, lasting=lasting)
        return await arun(lambda _: nullcontext(_checked(connection, AsyncConnection)), plan, time_left, self.metrics)

    def _lend(self, timeout: float) -> "_AsyncLent":
        return _AsyncLent(self, timeout)

    def _lend_until(self, timeout: float) -> "_AsyncLent":
        return _AsyncLent(self, timeout, self._watch)

    async def take(self, timeout: float) -> AsyncLine:
        """Take a connection of the pool, waiting for it at most `timeout` seconds; `put_back` gives it back.

        Raises:
            Unavailable: there is none to be had in time.
        """
        try:
            return await self._get(time.monotonic() + timeout)
        except (PoolTimeout, PoolClosed) as error:
            raise _not_lent(error, timeout, self._pool, self.metrics.refusal) from error

    async def put_back(self, connection: AsyncLine) -> None:
        """Give a connection back."""
        await self._pool.putconn(connection)

    async def _get(self, deadline: float) -> AsyncLine:
        while (left := deadline - time.monotonic()) > _POOL_PATIENCE:
            with suppress(PoolTimeout):
                return await self._pool.getconn(_POOL_PATIENCE)
        return await self._pool.getconn(max(left, 0.0))


# (Classes rather than generators with a decorator: these stand around every statement, and cost a third of those.)


class _Lent:
    """A connection of a pool while it is lent; under `watch`, cut when its time is up."""

    def __init__(self, database: Database, timeout: float, watch: Watch | None = None) -> None:
        self._database, self._timeout, self._watch = database, timeout, watch
        self._connection: Line

    def __enter__(self) -> Line:
        deadline = time.monotonic() + self._timeout
        self._connection = self._database.take(self._timeout)
        if self._watch is not None:
            self._watch.begin(self._connection, deadline)
        return self._connection

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._watch is not None:
            self._watch.end(self._connection)
        self._database.put_back(self._connection)


class _AsyncLent:
    """`_Lent` for asyncio."""

    def __init__(self, database: AsyncDatabase, timeout: float, watch: AsyncWatch | None = None) -> None:
        self._database, self._timeout, self._watch = database, timeout, watch
        self._connection: AsyncLine

    async def __aenter__(self) -> AsyncLine:
        deadline = time.monotonic() + self._timeout
        self._connection = await self._database.take(self._timeout)
        if self._watch is not None:
            self._watch.begin(self._connection, deadline)
        return self._connection

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if self._watch is not None:
            self._watch.end(self._connection)
        await self._database.put_back(self._connection)


C = TypeVar("C", Connection[Any], AsyncConnection[Any])


def _checked(connection: C, kind: type[C]) -> C:
    """Check that a caller's connection is one that plans can run over."""
    if not isinstance(connection, kind):
        raise TypeError(f"connection= must be a psycopg.{kind.__name__}, not {type(connection).__name__}")
    if connection.closed:
        raise Unavailable("the connection given as connection= is closed, and its transaction gone")
    if connection.info.transaction_status == TransactionStatus.INERROR:
        raise Unavailable("the transaction of connection= has failed already: roll it back first")
    if connection.pgconn.pipeline_status != PipelineStatus.OFF:
        raise ValueError("connection= must not be in pipeline mode: a write here depends on the answer before it")
    return connection
