"""While a lost statement may still commit, nobody is given an answer that it would belie."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from registry import CommandState, InvalidTransition
from registry.writing import Write
from tests.batches import Log, opened_log, update
from tests.by_hand import one
from tests.conftest import Databases
from tests.lending import on


@pytest.fixture(scope="module")
def log(servers: Callable[[str], Databases]) -> Iterator[Log]:
    with opened_log(servers) as log:
        yield log


def lost_with_its_neighbour(log: Log) -> tuple[Any, Any, Write[bool]]:
    """Send a dispatch and a completion that follows from it, lose both, and let the dispatch's caller give up.

    Returns:
        The batch, the statement that may still commit, and the completion.
    """
    [command_id] = log.commands(1)
    dispatched, done = update(command_id, CommandState.DISPATCHED), update(command_id, CommandState.SUCCEEDED)
    batch = log.batch([dispatched, done], aside=True).to_the_write()
    statement = batch.lose_the_request()
    dispatched.expire("no time left")
    batch.take()  # looks for what was sent, and finds nothing
    batch.take()  # loads the command: it is pending, from where nobody may go to SUCCEEDED
    return batch, statement, done


def test_a_refusal_waits_until_what_was_sent_can_no_longer_come(log: Log) -> None:
    batch, statement, done = lost_with_its_neighbour(log)
    assert not done.settled
    batch.take()  # a pause
    on(log.connection, one(statement))
    batch.to_the_end()
    assert done.result() is True
    assert log.version(done.command_id) == 3


def test_a_refusal_is_given_once_another_writer_has_the_place(log: Log) -> None:
    batch, _, done = lost_with_its_neighbour(log)
    for _ in range(2):
        log.other.increment_attempt(done.command_id)
    batch.to_the_end()
    with pytest.raises(InvalidTransition):
        done.result()
