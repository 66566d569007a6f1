"""An asynchronous registry called synchronously, so that one suite serves both kinds."""

import asyncio
import inspect
from contextvars import copy_context
from typing import Any


class Synchronous:
    """Runs every call of an asynchronous registry to its end, on an event loop of its own."""

    def __init__(self, registry: Any) -> None:
        self._registry = registry
        self._runner = asyncio.Runner()
        if hasattr(registry, "connect"):
            try:
                self._runner.run(registry.connect())
            except BaseException:
                self._runner.close()
                raise

    def __getattr__(self, name: str) -> Any:
        member = getattr(self._registry, name)
        if not inspect.iscoroutinefunction(member):
            return member
        return lambda *args, **kwargs: self._runner.run(member(*args, **kwargs), context=copy_context())

    def close(self) -> None:
        if hasattr(self._registry, "close"):
            self._runner.run(self._registry.close())
        self._runner.close()
