"""Append and read, as plans: generators of steps that do no I/O (see `eventstore.steps`)."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from eventstore import queries
from eventstore.errors import Conflict, InvalidEvent, OutcomeUnknown, Unavailable
from eventstore.event import (
    LogPosition,
    NewEvent,
    RecordedEvent,
    StreamEnd,
    StreamEvent,
    check_name,
    name_problem,
)
from eventstore.hashing import chain
from eventstore.protocol import LOG_START
from eventstore.steps import Lost, Plan, Refused, Row, Step

__all__ = [
    "Writer",
    "append",
    "check_limit",
    "event_params",
    "event_params_single",
    "events_params",
    "log_end",
    "oldest_writer",
    "read_all_streams",
    "read_log",
    "read_stream",
    "read_streams_to",
    "read_these_streams",
    "recorded_event",
    "sample_streams",
    "stream_end",
    "write",
]

MAX_PAGE = 100_000


def append(stream_id: str, expected_version: int, events: Sequence[NewEvent]) -> Plan[tuple[RecordedEvent, ...]]:
    """Append events to a stream that is at the expected version (0: it has no events).

    Raises:
        Conflict: the stream is at another version.
        InvalidEvent: the stream id is no name.
        OutcomeUnknown: the connection was lost, and what became of the append could not be found out in time.
    """
    check_name("stream_id", stream_id)
    end = yield from stream_end(stream_id)
    actual = end.version if end else 0
    if actual != expected_version:
        raise Conflict(stream_id, expected_version, actual)
    chained = chain(stream_id, end, events)
    if not chained:
        return ()
    try:
        rows = yield from write(Step(queries.APPEND, event_params(chained, end), writes=True), chained)
    except Refused:
        end = yield from stream_end(stream_id)
        actual = end.version if end else 0  # still as expected where this transaction's isolation hides the other
        raise Conflict(stream_id, expected_version, actual if actual != expected_version else None) from None
    return tuple(_recorded(event, row) for event, row in zip(chained, sorted(rows), strict=True))


def write(step: Step, events: Sequence[StreamEvent]) -> Plan[list[Row]]:
    """Take a step that appends events of one stream, all or none, and find out what became of it if the line breaks.

    The hash is the proof: an event found at (stream, version) with the hash of mine is my own commit.

    Raises:
        Refused: another event has the place, or the one before it is not there; nothing was written.
        OutcomeUnknown: the connection was lost, and nobody could be asked in time.
    """
    first, lost = events[0], False
    while True:
        refused: Refused | None = None
        try:
            return (yield step)
        except Lost:
            lost = True
        except Refused as error:
            if not lost:
                raise
            refused = error  # perhaps by my own commit, which was still under way when I asked
        except Unavailable as error:
            if not lost:
                raise
            raise OutcomeUnknown(first.stream_id, first.version, first.hash) from error
        try:
            rows = yield Step(queries.FIND_APPENDED, (first.stream_id, first.version, len(events)))
        except Unavailable as error:
            raise OutcomeUnknown(first.stream_id, first.version, first.hash) from error
        if rows and rows[0][2] == first.hash:
            return [(stream_id, version, *recorded) for stream_id, version, _, *recorded in rows]
        if refused is not None:
            raise refused


def read_stream(stream_id: str, after_version: int = 0, limit: int | None = None) -> Plan[list[RecordedEvent]]:
    """Read a stream forwards, from the event after `after_version` on."""
    most = None if limit is None else check_limit(limit)
    if name_problem(stream_id) is not None:
        return []
    rows = yield Step(queries.READ_STREAM, (stream_id, after_version, most))
    return [recorded_event(row) for row in rows]


def read_log(after: LogPosition, limit: int) -> Plan[list[RecordedEvent]]:
    """Read the log in commit order, only what no transaction still under way can come before."""
    rows = yield Step(queries.READ_LOG, (str(after.transaction_id), after.position, check_limit(limit)))
    return [recorded_event(row) for row in rows]


def read_all_streams(after: tuple[str, int], limit: int) -> Plan[list[RecordedEvent]]:
    """Read every stream, ordered by stream id (its bytes) and version, from after (stream id, version) on."""
    rows = yield Step(queries.READ_ALL_STREAMS, (*after, check_limit(limit)))
    return [recorded_event(row) for row in rows]


def read_streams_to(after: tuple[str, int], last: str, limit: int) -> Plan[list[StreamEvent]]:
    """Read streams as `read_all_streams` does, up to one and without what the log added to their events."""
    rows = yield Step(queries.READ_STREAMS_TO, (*after, last, check_limit(limit)))
    return [_stream_event(row) for row in rows]


def read_these_streams(stream_ids: Sequence[str]) -> Plan[list[RecordedEvent]]:
    """Read whole streams, ordered as `read_all_streams` does."""
    rows = yield Step(queries.READ_THESE_STREAMS, (list(stream_ids),))
    return [recorded_event(row) for row in rows]


def sample_streams(most: int) -> Plan[list[str]]:
    """Choose some streams at random, `most` at most: all of them, where there are few."""
    [(events,)] = yield Step(queries.ESTIMATE_EVENTS)
    share = min(100.0, 100.0 * most * 20 / max(events, 1))
    rows = yield Step(queries.SAMPLE_STREAMS, (share, most))
    return [stream_id for (stream_id,) in rows]


def log_end() -> Plan[LogPosition]:
    """Read where the log ends: its last event that is committed, whether or not it can be read in order already."""
    rows = yield Step(queries.LOG_END)
    return LogPosition(int(rows[0][0]), rows[0][1]) if rows else LOG_START


class Writer(NamedTuple):
    """A transaction that writes: its name ("pid 77"), its age in seconds (None: not to be seen), and how to end it."""

    name: str
    seconds: float | None
    database: str
    user: str | None
    remedy: str
    query_start: datetime | None


def oldest_writer() -> Plan[Writer | None]:
    """Find the oldest open transaction that writes, in any database of the server: readers of the log wait for it."""
    rows = yield Step(queries.OLDEST_WRITER)
    return Writer(*rows[0]) if rows else None


def stream_end(stream_id: str) -> Plan[StreamEnd | None]:
    """Read the version and hash of a stream's last event; None when it has no events."""
    if name_problem(stream_id) is not None:
        return None
    rows = yield Step(queries.STREAM_END, (stream_id,))
    return StreamEnd(*rows[0]) if rows else None


