"""Building a read model's table from the log, beside whatever is in force, while appends go on.

Bulk: all streams are cut into chunks. Workers claim them one by one and fold each stream into its row; a chunk that is
done is noted by the statement that keeps the lease, so whoever comes after a kill does the others. Catch-up: what was
appended meanwhile is followed in the order of the log, from a place below every transaction that was under way when the
bulk began; an event that a row has already is passed over by its version. Verify. Switch: the view, in one transaction.
And at last everything that was still open at the switch is followed, too.

A projection whose rows gather several streams has no bulk: it is followed from the start of the log.

A table that is in force already is repaired in place in the same way: each row is written anew, unless it is newer.
"""

from collections.abc import Callable, Container, Iterable, Mapping
from contextlib import suppress
from typing import Any, Final, Generic, Literal, NamedTuple, TypeAlias, TypeVar

import psycopg
from psycopg.sql import SQL, Composed, Identifier

from eventstore import plans as log
from eventstore import queries as log_queries
from eventstore.event import MAX_STREAM_VERSION, LogPosition, StreamEvent
from eventstore.protocol import LOG_START
from eventstore.steps import Blocked, Plan, Refused, Step
from projections import queries
from projections.errors import Fenced, NotEqual, PoisonEvent, ProjectionError, StillUsed, UnknownProjection
from projections.plans import read_rows
from projections.projection import StreamProjection
from projections.projector import Follower, follow, lease, must_lead, new_owner, note, release
from projections.table import SCHEMA, Table
from projections.verification import compare

