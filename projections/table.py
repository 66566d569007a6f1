"""A projection's table: its DDL, its upsert, and its rows as values."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC
from functools import cached_property
from typing import Any, Final, Generic, LiteralString, TypeVar

from psycopg.sql import SQL, Composable, Composed, Identifier

from eventstore.event import StreamEvent
from eventstore.steps import Row
from projections import queries
from projections.definition import check_definition
from projections.errors import PoisonEvent
from projections.projection import Projection, StreamProjection, Values

__all__ = ["SCHEMA", "Table"]

S = TypeVar("S")

SCHEMA: Final = "command_registry"


class Table(Generic[S]):
    """The table of one version of a projection. Holds no connection; every SQL text of it is made once.

    Raises:
        InvalidProjection: the projection cannot be made a table.
    """

    def __init__(self, projection: Projection[S]) -> None:
        check_definition(projection)
        self.projection = projection
        self.name = f"{projection.name}_v{projection.version}"
        self._columns = list(projection.columns)
        self._readers = [_reader(kind) for kind in projection.columns.values()]

    @property
    def inline(self) -> bool:
        """Whether every append writes it."""
        return isinstance(self.projection, StreamProjection) and self.projection.inline

    @property
    def full_name(self) -> str:
        """The table's name with its schema."""
        return f"{SCHEMA}.{self.name}"

    @property
    def identifier(self) -> Identifier:
        """The same, quoted, to make SQL of."""
        return Identifier(SCHEMA, self.name)

    def fold(self, state: S | None, event: StreamEvent) -> S:
        """Fold an event.

        Raises:
            PoisonEvent: the projection cannot.
        """
        try:
            return self.projection.fold(state, event)
        except Exception as error:  # whatever it is: it is the event's
            raise PoisonEvent(self.name, event, error) from error

    def create(self) -> Iterator[Composed]:
        """Give the statements that create the table, if it is missing."""
        columns = [_defined(name, kind) for name, kind in self.projection.columns.items()]
        yield self._sql(queries.CREATE_TABLE, columns=SQL(", ").join(columns))

    def create_indexes(self) -> Iterator[Composed]:
        """Give the statements that create what is missing of its indexes, and let the planner know the table."""
        for index in self.projection.indexes:
            name = Identifier("_".join([self.name, *index.columns]))
            statement = self._sql(queries.CREATE_INDEX, index=name, columns=_identifiers(index.columns))
            yield statement if index.where is None else statement + SQL(" WHERE ") + SQL(index.where)
        yield self._sql(queries.ANALYZE)

    @cached_property
    def view_query(self) -> Composed:
        """What the projection's view shows of this table."""
        view = self.projection.view
        return self._sql(queries.ALL_OF, columns=_identifiers(self._columns)) if view is None else self._sql(view)

    def truncate(self) -> Composed:
        """Give the statement that empties the table."""
        return self._sql(queries.TRUNCATE)

    def delete_unfounded(self) -> Composed:
        """Give the statement that deletes rows whose last event is not in the log."""
        return self._sql(queries.DELETE_UNFOUNDED)

    def drop(self) -> Composed:
        """Give the statement that drops the table."""
        return self._sql(queries.DROP_TABLE)

    def grant(self) -> Iterator[Composed]:
        """Give the statements that grant the rights on table and view to the roles that there are."""
        yield self._sql(queries.GRANT)
        yield SQL(queries.GRANT).format(table=self.view)

    @property
    def view(self) -> Identifier:
        """The name of the projection's view, quoted."""
        return Identifier(SCHEMA, self.projection.name)

    @cached_property
    def upsert(self) -> Composed:
        """The statement that writes rows, given as one array a column (`upsert_params`)."""
        return self._upsert(queries.MANY_ROWS, self._arrays, self._sql(queries.ORDERED))

    @cached_property
    def advance(self) -> bytes:
        """The statement that moves a projector's checkpoint (`queries.ADVANCE`) and, if it did, writes rows so, too."""
        upsert = self._upsert(queries.MANY_ROWS, self._arrays, SQL(queries.IF_KEPT) + self._sql(queries.ORDERED))
        return SQL(queries.ADVANCE_AND_WRITE).format(advance=SQL(queries.ADVANCE), upsert=upsert).as_bytes()

    @cached_property
    def upsert_row(self) -> Composed:
        """The same for one row, given by its values."""
        kinds = [SQL(_sent_as(kind)) for kind in self.projection.columns.values()]
        return self._upsert(queries.ONE_ROW, kinds, Composed([]))

    @property
    def _arrays(self) -> list[Composable]:
        return [SQL(_sent_as(kind)) + SQL("[]") for kind in self.projection.columns.values()]

    def _upsert(self, rows: LiteralString, kinds: Sequence[Composable], ordered: Composed) -> Composed:
        columns, key = self.projection.columns, self._columns[0]
        statement = self._sql(
            queries.UPSERT,
            columns=_identifiers(self._columns),
            values=SQL(", ").join(SQL("folded.{}").format(Identifier(name)) + _cast(columns[name]) for name in columns),
            rows=SQL(rows).format(parameters=SQL(", ").join(SQL("%s::") + kind for kind in kinds)),
            ordered=ordered,
            assignments=SQL(", ").join(
                SQL("{0} = excluded.{0}").format(Identifier(name)) for name in self._columns if name != key
            ),
        )
        by_stream = isinstance(self.projection, StreamProjection)
        return statement + SQL(queries.UNLESS_NEWER) if by_stream else statement

    def upsert_params(self, rows: Sequence[Values]) -> tuple[list[Any], ...]:
        """Turn rows into the parameters of `upsert`."""
        return tuple(map(list, zip(*rows, strict=True)))

    @cached_property
    def select_rows(self) -> bytes:
        """The statement that reads the rows of many keys."""
        return self._sql(queries.SELECT_ROWS, selected=self._selected).as_bytes()

    @cached_property
    def select_orphans(self) -> bytes:
        """The statement that finds the keys of rows that have no stream."""
        return self._sql(queries.SELECT_ORPHANS).as_bytes()

    @cached_property
    def sample_keys(self) -> bytes:
        """The statement that chooses so many keys at random (None: all)."""
        return self._sql(queries.SAMPLE_KEYS).as_bytes()

    @cached_property
    def count(self) -> bytes:
        """The statement that counts the rows."""
        return self._sql(queries.COUNT).as_bytes()

    @cached_property
    def load(self) -> bytes:
        """The statement that reads the ends of streams, and the rows of the same keys."""
        return self._load(queries.MANY_STREAMS)

    @cached_property
    def load_one(self) -> bytes:
        """The same for one stream."""
        return self._load(queries.ONE_STREAM)

    def _load(self, wanted: LiteralString) -> bytes:
        return self._sql(queries.LOAD, selected=self._selected, wanted=SQL(wanted)).as_bytes()

    def stream_version(self, values: Values) -> int:
        """Tell which version of its stream a row of an inline projection reflects."""
        return int(values[self._version_index])

    @cached_property
    def _version_index(self) -> int:
        return self._columns.index("version")

    def values(self, row: Row) -> Values:
        """Make values of a row as read."""
        return tuple(
            value if value is None or read is None else read(value)
            for value, read in zip(row, self._readers, strict=True)
        )

    @cached_property
    def _selected(self) -> Composable:
        return SQL(", ").join(_selected(name, kind) for name, kind in self.projection.columns.items())

    def _sql(self, template: LiteralString, **parts: Composable) -> Composed:
        return SQL(template).format(table=self.identifier, **{"key": Identifier(self._columns[0])} | parts)


