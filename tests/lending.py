"""A library that lends books: a domain which has nothing to do with commands, for the layers below them."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, ClassVar, Final, LiteralString, TypeAlias, TypeVar

import orjson
import psycopg
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, JsonValue

from eventstore import EventCodec, EventType, NewEvent, StreamEvent, encode_json
from eventstore.hashing import chain
from eventstore.steps import Plan, run
from projections import Index, StreamProjection, Table, Values, plans

T = TypeVar("T")

NOON: Final = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


class Event(BaseModel):
    model_config = ConfigDict(frozen=True)


class Acquired(Event):
    title: str


class Lent(Event):
    borrower: str
    due: datetime | None = None


class Returned(Event):
    fee: int | None = None
    note: JsonValue = None


BookEvent: TypeAlias = Acquired | Lent | Returned

CODEC: Final = EventCodec[BookEvent](
    EventType("Acquired", Acquired), EventType("Lent", Lent), EventType("Returned", Returned)
)


def event(event: BookEvent, at: datetime = NOON, metadata: str = "{}") -> NewEvent:
    return CODEC.encode(event, at, metadata)


def acquired(title: str = "Middlemarch") -> NewEvent:
    return event(Acquired(title=title))


def lent(borrower: str = "Ada") -> NewEvent:
    return event(Lent(borrower=borrower))


def returned(fee: int | None = None, note: JsonValue = None) -> NewEvent:
    return event(Returned(fee=fee, note=note))


@dataclass(frozen=True)
class Book:
    book_id: str
    title: str
    borrower: str | None = None
    due: datetime | None = None
    note: JsonValue = None
    fee: int | None = None
    times_lent: int = 0
    version: int = 1


_COLUMNS: Final[dict[LiteralString, LiteralString]] = {
    "book_id": 'text COLLATE "C"',
    "title": "text",
    "borrower": "text",
    "due": "timestamptz",
    "note": "json",
    "fee": "numeric(20)",
    "times_lent": "bigint",
    "version": "int",
}


class Shelf(StreamProjection[Book]):
    name = "shelf"
    version = 1
    columns: ClassVar[Mapping[LiteralString, LiteralString]] = MappingProxyType(_COLUMNS)
    indexes = (Index(("due",), where="due IS NOT NULL"), Index(("borrower", "book_id")))

    def key(self, event: StreamEvent) -> str:
        return event.stream_id

    def fold(self, state: Book | None, event: StreamEvent) -> Book:
        match CODEC.decode(event):
            case Acquired(title=title):
                return Book(event.stream_id, title)
            case Lent(borrower=borrower, due=due):
                changes: dict[str, Any] = {"borrower": borrower, "due": due, "times_lent": there(state).times_lent + 1}
            case Returned(fee=fee, note=note):
                changes = {"borrower": None, "due": None, "fee": fee, "note": note}
        return replace(there(state), version=event.version, **changes)

    def row(self, state: Book) -> Values:
        values = vars(state) | {"note": None if state.note is None else encode_json(state.note)}
        return tuple(values[name] for name in _COLUMNS)

    def state(self, row: Values) -> Book:
        values = dict(zip(_COLUMNS, row, strict=True))
        return Book(**values | {"note": None if values["note"] is None else orjson.loads(values["note"])})


def there(state: Book | None) -> Book:
    if state is None:
        raise ValueError("a book is acquired first")
    return state


SHELF: Final = Table(Shelf())


def on(connection: psycopg.Connection[Any], plan: Plan[T]) -> T:
    """Run a plan over one connection."""
    return run(lambda _: nullcontext(connection), plan, 10.0)


def record(book_id: str, *events: NewEvent) -> Plan[Book]:
    """Append events to a book's stream, whatever its version, and write its row."""
    loaded = yield from plans.load(SHELF, book_id)
    end, book = (loaded.end, loaded.state) if loaded else (None, None)
    chained = chain(book_id, end, events)
    for each in chained:
        book = SHELF.projection.fold(book, each)
    yield from plans.append([(SHELF, SHELF.projection.row(there(book)))], end, chained)
    return there(book)


# What hostile values look like.

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
names = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=255)
instants = st.datetimes(timezones=st.just(UTC))
numbers = (
    st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([0, 1, -1, 0.0, -0.0, 1.0, 1e21, 5e-324, 2**53 + 1, 2**63, 2**64 - 1])
)
json_values: st.SearchStrategy[JsonValue] = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=10,
)


def exactly(value: JsonValue) -> str:
    """Show a JSON value so that 1, 1.0, True, 0.0 and -0.0 differ."""
    return repr(value)
