"""How long a call may take: its own time and no more; a server that is back before then is not missed."""

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from typing import Any, Final

import psycopg
import pytest

from eventstore import Unavailable
from registry import (
    AsyncMemoryCommandRegistry,
    AsyncPostgresCommandRegistry,
    CommandState,
    InvalidCommand,
    MemoryCommandRegistry,
    PostgresCommandRegistry,
)
from tests.callers import KINDS, LONGEST, NOON, Call, Callers, callers, created, outcome
from tests.load import chosen_seed, under_load
from tests.observing import by_request
from tests.proxy import Proxy, proxied
from tests.waiting import until

CALLERS: Final = {"threads": 8, "asyncio": 48}
PATIENT: Final = 20.0
HASTY: Final = 0.75
GRACE: Final = 1.0


@pytest.fixture
def proxy(dsn: str) -> Iterator[Proxy]:
    with proxied(dsn) as proxy:
        yield proxy


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def patient(kind: str, dsn: str) -> Iterator[Callers]:
    """A registry that is patient enough for anything."""
    with callers(kind, dsn, timeout=PATIENT) as opened:
        yield opened


def every_call(command_id: str, timeout: Any) -> list[Call]:
    """Make one call of each kind, with a time of its own."""
    calls: list[tuple[Any, ...]] = [
        ("create_command", "dep", "x"),
        ("update_command_state", command_id, CommandState.DISPATCHED),
        ("complete_command", command_id, CommandState.FAILED, NOON),
        ("mark_dispatched_if_not_terminal", command_id, NOON),
        ("increment_attempt", command_id),
        ("expire_overdue", NOON),
        ("get_command_metadata", command_id),
        ("get_command_status", command_id),
        ("get_command_access_context", command_id),
        ("history", command_id),
        ("resolve_target", "dep"),
    ]
    return [
        *(Call(name, *args, timeout=timeout) for name, *args in calls),
        Call("status_at", command_id, version=1, timeout=timeout),
    ]


@pytest.fixture
def with_directory(kind: str, dsn: str, proxy: Proxy, connection: psycopg.Connection[Any]) -> Iterator[Callers]:
    """A patient registry behind the proxy that looks deployments up in the database."""
    connection.execute("""
        INSERT INTO command_registry.deployments (id, workspace_id, project_id, deployment_model, name)
        VALUES ('dep', 'ws', 'prj', 'pull', 'dep')
    """)
    with callers(kind, proxy.dsn(dsn), timeout=PATIENT, deployments="table") as opened:
        yield opened
        proxy.come_back()


@pytest.mark.parametrize("goes_wrong", [Proxy.fall_silent, Proxy.go_away, Proxy.hang_up])
def test_no_call_outlives_its_own_timeout_by_a_second(
    with_directory: Callers, proxy: Proxy, goes_wrong: Callable[[Proxy], None]
) -> None:
    [command_id] = created(with_directory)
    goes_wrong(proxy)
    calls = every_call(command_id, HASTY)
    under_way = with_directory.at_once(calls)
    late = wait(under_way, HASTY + GRACE).not_done
    proxy.come_back()
    assert not late, [call for call, each in zip(calls, under_way, strict=True) if each in late]
    told = [outcome(each) for each in under_way]
    assert [error for error in told if not isinstance(error, Unavailable)] == []


@pytest.mark.parametrize("timeout", [0, -1, -0.0, math.nan, math.inf, -math.inf, 1e7, "1", True, False, b"1", [1.0]])
def test_a_time_that_is_no_positive_number_of_seconds_is_refused_by_name(patient: Callers, timeout: object) -> None:
    [command_id] = created(patient)
    calls = every_call(command_id, timeout)
    for call, told in zip(calls, map(outcome, patient.at_once(calls)), strict=True):
        assert isinstance(told, InvalidCommand), call
        assert told.field == "timeout"
    for registry in (PostgresCommandRegistry, AsyncPostgresCommandRegistry):
        with pytest.raises(InvalidCommand, match=r"^timeout: "):
            registry("postgresql:///", timeout=timeout)  # type: ignore[arg-type]
    with pytest.raises(InvalidCommand, match=r"^timeout: "):
        MemoryCommandRegistry().increment_attempt(command_id, timeout=timeout)  # type: ignore[arg-type]
    with pytest.raises(InvalidCommand, match=r"^timeout: "):
        asyncio.run(AsyncMemoryCommandRegistry().get_command_status(command_id, timeout=timeout))  # type: ignore[arg-type]


