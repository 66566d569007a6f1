"""The registry's calls on Postgres, as plans (see `eventstore.steps`)."""

from collections.abc import Callable, Sequence
from datetime import datetime
from hashlib import sha256
from typing import TypeVar

from eventstore import plans as log
from eventstore import schema
from eventstore.codec import encode_json
from eventstore.errors import Conflict
from eventstore.event import RecordedEvent, StreamEnd
from eventstore.hashing import chain
from eventstore.steps import Plan, Refused, Step
from projections import plans as projections
from registry import decider, queries
from registry.command_status import COMMAND_STATUS, SELECT_OVERDUE
from registry.decider import Decide
from registry.deployments import Deployment, resolve, running
from registry.errors import CommandNotFound, IdempotencyConflict
from registry.events import CODEC, CommandEvent
from registry.history import metadata_text
from registry.ids import new_command_id
from registry.models import CommandStatus, EventContext, NewCommand

__all__ = ["Clock", "check", "create", "events", "migrate", "overdue", "status", "write"]

R = TypeVar("R")
Clock = Callable[[], datetime]

CREATE_ATTEMPTS = 10


def migrate(progress: Callable[[int], None] = lambda _: None) -> Plan[None]:
    """Create what is missing of the schema and of the read model (`progress`: events folded into it)."""
    yield from schema.migrate()
    yield from projections.migrate(COMMAND_STATUS, progress)


def check() -> Plan[None]:
    """Check that schema and read model are those of this software.

    Raises:
        SchemaMismatch: they are not; the error names the command to run.
    """
    yield from schema.check()
    yield from projections.check(COMMAND_STATUS)


def write(command_id: str, decide: Decide[R], context: EventContext, clock: Clock) -> Plan[R]:
    """Decide on a command's status and append what follows; decide again whenever another writer came first.

    Every turn of the loop means that somebody else's write went through, so writers together always make progress.

    Raises:
        CommandNotFound: there is no such command.
        Conflict: another write has the next version, and this transaction's isolation level hides it.
    """
    metadata = metadata_text(context)
    refused_at = None
    while (loaded := (yield from projections.load(COMMAND_STATUS, command_id))) is not None:
        if loaded.end.version == refused_at:
            raise Conflict(command_id, refused_at, None)
        decision = decide(loaded.state)
        if not decision.events:
            return decision.answer
        try:
            yield from _append(command_id, loaded.end, loaded.state, decision.events, metadata, clock())
        except Refused:
            refused_at = loaded.end.version
        else:
            return decision.answer
    raise CommandNotFound(command_id)


def create(
    call: NewCommand, find_deployment: Plan[Deployment | None], context: EventContext, clock: Clock
) -> Plan[CommandStatus]:
    """Create a command; with an idempotency key that was used before, return the command it made then.

    Raises:
        as `CommandRegistry.create_command`.
    """
    arguments_hash = sha256(encode_json(call).encode()).digest()
    first = yield from _find_by_key(call, arguments_hash)
    if first is not None:
        return first
    deployment = running(call.deployment_id, (yield from find_deployment))
    target = resolve(deployment, call.target).target
    metadata = metadata_text(context, call.idempotency_key)
    command_id = ""
    for _ in range(CREATE_ATTEMPTS):
        command_id, now = new_command_id(), clock()
        event = decider.create(command_id, call, deployment, target, now)
        also = []
        if call.idempotency_key is not None:
            also = [
                projections.Also(queries.INSERT_IDEMPOTENCY_KEY, (call.idempotency_key, arguments_hash, command_id))
            ]
        try:
            return (yield from _append(command_id, None, None, (event,), metadata, now, *also))
        except Refused:
            first = yield from _find_by_key(call, arguments_hash)
            if first is not None:
                return first
    raise Conflict(command_id, 0, None)


def _find_by_key(call: NewCommand, arguments_hash: bytes) -> Plan[CommandStatus | None]:
    if call.idempotency_key is None:
        return None
    rows = yield Step(queries.FIND_IDEMPOTENCY_KEY, (call.idempotency_key,))
    if not rows:
        return None
    command_id, stored_hash = rows[0]
    if stored_hash != arguments_hash:
        raise IdempotencyConflict(call.idempotency_key, command_id)
    return (yield from status(command_id))


def _append(
    command_id: str,
    end: StreamEnd | None,
    before: CommandStatus | None,
    new: Sequence[CommandEvent],
    metadata: str,
    now: datetime,
    *also: projections.Also,
) -> Plan[CommandStatus]:
    after = decider.replay(new, before)
    chained = chain(command_id, end, [CODEC.encode(event, now, metadata) for event in new])
    row = COMMAND_STATUS.projection.row(after)
    yield from projections.append([(COMMAND_STATUS, row)], end, chained, *also)
    return after


def status(command_id: str) -> Plan[CommandStatus | None]:
    """Read a command's status from the read model."""
    return projections.read_row(COMMAND_STATUS, command_id)


def events(command_id: str) -> Plan[list[RecordedEvent]]:
    """Read a command's events."""
    return log.read_stream(command_id)


def overdue(now: datetime, limit: int) -> Plan[list[str]]:
    """Find commands whose deadline has passed, the most overdue first."""
    rows = yield Step(SELECT_OVERDUE, (now, limit))
    return [command_id for (command_id,) in rows]
