"""The calls of a registry over a few primitives, so that every implementation shares what is not its storage."""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from psycopg import AsyncConnection, Connection
from pydantic import JsonValue

from eventstore.database import DEFAULT_TIMEOUT
from eventstore.event import RecordedEvent
from registry import answers, arguments, decider
from registry.decider import Clock, Decide
from registry.deployments import Deployment, resolve, running
from registry.history import HistoryEntry, history_entry, moment, status_at
from registry.lifecycle import CommandState
from registry.models import (
    CommandAccessContext,
    CommandEnvelopeData,
    CommandMetadata,
    CommandStatus,
    EventContext,
    NewCommand,
    ResolvedTarget,
    accept,
    check_instant_argument,
)
from registry.protocol import DEFAULT_EXPIRE_LIMIT

__all__ = ["AsyncRegistryCalls", "RegistryCalls", "utc_now"]

R = TypeVar("R")


def utc_now() -> datetime:
    """Tell the time."""
    return datetime.now(UTC)


class RegistryCalls(ABC):
    """The calls of `CommandRegistry`, over the primitives of a storage."""

    def __init__(self, clock: Clock = utc_now, timeout: float = DEFAULT_TIMEOUT) -> None:
        self._clock = clock
        self._timeout = arguments.time_limit(timeout)

    def _time(self, timeout: float | None) -> float:
        return self._timeout if timeout is None else arguments.time_limit(timeout)

    @abstractmethod
    def _create(
        self, call: NewCommand, context: EventContext, connection: Connection[Any] | None, timeout: float
    ) -> CommandStatus:
        """Create a command."""

    @abstractmethod
    def _write(
        self,
        command_id: str,
        decide: Decide[R],
        context: EventContext,
        connection: Connection[Any] | None,
        timeout: float,
    ) -> R:
        """Decide on a command's fresh status, and append what follows."""

    @abstractmethod
    def _write_each(
        self,
        command_ids: Sequence[str],
        decide: Decide[R],
        context: EventContext,
        connection: Connection[Any] | None,
        timeout: float,
    ) -> Sequence[R | None]:
        """Do the same to many commands; None for those that are not there."""

    @abstractmethod
    def _status(self, command_id: str, timeout: float) -> CommandStatus | None:
        """Read a command's status."""

    @abstractmethod
    def _events(self, command_id: str, timeout: float) -> Sequence[RecordedEvent]:
        """Read a command's events."""

    @abstractmethod
    def _overdue(self, now: datetime, limit: int, connection: Connection[Any] | None, timeout: float) -> Sequence[str]:
        """Find commands whose deadline has passed, the most overdue first."""

    @abstractmethod
    def _deployment(self, deployment_id: str, timeout: float) -> Deployment | None:
        """Look a deployment up."""

    def create_command(
        self,
        deployment_id: str,
        command_name: str,
        initial_state: CommandState = CommandState.PENDING,
        deadline: datetime | None = None,
        request_size_bytes: int | None = None,
        *,
        idempotency_key: str | None = None,
        target: str | None = None,
        context: EventContext | None = None,
        connection: Connection[Any] | None = None,
        timeout: float | None = None,
    ) -> CommandMetadata:
        """As `CommandRegistry.create_command`."""
        call = accept(
            NewCommand,
            deployment_id=deployment_id,
            command_name=command_name,
            initial_state=initial_state,
            deadline=deadline,
            request_size_bytes=request_size_bytes,
            idempotency_key=idempotency_key,
            target=target,
        )
        return answers.metadata(self._create(call, arguments.context_of(context), connection, self._time(timeout)))

    def _any_status(self, command_id: str, timeout: float | None) -> CommandStatus | None:
        found = arguments.possible_id(command_id)
        return None if found is None else self._status(found, self._time(timeout))

    def get_command_metadata(self, command_id: str, *, timeout: float | None = None) -> CommandEnvelopeData | None:
        """As `CommandRegistry.get_command_metadata`."""
        status = self._any_status(command_id, timeout)
        return None if status is None else answers.envelope(status)

    def get_command_status(self, command_id: str, *, timeout: float | None = None) -> CommandStatus | None:
        """As `CommandRegistry.get_command_status`."""
        return self._any_status(command_id, timeout)

    def get_command_access_context(
        self, command_id: str, *, timeout: float | None = None
    ) -> CommandAccessContext | None:
        """As `CommandRegistry.get_command_access_context`."""
        status = self._any_status(command_id, timeout)
        return None if status is None else answers.access_context(status)

    def _decide(
        self,
        command_id: str,
        decide: Decide[R],
        context: EventContext | None,
        connection: Connection[Any] | None,
        timeout: float | None,
    ) -> R:
        return self._write(
            arguments.existing_id(command_id), decide, arguments.context_of(context), connection, self._time(timeout)
        )

    def update_command_state(
        self,
        command_id: str,
        state: CommandState,
        dispatched_at: datetime | None = None,
        completed_at: datetime | None = None,
        response_size_bytes: int | None = None,
        error: JsonValue = None,
        *,
        context: EventContext | None = None,
        connection: Connection[Any] | None = None,
        timeout: float | None = None,
    ) -> bool:
        """As `CommandRegistry.update_command_state`."""
        decide = arguments.state_update(state, dispatched_at, completed_at, response_size_bytes, error)
        return self._decide(command_id, decide, context, connection, timeout)

    def complete_command(
        self,
        command_id: str,
        state: CommandState,
        completed_at: datetime,
        response_size_bytes: int | None = None,
        error: JsonValue = None,
        *,
        context: EventContext | None = None,
        connection: Connection[Any] | None = None,
        timeout: float | None = None,
    ) -> bool:
        """As `CommandRegistry.complete_command`."""
        decide = arguments.completion(state, completed_at, response_size_bytes, error)
        return self._decide(command_id, decide, context, connection, timeout)

    def mark_dispatched_if_not_terminal(
        self,
        command_id: str,
        dispatched_at: datetime,
        *,
        context: EventContext | None = None,
        connection: Connection[Any] | None = None,
        timeout: float | None = None,
    ) -> bool:
        """As `CommandRegistry.mark_dispatched_if_not_terminal`."""
        return self._decide(command_id, arguments.dispatch(dispatched_at), context, connection, timeout)

    def increment_attempt(
        self,
        command_id: str,
        *,
        context: EventContext | None = None,
        connection: Connection[Any] | None = None,
        timeout: float | None = None,
    ) -> int:
        """As `CommandRegistry.increment_attempt`."""
        return self._decide(command_id, decider.increment_attempt, context, connection, timeout)

    def resolve_target(
        self, deployment_id: str, requested: str | None = None, *, timeout: float | None = None
    ) -> ResolvedTarget:
        """As `CommandRegistry.resolve_target`."""
        limit, found = self._time(timeout), arguments.possible_id(deployment_id)
        deployment = None if found is None else self._deployment(found, limit)
        return resolve(running(deployment_id, deployment), requested)

    def expire_overdue(
        self,
        now: datetime | None = None,
        limit: int = DEFAULT_EXPIRE_LIMIT,
        *,
        context: EventContext | None = None,
        connection: Connection[Any] | None = None,
        timeout: float | None = None,
    ) -> list[str]:
        """As `CommandRegistry.expire_overdue`."""
        until = self._clock() if now is None else check_instant_argument("now", now)
        decide = decider.expire(until)
        deadline = time.monotonic() + self._time(timeout)
        overdue = self._overdue(until, arguments.expire_limit(limit), connection, self._time(timeout))
        time_left = max(0.0, deadline - time.monotonic())
        expired = self._write_each(overdue, decide, arguments.context_of(context), connection, time_left)
        return [command_id for command_id, done in zip(overdue, expired, strict=True) if done]

    def history(self, command_id: str, *, timeout: float | None = None) -> list[HistoryEntry]:
        """As `CommandRegistry.history`."""
        found = arguments.possible_id(command_id)
        if found is None:
            return []
        return [history_entry(event) for event in self._events(found, self._time(timeout))]

    def status_at(
        self,
        command_id: str,
        *,
        at: datetime | None = None,
        version: int | None = None,
        timeout: float | None = None,
    ) -> CommandStatus | None:
        """As `CommandRegistry.status_at`."""
        when = moment(at, version)
        found = arguments.possible_id(command_id)
        if found is None:
            return None
        return status_at(self._events(found, self._time(timeout)), when)


