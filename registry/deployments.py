"""Deployments, which target of one a command is for, and whether it is pushed there or pulled."""

from collections.abc import Awaitable
from functools import lru_cache
from typing import Final, Protocol

from eventstore.event import name_problem
from registry.errors import (
    DeploymentNotFound,
    InvalidCommand,
    NoTargets,
    TargetAmbiguous,
    TargetIdInvalid,
    TargetNotFound,
    shown,
)
from registry.models import (
    DeliveryMode,
    DeploymentModel,
    Model,
    Name,
    ResolvedTarget,
    ResourceType,
    Target,
    target_of,
    trusted,
)

__all__ = [
    "OPERATOR",
    "AsyncDeploymentDirectory",
    "Deployment",
    "DeploymentDirectory",
    "FixedDeployments",
    "delivery_mode",
    "look_up",
    "resolve",
    "running",
]

OPERATOR: Final = "operator"
"""The reserved target id of the operator that runs beside every deployment: a daemon that pulls."""


class Deployment(Model):
    """A place where commands run.

    `targets` are the resources there that take commands; None: none are declared, and the deployment itself is the
    one target, a worker. Commands are created only while `status` is "running".
    """

    id: Name
    workspace_id: Name
    project_id: Name
    deployment_model: DeploymentModel
    name: Name
    group: Name | None = None
    targets: tuple[Target, ...] | None = None
    status: Name = "running"


class DeploymentDirectory(Protocol):
    """Knows the deployments."""

    def get(self, deployment_id: str) -> Deployment | None:
        """Look a deployment up; None when there is none of this id."""
        ...


class AsyncDeploymentDirectory(Protocol):
    """Knows the deployments, for asyncio."""

    async def get(self, deployment_id: str) -> Deployment | None:
        """Look a deployment up; None when there is none of this id."""
        ...


class FixedDeployments:
    """A directory in which any id is a running deployment of one model, in workspace and project "default"."""

    def __init__(self, deployment_model: DeploymentModel = DeploymentModel.PULL) -> None:
        self._deployment_model = DeploymentModel(deployment_model)
        self._deployment = lru_cache(maxsize=1_000)(self._make)

    def _make(self, deployment_id: str) -> Deployment:
        return Deployment(
            id=deployment_id,
            workspace_id="default",
            project_id="default",
            deployment_model=self._deployment_model,
            name=deployment_id,
        )

    def get(self, deployment_id: str) -> Deployment | None:
        """As `DeploymentDirectory.get`; None only for what can be no id."""
        return None if name_problem(deployment_id) is not None else self._deployment(deployment_id)


async def look_up(directory: DeploymentDirectory | AsyncDeploymentDirectory, deployment_id: str) -> Deployment | None:
    """Look a deployment up in a directory of either kind."""
    found = directory.get(deployment_id)
    return await found if isinstance(found, Awaitable) else found


def running(deployment_id: str, deployment: Deployment | None) -> Deployment:
    """Return a deployment that takes commands.

    Raises:
        DeploymentNotFound: there is none of this id.
        InvalidCommand: it is not running.
    """
    if deployment is None:
        raise DeploymentNotFound(deployment_id)
    if deployment.status != "running":
        raise InvalidCommand("deployment_id", f"deployment {deployment_id!r} is not running: it is {deployment.status}")
    return deployment


def delivery_mode(deployment_model: DeploymentModel, target: Target | None) -> DeliveryMode:
    """Tell how a command reaches its target: containers and daemons pull, a worker does as its deployment does."""
    if target is None or target.resource_type is ResourceType.WORKER:
        return deployment_model
    return DeploymentModel.PULL


def resolve(deployment: Deployment, requested: str | None) -> ResolvedTarget:
    """Find the target that a command is for: the one asked for, or the only one there is.

    Raises:
        InvalidCommand: what is asked for is no text.
        TargetIdInvalid: the id asked for holds a colon.
        TargetNotFound: the deployment has no target of the id asked for.
        NoTargets: none was asked for, and there is none to choose.
        TargetAmbiguous: none was asked for, and there is more than one.
    """
    target = _only_candidate(deployment) if requested is None else _requested(deployment, requested)
    return trusted(
        ResolvedTarget,
        {
            "target": target,
            "delivery_mode": delivery_mode(deployment.deployment_model, target),
        },
    )


def _candidates(deployment: Deployment) -> list[Target]:
    if deployment.targets is None:
        return [target_of(deployment.id, ResourceType.WORKER)]
    return [target for target in deployment.targets if target.resource_id != OPERATOR]


def _only_candidate(deployment: Deployment) -> Target:
    candidates = _candidates(deployment)
    if not candidates:
        raise NoTargets(deployment.id, f"deployment {deployment.id!r} has no target that takes commands")
    if len(candidates) > 1:
        ids = ", ".join(target.resource_id for target in candidates)
        raise TargetAmbiguous(deployment.id, f"deployment {deployment.id!r} has several targets, name one: {ids}")
    return candidates[0]


def _requested(deployment: Deployment, requested: str) -> Target:
    if not isinstance(requested, str):
        raise InvalidCommand("requested", f"must be text, not {type(requested).__name__}")
    if ":" in requested:
        raise TargetIdInvalid(deployment.id, f"target id {shown(requested)} must not hold a colon")
    if requested == OPERATOR:
        return Target(resource_id=OPERATOR, resource_type=ResourceType.DAEMON)
    for target in _candidates(deployment):
        if target.resource_id == requested:
            return target
    raise TargetNotFound(deployment.id, f"deployment {deployment.id!r} has no target {shown(requested)}")
