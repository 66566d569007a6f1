"""Simulated time: a day that passes as fast as its actors are done, and stands still while any of them is at work."""

import asyncio
import itertools
import random
from collections.abc import Coroutine
from datetime import datetime, timedelta
from heapq import heappop, heappush
from typing import Any, Final

__all__ = ["STEP", "STEPS", "SimulatedClock", "together"]

STEP: Final = timedelta(minutes=5)
STEPS: Final = timedelta(days=1) // STEP


class SimulatedClock:
    """The clock of one simulated day, which is `STEPS` steps long and ends at `end`.

    Actors are coroutines that only ever wait for the registry or in `sleep`. When all of them sleep, the clock goes on
    to the next step in which one wakes; all that wake in one step run at once, and race. Calling the clock tells the
    time.
    """

    def __init__(self, end: datetime, seed: int) -> None:
        self.start = end - STEPS * STEP
        self.end = end
        self.step = 0
        self._now = self.start
        self._random = random.Random(seed)  # noqa: S311 - nothing secret depends on it
        self._order = itertools.count()
        self._asleep: list[tuple[int, int, asyncio.Future[None]]] = []
        self._awake = 0
        self._all_asleep = asyncio.Event()

    def __call__(self) -> datetime:
        """Tell the time. Each reading is a little later than the one before, and never in the next step."""
        left = self.at(self.step + 1) - self._now
        self._now += left * self._random.uniform(0.0, 0.02)
        return self._now

    def at(self, step: int) -> datetime:
        """Tell when a step begins."""
        return self.start + step * STEP

    async def sleep(self, steps: int = 1) -> None:
        """Wait for a later step: the next, or the one that many steps on."""
        _heed_cancellation()
        waker = asyncio.get_running_loop().create_future()
        heappush(self._asleep, (self.step + max(1, steps), next(self._order), waker))
        self._one_less()
        await waker

    async def run(self, *actors: Coroutine[Any, Any, object]) -> None:
        """Let actors live through the day. When it is over all of them sleep, and are dismissed.

        Raises:
            ExceptionGroup: an actor failed; the others were cancelled.
        """
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(actor) for actor in actors]
            self._awake = len(tasks)
            for task in tasks:
                task.add_done_callback(lambda _: self._one_less())
            await self._all_asleep.wait()
            while self._wake_next():
                await self._all_asleep.wait()
            for task in tasks:
                task.cancel()

    def _one_less(self) -> None:
        self._awake -= 1
        if self._awake == 0:
            self._all_asleep.set()

    def _wake_next(self) -> bool:
        """Go on to the next step in which somebody wakes; False when that is not today."""
        self._all_asleep.clear()
        if not self._asleep or self._asleep[0][0] >= STEPS:
            return False
        self.step = self._asleep[0][0]
        self._now = self.at(self.step)
        while self._asleep and self._asleep[0][0] == self.step:
            heappop(self._asleep)[2].set_result(None)
            self._awake += 1
        return True


def _heed_cancellation() -> None:
    """Be cancelled, if that was asked for and got lost on the way.

    Until Python 3.12, `asyncio.wait_for` (in which psycopg's pool waits) swallows a cancellation that comes in the same
    turn of the event loop as what it waited for: https://github.com/python/cpython/issues/86296.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def together(*calls: Coroutine[Any, Any, Any]) -> None:
    """Make calls at once, and wait for all of them; when one fails the others are cancelled."""
    async with asyncio.TaskGroup() as group:
        for call in calls:
            group.create_task(call)
