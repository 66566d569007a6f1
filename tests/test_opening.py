"""Opening a registry: what is told when it cannot be, and what it changes."""

from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from psycopg import sql

from registry import InvalidDsn, PostgresCommandRegistry, SchemaMismatch, Unavailable

NOW = "2026-11-24T10:00:00Z"


@pytest.mark.parametrize("dsn", ["postgresql//u:s3cret@h/db", "host=h pasword=s3cret", "postgresql://u:s3cret@h:x/db"])
def test_a_dsn_that_cannot_be_read_is_refused_without_being_repeated(dsn: str) -> None:
    with pytest.raises((InvalidDsn, Unavailable)) as caught:
        PostgresCommandRegistry.open(dsn, timeout=1)
    assert "s3cret" not in str(caught.value)
    assert isinstance(InvalidDsn(), ValueError)


def test_a_registry_that_is_not_open_says_so(dsn: str) -> None:
    registry = PostgresCommandRegistry(dsn)
    with pytest.raises(Unavailable, match="open"):
        registry.create_command("dep_1", "x")
    with registry:
        registry.create_command("dep_1", "x")
    with pytest.raises(Unavailable, match="open"):
        registry.create_command("dep_1", "x")


def test_who_may_only_write_may_also_say_migrate_when_there_is_nothing_to_do(dsn: str, empty_dsn: str) -> None:
    as_writer = f"{dsn} options='-c role=command_registry_writer'"
    with PostgresCommandRegistry.open(as_writer, migrate=True) as registry:
        command_id = registry.create_command("dep_1", "x", idempotency_key="k").command_id
        assert registry.increment_attempt(command_id) == 2
    with PostgresCommandRegistry.open(f"{dsn} options='-c role=command_registry_reader'") as reader:
        assert len(reader.history(command_id)) == 2
        assert reader.verify().ok
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            reader.increment_attempt(command_id)
    with pytest.raises(SchemaMismatch, match="command-registry migrate"):
        PostgresCommandRegistry.open(empty_dsn)


@pytest.mark.parametrize("column", ["position", "recorded_at"])
def test_a_writer_cannot_say_when_or_where_an_event_was_written(
    dsn: str, connection: psycopg.Connection[Any], column: str
) -> None:
    value = {"position": "1", "recorded_at": "now()"}[column]
    connection.execute("SET ROLE command_registry_writer")
    columns = "stream_id, version, type, schema_version, occurred_at, data, metadata, hash"
    values = f"'s', 1, 'T', 1, '{NOW}', '{{}}', '{{}}', decode(repeat('00', 32), 'hex')"
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute(f"INSERT INTO command_registry.events ({columns}, {column}) VALUES ({values}, {value})")  # noqa: S608
    connection.execute(f"INSERT INTO command_registry.events ({columns}) VALUES ({values})")  # noqa: S608


def test_nobodys_functions_stand_in_for_the_servers_own_in_a_migration(empty_dsn: str) -> None:
    with psycopg.connect(empty_dsn, autocommit=True) as connection:
        connection.execute(
            "CREATE FUNCTION public.nextval(text) RETURNS bigint LANGUAGE plpgsql "
            "AS $$ BEGIN RAISE EXCEPTION 'hijacked'; END $$"
        )
        database = sql.Identifier(connection.info.dbname)
        connection.execute(sql.SQL("ALTER DATABASE {} SET search_path = public, pg_catalog").format(database))
    with PostgresCommandRegistry.open(empty_dsn, migrate=True) as registry:
        registry.create_command("dep_1", "x")
        assert registry.verify().ok


def test_a_row_without_events_does_not_stop_the_others_from_expiring(
    dsn: str, connection: psycopg.Connection[Any]
) -> None:
    with PostgresCommandRegistry.open(dsn) as registry:
        first, second = (
            registry.create_command("dep_1", "x", deadline=registry_time(minutes)).command_id for minutes in (1, 2)
        )
        connection.execute(
            "INSERT INTO command_registry.command_status_v1 SELECT (jsonb_populate_record(row, "
            "jsonb_build_object('command_id', 'ghost', 'deadline', '2000-01-01T00:00:00Z'))).* "
            "FROM command_registry.command_status_v1 AS row LIMIT 1"
        )
        assert registry.expire_overdue(registry_time(3)) == [first, second]
        assert [problem.stream_id for problem in registry.verify().problems] == ["ghost"]


def registry_time(minutes: int) -> datetime:
    return datetime(2026, 1, 1, 0, minutes, tzinfo=UTC)
