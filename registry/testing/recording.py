"""Histories of concurrent calls: who called what, from when to when, and was told what.

    recorder = Recorder()
    registry = recorder.client("a", my_registry)      # the same calls, recorded; one for each thread or task
    ...
    history = recorder.history()

Instants are nanoseconds of the system's monotonic clock, which all processes of a machine share: a process that is
going to be killed records into a `journal`, and `load` reads what it had begun.
"""

import inspect
import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TextIO, TypeAlias
from uuid import uuid4

from registry.context import current_context
from registry.models import EventContext, instant_text
from registry.testing.implementation import CALLS, takes
from registry.testing.model import Answer, Envelope, Refused, Status
from registry.testing.observing import INSTANTS, UNWRITTEN, WRITES, by_name, comparable, observed, refusal

__all__ = ["Operation", "Recorder", "load", "save"]


@dataclass(slots=True)
class Operation:
    """One call of one client.

    `arguments`: by name, made comparable (`registry.testing.observing`). `start`, `end`: nanoseconds; `end` is None
    when the client was never told whether the call was carried out, and then there is no answer; `trouble` says why.
    `expire_overdue` answers a list of ids; every other call what `registry.testing.model` says.
    """

    request_id: str
    client: str
    call: str
    arguments: dict[str, Any]
    start: int
    end: int | None = None
    answer: Answer | list[str] = None
    trouble: str | None = None

    @property
    def command_id(self) -> str | None:
        """The command it was about, if it was about one and its id is known."""
        if self.call == "create_command":
            return self.answer if isinstance(self.answer, str) else None
        found: str | None = self.arguments.get("command_id")
        return found

    @property
    def unwritten(self) -> bool:
        """Whether the registry said that it has written nothing, and could tell nothing."""
        return isinstance(self.answer, Refused) and self.answer.code in UNWRITTEN


