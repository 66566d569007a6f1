"""What is known of the read models: who follows them, how far, what keeps them; and what is done about it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import psycopg
from psycopg.sql import SQL, Identifier

from eventstore import plans as log
from eventstore import queries as log_queries
from eventstore.event import LogPosition, check_name
from eventstore.plans import Writer
from eventstore.steps import Plan, Row, Step
from projections import queries
from projections.errors import NotCaughtUp, StillUsed, UnknownProjection
from projections.projector import Followed, Follower, follow
from projections.rebuild import in_transaction, put_in_force_if_first
from projections.table import SCHEMA, Table

__all__ = ["Lag", "Overview", "Status", "enrol", "follow_if_needed", "overview", "prune", "skip", "wait_until"]

MOST_COUNTED: Final = 100_000
"""Events that are counted for a lag, at most."""

_WHOLE: Final = ("built", "following")


@dataclass(frozen=True, slots=True)
class Lag:
    """How far a table is behind the log: events (100,000: or more), and how many seconds the first has waited."""

    events: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Status:
    """One version of a read model.

    `phase`: bulk, catch-up, verify (it is being built); built, following (by whoever is its `owner`); inline (every
    append writes it, and nobody needs to follow). `position` is the last event in it; `rate`, events a second of late.
    """

    name: str
    version: int
    in_force: bool
    whole: bool
    phase: str
    position: LogPosition | None
    lag: Lag | None
    owner: str | None
    events_done: int
    events_total: int
    rate: float
    last_error: str | None
    updated_at: datetime | None
    skipped: int


@dataclass(frozen=True, slots=True)
class Overview:
    """All read models, and the oldest open transaction that writes: readers of the log wait for it."""

    projections: tuple[Status, ...]
    held_back_by: Writer | None


def overview() -> Plan[Overview]:
    """Read what is known of every read model."""
    rows = yield Step(queries.STATUS)
    found = []
    for name, version, in_force, whole, phase, transaction_id, position, *others in rows:
        owner, done, total, rate, error, updated_at, skipped = others
        place = None if phase == "inline" else LogPosition(int(transaction_id), position)
        at = None if updated_at is None else updated_at.replace(tzinfo=UTC)
        lag = None if place is None else (yield from _lag(place))
        state = (name, version, in_force, whole, phase, place, lag, owner)
        found.append(Status(*state, done or 0, total or 0, rate or 0.0, error, at, skipped))
    return Overview(tuple(found), (yield from log.oldest_writer()))


def _lag(place: LogPosition) -> Plan[Lag]:
    [(events, seconds)] = yield Step(queries.LAG, (str(place.transaction_id), place.position, MOST_COUNTED))
    return Lag(events, round(seconds or 0.0, 3))


def enrol(table: Table[Any]) -> Plan[None]:
    """Make a table ready to be followed: where there is none, create it, to be followed from the start of the log.

    One that every append writes is followed only while there are several versions of it.
    """
    projection = table.projection
    place = (projection.name, projection.version)
    if table.inline:
        return
    [(registered,)] = yield Step(queries.IS_REGISTERED, place)
    rows = yield Step(queries.PROGRESS, place)
    if registered or rows:
        return
    yield from in_transaction(_create(table))


def _create(table: Table[Any]) -> Plan[None]:
    for statement in (*table.create(), *table.create_indexes()):
        yield Step(statement, None)
    yield Step(queries.ENROL, (table.projection.name, table.projection.version, False, "following"))
    yield from put_in_force_if_first(table)
    for statement in table.grant():
        yield Step(statement, None)


def follow_if_needed(follower: Follower[Any]) -> Plan[Followed]:
    """Follow the log by a page, unless every append writes the table and there is no other version of it."""
    projection = follower.table.projection
    if follower.table.inline and follower.is_due:
        [(versions,)] = yield Step(queries.VERSIONS, (projection.name,))
        if versions < 2:
            return Followed(leads=False, events=0)
    return (yield from follow(follower))


def wait_until(tables: Sequence[Table[Any]], position: LogPosition | None, timeout: float) -> Plan[None]:
    """Wait until tables have come to a position (None: the end of the log now), at most so many seconds.

    Nobody needs to wait for one that every append writes, unless there are several versions of it.

    Raises:
        NotCaughtUp: they have not; says how far each is, and what keeps it.
    """
    deadline = time.monotonic() + timeout
    wanted = (yield from log.log_end()) if position is None else position
    places = [[table.projection.name for table in tables], [table.projection.version for table in tables]]
    while True:
        rows = yield Step(queries.PLACES, places)
        known = {(name, version) for name, version, *_ in rows}
        missing = [
            table
            for table in tables
            if not table.inline and (table.projection.name, table.projection.version) not in known
        ]
        behind = [row for row in rows if _is_behind(row, wanted)]
        if not missing and not behind:
            return
        if time.monotonic() >= deadline:
            raise NotCaughtUp((yield from _why(missing, behind, wanted, timeout)))
        yield Step(log_queries.PAUSE)


def _is_behind(row: Row, wanted: LogPosition) -> bool:
    _, _, transaction_id, position, *_, phase = row
    if phase == "inline":
        return False
    return phase not in _WHOLE or LogPosition(int(transaction_id), position) < wanted


def _why(missing: Sequence[Table[Any]], behind: Sequence[Row], wanted: LogPosition, timeout: float) -> Plan[str]:
    reasons = [f"{table.full_name} is followed by nobody yet" for table in missing]
    for name, version, transaction_id, position, owner, error, phase in behind:
        if phase not in _WHOLE:
            reasons.append(f"{name}_v{version} is being built ({phase})")
            continue
        led = f"led by {owner}" if owner else "led by nobody: see that `command-registry projections run` runs"
        reasons.append(
            f"{name}_v{version} is at {transaction_id}:{position}, {led}{f', and says: {error}' if error else ''}"
        )
    writer = yield from log.oldest_writer()
    if writer is not None:
        reasons.append(f"readers of the log wait for {writer.name} in database {writer.database} ({writer.remedy})")
    place = f"{wanted.transaction_id}:{wanted.position}"
    return f"not at {place} of the log within {timeout:g} s: {'; '.join(reasons)}"


def skip(name: str, version: int, stream_id: str, stream_version: int, reason: str) -> Plan[bool]:
    """Let a projection leave an event out that it cannot fold; recorded with who said so. False: it was told before.

    Raises:
        UnknownProjection: nobody follows this version, or there is no such event.
    """
    check_name("stream_id", stream_id)
    check_name("reason", reason)
    if not (yield Step(queries.PROGRESS, (name, version))):
        raise UnknownProjection(f"nobody follows {name}, version {version}: see command-registry projections status")
    events = yield from log.read_stream(stream_id, stream_version - 1, 1)
    if not events or events[0].version != stream_version:
        raise UnknownProjection(f"stream {stream_id!r} has no version {stream_version}")
    return bool((yield Step(queries.SKIP, (name, version, stream_id, stream_version, reason))))


def prune(name: str, version: int, observe: float) -> Plan[None]:
    """Drop the table of a version that is not in force, after watching for so many seconds that nobody uses it.

    Raises:
        StillUsed: it is in force, somebody follows it, or it was read or written meanwhile.
        UnknownProjection: there is none.
    """
    state = next(
        (each for each in (yield from overview()).projections if (each.name, each.version) == (name, version)), None
    )
    if state is None:
        raise UnknownProjection(f"there is no read model {name}, version {version}")
    full_name = f"{SCHEMA}.{name}_v{version}"
    if state.in_force:
        raise StillUsed(f"{full_name} is in force: switch to another version first")
    if state.owner is not None:
        raise StillUsed(f"{full_name} is being built or followed by {state.owner}: stop that first")
    before = yield Step(queries.USES, (full_name,))
    yield Step(queries.WAIT, (observe,))
    if (yield Step(queries.USES, (full_name,))) != before:
        raise StillUsed(
            f"{full_name} was read or written within the last {observe:g} s: software of that version still runs"
        )
    yield from in_transaction(_drop(name, version, full_name))


def _drop(name: str, version: int, full_name: str) -> Plan[None]:
    yield Step(queries.LOCK_BRIEFLY)
    try:
        yield Step(SQL(queries.DROP_TABLE).format(table=Identifier(SCHEMA, f"{name}_v{version}")), None)
    except psycopg.errors.DependentObjectsStillExist as error:
        raise StillUsed(f"{full_name} is used by: {error.diag.message_detail}; drop that first") from error
    yield Step(queries.DEREGISTER, (name, version) * 3)
