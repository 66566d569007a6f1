"""The package `eventsourcing` under load, doing the same with its own aggregates. A process of its own.

Its defaults are kept, but for as many connections as there are threads. It appends to its log, and has no read model;
or it reads a log, and makes its domain events of what is stored.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import cycle
from types import MappingProxyType
from typing import Final
from uuid import UUID

from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event
from psycopg.conninfo import conninfo_to_dict

from benchmarks.errors import BenchmarkError
from benchmarks.life import COMMAND, DEPLOYMENT, LEASE, REQUEST_SIZE, RESPONSE_SIZE
from benchmarks.sample import Job, Sample, Window, serve

__all__: list[str] = []

_PAGE: Final = 1_000  # events; its own subscriptions read 500 at once
_COMMANDS_IN_PAGE: Final = 250
_PAGES_A_SECOND: Final = 10


class Command(Aggregate):
    """A command, with what the registry's own one knows."""

    @event("Created")
    def __init__(self, deployment_id: str, command: str, deadline: datetime, request_size_bytes: int) -> None:
        """Create it, for its first attempt."""
        self.deployment_id = deployment_id
        self.command = command
        self.deadline = deadline
        self.request_size_bytes = request_size_bytes
        self.state = "PENDING"
        self.attempt = 1

    @event("AttemptIncremented")
    def increment_attempt(self, attempt: int) -> None:
        """Count one more attempt."""
        self.attempt = attempt

    @event("Dispatched")
    def dispatch(self, dispatched_at: datetime) -> None:
        """Note that it went to its deployment."""
        self.state = "DISPATCHED"
        self.dispatched_at = dispatched_at

    @event("Completed")
    def complete(self, state: str, completed_at: datetime, response_size_bytes: int) -> None:
        """Give it its result."""
        self.state = state
        self.completed_at = completed_at
        self.response_size_bytes = response_size_bytes


class Commands(Application[UUID]):
    """A server of commands: each request loads the aggregate, changes it, and saves it."""

    def create(self) -> UUID:
        """Create a command."""
        command = Command(DEPLOYMENT, COMMAND, datetime.now(UTC) + LEASE, REQUEST_SIZE)
        self.save(command)
        return command.id

    def dispatch(self, command_id: UUID) -> None:
        """Dispatch a command."""
        command: Command = self.repository.get(command_id)
        command.dispatch(datetime.now(UTC))
        self.save(command)

    def complete(self, command_id: UUID) -> None:
        """Complete a command."""
        command: Command = self.repository.get(command_id)
        command.complete("SUCCEEDED", datetime.now(UTC), RESPONSE_SIZE)
        self.save(command)


def _write(job: Job) -> Sample:
    window = Window(job.postmaster)
    with _opened(job) as commands, ThreadPoolExecutor(job.callers) as threads:
        calling = [threads.submit(_live, commands, window) for _ in range(job.callers)]
        time.sleep(job.warm_up)
        window.begin()
        time.sleep(job.seconds)
        sample = window.end()
        for each in calling:
            each.result()
    return sample


@contextmanager
def _opened(job: Job) -> Iterator[Commands]:
    known = {name: str(value) for name, value in conninfo_to_dict(job.dsn).items()}
    environment = {
        "PERSISTENCE_MODULE": "eventsourcing.postgres",
        "POSTGRES_DBNAME": known["dbname"],
        "POSTGRES_HOST": known.get("host", ""),
        "POSTGRES_PORT": known.get("port", ""),
        "POSTGRES_USER": known.get("user", ""),
        "POSTGRES_PASSWORD": known.get("password", ""),
        "POSTGRES_POOL_SIZE": str(job.callers),
    }
    with Commands(environment) as commands:
        yield commands


def _live(commands: Commands, window: Window) -> None:
    while window.open:
        began = time.perf_counter()
        command_id = commands.create()
        began = window.note(began)
        commands.dispatch(command_id)
        began = window.note(began)
        commands.complete(command_id)
        window.note(began)


def _decode(job: Job) -> Sample:
    """Read a log from its start over and over, with its recorder, and map it to domain events."""
    window = Window(job.postmaster)
    with _opened(job) as commands:
        pages = max(1, round(job.seconds * _PAGES_A_SECOND))
        for _ in range(pages):
            commands.save(*(_lived() for _ in range(_COMMANDS_IN_PAGE)))
        starts = cycle(range(1, pages * _PAGE, _PAGE))
        _read(commands, next(starts))  # the warm-up
        window.begin()
        window.repeat(lambda: _read(commands, next(starts)), job.seconds)
        return window.end(_PAGE)


def _lived() -> Command:
    command = Command(DEPLOYMENT, COMMAND, datetime.now(UTC) + LEASE, REQUEST_SIZE)
    command.increment_attempt(2)
    command.dispatch(datetime.now(UTC))
    command.complete("SUCCEEDED", datetime.now(UTC), RESPONSE_SIZE)
    return command


def _read(commands: Commands, start: int) -> None:
    notifications = commands.recorder.select_notifications(start, _PAGE)
    events = [commands.mapper.to_domain_event(notification) for notification in notifications]
    if len(events) != _PAGE:
        raise BenchmarkError(f"eventsourcing found {len(events)} of {_PAGE} events from {start} on")


LOADS: Final[Mapping[str, Callable[[Job], Sample]]] = MappingProxyType({"lives": _write, "decode": _decode})
"""What this client can do, by name."""


if __name__ == "__main__":
    serve(LOADS)
