"""Command Registry: what became of each remote command, as an append-only log of events in Postgres."""

from eventstore.errors import Conflict, InvalidDsn, OutcomeUnknown, SchemaMismatch, Unavailable, UnknownEventType
from registry.audit import Report, export_line
from registry.context import command_context, current_context
from registry.deployment_table import AsyncDeploymentTable, DeploymentTable
from registry.deployments import AsyncDeploymentDirectory, Deployment, DeploymentDirectory, FixedDeployments
from registry.errors import (
    CommandNotFound,
    DeploymentNotFound,
    EmbeddedPostgresError,
    IdempotencyConflict,
    InvalidCommand,
    InvalidCommandState,
    InvalidTransition,
    NoTargets,
    RegistryError,
    TargetAmbiguous,
    TargetError,
    TargetIdInvalid,
    TargetNotFound,
)
from registry.events import AttemptIncremented, CommandCreated, CommandEvent, CommandTransitioned
from registry.history import HistoryEntry
from registry.lifecycle import CommandState, can_transition_to, is_terminal
from registry.memory import AsyncMemoryCommandRegistry, MemoryCommandRegistry
from registry.models import (
    CommandAccessContext,
    CommandEnvelopeData,
    CommandMetadata,
    CommandStatus,
    DeliveryMode,
    DeploymentModel,
    EventContext,
    ResolvedTarget,
    ResourceType,
    Target,
)
from registry.postgres import AsyncPostgresCommandRegistry, PostgresCommandRegistry
from registry.protocol import AsyncCommandRegistry, CommandRegistry

__all__ = [
    "AsyncCommandRegistry",
    "AsyncDeploymentDirectory",
    "AsyncDeploymentTable",
    "AsyncMemoryCommandRegistry",
    "AsyncPostgresCommandRegistry",
    "AttemptIncremented",
    "CommandAccessContext",
    "CommandCreated",
    "CommandEnvelopeData",
    "CommandEvent",
    "CommandMetadata",
    "CommandNotFound",
    "CommandRegistry",
    "CommandState",
    "CommandStatus",
    "CommandTransitioned",
    "Conflict",
    "DeliveryMode",
    "Deployment",
    "DeploymentDirectory",
    "DeploymentModel",
    "DeploymentNotFound",
    "DeploymentTable",
    "EmbeddedPostgresError",
    "EventContext",
    "FixedDeployments",
    "HistoryEntry",
    "IdempotencyConflict",
    "InvalidCommand",
    "InvalidCommandState",
    "InvalidDsn",
    "InvalidTransition",
    "MemoryCommandRegistry",
    "NoTargets",
    "OutcomeUnknown",
    "PostgresCommandRegistry",
    "RegistryError",
    "Report",
    "ResolvedTarget",
    "ResourceType",
    "SchemaMismatch",
    "Target",
    "TargetAmbiguous",
    "TargetError",
    "TargetIdInvalid",
    "TargetNotFound",
    "Unavailable",
    "UnknownEventType",
    "can_transition_to",
    "command_context",
    "current_context",
    "export_line",
    "is_terminal",
]
