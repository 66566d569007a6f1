"""Processes that fill the chunks of a table under construction: `python -m projections.workers`.

A worker is told its job on its standard input, and ends when that is closed, so that none outlives who started it.
"""

import gc
import json
import os
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from importlib import import_module
from types import TracebackType
from typing import IO, Any, Final, NamedTuple, Self

from eventstore.database import Database, Pooler
from projections import rebuild
from projections.errors import ProjectionError
from projections.projection import Projection
from projections.projector import Follower
from projections.table import Table

__all__ = ["Workers"]

_PATIENCE: Final = 10.0  # seconds
_SELDOM: Final = (50_000, 20, 100)


class _Job(NamedTuple):
    """What a worker does: fill chunks of this projection's table in this database, for the owner of this token."""

    dsn: str
    pooler: Pooler | None
    module: str
    projection: str
    owner: str
    token: int
    lease_seconds: float


class Workers:
    """So many worker processes; as a context manager, they have ended when it is left."""

    def __init__(self, database: Database, follower: Follower[Any], count: int) -> None:
        kind = type(follower.table.projection)
        job = _Job(
            database.dsn,
            database.pooler,
            kind.__module__,
            kind.__qualname__,
            follower.owner,
            follower.token,
            follower.lease_seconds,
        )
        if vars(follower.table.projection):
            raise ProjectionError(
                f"{job.projection} has attributes of its own, which other processes do not know: build with one worker"
            )
        if job.module == "__main__" or _projection(job) is not kind:
            raise ProjectionError(
                f"{job.module}.{job.projection} cannot be imported by another process: put the class at the top of a "
                "module of its own, or build with one worker"
            )
        self._job, self._count = json.dumps(job._asdict()), count
        self._processes: dict[subprocess.Popen[str], IO[str]] = {}
        self.events = 0

    def __enter__(self) -> Self:
        try:
            for _ in range(self._count):
                self._start()
        except BaseException:
            self.close()
            raise
        return self

    def _start(self) -> None:
        said = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - closed with the process
        process = subprocess.Popen(
            [sys.executable, "-m", "projections.workers"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            start_new_session=True,  # a Ctrl-C reaches us alone, and we end them
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        self._processes[process] = said
        with suppress(BrokenPipeError):  # it has ended: `busy` tells why
            process.stdin.write(self._job + "\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End them."""
        for process in self._processes:
            with suppress(OSError):
                process.stdin.close()  # type: ignore[union-attr]
        for process, said in self._processes.items():
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()  # type: ignore[union-attr]
            said.close()

    def busy(self, seconds: float) -> bool:
        """Wait so long for one of them to end, and tell whether any is still at work.

        Raises:
            ProjectionError: one failed; says why.
        """
        at_work = [process for process in self._processes if process.poll() is None]
        if at_work:
            with suppress(subprocess.TimeoutExpired):
                at_work[0].wait(seconds)
        for process in [process for process in self._processes if process.poll() is not None]:
            with self._processes.pop(process) as said:
                output, _ = process.communicate()
                said.seek(0)
                problem = said.read()
            if process.returncode:
                last = (problem.strip().splitlines() or [f"exit status {process.returncode}"])[-1]
                raise ProjectionError(f"a worker failed: {last}; what is done is kept, and the next rebuild goes on")
            self.events += int(output)
        return bool(self._processes)


def _projection(job: _Job) -> type[Projection[Any]]:
    try:
        found: Any = import_module(job.module)
        for part in job.projection.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError):
        return Projection
    return found  # type: ignore[no-any-return]


def _work(job: _Job) -> int:
    gc.freeze()
    gc.set_threshold(*_SELDOM)  # hardly any of what is folded refers to itself
    table = Table(_projection(job)())
    total = 0
    with Database(job.dsn, pool_size=1, pooler=job.pooler) as database:
        follower = Follower(table, job.owner, job.lease_seconds, builds=True)
        follower.taken(job.token)
        while (events := database.run(rebuild.fill_chunk(follower), lasting=True)) is not None:
            total += events
    return total


def _end_with(stdin: int) -> None:
    while os.read(stdin, 4096):
        pass
    os._exit(1)


def main() -> None:
    """Do a job."""
    job = _Job(**json.loads(sys.stdin.readline()))
    answer, sys.stdout = sys.stdout, sys.stderr  # whatever a projection prints is no answer
    threading.Thread(target=_end_with, args=(sys.stdin.fileno(),), daemon=True).start()
    try:
        print(_work(job), file=answer)
    except Exception as error:  # told to who started us
        print(f"{error}".replace("\n", " "), file=sys.stderr)  # noqa: T201
        sys.exit(1)


if __name__ == "__main__":
    main()
