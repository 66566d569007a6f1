"""Plans, stepped by hand to force every race, and the two drivers that run them."""

import asyncio
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Generic, LiteralString, TypeVar

import psycopg
import pytest
from psycopg.pq import TransactionStatus

from eventstore import Conflict, EventStoreError, OutcomeUnknown, RecordedEvent, StreamEnd, Unavailable, plans, queries
from eventstore.hashing import chain
from eventstore.plans import event_params
from eventstore.steps import Lost, Plan, Refused, Row, Step, arun, constant, run
from tests.conftest import Databases
from tests.lending import acquired, lent, on, returned

T = TypeVar("T")


def one(step: Step) -> Plan[list[Row]]:
    return (yield step)


class ByHand(Generic[T]):
    """A plan that takes one step when it is told to, over the connection it is told."""

    def __init__(self, plan: Plan[T]) -> None:
        self._plan = plan
        self.step: Step | None = None
        self.result: T | None = None
        self._resume(lambda: next(plan))

    def _resume(self, resume: Callable[[], Step]) -> None:
        try:
            self.step = resume()
        except StopIteration as stop:
            self.step, self.result = None, stop.value

    def take(self, connection: psycopg.Connection[Any]) -> None:
        """Take the step."""
        assert self.step is not None
        try:
            rows = on(connection, one(self.step))
        except EventStoreError as error:
            self.throw(error)
        else:
            self._resume(lambda: self._plan.send(rows))

    def throw(self, error: EventStoreError) -> None:
        """Let the step fail."""
        self._resume(lambda: self._plan.throw(error))

    def up_to_the_write(self, connection: psycopg.Connection[Any]) -> "ByHand[T]":
        while self.step is not None and not self.step.writes:
            self.take(connection)
        assert self.step is not None
        return self

    def to_the_end(self, connection: psycopg.Connection[Any]) -> T | None:
        while self.step is not None:
            self.take(connection)
        return self.result

    def commit_and_lose_the_reply(self, connection: psycopg.Connection[Any]) -> None:
        assert self.step is not None
        on(connection, one(self.step))
        self.throw(Lost("the reply"))


def versions(connection: psycopg.Connection[Any], stream_id: str = "book") -> list[tuple[int, str]]:
    return [(event.version, event.type) for event in on(connection, plans.read_stream(stream_id))]


# Two writers of one next version.


@pytest.mark.every_postgres
def test_of_two_writers_of_one_next_version_the_second_is_refused(connection: psycopg.Connection[Any]) -> None:
    for version, there in enumerate([[], [acquired()], [acquired(), lent()]]):
        book = f"book {version}"
        on(connection, plans.append(book, 0, there))
        first = ByHand(plans.append(book, version, [lent("Ada")])).up_to_the_write(connection)
        second = ByHand(plans.append(book, version, [lent("Grace"), returned()])).up_to_the_write(connection)
        first.to_the_end(connection)
        with pytest.raises(Conflict) as conflict:
            second.to_the_end(connection)
        assert (conflict.value.expected, conflict.value.actual) == (version, version + 1)
        assert len(versions(connection, book)) == version + 1
        assert on(connection, plans.read_stream(book))[-1].data == lent("Ada").data


def test_of_two_batches_that_overlap_the_second_leaves_nothing_behind(connection: psycopg.Connection[Any]) -> None:
    long = ByHand(plans.append("book", 0, [acquired(), lent(), returned()])).up_to_the_write(connection)
    on(connection, plans.append("book", 0, [acquired("Emma")]))
    with pytest.raises(Conflict):
        long.to_the_end(connection)
    assert versions(connection) == [(1, "Acquired")]


def test_writers_of_different_streams_do_not_meet(connection: psycopg.Connection[Any]) -> None:
    first = ByHand(plans.append("a", 0, [acquired()])).up_to_the_write(connection)
    second = ByHand(plans.append("b", 0, [acquired()])).up_to_the_write(connection)
    assert second.to_the_end(connection)
    assert first.to_the_end(connection)


def append_after(end: StreamEnd | None, *events: Any) -> Plan[list[Row]]:
    chained = chain("book", end, events)
    return plans.write(Step(queries.APPEND, event_params(chained, end), writes=True), chained)


@pytest.mark.every_postgres
def test_a_state_from_a_transaction_that_rolled_back_leaves_no_gap(connection: psycopg.Connection[Any]) -> None:
    on(connection, plans.append("book", 0, [acquired()]))
    with connection.transaction(force_rollback=True):
        [event] = on(connection, plans.append("book", 1, [lent()]))
    for end in (StreamEnd(2, event.hash), StreamEnd(7, event.hash)):
        with pytest.raises(Refused) as refusal:
            on(connection, append_after(end, returned()))
        assert refusal.value.constraint == "hash"
    assert versions(connection) == [(1, "Acquired")]


