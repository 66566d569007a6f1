"""Callers of one registry share statements, reads and writes alike, and none has to do with what the others meet."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from eventstore import OutcomeUnknown, Unavailable
from registry import AsyncPostgresCommandRegistry, CommandState, PostgresCommandRegistry
from tests.batchers import KINDS
from tests.batches import Log, opened_log
from tests.conftest import Databases
from tests.waiting import until

CALLERS = 40


@pytest.fixture(scope="module")
def log(servers: Callable[[str], Databases]) -> Iterator[Log]:
    with opened_log(servers) as log:
        yield log


class Callers:
    """Callers of one registry, from threads or from tasks."""

    def __init__(self, kind: str, dsn: str, **settings: Any) -> None:
        self._threads = ThreadPoolExecutor(100)
        self._loop = asyncio.new_event_loop() if kind == "asyncio" else None
        if self._loop is None:
            self.registry: Any = PostgresCommandRegistry.open(dsn, **settings)
            return
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.registry = AsyncPostgresCommandRegistry.open(dsn, **settings)
        self._on_the_loop(self.registry.connect()).result()

    def _on_the_loop(self, coroutine: Any) -> "Future[Any]":
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def begin(self, name: str, *arguments: Any, **settings: Any) -> "Future[Any]":
        """Begin a call."""
        method = getattr(self.registry, name)
        if self._loop is None:
            return self._threads.submit(method, *arguments, **settings)
        return self._on_the_loop(method(*arguments, **settings))

    def call(self, name: str, *arguments: Any, **settings: Any) -> Any:
        return self.begin(name, *arguments, **settings).result()

    def queued(self) -> int:
        opened = self.registry._opened
        return sum(len(lane._calls) for batcher in (opened.writes, opened.reads) for lane in batcher._lanes)

    def all_are_aside(self) -> bool:
        """Tell whether no batch of writes is under way but in lanes aside."""
        return not any(lane.leader or lane.task for lane in self.registry._opened.writes._lanes._numbered)

    def statements(self) -> int:
        return int(self.registry.stats().statement_time.count)

    def close(self) -> None:
        if self._loop is None:
            self._threads.shutdown()
            self.registry.close()
            return
        self._on_the_loop(self.registry.close()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture(params=KINDS)
def open_callers(request: pytest.FixtureRequest, log: Log) -> Iterator[Callable[..., Callers]]:
    opened: list[Callers] = []

    def open_them(dsn: str = log.dsn, **settings: Any) -> Callers:
        opened.append(Callers(request.param, dsn, **settings))
        return opened[-1]

    yield open_them
    for callers in opened:
        callers.close()


@pytest.fixture
def callers(open_callers: Callable[..., Callers]) -> Callers:
    return open_callers()


def blocked_by(log: Log, mine: psycopg.Connection[Any]) -> int:
    """Count the backends that wait for what a connection's transaction holds."""
    sql = "SELECT FROM pg_stat_activity WHERE %s = ANY (pg_blocking_pids(pid))"
    return len(log.connection.execute(sql, (mine.info.backend_pid,)).fetchall())


def read_together(log: Log, callers: Callers, reads: list[tuple[str, str]]) -> list[Any]:
    """Begin reads while the first is under way, and give their answers or errors."""
    with psycopg.connect(log.dsn) as mine:
        mine.execute("LOCK TABLE command_registry.command_status_v1 IN ACCESS EXCLUSIVE MODE")
        begun = [callers.begin(*reads[0])]
        until(lambda: blocked_by(log, mine) == 1, "the first read to be under way")
        for number, read in enumerate(reads[1:], 1):
            begun.append(callers.begin(*read))
            until(lambda number=number: callers.queued() == number, "a read to be queued")  # type: ignore[misc]
    return [each.exception(10) or each.result() for each in begun]


# Reads.


