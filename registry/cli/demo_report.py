"""The story of a demo's day, as it is printed: wide where there is room, and readable on 40 columns or in a pipe."""

from collections.abc import Iterable
from datetime import datetime
from typing import Final

from rich import box
from rich.console import Console, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from registry.cli.fleet.story import Story, Trail, Verification
from registry.events import AttemptIncremented, CommandCreated, CommandTransitioned
from registry.history import HistoryEntry
from registry.lifecycle import CommandState
from registry.models import CommandStatus

__all__ = ["print_story"]

WIDE: Final = 104
"""From so many columns on, everything has a column of its own."""

MEDIUM: Final = 64
"""Below so many columns, tables are cut down to what matters."""

BAR: Final = 24
PROBLEMS: Final = 10

STYLES: Final = {
    CommandState.PENDING_UPLOAD: "magenta",
    CommandState.PENDING: "cyan",
    CommandState.DISPATCHED: "blue",
    CommandState.SUCCEEDED: "green",
    CommandState.FAILED: "red",
    CommandState.EXPIRED: "yellow",
}

ANSWERS: Final = {
    "creations_repeated": "creations repeated, and answered with the first command",
    "creations_refused": "creations refused, since no target was named",
    "uploads": "uploads finished",
    "dispatches": "dispatches (leases taken, commands pushed)",
    "dispatches_refused": "dispatches refused: the command had ended",
    "releases": "leases released, and delivered again",
    "leases_expired": "leases expired, and delivered again",
    "responses_accepted": "responses accepted",
    "responses_refused": "late and duplicate responses refused",
    "expired": "commands expired at their deadline",
    "expired_for_others": "commands expired that are not of this run",
}


def print_story(story: Story, console: Console) -> None:
    """Print a story: the counts, the trail of one command, its status then and now, and the verification."""
    for part in _parts(story, console.width):
        console.print(part)


def _parts(story: Story, width: int) -> Iterable[RenderableType]:
    yield _title(story)
    yield _deployments(story, width)
    yield _states(story, width)
    yield _attempts(story)
    yield _answers(story)
    yield _rate(story)
    yield _trail(story.trail, width)
    yield _then_and_now(story.trail, width)
    yield _verification(story.verification)
    yield _contradictions(story.contradictions)
    yield Text.assemble("\nLook closer: ", (f"command-registry history {story.trail.command_id}", "bold"))


def _title(story: Story) -> Text:
    return Text.assemble(
        ("\nA fleet's day: ", "bold"),
        (f"{story.commands} commands, seed {story.seed}\n", "bold"),
        f"{story.day_from:%Y-%m-%d %H:%M} to {story.day_to:%Y-%m-%d %H:%M} UTC, simulated; on a real Postgres\n",
        ("The same seed deals the same fates; who wins a race, the database decides.\n", "dim"),
    )


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)


def _deployments(story: Story, width: int) -> Table:
    table = _table("The fleet")
    table.add_column("Deployment", overflow="fold")
    table.add_column("Delivery")
    table.add_column("Commands", justify="right")
    if width >= MEDIUM:
        table.add_column("Targets", overflow="fold")
    for deployment in story.deployments:
        name = Text.assemble(deployment.name, "\n", (deployment.id, "dim"))
        cells = (name, deployment.deployment_model, str(deployment.commands), ", ".join(deployment.targets) or "itself")
        table.add_row(*cells[: len(table.columns)])
    return table


def _states(story: Story, width: int) -> Table:
    table = _table("How the commands ended" if not story.in_flight else f"States ({story.in_flight} in flight)")
    table.add_column("State")
    table.add_column("Commands", justify="right")
    if width >= MEDIUM:
        table.add_column("", width=BAR)
    for state, count in story.states.items():
        bar = ProgressBar(total=story.commands, completed=count, width=BAR, complete_style=STYLES[state])
        cells = (_state(state), str(count), bar if count else "")
        table.add_row(*cells[: len(table.columns)], style="" if count else "dim")
    return table


def _attempts(story: Story) -> Table:
    table = _table("Attempts they took")
    table.add_column("Attempts", justify="right")
    table.add_column("Commands", justify="right")
    for attempts, count in story.attempts.items():
        table.add_row(str(attempts), str(count))
    return table


def _answers(story: Story) -> Table:
    table = _table("What the registry answered on the way")
    table.add_column("Times", justify="right")
    table.add_column("Answer", overflow="fold")
    for name, meaning in ANSWERS.items():
        if count := story.answers[name]:
            table.add_row(str(count), meaning)
    return table


