"""Connections that break at the worst moment: what became of a write is found out, never guessed."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias

import psycopg
import pytest

from eventstore import OutcomeUnknown, Unavailable
from registry import AsyncPostgresCommandRegistry, CommandState, PostgresCommandRegistry
from tests.proxy import Fault, Proxy, proxied
from tests.synchronous import Synchronous
from tests.waiting import until

Registry: TypeAlias = Any
"""A registry on Postgres of either kind, called synchronously."""

INSERT: Final = b"INSERT INTO command_registry.events"
NOON: Final = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
TIMEOUT: Final = 1.0
GRACE: Final = 1.0


@pytest.fixture
def proxy(dsn: str) -> Iterator[Proxy]:
    with proxied(dsn) as proxy:
        yield proxy


Opened: TypeAlias = Callable[..., Registry]


@pytest.fixture(params=["sync", "async"])
def open_through(request: pytest.FixtureRequest, dsn: str, proxy: Proxy) -> Iterator[Opened]:
    """Opens registries through the proxy, or (`direct`) past it."""
    opened: list[Registry] = []

    def open_registry(*, direct: bool = False, **settings: Any) -> Registry:
        to = dsn if direct else proxy.dsn(dsn)
        if request.param == "sync":
            opened.append(PostgresCommandRegistry.open(to, **settings))
        else:
            opened.append(Synchronous(AsyncPostgresCommandRegistry.open(to, **settings)))
        return opened[-1]

    yield open_registry
    proxy.come_back()
    for registry in opened:
        registry.close()


@pytest.fixture
def registry(open_through: Opened) -> Registry:
    """A registry behind the proxy, patient enough for anything."""
    return open_through(timeout=20.0)


@pytest.fixture
def hasty(open_through: Opened) -> Registry:
    """A registry behind the proxy with a short deadline."""
    return open_through(timeout=TIMEOUT)


def events(connection: psycopg.Connection[Any]) -> list[tuple[str, int]]:
    """Read, past the proxy, what is in the log."""
    return connection.execute("SELECT type, version FROM command_registry.events ORDER BY position").fetchall()


def create(registry: Registry) -> str:
    return str(registry.create_command("dep", "sync").command_id)


def complete(registry: Registry, command_id: str) -> bool:
    return bool(registry.complete_command(command_id, CommandState.SUCCEEDED, NOON, response_size_bytes=1))


@contextmanager
def within_the_deadline() -> Iterator[None]:
    start = time.monotonic()
    yield
    assert time.monotonic() - start < TIMEOUT + GRACE


# Lost while a commit is in flight.


@pytest.mark.every_postgres
@pytest.mark.parametrize("fault", [Fault.LOSE_REPLY, Fault.CUT_BEFORE])
def test_a_write_whose_connection_breaks_succeeds_and_is_there_once(
    registry: Registry, proxy: Proxy, connection: psycopg.Connection[Any], fault: Fault
) -> None:
    proxy.fail_at(INSERT, fault)
    command_id = create(registry)
    assert proxy.happened == [fault]
    proxy.fail_at(INSERT, fault)
    assert registry.increment_attempt(command_id) == 2
    proxy.fail_at(INSERT, fault)
    assert complete(registry, command_id)
    assert proxy.happened == [fault] * 3
    assert events(connection) == [("CommandCreated", 1), ("AttemptIncremented", 2), ("CommandTransitioned", 3)]
    status = registry.get_command_status(command_id)
    assert (status.state, status.attempt, status.version) == ("SUCCEEDED", 2, 3)
    assert registry.verify().ok


@pytest.mark.parametrize("fault", [Fault.LOSE_REPLY, Fault.CUT_BEFORE])
def test_a_write_whose_connection_breaks_twice_succeeds_and_is_there_once(
    registry: Registry, proxy: Proxy, connection: psycopg.Connection[Any], fault: Fault
) -> None:
    command_id = create(registry)
    proxy.fail_at(INSERT, Fault.CUT_BEFORE)
    proxy.fail_at(INSERT, fault)
    assert registry.increment_attempt(command_id) == 2
    assert proxy.happened == [Fault.CUT_BEFORE, fault]
    assert events(connection) == [("CommandCreated", 1), ("AttemptIncremented", 2)]


@pytest.mark.parametrize("fault", [Fault.LOSE_REPLY, Fault.CUT_BEFORE])
def test_a_creation_with_an_idempotency_key_makes_one_command_whatever_breaks(
    registry: Registry, proxy: Proxy, connection: psycopg.Connection[Any], fault: Fault
) -> None:
    proxy.fail_at(INSERT, fault)
    first = registry.create_command("dep", "sync", idempotency_key="key")
    proxy.fail_at(INSERT, fault)
    assert registry.create_command("dep", "sync", idempotency_key="key") == first
    assert events(connection) == [("CommandCreated", 1)]


@pytest.mark.parametrize("fault", [Fault.LOSE_REPLY, Fault.CUT_BEFORE])
def test_a_read_whose_connection_breaks_is_asked_again(registry: Registry, proxy: Proxy, fault: Fault) -> None:
    command_id = create(registry)
    proxy.fail_at(b"command_status_v1", fault)
    assert registry.get_command_status(command_id).command_id == command_id
    proxy.fail_at(b"ORDER BY version", fault)
    assert len(registry.history(command_id)) == 1
    assert proxy.happened == [fault] * 2


def test_a_verification_whose_connection_breaks_does_not_go_on_in_another_moment(
    registry: Registry, proxy: Proxy
) -> None:
    create(registry)
    proxy.fail_at(b"(stream_id, version) >", Fault.LOSE_REPLY)
    with pytest.raises(Unavailable, match="connection lost, and the transaction with it"):
        registry.verify()
    assert registry.verify().ok


def test_when_nobody_can_be_asked_the_error_tells_where_to_look_and_the_call_may_be_repeated(
    hasty: Registry, proxy: Proxy, connection: psycopg.Connection[Any]
) -> None:
    command_id = create(hasty)
    proxy.fail_at(INSERT, Fault.LOSE_REPLY_AND_GO_AWAY)
    with within_the_deadline(), pytest.raises(OutcomeUnknown) as unknown:
        complete(hasty, command_id)
    assert (unknown.value.stream_id, unknown.value.version) == (command_id, 2)
    stored = "SELECT hash FROM command_registry.events WHERE stream_id = %s AND version = %s"
    assert connection.execute(stored, (command_id, 2)).fetchone() == (unknown.value.hash,)
    proxy.come_back()
    again = until(lambda: answer(lambda: [complete(hasty, command_id)]))
    assert again == [False]  # it was there already
    assert events(connection) == [("CommandCreated", 1), ("CommandTransitioned", 2)]


def answer(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Unavailable:
        return None


# Lost between calls.


def terminate_all(connection: psycopg.Connection[Any]) -> int:
    """End every session of the registry in this database; answer how many there were."""
    sessions = connection.execute("""
        SELECT pg_terminate_backend(pid, 10000)
        FROM pg_stat_activity
        WHERE application_name = 'command-registry' AND datname = current_database()
    """).fetchall()
    return len(sessions)


def increments(registry: Registry, command_id: str, count: int) -> list[int]:
    """Increment so many times at once."""
    if isinstance(registry, Synchronous):
        inside = registry._registry

        async def together() -> list[int]:
            return list(await asyncio.gather(*(inside.increment_attempt(command_id) for _ in range(count))))

        return sorted(registry._loop.run(together()))
    with ThreadPoolExecutor(count) as threads:
        return sorted(threads.map(registry.increment_attempt, [command_id] * count))


@pytest.mark.every_postgres
def test_after_every_idle_connection_was_terminated_the_next_calls_succeed(
    open_through: Opened, connection: psycopg.Connection[Any]
) -> None:
    registry = open_through(direct=True, timeout=20.0, pool_size=4)
    command_id = create(registry)
    assert increments(registry, command_id, 12) == list(range(2, 14))
    assert terminate_all(connection) >= 1
    assert registry.get_command_status(command_id).attempt == 13
    assert terminate_all(connection) >= 1
    assert registry.increment_attempt(command_id) == 14
    assert terminate_all(connection) >= 1
    assert increments(registry, command_id, 8) == list(range(15, 23))
    assert terminate_all(connection) >= 1
    assert create(registry) != command_id
    assert registry.verify().ok


def test_after_every_connection_was_cut_without_a_word_the_next_calls_succeed(registry: Registry, proxy: Proxy) -> None:
    command_id = create(registry)
    proxy.cut_all()
    assert registry.increment_attempt(command_id) == 2
    proxy.cut_all()
    assert registry.get_command_status(command_id).attempt == 2


# A server that is away.


def test_a_call_to_a_server_that_is_away_ends_with_its_deadline_and_service_resumes_by_itself(
    hasty: Registry, proxy: Proxy, connection: psycopg.Connection[Any]
) -> None:
    command_id = create(hasty)
    proxy.go_away()
    with within_the_deadline(), pytest.raises(Unavailable, match="no connection to Postgres within 1 s"):
        hasty.get_command_status(command_id)
    with within_the_deadline(), pytest.raises(Unavailable) as error:
        hasty.increment_attempt(command_id)
    assert not isinstance(error.value, OutcomeUnknown)
    assert events(connection) == [("CommandCreated", 1)]
    proxy.come_back()
    assert until(lambda: answer(lambda: hasty.increment_attempt(command_id))) == 2


def test_a_server_that_comes_back_before_the_deadline_is_not_missed(registry: Registry, proxy: Proxy) -> None:
    command_id = create(registry)
    proxy.go_away()
    with ThreadPoolExecutor(1) as thread:
        call = thread.submit(registry.increment_attempt, command_id)
        assert not call.done()
        proxy.come_back()
        assert call.result() == 2


def test_a_server_that_comes_back_after_a_while_is_found_within_seconds(open_through: Opened, proxy: Proxy) -> None:
    registry = open_through(timeout=20.0, pool_size=1)
    command_id = create(registry)
    proxy.hang_up()
    with ThreadPoolExecutor(1) as thread:
        call = thread.submit(registry.increment_attempt, command_id)
        until(lambda: proxy.hung_up_on >= 3)  # who doubles the pauses makes one of four seconds now
        proxy.come_back()
        assert call.result(timeout=3.4) == 2


@pytest.mark.parametrize("write", [False, True])
def test_a_call_to_a_server_that_has_fallen_silent_ends_with_its_deadline(
    hasty: Registry, proxy: Proxy, connection: psycopg.Connection[Any], write: bool
) -> None:
    command_id = create(hasty)
    rescue = threading.Timer(TIMEOUT + 2 * GRACE, proxy.come_back)
    rescue.start()
    proxy.fall_silent()
    with within_the_deadline(), pytest.raises(Unavailable):
        hasty.increment_attempt(command_id) if write else hasty.get_command_status(command_id)
    rescue.cancel()
    assert events(connection) == [("CommandCreated", 1)]
    proxy.come_back()
    assert until(lambda: answer(lambda: hasty.increment_attempt(command_id))) == 2


@pytest.mark.parametrize(
    "open_one",
    [PostgresCommandRegistry.open, lambda dsn: asyncio.run(AsyncPostgresCommandRegistry.open(dsn).connect())],
    ids=["sync", "async"],
)
def test_opening_a_registry_on_a_server_that_is_away_fails_at_once(
    dsn: str, proxy: Proxy, open_one: Callable[[str], object]
) -> None:
    proxy.go_away()
    with within_the_deadline(), pytest.raises(Unavailable, match=r"cannot connect to Postgres: .*refused"):
        open_one(proxy.dsn(dsn))


# Lost within the caller's own transaction.


@pytest.fixture(params=["sync", "async"])
def caller(request: pytest.FixtureRequest, dsn: str, proxy: Proxy) -> Iterator[tuple[Registry, Any]]:
    """A registry past the proxy, and the caller's own connection through it."""
    if request.param == "sync":
        with PostgresCommandRegistry.open(dsn) as registry, psycopg.connect(proxy.dsn(dsn)) as connection:
            yield registry, connection
            connection.close()
    else:
        opened = Synchronous(AsyncPostgresCommandRegistry.open(dsn))
        own = opened._loop.run(psycopg.AsyncConnection.connect(proxy.dsn(dsn)))
        yield opened, own
        opened._loop.run(own.close())
        opened.close()


