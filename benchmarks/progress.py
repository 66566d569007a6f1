"""How far the run has come, on stderr: a bar on a terminal, elsewhere a line for each phase."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

__all__ = ["Progress"]

_BELIEVED: Final = 10.0  # seconds of work, from which on the guesses are corrected by what it took


class Progress:
    """A run of so many guessed seconds."""

    def __init__(self, console: Console, seconds: float) -> None:
        self._console, self._total = console, seconds
        self._began, self._done, self._phase = time.monotonic(), 0.0, ""
        columns = (
            TextColumn("{task.fields[phase]}"),
            BarColumn(30),
            TextColumn("{task.fields[left]} {task.description}"),
        )
        # It is drawn anew at each step, and not several times a second: that would take CPU from what is measured.
        shown = console.is_terminal
        self._bar = Bar(*columns, console=console, transient=True, disable=not shown, auto_refresh=False)
        self._task = self._bar.add_task("", total=seconds, phase="", left="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.stop()

    @contextmanager
    def step(self, phase: str, what: str, seconds: float) -> Iterator[Callable[[float], None]]:
        """Show a step that should take so many seconds; the function moves it on, from 0 to 1."""
        before = self._done
        self._show(phase, what)

        def advance(part: float) -> None:
            self._done = before + seconds * part
            self._show(phase, what)

        yield advance
        self._done = before + seconds

    def _show(self, phase: str, what: str) -> None:
        left = self._left()
        if not self._console.is_terminal and phase != self._phase:
            self._console.print(f"{phase} (about {left} left)")
        self._phase = phase
        self._bar.update(self._task, completed=self._done, description=what, phase=phase, left=f"{left} left:")
        self._bar.refresh()

    def _left(self) -> str:
        elapsed = time.monotonic() - self._began
        pace = elapsed / self._done if elapsed > _BELIEVED and self._done > 0 else 1.0
        seconds = round(max(0.0, self._total - self._done) * pace)
        return f"{seconds // 60}:{seconds % 60:02d}"
