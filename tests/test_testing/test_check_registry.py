"""The state machine: right registries pass it, wrong ones do not, and it says which calls show that."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
from hypothesis import settings

import registry
from registry import AsyncMemoryCommandRegistry, CommandState, MemoryCommandRegistry
from registry.protocol import CommandRegistry as Protocol
from registry.testing import SETTINGS, CommandRegistryMachine, ContractBroken, check_registry
from registry.testing.game import Game, Move
from tests.test_testing import bugs
from tests.test_testing.somebodys import SomebodysAsyncRegistry, SomebodysLaterRegistry, SomebodysRegistry

A_FEW = settings(SETTINGS, max_examples=20)
# The budget of the default settings, and always the same sequences.
FOUND = settings(SETTINGS, derandomize=True, database=None)


@pytest.mark.parametrize(
    "factory",
    [
        MemoryCommandRegistry,
        AsyncMemoryCommandRegistry,
        SomebodysRegistry,
        SomebodysLaterRegistry,
        SomebodysAsyncRegistry,
    ],
)
def test_a_right_registry_of_any_kind_passes(factory: Any) -> None:
    check_registry(factory, settings=A_FEW)


@contextmanager
def opened() -> Iterator[SomebodysRegistry]:
    yield SomebodysRegistry()


@asynccontextmanager
async def opened_asynchronously() -> AsyncIterator[AsyncMemoryCommandRegistry]:
    yield AsyncMemoryCommandRegistry()


async def awaited() -> AsyncMemoryCommandRegistry:
    return AsyncMemoryCommandRegistry()


@pytest.mark.parametrize("factory", [opened, opened_asynchronously, awaited, lambda: SomebodysRegistry()])
def test_a_factory_may_give_a_registry_a_context_manager_or_an_awaitable(factory: Any) -> None:
    check_registry(factory, settings=settings(A_FEW, max_examples=3))


async def test_it_may_be_called_where_an_event_loop_runs() -> None:
    check_registry(AsyncMemoryCommandRegistry, settings=settings(A_FEW, max_examples=3))
    await asyncio.sleep(0)


def test_commands_of_others_do_not_matter() -> None:
    shared = SomebodysLaterRegistry()
    check_registry(lambda: shared, settings=A_FEW)
    assert len(shared.commands) > 20


def test_the_same_error_in_another_order_of_its_keys_proves_nothing() -> None:
    game = Game(MemoryCommandRegistry)
    game.make(Move("create_command", {"deployment_id": "dep", "command_name": "sync"}, makes="c1"))
    for error in ({"b": 1, "a": {"d": 2, "c": 3}}, {"a": {"c": 3, "d": 2}, "b": 1}, {"b": 1, "a": {"d": 2, "c": 3}}):
        game.make(Move("update_command_state", {"state": CommandState.PENDING, "error": error}, of="c1"))
    game.end()
    game.close()
    assert [known.status.version for known in game.past["c1"]] == [1, 2]


class Particular(SomebodysRegistry):
    def create_command(self, deployment_id: str, *args: Any, **given: Any) -> Any:
        if deployment_id not in {"dep_1", "dep_2"}:
            raise registry.DeploymentNotFound(deployment_id)
        return super().create_command(deployment_id, *args, **given)


def test_a_registry_may_know_only_some_deployments() -> None:
    check_registry(Particular, deployments=["dep_1", "dep_2"], settings=A_FEW)
    with pytest.raises(ContractBroken, match="DeploymentNotFound"):
        check_registry(Particular, settings=settings(FOUND, max_examples=5))


class Empty:
    get_command_status = Protocol.get_command_status


@pytest.mark.parametrize("factory", [dict, lambda: None, lambda: Empty()])
def test_what_is_no_registry_is_refused_by_what_it_lacks(factory: Any) -> None:
    with pytest.raises(TypeError, match="it has no create_command"):
        check_registry(factory)


class OnlyWhatIsNeeded(Protocol):
    """Derives from the protocol, whose other calls do nothing."""

    def __init__(self) -> None:
        self.inner = SomebodysRegistry()

    def create_command(self, *args: Any, **given: Any) -> Any:
        return self.inner.create_command(*args, **given)

    def get_command_status(self, command_id: str, *, timeout: float | None = None) -> Any:
        return self.inner.get_command_status(command_id)


def test_the_calls_of_the_protocol_itself_are_not_those_of_a_registry() -> None:
    check_registry(OnlyWhatIsNeeded, settings=settings(A_FEW, max_examples=5))


def test_there_are_more_than_enough_bugs() -> None:
    assert len(bugs.BUGS) >= 40


@pytest.mark.parametrize("bug", bugs.BUGS, ids=lambda bug: bug.__name__)
def test_every_bug_is_found_within_the_default_settings(bug: Any) -> None:
    with pytest.raises(ContractBroken, match=bug.__name__):
        until_found(bug)


def until_found(bug: Any) -> None:
    """Check always the same sequences; should another Hypothesis have no luck with those, others."""
    for chosen in (FOUND, SETTINGS, SETTINGS):
        check_registry(bug, settings=settings(chosen, database=None))


def program_of(failure: ContractBroken) -> str:
    return str(failure).split("\n\n", 1)[1]


@pytest.mark.parametrize(
    ("bug", "calls"),
    [
        (bugs.DoubledIncrement, 2),
        (bugs.NoneClears, 4),
        (bugs.LateIsRefused, 3),
        (bugs.UnknownIsFalse, 1),
        (bugs.StaleRead, 5),
        (bugs.GapInVersions, 7),
        (bugs.PastOffByOne, 3),
        (bugs.KeysWithoutArguments, 2),
        (bugs.ExpiresWithoutALimit, 4),
        (bugs.CompletesOnlyTheDispatched, 2),
    ],
    ids=lambda param: getattr(param, "__name__", ""),
)
def test_the_shortest_calls_are_printed_as_python_that_fails_when_run(bug: Any, calls: int) -> None:
    with pytest.raises(ContractBroken) as failure:
        until_found(bug)
    program = program_of(failure.value)
    assert len(re.findall(r"registry\.\w+\(", program)) <= calls, program
    with pytest.raises((AssertionError, registry.RegistryError)):
        exec(compile(program, "pasted", "exec"), {})  # noqa: S102
    right = MemoryCommandRegistry if issubclass(bug, MemoryCommandRegistry) else SomebodysLaterRegistry
    program = program.replace(f"from {bug.__module__} import {bug.__name__}\n", "")
    exec(compile(program.replace(f"{bug.__name__}()", "right()"), "pasted", "exec"), {"right": right})  # noqa: S102


class WrongAsync(SomebodysAsyncRegistry):
    async def increment_attempt(self, command_id: str) -> int:
        return 1 + await super().increment_attempt(command_id)


def test_of_an_asynchronous_registry_they_are_asynchronous_python() -> None:
    with pytest.raises(ContractBroken) as failure:
        check_registry(WrongAsync, settings=FOUND)
    program = program_of(failure.value)
    assert "async with WrongAsync() as registry:" in program
    with pytest.raises(AssertionError):
        exec(compile(program, "pasted", "exec"), {})  # noqa: S102


class Machine(CommandRegistryMachine):
    factory = SomebodysRegistry


Machine.TestCase.settings = settings(A_FEW, max_examples=5)
TestTheMachineAsATestCase = Machine.TestCase
