"""The states that a command was in, one for each version, and which of them explain an answer."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Final

from registry.testing.contradictions import answer_text, differences, is_answer
from registry.testing.model import FACTS, Answer, Arguments, Envelope, Known, Refused, Status, expected
from registry.testing.observing import WRITES

__all__ = ["States"]

_FIELDS: Final = {name: index for index, name in enumerate(Status._fields)}
_BECOMES: Final = {"mark_dispatched_if_not_terminal": "DISPATCHED", "expire_overdue": "EXPIRED"}
_NOT_FOUND: Final = Refused("COMMAND_NOT_FOUND")


class States:
    """The states 0..n of a command, and at which of them a call that changes nothing is answered what it was.

    Most answers leave one candidate, which the model confirms. The others are looked up in indexes, each made once in
    one pass, so that many calls about a command of many versions take no longer each.
    """

    def __init__(self, states: Sequence[Known | None]) -> None:
        self._states, self._last = states, len(states) - 1
        self._indexes: dict[tuple[str, ...], Mapping[tuple[object, ...], Sequence[int]]] = {}
        self._refusals: dict[tuple[str, object, Refused], Sequence[int]] = {}

    def least(self, call: str, arguments: Arguments, answer: Answer | list[str], low: int) -> int | None:
        """Give the least version from `low` on at which the answer is right; None when there is none."""
        kind = type(answer)
        if isinstance(answer, Status | Envelope):
            if answer.version is None:
                return self._first(self._like(answer), call, arguments, answer, low)
            version = answer.version if type(answer.version) is int else -1
        elif kind is bool:
            if answer:
                return self._first(self._already(call, arguments), call, arguments, answer, low)
            version = self._last  # False: it is terminal, and so nothing was written after it
        elif kind is int:
            # A number of attempts that is not counted up is that of a terminal command.
            version = answer if call == "history" else self._last  # type: ignore[assignment]
        elif answer is None or answer == _NOT_FOUND:
            version = 0
        elif isinstance(answer, Refused):
            return self._first(self._refusing(call, arguments, answer), call, arguments, answer, low)
        else:
            version = max(low, 1)  # whose it is, and what a creation must repeat, never changes
        if low <= version <= self._last and self._is_right(version, call, arguments, answer):
            return version
        return None

    def _is_right(self, version: int, call: str, arguments: Arguments, answer: Answer | list[str]) -> bool:
        known = self._states[version]
        right, after = expected(known, call, arguments)
        return (after is known or after == known) and is_answer(answer, right)

    def _first(
        self, versions: Sequence[int], call: str, arguments: Arguments, answer: Answer | list[str], low: int
    ) -> int | None:
        for place in range(bisect_left(versions, low), len(versions)):
            if self._is_right(versions[place], call, arguments, answer):
                return versions[place]
        return None

    def _like(self, answer: Status | Envelope) -> Sequence[int]:
        """Give the versions at which a read tells the same, but for the version."""
        names = answer._fields[:-1]
        return self._index(names).get(tuple(answer[:-1]), ())

    def _already(self, call: str, arguments: Arguments) -> Sequence[int]:
        """Give the versions at which all that a call tells was so already; otherwise, True would have changed it."""
        to = _BECOMES.get(call) or arguments.get("state")
        told = [name for name in FACTS if arguments.get(name) is not None] if call != "expire_overdue" else []
        return self._index(("state", *told)).get((to, *[arguments[name] for name in told]), ())

    def _index(self, names: tuple[str, ...]) -> Mapping[tuple[object, ...], Sequence[int]]:
        index = self._indexes.get(names)
        if index is None:
            index = self._indexes[names] = self._indexed([_FIELDS[name] for name in names])
        return index

    def _indexed(self, fields: Sequence[int]) -> Mapping[tuple[object, ...], Sequence[int]]:
        versions: defaultdict[tuple[object, ...], list[int]] = defaultdict(list)
        for version, known in enumerate(self._states):
            if known is not None:
                status = known.status
                versions[tuple([status[each] for each in fields])].append(version)
        return versions

    def _refusing(self, call: str, arguments: Arguments, answer: Refused) -> Sequence[int]:
        """Give the versions at which a call is refused: by the state it leads to, whatever else it tells."""
        key = (call, arguments.get("state"), answer)
        versions = self._refusals.get(key)
        if versions is None:
            all_versions = range(self._last + 1)
            versions = [each for each in all_versions if self._is_right(each, call, arguments, answer)]
            self._refusals[key] = versions
        return versions

    def rather(self, call: str, arguments: Arguments, answer: Answer | list[str]) -> str:
        """Tell what there is instead of an answer that is right at no version."""
        if call in WRITES and answer is not False and not isinstance(answer, Refused):
            return "the log has no event of it, without which that is right at no version"
        if isinstance(answer, Status | Envelope) and type(answer.version) is int:
            if not 1 <= answer.version <= self._last:
                return f"the log ends at version {self._last}"
            right, _ = expected(self._states[answer.version], call, arguments)
            if isinstance(right, Status | Envelope) and type(right) is type(answer):
                return f"at version {answer.version} it is: {differences(answer, right)}"
        right, _ = expected(self._states[self._last], call, arguments)
        return f"that is right at no version: at {self._last}, the last one, it is {answer_text(right)}"
