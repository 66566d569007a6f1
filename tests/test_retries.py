"""Statements that the server undoes through no fault of their own: sent again, within bounds, or named."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any, Final

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from psycopg.sql import SQL, Identifier

from eventstore import Unavailable, steps
from eventstore.steps import Plan, Row, Step, arun, run
from registry import (
    PostgresCommandRegistry,
)
from tests.callers import KINDS, LONGEST, NOON, Call, Callers, callers, created, one, outcome
from tests.observing import backends, by_request, deadlocks, types
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


UNDOES: Final = """
    CREATE SEQUENCE public.tries;
    CREATE FUNCTION public.undo() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF nextval('public.tries') <= TG_ARGV[0]::int THEN
            RAISE EXCEPTION 'undone' USING ERRCODE = TG_ARGV[1];
        END IF;
        RETURN NULL;
    END
    $$;
"""
TRIGGER: Final = """
    CREATE TRIGGER undoes AFTER INSERT ON command_registry.{table}
    FOR EACH STATEMENT EXECUTE FUNCTION public.undo({times}, {sqlstate})
"""
SERIALIZATION_FAILURE: Final = "40001"
DEADLOCK: Final = "40P01"
ALWAYS: Final = 1_000_000

undone = pytest.mark.parametrize("sqlstate", [SERIALIZATION_FAILURE, DEADLOCK])


def undo(observer: psycopg.Connection[Any], times: int, sqlstate: str, table: str = "events") -> None:
    """From now on, let the server undo the first so many writes."""
    observer.execute(UNDOES)
    observer.execute(SQL(TRIGGER).format(table=Identifier(table), times=times, sqlstate=sqlstate))


def tries(observer: psycopg.Connection[Any]) -> int:
    """Count the writes that were tried since."""
    [(count,)] = observer.execute("SELECT last_value FROM public.tries")
    return int(count)


@undone
@pytest.mark.parametrize("table", ["events", "command_status_v1"])
def test_a_write_that_the_server_undoes_is_sent_again(
    patient: Callers, connection: psycopg.Connection[Any], sqlstate: str, table: str
) -> None:
    [command_id] = created(patient)
    undo(connection, 3, sqlstate, table)
    assert one(patient, "increment_attempt", command_id) == 2
    assert (patient.registry.stats().retries, tries(connection)) == (3, 4)
    assert types(connection, command_id) == ["CommandCreated", "AttemptIncremented"]


@undone
def test_many_writes_that_the_server_undoes_all_succeed_once(
    patient: Callers, connection: psycopg.Connection[Any], sqlstate: str
) -> None:
    commands = created(patient, 32)
    undo(connection, 6, sqlstate)
    under_way = patient.at_once([Call("increment_attempt", each, request_id=each) for each in commands])
    assert [each.result(LONGEST) for each in under_way] == [2] * 32
    assert patient.registry.stats().retries == 6
    assert {each: len(events) for each, events in by_request(connection).items()} == dict.fromkeys(commands, 1)


@undone
def test_a_server_that_undoes_every_write_is_named_within_the_deadline(
    patient: Callers, connection: psycopg.Connection[Any], sqlstate: str
) -> None:
    [command_id] = created(patient)
    undo(connection, ALWAYS, sqlstate)
    with within(HASTY + GRACE):
        [told] = map(outcome, patient.at_once([Call("increment_attempt", command_id, timeout=HASTY)]))
    assert type(told) is Unavailable
    assert "undone" in str(told)
    assert 3 <= tries(connection) <= 40
    assert types(connection, command_id) == ["CommandCreated"]


def test_the_error_names_no_more_attempts_than_there_were(
    patient: Callers, connection: psycopg.Connection[Any]
) -> None:
    [command_id] = created(patient)
    undo(connection, ALWAYS, SERIALIZATION_FAILURE)
    [told] = map(outcome, patient.at_once([Call("increment_attempt", command_id, timeout=HASTY / 5)]))
    [named] = map(int, re.findall(r"(\d+) times in a row", str(told)))
    assert named <= tries(connection)


@undone
def test_in_the_callers_transaction_what_the_server_undoes_is_told_at_once_and_leaves_it_usable(
    patient: Callers, dsn: str, connection: psycopg.Connection[Any], sqlstate: str
) -> None:
    [command_id] = created(patient)
    undo(connection, 1, sqlstate)
    own = patient.connect(dsn)
    [told] = map(outcome, patient.at_once([Call("increment_attempt", command_id, connection=own)]))
    assert isinstance(told, psycopg.Error)
    assert told.sqlstate == sqlstate
    assert one(patient, "increment_attempt", command_id, connection=own) == 2
    patient.disconnect(own)
    assert types(connection, command_id) == ["CommandCreated"]


UNDONE: Final = Step("SELECT public.raise_undone()", writes=True)
RAISE_UNDONE: Final = """
    CREATE FUNCTION public.raise_undone() RETURNS void LANGUAGE plpgsql AS $$
    BEGIN RAISE EXCEPTION 'undone' USING ERRCODE = '40001'; END
    $$
