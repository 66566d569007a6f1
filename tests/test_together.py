"""Any mix of calls, good and bad: made together, each ends as it does when they are made one by one."""

import asyncio
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import count, permutations
from typing import Any

import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from eventstore import encode_json
from registry import AsyncPostgresCommandRegistry, CommandStatus, PostgresCommandRegistry
from registry.decider import replay
from registry.writing import States, Write, write_all
from tests.batches import clock
from tests.conftest import Databases
from tests.mixes import (
    BEGINNINGS,
    Asked,
    Gathering,
    Outcome,
    Reached,
    calls,
    creations,
    ended,
    gathered,
    outcome,
    picky,
)
from tests.synchronous import Synchronous

MISSING = "cmd_0000000000000000000000000000"


@pytest.fixture(scope="module")
def twins(servers: Callable[[str], Databases]) -> Iterator[list[str]]:
    """Two databases that refuse the same."""
    with ExitStack() as stack:
        yield [stack.enter_context(picky(servers("default"))) for _ in range(2)]


def with_keys_of(asked: Sequence[Asked], example: int) -> list[Asked]:
    """Give each example keys of its own."""
    return [
        Asked(call.method, call.command, call.arguments | {"idempotency_key": f"{key} of {example}"})
        if (key := call.arguments.get("idempotency_key"))
        else call
        for call in asked
    ]


def comparable(asked: Sequence[Asked], outcomes: Sequence[Outcome], known: Sequence[str]) -> list[Outcome]:
    """Put numbers for ids, in the order of their coming.

    How a creation ends that the server rejects, and whose key others use, depends on the order: left out.
    """
    numbers = {command_id: f"#{number}" for number, command_id in enumerate(known)}

    def number_of(value: object) -> object:
        if not isinstance(value, str):
            return value
        for command_id in re.findall("cmd_[0-9a-z]{28}", value):
            value = value.replace(command_id, numbers.setdefault(command_id, f"#{len(numbers)}"))
        return value

    return [
        () if call.is_bad_and_has_a_key else tuple(map(number_of, each))
        for call, each in zip(asked, outcomes, strict=True)
    ]


def what_is_there(registry: PostgresCommandRegistry, command_ids: Sequence[str]) -> list[object]:
    found: list[object] = []
    for command_id in command_ids:
        status = registry.get_command_status(command_id)
        found.append(status and status.model_copy(update={"command_id": ""}))
        found.append([(event.version, event.type, event.context) for event in registry.history(command_id)])
    return found


def ids_in(outcomes: Sequence[Outcome]) -> list[str]:
    return list(dict.fromkeys(str(each[1]) for each in outcomes if each[0] == "created"))


def test_calls_in_one_batch_end_as_the_same_calls_one_by_one(twins: list[str]) -> None:
    examples = count()
    with (
        PostgresCommandRegistry.open(twins[0], clock=clock) as alone,
        Gathering.open(twins[1], clock=clock) as gathering,
        PostgresCommandRegistry.open(twins[1], clock=clock) as crowd,
    ):

        @settings(max_examples=100)
        @given(st.lists(st.one_of(calls(st.integers(0, 4)), creations, creations, creations), max_size=12))
        def they_end_alike(asked: list[Asked]) -> None:
            asked = with_keys_of(asked, next(examples))
            here = [alone.create_command("dep_1", "x", state).command_id for state in BEGINNINGS] + [MISSING]
            there = [crowd.create_command("dep_1", "x", state).command_id for state in BEGINNINGS] + [MISSING]
            one_by_one = [outcome(lambda call=call: call.on(alone, here)) for call in asked]  # type: ignore[misc]

            reached = gathered(gathering, asked, there)
            writes = [each for each in reached if isinstance(each, Write)]
            crowd.database.run(write_all(writes, States(most=0), clock))  # what is always read keeps its order
            together = [outcome(each.result) if isinstance(each, Write) else each for each in reached]

            assert comparable(asked, together, there) == comparable(asked, one_by_one, here)
            assert what_is_there(crowd, there + ids_in(together)) == what_is_there(alone, here + ids_in(one_by_one))

        they_end_alike()
        assert alone.verify().ok
        assert crowd.verify().ok


# Through a registry, whose calls come in any order: they end as in some order.


@dataclass(frozen=True)
class End:
    """How a call ended: with an outcome, or (None) in cancellation, made or not."""

    reached: Reached
    outcome: Outcome | None


