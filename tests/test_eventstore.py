"""One suite over every event store, with events that have nothing to do with commands."""

import inspect
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, LiteralString, TypeAlias

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, rule
from psycopg.pq import TransactionStatus

from eventstore import (
    LOG_START,
    AsyncDatabase,
    AsyncMemoryEventStore,
    AsyncPostgresEventStore,
    Conflict,
    Database,
    EventStore,
    InvalidEvent,
    LogPosition,
    MemoryEventStore,
    NewEvent,
    PostgresEventStore,
    RecordedEvent,
    StreamEnd,
    encode_json,
)
from eventstore.verification import ChainCheck
from tests.conftest import Databases
from tests.lending import NOON, acquired, instants, json_values, lent, names, returned
from tests.synchronous import Synchronous
from tests.waiting import until

Store: TypeAlias = Any
"""An `EventStore`; or an `AsyncEventStore`, called synchronously."""


class OpenedAsyncStore(AsyncPostgresEventStore):
    def __init__(self, dsn: str) -> None:
        self.database = AsyncDatabase(dsn, pool_size=2)
        super().__init__(self.database)

    async def connect(self) -> None:
        await self.database.open()

    async def close(self) -> None:
        await self.database.close()


@contextmanager
def opened(name: str, dsn: str) -> Iterator[Store]:
    match name:
        case "memory":
            yield MemoryEventStore()
        case "postgres":
            with Database(dsn, pool_size=2) as database:
                yield PostgresEventStore(database)
        case _:
            store = Synchronous(AsyncMemoryEventStore() if name == "async_memory" else OpenedAsyncStore(dsn))
            try:
                yield store
            finally:
                store.close()


@pytest.fixture(scope="module")
def shared_dsn(servers: Callable[[str], Databases]) -> Iterator[str]:
    """One database for all tests that keep to a stream of their own."""
    databases = servers("default")
    name = databases.migrated()
    yield databases.dsn(name)
    databases.drop(name)


STORES = ["memory", "async_memory", "postgres", "async_postgres"]


@pytest.fixture(params=STORES, scope="module")
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    """A store of every kind in turn, shared by the tests of this module."""
    dsn = "" if request.param.endswith("memory") else request.getfixturevalue("shared_dsn")
    with opened(request.param, dsn) as store:
        yield store


@pytest.fixture(params=STORES)
def fresh_store(request: pytest.FixtureRequest) -> Iterator[Store]:
    """A store of every kind in turn, with nothing in its log."""
    dsn = "" if request.param.endswith("memory") else request.getfixturevalue("dsn")
    with opened(request.param, dsn) as store:
        yield store


@pytest.fixture
def book() -> str:
    """A stream that nobody else uses."""
    return f"book {uuid.uuid4()}"


def log_of(store: Store, count: int, after: LogPosition = LOG_START) -> list[RecordedEvent]:
    """Read the log, once no transaction of another database of this server holds it back."""
    until(lambda: len(store.read_log(after, 1000)) >= count, f"{count} events of the log")
    return list(store.read_log(after, 1000))


def contents(events: Any) -> list[NewEvent]:
    return [NewEvent(e.type, e.data, e.metadata, e.occurred_at, e.schema_version) for e in events]


def test_an_append_to_a_new_stream_starts_at_version_1(store: Store, book: str) -> None:
    [event] = store.append(book, 0, [acquired()])
    assert (event.stream_id, event.version, event.type, event.schema_version) == (book, 1, "Acquired", 1)
    assert (event.data, event.metadata, event.occurred_at) == ('{"title":"Middlemarch"}', "{}", NOON)
    assert event.transaction_id > 0
    assert event.position > 0
    assert abs((event.recorded_at - datetime.now(UTC)).total_seconds()) < 60
    assert store.read_stream(book) == [event]


def test_several_events_are_appended_at_once_in_their_order(fresh_store: Store) -> None:
    new = [acquired(), lent("Ada"), returned(), lent("Grace")]
    appended = fresh_store.append("book", 0, new)
    assert [event.version for event in appended] == [1, 2, 3, 4]
    assert contents(appended) == new
    assert [event.position for event in appended] == sorted({event.position for event in appended})
    assert len({event.transaction_id for event in appended}) == 1
    assert fresh_store.read_stream("book") == list(appended)
    assert log_of(fresh_store, 4) == list(appended)