class AsyncRegistryCalls(ABC):
    """The calls of `AsyncCommandRegistry`, over the primitives of a storage."""

    def __init__(self, clock: Clock = utc_now, timeout: float = DEFAULT_TIMEOUT) -> None:
        self._clock = clock
        self._timeout = arguments.time_limit(timeout)

    def _time(self, timeout: float | None) -> float:
        return self._timeout if timeout is None else arguments.time_limit(timeout)

    @abstractmethod
    async def _create(
        self, call: NewCommand, context: EventContext, connection: AsyncConnection[Any] | None, timeout: float
    ) -> CommandStatus:
        """Create a command."""

    @abstractmethod
    async def _write(
        self,
        command_id: str,
        decide: Decide[R],
        context: EventContext,
        connection: AsyncConnection[Any] | None,
        timeout: float,
    ) -> R:
        """Decide on a command's fresh status, and append what follows."""

    @abstractmethod
    async def _write_each(
        self,
        command_ids: Sequence[str],
        decide: Decide[R],
        context: EventContext,
        connection: AsyncConnection[Any] | None,
        timeout: float,
    ) -> Sequence[R | None]:
        """Do the same to many commands; None for those that are not there."""

    @abstractmethod
    async def _status(self, command_id: str, timeout: float) -> CommandStatus | None:
        """Read a command's status."""

    @abstractmethod
    async def _events(self, command_id: str, timeout: float) -> Sequence[RecordedEvent]:
        """Read a command's events."""

    @abstractmethod
    async def _overdue(
        self, now: datetime, limit: int, connection: AsyncConnection[Any] | None, timeout: float
    ) -> Sequence[str]:
        """Find commands whose deadline has passed, the most overdue first."""

    @abstractmethod
    async def _deployment(self, deployment_id: str, timeout: float) -> Deployment | None:
        """Look a deployment up."""

    async def create_command(
        self,
        deployment_id: str,
        command_name: str,
        initial_state: CommandState = CommandState.PENDING,
        deadline: datetime | None = None,
        request_size_bytes: int | None = None,
        *,
        idempotency_key: str | None = None,
        target: str | None = None,
        context: EventContext | None = None,
        connection: AsyncConnection[Any] | None = None,
        timeout: float | None = None,
    ) -> CommandMetadata:
        """As `AsyncCommandRegistry.create_command`."""
        call = accept(
            NewCommand,
            deployment_id=deployment_id,
            command_name=command_name,
            initial_state=initial_state,
            deadline=deadline,
            request_size_bytes=request_size_bytes,
            idempotency_key=idempotency_key,
            target=target,
        )
        return answers.metadata(
            await self._create(call, arguments.context_of(context), connection, self._time(timeout))
        )

    async def _any_status(self, command_id: str, timeout: float | None) -> CommandStatus | None:
        found = arguments.possible_id(command_id)
        return None if found is None else await self._status(found, self._time(timeout))

    async def get_command_metadata(
        self, command_id: str, *, timeout: float | None = None
    ) -> CommandEnvelopeData | None:
        """As `AsyncCommandRegistry.get_command_metadata`."""
        status = await self._any_status(command_id, timeout)
        return None if status is None else answers.envelope(status)

    async def get_command_status(self, command_id: str, *, timeout: float | None = None) -> CommandStatus | None:
        """As `AsyncCommandRegistry.get_command_status`."""
        return await self._any_status(command_id, timeout)

    async def get_command_access_context(
        self, command_id: str, *, timeout: float | None = None
    ) -> CommandAccessContext | None:
        """As `AsyncCommandRegistry.get_command_access_context`."""
        status = await self._any_status(command_id, timeout)
        return None if status is None else answers.access_context(status)

    async def _decide(
        self,
        command_id: str,
        decide: Decide[R],
        context: EventContext | None,
        connection: AsyncConnection[Any] | None,
        timeout: float | None,
    ) -> R:
        return await self._write(
            arguments.existing_id(command_id), decide, arguments.context_of(context), connection, self._time(timeout)
        )

    async def update_command_state(
        self,
        command_id: str,
        state: CommandState,
        dispatched_at: datetime | None = None,
        completed_at: datetime | None = None,
        response_size_bytes: int | None = None,
        error: JsonValue = None,
        *,
        context: EventContext | None = None,
        connection: AsyncConnection[Any] | None = None,
        timeout: float | None = None,
    ) -> bool:
        """As `AsyncCommandRegistry.update_command_state`."""
        decide = arguments.state_update(state, dispatched_at, completed_at, response_size_bytes, error)
        return await self._decide(command_id, decide, context, connection, timeout)

    async def complete_command(
        self,
        command_id: str,
        state: CommandState,
        completed_at: datetime,
        response_size_bytes: int | None = None,
        error: JsonValue = None,
        *,
        context: EventContext | None = None,
        connection: AsyncConnection[Any] | None = None,
        timeout: float | None = None,
    ) -> bool:
        """As `AsyncCommandRegistry.complete_command`."""
        decide = arguments.completion(state, completed_at, response_size_bytes, error)
        return await self._decide(command_id, decide, context, connection, timeout)

    async def mark_dispatched_if_not_terminal(
        self,
        command_id: str,
        dispatched_at: datetime,
        *,
        context: EventContext | None = None,
        connection: AsyncConnection[Any] | None = None,
        timeout: float | None = None,
    ) -> bool:
        """As `AsyncCommandRegistry.mark_dispatched_if_not_terminal`."""
        return await self._decide(command_id, arguments.dispatch(dispatched_at), context, connection, timeout)

    async def increment_attempt(
        self,
        command_id: str,
        *,
        context: EventContext | None = None,
        connection: AsyncConnection[Any] | None = None,
        timeout: float | None = None,
    ) -> int:
        """As `AsyncCommandRegistry.increment_attempt`."""
        return await self._decide(command_id, decider.increment_attempt, context, connection, timeout)

    async def resolve_target(
        self, deployment_id: str, requested: str | None = None, *, timeout: float | None = None
    ) -> ResolvedTarget:
        """As `AsyncCommandRegistry.resolve_target`."""
        limit, found = self._time(timeout), arguments.possible_id(deployment_id)
        deployment = None if found is None else await self._deployment(found, limit)
        return resolve(running(deployment_id, deployment), requested)

    async def expire_overdue(
        self,
        now: datetime | None = None,
        limit: int = DEFAULT_EXPIRE_LIMIT,
        *,
        context: EventContext | None = None,
        connection: AsyncConnection[Any] | None = None,
        timeout: float | None = None,
    ) -> list[str]:
        """As `AsyncCommandRegistry.expire_overdue`."""
        until = self._clock() if now is None else check_instant_argument("now", now)
        decide = decider.expire(until)
        deadline = time.monotonic() + self._time(timeout)
        overdue = await self._overdue(until, arguments.expire_limit(limit), connection, self._time(timeout))
        time_left = max(0.0, deadline - time.monotonic())
        expired = await self._write_each(overdue, decide, arguments.context_of(context), connection, time_left)
        return [command_id for command_id, done in zip(overdue, expired, strict=True) if done]

    async def history(self, command_id: str, *, timeout: float | None = None) -> list[HistoryEntry]:
        """As `AsyncCommandRegistry.history`."""
        found = arguments.possible_id(command_id)
        if found is None:
            return []
        return [history_entry(event) for event in await self._events(found, self._time(timeout))]

    async def status_at(
        self,
        command_id: str,
        *,
        at: datetime | None = None,
        version: int | None = None,
        timeout: float | None = None,
    ) -> CommandStatus | None:
        """As `AsyncCommandRegistry.status_at`."""
        when = moment(at, version)
        found = arguments.possible_id(command_id)
        if found is None:
            return None
        return status_at(await self._events(found, self._time(timeout)), when)
