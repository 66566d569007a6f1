"""A command's events as an auditor reads them, and the status they fold to up to any moment."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import orjson

from eventstore.codec import encode_json
from eventstore.event import RecordedEvent
from registry.decider import replay
from registry.errors import InvalidCommand
from registry.events import CODEC, CommandEvent
from registry.models import CommandStatus, EventContext, Instant, Model, check_instant_argument

__all__ = ["HistoryEntry", "history_entry", "metadata_text", "moment", "status_at"]


class HistoryEntry(Model):
    """One event of a command.

    `event` is of the schema version in force, upcast if need be; `schema_version` is the one it is stored with, and
    `hash` (in hex) is that of what is stored. `occurred_at` is when the caller's process decided it, and is hashed;
    `recorded_at` is the server's clock.
    """

    command_id: str
    version: int
    type: str
    schema_version: int
    occurred_at: Instant
    recorded_at: Instant
    event: CommandEvent
    context: EventContext
    idempotency_key: str | None
    position: int
    transaction_id: int
    hash: str


def metadata_text(context: EventContext, idempotency_key: str | None = None) -> str:
    """Write a context as an event's metadata."""
    metadata: dict[str, Any] = {name: value for name, value in vars(context).items() if value}
    if not metadata and idempotency_key is None:
        return "{}"
    if idempotency_key is not None:
        metadata["idempotency_key"] = idempotency_key
    return encode_json(metadata)


def history_entry(recorded: RecordedEvent) -> HistoryEntry:
    """Read a stored event.

    Raises:
        UnknownEventType: another version of the software wrote it.
        UpcastFailed: an upcaster could not bring it to the schema version in force.
    """
    metadata = orjson.loads(recorded.metadata)
    return HistoryEntry(
        command_id=recorded.stream_id,
        version=recorded.version,
        type=recorded.type,
        schema_version=recorded.schema_version,
        occurred_at=recorded.occurred_at,
        recorded_at=recorded.recorded_at,
        event=CODEC.decode(recorded),
        context=EventContext(**{name: metadata[name] for name in EventContext.model_fields if name in metadata}),
        idempotency_key=metadata.get("idempotency_key"),
        position=recorded.position,
        transaction_id=recorded.transaction_id,
        hash=recorded.hash.hex(),
    )


MAX_VERSION: Final = 2**31 - 1


def moment(at: datetime | None, version: int | None) -> datetime | int:
    """Return the one moment that was asked for.

    Raises:
        InvalidCommand: neither or both were given, or what was given is no moment.
    """
    if (at is None) == (version is None):
        raise InvalidCommand("at", "give either at= or version=, and not both")
    if at is not None:
        return check_instant_argument("at", at)
    if not isinstance(version, int) or isinstance(version, bool) or not 1 <= version <= MAX_VERSION:
        raise InvalidCommand("version", f"must be a whole number in 1..{MAX_VERSION}")
    return version


def status_at(events: Sequence[RecordedEvent], when: datetime | int) -> CommandStatus | None:
    """Fold a stream up to a version, or up to the last event that had occurred by an instant."""
    if isinstance(when, int):
        until = when if when <= len(events) else 0
    else:
        until = max((event.version for event in events if event.occurred_at <= when), default=0)
    return replay([CODEC.decode(event) for event in events[:until]]) if until else None
