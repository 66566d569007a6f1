"""What became of a simulated day: read back from the registry when it is over, and verified."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime

from registry.audit import Report
from registry.cli.fleet.books import Books
from registry.cli.fleet.clock import SimulatedClock
from registry.cli.fleet.lines import DEPLOYMENTS
from registry.history import HistoryEntry
from registry.lifecycle import CommandState, is_terminal
from registry.models import CommandStatus, DeploymentModel, Instant, Model
from registry.postgres import AsyncPostgresCommandRegistry
from registry.protocol import AsyncCommandRegistry

__all__ = ["DeploymentDay", "Story", "Trail", "Verification", "read_back", "tell"]

AT_ONCE = 50


class DeploymentDay(Model):
    """A deployment, and how many of the day's commands were for it."""

    id: str
    name: str
    deployment_model: DeploymentModel
    targets: list[str]
    commands: int


class Trail(Model):
    """The audit trail of one command, and its status at a moment in the middle beside its present one.

    `then_by_time` is the status at the instant `at`, `then_by_version` that at the version in force at that instant.
    """

    command_id: str
    history: list[HistoryEntry]
    at: Instant
    version: int
    then_by_time: CommandStatus | None
    then_by_version: CommandStatus | None
    now: CommandStatus | None


class Verification(Model):
    """What the verification of the whole log read and found: this day's commands, and all others in the database."""

    ok: bool
    events: int
    commands: int
    rows: int
    problem_count: int
    problems: list[str]
    seconds: float


class Story(Model):
    """A day of the fleet. All figures but those of the verification are of this run only.

    `calls` counts the calls of the registry that made the day, and `seconds` the time they took. `answers` says how
    often the registry gave which answer. `contradictions`: where what it stores is not what it had answered.
    """

    seed: int
    day_from: Instant
    day_to: Instant
    commands: int
    in_flight: int
    states: dict[CommandState, int]
    attempts: dict[int, int]
    redelivered: int
    deployments: list[DeploymentDay]
    calls: int
    seconds: float
    calls_per_second: float
    answers: dict[str, int]
    trail: Trail
    verification: Verification
    contradictions: list[str]

    @property
    def holds(self) -> bool:
        """Whether the log is as it was written, and what is stored is what was answered."""
        return self.verification.ok and not self.contradictions


async def read_back(registry: AsyncCommandRegistry, books: Books) -> list[CommandStatus]:
    """Read the day's commands, in the order of their fates."""
    ids = [command_id for _, command_id in sorted(books.commands.items())]
    statuses: list[CommandStatus | None] = []
    for first in range(0, len(ids), AT_ONCE):
        statuses += await asyncio.gather(*map(registry.get_command_status, ids[first : first + AT_ONCE]))
    return [status for status in statuses if status is not None]


async def tell(
    registry: AsyncPostgresCommandRegistry,
    clock: SimulatedClock,
    books: Books,
    *,
    seed: int,
    seconds: float,
    progress: Callable[[int], None] = lambda _: None,
) -> Story:
    """Tell the story of a day that took so many seconds; `progress` is told how many more events were verified."""
    statuses = await read_back(registry, books)
    attempts = Counter(status.attempt for status in statuses)
    states = Counter(status.state for status in statuses)
    return Story(
        seed=seed,
        day_from=clock.start,
        day_to=clock.end,
        commands=len(statuses),
        in_flight=sum(count for state, count in states.items() if not is_terminal(state)),
        states={state: states[state] for state in CommandState},
        attempts=dict(sorted(attempts.items())),
        redelivered=sum(count for attempt, count in attempts.items() if attempt > 1),
        deployments=_deployments(statuses),
        calls=books.tally.calls,
        seconds=seconds,
        calls_per_second=books.tally.calls / seconds,
        answers=books.tally.answers(),
        trail=await _trail(registry, _most_eventful(statuses)),
        verification=await _verify(registry, progress),
        contradictions=books.contradictions(statuses),
    )


def _deployments(statuses: list[CommandStatus]) -> list[DeploymentDay]:
    commands = Counter(status.deployment_id for status in statuses)
    return [
        DeploymentDay(
            id=deployment.id,
            name=deployment.name,
            deployment_model=deployment.deployment_model,
            targets=[target.resource_id for target in deployment.targets or ()],
            commands=commands[deployment.id],
        )
        for deployment in DEPLOYMENTS
    ]


def _most_eventful(statuses: list[CommandStatus]) -> str:
    """Choose the command with the most attempts, and of those the one with the most events."""
    return max(statuses, key=lambda status: (status.attempt, status.version)).command_id


async def _trail(registry: AsyncCommandRegistry, command_id: str) -> Trail:
    history = await registry.history(command_id)
    version, at = _middle(history)
    return Trail(
        command_id=command_id,
        history=history,
        at=at,
        version=version,
        then_by_time=await registry.status_at(command_id, at=at),
        then_by_version=await registry.status_at(command_id, version=version),
        now=await registry.get_command_status(command_id),
    )


def _middle(history: list[HistoryEntry]) -> tuple[int, datetime]:
    """Find the version in the middle, and an instant at which it was the last one: halfway to the next."""
    before = history[(len(history) - 1) // 2]
    after = history[min(before.version, len(history) - 1)]
    return before.version, before.occurred_at + (after.occurred_at - before.occurred_at) / 2


async def _verify(registry: AsyncPostgresCommandRegistry, progress: Callable[[int], None]) -> Verification:
    began = time.perf_counter()
    report: Report = await registry.verify(progress)
    return Verification(
        ok=report.ok,
        events=report.events,
        commands=report.streams,
        rows=report.rows,
        problem_count=report.problem_count,
        problems=[str(problem) for problem in report.problems],
        seconds=time.perf_counter() - began,
    )
