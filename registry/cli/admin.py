"""The commands that set up and look after a database."""

from typing import Annotated

import typer
from rich.text import Text

from registry import doctor, plans
from registry.cli.commands import START, command
from registry.cli.opening import connected
from registry.cli.options import Debug, Dsn, Json, Pooler
from registry.cli.output import facts, print_json, progress, say, stderr
from registry.doctor import Check, Installed

__all__ = ["examine", "migrate"]


@command(
    START,
    "command-registry migrate --dsn postgresql://admin@db.example.com/control",
    "command-registry migrate --json",
)
def migrate(as_json: Json = False, dsn: Dsn = None, pooler: Pooler = None, _debug: Debug = False) -> None:
    """Create what is missing in a database; this comes first.

    The schema, its guards and roles, and the read model. What is there stays as it is, so it may be run at any time,
    and by several at once; it stops no writers. A read model that is missing is built from the log.
    """
    folded = 0
    with connected(dsn, pooler) as session:
        before = session.run(doctor.installed())
        count = lambda: session.run(doctor.count_events())  # noqa: E731 - for the bar alone
        with progress("building the read model", count, quiet=as_json or before.read_model) as advance:

            def note(events: int) -> None:
                nonlocal folded
                folded += events
                advance(events)

            session.run(plans.migrate(note))
        after = session.run(doctor.installed())
        notices = session.notices
    if as_json:
        print_json(
            {
                "schema_version": after.schema_version,
                "schema_version_before": before.schema_version,
                "read_model": doctor.READ_MODEL,
                "read_model_created": not before.read_model,
                "events_folded": folded,
                "notices": notices,
            }
        )
        return
    for notice in notices:
        stderr().print(Text.assemble(("warning: ", "yellow"), notice), soft_wrap=True)
    facts("migrate", _done(before, after, folded))


def _done(before: Installed, after: Installed, folded: int) -> list[tuple[str, str]]:
    version = f"version {after.schema_version}"
    there = "was there already; what was missing of it is there now"
    schema = f"{version} {there}" if before.schema_version == after.schema_version else f"{version} installed"
    model = "was there already" if before.read_model else f"created, and built from {folded} events"
    return [("schema", schema), ("read model", f"{doctor.READ_MODEL} {model}")]


@command(
    START,
    "command-registry doctor",
    "command-registry doctor --quick --json",
    name="doctor",
)
def examine(
    quick: Annotated[
        bool, typer.Option("--quick", help="Leave out the verification, which reads the whole log.")
    ] = False,
    as_json: Json = False,
    dsn: Dsn = None,
    pooler: Pooler = None,
    _debug: Debug = False,
) -> None:
    """Look for what is wrong with a database, and say how to mend it.

    It changes nothing. Server, schema, guards, keys, grants, the read model, and whether anything holds readers of
    the log back. Exit status 1 when a check failed; warnings are told, and do not count.
    """
    with connected(dsn, pooler) as session:
        count = lambda: session.run(doctor.count_events())  # noqa: E731 - for the bar alone
        with progress("verifying", count, quiet=as_json or quick) as advance:
            checks = session.run(doctor.examine(quick=quick, progress=advance))
    if as_json:
        print_json({"ok": not _failed(checks), "checks": checks})
    else:
        _show(checks)
    if _failed(checks):
        raise typer.Exit(1)


def _failed(checks: list[Check]) -> int:
    return sum(check.status == "failed" for check in checks)


_STYLES = {"ok": "green", "warning": "yellow", "failed": "bold red"}


def _show(checks: list[Check]) -> None:
    for check in checks:
        say((f"{check.status:<8}", _STYLES[check.status]), f"{check.name}: {check.found}")
        if check.mend is not None:
            say("        ", ("to mend: ", "bold"), check.mend)
    warnings = sum(check.status == "warning" for check in checks)
    say(f"{len(checks)} checks, {_failed(checks)} failed, {warnings} warnings")
