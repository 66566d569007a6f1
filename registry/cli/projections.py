"""The commands about read models: `command-registry projections ...`."""

import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Final, Self

import typer
from rich.console import Console
from rich.text import Text

from eventstore.errors import Unavailable
from eventstore.steps import Blocked
from projections import rebuild as building
from projections import status as statuses
from projections.errors import NotCaughtUp, StillUsed
from projections.postgres import Projector, Rebuilt, rebuild_table
from projections.rebuild import Progress, Verify
from projections.status import Overview, Status
from projections.table import Table
from registry import read_models
from registry.cli.commands import PROJECTIONS, command
from registry.cli.invocation import Stop
from registry.cli.opening import database
from registry.cli.options import Debug, Dsn, Json, Pooler
from registry.cli.output import facts, instant, print_json, say, stderr, stdout
from registry.cli.output import table as print_table

__all__ = ["prune", "rebuild", "run", "skip", "status", "switch"]

_WATCH_SECONDS: Final = 1.0
_TOLD_SECONDS: Final = 10.0
_MOST_BEHIND: Final = 1_000

Name = Annotated[str, typer.Argument(metavar="NAME", help="The read model: command_status, or another one.")]
Names = Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Which read models. Default: all.")]
Modules = Annotated[
    list[str] | None,
    typer.Option(
        "--projections",
        envvar="COMMAND_REGISTRY_PROJECTIONS",
        metavar="MODULE:CLASS",
        help="A projection of your own, in a module of the current directory or an installed one. May be repeated.",
    ),
]
Version = Annotated[
    int | None,
    typer.Option("--version", min=1, max=2**31 - 1, metavar="N", help="Which version. Default: that of this software."),
]


def _table(name: str, modules: Sequence[str] | None) -> Table[Any]:
    return read_models.find([name], modules or ())[0]


@command(
    PROJECTIONS,
    "command-registry projections rebuild command_status --workers 2",
    "command-registry projections rebuild errors_by_code --projections mymodule:ErrorsByCode --verify full",
)
def rebuild(
    name: Name,
    workers: Annotated[int, typer.Option("--workers", min=1, max=64, metavar="N", help="Processes that fold.")] = 1,
    verify: Annotated[
        Verify, typer.Option("--verify", help="How much of the new table is compared with the log before it is used.")
    ] = "sample",
    switch: Annotated[
        bool, typer.Option("--switch/--no-switch", help="Put it in force at the end, or leave that to `switch`.")
    ] = True,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin anew, instead of going on where the last one was interrupted.")
    ] = False,
    modules: Modules = None,
    as_json: Json = False,
    dsn: Dsn = None,
    pooler: Pooler = None,
    _debug: Debug = False,
) -> None:
    """Build a read model from the log, beside the one in force, and switch to it.

    Run it after a projection got its next version: appends go on meanwhile. It folds everything there is, follows what
    was appended since, verifies, switches the view, and waits for transactions that were open at the switch. It may be
    interrupted, or killed, at any point: run again, it goes on. A version that is in force already is repaired.
    """
    table = _table(name, modules)
    with database(dsn, pooler, pool_size=3) as opened, _told(table, quiet=as_json) as told:
        rebuilt = rebuild_table(
            opened, table, workers=workers, verify=verify, switch=switch, restart=restart, told=told
        )
    if as_json:
        print_json({"table": table.full_name, **vars(rebuilt)})
        return
    facts("rebuilt", _rebuilt(table, rebuilt, verify))
    if rebuilt.switched and not rebuilt.drained:
        warning = (
            "transactions that were open at the switch still are; if one of them appends by older software, "
            "`projections run` brings it into the table (reads by id see it at once)"
        )
        stderr().print(Text.assemble(("warning: ", "yellow"), warning), soft_wrap=True)


