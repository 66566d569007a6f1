"""Everything the registry can refuse or fail with.

RegistryError
├── InvalidCommand              (ValueError) an argument that cannot be accepted; names the field
│   └── InvalidCommandState     complete_command was given a state that is not terminal
├── InvalidTransition           the matrix of `registry.lifecycle` forbids it
├── CommandNotFound             (LookupError)
├── DeploymentNotFound          (LookupError)
├── TargetError
│   ├── TargetNotFound          (LookupError)
│   ├── TargetIdInvalid         (ValueError)
│   ├── NoTargets
│   └── TargetAmbiguous
├── IdempotencyConflict         the key was used before, with other arguments
└── EmbeddedPostgresError       the Postgres that comes with the package could not be started

Every error has a `code`, the same wherever it is told (as JSON-RPC's `data.code`, for one). What the layers below raise
(`Unavailable`, `OutcomeUnknown`, `Conflict`, `SchemaMismatch`) is in `eventstore.errors`, with codes, too, and rises
unchanged.
"""

from typing import ClassVar, Final

__all__ = [
    "CommandNotFound",
    "DeploymentNotFound",
    "EmbeddedPostgresError",
    "IdempotencyConflict",
    "InvalidCommand",
    "InvalidCommandState",
    "InvalidTransition",
    "NoTargets",
    "RegistryError",
    "TargetAmbiguous",
    "TargetError",
    "TargetIdInvalid",
    "TargetNotFound",
    "shown",
]


_LONGEST_SHOWN: Final = 300


def shown(value: object) -> str:
    """Write what was given as an id, and may be anything, in a message."""
    if not isinstance(value, str):
        return f"<{type(value).__name__}>"
    return repr(value) if len(value) <= _LONGEST_SHOWN else f"{value[:_LONGEST_SHOWN]!r}..."


class RegistryError(Exception):
    """Base of every error that the registry raises of itself."""

    code: ClassVar[str] = "GENERIC_ERROR"


class InvalidCommand(RegistryError, ValueError):
    """An argument that cannot be accepted."""

    code = "INVALID_COMMAND"

    def __init__(self, field: str, problem: str) -> None:
        """Carry the name of the argument, and what is wrong with it and how to mend it."""
        self.field = field
        self.problem = problem
        super().__init__(f"{field}: {problem}")


class InvalidCommandState(InvalidCommand):
    """A command is completed only with a terminal state."""


class InvalidTransition(RegistryError):
    """The command cannot go from its state to the one asked for."""

    code = "INVALID_STATE_TRANSITION"

    def __init__(self, command_id: str, from_state: str, to_state: str) -> None:
        """Carry the command's id and both states."""
        self.command_id = command_id
        self.from_state = from_state
        self.to_state = to_state
        super().__init__(f"command {command_id!r} cannot go from {from_state} to {to_state}")


class CommandNotFound(RegistryError, LookupError):
    """No command has this id."""

    code = "COMMAND_NOT_FOUND"

    def __init__(self, command_id: str) -> None:
        """Carry the id."""
        self.command_id = command_id
        super().__init__(f"no command {shown(command_id)}")


class DeploymentNotFound(RegistryError, LookupError):
    """The deployment directory knows no deployment of this id."""

    code = "DEPLOYMENT_NOT_FOUND"

    def __init__(self, deployment_id: str) -> None:
        """Carry the id."""
        self.deployment_id = deployment_id
        super().__init__(f"no deployment {shown(deployment_id)} in the directory")


class TargetError(RegistryError):
    """The target of a command could not be resolved."""

    def __init__(self, deployment_id: str, message: str) -> None:
        """Carry the deployment's id."""
        self.deployment_id = deployment_id
        super().__init__(message)


class TargetNotFound(TargetError, LookupError):
    """The deployment has no target of the id asked for."""

    code = "COMMAND_TARGET_NOT_FOUND"


class TargetIdInvalid(TargetError, ValueError):
    """A target id holds a colon."""

    code = "COMMAND_TARGET_ID_INVALID"


class NoTargets(TargetError):
    """No target was asked for, and the deployment has none to choose."""

    code = "NO_COMMAND_TARGETS"


class TargetAmbiguous(TargetError):
    """No target was asked for, and the deployment has more than one."""

    code = "COMMAND_TARGET_AMBIGUOUS"


class IdempotencyConflict(RegistryError):
    """The idempotency key was used before, with other arguments."""

    code = "IDEMPOTENCY_CONFLICT"

    def __init__(self, idempotency_key: str, command_id: str) -> None:
        """Carry the key, and the command that it made."""
        self.idempotency_key = idempotency_key
        self.command_id = command_id
        super().__init__(
            f"idempotency key {idempotency_key!r} already made command {command_id!r} with other arguments: "
            "send the first arguments again, or choose a new key"
        )


class EmbeddedPostgresError(RegistryError, RuntimeError):
    """The embedded Postgres could not be started; the message says how to go on without it."""

    code = "UNAVAILABLE"
