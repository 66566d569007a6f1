"""System calls of a server's processes, which strace counts, and makes fail."""

import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import pytest

__all__ = ["EIO", "ENOSPC", "FILES", "KILL", "Failing", "Trace", "failing", "needs_strace", "places", "traced"]

EIO: Final = "error=EIO"
ENOSPC: Final = "error=ENOSPC"
KILL: Final = "signal=KILL"

FILES: Final = (
    *("openat", "pread64", "preadv", "lseek", "pwrite64", "pwritev", "write", "fallocate", "ftruncate"),
    *("fsync", "fdatasync", "sync_file_range", "rename", "link", "unlink", "mkdir"),
)
"""What a server's processes ask of a file system."""

_NAME: Final = re.compile(r"^(?:\d+ +)?(\w+)\(", re.MULTILINE)


class Failing(NamedTuple):
    """What goes wrong: the system call, which of them (from 1), and how."""

    call: str
    number: int
    fault: str


class Trace:
    """What strace has seen."""

    def __init__(self, file: Path) -> None:
        self._file = file

    @property
    def calls(self) -> Counter[str]:
        """How often each system call was made."""
        return Counter(_NAME.findall(self._file.read_text(errors="replace")))

    @property
    def has_failed(self) -> bool:
        """Whether what was to go wrong did."""
        text = self._file.read_text(errors="replace")
        return "(INJECTED)" in text or "killed by SIGKILL" in text


def _may_trace() -> bool:
    if shutil.which("strace") is None:
        return False
    with subprocess.Popen(["sleep", "60"]) as sleeping:
        try:
            with traced([sleeping.pid], ["read"]):
                return True
        except AssertionError:
            return False
        finally:
            sleeping.kill()


@contextmanager
def traced(pids: Collection[int], calls: Sequence[str], *inject: str) -> Iterator[Trace]:
    """Trace processes until the block ends."""
    with tempfile.TemporaryDirectory(prefix="crs-", dir="/tmp") as place:
        file = Path(place) / "trace"
        to = [part for pid in pids for part in ("-p", str(pid))]
        command = ["strace", "-o", str(file), "-e", f"trace={','.join(f'?{call}' for call in calls)}", *inject, *to]
        tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            assert tracer.stderr is not None
            attached = 0
            for line in tracer.stderr:
                attached += line.rstrip().endswith("attached")
                if attached == len(pids):
                    break
            assert attached == len(pids), "strace could not attach"
            yield Trace(file)
        finally:
            tracer.terminate()
            tracer.communicate(timeout=20)


@contextmanager
def failing(pids: Collection[int], what: Failing) -> Iterator[Trace]:
    """Let one system call of each of some processes go wrong."""
    inject = f"inject={what.call}:{what.fault}:when={what.number}"
    with traced(pids, [what.call], "-e", inject) as trace:
        yield trace


def places(calls: Counter[str], faults: Sequence[str]) -> list[Failing]:
    """List everything that can go wrong."""
    return [
        Failing(call, number, fault)
        for call, most in sorted(calls.items())
        for number in range(1, most + 1)
        for fault in faults
    ]


needs_strace = pytest.mark.skipif(
    not _may_trace(), reason="no strace that may trace: apt-get install strace, and run with CAP_SYS_PTRACE"
)
