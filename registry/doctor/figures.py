"""Figures of a database of which nothing is known yet: what is installed, how much there is, what is held back."""

from dataclasses import dataclass
from typing import Final

from eventstore import schema
from eventstore.steps import Plan, Step
from projections import queries as projection_queries
from registry.command_status import COMMAND_STATUS
from registry.doctor import queries

__all__ = ["READ_MODEL", "Installed", "count_events", "held_back", "installed"]

READ_MODEL: Final = COMMAND_STATUS.full_name
"""The table of the read model that this software reads."""


@dataclass(frozen=True, slots=True)
class Installed:
    """What a database has: the schema's version (None: no schema), and whether the read model is there."""

    schema_version: int | None
    read_model: bool


def installed() -> Plan[Installed]:
    """Find out what a database has."""
    version = yield from schema.installed_version()
    if version is None:
        return Installed(None, read_model=False)
    projection = COMMAND_STATUS.projection
    [(exists,)] = yield Step(projection_queries.TABLE_EXISTS, (READ_MODEL,))
    [(registered,)] = yield Step(projection_queries.IS_REGISTERED, (projection.name, projection.version))
    return Installed(version, read_model=exists and registered)


def count_events() -> Plan[int]:
    """Count the events of the log; 0 where there is none, or it may not be read."""
    usage = yield Step(queries.SCHEMA_USAGE)
    if usage != [(True,)]:
        return 0
    [(readable,)] = yield Step(queries.MAY_READ, ("command_registry.events",))
    if not readable:
        return 0
    [(count,)] = yield Step(queries.COUNT_EVENTS)
    return int(count)


def held_back() -> Plan[int]:
    """Count the events that are committed, and wait for an open transaction before readers of the log get them."""
    [(count,)] = yield Step(queries.HELD_BACK)
    return int(count)
