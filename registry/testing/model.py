"""The contract as a model: a tuple for each command, and the tables of the docs.

Written from the contract and not from the code: nothing of `registry.decider` or `registry.lifecycle` is used here, so
that a fault there is found and not shared.
"""

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, Self, TypeAlias

__all__ = [
    "ALLOWED",
    "CREATED",
    "FACTS",
    "JUDGED",
    "MAX_ATTEMPT",
    "TERMINAL",
    "Answer",
    "Envelope",
    "Known",
    "Refused",
    "Status",
    "canonical",
    "created",
    "elapsed_error",
    "expected",
]

ALLOWED: Final[Mapping[str, frozenset[str]]] = {
    "PENDING_UPLOAD": frozenset({"PENDING_UPLOAD", "PENDING", "FAILED", "EXPIRED"}),
    "PENDING": frozenset({"PENDING", "DISPATCHED", "FAILED", "EXPIRED"}),
    "DISPATCHED": frozenset({"DISPATCHED", "PENDING", "SUCCEEDED", "FAILED", "EXPIRED"}),
}
"""From each state that is not terminal, the states that `update_command_state` may move a command to."""

TERMINAL: Final = frozenset({"SUCCEEDED", "FAILED", "EXPIRED"})
MAX_ATTEMPT: Final = 2**32 - 1


class Status(NamedTuple):
    """What `get_command_status` tells of a command, as far as calls decide it.

    `error` is canonical JSON text (None: there is none); `version` is None where an implementation has no versions.
    """

    deployment_id: str
    command: str
    state: str
    attempt: int
    deadline: datetime | None
    dispatched_at: datetime | None
    completed_at: datetime | None
    error: str | None
    request_size_bytes: int | None
    response_size_bytes: int | None
    version: int | None


class Envelope(NamedTuple):
    """What `get_command_metadata` tells of a command, as far as calls decide it."""

    deployment_id: str
    command: str
    state: str
    attempt: int
    deadline: datetime | None
    version: int | None

    @classmethod
    def of(cls, status: Status) -> Self:
        """Take it from a status."""
        return cls(status.deployment_id, status.command, status.state, status.attempt, status.deadline, status.version)


class Known(NamedTuple):
    """All that is known of one command: its status, and what a repeated creation would have to repeat."""

    status: Status
    idempotency_key: str | None
    initial_state: str
    target: str | None


class Refused(NamedTuple):
    """A call that was refused, and changed nothing; `code` is the error's, such as COMMAND_NOT_FOUND."""

    code: str


CREATED: Final = "CREATED"
"""Stands for the id that the answer to a creation tells: the registry chooses it."""

Answer: TypeAlias = str | bool | int | Status | Envelope | Refused | None
"""An answer, made comparable: an id or `CREATED`, True or False, a number, what a read told, a refusal."""

Arguments: TypeAlias = Mapping[str, Any]
Outcome: TypeAlias = tuple[Answer, Known | None]

NOT_FOUND: Final = Refused("COMMAND_NOT_FOUND")
FORBIDDEN: Final = Refused("INVALID_STATE_TRANSITION")
INVALID: Final = Refused("INVALID_COMMAND")
NEVER: Final = Refused("no registry may answer this")


def canonical(error: Any) -> str | None:  # noqa: ANN401 - any JSON
    """Write JSON so that equal values have equal texts, whatever the order of their keys; 1, 1.0 and true differ."""
    return None if error is None else json.dumps(error, sort_keys=True, ensure_ascii=False)


def elapsed_error(deadline: datetime) -> str | None:
    """Give the error of a command whose deadline has passed."""
    text = deadline.astimezone(UTC).isoformat().replace("+00:00", "Z")
    return canonical({"code": "COMMAND_EXPIRED", "message": f"Deadline {text} elapsed"})


def expected(known: Known | None, call: str, arguments: Arguments) -> Outcome:
    """Tell what the contract has a registry answer to a call about one command, and what is known of it afterwards.

    `known`: None before the command is created. `arguments`: by the names of `registry.protocol`, and comparable: an
    error as canonical text, states as plain text, instants in UTC. Of `expire_overdue` the answer is whether it
    expired this command.
    """
    return _CALLS[call](known, arguments)


