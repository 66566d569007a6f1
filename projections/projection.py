"""What a projection is: a fold of events into rows of a read model."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, LiteralString, TypeVar

from eventstore.event import StreamEvent

__all__ = ["Index", "Projection", "StreamProjection", "Values"]

S = TypeVar("S")

Values = tuple[Any, ...]
"""A row's values, in the order of the columns: instants with a zone, JSON as text, numeric(n) as int."""


@dataclass(frozen=True, slots=True)
class Index:
    """An index of a read model's table; `where` makes it a partial one."""

    columns: tuple[LiteralString, ...]
    where: LiteralString | None = None


class Projection(ABC, Generic[S]):
    """A fold of events into rows, one row for each key.

    A changed projection gets the next `version`: its table is `name` + `_v` + `version`, so that the new one is built
    beside the old. `columns` maps names to Postgres types, the key first (a text). The view `name` shows the version in
    force: the columns of its table, or what `view` selects from `{table}`.

    A projection whose rows gather the events of several streams is folded in the order of the log, by one projector.
    One that has a row for each stream is better a `StreamProjection`, which can be built in parallel.
    """

    name: ClassVar[LiteralString]
    version: ClassVar[int]
    columns: ClassVar[Mapping[LiteralString, LiteralString]]
    indexes: ClassVar[tuple[Index, ...]] = ()
    view: ClassVar[LiteralString | None] = None

    @abstractmethod
    def key(self, event: StreamEvent) -> str | None:
        """Tell which row an event belongs to (None: to none)."""

    @abstractmethod
    def fold(self, state: S | None, event: StreamEvent) -> S:
        """Fold one event into the state before it (None: there was none). Pure: the same answer, for ever."""

    @abstractmethod
    def row(self, state: S) -> Values:
        """Make the row of a state."""

    @abstractmethod
    def state(self, row: Values) -> S:
        """Make the state of a row: `row(state(r)) == r`."""


class StreamProjection(Projection[S]):
    """A projection with one row for each stream, of all its events.

    A column `version` (int) holds the stream version that a row reflects: an older row never overwrites a newer one, so
    the rows may be written by many at once, and again. `inline`: every append writes the row in its own statement, and
    whoever reads it after that sees it; else a projector follows the log.
    """

    inline: ClassVar[bool] = False

    def key(self, event: StreamEvent) -> str:
        """One row for each stream."""
        return event.stream_id
