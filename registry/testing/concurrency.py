"""Many clients that call one registry at random, at once; then one order of their calls must explain every answer."""

import asyncio
import random
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, TypeAlias

from registry.lifecycle import CommandState
from registry.testing.histories import check_history, log_of
from registry.testing.implementation import Factory, Implementation, opened
from registry.testing.linearizability import Logged
from registry.testing.observing import refusal, told
from registry.testing.recording import Recorder
from registry.testing.strategies import PlannedCall

__all__ = ["Caller", "check_concurrent_calls", "random_calls"]

Caller: TypeAlias = Generator[PlannedCall, Any, None]
"""One client: yields its next call, and is sent the answer, or thrown the error."""

SHARED: Final = 4
"""Commands that all the clients write to."""

_NOON: Final = datetime(2026, 11, 24, 12, tzinfo=UTC)
_LATER: Final = _NOON + timedelta(days=1)


def random_calls(
    name: str, dice: random.Random, shared: list[str], registry: Implementation, deployment_id: str = "dep_eu1"
) -> Caller:
    """Make calls at random, without end: of a command of one's own, until it has ended, and of those in `shared`.

    A shared command that this client has completed is replaced there by its own. `name`: of the client, told in errors
    and idempotency keys. Only calls that the registry has are made. A creation with a key is repeated now and then, and
    always when nobody knows whether it was done.
    """
    own: str | None = None
    turn = 0
    while True:
        turn += 1
        if own is None:
            own = yield from _creation(name, dice, turn, registry, deployment_id)
            continue
        is_shared = dice.random() < 0.25
        place = dice.randrange(len(shared))
        target = shared[place] if is_shared else own
        planned = _next_call(name, dice, turn, target, is_shared=is_shared)
        ends = planned.call == "complete_command"
        if ends and not registry.has("complete_command"):  # as those did that were before that call
            planned = PlannedCall("update_command_state", planned.arguments)
        if not registry.has(planned.call):
            continue
        answer = yield from _answer(planned)
        if ends and not isinstance(answer, Exception):
            if is_shared and shared[place] == target:
                shared[place] = own
            own = None


def _answer(planned: PlannedCall) -> Generator[PlannedCall, Any, Any]:
    try:
        return (yield planned)
    except Exception as error:
        return error


def _creation(
    name: str, dice: random.Random, turn: int, registry: Implementation, deployment_id: str
) -> Generator[PlannedCall, Any, str | None]:
    arguments: dict[str, Any] = {
        "deployment_id": deployment_id,
        "command_name": "sync-data",
        "deadline": dice.choice([None, _NOON, _LATER]),
    }
    with_key = dice.random() < 0.5 and registry.takes("create_command", "idempotency_key")
    if with_key:
        arguments["idempotency_key"] = f"{name}/{turn}"
    planned = PlannedCall("create_command", arguments)
    answer = yield from _answer(planned)
    unknown = isinstance(answer, Exception) and refusal(answer) is None
    if with_key and (unknown or dice.random() < 0.2):
        answer = yield from _answer(planned)
    return None if isinstance(answer, Exception) else str(told(answer, "command_id"))


def _next_call(name: str, dice: random.Random, turn: int, command_id: str, *, is_shared: bool) -> PlannedCall:
    at = _NOON + timedelta(seconds=turn)
    about: dict[str, Any] = {"command_id": command_id}
    match dice.randrange(20):
        case 0 | 1 | 2 | 3 | 4 | 5:
            return PlannedCall("increment_attempt", about)
        case 6 | 7 | 8:
            return PlannedCall("mark_dispatched_if_not_terminal", about | {"dispatched_at": at})
        case 9:
            facts = {"state": CommandState.PENDING, "response_size_bytes": turn, "error": {"released by": name}}
            return PlannedCall("update_command_state", about | facts)
        case 10:
            state = dice.choice([CommandState.DISPATCHED, CommandState.PENDING])
            return PlannedCall("update_command_state", about | {"state": state})
        case 11 | 12 if not is_shared or dice.random() < 0.2:
            result = dice.choice([CommandState.SUCCEEDED, CommandState.FAILED])
            facts = {"state": result, "completed_at": at, "response_size_bytes": turn, "error": {"by": name}}
            return PlannedCall("complete_command", about | facts)
        case 13 if dice.random() < 0.3:
            return PlannedCall("expire_overdue", {"now": _NOON, "limit": 5})
        case 14 | 15:
            return PlannedCall("get_command_metadata", about)
        case 16:
            return PlannedCall("history", about)
        case _:
            return PlannedCall("get_command_status", about)


