"""A call in a batch that the server rejects, or that cannot even be read: it fails, and its neighbours do not."""

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg import errors

from eventstore import Conflict, EventStoreError
from registry import CommandNotFound, CommandState, PostgresCommandRegistry
from registry.writing import States, Write
from tests.batches import Log, completion, create, increment, increments, opened_log, update
from tests.conftest import Databases

# What an administrator may add: checks, and triggers that raise what they like.
REFUSALS = """
    ALTER TABLE command_registry.events ADD CONSTRAINT no_poison CHECK (data::text NOT LIKE '%poison%');
    ALTER TABLE command_registry.command_status_v1 ADD CONSTRAINT no_bane CHECK (error::text NOT LIKE '%bane%');
    CREATE FUNCTION refuse_it() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN RAISE EXCEPTION 'no' USING ERRCODE = substring(NEW.data::text FROM 'refuse (.....)'); END
    $$;
    CREATE TRIGGER refused BEFORE INSERT ON command_registry.events FOR EACH ROW
        WHEN (NEW.data::text LIKE '%refuse %') EXECUTE FUNCTION refuse_it();
"""


@pytest.fixture(scope="module")
def log(servers: Callable[[str], Databases]) -> Iterator[Log]:
    with opened_log(servers) as log:
        log.connection.execute(REFUSALS)
        yield log


def bad(command_id: str, value: str = "poison") -> Write[bool]:
    return update(command_id, CommandState.PENDING, value)


def error_of(write: Write[Any]) -> Exception | None:
    try:
        write.result()
    except Exception as error:
        return error
    return None


# What the server rejects.


def test_of_any_calls_in_a_batch_only_the_culprits_fail(log: Log) -> None:
    @settings(max_examples=40)
    @given(st.lists(st.sampled_from(["good", "good", "poison", "bane", "refuse P0001"]), max_size=9), st.booleans())
    def only_the_culprits_fail(values: list[str], remembered: bool) -> None:
        states = States()
        made = [create() for _ in values]
        log.write(made, states if remembered else States())
        commands = [each.command_id for each in made]
        log.write(writes := [bad(command, value) for command, value in zip(commands, values, strict=True)], states)
        assert [error_of(write) is None for write in writes] == [value == "good" for value in values]
        assert [log.version(command) for command in commands] == [1 + (value == "good") for value in values]
        log.write(after := increments(commands), states)
        assert [write.result() for write in after] == [2] * len(values)

    only_the_culprits_fail()


def test_the_culprit_is_told_what_the_server_said(log: Log) -> None:
    commands = log.commands(5)
    values = ["poison", "bane", "refuse P0001", "refuse 22023", "refuse 54000"]
    log.write(writes := [bad(command, value) for command, value in zip(commands, values, strict=True)])
    found = [error_of(write) for write in writes]
    assert [type(error) for error in found] == [
        errors.CheckViolation,
        errors.CheckViolation,
        errors.RaiseException,
        errors.InvalidParameterValue,
        errors.ProgramLimitExceeded,
    ]
    assert [error.diag.constraint_name for error in found[:2] if isinstance(error, psycopg.Error)] == [
        "no_poison",
        "no_bane",
    ]


def test_a_refusal_that_no_other_writer_explains_is_a_conflict_of_the_culprit_alone(log: Log) -> None:
    commands = log.commands(5)
    writes = [bad(command, "refuse 23505" if number == 2 else "good") for number, command in enumerate(commands)]
    log.write(writes)
    assert [type(error_of(write)) for write in writes] == [type(None)] * 2 + [Conflict] + [type(None)] * 2
    assert [log.version(command) for command in commands] == [2, 2, 1, 2, 2]


# RAISE may give any code.
@pytest.mark.parametrize("code", ["CR001", "45000"])
def test_whatever_code_a_trigger_raises_for_one_call_the_neighbours_go_through(log: Log, code: str) -> None:
    commands = log.commands(3)
    writes = [bad(command, f"refuse {code}" if number == 1 else "good") for number, command in enumerate(commands)]
    log.write(writes)
    assert [getattr(error_of(write), "sqlstate", None) for write in writes] == [None, code, None]


def test_what_follows_from_a_call_that_failed_is_decided_again(log: Log) -> None:
    mine, neighbour = log.commands(2)
    failed, late = completion(mine, error="poison"), completion(mine, CommandState.FAILED)
    log.write([failed, again := increment(mine), late, other := increment(neighbour)])
    assert isinstance(error_of(failed), errors.CheckViolation)
    assert (again.result(), late.result(), other.result()) == (2, True, 2)
    status = log.other.get_command_status(mine)
    assert status is not None
    assert (status.state, log.version(mine)) == ("FAILED", 3)


