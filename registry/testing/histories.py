"""Assert that a history of concurrent calls is linearizable; when it is not, say why, draw it, and keep it.

    recorder = Recorder()
    ...                                               # clients of `recorder` call the registry, all at once
    check_history(recorder.history(), exported(registry))

A history that was kept is checked and drawn again by `python -m registry.testing HISTORY.jsonl`.
"""

import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import orjson

from eventstore.event import RecordedEvent
from registry.history import HistoryEntry
from registry.testing.contradictions import Contradiction
from registry.testing.linearizability import Logged, check_against_log
from registry.testing.observing import told
from registry.testing.recording import Operation, save
from registry.testing.reducing import commands_of, reduced
from registry.testing.search import check_by_search
from registry.testing.timeline import as_svg, as_text

__all__ = [
    "HistoryError",
    "check_history",
    "concerning",
    "contradictions_of",
    "exported",
    "listed",
    "load_log",
    "log_of",
    "save_log",
]

_SHOWN: Final = 5


class HistoryError(AssertionError):
    """A history is not linearizable; the message says why, draws it, and tells where it was saved.

    `saved`: the directory with history.jsonl, timeline.svg and, if the log was given, log.jsonl; None if it could not
    be written.
    """

    def __init__(self, contradictions: Sequence[Contradiction], drawn: str, saved: Path | None, where: str) -> None:
        """Carry the contradictions, and where the history was saved."""
        self.contradictions, self.saved = tuple(contradictions), saved
        lines = ["the history is not linearizable:", *listed(contradictions), "", drawn, where]
        super().__init__("\n".join(lines))


def check_history(
    history: Sequence[Operation], log: Iterable[Logged] | None = None, *, save_to: Path | None = None
) -> None:
    """Check that one order of a history's calls explains every answer: by the log if it is given, else by search.

    `log`: all events of the commands that the history is about (`exported`, `log_of`). `save_to`: a directory for the
    history, the log and the drawing, if there is something to show; default: a new one, command-registry-history-*, in
    the system's directory for temporary files.

    Raises:
        HistoryError: there is none.
        Undecided: without a log, the search took too long.
        ValueError: the history cannot be judged; says why.
    """
    events = None if log is None else list(log)
    contradictions = contradictions_of(history, events)
    if not contradictions:
        return
    operations, contradiction = reduced(history, events, contradictions[0])
    saved, where = _saved(history, events, as_svg(operations, contradiction), save_to)
    raise HistoryError(contradictions, as_text(operations, contradiction), saved, where)


def contradictions_of(history: Sequence[Operation], log: Sequence[Logged] | None) -> list[Contradiction]:
    """Tell what in a history cannot be, the least first: by the log if it is given, else by search."""
    found = check_by_search(history) if log is None else check_against_log(history, log)
    return sorted(found, key=lambda contradiction: len(contradiction.operations))


def listed(contradictions: Sequence[Contradiction]) -> list[str]:
    """Write the first few contradictions, a line each, and how many more there are."""
    more = len(contradictions) - _SHOWN
    return [f"- {each}" for each in contradictions[:_SHOWN]] + ([f"- and {more} more"] if more > 0 else [])


# What a registry has written.


class _Histories(Protocol):
    def history(self, command_id: str) -> list[HistoryEntry]: ...


class _Exports(Protocol):
    def export(self) -> Iterator[RecordedEvent]: ...


def log_of(registry: _Histories, command_ids: Iterable[str]) -> list[Logged]:
    """Read what a check needs of some commands' events, from any registry for threads."""
    return [
        Logged(command_id, told(entry, "version"), told(told(entry, "context"), "request_id"))
        for command_id in dict.fromkeys(command_ids)
        for entry in registry.history(command_id)
    ]


def exported(registry: _Exports) -> list[Logged]:
    """Read what a check needs of all events, from the registry on Postgres or in memory, for threads.

    On Postgres, events that were committed beside a transaction which is still open are not given yet.
    """
    return [
        Logged(event.stream_id, event.version, _request_id(orjson.loads(event.metadata))) for event in registry.export()
    ]


def _request_id(metadata: dict[str, Any]) -> str | None:
    found: str | None = metadata.get("request_id")
    return found


def concerning(history: Iterable[Operation], log: Iterable[Logged]) -> list[Logged]:
    """Leave out of a log what the history has nothing to do with: the commands that none of its calls was about."""
    operations, events = list(history), list(log)
    calls = {operation.request_id for operation in operations}
    commands = {event.command_id for event in events if event.request_id in calls}
    commands.update(command_id for operation in operations for command_id in commands_of(operation))
    return [event for event in events if event.command_id in commands]


# Kept.


def _saved(
    history: Sequence[Operation], log: Sequence[Logged] | None, drawing: str, save_to: Path | None
) -> tuple[Path | None, str]:
    """Save a history; give the directory, and what to say of it."""
    try:
        if save_to is None:
            save_to = Path(tempfile.mkdtemp(prefix="command-registry-history-"))
        save_to.mkdir(parents=True, exist_ok=True)
        save(history, save_to / "history.jsonl")
        (save_to / "timeline.svg").write_text(drawing, "utf-8")
        if log is not None:
            save_log(log, save_to / "log.jsonl")
    except (OSError, TypeError) as error:
        return None, f"it could not be saved: {error}"
    again = f"python -m registry.testing {save_to / 'history.jsonl'}"
    again += "" if log is None else f" --log {save_to / 'log.jsonl'}"
    return (
        save_to,
        f"saved in {save_to}: history.jsonl, timeline.svg{'' if log is None else ', log.jsonl'}\nagain: {again}",
    )


def save_log(log: Iterable[Logged], file: Path) -> None:
    """Write what a check needs of a log to a file, for `load_log`."""
    with file.open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(event._asdict()) + "\n" for event in log)


def load_log(file: Path) -> list[Logged]:
    """Read a log that was saved.

    Raises:
        ValueError: a line is none of a log; the error names file and line.
    """
    return [_logged(line, f"{file}:{number}") for number, line in enumerate(file.read_text("utf-8").splitlines(), 1)]


def _logged(line: str, place: str) -> Logged:
    try:
        event = Logged(**json.loads(line))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{place}: no line of a log ({error}): {line[:200]}") from error
    if not isinstance(event.command_id, str) or type(event.version) is not int:
        raise ValueError(f"{place}: no line of a log (a text and a number are needed): {line[:200]}")
    return event
