"""Commands that are stuck: each threshold, the order, and against a recomputation that knows nothing of projections."""

from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventstore import RecordedEvent
from eventstore.event import StreamEvent
from projections import rebuild
from projections.errors import PoisonEvent
from projections.memory import MemoryProjection
from projections.testing import replay_equals_incremental
from registry import CommandState, PostgresCommandRegistry, is_terminal
from registry.stuck_commands import STUCK_COMMANDS, CommandProgress, StuckCommandsProjection
from registry.testing import command_logs
from tests.lending import on
from tests.test_deployment_activity import Desk, shown

S = CommandState
NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)


def minutes(number: float) -> timedelta:
    return timedelta(minutes=number)


def stuck(connection: psycopg.Connection[Any], log: Sequence[StreamEvent], now: datetime = NOW) -> list[dict[str, Any]]:
    """Give what the view shows when it is this moment."""
    view = STUCK_COMMANDS.view_query.as_string()
    assert view.count("now()") == 4
    return shown(connection, STUCK_COMMANDS, log, view.replace("now()", f"timestamptz '{now.isoformat()}'"))


def reasons(connection: psycopg.Connection[Any], desk: Desk) -> list[str]:
    return [reason for row in stuck(connection, desk.log) for reason in row["reasons"]]


# One command.


def progress(desk: Desk, command_id: str) -> CommandProgress | None:
    twin = MemoryProjection(StuckCommandsProjection())
    twin.apply(desk.log)
    return twin.get(command_id)


def test_a_command_has_its_last_dispatch_and_its_attempt() -> None:
    desk = Desk(NOW)
    command_id = desk.create(deadline=NOW + minutes(60))
    facts = (command_id, "dep_1", "sync")
    assert progress(desk, command_id) == CommandProgress(*facts, S.PENDING, 1, NOW + minutes(60), NOW, None, 1)
    desk.registry.mark_dispatched_if_not_terminal(command_id, NOW + minutes(1))
    desk.registry.update_command_state(command_id, S.PENDING)
    desk.registry.increment_attempt(command_id)
    desk.registry.mark_dispatched_if_not_terminal(command_id, NOW + minutes(7))
    assert progress(desk, command_id) == CommandProgress(
        *facts, S.DISPATCHED, 2, NOW + minutes(60), NOW, NOW + minutes(7), 5
    )


def test_a_dispatch_whose_time_nobody_told_was_when_the_registry_was_told() -> None:
    desk = Desk(NOW)
    command_id = desk.create()
    dispatched = []
    for minute, state in ((1, S.DISPATCHED), (2, S.PENDING), (3, S.DISPATCHED)):
        desk.now = NOW + minutes(minute)
        desk.registry.update_command_state(command_id, state)
        found = progress(desk, command_id)
        assert found is not None
        dispatched.append(found.dispatched_at)
    assert dispatched == [NOW + minutes(1), NOW + minutes(1), NOW + minutes(3)]
    desk.now = NOW + minutes(4)
    desk.registry.update_command_state(command_id, S.DISPATCHED, response_size_bytes=1)
    found = progress(desk, command_id)
    assert found is not None
    assert found.dispatched_at == NOW + minutes(3)
    other = progress(desk, desk.create(initial_state=S.DISPATCHED))
    assert other is not None
    assert other.dispatched_at == other.created_at == desk.now


def test_a_stream_that_does_not_begin_with_a_creation_is_poison() -> None:
    desk = Desk(NOW)
    command_id = desk.create()
    desk.registry.increment_attempt(command_id)
    with pytest.raises(PoisonEvent, match="begins with its creation"):
        MemoryProjection(StuckCommandsProjection(), skips=[(command_id, 1)]).apply(desk.log)


# The view.


@pytest.mark.parametrize(
    ("age", "expected"), [(minutes(15), []), (minutes(15) + MICROSECOND, ["dispatched_long_ago"]), (-minutes(9), [])]
)
def test_dispatched_more_than_15_minutes_ago(
    connection: psycopg.Connection[Any], age: timedelta, expected: list[str]
) -> None:
    desk = Desk(NOW)
    command_id = desk.create()
    desk.registry.mark_dispatched_if_not_terminal(command_id, NOW - age)
    assert reasons(connection, desk) == expected
    desk.registry.update_command_state(command_id, S.PENDING)
    assert reasons(connection, desk) == []


@pytest.mark.parametrize(
    ("ahead", "expected"),
    [
        (minutes(5) + MICROSECOND, []),
        (minutes(5), ["deadline_near"]),
        (MICROSECOND, ["deadline_near"]),
        (minutes(0), ["deadline_passed"]),
        (-minutes(9), ["deadline_passed"]),
    ],
)
def test_a_deadline_within_5_minutes_or_passed(
    connection: psycopg.Connection[Any], ahead: timedelta, expected: list[str]
) -> None:
    desk = Desk(NOW)
    desk.create(deadline=NOW + ahead)
    assert reasons(connection, desk) == expected


def test_the_third_attempt(connection: psycopg.Connection[Any]) -> None:
    desk = Desk(NOW)
    command_id = desk.create()
    found = []
    for _ in range(3):
        desk.registry.increment_attempt(command_id)
        found.append(reasons(connection, desk))
    assert found == [[], ["many_attempts"], ["many_attempts"]]


@pytest.mark.parametrize("state", S)
def test_what_is_done_is_not_stuck(connection: psycopg.Connection[Any], state: CommandState) -> None:
    desk = Desk(NOW)
    desk.create(initial_state=state, deadline=NOW)
    assert bool(reasons(connection, desk)) is not is_terminal(state)


