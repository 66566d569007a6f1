"""Finding read models: the registry's own, those of installed packages, and those of a user's module."""

import os
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Final

from projections.errors import UnknownProjection
from projections.projection import Projection
from projections.table import Table
from registry.command_status import COMMAND_STATUS

__all__ = ["GROUP", "find", "known"]

GROUP: Final = "command_registry.projections"
"""The entry point group in which packages name their projections."""


def known(references: Iterable[str] = ()) -> dict[str, Table[Any]]:
    """Give every read model by its name: those of installed packages, and those of references ("module:attribute").

    An attribute may be a `Projection` class, or an object of one. A module is looked for in the current directory, too.

    Raises:
        UnknownProjection: a reference leads nowhere, or not to a projection; or two projections have one name.
        InvalidProjection: one cannot be made a table.
    """
    tables: dict[str, Table[Any]] = {COMMAND_STATUS.projection.name: COMMAND_STATUS}
    here = os.getcwd()  # noqa: PTH109 - as the path has it
    if here not in sys.path:
        sys.path.append(here)
    installed = [entry.value for entry in entry_points(group=GROUP)]
    for reference in [*installed, *references]:
        projection = _load(reference)
        other = tables.setdefault(projection.name, Table(projection)).projection
        if type(other) is not type(projection):
            raise UnknownProjection(
                f"{reference}: the name {projection.name!r} is taken by {type(other).__qualname__}: choose another"
            )
    return tables


def find(names: Sequence[str], references: Iterable[str] = ()) -> list[Table[Any]]:
    """Give the read models of these names; of all, when there are none.

    Raises:
        UnknownProjection: there is none of a name, or a reference leads nowhere.
    """
    tables = known(references)
    unknown = [name for name in names if name not in tables]
    if unknown:
        raise UnknownProjection(
            f"no projection is called {unknown[0]!r}; there are: {', '.join(sorted(tables))} "
            "(your own are found with --projections MODULE:CLASS)"
        )
    return [tables[name] for name in dict.fromkeys(names)] if names else list(tables.values())


def _load(reference: str) -> Projection[Any]:
    module, _, path = reference.partition(":")
    try:
        found: Any = import_module(module)
        for part in filter(None, path.split(".")):
            found = getattr(found, part)
        projection = found() if isinstance(found, type) and issubclass(found, Projection) else found
    except Exception as error:  # whatever the module does
        raise UnknownProjection(f"{reference!r} cannot be imported: {error}; write it as MODULE:CLASS") from error
    if isinstance(projection, Table):
        projection = projection.projection
    if not isinstance(projection, Projection):
        raise UnknownProjection(f"{reference!r} is no Projection, but {type(found).__name__}")
    return projection
