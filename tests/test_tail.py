"""The log as it grows, on the command line: in order, whole, and still there after a server or a reader went away."""

import json
import os
import pty
import re
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Self

import psycopg
import pytest

from eventstore.database import Database
from eventstore.event import LogPosition, RecordedEvent
from eventstore.hashing import GENESIS_HASH, event_hash
from eventstore.plans import read_log
from eventstore.protocol import LOG_START
from registry import CommandState, PostgresCommandRegistry
from registry.cli import following
from registry.cli.following import Choice, Reader, begin
from registry.events import CODEC
from tests.by_hand import ByHand
from tests.observing import until_named
from tests.proxy import proxied
from tests.test_cli import CommandLine, exported, start
from tests.waiting import until

Connection = psycopg.Connection[Any]

NOON = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


@pytest.fixture
def cli(dsn: str) -> CommandLine:
    return CommandLine(dsn)


@pytest.fixture
def registry(dsn: str) -> Iterator[PostgresCommandRegistry]:
    with PostgresCommandRegistry.open(dsn) as registry:
        yield registry


@pytest.fixture
def database(dsn: str) -> Iterator[Database]:
    with Database(dsn) as database:
        yield database


def create(registry: PostgresCommandRegistry, deployment: str = "dep_eu1", **options: Any) -> str:
    return registry.create_command(deployment, "sync-data", **options).command_id


def place(line: dict[str, Any]) -> str:
    return f"{line['transaction_id']}:{line['position']}"


def insert(
    connection: Connection,
    event_type: str,
    data: str,
    schema_version: int = 1,
    metadata: str = "{}",
    version: int = 1,
) -> None:
    """Write an event that this version of the software does not write."""
    event = ("cmd_later", version, event_type, schema_version, NOON, data, metadata)
    connection.execute(
        "INSERT INTO command_registry.events "
        "(stream_id, version, type, schema_version, occurred_at, data, metadata, hash) "
        "VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",
        (*event, event_hash(GENESIS_HASH, *event)),
    )


class Followed:
    """A process that follows the log, and the lines that it has written."""

    def __init__(self, dsn: str, *arguments: str) -> None:
        self.process = start(dsn, "tail", "--follow", *arguments)
        self.lines: list[bytes] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.end()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.endswith(b"\n"):
                self.lines.append(line)

    def until(self, count: int) -> list[dict[str, Any]]:
        until(lambda: len(self.lines) >= count, f"{count} lines")
        return self.events

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]

    def end(self, stop: signal.Signals | None = None) -> tuple[int, bytes]:
        """Wait for its end; give its status, and what it wrote to stderr."""
        if stop is not None:
            self.process.send_signal(stop)
        status = self.process.wait(20)
        self._thread.join(20)
        assert self.process.stderr is not None
        return status, self.process.stderr.read()


def until_it_waits(observer: Connection) -> None:
    """Wait until a process has read the log to its end."""
    sql = (
        "SELECT FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle' "
        "AND query LIKE '%(stored.transaction_id, stored.position) > (%'"
    )
    until(lambda: observer.execute(sql).fetchall(), "tail to read the log")


# What is shown


def test_without_follow_the_log_is_shown_from_its_start_to_its_end(
    cli: CommandLine, registry: PostgresCommandRegistry
) -> None:
    command_id = create(registry)
    registry.mark_dispatched_if_not_terminal(command_id, NOON)
    registry.increment_attempt(command_id)
    registry.complete_command(command_id, CommandState.FAILED, NOON, 5, {"code": "X", "said": "a\x7fb"})
    cli.text("dispatch", second := create(registry), "--actor", "ada", "--request-id", "r1")
    events = exported(cli, 6)
    lines = cli.text("tail").splitlines()
    assert [line.split()[:5] for line in lines] == [
        [event["recorded_at"], place(event), event["stream_id"], str(event["version"]), event["type"]]
        for event in events
    ]
    facts = [re.split(" {2,}", line, maxsplit=5)[5] for line in lines]
    assert facts[:3] == [
        "sync-data for dep_eu1, PENDING  by -",
        "PENDING -> DISPATCHED, dispatched 2026-11-24T12:00:00Z  by -",
        "attempt 2  by -",
    ]
    assert facts[3].startswith("DISPATCHED -> FAILED, completed 2026-11-24T12:00:00Z, response 5 bytes, error {")
    assert '"a b"' in facts[3]  # on one line
    assert facts[5].endswith("  by ada (r1)")
    assert second in lines[4]


