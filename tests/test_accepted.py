"""What is accepted reads back equal, whatever it is, and verifies."""

import json
from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from eventstore import RecordedEvent
from registry import (
    CommandRegistry,
    CommandState,
    EventContext,
    PostgresCommandRegistry,
    export_line,
)
from tests import strategies as some
from tests.waiting import until

contexts = st.builds(
    EventContext,
    actor=st.none() | some.names,
    request_id=st.none() | some.names,
    traceparent=st.none() | st.just("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    attributes=st.dictionaries(some.json_text, st.none() | some.json_values, max_size=3),
)


@settings(max_examples=100)
@given(
    call=st.fixed_dictionaries(
        {
            "deployment_id": some.names,
            "command_name": some.names,
            "deadline": st.none() | some.instants,
            "request_size_bytes": st.none() | some.sizes,
        }
    ),
    context=contexts,
    completed_at=some.instants,
    size=some.sizes,
    error=some.json_values,
)
def test_whatever_is_accepted_reads_back_equal(
    registry: CommandRegistry, call: dict[str, Any], context: EventContext, completed_at: Any, size: int, error: Any
) -> None:
    command_id = registry.create_command(**call, context=context).command_id
    assert registry.complete_command(command_id, CommandState.FAILED, completed_at, size, error, context=context)
    status = registry.get_command_status(command_id)
    assert status is not None
    found = {"deployment_id": status.deployment_id, "command_name": status.command, "deadline": status.deadline}
    assert found | {"request_size_bytes": status.request_size_bytes} == call
    assert (status.completed_at, status.response_size_bytes) == (completed_at, size)
    assert repr(status.error) == repr(error)
    history = registry.history(command_id)
    assert repr([event.context for event in history]) == repr([context, context])
    assert registry.status_at(command_id, version=2) == status


@settings(max_examples=50)
@given(error=some.json_values, context=contexts)
def test_the_export_holds_data_and_metadata_to_the_letter(dsn: str, error: Any, context: EventContext) -> None:
    with PostgresCommandRegistry.open(dsn, pool_size=1) as registry:
        command_id = registry.create_command("dep_1", "x", context=context).command_id
        registry.complete_command(
            command_id, CommandState.FAILED, registry.history(command_id)[0].occurred_at, error=error
        )
        # The log is given only up to the oldest transaction under way, be it in another test's database.

        def exported() -> list[RecordedEvent]:
            return [event for event in registry.export() if event.stream_id == command_id]

        recorded = until(lambda: events if len(events := exported()) == 2 else [])
    lines = [export_line(event) for event in recorded]
    assert [line.count(b"\n") for line in lines] == [1, 1]
    for event, line in zip(recorded, lines, strict=True):
        assert event.data.encode() in line
        assert event.metadata.encode() in line
        read = json.loads(line)
        assert read["hash"] == event.hash.hex()
        assert read["data"] == json.loads(event.data)
    assert repr(orjson.loads(lines[1])["data"]["error"]) == repr(error)


@settings(max_examples=50)
@given(name=some.names, error=some.json_values, context=contexts)
def test_a_log_of_hostile_values_verifies(dsn: str, name: str, error: Any, context: EventContext) -> None:
    with PostgresCommandRegistry.open(dsn, pool_size=1) as registry:
        command_id = registry.create_command(name, name, context=context).command_id
        registry.update_command_state(command_id, CommandState.PENDING, error=error)
        report = registry.verify()
    assert report.ok, report.problems
    assert report.events == 2 * report.streams == 2 * report.rows
