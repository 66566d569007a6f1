"""One run of the command line: what was said before the command, and what becomes of errors."""

import io
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, cast

import typer
from rich.text import Text
from typer.core import TyperGroup

from eventstore.database import Pooler
from registry.cli.errors import describe, one_line, without_secrets
from registry.cli.output import stderr
from registry.cli.visible import visible

__all__ = ["CommandLine", "Invocation", "Stop"]

EXIT_FAILURE: Final = 1
EXIT_USAGE: Final = 2
EXIT_INTERRUPTED: Final = 130

_SIZES: Final = ("COLUMNS", "LINES", "TERMINAL_WIDTH")
_SIZE: Final = re.compile(r"[1-9]\d{0,3}", re.ASCII)

# Typer brings click along under a private name; this is its click's UsageError.
_UsageError: Final = cast("type[Exception]", typer.BadParameter.__base__)


class Stop(Exception):
    """Something that a command cannot do; the message says what, and how to mend it."""


@dataclass(slots=True)
class Invocation:
    """What holds for a whole run.

    `dsn` and `pooler` are those in force, once they are known; `dsn_given` and `pooler_given`, that they were given in
    the call itself.
    """

    debug: bool = False
    dsn: str | None = None
    dsn_given: bool = False
    pooler: Pooler | None = None
    pooler_given: bool = False
    command: str = ""


class CommandLine(TyperGroup):
    """The commands, with every error told in one line on stderr: exit 1, or 2 when the call itself was wrong."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,  # noqa: ANN401 - as typer has it
    ) -> object:
        """Run, and exit with the status."""
        invocation = Invocation()

        def run() -> object:
            return super(CommandLine, self).main(
                args, prog_name, complete_var, False, windows_expand_args, obj=invocation, **extra
            )

        if not standalone_mode:
            return run()
        _prepare()
        sys.exit(_guarded(run, invocation))


def _prepare() -> None:
    """Let neither a terminal's odd size nor an encoding that lacks characters keep anything from being told."""
    for name in _SIZES:
        if not _SIZE.fullmatch(os.environ.get(name, "1")):
            del os.environ[name]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _guarded(run: Callable[[], object], invocation: Invocation) -> int:
    try:
        status = run()
    except _UsageError as error:
        return _wrong_call(error)
    except (KeyboardInterrupt, typer.Abort):
        return EXIT_INTERRUPTED
    except Exception as error:
        return _failure(error, invocation)
    return status if isinstance(status, int) else 0


def _wrong_call(error: Exception) -> int:
    context = getattr(error, "ctx", None)
    help_at = f" (see: {context.command_path} --help)" if context is not None else ""
    message: str = error.format_message()  # type: ignore[attr-defined]
    _tell(one_line(message) + help_at)
    return EXIT_USAGE


def _failure(error: Exception, invocation: Invocation) -> int:
    secret = invocation.dsn
    if invocation.debug:
        sys.stderr.write(visible(without_secrets("".join(traceback.format_exception(error)), secret)))
    message = str(error) if isinstance(error, Stop) else describe(error, invocation.command, secret)
    _tell(without_secrets(one_line(message), secret))
    if isinstance(error, OSError):
        with suppress(OSError):
            sys.stdout.flush()
            return EXIT_FAILURE
        _abandon_stdout()
    return EXIT_FAILURE


def _tell(message: str) -> None:
    with suppress(OSError):
        stderr().print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)


def _abandon_stdout() -> None:
    """Let what cannot be written go nowhere, so that the interpreter does not complain of it at its exit."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
