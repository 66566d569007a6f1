"""Fault: the server undoes statements, for a deadlock or because it could not serialize them.

Promise: it is invisible to the caller, or after bounded retries named; nothing is written twice; and whoever takes part
in a deadlock with a transaction of its own is told so by the server, and can go on.
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from psycopg.sql import SQL, Identifier

from registry import Unavailable
from tests.callers import KINDS, callers, created
from tests.load import Load, chosen_seed, under_load
from tests.observing import deadlocks
from tests.soak import rounds
from tests.waiting import until

CALLERS: Final = {"threads": 8, "asyncio": 48}
PATIENT: Final = 20.0
DEADLOCKS: Final = rounds(2, 300)
FAILURES: Final = rounds(15, 5_000)

SOON: Final = "40ms"
"""When the registry's sessions look for a deadlock: before a batch lets go of what holds it up (100 ms)."""


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def set_by_default(observer: psycopg.Connection[Any], name: str, value: str) -> None:
    database = Identifier(observer.info.dbname)
    observer.execute(SQL("ALTER DATABASE {} SET {} = {}").format(database, Identifier(name), value))


OPEN: Final = """
    SELECT command_id FROM command_registry.command_status_v1
    WHERE command_id = ANY(%s) AND state IN ('PENDING', 'DISPATCHED')
    ORDER BY command_id COLLATE "C"
"""
LOCK_ROW: Final = "SELECT FROM command_registry.command_status_v1 WHERE command_id = %s FOR UPDATE"
WAITS_FOR: Final = "SELECT FROM pg_stat_activity WHERE %s = ANY(pg_blocking_pids(pid))"


class Locker:
    """Locks rows of commands in the order that the registry's statements do not: the last first."""

    def __init__(self, dsn: str, observer: psycopg.Connection[Any], load: Load) -> None:
        self._dsn, self._observer, self._load = dsn, observer, load
        self.attempts = 0

    def provoke(self) -> None:
        """Lock the last, wait until the registry waits for it, and then lock those that it has locked meanwhile."""
        with psycopg.connect(self._dsn, options="-c deadlock_timeout=10s -c lock_timeout=5s") as own:
            *others, last = [command_id for (command_id,) in own.execute(OPEN, (self._load.shared,))]
            own.rollback()
            own.execute(LOCK_ROW, (last,))
            before, pid = self._load.answered, own.info.backend_pid
            until(lambda: self._waits(pid) or self._load.answered > before + 500, "the registry to wait")
            self.attempts += 1
            for command_id in reversed(others):
                own.execute(LOCK_ROW, (command_id,))
            own.rollback()

    def _waits(self, pid: int) -> bool:
        return bool(self._observer.execute(WAITS_FOR, (pid,)).fetchall())


def test_under_load_a_deadlock_that_ends_the_registrys_statement_is_invisible(
    kind: str, dsn: str, connection: psycopg.Connection[Any]
) -> None:
    seed = chosen_seed()
    set_by_default(connection, "deadlock_timeout", SOON)
    with under_load(kind, dsn, number=CALLERS[kind], seed=seed, rivals=dsn, timeout=PATIENT) as load:
        locker = Locker(dsn, connection, load)
        while load.metrics.retries < DEADLOCKS:
            assert locker.attempts < 150 * DEADLOCKS, "the registry is never in a deadlock"
            locker.provoke()
    load.check(dsn)
    print(f"{load.metrics.retries} statements sent again after deadlocks, in {locker.attempts} attempts")
    until(lambda: deadlocks(connection) >= DEADLOCKS, "the server to tell of the deadlocks")
    assert load.metrics.unknown == 0


def test_under_load_statements_that_cannot_be_serialized_are_sent_again_or_named_after_bounded_retries(
    kind: str, dsn: str, connection: psycopg.Connection[Any]
) -> None:
    seed = chosen_seed()
    serializable = make_conninfo(dsn, options=r"-c default_transaction_isolation=serializable")
    with under_load(
        kind,
        serializable,
        number=CALLERS[kind],
        seed=seed,
        rivals=serializable,
        tolerates=(Unavailable,),
        timeout=PATIENT,
    ) as load:
        until(lambda: load.metrics.retries >= FAILURES, "enough serialization failures")
    load.check(dsn)
    told = [each.trouble for each in load.recorder.history() if each.trouble and each.trouble.startswith("Unavailable")]
    print(f"{load.metrics.retries} statements sent again, {len(told)} calls told of it")
    assert [trouble for trouble in told if "times in a row" not in trouble] == []
    assert load.metrics.unknown == 0


def test_under_load_a_database_that_is_serializable_by_default_changes_nothing(
    kind: str, dsn: str, connection: psycopg.Connection[Any]
) -> None:
    seed = chosen_seed()
    set_by_default(connection, "default_transaction_isolation", "serializable")
    with under_load(kind, dsn, number=CALLERS[kind], seed=seed, rivals=dsn, timeout=PATIENT) as load:
        until(lambda: load.answered >= rounds(400, 40_000), "calls to be answered")
    load.check(dsn)
    assert load.metrics.retries == 0


def test_two_callers_transactions_in_opposite_order_end_with_one_told_of_the_deadlock_and_harm_nobody(
    kind: str, dsn: str, connection: psycopg.Connection[Any]
) -> None:
    seed = chosen_seed()
    set_by_default(connection, "deadlock_timeout", SOON)
    won = 0
    with callers("threads", dsn) as opened:
        pair = created(opened, 2)
        with (
            under_load(kind, dsn, number=CALLERS[kind], seed=seed, timeout=PATIENT) as load,
            ThreadPoolExecutor(2) as two,
        ):
            for _ in range(rounds(3, 100)):
                together = threading.Barrier(2)

                def transaction(first: str, second: str, together: threading.Barrier = together) -> bool:
                    with psycopg.connect(dsn) as own:
                        opened.registry.increment_attempt(first, connection=own)
                        together.wait()
                        try:
                            opened.registry.increment_attempt(second, connection=own)
                        except psycopg.errors.DeadlockDetected:
                            own.rollback()
                            assert own.execute("SELECT 'usable'").fetchone() == ("usable",)
                            return False
                        own.commit()
                    return True

                outcomes = list(two.map(transaction, pair, reversed(pair)))
                assert sorted(outcomes) == [False, True]
                won += 1
        histories = [len(opened.registry.history(command_id)) for command_id in pair]
    load.check(dsn, beside=pair)
    assert histories == [1 + won] * 2
    until(lambda: deadlocks(connection) >= won, "the server to tell of the deadlocks")
