"""A bad network in front of Postgres: a TCP proxy that holds, slows and cuts bytes, and knows nothing of messages.

(tests/proxy.py is the one that reads the protocol, and goes wrong at a statement.)
"""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Final

from psycopg.conninfo import conninfo_to_dict, make_conninfo

__all__ = ["Network", "Way", "network"]

_CHUNK: Final = 65536
_AT_ONCE: Final = struct.pack("ii", 1, 0)  # SO_LINGER: close with a reset, and forget what was not sent yet


class Way(Enum):
    """A direction through the network."""

    REQUESTS = "from the client to the server"
    REPLIES = "from the server to the client"


class _Link:
    """One connection through the network."""

    def __init__(self, client: socket.socket) -> None:
        self.client = client
        self.server: socket.socket | None = None
        self.left: dict[Way, int] = {}
        """So many bytes still pass, before the connection is cut."""

    def end(self, *, abruptly: bool) -> None:
        for side in (self.client, self.server):
            if side is not None:
                _close(side, abruptly=abruptly)

    def allowed(self, way: Way, chunk: bytes) -> tuple[bytes, bool]:
        """Give what may pass of a chunk, and whether the connection is cut after it."""
        if way not in self.left:
            return chunk, False
        passing = chunk[: self.left[way]]
        self.left[way] -= len(passing)
        return passing, self.left[way] == 0


def _close(side: socket.socket, *, abruptly: bool) -> None:
    if abruptly:
        with contextlib.suppress(OSError):
            side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
    side.close()


