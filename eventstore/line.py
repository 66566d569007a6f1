"""Our own connections, with the shortest way to a statement that is sent over and over.

psycopg's cursors adapt each parameter and each array element in Python, and set up a cursor for each statement. Most of
a registry's statements are the same few, so a `Line` keeps them prepared (from psycopg's own `prepare_threshold` on;
when that is None, never), sends parameters as text (`eventstore.parameters`), and reads answers in binary, by psycopg's
own loaders.
"""

import asyncio
import re
import select
from collections.abc import Generator, Sequence
from functools import cached_property, lru_cache
from itertools import count
from typing import Any, Final, TypeAlias

from psycopg import AsyncConnection, Connection, pq
from psycopg.adapt import Transformer
from psycopg.errors import OperationalError, error_from_result
from psycopg.generators import execute
from psycopg.pq.abc import PGresult
from psycopg.waiting import Ready, Wait

from eventstore.parameters import as_parameter

__all__ = ["AsyncLine", "Line", "NeverSent", "Row", "Statement"]

Row: TypeAlias = tuple[Any, ...]
Statement: TypeAlias = str | bytes

_PLACEHOLDER: Final = re.compile(rb"%[s%]")
_ANSWERED: Final = (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK)


@lru_cache(maxsize=1_000)
def _numbered(statement: Statement) -> bytes:
    """Write a statement's placeholders, %s, as the protocol has them: $1, $2, ... (and %% as %)."""
    numbers = count(1)
    encoded = statement.encode() if isinstance(statement, str) else statement
    return _PLACEHOLDER.sub(lambda found: b"%" if found[0] == b"%%" else b"$%d" % next(numbers), encoded)


class NeverSent(OperationalError):
    """The connection was found broken before the statement was sent: it is certain not to have happened."""


class _Statements:
    """The statements of one connection: how often each was sent, and the names of those that are prepared."""

    def __init__(self, connection: "Line | AsyncLine") -> None:
        self._connection = connection
        self._pgconn = connection.pgconn
        self._loaders = Transformer(connection)
        self._sent: dict[Statement, int] = {}
        self._news = select.poll()
        self._news.register(self._pgconn.socket, select.POLLIN)
        self._names: dict[Statement, bytes] = {}

    def ask(self, statement: Statement, params: Sequence[object]) -> Generator[Any, Any, list[Row]]:
        """Send a statement and read its rows, for psycopg's `wait`.

        Raises:
            psycopg.Error: the server objects, or is lost.
        """
        values = [as_parameter(param) for param in params]
        while self._news.poll(0):  # the server speaks unasked: to say good-bye, most likely
            self._listen()
        name = self._names.get(statement)
        if name is None:
            name = yield from self._prepared(statement)
        if name is None:
            self._pgconn.send_query_params(_numbered(statement), values, result_format=pq.Format.BINARY)
        else:
            self._pgconn.send_query_prepared(name, values, result_format=pq.Format.BINARY)
        return self._rows((yield from execute(self._pgconn)))

    def _listen(self) -> None:
        try:
            self._pgconn.consume_input()
        except OperationalError as error:
            raise NeverSent(str(error)) from error
        if self._pgconn.status != pq.ConnStatus.OK:
            raise NeverSent("the server has closed the connection")

    def _prepared(self, statement: Statement) -> Generator[Any, Any, bytes | None]:
        threshold = self._connection.prepare_threshold
        sent = self._sent[statement] = self._sent.get(statement, 0) + 1
        if threshold is None or sent <= threshold:
            return None
        name = b"command_registry_%d" % len(self._names)
        self._pgconn.send_prepare(name, _numbered(statement))
        self._checked((yield from execute(self._pgconn)))
        self._names[statement] = name
        return name

    def _rows(self, results: Sequence[PGresult]) -> list[Row]:
        result = self._checked(results)
        if result.status != pq.ExecStatus.TUPLES_OK:
            return []
        self._loaders.set_pgresult(result)
        return self._loaders.load_rows(0, result.ntuples, tuple)

    def _checked(self, results: Sequence[PGresult]) -> PGresult:
        result = results[-1]
        if result.status not in _ANSWERED:
            raise error_from_result(result)
        return result


class Line(Connection[Row]):
    """A connection that is ours alone, in autocommit."""

    @cached_property
    def _statements(self) -> _Statements:
        return _Statements(self)

    def ask(self, statement: Statement, params: Sequence[object]) -> list[Row]:
        """Send one statement and read its rows.

        Raises:
            psycopg.Error: the server objects, or is lost.
        """
        return self.wait(self._statements.ask(statement, params))


class AsyncLine(AsyncConnection[Row]):
    """A connection that is ours alone, in autocommit, for asyncio."""

    @cached_property
    def _statements(self) -> _Statements:
        return _Statements(self)

    async def ask(self, statement: Statement, params: Sequence[object]) -> list[Row]:
        """Send one statement and read its rows.

        Raises:
            psycopg.Error: the server objects, or is lost.
        """
        return await self._wait(self._statements.ask(statement, params))

    async def _wait(self, exchange: Generator[Any, Any, list[Row]]) -> list[Row]:
        """Wait for the server, without the timers that psycopg's own `wait` sets.

        Who is cancelled here leaves the connection broken: what it was sent is not recalled.
        """
        loop, socket = asyncio.get_running_loop(), self.pgconn.socket
        try:
            wanted = next(exchange)
            while True:
                ready = loop.create_future()
                if wanted & Wait.R:
                    loop.add_reader(socket, _tell, ready, Ready.R)
                if wanted & Wait.W:
                    loop.add_writer(socket, _tell, ready, Ready.W)
                try:
                    got = await ready
                finally:
                    loop.remove_reader(socket)
                    if wanted & Wait.W:
                        loop.remove_writer(socket)
                wanted = exchange.send(got)
        except StopIteration as end:
            rows: list[Row] = end.value
            return rows
        except asyncio.CancelledError:
            await self.close()
            raise


def _tell(ready: asyncio.Future[Ready], what: Ready) -> None:
    if not ready.done():
        ready.set_result(what)
