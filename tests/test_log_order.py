"""The order of the log: a reader that goes on from where it was never skips what commits late."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventstore import LOG_START, LogPosition, RecordedEvent, plans
from tests.lending import acquired, lent, on
from tests.waiting import until

Connection = psycopg.Connection[Any]

PATIENT = "another transaction of this server (of another test) to end"


class Reader:
    """Follows the log page by page, as a projector does."""

    def __init__(self, connection: Connection, page: int = 2) -> None:
        self._connection, self._page = connection, page
        self.read: list[tuple[str, int]] = []
        self.after = LOG_START

    def follow(self) -> list[tuple[str, int]]:
        """Read what can be read now."""
        new: list[RecordedEvent] = []
        while events := on(self._connection, plans.read_log(self.after, self._page)):
            new += events
            self.after = events[-1].log_position
        positions = [event.log_position for event in new]
        assert positions == sorted(set(positions))
        self.read += [(event.stream_id, event.version) for event in new]
        return self.read

    def follow_until(self, count: int) -> list[tuple[str, int]]:
        """Read until so many events were read: transactions elsewhere on this server hold a reader back, too."""
        until(lambda: len(self.follow()) >= count, PATIENT)
        return self.follow()


@pytest.fixture
def reader(connection: Connection) -> Reader:
    return Reader(connection)


@pytest.fixture
def writers(dsn: str) -> Iterator[list[Connection]]:
    """Three connections, each of which begins a transaction with its first statement."""
    with ExitStack() as stack:
        connections = [psycopg.connect(dsn) for _ in range(3)]
        for connection in connections:
            stack.callback(connection.close)
        yield connections


def write(connection: Connection, stream_id: str, version: int = 0) -> None:
    on(connection, plans.append(stream_id, version, [lent() if version else acquired()]))


def test_transaction_ids_are_compared_as_numbers(connection: Connection, reader: Reader) -> None:
    ids = [9, 10, 99, 100, 101, 200]
    for transaction_id in reversed(ids):
        write(connection, f"in {transaction_id}")
    connection.execute("ALTER TABLE command_registry.events DISABLE TRIGGER events_refuse_change")
    connection.execute("UPDATE command_registry.events SET transaction_id = split_part(stream_id, ' ', 2)::xid8")
    assert reader.follow_until(len(ids)) == [(f"in {transaction_id}", 1) for transaction_id in ids]


@pytest.mark.every_postgres
def test_a_transaction_that_commits_late_is_not_skipped(reader: Reader, writers: list[Connection]) -> None:
    late, early, _ = writers
    write(late, "late")
    write(early, "early")
    early.commit()
    assert reader.follow() == []  # "early" is committed, and waits for what may come before it
    late.commit()
    assert reader.follow_until(2) == [("late", 1), ("early", 1)]


@pytest.mark.every_postgres
def test_the_order_is_that_of_transactions_and_within_one_that_of_positions(
    reader: Reader, writers: list[Connection]
) -> None:
    first, second, _ = writers
    first.execute("SELECT pg_current_xact_id()")  # the older transaction, with the later positions
    write(second, "b")
    write(second, "b", 1)
    write(first, "c")
    write(second, "a")
    write(first, "a0")
    second.commit()
    first.commit()
    assert reader.follow_until(5) == [("c", 1), ("a0", 1), ("b", 1), ("b", 2), ("a", 1)]


@pytest.mark.every_postgres
def test_what_an_older_transaction_adds_to_a_younger_ones_stream_comes_after_it_in_the_log(
    reader: Reader, writers: list[Connection]
) -> None:
    older, younger, _ = writers
    older.execute("SELECT pg_current_xact_id()")
    write(younger, "book")
    younger.commit()
    write(older, "book", 1)
    write(older, "book", 2)
    assert reader.follow() == []
    older.commit()
    assert reader.follow_until(3) == [("book", 1), ("book", 2), ("book", 3)]


def test_while_an_older_write_transaction_is_open_readers_wait_and_then_get_all_exactly_once(
    connection: Connection, reader: Reader, writers: list[Connection]
) -> None:
    write(connection, "before")
    assert reader.follow_until(1) == [("before", 1)]
    older, _, _ = writers
    older.execute("SELECT pg_current_xact_id()")
    for version in range(5):
        write(connection, "book", version)
        assert reader.follow() == [("before", 1)]
    write(older, "older")
    older.commit()
    expected = [("before", 1), ("older", 1), *(("book", version) for version in range(1, 6))]
    assert reader.follow_until(7) == expected


@pytest.mark.every_postgres
def test_a_write_in_another_database_holds_readers_back_too(
    databases: Any, connection: Connection, reader: Reader
) -> None:
    with psycopg.connect(databases.server_dsn) as elsewhere:
        elsewhere.execute("SELECT pg_current_xact_id()")
        write(connection, "book")
        assert reader.follow() == []
        elsewhere.rollback()
    assert reader.follow_until(1) == [("book", 1)]


def test_an_open_transaction_that_only_reads_holds_nobody_back(
    connection: Connection, reader: Reader, writers: list[Connection]
) -> None:
    idle, _, _ = writers
    idle.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    idle.execute("SELECT FROM command_registry.events")
    write(connection, "book")
    assert reader.follow_until(1) == [("book", 1)]


def test_what_is_rolled_back_leaves_a_hole_that_nobody_waits_for(
    connection: Connection, reader: Reader, writers: list[Connection]
) -> None:
    gone, _, _ = writers
    write(gone, "gone")
    write(connection, "kept")
    gone.rollback()
    write(connection, "kept", 1)
    assert reader.follow_until(2) == [("kept", 1), ("kept", 2)]


def test_events_of_subtransactions_are_in_the_place_of_their_transaction(
    reader: Reader, writers: list[Connection]
) -> None:
    first, second, _ = writers
    write(first, "a")
    write(second, "b")
    with first.transaction():
        write(first, "a", 1)
    second.commit()
    first.commit()
    assert reader.follow_until(3) == [("a", 1), ("a", 2), ("b", 1)]


def test_a_reader_that_starts_anywhere_gets_exactly_the_rest(connection: Connection, reader: Reader) -> None:
    for version in range(6):
        write(connection, "a", version)
        write(connection, "b", version)
    reader.follow_until(12)
    events = on(connection, plans.read_log(LOG_START, 100))
    for index, event in enumerate(events):
        assert on(connection, plans.read_log(event.log_position, 100)) == events[index + 1 :]
        just_before = LogPosition(event.transaction_id, event.position - 1)
        assert on(connection, plans.read_log(just_before, 1)) == [event]


steps = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from(["write", "write", "commit", "rollback", "read"])), max_size=25
)


@settings(max_examples=40)
@given(steps)
def test_whatever_way_transactions_interleave_a_reader_gets_each_event_once_and_in_order(
    connection: Connection, reader: Reader, writers: list[Connection], steps: list[tuple[int, str]]
) -> None:
    done = len(reader.read)
    committed: list[tuple[str, int]] = []
    under_way: dict[int, list[tuple[str, int]]] = {0: [], 1: [], 2: []}

    def end(writer: int, how: str) -> None:
        getattr(writers[writer], how)()
        if how == "commit":
            committed.extend(under_way[writer])
        under_way[writer] = []

    for writer, step in steps:
        match step:
            case "read":
                read = reader.follow()[done:]
                assert set(read) <= set(committed)
            case "write":
                stream_id = f"{writer}-{next(_numbers)}"
                write(writers[writer], stream_id)
                under_way[writer].append((stream_id, 1))
            case _:
                end(writer, step)
    for writer in under_way:
        end(writer, "commit")
    read = reader.follow_until(done + len(committed))[done:]
    assert sorted(read) == sorted(committed)
    assert reader.read == [
        (event.stream_id, event.version) for event in on(connection, plans.read_log(LOG_START, 100_000))
    ]


_numbers = iter(range(10**9))
