"""Following the log: each event once and in order, whoever is killed, stalled, cut off, poisoned or held back."""

import os
import random
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from psycopg.pq import TransactionStatus
from psycopg.sql import SQL, Identifier

from eventstore import Conflict, InvalidEvent, LogPosition, NewEvent, StreamEvent, plans
from eventstore.database import Database
from eventstore.errors import Unavailable
from eventstore.steps import Step
from projections import Table, Values, postgres, projector, queries, rebuild, status
from projections.errors import AlreadyRunning, Fenced, NotCaughtUp, PoisonEvent, StillUsed, UnknownProjection
from projections.postgres import Projector, rebuild_table
from projections.projector import Followed, Follower, Pace, follow, lease, must_lead, new_owner, release
from registry import PostgresCommandRegistry, embedded
from registry.command_status import COMMAND_STATUS
from tests import conftest, shelves
from tests.by_hand import ByHand, one
from tests.conftest import Databases
from tests.lending import SHELF, acquired, lent, on, record
from tests.load import chosen_seed
from tests.observing import until_named
from tests.proxy import Fault, proxied
from tests.rebuilding import let_the_lease_run_out
from tests.shelves import NextShelf, NextStatus, rows_of
from tests.soak import rounds
from tests.tailing import (
    DIARY,
    LEDGER,
    TALLY,
    Child,
    Following,
    Job,
    Ledger,
    Seen,
    Tally,
    child,
    committed,
    expected,
    following,
    owner_of,
)
from tests.waiting import until

Connection = psycopg.Connection[Any]

KINDS: Final = pytest.mark.parametrize("kind", ["threads", "asyncio"])
WRITING: Final = b"events_done = events_done"
"""What is only in the statement that writes rows, and moves the checkpoint."""


def append(connection: Connection, stream_id: str, *events: NewEvent) -> None:
    """Append to a stream, whatever its version: one event, unless told which."""
    while True:
        end = on(connection, plans.stream_end(stream_id))
        with suppress(Conflict):
            new = events or (lent() if end else acquired(),)
            on(connection, plans.append(stream_id, end.version if end else 0, new))
            return


def enrolled(connection: Connection, *tables: Table[Any]) -> None:
    for table in tables:
        on(connection, status.enrol(table))


def catch_up(connection: Connection, follower: Follower[Any]) -> None:
    """Follow until all that is committed is in the table: transactions of other tests may hold readers back."""
    end = on(connection, plans.log_end())

    def caught_up() -> bool:
        on(connection, follow(follower))
        return follower.checkpoint >= end

    until(caught_up, f"{follower.table.name} to come to {end}")


def check(connection: Connection, *tables: Table[Any]) -> None:
    """Check that tables are, or soon will be, what the log folds to."""
    on(connection, status.wait_until(tables, None, 20))
    check_rows(connection, *tables)


def check_rows(connection: Connection, *tables: Table[Any]) -> None:
    """Check that tables are what the log folds to."""
    for table in tables:
        assert rows_of(connection, table) == expected(connection, table), table.name


def until_told(connection: Connection, table: Table[Any], what: str = "") -> str:
    """Wait until something keeps a table, and tell what."""

    def told() -> str:
        error = state_of(connection, table).last_error or ""
        return error if what in error else ""

    return until(told, f"{what} to keep {table.name}")


def state_of(connection: Connection, table: Table[Any]) -> status.Status:
    place = (table.projection.name, table.projection.version)
    every = on(connection, status.overview()).projections
    return next(each for each in every if (each.name, each.version) == place)


def owner(table: Table[Any], **settings: Any) -> Follower[Any]:
    return Follower(table, new_owner(), **settings)


def until_readable(connection: Connection) -> None:
    """Wait until all that is committed can be read in order: transactions of other tests may hold readers back."""
    end = on(connection, plans.log_end())
    before = LogPosition(end.transaction_id, end.position - 1)
    until(lambda: on(connection, plans.read_log(before, 1)), "transactions of other tests to end")


# Exactly once, in order, nothing skipped.


class Traffic:
    """Writers of all kinds of transactions, until the block ends."""

    def __init__(self, dsn: str, seed: int, number: int) -> None:
        self._dsn, self._seed, self._number = dsn, seed, number
        self._ends = threading.Event()

    @contextmanager
    def under_way(self) -> Iterator[None]:
        with ThreadPoolExecutor(self._number) as threads:
            writers = [threads.submit(self._write, number) for number in range(self._number)]
            try:
                yield
            finally:
                self._ends.set()
        for writer in writers:
            writer.result()

    def _write(self, number: int) -> None:
        dice, turn = random.Random(f"{self._seed}/{number}"), 0  # noqa: S311 - to be replayed
        with (
            psycopg.connect(self._dsn, options="-c lock_timeout=10s") as own,
            psycopg.connect(self._dsn, autocommit=True) as other,
        ):
            while not self._ends.wait(dice.uniform(0, 0.06)):
                turn += 1
                try:
                    self._turn(own, other, dice, f"{'abc'[number % 3]}{number}-{turn // 4}")
                    (own.commit if dice.random() < 0.8 else own.rollback)()
                except psycopg.errors.DeadlockDetected:
                    own.rollback()

    def _turn(self, own: Connection, other: Connection, dice: random.Random, stream: str) -> None:
        match dice.randrange(6):
            case 0 | 1:
                append(own, stream)
            case 2:
                append(own, f"shared {dice.randrange(4)}")
            case 3:
                for each in sorted([stream, f"{stream}b", f"shared {dice.randrange(4)}"]):
                    append(own, each)
            case 4:  # it stays open for up to a second, while the others go on
                append(own, stream)
                self._ends.wait(dice.uniform(0, 1.0) ** 3)
            case _:  # an old transaction adds to a younger stream
                own.execute("SELECT pg_current_xact_id()")
                append(other, f"{stream}y")
                append(own, f"{stream}y")


