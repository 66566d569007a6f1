"""A registry in a child process, called over JSON-RPC: a client with the answers and errors of the Python calls.

    with RpcCommandRegistry(["command-registry", "rpc", "--memory"]) as registry:
        registry.create_command("dep_eu1", "sync-data")

The child may be any program that speaks as docs/rpc.md says: so an implementation in another language is tested, too
(`registry.testing`).
"""

import contextlib
import itertools
import json
import subprocess
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime
from types import TracebackType
from typing import IO, Any, Final, Self, cast

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

__all__ = ["RpcCallError", "RpcCommandRegistry", "RpcConnection"]

EXIT_SECONDS: Final = 60
_ENDED: Final = "the child process has ended"


class RpcCallError(Exception):
    """An error of JSON-RPC itself, or one that no exception of the registry stands for; `error`: as it came."""

    def __init__(self, error: dict[str, Any]) -> None:
        """Carry the error."""
        self.error = error
        super().__init__(json.dumps(error))


class _NoAnswer(Exception):
    """A line that answers no call."""


class RpcConnection:
    """A child process, and the calls that await its answers. Threads may share it."""

    def __init__(self, argv: Sequence[str]) -> None:
        """Start the child."""
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # noqa: S603 - the caller's
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._pending: dict[int, Future[Any]] = {}
        self._numbers = itertools.count(1)
        self._ended = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def request(self, method: str, params: dict[str, Any]) -> Any:  # noqa: ANN401
        """Make a call, and wait for its result.

        Raises:
            RpcCallError: the answer is an error.
            Unavailable: the child has ended.
        """
        future: Future[Any] = Future()
        number = next(self._numbers)
        message = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
        line = json.dumps(message, allow_nan=False).encode() + b"\n"
        with self._lock:
            if self._ended:
                raise Unavailable(self._ended)
            self._pending[number] = future
        with self._writing, contextlib.suppress(BrokenPipeError):  # then the reader tells
            self._input.write(line)
            self._input.flush()
        return future.result()

    @property
    def _input(self) -> IO[bytes]:
        return cast("IO[bytes]", self.process.stdin)

    @property
    def _output(self) -> IO[bytes]:
        return cast("IO[bytes]", self.process.stdout)

    def _read(self) -> None:
        ended = _ENDED
        try:
            for line in self._output:
                self._take(line)
        except _NoAnswer as error:
            ended = str(error)
        with self._lock:
            self._ended = ended
            for future in self._pending.values():
                future.set_exception(Unavailable(ended))
        for _ in self._output:  # whatever else it says, so that it can end
            pass

    def _take(self, line: bytes) -> None:
        try:
            answer = json.loads(line)
            with self._lock:
                # An error without an id is that of the only call there can have been.
                number = next(iter(self._pending)) if answer["id"] is None else answer["id"]
                future = self._pending.pop(number)
            if "error" in answer:
                future.set_exception(RpcCallError(answer["error"]))
            else:
                future.set_result(answer["result"])
        except (ValueError, KeyError, TypeError, StopIteration) as error:
            raise _NoAnswer(
                f"the child process wrote what is no answer to a call: {line[:200]!r} ({error!r})"
            ) from error

    def close(self) -> int:
        """End the child's input, and return its exit code; a child that does not end within a minute is killed."""
        with contextlib.suppress(BrokenPipeError):
            self._input.close()
        try:
            code = self.process.wait(EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self._reader.join()
        self._output.close()
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


def _rebuilt(error: dict[str, Any]) -> Exception:
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

    def __init__(self, argv: Sequence[str]) -> None:
        """Start the child: `argv` is its command line."""
        self.connection = RpcConnection(argv)

    def close(self) -> None:
        """End the child.

        Raises:
            RuntimeError: it did not end with 0.
        """
        code = self.connection.close()
        if code != 0:
            raise RuntimeError(f"the child process ended with {code}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is None:
            self.close()
        else:  # which says more than how the child ended
            self.connection.close()

    def _call(self, method: str, timeout: float | None, **arguments: object) -> Any:  # noqa: ANN401
        given = arguments if timeout is None else arguments | {"timeout": timeout}
        try:
            return self.connection.request(method, {name: _as_json(name, value) for name, value in given.items()})
        except RpcCallError as error:
            raise _precise(_rebuilt(error.error), arguments) from None

    def _write(
        self,
        method: str,
        context: EventContext | None,
        connection: Connection[Any] | None,
        timeout: float | None,
        **arguments: object,
    ) -> Any:  # noqa: ANN401
        no_transaction(connection)
        return self._call(method, timeout, **arguments, context=context_of(context).model_dump(mode="json"))

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
        """As `CommandRegistry.create_command`."""
        answer = self._write(
            "create_command",
            context,
            connection,
            timeout,
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
        """As `CommandRegistry.get_command_metadata`."""
        return _ENVELOPE.validate_python(self._call("get_command_metadata", timeout, command_id=command_id))

    def get_command_status(self, command_id: str, *, timeout: float | None = None) -> CommandStatus | None:
        """As `CommandRegistry.get_command_status`."""
        return _STATUS.validate_python(self._call("get_command_status", timeout, command_id=command_id))

    def get_command_access_context(
        self, command_id: str, *, timeout: float | None = None
    ) -> CommandAccessContext | None:
        """As `CommandRegistry.get_command_access_context`."""
        return _ACCESS.validate_python(self._call("get_command_access_context", timeout, command_id=command_id))

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
        """As `CommandRegistry.update_command_state`."""
        answer = self._write(
            "update_command_state",
            context,
            connection,
            timeout,
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
        """As `CommandRegistry.complete_command`."""
        answer = self._write(
            "complete_command",
            context,
            connection,
            timeout,
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
        """As `CommandRegistry.mark_dispatched_if_not_terminal`."""
        answer = self._write(
            "mark_dispatched_if_not_terminal",
            context,
            connection,
            timeout,
            command_id=command_id,
            dispatched_at=dispatched_at,
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
        """As `CommandRegistry.increment_attempt`."""
        answer = self._write("increment_attempt", context, connection, timeout, command_id=command_id)
        return _INT.validate_python(answer, strict=True)

    def resolve_target(
        self, deployment_id: str, requested: str | None = None, *, timeout: float | None = None
    ) -> ResolvedTarget:
        """As `CommandRegistry.resolve_target`."""
        answer = self._call("resolve_target", timeout, deployment_id=deployment_id, requested=requested)
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
        """As `CommandRegistry.expire_overdue`."""
        return _IDS.validate_python(self._write("expire_overdue", context, connection, timeout, now=now, limit=limit))

    def history(self, command_id: str, *, timeout: float | None = None) -> list[HistoryEntry]:
        """As `CommandRegistry.history`."""
        return _HISTORY.validate_python(self._call("history", timeout, command_id=command_id))

    def status_at(
        self,
        command_id: str,
        *,
        at: datetime | None = None,
        version: int | None = None,
        timeout: float | None = None,
    ) -> CommandStatus | None:
        """As `CommandRegistry.status_at`."""
        return _STATUS.validate_python(self._call("status_at", timeout, command_id=command_id, at=at, version=version))


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
