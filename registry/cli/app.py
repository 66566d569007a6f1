"""The application: `command-registry` and its commands, in the order in which its help shows them."""

import importlib.metadata
from typing import Annotated

import typer

from registry.cli import admin, audit, projections, reads, serving, tail, writes
from registry.cli.commands import add_all
from registry.cli.invocation import CommandLine, Invocation
from registry.cli.options import RootDebug, RootDsn, RootPooler

__all__ = ["app"]

_HELP = """What became of each remote command: an append-only log of events in Postgres, and its audit trail.

Try it at once: [bold]command-registry demo[/]. Without --dsn (or COMMAND_REGISTRY_DSN) an embedded Postgres is used, \
which needs no set-up.

In a Postgres of your own, first: [bold]command-registry migrate --dsn postgresql://...[/] Then create a command, \
dispatch it, complete it; ask for its status and its history; verify that nobody changed the record.

Exit status: 0 done (also when a final command stayed as it was), 1 failed, 2 wrong usage, 130 interrupted. \
Errors are one line on stderr.
"""

app = typer.Typer(
    cls=CommandLine,
    help=_HELP,
    rich_markup_mode="rich",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"command-registry {importlib.metadata.version('command-registry')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    ctx: typer.Context,
    _dsn: RootDsn = None,
    _pooler: RootPooler = None,
    _debug: RootDebug = False,
    _show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Note what was said before the command; without one, show the help."""
    invocation: Invocation = ctx.obj
    invocation.command = ctx.invoked_subcommand or ""
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


add_all(app, serving, admin, writes, reads, tail, audit, projections)