def _rebuilt(table: Table[Any], rebuilt: Rebuilt, verify: Verify) -> list[tuple[str, str]]:
    if rebuilt.in_place:
        state = "repaired in place"
    else:
        state = "in force" if rebuilt.switched else "built, and not in force: see projections switch"
    rate = f" ({rebuilt.events / rebuilt.seconds:.0f} a second)" if rebuilt.seconds else ""
    compared = "nothing" if verify == "none" else f"{rebuilt.compared} rows, all as the log says"
    return [
        ("table", table.full_name),
        ("state", state),
        ("events", f"{rebuilt.events}{rate}"),
        ("compared", compared),
        ("seconds", f"{rebuilt.seconds:.2f}"),
    ]


@contextmanager
def _told(table: Table[Any], *, quiet: bool) -> Iterator["_Bar | _Lines | _Silence"]:
    """Tell how a build goes on: by a bar on a terminal, by a line now and then elsewhere."""
    console = stderr()
    if quiet:
        yield _Silence()
    elif console.is_terminal:
        with _Bar(table, console) as bar:
            yield bar
    else:
        yield _Lines(table, console)


class _Silence:
    def __call__(self, progress: Progress) -> None:
        pass


class _Lines:
    def __init__(self, table: Table[Any], console: Console) -> None:
        self._table, self._console = table, console
        self._phase, self._told_at = "", 0.0

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if progress.phase != self._phase or now - self._told_at >= _TOLD_SECONDS:
            self._phase, self._told_at = progress.phase, now
            self._console.print(f"{self._table.full_name}: {_progress_text(progress)}", soft_wrap=True)


def _progress_text(progress: Progress) -> str:
    trouble = f"; last error: {progress.last_error}" if progress.last_error else ""
    return f"{progress.phase}, {progress.done} of about {progress.total} events, {progress.rate:.0f} a second{trouble}"


class _Bar:
    def __init__(self, table: Table[Any], console: Console) -> None:
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[rate]} events/s"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[error]}", style="red", markup=False),
        )
        self._bar = Bar(*columns, console=console, transient=True)
        self._task = self._bar.add_task(table.full_name, total=None, rate="", error="")
        self._name = table.full_name

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, progress: Progress) -> None:
        self._bar.update(
            self._task,
            description=f"{self._name}: {progress.phase}",
            total=max(progress.total, progress.done, 1),
            completed=progress.done,
            rate=f"{progress.rate:,.0f}",
            error=progress.last_error or "",
        )


@command(
    PROJECTIONS,
    "command-registry projections status",
    "command-registry projections status --watch",
)
def status(
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it again every second, until Ctrl-C.")] = False,
    as_json: Json = False,
    dsn: Dsn = None,
    pooler: Pooler = None,
    _debug: Debug = False,
) -> None:
    """Show every read model: its version, who follows the log for it, how far it is, and what holds it back.

    A read model that every append writes (inline) is never behind. For the others: the position, the lag in events and
    seconds, the rate, the owner, the last error; for one that is being built, its phase and progress. And the oldest
    open transaction that writes, in any database of the server, since readers of the log have to wait for it.
    """
    with database(dsn, pooler, pool_size=1) as opened:
        if not watch:
            _show(opened.run(statuses.overview()), as_json=as_json)
        elif as_json or not sys.stdout.isatty():
            while True:
                _show(opened.run(statuses.overview()), as_json=as_json)
                sys.stdout.flush()
                time.sleep(_WATCH_SECONDS)
        else:
            _watch(lambda: opened.run(statuses.overview()))


def _watch(look: Any) -> None:  # noqa: ANN401
    from rich.live import Live

    console = stdout()
    with Live(console=console, auto_refresh=False, screen=False) as live:
        while True:
            try:
                with console.capture() as captured:
                    _show(look(), as_json=False)
                live.update(Text.from_ansi(captured.get()), refresh=True)
            except Unavailable as error:
                live.update(Text(str(error), style="red"), refresh=True)
            time.sleep(_WATCH_SECONDS)


