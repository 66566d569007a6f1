"""The options that commands share, and the values they take."""

import json
import re
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, Final, Literal, TypeAlias

import typer
from pydantic import JsonValue

from eventstore import database
from eventstore.codec import object_of
from eventstore.errors import InvalidDsn
from eventstore.event import LogPosition
from registry.cli.errors import user_name
from registry.cli.invocation import Invocation
from registry.errors import InvalidCommand
from registry.lifecycle import CommandState, is_terminal
from registry.models import EventContext, accept, check_instant_argument

__all__ = [
    "Actor",
    "At",
    "CommandId",
    "CompletedAt",
    "Deadline",
    "Debug",
    "Deployments",
    "DeploymentsKind",
    "DispatchedAt",
    "Dsn",
    "ErrorValue",
    "InitialState",
    "Json",
    "Now",
    "Pooler",
    "RequestId",
    "RequestSize",
    "ResponseSize",
    "Result",
    "RootDebug",
    "RootDsn",
    "RootPooler",
    "Start",
    "StartAt",
    "State",
    "Traceparent",
    "context",
    "deployment_directory",
    "given_connection",
    "log_position",
    "now",
]

DSN_VARIABLE: Final = "COMMAND_REGISTRY_DSN"
POOLER_VARIABLE: Final = "COMMAND_REGISTRY_POOLER"
_CONNECTION: Final = "Connection and output"
_CONTEXT: Final = "Who, and in the course of what"

_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_DURATION: Final = re.compile(r"(?:\d{1,9}[smhdw])+", re.ASCII)
_PART: Final = re.compile(r"(\d+)([smhdw])", re.ASCII)


def now() -> datetime:
    """Tell the time."""
    return datetime.now(UTC)


def _instant(text: str) -> datetime:
    try:
        return check_instant_argument("instant", text)
    except InvalidCommand as error:
        raise typer.BadParameter(f"{text!r} {error.problem}") from None


def _duration(text: str) -> timedelta | None:
    """Read a duration such as 30m or 1d12h; None when it is none.

    Raises:
        OverflowError: it is longer than any.
    """
    if not _DURATION.fullmatch(text):
        return None
    return sum((timedelta(**{_UNITS[unit]: int(n)}) for n, unit in _PART.findall(text)), timedelta())


def _deadline(text: str) -> datetime:
    try:
        duration = _duration(text)
        return _instant(text) if duration is None else now() + duration
    except OverflowError:
        raise typer.BadParameter(f"{text!r} from now is after the year 9999") from None
    except typer.BadParameter:
        raise typer.BadParameter(
            f"{text!r} is neither an instant such as 2026-11-24T10:00:00Z nor a duration such as 30m, 2h or 1d12h"
        ) from None


def log_position(text: str) -> LogPosition:
    """Read a place in the log, written as TRANSACTION_ID:POSITION.

    Raises:
        typer.BadParameter: it is none.
    """
    if not re.fullmatch(r"\d{1,18}:\d{1,18}", text, re.ASCII):
        raise typer.BadParameter(f"{text!r} is not TRANSACTION_ID:POSITION, such as 812:40")
    transaction_id, _, position = text.partition(":")
    return LogPosition(int(transaction_id), int(position))


Start: TypeAlias = LogPosition | datetime | Literal["now"]
"""Where reading the log begins: after an event, with what was recorded since an instant, or with what is to come."""


def _start(text: str) -> Start:
    if text == "now":
        return "now"
    try:
        duration = _duration(text)
        if duration is not None:
            return now() - duration
    except OverflowError:
        raise typer.BadParameter(f"{text!r} ago is before the year 1") from None
    for parse in (log_position, _instant):
        with suppress(typer.BadParameter):
            return parse(text)
    raise typer.BadParameter(
        f"{text!r} is none of: TRANSACTION_ID:POSITION, such as 812:40; now; an instant, such as 2026-11-24T10:00:00Z; "
        "a duration, such as 15m (ago)"
    )


def _state(text: str) -> CommandState:
    return _one_of(text, tuple(CommandState))


def _result(text: str) -> CommandState:
    return _one_of(text, tuple(state for state in CommandState if is_terminal(state)))


