"""From a line to its answer: requests and batches, run concurrently on a registry."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from pydantic import JsonValue

from registry.protocol import AsyncCommandRegistry
from registry.rpc.faults import EXPECTED, refusal
from registry.rpc.messages import (
    INTERNAL_ERROR,
    INVALID_REQUEST,
    METHOD_NOT_FOUND,
    Request,
    RpcError,
    error_answer,
    joined,
    parse,
    read_id,
    read_request,
    result_answer,
)
from registry.rpc.methods import METHODS

__all__ = ["MAX_IN_FLIGHT", "Dispatcher"]

MAX_IN_FLIGHT: Final = 64
"""How many messages are worked on at once, and how many calls."""

_log = logging.getLogger("registry.rpc")


class Dispatcher:
    """Answers messages by calls of a registry, at most `max_calls` at once."""

    def __init__(self, registry: AsyncCommandRegistry, max_calls: int = MAX_IN_FLIGHT) -> None:
        self._registry = registry
        self._slots = asyncio.Semaphore(max_calls)

    async def answer(self, line: bytes) -> bytes | None:
        """Answer one line; None when it asks for no answer."""
        try:
            message = parse(line)
        except RpcError as error:
            return error_answer(None, error)
        if message == []:
            return error_answer(None, RpcError(INVALID_REQUEST, "an empty batch"))
        if isinstance(message, list):
            return await self._batch(message)
        async with self._slots:
            return await self._single(message)

    async def _batch(self, messages: list[JsonValue]) -> bytes | None:
        answers: list[bytes | None] = [None] * len(messages)

        async def answer(place: int) -> None:
            made = await self._single(messages[place])
            if made is not None:
                answers[place] = bytes(memoryview(made))  # a copy: orjson's holds 4 KiB, however short

        async with asyncio.TaskGroup() as group:
            for place in range(len(messages)):
                # A task is made only when it may run, and not kept: a long batch costs little more than its answers.
                await self._slots.acquire()
                group.create_task(answer(place)).add_done_callback(lambda _: self._slots.release())
        given = [each for each in answers if each is not None]
        return joined(given) if given else None

    async def _single(self, message: JsonValue) -> bytes | None:
        request_id, is_notification = read_id(message), False
        try:
            request = read_request(message)
            is_notification = request.is_notification
            answer = result_answer(request_id, await self._call(request))
        except RpcError as error:
            answer = error_answer(request_id, error)
        except EXPECTED as error:
            answer = error_answer(request_id, refusal(error))
        except Exception:
            _log.exception("a request failed")
            answer = error_answer(request_id, RpcError(INTERNAL_ERROR))
        return None if is_notification else answer

    async def _call(self, request: Request) -> object:
        method = METHODS.get(request.method)
        if method is None:
            raise RpcError(METHOD_NOT_FOUND, repr(request.method))
        call: Callable[..., Awaitable[object]] = getattr(self._registry, method.name)
        return await call(**method.arguments(request.params))
