"""`command-registry demo`: a simulated day of a fleet, on a real registry; then the proof that its record holds."""

import asyncio
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from eventstore.database import Pooler
from registry.cli.demo_report import print_story
from registry.cli.fleet.books import Books
from registry.cli.fleet.clock import SimulatedClock
from registry.cli.fleet.day import live_through
from registry.cli.fleet.fates import deal
from registry.cli.fleet.lines import DEPLOYMENTS
from registry.cli.fleet.story import Story, tell
from registry.errors import InvalidCommand
from registry.postgres import AsyncPostgresCommandRegistry

__all__ = ["MAX_COMMANDS", "MAX_SEED", "run_demo"]

MAX_COMMANDS: Final = 100_000
MAX_SEED: Final = 2**63 - 1
NEW_SEEDS: Final = 1_000_000


def run_demo(
    dsn: str | None,
    *,
    pooler: Pooler | None = None,
    commands: int,
    seed: int | None,
    as_json: bool,
    console: Console,
) -> bool:
    """Let a fleet live through a day, print what became of it, and tell whether the verification holds.

    Without a DSN it happens in the embedded Postgres. `pooler`: what the DSN leads through. What it writes stays in the
    log, under deployments whose ids begin with `dep_demo_`. `seed`: 0 or more; the same seed deals the same fates
    (default: a new one).

    Raises:
        InvalidCommand: `commands` is not in 1..100,000, or `seed` not in 0..2**63-1.
        SchemaMismatch, Unavailable, EmbeddedPostgresError: as opening a registry does.
    """
    if not 1 <= commands <= MAX_COMMANDS:
        raise InvalidCommand("commands", f"must be in 1..{MAX_COMMANDS}, not {commands}")
    if seed is not None and not 0 <= seed <= MAX_SEED:
        raise InvalidCommand("seed", f"must be in 0..{MAX_SEED}, not {seed}")
    chosen = secrets.randbelow(NEW_SEEDS) if seed is None else seed
    with _progress(console, commands, shown=console.is_terminal and not as_json) as watching:
        story = asyncio.run(_live_and_tell(dsn, pooler, commands, chosen, watching))
    if as_json:
        console.print_json(story.model_dump_json(), indent=2 if console.is_terminal else None)
    else:
        print_story(story, console)
    return story.holds


async def _live_and_tell(
    dsn: str | None, pooler: Pooler | None, commands: int, seed: int, watching: "_Watching"
) -> Story:
    # The day ends now: so no deadline is taken for past that is not, whosever command it is.
    clock = SimulatedClock(datetime.now(UTC).replace(second=0, microsecond=0), seed)
    async with AsyncPostgresCommandRegistry.open(dsn, deployments="table", pooler=pooler, clock=clock) as registry:
        for deployment in DEPLOYMENTS:
            await registry.deployment_table.put(deployment)
        watching.begin(clock)
        began = time.perf_counter()
        books = await live_through(registry, clock, deal(commands, seed), watching.day)
        seconds = time.perf_counter() - began
        watching.verification()
        return await tell(registry, clock, books, seed=seed, seconds=seconds, progress=watching.verified)


@dataclass(slots=True)
class _Watching:
    """The progress bar: of the commands that ended, then of the events that were verified."""

    progress: Progress
    task: TaskID
    clock: SimulatedClock | None = None

    def begin(self, clock: SimulatedClock) -> None:
        self.clock = clock

    def day(self, books: Books) -> None:
        time_of_day = "" if self.clock is None else f"{self.clock():%H:%M} UTC, {books.tally.calls} calls"
        self.progress.update(self.task, completed=books.finished(), description=time_of_day)

    def verification(self) -> None:
        self.progress.reset(self.task, total=None, description="Verifying the log")

    def verified(self, events: int) -> None:
        self.progress.advance(self.task, events)


@contextmanager
def _progress(console: Console, commands: int, *, shown: bool) -> Iterator[_Watching]:
    bar = BarColumn(bar_width=max(5, min(40, console.width - 45)))  # the rest takes about 45 columns
    columns = (TextColumn("{task.description}"), bar, MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not shown) as progress:
        yield _Watching(progress, progress.add_task("Opening the registry", total=commands))
