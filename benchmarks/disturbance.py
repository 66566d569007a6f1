"""How much of the machine others took while a contender was measured.

Not everybody loses alike when the machine is busy: a ratio of such a run may be far too good, or far too bad.
"""

import os
import time
from pathlib import Path
from typing import Final

from benchmarks.usage import server_cpu

__all__ = ["TOO_MUCH", "Watch"]

TOO_MUCH: Final = 0.1
"""From which share of all CPU on, taken by others, the figures are not to be trusted."""

_STAT: Final = Path("/proc/stat")
_TICKS: Final = os.sysconf("SC_CLK_TCK")


class Watch:
    """A look at the machine from here on; `postmaster`: the server's first process, if it is known."""

    def __init__(self, postmaster: int | None) -> None:
        self._postmaster = postmaster
        self._began, self._others = time.perf_counter(), self._cpu_of_others()

    def share(self) -> float | None:
        """Give what others took since, as a share of all CPU there was: 0..1; None where that cannot be known."""
        others = self._cpu_of_others()
        if others is None or self._others is None:
            return None
        there_was = (time.perf_counter() - self._began) * (os.cpu_count() or 1)
        return min(1.0, max(0.0, (others - self._others) / there_was))

    def _cpu_of_others(self) -> float | None:
        """Give the CPU seconds of everything but us, our clients (those that ended) and the server."""
        everything = _cpu_of_all()
        server = None if self._postmaster is None else server_cpu(self._postmaster)
        if everything is None or server is None:
            return None
        mine = os.times()
        return everything - server - mine.user - mine.system - mine.children_user - mine.children_system


def _cpu_of_all() -> float | None:
    """Give the CPU seconds that were not idle, those that a hypervisor gave to somebody else included."""
    try:
        first = _STAT.read_text().partition("\n")[0]
    except OSError:
        return None
    user, nice, system, _idle, _waiting, interrupts, soft_interrupts, stolen, *_ = map(int, first.split()[1:])
    return (user + nice + system + interrupts + soft_interrupts + stolen) / _TICKS
