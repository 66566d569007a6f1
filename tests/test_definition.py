"""What a projection says of itself is checked before any table is made of it, and the error says what to mend."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import psycopg
import pytest

from projections import Index, Projection, StreamProjection, Table, Values, rebuild
from projections.definition import COLUMN_TYPES, RESERVED_NAMES, InvalidProjection, check_definition
from projections.errors import ProjectionError
from registry.command_status import CommandStatusProjection
from registry.deployment_activity import DeploymentActivityProjection
from registry.stuck_commands import StuckCommandsProjection
from tests.lending import Shelf, on
from tests.shelves import CHANGED, Borrowers


class Sound(Projection[Values]):
    name: ClassVar[Any] = "sound"
    version: ClassVar[Any] = 1
    columns: ClassVar[Any] = MappingProxyType({"id": "text", "n": "bigint", "doc": "json"})
    indexes: ClassVar[Any] = ()
    view: ClassVar[Any] = None

    def key(self, event: Any) -> str | None:
        return str(event.stream_id)

    def fold(self, state: Values | None, event: Any) -> Values:
        return event.stream_id, 1, "{}"

    def row(self, state: Values) -> Values:
        return state

    def state(self, row: Values) -> Values:
        return row


class SoundStream(Sound, StreamProjection[Values]):
    columns: ClassVar[Any] = MappingProxyType({"id": "text", "version": "int"})

    def key(self, event: Any) -> str:
        return str(event.stream_id)


def made(kind: type[Projection[Any]], **attributes: Any) -> Projection[Any]:
    return type("Mine", (kind,), attributes)()  # type: ignore[no-any-return]


def problem(projection: Projection[Any]) -> tuple[str, str]:
    with pytest.raises(InvalidProjection) as caught:
        check_definition(projection)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, ProjectionError)
    assert str(caught.value) == f"Mine.{caught.value.field}: {caught.value.problem}"
    return caught.value.field, caught.value.problem


EVERY = [Sound, SoundStream, Shelf, Borrowers, *CHANGED]
EVERY += [CommandStatusProjection, DeploymentActivityProjection, StuckCommandsProjection]


@pytest.mark.parametrize("kind", EVERY)
def test_a_sound_projection_passes(kind: type[Projection[Any]]) -> None:
    check_definition(kind())


@pytest.mark.parametrize("given", [Sound, None, "sound", 7])
def test_what_is_no_projection_is_told(given: Any) -> None:
    with pytest.raises(TypeError, match="an object of a class that extends Projection"):
        check_definition(given)


@pytest.mark.parametrize("name", ["a", "a" * 50, "_x", "orders_2", "vacuum_v", "a_version"])
def test_a_name_may_be_an_identifier(name: str) -> None:
    check_definition(made(Sound, name=name))


@pytest.mark.parametrize(
    "name", ["", "a" * 51, "Orders", "2nd", "a-b", "a b", "é", "a\n", None, 7, "x_v1", "x_v1_y", "a_v12_pkey"]
)
def test_a_name_that_is_none_or_that_of_a_table_is_told(name: Any) -> None:
    assert problem(made(Sound, name=name))[0] == "name"


@pytest.mark.parametrize("name", sorted(RESERVED_NAMES))
def test_a_name_that_the_schema_has_taken_is_told(name: str) -> None:
    assert problem(made(Sound, name=name)) == ("name", f"must not be {name!r}: the schema has something of this name")


def test_every_name_that_the_schema_has_taken_is_known(connection: psycopg.Connection[Any]) -> None:
    relations = connection.execute(
        "SELECT relname FROM pg_class WHERE relnamespace = 'command_registry'::regnamespace"
        " AND relname NOT LIKE 'command_status%' AND relname NOT LIKE '%_pkey'"
    ).fetchall()
    assert {name for (name,) in relations} == RESERVED_NAMES


@pytest.mark.parametrize("version", [1, 32_767])
def test_a_version_is_a_whole_number(version: int) -> None:
    check_definition(made(Sound, version=version))


@pytest.mark.parametrize("version", [0, -1, 32_768, True, 1.0, "1", None])
def test_a_version_that_is_none_is_told(version: Any) -> None:
    assert problem(made(Sound, version=version)) == ("version", f"must be a whole number in 1..32767, not {version!r}")


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        (None, "for a key and at least one more"),
        ({}, "for a key and at least one more"),
        ({"id": "text"}, "for a key and at least one more"),
        ([("id", "text"), ("n", "int")], "for a key and at least one more"),
        ({"id": "int", "n": "int"}, "the first one is the key, whose type is text or"),
        ({"id": 'text COLLATE "de-x-icu"', "n": "int"}, "the first one is the key, whose type is text or"),
        ({"id": "text", "Name": "text"}, "a column's name must be"),
        ({"id": "text", "a b": "text"}, "a column's name must be"),
        ({"id": "text", "a" * 64: "text"}, "a column's name must be"),
        ({"id": "text", 7: "text"}, "a column's name must be"),
        ({"id": "text", "xmin": "text"}, "Postgres has one of its own"),
        ({"id": "text", "version": "int"}, "only a StreamProjection has 'version'"),
        *(
            ({"id": "text", "n": kind}, f"the type of 'n' must be one of {', '.join(COLUMN_TYPES)}, not {kind!r}")
            for kind in ("integer", "varchar(9)", "text NOT NULL", "int; DROP", "timestamptz(3)", "text[]", "", None)
        ),
        *(({"id": "text", "n": f"numeric{n}"}, "the type of 'n'") for n in ("", "(0)", "(1001)", "(9999)", "(9, 2)")),
    ],
)
def test_columns_that_cannot_be_made_are_told(columns: Any, told: str) -> None:
    field, found = problem(made(Sound, columns=columns))
    assert field == "columns"
    assert told in found


@pytest.mark.parametrize("columns", [{"id": "text", "n": "int"}, {"id": "text", "version": "bigint"}])
def test_a_stream_projection_without_its_streams_version_is_told(columns: Mapping[str, str]) -> None:
    field, found = problem(made(SoundStream, columns=columns))
    assert field == "columns"
    assert "a StreamProjection needs 'version', of type 'int'" in found


def test_only_a_stream_projection_may_be_inline() -> None:
    check_definition(made(SoundStream, inline=True))
    check_definition(made(Sound, inline=False))
    assert problem(made(Sound, inline=True)) == ("inline", "only a StreamProjection can be written by every append")
    assert problem(made(SoundStream, inline="yes"))[0] == "inline"


@pytest.mark.parametrize(
    ("indexes", "told"),
    [
        ((Index(("m",)),), "there is no column 'm'"),
        ((Index(("n", "m")),), "there is no column 'm'"),
        ((Index(("doc",)),), "Postgres cannot index 'doc', which is json"),
        ((Index(()),), "each must be an Index of a tuple of columns"),
        ((Index("n"),), "each must be an Index of a tuple of columns"),  # type: ignore[arg-type]
        (("n",), "each must be an Index of a tuple of columns"),
        (Index(("n",)), "must be a tuple of Index"),
        ((Index(("n",), where=" "),), "where= must be a condition in SQL"),
        ((Index(("n",)), Index(("n",), where="n > 0")), "two would be called 'sound_v1_n'"),
    ],
)
def test_indexes_that_cannot_be_made_are_told(indexes: Any, told: str) -> None:
    field, found = problem(made(Sound, indexes=indexes))
    assert field == "indexes"
    assert told in found


def test_indexes_whose_names_postgres_would_cut_to_the_same_are_told(connection: psycopg.Connection[Any]) -> None:
    columns = {"id": "text", "a" * 20 + "b": "int", "a" * 20 + "c": "int"}
    indexes = tuple(Index((name,)) for name in list(columns)[1:])
    mine = made(Sound, name="n" * 45, columns=columns, indexes=indexes)
    assert "two would be called" in problem(mine)[1]
    table = Table.__new__(Table)  # whatever a table may check by itself
    table.projection, table.name, table._columns = mine, f"{mine.name}_v1", list(columns)
    for statement in (*table.create(), *table.create_indexes()):
        connection.execute(statement)
    made_indexes = connection.execute("SELECT count(*) FROM pg_indexes WHERE tablename = %s", (table.name,)).fetchone()
    assert made_indexes == (2,)  # the key's, and one of two


@pytest.mark.parametrize(
    "view", ["SELECT * FROM {table}", "SELECT '{{}}' AS braces, n FROM {table} JOIN {table} t ON 1 = 1"]
)
def test_a_view_selects_from_its_table(view: str) -> None:
    check_definition(made(Sound, view=view))


@pytest.mark.parametrize(
    ("view", "told"),
    [
        ("SELECT 1", "must select from {table}"),
        ("", "must select from {table}"),
        ("SELECT * FROM {{table}}", "must select from {table}"),
        ("SELECT '{}' FROM {table}", "{} stands for nothing: write its braces twice"),
        ("SELECT * FROM {table}, {other}", "{other} stands for nothing"),
        ("SELECT '{' FROM {table}", "write a brace that is not that of {table} twice"),
        ("SELECT '}' FROM {table}", "write a brace that is not that of {table} twice"),
        (7, "must be a SELECT"),
    ],
)
def test_a_view_that_cannot_be_made_is_told(view: Any, told: str) -> None:
    field, found = problem(made(Sound, view=view))
    assert field == "view"
    assert told in found


def test_what_passes_can_be_made_with_every_type_of_column(connection: psycopg.Connection[Any]) -> None:
    kinds = [kind.replace("(n)", "(1000)") for kind in COLUMN_TYPES]
    columns = (
        {"id": 'text COLLATE "C"'} | {f"c{n}": kind for n, kind in enumerate(kinds)} | {"v": 'text COLLATE "POSIX"'}
    )
    indexes = tuple(Index((name,)) for name, kind in columns.items() if kind != "json")
    view = "SELECT id, '{{}}' AS braces FROM {table} ORDER BY id"
    mine = made(Sound, columns=columns, indexes=indexes, view=view)
    check_definition(mine)
    on(connection, rebuild.migrate(Table(mine)))
    assert connection.execute("SELECT * FROM command_registry.sound").fetchall() == []