def test_the_most_urgent_come_first_with_all_their_reasons(connection: psycopg.Connection[Any]) -> None:
    desk = Desk(NOW)

    def command(*, deadline: float | None = None, dispatched: float | None = None, attempts: int = 1) -> str:
        command_id = desk.create(deadline=None if deadline is None else NOW + minutes(deadline))
        for _ in range(attempts - 1):
            desk.registry.increment_attempt(command_id)
        if dispatched is not None:
            desk.registry.mark_dispatched_if_not_terminal(command_id, NOW - minutes(dispatched))
        return command_id

    third = command(attempts=3)
    fifth = command(attempts=5, deadline=60)
    waiting = command(dispatched=20)
    longer = command(dispatched=30, deadline=9)
    near = command(deadline=1)
    passed = command(deadline=-1, dispatched=99, attempts=4)
    command(deadline=60, dispatched=1, attempts=2)
    rows = stuck(connection, desk.log)
    assert [(row["command_id"], row["reasons"]) for row in rows] == [
        (passed, ["deadline_passed", "dispatched_long_ago", "many_attempts"]),
        (near, ["deadline_near"]),
        (longer, ["dispatched_long_ago"]),
        (waiting, ["dispatched_long_ago"]),
        (fifth, ["many_attempts"]),
        (third, ["many_attempts"]),
    ]
    assert list(rows[0]) == [*list(STUCK_COMMANDS.projection.columns)[:-1], "reasons"]


def recomputed(log: Sequence[StreamEvent], now: datetime) -> list[tuple[str, list[str]]]:
    """Recompute the view from the JSON of the events, command by command."""
    streams: dict[str, list[tuple[datetime, dict[str, Any]]]] = defaultdict(list)
    for event in log:
        streams[event.stream_id].append((event.occurred_at, orjson.loads(event.data)))
    found = []
    for command_id, ((_, first), *later) in streams.items():
        state, attempt, dispatched = first["state"], 1, None
        if state == "DISPATCHED":
            dispatched = datetime.fromisoformat(first["created_at"])
        deadline = datetime.fromisoformat(first["deadline"]) if "deadline" in first else None
        for occurred_at, data in later:
            attempt = data.get("attempt", attempt)
            if "dispatched_at" in data:
                dispatched = datetime.fromisoformat(data["dispatched_at"])
            elif data.get("to_state") == "DISPATCHED" and state != "DISPATCHED":
                dispatched = occurred_at
            state = data.get("to_state", state)
        if state in {"SUCCEEDED", "FAILED", "EXPIRED"}:
            continue
        urgent = deadline is not None and deadline <= now + minutes(5)
        long_ago = state == "DISPATCHED" and dispatched is not None and dispatched < now - minutes(15)
        late = deadline is not None and deadline <= now
        told = {"deadline_passed": late, "deadline_near": urgent and not late}
        told |= {"dispatched_long_ago": long_ago, "many_attempts": attempt >= 3}
        never = datetime.max.replace(tzinfo=UTC)
        order = (not urgent, deadline if urgent else never, not long_ago, dispatched if long_ago else never, -attempt)
        if any(told.values()):
            found.append((order, command_id, [reason for reason, holds in told.items() if holds]))
    return [(command_id, why) for _, command_id, why in sorted(found, key=lambda each: each[:2])]


test_replay_equals_incremental = replay_equals_incremental(StuckCommandsProjection(), command_logs())


@settings(max_examples=60)
@given(command_logs(), st.sampled_from([-1, 0, 3.99, 4, 15, 16, 60, 3_000, 100_000]), st.integers(0, 60))
def test_the_view_is_what_is_recomputed_from_the_log(
    connection: psycopg.Connection[Any], log: list[RecordedEvent], later: float, event: int
) -> None:
    now = log[event % len(log)].occurred_at + minutes(later)
    rows = stuck(connection, log, now)
    assert [(row["command_id"], row["reasons"]) for row in rows] == recomputed(log, now)


def test_built_from_the_log_of_a_registry_the_view_shows_what_is_stuck_now(
    dsn: str, connection: psycopg.Connection[Any]
) -> None:
    with PostgresCommandRegistry.open(dsn) as registry:
        now = datetime.now(UTC)
        stuck_id = registry.create_command("dep_1", "sync").command_id
        registry.mark_dispatched_if_not_terminal(stuck_id, now - minutes(16))
        registry.create_command("dep_1", "sync", deadline=now + minutes(60))
        late_id = registry.create_command("dep_1", "sync", deadline=now - minutes(1)).command_id
    on(connection, rebuild.migrate(STUCK_COMMANDS))
    rows = connection.execute("SELECT command_id, reasons FROM command_registry.stuck_commands").fetchall()
    assert rows == [(late_id, ["deadline_passed"]), (stuck_id, ["dispatched_long_ago"])]


def test_those_that_are_done_are_not_read(connection: psycopg.Connection[Any]) -> None:
    on(connection, rebuild.migrate(STUCK_COMMANDS))
    connection.execute("SET enable_seqscan = off")
    plan = connection.execute("EXPLAIN SELECT * FROM command_registry.stuck_commands").fetchall()
    assert any("stuck_commands_v1_deployment_id" in line for (line,) in plan)


def test_the_states_of_the_view_and_the_index_are_all_that_are_not_terminal() -> None:
    states = ", ".join(f"'{state}'" for state in S if not is_terminal(state))
    [index] = STUCK_COMMANDS.projection.indexes
    assert index.where == f"state IN ({states})"
    assert f"WHERE {index.where}\n" in (STUCK_COMMANDS.projection.view or "")
