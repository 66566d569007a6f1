"""Writes whose outcome nobody can be asked for in time: each caller is told where to look, and may call again."""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import psycopg
import pytest

from eventstore import OutcomeUnknown, Unavailable
from registry import CommandState, PostgresCommandRegistry
from tests.callers import KINDS, NOON, Call, Callers, callers, created, one, outcome
from tests.observing import by_request, is_stored, types
from tests.proxy import Fault, Proxy, proxied
from tests.waiting import until

UNKNOWNS: Final = {"threads": 12, "asyncio": 50}
PATIENT: Final = 20.0
HASTY: Final = 1.0

INSERT: Final = b"INSERT INTO command_registry.events"
INSERT_MANY: Final = b'ORDER BY new.stream_id COLLATE "C"'


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
        proxy.come_back()


def completions_and_creations(commands: Sequence[str], turn: int, timeout: float | None = None) -> list[Call]:
    """Make calls that may be repeated: half complete commands, half create some with a key."""
    calls = []
    for number, command_id in enumerate(commands):
        settings: dict[str, Any] = {"request_id": f"{turn}/{number}", "timeout": timeout}
        if number % 2:
            calls.append(Call("complete_command", command_id, CommandState.SUCCEEDED, NOON, **settings))
        else:
            calls.append(Call("create_command", "dep", "x", idempotency_key=f"{turn}/{number}", **settings))
    return calls


def test_when_nobody_can_be_asked_each_caller_of_a_batch_is_told_where_to_look_and_may_call_again(
    kind: str, patient: Callers, proxy: Proxy, connection: psycopg.Connection[Any]
) -> None:
    unknown: list[OutcomeUnknown] = []
    committed = turn = 0
    while committed < UNKNOWNS[kind]:
        turn += 1
        assert turn <= 6, f"only {committed} outcomes were unknown and committed"
        commands = created(patient, 128)
        calls = completions_and_creations(commands, turn, HASTY)
        proxy.fail_at(INSERT_MANY, Fault.LOSE_REPLY_AND_GO_AWAY)
        outcomes = [outcome(each) for each in patient.at_once(calls)]
        stored = by_request(connection)
        for call, told in zip(calls, outcomes, strict=True):
            events = stored.get(call.settings["context"].request_id, [])
            if isinstance(told, OutcomeUnknown):
                unknown.append(told)
                committed += len(events)
                assert [(stream_id, sha) for stream_id, sha, _ in events] in ([], [(told.stream_id, told.hash)])
                assert bool(events) == is_stored(connection, told)
            elif isinstance(told, Unavailable):
                assert not events
            else:
                assert len(events) == 1
        proxy.come_back()
        check_repeated(patient, completions_and_creations(commands, turn), outcomes, connection)
    print(f"{len(unknown)} unknown outcomes, of which {committed} had committed")
    assert patient.registry.stats().unknown == len(unknown)


def check_repeated(
    opened: Callers, calls: Sequence[Call], outcomes: Sequence[Any], observer: psycopg.Connection[Any]
) -> None:
    """Make calls again, and check that each is in the log once, whatever became of it the first time."""
    before = by_request(observer)
    for call, told, again in zip(calls, outcomes, repeated(opened, calls), strict=True):
        request_id = call.settings["context"].request_id
        [(stream_id, _, _)] = by_request(observer)[request_id]
        if call.name == "create_command":
            assert again.command_id == stream_id
        else:
            assert again is (request_id not in before)
        if isinstance(told, OutcomeUnknown) and request_id in before:
            assert told.stream_id == stream_id


def repeated(opened: Callers, calls: Sequence[Call]) -> list[Any]:
    """Make calls once the server can be reached again."""
    until(lambda: outcome(opened.at_once([Call("history", "cmd")])[0]) == [], "the registry to find the server")
    return [each.result() for each in opened.at_once(calls)]


