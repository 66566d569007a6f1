"""Fault: callers on asyncio are cancelled, at any await: by cancel(), by a timeout of their own, by their task group.

Promise: what they had called is there whole or not at all; neighbours in the same batch get their answers; and a
registry that is cancelled while it opens, or closed while it is called, answers everybody and leaves nothing behind.
"""

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from typing import Any, Final

import psycopg
import pytest

from registry import AsyncPostgresCommandRegistry, OutcomeUnknown, Unavailable
from registry.testing.recording import Recorder
from tests.callers import KINDS, LONGEST, Call, Script, Tasks, callers
from tests.faults.clients import Timed, closed
from tests.load import Load, check_whole, chosen_seed
from tests.observing import backends
from tests.soak import rounds
from tests.waiting import until

CALLERS: Final = {"threads": 8, "asyncio": 48}
PATIENT: Final = 20.0
GRACE: Final = 1.0
ABANDONED: Final = rounds(300, 60_000)
CLOSINGS: Final = rounds(3, 100)


class Abandoned(Exception):
    """The caller was cancelled."""


class _Neighbour(Exception):
    """Fails, and takes its task group with it."""


async def turns(number: int) -> None:
    """Let the loop turn so many times."""
    for _ in range(number):
        await asyncio.sleep(0)


Abandoning = Callable[[Coroutine[Any, Any, Any], random.Random], Coroutine[Any, Any, Any]]


async def cancelled(call: Coroutine[Any, Any, Any], dice: random.Random) -> Any:
    """Cancel a call after some turns of the loop."""
    task = asyncio.ensure_future(call)
    await turns(int(2 ** dice.uniform(0, 10)))
    task.cancel()
    return await task


async def timed_out(call: Coroutine[Any, Any, Any], dice: random.Random) -> Any:
    """Give a call a few milliseconds."""
    async with asyncio.timeout(dice.uniform(0, 0.05)):
        return await call


async def waited_for(call: Coroutine[Any, Any, Any], dice: random.Random) -> Any:
    """Wait for a call for a few milliseconds."""
    return await asyncio.wait_for(call, dice.uniform(0, 0.05))


async def in_a_group_that_fails(call: Coroutine[Any, Any, Any], dice: random.Random) -> Any:
    """Make a call in a task group, where another task fails."""

    async def neighbour() -> None:
        await turns(int(2 ** dice.uniform(0, 10)))
        raise _Neighbour

    async with asyncio.TaskGroup() as group:
        made = group.create_task(call)
        group.create_task(neighbour())
    return made.result()


WAYS: Final[Sequence[Abandoning]] = [cancelled, timed_out, waited_for, in_a_group_that_fails]


class Impatient(Tasks):
    """Tasks that call a registry, of which every other one is cancelled in most of its calls."""

    def __init__(self, dsn: str, seed: int, **settings: Any) -> None:
        super().__init__(dsn, **settings)
        self._seed = seed

    def drive(self, scripts: Sequence[Script]) -> list[Future[None]]:
        """Let callers call."""

        def dice(number: int) -> random.Random:
            return random.Random(f"{self._seed}/cancelled/{number}")  # noqa: S311 - to be replayed

        return self._start(
            lambda: [
                self._abandon(script, dice(number)) if number % 2 else self._drive(script)
                for number, script in enumerate(scripts)
            ]
        )

    async def _abandon(self, script: Script, dice: random.Random) -> None:
        call = next(script, None)
        while call is not None:
            way = dice.choice(WAYS) if dice.random() < 0.8 else None
            made = call.on(self.registry)
            try:
                answer = await (way(made, dice) if way else made)
            except (asyncio.CancelledError, TimeoutError, ExceptionGroup) as error:
                call = self._next(script, error)
            except Exception as error:
                call = _sent(script.throw, error)
            else:
                call = _sent(script.send, answer)

    def _next(self, script: Script, error: BaseException) -> Call | None:
        if isinstance(error, ExceptionGroup):
            _, mine = error.split(_Neighbour)
            if mine is not None:
                return _sent(script.throw, mine.exceptions[0])
        return _sent(script.throw, Abandoned())


def _sent(resume: Callable[[Any], Call], value: Any) -> Call | None:
    try:
        return resume(value)
    except StopIteration:
        return None


