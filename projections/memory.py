"""A projection's table in memory: to test a projection of your own without Postgres."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final, Generic, TypeVar

from eventstore.errors import InvalidEvent
from eventstore.event import StreamEvent, check_instant, check_json_text
from eventstore.parameters import as_parameter
from projections.definition import check_definition, column_type
from projections.errors import PoisonEvent, ProjectionError
from projections.projection import Projection, StreamProjection, Values

__all__ = ["MAX_INDEXED_BYTES", "Gap", "InvalidRow", "MemoryProjection", "as_stored"]

S = TypeVar("S")

MAX_INDEXED_BYTES: Final = 2_600
"""How long the texts of a key, or of an entry of another index, may be together in UTF-8: a B-tree surely takes it."""


class Gap(ProjectionError, ValueError):
    """A stream goes on with version `version`, and has been applied up to version `known`."""

    def __init__(self, stream_id: str, known: int, version: int) -> None:
        """Carry where it is."""
        self.stream_id = stream_id
        self.known = known
        self.version = version
        super().__init__(
            f"stream {stream_id!r} goes on with version {version} after version {known}: "
            "events are applied in the order of the log, and none is left out"
        )


class InvalidRow(ProjectionError, ValueError):
    """A row that a projection made, and that its table cannot hold."""

    def __init__(self, projection: str, key: object, problem: str) -> None:
        """Carry which row, and what is wrong with it."""
        self.projection = projection
        self.key = key
        self.problem = problem
        super().__init__(f"{projection}, row {key!r:.100}: {problem}")


class MemoryProjection(Generic[S]):
    """The rows of a projection, as a projector would write them.

    Each `apply` is like one page of the log: the states are made of the rows, folded on, and made into rows again.
    `skips`: the events, by stream and version, that it leaves out, as `command-registry projections skip` has it.

    Raises:
        InvalidProjection: the projection cannot be made a table.
    """

    def __init__(self, projection: Projection[S], skips: Iterable[tuple[str, int]] = ()) -> None:
        check_definition(projection)
        self.projection = projection
        self.skips = frozenset(skips)
        self.rows: dict[str, Values] = {}
        """Each key's row, with values as they are read back from Postgres."""
        self._versions: dict[str, int] = {}

    def apply(self, events: Iterable[StreamEvent]) -> None:
        """Fold events, in the order of the log; those that were applied before are passed over.

        What comes before an event that fails is applied, and nothing of that event.

        Raises:
            Gap: an event before one of these is missing.
            PoisonEvent: the projection cannot fold one.
            InvalidRow: it made a row that its table cannot hold.
        """
        states: dict[str, S] = {}
        for event in events:
            known = self._versions.get(event.stream_id, 0)
            if event.version <= known:
                continue
            if event.version > known + 1:
                raise Gap(event.stream_id, known, event.version)
            if (event.stream_id, event.version) not in self.skips:
                self._fold(states, event)
            self._versions[event.stream_id] = event.version

    def _fold(self, states: dict[str, S], event: StreamEvent) -> None:
        with self._blaming(event):
            key = self.projection.key(event)
        if key is None:
            return
        before = states[key] if key in states else self.get(key)
        with self._blaming(event):
            state = self.projection.fold(before, event)
        self.rows[key] = as_stored(self.projection, key, self.projection.row(state))
        states[key] = state

    @contextmanager
    def _blaming(self, event: StreamEvent) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever it is: it is the event's
            raise PoisonEvent(f"{self.projection.name}_v{self.projection.version}", event, error) from error

    def get(self, key: str) -> S | None:
        """Give the state of a key; None when it has no row."""
        row = self.rows.get(key)
        return None if row is None else self.projection.state(row)

    @property
    def states(self) -> dict[str, S]:
        """Each key's state, made of its row."""
        return {key: self.projection.state(row) for key, row in self.rows.items()}


