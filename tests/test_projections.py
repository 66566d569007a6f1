"""The inline read model: written with the events, repaired, built from the log, and verified against it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, LiteralString

import psycopg
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from psycopg.sql import SQL, Identifier, Literal

from eventstore import NewEvent, SchemaMismatch, encode_json, plans
from eventstore import queries as log_queries
from eventstore.hashing import chain
from eventstore.steps import Refused, Step
from projections import plans as projections
from projections import rebuild, verification
from projections.plans import Also, Loaded
from projections.verification import Report, verify
from tests.lending import (
    NOON,
    SHELF,
    Acquired,
    Book,
    Lent,
    Returned,
    acquired,
    event,
    exactly,
    instants,
    json_values,
    lent,
    names,
    on,
    record,
    returned,
    texts,
)

Connection = psycopg.Connection[Any]


@pytest.fixture
def shelf(connection: Connection) -> Connection:
    """A connection to a database in which the shelf is an inline projection."""
    on(connection, rebuild.migrate(SHELF))
    return connection


def row(connection: Connection, book_id: str) -> Book | None:
    values = on(connection, projections.read_rows(SHELF, [book_id])).get(book_id)
    return None if values is None else SHELF.projection.state(values)


def rows(connection: Connection) -> list[Any]:
    return connection.execute("SELECT shelf::text FROM command_registry.shelf_v1 AS shelf ORDER BY book_id").fetchall()


def folded(connection: Connection, book_id: str) -> Book | None:
    book = None
    for each in on(connection, plans.read_stream(book_id)):
        book = SHELF.projection.fold(book, each)
    return book


def upsert(connection: Connection, *books: Book) -> None:
    values = [SHELF.projection.row(book) for book in books]
    on(connection, one(Step(SHELF.upsert, SHELF.upsert_params(values))))


def one(step: Step) -> Any:
    return (yield step)


# Written with the events.


@pytest.mark.every_postgres
def test_events_and_row_are_written_together(shelf: Connection) -> None:
    assert on(shelf, record("book", acquired("Emma"))) == Book("book", "Emma")
    assert row(shelf, "book") == Book("book", "Emma")
    on(shelf, record("book", lent("Ada"), returned(5, ["late"]), lent("Grace")))
    assert row(shelf, "book") == Book("book", "Emma", "Grace", None, ["late"], 5, times_lent=2, version=4)
    assert row(shelf, "book") == folded(shelf, "book")


def test_events_and_row_vanish_together(shelf: Connection) -> None:
    with shelf.transaction(force_rollback=True):
        on(shelf, record("book", acquired()))
        assert row(shelf, "book") is not None
    assert row(shelf, "book") is None
    assert on(shelf, plans.read_stream("book")) == []


def test_a_refused_append_writes_no_row(shelf: Connection) -> None:
    on(shelf, record("book", acquired("Emma")))
    loaded = on(shelf, projections.load(SHELF, "book"))
    assert loaded is not None
    on(shelf, record("book", lent("Ada")))
    chained = chain("book", loaded.end, [lent("Grace")])
    stale = SHELF.projection.row(SHELF.projection.fold(loaded.state, chained[0]))
    with pytest.raises(Refused):
        on(shelf, projections.append([(SHELF, stale)], loaded.end, chained))
    assert row(shelf, "book") == Book("book", "Emma", "Ada", times_lent=1, version=2)


def test_what_is_inserted_also_is_there_with_the_events_or_not_at_all(shelf: Connection) -> None:
    shelf.execute("CREATE TABLE kept (n int PRIMARY KEY)")
    also = Also("INSERT INTO kept (n) VALUES (%s)", (7,))
    for book_id, there in (("a", True), ("b", False)):
        chained = chain(book_id, None, [acquired()])
        append = projections.append([(SHELF, SHELF.projection.row(Book(book_id, "x")))], None, chained, also)
        if there:
            on(shelf, append)
        else:
            with pytest.raises(Refused, match="kept_pkey"):
                on(shelf, append)
        assert (row(shelf, book_id) is not None) is there
        assert bool(on(shelf, plans.read_stream(book_id))) is there
    assert shelf.execute("SELECT n FROM kept").fetchall() == [(7,)]


@pytest.mark.every_postgres
def test_an_upsert_never_overwrites_a_newer_row(shelf: Connection) -> None:
    newer = Book("book", "Emma", "Ada", version=3)
    upsert(shelf, newer, Book("other", "Persuasion"))
    upsert(shelf, replace(newer, borrower="Grace", version=2))
    assert row(shelf, "book") == newer
    upsert(shelf, again := replace(newer, borrower="Grace", version=3))  # so a rebuild mends a row
    assert row(shelf, "book") == again
    newest = replace(newer, borrower=None, version=4)
    upsert(shelf, newest)
    assert row(shelf, "book") == newest


@given(st.lists(st.integers(1, 9), min_size=1, max_size=9))
def test_in_whatever_order_rows_arrive_the_newest_one_stays(shelf: Connection, versions: list[int]) -> None:
    shelf.execute("TRUNCATE command_registry.shelf_v1")
    for version in versions:
        upsert(shelf, Book("book", f"title {version}", version=version))
    assert row(shelf, "book") == Book("book", f"title {max(versions)}", version=max(versions))


# Loaded, and repaired.


def test_a_stream_without_events_loads_as_nothing(shelf: Connection) -> None:
    assert on(shelf, projections.load(SHELF, "book")) is None


def test_a_row_that_lags_is_loaded_up_to_date_and_repaired_by_the_next_append(shelf: Connection) -> None:
    for known in range(4):
        book = f"book {known}"
        on(shelf, record(book, acquired("Emma")))
        on(shelf, record(book, lent("Ada")))
        on(shelf, record(book, returned(3)))
        fresh = on(shelf, projections.load(SHELF, book))
        assert isinstance(fresh, Loaded)
        assert fresh.end.version == 3
        shelf.execute("DELETE FROM command_registry.shelf_v1 WHERE book_id = %s", (book,))
        stale = None
        for each in on(shelf, plans.read_stream(book))[:known]:
            stale = SHELF.projection.fold(stale, each)
        if stale is not None:
            upsert(shelf, stale)
        assert on(shelf, projections.load(SHELF, book)) == fresh
        on(shelf, record(book, lent("Grace")))
        repaired = Book(book, "Emma", "Grace", fee=3, times_lent=2, version=4)
        assert row(shelf, book) == folded(shelf, book) == repaired
    assert on(shelf, verify(SHELF)).ok


def test_events_that_arrive_while_a_lagging_stream_is_loaded_are_loaded_too(shelf: Connection) -> None:
    on(shelf, plans.append("book", 0, [acquired("Emma")]))  # by software that knows no shelf
    plan = projections.load(SHELF, "book")
    found = on(shelf, one(next(plan)))
    reading = plan.send(found)
    [arrived] = on(shelf, plans.append("book", 1, [lent("Ada")]))
    with pytest.raises(StopIteration) as stop:
        plan.send(on(shelf, one(reading)))
    loaded = stop.value.value
    assert loaded.end == (2, arrived.hash)
    assert loaded.state == Book("book", "Emma", "Ada", times_lent=1, version=2)


# The table.

books = st.builds(
    Book,
    book_id=names,
    title=texts.map(lambda text: text.replace("\x00", "")),
    borrower=st.none() | texts.map(lambda text: text.replace("\x00", "")),
    due=st.none() | instants,
    note=json_values,
    fee=st.none() | st.integers(-(10**20) + 1, 10**20 - 1) | st.sampled_from([0, 2**64 - 1]),
    times_lent=st.integers(-(2**63), 2**63 - 1),
    version=st.integers(1, 2**31 - 1),
)


def same(one: Book, other: Book) -> bool:
    return one == other and exactly(one.note) == exactly(other.note)


@given(books)
def test_a_row_is_made_into_the_state_it_was_made_of(book: Book) -> None:
    values = SHELF.projection.row(book)
    assert same(SHELF.projection.state(values), book)
    assert SHELF.projection.row(SHELF.projection.state(values)) == values


@settings(max_examples=40)
@given(st.lists(books, min_size=1, max_size=5, unique_by=lambda book: book.book_id))
def test_whatever_is_stored_reads_back_equal(shelf: Connection, stored: list[Book]) -> None:
    shelf.execute("TRUNCATE command_registry.shelf_v1")
    upsert(shelf, *stored)
    for book in stored:
        read = row(shelf, book.book_id)
        assert read is not None
        assert same(read, book)


def test_no_setting_of_the_session_changes_a_row(shelf: Connection) -> None:
    for session in ("TimeZone = 'Asia/Kathmandu'", "DateStyle = 'SQL, DMY'", "bytea_output = 'escape'"):
        shelf.execute(SQL("SET {}").format(SQL(session)))
        for due in (datetime.min.replace(tzinfo=UTC), datetime(2, 3, 4, tzinfo=UTC), datetime.max.replace(tzinfo=UTC)):
            book = Book(f"{session} {due}", "Emma", due=due, fee=2**64 - 1)
            upsert(shelf, book)
            assert row(shelf, book.book_id) == book


@pytest.mark.every_postgres
def test_the_table_has_the_columns_indexes_and_view_of_its_projection(shelf: Connection) -> None:
    columns = shelf.execute("""
        SELECT attname, format_type(atttypid, atttypmod)
        FROM pg_attribute
        WHERE attrelid = 'command_registry.shelf_v1'::regclass AND attnum > 0
        ORDER BY attnum
    """).fetchall()
    assert dict(columns) == {
        "book_id": "text",
        "title": "text",
        "borrower": "text",
        "due": "timestamp with time zone",
        "note": "json",
        "fee": "numeric(20,0)",
        "times_lent": "bigint",
        "version": "integer",
    }
    definitions = shelf.execute("SELECT indexdef FROM pg_indexes WHERE tablename = 'shelf_v1' ORDER BY indexname")
    assert [definition.split("INDEX ")[1] for (definition,) in definitions] == [
        "shelf_v1_borrower_book_id ON command_registry.shelf_v1 USING btree (borrower, book_id)",
        "shelf_v1_due ON command_registry.shelf_v1 USING btree (due) WHERE (due IS NOT NULL)",
        "shelf_v1_pkey ON command_registry.shelf_v1 USING btree (book_id)",
    ]
    upsert(shelf, Book("book", "Emma"))
    assert shelf.execute("SELECT book_id, title FROM command_registry.shelf").fetchall() == [("book", "Emma")]


# Built from the log.


def a_library(connection: Connection) -> None:
    """Five books with one to five events each; ids that sort by their bytes only."""
    for number, book_id in enumerate(["a", "B", "b", "ä", "Z z"], 1):
        history = [acquired(f"Title {number}"), lent("Ada"), returned(number), lent("Grace"), returned(note={"n": 1.0})]
        on(connection, record(book_id, *history[:number]))


@contextmanager
def pages_of(size: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(rebuild, "PAGE", size)
        patch.setattr(rebuild, "EVENTS_IN_CHUNK", size)
        patch.setattr(verification, "PAGE", size)
        yield


@pytest.mark.every_postgres
def test_migrating_builds_the_read_model_of_a_log_that_is_not_empty(
    shelf: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_library(shelf)
    before = rows(shelf)
    assert len(before) == 5
    for page in (1, 2, 3, 4, 5_000):
        shelf.execute("DROP TABLE command_registry.shelf_v1 CASCADE")
        with pytest.raises(
            SchemaMismatch, match="read model shelf, version 1, is not in this database, or not whole yet"
        ):
            on(shelf, projections.check(SHELF))
        told: list[int] = []
        with pages_of(page, monkeypatch):
            on(shelf, rebuild.migrate(SHELF, told.append))
        assert sum(told) == 15
        assert rows(shelf) == before
        on(shelf, projections.check(SHELF))
        assert on(shelf, verify(SHELF)).ok
        assert len(shelf.execute("SELECT FROM command_registry.shelf").fetchall()) == 5


def test_a_build_that_was_broken_off_is_done_by_the_next_migration(
    shelf: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_library(shelf)
    before = rows(shelf)
    shelf.execute("DROP TABLE command_registry.shelf_v1 CASCADE")
    shelf.execute("DELETE FROM command_registry.projections WHERE name = 'shelf'")

    def broken_off(_: int) -> None:
        raise KeyboardInterrupt

    with pages_of(4, monkeypatch):
        with pytest.raises(KeyboardInterrupt):
            on(shelf, rebuild.migrate(SHELF, broken_off))
        assert 0 < len(rows(shelf)) < 5
        with pytest.raises(SchemaMismatch):
            on(shelf, projections.check(SHELF))
        on(shelf, rebuild.migrate(SHELF))
    assert rows(shelf) == before


def test_a_second_migration_leaves_the_read_model_as_it_is(shelf: Connection) -> None:
    a_library(shelf)
    before = shelf.execute("SELECT xmin::text, ctid::text FROM command_registry.shelf_v1").fetchall()
    on(shelf, rebuild.migrate(SHELF))
    assert shelf.execute("SELECT xmin::text, ctid::text FROM command_registry.shelf_v1").fetchall() == before


# Verified.


def tamper(connection: Connection, *statements: LiteralString) -> None:
    """Change the log behind the back of its guards."""
    connection.execute("ALTER TABLE command_registry.events DISABLE TRIGGER ALL")
    for statement in statements:
        cursor = connection.execute(statement)
        assert cursor.rowcount > 0, statement
    connection.execute("ALTER TABLE command_registry.events ENABLE ALWAYS TRIGGER events_refuse_change")
    connection.execute("ALTER TABLE command_registry.events ENABLE ALWAYS TRIGGER events_refuse_truncate")


def found(report: Report) -> list[tuple[str, int | None]]:
    assert report.problem_count == len(report.problems)
    return [(problem.stream_id, problem.version) for problem in report.problems]


@pytest.fixture
def library(shelf: Connection) -> Connection:
    """A database with three books of three events each."""
    for book_id in ("a", "b", "c"):
        on(shelf, record(book_id, acquired(f"Title {book_id}"), lent("Ada"), lent("Grace")))
    return shelf


@pytest.mark.every_postgres
def test_a_log_that_nobody_touched_verifies(library: Connection) -> None:
    report = on(library, verify(SHELF))
    assert report.ok
    assert (report.events, report.streams, report.rows, report.problems) == (9, 3, 3, [])


def test_an_empty_log_verifies(shelf: Connection) -> None:
    report = on(shelf, verify(SHELF))
    assert (report.ok, report.events, report.streams, report.rows) == (True, 0, 0, 0)


CHANGE: LiteralString = "UPDATE command_registry.events SET "
AT_B2: LiteralString = " WHERE stream_id = 'b' AND version = 2"
EDITS: dict[str, LiteralString] = {
    "data": 'data = \'{"borrower":"Eve"}\'',
    "white space in the data": 'data = \'{"borrower": "Ada"}\'',
    "metadata": 'metadata = \'{"actor":"Eve"}\'',
    "type": "type = 'Borrowed'",
    "type, to another one": "type = 'Returned'",
    "schema version": "schema_version = 2",
    "instant": "occurred_at = occurred_at + interval '1 microsecond'",
    "hash": "hash = sha256('mine')",
}


@pytest.mark.every_postgres
def test_an_edited_event_is_found_at_its_stream_and_version(library: Connection) -> None:
    for what, edit in EDITS.items():
        with library.transaction(force_rollback=True):
            tamper(library, CHANGE + edit + AT_B2)
            found_in = {place for place in found(on(library, verification_here())) if place[1] is not None}
            assert ("b", 2) in found_in, what
            assert found_in <= {("b", 2), ("b", 3)}, what
            # A type or schema version that no one can read cannot be folded either; a hash breaks the next link.
            assert ("b", 3) not in found_in or what == "hash"


def verification_here() -> Any:
    """Verify within the transaction under way."""
    plan = verify(SHELF)
    assert next(plan).sql == log_queries.BEGIN_SNAPSHOT
    step = plan.send([])
    while step.sql != log_queries.COMMIT:
        step = plan.send((yield step))
    with pytest.raises(StopIteration) as stop:
        plan.send([])
    return stop.value.value


def test_an_edit_of_one_event_is_one_problem_where_the_read_model_does_not_show_it(library: Connection) -> None:
    tamper(library, CHANGE + "metadata = '[]'" + AT_B2)
    report = on(library, verify(SHELF))
    assert not report.ok
    assert found(report) == [("b", 2)]
    assert "stream b, version 2: the hash does not match" in str(report.problems[0])


def test_an_edit_that_the_read_model_shows_is_told_by_both(library: Connection) -> None:
    tamper(
        library,
        "UPDATE command_registry.events SET data = '{\"borrower\":\"Eve\"}' WHERE stream_id = 'b' AND version = 3",
    )
    report = on(library, verify(SHELF))
    assert found(report) == [("b", 3), ("b", None)]
    assert "command_registry.shelf_v1.borrower is 'Grace', the log says 'Eve'" in str(report.problems[1])


def test_swapped_events_are_found(library: Connection) -> None:
    tamper(
        library,
        """UPDATE command_registry.events AS e SET data = other.data, hash = other.hash
           FROM command_registry.events AS other
           WHERE (e.stream_id, other.stream_id) = ('b', 'b') AND (e.version, other.version) IN ((2, 3), (3, 2))""",
    )
    places = found(on(library, verify(SHELF)))
    assert ("b", 2) in places
    assert ("b", 3) in places
    assert {stream_id for stream_id, _ in places} == {"b"}


def test_events_swapped_between_streams_are_found(library: Connection) -> None:
    tamper(
        library,
        """UPDATE command_registry.events AS e SET data = other.data, hash = other.hash
           FROM command_registry.events AS other
           WHERE e.version = 1 AND other.version = 1 AND (e.stream_id, other.stream_id) IN (('a', 'b'), ('b', 'a'))""",
    )
    places = found(on(library, verify(SHELF)))
    assert {("a", 1), ("b", 1)} <= set(places)


@pytest.mark.parametrize("version", [1, 2])
def test_a_removed_event_leaves_a_gap(library: Connection, version: int) -> None:
    removal: dict[int, LiteralString] = {
        1: "DELETE FROM command_registry.events WHERE stream_id = 'b' AND version = 1",
        2: "DELETE FROM command_registry.events WHERE stream_id = 'b' AND version = 2",
    }
    tamper(library, removal[version])
    report = on(library, verify(SHELF))
    assert found(report)[0] == ("b", version)
    assert str(report.problems[0]) == (
        f"stream b, version {version}: version {version} is missing: the stream goes on with version {version + 1}"
    )


def test_a_removed_last_event_leaves_the_row_ahead(library: Connection) -> None:
    tamper(library, "DELETE FROM command_registry.events WHERE stream_id = 'b' AND version = 3")
    report = on(library, verify(SHELF))
    assert found(report) == [("b", None)] * 3
    assert [problem.problem for problem in report.problems] == [
        "command_registry.shelf_v1.borrower is 'Grace', the log says 'Ada'",
        "command_registry.shelf_v1.times_lent is 2, the log says 1",
        "command_registry.shelf_v1.version is 3, the log says 2",
    ]


def test_a_removed_stream_leaves_a_row_without_events(library: Connection) -> None:
    tamper(library, "DELETE FROM command_registry.events WHERE stream_id = 'b'")
    report = on(library, verify(SHELF))
    assert (report.events, report.streams, report.rows) == (6, 2, 3)
    assert [str(problem) for problem in report.problems] == [
        "stream b: has a row in command_registry.shelf_v1, and no events"
    ]


def test_an_event_added_behind_the_back_of_the_chain_is_found(library: Connection) -> None:
    tamper(
        library,
        """INSERT INTO command_registry.events
               (stream_id, version, type, schema_version, occurred_at, data, metadata, hash)
           VALUES ('b', 4, 'Lent', 1, now(), '{"borrower":"Eve"}', '{}', sha256('mine'))""",
    )
    assert found(on(library, verify(SHELF)))[0] == ("b", 4)


def test_a_missing_row_is_found(library: Connection) -> None:
    library.execute("DELETE FROM command_registry.shelf_v1 WHERE book_id = 'b'")
    report = on(library, verify(SHELF))
    assert [str(problem) for problem in report.problems] == ["stream b: has no row in command_registry.shelf_v1"]


CHANGED_ROWS: dict[str, tuple[LiteralString, str]] = {
    "title": ("'Emma'", "title is 'Emma', the log says 'Title b'"),
    "borrower": ("NULL", "borrower is None, the log says 'Grace'"),
    "due": (
        "'2026-01-01Z'",
        "due is datetime.datetime(2026, 1, 1, 0, 0, tzinfo=datetime.timezone.utc), the log says None",
    ),
    "note": ("'null'", "note is 'null', the log says None"),
    "fee": ("7", "fee is 7, the log says None"),
    "times_lent": ("3", "times_lent is 3, the log says 2"),
    "version": ("2", "version is 2, the log says 3"),
}


def test_a_changed_row_is_found_and_its_column_told(library: Connection) -> None:
    update = SQL("UPDATE command_registry.shelf_v1 SET {} = {} WHERE book_id = 'b'")
    for column, (value, told) in CHANGED_ROWS.items():
        with library.transaction(force_rollback=True):
            library.execute(update.format(Identifier(column), SQL(value)))
            report = on(library, verification_here())
        assert [str(problem) for problem in report.problems] == [f"stream b: command_registry.shelf_v1.{told}"]


def test_a_foreign_row_is_found(library: Connection) -> None:
    for book_id in ("\u00e4", "0", "b "):
        upsert(library, Book(book_id, "Emma"))
    report = on(library, verify(SHELF))
    assert found(report) == [("0", None), ("b ", None), ("\u00e4", None)]


@pytest.mark.every_postgres
def test_pages_that_end_within_a_stream_change_nothing(library: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    on(library, record("d", *[acquired("Long"), *(returned(n) for n in range(20))]))
    pages = (1, 2, 3, 4, 7)
    for page in pages:
        told: list[int] = []
        with pages_of(page, monkeypatch):
            report = on(library, verify(SHELF, told.append))
        assert report.ok
        assert (report.events, report.streams, report.rows) == (30, 4, 4)
        assert (sum(told), max(told)) == (30, page)
    tamper(
        library,
        "UPDATE command_registry.events SET metadata = '1' WHERE (stream_id, version) IN (('b', 3), ('d', 9))",
        "UPDATE command_registry.shelf_v1 SET title = 'x' WHERE book_id IN ('a', 'd')",
    )
    for page in pages:
        with pages_of(page, monkeypatch):
            report = on(library, verify(SHELF))
        assert sorted(found(report), key=str) == [("a", None), ("b", 3), ("d", 9), ("d", None)]


def test_a_verification_sees_one_moment_whatever_is_written_meanwhile(
    dsn: str, library: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    with psycopg.connect(dsn, autocommit=True) as writer, pages_of(2, monkeypatch):

        def write(_: int) -> None:
            on(writer, record("c", lent("Eve")))
            on(writer, record(f"d{writer.info.backend_pid}", acquired(), lent()))

        calls: list[int] = []

        def meanwhile(count: int) -> None:
            calls.append(count)
            if len(calls) == 1:
                write(count)

        report = on(library, verify(SHELF, meanwhile))
    assert report.ok
    assert (report.events, report.streams, report.rows) == (9, 3, 3)
    assert on(library, verify(SHELF)).events == 12


def test_problems_are_counted_all_and_kept_up_to_a_bound(library: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "MOST_PROBLEMS", 4)
    library.execute("UPDATE command_registry.shelf_v1 SET title = 'x', fee = 1")
    report = on(library, verify(SHELF))
    assert (report.problem_count, len(report.problems), report.ok) == (6, 4, False)


# Properties: any history.

moves = st.one_of(
    st.builds(Lent, borrower=texts.map(lambda text: text.replace("\x00", "")), due=st.none() | instants),
    st.builds(Returned, fee=st.none() | st.integers(0, 2**64 - 1), note=json_values),
)
histories = st.lists(st.lists(moves, max_size=3), min_size=1, max_size=4)


@settings(max_examples=30)
@given(names, histories, instants)
def test_after_any_history_the_row_is_the_fold_of_the_log_and_verifies(
    shelf: Connection, book_id: str, histories: list[list[Any]], at: datetime
) -> None:
    if on(shelf, plans.stream_end(book_id)) is None:
        on(shelf, record(book_id, event(Acquired(title="Emma"), at)))
    for history in histories:
        if history:
            on(shelf, record(book_id, *(event(each, at) for each in history)))
    stored, computed = row(shelf, book_id), folded(shelf, book_id)
    assert stored is not None
    assert computed is not None
    assert same(stored, computed)
    report = on(shelf, verify(SHELF))
    assert report.problems == []


@settings(max_examples=30)
@given(histories, st.data())
def test_any_edit_of_any_event_is_found(shelf: Connection, histories: list[list[Any]], data: st.DataObject) -> None:
    new = [acquired(), *(event(each) for history in histories for each in history)]
    version = data.draw(st.integers(1, len(new)))
    column = data.draw(st.sampled_from(["data", "metadata"]))
    text = encode_json(data.draw(json_values))
    assume(getattr(new[version - 1], column) != text)
    edit = SQL("UPDATE command_registry.events SET {} = {} WHERE version = {}")
    with shelf.transaction(force_rollback=True):
        on(shelf, record("b", *new))
        shelf.execute("ALTER TABLE command_registry.events DISABLE TRIGGER ALL")
        shelf.execute(edit.format(Identifier(column), Literal(text), Literal(version)))
        assert ("b", version) in found(on(shelf, verification_here()))


def test_an_event_that_nobody_can_read_is_told_with_the_reason(library: Connection) -> None:
    on(library, plans.append("b", 3, [NewEvent("Burnt", "{}", "{}", NOON)]))
    report = on(library, verify(SHELF))
    assert [str(problem) for problem in report.problems] == [
        "stream b, version 4: cannot be folded: UnknownEventType: no reader for event type 'Burnt', schema version 1: "
        "run the version of the software that wrote it, or a later one"
    ]
