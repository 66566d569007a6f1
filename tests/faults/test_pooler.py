"""Fault: a PgBouncer in transaction mode that is killed, reloaded, paused, or loses its connections to the server.

Promise: every answer is the one of the contract, no call is lost or doubled, service resumes by itself, and nothing is
left behind in a session of the server that others share.
"""

import random
from collections.abc import Callable, Iterator
from typing import Any, Final

import psycopg
import pytest

from tests.callers import KINDS
from tests.conftest import Databases
from tests.load import Load, chosen_seed, under_load
from tests.observing import terminate
from tests.pgbouncer import SERVER_CONNECTIONS, PgBouncer, needs_pgbouncer, pgbouncer
from tests.soak import rounds
from tests.test_pgbouncer import PASSED_ON, SESSION, server_pids, sessions
from tests.waiting import until

pytestmark = needs_pgbouncer

CALLERS: Final = {"threads": 8, "asyncio": 48}
FAULTS: Final = rounds(6, 200)
PATIENT: Final = 20.0


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def own_pooler(databases: Databases) -> Iterator[PgBouncer]:
    """A pooler of this test alone."""
    with pgbouncer(databases.server_dsn) as bouncer:
        yield bouncer


class Mischief:
    """Chooses what goes wrong with a pooler, and does it."""

    def __init__(self, pooler: PgBouncer, observer: psycopg.Connection[Any], load: Load, seed: int) -> None:
        self._pooler, self._observer, self._load = pooler, observer, load
        self._database = observer.info.dbname
        self._dice = random.Random(f"{seed}/pooler")  # noqa: S311 - to be replayed
        self._next: list[Callable[[], None]] = []
        self.done: list[str] = []

    def one(self) -> None:
        """Let calls be made for a while, and then something go wrong."""
        if not self._next:
            self._next = [self._kill, self._terminate, self._reload, self._pause, self._kill_database, self._reconnect]
            self._dice.shuffle(self._next)
        happens = self._next.pop()
        self.done.append(happens.__name__.lstrip("_"))
        self.go_on(self._dice.randrange(1, 40))
        happens()

    def go_on(self, calls: int) -> None:
        """Wait until so many more calls are answered."""
        goal = self._load.answered + calls
        until(lambda: self._load.answered >= goal, f"calls to be answered after {self.done}")

    def _kill(self) -> None:
        self._pooler.kill()
        self._pooler.start()

    def _terminate(self) -> None:
        pids = sorted(server_pids(self._observer))
        terminate(self._observer, [pid for pid in pids if self._dice.random() < 0.7], wait_ms=0)

    def _reload(self) -> None:
        self._pooler.ask("RELOAD")

    def _pause(self) -> None:
        self._pooler.ask(f"PAUSE {self._database}")
        self._resume()

    def _kill_database(self) -> None:
        self._pooler.ask(f"KILL {self._database}")
        self._resume()

    def _resume(self) -> None:
        until(lambda: self._load.waiting, "callers to wait")
        self._pooler.ask(f"RESUME {self._database}")

    def _reconnect(self) -> None:
        self._pooler.ask(f"RECONNECT {self._database}")


def test_under_load_no_call_is_lost_or_doubled_and_no_session_keeps_anything_whatever_becomes_of_the_pooler(
    kind: str, dsn: str, own_pooler: PgBouncer, connection: psycopg.Connection[Any]
) -> None:
    seed = chosen_seed()
    pooled = own_pooler.dsn(dsn)
    before = sessions(pooled)
    with under_load(kind, pooled, number=CALLERS[kind], seed=seed, pooler="transaction", timeout=PATIENT) as load:
        mischief = Mischief(own_pooler, connection, load, seed)
        for _ in range(FAULTS):
            mischief.one()
        mischief.go_on(50)
    load.check(dsn)
    print(f"{load.metrics.reconnections} reconnections after {mischief.done}")
    assert load.metrics.reconnections >= 1
    assert load.metrics.unknown == 0
    after = sessions(pooled)
    _, prepared, advisory_locks, *settings = connection.execute(SESSION, (PASSED_ON,)).fetchall()[0]
    assert (prepared, advisory_locks) == (0, 0)
    assert [session[1:] for session in before + after] == [(0, 0, *settings)] * 2 * SERVER_CONNECTIONS
