"""The commands that prove: the verification of the whole record, and its export."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from eventstore.event import LogPosition
from eventstore.protocol import LOG_START
from registry import doctor
from registry.audit import Report, export_line
from registry.cli.commands import AUDIT, command
from registry.cli.invocation import Stop
from registry.cli.opening import opened
from registry.cli.options import Debug, Dsn, Json, Pooler, log_position
from registry.cli.output import facts, print_json, progress, say, stderr
from registry.cli.visible import visible_json

__all__ = ["export", "tell_waiting", "verify"]


@command(
    AUDIT,
    "command-registry verify",
    "command-registry verify --json",
)
def verify(as_json: Json = False, dsn: Dsn = None, pooler: Pooler = None, _debug: Debug = False) -> None:
    """Verify that nothing in the record was changed.

    Exit status 1 when anything is not as it was written. Every event's hash is computed again and must match, every
    command's versions must run 1, 2, 3 without a gap, and every row of the read model must be what its events fold
    to; all as of one moment. It changes nothing, and stops nobody.
    """
    with opened(dsn, pooler) as registry:
        count = lambda: registry.database.run(doctor.count_events())  # noqa: E731 - for the bar alone
        begun = time.perf_counter()
        with progress("verifying", count, quiet=as_json) as advance:
            report = registry.verify(advance)
        seconds = time.perf_counter() - begun
    _show_json(report, seconds) if as_json else _show(report, seconds)
    if not report.ok:
        raise typer.Exit(1)


def _show_json(report: Report, seconds: float) -> None:
    print_json(
        {
            "ok": report.ok,
            "events": report.events,
            "streams": report.streams,
            "rows": report.rows,
            "seconds": round(seconds, 3),
            "events_per_second": round(report.events / seconds),
            "problem_count": report.problem_count,
            "problems": report.problems,
        }
    )


def _show(report: Report, seconds: float) -> None:
    for problem in report.problems:
        say(str(problem))
    if report.problem_count > len(report.problems):
        say(f"... and {report.problem_count - len(report.problems)} more")
    facts(
        "verification",
        [
            ("result", "everything is as it was written" if report.ok else f"{report.problem_count} problems"),
            ("events", str(report.events)),
            ("streams", str(report.streams)),
            ("rows", str(report.rows)),
            ("seconds", f"{seconds:.2f}"),
            ("events/s", f"{report.events / seconds:.0f}"),
        ],
    )


@command(
    AUDIT,
    "command-registry export --output log.jsonl",
    "command-registry export | gzip > log.jsonl.gz",
    "command-registry export --after 812:40",
)
def export(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Where to. Default: the standard output.")
    ] = None,
    after: Annotated[
        LogPosition | None,
        typer.Option(
            "--after",
            parser=log_position,
            metavar="TRANSACTION_ID:POSITION",
            help="Go on after this event: what an earlier export said it ended at.",
        ),
    ] = None,
    dsn: Dsn = None,
    pooler: Pooler = None,
    _debug: Debug = False,
) -> None:
    """Write the log as JSON, one event a line.

    In the order of the log, with data and metadata to the letter as they are stored and hashed. Where that is of an
    older schema version than the one in force, "upcast_to" names the version that history shows. An event that was
    committed beside a transaction which is still open is not given yet: something may come before it. How many those
    are, and where the export ended, is said on stderr.
    """
    lines, last = 0, after or LOG_START
    with opened(dsn, pooler) as registry, _writing(output) as file:
        to_terminal = file.isatty()
        for event in registry.export(last):
            line = export_line(event)
            file.write(visible_json(line) if to_terminal else line)
            lines, last = lines + 1, event.log_position
        file.flush()
        waiting = registry.database.run(doctor.held_back())
    place = "" if last == LOG_START else f"; to go on later: --after {last.transaction_id}:{last.position}"
    stderr().print(f"{lines} events exported{place}", soft_wrap=True)
    tell_waiting(waiting)


def tell_waiting(events: int) -> None:
    """Tell somebody who has read to the end of the log how many events are committed and not given yet."""
    if events:
        stderr().print(
            f"{events} more wait for an open transaction (command-registry doctor names it): not given yet",
            soft_wrap=True,
        )


@contextmanager
def _writing(path: Path | None) -> Iterator[BinaryIO]:
    """Write to a file that takes its name only when it is whole: a failed export leaves the earlier one as it was."""
    if path is None or str(path) == "-":
        yield sys.stdout.buffer
        return
    special = path.exists() and not path.is_file()  # such as /dev/fd/3
    place = path if special else path.with_name(f".{path.name}.part")
    try:
        file = place.open("wb")
    except OSError as error:
        raise Stop(f"cannot write {path}: {error.strerror}; choose another --output") from error
    try:
        with file:
            yield file
        if not special:
            place.replace(path)
    finally:
        if not special:
            place.unlink(missing_ok=True)
