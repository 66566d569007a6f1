"""Any implementation of the registry, for threads or for asyncio, called synchronously; what it has is found out."""

import asyncio
import inspect
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any, Final, TypeVar

from registry.protocol import AsyncCommandRegistry, CommandRegistry

__all__ = ["CALLS", "EventLoop", "Factory", "Implementation", "opened", "takes"]

T = TypeVar("T")

Factory = Callable[[], Any]
"""Makes a registry: an object with its calls, a context manager that gives one, or an awaitable of either."""

CALLS: Final = tuple(name for name in vars(CommandRegistry) if not name.startswith("_"))
"""The names of all calls there are."""

_NEEDED: Final = ("create_command", "get_command_status")


class EventLoop:
    """An event loop in a thread of its own, so that it serves whoever waits, inside another event loop or not."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: tuple[asyncio.AbstractEventLoop, threading.Thread] | None = None

    def run(self, work: Awaitable[T]) -> T:
        """Wait for a coroutine to end, in the caller's context."""
        waiting = asyncio.run_coroutine_threadsafe(_awaited(work), self._started())
        try:
            return waiting.result()
        except BaseException:
            waiting.cancel()
            raise

    def _started(self) -> asyncio.AbstractEventLoop:
        """Start it when it is first needed: a registry for threads needs none."""
        with self._lock:
            if self._running is None:
                loop = asyncio.new_event_loop()
                thread = threading.Thread(target=loop.run_forever, name="command-registry-testing", daemon=True)
                thread.start()
                self._running = loop, thread
            return self._running[0]

    def close(self) -> None:
        """End what still runs, and the loop; not at the end of the program, when its thread runs no more."""
        if self._running is None:
            return
        loop, thread = self._running
        if sys.is_finalizing() or not thread.is_alive():
            return
        self.run(_end_tasks())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _awaited(work: Awaitable[T]) -> T:
    return await work


async def _end_tasks() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class Implementation:
    """A registry of any kind: its calls, made synchronously, and which of them it has.

    `loop`: where its coroutines run; needed where its calls are such, and are made.
    """

    def __init__(self, registry: Any, loop: EventLoop | None = None) -> None:  # noqa: ANN401
        self.registry = registry
        self._loop = loop
        self.calls = frozenset(name for name in CALLS if _is_implemented(registry, name))
        missing = [name for name in _NEEDED if name not in self.calls]
        if missing:
            raise TypeError(f"{type(registry).__name__} is no command registry: it has no {' and no '.join(missing)}")

    def has(self, *calls: str) -> bool:
        """Tell whether it has all of these calls."""
        return self.calls.issuperset(calls)

    def takes(self, call: str, parameter: str) -> bool:
        """Tell whether it has a call, with a parameter of this name."""
        return call in self.calls and takes(getattr(self.registry, call), parameter)

    @property
    def is_asynchronous(self) -> bool:
        """Whether its calls are coroutines."""
        return inspect.iscoroutinefunction(self.registry.create_command)

    @property
    def loop(self) -> EventLoop:
        """Where its coroutines run."""
        if self._loop is None:
            raise TypeError("an asynchronous registry is called on an event loop, and none was given")
        return self._loop

    def history(self, command_id: str) -> Any:  # noqa: ANN401
        """Read a command's events."""
        return self.call("history", command_id)

    def missing(self) -> list[str]:
        """List what the protocol has, and this has not: calls, and the parameters that are found by their names."""
        extra = [("create_command", "idempotency_key"), ("create_command", "context")]
        absent = [f"{name}=" for call, name in extra if not self.takes(call, name)]
        return [call for call in CALLS if call not in self.calls] + absent

    def call(self, name: str, *args: Any, **arguments: Any) -> Any:  # noqa: ANN401
        """Make a call, and wait for its answer."""
        answer = getattr(self.registry, name)(*args, **arguments)
        return self.loop.run(answer) if inspect.isawaitable(answer) else answer


def takes(call: Callable[..., Any], parameter: str) -> bool:
    """Tell whether a call has a parameter of this name; one that takes any may take it, or may not."""
    return parameter in inspect.signature(call).parameters


def _is_implemented(registry: object, name: str) -> bool:
    """Tell whether a registry has a call of its own, and not just that of a protocol it derives from."""
    inherited = getattr(type(registry), name, None)
    stubs = (getattr(CommandRegistry, name), getattr(AsyncCommandRegistry, name))
    return callable(getattr(registry, name, None)) and inherited not in stubs


@contextmanager
def opened(factory: Factory) -> Iterator[Implementation]:
    """Make a registry, open it if it is a context manager, and close it at the end.

    Raises:
        TypeError: what the factory makes is no registry.
    """
    with closing(EventLoop()) as loop:
        made = factory()
        if inspect.isawaitable(made):
            made = loop.run(made)
        if hasattr(type(made), "__enter__"):
            with made as registry:
                yield Implementation(registry, loop)
        elif hasattr(type(made), "__aenter__"):
            registry = loop.run(made.__aenter__())
            try:
                yield Implementation(registry, loop)
            except BaseException as error:
                loop.run(made.__aexit__(type(error), error, error.__traceback__))
                raise
            else:
                loop.run(made.__aexit__(None, None, None))
        else:
            yield Implementation(made, loop)
