"""The command line: `python -m registry.testing` checks a history that was saved, and draws it."""

from pathlib import Path
from typing import Annotated, Final, NoReturn, TypeAlias

import psycopg
import typer

from eventstore.errors import EventStoreError
from registry import doctor
from registry.cli.errors import describe, one_line, without_secrets
from registry.cli.output import stderr
from registry.errors import RegistryError
from registry.postgres import PostgresCommandRegistry
from registry.testing.contradictions import Contradiction
from registry.testing.histories import concerning, contradictions_of, exported, listed, load_log
from registry.testing.linearizability import Logged
from registry.testing.recording import Operation, load
from registry.testing.reducing import reduced
from registry.testing.search import Undecided
from registry.testing.timeline import as_svg, as_text

__all__ = ["main"]

_HELP: Final = """Check a saved history of concurrent calls: is there one order of them that explains every answer?

A history is written by check_history when it fails, or as the journal of a Recorder (registry.testing.recording). \
With the log (--log, which check_history saves too, or --dsn, the database that the calls were made to) the check is \
exact and fast, whatever the history's length. Without, an order is searched for: that is for some hundred calls a \
command.

What check_history has saved: [bold]python -m registry.testing history.jsonl --log log.jsonl[/]
Without the log: [bold]python -m registry.testing history.jsonl[/]
Journals of clients that were killed, and what is in the database: \
[bold]python -m registry.testing a.jsonl b.jsonl --dsn postgresql://...[/]
An image of what cannot be, for a browser: [bold]python -m registry.testing history.jsonl --svg timeline.svg[/]

Exit status: 0 it can be explained, 1 it cannot (what cannot be is drawn), 2 wrong usage, or a file that cannot be read.
"""

app = typer.Typer(rich_markup_mode="rich", add_completion=False, pretty_exceptions_enable=False)

_Histories: TypeAlias = Annotated[
    list[Path], typer.Argument(metavar="HISTORY.jsonl", help="The history; several files are read as one.")
]
_Log: TypeAlias = Annotated[
    Path | None, typer.Option("--log", metavar="FILE", help="The log, as check_history saves it beside the history.")
]
_Dsn: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--dsn",
        metavar="DSN",
        help="Read the log from this database: postgresql://USER@HOST/DATABASE. Of the commands that the history is "
        "about, all events must be calls of the history. (It is not taken from the environment.)",
    ),
]
_Drawing: TypeAlias = Annotated[
    Path | None, typer.Option("--svg", metavar="FILE", help="Draw it as an image, too: what cannot be, or all of it.")
]


@app.command(help=_HELP, context_settings={"help_option_names": ["--help", "-h"]})
def check(histories: _Histories, log: _Log = None, dsn: _Dsn = None, svg: _Drawing = None) -> None:
    """Check, print, and exit with the status."""
    if log is not None and dsn is not None:
        _refuse("give --log or --dsn, and not both")
    history, events = _read(histories, log, dsn)
    try:
        contradictions = contradictions_of(history, events)
    except (Undecided, ValueError) as error:
        _refuse(str(error))
    operations: list[Operation] = list(history)
    if contradictions:
        few, contradiction = reduced(history, events, contradictions[0])
        operations = list(few)
        _draw(svg, operations, contradiction)
        _tell(contradictions, as_text(operations, contradiction))
        raise typer.Exit(1)
    _draw(svg, operations, None)
    how = "by search" if events is None else f"by the {len(events)} events of the log"
    typer.echo(f"{len(history)} operations: one order explains every answer ({how})")


def _read(histories: list[Path], log: Path | None, dsn: str | None) -> tuple[list[Operation], list[Logged] | None]:
    try:
        history = load(*histories)
        if log is not None:
            return history, load_log(log)
    except (OSError, ValueError) as error:
        _refuse(f"cannot read {error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error))
    return history, None if dsn is None else concerning(history, _from_database(dsn))


def _from_database(dsn: str) -> list[Logged]:
    try:
        with PostgresCommandRegistry.open(dsn, pool_size=1) as registry:
            events = exported(registry)
            waiting = registry.database.run(doctor.held_back())
    except (RegistryError, EventStoreError, psycopg.Error, ValueError) as error:
        _refuse(without_secrets(describe(error, "export", dsn), dsn))
    if waiting:
        _refuse(f"{waiting} events wait for an open transaction, and cannot be read yet: see command-registry doctor")
    return events


def _draw(file: Path | None, operations: list[Operation], contradiction: Contradiction | None) -> None:
    if file is None:
        return
    try:
        file.write_text(as_svg(operations, contradiction), "utf-8")
    except OSError as error:
        _refuse(f"cannot write {file}: {error.strerror}")


def _tell(contradictions: list[Contradiction], drawn: str) -> None:
    for line in listed(contradictions):
        typer.echo(one_line(line))
    typer.echo(f"\n{drawn}", nl=False)


def _refuse(message: str) -> NoReturn:
    stderr().print(f"error: {one_line(message)}", soft_wrap=True)
    raise typer.Exit(2)


def main() -> NoReturn:
    """Run the command line, and exit with its status."""
    app(prog_name="python -m registry.testing")
    raise SystemExit(0)


if __name__ == "__main__":
    main()
