"""A day of the simulated fleet: everybody who acts in it."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Never

from registry.cli.fleet.books import Books
from registry.cli.fleet.clock import SimulatedClock, together
from registry.cli.fleet.fates import Ending, Fate
from registry.cli.fleet.lines import LINES, Line
from registry.cli.fleet.server import CommandServer, Job
from registry.protocol import AsyncCommandRegistry

__all__ = ["live_through"]


async def live_through(
    registry: AsyncCommandRegistry,
    clock: SimulatedClock,
    fates: Sequence[Fate],
    watch: Callable[[Books], None] = lambda _: None,
) -> Books:
    """Let the fleet live through a day, on a registry that goes by the clock; `watch` sees the books at each step.

    Every figure in the books is counted from the registry's answers. The same fates end the same way, but for what
    concurrency decides: which worker gets which command, and which of two calls in one step comes first.
    """
    server = CommandServer(registry, clock)
    workers = [_worker(server, clock, line, name) for line in LINES for name in line.workers(len(fates))]
    try:
        await clock.run(
            _clients(server, clock, fates), _reaper(server, clock), _sweeper(server, clock, watch), *workers
        )
    except BaseExceptionGroup as failures:
        failure = _first(failures)
        raise failure from failure.__cause__
    return server.books


def _first(failure: BaseException) -> BaseException:
    return _first(failure.exceptions[0]) if isinstance(failure, BaseExceptionGroup) else failure


async def _clients(server: CommandServer, clock: SimulatedClock, fates: Sequence[Fate]) -> Never:
    """Ask for commands, and upload their parameters."""
    creations: defaultdict[int, list[Fate]] = defaultdict(list)
    for fate in fates:
        creations[fate.created].append(fate)
    uploads: defaultdict[int, list[Job]] = defaultdict(list)

    async def create(fate: Fate) -> None:
        job = await server.create(fate)
        if fate.upload:
            uploads[clock.step + fate.upload].append(job)

    while True:
        await together(*map(create, creations[clock.step]), *map(server.uploaded, uploads[clock.step]))
        await clock.sleep()


async def _worker(server: CommandServer, clock: SimulatedClock, line: Line, name: str) -> Never:
    """Work on one command after the other."""
    while True:
        job = server.take(line)
        if job is None:
            await clock.sleep()
        else:
            await _attempt(server, clock, job, name)


async def _attempt(server: CommandServer, clock: SimulatedClock, job: Job, worker: str) -> None:
    envelope = await server.dispatch(job, worker)
    if envelope is None:
        return
    attempt = job.fate.attempt(envelope.attempt)
    await clock.sleep(attempt.steps)
    match attempt.ending:
        case Ending.ANSWERED | Ending.LATE:
            await server.respond(job, worker)
        case Ending.ANSWERED_TWICE:
            await together(server.respond(job, worker), server.respond(job, worker))
        case Ending.RELEASED:
            await server.release(job, worker)
        case Ending.CRASHED:
            pass


async def _reaper(server: CommandServer, clock: SimulatedClock) -> Never:
    """Have commands delivered again whose leases are over."""
    while True:
        await server.reap()
        await clock.sleep()


async def _sweeper(server: CommandServer, clock: SimulatedClock, watch: Callable[[Books], None]) -> Never:
    """Let commands expire."""
    while True:
        await server.sweep()
        watch(server.books)
        await clock.sleep()
