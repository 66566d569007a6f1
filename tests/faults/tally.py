"""Counting, request by request, what the log holds of what callers were told; beside the check of histories."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from registry.testing.model import Refused
from registry.testing.recording import Operation

__all__ = ["Tally", "tally"]


@dataclass(frozen=True, slots=True)
class Tally:
    """How the log compares with what callers were told.

    `lost`: calls that were acknowledged, and whose event is not there. `doubled`: calls with two events in one stream.
    `ghosts`: events of nobody's call, or of one whose caller was told that it changed nothing.
    """

    calls: int
    acknowledged: int
    events: int
    unknown: int
    lost: list[Operation]
    doubled: list[tuple[str, str]]
    ghosts: list[tuple[str, int, str]]

    def check(self) -> "Tally":
        """Check that nothing is lost or doubled, and that there are no ghosts."""
        print(self)
        assert not self.lost, self.lost[:5]
        assert not self.doubled, self.doubled[:5]
        assert not self.ghosts, self.ghosts[:5]
        return self

    def __str__(self) -> str:
        return (
            f"{self.calls} calls, {self.acknowledged} acknowledged, {self.unknown} of unknown outcome, "
            f"{self.events} events; {len(self.lost)} lost, {len(self.doubled)} doubled, {len(self.ghosts)} ghosts"
        )


def tally(history: Sequence[Operation], dsn: str, *, beside: Collection[str] = ()) -> Tally:
    """Count; `beside`: commands that others wrote to, unrecorded."""
    with psycopg.connect(dsn) as observer:
        rows: list[tuple[str, int, str, str]] = observer.execute("""
            SELECT stream_id, version, metadata ->> 'request_id', type
            FROM command_registry.events
            ORDER BY stream_id, version
        """).fetchall()
    rows = [row for row in rows if row[0] not in beside]
    theirs = Counter((stream_id, request_id) for stream_id, _, request_id, _ in rows)
    attempts = Counter(stream_id for stream_id, _, _, kind in rows if kind == "AttemptIncremented")
    streams = {row[0] for row in rows}
    calls = {operation.request_id: operation for operation in history}

    def is_lost(call: Operation) -> bool:
        if not _is_told(call):
            return False
        if call.call == "create_command":
            return call.answer not in streams
        is_there = (str(call.command_id), call.request_id) in theirs
        if call.call == "increment_attempt":
            return not is_there and int(_any(call.answer)) > attempts[str(call.command_id)] + 1
        return call.call == "complete_command" and call.answer is True and not is_there

    return Tally(
        calls=len(calls),
        acknowledged=sum(map(_is_told, history)),
        events=len(rows),
        unknown=sum(call.end is None for call in history),
        lost=[call for call in history if is_lost(call)],
        doubled=[place for place, number in theirs.items() if number > 1],
        ghosts=[row[:3] for row in rows if row[2] not in calls or _changes_nothing(calls[row[2]])],
    )


def _any(answer: Any) -> Any:
    return answer


def _is_told(call: Operation) -> bool:
    return call.end is not None and not isinstance(call.answer, Refused)


def _changes_nothing(call: Operation) -> bool:
    """Tell whether its caller was told that it wrote nothing: by its answer, or by any error but one."""
    if call.trouble is not None and call.call != "expire_overdue":
        return not call.trouble.startswith("OutcomeUnknown")
    return call.answer is False
