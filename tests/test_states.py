"""What a writer believes of commands from its own last write: never a reason to refuse, and never the last word."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from eventstore import StreamEnd, Unavailable
from registry import (
    AsyncPostgresCommandRegistry,
    CommandNotFound,
    CommandState,
    EventContext,
    InvalidTransition,
    PostgresCommandRegistry,
)
from registry.writing import States
from tests.batches import Log, completion, create, increment, increments, opened_log, update
from tests.conftest import Databases
from tests.synchronous import Synchronous

NOW = datetime(2026, 11, 24, 10, 0, tzinfo=UTC)


@pytest.fixture(scope="module")
def log(servers: Callable[[str], Databases]) -> Iterator[Log]:
    with opened_log(servers) as log:
        yield log


@pytest.fixture
def states() -> States:
    return States()


@pytest.fixture
def mine(log: Log, states: States) -> str:
    """A command that is believed to be pending, at version 1."""
    log.write([made := create()], states)
    return made.command_id


def loads(log: Log, states: States, *writes: Any) -> int:
    """Make a batch, and count the statements that read."""
    batch, count = log.batch(writes, states), 0
    while batch.step is not None:
        count += not batch.step.writes
        batch.take()
    return count


def test_what_is_known_is_not_loaded(log: Log, states: States, mine: str) -> None:
    assert loads(log, states, first := increment(mine), second := increment(mine)) == 0
    assert loads(log, states, third := increment(mine)) == 0
    assert [first.result(), second.result(), third.result()] == [2, 3, 4]
    assert log.version(mine) == 4


def test_only_what_is_not_known_is_loaded(log: Log, states: States, mine: str) -> None:
    [theirs] = log.commands(1)
    assert loads(log, states, *(writes := increments([mine, theirs]))) == 1
    assert [write.result() for write in writes] == [2, 2]


def test_a_refusal_is_given_only_on_what_was_just_read(log: Log, states: States, mine: str) -> None:
    log.other.mark_dispatched_if_not_terminal(mine, NOW)
    assert loads(log, states, succeeded := update(mine, CommandState.SUCCEEDED)) == 1  # believed: PENDING
    assert succeeded.result() is True
    assert log.version(mine) == 3


def test_a_refusal_that_holds_is_given_after_one_look(log: Log, states: States, mine: str) -> None:
    succeeded = update(mine, CommandState.SUCCEEDED)
    assert loads(log, states, succeeded) == 1
    with pytest.raises(InvalidTransition):
        succeeded.result()


def test_that_nothing_is_new_is_said_only_of_what_was_just_read(log: Log, states: States, mine: str) -> None:
    log.write([update(mine, CommandState.PENDING, response_size_bytes=7)], states)
    log.other.update_command_state(mine, CommandState.PENDING, response_size_bytes=8)
    assert loads(log, states, same := update(mine, CommandState.PENDING, response_size_bytes=7)) == 1
    assert same.result() is True
    status = log.other.get_command_status(mine)
    assert status is not None
    assert (status.response_size_bytes, status.version) == (7, 4)


def test_neither_what_is_final_nor_what_may_be_large_is_remembered(log: Log, states: States, mine: str) -> None:
    ended = create()
    log.write([ended], states)
    assert states.get(ended.command_id) is not None
    log.write([completion(ended.command_id), update(mine, CommandState.PENDING, "x" * 60_000)], states)
    assert states.get(ended.command_id) is states.get(mine) is None
    writes = completion(ended.command_id), increment(ended.command_id), update(ended.command_id, CommandState.FAILED)
    assert loads(log, states, *writes) == 1
    assert [write.result() for write in writes] == [False, 1, False]


def test_that_a_command_is_missing_is_looked_up_each_time(log: Log, states: States) -> None:
    made = create()
    early = increment(made.command_id)
    assert loads(log, states, early) == 1
    with pytest.raises(CommandNotFound):
        early.result()
    log.write([made])
    log.write([increment(made.command_id)], states)
    assert log.version(made.command_id) == 2


@pytest.mark.parametrize("refused_first", [False, True])
@pytest.mark.parametrize("neighbours", [0, 2])
def test_a_refusal_that_has_to_be_looked_into_harms_no_other_call_on_the_same_command(
    log: Log, states: States, mine: str, refused_first: bool, neighbours: int
) -> None:
    refused, counted = update(mine, CommandState.SUCCEEDED), increment(mine)
    others = [create() for _ in range(neighbours)]
    log.write([refused, counted, *others] if refused_first else [counted, refused, *others], states)
    with pytest.raises(InvalidTransition):
        refused.result()
    assert counted.result() == 2
    assert log.version(mine) == 2
    assert [log.version(other.command_id) for other in others] == [1] * neighbours


def test_several_refusals_on_one_command_are_looked_into_together(log: Log, states: States, mine: str) -> None:
    log.other.increment_attempt(mine)
    refused = [update(mine, state) for state in (CommandState.SUCCEEDED, CommandState.PENDING_UPLOAD)]
    assert loads(log, states, *refused) == 1
    for write in refused:
        with pytest.raises(InvalidTransition):
            write.result()
    log.write([increment(mine)], states)
    assert log.version(mine) == 3


def test_a_state_that_others_have_gone_on_from_is_found_out_and_forgotten(log: Log, states: States, mine: str) -> None:
    log.other.increment_attempt(mine)
    batch = log.batch([write := increment(mine)], states)
    assert batch.pending.writes  # on version 1, as it believes
    batch.take()
    assert states.get(mine) is None
    batch.to_the_end()
    assert write.result() == 3
    assert log.version(mine) == 3


def believed(states: States, mine: str, version: int, event_hash: bytes) -> None:
    """Remember an increment that is not in the log."""
    known = states.get(mine)
    assert known is not None
    status = known.state.model_copy(update={"version": version, "attempt": version})
    states.put(mine, StreamEnd(version, event_hash), status)


@pytest.mark.parametrize("version", [1, 2, 7])
def test_a_state_from_a_write_that_a_failover_lost_is_mended_and_leaves_no_gap(
    log: Log, states: States, mine: str, version: int
) -> None:
    believed(states, mine, version, bytes(32))
    log.write([write := increment(mine), neighbour := create()], states)
    assert write.result() == 2
    assert (log.version(mine), log.version(neighbour.command_id)) == (2, 1)
    known = states.get(mine)
    assert known is not None
    assert (known.end.version, known.state.version) == (2, 2)


def test_a_command_that_a_failover_lost_is_not_found(log: Log, states: States, mine: str) -> None:
    known = states.get(mine)
    assert known is not None
    gone = create().command_id
    states.put(gone, StreamEnd(1, bytes(32)), known.state.model_copy(update={"command_id": gone}))
    log.write([lost := increment(gone), neighbour := increment(mine)], states)
    with pytest.raises(CommandNotFound):
        lost.result()
    assert neighbour.result() == 2


def test_a_write_that_was_not_committed_is_not_remembered(log: Log, states: States, mine: str) -> None:
    for failure in (Unavailable("away"), psycopg.errors.DiskFull("full")):
        batch = log.batch([increment(mine)], states)
        if isinstance(failure, Unavailable):
            with pytest.raises(Unavailable):
                batch.send_in_vain(failure)
        else:
            assert batch.send_in_vain(failure).step is None
    log.write([write := increment(mine)], states)
    assert write.result() == 2
    assert log.version(mine) == 2


def test_after_the_line_broke_everything_is_read_again(log: Log, states: States, mine: str) -> None:
    batch = log.batch([write := increment(mine)], states)
    batch.lose_the_request()
    assert states.get(mine) is None
    batch.take()  # where is my event?
    assert not batch.pending.writes  # and where is the command?
    batch.to_the_end()
    assert write.result() == 2


def test_no_more_is_remembered_than_was_said(log: Log) -> None:
    states = States(most=3)
    writes = [create() for _ in range(5)]
    log.write(writes, states)
    ids = [write.command_id for write in writes]
    assert [states.get(command_id) is not None for command_id in ids] == [False, False, True, True, True]
    log.write([increment(ids[2])], states)  # now the latest
    log.write([create()], states)
    assert [states.get(command_id) is not None for command_id in ids[2:]] == [True, False, True]
    states.contest(ids)
    assert [states.is_contested(command_id) for command_id in ids] == [False, False, True, True, True]


# What a caller hands in and is given is its own.


@pytest.fixture(params=["sync", "async"])
def registry(request: pytest.FixtureRequest, dsn: str) -> Iterator[Any]:
    if request.param == "sync":
        with PostgresCommandRegistry.open(dsn) as registry:
            yield registry
    else:
        opened = Synchronous(AsyncPostgresCommandRegistry.open(dsn))
        yield opened
        opened.close()


def test_what_a_caller_changes_in_its_arguments_afterwards_changes_nothing(registry: Any) -> None:
    error: dict[str, Any] = {"code": 7, "details": ["first"]}
    attributes: dict[str, Any] = {"shift": "night", "crew": ["Ada"]}
    context = EventContext(attributes=attributes)
    mine = registry.create_command("dep_1", "sync", context=context).command_id
    assert registry.update_command_state(mine, CommandState.PENDING, error=error, context=context)
    given_error, given_attributes = {"code": 7, "details": ["first"]}, {"shift": "night", "crew": ["Ada"]}
    error["x"] = 1
    error["details"].append("second")
    attributes["crew"].append("Grace")
    context.attributes["shift"] = "day"
    assert registry.update_command_state(mine, CommandState.PENDING, error=given_error)  # nothing new
    assert registry.increment_attempt(mine) == 2
    assert registry.get_command_status(mine).error == given_error
    assert [entry.context.attributes for entry in registry.history(mine)] == [given_attributes, given_attributes, {}]
    assert registry.verify().ok


def test_what_a_caller_changes_in_an_answer_changes_nothing(registry: Any) -> None:
    mine = registry.create_command("dep_1", "sync").command_id
    registry.update_command_state(mine, CommandState.PENDING, error={"code": 7})
    for read in (registry.get_command_status, lambda mine: registry.status_at(mine, version=2)):
        read(mine).error["code"] = 8
        assert read(mine).error == {"code": 7}
    assert registry.update_command_state(mine, CommandState.PENDING, error={"code": 7})
    assert registry.get_command_status(mine).version == 2
    assert registry.verify().ok
