"""Batches of writes, stepped by hand to force every race: the other writer first, the key used, the command held."""

from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import ANY

import pytest

from eventstore import Unavailable
from eventstore.steps import Blocked
from registry import CommandState, IdempotencyConflict
from registry.writing import States, Write
from tests.batches import Log, completion, create, increment, increments, opened_log, update
from tests.conftest import Databases


@pytest.fixture(scope="module")
def log(servers: Callable[[str], Databases]) -> Iterator[Log]:
    with opened_log(servers) as log:
        yield log


def settled(writes: list[Write[int]]) -> list[bool]:
    return [write.settled for write in writes]


def results(writes: list[Write[int]]) -> list[int]:
    return [write.result() for write in writes]


# One statement.


def test_a_batch_is_loaded_by_one_statement_and_written_by_one(log: Log) -> None:
    writes: list[Write[Any]] = [*increments(log.commands(3)), *[create() for _ in range(3)]]
    batch = log.batch(writes)
    assert not batch.pending.writes
    batch.take()
    assert batch.pending.writes
    assert not any(write.settled for write in writes)
    batch.take()
    assert batch.step is None
    assert [write.result() for write in writes[:3]] == [2, 2, 2]
    assert [log.version(write.command_id) for write in writes] == [2, 2, 2, 1, 1, 1]


def test_several_calls_on_one_command_get_consecutive_versions_in_one_statement(log: Log) -> None:
    mine, neighbour = log.commands(2)
    dispatched = update(mine, CommandState.DISPATCHED)
    done, late = completion(mine), completion(mine, CommandState.FAILED)
    writes: list[Write[Any]] = [
        increment(mine),
        increment(neighbour),
        dispatched,
        increment(mine),
        done,
        late,
        increment(mine),
    ]
    batch = log.batch(writes).to_the_write().take()
    assert batch.step is None
    assert [write.result() for write in writes] == [2, 2, True, 3, True, False, 3]
    assert log.version(neighbour) == 2
    assert log.events(mine) == [
        (1, "CommandCreated"),
        (2, "AttemptIncremented"),
        (3, "CommandTransitioned"),
        (4, "AttemptIncremented"),
        (5, "CommandTransitioned"),
    ]
    assert log.version(mine) == 5


def test_a_refusal_that_follows_from_an_event_of_the_batch_waits_for_its_commit(log: Log) -> None:
    [mine] = log.commands(1)
    batch = log.batch([completion(mine), late := completion(mine)]).to_the_write()
    assert not late.settled
    with pytest.raises(Unavailable):
        batch.throw(Unavailable("away"))
    assert not late.settled
    assert log.version(mine) == 1


# The other writer comes first.


def test_when_another_writer_comes_first_all_are_written_and_the_moved_one_is_decided_again(log: Log) -> None:
    commands = log.commands(3)
    writes = increments(commands)
    batch = log.batch(writes).to_the_write()
    assert log.other.increment_attempt(commands[1]) == 2
    batch.take()
    assert settled(writes) == [False] * 3
    batch.to_the_end()
    assert results(writes) == [2, 3, 2]
    assert [log.version(command) for command in commands] == [2, 3, 2]


def test_what_others_write_to_does_not_hold_up_what_is_ours_alone(log: Log) -> None:
    commands = log.commands(3)
    states = States()
    log.write(increments(commands), states)
    writes = increments(commands)
    batch = log.batch(writes, states).to_the_write()
    log.other.increment_attempt(commands[1])
    batch.take().to_the_write().take()
    assert settled(writes) == [True, False, True]
    assert states.is_contested(commands[1])
    log.other.increment_attempt(commands[1])  # and once more, while it is decided again
    batch.to_the_write()
    log.other.increment_attempt(commands[1])
    batch.to_the_end()
    assert results(writes) == [3, 6, 3]
    assert not states.is_contested(commands[1])  # as nobody else wrote this time


def test_what_is_contested_goes_in_a_statement_of_its_own_in_the_next_batch_too(log: Log) -> None:
    commands = log.commands(2)
    states = States()
    states.contest(commands[:1])
    writes = increments(commands)
    batch = log.batch(writes, states).to_the_write().take()
    assert settled(writes) == [False, True]
    batch.to_the_end()
    writes = increments(commands)
    log.batch(writes, states).to_the_write().take()
    assert results(writes) == [3, 3]


