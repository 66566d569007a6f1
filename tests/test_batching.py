"""Many callers, one statement: who goes together with whom, who waits for whom, and for how long."""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import psycopg
import pytest

from eventstore import Unavailable
from eventstore.steps import Plan, Step
from tests.batchers import KINDS, Ask, Desk, answer_each, held, opened
from tests.conftest import Databases
from tests.waiting import until

GRACE = 1.0


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


Open = Callable[..., Any]


@pytest.fixture(params=KINDS)
def open_batcher(request: pytest.FixtureRequest, shared_dsn: str) -> Open:
    """Opens a batcher of either kind, of one lane unless told otherwise."""
    return lambda work, **settings: opened(request.param, shared_dsn, work, **({"lanes": 1} | settings))


@contextmanager
def within(seconds: float) -> Iterator[None]:
    start = time.monotonic()
    yield
    assert time.monotonic() - start < seconds


# Who goes together.


def test_a_lone_call_goes_at_once_and_by_itself(open_batcher: Open) -> None:
    with open_batcher(desk := Desk()) as batcher:
        for name in "abc":
            assert batcher.ask(Ask(name)).result() == name
    assert desk.batches == [["a"], ["b"], ["c"]]
    assert (batcher.metrics.calls, batcher.metrics.batch_size.max) == (3, 1)


def test_calls_that_come_while_a_batch_is_under_way_go_together_in_the_next(
    open_batcher: Open, observer: psycopg.Connection[Any]
) -> None:
    first, second, *others = map(Ask, "abcd")
    with open_batcher(desk := Desk()) as batcher, held(observer, first) as lock:
        answers = [batcher.ask(first)]
        lock.until_it_waits()
        answers += batcher.queue(second)
        since = time.monotonic()
        answers += batcher.queue(*others)
        assert not any(answer.done() for answer in answers)
        waited = time.monotonic() - since
        lock.release()
        assert [answer.result() for answer in answers] == list("abcd")
    assert desk.batches == [["a"], ["b", "c", "d"]]
    metrics = batcher.metrics
    assert (metrics.calls, metrics.batch_size.count, metrics.batch_size.sum, metrics.batch_size.max) == (4, 2, 4, 3)
    assert (metrics.queue_time.count, metrics.statement_time.count) == (2, 2)
    assert metrics.queue_time.max > waited
    assert metrics.statement_time.max > waited


def test_no_batch_is_larger_than_it_may_be(open_batcher: Open, observer: psycopg.Connection[Any]) -> None:
    first, *others = [Ask(f"call {number}") for number in range(9)]
    with open_batcher(desk := Desk(), max_batch=3) as batcher, held(observer, first) as lock:
        answers = [batcher.ask(first)]
        lock.until_it_waits()
        answers += batcher.queue(*others)
        lock.release()
        assert [answer.result() for answer in answers] == [first.name, *[call.name for call in others]]
    assert [len(batch) for batch in desk.batches] == [1, 3, 3, 2]
    assert list(chain(*desk.batches)) == [first.name, *[call.name for call in others]]


def test_calls_of_one_key_share_a_lane_and_no_lane_waits_for_another(
    open_batcher: Open, observer: psycopg.Connection[Any]
) -> None:
    slow, behind, quick = Ask("slow", key=2), Ask("behind", key=2), Ask("quick", key=3)
    with open_batcher(desk := Desk(), lanes=2) as batcher, held(observer, slow) as lock:
        late = [batcher.ask(slow)]
        lock.until_it_waits()
        late += batcher.queue(behind)
        assert batcher.ask(quick).result() == "quick"
        assert not any(answer.done() for answer in late)
        lock.release()
        assert [answer.result() for answer in late] == ["slow", "behind"]
    assert list(zip(desk.batches, desk.lanes, strict=True)) == [(["slow"], 0), (["quick"], 1), (["behind"], 0)]


def test_of_many_calls_each_is_made_once_and_given_its_own_answer(open_batcher: Open) -> None:
    calls = [Ask(f"call {number}", key=number % 7) for number in range(1_500)]
    with open_batcher(desk := Desk(), lanes=2, max_batch=16) as batcher:
        answers = [batcher.ask(call) for call in calls]
        assert [answer.result(60) for answer in answers] == [call.name for call in calls]
        assert batcher.queued() == 0
    assert sorted(chain(*desk.batches)) == sorted(call.name for call in calls)
    assert batcher.metrics.calls == len(calls)
    assert len(desk.batches) < len(calls)


