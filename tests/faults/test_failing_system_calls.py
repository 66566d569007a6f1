"""A system call of the server fails: with EIO, with ENOSPC, or the process is killed (-9) in it; at each in turn.

Promised: the caller is told the truth; nothing of a call that failed is written; what was written is whole, and once
the server is back (it sees to that by itself) the next calls succeed.
"""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

import psycopg

from registry import CommandState
from registry.testing.recording import Recorder
from tests.callers import LONGEST, NOON, Call, Callers, callers
from tests.faults.servers import Server, Servers, connected, each_of_both
from tests.faults.tally import tally
from tests.faults.tracing import EIO, ENOSPC, FILES, KILL, Failing, failing, needs_strace, places, traced
from tests.load import Load, chosen_seed, under_load
from tests.observing import backends
from tests.soak import rounds
from tests.waiting import until

pytestmark = needs_strace

FAULTS: Final = (EIO, ENOSPC, KILL)
AT_RANDOM: Final = rounds(2, 60)
PATIENT: Final = 20.0
ANSWER: Final = "sendto"
APPENDS: Final = 3


class Life:
    """Lives of commands, each of three appends, called by one caller and recorded."""

    def __init__(self, recorder: Recorder, opened: Callers) -> None:
        self._opened = opened
        self._client = recorder.client("one", opened.registry)
        self.told: list[str] = []

    def live(self, *, is_told: bool = False) -> None:
        """Create a command, count an attempt, and complete it; `is_told`: the caller may be told of trouble."""
        created = self._made("create_command", "dep", "sync", is_told=is_told)
        if created is not None:
            self._made("increment_attempt", created.command_id, is_told=is_told)
            self._made("complete_command", created.command_id, CommandState.SUCCEEDED, NOON, is_told=is_told)

    def _made(self, name: str, *args: Any, is_told: bool) -> Any:
        [call] = self._opened.at_once([Call(name, *args, client=self._client)])
        with suppress(*[psycopg.Error] * is_told):
            return call.result(LONGEST)
        self.told.append(type(call.exception()).__name__)
        return None


@contextmanager
def alone(kind: str, server: Server, recorder: Recorder) -> Iterator[tuple[Life, list[int]]]:
    """Open a registry that has just connected, and give its backend."""
    with callers(kind, server.dsn, timeout=PATIENT, pool_size=1) as opened, connected(server.dsn) as observer:
        pids = until(lambda: only_one(backends(observer)), "the registry to have one connection")
        yield Life(recorder, opened), pids


def only_one(pids: list[int]) -> list[int]:
    return pids if len(pids) == 1 else []


@each_of_both
def test_no_system_call_that_fails_in_an_append_harms_or_belies_it(
    kind: str, version: str, own_servers: Servers
) -> None:
    seed = chosen_seed()
    with alone(kind, own_servers(version), Recorder()) as (life, pids), traced(pids, [*FILES, ANSWER]) as trace:
        life.live()
        calls = trace.calls
    print(f"{sum(calls.values())} system calls in three appends: {dict(calls)}")
    happened: Counter[str] = Counter()
    told: Counter[str] = Counter()
    for place in chosen(places(calls, FAULTS), seed):
        server, recorder = own_servers(version), Recorder()
        with alone(kind, server, recorder) as (life, pids):
            with failing(pids, place) as trace:
                life.live(is_told=True)
                happened[f"{place.call} {place.fault}"] += trace.has_failed
            connected(server.dsn).close()
            life.live()
            told.update(life.told)
        tally(recorder.history(), server.dsn).check()
        Load(seed, recorder).check(server.dsn)
        server.lose()
    print(f"{sum(happened.values())} failed: {dict(happened)}; callers were told {dict(told)}")
    assert sum(happened.values()) >= 5


