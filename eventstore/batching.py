"""Many callers, one statement: calls that arrive while a batch is under way go together in the next one.

A batcher has a few lanes. A lane runs one batch at a time, as a plan over one connection; a call goes to the lane of
its key, so that no two lanes work on one stream. A lone caller waits for nobody: its batch begins at once. The plan
settles each call by itself: with an answer, or with an error.

* Threads: the first caller to arrive at an idle lane leads. It runs the batch in its own thread, then hands the lane
  to the next who waits.
* asyncio: a task runs the lane for as long as there are calls in it. Cancelling a caller ends its waiting; what was
  sent is not recalled.
* A call that has to wait for somebody else's transaction is taken out of its batch (`Call.aside`). It goes on in a lane
  aside, for calls of its key only, so that nobody else waits for it. There are few of those lanes at a time, so that
  they leave connections to the others.

(The scheme is a database's own group commit: DeWitt et al., "Implementation Techniques for Main Memory Database
Systems", SIGMOD 1984.)
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Final, Generic, TypeAlias, TypeVar

from eventstore.database import AsyncDatabase, Database
from eventstore.errors import OutcomeUnknown, Unavailable
from eventstore.metrics import Metrics
from eventstore.steps import Plan

__all__ = ["LANES", "MAX_BATCH", "MAX_WAITING", "AsyncBatcher", "Batcher", "Call", "Work"]

R = TypeVar("R")
C = TypeVar("C", bound="Call[Any]")

LANES: Final = 2
"""Batches under way at once: while the server works on one, the next is made ready."""

MAX_BATCH: Final = 256
"""Calls in one batch, at most."""

MAX_WAITING: Final = 8_192
"""Calls that a batcher holds, at most; further callers wait for room. (Of threads, each holds one call.)"""

_PAUSE: Final = 0.25
"""How often asyncio's deadlines are looked at, in seconds."""

_GRACE: Final = 0.2
"""For how much longer a caller waits for the batch to say why its time was not enough, in seconds."""

_TOO_LITTLE: Final = 0.05
"""Nothing is begun any more with less time than this, in seconds."""

_NO_TIME: Final = "no answer from Postgres within the timeout"
_NOT_LET_GO: Final = "another transaction did not let go of what this call needs within the timeout"
_NO_LANE: Final = "other transactions did not let go of what so many calls wait for"
_CLOSED: Final = "this is closed: open it first"
_INTERRUPTED: Final = "interrupted"


class Call(Generic[R]):
    """One caller's call, until it is settled by an answer or an error; what comes later is without effect."""

    __slots__ = ("_error", "_result", "_wake", "aside", "deadline", "lane", "queued_at", "settled")

    def __init__(self) -> None:
        self.deadline = self.queued_at = 0.0
        self.settled = self.aside = False
        self.lane: _Lane[Any] | None = None
        self._result: R | None = None
        self._error: BaseException | None = None
        self._wake: Callable[[], object] | None = None

    @property
    def key(self) -> Hashable:
        """What it is about: calls of one key go through one lane."""
        raise NotImplementedError

    def answer(self, result: R) -> None:
        """Settle it with its result."""
        if not self.settled:
            self._result, self.settled = result, True
            self.wake()

    def fail(self, error: BaseException) -> None:
        """Settle it with an error."""
        if not self.settled:
            self._error, self.settled = error, True
            self.wake()

    def give_up(self, error: Exception) -> None:
        """Settle it because there is no time left, or nobody to ask."""
        self.fail(error)

    def expire(self, reason: str) -> None:
        """Give it up with `Unavailable`."""
        self.give_up(Unavailable(reason))

    def result(self) -> R:
        """Return the answer, or raise the error, that it was settled with."""
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]

    @property
    def is_unknown(self) -> bool:
        """Whether nobody can tell what became of it."""
        return isinstance(self._error, OutcomeUnknown)

    def begin(self, timeout: float, wake: Callable[[], object]) -> None:
        """Start its time; `wake` tells its caller that something happened to it."""
        self.queued_at = time.monotonic()
        self.deadline = self.queued_at + timeout
        self._wake = wake

    def wake(self) -> None:
        """Tell the caller, if somebody waits."""
        if self._wake is not None:
            self._wake()