class Subscribers:
    """Two processes that follow the same tables; what befalls them is up to the dice."""

    def __init__(self, stack: ExitStack, observer: Connection, job: Job, tables: Sequence[Table[Any]]) -> None:
        self._stack, self._observer, self._job, self._tables = stack, observer, job, tables
        self._children = [self._start(), self._start()]
        self.took_over = 0

    def _start(self) -> Child:
        return self._stack.enter_context(child(self._job))

    def _until_led(self, table: Table[Any], other_than: Child | None = None) -> Child:
        def leaders() -> list[Child]:
            name = owner_of(self._observer, table)
            return [each for each in self._children if each.leads(name) and each is not other_than]

        return until(leaders, f"somebody to lead {table.name}")[0]

    def harm(self, dice: random.Random) -> None:
        """At some point, end by force or stall whoever leads a table; another takes over."""
        table = dice.choice(self._tables)
        self._until_led(table)
        done = state_of(self._observer, table).events_done + dice.randrange(60)
        until(lambda: state_of(self._observer, table).events_done >= done, "the log to grow")
        victim = self._until_led(table)
        stalled = dice.random() < 0.4
        if stalled:
            victim.send(signal.SIGSTOP)
        else:
            victim.kill()
            self._children[self._children.index(victim)] = self._start()
        self._until_led(table, other_than=victim)
        self.took_over += 1
        if stalled:
            victim.send(signal.SIGCONT)


def test_each_subscriber_gets_each_event_once_and_in_order_whoever_writes_and_whoever_is_killed(
    dsn: str, connection: Connection
) -> None:
    dice = random.Random(seed := chosen_seed())  # noqa: S311 - to be replayed
    harmed = (TALLY, LEDGER)
    enrolled(connection, *harmed, DIARY)
    with ExitStack() as stack:
        for kind in ("threads", "asyncio"):
            stack.enter_context(following(kind, dsn, DIARY, lease_seconds=0.5))
        job = Job(dsn, ("tally", "ledger"), lease_seconds=0.5)
        subscribers = Subscribers(stack, connection, job, harmed)
        with Traffic(dsn, seed, 16).under_way():
            for _ in range(rounds(6, 150)):
                subscribers.harm(dice)
        check(connection, *harmed, DIARY)
    rows = rows_of(connection, DIARY)
    assert all(versions == " ".join(map(str, range(1, versions.count(" ") + 2))) for _, versions in rows.values())
    [(count,)] = connection.execute("SELECT count(*) FROM command_registry.events")
    print(f"{count} events, {len(rows)} streams, {subscribers.took_over} times another took over")
    assert sum(row.events for row in rows_of(connection, TALLY).values()) == count
    assert [state_of(connection, table).events_done for table in (*harmed, DIARY)] == [count] * 3


@KINDS
@pytest.mark.parametrize("page", [1, 2, 7])
def test_what_is_there_and_what_comes_is_folded_in_pages_of_any_size(
    dsn: str, connection: Connection, kind: str, page: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projector, "PAGE", page)
    tables = (DIARY, TALLY, LEDGER)
    for number in range(10):
        append(connection, f"{'ab'[number % 2]}{number % 3}")
    with following(kind, dsn, *tables) as projectors:
        projectors.wait_until()
        check_rows(connection, *tables)
        append(connection, "a0")
        append(connection, "c", acquired(), lent(), lent())
        projectors.wait_until()
    check(connection, *tables)


@contextmanager
def lines(dsn: str) -> Iterator[tuple[Connection, Connection]]:
    """Two connections that wait for nobody's lock for long."""
    with (
        psycopg.connect(dsn, autocommit=True, options="-c lock_timeout=3s") as first,
        psycopg.connect(dsn, autocommit=True, options="-c lock_timeout=3s") as second,
    ):
        yield first, second


@pytest.mark.parametrize("table", [TALLY, LEDGER], ids=["tally", "ledger"])
@pytest.mark.parametrize("moves", [False, True], ids=["before another has moved", "after another has moved"])
def test_an_owner_that_stops_at_any_step_keeps_nobody_waiting_and_writes_nothing_once_another_has_taken_over(
    dsn: str, table: Table[Any], *, moves: bool
) -> None:
    with lines(dsn) as (line, other):
        enrolled(other, table)
        fenced, ended = 0, False
        for steps in range(10):
            append(other, "a", *([] if steps else [acquired()]), lent(), lent())
            append(other, "b")
            until_readable(other)
            stopped = ByHand(follow(owner(table)), line)
            for _ in range(steps):
                stopped.take()
                assert line.info.transaction_status == TransactionStatus.IDLE
            let_the_lease_run_out(other, table)
            successor = owner(table)
            if moves:
                catch_up(other, successor)
                check(other, table)
            else:
                assert on(other, lease(successor))
            before = state_of(other, table)
            ended = stopped.step is None
            try:
                assert ended or stopped.to_the_end() == Followed(leads=False, events=0)
            except Fenced:
                fenced += 1
            after = state_of(other, table)
            assert (after.position, after.events_done) == (before.position, before.events_done)
            assert after.owner == successor.owner
            catch_up(other, successor)
            check(other, table)
            on(other, release(successor))
            if ended:
                break
        assert ended
        assert fenced == steps - 1  # but for the one that had not even asked for the lease


