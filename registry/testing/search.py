"""Whether a history of concurrent calls is linearizable, found out by search: without a log, and for short histories.

The search is that of Wing and Gong ("Testing and verifying concurrent objects", Journal of Parallel and Distributed
Computing 17, 1993): take as the next call any that began before every other one that is left has ended, see whether the
model answers what was answered, go on from there, and go back where there is no way on. With what Lowe added ("Testing
for linearizability", Concurrency and Computation: Practice and Experience 29(4), 2017): the set of calls taken and the
state they led to are remembered, and nothing is tried twice from there.

Two things more, which leave out only what cannot matter. A call that is answered rightly and can change nothing, now or
later, is taken at once: it is in nobody's way. And of calls that nobody was told the end of and that are equal, the
first is taken first: they can be exchanged.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from registry.testing.contradictions import Contradiction, answer_text, check_now, is_answer, said, who
from registry.testing.model import CREATED, JUDGED, TERMINAL, Answer, Known, Refused, expected
from registry.testing.observing import WRITES
from registry.testing.recording import Operation

__all__ = ["DEFAULT_STEPS", "Undecided", "check_by_search"]

DEFAULT_STEPS: Final = 1_000_000


class Undecided(RuntimeError):
    """The search has not come to an end in so many steps as it may take."""

    def __init__(self, command_id: str, steps: int) -> None:
        """Carry the command's id, and the steps."""
        self.command_id, self.steps = command_id, steps
        super().__init__(
            f"command {command_id}: the search has not come to an end in {steps} steps; "
            "check the history against the log, or a shorter one"
        )


def check_by_search(history: Sequence[Operation], *, steps: int = DEFAULT_STEPS) -> list[Contradiction]:
    """Tell of which commands no order of the calls explains every answer; nothing when the history is linearizable.

    For histories of up to some hundred calls about a command, few of them at a time. An operation without an end may
    have happened at any time after it began, or never; as a creation or an `expire_overdue`, to any command. `steps`:
    how many calls may be tried for each command.

    Raises:
        Undecided: these were not enough.
        ValueError: an `expire_overdue` does not tell `now`, by which alone it can be judged.
    """
    about, anywhere, found = _by_command(history)
    found.extend(_keys_used_twice(history))
    for command_id, calls in about.items():
        search = _Search(command_id, sorted([*calls, *anywhere], key=lambda call: call.start), steps)
        if not search.succeeds():
            found.append(search.contradiction())
    return found


class _Call(NamedTuple):
    """An operation as it concerns one command; `end` is infinite when nobody was told, and then nothing is answered."""

    operation: Operation
    start: int
    end: float
    answer: Answer | list[str]

    @property
    def optional(self) -> bool:
        return self.end == math.inf


def _by_command(
    history: Iterable[Operation],
) -> tuple[dict[str, list[_Call]], list[_Call], list[Contradiction]]:
    """Give the calls about each command, those that may have been about any, and answers that can be of no command."""
    about: defaultdict[str, list[_Call]] = defaultdict(list)
    anywhere: list[_Call] = []
    found: list[Contradiction] = []
    for operation in history:
        if operation.call not in JUDGED or operation.unwritten:
            continue
        if operation.call == "expire_overdue" and not isinstance(operation.answer, Refused):
            check_now(operation)
        if operation.end is None:
            if operation.call in {"create_command", "expire_overdue"}:
                anywhere.append(_unknown(operation))
            elif operation.call in WRITES:
                about[str(operation.command_id)].append(_unknown(operation))
            continue
        try:
            for command_id, answer in _answers(operation):
                about[command_id].append(_Call(operation, operation.start, operation.end, answer))
        except TypeError:
            found.append(Contradiction(None, f"{said(operation)}, which tells of no command", (operation,)))
    return about, anywhere, found


def _unknown(operation: Operation) -> _Call:
    return _Call(operation, operation.start, math.inf, None)


def _answers(operation: Operation) -> Iterator[tuple[str, Answer | list[str]]]:
    """Give what an operation answered, and of which command.

    Raises:
        TypeError: a creation or an `expire_overdue` answered what cannot be.
    """
    answer = operation.answer
    if operation.call == "create_command":
        if isinstance(answer, str):
            yield answer, CREATED
        elif not isinstance(answer, Refused):
            raise TypeError(answer)
    elif operation.call == "expire_overdue":
        if isinstance(answer, list):
            yield from ((command_id, True) for command_id in answer)
        elif not isinstance(answer, Refused):
            raise TypeError(answer)
    else:
        yield str(operation.command_id), answer


