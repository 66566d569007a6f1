"""Breaking connections at a deadline, so that a server which has fallen silent holds nobody for ever."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

import psycopg
from psycopg import AsyncConnection, Connection

__all__ = ["Watch", "cut"]

_PAUSE: Final = 0.25


def cut(connection: Connection[Any] | AsyncConnection[Any]) -> None:
    """Shut a connection's socket: whoever waits for its server is told that it is lost."""
    with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.fileno())) as end:
        end.shutdown(socket.SHUT_RDWR)


class Watch:
    """Cuts connections that are in use at their deadline. One thread serves all."""

    def __init__(self) -> None:
        self._deadlines: dict[Connection[Any], float] = {}
        self._closed = threading.Event()

    def open(self) -> None:
        """Begin to watch."""
        threading.Thread(target=self._watch, name="command-registry watch", daemon=True).start()

    def close(self) -> None:
        """Watch no more."""
        self._closed.set()

    @contextmanager
    def over(self, connection: Connection[Any], deadline: float) -> Iterator[None]:
        """Watch a connection while it is in use."""
        self._deadlines[connection] = deadline
        try:
            yield
        finally:
            del self._deadlines[connection]

    def _watch(self) -> None:
        while not self._closed.wait(_PAUSE):
            now = time.monotonic()
            for connection, deadline in list(self._deadlines.items()):
                if now >= deadline:
                    cut(connection)