def test_an_append_goes_on_from_the_version_expected(store: Store, book: str) -> None:
    first = store.append(book, 0, [acquired()])
    then = store.append(book, 1, [lent(), returned()])
    assert [event.version for event in then] == [2, 3]
    assert store.read_stream(book) == [*first, *then]


@pytest.mark.parametrize("expected", [-1, 0, 1, 3, 4, 2**31, 2**63])
def test_an_append_at_another_version_is_a_conflict_that_carries_the_facts(
    store: Store, book: str, expected: int
) -> None:
    store.append(book, 0, [acquired(), lent()])
    with pytest.raises(Conflict, match=book) as conflict:
        store.append(book, expected, [returned(), lent()])
    assert (conflict.value.stream_id, conflict.value.expected, conflict.value.actual) == (book, expected, 2)
    assert [event.version for event in store.read_stream(book)] == [1, 2]
    assert store.append(book, 2, [returned()])[0].version == 3


def test_an_append_to_a_stream_that_is_not_there_conflicts_at_version_0(store: Store, book: str) -> None:
    with pytest.raises(Conflict) as conflict:
        store.append(book, 1, [acquired()])
    assert conflict.value.actual == 0
    assert store.stream_end(book) is None


def test_several_events_are_appended_all_or_none(fresh_store: Store) -> None:
    fresh_store.append("book", 0, [acquired()])
    with pytest.raises(Conflict):
        fresh_store.append("book", 0, [acquired(), lent(), returned()])
    assert [event.version for event in fresh_store.read_stream("book")] == [1]
    assert len(log_of(fresh_store, 1)) == 1


def test_appending_nothing_only_checks_the_version(store: Store, book: str) -> None:
    assert store.append(book, 0, []) == ()
    with pytest.raises(Conflict):
        store.append(book, 1, [])
    assert store.stream_end(book) is None


def test_a_stream_is_read_from_a_version_on_and_up_to_a_limit(store: Store, book: str) -> None:
    events = store.append(book, 0, [acquired(), *(lent(str(n)) for n in range(9))])
    assert store.read_stream(book, 4) == list(events[4:])
    assert store.read_stream(book, 4, 3) == list(events[4:7])
    assert store.read_stream(book, limit=1) == [events[0]]
    assert store.read_stream(book, 9, 100_000) == [events[9]]
    assert store.read_stream(book, 10) == []
    assert store.read_stream(book, 2**31) == []
    assert store.read_stream(book, -1) == list(events)
    assert store.read_stream(book, -5, 2) == list(events[:2])


def test_an_unknown_stream_is_empty(store: Store, book: str) -> None:
    store.append(book, 0, [acquired()])
    assert store.read_stream(book.upper()) == []
    assert store.stream_end(book[:-1]) is None


@pytest.mark.parametrize("limit", [-1, 0, 100_001])
def test_a_limit_is_1_to_100000(store: Store, book: str, limit: int) -> None:
    refusal = r"limit: must be in 1\.\.100000"
    with pytest.raises(InvalidEvent, match=refusal):
        store.read_stream(book, 0, limit)
    with pytest.raises(InvalidEvent, match=refusal):
        store.read_log(LOG_START, limit)


def test_the_end_of_a_stream_is_its_last_version_and_hash(store: Store, book: str) -> None:
    assert store.stream_end(book) is None
    events = store.append(book, 0, [acquired(), lent()])
    assert store.stream_end(book) == StreamEnd(2, events[1].hash)
    [event] = store.append(book, 2, [returned()])
    assert store.stream_end(book) == StreamEnd(3, event.hash)


def test_the_log_has_the_events_of_all_streams_in_the_order_of_their_appends(fresh_store: Store) -> None:
    order = [
        *fresh_store.append("b", 0, [acquired()]),
        *fresh_store.append("a", 0, [acquired(), lent()]),
        *fresh_store.append("b", 1, [lent()]),
        *fresh_store.append("a", 2, [returned()]),
    ]
    assert log_of(fresh_store, 5) == order
    assert [event.log_position for event in order] == sorted({event.log_position for event in order})


def test_pages_of_the_log_give_every_event_once_and_in_order(fresh_store: Store) -> None:
    order = [
        event
        for n in range(4)
        for book in ("a", "b")
        for event in fresh_store.append(book, 2 * n, [lent(f"{n}"), returned(n)])
    ]
    log_of(fresh_store, 16)
    for page in (1, 2, 3, 7, 100):
        read: list[RecordedEvent] = []
        while events := fresh_store.read_log(read[-1].log_position if read else LOG_START, page):
            assert len(events) <= page
            read += events
        assert read == order