def test_reads_that_wait_go_together_in_one_statement(log: Log, callers: Callers) -> None:
    commands = log.commands(CALLERS)
    log.other.increment_attempt(commands[5])
    reads = [
        ("get_command_metadata" if number % 3 == 0 else "get_command_status", command_id)
        for number, command_id in enumerate([*commands, "cmd_missing", *commands[:5]])
    ]
    before = callers.statements()
    answers = read_together(log, callers, reads)
    assert callers.statements() - before == 2
    for (name, command_id), answer in zip(reads, answers, strict=True):
        assert answer == getattr(log.other, name)(command_id)
    assert [answer and answer.attempt for answer in answers[4:7]] == [1, 2, 1]
    assert answers[CALLERS] is None


def test_reads_at_once_share_statements(log: Log, callers: Callers) -> None:
    commands = log.commands(5)
    before = callers.statements()
    reads = [callers.begin("get_command_status", commands[number % 5]) for number in range(400)]
    assert [read.result().command_id for read in reads] == [commands[number % 5] for number in range(400)]
    assert callers.statements() - before < 300


def test_readers_of_one_command_get_answers_of_their_own(log: Log, callers: Callers) -> None:
    [command] = log.commands(1)
    given = {"code": 7, "details": ["first"]}
    callers.call("update_command_state", command, CommandState.PENDING, error=given)
    answers = read_together(log, callers, [("get_command_status", command)] * 4)
    answers[1].error["code"] = 8
    answers[2].error["details"].append("second")
    answers[3].__dict__["attempt"] = 9
    assert [answers[0].error, answers[0].attempt] == [given, 1]
    assert callers.call("get_command_status", command) == answers[0]
    assert callers.call("update_command_state", command, CommandState.PENDING, error=given)
    assert log.version(command) == 2


def test_a_row_that_cannot_be_read_fails_its_own_readers_alone(
    servers: Callable[[str], Databases], open_callers: Callable[..., Callers], dsn: str
) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection, PostgresCommandRegistry.open(dsn) as other:
        own = Log(dsn, connection, other)
        good, tampered = own.commands(2)
        spoil = "UPDATE command_registry.command_status_v1 SET state = 'LOST' WHERE command_id = %s"
        connection.execute(spoil, (tampered,))
        order = [good, good, tampered, good]
        answers = read_together(own, open_callers(dsn), [("get_command_status", each) for each in order])
        assert [getattr(answer, "command_id", None) for answer in answers] == [good, good, None, good]
        assert isinstance(answers[2], ValueError)


# Writes.


def test_writes_at_once_share_statements(log: Log, callers: Callers) -> None:
    commands = log.commands(CALLERS)
    before = callers.statements()
    writes = [callers.begin("increment_attempt", command) for command in commands * 5]
    numbers = [write.result() for write in writes]
    assert sorted(numbers) == sorted([2, 3, 4, 5, 6] * CALLERS)
    assert callers.statements() - before < 5 * CALLERS
    assert callers.registry.stats().batch_size.max > 1
    assert [log.version(command) for command in commands] == [6] * CALLERS


def of_one_lane(log: Log, count: int) -> list[str]:
    """Create commands whose calls share a lane."""
    lanes: tuple[list[str], list[str]] = ([], [])
    while max(map(len, lanes)) < count:
        [command] = log.commands(1)
        lanes[hash(command) % 2].append(command)
    return max(lanes, key=len)[:count]


def test_what_a_callers_open_transaction_holds_does_not_hold_up_the_others(log: Log, callers: Callers) -> None:
    held, *others = of_one_lane(log, 4)
    with psycopg.connect(log.dsn) as mine:
        assert log.other.increment_attempt(held, connection=mine) == 2
        late = [callers.begin("increment_attempt", held) for _ in range(3)]
        start = time.monotonic()
        for _ in range(5):
            for command in others:
                callers.begin("increment_attempt", command).result(5)
        assert time.monotonic() - start < 5
        assert not any(each.done() for each in late)
        mine.commit()
        assert sorted(each.result(10) for each in late) == [3, 4, 5]
    assert [log.version(command) for command in [held, *others]] == [5, 6, 6, 6]


