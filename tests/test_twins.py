"""The twin of a projector in memory, the checks that every projection passes, and the logs that they are tried on."""

import itertools
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta, timezone
from enum import Enum, IntEnum, StrEnum
from types import MappingProxyType
from typing import Any, ClassVar

import orjson
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventstore import Database, MemoryEventStore, NewEvent, RecordedEvent, StreamEvent
from eventstore.event import StreamEnd
from eventstore.hashing import chain
from eventstore.steps import Step
from eventstore.verification import ChainCheck
from projections import Index, Projection, StreamProjection, Table, Values, plans
from projections.definition import COLUMN_TYPES, InvalidProjection
from projections.errors import PoisonEvent, ProjectionError
from projections.memory import MAX_INDEXED_BYTES, Gap, InvalidRow, MemoryProjection, as_stored
from projections.testing import check_projection, replay_equals_incremental
from registry.command_status import CommandStatusProjection
from registry.decider import replay
from registry.events import CODEC, AttemptIncremented, CommandCreated, CommandTransitioned
from registry.history import history_entry
from registry.lifecycle import is_terminal
from registry.models import DeploymentModel, ResourceType
from registry.testing import command_logs
from tests.by_hand import one
from tests.lending import NOON, Book, Lent, Returned, Shelf, acquired, event, exactly, instants, lent, on, returned
from tests.shelves import Borrowers, Careless, Impure, Loans


def log_of(*appended: tuple[str, NewEvent]) -> list[RecordedEvent]:
    """Make the log in which these were appended one after the other."""
    ends: dict[str, StreamEnd] = {}
    log: list[RecordedEvent] = []
    for place, (stream_id, new) in enumerate(appended, 1):
        [chained] = chain(stream_id, ends.get(stream_id), [new])
        ends[stream_id] = StreamEnd(chained.version, chained.hash)
        log.append(chained.recorded(place, place, NOON))
    return log


LOG = log_of(
    ("a", acquired("Emma")),
    ("b", acquired("Persuasion")),
    ("a", lent("Ada")),
    ("b", lent("Ada")),
    ("a", returned(7, ["late"])),
    ("b", returned()),
    ("a", lent("Grace")),
)

moves = st.one_of(
    st.builds(Lent, borrower=st.sampled_from(["Ada", "Grace", "Eve"]), due=st.none() | instants),
    st.builds(Returned, fee=st.none() | st.integers(0, 2**64 - 1), note=st.none() | st.lists(st.integers(0, 9))),
)


@st.composite
def lendings(draw: st.DrawFn) -> list[RecordedEvent]:
    """Make logs of a few books, lent and returned."""
    books = draw(st.lists(st.sampled_from("abc"), max_size=12))
    there: set[str] = set()
    appended = []
    for book in books:
        appended.append((book, event(draw(moves)) if book in there else acquired(f"Title {book}")))
        there.add(book)
    return log_of(*appended)


# The twin.


def test_a_twin_has_the_rows_and_states_of_what_is_applied() -> None:
    twin = MemoryProjection(Shelf())
    twin.apply(LOG[:3])
    assert twin.states == {
        "a": Book("a", "Emma", "Ada", times_lent=1, version=2),
        "b": Book("b", "Persuasion"),
    }
    assert twin.rows == {key: Shelf().row(state) for key, state in twin.states.items()}
    twin.apply(LOG[3:])
    assert twin.get("a") == Book("a", "Emma", "Grace", None, ["late"], 7, 2, 4)
    assert twin.get("c") is None


def test_a_twin_of_rows_that_gather_several_streams_passes_over_what_has_no_key() -> None:
    twin = MemoryProjection(Borrowers())
    twin.apply(LOG)
    assert twin.rows == {"Ada": ("Ada", 2, "b"), "Grace": ("Grace", 1, "a")}
    assert twin.get("Ada") == Loans("Ada", 2, "b")


@given(st.lists(st.integers(0, len(LOG)), max_size=6))
def test_each_event_is_applied_once_however_often_it_comes(starts: list[int]) -> None:
    twin, known = MemoryProjection(Borrowers()), 0
    for start in starts:
        begin = min(start, known)
        twin.apply(LOG[begin:start])
        known = max(known, start)
    twin.apply(LOG)
    assert twin.rows == {"Ada": ("Ada", 2, "b"), "Grace": ("Grace", 1, "a")}


