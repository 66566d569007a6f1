"""What each deployment did on each day: how many commands, in which states, after how many attempts, how fast."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date, datetime
from types import MappingProxyType
from typing import ClassVar, Final, LiteralString, assert_never

from eventstore.event import StreamEvent
from projections.projection import Index, StreamProjection, Values
from projections.table import Table
from registry.events import CODEC, AttemptIncremented, CommandCreated, CommandTransitioned
from registry.lifecycle import CommandState

__all__ = ["DEPLOYMENT_ACTIVITY", "CommandActivity", "DeploymentActivityProjection"]

_COLUMNS: Final[dict[LiteralString, LiteralString]] = {
    "command_id": 'text COLLATE "C"',
    "deployment_id": 'text COLLATE "C"',
    "day": "date",
    "state": "text",
    "attempts": "bigint",
    "created_at": "timestamptz",
    "dispatched_at": "timestamptz",
    "completed_at": "timestamptz",
    "version": "int",
}

_VIEW: Final[LiteralString] = """
    SELECT
        deployment_id,
        day,
        count(*) AS created,
        count(*) FILTER (WHERE state = 'PENDING_UPLOAD') AS pending_upload,
        count(*) FILTER (WHERE state = 'PENDING') AS pending,
        count(*) FILTER (WHERE state = 'DISPATCHED') AS dispatched,
        count(*) FILTER (WHERE state = 'SUCCEEDED') AS succeeded,
        count(*) FILTER (WHERE state = 'FAILED') AS failed,
        count(*) FILTER (WHERE state = 'EXPIRED') AS expired,
        sum(attempts)::bigint AS attempts,
        percentile_cont(0.5) WITHIN GROUP (ORDER BY seconds.to_dispatch) AS median_seconds_to_dispatch,
        percentile_cont(0.95) WITHIN GROUP (ORDER BY seconds.to_dispatch) AS p95_seconds_to_dispatch,
        percentile_cont(0.5) WITHIN GROUP (ORDER BY seconds.to_completion) AS median_seconds_to_completion,
        percentile_cont(0.95) WITHIN GROUP (ORDER BY seconds.to_completion) AS p95_seconds_to_completion
    FROM {table}
    CROSS JOIN LATERAL (
        SELECT
            extract(epoch FROM dispatched_at - created_at)::float8,
            CASE
                WHEN state IN ('SUCCEEDED', 'FAILED', 'EXPIRED')
                THEN extract(epoch FROM completed_at - created_at)::float8
            END
    ) AS seconds (to_dispatch, to_completion)
    GROUP BY deployment_id, day
"""


@dataclass(frozen=True, slots=True)
class CommandActivity:
    """What counts of one command. `dispatched_at`: when it was dispatched first, as far as anybody told."""

    command_id: str
    deployment_id: str
    day: date
    state: CommandState
    attempts: int
    created_at: datetime
    dispatched_at: datetime | None
    completed_at: datetime | None
    version: int


class DeploymentActivityProjection(StreamProjection[CommandActivity]):
    """One row for each command; the view has one for each deployment and day (in UTC) on which it created commands.

    A command counts on the day of its creation, whenever it is done. The view's columns: `created`; how many of those
    are now `pending_upload`, `pending`, `dispatched`, `succeeded`, `failed`, `expired`; their `attempts` together; and
    the median and 95th percentile of the seconds from creation to the first dispatch, and to completion, success or not
    (interpolated between commands; NULL where there is none yet).

    Instants are those that callers told. Where their clocks disagree, a command may seem to be done before it was
    created: its seconds are negative then, and are shown as they are, since a made-up 0 would hide that.
    """

    name = "deployment_activity"
    version = 1
    columns: ClassVar[Mapping[LiteralString, LiteralString]] = MappingProxyType(_COLUMNS)
    indexes = (Index(("deployment_id", "day")),)
    view = _VIEW

    def fold(self, state: CommandActivity | None, event: StreamEvent) -> CommandActivity:
        """Fold a stored event."""
        decoded = CODEC.decode(event)
        if isinstance(decoded, CommandCreated):
            return CommandActivity(
                event.stream_id,
                decoded.deployment_id,
                decoded.created_at.date(),
                decoded.state,
                1,
                decoded.created_at,
                None,
                None,
                event.version,
            )
        if state is None:
            raise ValueError("a stream of a command begins with its creation")
        match decoded:
            case AttemptIncremented(attempt=attempt):
                return replace(state, attempts=attempt, version=event.version)
            case CommandTransitioned():
                return replace(
                    state,
                    state=decoded.to_state,
                    dispatched_at=state.dispatched_at or decoded.dispatched_at,
                    completed_at=decoded.completed_at or state.completed_at,
                    version=event.version,
                )
            case _:
                assert_never(decoded)

    def row(self, state: CommandActivity) -> Values:
        """Make the row of a command."""
        return tuple(getattr(state, name) for name in _COLUMNS)

    def state(self, row: Values) -> CommandActivity:
        """Make the state of a row."""
        values = dict(zip(_COLUMNS, row, strict=True))
        return CommandActivity(**values | {"state": CommandState(values["state"])})


DEPLOYMENT_ACTIVITY: Final = Table(DeploymentActivityProjection())
"""The table of this projection."""
