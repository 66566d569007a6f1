"""What building and following a read model can fail with.

EventStoreError
└── ProjectionError
    ├── PoisonEvent         an event that the projection cannot fold
    ├── AlreadyRunning      somebody else builds or follows this version now
    ├── Fenced              somebody else has taken over since; nothing was written
    ├── NotCaughtUp         (TimeoutError) the read model did not reach a position in time
    ├── NotEqual            what was built is not what the log says
    ├── StillUsed           a table that somebody may still read or write is not dropped
    ├── InvalidProjection   (ValueError, in `definition`) what a projection says of itself can be no table
    ├── InvalidRow          (ValueError, in `memory`) a row that its table could not hold
    ├── Gap                 (ValueError, in `memory`) an event before this one was left out
    └── UnknownProjection   (LookupError) there is none of this name, or of this version
"""

from collections.abc import Sequence

from eventstore.errors import EventStoreError
from eventstore.event import StreamEvent

__all__ = [
    "AlreadyRunning",
    "Fenced",
    "NotCaughtUp",
    "NotEqual",
    "PoisonEvent",
    "ProjectionError",
    "StillUsed",
    "UnknownProjection",
]


class ProjectionError(EventStoreError):
    """Base of every error about a read model."""


class PoisonEvent(ProjectionError):
    """A projection cannot fold the event `stream_id`, `version`; it stops before it. `__cause__` says why."""

    def __init__(self, projection: str, event: StreamEvent, error: Exception) -> None:
        """Carry which event, and what the fold raised."""
        self.projection = projection
        self.stream_id = event.stream_id
        self.version = event.version
        reason = f"{type(error).__name__}: {error}".replace("\n", " ")[:500]
        super().__init__(
            f"{projection} cannot fold version {event.version} of stream {event.stream_id!r} ({event.type}): {reason}"
        )


class AlreadyRunning(ProjectionError):
    """Somebody else holds the lease of a read model's version."""

    def __init__(self, table: str, owner: str) -> None:
        """Carry who it is."""
        self.owner = owner
        super().__init__(f"{table} is being built or followed by {owner} now: let that end, or stop it first")


class Fenced(ProjectionError):
    """The lease was lost, and somebody else has taken over: nothing was written."""


class NotCaughtUp(ProjectionError, TimeoutError):
    """A read model did not reach a position of the log within the timeout."""


class NotEqual(ProjectionError):
    """A table differs from what the log folds to."""

    def __init__(self, table: str, problems: Sequence[object], count: int) -> None:
        """Carry the problems found (the first of them), and how many there are."""
        self.problems = tuple(problems)
        first = "; ".join(str(problem) for problem in self.problems[:3])
        super().__init__(
            f"{table} is not what the log says in {count} places, and was not put in force: {first}. "
            "Mend the projection (is row(state(r)) == r, and the fold pure?), then build it anew with --restart"
        )


class StillUsed(ProjectionError):
    """A table is still in use, or may be."""


class UnknownProjection(ProjectionError, LookupError):
    """There is no such projection, or not in this version."""