# Whose time passes.


def test_a_call_whose_time_passes_in_the_queue_ends_with_its_deadline_and_is_never_made(
    open_batcher: Open, observer: psycopg.Connection[Any]
) -> None:
    first, hasty, patient = map(Ask, ["first", "hasty", "patient"])
    with open_batcher(desk := Desk()) as batcher, held(observer, first) as lock:
        answer = batcher.ask(first)
        lock.until_it_waits()
        with within(0.3 + GRACE):
            [late] = batcher.queue(hasty, timeout=0.3)
            in_time = batcher.ask(patient)
            with pytest.raises(Unavailable, match="within the timeout"):
                late.result()
        assert not answer.done()
        lock.release()
        assert [answer.result(), in_time.result()] == ["first", "patient"]
    assert desk.batches == [["first"], ["patient"]]


def test_a_call_whose_time_passes_under_way_ends_with_its_deadline(
    open_batcher: Open, observer: psycopg.Connection[Any]
) -> None:
    call = Ask("slow")
    with open_batcher(Desk()) as batcher, held(observer, call) as lock:
        with within(0.5 + GRACE):
            answer = batcher.ask(call, timeout=0.5)
            lock.until_it_waits()
            with pytest.raises(Unavailable):
                answer.result()
        lock.release()
        assert batcher.ask(Ask("next")).result() == "next"


@pytest.mark.parametrize("hasty_first", [True, False])
def test_a_call_that_has_more_time_than_its_neighbour_is_made_all_the_same(
    open_batcher: Open, observer: psycopg.Connection[Any], hasty_first: bool
) -> None:
    first, hasty, patient = map(Ask, ["first", "hasty", "patient"])
    together = [hasty, patient] if hasty_first else [patient, hasty]
    with open_batcher(desk := Desk()) as batcher, held(observer, first) as lock, held(observer, together[0]) as second:
        answer = batcher.ask(first)
        lock.until_it_waits()
        begun = time.monotonic()
        answers = {call.name: batcher.queue(call, timeout=0.8 if call is hasty else 20.0)[0] for call in together}
        lock.release()
        second.until_it_waits()
        with pytest.raises(Unavailable):
            answers["hasty"].result()
        assert time.monotonic() - begun < 0.8 + GRACE
        second.release()
        assert [answer.result(), answers["patient"].result()] == ["first", "patient"]
    assert "patient" in desk.done


# What goes wrong.


def test_an_error_of_the_work_reaches_every_call_that_it_left_unanswered(
    open_batcher: Open, observer: psycopg.Connection[Any]
) -> None:
    def answer_one(calls: Sequence[Ask]) -> Plan[None]:
        yield from answer_each(calls[:1])
        if len(calls) > 1:
            raise LookupError("no such thing")

    first, *others = map(Ask, "abcd")
    with open_batcher(Desk(answer_one)) as batcher, held(observer, first) as lock:
        answers = [batcher.ask(first)]
        lock.until_it_waits()
        answers += batcher.queue(*others)
        lock.release()
        assert [answers[0].result(), answers[1].result()] == ["a", "b"]
        for answer in answers[2:]:
            with pytest.raises(LookupError, match="no such thing"):
                answer.result()
        assert batcher.ask(Ask("next")).result() == "next"


def test_what_the_server_says_of_a_statement_reaches_its_callers(open_batcher: Open) -> None:
    def divide(calls: Sequence[Ask]) -> Plan[None]:
        if calls[0].name == "bad":
            yield Step("SELECT 1 / 0")
        yield from answer_each(calls)

    with open_batcher(Desk(divide)) as batcher:
        with pytest.raises(psycopg.errors.DivisionByZero):
            batcher.ask(Ask("bad")).result()
        assert batcher.ask(Ask("good")).result() == "good"


