"""Fault: hostile input, in Python: any value for any parameter of any call, and rows that somebody's own SQL wrote.

Promise: it is refused by an error that names the argument, and nothing changes; or it is accepted, and reads back equal
for ever: status, metadata, history, the past, the export and a fresh fold of the log agree, and `verify` stays clean.
Nothing else: no other error, none that holds SQL or what acts on a terminal, and nobody else's call is touched.
"""

import asyncio
import enum
import inspect
import math
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registry import (
    AsyncCommandRegistry,
    AsyncMemoryCommandRegistry,
    AsyncPostgresCommandRegistry,
    CommandRegistry,
    Deployment,
    DeploymentModel,
    EventContext,
    FixedDeployments,
    InvalidCommand,
    MemoryCommandRegistry,
    PostgresCommandRegistry,
    command_context,
)
from registry.errors import NoTargets, TargetAmbiguous
from registry.testing.databases import Databases
from registry.testing.implementation import CALLS, opened
from tests.faults.hostile import PARAMETERS, ZOO, Judge, anything, parameters_of, same
from tests.soak import rounds
from tests.waiting import until

pytestmark = pytest.mark.timeout(120)

KINDS: Final = ["memory", "async_memory", "postgres", "async_postgres"]
EXAMPLES: Final = rounds(60, 20_000)


class Court(NamedTuple):
    """A judge, and the database of its registry (None: it is in memory)."""

    judge: Judge
    dsn: str | None

    def check(self) -> None:
        """Check that a fresh fold of the log has every status that was read, and that everything verifies."""
        print(dict(self.judge.counts))
        if self.dsn is not None:
            with PostgresCommandRegistry.open(self.dsn, pool_size=1) as registry:
                report = registry.verify()
                assert report.ok, report.problems
                # The log is given only up to the oldest transaction under way, be it in another test's database.
                self.judge.check_log(until(lambda: log if self.judge.is_in(log := list(registry.export())) else []))
        elif isinstance(self.judge.registry.registry, MemoryCommandRegistry):
            self.judge.check_log(self.judge.registry.registry.export())


def _factory(kind: str, dsn: str | None) -> Callable[[], Any]:
    match kind:
        case "memory":
            return MemoryCommandRegistry
        case "async_memory":
            return AsyncMemoryCommandRegistry
        case "postgres":
            return lambda: PostgresCommandRegistry.open(dsn, deployments=FixedDeployments())
        case _:
            return lambda: AsyncPostgresCommandRegistry.open(dsn, deployments=FixedDeployments())


@pytest.fixture(scope="module", params=KINDS)
def court(request: pytest.FixtureRequest, servers: Callable[[str], Databases]) -> Iterator[Court]:
    """A registry of every kind in turn."""
    databases = servers("default") if "postgres" in request.param else None
    name = databases.migrated() if databases else None
    dsn = databases.dsn(name) if databases and name else None
    with opened(_factory(request.param, dsn)) as implementation:
        yield Court(Judge(implementation), dsn)
    if databases and name:
        databases.drop(name)


def test_it_is_told_here_of_every_parameter_of_every_call_how_it_is_read_back() -> None:
    for protocol in (CommandRegistry, AsyncCommandRegistry):
        of_calls = [inspect.signature(getattr(protocol, call)).parameters for call in CALLS]
        assert {name for parameters in of_calls for name in parameters} - {"self"} == set(PARAMETERS)


@pytest.mark.parametrize("call", CALLS)
def test_whatever_is_given_is_refused_by_its_name_or_reads_back_equal(court: Court, call: str) -> None:
    problems = list(court.judge.problems(call))
    assert not problems, "\n".join(problems)
    court.check()


@settings(max_examples=EXAMPLES)
@given(data=st.data())
def test_whatever_is_made_up_is_refused_by_its_name_or_reads_back_equal(court: Court, data: st.DataObject) -> None:
    call = data.draw(st.sampled_from(CALLS), "call")
    parameter = data.draw(st.sampled_from(sorted(parameters_of(call))), "parameter")
    court.judge.judge(call, parameter, data.draw(anything, "value"))


@pytest.mark.parametrize("field", EventContext.model_fields)
def test_whatever_is_put_into_the_context_in_force_is_refused_by_its_name_or_read_back_equal(
    court: Court, field: str
) -> None:
    accepted = 0
    for value in ZOO:
        try:
            with command_context(**{field: value}):
                command_id = court.judge.registry.call("create_command", "dep_eu1", "sync-data").command_id
        except InvalidCommand as refusal:
            assert refusal.field.partition(".")[0] in {field, "context"}, refusal  # noqa: PT017 - accepted, too
            continue
        accepted += 1
        [entry] = court.judge.registry.history(command_id)
        found = getattr(entry.context, field)
        assert same({} if field == "attributes" and value is None else value, found)
    assert 0 < accepted < len(ZOO)
    court.check()


def test_an_id_may_be_a_text_of_any_class_and_is_the_same_id(court: Court) -> None:
    class Text(str):
        __slots__ = ()

    registry = court.judge.registry
    for call in [each for each in CALLS if "command_id" in parameters_of(each)]:
        command_id = registry.call("create_command", "dep_eu1", "sync-data").command_id
        named = enum.Enum("named", {"ID": command_id}, type=str)
        for given_id in (Text(command_id), named.ID):
            arguments = court.judge.ordinary(call, "timeout") | {"command_id": given_id}
            assert registry.call(call, **arguments) not in (None, []), call
            assert {entry.command_id for entry in registry.history(command_id)} == {command_id}

    class Deployments(str, enum.Enum):  # noqa: UP042 - whose str() is its name, and not its value
        EU = "dep_eu1"

    assert registry.call("resolve_target", Deployments.EU) == registry.call("resolve_target", "dep_eu1")
    for _ in range(2):
        one = registry.call("create_command", Deployments.EU, "sync-data", idempotency_key=Deployments.EU)
        assert one == registry.call("create_command", "dep_eu1", "sync-data", idempotency_key="dep_eu1")