def _show(found: Overview, *, as_json: bool) -> None:
    if as_json:
        print_json({"projections": [_as_json(each) for each in found.projections], "held_back_by": _blocker(found)})
        return
    columns = ("read model", "state", "position", "lag", "rate", "owner", "last error")
    print_table(columns, [_row(each) for each in found.projections], unbroken=2)
    writer = found.held_back_by
    if writer is not None:
        age = f"{writer.seconds:.0f} s old" if writer.seconds is not None else "of unknown age"
        say(
            ("held back: ", "yellow"),
            f"readers of the log wait for {writer.name} in database {writer.database}, {age}, "
            f"query since {instant(writer.query_start)}; to end it: {writer.remedy}",
        )


def _row(each: Status) -> tuple[str, ...]:
    state = ("in force, " if each.in_force else "") + each.phase
    progress = f" {each.events_done} of about {each.events_total}" if not each.whole else ""
    skipped = f", {each.skipped} events left out" if each.skipped else ""
    place = "-" if each.position is None or each.phase == "inline" else _place(each)
    lag = "-" if each.lag is None else _lag(each)
    rate = f"{each.rate:.0f}/s" if each.rate else "-"
    return (
        f"{each.name}_v{each.version}",
        state + progress + skipped,
        place,
        lag,
        rate,
        each.owner or "-",
        each.last_error or "-",
    )


def _place(each: Status) -> str:
    if each.position is None:
        return "-"
    at = "end" if each.position.position == 2**63 - 1 else str(each.position.position)
    return f"{each.position.transaction_id}:{at}"


def _lag(each: Status) -> str:
    if each.lag is None or not each.lag.events:
        return "0"
    more = "+" if each.lag.events >= statuses.MOST_COUNTED else ""
    return f"{each.lag.events}{more} events, {each.lag.seconds:.1f} s"


def _as_json(each: Status) -> dict[str, object]:
    lag = each.lag
    return {
        "name": each.name,
        "version": each.version,
        "in_force": each.in_force,
        "whole": each.whole,
        "phase": each.phase,
        "position": None if each.position is None else list(each.position),
        "lag_events": None if lag is None else lag.events,
        "lag_seconds": None if lag is None else lag.seconds,
        "events_per_second": each.rate,
        "events_done": each.events_done,
        "events_total": each.events_total,
        "owner": each.owner,
        "last_error": each.last_error,
        "updated_at": each.updated_at,
        "skipped": each.skipped,
    }


def _blocker(found: Overview) -> dict[str, object] | None:
    return None if found.held_back_by is None else found.held_back_by._asdict()


@command(
    PROJECTIONS,
    "command-registry projections run",
    "command-registry projections run errors_by_code --projections mymodule:ErrorsByCode",
    "command-registry projections run --once",
)
def run(
    names: Names = None,
    once: Annotated[
        bool, typer.Option("--once", help="End when all that is in the log now is folded, instead of going on.")
    ] = False,
    modules: Modules = None,
    dsn: Dsn = None,
    pooler: Pooler = None,
    _debug: Debug = False,
) -> None:
    """Follow the log for read models, until told to stop (Ctrl-C, SIGTERM).

    Run it as often as you like: for each read model one process leads, and within 5 seconds of its end another goes on;
    each event is folded exactly once. A read model that is not there yet is created, and folded from the start of the
    log (`rebuild` is faster, for a long one). One that cannot fold an event stops before it, says so here and in
    `projections status`, and tries again; the others go on.
    """
    tables = read_models.find(names or [], modules or ())
    with database(dsn, pooler, pool_size=len(tables) + 1) as opened, Projector(opened, tables) as projector:
        stderr().print(f"following the log for {', '.join(table.name for table in tables)}", soft_wrap=True)
        if not once:
            threading.Event().wait()
        while once:
            try:
                projector.wait_until()
            except NotCaughtUp as error:
                stderr().print(str(error), soft_wrap=True)
            else:
                return


