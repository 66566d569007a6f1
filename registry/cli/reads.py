"""The commands that read one remote command: its status, at any moment, and its history."""

from datetime import datetime
from typing import Annotated

import orjson
import typer
from rich.text import Text

from registry.cli.commands import READ, command
from registry.cli.invocation import Stop
from registry.cli.opening import opened
from registry.cli.options import At, CommandId, Debug, Dsn, Json, Pooler
from registry.cli.output import facts, instant, print_json, say, table
from registry.errors import CommandNotFound
from registry.events import AttemptIncremented, CommandCreated, CommandTransitioned
from registry.history import HistoryEntry
from registry.lifecycle import CommandState
from registry.models import CommandStatus
from registry.protocol import CommandRegistry

__all__ = ["by_whom", "history", "show_history", "show_status", "state_text", "status", "what_happened"]

_STYLES = {
    CommandState.PENDING_UPLOAD: "yellow",
    CommandState.PENDING: "yellow",
    CommandState.DISPATCHED: "cyan",
    CommandState.SUCCEEDED: "green",
    CommandState.FAILED: "red",
    CommandState.EXPIRED: "magenta",
}


@command(
    READ,
    "command-registry status cmd_...",
    "command-registry status cmd_... --at 2026-11-24T10:00:00Z",
    "command-registry status cmd_... --version 2 --json",
)
def status(
    command_id: CommandId,
    at: At = None,
    version: Annotated[
        int | None, typer.Option("--version", min=1, metavar="N", help="The status after its first N events.")
    ] = None,
    as_json: Json = False,
    dsn: Dsn = None,
    pooler: Pooler = None,
    _debug: Debug = False,
) -> None:
    """Show a command's status: now, or at a moment in the past.

    The past is an instant (--at), or a number of events (--version), as history shows them.
    """
    if at is not None and version is not None:
        raise typer.BadParameter("give --at or --version, not both")
    with opened(dsn, pooler) as registry:
        found = _find(registry, command_id, at, version)
    if as_json:
        print_json(found)
    else:
        show_status(found)


def _find(registry: CommandRegistry, command_id: str, at: datetime | None, version: int | None) -> CommandStatus:
    latest = registry.get_command_status(command_id)
    if latest is None:
        raise CommandNotFound(command_id)
    if at is None and version is None:
        return latest
    found = registry.status_at(command_id, at=at, version=version)
    if found is None and at is not None:
        raise Stop(
            f"command {command_id!r} was not there at {instant(at)}: it was created at {instant(latest.created_at)}"
        )
    if found is None:
        raise Stop(f"command {command_id!r} is at version {latest.version}: there is no version {version} yet")
    return found


@command(
    READ,
    "command-registry history cmd_...",
    "command-registry history cmd_... --json",
)
def history(
    command_id: CommandId, as_json: Json = False, dsn: Dsn = None, pooler: Pooler = None, _debug: Debug = False
) -> None:
    """Show a command's audit trail: what happened, when, by whom.

    With --json everything that is stored, with the position in the log and the hash.
    """
    with opened(dsn, pooler) as registry:
        entries = registry.history(command_id)
    if not entries:
        raise CommandNotFound(command_id)
    if as_json:
        print_json(entries)
    else:
        show_history(entries)


def show_status(found: CommandStatus) -> None:
    """Print a status for people."""
    target = "-" if found.target is None else f"{found.target.resource_id} ({found.target.resource_type})"
    facts(
        found.command_id,
        [
            ("command id", found.command_id),
            ("command", found.command),
            ("state", state_text(found.state)),
            ("attempt", str(found.attempt)),
            ("deployment", f"{found.deployment_id} ({found.deployment_model})"),
            ("target", target),
            ("project", found.project_id),
            ("workspace", found.workspace_id),
            ("created", instant(found.created_at)),
            ("deadline", instant(found.deadline)),
            ("dispatched", instant(found.dispatched_at)),
            ("completed", instant(found.completed_at)),
            ("error", "-" if found.error is None else _json_text(found.error)),
            ("request", _bytes(found.request_size_bytes)),
            ("response", _bytes(found.response_size_bytes)),
            ("version", str(found.version)),
        ],
    )


def show_history(entries: list[HistoryEntry]) -> None:
    """Print the events of one command for people."""
    say(("history of ", "bold"), entries[0].command_id)
    table(
        ["version", "occurred at", "event", "by", "what"],
        [
            [str(entry.version), instant(entry.occurred_at), entry.type, by_whom(entry), what_happened(entry)]
            for entry in entries
        ],
        unbroken=3,
    )


def state_text(state: CommandState) -> Text:
    """Write a state in its colour."""
    return Text(state, style=_STYLES[state])


def by_whom(entry: HistoryEntry) -> str:
    """Say who did it, and in the course of which request."""
    request = entry.context.request_id
    return (entry.context.actor or "-") + ("" if request is None else f" ({request})")


def what_happened(entry: HistoryEntry) -> Text:
    """Say what an event changed."""
    match entry.event:
        case CommandCreated() as event:
            return Text.assemble(event.command, " for ", event.deployment_id, ", ", state_text(event.state))
        case CommandTransitioned() as event:
            facts_told = [
                *([] if event.dispatched_at is None else [f"dispatched {instant(event.dispatched_at)}"]),
                *([] if event.completed_at is None else [f"completed {instant(event.completed_at)}"]),
                *([] if event.response_size_bytes is None else [f"response {_bytes(event.response_size_bytes)}"]),
                *([] if event.error is None else [f"error {_json_text(event.error)}"]),
            ]
            moved = Text.assemble(state_text(event.from_state), " -> ", state_text(event.to_state))
            return moved.append("".join(f", {fact}" for fact in facts_told))
        case AttemptIncremented() as event:
            return Text(f"attempt {event.attempt}")


def _json_text(value: object) -> str:
    return orjson.dumps(value).decode()


def _bytes(size: int | None) -> str:
    return "-" if size is None else f"{size} bytes"
