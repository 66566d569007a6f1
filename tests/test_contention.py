"""Writers of the same commands, in one process and in several: all make progress, and nobody waits without need."""

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import wait
from dataclasses import dataclass
from typing import Any, Final

import psycopg
import pytest

from eventstore import Unavailable
from registry import PostgresCommandRegistry
from tests.callers import KINDS, LONGEST, Call, Callers, Script, callers, created, outcome
from tests.observing import backends, deadlocks, types
from tests.waiting import until

COMMANDS: Final = 3
CALLERS: Final = {"threads": 8, "asyncio": 20}
CALLS: Final = 3_000
"""Of each process."""
QUIET_CALLS: Final = 20
PATIENT: Final = 30.0
HASTY: Final = 1.0
GRACE: Final = 1.0
STANDSTILL: Final = 0.9
"""Which share of its calls a process may make at most while the other one makes none."""


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def patient(kind: str, dsn: str) -> Iterator[Callers]:
    """A registry that is patient enough for anything."""
    with callers(kind, dsn, timeout=PATIENT) as opened:
        yield opened


# Two processes.

INCREMENT: Final = """
import json, sys, time
from tests.callers import Call, callers

kind, dsn, number, calls, *commands = sys.argv[1:]
answers = []

def caller(first):
    for turn in range(int(calls) // int(number)):
        command_id = commands[(first + turn) % len(commands)]
        attempt = yield Call("increment_attempt", command_id)
        answers.append((command_id, attempt, time.monotonic()))

with callers(kind, dsn, timeout=60) as opened:
    print("ready", flush=True)
    sys.stdin.readline()
    for each in opened.drive([caller(first) for first in range(int(number))]):
        each.result()
    print(json.dumps([answers, opened.registry.stats().conflicts]))
"""


@dataclass(frozen=True)
class Told:
    """What the callers of one process were told, and when."""

    answers: list[tuple[str, int, float]]
    conflicts: int

    @property
    def times(self) -> list[float]:
        return sorted(at for _, _, at in self.answers)


