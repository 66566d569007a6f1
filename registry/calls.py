"""The calls of a registry over a few primitives, so that every implementation shares what is not its storage."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from psycopg import AsyncConnection, Connection
from pydantic import JsonValue

from eventstore.event import RecordedEvent
from registry import answers, arguments, decider
from registry.decider import Decide
from registry.deployments import Deployment, resolve, running
from registry.errors import CommandNotFound
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
from registry.plans import Clock
from registry.protocol import DEFAULT_EXPIRE_LIMIT

__all__ = ["AsyncRegistryCalls", "RegistryCalls", "utc_now"]

R = TypeVar("R")


def utc_now() -> datetime:
    """Tell the time."""
    return datetime.now(UTC)


class RegistryCalls(ABC):
    """The calls of `CommandRegistry`, over the primitives of a storage."""

    def __init__(self, clock: Clock = utc_now) -> None:
        self._clock = clock

    @abstractmethod
    def _create(self, call: NewCommand, context: EventContext, connection: Connection[Any] | None) -> CommandStatus:
        """Create a command."""

    @abstractmethod
    def _write(
        self, command_id: str, decide: Decide[R], context: EventContext, connection: Connection[Any] | None
    ) -> R:
        """Decide on a command's fresh status, and append what follows."""

    @abstractmethod
    def _status(self, command_id: str) -> CommandStatus | None:
        """Read a command's status."""

    @abstractmethod
    def _events(self, command_id: str) -> Sequence[RecordedEvent]:
        """Read a command's events."""

    @abstractmethod
    def _overdue(self, now: datetime, limit: int, connection: Connection[Any] | None) -> Sequence[str]:
        """Find commands whose deadline has passed, the most overdue first."""

    @abstractmethod
    def _deployment(self, deployment_id: str) -> Deployment | None:
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
        return answers.metadata(self._create(call, arguments.context_of(context), connection))

    def _any_status(self, command_id: str) -> CommandStatus | None:
        return self._status(command_id) if arguments.is_possible_id(command_id) else None

    def get_command_metadata(self, command_id: str) -> CommandEnvelopeData | None:
        """As `CommandRegistry.get_command_metadata`."""
        status = self._any_status(command_id)
        return None if status is None else answers.envelope(status)

    def get_command_status(self, command_id: str) -> CommandStatus | None:
        """As `CommandRegistry.get_command_status`."""
        return self._any_status(command_id)

    def get_command_access_context(self, command_id: str) -> CommandAccessContext | None:
        """As `CommandRegistry.get_command_access_context`."""
        status = self._any_status(command_id)
        return None if status is None else answers.access_context(status)

    def _decide(
        self, command_id: str, decide: Decide[R], context: EventContext | None, connection: Connection[Any] | None
    ) -> R:
        return self._write(arguments.existing_id(command_id), decide, arguments.context_of(context), connection)

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
    ) -> bool:
        """As `CommandRegistry.update_command_state`."""
        decide = arguments.state_update(state, dispatched_at, completed_at, response_size_bytes, error)
        return self._decide(command_id, decide, context, connection)

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
    ) -> bool:
        """As `CommandRegistry.complete_command`."""
        decide = arguments.completion(state, completed_at, response_size_bytes, error)
        return self._decide(command_id, decide, context, connection)

    def mark_dispatched_if_not_terminal(
        self,
        command_id: str,
        dispatched_at: datetime,
        *,
        context: EventContext | None = None,
        connection: Connection[Any] | None = None,
    ) -> bool:
        """As `CommandRegistry.mark_dispatched_if_not_terminal`."""
        return self._decide(command_id, arguments.dispatch(dispatched_at), context, connection)

    def increment_attempt(
        self, command_id: str, *, context: EventContext | None = None, connection: Connection[Any] | None = None
    ) -> int:
        """As `CommandRegistry.increment_attempt`."""
        return self._decide(command_id, decider.increment_attempt, context, connection)

    def resolve_target(self, deployment_id: str, requested: str | None = None) -> ResolvedTarget:
        """As `CommandRegistry.resolve_target`."""
        deployment = self._deployment(deployment_id)
        return resolve(running(deployment_id, deployment), requested)

    def expire_overdue(
        self,
        now: datetime | None = None,
        limit: int = DEFAULT_EXPIRE_LIMIT,
        *,
        context: EventContext | None = None,
        connection: Connection[Any] | None = None,
    ) -> list[str]:
        """As `CommandRegistry.expire_overdue`."""
        until = self._clock() if now is None else check_instant_argument("now", now)
        decide = decider.expire(until)
        overdue = self._overdue(until, arguments.expire_limit(limit), connection)
        return [command_id for command_id in overdue if self._expire(command_id, decide, context, connection)]

    def _expire(
        self, command_id: str, decide: Decide[bool], context: EventContext | None, connection: Connection[Any] | None
    ) -> bool:
        try:
            return self._decide(command_id, decide, context, connection)
        except CommandNotFound:  # a row without events: for `verify` to tell of, and not to stop the others
            return False

    def history(self, command_id: str) -> list[HistoryEntry]:
        """As `CommandRegistry.history`."""
        if not arguments.is_possible_id(command_id):
            return []
        return [history_entry(event) for event in self._events(command_id)]

    def status_at(
        self, command_id: str, *, at: datetime | None = None, version: int | None = None
    ) -> CommandStatus | None:
        """As `CommandRegistry.status_at`."""
        when = moment(at, version)
        if not arguments.is_possible_id(command_id):
            return None
        return status_at(self._events(command_id), when)


