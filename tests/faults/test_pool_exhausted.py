"""Fault: the server has no connection left (max_connections), or the registry none of its own (pool_size).

Promise: whoever opens a registry is told so within two seconds, in the server's words and with the remedy; a call waits
until its deadline, and is then told the same; what waits is bounded; and when there is a connection again, service
resumes by itself.
"""

import asyncio
import os
import random
import tempfile
import time
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest

from eventstore import Unavailable
from eventstore.batching import MAX_WAITING
from registry import AsyncPostgresCommandRegistry, PostgresCommandRegistry, embedded
from tests.callers import KINDS, LONGEST, NOON, Call, callers, created, outcome
from tests.conftest import HOME, Databases
from tests.faults.clients import timed_load
from tests.load import chosen_seed
from tests.observing import backends, terminate
from tests.soak import rounds
from tests.waiting import until

SLOTS: Final = 12
TIMEOUT: Final = 1.0
GRACE: Final = 1.0
CALLERS: Final = {"threads": 8, "asyncio": 48}
SQUEEZES: Final = rounds(5, 150)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def crowded() -> Iterator[Databases]:
    """A server with few connections."""
    home = Path(tempfile.mkdtemp(dir=os.environ[HOME]))
    home.chmod(0o711)
    settings = {"fsync": "off", "max_connections": str(SLOTS), "superuser_reserved_connections": "0"}
    with embedded.start(home, settings=settings) as server:
        databases = Databases(server.dsn)
        yield databases
        databases.close()


@pytest.fixture
def databases(crowded: Databases) -> Databases:
    return crowded


