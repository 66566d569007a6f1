"""Building a read model's table from the log, beside whatever is in force, while appends go on.

Bulk: all streams are cut into chunks. Workers claim them one by one and fold each stream into its row; a chunk that is
done is noted by the statement that keeps the lease, so whoever comes after a kill does the others. Catch-up: what was
appended meanwhile is followed in the order of the log, from a place below every transaction that was under way when the
bulk began; an event that a row has already is passed over by its version. Verify. Switch: the view, in one transaction.
And at last everything that was still open at the switch is followed, too.

A projection whose rows gather several streams has no bulk: it is followed from the start of the log.

A table that is in force already is repaired in place in the same way: each row is written anew, unless it is newer.
"""

from collections.abc import Callable, Iterable
from typing import Any, Final, Literal, NamedTuple, TypeAlias, TypeVar

import psycopg
from psycopg.sql import SQL, Composed, Identifier

from eventstore import plans as log
from eventstore import queries as log_queries
from eventstore.event import MAX_STREAM_VERSION, LogPosition
from eventstore.steps import Plan, Step
from projections import queries
from projections.errors import Fenced, NotEqual, PoisonEvent, ProjectionError, UnknownProjection
from projections.projection import StreamProjection
from projections.projector import Follower, follow, lease, must_lead, new_owner, release
from projections.table import SCHEMA, Table
from projections.verification import compare

__all__ = [
    "Progress",
    "Verify",
    "begin",
    "built",
    "catch_up",
    "check_equal",
    "drained",
    "end",
    "fill_chunk",
    "finish_bulk",
    "in_force",
    "in_transaction",
    "migrate",
    "progress",
    "put_in_force_if_first",
    "switch",
]

S = TypeVar("S")
T = TypeVar("T")

Verify: TypeAlias = Literal["sample", "full", "none"]
"""How much of a new table is compared with the log: some streams, all, or nothing."""

EVENTS_IN_CHUNK: Final = 10_000
MOST_CHUNKS: Final = 10_000
SAMPLED_FOR_BORDER: Final = 100
"""Events that are looked at for each border between chunks."""

PAGE: Final = 2_000
"""Events read at once: at most some hundred MB, were each as large as can be."""


class Progress(NamedTuple):
    """How far a build has come; `total` is an estimate."""

    phase: str
    done: int
    total: int
    rate: float
    last_error: str | None


def begin(follower: Follower[Any], *, restart: bool = False) -> Plan[bool]:
    """Take the lease and create the table, or go on where another was interrupted; tell whether it is in place.

    `restart`: forget what was done of it.

    Raises:
        AlreadyRunning: somebody else is at it.
    """
    table = follower.table
    [(exists,)] = yield Step(queries.TABLE_EXISTS, (table.full_name,))
    [(registered,)] = yield Step(queries.IS_REGISTERED, follower.place)
    in_place = bool(exists and registered)
    yield from in_transaction(_statements(table.create()))
    yield Step(queries.ENROL, (*follower.place, follower.table.inline, "bulk"))
    yield from must_lead(follower)
    if in_place and not isinstance(table.projection, StreamProjection):
        raise ProjectionError(
            f"{table.full_name} is whole, and its rows gather several streams, so it cannot be built anew in place: "
            "give the projection its next version, and build that"
        )
    unfinished = exists and follower.phase in {"bulk", "catch-up", "verify"} and not restart
    [(_, chunks)] = yield Step(queries.UNFINISHED_CHUNKS, follower.place)
    if unfinished and (chunks or follower.phase != "bulk"):
        yield Step(queries.RELEASE_CHUNKS, follower.place)
        yield from _enter(follower, follower.phase)  # from now on its rate counts
        return in_place
    yield Step(queries.FORGET_CHUNKS, follower.place)
    if not in_place:
        yield Step(table.truncate(), None)
    yield from _plan_chunks(follower)
    if in_place:
        yield Step(table.delete_unfounded(), None)
    return in_place


