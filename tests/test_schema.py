"""schema.sql: run twice, by many, by users with few rights; and the guards that keep the log append-only."""

import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg import errors
from psycopg.sql import SQL, Identifier

from eventstore import SchemaMismatch, plans, schema
from eventstore.schema import schema_sql
from projections import queries as projection_queries
from registry import AsyncPostgresCommandRegistry, CommandState, PostgresCommandRegistry
from registry import plans as registry
from tests.conftest import Databases
from tests.lending import acquired, lent, on, returned
from tests.waiting import until_waiting_for_lock

Connection = psycopg.Connection[Any]


@contextmanager
def connected(dsn: str) -> Iterator[Connection]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        yield connection


def tables(connection: Connection) -> set[str]:
    rows = connection.execute("SELECT relname FROM pg_class WHERE relnamespace = 'command_registry'::regnamespace")
    return {name for (name,) in rows}


def catalogue(connection: Connection) -> list[Any]:
    """Everything that a migration makes, as the catalogue has it, to the row's own transaction."""
    return connection.execute("""
        SELECT 'class', oid::text, relname, xmin::text FROM pg_class
            WHERE relnamespace = 'command_registry'::regnamespace
        UNION ALL SELECT 'trigger', oid::text, tgname || tgenabled::text, xmin::text FROM pg_trigger
            WHERE tgrelid = 'command_registry.events'::regclass
        UNION ALL SELECT 'version', version::text, installed_by, xmin::text FROM command_registry.schema_versions
        UNION ALL SELECT 'projection', name, version::text, in_force::text FROM command_registry.projections
        ORDER BY 1, 2
    """).fetchall()


# Migrating.


@pytest.mark.every_postgres
def test_a_migration_makes_a_registry_of_an_empty_database(empty_dsn: str) -> None:
    with PostgresCommandRegistry.open(empty_dsn, migrate=True) as opened:
        command_id = opened.create_command("dep", "sync").command_id
        assert opened.get_command_status(command_id) is not None
        assert opened.verify().ok
    with connected(empty_dsn) as connection:
        assert tables(connection) > {"events", "command_status_v1", "command_status", "deployments", "projections"}


@pytest.mark.every_postgres
def test_a_second_migration_keeps_what_is_there(connection: Connection) -> None:
    on(connection, plans.append("book", 0, [acquired(), lent()]))
    before = on(connection, plans.read_stream("book"))
    made = [row[:3] for row in catalogue(connection)]
    on(connection, registry.migrate())
    assert [row[:3] for row in catalogue(connection)] == made
    assert on(connection, plans.read_stream("book")) == before


def test_the_script_alone_may_be_run_twice(empty_dsn: str) -> None:
    with connected(empty_dsn) as connection:
        for _ in range(2):
            connection.execute(schema_sql().encode())
        assert on(connection, schema.installed_version()) == schema.SCHEMA_VERSION


def together(count: int, work: Callable[[int, threading.Barrier], object]) -> None:
    """Do work in so many threads at once; each waits at the barrier until all are ready."""
    barrier = threading.Barrier(count, timeout=30)
    with ThreadPoolExecutor(count) as threads:
        for future in [threads.submit(work, n, barrier) for n in range(count)]:
            future.result()


@pytest.mark.every_postgres
@pytest.mark.parametrize("count", [2, 8])
def test_a_fresh_database_may_be_migrated_by_many_at_once(empty_dsn: str, count: int) -> None:
    def migrate(_: int, barrier: threading.Barrier) -> None:
        with connected(empty_dsn) as connection:
            barrier.wait()
            on(connection, registry.migrate())

    together(count, migrate)
    with PostgresCommandRegistry.open(empty_dsn) as opened:
        opened.create_command("dep", "sync")
        assert opened.verify().ok


def test_of_two_migrations_of_a_database_the_second_waits_for_the_first(empty_dsn: str) -> None:
    script, end = schema_sql().rsplit("COMMIT;", 1)
    assert not end.strip()
    with connected(empty_dsn) as first, connected(empty_dsn) as second, connected(empty_dsn) as observer:
        first.execute(script.encode())
        waiting = threading.Thread(target=second.execute, args=(schema_sql().encode(),))
        waiting.start()
        until_waiting_for_lock(observer, second.info.backend_pid)
        first.commit()
        waiting.join(30)
        assert on(second, schema.installed_version()) == schema.SCHEMA_VERSION