def _identifiers(names: Iterable[str]) -> Composed:
    return SQL(", ").join(Identifier(name) for name in names)


# Instants travel as UTC without a zone and JSON as its text, so that no setting of the session changes them.


def _defined(name: str, kind: LiteralString) -> Composed:
    """Define a column that holds only what Python can read: no infinite instant, no year 10000, no NaN."""
    column = SQL("{} {}").format(Identifier(name), SQL(kind))
    if kind.startswith("timestamptz"):
        return column + SQL(queries.READABLE_INSTANT).format(column=Identifier(name))
    return column + SQL(" CHECK ({} <> 'NaN')").format(Identifier(name)) if kind.startswith("numeric(") else column


def _selected(name: str, kind: str) -> Composed:
    column = SQL("stored.{}").format(Identifier(name))
    if kind.startswith("timestamptz"):
        return column + SQL(" AT TIME ZONE 'UTC'")
    return column + SQL("::text") if kind == "json" else column


def _sent_as(kind: LiteralString) -> LiteralString:
    if kind == "json" or kind.startswith("text "):
        return "text"
    return "bigint" if kind == "int" else kind


def _cast(kind: LiteralString) -> Composable:
    return SQL("::json") if kind == "json" else SQL("")


def _reader(kind: str) -> Callable[[Any], Any] | None:
    if kind.startswith("timestamptz"):
        return lambda value: value.replace(tzinfo=UTC)
    return int if kind.startswith("numeric(") else None
