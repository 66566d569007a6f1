"""What the strategies give: ordinary and nasty values are accepted and come back equal, hostile ones are refused."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

from eventstore.codec import encode_json
from registry import CommandState, InvalidCommand, MemoryCommandRegistry
from registry.events import CODEC, CommandEvent
from registry.testing import (
    PlannedCall,
    command_names,
    deadlines,
    deployment_ids,
    errors,
    events,
    hostile_deadlines,
    hostile_errors,
    hostile_names,
    hostile_sizes,
    hostile_states,
    lifecycles,
    request_sizes,
)
from registry.testing.model import TERMINAL
from registry.testing.observing import told

QUICK = settings(max_examples=2_000, database=None, phases=[Phase.generate])


@given(deployment_ids(), command_names(), deadlines(), request_sizes(), errors())
def test_what_must_be_accepted_comes_back_equal(
    deployment_id: str, command_name: str, deadline: Any, size: int, error: Any
) -> None:
    registry = MemoryCommandRegistry()
    created = registry.create_command(deployment_id, command_name, deadline=deadline, request_size_bytes=size)
    registry.update_command_state(created.command_id, CommandState.PENDING, error=error)
    status = registry.get_command_status(created.command_id)
    assert status is not None
    assert (status.deployment_id, status.command, status.deadline, status.request_size_bytes) == (
        deployment_id,
        command_name,
        deadline,
        size,
    )
    assert encode_json(status.error) == encode_json(error)


@given(st.data())
@pytest.mark.parametrize(
    ("argument", "values"),
    [
        ("command_name", hostile_names()),
        ("deadline", hostile_deadlines()),
        ("request_size_bytes", hostile_sizes()),
        ("initial_state", hostile_states()),
    ],
)
def test_what_must_be_refused_is_by_name(argument: str, values: Any, data: st.DataObject) -> None:
    arguments: Any = {"deployment_id": "dep", "command_name": "sync"} | {argument: data.draw(values)}
    with pytest.raises(InvalidCommand) as refused:
        MemoryCommandRegistry().create_command(**arguments)
    assert refused.value.field == argument


@given(hostile_errors())
def test_so_is_an_error_that_is_no_json(error: Any) -> None:
    registry = MemoryCommandRegistry()
    command_id = registry.create_command("dep", "sync").command_id
    with pytest.raises(InvalidCommand, match=r"^error"):
        registry.update_command_state(command_id, CommandState.PENDING, error=error)


@given(events())
def test_any_event_is_stored_and_read_again(event: CommandEvent) -> None:
    encoded = CODEC.encode(event, datetime(2026, 11, 24, tzinfo=UTC), "{}")
    assert type(event).model_validate_json(encoded.data) == event


@given(lifecycles(most_calls=20), lifecycles(complete=True))
def test_every_call_of_a_life_is_allowed(life: list[PlannedCall], whole: list[PlannedCall]) -> None:
    registry = MemoryCommandRegistry()
    for calls in (life, whole):
        command_id = registry.create_command(**calls[0].arguments).command_id
        for call, arguments in calls[1:]:
            assert getattr(registry, call)(command_id=command_id, **arguments), call
    status = registry.get_command_status(command_id)
    assert told(status, "state") in TERMINAL


def test_lives_are_of_every_kind() -> None:
    def uses(call: str) -> Any:
        return lambda life: any(each.call == call for each in life)

    for call in ("update_command_state", "complete_command", "increment_attempt", "mark_dispatched_if_not_terminal"):
        find(lifecycles(), uses(call), settings=QUICK)
    find(lifecycles(), lambda life: len(life) == 1, settings=QUICK)
    find(lifecycles(), lambda life: len(life) >= 6, settings=QUICK)
