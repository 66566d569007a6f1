"""Users of a server: the first one starts it, the last one stops it.

A process counts its own uses, and shares users.lock with the other processes for as long as it has one. Whoever changes
anything holds start-stop.lock.
"""

import atexit
import logging
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from registry.embedded.accounts import server_account
from registry.embedded.address import DATABASE, dsn
from registry.embedded.advice import OWN_POSTGRES
from registry.embedded.cluster import STOP_TIMEOUT, Cluster
from registry.embedded.directories import default_home, make_home, resolve
from registry.embedded.locks import UsersLock, start_stop_lock
from registry.embedded.programs import find_programs, reachable
from registry.errors import EmbeddedPostgresError

__all__ = ["EmbeddedPostgres", "start"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class EmbeddedPostgres:
    """One use of the server; the server runs for as long as any process has one open.

    Attributes:
        dsn: a connection URI of the database `command_registry`, by Unix socket.
        home: the directory that holds the data.
    """

    dsn: str
    home: Path

    def close(self) -> None:
        """End this use, and stop the server if it was the last; closing twice is fine.

        Raises:
            EmbeddedPostgresError: the server was told to stop and did not.
        """
        _close(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def start(
    home: Path | None = None,
    *,
    bin_dir: Path | None = None,
    settings: Mapping[str, str] | None = None,
    start_timeout: float = 60.0,
) -> EmbeddedPostgres:
    """Start the server of a home directory, or join the one that runs, and see to its database.

    A forked child does not inherit its parent's use: it calls `start` itself.

    Args:
        home: where the data is kept; by default `default_home()`. Created when missing; then, or when empty, it is
            closed to other users.
        bin_dir: programs of another Postgres, 15 or later, to use instead of the package's.
        settings: server settings such as `{"fsync": "off"}`; without effect when the server already runs.
        start_timeout: seconds to wait for the server, crash recovery included, and for processes that start or stop it.

    Raises:
        EmbeddedPostgresError: there is no Postgres for this platform, the data is of another major version, the home
            directory cannot be used, or the server did not start. The message says what to do about it.
    """
    programs = find_programs(bin_dir)
    account = server_account()
    place = resolve(home or default_home())
    try:
        make_home(place, account)
        with _guard, start_stop_lock(place, start_timeout):
            programs = reachable(programs, place, account, may_copy=bin_dir is None)
            return _open(Cluster(place, programs, account, dict(settings or {}), start_timeout))
    except OSError as error:
        raise EmbeddedPostgresError(
            f"cannot keep a Postgres in {place}: {error}. "
            f"Set COMMAND_REGISTRY_HOME to another directory, or {OWN_POSTGRES}"
        ) from error


@dataclass(slots=True)
class _Process:
    """This process as a user of one server."""

    cluster: Cluster
    lock: UsersLock
    uses: set[EmbeddedPostgres] = field(default_factory=set)


_processes: dict[Path, _Process] = {}
_guard = threading.Lock()


def _open(cluster: Cluster) -> EmbeddedPostgres:
    process = _processes.get(cluster.home) or _join(cluster)
    try:
        cluster.ensure_running()
        use = EmbeddedPostgres(dsn(cluster.home, DATABASE), cluster.home)
        process.uses.add(use)
    except BaseException:  # Ctrl-C too: what was started for nobody is stopped
        if not process.uses:
            _leave(process)
        raise
    return use


def _close(use: EmbeddedPostgres) -> None:
    with _guard:
        process = _processes.get(use.home)
        if process is None or use not in process.uses:
            return
        process.uses.remove(use)
        if process.uses:
            return
        if not use.home.is_dir():  # deleted; locking would bring it back
            _forget(process)
            return
        with start_stop_lock(use.home, STOP_TIMEOUT):
            _leave(process)


def _join(cluster: Cluster) -> _Process:
    process = _processes[cluster.home] = _Process(cluster, UsersLock(cluster.home))
    return process


def _leave(process: _Process) -> None:
    """Stop the server if no other process uses it."""
    del _processes[process.cluster.home]
    with process.lock.given_up() as unused:
        if unused:
            process.cluster.stop()


def _forget(process: _Process) -> None:
    del _processes[process.cluster.home]
    process.lock.give_up()


def _close_all() -> None:
    for use in [use for process in _processes.values() for use in process.uses]:
        try:
            use.close()
        except EmbeddedPostgresError:
            _log.exception("could not stop the embedded Postgres in %s", use.home)


def _start_anew_in_child() -> None:
    """Make the parent's uses mean nothing in a forked child, which inherits its memory but none of its locks."""
    global _guard  # a thread of the parent may have held it
    _guard = threading.Lock()
    for process in list(_processes.values()):
        _forget(process)


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew_in_child)
