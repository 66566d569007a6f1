"""Changing the schema of an event: stored events stay as they are, and every reader sees them upcast."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import psycopg
import pytest
from typer.testing import CliRunner

from eventstore import EventCodec, EventType, NewEvent, PostgresEventStore, UpcastFailed
from eventstore.codec import Upcaster
from eventstore.database import Database
from eventstore.event import RecordedEvent, StreamEvent
from eventstore.hashing import GENESIS_HASH, chain, event_hash
from projections import Table
from projections import plans as projections
from projections.verification import verify
from registry import CommandState, CommandStatus, PostgresCommandRegistry, export_line
from registry.cli.app import app
from registry.command_status import CommandStatusProjection
from registry.decider import evolve, replay
from registry.events import AttemptIncremented, CommandEvent
from registry.models import ResourceType, Target
from registry.plans import StatusRead, read_all
from tests.lending import NOON, on

Connection = psycopg.Connection[Any]

DOCUMENT: Final = Path(__file__).parent.parent / "docs" / "upcasters.md"


def documented() -> dict[str, Any]:
    """What the worked example of the document defines."""
    [example] = re.findall(r"^```python\n(.*?)^```$", DOCUMENT.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    defined: dict[str, Any] = {"__name__": "documented"}
    exec(compile(example, str(DOCUMENT), "exec", dont_inherit=True), defined)  # noqa: S102 - it is ours
    return defined


EXAMPLE: Final = documented()
CODEC: Final[EventCodec[CommandEvent]] = EXAMPLE["CODEC"]

# As they are stored: white space, the order of the keys and all.
COMMON: Final = '"state":"PENDING","created_at":"2026-11-24T12:00:00Z","deployment_model":"pull"}'
STORED: Final = {
    1: '{"command_id":"cmd_1", "deployment_id":"dep_1", "name":"sync-data", "owner":"acme/eu", ' + COMMON,
    2: '{"command_id":"cmd_2","owner":"acme/us","deployment_id":"dep_2","command":"sync-data","target":'
    '{"resource_id":"box","resource_type":"container"},' + COMMON,
    3: '{"command_id":"cmd_3","workspace_id":"acme","project_id":"jp","deployment_id":"dep_3","command":"sync-data",'
    '"target":{"resource_id":"box","resource_type":"daemon"},' + COMMON,
}
TARGETS: Final = {
    1: Target(resource_id="dep_1", resource_type=ResourceType.WORKER),
    2: Target(resource_id="box", resource_type=ResourceType.CONTAINER),
    3: Target(resource_id="box", resource_type=ResourceType.DAEMON),
}
VERSIONS: Final = tuple(STORED)


def creation(version: int) -> NewEvent:
    return NewEvent("CommandCreated", STORED[version], "{}", NOON, version)


class Upcasting(CommandStatusProjection):
    """The registry's read model, of events that a codec reads."""

    def __init__(self, codec: EventCodec[CommandEvent]) -> None:
        self._codec = codec

    def fold(self, state: CommandStatus | None, event: StreamEvent) -> CommandStatus:
        return evolve(state, self._codec.decode(event))


TABLE: Final = Table(Upcasting(CODEC))


@pytest.fixture
def stored(dsn: str) -> Iterator[PostgresEventStore]:
    """A log that has a creation of each schema version: cmd_1, cmd_2, cmd_3."""
    with Database(dsn) as database:
        store = PostgresEventStore(database)
        for version in VERSIONS:
            store.append(f"cmd_{version}", 0, [creation(version)])
        yield store


@pytest.fixture
def registry(
    dsn: str, stored: PostgresEventStore, monkeypatch: pytest.MonkeyPatch
) -> Iterator[PostgresCommandRegistry]:
    """A registry of software that the example was put into: there is no other way in for another codec."""
    use(CODEC, monkeypatch)
    with PostgresCommandRegistry.open(dsn) as registry:
        yield registry


def use(codec: EventCodec[CommandEvent], monkeypatch: pytest.MonkeyPatch) -> None:
    for reader in ("registry.command_status", "registry.history", "registry.writing"):
        monkeypatch.setattr(f"{reader}.CODEC", codec)


def with_upcaster(version: int, upcaster: Upcaster) -> EventCodec[CommandEvent]:
    """The example with one upcaster replaced."""
    upcasters: Mapping[tuple[str, int], Upcaster] = MappingProxyType(
        {
            ("CommandCreated", 1): EXAMPLE["to_version_2"],
            ("CommandCreated", 2): EXAMPLE["to_version_3"],
            ("CommandCreated", version): upcaster,
        }
    )
    return EventCodec[CommandEvent](
        EventType("CommandCreated", EXAMPLE["Created"], schema_version=3),
        EventType("AttemptIncremented", AttemptIncremented),
        upcasters=upcasters,
    )