def two_processes(kind: str, dsn: str, commands: list[str]) -> list[Told]:
    """Let two processes with many callers each increment the same commands at the same time."""
    arguments = [sys.executable, "-c", INCREMENT, kind, dsn, str(CALLERS[kind]), str(CALLS), *commands]
    processes = [
        subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    told = []
    for process in processes:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        answers, conflicts = json.loads(output)
        told.append(Told([(command_id, attempt, at) for command_id, attempt, at in answers], conflicts))
    return told


def most_in_a_gap(of: list[float], others: list[float]) -> int:
    """Count the most calls that the others had answered between two of these, or before the first."""
    gaps = zip([0.0, *of], of, strict=False)
    return max(sum(begin < at < end for at in others) for begin, end in gaps)


def test_two_processes_that_fight_over_a_few_commands_both_make_progress_all_along(
    kind: str, dsn: str, patient: Callers, connection: psycopg.Connection[Any]
) -> None:
    commands = created(patient, COMMANDS)
    told = two_processes(kind, dsn, commands)
    for command_id in commands:
        attempts = sorted(attempt for each in told for to, attempt, _ in each.answers if to == command_id)
        assert attempts == list(range(2, len(attempts) + 2))
        assert len(types(connection, command_id)) == len(attempts) + 1
    assert [len(each.answers) for each in told] == [CALLS, CALLS]
    first, second = (each.times for each in told)
    gaps = (most_in_a_gap(first, second), most_in_a_gap(second, first))
    print(f"conflicts: {[each.conflicts for each in told]}; most answers to one while the other had none: {gaps}")
    assert max(gaps) < STANDSTILL * CALLS
    assert sum(each.conflicts for each in told) > 0, "they did not meet"
    assert deadlocks(connection) == 0


def test_a_statement_of_many_writes_them_in_the_order_of_their_ids_so_that_no_two_wait_for_each_other(
    patient: Callers, connection: psycopg.Connection[Any]
) -> None:
    commands = created(patient, 64)
    calls = [Call("increment_attempt", command_id) for command_id in commands]
    assert [each.result(LONGEST) for each in patient.at_once(calls[::-1])] == [2] * 64
    together: dict[str, list[str]] = {}
    rows = connection.execute("SELECT transaction_id::text, stream_id FROM command_registry.events ORDER BY position")
    for transaction_id, stream_id in rows:
        together.setdefault(transaction_id, []).append(stream_id)
    assert max(map(len, together.values())) > 2
    assert all(stream_ids == sorted(stream_ids) for stream_ids in together.values())


# One process: a hot command, and others.


def test_a_hot_command_does_not_hold_up_the_others_of_the_same_process(kind: str, dsn: str, patient: Callers) -> None:
    [hot] = created(patient)
    quiet = created(patient, CALLERS[kind])
    hot_told: list[int] = []
    quiet_told: dict[str, list[int]] = {command_id: [] for command_id in quiet}
    ended = False

    def forever() -> Script:
        while not ended:
            hot_told.append((yield Call("increment_attempt", hot)))

    def some_times(command_id: str) -> Script:
        for _ in range(QUIET_CALLS):
            quiet_told[command_id].append((yield Call("increment_attempt", command_id)))

    with callers(kind, dsn, timeout=PATIENT) as rivals:
        heat = [*rivals.drive([forever() for _ in range(4)]), *patient.drive([forever() for _ in range(4)])]
        until(lambda: len(hot_told) >= 40, "the command to be hot")
        before = len(hot_told)
        late = wait(patient.drive([some_times(command_id) for command_id in quiet]), LONGEST).not_done
        meanwhile = len(hot_told) - before
        ended = True
        for each in heat:
            each.result(LONGEST)
    print(f"{QUIET_CALLS * len(quiet)} calls on quiet commands, {meanwhile} on the hot one meanwhile")
    assert not late
    assert list(quiet_told.values()) == [list(range(2, QUIET_CALLS + 2))] * len(quiet)
    assert sorted(hot_told) == list(range(2, len(hot_told) + 2))
    assert 0 < meanwhile < 10 * QUIET_CALLS * len(quiet)


# A caller's open transaction holds a command.


@pytest.fixture
def others(dsn: str) -> Iterator[PostgresCommandRegistry]:
    """The registry that writes in the callers' own transactions."""
    with PostgresCommandRegistry.open(dsn) as registry:
        yield registry


@pytest.mark.parametrize(("ends", "attempt"), [("commit", 3), ("rollback", 2)])
def test_a_command_held_by_a_callers_transaction_holds_up_its_own_writers_only(
    patient: Callers,
    others: PostgresCommandRegistry,
    dsn: str,
    connection: psycopg.Connection[Any],
    ends: str,
    attempt: int,
) -> None:
    held, *free = created(patient, 24)
    with psycopg.connect(dsn) as own:
        others.increment_attempt(held, connection=own)
        held_up = patient.at_once([Call("increment_attempt", held)])
        for turn in (2, 3, 4):
            held_up += patient.at_once([Call("increment_attempt", held)])
            under_way = patient.at_once([Call("increment_attempt", command_id) for command_id in free])
            assert not wait(under_way, 2 * GRACE).not_done
            assert [each.result() for each in under_way] == [turn] * len(free)
        until(lambda: backends(connection, waiting=True), "a writer to wait")
        assert not any(each.done() for each in held_up)
        getattr(own, ends)()
        assert sorted(each.result(LONGEST) for each in held_up) == list(range(attempt, attempt + 4))


def test_who_has_no_time_to_wait_for_a_callers_transaction_is_told_so_and_the_patient_wait_on(
    patient: Callers, others: PostgresCommandRegistry, dsn: str, connection: psycopg.Connection[Any]
) -> None:
    [held] = created(patient)
    with psycopg.connect(dsn) as own:
        others.increment_attempt(held, connection=own)
        waiting_on = patient.at_once([Call("increment_attempt", held)])
        hasty = patient.at_once([Call("increment_attempt", held, timeout=HASTY)] * 4)
        late = wait(hasty, HASTY + GRACE).not_done
        told = [outcome(each) for each in hasty]
        assert not any(each.done() for each in waiting_on)
        own.rollback()
        assert [each.result(LONGEST) for each in waiting_on] == [2]
    assert not late
    assert [error for error in told if type(error) is not Unavailable] == []
    assert [str(error) for error in told if "did not let go" not in str(error)] == []
    assert types(connection, held) == ["CommandCreated", "AttemptIncremented"]
