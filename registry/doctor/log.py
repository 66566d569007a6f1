"""Checks of the log: its columns, its guards, its keys, and its order."""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Final, NamedTuple

from eventstore.plans import oldest_writer
from eventstore.schema import schema_sql
from eventstore.steps import Plan, Step
from registry.doctor import queries
from registry.doctor.check import MIGRATE, Check, failed, ok, warning

__all__ = ["columns", "guards", "keys", "order", "readers"]

TABLE: Final = "command_registry.events"

_COLUMNS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "stream_id": "text NOT NULL",
        "version": "integer NOT NULL",
        "type": "text NOT NULL",
        "schema_version": "smallint NOT NULL",
        "occurred_at": "timestamp(6) with time zone NOT NULL",
        "data": "json NOT NULL",
        "metadata": "json NOT NULL",
        "hash": "bytea NOT NULL",
        "position": "bigint NOT NULL DEFAULT nextval('command_registry.events_position_seq'::regclass)",
        "transaction_id": "xid8 NOT NULL DEFAULT pg_current_xact_id()",
        "recorded_at": "timestamp with time zone NOT NULL DEFAULT clock_timestamp()",
    }
)


def columns() -> Plan[Check]:
    """Check that the log's columns are those of schema.sql, and that nothing rewrites or hides its rows."""
    found: dict[str, str] = dict((yield Step(queries.EVENT_COLUMNS)))
    wrong = [
        f"{name} is {found.get(name, 'missing')}, not {kind}"
        for name, kind in _COLUMNS.items()
        if found.get(name) != kind
    ]
    wrong += [f"{name} is not in schema.sql" for name in found if name not in _COLUMNS]
    if wrong:
        return failed("log columns", "; ".join(wrong), f"ALTER TABLE {TABLE} back to what schema.sql says")
    hazards = yield Step(queries.EVENT_HAZARDS)
    if hazards:
        problems, remedies = zip(*hazards, strict=True)
        return failed("log columns", "; ".join(problems), "run: " + "; ".join(remedies))
    return ok("log columns", "as schema.sql says")


class _Trigger(NamedTuple):
    """A row of `queries.TRIGGERS`."""

    name: str
    enabled: str
    kind: int
    function: str
    partial: bool


# By pg_trigger.tgtype: ROW 1, BEFORE 2, DELETE 8, UPDATE 16, TRUNCATE 32.
_GUARDS: Final[Mapping[str, int]] = MappingProxyType({"events_refuse_change": 27, "events_refuse_truncate": 34})
_FUNCTION: Final = "command_registry.refuse_change"
_ALWAYS: Final = "A"
_BODY: Final = re.compile(r"FUNCTION command_registry\.refuse_change\(\).*?AS \$\$(.*?)\$\$;", re.DOTALL)


def guards() -> Plan[list[Check]]:
    """Check that both triggers are there, fire always, and refuse; and that no other trigger meddles."""
    triggers = {row[0]: _Trigger(*row) for row in (yield Step(queries.TRIGGERS))}
    body = yield Step(queries.GUARD_BODY)
    checks = [_guard(name, kind, triggers.get(name)) for name, kind in _GUARDS.items()]
    if not body or body[0][0].strip() != _guard_body():
        checks.append(failed("guard function", f"{_FUNCTION} does not do what schema.sql says", MIGRATE))
    else:
        checks.append(ok("guard function", "refuses, as schema.sql says"))
    others = [name for name in triggers if name not in _GUARDS]
    if others:
        names = ", ".join(others)
        checks.append(
            warning("other triggers", f"on the log: {names}", f"see what they do; DROP TRIGGER ... ON {TABLE}")
        )
    return checks


def _guard(name: str, kind: int, trigger: _Trigger | None) -> Check:
    check = f"guard {name}"
    if trigger is None:
        return failed(check, "the trigger is missing: the log can be changed", MIGRATE)
    if trigger.kind != kind or trigger.function != _FUNCTION or trigger.partial:
        remedy = f"run: DROP TRIGGER {name} ON {TABLE}; then: command-registry migrate"
        return failed(check, "the trigger is not the one of schema.sql: the log can be changed", remedy)
    if trigger.enabled != _ALWAYS:
        how = "disabled" if trigger.enabled == "D" else "not ENABLE ALWAYS"
        return failed(check, f"the trigger is {how}: the log can be changed", MIGRATE)
    return ok(check, "enabled always")


