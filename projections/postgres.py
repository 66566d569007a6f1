"""Projectors and rebuilds on Postgres: the plans, run by threads, tasks and processes."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import psycopg

from eventstore.database import DEFAULT_TIMEOUT, AsyncDatabase, Database
from eventstore.errors import Unavailable
from eventstore.event import LogPosition
from eventstore.plans import log_end
from eventstore.steps import Plan
from projections import rebuild, status
from projections.errors import AlreadyRunning, Fenced, PoisonEvent, ProjectionError
from projections.projection import StreamProjection
from projections.projector import LEASE_SECONDS, Followed, Follower, Pace, new_owner, note, readable, release, renew
from projections.rebuild import Progress, Verify
from projections.table import Table
from projections.workers import Workers

__all__ = ["AsyncProjector", "Projector", "Rebuilt", "rebuild_table"]

T = TypeVar("T")

_log: Final = logging.getLogger("command_registry")

_TROUBLE: Final = (Fenced, PoisonEvent, Unavailable, psycopg.Error)
_LOOK: Final = 10.0
"""How long a look at the log may take, in seconds: with a server that is away, closing takes as long."""

_POLL: Final = 0.2  # seconds
_GRACE: Final = 0.5  # seconds


class _Tail:
    """What a projector does for one table, one look at the log at a time."""

    def __init__(self, table: Table[Any], owner: str, lease_seconds: float) -> None:
        self.follower = Follower(table, owner, lease_seconds)
        self._pace = Pace()
        self._told = ""
        self._trouble: Exception | None = None

    def plan(self) -> Plan[Followed]:
        """Look at the log once; but first note what went wrong the last time, unless it is noted."""
        trouble, self._trouble = self._trouble, None
        if trouble is not None:
            yield from note(self.follower, trouble)
        return (yield from status.follow_if_needed(self.follower))

    def went(self, followed: Followed) -> float:
        """Give the pause after a look, in seconds."""
        self._told = ""
        return self._pace.after(followed)

    def failed(self, error: Exception) -> float:
        """Note a failure, say it once, and give the pause after it."""
        if not isinstance(error, Fenced) and str(error) != self._told:
            self._told = str(error)
            _log.error("projector of %s: %s", self.follower.table.full_name, readable(error))
            self._trouble = None if isinstance(error, PoisonEvent | Unavailable) else error
        self.follower.struggled()
        return self._pace.trouble()


class Projector:
    """Follows the log for tables, each in a thread of its own, until it is closed.

    Any number of processes may run one for the same tables: for each table one leads, and another takes over within
    about `lease_seconds` of its end, however it ended. A table that cannot go on (an event that its projection cannot
    fold) stops, says why in its bookkeeping, and tries again; the others go on.

    As a context manager it starts on entering, and on leaving ends what it is at and lets go of its leases.
    """

    def __init__(
        self, database: Database, tables: Sequence[Table[Any]], *, lease_seconds: float = LEASE_SECONDS
    ) -> None:
        self._database = database
        owner = new_owner()
        self._tails = [_Tail(table, owner, lease_seconds) for table in tables]
        self._tables = tuple(tables)
        self._ends = threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        for table in self._tables:
            self._database.run(status.enrol(table), lasting=True)
        for tail in self._tails:
            thread = threading.Thread(
                target=self._follow, args=(tail,), name=f"projector of {tail.follower.table.name}"
            )
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End, and let go of the leases."""
        self._ends.set()
        for thread in self._threads:
            thread.join()

    def _follow(self, tail: _Tail) -> None:
        pause = 0.0
        while not self._ends.wait(pause):
            try:
                pause = tail.went(self._database.run(tail.plan(), timeout=_LOOK))
            except Exception as error:  # whatever it is: it is this table's trouble alone
                pause = tail.failed(error)
        with suppress(*_TROUBLE):
            self._database.run(release(tail.follower), timeout=tail.follower.lease_seconds)

    def wait_until(self, position: LogPosition | None = None, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Wait until all its tables, whoever leads them, have come to a position of the log (None: where it ends now).

        Raises:
            NotCaughtUp: they have not within the timeout; says how far each is, and what keeps it.
        """
        self._database.run(status.wait_until(self._tables, position, timeout), timeout=timeout + DEFAULT_TIMEOUT)


class AsyncProjector:
    """`Projector` for asyncio: a task for each table."""

    def __init__(
        self, database: AsyncDatabase, tables: Sequence[Table[Any]], *, lease_seconds: float = LEASE_SECONDS
    ) -> None:
        self._database = database
        owner = new_owner()
        self._tails = [_Tail(table, owner, lease_seconds) for table in tables]
        self._tables = tuple(tables)
        self._ends = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        for table in self._tables:
            await self._database.run(status.enrol(table), lasting=True)
        self._tasks = [asyncio.create_task(self._follow(tail)) for tail in self._tails]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End, and let go of the leases."""
        self._ends.set()
        await asyncio.gather(*self._tasks)

    async def _follow(self, tail: _Tail) -> None:
        pause = 0.0
        while not self._ends.is_set():
            try:
                pause = tail.went(await self._database.run(tail.plan(), timeout=_LOOK))
            except Exception as error:  # whatever it is: it is this table's trouble alone
                pause = tail.failed(error)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._ends.wait()
        with suppress(*_TROUBLE):
            await self._database.run(release(tail.follower), timeout=tail.follower.lease_seconds)

    async def wait_until(self, position: LogPosition | None = None, timeout: float = DEFAULT_TIMEOUT) -> None:
        """As `Projector.wait_until`."""
        await self._database.run(status.wait_until(self._tables, position, timeout), timeout=timeout + DEFAULT_TIMEOUT)


class Rebuilt:
    """What a rebuild did: events folded in bulk, streams or keys compared, whether it switched, and its seconds."""

    def __init__(self) -> None:
        self.events = self.compared = 0
        self.in_place = self.switched = self.drained = False
        self.seconds = 0.0


class _Build:
    """A rebuild under way, whose lease a thread keeps while statements take their time."""

    def __init__(self, database: Database, table: Table[Any], told: Callable[[Progress], None]) -> None:
        self.database, self.table = database, table
        self.follower = Follower(table, new_owner(), builds=True)
        self._told, self._told_at = told, 0.0
        self._ends = threading.Event()

    def run(self, plan: Plan[T]) -> T:
        return self.database.run(plan, lasting=True)

    def tell(self) -> None:
        self._told_at = time.monotonic()
        self._told(self.run(rebuild.progress(self.table)))

    def tell_now_and_then(self) -> None:
        if time.monotonic() > self._told_at + _POLL:
            self.tell()

    @contextmanager
    def keeping_the_lease(self) -> Iterator[None]:
        keeper = threading.Thread(target=self._keep, name=f"lease of {self.table.name}", daemon=True)
        keeper.start()
        try:
            yield
        finally:
            self._ends.set()
            keeper.join()

    def _keep(self) -> None:
        while not self._ends.wait(self.follower.lease_seconds / 3):
            with suppress(Unavailable, psycopg.Error):
                if self.follower.leads:
                    self.database.run(renew(self.follower))


def rebuild_table(
    database: Database,
    table: Table[Any],
    *,
    workers: int = 1,
    verify: Verify = "sample",
    switch: bool = True,
    restart: bool = False,
    drain_seconds: float = 60.0,
    told: Callable[[Progress], None] = lambda _: None,
) -> Rebuilt:
    """Build a table from the log, beside what is in force, while appends go on; then put it in force.

    It may be ended at any point, by force, too: the next one goes on from there (unless it is to `restart`). A table
    that is in force already is repaired in place. `workers`: processes that fold (1: this one). `drain_seconds`: how
    long to wait, at the end, for transactions that were open at the switch.

    Raises:
        AlreadyRunning: somebody else is at it, and alive.
        PoisonEvent: an event cannot be folded.
        NotEqual: what was built is not what the log says; it is not put in force.
        ProjectionError: a worker failed, or the table cannot be built.
        Unavailable: the server was away for too long; the next rebuild goes on.
    """
    build, rebuilt, began = _Build(database, table, told), Rebuilt(), time.monotonic()
    follower = build.follower
    try:
        with build.keeping_the_lease():
            rebuilt.in_place = _begin(build, restart=restart)
            rebuilt.events = _fill(build, workers)
            build.run(rebuild.finish_bulk(follower, in_place=rebuilt.in_place))
            build.tell()
            _catch_up(build)
            rebuilt.compared = build.run(rebuild.check_equal(follower, verify, lambda _: build.tell_now_and_then()))
            _catch_up_now(build)
            build.run(rebuild.built(follower))
            build.tell()
            if switch:
                rebuilt.switched, rebuilt.drained = True, _switch(build, drain_seconds)
            build.run(rebuild.end(follower))
    finally:
        with suppress(*_TROUBLE):
            build.run(release(follower))
    rebuilt.seconds = time.monotonic() - began
    return rebuilt


def _begin(build: _Build, *, restart: bool) -> bool:
    """Begin; after waiting for the lease of one who may have been killed, and of whom nobody knows yet."""
    end = time.monotonic() + build.follower.lease_seconds + _GRACE
    while True:
        try:
            return build.run(rebuild.begin(build.follower, restart=restart))
        except AlreadyRunning:
            if time.monotonic() > end:
                raise
        time.sleep(_POLL)


def _fill(build: _Build, workers: int) -> int:
    if build.follower.phase != "bulk":
        return 0
    total = _fill_by_workers(build, workers) if workers > 1 else 0
    while True:
        while (events := build.run(rebuild.fill_chunk(build.follower))) is not None:
            total += events
            build.tell()
        if not build.run(rebuild.left_over(build.follower)):
            return total


def _catch_up(build: _Build) -> None:
    """Follow the log; a table that is made of nothing else, to where it ends now, whoever holds its readers back."""
    wanted = build.run(log_end())
    _catch_up_now(build)
    while not isinstance(build.table.projection, StreamProjection) and build.follower.checkpoint < wanted:
        time.sleep(_POLL)
        build.run(rebuild.note_wait(build.follower))
        _catch_up_now(build)


def _catch_up_now(build: _Build) -> None:
    while build.run(rebuild.catch_up_a_page(build.follower)):
        build.tell_now_and_then()
    build.tell()


def _fill_by_workers(build: _Build, workers: int) -> int:
    working = Workers(build.database, build.follower, workers)
    try:
        with working:
            while working.busy(_POLL):
                build.tell()
    except ProjectionError as error:  # noted by the worker, too; but another one's success may have wiped that out
        build.run(note(build.follower, error))
        raise
    return working.events


def _switch(build: _Build, drain_seconds: float) -> bool:
    projection = build.table.projection
    switched = build.run(rebuild.switch(projection.name, projection.version))
    end = time.monotonic() + drain_seconds
    drain = rebuild.Drain(build.follower, switched)
    while not build.run(drain.plan()):
        build.tell()
        if time.monotonic() > end:
            return False
    return True