def _one_of(text: str, states: tuple[CommandState, ...]) -> CommandState:
    if text.upper() not in states:
        raise typer.BadParameter(f"{text!r} is none of {', '.join(states)}")
    return CommandState(text.upper())


def _json(text: str) -> JsonValue:
    try:
        value: JsonValue = json.loads(text, object_pairs_hook=object_of)
    except (ValueError, RecursionError) as error:
        raise typer.BadParameter(
            f"{text[:80]!r} is not JSON ({error}): write such as "
            + """'{"code":"TIMEOUT"}', or a text as '"timeout"'"""
        ) from None
    return value


def _root_dsn(ctx: typer.Context, value: str | None) -> str | None:
    if value is not None:
        invocation: Invocation = ctx.obj
        invocation.dsn, invocation.dsn_given = _checked(value), True
    return value


def _dsn(ctx: typer.Context, value: str | None) -> str | None:
    """Choose: what was given after the command, what was given before it, what the environment says."""
    invocation: Invocation = ctx.obj
    given = _is_given(ctx, "dsn")
    if value is not None and (given or not invocation.dsn_given):
        invocation.dsn, invocation.dsn_given = _checked(value), given
    return invocation.dsn


def _root_pooler(ctx: typer.Context, value: database.Pooler | None) -> database.Pooler | None:
    if value is not None:
        invocation: Invocation = ctx.obj
        invocation.pooler, invocation.pooler_given = value, True
    return value


def _pooler(ctx: typer.Context, value: database.Pooler | None) -> database.Pooler | None:
    """Choose as `_dsn` does."""
    invocation: Invocation = ctx.obj
    given = _is_given(ctx, "pooler")
    if value is not None and (given or not invocation.pooler_given):
        invocation.pooler, invocation.pooler_given = value, given
    return invocation.pooler


