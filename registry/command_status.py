"""The current status of every command: the read model that the metadata and status queries are answered from."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar, Final, LiteralString

import orjson
from psycopg.sql import SQL

from eventstore.codec import encode_json
from eventstore.event import StreamEvent
from projections.projection import Index, StreamProjection, Values
from projections.table import Table
from registry import queries
from registry.decider import evolve
from registry.events import CODEC
from registry.lifecycle import CommandState
from registry.models import CommandStatus, DeploymentModel, ResourceType, target_of, trusted

__all__ = ["COMMAND_STATUS", "SELECT_OVERDUE", "CommandStatusProjection"]

# numeric(20): sizes go up to 2**64-1.
_COLUMNS: Final[dict[LiteralString, LiteralString]] = {
    "command_id": 'text COLLATE "C"',
    "workspace_id": "text",
    "project_id": "text",
    "deployment_id": "text",
    "command": "text",
    "state": "text",
    "attempt": "bigint",
    "deadline": "timestamptz",
    "created_at": "timestamptz",
    "dispatched_at": "timestamptz",
    "completed_at": "timestamptz",
    "error": "json",
    "request_size_bytes": "numeric(20)",
    "response_size_bytes": "numeric(20)",
    "deployment_model": "text",
    "target_resource_id": "text",
    "target_resource_type": "text",
    "version": "int",
}


class CommandStatusProjection(StreamProjection[CommandStatus]):
    """One row for each command, as `evolve` folds it."""

    name = "command_status"
    version = 1
    inline = True
    columns: ClassVar[Mapping[LiteralString, LiteralString]] = MappingProxyType(_COLUMNS)
    indexes = (
        # For `expire_overdue`: only commands that can still expire.
        Index(("deadline",), where="deadline IS NOT NULL AND state IN ('PENDING_UPLOAD', 'PENDING', 'DISPATCHED')"),
    )

    def fold(self, state: CommandStatus | None, event: StreamEvent) -> CommandStatus:
        """Fold a stored event."""
        return evolve(state, CODEC.decode(event))

    def row(self, state: CommandStatus) -> Values:
        """Make the row of a status."""
        target = state.target
        return (
            state.command_id,
            state.workspace_id,
            state.project_id,
            state.deployment_id,
            state.command,
            state.state,
            state.attempt,
            state.deadline,
            state.created_at,
            state.dispatched_at,
            state.completed_at,
            None if state.error is None else encode_json(state.error),
            state.request_size_bytes,
            state.response_size_bytes,
            state.deployment_model,
            target and target.resource_id,
            target and target.resource_type,
            state.version,
        )

    def state(self, row: Values) -> CommandStatus:
        """Make the status of a row."""
        *before, error, request_size, response_size, model, resource_id, resource_type, version = row
        command_id, workspace_id, project_id, deployment_id, command, state, attempt, *instants = before
        deadline, created_at, dispatched_at, completed_at = instants
        return trusted(
            CommandStatus,
            {
                "command_id": command_id,
                "workspace_id": workspace_id,
                "project_id": project_id,
                "deployment_id": deployment_id,
                "command": command,
                "state": CommandState(state),
                "attempt": attempt,
                "deadline": deadline,
                "created_at": created_at,
                "dispatched_at": dispatched_at,
                "completed_at": completed_at,
                "error": None if error is None else orjson.loads(error),
                "request_size_bytes": request_size,
                "response_size_bytes": response_size,
                "deployment_model": DeploymentModel(model),
                "target": None if resource_id is None else target_of(resource_id, ResourceType(resource_type)),
                "version": version,
            },
        )


COMMAND_STATUS: Final = Table(CommandStatusProjection())
"""The table of the status projection."""

SELECT_OVERDUE: Final = SQL(queries.OVERDUE).format(table=COMMAND_STATUS.identifier).as_bytes()
"""The statement that finds so many commands whose deadline has passed by an instant."""
