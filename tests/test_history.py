"""Time travel when the clocks of several processes disagree, and histories written by other versions."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from eventstore.hashing import GENESIS_HASH, event_hash
from registry import CommandState, MemoryCommandRegistry, PostgresCommandRegistry, UnknownEventType

NOON = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


def clock_that_shows(*minutes: int) -> Callable[[], datetime]:
    instants: Iterator[datetime] = (NOON + timedelta(minutes=after) for after in minutes)
    return lambda: next(instants)


def test_between_two_clocks_the_status_is_one_that_the_command_had() -> None:
    registry = MemoryCommandRegistry(clock=clock_that_shows(0, 5, 1, 9))
    command_id = registry.create_command("dep_1", "x").command_id
    registry.mark_dispatched_if_not_terminal(command_id, NOON)  # by a clock that is fast
    registry.increment_attempt(command_id)  # by one that is right
    registry.complete_command(command_id, CommandState.FAILED, NOON)

    def version_at(minutes: int) -> int:
        status = registry.status_at(command_id, at=NOON + timedelta(minutes=minutes))
        assert status is not None
        assert status == registry.status_at(command_id, version=status.version)
        return status.version

    assert [version_at(minutes) for minutes in range(10)] == [1, 3, 3, 3, 3, 3, 3, 3, 3, 4]


def test_an_event_from_the_future_is_named_and_not_guessed(dsn: str, connection: psycopg.Connection[Any]) -> None:
    event = ("cmd_1", 1, "CommandArchived", 1, NOON, "{}", "{}")
    connection.execute(
        "INSERT INTO command_registry.events "
        "(stream_id, version, type, schema_version, occurred_at, data, metadata, hash) "
        "VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",
        (*event, event_hash(GENESIS_HASH, *event)),
    )
    with PostgresCommandRegistry.open(dsn) as registry:
        with pytest.raises(UnknownEventType, match="CommandArchived"):
            registry.history("cmd_1")
        with pytest.raises(UnknownEventType):
            registry.increment_attempt("cmd_1")
        report = registry.verify()
    assert [problem.stream_id for problem in report.problems] == ["cmd_1"] * report.problem_count
    assert "cannot be folded" in str(report.problems[0])