def as_stored(projection: Projection[Any], key: str, row: Sequence[Any]) -> Values:
    """Give a row's values as they are read back from Postgres.

    Raises:
        InvalidRow: the table of the projection cannot hold them, or they are the row of another key.
    """
    columns: Mapping[str, str] = projection.columns
    if len(row) != len(columns):
        raise InvalidRow(projection.name, key, f"has {len(row)} values for {len(columns)} columns")
    values = {}
    for (name, kind), value in zip(columns.items(), row, strict=True):
        try:
            values[name] = None if value is None else _STORED[column_type(kind) or ""](kind, value)
        except (ValueError, TypeError) as error:
            raise InvalidRow(projection.name, key, f"{name} ({kind}) is {value!r:.100}: {error}") from error
    problem = _row_problem(projection, key, values)
    if problem is not None:
        raise InvalidRow(projection.name, key, problem)
    return tuple(values.values())


def _row_problem(projection: Projection[Any], key: str, values: Mapping[str, Any]) -> str | None:
    column = next(iter(values))
    if values[column] != key:
        return f"{column}, the key, is {values[column]!r:.100}"
    if isinstance(projection, StreamProjection) and (values["version"] or 0) < 1:
        return f"version is {values['version']}: the stream's version is to be there, 1 or more"
    for indexed in ((column,), *(index.columns for index in projection.indexes)):
        size = sum(len(value.encode()) for value in map(values.get, indexed) if isinstance(value, str))
        if size > MAX_INDEXED_BYTES:
            return f"{', '.join(indexed)}: {size} bytes are too long for an index, which takes {MAX_INDEXED_BYTES}"
    return None


# What becomes of a value that is written and read back; a ValueError or TypeError when it cannot be written.


def _text(_: str, value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"must be text, not {type(value).__name__}")
    if as_parameter(value) != value.encode():
        raise TypeError(f"must be plain text: str() makes another one of a {type(value).__name__}")
    return str(value)


def _json(kind: str, value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"must be JSON text, as encode_json makes it, not {type(value).__name__}")
    check_json_text("the text", value)
    return _text(kind, value)


def _whole(kind: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"must be a whole number, not {type(value).__name__}")
    least, most = _range(kind)
    if not least <= value <= most:
        raise ValueError(f"must be in {least}..{most}")
    if as_parameter(value) != b"%d" % value:
        raise TypeError(f"must be a plain int: str() makes no number of a {type(value).__name__}")
    return int(value)


def _range(kind: str) -> tuple[int, int]:
    if kind.startswith("numeric"):
        most = 10 ** int(kind.removeprefix("numeric(").removesuffix(")")) - 1
        return -most, most
    bits = 31 if kind == "int" else 63
    return -(2**bits), 2**bits - 1


def _boolean(_: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"must be True or False, not {type(value).__name__}")
    return value


def _date(_: str, value: object) -> date:
    if not isinstance(value, date) or isinstance(value, datetime):
        raise TypeError(f"must be a date, not {type(value).__name__}")
    return value


_MOST_OFFSET: Final = timedelta(hours=15, minutes=59, seconds=59)


def _instant(_: str, value: object) -> datetime:
    if not isinstance(value, datetime):
        raise TypeError(f"must be a datetime, not {type(value).__name__}")
    try:
        instant = check_instant("the instant", value)
    except InvalidEvent as error:
        raise ValueError(error.problem) from None
    offset = value.utcoffset() or timedelta()
    if abs(offset) > _MOST_OFFSET or offset.microseconds:
        raise ValueError(f"Postgres reads no offset of {offset}: give it in UTC")
    return instant.astimezone(UTC)


_STORED: Final[Mapping[str, Callable[[str, Any], Any]]] = {
    "text": _text,
    "json": _json,
    "int": _whole,
    "bigint": _whole,
    "numeric": _whole,
    "boolean": _boolean,
    "date": _date,
    "timestamptz": _instant,
}
