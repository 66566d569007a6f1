"""Fault: hostile input to the command line: any text for any option and argument, the environment, a terminal.

Promise: a call that is refused says why in one line that names the option or the argument, with exit status 1 or 2: no
traceback, no SQL. Whatever is in the database, nothing of it acts on a terminal; and JSON is JSON.
"""

import json
import os
import pty
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final, NamedTuple

import psycopg
import pytest
import typer.main
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from registry import CommandState, EventContext, PostgresCommandRegistry
from registry.cli.app import app
from registry.cli.visible import visible, visible_json
from registry.testing.databases import Databases
from tests.faults.hostile import ACTING, NOON, TEXTS
from tests.load import chosen_seed
from tests.soak import rounds
from tests.waiting import until

pytestmark = pytest.mark.timeout(240)

PROGRAM: Final = [sys.executable, "-m", "registry.cli"]
NASTY: Final = "a\u202eb\u2028c\u2066d\u200fe[red]\U000e0041"
ACTS: Final = "\x1b[31m\x9b31m\x1b]0;title\x07\x85\x7f\u202e\u2028\x00\r"

# What a call needs beside what is tried; `{id}` is a command's. A command that is added later fails until it is here.
BASE: Final[dict[str, list[str]]] = {
    "demo": ["--commands", "1"],
    "migrate": [],
    "doctor": ["--quick"],
    "create": ["dep_eu1", "sync-data"],
    "dispatch": ["{id}"],
    "update": ["{id}", "FAILED"],
    "complete": ["{id}", "FAILED"],
    "increment": ["{id}"],
    "expire": [],
    "status": ["{id}"],
    "history": ["{id}"],
    "verify": [],
    "export": [],
    "tail": [],
    "rpc": [],
    "projections rebuild": ["command_status"],
    "projections status": [],
    "projections run": ["command_status", "--once"],
    "projections switch": ["command_status"],
    "projections prune": [],
    "projections skip": ["command_status", "{id}", "1", "--reason", "because"],
}

# How a refusal may name a parameter, beside its name, its option and its metavar.
NAMES: Final[dict[str, str]] = {
    "command_id": "no command",
    "deployment": "deployment_id",
    "name": "command_name|no projection",
    "names": "no projection",
    "modules": "cannot be imported|is no Projection",
    "target": "no target|target id",
    "output": "cannot write|cannot use",
    "stream_id": "stream_id|stream|nobody follows",
    "stream_version": "nobody follows",
    "version": "version",
    "reason": "nobody follows",
    "types": "--type",
}
# These run for long, or serve, with a value that is accepted.
_PASSED_OVER: Final = {("demo", "seed"), ("demo", "commands"), ("rpc", "deployment_model")}


class Parameter(NamedTuple):
    """One option or argument of one command."""

    command: str
    name: str
    kind: str
    flags: list[str]
    metavar: str
    place: int


def _parameters() -> Iterator[Parameter]:
    def walk(group: Any, path: str) -> Iterator[Parameter]:
        for name, command in group.commands.items():
            full = f"{path}{name}"
            if hasattr(command, "commands"):
                yield from walk(command, f"{full} ")
                continue
            arguments = [each.name for each in command.params if each.param_type_name == "argument"]
            for each in command.params:
                if not getattr(each, "is_flag", False):
                    place = arguments.index(each.name) if each.name in arguments else -1
                    yield Parameter(
                        full, each.name, each.param_type_name, each.opts, each.metavar or each.name.upper(), place
                    )

    yield from walk(typer.main.get_command(app), "")


PARAMETERS: Final = list(_parameters())
COMMON: Final = {"dsn", "pooler"}
BAD: Final[dict[str, list[str]]] = {
    "dsn": ["a\udcff", "host=a\udcff", "postgresql://a\udcff", "host=\u202e", "\x1b[31m", "x" * 10_000, "port"],
    "pooler": ["a\udcff", "\x1b[31m", "", "session"],
}
VALUES: Final = [text.replace("\x00", "\x01") for text in TEXTS if len(text) <= 20_000 and "\ud800" not in text]
VALUES.extend(
    ["a\udcff", "\udc80\udcff", "99999999999999999999", "nan", "inf", "1e400", '{"a":1,"a":2}', "1:1:1", "os:path"]
)


def _some(values: list[str]) -> list[str]:
    """Choose a few values; in a soak, all."""
    choice = random.Random(chosen_seed())  # noqa: S311 - a seed that can be given again is the point
    return choice.sample(values, rounds(4, len(values)))