def _rate(story: Story) -> Text:
    return Text.assemble(
        (f"{story.redelivered} of {story.commands} commands", "bold"),
        " were delivered more than once.\n",
        (f"{story.calls} calls", "bold"),
        f" of the registry in {story.seconds:.1f} s: {story.calls_per_second:.0f} a second.\n",
    )


def _trail(trail: Trail, width: int) -> Table:
    table = _table(f"Audit trail of {trail.command_id}")
    table.add_column("#", justify="right")
    for column in _trail_columns(width):
        table.add_column(column, overflow="fold")
    for entry in trail.history:
        table.add_row(str(entry.version), *_trail_cells(entry, width))
    return table


def _trail_columns(width: int) -> tuple[str, ...]:
    if width >= WIDE:
        return ("Time", "Event", "Change", "Actor", "Request", "Hash")
    return ("Time", "Event", "By") if width >= MEDIUM else ("Event",)


def _trail_cells(entry: HistoryEntry, width: int) -> tuple[Text, ...]:
    facts = _facts(entry)
    if width >= WIDE:
        return facts
    if width >= MEDIUM:
        return (facts[0], _lines(facts[1:3]), _lines(facts[3:]))
    return (_lines(facts),)


def _facts(entry: HistoryEntry) -> tuple[Text, ...]:
    """Give what is worth showing of an event: time, type, what it changed, who caused it by which request, hash."""
    return (
        Text(f"{entry.occurred_at:%H:%M:%S}"),
        Text(entry.type),
        _change(entry),
        Text(entry.context.actor or ""),
        Text(entry.context.request_id or "", style="dim"),
        Text(entry.hash[:8], style="dim"),
    )


def _lines(facts: Iterable[Text]) -> Text:
    return Text("\n").join(facts)


def _change(entry: HistoryEntry) -> Text:
    match entry.event:
        case CommandCreated(state=state):
            return _state(state)
        case CommandTransitioned(from_state=before, to_state=after):
            return Text.assemble(_state(before), " -> ", _state(after))
        case AttemptIncremented(attempt=attempt):
            return Text(f"attempt {attempt}")


def _state(state: CommandState) -> Text:
    return Text(state, style=STYLES[state])


def _then_and_now(trail: Trail, width: int) -> Table:
    statuses = {
        f"at {trail.at:%H:%M:%S}": trail.then_by_time,
        f"at version {trail.version}": trail.then_by_version,
        "now": trail.now,
    }
    if width < MEDIUM:
        del statuses[f"at version {trail.version}"]
    table = _table("The same command, then and now")
    table.add_column("")
    for heading in statuses:
        table.add_column(heading, overflow="fold")
    columns = [_shown(status) for status in statuses.values()]
    for name in columns[-1]:
        table.add_row(name, *(column.get(name, Text("-")) for column in columns))
    return table


def _shown(status: CommandStatus | None) -> dict[str, Text]:
    if status is None:
        return {}
    return {
        "state": _state(status.state),
        "attempt": Text(str(status.attempt)),
        "created": _time(status.created_at),
        "dispatched": _time(status.dispatched_at),
        "completed": _time(status.completed_at),
        "deadline": _time(status.deadline),
        "response": Text("-" if status.response_size_bytes is None else f"{status.response_size_bytes} bytes"),
        "version": Text(str(status.version)),
    }


def _time(moment: datetime | None) -> Text:
    return Text("-" if moment is None else f"{moment:%H:%M:%S}")


def _verification(found: Verification) -> Text:
    figures = f"{found.events} events of {found.commands} commands, {found.rows} rows, in {found.seconds:.2f} s"
    if found.ok:
        return Text.assemble(
            ("The log holds. ", "bold green"), f"Verified the whole of it, hash by hash and row by row: {figures}."
        )
    problems = [f"\n  {problem}" for problem in found.problems[:PROBLEMS]]
    more = found.problem_count - len(problems)
    return Text.assemble(
        (f"The log does not hold: {found.problem_count} problems. ", "bold red"),
        f"Verified: {figures}",
        *problems,
        f"\n  and {more} more: command-registry verify" if more > 0 else "",
    )


def _contradictions(contradictions: list[str]) -> Text:
    if not contradictions:
        return Text("What the registry stores of each command is what it had answered to those who ended it.")
    said = "".join(f"\n  {contradiction}" for contradiction in contradictions[:PROBLEMS])
    return Text.assemble(
        (f"What the registry stores is not what it had answered, {len(contradictions)} times:", "bold red"), said
    )
