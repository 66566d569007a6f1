"""Declaring commands: a function, the panel of the help it stands in, and examples that its help ends with."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Final, TypeVar

import typer
from rich.markup import escape

__all__ = ["AUDIT", "PROJECTIONS", "READ", "SERVE", "START", "WRITE", "add_all", "command"]

START: Final = "Start here"
WRITE: Final = "A command's life"
READ: Final = "What became of it"
AUDIT: Final = "Proof"
SERVE: Final = "For other programs"
_PANELS: Final = (START, WRITE, READ, AUDIT, SERVE)

PROJECTIONS: Final = "projections"
_GROUPS: Final = {PROJECTIONS: (AUDIT, "Read models: rebuild them, follow the log for them, see how far they are.")}

F = TypeVar("F", bound=Callable[..., None])


@dataclass(frozen=True, slots=True)
class _Declared:
    panel: str
    name: str
    help: str
    function: Callable[..., None]


_declared: Final[list[_Declared]] = []


def command(panel: str, *examples: str, name: str | None = None) -> Callable[[F], F]:
    """Declare a function as the command of its name, or of `name`; its docstring and the examples are its help.

    `panel`: of the help, or the name of a group of commands.
    """

    def declare(function: F) -> F:
        paragraphs = [
            paragraph.replace("\n", " ") for paragraph in inspect.cleandoc(function.__doc__ or "").split("\n\n")
        ]
        shown = "\n".join(f"$ {example}" for example in examples)
        title = "Example:" if len(examples) == 1 else "Examples:"
        text = "\n\n".join([*map(escape, paragraphs), f"{title}\n{escape(shown)}"])
        _declared.append(_Declared(panel, name or function.__name__, text, function))
        return function

    return declare


def add_all(app: typer.Typer, *modules: ModuleType) -> None:
    """Add every command that the modules declare, panel by panel, and the groups."""
    for panel in _PANELS:
        _add(app, panel, modules, rich_help_panel=panel)
        for group, (stands_in, text) in _GROUPS.items():
            if stands_in == panel:
                commands = typer.Typer(help=text, no_args_is_help=True, context_settings=app.info.context_settings)
                _add(commands, group, modules)
                app.add_typer(commands, name=group, rich_help_panel=panel)


def _add(app: typer.Typer, panel: str, modules: tuple[ModuleType, ...], rich_help_panel: str | None = None) -> None:
    for module in modules:
        for declared in _declared:
            if declared.panel == panel and declared.function.__module__ == module.__name__:
                add = app.command(declared.name, help=declared.help, rich_help_panel=rich_help_panel)
                add(declared.function)