@pytest.mark.parametrize("fault", [Fault.LOSE_REPLY, Fault.CUT_BEFORE])
def test_a_connection_lost_in_the_callers_transaction_is_unavailable_and_nothing_is_there(
    caller: tuple[Registry, Any], proxy: Proxy, connection: psycopg.Connection[Any], fault: Fault
) -> None:
    registry, own = caller
    proxy.fail_at(INSERT, fault)
    with pytest.raises(Unavailable, match="connection lost, and the transaction with it") as error:
        registry.create_command("dep", "sync", connection=own)
    assert not isinstance(error.value, OutcomeUnknown)
    assert own.closed
    assert events(connection) == []
    with pytest.raises(Unavailable, match="is closed, and its transaction gone"):
        registry.create_command("dep", "sync", connection=own)
    assert create(registry)


def test_a_connection_terminated_in_the_callers_transaction_is_unavailable(
    caller: tuple[Registry, Any], connection: psycopg.Connection[Any]
) -> None:
    registry, own = caller
    command_id = registry.create_command("dep", "sync", connection=own).command_id
    connection.execute("SELECT pg_terminate_backend(%s, 10000)", (own.info.backend_pid,))
    with pytest.raises(Unavailable, match="connection lost, and the transaction with it"):
        registry.increment_attempt(command_id, connection=own)
    assert registry.get_command_status(command_id) is None
