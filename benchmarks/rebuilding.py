"""Read models: built from the log, following it, and appends while one is built. A process of its own."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from subprocess import PIPE, Popen
from types import MappingProxyType
from typing import Final, NoReturn

from benchmarks import client
from benchmarks.errors import BenchmarkError
from benchmarks.read_models import FOLLOWED_STATUS, NEXT_STATUS, forget
from benchmarks.sample import Job, Sample, Window, serve
from eventstore.database import Database
from projections import status
from projections.errors import NotCaughtUp
from projections.postgres import Projector, rebuild_table
from projections.rebuild import Progress, progress

__all__: list[str] = []


def _rebuild(job: Job) -> Sample:
    """Build the next version of the read model, end to end, with as many workers as there are callers."""
    window = Window(job.postmaster)
    with Database(job.dsn) as database:
        try:
            window.begin()
            began = time.perf_counter()
            rebuilt = rebuild_table(database, NEXT_STATUS, workers=job.callers)
            window.note(began)
            sample = window.end(rebuilt.events)
        finally:
            forget(database, NEXT_STATUS)
    if not (rebuilt.compared and rebuilt.switched and rebuilt.drained):
        raise BenchmarkError("the rebuild did not come to its end")
    return sample


def _follow(job: Job) -> Sample:
    """Follow the log from its start, until all of it is folded or the time is over."""
    window = Window(job.postmaster)
    with Database(job.dsn) as database:
        try:
            database.run(status.enrol(FOLLOWED_STATUS), lasting=True)
            window.begin()
            with Projector(database, [FOLLOWED_STATUS]) as projector:
                with suppress(NotCaughtUp):
                    projector.wait_until(timeout=job.seconds)
                folded = database.run(progress(FOLLOWED_STATUS)).done
                sample = window.end()
        finally:
            forget(database, FOLLOWED_STATUS)
    return sample.model_copy(update={"work": folded})


def _append_meanwhile(job: Job) -> Sample:
    """Let callers append, while another process rebuilds all the time."""
    with _rebuilding(job):
        return client.LOADS["asyncio"](job)


@contextmanager
def _rebuilding(job: Job) -> Iterator[None]:
    command = [sys.executable, "-m", "benchmarks.rebuilding"]
    told = job.model_copy(update={"load": _FOR_EVER}).model_dump_json()
    with Popen(command, stdin=PIPE, stdout=PIPE, text=True) as process:
        try:
            if process.stdin is None or process.stdout is None:
                raise AssertionError("both are pipes")
            process.stdin.write(told)
            process.stdin.close()
            if not process.stdout.readline():
                raise BenchmarkError("the rebuild did not begin")
            yield
            if process.poll() is not None:
                raise BenchmarkError(f"the rebuild ended with status {process.returncode}")
        finally:
            process.kill()
    with Database(job.dsn) as database:
        forget(database, NEXT_STATUS)


def _rebuild_for_ever(job: Job) -> NoReturn:
    """Rebuild, and begin anew, until it is killed; say so once events are folded."""

    def told(_progress: Progress) -> None:
        print(flush=True)  # noqa: T201 - the answer

    with Database(job.dsn) as database:
        while True:
            rebuild_table(database, NEXT_STATUS, told=told)
            forget(database, NEXT_STATUS)


_FOR_EVER: Final = "rebuild for ever"

LOADS: Final[Mapping[str, Callable[[Job], Sample]]] = MappingProxyType(
    {"rebuild": _rebuild, "follow": _follow, "append": _append_meanwhile, _FOR_EVER: _rebuild_for_ever}
)
"""What this client can do, by name."""


if __name__ == "__main__":
    serve(LOADS)
