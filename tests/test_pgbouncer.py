"""Behind PgBouncer in transaction mode, where many callers share two connections to the server.

(That every answer is the one of the contract, tests/test_conformance.py shows: it runs over pooled registries, too.)
"""

import asyncio
import io
import json
import subprocess
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from itertools import count
from typing import Any, Final, TypeAlias

import psycopg
import pytest
from psycopg.sql import SQL, Identifier

from eventstore import OutcomeUnknown, Unavailable
from registry import (
    AsyncPostgresCommandRegistry,
    CommandState,
    InvalidTransition,
    PostgresCommandRegistry,
)
from tests.conftest import Databases, Poolers
from tests.pgbouncer import SERVER_CONNECTIONS, PgBouncer, needs_pgbouncer, pgbouncer
from tests.proxy import Fault, Proxy, proxied
from tests.synchronous import Synchronous
from tests.test_cli import CommandLine, start
from tests.waiting import until

pytestmark = needs_pgbouncer

Registry: TypeAlias = Any
"""A registry on Postgres of either kind, called synchronously."""

Connection: TypeAlias = psycopg.Connection[Any]

NOON: Final = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
INSERT: Final = b"INSERT INTO command_registry.events"


@pytest.fixture
def pooler(databases: Databases, poolers: Poolers) -> PgBouncer:
    return poolers(databases)


@pytest.fixture
def pooled(dsn: str, pooler: PgBouncer) -> str:
    """The DSN of a migrated database, through the pooler."""
    return pooler.dsn(dsn)


Opened: TypeAlias = Callable[..., Registry]


@pytest.fixture(params=["sync", "async"])
def open_one(request: pytest.FixtureRequest) -> Iterator[Opened]:
    """Opens registries behind a pooler."""
    with ExitStack() as stack:

        def opened(dsn: str, **settings: Any) -> Registry:
            if request.param == "sync":
                registry: Registry = PostgresCommandRegistry.open(dsn, pooler="transaction", **settings)
            else:
                registry = Synchronous(AsyncPostgresCommandRegistry.open(dsn, pooler="transaction", **settings))
            stack.callback(registry.close)
            return registry

        yield opened


def create(registry: Registry) -> str:
    return str(registry.create_command("dep_1", "sync-data").command_id)


@contextmanager
def blocked(dsn: str, command_id: str) -> Iterator[None]:
    """Write to a command, past the pooler, in a transaction that is under way as long as the block; then commit it."""
    with PostgresCommandRegistry.open(dsn) as direct, psycopg.connect(dsn) as blocker:
        direct.increment_attempt(command_id, connection=blocker)
        yield


def connect(dsn: str) -> Connection:
    """Connect as a caller behind a pooler does."""
    return psycopg.connect(dsn, prepare_threshold=None)


# Many callers


Life: TypeAlias = Generator[Callable[[Registry], Any], Any, None]


def whole_life(number: int) -> Life:
    """The calls of one command's life: yields each, and is sent its answer."""
    command_id = (
        yield lambda registry: registry.create_command("dep_1", "x", idempotency_key=f"key-{number}")
    ).command_id
    again = yield lambda registry: registry.create_command("dep_1", "x", idempotency_key=f"key-{number}")
    assert again.command_id == command_id
    assert (yield lambda registry: registry.mark_dispatched_if_not_terminal(command_id, NOON))
    assert (yield lambda registry: registry.increment_attempt(command_id)) == 2
    assert (yield lambda registry: registry.complete_command(command_id, CommandState.SUCCEEDED, NOON, number))
    assert not (yield lambda registry: registry.complete_command(command_id, CommandState.FAILED, NOON))
    status = yield lambda registry: registry.get_command_status(command_id)
    assert (status.state, status.attempt, status.response_size_bytes) == ("SUCCEEDED", 2, number)
    assert len((yield lambda registry: registry.history(command_id))) == 4


def live(registry: PostgresCommandRegistry, life: Life) -> None:
    call: Callable[[Registry], Any] | None = next(life)
    while call is not None:
        answer = call(registry)
        try:
            call = life.send(answer)
        except StopIteration:
            call = None


