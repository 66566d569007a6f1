"""Rebuilding a read model beside the one in force: equal to the live one, whoever is killed, and whenever."""

import os
import random
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, LiteralString, TypeVar, cast

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from psycopg.sql import SQL, Identifier

from eventstore import NewEvent, SchemaMismatch, plans
from eventstore.database import Database
from eventstore.errors import EventStoreError, Unavailable
from eventstore.steps import Step
from projections import Table, queries, rebuild, status, verification
from projections import plans as projections
from projections.definition import InvalidProjection
from projections.errors import (
    AlreadyRunning,
    Fenced,
    NotEqual,
    PoisonEvent,
    ProjectionError,
    StillUsed,
    UnknownProjection,
)
from projections.postgres import Projector, Rebuilt, rebuild_table
from projections.projector import Follower, lease, new_owner
from projections.rebuild import Progress, Verify
from registry import CommandState, PostgresCommandRegistry
from registry.command_status import COMMAND_STATUS
from tests import shelves
from tests.by_hand import ByHand
from tests.callers import NOON, callers, created
from tests.lending import SHELF, Shelf, acquired, lent, on, record, returned
from tests.load import chosen_seed, under_load
from tests.observing import backends, terminate, until_named
from tests.rebuilding import (
    Dies,
    Job,
    Mortal,
    Rebuilding,
    is_alive,
    kill_one,
    leases_of,
    let_the_lease_run_out,
    rebuilding,
    workers_of,
)
from tests.shelves import CHANGED, Borrowers, Fixed, NextShelf, NextStatus, Squeamish, record_in, rows_of, stock
from tests.soak import rounds
from tests.waiting import until

Connection = psycopg.Connection[Any]
S = TypeVar("S")
T = TypeVar("T")

NEXT = Table(NextShelf())
BORROWERS = Table(Borrowers())


@pytest.fixture
def shelf(connection: Connection) -> Connection:
    """A connection to a database in which version 1 of the shelf is in force."""
    on(connection, rebuild.migrate(SHELF))
    return connection


