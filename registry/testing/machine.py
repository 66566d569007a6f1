"""Any sequence of calls, made of any registry, against the model: a rule-based state machine of Hypothesis."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, Final

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from registry.lifecycle import CommandState
from registry.testing import strategies as some
from registry.testing.game import READS, Game, Move
from registry.testing.implementation import Factory
from registry.testing.model import ALLOWED, TERMINAL
from registry.testing.values import instants, terminal_states

__all__ = ["CommandRegistryMachine"]

_UNKNOWN: Final = "cmd_0000000000000000000000000000"
_NOON: Final = datetime(2026, 11, 24, 12, tzinfo=UTC)
_LATER: Final = datetime(2026, 11, 24, 12, 30, tzinfo=UTC)
_NOT_TERMINAL: Final = [CommandState.PENDING_UPLOAD, CommandState.PENDING, CommandState.DISPATCHED]

_hostile_creation: Final = {
    "command_name": some.hostile_names(),
    "initial_state": some.hostile_states().filter(lambda state: state is not None),
    "deadline": some.hostile_deadlines(),
    "request_size_bytes": some.hostile_sizes(),
}
_hostile: Final = {
    **_hostile_creation,
    "state": some.hostile_states(),
    "dispatched_at": some.hostile_deadlines(),
    "completed_at": some.hostile_deadlines(),
    "response_size_bytes": some.hostile_sizes(),
    "error": some.hostile_errors(),
}


_creation: Final = {
    "initial_state": st.sampled_from([*_NOT_TERMINAL, *CommandState]),
    "deadline": st.sampled_from([_NOON, _LATER]) | some.deadlines(),
    "request_size_bytes": some.request_sizes(),
}
_overdue: Final = st.fixed_dictionaries(
    {"deadline": st.sampled_from([_NOON, _LATER])},
    optional={"initial_state": st.sampled_from([CommandState.DISPATCHED, CommandState.FAILED])},
)
_HOSTILE: Final[Mapping[str, tuple[dict[str, Any], list[str]]]] = {
    "mark_dispatched_if_not_terminal": ({"dispatched_at": _NOON}, ["dispatched_at"]),
    "update_command_state": ({"state": CommandState.FAILED}, ["state", *some.FACTS]),
    "complete_command": (
        {"state": CommandState.FAILED, "completed_at": _NOON},
        ["state", "completed_at", *some.RESULTS],
    ),
}
"""Calls of a command, with what they need, and the arguments that may be something that must be refused."""


def _one_in(number: int) -> st.SearchStrategy[bool]:
    return st.integers(1, number).map(lambda each: each == number)


def _has_one(*calls: str) -> Callable[[Any], bool]:
    """Tell whether the registry has these calls, and a command."""
    return lambda machine: bool(machine.game.past) and machine.has(*calls)


class CommandRegistryMachine(RuleBasedStateMachine):
    """Makes calls of a registry, and knows what each must answer; after each step all that can be read must agree.

    Derive from it and set `factory` (`registry.testing.check_registry` does): it makes a new registry for each example,
    for threads or for asyncio. `deployments`: the ids of deployments that its directory knows, if it does not take any.
    Calls that the registry does not have are not made. There may be other commands in it (those with a deadline are let
    expire), and nobody else may write.
    """

    factory: ClassVar[Factory]
    deployments: ClassVar[Sequence[str] | None] = None

    def __init__(self) -> None:
        super().__init__()
        self.game = Game(type(self).factory)
        self.has = self.game.play.registry.has
        self._keys: list[str] = []

    def teardown(self) -> None:
        """Look at every command once more, and close the registry."""
        try:
            self.game.end()
        finally:
            self.game.close()

    # Which command a step is about: mostly one that lives.

    def _state(self, command: str) -> str:
        return self.game.now(command).status.state

    def _any(self, data: st.DataObject) -> str:
        alive = [each for each in self.game.past if self._state(each) not in TERMINAL]
        ended = [each for each in self.game.past if each not in alive]
        chosen = ended if not alive or (ended and data.draw(_one_in(4), "one that has ended")) else alive
        return data.draw(st.sampled_from(chosen), "command")

    # Creations.

    def _named(self, data: st.DataObject) -> dict[str, Any]:
        ids = some.deployment_ids() if self.deployments is None else st.sampled_from(list(self.deployments))
        return {"deployment_id": data.draw(ids, "deployment_id"), "command_name": data.draw(some.command_names())}

    def _create(self, arguments: Mapping[str, Any]) -> str:
        name = f"c{len(self.game.past) + 1}"
        self.game.make(Move("create_command", arguments, makes=name))
        return name

    @rule(data=st.data(), given=st.fixed_dictionaries({}, optional=_creation))
    def create(self, data: st.DataObject, given: dict[str, Any]) -> None:
        """Create a command."""
        self._create(self._named(data) | given)

    @rule(data=st.data(), life=some.lifecycles(most_calls=6))
    def live(self, data: st.DataObject, life: list[some.PlannedCall]) -> None:
        """Create a command, and lead it through a part of its life, or to its end."""
        command = self._create({**life[0].arguments, **self._named(data)})
        for call, arguments in life[1:]:
            if self.has(call):
                self.game.make(Move(call, arguments, of=command))

    @precondition(lambda machine: machine.game.play.registry.takes("create_command", "idempotency_key"))
    @rule(data=st.data(), again=st.booleans(), otherwise=st.booleans())
    def create_with_a_key(self, data: st.DataObject, again: bool, otherwise: bool) -> None:
        """Use an idempotency key: a new one, or again, with the same arguments or with others (which is refused)."""
        if not again or not self._keys:
            self._keys.append(self._create(self._named(data) | {"idempotency_key": f"{len(self._keys)}"}))
        other = {"command_name": "another name"} if otherwise else {}
        self.game.make(Move("create_command", other, of=data.draw(st.sampled_from(self._keys), "key of")))

    # Writes.

    @precondition(_has_one("update_command_state"))
    @rule(data=st.data(), given=st.fixed_dictionaries({}, optional=some.FACTS))
    def update(self, data: st.DataObject, given: dict[str, Any]) -> None:
        """Move a command to a state that the matrix allows, or not."""
        command = self._any(data)
        allowed = ALLOWED.get(self._state(command), TERMINAL)
        lives_on = [state for state in CommandState if state in allowed - TERMINAL] or sorted(
            map(CommandState, allowed)
        )
        state = data.draw(st.sampled_from(list(CommandState) if data.draw(_one_in(3)) else lives_on), "state")
        self.game.make(Move("update_command_state", {"state": state, **given}, of=command))

    @precondition(_has_one("update_command_state"))
    @rule(data=st.data())
    def update_to_each_state_that_is_forbidden(self, data: st.DataObject) -> None:
        """Try every move that the matrix does not allow, one after the other; none changes anything."""
        command = self._any(data)
        for state in CommandState:
            if state not in ALLOWED.get(self._state(command), ()):
                self.game.make(Move("update_command_state", {"state": state}, of=command))

    @precondition(_has_one("complete_command"))
    @rule(
        data=st.data(),
        state=terminal_states,
        completed_at=instants,
        given=st.fixed_dictionaries({}, optional=some.RESULTS),
    )
    def complete(self, data: st.DataObject, state: CommandState, completed_at: datetime, given: dict[str, Any]) -> None:
        """Give a command its result; now and then with a state that is none."""
        if data.draw(_one_in(4), "not terminal"):
            state = data.draw(st.sampled_from(_NOT_TERMINAL), "state")
        arguments = {"state": state, "completed_at": completed_at, **given}
        self.game.make(Move("complete_command", arguments, of=self._any(data)))

    @precondition(_has_one("mark_dispatched_if_not_terminal"))
    @rule(data=st.data(), dispatched_at=instants)
    def dispatch(self, data: st.DataObject, dispatched_at: datetime) -> None:
        """Note that a command went to its deployment."""
        self.game.make(Move("mark_dispatched_if_not_terminal", {"dispatched_at": dispatched_at}, of=self._any(data)))

    @precondition(_has_one("increment_attempt"))
    @rule(data=st.data())
    def increment(self, data: st.DataObject) -> None:
        """Count one more attempt."""
        self.game.make(Move("increment_attempt", of=self._any(data)))

    @precondition(_has_one("expire_overdue"))
    @rule(
        data=st.data(),
        more=st.lists(_overdue, max_size=3),
        now=st.sampled_from([_NOON, _LATER, datetime.max.replace(tzinfo=UTC)]) | some.deadlines(),
        limit=st.sampled_from([1, 2, 100_000]),
    )
    def expire(self, data: st.DataObject, more: list[dict[str, Any]], now: datetime, limit: int) -> None:
        """Let overdue commands expire; a few more may be there for that, some of which have ended."""
        for given in more:
            self._create({**self._named(data), **given})
        self.game.make(Move("expire_overdue", {"now": now, "limit": limit}))

    # What is refused.

    @rule(data=st.data())
    def give_what_must_be_refused(self, data: st.DataObject) -> None:
        """Make a call with an argument that cannot be accepted."""
        calls = [call for call in _HOSTILE if self.game.past and self.has(call)]
        call = data.draw(st.sampled_from(["create_command", *calls]), "call")
        arguments, fields, of = self._named(data), list(_hostile_creation), None
        if call != "create_command":
            (arguments, fields), of = _HOSTILE[call], self._any(data)
        name = data.draw(st.sampled_from(fields), "argument")
        value = data.draw(_hostile[name], name)
        self.game.make(Move(call, {**arguments, name: value}, of=of, hostile=name))

    @rule(command_id=st.sampled_from([_UNKNOWN, "", "%", "' OR 1=1 --", "x" * 300, "\x00"]), data=st.data())
    def call_for_an_unknown_command(self, command_id: str, data: st.DataObject) -> None:
        """Make a call for a command that is not there."""
        calls = list(filter(self.has, (*READS, "increment_attempt", *_HOSTILE)))
        call = data.draw(st.sampled_from(calls), "call")
        self.game.make(Move(call, {"command_id": command_id, **_HOSTILE.get(call, ({}, []))[0]}))

    # The past.

    @precondition(_has_one("status_at"))
    @rule(data=st.data(), by_event=st.booleans(), before=st.sampled_from([timedelta(0), timedelta(microseconds=1)]))
    def travel_in_time(self, data: st.DataObject, by_event: bool, before: timedelta) -> None:
        """Read what a command's status was at a version, or when an event occurred or just before: as was read then."""
        command = self._any(data)
        version = data.draw(st.integers(1, len(self.game.past[command]) + 1), "version")
        by_version = not by_event or not self.has("history")
        when = {"version": version} if by_version else {"event": version, "before": before}
        self.game.make(Move("status_at", when, of=command))