def test_who_shared_a_statement_with_a_call_that_has_to_wait_does_not_wait_with_it(
    log: Log, open_callers: Callable[..., Callers]
) -> None:
    callers = open_callers(pool_size=3)
    held, first, *others = of_one_lane(log, 5)
    with psycopg.connect(log.dsn) as mine, psycopg.connect(log.dsn) as another:
        log.other.increment_attempt(first, connection=another)
        begun = [callers.begin("increment_attempt", first)]
        until(lambda: blocked_by(log, another) == 1, "the first to be under way")
        log.other.increment_attempt(held, connection=mine)
        late = callers.begin("increment_attempt", held)
        begun += [callers.begin("increment_attempt", command) for command in others]
        another.commit()
        assert [each.result(5) for each in begun] == [3, 2, 2, 2]
        assert not late.done()
        mine.commit()
        assert late.result(10) == 3


@pytest.mark.parametrize("keys", [1, 3])
def test_those_who_wait_for_an_open_transaction_leave_connections_to_the_others(
    log: Log, open_callers: Callable[..., Callers], keys: int
) -> None:
    callers = open_callers(pool_size=3)
    *held, other = of_one_lane(log, keys + 1)
    with psycopg.connect(log.dsn) as mine:
        for command in held:
            log.other.increment_attempt(command, connection=mine)
        late = [callers.begin("increment_attempt", command) for command in held * 6]
        until(lambda: blocked_by(log, mine) and callers.all_are_aside(), "all to go aside")
        assert callers.begin("increment_attempt", other, timeout=5.0).result() == 2
        assert callers.begin("get_command_status", other, timeout=5.0).result().attempt == 2
        assert not any(each.done() for each in late)
        mine.commit()
        assert sorted(each.result(10) for each in late) == sorted([3, 4, 5, 6, 7, 8] * keys)


async def test_who_was_told_that_there_was_no_connection_is_not_served_when_there_is_one(log: Log) -> None:
    async with AsyncPostgresCommandRegistry.open(log.dsn, pool_size=1) as registry:
        database = registry.database
        only_one = await database.take(5.0)
        hasty, patient = (
            asyncio.create_task(registry.create_command("dep_1", name, timeout=timeout))
            for name, timeout in (("hasty", 0.3), ("patient", 10.0))
        )
        with pytest.raises(Unavailable) as error:
            await hasty
        await database.put_back(only_one)
        assert log.version((await patient).command_id) == 1
    if not isinstance(error.value, OutcomeUnknown):
        made = "SELECT command FROM command_registry.command_status_v1 WHERE command IN ('hasty', 'patient')"
        assert log.connection.execute(made).fetchall() == [("patient",)]


# What is counted.


def test_conflicts_and_retries_are_counted(
    servers: Callable[[str], Databases], open_callers: Callable[..., Callers], dsn: str
) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection, PostgresCommandRegistry.open(dsn) as other:
        callers = open_callers(dsn)
        command = callers.call("create_command", "dep_1", "sync").command_id
        other.increment_attempt(command)
        assert callers.call("increment_attempt", command) == 3
        stats = callers.registry.stats()
        assert (stats.conflicts, stats.retries, stats.calls) == (1, 0, 2)
        connection.execute(UNDONE_TWICE)
        assert callers.call("increment_attempt", command) == 4
        assert (stats.conflicts, stats.retries, stats.calls) == (1, 2, 3)
        assert stats.batch_size.count == stats.queue_time.count == 3
        assert stats.unknown == stats.reconnections == 0
        assert other.verify().ok


UNDONE_TWICE = """
    CREATE SEQUENCE tries;
    CREATE FUNCTION undo() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF nextval('public.tries') < 3 THEN
                RAISE EXCEPTION 'another transaction came between' USING ERRCODE = 'serialization_failure';
            END IF;
            RETURN NEW;
        END
    $$;
    CREATE TRIGGER undone BEFORE INSERT ON command_registry.events FOR EACH ROW EXECUTE FUNCTION undo();
"""
