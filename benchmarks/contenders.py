"""Who takes part: each contender with what it does, how many callers it has, and where it writes or reads."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple, TypeAlias

from benchmarks import pgbench, processes
from benchmarks.life import Life, life, retried_life
from benchmarks.sample import Job, Sample

__all__ = ["FULL", "QUICK", "Client", "Contender", "Group", "Log", "Pace", "Place", "chosen", "contenders"]

START: Final = "start"
"""The log that every contender begins with: small, but not empty, so that the server knows what its tables are like."""

_REGISTRY: Final = partial(processes.run_client, "client")
_REBUILDING: Final = partial(processes.run_client, "rebuilding")
_COPYING: Final = partial(processes.run_client, "copying")
_PACKAGE: Final = partial(processes.run_client, "eventsourcing_client")

Client: TypeAlias = Callable[[Job], Sample]
"""Does a job in a process of its own, and tells what came of it."""


class Group(StrEnum):
    """What a contender is measured for, as the report has it."""

    LIVES = "Lifecycles: create, dispatch, complete (events a second)"
    READS = "Status reads by key (reads a second)"
    MODELS = "Read models, over a log of 1 million events (events a second)"
    GROWTH = "The same in logs of growing size (events, or reads, a second)"


class Place(StrEnum):
    """Where a contender is let loose."""

    COPY = "a copy of a prepared log, dropped after each measurement"
    ITSELF = "a prepared log, which is kept"
    EMPTY = "an empty database, dropped after each measurement"


@dataclass(frozen=True, slots=True)
class Contender:
    """One of those that are measured.

    `size`: which prepared log it needs. `audited`: what it wrote is verified after each measurement. `once`: it takes
    so long that it is measured in the first round only.
    """

    name: str
    title: str
    group: Group
    client: Client
    load: str
    callers: int
    size: str = START
    place: Place = Place.COPY
    audited: bool = False
    once: bool = False

    @property
    def writes(self) -> bool:
        """Whether it writes, and does not just read."""
        return self.load not in {"reads", "copy-out"}

    @property
    def appends(self) -> bool:
        """Whether it lets the registry append."""
        return self.load in {"asyncio", "threads", "append"}


class Log(NamedTuple):
    """A prepared log: how many commands, and the life that each of them has had."""

    commands: int
    lived: Life = life


@dataclass(frozen=True, slots=True)
class Pace:
    """How long it all takes: rounds, seconds of a measurement and of its warm-up, and the prepared logs."""

    rounds: int
    seconds: float
    warm_up: float
    sizes: Mapping[str, Log]

    @property
    def quick(self) -> bool:
        """Whether the logs are smaller than they are called."""
        return self.sizes != FULL.sizes


def _logs(start: int, lived: Sequence[int], retried: Sequence[int]) -> Mapping[str, Log]:
    """Name the logs: after their commands, or their events where each command has had four of them."""
    logs = {START: Log(start)}
    logs |= {name: Log(commands) for name, commands in zip(("10k", "100k", "1m"), lived, strict=True)}
    events = ("100k-events", "1m-events", "5m-events")
    return MappingProxyType(
        logs | {name: Log(commands, retried_life) for name, commands in zip(events, retried, strict=True)}
    )


FULL: Final = Pace(
    rounds=5,
    seconds=2.0,
    warm_up=0.7,
    sizes=_logs(1_000, (10_000, 100_000, 1_000_000), (25_000, 250_000, 1_250_000)),
)
QUICK: Final = Pace(
    rounds=1,
    seconds=0.3,
    warm_up=0.1,
    sizes=_logs(100, (200, 400, 800), (100, 200, 400)),
)
"""To see that everything works; its figures mean nothing."""


def contenders(program: Path | None, *, growth: bool) -> Iterator[Contender]:
    """Give all that can take part here, in the order of a round. `program`: pgbench, if there is one."""
    yield from _registry_lives()
    if program:
        yield from _pgbench_lives(program)
    yield from _limit()
    if package := find_spec("eventsourcing") is not None:
        yield from _eventsourcing()
    yield from _registry_reads()
    if program:
        yield from _pgbench_reads(program)
    yield from _limit_of_reading()
    if package:
        yield from _eventsourcing_decoding()
    yield from _read_models()
    if growth:
        yield from _growth()


def chosen(all_of_them: Sequence[Contender], patterns: Sequence[str]) -> list[Contender]:
    """Choose those whose name matches one of the patterns; all when there is no pattern."""
    return [each for each in all_of_them if not patterns or any(fnmatchcase(each.name, one) for one in patterns)]


def _registry_lives() -> Iterator[Contender]:
    for load, caller, numbers in (("asyncio", "asyncio caller", (1, 8, 64, 512)), ("threads", "thread", (1, 8, 64))):
        for callers in numbers:
            title = f"this registry, {_count(callers, caller)}"
            yield Contender(f"{load}-{callers}", title, Group.LIVES, _REGISTRY, load, callers, audited=True)


def _pgbench_lives(program: Path) -> Iterator[Contender]:
    for callers in (1, 8, 32):
        title, client = f"pgbench, {_count(callers, 'client')}", partial(pgbench.measure, program)
        yield Contender(f"pgbench-{callers}", title, Group.LIVES, client, "lives", callers)


def _limit() -> Iterator[Contender]:
    yield Contender("copy", "COPY, 1 connection (a call: 3,000 events)", Group.LIVES, _COPYING, "copy", 1)


def _eventsourcing() -> Iterator[Contender]:
    for callers in (1, 2, 4, 8, 16):
        title = f"eventsourcing, {_count(callers, 'thread')}"
        yield Contender(f"eventsourcing-{callers}", title, Group.LIVES, _PACKAGE, "lives", callers, place=Place.EMPTY)


def _registry_reads() -> Iterator[Contender]:
    for callers in (1, 64):
        title = f"this registry, {_count(callers, 'asyncio caller')}"
        yield Contender(f"reads-{callers}", title, Group.READS, _REGISTRY, "reads", callers, "10k", Place.ITSELF)


def _pgbench_reads(program: Path) -> Iterator[Contender]:
    for callers in (1, 8):
        title, client = f"pgbench select by key, {_count(callers, 'client')}", partial(pgbench.measure, program)
        yield Contender(f"pgbench-reads-{callers}", title, Group.READS, client, "reads", callers, "10k", Place.ITSELF)


def _limit_of_reading() -> Iterator[Contender]:
    name, title = "copy-out", "COPY of the log to the client (a call: all of it)"
    yield Contender(name, title, Group.MODELS, _COPYING, name, 1, "1m-events", Place.ITSELF)


def _eventsourcing_decoding() -> Iterator[Contender]:
    name, title, client = "eventsourcing-decoding", "eventsourcing, decoding its log (a call: 1,000 events)", _PACKAGE
    yield Contender(name, title, Group.MODELS, client, "decode", 1, place=Place.EMPTY)


def _read_models() -> Iterator[Contender]:
    model = partial(Contender, group=Group.MODELS, size="1m-events", place=Place.ITSELF)
    for workers in (1, 2):
        title = f"rebuild, {_count(workers, 'worker')} (a call: all of it)"
        yield model(f"rebuild-{workers}", title, client=_REBUILDING, load="rebuild", callers=workers)
    yield model("tailing", "projector that follows a backlog", client=_REBUILDING, load="follow", callers=1)
    title = "appends, 64 asyncio callers"
    yield model("appends-alone", title, client=_REGISTRY, load="asyncio", callers=64)
    title = f"{title}, during a rebuild"
    yield model("appends-during-rebuild", title, client=_REBUILDING, load="append", callers=64)


def _growth() -> Iterator[Contender]:
    for size, words in (("10k", "10 thousand"), ("100k", "100 thousand"), ("1m", "1 million")):
        title, place = f"{words} commands, lifecycles, 64 asyncio callers", Place.ITSELF if size == "1m" else Place.COPY
        audited = size == "10k"  # of the larger ones that takes minutes
        yield Contender(f"lives-at-{size}", title, Group.GROWTH, _REGISTRY, "asyncio", 64, size, place, audited)
        title = f"{words} commands, status reads, 64 asyncio callers"
        yield Contender(f"reads-at-{size}", title, Group.GROWTH, _REGISTRY, "reads", 64, size, Place.ITSELF)
    for size, words in (("100k", "100 thousand"), ("1m", "1 million"), ("5m", "5 million")):
        rebuild = partial(Contender, client=_REBUILDING, load="rebuild", callers=1, place=Place.ITSELF, once=True)
        title = f"{words} events, rebuild, 1 worker (a call: all of it)"
        yield rebuild(f"rebuild-at-{size}", title, Group.GROWTH, size=f"{size}-events")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
