"""Fault: hostile input to `command-registry rpc`: any bytes on a line, any JSON for any parameter of any method.

Promise: each line that asks for an answer gets one, which is a line of JSON; it names the parameter, or what was
accepted reads back equal. Never an internal error; the child lives on, tells nothing on stderr, and takes little more
memory for a line than its answer takes.
"""

import json
import random
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registry import AsyncMemoryCommandRegistry, PostgresCommandRegistry
from registry.rpc.dispatch import Dispatcher
from registry.rpc.methods import METHODS
from registry.rpc.stdio import MAX_LINE_BYTES
from registry.testing.databases import Databases
from registry.testing.implementation import EventLoop
from tests.faults.hostile import ACTING, PARAMETERS, TEXTS
from tests.load import chosen_seed
from tests.rpc_client import child_argv
from tests.soak import rounds
from tests.test_rpc import Child

pytestmark = pytest.mark.timeout(120)

NOON: Final = "2026-11-24T12:00:00Z"
EXAMPLES: Final = rounds(150, 50_000)
MOST_MEMORY_KIB: Final = 200 * 1024
REQUESTS: Final = rounds(100_000, MAX_LINE_BYTES // 2 - 1)

NEEDED: Final[dict[str, Any]] = {
    "deployment_id": "dep_eu1",
    "command_name": "sync-data",
    "state": "FAILED",
    "completed_at": NOON,
    "dispatched_at": NOON,
}
DEEP: Final = "[" * 10_000 + "]" * 10_000
JSON: Final[list[str]] = [
    *[json.dumps(text) for text in TEXTS if len(text) <= 100_000],
    *["null", "true", "false", "0", "-0", "-0.0", "-1", "1", "1.0", "1e2", "1e400", "-1e400", "5e-324", "0.1"],
    *["9007199254740993", "18446744073709551615", "18446744073709551616", "1" + "0" * 400, "-1" + "0" * 9_000],
    *[
        "[]",
        "{}",
        "[null]",
        '{"a":1.0}',
        '{"":{"":[]}}',
        '{"\\ud800":1}',
        '["\\ud83d\\ude00","\\u0000\\u001b[31m\\u009b"]',
    ],
    *["[" * 64 + "]" * 64, "[" * 65 + "]" * 65, "[" * 900 + "]" * 900, '{"a":' * 70 + "1" + "}" * 70, DEEP],
    *[
        '{"actor":"\\u0000"}',
        '{"actor":7}',
        '{"more":1}',
        '{"attributes":[]}',
        '{"attributes":{"a":1e400}}',
        '{"traceparent":"x"}',
    ],
    *['{"actor":"x","attributes":{"a":[1,1.0,"\\u001b"]}}', '{"request_id":"\\ud800"}', '"' + "x" * 70_000 + '"'],
]
NO_JSON: Final = [
    *[
        "NaN",
        "-Infinity",
        "+1",
        "01",
        ".5",
        "1.",
        "0x1",
        "tru",
        "'a'",
        '"\t"',
        '"\\x"',
        '"\\u12"',
        '{"a":1,"a":2}',
        "[1,]",
        "\x00",
    ],
    *["{", "[", '"', "}", "//", "\ufeff1"],
]


def line_of(method: str, params: str, request_id: str = "1") -> str:
    return f'{{"jsonrpc":"2.0","id":{request_id},"method":"{method}","params":{params}}}'


class Wire:
    """A child, and lines of bytes to it."""

    def __init__(self, child: Child, stderr: Path, *, fast: bool) -> None:
        self.child, self.stderr = child, stderr
        self._fast = fast

    def some(self, texts: list[str]) -> list[str]:
        """Choose what to try: all, in memory or in a soak; else some."""
        choice = random.Random(chosen_seed())  # noqa: S311 - a seed that can be given again is the point
        return texts if self._fast else choice.sample(texts, rounds(15, len(texts)))

    def ask(self, line: str) -> Any:
        """Send a line, and give its answer."""
        self.child.send(line)
        return json.loads(self.child.line(), parse_constant=_no_constant)

    def check(self) -> None:
        """Check that it lives, and had nothing to complain of."""
        assert self.child.process.poll() is None
        assert self.stderr.read_text() == ""


def _no_constant(name: str) -> Any:
    raise AssertionError(f"{name} is no JSON")


@pytest.fixture(scope="module", params=["memory", "postgres"])
def wire(
    request: pytest.FixtureRequest, servers: Callable[[str], Databases], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Wire]:
    """A child that must outlive everything that is sent to it, and tells nothing on stderr; what it wrote verifies."""
    databases = servers("default") if request.param == "postgres" else None
    name = databases.migrated() if databases else None
    dsn = databases.dsn(name) if databases and name else None
    path = tmp_path_factory.mktemp("rpc") / "stderr"
    argv = child_argv(deployment_model="pull", memory=dsn is None, dsn=dsn, deployments_table=False)
    with path.open("wb") as stderr, Child(argv, stderr=stderr) as child:
        wire = Wire(child, path, fast=dsn is None)
        yield wire
        wire.check()
        assert child.finish() == ([], 0)
    if databases and name and dsn:
        with PostgresCommandRegistry.open(dsn) as registry:
            assert registry.verify().ok
        databases.drop(name)


PAIRS: Final = [(name, parameter) for name, method in METHODS.items() for parameter in method.readers]


@pytest.mark.parametrize(("method", "parameter"), PAIRS)
def test_any_json_for_any_parameter_is_refused_by_name_or_reads_back_equal(
    wire: Wire, method: str, parameter: str
) -> None:
    command_id = ""
    for text in wire.some(JSON):
        command_id = (
            command_id or wire.ask(line_of("create_command", '["dep_eu1","sync-data"]'))["result"]["command_id"]
        )
        params = {name: NEEDED.get(name, command_id) for name in METHODS[method].required} | {parameter: 0}
        if method == "status_at" and parameter not in {"at", "version"}:
            params["version"] = 1
        if method == "update_command_state" and parameter in {"dispatched_at", "completed_at", "response_size_bytes"}:
            params["state"] = "DISPATCHED"
        fields = ",".join(
            f"{json.dumps(name)}:{text if name == parameter else json.dumps(value)}" for name, value in params.items()
        )
        answer = wire.ask(line_of(method, f"{{{fields}}}"))
        if "error" in answer:
            check_refusal(answer, parameter, text)
            continue
        of_it = "command_id" in METHODS[method].required
        made = answer["result"]["command_id"] if method == "create_command" else command_id if of_it else ""
        command_id = "" if PARAMETERS[parameter] is not None or method != "create_command" else command_id
        if text != "null" and made and parameter != "command_id":
            check_read_back(wire, made, parameter, json.loads(text))
    wire.check()


def check_refusal(answer: Any, parameter: str, text: str) -> None:
    error = answer["error"]
    said = f"{parameter}={text[:100]}: {json.dumps(answer)[:300]}"
    assert len(error["message"]) < 5_000, said
    assert not set(ACTING).intersection(error["message"]), said
    if error["code"] == -32700:
        assert text == DEEP, said
        assert answer["id"] is None
        return
    assert (error["code"], answer["id"]) == (-32000, 1), said
    code, field = error["data"]["code"], error["data"].get("field", "").partition(".")[0]
    match parameter:
        case "command_id" if code == "COMMAND_NOT_FOUND":
            return
        case "deployment_id" if code == "DEPLOYMENT_NOT_FOUND":
            return
        case "target" | "requested" if code in {"COMMAND_TARGET_NOT_FOUND", "COMMAND_TARGET_ID_INVALID"}:
            return
        case "timeout" if code == "UNAVAILABLE":
            return
    assert code == "INVALID_COMMAND", said
    assert field == parameter or {field, parameter} == {"at", "version"}, said


def check_read_back(wire: Wire, command_id: str, parameter: str, value: Any) -> None:
    status = wire.ask(line_of("get_command_status", json.dumps([command_id])))["result"]
    entries = wire.ask(line_of("history", json.dumps([command_id])))["result"]
    past = wire.ask(line_of("status_at", json.dumps({"command_id": command_id, "version": len(entries)})))["result"]
    assert past == status
    name = {"command_name": "command", "initial_state": "state"}.get(parameter, parameter)
    if parameter == "context":
        found = {key: entries[-1]["context"][key] for key in value}
    elif parameter == "idempotency_key":
        found = entries[-1]["idempotency_key"]
    elif parameter == "target":
        found = status["target"]["resource_id"]
    elif name in status:
        found = status[name]
    else:
        assert PARAMETERS[parameter] is None
        return
    if parameter.endswith("_at") or parameter == "deadline":
        assert isinstance(found, str)
        assert found.endswith("Z")
        return
    assert json.dumps(found) == json.dumps(value)


@pytest.mark.parametrize("place", ["alone", "in a batch", "as params", "as a parameter", "as an id"])
def test_what_is_no_json_is_told_once_and_nothing_else_of_the_line_is_done(wire: Wire, place: str) -> None:
    good = line_of("create_command", '["dep_eu1","sync-data"]')
    for text in NO_JSON:
        line = {
            "alone": text,
            "in a batch": f"[{good},{text}]",
            "as params": line_of("history", text),
            "as a parameter": line_of("history", f"[{text}]"),
            "as an id": line_of("history", '["x"]', text),
        }[place]
        answer = wire.ask(line)
        assert (answer["id"], answer["error"]["code"]) == (None, -32700), (line, answer)
    wire.check()


LINES: Final[dict[str, tuple[bytes, int | None]]] = {
    "no UTF-8": (b"\xff\xfe{}", -32700),
    "half a character": (line_of("history", '["\u20ac"]').encode().replace(b"\xe2\x82\xac", b"\xe2\x82"), -32700),
    "a surrogate in UTF-8": (b'["\xed\xa0\x80"]', -32700),
    "overlong UTF-8": (b'["\xc0\x80"]', -32700),
    "UTF-16": ('{"a":1}'.encode("utf-16"), -32700),
    "NUL": (b"\x00" * 1_000, -32700),
    "10,000 arrays": (DEEP.encode(), -32700),
    "100,000 open": (b"[" * 100_000, -32700),
    "100,000 objects": (b'{"a":' * 100_000, -32700),
    "an id beyond floats": (line_of("history", '["x"]', "1e400").encode(), -32600),
    "an id of 400 digits": (line_of("history", '["x"]', "1" + "0" * 400).encode(), -32600),
    "an id of a lone surrogate": (line_of("history", '["x"]', '"\\ud800"').encode(), -32600),
    "an id that is a list": (line_of("history", '["x"]', "[]").encode(), -32600),
    "a long id": (line_of("history", '["x"]', json.dumps("x" * 500_000)).encode(), None),
    "a private method": (line_of("_write", "{}").encode(), -32601),
    "a dunder": (line_of("__init__", "{}").encode(), -32601),
    "a method of a lone surrogate": (line_of("\\ud800\\u001b", "{}").encode(), -32601),
    "self": (line_of("history", '{"self":1,"command_id":"x"}').encode(), -32602),
    "connection": (line_of("history", '{"connection":1,"command_id":"x"}').encode(), -32602),
    "a parameter of a lone surrogate": (line_of("history", '{"command_id":"x","\\ud800":1}').encode(), -32602),
    "too many": (line_of("history", json.dumps(["x"] * 1_000)).encode(), -32602),
    "the longest line": (b" " * (MAX_LINE_BYTES - 2) + b"[]", -32600),
    "one byte more": (b" " * (MAX_LINE_BYTES - 1) + b"[]", -32700),
    "eight times as much": (b'"' + b"x" * (8 * MAX_LINE_BYTES) + b'"', -32700),
    "a long text": (line_of("history", json.dumps(["x" * (MAX_LINE_BYTES - 200)])).encode(), None),
    "a carriage return": (line_of("history", '["x"]').encode() + b"\r", None),
}


@pytest.mark.parametrize("name", LINES)
def test_any_line_has_one_answer_and_the_child_lives_on(wire: Wire, name: str) -> None:
    line, code = LINES[name]
    wire.child.send(line)
    answer = wire.child.answer()
    assert answer.get("error", {}).get("code") == code, answer
    assert wire.ask(line_of("history", '["x"]')) == {"jsonrpc": "2.0", "id": 1, "result": []}
    wire.check()


_valid: Final = st.sampled_from(
    [
        line_of("create_command", '["dep_eu1","sync-data","PENDING","2026-11-24T12:00:00Z",12]').encode(),
        line_of(
            "complete_command", '{"command_id":"cmd_x","state":"FAILED","completed_at":"2026-11-24T12:00:00Z"}'
        ).encode(),
        b"["
        + line_of("expire_overdue", '{"limit":10}').encode()
        + b',{"jsonrpc":"2.0","method":"history","params":["x"]}]',
    ]
)
_bytes: Final = st.binary(max_size=6) | st.sampled_from(
    [text.encode(errors="replace") for text in TEXTS if len(text) < 50]
)


@st.composite
def _lines(draw: st.DrawFn) -> bytes:
    """Draw a valid line with a few bytes cut out, and others put in, at random; or random bytes."""
    line = draw(_valid | st.binary(max_size=40))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(line)))
        line = line[:at] + draw(_bytes) + line[at + draw(st.integers(0, 4)) :]
    return line.replace(b"\n", b" ")


