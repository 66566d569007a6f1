"""The registry as a child process: JSON-RPC 2.0 over its real pipes."""

import asyncio
import inspect
import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from itertools import pairwise
from pathlib import Path
from textwrap import dedent
from types import TracebackType
from typing import Any, Self

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registry import (
    AsyncCommandRegistry,
    AsyncMemoryCommandRegistry,
    CommandRegistry,
    CommandState,
    Deployment,
    DeploymentModel,
    DeploymentNotFound,
    EventContext,
    PostgresCommandRegistry,
    ResourceType,
    Target,
    TargetAmbiguous,
)
from registry.rpc import MAX_IN_FLIGHT, run_rpc
from registry.rpc.client import RpcCommandRegistry
from registry.rpc.methods import METHODS
from registry.rpc.server import Server
from registry.rpc.stdio import MAX_LINE_BYTES, LineReader, LineSplitter, LineTooLong, LineWriter
from tests.rpc_client import child_argv

pytestmark = pytest.mark.timeout(60)

NOW = "2026-11-24T10:00:00.123456Z"
LONGEST_END_SECONDS = 30
UNKNOWN = "cmd_0000000000000000000000000000"


class Child:
    """A process that serves JSON-RPC, and the lines to and from it."""

    def __init__(self, argv: Sequence[str], stdin: int = subprocess.PIPE, stderr: Any = None) -> None:
        self.process = subprocess.Popen(argv, stdin=stdin, stdout=subprocess.PIPE, stderr=stderr)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None and not pipe.closed:
                pipe.close()

    def send(self, *lines: str | bytes) -> None:
        assert self.process.stdin is not None
        for line in lines:
            self.process.stdin.write((line.encode() if isinstance(line, str) else line) + b"\n")
        self.process.stdin.flush()

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode()

    def answer(self) -> Any:
        return json.loads(self.line())

    def ask(self, method: str, params: Any = None, request_id: Any = 1) -> Any:
        self.send(request(method, params, request_id))
        return self.answer()

    def result(self, method: str, *params: Any, **named: Any) -> Any:
        answer = self.ask(method, named or list(params))
        assert "error" not in answer, answer
        return answer["result"]

    def create(self) -> str:
        command_id = self.result("create_command", "dep_1", "sync-data")["command_id"]
        assert isinstance(command_id, str)
        return command_id

    def finish(self) -> tuple[list[Any], int]:
        """End the input; give the answers that were still to come, and the exit code."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.rest()

    def rest(self) -> tuple[list[Any], int]:
        assert self.process.stdout is not None
        watchdog = threading.Timer(LONGEST_END_SECONDS, self.process.kill)
        watchdog.start()
        answers = [json.loads(line) for line in self.process.stdout]
        code = self.process.wait()
        watchdog.cancel()
        return answers, code


def request(method: str, params: Any = None, request_id: Any = 1, **members: Any) -> str:
    message = {"jsonrpc": "2.0", "id": request_id, "method": method, "params": [] if params is None else params}
    return json.dumps(message | members)


def notification(method: str, *params: Any) -> str:
    return json.dumps({"jsonrpc": "2.0", "method": method, "params": params})


IN_MEMORY = child_argv(deployment_model="pull", memory=True, dsn=None, deployments_table=False)


def script(text: str) -> list[str]:
    """A child that serves a registry of its own kind: `text` is the body of its class."""
    return [
        sys.executable,
        "-c",
        dedent("""
            import asyncio, os, subprocess, sys
            from pathlib import Path
            from eventstore.errors import *
            from registry import *
            import registry.rpc.server

            class Registry(AsyncMemoryCommandRegistry):
        """)
        + dedent(text).replace("\n", "\n    ")
        + "\n\nasyncio.run(registry.rpc.serve(Registry()))\n",
    ]


GATED = script("""
    gate = asyncio.Event()

    async def increment_attempt(self, command_id, **context):
        if command_id == "open":
            self.gate.set()
        elif command_id.startswith("/"):
            await asyncio.to_thread(Path(command_id).read_bytes)
        else:
            await self.gate.wait()
        return 7
