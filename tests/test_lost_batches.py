"""Batches of writes whose connection breaks, stepped by hand: what became of each call is found out, never guessed."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from eventstore import OutcomeUnknown, Unavailable
from eventstore.steps import Blocked, Lost, Refused
from registry import CommandState
from registry.writing import Write
from tests.batches import NOW, Log, create, increment, increments, opened_log, update
from tests.by_hand import one
from tests.conftest import Databases
from tests.lending import on


@pytest.fixture(scope="module")
def log(servers: Callable[[str], Databases]) -> Iterator[Log]:
    with opened_log(servers) as log:
        yield log


def results(writes: list[Write[int]]) -> list[int]:
    return [write.result() for write in writes]


def told(write: Write[Any]) -> type[BaseException] | None:
    """Say with what error a call ends that is given up now."""
    write.expire("given up")
    try:
        write.result()
    except Unavailable as error:
        return type(error)
    return None


# The line breaks.


def test_a_batch_whose_reply_is_lost_is_found_in_the_log(log: Log) -> None:
    commands = log.commands(2)
    made, keyed = create(), create("lost reply")
    writes: list[Write[Any]] = [*increments(commands), *increments(commands), made, keyed]
    log.batch(writes).to_the_write().lose_the_reply().to_the_end()
    assert [write.result() for write in writes[:4]] == [2, 2, 3, 3]
    assert made.result().command_id == made.command_id
    assert log.version(keyed.result().command_id) == 1
    assert [log.version(command) for command in commands] == [3, 3]


def test_a_batch_whose_request_is_lost_is_written_once_more(log: Log) -> None:
    commands = log.commands(2)
    writes = increments(commands)
    batch = log.batch(writes).to_the_write()
    for _ in range(3):
        batch.lose_the_request()
        batch.to_the_write()
    batch.to_the_end()
    assert results(writes) == [2, 2]
    assert [log.version(command) for command in commands] == [2, 2]


def test_a_statement_that_commits_after_we_looked_is_recognized_when_the_second_is_refused(log: Log) -> None:
    commands = log.commands(2)
    made, keyed = create(), create("zombie")
    writes: list[Write[Any]] = [*increments(commands), made, keyed]
    ids = [made.command_id, keyed.command_id]
    batch = log.batch(writes).to_the_write()
    zombie = batch.lose_the_request()
    batch.take()  # the look: nothing there
    batch.to_the_write()
    on(log.connection, one(zombie))
    batch.take()
    assert not any(write.settled for write in writes)
    batch.to_the_end()
    assert [write.result() for write in writes[:2]] == [2, 2]
    assert [made.result().command_id, keyed.result().command_id] == ids
    assert [log.version(command_id) for command_id in [*commands, *ids]] == [2, 2, 1, 1]


def test_of_several_statements_that_were_lost_the_one_that_commits_is_recognized(log: Log) -> None:
    for commits in range(3):
        commands = log.commands(2)
        batch = log.batch(writes := increments(commands)).to_the_write()
        lost = []
        for _ in range(3):
            lost.append(batch.lose_the_request())
            batch.to_the_write()
        on(log.connection, one(lost[commits]))
        batch.to_the_end()
        assert results(writes) == [2, 2]
        assert [log.version(command) for command in commands] == [2, 2]


def test_of_a_lost_batch_whose_place_another_took_only_what_was_refused_is_decided_again(log: Log) -> None:
    commands = log.commands(3)
    writes = increments(commands)
    batch = log.batch(writes).to_the_write()
    zombie = batch.lose_the_request()
    assert log.other.increment_attempt(commands[0]) == 2
    batch.to_the_end()
    with pytest.raises(Refused):
        on(log.connection, one(zombie))  # too late
    assert results(writes) == [3, 2, 2]
    assert [log.version(command) for command in commands] == [3, 2, 2]


# Nobody can be asked.


@pytest.mark.parametrize("error", [Unavailable("away"), Blocked("held")])
def test_what_was_never_sent_is_unavailable_and_no_more(log: Log, error: Unavailable) -> None:
    write = increment(*log.commands(1))
    batch = log.batch([write], aside=True).to_the_write()
    with pytest.raises(Unavailable):
        batch.send_in_vain(error)
    assert not write.settled
    assert told(write) is Unavailable


def test_what_was_not_sent_over_a_connection_that_never_came_is_unavailable(log: Log) -> None:
    write = increment(*log.commands(1))
    batch = log.batch([write]).to_the_write()
    with pytest.raises(Unavailable):
        batch.throw(Unavailable("no connection"))
    assert told(write) is Unavailable


def test_after_a_refusal_nothing_is_in_doubt(log: Log) -> None:
    [command] = log.commands(1)
    write = increment(command)
    batch = log.batch([write]).to_the_write()
    log.other.increment_attempt(command)
    batch.take()
    with pytest.raises(Unavailable):
        batch.throw(Unavailable("away"))
    assert told(write) is Unavailable


@pytest.mark.parametrize("at_the_retry", [False, True])
def test_after_the_line_broke_the_outcome_is_unknown_and_the_facts_tell_where_to_look(
    log: Log, at_the_retry: bool
) -> None:
    commands = log.commands(2)
    writes = increments(commands)
    batch = log.batch(writes).to_the_write()
    zombie = batch.lose_the_request()
    if at_the_retry:
        batch.to_the_write()
    with pytest.raises(Unavailable):
        batch.send_in_vain(Unavailable("away"))
    on(log.connection, one(zombie))  # the server was at it all the time
    for write, command in zip(writes, commands, strict=True):
        write.expire("given up")
        with pytest.raises(OutcomeUnknown) as unknown:
            write.result()
        [_, event] = log.other.history(command)
        assert (unknown.value.stream_id, unknown.value.version) == (command, 2)
        assert unknown.value.hash.hex() == event.hash


def test_a_call_that_comes_again_in_another_batch_is_still_looked_for(log: Log) -> None:
    [command] = log.commands(1)
    write = increment(command)
    batch = log.batch([write]).to_the_write()
    on(log.connection, one(batch.pending))
    batch.throw(Lost("the reply"))
    with pytest.raises(Unavailable):
        batch.throw(Unavailable("away"))
    log.write([write, again := increment(command)])
    assert (write.result(), again.result()) == (2, 3)
    assert log.version(command) == 3


@pytest.mark.parametrize("creates", [False, True])
def test_a_call_that_is_told_that_it_was_unavailable_is_not_written_afterwards(log: Log, creates: bool) -> None:
    [command] = log.commands(1)
    late = create() if creates else increment(command)
    batch = log.batch([late, neighbour := create()]).to_the_write()  # decided, and waiting for a connection
    late.expire("its time has passed")
    batch.to_the_end()
    assert log.version(neighbour.result().command_id) == 1
    with pytest.raises(Unavailable) as error:
        late.result()
    if not isinstance(error.value, OutcomeUnknown):
        assert log.version(late.command_id) == (0 if creates else 1)


# What was sent, and can or cannot come any more.


def test_a_call_whose_place_was_taken_waits_for_nothing(log: Log) -> None:
    [mine] = log.commands(1, CommandState.DISPATCHED)
    writes: list[Write[Any]] = [increment(mine), update(mine, CommandState.PENDING)]
    batch = log.batch(writes).to_the_write()
    zombie = batch.lose_the_request()
    log.other.complete_command(mine, CommandState.FAILED, NOW)
    batch.to_the_end()  # the second was sent for version 3, which nobody has taken; but it was chained onto another 2
    assert [write.result() for write in writes] == [1, False]
    with pytest.raises(Refused):
        on(log.connection, one(zombie))
    assert log.events(mine) == [(1, "CommandCreated"), (2, "CommandTransitioned")]


def test_a_call_that_may_yet_come_does_not_hold_the_others_up(log: Log) -> None:
    mine, others = log.commands(2, CommandState.DISPATCHED)
    released, dispatched = update(mine, CommandState.PENDING), update(mine, CommandState.DISPATCHED)
    batch = log.batch([released, dispatched]).to_the_write()
    zombie = batch.lose_the_request()
    assert told(released) is OutcomeUnknown
    batch.to_the_end()  # alone, the second would change nothing; but the statement of both may yet be done
    assert (dispatched.settled, dispatched.aside) == (False, True)
    log.write(increments([others]))
    aside = log.batch([dispatched], aside=True)
    on(log.connection, one(zombie))
    aside.to_the_end()
    assert dispatched.result() is True
    assert log.version(mine) == 3
