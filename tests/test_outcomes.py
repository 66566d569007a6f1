"""What became of a write when its connection broke is found out, never guessed: nothing is lost, nothing is doubled."""

import random
from collections.abc import Iterator
from typing import Any, Final

import psycopg
import pytest

from registry import CommandState, PostgresCommandRegistry
from tests.callers import KINDS, LONGEST, NOON, Call, Callers, callers, created, one
from tests.load import chosen_seed, under_load
from tests.observing import backends, terminate, types
from tests.proxy import Fault, Proxy, proxied
from tests.waiting import until

CALLERS: Final = {"threads": 8, "asyncio": 48}
LOST_REPLIES: Final = 80
KILLS: Final = 30
PATIENT: Final = 20.0

# What each step of a write has, and no other statement.
LOAD: Final = b"CROSS JOIN LATERAL"
INSERT: Final = b"INSERT INTO command_registry.events"
LOOK_FOR_HASHES: Final = b"AS sent (stream_id, version)"
LOOK_FOR_KEYS: Final = b"FROM command_registry.idempotency_keys"


@pytest.fixture
def proxy(dsn: str) -> Iterator[Proxy]:
    with proxied(dsn) as proxy:
        yield proxy


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def patient(kind: str, dsn: str, proxy: Proxy) -> Iterator[Callers]:
    """A registry behind the proxy, patient enough for anything."""
    with callers(kind, proxy.dsn(dsn), timeout=PATIENT) as opened:
        yield opened


# Under load.


def test_under_load_no_lost_reply_loses_or_doubles_a_call(kind: str, dsn: str, proxy: Proxy) -> None:
    seed = chosen_seed()
    with under_load(kind, proxy.dsn(dsn), number=CALLERS[kind], seed=seed, rivals=dsn, timeout=PATIENT) as load:
        proxy.fail_at_random(INSERT, seed, {Fault.LOSE_REPLY: 0.25, Fault.CUT_BEFORE: 0.15})
        until(lambda: len(proxy.lost_tags) >= LOST_REPLIES, "enough lost replies")
        proxy.fail_at_random(INSERT, seed, {})
    load.check(dsn)
    committed = [int(tag.split()[-1]) for tag in proxy.lost_tags]
    print(f"{load.answered} calls; lost replies of {len(committed)} commits, of {sum(committed)} events")
    assert sum(events > 0 for events in committed) >= LOST_REPLIES - 10
    assert proxy.happened.count(Fault.CUT_BEFORE) >= 5
    assert load.metrics.unknown == 0


def test_under_load_no_statement_that_the_server_ends_after_the_client_has_lost_it_is_lost_or_doubled(
    kind: str, dsn: str, proxy: Proxy
) -> None:
    seed = chosen_seed()
    with under_load(kind, proxy.dsn(dsn), number=CALLERS[kind], seed=seed, rivals=dsn, timeout=PATIENT) as load:
        proxy.fail_at_random(INSERT, seed, {Fault.CUT_AT_WORK: 0.4})
        until(lambda: len(proxy.lost_tags) >= LOST_REPLIES, "enough statements cut off")
        proxy.fail_at_random(INSERT, seed, {})
    load.check(dsn)
    assert load.metrics.unknown == 0


def test_under_load_no_backend_that_is_terminated_loses_or_doubles_a_call(
    kind: str, dsn: str, connection: psycopg.Connection[Any]
) -> None:
    seed = chosen_seed()
    dice = random.Random(seed)  # noqa: S311 - to be replayed
    with under_load(kind, dsn, number=CALLERS[kind], seed=seed, timeout=PATIENT) as load:
        for _ in range(KILLS):
            goal = load.answered + dice.randrange(1, 40)
            until(lambda goal=goal: load.answered >= goal, "calls to be answered")  # type: ignore[misc]
            terminate(connection, [pid for pid in backends(connection) if dice.random() < 0.5], wait_ms=0)
    load.check(dsn)
    print(f"{load.answered} calls, {load.metrics.reconnections} reconnections")
    assert load.metrics.reconnections >= KILLS / 4


# At every step of a write.


@pytest.mark.parametrize("step", [LOAD, INSERT])
def test_a_backend_terminated_at_any_step_of_a_write_harms_nothing(
    patient: Callers, proxy: Proxy, connection: psycopg.Connection[Any], step: bytes
) -> None:
    [command_id] = created(patient)
    terminate(connection, backends(connection))  # so that nothing is remembered of it
    proxy.at(step, lambda: terminate(connection, backends(connection)))
    assert one(patient, "complete_command", command_id, CommandState.FAILED, NOON) is True
    assert types(connection, command_id) == ["CommandCreated", "CommandTransitioned"]


