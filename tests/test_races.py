"""Many callers at once: each call is whole, and each answer is true."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from threading import Barrier
from typing import Any, TypeVar

import psycopg

from eventstore.steps import Plan, Step
from registry import (
    AsyncPostgresCommandRegistry,
    CommandState,
    IdempotencyConflict,
    MemoryCommandRegistry,
    PostgresCommandRegistry,
    decider,
)
from registry.calls import utc_now
from registry.models import StateUpdate
from registry.writing import States, Write, write_all

NOW = datetime(2026, 11, 24, 10, 0, tzinfo=UTC)
T = TypeVar("T")


def all_at_once(call: Callable[[int], T], callers: int) -> list[T]:
    """Call from that many threads, none before all are there."""
    barrier = Barrier(callers)

    def caller(number: int) -> T:
        barrier.wait()
        return call(number)

    with ThreadPoolExecutor(callers) as pool:
        return list(pool.map(caller, range(callers)))


def complete(command_id: str, state: CommandState) -> Plan[bool]:
    decide = decider.complete(StateUpdate(state=state, completed_at=NOW))
    write = Write(command_id, decide, "{}")
    yield from write_all([write], States(), utc_now)
    return write.result()


def to_its_append(connection: psycopg.Connection[Any], plan: Plan[Any]) -> Step:
    """Run a plan until it is about to write."""
    step = next(plan)
    while not step.writes:
        step = plan.send(connection.cursor().execute(step.sql, step.params, binary=True).fetchall())
    return step


def test_of_two_completions_stepped_to_the_same_moment_exactly_one_wins(
    dsn: str, connection: psycopg.Connection[Any]
) -> None:
    with PostgresCommandRegistry.open(dsn) as registry:
        command_id = registry.create_command("dep_1", "x").command_id
        slow = complete(command_id, CommandState.FAILED)
        step = to_its_append(connection, slow)
        # The slow one has decided on what it saw; now the other comes first.
        assert registry.complete_command(command_id, CommandState.SUCCEEDED, NOW) is True

        def rest() -> Plan[bool]:
            try:
                sent = yield step
            except Exception as refused:
                pending = slow.throw(refused)
            else:
                pending = slow.send(sent)
            while True:
                try:
                    pending = slow.send((yield pending))
                except StopIteration as stop:
                    return bool(stop.value)

        assert registry.database.run(rest()) is False
        status = registry.get_command_status(command_id)
        assert status is not None
        assert (status.state, status.version) == (CommandState.SUCCEEDED, 2)
        assert registry.verify().ok


def test_of_many_racing_completions_exactly_one_is_told_true(dsn: str) -> None:
    states = [CommandState.SUCCEEDED, CommandState.FAILED, CommandState.EXPIRED]
    with PostgresCommandRegistry.open(dsn) as registry:
        for _ in range(5):
            command_id = registry.create_command("dep_1", "x", CommandState.DISPATCHED).command_id

            def call(number: int, command_id: str = command_id) -> bool:
                return registry.complete_command(command_id, states[number % 3], NOW, number)

            answers = all_at_once(call, 16)
            assert answers.count(True) == 1
            status = registry.get_command_status(command_id)
            assert status is not None
            assert status.response_size_bytes == answers.index(True)
        assert registry.verify().ok


def test_one_key_from_many_callers_makes_one_command(dsn: str) -> None:
    with PostgresCommandRegistry.open(dsn) as registry:
        for round_number in range(5):
            key = f"key-{round_number}"
            made = all_at_once(lambda _, key=key: registry.create_command("dep_1", "x", idempotency_key=key), 16)  # type: ignore[misc]
            assert len({created.command_id for created in made}) == 1
        report = registry.verify()
    assert (report.ok, report.events, report.rows) == (True, 5, 5)


def test_one_key_in_memory_from_many_callers_makes_one_command() -> None:
    registry = MemoryCommandRegistry()
    made = all_at_once(lambda _: registry.create_command("dep_1", "x", idempotency_key="key"), 16)
    assert len({created.command_id for created in made}) == 1


def test_one_key_with_different_arguments_from_many_callers_makes_one_command(dsn: str) -> None:
    with PostgresCommandRegistry.open(dsn) as registry:

        def call(number: int) -> str | None:
            try:
                return registry.create_command(f"dep_{number}", "x", idempotency_key="key").command_id
            except IdempotencyConflict:
                return None

        made = all_at_once(call, 16)
        assert len([command_id for command_id in made if command_id]) == 1
        assert registry.verify().events == 1


async def test_many_tasks_incrementing_one_command_get_distinct_numbers(dsn: str) -> None:
    async with AsyncPostgresCommandRegistry.open(dsn) as registry:
        command_id = (await registry.create_command("dep_1", "x")).command_id
        numbers = await asyncio.gather(*(registry.increment_attempt(command_id) for _ in range(50)))
        assert sorted(numbers) == list(range(2, 52))
        assert (await registry.verify()).ok


INCREMENT = """
import json, sys
from concurrent.futures import ThreadPoolExecutor
from registry import PostgresCommandRegistry
dsn, command_id, calls = sys.argv[1], sys.argv[2], int(sys.argv[3])
with PostgresCommandRegistry.open(dsn) as registry, ThreadPoolExecutor(5) as pool:
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(list(pool.map(lambda _: registry.increment_attempt(command_id), range(calls)))))
"""


def test_200_increments_from_four_processes_give_200_distinct_numbers(dsn: str) -> None:
    with PostgresCommandRegistry.open(dsn) as registry:
        command_id = registry.create_command("dep_1", "x").command_id
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", INCREMENT, dsn, command_id, "50"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(4)
        ]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        numbers: list[int] = []
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in processes:
            output, _ = process.communicate(timeout=120)
            assert process.returncode == 0
            numbers += json.loads(output)
        assert sorted(numbers) == list(range(2, 202))
        report = registry.verify()
    assert (report.ok, report.events) == (True, 201)


def test_sweepers_at_once_expire_each_command_once(dsn: str) -> None:
    with PostgresCommandRegistry.open(dsn) as registry:
        overdue = {registry.create_command("dep_1", "x", deadline=NOW).command_id for _ in range(20)}
        expired = all_at_once(lambda _: registry.expire_overdue(NOW), 4)
        assert sorted(command_id for sweep in expired for command_id in sweep) == sorted(overdue)
        report = registry.verify()
    assert (report.ok, report.events) == (True, 40)


async def test_a_cancelled_caller_leaves_its_call_whole_or_not_made(dsn: str) -> None:
    async with AsyncPostgresCommandRegistry.open(dsn) as registry:
        command_id = (await registry.create_command("dep_1", "x")).command_id
        acknowledged = 0
        for turn in range(40):
            task = asyncio.create_task(registry.increment_attempt(command_id))
            for _ in range(turn % 8):
                await asyncio.sleep(0)
            task.cancel()
            try:
                await task
                acknowledged += 1
            except asyncio.CancelledError:
                pass
        assert await registry.increment_attempt(command_id) >= acknowledged + 2
        report = await registry.verify()
    assert report.ok, report.problems
