"""Batchers of both kinds, called from a test's own thread: with calls, work and locks that the test holds."""

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from typing import Any, Final, TypeAlias, TypeVar

import psycopg

from eventstore.batching import AsyncBatcher, Batcher, Call
from eventstore.database import AsyncDatabase, Database
from eventstore.metrics import Metrics
from eventstore.steps import Plan, Step
from tests.waiting import until

__all__ = ["KINDS", "Ask", "Desk", "Held", "Opened", "Work", "answer_each", "held", "opened"]

T = TypeVar("T")

KINDS: Final = ["threads", "asyncio"]
_locks = count(1)

LOCK: Final = "SELECT pg_advisory_xact_lock(%s)"


class Ask(Call[str]):
    """A call that is answered by its own name. `lock`: what its work waits for, when it comes first in a batch."""

    __slots__ = ("_key", "lock", "name")

    def __init__(self, name: str, key: int = 0) -> None:
        super().__init__()
        self.name, self._key, self.lock = name, key, next(_locks)

    @property
    def key(self) -> int:
        return self._key


Work: TypeAlias = Callable[[Sequence[Ask]], Plan[None]]


def answer_each(calls: Sequence[Ask]) -> Plan[None]:
    """Wait for the lock of the first call, and answer them all."""
    yield Step(LOCK, (calls[0].lock,))
    for call in calls:
        call.answer(call.name)


class Desk:
    """Work for a batcher, that keeps a list of its batches and of what came to its end."""

    def __init__(self, work: Work = answer_each) -> None:
        self._work = work
        self.batches: list[list[str]] = []
        self.lanes: list[int | None] = []
        self.done: list[str] = []

    def __call__(self, calls: Sequence[Ask], lane: int | None) -> Plan[None]:
        self.batches.append([call.name for call in calls])
        self.lanes.append(lane)
        yield from self._work(calls)
        self.done += self.batches[-1] if lane is None else [call.name for call in calls]


class Opened(ABC):
    """A batcher of either kind over a database of its own."""

    metrics: Metrics

    @abstractmethod
    def submit(self, call: Call[Any], timeout: float = 20.0) -> "Future[None]":
        """Begin a call, as another thread or task would."""

    @abstractmethod
    def queued(self) -> int:
        """Count the calls that wait in the lanes."""

    @abstractmethod
    def close(self) -> "Future[None]":
        """Begin to close it."""

    @abstractmethod
    def is_closing(self) -> bool:
        """Tell whether it takes no more calls."""

    def ask(self, call: Ask, timeout: float = 20.0) -> "Future[str]":
        """Begin a call, for its answer."""
        answer: Future[str] = Future()

        def settle(done: "Future[None]") -> None:
            try:
                done.result()
                answer.set_result(call.result())
            except BaseException as error:
                answer.set_exception(error)

        self.submit(call, timeout).add_done_callback(settle)
        return answer

    def queue(self, *calls: Ask, timeout: float = 20.0) -> "list[Future[str]]":
        """Begin calls one after the other, each once the one before it waits in its lane."""
        answers = []
        for call in calls:
            before = self.queued()
            answers.append(self.ask(call, timeout))
            until(lambda before=before: self.queued() == before + 1, "a call to be queued")  # type: ignore[misc]
        return answers


class Threads(Opened):
    def __init__(self, dsn: str, work: Any, pool_size: int, **settings: Any) -> None:
        self._database = Database(dsn, pool_size=pool_size)
        self._database.open()
        self.metrics = self._database.metrics
        self.batcher: Batcher[Any] = Batcher(self._database, work, **settings)
        self._threads = ThreadPoolExecutor(100)

    def submit(self, call: Call[Any], timeout: float = 20.0) -> "Future[None]":
        return self._threads.submit(self.batcher.submit, call, timeout)

    def queued(self) -> int:
        return sum(map(len, self.batcher._lanes))

    def close(self) -> "Future[None]":
        return self._threads.submit(self._database.close)

    def is_closing(self) -> bool:
        return self._database.closed

    def end(self) -> None:
        self._threads.shutdown()
        self._database.close()


class Tasks(Opened):
    def __init__(self, dsn: str, work: Any, pool_size: int, **settings: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._database = AsyncDatabase(dsn, pool_size=pool_size)
        asyncio.run_coroutine_threadsafe(self._database.open(), self._loop).result()
        self.metrics = self._database.metrics
        self.batcher: AsyncBatcher[Any] = AsyncBatcher(self._database, work, **settings)

    def submit(self, call: Call[Any], timeout: float = 20.0) -> "Future[None]":
        return asyncio.run_coroutine_threadsafe(self.batcher.submit(call, timeout), self._loop)

    def queued(self) -> int:
        return sum(map(len, self.batcher._lanes))

    def waiting_for_room(self) -> int:
        return len(self.batcher._crowd)

    def close(self) -> "Future[None]":
        return asyncio.run_coroutine_threadsafe(self.batcher.close(), self._loop)

    def is_closing(self) -> bool:
        return self.queued() == 0

    def end(self) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        await self.batcher.close()
        await self._database.close()
        stranded = asyncio.all_tasks() - {asyncio.current_task()}  # when a test has failed
        for task in stranded:
            task.cancel()
        await asyncio.gather(*stranded, return_exceptions=True)


@contextmanager
def opened(kind: str, dsn: str, work: Any, *, pool_size: int = 10, **settings: Any) -> Iterator[Any]:
    """Open a batcher ("threads" or "asyncio"), and close it."""
    batcher = (Threads if kind == "threads" else Tasks)(dsn, work, pool_size, **settings)
    try:
        yield batcher
    finally:
        batcher.end()


WAITERS: Final = """
    SELECT FROM pg_locks
    WHERE NOT granted AND locktype = 'advisory' AND objid = %s
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


class Held:
    """The lock of a call, which a test holds."""

    def __init__(self, observer: psycopg.Connection[Any], call: Ask) -> None:
        self._observer, self._call, self._holds = observer, call, True
        observer.execute("SELECT pg_advisory_lock(%s)", (call.lock,))

    def until_it_waits(self) -> None:
        """Wait until the call's work waits for it."""
        until(lambda: self._observer.execute(WAITERS, (self._call.lock,)).fetchall(), f"{self._call.name} to wait")

    def release(self) -> None:
        """Let go of it."""
        if self._holds:
            self._observer.execute("SELECT pg_advisory_unlock(%s)", (self._call.lock,))
            self._holds = False


@contextmanager
def held(observer: psycopg.Connection[Any], call: Ask) -> Iterator[Held]:
    """Hold a call's lock."""
    lock = Held(observer, call)
    try:
        yield lock
    finally:
        lock.release()