@pytest.mark.parametrize("projection", [Shelf(), Borrowers()], ids=["by stream", "by key"])
def test_a_gap_in_a_stream_is_told_and_nothing_after_it_applied(projection: Projection[Any]) -> None:
    twin = MemoryProjection(projection)
    with pytest.raises(Gap, match="stream 'a' goes on with version 3 after version 1") as caught:
        twin.apply([LOG[0], LOG[4], LOG[1]])
    assert (caught.value.stream_id, caught.value.known, caught.value.version) == ("a", 1, 3)
    assert isinstance(caught.value, ProjectionError)
    with pytest.raises(Gap, match="stream 'b' goes on with version 2 after version 0"):
        twin.apply([LOG[3]])
    twin.apply(LOG)
    assert twin.rows == rows_of(projection, LOG)


def rows_of(projection: Projection[Any], log: Sequence[StreamEvent]) -> dict[str, Values]:
    twin = MemoryProjection(projection)
    twin.apply(log)
    return twin.rows


class Bitter(Borrowers):
    """Cannot fold what Grace borrows, nor tell whose key it is when Eve does."""

    def key(self, event: StreamEvent) -> str | None:
        key = super().key(event)
        if key == "Eve":
            raise LookupError("no Eve")
        return key

    def fold(self, state: Loans | None, event: StreamEvent) -> Loans:
        if self.key(event) == "Grace":
            raise ValueError("too bitter")
        return super().fold(state, event)


@pytest.mark.parametrize(("who", "why"), [("Grace", "ValueError: too bitter"), ("Eve", "LookupError: no Eve")])
def test_an_event_that_cannot_be_folded_stops_the_twin_before_it_until_it_is_left_out(who: str, why: str) -> None:
    log = log_of(("a", acquired()), ("a", lent("Ada")), ("a", lent(who)), ("a", lent("Ada")))
    twin = MemoryProjection(Bitter())
    for _ in range(2):
        with pytest.raises(
            PoisonEvent, match=f"borrowers_v1 cannot fold version 3 of stream 'a' .Lent.: {why}"
        ) as caught:
            twin.apply(log)
        assert (caught.value.stream_id, caught.value.version) == ("a", 3)
        assert twin.rows == {"Ada": ("Ada", 1, "a")}
    skipping = MemoryProjection(Bitter(), skips=[("a", 3)])
    skipping.apply(log)
    assert skipping.rows == {"Ada": ("Ada", 2, "a")}


class Mutable:
    def __init__(self, borrower: str, loans: int) -> None:
        self.borrower, self.loans = borrower, loans


class Spoils(Projection[Mutable]):
    """Changes the state that it is given, and then finds that it cannot fold the event."""

    name = "spoils"
    version = 1
    columns = MappingProxyType({"borrower": "text", "loans": "bigint"})

    def key(self, event: StreamEvent) -> str | None:
        return "all"

    def fold(self, state: Mutable | None, event: StreamEvent) -> Mutable:
        state = state or Mutable("all", 0)
        state.loans += 1
        if state.loans == 3:
            raise ValueError("three")
        return state

    def row(self, state: Mutable) -> Values:
        return state.borrower, state.loans

    def state(self, row: Values) -> Mutable:
        return Mutable(*row)


def test_nothing_is_left_of_an_event_whose_fold_failed_midway() -> None:
    twin = MemoryProjection(Spoils())
    for _ in range(2):
        with pytest.raises(PoisonEvent):
            twin.apply(LOG)
        assert twin.rows == {"all": ("all", 2)}


def test_a_projection_that_can_be_no_table_has_no_twin() -> None:
    class Nameless(Borrowers):
        name = "No Name"

    with pytest.raises(InvalidProjection, match="name"):
        MemoryProjection(Nameless())


# What a table can hold.


def of_types(name: str = "typed", **columns: Any) -> Projection[Any]:
    """Make a projection that has these columns after its key."""
    attributes = {"name": name, "columns": {"id": 'text COLLATE "C"'} | columns}
    return type("Typed", (Borrowers,), attributes)()  # type: ignore[no-any-return]


