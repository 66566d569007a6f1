"""Every implementation gives the same answers: those recorded of the reference, and those of the contract."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from registry import (
    CommandNotFound,
    CommandRegistry,
    CommandState,
    EventContext,
    IdempotencyConflict,
    InvalidCommand,
    InvalidCommandState,
    InvalidTransition,
    TargetIdInvalid,
    TargetNotFound,
    command_context,
)
from registry.lifecycle import TRANSITIONS, can_transition_to, is_terminal
from tests.conftest import Open

TRACES = [json.loads(line) for line in (Path(__file__).parent / "traces.jsonl").read_text("utf-8").splitlines()]
INSTANTS = ("deadline", "dispatched_at", "completed_at")
UNKNOWN = "cmd_0000000000000000000000000000"
NOW = datetime(2026, 11, 24, 10, 0, 0, 123456, UTC)

pytestmark = pytest.mark.every_postgres


def arguments(step: dict[str, Any]) -> dict[str, Any]:
    given = dict(step["args"])
    for name in INSTANTS:
        if name in given:
            given[name] = datetime.fromisoformat(given[name])
    if step["op"] == "create":
        given["initial_state"] = CommandState(given.pop("state"))
    else:
        given["state"] = CommandState(given["state"])
    return given


def check_answer(answer: Any, recorded: dict[str, Any] | None) -> None:
    if recorded is None:
        assert answer is None
        return
    found = json.loads(answer.model_dump_json())
    for name, value in recorded.items():
        if name == "has_error":
            assert (answer.error is not None) == value
        elif name in INSTANTS and value is not None:
            assert datetime.fromisoformat(found[name]) == datetime.fromisoformat(value)
        else:
            assert (type(found[name]), found[name]) == (type(value), value), name


def play(registry: CommandRegistry, trace: dict[str, Any]) -> None:
    ids: dict[int, str] = {}
    for step in trace["steps"]:
        command_id = UNKNOWN if step.get("unknown") else ids.get(step.get("on", -1), "")
        match step["op"]:
            case "create":
                created = registry.create_command(**arguments(step))
                ids[step["as"]] = created.command_id
                assert created.deployment_model == step["result"]["deployment_model"]
            case "update":
                assert registry.update_command_state(command_id, **arguments(step)) is True
            case "increment":
                assert registry.increment_attempt(command_id) == step["result"]
            case "status":
                check_answer(registry.get_command_status(command_id), step["result"])
            case "metadata":
                check_answer(registry.get_command_metadata(command_id), step["result"])
            case other:
                raise AssertionError(other)


def test_the_recorded_traces_are_all_there() -> None:
    assert len(TRACES) == 200


@pytest.mark.parametrize("model", ["pull", "push"])
def test_every_recorded_trace_gets_the_recorded_answers(open_registry: Open, model: str) -> None:
    registry = open_registry(model)
    for trace in TRACES:
        if trace["deployment_model"] == model:
            play(registry, trace)


def new_key() -> str:
    return f"key-{uuid4()}"


@pytest.fixture
def pending(registry: CommandRegistry) -> str:
    return registry.create_command("dep_1", "sync-data").command_id


def in_state(registry: CommandRegistry, state: CommandState) -> str:
    return registry.create_command("dep_1", "sync-data", state).command_id


@pytest.fixture
def terminal(registry: CommandRegistry, pending: str) -> Iterator[str]:
    """A command that has succeeded, and that must have changed in nothing when the test ends."""
    registry.mark_dispatched_if_not_terminal(pending, NOW)
    assert registry.complete_command(pending, CommandState.SUCCEEDED, NOW, 512)
    before = registry.get_command_status(pending), registry.history(pending)
    yield pending
    assert (registry.get_command_status(pending), registry.history(pending)) == before


def test_a_new_command_answers_who_it_is_for(registry: CommandRegistry) -> None:
    created = registry.create_command("dep_1", "sync-data")
    assert created.model_dump(mode="json") == {
        "command_id": created.command_id,
        "deployment_model": "pull",
        "project_id": "default",
        "target": {"resource_id": "dep_1", "resource_type": "worker"},
        "delivery_mode": "pull",
    }
    assert len(created.command_id) == 32
    assert created.command_id.startswith("cmd_")


def test_a_new_command_has_a_status_a_metadata_and_an_access_context(registry: CommandRegistry) -> None:
    before = datetime.now(UTC)
    created = registry.create_command("dep_1", "sync-data", deadline=NOW, request_size_bytes=2**64 - 1)
    status = registry.get_command_status(created.command_id)
    assert status is not None
    assert before <= status.created_at <= datetime.now(UTC)
    assert status.model_dump() == {
        "command_id": created.command_id,
        "workspace_id": "default",
        "project_id": "default",
        "deployment_id": "dep_1",
        "command": "sync-data",
        "state": "PENDING",
        "attempt": 1,
        "deadline": NOW,
        "created_at": status.created_at,
        "dispatched_at": None,
        "completed_at": None,
        "error": None,
        "request_size_bytes": 2**64 - 1,
        "response_size_bytes": None,
        "deployment_model": "pull",
        "target": {"resource_id": "dep_1", "resource_type": "worker"},
        "version": 1,
    }
    envelope = registry.get_command_metadata(created.command_id)
    assert envelope is not None
    assert envelope.model_dump() == {
        **{name: value for name, value in status.model_dump().items() if name in type(envelope).model_fields},
        "delivery_mode": "pull",
    }
    access = registry.get_command_access_context(created.command_id)
    assert access is not None
    assert access.model_dump(mode="json") == {
        "workspace_id": "default",
        "project_id": "default",
        "deployment_id": "dep_1",
        "target": {"resource_id": "dep_1", "resource_type": "worker"},
    }


@pytest.mark.parametrize("command_id", [UNKNOWN, "", "\x00", "x" * 300, "%", "' OR 1=1 --"])
def test_reads_of_an_unknown_id_answer_with_nothing(registry: CommandRegistry, command_id: str) -> None:
    assert registry.get_command_status(command_id) is None
    assert registry.get_command_metadata(command_id) is None
    assert registry.get_command_access_context(command_id) is None
    assert registry.status_at(command_id, version=1) is None
    assert registry.history(command_id) == []


@pytest.mark.parametrize("command_id", [UNKNOWN, "", "\x00", "x" * 300])
def test_writes_on_an_unknown_id_are_refused(registry: CommandRegistry, command_id: str) -> None:
    with pytest.raises(CommandNotFound):
        registry.update_command_state(command_id, CommandState.PENDING)
    with pytest.raises(CommandNotFound):
        registry.complete_command(command_id, CommandState.FAILED, NOW)
    with pytest.raises(CommandNotFound):
        registry.mark_dispatched_if_not_terminal(command_id, NOW)
    with pytest.raises(CommandNotFound):
        registry.increment_attempt(command_id)


@pytest.mark.parametrize("state", CommandState)
def test_update_follows_the_matrix_from_every_state(registry: CommandRegistry, state: CommandState) -> None:
    for to in CommandState:
        command_id = in_state(registry, state)
        before = registry.get_command_status(command_id)
        if is_terminal(state):
            assert registry.update_command_state(command_id, to, dispatched_at=NOW) is False
            assert registry.get_command_status(command_id) == before
        elif can_transition_to(state, to):
            assert registry.update_command_state(command_id, to, dispatched_at=NOW) is True
            after = registry.get_command_status(command_id)
            assert after is not None
            assert (after.state, after.dispatched_at, after.version) == (to, NOW, 2)
        else:
            with pytest.raises(InvalidTransition):
                registry.update_command_state(command_id, to, dispatched_at=NOW)
            assert registry.get_command_status(command_id) == before


def test_the_matrix_is_the_one_of_the_contract() -> None:
    table = {
        "PENDING_UPLOAD": {"PENDING", "FAILED", "EXPIRED"},
        "PENDING": {"DISPATCHED", "FAILED", "EXPIRED"},
        "DISPATCHED": {"PENDING", "SUCCEEDED", "FAILED", "EXPIRED"},
    }
    assert {state.value: set(following) for state, following in TRANSITIONS.items()} == {
        state.value: table.get(state, set()) for state in CommandState
    }


def test_an_update_keeps_what_it_does_not_name(registry: CommandRegistry, pending: str) -> None:
    registry.update_command_state(pending, CommandState.PENDING, NOW, NOW, 7, {"code": "X"})
    registry.update_command_state(pending, CommandState.DISPATCHED)
    status = registry.get_command_status(pending)
    assert status is not None
    assert (status.dispatched_at, status.completed_at, status.response_size_bytes, status.error) == (
        NOW,
        NOW,
        7,
        {"code": "X"},
    )


def test_the_same_state_with_nothing_new_is_true_and_no_event(registry: CommandRegistry, pending: str) -> None:
    registry.update_command_state(pending, CommandState.PENDING, NOW, error={"a": 1})
    assert registry.update_command_state(pending, CommandState.PENDING) is True
    assert registry.update_command_state(pending, CommandState.PENDING, NOW, error={"a": 1}) is True
    assert [event.version for event in registry.history(pending)] == [1, 2]


def test_values_that_only_python_takes_for_equal_are_news(registry: CommandRegistry, pending: str) -> None:
    for error in (1, True, 1.0, 0.0, -0.0, False, 0):
        assert registry.update_command_state(pending, CommandState.PENDING, error=error) is True
        status = registry.get_command_status(pending)
        assert status is not None
        assert repr(status.error) == repr(error)
    assert len(registry.history(pending)) == 8


@pytest.mark.parametrize("state", CommandState)
@pytest.mark.parametrize("result", [CommandState.SUCCEEDED, CommandState.FAILED, CommandState.EXPIRED])
def test_complete_takes_any_command_that_is_not_terminal(
    registry: CommandRegistry, state: CommandState, result: CommandState
) -> None:
    command_id = in_state(registry, state)
    assert registry.complete_command(command_id, result, NOW, 0, {"why": None}) is not is_terminal(state)
    status = registry.get_command_status(command_id)
    assert status is not None
    if is_terminal(state):
        assert (status.state, status.completed_at, status.version) == (state, None, 1)
    else:
        assert (status.state, status.completed_at, status.response_size_bytes, status.error) == (
            result,
            NOW,
            0,
            {"why": None},
        )


@pytest.mark.parametrize("state", [CommandState.PENDING_UPLOAD, CommandState.PENDING, CommandState.DISPATCHED])
def test_complete_refuses_a_state_that_is_not_terminal(
    registry: CommandRegistry, pending: str, state: CommandState
) -> None:
    with pytest.raises(InvalidCommandState, match="state"):
        registry.complete_command(pending, state, NOW)
    assert issubclass(InvalidCommandState, ValueError)
    assert len(registry.history(pending)) == 1


@pytest.mark.parametrize("state", CommandState)
def test_dispatch_takes_any_command_that_is_not_terminal(registry: CommandRegistry, state: CommandState) -> None:
    command_id = in_state(registry, state)
    later = NOW + timedelta(seconds=1)
    assert registry.mark_dispatched_if_not_terminal(command_id, NOW) is not is_terminal(state)
    assert registry.mark_dispatched_if_not_terminal(command_id, later) is not is_terminal(state)
    status = registry.get_command_status(command_id)
    assert status is not None
    assert (status.state, status.dispatched_at) == (
        (state, None) if is_terminal(state) else (CommandState.DISPATCHED, later)
    )


def test_attempts_are_counted_from_one(registry: CommandRegistry, pending: str) -> None:
    assert [registry.increment_attempt(pending) for _ in range(3)] == [2, 3, 4]
    status = registry.get_command_status(pending)
    assert status is not None
    assert (status.attempt, status.version) == (4, 4)


def test_nothing_changes_a_terminal_command(registry: CommandRegistry, terminal: str) -> None:
    assert registry.update_command_state(terminal, CommandState.SUCCEEDED, error={"late": True}) is False
    assert registry.update_command_state(terminal, CommandState.PENDING) is False
    assert registry.complete_command(terminal, CommandState.FAILED, NOW, error={"late": True}) is False
    assert registry.mark_dispatched_if_not_terminal(terminal, NOW) is False
    assert registry.increment_attempt(terminal) == 1
    registry.expire_overdue(datetime.max.replace(tzinfo=UTC))


@pytest.mark.own_database
def test_overdue_commands_expire_once_and_say_why(registry: CommandRegistry) -> None:
    overdue = registry.create_command("dep_1", "late", deadline=NOW).command_id
    leased = registry.create_command("dep_1", "later", CommandState.DISPATCHED, NOW + timedelta(seconds=1)).command_id
    for deadline in (NOW + timedelta(days=1), None):
        registry.create_command("dep_1", "in time", deadline=deadline)
    now = NOW + timedelta(seconds=2)
    assert registry.expire_overdue(now) == [overdue, leased]
    assert registry.expire_overdue(now) == []
    status = registry.get_command_status(overdue)
    assert status is not None
    assert (status.state, status.completed_at) == (CommandState.EXPIRED, now)
    assert status.error == {"code": "COMMAND_EXPIRED", "message": "Deadline 2026-11-24T10:00:00.123456Z elapsed"}


@pytest.mark.own_database
def test_expiry_takes_the_most_overdue_first_up_to_its_limit(registry: CommandRegistry) -> None:
    ids = [
        registry.create_command("dep_1", "late", deadline=NOW - timedelta(minutes=minutes)).command_id
        for minutes in (1, 3, 2)
    ]
    assert registry.expire_overdue(NOW, 2) == [ids[1], ids[2]]
    assert registry.expire_overdue(NOW, 2) == [ids[0]]


def test_one_key_and_the_same_arguments_make_one_command(registry: CommandRegistry) -> None:
    key = new_key()
    first = registry.create_command("dep_1", "sync-data", deadline=NOW, idempotency_key=key)
    registry.complete_command(first.command_id, CommandState.FAILED, NOW)
    assert registry.create_command("dep_1", "sync-data", deadline=NOW, idempotency_key=key) == first
    assert registry.create_command("dep_1", "sync-data", deadline=NOW, idempotency_key=new_key()) != first
    assert registry.history(first.command_id)[0].idempotency_key == key


@pytest.mark.parametrize(
    "other",
    [
        {"deployment_id": "dep_2"},
        {"command_name": "other"},
        {"initial_state": CommandState.PENDING_UPLOAD},
        {"deadline": NOW},
        {"request_size_bytes": 0},
        {"target": "dep_1"},
    ],
    ids=lambda other: next(iter(other)),
)
def test_one_key_with_other_arguments_is_a_conflict(registry: CommandRegistry, other: dict[str, Any]) -> None:
    call: dict[str, Any] = {"deployment_id": "dep_1", "command_name": "sync-data", "idempotency_key": new_key()}
    first = registry.create_command(**call)
    with pytest.raises(IdempotencyConflict, match=first.command_id):
        registry.create_command(**call | other)


def test_the_history_tells_what_happened_and_who_did_it(registry: CommandRegistry) -> None:
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    creator = EventContext(actor="server", traceparent=traceparent, request_id="r-1", attributes={"ip": "::1", "n": 1})
    created = registry.create_command("dep_1", "sync-data", context=creator)
    registry.mark_dispatched_if_not_terminal(created.command_id, NOW, context=EventContext(actor="worker"))
    registry.increment_attempt(created.command_id)
    events = registry.history(created.command_id)
    assert [(event.version, event.type, event.schema_version) for event in events] == [
        (1, "CommandCreated", 1),
        (2, "CommandTransitioned", 1),
        (3, "AttemptIncremented", 1),
    ]
    assert [event.context for event in events] == [creator, EventContext(actor="worker"), EventContext()]
    assert events[1].event.model_dump(exclude_none=True) == {
        "from_state": "PENDING",
        "to_state": "DISPATCHED",
        "dispatched_at": NOW,
    }
    assert len({event.hash for event in events}) == 3
    assert all(event.command_id == created.command_id and len(event.hash) == 64 for event in events)


def test_a_context_can_be_set_for_a_block(registry: CommandRegistry) -> None:
    with command_context(actor="operator", request_id="r-2"):
        command_id = registry.create_command("dep_1", "sync-data").command_id
    registry.increment_attempt(command_id)
    assert [event.context.actor for event in registry.history(command_id)] == ["operator", None]


def test_the_status_of_any_version_can_be_had_again(registry: CommandRegistry, pending: str) -> None:
    seen = [registry.get_command_status(pending)]
    registry.mark_dispatched_if_not_terminal(pending, NOW)
    seen.append(registry.get_command_status(pending))
    registry.increment_attempt(pending)
    seen.append(registry.get_command_status(pending))
    registry.complete_command(pending, CommandState.FAILED, NOW, error=[1, "x"])
    seen.append(registry.get_command_status(pending))
    assert [registry.status_at(pending, version=version) for version in (1, 2, 3, 4)] == seen
    assert registry.status_at(pending, version=5) is None
    times = [event.occurred_at for event in registry.history(pending)]
    assert [registry.status_at(pending, at=at) for at in times] == seen
    assert registry.status_at(pending, at=times[0] - timedelta(microseconds=1)) is None
    assert registry.status_at(pending, at=times[-1] + timedelta(days=1)) == seen[-1]


@pytest.mark.parametrize(
    "moment", [{}, {"at": NOW, "version": 1}, {"version": 0}, {"version": True}, {"at": NOW.replace(tzinfo=None)}]
)
def test_a_moment_that_is_none_is_refused(registry: CommandRegistry, pending: str, moment: dict[str, Any]) -> None:
    with pytest.raises(InvalidCommand):
        registry.status_at(pending, **moment)


def test_targets_are_resolved_by_the_rules(registry: CommandRegistry) -> None:
    assert registry.resolve_target("dep_1").target.resource_id == "dep_1"
    assert registry.resolve_target("dep_1", "dep_1").target.resource_id == "dep_1"
    assert registry.resolve_target("dep_1", "operator").model_dump(mode="json") == {
        "target": {"resource_id": "operator", "resource_type": "daemon"},
        "delivery_mode": "pull",
    }
    for unknown in ("", "other", "DEP_1"):
        with pytest.raises(TargetNotFound):
            registry.resolve_target("dep_1", unknown)
    with pytest.raises(TargetIdInvalid):
        registry.resolve_target("dep_1", "a:b")


def test_a_command_for_the_operator_is_pulled_whatever_the_deployment(open_registry: Open) -> None:
    registry = open_registry("push")
    assert registry.create_command("dep_1", "x").delivery_mode == "push"
    created = registry.create_command("dep_1", "x", target="operator")
    assert (created.deployment_model, created.delivery_mode) == ("push", "pull")
    envelope = registry.get_command_metadata(created.command_id)
    assert envelope is not None
    assert (envelope.deployment_model, envelope.delivery_mode) == ("push", "pull")


NAIVE = NOW.replace(tzinfo=None)
BAD_CREATES: list[tuple[str, dict[str, Any]]] = [
    ("deployment_id", {"deployment_id": ""}),
    ("deployment_id", {"deployment_id": "x" * 256}),
    ("deployment_id", {"deployment_id": "a\x00b"}),
    ("deployment_id", {"deployment_id": 5}),
    ("command_name", {"command_name": ""}),
    ("command_name", {"command_name": "a\nb"}),
    ("command_name", {"command_name": "a\x85b"}),
    ("initial_state", {"initial_state": "RUNNING"}),
    ("deadline", {"deadline": NAIVE}),
    ("deadline", {"deadline": datetime(1, 1, 1, tzinfo=UTC).replace(tzinfo=datetime.max.tzinfo)}),
    ("request_size_bytes", {"request_size_bytes": -1}),
    ("request_size_bytes", {"request_size_bytes": 2**64}),
    ("request_size_bytes", {"request_size_bytes": 1.0}),
    ("request_size_bytes", {"request_size_bytes": True}),
    ("idempotency_key", {"idempotency_key": ""}),
    ("target", {"target": "x" * 256}),
]


@pytest.mark.parametrize(("field", "bad"), BAD_CREATES, ids=lambda value: value if isinstance(value, str) else "")
def test_create_refuses_what_it_cannot_keep_and_names_it(
    registry: CommandRegistry, field: str, bad: dict[str, Any]
) -> None:
    with pytest.raises(InvalidCommand) as caught:
        registry.create_command(**{"deployment_id": "dep_1", "command_name": "x"} | bad)
    assert caught.value.field == field
    assert field in str(caught.value)


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


BAD_ERRORS = [float("nan"), float("inf"), 2**64, -(2**63) - 1, {"a": [2**70]}, nested(65), "x" * 65535]


@pytest.mark.parametrize("error", BAD_ERRORS, ids=lambda error: str(error)[:20])
def test_update_refuses_an_error_it_cannot_keep(registry: CommandRegistry, pending: str, error: Any) -> None:
    with pytest.raises(InvalidCommand) as caught:
        registry.update_command_state(pending, CommandState.FAILED, error=error)
    assert caught.value.field == "error"
    with pytest.raises(InvalidCommand):
        registry.complete_command(pending, CommandState.FAILED, NOW, error=error)
    assert len(registry.history(pending)) == 1


@pytest.mark.parametrize(
    "error", [nested(64), 2**64 - 1, -(2**63), "x" * 65534, "\x00\u2028", {"": None}, [], 1e21, -0.0]
)
def test_an_error_at_the_very_limit_reads_back_equal(registry: CommandRegistry, pending: str, error: Any) -> None:
    assert registry.complete_command(pending, CommandState.FAILED, NOW, error=error)
    status = registry.get_command_status(pending)
    assert status is not None
    assert repr(status.error) == repr(error)


@pytest.mark.parametrize("instant", [datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)])
def test_an_instant_at_the_very_limit_reads_back_equal(
    registry: CommandRegistry, pending: str, instant: datetime
) -> None:
    assert registry.complete_command(pending, CommandState.FAILED, instant)
    status = registry.get_command_status(pending)
    assert status is not None
    assert status.completed_at == instant


def test_bad_instants_are_refused_in_every_write(registry: CommandRegistry, pending: str) -> None:
    with pytest.raises(InvalidCommand, match="completed_at"):
        registry.complete_command(pending, CommandState.FAILED, NAIVE)
    with pytest.raises(InvalidCommand, match="dispatched_at"):
        registry.mark_dispatched_if_not_terminal(pending, NAIVE)
    with pytest.raises(InvalidCommand, match="dispatched_at"):
        registry.update_command_state(pending, CommandState.DISPATCHED, dispatched_at=NAIVE)
    with pytest.raises(InvalidCommand, match="now"):
        registry.expire_overdue(NAIVE)
    with pytest.raises(InvalidCommand, match="limit"):
        registry.expire_overdue(NOW, 0)


def test_a_naive_instant_is_refused_with_the_remedy(registry: CommandRegistry, pending: str) -> None:
    with pytest.raises(InvalidCommand, match=r"dispatched_at: must .*time zone"):
        registry.mark_dispatched_if_not_terminal(pending, NAIVE)


def test_a_target_that_is_no_text_is_refused(registry: CommandRegistry) -> None:
    with pytest.raises(InvalidCommand, match="requested"):
        registry.resolve_target("dep_1", 5)  # type: ignore[arg-type]


def test_what_a_caller_does_to_an_answer_changes_nothing(registry: CommandRegistry, pending: str) -> None:
    error: Any = {"a": [1]}
    registry.update_command_state(pending, CommandState.PENDING, error=error)
    error["a"].append(2)
    for _ in range(2):
        answer: Any = registry.get_command_status(pending)
        assert answer.error == {"a": [1]}
        answer.error["a"].append(3)