Work: TypeAlias = Callable[[Sequence[C], int | None], Plan[None]]
"""Makes the plan that settles the calls of a batch, in the lane of this number (None: a lane aside).

A call that the plan leaves unsettled comes again, unless its time has passed.
"""


class _Lane(Generic[C]):
    """The calls that wait in a lane, the oldest first; and who leads it, when threads do."""

    def __init__(self, number: int | None, key: Hashable = None) -> None:
        self.number, self.key = number, key
        self.leader: C | None = None
        self.task: asyncio.Task[None] | None = None
        self._calls: deque[C] = deque()

    def __len__(self) -> int:
        return len(self._calls)

    def add(self, call: C) -> None:
        call.lane = self
        self._calls.append(call)

    def first(self) -> C | None:
        """Give the first call that still waits."""
        while self._calls and self._calls[0].settled:
            self._calls.popleft()
        return self._calls[0] if self._calls else None

    def take(self, most: int) -> list[C]:
        """Take the calls of the next batch."""
        calls = self._calls
        batch: list[C] = []
        while calls and len(batch) < most:
            call = calls.popleft()
            if not call.settled:
                batch.append(call)
        return batch

    def put_back(self, batch: Iterable[C], reason: str) -> list[C]:
        """Put back what a batch left unsettled, but for what has no time left; return what is to go aside."""
        end = time.monotonic() + _TOO_LITTLE
        left = [call for call in batch if not call.settled]
        for call in left:
            if end >= call.deadline:
                call.expire(reason)
        left = [call for call in left if not call.settled]
        leaving = [call for call in left if call.aside] if self.number is not None else []
        self._calls.extendleft(call for call in reversed(left) if call not in leaving)
        return leaving

    def expire(self, now: float, trouble: str) -> None:
        """Settle what has no time left."""
        for call in self._calls:
            if now >= call.deadline:
                call.expire(self.excuse(trouble))

    def excuse(self, trouble: str) -> str:
        """Say why a call in this lane may have had no answer in time; `trouble`: what is known of the server's."""
        if self.number is None:
            return _NOT_LET_GO
        return f"{_NO_TIME}: {trouble}" if trouble else _NO_TIME

    def close(self, reason: str) -> None:
        """Settle everything."""
        for call in self._calls:
            call.expire(reason)
        self._calls.clear()


class _Lanes(Generic[C]):
    """The lanes of a batcher: so many by number, and those aside."""

    def __init__(self, count: int) -> None:
        self._numbered = [_Lane[C](number) for number in range(count)]
        self._aside: dict[Hashable, _Lane[C]] = {}

    def __iter__(self) -> Iterator[_Lane[C]]:
        return iter([*self._numbered, *self._aside.values()])

    def of(self, call: C) -> _Lane[C]:
        """Give the lane that a call goes to."""
        if self._aside and call.key in self._aside:
            return self._aside[call.key]
        return self._numbered[hash(call.key) % len(self._numbered)]

    def aside(self, call: C) -> _Lane[C]:
        """Give the lane aside for calls of a key, a new one if need be."""
        return self._aside.setdefault(call.key, _Lane(None, call.key))

    def done(self, lane: _Lane[C]) -> None:
        """Note that a lane is empty."""
        if lane.number is None:
            self._aside.pop(lane.key, None)


