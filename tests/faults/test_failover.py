"""The primary is lost under load, and its standby promoted: at each level of synchronous_commit.

Promised: what docs/durability.md says of each level. `on`, `remote_write` and `remote_apply`, with
synchronous_standby_names, lose nothing. `off`, `local`, and `on` without it lose what the standby had not received yet:
of each stream always its end, and nothing else. The log is whole, and the registry goes on by itself: its DSN has both.
"""

import shutil
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, Final

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from registry import CommandNotFound
from registry.testing.histories import HistoryError
from registry.testing.recording import Recorder
from tests.callers import KINDS, Call, Callers, callers
from tests.faults.servers import DEBIAN, Server, Servers, connected, needs_debian_15, standby_of
from tests.faults.tally import tally
from tests.load import Load, chosen_seed, under_load
from tests.soak import rounds
from tests.waiting import until

pytestmark = needs_debian_15

CALLERS: Final = {"threads": 8, "asyncio": 48}
PATIENT: Final = 20.0
CALLS: Final = rounds(150, 3_000)
ROUNDS: Final = rounds(1, 10)

LAST_MOMENTS: Final = 2.0
"""Three times wal_writer_delay are 0.6 s; on a busy machine the WAL writer comes later."""

KEPT: Final = ["remote_apply", "on", "remote_write"]
LOST: Final = ["off", "local", "on"]

Log = dict[str, list[bytes]]
"""The hashes of each stream."""


@contextmanager
def pair(own_servers: Servers, level: str, *, waits: bool) -> Iterator[tuple[Server, Server, str]]:
    """Start a primary and its standby; give the DSN of both."""
    primary = own_servers(DEBIAN, synchronous_commit=level)
    with standby_of(primary, synchronous_commit=level) as standby:
        with connected(primary.dsn) as observer:
            if waits:
                observer.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
                observer.execute("SELECT pg_reload_conf()")
            wanted = "sync" if waits else "async"
            sql = "SELECT FROM pg_stat_replication WHERE sync_state = %s AND state = 'streaming'"
            until(lambda: observer.execute(sql, (wanted,)).fetchall(), "the standby to follow")
        hosts = f"{primary.host},{standby.host}"
        dsn = make_conninfo(primary.dsn, host=hosts, hostaddr=None, port="5432,5432", target_session_attrs="read-write")
        yield primary, standby, dsn


def cut_off(standby: Server, primary: Server) -> None:
    """Let a standby follow no more; what it has received by then, it has."""
    with connected(standby.dsn) as observer, connected(primary.dsn) as at_primary:
        observer.execute("ALTER SYSTEM SET primary_conninfo = ''")
        observer.execute("SELECT pg_reload_conf()")
        sql = "SELECT FROM pg_stat_replication"
        until(lambda: not at_primary.execute(sql).fetchall(), "the standby to be cut off")
        idle = """
            SELECT FROM pg_stat_activity
            WHERE backend_type = 'startup' AND wait_event IN ('RecoveryWalStream', 'RecoveryRetrieveRetryInterval')
        """
        until(lambda: observer.execute(idle).fetchall(), "the standby to have replayed what it has")


def promote(standby: Server) -> None:
    with connected(standby.dsn) as observer:
        assert observer.execute("SELECT pg_promote(true, 20)").fetchone() == (True,)


def logged(server: Server) -> Log:
    with psycopg.connect(server.dsn) as observer:
        rows = observer.execute("SELECT stream_id, version, hash FROM command_registry.events ORDER BY 1, 2").fetchall()
    log: Log = {}
    for stream_id, version, event_hash in rows:
        log.setdefault(stream_id, []).append(event_hash)
        assert version == len(log[stream_id]), "a gap"
    return log


def answered(load: Load, calls: int) -> None:
    goal = load.answered + calls
    until(lambda: load.answered >= goal, "calls to be answered")


class Forgetful(Load):
    """Callers who create no command twice by the same key: after a loss that makes another one."""

    def _asked(self, name: str, call: Call) -> Generator[Call, Any, Any]:
        call.settings.pop("idempotency_key", None)
        return (yield from super()._asked(name, call))


