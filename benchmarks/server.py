"""The server that all is measured on, and the databases that are made on it for the run, and dropped after it."""

import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final, LiteralString

import psycopg
from psycopg import errors, pq
from psycopg.conninfo import make_conninfo
from psycopg.sql import SQL, Identifier

from benchmarks import queries
from benchmarks.usage import parent_of
from registry import PostgresCommandRegistry, embedded
from registry.embedded.processes import command_line

__all__ = ["EMPTY", "Server", "libpq_environment", "opened"]

EMPTY: Final = "template0"
"""The template of a database with nothing in it."""

_LASTING: Final = Path("/var/tmp")  # noqa: S108 # unlike /tmp, never in memory, where fsync would cost nothing


class Server:
    """A server, and the databases of this run on it; each is known by its name.

    `prefix`: what their names begin with. `postmaster`: the server's first process, once a database was made, and when
    the server is on this machine.
    """

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self.prefix = f"crb_{secrets.token_hex(4)}"
        self._databases: list[str] = []
        self._roles = self._our_roles()
        self.postmaster: int | None = None

    def dsn(self, database: str) -> str:
        """Give the DSN of a database."""
        return make_conninfo(self._dsn, dbname=database)

    def create(self, template: str = EMPTY) -> str:
        """Create a database, as a copy of another one, which nobody must be connected to."""
        database = f"{self.prefix}_{len(self._databases)}"
        self._databases.append(database)
        self._execute(queries.CREATE_DATABASE, database=database, template=template)
        self.postmaster = self.postmaster or self._find_postmaster(database)
        return database

    def create_registry(self) -> str:
        """Create a database with a registry in it."""
        database = self.create()
        PostgresCommandRegistry.open(self.dsn(database), migrate=True).close()
        return database

    def drop(self, database: str) -> None:
        """Drop a database, whoever is connected to it."""
        self._execute(queries.DROP_DATABASE, database=database)

    def checkpoint(self) -> None:
        """Write out what earlier measurements left to be written, so that no later one pays for it."""
        with suppress(errors.InsufficientPrivilege):
            self._execute(queries.CHECKPOINT)

    def setting(self, name: str) -> str:
        """Give one of the server's settings."""
        with psycopg.connect(self._dsn) as connection:
            [value] = connection.execute(queries.SETTING, (name,)).fetchone() or ("",)
        return str(value)

    def clear(self) -> None:
        """Drop every database of this run, and the roles that it brought."""
        for database in self._databases:
            self.drop(database)
        for role in self._our_roles() - self._roles:
            with suppress(errors.DependentObjectsStillExist):  # another registry came meanwhile
                self._execute(queries.DROP_ROLE, role=role)

    def _our_roles(self) -> set[str]:
        with psycopg.connect(self._dsn) as connection:
            return {role for (role,) in connection.execute(queries.OUR_ROLES)}

    def _execute(self, statement: LiteralString, **names: str) -> None:
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            connection.execute(SQL(statement).format(**{key: Identifier(name) for key, name in names.items()}))

    def _find_postmaster(self, database: str) -> int | None:
        """Find it as the parent of a process that says in its title that it serves our database.

        Its pid file would be found with rights that not everybody has; and on a server far away, that process is not
        there, or another one's.
        """
        with psycopg.connect(self.dsn(database)) as connection:
            pid = connection.info.backend_pid
            return parent_of(pid) if database in command_line(pid) else None


@contextmanager
def opened(dsn: str | None) -> Iterator[Server]:
    """Take a server for the run: the one of a DSN, or an embedded one of its own, whose data is removed afterwards.

    Raises:
        EmbeddedPostgresError: it cannot be started.
        psycopg.OperationalError: it cannot be reached.
    """
    with _clearing_up() as leaving:
        server = Server(_start(leaving) if dsn is None else dsn)
        leaving.callback(server.clear)
        yield server


def _start(leaving: ExitStack) -> str:
    place = Path(tempfile.mkdtemp(prefix="crb-", dir=_LASTING if _LASTING.is_dir() else None)).resolve()
    leaving.callback(shutil.rmtree, place, ignore_errors=True)
    place.chmod(0o711)  # as root, the server runs under another account, which must get through
    return leaving.enter_context(embedded.start(place / "home")).dsn


@contextmanager
def _clearing_up() -> Iterator[ExitStack]:
    """Do at the end what is to be done, and let no Ctrl-C come between."""
    leaving = ExitStack()
    try:
        yield leaving
    finally:
        before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            leaving.close()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def libpq_environment(dsn: str) -> dict[str, str]:
    """Give an environment in which Postgres's programs connect to a DSN: no password shows among the processes."""
    options = pq.Conninfo.parse(dsn.encode())
    told = {
        option.envvar.decode(): option.val.decode() for option in options if option.envvar and option.val is not None
    }
    return {**os.environ, **told}
