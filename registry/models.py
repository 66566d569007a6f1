"""What the registry takes and answers: frozen pydantic models, and the rules for what is accepted.

What is accepted reads back equal, for ever. So everything that could not be stored exactly is refused at the door.
"""

import re
from datetime import datetime
from enum import StrEnum
from functools import cache, lru_cache
from typing import Annotated, Any, Final, TypeAlias, TypeVar

import orjson
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    PlainSerializer,
    PlainValidator,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
)

from eventstore.codec import json_text
from eventstore.errors import InvalidEvent
from eventstore.event import check_instant, name_problem, plain_text
from registry.errors import InvalidCommand
from registry.lifecycle import CommandState

__all__ = [
    "CommandAccessContext",
    "CommandEnvelopeData",
    "CommandMetadata",
    "CommandStatus",
    "DeliveryMode",
    "DeploymentModel",
    "EventContext",
    "Instant",
    "Json",
    "Model",
    "Name",
    "NewCommand",
    "ResolvedTarget",
    "ResourceType",
    "Size",
    "StateUpdate",
    "Target",
    "accept",
    "check_instant_argument",
    "has_plain_fields",
    "instant_text",
    "target_of",
    "trusted",
]

MAX_SIZE: Final = 2**64 - 1
MAX_ATTEMPT: Final = 2**32 - 1

_RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d)", re.ASCII | re.IGNORECASE)
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)


def _name(value: object) -> str:
    problem = name_problem(value)
    if problem is not None:
        raise ValueError(problem)
    return plain_text(value)


def _instant(value: object, info: ValidationInfo) -> datetime:
    if isinstance(value, datetime):
        return check_instant(info.field_name or "instant", value)
    if isinstance(value, str) and _RFC3339.fullmatch(value):
        return check_instant(info.field_name or "instant", datetime.fromisoformat(value.upper()))
    raise ValueError(
        "must be a datetime with a time zone, or RFC 3339 text such as 2026-11-24T10:00:00.123456Z "
        "(an offset, at most six fraction digits)"
    )


def instant_text(value: datetime) -> str:
    """Write an instant in UTC as RFC 3339 text with Z."""
    return value.isoformat().replace("+00:00", "Z")


def _json(value: JsonValue, info: ValidationInfo) -> JsonValue:
    copy: JsonValue = orjson.loads(json_text(info.field_name or "value", value))  # that no caller can change
    return copy


def _is_traceparent(value: object) -> bool:
    return isinstance(value, str) and _TRACEPARENT.fullmatch(value) is not None


def _state(value: object) -> object:
    if not isinstance(value, str):  # an enumeration would tell of it by its repr, which may be endless
        problem = f"must be one of {', '.join(CommandState)}, not {type(value).__name__}"
        raise ValueError(problem)  # noqa: TRY004 - pydantic takes no TypeError for a refusal
    return value


def _traceparent(value: str) -> str:
    if not _is_traceparent(value):
        raise ValueError("must be a W3C traceparent: 00-<32 hex>-<16 hex>-<2 hex>, in lower case")
    return value


Name: TypeAlias = Annotated[str, BeforeValidator(_name)]
"""An id or a name: 1..255 characters, no control characters, no lone surrogates."""

Instant: TypeAlias = Annotated[
    datetime,
    PlainValidator(_instant, json_schema_input_type=datetime),
    PlainSerializer(instant_text, return_type=str, when_used="json"),
]
"""An instant in the years 1..9999 UTC, to the microsecond; a datetime with a zone, or RFC 3339 text."""

Size: TypeAlias = Annotated[int, Field(strict=True, ge=0, le=MAX_SIZE)]
"""A size in bytes, 0..2**64-1."""

Json: TypeAlias = Annotated[JsonValue, BeforeValidator(_json)]
"""A free JSON value: at most 64 KiB of text, nested at most 64 deep, integers within 64 bits, no NaN or infinity."""

Attributes: TypeAlias = Annotated[dict[str, JsonValue], BeforeValidator(_json)]
Traceparent: TypeAlias = Annotated[str, AfterValidator(_traceparent)]


State: TypeAlias = Annotated[CommandState, BeforeValidator(_state)]


class Model(BaseModel):
    """Base of the registry's models: frozen, and without unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DeploymentModel(StrEnum):
    """How a deployment gets its commands."""

    PUSH = "push"
    PULL = "pull"


DeliveryMode: TypeAlias = DeploymentModel
"""How one command reaches its target: its deployment's model, but containers and daemons always pull."""


class ResourceType(StrEnum):
    """What a target of a deployment is."""

    WORKER = "worker"
    CONTAINER = "container"
    DAEMON = "daemon"


class Target(Model):
    """The resource of a deployment that a command is for."""

    resource_id: Name
    resource_type: ResourceType


