"""Opening what a command works on: a registry, or a bare connection for commands that mend."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Final, Literal, TypeVar

import psycopg
from psycopg import Connection

from eventstore import schema
from eventstore.database import DEFAULT_TIMEOUT, Database, Pooler, not_connected, parse_dsn
from eventstore.errors import Unavailable
from eventstore.steps import Plan, run
from registry import embedded
from registry.cli.output import waiting
from registry.postgres import PostgresCommandRegistry

__all__ = ["Session", "connected", "database", "opened"]

T = TypeVar("T")

# client_encoding: from a database in SQL_ASCII, text would come as bytes.
_SETTINGS: Final = {
    "connect_timeout": 5,
    "application_name": "command-registry",
    "client_encoding": "UTF8",
}

# Names come with their schemas.
_SESSION: Final = "-c search_path=pg_catalog,pg_temp"


@contextmanager
def opened(
    dsn: str | None, pooler: Pooler | None, deployments: Literal["table"] | None = None
) -> Iterator[PostgresCommandRegistry]:
    """Open the registry of a database, or of the embedded Postgres.

    Raises:
        SchemaMismatch, Unavailable, EmbeddedPostgresError: as `PostgresCommandRegistry.open`.
    """
    registry = PostgresCommandRegistry(dsn, deployments=deployments, pool_size=1, pooler=pooler)
    with waiting("opening the registry"):
        registry.connect()
    with registry:
        yield registry


class Session:
    """One connection to a database of which nothing is known yet; collects what the server notes meanwhile."""

    def __init__(self, connection: Connection[Any]) -> None:
        self._connection = connection
        self.notices: list[str] = []
        connection.add_notice_handler(self._note)

    def run(self, plan: Plan[T]) -> T:
        """Run a plan over the connection.

        Raises:
            Unavailable: the connection is lost.
        """
        return run(self._lend, plan, DEFAULT_TIMEOUT)

    def _lend(self, _timeout: float) -> nullcontext[Connection[Any]]:
        if self._connection.closed:
            raise Unavailable("the connection to Postgres was lost")
        return nullcontext(self._connection)

    def _note(self, notice: psycopg.errors.Diagnostic) -> None:
        parts = (notice.message_primary, notice.message_hint)
        self.notices.append(": ".join(part for part in parts if part))


@contextmanager
def connected(dsn: str | None, pooler: Pooler | None) -> Iterator[Session]:
    """Connect to a database, or to that of the embedded Postgres, whatever is in it.

    Raises:
        Unavailable: the server cannot be reached.
        EmbeddedPostgresError: the embedded Postgres cannot be started here.
    """
    with _server(dsn) as server_dsn:
        try:
            with waiting("connecting"):
                connection = Connection.connect(**_settings(server_dsn, pooler), autocommit=True)
        except psycopg.OperationalError as error:
            raise not_connected(error, pooler) from error
        with connection:
            yield Session(connection)


@contextmanager
def database(dsn: str | None, pooler: Pooler | None, pool_size: int) -> Iterator[Database]:
    """Open a database, or that of the embedded Postgres, that has the schema, whatever read models are in it.

    Raises:
        SchemaMismatch: it has none, or another one; says the command to run.
        Unavailable, EmbeddedPostgresError: as `connected`.
    """
    with _server(dsn) as server_dsn, Database(server_dsn, pool_size=pool_size, pooler=pooler) as opened:
        opened.run(schema.check())
        yield opened


def _settings(dsn: str, pooler: Pooler | None) -> dict[str, Any]:
    session = {"options": _SESSION} if pooler is None else {"prepare_threshold": None}
    return {**_SETTINGS, **session, **parse_dsn(dsn)}


@contextmanager
def _server(dsn: str | None) -> Iterator[str]:
    if dsn is not None:
        yield dsn
        return
    with waiting("starting the embedded Postgres"):
        server = embedded.start()
    with server:
        yield server.dsn
