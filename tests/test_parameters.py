"""Values as parameters of our own connections: the server reads what was sent, whatever its settings are."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, timezone
from enum import StrEnum
from typing import Any, LiteralString

import psycopg
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from psycopg.sql import SQL, Identifier

from eventstore.database import AsyncDatabase, Database
from eventstore.line import Line, _numbered
from eventstore.parameters import as_parameter
from eventstore.steps import Plan, Row, Step
from registry import CommandState, PostgresCommandRegistry
from tests.conftest import Databases


@pytest.fixture(scope="module")
def shared_dsn(servers: Callable[[str], Databases]) -> Iterator[str]:
    databases = servers("default")
    name = databases.create()
    yield databases.dsn(name)
    databases.drop(name)


@pytest.fixture(scope="module")
def line(shared_dsn: str) -> Iterator[Line]:
    with Line.connect(shared_dsn, autocommit=True) as line:
        yield line


class Colour(StrEnum):
    RED = "red"
    QUOTED = 'a "quoted", {braced} \\ value'


NASTY = [
    "",
    "NULL",
    "null",
    '"',
    "\\",
    "\\N",
    '","',
    "{",
    "}",
    "{}",
    ",",
    " ",
    "\t\n\r",
    "'",
    "é",
    "😀",
    "\uffff",
    "$1",
    "%s",
]
texts = st.sampled_from(NASTY) | st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=30
)
enums = st.sampled_from([*Colour, *CommandState])
integers = st.integers(-(2**63), 2**63 - 1) | st.sampled_from([-(2**63), 2**63 - 1, 0])
offsets = st.integers(-57_599, 57_599)  # in seconds: what the server takes, 15:59:59
zones = st.just(UTC) | st.timezones() | offsets.map(lambda seconds: timezone(timedelta(seconds=seconds)))
edges = [datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC), datetime(44, 3, 15, 12, tzinfo=UTC)]
instants = st.sampled_from(edges) | st.datetimes(datetime(1, 1, 3), datetime(9999, 12, 29), timezones=zones)

KINDS: list[tuple[LiteralString, st.SearchStrategy[Any]]] = [
    ("text", texts | enums),
    ("bigint", integers),
    ("bytea", st.binary(max_size=40)),
    ("bool", st.booleans()),
    ("timestamptz", instants),
]


def scalar(kind: LiteralString) -> bytes:
    """Ask for a value as it came; for instants, as UTC without a zone."""
    utc = SQL(" AT TIME ZONE 'UTC'" if kind == "timestamptz" else "")
    return SQL("SELECT %s::{}{}").format(SQL(kind), utc).as_bytes()


def array(kind: LiteralString) -> bytes:
    value = SQL("value AT TIME ZONE 'UTC'" if kind == "timestamptz" else "value")
    each = SQL("SELECT {} FROM unnest(%s::{}[]) WITH ORDINALITY AS given (value, place) ORDER BY place")
    return each.format(value, SQL(kind)).as_bytes()


def as_read(found: Any) -> Any:
    return found.replace(tzinfo=UTC) if isinstance(found, datetime) else found


def as_sent(value: Any) -> Any:
    return value.astimezone(UTC) if isinstance(value, datetime) else value


@pytest.mark.parametrize(("kind", "values"), KINDS, ids=[kind for kind, _ in KINDS])
def test_a_value_comes_back_as_it_was_sent(line: Line, kind: LiteralString, values: st.SearchStrategy[Any]) -> None:
    @settings(max_examples=150)
    @given(st.none() | values)
    def comes_back(value: Any) -> None:
        [(found,)] = line.ask(scalar(kind), [value])
        assert as_read(found) == as_sent(value)
        assert found is None or type(found) in type(value).__mro__

    comes_back()


@pytest.mark.parametrize(("kind", "values"), KINDS, ids=[kind for kind, _ in KINDS])
def test_a_list_of_values_comes_back_as_it_was_sent(
    line: Line, kind: LiteralString, values: st.SearchStrategy[Any]
) -> None:
    @settings(max_examples=150)
    @given(st.lists(st.none() | values, max_size=8))
    @example([])
    @example([None])
    @example([None, None])
    def comes_back(sent: list[Any]) -> None:
        rows = line.ask(array(kind), [sent])
        assert [as_read(found) for (found,) in rows] == [as_sent(value) for value in sent]

    comes_back()


def test_several_values_of_several_kinds_keep_their_places(line: Line) -> None:
    @settings(max_examples=50)
    @given(st.lists(texts, max_size=5), integers, st.binary(max_size=9), texts)
    def keep(names: list[str], number: int, data: bytes, name: str) -> None:
        asked = "SELECT %s::text[], %s::bigint, '100%%', %s::bytea, %s::text"
        assert line.ask(asked, [names, number, data, name]) == [(names, number, "100%", data, name)]

    keep()


# What may be set for a role or a database.
SETTINGS: list[LiteralString] = [
    "DateStyle = 'German'",
    "DateStyle = 'SQL, DMY'",
    "TimeZone = 'Asia/Kathmandu'",
    "bytea_output = 'escape'",
    "backslash_quote = off",
    "IntervalStyle = 'iso_8601'",
    "array_nulls = off",
    "client_encoding = 'LATIN1'",
]

VALUES: list[tuple[LiteralString, list[Any]]] = [
    ("text", ["café", '"', "\\", "NULL", None]),
    ("bigint", [-1, None, 2**62]),
    ("bytea", [b"\x00\xff\\", None, b""]),
    ("timestamptz", [*edges, None, datetime(2026, 4, 3, 2, 1, tzinfo=timezone(timedelta(hours=5)))]),
]


@contextmanager
def set_for_all(connection: psycopg.Connection[Any], setting: LiteralString) -> Iterator[None]:
    """Set something for whoever connects to a database."""
    name = Identifier(connection.info.dbname)
    connection.execute(SQL("ALTER DATABASE {} SET {}").format(name, SQL(setting)))
    yield
    connection.execute(SQL("ALTER DATABASE {} RESET ALL").format(name))


def read_back() -> Plan[list[tuple[list[Row], list[Any]]]]:
    """Send values alone and in lists; give those that do not come back as they were sent."""
    wrong: list[tuple[list[Row], list[Any]]] = []
    for kind, values in VALUES:
        rows = yield Step(array(kind), (values,))
        alone: list[Row] = []
        for value in values:
            alone += yield Step(scalar(kind), (value,))
        wrong += [(found, values) for found in (rows, alone) if [as_read(value) for (value,) in found] != values]
    return wrong


@pytest.mark.parametrize("setting", SETTINGS)
def test_no_setting_of_a_database_changes_a_value(
    dsn: str, connection: psycopg.Connection[Any], setting: LiteralString
) -> None:
    with set_for_all(connection, setting), Database(dsn) as database:
        assert database.run(read_back()) == []


def test_no_setting_of_a_database_changes_what_a_registry_writes(dsn: str, connection: psycopg.Connection[Any]) -> None:
    for setting in SETTINGS:
        with (
            set_for_all(connection, setting),
            PostgresCommandRegistry.open(dsn) as registry,
            ThreadPoolExecutor(8) as threads,
        ):
            made = threads.map(
                lambda key, registry=registry: registry.create_command("café", "größe", idempotency_key=key),
                [f"{letter} {setting}" for letter in "äöüßéèêë"],
            )
            for created in made:
                status = registry.get_command_status(created.command_id)
                assert status is not None
                assert (status.deployment_id, status.command, status.deadline) == ("café", "größe", None), setting
            report = registry.verify()
        assert report.ok, (setting, report.problems)


async def test_it_is_the_same_for_asyncio(shared_dsn: str) -> None:
    async with AsyncDatabase(shared_dsn) as database:
        for _ in range(10):  # prepared before the last
            assert await database.run(read_back()) == []


# What is refused before it is sent.


@pytest.mark.parametrize(
    "value", ["a\x00b", ["a", "a\x00b"], ["a", None, "\x00"], "\ud800", ["\udfff"], [None, "\ud800"]]
)
def test_what_postgres_has_no_text_for_is_refused(line: Line, value: object) -> None:
    with pytest.raises(ValueError, match=r"NUL|surrogates"):
        line.ask("SELECT %s", [value])
    assert line.ask("SELECT %s::int", [1]) == [(1,)]


@pytest.mark.parametrize("value", [1j, ("a",), {"a": 1}, [["a"]], [1j], object(), [datetime], {1}])
def test_a_value_of_another_kind_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="no parameter can be a"):
        as_parameter(value)


# Placeholders.


def test_placeholders_are_numbered_and_doubled_percents_single() -> None:
    assert (
        _numbered("SELECT %s, '%%', %s::text[] , '%%s', '%%%%', %s") == b"SELECT $1, '%', $2::text[] , '%s', '%%', $3"
    )
    assert _numbered(b"SELECT '\xc3\xa9', %s") == "SELECT 'é', $1".encode()
    assert _numbered("SELECT 'é'") == "SELECT 'é'".encode()
    assert _numbered(" ".join(["%s"] * 12)) == " ".join(f"${number}" for number in range(1, 13)).encode()


def test_a_statement_that_is_sent_again_and_again_is_prepared_once(line: Line) -> None:
    asked = "SELECT %s::int + 40"
    assert [line.ask(asked, [number])[0][0] for number in range(20)] == list(range(40, 60))
    prepared = "SELECT count(*) FROM pg_prepared_statements WHERE statement = %s"
    assert line.ask(prepared, ["SELECT $1::int + 40"]) == [(1,)]


def test_without_a_threshold_nothing_is_prepared(shared_dsn: str) -> None:
    with Line.connect(shared_dsn, autocommit=True, prepare_threshold=None) as line:
        for number in range(20):
            assert line.ask("SELECT %s::int", [number]) == [(number,)]
        assert line.ask("SELECT count(*) FROM pg_prepared_statements", []) == [(0,)]


def test_a_statement_that_fails_leaves_the_line_usable(line: Line) -> None:
    for _ in range(20):
        with pytest.raises(psycopg.errors.DivisionByZero):
            line.ask("SELECT 1 / %s::int", [0])
        assert line.ask("SELECT 1 / %s::int", [1]) == [(1,)]
    with pytest.raises(psycopg.errors.SyntaxError):
        line.ask("SELEC", [])
    assert line.ask("SELECT 1", []) == [(1,)]