@command(PROJECTIONS, "command-registry projections switch command_status --version 1")
def switch(
    name: Name,
    version: Version = None,
    modules: Modules = None,
    dsn: Dsn = None,
    pooler: Pooler = None,
    _debug: Debug = False,
) -> None:
    """Put a version of a read model in force that is built: its view shows that version's table.

    In one transaction; who reads the view sees one or the other. Also to go back. Each version's software goes on using
    the table of its own version, whatever is in force.
    """
    number = _table(name, modules).projection.version if version is None else version
    with database(dsn, pooler, pool_size=1) as opened:
        before = opened.run(building.in_force(name))
        _check_lag(opened.run(statuses.overview()), name, number)
        opened.run(building.switch(name, number))
    facts("switched", [("in force", f"{name}_v{number}"), ("before", f"{name}_v{before}" if before else "none")])


def _check_lag(found: Overview, name: str, version: int) -> None:
    for each in found.projections:
        if (each.name, each.version) == (name, version) and each.lag is not None and each.lag.events > _MOST_BEHIND:
            raise Stop(
                f"{name}_v{version} is {_lag(each)} behind the log: let `projections run` bring it up first, or "
                "`projections rebuild` build it"
            )


@command(PROJECTIONS, "command-registry projections prune", "command-registry projections prune --yes --observe 60")
def prune(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Of which read models. Default: of all.")
    ] = None,
    observe: Annotated[
        float,
        typer.Option(
            "--observe", min=0, max=86_400, metavar="SECONDS", help="How long to watch whether anybody uses it."
        ),
    ] = 15.0,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Json = False,
    dsn: Dsn = None,
    pooler: Pooler = None,
    _debug: Debug = False,
) -> None:
    """Drop the tables of versions older than the one in force, once nobody uses them; newer ones only if named.

    A table that somebody builds, follows, reads or writes meanwhile stays. Nothing is lost: the log has it all.
    """
    dropped, kept = [], []
    with database(dsn, pooler, pool_size=1) as opened:
        found = opened.run(statuses.overview()).projections
        in_force = {each.name: each.version for each in found if each.in_force}
        old = [each for each in found if each.version < in_force.get(each.name, 0) or each.name in (names or ())]
        old = [each for each in old if not each.in_force and each.name in in_force]
        old = [each for each in old if not names or each.name in names]
        if old and not yes:
            if not sys.stdin.isatty():
                raise Stop(
                    f"this drops {', '.join(f'{each.name}_v{each.version}' for each in old)}: confirm with --yes"
                )
            typer.confirm(f"Drop {', '.join(f'{each.name}_v{each.version}' for each in old)}?", abort=True, err=True)
        for each in old:
            try:
                opened.run(statuses.prune(each.name, each.version, observe), timeout=observe + 30, lasting=True)
                dropped.append(f"{each.name}_v{each.version}")
            except (StillUsed, Blocked) as error:
                kept.append(str(error))
    if as_json:
        print_json({"dropped": dropped, "kept": kept})
    else:
        facts("pruned", [("dropped", ", ".join(dropped) or "nothing"), *(("kept", reason) for reason in kept)])
    if kept:
        raise typer.Exit(1)


@command(PROJECTIONS, "command-registry projections skip deployment_activity cmd_... 3 --reason 'written by a test'")
def skip(
    name: Name,
    stream_id: Annotated[str, typer.Argument(metavar="ID", help="The command whose event it is.")],
    stream_version: Annotated[
        int, typer.Argument(metavar="EVENT_VERSION", min=1, max=2**31 - 1, help="The event's version.")
    ],
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; it is recorded, with who said so.")],
    version: Version = None,
    modules: Modules = None,
    dsn: Dsn = None,
    pooler: Pooler = None,
    _debug: Debug = False,
) -> None:
    """Let a read model leave an event out that it cannot fold, and go on.

    The event stays in the log; only this version of this read model passes over it. Better is a projection that can
    fold it: give it its next version, and rebuild.
    """
    number = _table(name, modules).projection.version if version is None else version
    with database(dsn, pooler, pool_size=1) as opened:
        new = opened.run(statuses.skip(name, number, stream_id, stream_version, reason))
    facts("skip", [("event", f"{stream_id} version {stream_version}"), ("state", "noted" if new else "noted before")])
