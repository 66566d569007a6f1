"""Running the clients: each in a process of its own, whose CPU and memory are its own, and which never outlives us."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from benchmarks.errors import BenchmarkError
from benchmarks.sample import Job, Sample
from benchmarks.server import libpq_environment
from benchmarks.usage import peak_memory

__all__ = ["Ended", "run", "run_client"]

_POLL: Final = 0.05  # seconds
_PATIENCE: Final = 120.0  # seconds, beyond what the job itself takes
_COMMANDS_A_SECOND: Final = 1_000  # a client that reads the whole log gets through no fewer
_MOST_TOLD: Final = 2_000  # characters of what a program that failed has said


class Ended(NamedTuple):
    """A program that ran to its end: what it wrote, its CPU seconds, and its peak memory in bytes."""

    output: str
    cpu: float
    peak_memory: int | None


def run_client(module: str, job: Job) -> Sample:
    """Let a module of this package do a job.

    Raises:
        BenchmarkError: it failed.
    """
    command = [sys.executable, "-m", f"benchmarks.{module}"]
    environment = libpq_environment(job.dsn)  # for a client that takes no DSN, but its parts
    seconds = job.warm_up + job.seconds + job.commands / _COMMANDS_A_SECOND
    ended = run(command, environment, seconds, told=job.model_dump_json())
    sample = Sample.model_validate_json(ended.output)
    if not sample.work:
        raise BenchmarkError(f"{module} completed no call in {job.seconds:g} s: give it more --seconds")
    return sample.model_copy(update={"peak_memory": ended.peak_memory})


def run(command: Sequence[str], environment: Mapping[str, str], seconds: float, told: str = "") -> Ended:
    """Run a program that should take so many seconds at most.

    It has a process group of its own, so that a Ctrl-C reaches us alone; and we end it, whatever happens.

    Raises:
        BenchmarkError: it cannot be run, failed, or did not end.
    """
    began = _cpu_of_children()
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            process_group=0,
        )
    except OSError as error:
        raise BenchmarkError(f"cannot run {command[0]}: {error}") from error
    name = " ".join(command[:3])
    with process:
        try:
            output, errors, peak = _follow(process, told, time.monotonic() + seconds + _PATIENCE)
        except subprocess.TimeoutExpired:
            raise BenchmarkError(f"{name} did not end within {seconds + _PATIENCE:.0f} s") from None
        finally:
            _end(process)
    if process.returncode != 0:
        raise BenchmarkError(f"{name} ended with status {process.returncode}:\n{errors.strip()[-_MOST_TOLD:]}")
    return Ended(output, _cpu_of_children() - began, peak)


def _follow(process: subprocess.Popen[str], told: str, deadline: float) -> tuple[str, str, int | None]:
    """Wait for its end, and see meanwhile how much memory it takes."""
    peak, pending = None, told or None
    while True:
        try:
            output, errors = process.communicate(pending, timeout=_POLL)
        except subprocess.TimeoutExpired:
            if time.monotonic() > deadline:
                raise
            pending = None  # it is being written
            peak = max(peak or 0, peak_memory(process.pid) or 0) or None  # what it started may end before it
        else:
            return output, errors, peak


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
