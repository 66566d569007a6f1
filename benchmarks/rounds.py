"""The run: prepared logs first, then rounds in which every contender is measured once, and what it wrote verified.

Why it is done so:

* Interleaved, every other round in reverse. What the machine does meanwhile befalls all contenders alike.
* A database of its own for every measurement, as a copy of one and the same small log. In a shared one, or one that is
  kept from round to round, the later a contender comes, the larger its tables and the more the dead rows and the
  autovacuum that others left behind. (The large logs are kept: to copy one takes long, a measurement hardly changes it;
  and a read model that was built is dropped with its bookkeeping, so that the next one is built from nothing.)
* A checkpoint before every measurement. So none falls into one (they are due every five minutes), nobody writes out
  what another one left in memory, and everybody's first change of a page costs a full image of it in the WAL.
* A rebuild is measured to its end, however long that takes; those that show how it grows are measured once.
* The copies are dropped before the next measurement, and the prepared logs vacuumed and analysed, so that the server
  has nothing of its own to do; so is the one that is kept, after each measurement that wrote to it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from benchmarks.contenders import Contender, Pace, Place
from benchmarks.copying import load, tidy
from benchmarks.disk import measure_disk
from benchmarks.disturbance import Watch
from benchmarks.life import EVENTS
from benchmarks.progress import Progress
from benchmarks.results import Audit, Results
from benchmarks.sample import Job, Sample
from benchmarks.server import EMPTY, Server
from registry import PostgresCommandRegistry

__all__ = ["estimate", "play"]

_OVERHEAD: Final = 0.8  # seconds, to copy, start, drop
_AUDITING: Final = 1.0  # seconds
_LOADING: Final = 20_000  # commands a second
_REBUILDING: Final = 10_000  # commands a second

_SIZED: Final = "asyncio-64"
"""Whose database tells of the size on disk."""


def estimate(contenders: Sequence[Contender], pace: Pace) -> float:
    """Guess how many seconds a run takes."""
    loading = sum(_loading(size, pace) for size in _sizes(contenders))
    return loading + sum(_measuring(each, pace) * (1 if each.once else pace.rounds) for each in contenders)


def _sizes(contenders: Sequence[Contender]) -> list[str]:
    return list(dict.fromkeys(each.size for each in contenders if each.place is not Place.EMPTY))


def _loading(size: str, pace: Pace) -> float:
    return 1.0 + pace.sizes[size].commands / _LOADING


def _measuring(contender: Contender, pace: Pace) -> float:
    seconds = pace.seconds + pace.warm_up + _OVERHEAD + (_AUDITING if contender.audited else 0.0)
    return seconds + (pace.sizes[contender.size].commands / _REBUILDING if contender.load == "rebuild" else 0.0)


def play(server: Server, contenders: Sequence[Contender], pace: Pace, progress: Progress) -> Results:
    """Measure the contenders.

    Raises:
        BenchmarkError: one of them failed.
    """
    run = _Run(server, pace, Results(contenders))
    for size in _sizes(contenders):
        with progress.step(
            "preparing", f"a log of {pace.sizes[size].commands:,} commands", _loading(size, pace)
        ) as advance:
            run.prepare(size, advance)
    for number in range(pace.rounds):
        taking_part = [each for each in contenders if number == 0 or not each.once]
        for contender in taking_part if number % 2 == 0 else reversed(taking_part):
            phase = f"round {number + 1} of {pace.rounds}"
            with progress.step(phase, contender.title, _measuring(contender, pace)):
                run.measure(contender, last=number == pace.rounds - 1)
    return run.results


class _Run:
    def __init__(self, server: Server, pace: Pace, results: Results) -> None:
        self._server, self._pace, self.results = server, pace, results
        self._prepared: dict[str, str] = {}

    def prepare(self, size: str, progress: Callable[[float], None]) -> None:
        log = self._pace.sizes[size]
        database = self._prepared[size] = self._server.create_registry()
        load(self._server.dsn(database), log.commands, lambda made: progress(made / log.commands), log.lived)

    def measure(self, contender: Contender, *, last: bool) -> None:
        with self._database(contender) as database:
            self._server.checkpoint()
            dsn = self._server.dsn(database)
            watch = Watch(self._server.postmaster)
            sample = contender.client(self._job(contender, dsn))
            self.results.add(contender, sample, watch.share())
            if contender.audited:
                self.results.audits.append(_audit(contender, dsn, self._before(contender), sample))
            if last and contender.name == _SIZED:
                self.results.disk = measure_disk(dsn)

    @contextmanager
    def _database(self, contender: Contender) -> Iterator[str]:
        if contender.place is Place.ITSELF:
            yield self._prepared[contender.size]
            if contender.writes:
                tidy(self._server.dsn(self._prepared[contender.size]))
            return
        database = self._server.create(EMPTY if contender.place is Place.EMPTY else self._prepared[contender.size])
        try:
            yield database
        finally:
            self._server.drop(database)

    def _job(self, contender: Contender, dsn: str) -> Job:
        return Job(
            dsn=dsn,
            load=contender.load,
            callers=contender.callers,
            seconds=self._pace.seconds,
            warm_up=self._pace.warm_up,
            commands=self._before(contender),
            postmaster=self._server.postmaster,
        )

    def _before(self, contender: Contender) -> int:
        """Give how many commands a contender finds."""
        return 0 if contender.place is Place.EMPTY else self._pace.sizes[contender.size].commands


def _audit(contender: Contender, dsn: str, commands: int, sample: Sample) -> Audit:
    """Verify a database with the registry's own means; and that it holds whatever was said to be written."""
    with PostgresCommandRegistry.open(dsn) as registry:
        report = registry.verify()
    problems = [str(problem) for problem in report.problems]
    least = commands * EVENTS + sample.work
    if report.events < least:
        problems.append(f"{report.events} events are there, and {least} were said to be written")
    return Audit(contender.name, report.events, tuple(problems))
