"""Whether what a projection says of itself can be made a table and a view: checked without a database."""

import re
from collections.abc import Callable, Mapping
from string import Formatter
from typing import Any, Final, TypeAlias

from projections.errors import ProjectionError
from projections.projection import Index, Projection, StreamProjection

__all__ = ["COLUMN_TYPES", "RESERVED_NAMES", "InvalidProjection", "check_definition", "column_type"]

COLUMN_TYPES: Final = (
    "text",
    'text COLLATE "C"',
    "int",
    "bigint",
    "numeric(n)",
    "boolean",
    "date",
    "timestamptz",
    "json",
)
"""The Postgres types that a column may have; another collation may be named, and n is 1..1000."""

RESERVED_NAMES: Final = frozenset(
    {
        "deployments",
        "events",
        "events_log_order",
        "events_position_seq",
        "idempotency_keys",
        "projection_skips",
        "projections",
        "projections_one_in_force",
        "projectors",
        "rebuild_chunks",
        "schema_versions",
    }
)
"""What the schema calls things of its own."""

MAX_NAME_LENGTH: Final = 50
MAX_VERSION: Final = 2**15 - 1
MAX_IDENTIFIER_LENGTH: Final = 63
MAX_DIGITS: Final = 1_000

_IDENTIFIER: Final = re.compile(r"[a-z_][a-z0-9_]*")
_TABLE_OR_INDEX: Final = re.compile(r"_v[0-9]+(_|$)")
_TYPE: Final = re.compile(
    r'(text)(?: COLLATE "[A-Za-z0-9_.@-]+")?|(int|bigint|boolean|date|timestamptz|json)|(numeric)\(([1-9][0-9]{0,3})\)'
)
_KEY_TYPES: Final = ("text", 'text COLLATE "C"')
_SYSTEM_COLUMNS: Final = frozenset({"cmax", "cmin", "ctid", "tableoid", "xmax", "xmin"})

_Check: TypeAlias = Callable[[Projection[Any]], str | None]


class InvalidProjection(ProjectionError, ValueError):
    """A projection whose attribute `field` is not what can be made a table or a view."""

    def __init__(self, projection: str, field: str, problem: str) -> None:
        """Carry the class, the attribute, and what is wrong with it."""
        self.projection = projection
        self.field = field
        self.problem = problem
        super().__init__(f"{projection}.{field}: {problem}")


def check_definition(projection: Projection[Any]) -> None:
    """Check what a projection says of itself: its name, version, columns, indexes and view.

    Raises:
        InvalidProjection: it cannot be made a table, or a view; says what is wrong first.
        TypeError: it is no projection.
    """
    if not isinstance(projection, Projection):
        raise TypeError(f"give an object of a class that extends Projection, not {projection!r}")
    for field, check in _CHECKS.items():
        problem = check(projection)
        if problem is not None:
            raise InvalidProjection(type(projection).__qualname__, field, problem)


def column_type(kind: object) -> str | None:
    """Tell the bare type of a column's type: text, int, numeric and so on; None when no column can have it."""
    found = _TYPE.fullmatch(kind) if isinstance(kind, str) else None
    if found is None or int(found[4] or 0) > MAX_DIGITS:
        return None
    return found[1] or found[2] or found[3]


def _name(projection: Projection[Any]) -> str | None:
    name = getattr(projection, "name", None)
    if not isinstance(name, str) or not _IDENTIFIER.fullmatch(name) or len(name) > MAX_NAME_LENGTH:
        return f"must be at most {MAX_NAME_LENGTH} of a-z, 0-9 and _, and begin with no digit, not {name!r}"
    if name in RESERVED_NAMES:
        return f"must not be {name!r}: the schema has something of this name"
    if _TABLE_OR_INDEX.search(name):
        return f"must not hold _v and a number, as the names of tables and their indexes do: {name!r}"
    return None


def _version(projection: Projection[Any]) -> str | None:
    version = getattr(projection, "version", None)
    if isinstance(version, int) and not isinstance(version, bool) and 1 <= version <= MAX_VERSION:
        return None
    return f"must be a whole number in 1..{MAX_VERSION}, not {version!r}"


