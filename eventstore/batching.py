"""Many callers, one statement: calls that arrive while a batch is under way go together in the next one.

A batcher has a few lanes. A lane runs one batch at a time, as a plan over one connection; a call goes to the lane of
its key, so that no two lanes work on one stream. A lone caller waits for nobody: its batch begins at once. The plan
settles each call by itself: with an answer, or with an error.

* Threads: the first caller to arrive at an idle lane leads. It runs the batch in its own thread, then hands the lane
  to the next who waits.
* asyncio: a task runs the lane for as long as there are calls in it. Cancelling a caller ends its waiting; what was
  sent is not recalled.
* A call that has to wait for somebody else's transaction is taken out of its batch (`Call.alone`) and goes on by
  itself, over a connection of its own, so that nobody waits for it.

(The scheme is a database's own group commit: DeWitt et al., "Implementation Techniques for Main Memory Database
Systems", SIGMOD 1984.)
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Hashable, Iterable, Sequence
from contextlib import suppress
from typing import Any, Final, Generic, TypeAlias, TypeVar

from eventstore.database import AsyncDatabase, Database
from eventstore.errors import OutcomeUnknown, Unavailable
from eventstore.metrics import Metrics
from eventstore.steps import Plan

__all__ = ["LANES", "MAX_BATCH", "MAX_WAITING", "AsyncBatcher", "Batcher", "Call"]

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


class Call(Generic[R]):
    """One caller's call, until it is settled by an answer or an error; what comes later is without effect."""

    __slots__ = ("_error", "_result", "_wake", "alone", "deadline", "leads", "queued_at", "settled")

    def __init__(self) -> None:
        self.deadline = self.queued_at = 0.0
        self.settled = self.alone = self.leads = False
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

    def expire(self, reason: str) -> None:
        """Settle it because there is no time left, or nobody to ask."""
        self.fail(Unavailable(reason))

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
"""Makes the plan that settles the calls of a batch, in the lane of this number (None: one call that goes alone).

A call that the plan leaves unsettled comes again, unless its time has passed.
"""

_NO_TIME: Final = "no answer from Postgres within the timeout"
_CLOSED: Final = "this is closed: open it first"
_INTERRUPTED: Final = "interrupted"


class _Queue(Generic[C]):
    """The calls that wait in a lane, the oldest first."""

    def __init__(self) -> None:
        self._calls: deque[C] = deque()

    def __len__(self) -> int:
        return len(self._calls)

    def add(self, call: C) -> None:
        self._calls.append(call)

    def first(self) -> C | None:
        """Give the first call that still waits."""
        while self._calls and self._calls[0].settled:
            self._calls.popleft()
        return self._calls[0] if self._calls else None

    def take(self, most: int, metrics: Metrics) -> list[C]:
        """Take the calls of the next batch."""
        calls = self._calls
        batch: list[C] = []
        while calls and len(batch) < most:
            call = calls.popleft()
            if not call.settled:
                batch.append(call)
        if batch:
            metrics.batch(len(batch), time.monotonic() - batch[0].queued_at)
        return batch

    def put_back(self, batch: Iterable[C], reason: str) -> list[C]:
        """Put back what a batch left unsettled, but for what has no time left; return what is to go alone."""
        end = time.monotonic() + _TOO_LITTLE
        left = [call for call in batch if not call.settled]
        for call in left:
            if end >= call.deadline:
                call.expire(reason)
        self._calls.extendleft(call for call in reversed(left) if not (call.settled or call.alone))
        return [call for call in left if call.alone and not call.settled]

    def expire(self, now: float) -> None:
        """Settle what has no time left."""
        for call in self._calls:
            if now >= call.deadline:
                call.expire(_NO_TIME)

    def close(self) -> None:
        """Settle everything."""
        for call in self._calls:
            call.expire(_CLOSED)
        self._calls.clear()


class _Lane(Generic[C]):
    """A lane that threads lead in turn."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.lock = threading.Lock()
        self.queue: _Queue[C] = _Queue()
        self.led = False


class Batcher(Generic[C]):
    """Brings the calls of many threads together (see the module).

    `work` makes the plan of a batch; `max_batch` calls at most are in one.
    """

    def __init__(self, database: Database, work: Work[C], *, lanes: int = LANES, max_batch: int = MAX_BATCH) -> None:
        self._database, self._work, self._max_batch = database, work, max_batch
        self._lanes = [_Lane[C](number) for number in range(lanes)]

    def submit(self, call: C, timeout: float) -> None:
        """Wait until a call is settled, at most about `timeout` seconds."""
        lane = self._lanes[hash(call.key) % len(self._lanes)]
        gate = threading.Lock()
        gate.acquire()
        call.begin(timeout, lambda: _open(gate))
        with lane.lock:
            lane.queue.add(call)
            call.leads, lane.led = not lane.led, True
        try:
            self._wait(lane, call, gate)
        except BaseException:  # an interrupt: nobody waits for this call any more, and nobody is to wait for its turn
            call.expire(_INTERRUPTED)
            if call.leads:
                self._hand_over(lane, call, [], _INTERRUPTED)
            raise
        self._database.metrics.unknown += call.is_unknown

    def _wait(self, lane: _Lane[C], call: C, gate: threading.Lock) -> None:
        while not call.settled:
            if call.leads:
                self._lead(lane, call)
            elif call.alone:
                reason = self._run([call], None, call.deadline)
                if time.monotonic() + _TOO_LITTLE >= call.deadline:
                    call.expire(reason)
            elif not gate.acquire(timeout=max(0.0, call.deadline + _GRACE - time.monotonic())):
                with lane.lock:
                    if not call.leads:
                        call.expire(_NO_TIME)

    def _lead(self, lane: _Lane[C], leader: C) -> None:
        """Run the next batch until the leader's own time is up, and hand the lane over."""
        batch = lane.queue.take(self._max_batch, self._database.metrics)
        reason = _INTERRUPTED
        try:
            reason = self._run(batch, lane.number, leader.deadline)
        except BaseException:
            leader.expire(_INTERRUPTED)
            raise
        finally:
            self._hand_over(lane, leader, batch, reason)

    def _hand_over(self, lane: _Lane[C], leader: C, batch: list[C], reason: str) -> None:
        with lane.lock:
            alone = lane.queue.put_back(batch, reason)
            successor = lane.queue.first()
            leader.leads, lane.led = False, successor is not None
            if successor is not None:
                successor.leads = True
        for call in [*alone, *filter(None, [successor])]:
            call.wake()

    def _run(self, batch: list[C], lane: int | None, deadline: float) -> str:
        """Run a batch; return why calls of it may be unsettled."""
        try:
            self._database.run(self._work(batch, lane), timeout=max(0.0, deadline - time.monotonic()))
        except Unavailable as error:
            if self._database.closed:
                _expire(batch, str(error))
            return str(error)
        except Exception as error:
            _fail(batch, error)
        return _NO_TIME