@lru_cache(maxsize=1_000)
def target_of(resource_id: str, resource_type: ResourceType) -> Target:
    """Make a target; the same few come again and again."""
    return Target(resource_id=resource_id, resource_type=resource_type)


class ResolvedTarget(Model):
    """A target, and how commands reach it."""

    target: Target
    delivery_mode: DeliveryMode


class CommandMetadata(Model):
    """What `create_command` answers."""

    command_id: str
    deployment_model: DeploymentModel
    project_id: str
    target: Target | None
    delivery_mode: DeliveryMode


class CommandEnvelopeData(Model):
    """What is needed to send a command to its deployment. `version`: the stream version this reflects."""

    command_id: str
    deployment_id: str
    command: str
    attempt: int
    deadline: Instant | None
    state: CommandState
    deployment_model: DeploymentModel
    target: Target | None
    delivery_mode: DeliveryMode
    version: int


class CommandStatus(Model):
    """The status of a command. Sizes in bytes; `version`: the stream version this reflects, 1 or more."""

    command_id: str
    workspace_id: str
    project_id: str
    deployment_id: str
    command: str
    state: CommandState
    attempt: int
    deadline: Instant | None
    created_at: Instant
    dispatched_at: Instant | None
    completed_at: Instant | None
    error: JsonValue
    request_size_bytes: int | None
    response_size_bytes: int | None
    deployment_model: DeploymentModel
    target: Target | None
    version: int


class CommandAccessContext(Model):
    """What an authorisation of access to a command needs."""

    workspace_id: str
    project_id: str
    deployment_id: str
    target: Target | None


class EventContext(Model):
    """Who caused an event, and in the course of what. Kept in the event's metadata.

    `attributes` is free: a JSON object of at most 64 KiB.
    """

    actor: Name | None = None
    traceparent: Traceparent | None = None
    request_id: Name | None = None
    attributes: Attributes = Field(default_factory=dict)


def has_plain_fields(context: EventContext) -> bool:
    """Tell whether a context is certainly acceptable still: nothing in it that could have been changed, or copied in.

    Looked at for every write; to validate it takes ten times as long.
    """
    fields = vars(context)
    return (
        fields.keys() == _every_field(EventContext)
        and fields["attributes"] == {}
        and all(fields[name] is None or name_problem(fields[name]) is None for name in ("actor", "request_id"))
        and (fields["traceparent"] is None or _is_traceparent(fields["traceparent"]))
    )


class NewCommand(Model):
    """The arguments of `create_command`."""

    deployment_id: Name
    command_name: Name
    initial_state: State = CommandState.PENDING
    deadline: Instant | None = None
    request_size_bytes: Size | None = None
    idempotency_key: Name | None = None
    target: str | None = Field(default=None, strict=True, max_length=255)


class StateUpdate(Model):
    """The arguments of `update_command_state`; a None keeps the stored value."""

    state: State
    dispatched_at: Instant | None = None
    completed_at: Instant | None = None
    response_size_bytes: Size | None = None
    error: Json = None


M = TypeVar("M", bound=BaseModel)


@cache
def _every_field(model: type[BaseModel]) -> set[str]:
    return set(model.model_fields)


def trusted(model: type[M], values: dict[str, Any]) -> M:
    """Make a model of values that were checked before: every field, in their order. The dict becomes the model's own.

    As `BaseModel.model_construct`, which looks at each field once more.
    """
    made = model.__new__(model)
    _set(made, "__dict__", values)
    _set(made, "__pydantic_fields_set__", _every_field(model))
    _set(made, "__pydantic_extra__", None)
    _set(made, "__pydantic_private__", None)
    return made


_set: Final = object.__setattr__


_INSTANT: TypeAdapter[datetime] = TypeAdapter(Instant)


def accept(model: type[M], **arguments: object) -> M:
    """Make a model of a call's arguments.

    Raises:
        InvalidCommand: an argument cannot be accepted; the error names it.
    """
    try:
        return model(**arguments)
    except ValidationError as error:
        raise _invalid(error, "") from None


def check_instant_argument(field: str, value: object) -> datetime:
    """Return an instant argument in UTC.

    Raises:
        InvalidCommand: it is no instant, naive, or outside the years 1..9999 in UTC.
    """
    try:
        return _INSTANT.validate_python(value)
    except ValidationError as error:
        raise _invalid(error, field) from None


def _invalid(error: ValidationError, field: str) -> InvalidCommand:
    first = error.errors(include_url=False)[0]
    cause = first.get("ctx", {}).get("error")
    problem = cause.problem if isinstance(cause, InvalidEvent) else str(cause or first["msg"])
    return InvalidCommand(".".join([*([field] if field else []), *map(str, first["loc"])]), problem)