def test_of_several_commands_that_others_write_to_all_the_time_each_has_its_turn(log: Log) -> None:
    commands = log.commands(3)
    states = States()
    states.contest(commands)
    writes = [increment(command) for command in commands for _ in range(2)]
    batch = log.batch(writes, states)
    for left in (2, 1, 0):
        batch.to_the_write()
        for command in commands[3 - left :]:  # whatever is not in this statement moves on
            log.other.increment_attempt(command)
        batch.take()
        assert [write.settled for write in writes].count(False) == left * 2
    assert results(writes) == [2, 3, 3, 4, 4, 5]


def test_only_what_others_have_written_to_counts_as_contested(log: Log) -> None:
    theirs, mine, refused = log.commands(3)
    states = States()
    writes: list[Write[Any]] = [update(refused, CommandState.SUCCEEDED), increment(mine), increment(theirs)]
    batch = log.batch(writes, states).to_the_write()
    log.other.increment_attempt(theirs)
    batch.take()
    while not batch.pending.writes:
        batch.take()
    assert [states.is_contested(command_id) for command_id in (theirs, mine, refused)] == [True, False, False]
    batch.to_the_end()


def test_a_call_whose_command_has_meanwhile_ended_is_answered_by_what_is_there_now(log: Log) -> None:
    commands = log.commands(2)
    batch = log.batch([late := completion(commands[0]), neighbour := increment(commands[1])]).to_the_write()
    log.other.complete_command(commands[0], CommandState.FAILED, "2026-11-24T10:00:00Z")  # type: ignore[arg-type]
    batch.to_the_end()
    assert (late.result(), neighbour.result()) == (False, 2)
    assert log.version(commands[0]) == 2


# Idempotency keys.


def test_one_key_twice_in_one_batch_makes_one_command(log: Log) -> None:
    first, again, different = create("twice"), create("twice"), create("twice", "restart")
    batch = log.batch([first, again, different]).to_the_write().take()
    assert (first.settled, again.settled, different.settled) == (True, False, False)
    batch.to_the_end()
    assert first.result() == again.result()
    with pytest.raises(IdempotencyConflict) as conflict:
        different.result()
    assert conflict.value.command_id == first.command_id
    assert [log.version(made.command_id) for made in (first, again, different)] == [1, 0, 0]


def test_a_key_that_another_process_has_used_just_before_is_found_and_the_neighbours_go_through(log: Log) -> None:
    same, different, neighbour = create("theirs"), create("theirs too", "restart"), create("mine")
    batch = log.batch([same, different, neighbour]).to_the_write()
    theirs = [
        log.other.create_command("dep_1", "sync", idempotency_key=key).command_id for key in ("theirs", "theirs too")
    ]
    batch.take()
    assert not neighbour.settled
    batch.to_the_end()
    assert same.result().command_id == theirs[0]
    with pytest.raises(IdempotencyConflict) as conflict:
        different.result()
    assert conflict.value.command_id == theirs[1]
    assert log.version(neighbour.result().command_id) == 1


def test_an_id_that_is_taken_is_replaced(log: Log) -> None:
    [taken] = log.commands(1)
    made, neighbour = create(), create()
    made.command_id = taken
    log.write([made, neighbour])
    assert made.result().command_id != taken
    assert [log.version(each.result().command_id) for each in (made, neighbour)] == [1, 1]
    assert log.version(taken) == 1


# Somebody else's transaction is in the way.


def test_of_a_batch_that_is_blocked_only_the_call_that_has_to_wait_goes_aside(log: Log) -> None:
    commands = log.commands(4)
    states = States()
    batch = log.batch(writes := increments(commands), states).to_the_write()
    while batch.step is not None:
        held = commands[2] in str(batch.pending.params)
        batch = (
            (batch.send_in_vain(Blocked("held")) if held else batch.take()) if batch.pending.writes else batch.take()
        )
    assert [(write.settled, write.aside, write.sent) for write in writes] == [
        (True, False, [ANY]),
        (True, False, [ANY]),
        (False, True, []),
        (True, False, [ANY]),
    ]
    assert log.batch(writes, states).step is None  # a batch leaves it be
    log.batch(writes[2:3], aside=True).to_the_end()
    assert results(writes) == [2, 2, 2, 2]


def test_who_goes_aside_and_is_blocked_is_told_so(log: Log) -> None:
    batch = log.batch([increment(*log.commands(1))], aside=True).to_the_write()
    with pytest.raises(Blocked, match="held"):
        batch.send_in_vain(Blocked("held"))
