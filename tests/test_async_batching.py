"""What only tasks can do to a batch: be cancelled, and come in numbers that nobody has room for."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from eventstore import Unavailable, batching
from eventstore.batching import AsyncBatcher
from eventstore.database import AsyncDatabase
from tests.batchers import Ask, Desk, held, opened
from tests.conftest import Databases
from tests.waiting import until


@pytest.fixture(scope="module")
def shared_dsn(servers: Callable[[str], Databases]) -> Iterator[str]:
    """One database for all tests: nothing is written there."""
    databases = servers("default")
    name = databases.create()
    yield databases.dsn(name)
    databases.drop(name)


@pytest.fixture
def observer(shared_dsn: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(shared_dsn, autocommit=True) as observer:
        yield observer


# Cancelled.


def test_a_caller_that_is_cancelled_in_the_queue_is_never_served(
    shared_dsn: str, observer: psycopg.Connection[Any]
) -> None:
    first, gone, staying = map(Ask, ["first", "gone", "staying"])
    with opened("asyncio", shared_dsn, desk := Desk(), lanes=1) as batcher, held(observer, first) as lock:
        answers = [batcher.ask(first)]
        lock.until_it_waits()
        cancelled = batcher.submit(gone)
        until(lambda: batcher.queued() == 1)
        answers += batcher.queue(staying)
        cancelled.cancel()
        until(lambda: gone.settled)
        lock.release()
        assert [answer.result(5) for answer in answers] == ["first", "staying"]
    assert desk.batches == [["first"], ["staying"]]


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_caller_that_is_cancelled_under_way_takes_nobody_with_it(
    shared_dsn: str, observer: psycopg.Connection[Any], place: int
) -> None:
    first, *others = map(Ask, ["first", "a", "b", "c"])
    with (
        opened("asyncio", shared_dsn, desk := Desk(), lanes=1) as batcher,
        held(observer, first) as lock,
        held(observer, others[0]) as second,
    ):
        under_way = [batcher.submit(first)]
        lock.until_it_waits()
        for number, call in enumerate(others, 1):
            under_way.append(batcher.submit(call))
            until(lambda number=number: batcher.queued() == number)  # type: ignore[misc]
        lock.release()
        second.until_it_waits()
        under_way[1 + place].cancel()
        until(lambda: others[place].settled)
        second.release()
        for number, future in enumerate(under_way):
            if number != 1 + place:
                future.result(5)
    assert desk.done == ["first", "a", "b", "c"]  # whole, with what the cancelled one had asked for
    names = [call.result() for call in others]
    assert names[:place] + names[place + 1 :] == [name for name in "abc" if name != "abc"[place]]


def test_when_all_callers_of_a_lane_are_cancelled_the_next_is_served(
    shared_dsn: str, observer: psycopg.Connection[Any]
) -> None:
    first, second = map(Ask, ["first", "second"])
    with opened("asyncio", shared_dsn, desk := Desk(), lanes=1) as batcher, held(observer, first) as lock:
        under_way = batcher.submit(first)
        lock.until_it_waits()
        queued = batcher.submit(second)
        until(lambda: batcher.queued() == 1)
        under_way.cancel()
        queued.cancel()
        until(lambda: first.settled and second.settled)
        lock.release()
        assert batcher.ask(Ask("next")).result(5) == "next"
    assert desk.batches == [["first"], ["next"]]


# No room.


@pytest.fixture
def room_for_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "MAX_WAITING", 2)


@pytest.mark.usefixtures("room_for_two")
def test_who_finds_no_room_waits_outside_and_is_let_in_in_turn(
    shared_dsn: str, observer: psycopg.Connection[Any]
) -> None:
    calls = [Ask(f"call {number}") for number in range(12)]
    with opened("asyncio", shared_dsn, desk := Desk(), lanes=1) as batcher, held(observer, calls[0]) as lock:
        answers = [batcher.ask(calls[0])]
        lock.until_it_waits()
        answers += batcher.queue(calls[1])
        for number, call in enumerate(calls[2:], 1):
            answers.append(batcher.ask(call))
            until(lambda number=number: batcher.waiting_for_room() == number)  # type: ignore[misc]
        assert batcher.queued() == 1
        lock.release()
        assert [answer.result(5) for answer in answers] == [call.name for call in calls]
        assert batcher.waiting_for_room() == batcher.queued() == 0
    assert max(map(len, desk.batches)) <= 2
    assert [name for batch in desk.batches for name in batch] == [call.name for call in calls]


@pytest.mark.usefixtures("room_for_two")
def test_who_finds_no_room_in_time_is_told_so_and_takes_nobodys(
    shared_dsn: str, observer: psycopg.Connection[Any]
) -> None:
    first, second, hasty, patient = map(Ask, ["first", "second", "hasty", "patient"])
    with opened("asyncio", shared_dsn, desk := Desk(), lanes=1) as batcher, held(observer, first) as lock:
        answers = [batcher.ask(first)]
        lock.until_it_waits()
        answers += batcher.queue(second)
        late = batcher.ask(hasty, timeout=0.2)
        answers.append(batcher.ask(patient))
        with pytest.raises(Unavailable, match=r"2 calls were waiting for 0\.2 s"):
            late.result(5)
        lock.release()
        assert [answer.result(5) for answer in answers] == ["first", "second", "patient"]
    assert "hasty" not in desk.done


@pytest.mark.usefixtures("room_for_two")
def test_who_is_cancelled_while_waiting_for_room_takes_nobodys(
    shared_dsn: str, observer: psycopg.Connection[Any]
) -> None:
    first, second, gone, staying = map(Ask, ["first", "second", "gone", "staying"])
    with opened("asyncio", shared_dsn, desk := Desk(), lanes=1) as batcher, held(observer, first) as lock:
        answers = [batcher.ask(first)]
        lock.until_it_waits()
        answers += batcher.queue(second)
        cancelled = batcher.submit(gone)
        until(lambda: batcher.waiting_for_room() == 1)
        answers.append(batcher.ask(staying))
        until(lambda: batcher.waiting_for_room() == 2)
        cancelled.cancel()
        lock.release()
        assert [answer.result(5) for answer in answers] == ["first", "second", "staying"]
    assert "gone" not in desk.done


async def test_who_is_cancelled_just_when_there_is_room_leaves_it_to_the_next(
    shared_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "MAX_WAITING", 1)
    async with AsyncDatabase(shared_dsn) as database:
        batcher: AsyncBatcher[Ask] = AsyncBatcher(database, desk := Desk(), lanes=1)

        async def first() -> None:
            await batcher.submit(Ask("first"), 20.0)
            gone.cancel()  # who has been let in, and does not know it yet

        leading = asyncio.create_task(first())
        await asyncio.sleep(0)
        gone = asyncio.create_task(batcher.submit(Ask("gone"), 20.0))
        staying = asyncio.create_task(batcher.submit(Ask("staying"), 5.0))
        await asyncio.gather(leading, gone, return_exceptions=True)
        assert gone.cancelled()
        await staying
        assert desk.batches == [["first"], ["staying"]]
        await batcher.close()


async def test_a_newcomer_does_not_push_in_before_those_who_wait_for_room(
    shared_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "MAX_WAITING", 1)
    async with AsyncDatabase(shared_dsn) as database:
        batcher: AsyncBatcher[Ask] = AsyncBatcher(database, desk := Desk(), lanes=1)

        async def greedy() -> None:
            for number in range(3):
                await batcher.submit(Ask(f"greedy {number}"), 20.0)

        greed = asyncio.create_task(greedy())
        await asyncio.sleep(0)
        modest = asyncio.create_task(batcher.submit(Ask("modest"), 20.0))
        await asyncio.gather(greed, modest)
        await batcher.close()
    assert desk.batches[:2] == [["greedy 0"], ["modest"]]


# Closed, and left.


@pytest.mark.usefixtures("room_for_two")
def test_when_it_is_closed_nobody_is_left_waiting_for_room(shared_dsn: str, observer: psycopg.Connection[Any]) -> None:
    first, *others = [Ask(f"call {number}") for number in range(6)]
    with opened("asyncio", shared_dsn, desk := Desk(), lanes=1) as batcher, held(observer, first) as lock:
        answer = batcher.ask(first)
        lock.until_it_waits()
        late = [batcher.ask(call) for call in others]
        until(lambda: batcher.waiting_for_room() == 4)
        closed = batcher.close()
        until(lambda: late[0].done())
        lock.release()
        assert answer.result(5) == first.name
        closed.result(5)
        for call, each in zip(others, late, strict=True):
            if each.exception(5) is None:
                assert each.result() == call.name
            else:
                assert isinstance(each.exception(), Unavailable)
                assert call.name not in desk.done


async def test_closing_waits_for_what_is_under_way(shared_dsn: str) -> None:
    async with AsyncDatabase(shared_dsn) as database:
        batcher: AsyncBatcher[Ask] = AsyncBatcher(database, desk := Desk(), lanes=1)
        call = Ask("a")
        task = asyncio.create_task(batcher.submit(call, 20.0))
        while not desk.batches:  # noqa: ASYNC110 - by turns of the loop, not by time
            await asyncio.sleep(0)
        await batcher.close()
        assert desk.done == ["a"]
        await task
        assert call.result() == "a"


async def test_an_idle_batcher_leaves_no_task_and_no_timer_behind(shared_dsn: str) -> None:
    async with AsyncDatabase(shared_dsn) as database:
        batcher: AsyncBatcher[Ask] = AsyncBatcher(database, Desk())
        for number in range(5):
            await batcher.submit(Ask(str(number)), 20.0)
        assert batcher._timer is not None
        batcher._timer.cancel()
        for _ in range(10):
            await asyncio.sleep(0)
        assert batcher._under_way == {}
        batcher._look_at_deadlines()
        assert batcher._timer is None
        await batcher.submit(Ask("later"), 20.0)
        assert batcher._timer is not None
        await batcher.close()
