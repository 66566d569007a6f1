"""What a command registry does, for threads and for asyncio. Every implementation gives the same answers."""

from datetime import datetime
from typing import Any, Protocol

from psycopg import AsyncConnection, Connection
from pydantic import JsonValue

from registry.history import HistoryEntry
from registry.lifecycle import CommandState
from registry.models import (
    CommandAccessContext,
    CommandEnvelopeData,
    CommandMetadata,
    CommandStatus,
    EventContext,
    ResolvedTarget,
)

__all__ = ["DEFAULT_EXPIRE_LIMIT", "AsyncCommandRegistry", "CommandRegistry"]

DEFAULT_EXPIRE_LIMIT = 1000


class CommandRegistry(Protocol):
    """The source of truth for what became of each command.

    Ids and names have 1..255 characters, without control characters. Instants are datetimes with a time zone, in the
    years 1..9999 UTC. Sizes are bytes, 0..2**64-1. An error is any JSON value of at most 64 KiB, nested at most 64
    deep. Whatever else is given raises `InvalidCommand`, which names the field; but an id that no command can have is
    simply not found.

    Every write takes `context` (who calls; default: that of `command_context`) and `connection` (then it runs in that
    connection's transaction: it commits or vanishes with it). Such a transaction should be short: until it ends, other
    writes of the same command, or of the same idempotency key, wait for it; and two of them that write the same
    commands in opposite order are a deadlock, which Postgres ends with an error for one.

    Every call takes `timeout`: in how many seconds it has its answer (default: the registry's). It may raise
    `Unavailable` when the server is away or other transactions let nobody through (nothing was written), and a write
    `OutcomeUnknown` when the server vanished while it was committing, and could not be asked in time. Then it may be
    repeated, but an increment may count twice, and a creation needs an `idempotency_key` to be the same command.
    """

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
        """Create a command of a deployment, for its first attempt.

        `target`: the id of the deployment's target it is for (default: the only one). `idempotency_key`: a repeated
        call with the same key and arguments answers with the first command; keys are the registry's, so a caller that
        serves several tenants puts the tenant in.

        Raises:
            InvalidCommand: an argument cannot be accepted, or the deployment is not running.
            DeploymentNotFound: the directory knows no such deployment.
            TargetError: the target cannot be resolved (`resolve_target`).
            IdempotencyConflict: the key was used before, with other arguments.
        """
        ...

    def get_command_metadata(self, command_id: str, *, timeout: float | None = None) -> CommandEnvelopeData | None:
        """Read what is needed to send a command; None when there is no such command."""
        ...

    def get_command_status(self, command_id: str, *, timeout: float | None = None) -> CommandStatus | None:
        """Read a command's status; None when there is no such command."""
        ...

    def get_command_access_context(
        self, command_id: str, *, timeout: float | None = None
    ) -> CommandAccessContext | None:
        """Read whose a command is; None when there is no such command."""
        ...

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
        """Move a command as the matrix of `registry.lifecycle` allows; a None keeps the stored value.

        True when it is so now; False when the command is terminal already, and nothing changed.

        Raises:
            CommandNotFound: there is no such command.
            InvalidTransition: the matrix forbids it.
            InvalidCommand: an argument cannot be accepted.
        """
        ...

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
        """Give a command its result, from any state that is not terminal.

        True for exactly one of any number of racing callers; False when the command is terminal already.

        Raises:
            CommandNotFound: there is no such command.
            InvalidCommandState: a ValueError: `state` is not terminal.
            InvalidCommand: an argument cannot be accepted.
        """
        ...

    def mark_dispatched_if_not_terminal(
        self,
        command_id: str,
        dispatched_at: datetime,
        *,
        context: EventContext | None = None,
        connection: Connection[Any] | None = None,
        timeout: float | None = None,
    ) -> bool:
        """Note that a command went to its deployment; False when it is terminal already, and nothing changed.

        Raises:
            CommandNotFound: there is no such command.
            InvalidCommand: an argument cannot be accepted.
        """
        ...

    def increment_attempt(
        self,
        command_id: str,
        *,
        context: EventContext | None = None,
        connection: Connection[Any] | None = None,
        timeout: float | None = None,
    ) -> int:
        """Count one more attempt, and return its number; on a terminal command the number stays as it is.

        Raises:
            CommandNotFound: there is no such command.
        """
        ...

    def resolve_target(
        self, deployment_id: str, requested: str | None = None, *, timeout: float | None = None
    ) -> ResolvedTarget:
        """Find the target of a deployment that a command would be for: the one asked for, or the only one.

        Raises:
            InvalidCommand: the deployment is not running, or `requested` is no text.
            DeploymentNotFound: the directory knows no such deployment.
            TargetIdInvalid: the id asked for holds a colon.
            TargetNotFound: the deployment has no target of the id asked for.
            NoTargets: none was asked for, and there is none to choose.
            TargetAmbiguous: none was asked for, and there is more than one.
        """
        ...

    def expire_overdue(
        self,
        now: datetime | None = None,
        limit: int = DEFAULT_EXPIRE_LIMIT,
        *,
        context: EventContext | None = None,
        connection: Connection[Any] | None = None,
        timeout: float | None = None,
    ) -> list[str]:
        """Let up to `limit` (1..100,000) commands expire whose deadline is not after `now`, the most overdue first.

        Returns the ids of those that this call expired; an empty list means that none was left to expire, or that
        others were expiring them at this moment. Any number of processes may do this at once: each command expires
        once.
        """
        ...

    def history(self, command_id: str, *, timeout: float | None = None) -> list[HistoryEntry]:
        """Read a command's events, in order; empty when there is no such command."""
        ...

    def status_at(
        self,
        command_id: str,
        *,
        at: datetime | None = None,
        version: int | None = None,
        timeout: float | None = None,
    ) -> CommandStatus | None:
        """Read the status that a command had at an instant, or at a version of its stream; give one of the two.

        `at`: the fold of all events up to the last that had occurred by then (so a status between two clocks is one
        that the command really had). None when the command did not exist yet, or never got to that version.

        Raises:
            InvalidCommand: neither or both were given, `at` is no instant, or `version` is not 1 or more.
        """
        ...


