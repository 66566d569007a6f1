import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registry import CommandState, MemoryCommandRegistry, PostgresCommandRegistry
from registry.testing.contradictions import Contradiction
from registry.testing.histories import (
    HistoryError,
    check_history,
    concerning,
    exported,
    load_log,
    log_of,
    save_log,
)
from registry.testing.linearizability import Logged, check_against_log
from registry.testing.model import Refused
from registry.testing.recording import Operation, Recorder, load, save
from registry.testing.reducing import commands_of, reduced
from registry.testing.search import check_by_search
from registry.testing.timeline import as_text
from tests.test_testing.simulating import LATER, NOON, Script, Story, lies, status, stories, told


def stale() -> Script:
    """Give a history of many calls, of which two cannot be."""
    made = Script()
    events = [made.create(0, 1)]
    for number in range(1, 40):
        now = 10 * number
        events.append(made.call("increment_attempt", now, now + 5, number + 1, client="b"))
        made.call("get_command_status", now + 1, now + 9, status(attempt=number + 1, version=number + 1), client="c")
    made.call("get_command_status", 396, 397, status(attempt=39, version=39), client="d")
    return made.wrote(*events)


def test_a_history_that_can_be_explained_passes_and_nothing_is_written(tmp_path: Path) -> None:
    made = Script()
    made.wrote(made.create(0, 1))
    check_history(made.history, save_to=tmp_path / "never")
    check_history(made.history, made.log, save_to=tmp_path / "never")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("with_log", [True, False])
def test_an_error_tells_what_cannot_be_by_as_few_calls_as_possible_and_where_all_was_saved(
    tmp_path: Path, with_log: bool
) -> None:
    made, place = stale(), tmp_path / "a" / "b"
    with pytest.raises(HistoryError) as caught:
        check_history(made.history, made.log if with_log else None, save_to=place)
    error, message = caught.value, str(caught.value)
    assert error.saved == place
    assert len(error.contradictions) == 1
    assert message.startswith("the history is not linearizable:\n- command c1: ")
    assert len(re.findall(r"^\* ", message, re.MULTILINE)) <= 3
    assert "increment_attempt() → 40" in message
    assert "get_command_status() → status PENDING, attempt 39, version 39" in message
    names = {"history.jsonl", "timeline.svg"} | ({"log.jsonl"} if with_log else set())
    assert {each.name for each in place.iterdir()} == names
    assert load(place / "history.jsonl") == sorted(made.history, key=lambda operation: operation.start)
    assert (place / "timeline.svg").read_text("utf-8").startswith("<svg")
    if with_log:
        assert load_log(place / "log.jsonl") == made.log


def test_without_a_place_a_history_is_saved_in_a_new_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    made = stale()
    for count in (1, 2):
        with pytest.raises(HistoryError) as caught:
            check_history(made.history, made.log)
        assert caught.value.saved is not None
        assert re.match(r"command-registry-history-.+", caught.value.saved.name)
        assert f"saved in {caught.value.saved}: history.jsonl, timeline.svg, log.jsonl" in str(caught.value)
        assert len(list(tmp_path.iterdir())) == count


def test_a_history_that_cannot_be_saved_is_told_all_the_same(tmp_path: Path) -> None:
    made, place = stale(), tmp_path / "file"
    place.write_text("in the way")
    with pytest.raises(HistoryError, match="it could not be saved: ") as caught:
        check_history(made.history, made.log, save_to=place)
    assert caught.value.saved is None


def test_of_many_contradictions_five_are_told_and_how_many_more() -> None:
    made = stale()
    for number in range(8):
        made.call("get_command_status", 500 + number, 600, status(version=1), client="e")
    with pytest.raises(HistoryError, match=r"(?m)^- and 4 more$") as caught:
        check_history(made.history, made.log)
    assert len(caught.value.contradictions) == 9
    assert str(caught.value).count("\n- command c1: ") == 5


def contradictions(story: Story, *, with_log: bool) -> list[Contradiction]:
    return check_against_log(story.history, story.log) if with_log else check_by_search(story.history)


@settings(max_examples=200, deadline=None)
@given(stories(), lies, st.booleans())
def test_what_is_left_of_a_history_is_of_it_and_cannot_be_whatever_the_others_were(
    story: Story, some_lies: Any, with_log: bool
) -> None:
    story = told(story, some_lies)
    found = contradictions(story, with_log=with_log)
    if not found:
        return
    few, why = reduced(story.history, story.log if with_log else None, found[0])
    assert all(any(each is whole for whole in story.history) for each in few)
    assert why.command_id == found[0].command_id
    assert as_text(few, why)
    if not with_log and why.command_id is not None and "idempotency key" not in why.message:
        others = [each for each in story.history if not any(each is one for one in few)]
        may_have_been = [
            each
            for each in others
            if each.end is None or (why.command_id in commands_of(each) and not isinstance(each.answer, Refused))
        ]
        assert check_by_search([*few, *map(unknown, may_have_been)])


def unknown(operation: Operation) -> Operation:
    """Give a call of which nobody knows when it was made and whether."""
    return Operation(operation.request_id, operation.client, operation.call, operation.arguments, -1000)


def test_what_is_left_is_minimal() -> None:
    made = stale()
    for log in (made.log, None):
        [found] = check_by_search(made.history) if log is None else check_against_log(made.history, log)
        few, _ = reduced(made.history, log, found)
        assert {each.call for each in few} == {"increment_attempt", "get_command_status"}
        assert len(few) == (2 if log else 3) - (log is None)


