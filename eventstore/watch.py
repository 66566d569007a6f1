"""Breaking connections at a deadline, so that a server which has fallen silent holds nobody for ever."""

import asyncio
import os
import socket
import threading
import time
from contextlib import suppress
from typing import Any, Final

import psycopg
from psycopg import AsyncConnection, Connection

__all__ = ["AsyncWatch", "Watch", "cut"]

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
        """Watch no more than what is still in use."""
        self._closed.set()

    def begin(self, connection: Connection[Any], deadline: float) -> None:
        """Watch a connection that comes into use."""
        self._deadlines[connection] = deadline

    def end(self, connection: Connection[Any]) -> None:
        """Watch it no more."""
        del self._deadlines[connection]

    def _watch(self) -> None:
        while not self._closed.wait(_PAUSE):
            self._look()
        while self._deadlines:
            time.sleep(_PAUSE)
            self._look()

    def _look(self) -> None:
        now = time.monotonic()
        for connection, deadline in list(self._deadlines.items()):
            if now >= deadline:
                cut(connection)


class AsyncWatch:
    """Cuts connections that are in use at their deadline, from the event loop."""

    def __init__(self) -> None:
        self._deadlines: dict[AsyncConnection[Any], float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, connection: AsyncConnection[Any], deadline: float) -> None:
        """Watch a connection that comes into use."""
        self._deadlines[connection] = deadline
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_PAUSE, self._look)

    def end(self, connection: AsyncConnection[Any]) -> None:
        """Watch it no more."""
        del self._deadlines[connection]

    def close(self) -> None:
        """Watch no more than what is still in use."""
        if self._timer is not None and not self._deadlines:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        now = time.monotonic()
        for connection, deadline in self._deadlines.items():
            if now >= deadline:
                cut(connection)
        again = bool(self._deadlines)
        self._timer = asyncio.get_running_loop().call_later(_PAUSE, self._look) if again else None
