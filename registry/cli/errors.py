"""What an error says to somebody at a terminal: in one line, what went wrong, and how to mend it."""

import getpass
import re
from typing import Final
from urllib.parse import quote

import psycopg
from psycopg import errors as pg
from psycopg.conninfo import conninfo_to_dict

from eventstore.errors import Conflict, EventStoreError, OutcomeUnknown, SchemaMismatch, Unavailable
from registry.errors import (
    CommandNotFound,
    DeploymentNotFound,
    InvalidTransition,
    RegistryError,
    TargetAmbiguous,
    TargetNotFound,
)
from registry.lifecycle import TRANSITIONS, CommandState

__all__ = ["describe", "one_line", "user_name", "without_secrets"]

HIDDEN: Final = "***"
_READING: Final = frozenset({"status", "history", "export", "tail", "verify", "doctor"})
_SHORTEST_SECRET: Final = 3


def one_line(text: str) -> str:
    """Make one line of a text; control characters of any kind become spaces."""
    return re.sub(
        r"[\s\x00-\x1f\x7f-\x9f]*[\n\r\t\x00-\x1f\x7f-\x9f\u2028\u2029][\s\x00-\x1f\x7f-\x9f]*", " ", text
    ).strip()


def without_secrets(text: str, dsn: str | None) -> str:
    """Take the password of a DSN, and the DSN itself, out of a text."""
    if not dsn:
        return text
    text = text.replace(dsn, HIDDEN)
    known = _parts(dsn)
    password = known.pop("password", "")
    if len(password) >= _SHORTEST_SECRET and password not in known.values():
        for secret in {password, quote(password, safe=""), quote(password)}:
            text = text.replace(secret, HIDDEN)
    return text


def _parts(dsn: str | None) -> dict[str, str]:
    try:
        return {name: str(value) for name, value in conninfo_to_dict(dsn or "").items() if value is not None}
    except psycopg.Error:
        return {}


def user_name() -> str | None:
    """Return the operating system's name of the user, if it has one."""
    try:
        return getpass.getuser()
    except (KeyError, ImportError, OSError):  # what it raises depends on the version of Python
        return None


def describe(error: Exception, command: str, dsn: str | None) -> str:
    """Say what an error is about, and how to mend it. `command`: the one under way; `dsn`: the one in use."""
    match error:
        case RegistryError():
            return f"{error}{_after_refusal(error)}"
        case EventStoreError():
            return f"{_trimmed(error)}{_after_failure(error)}"
        case psycopg.Error():
            return _from_server(error, command, dsn)
        case OSError():
            place = f" {error.filename}" if error.filename else ""
            return f"cannot use{place}: {error.strerror or error}" if place else f"{error.strerror or error}"
        case _:
            return (
                f"internal error: {type(error).__name__}: {error}; run it again with --debug, and report what it says"
            )


def _trimmed(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    return " ".join(line for line in lines if not line.startswith("Is the server running")).rstrip(". ")


def _after_refusal(error: RegistryError) -> str:
    match error:
        case CommandNotFound():
            return ": check the id, and that --dsn (or COMMAND_REGISTRY_DSN) names the database it was created in"
        case InvalidTransition():
            return _where_it_can_go(error)
        case DeploymentNotFound():
            return ": add it to table command_registry.deployments, or use --deployments any"
        case TargetNotFound():
            return ": leave --target out for the only one, or name one that the directory knows"
        case TargetAmbiguous():
            return " (with --target)"
    return ""


def _where_it_can_go(error: InvalidTransition) -> str:
    following = [state for state in CommandState if state in TRANSITIONS[CommandState(error.from_state)]]
    hint = f": from there it can go to {', '.join(following)}"
    if error.to_state == CommandState.SUCCEEDED:
        return hint + "; `complete` takes it to its result from any state"
    if error.to_state == CommandState.DISPATCHED:
        return hint + "; `dispatch` takes it there from any state that is not final"
    return hint


def _after_failure(error: EventStoreError) -> str:
    match error:
        case OutcomeUnknown():
            return ", with: command-registry history ID"
        case Unavailable():
            return "; see that the server runs, and what --dsn (or COMMAND_REGISTRY_DSN) says"
        case Conflict():
            return ", and try once more"
        case SchemaMismatch() if "migrate" in error.remedy:
            return " (with the same --dsn)"
    return ""


def _from_server(error: psycopg.Error, command: str, dsn: str | None) -> str:
    what = error.diag.message_primary or str(error).strip().partition("\n")[0]
    match error:
        case pg.InsufficientPrivilege():
            return f"{what}; {_privilege(command, dsn)}"
        case pg.ReadOnlySqlTransaction():
            return f"{what}; writes need the primary server: name it in --dsn"
        case pg.LockNotAvailable():
            return f"{what}; another migration or a long transaction is under way: try again later"
        case pg.UndefinedTable() | pg.UndefinedColumn() | pg.UndefinedFunction() | pg.InvalidSchemaName():
            return f"{what}; to see what is missing, run: command-registry doctor"
        case psycopg.OperationalError():
            return f"{what}; try again, and see the server's log if it stays so"
    return f"the server says: {what}; run: command-registry doctor, or see more with --debug"


def _privilege(command: str, dsn: str | None) -> str:
    user = _parts(dsn).get("user") or user_name() or "your_user"
    if command == "migrate":
        return f"run it as the owner of the database or of schema command_registry, not as {user}"
    role = "command_registry_reader" if command in _READING else "command_registry_writer"
    return f'let the owner of schema command_registry run: GRANT {role} TO "{user}"'