""")


@pytest.fixture(scope="module")
def shared() -> Iterator[Child]:
    """One child that must outlive everything that is sent to it."""
    with Child(IN_MEMORY) as child:
        yield child
        assert child.finish() == ([], 0)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Child]]:
    with ExitStack() as stack:
        log = stack.enter_context((tmp_path / "stderr").open("wb"))
        yield lambda argv=IN_MEMORY, **given: stack.enter_context(Child(argv, stderr=log, **given))


@pytest.fixture
def stderr(tmp_path: Path) -> Callable[[], str]:
    return lambda: (tmp_path / "stderr").read_text("utf-8")


# --- Methods and parameters


def test_every_call_of_the_protocol_is_a_method_with_its_parameters_but_the_connection() -> None:
    calls = {name for name in vars(AsyncCommandRegistry) if not name.startswith("_")}
    assert set(METHODS) == calls
    assert len(calls) >= 12
    for name, method in METHODS.items():
        parameters = inspect.signature(getattr(CommandRegistry, name)).parameters
        assert {*method.readers, "self"} == {*parameters} - {"connection"}
    assert METHODS["create_command"].positional == (
        "deployment_id",
        "command_name",
        "initial_state",
        "deadline",
        "request_size_bytes",
    )


def test_a_command_lives_its_life_over_the_pipe(shared: Child) -> None:
    command_id = shared.create()
    assert shared.result("get_command_metadata", command_id)["command"] == "sync-data"
    assert shared.result("get_command_access_context", command_id)["project_id"] == "default"
    assert shared.result("mark_dispatched_if_not_terminal", command_id, NOW) is True
    assert shared.result("increment_attempt", command_id=command_id) == 2
    assert shared.result("update_command_state", command_id, "PENDING") is True
    assert shared.result("complete_command", command_id, "SUCCEEDED", NOW, 2**64 - 1) is True
    assert shared.result("complete_command", command_id, "FAILED", NOW) is False
    assert [event["type"] for event in shared.result("history", command_id)] == [
        "CommandCreated",
        "CommandTransitioned",
        "AttemptIncremented",
        "CommandTransitioned",
        "CommandTransitioned",
    ]
    assert shared.result("status_at", command_id=command_id, version=2)["state"] == "DISPATCHED"
    assert shared.result("status_at", command_id=command_id, at="9999-12-31T23:59:59Z")["state"] == "SUCCEEDED"
    assert shared.result("expire_overdue") == []
    assert shared.result("resolve_target", "dep_1", "operator")["delivery_mode"] == "pull"
    assert shared.result("get_command_status", UNKNOWN) is None


def test_results_write_every_null_and_instants_with_z(shared: Child) -> None:
    created = shared.result("create_command", deployment_id="d", command_name="x", deadline="2126-11-24T11:00:00+01:00")
    status = shared.result("get_command_status", created["command_id"])
    assert status == {
        "command_id": created["command_id"],
        "workspace_id": "default",
        "project_id": "default",
        "deployment_id": "d",
        "command": "x",
        "state": "PENDING",
        "attempt": 1,
        "deadline": "2126-11-24T10:00:00Z",
        "created_at": status["created_at"],
        "dispatched_at": None,
        "completed_at": None,
        "error": None,
        "request_size_bytes": None,
        "response_size_bytes": None,
        "deployment_model": "pull",
        "target": {"resource_id": "d", "resource_type": "worker"},
        "version": 1,
    }
    assert status["created_at"].endswith("Z")


def test_sizes_of_64_bits_are_written_exactly(shared: Child) -> None:
    created = shared.result("create_command", "d", "x", "PENDING", None, 2**64 - 1)
    shared.send(request("get_command_status", [created["command_id"]]))
    assert '"request_size_bytes":18446744073709551615,' in shared.line()


def test_the_context_of_a_call_is_recorded(shared: Child) -> None:
    context = {"actor": "server", "request_id": "r-1", "attributes": {"n": 2**64 - 1}}
    created = shared.result("create_command", deployment_id="d", command_name="x", context=context)
    shared.result("increment_attempt", command_id=created["command_id"], context=None)
    first, second = (event["context"] for event in shared.result("history", created["command_id"]))
    assert first == {"traceparent": None, **context}
    assert second == {"actor": None, "traceparent": None, "request_id": None, "attributes": {}}


@pytest.mark.parametrize("request_id", [1, 0, -5, 1.5, 2**64 - 1, -(2**63), "", "abc", "\x00é\n", None])
def test_an_answer_carries_the_id_of_its_request(shared: Child, request_id: Any) -> None:
    answer = shared.ask("history", ["x"], request_id)
    assert answer == {"jsonrpc": "2.0", "id": request_id, "result": []}
    assert type(answer["id"]) is type(request_id)


def test_params_may_be_left_out(shared: Child) -> None:
    shared.send('{"jsonrpc":"2.0","id":1,"method":"expire_overdue"}')
    assert shared.answer()["result"] == []


# --- Errors of the protocol

DEEP = b'{"jsonrpc":"2.0","id":1,"method":"history","params":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
BROKEN: list[bytes] = [
    b"{",
    b"nonsense",
    b'{"jsonrpc":"2.0","id":1,"method":"history","params":["x"]',
    b'{"jsonrpc":"2.0","id":1,"method":"history","params":["x"]} {}',
    b'{"jsonrpc":"2.0","id":1,"method":"history","params":["x"],}',
    b'{"jsonrpc":"2.0","id":1,"method":"history","params":[NaN]}',
    b'{"jsonrpc":"2.0","id":1,"method":"history","params":[-Infinity]}',
    b'{"jsonrpc":"2.0","id":1,"method":"history","params":["\x00"]}',
    b'{"jsonrpc":"2.0","id":1,"method":"history","params":["\xff"]}',
    b'{"jsonrpc":"2.0","id":1,"method":"history","params":["\xed\xa0\x80"]}',
    b'\xef\xbb\xbf{"jsonrpc":"2.0","id":1,"method":"history","params":["x"]}',
    b'{"jsonrpc":"2.0","id":1,"id":1,"method":"history","params":["x"]}',
    b'{"jsonrpc":"2.0","id":1,"method":"history","params":[{"a":1,"a":1}]}',
    b'{"jsonrpc":"2.0","id":1,"method":"history","params":["x"], "n": 01}',
    DEEP,
    b"[" * MAX_LINE_BYTES + b"]",
    b'"' + b"x" * 5 * MAX_LINE_BYTES + b'"',
]


@pytest.mark.parametrize("line", BROKEN, ids=lambda line: repr(line[-25:]))
def test_a_broken_line_gets_the_standard_error_and_the_process_lives_on(shared: Child, line: bytes) -> None:
    shared.send(line)
    answer = shared.answer()
    assert (answer["id"], answer["error"]["code"]) == (None, -32700)
    assert answer["error"]["message"].startswith("Parse error: ")
    assert shared.result("history", "x") == []


def test_a_line_may_be_as_long_as_the_limit(shared: Child) -> None:
    shared.send(request("history", ["x"]).ljust(MAX_LINE_BYTES))
    assert shared.answer()["result"] == []


def test_blank_lines_are_passed_over_and_carriage_returns_are_white_space(shared: Child) -> None:
    shared.send("", "   ", "\r", request("history", ["x"]) + "\r")
    assert shared.answer()["result"] == []


@pytest.mark.parametrize(
    ("message", "request_id"),
    [
        (1, None),
        ("x", None),
        (None, None),
        ({}, None),
        ({"id": 5, "method": "history", "params": ["x"]}, 5),
        ({"jsonrpc": "1.0", "id": 5, "method": "history", "params": ["x"]}, 5),
        ({"jsonrpc": 2.0, "id": 5, "method": "history", "params": ["x"]}, 5),
        ({"jsonrpc": "2.0", "id": 5}, 5),
        ({"jsonrpc": "2.0", "id": "a", "method": 1}, "a"),
        ({"jsonrpc": "2.0", "method": 1, "params": "bar"}, None),
        ({"jsonrpc": "2.0", "id": 5, "method": "history", "params": "x"}, 5),
        ({"jsonrpc": "2.0", "id": 5, "method": "history", "params": None}, 5),
        ({"jsonrpc": "2.0", "id": True, "method": "history", "params": ["x"]}, None),
        ({"jsonrpc": "2.0", "id": {}, "method": "history", "params": ["x"]}, None),
        ({"jsonrpc": "2.0", "id": [], "method": "history", "params": ["x"]}, None),
        ({"jsonrpc": "2.0", "id": 2**64, "method": "history", "params": ["x"]}, None),
        ({"jsonrpc": "2.0", "id": "\ud800", "method": "history", "params": ["x"]}, None),
    ],
    ids=str,
)
def test_what_is_no_request_is_told_so(shared: Child, message: Any, request_id: Any) -> None:
    shared.send(json.dumps(message))
    answer = shared.answer()
    assert (answer["id"], answer["error"]["code"]) == (request_id, -32600)
    assert answer["error"]["message"].startswith("Invalid Request: ")


@pytest.mark.parametrize(
    "method", ["", "nonsense", "History", "_create", "__init__", "__class__", "close", "rpc.discover", "\ud800"]
)
def test_only_the_calls_of_the_registry_are_methods(shared: Child, method: str) -> None:
    error = shared.ask(method, ["x"])["error"]
    assert error["code"] == -32601
    assert error["message"] == f"Method not found: {method!r}"


@pytest.mark.parametrize(
    ("method", "params", "parameter"),
    [
        ("history", {}, "command_id"),
        ("history", [], "command_id"),
        ("create_command", {"deployment_id": "d"}, "command_name"),
        ("create_command", {"deployment_id": "d", "command_name": "x", "connection": None}, "connection"),
        ("create_command", {"deployment_id": "d", "command_name": "x", "self": 1}, "self"),
        ("history", {"command_id": "x", "commandId": "x"}, "commandId"),
        ("history", {"command_id": "x", "\ud800": 1}, "\\ud800"),
    ],
)
def test_parameters_that_are_unknown_or_missing_are_named(
    shared: Child, method: str, params: Any, parameter: str
) -> None:
    error = shared.ask(method, params)["error"]
    assert (error["code"], error["data"]) == (-32602, {"parameter": parameter})
    assert parameter.replace("\\ud", "\\\\ud") in error["message"] or parameter in error["message"]


@pytest.mark.parametrize("params", [["x", "y"], ["x", None]])
def test_more_parameters_than_there_are_positions_are_refused(shared: Child, params: list[Any]) -> None:
    error = shared.ask("history", params)["error"]
    assert error["code"] == -32602
    assert "at most 1 by position, not 2" in error["message"]


# --- Errors of the registry


def test_an_unknown_command_is_told_with_its_id(shared: Child) -> None:
    assert shared.ask("increment_attempt", [UNKNOWN], "me") == {
        "jsonrpc": "2.0",
        "id": "me",
        "error": {
            "code": -32000,
            "message": f"no command '{UNKNOWN}'",
            "data": {"code": "COMMAND_NOT_FOUND", "retryable": False, "command_id": UNKNOWN},
        },
    }


def test_a_forbidden_transition_is_told_with_both_states(shared: Child) -> None:
    command_id = shared.create()
    error = shared.ask("update_command_state", [command_id, "SUCCEEDED"])["error"]
    assert error["code"] == -32000
    assert error["data"] == {
        "code": "INVALID_STATE_TRANSITION",
        "retryable": False,
        "command_id": command_id,
        "from_state": "PENDING",
        "to_state": "SUCCEEDED",
    }


def test_a_key_used_before_is_told_with_its_command(shared: Child) -> None:
    first = shared.result("create_command", deployment_id="d", command_name="x", idempotency_key="k")
    params = {"deployment_id": "d", "command_name": "y", "idempotency_key": "k"}
    assert shared.ask("create_command", params)["error"]["data"] == {
        "code": "IDEMPOTENCY_CONFLICT",
        "retryable": True,
        "idempotency_key": "k",
        "command_id": first["command_id"],
    }


TARGETS = script("""
    def __init__(self):
        targets = {"none": (), "two": tuple(Target(resource_id=i, resource_type="worker") for i in ("a", "b"))}
        class Directory:
            def get(self, name):
                return name in targets and Deployment(
                    id=name, workspace_id="w", project_id="p", deployment_model="pull", name=name, targets=targets[name]
                ) or None
        super().__init__(Directory())
