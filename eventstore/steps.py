"""Operations as generators that do no I/O, and `run` and `arun`, the only two functions that execute SQL.

An operation (a `Plan`) yields a `Step` and is sent the rows that the step gave. The same plan so serves threads and
asyncio, and a test can step it by hand to force any race. What can go wrong is thrown into the plan at the step where
it went wrong:

* `Refused`: the server refused to write because of a constraint; nothing was written.
* `Lost`: the connection broke during a step that writes, so it may or may not be committed; the plan goes on over
  another connection. (A step that only reads is simply asked again.)
* `Unavailable`: no connection could be had before the deadline.
"""

import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
    nullcontext,
)
from dataclasses import dataclass
from typing import Any, Generic, LiteralString, TypeAlias, TypeVar

import psycopg
from psycopg import AsyncConnection, AsyncCursor, Connection, Cursor, errors
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row
from psycopg.sql import SQL, Composed

from eventstore.errors import EventStoreError, Unavailable

__all__ = [
    "AsyncConnections",
    "Connections",
    "Lost",
    "Plan",
    "Refused",
    "Row",
    "Step",
    "arun",
    "constant",
    "run",
]

T = TypeVar("T")

Query: TypeAlias = LiteralString | bytes | SQL | Composed
Row: TypeAlias = tuple[Any, ...]
AnyConnection: TypeAlias = Connection[Any] | AsyncConnection[Any]


@dataclass(frozen=True, slots=True)
class Step:
    """One statement, or (with `params` None) a script of several.

    `writes`: in a caller's transaction it runs under a savepoint, so that a refusal leaves the transaction usable; and
    when the connection is lost, the plan is told.
    """

    sql: Query
    params: Sequence[object] | None = ()
    writes: bool = False


Plan: TypeAlias = Generator[Step, list[Row], T]
"""An operation: yields steps, is sent their rows, returns its result."""


class Refused(EventStoreError):
    """A constraint of the database refused the step; nothing of it was written."""

    def __init__(self, constraint: str) -> None:
        """Carry the constraint's name, or for a NOT NULL the column's."""
        self.constraint = constraint
        super().__init__(f"refused by {constraint!r}")


class Lost(EventStoreError):
    """The connection was lost during a step that writes: whether it was committed is not known."""


def constant(value: T) -> Plan[T]:
    """Return a value that needs no database, as a plan."""
    return value
    yield Step("")  # what makes this function a generator


class _Execution(Generic[T]):
    """A plan under way: the step it waits for, or its result."""

    def __init__(self, plan: Plan[T]) -> None:
        self._plan = plan
        self.step: Step | None = None
        self.result: T
        self._advance(lambda: next(plan))

    def send(self, rows: list[Row]) -> None:
        self._advance(lambda: self._plan.send(rows))

    def throw(self, error: Exception) -> None:
        self._advance(lambda: self._plan.throw(error))

    def _advance(self, resume: Callable[[], Step]) -> None:
        try:
            self.step = resume()
        except StopIteration as stop:
            self.step, self.result = None, stop.value

    def failed(self, error: psycopg.Error, *, lost: bool, in_transaction: bool) -> None:
        """Tell the plan that its step failed, if it can go on; if the connection is lost, over another one.

        Raises:
            Unavailable: the connection is lost, and a transaction with it.
            psycopg.Error: anything that is no plan's business.
        """
        step = self.step
        if isinstance(error, errors.UniqueViolation | errors.NotNullViolation):
            self.throw(Refused(error.diag.constraint_name or error.diag.column_name or ""))
        elif isinstance(error, errors.LockNotAvailable):
            self.throw(Unavailable(f"another transaction did not let go of what this write needs: {error}"))
        elif lost and in_transaction:
            raise Unavailable(f"connection lost, and the transaction with it: {error}") from error
        elif not lost:
            raise error
        elif step is not None and step.writes:
            self.throw(Lost(str(error)))

    def lost(self, reconnect: "_Reconnect", deadline: float) -> None:
        """Go on over another connection, or tell the plan that there is no time left for one."""
        if time.monotonic() >= deadline:
            self.throw(Unavailable(f"connection lost, and no time left for another one: {reconnect.__cause__}"))


def _is_lost(connection: AnyConnection, error: psycopg.Error) -> bool:
    return connection.closed or isinstance(error, errors.AdminShutdown | errors.CrashShutdown | errors.CannotConnectNow)


