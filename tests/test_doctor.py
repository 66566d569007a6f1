import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.sql import SQL, Identifier
from typer.testing import CliRunner

from eventstore.database import Database
from eventstore.steps import Plan, Row, run
from projections.postgres import rebuild_table
from registry import CommandState, PostgresCommandRegistry, plans
from registry.cli.app import app
from registry.command_status import COMMAND_STATUS
from registry.doctor import Check, examination, examine, grants, log
from tests.conftest import Databases

Connection = psycopg.Connection[Any]


def checks_of(connection: Connection, *, quick: bool = False) -> dict[str, Check]:
    return {check.name: check for check in run(lambda _: nullcontext(connection), examine(quick=quick), 30)}


def amiss(connection: Connection) -> dict[str, Check]:
    """The checks that are not ok, but for open transactions: neighbouring tests have some."""
    return {name: c for name, c in checks_of(connection).items() if c.status != "ok" and name != "log readers"}


def migrate(connection: Connection) -> None:
    run(lambda _: nullcontext(connection), plans.migrate(), 30)


def mend(connection: Connection, check: Check) -> None:
    """Do what a check says: run its SQL, and migrate."""
    assert check.mend is not None
    for statement in re.sub(r"^run: ", "", check.mend).split("; "):
        if "command-registry migrate" in statement:
            migrate(connection)
        elif statement == "command-registry projections rebuild command_status":
            with Database(connection.info.dsn) as database:
                rebuild_table(database, COMMAND_STATUS)
        else:
            connection.execute(statement.encode())


def answers(plan: Plan[Any], *rows: list[Row]) -> Any:
    """What a plan returns when its steps give these rows."""
    next(plan)
    for answer in rows[:-1]:
        plan.send(answer)
    with pytest.raises(StopIteration) as stop:
        plan.send(rows[-1])
    return stop.value.value


@contextmanager
def writing_transaction(dsn: str) -> Iterator[Connection]:
    with psycopg.connect(dsn) as other:
        other.execute("SELECT pg_current_xact_id()")
        yield other


def fill(dsn: str) -> str:
    with PostgresCommandRegistry.open(dsn) as registry:
        command_id = registry.create_command("dep_eu1", "sync-data").command_id
        registry.update_command_state(command_id, CommandState.DISPATCHED)
    return command_id


@pytest.mark.every_postgres
def test_a_migrated_database_is_healthy(dsn: str, connection: Connection) -> None:
    fill(dsn)
    assert amiss(connection) == {}
    checks = checks_of(connection)
    assert checks["server"].found.startswith("Postgres 1")
    assert checks["log content"].found == "2 events of 1 commands: every hash and version is right"
    assert checks["drift"].found == "1 rows are the fold of the log"


def test_quick_leaves_the_verification_out(connection: Connection) -> None:
    assert checks_of(connection).keys() - checks_of(connection, quick=True).keys() == {"log content", "drift"}


def test_a_database_without_a_registry_is_told_to_migrate(empty_dsn: str) -> None:
    with psycopg.connect(empty_dsn, autocommit=True) as connection:
        assert amiss(connection)["schema"].mend == "run: command-registry migrate"
        mend(connection, amiss(connection)["schema"])
        assert amiss(connection) == {}


