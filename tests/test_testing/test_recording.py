"""What is recorded of calls: whatever becomes of them, by threads, tasks, and processes that are killed."""

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from registry import (
    AsyncMemoryCommandRegistry,
    CommandNotFound,
    CommandState,
    EventContext,
    InvalidCommand,
    MemoryCommandRegistry,
    OutcomeUnknown,
    Unavailable,
    command_context,
)
from registry.testing.model import Refused, Status
from registry.testing.recording import Operation, Recorder, load, save
from registry.testing.strategies import PlannedCall, lifecycles

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)


def test_a_call_is_recorded_with_its_arguments_by_name_and_its_answer() -> None:
    recorder = Recorder(clock=iter(range(100)).__next__)
    client = recorder.client("me", MemoryCommandRegistry())
    created = client.create_command("dep", "sync", CommandState.PENDING, NOON.astimezone(timezone(timedelta(hours=1))))
    client.complete_command(created.command_id, "FAILED", NOON, error={"b": 1, "a": [True]}, timeout=3)
    status = client.get_command_status(created.command_id)
    first, second, third = recorder.history()
    assert (first.client, first.call, first.start, first.end) == ("me", "create_command", 0, 1)
    assert first.arguments == {
        "deployment_id": "dep",
        "command_name": "sync",
        "initial_state": "PENDING",
        "deadline": NOON,
    }
    assert first.answer == first.command_id == created.command_id
    assert second.arguments == {
        "command_id": created.command_id,
        "state": "FAILED",
        "completed_at": NOON,
        "error": '{"a": [true], "b": 1}',
    }
    assert (second.answer, second.end) == (True, 3)
    assert isinstance(third.answer, Status)
    assert (third.answer.state, third.answer.error, third.answer.version) == ("FAILED", '{"a": [true], "b": 1}', 2)
    assert status.version == 2


def test_a_write_has_a_request_id_of_its_own_beside_what_its_context_says() -> None:
    registry = MemoryCommandRegistry()
    recorder = Recorder()
    client = recorder.client("me", registry)
    with command_context(actor="around"):
        command_id = client.create_command("dep", "sync").command_id
    client.increment_attempt(command_id, context=EventContext(actor="given", attributes={"a": 1}))
    contexts = [entry.context for entry in registry.history(command_id)]
    assert [context.request_id for context in contexts] == [call.request_id for call in recorder.history()]
    assert [context.actor for context in contexts] == ["around", "given"]
    assert contexts[1].attributes == {"a": 1}


class Failing(MemoryCommandRegistry):
    error: BaseException

    def increment_attempt(self, command_id: str, **given: Any) -> int:
        raise self.error


@pytest.mark.parametrize(
    ("error", "answer", "unwritten"),
    [
        (CommandNotFound("c"), Refused("COMMAND_NOT_FOUND"), False),
        (Unavailable("away"), Refused("UNAVAILABLE"), True),
        (InvalidCommand("command_id", "no"), Refused("INVALID_COMMAND"), True),
        (OutcomeUnknown("c", 2, bytes(32)), None, False),
        (RuntimeError("bug"), None, False),
        (KeyboardInterrupt(), None, False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_refusal_is_an_answer_and_after_another_error_nobody_knows(
    error: BaseException, answer: Refused | None, unwritten: bool
) -> None:
    registry, recorder = Failing(), Recorder()
    registry.error = error
    with pytest.raises(type(error)):
        recorder.client("me", registry).increment_attempt("c")
    [call] = recorder.history()
    assert (call.answer, call.end is None, call.unwritten) == (answer, answer is None, unwritten)
    assert call.trouble is not None
    assert call.trouble.startswith(type(error).__name__)


class Slow(AsyncMemoryCommandRegistry):
    async def increment_attempt(self, command_id: str, **given: Any) -> int:
        attempt = await super().increment_attempt(command_id, **given)
        await asyncio.Event().wait()
        return attempt


async def test_of_a_cancelled_call_nobody_knows_what_became() -> None:
    recorder = Recorder()
    client = recorder.client("me", Slow())
    created = await client.create_command("dep", "sync")
    task = asyncio.create_task(client.increment_attempt(created.command_id))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [(call.call, call.end is None) for call in recorder.history()] == [
        ("create_command", False),
        ("increment_attempt", True),
    ]


def increments(client: Any, command_id: str) -> None:
    for _ in range(50):
        client.increment_attempt(command_id)


def test_threads_may_share_a_recorder() -> None:
    registry, recorder = MemoryCommandRegistry(), Recorder(io.StringIO())
    command_id = registry.create_command("dep", "sync").command_id
    with ThreadPoolExecutor(8) as threads:
        for name in range(8):
            threads.submit(increments, recorder.client(f"{name}", registry), command_id)
    history = recorder.history()
    assert len({call.request_id for call in history}) == 400
    assert sorted(call.answer for call in history) == list(range(2, 402))  # type: ignore[type-var]
    assert [call.start for call in history] == sorted(call.start for call in history)


@given(lifecycles())
def test_what_is_saved_is_loaded_again(tmp_path_factory: pytest.TempPathFactory, life: list[PlannedCall]) -> None:
    file = tmp_path_factory.getbasetemp() / "history.jsonl"
    journal = tmp_path_factory.getbasetemp() / "journal.jsonl"
    with journal.open("w", encoding="utf-8") as lines:
        recorder = Recorder(lines)
        client = recorder.client("me", MemoryCommandRegistry())
        command_id = client.create_command(**life[0].arguments).command_id
        for call, arguments in life[1:]:
            getattr(client, call)(command_id=command_id, **arguments)
            client.get_command_status(command_id)
            client.get_command_metadata(command_id)
        client.expire_overdue(NOON)
        with pytest.raises(CommandNotFound):
            client.increment_attempt("nobody")
    save(recorder.history(), file)
    assert load(file) == load(journal) == recorder.history()


KILLED = """
import sys
from registry import MemoryCommandRegistry
from registry.testing import Recorder

registry = MemoryCommandRegistry()
client = Recorder(journal=open(sys.argv[1], "w")).client("killed", registry)
command_id = client.create_command("dep", "sync").command_id
class Hanging(MemoryCommandRegistry):
    def increment_attempt(self, command_id, **given):
        print("hangs", flush=True)
        sys.stdin.read()
client._registry = Hanging()
client.increment_attempt(command_id)
"""


def test_of_a_process_that_was_killed_it_is_known_what_it_had_begun(tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(journal)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        os.kill(child.pid, signal.SIGKILL)
    created, begun = load(journal)
    assert created.end is not None
    assert (begun.call, begun.command_id, begun.end, begun.answer) == (
        "increment_attempt",
        created.command_id,
        None,
        None,
    )
    with journal.open("a") as lines:
        lines.write('{"request_id": "cut o')
    assert load(journal) == [created, begun]


def test_histories_of_several_processes_are_one(tmp_path: Path) -> None:
    files = [tmp_path / "a", tmp_path / "b"]
    both = [Operation(name, name, "history", {"command_id": "c"}, start) for name, start in (("x", 5), ("y", 3))]
    for file, call in zip(files, both, strict=True):
        save([call], file)
    assert load(*files) == [both[1], both[0]]


@pytest.mark.parametrize(
    "line", ["{}", "no json", '{"request_id": "r", "end": 1}', json.dumps({"request_id": "r", "start": 1})]
)
def test_a_line_that_is_none_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "history.jsonl"
    file.write_text(f"{line}\n")
    with pytest.raises(ValueError, match=r"history\.jsonl:1: no line of a history"):
        load(file)
