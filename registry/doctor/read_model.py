"""Checks of the read model: that it is there and in force, shaped as its projection says, and the fold of the log."""

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Final

from eventstore.steps import Plan, Step
from eventstore.verification import Problem
from registry.audit import verification
from registry.command_status import COMMAND_STATUS
from registry.doctor import queries
from registry.doctor.check import MIGRATE, Check, failed, ok

__all__ = ["REBUILD", "drift", "shape"]

REBUILD: Final = f"run: DROP TABLE IF EXISTS {COMMAND_STATUS.full_name} CASCADE; then: command-registry migrate"
"""Builds the read model again from the log. (Nothing is lost: the log has it all.)"""

REPAIR: Final = f"run: command-registry projections rebuild {COMMAND_STATUS.projection.name}"
"""Writes every row anew from the log, in place."""

_NAME: Final = "read model"
_SHOWN: Final = 3


def shape() -> Plan[Check]:
    """Check that the table of this version is there, in force, and has the projection's columns and indexes."""
    projection = COMMAND_STATUS.projection
    [*missing] = yield Step(queries.MISSING_TABLES, ([COMMAND_STATUS.name],))
    if missing:
        return failed(_NAME, f"table {COMMAND_STATUS.full_name} is missing", MIGRATE)
    in_force: dict[int, bool] = dict((yield Step(queries.PROJECTION_IN_FORCE, (projection.name,))))
    if projection.version not in in_force:
        return failed(_NAME, f"version {projection.version} is not registered", MIGRATE)
    wrong = yield from _wrong_columns()
    wrong += yield from _wrong_indexes()
    if in_force[projection.version]:
        view = f"command_registry.{projection.name}"
        [(shown,)] = yield Step(queries.VIEW_SHOWS_TABLE, (view, COMMAND_STATUS.full_name))
        wrong += [] if shown else [f"view {view} does not show it"]
    if wrong:
        return failed(_NAME, f"{COMMAND_STATUS.full_name}: {'; '.join(wrong)}", REBUILD)
    state = "in force" if in_force[projection.version] else "not in force: another version is"
    return ok(_NAME, f"{COMMAND_STATUS.full_name}, as its projection says, {state}")


def _wrong_columns() -> Plan[list[str]]:
    wanted = COMMAND_STATUS.projection.columns
    kinds = [kind.partition(" COLLATE")[0] for kind in wanted.values()]
    rows = yield Step(queries.WRONG_COLUMNS, (list(wanted), kinds, COMMAND_STATUS.full_name))
    return [
        f"column {name} is {found or 'missing'}" + (f", not {kind}" if kind else ", and not in the projection")
        for name, kind, found in rows
    ]


def _wrong_indexes() -> Plan[list[str]]:
    projection = COMMAND_STATUS.projection
    rows = yield Step(queries.INDEXES, (COMMAND_STATUS.full_name,))
    valid = {on for _, _, is_valid, on in rows if is_valid}
    primary = {on for _, is_primary, is_valid, on in rows if is_primary and is_valid}
    wrong = [] if next(iter(projection.columns)) in primary else ["no primary key"]
    wanted = [", ".join(index.columns) for index in projection.indexes]
    return wrong + [f"no index on ({on})" for on in wanted if on not in valid]


def drift(progress: Callable[[int], None]) -> Plan[list[Check]]:
    """Verify every chain of the log, and every row of the read model against the fold of its stream."""
    report = yield from verification(progress)
    changed = [problem for problem in report.problems if problem.version is not None]
    drifted = [problem for problem in report.problems if problem.version is None]
    figures = f"{report.events} events of {report.streams} commands"
    return [
        _verified("log content", changed, f"{figures}: every hash and version is right", _RESTORE),
        _verified("drift", drifted, f"{report.rows} rows are the fold of the log", REPAIR),
    ]


_RESTORE: Final = (
    "the log was changed behind the guards: see command-registry verify; compare with an earlier export, and restore "
    "the event as it was"
)


def _verified(name: str, problems: Sequence[Problem], good: str, remedy: str) -> Check:
    if not problems:
        return ok(name, good)
    shown = "; ".join(str(problem) for problem in islice(problems, _SHOWN))
    more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    return failed(name, shown + more, remedy)
