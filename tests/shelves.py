"""Other versions of the read models, as other versions of the software have them; other processes can import them."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import Any, ClassVar, Final, LiteralString, NamedTuple, TypeVar
from unittest.mock import patch

import psycopg

from eventstore import NewEvent, StreamEvent, encode_json
from eventstore.event import StreamEnd
from eventstore.hashing import chain
from eventstore.steps import Plan, Step
from projections import Index, Projection, StreamProjection, Table, Values, plans
from registry import plans as registry_plans
from registry import writing
from registry.command_status import CommandStatusProjection
from registry.lifecycle import is_terminal
from registry.models import CommandStatus
from tests.lending import CODEC, Book, Lent, Shelf, acquired, lent, on, returned, there

__all__ = [
    "CHANGED",
    "AddedColumn",
    "Borrowers",
    "Careless",
    "Fixed",
    "Impure",
    "NextShelf",
    "NextStatus",
    "RemovedColumn",
    "RenamedColumn",
    "RetypedColumn",
    "Squeamish",
    "next_registry",
    "record_in",
    "rows_of",
    "stock",
]

S = TypeVar("S")

_SHELF: Final = dict(Shelf.columns)


def _columns(*columns: tuple[LiteralString, LiteralString]) -> Mapping[LiteralString, LiteralString]:
    return MappingProxyType(dict(columns))


class NextShelf(Shelf):
    """The shelf, unchanged but for its version; it minds whether an event comes first in its stream."""

    version = 2

    def fold(self, state: Book | None, event: StreamEvent) -> Book:
        if (state is None) != (event.version == 1):
            raise ValueError("folded into another book")
        return super().fold(state, event)


class AddedColumn(Shelf):
    version = 2
    columns = _columns(*_SHELF.items(), ("shouted", "text"))

    def row(self, state: Book) -> Values:
        return (*super().row(state), state.title.upper())

    def state(self, row: Values) -> Book:
        return super().state(row[:-1])


class RemovedColumn(Shelf):
    version = 2
    columns = _columns(*(column for column in _SHELF.items() if column[0] != "due"))
    indexes = (Index(("title",)), Index(("borrower", "book_id")))

    def fold(self, state: Book | None, event: StreamEvent) -> Book:
        return replace(super().fold(state, event), due=None)

    def row(self, state: Book) -> Values:
        return tuple(value for name, value in zip(_SHELF, super().row(state), strict=True) if name != "due")

    def state(self, row: Values) -> Book:
        values = dict(zip(self.columns, row, strict=True))
        return super().state(tuple(values.get(name) for name in _SHELF))


class RenamedColumn(Shelf):
    version = 2
    columns = _columns(*(("lent_to" if name == "borrower" else name, kind) for name, kind in _SHELF.items()))
    indexes = (Index(("due",)), Index(("lent_to", "book_id")))


class RetypedColumn(Shelf):
    version = 2
    columns = _columns(*((name, "text" if name == "times_lent" else kind) for name, kind in _SHELF.items()))

    def row(self, state: Book) -> Values:
        return tuple(
            str(value) if name == "times_lent" else value
            for name, value in zip(_SHELF, super().row(state), strict=True)
        )

    def state(self, row: Values) -> Book:
        book = super().state(row)
        return replace(book, times_lent=int(book.times_lent))


CHANGED: Final[Sequence[type[Shelf]]] = (AddedColumn, RemovedColumn, RenamedColumn, RetypedColumn)


class Squeamish(NextShelf):
    """Cannot fold a book that Eve has borrowed."""

    def fold(self, state: Book | None, event: StreamEvent) -> Book:
        book = super().fold(state, event)
        if book.borrower == "Eve":
            raise ValueError("I do not know\nany Eve")
        return book


class Fixed(NextShelf):
    """What `Squeamish` becomes."""


class Impure(NextShelf):
    """Gives another answer each time."""

    _times = itertools.count(1)

    def fold(self, state: Book | None, event: StreamEvent) -> Book:
        return replace(super().fold(state, event), fee=next(self._times))


class Careless(NextShelf):
    """Folds what it has folded before only once: the second time it raises."""

    seen: ClassVar[set[bytes]] = set()

    def fold(self, state: Book | None, event: StreamEvent) -> Book:
        if event.hash in self.seen:
            raise KeyError("again")
        self.seen.add(event.hash)
        return super().fold(state, event)


class Loans(NamedTuple):
    borrower: str
    loans: int
    last_book: str


class Borrowers(Projection[Loans]):
    """A row for each borrower, of the events of many books."""

    name = "borrowers"
    version = 1
    columns = _columns(("borrower", 'text COLLATE "C"'), ("loans", "bigint"), ("last_book", "text"))

    def key(self, event: StreamEvent) -> str | None:
        decoded = CODEC.decode(event)
        return decoded.borrower if isinstance(decoded, Lent) else None

    def fold(self, state: Loans | None, event: StreamEvent) -> Loans:
        borrower = self.key(event) or ""
        return Loans(borrower, (state.loans if state else 0) + 1, event.stream_id)

    def row(self, state: Loans) -> Values:
        return tuple(state)

    def state(self, row: Values) -> Loans:
        return Loans(*row)


class NextStatus(CommandStatusProjection):
    """The status of commands with a column more, as the next version of the registry has it."""

    version = 2
    columns = _columns(*CommandStatusProjection.columns.items(), ("outcome", "text"))

    def row(self, state: CommandStatus) -> Values:
        return (*super().row(state), state.state.lower() if is_terminal(state.state) else "open")

    def state(self, row: Values) -> CommandStatus:
        return super().state(row[:-1])


@contextmanager
def next_registry() -> Iterator[Table[CommandStatus]]:
    """Make registries, in this process, those of the next version of the software."""
    table = Table(NextStatus())
    with patch.object(registry_plans, "COMMAND_STATUS", table), patch.object(writing, "COMMAND_STATUS", table):
        yield table


def record_in(table: Table[Book], book_id: str, *events: NewEvent) -> Plan[Book]:
    """Append events to a book's stream, whatever its version, as software that has this version of the shelf."""
    loaded = yield from plans.load(table, book_id)
    end, book = (loaded.end, loaded.state) if loaded else (None, None)
    chained = chain(book_id, end, events)
    for each in chained:
        book = table.projection.fold(book, each)
    yield from plans.append([(table, table.projection.row(there(book)))], end, chained)
    return there(book)