""")


def test_every_refusal_of_a_target_has_its_code(start: Callable[..., Child]) -> None:
    child = start(TARGETS)
    for deployment_id, requested, code in [
        ("unknown", None, "DEPLOYMENT_NOT_FOUND"),
        ("none", None, "NO_COMMAND_TARGETS"),
        ("two", None, "COMMAND_TARGET_AMBIGUOUS"),
        ("two", "c", "COMMAND_TARGET_NOT_FOUND"),
        ("two", "a:b", "COMMAND_TARGET_ID_INVALID"),
    ]:
        data = {"code": code, "retryable": False, "deployment_id": deployment_id}
        for method, params in [
            ("resolve_target", {"deployment_id": deployment_id, "requested": requested}),
            ("create_command", {"deployment_id": deployment_id, "command_name": "x", "target": requested}),
        ]:
            error = child.ask(method, params)["error"]
            assert (error["code"], error["data"]) == (-32000, data)


FAILING = script("""
    async def get_command_status(self, command_id):
        print("noise")
        os.system("echo noise")
        raise {
            "conflict": Conflict("s", 1, None),
            "unavailable": Unavailable("no server"),
            "unknown": OutcomeUnknown("s", 2, bytes(32)),
            "embedded": EmbeddedPostgresError("no wheel"),
            "schema": SchemaMismatch("the secret", "x"),
            "bug": RuntimeError("the secret"),
        }[command_id]
