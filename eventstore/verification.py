"""Checking stored streams: every hash computed again from the columns, and versions 1..n without a gap."""

from dataclasses import dataclass

from eventstore.event import StreamEvent
from eventstore.hashing import GENESIS_HASH, rehash

__all__ = ["ChainCheck", "Problem"]


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is not as it was written. `version` is None where it concerns no one event."""

    stream_id: str
    version: int | None
    problem: str

    def __str__(self) -> str:
        place = "" if self.version is None else f", version {self.version}"
        return f"stream {self.stream_id}{place}: {self.problem}"


class ChainCheck:
    """Checks one stream's events as they are fed in order.

    Each hash is checked against the stored hash before it, so that one changed event is one problem.
    """

    def __init__(self, stream_id: str) -> None:
        self._stream_id = stream_id
        self._version = 0
        self._hash = GENESIS_HASH

    def feed(self, event: StreamEvent) -> list[Problem]:
        """Check the next event."""
        problems = []
        if event.version != self._version + 1:
            expected = f"version {self._version + 1} is missing: the stream goes on with version {event.version}"
            problems.append(Problem(self._stream_id, self._version + 1, expected))
        elif rehash(event, self._hash) != event.hash:
            problems.append(
                Problem(
                    self._stream_id,
                    event.version,
                    "the hash does not match: "
                    "the event, or the stored hash before it, was changed after it was written",
                )
            )
        self._version, self._hash = event.version, event.hash
        return problems
