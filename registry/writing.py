"""The writes of many callers as one plan: load, decide, and append with one statement; each keeps its own outcome.

A round takes the calls that are not settled yet, decides each on the state its command is in (after the calls before
it), and sends all the events. What can happen to a statement, and what the next round makes of it:

* committed: every call of it has its answer.
* refused by the primary key: somebody else wrote to one of the commands. All are loaded again; those that had moved on
  go after the others from now on, and each in a statement of its own: of several that others write to all the time, one
  would always have moved on.
* refused by the server for another reason: half of it is tried, until the one call to blame is found.
* it has to wait for a transaction that does not end: half of it is tried, until the one call that has to wait is found;
  that one goes on in a lane aside.
* the line broke: each call remembers the event it had sent. Found in the log, by its hash: that was my commit.

Every refusal means that somebody else's write went through, so writers together always make progress.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any, Final, Generic, NamedTuple, TypeVar

import psycopg

from eventstore import queries as log_queries
from eventstore.batching import LANES, Call, Work
from eventstore.codec import encode_json
from eventstore.errors import Conflict, EventStoreError, OutcomeUnknown, Unavailable
from eventstore.event import NewEvent, StreamEnd, StreamEvent
from eventstore.hashing import chain
from eventstore.steps import Blocked, Lost, Plan, Refused, Step, Withdrawn
from projections import plans as projections
from projections.plans import Also, Loaded
from registry import decider, queries
from registry.command_status import COMMAND_STATUS
from registry.decider import Clock, Decide, Decision
from registry.deployments import Deployment, resolve, running
from registry.errors import CommandNotFound, IdempotencyConflict, RegistryError
from registry.events import CODEC
from registry.history import metadata_text
from registry.ids import new_command_id
from registry.lifecycle import is_terminal
from registry.models import CommandStatus, EventContext, NewCommand

__all__ = ["Creation", "States", "Write", "answer_if_there", "creation", "work", "write_all", "write_in_time"]

R = TypeVar("R")

MAX_STATES: Final = 8_192
"""States that are remembered, at most; each takes a few kilobytes."""

MOST_TOGETHER: Final = 1_000
"""Calls in one statement, at most; a sweep of expired commands may bring many more."""

PATIENCE: Final = 100
"""How long a statement of several calls waits for somebody else's transaction, in milliseconds."""

PATIENT_SHARE: Final = 0.8
"""How much of the time it has a call that goes aside waits for somebody else's transaction."""


_SENDING: Final = threading.Lock()
"""Held while it is noted what is sent, or told to a caller that nothing was: one comes before the other."""


class _Sent(NamedTuple):
    """An event that a call has sent, and what the caller is to be told if it is in the log.

    `before`: where the stream has to end for the statement that it was sent in to be accepted.
    """

    event: StreamEvent
    answer: Any
    before: StreamEnd | None


class Write(Call[R], Generic[R]):
    """A call that appends to one command's stream what it decides on."""

    __slots__ = ("command_id", "decide", "metadata", "sent")

    def __init__(self, command_id: str, decide: Decide[R], metadata: str) -> None:
        super().__init__()
        self.command_id = command_id
        self.decide = decide
        self.metadata = metadata
        self.sent: list[_Sent] = []

    @property
    def key(self) -> str:
        """The command that it is about."""
        return self.command_id

    def may_yet_commit(self, end: StreamEnd | None) -> bool:
        """Tell whether something it had sent may still come into a stream that ends there now.

        Only if it was sent for just that end: the primary key and the chain refuse it after any other.
        """
        return any(sent.before == end for sent in self.sent)

    def give_up(self, error: Exception) -> None:
        """Settle it because there is no time left: what it had sent may be in the log, or may yet come there."""
        with _SENDING:
            if self.sent:
                event = self.sent[-1].event
                error = OutcomeUnknown(event.stream_id, event.version, event.hash)
            self.fail(error)


class Creation(Write[CommandStatus]):
    """A call that creates a command."""

    __slots__ = ("arguments_hash", "call", "deployment", "looks_for_key")

    def __init__(self, call: NewCommand, arguments_hash: bytes, deployment: Deployment | None, metadata: str) -> None:
        super().__init__(new_command_id(), self._never, metadata)
        self.call = call
        self.arguments_hash = arguments_hash
        self.deployment = deployment
        self.looks_for_key = call.idempotency_key is not None

    def _never(self, status: CommandStatus) -> Decision[CommandStatus]:
        raise ValueError(f"command {status.command_id!r} was created twice")


