"""Registries with one fault each, such as people make: each is wrong for some sequence of calls by one client."""

import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from eventstore.event import RecordedEvent
from registry import CommandState, CommandStatus, InvalidCommand, InvalidTransition, MemoryCommandRegistry, decider
from registry.decider import Decision
from registry.lifecycle import is_terminal
from registry.models import StateUpdate
from tests.test_testing.somebodys import NEXT, SomebodysLaterRegistry, SomebodysRegistry


class DoubledIncrement(SomebodysRegistry):
    def increment_attempt(self, command_id: str) -> int:
        super().increment_attempt(command_id)
        return super().increment_attempt(command_id)


class IncrementAnswersTheOldNumber(SomebodysRegistry):
    def increment_attempt(self, command_id: str) -> int:
        before = int(self.find(command_id)["attempt"])
        super().increment_attempt(command_id)
        return before


class IncrementsTheTerminal(SomebodysRegistry):
    def increment_attempt(self, command_id: str) -> int:
        command = self.find(command_id)
        command["attempt"] += 1
        return int(command["attempt"])


class AttemptReset(SomebodysRegistry):
    def put(self, command: dict[str, Any], to: str, facts: dict[str, Any]) -> None:
        if to == "DISPATCHED":
            command["attempt"] = 1
        super().put(command, to, facts)


class LostIncrement(SomebodysRegistry):
    """Increments a copy that it keeps for the next read only."""

    def increment_attempt(self, command_id: str) -> int:
        command = self.find(command_id)
        return int(command["attempt"]) + (command["state"] in NEXT)


class StaleRead(SomebodysRegistry):
    """Reads from a replica that is one read behind."""

    def __init__(self) -> None:
        super().__init__()
        self.replica: dict[str, Any] = {}

    def get_command_status(self, command_id: str) -> dict[str, Any] | None:
        fresh = super().get_command_status(command_id)
        stale = self.replica.get(command_id, fresh)
        self.replica[command_id] = fresh
        return stale


class StaleMetadata(SomebodysRegistry):
    """Remembers the metadata of a command, and forgets to forget it."""

    def __init__(self) -> None:
        super().__init__()
        self.cache: dict[str, Any] = {}

    def get_command_metadata(self, command_id: str) -> dict[str, Any] | None:
        if command_id not in self.cache:
            self.cache[command_id] = super().get_command_metadata(command_id)
        return self.cache[command_id]  # type: ignore[no-any-return]


class TerminalOverwritten(SomebodysLaterRegistry):
    def complete_command(self, command_id: str, *args: Any, **given: Any) -> bool:
        done = super().complete_command(command_id, *args, **given)
        if not done and "state" in given:
            self.find(command_id)["state"] = given["state"]
        return done


class LateErrorIsKept(SomebodysRegistry):
    """Answers False for a late duplicate, but takes its error."""

    def update_command_state(self, command_id: str, state: Any, **given: Any) -> bool:  # type: ignore[override]
        done = super().update_command_state(command_id, state, **given)
        if not done and given.get("error") is not None:
            self.find(command_id)["error"] = given["error"]
        return done


class LateIsRefused(SomebodysRegistry):
    def update_command_state(self, command_id: str, state: Any, **given: Any) -> bool:  # type: ignore[override]
        if not super().update_command_state(command_id, state, **given):
            raise InvalidTransition(command_id, "terminal", state)
        return True


class NoneClears(SomebodysRegistry):
    def update_command_state(  # type: ignore[override]
        self, command_id: str, state: Any, dispatched_at: Any = None, **given: Any
    ) -> bool:
        moved = super().update_command_state(command_id, state, dispatched_at, **given)
        if moved:
            self.find(command_id)["dispatched_at"] = dispatched_at
        return moved


class ZeroIsNothing(SomebodysRegistry):
    """Takes a size of 0 for none."""

    def put(self, command: dict[str, Any], to: str, facts: dict[str, Any]) -> None:
        super().put(
            command, to, {name: value for name, value in facts.items() if value or name != "response_size_bytes"}
        )


class FalseIsNothing(SomebodysRegistry):
    """Takes an error that is false, such as {} or 0, for none."""

    def put(self, command: dict[str, Any], to: str, facts: dict[str, Any]) -> None:
        super().put(command, to, {name: value for name, value in facts.items() if value or name != "error"})


class TooLax(SomebodysRegistry):
    def move(self, command_id: str, to: Any, given: dict[str, Any], allowed: dict[str, set[str]]) -> bool:
        return super().move(
            command_id, to, given, allowed | {"PENDING_UPLOAD": NEXT["PENDING_UPLOAD"] | {"DISPATCHED"}}
        )