def test_the_lines_of_json_are_those_of_export(cli: CommandLine, registry: PostgresCommandRegistry) -> None:
    registry.mark_dispatched_if_not_terminal(create(registry, idempotency_key="é"), NOON)
    exported(cli, 2)
    assert cli.text("tail", "--json") == cli.text("export")


def test_an_event_that_this_software_cannot_read_is_shown_as_it_is_stored(
    cli: CommandLine, connection: Connection
) -> None:
    insert(connection, "CommandArchived", '{"by":\n\t"ada\x7f"}', metadata='{"actor":"b"}')
    [line] = until(lambda: cli.text("tail"), "the event").split("\n")[:-1]
    assert line.endswith('  CommandArchived      schema version 1, as stored: {"by": "ada "} {"actor":"b"}  by -')
    assert cli.text("tail", "--json") == cli.text("export")


@pytest.mark.parametrize(
    ("event_type", "schema_version", "data"),
    [("CommandCreated", 9, "{}"), ("AttemptIncremented", 1, '{"attempt":"many"}'), ("AttemptIncremented", 1, "[]")],
)
def test_an_event_of_a_later_schema_or_with_bad_data_does_not_end_it(
    cli: CommandLine, connection: Connection, event_type: str, schema_version: int, data: str
) -> None:
    insert(connection, event_type, data, schema_version)
    exported(cli, 1)
    assert f"schema version {schema_version}, as stored: {data} {{}}" in cli.text("tail")
    assert cli.text("tail", "--deployment", "dep_eu1") == ""


def test_on_a_terminal_it_has_colours_and_elsewhere_none(
    cli: CommandLine, dsn: str, registry: PostgresCommandRegistry
) -> None:
    create(registry)
    exported(cli, 1)
    assert "\x1b" not in cli.text("tail")
    master, slave = pty.openpty()
    process = start(dsn, "tail", stdout=slave, stderr=subprocess.DEVNULL, env=os.environ | coloured(dsn))
    os.close(slave)
    shown = b""
    with suppress(OSError):  # as a terminal says that nobody writes to it any more
        while chunk := os.read(master, 65536):
            shown += chunk
    os.close(master)
    assert process.wait(20) == 0
    assert re.search(rb"\x1b\[\d+mPENDING\x1b\[0m", shown)


def coloured(dsn: str) -> dict[str, str]:
    return {"COMMAND_REGISTRY_DSN": dsn, "TERM": "xterm-256color", "NO_COLOR": ""}


# Where it begins


def test_it_goes_on_after_the_event_that_from_names(cli: CommandLine, registry: PostgresCommandRegistry) -> None:
    for _ in range(3):
        create(registry)
    first, *others = exported(cli, 3)
    assert json_lines(cli, "--from", place(first)) == others
    assert json_lines(cli, "--from", "0:0") == [first, *others]
    assert json_lines(cli, "--from", place(others[-1])) == json_lines(cli, "--from", "now") == []


def json_lines(cli: CommandLine, *options: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in cli.text("tail", "--json", *options).splitlines()]