def _in_transaction(connection: AnyConnection) -> bool:
    return not connection.autocommit or connection.info.transaction_status == TransactionStatus.INTRANS


class _Reconnect(Exception):
    """The plan goes on over another connection."""


_SAVEPOINT = "SAVEPOINT command_registry_step"
_RELEASE = "RELEASE SAVEPOINT command_registry_step"
_ROLLBACK = "ROLLBACK TO SAVEPOINT command_registry_step"

Connections: TypeAlias = Callable[[float], AbstractContextManager[Connection[Any]]]
"""Lends a connection, waiting at most so many seconds for it."""

AsyncConnections: TypeAlias = Callable[[float], AbstractAsyncContextManager[AsyncConnection[Any]]]


def run(connections: Connections, plan: Plan[T], timeout: float) -> T:
    """Run a plan, over another connection when one is lost, for at most about `timeout` seconds.

    Raises:
        Unavailable: no connection could be had in time, or one was lost within a transaction.
        OutcomeUnknown: it was lost during a write, and nobody could be asked since.
        psycopg.Error: whatever else the server objects to.
    """
    execution = _Execution(plan)
    deadline = time.monotonic() + timeout
    while execution.step is not None:
        try:
            with connections(deadline - time.monotonic()) as connection:
                _drive(connection, execution)
        except _Reconnect as lost:
            execution.lost(lost, deadline)
        except Unavailable as error:
            execution.throw(error)
    return execution.result


def _drive(connection: Connection[Any], execution: _Execution[T]) -> None:
    while (step := execution.step) is not None:
        in_transaction = _in_transaction(connection)
        try:
            with _savepoint(connection) if step.writes and in_transaction else nullcontext():
                cursor = Cursor(connection, row_factory=tuple_row)  # whatever the caller's connection makes
                cursor.execute(step.sql, step.params, binary=step.params is not None)
                rows = cursor.fetchall() if cursor.description else []
        except psycopg.Error as error:
            lost = _is_lost(connection, error)
            if lost:
                connection.close()
            execution.failed(error, lost=lost, in_transaction=in_transaction)
            if lost:
                raise _Reconnect from error
        else:
            execution.send(rows)


@contextmanager
def _savepoint(connection: Connection[Any]) -> Iterator[None]:
    connection.execute(_SAVEPOINT)
    try:
        yield
    except psycopg.Error as error:
        if not _is_lost(connection, error):
            connection.execute(_ROLLBACK)
            connection.execute(_RELEASE)
        raise
    connection.execute(_RELEASE)


async def arun(connections: AsyncConnections, plan: Plan[T], timeout: float) -> T:  # noqa: ASYNC109 - as `run` has it
    """Run a plan as `run` does, over asynchronous connections."""
    execution = _Execution(plan)
    deadline = time.monotonic() + timeout
    while execution.step is not None:
        try:
            async with connections(deadline - time.monotonic()) as connection:
                await _adrive(connection, execution)
        except _Reconnect as lost:
            execution.lost(lost, deadline)
        except Unavailable as error:
            execution.throw(error)
    return execution.result


async def _adrive(connection: AsyncConnection[Any], execution: _Execution[T]) -> None:
    while (step := execution.step) is not None:
        in_transaction = _in_transaction(connection)
        try:
            async with _asavepoint(connection) if step.writes and in_transaction else nullcontext():
                cursor = AsyncCursor(connection, row_factory=tuple_row)
                await cursor.execute(step.sql, step.params, binary=step.params is not None)
                rows = await cursor.fetchall() if cursor.description else []
        except psycopg.Error as error:
            lost = _is_lost(connection, error)
            if lost:
                await connection.close()
            execution.failed(error, lost=lost, in_transaction=in_transaction)
            if lost:
                raise _Reconnect from error
        else:
            execution.send(rows)


@asynccontextmanager
async def _asavepoint(connection: AsyncConnection[Any]) -> AsyncIterator[None]:
    await connection.execute(_SAVEPOINT)
    try:
        yield
    except psycopg.Error as error:
        if not _is_lost(connection, error):
            await connection.execute(_ROLLBACK)
            await connection.execute(_RELEASE)
        raise
    await connection.execute(_RELEASE)