@pytest.fixture
def database(dsn: str) -> Iterator[Database]:
    """What rebuilds run over."""
    with Database(dsn, pool_size=4) as database:
        yield database


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes pages, and chunks, of so few events."""

    def make(size: int) -> None:
        monkeypatch.setattr(rebuild, "PAGE", size)
        monkeypatch.setattr(rebuild, "EVENTS_IN_CHUNK", size)
        monkeypatch.setattr(verification, "PAGE", size)

    return make


@pytest.fixture
def aside() -> Iterator[ThreadPoolExecutor]:
    """Threads for what goes on meanwhile."""
    with ThreadPoolExecutor(8) as threads:
        yield threads


def folded(connection: Connection, table: Table[S]) -> dict[str, S]:
    """Fold the whole log by hand, as the projection of a table says."""
    states: dict[str, S] = {}
    events = on(connection, plans.read_all_streams(("", 0), 100_000))
    for event in sorted(events, key=lambda event: event.log_position):
        key = table.projection.key(event)
        if key is not None:
            states[key] = table.projection.fold(states.get(key), event)
    return states


def check_equal(connection: Connection, table: Table[S]) -> dict[str, S]:
    """Check that a table is what the log says, and give its rows."""
    rows = rows_of(connection, table)
    assert rows == folded(connection, table)
    return rows


def in_force(connection: Connection, name: str = "shelf") -> int | None:
    return on(connection, rebuild.in_force(name))


def chunks(connection: Connection, table: Table[Any]) -> tuple[int, int]:
    """Tell how many chunks of a table are done, and how many there are."""
    [(left, every)] = connection.execute(
        "SELECT count(*) FILTER (WHERE events IS NULL), count(*) FROM command_registry.rebuild_chunks "
        "WHERE name = %s AND version = %s",
        (table.projection.name, table.projection.version),
    )
    return every - left, every


def books(number: int) -> list[str]:
    return [f"book {n:04}" for n in range(number)]


def forget(connection: Connection, table: Table[Any]) -> None:
    """Undo whatever was built of a version."""
    place = (table.projection.name, table.projection.version)
    if in_force(connection, place[0]) == place[1]:
        if place[1] > 1:
            on(connection, rebuild.switch(place[0], 1))
        else:
            connection.execute(SQL("DROP VIEW {}").format(table.view))
    connection.execute(SQL("DROP TABLE IF EXISTS {}").format(table.identifier))
    for bookkeeping in ("projectors", "projections", "rebuild_chunks"):
        where = SQL("DELETE FROM command_registry.{} WHERE name = %s AND version = %s")
        connection.execute(where.format(Identifier(bookkeeping)), place)


# Killed, and gone on with.


def test_a_rebuild_that_is_killed_again_and_again_ends_equal_to_the_live_table(
    dsn: str, connection: Connection
) -> None:
    seed = chosen_seed()
    dice, table, kills = random.Random(seed), Table(NextStatus()), rounds(10, 50)  # noqa: S311 - to be replayed
    with callers("threads", dsn) as opened:
        ids = [command_id for _ in range(3) for command_id in created(opened, 200)]
    with writers(dsn, ids, seed):
        while kills:
            done, every = chunks(connection, table)
            with rebuilding(Job(dsn, "NextStatus", chunk=20, workers=dice.choice([1, 1, 2]))) as build:
                moment = dice.randrange(1, 12)
                until(lambda: len(build.told) >= moment or build.ended, "the rebuild to have come so far")  # noqa: B023
                workers = workers_of(build.process.pid)
                alone = bool(workers) and dice.random() < 0.4
                if alone:
                    kill_one(dice, workers)
                    if "error" not in build.result():  # it had done its work
                        continue
                    assert build.told[-1]["message"].startswith("a worker failed: exit status -9")
                elif build.ended:
                    assert build.result().get("drained"), build.told[-1]
                else:
                    build.kill()
                    kills -= 1
                kills -= alone
            until(lambda: not any(map(is_alive, workers)), "the workers to end")  # noqa: B023
            let_the_lease_run_out(connection, table)
            now, still = chunks(connection, table)
            assert not still or still != every or now >= done
        with rebuilding(Job(dsn, "NextStatus", chunk=50, workers=2)) as build:
            last = build.result()
        assert last.get("switched"), last
        assert last["drained"]
        check_whole_up_to_the_switch(connection, table)
    with Database(dsn) as database, Projector(database, [table]):
        until(lambda: live(connection, COMMAND_STATUS) == live(connection, table), "the projector to come to the end")
    with PostgresCommandRegistry.open(dsn) as registry:
        assert registry.verify().ok


@contextmanager
def writers(dsn: str, ids: Sequence[str], seed: int) -> Iterator[None]:
    """Let two registries write, each from two threads, to the same commands and new ones; not at full speed."""
    ends = threading.Event()

    def write(registry: PostgresCommandRegistry, number: int) -> None:
        dice = random.Random(f"{seed}/{number}")  # noqa: S311 - to be replayed
        while not ends.wait(0.005):
            match dice.randrange(4):
                case 0:
                    registry.create_command("dep", "sync")
                case 1:
                    registry.complete_command(dice.choice(ids), CommandState.SUCCEEDED, NOON)
                case _:
                    registry.increment_attempt(dice.choice(ids))

    with ExitStack() as stack:
        registries = [stack.enter_context(PostgresCommandRegistry.open(dsn)) for _ in range(2)]
        with ThreadPoolExecutor(4) as threads:
            writing = [threads.submit(write, registries[number % 2], number) for number in range(4)]
            try:
                yield
            finally:
                ends.set()
            for each in writing:
                each.result(20)


def live(connection: Connection, table: Table[Any]) -> list[tuple[Any, ...]]:
    """Read the columns that the live table of version 1 has, of any version."""
    columns = SQL(", ").join(SQL("{}::text").format(Identifier(name)) for name in COMMAND_STATUS.projection.columns)
    read = SQL("SELECT {} FROM {} ORDER BY command_id").format(columns, table.identifier)
    return connection.execute(read).fetchall()


def check_whole_up_to_the_switch(connection: Connection, table: Table[Any]) -> None:
    """Check that no event is missing of a transaction that was under way at the switch, or before."""
    missing = connection.execute(
        SQL("""
            SELECT event.stream_id, event.version
            FROM command_registry.events AS event
            LEFT JOIN {} AS stored ON stored.command_id = event.stream_id
            WHERE age(event.xmin) >= (
                    SELECT age(projection.xmin)
                    FROM command_registry.projections AS projection
                    WHERE name = %s AND in_force
                )
                AND coalesce(stored.version, 0) < event.version
        """).format(table.identifier),
        (table.projection.name,),
    )
    assert missing.fetchall() == []


def beside(connection: Connection) -> Table[Any]:
    forget(connection, NEXT)
    return NEXT


def in_place(connection: Connection) -> Table[Any]:
    """The table in force, not as the log says: a value, a row that is missing, one of no stream, one ahead of it."""
    for table, row in (("projectors", "shelf"), ("rebuild_chunks", "shelf")):
        connection.execute(SQL("DELETE FROM command_registry.{} WHERE name = %s").format(Identifier(table)), (row,))
    spoil(connection)
    return SHELF


def keyed(connection: Connection) -> Table[Any]:
    forget(connection, BORROWERS)
    return BORROWERS


def spoil(connection: Connection) -> None:
    connection.execute("UPDATE command_registry.shelf_v1 SET title = 'Mine' WHERE book_id = 'book 0001'")
    connection.execute("DELETE FROM command_registry.shelf_v1 WHERE book_id = 'book 0002'")
    connection.execute("UPDATE command_registry.shelf_v1 SET version = 77 WHERE book_id = 'book 0003'")
    connection.execute("INSERT INTO command_registry.shelf_v1 (book_id, version) VALUES ('no book', 1)")


Given = Callable[[Connection], Table[Any]]


@pytest.mark.parametrize("given", [beside, in_place, keyed])
@pytest.mark.parametrize("twice", [False, True], ids=["it ends", "its answer is lost"])
def test_whatever_the_step_at_which_a_build_is_broken_off_the_next_one_makes_it_whole(
    shelf: Connection, database: Database, small: Callable[[int], None], given: Given, *, twice: bool
) -> None:
    small(4)
    stock(shelf, SHELF, books(4), ["Ada", "Grace"])
    whole = Mortal(database, 10_000)
    rebuild_table(cast("Database", whole), given(shelf), verify="full")
    dice, every = random.Random(chosen_seed()), range(len(whole.taken))  # noqa: S311 - to be replayed
    for steps in sorted(dice.sample(every, rounds(8, len(every)))):
        print(f"at step {steps}: {str(whole.taken[steps].sql)[:200]}")
        table, mortal = given(shelf), Mortal(database, steps, twice=twice)
        try:
            rebuild_table(cast("Database", mortal), table, verify="full")
        except (Dies, EventStoreError):
            let_the_lease_run_out(shelf, table)
            if phase(shelf, table) != "following":  # it was at its very end
                on(shelf, record(f"book {steps % 4:04}", lent(f"Reader {steps}")))
                rebuild_table(database, table, verify="full")
        check_equal(shelf, table)
        assert in_force(shelf, table.projection.name) == table.projection.version
        assert chunks(shelf, table) == (0, 0)


def phase(connection: Connection, table: Table[Any]) -> str:
    return on(connection, rebuild.progress(table)).phase


def migrates(database: Database, told: Callable[[object], None]) -> None:
    database.run(rebuild.migrate(NEXT, told), lasting=True)


def rebuilds_it(database: Database, told: Callable[[object], None]) -> None:
    rebuild_table(database, NEXT, told=told, verify="none")


Build = Callable[[Database, Callable[[object], None]], None]


@pytest.mark.parametrize("build", [migrates, rebuilds_it])
def test_a_claim_that_was_lost_with_its_connection_leaves_no_chunk_out(
    shelf: Connection, database: Database, small: Callable[[int], None], build: Build
) -> None:
    small(3)
    stock(shelf, SHELF, books(8))
    losing = Mortal(database, 10_000)
    claims = 0

    def lost(step: Step) -> Any:
        nonlocal claims
        if step.sql == queries.CLAIM_CHUNK:
            claims += 1
            if claims % 2:
                yield step  # done, and its answer lost
        return (yield step)

    losing._taken = lost  # type: ignore[method-assign]
    build(cast("Database", losing), lambda _: None)
    assert claims > 2
    check_equal(shelf, NEXT)


def test_chunks_that_were_done_stay_done(shelf: Connection, database: Database, small: Callable[[int], None]) -> None:
    small(3)
    events = stock(shelf, SHELF, books(40))
    told: list[Progress] = []

    def dies_at_half(progress: Progress) -> None:
        told.append(progress)
        if progress.done >= events / 2:
            raise Dies

    with pytest.raises(Dies):
        rebuild_table(database, NEXT, told=dies_at_half)
    done, every = chunks(shelf, NEXT)
    assert 0 < done < every
    left = rows_of(shelf, NEXT).keys()
    touched = transactions(shelf, NEXT)
    again = rebuild_table(database, NEXT)
    assert 0 < again.events <= events - told[-1].done
    assert {key: touched[key] for key in left} == {key: transactions(shelf, NEXT)[key] for key in left}
    check_equal(shelf, NEXT)


def transactions(connection: Connection, table: Table[Any]) -> dict[str, str]:
    """Tell which transaction wrote each row."""
    return dict(connection.execute(SQL("SELECT book_id, xmin::text FROM {}").format(table.identifier)).fetchall())


def test_who_restarts_forgets_what_was_done(
    shelf: Connection, database: Database, small: Callable[[int], None]
) -> None:
    small(3)
    events = stock(shelf, SHELF, books(20))

    with pytest.raises(Dies):
        rebuild_table(database, NEXT, told=dies_when_begun)
    assert rebuild_table(database, NEXT, restart=True).events == events
    check_equal(shelf, NEXT)


# The switch.


def rebuilds(aside: ThreadPoolExecutor, database: Database, table: Table[Any], **settings: Any) -> "Future[Rebuilt]":
    return aside.submit(rebuild_table, database, table, **settings)


@pytest.fixture
def another(dsn: str) -> Iterator[Connection]:
    """Another connection, for a transaction that stays open."""
    with psycopg.connect(dsn) as connection:
        yield connection


def test_an_append_that_is_open_across_the_switch_is_in_the_new_table_after_the_drain(
    shelf: Connection, another: Connection, database: Database, aside: ThreadPoolExecutor
) -> None:
    stock(shelf, SHELF, books(3))
    on(another, record("book 0001", lent("Eve")))
    on(another, record("new", acquired("Emma")))
    build = rebuilds(aside, database, NEXT)
    until(lambda: in_force(shelf) == 2)
    assert not build.done()
    assert rows_of(shelf, NEXT)["book 0001"].borrower is None
    another.commit()
    assert build.result(60).drained
    assert check_equal(shelf, NEXT)["book 0001"].borrower == "Eve"


def test_what_an_old_transaction_filed_under_a_younger_one_is_in_the_new_table_after_the_drain(
    shelf: Connection, another: Connection, dsn: str, database: Database, aside: ThreadPoolExecutor
) -> None:
    another.execute("SELECT pg_current_xact_id()")  # older than the switch
    build = rebuilds(aside, database, NEXT)
    until(lambda: in_force(shelf) == 2)
    with psycopg.connect(dsn) as younger:
        younger.execute("SELECT pg_current_xact_id()")
        on(shelf, record("book", acquired("Emma")))
        on(another, record("book", lent("Eve")))
        another.commit()
        on(shelf, record("later", acquired("Emma")))
        oldest = "SELECT pg_snapshot_xmin(pg_current_snapshot())::text"
        until(
            lambda: shelf.execute(oldest).fetchone() == younger.execute("SELECT pg_current_xact_id()::text").fetchone()
        )
        with pytest.raises(TimeoutError):
            build.result(0.2)
        younger.rollback()
    assert build.result(60).drained
    assert rows_of(shelf, NEXT)["book"].borrower == "Eve"


def test_an_append_that_stays_open_is_told_of_and_read_right_and_brought_by_a_projector(
    dsn: str, connection: Connection, another: Connection, database: Database
) -> None:
    table = Table(NextStatus())
    with PostgresCommandRegistry.open(dsn) as registry:
        old = registry.create_command("dep", "sync").command_id
        registry.increment_attempt(old, connection=another)
        new = registry.create_command("dep", "sync", connection=another).command_id
        rebuilt = rebuild_table(database, table, drain_seconds=0.1)
        assert (rebuilt.switched, rebuilt.drained) == (True, False)
        another.commit()
    with shelves.next_registry(), PostgresCommandRegistry.open(dsn) as registry:
        for command_id, attempt in ((old, 2), (new, 1)):
            found = registry.get_command_status(command_id)
            assert found is not None
            assert found.attempt == attempt
    assert new not in rows_of(connection, table)
    with Projector(database, [table]):
        until(lambda: rows_of(connection, table).keys() == {old, new})
    assert rows_of(connection, table) == folded(connection, table)


@pytest.mark.parametrize("changed", CHANGED)
def test_software_of_both_versions_writes_side_by_side_and_each_sees_its_own_read_model(
    shelf: Connection, database: Database, changed: type[Shelf]
) -> None:
    table = Table(changed())
    stock(shelf, SHELF, books(10))
    shelf.execute("DELETE FROM command_registry.projectors")  # as in a database of the time before there were any
    numbers = count()

    def traffic() -> None:
        """Let both write to the same books, and to ones of their own; each reads what is true, in its own shape."""
        with suppress(SchemaMismatch):
            on(shelf, projections.check(table))
            on(shelf, record_in(table, f"of 2, {next(numbers)}", acquired("Emma")))
            on(shelf, record_in(table, "book 0001", lent("Eve")))
        on(shelf, record(f"of 1, {next(numbers)}", acquired("Emma")))
        on(shelf, record("book 0001", returned(7), lent("Grace")))
        for each in (SHELF, table):
            with suppress(psycopg.errors.UndefinedTable):
                for book_id, book in folded(shelf, each).items():
                    loaded = on(shelf, projections.load(each, book_id))
                    assert loaded is not None
                    assert loaded.state == book

    def told(_: Progress) -> None:
        traffic()

    assert rebuild_table(database, table, told=told, verify="full").drained
    assert columns(shelf) == list(changed.columns)
    traffic()
    with Projector(database, [SHELF, table]):
        for each in (SHELF, table):
            until(lambda: rows_of(shelf, each) == folded(shelf, each), each.full_name)  # noqa: B023
    on(shelf, rebuild.switch("shelf", 1))
    assert (in_force(shelf), columns(shelf)) == (1, list(Shelf.columns))
    traffic()
    assert shelf.execute("SELECT count(*) FROM command_registry.shelf").fetchall() == [(len(rows_of(shelf, SHELF)),)]


def columns(connection: Connection) -> list[str]:
    """Give the columns that the view shows."""
    description = connection.execute("SELECT * FROM command_registry.shelf LIMIT 0").description
    return [column.name for column in description or ()]


def test_who_reads_the_view_while_it_switches_sees_one_version_or_the_other(
    shelf: Connection, dsn: str, database: Database, aside: ThreadPoolExecutor
) -> None:
    stock(shelf, SHELF, books(3))
    ends = threading.Event()
    seen: dict[tuple[str, ...], int] = {}

    def read() -> None:
        with psycopg.connect(dsn, autocommit=True, prepare_threshold=None) as reader:
            while not ends.is_set():
                cursor = reader.execute("SELECT * FROM command_registry.shelf")
                shape = tuple(column.name for column in cursor.description or ())
                assert len(cursor.fetchall()) == 3
                seen[shape] = seen.get(shape, 0) + 1

    reading = [aside.submit(read) for _ in range(3)]
    table = Table(shelves.AddedColumn())
    rebuild_table(database, table)
    for turn in range(rounds(30, 500)):
        on(shelf, rebuild.switch("shelf", 1 + turn % 2))
        before = sum(seen.values())
        until(lambda: sum(seen.values()) > before)  # noqa: B023
    ends.set()
    for each in reading:
        each.result(20)
    assert seen.keys() == {tuple(Shelf.columns), tuple(shelves.AddedColumn.columns)}


@contextmanager
def roles(connection: Connection, *names: str) -> Iterator[None]:
    for name in names:
        connection.execute(SQL("CREATE ROLE {} NOLOGIN").format(Identifier(name)))
    try:
        yield
    finally:
        for name in names:
            connection.execute(SQL("DROP OWNED BY {}").format(Identifier(name)))
            connection.execute(SQL("DROP ROLE {}").format(Identifier(name)))


@pytest.mark.parametrize("to_public", [False, True])
def test_rights_on_the_view_outlive_the_switch(shelf: Connection, database: Database, *, to_public: bool) -> None:
    unique = uuid.uuid4().hex[:8]
    plain, odd, stranger = f"plain_{unique}", f'Odd "Röle" {unique}', f"stranger_{unique}"
    readers = [plain, odd, "command_registry_reader", "command_registry_writer"]
    with roles(shelf, plain, odd, stranger):
        for name in (plain, odd):
            shelf.execute(SQL("GRANT SELECT ON command_registry.shelf TO {}").format(Identifier(name)))
        if to_public:
            shelf.execute("GRANT SELECT ON command_registry.shelf TO PUBLIC")
        rebuild_table(database, NEXT)
        assert in_force(shelf) == 2
        for version in (1, 2):
            assert [name for name in (*readers, stranger) if may_read(shelf, name)] == readers + [stranger] * to_public
            on(shelf, rebuild.switch("shelf", version))


def may_read(connection: Connection, role: str) -> bool:
    [(may,)] = connection.execute("SELECT has_table_privilege(%s, 'command_registry.shelf', 'SELECT')", (role,))
    return bool(may)


def test_a_view_of_the_users_own_makes_the_switch_fail_and_then_nothing_has_changed(
    shelf: Connection, database: Database
) -> None:
    events = stock(shelf, SHELF, books(3))
    shelf.execute("CREATE VIEW public.mine AS SELECT title FROM command_registry.shelf")
    for _ in range(2):
        with pytest.raises(StillUsed, match=r"cannot show another version, view public\.mine depends on view"):
            rebuild_table(database, NEXT)
        assert in_force(shelf) == 1
        assert shelf.execute("SELECT count(*) FROM public.mine").fetchall() == [(3,)]
    shelf.execute("DROP VIEW public.mine")
    again = rebuild_table(database, NEXT)
    assert (again.events, again.switched) == (0, True)
    assert in_force(shelf) == 2
    assert rebuild_table(database, NEXT).events == events  # and then, all over again


def test_a_view_of_the_users_own_does_not_keep_a_table_from_being_repaired(
    shelf: Connection, database: Database
) -> None:
    stock(shelf, SHELF, books(4))
    shelf.execute("CREATE VIEW public.mine AS SELECT title FROM command_registry.shelf")
    spoil(shelf)
    assert rebuild_table(database, SHELF).in_place
    check_equal(shelf, SHELF)


def test_who_reads_the_view_in_a_long_transaction_delays_the_switch_and_the_others_little(
    shelf: Connection, another: Connection, dsn: str, database: Database, aside: ThreadPoolExecutor
) -> None:
    stock(shelf, SHELF, books(3))
    rebuild_table(database, NEXT, switch=False)
    another.execute("SELECT * FROM command_registry.shelf")
    switching = aside.submit(database.run, rebuild.switch("shelf", 2))
    until(lambda: backends(shelf, waiting=True), "the switch to wait")
    with psycopg.connect(dsn, autocommit=True) as reader:
        reader.execute("SET statement_timeout = '8s'")
        assert len(reader.execute("SELECT * FROM command_registry.shelf").fetchall()) == 3
    assert not switching.done()
    another.commit()
    switching.result(20)
    assert in_force(shelf) == 2


def test_only_a_whole_table_can_be_put_in_force(shelf: Connection, database: Database) -> None:
    for version in (2, 3):
        with pytest.raises(UnknownProjection, match=f"no whole read model shelf, version {version}"):
            database.run(rebuild.switch("shelf", version))
    assert not rebuild_table(database, NEXT, switch=False).switched
    assert in_force(shelf) == 1
    database.run(rebuild.switch("shelf", 2))
    assert in_force(shelf) == 2


# Two at once.


def test_a_second_rebuild_is_told_who_is_at_it_for_as_long_as_that_takes(
    shelf: Connection, another: Connection, database: Database, aside: ThreadPoolExecutor
) -> None:
    stock(shelf, SHELF, books(3))
    rebuild_table(database, NEXT)
    forget_index = "DROP INDEX command_registry.shelf_v2_due"
    shelf.execute(forget_index)
    shelf.execute("DELETE FROM command_registry.projections WHERE version = 2 AND NOT in_force")
    on(shelf, rebuild.switch("shelf", 1))
    shelf.execute("DELETE FROM command_registry.projections WHERE version = 2")
    locked: list[Progress] = []

    def lock(progress: Progress) -> None:
        """Hold the table, as one who writes to it, once it is being filled."""
        if not locked:
            locked.append(progress)
            another.execute("LOCK TABLE command_registry.shelf_v2 IN ROW EXCLUSIVE MODE")

    with leases_of(0.3):
        build = rebuilds(aside, database, NEXT, told=lock)
        until(lambda: backends(shelf, waiting=True), "an index to wait for the lock")
        kept = leases(shelf)
        owner = str(shelf.execute(OWNER).fetchall()[0][0])
        for _ in range(2):  # each waits for longer than a lease, to see whether the owner lives
            with pytest.raises(AlreadyRunning, match="let that end, or stop it first") as refused:
                rebuild_table(database, NEXT)
            assert refused.value.owner == owner
            kept = until(lambda: leases(shelf) > kept and leases(shelf), "the lease to be renewed")  # noqa: B023
        another.rollback()
        assert build.result(60).switched
    check_equal(shelf, NEXT)


OWNER: LiteralString = "SELECT owner FROM command_registry.projectors WHERE name = 'shelf' AND version = 2"


def leases(connection: Connection) -> Any:
    return connection.execute(
        "SELECT lease_until FROM command_registry.projectors WHERE name = 'shelf' AND version = 2"
    ).fetchall()[0][0]


def test_after_a_kill_the_next_rebuild_begins_when_the_lease_has_run_out_and_not_before(
    dsn: str, shelf: Connection, database: Database
) -> None:
    stock(shelf, SHELF, books(200))
    with rebuilding(Job(dsn, "NextShelf", chunk=2, lease_seconds=1.5)) as build:
        until(lambda: len(build.told) > 5)
        build.kill()
    killed = leases(shelf)
    with pytest.raises(AlreadyRunning) as refused:
        on(shelf, rebuild.begin(Follower(NEXT, "another", builds=True)))
    assert str(build.process.pid) in refused.value.owner
    assert rebuild_table(database, NEXT).switched
    [(began,)] = shelf.execute("SELECT min(updated_at) FROM command_registry.projections WHERE version = 2").fetchall()
    assert began > killed
    check_equal(shelf, NEXT)


def test_one_who_stalls_at_the_beginning_changes_nothing_after_another_has_built_it(
    dsn: str, shelf: Connection, database: Database
) -> None:
    stock(shelf, SHELF, books(30))
    stalled = Follower(NEXT, "stalled", builds=True)
    with psycopg.connect(dsn, autocommit=True) as connection:
        begins = ByHand(rebuild.begin(stalled), connection)
        while stalled.token < 0:
            begins.take()
        shelf.execute("UPDATE command_registry.projectors SET lease_until = NULL")  # as when it has run out
        assert rebuild_table(database, NEXT).switched
        rows = check_equal(shelf, NEXT)
        with pytest.raises(Fenced):
            begins.to_the_end()
    assert check_equal(shelf, NEXT) == rows


def test_a_writer_cannot_say_what_the_owner_is_to_run(shelf: Connection) -> None:
    shelf.execute("SET ROLE command_registry_writer")
    for column in ("view_definition = 'SELECT 1'", "phase = 'built'", "inline = true"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            shelf.execute(f"UPDATE command_registry.projectors SET {column}")  # noqa: S608
    shelf.execute("UPDATE command_registry.projectors SET owner = 'me', position = position")
    shelf.execute("RESET ROLE")


def test_no_table_has_a_name_that_postgres_would_take_for_another() -> None:
    for name in ("Upper", "events", "a b", "x_v1"):
        with pytest.raises(InvalidProjection, match="name: must"):
            Table(type("Odd", (type(SHELF.projection),), {"name": name})())


# In place.


def test_a_table_in_force_is_repaired_while_everybody_writes(dsn: str, connection: Connection) -> None:
    seed = chosen_seed()
    with callers("threads", dsn) as opened:
        idle = created(opened, 12)
    with under_load("threads", dsn, number=4, seed=seed, rivals=dsn) as load, Database(dsn, pool_size=4) as database:
        for turn in range(rounds(3, 10)):
            ids = idle[turn % 3 :: 3]
            table = "command_registry.command_status_v1"
            connection.execute(f"UPDATE {table} SET state = 'FAILED' WHERE command_id = %s", (ids[0],))  # noqa: S608
            connection.execute(f"DELETE FROM {table} WHERE command_id = %s", (ids[1],))  # noqa: S608
            connection.execute(f"UPDATE {table} SET version = 9 WHERE command_id = %s", (ids[2],))  # noqa: S608
            connection.execute(
                f"INSERT INTO {table} SELECT 'cmd_none', {', '.join(list(COMMAND_STATUS.projection.columns)[1:])}"  # noqa: S608
                f" FROM {table} WHERE command_id = %s",
                (ids[3],),
            )
            rebuilt = rebuild_table(database, COMMAND_STATUS, verify="full")
            assert (rebuilt.in_place, rebuilt.switched) == (True, True)
    load.check(dsn, beside=idle)


def test_a_row_that_is_written_on_a_wrong_one_while_it_is_repaired_is_repaired_too(shelf: Connection) -> None:
    stock(shelf, SHELF, books(3))
    spoil(shelf)
    builder = Follower(SHELF, new_owner(), builds=True)
    on(shelf, rebuild.begin(builder))
    fill = ByHand(rebuild.fill_chunk(builder), shelf)
    while b"INSERT INTO" not in bytes(str(fill.pending.sql), "utf-8"):
        fill.take()
    on(shelf, record("book 0001", lent("Eve")))  # on what is in the row
    assert rows_of(shelf, SHELF)["book 0001"].title == "Mine"
    fill.to_the_end()
    check_equal(shelf, SHELF)


# Verified.


def planting(connection: Connection, *statements: LiteralString) -> Callable[[Progress], None]:
    """Spoil the new table once all of it is there."""

    def told(progress: Progress) -> None:
        if progress.phase == "catch-up":
            for statement in statements:
                connection.execute(statement)

    return told


PLANTED: dict[str, tuple[LiteralString, str]] = {
    "a value": (
        "UPDATE command_registry.shelf_v2 SET title = 'Mine' WHERE book_id = 'book 0001'",
        "stream book 0001: command_registry.shelf_v2.title is 'Mine', the log says 'Title 1'",
    ),
    "a row that is missing": (
        "DELETE FROM command_registry.shelf_v2 WHERE book_id = 'book 0001'",
        "stream book 0001, version 3: is not in command_registry.shelf_v2, which has version 0",
    ),
    "a row that lags": (
        "UPDATE command_registry.shelf_v2 SET version = 2 WHERE book_id = 'book 0001'",
        "stream book 0001, version 3: is not in command_registry.shelf_v2, which has version 2",
    ),
    "a row that is ahead": (
        "UPDATE command_registry.shelf_v2 SET version = 4 WHERE book_id = 'book 0001'",
        "stream book 0001: command_registry.shelf_v2 has version 4, the log ends at 3",
    ),
    "a row of no book": (
        "INSERT INTO command_registry.shelf_v2 (book_id, version) VALUES ('none', 1) ON CONFLICT DO NOTHING",
        "stream none: has a row in command_registry.shelf_v2, and no events",
    ),
}


@pytest.mark.parametrize("verify", ["sample", "full"])
def test_what_is_not_as_the_log_says_is_found_before_the_switch(
    shelf: Connection, database: Database, small: Callable[[int], None], verify: Verify
) -> None:
    small(4)
    events = stock(shelf, SHELF, books(5))
    for planted, (statement, problem) in PLANTED.items():
        if (planted, verify) == ("a row of no book", "sample"):
            continue  # a sample is of streams
        forget(shelf, NEXT)
        with pytest.raises(NotEqual) as found:
            rebuild_table(database, NEXT, verify=verify, told=planting(shelf, statement))
        assert problem in str(found.value)
        assert problem in (on(shelf, rebuild.progress(NEXT)).last_error or "")
        with pytest.raises(NotEqual):
            rebuild_table(database, NEXT, verify=verify)
        assert in_force(shelf) == 1
        with pytest.raises(SchemaMismatch):
            on(shelf, projections.check(NEXT))
        rebuilt = rebuild_table(database, NEXT, verify=verify, restart=True)
        assert (rebuilt.events, rebuilt.compared, rebuilt.switched) == (events, 5, True)
        check_equal(shelf, NEXT)


def test_a_migration_builds_anew_what_did_not_verify(shelf: Connection, database: Database) -> None:
    stock(shelf, SHELF, books(3))
    with pytest.raises(NotEqual):
        rebuild_table(database, NEXT, told=planting(shelf, PLANTED["a value"][0]))
    let_the_lease_run_out(shelf, NEXT)
    on(shelf, rebuild.migrate(NEXT))
    check_equal(shelf, NEXT)
    assert in_force(shelf) == 1


def test_who_verifies_nothing_compares_nothing(shelf: Connection, database: Database) -> None:
    stock(shelf, SHELF, books(3))
    rebuilt = rebuild_table(database, NEXT, verify="none", told=planting(shelf, PLANTED["a value"][0]))
    assert (rebuilt.compared, rebuilt.switched) == (0, True)


@pytest.mark.parametrize("verify", ["sample", "full"])
@pytest.mark.parametrize("impure", [shelves.Impure, shelves.Careless])
def test_a_fold_that_is_not_pure_is_found_out(
    shelf: Connection, database: Database, impure: type[Shelf], verify: Verify
) -> None:
    stock(shelf, SHELF, books(3))
    shelves.Careless.seen.clear()
    with pytest.raises(NotEqual, match="and the fold pure"):
        rebuild_table(database, Table(impure()), verify=verify)
    assert in_force(shelf) == 1


@pytest.mark.parametrize("verify", ["sample", "full"])
def test_a_read_model_of_several_streams_is_built_in_the_order_of_the_log_and_verified(
    shelf: Connection, database: Database, verify: Verify
) -> None:
    for number in range(12):
        stock(shelf, SHELF, [f"book {99 - number}"], ["Ada", "Grace"][: 1 + number % 2])
    rebuilt = rebuild_table(database, BORROWERS, verify=verify)
    assert (rebuilt.compared, rebuilt.switched, rebuilt.drained) == (2, True, True)
    rows = check_equal(shelf, BORROWERS)
    assert rows == {"Ada": ("Ada", 12, "book 88"), "Grace": ("Grace", 6, "book 88")}
    forget(shelf, BORROWERS)
    spoilt: tuple[LiteralString, ...] = (
        "UPDATE command_registry.borrowers_v1 SET loans = 5 WHERE borrower = 'Ada'",
        "INSERT INTO command_registry.borrowers_v1 VALUES ('Eve', 1, 'book 90') ON CONFLICT DO NOTHING",
    )
    for planted in spoilt:
        with pytest.raises(NotEqual, match=r"Ada|Eve"):
            rebuild_table(database, BORROWERS, verify=verify, restart=True, told=planting(shelf, planted))
        assert in_force(shelf, "borrowers") is None
    assert rebuild_table(database, BORROWERS, verify=verify, restart=True).switched
    assert check_equal(shelf, BORROWERS) == rows
    with pytest.raises(ProjectionError, match="cannot be built anew in place: give the projection its next version"):
        rebuild_table(database, BORROWERS)


def test_a_read_model_of_several_streams_waits_for_what_is_held_back_before_it_is_put_in_force(
    dsn: str, shelf: Connection, database: Database, another: Connection, aside: ThreadPoolExecutor
) -> None:
    another.execute("SELECT pg_current_xact_id()")  # open before all that follows
    until_named(shelf, f"pid {another.info.backend_pid}")
    stock(shelf, SHELF, books(5), ["Ada"])
    build = rebuilds(aside, database, BORROWERS)
    name = BORROWERS.projection.name
    query = "SELECT last_error FROM command_registry.projectors WHERE name = %s"
    [(error,)] = until(lambda: [row for row in shelf.execute(query, (name,)) if row[0]], "it to say what it waits for")
    assert f"waiting for pid {another.info.backend_pid} in database" in error
    assert in_force(shelf, name) is None
    another.rollback()
    assert build.result(60).compared > 0
    assert in_force(shelf, name) == 1


# Poison.


def test_an_event_that_cannot_be_folded_is_named_and_a_mended_projection_goes_on(
    shelf: Connection, database: Database, small: Callable[[int], None]
) -> None:
    small(3)
    events = stock(shelf, SHELF, books(8)) + stock(shelf, SHELF, ["book 0005a"], ["Eve"])
    with pytest.raises(PoisonEvent) as found:
        rebuild_table(database, Table(Squeamish()))
    named = "shelf_v2 cannot fold version 2 of stream 'book 0005a' (Lent): ValueError: I do not know any Eve"
    assert str(found.value) == named
    assert on(shelf, rebuild.progress(NEXT)).last_error == named
    done, _ = chunks(shelf, NEXT)
    assert done
    assert in_force(shelf) == 1
    rebuilt = rebuild_table(database, Table(Fixed()), verify="full")
    assert 0 < rebuilt.events < events
    assert on(shelf, rebuild.progress(NEXT)).last_error is None
    check_equal(shelf, NEXT)


def test_an_event_that_cannot_be_folded_is_named_by_workers_too(
    shelf: Connection, database: Database, small: Callable[[int], None]
) -> None:
    small(3)
    stock(shelf, SHELF, books(30))
    stock(shelf, SHELF, ["book 0001a"], ["Eve"])
    with pytest.raises(
        ProjectionError, match=r"a worker failed: shelf_v2 cannot fold version 2 of stream 'book 0001a'"
    ):
        rebuild_table(database, Table(Squeamish()), workers=2)
    assert "cannot fold version 2 of stream 'book 0001a'" in (on(shelf, rebuild.progress(NEXT)).last_error or "")
    rebuild_table(database, Table(Fixed()), verify="full")
    check_equal(shelf, NEXT)


def test_an_event_that_is_to_be_left_out_is_left_out(
    shelf: Connection, database: Database, small: Callable[[int], None]
) -> None:
    small(2)
    squeamish = Table(Squeamish())
    stock(shelf, SHELF, books(2))
    stock(shelf, SHELF, ["book 0000a"], ["Eve", "Ada"])
    with pytest.raises(PoisonEvent):
        rebuild_table(database, squeamish)
    assert on(shelf, status.skip("shelf", 2, "book 0000a", 2, "who is Eve?"))
    assert rebuild_table(database, squeamish, verify="full").switched
    book = rows_of(shelf, squeamish)["book 0000a"]
    assert (book.times_lent, book.version) == (1, 5)


# Workers.


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_make_the_same_table(
    shelf: Connection, database: Database, small: Callable[[int], None], workers: int
) -> None:
    small(10)
    events = stock(shelf, SHELF, books(100))
    rebuilt = rebuild_table(database, NEXT, workers=workers, verify="full")
    assert (rebuilt.events, rebuilt.compared) == (events, 100)
    check_equal(shelf, NEXT)


def test_a_projection_that_no_other_process_can_import_is_refused(
    dsn: str, shelf: Connection, database: Database
) -> None:
    class Local(NextShelf):
        pass

    stock(shelf, SHELF, books(2))
    with pytest.raises(ProjectionError, match=r"Local cannot be imported by another process: put the class at the top"):
        rebuild_table(database, Table(Local()), workers=2)
    assert rebuild_table(database, Table(Local()), workers=1).switched
    program = (
        "import sys\nfrom eventstore.database import Database\nfrom projections import Table\n"
        "from projections.postgres import rebuild_table\nfrom tests.lending import Shelf\n"
        "class Mine(Shelf):\n    version = 3\n"
        "with Database(sys.stdin.read()) as database:\n    rebuild_table(database, Table(Mine()), workers=2)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], input=dsn, capture_output=True, text=True, check=False)
    assert "__main__.Mine cannot be imported by another process" in ended.stderr


@contextmanager
def both_workers_waiting(
    dsn: str, shelf: Connection, another: Connection, database: Database
) -> Iterator[tuple[Rebuilding, list[int]]]:
    """Start a rebuild that somebody has begun; both of its workers wait for another's transaction."""
    stock(shelf, SHELF, books(20))
    with pytest.raises(Dies):
        rebuild_table(database, NEXT, told=dies_when_begun)
    let_the_lease_run_out(shelf, NEXT)
    another.execute("LOCK TABLE command_registry.shelf_v2 IN SHARE MODE")
    with rebuilding(Job(dsn, "NextShelf", workers=2, lease_seconds=5)) as build:
        workers = until(lambda: two(workers_of(build.process.pid)))
        until(lambda: len(backends(shelf, waiting=True)) == 2)
        yield build, workers


