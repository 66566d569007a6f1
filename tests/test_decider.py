"""The domain logic, pure: given a status, when a call, then events, an answer or a refusal."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry import (
    CommandState,
    CommandStatus,
    DeploymentModel,
    InvalidCommand,
    InvalidCommandState,
    InvalidTransition,
    decider,
)
from registry.decider import Decision
from registry.deployments import FixedDeployments, resolve, running
from registry.events import AttemptIncremented, CommandCreated, CommandTransitioned
from registry.models import MAX_ATTEMPT, NewCommand, StateUpdate
from tests import strategies as some

NOW = datetime(2026, 11, 24, 10, 0, tzinfo=UTC)
S = CommandState


def created(state: CommandState = S.PENDING, **more: Any) -> CommandCreated:
    call = NewCommand(deployment_id="dep_1", command_name="sync-data", initial_state=state, **more)
    deployment = running("dep_1", FixedDeployments(DeploymentModel.PUSH).get("dep_1"))
    return decider.create("cmd_1", call, deployment, resolve(deployment, None).target, NOW)


def status(state: CommandState = S.PENDING, **more: Any) -> CommandStatus:
    return decider.evolve(None, created(state)).model_copy(update=more)


def test_given_nothing_when_created_then_the_first_attempt_is_pending() -> None:
    folded = decider.evolve(None, created(deadline=NOW, request_size_bytes=3))
    assert (folded.state, folded.attempt, folded.version) == (S.PENDING, 1, 1)
    assert (folded.created_at, folded.deadline, folded.request_size_bytes) == (NOW, NOW, 3)
    assert (folded.dispatched_at, folded.completed_at, folded.error) == (None, None, None)


def test_given_a_command_when_created_again_then_the_fold_refuses() -> None:
    with pytest.raises(ValueError, match="twice"):
        decider.evolve(status(), created())


@pytest.mark.parametrize(
    "event", [AttemptIncremented(attempt=2), CommandTransitioned(from_state=S.PENDING, to_state=S.FAILED)]
)
def test_given_nothing_when_something_else_than_a_creation_then_the_fold_refuses(event: Any) -> None:
    with pytest.raises(ValueError, match="begins with"):
        decider.evolve(None, event)


def test_given_pending_when_dispatched_then_one_event_holds_what_was_told() -> None:
    assert decider.update_state(StateUpdate(state=S.DISPATCHED, dispatched_at=NOW))(status()) == Decision(
        True, (CommandTransitioned(from_state=S.PENDING, to_state=S.DISPATCHED, dispatched_at=NOW),)
    )


def test_given_pending_when_succeeded_by_an_update_then_it_is_refused_with_both_states() -> None:
    with pytest.raises(InvalidTransition) as caught:
        decider.update_state(StateUpdate(state=S.SUCCEEDED))(status())
    assert (caught.value.command_id, caught.value.from_state, caught.value.to_state) == (
        "cmd_1",
        S.PENDING,
        S.SUCCEEDED,
    )


def test_given_pending_when_completed_then_it_succeeds_all_the_same() -> None:
    decision = decider.complete(StateUpdate(state=S.SUCCEEDED, completed_at=NOW))(status())
    assert decision.answer is True
    assert decider.replay(decision.events, status()).state == S.SUCCEEDED


@pytest.mark.parametrize("state", [S.PENDING_UPLOAD, S.PENDING, S.DISPATCHED])
def test_when_completed_with_a_state_that_is_not_terminal_then_it_is_refused(state: CommandState) -> None:
    with pytest.raises(InvalidCommandState):
        decider.complete(StateUpdate(state=state))


@pytest.mark.parametrize("state", [S.SUCCEEDED, S.FAILED, S.EXPIRED])
def test_given_a_terminal_command_then_no_call_makes_an_event(state: CommandState) -> None:
    done = status(state, deadline=NOW, attempt=3)
    assert decider.update_state(StateUpdate(state=S.DISPATCHED))(done) == Decision(answer=False)
    assert decider.complete(StateUpdate(state=S.FAILED))(done) == Decision(answer=False)
    assert decider.mark_dispatched(NOW)(done) == Decision(answer=False)
    assert decider.expire(NOW)(done) == Decision(answer=False)
    assert decider.increment_attempt(done) == Decision(3)


def test_given_the_last_attempt_there_can_be_when_incremented_then_it_is_refused() -> None:
    assert decider.increment_attempt(status(attempt=MAX_ATTEMPT - 1)).answer == MAX_ATTEMPT
    with pytest.raises(InvalidCommand, match="attempt"):
        decider.increment_attempt(status(attempt=MAX_ATTEMPT))


@pytest.mark.parametrize(
    ("deadline", "expires"),
    [(None, False), (NOW + timedelta(microseconds=1), False), (NOW, True), (NOW - timedelta(days=1), True)],
)
def test_a_command_expires_from_its_deadline_on(deadline: datetime | None, expires: bool) -> None:
    assert decider.expire(NOW)(status(deadline=deadline)).answer is expires


@given(st.data())
def test_any_split_of_a_stream_replays_to_the_same_status(data: st.DataObject) -> None:
    events: list[Any] = [created()]
    folded = decider.replay(events)
    for _ in range(data.draw(st.integers(0, 12))):
        if data.draw(st.booleans()):
            decide = decider.update_state(StateUpdate(state=data.draw(some.states), error=data.draw(some.json_values)))
        else:
            decide = decider.mark_dispatched(data.draw(some.instants))
        try:
            decision = decide(folded)
        except InvalidTransition:
            continue
        events += decision.events
        folded = decider.replay(events)
    split = data.draw(st.integers(1, len(events)))
    assert decider.replay(events[split:], decider.replay(events[:split])) == folded
    assert folded.version == len(events)
