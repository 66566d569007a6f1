"""The clocks jump by hours, forth and back, under load: the server's, and those of the processes that call.

Promised: no clock has a say in the order of the log, nor in what is written. `status_at` goes by the clocks of those
who wrote, and answers with a status that the command really had. One projector at a time writes to a table, and soon
there is one again. A call has its answer within its timeout.
"""

import itertools
import os
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from unittest import mock

import psycopg
import pytest

from eventstore import Unavailable
from projections import status
from registry import PostgresCommandRegistry
from registry.embedded.processes import exists
from tests.callers import Call, callers, created, outcome
from tests.faults.servers import Server, Servers, connected, each_of_both
from tests.faults.tally import tally
from tests.lending import on
from tests.load import Load, chosen_seed, under_load
from tests.observing import backends
from tests.shelves import rows_of
from tests.soak import rounds
from tests.tailing import TALLY, Child, Job, child, expected, owner_of
from tests.waiting import until

_LIBRARIES: Final = [
    *Path("/usr/lib").glob("*/faketime/libfaketime.so.1"),
    *Path("/usr/lib").glob("faketime/libfaketime.so.1"),
]

needs_faketime = pytest.mark.skipif(not _LIBRARIES, reason="no libfaketime is installed: apt-get install faketime")
pytestmark = needs_faketime

CALLERS: Final = {"threads": 8, "asyncio": 48}
JUMPS: Final = rounds(4, 60)
HANDOVERS: Final = rounds(2, 20)
PATIENT: Final = 20.0
HASTY: Final = 2.0
GRACE: Final = 1.0
HOURS: Final = (-30.0, -5.0, -1.0, 1.0, 5.0, 30.0)


class Clock:
    """The clock of processes that are started with its environment: it may be put forward, and back."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.hours = 0.0
        self.put(0.0)

    def put(self, hours: float) -> None:
        """Let it be so many hours ahead of the machine's."""
        fresh = self._file.with_suffix(".fresh")
        fresh.write_text(f"{hours * 3600:+.0f}\n")
        fresh.chmod(0o644)
        fresh.rename(self._file)
        self.hours = hours

    def jump(self, dice: random.Random) -> None:
        """Put it forth or back by hours."""
        self.put(self.hours + dice.choice([hours for hours in HOURS if abs(self.hours + hours) < 100]))

    def now(self) -> datetime:
        """Read it."""
        return datetime.now(UTC) + timedelta(hours=self.hours)

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to go by it."""
        return {
            "LD_PRELOAD": str(_LIBRARIES[0]),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Remove the shared memory of processes with such a clock that were killed."""
    yield
    for left in Path("/dev/shm").glob("*faketime_*"):  # noqa: S108 - where it puts it
        pid = left.name.rpartition("_")[2]
        if pid.isdigit() and not exists(int(pid)):
            left.unlink(missing_ok=True)


@pytest.fixture
def client_clock(tmp_path: Path) -> Clock:
    return Clock(tmp_path / "clock")


def misled(server: Server) -> Clock:
    """Start a server by a clock of its own."""
    clock = Clock(server.home / "clock")
    server.environment = clock.environment
    server.start()
    return clock


def answered(load: Load, calls: int) -> None:
    goal = load.answered + calls
    until(lambda: load.answered >= goal, "calls to be answered")


@each_of_both
def test_no_jump_of_a_clock_disturbs_the_log(
    kind: str, version: str, own_servers: Servers, client_clock: Clock
) -> None:
    seed = chosen_seed()
    dice = random.Random(seed)  # noqa: S311 - to be replayed
    server = own_servers(version, start=False)
    server_clock = misled(server)
    number = CALLERS[kind]
    with under_load(kind, server.dsn, number=number, seed=seed, timeout=PATIENT, clock=client_clock.now) as load:
        for _ in range(JUMPS):
            answered(load, 60)
            dice.choice([server_clock, client_clock]).jump(dice)
            answered(load, 60)
            server_clock.jump(dice)
            client_clock.jump(dice)
        answered(load, 60)
    tally(load.recorder.history(), server.dsn).check()
    load.check(server.dsn)
    assert load.metrics.unknown == 0
    with psycopg.connect(server.dsn) as observer:
        backwards = check_the_order(observer)
    print(f"{3 * JUMPS} jumps; {backwards} events earlier than the one before them, by the clock of (server, callers)")
    assert min(backwards) > 0
    with PostgresCommandRegistry.open(server.dsn) as registry:
        for command_id in load.shared:
            check_time_travel(registry, command_id)