def _open(gate: threading.Lock) -> None:
    with suppress(RuntimeError):  # it is open already
        gate.release()


def _tell(settled: asyncio.Future[None]) -> None:
    if not settled.done():
        settled.set_result(None)


def _expire(batch: Iterable[C], reason: str) -> None:
    for call in batch:
        call.expire(reason)


def _fail(batch: Iterable[C], error: BaseException) -> None:
    for call in batch:
        call.fail(error)


class AsyncBatcher(Generic[C]):
    """Brings the calls of many asyncio tasks together (see the module), for the event loop of its first call."""

    def __init__(
        self, database: AsyncDatabase, work: Work[C], *, lanes: int = LANES, max_batch: int = MAX_BATCH
    ) -> None:
        self._database, self._work, self._max_batch = database, work, max_batch
        self._queues: list[_Queue[C]] = [_Queue() for _ in range(lanes)]
        self._under_way: dict[asyncio.Task[None], list[C]] = {}
        self._busy: set[int] = set()
        self._held = 0
        self._crowd: deque[asyncio.Future[None]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    async def submit(self, call: C, timeout: float) -> None:
        """Wait until a call is settled, at most about `timeout` seconds. A cancelled caller only waits no more."""
        loop = asyncio.get_running_loop()
        settled = loop.create_future()
        call.begin(timeout, lambda: _tell(settled))
        if self._held >= MAX_WAITING:
            await self._wait_for_room(timeout)
        self._held += 1
        try:
            lane = hash(call.key) % len(self._queues)
            self._queues[lane].add(call)
            if lane not in self._busy:
                self._busy.add(lane)
                self._start(self._serve(lane), [])
            if self._timer is None:
                self._timer = loop.call_later(_PAUSE, self._look_at_deadlines)
            await settled
        finally:
            call.settled = True  # whoever was cancelled, too: what still waits is not sent
            self._database.metrics.unknown += call.is_unknown
            self._held -= 1
            self._let_one_in()

    def _let_one_in(self) -> None:
        while self._crowd:
            next_one = self._crowd.popleft()
            if not next_one.done():
                next_one.set_result(None)
                break

    async def _wait_for_room(self, timeout: float) -> None:
        try:
            async with asyncio.timeout(timeout):
                while self._held >= MAX_WAITING:
                    self._crowd.append(asyncio.get_running_loop().create_future())
                    await self._crowd[-1]
        except TimeoutError:
            raise Unavailable(f"{MAX_WAITING} calls were waiting for {timeout:g} s: the server is too slow") from None

    def _start(self, work: Coroutine[Any, Any, None], batch: list[C]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._under_way[task] = batch
        task.add_done_callback(self._under_way.pop)

    async def _serve(self, lane: int) -> None:
        """Run batch after batch while there are calls in the lane."""
        queue = self._queues[lane]
        task = asyncio.current_task()
        try:
            while batch := queue.take(self._max_batch, self._database.metrics):
                self._under_way[task] = batch  # type: ignore[index]
                reason = await self._run(batch, lane)
                for call in queue.put_back(batch, reason):
                    self._start(self._alone(call), [call])
        finally:
            self._busy.discard(lane)

    async def _alone(self, call: C) -> None:
        while not call.settled:
            reason = await self._run([call], None)
            if time.monotonic() + _TOO_LITTLE >= call.deadline:
                call.expire(reason)

    async def _run(self, batch: list[C], lane: int | None) -> str:
        """Run a batch until the last of its calls has no time left; return why calls of it may be unsettled."""
        time_left = max(call.deadline for call in batch) - time.monotonic()
        try:
            await self._database.run(self._work(batch, lane), timeout=max(0.0, time_left))
        except Unavailable as error:
            if self._database.closed:
                _expire(batch, str(error))
            return str(error)
        except BaseException as error:
            _fail(batch, error if isinstance(error, Exception) else Unavailable(_INTERRUPTED))
            if not isinstance(error, Exception):
                raise
        return _NO_TIME

    def _look_at_deadlines(self) -> None:
        now = time.monotonic() - _GRACE
        for queue in self._queues:
            queue.expire(now)
        for batch in self._under_way.values():
            _expire([call for call in batch if now >= call.deadline], _NO_TIME)
        waiting = any(self._queues) or self._under_way
        self._timer = asyncio.get_running_loop().call_later(_PAUSE, self._look_at_deadlines) if waiting else None

    async def close(self) -> None:
        """Settle what waits, and wait for what is under way."""
        for queue in self._queues:
            queue.close()
        if self._timer is not None:
            self._timer.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)
