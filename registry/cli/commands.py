"""Declaring commands: a function, the panel of the help it stands in, and examples that its help ends with."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Final, TypeVar

import typer
from rich.markup import escape

__all__ = ["AUDIT", "READ", "SERVE", "START", "WRITE", "add_all", "command"]

START: Final = "Start here"
WRITE: Final = "A command's life"
READ: Final = "What became of it"
AUDIT: Final = "Proof"
SERVE: Final = "For other programs"
_PANELS: Final = (START, WRITE, READ, AUDIT, SERVE)

F = TypeVar("F", bound=Callable[..., None])


@dataclass(frozen=True, slots=True)
class _Declared:
    panel: str
    help: str
    function: Callable[..., None]


_declared: Final[dict[str, _Declared]] = {}


def command(panel: str, *examples: str, name: str | None = None) -> Callable[[F], F]:
    """Declare a function as the command of its name, or of `name`; its docstring and the examples are its help."""

    def declare(function: F) -> F:
        paragraphs = [
            paragraph.replace("\n", " ") for paragraph in inspect.cleandoc(function.__doc__ or "").split("\n\n")
        ]
        shown = "\n".join(f"$ {example}" for example in examples)
        title = "Example:" if len(examples) == 1 else "Examples:"
        text = "\n\n".join([*map(escape, paragraphs), f"{title}\n{escape(shown)}"])
        _declared[name or function.__name__] = _Declared(panel, text, function)
        return function

    return declare


def add_all(app: typer.Typer, *modules: ModuleType) -> None:
    """Add every command that the modules declare, panel by panel."""
    for panel in _PANELS:
        for module in modules:
            for name, declared in _declared.items():
                if declared.panel == panel and declared.function.__module__ == module.__name__:
                    app.command(name, help=declared.help, rich_help_panel=panel)(declared.function)