""")


def test_errors_of_the_event_store_have_their_codes_and_say_whether_to_try_again(start: Callable[..., Child]) -> None:
    child = start(FAILING)
    expected: list[tuple[str, dict[str, Any]]] = [
        ("conflict", {"code": "CONFLICT", "stream_id": "s", "expected": 1, "actual": None}),
        ("unavailable", {"code": "UNAVAILABLE"}),
        ("unknown", {"code": "OUTCOME_UNKNOWN", "stream_id": "s", "version": 2, "hash": "00" * 32}),
        ("embedded", {"code": "UNAVAILABLE"}),
    ]
    for command_id, data in expected:
        error = child.ask("get_command_status", [command_id])["error"]
        assert (error["code"], error["data"]) == (-32000, {"retryable": True, **data})
        assert error["message"]


@pytest.mark.parametrize("command_id", ["schema", "bug"])
def test_an_internal_error_is_told_to_the_log_alone(
    start: Callable[..., Child], stderr: Callable[[], str], command_id: str
) -> None:
    child = start(FAILING)
    error = {"code": -32603, "message": "Internal error"}
    assert child.ask("get_command_status", [command_id], 9) == {"jsonrpc": "2.0", "id": 9, "error": error}
    assert child.ask("history", ["x"])["result"] == []
    assert child.finish() == ([], 0)
    assert "the secret" in stderr()


def test_whatever_the_process_and_its_children_print_goes_to_stderr(
    start: Callable[..., Child], stderr: Callable[[], str]
) -> None:
    child = start(FAILING)
    child.send(request("get_command_status", ["unavailable"]))
    answers, code = child.finish()
    assert ([answer["id"] for answer in answers], code) == ([1], 0)
    assert stderr().count("noise") == 2


# --- Values


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def raw(error: str, command_id: str = UNKNOWN) -> str:
    """A completion whose error is a JSON text, as it is."""
    params = f'["{command_id}","FAILED","{NOW}",null,{error}]'
    return f'{{"jsonrpc":"2.0","id":1,"method":"complete_command","params":{params}}}'


REFUSED_ERRORS = [
    str(2**64),
    str(-(2**63) - 1),
    str(2**70),
    "9" * 5_000,
    f"[{'-' + '9' * 500_000}]",
    "1e400",
    '{"a": -1e400}',
    r'"\ud800"',
    r'{"\udc00": 1}',
    json.dumps(deep(65)),
    json.dumps(deep(500)),
    json.dumps("x" * 65_535),
]


@pytest.mark.parametrize("error", REFUSED_ERRORS, ids=lambda error: error[:20])
def test_an_error_that_could_not_be_kept_exactly_is_refused(shared: Child, error: str) -> None:
    shared.send(raw(error))
    answer = shared.answer()
    assert (answer["id"], answer["error"]["code"]) == (1, -32000)
    assert answer["error"]["data"]["code"] == "INVALID_COMMAND"
    assert answer["error"]["data"]["field"] == "error"


@pytest.mark.parametrize(
    "error",
    [
        *(str(2**64 - 1), str(-(2**63)), "9007199254740993", "0.1", "1.0", "-0.0", "1e21", "5e-324"),
        *(r'"\u0000\u2028\ud83d\ude00"', '{"": null, "a": [true, {}]}', json.dumps("x" * 65_534), json.dumps(deep(64))),
    ],
    ids=lambda error: error[:20],
)
def test_an_error_at_the_very_limit_reads_back_equal(shared: Child, error: str) -> None:
    command_id = shared.create()
    shared.send(raw(error, command_id))
    assert shared.answer()["result"] is True
    assert repr(shared.result("get_command_status", command_id)["error"]) == repr(json.loads(error))


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
numbers = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
errors = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=10,
)


@given(error=errors, ascii_only=st.booleans())
@settings(max_examples=100)
def test_any_error_reads_back_equal(shared: Child, error: Any, ascii_only: bool) -> None:
    command_id = shared.create()
    shared.send(raw(json.dumps(error, ensure_ascii=ascii_only), command_id))
    assert shared.answer()["result"] is True
    assert repr(shared.result("get_command_status", command_id)["error"]) == repr(error)


@pytest.mark.parametrize(
    ("method", "params", "field"),
    [
        ("get_command_status", {"command_id": 5}, "command_id"),
        ("get_command_status", {"command_id": None}, "command_id"),
        ("increment_attempt", {"command_id": ["x"]}, "command_id"),
        ("resolve_target", {"deployment_id": "d", "requested": 5}, "requested"),
        ("resolve_target", {"deployment_id": {}}, "deployment_id"),
        ("create_command", {"deployment_id": "", "command_name": "x"}, "deployment_id"),
        ("create_command", {"deployment_id": "d", "command_name": "a\x00b"}, "command_name"),
        ("create_command", {"deployment_id": "d", "command_name": "\ud800"}, "command_name"),
        ("create_command", {"deployment_id": "d", "command_name": "x" * 256}, "command_name"),
        ("create_command", {"deployment_id": "d", "command_name": "x", "initial_state": "x"}, "initial_state"),
        ("create_command", {"deployment_id": "d", "command_name": "x", "target": True}, "target"),
        ("update_command_state", {"command_id": UNKNOWN, "state": 1}, "state"),
        ("complete_command", {"command_id": UNKNOWN, "state": "PENDING", "completed_at": NOW}, "state"),
        ("expire_overdue", {"limit": 0}, "limit"),
        ("expire_overdue", {"limit": "1"}, "limit"),
        ("status_at", {"command_id": "x"}, "at"),
        ("status_at", {"command_id": "x", "at": NOW, "version": 1}, "at"),
        ("status_at", {"command_id": "x", "version": 1.0}, "version"),
        ("increment_attempt", {"command_id": "x", "context": "me"}, "context"),
        ("increment_attempt", {"command_id": "x", "context": {"actor": ""}}, "context.actor"),
        ("increment_attempt", {"command_id": "x", "context": {"actor": 5}}, "context.actor"),
        ("increment_attempt", {"command_id": "x", "context": {"model": 5}}, "context.model"),
        ("increment_attempt", {"command_id": "x", "context": {"traceparent": "00"}}, "context.traceparent"),
        ("increment_attempt", {"command_id": "x", "context": {"attributes": []}}, "context.attributes"),
        ("increment_attempt", {"command_id": "x", "context": {"attributes": {"a": 2**70}}}, "context.attributes"),
        ("increment_attempt", {"command_id": "x", "context": {"attributes": {"a": deep(64)}}}, "context.attributes"),
    ],
    ids=str,
)
def test_an_argument_that_cannot_be_accepted_is_named(shared: Child, method: str, params: Any, field: str) -> None:
    error = shared.ask(method, params)["error"]
    assert (error["code"], error["data"]["code"]) == (-32000, "INVALID_COMMAND")
    assert (error["data"]["field"], error["data"]["retryable"]) == (field, False)
    assert error["message"] == f"{field}: {error['data']['problem']}"


@pytest.mark.parametrize("size", [True, 1.0, "1", -1, 2**64, 2**70, [], 10**400])
def test_a_size_is_a_whole_number_of_64_bits(shared: Child, size: Any) -> None:
    for method, params in [
        ("create_command", {"deployment_id": "d", "command_name": "x", "request_size_bytes": size}),
        ("update_command_state", {"command_id": UNKNOWN, "state": "FAILED", "response_size_bytes": size}),
        (
            "complete_command",
            {"command_id": UNKNOWN, "state": "FAILED", "completed_at": NOW, "response_size_bytes": size},
        ),
    ]:
        assert shared.ask(method, params)["error"]["data"]["field"].endswith("_size_bytes")


BAD_INSTANTS = [
    "2026-11-24T10:00:00",
    "2026-11-24",
    "2026-11-24 10:00:00Z",
    "2026-11-24T10:00:00.1234567Z",
    "0000-01-01T00:00:00Z",
    "10000-01-01T00:00:00Z",
    "0001-01-01T00:00:00+00:01",
    "9999-12-31T23:59:59-00:01",
    "2026-02-30T00:00:00Z",
    "2026-11-24T24:00:01Z",
    "٢٠٢٦-11-24T10:00:00Z",
    "",
    "now",
    1_764_000_000,
    1_764_000_000.5,
    True,
    {},
]


@pytest.mark.parametrize("instant", BAD_INSTANTS, ids=str)
def test_an_instant_is_rfc_3339_text_with_an_offset(shared: Child, instant: Any) -> None:
    for method, params, field in [
        ("create_command", {"deployment_id": "d", "command_name": "x", "deadline": instant}, "deadline"),
        ("mark_dispatched_if_not_terminal", {"command_id": UNKNOWN, "dispatched_at": instant}, "dispatched_at"),
        ("complete_command", {"command_id": UNKNOWN, "state": "FAILED", "completed_at": instant}, "completed_at"),
        ("expire_overdue", {"now": instant}, "now"),
        ("status_at", {"command_id": UNKNOWN, "at": instant}, "at"),
    ]:
        data = shared.ask(method, params)["error"]["data"]
        assert (data["code"], data["field"]) == ("INVALID_COMMAND", field)


HOSTILE: list[Any] = [
    *(None, True, False, 0, -1, 1.5, 2**64, 10**400, [], {}, [[]], {"model": 1}, {"self": {}}, deep(500)),
    *("", "\x00", "\ud800", "\uffff", "x" * 70_000, "a:b", NOW, "FAILED", "operator", "' OR 1=1 --", "%s"),
]


@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: repr(value)[:20])
def test_no_argument_makes_an_internal_error(shared: Child, value: Any) -> None:
    valid = {"command_id": UNKNOWN, "deployment_id": "d", "command_name": "x", "state": "FAILED"}
    valid |= {"completed_at": NOW, "dispatched_at": NOW}
    for method in METHODS.values():
        needed = {name: valid[name] for name in method.required}
        for parameter in method.readers:
            for argument in (value, {"actor": value}, {"attributes": value}, {"traceparent": value}):
                answer = shared.ask(method.name, needed | {parameter: argument})
                assert "result" in answer or answer["error"]["code"] == -32000, (method, parameter, answer)


@pytest.mark.parametrize("command_id", ["", "\x00", "\ud800", "x" * 300, "'"])
def test_an_id_that_no_command_can_have_is_merely_unknown(shared: Child, command_id: str) -> None:
    assert shared.result("get_command_status", command_id) is None
    assert shared.result("history", command_id) == []
    assert shared.ask("increment_attempt", [command_id])["error"]["data"]["code"] == "COMMAND_NOT_FOUND"


# --- Notifications and batches


def test_a_notification_is_executed_and_never_answered(shared: Child) -> None:
    command_id = shared.create()
    shared.send(notification("increment_attempt", command_id), notification("nonsense"), notification("history"))
    while shared.result("get_command_status", command_id)["attempt"] == 1:  # no order is promised
        pass
    assert shared.result("get_command_status", command_id)["attempt"] == 2


def test_a_batch_is_answered_by_one_array_in_its_order(start: Callable[..., Child]) -> None:
    child = start(GATED)
    batch = [
        request("increment_attempt", ["slow"], "a"),
        notification("history", "x"),
        "1",
        request("history", ["x"], "b"),
        request("nonsense", [], "c"),
        f"[{request('history', ['x'], 'd')}]",
        request("increment_attempt", ["open"], "e"),
    ]
    child.send(f"[{','.join(batch)}]")
    answers = child.answer()
    assert [answer["id"] for answer in answers] == ["a", None, "b", "c", None, "e"]
    codes = [answer.get("error", {}).get("code") for answer in answers]
    assert codes == [None, -32600, None, -32601, -32600, None]
    assert child.finish() == ([], 0)


def test_an_empty_batch_is_no_request(shared: Child) -> None:
    shared.send("[]")
    answer = shared.answer()
    assert (answer["id"], answer["error"]["code"]) == (None, -32600)


def test_a_batch_of_notifications_leaves_no_answer(start: Callable[..., Child]) -> None:
    child = start()
    child.send(f"[{notification('history', 'x')},{notification('nonsense')}]")
    assert child.finish() == ([], 0)


# --- Concurrency


def test_a_slow_call_does_not_hold_up_a_fast_one(start: Callable[..., Child]) -> None:
    child = start(GATED)
    child.send(request("increment_attempt", ["slow"], "slow"), request("history", ["x"], "fast"))
    assert child.answer()["id"] == "fast"
    child.send(request("increment_attempt", ["open"], "open"))
    assert {child.answer()["id"], child.answer()["id"]} == {"slow", "open"}


COUNTING = script("""
    running = most = 0
    full = asyncio.Event()

    async def increment_attempt(self, command_id, **context):
        self.running += 1
        self.most = max(self.most, self.running)
        if self.running == registry.rpc.MAX_IN_FLIGHT:
            for _ in range(100):
                await asyncio.sleep(0)  # time for more to come, if they may
            self.full.set()
        await self.full.wait()
        self.running -= 1
        return self.most
