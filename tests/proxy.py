"""A TCP proxy in front of Postgres that loses requests, replies, and everything."""

import contextlib
import random
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
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
    CUT_AT_WORK = "the client is cut off while the server is at work on its request"
    LOSE_REPLY = "the server answers, and its answer never arrives"
    LOSE_REPLY_AND_GO_AWAY = "and nobody can connect any more"
    FALL_SILENT = "the request reaches the server, and from then on nothing passes, on any connection"


class _Requests:
    """What a client sends, cut into the messages of the protocol."""

    def __init__(self) -> None:
        self._rest = b""
        self._begun = False
        self._prepared: dict[bytes, bytes] = {}

    def take(self, chunk: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Give each message that has come whole, and the text of the statement that it executes (or nothing)."""
        self._rest += chunk
        while (end := self._end()) <= len(self._rest):
            message, self._rest = self._rest[:end], self._rest[end:]
            yield message, self._executed(message)

    def _end(self) -> int:
        start = 1 if self._begun else 0  # the first message has no type
        if len(self._rest) < start + 4:
            return start + 4
        return start + int.from_bytes(self._rest[start : start + 4])

    def _executed(self, message: bytes) -> bytes:
        if not self._begun:
            self._begun = True
        elif message[:1] == b"Q":
            return message[5:]
        elif message[:1] == b"P":
            name, text, _ = message[5:].split(b"\0", 2)
            self._prepared[name] = text
        elif message[:1] == b"B":
            _, name, _ = message[5:].split(b"\0", 2)
            return self._prepared.get(name, b"")
        return b""


def _tags(replies: bytes) -> list[str]:
    """Give the tags of the statements that the server says it has completed."""
    tags = []
    while replies:
        end = 1 + int.from_bytes(replies[1:5])
        if replies[:1] == b"C":
            tags.append(replies[5 : end - 1].decode())
        replies = replies[end:]
    return tags


class _Link:
    """One connection through the proxy."""

    def __init__(self, proxy: "Proxy", client: socket.socket, server: socket.socket) -> None:
        self._proxy, self._client, self._server = proxy, client, server
        self._fault: Fault | None = None
        self._answered = threading.Event()
        self._pumps = [
            threading.Thread(target=self._pump, args=(pump,), daemon=True) for pump in (self._requests, self._replies)
        ]
        for thread in self._pumps:
            thread.start()
        threading.Thread(target=self._close, daemon=True).start()

    def _pump(self, pump: Callable[[], None]) -> None:
        with contextlib.suppress(OSError):
            pump()
        self.cut()

    def _close(self) -> None:
        """Close the sockets, once nobody can be about to use them: their numbers are given to others then."""
        for thread in self._pumps:
            thread.join()
        self._client.close()
        self._server.close()

    def _requests(self) -> None:
        requests = _Requests()
        while chunk := self._client.recv(65536):
            for message, statement in requests.take(chunk):
                if statement and self._fault is None:
                    self._fault = self._proxy.fault_of(statement)
                if self._fault is Fault.CUT_BEFORE:
                    return
                if not self._proxy.silent:
                    self._server.sendall(message)
                if message[:1] in {b"S", b"Q"} and self._whole_request_sent():
                    return

    def _whole_request_sent(self) -> bool:
        """Tell whether the client is cut off now."""
        if self._fault is Fault.FALL_SILENT:
            self._proxy.fall_silent()
        if self._fault is not Fault.CUT_AT_WORK:
            return False
        self._client.shutdown(socket.SHUT_RDWR)
        return self._answered.wait()

    def _replies(self) -> None:
        swallowed = b""
        while chunk := self._server.recv(65536):
            if self._fault is None:
                if not self._proxy.silent:
                    self._client.sendall(chunk)
                continue
            swallowed += chunk
            if swallowed.endswith(_READY):
                self._proxy.lost_tags += _tags(swallowed)
                if self._fault is Fault.LOSE_REPLY_AND_GO_AWAY:
                    self._proxy.go_away()
                if self._fault is not Fault.FALL_SILENT:
                    return
                swallowed = b""

    def cut(self) -> None:
        """Let neither side send or receive any more."""
        self._answered.set()
        for end in (self._client, self._server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class Proxy:
    """Forwards 127.0.0.1:`port` to a Postgres.

    It may be told to go wrong at a request that executes a statement with a marker in it (`fail_at`, `fail_at_random`),
    to call somebody at one (`at`), to go away and come back, to hang up on whoever connects, or to fall silent:
    connections stand, and nothing passes any more. `happened`: the faults so far. `lost_tags`: what the replies that it
    kept to itself said of their statements ("INSERT 0 3").
    """

    def __init__(self, host: str, port: int) -> None:
        self._upstream = (host, port)
        self._lock = threading.Lock()
        self._links: list[_Link] = []
        self._faults: list[tuple[bytes, Fault]] = []
        self._chances: tuple[bytes, random.Random, Mapping[Fault, float]] | None = None
        self._calls: list[tuple[bytes, Callable[[], object]]] = []
        self._listener: socket.socket | None = None
        self.silent = False
        self.hangs_up = False
        self.hung_up_on = 0
        self.happened: list[Fault] = []
        self.lost_tags: list[str] = []
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

    def fail_at_random(self, marker: bytes, seed: int, chances: Mapping[Fault, float]) -> None:
        """From now on, let requests that hold the marker go wrong, each fault with its probability; none: no more."""
        self._chances = (marker, random.Random(seed), chances) if chances else None  # noqa: S311 - to be replayed

    def at(self, marker: bytes, call: Callable[[], object]) -> None:
        """Call somebody when the next request that holds the marker comes, and before it goes on."""
        self._calls.append((marker, call))

    def fault_of(self, statement: bytes) -> Fault | None:
        """Take the fault that is in store for a request, if there is one."""
        self._call(statement)
        with self._lock:
            fault = self._next(statement)
            if fault is not None:
                self.happened.append(fault)
            return fault

    def _next(self, statement: bytes) -> Fault | None:
        for index, (marker, fault) in enumerate(self._faults):
            if marker in statement:
                del self._faults[index]
                return fault
        if self._chances is not None and self._chances[0] in statement:
            _, dice, chances = self._chances
            throw = dice.random()
            for fault, chance in chances.items():
                if throw < chance:
                    return fault
                throw -= chance
        return None

    def _call(self, statement: bytes) -> None:
        with self._lock:
            due = [entry for entry in self._calls if entry[0] in statement][:1]
            for entry in due:
                self._calls.remove(entry)
        for _, call in due:
            call()

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
                if self._listener is not listener or self.hangs_up:
                    link.cut()  # all others were cut while it was made

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
