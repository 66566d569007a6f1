"""Moves of a state machine: each is made of a registry and of the model, and then all that can be read must agree."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Final
from uuid import uuid4

from registry.testing.implementation import Factory
from registry.testing.model import Known, created, expected
from registry.testing.observing import comparable, told
from registry.testing.play import ContractBroken, Play

__all__ = ["READS", "Game", "Move", "shortest"]

_LAST: Final = datetime.max.replace(tzinfo=UTC)
_MOST: Final = 100_000

READS: Final = ("get_command_status", "get_command_metadata", "get_command_access_context", "history")


@dataclass(frozen=True, slots=True)
class Move:
    """A call of a registry, whoever it is: commands have names ("c1") instead of ids.

    `makes`: the name of the command that it creates. `of`: that of the command it is about; a creation with `of`
    repeats that command's creation, with other arguments if it gives some. `hostile`: the argument that must be
    refused. Of `status_at`, `event` and `before` stand for the instant at, or so long before, the nth event.
    """

    call: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    makes: str | None = None
    of: str | None = None
    hostile: str | None = None


class Game:
    """A registry, the model, and what was known of every command at each of its versions.

    `checks_each`: whether commands are looked at after each move, or only at the end.
    """

    def __init__(self, factory: Factory, *, checks_each: bool = True) -> None:
        self.play = Play(factory)
        self._checks_each = checks_each
        self.past: dict[str, list[Known]] = {}
        self.moves: list[Move] = []
        self._ids: dict[str, str] = {}
        self._creations: dict[str, dict[str, Any]] = {}
        self._prefix = uuid4().hex[:8]
        self._errors: dict[tuple[str, str], Any] = {}
        self._touched: set[str] = set()
        try:
            self._clear()
        except BaseException:
            self.play.close()
            raise

    def _clear(self) -> None:
        """Let what others have left expire, so that what `expire_overdue` does here depends on these moves only."""
        arguments, expired = {"now": _LAST, "limit": _MOST}, set[str]()
        while self.play.registry.has("expire_overdue"):
            answer = self.play.call("expire_overdue", arguments)
            if not answer:
                return
            if not isinstance(answer, list) or expired.intersection(answer):
                self.play.broken("expire_overdue", f"answered {answer!r}, after {sorted(expired)[:5]} had expired")
            expired.update(answer)

    def now(self, command: str) -> Known:
        """Tell what is known of a command."""
        return self.past[command][-1]

    def make(self, move: Move) -> None:
        """Make a move, and look at every command that it was about; one about a command that is not there is none.

        Raises:
            ContractBroken: an answer was not that of the contract.
        """
        if move.of is not None and move.of not in self.past:
            return
        self.moves.append(move)
        if move.hostile is not None:
            self._refuse(move, move.hostile)
        elif move.call == "create_command":
            self._create(move)
        elif move.call == "expire_overdue":
            self._expire(move)
        elif move.call == "status_at":
            self._travel(move)
        elif move.of is None:
            self.play.demand(move.call, move.arguments, expected(None, move.call, comparable(move.arguments))[0])
        else:
            self._write(move, move.of)
        if self._checks_each:
            self._check()

    def end(self) -> None:
        """Look at every command once more, unless the contract is broken already."""
        if not self.play.broken_by:
            self._touched.update(self.past)
            self._check()

    def close(self) -> None:
        """Close the registry."""
        self.play.close()

    def _create(self, move: Move) -> None:
        if move.of is not None:
            self._repeat(move, move.of)
            return
        name = move.makes or ""
        arguments = dict(move.arguments)
        if "idempotency_key" in arguments:
            arguments["idempotency_key"] = f"{self._prefix}-{arguments['idempotency_key']}"
        command_id = self.play.create(arguments)
        if command_id in self._ids.values():
            self.play.broken("create_command", f"gave {command_id} to a second command")
        self._ids[name], self._creations[name] = command_id, arguments
        self.past[name] = [created(comparable(arguments))]
        self._touched.add(name)

    def _repeat(self, move: Move, command: str) -> None:
        first = self._creations[command]
        if "idempotency_key" in first:
            arguments = {**first, **move.arguments}
            if arguments == first:
                self.play.create_again(arguments, self._ids[command])
            else:
                self.play.refuse("create_command", arguments, "IDEMPOTENCY_CONFLICT")
            self._touched.add(command)

    def _about(self, move: Move) -> dict[str, Any]:
        return dict(move.arguments) if move.of is None else {"command_id": self._ids[move.of], **move.arguments}

    def _write(self, move: Move, command: str) -> None:
        arguments = self._in_order(command, self._about(move))
        must, known = expected(self.now(command), move.call, comparable(arguments))
        self.play.demand(move.call, arguments, must)
        self._keep(command, known)

    def _keep(self, command: str, known: Known | None) -> None:
        self._touched.add(command)
        if known is not None and known != self.now(command):
            self.past[command].append(known)

    def _in_order(self, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Repeat an error that is there already key by key: whether another order is news, nothing says."""
        text = comparable(arguments).get("error")
        if text is None:
            return arguments
        return {**arguments, "error": self._errors.setdefault((command, text), arguments["error"])}

    def _expire(self, move: Move) -> None:
        given = comparable(move.arguments)
        given["limit"] = self._untied(given)
        outcomes = {each: expected(past[-1], "expire_overdue", given) for each, past in self.past.items()}
        overdue = {name: self.now(name).status.deadline for name, (expires, _) in outcomes.items() if expires is True}
        names = {self._ids[name]: name for name in overdue}
        by_id = {self._ids[name]: deadline for name, deadline in overdue.items()}
        for command_id in self.play.expire({**move.arguments, "limit": given["limit"]}, by_id):
            self._keep(names[command_id], outcomes[names[command_id]][1])
        self._touched.update(self.past)

    def _untied(self, given: dict[str, Any]) -> int:
        """Give a limit that does not part commands of one deadline: which of them go first is the registry's choice."""
        overdue = sorted(
            deadline
            for past in self.past.values()
            if expected(past[-1], "expire_overdue", given)[0] is True and (deadline := past[-1].status.deadline)
        )
        limit: int = given["limit"]
        while limit < len(overdue) and overdue[limit - 1] == overdue[limit]:
            limit += 1
        return limit

    def _refuse(self, move: Move, hostile: str) -> None:
        self.play.refuse(move.call, self._about(move), "INVALID_COMMAND", hostile)
        self._touched.update([] if move.of is None else [move.of])

    def _travel(self, move: Move) -> None:
        past = self.past[move.of or ""]
        arguments = self._about(move)
        if "event" in arguments:
            event, before = arguments.pop("event"), arguments.pop("before")
            history = self.play.call("history", {"command_id": arguments["command_id"]})
            occurred = [at for entry in history if isinstance(at := told(entry, "occurred_at"), datetime)]
            if len(occurred) != len(past):
                return  # of what is missing, the check tells; and a registry's events may not say when they occurred
            arguments["at"] = at = occurred[min(event, len(occurred)) - 1] - before
            version = max((number for number, each in enumerate(occurred, 1) if each <= at), default=0)
        else:
            version = arguments["version"]
        self.play.demand("status_at", arguments, past[version - 1].status if 1 <= version <= len(past) else None)

    def _check(self) -> None:
        touched, self._touched = sorted(self._touched), set()
        for command in touched:
            known, about = self.now(command), {"command_id": self._ids[command]}
            for call in filter(self.play.registry.has, READS):
                self.play.demand(call, about, expected(known, call, about)[0])
            if self.play.registry.has("history"):
                self.play.history(about, known.status)


