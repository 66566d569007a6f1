"""Where a server is reached: at a Unix socket in a directory of its own, and nowhere else."""

import hashlib
import os
from pathlib import Path
from typing import Final
from urllib.parse import quote

from registry.embedded.accounts import ACCOUNT

__all__ = ["DATABASE", "PORT", "SUPERUSER", "dsn", "socket_directory", "socket_file"]

DATABASE: Final = "command_registry"
SUPERUSER: Final = "postgres"
PORT: Final = 5432  # names the socket file; nothing listens on a port

_SOCKET_PATH_LIMIT: Final = 103  # bytes: macOS takes 103, Linux 107


def socket_directory(home: Path) -> Path:
    """The same for every process that shares the home, whatever its TMPDIR or XDG_RUNTIME_DIR."""
    inside = home / "socket"
    if len(os.fsencode(_socket_in(inside))) <= _SOCKET_PATH_LIMIT:
        return inside
    digest = hashlib.sha256(os.fsencode(home)).hexdigest()
    return Path("/tmp") / f"{ACCOUNT}-{digest[:16]}"  # noqa: S108 # checked by make_private


def socket_file(home: Path) -> Path:
    """Give the socket, which is there while a server runs."""
    return _socket_in(socket_directory(home))


def _socket_in(directory: Path) -> Path:
    return directory / f".s.PGSQL.{PORT}"


def dsn(home: Path, database: str) -> str:
    """Give the connection URI of a database; `hostaddr` is there, and empty, to outdo the caller's PGHOSTADDR."""
    host = quote(str(socket_directory(home)), safe="")
    return f"postgresql://{SUPERUSER}@/{database}?host={host}&hostaddr=&port={PORT}"
