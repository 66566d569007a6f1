"""What processes use, as /proc tells it; None where there is no /proc."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["parent_of", "peak_memory", "server_cpu"]

_PROC: Final = Path("/proc")
_TICKS: Final = os.sysconf("SC_CLK_TCK")


class _Process(NamedTuple):
    pid: int
    parent: int
    ticks: int
    ticks_of_children: int  # of those that ended, and were waited for


def server_cpu(postmaster: int) -> float | None:
    """Sum up the CPU seconds of a server: of its first process, of its children, and of those that ended before."""
    known = {process.pid: process for process in _all()}
    if postmaster not in known:
        return None
    children = sum(process.ticks for process in known.values() if process.parent == postmaster)
    return (known[postmaster].ticks + known[postmaster].ticks_of_children + children) / _TICKS


def parent_of(pid: int) -> int | None:
    """Give the process that a process was started by."""
    process = _read(_PROC / str(pid))
    return process.parent if process else None


def peak_memory(pid: int) -> int | None:
    """Give the most memory that a running process, and each that it started, has had resident: the sum, in bytes.

    (What getrusage says is of no use: a process begins with the peak of the one that started it.)
    """
    try:
        lines = (_PROC / str(pid) / "status").read_text().splitlines()
    except OSError:
        return None
    own = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)
    return None if own is None else own + sum(peak_memory(child) or 0 for child in _children(pid))


def _children(pid: int) -> list[int]:
    """Give the processes that the first thread of a process started."""
    try:
        return [int(child) for child in (_PROC / f"{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _all() -> Iterator[_Process]:
    for place in _PROC.glob("[0-9]*"):
        if process := _read(place):
            yield process


def _read(place: Path) -> _Process | None:
    try:
        text = (place / "stat").read_text()
    except OSError:  # it has just ended
        return None
    fields = text.rpartition(") ")[2].split()  # after the name, which may hold anything
    user, system, children_user, children_system = map(int, fields[11:15])
    return _Process(int(place.name), int(fields[1]), user + system, children_user + children_system)