# Each is broken, found by one check, and mended by what that check says.
BROKEN = {
    "guard events_refuse_change": [
        "DROP TRIGGER events_refuse_change ON command_registry.events",
        "ALTER TABLE command_registry.events DISABLE TRIGGER events_refuse_change",
        "ALTER TABLE command_registry.events ENABLE TRIGGER events_refuse_change",
        """
        CREATE OR REPLACE TRIGGER events_refuse_change BEFORE UPDATE ON command_registry.events
            FOR EACH ROW EXECUTE FUNCTION command_registry.refuse_change();
        ALTER TABLE command_registry.events ENABLE ALWAYS TRIGGER events_refuse_change
        """,
        """
        CREATE OR REPLACE TRIGGER events_refuse_change BEFORE UPDATE OR DELETE ON command_registry.events
            FOR EACH ROW WHEN (old.version > 1) EXECUTE FUNCTION command_registry.refuse_change();
        ALTER TABLE command_registry.events ENABLE ALWAYS TRIGGER events_refuse_change
        """,
    ],
    "guard events_refuse_truncate": [
        "DROP TRIGGER events_refuse_truncate ON command_registry.events",
        "ALTER TABLE command_registry.events DISABLE TRIGGER events_refuse_truncate",
    ],
    "guard function": [
        """
        CREATE OR REPLACE FUNCTION command_registry.refuse_change() RETURNS trigger LANGUAGE plpgsql
        AS $$ BEGIN RETURN new; END $$
        """,
    ],
    "primary key": ["ALTER TABLE command_registry.events DROP CONSTRAINT events_pkey"],
    "log index": [
        "DROP INDEX command_registry.events_log_order",
        """
        DROP INDEX command_registry.events_log_order;
        CREATE INDEX events_log_order ON command_registry.events (position)
        """,
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'command_registry.events_log_order'::regclass",
    ],
    "log columns": [
        "ALTER TABLE command_registry.events ENABLE ROW LEVEL SECURITY",
        "CREATE RULE swallow AS ON INSERT TO command_registry.events DO INSTEAD NOTHING",
    ],
    "tables": [
        "DROP TABLE command_registry.idempotency_keys",
        "DROP TABLE command_registry.deployments, command_registry.idempotency_keys",
    ],
    "schema": [
        "DELETE FROM command_registry.schema_versions",
        "DROP TABLE command_registry.schema_versions",
    ],
    "grants": [
        "GRANT SELECT ON command_registry.events TO PUBLIC",
        "GRANT USAGE ON SCHEMA command_registry TO PUBLIC",
        "GRANT UPDATE (data) ON command_registry.events TO pg_monitor",
        "GRANT TRUNCATE, DELETE ON command_registry.events TO pg_monitor",
    ],
    "read model": [
        "DROP TABLE command_registry.command_status_v1 CASCADE",
        "DROP VIEW command_registry.command_status",
        "DELETE FROM command_registry.projections",
        "ALTER TABLE command_registry.command_status_v1 DROP COLUMN attempt CASCADE, ADD attempt numeric",
        "ALTER TABLE command_registry.command_status_v1 DROP COLUMN error CASCADE",
        "ALTER TABLE command_registry.command_status_v1 ADD more text",
        "ALTER TABLE command_registry.command_status_v1 DROP CONSTRAINT command_status_v1_pkey",
        "DROP INDEX command_registry.command_status_v1_deadline",
    ],
    "drift": [
        "UPDATE command_registry.command_status_v1 SET attempt = 7",
        "DELETE FROM command_registry.command_status_v1",
        """
        INSERT INTO command_registry.command_status_v1
        SELECT ('{"command_id":"orphan"}'::jsonb || to_jsonb(c) - 'command_id') ->> 'command_id', c.workspace_id,
            c.project_id, c.deployment_id, c.command, c.state, c.attempt, c.deadline, c.created_at, c.dispatched_at,
            c.completed_at, c.error, c.request_size_bytes, c.response_size_bytes, c.deployment_model,
            c.target_resource_id, c.target_resource_type, c.version
        FROM command_registry.command_status_v1 AS c
        """,
    ],
}


@pytest.mark.parametrize(("name", "damage"), [(name, damage) for name, all_of in BROKEN.items() for damage in all_of])
def test_what_is_broken_is_found_and_mended_as_the_check_says(
    dsn: str, connection: Connection, name: str, damage: str
) -> None:
    fill(dsn)
    connection.execute("SET allow_system_table_mods = on")
    connection.execute(damage.encode())
    found = amiss(connection)
    assert found[name].status == "failed"
    mend(connection, found[name])
    assert amiss(connection) == {}


def test_several_grants_too_many_are_all_taken_back(connection: Connection) -> None:
    connection.execute("GRANT ALL ON ALL TABLES IN SCHEMA command_registry TO PUBLIC")
    connection.execute("GRANT UPDATE, TRIGGER ON command_registry.events TO command_registry_writer")
    found = amiss(connection)
    assert found["grants"].status == "failed"
    assert "UPDATE, TRIGGER" in found["role command_registry_writer"].found.replace("DELETE, TRUNCATE, ", "")
    mend(connection, found["grants"])
    assert amiss(connection) == {}


def test_a_right_that_a_role_lacks_is_given_again_by_migrate(connection: Connection) -> None:
    connection.execute("REVOKE INSERT ON command_registry.events FROM command_registry_writer")
    connection.execute("REVOKE USAGE ON SCHEMA command_registry FROM command_registry_reader")
    found = amiss(connection)
    assert found["role command_registry_writer"].found == "lacks INSERT on events"
    assert found["role command_registry_reader"].found == "lacks USAGE on the schema"
    migrate(connection)
    assert amiss(connection) == {}


