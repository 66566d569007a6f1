"""From a call's arguments to the decision it asks for, once for every implementation; `models` has the rules."""

from datetime import datetime

from pydantic import JsonValue

from eventstore.errors import InvalidEvent
from eventstore.event import name_problem, plain_text
from eventstore.plans import check_limit
from registry import decider
from registry.context import current_context
from registry.decider import Decide
from registry.errors import CommandNotFound, InvalidCommand
from registry.lifecycle import CommandState
from registry.models import EventContext, StateUpdate, accept, check_instant_argument, has_plain_fields

__all__ = [
    "completion",
    "context_of",
    "dispatch",
    "existing_id",
    "expire_limit",
    "possible_id",
    "state_update",
    "time_limit",
]


def possible_id(given: object) -> str | None:
    """Return an id as plain text; None for what can be none, which is answered without asking anybody."""
    return plain_text(given) if name_problem(given) is None else None


def existing_id(command_id: str) -> str:
    """Return an id that a write may look for.

    Raises:
        CommandNotFound: no command can have it.
    """
    found = possible_id(command_id)
    if found is None:
        raise CommandNotFound(command_id)
    return found


def context_of(context: EventContext | None) -> EventContext:
    """Return the context given, or else the one in force.

    Raises:
        InvalidCommand: it is none, or not any more: what was put into it since it was made cannot be accepted.
    """
    given = current_context() if context is None else context
    if not isinstance(given, EventContext):
        raise InvalidCommand("context", f"must be an EventContext, not {type(context).__name__}")
    if has_plain_fields(given):
        return given
    try:
        return accept(EventContext, **vars(given))
    except InvalidCommand as error:
        raise InvalidCommand(f"context.{error.field}", error.problem) from None


def state_update(
    state: CommandState,
    dispatched_at: datetime | None,
    completed_at: datetime | None,
    response_size_bytes: int | None,
    error: JsonValue,
) -> Decide[bool]:
    """Check the arguments of `update_command_state`."""
    return decider.update_state(
        accept(
            StateUpdate,
            state=state,
            dispatched_at=dispatched_at,
            completed_at=completed_at,
            response_size_bytes=response_size_bytes,
            error=error,
        )
    )


def completion(
    state: CommandState, completed_at: datetime, response_size_bytes: int | None, error: JsonValue
) -> Decide[bool]:
    """Check the arguments of `complete_command`."""
    return decider.complete(
        accept(
            StateUpdate,
            state=state,
            completed_at=check_instant_argument("completed_at", completed_at),
            response_size_bytes=response_size_bytes,
            error=error,
        )
    )


def dispatch(dispatched_at: datetime) -> Decide[bool]:
    """Check the arguments of `mark_dispatched_if_not_terminal`."""
    return decider.mark_dispatched(check_instant_argument("dispatched_at", dispatched_at))


def expire_limit(limit: int) -> int:
    """Check the limit of `expire_overdue`.

    Raises:
        InvalidCommand: it is not in 1..100,000.
    """
    if not isinstance(limit, int) or isinstance(limit, bool):
        raise InvalidCommand("limit", f"must be a whole number, not {type(limit).__name__}")
    try:
        return check_limit(limit)
    except InvalidEvent as error:
        raise InvalidCommand(error.field, error.problem) from None


LONGEST_TIMEOUT = 1_000_000.0


def time_limit(timeout: float) -> float:
    """Check how long a call may take, in seconds.

    Raises:
        InvalidCommand: it is no number above 0, at most a million.
    """
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):
        raise InvalidCommand("timeout", f"must be a number of seconds, not {type(timeout).__name__}")
    if not 0 < timeout <= LONGEST_TIMEOUT:
        raise InvalidCommand("timeout", f"must be above 0 and at most {LONGEST_TIMEOUT:.0f} seconds")
    return timeout
