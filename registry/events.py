"""The events of a command's life, and how they are written in the log."""

from typing import Final, TypeAlias

from pydantic import JsonValue

from eventstore.codec import EventCodec, EventType
from registry.lifecycle import CommandState
from registry.models import DeploymentModel, Instant, Model, Target

__all__ = ["CODEC", "AttemptIncremented", "CommandCreated", "CommandEvent", "CommandTransitioned"]


class CommandCreated(Model):
    """A command was created, for its first attempt."""

    command_id: str
    workspace_id: str
    project_id: str
    deployment_id: str
    command: str
    state: CommandState
    created_at: Instant
    deadline: Instant | None = None
    request_size_bytes: int | None = None
    deployment_model: DeploymentModel
    target: Target | None = None


class CommandTransitioned(Model):
    """A command went from one state to another, or to the same one with further facts.

    What is None was not told, and keeps its value.
    """

    from_state: CommandState
    to_state: CommandState
    dispatched_at: Instant | None = None
    completed_at: Instant | None = None
    response_size_bytes: int | None = None
    error: JsonValue = None


class AttemptIncremented(Model):
    """A command is tried once more; `attempt` is the number of the new attempt, 2 or more."""

    attempt: int


CommandEvent: TypeAlias = CommandCreated | CommandTransitioned | AttemptIncremented

CODEC: Final = EventCodec[CommandEvent](
    EventType("CommandCreated", CommandCreated),
    EventType("CommandTransitioned", CommandTransitioned),
    EventType("AttemptIncremented", AttemptIncremented),
)
"""Reads and writes these events."""
