"""An asynchronous registry called synchronously, so that one suite serves both kinds."""

import inspect
from typing import Any

from registry.testing.implementation import EventLoop


class Synchronous:
    """Runs every call of an asynchronous registry to its end, on an event loop of its own; threads may share it."""

    def __init__(self, registry: Any) -> None:
        self._registry = registry
        self._loop = EventLoop()
        if hasattr(registry, "connect"):
            try:
                self._loop.run(registry.connect())
            except BaseException:
                self._loop.close()
                raise

    def __getattr__(self, name: str) -> Any:
        member = getattr(self._registry, name)
        if not inspect.iscoroutinefunction(member):
            return member
        return lambda *args, **kwargs: self._loop.run(member(*args, **kwargs))

    def close(self) -> None:
        if hasattr(self._registry, "close"):
            self._loop.run(self._registry.close())
        self._loop.close()