def check_concurrent_calls(
    factory: Factory,
    *,
    clients: int = 8,
    calls: int = 2_000,
    seed: int | None = None,
    deployment_id: str = "dep_eu1",
    save_to: Path | None = None,
) -> None:
    """Let clients call one registry at random, all at once, and check that one order of the calls explains the answers.

    `factory`: as that of `check_registry`; each client is a thread, or a task of a registry for asyncio. `calls`: by
    all clients together. `seed`: makes the same choices again (but not the same timing); default: a new one, which is
    printed. `deployment_id`: one that its directory knows, if not every id will do. `save_to`: see `check_history`.
    Where writes take a context, and `history` tells it, the answers are held against the order of the events; otherwise
    an order is searched that explains them.

    Raises:
        HistoryError: an AssertionError: there is no such order; says why, draws it, and tells where it is saved.
    """
    seed = time.time_ns() % 2**32 if seed is None else seed
    print(f"check_concurrent_calls(..., seed={seed})")  # noqa: T201 - shown by test frameworks when it fails
    recorder = Recorder()
    with opened(factory) as registry:
        founder = Implementation(recorder.client("founder", registry.registry), registry.loop)
        first = {"deployment_id": deployment_id, "command_name": "sync-data"}
        shared = [str(told(founder.call("create_command", **first), "command_id")) for _ in range(SHARED)]
        theirs = [_client(recorder, registry, f"{number}", shared, seed, deployment_id) for number in range(clients)]
        each = max(1, calls // clients)
        if registry.is_asynchronous:
            registry.loop.run(_in_tasks(theirs, each))
        else:
            _in_threads(theirs, each)
        check_history(recorder.history(), _log(registry, recorder), save_to=save_to)


_Client: TypeAlias = tuple[Any, Caller]
"""What a client calls, and what it calls of that."""


def _client(
    recorder: Recorder, registry: Implementation, name: str, shared: list[str], seed: int, deployment_id: str
) -> _Client:
    dice = random.Random(f"{seed}/{name}")  # noqa: S311 - to be replayed
    return recorder.client(name, registry.registry), random_calls(name, dice, shared, registry, deployment_id)


def _log(registry: Implementation, recorder: Recorder) -> list[Logged] | None:
    """Read the events of all commands that were created, where they tell whose they are."""
    if not registry.has("history") or not registry.takes("create_command", "context"):
        return None
    creations = {call.command_id for call in recorder.history() if call.call == "create_command"}
    log = log_of(registry, sorted(each for each in creations if each is not None))
    return log if any(event.request_id for event in log) else None


def _in_threads(clients: Sequence[_Client], calls: int) -> None:
    def drive(client: Any, caller: Caller) -> None:  # noqa: ANN401
        planned = next(caller)
        for _ in range(calls):
            try:
                answer = getattr(client, planned.call)(**planned.arguments)
            except Exception as error:
                planned = caller.throw(_expected(error))
            else:
                planned = caller.send(answer)

    with _switching_often(), ThreadPoolExecutor(len(clients)) as threads:
        for done in [threads.submit(drive, *client) for client in clients]:
            done.result()


async def _in_tasks(clients: Sequence[_Client], calls: int) -> None:
    async def drive(client: Any, caller: Caller) -> None:  # noqa: ANN401
        planned = next(caller)
        for _ in range(calls):
            try:
                answer = await getattr(client, planned.call)(**planned.arguments)
            except Exception as error:
                planned = caller.throw(_expected(error))
            else:
                planned = caller.send(answer)

    await asyncio.gather(*[drive(*client) for client in clients])


def _expected(error: Exception) -> Exception:
    """Let a refusal pass, and what tells that the outcome is unknown; anything else is a fault."""
    if refusal(error) is None and getattr(error, "code", None) != "OUTCOME_UNKNOWN":
        raise error
    return error


@contextmanager
def _switching_often() -> Iterator[None]:
    """Let threads take turns a hundred times as often as usual, so that what may interleave does."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(usual / 100)
    try:
        yield
    finally:
        sys.setswitchinterval(usual)
