"""The lives that contenders give their commands: created, dispatched, completed; made by the registry's own code."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final, NamedTuple, TypeAlias

from eventstore.event import StreamEnd, StreamEvent
from eventstore.hashing import chain
from registry import decider
from registry.decider import Decide
from registry.deployments import FixedDeployments, resolve, running
from registry.events import CODEC, CommandEvent
from registry.history import metadata_text
from registry.lifecycle import CommandState
from registry.models import CommandStatus, EventContext, NewCommand, StateUpdate

__all__ = [
    "COMMAND",
    "CONTEXT",
    "DEPLOYMENT",
    "EVENTS",
    "LEASE",
    "REQUEST_SIZE",
    "RESPONSE_SIZE",
    "Life",
    "Written",
    "command_id",
    "life",
    "retried_life",
]

EVENTS: Final = 3
"""Events of a life without a further attempt."""

DEPLOYMENT: Final = "dep_eu1"
COMMAND: Final = "sync-data"
REQUEST_SIZE: Final = 2048
RESPONSE_SIZE: Final = 512
LEASE: Final = timedelta(hours=1)
"""From a command's creation to its deadline."""

CONTEXT: Final = EventContext(actor="scheduler", request_id="req-1")
"""What every event's metadata says."""

_SECOND: Final = timedelta(seconds=1)
_FIRST: Final = 10**18


class Written(NamedTuple):
    """One write: the stream's end before it, the event that it appends, and the status after it."""

    end: StreamEnd | None
    event: StreamEvent
    status: CommandStatus


Life: TypeAlias = Callable[[str, datetime], tuple[Written, ...]]
"""Gives the writes of a command that is created at an instant."""


def command_id(number: int) -> str:
    """Give the id of a numbered command, as long as the registry's own, and ordered before all of those.

    A program that cannot remember ids makes it anew from the number: nine zeros, and 19 digits that begin with 1.
    """
    return f"cmd_{_FIRST + number:028d}"


def life(command: str, at: datetime) -> tuple[Written, Written, Written]:
    """Give the three writes of a command that is created at an instant, and done two seconds later."""
    created = _created(command, at)
    return created, *_done(created, at)


def retried_life(command: str, at: datetime) -> tuple[Written, Written, Written, Written]:
    """Give the same, with one attempt more before it is dispatched."""
    created = _created(command, at)
    retried = _next(created, decider.increment_attempt, at)
    return created, retried, *_done(retried, at)


def _created(command: str, at: datetime) -> Written:
    call = NewCommand(
        deployment_id=DEPLOYMENT, command_name=COMMAND, deadline=at + LEASE, request_size_bytes=REQUEST_SIZE
    )
    deployment = running(DEPLOYMENT, FixedDeployments().get(DEPLOYMENT))
    event = decider.create(command, call, deployment, resolve(deployment, None).target, at)
    return _written(command, None, event, at)


def _done(before: Written, at: datetime) -> tuple[Written, Written]:
    dispatched = _next(before, decider.mark_dispatched(at + _SECOND), at + _SECOND)
    result = StateUpdate(state=CommandState.SUCCEEDED, completed_at=at + 2 * _SECOND, response_size_bytes=RESPONSE_SIZE)
    return dispatched, _next(dispatched, decider.complete(result), at + 2 * _SECOND)


def _next(before: Written, decide: Decide[bool] | Decide[int], at: datetime) -> Written:
    [event] = decide(before.status).events
    return _written(before.event.stream_id, before, event, at)


def _written(command: str, before: Written | None, event: CommandEvent, at: datetime) -> Written:
    end = StreamEnd(before.event.version, before.event.hash) if before else None
    [chained] = chain(command, end, [CODEC.encode(event, at, metadata_text(CONTEXT))])
    return Written(end, chained, decider.evolve(before.status if before else None, event))
