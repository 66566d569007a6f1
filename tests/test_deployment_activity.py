"""What each deployment did on each day: against a recomputation that knows nothing of projections."""

from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import psycopg
import pytest
from hypothesis import given, settings

from eventstore import RecordedEvent
from eventstore.event import StreamEvent
from eventstore.steps import Step
from projections import Table, rebuild
from projections.errors import PoisonEvent
from projections.memory import MemoryProjection
from projections.testing import replay_equals_incremental
from registry import CommandState, MemoryCommandRegistry, PostgresCommandRegistry
from registry.deployment_activity import DEPLOYMENT_ACTIVITY, CommandActivity, DeploymentActivityProjection
from registry.testing import command_logs
from tests.by_hand import one
from tests.lending import on

S = CommandState
START = datetime(2026, 11, 24, 23, 59, 50, tzinfo=UTC)


def seconds(number: float) -> timedelta:
    return timedelta(seconds=number)


class Desk:
    """A registry in memory whose clock is set by hand, and its log."""

    def __init__(self, now: datetime = START) -> None:
        self.now = now
        self.registry = MemoryCommandRegistry(clock=lambda: self.now)

    def create(self, deployment_id: str = "dep_1", **arguments: Any) -> str:
        return self.registry.create_command(deployment_id, "sync", **arguments).command_id

    @property
    def log(self) -> list[RecordedEvent]:
        return self.registry._memory.store.read_log()


def shown(
    connection: psycopg.Connection[Any], table: Table[Any], log: Sequence[StreamEvent], view: str | None = None
) -> list[dict[str, Any]]:
    """Give what a projection's view (or another query) shows after a log, by the rows of the projection's twin."""
    twin = MemoryProjection(table.projection)
    twin.apply(log)
    with connection.transaction(force_rollback=True):
        for statement in (*table.create(), *table.create_indexes()):
            connection.execute(statement)
        if twin.rows:
            on(connection, one(Step(table.upsert, table.upsert_params(list(twin.rows.values())))))
        query = table.view_query.as_string() if view is None else view
        cursor = connection.execute(query.encode())
        names = [column.name for column in cursor.description or ()]
        return [dict(zip(names, row, strict=True)) for row in cursor]


# One command.


def activity(desk: Desk, command_id: str) -> CommandActivity | None:
    twin = MemoryProjection(DeploymentActivityProjection())
    twin.apply(desk.log)
    return twin.get(command_id)


def test_a_command_counts_on_the_day_of_its_creation_with_its_first_dispatch_and_its_end() -> None:
    desk = Desk()
    command_id = desk.create()
    assert activity(desk, command_id) == CommandActivity(
        command_id, "dep_1", START.date(), S.PENDING, 1, START, None, None, 1
    )
    desk.registry.mark_dispatched_if_not_terminal(command_id, START + seconds(5))
    desk.registry.update_command_state(command_id, S.PENDING)
    desk.registry.increment_attempt(command_id)
    desk.now += timedelta(days=1)
    desk.registry.mark_dispatched_if_not_terminal(command_id, START + seconds(60))
    desk.registry.complete_command(command_id, S.FAILED, START + seconds(90))
    assert activity(desk, command_id) == CommandActivity(
        command_id, "dep_1", START.date(), S.FAILED, 2, START, START + seconds(5), START + seconds(90), 6
    )


def test_a_dispatch_whose_time_nobody_told_is_none() -> None:
    desk = Desk()
    command_id = desk.create()
    desk.registry.update_command_state(command_id, S.DISPATCHED)
    found = activity(desk, command_id)
    assert found is not None
    assert (found.state, found.dispatched_at) == (S.DISPATCHED, None)


def test_a_stream_that_does_not_begin_with_a_creation_is_poison() -> None:
    desk = Desk()
    command_id = desk.create()
    desk.registry.increment_attempt(command_id)
    with pytest.raises(PoisonEvent, match="begins with its creation"):
        MemoryProjection(DeploymentActivityProjection(), skips=[(command_id, 1)]).apply(desk.log)


# The view.


def test_the_view_counts_by_deployment_and_day_in_utc_and_by_state(connection: psycopg.Connection[Any]) -> None:
    desk = Desk()
    for state in S:
        desk.create(initial_state=state)
    desk.create("dep_2")
    desk.now += seconds(10)  # it is the next day
    command_id = desk.create()
    desk.registry.increment_attempt(command_id)
    rows = {(row["deployment_id"], row["day"]): row for row in shown(connection, DEPLOYMENT_ACTIVITY, desk.log)}
    assert rows.keys() == {("dep_1", START.date()), ("dep_2", START.date()), ("dep_1", desk.now.date())}
    first = rows["dep_1", START.date()]
    assert [first[name] for name in ("created", "attempts", *map(str.lower, S))] == [6, 6, 1, 1, 1, 1, 1, 1]
    second = rows["dep_1", desk.now.date()]
    assert [second[name] for name in ("created", "attempts", *map(str.lower, S))] == [1, 2, 0, 1, 0, 0, 0, 0]