def _is_given(ctx: typer.Context, name: str) -> bool:
    """Tell whether an option stands in the call itself."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def given_connection(ctx: typer.Context) -> bool:
    """Tell whether a DSN or a pooler was given in the call itself, and not by the environment."""
    invocation: Invocation = ctx.obj
    return invocation.dsn_given or invocation.pooler_given


def _checked(dsn: str) -> str:
    try:
        database.parse_dsn(dsn)
    except InvalidDsn:
        # What libpq says of it may hold the password.
        raise typer.BadParameter(
            f"what --dsn (or {DSN_VARIABLE}) says cannot be read: write it as "
            "postgresql://USER@HOST:PORT/DATABASE or 'host=HOST dbname=DATABASE'"
        ) from None
    return dsn


def _debug(ctx: typer.Context, value: bool) -> bool:
    invocation: Invocation = ctx.obj
    invocation.debug = invocation.debug or value
    return value


_DSN_HELP: Final = (
    "The Postgres to use: postgresql://USER@HOST/DATABASE (a password is better kept in ~/.pgpass). "
    "Default: the embedded Postgres, which is started on demand."
)
_POOLER_HELP: Final = (
    "What the DSN leads through: transaction, for a pooler such as PgBouncer in transaction mode. "
    "Then nothing is prepared, and no setting of a session relied upon."
)
_DEBUG_HELP: Final = "Show the traceback of an error."

Dsn: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--dsn", envvar=DSN_VARIABLE, metavar="DSN", callback=_dsn, help=_DSN_HELP, rich_help_panel=_CONNECTION
    ),
]
RootDsn: TypeAlias = Annotated[
    str | None, typer.Option("--dsn", metavar="DSN", callback=_root_dsn, help="As after the command.")
]
Pooler: TypeAlias = Annotated[
    database.Pooler | None,
    typer.Option("--pooler", envvar=POOLER_VARIABLE, callback=_pooler, help=_POOLER_HELP, rich_help_panel=_CONNECTION),
]
RootPooler: TypeAlias = Annotated[
    database.Pooler | None, typer.Option("--pooler", callback=_root_pooler, help="As after the command.")
]
Debug: TypeAlias = Annotated[
    bool, typer.Option("--debug", callback=_debug, help=_DEBUG_HELP, rich_help_panel=_CONNECTION)
]
RootDebug: TypeAlias = Annotated[bool, typer.Option("--debug", callback=_debug, help="As after the command.")]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.", rich_help_panel=_CONNECTION)]


class DeploymentsKind(StrEnum):
    """Which deployments there are."""

    ANY = "any"
    TABLE = "table"


Deployments: TypeAlias = Annotated[
    DeploymentsKind,
    typer.Option(
        "--deployments",
        help="Which deployments there are: any id (they pull), or those of the table deployments.",
    ),
]


def deployment_directory(kind: DeploymentsKind) -> Literal["table"] | None:
    """Give the directory that an option names, as a registry takes it."""
    return "table" if kind is DeploymentsKind.TABLE else None


CommandId: TypeAlias = Annotated[str, typer.Argument(metavar="ID", help="The command's id, as create printed it.")]
State: TypeAlias = Annotated[
    CommandState, typer.Argument(metavar="STATE", parser=_state, help="The state to move it to.")
]
Result: TypeAlias = Annotated[
    CommandState, typer.Argument(metavar="STATE", parser=_result, help="How it ended: SUCCEEDED, FAILED or EXPIRED.")
]
InitialState: TypeAlias = Annotated[
    CommandState,
    typer.Option(
        "--state",
        metavar="STATE",
        parser=_state,
        help="The state it begins in; PENDING_UPLOAD while its parameters are still on their way.",
    ),
]

_INSTANT: Final = "INSTANT"

At: TypeAlias = Annotated[
    datetime | None,
    typer.Option("--at", parser=_instant, metavar=_INSTANT, help="The status it had then: 2026-11-24T10:00:00Z."),
]
Now: TypeAlias = Annotated[
    datetime | None,
    typer.Option("--now", parser=_instant, metavar=_INSTANT, help="The time to go by. Default: the clock's."),
]
DispatchedAt: TypeAlias = Annotated[
    datetime | None,
    typer.Option("--dispatched-at", parser=_instant, metavar=_INSTANT, help="When it went to its deployment."),
]
CompletedAt: TypeAlias = Annotated[
    datetime | None, typer.Option("--completed-at", parser=_instant, metavar=_INSTANT, help="When it was done.")
]
Deadline: TypeAlias = Annotated[
    datetime | None,
    typer.Option(
        "--deadline",
        parser=_deadline,
        metavar="INSTANT|DURATION",
        help="When it expires: 2026-11-24T10:00:00Z, or 30m, 2h, 1d12h from now. Default: never.",
    ),
]
StartAt: TypeAlias = Annotated[
    Any,
    typer.Option(
        "--from",
        parser=_start,
        metavar="PLACE|now|TIME",
        help="Where to begin: after an event, such as 812:40; with what is to come; or with what was recorded since "
        "2026-11-24T10:00:00Z, or for 15m. Default: 0:0, the start of the log; with --follow, now.",
    ),
]
RequestSize: TypeAlias = Annotated[
    int | None,
    typer.Option("--request-size-bytes", min=0, metavar="BYTES", help="How large its request is."),
]
ResponseSize: TypeAlias = Annotated[
    int | None,
    typer.Option("--response-size-bytes", min=0, metavar="BYTES", help="How large its response is."),
]
ErrorValue: TypeAlias = Annotated[
    Any, typer.Option("--error", parser=_json, metavar="JSON", help="What went wrong, as any JSON value.")
]

Actor: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--actor",
        metavar="NAME",
        help="Who does it, for the audit trail. Default: cli: and your user name, such as cli:ada.",
        rich_help_panel=_CONTEXT,
    ),
]
RequestId: TypeAlias = Annotated[
    str | None,
    typer.Option("--request-id", metavar="ID", help="The request it is done for.", rich_help_panel=_CONTEXT),
]
Traceparent: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--traceparent", metavar="TRACE", help="The W3C trace context it is done in.", rich_help_panel=_CONTEXT
    ),
]


def context(actor: str | None, request_id: str | None, traceparent: str | None) -> EventContext:
    """Make the context that a write is recorded with.

    Raises:
        InvalidCommand: one of them cannot be accepted.
    """
    who = f"cli:{user_name() or 'unknown'}" if actor is None else actor
    return accept(EventContext, actor=who, request_id=request_id, traceparent=traceparent)