class Recorder:
    """Records the calls of any number of clients, threads or tasks, as they are made.

    `journal`: a file that each call is written to before it is made, and once more when it is answered. `clock`: gives
    nanoseconds.
    """

    def __init__(self, journal: TextIO | None = None, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._journal, self._clock = journal, clock
        self._lock = threading.Lock()
        self._prefix, self._process = uuid4().hex[:8], os.getpid()
        self._numbers = itertools.count(1)
        self._operations: list[Operation] = []

    def client(self, name: str, registry: Any) -> Any:  # noqa: ANN401 - any implementation
        """Give a client of a registry, for threads or for asyncio: the same calls, and each is recorded.

        A write gets a request id in its context, so that its events tell whose they are.
        """
        return _Client(self, name, registry)

    def history(self) -> list[Operation]:
        """Give what was recorded so far, in the order that the calls began in."""
        with self._lock:
            return sorted(self._operations, key=lambda operation: operation.start)

    def begin(self, client: str, call: str, arguments: Mapping[str, Any]) -> Operation:
        """Record that a call begins."""
        if os.getpid() != self._process:  # a child of a fork, whose calls are its own
            self._prefix, self._process = uuid4().hex[:8], os.getpid()
        operation = Operation(f"{self._prefix}-{next(self._numbers)}", client, call, comparable(arguments), 0)
        with self._lock:
            self._operations.append(operation)
            operation.start = self._clock()
            self._note(_begun(operation))
        return operation

    def answered(self, operation: Operation, answer: Any) -> None:  # noqa: ANN401
        """Record an answer."""
        end = self._clock()
        with self._lock:
            operation.answer, operation.end = observed(operation.call, answer), end
            self._note(_ended(operation))

    def failed(self, operation: Operation, error: BaseException) -> None:
        """Record an error: a refusal is an answer; after any other, nobody knows what became of the call."""
        end = self._clock()
        with self._lock:
            operation.trouble = f"{type(error).__name__}: {error}"
            operation.answer = refusal(error)
            operation.end = None if operation.answer is None else end
            self._note(_ended(operation))

    def _note(self, line: dict[str, Any]) -> None:
        if self._journal is not None:
            self._journal.write(_line(line))
            self._journal.flush()


_Completed: TypeAlias = Callable[[Operation, dict[str, Any]], dict[str, Any]]
"""Makes the settings of a call of those that the client gave."""


class _Client:
    """A registry whose calls are recorded."""

    def __init__(self, recorder: Recorder, name: str, registry: Any) -> None:  # noqa: ANN401
        self._recorder, self._name, self._registry = recorder, name, registry

    def __getattr__(self, call: str) -> Any:  # noqa: ANN401
        member = getattr(self._registry, call)
        if call not in CALLS:
            return member
        recorded = self._asynchronous if inspect.iscoroutinefunction(member) else self._synchronous
        completed = _with_request if call in WRITES and takes(member, "context") else _as_given
        made = recorded(call, member, completed)
        setattr(self, call, made)
        return made

    def _synchronous(self, call: str, member: Callable[..., Any], completed: _Completed) -> Callable[..., Any]:
        def made(*args: Any, **settings: Any) -> Any:  # noqa: ANN401
            with self._noted(call, args, settings) as operation:
                answer = member(*args, **completed(operation, settings))
                self._recorder.answered(operation, answer)
            return answer

        return made

    def _asynchronous(self, call: str, member: Callable[..., Any], completed: _Completed) -> Callable[..., Any]:
        async def made(*args: Any, **settings: Any) -> Any:  # noqa: ANN401
            with self._noted(call, args, settings) as operation:
                answer = await member(*args, **completed(operation, settings))
                self._recorder.answered(operation, answer)
            return answer

        return made

    @contextmanager
    def _noted(self, call: str, args: tuple[Any, ...], settings: Mapping[str, Any]) -> Iterator[Operation]:
        """Record that a call begins, and its error if it raises one."""
        operation = self._recorder.begin(self._name, call, by_name(call, args, settings))
        try:
            yield operation
        except BaseException as error:
            self._recorder.failed(operation, error)
            raise


def _as_given(operation: Operation, settings: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG001
    return settings


def _with_request(operation: Operation, settings: dict[str, Any]) -> dict[str, Any]:
    """Give a write the request id of its operation, in its context."""
    context: EventContext = settings.get("context") or current_context()
    return settings | {"context": context.model_copy(update={"request_id": operation.request_id})}


# Histories as files: JSON lines, a line for the beginning of a call and one for its end.


def save(history: Iterable[Operation], file: Path) -> None:
    """Write a history to a file, for `load`."""
    with file.open("w", encoding="utf-8") as lines:
        for operation in history:
            lines.write(_line(_begun(operation)))
            if operation.end is not None or operation.trouble is not None:
                lines.write(_line(_ended(operation)))


def load(*files: Path) -> list[Operation]:
    """Read histories that were saved, or journals, as one; in the order that the calls began in.

    Raises:
        ValueError: a line is none of a history. (The last line of a journal may be cut off.)
    """
    operations: dict[str, Operation] = {}
    for file in files:
        lines = file.read_text("utf-8").split("\n")
        for number, line in enumerate(lines[:-1], 1):
            try:
                _take(json.loads(line), operations)
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{file}:{number}: no line of a history ({error}): {line[:200]}") from error
    return sorted(operations.values(), key=lambda operation: operation.start)


def _line(values: dict[str, Any]) -> str:
    return json.dumps(values, default=_json) + "\n"


def _json(value: object) -> object:
    if isinstance(value, datetime):
        return instant_text(value)
    raise TypeError(f"{type(value).__name__} in a history")


def _begun(operation: Operation) -> dict[str, Any]:
    return {
        "request_id": operation.request_id,
        "client": operation.client,
        "call": operation.call,
        "arguments": operation.arguments,
        "start": operation.start,
    }


def _ended(operation: Operation) -> dict[str, Any]:
    answer: Any = operation.answer
    if isinstance(answer, Refused):
        answer = {"refused": answer.code}
    elif isinstance(answer, Status | Envelope):
        answer = answer._asdict()
    return {
        "request_id": operation.request_id,
        "end": operation.end,
        "answer": answer,
        "trouble": operation.trouble,
    }


_READS: Final[Mapping[str, type[Status] | type[Envelope]]] = {
    "get_command_status": Status,
    "status_at": Status,
    "get_command_metadata": Envelope,
}


def _take(line: dict[str, Any], operations: dict[str, Operation]) -> None:
    request_id = line["request_id"]
    if "start" in line:
        arguments = _instants(line["arguments"])
        if request_id in operations:
            raise ValueError(f"request id {request_id!r} begins twice")
        operations[request_id] = Operation(request_id, line["client"], line["call"], arguments, line["start"])
        return
    operation = operations[request_id]
    operation.end, operation.trouble = line["end"], line["trouble"]
    answer = line["answer"]
    if isinstance(answer, dict):
        read = _READS.get(operation.call)
        answer = Refused(answer["refused"]) if "refused" in answer or read is None else read(**_instants(answer))
    operation.answer = answer


def _instants(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: datetime.fromisoformat(value) if name in INSTANTS and isinstance(value, str) else value
        for name, value in values.items()
    }
