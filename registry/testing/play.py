"""Calls of a registry whose answers are known before; the first other answer ends it, with the calls that led to it."""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, Final, NoReturn, TypeAlias

from registry.testing.implementation import Factory, opened
from registry.testing.model import Answer, Envelope, Refused, Status
from registry.testing.observing import folded, observed, refusal, told
from registry.testing.transcript import ANSWER, Transcript, source

__all__ = ["Arguments", "ContractBroken", "Play"]

Arguments: TypeAlias = Mapping[str, Any]

_ERRORS: Final[Mapping[str, str]] = {
    "COMMAND_NOT_FOUND": "CommandNotFound",
    "INVALID_STATE_TRANSITION": "InvalidTransition",
    "INVALID_COMMAND": "InvalidCommand",
    "IDEMPOTENCY_CONFLICT": "IdempotencyConflict",
}


class ContractBroken(AssertionError):
    """A registry did not do what the contract says; the message ends with the calls, as Python to paste and run.

    `call`: the name of the one that was answered wrongly.
    """

    def __init__(self, message: str, call: str | None = None) -> None:
        self.call = call
        super().__init__(message)


class Play:
    """A registry of any kind, and the calls made of it so far."""

    def __init__(self, factory: Factory) -> None:
        self.broken_by: list[ContractBroken] = []
        self._opened = ExitStack()
        self.registry = self._opened.enter_context(opened(factory))
        self._transcript = Transcript(factory, self.registry.registry, is_asynchronous=self.registry.is_asynchronous)

    def close(self) -> None:
        """Close the registry."""
        self._opened.close()

    def call(self, call: str, arguments: Arguments) -> Any:  # noqa: ANN401
        """Make a call that must be answered, whatever the answer."""
        try:
            return self.registry.call(call, **arguments)
        except Exception as error:
            self._transcript.raised(call, arguments, error)
            self.broken(call, f"raised {error!r}", error)

    def create(self, arguments: Arguments) -> str:
        """Create a command, and give its id."""
        answer = self.call("create_command", arguments)
        command_id = observed("create_command", answer)
        if not isinstance(command_id, str):
            self._wrong("create_command", arguments, f"isinstance({ANSWER}.command_id, str)", answer)
        self._transcript.created(arguments, answer, command_id)
        return command_id

    def create_again(self, arguments: Arguments, command_id: str) -> None:
        """Create a command that was created before, by the same key."""
        answer = observed("create_command", self.call("create_command", arguments))
        if answer != command_id:
            self._wrong(
                "create_command", arguments, f"{ANSWER}.command_id == {self._transcript.source(command_id)}", answer
            )
        self._transcript.answered("create_command", arguments)

    def demand(self, call: str, arguments: Arguments, must: Answer) -> None:
        """Make a call, and compare its answer with what it must be."""
        if isinstance(must, Refused):
            self.refuse(call, arguments, must.code)
            return
        answer = self._observed(call, self.call(call, arguments))
        claim = _broken_claim(call, answer, must)
        if claim is not None:
            self._wrong(call, arguments, claim, answer)
        self._transcript.answered(call, arguments)

    def _observed(self, call: str, answer: Any) -> Answer:  # noqa: ANN401
        try:
            return observed(call, answer)
        except (TypeError, ValueError, AttributeError) as error:
            self.broken(call, f"answered what is no answer to it: {answer!r} ({error})", error)

    def refuse(self, call: str, arguments: Arguments, code: str, field: str | None = None) -> None:
        """Make a call that must be refused; `field`: the argument that the error must name."""
        error, of = _ERRORS[code], f", naming {field}" if field else ""
        try:
            answer = self.registry.call(call, **arguments)
        except Exception as raised:
            if not _is_refusal(raised, code, field):
                self._transcript.raised(call, arguments, raised)
                self.broken(call, f"must raise {error}{of}; it raised {raised!r}", raised)
            self._transcript.refused(call, arguments, error if field is None else "(ValueError, TypeError)")
            return
        self._transcript.not_refused(call, arguments, error)
        self.broken(call, f"must raise {error}{of}; it answered {answer!r}")

    def expire(self, arguments: Arguments, overdue: Mapping[str, Any]) -> list[str]:
        """Let commands expire, and give those among `overdue` (id and deadline) that did; others may be in it, too."""
        answer: list[str] = self.call("expire_overdue", arguments)
        if not isinstance(answer, list):
            self.broken("expire_overdue", f"must answer a list of ids; it answered {answer!r}")
        ours = [overdue[each] for each in answer if each in overdue]
        left = [deadline for each, deadline in overdue.items() if each not in answer]
        limit = arguments["limit"]
        most_overdue_first = ours == sorted(ours) and not (ours and left and max(ours) > min(left))
        if (
            not most_overdue_first
            or len(answer) != len(set(answer))
            or len(answer) > limit
            or (left and len(answer) < limit)
        ):
            in_order = sorted(overdue, key=lambda each: overdue[each])[:limit]
            self._wrong("expire_overdue", arguments, f"{ANSWER} == {self._transcript.source(in_order)}", answer)
        self._transcript.answered("expire_overdue", arguments)
        return [each for each in answer if each in overdue]

    def history(self, arguments: Arguments, status: Status) -> None:
        """Read a command's events: their versions are without a gap, and they fold to its status."""
        entries = self.call("history", arguments)
        if not isinstance(entries, list):
            self.broken("history", f"must answer a list of events; it answered {entries!r}")
        versions = [told(entry, "version") for entry in entries]
        must = list(range(1, (status.version or 0) + 1))
        if len(entries) != len(must) or (versions != must and any(versions)):
            self._wrong("history", arguments, f"[each.version for each in {ANSWER}] == {must}", versions)
        fold = folded(entries)
        if fold is not None and fold != status:
            self._wrong("history", arguments, f"folded({ANSWER}) == {status!r}", fold)

    def _wrong(self, call: str, arguments: Arguments, claim: str, answer: object) -> NoReturn:
        self._transcript.wrong(call, arguments, claim)
        self.broken(call, f"must answer so that {claim.replace(ANSWER, 'its answer')}; it answered {answer!r}")

    def broken(self, call: str, message: str, cause: BaseException | None = None) -> NoReturn:
        """Say that the contract is broken, by which calls."""
        kind = type(self.registry.registry).__name__
        self.broken_by.append(ContractBroken(f"{kind}: {call} {message}\n\n{self._transcript}\n", call))
        raise self.broken_by[-1] from cause


