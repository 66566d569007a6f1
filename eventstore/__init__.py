"""Streams of immutable events in a Postgres log, for any event-sourced domain."""

from eventstore.codec import EventCodec, EventType, Upcaster, encode_json, json_text
from eventstore.database import AsyncDatabase, Database
from eventstore.errors import (
    Conflict,
    EventStoreError,
    InvalidDsn,
    InvalidEvent,
    OutcomeUnknown,
    SchemaMismatch,
    Unavailable,
    UnknownEventType,
    UpcastFailed,
)
from eventstore.event import LogPosition, NewEvent, RecordedEvent, StreamEnd, StreamEvent
from eventstore.memory import AsyncMemoryEventStore, MemoryEventStore
from eventstore.postgres import AsyncPostgresEventStore, PostgresEventStore
from eventstore.protocol import LOG_START, AsyncEventStore, EventStore

__all__ = [
    "LOG_START",
    "AsyncDatabase",
    "AsyncEventStore",
    "AsyncMemoryEventStore",
    "AsyncPostgresEventStore",
    "Conflict",
    "Database",
    "EventCodec",
    "EventStore",
    "EventStoreError",
    "EventType",
    "InvalidDsn",
    "InvalidEvent",
    "LogPosition",
    "MemoryEventStore",
    "NewEvent",
    "OutcomeUnknown",
    "PostgresEventStore",
    "RecordedEvent",
    "SchemaMismatch",
    "StreamEnd",
    "StreamEvent",
    "Unavailable",
    "UnknownEventType",
    "UpcastFailed",
    "Upcaster",
    "encode_json",
    "json_text",
]
