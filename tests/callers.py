"""Many callers at once, of a registry for threads or for asyncio: the same calls, made the same way, of either kind."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final, LiteralString, TypeAlias

import psycopg

from registry import AsyncPostgresCommandRegistry, EventContext, PostgresCommandRegistry

__all__ = ["KINDS", "LONGEST", "NOON", "Call", "Callers", "Script", "callers", "created", "one", "outcome"]

KINDS: Final = ["threads", "asyncio"]
NOON: Final = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
LONGEST: Final = 60.0


class Call:
    """One call of a registry, to be made by whoever is told to. A write has `request_id` in its context.

    `client`: who makes it instead of the registry (one of a recorder, say).
    """

    def __init__(
        self, name: str, *args: Any, request_id: str | None = None, client: Any = None, **settings: Any
    ) -> None:
        self.name, self.args, self.settings, self._client = name, args, settings, client
        if request_id is not None:
            self.settings["context"] = EventContext(request_id=request_id)

    def on(self, registry: Any) -> Any:
        """Make it; of an asynchronous registry, the coroutine."""
        return getattr(self._client or registry, self.name)(*self.args, **self.settings)

    def __repr__(self) -> str:
        return f"{self.name}{self.args}"


Script: TypeAlias = Generator[Call, Any, None]
"""One caller: yields its next call, and is sent the answer."""


class Threads:
    """A registry for threads, and threads that call it."""

    def __init__(self, dsn: str, **settings: Any) -> None:
        self.registry: Any = PostgresCommandRegistry.open(dsn, **settings)
        self._threads = ThreadPoolExecutor(256)

    def at_once(self, calls: Sequence[Call]) -> list[Future[Any]]:
        """Make calls, all at the same moment."""
        together = threading.Barrier(len(calls))

        def make(call: Call) -> Any:
            together.wait()
            return call.on(self.registry)

        return [self._threads.submit(make, call) for call in calls]

    def drive(self, scripts: Sequence[Script]) -> list[Future[None]]:
        """Let callers call."""
        return [self._threads.submit(self._drive, script) for script in scripts]

    def _drive(self, script: Script) -> None:
        call = next(script, None)
        while call is not None:
            try:
                answer = call.on(self.registry)
            except Exception as error:
                call = _next(script, error)
            else:
                call = _next(script, answer)

    def connect(self, dsn: str, *, autocommit: bool = False) -> Any:
        """Open a connection of a caller's own."""
        return psycopg.connect(dsn, autocommit=autocommit)

    def ask(self, connection: Any, sql: LiteralString) -> list[tuple[Any, ...]]:
        """Execute a statement over it."""
        rows: list[tuple[Any, ...]] = connection.execute(sql).fetchall()
        return rows

    def disconnect(self, connection: Any) -> None:
        """Close it."""
        connection.close()

    def close(self) -> None:
        """Close the registry."""
        self._threads.shutdown()
        self.registry.close()


class Tasks:
    """A registry for asyncio, and tasks that call it, on an event loop in a thread of its own."""

    def __init__(self, dsn: str, **settings: Any) -> None:
        self.registry: Any = AsyncPostgresCommandRegistry.open(dsn, **settings)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        try:
            self._run(self.registry.connect())
        except BaseException:
            self._stop()
            raise

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(LONGEST)

    def at_once(self, calls: Sequence[Call]) -> list[Future[Any]]:
        """Make calls, all at the same moment."""
        return self._start(lambda: [call.on(self.registry) for call in calls])

    def drive(self, scripts: Sequence[Script]) -> list[Future[None]]:
        """Let callers call."""
        return self._start(lambda: [self._drive(script) for script in scripts])

    def _start(self, coroutines: Callable[[], list[Any]]) -> list[Future[Any]]:
        async def start() -> list[Future[Any]]:
            return [asyncio.run_coroutine_threadsafe(each, self._loop) for each in coroutines()]

        started: list[Future[Any]] = self._run(start())
        return started

    async def _drive(self, script: Script) -> None:
        call = next(script, None)
        while call is not None:
            try:
                answer = await call.on(self.registry)
            except Exception as error:
                call = _next(script, error)
            else:
                call = _next(script, answer)

    def connect(self, dsn: str, *, autocommit: bool = False) -> Any:
        """Open a connection of a caller's own."""
        return self._run(psycopg.AsyncConnection.connect(dsn, autocommit=autocommit))

    def ask(self, connection: Any, sql: LiteralString) -> list[tuple[Any, ...]]:
        """Execute a statement over it."""

        async def rows() -> Any:
            return await (await connection.execute(sql)).fetchall()

        asked: list[tuple[Any, ...]] = self._run(rows())
        return asked

    def disconnect(self, connection: Any) -> None:
        """Close it."""
        self._run(connection.close())

    def close(self) -> None:
        """Close the registry."""
        self._run(self.registry.close())
        self._stop()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


Callers: TypeAlias = Threads | Tasks


def _next(script: Script, outcome: Any) -> Call | None:
    try:
        return script.throw(outcome) if isinstance(outcome, Exception) else script.send(outcome)
    except StopIteration:
        return None


@contextmanager
def callers(kind: str, dsn: str, **settings: Any) -> Iterator[Callers]:
    """Open a registry of a kind for many callers."""
    opened: Callers = Threads(dsn, **settings) if kind == "threads" else Tasks(dsn, **settings)
    try:
        yield opened
    finally:
        opened.close()


def outcome(call: Future[Any]) -> Any:
    """Give what a call answered or raised."""
    return call.exception(LONGEST) or call.result()


def one(opened: Callers, name: str, *args: Any, **settings: Any) -> Any:
    """Make one call, and give its answer."""
    [call] = opened.at_once([Call(name, *args, **settings)])
    return call.result(LONGEST)


def created(opened: Callers, number: int = 1, client: Any = None) -> list[str]:
    """Create commands, and give their ids; `client`: of a recorder, who records that."""
    calls = [Call("create_command", "dep", "sync", timeout=LONGEST, client=client) for _ in range(number)]
    return [call.result(LONGEST).command_id for call in opened.at_once(calls)]
