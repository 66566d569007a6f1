"""What is printed: tables and panels on a terminal, plain aligned lines elsewhere, JSON when asked for."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime

import typer
from pydantic import BaseModel
from pydantic_core import to_json
from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderableType
from rich.panel import Panel
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from registry.cli.visible import visible, visible_json
from registry.models import instant_text

__all__ = ["facts", "instant", "print_json", "progress", "say", "stderr", "stdout", "table", "waiting"]

Cell = str | Text

_UNBROKEN = 1_000_000  # columns: a line that goes to a file or a program is never broken


def stdout() -> Console:
    """Give the console for results."""
    return _console(is_terminal=sys.stdout.isatty(), to_stderr=False)


def stderr() -> Console:
    """Give the console for what is not a result: progress, notes, errors."""
    return _console(is_terminal=sys.stderr.isatty(), to_stderr=True)


class _Console(Console):
    """A console on which no text acts, wherever it comes from: only rich itself sends commands to the terminal."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render, with escapes for what would act."""
        for segment in super().render(renderable, options):
            text = segment.text if segment.control else visible(segment.text)
            yield segment if text is segment.text else Segment(text, segment.style)


def _console(*, is_terminal: bool, to_stderr: bool) -> Console:
    width = None if is_terminal else _UNBROKEN
    return _Console(stderr=to_stderr, width=width, highlight=False, emoji=False, markup=False)


def print_json(value: BaseModel | Mapping[str, object] | Sequence[object]) -> None:
    """Print a value as JSON, in UTF-8: indented on a terminal, on one line elsewhere."""
    typer.echo(visible_json(to_json(value, indent=2 if sys.stdout.isatty() else None)))


def say(*parts: Cell | tuple[str, str]) -> None:
    """Print a line; a part may be (text, style)."""
    stdout().print(Text.assemble(*parts), soft_wrap=True)


def instant(value: datetime | None) -> str:
    """Write an instant as RFC 3339 in UTC; a dash when there is none."""
    return "-" if value is None else instant_text(value)


def facts(title: str, rows: Sequence[tuple[str, Cell]]) -> None:
    """Print names and values: in a panel on a terminal, else one a line."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows:
        grid.add_row(name, _cell(value))
    console = stdout()
    if console.is_terminal:
        console.print(Panel(grid, title=Text(title), title_align="left", expand=False))
    else:
        _print_stripped(console, grid)


def _cell(value: Cell) -> Cell:
    """Make a cell as wide as what is shown of it."""
    text = value if isinstance(value, str) else value.plain
    shown = visible(text)
    return value if shown == text else shown


def table(columns: Sequence[str], rows: Sequence[Sequence[Cell]], *, unbroken: int = 1) -> None:
    """Print a table; the first `unbroken` columns are never broken, the others fold on a narrow terminal."""
    console = stdout()
    grid = Table(box=SIMPLE_HEAD if console.is_terminal else None, pad_edge=False, padding=(0, 1, 0, 0))
    for index, name in enumerate(columns):
        grid.add_column(name, no_wrap=index < unbroken, overflow="fold")
    for row in rows:
        grid.add_row(*map(_cell, row))
    if console.is_terminal:
        console.print(grid)
    else:
        _print_stripped(console, grid)


def _print_stripped(console: Console, grid: Table) -> None:
    with console.capture() as captured:
        console.print(grid)
    typer.echo("\n".join(line.rstrip() for line in captured.get().removesuffix("\n").split("\n")))


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Tell somebody at a terminal what is being waited for."""
    console = stderr()
    if not console.is_terminal:
        yield
        return
    with console.status(Text(f"{what} ...")):
        yield


@contextmanager
def progress(what: str, count: Callable[[], int], *, quiet: bool) -> Iterator[Callable[[int], None]]:
    """Show a bar on stderr, and give the function that moves it on; `count` tells how much there is.

    Without a terminal, or when `quiet`, nothing is shown, and nothing counted.
    """
    console = stderr()
    if quiet or not console.is_terminal:
        yield lambda _: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=count())
        yield lambda done: bar.advance(task, done)
