"""A load of many callers, and what the log says of their calls afterwards."""

import os
import random
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import wait
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any, Final

import psycopg

from eventstore.metrics import Metrics
from registry import CommandState, PostgresCommandRegistry
from tests.callers import LONGEST, NOON, Call, Callers, Script, callers, created
from tests.observing import by_request

__all__ = ["Load", "chosen_seed", "under_load"]

SEED: Final = "COMMAND_REGISTRY_TEST_SEED"
SHARED: Final = 8
"""Commands that all the callers write to."""
RIVALS: Final = 2


def chosen_seed() -> int:
    """Choose a seed, and print it: with the same one in the environment a run makes the same choices."""
    seed = int(os.environ.get(SEED) or time.time_ns() % 2**32)
    print(f"{SEED}={seed}")
    return seed


class Load:
    """What callers have called so far, by request id, what they were told, and who waits for an answer."""

    def __init__(self, seed: int, shared: Sequence[str], registry: Any) -> None:
        self._seed, self._shared = seed, shared
        self.database: Any = registry.database
        self.metrics: Metrics = registry.stats()
        self.called: dict[str, Call] = {}
        self.answers: dict[str, Any] = {}
        self.waiting: set[int] = set()
        self.ends = False

    def caller(self, number: int) -> Script:
        """Call, at random, until the load ends; some calls are about commands that others call about, too."""
        dice = random.Random(f"{self._seed}/{number}")  # noqa: S311 - to be replayed
        own, version, turn = "", 0, 0
        while not self.ends:
            turn += 1
            request_id = f"{number}/{turn}"
            match dice.randrange(7) if own else 0:
                case 0 | 1:
                    key = f"key {request_id}" if dice.random() < 0.5 else None
                    call = Call("create_command", "dep", "sync", idempotency_key=key, request_id=request_id)
                    own, version = (yield from self._made(number, call, request_id)).command_id, 1
                    continue
                case 2:
                    call = Call("increment_attempt", own, request_id=request_id)
                case 3:
                    at = NOON + timedelta(seconds=turn)
                    call = Call("mark_dispatched_if_not_terminal", own, at, request_id=request_id)
                case 4:
                    call = Call("complete_command", own, CommandState.SUCCEEDED, NOON, request_id=request_id)
                case 5:
                    status = yield from self._asked(number, Call("get_command_status", own))
                    assert status.version == version, f"{own} is at {status.version} of {version}"
                    continue
                case _:
                    call = Call("increment_attempt", dice.choice(self._shared), request_id=request_id)
            yield from self._made(number, call, request_id)
            version += call.args[0] == own
            own = "" if call.name == "complete_command" else own

    def rival(self, number: int) -> Script:
        """Write, from another registry, to the commands that all the callers share."""
        dice = random.Random(f"{self._seed}/{number}")  # noqa: S311 - to be replayed
        turn = 0
        while not self.ends:
            turn += 1
            request_id = f"{number}/{turn}"
            call = Call("increment_attempt", dice.choice(self._shared), request_id=request_id)
            yield from self._made(number, call, request_id)

    @contextmanager
    def under_way(self, opened: Callers, scripts: Sequence[Script]) -> Iterator[None]:
        """Let callers call until the block ends, and then wait until each has its answer."""
        driven = opened.drive(scripts)
        try:
            yield
        finally:
            self.ends = True
            wait(driven, LONGEST)
        for each in driven:
            each.result(0)

    def _made(self, number: int, call: Call, request_id: str) -> Generator[Call, Any, Any]:
        self.called[request_id] = call
        answer = self.answers[request_id] = yield from self._asked(number, call)
        return answer

    def _asked(self, number: int, call: Call) -> Generator[Call, Any, Any]:
        self.waiting.add(number)
        answer = yield call
        self.waiting.discard(number)
        return answer

    def check(self, dsn: str) -> None:
        """Check that every call was answered, that each answer is in the log exactly once, and nothing else."""
        assert set(self.answers) == set(self.called)
        with psycopg.connect(dsn) as observer:
            stored = by_request(observer)
        doubled = [request_id for request_id, events in stored.items() if len(events) > 1]
        assert not doubled, f"{len(doubled)} calls are in the log more than once: {doubled[:5]}"
        lost = [self.called[request_id] for request_id in self.answers if request_id not in stored]
        assert not lost, f"{len(lost)} acknowledged calls are not in the log: {lost[:5]}"
        assert set(stored) <= set(self.called)
        untrue = [
            (self.called[request_id], answer, stored[request_id])
            for request_id, answer in self.answers.items()
            if not _is_true(self.called[request_id], answer, *stored[request_id][0])
        ]
        assert not untrue, f"{len(untrue)} answers are not what the log says: {untrue[:5]}"
        with PostgresCommandRegistry.open(dsn) as registry:
            report = registry.verify()
        assert report.ok, report.problems


def _is_true(call: Call, answer: Any, stream_id: str, _: bytes, data: dict[str, Any]) -> bool:
    match call.name:
        case "create_command":
            return bool(answer.command_id == stream_id)
        case "increment_attempt":
            return bool((*call.args, answer) == (stream_id, data["attempt"]))
        case _:
            return call.args[0] == stream_id and answer is True


@contextmanager
def under_load(
    kind: str, dsn: str, *, number: int, seed: int, rivals: str | None = None, **settings: Any
) -> Iterator[Load]:
    """Let so many callers call a registry until the block ends, and then wait until each has its answer.

    `rivals`: the DSN by which a few others write to the shared commands meanwhile, through another registry.
    """
    with ExitStack() as stack:
        opened = stack.enter_context(callers(kind, dsn, **settings))
        load = Load(seed, created(opened, SHARED), opened.registry)
        if rivals is not None:
            other = stack.enter_context(callers("threads", rivals))
            stack.enter_context(load.under_way(other, [load.rival(1_000 + rival) for rival in range(RIVALS)]))
        stack.enter_context(load.under_way(opened, [load.caller(caller) for caller in range(number)]))
        yield load
