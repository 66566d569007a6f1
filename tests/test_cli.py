import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from psycopg.sql import SQL, Identifier
from typer.testing import CliRunner, Result

from registry import CommandState, Deployment, DeploymentModel, PostgresCommandRegistry
from registry.cli.app import app
from registry.cli.errors import one_line, without_secrets
from tests.waiting import until

COMMANDS = [
    "demo", "migrate", "doctor", "create", "dispatch", "update", "complete", "increment", "expire",
    "status", "history", "verify", "export", "tail", "rpc",
]  # fmt: skip
PRINTS_JSON = [name for name in COMMANDS if name not in ("export", "rpc")]
PROGRAM = [sys.executable, "-m", "registry.cli"]


class CommandLine:
    """Calls the command line on a database; the environment names the database."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn

    def call(self, *arguments: str) -> Result:
        environment = {"COMMAND_REGISTRY_DSN": self.dsn, "TERMINAL_WIDTH": "100"}
        return CliRunner(env=environment).invoke(app, list(arguments), prog_name="command-registry")

    def text(self, *arguments: str) -> str:
        result = self.call(*arguments)
        assert result.exit_code == 0, result.output
        return result.stdout

    def json(self, *arguments: str) -> Any:
        return json.loads(self.text(*arguments, "--json"))

    def error(self, *arguments: str, status: int = 1) -> str:
        """The one line on stderr of a call that fails."""
        result = self.call(*arguments)
        assert result.exit_code == status, result.output
        assert re.fullmatch(r"error: [^\n]+\n", result.stderr), result.stderr
        return result.stderr

    def create(self, *options: str) -> str:
        return self.text("create", "dep_eu1", "sync-data", "--quiet", *options).strip()


@pytest.fixture
def cli(dsn: str) -> CommandLine:
    return CommandLine(dsn)


@pytest.fixture
def empty(empty_dsn: str) -> CommandLine:
    return CommandLine(empty_dsn)


@pytest.fixture
def nobody(dsn: str, connection: psycopg.Connection[Any]) -> Iterator[str]:
    """The DSN of a user that has no rights."""
    name = f"nobody_{uuid.uuid4().hex}"
    connection.execute(SQL("CREATE ROLE {} LOGIN").format(Identifier(name)))
    yield make_conninfo(dsn, user=name)
    connection.execute(SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(Identifier(name)))


def start(dsn: str, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    environment = os.environ | {"COMMAND_REGISTRY_DSN": dsn}
    environment.pop("PYTHONUNBUFFERED", None)
    settings: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environment} | options
    process: subprocess.Popen[bytes] = subprocess.Popen([*PROGRAM, *arguments], **settings)
    return process


# Help


def test_the_help_names_every_command_and_says_what_comes_first() -> None:
    result = CommandLine("").call("--help")
    assert result.exit_code == 0
    assert all(re.search(rf"^│ {name} ", result.stdout, re.MULTILINE) for name in COMMANDS)
    assert "Start here" in result.stdout
    assert "command-registry migrate" in result.stdout


def test_without_a_command_the_help_is_shown() -> None:
    assert CommandLine("").call().stdout == CommandLine("").call("--help").stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_has_an_example_of_it_and_the_common_options(name: str) -> None:
    text = CommandLine("").call(name, "--help").stdout
    assert re.search(rf"Examples?: +\n.*(\$ |\| )command-registry {name}\b", text, re.DOTALL)
    assert "--dsn" in text
    assert "COMMAND_REGISTRY_DSN" in text
    assert "--pooler" in text
    assert "COMMAND_REGISTRY_POOLER" in text
    assert "--debug" in text
    assert ("--json" in text) == (name in PRINTS_JSON)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_examples_of_the_help_fit_on_a_line_of_80_characters(name: str) -> None:
    result = CliRunner(env={"TERMINAL_WIDTH": "80"}).invoke(app, [name, "--help"])
    examples = re.search(r"Examples?: +\n(.*?)\n +\n", result.stdout, re.DOTALL)
    assert examples is not None
    assert all(line.startswith(" $ ") for line in examples[1].splitlines())


def test_the_version_is_told() -> None:
    assert re.fullmatch(r"command-registry \d+\.\d+\.\d+\n", CommandLine("").text("--version"))


# The life of a command


def test_a_command_lives_from_create_to_complete(cli: CommandLine) -> None:
    command_id = cli.create("--request-size-bytes", "12")
    assert cli.text("dispatch", command_id) == f"{command_id} is DISPATCHED\n"
    assert cli.text("update", command_id, "pending") == f"{command_id} is PENDING\n"
    assert cli.text("increment", command_id) == f"{command_id} is at attempt 2\n"
    assert cli.text("complete", command_id, "SUCCEEDED", "--response-size-bytes", "5") == f"{command_id} is SUCCEEDED\n"
    status = cli.json("status", command_id)
    assert (status["state"], status["attempt"]) == ("SUCCEEDED", 2)
    assert (status["request_size_bytes"], status["response_size_bytes"]) == (12, 5)


def test_create_tells_what_it_made(cli: CommandLine) -> None:
    text = cli.text("create", "dep_eu1", "sync-data")
    assert re.search(r"^command id +cmd_[0-9a-z]{28}$", text, re.MULTILINE)
    assert re.search(r"^delivery +pull$", text, re.MULTILINE)


def test_json_is_the_model_with_nulls_written_out(cli: CommandLine, dsn: str) -> None:
    created = cli.json("create", "dep_eu1", "sync-data")
    assert set(created) == {"command_id", "deployment_model", "project_id", "target", "delivery_mode"}
    status = cli.json("status", created["command_id"])
    with PostgresCommandRegistry.open(dsn) as registry:
        expected = registry.get_command_status(created["command_id"])
    assert expected is not None
    assert status == expected.model_dump(mode="json")
    assert status["deadline"] is None
    assert status["created_at"].endswith("Z")


def test_true_and_false_are_told_in_json(cli: CommandLine) -> None:
    command_id = cli.create()
    assert cli.json("dispatch", command_id) == {"applied": True}
    assert cli.json("increment", command_id) == {"attempt": 2}
    assert cli.json("complete", command_id, "FAILED", "--error", '{"code": "X"}') == {"applied": True}
    assert cli.json("complete", command_id, "SUCCEEDED") == {"applied": False}
    assert cli.json("update", command_id, "EXPIRED") == {"applied": False}
    assert cli.json("dispatch", command_id) == {"applied": False}
    assert cli.json("status", command_id)["error"] == {"code": "X"}


def test_what_is_final_already_is_told_and_no_failure(cli: CommandLine) -> None:
    command_id = cli.create()
    cli.text("complete", command_id, "expired")
    expected = f"not applied: {command_id} is EXPIRED already, and stays so\n"
    assert cli.text("complete", command_id, "SUCCEEDED") == expected


def test_a_deadline_is_an_instant_or_a_duration_from_now(cli: CommandLine) -> None:
    exact = cli.create("--deadline", "2031-02-03T04:05:06+01:00")
    assert cli.json("status", exact)["deadline"] == "2031-02-03T03:05:06Z"
    before = datetime.now(UTC)
    deadline = cli.json("status", cli.create("--deadline", "1d2h30m"))["deadline"]
    late = datetime.fromisoformat(deadline) - timedelta(days=1, hours=2, minutes=30)
    assert before <= late <= datetime.now(UTC)


@pytest.mark.parametrize("deadline", ["tomorrow", "2026-11-24T10:00:00", "30", "-5m", "1h ", "999999999w", ""])
def test_a_bad_deadline_is_a_usage_error(cli: CommandLine, deadline: str) -> None:
    error = cli.error("create", "dep_eu1", "sync-data", f"--deadline={deadline}", status=2)
    assert "--deadline" in error
    assert "command-registry create --help" in error


def test_the_same_idempotency_key_answers_with_the_first_command(cli: CommandLine) -> None:
    assert cli.create("--idempotency-key", "k") == cli.create("--idempotency-key", "k")
    assert "choose a new key" in cli.error("create", "dep_eu1", "other", "--idempotency-key", "k")


def test_deployments_may_be_those_of_the_table(cli: CommandLine, dsn: str) -> None:
    assert "--deployments any" in cli.error("create", "dep_eu1", "sync-data", "--deployments", "table")
    with PostgresCommandRegistry.open(dsn) as registry:
        registry.deployment_table.put(
            Deployment(id="dep_eu1", workspace_id="w", project_id="p", deployment_model=DeploymentModel.PUSH, name="eu")
        )
    created = cli.json("create", "dep_eu1", "sync-data", "--deployments", "table")
    assert (created["project_id"], created["delivery_mode"]) == ("p", "push")


def test_expire_prints_the_ids_that_it_expired(cli: CommandLine) -> None:
    first, second = cli.create("--deadline", "1h"), cli.create("--deadline", "2h")
    assert cli.json("expire") == {"expired": []}
    assert cli.text("expire", "--now", "2999-01-01T00:00:00Z", "--limit", "1").startswith(f"{first}\n1 expired; ")
    assert cli.json("expire", "--now", "2999-01-01T00:00:00Z") == {"expired": [second]}
    assert cli.json("status", second)["state"] == "EXPIRED"


# Who did it


def test_writes_are_recorded_with_who_did_them(cli: CommandLine) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    command_id = cli.create("--actor", "ada", "--request-id", "r1", "--traceparent", trace)
    cli.text("dispatch", command_id)
    told, default = (entry["context"] for entry in cli.json("history", command_id))
    assert told == {"actor": "ada", "request_id": "r1", "traceparent": trace, "attributes": {}}
    assert re.fullmatch(r"cli:.+", default["actor"])
    assert "traceparent" in cli.error("dispatch", command_id, "--traceparent", "x")


# Reading


def test_status_and_history_are_aligned_lines_without_colours_when_piped(cli: CommandLine) -> None:
    command_id = cli.create("--request-id", "r" * 200)
    cli.text("complete", command_id, "failed", "--error", json.dumps({"message": "[red]long " * 50}))
    for text in (cli.text("status", command_id), cli.text("history", command_id)):
        assert "\x1b" not in text
        assert command_id in text
        assert "[red]long [red]long" in text
        assert not any(line.endswith(" ") for line in text.splitlines())
    lines = cli.text("history", command_id).splitlines()
    assert len(lines) == 4
    assert "r" * 200 in lines[2]
    assert "PENDING -> FAILED" in lines[3]


def test_history_in_json_has_all_that_is_stored(cli: CommandLine, dsn: str) -> None:
    command_id = cli.create()
    with PostgresCommandRegistry.open(dsn) as registry:
        expected = [entry.model_dump(mode="json") for entry in registry.history(command_id)]
    assert cli.json("history", command_id) == expected


def test_status_at_a_version_and_at_an_instant(cli: CommandLine) -> None:
    command_id = cli.create()
    cli.text("dispatch", command_id)
    created, dispatched = (entry["occurred_at"] for entry in cli.json("history", command_id))
    assert cli.json("status", command_id, "--version", "1")["state"] == "PENDING"
    assert cli.json("status", command_id, "--at", created)["state"] == "PENDING"
    assert cli.json("status", command_id, "--at", dispatched)["state"] == "DISPATCHED"
    assert "is at version 2" in cli.error("status", command_id, "--version", "3")
    assert "was not there at 2001" in cli.error("status", command_id, "--at", "2001-01-01T00:00:00Z")
    assert "not both" in cli.error("status", command_id, "--at", created, "--version", "1", status=2)


@pytest.mark.parametrize(
    "arguments", [["status"], ["history"], ["dispatch"], ["increment"], ["update", "PENDING"], ["complete", "FAILED"]]
)
def test_an_unknown_id_is_an_error(cli: CommandLine, arguments: list[str]) -> None:
    assert "no command 'cmd_none'" in cli.error(arguments[0], "cmd_none", *arguments[1:])


def test_a_forbidden_transition_says_where_the_command_can_go(cli: CommandLine) -> None:
    error = cli.error("update", cli.create(), "SUCCEEDED")
    assert "from PENDING to SUCCEEDED: from there it can go to DISPATCHED, FAILED, EXPIRED" in error
    assert "`complete`" in error


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["creat"], "No such command 'creat'"),
        (["create", "dep_eu1"], "Missing argument 'NAME'"),
        (["create", "--nope"], "No such option"),
        (["update", "cmd_x", "LOST"], "'LOST' is none of PENDING_UPLOAD, PENDING, DISPATCHED"),
        (["complete", "cmd_x", "PENDING"], "'PENDING' is none of SUCCEEDED, FAILED, EXPIRED"),
        (["complete", "cmd_x", "FAILED", "--error", "{bad"], "is not JSON"),
        (["complete", "cmd_x", "FAILED", "--error", "[" * 100_000], "is not JSON"),
        (["export", "--after", "12"], "TRANSACTION_ID:POSITION"),
        (["status", "cmd_x", "--at", "noon"], "RFC 3339"),
        (["status", "cmd_x", "--pooler", "session"], "'session' is not one of 'transaction'"),
        (["--pooler", "session", "status", "cmd_x"], "'session' is not one of 'transaction'"),
        (["rpc", "--memory", "--dsn", "dbname=x"], "--memory"),
        (["rpc", "--memory", "--pooler", "transaction"], "--memory"),
        (["--pooler", "transaction", "rpc", "--memory"], "--memory"),
    ],
)
def test_a_usage_error_is_one_line_that_names_the_help(arguments: list[str], said: str) -> None:
    error = CommandLine("").error(*arguments, status=2)
    assert said in error
    assert "--help)" in error


def test_a_value_that_cannot_be_accepted_is_named(cli: CommandLine) -> None:
    assert "error: must not hold NaN" not in cli.error("create", "", "sync-data")
    assert "nan" in cli.error("complete", cli.create(), "FAILED", "--error", "NaN")
    assert "64 bits" in cli.error("complete", cli.create(), "FAILED", "--error", "99999999999999999999")


# The database


def test_an_unreachable_server_is_told_in_one_line() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        error = CommandLine("").error("status", "x", "--dsn", f"host=127.0.0.1 port={port} connect_timeout=2")
    assert "cannot connect to Postgres" in error
    assert "--dsn" in error


def test_a_database_without_a_registry_names_the_command_to_run(empty: CommandLine) -> None:
    assert "run: command-registry migrate" in empty.error("status", "x")


def test_the_dsn_may_stand_before_the_command_and_beats_the_environment(dsn: str, empty_dsn: str) -> None:
    empty = CommandLine(empty_dsn)
    assert empty.call("--dsn", dsn, "create", "d", "n").exit_code == 0
    assert empty.call("create", "d", "n", "--dsn", dsn).exit_code == 0
    assert empty.call("--dsn", empty_dsn, "create", "d", "n", "--dsn", dsn).exit_code == 0
    assert CommandLine(dsn).call("--dsn", empty_dsn, "create", "d", "n").exit_code == 1


def test_a_pooler_may_be_named_before_the_command_after_it_or_by_the_environment(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.call("--pooler", "transaction", "create", "d", "n").exit_code == 0
    assert cli.call("create", "d", "n", "--pooler", "transaction").exit_code == 0
    monkeypatch.setenv("COMMAND_REGISTRY_POOLER", "transaction")
    assert cli.call("create", "d", "n").exit_code == 0
    monkeypatch.setenv("COMMAND_REGISTRY_POOLER", "session")
    assert "COMMAND_REGISTRY_POOLER" in cli.error("create", "d", "n", status=2)
    assert cli.call("create", "d", "n", "--pooler", "transaction").exit_code == 0


def test_a_user_without_rights_is_told_which_role_to_ask_for(nobody: str, connection: psycopg.Connection[Any]) -> None:
    user = psycopg.conninfo.conninfo_to_dict(nobody)["user"]
    cli = CommandLine(nobody)
    assert f'GRANT command_registry_reader TO "{user}"' in cli.error("status", "x")
    assert f'GRANT command_registry_writer TO "{user}"' in cli.error("create", "d", "n")
    assert "owner" in cli.error("migrate")
    connection.execute(SQL("GRANT command_registry_reader TO {}").format(Identifier(str(user))))
    assert "no command" in cli.error("status", "x")
    assert "permission denied" in cli.error("create", "d", "n")
    connection.execute(SQL("GRANT command_registry_writer TO {}").format(Identifier(str(user))))
    assert cli.json("verify")["ok"]
    cli.create()


def test_a_damaged_schema_points_to_the_doctor(cli: CommandLine, connection: psycopg.Connection[Any]) -> None:
    connection.execute("DROP TABLE command_registry.idempotency_keys")
    assert "command-registry doctor" in cli.error("create", "d", "n", "--idempotency-key", "k")


@pytest.mark.parametrize("where", ["before", "after", "environment"])
def test_a_dsn_that_cannot_be_read_is_a_usage_error_and_not_repeated(where: str) -> None:
    bad = "ada:s3cret@host/db"
    match where:
        case "before":
            error = CommandLine("").error("--dsn", bad, "status", "x", status=2)
        case "after":
            error = CommandLine("").error("status", "x", "--dsn", bad, "--debug", status=2)
        case _:
            error = CommandLine(bad).error("status", "x", status=2)
    assert "postgresql://USER@HOST:PORT/DATABASE" in error
    assert "s3cret" not in error


def test_the_password_of_a_dsn_is_never_printed() -> None:
    for dsn in ("postgresql://ada:s3cr%26t@127.0.0.1:1/db", "host=127.0.0.1 port=1 user=ada password=s3cr&t"):
        for arguments in (["status", "x"], ["--debug", "status", "x"], ["doctor", "--debug"], ["migrate"]):
            result = CommandLine(dsn).call(*arguments)
            assert result.exit_code == 1
            assert "s3cr" not in result.output


def test_secrets_are_taken_out_of_any_text() -> None:
    dsn = "postgresql://ada:s3cr%26t@host/db"
    assert without_secrets(f"{dsn} s3cr&t s3cr%26t", dsn) == "*** *** ***"
    assert without_secrets("ada", "postgresql://ada:ada@host/db") == "ada"
    assert one_line("a\n\tb\x1b[31m\r\nc  d") == "a b [31m c  d"


def test_a_traceback_is_shown_with_debug_alone(cli: CommandLine) -> None:
    assert "Traceback" not in cli.call("status", "x").stderr
    for arguments in (["status", "x", "--debug"], ["--debug", "status", "x"]):
        result = cli.call(*arguments)
        assert result.exit_code == 1
        assert "Traceback" in result.stderr
        assert result.stderr.splitlines()[-1].startswith("error: no command 'x'")


# Migrating


def test_migrate_creates_what_is_missing_and_says_what_it_did(empty: CommandLine) -> None:
    text = empty.text("migrate")
    assert "version 2 installed" in text
    assert "created, and built from 0 events" in text
    assert empty.create()
    again = empty.json("migrate")
    assert (again["schema_version"], again["schema_version_before"]) == (2, 2)
    assert (again["read_model_created"], again["events_folded"], again["notices"]) == (False, 0, [])


def test_migrate_builds_a_missing_read_model_from_the_log(
    cli: CommandLine, connection: psycopg.Connection[Any]
) -> None:
    command_id = cli.create()
    cli.text("dispatch", command_id)
    before = cli.json("status", command_id)
    connection.execute("DROP TABLE command_registry.command_status_v1 CASCADE")
    assert "run: command-registry migrate" in cli.error("status", command_id)
    migrated = cli.json("migrate")
    assert (migrated["read_model_created"], migrated["events_folded"]) == (True, 2)
    assert cli.json("status", command_id) == before


def test_migrate_passes_on_what_the_server_warns_of(dsn: str, connection: psycopg.Connection[Any]) -> None:
    connection.execute(
        """
        CREATE FUNCTION warn() RETURNS event_trigger LANGUAGE plpgsql
        AS $$ BEGIN RAISE WARNING 'roles are missing' USING HINT = 'ask'; END $$;
        CREATE EVENT TRIGGER warn ON ddl_command_end WHEN TAG IN ('GRANT') EXECUTE FUNCTION warn();
        """
    )
    result = CommandLine(dsn).call("migrate")
    assert result.exit_code == 0
    assert "warning: roles are missing: ask\n" in result.stderr
    assert "roles are missing: ask" in CommandLine(dsn).json("migrate")["notices"]


# Proof


def tamper(connection: psycopg.Connection[Any], command_id: str, version: int) -> None:
    connection.execute("ALTER TABLE command_registry.events DISABLE TRIGGER events_refuse_change")
    connection.execute(
        "UPDATE command_registry.events SET data = replace(data::text, 'PENDING', 'PENDINg')::json "
        "WHERE stream_id = %s AND version = %s",
        (command_id, version),
    )
    connection.execute("ALTER TABLE command_registry.events ENABLE ALWAYS TRIGGER events_refuse_change")


def test_verify_gives_its_figures(cli: CommandLine) -> None:
    cli.text("dispatch", cli.create())
    cli.create()
    text = cli.text("verify")
    assert "everything is as it was written" in text
    assert re.search(r"^events +3$", text, re.MULTILINE)
    figures = cli.json("verify")
    assert (figures["ok"], figures["events"], figures["streams"], figures["rows"]) == (True, 3, 2, 2)
    assert figures["problems"] == []


def test_verify_names_the_command_and_version_of_a_changed_event(
    cli: CommandLine, connection: psycopg.Connection[Any]
) -> None:
    command_id = cli.create()
    cli.text("dispatch", command_id)
    cli.create()
    tamper(connection, command_id, 2)
    result = cli.call("verify")
    assert result.exit_code == 1
    assert f"stream {command_id}, version 2: the hash does not match" in result.stdout
    assert result.stderr == ""
    result = cli.call("verify", "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert not found["ok"]
    assert (found["problems"][0]["stream_id"], found["problems"][0]["version"]) == (command_id, 2)


def exported(cli: CommandLine, count: int, *options: str) -> list[Any]:
    """The log, once no transaction of a neighbouring test holds any of it back."""

    def lines() -> list[str]:
        found = cli.text("export", *options).splitlines()
        return found if len(found) == count else []

    return [json.loads(line) for line in until(lines, f"{count} events")]


def test_export_gives_the_log_line_by_line_and_says_where_it_ended(cli: CommandLine, tmp_path: Path) -> None:
    command_id = cli.create()
    cli.text("dispatch", command_id)
    first, second = exported(cli, 2)
    assert (first["stream_id"], first["version"], second["version"]) == (command_id, 1, 2)
    assert second["data"]["to_state"] == "DISPATCHED"
    file = tmp_path / "log.jsonl"
    result = cli.call("export", "--output", str(file))
    assert result.stdout == ""
    place = f"{second['transaction_id']}:{second['position']}"
    assert result.stderr == f"2 events exported; to go on later: --after {place}\n"
    assert [json.loads(line) for line in file.read_text().splitlines()] == [first, second]
    assert exported(cli, 1, "--after", f"{first['transaction_id']}:{first['position']}") == [second]


def test_export_says_how_many_events_wait_for_an_open_transaction(
    cli: CommandLine, connection: psycopg.Connection[Any]
) -> None:
    with connection.transaction():
        connection.execute("SELECT pg_current_xact_id()")
        cli.create()
        result = cli.call("export")
    assert result.stdout == ""
    assert "0 events exported\n1 more wait for an open transaction" in result.stderr


def test_an_output_file_that_cannot_be_written_is_named(cli: CommandLine, tmp_path: Path) -> None:
    file = tmp_path / "missing" / "log.jsonl"
    assert f"cannot write {file}: No such file or directory" in cli.error("export", "-o", str(file))


# Processes


def test_a_reader_that_goes_away_ends_an_export_quietly(cli: CommandLine, dsn: str) -> None:
    with PostgresCommandRegistry.open(dsn) as registry:
        for number in range(300):  # more than a pipe holds
            registry.create_command("dep_eu1", f"{number}" + "x" * 200, CommandState.PENDING)
    exported(cli, 300)
    process = start(dsn, "export")
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() != 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("command", [["verify"], ["export"], ["doctor", "--quick", "--json"]])
def test_a_full_disk_is_told_in_one_line(cli: CommandLine, dsn: str, command: list[str]) -> None:
    cli.create()
    with Path("/dev/full").open("wb") as full:
        process = start(dsn, *command, stdout=full)
        _, stderr = process.communicate()
    assert process.returncode == 1
    assert stderr == b"error: No space left on device\n"


def test_an_interrupt_ends_with_status_130_and_without_a_traceback(dsn: str) -> None:
    with psycopg.connect(dsn) as blocker, psycopg.connect(dsn, autocommit=True) as observer:
        blocker.execute("LOCK TABLE command_registry.command_status_v1 IN ACCESS EXCLUSIVE MODE")
        process = start(dsn, "status", "cmd_x")
        waiting = (
            "SELECT FROM pg_stat_activity "
            "WHERE datname = current_database() AND wait_event_type = 'Lock' AND application_name = 'command-registry'"
        )
        until(lambda: observer.execute(waiting).fetchall(), "status to wait for the lock")
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=20)
    assert (process.returncode, stdout, stderr) == (130, b"", b"")


def test_without_a_dsn_the_embedded_postgres_is_used_and_keeps_what_was_written() -> None:
    with tempfile.TemporaryDirectory(prefix="crt-", dir="/tmp") as home:  # a short path: a socket goes into it
        Path(home).chmod(0o711)  # as root, the server runs under another account
        environment = os.environ | {"COMMAND_REGISTRY_HOME": home}
        environment.pop("COMMAND_REGISTRY_DSN", None)
        created = start("", "create", "d", "n", "--quiet", env=environment)
        command_id = created.communicate(timeout=120)[0].decode().strip()
        assert created.returncode == 0
        status = start("", "status", command_id, "--json", env=environment)
        assert json.loads(status.communicate(timeout=120)[0])["state"] == "PENDING"


def test_rpc_is_wired_to_stdin_and_stdout() -> None:
    request = b'{"jsonrpc":"2.0","id":1,"method":"create_command","params":{"deployment_id":"d","command_name":"n"}}\n'
    process = start("dbname=ignored", "rpc", "--memory", "--deployment-model", "push", stdin=subprocess.PIPE)
    try:
        stdout, stderr = process.communicate(request, timeout=60)
    finally:
        process.kill()
    assert (process.returncode, stderr) == (0, b"")
    assert json.loads(stdout)["result"]["delivery_mode"] == "push"


def test_the_demo_is_wired(cli: CommandLine) -> None:
    assert cli.call("demo", "--commands", "20", "--seed", "1", "--json").exit_code == 0
    assert cli.json("verify")["ok"]