def shortest(factory: Factory, moves: Sequence[Move], broken: ContractBroken) -> ContractBroken:
    """Leave out moves and arguments, and make values simpler, as long as the contract is still broken.

    Moves go in ever smaller groups, as in Zeller and Hildebrandt, "Simplifying and isolating failure-inducing input"
    (2002); for half a minute at most. `broken` is how the moves broke it; given back as it is when they do not break it
    again.
    """
    kept, until = list(moves), time.monotonic() + _PATIENCE
    size = len(kept)
    while size:
        start = 0
        while start < len(kept) and time.monotonic() < until:
            fewer = kept[:start] + kept[start + size :]
            found = _breaks(factory, fewer, broken.call)
            if found is None:
                start += size
            else:
                kept, broken = fewer, found
        size //= 2
    for place in range(len(kept)):
        candidates = _simpler(kept[place])
        while time.monotonic() < until and (candidate := next(candidates, None)) is not None:
            found = _breaks(factory, [*kept[:place], candidate, *kept[place + 1 :]], broken.call)
            if found is not None:
                kept[place], broken = candidate, found
                candidates = _simpler(candidate)
    return _breaks(factory, kept, broken.call, checks_each=False) or broken


_PLAIN: Final[Mapping[str, Any]] = {
    "command_name": "sync-data",
    "deadline": datetime(2026, 11, 24, 12, tzinfo=UTC),
    "dispatched_at": datetime(2026, 11, 24, 12, tzinfo=UTC),
    "completed_at": datetime(2026, 11, 24, 12, tzinfo=UTC),
    "request_size_bytes": 1,
    "response_size_bytes": 1,
    "error": "gone",
}
_OPTIONAL: Final[Mapping[str, frozenset[str]]] = {
    "create_command": frozenset({"initial_state", "deadline", "request_size_bytes"}),
    "update_command_state": frozenset({"dispatched_at", "completed_at", "response_size_bytes", "error"}),
    "complete_command": frozenset({"response_size_bytes", "error"}),
}


def _simpler(move: Move) -> Iterator[Move]:
    for name, value in move.arguments.items():
        if name == move.hostile:
            continue
        others = {each: other for each, other in move.arguments.items() if each != name}
        if name in _OPTIONAL.get(move.call, ()):
            yield replace(move, arguments=others)
        plain = _PLAIN.get(name)
        if plain is None or repr(value) == repr(plain):
            continue
        for simpler in [plain, *(_parts(value) if name == "error" else [])]:
            if simpler is not None:
                yield replace(move, arguments={**move.arguments, name: simpler})


def _parts(value: object) -> list[Any]:
    """Give what is in an error, and the error without some of it."""
    if isinstance(value, dict):
        return [*value.values(), *({key: value[key] for key in value if key != left} for left in value)]
    if isinstance(value, list):
        return [*value, *(value[:left] + value[left + 1 :] for left in range(len(value)))]
    return [value[: len(value) // 2], value[len(value) // 2 :]] if isinstance(value, str) and len(value) > 1 else []


_PATIENCE: Final = 30.0  # seconds, for all attempts to shorten


def _breaks(
    factory: Factory, moves: Sequence[Move], call: str | None, *, checks_each: bool = True
) -> ContractBroken | None:
    """Make moves of a new registry, and tell how they break the contract, if they do so at the same call."""
    try:
        game = Game(factory, checks_each=checks_each)
    except Exception:
        return None
    try:
        for move in moves:
            game.make(move)
        game.end()
    except ContractBroken as broken:
        return broken if broken.call == call else None
    except Exception:
        return None
    finally:
        game.close()
    return None
