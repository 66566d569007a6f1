"""The command server of the simulated fleet. It keeps what the registry does not: queues, and leases."""

import secrets
from collections import defaultdict
from collections.abc import Awaitable
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from typing import Final, TypeVar

from registry.cli.fleet.books import Books
from registry.cli.fleet.clock import SimulatedClock, together
from registry.cli.fleet.fates import LEASE, Fate
from registry.cli.fleet.lines import Line
from registry.errors import TargetAmbiguous
from registry.lifecycle import CommandState
from registry.models import CommandEnvelopeData, CommandMetadata, DeploymentModel, EventContext
from registry.protocol import AsyncCommandRegistry

__all__ = ["CommandServer", "Job"]

T = TypeVar("T")

SERVER: Final = "server"
REAPER: Final = "reaper"
SWEEPER: Final = "sweeper"


@dataclass(frozen=True, slots=True, order=True)
class Job:
    """A command that is to be delivered, from a step on."""

    since: int
    index: int
    fate: Fate = field(compare=False)
    metadata: CommandMetadata = field(compare=False)
    trace_id: str = field(compare=False)

    @property
    def command_id(self) -> str:
        """The command's id."""
        return self.metadata.command_id


class CommandServer:
    """A command server that embeds the registry, and does what its workers ask for."""

    def __init__(self, registry: AsyncCommandRegistry, clock: SimulatedClock) -> None:
        self.books = Books()
        self.run = secrets.token_hex(3)
        self._registry = registry
        self._clock = clock
        self._requests = 0
        self._queues: defaultdict[Line, list[Job]] = defaultdict(list)
        self._leases: dict[str, tuple[int, Job]] = {}

    async def create(self, fate: Fate) -> Job:
        """Create a command, and deliver it, unless its parameters are still to come."""
        trace_id = secrets.token_hex(16)
        if fate.target_forgotten:
            await self._create_without_target(fate, trace_id)
        answers: list[CommandMetadata] = []
        await together(*(self._create(fate, trace_id, answers) for _ in range(1 + fate.sent_twice)))
        self.books.created(fate.index, [answer.command_id for answer in answers])
        job = Job(self._clock.step, fate.index, fate, answers[0], trace_id)
        if fate.upload == 0:
            self._enqueue(job)
        return job

    async def _create(self, fate: Fate, trace_id: str, answers: list[CommandMetadata]) -> None:
        call = self._registry.create_command(
            fate.line.deployment_id,
            fate.command_name,
            CommandState.PENDING if fate.upload == 0 else CommandState.PENDING_UPLOAD,
            None if fate.deadline is None else self._clock.at(fate.created + fate.deadline),
            fate.request_size_bytes,
            idempotency_key=f"demo/{self.run}/{fate.index}",
            target=fate.line.target,
            context=self._context(SERVER, trace_id),
        )
        answers.append(await self._counted(call))

    async def _create_without_target(self, fate: Fate, trace_id: str) -> None:
        context = self._context(SERVER, trace_id)
        try:
            await self._counted(
                self._registry.create_command(fate.line.deployment_id, fate.command_name, context=context)
            )
        except TargetAmbiguous:
            self.books.tally.creations_refused += 1

    async def uploaded(self, job: Job) -> None:
        """Deliver a command whose parameters have come."""
        context = self._context(SERVER, job.trace_id)
        if await self._counted(
            self._registry.update_command_state(job.command_id, CommandState.PENDING, context=context)
        ):
            self.books.tally.uploads += 1
            self._enqueue(job)

    def take(self, line: Line) -> Job | None:
        """Take the job of a line that has waited longest; what was queued in this very step is not seen yet."""
        queue = self._queues[line]
        return heappop(queue) if queue and queue[0].since <= self._clock.step else None

    async def dispatch(self, job: Job, worker: str) -> CommandEnvelopeData | None:
        """Hand a command to a worker: a worker that pulls leased it, to another it is pushed. None when it is over."""
        envelope = await self._counted(self._registry.get_command_metadata(job.command_id))
        actor = SERVER if job.metadata.delivery_mode is DeploymentModel.PUSH else worker
        dispatched = await self._counted(
            self._registry.mark_dispatched_if_not_terminal(
                job.command_id, self._clock(), context=self._context(actor, job.trace_id)
            )
        )
        if not dispatched:
            self.books.tally.dispatches_refused += 1
            return None
        self.books.tally.dispatches += 1
        self._leases[job.command_id] = (self._clock.step + LEASE, job)
        return envelope

    async def respond(self, job: Job, worker: str) -> None:
        """Take a worker's response: the first one to a command counts."""
        self._leases.pop(job.command_id, None)
        await self._counted(self._registry.get_command_access_context(job.command_id))
        fate = job.fate
        accepted = await self._counted(
            self._registry.complete_command(
                job.command_id,
                fate.result,
                self._clock(),
                fate.response_size_bytes,
                fate.error,
                context=self._context(worker, job.trace_id),
            )
        )
        if accepted:
            self.books.tally.responses_accepted += 1
            self.books.endings[job.command_id].append(fate.result)
        else:
            self.books.tally.responses_refused += 1

    async def release(self, job: Job, worker: str) -> None:
        """Let a worker give its lease back, and deliver the command again."""
        self._leases.pop(job.command_id, None)
        if await self._redeliver(job, worker):
            self.books.tally.releases += 1

    async def reap(self) -> None:
        """Deliver the commands again whose leases are over."""
        over = [job for until, job in self._leases.values() if until <= self._clock.step]
        for job in over:
            del self._leases[job.command_id]
        await together(*(self._reap(job) for job in over))

    async def _reap(self, job: Job) -> None:
        if await self._redeliver(job, REAPER):
            self.books.tally.leases_expired += 1

    async def _redeliver(self, job: Job, actor: str) -> bool:
        context = self._context(actor, job.trace_id)
        if not await self._counted(
            self._registry.update_command_state(job.command_id, CommandState.PENDING, context=context)
        ):
            return False
        await self._counted(self._registry.increment_attempt(job.command_id, context=context))
        self._enqueue(job)
        return True

    async def sweep(self) -> None:
        """Let the commands expire whose deadlines have passed: whoever's they are, as any sweeper does."""
        expired = await self._counted(self._registry.expire_overdue(context=self._context(SWEEPER)))
        for command_id in expired:
            if command_id in self.books.endings:
                self.books.tally.expired += 1
                self.books.endings[command_id].append(CommandState.EXPIRED)
            else:
                self.books.tally.expired_for_others += 1

    def _enqueue(self, job: Job) -> None:
        heappush(self._queues[job.fate.line], replace(job, since=self._clock.step + 1))

    def _context(self, actor: str, trace_id: str | None = None) -> EventContext:
        self._requests += 1
        return EventContext(
            actor=actor,
            request_id=f"{self.run}-{self._requests}",
            traceparent=f"00-{trace_id or secrets.token_hex(16)}-{secrets.token_hex(8)}-01",
            attributes={"demo_run": self.run},
        )

    async def _counted(self, call: Awaitable[T]) -> T:
        self.books.tally.calls += 1
        return await call
