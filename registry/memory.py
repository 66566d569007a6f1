"""The registry in memory: the same answers as on Postgres, for tests and for a server that may forget."""

import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import datetime
from typing import Any, TypeVar

from psycopg import AsyncConnection, Connection

from eventstore.event import LogPosition, NewEvent, RecordedEvent
from eventstore.memory import MemoryEventStore, no_transaction
from eventstore.protocol import LOG_START
from registry import decider
from registry.calls import AsyncRegistryCalls, RegistryCalls, utc_now
from registry.decider import Clock, Decide
from registry.deployments import (
    AsyncDeploymentDirectory,
    Deployment,
    DeploymentDirectory,
    FixedDeployments,
    look_up,
    resolve,
    running,
)
from registry.errors import CommandNotFound, IdempotencyConflict
from registry.events import CODEC, CommandEvent
from registry.history import metadata_text
from registry.ids import new_command_id
from registry.lifecycle import is_terminal
from registry.models import CommandStatus, EventContext, NewCommand

__all__ = ["AsyncMemoryCommandRegistry", "MemoryCommandRegistry"]

R = TypeVar("R")


class _Memory:
    """An event store in memory, and the status folded from it. One lock makes each operation whole."""

    def __init__(self, clock: Clock) -> None:
        self.lock = threading.RLock()
        self.store = MemoryEventStore()
        self.statuses: dict[str, CommandStatus] = {}
        self.made_by_key: dict[str, tuple[NewCommand, str]] = {}
        self.clock = clock

    def create(self, call: NewCommand, deployment: Deployment | None, context: EventContext) -> CommandStatus:
        with self.lock:
            first = self.find_by_key(call)
            if first is not None:
                return first
            found = running(call.deployment_id, deployment)
            target = resolve(found, call.target).target
            command_id, now = new_command_id(), self.clock()
            event = decider.create(command_id, call, found, target, now)
            status = self._append(command_id, None, [event], metadata_text(context, call.idempotency_key), now)
            if call.idempotency_key is not None:
                self.made_by_key[call.idempotency_key] = (call, command_id)
            return status

    def find_by_key(self, call: NewCommand) -> CommandStatus | None:
        key = call.idempotency_key
        if key is None or key not in self.made_by_key:
            return None
        first, command_id = self.made_by_key[key]
        if first != call:
            raise IdempotencyConflict(key, command_id)
        return self.statuses[command_id]

    def write(self, command_id: str, decide: Decide[R], context: EventContext) -> R:
        with self.lock:
            status = self.statuses.get(command_id)
            if status is None:
                raise CommandNotFound(command_id)
            decision = decide(status)
            if decision.events:
                self._append(command_id, status, decision.events, metadata_text(context), self.clock())
            return decision.answer

    def _append(
        self,
        command_id: str,
        before: CommandStatus | None,
        events: Sequence[CommandEvent],
        metadata: str,
        now: datetime,
    ) -> CommandStatus:
        new: list[NewEvent] = [CODEC.encode(event, now, metadata) for event in events]
        recorded = self.store.append(command_id, before.version if before else 0, new)
        after = decider.replay([CODEC.decode(event) for event in recorded], before)
        self.statuses[command_id] = after
        return after

    def status(self, command_id: str) -> CommandStatus | None:
        """Read a status; the caller may do with its error as it likes."""
        status = self.statuses.get(command_id)
        return None if status is None else status.model_copy(deep=True)

    def export(self, after: LogPosition) -> Iterator[RecordedEvent]:
        while page := self.store.read_log(after):
            yield from page
            after = page[-1].log_position

    def overdue(self, now: datetime, limit: int) -> list[str]:
        with self.lock:
            passed = [
                (status.deadline, status.command_id)
                for status in self.statuses.values()
                if status.deadline is not None and status.deadline <= now and not is_terminal(status.state)
            ]
        return [command_id for _, command_id in sorted(passed)[:limit]]


