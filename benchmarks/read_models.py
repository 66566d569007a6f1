"""The read models that are built and followed, in a module of its own so that a rebuild's workers can import them."""

from typing import Any, Final

from psycopg.sql import SQL

from benchmarks import queries
from eventstore.database import Database
from eventstore.steps import Plan, Step
from projections import queries as projection_queries
from projections import rebuild
from projections.table import Table
from registry.command_status import CommandStatusProjection

__all__ = ["FOLLOWED_STATUS", "NEXT_STATUS", "FollowedStatusProjection", "NextStatusProjection", "forget"]


class NextStatusProjection(CommandStatusProjection):
    """The next version of the status projection, which differs in nothing but its number."""

    version = 2


class FollowedStatusProjection(CommandStatusProjection):
    """The same rows under another name, written by whoever follows the log, and not with each append."""

    name = "followed_status"
    inline = False


NEXT_STATUS: Final = Table(NextStatusProjection())
FOLLOWED_STATUS: Final = Table(FollowedStatusProjection())


def forget(database: Database, table: Table[Any]) -> None:
    """Drop a table, its view and its bookkeeping, so that the next one starts from nothing.

    In force is the version before it, if there was one.
    """
    name, version = table.projection.name, table.projection.version
    database.run(rebuild.in_transaction(_forget(table)), lasting=True)
    if version > 1:
        database.run(rebuild.switch(name, version - 1), lasting=True)


def _forget(table: Table[Any]) -> Plan[None]:
    yield Step(SQL(queries.DROP_TABLE).format(table=table.identifier), None)
    yield Step(projection_queries.DEREGISTER, (table.projection.name, table.projection.version) * 3)
