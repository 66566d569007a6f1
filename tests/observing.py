"""Looking at a registry's database past the registry."""

from collections.abc import Sequence
from typing import Any

import psycopg

from eventstore import OutcomeUnknown
from eventstore.plans import Writer, oldest_writer
from tests.lending import on
from tests.waiting import until

__all__ = ["backends", "by_request", "deadlocks", "is_stored", "logged", "terminate", "types", "until_named"]


def backends(observer: psycopg.Connection[Any], *, waiting: bool = False) -> list[int]:
    """List the backends of registries in this database; or those that wait for a lock."""
    rows = observer.execute(
        """
        SELECT pid
        FROM pg_stat_activity
        WHERE application_name = 'command-registry'
            AND datname = current_database()
            AND (wait_event_type = 'Lock' OR NOT %s)
        ORDER BY pid
        """,
        (waiting,),
    )
    return [pid for (pid,) in rows]


def terminate(observer: psycopg.Connection[Any], pids: Sequence[int], *, wait_ms: int = 10_000) -> None:
    """End backends, and wait until they have ended."""
    observer.execute("SELECT pg_terminate_backend(pid, %s) FROM unnest(%s::int[]) AS pid", (wait_ms, list(pids)))


def types(observer: psycopg.Connection[Any], command_id: str) -> list[str]:
    """Read, past the registry, the types of a command's events."""
    sql = "SELECT type FROM command_registry.events WHERE stream_id = %s ORDER BY version"
    return [name for (name,) in observer.execute(sql, (command_id,))]


def is_stored(observer: psycopg.Connection[Any], unknown: OutcomeUnknown) -> bool:
    """Tell whether the event that an unknown outcome names is in the log."""
    sql = "SELECT hash FROM command_registry.events WHERE stream_id = %s AND version = %s"
    return observer.execute(sql, (unknown.stream_id, unknown.version)).fetchone() == (unknown.hash,)


def by_request(observer: psycopg.Connection[Any]) -> dict[str, list[tuple[str, bytes, dict[str, Any]]]]:
    """Read the log past every registry: the events of each request id, as stream, hash and data."""
    rows = observer.execute("""
        SELECT metadata ->> 'request_id', stream_id, hash, data
        FROM command_registry.events
        WHERE metadata ->> 'request_id' IS NOT NULL
    """)
    stored: dict[str, list[tuple[str, bytes, dict[str, Any]]]] = {}
    for request_id, stream_id, event_hash, data in rows:
        stored.setdefault(request_id, []).append((stream_id, event_hash, data))
    return stored


def logged(observer: psycopg.Connection[Any]) -> list[tuple[str, int, str | None]]:
    """Read the log past every registry: the stream, the version and the request id of every event."""
    sql = "SELECT stream_id, version, metadata ->> 'request_id' FROM command_registry.events"
    return observer.execute(sql).fetchall()


def deadlocks(observer: psycopg.Connection[Any]) -> int:
    """Count the deadlocks that the server has found in this database."""
    [(count,)] = observer.execute("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    return int(count)


def until_named(connection: psycopg.Connection[Any], name: str) -> Writer:
    """Wait until a writer is the oldest of the server: transactions of other tests come and go."""

    def named() -> list[Writer]:
        oldest = on(connection, oldest_writer())
        return [oldest] if oldest is not None and oldest.name == name else []

    return until(named, f"{name} to be named")[0]
