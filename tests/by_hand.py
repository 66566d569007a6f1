"""A plan stepped by hand: each step over the connection, and with the failure, that a test chooses."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Generic, Self, TypeVar

import psycopg

from eventstore.errors import EventStoreError
from eventstore.steps import Lost, Plan, Row, Step
from tests.lending import on

__all__ = ["ByHand", "one"]

T = TypeVar("T")


def one(step: Step) -> Plan[list[Row]]:
    """Take one step, as a plan."""
    return (yield step)


class ByHand(Generic[T]):
    """A plan that takes one step when it is told to."""

    def __init__(self, plan: Plan[T], connection: psycopg.Connection[Any]) -> None:
        self._plan = plan
        self._connection = connection
        self.step: Step | None = None
        self.result: T | None = None
        self._resume(lambda: next(plan))

    def _resume(self, resume: Callable[[], Step]) -> None:
        try:
            self.step = resume()
        except StopIteration as stop:
            self.step, self.result = None, stop.value

    @property
    def pending(self) -> Step:
        """The step that it waits for."""
        assert self.step is not None, "the plan has ended"
        return self.step

    def take(self) -> Self:
        """Take the step; what the server refuses is thrown into the plan."""
        try:
            rows = on(self._connection, one(self.pending))
        except (EventStoreError, psycopg.Error) as error:
            return self.throw(error)
        self._resume(lambda: self._plan.send(rows))
        return self

    def throw(self, error: Exception) -> Self:
        """Let the step fail."""
        self._resume(lambda: self._plan.throw(error))
        return self

    def to_the_write(self) -> Self:
        """Go on until it is about to write."""
        while not self.pending.writes:
            self.take()
        return self

    def to_the_end(self) -> T | None:
        """Go on until it has ended."""
        while self.step is not None:
            self.take()
        return self.result

    def send_in_vain(self, error: Exception) -> Self:
        """Send the step, and let it fail: the server has not done it, nor will it (unless the line was `Lost`)."""
        sender = self.pending.sender
        if sender is not None:
            assert sender.sending()
            if not isinstance(error, Lost):
                sender.failed()
        return self.throw(error)

    def lose_the_request(self) -> Step:
        """Lose the connection before the step happens; give the step, which the server may still do later."""
        step = replace(self.pending, sender=None)
        self.send_in_vain(Lost("the request"))
        return step

    def lose_the_reply(self) -> Self:
        """Let the step happen, and lose the connection before its answer."""
        on(self._connection, one(self.pending))
        return self.throw(Lost("the reply"))