class Network:
    """Forwards 127.0.0.1:`port` to a Postgres, from a thread of its own, and goes wrong when it is told to.

    As TCP does, it loses nothing of what it holds: that arrives when the network heals, and after it the end of a
    connection whose client has left meanwhile. `carried`: bytes so far; `held`: those that do not pass now. `cuts`:
    connections cut in the midst of something. `torn`: connections reset or half open.
    """

    def __init__(self, host: str, port: int) -> None:
        self._upstream = (host, port)
        self._loop = asyncio.new_event_loop()
        self._links: dict[_Link, asyncio.Task[None]] = {}
        self._lingering: list[socket.socket] = []
        self._flowing = {way: asyncio.Event() for way in Way}
        self._latency = 0.0
        self._bytes_per_second = 0.0
        self._limits: list[tuple[Way, int]] = []
        self.carried = dict.fromkeys(Way, 0)
        self.held = dict.fromkeys(Way, 0)
        self.cuts = self.torn = 0
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run, name="network")
        self._thread.start()

    def dsn(self, dsn: str) -> str:
        """Give the DSN of the same database through this network."""
        return make_conninfo(dsn, host="127.0.0.1", port=self.port, sslmode="disable", gssencmode="disable")

    def close(self) -> None:
        """End every connection, and the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def hold(self, *ways: Way) -> None:
        """Let nothing pass any more in these directions; without one, in neither. Connections stand."""

        def held() -> None:
            for way in ways or Way:
                self._flowing[way].clear()

        self._do(held)

    def slow(self, latency: float, bytes_per_second: float) -> None:
        """Delay all that passes, in both directions, by so many seconds and by its size."""
        self._latency, self._bytes_per_second = latency, bytes_per_second

    def reset(self, share: Callable[[], bool] = lambda: True) -> None:
        """Reset connections, both ends (those that `share` chooses)."""

        def torn() -> None:
            for link in self._chosen(share):
                self._tear(link, link.client, link.server)

        self._do(torn)

    def half_open(self, survivor: Way, share: Callable[[], bool] = lambda: True) -> None:
        """Reset one end of connections; the other is not told, and waits: the one that sends `survivor`."""

        def halved() -> None:
            for link in self._chosen(share):
                self._halve(link, survivor)

        self._do(halved)

    def cut_after(self, way: Way, size: int) -> None:
        """Reset the next connection that something passes through in a direction, after so many bytes of it."""
        self._do(lambda: self._limits.append((way, size)))

    def heal(self) -> None:
        """Let all pass again, at once; and end what was half open."""
        self.slow(0.0, 0.0)
        self._do(self._heal)

    # In the thread.

    def _run(self) -> None:
        accepting = self._loop.create_task(self._accept())
        for flowing in self._flowing.values():
            flowing.set()
        try:
            self._loop.run_forever()
        finally:
            tasks = [accepting, *self._links.values()]
            for task in tasks:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            self._heal()
            self._listener.close()
            self._loop.close()

    def _do(self, change: Callable[[], object]) -> None:
        async def made() -> None:
            change()

        asyncio.run_coroutine_threadsafe(made(), self._loop).result(10)

    def _chosen(self, share: Callable[[], bool]) -> list[_Link]:
        return [link for link in self._links if share()]

    def _tear(self, link: _Link, *ends: socket.socket | None) -> None:
        self.torn += 1
        self._links.pop(link).cancel()
        for end in ends:
            if end is not None:
                _close(end, abruptly=True)

    def _halve(self, link: _Link, survivor: Way) -> None:
        kept, gone = (link.client, link.server) if survivor is Way.REQUESTS else (link.server, link.client)
        self._tear(link, gone)
        if kept is not None:
            self._lingering.append(kept)

    def _heal(self) -> None:
        for flowing in self._flowing.values():
            flowing.set()
        self._limits.clear()
        for side in self._lingering:
            _close(side, abruptly=True)
        self._lingering.clear()

    async def _accept(self) -> None:
        while True:
            client, _ = await self._loop.sock_accept(self._listener)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link = _Link(client)
            self._links[link] = self._loop.create_task(self._carry(link))

    async def _carry(self, link: _Link) -> None:
        abruptly = False
        try:
            await self._flowing[Way.REQUESTS].wait()
            link.server = server = await self._connected()
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(link, Way.REQUESTS, link.client, server))
                pumps.create_task(self._pump(link, Way.REPLIES, server, link.client))
        except* (OSError, _CutError):
            abruptly = True
        finally:
            if self._links.pop(link, None) is not None:  # else somebody else has torn it
                link.end(abruptly=abruptly)

    async def _connected(self) -> socket.socket:
        host, port = self._upstream
        local = host.startswith("/")
        server = socket.socket(socket.AF_UNIX if local else socket.AF_INET)
        server.setblocking(False)
        try:
            await self._loop.sock_connect(server, f"{host}/.s.PGSQL.{port}" if local else (host, port))
        except BaseException:
            server.close()
            raise
        return server

    async def _pump(self, link: _Link, way: Way, source: socket.socket, sink: socket.socket) -> None:
        while chunk := await self._loop.sock_recv(source, _CHUNK):
            await self._passage(way, len(chunk))
            self._limit(link, way)
            chunk, is_cut = link.allowed(way, chunk)
            await self._loop.sock_sendall(sink, chunk)
            self.carried[way] += len(chunk)
            if is_cut:
                self.cuts += 1
                raise _CutError
        await self._passage(way, 0)
        sink.shutdown(socket.SHUT_WR)

    async def _passage(self, way: Way, size: int) -> None:
        if self._latency:
            await asyncio.sleep(self._latency + size / self._bytes_per_second)
        self.held[way] += size
        await self._flowing[way].wait()
        self.held[way] -= size

    def _limit(self, link: _Link, way: Way) -> None:
        for index, (limited, size) in enumerate(self._limits):
            if limited is way and way not in link.left:
                del self._limits[index]
                link.left[way] = size
                return


class _CutError(Exception):
    """The connection is cut in the midst of what passes."""


@contextmanager
def network(dsn: str) -> Iterator[Network]:
    """Put a network before the server of a DSN."""
    settings = conninfo_to_dict(dsn)
    opened = Network(str(settings["host"]), int(settings.get("port") or 5432))
    try:
        yield opened
    finally:
        opened.close()
