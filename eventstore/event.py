"""The records of the log: what is appended, and what is read back."""

import unicodedata
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

import orjson

from eventstore.errors import InvalidEvent

__all__ = [
    "MAX_ID_LENGTH",
    "MAX_STREAM_VERSION",
    "LogPosition",
    "NewEvent",
    "RecordedEvent",
    "StreamEnd",
    "StreamEvent",
    "check_instant",
    "check_json_text",
    "check_name",
    "name_problem",
    "plain_text",
]

MAX_ID_LENGTH = 255
"""Longest stream id, event type or other name, in characters."""

MAX_SCHEMA_VERSION = 2**15 - 1
MAX_STREAM_VERSION = 2**31 - 1


def name_problem(value: object) -> str | None:
    """Say what keeps a value from being an id or a name; None when nothing does.

    Control characters would break the lines that are hashed, and NUL and lone surrogates are no text for Postgres.
    """
    if not isinstance(value, str):
        return f"must be text, not {type(value).__name__}"
    if not value:
        return "must not be empty"
    if len(value) > MAX_ID_LENGTH:
        return f"must be at most {MAX_ID_LENGTH} characters, not {len(value)}"
    if value.isascii() and value.isprintable():
        return None
    for index, character in enumerate(value):
        category = unicodedata.category(character)
        if category == "Cc":
            return f"must not hold control characters (U+{ord(character):04X} at index {index})"
        if category == "Cs":
            return f"must not hold lone surrogates (U+{ord(character):04X} at index {index})"
    return None


def check_name(field: str, value: object) -> str:
    """Return a value that can be an id or a name as plain text.

    Raises:
        InvalidEvent: it cannot; the error names `field`.
    """
    problem = name_problem(value)
    if problem is not None:
        raise InvalidEvent(field, problem)
    return plain_text(value)


def plain_text(value: object) -> str:
    """Return a text as it is; `str` would ask a member of an enumeration for its name."""
    return str.__str__(value)


def check_instant(field: str, value: datetime) -> datetime:
    """Return an instant in UTC, to the microsecond, as a datetime and not as something derived from it.

    Raises:
        InvalidEvent: it is naive, outside the years 1..9999 in UTC, or finer than microseconds; the error names it.
    """
    if value.tzinfo is UTC and type(value) is datetime:
        return value
    try:
        naive = value.utcoffset() is None
        given = value if naive else value.astimezone(UTC)
        instant = _plain_instant(given)
    except OverflowError:
        raise InvalidEvent(field, "must lie in the years 1..9999 in UTC") from None
    except (TypeError, ValueError, NotImplementedError) as error:  # what a time zone of somebody's own raises
        raise InvalidEvent(field, f"must have a time zone that knows its offset: {error}") from None
    if naive:
        raise InvalidEvent(field, "must have a time zone, such as datetime.now(UTC) has")
    if instant != given:
        raise InvalidEvent(field, "must be an instant to the microsecond, and no finer")
    return instant


def _plain_instant(value: datetime) -> datetime:
    """Make a datetime of something derived from it, such as freezegun's or pandas'."""
    if type(value) is datetime:
        return value
    return datetime(
        value.year, value.month, value.day, value.hour, value.minute, value.second, value.microsecond, value.tzinfo
    )


def check_json_text(field: str, value: str) -> None:
    """Check that a text is JSON (RFC 8259), as Postgres will.

    Raises:
        InvalidEvent: it is not; the error names `field`.
    """
    try:
        orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise InvalidEvent(field, f"must be JSON: {error}") from None


class LogPosition(NamedTuple):
    """A place in the log; places compare in the order of the log."""

    transaction_id: int
    position: int


class StreamEnd(NamedTuple):
    """The last event of a stream: version 1 or more, and its hash of 32 bytes."""

    version: int
    hash: bytes


@dataclass(frozen=True, slots=True)
class NewEvent:
    """An event to append. `data` and `metadata` are JSON texts, stored and hashed as they are.

    Raises:
        InvalidEvent: the type is no name, the schema version is not in 1..32767, `occurred_at` is naive or outside the
            years 1..9999 in UTC, or a text is not JSON.
    """

    type: str
    data: str
    metadata: str
    occurred_at: datetime
    schema_version: int = 1

    def __post_init__(self) -> None:
        check_name("type", self.type)
        if not 1 <= self.schema_version <= MAX_SCHEMA_VERSION:
            raise InvalidEvent("schema_version", f"must be in 1..{MAX_SCHEMA_VERSION}, not {self.schema_version}")
        object.__setattr__(self, "occurred_at", check_instant("occurred_at", self.occurred_at))
        check_json_text("data", self.data)
        check_json_text("metadata", self.metadata)


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """An event at its place in a stream, hashed onto the one before it."""

    stream_id: str
    version: int
    type: str
    schema_version: int
    occurred_at: datetime
    data: str
    metadata: str
    hash: bytes

    def recorded(self, position: int, transaction_id: int, recorded_at: datetime) -> "RecordedEvent":
        """Add what the log added when it took the event in."""
        return RecordedEvent(
            self.stream_id,
            self.version,
            self.type,
            self.schema_version,
            self.occurred_at,
            self.data,
            self.metadata,
            self.hash,
            position,
            transaction_id,
            recorded_at,
        )


@dataclass(frozen=True, slots=True)
class RecordedEvent(StreamEvent):
    """An event as the log holds it, with what the log added."""

    position: int
    transaction_id: int
    recorded_at: datetime

    @property
    def log_position(self) -> LogPosition:
        """Where it stands in the log."""
        return LogPosition(self.transaction_id, self.position)