""")


@pytest.mark.parametrize("form", ["{}", "[{}]"], ids=["lines", "batch"])
def test_no_more_calls_run_at_once_than_the_limit(start: Callable[..., Child], form: str) -> None:
    child = start(COUNTING)
    requests = [request("increment_attempt", ["x"], n) for n in range(3 * MAX_IN_FLIGHT)]
    child.send(form.format((",\n" if form == "{}" else ",").join(requests)).replace(",\n", "\n"))
    answers, code = child.finish()
    answers = answers if form == "{}" else answers[0]
    assert sorted(answer["id"] for answer in answers) == list(range(3 * MAX_IN_FLIGHT))
    assert {answer["result"] for answer in answers} == {MAX_IN_FLIGHT}
    assert code == 0


class Endless(LineReader):
    """Gives requests, and counts how many were taken."""

    def __init__(self, requests: int) -> None:
        self.requests, self.taken, self.stopped = requests, 0, False

    async def lines(self) -> AsyncIterator[bytes | LineTooLong]:
        while self.taken < self.requests:
            self.taken += 1
            yield request("increment_attempt", ["x"], self.taken).encode()


class Kept(LineWriter):
    """Keeps the answers."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []

    async def write(self, line: bytes) -> None:
        self.lines.append(line)


class Gated(AsyncMemoryCommandRegistry):
    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()

    async def increment_attempt(self, *_: Any, **__: Any) -> int:
        await self.gate.wait()
        return 7