def chosen(every: Sequence[Failing], seed: int) -> list[Failing]:
    """Choose what concerns the first commit (the last commit is as good), and some of the others."""
    dice = random.Random(seed)  # noqa: S311 - to be replayed
    every = [place for place in every if place.call != ANSWER or place.fault == KILL]
    writes = max(place.number for place in every if place.call == "pwrite64")
    numbers = {"pwrite64": {1, writes - APPENDS + 1}, "fdatasync": {1}, ANSWER: {1}}
    commit = [place for place in every if place.number in numbers.get(place.call, ())]
    others = [place for place in every if place not in commit]
    return dice.sample(commit, min(rounds(5, 100), len(commit))) + dice.sample(others, min(AT_RANDOM, len(others)))


def test_no_system_call_that_fails_in_the_checkpointer_harms_anything(own_servers: Servers) -> None:
    seed = chosen_seed()
    dice = random.Random(seed)  # noqa: S311 - to be replayed
    server = own_servers()
    happened: Counter[str] = Counter()
    with under_load("threads", server.dsn, number=8, seed=seed, timeout=PATIENT) as load:
        with traced([server.process("checkpointer")], FILES) as trace:
            checkpoint(server)
            calls = trace.calls
        for place in some(calls, rounds(5, 200), dice):
            answered(load, 50)
            with failing([server.process("checkpointer")], place) as trace:
                checkpoint(server)
                happened[f"{place.call} {place.fault}"] += trace.has_failed
            connected(server.dsn).close()
        answered(load, 50)
    print(f"{sum(calls.values())} system calls of a checkpoint: {dict(calls)}")
    print(f"{sum(happened.values())} failed: {dict(happened)}; {load.metrics.reconnections} reconnections")
    tally(load.recorder.history(), server.dsn).check()
    load.check(server.dsn)
    assert load.metrics.unknown == 0
    assert sum(happened.values()) >= 2


def test_no_system_call_that_fails_in_the_wal_writer_harms_anything(own_servers: Servers) -> None:
    seed = chosen_seed()
    dice = random.Random(seed)  # noqa: S311 - to be replayed
    server, recorder = own_servers(), Recorder()
    happened: Counter[str] = Counter()
    with alone("threads", server, recorder) as (life, _):
        life.live()
        with traced([server.process("walwriter")], FILES) as trace:
            commit_for_the_wal_writer(server)
            calls = trace.calls
        for place in some(calls, rounds(2, 30), dice):
            with failing([server.process("walwriter")], place) as trace:
                commit_for_the_wal_writer(server)
                happened[f"{place.call} {place.fault}"] += trace.has_failed
            connected(server.dsn).close()
            life.live()
    print(f"{sum(calls.values())} system calls of the WAL writer: {dict(calls)}")
    print(f"{sum(happened.values())} failed: {dict(happened)}")
    tally(recorder.history(), server.dsn).check()
    Load(seed, recorder).check(server.dsn)
    assert sum(happened.values()) >= 1


def some(calls: Counter[str], number: int, dice: random.Random) -> Iterator[Failing]:
    """Choose some that can go wrong, among those that come early enough to come again."""
    for _ in range(number):
        call = dice.choice(sorted(calls))
        yield Failing(call, dice.randint(1, max(1, calls[call] // 2)), dice.choice(FAULTS))


def answered(load: Load, calls: int) -> None:
    goal = load.answered + calls
    until(lambda: load.answered >= goal, "calls to be answered")


def checkpoint(server: Server) -> None:
    with suppress(psycopg.OperationalError, psycopg.InternalError), connected(server.dsn) as observer:
        observer.execute("CHECKPOINT")


def commit_for_the_wal_writer(server: Server) -> None:
    """Commit what nobody waits for but the WAL writer, which writes it soon, unless it fails."""
    with suppress(psycopg.OperationalError, psycopg.InternalError), connected(server.dsn) as observer:
        observer.execute("SET synchronous_commit = off")
        observer.execute("SELECT pg_logical_emit_message(true, 'test', 'x')")
        written = observer.execute("SELECT pg_current_wal_insert_lsn()::text").fetchone()
        assert written is not None
        sql = "SELECT FROM (SELECT pg_current_wal_flush_lsn() >= %s::pg_lsn AS is_there) AS flushed WHERE is_there"
        until(lambda: observer.execute(sql, written).fetchall(), "the log to be written")