def creation(call: NewCommand, deployment: Deployment | None, context: EventContext) -> Creation:
    """Make the call that creates a command in a deployment (None: the directory knows none)."""
    arguments_hash = b"" if call.idempotency_key is None else sha256(encode_json(call).encode()).digest()
    return Creation(call, arguments_hash, deployment, metadata_text(context, call.idempotency_key))


def answer_if_there(write: Write[R]) -> R | None:
    """Give a settled call's answer; None when there is no such command."""
    try:
        return write.result()
    except CommandNotFound:
        return None


class States:
    """What recent commands were last known to be, at most so many: only ever a guess, the primary key decides.

    Also: which commands others write to at the same time (`contested`).
    """

    def __init__(self, most: int = MAX_STATES) -> None:
        self._most = most
        self._known: OrderedDict[str, Loaded[CommandStatus]] = OrderedDict()
        self._contested: OrderedDict[str, None] = OrderedDict()

    def get(self, command_id: str) -> Loaded[CommandStatus] | None:
        """Give what a command is believed to be; None when nothing is known, or nothing known lasts."""
        return None if command_id in self._contested else self._known.get(command_id)

    def put(self, command_id: str, end: StreamEnd, state: CommandStatus) -> None:
        """Remember a command as this process has just written it.

        Not one that is final (hardly anybody writes to it again), nor one with an error, which may be large.
        """
        self._contested.pop(command_id, None)
        if is_terminal(state.state) or state.error is not None:
            self._known.pop(command_id, None)
            return
        self._known[command_id] = Loaded(end, state)
        self._known.move_to_end(command_id)
        if len(self._known) > self._most:
            self._known.popitem(last=False)

    def forget(self, command_ids: Iterable[str]) -> None:
        """Believe nothing of these any more."""
        for command_id in command_ids:
            self._known.pop(command_id, None)

    def contest(self, command_ids: Iterable[str]) -> None:
        """Note that somebody else writes to these."""
        for command_id in command_ids:
            self._contested[command_id] = None
            if len(self._contested) > self._most:
                self._contested.popitem(last=False)

    def is_contested(self, command_id: str) -> bool:
        """Tell whether somebody else has lately written to a command, just before us."""
        return command_id in self._contested


@dataclass(slots=True)
class _Stream:
    """A command's stream in a round: where it ends in the log, and where the round takes it."""

    before: StreamEnd | None
    end: StreamEnd | None
    state: CommandStatus | None
    fresh: bool

    @property
    def command(self) -> CommandStatus:
        """The state; there is one but for a stream that a creation begins."""
        if self.state is None:
            raise AssertionError("a stream with events and no state")
        return self.state

    @property
    def unchanged(self) -> bool:
        """Whether the round adds nothing to it."""
        return self.end is self.before

    @property
    def certain(self) -> bool:
        """Whether a refusal may be based on it: just read, or final."""
        return self.fresh or is_terminal(self.command.state)


class _Decided(NamedTuple):
    """What a round made of a call: its outcome once the statement is committed, and the event that it sends, if any."""

    write: Write[Any]
    answer: object
    refusal: Exception | None
    sent: _Sent | None