def test_the_log_is_read_from_a_registry_in_memory() -> None:
    recorder = Recorder()
    memory = MemoryCommandRegistry()
    registry = recorder.client("a", memory)
    ids = [registry.create_command("dep", "x", deadline=NOON).command_id for _ in range(3)]
    registry.complete_command(ids[0], CommandState.FAILED, NOON)
    registry.expire_overdue(LATER)
    registry.increment_attempt(ids[1])
    log = exported(memory)
    assert sorted(log) == sorted(log_of(memory, ids))
    assert {each.request_id for each in log} <= {each.request_id for each in recorder.history()}
    check_history(recorder.history(), log)
    check_history(recorder.history())
    memory.create_command("dep", "somebody else's")
    with pytest.raises(HistoryError, match="has no request id"):
        check_history(recorder.history(), exported(memory))
    check_history(recorder.history(), concerning(recorder.history(), exported(memory)))


def test_concerning_keeps_the_events_of_all_commands_that_a_call_was_about() -> None:
    made = Script()
    made.call("expire_overdue", 0, 1, ["c2"], now=NOON)
    made.call("get_command_status", 0, 1, None, command_id="c3")
    made.create(0, None)
    events = [Logged("c2", 1, "x"), Logged("c3", 1, "y"), Logged("c4", 1, "r3"), Logged("c4", 2, None)]
    assert concerning(made.history, [*events, Logged("c5", 1, "z")]) == events


def test_a_log_is_read_as_it_was_saved_and_else_file_and_line_are_named(tmp_path: Path) -> None:
    file, log = tmp_path / "log.jsonl", [Logged("c1", 1, "r1"), Logged('"\n', 2, None)]
    save_log(log, file)
    assert load_log(file) == log
    for line in ("no JSON", "[]", "7", '{"command_id": "c"}', '{"command_id": 1, "version": 1, "request_id": null}'):
        file.write_text('{"command_id": "c", "version": 1, "request_id": null}\n' + line + "\n")
        with pytest.raises(ValueError, match=r"log.jsonl:2: no line of a log"):
            load_log(file)


# The command line.


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "registry.testing", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    made = stale()
    save(made.history, tmp_path / "bad.jsonl")
    save(made.history[:-1], tmp_path / "good.jsonl")
    save_log(made.log, tmp_path / "log.jsonl")
    return tmp_path


def test_a_saved_history_is_checked_again_and_drawn(saved: Path) -> None:
    for more in ([], ["--log", saved / "log.jsonl"]):
        done = run(saved / "bad.jsonl", "--svg", saved / "drawn.svg", *more)
        assert (done.returncode, done.stderr) == (1, "")
        assert done.stdout.startswith("- command c1: ")
        assert "╞" in done.stdout
        assert 'class="told"' in (saved / "drawn.svg").read_text("utf-8")


def test_a_saved_history_that_can_be_explained_is_told_to_be_fine(saved: Path) -> None:
    done = run(saved / "good.jsonl", "--svg", saved / "drawn.svg", "--log", saved / "log.jsonl")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "79 operations: one order explains every answer (by the 40 events of the log)\n"
    assert (saved / "drawn.svg").exists()
    assert run(saved / "good.jsonl").stdout == "79 operations: one order explains every answer (by search)\n"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["nowhere.jsonl"], "cannot read nowhere.jsonl: No such file or directory"),
        (["broken.jsonl"], "broken.jsonl:2: no line of a history"),
        (["good.jsonl", "--log", "broken.jsonl"], "broken.jsonl:1: no line of a log"),
        (["good.jsonl", "--log", "log.jsonl", "--dsn", "x"], "give --log or --dsn, and not both"),
        (["good.jsonl", "--svg", "no/where.svg"], "cannot write no/where.svg: No such file or directory"),
        (["good.jsonl", "--dsn", "postgresql://u:secret@127.0.0.1:1/x?connect_timeout=1"], "127.0.0.1"),
        (["timeless.jsonl"], "does not tell `now`"),
    ],
)
def test_what_cannot_be_read_is_told_in_one_line(
    saved: Path, monkeypatch: pytest.MonkeyPatch, arguments: Sequence[str], error: str
) -> None:
    monkeypatch.chdir(saved)
    first, rest = Path("good.jsonl").read_text("utf-8").split("\n", 1)
    Path("broken.jsonl").write_text(f"{first}\n{{}}\n{rest}")
    timeless = Operation("r", "a", "expire_overdue", {}, 0, 1, [])
    save([timeless], Path("timeless.jsonl"))
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert error in done.stderr
    assert done.stderr.count("\n") == 1
    assert "secret" not in done.stderr


def test_the_help_teaches() -> None:
    done = run("--help")
    assert done.returncode == 0
    for each in ("--log", "--dsn", "--svg", "HISTORY.jsonl", "Exit status", "python -m registry.testing"):
        assert each in done.stdout
    assert run().returncode == 2


def test_a_history_is_checked_against_a_database(dsn: str, tmp_path: Path) -> None:
    recorder, file = Recorder(), tmp_path / "history.jsonl"
    with PostgresCommandRegistry.open(dsn) as registry:
        client = recorder.client("a", registry)
        registry.create_command("dep", "somebody else's")
        command_id = client.create_command("dep", "x", deadline=NOON + timedelta(days=9999)).command_id
        client.increment_attempt(command_id)
        save(recorder.history(), file)
        done = run(file, "--dsn", dsn)
        assert (done.returncode, done.stderr) == (0, "")
        assert "by the 2 events of the log" in done.stdout
        with psycopg.connect(dsn) as open_one:
            open_one.execute("SELECT pg_current_xact_id()")
            registry.increment_attempt(command_id)
            done = run(file, "--dsn", dsn)
            assert done.returncode == 2
            assert "1 events wait for an open transaction" in done.stderr
    done = run(file, "--dsn", dsn)
    assert (done.returncode, done.stderr) == (1, "")
    assert "the event at version 3 has no request id" in done.stdout
