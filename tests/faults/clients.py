"""Callers whose calls are timed; clients that are processes of their own, and may be killed; one history of them all.

    python -m tests.faults.clients DSN JOURNAL COMMAND_ID... --kind threads --seed 1 --first 100 [--after JOURNAL]

is a registry with a few callers (numbered from `first` on), which call at random until the standard input ends, and
record each call in the journal. With `--after`, the journal of a process that was killed, each call of it that nobody
knows the outcome of is repeated first, if it may be.
"""

import argparse
import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from registry import CommandState
from registry.testing import recording
from registry.testing.recording import Operation, Recorder
from tests.callers import LONGEST, Call, Callers, Tasks, callers
from tests.load import Errors, Load
from tests.waiting import until

__all__ = ["Client", "Timed", "closed", "repeatable", "timed_load"]

PATIENT: Final = 20.0
ROOT: Final = Path(__file__).resolve().parents[2]


# Callers in this process, timed.


class Timed(Recorder):
    """A recorder that also notes how long each call took, whatever became of it, in seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.durations: list[tuple[float, Operation]] = []

    def answered(self, operation: Operation, answer: Any) -> None:
        """Record an answer."""
        self._note_duration(operation)
        super().answered(operation, answer)

    def failed(self, operation: Operation, error: BaseException) -> None:
        """Record an error."""
        self._note_duration(operation)
        super().failed(operation, error)

    def _note_duration(self, operation: Operation) -> None:
        if operation.client != "founder":
            self.durations.append(((self._clock() - operation.start) / 1e9, operation))

    def longest(self) -> tuple[float, Operation]:
        """Give the call that took longest."""
        return max(self.durations, key=lambda timed: timed[0])


@contextmanager
def timed_load(
    kind: str, dsn: str, *, number: int, seed: int, tolerates: Errors = (), **settings: Any
) -> Iterator[tuple[Load, Timed]]:
    """Let so many callers call a registry until the block ends, and time their calls."""
    timed = Timed()
    load = Load(seed, timed, tolerates)
    with callers(kind, dsn, **settings) as opened, load.calling(opened, number):
        yield load, timed


def closed(opened: Callers) -> Future[None]:
    """Begin to close the registry of callers, who go on."""
    if isinstance(opened, Tasks):
        return asyncio.run_coroutine_threadsafe(opened.registry.close(), opened._loop)
    return opened._threads.submit(opened.registry.close)


# Clients that are processes.


def repeatable(operation: Operation) -> Call | None:
    """Give the call that repeats one without harm, if there is one; a creation without a key, or a count, has none."""
    arguments = dict(operation.arguments)
    if operation.call == "create_command" and "idempotency_key" in arguments:
        return Call("create_command", arguments.pop("deployment_id"), arguments.pop("command_name"), **arguments)
    if operation.call in {"complete_command", "mark_dispatched_if_not_terminal"}:
        if "error" in arguments:
            arguments["error"] = json.loads(arguments["error"])
        if "state" in arguments:
            arguments["state"] = CommandState(arguments["state"])
        return Call(operation.call, **arguments)
    return None


@dataclass
class Client:
    """A client process, and its journal."""

    journal: Path
    process: subprocess.Popen[str]

    @classmethod
    def start(
        cls, journal: Path, dsn: str, commands: Sequence[str] = (), after: "Client | None" = None, **options: object
    ) -> Self:
        """Start one; options: see the module."""
        journal.touch()
        arguments = [f"--{option}={value}" for option, value in options.items()]
        arguments += [f"--after={after.journal}"] if after else []
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.clients", dsn, str(journal), *commands, *arguments],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        return cls(journal, process)

    def calls(self) -> int:
        """Count the lines of its journal: two for each call that has ended."""
        return self.journal.read_bytes().count(b"\n")

    def goes_on(self, lines: int) -> None:
        """Wait until so many lines more are in its journal."""
        goal = self.calls() + lines
        until(lambda: self.calls() >= goal or self.process.poll() is not None, "a client to go on")
        assert self.process.poll() is None, self.process.communicate()[1]

    def unknown(self) -> list[Operation]:
        """List the calls whose outcome it never learned."""
        return [operation for operation in recording.load(self.journal) if operation.end is None]

    def kill(self) -> None:
        """End it at once (-9)."""
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()

    def end(self) -> None:
        """Let its calls end, and then it; what went wrong in it is raised."""
        _, errors = self.process.communicate("", timeout=LONGEST)
        assert self.process.returncode == 0, errors


# What runs in such a process.


def _repeat(opened: Callers, recorder: Recorder, name: str, journal: Path) -> None:
    """Make the calls again that nobody knows the outcome of, one after the other."""
    client = recorder.client(name, opened.registry)
    for operation in recording.load(journal):
        call = repeatable(operation) if operation.end is None else None
        if call is not None:
            [made] = opened.at_once([Call(call.name, *call.args, client=client, **call.settings)])
            made.result(LONGEST)


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("dsn")
    parser.add_argument("journal", type=Path)
    parser.add_argument("commands", nargs="*")
    parser.add_argument("--kind", required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--first", type=int, required=True)
    parser.add_argument("--number", type=int, default=4)
    parser.add_argument("--after", type=Path)
    given = parser.parse_args()
    with given.journal.open("a", encoding="utf-8") as journal, ExitStack() as stack:
        recorder = Recorder(journal)
        opened = stack.enter_context(callers(given.kind, given.dsn, timeout=PATIENT))
        if given.after:
            _repeat(opened, recorder, f"{given.first} again", given.after)
        load = Load(given.seed, recorder)
        load.shared = given.commands
        with load.calling(opened, given.number, first=given.first):
            sys.stdin.read()


if __name__ == "__main__":
    _main()
