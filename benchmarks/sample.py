"""What a client is told, what it answers, and the window of time in which it measures."""

import math
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from benchmarks.usage import server_cpu

__all__ = ["Job", "Sample", "Window", "percentile", "serve"]


class Job(BaseModel):
    """What a client does: so many callers at once, for a warm-up and then for a window, both in seconds.

    `load`: what the callers do, for a client that can do several things. `commands`: how many numbered commands the
    database holds. `postmaster`: the server's first process, if it is known.
    """

    model_config = ConfigDict(frozen=True)

    dsn: str
    load: str
    callers: int
    seconds: float
    warm_up: float
    commands: int
    postmaster: int | None


class Sample(BaseModel):
    """What came of one measurement. Times in seconds; `p50` and `p99` are of a call, None where there are none.

    `work`: events that were committed, read or folded in the window, or statuses that were read. `server_cpu` and
    `peak_memory` (bytes, of the client) are None where they cannot be had.
    """

    model_config = ConfigDict(frozen=True)

    work: int
    seconds: float
    p50: float | None
    p99: float | None
    client_cpu: float
    server_cpu: float | None
    peak_memory: int | None = None

    @property
    def rate(self) -> float:
        """Work a second."""
        return self.work / self.seconds


class Window:
    """The time that counts, between warm-up and end. Callers run before, and need not stop for it.

    A call counts when it completes within the window, whenever it began.
    """

    def __init__(self, postmaster: int | None = None) -> None:
        self._postmaster = postmaster
        self._latencies: list[float] = []
        self._begin = _Moment(0, 0.0, 0.0, None)
        self.open = True

    def note(self, began: float) -> float:
        """Note that a call which began at a time of `time.perf_counter` is complete; give the time it is now."""
        now = time.perf_counter()
        self._latencies.append(now - began)
        return now

    def begin(self) -> None:
        """Count from here on."""
        server = self._server_cpu()
        self._begin = _Moment(len(self._latencies), time.perf_counter(), _own_cpu(), server)

    def repeat(self, call: Callable[[], object], seconds: float) -> None:
        """Call until so many seconds have passed, once at least, and note each call."""
        began = time.perf_counter()
        end = began + seconds
        while began < end:
            call()
            began = self.note(began)

    def end(self, work_per_call: int = 1) -> Sample:
        """Count no further, and let the callers come to their end."""
        now = _Moment(len(self._latencies), time.perf_counter(), _own_cpu(), self._server_cpu())
        self.open = False
        latencies = sorted(self._latencies[self._begin.calls : now.calls])
        before, after = self._begin.server_cpu, now.server_cpu
        return Sample(
            work=len(latencies) * work_per_call,
            seconds=now.time - self._begin.time,
            p50=percentile(latencies, 50) if latencies else None,
            p99=percentile(latencies, 99) if latencies else None,
            client_cpu=now.client_cpu - self._begin.client_cpu,
            server_cpu=None if before is None or after is None else after - before,
        )

    def _server_cpu(self) -> float | None:
        return None if self._postmaster is None else server_cpu(self._postmaster)


class _Moment(NamedTuple):
    calls: int
    time: float
    client_cpu: float
    server_cpu: float | None


def _own_cpu() -> float:
    """Give the CPU seconds of this process, and of those that it started and that have ended."""
    used = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def percentile(ordered: Sequence[float], percent: int) -> float:
    """Give the smallest value that so many percent of the values do not exceed; 0 when there is none."""
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)] if ordered else 0.0


def serve(loads: Mapping[str, Callable[[Job], Sample]]) -> None:
    """Be a client: read a job from the standard input, do its load, write the sample to the standard output."""
    job = Job.model_validate_json(sys.stdin.buffer.read())
    sys.stdout.write(loads[job.load](job).model_dump_json())