def test_a_listener_to_the_figures_that_fails_harms_nobody(
    open_batcher: Open, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(name: str, value: float) -> None:
        raise ZeroDivisionError(name)

    with open_batcher(Desk()) as batcher:
        batcher.metrics.listener = fail
        assert batcher.ask(Ask("a")).result(5) == "a"
        assert batcher.ask(Ask("b")).result(5) == "b"
    assert "the listener to the figures failed" in caplog.text


def test_what_a_batch_leaves_unsettled_comes_again_in_the_next(open_batcher: Open) -> None:
    def at_the_third_time(calls: Sequence[Ask]) -> Plan[None]:
        if len(desk.batches) >= 3:
            yield from answer_each(calls)

    desk = Desk(at_the_third_time)
    with open_batcher(desk) as batcher:
        assert batcher.ask(Ask("patient")).result() == "patient"
    assert len(desk.batches) == 3


def test_a_call_that_goes_aside_does_not_hold_up_its_lane(
    open_batcher: Open, observer: psycopg.Connection[Any]
) -> None:
    def but_one(calls: Sequence[Ask]) -> Plan[None]:
        for call in calls:
            call.aside = call.name == "blocked"
        together = [call for call in calls if not call.aside]
        if together or desk.lanes[-1] is None:
            yield from answer_each(together or calls)

    desk = Desk(but_one)
    blocked = Ask("blocked", key=1)
    with open_batcher(desk) as batcher, held(observer, blocked) as lock:
        late = batcher.ask(blocked)
        lock.until_it_waits()
        for name in "abc":
            assert batcher.ask(Ask(name)).result(5) == name
        behind = batcher.ask(Ask("behind", key=1))
        assert batcher.ask(Ask("d")).result(5) == "d"
        assert not late.done()
        lock.release()
        assert [late.result(5), behind.result(5)] == ["blocked", "behind"]
    assert [lane for batch, lane in zip(desk.batches, desk.lanes, strict=True) if "blocked" in batch] == [0, None]
    assert [lane for batch, lane in zip(desk.batches, desk.lanes, strict=True) if "behind" in batch] == [None]


def test_when_it_is_closed_who_waits_is_told_and_who_is_under_way_is_answered(
    open_batcher: Open, observer: psycopg.Connection[Any]
) -> None:
    first, *others = map(Ask, "abcd")
    with open_batcher(desk := Desk()) as batcher, held(observer, first) as lock:
        answer = batcher.ask(first)
        lock.until_it_waits()
        late = batcher.queue(*others)
        closed = batcher.close()
        until(lambda: batcher.is_closing(), "closing")
        lock.release()
        assert answer.result() == "a"
        for each in late:
            with pytest.raises(Unavailable, match="closed"):
                each.result(5)
        closed.result(5)
    assert desk.done == ["a"]


# Threads.


class Interrupted(KeyboardInterrupt):
    """What Ctrl-C raises, in a test's own thread."""


def test_an_interrupt_in_the_thread_that_leads_strands_nobody(
    shared_dsn: str, observer: psycopg.Connection[Any]
) -> None:
    def interrupt(calls: Sequence[Ask]) -> Plan[None]:
        yield from answer_each(calls if calls[0].name != "leader" else calls[1:2])
        if calls[0].name == "leader":
            raise Interrupted

    first, *others = map(Ask, ["first", "leader", "b", "c"])
    with opened("threads", shared_dsn, desk := Desk(interrupt), lanes=1) as batcher, held(observer, first) as lock:
        answers = [batcher.ask(first)]
        lock.until_it_waits()
        answers += batcher.queue(*others)
        lock.release()
        assert [answers[index].result(5) for index in (0, 2, 3)] == ["first", "b", "c"]
        with pytest.raises(Interrupted):
            answers[1].result(5)
        assert batcher.ask(Ask("next")).result(5) == "next"
    assert desk.batches == [["first"], ["leader", "b", "c"], ["c"], ["next"]]


def test_an_interrupt_in_a_thread_that_waits_strands_nobody(shared_dsn: str, observer: psycopg.Connection[Any]) -> None:
    def interrupt(number: int, frame: object) -> None:
        raise Interrupted

    first, mine, behind = map(Ask, ["first", "mine", "behind"])
    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with opened("threads", shared_dsn, desk := Desk(), lanes=1) as batcher, held(observer, first) as lock:
            answer = batcher.ask(first)
            lock.until_it_waits()
            me = threading.get_ident()

            def disturb() -> None:
                until(lambda: batcher.queued() == 1)
                signal.pthread_kill(me, signal.SIGUSR1)

            thread = threading.Thread(target=disturb)
            thread.start()
            with pytest.raises(Interrupted):
                batcher.batcher.submit(mine, 20.0)
            thread.join()
            [late] = batcher.queue(behind)
            lock.release()
            assert [answer.result(5), late.result(5)] == ["first", "behind"]
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert desk.batches == [["first"], ["behind"]]