def test_of_a_batch_whose_answer_is_lost_in_silence_the_hasty_are_told_unknown_and_the_patient_succeed(
    kind: str, patient: Callers, proxy: Proxy, connection: psycopg.Connection[Any]
) -> None:
    made = created(patient, 32)
    calls = [
        Call("increment_attempt", command_id, request_id=command_id, timeout=HASTY if number % 2 else PATIENT)
        for number, command_id in enumerate(made)
    ]
    proxy.fail_at(INSERT_MANY, Fault.FALL_SILENT)
    under_way = patient.at_once(calls)
    hasty_outcomes = [outcome(each) for each in under_way[1::2]]
    assert any(isinstance(told, OutcomeUnknown) for told in hasty_outcomes)
    proxy.come_back()
    assert [each.result() for each in under_way[::2]] == [2] * 16
    stored = {command_id: len(events) for command_id, events in by_request(connection).items()}
    assert [stored[command_id] for command_id in made[::2]] == [1] * 16
    for command_id, told in zip(made[1::2], hasty_outcomes, strict=True):
        there = is_stored(connection, told) if isinstance(told, OutcomeUnknown) else told == 2
        assert stored.get(command_id, 0) == there


def test_an_expiry_whose_answer_is_lost_while_nobody_can_be_asked_is_unknown_and_may_be_repeated(
    patient: Callers, proxy: Proxy, connection: psycopg.Connection[Any]
) -> None:
    overdue = [one(patient, "create_command", "dep", "x", deadline=NOON).command_id for _ in range(3)]
    proxy.fail_at(INSERT, Fault.LOSE_REPLY_AND_GO_AWAY)
    [told] = map(outcome, patient.at_once([Call("expire_overdue", NOON, timeout=HASTY)]))
    for command_id in overdue:
        assert types(connection, command_id) == ["CommandCreated", "CommandTransitioned"]
    assert isinstance(told, OutcomeUnknown), f"it was written, and the caller was told {told!r}"
    assert told.stream_id in overdue
    assert is_stored(connection, told)
    assert patient.registry.stats().unknown == 1
    proxy.come_back()
    assert repeated(patient, [Call("expire_overdue", NOON)]) == [[]]


def test_an_expiry_that_was_told_that_nothing_was_written_is_not_written_later(
    patient: Callers, dsn: str, connection: psycopg.Connection[Any]
) -> None:
    overdue = one(patient, "create_command", "dep", "x", deadline=NOON).command_id
    with PostgresCommandRegistry.open(dsn) as others, psycopg.connect(dsn) as other:
        others.increment_attempt(overdue, connection=other)
        [told] = map(outcome, patient.at_once([Call("expire_overdue", NOON, timeout=HASTY / 2)]))
        assert isinstance(told, Unavailable)
        other.rollback()
    until(lambda: not active(connection), "the server to have done with it")
    if not isinstance(told, OutcomeUnknown):
        assert types(connection, overdue) == ["CommandCreated"], f"it is written, and the caller was told {told!r}"


def active(observer: psycopg.Connection[Any]) -> list[Any]:
    """List the backends of registries that are at work."""
    return observer.execute("""
        SELECT pid
        FROM pg_stat_activity
        WHERE application_name = 'command-registry' AND datname = current_database() AND state = 'active'
    """).fetchall()


def test_a_write_over_the_callers_connection_in_autocommit_whose_answer_is_lost_is_found_or_unknown(
    kind: str, dsn: str, proxy: Proxy, connection: psycopg.Connection[Any]
) -> None:
    with callers(kind, dsn, timeout=HASTY) as opened:
        [command_id] = created(opened)
        own = opened.connect(proxy.dsn(dsn), autocommit=True)
        proxy.fail_at(INSERT, Fault.LOSE_REPLY)
        [told] = map(outcome, opened.at_once([Call("increment_attempt", command_id, connection=own)]))
        opened.disconnect(own)
    assert types(connection, command_id) == ["CommandCreated", "AttemptIncremented"]
    assert told == 2 or isinstance(told, OutcomeUnknown), f"it was written, and the caller was told {told!r}"