def test_an_event_chained_onto_another_than_the_one_there_is_refused(connection: psycopg.Connection[Any]) -> None:
    [event] = on(connection, plans.append("book", 0, [acquired()]))
    with pytest.raises(Refused):
        on(connection, append_after(StreamEnd(1, bytes(32)), lent()))
    on(connection, append_after(StreamEnd(1, event.hash), lent(), returned()))
    assert versions(connection) == [(1, "Acquired"), (2, "Lent"), (3, "Returned")]


# The reply to an append is lost.

Append = ByHand[tuple[RecordedEvent, ...]]


@pytest.fixture
def append(connection: psycopg.Connection[Any]) -> Append:
    """An append of two events to a stream of one, about to be written."""
    on(connection, plans.append("book", 0, [acquired()]))
    return ByHand(plans.append("book", 1, [lent(), returned(5)])).up_to_the_write(connection)


@pytest.mark.every_postgres
def test_a_commit_whose_reply_is_lost_is_a_success(connection: psycopg.Connection[Any], append: Append) -> None:
    append.commit_and_lose_the_reply(connection)
    assert append.to_the_end(connection) == tuple(on(connection, plans.read_stream("book", 1)))
    assert versions(connection) == [(1, "Acquired"), (2, "Lent"), (3, "Returned")]


def test_an_own_commit_that_others_have_gone_on_from_is_a_success(
    connection: psycopg.Connection[Any], append: Append
) -> None:
    append.commit_and_lose_the_reply(connection)
    on(connection, plans.append("book", 3, [lent("Grace")]))
    result = append.to_the_end(connection)
    assert result is not None
    assert [event.version for event in result] == [2, 3]


def test_a_write_that_was_lost_before_it_happened_is_made_again(
    connection: psycopg.Connection[Any], append: Append
) -> None:
    append.throw(Lost("the request"))
    assert append.to_the_end(connection) == tuple(on(connection, plans.read_stream("book", 1)))
    assert versions(connection) == [(1, "Acquired"), (2, "Lent"), (3, "Returned")]


def test_a_write_that_is_lost_again_and_again_is_made_until_it_is_there(
    connection: psycopg.Connection[Any], append: Append
) -> None:
    for _ in range(5):
        append.throw(Lost("the request"))
        append.take(connection)
        assert append.step is not None
        assert append.step.writes
    append.commit_and_lose_the_reply(connection)
    assert append.to_the_end(connection)
    assert len(versions(connection)) == 3


def test_a_lost_write_whose_place_another_has_taken_is_a_conflict(
    connection: psycopg.Connection[Any], append: Append
) -> None:
    append.throw(Lost("the request"))
    on(connection, plans.append("book", 1, [lent("Grace")]))
    with pytest.raises(Conflict) as conflict:
        append.to_the_end(connection)
    assert (conflict.value.expected, conflict.value.actual) == (1, 2)
    assert versions(connection) == [(1, "Acquired"), (2, "Lent")]


def test_the_same_content_written_at_another_moment_is_not_mine(
    connection: psycopg.Connection[Any], append: Append
) -> None:
    append.throw(Lost("the request"))
    on(connection, plans.append("book", 1, [lent("Grace"), returned(5)]))
    with pytest.raises(Conflict):
        append.to_the_end(connection)


def test_an_own_commit_that_arrives_between_the_look_and_the_retry_is_a_success(
    connection: psycopg.Connection[Any], append: Append
) -> None:
    lost = append.step
    assert lost is not None
    append.throw(Lost("the reply, while the server is still at work"))
    append.take(connection)  # the look: nothing there
    on(connection, one(lost))  # now the server has done it
    assert append.to_the_end(connection) == tuple(on(connection, plans.read_stream("book", 1)))
    assert versions(connection) == [(1, "Acquired"), (2, "Lent"), (3, "Returned")]


def facts(error: OutcomeUnknown) -> tuple[str, int]:
    return (error.stream_id, error.version)


def test_when_nobody_can_be_asked_the_outcome_is_unknown_and_the_facts_tell_where_to_look(
    connection: psycopg.Connection[Any], append: Append
) -> None:
    append.commit_and_lose_the_reply(connection)
    with pytest.raises(OutcomeUnknown) as unknown:
        append.throw(Unavailable("still away"))
    assert facts(unknown.value) == ("book", 2)
    assert unknown.value.hash == on(connection, plans.read_stream("book", 1))[0].hash
    assert unknown.value.hash.hex() in str(unknown.value)
    assert isinstance(unknown.value, ConnectionError)