def test_under_load_callers_cancelled_at_any_await_leave_whole_commits_or_none_and_their_neighbours_unharmed(
    dsn: str, connection: psycopg.Connection[Any]
) -> None:
    seed = chosen_seed()
    load = Load(seed, Recorder(), tolerates=(Abandoned,))
    opened = Impatient(dsn, seed, timeout=PATIENT)
    try:
        with load.calling(opened, CALLERS["asyncio"]):
            until(lambda: load.told["Abandoned"] >= ABANDONED, "enough calls to be cancelled")
        held = opened.registry._open_now.writes._held, opened.registry._open_now.reads._held
        tasks = {task.get_coro().__qualname__ for task in asyncio.all_tasks(opened._loop)}  # type: ignore[union-attr]
    finally:
        opened.close()
    load.check(dsn)
    unknown = {each.request_id for each in load.recorder.history() if each.end is None and each.trouble}
    assert held == (0, 0)
    assert not [name for name in tasks if "_serve" in name or "submit" in name]
    happened = connection.execute(
        "SELECT count(*) FROM command_registry.events WHERE metadata ->> 'request_id' = ANY(%s)", (list(unknown),)
    ).fetchall()
    print(f"{len(unknown)} calls were cancelled, of which {happened[0][0]} had written")


# Opening and closing.


async def open_now(dsn: str, number: int) -> bool:
    """Cancel an opening after so many turns of the loop; tell whether it was opened all the same."""
    registry = AsyncPostgresCommandRegistry.open(dsn)
    before = asyncio.all_tasks()
    opening = asyncio.create_task(registry.connect())
    await turns(number)
    is_open = opening.done()
    opening.cancel()
    try:
        await opening
    except asyncio.CancelledError:
        pass
    else:  # open; in Python 3.11 also when wait_for, within the pool, got its answer and the cancellation at once
        await registry.close()
    await turns(3)
    assert asyncio.all_tasks() == before, f"left after {number} turns"
    return is_open


def test_an_opening_that_is_cancelled_at_any_await_leaves_no_task_thread_or_connection(
    dsn: str, connection: psycopg.Connection[Any]
) -> None:
    threads = threading.active_count()
    number, opened = 0, False
    while not opened:
        number += 1 + number // rounds(8, 64)
        opened = asyncio.run(open_now(dsn, number))
        assert number < 50_000
    print(f"cancelled after 1 to {number} turns of the loop")
    assert threading.active_count() == threads
    until(lambda: backends(connection) == [], "the connections to end")


async def close_now(dsn: str, number: int) -> bool:
    """Cancel a closing after so many turns of the loop; tell whether it was closed before."""
    registry = AsyncPostgresCommandRegistry.open(dsn, timeout=PATIENT)
    before = asyncio.all_tasks()
    await registry.connect()
    calls: list[asyncio.Task[Any]] = [asyncio.create_task(registry.create_command("dep", "x")) for _ in range(8)]
    calls += [asyncio.create_task(registry.history("x")) for _ in range(4)]
    await turns(number % 7)
    closing = asyncio.create_task(registry.close())
    await turns(number)
    is_closed = closing.done()
    closing.cancel()
    await asyncio.wait({closing, *calls}, timeout=5)
    assert all(call.done() for call in calls), "a call was never answered"
    for call in calls:
        error = call.exception()
        assert error is None or isinstance(error, Unavailable | OutcomeUnknown), error
    await registry.close()
    await turns(3)
    left = asyncio.all_tasks() - before
    assert not left, f"left after {number} turns: {left}"
    return is_closed


def test_a_closing_that_is_cancelled_at_any_await_answers_every_call_and_leaves_no_task_or_connection(
    dsn: str, connection: psycopg.Connection[Any]
) -> None:
    number, is_closed = 0, False
    while not is_closed:
        number += 1 + number // rounds(8, 64)
        is_closed = asyncio.run(close_now(dsn, number))
        assert number < 50_000
        until(lambda: backends(connection) == [], f"the connections to end after {number} turns")
    print(f"cancelled after 1 to {number} turns of the loop")


@pytest.mark.parametrize("kind", KINDS)
def test_closing_a_registry_under_load_answers_every_call_and_leaves_nothing_behind(
    kind: str, dsn: str, connection: psycopg.Connection[Any]
) -> None:
    seed = chosen_seed()
    timed = Timed()
    told: Counter[str] = Counter()
    threads = threading.active_count()
    for turn in range(CLOSINGS):
        load = Load(seed + turn, timed, tolerates=(Unavailable, OutcomeUnknown))
        with callers(kind, dsn, timeout=PATIENT) as opened:
            with load.calling(opened, CALLERS[kind], first=1_000 * turn):
                until(lambda: load.answered >= 50 * turn, "calls to be answered")  # noqa: B023
                load.ends = True  # each makes its last call
                closed(opened).result(LONGEST)
            assert not load.waiting
            until(lambda: backends(connection) == [], "the connections to end")
        until(lambda: threading.active_count() <= threads, "the threads to end")
        told += load.told
    check_whole(dsn, timed.history())
    print(f"{len(timed.durations)} calls, the longest {timed.longest()[0]:.2f} s; {dict(told)}")
