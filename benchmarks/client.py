"""This registry under load: callers in asyncio, or in threads, that share one registry. A process of its own."""

import asyncio
import random
import time
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Final, TypeAlias

from benchmarks.errors import BenchmarkError
from benchmarks.life import COMMAND, CONTEXT, DEPLOYMENT, LEASE, REQUEST_SIZE, RESPONSE_SIZE, command_id
from benchmarks.sample import Job, Sample, Window, serve
from registry import AsyncPostgresCommandRegistry, CommandState, PostgresCommandRegistry

__all__ = ["LOADS"]

AsyncCaller: TypeAlias = Callable[[AsyncPostgresCommandRegistry, Window, int], Coroutine[None, None, None]]
Caller: TypeAlias = Callable[[PostgresCommandRegistry, Window, int], None]


async def _live_async(registry: AsyncPostgresCommandRegistry, window: Window, _commands: int) -> None:
    while window.open:
        began, now = time.perf_counter(), datetime.now(UTC)
        created = await registry.create_command(
            DEPLOYMENT, COMMAND, deadline=now + LEASE, request_size_bytes=REQUEST_SIZE, context=CONTEXT
        )
        command, began = created.command_id, window.note(began)
        _check(await registry.mark_dispatched_if_not_terminal(command, datetime.now(UTC), context=CONTEXT), command)
        began, now = window.note(began), datetime.now(UTC)
        won = await registry.complete_command(command, CommandState.SUCCEEDED, now, RESPONSE_SIZE, context=CONTEXT)
        window.note(began)
        _check(won, command)


def _live(registry: PostgresCommandRegistry, window: Window, _commands: int) -> None:
    while window.open:
        began, now = time.perf_counter(), datetime.now(UTC)
        created = registry.create_command(
            DEPLOYMENT, COMMAND, deadline=now + LEASE, request_size_bytes=REQUEST_SIZE, context=CONTEXT
        )
        command, began = created.command_id, window.note(began)
        _check(registry.mark_dispatched_if_not_terminal(command, datetime.now(UTC), context=CONTEXT), command)
        began, now = window.note(began), datetime.now(UTC)
        won = registry.complete_command(command, CommandState.SUCCEEDED, now, RESPONSE_SIZE, context=CONTEXT)
        window.note(began)
        _check(won, command)


async def _read_async(registry: AsyncPostgresCommandRegistry, window: Window, commands: int) -> None:
    while window.open:
        command = command_id(random.randrange(commands))
        began = time.perf_counter()
        status = await registry.get_command_status(command)
        window.note(began)
        _check(status is not None, command)


def _check(right: bool, command: str) -> None:
    if not right:
        raise BenchmarkError(f"the registry answered wrongly for {command}")


def _in_tasks(caller: AsyncCaller) -> Callable[[Job], Sample]:
    return lambda job: asyncio.run(_call_in_tasks(caller, job))


async def _call_in_tasks(caller: AsyncCaller, job: Job) -> Sample:
    window = Window(job.postmaster)
    async with AsyncPostgresCommandRegistry.open(job.dsn) as registry, asyncio.TaskGroup() as tasks:
        for _ in range(job.callers):
            tasks.create_task(caller(registry, window, job.commands))
        await asyncio.sleep(job.warm_up)
        window.begin()
        await asyncio.sleep(job.seconds)
        return window.end()


def _in_threads(caller: Caller) -> Callable[[Job], Sample]:
    return lambda job: _call_in_threads(caller, job)


def _call_in_threads(caller: Caller, job: Job) -> Sample:
    window = Window(job.postmaster)
    with PostgresCommandRegistry.open(job.dsn) as registry, ThreadPoolExecutor(job.callers) as threads:
        calling = [threads.submit(caller, registry, window, job.commands) for _ in range(job.callers)]
        time.sleep(job.warm_up)
        window.begin()
        time.sleep(job.seconds)
        sample = window.end()
        for each in calling:
            each.result()
    return sample


LOADS: Final[Mapping[str, Callable[[Job], Sample]]] = MappingProxyType(
    {
        "asyncio": _in_tasks(_live_async),
        "threads": _in_threads(_live),
        "reads": _in_tasks(_read_async),
    }
)
"""What this client can do, by name: lives of commands from tasks and from threads, and reads from tasks."""


if __name__ == "__main__":
    serve(LOADS)