def test_a_key_whose_first_creation_the_server_rejects_is_free_for_the_next(log: Log) -> None:
    rejected, accepted, neighbour = create("key", "poison"), create("key", "sync"), create()
    log.write([rejected, accepted, neighbour])
    assert isinstance(error_of(rejected), errors.CheckViolation)
    assert accepted.result().command == "sync"
    assert neighbour.result()


def test_a_call_after_those_that_failed_is_tried_with_many_again(log: Log) -> None:
    commands = log.commands(32)
    states = States()
    batch, statements = log.batch([bad(commands[0]), *increments(commands[1:])], states), 0
    while batch.step is not None:
        statements += batch.step.writes
        batch.take()
    assert statements <= 12  # 6 to find the culprit, and then twice as many calls each time
    assert [log.version(command) for command in commands] == [1] + [2] * 31


def test_an_error_that_is_nobodys_fault_fails_all_at_once(log: Log) -> None:
    commands = log.commands(4)
    dependent, late = completion(commands[0]), completion(commands[0])
    writes: list[Write[Any]] = [*increments(commands), dependent, late]
    batch = log.batch(writes).to_the_write()
    full = errors.DiskFull("could not extend file")
    assert batch.send_in_vain(full).step is None
    assert [error_of(write) for write in writes] == [full] * 6
    assert dependent.settled
    assert late.settled
    assert [write.sent for write in writes] == [[]] * 6
    assert [log.version(command) for command in commands] == [1] * 4


# What cannot be read.


def test_a_command_that_is_not_there_fails_alone(log: Log) -> None:
    [command] = log.commands(1)
    log.write([missing := increment("cmd_missing"), there := increment(command)])
    assert isinstance(error_of(missing), CommandNotFound)
    assert there.result() == 2


@pytest.fixture
def own_log(servers: Callable[[str], Databases], dsn: str) -> Iterator[Log]:
    """A log that need not pass an audit."""
    with psycopg.connect(dsn, autocommit=True) as connection, PostgresCommandRegistry.open(dsn) as other:
        yield Log(dsn, connection, other)


LATER_EVENT = """
    INSERT INTO command_registry.events (stream_id, version, type, schema_version, occurred_at, data, metadata, hash)
    VALUES (%s, %s, %s, 1, now(), '{}', '{}', sha256('a later version wrote it'))
"""


@pytest.mark.parametrize("bad_first", [True, False])
def test_a_command_that_only_a_later_version_can_read_fails_alone(own_log: Log, bad_first: bool) -> None:
    theirs, mine = own_log.commands(2)
    own_log.connection.execute(LATER_EVENT, (theirs, 2, "CommandPaused"))
    unread, neighbour = increment(theirs), increment(mine)
    try:
        own_log.write([unread, neighbour] if bad_first else [neighbour, unread])
    except EventStoreError as error:
        pytest.fail(f"the batch as a whole failed: {error!r}")
    assert isinstance(error_of(unread), EventStoreError)
    assert neighbour.result() == 2


def test_a_creation_whose_key_made_a_command_that_cannot_be_read_fails_alone(own_log: Log) -> None:
    made = own_log.other.create_command("dep_1", "sync", idempotency_key="key").command_id
    own_log.connection.execute(LATER_EVENT, (made, 2, "CommandPaused"))
    again, neighbour = create("key"), create("another key")
    try:
        own_log.write([again, neighbour, counted := increment(*own_log.commands(1))])
    except EventStoreError as error:
        pytest.fail(f"the batch as a whole failed: {error!r}")
    assert isinstance(error_of(again), EventStoreError)
    assert neighbour.result()
    assert counted.result() == 2


def test_a_stream_that_is_full_fails_alone(own_log: Log) -> None:
    full, mine = own_log.commands(2)
    own_log.connection.execute(LATER_EVENT, (full, 2**31 - 1, "AttemptIncremented"))
    own_log.connection.execute(
        "UPDATE command_registry.command_status_v1 SET version = 2147483647 WHERE command_id = %s", (full,)
    )
    try:
        own_log.write([ended := increment(full), neighbour := increment(mine)])
    except EventStoreError as error:
        pytest.fail(f"the batch as a whole failed: {error!r}")
    assert isinstance(error_of(ended), EventStoreError)
    assert neighbour.result() == 2
