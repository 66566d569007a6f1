"""Mixes of calls, good and bad, and how each ended: for tests that compare one way to make them with another."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, NoReturn, TypeAlias

import psycopg
from hypothesis import strategies as st

from registry import (
    CommandMetadata,
    CommandState,
    CommandStatus,
    EventContext,
    IdempotencyConflict,
    PostgresCommandRegistry,
)
from registry.answers import metadata
from registry.writing import Write
from tests.conftest import Databases

__all__ = [
    "BEGINNINGS",
    "Asked",
    "Gathering",
    "Outcome",
    "Reached",
    "calls",
    "creations",
    "ended",
    "gathered",
    "outcome",
    "picky",
]

NOW: Final = datetime(2026, 11, 24, 10, 0, tzinfo=UTC)

BEGINNINGS: Final = [CommandState.PENDING_UPLOAD, CommandState.PENDING, CommandState.DISPATCHED, CommandState.SUCCEEDED]
"""The states of the commands that the calls are on."""

# What a server refuses: by a check of the log, by a trigger on it, and by a check of the read model.
REFUSALS: Final = """
    ALTER TABLE command_registry.events ADD CONSTRAINT no_poison
        CHECK ((data::text || metadata::text) NOT LIKE '%poison%');
    CREATE FUNCTION refuse_venom() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN RAISE EXCEPTION 'venom'; END
    $$;
    CREATE TRIGGER no_venom BEFORE INSERT ON command_registry.events FOR EACH ROW
        WHEN ((NEW.data::text || NEW.metadata::text) LIKE '%venom%') EXECUTE FUNCTION refuse_venom();
    ALTER TABLE command_registry.command_status_v1 ADD CONSTRAINT no_bane CHECK (command <> 'bane');
"""


@dataclass(frozen=True)
class Asked:
    """One call: of which method, on which of the commands there are, with which arguments."""

    method: str
    command: int | None
    arguments: dict[str, Any]

    @property
    def is_bad_and_has_a_key(self) -> bool:
        """Whether it is a creation with a key that cannot be made, be the key free or not."""
        bad = any(word in repr(self.arguments) for word in ("poison", "venom", "bane", "nowhere", "a:b"))
        return bad and self.arguments.get("idempotency_key") is not None

    def on(self, registry: Any, commands: Sequence[str]) -> Any:
        """Make it."""
        first = () if self.command is None else (commands[self.command],)
        return getattr(registry, self.method)(*first, **self.arguments)


errors = st.sampled_from([None, None, None, {"code": 7}, ["poison"], {"message": "venom"}])
sizes = st.sampled_from([None, None, None, None, 7, -1])
contexts = st.sampled_from([None] * 8 + [EventContext(actor="poison"), EventContext(actor="venom")])
instants = st.sampled_from([NOW, NOW, NOW, NOW.replace(year=1), NOW.replace(tzinfo=None)])
states = st.sampled_from([*CommandState, "LOST"])


def calls_of(method: str, command: st.SearchStrategy[int | None], **arguments: Any) -> st.SearchStrategy[Asked]:
    given_ones = st.fixed_dictionaries({**arguments, "context": contexts})
    return st.builds(Asked, st.just(method), command, given_ones)


def calls(commands: st.SearchStrategy[int | None]) -> st.SearchStrategy[Asked]:
    return st.one_of(
        calls_of("update_command_state", commands, state=states, error=errors, response_size_bytes=sizes),
        calls_of("complete_command", commands, state=states, completed_at=instants, error=errors),
        calls_of("mark_dispatched_if_not_terminal", commands, dispatched_at=instants),
        calls_of("increment_attempt", commands),
    )


creations = calls_of(
    "create_command",
    st.none(),
    deployment_id=st.sampled_from(["dep_1"] * 6 + ["dep_2", ""]),
    command_name=st.sampled_from(["sync"] * 4 + ["restart", "poison", "venom", "bane"]),
    initial_state=st.sampled_from([CommandState.PENDING] * 4 + [CommandState.SUCCEEDED]),
    idempotency_key=st.sampled_from([None, "one", "one", "two"]),
    target=st.sampled_from([None] * 6 + ["nowhere", "a:b"]),
)


class Gathered(Exception):
    """A call that has come as far as the batch."""

    def __init__(self, write: Write[Any]) -> None:
        self.write = write


class Gathering(PostgresCommandRegistry):
    """A registry that checks a call's arguments, and hands over what would go in a batch."""

    def _settled(self, write: Write[Any], connection: object, timeout: float) -> NoReturn:
        raise Gathered(write)


Outcome: TypeAlias = tuple[object, ...]
Reached: TypeAlias = Write[Any] | Outcome


def outcome(call: Callable[[], Any]) -> Outcome:
    """Say how a call ended: with what answer, or what error."""
    try:
        return ended(call())
    except Gathered:
        raise
    except Exception as error:
        return ended(error)


def ended(end: object) -> Outcome:
    match end:
        case CommandStatus():
            return ended(metadata(end))
        case CommandMetadata():
            return ("created", end.command_id, end.model_copy(update={"command_id": ""}))
        case IdempotencyConflict():
            return ("IdempotencyConflict", end.command_id)
        case psycopg.Error():
            return (type(end).__name__, end.diag.constraint_name)
        case Exception():
            return (type(end).__name__, str(end))
        case _:
            return ("answered", end)


def gathered(gathering: Gathering, asked: Sequence[Asked], ids: Sequence[str]) -> list[Reached]:
    """Check the calls' arguments; give what is to go in a batch, or how the call has ended already."""
    reached: list[Reached] = []
    for call in asked:
        try:
            reached.append(outcome(lambda call=call: call.on(gathering, ids)))  # type: ignore[misc]
        except Gathered as call_so_far:
            reached.append(call_so_far.write)
    return reached


@contextmanager
def picky(databases: Databases) -> Iterator[str]:
    """Make a database whose server refuses some values."""
    name = databases.migrated()
    with psycopg.connect(databases.dsn(name), autocommit=True) as connection:
        connection.execute(REFUSALS)
    yield databases.dsn(name)
    databases.drop(name)
