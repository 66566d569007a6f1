"""Following the log: its events, in order, are folded into a table behind a checkpoint, each exactly once.

The checkpoint moves in the transaction that writes the rows. One owner at a time may write: a lease in table
`command_registry.projectors`, by the server's clock, with a token that grows with each owner. Every write checks the
token, so an owner that was stopped, and wakes up after another has taken over, writes nothing (a fencing token: Martin
Kleppmann, "How to do distributed locking", 2016).

An event is read only when no transaction still under way can come before it, so none is skipped, however late it
commits.
"""

import os
import socket
import time
import uuid
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, Final, Generic, NamedTuple, TypeVar

import psycopg

from eventstore import plans as log
from eventstore import queries as log_queries
from eventstore.event import LogPosition, RecordedEvent, StreamEvent
from eventstore.protocol import LOG_START
from eventstore.steps import Plan, Step
from projections import queries
from projections.errors import AlreadyRunning, Fenced, PoisonEvent
from projections.plans import read_rows
from projections.projection import StreamProjection, Values
from projections.table import Table

__all__ = ["LEASE_SECONDS", "Followed", "Follower", "Pace", "follow", "lease", "must_lead", "new_owner", "release"]

S = TypeVar("S")

LEASE_SECONDS: Final = 3.0
"""How long an owner may be silent before another takes over, in seconds."""

PAGE: Final = 1_000
"""Events read at once."""

_NOBODY: Final = -1
_SMOOTHING: Final = 0.2


def new_owner() -> str:
    """Make a name for an owner of leases: which process of which host, and never the same twice."""
    return f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"


class Followed(NamedTuple):
    """What one look at the log brought: whether we lead, and how many events were folded or passed over."""

    leads: bool
    events: int

    @property
    def full(self) -> bool:
        """Whether there is probably more to read at once."""
        return self.events >= PAGE


class Follower(Generic[S]):
    """One owner's hold on the table of a projection, and where in the log it is.

    `builds`: it makes a table that is not whole yet, which nobody follows.
    """

    def __init__(
        self, table: Table[S], owner: str, lease_seconds: float = LEASE_SECONDS, *, builds: bool = False
    ) -> None:
        self.builds = builds
        self.table = table
        self.owner = owner
        self.lease_seconds = lease_seconds
        self.token = _NOBODY
        self.phase = ""
        self.checkpoint: LogPosition = LOG_START
        self.skips: frozenset[tuple[str, int]] = frozenset()
        self.rate = 0.0
        self._renew_at = self._advanced_at = 0.0

    @property
    def leads(self) -> bool:
        """Whether it holds the lease, as far as it knows."""
        return self.token != _NOBODY

    @property
    def place(self) -> tuple[str, int]:
        """Name and version, as the bookkeeping has them."""
        return self.table.projection.name, self.table.projection.version

    @property
    def is_due(self) -> bool:
        """Whether the lease is to be taken, or renewed."""
        return not self.leads or time.monotonic() >= self._renew_at

    def taken(self, token: int) -> None:
        """Note that the lease was taken, or renewed."""
        self.token = token
        self._renew_at = time.monotonic() + self.lease_seconds / 3

    def lost(self) -> None:
        """Note that somebody else has the lease."""
        self.token = _NOBODY

    def measured(self, events: int) -> float:
        """Note that so many events were folded now; return how many it are a second, of late."""
        now = time.monotonic()
        seconds, self._advanced_at = now - self._advanced_at, now
        rate = events / max(seconds, 1e-6)
        fresh = seconds > self.lease_seconds  # it had nothing to do for a while
        self.rate = rate if not self.rate or fresh else self.rate + _SMOOTHING * (rate - self.rate)
        return self.rate


class Pace:
    """How long to wait before looking at the log again: hardly, while there are events; then longer and longer."""

    def __init__(self, shortest: float = 0.005, longest: float = 0.1) -> None:
        self._shortest, self._longest = shortest, longest
        self._pause = 0.0

    def after(self, followed: Followed) -> float:
        """Give the pause after a look at the log, in seconds."""
        if not followed.leads:
            self._pause = self._longest
        elif followed.full:
            self._pause = 0.0
        elif followed.events:
            self._pause = self._shortest
        else:
            self._pause = min(max(self._pause * 2, self._shortest), self._longest)
        return self._pause

    def trouble(self) -> float:
        """Give the pause after a failure, in seconds."""
        self._pause = min(max(self._pause * 2, self._longest), 4 * self._longest)
        return self._pause


def lease(follower: Follower[Any]) -> Plan[bool]:
    """Take the lease, or renew it; False when somebody else has it."""
    mine = (follower.owner, follower.token, follower.lease_seconds, follower.builds)
    rows = yield Step(queries.LEASE, (*mine, *follower.place))
    if not rows:
        follower.lost()
        return False
    [(token, transaction_id, position, phase)] = rows
    if token != follower.token:
        follower.checkpoint, follower.phase = LogPosition(int(transaction_id), position), phase
    follower.taken(token)
    follower.skips = frozenset((yield Step(queries.SKIPS, follower.place)))
    return True


