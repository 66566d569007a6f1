"""What is counted and timed while plans run: plain numbers, cheap enough to be always on."""

import logging
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

__all__ = ["DURATIONS", "SIZES", "Histogram", "Measured", "Metrics"]

_log: Final = logging.getLogger("command_registry")

DURATIONS: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Upper bounds of the buckets of a duration, in seconds."""

SIZES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
"""Upper bounds of the buckets of a batch size, in calls."""

Measured: TypeAlias = Callable[[str, float], None]
"""Is told of each measurement as it is made: the histogram's name, and the value."""


def _nobody(name: str, value: float) -> None:
    """Listen to nothing."""


@dataclass(slots=True)
class Histogram:
    """How often a value fell into each bucket (its upper bound included; the last bucket has none)."""

    bounds: Sequence[float]
    counts: list[int] = field(init=False)
    sum: float = 0.0
    count: int = 0
    max: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def record(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.count += 1
        self.sum += value
        self.max = max(self.max, value)

    @property
    def mean(self) -> float:
        """The mean of all values; 0 when there were none."""
        return self.sum / self.count if self.count else 0.0


@dataclass(slots=True)
class Metrics:
    """Counters and histograms of one database's use, since it was opened.

    Threads may add at the same time: a count can then be off by what two of them added in the same instant.
    """

    calls: int = 0
    """Calls that went in batches."""
    conflicts: int = 0
    """Statements that the log's primary key (or the check of the event before) refused: another writer came first."""
    retries: int = 0
    """Statements sent again after a deadlock, a serialization failure, or to a server that takes no writes."""
    reconnections: int = 0
    """Connections lost while a statement was under way."""
    unknown: int = 0
    """Calls that ended with `OutcomeUnknown`."""
    batch_size: Histogram = field(default_factory=lambda: Histogram(SIZES))
    """Calls in a batch."""
    queue_time: Histogram = field(default_factory=lambda: Histogram(DURATIONS))
    """How long the first call of a batch waited for it to begin, in seconds."""
    statement_time: Histogram = field(default_factory=lambda: Histogram(DURATIONS))
    """How long a statement took, from sending it to having its answer, in seconds."""
    trouble: str = ""
    """What keeps the server from answering, when last heard of it; empty while it answers."""
    refusal: str = ""
    """Why the last attempt to connect failed; empty since one succeeded."""
    listener: Measured = _nobody

    @property
    def obstacle(self) -> str:
        """What stands between a call and its answer, as far as is known; empty when nothing is."""
        return self.trouble or self.refusal

    def statement(self, seconds: float) -> None:
        """Note a statement that succeeded."""
        self.statement_time.record(seconds)
        self._report("statement_time", seconds)

    def batch(self, size: int, waited: float) -> None:
        """Note a batch that begins."""
        self.calls += size
        self.batch_size.record(size)
        self.queue_time.record(waited)
        self._report("batch_size", size)
        self._report("queue_time", waited)

    def _report(self, name: str, value: float) -> None:
        """Tell the listener; what goes wrong there is no call's business."""
        try:
            self.listener(name, value)
        except Exception:
            _log.exception("the listener to the figures failed, and is not told of %s", name)
