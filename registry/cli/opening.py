"""Opening what a command works on: a registry, or a bare connection for commands that mend."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Final, Literal, TypeVar

import psycopg
from psycopg import Connection

from eventstore.database import DEFAULT_TIMEOUT, parse_dsn
from eventstore.errors import Unavailable
from eventstore.steps import Plan, run
from registry import embedded
from registry.cli.output import waiting
from registry.postgres import PostgresCommandRegistry

__all__ = ["Session", "connected", "opened"]

T = TypeVar("T")

# client_encoding: from a database in SQL_ASCII, text would come as bytes. search_path: names come with their schemas.
_SETTINGS: Final = {
    "connect_timeout": 5,
    "application_name": "command-registry",
    "client_encoding": "UTF8",
    "options": "-c search_path=pg_catalog,pg_temp",
}


@contextmanager
def opened(dsn: str | None, deployments: Literal["table"] | None = None) -> Iterator[PostgresCommandRegistry]:
    """Open the registry of a database, or of the embedded Postgres.

    Raises:
        SchemaMismatch, Unavailable, EmbeddedPostgresError: as `PostgresCommandRegistry.open`.
    """
    registry = PostgresCommandRegistry(dsn, deployments=deployments, pool_size=1)
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
def connected(dsn: str | None) -> Iterator[Session]:
    """Connect to a database, or to that of the embedded Postgres, whatever is in it.

    Raises:
        Unavailable: the server cannot be reached.
        EmbeddedPostgresError: the embedded Postgres cannot be started here.
    """
    with _server(dsn) as server_dsn:
        try:
            with waiting("connecting"):
                settings: dict[str, Any] = {**_SETTINGS, **parse_dsn(server_dsn)}
                connection = Connection.connect(**settings, autocommit=True)
        except psycopg.OperationalError as error:
            raise Unavailable(f"cannot connect to Postgres: {error}") from error
        with connection:
            yield Session(connection)


@contextmanager
def _server(dsn: str | None) -> Iterator[str]:
    if dsn is not None:
        yield dsn
        return
    with waiting("starting the embedded Postgres"):
        server = embedded.start()
    with server:
        yield server.dsn
