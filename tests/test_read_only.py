"""A server that takes no writes: waited for within the deadline, then named, with the remedy; reads go on."""

import time
from collections.abc import Iterator
from concurrent.futures import wait
from contextlib import contextmanager
from typing import Any, Final

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from psycopg.sql import SQL, Identifier

from eventstore import Unavailable
from tests.callers import KINDS, LONGEST, Call, Callers, callers, created, one, outcome
from tests.observing import backends, terminate, types
from tests.waiting import until

PATIENT: Final = 20.0
HASTY: Final = 0.75
GRACE: Final = 1.0


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def patient(kind: str, dsn: str) -> Iterator[Callers]:
    """A registry that is patient enough for anything."""
    with callers(kind, dsn, timeout=PATIENT) as opened:
        yield opened


@contextmanager
def within(seconds: float) -> Iterator[None]:
    start = time.monotonic()
    yield
    assert time.monotonic() - start < seconds


@contextmanager
def read_only(observer: psycopg.Connection[Any]) -> Iterator[None]:
    """Make new sessions of this database read-only, and end those there are; at the end, new ones write again."""
    database = Identifier(observer.info.dbname)
    observer.execute(SQL("ALTER DATABASE {} SET default_transaction_read_only = on").format(database))
    terminate(observer, backends(observer))
    yield
    observer.execute(SQL("ALTER DATABASE {} RESET default_transaction_read_only").format(database))


def test_writes_wait_for_a_read_only_server_to_take_them_and_reads_go_on(
    patient: Callers, connection: psycopg.Connection[Any]
) -> None:
    commands = created(patient, 16)
    with read_only(connection):
        under_way = patient.at_once([Call("increment_attempt", command_id) for command_id in commands])
        until(lambda: patient.registry.stats().retries >= 4, "the writes to be refused")
        reads = [Call("get_command_status", command_id, timeout=PATIENT / 4) for command_id in commands]
        assert [outcome(each).attempt for each in patient.at_once(reads)] == [1] * 16
        assert len(one(patient, "history", commands[0])) == 1
        assert not any(each.done() for each in under_way)
    assert [each.result(LONGEST) for each in under_way] == [2] * 16
    assert one(patient, "increment_attempt", commands[0]) == 3


@pytest.mark.parametrize("number", [1, 32])
def test_a_server_that_stays_read_only_is_named_to_every_caller_with_the_remedy(
    patient: Callers, connection: psycopg.Connection[Any], number: int
) -> None:
    commands = created(patient, number)
    with read_only(connection):
        under_way = patient.at_once([Call("increment_attempt", each, timeout=HASTY) for each in commands])
        late = wait(under_way, HASTY + GRACE).not_done
        told = [outcome(each) for each in under_way]
    assert not late
    assert {type(error) for error in told} == {Unavailable}
    unnamed = [str(error) for error in told if "read-only" not in str(error)]
    assert not unnamed, f"{len(unnamed)} of {number} callers were told: {unnamed[0]}"
    assert all("target_session_attrs=read-write" in str(error) for error in told)
    assert one(patient, "increment_attempt", commands[0]) == 2


def test_a_read_only_server_is_named_to_the_hasty_neighbours_of_the_patient(
    patient: Callers, connection: psycopg.Connection[Any]
) -> None:
    commands = created(patient, 32)
    times = [PATIENT, HASTY] * 16
    with read_only(connection):
        under_way = patient.at_once(
            [Call("increment_attempt", each, timeout=limit) for each, limit in zip(commands, times, strict=True)]
        )
        told = [outcome(each) for each in under_way[1::2]]
    assert [each.result(LONGEST) for each in under_way[::2]] == [2] * 16
    unnamed = [repr(error) for error in told if type(error) is not Unavailable or "read-only" not in str(error)]
    assert not unnamed, f"{len(unnamed)} of 16 callers were told: {unnamed[0]}"
    for command_id in commands[1::2]:
        assert types(connection, command_id) == ["CommandCreated"]


def test_with_the_remedy_calls_wait_for_a_server_that_takes_writes(
    kind: str, dsn: str, connection: psycopg.Connection[Any]
) -> None:
    with callers(kind, make_conninfo(dsn, target_session_attrs="read-write"), timeout=PATIENT) as opened:
        commands = created(opened, 8)
        with read_only(connection):
            under_way = opened.at_once([Call("increment_attempt", command_id) for command_id in commands])
            pool = opened.registry.database._pool
            until(lambda: pool.get_stats().get("connections_errors", 0) >= 2, "attempts to connect")
            assert not any(each.done() for each in under_way)
        assert [each.result(LONGEST) for each in under_way] == [2] * 8


def test_the_callers_own_read_only_transaction_is_named_at_once_and_still_reads(
    patient: Callers, dsn: str, connection: psycopg.Connection[Any]
) -> None:
    [command_id] = created(patient)
    own = patient.connect(dsn)
    patient.ask(own, "SELECT set_config('transaction_read_only', 'on', true)")
    with within(GRACE):
        [told] = map(outcome, patient.at_once([Call("increment_attempt", command_id, connection=own)]))
    assert type(told) is Unavailable
    assert "read-only" in str(told)
    assert patient.registry.stats().retries == 0
    assert patient.ask(own, "SELECT attempt FROM command_registry.command_status_v1") == [(1,)]
    patient.disconnect(own)
    assert types(connection, command_id) == ["CommandCreated"]
