"""A registry in a child process, called over JSON-RPC: a client with the answers and errors of the Python calls."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from psycopg import Connection
from pydantic import JsonValue, TypeAdapter

from eventstore.errors import Conflict, OutcomeUnknown, Unavailable
from eventstore.memory import no_transaction
from registry.arguments import context_of
from registry.errors import (
    CommandNotFound,
    DeploymentNotFound,
    IdempotencyConflict,
    InvalidCommand,
    InvalidCommandState,
    InvalidTransition,
    NoTargets,
    TargetAmbiguous,
    TargetIdInvalid,
    TargetNotFound,
)
from registry.history import HistoryEntry
from registry.lifecycle import TERMINAL_STATES, CommandState
from registry.models import (
    CommandAccessContext,
    CommandEnvelopeData,
    CommandMetadata,
    CommandStatus,
    EventContext,
    ResolvedTarget,
)
from registry.protocol import DEFAULT_EXPIRE_LIMIT

EXIT_SECONDS = 60


def child_argv(*, deployment_model: str, memory: bool, dsn: str | None, deployments_table: bool) -> list[str]:
    """The command line of a child that serves a registry."""
    call = (
        f"run_rpc({dsn!r}, memory={memory!r}, deployment_model=DeploymentModel({str(deployment_model)!r}), "
        f"deployments_table={deployments_table!r})"
    )
    return [sys.executable, "-c", f"from registry import DeploymentModel; from registry.rpc import run_rpc; {call}"]


class RpcCallError(Exception):
    """An error of JSON-RPC itself, or one that no exception of the registry stands for."""

    def __init__(self, error: dict[str, Any]) -> None:
        self.error = error
        super().__init__(json.dumps(error))


class RpcConnection:
    """A child process, and the calls that await its answers. Threads may share it."""

    def __init__(self, argv: Sequence[str]) -> None:
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._lock = threading.Lock()
        self._pending: dict[int, Future[Any]] = {}
        self._last_id = 0
        self._closed = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def request(self, method: str, params: dict[str, Any]) -> Any:
        future: Future[Any] = Future()
        with self._lock:
            if self._closed:
                raise Unavailable("the child process has ended")
            self._last_id += 1
            self._pending[self._last_id] = future
            message = {"jsonrpc": "2.0", "id": self._last_id, "method": method, "params": params}
            assert self.process.stdin is not None
            self.process.stdin.write(json.dumps(message, allow_nan=False).encode() + b"\n")
            self.process.stdin.flush()
        return future.result()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            answer = json.loads(line)
            with self._lock:
                # An error without an id is that of the only call there can have been.
                request_id = next(iter(self._pending)) if answer["id"] is None else answer["id"]
                future = self._pending.pop(request_id)
            if "error" in answer:
                future.set_exception(RpcCallError(answer["error"]))
            else:
                future.set_result(answer["result"])
        with self._lock:
            self._closed = True
            for future in self._pending.values():
                future.set_exception(Unavailable("the child process has ended"))

    def close(self) -> int:
        """End the child's input, and return its exit code."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        try:
            code = self.process.wait(EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        self._reader.join()
        self.process.stdout.close()
        return code


Facts = dict[str, Any]
_ERRORS: dict[str, Callable[[str, Facts], Exception]] = {
    "INVALID_COMMAND": lambda _, facts: InvalidCommand(facts["field"], facts["problem"]),
    "INVALID_STATE_TRANSITION": lambda _, facts: InvalidTransition(
        facts["command_id"], facts["from_state"], facts["to_state"]
    ),
    "COMMAND_NOT_FOUND": lambda _, facts: CommandNotFound(facts["command_id"]),
    "DEPLOYMENT_NOT_FOUND": lambda _, facts: DeploymentNotFound(facts["deployment_id"]),
    "COMMAND_TARGET_NOT_FOUND": lambda message, facts: TargetNotFound(facts["deployment_id"], message),
    "COMMAND_TARGET_ID_INVALID": lambda message, facts: TargetIdInvalid(facts["deployment_id"], message),
    "COMMAND_TARGET_AMBIGUOUS": lambda message, facts: TargetAmbiguous(facts["deployment_id"], message),
    "NO_COMMAND_TARGETS": lambda message, facts: NoTargets(facts["deployment_id"], message),
    "IDEMPOTENCY_CONFLICT": lambda _, facts: IdempotencyConflict(facts["idempotency_key"], facts["command_id"]),
    "CONFLICT": lambda _, facts: Conflict(facts["stream_id"], facts["expected"], facts["actual"]),
    "UNAVAILABLE": lambda message, _: Unavailable(message),
    "OUTCOME_UNKNOWN": lambda _, facts: OutcomeUnknown(
        facts["stream_id"], facts["version"], bytes.fromhex(facts["hash"])
    ),
}


def rebuilt(error: dict[str, Any]) -> Exception:
    """The registry's exception of an answer's error."""
    facts = error.get("data") or {}
    rebuild = _ERRORS.get(facts.get("code", ""))
    return RpcCallError(error) if rebuild is None else rebuild(error["message"], facts)


_METADATA = TypeAdapter(CommandMetadata)
_ENVELOPE = TypeAdapter[CommandEnvelopeData | None](CommandEnvelopeData | None)
_STATUS = TypeAdapter[CommandStatus | None](CommandStatus | None)
_ACCESS = TypeAdapter[CommandAccessContext | None](CommandAccessContext | None)
_TARGET = TypeAdapter(ResolvedTarget)
_HISTORY = TypeAdapter(list[HistoryEntry])
_BOOL = TypeAdapter(bool)
_INT = TypeAdapter(int)
_IDS = TypeAdapter(list[str])


class RpcCommandRegistry:
    """A `CommandRegistry` in a child process. Threads may share it.

    What JSON cannot carry (a NaN, a tuple, a key that is no text) the client refuses as the registry would.
    """

    def __init__(
        self,
        argv: Sequence[str] | None = None,
        *,
        deployment_model: str = "pull",
        memory: bool = True,
        dsn: str | None = None,
        deployments_table: bool = False,
    ) -> None:
        self.connection = RpcConnection(
            argv
            or child_argv(
                deployment_model=deployment_model, memory=memory, dsn=dsn, deployments_table=deployments_table
            )
        )

    def close(self) -> None:
        code = self.connection.close()
        assert code == 0, f"the child process ended with {code}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _call(self, method: str, **arguments: object) -> Any:
        try:
            return self.connection.request(method, {name: _as_json(name, value) for name, value in arguments.items()})
        except RpcCallError as error:
            raise _precise(rebuilt(error.error), arguments) from None

    def _write(
        self, method: str, context: EventContext | None, connection: Connection[Any] | None, **arguments: object
    ) -> Any:
        no_transaction(connection)
        return self._call(method, **arguments, context=context_of(context).model_dump(mode="json"))

    def create_command(
        self,
        deployment_id: str,
        command_name: str,
        initial_state: CommandState = CommandState.PENDING,
        deadline: datetime | None = None,
        request_size_bytes: int | None = None,
        *,
        idempotency_key: str | None = None,
        target: str | None = None,
        context: EventContext | None = None,
        connection: Connection[Any] | None = None,
        timeout: float | None = None,
    ) -> CommandMetadata:
        answer = self._write(
            "create_command",
            context,
            connection,
            deployment_id=deployment_id,
            command_name=command_name,
            initial_state=initial_state,
            deadline=deadline,
            request_size_bytes=request_size_bytes,
            idempotency_key=idempotency_key,
            target=target,
        )
        return _METADATA.validate_python(answer)

    def get_command_metadata(self, command_id: str, *, timeout: float | None = None) -> CommandEnvelopeData | None:
        return _ENVELOPE.validate_python(self._call("get_command_metadata", command_id=command_id))

    def get_command_status(self, command_id: str, *, timeout: float | None = None) -> CommandStatus | None:
        return _STATUS.validate_python(self._call("get_command_status", command_id=command_id))

    def get_command_access_context(
        self, command_id: str, *, timeout: float | None = None
    ) -> CommandAccessContext | None:
        return _ACCESS.validate_python(self._call("get_command_access_context", command_id=command_id))

    def update_command_state(
        self,
        command_id: str,
        state: CommandState,
        dispatched_at: datetime | None = None,
        completed_at: datetime | None = None,
        response_size_bytes: int | None = None,
        error: JsonValue = None,
        *,
        context: EventContext | None = None,
        connection: Connection[Any] | None = None,
        timeout: float | None = None,
    ) -> bool:
        answer = self._write(
            "update_command_state",
            context,
            connection,
            command_id=command_id,
            state=state,
            dispatched_at=dispatched_at,
            completed_at=completed_at,
            response_size_bytes=response_size_bytes,
            error=error,
        )
        return _BOOL.validate_python(answer, strict=True)

    def complete_command(
        self,
        command_id: str,
        state: CommandState,
        completed_at: datetime,
        response_size_bytes: int | None = None,
        error: JsonValue = None,
        *,
        context: EventContext | None = None,
        connection: Connection[Any] | None = None,
        timeout: float | None = None,
    ) -> bool:
        answer = self._write(
            "complete_command",
            context,
            connection,
            command_id=command_id,
            state=state,
            completed_at=completed_at,
            response_size_bytes=response_size_bytes,
            error=error,
        )
        return _BOOL.validate_python(answer, strict=True)

    def mark_dispatched_if_not_terminal(
        self,
        command_id: str,
        dispatched_at: datetime,
        *,
        context: EventContext | None = None,
        connection: Connection[Any] | None = None,
        timeout: float | None = None,
    ) -> bool:
        answer = self._write(
            "mark_dispatched_if_not_terminal", context, connection, command_id=command_id, dispatched_at=dispatched_at
        )
        return _BOOL.validate_python(answer, strict=True)

    def increment_attempt(
        self,
        command_id: str,
        *,
        context: EventContext | None = None,
        connection: Connection[Any] | None = None,
        timeout: float | None = None,
    ) -> int:
        answer = self._write("increment_attempt", context, connection, command_id=command_id)
        return _INT.validate_python(answer, strict=True)

    def resolve_target(
        self, deployment_id: str, requested: str | None = None, *, timeout: float | None = None
    ) -> ResolvedTarget:
        answer = self._call("resolve_target", deployment_id=deployment_id, requested=requested)
        return _TARGET.validate_python(answer)

    def expire_overdue(
        self,
        now: datetime | None = None,
        limit: int = DEFAULT_EXPIRE_LIMIT,
        *,
        context: EventContext | None = None,
        connection: Connection[Any] | None = None,
        timeout: float | None = None,
    ) -> list[str]:
        return _IDS.validate_python(self._write("expire_overdue", context, connection, now=now, limit=limit))

    def history(self, command_id: str, *, timeout: float | None = None) -> list[HistoryEntry]:
        return _HISTORY.validate_python(self._call("history", command_id=command_id))

    def status_at(
        self,
        command_id: str,
        *,
        at: datetime | None = None,
        version: int | None = None,
        timeout: float | None = None,
    ) -> CommandStatus | None:
        return _STATUS.validate_python(self._call("status_at", command_id=command_id, at=at, version=version))


def _as_json(name: str, value: object) -> object:
    if isinstance(value, datetime):
        return _instant(value).isoformat()
    try:
        same = _typed(json.loads(json.dumps(value, allow_nan=False))) == _typed(value)
    except (TypeError, ValueError, RecursionError):
        same = False
    if not same:
        raise InvalidCommand(name, f"JSON cannot carry {type(value).__name__} {value!r}")
    return value


def _instant(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC) if value.utcoffset() is not None else value
    except OverflowError:
        return value  # the server's to refuse


def _typed(value: object) -> object:
    """A value that is equal only to one of the same types all the way down; a StrEnum is a text."""
    if isinstance(value, dict):
        return {_typed(key): _typed(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_typed(inner) for inner in value]
    return (str if isinstance(value, str) else type(value), value)


def _precise(error: Exception, arguments: dict[str, object]) -> Exception:
    """One code stands for two exceptions: that of a state which is none, and that of one which is not terminal."""
    state, completes = arguments.get("state"), "dispatched_at" not in arguments
    is_of_state = isinstance(error, InvalidCommand) and error.field == "state"
    if is_of_state and completes and isinstance(state, str) and state in set(CommandState) - TERMINAL_STATES:
        return InvalidCommandState("state", str(error).removeprefix("state: "))
    return error