@pytest.mark.parametrize("step", [LOOK_FOR_KEYS, INSERT])
def test_a_backend_terminated_at_any_step_of_a_creation_with_a_key_harms_nothing(
    patient: Callers, proxy: Proxy, connection: psycopg.Connection[Any], step: bytes
) -> None:
    proxy.at(step, lambda: terminate(connection, backends(connection)))
    made = [one(patient, "create_command", "dep", "sync", idempotency_key="key") for _ in range(2)]
    assert made[0] == made[1]
    assert types(connection, made[0].command_id) == ["CommandCreated"]


@pytest.mark.parametrize("fault", [Fault.LOSE_REPLY, Fault.CUT_BEFORE, Fault.CUT_AT_WORK])
@pytest.mark.parametrize("after", [LOOK_FOR_HASHES, LOAD])
def test_a_backend_terminated_while_a_lost_write_is_looked_for_harms_nothing(
    patient: Callers, proxy: Proxy, connection: psycopg.Connection[Any], fault: Fault, after: bytes
) -> None:
    [command_id] = created(patient)
    proxy.fail_at(INSERT, fault)
    proxy.at(INSERT, lambda: proxy.at(after, lambda: terminate(connection, backends(connection))))
    assert one(patient, "complete_command", command_id, CommandState.FAILED, NOON) is True
    assert types(connection, command_id) == ["CommandCreated", "CommandTransitioned"]


def test_a_backend_terminated_in_the_midst_of_a_write_harms_nothing(
    patient: Callers, dsn: str, connection: psycopg.Connection[Any]
) -> None:
    commands = created(patient, 4)
    with psycopg.connect(dsn) as other:
        other.execute("LOCK TABLE command_registry.command_status_v1 IN SHARE MODE")
        calls = patient.at_once([Call("increment_attempt", command_id) for command_id in commands])
        until(lambda: backends(connection, waiting=True), "a write to wait for the lock")
        terminate(connection, backends(connection))
    assert [call.result() for call in calls] == [2] * 4
    for command_id in commands:
        assert types(connection, command_id) == ["CommandCreated", "AttemptIncremented"]


def test_a_place_that_another_writer_took_after_the_request_was_lost_is_not_the_calls_own(
    patient: Callers, dsn: str, proxy: Proxy, connection: psycopg.Connection[Any]
) -> None:
    incremented, completed = created(patient, 2)
    with PostgresCommandRegistry.open(dsn) as others:
        proxy.fail_at(INSERT, Fault.CUT_BEFORE)
        proxy.at(INSERT, lambda: others.increment_attempt(incremented))
        assert one(patient, "increment_attempt", incremented) == 3
        proxy.fail_at(INSERT, Fault.CUT_BEFORE)
        proxy.at(INSERT, lambda: others.complete_command(completed, CommandState.FAILED, NOON))
        assert one(patient, "complete_command", completed, CommandState.SUCCEEDED, NOON) is False
    assert types(connection, incremented) == ["CommandCreated", "AttemptIncremented", "AttemptIncremented"]
    assert types(connection, completed) == ["CommandCreated", "CommandTransitioned"]


# The server ends a statement only after the client has lost it.


@pytest.mark.parametrize(
    ("call", "answer", "event"),
    [
        (lambda command_id: Call("increment_attempt", command_id), 2, "AttemptIncremented"),
        (
            lambda command_id: Call("complete_command", command_id, CommandState.FAILED, NOON),
            True,
            "CommandTransitioned",
        ),
    ],
    ids=["increment", "complete"],
)
def test_a_commit_that_arrives_between_looking_for_it_and_reading_the_stream_is_the_calls_own(
    patient: Callers, dsn: str, proxy: Proxy, connection: psycopg.Connection[Any], call: Any, answer: Any, event: str
) -> None:
    [command_id] = created(patient)
    with psycopg.connect(dsn) as other:
        other.execute("LOCK TABLE command_registry.events IN SHARE MODE")

        def let_it_commit() -> None:
            other.rollback()
            until(lambda: len(types(connection, command_id)) > 1, "the lost statement to commit")

        def whatever_comes_next() -> None:
            proxy.at(LOAD, let_it_commit)
            proxy.at(INSERT, let_it_commit)

        proxy.fail_at(INSERT, Fault.CUT_AT_WORK)
        proxy.at(LOOK_FOR_HASHES, whatever_comes_next)
        [made] = patient.at_once([call(command_id)])
        assert made.result(LONGEST) == answer
    assert types(connection, command_id) == ["CommandCreated", event]
