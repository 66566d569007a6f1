"""A home's cluster: made, checked, started, asked, stopped."""

import contextlib
import os
import shlex
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from registry.embedded.accounts import ACCOUNT, give_to
from registry.embedded.address import DATABASE, PORT, SUPERUSER, dsn, socket_directory, socket_file
from registry.embedded.advice import ANOTHER_HOME, OWN_POSTGRES
from registry.embedded.directories import beside, make_private
from registry.embedded.processes import Account, command_line, exists, run
from registry.embedded.programs import major_version, remove_old_copies
from registry.errors import EmbeddedPostgresError

__all__ = ["STOP_TIMEOUT", "Cluster"]

STOP_TIMEOUT: Final = 60.0  # seconds, for the shutdown checkpoint and for a neighbour that starts or stops

_POLL: Final = 0.02  # seconds
_LOG_LIMIT: Final = 10 * 1024 * 1024  # bytes; a longer log is set aside at the next start

_SELECT_DATABASE: Final = sql.SQL("SELECT 1 FROM pg_catalog.pg_database WHERE datname = {}").format(DATABASE)
_CREATE_DATABASE: Final = sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE))


@dataclass(frozen=True, slots=True)
class Cluster:
    """A home directory, and how to run a server on it: with which programs, as whom, and with what settings.

    Whoever calls its methods holds start-stop.lock.
    """

    home: Path
    bin_dir: Path
    account: Account | None
    settings: Mapping[str, str]
    start_timeout: float

    @property
    def _data(self) -> Path:
        return self.home / "data"

    @property
    def _log(self) -> Path:
        return self.home / "server.log"

    @property
    def _socket_dir(self) -> Path:
        return socket_directory(self.home)

    def ensure_running(self) -> None:
        """Make the server answer: join it, wait for it while it starts or stops, or start it.

        Raises:
            EmbeddedPostgresError: it did not answer within `start_timeout` seconds, or it cannot run on this data.
        """
        deadline = time.monotonic() + self.start_timeout
        if not self._data.exists():
            self._create()
        self._check_version()
        make_private(self._socket_dir, self.account)  # before asking: in a stranger's, a stranger may answer
        while problem := self._ask():
            if time.monotonic() > deadline:
                raise self._failed(f"did not answer within {self.start_timeout:g} s ({problem})")
            if self._postmaster():
                time.sleep(_POLL)
            else:
                self._launch(deadline)

    def stop(self) -> None:
        """Stop the server in the manner of `pg_ctl stop -m fast`: end its sessions, write a checkpoint, exit.

        The signal is sent from here, because starting a program may fail while an interpreter shuts down.

        Raises:
            EmbeddedPostgresError: it did not stop within a minute.
        """
        pid = self._postmaster()
        if pid is None:
            return
        deadline = time.monotonic() + STOP_TIMEOUT
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGINT)
        while str(self._data) in command_line(pid):
            if time.monotonic() > deadline:
                raise self._failed(f"(process {pid}) was told to stop and did not within {STOP_TIMEOUT:g} s")
            time.sleep(_POLL)
        if self._socket_dir.parent != self.home:
            with contextlib.suppress(OSError):
                self._socket_dir.rmdir()

    def _create(self) -> None:
        with beside(self._data) as fresh:
            give_to(self.account, fresh)
            status, output = self._run("initdb", "-D", str(fresh), *self._initdb_options())
            if status != 0:
                raise EmbeddedPostgresError(
                    f"initdb could not create a Postgres in {self.home}:\n{output.strip()}\nMend that, {ANOTHER_HOME}"
                )

    def _initdb_options(self) -> list[str]:
        # Locale C: text sorts by its bytes, the same in 15 to 18 and whatever the C library.
        # Trust: who may connect is decided by the socket's directory and by the socket itself, which only the server's
        # account (and root) can enter. `peer` would add a user map that breaks when the account is renamed or the data
        # moved, and keeps nobody else out. TCP is off; should someone turn it on, it is refused.
        options = ["--username", SUPERUSER, "--encoding", "UTF8", "--locale", "C", "--data-checksums"]
        options += ["--auth-local", "trust", "--auth-host", "reject", "--no-instructions"]
        return [*options, "--no-sync"] if self.settings.get("fsync") == "off" else options

    def _check_version(self) -> None:
        """Refuse data of another major version, and what is no data at all."""
        try:
            found = (self._data / "PG_VERSION").read_text().strip()
        except FileNotFoundError:
            raise EmbeddedPostgresError(
                f"{self._data} holds no Postgres data (it has no PG_VERSION): move it away, {ANOTHER_HOME}"
            ) from None
        mine = major_version(self.bin_dir)
        if found != mine:
            raise EmbeddedPostgresError(
                f"the data in {self._data} is of Postgres {found}, but the programs in {self.bin_dir} are of Postgres "
                f"{mine}: move the data over with Postgres {found} and pg_dump, or with pg_upgrade; or set "
                f"COMMAND_REGISTRY_HOME to another directory to begin anew, or {OWN_POSTGRES}"
            )

    def _ask(self) -> str | None:
        """Create the registry's database if it is missing; answer what keeps the server from it, None when nothing."""
        if not socket_file(self.home).exists():
            return "it has no socket"
        maintenance = make_conninfo(dsn(self.home, "postgres"), connect_timeout=10)
        try:
            with psycopg.connect(maintenance, autocommit=True) as connection:
                if connection.execute(_SELECT_DATABASE).fetchone() is None:
                    connection.execute(_CREATE_DATABASE)
        except psycopg.Error as error:
            return str(error).strip()
        return None

    def _launch(self, deadline: float) -> None:
        """Start the server and wait until it takes connections.

        After a kill -9 of the postmaster its children need a moment to notice, and Postgres refuses to start before
        the last one is gone; that is waited for.
        """
        self._clear_blocking_pid_files()
        remove_old_copies(self.home, self.bin_dir)
        while True:
            self._prepare_log()
            mark = self._log.stat().st_size
            wait = max(1, round(deadline - time.monotonic()))
            status, output = self._run(
                *("pg_ctl", "start", "--silent", "-w", "-t", str(wait), "-D", str(self._data), "-l", str(self._log)),
                *("-o", self._server_options()),
                patience=5.0,  # long past pg_ctl's fork, so that stop() finds what it started
            )
            if status == 0:
                return
            if time.monotonic() > deadline or b"is still in use" not in self._log.read_bytes()[mark:]:
                raise self._failed(output.strip() or f"pg_ctl ended with status {status}")
            time.sleep(_POLL)

    def _server_options(self) -> str:
        """Give the settings on the command line, where nothing overrides them; ours last, so that they win."""
        wanted = {
            "cluster_name": ACCOUNT,
            "log_min_error_statement": "panic",  # two writers of one version are ordinary; their SQL would fill the log
            **self.settings,
            "listen_addresses": "",
            "port": str(PORT),
            "unix_socket_directories": f'"{self._socket_dir}"',
            "unix_socket_permissions": "0700",
        }
        return shlex.join(part for name, value in wanted.items() for part in ("-c", f"{name}={value}"))

    def _prepare_log(self) -> None:
        """Make a log that the server may write; as root it cannot create one, since the home is not its own."""
        if self._log.exists() and self._log.stat().st_size > _LOG_LIMIT:
            self._log.replace(self._log.with_suffix(".log.1"))
        self._log.touch(mode=0o600)
        give_to(self.account, self._log)

    def _postmaster(self) -> int | None:
        """Give the process id of the server that runs on our data, be it starting, serving or stopping."""
        pid = _read_pid(self._data / "postmaster.pid")
        return pid if pid is not None and str(self._data) in command_line(pid) else None

    def _clear_blocking_pid_files(self) -> None:
        """Remove pid files of a server that died when their process id now belongs to no Postgres.

        Postgres takes any process of that id for its predecessor: another program's after a reboot, or a zombie's in a
        container whose first process does not reap. Otherwise it copes with stale files by itself, and is left to.
        """
        for path in (self._data / "postmaster.pid", Path(f"{socket_file(self.home)}.lock")):
            pid = _read_pid(path)
            if pid is not None and exists(pid) and "postgres" not in command_line(pid):
                path.unlink()

    def _run(self, program: str, *arguments: str, patience: float = 0.0) -> tuple[int, str]:
        return run([str(self.bin_dir / program), *arguments], self.account, patience=patience)

    def _failed(self, problem: str) -> EmbeddedPostgresError:
        return EmbeddedPostgresError(
            f"the embedded Postgres in {self.home} {problem}. The end of its log, {self._log}:\n{_tail(self._log)}\n"
            f"If it needs more time, pass a longer start_timeout; if the data is damaged, move {self._data} away; "
            f"or {OWN_POSTGRES}"
        )


def _read_pid(path: Path) -> int | None:
    try:
        return int(path.read_text().split("\n", 1)[0])
    except (FileNotFoundError, ValueError):  # ValueError: not written yet
        return None


def _tail(log: Path) -> str:
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-20:])
    except OSError as error:
        return f"({error})"
