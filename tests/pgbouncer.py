"""A PgBouncer of the tests' own, in transaction mode, before their Postgres."""

import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import dict_row

from registry.embedded.accounts import give_to, server_account
from registry.embedded.processes import spawn
from tests.waiting import until

__all__ = ["SERVER_CONNECTIONS", "PgBouncer", "needs_pgbouncer", "pgbouncer"]

# Debian has it where only root looks.
_PROGRAM: Final = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")

needs_pgbouncer = pytest.mark.skipif(_PROGRAM is None, reason="no pgbouncer is installed: apt-get install pgbouncer")

SERVER_CONNECTIONS: Final = 2
"""Connections to the server, for each database: few, so that callers have to share them."""

_ADMIN: Final = "pgbouncer"
_PORT: Final = 6432  # names the socket file; nothing listens on a port
_SETTINGS: Final = {
    "listen_addr": "",
    "listen_port": str(_PORT),
    "auth_type": "trust",
    "admin_users": _ADMIN,
    "pool_mode": "transaction",
    "default_pool_size": str(SERVER_CONNECTIONS),
    "max_client_conn": "300",
    "server_tls_sslmode": "disable",
    "server_login_retry": "0.1",  # seconds
}


class PgBouncer:
    """Listens at a socket in a directory, before the server of a DSN; it may be killed, and started again."""

    def __init__(self, server_dsn: str, place: Path, settings: dict[str, str]) -> None:
        self._place = place
        self._account = server_account()  # it refuses to run as root
        self._process: subprocess.Popen[bytes] | None = None
        self._file, self._log, users = (place / name for name in ("pgbouncer.ini", "pgbouncer.log", "users.txt"))
        server = conninfo_to_dict(server_dsn)
        users.write_text(f'"{server["user"]}" "{server.get("password") or ""}"\n"{_ADMIN}" ""\n')
        ours = _SETTINGS | {"unix_socket_dir": str(place), "auth_file": str(users)} | settings
        lines = ["[databases]", f"* = host='{server['host']}' port={server.get('port') or 5432}", "[pgbouncer]"]
        self._file.write_text("\n".join([*lines, *(f"{name} = {value}" for name, value in ours.items()), ""]))
        for path in (place, self._file, users):
            give_to(self._account, path)

    def dsn(self, dsn: str) -> str:
        """Give the DSN of the same database through this pooler."""
        return make_conninfo(dsn, host=str(self._place), port=_PORT)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with self._log.open("ab") as log:
            self._process = spawn([str(_PROGRAM), str(self._file)], self._account, log)
        until(self._answers, "PgBouncer")

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self._log.read_text()
        try:
            return bool(self.ask("SHOW VERSION"))
        except psycopg.OperationalError:
            return False

    def kill(self) -> None:
        """End it at once, and every connection through it."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it as a system does that shuts down."""
        self._end(signal.SIGTERM)  # which does not wait for clients either

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(number)
            process.wait()

    def ask(self, command: str) -> list[dict[str, Any]]:
        """Ask its console."""
        dsn = make_conninfo(host=str(self._place), port=_PORT, dbname="pgbouncer", user=_ADMIN)
        with psycopg.connect(dsn, autocommit=True) as console:
            cursor = psycopg.ClientCursor(console, row_factory=dict_row)
            cursor.execute(command.encode())
            return cursor.fetchall() if cursor.description else []


@contextmanager
def pgbouncer(server_dsn: str, **settings: str) -> Iterator[PgBouncer]:
    """Run a PgBouncer before the server of a DSN."""
    with tempfile.TemporaryDirectory(prefix="crb-", dir="/tmp") as place:
        bouncer = PgBouncer(server_dsn, Path(place), settings)
        try:
            bouncer.start()
            yield bouncer
        finally:
            bouncer.stop()
