"""What the registry does on Postgres beside writing (`registry.writing`), as plans (see `eventstore.steps`)."""

from collections.abc import Callable, Sequence
from datetime import datetime

from eventstore import plans as log
from eventstore import schema
from eventstore.batching import Call
from eventstore.event import RecordedEvent
from eventstore.steps import Plan, Step
from projections import plans as projections
from projections import rebuild
from registry.command_status import COMMAND_STATUS, SELECT_OVERDUE
from registry.models import CommandStatus

__all__ = ["StatusRead", "check", "events", "migrate", "overdue", "read_all"]


def migrate(progress: Callable[[int], None] = lambda _: None) -> Plan[None]:
    """Create what is missing of the schema and of the read model (`progress`: events folded into it)."""
    yield from schema.migrate()
    yield from rebuild.migrate(COMMAND_STATUS, progress)


def check() -> Plan[None]:
    """Check that schema and read model are those of this software.

    Raises:
        SchemaMismatch: they are not; the error names the command to run.
    """
    yield from schema.check()
    yield from projections.check(COMMAND_STATUS)


class StatusRead(Call[CommandStatus | None]):
    """A call that reads a command's status from the read model."""

    __slots__ = ("command_id",)

    def __init__(self, command_id: str) -> None:
        super().__init__()
        self.command_id = command_id

    @property
    def key(self) -> str:
        """The command that it is about."""
        return self.command_id


def read_all(reads: Sequence[StatusRead], lane: int | None = None) -> Plan[None]:  # noqa: ARG001 - any lane reads alike
    """Answer reads of many callers, as of one moment."""
    found = yield from projections.load_each(COMMAND_STATUS, list(dict.fromkeys(read.command_id for read in reads)))
    for read in reads:
        loaded = found.get(read.command_id)
        if isinstance(loaded, Exception):  # a hand in the table, or a later version's event: the others can be read
            read.fail(loaded)
        else:
            read.answer(None if loaded is None else loaded.state)


def events(command_id: str) -> Plan[list[RecordedEvent]]:
    """Read a command's events."""
    return log.read_stream(command_id)


def overdue(now: datetime, limit: int) -> Plan[list[str]]:
    """Find commands whose deadline has passed, the most overdue first."""
    rows = yield Step(SELECT_OVERDUE, (now, limit))
    return [command_id for (command_id,) in rows]