@pytest.mark.parametrize("level", KEPT)
def test_a_standby_that_is_waited_for_is_promoted_without_a_loss(level: str, own_servers: Servers) -> None:
    seed = chosen_seed()
    kind = KINDS[seed % 2]
    for each in range(ROUNDS):
        with pair(own_servers, level, waits=True) as (primary, standby, dsn):
            with under_load(kind, dsn, number=CALLERS[kind], seed=seed + each, timeout=PATIENT) as load:
                answered(load, CALLS)
                primary.lose()
                promote(standby)
                answered(load, CALLS)
            tally(load.recorder.history(), standby.dsn).check()
            load.check(standby.dsn)
            print(f"{level}, {kind}: {load.metrics.reconnections} reconnections")
            assert load.metrics.unknown == 0


@pytest.mark.parametrize("level", LOST)
def test_a_standby_that_is_not_waited_for_loses_the_end_of_each_stream_and_nothing_else(
    level: str, own_servers: Servers
) -> None:
    seed = chosen_seed()
    kind = KINDS[seed % 2]
    with (
        pair(own_servers, level, waits=False) as (primary, standby, dsn),
        callers(kind, dsn, timeout=PATIENT) as opened,
    ):
        load = Forgetful(seed, Recorder(), tolerates=(CommandNotFound,))
        with load.calling(opened, CALLERS[kind]):
            answered(load, CALLS)
            cut_off(standby, primary)
            had = logged(standby)
            answered(load, CALLS)
            before = logged(primary)
            primary.lose()
            promote(standby)
            answered(load, CALLS)
        after = logged(standby)
        lost = check_only_the_ends_are_lost(had, before, after)
        told = tally(load.recorder.history(), standby.dsn)
        print(f"{level}, {kind}: {told}; of {sum(map(len, before.values()))} events {lost} were lost; {load.told}")
        assert told.lost, "calls that were acknowledged are lost, and are counted"
        assert not told.doubled
        assert not told.ghosts
        with pytest.raises(HistoryError) as found:
            load.check(standby.dsn)
        if found.value.saved is not None:
            shutil.rmtree(found.value.saved)
        goes_on(opened, kind, seed, standby, beside=after)


def check_only_the_ends_are_lost(had: Log, before: Log, after: Log) -> int:
    """Check that a log keeps what the standby had, and nothing after it; count what it has lost."""
    lost = 0
    for stream_id, events in before.items():
        kept = had.get(stream_id, [])
        now = after.get(stream_id, [])
        assert now[: len(kept)] == kept, "it had that already"
        assert events[: len(kept)] == kept
        assert not set(events[len(kept) :]) & set(now), "it did not have that"
        lost += len(events) - len(kept)
    return lost


def goes_on(opened: Callers, kind: str, seed: int, server: Server, *, beside: Log) -> None:
    """Check that the same registry, on commands that are new, is as good as ever."""
    load = Load(seed + 1, Recorder())
    with load.calling(opened, CALLERS[kind]):
        answered(load, CALLS)
    for call in load.recorder.history():
        if isinstance(call.answer, list):
            call.answer = [command_id for command_id in call.answer if command_id not in beside]
    tally(load.recorder.history(), server.dsn, beside=beside).check()
    load.check(server.dsn, beside=beside)


def test_a_server_that_does_not_wait_for_its_disk_loses_the_last_moments_of_each_stream(own_servers: Servers) -> None:
    seed = chosen_seed()
    kind = KINDS[seed % 2]
    server = own_servers(synchronous_commit="off")
    with callers(kind, server.dsn, timeout=PATIENT) as opened:
        load = Forgetful(seed, Recorder(), tolerates=(CommandNotFound,))
        with load.calling(opened, CALLERS[kind]):
            answered(load, 3 * CALLS)
            before = logged(server)
            server.lose()
            lost_at = time.monotonic_ns()
            server.start()
            answered(load, CALLS)
        after = logged(server)
        told = tally(load.recorder.history(), server.dsn)
        print(f"{kind}: {told}")
        assert told.lost, "calls that were acknowledged are lost, and are counted"
        assert not told.doubled
        assert not told.ghosts
        age = max(lost_at - (call.end or lost_at) for call in told.lost) / 1e9
        print(f"the oldest loss was acknowledged {age:.3f} s before")
        assert age < LAST_MOMENTS
        for stream_id, events in before.items():
            now = after.get(stream_id, [])
            kept = [each for each, other in zip(events, now, strict=False) if each == other]
            assert now[: len(kept)] == kept
            assert not set(events[len(kept) :]) & set(now)
        goes_on(opened, kind, seed, server, beside=after)