def test_a_worker_that_is_killed_is_told_of_and_the_next_rebuild_goes_on(
    dsn: str, shelf: Connection, another: Connection, database: Database, small: Callable[[int], None]
) -> None:
    small(3)
    with both_workers_waiting(dsn, shelf, another, database) as (build, workers):
        os.kill(workers[0], signal.SIGKILL)
        said = build.result()
    assert said["error"] == "ProjectionError"
    assert said["message"] == "a worker failed: exit status -9; what is done is kept, and the next rebuild goes on"
    assert on(shelf, rebuild.progress(NEXT)).last_error == said["message"]
    another.rollback()
    done, _ = chunks(shelf, NEXT)
    assert done
    rebuild_table(database, NEXT, verify="full")
    check_equal(shelf, NEXT)


def dies_when_begun(progress: Progress) -> None:
    if progress.done:
        raise Dies


def two(workers: list[int]) -> list[int]:
    return workers if len(workers) == 2 else []


def test_no_worker_outlives_who_started_it(
    dsn: str, shelf: Connection, another: Connection, database: Database, small: Callable[[int], None]
) -> None:
    small(3)
    with both_workers_waiting(dsn, shelf, another, database) as (build, workers):
        build.kill()
        until(lambda: not any(map(is_alive, workers)), "the workers to end")