def test_when_the_server_goes_away_before_the_retry_the_outcome_is_unknown(
    connection: psycopg.Connection[Any], append: Append
) -> None:
    append.throw(Lost("the reply, while the server is still at work"))
    append.take(connection)  # the look: nothing there, yet
    with pytest.raises(OutcomeUnknown) as unknown:
        append.throw(Unavailable("away again"))
    assert facts(unknown.value) == ("book", 2)


def test_a_server_that_was_never_reached_is_unavailable_and_no_more(append: Append) -> None:
    with pytest.raises(Unavailable) as error:
        append.throw(Unavailable("away"))
    assert not isinstance(error.value, OutcomeUnknown)


# The drivers.

BREAK: LiteralString = "SELECT pg_terminate_backend(pg_backend_pid())"


class Driver:
    """Runs plans by `run` or by `arun`, over fresh connections, one after another."""

    def __init__(self, dsn: str, kind: str) -> None:
        self._dsn, self._kind = dsn, kind
        self.autocommit = True
        self.begin: LiteralString | None = None
        self.away_after = 1_000_000
        self.lent: list[Any] = []
        self.status: TransactionStatus | None = None

    def __call__(self, plan: Plan[T], timeout: float = 10.0) -> T:
        if self._kind == "run":
            return run(self._lend, plan, timeout)
        return asyncio.run(arun(self._alend, plan, timeout))

    def _check(self, timeout: float) -> None:
        if len(self.lent) == self.away_after:
            raise Unavailable(f"away, for {timeout} s")

    @contextmanager
    def _lend(self, timeout: float) -> Iterator[psycopg.Connection[Any]]:
        self._check(timeout)
        connection = psycopg.connect(self._dsn, autocommit=self.autocommit)
        self.lent.append(connection)
        try:
            if self.begin:
                connection.execute(self.begin)
            yield connection
        finally:
            self.status = TransactionStatus(connection.info.transaction_status)
            connection.close()

    @asynccontextmanager
    async def _alend(self, timeout: float) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        self._check(timeout)
        connection = await psycopg.AsyncConnection.connect(self._dsn, autocommit=self.autocommit)
        self.lent.append(connection)
        try:
            if self.begin:
                await connection.execute(self.begin)
            yield connection
        finally:
            self.status = TransactionStatus(connection.info.transaction_status)
            await connection.close()


@pytest.fixture(scope="module")
def shared_dsn(servers: Callable[[str], Databases]) -> Iterator[str]:
    """One database for all tests that leave nothing in it."""
    databases = servers("default")
    name = databases.migrated()
    yield databases.dsn(name)
    databases.drop(name)


@pytest.fixture(params=["run", "arun"])
def drive(request: pytest.FixtureRequest, shared_dsn: str) -> Driver:
    return Driver(shared_dsn, request.param)


def broken_once(*, writes: bool) -> Plan[list[Row]]:
    """Break the connection in the first step; then go on."""
    sql: list[LiteralString] = [BREAK]
    try:
        yield Step(sql.pop(), writes=writes)
    except Lost:
        return (yield Step("SELECT 'told'"))
    raise AssertionError("the connection was not broken")


def test_a_plan_is_sent_the_rows_of_each_step(drive: Driver) -> None:
    def plan() -> Plan[list[Row]]:
        first = yield Step("SELECT %s::int, %s::text", (1, "a"))
        none = yield Step("CREATE TEMPORARY TABLE kept (n int)")
        script = yield Step("INSERT INTO kept VALUES (1), (2); INSERT INTO kept VALUES (3)", None)
        last = yield Step("SELECT n FROM kept ORDER BY n")
        return [*first, *none, *script, *last]

    assert drive(plan()) == [(1, "a"), (1,), (2,), (3,)]
    assert len(drive.lent) == 1


def test_a_plan_without_steps_asks_for_no_connection(drive: Driver) -> None:
    assert drive(constant(42)) == 42
    assert drive.lent == []


def test_a_connection_lost_in_a_step_that_writes_is_told_and_another_one_goes_on(drive: Driver) -> None:
    assert drive(broken_once(writes=True)) == [("told",)]
    assert len(drive.lent) == 2
    assert drive.lent[0].closed