@pytest.fixture(scope="module")
def answer() -> Iterator[Callable[[bytes], bytes | None]]:
    """Answers a line, as a child does."""
    with closing(EventLoop()) as loop:
        dispatcher = Dispatcher(AsyncMemoryCommandRegistry())
        yield lambda line: loop.run(dispatcher.answer(line))


@settings(max_examples=EXAMPLES)
@given(line=_lines())
def test_any_bytes_have_one_answer_or_none_and_never_an_internal_error(
    answer: Callable[[bytes], bytes | None], line: bytes
) -> None:
    answered = answer(line)
    if answered is None:
        assert b'"method"' in line
        return
    assert b"\n" not in answered
    told = json.loads(answered, parse_constant=_no_constant)
    for each in told if isinstance(told, list) else [told]:
        assert each["jsonrpc"] == "2.0"
        assert each.get("error", {}).get("code") in {None, -32700, -32600, -32601, -32602, -32000}, each


def test_a_line_full_of_requests_costs_no_more_memory_than_its_answers(wire: Wire) -> None:
    batch = b"[" + b"1," * (REQUESTS - 1) + b"1]"
    wire.child.send(batch)
    answers = wire.child.answer()
    assert len(answers) == REQUESTS
    assert {answer["error"]["code"] for answer in answers} == {-32600}
    status = Path(f"/proc/{wire.child.process.pid}/status").read_text()
    peak = int(status.partition("VmHWM:")[2].split()[0])
    print(f"{len(batch)} bytes: at most {peak} KiB of memory")
    assert peak < MOST_MEMORY_KIB * rounds(1, 2)
    wire.check()