class AsyncRegistryCalls(ABC):
    """The calls of `AsyncCommandRegistry`, over the primitives of a storage."""

    def __init__(self, clock: Clock = utc_now) -> None:
        self._clock = clock

    @abstractmethod
    async def _create(
        self, call: NewCommand, context: EventContext, connection: AsyncConnection[Any] | None
    ) -> CommandStatus:
        """Create a command."""

    @abstractmethod
    async def _write(
        self, command_id: str, decide: Decide[R], context: EventContext, connection: AsyncConnection[Any] | None
    ) -> R:
        """Decide on a command's fresh status, and append what follows."""

    @abstractmethod
    async def _status(self, command_id: str) -> CommandStatus | None:
        """Read a command's status."""

    @abstractmethod
    async def _events(self, command_id: str) -> Sequence[RecordedEvent]:
        """Read a command's events."""

    @abstractmethod
    async def _overdue(self, now: datetime, limit: int, connection: AsyncConnection[Any] | None) -> Sequence[str]:
        """Find commands whose deadline has passed, the most overdue first."""

    @abstractmethod
    async def _deployment(self, deployment_id: str) -> Deployment | None:
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
        return answers.metadata(await self._create(call, arguments.context_of(context), connection))

    async def _any_status(self, command_id: str) -> CommandStatus | None:
        return await self._status(command_id) if arguments.is_possible_id(command_id) else None

    async def get_command_metadata(self, command_id: str) -> CommandEnvelopeData | None:
        """As `AsyncCommandRegistry.get_command_metadata`."""
        status = await self._any_status(command_id)
        return None if status is None else answers.envelope(status)

    async def get_command_status(self, command_id: str) -> CommandStatus | None:
        """As `AsyncCommandRegistry.get_command_status`."""
        return await self._any_status(command_id)

    async def get_command_access_context(self, command_id: str) -> CommandAccessContext | None:
        """As `AsyncCommandRegistry.get_command_access_context`."""
        status = await self._any_status(command_id)
        return None if status is None else answers.access_context(status)

    async def _decide(
        self, command_id: str, decide: Decide[R], context: EventContext | None, connection: AsyncConnection[Any] | None
    ) -> R:
        return await self._write(arguments.existing_id(command_id), decide, arguments.context_of(context), connection)

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
    ) -> bool:
        """As `AsyncCommandRegistry.update_command_state`."""
        decide = arguments.state_update(state, dispatched_at, completed_at, response_size_bytes, error)
        return await self._decide(command_id, decide, context, connection)

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
    ) -> bool:
        """As `AsyncCommandRegistry.complete_command`."""
        decide = arguments.completion(state, completed_at, response_size_bytes, error)
        return await self._decide(command_id, decide, context, connection)

    async def mark_dispatched_if_not_terminal(
        self,
        command_id: str,
        dispatched_at: datetime,
        *,
        context: EventContext | None = None,
        connection: AsyncConnection[Any] | None = None,
    ) -> bool:
        """As `AsyncCommandRegistry.mark_dispatched_if_not_terminal`."""
        return await self._decide(command_id, arguments.dispatch(dispatched_at), context, connection)

    async def increment_attempt(
        self, command_id: str, *, context: EventContext | None = None, connection: AsyncConnection[Any] | None = None
    ) -> int:
        """As `AsyncCommandRegistry.increment_attempt`."""
        return await self._decide(command_id, decider.increment_attempt, context, connection)

    async def resolve_target(self, deployment_id: str, requested: str | None = None) -> ResolvedTarget:
        """As `AsyncCommandRegistry.resolve_target`."""
        deployment = await self._deployment(deployment_id)
        return resolve(running(deployment_id, deployment), requested)

    async def expire_overdue(
        self,
        now: datetime | None = None,
        limit: int = DEFAULT_EXPIRE_LIMIT,
        *,
        context: EventContext | None = None,
        connection: AsyncConnection[Any] | None = None,
    ) -> list[str]:
        """As `AsyncCommandRegistry.expire_overdue`."""
        until = self._clock() if now is None else check_instant_argument("now", now)
        decide = decider.expire(until)
        overdue = await self._overdue(until, arguments.expire_limit(limit), connection)
        return [command_id for command_id in overdue if await self._expire(command_id, decide, context, connection)]

    async def _expire(
        self,
        command_id: str,
        decide: Decide[bool],
        context: EventContext | None,
        connection: AsyncConnection[Any] | None,
    ) -> bool:
        try:
            return await self._decide(command_id, decide, context, connection)
        except CommandNotFound:  # a row without events: for `verify` to tell of, and not to stop the others
            return False

    async def history(self, command_id: str) -> list[HistoryEntry]:
        """As `AsyncCommandRegistry.history`."""
        if not arguments.is_possible_id(command_id):
            return []
        return [history_entry(event) for event in await self._events(command_id)]

    async def status_at(
        self, command_id: str, *, at: datetime | None = None, version: int | None = None
    ) -> CommandStatus | None:
        """As `AsyncCommandRegistry.status_at`."""
        when = moment(at, version)
        if not arguments.is_possible_id(command_id):
            return None
        return status_at(await self._events(command_id), when)