def played(status: CommandStatus, order: Sequence[Write[Any]]) -> tuple[list[Outcome], CommandStatus]:
    """Play calls on a status one by one, as the rules and the server's checks have it."""
    outcomes = []
    for write in order:
        try:
            decision = write.decide(status)
        except Exception as refusal:
            outcomes.append(ended(refusal))
            continue
        texts = "".join(encode_json(event) for event in decision.events) + write.metadata
        if decision.events and "venom" in texts:
            outcomes.append(("RaiseException", None))
        elif decision.events and "poison" in texts:
            outcomes.append(("CheckViolation", "no_poison"))
        else:
            outcomes.append(ended(decision.answer))
            status = replay(decision.events, status) if decision.events else status
    return outcomes, status


def some_order_explains(before: CommandStatus, ends: Sequence[End], after: CommandStatus) -> bool:
    """Tell whether the calls on a command, one by one in some order, end so and leave it so."""
    made = [end for end in ends if isinstance(end.reached, Write)]
    cancelled = sum(end.outcome is None for end in made)
    for length in range(len(made) - cancelled, len(made) + 1):
        for order in permutations(made, length):
            if sum(end.outcome is not None for end in order) < len(made) - cancelled:
                continue
            outcomes, status = played(before, [end.reached for end in order if isinstance(end.reached, Write)])
            alike = all(end.outcome in (None, found) for end, found in zip(order, outcomes, strict=True))
            if alike and status == after:
                return True
    return False


async def make(registry: AsyncPostgresCommandRegistry, asked: Asked, ids: Sequence[str], turns: int | None) -> Any:
    """Make a call, cancelled after so many turns of the event loop (None: never)."""
    task = asyncio.ensure_future(asked.on(registry, ids))
    if turns is not None:
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
    return (await asyncio.gather(task, return_exceptions=True))[0]


few_calls = st.lists(
    st.tuples(calls(st.integers(1, 2)), st.sampled_from([None] * 8 + [0, 1, 2, 3, 5, 8, 13, 21])),
    min_size=2,
    max_size=8,
).filter(lambda asked: all([call.command for call, _ in asked].count(number) <= 4 for number in (1, 2)))


@pytest.mark.parametrize("kind", ["asyncio", "threads"])
def test_concurrent_calls_end_as_the_same_calls_in_some_order(twins: list[str], kind: str) -> None:
    with (
        Gathering.open(twins[1], clock=clock) as gathering,
        PostgresCommandRegistry.open(twins[1], clock=clock) as stranger,
        PostgresCommandRegistry.open(twins[1], clock=clock) as threaded,
        closing(Synchronous(AsyncPostgresCommandRegistry.open(twins[1], clock=clock))) as tasked,
        ThreadPoolExecutor(8) as threads,
    ):

        async def from_tasks(asked: Sequence[tuple[Asked, int | None]], ids: Sequence[str]) -> list[Any]:
            answers = await asyncio.gather(*(make(tasked._registry, call, ids, turns) for call, turns in asked))
            lanes = tasked._registry._open_now.writes._lanes
            await asyncio.gather(*(lane.task for lane in lanes if lane.task))  # for callers who were cancelled
            return answers

        def from_threads(asked: Sequence[tuple[Asked, int | None]], ids: Sequence[str]) -> list[Any]:
            return list(threads.map(lambda each: attempt(lambda: each[0].on(threaded, ids)), asked))

        @settings(max_examples=100)
        @given(few_calls, st.booleans())
        def some_order_explains_them(asked: list[tuple[Asked, int | None]], remembered: bool) -> None:
            creator: Any = stranger if not remembered else tasked if kind == "asyncio" else threaded
            ids = [creator.create_command("dep_1", "x", state).command_id for state in BEGINNINGS]
            before = [stranger.get_command_status(command_id) for command_id in ids]
            reached = gathered(gathering, [call for call, _ in asked], ids)
            in_tasks = kind == "asyncio"
            answers = tasked._loop.run(from_tasks(asked, ids)) if in_tasks else from_threads(asked, ids)
            ends = [
                End(each, None if isinstance(answer, asyncio.CancelledError) else ended(answer))
                for each, answer in zip(reached, answers, strict=True)
            ]
            for end in ends:
                assert isinstance(end.reached, Write) or end.outcome in (None, end.reached)
            for number in (1, 2):
                mine = [end for end, (call, _) in zip(ends, asked, strict=True) if call.command == number]
                now = stranger.get_command_status(ids[number])
                note(f"{before[number]!r}\n{[end.outcome for end in mine]}\n{now!r}")
                assert some_order_explains(there(before[number]), mine, there(now))
                versions = [entry.version for entry in stranger.history(ids[number])]
                assert versions == list(range(1, there(now).version + 1))

        some_order_explains_them()
        assert stranger.verify().ok


def there(status: CommandStatus | None) -> CommandStatus:
    assert status is not None
    return status


def attempt(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:
        return error