def check_the_order(observer: psycopg.Connection[Any]) -> tuple[int, int]:
    """Check that each stream is in order in the log, whatever the clocks say; count where they go backwards."""
    rows = observer.execute("""
        SELECT stream_id, version, recorded_at, occurred_at
        FROM command_registry.events
        ORDER BY transaction_id, position
    """).fetchall()
    versions: dict[str, int] = {}
    for stream_id, version, *_ in rows:
        assert version == versions.get(stream_id, 0) + 1, (stream_id, version)
        versions[stream_id] = version
    pairs = list(itertools.pairwise(rows))
    half = timedelta(hours=0.5)
    recorded = sum(before[2] - after[2] > half for before, after in pairs)
    occurred = sum(before[3] - after[3] > half for before, after in pairs)
    return recorded, occurred


def check_time_travel(registry: PostgresCommandRegistry, command_id: str) -> None:
    """Check that at each instant a command was what the last event that had occurred by then made of it."""
    history = registry.history(command_id)
    for at in {entry.occurred_at for entry in history}:
        last = max(entry.version for entry in history if entry.occurred_at <= at)
        assert registry.status_at(command_id, at=at) == registry.status_at(command_id, version=last)
    earliest = min(entry.occurred_at for entry in history)
    assert registry.status_at(command_id, at=earliest - timedelta(microseconds=1)) is None


def test_a_call_that_waits_for_another_transaction_has_its_answer_in_time_though_the_clock_is_put_back(
    own_servers: Servers,
) -> None:
    server = own_servers(start=False)
    clock = misled(server)
    for kind in CALLERS:
        with (
            callers(kind, server.dsn, timeout=PATIENT) as opened,
            connected(server.dsn) as observer,
            psycopg.connect(server.dsn) as other,
        ):
            commands = created(opened, 4)
            other.execute("LOCK TABLE command_registry.command_status_v1 IN SHARE MODE")
            begun = time.monotonic()
            calls = opened.at_once([Call("increment_attempt", each, timeout=HASTY) for each in commands])
            until(lambda observer=observer: backends(observer, waiting=True), "calls to wait")  # type: ignore[misc]
            clock.put(clock.hours - 5)
            told = [outcome(each) for each in calls]
            took = time.monotonic() - begun
            other.rollback()
            print(f"{kind}: after {took:.2f} s they were told {told[0]!r}")
            assert all(isinstance(error, Unavailable) for error in told), told
            assert took < HASTY + GRACE
            again = opened.at_once([Call("increment_attempt", each) for each in commands])
            assert {outcome(each) for each in again} <= {2, 3}


class Projectors:
    """Two processes that follow the log for the same table, each by a clock of its own."""

    def __init__(self, stack: ExitStack, server: Server, place: Path) -> None:
        self._stack, self._server = stack, server
        self.clocks = [Clock(place / f"clock-{number}") for number in range(2)]
        self._children = [self._start(clock) for clock in self.clocks]

    def _start(self, clock: Clock) -> Child:
        with mock.patch.dict(os.environ, clock.environment):
            return self._stack.enter_context(child(Job(self._server.dsn, (TALLY.projection.name,))))

    def leader(self, observer: psycopg.Connection[Any]) -> int:
        """Wait until one leads, and tell which."""

        def leads() -> list[int]:
            owner = owner_of(observer, TALLY)
            return [number for number, each in enumerate(self._children) if each.leads(owner)]

        return until(leads, "a leader")[0]

    def kill(self, number: int) -> None:
        """Kill one (-9)."""
        self._children[number].kill()

    def restart(self, number: int) -> None:
        """Start another one in its place."""
        self._children[number] = self._start(self.clocks[number])


def test_whatever_jumps_a_table_has_one_projector_and_soon_another_one_when_that_is_killed(
    own_servers: Servers, tmp_path: Path
) -> None:
    seed = chosen_seed()
    dice = random.Random(seed)  # noqa: S311 - to be replayed
    server = own_servers(start=False)
    server_clock = misled(server)
    took = []
    with ExitStack() as stack:
        observer = stack.enter_context(connected(server.dsn))
        on(observer, status.enrol(TALLY))
        projectors = Projectors(stack, server, tmp_path)
        with under_load("threads", server.dsn, number=2, seed=seed, timeout=PATIENT) as load:
            for _ in range(HANDOVERS):
                for clock in (server_clock, *projectors.clocks):
                    answered(load, 20)
                    clock.jump(dice)
                until_caught_up(observer)
                leader = projectors.leader(observer)
                projectors.kill(leader)
                server_clock.put(server_clock.hours - 5)
                took.append(until_caught_up(observer))
                projectors.restart(leader)
        until_caught_up(observer)
        assert rows_of(observer, TALLY) == expected(observer, TALLY)
    print(f"{4 * HANDOVERS} jumps; took over, and caught up, after {', '.join(f'{each:.1f} s' for each in took)}")
    load.check(server.dsn)


def until_caught_up(observer: psycopg.Connection[Any]) -> float:
    """Wait until the table has come to where the log ends now; say for how long."""
    begun = time.monotonic()
    on(observer, status.wait_until([TALLY], None, 20))
    return time.monotonic() - begun
