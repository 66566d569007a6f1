"""The whole domain logic, pure: what a call means for a command, and what an event makes of its status.

Each decision is given the status as it is, and answers with the events that follow and what the caller is told; or it
refuses. `evolve` is the one fold: the read model, the registry in memory, replay, time travel and rebuild all use it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Generic, TypeAlias, TypeVar, assert_never

import orjson
from pydantic import JsonValue

from eventstore.codec import encode_json
from registry.deployments import Deployment
from registry.errors import InvalidCommand, InvalidCommandState, InvalidTransition
from registry.events import AttemptIncremented, CommandCreated, CommandEvent, CommandTransitioned
from registry.lifecycle import CommandState, can_transition_to, is_terminal
from registry.models import MAX_ATTEMPT, CommandStatus, NewCommand, StateUpdate, Target, instant_text, trusted

__all__ = [
    "Clock",
    "Decide",
    "Decision",
    "complete",
    "create",
    "evolve",
    "expire",
    "increment_attempt",
    "mark_dispatched",
    "replay",
    "update_state",
]

R = TypeVar("R")

Clock: TypeAlias = Callable[[], datetime]
"""Tells the time that events occur at."""


@dataclass(frozen=True, slots=True)
class Decision(Generic[R]):
    """What the caller is told, and the events that make it true (none: nothing changes)."""

    answer: R
    events: tuple[CommandEvent, ...] = ()


Decide: TypeAlias = Callable[[CommandStatus], Decision[R]]
"""A call, waiting for the status to decide on."""


def create(
    command_id: str, call: NewCommand, deployment: Deployment, target: Target, created_at: datetime
) -> CommandCreated:
    """Create a command of a deployment."""
    return trusted(
        CommandCreated,
        {
            "command_id": command_id,
            "workspace_id": deployment.workspace_id,
            "project_id": deployment.project_id,
            "deployment_id": deployment.id,
            "command": call.command_name,
            "state": call.initial_state,
            "created_at": created_at,
            "deadline": call.deadline,
            "request_size_bytes": call.request_size_bytes,
            "deployment_model": deployment.deployment_model,
            "target": target,
        },
    )


def update_state(update: StateUpdate) -> Decide[bool]:
    """Move a command as the matrix allows: False when it is terminal, and no event when nothing is new.

    Raises (when decided):
        InvalidTransition: the matrix forbids it.
    """

    def decide(status: CommandStatus) -> Decision[bool]:
        if is_terminal(status.state):
            return Decision(answer=False)
        if not can_transition_to(status.state, update.state):
            raise InvalidTransition(status.command_id, status.state, update.state)
        return _transition(status, update)

    return decide


def complete(update: StateUpdate) -> Decide[bool]:
    """Give a command its result, from any state that is not terminal: a response after a released lease is real work.

    Raises:
        InvalidCommandState: the state given is not terminal.
    """
    if not is_terminal(update.state):
        raise InvalidCommandState("state", f"must be SUCCEEDED, FAILED or EXPIRED to complete, not {update.state}")
    return _unless_terminal(update)


def mark_dispatched(dispatched_at: datetime) -> Decide[bool]:
    """Note that a command is with its deployment, from any state that is not terminal."""
    return _unless_terminal(
        trusted(
            StateUpdate,
            {
                "state": CommandState.DISPATCHED,
                "dispatched_at": dispatched_at,
                "completed_at": None,
                "response_size_bytes": None,
                "error": None,
            },
        )
    )


def increment_attempt(status: CommandStatus) -> Decision[int]:
    """Count one more attempt; on a terminal command the number stays."""
    if is_terminal(status.state):
        return Decision(status.attempt)
    if status.attempt == MAX_ATTEMPT:
        raise InvalidCommand(
            "attempt", f"command {status.command_id!r} has had all {MAX_ATTEMPT} attempts there can be"
        )
    attempt = status.attempt + 1
    return Decision(attempt, (AttemptIncremented(attempt=attempt),))


def expire(now: datetime) -> Decide[bool]:
    """Let a command expire whose deadline has passed by `now`; False when it has not, or the command is terminal."""

    def decide(status: CommandStatus) -> Decision[bool]:
        if is_terminal(status.state) or status.deadline is None or status.deadline > now:
            return Decision(answer=False)
        error: JsonValue = {"code": "COMMAND_EXPIRED", "message": f"Deadline {instant_text(status.deadline)} elapsed"}
        return _transition(status, StateUpdate(state=CommandState.EXPIRED, completed_at=now, error=error))

    return decide


def _unless_terminal(update: StateUpdate) -> Decide[bool]:
    def decide(status: CommandStatus) -> Decision[bool]:
        return Decision(answer=False) if is_terminal(status.state) else _transition(status, update)

    return decide


_FACTS: Final = ("dispatched_at", "completed_at", "response_size_bytes", "error")
_NO_TRANSITION: Final = dict.fromkeys(CommandTransitioned.model_fields)


def _transition(status: CommandStatus, update: StateUpdate) -> Decision[bool]:
    facts = {name: value for name in _FACTS if (value := getattr(update, name)) is not None}
    states = {"from_state": status.state, "to_state": update.state}
    if update.state == status.state and all(_same(value, getattr(status, name)) for name, value in facts.items()):
        return Decision(answer=True)
    return Decision(True, (trusted(CommandTransitioned, (_NO_TRANSITION | states | facts)),))


def _same(new: object, stored: object) -> bool:
    """Compare as JSON does: Python takes 1, 1.0 and True for equal; the order of an object's keys says nothing."""
    if encode_json(new) == encode_json(stored):
        return True
    return isinstance(new, dict | list) and new == stored and _in_order(new) == _in_order(stored)


def _in_order(value: object) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def evolve(status: CommandStatus | None, event: CommandEvent) -> CommandStatus:
    """Fold one event into the status before it (None: there was none).

    Raises:
        ValueError: a stream that does not begin with a creation, or has a second one.
    """
    match event:
        case CommandCreated():
            if status is not None:
                raise ValueError(f"command {event.command_id!r} was created twice")
            return trusted(
                CommandStatus,
                {
                    "command_id": event.command_id,
                    "workspace_id": event.workspace_id,
                    "project_id": event.project_id,
                    "deployment_id": event.deployment_id,
                    "command": event.command,
                    "state": event.state,
                    "attempt": 1,
                    "deadline": event.deadline,
                    "created_at": event.created_at,
                    "dispatched_at": None,
                    "completed_at": None,
                    "error": None,
                    "request_size_bytes": event.request_size_bytes,
                    "response_size_bytes": None,
                    "deployment_model": event.deployment_model,
                    "target": event.target,
                    "version": 1,
                },
            )
        case CommandTransitioned():
            known = _created(status)
            told = vars(event)
            facts = {name: told[name] for name in _FACTS if told[name] is not None}
            return _changed(known, {"state": event.to_state} | facts)
        case AttemptIncremented():
            known = _created(status)
            return _changed(known, {"attempt": event.attempt})
        case _:
            assert_never(event)


def _changed(known: CommandStatus, facts: dict[str, object]) -> CommandStatus:
    values = vars(known) | facts
    values["version"] += 1
    return trusted(CommandStatus, values)


def _created(status: CommandStatus | None) -> CommandStatus:
    if status is None:
        raise ValueError("a stream of a command begins with its creation")
    return status


def replay(events: Sequence[CommandEvent], status: CommandStatus | None = None) -> CommandStatus:
    """Fold events (at least one), from the first or from a status on."""
    for event in events:
        status = evolve(status, event)
    return _created(status)
