"""Hypothesis strategies for what a registry is given: ordinary, nasty but to be accepted, and to be refused.

Each strategy gives what must be accepted, and come back equal; among it what breaks careless code (quotes, `%`,
right-to-left text, the edges of the calendar and of 64 bits). Its variant `hostile_...` gives what must be refused, by
an error that names the argument.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, Final, NamedTuple

from hypothesis import strategies as st

from registry.events import AttemptIncremented, CommandCreated, CommandEvent, CommandTransitioned
from registry.lifecycle import CommandState
from registry.models import DeploymentModel, ResourceType, Target
from registry.testing.model import ALLOWED, TERMINAL, Known, expected
from registry.testing.observing import comparable
from registry.testing.values import instants, json_values, names, sizes, states, terminal_states

__all__ = [
    "PlannedCall",
    "command_names",
    "deadlines",
    "deployment_ids",
    "errors",
    "events",
    "hostile_deadlines",
    "hostile_errors",
    "hostile_names",
    "hostile_sizes",
    "hostile_states",
    "lifecycles",
    "request_sizes",
]


def command_names() -> st.SearchStrategy[str]:
    """Names of commands, such as "sync-data" or "postgres/health": 1..255 characters, no control characters."""
    return st.sampled_from(["sync-data", "postgres/health"]) | names


def deployment_ids() -> st.SearchStrategy[str]:
    """Ids of deployments: 1..255 characters, no control characters; any is one, unless a directory says otherwise."""
    return st.sampled_from(["dep_eu1", "dep_us1"]) | names


def deadlines() -> st.SearchStrategy[datetime]:
    """Instants in the years 1..9999 UTC, in any time zone, most of them in UTC."""
    return st.sampled_from([datetime(2026, 11, 24, 12, minute, tzinfo=UTC) for minute in (0, 30)]) | instants


def request_sizes() -> st.SearchStrategy[int]:
    """Sizes in bytes, 0..2**64-1."""
    return sizes


def errors() -> st.SearchStrategy[Any]:
    """Errors of commands: any JSON but null, at most 64 KiB of it, nested at most 64 deep."""
    common = [{"code": "COMMAND_FAILED", "message": "exit status 1"}, {"output": "a\x00b \\u0000 'c' %s"}, "gone", {}]
    return st.sampled_from(common) | json_values


def events() -> st.SearchStrategy[CommandEvent]:
    """Single events of any kind; `command_logs` gives whole logs."""
    targets = st.builds(Target, resource_id=names, resource_type=st.sampled_from(ResourceType))
    created = st.builds(
        CommandCreated,
        command_id=names,
        workspace_id=names,
        project_id=names,
        deployment_id=deployment_ids(),
        command=command_names(),
        state=states,
        created_at=instants,
        deadline=st.none() | deadlines(),
        request_size_bytes=st.none() | sizes,
        deployment_model=st.sampled_from(DeploymentModel),
        target=st.none() | targets,
    )
    transitioned = st.builds(
        CommandTransitioned,
        from_state=states,
        to_state=states,
        dispatched_at=st.none() | instants,
        completed_at=st.none() | instants,
        response_size_bytes=st.none() | sizes,
        error=st.none() | errors(),
    )
    return st.one_of(created, transitioned, st.builds(AttemptIncremented, attempt=st.integers(2, 2**32 - 1)))


class PlannedCall(NamedTuple):
    """A call to be made: `getattr(registry, call)(**arguments)`; all but the first need `command_id` beside."""

    call: str
    arguments: Mapping[str, Any]


@st.composite
def lifecycles(draw: st.DrawFn, *, most_calls: int = 12, complete: bool = False) -> list[PlannedCall]:
    """Whole lives of a command: its creation, and then calls that the contract allows, each of them answered True.

    `most_calls`: after the creation. `complete`: whether each ends in a terminal state; otherwise some do.
    """
    created = draw(_creations)
    life = [PlannedCall("create_command", created)]
    _, known = expected(None, "create_command", comparable(created))
    for _ in range(draw(st.integers(0, most_calls))):
        if known is None or known.status.state in TERMINAL:
            return life
        life.append(draw(_steps(known)))
        _, known = expected(known, life[-1].call, comparable(life[-1].arguments))
    if complete and known is not None and known.status.state not in TERMINAL:
        life.append(PlannedCall("complete_command", draw(_completions)))
    return life


_creations: Final = st.fixed_dictionaries(
    {
        "deployment_id": deployment_ids(),
        "command_name": command_names(),
        "initial_state": st.sampled_from([state for state in CommandState if state not in TERMINAL]),
    },
    optional={"deadline": deadlines(), "request_size_bytes": sizes},
)
FACTS: Final = {
    "dispatched_at": instants,
    "completed_at": instants,
    "response_size_bytes": st.just(0) | sizes,
    "error": errors(),
}
"""What may be told of a command, beside its state."""

RESULTS: Final = {name: FACTS[name] for name in ("response_size_bytes", "error")}
"""What may be told of a command's end, beside how and when it was."""

