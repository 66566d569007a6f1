"""The home directory, and making directories: private ones, and ones that are there whole or not at all."""

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from registry.embedded.accounts import ACCOUNT, give_to, is_root
from registry.embedded.advice import ANOTHER_HOME, OWN_POSTGRES
from registry.embedded.processes import Account, run
from registry.errors import EmbeddedPostgresError

__all__ = ["beside", "default_home", "make_home", "make_private", "resolve"]

# pg_ctl puts the paths between double quotes in a shell command; the rest have a meaning in lists of hosts or sockets.
_UNQUOTABLE: Final = re.compile(r'["$`\\,\x00-\x1f\x7f]')


def default_home() -> Path:
    """Say where the data is kept: COMMAND_REGISTRY_HOME, else the user's data directory, or /var/lib for root.

    Root's own home is no place for it: the server runs as another account, and only root may enter there.
    """
    if chosen := os.environ.get("COMMAND_REGISTRY_HOME"):
        return Path(chosen)
    import platformdirs  # here, because most who import the registry never ask

    if is_root():
        return platformdirs.site_state_path("command-registry", appauthor=False)
    return platformdirs.user_data_path("command-registry", appauthor=False)


def resolve(home: Path) -> Path:
    """Give the home's one absolute path.

    Raises:
        EmbeddedPostgresError: Postgres cannot take a character in it.
    """
    place = home.expanduser().resolve()
    if _UNQUOTABLE.search(str(place)):
        raise EmbeddedPostgresError(
            f'the path {str(place)!r} has a character that Postgres cannot take there (one of " $ ` \\ , or a control '
            f"character): {ANOTHER_HOME}"
        )
    return place


def make_home(home: Path, account: Account | None) -> None:
    """Create the home, or check that an existing one is ours alone; a directory in use is never changed.

    Raises:
        EmbeddedPostgresError: others may change it, or the account cannot enter it.
        OSError: it cannot be created.
    """
    if account:
        _check_reach(home.parent, account)
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    facts = home.stat()
    if facts.st_uid != os.geteuid() or facts.st_mode & 0o022:
        raise EmbeddedPostgresError(
            f"{home} belongs to user {facts.st_uid} and has mode {facts.st_mode & 0o7777:04o}, but others must not be "
            f"able to change it: run as its owner, chmod go-w it, {ANOTHER_HOME}"
        )
    if not any(home.iterdir()):
        os.chown(home, -1, account.gid if account else -1)
        home.chmod(0o750 if account else 0o700)
    if account:
        _check_reach(home, account)


def _check_reach(directory: Path, account: Account) -> None:
    existing = [str(path) for path in (*reversed(directory.parents), directory) if path.is_dir()]
    enter = 'for d do cd "$d" 2>/dev/null || { printf %s "$d"; exit 1; }; done'
    status, closed = run(["/bin/sh", "-c", enter, "sh", *existing], account)
    if status != 0:
        raise EmbeddedPostgresError(
            f"the account {ACCOUNT!r}, which the server runs as because Postgres refuses to run as root, cannot enter "
            f"{closed}: set COMMAND_REGISTRY_HOME to a directory that it can reach (by "
            f"default /var/lib/command-registry), open that one with chmod o+x, or {OWN_POSTGRES}"
        )


def make_private(directory: Path, account: Account | None) -> None:
    """Create a directory that only the server's account can enter.

    Raises:
        EmbeddedPostgresError: there is one already, and someone else made it, or others can enter it.
    """
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError:
        pass
    else:
        give_to(account, directory)
    facts = directory.lstat()
    expected = (0o040700, account.uid if account else os.geteuid())
    if (facts.st_mode, facts.st_uid) != expected:
        raise EmbeddedPostgresError(
            f"{directory}, which is to hold the server's socket, is not a directory of user {expected[1]} that is "
            f"closed to others (mode 0700): remove it, set COMMAND_REGISTRY_HOME to another (shorter) path, or "
            f"{OWN_POSTGRES}"
        )


@contextlib.contextmanager
def beside(final: Path) -> Iterator[Path]:
    """Make a directory under another name and rename it when it is complete, so that no kill leaves half of it."""
    try:
        _remove_unfinished(final)
        fresh = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.parent))
        yield fresh
        fresh.rename(final)
    finally:
        _remove_unfinished(final)


def _remove_unfinished(final: Path) -> None:
    for leftover in final.parent.glob(f".{final.name}.*"):
        shutil.rmtree(leftover, ignore_errors=True)  # an initdb whose starter was killed may be writing there yet
