"""Reading the log as it grows: which events, what holds them back, and a server that goes away and comes back."""

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import datetime
from typing import Final, Never

import orjson

from eventstore.database import Database
from eventstore.errors import Unavailable
from eventstore.event import LogPosition, RecordedEvent, StreamEvent
from eventstore.plans import read_log, read_stream
from eventstore.protocol import LOG_START
from eventstore.steps import Plan, Step
from registry import doctor, plans
from registry.cli import queries
from registry.cli.errors import one_line
from registry.cli.options import Start
from registry.doctor import log
from registry.doctor import queries as doctor_queries
from registry.doctor.check import Check
from registry.events import CODEC, CommandCreated
from registry.plans import StatusRead
from registry.postgres import EXPORT_PAGE

__all__ = ["Choice", "Reader", "begin"]

MAX_KNOWN: Final = 8_192
"""Commands whose deployment is remembered, at most."""

SHORTEST_PAUSE: Final = 0.01
LONGEST_PAUSE: Final = 0.25
"""Seconds between two looks at a log that does not grow; the pauses double from the one to the other."""

HELD_BACK: Final = 3.0
"""Seconds after which it is told what holds readers of the log back."""

AWAY: Final = 5.0
"""Seconds without an answer after which it is told that the server is away."""


def begin(start: Start) -> Plan[LogPosition]:
    """Find the place in the log to read on after."""
    if isinstance(start, LogPosition):
        return start
    end = yield from _log_end()
    return end if start == "now" else (yield from _before_first_since(start, end))


def _log_end() -> Plan[LogPosition]:
    rows = yield Step(queries.LOG_END)
    return LogPosition(int(rows[0][0]), rows[0][1]) if rows else LOG_START


def _before_first_since(instant: datetime, end: LogPosition) -> Plan[LogPosition]:
    rows = yield Step(queries.FIRST_RECORDED_SINCE, (str(end.transaction_id), end.position, instant))
    return LogPosition(int(rows[0][0]), rows[0][1] - 1) if rows else end


class Choice:
    """Which events are wanted: of some types, for some deployments, recorded since an instant; by default all."""

    def __init__(
        self, types: Collection[str] = (), deployments: Collection[str] = (), since: datetime | None = None
    ) -> None:
        self._types, self._deployments, self._since = frozenset(types), frozenset(deployments), since
        self._known = _DeploymentOf()

    def of(self, page: Sequence[RecordedEvent]) -> Plan[list[RecordedEvent]]:
        """Choose among the events of a page of the log."""
        wanted = [event for event in page if self._wants(event)]
        if not self._deployments:
            return wanted
        self._known.learn(page)
        deployment_of = yield from self._known.find(event.stream_id for event in wanted)
        return [event for event in wanted if deployment_of[event.stream_id] in self._deployments]

    def _wants(self, event: RecordedEvent) -> bool:
        of_type = not self._types or event.type in self._types
        return of_type and (self._since is None or event.recorded_at >= self._since)


class _DeploymentOf:
    """Which deployment each command is for: of those seen lately remembered, of others looked up."""

    def __init__(self) -> None:
        self._known: dict[str, str | None] = {}

    def learn(self, events: Iterable[StreamEvent]) -> None:
        """Learn it from the creations among the events."""
        for event in events:
            if event.version == 1:
                self._known[event.stream_id] = _deployment_named_by(event)

    def find(self, command_ids: Iterable[str]) -> Plan[dict[str, str | None]]:
        """Tell it of commands; None where nothing in the log tells."""
        ids = set(command_ids)
        unknown = [StatusRead(command_id) for command_id in sorted(ids - self._known.keys())]
        if unknown:
            yield from plans.read_all(unknown)
        for read in unknown:
            self._known[read.command_id] = yield from _deployment_of(read)
        found = {command_id: self._known[command_id] for command_id in ids}
        self._forget_the_oldest()
        return found

    def _forget_the_oldest(self) -> None:
        for command_id in list(self._known)[: max(0, len(self._known) - MAX_KNOWN)]:
            del self._known[command_id]