def test_an_instant_gives_exactly_what_was_recorded_since(
    cli: CommandLine, dsn: str, registry: PostgresCommandRegistry
) -> None:
    create(registry)
    with psycopg.connect(dsn) as older:
        older.execute("SELECT pg_current_xact_id()")
        create(registry)
        create(registry, connection=older)  # before it in the log, though it was recorded after it
        older.commit()
    events = exported(cli, 3)
    recorded = [event["recorded_at"] for event in events]
    assert recorded[0] < recorded[2] < recorded[1]
    assert json_lines(cli, "--from", recorded[0]) == events
    assert json_lines(cli, "--from", recorded[1]) == [events[1]]
    assert json_lines(cli, "--from", recorded[2]) == events[1:]
    after_all = datetime.fromisoformat(recorded[1]) + timedelta(microseconds=1)
    assert json_lines(cli, "--from", after_all.isoformat()) == []


def test_a_duration_gives_what_was_recorded_so_long_ago_or_since(
    cli: CommandLine, registry: PostgresCommandRegistry, connection: Connection
) -> None:
    for _ in range(3):
        create(registry)
    ids = [event["stream_id"] for event in exported(cli, 3)]
    connection.execute("ALTER TABLE command_registry.events DISABLE TRIGGER events_refuse_change")
    for minutes, command_id in zip((120, 90, 30), ids, strict=True):
        connection.execute(
            "UPDATE command_registry.events SET recorded_at = now() - %s WHERE stream_id = %s",
            (timedelta(minutes=minutes), command_id),
        )
    assert [event["stream_id"] for event in json_lines(cli, "--from", "1h45m")] == ids[1:]
    assert [event["stream_id"] for event in json_lines(cli, "--from", "1h")] == ids[2:]
    assert json_lines(cli, "--from", "15m") == []


def test_the_start_found_for_an_instant_leaves_out_what_no_event_of_it_comes_before(
    database: Database, registry: PostgresCommandRegistry
) -> None:
    create(registry)
    create(registry)
    first, second = until(lambda: two(database.run(read_log(LOG_START, 10))), "two events")
    assert database.run(begin(first.recorded_at)) == first.log_position._replace(position=first.position - 1)
    assert database.run(begin(second.recorded_at)) == second.log_position._replace(position=second.position - 1)
    assert database.run(begin(second.recorded_at + timedelta(seconds=1))) == second.log_position
    assert database.run(begin("now")) == second.log_position
    assert database.run(begin(LogPosition(7, 8))) == LogPosition(7, 8)


def two(events: Sequence[RecordedEvent]) -> Sequence[RecordedEvent]:
    return events if len(events) == 2 else ()


def test_of_an_empty_log_every_start_is_the_start(cli: CommandLine) -> None:
    for begun in ("now", "0:0", "1h", "2001-01-01T00:00:00Z", "9999-12-31T23:59:59Z"):
        assert cli.text("tail", "--from", begun) == ""


@pytest.mark.parametrize("bad", ["", "yesterday", "12", "12:", "-5m", "5 m", "Now", "2026-11-24T10:00:00", "1:2:3"])
def test_a_bad_start_is_a_usage_error_that_says_what_may_stand_there(bad: str) -> None:
    error = CommandLine("").error("tail", f"--from={bad}", status=2)
    assert repr(bad) in error
    for said in ("812:40", "now", "2026-11-24T10:00:00Z", "15m", "command-registry tail --help"):
        assert said in error


def test_a_duration_from_before_the_calendar_is_a_usage_error() -> None:
    for long in ("99999w99999w99999w", "999999999w"):
        assert "is before the year 1" in CommandLine("").error("tail", "--from", long, status=2)


# What is chosen


def test_only_events_of_the_types_that_were_named_are_shown(
    cli: CommandLine, registry: PostgresCommandRegistry
) -> None:
    command_id = create(registry)
    registry.increment_attempt(command_id)
    registry.mark_dispatched_if_not_terminal(command_id, NOON)
    created, incremented, moved = exported(cli, 3)
    assert json_lines(cli, "--type", "AttemptIncremented") == [incremented]
    assert json_lines(cli, "--type", "CommandCreated", "--type", "CommandTransitioned") == [created, moved]


