"""The examination: every check, in the order in which one would mend."""

from collections.abc import Callable
from typing import Final

from eventstore import queries as log_queries
from eventstore.schema import OLDEST_SERVER, SCHEMA_VERSION
from eventstore.steps import Plan, Step
from registry.command_status import COMMAND_STATUS
from registry.doctor import grants, log, queries, read_model
from registry.doctor.check import MIGRATE, Check, failed, ok, warning

__all__ = ["examine"]

NEWEST_SERVER: Final = 18
_TABLES: Final = (
    "schema_versions",
    "events",
    "events_position_seq",
    "deployments",
    "idempotency_keys",
    "projections",
    "projectors",
    "rebuild_chunks",
    "projection_skips",
)


def examine(*, quick: bool = False, progress: Callable[[int], None] = lambda _: None) -> Plan[list[Check]]:
    """Examine a database: server, schema, log, grants, read model. It changes nothing.

    `quick` leaves out the verification, which reads the whole log; `progress` is told of its events, page by page.
    """
    [(version, encoding, database, user, standby)] = yield Step(queries.SERVER)
    checks = [_server(version, standby=standby), _encoding(database, encoding)]
    access = yield from _access(user)
    if access is not None:
        return [*checks, access]
    tables = yield from _tables()
    checks += [(yield from _schema(user)), tables]
    if tables.status == "failed":
        return checks
    checks.append((yield from log.columns()))
    checks += yield from log.guards()
    checks += yield from log.keys()
    checks += yield from grants.roles()
    checks.append((yield from grants.others()))
    checks.append((yield from grants.current_user(user)))
    return checks + (yield from _contents(user, quick=quick, progress=progress))


def _server(version: int, *, standby: bool) -> Check:
    major = version // 10_000
    found = f"Postgres {major}.{version % 10_000}"
    if major < OLDEST_SERVER:
        return failed("server", found, f"use Postgres {OLDEST_SERVER} or newer")
    if major > NEWEST_SERVER:
        return warning("server", f"{found}: newer than what this software was tested with", "see for a newer release")
    if standby:
        return warning("server", f"{found}, a standby: it takes no writes", "for writes, name the primary in --dsn")
    return ok("server", found)


def _encoding(database: str, encoding: str) -> Check:
    found = f"database {database} is in {encoding}"
    if encoding != "UTF8":
        return failed("encoding", found, "create a database with: createdb --encoding UTF8 --template template0 NAME")
    return ok("encoding", found)


def _access(user: str) -> Plan[Check | None]:
    rows = yield Step(queries.SCHEMA_USAGE)
    if not rows:
        return failed("schema", "this database has no command registry in it", MIGRATE)
    if not rows[0][0]:
        return failed(
            "schema", f"user {user} may not use schema command_registry", f'run: GRANT {grants.READER} TO "{user}"'
        )
    return None


def _schema(user: str) -> Plan[Check]:
    [(exists,)] = yield Step(log_queries.SCHEMA_IS_THERE)
    if not exists:
        return failed("schema", "its version is not noted", MIGRATE)
    [(readable,)] = yield Step(queries.MAY_READ, ("command_registry.schema_versions",))
    if not readable:
        return failed("schema", f"user {user} may not read its version", f'run: GRANT {grants.READER} TO "{user}"')
    [(version,)] = yield Step(log_queries.SCHEMA_VERSION)
    found = f"version {version or 0}, and this software needs {SCHEMA_VERSION}"
    if version is None or version < SCHEMA_VERSION:
        return failed("schema", found, MIGRATE)
    if version > SCHEMA_VERSION:
        return failed("schema", found, "install a newer command-registry")
    return ok("schema", f"version {version}")


def _tables() -> Plan[Check]:
    missing = [name for (name,) in (yield Step(queries.MISSING_TABLES, (list(_TABLES),)))]
    if not missing:
        return ok("tables", "all there")
    remedy = MIGRATE
    if "events" in missing:
        remedy = "restore the log from a backup; or, to begin with an empty one, " + MIGRATE
    return failed("tables", f"missing in schema command_registry: {', '.join(missing)}", remedy)


def _contents(user: str, *, quick: bool, progress: Callable[[int], None]) -> Plan[list[Check]]:
    """Check what can only be checked by reading the tables."""
    unreadable = []
    for table in ("projections", "events"):
        [(readable,)] = yield Step(queries.MAY_READ, (f"command_registry.{table}",))
        unreadable += [] if readable else [table]
    if unreadable:
        found = f"not checked: user {user} may not read {', '.join(unreadable)}"
        return [warning("contents", found, f'run: GRANT {grants.READER} TO "{user}"')]
    shape = yield from read_model.shape()
    checks = [shape, (yield from log.order()), (yield from log.readers(user))]
    [(readable,)] = yield Step(queries.MAY_READ, (COMMAND_STATUS.full_name,))
    if not quick and readable and shape.status == "ok":
        checks += yield from read_model.drift(progress)
    return checks