@pytest.mark.parametrize("table", [TALLY, LEDGER], ids=["tally", "ledger"])
def test_a_write_that_the_server_does_after_its_connection_was_lost_is_done_once(
    connection: Connection, table: Table[Any]
) -> None:
    enrolled(connection, table)
    for steps in range(10):  # so many steps later
        append(connection, "a", *([] if steps else [acquired()]), lent())
        append(connection, "b")
        until_readable(connection)
        follower = owner(table)
        by_hand = ByHand(follow(follower), connection).to_the_write()
        late = by_hand.lose_the_request()
        for _ in range(steps):
            if by_hand.step is None:
                by_hand = ByHand(follow(follower), connection)
            by_hand.take()
        on(connection, one(late))
        with suppress(Fenced):
            by_hand.to_the_end()
        catch_up(connection, follower)
        check(connection, table)
        on(connection, release(follower))


def test_a_write_whose_answer_was_lost_is_known_to_have_happened(connection: Connection) -> None:
    enrolled(connection, TALLY)
    append(connection, "a")
    until_readable(connection)
    follower = owner(TALLY)
    by_hand = ByHand(follow(follower), connection).to_the_write().lose_the_reply()
    assert by_hand.to_the_end() == Followed(leads=True, events=1)
    check(connection, TALLY)


def test_a_fold_that_takes_long_goes_on_only_for_as_long_as_its_lease_allows(
    connection: Connection, clock: "Clock"
) -> None:
    class Slow(Tally):
        def fold(self, state: Seen | None, event: StreamEvent) -> Seen:
            clock.now += 0.6
            return super().fold(state, event)

    table: Table[Any] = Table(Slow())
    enrolled(connection, table)
    append(connection, "a", *[acquired()] * 10)
    until_readable(connection)
    follower = owner(table, lease_seconds=6.0)
    assert on(connection, follow(follower)) == Followed(leads=True, events=4, full=True)
    follower.lease_seconds = 0.0  # however slow: one at a time
    assert on(connection, follow(follower)) == Followed(leads=True, events=1, full=True)
    catch_up(connection, follower)
    check(connection, table)


# Who leads.


def test_one_leads_and_when_it_is_killed_another_takes_over_within_five_seconds(
    dsn: str, connection: Connection
) -> None:
    enrolled(connection, TALLY)
    with ExitStack() as stack:
        children = [stack.enter_context(child(Job(dsn, ("tally",)))) for _ in range(2)]
        append(connection, "a")
        check(connection, TALLY)
        [leader] = [each for each in children if each.leads(owner_of(connection, TALLY))]
        [second] = [each for each in children if each is not leader]

        def second_leads() -> bool:
            return second.leads(owner_of(connection, TALLY))

        append(connection, "a")
        check(connection, TALLY)
        assert not second_leads()
        leader.kill()
        began = time.monotonic()
        append(connection, "a")
        until(second_leads)
        check(connection, TALLY)
        seconds = time.monotonic() - began
        print(f"taken over after {seconds:.2f} s")
        assert seconds < 5


def test_a_leader_that_is_stalled_is_replaced_and_writes_nothing_when_it_goes_on(
    dsn: str, connection: Connection
) -> None:
    enrolled(connection, TALLY)
    with child(Job(dsn, ("tally",), lease_seconds=1.0)) as stalled:
        append(connection, "a")
        check(connection, TALLY)
        stalled.send(signal.SIGSTOP)
        with following("threads", dsn, TALLY, lease_seconds=1.0):
            append(connection, "a")
            check(connection, TALLY)
            successor = owner_of(connection, TALLY)
            assert not stalled.leads(successor)
            stalled.send(signal.SIGCONT)
            for _ in range(20):
                append(connection, "b")
            check(connection, TALLY)
            assert owner_of(connection, TALLY) == successor
        until(lambda: stalled.leads(owner_of(connection, TALLY)), "the other to lead again")
        append(connection, "a")
        check(connection, TALLY)
        stalled.close()


@KINDS
def test_who_closes_hands_over_at_once(dsn: str, connection: Connection, kind: str) -> None:
    with following(kind, dsn, TALLY, lease_seconds=300) as first:
        append(connection, "a")
        first.wait_until()
        led_by = owner_of(connection, TALLY)
        assert led_by is not None
        with following(kind, dsn, TALLY, lease_seconds=300):
            assert owner_of(connection, TALLY) == led_by
            first.close()
            assert owner_of(connection, TALLY) != led_by
            append(connection, "a")
            check(connection, TALLY)
            assert owner_of(connection, TALLY) not in {None, led_by}
    assert owner_of(connection, TALLY) is None


@KINDS
def test_a_process_that_is_told_to_end_lets_go(dsn: str, connection: Connection, kind: str) -> None:
    enrolled(connection, TALLY)
    with child(Job(dsn, ("tally",), kind, lease_seconds=300)) as ends:
        until(lambda: ends.leads(owner_of(connection, TALLY)))
        ends.close()
    assert owner_of(connection, TALLY) is None


def test_many_that_start_at_once_make_the_table_once_and_one_leads(dsn: str, connection: Connection) -> None:
    append(connection, "a")
    with ThreadPoolExecutor(6) as threads, ExitStack() as stack:
        starting = [
            threads.submit(stack.enter_context, following("threads", dsn, TALLY, LEDGER, lease_seconds=300))
            for _ in range(6)
        ]
        for each in starting:
            each.result()
        check(connection, TALLY, LEDGER)
        assert owner_of(connection, TALLY) is not None
        rows = connection.execute("SELECT name, token FROM command_registry.projectors WHERE NOT inline ORDER BY 1")
        assert rows.fetchall() == [("ledger", 1), ("tally", 1)]
    shown = connection.execute("SELECT letter, events FROM command_registry.tally").fetchall()
    assert shown == [("a", 1)]