def _broken_claim(call: str, answer: Answer, must: Answer) -> str | None:
    """Give what should be true of an answer, and is not; None when all is as it must be."""
    if isinstance(must, Status | Envelope) and isinstance(answer, type(must)):
        for name, value in must._asdict().items():
            found = getattr(answer, name)
            if (type(found), found) != (type(value), value) and not (name == "version" and found is None):
                return _claim(f"{ANSWER}.{name}", *map(_parsed, (name, name), (found, value)))
        return None
    if isinstance(must, Status | Envelope):
        return f"{ANSWER} is not None"
    if (type(answer), answer) == (type(must), must):
        return None
    field = {"get_command_access_context": f"{ANSWER}.deployment_id", "history": f"len({ANSWER})"}.get(call, ANSWER)
    return _claim(ANSWER if must is None else field, answer, must)


def _parsed(name: str, value: Any) -> Any:  # noqa: ANN401
    return json.loads(value) if name == "error" and value is not None else value


def _claim(place: str, found: object, must: object) -> str:
    if must is None or isinstance(must, bool):
        return f"{place} is {must}"
    if found == must:  # but for Python only: 1 and True, 0.0 and -0.0
        return f"repr({place}) == {repr(must)!r}"
    return f"{place} == {source(must)}"


def _is_refusal(error: BaseException, code: str, field: str | None) -> bool:
    """Tell whether an error is the refusal that was due. Where a field is, any error of value or type will do."""
    refused = refusal(error)
    if refused is None:
        return field is not None and isinstance(error, ValueError | TypeError)
    named = getattr(error, "field", None)
    return refused.code == code and (field is None or named is None or str(named).split(".")[0] == field)
