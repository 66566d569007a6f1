"""Writing and reading inline projections, as plans (see `eventstore.steps`).

An inline projection has one row for each stream, written by the statement that appends the stream's events.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, LiteralString, TypeVar

from psycopg.sql import SQL, Composed, Identifier

from eventstore import plans as log
from eventstore import queries as log_queries
from eventstore.errors import SchemaMismatch
from eventstore.event import StreamEnd, StreamEvent
from eventstore.steps import Plan, Row, Step
from projections import queries
from projections.projection import Values
from projections.table import Table

__all__ = ["Also", "Loaded", "append", "build", "check", "load", "migrate", "read_row"]

S = TypeVar("S")

PAGE = 1_000  # events: at most some hundred MB, were each as large as can be


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
    """Load a stream's end and state; None when it has no events.

    The row gives the state; where it lags behind the log (another version of the software wrote last), the missing
    events are folded in, and the next upsert repairs the row.
    """
    rows = yield Step(table.load, (stream_id, stream_id))
    if not rows:
        return None
    version, event_hash, *row = rows[0]
    end = StreamEnd(version, event_hash)
    values = table.values(tuple(row))
    state, known = (None, 0) if values[0] is None else (table.projection.state(values), table.stream_version(values))
    if known < version:
        for event in (yield from log.read_stream(stream_id, known)):
            state, end = table.projection.fold(state, event), StreamEnd(event.version, event.hash)
    if state is None:
        raise AssertionError(f"stream {stream_id!r} has events and no state")
    return Loaded(end, state)


def append(
    tables: Sequence[tuple[Table[S], Values]], end: StreamEnd | None, events: Sequence[StreamEvent], *also: Also
) -> Plan[list[Row]]:
    """Append chained events of one stream and write the rows folded from them, in one statement.

    Raises:
        Refused: another event has the place, or the one before it is not there; nothing was written.
        OutcomeUnknown: the connection was lost, and nobody could be asked in time.
    """
    params: list[object] = [*log.event_params(events, end)]
    for table, row in tables:
        params += table.upsert_params([row])
    for insert in also:
        params += insert.params
    statement = _append_statement(tuple(table for table, _ in tables), tuple(insert.sql for insert in also))
    return (yield from log.write(Step(statement, params, writes=True), events))


@lru_cache
def _append_statement(tables: tuple[Table[Any], ...], also: tuple[LiteralString, ...]) -> bytes:
    parts = [SQL("appended AS ({})").format(SQL(log_queries.INSERT_EVENTS))]
    parts += [SQL("{} AS ({})").format(Identifier(table.name), table.upsert) for table in tables]
    parts += [SQL("{} AS ({})").format(Identifier(f"also_{n}"), SQL(insert)) for n, insert in enumerate(also, 1)]
    return (SQL("WITH ") + SQL(", ").join(parts) + SQL(log_queries.SELECT_APPENDED)).as_bytes()


def read_row(table: Table[S], key: str) -> Plan[S | None]:
    """Read the state in the row of a key; None when there is no row."""
    rows = yield Step(table.select_row, (key,))
    return table.projection.state(table.values(rows[0])) if rows else None


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
            f"read model {projection.name}, version {projection.version}, is not in this database",
            "run: command-registry migrate",
        )


def migrate(table: Table[S], progress: Callable[[int], None] = lambda _: None) -> Plan[None]:
    """Create what is missing of a read model; build it from the log when its table was not there."""
    [(exists,)] = yield Step(queries.TABLE_EXISTS, (table.full_name,))
    [(registered,)] = yield Step(queries.IS_REGISTERED, (table.projection.name, table.projection.version))
    if not (exists and registered):
        yield from _in_transaction(_statements(table.create()))
        yield from build(table, progress)
        yield from _in_transaction(_put_in_force(table))
    yield from _in_transaction(_statements(table.grant()))  # each time: the roles may have come since


def _put_in_force(table: Table[S]) -> Plan[None]:
    [(in_force,)] = yield Step(queries.REGISTER, (table.projection.name, table.projection.version))
    if in_force:
        yield Step(table.create_view(), None)


def _statements(statements: Iterable[Composed]) -> Plan[None]:
    for statement in statements:
        yield Step(statement, None)


def _in_transaction(steps: Plan[None]) -> Plan[None]:
    yield Step(queries.BEGIN)
    yield Step(queries.TRUSTED_PATH)
    yield Step(queries.LOCK_MIGRATIONS)
    yield from steps
    yield Step(log_queries.COMMIT)


def build(table: Table[S], progress: Callable[[int], None] = lambda _: None) -> Plan[None]:
    """Fold every stream of the log into its row; `progress` is told how many events each page had."""
    after, state = ("", 0), None
    while events := (yield from log.read_all_streams(after, PAGE)):
        rows = {}
        for event in events:
            state = table.projection.fold(state if event.version > 1 else None, event)
            rows[event.stream_id] = table.projection.row(state)
        yield Step(table.upsert, table.upsert_params(list(rows.values())))
        after = (events[-1].stream_id, events[-1].version)
        progress(len(events))
