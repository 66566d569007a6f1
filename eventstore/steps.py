"""Operations as generators that do no I/O, and `run` and `arun`, the only two functions that execute SQL.

An operation (a `Plan`) yields a `Step` and is sent the rows that the step gave. The same plan so serves threads and
asyncio, and a test can step it by hand to force any race. What can go wrong is thrown into the plan at the step where
it went wrong:

* `Refused`: the server refused to write because of a constraint; nothing was written.
* `Lost`: the connection broke during a step that writes, so it may or may not be committed; the plan goes on over
  another connection. (A step that only reads is simply asked again.)
* `Withdrawn`: its sender did not want it any more; nothing was written.
* `Blocked`: it waited for another transaction for as long as it may; nothing was written.
* `Unavailable`: no connection could be had before the deadline, or the server refused the step for as long (it is
  read-only; deadlocks, serialization failures, again and again).
* `psycopg.Error`: whatever else the server objects to.

A step that the server undid as a whole through no fault of its own (a serialization failure, a deadlock) is sent again
after a random pause; one that met a read-only server, over another connection: the DSN may lead to a new primary.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
)
from dataclasses import dataclass
from typing import Any, Final, Generic, LiteralString, Protocol, TypeAlias, TypeVar

import psycopg
from psycopg import AsyncConnection, AsyncCursor, Connection, Cursor, errors
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row
from psycopg.sql import SQL, Composed

from eventstore.errors import EventStoreError, Unavailable
from eventstore.line import AsyncLine, Line, NeverSent, Row
from eventstore.metrics import Metrics

__all__ = [
    "AsyncConnections",
    "Blocked",
    "Connections",
    "Lost",
    "Plan",
    "Refused",
    "Row",
    "Sender",
    "Step",
    "Withdrawn",
    "arun",
    "constant",
    "run",
]

T = TypeVar("T")

Query: TypeAlias = LiteralString | bytes | SQL | Composed
AnyConnection: TypeAlias = Connection[Any] | AsyncConnection[Any]


class Sender(Protocol):
    """Is told what becomes of a step that writes."""

    def sending(self) -> bool:
        """It is about to be sent, perhaps once more; False: it is not wanted any more, and is not sent."""
        ...

    def failed(self) -> None:
        """It is certain that what was sent has not happened, and will not."""
        ...


@dataclass(frozen=True, slots=True)
class Step:
    """One statement, or (with `params` None) a script of several.

    `writes`: in a caller's transaction it runs under a savepoint, so that a refusal leaves the transaction usable; and
    when the connection is lost, the plan is told. `sender` is told what becomes of it.
    """

    sql: Query
    params: Sequence[object] | None = ()
    writes: bool = False
    sender: Sender | None = None


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


class Withdrawn(EventStoreError):
    """The step was not wanted any more when there was a connection to send it over; nothing was written."""


class Blocked(Unavailable):
    """Another transaction holds what the step needs, and did not let go in time; nothing was written."""


def constant(value: T) -> Plan[T]:
    """Return a value that needs no database, as a plan."""
    return value
    yield Step("")  # what makes this function a generator


_MOST_RETRIES: Final = 10
_FIRST_PAUSE: Final = 0.005
_LONGEST_PAUSE: Final = 1.0

_TOO_LITTLE: Final = 0.1
"""Nothing is written any more with less time than this, in seconds (or a tenth of what there was)."""

_UNDONE: Final = (errors.SerializationFailure, errors.DeadlockDetected)
_READ_ONLY: Final = (errors.ReadOnlySqlTransaction,)


class _Execution(Generic[T]):
    """A plan under way: the step it waits for, or its result."""

    def __init__(self, plan: Plan[T], timeout: float, metrics: Metrics, *, lasting: bool) -> None:
        self._plan = plan
        self._each = timeout if lasting else None
        self.deadline = time.monotonic() + timeout
        self._too_little = min(_TOO_LITTLE, timeout / 10)
        self.metrics = metrics
        self._retries = self._losses = 0
        self.step: Step | None = None
        self.result: T
        self._advance(lambda: next(plan))

    @property
    def time_left(self) -> float:
        """So many seconds are left, or fewer than none."""
        return self.deadline - time.monotonic()

    def send(self, rows: list[Row]) -> None:
        self._retries = self._losses = 0
        self.metrics.trouble = ""
        if self._each is not None:
            self.deadline = time.monotonic() + self._each
        try:
            self.step = self._plan.send(rows)
        except StopIteration as stop:
            self.step, self.result = None, stop.value

    def may_send(self, sender: Sender) -> bool:
        """Tell whether a step that writes may be sent now, or throw into the plan why not."""
        if self.time_left < self._too_little:  # it would be cut, and nobody know whether it had happened
            self.throw(Unavailable(self.metrics.trouble or "no time left to write anything"))
        elif not sender.sending():
            self.throw(Withdrawn())
        else:
            return True
        return False

    def not_lent(self, error: Unavailable) -> None:
        """Tell the plan that there was no connection in time, or what took up that time."""
        spent = self.metrics.trouble and self.time_left <= 0
        self.throw(Unavailable(self.metrics.trouble) if spent else error)

    def throw(self, error: Exception) -> None:
        self._advance(lambda: self._plan.throw(error))

    def _advance(self, resume: Callable[[], Step]) -> None:
        try:
            self.step = resume()
        except StopIteration as stop:
            self.step, self.result = None, stop.value

    def failed(self, error: psycopg.Error, *, lost: bool, in_transaction: bool) -> float:
        """Tell the plan that its step failed, if it can go on; if the connection is lost, over another one.

        Returns:
            For how many seconds to pause before the next step is taken.

        Raises:
            Unavailable: the connection is lost, and a transaction with it.
        """
        step = self.step
        if (
            step is not None
            and step.sender is not None
            and (in_transaction or not lost or isinstance(error, NeverSent))
        ):
            step.sender.failed()
        if isinstance(error, errors.UniqueViolation | errors.NotNullViolation):
            self.metrics.conflicts += 1
            self.throw(Refused(error.diag.constraint_name or error.diag.column_name or ""))
        elif isinstance(error, errors.LockNotAvailable):
            self.throw(Blocked(f"another transaction did not let go of what this write needs: {error}"))
        elif isinstance(error, _UNDONE) and not in_transaction:
            return self._again(error, _MOST_RETRIES)
        elif isinstance(error, _READ_ONLY):
            if in_transaction:
                self.throw(Unavailable(_read_only(error)))
            return self._again(error)
        elif lost and in_transaction:
            raise Unavailable(f"connection lost, and the transaction with it: {error}") from error
        elif not lost:
            self.throw(error)
        elif step is not None and step.writes and not isinstance(error, NeverSent):
            self.throw(Lost(str(error)))
        return 0.0

    def _again(self, error: psycopg.Error, most: int | None = None) -> float:
        """Take the step again after a pause that doubles, and is never the same for two."""
        problem = _read_only(error) if isinstance(error, _READ_ONLY) else _undone(error, self._retries + 1)
        self.metrics.trouble = problem
        pause = _pause(self._retries)
        if pause > self.time_left or self._retries == most:
            self.throw(Unavailable(problem))
            return 0.0
        self._retries += 1
        self.metrics.retries += 1
        return pause

    def lost(self, reconnect: "_Reconnect") -> float:
        """Go on over another connection, or tell the plan that there is no time left for one.

        Returns:
            For how many seconds to pause first: the first time, for none.
        """
        if isinstance(reconnect.__cause__, _READ_ONLY):
            return 0.0  # we left that connection ourselves, after a pause
        self.metrics.reconnections += 1
        pause = _pause(self._losses) if self._losses else 0.0
        self._losses += not isinstance(reconnect.__cause__, NeverSent)
        if pause >= self.time_left:
            self.throw(Unavailable(f"connection lost, and no time left for another one: {reconnect.__cause__}"))
            return 0.0
        return pause


def _pause(times: int) -> float:
    """Say how long to pause: twice as long each time, and never the same for two."""
    jitter: float = random.uniform(0.5, 1.5)  # noqa: S311 - no secret
    return min(_FIRST_PAUSE * 2.0**times, _LONGEST_PAUSE) * jitter


def _read_only(error: psycopg.Error) -> str:
    return (
        f"the server takes no writes: {error} (a standby, or default_transaction_read_only; with several hosts in the "
        "DSN, target_session_attrs=read-write finds the primary)"
    )


def _undone(error: psycopg.Error, times: int) -> str:
    return f"the server undid the statement {times} times in a row; nothing was written: {error}"


def _is_lost(connection: AnyConnection, error: psycopg.Error) -> bool:
    if isinstance(error, psycopg.OperationalError) and error.sqlstate is None:  # psycopg's own words, not the server's
        return True  # a reset is found while waiting, and the connection does not know yet that it is closed
    return connection.closed or isinstance(error, errors.AdminShutdown | errors.CrashShutdown | errors.CannotConnectNow)


def _is_useless(connection: AnyConnection, error: psycopg.Error) -> bool:
    """Tell whether nothing more can be done over a connection, though it stands: it leads to a read-only server."""
    return isinstance(connection, Line | AsyncLine) and isinstance(error, _READ_ONLY)


def _in_transaction(connection: AnyConnection) -> bool:
    return not connection.autocommit or connection.pgconn.transaction_status == TransactionStatus.INTRANS


class _Reconnect(Exception):
    """The plan goes on over another connection."""


_SAVEPOINT = "SAVEPOINT command_registry_step"
_RELEASE = "RELEASE SAVEPOINT command_registry_step"
_ROLLBACK = "ROLLBACK TO SAVEPOINT command_registry_step"

Connections: TypeAlias = Callable[[float], AbstractContextManager[Connection[Any]]]
"""Lends a connection, waiting at most so many seconds for it."""

AsyncConnections: TypeAlias = Callable[[float], AbstractAsyncContextManager[AsyncConnection[Any]]]


def run(
    connections: Connections, plan: Plan[T], timeout: float, metrics: Metrics | None = None, *, lasting: bool = False
) -> T:
    """Run a plan, over another connection when one is lost, for at most about `timeout` seconds.

    `lasting`: it may take longer, and has that long for each step, should the server be away.

    Raises:
        Unavailable: no connection could be had in time, or one was lost within a transaction.
        OutcomeUnknown: it was lost during a write, and nobody could be asked since.
        psycopg.Error: whatever else the server objects to.
    """
    execution = _Execution(plan, timeout, metrics or Metrics(), lasting=lasting)
    while execution.step is not None:
        try:
            with connections(execution.time_left) as connection:
                _drive(connection, execution)
        except _Reconnect as lost:
            time.sleep(execution.lost(lost))
        except Unavailable as error:
            execution.not_lent(error)
    return execution.result


def _drive(connection: Connection[Any], execution: _Execution[T]) -> None:
    while (step := execution.step) is not None:
        in_transaction = _in_transaction(connection)
        if step.sender is not None and not execution.may_send(step.sender):
            continue
        sent = time.perf_counter()
        try:
            if step.writes and in_transaction:
                with _savepoint(connection):
                    rows = _take(connection, step)
            else:
                rows = _take(connection, step)
        except psycopg.Error as error:
            lost = _is_lost(connection, error)
            leave = lost or (_is_useless(connection, error) and not in_transaction)
            if leave:
                connection.close()
            pause = execution.failed(error, lost=lost, in_transaction=in_transaction)
            if pause:
                time.sleep(pause)
            if leave:
                raise _Reconnect from error
        else:
            execution.metrics.statement(time.perf_counter() - sent)
            execution.send(rows)


def _take(connection: Connection[Any], step: Step) -> list[Row]:
    if isinstance(connection, Line) and step.params is not None and isinstance(step.sql, str | bytes):
        return connection.ask(step.sql, step.params)
    cursor = Cursor(connection, row_factory=tuple_row)  # whatever the caller's connection makes
    prepare = False if isinstance(connection, Line) else None  # else psycopg deallocates what the line has prepared
    cursor.execute(step.sql, step.params, prepare=prepare, binary=step.params is not None)
    return cursor.fetchall() if cursor.description else []


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


async def arun(
    connections: AsyncConnections,
    plan: Plan[T],
    timeout: float,
    metrics: Metrics | None = None,
    *,
    lasting: bool = False,
) -> T:
    """Run a plan as `run` does, over asynchronous connections."""
    execution = _Execution(plan, timeout, metrics or Metrics(), lasting=lasting)
    while execution.step is not None:
        try:
            async with connections(execution.time_left) as connection:
                await _adrive(connection, execution)
        except _Reconnect as lost:
            if pause := execution.lost(lost):
                await asyncio.sleep(pause)
        except Unavailable as error:
            execution.not_lent(error)
    return execution.result


async def _adrive(connection: AsyncConnection[Any], execution: _Execution[T]) -> None:
    while (step := execution.step) is not None:
        in_transaction = _in_transaction(connection)
        if step.sender is not None and not execution.may_send(step.sender):
            continue
        sent = time.perf_counter()
        try:
            if step.writes and in_transaction:
                async with _asavepoint(connection):
                    rows = await _atake(connection, step)
            else:
                rows = await _atake(connection, step)
        except psycopg.Error as error:
            lost = _is_lost(connection, error)
            leave = lost or (_is_useless(connection, error) and not in_transaction)
            if leave:
                await connection.close()
            pause = execution.failed(error, lost=lost, in_transaction=in_transaction)
            if pause:
                await asyncio.sleep(pause)
            if leave:
                raise _Reconnect from error
        else:
            execution.metrics.statement(time.perf_counter() - sent)
            execution.send(rows)


async def _atake(connection: AsyncConnection[Any], step: Step) -> list[Row]:
    if isinstance(connection, AsyncLine) and step.params is not None and isinstance(step.sql, str | bytes):
        return await connection.ask(step.sql, step.params)
    cursor = AsyncCursor(connection, row_factory=tuple_row)
    prepare = False if isinstance(connection, AsyncLine) else None
    await cursor.execute(step.sql, step.params, prepare=prepare, binary=step.params is not None)
    return await cursor.fetchall() if cursor.description else []


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