class TooStrict(SomebodysRegistry):
    """Does not take a released lease."""

    def move(self, command_id: str, to: Any, given: dict[str, Any], allowed: dict[str, set[str]]) -> bool:
        return super().move(command_id, to, given, allowed | {"DISPATCHED": allowed["DISPATCHED"] - {"PENDING"}})


class CompletesOnlyTheDispatched(SomebodysLaterRegistry):
    """Refuses the response that comes after its lease was released."""

    def complete_command(self, command_id: str, *args: Any, **given: Any) -> bool:
        if self.find(command_id)["state"] == "PENDING":
            return False
        return super().complete_command(command_id, *args, **given)


class CompletesWithAnyState(SomebodysLaterRegistry):
    def complete_command(self, command_id: str, state: Any, completed_at: Any, *args: Any, **given: Any) -> bool:
        if state in NEXT:
            return self.move(command_id, state, {"completed_at": completed_at}, NEXT)
        return super().complete_command(command_id, state, completed_at, *args, **given)


class KeepsTheFirstDispatch(SomebodysLaterRegistry):
    def mark_dispatched_if_not_terminal(self, command_id: str, dispatched_at: Any) -> bool:
        first = self.find(command_id)["dispatched_at"] if command_id in self.commands else None
        return super().mark_dispatched_if_not_terminal(command_id, first or dispatched_at)


