"""A TCP proxy in front of Postgres that loses requests, replies, and everything."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from types import TracebackType
from typing import Final, Self

from psycopg.conninfo import conninfo_to_dict, make_conninfo

__all__ = ["Fault", "Proxy", "proxied"]

# ReadyForQuery, in a transaction or not: the server has answered the request to its end.
_READY: Final = tuple(b"Z\x00\x00\x00\x05" + status for status in (b"I", b"T", b"E"))


class Fault(Enum):
    """What happens to the connection whose client sends the marker."""

    CUT_BEFORE = "the request never reaches the server"
    LOSE_REPLY = "the server answers, and its answer never arrives"
    LOSE_REPLY_AND_GO_AWAY = "and nobody can connect any more"


class _Link:
    """One connection through the proxy."""

    def __init__(self, proxy: "Proxy", client: socket.socket, server: socket.socket) -> None:
        self._proxy, self._client, self._server = proxy, client, server
        self._fault: Fault | None = None
        for pump in (self._requests, self._replies):
            threading.Thread(target=self._pump, args=(pump,), daemon=True).start()

    def _pump(self, pump: Callable[[], None]) -> None:
        with contextlib.suppress(OSError):
            pump()
        self.cut()

    def _requests(self) -> None:
        seen = b""
        while chunk := self._client.recv(65536):
            seen = seen[-256:] + chunk
            if self._fault is None:
                self._fault = self._proxy.fault_of(seen)
            if self._fault is Fault.CUT_BEFORE:
                return
            if not self._proxy.silent:
                self._server.sendall(chunk)

    def _replies(self) -> None:
        swallowed = b""
        while chunk := self._server.recv(65536):
            if self._fault is None:
                if not self._proxy.silent:
                    self._client.sendall(chunk)
                continue
            swallowed += chunk
            if swallowed.endswith(_READY):
                if self._fault is Fault.LOSE_REPLY_AND_GO_AWAY:
                    self._proxy.go_away()
                return

    def cut(self) -> None:
        for end in (self._client, self._server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


class Proxy:
    """Forwards 127.0.0.1:`port` to a Postgres.

    It may be told to go wrong at a request that holds a marker (`fail_at`), to go away and come back, to hang up on
    whoever connects, or to fall silent: connections stand, and nothing passes any more.
    """

    def __init__(self, host: str, port: int) -> None:
        self._upstream = (host, port)
        self._lock = threading.Lock()
        self._links: list[_Link] = []
        self._faults: list[tuple[bytes, Fault]] = []
        self._listener: socket.socket | None = None
        self.silent = False
        self.hangs_up = False
        self.hung_up_on = 0
        self.happened: list[Fault] = []
        self.port = 0
        self.come_back()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.go_away()

    def dsn(self, dsn: str) -> str:
        """Give the DSN of the same database through this proxy."""
        return make_conninfo(dsn, host="127.0.0.1", port=self.port, sslmode="disable", gssencmode="disable")

    def fail_at(self, marker: bytes, fault: Fault, times: int = 1) -> None:
        """Let the next requests that hold the marker go wrong."""
        self._faults += [(marker, fault)] * times

    def fault_of(self, request: bytes) -> Fault | None:
        """Take the fault that is in store for a request, if there is one."""
        with self._lock:
            for index, (marker, fault) in enumerate(self._faults):
                if marker in request:
                    del self._faults[index]
                    self.happened.append(fault)
                    return fault
        return None

    def cut_all(self) -> None:
        """Cut every connection there is."""
        with self._lock:
            links, self._links = self._links, []
        for link in links:
            link.cut()

    def go_away(self) -> None:
        """Cut every connection, and refuse new ones."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        self.cut_all()

    def fall_silent(self) -> None:
        """Keep every connection, take new ones, and let nothing pass."""
        self.silent = True

    def hang_up(self) -> None:
        """Cut every connection, and from now on each new one as soon as it is made; count those."""
        self.hangs_up = True
        self.cut_all()

    def come_back(self) -> None:
        """Serve again."""
        self.hangs_up = False
        if self.silent:
            self.silent = False
            self.cut_all()
        if self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", self.port), backlog=100)
            self.port = self._listener.getsockname()[1]
            threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                if self.hangs_up:
                    self.hung_up_on += 1
                    client.close()
                    continue
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                link = _Link(self, client, self._connect())
                with self._lock:
                    self._links.append(link)

    def _connect(self) -> socket.socket:
        host, port = self._upstream
        if not host.startswith("/"):
            return socket.create_connection((host, port))
        server = socket.socket(socket.AF_UNIX)
        server.connect(f"{host}/.s.PGSQL.{port}")
        return server


@contextmanager
def proxied(dsn: str) -> Iterator[Proxy]:
    """Put a proxy before the server of a DSN."""
    settings = conninfo_to_dict(dsn)
    with Proxy(str(settings["host"]), int(settings.get("port") or 5432)) as proxy:
        yield proxy
