"""`command-registry tail`: the log, and what it gets."""

import errno
import os
import select
import stat
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Annotated, BinaryIO, Final

import typer
from rich.console import Console
from rich.text import Text

from eventstore.event import RecordedEvent
from eventstore.protocol import LOG_START
from registry import doctor
from registry.audit import export_line
from registry.cli.audit import tell_waiting
from registry.cli.commands import READ, command
from registry.cli.errors import one_line, without_secrets
from registry.cli.following import Choice, Reader, begin
from registry.cli.opening import opened
from registry.cli.options import Debug, Dsn, Json, Pooler, Start, StartAt
from registry.cli.output import instant, stderr, stdout
from registry.cli.reads import by_whom, what_happened
from registry.cli.visible import visible, visible_json
from registry.events import CODEC
from registry.history import history_entry

__all__ = ["tail"]


def _type(name: str) -> str:
    if name not in CODEC.type_names:
        raise typer.BadParameter(f"{name!r} is none of {', '.join(CODEC.type_names)}")
    return name


@command(
    READ,
    "command-registry tail --from 15m",
    "command-registry tail -f --type CommandTransitioned",
    "command-registry tail -f --deployment dep_eu1 --json | jq .data",
)
def tail(
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what the log gets, until interrupted.")
    ] = False,
    start: StartAt = None,
    types: Annotated[
        list[str] | None,
        typer.Option(
            "--type", parser=_type, metavar="TYPE", help="Only events of this type; may be given several times."
        ),
    ] = None,
    deployments: Annotated[
        list[str] | None,
        typer.Option(
            "--deployment", metavar="ID", help="Only commands of this deployment; may be given several times."
        ),
    ] = None,
    as_json: Json = False,
    dsn: Dsn = None,
    pooler: Pooler = None,
    _debug: Debug = False,
) -> None:
    """Show the log, one event a line, and with --follow what it gets.

    In the order of the log, so that nothing is skipped and nothing comes twice: an event that was committed beside a
    transaction which is still open waits for it. A line has when the event was recorded, its place in the log (for
    --from), the command and its version, the type, what happened and who did it; with --json it is the line of export.

    Without --follow it goes from the start of the log to its end, as journalctl does, and with it from now on. A time
    is exact, and costs one pass of the server over the log before it. A server that goes away is waited for.
    """
    begin_at: Start = start or ("now" if follow else LOG_START)
    choice = Choice(types or (), deployments or (), begin_at if isinstance(begin_at, datetime) else None)
    output = _Output(_json_line if as_json else _for_people(stdout()))
    with opened(dsn, pooler) as registry:
        after = registry.database.run(begin(begin_at), lasting=True)
        reader = Reader(registry.database, after, choice, output.show, lambda text: _note(without_secrets(text, dsn)))
        if follow:
            reader.follow(output.pause)
        reader.to_the_end()
        waiting = registry.database.run(doctor.held_back())
    tell_waiting(waiting)


def _note(text: str) -> None:
    stderr().print(Text.assemble(("note: ", "yellow"), text), soft_wrap=True)


def _json_line(event: RecordedEvent) -> bytes:
    line = export_line(event)
    return visible_json(line) if sys.stdout.isatty() else line


class _Output:
    """Lines on the standard output, and whether anybody still reads them."""

    def __init__(self, line: Callable[[RecordedEvent], bytes]) -> None:
        self._line = line
        self._file = sys.stdout.buffer
        self._reader = _pipe_of(self._file)

    def show(self, events: Sequence[RecordedEvent]) -> None:
        """Write a line for each event, all at once."""
        self._file.write(b"".join([self._line(event) for event in events]))
        self._file.flush()

    def pause(self, seconds: float) -> None:
        """Wait.

        Raises:
            BrokenPipeError: who read the lines has gone.
        """
        if self._reader is None:
            time.sleep(seconds)
        elif self._reader.poll(seconds * 1_000):
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def _pipe_of(file: BinaryIO) -> "select.poll | None":  # (which is a function where it runs)
    """Give what tells that the reader of a pipe or a socket has gone; None for another kind of file."""
    try:
        descriptor = file.fileno()
        mode = os.fstat(descriptor).st_mode
    except OSError:  # a file that only Python knows
        return None
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        return None
    reader = select.poll()
    reader.register(descriptor, 0)  # nothing but errors and hang-ups
    return reader


def _for_people(console: Console) -> Callable[[RecordedEvent], bytes]:
    """Make the lines that people read, in colours on a terminal."""

    def line(event: RecordedEvent) -> bytes:
        text = _on_one_line(_told(event))
        if not console.is_terminal:  # the same line, made sooner
            return visible(text.plain).encode() + b"\n"
        with console.capture() as captured:
            console.print(text, soft_wrap=True)
        return captured.get().encode()

    return line


_TYPE_WIDTH: Final = max(map(len, CODEC.type_names))


def _told(event: RecordedEvent) -> Text:
    what, by = _what_and_by(event)
    return Text.assemble(
        (instant(event.recorded_at), "dim"),
        f"  {event.transaction_id}:{event.position}  ",
        (event.stream_id, "bold"),
        f"  {event.version}  {event.type:<{_TYPE_WIDTH}}  ",
        what,
        (f"  by {by}", "dim"),
    )


def _what_and_by(event: RecordedEvent) -> tuple[Text, str]:
    try:
        entry = history_entry(event)
    except Exception:  # what a later version of the software, or a hand in the tables, has written
        return Text(f"schema version {event.schema_version}, as stored: {event.data} {event.metadata}"), "-"
    return what_happened(entry), by_whom(entry)


def _on_one_line(text: Text) -> Text:
    line = one_line(text.plain)
    return text if line == text.plain else Text(line)
