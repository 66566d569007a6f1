"""What the registry is to reach: ratios of two figures of one run on one server, at least so large."""

from dataclasses import dataclass
from typing import Final

__all__ = ["TARGETS", "Target"]

_PGBENCH: Final = ("pgbench-1", "pgbench-8", "pgbench-32")
_EVENTSOURCING: Final = tuple(f"eventsourcing-{threads}" for threads in (1, 2, 4, 8, 16))
_REBUILDS: Final = ("rebuild-1", "rebuild-2")


@dataclass(frozen=True, slots=True)
class Target:
    """The rate of some contenders' best over that of others' best, and the least it should be."""

    name: str
    contenders: tuple[str, ...]
    over: tuple[str, ...]
    least: float


TARGETS: Final = (
    Target("1 asyncio caller / pgbench 1 client", ("asyncio-1",), ("pgbench-1",), 0.8),
    Target("64 asyncio callers / pgbench best", ("asyncio-64",), _PGBENCH, 1.4),
    Target("512 asyncio callers / pgbench best", ("asyncio-512",), _PGBENCH, 2.0),
    Target("64 threads / pgbench best", ("threads-64",), _PGBENCH, 1.0),
    Target("512 asyncio callers / COPY limit", ("asyncio-512",), ("copy",), 0.45),
    Target("lifecycle, 1 caller / eventsourcing 1 thread", ("asyncio-1",), ("eventsourcing-1",), 2.0),
    Target("lifecycle, 64 callers / eventsourcing best", ("asyncio-64",), _EVENTSOURCING, 10.0),
    Target("status reads, 64 callers / pgbench select by key, 8 clients", ("reads-64",), ("pgbench-reads-8",), 0.6),
    Target("status reads, 1 caller / pgbench select by key, 1 client", ("reads-1",), ("pgbench-reads-1",), 0.35),
    Target("throughput at 1 million commands / at 10 thousand", ("lives-at-1m",), ("lives-at-10k",), 0.85),
    Target("rebuild, end to end / COPY out", _REBUILDS, ("copy-out",), 0.8),
    Target("rebuild / eventsourcing decoding", _REBUILDS, ("eventsourcing-decoding",), 2.5),
    Target("rebuild, 2 workers / 1 worker", ("rebuild-2",), ("rebuild-1",), 1.1),
    Target("appends during a rebuild / alone", ("appends-during-rebuild",), ("appends-alone",), 0.5),
    Target("tailing projector / 64 asyncio callers", ("tailing",), ("asyncio-64",), 1.2),
)
