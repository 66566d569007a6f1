"""`command-registry projections ...`, as somebody at a terminal or a script uses it."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from typer.testing import CliRunner

from registry import PostgresCommandRegistry
from registry.cli.app import app
from tests.observing import until_named
from tests.test_cli import CommandLine, start
from tests.waiting import until

GROUP = ["rebuild", "status", "run", "switch", "prune", "skip"]

MODULE = """
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

from projections import Projection, StreamProjection
from registry.command_status import CommandStatusProjection


class Next(CommandStatusProjection):
    version = 2


class ByType(Projection[tuple[str, int]]):
    name = "events_by_type"
    version = 1
    columns: ClassVar[Mapping[str, str]] = MappingProxyType({"type": "text", "events": "bigint"})

    def key(self, event):
        return event.type

    def fold(self, state, event):
        if event.type == POISON:
            raise ValueError("too bitter")
        return event.type, (state[1] if state else 0) + 1

    def row(self, state):
        return state

    def state(self, row):
        return tuple(row)


POISON = None


class Bitter(ByType):
    name = "bitter"

    def fold(self, state, event):
        if event.type == "AttemptIncremented":
            raise ValueError("too bitter")
        return super().fold(state, event)
"""


@pytest.fixture
def cli(dsn: str) -> CommandLine:
    return CommandLine(dsn)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """A module of the user's in the current directory; gives references to its classes. No two have one name."""
    name = f"own_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent.parent), str(tmp_path)]))
    return lambda kind: f"{name}:{kind}"


@pytest.fixture
def commands(dsn: str) -> list[str]:
    """Five commands of a database, with 11 events."""
    with PostgresCommandRegistry.open(dsn) as registry:
        ids = [registry.create_command("dep", "sync").command_id for _ in range(5)]
        for command_id in ids + ids[:1]:
            registry.increment_attempt(command_id)
    return ids


def states(cli: CommandLine) -> dict[str, dict[str, Any]]:
    found: list[dict[str, Any]] = cli.json("projections", "status")["projections"]
    return {f"{each['name']}_v{each['version']}": each for each in found}


@contextmanager
def running(dsn: str, *arguments: str) -> Iterator[Any]:
    process = start(dsn, "projections", "run", *arguments)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("name", GROUP)
def test_the_help_of_a_command_has_an_example_of_it_and_the_common_options(name: str) -> None:
    result = CliRunner(env={"TERMINAL_WIDTH": "100"}).invoke(app, ["projections", name, "--help"])
    assert result.exit_code == 0
    assert f"$ command-registry projections {name}" in result.stdout
    assert "COMMAND_REGISTRY_DSN" in result.stdout


def test_without_a_command_the_group_shows_its_help() -> None:
    result = CliRunner().invoke(app, ["projections"])
    assert all(f" {name} " in result.output for name in GROUP)


# Rebuilding.


def test_a_version_in_force_is_repaired_in_place_and_no_other_class_takes_its_name(
    cli: CommandLine, commands: list[str], own: Callable[[str], str], connection: psycopg.Connection[Any]
) -> None:
    with pytest.raises(AssertionError, match="is taken by CommandStatusProjection"):
        cli.text("projections", "rebuild", "command_status", "--projections", own("Next"))
    text = cli.text("projections", "rebuild", "command_status")
    assert "command_registry.command_status_v1" in text
    assert "repaired in place" in text
    assert "11" in text
    view = "SELECT command_id, attempt FROM command_registry.command_status ORDER BY command_id"
    assert [attempt for _, attempt in connection.execute(view)] == [3, 2, 2, 2, 2]


def test_a_projection_of_the_users_own_is_built_switched_and_queried(
    cli: CommandLine, commands: list[str], own: Callable[[str], str], connection: psycopg.Connection[Any]
) -> None:
    options = ("events_by_type", "--projections", own("ByType"), "--verify", "full")
    found = cli.json("projections", "rebuild", *options)
    assert (found["table"], found["switched"], found["drained"]) == ("command_registry.events_by_type_v1", True, True)
    assert found["compared"] == 2
    rows = connection.execute("SELECT * FROM command_registry.events_by_type ORDER BY 1").fetchall()
    assert rows == [("AttemptIncremented", 6), ("CommandCreated", 5)]
    assert states(cli)["events_by_type_v1"]["in_force"]
    assert "it cannot be built anew in place" in cli.error("projections", "rebuild", *options)


def test_with_no_switch_the_new_one_waits_for_its_switch(
    cli: CommandLine, commands: list[str], own: Callable[[str], str]
) -> None:
    module = own("").rstrip(":")
    Path(f"{module}.py").write_text(MODULE.replace('name = "bitter"', 'name = "events_by_type"\n    version = 2'))
    first = ("events_by_type", "--projections", own("ByType"))
    cli.text("projections", "rebuild", *first)
    Path(f"{module}_two.py").write_text(
        MODULE.replace('name = "events_by_type"\n    version = 1', 'name = "events_by_type"\n    version = 2')
    )
    second = ("events_by_type", "--projections", f"{module}_two:ByType")
    assert "not in force" in cli.text("projections", "rebuild", *second, "--no-switch")
    assert not states(cli)["events_by_type_v2"]["in_force"]
    assert "events_by_type_v2" in cli.text("projections", "switch", *second)
    assert states(cli)["events_by_type_v2"]["in_force"]
    assert "before    events_by_type_v2" in cli.text("projections", "switch", *second, "--version", "1")
    assert "no whole read model events_by_type, version 7" in cli.error(
        "projections", "switch", *second, "--version", "7"
    )
    assert cli.json("projections", "prune", "--yes", "--observe", "0") == {"dropped": [], "kept": []}  # it is newer
    named = ("projections", "prune", "events_by_type", "--observe", "0")
    assert "confirm with --yes" in cli.error(*named)
    assert cli.json(*named, "--yes") == {"dropped": ["events_by_type_v2"], "kept": []}
    assert "events_by_type_v2" not in states(cli)
    assert cli.json("projections", "prune", "--yes", "--observe", "0") == {"dropped": [], "kept": []}