@lru_cache
def _guard_body() -> str:
    found = _BODY.search(schema_sql())
    if found is None:
        raise AssertionError("schema.sql does not create the guard function")
    return found[1].strip()


def keys() -> Plan[list[Check]]:
    """Check the primary key, which is the only lock there is, and the index that gives the log its order."""
    indexes = yield Step(queries.INDEXES, (TABLE,))
    primary = [(valid, on) for _, is_primary, valid, on in indexes if is_primary]
    order = [(valid, on) for name, _, valid, on in indexes if name == "events_log_order"]
    return [
        _index(
            "primary key",
            primary,
            "stream_id, version",
            f"run: ALTER TABLE {TABLE} DROP CONSTRAINT IF EXISTS events_pkey, ADD PRIMARY KEY (stream_id, version)",
        ),
        _index(
            "log index",
            order,
            "transaction_id, position",
            f"run: DROP INDEX IF EXISTS {TABLE}_log_order; then: command-registry migrate",
        ),
    ]


def _index(name: str, found: Sequence[tuple[bool, str]], wanted: str, remedy: str) -> Check:
    if not found:
        return failed(name, "missing", remedy)
    [(valid, on)] = found
    if on != wanted:
        return failed(name, f"on ({on}), not on ({wanted})", remedy)
    return ok(name, f"on ({wanted})") if valid else failed(name, "not valid", remedy)


def order() -> Plan[Check]:
    """Check that every event's transaction id lies in this server's past.

    A log that pg_dump brought here from another server may hold ids that this one has yet to give out. Readers of the
    log wait for those, and new events are put before them.
    """
    [(highest, next_one)] = yield Step(queries.LOG_ORDER)
    if highest is None:
        return ok("log order", "no events yet")
    last, following = int(highest), int(next_one)
    if last < following:
        return ok("log order", "no event from the future")
    return failed(
        "log order",
        f"transaction ids go up to {last}, and this server is at {following}, so that readers of the log wait for "
        "ever: the log was restored from another server's dump (or somebody who may write made an id up)",
        "after a restore, stop the server and run: "
        f"pg_resetwal --epoch={_epoch_beyond(last, following)} -D DATA_DIRECTORY; "
        "or restore from a physical copy (pg_basebackup), which keeps transaction ids",
    )


def _epoch_beyond(last: int, following: int) -> int:
    """Find the epoch (the upper 32 bits) that puts the next transaction id after the last one in the log.

    Only the epoch: nothing in a data directory depends on it, while the lower bits need their pg_xact files.
    """
    epoch = last >> 32
    return epoch if (epoch << 32) + following % 2**32 > last else epoch + 1


LONG: Final = 1.0
"""Seconds after which an open transaction is worth a warning."""


def readers(user: str) -> Plan[Check]:
    """Check whether an open transaction that writes, in any database of the server, holds readers of the log back."""
    [(held_back,)] = yield Step(queries.HELD_BACK)
    writer = yield from oldest_writer()
    waiting = f"{held_back} events wait for it" if held_back else "what is appended now waits for it"
    if writer is not None:
        if held_back or (writer.seconds or 0) >= LONG:
            age = f"{writer.seconds:.0f} s ago" if writer.seconds is not None else f"at a time that {user} may not see"
            found = f"{writer.name}, in database {writer.database}, user {writer.user}, has written, and began {age}"
            return warning("log readers", f"{found}: {waiting}", f"let it end, or run: {writer.remedy}")
    elif held_back:
        return warning(
            "log readers",
            f"a transaction that {user} may not see is open: {waiting}",
            f'to see it, run: GRANT pg_monitor TO "{user}"',
        )
    return ok("log readers", "no open transaction holds them back")