def test_neighbours_with_more_time_succeed_when_the_server_is_back_and_are_not_harmed_by_the_hasty(
    kind: str, dsn: str, proxy: Proxy, connection: psycopg.Connection[Any]
) -> None:
    with callers(kind, proxy.dsn(dsn), timeout=PATIENT) as opened:
        commands = created(opened, 32)
        calls = [
            Call("increment_attempt", command_id, request_id=command_id, timeout=(HASTY, PATIENT)[number % 2])
            for number, command_id in enumerate(commands)
        ]
        proxy.go_away()
        under_way = opened.at_once(calls)
        late = wait(under_way[::2], HASTY + GRACE).not_done
        told = [outcome(each) for each in under_way[::2]]
        answered_already = [each for each in under_way[1::2] if each.done()]
        proxy.come_back()
        assert [each.result(LONGEST) for each in under_way[1::2]] == [2] * 16
    assert not late
    assert not answered_already
    assert [error for error in told if not isinstance(error, Unavailable)] == []
    stored = {command_id: len(events) for command_id, events in by_request(connection).items()}
    assert [stored[command_id] for command_id in commands[1::2]] == [1] * 16
    assert set(stored.values()) == {1}
    written = [
        each for each, error in zip(commands[::2], told, strict=True) if type(error) is Unavailable and each in stored
    ]
    assert not written, f"{len(written)} of 16 were told that nothing was written, and then it was"


def test_a_call_in_the_callers_transaction_does_not_outlive_its_timeout_either(
    kind: str, dsn: str, patient: Callers
) -> None:
    [command_id] = created(patient)
    with PostgresCommandRegistry.open(dsn) as others, psycopg.connect(dsn) as other:
        others.increment_attempt(command_id, connection=other)
        own = patient.connect(dsn)
        [call] = patient.at_once([Call("increment_attempt", command_id, connection=own, timeout=HASTY)])
        late = wait([call], HASTY + GRACE).not_done
        other.rollback()
        told = outcome(call)
        patient.disconnect(own)
    assert not late, f"it waited until the other transaction ended, and was told {told!r}"
    assert isinstance(told, Unavailable)


@pytest.mark.parametrize("patience", [2.0])
def test_the_steps_of_one_call_share_its_time(
    kind: str, dsn: str, connection: psycopg.Connection[Any], patience: float
) -> None:
    connection.execute("""
        INSERT INTO command_registry.deployments (id, workspace_id, project_id, deployment_model, name)
        VALUES ('dep', 'ws', 'prj', 'pull', 'dep')
    """)
    with (
        callers(kind, dsn, timeout=PATIENT, deployments="table") as opened,
        psycopg.connect(dsn) as directory,
        psycopg.connect(dsn) as log,
    ):
        directory.execute("LOCK TABLE command_registry.deployments IN ACCESS EXCLUSIVE MODE")
        log.execute("LOCK TABLE command_registry.events IN SHARE MODE")
        start = time.monotonic()
        [call] = opened.at_once([Call("create_command", "dep", "x", timeout=patience)])
        until(lambda: time.monotonic() > start + 0.8 * patience)
        directory.rollback()
        late = wait([call], start + patience + GRACE - time.monotonic()).not_done
        log.rollback()
        told = outcome(call)
    assert not late, f"it had {patience} s for each of its steps"
    assert isinstance(told, Unavailable)


# A server that is away for a while.


@pytest.mark.parametrize("goes_wrong", [Proxy.go_away, Proxy.hang_up])
def test_every_kind_of_call_waits_for_a_server_that_is_away(
    with_directory: Callers, proxy: Proxy, goes_wrong: Callable[[Proxy], None]
) -> None:
    [command_id] = created(with_directory)
    goes_wrong(proxy)
    under_way = with_directory.at_once(every_call(command_id, PATIENT))
    pool = with_directory.registry.database._pool
    until(lambda: pool.get_stats().get("connections_errors", 0) >= 2, "attempts to connect")
    assert not any(each.done() for each in under_way)
    proxy.come_back()
    assert [told for told in map(outcome, under_way) if isinstance(told, Exception)] == []


@pytest.mark.parametrize("goes_wrong", [Proxy.go_away, Proxy.hang_up])
def test_all_calls_made_while_the_server_is_away_succeed_when_it_is_back(
    kind: str, dsn: str, proxy: Proxy, goes_wrong: Callable[[Proxy], None]
) -> None:
    seed = chosen_seed()
    with under_load(kind, proxy.dsn(dsn), number=CALLERS[kind], seed=seed, timeout=PATIENT) as load:
        until(lambda: load.answered >= 100, "calls to be answered")
        goes_wrong(proxy)
        until(lambda: load.registry.database._pool.get_stats().get("connections_errors", 0) >= 2, "attempts to connect")
        before = load.answered
        waiting = len(load.waiting)
        proxy.come_back()
        until(lambda: load.answered >= before + 100, "calls to be answered again")
    assert waiting == CALLERS[kind]
    load.check(dsn)