def test_no_list_of_processes_shows_the_password(dsn: str, shelf: Connection) -> None:
    stock(shelf, SHELF, books(150))
    secret = make_conninfo(dsn, password="open sesame")  # noqa: S106
    with rebuilding(Job(secret, "NextShelf", chunk=2, workers=2)) as build:
        workers = until(lambda: two(workers_of(build.process.pid)))
        until(lambda: any(told.get("done") for told in build.told) or build.ended)
        for pid in (build.process.pid, *workers):
            with suppress(OSError):
                shown = Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
                assert b"sesame" not in shown
        assert build.result()["switched"]


# Migrating.


def test_two_migrations_at_once_build_a_read_model_once(
    dsn: str, shelf: Connection, small: Callable[[int], None], aside: ThreadPoolExecutor
) -> None:
    small(5)
    events = stock(shelf, SHELF, books(60))
    together = threading.Barrier(3)
    told: list[int] = []

    def migrate() -> None:
        with Database(dsn) as database:
            together.wait()
            database.run(rebuild.migrate(NEXT, told.append), lasting=True)
            database.run(projections.check(NEXT))

    for each in [aside.submit(migrate) for _ in range(3)]:
        each.result(60)
    assert sum(told) == events
    assert in_force(shelf) == 1
    check_equal(shelf, NEXT)