class _Round:
    """What is decided, and goes in one statement."""

    def __init__(self, streams: dict[str, _Stream], clock: Clock) -> None:
        self.streams = streams
        self._clock = clock
        self.events: list[tuple[StreamEvent, StreamEnd | None]] = []
        self.decided: list[_Decided] = []
        self.keys: dict[str, Creation] = {}
        self._is_sent = False

    @property
    def writes(self) -> list[Write[Any]]:
        """The calls that append something."""
        return [decided.write for decided in self.decided if decided.sent is not None]

    def decide(self, write: Write[Any]) -> bool:
        """Decide on a call; False when it would be refused on a state that is only believed."""
        if write.settled:
            return True
        if isinstance(write, Creation):
            return self._create(write)
        stream = self.streams[write.command_id]
        try:
            decision = write.decide(stream.command)
        except (RegistryError, EventStoreError) as refusal:
            return self._without_events(write, stream, None, refusal)
        if not decision.events:
            return self._without_events(write, stream, decision.answer, None)
        try:
            self._append(write, stream, decision, self._clock())
        except EventStoreError as refusal:
            write.fail(refusal)
        return True

    def _without_events(self, write: Write[Any], stream: _Stream, answer: object, refusal: Exception | None) -> bool:
        if not stream.unchanged:
            self.decided.append(_Decided(write, answer, refusal, None))  # true once the events before it are committed
        elif not stream.certain:
            return False
        elif not write.may_yet_commit(stream.before):
            _settle(write, answer, refusal)
        return True

    def _create(self, creation: Creation) -> bool:
        call = creation.call
        if call.idempotency_key is not None and call.idempotency_key in self.keys:
            creation.looks_for_key = True  # in the next round it finds the command that the other one makes now
            return True
        try:
            deployment = running(call.deployment_id, creation.deployment)
            target = resolve(deployment, call.target).target
            event = decider.create(creation.command_id, call, deployment, target, self._clock())
            stream = self.streams[creation.command_id] = _Stream(None, None, None, fresh=True)
            self._append(creation, stream, Decision(None, (event,)), event.created_at)
        except (RegistryError, EventStoreError) as refusal:
            creation.fail(refusal)
        else:
            if call.idempotency_key is not None:
                self.keys[call.idempotency_key] = creation
        return True

    def _append(self, write: Write[Any], stream: _Stream, decision: Decision[Any], now: datetime) -> None:
        state = decider.replay(decision.events, stream.state)
        new: list[NewEvent] = [CODEC.encode(event, now, write.metadata) for event in decision.events]
        chained = chain(write.command_id, stream.end, new)
        answer = state if isinstance(write, Creation) else decision.answer
        stream.state, stream.end = state, StreamEnd(chained[-1].version, chained[-1].hash)
        self.events += [(event, stream.before) for event in chained]
        self.decided.append(_Decided(write, answer, None, _Sent(chained[0], answer, stream.before)))

    def patience(self) -> int | None:
        """Say for how long a statement may wait so that its callers can still be told why, in milliseconds."""
        deadline = min(write.deadline for write in self.writes)
        return max(1, int((deadline - time.monotonic()) * PATIENT_SHARE * 1000)) if deadline else None

    def step(self, patience: int | None) -> Step:
        """Make the statement."""
        rows = [
            COMMAND_STATUS.projection.row(stream.state)
            for stream in self.streams.values()
            if stream.state is not None and not stream.unchanged
        ]
        return projections.append_step(
            [(COMMAND_STATUS, rows)], self.events, *self._also(), patience=patience, sender=self
        )

    def _also(self) -> Iterable[Also]:
        if self.keys:
            keys = sorted(self.keys.items())
            columns = (
                [key for key, _ in keys],
                [creation.arguments_hash for _, creation in keys],
                [creation.command_id for _, creation in keys],
            )
            yield Also(queries.INSERT_IDEMPOTENCY_KEYS, columns)

    def committed(self, states: States) -> None:
        """Answer every call, and remember where their commands are now."""
        for command_id, stream in self.streams.items():
            if stream.state is not None and stream.end is not None and not stream.unchanged:
                states.put(command_id, stream.end, stream.state)
        for write, answer, refusal, _ in self.decided:
            _settle(write, answer, refusal)

    def conflict(self) -> Conflict:
        """Make the error of a refusal that nothing explains."""
        command_id = self.writes[0].command_id
        before = self.streams[command_id].before
        return Conflict(command_id, before.version if before else 0, None)

    def sending(self) -> bool:
        """Note on each call what is sent for it; False when one of them is settled: who gave up is not written."""
        with _SENDING:
            if any(write.settled and sent is not None for write, *_, sent in self.decided):
                return False
            if not self._is_sent:
                self._is_sent = True
                for write, *_, sent in self.decided:
                    if sent is not None:
                        write.sent.append(sent)
            return True

    def failed(self) -> None:
        """Forget what was sent: it is certain not to be in the log."""
        with _SENDING:
            if self._is_sent:
                self._is_sent = False
                for write in self.writes:
                    write.sent.pop()


def _settle(write: Write[Any], answer: object, refusal: Exception | None) -> None:
    if refusal is None:
        write.answer(answer)
    else:
        write.fail(refusal)


