"""The commands that run something larger: the demonstration, and the server for other programs."""

from typing import Annotated

import typer

from registry.cli.commands import SERVE, START, command
from registry.cli.options import Debug, Deployments, DeploymentsKind, Dsn, Json, Pooler, given_connection
from registry.cli.output import stdout
from registry.models import DeploymentModel

__all__ = ["demo", "rpc"]


@command(
    START,
    "command-registry demo",
    "command-registry demo --commands 1000 --seed 7",
)
def demo(
    commands: Annotated[
        int, typer.Option("--commands", min=1, max=100_000, metavar="N", help="How many commands, up to 100000.")
    ] = 300,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, metavar="N", help="Repeat the day of a seed. Default: a new day.")
    ] = None,
    as_json: Json = False,
    dsn: Dsn = None,
    pooler: Pooler = None,
    _debug: Debug = False,
) -> None:
    """Play a fleet's day, and show what the registry knows of it.

    Three deployments and several concurrent workers: commands leased, released, delivered again; failures, deadlines,
    late responses. Then counts by state, one command's audit trail, its status at an earlier moment, and the
    verification. Exit status 0 only if that holds.
    """
    from registry.cli.demo import run_demo

    if not run_demo(dsn, pooler=pooler, commands=commands, seed=seed, as_json=as_json, console=stdout()):
        raise typer.Exit(1)


@command(
    SERVE,
    "command-registry rpc --memory",
    """request='{"jsonrpc":"2.0","id":1,"method":"history","params":["cmd_..."]}'""",
    'echo "$request" | command-registry rpc',
)
def rpc(
    ctx: typer.Context,
    memory: Annotated[
        bool, typer.Option("--memory", help="Keep everything in memory, and forget it at the end; no Postgres.")
    ] = False,
    deployment_model: Annotated[
        DeploymentModel,
        typer.Option("--deployment-model", help="How the deployments get their commands (with --deployments any)."),
    ] = DeploymentModel.PULL,
    deployments: Deployments = DeploymentsKind.ANY,
    dsn: Dsn = None,
    pooler: Pooler = None,
    _debug: Debug = False,
) -> None:
    """Serve the registry as JSON-RPC 2.0 on stdin and stdout.

    So a command server in any language embeds it as a child process: one message a line, until the input ends.
    Methods and parameters are those of the Python registry, results its models as JSON; errors carry a data.code such
    as COMMAND_NOT_FOUND. Requests run concurrently and are answered as they finish.
    """
    from registry.rpc import run_rpc

    table = deployments is DeploymentsKind.TABLE
    if memory and (table or given_connection(ctx)):
        raise typer.BadParameter("--memory has no --dsn, no --pooler and no --deployments table: leave them out")
    run_rpc(
        None if memory else dsn,
        memory=memory,
        deployment_model=deployment_model,
        deployments_table=table,
        pooler=None if memory else pooler,
    )