def test_a_missing_role_is_a_warning() -> None:
    writer, reader = answers(grants.roles(), [])
    assert (writer.status, reader.status) == ("warning", "warning")
    assert "CREATE ROLE command_registry_writer NOLOGIN" in writer.mend


def test_the_user_is_told_what_it_may_not_do(dsn: str, connection: Connection) -> None:
    user = f"doctor_{conninfo_to_dict(dsn)['dbname']}"
    role = Identifier(user)
    connection.execute(SQL("CREATE ROLE {} LOGIN").format(role))
    try:
        with psycopg.connect(make_conninfo(dsn, user=user), autocommit=True) as mine:
            assert checks_of(mine)["schema"].mend == f'run: GRANT command_registry_reader TO "{user}"'
            connection.execute(SQL("GRANT USAGE ON SCHEMA command_registry TO {}").format(role))
            assert "may not read its version" in checks_of(mine)["schema"].found
            connection.execute(SQL("GRANT SELECT ON command_registry.schema_versions TO {}").format(role))
            assert checks_of(mine)[f"user {user}"].status == "failed"
            assert "may not read projections, events" in checks_of(mine)["contents"].found
            connection.execute(SQL("GRANT command_registry_reader TO {}").format(role))
            assert checks_of(mine)[f"user {user}"].status == "warning"
            assert checks_of(mine)["drift"].status == "ok"
            connection.execute(SQL("GRANT command_registry_writer TO {}").format(role))
            assert checks_of(mine)[f"user {user}"].status == "ok"
    finally:
        connection.execute(SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(role))


def test_a_schema_of_a_later_version_asks_for_a_newer_software(connection: Connection) -> None:
    connection.execute("INSERT INTO command_registry.schema_versions (version) VALUES (99)")
    assert amiss(connection)["schema"].mend == "install a newer command-registry"


def test_a_lost_log_is_not_taken_for_something_that_migrate_mends(connection: Connection) -> None:
    connection.execute("DROP TABLE command_registry.events CASCADE")
    found = amiss(connection)["tables"]
    assert found.mend is not None
    assert found.mend.startswith("restore the log from a backup")


def test_a_wrong_column_of_the_log_is_named(connection: Connection) -> None:
    connection.execute("ALTER TABLE command_registry.events ALTER position DROP DEFAULT, ADD more text")
    found = amiss(connection)["log columns"].found
    assert found == (
        "position is bigint NOT NULL, not bigint NOT NULL DEFAULT "
        "nextval('command_registry.events_position_seq'::regclass); more is not in schema.sql"
    )


def test_another_trigger_on_the_log_is_a_warning(connection: Connection) -> None:
    connection.execute(
        """
        CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN new; END $$;
        CREATE TRIGGER meddle BEFORE INSERT ON command_registry.events FOR EACH ROW EXECUTE FUNCTION meddle();
        """
    )
    assert amiss(connection)["other triggers"].status == "warning"


def test_a_changed_event_is_found_and_names_the_command_and_version(dsn: str, connection: Connection) -> None:
    command_id = fill(dsn)
    connection.execute("ALTER TABLE command_registry.events DISABLE TRIGGER events_refuse_change")
    connection.execute("UPDATE command_registry.events SET metadata = '{}' WHERE version = 2")
    connection.execute('UPDATE command_registry.events SET metadata = \'{"actor":"x"}\' WHERE version = 2')
    connection.execute("ALTER TABLE command_registry.events ENABLE ALWAYS TRIGGER events_refuse_change")
    found = amiss(connection)
    assert set(found) == {"log content"}
    assert f"stream {command_id}, version 2: the hash does not match" in found["log content"].found


def test_many_problems_are_shown_in_part(dsn: str, connection: Connection) -> None:
    for _ in range(5):
        fill(dsn)
    connection.execute("UPDATE command_registry.command_status_v1 SET attempt = 7")
    assert amiss(connection)["drift"].found.endswith("; and 2 more")


# The order of the log


