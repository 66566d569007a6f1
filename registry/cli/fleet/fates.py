"""What the seed decides: when each command of the day is made, for whom, and what is to become of it."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from pydantic import JsonValue

from registry.cli.fleet.clock import STEPS
from registry.cli.fleet.lines import LINES, Line
from registry.lifecycle import CommandState

__all__ = ["LEASE", "Attempt", "Ending", "Fate", "Kind", "deal"]

LEASE: Final = 3
"""For how many steps a worker has a command before it is delivered again."""

LAST_CREATION: Final = STEPS - 48
"""The last four hours of the day are for finishing: no deadline that matters, and no series of attempts, is longer."""


class Kind(StrEnum):
    """What becomes of a command."""

    SMOOTH = "smooth"
    FAILING = "failing"
    UPLOADED = "uploaded"
    RELEASED = "released"
    LEASE_LOST = "lease lost"
    ANSWERED_TWICE = "answered twice"
    OVERDUE = "overdue"
    UPLOAD_ABANDONED = "upload abandoned"
    PHOTO_FINISH = "photo finish"
    """It is answered in the very step in which it expires: only the database knows what comes of it."""


_DECK: Final = [
    *[Kind.SMOOTH] * 22,
    *[Kind.FAILING] * 5,
    *[Kind.UPLOADED] * 3,
    *[Kind.RELEASED] * 5,
    *[Kind.LEASE_LOST] * 6,
    *[Kind.ANSWERED_TWICE] * 4,
    *[Kind.OVERDUE] * 3,
    Kind.UPLOAD_ABANDONED,
    Kind.PHOTO_FINISH,
]
"""Of so many commands, one is of each of these kinds: dealt like cards, so that every kind occurs on every day."""

_NAMES: Final = ("sync-data", "postgres/health", "rotate-keys", "collect-logs", "apply-config", "restart", "backup/run")

_ERRORS: Final[tuple[JsonValue, ...]] = (
    {"code": "EXIT_STATUS", "message": "exited with status 1", "details": {"status": 1}},
    {"code": "CONNECTION_REFUSED", "message": "connect to 10.0.4.12:5432: connection refused"},
    {"code": "PERMISSION_DENIED", "message": "role reporting may not read schema billing"},
    {"code": "OUT_OF_MEMORY", "message": "killed at 512 MiB"},
)


class Ending(StrEnum):
    """How an attempt ends."""

    ANSWERED = "answered"
    ANSWERED_TWICE = "answered twice"
    """The worker gets no reply to its response, and sends it again at once."""
    RELEASED = "released"
    LATE = "late"
    """The worker is cut off until its lease is over, and answers then."""
    CRASHED = "crashed"
    """The worker dies, and never answers."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt at a command: how it ends, how many steps after its dispatch."""

    ending: Ending
    steps: int


@dataclass(frozen=True, slots=True)
class Fate:
    """What is to become of one command; the seed decides it. Times are in steps.

    `upload`: how long its parameters take to come; 0: it is created with them; None: they never come. `deadline` is
    counted from `created`. Attempts beyond those given go as the last one.
    """

    index: int
    kind: Kind
    line: Line
    command_name: str
    created: int
    sent_twice: bool
    target_forgotten: bool
    request_size_bytes: int
    upload: int | None
    deadline: int | None
    attempts: tuple[Attempt, ...]
    result: CommandState
    error: JsonValue
    response_size_bytes: int

    def attempt(self, number: int) -> Attempt:
        """Return an attempt, the first being 1."""
        return self.attempts[min(number, len(self.attempts)) - 1]


def deal(commands: int, seed: int) -> list[Fate]:
    """Deal the fates of a day's commands: the same ones for the same seed."""
    chance = random.Random(seed)  # noqa: S311 - a story, not a secret
    decks, rest = divmod(commands, len(_DECK))
    kinds = _DECK * decks + chance.sample(_DECK, rest)
    chance.shuffle(kinds)
    return [_fate(index, kind, chance) for index, kind in enumerate(kinds)]


def _fate(index: int, kind: Kind, chance: random.Random) -> Fate:
    [line] = chance.choices(LINES, [line.share for line in LINES])
    fails = kind is Kind.FAILING
    return Fate(
        index=index,
        kind=kind,
        line=line,
        command_name=chance.choice(_NAMES),
        created=int(chance.triangular(0, LAST_CREATION, LAST_CREATION * 0.4)),
        sent_twice=chance.random() < 0.1,
        target_forgotten=line.must_be_named and chance.random() < 0.1,
        request_size_bytes=chance.randint(64, 64 * 1024),
        upload=_upload(kind, chance),
        deadline=_deadline(kind, chance),
        attempts=tuple(_ATTEMPTS.get(kind, _answered)(chance)),
        result=CommandState.FAILED if fails else CommandState.SUCCEEDED,
        error=chance.choice(_ERRORS) if fails else None,
        response_size_bytes=chance.randint(2, 256 * 1024),
    )


def _upload(kind: Kind, chance: random.Random) -> int | None:
    if kind is Kind.UPLOAD_ABANDONED:
        return None
    return chance.randint(1, 3) if kind is Kind.UPLOADED else 0


def _deadline(kind: Kind, chance: random.Random) -> int | None:
    match kind:
        case Kind.OVERDUE | Kind.UPLOAD_ABANDONED:
            return chance.randint(6, 7)  # between the ends of two leases, so that it is no race with the reaper
        case Kind.PHOTO_FINISH:
            return 3  # dispatched one step after its creation, and answered two steps later
        case _:
            return chance.choice((None, 36, 48))


def _answered(chance: random.Random) -> list[Attempt]:
    return [Attempt(Ending.ANSWERED, chance.randint(1, LEASE - 1))]


def _answered_twice(chance: random.Random) -> list[Attempt]:
    return [Attempt(Ending.ANSWERED_TWICE, chance.randint(1, LEASE - 1))]


def _released(chance: random.Random) -> list[Attempt]:
    return [*(Attempt(Ending.RELEASED, 1) for _ in range(chance.randint(1, 2))), *_answered(chance)]


def _lease_lost(chance: random.Random) -> list[Attempt]:
    crashed = [Attempt(Ending.CRASHED, LEASE + 1)] * chance.choice((0, 0, 1, 2))
    return [*crashed, Attempt(Ending.LATE, chance.randint(LEASE + 2, LEASE + 5)), *_answered(chance)]


def _overdue(chance: random.Random) -> list[Attempt]:
    return [Attempt(Ending.LATE, chance.randint(10, 14)), Attempt(Ending.CRASHED, LEASE + 1)]


def _photo_finish(_: random.Random) -> list[Attempt]:
    return [Attempt(Ending.ANSWERED, 2)]


_ATTEMPTS: Final[dict[Kind, Callable[[random.Random], list[Attempt]]]] = {
    Kind.RELEASED: _released,
    Kind.LEASE_LOST: _lease_lost,
    Kind.ANSWERED_TWICE: _answered_twice,
    Kind.OVERDUE: _overdue,
    Kind.PHOTO_FINISH: _photo_finish,
}
