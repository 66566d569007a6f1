"""The disk is full: that of the data, of the write-ahead log, or of both.

Promised: while Postgres lives, reads go on, and a write is refused in the server's words, which say that the disk is
full; nothing of it is written. When the log cannot grow, Postgres ends itself: callers are told Unavailable, or
OutcomeUnknown. Nothing is lost, and with room again the registry goes on, without being opened anew.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

import psycopg
import pytest
from psycopg import errors

from registry.testing.recording import Operation
from tests.faults.servers import DEBIAN, EMBEDDED, Server, Servers, needs_debian_15, needs_mounts, on_a_small_disk
from tests.faults.tally import tally
from tests.load import ANY_OUTCOME, Load, chosen_seed, under_load
from tests.soak import rounds
from tests.waiting import until

pytestmark = needs_mounts

CALLERS: Final = {"threads": 8, "asyncio": 48}
ROUNDS: Final = rounds(1, 20)
HASTY: Final = 3.0
SMALL: Final = {"min_wal_size": "32MB", "max_wal_size": "64MB", "wal_recycle": "off"}
FULL: Final = (*ANY_OUTCOME, errors.DiskFull)
WORDS: Final = ("No space left on device", "HINT:  Check free disk space.")
A_MEGABYTE: Final = 2**20
MEGABYTES: Final = 192


class Disk:
    """A small disk, and what fills it."""

    def __init__(self, place: Path) -> None:
        self._balloon = place / "balloon"

    def fill(self) -> None:
        """Leave no room at all."""
        with self._balloon.open("ab", buffering=0) as balloon, suppress(OSError):
            while True:
                balloon.write(b"\0" * A_MEGABYTE)

    def make_room(self) -> None:
        """Leave all the room there was."""
        self._balloon.unlink(missing_ok=True)


@contextmanager
def with_a_small_disk(own_servers: Servers, version: str, place: str) -> Iterator[tuple[Server, Disk]]:
    """Start a server with one of its directories on a small disk."""
    server = own_servers(version, start=False, **SMALL)
    with ExitStack() as stack:
        disk = Disk(stack.enter_context(on_a_small_disk(server.home / place, MEGABYTES)))
        stack.callback(server.end)
        server.start()
        yield server, disk


@pytest.mark.parametrize("kind", CALLERS)
def test_on_a_full_disk_reads_go_on_and_writes_say_so_and_with_room_again_all_goes_on(
    kind: str, own_servers: Servers
) -> None:
    seed = chosen_seed()
    with with_a_small_disk(own_servers, EMBEDDED, "data") as (server, disk):
        with under_load(kind, server.dsn, number=CALLERS[kind], seed=seed, tolerates=FULL, timeout=HASTY) as load:
            for _ in range(ROUNDS):
                answered(load, 100)
                disk.fill()
                refused = load.told["DiskFull"] + 20
                until(lambda refused=refused: load.told["DiskFull"] >= refused, "writes to be refused")  # type: ignore[misc]
                is_read_all_the_same(load)
                disk.make_room()
                goes_on(load)
        troubles = [call.trouble for call in load.recorder.history() if (call.trouble or "").startswith("DiskFull")]
        print(len(troubles), "writes refused:", troubles[0])
        assert all(words in str(trouble) for trouble in troubles for words in WORDS)
        tally(load.recorder.history(), server.dsn).check()
        load.check(server.dsn)


@pytest.mark.parametrize(
    ("kind", "version", "place"),
    [("threads", EMBEDDED, "data"), pytest.param("asyncio", DEBIAN, "data/pg_wal", marks=needs_debian_15)],
)
def test_when_the_log_cannot_grow_nothing_is_lost_and_with_room_again_all_goes_on(
    kind: str, version: str, own_servers: Servers, place: str
) -> None:
    seed = chosen_seed()
    with with_a_small_disk(own_servers, version, place) as (server, disk):
        with under_load(kind, server.dsn, number=CALLERS[kind], seed=seed, tolerates=FULL, timeout=HASTY) as load:
            for _ in range(ROUNDS):
                answered(load, 100)
                disk.fill()
                use_up_the_log(server)
                away = told_it_is_away(load) + 8
                until(lambda away=away: told_it_is_away(load) >= away, "callers to be told")  # type: ignore[misc]
                server.lose()
                disk.make_room()
                server.start()
                goes_on(load)
        print(dict(load.told))
        tally(load.recorder.history(), server.dsn).check()
        load.check(server.dsn)


def answered(load: Load, calls: int) -> None:
    """Wait until so many more calls have their answers."""
    goal = load.answered + calls
    until(lambda: load.answered >= goal, "calls to be answered")


def begun_since(load: Load, number: int) -> list[Operation]:
    """Give the calls that have begun since there were so many."""
    return load.recorder.history()[number:]


def is_read_all_the_same(load: Load) -> None:
    """Check that reads have answers while there is no room."""
    begun = len(load.recorder.history())

    def some() -> bool:
        reads = [call for call in begun_since(load, begun) if call.call.startswith(("get_", "history"))]
        assert not [call.trouble for call in reads if call.trouble]
        return sum(call.end is not None for call in reads) >= 10

    until(some, "reads to be answered")


def goes_on(load: Load) -> None:
    """Check that there is no trouble any more, for calls that begin now."""
    begun = len(load.recorder.history())
    until(lambda: sum(call.end is not None for call in begun_since(load, begun)) >= 100, "calls to be answered")
    troubled = [call for call in begun_since(load, begun) if call.trouble and _is_no_refusal(call.trouble)]
    assert not troubled, troubled[:3]


def _is_no_refusal(trouble: str) -> bool:
    return trouble.startswith(tuple(error.__name__ for error in FULL))


def told_it_is_away(load: Load) -> int:
    return load.told["Unavailable"] + load.told["OutcomeUnknown"]


def use_up_the_log(server: Server) -> None:
    """Let the log need its next file, until the server ends.

    Now and then the first process of Postgres 18 does not notice that recovery has failed, and takes no connections
    until it is ended: so did 18.6.
    """

    def has_ended() -> bool:
        try:
            with psycopg.connect(server.dsn, autocommit=True) as connection:
                connection.execute("SELECT pg_logical_emit_message(false, 'test', 'x'), pg_switch_wal()")
        except psycopg.OperationalError:
            return not any(": startup" in title for title in server.processes().values())
        return False

    until(has_ended, "the log to need more room")