# Roles. They are the server's, so these tests use names of their own.


class Roles:
    """Makes roles for one test, and a schema.sql with its own names for writer and reader."""

    def __init__(self, databases: Databases) -> None:
        self._databases = databases
        self._prefix = f"crt_{uuid.uuid4().hex[:12]}"
        self.writer, self.reader = self.name("writer"), self.name("reader")
        self.used_in: list[Connection] = []

    def name(self, kind: str) -> str:
        return f"{self._prefix}_{kind}"

    def create(self, kind: str, options: LiteralString = "NOLOGIN") -> str:
        self._databases.execute("CREATE ROLE {} " + options, self.name(kind))
        return self.name(kind)

    def in_place(self, sql: str) -> str:
        return sql.replace("command_registry_writer", self.writer).replace("command_registry_reader", self.reader)

    def script(self) -> str:
        return self.in_place(schema_sql())

    def exist(self) -> set[str]:
        with connected(self._databases.server_dsn) as connection:
            rows = connection.execute("SELECT rolname FROM pg_roles WHERE rolname LIKE %s", (f"{self._prefix}%",))
            return {name.removeprefix(f"{self._prefix}_") for (name,) in rows}

    def clear(self) -> None:
        for kind in self.exist():
            for connection in self.used_in:
                connection.execute("RESET SESSION AUTHORIZATION")
                connection.execute(SQL("DROP OWNED BY {} CASCADE").format(Identifier(self.name(kind))))
            self._databases.execute("DROP ROLE {}", self.name(kind))


@pytest.fixture
def roles(databases: Databases) -> Iterator[Roles]:
    roles = Roles(databases)
    try:
        yield roles
    finally:
        roles.clear()


@pytest.fixture
def empty(empty_dsn: str, roles: Roles) -> Iterator[Connection]:
    """A superuser's connection to an empty database, in which `roles` are used."""
    with connected(empty_dsn) as connection:
        roles.used_in.append(connection)
        yield connection
        roles.clear()


def act_as(connection: Connection, role: str) -> None:
    connection.execute(SQL("SET SESSION AUTHORIZATION {}").format(Identifier(role)))


@pytest.mark.every_postgres
def test_a_user_who_may_create_roles_creates_them(empty: Connection, roles: Roles) -> None:
    empty.execute(roles.script().encode())
    assert roles.exist() == {"writer", "reader"}


@pytest.mark.every_postgres
def test_a_user_who_may_not_create_roles_is_told_so_and_can_work(empty: Connection, roles: Roles) -> None:
    user = roles.create("limited", "LOGIN NOCREATEROLE")
    empty.execute(SQL("GRANT CREATE ON DATABASE {} TO {}").format(Identifier(empty.info.dbname), Identifier(user)))
    act_as(empty, user)
    told: list[tuple[str | None, ...]] = []
    empty.add_notice_handler(
        lambda notice: told.append((notice.severity_nonlocalized, notice.message_primary, notice.message_hint))
    )
    empty.execute(roles.script().encode())
    assert [text for _, text, _ in told] == [
        f"role {name} was not created: {user} may not create roles" for name in (roles.writer, roles.reader)
    ]
    assert {severity for severity, _, _ in told} == {"WARNING"}
    assert f'run "CREATE ROLE {roles.writer} NOLOGIN", then migrate again' in str(told[0][2])
    assert roles.exist() == {"limited"}
    on(empty, plans.append("book", 0, [acquired()]))
    assert len(on(empty, plans.read_stream("book"))) == 1
    with pytest.raises(errors.RestrictViolation):
        empty.execute("DELETE FROM command_registry.events")


def test_roles_that_an_administrator_creates_later_get_their_grants_from_the_next_migration(
    empty: Connection, roles: Roles
) -> None:
    user = roles.create("limited", "LOGIN NOCREATEROLE")
    empty.execute(SQL("GRANT CREATE ON DATABASE {} TO {}").format(Identifier(empty.info.dbname), Identifier(user)))
    act_as(empty, user)
    empty.execute(roles.script().encode())
    roles.create("writer")
    empty.execute(roles.script().encode())
    empty.execute("RESET SESSION AUTHORIZATION")
    act_as(empty, roles.writer)
    on(empty, plans.append("book", 0, [acquired()]))