async def test_no_more_messages_are_read_than_can_be_worked_on() -> None:
    registry, reader, writer = Gated(), Endless(3 * MAX_IN_FLIGHT), Kept()
    running = asyncio.create_task(Server(registry, reader, writer).run())
    for _ in range(10 * MAX_IN_FLIGHT):
        await asyncio.sleep(0)
    assert reader.taken == MAX_IN_FLIGHT + 1  # one waits for its turn
    registry.gate.set()
    await running
    assert len(writer.lines) == reader.taken == 3 * MAX_IN_FLIGHT


def test_a_caller_that_reads_no_answers_yet_loses_none(start: Callable[..., Child]) -> None:
    child = start()
    line = request("complete_command", [UNKNOWN, "x" * 60_000, NOW])
    sender = threading.Thread(target=child.send, args=[*[line] * 300])  # much more than the pipes hold
    sender.start()
    answers = [child.answer() for _ in range(300)]
    sender.join()
    assert {answer["error"]["data"]["field"] for answer in answers} == {"state"}
    assert child.finish() == ([], 0)


# --- The end


def fifo_of(tmp_path: Path) -> Path:
    fifo = tmp_path / "gate"
    os.mkfifo(fifo)
    return fifo


def test_the_end_of_input_waits_for_what_is_under_way(start: Callable[..., Child], tmp_path: Path) -> None:
    child, fifo = start(GATED), fifo_of(tmp_path)
    child.send(request("increment_attempt", [str(fifo)]))
    with fifo.open("wb"):  # opens when the call has opened it, too
        assert child.process.stdin is not None
        child.process.stdin.close()
    answers, code = child.rest()
    assert ([answer["result"] for answer in answers], code) == ([7], 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_after_what_is_under_way(
    start: Callable[..., Child], stderr: Callable[[], str], tmp_path: Path, number: signal.Signals
) -> None:
    child, fifo = start(GATED), fifo_of(tmp_path)
    child.send(request("increment_attempt", [str(fifo)]))
    with fifo.open("wb"):
        child.process.send_signal(number)
    answers, code = child.rest()  # its input is still open
    assert ([answer["result"] for answer in answers], code) == ([7], 0)
    assert stderr() == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(start: Callable[..., Child], number: signal.Signals) -> None:
    child = start(GATED)
    child.send(request("increment_attempt", ["slow"]), request("history", ["x"], "fast"))
    assert child.answer()["id"] == "fast"
    while child.process.poll() is None:
        child.process.send_signal(number)
        with suppress(subprocess.TimeoutExpired):  # the first is to be heeded before the second comes
            child.process.wait(0.2)
    answers, code = child.rest()
    assert answers == []
    assert code != 0


def test_a_signal_waits_no_longer_than_its_grace(start: Callable[..., Child], stderr: Callable[[], str]) -> None:
    child = start(
        [
            *GATED[:2],
            GATED[2].replace("\nasyncio.run", "\nregistry.rpc.server.GRACE_SECONDS = 0\nasyncio.run"),
        ]
    )
    child.send(request("increment_attempt", ["slow"]), request("history", ["x"], "fast"))
    assert child.answer()["id"] == "fast"
    child.process.send_signal(signal.SIGTERM)
    assert child.rest() == ([], 0)
    assert "messages unanswered" in stderr()


def test_the_last_line_needs_no_line_feed(start: Callable[..., Child]) -> None:
    child = start()
    assert child.process.stdin is not None
    child.process.stdin.write(request("history", ["x"]).encode())
    answers, code = child.finish()
    assert ([answer["result"] for answer in answers], code) == ([[]], 0)


def test_it_ends_quietly_when_nobody_reads_its_answers(start: Callable[..., Child], stderr: Callable[[], str]) -> None:
    child = start()
    assert child.ask("history", ["x"])["result"] == []
    assert child.process.stdout is not None
    child.process.stdout.close()
    child.send(request("history", ["x"]))
    assert child.process.wait() == 0  # its input is still open
    assert stderr() == ""


OUTLIVED = script("""
    async def increment_attempt(self, command_id, **context):
        return subprocess.Popen(["sleep", "600"], start_new_session=True).pid
""")


def test_a_process_it_leaves_behind_does_not_hold_the_callers_pipes(start: Callable[..., Child]) -> None:
    child = start(OUTLIVED)
    left = child.ask("increment_attempt", ["x"])["result"]
    try:
        assert child.finish() == ([], 0)
    finally:
        os.kill(left, signal.SIGKILL)


# --- Where its input comes from


def test_its_input_may_be_a_file(start: Callable[..., Child], tmp_path: Path) -> None:
    (tmp_path / "in").write_text(request("history", ["x"], 1) + "\n" + request("history", ["x"], 2))
    with (tmp_path / "in").open("rb") as file:
        child = start(stdin=file.fileno())
        answers, code = child.rest()
    assert (sorted(answer["id"] for answer in answers), code) == ([1, 2], 0)


@pytest.fixture
def terminal(start: Callable[..., Child]) -> Iterator[tuple[int, Child]]:
    """A child with a terminal of its own as its input, and the other side of that terminal."""
    outer, inner = pty.openpty()
    own_terminal = "import fcntl, os, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    child = start([*IN_MEMORY[:2], own_terminal + IN_MEMORY[2]], stdin=inner)
    os.close(inner)
    os.write(outer, request("history", ["x"], "typed").encode() + b"\n")
    assert child.answer()["id"] == "typed"
    yield outer, child
    os.close(outer)


@pytest.mark.parametrize("key", [b"\x03", b"\x04"], ids=["control-C", "control-D"])
def test_at_a_terminal_the_usual_keys_end_it(
    terminal: tuple[int, Child], stderr: Callable[[], str], key: bytes
) -> None:
    outer, child = terminal
    os.write(outer, key)
    assert child.rest() == ([], 0)
    assert stderr() == ""


@given(
    text=st.lists(st.sampled_from([b"\n", b"a", b"bc", b"d" * 9, b" "])).map(b"".join),
    cuts=st.lists(st.integers(0, 40)),
)
def test_lines_are_the_same_however_the_input_is_cut(text: bytes, cuts: list[int]) -> None:
    limit = 10
    splitter = LineSplitter(limit)
    found: list[bytes | LineTooLong] = []
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    for begin, end in pairwise(places):
        found += splitter.feed(text[begin:end])
    found += splitter.end()
    expected = [line for line in text.split(b"\n") if line.strip() or len(line) > limit]
    assert [None if isinstance(line, LineTooLong) else line for line in found] == [
        None if len(line) > limit else line for line in expected
    ]


# --- On Postgres


def test_a_registry_in_memory_has_no_dsn_and_no_table() -> None:
    with pytest.raises(ValueError, match="in memory"):
        run_rpc("postgresql://", memory=True, deployment_model=DeploymentModel.PULL)
    with pytest.raises(ValueError, match="in memory"):
        run_rpc(None, memory=True, deployment_model=DeploymentModel.PULL, deployments_table=True)


def on_postgres(dsn: str, *, deployments_table: bool = False) -> list[str]:
    return child_argv(deployment_model="push", memory=False, dsn=dsn, deployments_table=deployments_table)


def test_pipelined_increments_on_postgres_give_distinct_numbers(start: Callable[..., Child], dsn: str) -> None:
    child = start(on_postgres(dsn))
    created = child.result("create_command", deployment_id="d", command_name="x", context={"actor": "me"})
    assert created["delivery_mode"] == "push"
    child.send(*(request("increment_attempt", [created["command_id"]], n) for n in range(60)))
    answers, code = child.finish()
    assert sorted(answer["result"] for answer in answers) == list(range(2, 62))
    assert code == 0
    with PostgresCommandRegistry.open(dsn) as registry:
        status = registry.get_command_status(created["command_id"])
        assert status is not None
        assert status.attempt == 61
        assert registry.history(created["command_id"])[0].context == EventContext(actor="me")


def test_deployments_may_be_those_of_the_table(dsn: str) -> None:
    targets = tuple(Target(resource_id=name, resource_type=ResourceType.WORKER) for name in ("a", "b"))
    with PostgresCommandRegistry.open(dsn) as postgres:
        postgres.deployment_table.put(
            Deployment(
                id="two",
                workspace_id="w",
                project_id="p",
                deployment_model=DeploymentModel.PUSH,
                name="two",
                targets=targets,
            )
        )
    with RpcCommandRegistry(
        child_argv(deployment_model="pull", memory=False, dsn=dsn, deployments_table=True)
    ) as registry:
        with pytest.raises(DeploymentNotFound):
            registry.create_command("one", "x")
        with pytest.raises(TargetAmbiguous):
            registry.create_command("two", "x")
        created = registry.create_command("two", "x", CommandState.PENDING_UPLOAD, target="b")
        assert (created.project_id, created.delivery_mode) == ("p", DeploymentModel.PUSH)


def test_a_database_without_a_registry_is_told_on_stderr_before_anything_is_read(
    start: Callable[..., Child], stderr: Callable[[], str], empty_dsn: str
) -> None:
    child = start(on_postgres(empty_dsn))
    answers, code = child.rest()
    assert answers == []
    assert code != 0
    assert "SchemaMismatch" in stderr()


def test_a_null_for_what_may_be_left_out_is_as_if_it_were(shared: Child) -> None:
    given = {"deployment_id": "d", "command_name": "x", "initial_state": None, "deadline": None, "context": None}
    command_id = shared.ask("create_command", given)["result"]["command_id"]
    assert shared.ask("get_command_status", [command_id])["result"]["state"] == "PENDING"
    assert shared.ask("expire_overdue", {"now": None, "limit": None})["result"] == []
    assert shared.ask("get_command_status", {"command_id": None})["error"]["data"]["code"] == "INVALID_COMMAND"
