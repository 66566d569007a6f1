"""What the queries answer, made from a command's status."""

from registry.deployments import delivery_mode
from registry.models import CommandAccessContext, CommandEnvelopeData, CommandMetadata, CommandStatus, trusted

__all__ = ["access_context", "envelope", "metadata"]


def metadata(status: CommandStatus) -> CommandMetadata:
    """Make the answer of `create_command`."""
    return trusted(
        CommandMetadata,
        {
            "command_id": status.command_id,
            "deployment_model": status.deployment_model,
            "project_id": status.project_id,
            "target": status.target,
            "delivery_mode": delivery_mode(status.deployment_model, status.target),
        },
    )


def envelope(status: CommandStatus) -> CommandEnvelopeData:
    """Make the answer of `get_command_metadata`."""
    return trusted(
        CommandEnvelopeData,
        {
            "command_id": status.command_id,
            "deployment_id": status.deployment_id,
            "command": status.command,
            "attempt": status.attempt,
            "deadline": status.deadline,
            "state": status.state,
            "deployment_model": status.deployment_model,
            "target": status.target,
            "delivery_mode": delivery_mode(status.deployment_model, status.target),
            "version": status.version,
        },
    )


def access_context(status: CommandStatus) -> CommandAccessContext:
    """Make the answer of `get_command_access_context`."""
    return trusted(
        CommandAccessContext,
        {
            "workspace_id": status.workspace_id,
            "project_id": status.project_id,
            "deployment_id": status.deployment_id,
            "target": status.target,
        },
    )