def test_the_log_goes_on_after_a_position_that_holds_no_event(fresh_store: Store) -> None:
    first, second = fresh_store.append("a", 0, [acquired()]) + fresh_store.append("b", 0, [acquired()])
    log_of(fresh_store, 2)
    assert fresh_store.read_log(LogPosition(first.transaction_id, first.position + 2**40)) == [second]
    assert fresh_store.read_log(LogPosition(second.transaction_id + 1, 0)) == []
    assert fresh_store.read_log(LogPosition(first.transaction_id, -1)) == [first, second]


HOSTILE = [
    " ",
    "'",
    "'; DROP TABLE command_registry.events; --",
    '"',
    "%",
    "_",
    "\\",
    "\\x00",
    "E'\\n'",
    "%s",
    "%(a)s",
    "{}",
    "$1",
    "$$",
    "NULL",
    "a,b",
    "{a,b}",
    "ä",
    "a\u0308",
    "\u202egnp.exe",
    "📚" * 255,
    "a" * 255,
    "\u2028",
    "\ufeff",
]


def test_hostile_stream_ids_are_streams_of_their_own(fresh_store: Store) -> None:
    for number, stream_id in enumerate(HOSTILE):
        fresh_store.append(stream_id, 0, [returned(number), returned(number + 1)])
    for number, stream_id in enumerate(HOSTILE):
        read = fresh_store.read_stream(stream_id)
        assert contents(read) == [returned(number), returned(number + 1)]
        assert {event.stream_id for event in read} == {stream_id}
        assert fresh_store.stream_end(stream_id) == StreamEnd(2, read[1].hash)


IMPOSSIBLE = ["", "a" * 256, "📚" * 256, "\x00", "a\x00b", "a\nb", "\t", "\x7f", "\x85", "\ud800", "a\udfffb"]


@pytest.mark.parametrize("stream_id", IMPOSSIBLE)
def test_an_impossible_stream_id_is_refused_by_name(store: Store, stream_id: str) -> None:
    for expected in (0, 1):
        with pytest.raises(InvalidEvent, match="stream_id: must") as refusal:
            store.append(stream_id, expected, [acquired()])
        assert refusal.value.field == "stream_id"


@pytest.mark.parametrize("stream_id", IMPOSSIBLE)
def test_a_stream_that_cannot_be_is_empty(store: Store, stream_id: str) -> None:
    assert store.read_stream(stream_id) == []
    assert store.stream_end(stream_id) is None


@pytest.mark.parametrize(
    "text", ['"\\ud800"', '"\\ud800\\ud800"', '"\\udc00"', "1e400", "-1e400", "[" * 2000 + "]" * 2000]
)
def test_a_store_keeps_to_the_letter_whatever_json_it_accepts(store: Store, book: str, text: str) -> None:
    try:
        event = NewEvent("Noted", text, text, NOON)
    except InvalidEvent:
        return
    store.append(book, 0, [event])
    assert contents(store.read_stream(book)) == [event]


new_events = st.builds(
    NewEvent,
    type=names,
    data=json_values.map(encode_json),
    metadata=json_values.map(encode_json),
    occurred_at=instants,
    schema_version=st.integers(1, 32767),
)
batches = st.lists(st.lists(new_events, min_size=1, max_size=3), min_size=1, max_size=3)


@settings(max_examples=40)
@given(names, batches)
def test_what_is_appended_reads_back_equal_and_its_chain_verifies(
    store: Store, name: str, batches: list[list[NewEvent]]
) -> None:
    end = store.stream_end(name)
    start = version = end.version if end else 0
    appended: list[RecordedEvent] = []
    for batch in batches:
        appended += store.append(name, version, batch)
        version += len(batch)
    read = store.read_stream(name, start)
    assert contents(read) == [event for batch in batches for event in batch]
    assert read == appended
    check = ChainCheck(name)
    assert [problem for event in store.read_stream(name) for problem in check.feed(event)] == []


