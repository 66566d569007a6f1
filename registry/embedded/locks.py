"""The two locks of a home: one for who starts or stops its server, one that all its users share."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from registry.embedded.advice import OWN_POSTGRES
from registry.errors import EmbeddedPostgresError

__all__ = ["UsersLock", "start_stop_lock"]

# fasteners is imported when it is needed: most who import the registry never start a server.


@contextmanager
def start_stop_lock(home: Path, timeout: float) -> Iterator[None]:
    """Hold start-stop.lock, waiting `timeout` seconds for it.

    Raises:
        EmbeddedPostgresError: another process held it all the while.
        OSError: the file system has no locks, or the home cannot be written.
    """
    from fasteners import InterProcessLock  # type: ignore[import-untyped]

    lock = InterProcessLock(home / "start-stop.lock")
    try:
        acquired = lock.acquire(timeout=timeout)
    except threading.ThreadError as error:
        raise OSError(str(error)) from error  # the file system has no locks
    if not acquired:
        lock.lockfile.close()
        raise EmbeddedPostgresError(
            f"another process has been starting or stopping the Postgres in {home} for more than {timeout:g} s "
            f"(it holds {home / 'start-stop.lock'}): wait for it or end it, or {OWN_POSTGRES}"
        )
    try:
        yield
    finally:
        lock.release()


class UsersLock:
    """users.lock, which this process shares with the server's other users; taken and given up under start-stop.lock.

    POSIX locks belong to a process, and closing any handle of a locked file gives up all of them: so a process makes
    one of these for a home.
    """

    def __init__(self, home: Path) -> None:
        """Take it; that never waits, for it is held alone only under start-stop.lock, which the caller holds."""
        from fasteners import InterProcessReaderWriterLock

        self._lock = InterProcessReaderWriterLock(home / "users.lock")
        self._lock.acquire_read_lock()

    def give_up(self) -> None:
        """Let go of it, and close the file."""
        self._lock.release_read_lock()

    @contextmanager
    def given_up(self) -> Iterator[bool]:
        """Let go of it, and say whether no other process holds it."""
        self.give_up()
        try:
            yield self._lock.acquire_write_lock(blocking=False)
        finally:
            self._lock.release_write_lock()  # even when not acquired: it closes the file