def test_a_step_that_only_reads_is_asked_again_over_another_connection(drive: Driver) -> None:
    # A sequence counts outside of any transaction.
    drive(one(Step("DROP SEQUENCE IF EXISTS tries; CREATE SEQUENCE tries", None)))
    drive.lent.clear()

    def plan() -> Plan[list[Row]]:
        return (yield Step("SELECT n, CASE WHEN n < 3 THEN pg_terminate_backend(pg_backend_pid()) END "
                           "FROM nextval('tries') AS n"))  # fmt: skip

    assert drive(plan()) == [(3, None)]
    assert len(drive.lent) == 3


@pytest.mark.parametrize("writes", [False, True])
@pytest.mark.parametrize(("autocommit", "begin"), [(False, None), (False, "SELECT 1"), (True, "BEGIN")])
def test_a_connection_lost_within_a_transaction_is_unavailable(
    drive: Driver, writes: bool, autocommit: bool, begin: LiteralString | None
) -> None:
    drive.autocommit, drive.begin = autocommit, begin
    with pytest.raises(Unavailable, match="connection lost, and the transaction with it") as error:
        drive(broken_once(writes=writes))
    assert not isinstance(error.value, OutcomeUnknown)
    assert len(drive.lent) == 1


def test_a_server_that_is_away_is_told_to_the_plan_at_its_step(drive: Driver) -> None:
    drive.away_after = 1
    chained = chain("book", None, [acquired()])

    def plan() -> Plan[list[Row]]:
        return (yield from plans.write(Step(BREAK, writes=True), chained))

    with pytest.raises(OutcomeUnknown) as unknown:
        drive(plan())
    assert (*facts(unknown.value), unknown.value.hash) == ("book", 1, chained[0].hash)


def test_a_plan_may_answer_without_the_server(drive: Driver) -> None:
    drive.away_after = 0

    def plan() -> Plan[str]:
        try:
            yield Step("SELECT 1")
        except Unavailable:
            return "from memory"
        return "from the server"

    assert drive(plan()) == "from memory"


DUPLICATE = Step(
    "INSERT INTO command_registry.schema_versions (version) SELECT version FROM command_registry.schema_versions",
    writes=True,
)
NULL = Step("INSERT INTO command_registry.schema_versions (version) VALUES (NULL)", writes=True)


@pytest.mark.parametrize(("step", "constraint"), [(DUPLICATE, "schema_versions_pkey"), (NULL, "version")])
@pytest.mark.parametrize("autocommit", [False, True])
def test_a_refusal_is_told_to_the_plan_and_the_connection_goes_on(
    drive: Driver, step: Step, constraint: str, autocommit: bool
) -> None:
    drive.autocommit = autocommit

    def plan() -> Generator[Step, list[Row], tuple[str, list[Row]]]:
        try:
            yield step
        except Refused as refusal:
            return refusal.constraint, (yield Step("SELECT 'usable'"))
        raise AssertionError

    assert drive(plan()) == (constraint, [("usable",)])
    assert len(drive.lent) == 1
    assert drive.status == (TransactionStatus.IDLE if autocommit else TransactionStatus.INTRANS)


@pytest.mark.parametrize("sql", ["SELECT 1 / 0", "SELECT * FROM nowhere", "SELEC"])
@pytest.mark.parametrize("writes", [False, True])
def test_whatever_else_the_server_objects_to_rises_unchanged(drive: Driver, sql: LiteralString, writes: bool) -> None:
    with pytest.raises(psycopg.Error):
        drive(one(Step(sql, writes=writes)))
    assert len(drive.lent) == 1


def test_a_failed_write_leaves_the_callers_transaction_usable(drive: Driver) -> None:
    drive.autocommit = False
    with pytest.raises(psycopg.errors.DivisionByZero):
        drive(one(Step("SELECT 1 / 0", writes=True)))
    assert drive.status == TransactionStatus.INTRANS


def test_a_write_in_the_callers_transaction_leaves_no_savepoint_behind(drive: Driver) -> None:
    drive.autocommit = False

    def plan() -> Plan[list[Row]]:
        yield Step("SELECT 1", writes=True)
        return (yield Step("ROLLBACK TO SAVEPOINT command_registry_step", None))

    with pytest.raises(psycopg.errors.InvalidSavepointSpecification):
        drive(plan())


def test_a_plan_that_loses_every_connection_ends_with_its_deadline(drive: Driver) -> None:
    drive.away_after = 50  # so that a failure ends, too
    with pytest.raises(Unavailable, match="connection lost, and no time left for another one"):
        drive(one(Step(BREAK)), 0.0)
    assert len(drive.lent) == 1
