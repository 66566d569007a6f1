"""Deployments and their targets: the rules, the fixed directory, the table, and a directory of one's own."""

from collections.abc import Iterator

import pytest

from registry import (
    AsyncMemoryCommandRegistry,
    AsyncPostgresCommandRegistry,
    Deployment,
    DeploymentModel,
    DeploymentNotFound,
    InvalidCommand,
    MemoryCommandRegistry,
    NoTargets,
    PostgresCommandRegistry,
    ResourceType,
    Target,
    TargetAmbiguous,
    TargetIdInvalid,
    TargetNotFound,
)
from registry.deployments import FixedDeployments, delivery_mode, resolve

PUSH, PULL = DeploymentModel.PUSH, DeploymentModel.PULL


def target(resource_id: str, resource_type: ResourceType = ResourceType.WORKER) -> Target:
    return Target(resource_id=resource_id, resource_type=resource_type)


def deployment(
    *targets: Target, declared: bool = True, status: str = "running", model: DeploymentModel = PUSH
) -> Deployment:
    return Deployment(
        id="dep_1",
        workspace_id="ws_1",
        project_id="prj_1",
        deployment_model=model,
        name="eu west",
        group="eu",
        targets=targets if declared else None,
        status=status,
    )


A, B = target("a"), target("b", ResourceType.CONTAINER)
OPERATOR = target("operator", ResourceType.DAEMON)


def test_without_declared_targets_the_deployment_is_the_one_target() -> None:
    implied = target("dep_1")
    assert resolve(deployment(declared=False), None).target == implied
    assert resolve(deployment(declared=False), "dep_1").target == implied


def test_one_candidate_needs_no_name() -> None:
    assert resolve(deployment(A), None).model_dump(mode="json") == {
        "target": {"resource_id": "a", "resource_type": "worker"},
        "delivery_mode": "push",
    }


def test_several_candidates_need_a_name() -> None:
    with pytest.raises(TargetAmbiguous, match="a, b"):
        resolve(deployment(A, B), None)
    assert resolve(deployment(A, B), "b").target == B


def test_no_candidate_is_an_error() -> None:
    with pytest.raises(NoTargets):
        resolve(deployment(), None)


def test_the_operator_always_resolves_and_is_never_a_candidate() -> None:
    for declared in ((), (A,), (target("operator"), A)):
        resolved = resolve(deployment(*declared), "operator")
        assert (resolved.target, resolved.delivery_mode) == (OPERATOR, PULL)
    assert resolve(deployment(target("operator"), A), None).target == A
    with pytest.raises(NoTargets):
        resolve(deployment(target("operator")), None)


@pytest.mark.parametrize("unknown", ["", "A", "a ", "c"])
def test_a_target_that_is_not_there_is_not_found(unknown: str) -> None:
    with pytest.raises(TargetNotFound):
        resolve(deployment(A, B), unknown)


def test_a_colon_makes_a_target_id_invalid_before_it_is_looked_for() -> None:
    with pytest.raises(TargetIdInvalid):
        resolve(deployment(target("a:b")), "a:b")


@pytest.mark.parametrize("model", DeploymentModel)
def test_a_worker_follows_its_deployment_and_the_others_pull(model: DeploymentModel) -> None:
    assert delivery_mode(model, A) == model
    assert delivery_mode(model, None) == model
    assert delivery_mode(model, B) == PULL
    assert delivery_mode(model, OPERATOR) == PULL


def test_the_fixed_directory_knows_every_id_that_can_be_one() -> None:
    found = FixedDeployments(PUSH).get("anything")
    assert found is not None
    assert (found.workspace_id, found.project_id, found.deployment_model) == ("default", "default", PUSH)
    assert FixedDeployments().get("") is None


@pytest.fixture
def registry(dsn: str) -> Iterator[PostgresCommandRegistry]:
    with PostgresCommandRegistry.open(dsn, deployments="table") as registry:
        yield registry


@pytest.mark.parametrize("declared", [deployment(A, B), deployment(), deployment(declared=False, status="stopped")])
def test_the_table_gives_back_what_was_put(registry: PostgresCommandRegistry, declared: Deployment) -> None:
    table = registry.deployment_table
    assert table.get("dep_1") is None
    table.put(declared)
    assert table.get("dep_1") == declared
    table.put(deployment(A, model=PULL))
    assert table.get("dep_1") == deployment(A, model=PULL)
    assert table.remove("dep_1") is True
    assert table.remove("dep_1") is False
    assert table.get("dep_1") is None


def test_commands_are_created_only_for_a_running_deployment_of_the_table(registry: PostgresCommandRegistry) -> None:
    with pytest.raises(DeploymentNotFound):
        registry.create_command("dep_1", "x")
    with pytest.raises(DeploymentNotFound):
        registry.resolve_target("\x00")
    registry.deployment_table.put(deployment(A, status="stopped"))
    with pytest.raises(InvalidCommand, match="stopped"):
        registry.create_command("dep_1", "x")
    registry.deployment_table.put(deployment(A, B))
    with pytest.raises(TargetAmbiguous):
        registry.create_command("dep_1", "x")
    created = registry.create_command("dep_1", "x", target="b")
    assert (created.project_id, created.target, created.delivery_mode) == ("prj_1", B, PULL)
    assert registry.verify().events == 1


def test_what_was_resolved_stays_when_the_deployment_changes(registry: PostgresCommandRegistry) -> None:
    registry.deployment_table.put(deployment(A))
    created = registry.create_command("dep_1", "x", idempotency_key="k")
    registry.deployment_table.put(deployment(B, model=PULL))
    envelope = registry.get_command_metadata(created.command_id)
    assert envelope is not None
    assert (envelope.target, envelope.deployment_model, envelope.delivery_mode) == (A, PUSH, PUSH)
    registry.deployment_table.remove("dep_1")
    assert registry.create_command("dep_1", "x", idempotency_key="k") == created


class Mine:
    """A directory of one's own."""

    def get(self, deployment_id: str) -> Deployment | None:
        return deployment(A) if deployment_id == "dep_1" else None


class MineAsync:
    """One that has to wait."""

    async def get(self, deployment_id: str) -> Deployment | None:
        return Mine().get(deployment_id)


def test_a_directory_of_ones_own_is_asked(dsn: str) -> None:
    with PostgresCommandRegistry.open(dsn, deployments=Mine()) as registry:
        for each in (registry, MemoryCommandRegistry(Mine())):
            assert each.create_command("dep_1", "x").project_id == "prj_1"
            with pytest.raises(DeploymentNotFound):
                each.create_command("dep_2", "x")


async def test_an_async_directory_of_ones_own_is_awaited(dsn: str) -> None:
    async with AsyncPostgresCommandRegistry.open(dsn, deployments=MineAsync()) as registry:
        for each in (registry, AsyncMemoryCommandRegistry(MineAsync())):
            assert (await each.create_command("dep_1", "x")).project_id == "prj_1"
            assert (await each.resolve_target("dep_1")).target == A
            with pytest.raises(DeploymentNotFound):
                await each.resolve_target("dep_2")


async def test_the_async_table_gives_back_what_was_put(dsn: str) -> None:
    async with AsyncPostgresCommandRegistry.open(dsn, deployments="table") as registry:
        table = registry.deployment_table
        await table.put(deployment(A, B))
        assert await table.get("dep_1") == deployment(A, B)
        assert (await registry.resolve_target("dep_1", "a")).target == A
        assert await table.remove("dep_1") is True
        assert await table.get("dep_1") is None
