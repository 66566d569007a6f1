"""Somebody's own registry: a dict behind a lock, with answers and errors of its own making, and no events."""

import copy
import itertools
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Self

from eventstore.codec import json_text
from registry import CommandNotFound, CommandState, IdempotencyConflict, InvalidCommand, InvalidTransition
from registry.models import MAX_SIZE

NEXT = {
    "PENDING_UPLOAD": {"PENDING_UPLOAD", "PENDING", "FAILED", "EXPIRED"},
    "PENDING": {"PENDING", "DISPATCHED", "FAILED", "EXPIRED"},
    "DISPATCHED": {"PENDING", "DISPATCHED", "SUCCEEDED", "FAILED", "EXPIRED"},
}


def name(field: str, value: object) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= 255:
        raise InvalidCommand(field, "must be text of 1..255 characters")
    if any(ord(each) < 32 or ord(each) == 127 or 0xD800 <= ord(each) < 0xE000 for each in value):
        raise InvalidCommand(field, "must not hold control characters")
    return value


def instant(field: str, value: object) -> datetime:
    try:
        if isinstance(value, datetime) and value.tzinfo is not None:
            return value.astimezone(UTC)
    except OverflowError:
        pass
    raise InvalidCommand(field, "must be an instant with a time zone, in the years 1..9999")


def size(field: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_SIZE:
        raise InvalidCommand(field, "must be a whole number of bytes, in 64 bits")
    return value


def state(field: str, value: Any) -> str:
    try:
        return CommandState(value).value
    except ValueError:
        raise InvalidCommand(field, "must be a state") from None


def error(field: str, value: Any) -> Any:
    json_text(field, value)
    return copy.deepcopy(value)


CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "dispatched_at": instant,
    "completed_at": instant,
    "response_size_bytes": size,
    "error": error,
}


class SomebodysRegistry:
    """Has the calls that older registries have."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.commands: dict[str, dict[str, Any]] = {}
        self.numbers = itertools.count(1)

    def create_command(
        self,
        deployment_id: str,
        command_name: str,
        initial_state: str = "PENDING",
        deadline: datetime | None = None,
        request_size_bytes: int | None = None,
    ) -> dict[str, Any]:
        command = {
            "deployment_id": name("deployment_id", deployment_id),
            "command": name("command_name", command_name),
            "state": state("initial_state", initial_state),
            "attempt": 1,
            "deadline": None if deadline is None else instant("deadline", deadline),
            "dispatched_at": None,
            "completed_at": None,
            "error": None,
            "request_size_bytes": None
            if request_size_bytes is None
            else size("request_size_bytes", request_size_bytes),
            "response_size_bytes": None,
        }
        with self.lock:
            command_id = f"somebodys-{next(self.numbers)}"
            self.commands[command_id] = command
            return {"command_id": command_id}

    def get_command_status(self, command_id: str) -> dict[str, Any] | None:
        with self.lock:
            return copy.deepcopy(self.commands.get(command_id))

    def get_command_metadata(self, command_id: str) -> dict[str, Any] | None:
        return self.get_command_status(command_id)

    def update_command_state(
        self,
        command_id: str,
        state: Any,
        dispatched_at: Any = None,
        completed_at: Any = None,
        response_size_bytes: Any = None,
        error: Any = None,
    ) -> bool:
        given = {
            "dispatched_at": dispatched_at,
            "completed_at": completed_at,
            "response_size_bytes": response_size_bytes,
            "error": error,
        }
        return self.move(command_id, state, given, NEXT)

    def move(self, command_id: str, to: Any, given: dict[str, Any], allowed: dict[str, set[str]]) -> bool:
        to = state("state", to)
        facts = {field: CHECKS[field](field, value) for field, value in given.items() if value is not None}
        with self.lock:
            command = self.find(command_id)
            if command["state"] not in allowed:
                return False
            if to not in allowed[command["state"]]:
                raise InvalidTransition(command_id, command["state"], to)
            self.put(command, to, facts)
            return True

    def find(self, command_id: str) -> dict[str, Any]:
        if command_id not in self.commands:
            raise CommandNotFound(command_id)
        return self.commands[command_id]

    def put(self, command: dict[str, Any], to: str, facts: dict[str, Any]) -> None:
        command.update(facts, state=to)

    def increment_attempt(self, command_id: str) -> int:
        with self.lock:
            command = self.find(command_id)
            if command["state"] in NEXT:
                command["attempt"] += 1
            return int(command["attempt"])


ANY = {before: {"SUCCEEDED", "FAILED", "EXPIRED", "DISPATCHED"} for before in NEXT}


class SomebodysLaterRegistry(SomebodysRegistry):
    """Has those that came later, too."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: dict[str, tuple[tuple[Any, ...], str]] = {}

    def create_command(self, *args: Any, idempotency_key: str | None = None, **given: Any) -> dict[str, Any]:
        with self.lock:
            said = (args, sorted(given.items()))
            if idempotency_key is not None and idempotency_key in self.keys:
                before, command_id = self.keys[idempotency_key]
                if before != said:
                    raise IdempotencyConflict(idempotency_key, command_id)
                return {"command_id": command_id}
            created = super().create_command(*args, **given)
            if idempotency_key is not None:
                self.keys[idempotency_key] = said, created["command_id"]
            return created

    def complete_command(
        self, command_id: str, state: Any, completed_at: Any, response_size_bytes: Any = None, error: Any = None
    ) -> bool:
        if state in NEXT:
            raise InvalidCommand("state", "must be terminal")
        given = {"completed_at": completed_at, "response_size_bytes": response_size_bytes, "error": error}
        instant("completed_at", completed_at)
        return self.move(command_id, state, given, ANY)

    def mark_dispatched_if_not_terminal(self, command_id: str, dispatched_at: Any) -> bool:
        return self.move(command_id, "DISPATCHED", {"dispatched_at": instant("dispatched_at", dispatched_at)}, ANY)

    def expire_overdue(self, now: datetime, limit: int = 1000) -> list[str]:
        with self.lock:
            overdue = sorted(
                (command["deadline"], command_id)
                for command_id, command in self.commands.items()
                if command["deadline"] is not None and self.is_overdue(command, now)
            )
            for deadline, command_id in overdue[:limit]:
                text = deadline.isoformat().replace("+00:00", "Z")
                facts = {
                    "completed_at": now,
                    "error": {"code": "COMMAND_EXPIRED", "message": f"Deadline {text} elapsed"},
                }
                self.put(self.commands[command_id], "EXPIRED", facts)
            return [command_id for _, command_id in overdue[:limit]]

    def is_overdue(self, command: dict[str, Any], now: datetime) -> bool:
        return command["state"] in NEXT and bool(command["deadline"] <= now)


class SomebodysAsyncRegistry:
    """The same for asyncio, to be opened first."""

    def __init__(self) -> None:
        self.inner: SomebodysLaterRegistry | None = None

    async def __aenter__(self) -> Self:
        self.inner = SomebodysLaterRegistry()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.inner = None

    async def create_command(self, *args: Any, **given: Any) -> dict[str, Any]:
        assert self.inner is not None
        return self.inner.create_command(*args, **given)

    async def get_command_status(self, command_id: str) -> dict[str, Any] | None:
        assert self.inner is not None
        return self.inner.get_command_status(command_id)

    async def update_command_state(self, command_id: str, state: Any, **given: Any) -> bool:
        assert self.inner is not None
        return self.inner.update_command_state(command_id, state, **given)

    async def increment_attempt(self, command_id: str) -> int:
        assert self.inner is not None
        return self.inner.increment_attempt(command_id)