def _plan_chunks(follower: Follower[Any]) -> Plan[None]:
    [(events,)] = yield Step(log_queries.ESTIMATE_EVENTS)
    name, version = follower.place
    rows = yield Step(queries.BEGIN_BULK, (events, *follower.place, follower.token))
    if not rows:
        raise _fenced(follower)
    [(transaction_id, position)] = rows
    follower.phase, follower.checkpoint = "bulk", LogPosition(int(transaction_id), position)
    # Whoever else's software writes from now on, its rows are repaired by following the log from here.
    yield Step(queries.ENROL_FROM_NOW, (follower.table.inline, name))
    if not isinstance(follower.table.projection, StreamProjection):
        follower.checkpoint = LogPosition(0, 0)
        yield Step(queries.FROM_START, (*follower.place, follower.token))
        return
    count = max(1, min(MOST_CHUNKS, events // EVENTS_IN_CHUNK))
    share = min(100.0, max(0.1, 100.0 * SAMPLED_FOR_BORDER * count / max(events, 1))) if count > 1 else 100.0
    borders = [number / count for number in range(1, count)]
    yield Step(queries.PLAN_CHUNKS, (name, version, borders, share))


def fill_chunk(follower: Follower[S]) -> Plan[int | None]:
    """Fold the streams of a chunk that nobody has claimed into their rows; give its events, None when none is left.

    Any number of workers may do so at once with copies of one follower.

    Raises:
        PoisonEvent: an event cannot be folded; it is noted.
        Fenced: somebody else has taken over.
    """
    rows = yield Step(queries.CLAIM_CHUNK, (*follower.place, follower.token))
    if not rows:
        return None
    [(number, after, last)] = rows
    try:
        events = yield from _fill(follower.table, after, last)
    except PoisonEvent as poison:
        yield Step(queries.NOTE_ERROR, (str(poison), *follower.place, follower.token))
        raise
    kept = (events, follower.lease_seconds, *follower.place, follower.token)
    if not (yield Step(queries.FINISH_CHUNK, (*kept, number))):
        raise _fenced(follower)
    return events


def _fill(table: Table[S], after: str, last: str) -> Plan[int]:
    place, total = (after, MAX_STREAM_VERSION), 0
    stream, state = "", None
    fold, row = table.projection.fold, table.projection.row
    while events := (yield from log.read_streams_to(place, last, PAGE)):
        states: dict[str, S] = {}
        for event in events:
            if event.stream_id != stream:
                stream, state = event.stream_id, None
            try:
                state = states[stream] = fold(state, event)
            except Exception as error:  # whatever it is: it is the event's
                raise PoisonEvent(table.name, event, error) from error
        yield Step(table.upsert.as_bytes(), table.upsert_params([row(each) for each in states.values()]))
        total += len(events)
        place = (events[-1].stream_id, events[-1].version)
        if len(events) < PAGE:
            break
    return total


def finish_bulk(follower: Follower[Any], *, in_place: bool) -> Plan[None]:
    """Enter the catch-up, once every chunk is done; create the indexes first."""
    if follower.phase != "bulk":
        return
    if not in_place:
        for statement in follower.table.create_indexes():
            yield Step(statement, None)
    yield from _enter(follower, "catch-up")


def catch_up(follower: Follower[Any]) -> Plan[None]:
    """Follow the log until there is nothing left to read."""
    while True:
        followed = yield from follow(follower)
        if not followed.leads:
            raise _fenced(follower)
        if not followed.full:
            return


def check_equal(follower: Follower[Any], verify: Verify, told: Callable[[int], None] = lambda _: None) -> Plan[int]:
    """Compare the table with what the log folds to, up to where it has come; give how many streams or keys were.

    Raises:
        NotEqual: they differ.
    """
    if verify == "none":
        return 0
    yield from _enter(follower, "verify")
    report = yield from compare(follower.table, follower.checkpoint, follower.skips, full=verify == "full", told=told)
    if not report.ok:
        error = NotEqual(follower.table.full_name, report.problems, report.problem_count)
        yield Step(queries.NOTE_ERROR, (str(error)[:1_000], *follower.place, follower.token))
        raise error
    return report.streams


def built(follower: Follower[Any]) -> Plan[None]:
    """Note that the table is whole: registries open on it from now on."""
    yield from in_transaction(put_in_force_if_first(follower.table))
    yield from in_transaction(_statements(follower.table.grant()))
    yield from _enter(follower, "built")
    yield Step(queries.FORGET_CHUNKS, follower.place)


def put_in_force_if_first(table: Table[Any]) -> Plan[None]:
    """Register a table as whole; in force, unless another version is."""
    projection = table.projection
    [(in_force,)] = yield Step(queries.REGISTER, (projection.name, projection.version, projection.name))
    definition = table.view_query.as_string()
    yield Step(queries.KEEP_VIEW, (definition, projection.name, projection.version))
    if in_force is None or in_force == projection.version:
        yield from _put_in_force(projection.name, projection.version, definition)


def switch(name: str, version: int) -> Plan[int]:
    """Put a version of a read model in force: its view shows that version's table from now on.

    Returns:
        The transaction that did it: whatever older one is still open may yet append for the version before.

    Raises:
        UnknownProjection: there is no whole table of this version.
    """
    rows = yield Step(queries.KEPT_VIEW, (name, version))
    if not rows:
        raise UnknownProjection(
            f"there is no whole read model {name}, version {version}: build it with: "
            f"command-registry projections rebuild {name}"
        )
    everything = SQL(queries.EVERYTHING).format(table=Identifier(SCHEMA, f"{name}_v{version}")).as_string()
    return (yield from in_transaction(_put_in_force(name, version, rows[0][0] or everything)))


def in_force(name: str) -> Plan[int | None]:
    """Tell which version of a read model is in force."""
    rows = yield Step(queries.WHICH_IN_FORCE, (name,))
    return rows[0][0] if rows else None


def drained(follower: Follower[Any], switched: int) -> Plan[bool]:
    """Follow the log, and tell whether all that was open at a switch has ended, and is in the table."""
    [(oldest,)] = yield Step(queries.OLDEST_RUNNING)
    yield from catch_up(follower)
    if int(oldest) > switched:
        return True
    yield Step(log_queries.PAUSE)
    return False


def end(follower: Follower[Any]) -> Plan[None]:
    """Leave the table to whoever follows the log for it."""
    yield from _enter(follower, "following")
    yield from release(follower)


def _put_in_force(name: str, version: int, definition: str) -> Plan[int]:
    view = Identifier(SCHEMA, name)
    readers = yield Step(queries.VIEW_READERS, (f"{SCHEMA}.{name}",))
    yield Step(SQL(queries.DROP_VIEW).format(view=view), None)
    yield Step(SQL(queries.CREATE_VIEW).format(view=view, query=SQL(definition)), None)
    yield Step(SQL(queries.GRANT).format(table=view), None)
    for (reader,) in readers:
        yield Step(SQL(queries.GRANT_TO).format(view=view, role=SQL(reader)), None)
    yield Step(queries.OUT_OF_FORCE, (name, version))
    [(transaction,)] = yield Step(queries.IN_FORCE, (name, version))
    return int(transaction)


def _statements(statements: Iterable[Composed]) -> Plan[None]:
    for statement in statements:
        yield Step(statement, None)


def in_transaction(steps: Plan[T]) -> Plan[T]:
    """Take steps in a transaction, one such at a time in this database."""
    yield Step(queries.BEGIN)
    yield Step(queries.TRUSTED_PATH)
    yield Step(queries.LOCK_MIGRATIONS)
    try:
        result = yield from steps
    except psycopg.Error:
        yield Step(log_queries.ROLLBACK)
        raise
    yield Step(log_queries.COMMIT)
    return result


def progress(table: Table[Any]) -> Plan[Progress]:
    """Read how far a build has come, whoever is at it."""
    projection = table.projection
    rows = yield Step(queries.PROGRESS, (projection.name, projection.version))
    return Progress(*rows[0]) if rows else Progress("", 0, 0, 0.0, None)


def migrate(table: Table[Any], told: Callable[[int], None] = lambda _: None) -> Plan[None]:
    """Build a read model whose table is not there or not whole, unless it is; put it in force if no other version is.

    Where somebody else is building it, wait for that. `told`: events folded.
    """
    follower = Follower(table, new_owner(), builds=True)
    while True:
        [(registered,)] = yield Step(queries.IS_REGISTERED, follower.place)
        [(exists,)] = yield Step(queries.TABLE_EXISTS, (table.full_name,))
        if registered and exists:
            break
        yield from in_transaction(_statements(table.create()))
        yield Step(queries.ENROL, (*follower.place, follower.table.inline, "bulk"))
        if not (yield from lease(follower)):
            yield Step(log_queries.PAUSE)
            continue
        yield from _build(follower, told)
    yield from in_transaction(_statements(table.grant()))  # each time: the roles may have come since


def _build(follower: Follower[Any], told: Callable[[int], None]) -> Plan[None]:
    yield from begin(follower)
    while (events := (yield from fill_chunk(follower))) is not None:
        told(events)
    yield from finish_bulk(follower, in_place=False)
    yield from catch_up(follower)
    yield from built(follower)
    yield from end(follower)


def _enter(follower: Follower[Any], phase: str) -> Plan[None]:
    if not (yield Step(queries.ENTER_PHASE, (phase, follower.lease_seconds, *follower.place, follower.token))):
        raise _fenced(follower)
    follower.phase = phase
    follower.taken(follower.token)


def _fenced(follower: Follower[Any]) -> Fenced:
    return Fenced(f"somebody else has taken over the build of {follower.table.full_name}")
