"""A rebuild in a process of its own, to be killed: `python -m tests.rebuilding`, and what the tests do with it.

It is told what to build on its standard input, and says on its standard output how far it has come.
"""

import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Final, TypeVar
from unittest.mock import patch

import psycopg

from eventstore import queries as log_queries
from eventstore.database import Database
from eventstore.errors import EventStoreError
from eventstore.steps import Plan, Row, Step
from projections import postgres, rebuild
from projections.postgres import rebuild_table
from projections.projector import Follower
from projections.rebuild import Progress, Verify
from projections.table import Table

__all__ = [
    "LEASE",
    "Dies",
    "Job",
    "Mortal",
    "Rebuilding",
    "is_alive",
    "kill_one",
    "leases_of",
    "let_the_lease_run_out",
    "rebuilding",
    "workers_of",
]

T = TypeVar("T")

LEASE: Final = 0.5
"""How long the owner of a lease may be silent in these processes, in seconds."""


@dataclass(frozen=True)
class Job:
    """What to build: the class of this name in `tests.shelves`, in chunks of about so many events."""

    dsn: str
    projection: str
    chunk: int = 100
    workers: int = 1
    verify: Verify = "full"
    lease_seconds: float = LEASE


class Rebuilding:
    """A process that rebuilds."""

    def __init__(self, job: Job) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.rebuilding"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.told: list[dict[str, Any]] = []
        """What it said so far: progress, and at last what it has done, or why not."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(asdict(job)) + "\n")
        self.process.stdin.flush()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.told.append(json.loads(line))

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def kill(self) -> None:
        """End it by force (-9)."""
        self.process.kill()
        self._close()

    def result(self) -> dict[str, Any]:
        """Wait for its end, and give what it said last."""
        self.process.wait(60)
        problem = self._close()
        assert self.told, problem
        return self.told[-1]

    def _close(self) -> str:
        self.process.wait(60)
        self._listener.join(60)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        problem = self.process.stderr.read()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            stream.close()
        return problem


@contextmanager
def rebuilding(job: Job) -> Iterator[Rebuilding]:
    """Start a process that rebuilds; killed when the block ends, if it has not ended."""
    started = Rebuilding(job)
    try:
        yield started
    finally:
        if not started.ended:
            started.kill()


def workers_of(pid: int) -> list[int]:
    """List the processes that a process has started, and that are there."""
    children: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children += map(int, task.read_text().split())
        except OSError:
            continue
    return [child for child in children if is_alive(child)]


def is_alive(pid: int) -> bool:
    """Tell whether a process is there, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except OSError:
        return False


def kill_one(dice: random.Random, pids: list[int]) -> None:
    """End one of these processes by force."""
    os.kill(dice.choice(pids), signal.SIGKILL)


def let_the_lease_run_out(observer: psycopg.Connection[Any], table: Table[Any]) -> None:
    """Let the time pass, for the bookkeeping, until whoever had the lease of a table has it no more."""
    observer.execute(
        "UPDATE command_registry.projectors SET lease_until = clock_timestamp() - interval '1 ms'"
        " WHERE name = %s AND version = %s AND lease_until IS NOT NULL",
        (table.projection.name, table.projection.version),
    )


def leases_of(seconds: float) -> Any:
    """Make the leases of rebuilds in this process last so long."""
    return patch.object(postgres, "Follower", partial(Follower, lease_seconds=seconds))


class Dies(BaseException):
    """What a process feels that is ended by force."""


class Mortal:
    """A database for a rebuild that dies after so many steps: it takes none any more, not even to clean up.

    `twice`: it does not die then, but asks for that step once more, since the answer was lost with the connection.
    """

    def __init__(self, database: Database, steps: int, *, twice: bool = False) -> None:
        self._database, self._steps, self._twice = database, steps, twice
        self.dsn, self.pooler = database.dsn, database.pooler
        self.taken: list[Step] = []
        self._in_transaction = False

    def run(self, plan: Plan[T], **settings: Any) -> T:
        return self._database.run(self._steps_of(plan), **settings)

    def _steps_of(self, plan: Plan[T]) -> Plan[T]:
        try:
            step = next(plan)
            while True:
                try:
                    rows = yield from self._taken(step)
                except Exception as error:
                    step = plan.throw(error)
                else:
                    step = plan.send(rows)
        except StopIteration as stop:
            result: T = stop.value
            return result

    def _taken(self, step: Step) -> Plan[list[Row]]:
        if len(self.taken) >= self._steps and not self._twice:
            raise Dies
        self._in_transaction |= str(step.sql).startswith("BEGIN")
        if len(self.taken) == self._steps and not self._in_transaction:
            yield step
        self._in_transaction &= step.sql not in (log_queries.COMMIT, log_queries.ROLLBACK)
        self.taken.append(step)
        return (yield step)


def _say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


def _tell(progress: Progress) -> None:
    _say(**progress._asdict())


def main() -> None:
    """Do a job."""
    job = Job(**json.loads(sys.stdin.readline()))
    patch.object(rebuild, "EVENTS_IN_CHUNK", job.chunk).start()
    patch.object(postgres, "_POLL", 0.02).start()
    leases_of(job.lease_seconds).start()
    table = Table(getattr(import_module("tests.shelves"), job.projection)())
    with Database(job.dsn, pool_size=3) as database:
        try:
            rebuilt = rebuild_table(database, table, workers=job.workers, verify=job.verify, told=_tell)
        except EventStoreError as error:
            _say(error=type(error).__name__, message=str(error))
        else:
            _say(**vars(rebuilt))


if __name__ == "__main__":
    main()