def _columns(projection: Projection[Any]) -> str | None:
    columns = getattr(projection, "columns", None)
    if not isinstance(columns, Mapping) or len(columns) < 2:
        return f"must map names of columns to Postgres types, for a key and at least one more, not {columns!r}"
    for name, kind in columns.items():
        problem = _column(name, kind)
        if problem is not None:
            return problem
    key, kind = next(iter(columns.items()))
    if kind not in _KEY_TYPES:
        return f"the first one is the key, whose type is {' or '.join(_KEY_TYPES)}; {key!r} is {kind!r}"
    return _version_column(projection, columns)


def _column(name: object, kind: object) -> str | None:
    if not isinstance(name, str) or not _IDENTIFIER.fullmatch(name) or len(name) > MAX_IDENTIFIER_LENGTH:
        return (
            f"a column's name must be at most {MAX_IDENTIFIER_LENGTH} of a-z, 0-9 and _, and begin with no digit, "
            f"not {name!r}"
        )
    if name in _SYSTEM_COLUMNS:
        return f"no column can be called {name!r}: Postgres has one of its own"
    if column_type(kind) is None:
        return f"the type of {name!r} must be one of {', '.join(COLUMN_TYPES)}, not {kind!r}"
    return None


def _version_column(projection: Projection[Any], columns: Mapping[str, str]) -> str | None:
    kind = columns.get("version")
    if not isinstance(projection, StreamProjection):
        return None if kind is None else "only a StreamProjection has 'version', a stream's: call it something else"
    return None if kind == "int" else f"a StreamProjection needs 'version', of type 'int', not {kind!r}"


def _inline(projection: Projection[Any]) -> str | None:
    inline = getattr(projection, "inline", False)
    if not isinstance(inline, bool):
        return f"must be True or False, not {inline!r}"
    if inline and not isinstance(projection, StreamProjection):
        return "only a StreamProjection can be written by every append"
    return None


def _indexes(projection: Projection[Any]) -> str | None:
    indexes, names = projection.indexes, set[str]()
    if not isinstance(indexes, tuple | list):
        return f"must be a tuple of Index, not {indexes!r}"
    for index in indexes:
        problem = _index(projection, index)
        if problem is not None:
            return problem
        # As Postgres cuts it: an index whose name is taken would silently not be made.
        name = "_".join([projection.name, f"v{projection.version}", *index.columns])[:MAX_IDENTIFIER_LENGTH]
        if name in names:
            return f"two would be called {name!r}: let their columns differ, early in their names"
        names.add(name)
    return None


def _index(projection: Projection[Any], index: Index) -> str | None:
    if not isinstance(index, Index) or not isinstance(index.columns, tuple | list) or not index.columns:
        return f"each must be an Index of a tuple of columns, not {index!r}"
    for name in index.columns:
        if name not in projection.columns:
            return f"there is no column {name!r}"
        if projection.columns[name] == "json":
            return f"Postgres cannot index {name!r}, which is json"
    if index.where is not None and (not isinstance(index.where, str) or not index.where.strip()):
        return f"where= must be a condition in SQL, not {index.where!r}"
    return None


def _view(projection: Projection[Any]) -> str | None:
    view = projection.view
    if view is None:
        return None
    if not isinstance(view, str):
        return f"must be a SELECT from {{table}}, not {view!r}"
    try:
        fields = {field for _, field, *how in Formatter().parse(view) if field is not None or any(how)}
    except ValueError as error:
        return f"{error}: write a brace that is not that of {{table}} twice"
    if "table" not in fields:
        return "must select from {table}, which stands for the table"
    others = sorted(map(str, fields - {"table"}))
    return f"{{{others[0]}}} stands for nothing: write its braces twice" if others else None


_CHECKS: Final[Mapping[str, _Check]] = {
    "name": _name,
    "version": _version,
    "columns": _columns,
    "inline": _inline,
    "indexes": _indexes,
    "view": _view,
}