def created(given: Arguments) -> Known:
    """Tell what is known of a command that was just created."""
    return Known(
        Status(
            deployment_id=given["deployment_id"],
            command=given["command_name"],
            state=given.get("initial_state") or "PENDING",
            attempt=1,
            deadline=given.get("deadline"),
            dispatched_at=None,
            completed_at=None,
            error=None,
            request_size_bytes=given.get("request_size_bytes"),
            response_size_bytes=None,
            version=1,
        ),
        given.get("idempotency_key"),
        given.get("initial_state") or "PENDING",
        given.get("target"),
    )


def _create(known: Known | None, given: Arguments) -> Outcome:
    first = created(given)
    if known is None:
        return CREATED, first
    return (CREATED if _repeats(known, first) else NEVER), known


def _repeats(known: Known, again: Known) -> bool:
    """Tell whether a creation has the key and the arguments of the one before."""
    stays = ("deployment_id", "command", "deadline", "request_size_bytes")
    return (
        known.idempotency_key is not None
        and known[1:] == again[1:]
        and all(getattr(known.status, name) == getattr(again.status, name) for name in stays)
    )


def _update(known: Known | None, given: Arguments) -> Outcome:
    if known is None:
        return NOT_FOUND, None
    status, to = known.status, given["state"]
    if status.state in TERMINAL:
        return False, known
    if to not in ALLOWED[status.state]:
        return FORBIDDEN, known
    return True, _told(known, to, given)


def _complete(known: Known | None, given: Arguments) -> Outcome:
    if given["state"] not in TERMINAL:
        return INVALID, known
    if known is None:
        return NOT_FOUND, None
    if known.status.state in TERMINAL:
        return False, known
    return True, _told(known, given["state"], given)


def _dispatch(known: Known | None, given: Arguments) -> Outcome:
    if known is None:
        return NOT_FOUND, None
    if known.status.state in TERMINAL:
        return False, known
    return True, _told(known, "DISPATCHED", given)


FACTS: Final = ("dispatched_at", "completed_at", "response_size_bytes", "error")
"""What a call may tell of a command beside its state; what is not told keeps its value."""


def _told(known: Known, to: str, given: Arguments) -> Known:
    """Put down what was told; what was not keeps its value, and nothing new is no event."""
    status = known.status
    told = {name: given[name] for name in FACTS if given.get(name) is not None}
    if status.state == to and all(getattr(status, name) == value for name, value in told.items()):
        return known
    return _next(known, state=to, **told)


def _next(known: Known, **facts: Any) -> Known:  # noqa: ANN401
    status = known.status
    return known._replace(status=status._replace(version=(status.version or 0) + 1, **facts))


def _increment(known: Known | None, given: Arguments) -> Outcome:  # noqa: ARG001
    if known is None:
        return NOT_FOUND, None
    attempt = known.status.attempt
    if known.status.state in TERMINAL:
        return attempt, known
    if attempt == MAX_ATTEMPT:
        return INVALID, known
    return attempt + 1, _next(known, attempt=attempt + 1)


def _expire(known: Known | None, given: Arguments) -> Outcome:
    if known is None:
        return False, None
    status = known.status
    if status.state in TERMINAL or status.deadline is None or status.deadline > given["now"]:
        return False, known
    facts = {"state": "EXPIRED", "completed_at": given["now"], "error": elapsed_error(status.deadline)}
    return True, _next(known, **facts)


def _status(known: Known | None, given: Arguments) -> Outcome:  # noqa: ARG001
    return (None if known is None else known.status), known


def _metadata(known: Known | None, given: Arguments) -> Outcome:  # noqa: ARG001
    return (None if known is None else Envelope.of(known.status)), known


def _access(known: Known | None, given: Arguments) -> Outcome:  # noqa: ARG001
    return (None if known is None else known.status.deployment_id), known


def _history(known: Known | None, given: Arguments) -> Outcome:  # noqa: ARG001
    return (0 if known is None else known.status.version), known


_CALLS: Final[Mapping[str, Callable[[Known | None, Arguments], Outcome]]] = {
    "create_command": _create,
    "update_command_state": _update,
    "complete_command": _complete,
    "mark_dispatched_if_not_terminal": _dispatch,
    "increment_attempt": _increment,
    "expire_overdue": _expire,
    "get_command_status": _status,
    "get_command_metadata": _metadata,
    "get_command_access_context": _access,
    "history": _history,
}

JUDGED: Final = frozenset(_CALLS)
"""The calls that the model knows the answer of."""
