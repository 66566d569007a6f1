"""How often commands failed, and with which error: a row for each code, of the events of all commands."""

from datetime import datetime
from types import MappingProxyType
from typing import NamedTuple

from eventstore import StreamEvent
from eventstore.event import name_problem
from projections import Projection, Values
from registry.events import CODEC, CommandTransitioned


class ErrorCount(NamedTuple):
    """What is known of one code."""

    code: str
    errors: int
    first_at: datetime
    last_at: datetime
    last_command_id: str


class ErrorsByCode(Projection[ErrorCount]):
    """Counts the errors that were told, by the `code` in them."""

    name = "errors_by_code"
    version = 1
    columns = MappingProxyType(
        {
            "code": 'text COLLATE "C"',
            "errors": "bigint",
            "first_at": "timestamptz",
            "last_at": "timestamptz",
            "last_command_id": "text",
        }
    )
    view = "SELECT * FROM {table} ORDER BY errors DESC, code"

    def key(self, event: StreamEvent) -> str | None:
        """Give the code of the error that the event tells; None: it tells no error, and is in no row."""
        decoded = CODEC.decode(event)
        if not isinstance(decoded, CommandTransitioned) or decoded.error is None:
            return None
        code = decoded.error.get("code") if isinstance(decoded.error, dict) else None
        return code if isinstance(code, str) and name_problem(code) is None else "(none)"

    def fold(self, state: ErrorCount | None, event: StreamEvent) -> ErrorCount:
        """Count one more error."""
        at, command_id = event.occurred_at, event.stream_id
        if state is None:
            return ErrorCount(self.key(event) or "", 1, at, at, command_id)
        return ErrorCount(state.code, state.errors + 1, state.first_at, at, command_id)

    def row(self, state: ErrorCount) -> Values:
        """Make the row of a state."""
        return tuple(state)

    def state(self, row: Values) -> ErrorCount:
        """Make the state of a row."""
        return ErrorCount(*row)