def test_a_migration_that_takes_longer_than_its_lease_waits_for_who_has_taken_over(
    dsn: str, shelf: Connection, small: Callable[[int], None], aside: ThreadPoolExecutor
) -> None:
    small(5)
    stock(shelf, SHELF, books(20))
    other = Follower(NEXT, new_owner(), builds=True)
    taken: list[bool] = []

    def overtaken(_: int) -> None:
        if not taken:
            let_the_lease_run_out(shelf, NEXT)
            taken.append(on(shelf, lease(other)))

    with Database(dsn) as database:
        migrating = aside.submit(database.run, rebuild.migrate(NEXT, overtaken), lasting=True)
        until(lambda: taken)
        with pytest.raises(TimeoutError):
            migrating.result(0.2)
        let_the_lease_run_out(shelf, NEXT)
        migrating.result(60)
    assert taken == [True]
    check_equal(shelf, NEXT)


@pytest.mark.parametrize("build", [migrates, rebuilds_it])
def test_a_build_whose_connections_are_cut_is_done_by_itself_or_by_the_next(
    dsn: str,
    shelf: Connection,
    small: Callable[[int], None],
    build: Build,
) -> None:
    small(5)
    stock(shelf, SHELF, books(40))
    dice = random.Random(chosen_seed())  # noqa: S311 - to be replayed
    for _ in range(rounds(5, 60)):
        forget(shelf, NEXT)
        told = 0

        def cut(_: object) -> None:
            nonlocal told
            told += 1
            if told in moments:  # noqa: B023
                terminate(shelf, backends(shelf))

        moments = {dice.randrange(1, 30) for _ in range(3)}
        with Database(dsn) as database:
            with suppress(Unavailable):
                build(database, cut)
            let_the_lease_run_out(shelf, NEXT)
            build(database, lambda _: None)
        check_equal(shelf, NEXT)


