"""Commands that are not done and that somebody should look at."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from types import MappingProxyType
from typing import ClassVar, Final, LiteralString, assert_never

from eventstore.event import StreamEvent
from projections.projection import Index, StreamProjection, Values
from projections.table import Table
from registry.events import CODEC, AttemptIncremented, CommandCreated, CommandTransitioned
from registry.lifecycle import CommandState

__all__ = ["STUCK_COMMANDS", "CommandProgress", "StuckCommandsProjection"]

_COLUMNS: Final[dict[LiteralString, LiteralString]] = {
    "command_id": 'text COLLATE "C"',
    "deployment_id": 'text COLLATE "C"',
    "command": "text",
    "state": "text",
    "attempt": "bigint",
    "deadline": "timestamptz",
    "created_at": "timestamptz",
    "dispatched_at": "timestamptz",
    "version": "int",
}

_VIEW: Final[LiteralString] = """
    SELECT command_id, deployment_id, command, state, attempt, deadline, created_at, dispatched_at, reasons
    FROM (
        SELECT
            *,
            array_remove(
                ARRAY[
                    CASE
                        WHEN deadline <= now() THEN 'deadline_passed'
                        WHEN deadline <= now() + interval '5 minutes' THEN 'deadline_near'
                    END,
                    CASE
                        WHEN state = 'DISPATCHED' AND dispatched_at < now() - interval '15 minutes'
                        THEN 'dispatched_long_ago'
                    END,
                    CASE WHEN attempt >= 3 THEN 'many_attempts' END
                ],
                NULL
            ) AS reasons
        FROM {table}
        WHERE state IN ('PENDING_UPLOAD', 'PENDING', 'DISPATCHED')
    ) AS not_done
    WHERE cardinality(reasons) > 0
    ORDER BY
        CASE WHEN deadline <= now() + interval '5 minutes' THEN deadline END NULLS LAST,
        CASE WHEN 'dispatched_long_ago' = ANY (reasons) THEN dispatched_at END NULLS LAST,
        attempt DESC,
        command_id
"""


@dataclass(frozen=True, slots=True)
class CommandProgress:
    """What tells whether a command is stuck. `dispatched_at`: when it was dispatched last."""

    command_id: str
    deployment_id: str
    command: str
    state: CommandState
    attempt: int
    deadline: datetime | None
    created_at: datetime
    dispatched_at: datetime | None
    version: int


class StuckCommandsProjection(StreamProjection[CommandProgress]):
    """One row for each command; the view has those that are not done, and stuck, with the `reasons` in an array.

    - `deadline_passed`: its deadline has passed, and it has not expired yet.
    - `deadline_near`: its deadline is within 5 minutes.
    - `dispatched_long_ago`: it was dispatched (for the last time) more than 15 minutes ago, and is dispatched still.
    - `many_attempts`: it is in its third attempt, or a later one.

    The most urgent come first: those whose deadline has passed or is near, the earliest first; then those dispatched
    long ago, the longest first; then those with the most attempts.

    `dispatched_at` is what was told, or else when the registry was told that it is dispatched. (Where the clock of who
    tells it is ahead, a command is found so much later.)
    """

    name = "stuck_commands"
    version = 1
    columns: ClassVar[Mapping[LiteralString, LiteralString]] = MappingProxyType(_COLUMNS)
    indexes = (
        # So that those that are done, which are nearly all, are not read.
        Index(("deployment_id",), where="state IN ('PENDING_UPLOAD', 'PENDING', 'DISPATCHED')"),
    )
    view = _VIEW

    def fold(self, state: CommandProgress | None, event: StreamEvent) -> CommandProgress:
        """Fold a stored event."""
        decoded = CODEC.decode(event)
        if isinstance(decoded, CommandCreated):
            return CommandProgress(
                event.stream_id,
                decoded.deployment_id,
                decoded.command,
                decoded.state,
                1,
                decoded.deadline,
                decoded.created_at,
                decoded.created_at if decoded.state is CommandState.DISPATCHED else None,
                event.version,
            )
        if state is None:
            raise ValueError("a stream of a command begins with its creation")
        match decoded:
            case AttemptIncremented(attempt=attempt):
                return replace(state, attempt=attempt, version=event.version)
            case CommandTransitioned():
                dispatched_at = decoded.dispatched_at or state.dispatched_at
                if decoded.dispatched_at is None and _is_dispatched(state.state, decoded.to_state):
                    dispatched_at = event.occurred_at
                return replace(state, state=decoded.to_state, dispatched_at=dispatched_at, version=event.version)
            case _:
                assert_never(decoded)

    def row(self, state: CommandProgress) -> Values:
        """Make the row of a command."""
        return tuple(getattr(state, name) for name in _COLUMNS)

    def state(self, row: Values) -> CommandProgress:
        """Make the state of a row."""
        values = dict(zip(_COLUMNS, row, strict=True))
        return CommandProgress(**values | {"state": CommandState(values["state"])})


def _is_dispatched(before: CommandState, after: CommandState) -> bool:
    return after is CommandState.DISPATCHED and before is not CommandState.DISPATCHED


STUCK_COMMANDS: Final = Table(StuckCommandsProjection())
"""The table of this projection."""
