"""Who calls, and in the course of what: given to a write as an argument, or set for all writes of a block."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from pydantic import JsonValue

from registry.models import EventContext, accept

__all__ = ["command_context", "current_context"]

_current: Final[ContextVar[EventContext | None]] = ContextVar("command_registry_context", default=None)
_NOBODY: Final = EventContext()


def current_context() -> EventContext:
    """Return the context that a write without an explicit one is recorded with."""
    return _current.get() or _NOBODY


@contextmanager
def command_context(
    *,
    actor: str | None = None,
    traceparent: str | None = None,
    request_id: str | None = None,
    attributes: dict[str, JsonValue] | None = None,
) -> Iterator[EventContext]:
    """Record every write of this block, in this thread or task, with a context.

    Raises:
        InvalidCommand: an argument cannot be accepted; the error names it.
    """
    context = accept(
        EventContext,
        actor=actor,
        traceparent=traceparent,
        request_id=request_id,
        attributes={} if attributes is None else attributes,
    )
    token = _current.set(context)
    try:
        yield context
    finally:
        _current.reset(token)