def test_a_lease_is_held_for_as_long_as_the_servers_clock_says_whatever_ours_says(
    connection: Connection, clock: "Clock"
) -> None:
    enrolled(connection, TALLY)
    first, second = owner(TALLY, lease_seconds=100), owner(TALLY)
    assert on(connection, lease(first))
    assert _seconds_left(connection) == pytest.approx(100, abs=5)
    clock.now += 1_000_000
    assert not on(connection, lease(second))
    with pytest.raises(AlreadyRunning, match=first.owner):
        on(connection, must_lead(second))
    let_the_lease_run_out(connection, TALLY)
    clock.now = -1_000_000
    assert on(connection, lease(second))
    assert (first.token, second.token) == (1, 2)
    assert not on(connection, lease(first))
    assert not first.leads
    on(connection, release(second))
    assert (owner_of(connection, TALLY), second.leads) == (None, False)


def _seconds_left(connection: Connection) -> float:
    [(seconds,)] = connection.execute(
        "SELECT extract(epoch FROM lease_until - clock_timestamp())::float8"
        " FROM command_registry.projectors WHERE name = 'tally'"
    )
    return float(seconds)


def test_a_lease_is_renewed_in_time_and_not_at_every_look(connection: Connection, clock: "Clock") -> None:
    enrolled(connection, TALLY)
    follower = owner(TALLY, lease_seconds=60)
    on(connection, follow(follower))
    assert not follower.is_due
    clock.now += 19
    assert not follower.is_due
    clock.now += 2
    assert follower.is_due
    connection.execute("UPDATE command_registry.projectors SET lease_until = clock_timestamp() + interval '1 s'")
    on(connection, follow(follower))
    assert _seconds_left(connection) > 50
    assert not follower.is_due
    clock.now += 15
    append(connection, "a")
    catch_up(connection, follower)
    clock.now += 15  # what is written renews it, too
    assert not follower.is_due


def test_who_may_only_write_events_may_follow_the_log(dsn: str, connection: Connection) -> None:
    enrolled(connection, TALLY, LEDGER)
    name = f"service_{os.getpid()}_{time.time_ns()}"
    connection.execute(SQL("CREATE ROLE {} LOGIN").format(Identifier(name)))
    try:
        connection.execute(SQL("GRANT command_registry_writer TO {}").format(Identifier(name)))
        with following("threads", make_conninfo(dsn, options=f"-c role={name}"), TALLY, LEDGER):
            append(connection, "a")
            check(connection, TALLY, LEDGER)
    finally:
        connection.execute(SQL("DROP ROLE {}").format(Identifier(name)))


# What holds readers of the log back.


@contextmanager
def open_transaction(dsn: str) -> Iterator[Connection]:
    with psycopg.connect(dsn) as blocker:
        blocker.execute("SELECT pg_current_xact_id()")
        yield blocker


def complaint(tail: Following, **arguments: Any) -> str:
    with pytest.raises(NotCaughtUp) as caught:
        tail.wait_until(**arguments)
    assert isinstance(caught.value, TimeoutError)
    return str(caught.value)


@KINDS
@pytest.mark.parametrize("elsewhere", [False, True], ids=["in this database", "in another database"])
def test_an_open_transaction_that_writes_delays_readers_is_named_and_skips_nothing(
    databases: Databases, dsn: str, connection: Connection, kind: str, *, elsewhere: bool
) -> None:
    with following(kind, dsn, TALLY) as tail:
        append(connection, "before")
        tail.wait_until()
        with open_transaction(databases.server_dsn if elsewhere else dsn) as blocker:
            if not elsewhere:
                append(blocker, "by the blocker")
            append(connection, "after")
            rows = rows_of(connection, TALLY)
            found = until_named(connection, f"pid {blocker.info.backend_pid}")
            assert found.seconds is not None
            assert 0 < found.seconds < 100
            assert found.database == blocker.info.dbname
            assert found.query_start is not None
            assert found.remedy == f"SELECT pg_terminate_backend({blocker.info.backend_pid})"
            said = complaint(tail, timeout=0.2)
            assert f"wait for {found.name} in database {found.database} ({found.remedy})" in said
            assert rows_of(connection, TALLY) == rows
            lag = state_of(connection, TALLY).lag
            assert lag is not None
            assert lag.events == 1
            blocker.commit()
        tail.wait_until()
        check_rows(connection, TALLY)
        assert sum(row.events for row in rows_of(connection, TALLY).values()) == (2 if elsewhere else 3)


def test_a_prepared_transaction_is_named_and_its_events_are_not_skipped() -> None:
    with ExitStack() as stack:
        dsn = os.environ.get("COMMAND_REGISTRY_TEST_DSN")
        if dsn is None:
            allowing = conftest.SERVER_SETTINGS | {"max_prepared_transactions": "5"}
            home = Path(os.environ[conftest.HOME]) / f"prepared {os.getpid()}"
            dsn = stack.enter_context(embedded.start(home, settings=allowing)).dsn
        databases = Databases(dsn)
        stack.callback(databases.close)
        name = databases.migrated()
        stack.callback(databases.drop, name)
        _check_prepared(databases.dsn(name))


