"""Proof and export: the whole log, line by line, and the verification that nothing in it was changed."""

from collections.abc import Callable

import orjson

from eventstore.event import RecordedEvent
from eventstore.steps import Plan
from projections.verification import Report, verify
from registry.command_status import COMMAND_STATUS
from registry.events import CODEC

__all__ = ["Report", "export_line", "verification"]


def verification(progress: Callable[[int], None] = lambda _: None) -> Plan[Report]:
    """Verify every command: its chain of hashes, its versions, and its row in the read model."""
    return verify(COMMAND_STATUS, progress)


def export_line(event: RecordedEvent, current_version: Callable[[str], int | None] = CODEC.current_version) -> bytes:
    """Write one event as a line of JSON, with `data` and `metadata` to the letter as they are stored and hashed.

    Where these are of an older schema version than the one in force of their type (which `current_version` tells), the
    line says so in one more key, `upcast_to`: readers such as the history show the event upcast to that version.
    """
    current = current_version(event.type)
    upcast = {"upcast_to": current} if current is not None and event.schema_version < current else {}
    return orjson.dumps(
        {
            "transaction_id": event.transaction_id,
            "position": event.position,
            "stream_id": event.stream_id,
            "version": event.version,
            "type": event.type,
            "schema_version": event.schema_version,
            **upcast,
            "occurred_at": event.occurred_at,
            "recorded_at": event.recorded_at,
            "data": orjson.Fragment(event.data),
            "metadata": orjson.Fragment(event.metadata),
            "hash": event.hash.hex(),
        },
        option=orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE,
    )
