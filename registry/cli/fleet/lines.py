"""The fleet: its deployments, and the lines of workers there."""

from dataclasses import dataclass
from typing import Final

from registry.deployments import Deployment
from registry.models import DeploymentModel, ResourceType, Target

__all__ = ["DEPLOYMENTS", "LINES", "Line"]

EU: Final = "dep_demo_eu"
US: Final = "dep_demo_us"
ON_PREM: Final = "dep_demo_onprem"

DEPLOYMENTS: Final = (
    Deployment(
        id=EU,
        workspace_id="demo",
        project_id="demo-fleet",
        deployment_model=DeploymentModel.PULL,
        name="Fleet EU",
        group="cloud",
    ),
    Deployment(
        id=US,
        workspace_id="demo",
        project_id="demo-fleet",
        deployment_model=DeploymentModel.PUSH,
        name="Fleet US",
        group="cloud",
        targets=(Target(resource_id="api", resource_type=ResourceType.WORKER),),
    ),
    Deployment(
        id=ON_PREM,
        workspace_id="demo",
        project_id="demo-fleet",
        deployment_model=DeploymentModel.PULL,
        name="On-prem",
        group="customer-site",
        targets=(
            Target(resource_id="gateway", resource_type=ResourceType.WORKER),
            Target(resource_id="cache", resource_type=ResourceType.CONTAINER),
            Target(resource_id="backup", resource_type=ResourceType.DAEMON),
        ),
    ),
)


@dataclass(frozen=True, slots=True)
class Line:
    """The workers of one target of a deployment. `share`: their part of the day's commands."""

    deployment_id: str
    target: str | None
    name: str
    share: float

    @property
    def must_be_named(self) -> bool:
        """Whether a command for these workers has to name its target, since the deployment has several."""
        return self.target is not None

    def workers(self, commands: int) -> list[str]:
        """Name the workers that a day of so many commands takes, busy hours and sick leave included."""
        count = max(3, round(commands * self.share / 10))
        return [f"worker:{self.name}-{number}" for number in range(1, count + 1)]


LINES: Final = (
    Line(EU, None, "eu", 0.4),
    Line(US, None, "us", 0.3),
    Line(ON_PREM, "gateway", "gateway", 0.1),
    Line(ON_PREM, "cache", "cache", 0.1),
    Line(ON_PREM, "backup", "backup", 0.1),
)
"""What the fleet works in. Of the deployments with one target, the target is not named."""