def test_the_read_model_gets_its_grants_from_the_next_migration_too(
    connection: Connection, roles: Roles, monkeypatch: pytest.MonkeyPatch
) -> None:
    roles.used_in.append(connection)
    roles.create("writer")
    roles.create("reader")
    monkeypatch.setattr(projection_queries, "GRANT", roles.in_place(projection_queries.GRANT))
    monkeypatch.setattr(schema, "schema_sql", roles.script)
    on(connection, registry.migrate())
    for table in ("command_status_v1", "command_status"):
        for role, right in ((roles.writer, "INSERT, UPDATE"), (roles.reader, "SELECT")):
            sql = "SELECT has_table_privilege(%s, %s, %s)"
            [(may,)] = connection.execute(sql, (role, f"command_registry.{table}", right)).fetchall()
            assert may, (table, role)
    roles.clear()


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_two_databases_of_one_server_may_be_migrated_at_once(
    databases: Databases, empty: Connection, roles: Roles, end: str
) -> None:
    other = databases.create()
    with ExitStack() as stack:
        stack.callback(databases.drop, other)
        first = stack.enter_context(connected(databases.dsn(other)))
        second = stack.enter_context(connected(empty.info.dsn.replace("***", "")))
        first.execute(roles.script().rsplit("COMMIT;", 1)[0].encode())  # has the roles, and has not committed yet
        waiting = threading.Thread(target=second.execute, args=(roles.script().encode(),))
        waiting.start()
        until_waiting_for_lock(empty, second.info.backend_pid)
        getattr(first, end)()
        waiting.join(30)
        assert on(second, schema.installed_version()) == schema.SCHEMA_VERSION
        assert roles.exist() == {"writer", "reader"}
        assert on(first, schema.installed_version()) == (schema.SCHEMA_VERSION if end == "commit" else None)
        roles.used_in.append(first)
        roles.clear()


# The guards.

FORBIDDEN: list[LiteralString] = [
    "UPDATE command_registry.events SET data = '{}'",
    "UPDATE command_registry.events SET recorded_at = now() WHERE version = 1",
    "DELETE FROM command_registry.events",
    "DELETE FROM ONLY command_registry.events WHERE version = 2",
    "TRUNCATE command_registry.events",
    "TRUNCATE command_registry.events RESTART IDENTITY CASCADE",
    """MERGE INTO command_registry.events AS e USING (SELECT 'book' AS id) AS new ON e.stream_id = new.id
       WHEN MATCHED THEN UPDATE SET data = '{}'""",
    """MERGE INTO command_registry.events AS e USING (SELECT 'book' AS id) AS new ON e.stream_id = new.id
       WHEN MATCHED THEN DELETE""",
    """INSERT INTO command_registry.events (stream_id, version, type, schema_version, occurred_at, data, metadata, hash)
       SELECT stream_id, version, type, schema_version, occurred_at, data, metadata, hash FROM command_registry.events
       ON CONFLICT (stream_id, version) DO UPDATE SET data = '{}'""",
    "WITH gone AS (DELETE FROM command_registry.events RETURNING 1) SELECT FROM gone",
]


@pytest.mark.every_postgres
def test_nobody_changes_the_log_and_no_session_setting_lets_them(connection: Connection) -> None:
    on(connection, plans.append("book", 0, [acquired(), lent()]))
    before = on(connection, plans.read_stream("book"))
    for role in ("origin", "replica", "local"):
        connection.execute(SQL("SET session_replication_role = {}").format(SQL(role)))
        for statement in FORBIDDEN:
            with pytest.raises(errors.RestrictViolation, match=r"events is append-only: [A-Z]+ is refused") as refusal:
                connection.execute(statement)
            assert "append a further event" in str(refusal.value.diag.message_hint)
    assert on(connection, plans.read_stream("book")) == before