def test_an_unknown_type_is_a_usage_error_that_names_the_known_ones() -> None:
    error = CommandLine("").error("tail", "--type", "commandcreated", status=2)
    assert "'commandcreated' is none of CommandCreated, CommandTransitioned, AttemptIncremented" in error
    assert CODEC.type_names == ("CommandCreated", "CommandTransitioned", "AttemptIncremented")


def test_only_commands_of_the_deployments_that_were_named_are_shown(
    cli: CommandLine, registry: PostgresCommandRegistry
) -> None:
    ids = [create(registry, deployment) for deployment in ("dep_eu1", "dep_us1", "dep_eu2")]
    for command_id in ids:
        registry.increment_attempt(command_id)
    events = exported(cli, 6)
    of = [[event for event in events if event["stream_id"] == command_id] for command_id in ids]
    assert json_lines(cli, "--deployment", "dep_us1") == of[1]
    both = json_lines(cli, "--deployment", "dep_eu1", "--deployment", "dep_eu2")
    assert both == [event for event in events if event not in of[1]]
    # the creation is not among what is read, or not among what is shown
    begun = ("--from", place(events[2]))
    assert json_lines(cli, "--deployment", "dep_us1", *begun) == of[1][1:]
    assert json_lines(cli, "--deployment", "dep_us1", "--type", "AttemptIncremented") == of[1][1:]
    assert json_lines(cli, "--deployment", "dep_none") == []


def test_a_deployment_is_found_in_the_log_where_the_read_model_has_lost_it(
    cli: CommandLine, registry: PostgresCommandRegistry, connection: Connection
) -> None:
    ids = [create(registry, deployment) for deployment in ("dep_eu1", "dep_us1")]
    for command_id in ids:
        registry.increment_attempt(command_id)
    events = exported(cli, 4)
    connection.execute("DELETE FROM command_registry.command_status_v1 WHERE deployment_id = 'dep_us1'")
    assert json_lines(cli, "--deployment", "dep_us1", "--from", place(events[1])) == events[3:]


def test_a_creation_of_a_later_schema_still_tells_its_deployment(cli: CommandLine, connection: Connection) -> None:
    insert(connection, "CommandCreated", '{"deployment_id":"dep_eu1","priority":1}', 9)
    insert(connection, "AttemptIncremented", '{"attempt":2}', version=2)
    first, second = exported(cli, 2)
    assert json_lines(cli, "--deployment", "dep_eu1") == [first, second]
    assert json_lines(cli, "--deployment", "dep_eu1", "--from", place(first)) == [second]
    assert json_lines(cli, "--deployment", "dep_us1") == []


def test_the_deployments_of_a_page_are_asked_for_in_one_statement_and_remembered(
    registry: PostgresCommandRegistry, database: Database, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "MAX_KNOWN", 3)
    ids = [create(registry, f"dep_{number % 2}") for number in range(5)]
    for command_id in ids:
        registry.increment_attempt(command_id)
    log = until(lambda: (events := database.run(read_log(LOG_START, 100)))[9:] and events, "ten events")
    later = log[5:]
    choice = Choice(deployments=["dep_0"])

    def statements(page: Sequence[RecordedEvent], wanted: Sequence[RecordedEvent]) -> int:
        plan = ByHand(choice.of(page), connection)
        count = 0
        while plan.step is not None:
            count += 1
            plan.take()
        assert plan.result == wanted
        return count

    of_dep_0 = [event for event in later if event.stream_id in ids[::2]]
    assert statements(later, of_dep_0) == 1
    assert statements(later, of_dep_0) == 1  # three are remembered, and not all
    assert statements(later[-1:], of_dep_0[-1:]) == 0
    assert statements(log, [event for event in log if event.stream_id in ids[::2]]) == 0


# Following