"""


def pauses(kind: str, dsn: str, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Run a plan that the server always undoes, and give the pauses that it made, or would have made."""
    made: list[float] = []

    async def sleep(seconds: float) -> None:
        made.append(seconds)

    clock = SimpleNamespace(sleep=made.append, monotonic=time.monotonic, perf_counter=time.perf_counter)
    monkeypatch.setattr(steps, "time", clock)
    monkeypatch.setattr(steps, "asyncio", SimpleNamespace(sleep=sleep))

    def plan() -> Plan[list[Row]]:
        return (yield UNDONE)

    @asynccontextmanager
    async def lend(timeout: float) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
            yield connection

    with psycopg.connect(dsn, autocommit=True) as connection, pytest.raises(Unavailable, match="undone"):
        asyncio.run(arun(lend, plan(), LONGEST)) if kind == "asyncio" else run(
            lambda _: nullcontext(connection), plan(), LONGEST
        )
    return made


def test_the_pauses_between_attempts_grow_are_bounded_and_are_never_the_same_for_two(
    kind: str, dsn: str, connection: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    connection.execute(RAISE_UNDONE)
    first, second = (pauses(kind, dsn, monkeypatch) for _ in range(2))
    for made in (first, second):
        assert 3 <= len(made) <= 20
        assert 0 < made[0] < 0.05
        assert made[-1] > 10 * made[0]
        assert max(made) < 5
    assert not set(first) & set(second)


# Real deadlocks.


def two_overdue(opened: Callers) -> list[str]:
    """Create two overdue commands, in the order in which one statement writes them."""
    return sorted(one(opened, "create_command", "dep", "x", deadline=NOON).command_id for _ in range(2))


def test_a_deadlock_with_a_callers_transaction_that_ends_the_registrys_statement_is_invisible(
    kind: str, dsn: str, connection: psycopg.Connection[Any]
) -> None:
    with (
        callers(kind, make_conninfo(dsn, options="-c deadlock_timeout=1500ms"), timeout=PATIENT) as opened,
        PostgresCommandRegistry.open(dsn) as others,
        psycopg.connect(dsn) as own,
    ):
        first, second = two_overdue(opened)
        own.execute("SET deadlock_timeout = '1min'")
        others.increment_attempt(second, connection=own)
        [sweep] = opened.at_once([Call("expire_overdue", NOON)])
        until(lambda: backends(connection, waiting=True), "the expiry to wait")
        assert others.increment_attempt(first, connection=own) == 2
        own.commit()
        assert sorted(sweep.result(LONGEST)) == [first, second]
        assert opened.registry.stats().retries >= 1
    until(lambda: deadlocks(connection) >= 1, "the server to tell of the deadlock")
    for command_id in (first, second):
        assert types(connection, command_id) == ["CommandCreated", "AttemptIncremented", "CommandTransitioned"]


def test_a_deadlock_that_ends_the_callers_own_statement_is_named_and_the_registry_goes_on(
    kind: str, dsn: str, connection: psycopg.Connection[Any]
) -> None:
    with (
        callers(kind, make_conninfo(dsn, options="-c deadlock_timeout=1min"), timeout=PATIENT) as opened,
        PostgresCommandRegistry.open(dsn) as others,
        psycopg.connect(dsn) as own,
    ):
        first, second = two_overdue(opened)
        own.execute("SET deadlock_timeout = '20ms'")
        others.increment_attempt(second, connection=own)
        [sweep] = opened.at_once([Call("expire_overdue", NOON)])
        until(lambda: backends(connection, waiting=True), "the expiry to wait")
        with pytest.raises(psycopg.errors.DeadlockDetected):
            others.increment_attempt(first, connection=own)
        assert own.execute("SELECT 'usable'").fetchone() == ("usable",)
        own.rollback()
        assert sorted(sweep.result(LONGEST)) == [first, second]
        assert opened.registry.stats().retries == 0


def test_a_batch_lets_go_before_it_is_in_a_deadlock_with_a_callers_transaction(
    kind: str, dsn: str, patient: Callers, connection: psycopg.Connection[Any]
) -> None:
    commands = sorted(created(patient, 16))
    with PostgresCommandRegistry.open(dsn) as others, psycopg.connect(dsn) as own:
        others.increment_attempt(commands[-1], connection=own)
        under_way = patient.at_once([Call("increment_attempt", command_id) for command_id in commands])
        until(lambda: backends(connection, waiting=True), "the batch to wait")
        own_answers = [others.increment_attempt(command_id, connection=own) for command_id in commands[:-1]]
        own.commit()
        answers = [each.result(LONGEST) for each in under_way]
    assert answers[-1] == 3
    assert [sorted(both) for both in zip(own_answers, answers[:-1], strict=True)] == [[2, 3]] * 15
    assert patient.registry.stats().retries == 0
    assert deadlocks(connection) == 0
