"""Other processes that use a server, and questions to a server and about it."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest

from registry.embedded import EmbeddedPostgres
from registry.embedded.processes import command_line

SETTINGS = {"fsync": "off"}

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root hands the server to another account")


class User:
    """Another process that uses the server until it is told to leave."""

    SCRIPT = """
import sys
from registry.embedded import start
with start(settings={"fsync": "off"}) as postgres:
    print(postgres.dsn, flush=True)
    sys.stdin.read()
"""

    def __init__(self, home: Path, script: str = SCRIPT) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"COMMAND_REGISTRY_HOME": str(home)},
        )

    def ready(self) -> str:
        """Wait for its first line: the DSN."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        assert line, self.process.communicate()[1]
        return line

    def leave(self) -> str:
        out, err = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, err
        return out

    def signal(self, number: int) -> str:
        self.process.send_signal(number)
        return self.process.communicate(timeout=60)[1]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        with contextlib.suppress(ValueError):  # communicate() was called before
            self.process.communicate()


def processes_of(directory: Path) -> list[int]:
    pids = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    return [pid for pid in pids if f"{directory}/" in command_line(pid)]


def server_of(home: Path) -> int:
    pid = int((home / "data" / "postmaster.pid").read_text().split()[0])
    assert pid in processes_of(home)
    return pid


def ask(dsn: str, query: str) -> object:
    with psycopg.connect(dsn, autocommit=True) as connection:
        row = connection.execute(query.encode()).fetchone()
        return row[0] if row else None


def tell(dsn: str, statement: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(statement.encode())


def socket_dir(postgres: EmbeddedPostgres) -> Path:
    return Path(parse_qs(urlsplit(postgres.dsn).query)["host"][0])
