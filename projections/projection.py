"""What a projection is: a fold of events into rows of a read model."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, LiteralString, TypeVar

from eventstore.event import StreamEvent

__all__ = ["Index", "Projection", "Values"]

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
    beside the old. `columns` maps names to Postgres types, the key first. A column `version` holds the stream version
    that a row reflects; with it, an older row never overwrites a newer one.
    """

    name: ClassVar[LiteralString]
    version: ClassVar[int]
    columns: ClassVar[Mapping[LiteralString, LiteralString]]
    indexes: ClassVar[tuple[Index, ...]] = ()

    @abstractmethod
    def key(self, event: StreamEvent) -> str:
        """Tell which row an event belongs to."""

    @abstractmethod
    def fold(self, state: S | None, event: StreamEvent) -> S:
        """Fold one event into the state before it (None: there was none). Pure."""

    @abstractmethod
    def row(self, state: S) -> Values:
        """Make the row of a state."""

    @abstractmethod
    def state(self, row: Values) -> S:
        """Make the state of a row: `row(state(r)) == r`."""