@pytest.mark.parametrize(
    ("reference", "problem"),
    [
        ("nowhere_at_all:Thing", "cannot be imported"),
        ("registry.models:Nothing", "cannot be imported"),
        ("registry.models:CommandStatus", "is no Projection"),
        ("", "cannot be imported"),
    ],
)
def test_a_reference_that_leads_nowhere_is_told(cli: CommandLine, reference: str, problem: str) -> None:
    assert problem in cli.error("projections", "run", "--once", "--projections", reference)


def test_an_unknown_name_gets_a_list_of_those_there_are(cli: CommandLine) -> None:
    error = cli.error("projections", "rebuild", "nix")
    assert "no projection is called 'nix'; there are: command_status" in error


@pytest.mark.parametrize("name", ["status", "run"])
def test_a_database_without_the_schema_is_told_to_migrate(empty_dsn: str, name: str) -> None:
    assert "run: command-registry migrate" in CommandLine(empty_dsn).error("projections", name)


# Following.


def test_run_once_makes_what_is_missing_and_ends_when_it_has_caught_up(
    cli: CommandLine, commands: list[str], own: Callable[[str], str], connection: psycopg.Connection[Any]
) -> None:
    result = cli.call("projections", "run", "events_by_type", "--once", "--projections", own("ByType"))
    assert result.exit_code == 0
    assert result.stderr == "following the log for events_by_type_v1\n"
    assert connection.execute("SELECT sum(events) FROM command_registry.events_by_type").fetchone() == (11,)
    assert states(cli)["events_by_type_v1"]["lag_events"] == 0
    assert states(cli)["events_by_type_v1"]["owner"] is None


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_projector_that_is_told_to_stop_lets_go_of_its_lease(
    cli: CommandLine, commands: list[str], own: Callable[[str], str], number: signal.Signals, status: int
) -> None:
    with running(cli.dsn, "events_by_type", "--projections", own("ByType")) as process:
        until(lambda: states(cli).get("events_by_type_v1", {}).get("owner"), "somebody to lead")
        process.send_signal(number)
        assert process.wait(20) == status
        assert states(cli)["events_by_type_v1"]["owner"] is None
        assert b"Traceback" not in process.stderr.read()


def test_poison_is_told_shown_and_may_be_left_out(
    cli: CommandLine, commands: list[str], own: Callable[[str], str], connection: psycopg.Connection[Any]
) -> None:
    mine = ("--projections", own("Bitter"))
    with running(cli.dsn, "bitter", *mine) as process:
        error = until(lambda: states(cli).get("bitter_v1", {}).get("last_error"), "the error")
        assert error == (
            f"bitter_v1 cannot fold version 2 of stream {commands[0]!r} (AttemptIncremented): ValueError: too bitter"
        )
        assert "too bitter" in cli.text("projections", "status")
        for command_id in commands:
            skip = ("projections", "skip", "bitter", command_id, "2", "--reason", "a bad day", *mine)
            assert "noted" in cli.text(*skip)
        assert "noted before" in cli.text(*skip)
        until(lambda: "version 3" in (states(cli)["bitter_v1"]["last_error"] or ""), "the next poison")
        cli.text("projections", "skip", "bitter", commands[0], "3", "--reason", "and another", *mine)
        until(lambda: states(cli)["bitter_v1"]["lag_events"] == 0, "it to catch up")
        assert states(cli)["bitter_v1"]["skipped"] == 6
        process.terminate()
        assert b"too bitter" in process.communicate()[1]
    assert connection.execute("SELECT * FROM command_registry.bitter").fetchall() == [("CommandCreated", 5)]
    reasons = connection.execute("SELECT DISTINCT reason FROM command_registry.projection_skips ORDER BY 1").fetchall()
    assert reasons == [("a bad day",), ("and another",)]
    assert "has no version 9" in cli.error("projections", "skip", "bitter", commands[0], "9", "--reason", "x", *mine)


# Looking.


def test_status_names_whoever_holds_readers_back(
    cli: CommandLine, dsn: str, commands: list[str], connection: psycopg.Connection[Any]
) -> None:
    with psycopg.connect(dsn) as other:
        other.execute("CREATE TEMPORARY TABLE held (n int)")
        until_named(connection, f"pid {other.info.backend_pid}")
        found = cli.json("projections", "status")["held_back_by"]
        assert found["name"] == f"pid {other.info.backend_pid}"
        assert found["database"] == other.info.dbname
        assert f"pg_terminate_backend({other.info.backend_pid})" in cli.text("projections", "status")
        other.rollback()
    until(lambda: cli.json("projections", "status")["held_back_by"] is None, "nobody to hold them back")


def test_watching_shows_it_again_until_it_is_interrupted(cli: CommandLine, commands: list[str]) -> None:
    process = start(cli.dsn, "projections", "status", "--watch", "--json")
    try:
        lines = [json.loads(process.stdout.readline()) for _ in range(2)]  # type: ignore[union-attr]
        assert [each["projections"][0]["name"] for each in lines] == ["command_status"] * 2
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    finally:
        process.kill()
        process.communicate()


def test_the_read_model_of_every_append_is_never_behind(cli: CommandLine, commands: list[str]) -> None:
    state = states(cli)["command_status_v1"]
    assert (state["phase"], state["lag_events"], state["in_force"]) == ("inline", None, True)
    cli.text("projections", "rebuild", "command_status")
    assert states(cli)["command_status_v1"]["phase"] == "inline"