def test_what_commits_late_is_neither_skipped_nor_shown_twice(
    dsn: str, cli: CommandLine, registry: PostgresCommandRegistry
) -> None:
    with Followed(dsn, "--json", "--from", "0:0") as followed:
        create(registry)
        followed.until(1)
        with psycopg.connect(dsn) as late, psycopg.connect(dsn) as later:
            for connection in (late, later):
                connection.execute("SELECT pg_current_xact_id()")
            early = [create(registry) for _ in range(3)]
            create(registry, connection=later)
            later.commit()
            create(registry, connection=late)
            registry.increment_attempt(early[0], connection=late)
            assert len(followed.lines) == 1
            late.commit()
        followed.until(7)
        create(registry)
        assert followed.until(8) == exported(cli, 8)


def test_with_follow_it_begins_with_what_is_to_come(
    dsn: str, cli: CommandLine, registry: PostgresCommandRegistry, connection: Connection
) -> None:
    create(registry)
    exported(cli, 1)
    with Followed(dsn, "--json") as followed:
        until_it_waits(connection)
        command_id = create(registry)
        assert [event["stream_id"] for event in followed.until(1)] == [command_id]


def test_who_was_killed_goes_on_from_the_last_line(
    dsn: str, cli: CommandLine, registry: PostgresCommandRegistry
) -> None:
    ids = [create(registry) for _ in range(20)]
    with Followed(dsn, "--json", "--from", "0:0") as first:
        first.until(20)
        for command_id in ids:
            registry.increment_attempt(command_id)
        first.until(23)
        first.process.kill()
        assert first.end()[0] == -signal.SIGKILL
    registry.complete_command(ids[0], CommandState.SUCCEEDED, NOON)
    with Followed(dsn, "--json", "--from", place(first.events[-1])) as second:
        second.until(41 - len(first.lines))
        assert first.events + second.events == exported(cli, 41)


def test_a_log_of_many_pages_is_read_whole(
    dsn: str, cli: CommandLine, registry: PostgresCommandRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "EXPORT_PAGE", 2)
    for _ in range(5):
        create(registry)
    events = exported(cli, 5)
    assert json_lines(cli) == events


