"""Everything the event store can refuse or fail with.

EventStoreError
├── Conflict                the stream has moved on; read its end and decide again
├── InvalidEvent            (ValueError) an event that the log could not keep for ever
├── UnknownEventType        (LookupError) a stored event that no registered type reads
├── UpcastFailed            (ValueError) a stored event that its upcasters did not bring up to date
├── InvalidDsn              (ValueError) a connection string that cannot be read
├── SchemaMismatch          the database's schema is not the one this code was written for
└── Unavailable             (ConnectionError) the server could not be reached, or was lost
    └── OutcomeUnknown      ... while a commit was in flight, and nobody could be asked since

Every error has a `code`, the same wherever it is told (as JSON-RPC's `data.code`, for one).
"""

from typing import ClassVar

__all__ = [
    "Conflict",
    "EventStoreError",
    "InvalidDsn",
    "InvalidEvent",
    "OutcomeUnknown",
    "SchemaMismatch",
    "Unavailable",
    "UnknownEventType",
    "UpcastFailed",
]


class EventStoreError(Exception):
    """Base of every error that the event store raises."""

    code: ClassVar[str] = "GENERIC_ERROR"


class Conflict(EventStoreError):
    """Stream `stream_id` is at version `actual`, not at the expected version."""

    code = "CONFLICT"

    def __init__(self, stream_id: str, expected: int, actual: int | None) -> None:
        """Carry the facts; `actual` is None when it was not read."""
        self.stream_id = stream_id
        self.expected = expected
        self.actual = actual
        found = "another version" if actual is None else f"version {actual}"
        super().__init__(f"stream {stream_id!r} was expected at version {expected}, and is at {found}: read it again")


class InvalidEvent(EventStoreError, ValueError):
    """An event, or an id, that could not be stored, hashed and read back equal."""

    def __init__(self, field: str, problem: str) -> None:
        """Carry the name of the field and what is wrong with it."""
        self.field = field
        self.problem = problem
        super().__init__(f"{field}: {problem}")


class UnknownEventType(EventStoreError, LookupError):
    """The log holds an event of a type, or of a schema version, that this code cannot read."""

    def __init__(self, event_type: str, schema_version: int) -> None:
        """Carry the type and schema version as stored."""
        self.event_type = event_type
        self.schema_version = schema_version
        super().__init__(
            f"no reader for event type {event_type!r}, schema version {schema_version}: "
            "run the version of the software that wrote it, or a later one"
        )


class UpcastFailed(EventStoreError, ValueError):
    """A stored event that its upcasters did not bring to the schema version in force."""

    def __init__(
        self, stream_id: str, version: int, event_type: str, versions: tuple[int, int], cause: Exception
    ) -> None:
        """Carry which event it is, the schema versions it has and should have had, and what went wrong."""
        self.stream_id = stream_id
        self.version = version
        self.event_type = event_type
        self.schema_version, self.current_version = versions
        super().__init__(
            f"version {version} of stream {stream_id!r} ({event_type}) cannot be upcast "
            f"from schema version {self.schema_version} to {self.current_version}: {type(cause).__name__}: {cause}"
        )


class InvalidDsn(EventStoreError, ValueError):
    """A connection string that cannot be read; the message does not repeat it, since it may hold a password."""

    def __init__(self) -> None:
        """Say what one looks like."""
        super().__init__(
            "the DSN cannot be read: give postgresql://USER@HOST:PORT/DATABASE (special characters percent-encoded), "
            "or host=... dbname=... user=..."
        )


class SchemaMismatch(EventStoreError):
    """The database's schema is missing, older or newer than this code needs."""

    def __init__(self, problem: str, remedy: str) -> None:
        """Carry what is wrong and what mends it."""
        self.problem = problem
        self.remedy = remedy
        super().__init__(f"{problem}; {remedy}")


class Unavailable(EventStoreError, ConnectionError):
    """The server could not be reached, or did not answer, within the deadline.

    Nothing was written, unless it is an `OutcomeUnknown`.
    """

    code = "UNAVAILABLE"


class OutcomeUnknown(Unavailable):
    """The connection broke while events were being committed, and the server could not be asked what became of them.

    The event `hash` at (`stream_id`, `version`) is there if they were committed. A call that says what is to be
    (complete, update, a creation with its key) may be repeated; one that counts may count twice.
    """

    code = "OUTCOME_UNKNOWN"

    def __init__(self, stream_id: str, version: int, event_hash: bytes) -> None:
        """Carry where to look: the first event of the append, and its hash."""
        self.stream_id = stream_id
        self.version = version
        self.hash = event_hash
        super().__init__(
            f"connection lost while version {version} of stream {stream_id!r} was being committed "
            f"(event hash {event_hash.hex()}): read the stream to see whether it is there"
        )
