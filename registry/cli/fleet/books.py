"""What the fleet notes down of the day, from the registry's answers; and whether the registry agrees in the end."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field

from registry.lifecycle import CommandState, is_terminal
from registry.models import CommandStatus

__all__ = ["Books", "Tally"]


@dataclass(slots=True)
class Tally:
    """How often the registry gave which answer."""

    calls: int = 0
    creations_repeated: int = 0
    creations_refused: int = 0
    uploads: int = 0
    dispatches: int = 0
    dispatches_refused: int = 0
    releases: int = 0
    leases_expired: int = 0
    responses_accepted: int = 0
    responses_refused: int = 0
    expired: int = 0
    expired_for_others: int = 0

    def answers(self) -> dict[str, int]:
        """Count the answers of each sort, without the calls altogether."""
        return {name: count for name, count in asdict(self).items() if name != "calls"}


@dataclass(slots=True)
class Books:
    """The server's own record: the commands made (by the index of their fate), and who was told that he ended one."""

    tally: Tally = field(default_factory=Tally)
    commands: dict[int, str] = field(default_factory=dict)
    endings: dict[str, list[CommandState]] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)

    def created(self, index: int, command_ids: list[str]) -> None:
        """Note a command, and what each of the calls that asked for it was told."""
        first, *others = command_ids
        self.commands[index] = first
        self.endings[first] = []
        self.tally.creations_repeated += len(others)
        self.complaints += [f"{first}: a repeated creation made {other}" for other in others if other != first]

    def finished(self) -> int:
        """Count the commands that ended."""
        return sum(bool(endings) for endings in self.endings.values())

    def contradictions(self, statuses: Iterable[CommandStatus]) -> list[str]:
        """Say in what the registry's statuses do not agree with the answers that it gave."""
        return self.complaints + [said for status in statuses for said in self._contradicted(status)]

    def _contradicted(self, status: CommandStatus) -> Iterator[str]:
        endings = self.endings[status.command_id]
        if len(endings) > 1:
            yield f"{status.command_id}: {len(endings)} callers were told that they ended it: {', '.join(endings)}"
        elif endings and endings != [status.state]:
            yield f"{status.command_id}: was ended as {endings[0]}, and is {status.state}"
        elif not endings and is_terminal(status.state) and status.state is not CommandState.EXPIRED:
            # (Somebody else's sweeper may let a command expire.)
            yield f"{status.command_id}: is {status.state}, and nobody was told that he ended it"
