"""Whether a history of concurrent calls is explained by the log: exactly, and in nearly linear time.

A history is linearizable (Herlihy and Wing, "Linearizability: a correctness condition for concurrent objects", 1990)
when there is one order of its calls that explains every answer, and has each call between its beginning and its end: a
call that ended before another began comes before it. Commands do not depend on each other, so that each is looked at
for itself. To find such an order is hard in general (`registry.testing.search`), and easy here, since the log tells the
order of all that was written:

- The writes are replayed in the order of the log, by the model. That gives the command's states 0..n (0: not created
  yet). The call that wrote version v is at v; its answer must be the model's, there.
- Every other call changed nothing, and so is between two writes: at a version where the model answers what was
  answered, and changes nothing. Which versions these are depends on nothing but the states.
- Calls are taken in the order they began in, and each is put at the least of its versions that is not before that of
  any call which had ended by then. All bounds are lower ones, so the least is the best for whatever comes later: where
  a call has no version left, there is no order at all.

What the log itself cannot be (an event that no call explains, two of one call, a gap) is found on the way.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from registry.testing.contradictions import Contradiction, answer_text, check_now, is_answer, said, who
from registry.testing.model import JUDGED, Known, Refused, expected
from registry.testing.observing import WRITES
from registry.testing.recording import Operation
from registry.testing.states import States
from registry.testing.sweep import Sweep, answer_of

__all__ = ["Contradiction", "Logged", "check_against_log"]


class Logged(NamedTuple):
    """An event of the log, as far as a check needs it; `request_id` is that of the call that wrote it."""

    command_id: str
    version: int
    request_id: str | None


def check_against_log(history: Sequence[Operation], log: Iterable[Logged]) -> list[Contradiction]:
    """Tell what in a history cannot be, given the log; nothing when it is linearizable and the log its outcome.

    `log`: all the events of the commands that the history is about; the order of commands does not matter. Operations
    without an end happened if and only if the log has their event. Takes about 10 us for each operation.

    Raises:
        ValueError: several operations have one request id, one ends before it begins, or an `expire_overdue` does not
            tell `now`, by which alone it can be judged.
    """
    calls = _by_request(history)
    about, found = _by_command(history)
    events: defaultdict[str, list[tuple[int, str | None]]] = defaultdict(list)
    for command_id, version, request_id in log:
        events[command_id].append((version, request_id))
    made = _Creations()
    for command_id in dict.fromkeys([*about, *events]):
        command = _Command(command_id, about.get(command_id, []), sorted(events.get(command_id, ()), key=_version))
        found.extend(command.check(calls, made))
    return found


def _version(event: tuple[int, str | None]) -> int:
    return event[0]


def _by_request(history: Sequence[Operation]) -> dict[str | None, Operation]:
    calls: dict[str | None, Operation] = {operation.request_id: operation for operation in history}
    if len(calls) < len(history):
        [(again, times)] = Counter(operation.request_id for operation in history).most_common(1)
        raise ValueError(f"{times} operations have the same request id, {again!r}")
    return calls


def _by_command(history: Sequence[Operation]) -> tuple[dict[str, list[Operation]], list[Contradiction]]:
    """Give the operations about each command, as far as they tell which; and answers that can be of no command."""
    about: defaultdict[str, list[Operation]] = defaultdict(list)
    found: list[Contradiction] = []
    for operation in history:
        call, answer = operation.call, operation.answer
        if call not in JUDGED:
            continue
        if operation.end is not None and operation.end < operation.start:
            raise ValueError(f"{who(operation)} ends before it begins (request id {operation.request_id!r})")
        if call == "create_command":
            if isinstance(answer, str):
                about[answer].append(operation)
            elif operation.end is not None and not isinstance(answer, Refused):
                found.append(Contradiction(None, f"{said(operation)}, which is no command's id", (operation,)))
        elif call == "expire_overdue":
            for command_id in _expired(operation, found):
                about[command_id].append(operation)
        else:
            about[str(operation.arguments.get("command_id"))].append(operation)
    return about, found


def _expired(operation: Operation, found: list[Contradiction]) -> Iterable[str]:
    """Give the commands that a call of `expire_overdue` says it let expire."""
    if isinstance(operation.answer, Refused):
        return ()
    check_now(operation)
    if operation.end is None:
        return ()
    if not isinstance(operation.answer, list):
        found.append(Contradiction(None, f"{said(operation)}, which is no list of ids", (operation,)))
        return ()
    once = dict.fromkeys(operation.answer)
    if len(once) < len(operation.answer):
        twice = next(command_id for command_id in once if operation.answer.count(command_id) > 1)
        found.append(Contradiction(twice, f"{who(operation)} answered this command twice", (operation,)))
    return once


class _Creations:
    """What has been created so far, by the keys and the calls that there may be only one of."""

    def __init__(self) -> None:
        self._by_call: dict[str, str] = {}
        self._by_key: dict[str, tuple[str, Operation]] = {}

    def add(self, command_id: str, operation: Operation) -> Iterator[Contradiction]:
        """Note the creation that has the first event of a command."""
        first = self._by_call.setdefault(operation.request_id, command_id)
        if first != command_id:
            yield Contradiction(command_id, f"{who(operation)} has created command {first}, too", (operation,))
        key = operation.arguments.get("idempotency_key")
        if key is None:
            return
        first, earlier = self._by_key.setdefault(key, (command_id, operation))
        if first != command_id and earlier is not operation:
            message = f"{who(operation)} has created it with the idempotency key {key!r} of command {first}"
            yield Contradiction(command_id, message, (earlier, operation))


class _Command:
    """One command: the calls about it, and its events in the order of their versions."""

    def __init__(
        self, command_id: str, operations: Sequence[Operation], events: Sequence[tuple[int, str | None]]
    ) -> None:
        self._id, self._operations, self._events = command_id, operations, events

    def check(self, calls: Mapping[str | None, Operation], made: _Creations) -> Sequence[Contradiction]:
        versions: dict[str, int] = {}
        found = [*self._numbering()]
        writers = self._writers(calls, versions, found)
        if found:
            return found
        states = self._replay(writers, found)
        if writers and writers[0].call == "create_command":
            found.extend(made.add(self._id, writers[0]))
        if states is None:
            return found
        untold = [operation for operation in writers if operation.end is None and operation.call in _UNTOLD]
        sweep = Sweep(self._id, [*self._operations, *untold], versions, States(states))
        return [*found, *sweep.check()] if found else sweep.check()

    def _numbering(self) -> Iterator[Contradiction]:
        before = 0
        for version, _ in self._events:
            if version == before:
                yield Contradiction(self._id, f"the log has version {version} twice")
            elif version != before + 1:
                yield Contradiction(self._id, f"the log has version {version} after version {before}")
            before = version

    def _writers(
        self, calls: Mapping[str | None, Operation], versions: dict[str, int], found: list[Contradiction]
    ) -> list[Operation]:
        """Find the call of each event, and note the version that it has written."""
        writers: list[Operation] = []
        for version, request_id in self._events:
            operation = calls.get(request_id)
            if operation is None or request_id is None:
                by = "has no request id" if request_id is None else f"is of no call (request id {request_id!r})"
                found.append(Contradiction(self._id, f"the event at version {version} {by}"))
                continue
            why_not = self._why_not(operation)
            if why_not is not None:
                message = f"the event at version {version} is of {who(operation)}, which {why_not}"
                found.append(Contradiction(self._id, message, (operation,)))
            first = versions.setdefault(request_id, version)
            if first != version:
                message = f"{who(operation)} has two events, at versions {first} and {version}"
                found.append(Contradiction(self._id, message, (operation,)))
            writers.append(operation)
        return writers

    def _why_not(self, operation: Operation) -> str | None:
        """Tell why a call cannot have written an event of this command; None when it can."""
        if isinstance(operation.answer, Refused):
            return f"was refused: {operation.answer.code}"
        if operation.call not in WRITES:
            return "writes nothing"
        if operation.call not in _UNTOLD:
            about = operation.arguments.get("command_id")
            return None if about == self._id else f"is about command {about}"
        if operation.end is None or any(own is operation for own in self._operations):
            return None
        return f"answered {answer_text(operation.answer)}"

    def _replay(self, writers: Sequence[Operation], found: list[Contradiction]) -> list[Known | None] | None:
        """Give the states 0..n of the command; None when a call cannot have had the event that it has."""
        known: Known | None = None
        states: list[Known | None] = [None]
        for version, operation in enumerate(writers, 1):
            right, after = expected(known, operation.call, operation.arguments)
            if after is None or after == known or after.status.version != version:
                message = f"the event at version {version} is of {who(operation)}, which at version {version - 1}"
                message += f" changes nothing, and answers {answer_text(right)}"
                found.append(Contradiction(self._id, message, (operation,)))
                return None
            if operation.end is not None and not is_answer(answer_of(operation), right):
                message = f"{said(operation)}, but the event at version {version} makes it {answer_text(right)}"
                found.append(Contradiction(self._id, message, (operation,)))
            known = after
            states.append(known)
        return states


_UNTOLD: Final = frozenset({"create_command", "expire_overdue"})
"""The calls of which only the answer tells what command they were about."""
