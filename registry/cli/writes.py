"""The commands that write: a remote command's life, one event each."""

from typing import Annotated

import typer

from registry.cli.commands import WRITE, command
from registry.cli.opening import opened
from registry.cli.options import (
    Actor,
    CommandId,
    CompletedAt,
    Deadline,
    Debug,
    Deployments,
    DeploymentsKind,
    DispatchedAt,
    Dsn,
    ErrorValue,
    InitialState,
    Json,
    Now,
    Pooler,
    RequestId,
    RequestSize,
    ResponseSize,
    Result,
    State,
    Traceparent,
    context,
    deployment_directory,
    now,
)
from registry.cli.output import facts, instant, print_json, say
from registry.lifecycle import CommandState
from registry.postgres import PostgresCommandRegistry
from registry.protocol import DEFAULT_EXPIRE_LIMIT

__all__ = ["complete", "create", "dispatch", "expire", "increment", "update"]


@command(
    WRITE,
    "command-registry create dep_eu1 sync-data",
    "command-registry create dep_eu1 postgres/health --deadline 30m --json",
    "id=$(command-registry create dep_eu1 sync-data --quiet)",
)
def create(
    deployment: Annotated[str, typer.Argument(metavar="DEPLOYMENT", help="The id of the deployment it is for.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to run there, such as sync-data.")],
    state: InitialState = CommandState.PENDING,
    deadline: Deadline = None,
    request_size_bytes: RequestSize = None,
    target: Annotated[
        str | None,
        typer.Option("--target", metavar="ID", help="The deployment's target it is for. Default: the only one."),
    ] = None,
    idempotency_key: Annotated[
        str | None,
        typer.Option(
            "--idempotency-key", metavar="KEY", help="A repeated call with the same key answers with the first command."
        ),
    ] = None,
    deployments: Deployments = DeploymentsKind.ANY,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the new command's id, and nothing else.")] = False,
    actor: Actor = None,
    request_id: RequestId = None,
    traceparent: Traceparent = None,
    as_json: Json = False,
    dsn: Dsn = None,
    pooler: Pooler = None,
    _debug: Debug = False,
) -> None:
    """Create a command of a deployment, and print its id."""
    with opened(dsn, pooler, deployment_directory(deployments)) as registry:
        created = registry.create_command(
            deployment,
            name,
            state,
            deadline,
            request_size_bytes,
            idempotency_key=idempotency_key,
            target=target,
            context=context(actor, request_id, traceparent),
        )
    if as_json:
        print_json(created)
    elif quiet:
        typer.echo(created.command_id)
    else:
        target_text = (
            "-" if created.target is None else f"{created.target.resource_id} ({created.target.resource_type})"
        )
        facts(
            "created",
            [
                ("command id", created.command_id),
                ("command", name),
                ("deployment", f"{deployment} ({created.deployment_model})"),
                ("project", created.project_id),
                ("target", target_text),
                ("delivery", str(created.delivery_mode)),
                ("deadline", instant(deadline)),
            ],
        )


@command(
    WRITE,
    "command-registry dispatch cmd_...",
    "command-registry dispatch cmd_... --dispatched-at 2026-11-24T10:00:00Z",
)
def dispatch(
    command_id: CommandId,
    dispatched_at: DispatchedAt = None,
    actor: Actor = None,
    request_id: RequestId = None,
    traceparent: Traceparent = None,
    as_json: Json = False,
    dsn: Dsn = None,
    pooler: Pooler = None,
    _debug: Debug = False,
) -> None:
    """Note that a command went to its deployment.

    It is DISPATCHED then, as of now or of --dispatched-at, whatever it was before. A command that is final already
    stays as it is: then it says so, with exit status 0 and "applied": false.
    """
    with opened(dsn, pooler) as registry:
        applied = registry.mark_dispatched_if_not_terminal(
            command_id, dispatched_at or now(), context=context(actor, request_id, traceparent)
        )
        _answer(registry, command_id, CommandState.DISPATCHED, applied=applied, as_json=as_json)


