"""Fault: a client process is killed (-9), at random and at the exact moment between the server's commit and its reply.

Promise: what it was told is so, what it was not told is there once or not at all; who repeats it (a creation with its
idempotency key, a completion) makes nothing twice, even while the dead client's statement is still at work; no other
client notices.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from registry.testing import recording
from registry.testing.recording import Operation, Recorder
from tests.callers import KINDS, callers, created
from tests.faults.clients import Client
from tests.load import Load, check_whole, chosen_seed
from tests.observing import logged
from tests.proxy import Fault, Proxy, proxied
from tests.soak import rounds
from tests.waiting import until

KILLS: Final = rounds(2, 200)
CLIENTS: Final = 2
SURVIVORS: Final = 1

LOOK_FOR_KEYS: Final = b"FROM command_registry.idempotency_keys"
KEYED: Final = b"INSERT INTO command_registry.idempotency_keys"
"""What a creation with a key has, and no other statement."""

WAITS_PATIENTLY: Final = """
    SELECT FROM pg_stat_activity
    WHERE datname = current_database()
        AND application_name = 'victim'
        AND wait_event_type = 'Lock'
        AND clock_timestamp() - query_start > '200 ms'
"""
"""Longer than a statement that others hold up before it is tried alone."""


@pytest.fixture
def proxy(dsn: str) -> Iterator[Proxy]:
    with proxied(dsn) as proxy:
        yield proxy


class Fleet:
    """Client processes, and callers in this process that survive them; all write to the same commands."""

    def __init__(self, dsn: str, place: Path, seed: int, stack: ExitStack) -> None:
        self._dsn, self._place, self._seed, self._stack = dsn, place, seed, stack
        self._numbers = count(1)
        self.dice = random.Random(f"{seed}/kills")  # noqa: S311 - to be replayed
        self.clients: list[Client] = []
        opened = stack.enter_context(callers("threads", dsn))
        self.survivors = Load(seed, Recorder())
        self.survivors.shared = self._commands = created(
            opened, 4, self.survivors.recorder.client("founder", opened.registry)
        )
        self._calling = stack.enter_context(ExitStack())
        self._calling.enter_context(self.survivors.calling(opened, SURVIVORS))

    def start(self, kind: str, dsn: str | None = None, after: Client | None = None, number: int = 4) -> Client:
        """Start a client; `after` another one that was killed, it repeats what that one does not know."""
        place = next(self._numbers)
        journal = self._place / f"{place}.jsonl"
        options = {"kind": kind, "seed": self._seed, "first": 100 * place, "number": number}
        client = Client.start(journal, dsn or self._dsn, self._commands, after, **options)
        self._stack.callback(client.kill)
        self.clients.append(client)
        return client

    def end(self) -> None:
        """Let the survivors end."""
        self._calling.close()

    def history(self) -> list[Operation]:
        """Give the calls of them all, as one history."""
        told = self.survivors.recorder.history() + recording.load(*(client.journal for client in self.clients))
        return sorted(told, key=lambda operation: operation.start)


@pytest.fixture
def fleet(dsn: str, tmp_path: Path) -> Iterator[Fleet]:
    with ExitStack() as stack:
        yield Fleet(dsn, tmp_path, chosen_seed(), stack)


def check(dsn: str, fleet: Fleet, observer: psycopg.Connection[Any]) -> None:
    """Check the history of all clients, and that no key made two commands."""
    history = fleet.history()
    check_whole(dsn, history)
    streams = {request_id: stream_id for stream_id, version, request_id in logged(observer) if version == 1}
    made: dict[str, set[str]] = {}
    for operation in history:
        key = operation.arguments.get("idempotency_key")
        if key is not None:
            made.setdefault(key, set()).update(filter(None, [streams.get(operation.request_id), operation.command_id]))
    assert all(len(commands) <= 1 for commands in made.values())
    unknown = [operation for operation in history if operation.end is None]
    happened = {request_id for _, _, request_id in logged(observer)}
    print(
        f"{len(history)} calls of {len(fleet.clients)} processes and {SURVIVORS} survivors; the killed did not know of "
        f"{len(unknown)}, of which {sum(operation.request_id in happened for operation in unknown)} had been written"
    )


def test_clients_killed_at_random_leave_nothing_half_done_and_their_successors_do_nothing_twice(
    dsn: str, fleet: Fleet, connection: psycopg.Connection[Any]
) -> None:
    running = [fleet.start(KINDS[number % 2]) for number in range(CLIENTS)]
    for client in running:
        client.goes_on(20)
    for _ in range(KILLS):
        index = fleet.dice.randrange(CLIENTS)
        running[index].goes_on(fleet.dice.randrange(1, 200))
        running[index].kill()
        running[index] = fleet.start(fleet.dice.choice(KINDS), after=running[index])
        running[index].goes_on(20)
    for client in running:
        client.end()
    fleet.end()
    check(dsn, fleet, connection)


# The exact moment.


@contextmanager
def committed(client: Client, proxy: Proxy, dsn: str) -> Iterator[None]:
    """Kill a client when the server has committed its creation, before it could read the reply."""
    proxy.fail_at(KEYED, Fault.FALL_SILENT)
    until(lambda: proxy.lost_tags, "a reply to be held back")
    client.kill()
    proxy.come_back()
    assert proxy.lost_tags == ["INSERT 0 1"]
    yield


@contextmanager
def at_work(client: Client, proxy: Proxy, dsn: str) -> Iterator[None]:
    """Kill a client while the server is at work on its creation, which goes on when the block ends."""
    with psycopg.connect(dsn) as other, psycopg.connect(dsn, autocommit=True) as observer:
        proxy.at(LOOK_FOR_KEYS, lambda: other.execute("LOCK TABLE command_registry.events IN SHARE MODE"))
        until(lambda: observer.execute(WAITS_PATIENTLY).fetchall(), "a creation to wait")
        client.kill()
        yield


@contextmanager
def unsent(client: Client, proxy: Proxy, dsn: str) -> Iterator[None]:
    """Kill a client when its creation is on the way, and never arrives."""
    proxy.fail_at(KEYED, Fault.CUT_BEFORE)
    proxy.at(KEYED, client.kill)
    until(lambda: proxy.happened, "a creation to be cut off")
    yield


@pytest.mark.parametrize(("kill", "may_be"), [(committed, {True}), (at_work, {True, False}), (unsent, {False})])
def test_a_client_killed_at_the_exact_moment_is_repeated_by_its_successor_and_there_is_one_command(
    dsn: str,
    proxy: Proxy,
    fleet: Fleet,
    connection: psycopg.Connection[Any],
    kill: Callable[[Client, Proxy, str], AbstractContextManager[None]],
    may_be: set[bool],
) -> None:
    for _ in range(rounds(1, 20)):
        kind = fleet.dice.choice(KINDS)
        killed = fleet.start(kind, make_conninfo(proxy.dsn(dsn), application_name="victim"), number=1)
        killed.goes_on(4)
        with kill(killed, proxy, dsn):
            [creation] = killed.unknown()
            successor = fleet.start(kind, after=killed, number=1)
            until(lambda: successor.calls() or successor.process.poll() is not None, "its successor to call")  # noqa: B023
        successor.goes_on(4)
        successor.end()
        again, *_ = recording.load(successor.journal)
        assert again.arguments == creation.arguments
        assert again.end is not None
        [first] = [
            stream
            for stream, _, request_id in logged(connection)
            if request_id in {creation.request_id, again.request_id}
        ]
        assert first == again.command_id
        is_first = any(request_id == creation.request_id for _, _, request_id in logged(connection))
        assert is_first in may_be
        proxy.lost_tags.clear()
        proxy.happened.clear()
    fleet.end()
    check(dsn, fleet, connection)