class Milliseconds(SomebodysRegistry):
    """Stores instants to the millisecond."""

    def put(self, command: dict[str, Any], to: str, facts: dict[str, Any]) -> None:
        rounded = {
            name: value.replace(microsecond=value.microsecond // 1000 * 1000) if isinstance(value, datetime) else value
            for name, value in facts.items()
        }
        super().put(command, to, rounded)


class Floats(SomebodysRegistry):
    """Stores sizes as JavaScript does."""

    def put(self, command: dict[str, Any], to: str, facts: dict[str, Any]) -> None:
        if "response_size_bytes" in facts:
            facts = facts | {"response_size_bytes": int(float(facts["response_size_bytes"]))}
        super().put(command, to, facts)


class JsonbErrors(SomebodysRegistry):
    """Cannot store NUL in an error, and leaves it out."""

    def put(self, command: dict[str, Any], to: str, facts: dict[str, Any]) -> None:
        if "error" in facts:
            facts = facts | {"error": json.loads(json.dumps(facts["error"]).replace("\\u0000", ""))}
        super().put(command, to, facts)


class WritesToTheWrongCommand(SomebodysRegistry):
    """Finds a command by the beginning of its id."""

    def find(self, command_id: str) -> dict[str, Any]:
        super().find(command_id)
        return self.commands[min(each for each in self.commands if each.startswith(command_id[:-1]))]


class NaiveAccepted(SomebodysRegistry):
    def create_command(self, *args: Any, **given: Any) -> dict[str, Any]:
        deadline = given.get("deadline")
        if isinstance(deadline, datetime) and deadline.tzinfo is None:
            given["deadline"] = None
        return super().create_command(*args, **given)


class NegativeSizesAccepted(SomebodysRegistry):
    def create_command(self, *args: Any, **given: Any) -> dict[str, Any]:
        if given.get("request_size_bytes") == -1:
            given["request_size_bytes"] = None
        return super().create_command(*args, **given)


class WrongFieldNamed(SomebodysRegistry):
    def create_command(self, *args: Any, **given: Any) -> dict[str, Any]:
        try:
            return super().create_command(*args, **given)
        except InvalidCommand as error:
            raise InvalidCommand("command", error.problem) from None


class UnknownIsFalse(SomebodysRegistry):
    def update_command_state(self, command_id: str, state: Any, **given: Any) -> bool:  # type: ignore[override]
        return command_id in self.commands and super().update_command_state(command_id, state, **given)


class UnknownRaises(SomebodysRegistry):
    def get_command_metadata(self, command_id: str) -> dict[str, Any] | None:
        self.find(command_id)
        return super().get_command_metadata(command_id)


class KeysForgotten(SomebodysLaterRegistry):
    def create_command(self, *args: Any, idempotency_key: str | None = None, **given: Any) -> dict[str, Any]:
        return super().create_command(*args, **given)


class KeysWithoutArguments(SomebodysLaterRegistry):
    """Answers with the first command, whatever is asked for."""

    def create_command(self, *args: Any, idempotency_key: str | None = None, **given: Any) -> dict[str, Any]:
        if idempotency_key in self.keys:
            return {"command_id": self.keys[idempotency_key][1]}
        return super().create_command(*args, idempotency_key=idempotency_key, **given)


class ExpiresTooLate(SomebodysLaterRegistry):
    def is_overdue(self, command: dict[str, Any], now: datetime) -> bool:
        return super().is_overdue(command, now) and command["deadline"] < now


class ExpiresTheTerminal(SomebodysLaterRegistry):
    def is_overdue(self, command: dict[str, Any], now: datetime) -> bool:
        return command["state"] != "EXPIRED" and bool(command["deadline"] <= now)


class ExpiresWithoutALimit(SomebodysLaterRegistry):
    def expire_overdue(self, now: datetime, limit: int = 1000) -> list[str]:
        return super().expire_overdue(now)


# With events.


class GapInVersions(MemoryCommandRegistry):
    def _events(self, command_id: str, timeout: float) -> Sequence[RecordedEvent]:
        events = super()._events(command_id, timeout)
        return [event for event in events if event.version != 2] if len(events) > 2 else events


class WrongOrder(MemoryCommandRegistry):
    """Reads events in the order of their clocks, to the minute."""

    def history(self, command_id: str, *, timeout: float | None = None) -> Any:
        entries = super().history(command_id, timeout=timeout)
        return sorted(entries, key=lambda each: (each.occurred_at.replace(second=0, microsecond=0), each.type))


class FactMissingInTheEvent(MemoryCommandRegistry):
    """The read model has the error, and the log does not."""

    def history(self, command_id: str, *, timeout: float | None = None) -> Any:
        def without(event: Any) -> Any:
            return (
                event.model_copy(update={"error": None}) if event.__class__.__name__ == "CommandTransitioned" else event
            )

        entries = super().history(command_id, timeout=timeout)
        return [entry.model_copy(update={"event": without(entry.event)}) for entry in entries]


class ReadModelBehind(MemoryCommandRegistry):
    """Increments reach the log, and not the read model."""

    def get_command_status(self, command_id: str, *, timeout: float | None = None) -> CommandStatus | None:
        status = super().get_command_status(command_id, timeout=timeout)
        return status and status.model_copy(update={"attempt": 1})


class EventForNothing(MemoryCommandRegistry):
    """Writes an event although nothing is new."""

    def update_command_state(self, command_id: str, state: Any, *args: Any, **given: Any) -> bool:
        done = super().update_command_state(command_id, state, *args, **given)
        status = self.get_command_status(command_id)
        if status is not None and not is_terminal(status.state):
            event = decider.update_state(StateUpdate(state=state))(status).events or (_transition(status),)
            self._memory._append(command_id, status, event, "{}", self._clock())
        return done


def _transition(status: CommandStatus) -> Any:
    other = StateUpdate(state=status.state, response_size_bytes=(status.response_size_bytes or 0) + 1)
    [event] = decider.update_state(other)(status).events
    return event.model_copy(update={"response_size_bytes": status.response_size_bytes})


class NoEvent(MemoryCommandRegistry):
    """A released lease is not worth an event."""

    def update_command_state(self, command_id: str, state: Any, *args: Any, **given: Any) -> bool:
        status = self.get_command_status(command_id)
        if status is not None and (status.state, state) == ("DISPATCHED", "PENDING"):
            return True
        return super().update_command_state(command_id, state, *args, **given)


class PastOffByOne(MemoryCommandRegistry):
    def status_at(self, command_id: str, *, version: int | None = None, **given: Any) -> CommandStatus | None:
        later = None if version is None else min(version + 1, len(self.history(command_id)) or 1)
        return super().status_at(command_id, version=later, **given)


class PastByTheClockOnly(MemoryCommandRegistry):
    """Leaves out what occurred at the very instant."""

    def status_at(self, command_id: str, *, at: datetime | None = None, **given: Any) -> CommandStatus | None:
        before = None if at is None else at - timedelta(microseconds=1)
        return super().status_at(command_id, at=before, **given)


class NewestStatusForAnyPast(MemoryCommandRegistry):
    def status_at(self, command_id: str, **given: Any) -> CommandStatus | None:
        return self.get_command_status(command_id) if super().status_at(command_id, **given) else None


class CompletionsKeepTheOldError(MemoryCommandRegistry):
    """Keeps the first error there was."""

    def _write(self, command_id: str, decide: Any, *more: Any) -> Any:
        def decided(status: CommandStatus) -> Decision[Any]:
            decision = decide(status)
            if status.error is None:
                return decision  # type: ignore[no-any-return]
            events = [
                event.model_copy(update={"error": None}) if hasattr(event, "error") else event
                for event in decision.events
            ]
            return Decision(decision.answer, tuple(events))

        return super()._write(command_id, decided, *more)


class EverythingSucceeds(MemoryCommandRegistry):
    def complete_command(self, command_id: str, state: Any, *args: Any, **given: Any) -> bool:
        state = CommandState.FAILED if state == CommandState.EXPIRED else state
        return super().complete_command(command_id, state, *args, **given)


BUGS: list[type[Any]] = [
    bug
    for bug in list(globals().values())
    if isinstance(bug, type)
    and issubclass(bug, SomebodysRegistry | MemoryCommandRegistry)
    and bug.__module__ == __name__
]