class Cli:
    """Calls the command line on a database, in this process."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn

    def call(self, *arguments: str, **environment: str) -> Any:
        named = {"COMMAND_REGISTRY_DSN": self.dsn, "TERMINAL_WIDTH": "100", **environment}
        return CliRunner(env=named).invoke(app, list(arguments), prog_name="command-registry")

    def create(self) -> str:
        created: str = self.call("create", "dep_eu1", "sync-data", "--quiet").stdout.strip()
        return created


@pytest.fixture(scope="module")
def cli(servers: Callable[[str], Databases]) -> Iterator[Cli]:
    with servers("default").one() as dsn:
        yield Cli(dsn)


def check_told(result: Any, named: str, what: str) -> None:
    """Check that a call went well, or said in one line that names the parameter why it did not."""
    said = f"{what}: {result.exit_code} {result.output[:500]!r}"
    assert result.exception is None or isinstance(result.exception, SystemExit), said
    assert result.exit_code in {0, 1, 2}, said
    acting = set(result.output).intersection(ACTING) - {"\n"}
    assert not acting, f"{said} {acting}"
    if result.exit_code:
        assert re.fullmatch(r"error: [^\n]+\n", result.stderr.splitlines(keepends=True)[-1]), said
        assert re.search(named, result.stderr), said
        for leak in ("Traceback", "internal error", "the server says", "SELECT"):
            assert leak not in result.stderr, said


@pytest.mark.parametrize(
    "parameter",
    [each for each in PARAMETERS if each.name not in COMMON],
    ids=lambda each: f"{each.command}-{each.name}",
)
def test_any_text_for_any_option_is_accepted_or_refused_in_one_line_that_names_it(
    cli: Cli, parameter: Parameter, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command_id = cli.create()
    names = [*map(re.escape, parameter.flags), re.escape(parameter.metavar), parameter.name]
    named = "|".join([*names, NAMES.get(parameter.name, "\0")])
    for value in _some(VALUES):
        if (parameter.command, parameter.name) in _PASSED_OVER and value.isdecimal():
            continue
        base = [each.format(id=command_id) for each in BASE[parameter.command]]
        if parameter.kind == "argument":
            at = [place for place, each in enumerate(base) if not each.startswith("--")][parameter.place :][:1]
            base[at[0] if at else 0 : at[0] + 1 if at else 0] = [value]
        else:
            base.append(f"{parameter.flags[0]}={value}")
        if value.startswith("-") and parameter.kind == "argument":
            continue
        arguments = [*parameter.command.split(), *base]
        check_told(cli.call(*arguments), named, f"{parameter.command} {parameter.name}={value[:60]!r}")
    with PostgresCommandRegistry.open(cli.dsn) as registry:
        assert registry.verify().ok


@pytest.mark.parametrize("command", BASE)
def test_a_dsn_or_a_pooler_that_cannot_be_one_is_refused_by_name_wherever_it_stands(cli: Cli, command: str) -> None:
    base = [*command.split(), *[each.format(id="cmd_x") for each in BASE[command]]]
    for name, values in BAD.items():
        for value in values:
            for arguments in ([*base, f"--{name}={value}"], [f"--{name}={value}", *base]):
                result = cli.call(*arguments)
                check_told(result, f"--{name}", f"{command} {value!r}")
                assert result.exit_code == 2
            result = cli.call(*base, **{f"COMMAND_REGISTRY_{name.upper()}": value}) if value else result
            check_told(result, f"--{name}|COMMAND_REGISTRY_{name.upper()}", f"{command} {value!r}")
            assert result.exit_code == 2


def test_every_command_is_tried() -> None:
    assert {each.command for each in PARAMETERS} == set(BASE)


def run(dsn: str, *arguments: str | bytes, **environment: str | bytes) -> "subprocess.CompletedProcess[bytes]":
    named: dict[Any, Any] = {**os.environ, "COMMAND_REGISTRY_DSN": dsn, **environment}
    named.pop("PYTHONUNBUFFERED", None)
    return subprocess.run([*PROGRAM, *arguments], env=named, capture_output=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("COMMAND_REGISTRY_DSN", b"host=\xff", "COMMAND_REGISTRY_DSN"),
        ("COMMAND_REGISTRY_POOLER", b"\xff\x1b", "COMMAND_REGISTRY_POOLER"),
        ("LOGNAME", b"\xff", "actor"),
        ("LOGNAME", b"\x1b[31m", "actor"),
        ("LOGNAME", b"x" * 1_000, "actor"),
        ("COLUMNS", "²".encode(), ""),
        ("COLUMNS", b"9" * 5_000, ""),
        ("LINES", "²".encode(), ""),
        ("TERMINAL_WIDTH", b"wide", ""),
        ("PYTHONIOENCODING", b"latin-1", ""),
        ("PYTHONIOENCODING", b"ascii", ""),
    ],
)
def test_any_environment_is_taken_or_refused_in_one_line(dsn: str, name: str, value: bytes, said: str) -> None:
    with PostgresCommandRegistry.open(dsn) as registry:
        command_id = registry.create_command(NASTY + "é😀", "sync-data").command_id
    for arguments in (["status", command_id], ["increment", command_id]):
        done = run(dsn, *arguments, **{name: value})
        assert b"Traceback" not in done.stderr
        assert b"internal error" not in done.stderr
        assert not set((done.stdout + done.stderr).decode(errors="replace")).intersection(ACTING) - {"\n"}
    assert said.encode() in done.stderr
    assert bool(done.returncode) == bool(said)


class Terminal(NamedTuple):
    """What a call wrote to a terminal."""

    status: int
    text: str


def on_terminal(dsn: str, *arguments: str) -> Terminal:
    controlling, terminal = pty.openpty()
    environment = {**os.environ, "COMMAND_REGISTRY_DSN": dsn, "TERM": "xterm-256color", "COLUMNS": "100"}
    environment.pop("PYTHONUNBUFFERED", None)
    with subprocess.Popen(
        [*PROGRAM, *arguments], env=environment, stdin=terminal, stdout=terminal, stderr=terminal
    ) as process:
        os.close(terminal)
        parts = []
        with suppress(OSError):  # its end is closed
            while part := os.read(controlling, 65_536):
                parts.append(part)
        os.close(controlling)
    return Terminal(process.returncode, b"".join(parts).decode())


# What rich writes: colours, and the cursor's moves of a spinner.
_RICH: Final = re.compile(r"\x1b\[(?:[0-9;]*m|\?25[hl]|[12]?K|\d*A)")


@pytest.mark.parametrize(
    "arguments",
    [
        "status {id}",
        "history {id}",
        "status {id} --json",
        "history {id} --json",
        "tail",
        "tail --json",
        "export",
        "verify",
        "verify --json",
        "projections status",
        "projections status --json",
        "status {nasty}",
        "create {nasty} x --deployments table",
        "tail --type {nasty}",
        "export -o /nowhere/{nasty}",
        "--debug export -o /nowhere/{nasty}",
    ],
)
def test_nothing_that_is_in_the_database_or_in_the_call_acts_on_a_terminal(
    dsn: str, connection: psycopg.Connection[Any], arguments: str
) -> None:
    with PostgresCommandRegistry.open(dsn) as registry:
        context = EventContext(actor=NASTY, request_id=NASTY, attributes={"x": ACTS})
        command_id = registry.create_command(NASTY, NASTY, context=context, idempotency_key=NASTY).command_id
        registry.complete_command(command_id, CommandState.FAILED, NOON, error={ACTS: ACTS}, context=context)
        until(lambda: len(list(registry.export())) == 2)
    if "verify" in arguments:
        # Somebody broke the row, so that the verification tells what is in it.
        connection.execute("UPDATE command_registry.command_status_v1 SET command = %s", (ACTS.replace("\x00", ""),))
    nasty = ACTS.replace("\x00", "").replace("/", "")
    call = [each.format(id=command_id, nasty=nasty) for each in arguments.split()]
    shown = on_terminal(dsn, *call)
    text = _RICH.sub("", shown.text).replace("\r\n", "\n").replace("\r", "")
    acting = set(text).intersection(ACTING) - {"\n"}
    assert not acting, (acting, text)
    assert "\x1b[31m\\x9b31m" not in shown.text
    if shown.status == 0 and "verify" not in arguments and "projections" not in arguments:
        assert re.search(r"\\u202[eE]", text), text
    if "--json" in arguments or arguments == "export":
        begun = text[re.search(r"^[{\[]", text, re.MULTILINE).start() :]  # type: ignore[union-attr]
        by_line = "tail" in arguments or "export" in arguments
        lines = [line for line in begun.splitlines() if line.startswith("{")] if by_line else [begun]
        told = [json.loads(line) for line in lines]
        assert told
        if arguments == "export":
            assert told[1]["data"]["error"] == {ACTS: ACTS}
            assert told[0]["metadata"]["actor"] == NASTY


def test_what_goes_to_a_pipe_is_exact(dsn: str) -> None:
    with PostgresCommandRegistry.open(dsn) as registry:
        command_id = registry.create_command(NASTY, NASTY).command_id
        registry.complete_command(command_id, CommandState.FAILED, NOON, error={ACTS: ACTS})
        events = until(lambda: found if len(found := list(registry.export())) == 2 else [])
    for call in (["export"], ["tail", "--json"]):
        lines = run(dsn, *call).stdout.splitlines()
        assert [json.loads(line)["data"] for line in lines] == [json.loads(event.data) for event in events]
        assert all(event.data.encode() in line for event, line in zip(events, lines, strict=True))
    assert json.loads(run(dsn, "status", command_id, "--json").stdout)["error"] == {ACTS: ACTS}


@given(
    st.text(st.characters(exclude_categories=[])),
    st.recursive(
        st.text(st.characters(exclude_categories=["Cs"])),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=3)
        ),
    ),
)
def test_what_is_made_visible_does_not_act_and_json_stays_the_same(text: str, value: Any) -> None:
    assert not set(visible(text)).intersection(ACTING) - {"\n", "\t"}
    visible(text).encode()
    written = visible_json(json.dumps(value, ensure_ascii=False).encode())
    assert not set(written.decode()).intersection(ACTING)
    assert json.loads(written) == value
