"""The server is killed (-9) under load: its first process, one of the others, or both at once, with fsync on.

Promised: what was acknowledged is there, once; nothing is there that nobody asked for; and the registry goes on by
itself as soon as somebody has started the server again.
"""

import os
import random
import signal
from collections import Counter
from contextlib import suppress
from typing import Final

import psycopg

from tests.faults.servers import Server, Servers, connected, each_of_both
from tests.faults.tally import tally
from tests.load import Load, chosen_seed, under_load
from tests.observing import backends
from tests.soak import rounds
from tests.waiting import until

CALLERS: Final = {"threads": 8, "asyncio": 48}
PATIENT: Final = 20.0
KILLS: Final = rounds(3, 100)
CALLS_BETWEEN: Final = rounds(60, 1_000)
ACKNOWLEDGED: Final = rounds(0, 100_000)

A_BACKEND: Final = "a backend"
THE_POSTMASTER: Final = "the postmaster"
IN_RECOVERY: Final = "a backend, and the postmaster while the others recover"
AN_AUXILIARY: Final = "a process of the server's own"
VICTIMS: Final = [THE_POSTMASTER, A_BACKEND, IN_RECOVERY, AN_AUXILIARY]


@each_of_both
def test_no_kill_of_the_server_under_load_loses_or_doubles_a_call(
    kind: str, version: str, own_servers: Servers
) -> None:
    seed = chosen_seed()
    dice = random.Random(seed)  # noqa: S311 - to be replayed
    server = own_servers(version)
    kills: Counter[str] = Counter()
    with under_load(kind, server.dsn, number=CALLERS[kind], seed=seed, timeout=PATIENT) as load:
        victims = dice.sample(VICTIMS, len(VICTIMS)) * (KILLS // len(VICTIMS) + 1)
        for victim in victims[:KILLS]:
            answered(load, dice.randrange(1, 2 * CALLS_BETWEEN))
            strike(server, victim, dice)
            kills[victim] += 1
        answered(load, CALLS_BETWEEN)
        while load.answered < ACKNOWLEDGED:
            answered(load, CALLS_BETWEEN)
    connected(server.dsn).close()
    told = tally(load.recorder.history(), server.dsn).check()
    load.check(server.dsn)
    print(f"{dict(kills)}, {load.metrics.reconnections} reconnections")
    assert told.acknowledged >= ACKNOWLEDGED
    assert load.metrics.unknown == 0


def answered(load: Load, calls: int) -> None:
    """Wait until so many more calls have their answers."""
    goal = load.answered + calls
    until(lambda: load.answered >= goal, "calls to be answered")


def strike(server: Server, victim: str, dice: random.Random) -> None:
    """Kill what is to be killed, and start the server again where it does not do that by itself."""
    if victim != THE_POSTMASTER:
        kill_a_process(server, dice, auxiliary=victim == AN_AUXILIARY)
    if victim in {THE_POSTMASTER, IN_RECOVERY}:
        server.kill()
    server.start()


def kill_a_process(server: Server, dice: random.Random, *, auxiliary: bool) -> None:
    with connected(server.dsn) as observer:
        theirs = set(backends(observer))
        mine = {observer.info.backend_pid}
        kinds = ("checkpointer", "background writer", "walwriter")
        own = {pid for pid, title in server.processes().items() if any(kind in title for kind in kinds)}
        pid = dice.choice(sorted((own if auxiliary else theirs) or mine))
        os.kill(pid, signal.SIGKILL)
        with suppress(psycopg.OperationalError):
            until(lambda: observer.execute("SELECT").rowcount < 0, "the server to end its sessions")