class Others:
    """Other programs, that take whatever connection is left, and let go of some."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._held: list[psycopg.Connection[Any]] = []

    def take_all(self) -> None:
        with suppress(psycopg.OperationalError):
            while True:
                self._held.append(psycopg.connect(self._dsn, application_name="others"))

    def let_go(self, number: int | None = None) -> None:
        for _ in range(len(self._held) if number is None else number):
            self._held.pop().close()


@pytest.fixture
def others(dsn: str, connection: psycopg.Connection[Any]) -> Iterator[Others]:
    opened = Others(dsn)
    yield opened
    opened.let_go()
    until(lambda: len(all_backends(connection)) <= 1, "connections to end")


def all_backends(observer: psycopg.Connection[Any]) -> Sequence[Any]:
    return observer.execute("SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend'").fetchall()


@contextmanager
def within(seconds: float) -> Iterator[None]:
    start = time.monotonic()
    yield
    assert time.monotonic() - start < seconds


def every_call(command_id: str) -> list[Call]:
    return [
        Call("increment_attempt", command_id),
        Call("create_command", "dep", "x", idempotency_key="key"),
        Call("get_command_status", command_id),
        Call("history", command_id),
        Call("expire_overdue", NOON),
    ]


# Opening.


def open_and_close(kind: str, dsn: str) -> None:
    async def opened() -> None:
        async with AsyncPostgresCommandRegistry.open(dsn):
            pass

    if kind == "asyncio":
        asyncio.run(opened())
    else:
        PostgresCommandRegistry.open(dsn).close()


def test_who_opens_a_registry_on_a_server_without_a_connection_left_is_told_at_once_and_how_to_mend_it(
    kind: str, dsn: str, others: Others
) -> None:
    others.take_all()
    with within(2.0), pytest.raises(Unavailable, match=r"too many clients already.*max_connections"):
        open_and_close(kind, dsn)
    others.let_go(1)
    until(lambda: opens(kind, dsn), "a registry to open over the last connection")


def opens(kind: str, dsn: str) -> bool:
    with suppress(Unavailable):
        open_and_close(kind, dsn)
        return True
    return False


# In use.


@pytest.mark.parametrize("pool_size", [1, 4])
def test_calls_are_told_that_the_server_has_no_connection_left_and_served_when_it_has(
    kind: str, dsn: str, connection: psycopg.Connection[Any], others: Others, pool_size: int
) -> None:
    with callers(kind, dsn, timeout=TIMEOUT, pool_size=pool_size) as opened:
        commands = created(opened, 16)
        until(lambda: backends(connection), "the registry to be connected")
        others.take_all()
        terminate(connection, backends(connection))
        others.take_all()
        calls = [call for command_id in commands for call in every_call(command_id)]
        under_way = opened.at_once(calls)
        late = wait(under_way, TIMEOUT + GRACE).not_done
        told = [outcome(each) for each in under_way]
        others.let_go()
        again = [
            outcome(each)
            for each in opened.at_once([Call(call.name, *call.args, timeout=20.0, **call.settings) for call in calls])
        ]
    assert not late, [call for call, each in zip(calls, under_way, strict=True) if each in late]
    assert {type(error) for error in told} == {Unavailable}, told
    assert [str(error) for error in told if "too many clients already" not in str(error)] == []
    assert [error for error in again if isinstance(error, Exception)] == []


def test_under_load_with_connections_taken_and_cut_at_random_no_call_is_lost_or_doubled(
    kind: str, dsn: str, connection: psycopg.Connection[Any], others: Others
) -> None:
    seed = chosen_seed()
    dice = random.Random(f"{seed}/slots")  # noqa: S311 - to be replayed
    with timed_load(kind, dsn, number=CALLERS[kind], seed=seed, tolerates=(Unavailable,), timeout=TIMEOUT) as (
        load,
        timed,
    ):
        for _ in range(SQUEEZES):
            goal = load.answered + dice.randrange(1, 60)
            until(lambda goal=goal: load.answered >= goal, "calls to be answered")  # type: ignore[misc]
            others.take_all()
            terminate(connection, [pid for pid in backends(connection) if dice.random() < 0.7], wait_ms=0)
            others.take_all()
            if dice.random() < 0.5:
                settled = load.answered + load.told["Unavailable"] + CALLERS[kind]
                until(lambda settled=settled: load.answered + load.told["Unavailable"] > settled, "time to pass")  # type: ignore[misc]
            others.let_go(None if dice.random() < 0.5 else 1)
        others.let_go()
        goal = load.answered + 100
        until(lambda: load.answered >= goal, "service to resume")
    load.check(dsn)
    longest, operation = timed.longest()
    told = [each.trouble for _, each in timed.durations if each.trouble and each.trouble.startswith("Unavailable")]
    named = sum("too many clients already" in trouble for trouble in told)
    print(f"{len(timed.durations)} calls, the longest {longest:.2f} s; {load.metrics.reconnections} reconnections")
    print(f"{named} of {len(told)} were told that there were too many clients")
    assert longest <= TIMEOUT + GRACE, operation


# The registry's own connections.


def test_who_finds_all_connections_of_the_registry_busy_is_told_so(
    kind: str, dsn: str, connection: psycopg.Connection[Any]
) -> None:
    with callers(kind, dsn, timeout=20.0, pool_size=2) as opened, psycopg.connect(dsn) as other:
        [command_id] = created(opened)
        other.execute("LOCK TABLE command_registry.events IN ACCESS EXCLUSIVE MODE")
        busy = opened.at_once([Call("history", command_id)] * 2)
        until(lambda: len(backends(connection, waiting=True)) == 2, "both connections to be busy")
        with within(TIMEOUT + GRACE):
            calls = [Call(call.name, *call.args, **call.settings, timeout=TIMEOUT) for call in every_call(command_id)]
            told = [outcome(each) for each in opened.at_once(calls)]
        other.rollback()
        assert [len(each.result(LONGEST)) for each in busy] == [1, 1]
        assert [each.result(LONGEST) for each in opened.at_once([Call("increment_attempt", command_id)])] == [2]
    assert {type(error) for error in told} == {Unavailable}
    assert [str(error) for error in told if "all 2 connections were busy" not in str(error)] == []


def test_however_many_tasks_call_at_once_what_waits_is_bounded_and_each_is_told_by_its_deadline(
    dsn: str, connection: psycopg.Connection[Any], others: Others, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = rounds(1_000, MAX_WAITING)
    monkeypatch.setattr("eventstore.batching.MAX_WAITING", most)
    calls = most + 1_000
    durations: list[float] = []

    async def timed(call: Coroutine[Any, Any, int]) -> int:
        start = time.monotonic()
        try:
            return await call
        finally:
            durations.append(time.monotonic() - start)

    async def crowd() -> tuple[int, list[Any], int]:
        async with AsyncPostgresCommandRegistry.open(dsn, timeout=20.0) as registry:
            command_id = (await registry.create_command("dep", "x")).command_id
            await asyncio.to_thread(others.take_all)
            await asyncio.to_thread(terminate, connection, backends(connection))
            await asyncio.to_thread(others.take_all)
            tasks = [
                asyncio.create_task(timed(registry.increment_attempt(command_id, timeout=2.0))) for _ in range(calls)
            ]
            await asyncio.sleep(0)
            held = registry._open_now.writes._held
            told = await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.to_thread(others.let_go)
            return held, told, await registry.increment_attempt(command_id)

    held, told, attempt = asyncio.run(crowd())
    print(f"{calls} calls, {held} held, the longest {max(durations):.2f} s")
    assert held == most
    assert {type(error) for error in told} == {Unavailable}
    assert attempt == 2
    assert max(durations) <= 2.0 + GRACE
