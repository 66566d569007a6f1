"""Following the log: its events, in order, are folded into a table behind a checkpoint, each exactly once.

The checkpoint moves in the statement that writes the rows, and only from where its owner has read on. One owner at a
time may write: a lease in table `command_registry.projectors`, by the server's clock, with a token that grows with each
owner. Every write checks the token, so an owner that was stopped, and wakes up after another has taken over, writes
nothing (a fencing token: Martin Kleppmann, "How to do distributed locking", 2016).

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
from eventstore.event import LogPosition, RecordedEvent, StreamEvent
from eventstore.parameters import as_parameter
from eventstore.protocol import LOG_START
from eventstore.steps import Lost, Plan, Refused, Step
from projections import queries
from projections.errors import AlreadyRunning, Fenced, PoisonEvent
from projections.plans import read_rows
from projections.projection import StreamProjection, Values
from projections.table import Table

__all__ = [
    "LEASE_SECONDS",
    "Followed",
    "Follower",
    "Pace",
    "follow",
    "lease",
    "must_lead",
    "new_owner",
    "note",
    "readable",
    "release",
    "renew",
]

S = TypeVar("S")

LEASE_SECONDS: Final = 3.0
"""How long an owner may be silent before another takes over, in seconds."""

PAGE: Final = 1_000
"""Events read at once, at most."""

_NOBODY: Final = -1
_SMOOTHING: Final = 0.2


def new_owner() -> str:
    """Make a name for an owner of leases: which process of which host, and never the same twice."""
    return f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"


class Followed(NamedTuple):
    """What one look at the log brought: whether we lead, how many events were folded or passed over.

    `full`: there is probably more to read at once.
    """

    leads: bool
    events: int
    full: bool = False


class Follower(Generic[S]):
    """One owner's hold on the table of a projection, and where in the log it is.

    `builds`: it makes a table that is not whole yet, which nobody follows. `in_doubt`: it does not know whether its
    last write has happened, and so where it is. `page`: how many events it takes at once, at most; `taking`: how many
    it was at last.
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
        self.page = self.taking = PAGE
        self.in_doubt = False
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
        return not self.leads or self.in_doubt or time.monotonic() >= self._renew_at

    def taken(self, token: int) -> None:
        """Note that the lease was taken, or renewed."""
        now = time.monotonic()
        if token != self.token:
            self._advanced_at = now
        self.token = token
        self._renew_at = now + self.lease_seconds / 3

    def lost(self) -> None:
        """Note that somebody else has the lease."""
        self.token = _NOBODY

    def struggled(self) -> None:
        """Note that it failed; the next time it takes half as many events: to find the culprit, or to be in time."""
        self.page = max(1, min(self.page, self.taking) // 2)

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


def lease(follower: Follower[Any], *, anew: bool = False) -> Plan[bool]:
    """Take the lease, or renew it; False when somebody else has it. `anew`: find out, too, where the table is."""
    mine = (follower.owner, follower.token, follower.lease_seconds, follower.builds)
    rows = yield Step(queries.LEASE, (*mine, *follower.place))
    if not rows:
        follower.lost()
        return False
    [(token, transaction_id, position, phase)] = rows
    if anew or token != follower.token:
        follower.checkpoint, follower.phase = LogPosition(int(transaction_id), position), phase
        follower.in_doubt = False
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


def renew(follower: Follower[Any]) -> Plan[None]:
    """Keep the lease, if it is still ours; else whatever is written next finds out."""
    yield Step(queries.RENEW, (follower.lease_seconds, *follower.place, follower.token))


def release(follower: Follower[Any]) -> Plan[None]:
    """Give the lease up, so that another can take over at once."""
    if follower.leads:
        yield Step(queries.RELEASE, (*follower.place, follower.token))
        follower.lost()


def readable(error: Exception) -> str:
    """Give what an error says, at most 1,000 characters of it, as text that can be stored and written anywhere."""
    return str(error)[:1_000].replace("\0", " ").encode(errors="replace").decode()


def note(follower: Follower[Any], error: Exception) -> Plan[None]:
    """Note what keeps the table, for whoever watches."""
    yield Step(queries.NOTE_ERROR, (readable(error), *follower.place, follower.token))


def follow(follower: Follower[S]) -> Plan[Followed]:
    """Take a page of the log, as the owner of the lease or once it is free, and fold it into the table.

    Raises:
        PoisonEvent: an event cannot be folded, or its row not written. What comes before it is, and the error noted.
        Fenced: somebody else has taken over.
    """
    if follower.is_due and not (yield from lease(follower, anew=follower.in_doubt)):
        return Followed(leads=False, events=0)
    wanted = follower.page
    events = yield from log.read_log(follower.checkpoint, wanted)
    if not events:
        return Followed(leads=True, events=0)
    follower.taking = len(events)
    folded = _Folded(follower)
    poison = yield from folded.poison_in(events)
    try:
        if folded.count and not (yield from _advance(follower, folded, events[: folded.count])):
            return Followed(leads=True, events=0, full=True)
        if poison is not None:
            raise poison
    except PoisonEvent as error:
        yield from note(follower, error)
        raise
    follower.page = min(PAGE, 2 * wanted)
    return Followed(leads=True, events=folded.count, full=len(events) == wanted or folded.count < len(events))


class _Folded(Generic[S]):
    """The rows that come of events: read as they are, and folded on."""

    def __init__(self, follower: Follower[S]) -> None:
        self._follower, self._table, self._skips = follower, follower.table, follower.skips
        self._states: dict[str, S] = {}
        self._versions: dict[str, int] = {}
        self._changed: dict[str, None] = {}
        self.count = 0

    def poison_in(self, events: Sequence[StreamEvent]) -> Plan[PoisonEvent | None]:
        """Fold events up to one that cannot be folded, and give that; or for as long as the lease allows."""
        yield from self._read(events)
        by_stream = isinstance(self._table.projection, StreamProjection)
        enough = time.monotonic() + self._follower.lease_seconds / 3
        try:
            for event in events:
                if self.count and time.monotonic() >= enough:
                    break
                key = self._key(event)
                if key is not None and by_stream:
                    yield from self._next(key, event)
                elif key is not None:
                    self._fold(key, event)
                self.count += 1
        except PoisonEvent as poison:
            return poison
        return None

    def _read(self, events: Iterable[StreamEvent]) -> Plan[None]:
        """Read the rows as they are; an event that has no key for its poison is met again when its turn comes."""
        keys: dict[str | None, None] = {}
        for event in events:
            with suppress(Exception):  # told when it is this event's turn
                keys[self._key_of(event)] = None
        wanted = [key for key in keys if key is not None]
        if not wanted:
            return
        for key, values in (yield from read_rows(self._table, wanted)).items():
            self._states[key] = self._table.projection.state(values)
            if isinstance(self._table.projection, StreamProjection):
                self._versions[key] = self._table.stream_version(values)

    def _key_of(self, event: StreamEvent) -> str | None:
        key = self._table.projection.key(event)
        if key is not None and not isinstance(key, str):
            raise TypeError(f"a key is a text, not {key!r}")
        as_parameter(key)
        return key

    def _key(self, event: StreamEvent) -> str | None:
        try:
            return self._key_of(event)
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
            self._states[key] = self._table.fold(self._states.get(key), event)
            self._changed[key] = None
        self._versions[key] = event.version

    def columns(self) -> tuple[list[Any], ...]:
        """Give the rows that have changed, as the parameters of their upsert.

        Raises:
            Exception: one cannot be made, or (of a single event) sent.
        """
        rows: list[Values] = [self._table.projection.row(self._states[key]) for key in self._changed]
        columns = self._table.upsert_params(rows)
        if self.count == 1:
            for column in columns:
                as_parameter(column)
        return columns


def _advance(follower: Follower[S], folded: _Folded[S], events: Sequence[RecordedEvent]) -> Plan[bool]:
    """Write the rows, and move the checkpoint; False: nothing was written, or somewhere else: look again.

    Raises:
        PoisonEvent: the one event makes a row that cannot be written.
        Fenced: somebody else has taken over.
    """
    start, end, token = follower.checkpoint, events[-1].log_position, follower.token
    rate = follower.measured(len(events))
    params = (str(end.transaction_id), end.position, len(events), rate, follower.lease_seconds)
    where = (*follower.place, token, str(start.transaction_id), start.position)
    try:
        columns = folded.columns()
    except Exception as error:  # of row(), say: it is the events'
        return _unwritable(follower, events, error)
    statement = follower.table.advance if columns else queries.ADVANCE
    follower.in_doubt = True
    try:
        kept = yield Step(statement, (*params, *where, *columns), writes=True)
    except Lost:
        kept = []  # or it was, and the lease will tell
    except (psycopg.DataError, psycopg.IntegrityError, Refused) as error:
        follower.in_doubt = False
        return _unwritable(follower, events, error)
    if kept:
        follower.checkpoint, follower.in_doubt = end, False
        follower.taken(token)
        return True
    if not (yield from lease(follower, anew=True)) or follower.token != token:
        raise Fenced(f"{follower.table.full_name} is followed by somebody else now")
    return follower.checkpoint == end


def _unwritable(follower: Follower[S], events: Sequence[RecordedEvent], error: Exception) -> bool:
    if len(events) == 1:
        raise PoisonEvent(follower.table.name, events[0], error) from error
    follower.struggled()
    return False
