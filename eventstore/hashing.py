"""The hash that ties an event to its stream, and the check of a stream's chain.

An event's hash is SHA-256 over one zero byte and these lines, each ended by a line feed:

    1                              the version of this format
    <hex of the previous hash>     64 zeros for a stream's first event
    <stream_id>
    <version>
    <type>
    <schema_version>
    <occurred_at>                  whole microseconds since 1970-01-01T00:00:00Z
    <hex of sha256(metadata)>      of the JSON text as stored, in UTF-8
    <hex of sha256(data)>          likewise

The zero byte keeps the hash of an event apart from any other hash of text. As data and metadata go in by their own
hashes, either can be erased without breaking the chain. Stream ids and types hold no control characters, so no two
different events give the same lines. Anyone can compute it again with `printf | sha256sum`.
"""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from hashlib import sha256

from eventstore.errors import InvalidEvent
from eventstore.event import MAX_STREAM_VERSION, NewEvent, StreamEnd, StreamEvent, check_name

__all__ = ["GENESIS_HASH", "chain", "event_hash", "microseconds", "rehash"]

GENESIS_HASH = bytes(32)
"""What stands as the previous hash of a stream's first event."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def microseconds(instant: datetime) -> int:
    """Count whole microseconds since 1970 UTC, exactly."""
    return (instant - _EPOCH) // _MICROSECOND


def event_hash(
    previous: bytes,
    stream_id: str,
    version: int,
    event_type: str,
    schema_version: int,
    occurred_at: datetime,
    data: str,
    metadata: str,
) -> bytes:
    """Hash one event onto the hash of the one before it (format: this module's docstring)."""
    lines = (
        f"\x001\n{previous.hex()}\n{stream_id}\n{version}\n{event_type}\n{schema_version}\n{microseconds(occurred_at)}\n"
        f"{sha256(metadata.encode()).hexdigest()}\n{sha256(data.encode()).hexdigest()}\n"
    )
    return sha256(lines.encode()).digest()


def chain(stream_id: str, end: StreamEnd | None, events: Iterable[NewEvent]) -> tuple[StreamEvent, ...]:
    """Give new events their places after the end of a stream (None: an empty stream), each hashed onto the last.

    Raises:
        InvalidEvent: the stream id is no name, or the stream is full.
    """
    check_name("stream_id", stream_id)
    version, previous = end or StreamEnd(0, GENESIS_HASH)
    chained = []
    for event in events:
        if version == MAX_STREAM_VERSION:
            raise InvalidEvent("version", f"stream {stream_id!r} is full")
        version += 1
        previous = event_hash(
            previous,
            stream_id,
            version,
            event.type,
            event.schema_version,
            event.occurred_at,
            event.data,
            event.metadata,
        )
        chained.append(
            StreamEvent(
                stream_id,
                version,
                event.type,
                event.schema_version,
                event.occurred_at,
                event.data,
                event.metadata,
                previous,
            )
        )
    return tuple(chained)


def rehash(event: StreamEvent, previous: bytes) -> bytes:
    """Compute again, from its columns, the hash that a stored event should have."""
    return event_hash(
        previous,
        event.stream_id,
        event.version,
        event.type,
        event.schema_version,
        event.occurred_at,
        event.data,
        event.metadata,
    )
