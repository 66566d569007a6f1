"""The life that every contender gives its commands: created, dispatched, completed; made by the registry's own code."""

from datetime import datetime, timedelta
from typing import Final, NamedTuple

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
    "Written",
    "command_id",
    "life",
]

EVENTS: Final = 3
"""Events of a life."""

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


def command_id(number: int) -> str:
    """Give the id of a numbered command, as long as the registry's own, and ordered before all of those.

    A program that cannot remember ids makes it anew from the number: nine zeros, and 19 digits that begin with 1.
    """
    return f"cmd_{_FIRST + number:028d}"


def life(command: str, at: datetime) -> tuple[Written, Written, Written]:
    """Give the three writes of a command that is created at an instant, and done two seconds later."""
    call = NewCommand(
        deployment_id=DEPLOYMENT, command_name=COMMAND, deadline=at + LEASE, request_size_bytes=REQUEST_SIZE
    )
    deployment = running(DEPLOYMENT, FixedDeployments().get(DEPLOYMENT))
    event = decider.create(command, call, deployment, resolve(deployment, None).target, at)
    created = _written(command, None, event, at)
    dispatched = _next(created, decider.mark_dispatched(at + _SECOND), at + _SECOND)
    result = StateUpdate(state=CommandState.SUCCEEDED, completed_at=at + 2 * _SECOND, response_size_bytes=RESPONSE_SIZE)
    return created, dispatched, _next(dispatched, decider.complete(result), at + 2 * _SECOND)


def _next(before: Written, decide: Decide[bool], at: datetime) -> Written:
    [event] = decide(before.status).events
    return _written(before.event.stream_id, before, event, at)


def _written(command: str, before: Written | None, event: CommandEvent, at: datetime) -> Written:
    end = StreamEnd(before.event.version, before.event.hash) if before else None
    [chained] = chain(command, end, [CODEC.encode(event, at, metadata_text(CONTEXT))])
    return Written(end, chained, decider.evolve(before.status if before else None, event))