def must_lead(follower: Follower[Any]) -> Plan[None]:
    """Take the lease.

    Raises:
        AlreadyRunning: somebody else has it.
    """
    if not (yield from lease(follower)):
        rows = yield Step(queries.OWNER, follower.place)
        raise AlreadyRunning(follower.table.full_name, (rows[0][0] if rows else None) or "somebody")


def release(follower: Follower[Any]) -> Plan[None]:
    """Give the lease up, so that another can take over at once."""
    if follower.leads:
        yield Step(queries.RELEASE, (*follower.place, follower.token))
        follower.lost()


def follow(follower: Follower[S]) -> Plan[Followed]:
    """Take a page of the log, as the owner of the lease or once it is free, and fold it into the table.

    Raises:
        PoisonEvent: an event cannot be folded. What comes before it is written, and the error noted.
        Fenced: somebody else has taken over.
    """
    if follower.is_due and not (yield from lease(follower)):
        return Followed(leads=False, events=0)
    events = yield from log.read_log(follower.checkpoint, PAGE)
    if not events:
        return Followed(leads=True, events=0)
    folded = _Folded(follower.table, follower.skips)
    try:
        yield from folded.all_of(events)
    except PoisonEvent as poison:
        if folded.count:
            yield from _advance(follower, folded, events[: folded.count])
        yield Step(queries.NOTE_ERROR, (str(poison), *follower.place, follower.token))
        raise
    yield from _advance(follower, folded, events)
    return Followed(leads=True, events=len(events))


class _Folded(Generic[S]):
    """The rows that come of events: read as they are, and folded on."""

    def __init__(self, table: Table[S], skips: frozenset[tuple[str, int]]) -> None:
        self._table, self._skips = table, skips
        self._states: dict[str, S] = {}
        self._versions: dict[str, int] = {}
        self._changed: dict[str, None] = {}
        self.count = 0

    def all_of(self, events: Sequence[StreamEvent]) -> Plan[None]:
        projection = self._table.projection
        yield from self._read(events)
        by_stream = isinstance(projection, StreamProjection)
        for event in events:
            key = self._key(event)
            if key is not None:
                if by_stream:
                    yield from self._next(key, event)
                else:
                    self._fold(key, event)
            self.count += 1

    def _read(self, events: Iterable[StreamEvent]) -> Plan[None]:
        """Read the rows as they are; an event that has no key for its poison is met again when its turn comes."""
        keys: dict[str | None, None] = {}
        for event in events:
            with suppress(Exception):  # told when it is this event's turn
                keys[self._table.projection.key(event)] = None
        wanted = [key for key in keys if key is not None]
        if not wanted:
            return
        for key, values in (yield from read_rows(self._table, wanted)).items():
            self._states[key] = self._table.projection.state(values)
            if isinstance(self._table.projection, StreamProjection):
                self._versions[key] = self._table.stream_version(values)

    def _key(self, event: StreamEvent) -> str | None:
        try:
            return self._table.projection.key(event)
        except Exception as error:  # whatever it is: it is the event's
            if (event.stream_id, event.version) in self._skips:
                return None
            raise PoisonEvent(self._table.name, event, error) from error

    def _next(self, key: str, event: StreamEvent) -> Plan[None]:
        """Fold the event of a stream, unless its row has it already; and before it what the row does not have yet."""
        known = self._versions.get(key, 0)
        if event.version <= known:
            return
        if event.version > known + 1:
            for missing in (yield from log.read_stream(key, known, event.version - known - 1)):
                self._fold(key, missing)
        self._fold(key, event)

    def _fold(self, key: str, event: StreamEvent) -> None:
        if (event.stream_id, event.version) not in self._skips:
            try:
                self._states[key] = self._table.projection.fold(self._states.get(key), event)
            except Exception as error:  # whatever it is: it is the event's
                raise PoisonEvent(self._table.name, event, error) from error
            self._changed[key] = None
        self._versions[key] = event.version

    def rows(self) -> list[Values]:
        return [self._table.projection.row(self._states[key]) for key in self._changed]


def _advance(follower: Follower[S], folded: _Folded[S], events: Sequence[RecordedEvent]) -> Plan[None]:
    """Write the rows, and move the checkpoint, in one transaction."""
    to, rate = events[-1].log_position, follower.measured(len(events))
    rows = folded.rows()
    yield Step(queries.BEGIN)
    try:
        params = (str(to.transaction_id), to.position, len(events), rate, follower.lease_seconds)
        kept = yield Step(queries.ADVANCE, (*params, *follower.place, follower.token))
        if kept and rows:
            yield Step(follower.table.upsert.as_bytes(), follower.table.upsert_params(rows))
    except psycopg.Error:
        yield Step(log_queries.ROLLBACK)
        raise
    if not kept:
        yield Step(log_queries.ROLLBACK)
        follower.lost()
        raise Fenced(f"{follower.table.full_name} is followed by somebody else now")
    yield Step(log_queries.COMMIT)
    follower.checkpoint = to
    follower.taken(follower.token)