@command(
    WRITE,
    "command-registry update cmd_... PENDING",
    'command-registry update cmd_... FAILED --error \'{"code":"LEASE_LOST"}\'',
)
def update(
    command_id: CommandId,
    state: State,
    dispatched_at: DispatchedAt = None,
    completed_at: CompletedAt = None,
    response_size_bytes: ResponseSize = None,
    error: ErrorValue = None,
    actor: Actor = None,
    request_id: RequestId = None,
    traceparent: Traceparent = None,
    as_json: Json = False,
    dsn: Dsn = None,
    pooler: Pooler = None,
    _debug: Debug = False,
) -> None:
    """Move a command to a state that may follow its own.

    What is not given keeps its value. PENDING_UPLOAD goes to PENDING; PENDING to DISPATCHED; DISPATCHED back to
    PENDING (its lease was released) or to SUCCEEDED; and each of the three to FAILED or EXPIRED. A command that is
    final already stays as it is: then it says so, with exit status 0 and "applied": false.
    """
    with opened(dsn, pooler) as registry:
        applied = registry.update_command_state(
            command_id,
            state,
            dispatched_at,
            completed_at,
            response_size_bytes,
            error,
            context=context(actor, request_id, traceparent),
        )
        _answer(registry, command_id, state, applied=applied, as_json=as_json)


@command(
    WRITE,
    "command-registry complete cmd_... SUCCEEDED --response-size-bytes 512",
    'command-registry complete cmd_... FAILED --error \'{"code":"TIMEOUT"}\'',
)
def complete(
    command_id: CommandId,
    state: Result,
    completed_at: CompletedAt = None,
    response_size_bytes: ResponseSize = None,
    error: ErrorValue = None,
    actor: Actor = None,
    request_id: RequestId = None,
    traceparent: Traceparent = None,
    as_json: Json = False,
    dsn: Dsn = None,
    pooler: Pooler = None,
    _debug: Debug = False,
) -> None:
    """Give a command its result: SUCCEEDED, FAILED or EXPIRED.

    From any state that is not final, as of now or of --completed-at. Of any number of racing calls exactly one is
    applied; the others say that it is final already, with exit status 0 and "applied": false.
    """
    with opened(dsn, pooler) as registry:
        applied = registry.complete_command(
            command_id,
            state,
            completed_at or now(),
            response_size_bytes,
            error,
            context=context(actor, request_id, traceparent),
        )
        _answer(registry, command_id, state, applied=applied, as_json=as_json)


@command(WRITE, "command-registry increment cmd_...")
def increment(
    command_id: CommandId,
    actor: Actor = None,
    request_id: RequestId = None,
    traceparent: Traceparent = None,
    as_json: Json = False,
    dsn: Dsn = None,
    pooler: Pooler = None,
    _debug: Debug = False,
) -> None:
    """Count one more attempt of a command, and print its number.

    On a final command the number stays as it is.
    """
    with opened(dsn, pooler) as registry:
        attempt = registry.increment_attempt(command_id, context=context(actor, request_id, traceparent))
    if as_json:
        print_json({"attempt": attempt})
    else:
        say(command_id, f" is at attempt {attempt}")


@command(
    WRITE,
    "command-registry expire",
    "command-registry expire --limit 100 --now 2026-11-24T10:00:00Z",
)
def expire(
    limit: Annotated[
        int, typer.Option("--limit", min=1, max=100_000, help="How many at most, the most overdue first.")
    ] = DEFAULT_EXPIRE_LIMIT,
    at: Now = None,
    actor: Actor = None,
    request_id: RequestId = None,
    traceparent: Traceparent = None,
    as_json: Json = False,
    dsn: Dsn = None,
    pooler: Pooler = None,
    _debug: Debug = False,
) -> None:
    """Let commands expire whose deadline has passed, and print their ids.

    Any number of processes may do so at once: each command expires once.
    """
    with opened(dsn, pooler) as registry:
        expired = registry.expire_overdue(at, limit, context=context(actor, request_id, traceparent))
    if as_json:
        print_json({"expired": expired})
        return
    for command_id in expired:
        typer.echo(command_id)
    say(f"{len(expired)} expired", "; there may be more: run it again" if len(expired) == limit else "")


def _answer(
    registry: PostgresCommandRegistry, command_id: str, state: CommandState, *, applied: bool, as_json: bool
) -> None:
    """Tell whether a command is in a state now, or was final before."""
    if as_json:
        print_json({"applied": applied})
    elif applied:
        say(command_id, " is ", (state, "bold"))
    else:
        status = registry.get_command_status(command_id)
        found = "final" if status is None else status.state
        say("not applied: ", command_id, " is ", (found, "bold"), " already, and stays so")
