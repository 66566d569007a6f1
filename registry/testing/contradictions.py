"""What a checker finds: why no order of the calls explains their answers, in words that a person understands."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from registry.models import instant_text
from registry.testing.model import Answer, Envelope, Refused, Status
from registry.testing.recording import Operation

__all__ = ["Contradiction", "answer_text", "arguments_text", "check_now", "differences", "is_answer", "said", "who"]

_LONGEST: Final = 48  # characters of a value that is told


@dataclass(frozen=True, slots=True)
class Contradiction:
    """What cannot be, of one command.

    `command_id` is None where it is not known which. `operations`: those concerned, in the order they began in; maybe
    none, as of an event that nobody asked for. `places`: by request id, at which version of the command each call was
    explained, as text.
    """

    command_id: str | None
    message: str
    operations: tuple[Operation, ...] = ()
    places: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        return f"command {self.command_id}: {self.message}"


def is_answer(answer: object, right: object) -> bool:
    """Tell whether an answer is the right one.

    Types count (True is not 1), and the version only where the answer has one.
    """
    if isinstance(answer, Status | Envelope) and isinstance(right, Status | Envelope):
        if answer.version is None:
            right = right._replace(version=None)
        return type(answer) is type(right) and answer == right and _same_numbers(answer, right)
    return answer == right and (type(answer) is type(right) or isinstance(answer, str))


def _same_numbers(answer: tuple[object, ...], right: tuple[object, ...]) -> bool:
    return [*map(type, answer)] == [*map(type, right)] or not any(
        isinstance(told, int | float) and type(told) is not type(known)
        for told, known in zip(answer, right, strict=True)
    )


def differences(answer: Status | Envelope, right: Status | Envelope) -> str:
    """Tell in which fields an answer differs from the right one."""
    return ", ".join(
        f"{name} {_value(known)}, not {_value(told)}"
        for name, told, known in zip(answer._fields, answer, right, strict=True)
        if not is_answer(told, known) and not (name == "version" and told is None)
    )


def who(operation: Operation) -> str:
    """Name a call by what it was and whose."""
    return f"{operation.call} by client {operation.client}"


def said(operation: Operation) -> str:
    """Name a call and what it answered."""
    return f"{who(operation)} answered {answer_text(operation.answer)}"


def arguments_text(operation: Operation) -> str:
    """Write the arguments of a call, without the command it is about."""
    return ", ".join(f"{name}={_value(value)}" for name, value in operation.arguments.items() if name != "command_id")


def check_now(operation: Operation) -> None:
    """Check that a call of `expire_overdue` can be judged.

    Raises:
        ValueError: it does not tell `now`.
    """
    if "now" not in operation.arguments:
        raise ValueError(
            f"{who(operation)} (request id {operation.request_id!r}) does not tell `now`: "
            "call it with now=, so that it can be judged"
        )


def answer_text(answer: Answer | list[str]) -> str:
    """Write an answer in a few words."""
    match answer:
        case Refused(code):
            return f"refused: {code}"
        case Status(state=state, attempt=attempt, version=version):
            return f"status {state}, attempt {_value(attempt)}, version {_value(version)}"
        case Envelope(state=state, attempt=attempt, version=version):
            return f"envelope {state}, attempt {_value(attempt)}, version {_value(version)}"
        case list():
            return f"[{', '.join(map(str, answer[:3]))}{', ...' if len(answer) > 3 else ''}]"
        case _:
            return _value(answer)


def _value(value: object) -> str:
    text = instant_text(value) if isinstance(value, datetime) else str(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
