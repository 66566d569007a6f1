"""The command line: `python -m benchmarks`."""

import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Annotated, Final, NoReturn, TypeAlias

import psycopg
import typer

from benchmarks.contenders import FULL, QUICK, Contender, Pace, chosen, contenders
from benchmarks.document import write
from benchmarks.errors import BenchmarkError
from benchmarks.machine import look_at
from benchmarks.pgbench import find_pgbench
from benchmarks.progress import Progress
from benchmarks.report import print_report, print_warnings
from benchmarks.results import Results
from benchmarks.rounds import estimate, play
from benchmarks.server import opened
from eventstore.database import parse_dsn
from eventstore.errors import EventStoreError
from registry.cli.errors import describe, one_line, without_secrets
from registry.cli.output import stderr, stdout
from registry.errors import RegistryError

__all__ = ["main"]

_JSON: Final = "BENCH_JSON"

_HELP: Final = """Measure the registry beside pgbench, COPY and the package eventsourcing, in one run on one server.

Every contender gives commands a life of three events (create, dispatch, complete), reads statuses by key, or reads a \
log of a million events to build a read model of it. Each is measured once a round, in a database of its own or in a \
large log that is kept; each figure is the median of the rounds. What the registry wrote is verified afterwards, but \
in the large logs.

Without --dsn it runs on an embedded Postgres of its own, with the settings that anybody gets. With --dsn it makes \
databases on that server (their names begin with crb_), and drops them at the end; the user must be one who may.

All of it, about twenty minutes: [bold]python -m benchmarks[/]
To see that it works: [bold]python -m benchmarks --quick[/]
Some contenders: [bold]python -m benchmarks --no-growth --only 'asyncio-*' --only 'pgbench-*'[/]
The results as JSON, too: [bold]BENCH_JSON=bench.json python -m benchmarks[/]

It is best left alone meanwhile: other work on the machine shows in the figures, and makes the spread wide.

Exit status: 0 measured (also when a target was missed), 1 it failed, or what the registry wrote does not verify, \
2 wrong usage, 130 interrupted.
"""

app = typer.Typer(rich_markup_mode="rich", add_completion=False, pretty_exceptions_enable=False)


_Dsn: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="DSN",
        help="The server to measure on: postgresql://USER@HOST/DATABASE. Default: an embedded one. (It is not taken "
        "from the environment: no server is put under load by mistake.)",
    ),
]
_Rounds: TypeAlias = Annotated[
    int | None, typer.Option(min=1, metavar="N", help=f"How many rounds. Default: {FULL.rounds}.")
]
_Seconds: TypeAlias = Annotated[
    float | None,
    typer.Option(min=0.01, metavar="S", help=f"How long each measurement takes. Default: {FULL.seconds:g}."),
]
_Quick: TypeAlias = Annotated[
    bool, typer.Option("--quick", help="One short round, and small logs: its figures mean nothing.")
]
_Only: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Measure only this contender, or those that a pattern such as 'pgbench-*' fits; may be repeated. A name "
        "that nobody has lists them all.",
    ),
]
_Growth: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--growth/--no-growth",
        help="Measure in logs of up to a million commands, and rebuild from up to five million events, too.",
    ),
]


@app.command(help=_HELP, context_settings={"help_option_names": ["--help", "-h"]})
def bench(
    dsn: _Dsn = None,
    rounds: _Rounds = None,
    seconds: _Seconds = None,
    quick: _Quick = False,
    only: _Only = None,
    growth: _Growth = True,
) -> None:
    """Measure, print the report, and exit with the status."""
    taking_part = _taking_part(only or [], growth=growth)
    pace = QUICK if quick else FULL
    pace = replace(pace, rounds=rounds or pace.rounds, seconds=seconds or pace.seconds)
    document = _document()
    try:
        results = _run(dsn, taking_part, pace, document)
    except (BenchmarkError, RegistryError, EventStoreError, psycopg.Error, OSError) as error:
        message = str(error) if isinstance(error, BenchmarkError) else one_line(describe(error, "bench", dsn))
        _say(f"error: {without_secrets(message, dsn)}")
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        _say("interrupted: what was begun is cleared away")
        raise typer.Exit(130) from None
    if not results.intact:
        raise typer.Exit(1)


def _run(dsn: str | None, taking_part: Sequence[Contender], pace: Pace, document: Path | None) -> Results:
    parse_dsn(dsn or "")
    with opened(dsn) as server:
        machine = look_at(server)
        print_warnings(stderr(), machine)
        if dsn:
            _say(f"the databases of this run are called {server.prefix}_..., and are dropped at its end")
        with Progress(stderr(), estimate(taking_part, pace)) as progress:
            results = play(server, taking_part, pace, progress)
    print_report(stdout(), results, machine, pace)
    if document:
        write(document, results, machine, pace)
    return results


def _taking_part(patterns: Sequence[str], *, growth: bool) -> list[Contender]:
    program = find_pgbench()
    everybody = list(contenders(program, growth=growth))
    taking_part = chosen(everybody, patterns)
    if not taking_part:
        names = ", ".join(each.name for each in everybody)
        raise typer.BadParameter(f"nobody is called that; there are: {names}", param_hint="--only")
    if program is None:
        _say("pgbench is not to be had here (it comes with Postgres): going on without it, and without its ratios")
    if not any(each.name.startswith("eventsourcing") for each in everybody):
        _say("eventsourcing is not installed (pip install eventsourcing): going on without it, and without its ratios")
    return taking_part


def _document() -> Path | None:
    """Give the file for the JSON, after seeing that it can be written: twenty minutes later is a bad time for it."""
    if not (name := os.environ.get(_JSON)):
        return None
    path = Path(name)
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise typer.BadParameter(f"{name} cannot be written", param_hint=_JSON)
    return path


def _say(message: str) -> None:
    stderr().print(message, soft_wrap=True)


def _interrupted(number: int, _frame: FrameType | None) -> NoReturn:
    """End, once: a second Ctrl-C would keep us from clearing away what there is."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)


def main() -> None:
    """Run the command line."""
    signal.signal(signal.SIGINT, _interrupted)
    signal.signal(signal.SIGTERM, _interrupted)
    app(prog_name="python -m benchmarks")


if __name__ == "__main__":
    main()