@pytest.mark.every_postgres
def test_the_owner_of_the_log_does_not_change_it_either(empty: Connection, roles: Roles) -> None:
    owner = roles.create("owner", "LOGIN")
    empty.execute(SQL("GRANT CREATE ON DATABASE {} TO {}").format(Identifier(empty.info.dbname), Identifier(owner)))
    act_as(empty, owner)
    empty.execute(roles.script().encode())
    on(empty, plans.append("book", 0, [acquired(), lent()]))
    for statement in FORBIDDEN:
        with pytest.raises(errors.RestrictViolation):
            empty.execute(statement)


@pytest.mark.every_postgres
def test_a_migration_puts_back_guards_that_somebody_weakened(connection: Connection) -> None:
    on(connection, plans.append("book", 0, [acquired()]))
    for how in ("ENABLE REPLICA TRIGGER", "ENABLE TRIGGER", "DISABLE TRIGGER"):
        for name in ("events_refuse_change", "events_refuse_truncate"):
            weaken = SQL("ALTER TABLE command_registry.events {} {}")
            connection.execute(weaken.format(SQL(how), Identifier(name)))
        on(connection, registry.migrate())
        for role in ("origin", "replica"):
            connection.execute(SQL("SET session_replication_role = {}").format(SQL(role)))
            for statement in FORBIDDEN[2], FORBIDDEN[4]:
                with pytest.raises(errors.RestrictViolation):
                    connection.execute(statement)


# Only events and the inline read model; what else may be written is the writer's business.
DENIED: list[LiteralString] = [
    "UPDATE command_registry.events SET data = '{}'",
    "DELETE FROM command_registry.events",
    "TRUNCATE command_registry.events",
    "ALTER TABLE command_registry.events DISABLE TRIGGER ALL",
    "DROP TABLE command_registry.events",
    "UPDATE command_registry.schema_versions SET version = 9",
    "CREATE TABLE command_registry.mine (n int)",
    "SELECT setval('command_registry.events_position_seq', 1)",
]


@pytest.fixture
def member(connection: Connection, roles: Roles) -> Callable[[str], str]:
    """Makes a user who is a member of one of the two roles."""
    roles.used_in.append(connection)

    def create(role: str) -> str:
        user = roles.create(f"of_{role.rsplit('_', 1)[-1]}", "LOGIN")
        connection.execute(SQL("GRANT {} TO {}").format(Identifier(role), Identifier(user)))
        return user

    return create


@pytest.mark.every_postgres
def test_a_writer_appends_and_changes_nothing(
    connection: Connection, roles: Roles, member: Callable[[str], str]
) -> None:
    act_as(connection, member("command_registry_writer"))
    on(connection, plans.append("book", 0, [acquired()]))
    on(connection, plans.append("book", 1, [lent(), returned()]))
    assert len(on(connection, plans.read_stream("book"))) == 3
    for statement in DENIED:
        with pytest.raises(errors.InsufficientPrivilege):
            connection.execute(statement)
    roles.clear()


def test_a_writer_can_make_every_call_of_the_registry(
    dsn: str, connection: Connection, roles: Roles, member: Callable[[str], str]
) -> None:
    act_as(connection, member("command_registry_writer"))
    with PostgresCommandRegistry.open(dsn, deployments="table") as superusers:
        superusers.database.run(registry.check())
        with PostgresCommandRegistry.open(dsn) as opened:
            created = opened.create_command("dep", "sync", idempotency_key="key", connection=connection)
            assert opened.increment_attempt(created.command_id, connection=connection) == 2
            now = opened.history(created.command_id)[0].occurred_at
            opened.complete_command(created.command_id, CommandState.SUCCEEDED, now, connection=connection)
            assert opened.create_command("dep", "sync", idempotency_key="key", connection=connection) == created
            assert opened.verify().ok
    on(connection, registry.check())
    roles.clear()


@pytest.mark.every_postgres
def test_a_reader_only_reads(connection: Connection, roles: Roles, member: Callable[[str], str]) -> None:
    on(connection, plans.append("book", 0, [acquired()]))
    act_as(connection, member("command_registry_reader"))
    assert len(on(connection, plans.read_stream("book"))) == 1
    on(connection, registry.check())
    on(connection, registry.read_all([registry.StatusRead("cmd_x")]))
    with pytest.raises(errors.InsufficientPrivilege):
        on(connection, plans.append("book", 1, [lent()]))
    for statement in [*DENIED, "UPDATE command_registry.command_status_v1 SET attempt = 9"]:
        with pytest.raises(errors.InsufficientPrivilege):
            connection.execute(statement)
    roles.clear()


