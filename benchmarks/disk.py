"""What the log and the read model take up on disk."""

from typing import Final

import psycopg
from pydantic import BaseModel, ConfigDict

from benchmarks import queries
from registry.command_status import COMMAND_STATUS

__all__ = ["Disk", "Relation", "measure_disk"]

_TABLES: Final = ["command_registry.events", COMMAND_STATUS.full_name]


class Relation(BaseModel):
    """A table or an index, and its size in bytes."""

    model_config = ConfigDict(frozen=True)

    name: str
    is_index: bool
    size: int


class Disk(BaseModel):
    """The registry's tables and indexes in a database of so many events."""

    model_config = ConfigDict(frozen=True)

    events: int
    relations: tuple[Relation, ...]

    def per_event(self, *relations: Relation) -> float:
        """Give how many bytes an event costs in some of the relations (default: in all)."""
        return sum(relation.size for relation in relations or self.relations) / max(1, self.events)


def measure_disk(dsn: str) -> Disk:
    """Measure the registry in a database."""
    with psycopg.connect(dsn) as connection:
        [events] = connection.execute(queries.COUNT_EVENTS).fetchone() or (0,)
        rows = connection.execute(queries.SIZES, (_TABLES,)).fetchall()
    return Disk(
        events=events,
        relations=tuple(Relation(name=name, is_index=is_index, size=size) for name, is_index, size in rows),
    )
