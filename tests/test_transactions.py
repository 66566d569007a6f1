"""Writes in the caller's own transaction: they commit or vanish with it."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from psycopg import ClientCursor, sql
from psycopg.rows import dict_row, namedtuple_row

from registry import (
    AsyncPostgresCommandRegistry,
    CommandState,
    Conflict,
    Deployment,
    DeploymentModel,
    DeploymentNotFound,
    IdempotencyConflict,
    InvalidTransition,
    MemoryCommandRegistry,
    OutcomeUnknown,
    PostgresCommandRegistry,
    Unavailable,
)

NOW = datetime(2026, 11, 24, 10, 0, tzinfo=UTC)

pytestmark = pytest.mark.every_postgres


@pytest.fixture
def registry(dsn: str) -> Iterator[PostgresCommandRegistry]:
    with PostgresCommandRegistry.open(dsn) as registry:
        yield registry


@pytest.fixture
def mine(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(dsn) as connection:
        connection.execute("CREATE TABLE orders (id int PRIMARY KEY, command_id text)")
        connection.commit()
        yield connection


def test_a_command_commits_with_the_callers_own_rows(
    registry: PostgresCommandRegistry, mine: psycopg.Connection[Any]
) -> None:
    with mine.transaction():
        command_id = registry.create_command("dep_1", "x", connection=mine).command_id
        mine.execute("INSERT INTO orders VALUES (1, %s)", (command_id,))
        assert registry.increment_attempt(command_id, connection=mine) == 2
        assert registry.get_command_status(command_id) is None
    status = registry.get_command_status(command_id)
    assert status is not None
    assert (status.attempt, status.version) == (2, 2)
    assert mine.execute("SELECT command_id FROM orders").fetchall() == [(command_id,)]
    assert registry.verify().ok


def test_a_command_vanishes_with_the_callers_transaction(
    registry: PostgresCommandRegistry, mine: psycopg.Connection[Any]
) -> None:
    command_id = registry.create_command("dep_1", "x", idempotency_key="k", connection=mine).command_id
    registry.complete_command(command_id, CommandState.FAILED, NOW, connection=mine)
    mine.rollback()
    assert registry.get_command_status(command_id) is None
    assert registry.create_command("dep_2", "y", idempotency_key="k").command_id != command_id
    report = registry.verify()
    assert (report.ok, report.events) == (True, 1)


def test_a_write_does_not_end_a_transaction_that_had_not_begun(
    registry: PostgresCommandRegistry, mine: psycopg.Connection[Any]
) -> None:
    command_id = registry.create_command("dep_1", "x", connection=mine).command_id
    assert mine.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS
    assert registry.get_command_status(command_id) is None
    mine.commit()
    assert registry.get_command_status(command_id) is not None


def test_a_connection_in_autocommit_commits_each_write(registry: PostgresCommandRegistry, dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        command_id = registry.create_command("dep_1", "x", connection=connection).command_id
        assert registry.get_command_status(command_id) is not None
        with connection.transaction(force_rollback=True):
            registry.increment_attempt(command_id, connection=connection)
    status = registry.get_command_status(command_id)
    assert status is not None
    assert status.attempt == 1


def test_a_refusal_leaves_the_callers_transaction_usable(
    registry: PostgresCommandRegistry, mine: psycopg.Connection[Any]
) -> None:
    first = registry.create_command("dep_1", "x", idempotency_key="k").command_id
    mine.execute("INSERT INTO orders VALUES (1, NULL)")
    with pytest.raises(IdempotencyConflict):
        registry.create_command("dep_2", "x", idempotency_key="k", connection=mine)
    with pytest.raises(InvalidTransition):
        registry.update_command_state(first, CommandState.SUCCEEDED, connection=mine)
    mine.execute("INSERT INTO orders VALUES (2, NULL)")
    mine.commit()
    assert mine.execute("SELECT count(*) FROM orders").fetchone() == (2,)


def test_a_lost_race_inside_a_transaction_is_decided_again(
    registry: PostgresCommandRegistry, mine: psycopg.Connection[Any], dsn: str
) -> None:
    command_id = registry.create_command("dep_1", "x").command_id
    mine.execute("INSERT INTO orders VALUES (1, NULL)")
    raced = False

    def clock() -> datetime:
        nonlocal raced  # the clock is read after the decision and before the append
        if not raced:
            raced = True
            registry.increment_attempt(command_id)
        return NOW

    with PostgresCommandRegistry.open(dsn, clock=clock) as racing:
        assert racing.increment_attempt(command_id, connection=mine) == 3
    mine.commit()
    assert [event.type for event in registry.history(command_id)] == ["CommandCreated", *["AttemptIncremented"] * 2]
    assert mine.execute("SELECT count(*) FROM orders").fetchone() == (1,)


def test_a_snapshot_that_hides_the_other_writer_gets_a_conflict_and_no_endless_loop(
    registry: PostgresCommandRegistry, mine: psycopg.Connection[Any]
) -> None:
    command_id = registry.create_command("dep_1", "x").command_id
    mine.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    mine.execute("SELECT 1")
    registry.increment_attempt(command_id)
    with pytest.raises((Conflict, psycopg.errors.SerializationFailure)):
        registry.increment_attempt(command_id, connection=mine)
    mine.rollback()


def test_the_sessions_time_zone_and_date_style_change_nothing(
    registry: PostgresCommandRegistry, mine: psycopg.Connection[Any]
) -> None:
    mine.execute("SET TimeZone = 'Asia/Kathmandu'; SET DateStyle = 'German'")
    first, last = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
    command_id = registry.create_command("dep_1", "x", deadline=last, connection=mine).command_id
    registry.mark_dispatched_if_not_terminal(command_id, first, connection=mine)
    registry.increment_attempt(command_id, connection=mine)
    mine.commit()
    status = registry.get_command_status(command_id)
    assert status is not None
    assert (status.deadline, status.dispatched_at, status.attempt) == (last, first, 2)
    assert registry.verify().ok


@pytest.mark.parametrize(
    "settings", [{"row_factory": dict_row}, {"row_factory": namedtuple_row}, {"cursor_factory": ClientCursor}]
)
def test_whatever_cursors_the_callers_connection_makes_the_answers_are_the_same(
    registry: PostgresCommandRegistry, dsn: str, settings: dict[str, Any]
) -> None:
    with psycopg.connect(dsn, **settings) as connection:
        created = registry.create_command("dep_1", "x", idempotency_key="k", connection=connection)
        assert registry.create_command("dep_1", "x", idempotency_key="k", connection=connection) == created
        assert registry.increment_attempt(created.command_id, connection=connection) == 2
        assert registry.complete_command(created.command_id, CommandState.FAILED, NOW, connection=connection)
    assert len(registry.history(created.command_id)) == 3


async def test_a_connection_of_the_wrong_kind_is_refused_before_anything_is_written(
    registry: PostgresCommandRegistry, dsn: str, mine: psycopg.Connection[Any]
) -> None:
    async with await psycopg.AsyncConnection.connect(dsn) as wrong:
        for other in (wrong, "postgresql://", 5):
            with pytest.raises(TypeError, match=r"must be a psycopg\.Connection"):
                registry.create_command("dep_1", "x", connection=other)  # type: ignore[arg-type]
    async with AsyncPostgresCommandRegistry.open(dsn) as theirs:
        with pytest.raises(TypeError, match=r"must be a psycopg\.AsyncConnection"):
            await theirs.create_command("dep_1", "x", connection=mine)  # type: ignore[arg-type]
    assert registry.verify().events == 0


def test_a_connection_in_pipeline_mode_is_refused(
    registry: PostgresCommandRegistry, mine: psycopg.Connection[Any]
) -> None:
    with mine.pipeline(), pytest.raises(ValueError, match="pipeline"):
        registry.create_command("dep_1", "x", connection=mine)


def test_a_transaction_that_has_failed_is_named(
    registry: PostgresCommandRegistry, mine: psycopg.Connection[Any]
) -> None:
    with pytest.raises(psycopg.errors.UndefinedTable):
        mine.execute("SELECT FROM nowhere")
    with pytest.raises(Unavailable, match="roll it back"):
        registry.create_command("dep_1", "x", connection=mine)


def test_who_waits_too_long_for_a_callers_transaction_is_told_so(dsn: str, mine: psycopg.Connection[Any]) -> None:
    with PostgresCommandRegistry.open(dsn, timeout=1) as hasty:
        command_id = hasty.create_command("dep_1", "x").command_id
        assert hasty.increment_attempt(command_id, connection=mine) == 2
        with pytest.raises(Unavailable, match="did not let go") as caught:
            hasty.increment_attempt(command_id)
        assert not isinstance(caught.value, OutcomeUnknown)
        mine.commit()
        assert hasty.increment_attempt(command_id) == 3


def test_a_database_that_is_serializable_by_default_changes_nothing(dsn: str, mine: psycopg.Connection[Any]) -> None:
    database = sql.Identifier(mine.info.dbname)
    mine.execute(sql.SQL("ALTER DATABASE {} SET default_transaction_isolation = 'serializable'").format(database))
    mine.commit()
    with PostgresCommandRegistry.open(dsn) as registry, ThreadPoolExecutor(8) as pool:
        command_id = registry.create_command("dep_1", "x").command_id
        numbers = list(pool.map(lambda _: registry.increment_attempt(command_id), range(80)))
    assert sorted(numbers) == list(range(2, 82))


def test_a_closed_connection_is_named(registry: PostgresCommandRegistry, dsn: str) -> None:
    connection = psycopg.connect(dsn)
    connection.close()
    with pytest.raises(Unavailable, match="connection="):
        registry.create_command("dep_1", "x", connection=connection)


def test_overdue_commands_of_the_transaction_expire_in_it(
    registry: PostgresCommandRegistry, mine: psycopg.Connection[Any]
) -> None:
    command_id = registry.create_command("dep_1", "x", deadline=NOW, connection=mine).command_id
    assert registry.expire_overdue(NOW) == []
    assert registry.expire_overdue(NOW, connection=mine) == [command_id]
    mine.rollback()
    assert registry.verify().events == 0


def test_a_deployment_of_the_transaction_takes_commands_in_it(dsn: str, mine: psycopg.Connection[Any]) -> None:
    deployment = Deployment(
        id="dep_1", workspace_id="ws", project_id="prj", deployment_model=DeploymentModel.PUSH, name="one"
    )
    with PostgresCommandRegistry.open(dsn, deployments="table") as registry:
        registry.deployment_table.put(deployment, connection=mine)
        assert registry.create_command("dep_1", "x", connection=mine).project_id == "prj"
        mine.rollback()
        with pytest.raises(DeploymentNotFound):
            registry.create_command("dep_1", "x", connection=mine)


async def test_async_writes_commit_and_vanish_likewise(dsn: str) -> None:
    async with (
        AsyncPostgresCommandRegistry.open(dsn) as registry,
        await psycopg.AsyncConnection.connect(dsn) as connection,
    ):
        kept = (await registry.create_command("dep_1", "x", connection=connection)).command_id
        assert await registry.get_command_status(kept) is None
        await connection.commit()
        assert await registry.get_command_status(kept) is not None
        assert await registry.increment_attempt(kept, connection=connection) == 2
        with pytest.raises(InvalidTransition):
            await registry.update_command_state(kept, CommandState.SUCCEEDED, connection=connection)
        await connection.rollback()
        status = await registry.get_command_status(kept)
        assert status is not None
        assert status.attempt == 1


def test_a_registry_in_memory_says_that_it_has_no_transactions(mine: psycopg.Connection[Any]) -> None:
    with pytest.raises(ValueError, match="connection"):
        MemoryCommandRegistry().create_command("dep_1", "x", connection=mine)