def _most_aside(pool_size: int) -> int:
    """Say how many connections lanes aside may hold: two lanes, reads and the rest are to have most of them."""
    return max(1, pool_size // 3)


def _expire(batch: Iterable[C], reason: str) -> None:
    for call in batch:
        call.expire(reason)


def _fail(batch: Iterable[C], error: Exception) -> None:
    for call in batch:
        call.give_up(error)


def _count(metrics: Metrics, batch: Sequence[C]) -> None:
    if batch:
        metrics.batch(len(batch), time.monotonic() - batch[0].queued_at)


class Batcher(Generic[C]):
    """Brings the calls of many threads together (see the module).

    `work` makes the plan of a batch; `max_batch` calls at most are in one.
    """

    def __init__(self, database: Database, work: Work[C], *, lanes: int = LANES, max_batch: int = MAX_BATCH) -> None:
        self._database, self._work, self._max_batch = database, work, max_batch
        self._lanes: _Lanes[C] = _Lanes(lanes)
        self._lock = threading.Lock()  # of the lanes, and of who leads them
        self._connections_aside = threading.Semaphore(_most_aside(database.pool_size))

    def submit(self, call: C, timeout: float) -> None:
        """Wait until a call is settled, at most about `timeout` seconds."""
        gate = threading.Lock()
        gate.acquire()
        call.begin(timeout, lambda: _open(gate))
        try:
            with self._lock:
                self._add(self._lanes.of(call), call)
            self._wait(call, gate)
        except BaseException:  # an interrupt: nobody waits for this call any more, and nobody is to wait for its turn
            with self._lock:
                call.expire(_INTERRUPTED)
            if call.lane is not None and call.lane.leader is call:
                self._hand_over(call.lane, [], _INTERRUPTED)
            raise
        self._database.metrics.unknown += call.is_unknown

    def _add(self, lane: _Lane[C], call: C) -> None:
        lane.add(call)
        if lane.leader is None:
            lane.leader = call

    def _wait(self, call: C, gate: threading.Lock) -> None:
        while not call.settled:
            lane: _Lane[C] | None = call.lane
            if lane is not None and lane.leader is call:
                self._lead(lane, call)
            elif not gate.acquire(timeout=max(0.0, call.deadline + _GRACE - time.monotonic())):
                with self._lock:
                    if call.lane is not None and call.lane.leader is not call:
                        call.expire(call.lane.excuse(self._database.metrics.obstacle))

    def _lead(self, lane: _Lane[C], leader: C) -> None:
        """Run the next batch until the leader's own time is up, and hand the lane over."""
        batch: list[C] = []
        reason = _INTERRUPTED
        try:
            with self._lock:
                batch = lane.take(self._max_batch)
            _count(self._database.metrics, batch)
            reason = self._run(batch, lane, leader.deadline)
        except BaseException:
            leader.expire(_INTERRUPTED)
            raise
        finally:
            self._hand_over(lane, batch, reason)

    def _hand_over(self, lane: _Lane[C], batch: list[C], reason: str) -> None:
        with self._lock:
            to_wake = []
            for call in lane.put_back(batch, reason):
                self._add(self._lanes.aside(call), call)
                to_wake.append(call)
            lane.leader = lane.first()
            if lane.leader is not None:
                to_wake.append(lane.leader)
            else:
                self._lanes.done(lane)
        for call in to_wake:
            call.wake()

    def _run(self, batch: list[C], lane: _Lane[C], deadline: float) -> str:
        """Run a batch; return why calls of it may be unsettled."""
        if lane.number is not None:
            return self._run_now(batch, lane, deadline)
        if not self._connections_aside.acquire(timeout=max(0.0, deadline - time.monotonic())):
            return _NO_LANE
        try:
            return self._run_now(batch, lane, deadline)
        finally:
            self._connections_aside.release()

    def _run_now(self, batch: list[C], lane: _Lane[C], deadline: float) -> str:
        try:
            self._database.run(self._work(batch, lane.number), timeout=max(0.0, deadline - time.monotonic()))
        except Unavailable as error:
            if self._database.closed:
                _expire(batch, str(error))
            return str(error)
        except Exception as error:  # whatever it is, it belongs to whoever waits for it
            _fail(batch, error)
        return _NO_TIME


def _open(gate: threading.Lock) -> None:
    with suppress(RuntimeError):  # it is open already
        gate.release()


class AsyncBatcher(Generic[C]):
    """Brings the calls of many asyncio tasks together (see the module), for the event loop of its first call."""

    def __init__(
        self, database: AsyncDatabase, work: Work[C], *, lanes: int = LANES, max_batch: int = MAX_BATCH
    ) -> None:
        self._database, self._work, self._max_batch = database, work, max_batch
        self._lanes: _Lanes[C] = _Lanes(lanes)
        self._under_way: dict[_Lane[C], list[C]] = {}
        self._connections_aside = asyncio.Semaphore(_most_aside(database.pool_size))
        self._held = 0
        self._crowd: deque[asyncio.Future[None]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    async def submit(self, call: C, timeout: float) -> None:
        """Wait until a call is settled, at most about `timeout` seconds. A cancelled caller only waits no more."""
        loop = asyncio.get_running_loop()
        settled = loop.create_future()
        call.begin(timeout, lambda: _tell(settled))
        if self._held < MAX_WAITING and not self._crowd:
            self._held += 1
        else:
            await self._wait_for_room(timeout)
        try:
            self._add(self._lanes.of(call), call)
            if self._timer is None:
                self._timer = loop.call_later(_PAUSE, self._look_at_deadlines)
            await settled
        finally:
            call.settled = True  # whoever was cancelled, too: what still waits is not sent
            self._database.metrics.unknown += call.is_unknown
            self._leave()

    async def _wait_for_room(self, timeout: float) -> None:
        """Wait until somebody leaves and gives his place."""
        place = asyncio.get_running_loop().create_future()
        self._crowd.append(place)
        try:
            async with asyncio.timeout(timeout):
                await place
        except BaseException as error:
            if place.done() and not place.cancelled():
                self._leave()  # given to us at this very moment: it is the next one's
            else:
                place.cancel()
            if isinstance(error, TimeoutError):
                busy = f"{MAX_WAITING} calls were waiting for {timeout:g} s: the server is too slow"
                raise Unavailable(busy) from None
            raise

    def _leave(self) -> None:
        while self._crowd:
            place = self._crowd.popleft()
            if not place.done():
                place.set_result(None)
                return
        self._held -= 1

    def _add(self, lane: _Lane[C], call: C) -> None:
        lane.add(call)
        if lane.task is None:
            lane.task = asyncio.get_running_loop().create_task(self._serve(lane))

    async def _serve(self, lane: _Lane[C]) -> None:
        """Run batch after batch while there are calls in the lane."""
        try:
            while batch := lane.take(self._max_batch):
                _count(self._database.metrics, batch)
                self._under_way[lane] = batch
                reason = await self._run(batch, lane)
                for call in lane.put_back(batch, reason):
                    self._add(self._lanes.aside(call), call)
        finally:
            self._under_way.pop(lane, None)
            lane.task = None
            lane.close(_INTERRUPTED)
            self._lanes.done(lane)

    async def _run(self, batch: list[C], lane: _Lane[C]) -> str:
        """Run a batch until its first call has no time left; return why calls of it may be unsettled."""
        if lane.number is not None:
            return await self._run_now(batch, lane)
        try:
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + _time_left(batch)):
                await self._connections_aside.acquire()
        except TimeoutError:
            return _NO_LANE
        try:
            return await self._run_now(batch, lane)
        finally:
            self._connections_aside.release()

    async def _run_now(self, batch: list[C], lane: _Lane[C]) -> str:
        try:
            await self._database.run(self._work(batch, lane.number), timeout=_time_left(batch))
        except Unavailable as error:
            if self._database.closed:
                _expire(batch, str(error))
            return str(error)
        except Exception as error:  # whatever it is, it belongs to whoever waits for it
            _fail(batch, error)
        except BaseException:
            _expire(batch, _INTERRUPTED)
            raise
        return _NO_TIME

    def _look_at_deadlines(self) -> None:
        now, trouble = time.monotonic() - _GRACE, self._database.metrics.obstacle
        for lane in self._lanes:
            lane.expire(now, trouble)
        for lane, batch in self._under_way.items():
            _expire([call for call in batch if now >= call.deadline], lane.excuse(trouble))
        again = bool(self._held)
        self._timer = asyncio.get_running_loop().call_later(_PAUSE, self._look_at_deadlines) if again else None

    async def close(self) -> None:
        """Settle what waits, and wait for what is under way."""
        for lane in self._lanes:
            lane.close(_CLOSED)
        if self._timer is not None:
            self._timer.cancel()
        await asyncio.gather(*(lane.task for lane in self._lanes if lane.task is not None), return_exceptions=True)


def _time_left(batch: Sequence[Call[Any]]) -> float:
    return max(0.0, batch[0].deadline - time.monotonic())


def _tell(settled: asyncio.Future[None]) -> None:
    if not settled.done():
        settled.set_result(None)
