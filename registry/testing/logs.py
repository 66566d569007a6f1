"""Logs of commands, as registries write them: each event is decided, encoded and chained by the registry's own code."""

import itertools
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any, Final, NamedTuple, TypeAlias

from hypothesis import strategies as st

from eventstore.event import RecordedEvent, StreamEnd
from eventstore.hashing import chain
from registry import decider
from registry.decider import Decide
from registry.deployments import OPERATOR, Deployment, FixedDeployments, resolve
from registry.errors import InvalidTransition
from registry.events import CODEC, CommandEvent
from registry.history import metadata_text
from registry.lifecycle import CommandState, is_terminal
from registry.models import CommandStatus, DeploymentModel, EventContext, NewCommand, ResourceType, StateUpdate, Target
from registry.testing.values import instants, json_text, json_values, names, sizes, states, terminal_states

__all__ = ["DEPLOYMENTS", "command_logs"]

DEPLOYMENTS: Final = (
    Deployment(
        id="dep_eu1", workspace_id="acme", project_id="shop", deployment_model=DeploymentModel.PULL, name="Frankfurt"
    ),
    Deployment(
        id="dep_us1",
        workspace_id="acme",
        project_id="shop",
        deployment_model=DeploymentModel.PUSH,
        name="Ohio",
        targets=(
            Target(resource_id="worker-1", resource_type=ResourceType.WORKER),
            Target(resource_id="postgres", resource_type=ResourceType.CONTAINER),
            Target(resource_id="agent", resource_type=ResourceType.DAEMON),
        ),
    ),
    Deployment(
        id="dep_ap1", workspace_id="umbrella", project_id="lab", deployment_model=DeploymentModel.PUSH, name="Mumbai"
    ),
)
"""Where most of the commands of `command_logs` run; the others are for deployments with ids of any kind."""

_Told: TypeAlias = timedelta | datetime | None
"""An instant that somebody told: by how much it is off the clock, or whatever it is."""


class _Creation(NamedTuple):
    deployment: Deployment
    target: int
    command_name: str
    initial_state: CommandState
    deadline: _Told
    request_size_bytes: int | None
    idempotency_key: str | None


class _Update(NamedTuple):
    state: CommandState
    completes: bool
    dispatched_at: _Told
    completed_at: _Told
    response_size_bytes: int | None
    error: Any


class _Dispatch(NamedTuple):
    dispatched_at: timedelta | datetime


class _Attempt(NamedTuple):
    pass


class _Expiry(NamedTuple):
    pass


class _Move(NamedTuple):
    """A call: so long after the one before, for one of the commands that are not done, by somebody."""

    elapsed: timedelta
    command: int
    call: _Creation | _Update | _Dispatch | _Attempt | _Expiry
    context: EventContext


@st.composite
def _mostly(draw: st.DrawFn, common: st.SearchStrategy[Any], rare: st.SearchStrategy[Any]) -> Any:  # noqa: ANN401
    """Draw what is common, and now and then what is rare."""
    return draw(rare if draw(st.integers(0, 7)) == 7 else common)


def _seconds(*seconds: float) -> st.SearchStrategy[timedelta]:
    return st.sampled_from([timedelta(seconds=each) for each in seconds])


_MINUTE, _HOUR, _DAY = 60, 3_600, 86_400

# Mostly by clocks that agree or nearly do; but anything can be told.
_told = _mostly(_seconds(0, -1, 0.25, -_HOUR, -20 * _MINUTE), instants)
_codes = st.one_of(json_text, st.just("x" * 10_000), json_values)
_errors = _mostly(
    st.sampled_from(
        [
            {"code": "TIMEOUT", "message": "no response within 30 s"},
            {"code": "COMMAND_FAILED", "message": "exit status 1"},
            {"code": 7},
            {"message": "no code"},
            "gone",
        ]
    ),
    json_values | st.fixed_dictionaries({"code": _codes}),
)
_calls = st.one_of(
    st.builds(_Dispatch, _told),
    st.builds(
        _Update,
        terminal_states,
        st.just(True),
        st.none(),
        _told,
        st.none() | sizes,
        st.none() | _errors,
    ),
    st.builds(
        _Update,
        states,
        st.just(False),
        st.none() | _told,
        st.none() | _told,
        st.none() | sizes,
        st.none() | _errors,
    ),
    st.builds(_Attempt),
    st.builds(_Expiry),
)
_creations = st.builds(
    _Creation,
    _mostly(st.sampled_from(DEPLOYMENTS), names.map(FixedDeployments().get)),
    st.integers(0, 3),
    _mostly(st.sampled_from(["sync-data", "postgres/health", "restart"]), names),
    _mostly(st.sampled_from([CommandState.PENDING, CommandState.PENDING_UPLOAD]), states),
    st.none() | _mostly(_seconds(4 * _MINUTE, 0, _HOUR, _DAY, -_MINUTE), instants),
    st.none() | sizes,
    st.none() | st.sampled_from(["order-1", "order-2"]),
)
_contexts = _mostly(
    st.sampled_from([EventContext(), EventContext(actor="scheduler", request_id="req-1")]),
    st.builds(EventContext, actor=names, attributes=st.dictionaries(names, json_values, max_size=2)),
)
# The clock of the process that decides stands still, goes on, and now and then is behind that of another one.
_elapsed = _mostly(_seconds(1, 0, 0.000001, 40, 20 * _MINUTE, 6 * _HOUR), _seconds(_DAY, 3 * _DAY, -2))