class Letter(StrEnum):
    A = "a"


class OldLetter(str, Enum):  # noqa: UP042 - its str() is not its value
    A = "a"


class Number(IntEnum):
    ONE = 1


class OldNumber(int, Enum):
    ONE = 1


KINDS = [kind.replace("(n)", "(3)") for kind in COLUMN_TYPES]
VALUES: list[Any] = [
    None,
    True,
    0,
    -1,
    999,
    1000,
    2**31 - 1,
    2**31,
    -(2**31),
    2**63 - 1,
    2**63,
    -(2**63),
    1.0,
    "",
    "a",
    "'; --",
    '"\\{}',
    "\x00",
    "\ud800",
    "😀",
    "7",
    "null",
    '{"a": [1, null]}',
    "{",
    "NaN",
    b"bytes",
    ["a"],
    {"a": 1},
    Letter.A,
    OldLetter.A,
    Number.ONE,
    OldNumber.ONE,
    NOON,
    NOON.replace(tzinfo=None),
    NOON.astimezone(timezone(timedelta(hours=-5, minutes=-30))),
    NOON.astimezone(timezone(timedelta(hours=15, minutes=59, seconds=59))),
    NOON.astimezone(timezone(timedelta(hours=16))),
    NOON.astimezone(timezone(timedelta(microseconds=1))),
    datetime.min.replace(tzinfo=UTC),
    datetime.min.replace(tzinfo=timezone(timedelta(hours=1))),
    datetime.max.replace(tzinfo=UTC),
    date.min,
    date.max,
    NOON.date(),
]


def test_a_row_is_taken_exactly_when_postgres_gives_it_back_equal(
    dsn: str, connection: psycopg.Connection[Any]
) -> None:
    with Database(dsn, pool_size=1) as database:
        for number, kind in enumerate(KINDS):
            table = Table(of_types(f"typed_{number}", value=kind))
            for statement in table.create():
                connection.execute(statement)
            for value in VALUES:
                row = ("key", value)
                try:
                    expected = as_stored(table.projection, "key", row)
                except InvalidRow:
                    expected = None
                for write, params in ((table.upsert, table.upsert_params([row])), (table.upsert_row, row)):
                    connection.execute(table.truncate())
                    try:
                        database.run(one(Step(write.as_bytes(), params)))
                    except (psycopg.DataError, psycopg.IntegrityError, ValueError, TypeError):
                        assert expected is None, (kind, value)
                        continue
                    [read] = database.run(plans.read_rows(table, ["key"])).values()
                    if expected is None:
                        assert exactly(list(read)) != exactly(list(row)), (kind, value)
                    else:
                        assert exactly(list(read)) == exactly(list(expected)), (kind, value)


@pytest.mark.parametrize(
    ("kind", "value", "told"),
    [
        ("text", "\x00", "NUL"),
        ("text", 7, "must be text, not int"),
        ("text", OldLetter.A, "must be plain text"),
        ("text", "\ud800", "surrogates not allowed"),
        ("int", 2**31, "must be in -2147483648..2147483647"),
        ("bigint", -(2**63) - 1, "must be in -9223372036854775808..9223372036854775807"),
        ("bigint", True, "must be a whole number, not bool"),
        ("bigint", 1.0, "must be a whole number, not float"),
        ("bigint", OldNumber.ONE, "must be a plain int"),
        ("numeric(3)", 1000, "must be in -999..999"),
        ("boolean", 1, "must be True or False, not int"),
        ("date", NOON, "must be a date, not datetime"),
        ("timestamptz", NOON.date(), "must be a datetime, not date"),
        ("timestamptz", NOON.replace(tzinfo=None), "must have a time zone"),
        ("timestamptz", datetime.min.replace(tzinfo=timezone(timedelta(hours=1))), "years 1..9999"),
        ("timestamptz", NOON.astimezone(timezone(timedelta(hours=16))), "give it in UTC"),
        ("json", {"a": 1}, "must be JSON text, as encode_json makes it, not dict"),
        ("json", "{", "must be JSON"),
    ],
)
def test_a_value_that_its_column_cannot_hold_is_told(kind: str, value: Any, told: str) -> None:
    with pytest.raises(InvalidRow) as caught:
        as_stored(of_types(value=kind), "key", ("key", value))
    assert str(caught.value).startswith(f"typed, row 'key': value ({kind}) is {value!r}: ")
    assert told in caught.value.problem