def stock(
    connection: psycopg.Connection[Any], table: Table[Book], books: Sequence[str], borrowers: Sequence[str] = ("Ada",)
) -> int:
    """Acquire books, all with one statement; each is lent to so many, one after the other. Give how many events."""
    events: list[tuple[StreamEvent, StreamEnd | None]] = []
    rows = []
    for number, book_id in enumerate(books):
        history = [acquired(f"Title {number}")]
        for borrower in borrowers:
            history += [lent(borrower), returned(number, encode_json([borrower]))]
        chained, book = chain(book_id, None, history), None
        for each in chained:
            book = table.projection.fold(book, each)
        events += [(each, None) for each in chained]
        rows.append(table.projection.row(there(book)))
    step = plans.append_step([(table, rows)], events)
    on(connection, _one(step))
    return len(events)


def _one(step: Step) -> Plan[None]:
    yield step


def rows_of(connection: psycopg.Connection[Any], table: Table[S]) -> dict[str, S]:
    """Read a table's rows, as their states."""
    keys = [key for (key,) in on(connection, _rows(Step(table.sample_keys, (None,))))]
    if isinstance(table.projection, StreamProjection):
        assert len(keys) == len(set(keys))
    found = on(connection, plans.read_rows(table, keys))
    return {key: table.projection.state(values) for key, values in found.items()}


def _rows(step: Step) -> Plan[list[Any]]:
    return (yield step)