def write_all(writes: Sequence[Write[Any]], states: States, clock: Clock, *, aside: bool = False) -> Plan[None]:
    """Decide on calls and append what follows, until each is settled (or is to go aside).

    `aside`: they may wait for other transactions, for most of the time they have.

    Raises:
        Unavailable: there is nobody to ask, or no time left; calls may be unsettled, and some may have sent events.
    """
    known: dict[str, _Stream] = {}
    most, turn = min(len(writes), MOST_TOGETHER), 0
    while pending := [write for write in writes if not write.settled and (aside or not write.aside)]:
        yield from _resolve([write for write in pending if write.sent], known)
        yield from _find_keys(pending)
        these = _together([write for write in pending if not write.settled], states, turn)
        this_round = yield from _decide(these[:most], known, states, clock)
        known = {}
        if not this_round.events:
            doubtful = [write for write in these if write.sent and not write.settled]
            if not aside:
                for write in doubtful:
                    write.aside = True  # where it holds nobody up
            elif doubtful:
                yield Step(log_queries.PAUSE)  # for a statement still under way, over a connection that is lost
            continue
        try:
            yield this_round.step(this_round.patience() if aside else PATIENCE)
        except Lost:
            states.forget(this_round.streams)
        except Withdrawn:
            pass
        except Refused:
            known, moved = yield from _look_again(this_round, states)
            turn += 1
            most = most if moved else _without_the_culprit(this_round, this_round.conflict())
        except Blocked:
            if aside:
                raise
            sent = this_round.writes
            most = max(1, len(sent) // 2)
            if len(sent) == 1:
                sent[0].aside = True
        except psycopg.Error as error:
            states.forget(this_round.streams)
            most = _without_the_culprit(this_round, error)
        else:
            this_round.committed(states)
            most = min(most * 2, MOST_TOGETHER)


def write_in_time(
    writes: Sequence[Write[Any]], clock: Clock, timeout: float, *, in_transaction: bool = False
) -> Plan[None]:
    """Do what `write_all` does for calls that do not go through a batcher, with an honest end when nobody can be asked.

    `in_transaction`: of the caller's; its lock_timeout is put back as it was.

    Raises:
        OutcomeUnknown: of one of the calls it is not known whether it was written.
        Unavailable: nothing was written.
    """
    for write in writes:
        write.begin(timeout, lambda: None)
    before = None
    if in_transaction:
        [(before,)] = yield Step(queries.LOCK_TIMEOUT)
    try:
        yield from write_all(writes, States(), clock, aside=True)
    except Unavailable as error:
        for write in writes:
            write.expire(str(error))
        unknown = next((write for write in writes if write.is_unknown), None)
        if unknown is None:
            raise
        unknown.result()
    if before is not None:
        yield Step(queries.SET_LOCK_TIMEOUT, (before,))


def work(clock: Clock) -> Work[Write[Any]]:
    """Make the work of a batcher: `write_all`, with the states that each lane remembers."""
    states = [States(MAX_STATES // LANES) for _ in range(LANES)]

    def batch(writes: Sequence[Write[Any]], lane: int | None) -> Plan[None]:
        return write_all(writes, States() if lane is None else states[lane], clock, aside=lane is None)

    return batch


def _resolve(writes: Sequence[Write[Any]], known: dict[str, _Stream]) -> Plan[None]:
    """Settle the calls whose events are in the log, of those that had sent some when the line broke.

    The others are decided again, on commands that were read *before* the log was asked: what commits in between has the
    place that they will ask for.
    """
    unread = [write for write in writes if write.command_id not in known and not isinstance(write, Creation)]
    if unread:
        known |= yield from _read_for(unread)
    doubtful = [(write, sent) for write in writes for sent in write.sent]
    if not doubtful:
        return
    places = ([sent.event.stream_id for _, sent in doubtful], [sent.event.version for _, sent in doubtful])
    rows = yield Step(log_queries.FIND_HASHES, places)
    found = {(stream_id, version): event_hash for stream_id, version, event_hash in rows}
    for write, sent in doubtful:
        if found.get((sent.event.stream_id, sent.event.version)) == sent.event.hash:
            write.answer(sent.answer)


def _find_keys(writes: Iterable[Write[Any]]) -> Plan[None]:
    """Settle the creations whose idempotency key has made a command already."""
    keyed = {
        write: write.call.idempotency_key
        for write in writes
        if isinstance(write, Creation) and write.looks_for_key and not write.settled
    }
    if not keyed:
        return
    rows = yield Step(queries.FIND_IDEMPOTENCY_KEYS, (list(keyed.values()),))
    found = {key: (command_id, arguments_hash) for key, command_id, arguments_hash in rows}
    made = (yield from _read_each([command_id for command_id, _ in found.values()])) if found else {}
    for creation, key in keyed.items():
        creation.looks_for_key = False
        command_id, arguments_hash = found.get(key, (None, None))
        if command_id is None:
            continue
        if arguments_hash != creation.arguments_hash:
            creation.fail(IdempotencyConflict(str(key), command_id))
        else:
            _answer_with(creation, made.get(command_id, CommandNotFound(command_id)))


def _answer_with(creation: Creation, first: _Stream | Exception) -> None:
    if isinstance(first, _Stream):
        creation.answer(first.command)
    else:
        creation.give_up(first)


def _together(writes: list[Write[Any]], states: States, turn: int) -> list[Write[Any]]:
    """Choose what goes in one statement: commands that are ours alone; else one that others write to, too, by turns."""
    ours = [write for write in writes if not states.is_contested(write.command_id)]
    if ours or not writes:
        return ours
    contested = list(dict.fromkeys(write.command_id for write in writes))
    chosen = contested[turn % len(contested)]
    return [write for write in writes if write.command_id == chosen]


def _decide(writes: Sequence[Write[Any]], known: dict[str, _Stream], states: States, clock: Clock) -> Plan[_Round]:
    """Decide on calls, each on what the ones before it leave; load what has to be known for it.

    One that would be refused on a state that is only believed is left to the next round, which loads it.
    """
    this_round = _Round(known, clock)
    yield from _load(writes, known, states)
    for write in writes:
        if not this_round.decide(write):
            states.forget([write.command_id])
    return this_round


def _load(writes: Iterable[Write[Any]], known: dict[str, _Stream], states: States) -> Plan[None]:
    missing = []
    for write in writes:
        command_id = write.command_id
        if command_id in known or isinstance(write, Creation):
            continue
        believed = states.get(command_id)
        if believed is None:
            missing.append(write)
        else:
            known[command_id] = _Stream(believed.end, believed.end, believed.state, fresh=False)
    if missing:
        known |= yield from _read_for(missing)
        for write in missing:
            if write.command_id not in known:
                write.fail(CommandNotFound(write.command_id))


def _read_for(writes: Sequence[Write[Any]]) -> Plan[dict[str, _Stream]]:
    """Read the commands of calls; a command that cannot be read fails its own calls alone."""
    known = yield from _read_each(list(dict.fromkeys(write.command_id for write in writes)))
    for write in writes:
        read = known.get(write.command_id)
        if isinstance(read, Exception):
            write.give_up(read)
    return {command_id: read for command_id, read in known.items() if isinstance(read, _Stream)}


def _read_each(command_ids: Sequence[str]) -> Plan[dict[str, _Stream | Exception]]:
    """Read commands, or else why they cannot be read."""
    loaded = yield from projections.load_each(COMMAND_STATUS, command_ids)
    return {
        command_id: found if isinstance(found, Exception) else _Stream(found.end, found.end, found.state, fresh=True)
        for command_id, found in loaded.items()
    }


def _look_again(this_round: _Round, states: States) -> Plan[tuple[dict[str, _Stream], bool]]:
    """Find out where the commands of a refused statement are; tell whether that explains the refusal."""
    states.forget(this_round.streams)
    sent = this_round.writes
    known = yield from _read_for(sent)
    moved = [
        command_id
        for command_id in dict.fromkeys(write.command_id for write in sent)
        if (known[command_id].end if command_id in known else None) != this_round.streams[command_id].before
    ]
    states.contest(moved)
    creations = [write for write in sent if isinstance(write, Creation)]
    for creation in creations:
        creation.looks_for_key = creation.call.idempotency_key is not None
        if creation.command_id in moved:
            creation.command_id = new_command_id()
    yield from _find_keys(creations)
    return known, bool(moved) or any(creation.settled for creation in creations)


_OF_ALL: Final = ("08", "25", "28", "3D", "42", "53", "57", "58", "XX")
"""Classes of errors that no single call is to blame for: connections, rights, names, resources, operators, defects."""


def _without_the_culprit(this_round: _Round, error: Exception) -> int:
    """Say how many calls to try next, so that only the one to blame fails in the end."""
    sent = this_round.writes
    if isinstance(error, psycopg.Error) and (error.sqlstate or "XX")[:2] in _OF_ALL:
        for write, *_ in this_round.decided:
            write.give_up(error)
    elif len(sent) == 1:
        sent[0].give_up(error)
    return max(1, len(sent) // 2)
