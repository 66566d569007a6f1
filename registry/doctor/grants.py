"""Checks of who may do what: the roles, everybody else, and the current user."""

from typing import Final

from eventstore.steps import Plan, Step
from registry.command_status import COMMAND_STATUS
from registry.doctor import queries
from registry.doctor.check import MIGRATE, Check, failed, ok, warning

__all__ = ["current_user", "others", "roles"]

WRITER: Final = "command_registry_writer"
READER: Final = "command_registry_reader"

_READS: Final = (
    ("schema_versions", "SELECT"),
    ("projections", "SELECT"),
    ("events", "SELECT"),
    (COMMAND_STATUS.name, "SELECT"),
)
_WRITES: Final = (
    ("events", "INSERT"),
    ("events_position_seq", "USAGE"),
    ("idempotency_keys", "SELECT"),
    ("idempotency_keys", "INSERT"),
    ("deployments", "SELECT"),
    ("projectors", "SELECT"),
    ("projectors", "UPDATE"),
    ("projection_skips", "SELECT"),
    (COMMAND_STATUS.name, "INSERT"),
    (COMMAND_STATUS.name, "UPDATE"),
)
_NEEDS: Final = {WRITER: _READS + _WRITES, READER: _READS}


def roles() -> Plan[list[Check]]:
    """Check that the writer's and the reader's role are there, have what they need, and cannot change the log."""
    there = {name for (name,) in (yield Step(queries.ROLES, (list(_NEEDS),)))}
    checks = []
    for role in _NEEDS:
        if role in there:
            checks.append((yield from _role(role)))
        else:
            found = "not there: rights must be granted to each user by hand"
            checks.append(
                warning(f"role {role}", found, f"run: CREATE ROLE {role} NOLOGIN; then: command-registry migrate")
            )
    return checks


def _role(role: str) -> Plan[Check]:
    name = f"role {role}"
    too_much = [privilege for (privilege,) in (yield Step(queries.ROLE_MAY_CHANGE_LOG, (role,)))]
    if too_much:
        rights = ", ".join(too_much)
        remedy = f"run: REVOKE {rights} ON command_registry.events FROM {role}; and see of what roles it is a member"
        return failed(name, f"has {rights} on the log", remedy)
    missing = yield from _missing(role, _NEEDS[role])
    if missing:
        return failed(name, f"lacks {', '.join(missing)}", MIGRATE)
    return ok(name, "may append and read, not change" if role == WRITER else "may read, not change")


def _missing(role: str, needs: tuple[tuple[str, str], ...]) -> Plan[list[str]]:
    [(usage,)] = yield Step(queries.ROLE_MAY_USE_SCHEMA, (role,))
    objects, privileges = (list(column) for column in zip(*needs, strict=True))
    rows = yield Step(queries.MISSING_PRIVILEGES, (objects, privileges, role, role, role))
    return [*([] if usage else ["USAGE on the schema"]), *(missing for (missing,) in rows)]


def others() -> Plan[Check]:
    """Check that nobody but the owner was given rights to change the log, and that PUBLIC has none at all."""
    extra = [statement for (statement,) in (yield Step(queries.EXTRA_GRANTS))]
    if not extra:
        return ok("grants", "nobody was given rights to change the log, and everybody none at all")
    return failed("grants", f"{len(extra)} too many", "run: " + "; ".join(extra))


def current_user(user: str) -> Plan[Check]:
    """Check that the current user may do what a writer does."""
    name = f"user {user}"
    missing = yield from _missing(user, _READS)
    if missing:
        return failed(name, f"cannot read: lacks {', '.join(missing)}", f'run: GRANT {READER} TO "{user}"')
    missing = yield from _missing(user, _WRITES)
    if missing:
        return warning(name, f"may read, not write: lacks {', '.join(missing)}", f'run: GRANT {WRITER} TO "{user}"')
    return ok(name, "may read and write")
