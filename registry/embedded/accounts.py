"""The account that the server runs as when we are root, because Postgres refuses to run as root."""

import os
from pathlib import Path
from typing import Final

from registry.embedded.advice import OWN_POSTGRES
from registry.embedded.processes import Account, run
from registry.errors import EmbeddedPostgresError

__all__ = ["ACCOUNT", "give_to", "is_root", "server_account"]

ACCOUNT: Final = "command-registry"


def is_root() -> bool:
    """Say whether this process is root's."""
    return hasattr(os, "geteuid") and os.geteuid() == 0


def server_account() -> Account | None:
    """Give the account, created when it is missing; None when the server runs as ourselves.

    Raises:
        EmbeddedPostgresError: it cannot be created, or no program can be run as it.
    """
    if not is_root():
        return None
    account = _find() or _create()
    try:
        status, output = run(["/bin/sh", "-c", ":"], account)
    except OSError as error:  # a root that may not change its user
        status, output = 1, str(error)
    if status != 0:
        raise EmbeddedPostgresError(
            f"cannot run a program as the account {ACCOUNT!r}: {output.strip()}; or {OWN_POSTGRES}"
        )
    return account


def _find() -> Account | None:
    import pwd  # not on Windows, where importing this module must work

    try:
        entry = pwd.getpwnam(ACCOUNT)
    except KeyError:
        return None
    return Account(entry.pw_uid, entry.pw_gid)


def _create() -> Account:
    options = ["--system", "--user-group", "--no-create-home", "--home-dir", "/", "--shell", "/usr/sbin/nologin"]
    try:
        _, problem = run(["useradd", *options, ACCOUNT], None)
    except OSError as error:
        problem = str(error)
    account = _find()  # even after a failure: another process may have been first
    if account is None:
        raise EmbeddedPostgresError(
            f"Postgres refuses to run as root, and the account {ACCOUNT!r} for it could not be created "
            f"({problem.strip()}): create it as a system account, run as another user, or {OWN_POSTGRES}"
        )
    return account


def give_to(account: Account | None, path: Path) -> None:
    """Make the account the owner of a path; without one it stays ours."""
    if account:
        os.chown(path, account.uid, account.gid, follow_symlinks=False)