class StoreAgainstModel(RuleBasedStateMachine):
    """Every answer of a store in memory, against plain lists."""

    streams = Bundle("streams")

    @initialize()
    def start(self) -> None:
        self.store: EventStore = MemoryEventStore()
        self.model: dict[str, list[NewEvent]] = {}
        self.log: list[tuple[str, NewEvent]] = []

    @rule(target=streams, name=names)
    def name(self, name: str) -> str:
        return name

    @rule(name=streams, events=st.lists(new_events, max_size=3), off=st.sampled_from([0, 0, 0, -1, 1]))
    def append(self, name: str, events: list[NewEvent], off: int) -> None:
        actual = len(self.model.get(name, []))
        if off:
            with pytest.raises(Conflict) as conflict:
                self.store.append(name, actual + off, events)
            assert conflict.value.actual == actual
        else:
            self.store.append(name, actual, events)
            self.model[name] = self.model.get(name, []) + events
            self.log += [(name, event) for event in events]

    @rule(name=consumes(streams), after=st.integers(0, 5), limit=st.none() | st.integers(1, 5))
    def read(self, name: str, after: int, limit: int | None) -> None:
        stop = None if limit is None else after + limit
        assert contents(self.store.read_stream(name, after, limit)) == self.model.get(name, [])[after:stop]

    @rule()
    def read_log(self) -> None:
        read = self.store.read_log()
        assert [(event.stream_id, *contents([event])) for event in read] == self.log


TestStoreAgainstModel = StoreAgainstModel.TestCase
TestStoreAgainstModel.settings = settings(max_examples=30, stateful_step_count=15)


# In the caller's own transaction.


class Caller:
    """The caller's own connection, of either kind, called synchronously."""

    def __init__(self, raw: Any, wait: Callable[[Any], Any]) -> None:
        self.raw, self._wait = raw, wait

    def execute(self, sql: LiteralString) -> list[Any]:
        cursor = self._wait(self.raw.execute(sql))
        return list(self._wait(cursor.fetchall())) if cursor.description else []

    def commit(self) -> None:
        self._wait(self.raw.commit())

    def rollback(self) -> None:
        self._wait(self.raw.rollback())

    def close(self) -> None:
        self._wait(self.raw.close())

    @property
    def status(self) -> TransactionStatus:
        return TransactionStatus(self.raw.info.transaction_status)


Connect: TypeAlias = Callable[..., Caller]


@pytest.fixture(params=["postgres", "async_postgres"])
def postgres(request: pytest.FixtureRequest, shared_dsn: str) -> Iterator[tuple[Store, Connect]]:
    """A store on Postgres, and how to connect to its database for oneself."""
    with opened(request.param, shared_dsn) as store:
        callers = []

        def connect(**settings: Any) -> Caller:
            if request.param == "postgres":
                caller = Caller(psycopg.connect(shared_dsn, **settings), lambda result: result)
            else:
                run = store._loop.run
                raw = run(psycopg.AsyncConnection.connect(shared_dsn, **settings))
                caller = Caller(raw, lambda result: run(result) if inspect.isawaitable(result) else result)
            callers.append(caller)
            return caller

        yield store, connect
        for caller in callers:
            caller.close()


STARTS = {
    "idle": (False, None),
    "in a transaction": (False, "SELECT 1"),
    "autocommit, in a transaction": (True, "BEGIN"),
}


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_in_the_callers_transaction_an_append_commits_and_vanishes_with_it(
    postgres: tuple[Store, Connect], book: str, start: str, end: str
) -> None:
    store, connect = postgres
    autocommit, begin = STARTS[start]
    caller = connect(autocommit=autocommit)
    if begin:
        caller.execute(begin)
    first = store.append(book, 0, [acquired(), lent()], connection=caller.raw)
    second = store.append(book, 2, [returned()], connection=caller.raw)
    assert caller.status == TransactionStatus.INTRANS
    assert len({event.transaction_id for event in (*first, *second)}) == 1
    assert store.read_stream(book) == []
    getattr(caller, end)()
    assert store.read_stream(book) == ([*first, *second] if end == "commit" else [])
    assert store.append(book, 3 if end == "commit" else 0, [lent()])


def test_over_an_idle_connection_in_autocommit_an_append_commits_at_once(
    postgres: tuple[Store, Connect], book: str
) -> None:
    store, connect = postgres
    caller = connect(autocommit=True)
    events = store.append(book, 0, [acquired()], connection=caller.raw)
    assert store.read_stream(book) == list(events)
    assert caller.status == TransactionStatus.IDLE


