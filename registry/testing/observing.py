"""What any implementation is given and answers, made comparable with the model."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from enum import Enum
from functools import cache
from typing import Any, Final

from registry.protocol import CommandRegistry
from registry.testing.model import FACTS, Answer, Envelope, Refused, Status, canonical

__all__ = ["INSTANTS", "UNWRITTEN", "WRITES", "by_name", "comparable", "folded", "observed", "refusal", "told"]

INSTANTS: Final = frozenset({"deadline", "dispatched_at", "completed_at", "created_at", "now", "at"})
"""The names of arguments and fields that hold instants."""

WRITES: Final = frozenset(
    {
        "create_command",
        "update_command_state",
        "complete_command",
        "mark_dispatched_if_not_terminal",
        "increment_attempt",
        "expire_overdue",
    }
)
"""The calls that may write, and so take a context."""

UNWRITTEN: Final = frozenset({"UNAVAILABLE", "CONFLICT", "INVALID_COMMAND"})
"""The codes of errors that say: nothing was written, and nothing is told of the command."""

_REFUSALS: Final = UNWRITTEN | {
    "COMMAND_NOT_FOUND",
    "COMMAND_TARGET_AMBIGUOUS",
    "COMMAND_TARGET_ID_INVALID",
    "COMMAND_TARGET_NOT_FOUND",
    "DEPLOYMENT_NOT_FOUND",
    "IDEMPOTENCY_CONFLICT",
    "INVALID_STATE_TRANSITION",
    "NO_COMMAND_TARGETS",
}
_BESIDE: Final = frozenset({"context", "connection", "timeout"})


def told(answer: object, name: str) -> Any:  # noqa: ANN401
    """Give a field of an answer, be it a model or a mapping; None where it has none."""
    return answer.get(name) if isinstance(answer, Mapping) else getattr(answer, name, None)


def _instant(value: object) -> datetime | None:
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if not isinstance(value, datetime) or value.tzinfo is None:
        return value  # type: ignore[return-value] # nothing that any right answer is equal to
    utc = value.astimezone(UTC)
    return datetime.combine(utc.date(), utc.time(), UTC)  # and not something derived from it


def _plain(value: object) -> str:
    return str(value.value if isinstance(value, Enum) else value)


def _status(answer: object) -> Status | None:
    if answer is None:
        return None
    return Status(
        deployment_id=told(answer, "deployment_id"),
        command=told(answer, "command"),
        state=_plain(told(answer, "state")),
        attempt=told(answer, "attempt"),
        deadline=_instant(told(answer, "deadline")),
        dispatched_at=_instant(told(answer, "dispatched_at")),
        completed_at=_instant(told(answer, "completed_at")),
        error=canonical(told(answer, "error")),
        request_size_bytes=told(answer, "request_size_bytes"),
        response_size_bytes=told(answer, "response_size_bytes"),
        version=told(answer, "version"),
    )


def _envelope(answer: object) -> Envelope | None:
    status = _status(answer)
    return None if status is None else Envelope.of(status)


_OBSERVED: Final[Mapping[str, Callable[[Any], Answer]]] = {
    "create_command": lambda answer: told(answer, "command_id"),
    "get_command_status": _status,
    "status_at": _status,
    "get_command_metadata": _envelope,
    "get_command_access_context": lambda answer: None if answer is None else told(answer, "deployment_id"),
    "history": lambda answer: len(answer),
}


def observed(call: str, answer: Any) -> Answer:  # noqa: ANN401
    """Make an answer comparable; that of `expire_overdue` is a list of ids, and stays one."""
    observe = _OBSERVED.get(call)
    return answer if observe is None else observe(answer)


def refusal(error: BaseException) -> Refused | None:
    """Give the refusal that an exception tells: one with a `code`, as the registry's errors have; None: it tells none.

    After any other error nobody knows whether the call was carried out.
    """
    code = getattr(error, "code", None)
    return Refused(code) if code in _REFUSALS else None


@cache
def _positions(call: str) -> tuple[str, ...]:
    return tuple(inspect.signature(getattr(CommandRegistry, call)).parameters)[1:]


def by_name(call: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Give the arguments of a call by their names in the protocol, without those that say how it is made."""
    named: dict[str, Any] = {**dict(zip(_positions(call), args, strict=False)), **kwargs}
    return {name: value for name, value in named.items() if name not in _BESIDE}


def comparable(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Make arguments comparable with what the model knows."""
    made: dict[str, Any] = {}
    for name, value in arguments.items():
        if value is None:
            continue
        if name in INSTANTS:
            made[name] = _instant(value)
        elif name == "error":
            made[name] = canonical(value)
        elif name in {"state", "initial_state"}:
            made[name] = _plain(value)
        else:
            made[name] = value
    return made


_OF_CREATION: Final = ("deployment_id", "command", "state", "deadline", "request_size_bytes")


def folded(history: Sequence[object]) -> Status | None:
    """Fold a command's history to its status; None when its entries do not tell their `type` and `event`.

    A fold of its own, so that a fault of `registry.decider.evolve` is found.
    """
    facts: dict[str, Any] = {}
    for entry in history:
        kind, event = told(entry, "type"), told(entry, "event")
        if kind is None or event is None:
            return None
        if kind == "CommandCreated":
            facts = {name: told(event, name) for name in _OF_CREATION} | {"attempt": 1}
        elif kind == "AttemptIncremented":
            facts["attempt"] = told(event, "attempt")
        else:
            facts["state"] = told(event, "to_state")
            facts |= {name: value for name in FACTS if (value := told(event, name)) is not None}
    return _status(facts | {"version": len(history)})