class AsyncCommandRegistry(Protocol):
    """`CommandRegistry` for asyncio: the same calls, answers and errors."""

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
        """As `CommandRegistry.create_command`."""
        ...

    async def get_command_metadata(
        self, command_id: str, *, timeout: float | None = None
    ) -> CommandEnvelopeData | None:
        """As `CommandRegistry.get_command_metadata`."""
        ...

    async def get_command_status(self, command_id: str, *, timeout: float | None = None) -> CommandStatus | None:
        """As `CommandRegistry.get_command_status`."""
        ...

    async def get_command_access_context(
        self, command_id: str, *, timeout: float | None = None
    ) -> CommandAccessContext | None:
        """As `CommandRegistry.get_command_access_context`."""
        ...

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
        """As `CommandRegistry.update_command_state`."""
        ...

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
        """As `CommandRegistry.complete_command`."""
        ...

    async def mark_dispatched_if_not_terminal(
        self,
        command_id: str,
        dispatched_at: datetime,
        *,
        context: EventContext | None = None,
        connection: AsyncConnection[Any] | None = None,
        timeout: float | None = None,
    ) -> bool:
        """As `CommandRegistry.mark_dispatched_if_not_terminal`."""
        ...

    async def increment_attempt(
        self,
        command_id: str,
        *,
        context: EventContext | None = None,
        connection: AsyncConnection[Any] | None = None,
        timeout: float | None = None,
    ) -> int:
        """As `CommandRegistry.increment_attempt`."""
        ...

    async def resolve_target(
        self, deployment_id: str, requested: str | None = None, *, timeout: float | None = None
    ) -> ResolvedTarget:
        """As `CommandRegistry.resolve_target`."""
        ...

    async def expire_overdue(
        self,
        now: datetime | None = None,
        limit: int = DEFAULT_EXPIRE_LIMIT,
        *,
        context: EventContext | None = None,
        connection: AsyncConnection[Any] | None = None,
        timeout: float | None = None,
    ) -> list[str]:
        """As `CommandRegistry.expire_overdue`."""
        ...

    async def history(self, command_id: str, *, timeout: float | None = None) -> list[HistoryEntry]:
        """As `CommandRegistry.history`."""
        ...

    async def status_at(
        self,
        command_id: str,
        *,
        at: datetime | None = None,
        version: int | None = None,
        timeout: float | None = None,
    ) -> CommandStatus | None:
        """As `CommandRegistry.status_at`."""
        ...
