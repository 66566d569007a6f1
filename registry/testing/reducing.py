"""A history that cannot be explained, reduced to a few calls that still cannot."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from registry.testing.contradictions import Contradiction
from registry.testing.linearizability import Logged, check_against_log
from registry.testing.model import Refused
from registry.testing.observing import WRITES
from registry.testing.recording import Operation
from registry.testing.search import Undecided, check_by_search

__all__ = ["Reduced", "commands_of", "reduced"]

_MOST_CHECKS: Final = 400
_MOST_SEARCHES: Final = 80
_MOST_CHECKED: Final = 1_000_000  # operations, in all checks
_SEARCH_STEPS: Final = 3_000  # for each check without a log


class Reduced(NamedTuple):
    """Operations that still cannot be explained, and why; every other call about the command may be what it will."""

    operations: Sequence[Operation]
    contradiction: Contradiction


def reduced(history: Sequence[Operation], log: Sequence[Logged] | None, contradiction: Contradiction) -> Reduced:
    """Reduce a history to a few operations that still cannot be explained; no single one of them can be left out.

    A call that is left out is not simply gone, which might make others inexplicable that were not: a write may then
    have happened at any time or never, and nothing is known of its answer. (Delta debugging: Zeller and Hildebrandt,
    "Simplifying and isolating failure-inducing input", 2002.) The work is bounded; where that is not enough, the
    result is larger than it need be.
    """
    check = _Reduction(history, log, contradiction.command_id)
    kept = check.kept(contradiction)
    found = check.without_others(kept)
    if found is None:
        return Reduced(contradiction.operations, contradiction)
    names = {operation.request_id for operation in found.operations} | kept
    told = tuple(operation for operation in history if operation.request_id in names)
    return Reduced(told, replace(found, operations=told))


class _Reduction:
    """The operations about one command, and whether some of them alone cannot be explained."""

    def __init__(self, history: Sequence[Operation], log: Sequence[Logged] | None, command_id: str | None) -> None:
        self._id = command_id
        self._log = None if log is None else [event for event in log if event.command_id == command_id]
        self._written = {event.request_id for event in self._log or ()}
        self._operations = [_narrowed(each, command_id) for each in history if self._concerns(each)]
        self._first = min((operation.start for operation in self._operations), default=0)
        most = _MOST_SEARCHES if log is None else _MOST_CHECKS
        self._checks = max(20, min(most, _MOST_CHECKED // max(1, len(self._operations))))

    def _concerns(self, operation: Operation) -> bool:
        if operation.request_id in self._written or self._id in commands_of(operation):
            return True
        return self._log is None and operation.end is None and operation.call in {"create_command", "expire_overdue"}

    def without_others(self, kept: set[str]) -> Contradiction | None:
        """Tell what cannot be explained of some operations, whatever the others were."""
        self._checks -= 1
        operations = [other for each in self._operations if (other := self._left(each, kept)) is not None]
        operations.sort(key=lambda operation: operation.start)
        try:
            if self._log is None:
                found = check_by_search(operations, steps=_SEARCH_STEPS)
            else:
                found = check_against_log(operations, self._log)
        except Undecided:
            return None
        return next((each for each in found if each.command_id == self._id), None)

    def _left(self, operation: Operation, kept: set[str]) -> Operation | None:
        """Give an operation, or if it is not kept, what is left of it."""
        if operation.request_id in kept:
            return operation
        wrote = operation.request_id in self._written
        if _refused(operation):
            return operation if wrote else None
        if wrote or (self._log is None and operation.call in WRITES):
            return replace(operation, start=self._first, end=None, answer=None)
        return None

    def kept(self, contradiction: Contradiction) -> set[str]:
        """Choose operations of which no single one can be left out."""
        own = {operation.request_id for operation in self._operations}
        kept = [each.request_id for each in contradiction.operations if each.request_id in own]
        if self.without_others(set(kept)) is None:
            kept = [each.request_id for each in self._operations]
        return set(_least(kept, lambda some: self.without_others(set(some)) is not None, lambda: self._checks > 0))


def _refused(operation: Operation) -> bool:
    return isinstance(operation.answer, Refused)


def _narrowed(operation: Operation, command_id: str | None) -> Operation:
    """Give a call of `expire_overdue` as it concerns one command."""
    if not isinstance(operation.answer, list):
        return operation
    return replace(operation, answer=[each for each in operation.answer if each == command_id])


def _least(names: list[str], fails: Callable[[Sequence[str]], bool], goes_on: Callable[[], bool]) -> list[str]:
    """Leave names out, in ever smaller parts, as long as what is left fails."""
    size = max(1, len(names) // 2)
    while names and goes_on():
        shorter = _without_a_part(names, size, fails, goes_on)
        if len(shorter) == len(names) and size == 1:
            break
        names, size = shorter, size if size == 1 else size // 2
    return names


def _without_a_part(
    names: list[str], size: int, fails: Callable[[Sequence[str]], bool], goes_on: Callable[[], bool]
) -> list[str]:
    begin = 0
    while begin < len(names) and goes_on():
        shorter = names[:begin] + names[begin + size :]
        if fails(shorter):
            names = shorter
        else:
            begin += size
    return names


def commands_of(operation: Operation) -> Collection[str]:
    """Give the commands that an operation tells it was about."""
    if isinstance(operation.answer, list):
        return operation.answer
    return () if operation.command_id is None else (operation.command_id,)