@pytest.mark.parametrize("row", [(), ("key",), ("key", "a", "b")])
def test_a_row_of_another_number_of_values_is_told(row: Values) -> None:
    with pytest.raises(InvalidRow, match=f"has {len(row)} values for 2 columns"):
        as_stored(of_types(value="text"), "key", row)


@pytest.mark.parametrize("key", ["other", None, ""])
def test_the_row_of_another_key_is_told(key: Any) -> None:
    with pytest.raises(InvalidRow, match="id, the key, is"):
        as_stored(of_types(value="text"), "key", (key, "a"))


@pytest.mark.parametrize("version", [None, 0, -1])
def test_a_row_without_its_streams_version_is_told(version: Any) -> None:
    with pytest.raises(InvalidRow, match=f"version is {version}: the stream's version is to be there, 1 or more"):
        as_stored(Shelf(), "a", (*Shelf().row(Book("a", "Emma"))[:-1], version))


def test_a_key_and_an_index_are_as_long_as_a_b_tree_surely_takes(connection: psycopg.Connection[Any]) -> None:
    projection = type(
        "Indexed", (Borrowers,), {"name": "typed", "indexes": (Index(("borrower", "last_book")), Index(("loans",)))}
    )()
    table: Table[Any] = Table(projection)
    for statement in (*table.create(), *table.create_indexes()):
        connection.execute(statement)
    characters = "".join(map(chr, itertools.islice(itertools.cycle(range(0x4E00, 0x9FFF, 7)), 3_000)))  # incompressible
    longest = characters[: MAX_INDEXED_BYTES // 3]
    half = len(longest) // 2
    for row in ((longest, 1, ""), ("a", 1, longest[:-1]), (longest[:half], 1, longest[half:])):
        as_stored(projection, row[0], row)
        on(connection, one(Step(table.upsert, table.upsert_params([row]))))
    for row in ((characters, 1, ""), ("a", 1, characters), (longest, 1, "abc")):
        with pytest.raises(InvalidRow, match="bytes are too long for an index, which takes 2600"):
            as_stored(projection, row[0], row)
    with pytest.raises(psycopg.errors.ProgramLimitExceeded):
        on(connection, one(Step(table.upsert, table.upsert_params([(characters, 1, "")]))))


# The checks: whatever is wrong with a projection is found.

test_the_shelf = replay_equals_incremental(Shelf(), lendings())
test_borrowers = replay_equals_incremental(Borrowers(), lendings())
test_the_status_of_commands = replay_equals_incremental(CommandStatusProjection(), command_logs())


@dataclass
class Box:
    book: Book
    extra: int = 0


class Hides(Shelf):
    """Holds something in its states that its rows have not."""

    def fold(self, state: Book | None, event: StreamEvent) -> Book:
        book = super().fold(state, event)
        count = getattr(state, "_count", 0) + 1
        object.__setattr__(book, "_count", count)
        return replace_keeping(book, count)

    def row(self, state: Book) -> Values:
        return super().row(state)


def replace_keeping(book: Book, count: int) -> Book:
    kept = replace(book, fee=count)
    object.__setattr__(kept, "_count", count)
    return kept


class Forgets(Shelf):
    """Makes another state of a row than it was."""

    def state(self, row: Values) -> Book:
        return replace(super().state(row), note=None)


class Raises(Shelf):
    def state(self, row: Values) -> Book:
        raise RuntimeError("not written yet")


class Mutates(Shelf):
    """Adds to the list in the state before."""

    def fold(self, state: Book | None, event: StreamEvent) -> Book:
        if state is not None and isinstance(state.note, list):
            state.note.append(1)
        return super().fold(state, event)


class MutatesWithoutEquality(Spoils):
    """Changes a state that has no __eq__."""

    def fold(self, state: Mutable | None, event: StreamEvent) -> Mutable:
        state = state or Mutable("all", 0)
        state.loans += 1
        return state


class Remembers(Shelf):
    """Keeps what it saw in itself, and not in the state."""

    def __init__(self) -> None:
        self.borrowers: dict[str, int] = {}

    def fold(self, state: Book | None, event: StreamEvent) -> Book:
        book = super().fold(state, event)
        self.borrowers[event.stream_id] = max(event.version, self.borrowers.get(event.stream_id, 0))
        return replace(book, fee=len(self.borrowers))


class KeyChanges(Borrowers):
    times: ClassVar[Any] = itertools.count()

    def key(self, event: StreamEvent) -> str | None:
        return f"{next(self.times)}"

    def fold(self, state: Loans | None, event: StreamEvent) -> Loans:
        return Loans("", 0, "")

    def row(self, state: Loans) -> Values:
        raise AssertionError("unreachable")


class NoVersion(Shelf):
    """Says that its rows are of version 1, always."""

    def row(self, state: Book) -> Values:
        return (*super().row(state)[:-1], 1)


class OtherKey(Shelf):
    """A row for each title, though it says that there is one for each stream."""

    def key(self, event: StreamEvent) -> str:
        return event.stream_id.upper()

    def fold(self, state: Book | None, event: StreamEvent) -> Book:
        return replace(super().fold(state, event), book_id=event.stream_id.upper())


class AcrossStreams(StreamProjection[int]):
    """Gathers several streams in its class, so that their order counts."""

    name = "across"
    version = 1
    columns = MappingProxyType({"id": "text", "seen": "bigint", "version": "int"})
    seen: ClassVar[list[tuple[str, int]]] = []

    def fold(self, state: Any, event: StreamEvent) -> Any:
        if event.version == 1 and event.stream_id == "a":
            self.seen.clear()
        if (event.stream_id, event.version) not in self.seen:
            self.seen.append((event.stream_id, event.version))
        place = self.seen.index((event.stream_id, event.version))
        return event.stream_id, place, event.version

    def row(self, state: Any) -> Values:
        return tuple(state)

    def state(self, row: Values) -> Any:
        return row


class Naive(Shelf):
    def row(self, state: Book) -> Values:
        values = super().row(state)
        return (*values[:3], NOON.replace(tzinfo=None), *values[4:])


FAULTY = [
    (
        Forgets,
        AssertionError,
        r"shelf, at version 3 of stream 'a' \(Returned\): row\(state\(r\)\) is not r: read back, note",
    ),
    (Raises, AssertionError, r"row\(state\(r\)\) raised RuntimeError: not written yet"),
    (Mutates, AssertionError, r"at version 4 of stream 'a' \(Lent\): fold changes the state that it is given"),
    (MutatesWithoutEquality, AssertionError, "fold changes the state that it is given"),
    (Impure, AssertionError, "fold is not pure: the second time, fee is 8, and was 7"),
    (Careless, AssertionError, "is not pure: it went well before, and now raised KeyError: 'again'"),
    (Hides, AssertionError, r"shelf, row 'a': in pages of 1, fee is 1; folded in one go, it is 4"),
    (Remembers, AssertionError, r"shelf, row 'a': in pages of 1, fee is 1; folded in one go, it is 2"),
    (NoVersion, AssertionError, "the row's version is 1, and that of its stream's last event 2"),
    (OtherKey, AssertionError, "the key of a StreamProjection is the stream's id, not 'A'"),
    (AcrossStreams, AssertionError, "across, row 'a': stream by stream, seen is 3; folded in one go, it is 6"),
    (Naive, InvalidRow, "due .timestamptz. is .* must have a time zone"),
    (Bitter, PoisonEvent, "too bitter"),
]


@pytest.mark.parametrize(("kind", "error", "told"), FAULTY, ids=[kind.__name__ for kind, _, _ in FAULTY])
def test_a_faulty_projection_is_found_out(kind: type[Projection[Any]], error: type[Exception], told: str) -> None:
    Careless.seen.clear()
    Impure._times = itertools.count()
    with pytest.raises(error, match=told):
        check_projection(kind(), LOG)


def test_a_key_that_is_not_pure_is_found_out() -> None:
    class Fickle(Borrowers):
        def key(self, event: StreamEvent) -> str | None:
            return None if next(self.calls) < len(LOG) else str(next(self.calls))

        calls = itertools.count()

    with pytest.raises(AssertionError, match=r"borrowers, at version 1 of stream 'a' \(Acquired\): key is not pure"):
        check_projection(Fickle(), LOG)


class Fifth(Shelf):
    """Goes wrong in the seventh event, if the state was last made of a row after the fifth one."""

    def fold(self, state: Book | None, event: StreamEvent) -> Book:
        book, read_at = super().fold(state, event), getattr(state, "read_at", 0)
        object.__setattr__(book, "read_at", read_at)
        return replace(book, fee=1) if (event.version, read_at) == (7, 5) else book

    def state(self, row: Values) -> Book:
        book = super().state(row)
        object.__setattr__(book, "read_at", book.version)
        return book


def test_what_goes_wrong_only_in_pages_of_some_sizes_is_found_with_those() -> None:
    log = log_of(("a", acquired()), *[("a", lent())] * 7)
    check_projection(Fifth(), log)
    check_projection(Fifth(), log, [2, 4])
    with pytest.raises(
        AssertionError, match=r"shelf, row 'a': in pages of \[2, 3\], fee is 1; folded in one go, it is None"
    ):
        check_projection(Fifth(), log, [2, 3])


def test_the_one_line_test_tries_pages_of_any_sizes() -> None:
    logs = st.just(log_of(("a", acquired()), *[("a", lent())] * 7))
    with pytest.raises(AssertionError, match="in pages of"):
        replay_equals_incremental(Fifth(), logs, settings(database=None, deadline=None, max_examples=1_000))()


def test_a_log_with_a_gap_is_no_log() -> None:
    with pytest.raises(Gap):
        check_projection(Shelf(), LOG[1:])


def test_states_without_an_equality_of_their_own_are_compared_deeply_and_may_share_what_they_hold() -> None:
    class Slotted:
        __slots__ = ("loans", "nested")

        def __init__(self, loans: int, nested: Any) -> None:
            self.loans, self.nested = loans, nested

    class Sound(Spoils):
        def fold(self, state: Any, event: StreamEvent) -> Any:
            nested = state.nested if state else {"x": [Mutable("x", 1), {1, 2}, (NOON, Letter.A, Mutable)]}
            return Slotted(state.loans + 1 if state else 1, nested)

        def row(self, state: Any) -> Values:
            return "all", state.loans

        def state(self, row: Values) -> Any:
            return Slotted(row[1], {"x": [Mutable("x", 1), {1, 2}, (NOON, Letter.A, Mutable)]})

    check_projection(Sound(), LOG)

    class Deep(Sound):
        def fold(self, state: Any, event: StreamEvent) -> Any:
            if state:
                state.nested["x"][0].loans += 1
            return super().fold(state, event)

    with pytest.raises(AssertionError, match="fold changes the state that it is given"):
        check_projection(Deep(), LOG)


def test_the_one_line_test_finds_the_shortest_log_and_prints_it() -> None:
    quick = settings(database=None, deadline=None, derandomize=True)
    test = replay_equals_incremental(Forgets(), lendings(), quick)
    with pytest.raises(AssertionError, match="note is None") as caught:
        test()
    told = "\n".join(getattr(caught.value, "__notes__", []))
    assert "replay_equals_incremental_of_shelf" in told
    assert told.count("RecordedEvent(") == 2  # acquired, and returned with a note


PROBE = """
import sys
sys.modules["hypothesis"] = None
import projections, registry, projections.memory, registry.deployment_activity
for module in ("projections.testing", "registry.testing"):
    try:
        __import__(module)
    except ImportError as error:
        print(module, error)
"""


def test_without_hypothesis_the_twin_is_there_and_the_tests_say_what_to_install() -> None:
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        f"{module} this needs Hypothesis: pip install 'command-registry[testing]'"
        for module in ("projections.testing", "registry.testing")
    ]