__all__ = [
    "Drain",
    "Progress",
    "Verify",
    "begin",
    "built",
    "catch_up",
    "catch_up_a_page",
    "check_equal",
    "end",
    "fill_chunk",
    "finish_bulk",
    "in_force",
    "in_transaction",
    "left_over",
    "migrate",
    "note_wait",
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

_ATTEMPTS: Final = 10
"""How often a switch asks for the view while somebody reads it, two seconds each time."""


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
    unfinished = exists and follower.phase in {"bulk", "catch-up", "verify", "built"} and not restart
    [(_, chunks)] = yield Step(queries.UNFINISHED_CHUNKS, follower.place)
    if unfinished and (chunks or follower.phase != "bulk"):
        yield Step(queries.RELEASE_CHUNKS, follower.place)
        yield from _enter(follower, follower.phase)  # from now on its rate counts
        return in_place
    if in_place and not isinstance(table.projection, StreamProjection):
        raise ProjectionError(
            f"{table.full_name} is whole, and its rows gather several streams, so it cannot be built anew in place: "
            "give the projection its next version, and build that"
        )
    [(events,)] = yield Step(log_queries.ESTIMATE_EVENTS)
    yield from in_transaction(_begin_bulk(follower, events, in_place=in_place))
    # Whoever finds a bulk without chunks, after a kill, begins anew.
    if in_place:
        yield Step(table.delete_unfounded(), None)
    yield from in_transaction(_plan_chunks(follower, events))
    return in_place


def _begin_bulk(follower: Follower[Any], events: int, *, in_place: bool) -> Plan[None]:
    """Begin, as the owner of the lease, with an empty table or one to repair."""
    table = follower.table
    yield Step(queries.LOCK_BRIEFLY)
    [(versions,)] = yield Step(queries.VERSIONS, (table.projection.name,))
    stays = in_place and not (table.inline and versions == 1)  # somebody follows the log for it, from where it is
    rows = yield Step(queries.BEGIN_BULK, (events, stays, *follower.place, follower.token))
    if not rows:
        raise _fenced(follower)
    yield Step(queries.FORGET_CHUNKS, follower.place)
    if not in_place:
        yield Step(table.truncate(), None)
    [(transaction_id, position)] = rows
    follower.phase, follower.checkpoint = "bulk", LogPosition(int(transaction_id), position)
    # Whoever else's software writes from now on, its rows are repaired by following the log from here.
    yield Step(queries.ENROL_FROM_NOW, (follower.table.inline, follower.table.projection.name))


def _plan_chunks(follower: Follower[Any], events: int) -> Plan[None]:
    yield from _enter(follower, "bulk")
    if not isinstance(follower.table.projection, StreamProjection):
        follower.checkpoint = LogPosition(0, 0)
        yield Step(queries.FROM_START, (*follower.place, follower.token))
        return
    count = max(1, min(MOST_CHUNKS, events // EVENTS_IN_CHUNK))
    share = min(100.0, max(0.1, 100.0 * SAMPLED_FOR_BORDER * count / max(events, 1))) if count > 1 else 100.0
    borders = [number / count for number in range(1, count)]
    yield Step(queries.PLAN_CHUNKS, (*follower.place, borders, share))


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
    skips = frozenset((yield Step(queries.SKIPS, follower.place)))
    [(in_place,)] = yield Step(queries.IS_REGISTERED, follower.place)
    try:
        events = yield from _fill(_Fold(follower.table, skips), after, last, in_place=in_place)
    except PoisonEvent as poison:
        yield from note(follower, poison)
        raise
    kept = (events, follower.lease_seconds, *follower.place, follower.token)
    if not (yield Step(queries.FINISH_CHUNK, (*kept, number))):
        raise _fenced(follower)
    return events


class _Fold(Generic[S]):
    """Streams, one after the other, folded into their states."""

    def __init__(self, table: Table[S], skips: Container[tuple[str, int]]) -> None:
        self.table, self.skips = table, skips
        self._stream_id = ""
        self._state: S | None = None

    def changed(self, events: Iterable[StreamEvent]) -> dict[str, S]:
        """Fold the next events, and give the states that they lead to."""
        states: dict[str, S] = {}
        for event in events:
            if event.stream_id != self._stream_id:
                self._stream_id, self._state = event.stream_id, None
            if (event.stream_id, event.version) not in self.skips:
                self._state = states[event.stream_id] = self.table.fold(self._state, event)
        return states


def _fill(fold: _Fold[Any], after: str, last: str, *, in_place: bool) -> Plan[int]:
    place, total = (after, MAX_STREAM_VERSION), 0
    while events := (yield from log.read_streams_to(place, last, PAGE)):
        states = fold.changed(events)
        yield from _write(fold.table, states)
        if in_place:
            yield from _fold_newer(fold, states)
        total += len(events)
        place = (events[-1].stream_id, events[-1].version)
        if len(events) < PAGE:
            break
    return total


def _write(table: Table[S], states: Mapping[str, S]) -> Plan[None]:
    if states:
        rows = [table.projection.row(state) for state in states.values()]
        yield Step(table.upsert.as_bytes(), table.upsert_params(rows))


def _fold_newer(fold: _Fold[S], states: Mapping[str, S]) -> Plan[None]:
    """Fold the streams again whose rows have become newer: what those were folded from may have been wrong."""
    table = fold.table
    known = {key: table.stream_version(table.projection.row(state)) for key, state in states.items()}
    while known:
        rows = yield from read_rows(table, list(known))
        newer = [key for key, version in known.items() if key in rows and table.stream_version(rows[key]) > version]
        again: dict[str, S] = {}
        for key in newer:
            again |= _Fold(table, fold.skips).changed((yield from log.read_stream(key)))
        yield from _write(table, again)
        came = {key: table.stream_version(table.projection.row(state)) for key, state in again.items()}
        known = {key: version for key, version in came.items() if version > known[key]}  # else the row is ahead


def left_over(follower: Follower[Any]) -> Plan[bool]:
    """Tell whether chunks were claimed and not done, and nobody is at them: whose claim was lost with a connection.

    They can then be claimed once more. No worker may be at work.
    """
    yield from _enter(follower, follower.phase)
    yield Step(queries.RELEASE_CHUNKS, follower.place)
    [(unfinished, _)] = yield Step(queries.UNFINISHED_CHUNKS, follower.place)
    return bool(unfinished)


def finish_bulk(follower: Follower[Any], *, in_place: bool) -> Plan[None]:
    """Enter the catch-up, once every chunk is done; create the indexes first."""
    if follower.phase != "bulk":
        return
    if not in_place:
        for statement in follower.table.create_indexes():
            yield Step(statement, None)
    yield from _enter(follower, "catch-up")


def catch_up_a_page(follower: Follower[Any]) -> Plan[bool]:
    """Follow the log by a page; tell whether there is more to read."""
    followed = yield from follow(follower)
    if not followed.leads:
        raise _fenced(follower)
    return followed.full


def catch_up(follower: Follower[Any]) -> Plan[None]:
    """Follow the log until there is nothing left to read."""
    while (yield from catch_up_a_page(follower)):
        pass


def note_wait(follower: Follower[Any]) -> Plan[None]:
    """Note who holds readers of the log back, for whoever watches."""
    writer = yield from log.oldest_writer()
    if writer is not None:
        text = f"waiting for {writer.name} in database {writer.database}, which has written; to end it: {writer.remedy}"
        yield from note(follower, RuntimeError(text))


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
        yield from note(follower, error)
        raise error
    return report.streams


def built(follower: Follower[Any]) -> Plan[None]:
    """Note that the table is whole: registries open on it from now on."""
    yield from in_transaction(_register(follower.table))
    yield from _enter(follower, "built")
    yield Step(queries.FORGET_CHUNKS, follower.place)


def _register(table: Table[Any]) -> Plan[None]:
    yield from put_in_force_if_first(table)
    yield from _statements(table.grant())


def put_in_force_if_first(table: Table[Any]) -> Plan[None]:
    """Register a table as whole; in force, unless another version is."""
    name, version = place = table.projection.name, table.projection.version
    [(in_force,)] = yield Step(queries.REGISTER, (*place, name))
    definition = table.view_query.as_string()
    [(kept,)] = yield Step(queries.KEPT_VIEW, place)
    yield Step(queries.KEEP_VIEW, (definition, *place))
    if in_force is None:
        yield from _put_in_force(name, version, definition)
    elif in_force == version and not (kept == definition and (yield from _is_shown(name))):
        yield from _show(name, definition)


def switch(name: str, version: int) -> Plan[int]:
    """Put a version of a read model in force: its view shows that version's table from now on.

    Returns:
        The transaction that did it: whatever older one is still open may yet append for the version before.

    Raises:
        UnknownProjection: there is no whole table of this version.
        StillUsed: somebody's view or function depends on the view; nothing has changed.
        Blocked: somebody's transaction reads the view for too long; nothing has changed.
    """
    rows = yield Step(queries.KEPT_VIEW, (name, version))
    if not rows:
        raise UnknownProjection(
            f"there is no whole read model {name}, version {version}: build it with: "
            f"command-registry projections rebuild {name}"
        )
    everything = SQL(queries.EVERYTHING).format(table=Identifier(SCHEMA, f"{name}_v{version}")).as_string()
    definition, attempts = rows[0][0] or everything, 0
    while True:
        try:
            return (yield from in_transaction(_put_in_force(name, version, definition)))
        except Blocked:
            attempts += 1
            if attempts > _ATTEMPTS:
                raise
        yield Step(log_queries.PAUSE)  # for the others who read the view: they wait behind us


def in_force(name: str) -> Plan[int | None]:
    """Tell which version of a read model is in force."""
    rows = yield Step(queries.WHICH_IN_FORCE, (name,))
    return rows[0][0] if rows else None


class Drain:
    """Follows the log until all that was open at a switch has ended, and is in the table."""

    def __init__(self, follower: Follower[Any], switched: int) -> None:
        self._follower, self._switched = follower, switched
        self._last: LogPosition | None = None

    def plan(self) -> Plan[bool]:
        """Go on as far as is possible now, and tell whether that was all."""
        [(oldest,)] = yield Step(queries.OLDEST_RUNNING)
        if self._last is None and int(oldest) > self._switched:
            rows = yield Step(queries.LAST_OF_OLDER, (str(self._switched),))
            self._last = LogPosition(int(rows[0][0]), rows[0][1]) if rows else LOG_START
        yield from catch_up(self._follower)
        if self._last is not None and self._last <= self._follower.checkpoint:
            return True
        yield Step(log_queries.PAUSE)
        return False


def end(follower: Follower[Any]) -> Plan[None]:
    """Leave the table to whoever follows the log for it."""
    yield from _enter(follower, "following")
    yield from release(follower)


def _put_in_force(name: str, version: int, definition: str) -> Plan[int]:
    if (yield from in_force(name)) != version or not (yield from _is_shown(name)):
        yield from _show(name, definition)
    yield Step(queries.OUT_OF_FORCE, (name, version))
    [(transaction,)] = yield Step(queries.IN_FORCE, (name, version))
    return int(transaction)


def _is_shown(name: str) -> Plan[bool]:
    [(there,)] = yield Step(queries.TABLE_EXISTS, (f"{SCHEMA}.{name}",))
    return bool(there)


def _show(name: str, definition: str) -> Plan[None]:
    view = Identifier(SCHEMA, name)
    yield Step(queries.LOCK_BRIEFLY)
    readers = yield Step(queries.VIEW_READERS, (f"{SCHEMA}.{name}",))
    try:
        yield Step(SQL(queries.DROP_VIEW).format(view=view), None)
    except psycopg.errors.DependentObjectsStillExist as error:
        raise StillUsed(
            f"view {SCHEMA}.{name} cannot show another version, {error.diag.message_detail}: "
            "drop that first, and create it again afterwards"
        ) from error
    yield Step(SQL(queries.CREATE_VIEW).format(view=view, query=SQL(definition)), None)
    yield Step(SQL(queries.GRANT).format(table=view), None)
    for (reader,) in readers:
        yield Step(SQL(queries.GRANT_TO).format(view=view, role=SQL(reader)), None)


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
    except (psycopg.Error, Refused, Blocked, ProjectionError):
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
        [(registered_now,)] = yield Step(queries.IS_REGISTERED, follower.place)
        if registered_now and not registered:  # somebody else was through with it before we had the lease
            yield from release(follower)
            continue
        with suppress(Fenced):  # it took us too long, and somebody else goes on with it
            yield from _build(follower, told)
    yield from in_transaction(_statements(table.grant()))  # each time: the roles may have come since


def _build(follower: Follower[Any], told: Callable[[int], None]) -> Plan[None]:
    yield from begin(follower, restart=follower.phase == "verify")  # which did not end well, perhaps
    while True:
        while (events := (yield from fill_chunk(follower))) is not None:
            told(events)
        if not (yield from left_over(follower)):
            break
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
