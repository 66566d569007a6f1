"""The statement that the registry sends for a single event, and a script for pgbench that sends it as well."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

from psycopg.adapt import PyFormat, Transformer
from psycopg.sql import SQL, Identifier

from benchmarks import queries
from benchmarks.life import Written, command_id, life
from eventstore.steps import Step
from projections.plans import append
from registry.command_status import COMMAND_STATUS

__all__ = ["FIRST", "Script", "lives", "reads"]

_DIGITS: Final = 19
_PREFIX: Final = command_id(0)[:-_DIGITS]

FIRST: Final = int(command_id(0)[-_DIGITS:])
"""What a script calls the command of number 0."""

# A transaction is one statement, so that the latency of a transaction is that of a call; three of them are a life.
# Ids ascend over time, as the registry's own do: random ones would slow pgbench down by what they cost an index.
_BEGIN: Final = (
    r"\set command :first + :turn / 3 * :clients + :client_id",
    r"\set step :turn % 3",
    r"\set turn :turn + 1",
)


class Script(NamedTuple):
    """A script for pgbench, and the variables that it needs beside :first (a number from FIRST on) and :clients."""

    text: str
    variables: dict[str, str]


def lives() -> Script:
    """Make the script in which each client creates, dispatches and completes one command after the other.

    The hashes are those of one sample command, for all of them alike: the guard compares them, and they hold.
    """
    sample = command_id(0)
    steps = [_append(write) for write in life(sample, datetime.now(UTC))]
    created, dispatched, completed = (_Statement(step, f"p{n}", sample) for n, step in enumerate(steps))
    lines = (*_BEGIN, r"\if :step = 0", created.text, r"\elif :step = 1", dispatched.text, r"\else", completed.text)
    variables = {"turn": "0", **created.variables, **dispatched.variables, **completed.variables}
    return Script("\n".join((*lines, r"\endif", "")), variables)


def reads(commands: int) -> Script:
    """Make the script that reads the status of random commands, of so many numbered ones."""
    sample = command_id(0)
    key = Identifier(next(iter(COMMAND_STATUS.projection.columns)))
    by_key = SQL(queries.SELECT_STATUS).format(table=COMMAND_STATUS.identifier, key=key).as_bytes()
    select = _Statement(Step(by_key, (sample,)), "p", sample)
    lines = (r"\set command :first + random(0, :commands - 1)", select.text, "")
    return Script("\n".join(lines), {"commands": str(commands), **select.variables})


def _append(write: Written) -> Step:
    """Give the statement of a single event, and its parameters, by asking the plan that sends it."""
    row = COMMAND_STATUS.projection.row(write.status)
    return next(append([(COMMAND_STATUS, row)], write.end, [write.event]))


class _Statement:
    """A statement for pgbench: psycopg's placeholders become variables, so that they are bound here as well."""

    def __init__(self, step: Step, name: str, sample: str) -> None:
        self.variables: dict[str, str] = {}
        self._name, self._sample = name, sample
        self.text = "".join(self._pieces(_text(step), step.params or ())) + ";"

    def _pieces(self, sql: str, params: Sequence[object]) -> Iterator[str]:
        first, *others = (piece.replace("%%", "%") for piece in sql.strip().split("%s"))
        yield first
        for number, (param, piece) in enumerate(zip(params, others, strict=True)):
            yield self._bound(f"{self._name}_{number}", param) + piece

    def _bound(self, name: str, param: object) -> str:
        if param == self._sample:
            return f"('{_PREFIX}' || :command)"
        if param == [self._sample]:
            return f"ARRAY['{_PREFIX}' || :command]"
        if param is None:
            return "NULL"  # no variable can be that
        self.variables[name] = _text_of(param)
        return f":{name}"


def _text_of(param: object) -> str:
    """Write a parameter as the server reads it."""
    plain = [_hex(item) for item in param] if isinstance(param, list) else _hex(param)
    return bytes(Transformer().get_dumper(plain, PyFormat.TEXT).dump(plain) or b"").decode()


def _hex(item: object) -> object:
    """Write bytes in hex: without a connection, psycopg writes them as servers of long ago read them."""
    return rf"\x{item.hex()}" if isinstance(item, bytes) else item


def _text(step: Step) -> str:
    if not isinstance(step.sql, bytes):
        raise TypeError("the registry's statements are bytes")
    return step.sql.decode()
