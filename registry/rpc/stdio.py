"""Lines in and out of file descriptors of any kind (pipes, files, terminals) without blocking the event loop."""

import asyncio
import os
import queue
import select
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Final, TypeVar

__all__ = ["MAX_LINE_BYTES", "LineReader", "LineSplitter", "LineTooLong", "LineWriter", "private_stdio"]

MAX_LINE_BYTES: Final = 1024 * 1024
"""How long a line may be, its line feed not counted."""

_CHUNK_BYTES: Final = 64 * 1024

R = TypeVar("R")


class LineTooLong:
    """Stands for a line of more than `MAX_LINE_BYTES`, which is not kept."""


class LineSplitter:
    """Cuts chunks of bytes into lines; a line that is too long is passed over as it comes, and told of once."""

    def __init__(self, limit: int = MAX_LINE_BYTES) -> None:
        self._limit = limit
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> Iterator[bytes | LineTooLong]:
        """Take a chunk, and give the lines that it ends."""
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            self._keep(end)
            yield from self.end()
        self._keep(rest)

    def end(self) -> Iterator[bytes | LineTooLong]:
        """Give the line begun, if there is one; blank ones are passed over."""
        line = LineTooLong() if self._size > self._limit else b"".join(self._parts)
        self._parts, self._size = [], 0
        if isinstance(line, LineTooLong) or line.strip():
            yield line

    def _keep(self, part: bytes) -> None:
        self._size += len(part)
        if self._size > self._limit:
            self._parts = []
        else:
            self._parts.append(part)


class _DaemonThread:
    """Runs blocking functions, one at a time, in a thread that keeps no process alive.

    Not asyncio.to_thread: at exit, Python would wait for a thread that reads from a terminal.
    """

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def call(self, function: Callable[[], R]) -> asyncio.Future[R]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[R] = loop.create_future()

        def job() -> None:
            try:
                settle = partial(_settle, future, result=function())
            except OSError as error:
                settle = partial(_settle, future, error=error)
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(settle)

        self._jobs.put(job)
        return future

    def _run(self) -> None:
        while True:
            self._jobs.get()()


def _settle(future: asyncio.Future[R], *, result: R | None = None, error: OSError | None = None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)  # type: ignore[arg-type]


class LineReader:
    """Reads the lines of a file descriptor, no faster than they are taken."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._thread = _DaemonThread("registry-rpc-reader")
        self._pending: asyncio.Future[bytes] | None = None
        self.stopped = False

    def stop(self) -> None:
        """End the input here, as far as `lines` is concerned."""
        self.stopped = True
        if self._pending is not None and not self._pending.done():
            self._pending.set_result(b"")

    async def lines(self) -> AsyncIterator[bytes | LineTooLong]:
        """Give line after line, until the input ends or is stopped; the last needs no line feed."""
        splitter = LineSplitter()
        while chunk := await self._chunk():
            for line in splitter.feed(chunk):
                yield line
                if self.stopped:
                    return
        if not self.stopped:
            for line in splitter.end():
                yield line

    async def _chunk(self) -> bytes:
        if self.stopped:
            return b""
        self._pending = self._thread.call(partial(_read, self._fd))
        try:
            return await self._pending
        except OSError:  # a terminal that was hung up
            return b""


class LineWriter:
    """Writes lines to a file descriptor, each at once and whole."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._thread = _DaemonThread("registry-rpc-writer")

    async def write(self, line: bytes) -> None:
        """Write a line.

        Raises:
            OSError: nobody can read it any more.
        """
        await self._thread.call(partial(_write, self._fd, line + b"\n"))


def _read(fd: int) -> bytes:
    while True:
        try:
            return os.read(fd, _CHUNK_BYTES)
        except BlockingIOError:  # the parent made its end non-blocking, and shares it with us
            select.select([fd], [], [])


def _write(fd: int, data: bytes) -> None:
    while data:
        try:
            data = data[os.write(fd, data) :]
        except BlockingIOError:
            select.select([], [fd], [])


@contextmanager
def private_stdio() -> Iterator[tuple[int, int]]:
    """Keep stdin and stdout for the protocol alone: give descriptors of both that nothing else has.

    Meanwhile whatever this process or its children print goes to stderr, and they read nothing; nor do they hold the
    caller's pipes open when they outlive us.
    """
    kept = os.dup(0), os.dup(1)
    try:
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(2 if sys.stderr else null, 1)
        os.close(null)
        yield kept
    finally:
        if sys.stdout is not None:
            with suppress(OSError, ValueError):
                sys.stdout.flush()  # what was printed meanwhile goes to stderr, too
        for standard, fd in enumerate(kept):
            os.dup2(fd, standard)
            os.close(fd)