def test_a_log_from_another_server_is_found(dsn: str, connection: Connection) -> None:
    fill(dsn)
    connection.execute(
        "INSERT INTO command_registry.events "
        "SELECT stream_id, 3, type, schema_version, occurred_at, data, metadata, hash, 9, '5000000000' "
        "FROM command_registry.events WHERE version = 2"
    )
    found = checks_of(connection, quick=True)["log order"]
    assert found.status == "failed"
    assert found.mend is not None
    assert "pg_resetwal --epoch=2 " in found.mend
    assert "physical copy" in found.mend


@pytest.mark.parametrize(
    ("last", "following", "epoch"),
    [(1_000_000, 800, 1), (5_000_000_000, 800, 2), (5_000_000_000, 900_000_000, 1), (2**33 + 799, 800, 2)],
)
def test_the_epoch_puts_the_next_transaction_after_the_log_and_no_further(
    last: int, following: int, epoch: int
) -> None:
    check = answers(log.order(), [(last, following)])
    assert f"--epoch={epoch} " in check.mend
    assert (epoch << 32) + following > last
    assert (epoch - 1 << 32) + following <= last


def test_an_open_transaction_that_holds_readers_back_is_named(dsn: str, connection: Connection) -> None:
    with writing_transaction(dsn) as writer:
        fill(dsn)
        found = checks_of(connection, quick=True)["log readers"]
        assert found.status == "warning"
        assert found.mend is not None
        named = re.search(r"pid \d+, in database (\S+), user", found.found)
        assert named is not None
        assert "events wait for it" in found.found
        assert "pg_terminate_backend" in found.mend
        assert writer.info.backend_pid > 0


def test_a_transaction_that_may_not_be_seen_is_told_of() -> None:
    check = answers(log.readers("ada"), [(3,)], [])
    assert check.status == "warning"
    assert check.mend == 'to see it, run: GRANT pg_monitor TO "ada"'


def test_a_transaction_of_which_only_the_pid_may_be_seen_is_named() -> None:
    check = answers(log.readers("ada"), [(3,)], [("pid 1", None, "db", "bob", "...", None)])
    assert check.status == "warning"
    assert check.found.startswith("pid 1, in database db, user bob, has written, and began at a time that ada may not")


def test_a_short_transaction_is_no_warning() -> None:
    assert answers(log.readers("ada"), [(0,)], [("pid 1", 0.1, "db", "bob", "...", None)]).status == "ok"
    assert answers(log.readers("ada"), [(0,)], [("pid 1", 60.0, "db", "bob", "...", None)]).status == "warning"


# The server


@pytest.mark.parametrize(
    ("version", "encoding", "standby", "amiss_in"),
    [
        (140_005, "UTF8", False, ("server", "failed")),
        (190_000, "UTF8", False, ("server", "warning")),
        (180_000, "UTF8", True, ("server", "warning")),
        (180_000, "LATIN1", False, ("encoding", "failed")),
    ],
)
def test_a_server_that_does_not_fit_is_told(
    version: int, encoding: str, standby: bool, amiss_in: tuple[str, str]
) -> None:
    checks = answers(examine(), [(version, encoding, "db", "ada", standby)], [])
    assert amiss_in in [(check.name, check.status) for check in checks]
    assert examination.NEWEST_SERVER == 18


def test_a_database_in_another_encoding_is_told(databases: Databases) -> None:
    name = "doctor_" + uuid.uuid4().hex
    databases.execute("CREATE DATABASE {} TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'", name)
    result = CliRunner(env={"COMMAND_REGISTRY_DSN": databases.dsn(name)}).invoke(app, ["doctor"])
    databases.drop(name)
    assert result.exit_code == 1
    assert f"failed  encoding: database {name} is in SQL_ASCII" in result.stdout


# The command


def test_the_command_prints_every_check_and_fails_when_one_did(dsn: str, connection: Connection) -> None:
    environment = {"COMMAND_REGISTRY_DSN": dsn}
    good = CliRunner(env=environment).invoke(app, ["doctor"])
    assert good.exit_code == 0, good.output
    assert "ok      server: Postgres" in good.stdout
    assert ", 0 failed," in good.stdout
    connection.execute("DROP TRIGGER events_refuse_truncate ON command_registry.events")
    bad = CliRunner(env=environment).invoke(app, ["doctor", "--quick"])
    assert bad.exit_code == 1
    assert "failed  guard events_refuse_truncate: the trigger is missing" in bad.stdout
    assert "        to mend: run: command-registry migrate\n" in bad.stdout
    assert bad.stderr == ""
