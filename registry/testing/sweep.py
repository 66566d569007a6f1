"""The calls about one command, each put at the least of its versions that explains it."""

from collections.abc import Mapping, Sequence

from registry.testing.contradictions import Contradiction, said, who
from registry.testing.model import CREATED, Answer
from registry.testing.recording import Operation
from registry.testing.states import States

__all__ = ["Sweep", "answer_of"]


def answer_of(operation: Operation) -> Answer | list[str]:
    """Give what an operation answered about one command, as the model tells it."""
    if operation.call == "create_command":
        return CREATED
    return True if operation.call == "expire_overdue" else operation.answer


class Sweep:
    """The calls about one command, each put at the least version that explains it."""

    def __init__(
        self, command_id: str, operations: list[Operation], versions: Mapping[str, int], states: States
    ) -> None:
        self._id, self._operations, self._versions, self._states = command_id, operations, versions, states
        operations.sort(key=_start)
        self._places = [0] * len(operations)
        self._holders = [-1] * len(operations)

    def check(self) -> list[Contradiction]:
        """Tell of the calls that have no place."""
        failed = self._sweep()
        if not failed:
            return []
        places = self._all_places(failed)
        return [self._contradiction(index, places) for index in failed]

    def _sweep(self) -> list[int]:
        """Place all operations; give those that have no place. This is the hot path."""
        operations, places, holders, versions = self._operations, self._places, self._holders, self._versions
        least, failed = self._states.least, []
        ends = sorted([(each.end, index) for index, each in enumerate(operations) if each.end is not None])
        ends.reverse()
        low, holder = 0, -1
        for index, operation in enumerate(operations):
            while ends and ends[-1][0] < operation.start:
                ended = ends.pop()[1]
                if places[ended] > low:
                    low, holder = places[ended], ended
            holders[index] = holder
            version = versions.get(operation.request_id)
            if version is None:
                if _tells_nothing(operation):
                    continue
                version = least(operation.call, operation.arguments, answer_of(operation), low)
                if version is None:
                    failed.append(index)
                    continue
            elif version <= low:
                failed.append(index)
                continue
            places[index] = version
        return failed

    def _all_places(self, failed: Sequence[int]) -> dict[str, str]:
        named: dict[str, str] = {}
        for operation, place in zip(self._operations, self._places, strict=True):
            version = self._versions.get(operation.request_id)
            if version is not None:
                named[operation.request_id] = f"wrote version {version}"
            elif operation.end is None:
                named[operation.request_id] = "never happened"
            elif not _tells_nothing(operation):
                named[operation.request_id] = f"at version {place}"
        for index in failed:
            named.setdefault(self._operations[index].request_id, "")
            if self._operations[index].request_id not in self._versions:
                named[self._operations[index].request_id] = "at no version"
        return named

    def _contradiction(self, index: int, places: Mapping[str, str]) -> Contradiction:
        chain = self._chain(index)
        return Contradiction(
            self._id,
            self._message(index),
            tuple(self._operations[each] for each in sorted(chain)),
            places,
        )

    def _chain(self, index: int) -> list[int]:
        """Give the operations that leave no place to one: what holds it back, what holds that back, and so on."""
        chain = [index]
        if self._earliest(index) is None:
            return chain
        while (index := self._holders[index]) >= 0:
            chain.append(index)
            if self._earliest(index) == self._places[index]:
                break
        return chain

    def _earliest(self, index: int) -> int | None:
        """Give the version that an operation would be at if nothing were before it."""
        operation = self._operations[index]
        version = self._versions.get(operation.request_id)
        if version is not None:
            return version
        return self._states.least(operation.call, operation.arguments, answer_of(operation), 0)

    def _message(self, index: int) -> str:
        operation, earliest = self._operations[index], self._earliest(index)
        if earliest is None:
            rather = self._states.rather(operation.call, operation.arguments, answer_of(operation))
            return f"{said(operation)}, but {rather}"
        holder = self._holders[index]
        before = (
            f"{who(self._operations[holder])}, which had ended before it began, is at version {self._places[holder]}"
        )
        if operation.request_id in self._versions:
            return f"{who(operation)} wrote version {earliest}, but {before}"
        return (
            f"{said(operation)}, which was right at version {earliest}, but {before}, and it is not right from there on"
        )


def _start(operation: Operation) -> int:
    return operation.start


def _tells_nothing(operation: Operation) -> bool:
    """Tell whether an operation without an event says nothing of the command: it never happened, or cannot tell."""
    return operation.end is None or operation.unwritten