@pytest.mark.parametrize("start", STARTS)
def test_a_conflict_leaves_the_callers_transaction_usable(
    postgres: tuple[Store, Connect], book: str, start: str
) -> None:
    store, connect = postgres
    autocommit, begin = STARTS[start]
    caller = connect(autocommit=autocommit)
    if begin:
        caller.execute(begin)
    store.append(book, 0, [acquired()], connection=caller.raw)
    with pytest.raises(Conflict):
        store.append(book, 0, [acquired()], connection=caller.raw)
    assert caller.status == TransactionStatus.INTRANS
    store.append(f"also {book}", 0, [acquired()], connection=caller.raw)
    caller.commit()
    assert len(store.read_stream(book)) == len(store.read_stream(f"also {book}")) == 1


def test_a_race_lost_in_the_callers_transaction_leaves_it_usable(postgres: tuple[Store, Connect], book: str) -> None:
    store, connect = postgres
    caller = connect(autocommit=False)
    caller.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    caller.execute("SELECT 1 FROM command_registry.events")  # takes the snapshot, which hides what comes now
    store.append(book, 0, [acquired()])
    with pytest.raises(Conflict) as conflict:
        store.append(book, 0, [acquired()], connection=caller.raw)
    assert (conflict.value.expected, conflict.value.actual) == (0, None)
    assert caller.status == TransactionStatus.INTRANS
    store.append(f"other {book}", 0, [acquired()], connection=caller.raw)
    caller.commit()
    assert len(store.read_stream(f"other {book}")) == 1


def test_a_refusal_within_the_callers_savepoint_keeps_the_savepoint(postgres: tuple[Store, Connect], book: str) -> None:
    store, connect = postgres
    caller = connect(autocommit=False)
    store.append(book, 0, [acquired()], connection=caller.raw)
    caller.execute("SAVEPOINT mine")
    store.append(book, 1, [lent()], connection=caller.raw)
    with pytest.raises(Conflict):
        store.append(book, 0, [acquired()], connection=caller.raw)
    caller.execute("ROLLBACK TO SAVEPOINT mine")
    caller.commit()
    assert [event.version for event in store.read_stream(book)] == [1]


# What a caller's session may be set to, and may not change.
SESSIONS: list[LiteralString] = [
    "SET TimeZone = 'Asia/Kathmandu'",
    "SET TimeZone = 'America/St_Johns'; SET DateStyle = 'SQL, DMY'",
    "SET DateStyle = 'German'; SET TimeZone = 'Europe/Dublin'",
    "SET DateStyle = 'Postgres, MDY'; SET IntervalStyle = 'iso_8601'",
    "SET bytea_output = 'escape'; SET extra_float_digits = 0",
    "SET search_path = ''; SET standard_conforming_strings = on",
    "SET client_encoding = 'LATIN1'",
    "SET default_transaction_isolation = 'serializable'",
]


@pytest.mark.parametrize("session", SESSIONS)
def test_no_setting_of_the_callers_session_changes_an_event(
    postgres: tuple[Store, Connect], book: str, session: LiteralString
) -> None:
    store, connect = postgres
    caller = connect(autocommit=True)
    for statement in session.split("; "):
        caller.execute(statement)
    new = [
        NewEvent("Noted", '"café"', "[1.0]", instant)
        for instant in (
            datetime.min.replace(tzinfo=UTC),
            datetime(2, 3, 4, tzinfo=UTC),
            datetime.max.replace(tzinfo=UTC),
        )
    ]
    appended = store.append(book, 0, new, connection=caller.raw)
    assert contents(appended) == new
    assert store.read_stream(book) == list(appended)


def test_no_setting_of_a_database_changes_what_is_read(connection: psycopg.Connection[Any], dsn: str) -> None:
    new = [NewEvent("Noted", '"\u00e9"', "{}", datetime.max.replace(tzinfo=UTC)), lent()]
    with Database(dsn) as database:
        appended = list(PostgresEventStore(database).append("book", 0, new))
    name = connection.info.dbname
    for session in SESSIONS:
        for statement in session.split("; "):
            connection.execute(f'ALTER DATABASE "{name}" {statement}'.encode())
        with Database(dsn) as database:
            assert PostgresEventStore(database).read_stream("book") == appended, session
        connection.execute(f'ALTER DATABASE "{name}" RESET ALL'.encode())


@pytest.mark.parametrize("kind", ["memory", "async_memory"])
def test_a_store_in_memory_refuses_a_connection(kind: str, connection: psycopg.Connection[Any]) -> None:
    with opened(kind, "") as store, pytest.raises(ValueError, match="connection: a store in memory"):
        store.append("book", 0, [acquired()], connection=connection)