def test_figures_are_interpolated_and_null_where_there_is_none_and_negative_where_clocks_disagree(
    connection: psycopg.Connection[Any],
) -> None:
    desk = Desk()
    names = [f"{which}_seconds_to_{what}" for what in ("dispatch", "completion") for which in ("median", "p95")]

    def figures() -> list[float | None]:
        [row] = shown(connection, DEPLOYMENT_ACTIVITY, desk.log)
        return [row[name] for name in names]

    first = desk.create()
    assert figures() == [None] * 4
    desk.registry.update_command_state(first, S.PENDING, completed_at=START + seconds(1))
    assert figures() == [None] * 4  # it is not done, whatever was told
    desk.registry.mark_dispatched_if_not_terminal(first, START - seconds(2))
    desk.registry.complete_command(first, S.SUCCEEDED, START - seconds(1))
    assert figures() == [-2, -2, -1, -1]
    second = desk.create()
    desk.registry.mark_dispatched_if_not_terminal(second, START + seconds(8))
    desk.registry.complete_command(second, S.EXPIRED, START + seconds(99))
    assert figures() == pytest.approx([3, 7.5, 49, 94])


def percentile(values: list[float], share: float) -> float | None:
    if not values:
        return None
    place = share * (len(values) - 1)
    below = sorted(values)[int(place)]
    above = sorted(values)[min(int(place) + 1, len(values) - 1)]
    return below + (place - int(place)) * (above - below)


def recomputed(log: Sequence[StreamEvent]) -> dict[tuple[str, Any], dict[str, Any]]:
    """Recompute the view from the JSON of the events, command by command."""
    streams: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for event in log:
        streams[event.stream_id].append(orjson.loads(event.data))
    days: dict[tuple[str, Any], list[dict[str, Any]]] = defaultdict(list)
    for first, *later in streams.values():
        created = datetime.fromisoformat(first["created_at"])
        told = {
            name: [datetime.fromisoformat(data[name]) for data in later if name in data]
            for name in ("dispatched_at", "completed_at")
        }
        command = {
            "state": [first["state"], *(data["to_state"] for data in later if "to_state" in data)][-1],
            "attempts": 1 + sum("attempt" in data for data in later),
            "dispatch": [(at - created).total_seconds() for at in told["dispatched_at"][:1]],
            "completion": [(at - created).total_seconds() for at in told["completed_at"][-1:]],
        }
        if command["state"] not in {"SUCCEEDED", "FAILED", "EXPIRED"}:
            command["completion"] = []
        days[first["deployment_id"], created.date()].append(command)
    return {place: aggregated(commands) for place, commands in days.items()}


def aggregated(commands: list[dict[str, Any]]) -> dict[str, Any]:
    row = {state.lower(): sum(command["state"] == state for command in commands) for state in S}
    row |= {"created": len(commands), "attempts": sum(command["attempts"] for command in commands)}
    for what in ("dispatch", "completion"):
        values = [value for command in commands for value in command[what]]
        row[f"median_seconds_to_{what}"] = percentile(values, 0.5)
        row[f"p95_seconds_to_{what}"] = percentile(values, 0.95)
    return row


test_replay_equals_incremental = replay_equals_incremental(DeploymentActivityProjection(), command_logs())


@settings(max_examples=40)
@given(command_logs())
def test_the_view_is_what_is_recomputed_from_the_log(
    connection: psycopg.Connection[Any], log: list[RecordedEvent]
) -> None:
    rows = shown(connection, DEPLOYMENT_ACTIVITY, log)
    found = {(row.pop("deployment_id"), row.pop("day")): row for row in rows}
    expected = recomputed(log)
    assert found.keys() == expected.keys()
    for place, row in expected.items():
        assert found[place].keys() == row.keys()
        for column, value in row.items():
            close = None if value is None else pytest.approx(value, rel=1e-9, abs=1e-6)
            assert found[place][column] == close, column


def test_built_from_the_log_of_a_registry_the_view_shows_its_commands(
    dsn: str, connection: psycopg.Connection[Any]
) -> None:
    with PostgresCommandRegistry.open(dsn) as registry:
        for _ in range(3):
            command_id = registry.create_command("dep_1", "sync").command_id
        registry.complete_command(command_id, S.SUCCEEDED, datetime.now(UTC))
    on(connection, rebuild.migrate(DEPLOYMENT_ACTIVITY))
    query = (
        "SELECT deployment_id, sum(created), sum(succeeded), sum(attempts) FROM command_registry.deployment_activity"
    )
    assert connection.execute(query + " GROUP BY 1").fetchall() == [("dep_1", 3, 1, 3)]