_completions: Final = st.fixed_dictionaries({"state": terminal_states, "completed_at": instants}, optional=RESULTS)


def _steps(known: Known) -> st.SearchStrategy[PlannedCall]:
    """Give the calls that may follow."""
    allowed = sorted(ALLOWED[known.status.state])
    update = st.fixed_dictionaries({"state": st.sampled_from(allowed).map(CommandState)}, optional=FACTS)
    return st.one_of(
        st.builds(PlannedCall, st.just("mark_dispatched_if_not_terminal"), instants.map(_dispatched)),
        st.just(PlannedCall("increment_attempt", {})),
        st.builds(PlannedCall, st.just("update_command_state"), update),
        st.builds(PlannedCall, st.just("complete_command"), _completions),
    )


def _dispatched(at: datetime) -> dict[str, Any]:
    return {"dispatched_at": at}


# What must be refused.


def hostile_names() -> st.SearchStrategy[Any]:
    """Give what is no id and no name: empty, too long, with control characters or lone surrogates, or no text."""
    return st.one_of(
        st.sampled_from(["", "x" * 256, "\x00", "a\x00b", "line\nfeed", "\x1b[31m", "\x7f", "\ud800", "a\udfff"]),
        st.sampled_from([7, None, b"bytes", ["list"]]),
    )


def hostile_deadlines() -> st.SearchStrategy[Any]:
    """Give what is no instant: no time zone, outside the years 1..9999 in UTC, or no datetime."""
    return st.sampled_from(
        [
            datetime(2026, 11, 24),
            datetime(9999, 12, 31, 23, tzinfo=timezone(timedelta(hours=-2))),
            datetime(1, 1, 1, 1, tzinfo=timezone(timedelta(hours=2))),
            "tomorrow",
            1764000000,
        ]
    )


def hostile_sizes() -> st.SearchStrategy[Any]:
    """Give what is no size: below 0, beyond 64 bits, or no whole number."""
    return st.sampled_from([-1, 2**64, 2**70, 1.5, True, "1", float("nan")])


def hostile_states() -> st.SearchStrategy[Any]:
    """Give what is no state."""
    return st.sampled_from(["", "DONE", "pending ", None, 7])


def hostile_errors() -> st.SearchStrategy[Any]:
    """Give what is no JSON that comes back equal: NaN, too deep, too large, beyond 64 bits, keys that are no text."""
    deep: Any = 0
    for _ in range(65):
        deep = [deep]
    return st.sampled_from(
        [
            float("nan"),
            {"x": float("inf")},
            deep,
            "x" * 65_537,
            2**64,
            -(2**63) - 1,
            "\ud800",
            {"\udfff": 1},
            {1: "key"},
            {"at": datetime(2026, 11, 24, tzinfo=UTC)},
            b"bytes",
        ]
    )