def _check_prepared(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection, following("threads", dsn, TALLY) as tail:
        if connection.execute("SHOW max_prepared_transactions").fetchone() == ("0",):
            pytest.skip("the server takes no prepared transactions")
        with psycopg.connect(dsn) as blocker:
            append(blocker, "prepared")
            blocker.execute("PREPARE TRANSACTION 'left behind'")
            blocker.rollback()
        append(connection, "after")
        found = until_named(connection, "prepared transaction 'left behind'")
        assert found.remedy == "ROLLBACK PREPARED 'left behind'"
        assert found.name in complaint(tail, timeout=0.2)
        assert rows_of(connection, TALLY) == {}
        connection.execute("COMMIT PREPARED 'left behind'")
        check(connection, TALLY)
        assert rows_of(connection, TALLY).keys() == {"p", "a"}


# Poison.


def _is_bitter(event: StreamEvent) -> bool:
    return "Eve" in event.data


REASONS: Final = {
    "fold": "ValueError: too bitter",
    "key": "ValueError: too bitter",
    "row": "ValueError: too bitter",
    "unsendable key": "a parameter must not hold NUL",
    "no text for a key": "TypeError: a key is a text, not 77",
    "unsendable": "TypeError: no parameter can be a object",
    "refused": "out of range",
    "null": "refused by",
    "unspeakable": "ValueError: too",
}


def bitter(kind: type[Any], where: str) -> Table[Any]:
    """Make a projection that cannot take in what is lent to Eve, for a reason."""

    class Bitter(kind):  # type: ignore[misc]
        name = f"bitter_{kind.name}_{where.replace(' ', '_')}"

        def key(self, event: StreamEvent) -> Any:
            if _is_bitter(event):
                match where:
                    case "key":
                        raise ValueError("too bitter")
                    case "unsendable key":
                        return "a\0b"
                    case "no text for a key":
                        return 77
            return super().key(event)

        def fold(self, state: Seen | None, event: StreamEvent) -> Seen:
            seen: Seen = super().fold(state, event)
            if where == "fold" and _is_bitter(event):
                raise ValueError("too\nbitter")
            if where == "unspeakable" and _is_bitter(event):
                raise ValueError("too\0\ud800bitter")
            spoilt = _is_bitter(event) or (state is not None and state.digest == "spoilt")
            return seen._replace(digest="spoilt") if spoilt else seen

        def row(self, state: Seen) -> Values:
            if state.digest == "spoilt":
                match where:
                    case "row":
                        raise ValueError("too bitter")
                    case "unsendable":
                        return (state.key, object(), state.digest, state.version)
                    case "refused":
                        return (state.key, 2**70, state.digest, state.version)
                    case "null":
                        return (None, state.events, state.digest, state.version)
            return super().row(state)  # type: ignore[no-any-return]

    return Table(Bitter())


@KINDS
@pytest.mark.parametrize("of", [Tally, Ledger])
def test_a_poison_event_stops_its_table_with_its_name_and_no_other_and_can_be_left_out(
    dsn: str, connection: Connection, kind: str, of: type[Any]
) -> None:
    tables = {where: bitter(of, where) for where in REASONS}
    append(connection, "a", acquired(), lent("Ada"))
    append(connection, "b", acquired(), lent("Grace"), lent("Eve"), lent("Ada"))
    append(connection, "a", lent("Joan"))
    until_readable(connection)
    with following(kind, dsn, *tables.values(), DIARY, lease_seconds=0.5) as tail:
        check(connection, DIARY)
        for where, table in tables.items():
            until(lambda: state_of(connection, table).events_done == 4, f"what comes before in {table.name}")  # noqa: B023
            error = until_told(connection, table, "cannot fold version 3 of stream 'b' (Lent)")
            assert REASONS[where] in error
            assert rows_of(connection, table) == _folded_without_bitter(connection, table, 4)
            assert error in complaint(tail, timeout=0)
        for table in tables.values():
            _check_skipped(connection, table.projection.name)
        for _ in range(2):
            tail.wait_until()
            for table in tables.values():
                assert rows_of(connection, table) == _folded_without_bitter(connection, table, None)
                state = state_of(connection, table)
                assert (state.last_error, state.skipped) == (None, 1)
            append(connection, "b")
        check(connection, DIARY)


def _check_skipped(connection: Connection, name: str) -> None:
    """Leave the poison out, and check that it is recorded."""
    assert on(connection, status.skip(name, 1, "b", 3, "Eve is not to be named"))
    assert not on(connection, status.skip(name, 1, "b", 3, "as was said"))
    sql = """
        SELECT version, stream_id, stream_version, reason, skipped_by, skipped_at <= clock_timestamp()
        FROM command_registry.projection_skips WHERE name = %s
    """
    noted = connection.execute(sql, (name,)).fetchall()
    assert noted == [(1, "b", 3, "Eve is not to be named", connection.info.user, True)]


def _folded_without_bitter(connection: Connection, table: Table[Any], first: int | None) -> dict[str, Any]:
    """Fold the first events of the log, without those that are bitter."""
    states: dict[str, Any] = {}
    for event in committed(connection)[:first]:
        if not _is_bitter(event):
            key = table.projection.key(event) or ""
            states[key] = table.projection.fold(states.get(key), event)
    return states


def test_an_event_of_a_type_that_later_software_has_written_stops_what_reads_it(
    dsn: str, connection: Connection
) -> None:
    append(connection, "book", acquired(), replace(acquired(), type="Burnt"))
    table: Table[Any] = Table(shelves.Borrowers())
    with following("threads", dsn, table, TALLY):
        error = until_told(connection, table)
        assert "version 2 of stream 'book' (Burnt)" in error
        check(connection, TALLY)


def test_a_mended_projection_goes_on_where_the_poisoned_one_stopped(dsn: str, connection: Connection) -> None:
    append(connection, "b", acquired(), lent("Eve"), lent("Ada"))
    poisoned = bitter(Tally, "fold")
    with following("threads", dsn, poisoned):
        until_told(connection, poisoned)
    mended = bitter(Tally, "nowhere")
    with following("threads", dsn, mended):
        check(connection, mended)
    assert state_of(connection, mended).last_error is None


def test_what_goes_wrong_before_an_event_can_be_named_is_told_too(dsn: str, connection: Connection) -> None:
    class Forgetful(Tally):
        def state(self, row: Values) -> Seen:
            raise KeyError("what was it?")

    append(connection, "a")
    with following("threads", dsn, TALLY) as tail:
        tail.wait_until()
    append(connection, "a")
    with following("threads", dsn, Table(Forgetful()), DIARY):
        assert "what was it?" in until_told(connection, TALLY)
        check(connection, DIARY)


def test_a_table_that_a_projector_may_not_write_says_so(dsn: str, connection: Connection) -> None:
    enrolled(connection, TALLY)
    connection.execute("ALTER TABLE command_registry.tally_v1 RENAME COLUMN digest TO other")
    with following("threads", dsn, TALLY, DIARY):
        append(connection, "a")
        assert "digest" in until_told(connection, TALLY)
        check(connection, DIARY)
        connection.execute("ALTER TABLE command_registry.tally_v1 RENAME COLUMN other TO digest")
        check(connection, TALLY)
    assert state_of(connection, TALLY).last_error is None


@pytest.mark.parametrize("where", ["fold", "row"])
def test_wherever_the_poison_is_in_a_page_what_comes_before_it_is_written(connection: Connection, where: str) -> None:
    table = bitter(Tally, where)
    enrolled(connection, table)
    follower = owner(table)
    for number in (1, 2, 3, 20, 29, 30, 31, 40):
        done = state_of(connection, table).events_done
        borrowers = ["Eve" if each == number else "Ada" for each in range(1, 41)]
        append(connection, "a", *map(lent, borrowers))
        until_readable(connection)
        follower.page = projector.PAGE
        with pytest.raises(PoisonEvent) as poison:
            until(lambda: on(connection, follow(follower)).events < 0)
        assert (poison.value.stream_id, poison.value.version) == ("a", done + number)
        assert state_of(connection, table).events_done == done + number - 1
        assert on(connection, status.skip(table.projection.name, 1, "a", done + number, "because"))
        assert on(connection, lease(follower))
        catch_up(connection, follower)
    assert rows_of(connection, table) == _folded_without_bitter(connection, table, None)


def test_only_an_event_that_there_is_can_be_left_out_of_what_there_is(connection: Connection) -> None:
    enrolled(connection, TALLY)
    append(connection, "a", acquired(), lent())
    for version in (-1, 0, 3, 2**31, 2**40):
        with pytest.raises(UnknownProjection, match=f"stream 'a' has no version {version}"):
            on(connection, status.skip("tally", 1, "a", version, "because"))
    with pytest.raises(UnknownProjection, match="stream 'b' has no version 1"):
        on(connection, status.skip("tally", 1, "b", 1, "because"))
    for name, version in (("tally", 2), ("tale", 1)):
        with pytest.raises(UnknownProjection, match=f"nobody follows {name}, version {version}"):
            on(connection, status.skip(name, version, "a", 1, "because"))
    for stream_id, reason in (("", "because"), ("a", "")):
        with pytest.raises(InvalidEvent):
            on(connection, status.skip("tally", 1, stream_id, 1, reason))
    assert connection.execute("SELECT FROM command_registry.projection_skips").fetchall() == []


# Waiting until a table has caught up.


@KINDS
def test_who_waits_goes_on_once_the_tables_have_come_to_a_position(dsn: str, connection: Connection, kind: str) -> None:
    with following(kind, dsn, TALLY, LEDGER) as tail:
        tail.wait_until(timeout=5)  # nothing is in the log
        for _ in range(10):
            append(connection, "a")
            end = on(connection, plans.log_end())
            tail.wait_until(end)
            check_rows(connection, TALLY, LEDGER)
        append(connection, "b")
        tail.wait_until(end, timeout=0)  # of an earlier position
        beyond = LogPosition(end.transaction_id + 1_000_000, 0)
        said = complaint(tail, position=beyond, timeout=0.1)
        assert f"not at {beyond.transaction_id}:0 of the log within 0.1 s" in said
        assert f"led by {owner_of(connection, TALLY)}" in said
        assert "tally_v1 is at " in said
        assert "ledger_v1 is at " in said


def test_who_waits_in_vain_is_told_what_keeps_each_table(dsn: str, connection: Connection) -> None:
    append(connection, "a")

    def waiting(table: Table[Any]) -> None:
        on(connection, status.wait_until([table], None, 0.05))

    with pytest.raises(NotCaughtUp, match=r"command_registry\.tally_v1 is followed by nobody yet"):
        waiting(TALLY)
    enrolled(connection, TALLY)
    with pytest.raises(NotCaughtUp, match="tally_v1 is at 0:0, led by nobody: see that `command-registry projections"):
        waiting(TALLY)
    follower = owner(TALLY)
    assert on(connection, lease(follower))
    with pytest.raises(NotCaughtUp, match=f"tally_v1 is at 0:0, led by {follower.owner}"):
        waiting(TALLY)
    on(connection, projector.note(follower, ValueError("alas")))
    with pytest.raises(NotCaughtUp, match=f"led by {follower.owner}, and says: alas"):
        waiting(TALLY)
    let_the_lease_run_out(connection, TALLY)
    with pytest.raises(NotCaughtUp, match="tally_v1 is at 0:0, led by nobody"):  # no longer
        waiting(TALLY)
    catch_up(connection, owner(TALLY))
    waiting(TALLY)


@pytest.mark.parametrize("following_it", [False, True], ids=["with nobody that follows", "with a projector"])
def test_who_waits_after_a_rebuild_and_a_switch_is_answered(
    dsn: str, connection: Connection, *, following_it: bool
) -> None:
    on(connection, rebuild.migrate(SHELF))
    on(connection, record("book", acquired(), lent()))
    table: Table[Any] = Table(NextShelf())
    with Database(dsn, pool_size=4) as database:
        assert rebuild_table(database, table).switched
        on(connection, record("book", lent("Grace")))
        tail = Projector(database, [SHELF, table])
        if not following_it:
            with pytest.raises(NotCaughtUp, match=r"shelf_v2 is at .* led by nobody"):
                tail.wait_until(timeout=0.1)
            return
        with tail:
            tail.wait_until()
        for each in (SHELF, table):
            check_rows(connection, each)


@pytest.mark.parametrize("phase", ["bulk", "catch-up", "verify"])
def test_a_table_that_is_being_built_has_not_caught_up(connection: Connection, phase: str) -> None:
    table: Table[Any] = Table(Ledger())
    on(connection, rebuild.begin(Follower(table, "builder", builds=True)))
    connection.execute("UPDATE command_registry.projectors SET phase = %s WHERE name = 'ledger'", (phase,))
    with pytest.raises(NotCaughtUp, match=f"ledger_v1 is being built \\({phase}\\)"):
        on(connection, status.wait_until([table], None, 0.05))
    let_the_lease_run_out(connection, table)
    assert on(connection, follow(owner(table))) == Followed(leads=False, events=0)  # nor does anybody follow it


# Connections that are lost, and servers that go away.


@KINDS
@pytest.mark.parametrize("fault", [Fault.CUT_BEFORE, Fault.CUT_AT_WORK, Fault.LOSE_REPLY])
def test_a_connection_that_is_lost_doubles_nothing_and_skips_nothing(
    dsn: str, connection: Connection, kind: str, fault: Fault
) -> None:
    markers = [WRITING, b"lease_until = clock_timestamp()", b"ANY", b"stored.transaction_id <"]
    with proxied(dsn) as proxy, following(kind, proxy.dsn(dsn), TALLY, LEDGER, lease_seconds=0.5) as tail:
        for marker in (*markers, WRITING):
            proxy.fail_at(marker, fault)
            append(connection, "a")
            append(connection, "b")
            tail.wait_until()
            check_rows(connection, TALLY, LEDGER)
        until(lambda: len(proxy.happened) == 5)


@KINDS
def test_connections_that_are_lost_at_random_double_nothing_and_skip_nothing(
    dsn: str, connection: Connection, kind: str
) -> None:
    tables = (TALLY, LEDGER)
    chances = dict.fromkeys([Fault.CUT_BEFORE, Fault.CUT_AT_WORK, Fault.LOSE_REPLY], 0.05)
    with proxied(dsn) as proxy, following(kind, proxy.dsn(dsn), *tables, lease_seconds=0.3):
        proxy.fail_at_random(b"", chosen_seed(), chances)
        for number in range(rounds(60, 3_000)):
            append(connection, f"{'abc'[number % 3]}{number % 7}")
            until_readable(connection)
        check(connection, *tables)
        proxy.fail_at_random(b"", 0, {})
    print(f"{len(proxy.happened)} faults")
    assert len(proxy.happened) > 5


@KINDS
def test_when_the_server_goes_away_and_comes_back_it_goes_on_by_itself(
    dsn: str, connection: Connection, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "_LOOK", 1.0)
    with proxied(dsn) as proxy, following(kind, proxy.dsn(dsn), TALLY, lease_seconds=0.5) as tail:
        append(connection, "a")
        tail.wait_until()
        proxy.go_away()
        append(connection, "a")
        append(connection, "b")
        until(lambda: owner_of(connection, TALLY) is None, "the lease to run out")
        assert rows_of(connection, TALLY) != expected(connection, TALLY)
        proxy.come_back()
        check(connection, TALLY)
        proxy.go_away()
        until(lambda: owner_of(connection, TALLY) is None, "the lease to run out")
        began = time.monotonic()
        tail.close()  # while it is away
        assert time.monotonic() - began < 8
        proxy.come_back()


def test_after_an_unknown_outcome_a_projector_asks_where_it_is(connection: Connection) -> None:
    class Once(Tally):
        def fold(self, state: Seen | None, event: StreamEvent) -> Seen:
            assert state is None or state.version < event.version, "it has this already"
            return super().fold(state, event)

    table: Table[Any] = Table(Once())
    enrolled(connection, table)
    append(connection, "a", acquired(), lent())
    until_readable(connection)
    follower = owner(table)
    by_hand = ByHand(follow(follower), connection).to_the_write()
    on(connection, one(by_hand.pending))
    with pytest.raises(Unavailable):
        by_hand.throw(Unavailable("gone, and the time is up"))
    append(connection, "a")
    catch_up(connection, follower)
    check(connection, table)


def test_a_row_of_a_stream_that_lacks_events_gets_them_with_the_next(connection: Connection) -> None:
    enrolled(connection, LEDGER)
    append(connection, "a", acquired(), lent(), lent())
    append(connection, "b")
    follower = owner(LEDGER)
    catch_up(connection, follower)
    connection.execute("DELETE FROM command_registry.ledger_v1 WHERE stream_id = 'a'")
    append(connection, "a", lent(), lent())
    catch_up(connection, follower)
    check(connection, LEDGER)


# How fast, how far, how often.


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(projector, "time", clock)
    return clock


def test_a_projector_looks_at_once_while_there_is_more_and_less_and_less_often_while_there_is_nothing() -> None:
    pace, busy, idle = Pace(), Followed(leads=True, events=10), Followed(leads=True, events=0)
    assert pace.after(Followed(leads=True, events=10, full=True)) == 0
    assert pace.after(busy) == 0.005
    assert [pace.after(idle) for _ in range(7)] == [0.01, 0.02, 0.04, 0.08, 0.1, 0.1, 0.1]
    assert pace.after(busy) == 0.005
    assert pace.after(Followed(leads=False, events=0)) == 0.1
    assert [pace.trouble() for _ in range(4)] == [0.2, 0.4, 0.4, 0.4]
    assert pace.after(busy) == 0.005
    assert [Pace().trouble(), Pace().after(idle), Pace().after(Followed(leads=True, events=0, full=True))] == [
        0.1,
        0.005,
        0,
    ]


def test_the_rate_is_that_of_late(clock: Clock) -> None:
    follower = owner(TALLY)
    follower.taken(1)
    clock.now += 0.5
    assert follower.measured(1_000) == pytest.approx(2_000)
    clock.now += 1
    assert follower.measured(1_000) == pytest.approx(1_800)
    for _ in range(50):
        clock.now += 1
        follower.measured(500)
    assert follower.rate == pytest.approx(500, rel=0.01)
    follower.taken(1)  # renewed
    clock.now += 100
    assert follower.measured(100) == pytest.approx(1)


def test_the_overview_tells_how_far_each_table_is_and_how_fast(connection: Connection) -> None:
    enrolled(connection, TALLY, LEDGER)
    assert state_of(connection, TALLY).lag == status.Lag(0, 0.0)
    append(connection, "a", acquired(), lent(), lent())
    state = state_of(connection, TALLY)
    assert (state.phase, state.in_force, state.whole, state.owner) == ("following", True, True, None)
    assert state.lag is not None
    assert state.lag.events == 3
    assert 0 < state.lag.seconds < 60
    follower = owner(TALLY)
    catch_up(connection, follower)
    state = state_of(connection, TALLY)
    assert (state.lag, state.position, state.owner) == (
        status.Lag(0, 0.0),
        on(connection, plans.log_end()),
        follower.owner,
    )
    assert state.events_done == 3
    assert state.rate == pytest.approx(follower.rate, rel=1e-3)
    assert state.rate > 0
    lag = state_of(connection, LEDGER).lag
    assert lag is not None
    assert lag.events == 3
    connection.execute("UPDATE command_registry.projectors SET updated_at = updated_at - interval '11 s'")
    assert state_of(connection, TALLY).rate == 0  # that was then
    inline = state_of(connection, COMMAND_STATUS)
    assert (inline.phase, inline.position, inline.lag, inline.owner) == ("inline", None, None, None)


# A read model that every append writes.


def test_an_inline_table_is_followed_only_while_there_are_two_versions_of_it(dsn: str, connection: Connection) -> None:
    table: Table[Any] = Table(NextStatus())
    both = [COMMAND_STATUS, table]
    with PostgresCommandRegistry.open(dsn) as registry, Database(dsn, pool_size=4) as database:
        one_, other = (registry.create_command("dep", "sync").command_id for _ in range(2))
        until_readable(connection)
        assert on(connection, status.follow_if_needed(owner(COMMAND_STATUS))) == Followed(leads=False, events=0)
        assert state_of(connection, COMMAND_STATUS).phase == "inline"
        on(connection, status.wait_until([COMMAND_STATUS], None, 0))
        assert rebuild_table(database, table).switched

        def traffic() -> None:
            """Let both versions write, to the same commands and to ones of their own; each reads it at once."""
            registry.increment_attempt(one_)
            with shelves.next_registry(), PostgresCommandRegistry.open(dsn) as new:
                new.increment_attempt(other)
                mine = new.create_command("dep", "of the new").command_id
                new.increment_attempt(one_)
                attempts = [_attempt(new, each) for each in (one_, other, mine)]
            assert [_attempt(registry, each) for each in (one_, other, mine)] == attempts
            registry.increment_attempt(mine)

        traffic()
        for each in both:  # neither has what the other wrote
            assert rows_of(connection, each) != expected(connection, each)
            assert state_of(connection, each).phase == "following"
            with pytest.raises(NotCaughtUp):
                on(connection, status.wait_until([each], None, 0))
        with Projector(database, both) as projectors:
            for _ in range(3):
                traffic()
                projectors.wait_until()
                check_rows(connection, *both)
        on(connection, status.prune("command_status", 1, 0.0))
        followers = [owner(each) for each in both]
        assert [on(connection, status.follow_if_needed(each)).leads for each in followers] == [False, False]
        assert state_of(connection, table).phase == "inline"


def _attempt(registry: PostgresCommandRegistry, command_id: str) -> int:
    found = registry.get_command_status(command_id)
    assert found is not None
    return found.attempt


# Tables that nobody uses any more.


def test_only_a_table_that_nobody_uses_is_pruned(dsn: str, connection: Connection) -> None:
    class NextLedger(Ledger):
        version = 2

    table: Table[Any] = Table(NextLedger())
    enrolled(connection, LEDGER, table)
    with pytest.raises(StillUsed, match="ledger_v1 is in force: switch"):
        on(connection, status.prune("ledger", 1, 0.0))
    with pytest.raises(UnknownProjection, match="there is no read model ledger, version 3"):
        on(connection, status.prune("ledger", 3, 0.0))
    follower = owner(table)
    assert on(connection, lease(follower))
    with pytest.raises(StillUsed, match=f"followed by {follower.owner}"):
        on(connection, status.prune("ledger", 2, 0.0))
    on(connection, release(follower))
    by_hand = ByHand(status.prune("ledger", 2, 0.0), connection)
    while "pg_sleep" not in str(by_hand.pending.sql):
        by_hand.take()
    uses = Step(queries.USES, ("command_registry.ledger_v2",))
    before = on(connection, one(uses))
    with psycopg.connect(dsn, autocommit=True) as reader:
        reader.execute("SELECT FROM command_registry.ledger_v2 WHERE stream_id = 'a'")
    until(lambda: on(connection, one(uses)) != before, "the server to have counted it")
    by_hand.take()
    with pytest.raises(StillUsed, match="ledger_v2 was read or written within the last 0 s"):
        by_hand.to_the_end()
    connection.execute("CREATE VIEW public.mine AS SELECT * FROM command_registry.ledger_v2")
    with pytest.raises(StillUsed, match=r"ledger_v2 is used by: view .*mine"):
        on(connection, status.prune("ledger", 2, 0.0))
    connection.execute("DROP VIEW public.mine")
    on(connection, status.prune("ledger", 2, 0.0))
    assert connection.execute("SELECT to_regclass('command_registry.ledger_v2')").fetchone() == (None,)
    places = {(each.name, each.version) for each in on(connection, status.overview()).projections}
    assert places == {("ledger", 1), ("command_status", 1)}