def _moves(calls: st.SearchStrategy[Any]) -> st.SearchStrategy[_Move]:
    return st.builds(_Move, _elapsed, st.integers(0, 7), calls, _contexts)


def command_logs(
    start: datetime = datetime(2026, 11, 24, 21, 0, tzinfo=UTC), *, most_calls: int = 64
) -> st.SearchStrategy[list[RecordedEvent]]:
    """Make logs of several commands, interleaved: Hypothesis's strategy, of lists of events in log order.

    They are what registries may write: on several deployments and days, with targets, pushed and pulled, completed
    late, tried again, expired, with errors and clocks of any kind. The clock begins at `start`; about so many calls are
    made after the first creation, at most.
    """
    sessions = st.lists(st.lists(_moves(_calls | _creations), max_size=8), max_size=most_calls // 8)
    return _logs(start, _moves(_creations), sessions)


@st.composite
def _logs(
    draw: st.DrawFn, start: datetime, first: st.SearchStrategy[_Move], sessions: st.SearchStrategy[list[list[_Move]]]
) -> list[RecordedEvent]:
    play = _Play(start)
    for move in itertools.chain([draw(first)], *draw(sessions)):
        play.take(move)
    return play.log


class _Play:
    """A registry's commands, while calls are made."""

    def __init__(self, start: datetime) -> None:
        self.log: list[RecordedEvent] = []
        self._now = start
        self._commands: list[tuple[CommandStatus, StreamEnd]] = []

    def take(self, move: _Move) -> None:
        self._now += move.elapsed
        if isinstance(move.call, _Creation):
            self._create(move.call, move.context)
            return
        open_ones = [n for n, (status, _) in enumerate(self._commands) if not is_terminal(status.state)]
        if not open_ones:
            return
        number = open_ones[move.command % len(open_ones)]
        status, end = self._commands[number]
        try:
            decision = self._decide(move.call)(status)
        except InvalidTransition:
            return
        for event in decision.events:
            status, end = self._append(status.command_id, status, end, event, metadata_text(move.context))
        self._commands[number] = status, end

    def _create(self, creation: _Creation, context: EventContext) -> None:
        deployment, number = creation.deployment, len(self._commands)
        command_id = f"cmd_{sha256(str(number).encode()).hexdigest()[:28]}"
        call = NewCommand(
            deployment_id=deployment.id,
            command_name=creation.command_name,
            initial_state=creation.initial_state,
            deadline=self._told(creation.deadline),
            request_size_bytes=creation.request_size_bytes,
            idempotency_key=f"{creation.idempotency_key}-{number}" if creation.idempotency_key else None,
        )
        target = resolve(deployment, _requested(deployment, creation.target)).target
        event = decider.create(command_id, call, deployment, target, self._now)
        metadata = metadata_text(context, call.idempotency_key)
        self._commands.append(self._append(command_id, None, None, event, metadata))

    def _decide(self, call: _Update | _Dispatch | _Attempt | _Expiry) -> Decide[Any]:
        match call:
            case _Dispatch(at):
                return decider.mark_dispatched(self._told(at) or self._now)
            case _Attempt():
                return decider.increment_attempt
            case _Expiry():
                return decider.expire(self._now)
            case _Update(state, completes, dispatched_at, completed_at, size, error):
                update = StateUpdate(
                    state=state,
                    dispatched_at=self._told(dispatched_at),
                    completed_at=self._told(completed_at),
                    response_size_bytes=size,
                    error=error,
                )
                return decider.complete(update) if completes else decider.update_state(update)

    def _told(self, told: _Told) -> datetime | None:
        return self._now + told if isinstance(told, timedelta) else told

    def _append(
        self, command_id: str, before: CommandStatus | None, end: StreamEnd | None, event: CommandEvent, metadata: str
    ) -> tuple[CommandStatus, StreamEnd]:
        [chained] = chain(command_id, end, [CODEC.encode(event, self._now, metadata)])
        place = len(self.log) + 1
        self.log.append(chained.recorded(place, place, self._now))
        status = decider.evolve(before, CODEC.decode(chained))
        return status, StreamEnd(chained.version, chained.hash)


def _requested(deployment: Deployment, number: int) -> str | None:
    if number == 3:
        return OPERATOR
    targets = deployment.targets
    return None if targets is None else targets[number % len(targets)].resource_id
