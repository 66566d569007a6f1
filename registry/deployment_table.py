"""The deployment directory in table `command_registry.deployments`."""

from typing import Any

from psycopg import AsyncConnection, Connection
from pydantic import TypeAdapter, ValidationError

from eventstore.codec import encode_json
from eventstore.database import AsyncDatabase, Database
from eventstore.steps import Plan, Row, Step
from registry import queries
from registry.arguments import possible_id
from registry.deployments import Deployment
from registry.errors import InvalidCommand
from registry.models import Target, accept

__all__ = ["AsyncDeploymentTable", "DeploymentTable", "find", "put", "remove"]

_TARGETS: TypeAdapter[tuple[Target, ...] | None] = TypeAdapter(tuple[Target, ...] | None)


def find(deployment_id: str) -> Plan[Deployment | None]:
    """Look a deployment up in table `command_registry.deployments`.

    Raises:
        InvalidCommand: its row is none that a deployment can have, as somebody's own SQL may have written it.
    """
    found = possible_id(deployment_id)
    if found is None:
        return None
    rows = yield Step(queries.FIND_DEPLOYMENT, (found,))
    return _deployment(rows[0]) if rows else None


def put(deployment: Deployment) -> Plan[None]:
    """Add a deployment to the table, or replace the one of its id.

    Raises:
        InvalidCommand: it is none, or one that was made without being checked.
    """
    if not isinstance(deployment, Deployment):
        raise InvalidCommand("deployment", f"must be a Deployment, not {type(deployment).__name__}")
    deployment = accept(Deployment, **vars(deployment))
    targets = None if deployment.targets is None else encode_json(list(deployment.targets))
    values = deployment.model_dump() | {"targets": targets}
    yield Step(queries.PUT_DEPLOYMENT, tuple(values.values()))


def remove(deployment_id: str) -> Plan[bool]:
    """Remove a deployment from the table; False when there is none of this id."""
    found = possible_id(deployment_id)
    if found is None:
        return False
    rows = yield Step(queries.REMOVE_DEPLOYMENT, (found,))
    return bool(rows)


def _deployment(row: Row) -> Deployment:
    values = dict(zip(Deployment.model_fields, row, strict=True))
    try:
        if values["targets"] is not None:
            values["targets"] = _TARGETS.validate_json(values["targets"])
        return Deployment(**values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "targets"
        raise InvalidCommand(
            "deployment_id",
            f"deployment {values['id']!r} is not well-formed in table command_registry.deployments: "
            f"{where}: {first['msg']}",
        ) from None


class DeploymentTable:
    """The directory in table `command_registry.deployments`, for threads."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, deployment_id: str) -> Deployment | None:
        """As `DeploymentDirectory.get`."""
        return self._database.run(find(deployment_id))

    def put(self, deployment: Deployment, *, connection: Connection[Any] | None = None) -> None:
        """Add a deployment, or replace the one of its id."""
        self._database.run(put(deployment), connection)

    def remove(self, deployment_id: str, *, connection: Connection[Any] | None = None) -> bool:
        """Remove a deployment; False when there is none of this id. Its commands stay."""
        return self._database.run(remove(deployment_id), connection)


class AsyncDeploymentTable:
    """The directory in table `command_registry.deployments`, for asyncio."""

    def __init__(self, database: AsyncDatabase) -> None:
        self._database = database

    async def get(self, deployment_id: str) -> Deployment | None:
        """As `DeploymentDirectory.get`."""
        return await self._database.run(find(deployment_id))

    async def put(self, deployment: Deployment, *, connection: AsyncConnection[Any] | None = None) -> None:
        """Add a deployment, or replace the one of its id."""
        await self._database.run(put(deployment), connection)

    async def remove(self, deployment_id: str, *, connection: AsyncConnection[Any] | None = None) -> bool:
        """Remove a deployment; False when there is none of this id. Its commands stay."""
        return await self._database.run(remove(deployment_id), connection)
