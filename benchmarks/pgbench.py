"""pgbench with the registry's own statements, prepared: what the server gives a client with nothing else to do."""

import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from benchmarks import statement
from benchmarks.errors import BenchmarkError
from benchmarks.processes import Ended, run
from benchmarks.sample import Job, Sample, percentile
from benchmarks.server import libpq_environment
from benchmarks.statement import Script
from benchmarks.usage import server_cpu
from registry.embedded.programs import packaged_bin_dir
from registry.errors import EmbeddedPostgresError

__all__ = ["find_pgbench", "measure"]

_DEBIAN: Final = Path("/usr/lib/postgresql")
_WARM_UP: Final = 30  # transactions of each client
_SHORTEST: Final = 1  # seconds: pgbench counts in whole ones; a shorter time is given as a number of transactions
_PER_SECOND: Final = 10_000


def find_pgbench() -> Path | None:
    """Find the program: in the embedded Postgres, on the PATH, where Debian has it; None when there is none."""
    return next((path for path in _candidates() if os.access(path, os.X_OK)), None)


def _candidates() -> Iterator[Path]:
    with suppress(EmbeddedPostgresError):
        yield packaged_bin_dir() / "pgbench"
    if found := shutil.which("pgbench"):
        yield Path(found)
    yield from sorted(_DEBIAN.glob("*/bin/pgbench"), key=lambda path: int(path.parts[-3]), reverse=True)


def measure(program: Path, job: Job) -> Sample:
    """Let pgbench do a job: the lives of commands, or for the load "reads" statuses by key.

    Raises:
        BenchmarkError: it failed, or some of its transactions did.
    """
    script = statement.reads(job.commands) if job.load == "reads" else statement.lives()
    with tempfile.TemporaryDirectory(prefix="crb-") as place:
        bench = _Pgbench(program, job, Path(place), script)
        bench.run("-t", str(_WARM_UP))
        return bench.sample(*_length(job))


def _length(job: Job) -> tuple[str, str]:
    if job.seconds < _SHORTEST:
        return "-t", str(max(_WARM_UP, round(job.seconds * _PER_SECOND / job.callers)))
    return "-T", str(round(job.seconds))


class _Pgbench:
    def __init__(self, program: Path, job: Job, place: Path, script: Script) -> None:
        self._program, self._job, self._place, self._script = program, job, place, script
        (place / "script").write_text(script.text)

    def run(self, *options: str) -> Ended:
        """Run it; each run has ids of its own, which begin with the time."""
        clients = self._job.callers
        beginning = statement.FIRST if self._job.load == "reads" else statement.FIRST + time.time_ns() // 1000 * clients
        variables = {"first": str(beginning), "clients": str(clients), **self._script.variables}
        defines = [part for name, value in variables.items() for part in ("-D", f"{name}={value}")]
        jobs = min(clients, os.cpu_count() or 1)
        command = [str(self._program), "-n", "-M", "prepared", "-c", str(clients), "-j", str(jobs), *options, *defines]
        command += ["-f", str(self._place / "script")]
        return run(command, libpq_environment(self._job.dsn), self._job.seconds)

    def sample(self, *length: str) -> Sample:
        """Measure; in the CPU of server and client is also that of connecting, a few per cent."""
        before = self._server_cpu()
        ended = self.run(*length, "--log", f"--log-prefix={self._place / 'log'}")
        after = self._server_cpu()
        count, failed = (_number(rf"{what}: (\d+)", ended) for what in ("actually processed", "failed transactions"))
        if failed:
            raise BenchmarkError(f"{failed:.0f} of pgbench's transactions failed:\n{ended.output}")
        latencies = sorted(self._latencies())
        return Sample(
            work=round(count),
            seconds=count / _number(r"^tps = ([\d.]+)", ended),
            p50=percentile(latencies, 50),
            p99=percentile(latencies, 99),
            client_cpu=ended.cpu,
            server_cpu=None if before is None or after is None else after - before,
            peak_memory=ended.peak_memory,
        )

    def _server_cpu(self) -> float | None:
        return None if self._job.postmaster is None else server_cpu(self._job.postmaster)

    def _latencies(self) -> Iterator[float]:
        """Read what each transaction took, in microseconds, the third number of its line."""
        for log in self._place.glob("log.*"):
            for line in log.read_text().splitlines():
                yield int(line.split()[2]) / 1e6


def _number(pattern: str, ended: Ended) -> float:
    found = re.search(pattern, ended.output, re.MULTILINE)
    if not found:
        raise BenchmarkError(f"pgbench did not say what was expected of it:\n{ended.output}")
    return float(found[1])