class MemoryCommandRegistry(RegistryCalls):
    """A `CommandRegistry` that lives as long as the object. Threads may share it."""

    def __init__(self, deployments: DeploymentDirectory | None = None, clock: Clock = utc_now) -> None:
        super().__init__(clock)
        self._memory = _Memory(clock)
        self._deployments = deployments or FixedDeployments()

    def _create(
        self, call: NewCommand, context: EventContext, connection: Connection[Any] | None, timeout: float
    ) -> CommandStatus:
        no_transaction(connection)
        return self._memory.create(call, self._deployment(call.deployment_id, timeout), context)

    def _write(
        self,
        command_id: str,
        decide: Decide[R],
        context: EventContext,
        connection: Connection[Any] | None,
        timeout: float,
    ) -> R:
        no_transaction(connection)
        return self._memory.write(command_id, decide, context)

    def _write_each(
        self,
        command_ids: Sequence[str],
        decide: Decide[R],
        context: EventContext,
        connection: Connection[Any] | None,
        timeout: float,
    ) -> Sequence[R | None]:
        no_transaction(connection)
        return [self._memory.write(command_id, decide, context) for command_id in command_ids]

    def _status(self, command_id: str, timeout: float) -> CommandStatus | None:
        return self._memory.status(command_id)

    def _events(self, command_id: str, timeout: float) -> Sequence[RecordedEvent]:
        return self._memory.store.read_stream(command_id)

    def _overdue(self, now: datetime, limit: int, connection: Connection[Any] | None, timeout: float) -> Sequence[str]:
        no_transaction(connection)
        return self._memory.overdue(now, limit)

    def _deployment(self, deployment_id: str, timeout: float) -> Deployment | None:
        return self._deployments.get(deployment_id)

    def export(self, after: LogPosition = LOG_START) -> Iterator[RecordedEvent]:
        """Read the log in its order, after a position: what a projection's twin is tested with."""
        return self._memory.export(after)


class AsyncMemoryCommandRegistry(AsyncRegistryCalls):
    """An `AsyncCommandRegistry` that lives as long as the object."""

    def __init__(
        self, deployments: DeploymentDirectory | AsyncDeploymentDirectory | None = None, clock: Clock = utc_now
    ) -> None:
        super().__init__(clock)
        self._memory = _Memory(clock)
        self._deployments = deployments or FixedDeployments()

    async def _create(
        self, call: NewCommand, context: EventContext, connection: AsyncConnection[Any] | None, timeout: float
    ) -> CommandStatus:
        no_transaction(connection)
        return self._memory.create(call, await self._deployment(call.deployment_id, timeout), context)

    async def _write(
        self,
        command_id: str,
        decide: Decide[R],
        context: EventContext,
        connection: AsyncConnection[Any] | None,
        timeout: float,
    ) -> R:
        no_transaction(connection)
        return self._memory.write(command_id, decide, context)

    async def _write_each(
        self,
        command_ids: Sequence[str],
        decide: Decide[R],
        context: EventContext,
        connection: AsyncConnection[Any] | None,
        timeout: float,
    ) -> Sequence[R | None]:
        no_transaction(connection)
        return [self._memory.write(command_id, decide, context) for command_id in command_ids]

    async def _status(self, command_id: str, timeout: float) -> CommandStatus | None:
        return self._memory.status(command_id)

    async def _events(self, command_id: str, timeout: float) -> Sequence[RecordedEvent]:
        return self._memory.store.read_stream(command_id)

    async def _overdue(
        self, now: datetime, limit: int, connection: AsyncConnection[Any] | None, timeout: float
    ) -> Sequence[str]:
        no_transaction(connection)
        return self._memory.overdue(now, limit)

    async def export(self, after: LogPosition = LOG_START) -> AsyncIterator[RecordedEvent]:
        """Read the log in its order, after a position."""
        for event in self._memory.export(after):
            yield event

    async def _deployment(self, deployment_id: str, timeout: float) -> Deployment | None:
        return await look_up(self._deployments, deployment_id)