def check_limit(limit: int) -> int:
    """Check how many events are asked for at once: 1..100,000.

    Raises:
        InvalidEvent: it is another number.
    """
    if not 1 <= limit <= MAX_PAGE:
        raise InvalidEvent("limit", f"must be in 1..{MAX_PAGE}")
    return limit


def event_params(events: Sequence[StreamEvent], end: StreamEnd | None) -> tuple[object, ...]:
    """Give the parameters of `queries.INSERT_EVENTS`, for events of one stream that follow its end."""
    return events_params([(event, end) for event in events])


def events_params(
    events: Sequence[tuple[StreamEvent, StreamEnd | None]], patience: int | None = None
) -> tuple[object, ...]:
    """Give the parameters of `queries.INSERT_EVENTS`: events of any streams, each with the end its stream had before.

    `patience`: how long the statement may wait for other transactions, in milliseconds.
    """
    columns = zip(*[_event_values(event, end) for event, end in events], strict=True)
    return (*map(list, columns), _milliseconds(patience))


def event_params_single(event: StreamEvent, end: StreamEnd | None, patience: int | None = None) -> tuple[object, ...]:
    """Give the parameters of `queries.INSERT_EVENT`, as `events_params` does."""
    return (*_event_values(event, end), _milliseconds(patience))


def _milliseconds(patience: int | None) -> str | None:
    return None if patience is None else f"{patience}ms"


def _event_values(event: StreamEvent, end: StreamEnd | None) -> tuple[object, ...]:
    end_version, end_hash = end or (0, None)
    return (
        event.stream_id,
        event.version,
        event.type,
        event.schema_version,
        event.occurred_at,
        event.data,
        event.metadata,
        event.hash,
        end_version,
        end_hash,
    )


def recorded_event(row: Row) -> RecordedEvent:
    """Make an event of the columns that the queries select."""
    stream_id, version, event_type, schema_version, occurred_at, data, metadata, event_hash, *log = row
    position, transaction_id, recorded_at = log
    return RecordedEvent(
        stream_id,
        version,
        event_type,
        schema_version,
        occurred_at.replace(tzinfo=UTC),
        data,
        metadata,
        event_hash,
        position,
        int(transaction_id),
        recorded_at.replace(tzinfo=UTC),
    )


def _stream_event(row: Row) -> StreamEvent:
    stream_id, version, event_type, schema_version, occurred_at, data, metadata, event_hash = row
    at = occurred_at.replace(tzinfo=UTC)
    return StreamEvent(stream_id, version, event_type, schema_version, at, data, metadata, event_hash)


def _recorded(event: StreamEvent, row: Row) -> RecordedEvent:
    _, _, position, transaction_id, recorded_at = row
    return event.recorded(position, int(transaction_id), recorded_at.replace(tzinfo=UTC))
