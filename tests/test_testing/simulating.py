"""Histories of clients that call a registry which is the model itself, and so is always right; and lies about them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import chain, combinations, permutations
from typing import Any, NamedTuple

from hypothesis import strategies as st

from registry.testing.linearizability import Logged
from registry.testing.model import CREATED, Envelope, Known, Refused, Status, elapsed_error, expected
from registry.testing.recording import Operation

NOON = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
LATER = NOON + timedelta(hours=1)
IDS = ("c1", "c2")
CALLS = (
    "update_command_state",
    "complete_command",
    "mark_dispatched_if_not_terminal",
    "increment_attempt",
    "get_command_status",
    "get_command_metadata",
    "get_command_access_context",
    "history",
)


class Call(NamedTuple):
    """What a client is going to call, and how it will end."""

    call: str
    arguments: dict[str, Any]
    fate: str  # told, unknown, lost (unknown, and never happened), unavailable


class Story(NamedTuple):
    """A history, and the log that it left behind."""

    history: list[Operation]
    log: list[Logged]


class World(dict[str, Known]):
    """The registry: all commands, what they were made with, and the log."""

    def __init__(self, ids: Sequence[str] = IDS, *, versions: bool = True) -> None:
        super().__init__()
        self.log: list[Logged] = []
        self._ids, self._keys, self._versions = list(ids), dict[str, tuple[Any, str]](), versions

    def carry_out(self, operation: Operation) -> Any:
        if operation.call == "create_command":
            return self._create(operation)
        if operation.call == "expire_overdue":
            return [command_id for command_id in list(self) if self._apply(command_id, operation) is True]
        if operation.call == "status_at":
            return "whatever"
        answer = self._apply(operation.arguments["command_id"], operation)
        if isinstance(answer, Status | Envelope) and not self._versions:
            answer = answer._replace(version=None)
        return answer

    def _create(self, operation: Operation) -> Any:
        key = operation.arguments.get("idempotency_key")
        if key in self._keys:
            arguments, command_id = self._keys[key]
            return command_id if arguments == operation.arguments else Refused("IDEMPOTENCY_CONFLICT")
        if not self._ids:
            return Refused("DEPLOYMENT_NOT_FOUND")
        command_id = self._ids.pop(0)
        if key is not None:
            self._keys[key] = (operation.arguments, command_id)
        self._apply(command_id, operation)
        return command_id

    def _apply(self, command_id: str, operation: Operation) -> Any:
        before = self.get(command_id)
        answer, after = expected(before, operation.call, operation.arguments)
        if after is not None and after != before:
            self[command_id] = after
            self.log.append(Logged(command_id, after.status.version or 0, operation.request_id))
        return answer


@dataclass
class Client:
    """A client under way with a call, or not."""

    name: str
    call: Call | None = None
    operation: Operation | None = None
    done: bool = False
    answer: Any = None

    def step(self, world: World, now: int, calls: list[Call], history: list[Operation]) -> None:
        """Begin a call, have it carried out, or be told of it."""
        if self.operation is None or self.call is None:
            if calls:
                self.call, self.done = calls.pop(0), False
                name = f"r{len(history) + 1}"
                self.operation = Operation(name, self.name, self.call.call, self.call.arguments, now)
                history.append(self.operation)
        elif not self.done:
            self.answer = world.carry_out(self.operation) if self.call.fate in {"told", "unknown"} else None
            self.done = True
        else:
            if self.call.fate == "told":
                self.operation.answer, self.operation.end = self.answer, now
            elif self.call.fate == "unavailable":
                self.operation.answer, self.operation.end = Refused("UNAVAILABLE"), now
            self.operation = None


def simulated(calls: Sequence[Call], steps: Sequence[tuple[int, int]], *, versions: bool = True) -> Story:
    """Let three clients make calls. `steps`: which client makes its next step, and how far the clock goes on before."""
    world, history, now = World(versions=versions), list[Operation](), 0
    clients = [Client(name) for name in ("a", "b", "c")]
    left = list(calls)
    for number, elapsed in steps:
        now += elapsed
        clients[number].step(world, now, left, history)
    while left or any(client.operation is not None for client in clients):
        for client in clients:
            now += 1
            client.step(world, now, left, history)
    return Story(history, world.log)


# What is drawn.

_ids = st.sampled_from(["c1", "c1", "c1", "c2", "nobody"])
_fates = st.sampled_from(["told"] * 8 + ["unknown", "unknown", "lost", "unavailable"])
_facts: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {},
    optional={
        "dispatched_at": st.sampled_from([NOON, LATER]),
        "response_size_bytes": st.sampled_from([0, 1]),
        "error": st.sampled_from(['"a"', '"b"']),
    },
)
_creations = st.builds(
    lambda command, key, deadline: {
        name: value
        for name, value in {
            "deployment_id": "dep",
            "command_name": command,
            "idempotency_key": key,
            "deadline": deadline,
        }.items()
        if value is not None
    },
    st.sampled_from(["x", "y"]),
    st.sampled_from([None, "k", "k", "l"]),
    st.sampled_from([None, NOON]),
)


@st.composite
def calls(draw: st.DrawFn, of: Sequence[str] = (*CALLS, "create_command", "expire_overdue", "status_at")) -> Call:
    call = draw(st.sampled_from(of))
    fate = draw(_fates)
    if call == "create_command":
        return Call(call, draw(_creations), fate)
    if call == "expire_overdue":
        return Call(call, {"now": draw(st.sampled_from([NOON, LATER, NOON - timedelta(1)]))}, fate)
    arguments: dict[str, Any] = {"command_id": draw(_ids)}
    if call == "update_command_state":
        arguments |= {"state": draw(st.sampled_from(["PENDING", "DISPATCHED", "DISPATCHED", "FAILED", "SUCCEEDED"]))}
        arguments |= draw(_facts)
    elif call == "complete_command":
        arguments |= {"state": draw(st.sampled_from(["SUCCEEDED", "FAILED", "PENDING"])), "completed_at": NOON}
    elif call == "mark_dispatched_if_not_terminal":
        arguments |= {"dispatched_at": draw(st.sampled_from([NOON, LATER]))}
    return Call(call, arguments, fate)


_steps = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1)), max_size=60)


@st.composite
def stories(draw: st.DrawFn, most: int = 14) -> Story:
    """Draw what really happened."""
    first = draw(calls(["create_command"]))
    others = draw(st.lists(calls(), max_size=most - 1))
    return simulated([first, *others], draw(_steps), versions=draw(st.booleans()))


# Lies: each makes another story of a story, at a place that a number chooses; many of them cannot be true.


def _at(history: Sequence[Operation], number: int) -> Operation:
    return history[number % len(history)]


def _with(story: Story, old: Operation, new: Operation | None) -> Story:
    history = [new if each is old else each for each in story.history]
    return Story([each for each in history if each is not None], story.log)


def another_answer(story: Story, number: int) -> Story:
    operation = _at(story.history, number)
    answer: Any = operation.answer
    if operation.end is None:
        return story
    if isinstance(answer, Status):
        changes: list[dict[str, Any]] = [
            {"version": None if answer.version is None else answer.version - 1 + 2 * (number % 2)},
            {"attempt": answer.attempt + 1},
            {"state": "DISPATCHED"},
        ]
        answer = answer._replace(**changes[number % 3])
    elif isinstance(answer, Envelope):
        answer = answer._replace(attempt=answer.attempt + 1)
    elif isinstance(answer, bool):
        answer = not answer
    elif isinstance(answer, int):
        answer += 1 if number % 2 else -1
    elif isinstance(answer, list):
        answer = [each for each in IDS if each not in answer]
    elif isinstance(answer, Refused):
        answer = True if operation.call in {"update_command_state", "complete_command"} else None
    else:
        answer = {"c1": "c2", "c2": "c1"}.get(str(answer))
    return _with(story, operation, replace(operation, answer=answer))


def another_time(story: Story, number: int) -> Story:
    operation = _at(story.history, number)
    by = (number % 23) - 11
    end = None if operation.end is None else operation.end + by
    return _with(story, operation, replace(operation, start=operation.start + by, end=end))


def a_shorter_time(story: Story, number: int) -> Story:
    operation = _at(story.history, number)
    if operation.end is None:
        return story
    at = operation.start if number % 2 else operation.end
    return _with(story, operation, replace(operation, start=at, end=at))


def no_end(story: Story, number: int) -> Story:
    operation = _at(story.history, number)
    return _with(story, operation, replace(operation, end=None, answer=None))


def no_such_call(story: Story, number: int) -> Story:
    return _with(story, _at(story.history, number), None)


def refused(story: Story, number: int) -> Story:
    operation = _at(story.history, number)
    code = ["UNAVAILABLE", "COMMAND_NOT_FOUND", "INVALID_STATE_TRANSITION"][number % 3]
    return _with(story, operation, replace(operation, answer=Refused(code), end=operation.end or 10_000))


def _logged(story: Story, number: int, make: Callable[[list[Logged], int], list[Logged]]) -> Story:
    return Story(story.history, make(story.log, number % len(story.log))) if story.log else story


def dropped_event(story: Story, number: int) -> Story:
    return _logged(story, number, lambda log, at: log[:at] + log[at + 1 :])


def dropped_last_event(story: Story, number: int) -> Story:
    return _logged(story, number, lambda log, at: log[:-1])


def doubled_event(story: Story, number: int) -> Story:
    def make(log: list[Logged], at: int) -> list[Logged]:
        last = max(event.version for event in log if event.command_id == log[at].command_id)
        return [*log, log[at]._replace(version=last + 1)]

    return _logged(story, number, make)


def swapped_events(story: Story, number: int) -> Story:
    def make(log: list[Logged], at: int) -> list[Logged]:
        other = (at + 1) % len(log)
        one, two = log[at], log[other]
        changed = {at: one._replace(request_id=two.request_id), other: two._replace(request_id=one.request_id)}
        return [changed.get(index, event) for index, event in enumerate(log)]

    return _logged(story, number, make)


LIES: tuple[Callable[[Story, int], Story], ...] = (
    another_answer,
    another_answer,
    another_time,
    another_time,
    a_shorter_time,
    no_end,
    no_such_call,
    refused,
    dropped_event,
    dropped_last_event,
    doubled_event,
    swapped_events,
)

lies = st.lists(st.tuples(st.sampled_from(LIES), st.integers(0, 200)), min_size=1, max_size=3)


def told(story: Story, all_lies: Sequence[tuple[Callable[[Story, int], Story], int]]) -> Story:
    for lie, number in all_lies:
        if story.history:
            story = lie(story, number)
    return story


# The judge of the judges: every order there is.


@dataclass(frozen=True)
class _One:
    operation: Operation
    answer: Any
    optional: bool = field(default=False)


def explained(history: Sequence[Operation], command_id: str, log: Sequence[Logged] | None = None) -> bool:
    """Try all orders of the calls about one command; with a log, only those that write what it says."""
    ones = [one for operation in history for one in _ones(operation, command_id)]
    must = [one for one in ones if not one.optional]
    may = [one for one in ones if one.optional]
    wanted = None if log is None else [each.request_id for each in log if each.command_id == command_id]
    some = chain.from_iterable(combinations(may, count) for count in range(len(may) + 1))
    return any(_explains(order, wanted) for more in some for order in permutations([*must, *more]))


def _ones(operation: Operation, command_id: str) -> Iterator[_One]:
    answer = operation.answer
    if operation.call == "status_at" or answer == Refused("UNAVAILABLE"):
        return
    if operation.call == "create_command":
        if operation.end is None:
            yield _One(operation, None, optional=True)
        elif answer == command_id:
            yield _One(operation, CREATED)
    elif operation.call == "expire_overdue":
        if operation.end is None:
            yield _One(operation, None, optional=True)
        elif isinstance(answer, list) and command_id in answer:
            yield _One(operation, True)
    elif operation.arguments["command_id"] == command_id:
        yield _One(operation, answer, optional=operation.end is None)


def _explains(order: Sequence[_One], wanted: Sequence[str | None] | None) -> bool:
    known: Known | None = None
    wrote: list[str | None] = []
    for index, one in enumerate(order):
        end = one.operation.end
        if end is not None and any(end < earlier.operation.start for earlier in order[:index]):
            return False
        right, after = expected(known, one.operation.call, one.operation.arguments)
        versionless = isinstance(one.answer, Status | Envelope) and one.answer.version is None
        if versionless and isinstance(right, Status | Envelope):
            right = right._replace(version=None)
        if not one.optional and repr(one.answer) != repr(right):
            return False
        if after != known:
            wrote.append(one.operation.request_id)
        known = after
    return wanted is None or wrote == list(wanted)


# By hand.


class Script:
    """A history written down by hand: each call with its beginning and end."""

    def __init__(self) -> None:
        self.history: list[Operation] = []
        self.log: list[Logged] = []

    def call(
        self, call: str, start: int, end: int | None, answer: Any = None, *, client: str = "a", **arguments: Any
    ) -> Operation:
        if call not in {"create_command", "expire_overdue"}:
            arguments = {"command_id": "c1", **arguments}
        made = Operation(f"r{len(self.history) + 1}", client, call, arguments, start, end, answer)
        self.history.append(made)
        return made

    def create(self, start: int, end: int | None = None, *, key: str | None = None, **more: Any) -> Operation:
        arguments = {"deployment_id": "dep", "command_name": "x"} | ({} if key is None else {"idempotency_key": key})
        return self.call("create_command", start, end, None if end is None else "c1", **arguments, **more)

    def wrote(self, *operations: Operation) -> "Script":
        self.log = [Logged("c1", version, each.request_id) for version, each in enumerate(operations, 1)]
        return self


def status(state: str = "PENDING", attempt: int = 1, version: int | None = 1, **facts: Any) -> Status:
    none = dict.fromkeys(Status._fields)
    told = {"deployment_id": "dep", "command": "x", "state": state, "attempt": attempt, "version": version}
    return Status(**{**none, **told, **facts})


EXPIRED = elapsed_error(NOON)