def _deployment_of(read: StatusRead) -> Plan[str | None]:
    try:
        status = read.result()
    except Exception:  # what a later version of the software, or a hand in the tables, has written
        status = None
    if status is not None:
        return status.deployment_id
    first = yield from read_stream(read.command_id, limit=1)
    return _deployment_named_by(first[0]) if first else None


def _deployment_named_by(creation: StreamEvent) -> str | None:
    try:
        event = CODEC.decode(creation)
        return event.deployment_id if isinstance(event, CommandCreated) else None
    except Exception:  # as above
        data = orjson.loads(creation.data)
        named = data.get("deployment_id") if isinstance(data, dict) else None
        return named if isinstance(named, str) else None


class Reader:
    """Reads the log on from a place; `show` is given the chosen events page by page, `note` what there is to know."""

    def __init__(
        self,
        database: Database,
        after: LogPosition,
        choice: Choice,
        show: Callable[[Sequence[RecordedEvent]], None],
        note: Callable[[str], None],
    ) -> None:
        self._database, self._after, self._choice = database, after, choice
        self._show, self._note = show, note

    def to_the_end(self) -> None:
        """Read what the log has now."""
        while self._page(self._database.timeout) == EXPORT_PAGE:
            pass

    def follow(self, pause: Callable[[float], None]) -> Never:
        """Read what the log has, and what it gets, until somebody stops it; `pause` waits for so many seconds."""
        line = _Connection(self._database, self._note)
        hold = _Hold(self._note)
        seconds = SHORTEST_PAUSE
        while True:
            try:
                events = self._page(line.patience)
                line.stands(self._after)
                hold.look(self._database, grown=events > 0)
            except Unavailable as error:
                line.broke(error)
                pause(LONGEST_PAUSE)
                continue
            seconds = SHORTEST_PAUSE if events else min(2 * seconds, LONGEST_PAUSE)
            if events < EXPORT_PAGE:
                pause(seconds)

    def _page(self, timeout: float) -> int:
        """Read and show a page; tell how many events of the log it was."""
        page, chosen = self._database.run(_page(self._after, self._choice), timeout=timeout)
        if chosen:
            self._show(chosen)
        if page:
            self._after = page[-1].log_position
        return len(page)


def _page(after: LogPosition, choice: Choice) -> Plan[tuple[Sequence[RecordedEvent], Sequence[RecordedEvent]]]:
    page = yield from read_log(after, EXPORT_PAGE)
    return page, (yield from choice.of(page))


class _Connection:
    """Tells once when the server is away, and when it is back."""

    def __init__(self, database: Database, note: Callable[[str], None]) -> None:
        self._metrics, self._timeout, self._note = database.metrics, database.timeout, note
        self._lost = database.metrics.reconnections
        self._away = False

    @property
    def patience(self) -> float:
        """For how many seconds to wait for an answer: at first until there is something to tell, then as ever."""
        return self._timeout if self._away else AWAY

    def broke(self, error: Unavailable) -> None:
        """There was no answer in time."""
        if not self._away:
            self._note(f"{one_line(str(error))}; going on when the server is back")
        self._away = True

    def stands(self, after: LogPosition) -> None:
        """There was an answer."""
        lost = self._metrics.reconnections
        if self._away or lost > self._lost:
            self._note(f"connected again; going on after {after.transaction_id}:{after.position}")
        self._away, self._lost = False, lost


class _Hold:
    """Tells once what holds readers of the log back, when it has done so for a while."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note
        self._told = False
        self._next = time.monotonic() + HELD_BACK

    def look(self, database: Database, *, grown: bool) -> None:
        """Look whether events are held back; `grown`: there were new ones just now."""
        now = time.monotonic()
        if grown:
            self._told, self._next = False, now + HELD_BACK
        elif now >= self._next and not self._told:
            self._next = now + HELD_BACK
            if database.run(doctor.held_back()):
                self._tell(database.run(_blocker()))

    def _tell(self, check: Check) -> None:
        if check.status != "ok":
            self._note(f"held back: {check.found}; {check.mend}")
            self._told = True


def _blocker() -> Plan[Check]:
    [(_, _, _, user, _)] = yield Step(doctor_queries.SERVER)
    return (yield from log.readers(user))