# The logs of commands.


@settings(max_examples=60)
@given(command_logs())
def test_a_log_of_commands_is_one_that_a_registry_could_have_written(log: list[RecordedEvent]) -> None:
    assert [each.log_position for each in log] == sorted({each.log_position for each in log})
    store, streams = MemoryEventStore(), dict[str, list[RecordedEvent]]()
    for each in log:
        new = NewEvent(each.type, each.data, each.metadata, each.occurred_at, each.schema_version)
        [stored] = store.append(each.stream_id, each.version - 1, [new])
        assert stored.hash == each.hash
        streams.setdefault(each.stream_id, []).append(each)
    for stream_id, events in streams.items():
        check = ChainCheck(stream_id)
        assert [problem for each in events for problem in check.feed(each)] == []
        status = replay([CODEC.decode(each) for each in events])
        assert (status.command_id, status.version) == (stream_id, len(events))
        assert all(history_entry(each).command_id == stream_id for each in events)
        assert not any(is_terminal(each.from_state) for each in decoded(events, CommandTransitioned))


@settings(max_examples=10)
@given(command_logs())
def test_ids_are_the_same_for_the_same_choices(log: list[RecordedEvent]) -> None:
    assert log[0].stream_id == "cmd_5feceb66ffc86f38d952786c6d69"


