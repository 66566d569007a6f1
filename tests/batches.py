"""Batches of writes as a test makes them: the calls, the plan that settles them, and what is in the log."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, Final

import psycopg
from pydantic import JsonValue

from registry import CommandState, EventContext, FixedDeployments, PostgresCommandRegistry
from registry.decider import complete, increment_attempt, update_state
from registry.models import NewCommand, StateUpdate
from registry.writing import Creation, States, Write, creation, write_all
from tests.by_hand import ByHand
from tests.conftest import Databases

__all__ = ["NOW", "Log", "clock", "completion", "create", "increment", "increments", "opened_log", "ticking", "update"]

NOW: Final = datetime(2026, 11, 24, 10, 0, tzinfo=UTC)


def clock() -> datetime:
    return NOW


def ticking() -> Callable[[], datetime]:
    """Make a clock that tells another time each time: the same event, decided once more, has another hash."""
    ticks = count(1)
    return lambda: NOW + timedelta(microseconds=next(ticks))


def increment(command_id: str) -> Write[int]:
    return Write(command_id, increment_attempt, "{}")


def increments(command_ids: Iterable[str]) -> list[Write[int]]:
    return [increment(command_id) for command_id in command_ids]


def update(
    command_id: str, state: CommandState, error: JsonValue = None, response_size_bytes: int | None = None
) -> Write[bool]:
    told = StateUpdate(state=state, error=error, response_size_bytes=response_size_bytes)
    return Write(command_id, update_state(told), "{}")


def completion(command_id: str, state: CommandState = CommandState.SUCCEEDED, error: JsonValue = None) -> Write[bool]:
    return Write(command_id, complete(StateUpdate(state=state, completed_at=NOW, error=error)), "{}")


def create(key: str | None = None, name: str = "sync") -> Creation:
    call = NewCommand(deployment_id="dep_1", command_name=name, idempotency_key=key)
    return creation(call, FixedDeployments().get("dep_1"), EventContext())


class Log:
    """A database for a module's tests, each of which works on commands of its own.

    `connection`: what batches are stepped over. `other`: another process's registry.
    """

    def __init__(self, dsn: str, connection: psycopg.Connection[Any], other: PostgresCommandRegistry) -> None:
        self.dsn, self.connection, self.other = dsn, connection, other
        self.clock = ticking()

    def commands(self, number: int, state: CommandState = CommandState.PENDING) -> list[str]:
        """Create commands that no other test knows."""
        return [self.other.create_command("dep_1", "sync", state).command_id for _ in range(number)]

    def batch(self, writes: Sequence[Write[Any]], states: States | None = None, *, aside: bool = False) -> ByHand[None]:
        return ByHand(
            write_all(writes, States() if states is None else states, self.clock, aside=aside), self.connection
        )

    def write(self, writes: Sequence[Write[Any]], states: States | None = None) -> None:
        """Run a batch to its end."""
        self.batch(writes, states).to_the_end()

    def events(self, command_id: str) -> list[tuple[int, str]]:
        return [(event.version, event.type) for event in self.other.history(command_id)]

    def version(self, command_id: str) -> int:
        """Tell the version of a command in the read model, which must be that of the log."""
        status = self.other.get_command_status(command_id)
        in_the_log = [version for version, _ in self.events(command_id)]
        assert list(range(1, status.version + 1 if status else 1)) == in_the_log
        return len(in_the_log)


@contextmanager
def opened_log(servers: Callable[[str], Databases]) -> Iterator[Log]:
    """Make a database, open it, and audit it at the end."""
    databases = servers("default")
    name = databases.migrated()
    dsn = databases.dsn(name)
    with psycopg.connect(dsn, autocommit=True) as connection, PostgresCommandRegistry.open(dsn) as other:
        yield Log(dsn, connection, other)
        report = other.verify()
    databases.drop(name)
    assert report.ok, report.problems