def _keys_used_twice(history: Iterable[Operation]) -> Iterator[Contradiction]:
    made: dict[str, Operation] = {}
    for operation in history:
        key = operation.arguments.get("idempotency_key")
        if operation.call != "create_command" or key is None or not isinstance(operation.answer, str):
            continue
        first = made.setdefault(key, operation)
        if first.answer != operation.answer:
            message = (
                f"{said(operation)}, but {who(first)} answered {first.answer} for the same idempotency key {key!r}"
            )
            yield Contradiction(operation.answer, message, (first, operation))


def _changes_nothing(call: _Call, known: Known | None) -> bool:
    """Tell whether a call can be a change neither now nor later: one that moves to where the command is may, later."""
    if call.optional:
        return False
    tells = call.operation.call not in WRITES or call.answer is False or isinstance(call.answer, Refused)
    return tells or (known is not None and known.status.state in TERMINAL)


class _Place(NamedTuple):
    """Where a search is: the calls taken, as the bits of a number, and what is known of the command then."""

    taken: int
    known: Known | None


class _Search:
    """A search for an order of the calls about one command, which are in the order they began in."""

    def __init__(self, command_id: str, calls: Sequence[_Call], steps: int) -> None:
        self._id, self._calls, self._steps, self._left = command_id, calls, steps, steps
        self._asked = sum(1 << index for index, call in enumerate(calls) if not call.optional)
        self._deepest = _Place(0, None)

    def succeeds(self) -> bool:
        """Tell whether there is an order.

        Raises:
            Undecided: that took too many steps.
        """
        seen: set[_Place] = set()
        ways = [_Place(0, None)]
        while ways:
            place = self._with_reads(ways.pop())
            if place.taken & self._asked == self._asked:
                return True
            if place in seen:
                continue
            seen.add(place)
            self._deepest = max(self._deepest, place, key=self._depth)
            ways.extend(self._writes(place))
        return False

    def _depth(self, place: _Place) -> int:
        return (place.taken & self._asked).bit_count()

    def _next(self, taken: int) -> list[int]:
        """Give the calls that may come next: those that began before every one that is left has ended."""
        following: list[int] = []
        end = math.inf
        first = (~taken & (taken + 1)).bit_length() - 1  # the first that is not taken
        for index in range(first, len(self._calls)):
            if taken >> index & 1:
                continue
            call = self._calls[index]
            if call.start > end:
                break
            following.append(index)
            end = min(end, call.end)
        return following

    def _with_reads(self, place: _Place) -> _Place:
        """Take all calls that may come next, are answered rightly, and would not change anything later either."""
        taken, known = place
        more = True
        while more:
            more = False
            for index in self._next(taken):
                call = self._calls[index]
                if _changes_nothing(call, known) and self._step(call, known) == (True, known):
                    taken |= 1 << index
                    more = True
        return _Place(taken, known)

    def _writes(self, place: _Place) -> Iterator[_Place]:
        """Give the places that one call more leads to."""
        equal: list[tuple[str, object]] = []
        for index in self._next(place.taken):
            call = self._calls[index]
            if call.optional:
                same = call.operation.call, call.operation.arguments
                if same in equal:
                    continue
                equal.append(same)
            explained, after = self._step(call, place.known)
            if explained and (after != place.known or not (call.optional or _changes_nothing(call, place.known))):
                yield _Place(place.taken | 1 << index, after)

    def _step(self, call: _Call, known: Known | None) -> tuple[bool, Known | None]:
        """Tell whether a call may be answered so, and what is known after it."""
        if self._left <= 0:
            raise Undecided(self._id, self._steps)
        self._left -= 1
        try:
            right, after = expected(known, call.operation.call, call.operation.arguments)
        except (KeyError, TypeError):
            if call.optional:  # it failed for what it was given: it was never carried out
                return False, known
            raise
        return call.optional or is_answer(call.answer, right), after

    def contradiction(self) -> Contradiction:
        """Tell how far the calls can be explained, and what cannot, after that."""
        asked = [call for call in self._calls if not call.optional]
        following = [self._calls[index] for index in self._next(self._deepest.taken)]
        stuck = min((call for call in following if not call.optional), key=lambda call: call.end)
        right, _ = expected(self._deepest.known, stuck.operation.call, stuck.operation.arguments)
        message = (
            f"no order of its {len(asked)} answered calls explains every answer: one that explains "
            f"{self._depth(self._deepest)} of them has {answer_text(right)} where {said(stuck.operation)}"
        )
        return Contradiction(self._id, message, tuple(call.operation for call in asked))