def decoded(log: list[RecordedEvent], kind: type[Any]) -> list[Any]:
    return [each for each in map(CODEC.decode, log) if isinstance(each, kind)]


def lateness(log: list[RecordedEvent]) -> bool:
    return any(
        each.from_state == "PENDING" and each.to_state == "SUCCEEDED" for each in decoded(log, CommandTransitioned)
    )


LIVES: dict[str, Any] = {
    "several commands, interleaved": lambda log: (
        [each.stream_id for each in log] != sorted(each.stream_id for each in log)
        and Counter(each.stream_id for each in log).most_common(2)[-1][1] > 1
    ),
    "a late completion": lateness,
    "a released lease": lambda log: any(
        (each.from_state, each.to_state) == ("DISPATCHED", "PENDING") for each in decoded(log, CommandTransitioned)
    ),
    "a third attempt": lambda log: any(each.attempt == 3 for each in decoded(log, AttemptIncremented)),
    "an error with a code": lambda log: any(
        isinstance(each.error, dict) and isinstance(each.error.get("code"), str)
        for each in decoded(log, CommandTransitioned)
    ),
    "an expired command": lambda log: any(
        isinstance(each.error, dict) and each.error.get("code") == "COMMAND_EXPIRED"
        for each in decoded(log, CommandTransitioned)
    ),
    "two deployments": lambda log: len({each.deployment_id for each in decoded(log, CommandCreated)}) > 1,
    "two days": lambda log: len({each.created_at.date() for each in decoded(log, CommandCreated)}) > 1,
    "push and pull": lambda log: (
        {each.deployment_model for each in decoded(log, CommandCreated)} == set(DeploymentModel)
    ),
    "every kind of target": lambda log: (
        {each.target.resource_type for each in decoded(log, CommandCreated)} == set(ResourceType)
    ),
    "a clock that goes back": lambda log: any(b.occurred_at < a.occurred_at for a, b in itertools.pairwise(log)),
    "a completion before the creation": lambda log: any(
        each.completed_at is not None and each.completed_at < log[0].occurred_at
        for each in decoded(log, CommandTransitioned)
    ),
    "an idempotency key": lambda log: any("idempotency_key" in orjson.loads(each.metadata) for each in log),
    "an actor": lambda log: any("actor" in orjson.loads(each.metadata) for each in log),
}


def test_logs_of_commands_have_it_all() -> None:
    seen = dict.fromkeys(LIVES, 0)

    @settings(max_examples=300, database=None, derandomize=True)
    @given(command_logs())
    def look(log: list[RecordedEvent]) -> None:
        for life, has in LIVES.items():
            seen[life] += has(log)

    look()
    assert {life: count for life, count in seen.items() if not count} == {}


@settings(max_examples=10)
@given(command_logs(datetime(2001, 1, 1, tzinfo=UTC), most_calls=8))
def test_logs_begin_when_they_are_told_to_and_are_as_long_as_told(log: list[RecordedEvent]) -> None:
    assert abs(log[0].occurred_at - datetime(2001, 1, 1, tzinfo=UTC)) <= timedelta(days=3)
    assert len(log) <= 9
