"""Creating the schema, and refusing to work on another one."""

from importlib.resources import files
from typing import Final

from eventstore import queries
from eventstore.errors import SchemaMismatch
from eventstore.steps import Plan, Step

__all__ = ["SCHEMA_VERSION", "check", "migrate", "schema_sql"]

SCHEMA_VERSION: Final = 2
"""The version of schema.sql that this code is written for."""

OLDEST_SERVER: Final = 15
_MIGRATE: Final = "run: command-registry migrate"


def schema_sql() -> str:
    """Read schema.sql: beside this module in an installed package, at the top of a checkout."""
    package = files("eventstore")
    installed = package / "schema.sql"
    return (installed if installed.is_file() else package / ".." / "schema.sql").read_text("utf-8")


def installed_version() -> Plan[int | None]:
    """Read which version of the schema the database has; None when it has none."""
    rows = yield Step(queries.SCHEMA_IS_THERE)
    if not rows[0][0]:
        return None
    [(version,)] = yield Step(queries.SCHEMA_VERSION)
    return None if version is None else int(version)


def migrate() -> Plan[None]:
    """Create what is missing of the schema; what is there stays as it is.

    Raises:
        SchemaMismatch: the schema is of a later version than this code, the database is not in UTF8, or the server is
            older than Postgres 15.
    """
    yield from _check_server()
    found = yield from installed_version()
    if found is not None and found > SCHEMA_VERSION:
        raise _too_new(found)
    yield Step(schema_sql().encode(), None)


def check() -> Plan[None]:
    """Check that the database has the schema that this code is written for.

    Raises:
        SchemaMismatch: it has none, or another one; the error names the command to run.
    """
    found = yield from installed_version()
    if found is None:
        raise SchemaMismatch("this database has no command registry in it", _MIGRATE)
    if found < SCHEMA_VERSION:
        raise SchemaMismatch(f"the schema is at version {found}, this software needs {SCHEMA_VERSION}", _MIGRATE)
    if found > SCHEMA_VERSION:
        raise _too_new(found)


def _check_server() -> Plan[None]:
    [(encoding, version)] = yield Step(queries.ENCODING)
    if isinstance(encoding, bytes):  # as text comes from a database in SQL_ASCII
        encoding = encoding.decode()
    if version < OLDEST_SERVER * 10_000:
        raise SchemaMismatch(f"the server is Postgres {version // 10_000}", f"use Postgres {OLDEST_SERVER} or newer")
    if encoding != "UTF8":
        raise SchemaMismatch(f"the database is in {encoding}", "create one with: createdb --encoding UTF8 ...")


def _too_new(found: int) -> SchemaMismatch:
    return SchemaMismatch(
        f"the schema is at version {found}, this software knows {SCHEMA_VERSION}", "install a newer command-registry"
    )