@pytest.mark.parametrize(("stop", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_with_its_status_and_without_a_word(
    dsn: str, connection: Connection, stop: signal.Signals, status: int
) -> None:
    with Followed(dsn) as followed:
        until_it_waits(connection)
        assert followed.end(stop) == (status, b"")


def test_when_its_reader_goes_away_it_ends_at_once_and_quietly(dsn: str, connection: Connection) -> None:
    process = start(dsn, "tail", "-f")
    try:
        until_it_waits(connection)
        assert process.stdout is not None
        process.stdout.close()  # and no event comes that it would fail to write
        assert process.stderr is not None
        with process.stderr as stderr:
            assert stderr.read() == b""
        assert process.wait(20) == 1
    finally:
        process.kill()


def test_a_reader_that_has_read_enough_ends_it_quietly(
    dsn: str, cli: CommandLine, registry: PostgresCommandRegistry
) -> None:
    for number in range(300):  # more than a pipe holds
        create(registry, deployment=f"{number}" + "x" * 200)
    exported(cli, 300)
    process = start(dsn, "tail", "--json")
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr as stderr:
        assert stderr.read() == b""
    assert process.wait(20) == 1


def test_without_follow_it_says_how_many_events_wait_for_an_open_transaction(
    cli: CommandLine, registry: PostgresCommandRegistry, connection: Connection
) -> None:
    with connection.transaction():
        connection.execute("SELECT pg_current_xact_id()")
        create(registry)
        result = cli.call("tail")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "1 more wait for an open transaction" in result.stderr


class Stopped(Exception):
    """The test has seen enough."""


class Watched:
    """A reader that follows the log in this thread; at each pause a test says what happens meanwhile."""

    def __init__(self, database: Database) -> None:
        self.shown: list[RecordedEvent] = []
        self.notes: list[str] = []
        self.pauses: list[float] = []
        self._reader = Reader(database, LOG_START, Choice(), self.shown.extend, self.notes.append)

    def follow(self, script: Iterator[None]) -> None:
        """Follow the log until the script ends; each of its yields is a pause."""

        def pause(seconds: float) -> None:
            self.pauses.append(seconds)
            if next(script, self) is self:
                raise Stopped

        with pytest.raises(Stopped):
            self._reader.follow(pause)


def test_a_server_that_goes_away_is_told_of_once_and_waited_for(
    dsn: str, registry: PostgresCommandRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "AWAY", 0.2)
    with proxied(dsn) as proxy, Database(proxy.dsn(dsn), timeout=0.5, pool_size=1) as database:
        watched = Watched(database)

        def script() -> Iterator[None]:
            create(registry)
            while not watched.shown:
                yield
            assert watched.notes == []
            proxy.go_away()
            create(registry)
            for _ in range(3):
                yield
            assert len(watched.notes) == 1
            proxy.come_back()
            while len(watched.shown) < 2:
                yield

        watched.follow(script())
    assert [event.version for event in watched.shown] == [1, 1]
    assert re.fullmatch(r"[^\n]+; going on when the server is back", watched.notes[0])
    place = watched.shown[-1].log_position
    assert watched.notes[1:] == [f"connected again; going on after {place.transaction_id}:{place.position}"]


def test_a_connection_lost_for_a_moment_is_told_of_once(dsn: str, registry: PostgresCommandRegistry) -> None:
    with proxied(dsn) as proxy, Database(proxy.dsn(dsn), pool_size=1) as database:
        watched = Watched(database)

        def script() -> Iterator[None]:
            proxy.cut_all()
            create(registry)
            while not watched.shown:
                yield
            yield

        watched.follow(script())
    assert len(watched.shown) == 1
    assert [note.partition(";")[0] for note in watched.notes] == ["connected again"]


def test_what_holds_readers_back_is_named_once(
    dsn: str,
    database: Database,
    registry: PostgresCommandRegistry,
    connection: psycopg.Connection[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(following, "HELD_BACK", 0.0)
    monkeypatch.setattr("registry.doctor.log.LONG", 0.0)
    watched = Watched(database)
    with psycopg.connect(dsn) as blocker:

        def block() -> None:
            blocker.execute("SELECT pg_current_xact_id()")
            until_named(connection, f"pid {blocker.info.backend_pid}")

        def script() -> Iterator[None]:
            yield
            assert watched.notes == []  # nothing waits for the transaction that is to come
            block()
            yield
            assert watched.notes == []
            create(registry)
            for _ in range(3):
                yield
            assert len(watched.notes) == 1
            assert watched.shown == []
            blocker.commit()
            while not watched.shown:
                yield
            block()
            create(registry)
            for _ in range(3):
                yield
            blocker.rollback()

        watched.follow(script())
        pid, name = blocker.info.backend_pid, blocker.info.dbname
    assert len(watched.notes) == 2
    for note in watched.notes:
        assert re.fullmatch(
            rf"held back: pid {pid}, in database {name}, user .+, has written, and began \d+ s ago: "
            rf"1 events wait for it; let it end, or run: SELECT pg_terminate_backend\({pid}\)",
            note,
        )


def test_short_holds_are_not_worth_a_word(dsn: str, database: Database, registry: PostgresCommandRegistry) -> None:
    watched = Watched(database)
    with psycopg.connect(dsn) as blocker:

        def script() -> Iterator[None]:
            blocker.execute("SELECT pg_current_xact_id()")
            create(registry)
            for _ in range(3):
                yield

        watched.follow(script())
    assert watched.notes == []


def test_it_looks_again_soon_after_an_event_and_seldom_when_there_are_none(
    database: Database, registry: PostgresCommandRegistry
) -> None:
    watched = Watched(database)

    def script() -> Iterator[None]:
        for _ in range(8):
            yield
        create(registry)
        while not watched.shown:
            yield

    watched.follow(script())
    assert watched.pauses[:6] == [0.02, 0.04, 0.08, 0.16, 0.25, 0.25]
    assert watched.pauses[-1] == 0.01
