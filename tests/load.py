"""A load of many callers, recorded: afterwards, one order of the calls explains every answer, and the log holds each.

A seed decides what every caller calls, and is printed: COMMAND_REGISTRY_TEST_SEED=... makes the same choices again.
"""

import os
import random
import time
from collections import Counter
from collections.abc import Collection, Generator, Iterator, Sequence
from concurrent.futures import wait
from contextlib import ExitStack, contextmanager
from typing import Any, Final, TypeAlias

import psycopg

from eventstore.metrics import Metrics
from registry import (
    IdempotencyConflict,
    InvalidTransition,
    OutcomeUnknown,
    PostgresCommandRegistry,
    Unavailable,
)
from registry.testing.concurrency import random_calls
from registry.testing.histories import check_history
from registry.testing.implementation import Implementation
from registry.testing.linearizability import Logged
from registry.testing.recording import Operation, Recorder
from tests.callers import LONGEST, Call, Callers, Script, callers, created
from tests.observing import logged

__all__ = ["ANY_OUTCOME", "Load", "check_whole", "chosen_seed", "under_load"]

SEED: Final = "COMMAND_REGISTRY_TEST_SEED"
SHARED: Final = 8
"""Commands that all the callers write to."""
RIVALS: Final = 2

Errors: TypeAlias = tuple[type[Exception], ...]
ANY_OUTCOME: Final[Errors] = (Unavailable, OutcomeUnknown)
"""What a caller may be told while the server is away longer than a call may take."""


def chosen_seed() -> int:
    """Choose a seed, and print it: with the same one in the environment a run makes the same choices."""
    seed = int(os.environ.get(SEED) or time.time_ns() % 2**32)
    print(f"{SEED}={seed}")
    return seed


class Load:
    """Callers that call at random until the load ends.

    `tolerates`: the errors that a caller may be told, beside refusals. `waiting`: the callers that have no answer yet.
    """

    def __init__(self, seed: int, recorder: Recorder, tolerates: Errors = ()) -> None:
        self._seed, self._tolerates = seed, tolerates
        self.recorder = recorder
        self.shared: list[str] = []
        self.registry: Any = None
        """The one that most of the callers share."""
        self.metrics = Metrics()
        self.waiting: set[str] = set()
        self.answered = 0
        self.told: Counter[str] = Counter()
        """How often a call raised an error of a class."""
        self.ends = False

    @contextmanager
    def calling(self, opened: Callers, number: int, *, first: int = 0) -> Iterator[None]:
        """Let so many callers of a registry call until the block ends, and then wait until each has its answer."""
        if self.registry is None:
            self.registry, self.metrics = opened.registry, opened.registry.stats()
        if not self.shared:
            self.shared = created(opened, SHARED, self.recorder.client("founder", opened.registry))
        driven = opened.drive([self._caller(opened.registry, f"{first + each}") for each in range(number)])
        try:
            yield
        finally:  # a caller that has failed says more than somebody who waited for it in vain
            self.ends = True
            wait(driven, LONGEST)
            for each in driven:
                each.result(0)

    def _caller(self, registry: Any, name: str) -> Script:
        dice = random.Random(f"{self._seed}/{name}")  # noqa: S311 - to be replayed
        client = self.recorder.client(name, registry)
        caller = random_calls(f"{self._seed}/{name}", dice, self.shared, Implementation(registry))
        planned = next(caller)
        while not self.ends:
            answer = yield from self._asked(name, Call(planned.call, client=client, **planned.arguments))
            planned = caller.throw(answer) if isinstance(answer, Exception) else caller.send(answer)

    def _asked(self, name: str, call: Call) -> Generator[Call, Any, Any]:
        self.waiting.add(name)
        try:
            answer = yield call
        except (InvalidTransition, IdempotencyConflict) as refused:
            answer = refused
        except self._tolerates as error:
            self.told[type(error).__name__] += 1
            return error
        finally:
            self.waiting.discard(name)
        self.answered += 1
        return answer

    def check(self, dsn: str, *, beside: Collection[str] = ()) -> None:
        """Check all that `check_whole` does."""
        events = check_whole(dsn, self.recorder.history(), beside=beside)
        told = ", ".join(f"{count} times {name}" for name, count in sorted(self.told.items()))
        print(f"{self.answered} calls answered{', ' + told if told else ''}; {events} events")


def check_whole(dsn: str, history: Sequence[Operation], *, beside: Collection[str] = ()) -> int:
    """Check that the log and the read model are whole, and that one order of the calls explains every answer.

    Gives the number of events. `beside`: commands that others wrote to, unrecorded.
    """
    with PostgresCommandRegistry.open(dsn) as registry:
        report = registry.verify()
    assert report.ok, report.problems
    with psycopg.connect(dsn) as observer:
        log = [Logged(*entry) for entry in logged(observer) if entry[0] not in beside]
    check_history(history, log)
    return len(log)


@contextmanager
def under_load(
    kind: str,
    dsn: str,
    *,
    number: int,
    seed: int,
    rivals: str | None = None,
    tolerates: Errors = (),
    **settings: Any,
) -> Iterator[Load]:
    """Let so many callers call a registry until the block ends, and then wait until each has its answer.

    `rivals`: the DSN by which a few others write to the shared commands meanwhile, through another registry.
    """
    load = Load(seed, Recorder(), tolerates)
    with ExitStack() as stack:
        opened = stack.enter_context(callers(kind, dsn, **settings))
        stack.enter_context(load.calling(opened, number))
        if rivals is not None:
            other = stack.enter_context(callers("threads", rivals))
            stack.enter_context(load.calling(other, RIVALS, first=number))
        yield load