def expected(version: int) -> dict[str, Any]:
    return {
        "command_id": f"cmd_{version}",
        "command": "sync-data",
        "workspace_id": "acme",
        "project_id": {1: "eu", 2: "us", 3: "jp"}[version],
        "deployment_id": f"dep_{version}",
        "target": TARGETS[version],
    }


def facts(of: object) -> dict[str, Any]:
    return {name: getattr(of, name) for name in expected(1)}


# The codec


@pytest.mark.parametrize("version", VERSIONS)
def test_events_of_every_schema_version_read_as_the_one_in_force(version: int) -> None:
    [event] = chain("cmd", None, [creation(version)])
    assert facts(CODEC.decode(event)) == expected(version)
    assert event.data == STORED[version]


def test_a_new_event_is_stored_as_the_version_in_force() -> None:
    [event] = chain("cmd_3", None, [creation(3)])
    assert CODEC.encode(CODEC.decode(event), NOON, "{}").schema_version == 3


def test_a_codec_tells_its_types_and_the_versions_in_force() -> None:
    assert CODEC.type_names == ("CommandCreated", "CommandTransitioned", "AttemptIncremented")
    assert [CODEC.current_version(name) for name in (*CODEC.type_names, "CommandArchived")] == [3, 1, 1, None]


def forgets_to_return(data: dict[str, Any]) -> dict[str, Any]:
    data["command"] = data.pop("name")
    return None  # type: ignore[return-value]


def loses_the_target(data: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in EXAMPLE["to_version_2"](data).items() if name != "target"}


def raises(data: dict[str, Any]) -> dict[str, Any]:
    raise KeyError("wrong")


@pytest.mark.parametrize(
    ("upcaster", "cause"),
    [(raises, "KeyError: 'wrong'"), (forgets_to_return, "TypeError|AttributeError"), (loses_the_target, "target")],
)
def test_an_upcaster_that_fails_is_reported_with_the_event(upcaster: Upcaster, cause: str) -> None:
    [event] = chain("cmd_1", None, [creation(1)])
    with pytest.raises(UpcastFailed, match=cause) as failure:
        with_upcaster(1, upcaster).decode(event)
    said = r"version 1 of stream 'cmd_1' \(CommandCreated\) cannot be upcast from schema version 1 to 3: "
    assert re.match(said, str(failure.value))
    error = failure.value
    assert (error.stream_id, error.version, error.event_type) == ("cmd_1", 1, "CommandCreated")
    assert (error.schema_version, error.current_version) == (1, 3)
    assert error.__cause__ is not None


# The log and a projection


def test_what_is_stored_stays_to_the_letter_and_so_do_the_hashes(
    stored: PostgresEventStore, connection: Connection
) -> None:
    before = rows(connection)
    for version in VERSIONS:
        [event] = stored.read_stream(f"cmd_{version}")
        CODEC.decode(event)
        values = (f"cmd_{version}", 1, "CommandCreated", version, NOON, STORED[version], "{}")
        assert (event.data, event.schema_version) == (STORED[version], version)
        assert event.hash == event_hash(GENESIS_HASH, *values)
    assert rows(connection) == before


def rows(connection: Connection) -> list[Any]:
    return connection.execute("SELECT events::text FROM command_registry.events ORDER BY stream_id, version").fetchall()


def test_fold_replay_and_rows_agree_and_the_verification_holds(
    stored: PostgresEventStore, connection: Connection
) -> None:
    for version in VERSIONS:
        loaded = on(connection, projections.load(TABLE, f"cmd_{version}"))  # of a stream that has no row
        assert loaded is not None
        assert facts(loaded.state) == expected(version)
        events = chain(f"cmd_{version}", loaded.end, [CODEC.encode(AttemptIncremented(attempt=2), NOON, "{}")])
        state = TABLE.projection.fold(loaded.state, events[0])
        on(connection, projections.append([(TABLE, TABLE.projection.row(state))], loaded.end, events))
        replayed = replay([CODEC.decode(event) for event in stored.read_stream(f"cmd_{version}")])
        assert replayed == state == row(connection, f"cmd_{version}")
        assert facts(replayed) == expected(version)
    report = on(connection, verify(TABLE))
    assert (report.ok, report.events, report.rows) == (True, 6, 3)


def row(connection: Connection, key: str) -> CommandStatus:
    return TABLE.projection.state(on(connection, projections.read_rows(TABLE, [key]))[key])


