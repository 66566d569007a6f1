"""The results as tables, for people."""

from collections.abc import Iterable, Iterator
from typing import Final

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from benchmarks.contenders import Contender, Group, Pace
from benchmarks.disk import Disk
from benchmarks.disturbance import TOO_MUCH
from benchmarks.machine import Machine
from benchmarks.results import FIGURES, Figure, Ratio, Results, figure
from benchmarks.sample import Sample
from benchmarks.targets import TARGETS

__all__ = ["print_report", "print_warnings"]

_WIDE: Final = 120
"""From so many columns on, the spread has a column of its own."""

_DIGITS: Final = {
    "p50_ms": 2,
    "p99_ms": 2,
    "client_cpu_s_per_1000": 4,
    "server_cpu_s_per_1000": 4,
    "peak_memory_mib": 0,
}
_PROBLEMS: Final = 10


def print_warnings(console: Console, machine: Machine) -> None:
    """Say loudly what makes the figures worthless."""
    if machine.not_durable:
        console.print(
            Text(
                f"WARNING: {' and '.join(machine.not_durable)} off on this server: it may lose what it has committed, "
                "and these figures say nothing of a server that must not",
                "bold red",
            )
        )


def print_report(console: Console, results: Results, machine: Machine, pace: Pace) -> None:
    """Print all there is to say of a run."""
    wide = console.width >= _WIDE
    with console.capture() as captured:
        for part in _parts(results, machine, pace, wide=wide):
            console.print(part)
    console.file.writelines(f"{line.rstrip()}\n" for line in captured.get().splitlines())
    print_warnings(console, machine)


def _parts(results: Results, machine: Machine, pace: Pace, *, wide: bool) -> Iterator[RenderableType]:
    yield _machine(machine)
    yield Text(
        f"Medians of {pace.rounds} interleaved rounds of {pace.seconds:g} s, after {pace.warm_up:g} s of warm-up; in "
        "brackets the least and the most. (A rebuild takes as long as it takes; those in logs of growing size are "
        "measured once.)",
        "dim",
    )
    if pace.quick:
        yield Text("A quick run: its logs are not as large as they are called, and its figures mean nothing.", "yellow")
    for group in Group:
        measured = [(each, samples) for each, samples in results.measured() if each.group is group]
        if measured:
            yield _figures(group, measured, wide=wide)
    if results.disk:
        yield _disk(results.disk)
    if ratios := results.ratios():
        yield _ratios(ratios, quick=pace.quick)
    if not pace.quick:
        yield from _verdict(results)
    yield from _disturbance(results)
    yield from _audits(results)


def _machine(machine: Machine) -> Text:
    settings = ", ".join(f"{name} {value}" for name, value in machine.settings.items())
    package = f", eventsourcing {machine.eventsourcing}" if machine.eventsourcing else ""
    return Text.assemble(
        (f"\nPostgres {machine.postgres}, Python {machine.python}, psycopg {machine.psycopg}{package}\n", "bold"),
        f"{machine.cores} cores, {machine.memory / 2**30:.0f} GiB, {machine.system}; load {machine.load:.1f} before\n",
        settings,
    )


def _table(title: str, *columns: str) -> Table:
    table = Table(title=f"\n{title}", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=number > 0)
    return table


def _figures(title: str, measured: Iterable[tuple[Contender, list[Sample]]], *, wide: bool) -> Table:
    rate = ("a second", "(least..most)") if wide else ("a second\n(least..most)",)
    cpu = ("client CPU\ns/1,000", "server CPU\ns/1,000")
    table = _table(title, "", *rate, "p50\nms", "p99\nms", *cpu, "client\nMiB")
    for contender, samples in measured:
        figures = {name: figure(samples, value) for name, value in FIGURES.items()}
        spread = _spread(figures["rate"])
        table.add_row(
            contender.title,
            *(spread if wide else ["\n".join(spread)]),
            *(_number(figures[name], digits) for name, digits in _DIGITS.items()),
        )
    return table


def _spread(rate: Figure | None) -> tuple[str, str]:
    return (f"{rate.median:,.0f}", f"({rate.least:,.0f}..{rate.most:,.0f})") if rate else ("-", "-")


def _number(known: Figure | None, digits: int) -> str:
    return "-" if known is None else f"{known.median:,.{digits}f}"


def _disk(disk: Disk) -> Table:
    table = _table(f"On disk, after {disk.events:,} events", "", "bytes an event")
    for relation in disk.relations:
        kind = "index" if relation.is_index else "table"
        table.add_row(f"{kind} {relation.name}", f"{disk.per_event(relation):,.1f}")
    table.add_row("all", f"{disk.per_event():,.1f}", style="bold")
    return table


def _ratios(ratios: Iterable[Ratio], *, quick: bool) -> Table:
    table = _table("Ratios", "", "ratio", "(least..most)", "target", "")
    for ratio in ratios:
        spread = f"({ratio.least:.2f}..{ratio.most:.2f})"
        judged = Text("not judged", "yellow") if quick else _judged(ratio)
        table.add_row(ratio.target.name, f"{ratio.value:.2f}", spread, f"{ratio.target.least:g}", judged)
    return table


def _judged(ratio: Ratio) -> Text:
    if not ratio.complete:
        return Text(f"{ratio.contender} over {ratio.over}: others were left out", "yellow")
    return Text("met", "green") if ratio.met else Text("MISSED", "bold red")


def _verdict(results: Results) -> Iterator[Text]:
    ratios = [ratio for ratio in results.ratios() if ratio.complete]
    missed = [ratio.target.name for ratio in ratios if not ratio.met]
    known = {ratio.target for ratio in ratios}
    unknown = [target.name for target in TARGETS if target not in known]
    yield Text(f"{len(ratios) - len(missed)} of {len(TARGETS)} targets met")
    if missed:
        yield Text(f"Missed: {'; '.join(missed)}", "red")
    if unknown:
        yield Text(f"Not measured, or not against all: {'; '.join(unknown)}", "yellow")


def _disturbance(results: Results) -> Iterator[Text]:
    if shares := results.disturbance:
        yield Text(f"Others took {shares.median:.0%} of all CPU meanwhile (at most {shares.most:.0%})")
    if results.disturbed:
        many = sum(share > TOO_MUCH for share in results.others)
        yield Text(
            f"WARNING: in {many} of {len(results.others)} measurements others took over {TOO_MUCH:.0%} of all CPU: "
            "these figures and ratios are not to be trusted; run it again on a quiet machine",
            "bold red",
        )


def _audits(results: Results) -> Iterator[Text]:
    if results.audits and results.intact:
        events = sum(audit.events for audit in results.audits)
        databases = "1 database" if len(results.audits) == 1 else f"{len(results.audits)} databases"
        yield Text(f"Verified: {events:,} events in {databases} that the registry wrote")
    appended = [each for each, _ in results.measured() if each.appends]
    if not_verified := [each.title for each in appended if not each.audited]:
        yield Text(f"Not verified, for their length: {'; '.join(not_verified)}")
    for audit in results.audits:
        for problem in audit.problems[:_PROBLEMS]:
            yield Text(f"CORRUPT after {audit.contender}: {problem}", "bold red")
