"""Commands as rows for COPY, many thousand a second and each of them valid: `verify` holds over what is copied."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final, LiteralString, NamedTuple

from psycopg.sql import SQL, Composed, Identifier

from benchmarks import queries
from benchmarks.life import Life, command_id, life
from eventstore.event import StreamEvent
from eventstore.hashing import GENESIS_HASH, event_hash
from registry.command_status import COMMAND_STATUS

__all__ = ["COPY_EVENTS", "COPY_EVENTS_OUT", "COPY_STATUSES", "VACUUM", "Batch", "batch"]

_EVENTS: Final = Identifier("command_registry", "events")
_EVENT_COLUMNS: Final = ("stream_id", "version", "type", "schema_version", "occurred_at", "data", "metadata", "hash")


def _copy(statement: LiteralString, table: Identifier, columns: Iterable[str]) -> Composed:
    return SQL(statement).format(table=table, columns=SQL(", ").join(map(Identifier, columns)))


COPY_EVENTS: Final = _copy(queries.COPY, _EVENTS, _EVENT_COLUMNS)
COPY_EVENTS_OUT: Final = _copy(queries.COPY_OUT, _EVENTS, _EVENT_COLUMNS)
COPY_STATUSES: Final = _copy(queries.COPY, COMMAND_STATUS.identifier, COMMAND_STATUS.projection.columns)
VACUUM: Final = tuple(SQL(queries.VACUUM).format(table=table) for table in (_EVENTS, COMMAND_STATUS.identifier))


class Batch(NamedTuple):
    """Commands that have lived: their events and their statuses, in the text format of COPY."""

    numbers: range
    events: bytes
    statuses: bytes


def batch(numbers: range, lived: Life = life) -> Batch:
    """Make numbered commands that have `lived`, all created now.

    One of them is made by the registry's own code. The others differ from it in their id alone, so its texts serve
    them, too; what is made for each is the chain of hashes.
    """
    sample = command_id(numbers.start)
    writes = lived(sample, datetime.now(UTC))
    events = [write.event for write in writes]
    statuses = _line(COMMAND_STATUS.projection.row(writes[-1].status))
    ids = [command_id(number) for number in numbers]
    return Batch(
        numbers,
        "".join(line for each in ids for line in _event_lines(events, sample, each)).encode(),
        "".join(statuses.replace(sample, each) for each in ids).encode(),
    )


def _event_lines(events: Iterable[StreamEvent], sample: str, stream_id: str) -> Iterable[str]:
    previous = GENESIS_HASH
    for event in events:
        data = event.data.replace(sample, stream_id)
        facts = (stream_id, event.version, event.type, event.schema_version, event.occurred_at, data, event.metadata)
        previous = event_hash(previous, *facts)
        yield _line((*facts, previous))


def _line(values: Iterable[object]) -> str:
    return "\t".join(map(_text, values)) + "\n"


def _text(value: object) -> str:
    if value is None:
        return r"\N"
    if isinstance(value, bytes):
        return rf"\\x{value.hex()}"
    return str(value).replace("\\", r"\\")  # JSON writes a tab or a line feed as \t and \n
