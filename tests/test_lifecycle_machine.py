"""Any sequence of calls, on every implementation, against a model that is a dict and the tables of the contract."""

from datetime import datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from registry import CommandNotFound, CommandRegistry, CommandState, InvalidTransition
from tests import strategies as some

UNKNOWN = "cmd_0000000000000000000000000000"

# Written out from the contract, and not taken from the code under test.
ALLOWED = {
    "PENDING_UPLOAD": ["PENDING_UPLOAD", "PENDING", "FAILED", "EXPIRED"],
    "PENDING": ["PENDING", "DISPATCHED", "FAILED", "EXPIRED"],
    "DISPATCHED": ["DISPATCHED", "PENDING", "SUCCEEDED", "FAILED", "EXPIRED"],
}
FACTS = ("dispatched_at", "completed_at", "response_size_bytes", "error")

facts = st.fixed_dictionaries(
    {},
    optional={
        "dispatched_at": some.instants,
        "completed_at": some.instants,
        "response_size_bytes": some.sizes,
        "error": some.json_values,
    },
)


class Lifecycle(RuleBasedStateMachine):
    """Plays calls on `registry`, and knows what each must answer."""

    registry: CommandRegistry
    commands: Bundle[str] = Bundle("commands")

    def __init__(self) -> None:
        super().__init__()
        self.model: dict[str, dict[str, Any]] = {}
        self.past: dict[str, list[dict[str, Any]]] = {}
        self.touched: set[str] = set()

    def changed(self, command_id: str, **new: Any) -> None:
        model = self.model[command_id]
        model |= new
        model["version"] += 1
        self.past[command_id].append(dict(model))
        self.touched.add(command_id)

    @rule(
        target=commands,
        deployment_id=some.names,
        command_name=some.names,
        initial_state=some.states,
        deadline=st.none() | some.instants,
        request_size_bytes=st.none() | some.sizes,
    )
    def create(self, **arguments: Any) -> str:
        created = self.registry.create_command(**arguments)
        assert created.command_id not in self.model
        self.model[created.command_id] = {
            "deployment_id": arguments["deployment_id"],
            "command": arguments["command_name"],
            "state": arguments["initial_state"],
            "deadline": arguments["deadline"],
            "request_size_bytes": arguments["request_size_bytes"],
            "attempt": 1,
            "version": 0,
            **dict.fromkeys(FACTS),
        }
        self.past[created.command_id] = []
        self.changed(created.command_id)
        return created.command_id

    @rule(command_id=commands, state=some.states, given=facts)
    def update(self, command_id: str, state: CommandState, given: dict[str, Any]) -> None:
        model = self.model[command_id]
        if model["state"] not in ALLOWED:
            assert self.registry.update_command_state(command_id, state, **given) is False
        elif state not in ALLOWED[model["state"]]:
            with pytest.raises(InvalidTransition):
                self.registry.update_command_state(command_id, state, **given)
        else:
            news = state != model["state"] or any(repr(value) != repr(model[name]) for name, value in given.items())
            assert self.registry.update_command_state(command_id, state, **given) is True
            if news:
                self.changed(command_id, state=state, **given)
        self.touched.add(command_id)

    @rule(
        command_id=commands,
        state=some.terminal_states,
        completed_at=some.instants,
        response_size_bytes=st.none() | some.sizes,
        error=st.none() | some.json_values,
    )
    def complete(self, command_id: str, state: CommandState, completed_at: datetime, **given: Any) -> None:
        open_still = self.model[command_id]["state"] in ALLOWED
        assert self.registry.complete_command(command_id, state, completed_at, **given) is open_still
        if open_still:
            new = {name: value for name, value in given.items() if value is not None}
            self.changed(command_id, state=state, completed_at=completed_at, **new)
        self.touched.add(command_id)

    @rule(command_id=commands, dispatched_at=some.instants)
    def dispatch(self, command_id: str, dispatched_at: datetime) -> None:
        model = self.model[command_id]
        open_still = model["state"] in ALLOWED
        assert self.registry.mark_dispatched_if_not_terminal(command_id, dispatched_at) is open_still
        if open_still and (model["state"], model["dispatched_at"]) != ("DISPATCHED", dispatched_at):
            self.changed(command_id, state=CommandState.DISPATCHED, dispatched_at=dispatched_at)
        self.touched.add(command_id)

    @rule(command_id=commands)
    def increment(self, command_id: str) -> None:
        model = self.model[command_id]
        if model["state"] in ALLOWED:
            self.changed(command_id, attempt=model["attempt"] + 1)
        assert self.registry.increment_attempt(command_id) == self.model[command_id]["attempt"]
        self.touched.add(command_id)

    @rule(command_id=commands, data=st.data())
    def travel_in_time(self, command_id: str, data: st.DataObject) -> None:
        version = data.draw(st.integers(1, len(self.past[command_id])), "version")
        self.check_status(self.registry.status_at(command_id, version=version), self.past[command_id][version - 1])

    @rule()
    def ask_for_an_unknown_command(self) -> None:
        assert self.registry.get_command_status(UNKNOWN) is None
        assert self.registry.get_command_metadata(UNKNOWN) is None
        with pytest.raises(CommandNotFound):
            self.registry.increment_attempt(UNKNOWN)

    def check_status(self, status: Any, model: dict[str, Any]) -> None:
        found = {name: getattr(status, name) for name in model}
        assert found == model
        assert repr(found["error"]) == repr(model["error"])

    @invariant()
    def status_metadata_and_history_agree_with_the_model(self) -> None:
        for command_id in self.touched:
            model = self.model[command_id]
            status = self.registry.get_command_status(command_id)
            self.check_status(status, model)
            envelope = self.registry.get_command_metadata(command_id)
            assert envelope is not None
            assert status is not None
            assert {name: getattr(envelope, name) for name in ("state", "attempt", "deadline", "version")} == {
                name: model[name] for name in ("state", "attempt", "deadline", "version")
            }
            history = self.registry.history(command_id)
            assert [event.version for event in history] == list(range(1, model["version"] + 1))
            assert self.registry.status_at(command_id, version=model["version"]) == status
            assert history[0].occurred_at == status.created_at
        self.touched.clear()


def test_any_sequence_of_calls_gives_the_answers_of_the_contract(registry: CommandRegistry) -> None:
    class OnThisRegistry(Lifecycle):
        pass

    OnThisRegistry.registry = registry
    run_state_machine_as_test(
        OnThisRegistry,
        settings=settings(
            max_examples=30,
            stateful_step_count=30,
            deadline=None,
            print_blob=True,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )
    if hasattr(registry, "verify"):
        report = registry.verify()
        assert report.ok, report.problems
        assert report.events > 0
