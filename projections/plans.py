"""Writing and reading inline projections, as plans (see `eventstore.steps`).

An inline projection has one row for each stream, written by the statement that appends the stream's events.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Generic, LiteralString, TypeVar

from psycopg.sql import SQL, Identifier

from eventstore import plans as log
from eventstore import queries as log_queries
from eventstore.errors import SchemaMismatch, UnknownEventType
from eventstore.event import StreamEnd, StreamEvent
from eventstore.steps import Plan, Row, Sender, Step
from projections import queries
from projections.projection import Values
from projections.table import Table

__all__ = [
    "Also",
    "Loaded",
    "append",
    "append_statement",
    "append_step",
    "check",
    "load",
    "load_each",
    "load_many",
    "read_rows",
]

S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Loaded(Generic[S]):
    """A stream's end, and the state folded from all events up to it."""

    end: StreamEnd
    state: S


@dataclass(frozen=True, slots=True)
class Also:
    """A further INSERT in the statement of an append: it happens with the events, or not at all."""

    sql: LiteralString
    params: tuple[object, ...]


def load(table: Table[S], stream_id: str) -> Plan[Loaded[S] | None]:
    """Load a stream's end and state; None when it has no events. See `load_many`."""
    return (yield from load_many(table, [stream_id])).get(stream_id)


def load_many(table: Table[S], stream_ids: Sequence[str]) -> Plan[dict[str, Loaded[S]]]:
    """Load the ends and states of streams, as of one moment; without those that have no events.

    The row gives the state; where it lags behind the log (another version of the software wrote last), the missing
    events are folded in, and the next upsert repairs the row.
    """
    one = len(stream_ids) == 1
    rows = yield Step(table.load_one, (stream_ids[0],)) if one else Step(table.load, (list(stream_ids),))
    loaded = {}
    for stream_id, version, event_hash, *row in rows:
        loaded[stream_id] = yield from _repaired(table, stream_id, StreamEnd(version, event_hash), tuple(row))
    return loaded


UNREADABLE: Final = (UnknownEventType, ValueError, AssertionError)
"""What reading a stream raises that a later version of the software, or a hand in the tables, has written."""


def load_each(table: Table[S], stream_ids: Sequence[str]) -> Plan[dict[str, Loaded[S] | Exception]]:
    """Load streams as `load_many` does; or of one that cannot be read, why: the others still are."""
    try:
        return {**(yield from load_many(table, stream_ids))}
    except UNREADABLE as error:
        if len(stream_ids) == 1:
            return {stream_ids[0]: error}
    loaded: dict[str, Loaded[S] | Exception] = {}
    for stream_id in stream_ids:
        loaded |= yield from load_each(table, [stream_id])
    return loaded


def _repaired(table: Table[S], stream_id: str, end: StreamEnd, row: Row) -> Plan[Loaded[S]]:
    values = table.values(row)
    state, known = (None, 0) if values[0] is None else (table.projection.state(values), table.stream_version(values))
    if known < end.version:
        for event in (yield from log.read_stream(stream_id, known)):
            state, end = table.projection.fold(state, event), StreamEnd(event.version, event.hash)
    if state is None:
        raise AssertionError(f"stream {stream_id!r} has events and no state")
    return Loaded(end, state)


def append(
    tables: Sequence[tuple[Table[S], Values]], end: StreamEnd | None, events: Sequence[StreamEvent], *also: Also
) -> Plan[None]:
    """Append chained events of one stream and write the rows folded from them, in one statement.

    Raises:
        Refused: another event has the place, or the one before it is not there; nothing was written.
        OutcomeUnknown: the connection was lost, and nobody could be asked in time.
    """
    step = append_step([(table, [row]) for table, row in tables], [(event, end) for event in events], *also)
    yield from log.write(step, events)


def append_step(
    tables: Sequence[tuple[Table[Any], Sequence[Values]]],
    events: Sequence[tuple[StreamEvent, StreamEnd | None]],
    *also: Also,
    patience: int | None = None,
    sender: Sender | None = None,
) -> Step:
    """Make the statement that appends chained events of any streams, and writes the rows folded from them.

    Each event comes with the end that its stream had before them all. `patience`: how long it may wait for other
    transactions, in milliseconds (None: as long as the session says). `sender`: see `Step`.
    """
    single = len(events) == 1 and all(len(rows) == 1 for _, rows in tables)
    params: list[object] = []
    for table, rows in tables:
        params += rows[0] if single else table.upsert_params(rows)
    for insert in also:
        params += insert.params
    params += log.event_params_single(*events[0], patience) if single else log.events_params(events, patience)
    statement = append_statement(tuple(table for table, _ in tables), tuple(insert.sql for insert in also), single)
    return Step(statement, params, writes=True, sender=sender)


@lru_cache
def append_statement(tables: tuple[Table[Any], ...], also: tuple[LiteralString, ...], single: bool) -> bytes:
    """Make the text of an append: of a single event and row a table, or of many.

    The events come last, as the statement itself: they are inserted before anything that stands in its WITH.
    """
    parts = [
        SQL("{} AS ({})").format(Identifier(table.name), table.upsert_row if single else table.upsert)
        for table in tables
    ]
    parts += [SQL("{} AS ({})").format(Identifier(f"also_{n}"), SQL(insert)) for n, insert in enumerate(also, 1)]
    events = log_queries.INSERT_EVENT if single else log_queries.INSERT_EVENTS
    return ((SQL("WITH ") + SQL(", ").join(parts) if parts else SQL("")) + SQL(events)).as_bytes()


def read_rows(table: Table[S], keys: Sequence[str]) -> Plan[dict[str, Values]]:
    """Read the rows of many keys, as of one moment; without those that have none. `Projection.state` makes states."""
    rows = yield Step(table.select_rows, (list(keys),))
    return {row[0]: table.values(row) for row in rows}


def check(table: Table[S]) -> Plan[None]:
    """Check that the read model of this version is there.

    Raises:
        SchemaMismatch: it is not; the error names the command to run.
    """
    projection = table.projection
    [(registered,)] = yield Step(queries.IS_REGISTERED, (projection.name, projection.version))
    [(exists,)] = yield Step(queries.TABLE_EXISTS, (table.full_name,))
    if not (registered and exists):
        raise SchemaMismatch(
            f"read model {projection.name}, version {projection.version}, is not in this database, or not whole yet",
            f"run: command-registry migrate (or, with workers: projections rebuild {projection.name})",
        )