def test_the_verification_names_an_event_whose_upcaster_raises(
    stored: PostgresEventStore, connection: Connection
) -> None:
    table = Table(Upcasting(with_upcaster(1, raises)))
    problems = [problem for problem in on(connection, verify(table)).problems if problem.version is not None]
    assert [(problem.stream_id, problem.version) for problem in problems] == [("cmd_1", 1)]
    assert "cannot be folded: UpcastFailed: version 1 of stream 'cmd_1' (CommandCreated)" in str(problems[0])
    with pytest.raises(UpcastFailed):
        on(connection, projections.load(table, "cmd_1"))


# Every reader of the registry


@pytest.mark.parametrize("version", VERSIONS)
def test_every_reader_of_the_registry_sees_the_event_upcast(
    registry: PostgresCommandRegistry, dsn: str, version: int
) -> None:
    command_id = f"cmd_{version}"
    created = registry.get_command_status(command_id)  # folded as it is read: nobody has written a row yet
    assert facts(created) == expected(version)
    metadata = registry.get_command_metadata(command_id)
    assert metadata is not None
    assert (metadata.command, metadata.target) == ("sync-data", TARGETS[version])
    assert registry.increment_attempt(command_id) == 2  # loaded, folded on, and written to the read model
    assert registry.complete_command(command_id, CommandState.SUCCEEDED, NOON)
    status = registry.get_command_status(command_id)
    assert facts(status) == expected(version)
    history = registry.history(command_id)
    assert facts(history[0].event) == expected(version)
    assert [entry.schema_version for entry in history] == [version, 1, 1]
    assert registry.status_at(command_id, version=1) == created
    assert registry.status_at(command_id, version=3) == replay([entry.event for entry in history]) == status
    [entry, *_] = json.loads(cli(dsn, "history", command_id, "--json"))
    assert (entry["schema_version"], entry["event"]["project_id"]) == (version, expected(version)["project_id"])
    assert f"sync-data for dep_{version}, PENDING" in cli(dsn, "history", command_id)


def cli(dsn: str, *arguments: str, status: int = 0) -> str:
    """What the command line says."""
    result = CliRunner(env={"COMMAND_REGISTRY_DSN": dsn}).invoke(app, list(arguments), prog_name="command-registry")
    assert result.exit_code == status, result.output
    return result.stderr if status else result.stdout


def test_the_read_model_built_anew_is_that_of_the_events_upcast(
    registry: PostgresCommandRegistry, connection: Connection
) -> None:
    for version in VERSIONS:
        registry.increment_attempt(f"cmd_{version}")
    before = [row(connection, f"cmd_{version}") for version in VERSIONS]
    connection.execute("DROP TABLE command_registry.command_status_v1 CASCADE")
    registry.migrate()
    assert [row(connection, f"cmd_{version}") for version in VERSIONS] == before
    assert registry.verify().ok


def test_a_command_whose_upcaster_raises_harms_no_other(
    registry: PostgresCommandRegistry, dsn: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(with_upcaster(1, raises), monkeypatch)
    reads = [StatusRead("cmd_1"), StatusRead("cmd_2")]
    on(connection, read_all(reads))
    assert facts(reads[1].result()) == expected(2)
    with pytest.raises(UpcastFailed, match="'cmd_1'"):
        reads[0].result()
    with pytest.raises(UpcastFailed, match="'cmd_1'"):
        registry.increment_attempt("cmd_1")
    with pytest.raises(UpcastFailed, match="'cmd_1'"):
        registry.status_at("cmd_1", version=1)
    said = "error: version 1 of stream 'cmd_1' (CommandCreated) cannot be upcast from schema version 1 to 3: KeyError"
    assert cli(dsn, "history", "cmd_1", status=1).startswith(said)


# The export


def recorded(version: int, event_type: str = "CommandCreated") -> RecordedEvent:
    [event] = chain("cmd", None, [NewEvent(event_type, STORED[version], "{}", NOON, version)])
    return event.recorded(7, 8, NOON)


@pytest.mark.parametrize("version", VERSIONS)
def test_an_exported_line_has_what_is_stored_and_names_the_version_that_readers_see(version: int) -> None:
    text = export_line(recorded(version), CODEC.current_version)
    line = json.loads(text)
    assert (b'"data":' + STORED[version].encode() + b',"metadata"') in text
    assert line["schema_version"] == version
    assert line.pop("upcast_to", None) == (None if version == 3 else 3)
    assert line == json.loads(export_line(recorded(version), lambda _: version))


def test_an_exported_line_of_an_unknown_type_or_a_later_version_names_no_other() -> None:
    for event in (recorded(1, "CommandArchived"), recorded(3)):
        assert "upcast_to" not in json.loads(export_line(event))