def test_a_context_that_was_changed_after_it_came_into_force_is_refused_and_the_history_stays_readable(
    court: Court,
) -> None:
    command_id = court.judge.registry.call("create_command", "dep_eu1", "sync-data").command_id
    for value in (math.nan, "x" * 70_000, object(), 2**64, "\ud800"):
        with command_context(actor="ada", attributes={"first": 1}) as context:
            context.attributes["second"] = value  # type: ignore[assignment]
            with pytest.raises(InvalidCommand, match="attributes") as refused:
                court.judge.registry.call("increment_attempt", command_id)
            assert refused.value.field == "context.attributes"
    assert len(court.judge.registry.history(command_id)) == 1


@pytest.mark.parametrize("value", [datetime(2026, 11, 24), math.nan, "\ud800", object(), [[]] * 70_000])
def test_who_gives_what_is_refused_fails_nobody_elses_call_in_the_same_batch(dsn: str, value: Any) -> None:
    class Instant(datetime):
        """As freezegun has them."""

    async def main() -> None:
        async with AsyncPostgresCommandRegistry.open(dsn) as registry:
            made = await asyncio.gather(*[registry.create_command("dep_eu1", "sync-data") for _ in range(30)])
            ids = [each.command_id for each in made]
            context = EventContext(attributes={"first": 1})
            context.attributes["second"] = value
            at = [Instant(2026, 11, 24, tzinfo=UTC) if each % 5 == 2 else datetime.now(UTC) for each in range(30)]
            calls = [
                registry.complete_command(
                    ids[each],
                    "FAILED",  # type: ignore[arg-type]
                    value if each % 5 == 0 else at[each],
                    error=value if each % 5 == 1 else None,
                    context=context if each % 5 == 3 else None,
                )
                for each in range(30)
            ]
            told = await asyncio.gather(*calls, return_exceptions=True)
        expected = [InvalidCommand if each % 5 in {0, 1, 3} else bool for each in range(30)]
        assert [type(each) for each in told] == expected, told

    asyncio.run(main())
    with PostgresCommandRegistry.open(dsn) as registry:
        assert registry.verify().ok


# Deployments are also what somebody wrote into the table


ROWS: Final[list[dict[str, Any]]] = [
    *[
        {name: value}
        for name in ("workspace_id", "project_id", "name", "status")
        for value in ("", "\x1b[31m", "x" * 256)
    ],
    *[{"deployment_group": value} for value in ("", "\x1b[31m", "x" * 256)],
    *[{"targets": value} for value in ('{"x":1}', "[1]", "7", '"\\u001b"', "[[]]", "[" * 300 + "]" * 300, "1e400")],
    *[
        {"targets": f"[{target}]"}
        for target in (
            '{"resource_id":"\\u0000","resource_type":"worker"}',
            '{"resource_id":"\\ud800","resource_type":"worker"}',
            '{"resource_id":"x","resource_type":"lorry"}',
            '{"resource_id":"x","resource_type":"worker","more":1}',
            '{"resource_id":7,"resource_type":"worker"}',
        )
    ],
    {"targets": "[]"},
    {"targets": '[{"resource_id":"x","resource_type":"worker"},{"resource_id":"x","resource_type":"worker"}]'},
]


def test_a_deployment_that_cannot_be_one_is_refused_by_name_wherever_it_comes_from(
    dsn: str, connection: psycopg.Connection[Any]
) -> None:
    with PostgresCommandRegistry.open(dsn, deployments="table") as registry:
        for number, row in enumerate(ROWS):
            values = {"workspace_id": "w", "project_id": "p", "name": "n", "status": "running", "targets": None, **row}
            group = values.pop("deployment_group", None)
            connection.execute(
                "INSERT INTO command_registry.deployments (id, deployment_model, workspace_id, project_id, name, "
                "status, targets, deployment_group) VALUES (%s, 'pull', %s, %s, %s, %s, %s, %s)",
                (f"dep_{number}", *values.values(), group),
            )
            for call in (lambda id_: registry.create_command(id_, "sync-data"), registry.resolve_target):
                with pytest.raises((InvalidCommand, NoTargets, TargetAmbiguous)) as refused:
                    call(f"dep_{number}")
                assert f"dep_{number}" in str(refused.value)
                assert "\x1b" not in str(refused.value)
        for value in ZOO:
            assert registry.deployment_table.get(value) is None
            assert not registry.deployment_table.remove(value)
            with pytest.raises(InvalidCommand, match="deployment: must be a Deployment"):
                registry.deployment_table.put(value)
        unchecked = Deployment.model_construct(
            id="dep_x",
            workspace_id="\x00",
            project_id="p",
            deployment_model=DeploymentModel.PULL,
            name="n",
            group=None,
            targets=None,
        )
        with pytest.raises(InvalidCommand, match="workspace_id"):
            registry.deployment_table.put(unchecked)
        assert registry.verify().ok