# Logs of all kinds.


ODD = [
    "a",
    "A",
    "ä",
    "Z z",
    "'",
    '"',
    "\\",
    "{}",
    "NULL",
    "%s",
    "\u00a0",
    "é",
    "e\u0301",
    "\uffff",
    "\U0010ffff",
    "\U0010ffffa",
]


def nothing(_: Connection) -> None:
    pass


def one_event(connection: Connection) -> None:
    on(connection, record("book", acquired("Emma")))


def one_huge_stream(connection: Connection) -> None:
    history: list[NewEvent] = [acquired("Emma")]
    for number in range(60):
        history += [lent(f"Reader {number}"), returned(number)]
    on(connection, record("book", *history))
    stock(connection, SHELF, ["bo", "bookk"])


def odd_ids(connection: Connection) -> None:
    stock(connection, SHELF, ODD)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("log", [nothing, one_event, one_huge_stream, odd_ids])
def test_a_log_of_any_kind_is_rebuilt_in_pages_and_chunks_of_any_size(
    shelf: Connection,
    database: Database,
    small: Callable[[int], None],
    log: Callable[[Connection], None],
    workers: int,
) -> None:
    log(shelf)
    for size in (1, 2, 7, 5_000) if workers == 1 else (2,):
        for verify in cast("Sequence[Verify]", ("sample", "full")) if workers == 1 else ("full",):
            small(size)
            forget(shelf, NEXT)
            rebuilt = rebuild_table(database, NEXT, workers=workers, verify=verify)
            states = check_equal(shelf, NEXT)
            [(events,)] = shelf.execute("SELECT count(*) FROM command_registry.events")
            assert (rebuilt.events, rebuilt.compared) == (events, len(states))
            assert rebuilt.switched
    again = rebuild_table(database, NEXT, verify="full")
    assert again.in_place
    check_equal(shelf, NEXT)