# Migrating beside writers.

LOCKS: LiteralString = """
    SELECT DISTINCT relation::regclass::text, mode
    FROM pg_locks
    WHERE pid = %s
        AND granted
        AND mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
        AND relation IN ('command_registry.events'::regclass, 'command_registry.command_status_v1'::regclass,
                         'command_registry.idempotency_keys'::regclass)
"""


@pytest.mark.every_postgres
def test_a_migration_that_finds_everything_there_takes_no_lock_that_stops_writers(
    dsn: str, connection: Connection
) -> None:
    with connected(dsn) as migrating:
        migrating.execute(schema_sql().rsplit("COMMIT;", 1)[0].encode())
        assert connection.execute(LOCKS, (migrating.info.backend_pid,)).fetchall() == []
        on(connection, plans.append("book", 0, [acquired()]))
        migrating.rollback()


@pytest.mark.every_postgres
def test_an_open_write_does_not_hold_up_a_migration_nor_the_migration_the_write(
    dsn: str, connection: Connection
) -> None:
    with PostgresCommandRegistry.open(dsn) as opened, connected(dsn) as writing:
        writing.execute("BEGIN")
        created = opened.create_command("dep", "sync", connection=writing)
        connection.execute("SET statement_timeout = '5s'")
        on(connection, registry.migrate())
        opened.increment_attempt(created.command_id, connection=writing)
        writing.commit()
        assert opened.verify().ok


# Opening.


async def open_async(dsn: str) -> None:
    async with AsyncPostgresCommandRegistry.open(dsn):
        pass


@pytest.mark.every_postgres
async def test_opening_an_empty_database_names_the_command_to_run(empty_dsn: str) -> None:
    with pytest.raises(SchemaMismatch, match="no command registry in it; run: command-registry migrate") as mismatch:
        PostgresCommandRegistry.open(empty_dsn)
    assert mismatch.value.remedy == "run: command-registry migrate"
    with pytest.raises(SchemaMismatch, match="run: command-registry migrate"):
        await open_async(empty_dsn)


def test_opening_a_database_without_the_read_model_names_the_command_to_run(empty_dsn: str) -> None:
    with connected(empty_dsn) as connection:
        on(connection, schema.migrate())
    with pytest.raises(SchemaMismatch, match=r"read model command_status, version 1.*run: command-registry migrate"):
        PostgresCommandRegistry.open(empty_dsn)


def test_opening_an_older_schema_names_the_command_to_run(dsn: str, connection: Connection) -> None:
    connection.execute("UPDATE command_registry.schema_versions SET version = 0")
    with pytest.raises(SchemaMismatch, match="is at version 0, this software needs 2; run: command-registry migrate"):
        PostgresCommandRegistry.open(dsn)


@pytest.mark.every_postgres
@pytest.mark.parametrize("migrate", [False, True])
def test_a_newer_schema_asks_for_newer_software_and_stays_as_it_is(
    dsn: str, connection: Connection, migrate: bool
) -> None:
    connection.execute("INSERT INTO command_registry.schema_versions (version) VALUES (9)")
    before = catalogue(connection)
    with pytest.raises(SchemaMismatch, match="at version 9, this software knows 2; install a newer command-registry"):
        PostgresCommandRegistry.open(dsn, migrate=migrate)
    assert catalogue(connection) == before


@pytest.mark.every_postgres
@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_a_database_in_another_encoding_is_refused_with_the_remedy(
    databases: Databases, encoding: LiteralString
) -> None:
    name = f"test_{uuid.uuid4().hex}"
    databases.execute("CREATE DATABASE {} TEMPLATE template0 LOCALE 'C' ENCODING '" + encoding + "'", name)
    try:
        with pytest.raises(SchemaMismatch, match=f"the database is in {encoding}; create one with: createdb .*UTF8"):
            PostgresCommandRegistry.open(databases.dsn(name), migrate=True)
        with connected(databases.dsn(name)) as connection:
            assert connection.execute("SELECT to_regnamespace('command_registry')").fetchone() == (None,)
    finally:
        databases.drop(name)
