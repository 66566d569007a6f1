"""The client of a registry in a child process, beyond the conformance suite: ends, and what no registry may answer."""

import sys
from collections.abc import Iterator

import pytest

from registry import MemoryCommandRegistry, Unavailable
from registry.rpc.client import RpcCallError, RpcCommandRegistry
from registry.testing import SETTINGS, ContractBroken, check_concurrent_calls, check_registry
from tests.rpc_client import child_argv

IN_MEMORY = child_argv(deployment_model="pull", memory=True, dsn=None, deployments_table=False)


@pytest.fixture
def registry() -> Iterator[RpcCommandRegistry]:
    with RpcCommandRegistry(IN_MEMORY) as registry:
        yield registry


def test_a_time_goes_with_the_call(registry: RpcCommandRegistry) -> None:
    assert registry.create_command("dep", "sync", timeout=5).delivery_mode == "pull"
    with pytest.raises(ValueError, match="timeout"):
        registry.get_command_status("cmd", timeout=-1)


def test_the_end_of_the_child_ends_the_calls_that_wait() -> None:
    registry = RpcCommandRegistry([sys.executable, "-c", "import sys; sys.stdin.readline()"])
    with pytest.raises(Unavailable, match="the child process has ended"):
        registry.create_command("dep", "sync")
    with pytest.raises(Unavailable, match="the child process has ended"):
        registry.create_command("dep", "sync")
    registry.close()


def test_a_child_that_fails_is_told_of_at_the_end() -> None:
    registry = RpcCommandRegistry([sys.executable, "-c", "import sys; sys.stdin.read(); sys.exit(3)"])
    with pytest.raises(RuntimeError, match="ended with 3"):
        registry.close()


def test_an_error_that_no_exception_stands_for_is_told_as_it_came() -> None:
    answer = '{"jsonrpc": "2.0", "id": 1, "error": {"code": -32603, "message": "out of order"}}'
    script = f"import sys; sys.stdin.readline(); print({answer!r}, flush=True); sys.stdin.read()"
    with (
        RpcCommandRegistry([sys.executable, "-c", script]) as registry,
        pytest.raises(RpcCallError, match="out of order"),
    ):
        registry.get_command_status("cmd")


# A registry of the same calls whose increments go wrong, behind a pipe as any other.
WRONG = f"""
from registry import AsyncMemoryCommandRegistry
import registry.rpc

class Wrong(AsyncMemoryCommandRegistry):
    async def increment_attempt(self, command_id, **given):
        await super().increment_attempt(command_id, **given)
        return await super().increment_attempt(command_id, **given)

{MemoryCommandRegistry.__module__.partition(".")[0]}.AsyncMemoryCommandRegistry = Wrong
import registry.rpc.server as server
server.AsyncMemoryCommandRegistry = Wrong
from registry import DeploymentModel
registry.rpc.run_rpc(None, memory=True, deployment_model=DeploymentModel.PULL, deployments_table=False)
"""


def test_the_kit_finds_what_is_wrong_behind_a_pipe() -> None:
    with RpcCommandRegistry([sys.executable, "-c", WRONG]) as wrong, pytest.raises(ContractBroken, match="increment"):
        check_registry(lambda: _Open(wrong), settings=SETTINGS)


class _Open:
    """The one child for every sequence of calls."""

    def __init__(self, registry: RpcCommandRegistry) -> None:
        self.__dict__.update({name: getattr(registry, name) for name in dir(registry) if not name.startswith("_")})


def test_the_kit_passes_what_is_right_behind_a_pipe(registry: RpcCommandRegistry) -> None:
    check_concurrent_calls(lambda: _Open(registry), calls=800)
