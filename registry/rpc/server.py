"""Serves a registry on stdin and stdout until the input, the reader of the answers, or a signal ends it."""

import asyncio
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Final, Literal

from eventstore.database import Pooler
from registry.deployments import FixedDeployments
from registry.memory import AsyncMemoryCommandRegistry
from registry.models import DeploymentModel
from registry.postgres import AsyncPostgresCommandRegistry
from registry.protocol import AsyncCommandRegistry
from registry.rpc.dispatch import MAX_IN_FLIGHT, Dispatcher
from registry.rpc.messages import PARSE_ERROR, RpcError, error_answer
from registry.rpc.stdio import MAX_LINE_BYTES, LineReader, LineTooLong, LineWriter, private_stdio

__all__ = ["GRACE_SECONDS", "Server", "run_rpc", "serve"]

GRACE_SECONDS: Final = 40.0
"""How long a signal waits for what is under way: longer than any call lasts, but not for ever when nobody reads."""

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
_log = logging.getLogger("registry.rpc")


def run_rpc(
    dsn: str | None,
    *,
    memory: bool,
    deployment_model: DeploymentModel,
    deployments_table: bool = False,
    pooler: Pooler | None = None,
) -> None:
    """Serve a registry over JSON-RPC on stdin and stdout, until the input ends: see `registry.rpc`.

    `dsn`: the database (None: the embedded Postgres), or `memory`: one that forgets at the end. Deployments are those
    of table `command_registry.deployments` with `deployments_table`, else any id, with commands by `deployment_model`.
    `pooler`: what the DSN leads through.

    Raises:
        ValueError: a DSN, a pooler or the deployments table is asked for in memory.
        InvalidDsn: the DSN cannot be read.
        SchemaMismatch: the database has no registry, or one of another version.
        Unavailable: the server cannot be reached.
        EmbeddedPostgresError: the embedded Postgres cannot be started here.
    """
    if memory and (dsn is not None or pooler is not None or deployments_table):
        raise ValueError("a registry in memory has no DSN, no pooler and no deployments table: leave them out")
    fixed = FixedDeployments(deployment_model)
    if memory:
        registry: AsyncMemoryCommandRegistry | AsyncPostgresCommandRegistry = AsyncMemoryCommandRegistry(fixed)
    else:
        directory: FixedDeployments | Literal["table"] = "table" if deployments_table else fixed
        registry = AsyncPostgresCommandRegistry.open(dsn, deployments=directory, pooler=pooler)
    asyncio.run(serve(registry))


async def serve(registry: AsyncCommandRegistry) -> None:
    """Serve any registry over JSON-RPC on stdin and stdout, until the input ends; one on Postgres is opened and closed.

    In the main thread, SIGINT and SIGTERM end it after what is under way.
    """
    async with AsyncExitStack() as stack:
        input_fd, output_fd = stack.enter_context(private_stdio())
        server = Server(registry, LineReader(input_fd), LineWriter(output_fd))
        stack.enter_context(_on_signal(server.stop))
        if isinstance(registry, AsyncPostgresCommandRegistry):
            await stack.enter_async_context(registry)
        await server.run()


@contextmanager
def _on_signal(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` on the first signal, and leave the second to Python, which ends the process."""
    loop = asyncio.get_running_loop()
    signals = _SIGNALS if threading.current_thread() is threading.main_thread() else ()

    def first() -> None:
        for number in signals:
            loop.remove_signal_handler(number)
        stop()

    for number in signals:
        loop.add_signal_handler(number, first)
    try:
        yield
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


class Server:
    """Answers lines as they come, at most `MAX_IN_FLIGHT` at once, each as soon as it can be."""

    def __init__(self, registry: AsyncCommandRegistry, reader: LineReader, writer: LineWriter) -> None:
        self._dispatcher = Dispatcher(registry)
        self._reader, self._writer = reader, writer
        self._free = asyncio.Semaphore(MAX_IN_FLIGHT)
        self._tasks: set[asyncio.Task[None]] = set()

    def stop(self) -> None:
        """Read no more, and give what is under way its grace."""
        self._reader.stop()
        asyncio.get_running_loop().call_later(GRACE_SECONDS, self._give_up)

    async def run(self) -> None:
        """Answer every line, to the last."""
        async for line in self._reader.lines():
            await self._free.acquire()
            if self._reader.stopped:
                break
            task = asyncio.create_task(self._answer(line))
            self._tasks.add(task)
            task.add_done_callback(self._answered)
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _answered(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._free.release()

    def _give_up(self) -> None:
        _log.error("stopped with %d messages unanswered", len(self._tasks))
        for task in self._tasks:
            task.cancel()

    async def _answer(self, line: bytes | LineTooLong) -> None:
        if isinstance(line, LineTooLong):
            too_long = RpcError(PARSE_ERROR, f"the line is longer than {MAX_LINE_BYTES} bytes")
            answer: bytes | None = error_answer(None, too_long)
        else:
            answer = await self._dispatcher.answer(line)
        if answer is not None:
            await self._write(answer)

    async def _write(self, answer: bytes) -> None:
        try:
            await self._writer.write(answer)
        except BrokenPipeError:
            self._reader.stop()
        except OSError as error:
            _log.error("cannot write to stdout: %s", error)
            self._reader.stop()
