"""Registries that are right for one client, and wrong for several at once: each with one fault."""

import asyncio
import itertools
import time
from typing import Any

from registry import AsyncMemoryCommandRegistry, CommandState, EventContext, MemoryCommandRegistry
from registry.lifecycle import is_terminal
from tests.test_testing.somebodys import NEXT, SomebodysLaterRegistry, SomebodysRegistry


def others_take_their_turn() -> None:
    """Let other threads run."""
    time.sleep(0)


class LostUpdate(SomebodysRegistry):
    """Reads a number, and writes the next one, without holding the lock in between."""

    def increment_attempt(self, command_id: str) -> int:
        command = self.find(command_id)
        attempt = int(command["attempt"]) + (command["state"] in NEXT)
        others_take_their_turn()
        command["attempt"] = attempt
        return attempt


class TornRead(SomebodysLaterRegistry):
    """Reads field by field, without the lock."""

    def get_command_status(self, command_id: str) -> dict[str, Any] | None:
        command, answer = self.commands.get(command_id), {}
        if command is None:
            return None
        for field in command:
            answer[field] = command[field]
            others_take_their_turn()
        return answer


class TwoWinners(SomebodysLaterRegistry):
    """Looks whether a command has ended, and then ends it."""

    def complete_command(self, command_id: str, state: Any, completed_at: Any, *args: Any, **given: Any) -> bool:
        command = self.find(command_id)
        if command["state"] not in NEXT:
            return False
        others_take_their_turn()
        facts = {"completed_at": completed_at} | {name: value for name, value in given.items() if value is not None}
        self.put(command, CommandState(state).value, facts)
        return True


class Replica(SomebodysRegistry):
    """Reads from a copy that is refreshed with every tenth write."""

    def __init__(self) -> None:
        super().__init__()
        self.writes = itertools.count(1)
        self.copies: dict[str, Any] = {}

    def refresh(self, command_id: str) -> None:
        if next(self.writes) % 10 == 0 or command_id not in self.copies:
            self.copies[command_id] = super().get_command_status(command_id)

    def increment_attempt(self, command_id: str) -> int:
        attempt = super().increment_attempt(command_id)
        self.refresh(command_id)
        return attempt

    def get_command_status(self, command_id: str) -> dict[str, Any] | None:
        return self.copies.get(command_id) or super().get_command_status(command_id)


class AcknowledgedTooEarly(SomebodysLaterRegistry):
    """Answers before it writes, and writes with the next call of anybody."""

    def __init__(self) -> None:
        super().__init__()
        self.later: list[Any] = []

    def catch_up(self) -> None:
        with self.lock:
            while self.later:
                command_id, at = self.later.pop()
                super().mark_dispatched_if_not_terminal(command_id, at)

    def mark_dispatched_if_not_terminal(self, command_id: str, dispatched_at: Any) -> bool:
        with self.lock:
            self.catch_up()
            lives = self.find(command_id)["state"] in NEXT
            self.later.append((command_id, dispatched_at))
            return lives

    def increment_attempt(self, command_id: str) -> int:
        self.catch_up()
        return super().increment_attempt(command_id)


# With events.


class Doubled(MemoryCommandRegistry):
    """Repeats every twentieth increment, as if the first answer had been lost."""

    def __init__(self) -> None:
        super().__init__()
        self.turns = itertools.count(1)

    def increment_attempt(self, command_id: str, **given: Any) -> int:
        if next(self.turns) % 20 == 0:
            super().increment_attempt(command_id, **given)
        return super().increment_attempt(command_id, **given)


class Ghost(MemoryCommandRegistry):
    """Now and then dispatches what nobody has dispatched."""

    def __init__(self) -> None:
        super().__init__()
        self.turns = itertools.count(1)

    def get_command_status(self, command_id: str, **given: Any) -> Any:
        if next(self.turns) % 20 == 0:
            super().increment_attempt(command_id, context=EventContext(actor="ghost"))
        return super().get_command_status(command_id, **given)


class AcknowledgedAndLost(MemoryCommandRegistry):
    """Says True to every twentieth completion, and does nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.turns = itertools.count(1)

    def complete_command(self, command_id: str, *args: Any, **given: Any) -> bool:
        status = super().get_command_status(command_id)
        if status is not None and not is_terminal(status.state) and next(self.turns) % 20 == 0:
            return True
        return super().complete_command(command_id, *args, **given)


class RefusedAndWritten(MemoryCommandRegistry):
    """Says False to a completion that it has written."""

    def __init__(self) -> None:
        super().__init__()
        self.turns = itertools.count(1)

    def complete_command(self, command_id: str, *args: Any, **given: Any) -> bool:
        return super().complete_command(command_id, *args, **given) and next(self.turns) % 20 > 0


class SomebodyElsesRequest(MemoryCommandRegistry):
    """Files an event under the request of the call before."""

    def __init__(self) -> None:
        super().__init__()
        self.before = EventContext()

    def increment_attempt(self, command_id: str, *, context: EventContext | None = None, **given: Any) -> int:
        context, self.before = self.before, context or EventContext()
        return super().increment_attempt(command_id, context=context, **given)


class StaleAfterAwait(AsyncMemoryCommandRegistry):
    """Reads, lets others run, and answers with what it has read."""

    async def increment_attempt(self, command_id: str, **given: Any) -> int:
        status = await self.get_command_status(command_id)
        await asyncio.sleep(0)
        await super().increment_attempt(command_id, **given)
        return 0 if status is None else status.attempt + (not is_terminal(status.state))


RACES: list[Any] = [
    LostUpdate,
    TornRead,
    TwoWinners,
    Replica,
    AcknowledgedTooEarly,
    Doubled,
    Ghost,
    AcknowledgedAndLost,
    RefusedAndWritten,
    SomebodyElsesRequest,
    StaleAfterAwait,
]