async def alive(registry: AsyncPostgresCommandRegistry, life: Life) -> None:
    call: Callable[[Registry], Any] | None = next(life)
    while call is not None:
        answer = await call(registry)
        try:
            call = life.send(answer)
        except StopIteration:
            call = None


def server_pids(connection: Connection) -> set[int]:
    """The sessions that the pooler has in this database, past it."""
    rows = connection.execute(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    return {pid for (pid,) in rows}


def test_64_tasks_of_4_registries_share_2_server_connections(pooled: str, connection: Connection) -> None:
    async def all_at_once() -> list[int]:
        registries = [AsyncPostgresCommandRegistry.open(pooled, pooler="transaction") for _ in range(4)]
        for registry in registries:
            await registry.connect()
        await asyncio.gather(*(alive(registries[n % 4], whole_life(n)) for n in range(64)))
        shared = (await registries[0].create_command("dep_1", "x")).command_id
        attempts = await asyncio.gather(*(registries[n % 4].increment_attempt(shared) for n in range(64)))
        assert (await registries[0].verify()).ok
        for registry in registries:
            await registry.close()
        return attempts

    attempts = asyncio.run(all_at_once())
    assert sorted(attempts) == list(range(2, 66))
    assert 1 <= len(server_pids(connection)) <= SERVER_CONNECTIONS


def test_16_threads_of_4_registries_share_2_server_connections(pooled: str, connection: Connection) -> None:
    with ExitStack() as stack, ThreadPoolExecutor(16) as threads:
        registries = [stack.enter_context(PostgresCommandRegistry.open(pooled, pooler="transaction")) for _ in range(4)]
        list(threads.map(lambda n: live(registries[n % 4], whole_life(n)), range(64)))
        shared = create(registries[0])
        attempts = threads.map(lambda n: registries[n % 4].increment_attempt(shared), range(64))
        assert sorted(attempts) == list(range(2, 66))
        report = registries[0].verify()
    assert report.ok
    assert (report.events, report.streams) == (64 * 4 + 65, 65)
    assert 1 <= len(server_pids(connection)) <= SERVER_CONNECTIONS


def test_a_database_that_is_serializable_by_default_changes_nothing(pooled: str, connection: Connection) -> None:
    database = Identifier(connection.info.dbname)
    connection.execute(SQL("ALTER DATABASE {} SET default_transaction_isolation = 'serializable'").format(database))
    with ExitStack() as stack, ThreadPoolExecutor(16) as threads:
        registries = [stack.enter_context(PostgresCommandRegistry.open(pooled, pooler="transaction")) for _ in range(4)]
        command_id = create(registries[0])
        attempts = threads.map(lambda n: registries[n % 4].increment_attempt(command_id), range(400))
        assert sorted(attempts) == list(range(2, 402))


# What is left on the server's connections

# What PgBouncer itself sets, as each client has it.
PASSED_ON: Final = ["application_name", "client_encoding", "DateStyle", "TimeZone", "standard_conforming_strings"]

SESSION: Final = """
    SELECT
        pg_backend_pid(),
        (SELECT count(*) FROM pg_prepared_statements),
        (SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory'),
        current_setting('lock_timeout'),
        current_setting('search_path'),
        current_setting('default_transaction_isolation'),
        ARRAY(SELECT name FROM pg_settings WHERE source = 'session' AND NOT name = ANY(%s))
"""


def sessions(pooled: str) -> list[tuple[Any, ...]]:
    """What there is in the session of every connection to the server: transactions at the same time have one each."""
    with ExitStack() as stack:
        transactions = [stack.enter_context(connect(pooled)) for _ in range(SERVER_CONNECTIONS)]
        return [transaction.execute(SESSION, (PASSED_ON,)).fetchall()[0] for transaction in transactions]


def test_nothing_is_prepared_and_no_session_keeps_a_setting(
    open_one: Opened, pooled: str, dsn: str, connection: Connection
) -> None:
    before = sessions(pooled)
    registries = [open_one(pooled, timeout=1.0) for _ in range(2)]
    registries[0].migrate()
    for _ in range(12):  # more often than a statement has to be sent to be worth preparing
        for registry in registries:
            command_id = create(registry)
            for _ in range(3):
                registry.increment_attempt(command_id)
            registry.get_command_status(command_id)
            registry.history(command_id)
            registry.expire_overdue(NOON)
    with blocked(dsn, command_id), pytest.raises(Unavailable, match="did not let go"):
        registries[0].increment_attempt(command_id)  # has set a lock_timeout
    assert registries[1].verify().ok
    after = sessions(pooled)
    assert {pid for pid, *_ in after} == server_pids(connection)
    assert len({pid for pid, *_ in after}) == SERVER_CONNECTIONS
    _, prepared, advisory_locks, *settings = connection.execute(SESSION, (PASSED_ON,)).fetchall()[0]
    assert (prepared, advisory_locks) == (0, 0)
    assert [session[1:] for session in before + after] == [(0, 0, *settings)] * 2 * SERVER_CONNECTIONS


# Opening


@pytest.mark.parametrize(
    "open_it",
    [PostgresCommandRegistry.open, lambda dsn: asyncio.run(AsyncPostgresCommandRegistry.open(dsn).connect())],
    ids=["sync", "async"],
)
def test_who_forgets_to_name_the_pooler_is_told_to(pooled: str, open_it: Callable[[str], object]) -> None:
    with pytest.raises(Unavailable, match=r'say pooler="transaction"'):
        open_it(pooled)


@pytest.mark.parametrize(
    "open_it",
    [PostgresCommandRegistry.open, lambda dsn: asyncio.run(AsyncPostgresCommandRegistry.open(dsn).connect())],
    ids=["sync", "async"],
)
def test_who_forgets_to_name_a_pooler_that_ignores_options_is_told_to_as_well(
    databases: Databases, dsn: str, open_it: Callable[[str], object]
) -> None:
    with (
        pgbouncer(databases.server_dsn, ignore_startup_parameters="options") as careless,
        pytest.raises(Unavailable, match=r'say pooler="transaction"'),
    ):
        open_it(careless.dsn(dsn))


def test_who_gives_options_through_the_pooler_is_told_to_leave_them_out(open_one: Opened, pooled: str) -> None:
    with pytest.raises(Unavailable, match="leave options out of the DSN"):
        open_one(f"{pooled} options='-c role=command_registry_writer'")


def test_a_database_is_migrated_through_the_pooler_by_several_at_once(
    open_one: Opened, empty_dsn: str, pooler: PgBouncer
) -> None:
    with ThreadPoolExecutor(4) as threads:
        opened = list(threads.map(lambda _: open_one(pooler.dsn(empty_dsn), migrate=True), range(4)))
    create(opened[0])
    assert opened[3].verify().events == 1


def test_nobodys_functions_stand_in_for_the_servers_own_in_a_migration(
    open_one: Opened, empty_dsn: str, pooler: PgBouncer
) -> None:
    with psycopg.connect(empty_dsn, autocommit=True) as connection:
        connection.execute(
            "CREATE FUNCTION public.to_regrole(text) RETURNS regrole LANGUAGE plpgsql "
            "AS $$ BEGIN RAISE EXCEPTION 'hijacked'; END $$"
        )
        database = Identifier(connection.info.dbname)
        connection.execute(SQL("ALTER DATABASE {} SET search_path = public, pg_catalog").format(database))
    registry = open_one(pooler.dsn(empty_dsn), migrate=True)
    create(registry)
    assert registry.verify().ok


# The caller's own transaction


@pytest.fixture
def caller(open_one: Opened, pooled: str) -> Iterator[tuple[Registry, Any]]:
    """A registry, and a caller's own connection; both through the pooler."""
    registry = open_one(pooled)
    if isinstance(registry, Synchronous):
        run = registry._loop.run
        own = run(psycopg.AsyncConnection.connect(pooled, prepare_threshold=None))
        yield registry, Calls(own, run)
        run(own.close())
    else:
        with connect(pooled) as mine:
            yield registry, Calls(mine, lambda done: done)


class Calls:
    """A caller's connection of either kind."""

    def __init__(self, connection: Any, run: Callable[[Any], Any]) -> None:
        self.connection, self._run = connection, run

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: self._run(getattr(self.connection, name)(*arguments))


def test_a_command_commits_and_vanishes_with_the_callers_transaction(caller: tuple[Registry, Calls]) -> None:
    registry, mine = caller
    mine.execute("CREATE TABLE orders (command_id text)")
    kept = registry.create_command("dep_1", "x", connection=mine.connection).command_id
    mine.execute("INSERT INTO orders VALUES (%s)", (kept,))
    assert registry.get_command_status(kept) is None
    mine.commit()
    assert registry.get_command_status(kept).attempt == 1
    assert registry.increment_attempt(kept, connection=mine.connection) == 2
    gone = registry.create_command("dep_1", "x", idempotency_key="k", connection=mine.connection).command_id
    mine.rollback()
    assert registry.get_command_status(kept).attempt == 1
    assert registry.get_command_status(gone) is None
    assert registry.verify().events == 1


def test_a_refusal_leaves_the_callers_transaction_usable(caller: tuple[Registry, Calls]) -> None:
    registry, mine = caller
    created = registry.create_command("dep_1", "x", idempotency_key="k")
    mine.execute("CREATE TABLE orders (command_id text)")
    with pytest.raises(InvalidTransition):
        registry.update_command_state(created.command_id, CommandState.SUCCEEDED, connection=mine.connection)
    assert registry.create_command("dep_1", "x", idempotency_key="k", connection=mine.connection) == created
    mine.execute("INSERT INTO orders VALUES (%s)", (created.command_id,))
    mine.commit()
    assert registry.verify().events == 1


def test_a_race_lost_inside_a_transaction_is_undone_under_its_savepoint_and_decided_again(pooled: str) -> None:
    attempts = count()

    def clock() -> datetime:  # is read after the decision and before the append
        if next(attempts) == 0:
            assert registry.increment_attempt(command_id) == 2
        return NOON

    with (
        PostgresCommandRegistry.open(pooled, pooler="transaction") as registry,
        PostgresCommandRegistry.open(pooled, pooler="transaction", clock=clock) as racing,
        connect(pooled) as mine,
    ):
        command_id = create(registry)
        mine.execute("CREATE TABLE orders (id int)")
        assert racing.increment_attempt(command_id, connection=mine) == 3
        mine.commit()
        mine.execute("INSERT INTO orders VALUES (1)")
        assert len(registry.history(command_id)) == 3


# Waiting for somebody else's transaction

WAITING: Final = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


def test_who_waits_too_long_for_another_transaction_is_told_by_the_server(
    open_one: Opened, pooled: str, dsn: str, connection: Connection
) -> None:
    registry = open_one(pooled, timeout=1.0)
    command_id, other = create(registry), create(registry)
    with blocked(dsn, command_id):
        with pytest.raises(Unavailable, match="did not let go") as caught:
            registry.increment_attempt(command_id)
        assert not isinstance(caught.value, OutcomeUnknown)
        assert connection.execute(WAITING).fetchall() == []  # nothing goes on without us
        assert registry.increment_attempt(other) == 2
    assert registry.increment_attempt(command_id) == 3


def test_whoever_lets_overdue_commands_expire_is_told_of_another_transaction_too(
    open_one: Opened, pooled: str, dsn: str, connection: Connection
) -> None:
    registry = open_one(pooled, timeout=1.0)
    command_id = registry.create_command("dep_1", "x", deadline=NOON).command_id
    with blocked(dsn, command_id):
        with pytest.raises(Unavailable, match="did not let go") as caught:
            registry.expire_overdue(NOON)
        assert not isinstance(caught.value, OutcomeUnknown)
        assert connection.execute(WAITING).fetchall() == []
    assert registry.expire_overdue(NOON) == [command_id]


def test_when_every_server_connection_is_taken_calls_wait_and_are_told_by_their_deadline(
    open_one: Opened, pooled: str
) -> None:
    registry = open_one(pooled, timeout=20.0)
    command_id = create(registry)
    with ExitStack() as stack:
        takers = [stack.enter_context(connect(pooled)) for _ in range(SERVER_CONNECTIONS)]
        for taker in takers:
            taker.execute("SELECT 1")
        with pytest.raises(Unavailable):
            registry.get_command_status(command_id, timeout=0.5)
        with pytest.raises(Unavailable):
            registry.increment_attempt(command_id, timeout=0.5)
        with ThreadPoolExecutor(1) as thread:
            call = thread.submit(registry.increment_attempt, command_id)
            takers[0].rollback()
            assert call.result() == 2
    assert registry.verify().ok


# When something goes away


@pytest.fixture
def own_pooler(databases: Databases) -> Iterator[PgBouncer]:
    """A pooler of this test alone."""
    with pgbouncer(databases.server_dsn) as bouncer:
        yield bouncer


class Load:
    """Callers that increment commands without a pause; each call's answer is kept."""

    def __init__(self, registry: PostgresCommandRegistry, command_ids: list[str]) -> None:
        self.answers: dict[str, list[int]] = {command_id: [] for command_id in command_ids}
        self._registry = registry
        self._enough = threading.Event()
        self._threads = ThreadPoolExecutor(16)
        self._callers = [self._threads.submit(self._call, command_ids[n % len(command_ids)]) for n in range(16)]

    def _call(self, command_id: str) -> None:
        while not self._enough.is_set():
            self.answers[command_id].append(self._registry.increment_attempt(command_id))

    def answered(self) -> int:
        return sum(map(len, self.answers.values()))

    def goes_on(self, calls: int = 100) -> None:
        """Wait until so many more calls are answered."""
        before = self.answered()
        until(lambda: self.answered() >= before + calls or any(caller.done() for caller in self._callers))

    def end(self) -> None:
        """Let the calls under way finish; whatever one of them raised is raised here."""
        self._enough.set()
        self._threads.shutdown()
        for caller in self._callers:
            caller.result()


def test_while_the_pooler_is_killed_and_started_again_calls_wait_and_none_is_lost_or_doubled(
    dsn: str, own_pooler: PgBouncer
) -> None:
    with PostgresCommandRegistry.open(own_pooler.dsn(dsn), pooler="transaction") as registry:
        load = Load(registry, [create(registry) for _ in range(5)])
        for end in (own_pooler.kill, own_pooler.stop) * 2:
            load.goes_on()
            end()
            own_pooler.start()
        load.goes_on()
        load.end()
        assert registry.stats().reconnections >= 1
        for command_id, numbers in load.answers.items():
            assert sorted(numbers) == list(range(2, len(numbers) + 2))
            assert len(registry.history(command_id)) == len(numbers) + 1
        assert registry.verify().ok


async def test_while_the_pooler_is_killed_tasks_wait_and_no_call_is_lost_or_doubled(
    dsn: str, own_pooler: PgBouncer
) -> None:
    async with AsyncPostgresCommandRegistry.open(own_pooler.dsn(dsn), pooler="transaction") as registry:
        command_id = (await registry.create_command("dep_1", "x")).command_id
        answers: list[int] = []
        enough = asyncio.Event()

        async def caller() -> None:
            while not enough.is_set():
                answers.append(await registry.increment_attempt(command_id))

        async def goes_on() -> None:
            enough_by_now = len(answers) + 100
            await asyncio.to_thread(until, lambda: len(answers) >= enough_by_now)

        callers = [asyncio.create_task(caller()) for _ in range(64)]
        for _ in range(3):
            await goes_on()
            own_pooler.kill()
            await asyncio.to_thread(own_pooler.start)
        await goes_on()
        enough.set()
        await asyncio.gather(*callers)
        assert registry.stats().reconnections >= 1
        assert sorted(answers) == list(range(2, len(answers) + 2))
        assert len(await registry.history(command_id)) == len(answers) + 1
        assert (await registry.verify()).ok


@pytest.fixture
def proxy(databases: Databases) -> Iterator[Proxy]:
    """Stands between the pooler and the server."""
    with proxied(databases.server_dsn) as proxy:
        yield proxy


@pytest.fixture
def far_pooler(databases: Databases, proxy: Proxy) -> Iterator[PgBouncer]:
    """A pooler whose server is behind the proxy."""
    with pgbouncer(proxy.dsn(databases.server_dsn)) as bouncer:
        yield bouncer


@pytest.mark.parametrize("fault", [Fault.LOSE_REPLY, Fault.CUT_BEFORE])
def test_a_write_whose_connection_breaks_behind_the_pooler_is_there_once(
    open_one: Opened, dsn: str, far_pooler: PgBouncer, proxy: Proxy, fault: Fault
) -> None:
    registry = open_one(far_pooler.dsn(dsn), timeout=20.0)
    proxy.fail_at(INSERT, fault)
    command_id = create(registry)
    proxy.fail_at(INSERT, fault)
    assert registry.increment_attempt(command_id) == 2
    proxy.fail_at(b"command_status_v1", fault)
    assert registry.get_command_status(command_id).attempt == 2
    assert proxy.happened == [fault] * 3
    assert registry.verify().events == 2


def test_a_server_that_was_away_behind_the_pooler_is_found_again(
    open_one: Opened, dsn: str, far_pooler: PgBouncer, proxy: Proxy
) -> None:
    registry = open_one(far_pooler.dsn(dsn), timeout=20.0)
    command_id = create(registry)
    proxy.go_away()
    with pytest.raises(Unavailable):
        registry.get_command_status(command_id, timeout=0.5)
    with pytest.raises(Unavailable):
        registry.increment_attempt(command_id, timeout=1.0)
    assert registry.stats().reconnections < 100  # the pooler takes any connection, and hangs up at its first statement
    with ThreadPoolExecutor(1) as thread:
        call = thread.submit(registry.increment_attempt, command_id)
        proxy.come_back()
        assert call.result() == 2
    assert registry.verify().events == 2


# The command line


class Pooled(CommandLine):
    """The command line on a database behind a pooler."""

    def call(self, *arguments: str) -> Any:
        return super().call(*arguments, "--pooler", "transaction")


def test_the_commands_work_through_the_pooler(empty_dsn: str, pooler: PgBouncer) -> None:
    cli = Pooled(pooler.dsn(empty_dsn))
    assert "version 2 installed" in cli.text("migrate")
    assert cli.json("migrate")["notices"] == []
    command_id = cli.create("--deadline", "1h")
    cli.text("dispatch", command_id)
    cli.text("increment", command_id)
    cli.text("update", command_id, "PENDING")
    cli.text("complete", command_id, "SUCCEEDED")
    assert cli.json("expire") == {"expired": []}
    assert cli.json("status", command_id)["version"] == len(cli.json("history", command_id)) == 5
    assert cli.json("verify")["events"] == 5
    until(lambda: cli.text("export").count("\n") == 5)  # once no neighbouring test holds the log's readers back
    found = {check["name"]: check["status"] for check in cli.json("doctor")["checks"]}
    del found["log readers"]  # which depends on neighbouring tests
    assert len(found) > 10
    assert set(found.values()) == {"ok"}
    with psycopg.connect(empty_dsn, autocommit=True) as direct:
        database = Identifier(direct.info.dbname)
        direct.execute(SQL("ALTER DATABASE {} SET search_path = command_registry, public").format(database))
    pooler.ask("RECONNECT")
    assert cli.call("doctor").exit_code == 0
    assert cli.call("demo", "--commands", "20", "--seed", "1", "--json").exit_code == 0
    assert cli.json("verify")["ok"]


def test_rpc_works_through_the_pooler(pooled: str) -> None:
    process = start(pooled, "rpc", "--pooler", "transaction", stdin=subprocess.PIPE)
    calls = [
        {"jsonrpc": "2.0", "id": n, "method": "create_command", "params": {"deployment_id": "d", "command_name": "n"}}
        for n in range(100)
    ]
    lines = io.StringIO()
    for call in calls:
        lines.write(json.dumps(call) + "\n")
    stdout, stderr = process.communicate(lines.getvalue().encode(), timeout=60)
    assert (process.returncode, stderr) == (0, b"")
    assert len({json.loads(line)["result"]["command_id"] for line in stdout.splitlines()}) == 100


@pytest.mark.parametrize("command", [["status", "x"], ["doctor"], ["migrate"], ["demo", "--commands", "1"]])
def test_a_command_that_is_not_told_of_the_pooler_says_how(pooled: str, command: list[str]) -> None:
    assert "--pooler transaction" in CommandLine(pooled).error(*command)


@pytest.mark.parametrize("command", [["verify"], ["doctor"]])
def test_the_pooler_may_be_named_before_the_command_or_by_the_environment(
    pooled: str, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cli = CommandLine(pooled)
    assert cli.call("--pooler", "transaction", *command).exit_code == 0
    monkeypatch.setenv("COMMAND_REGISTRY_POOLER", "transaction")
    assert cli.call(*command).exit_code == 0
