"""Servers of a test's own, which keep what they have acknowledged: to be killed, starved, replaced and misled.

They are the embedded Postgres, with Postgres's own defaults (fsync and synchronous_commit on), each in a home of its
own: a copy of one that was made once.
"""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeAlias
from unittest import mock

import psycopg
import pytest

from registry import PostgresCommandRegistry, embedded
from registry.embedded.accounts import give_to, server_account
from registry.embedded.address import DATABASE, SUPERUSER, dsn, socket_directory
from registry.embedded.processes import run
from tests.conftest import DEBIAN_15, HOME
from tests.soak import rounds
from tests.waiting import until

__all__ = [
    "DEBIAN",
    "EMBEDDED",
    "Homes",
    "Server",
    "Servers",
    "connected",
    "each_of_both",
    "homes",
    "needs_debian_15",
    "needs_mounts",
    "on_a_small_disk",
    "servers_of_their_own",
    "standby_of",
]

EMBEDDED: Final = "embedded"
DEBIAN: Final = "Debian's 15"
_PROGRAMS: Final[Mapping[str, Path | None]] = {EMBEDDED: None, DEBIAN: DEBIAN_15}
_ROOM: Final = 2 * 2**30
"""Bytes in memory for the homes of a process's servers: each takes 50 MB, and a dozen may be there at once."""
_SHARED_MEMORY: Final = 6
"""The line of postmaster.pid, from 0, with the key and the id of its shared memory."""
_SETTINGS: Final = {
    "max_connections": "50",
    "log_checkpoints": "off",
    "recovery_init_sync_method": "syncfs",  # as safe as a thousand fsyncs, and done ten times as fast
    "dynamic_shared_memory_type": "mmap",  # so that one which is killed leaves nothing in /dev/shm
}


def _may_mount() -> bool:
    with tempfile.TemporaryDirectory() as place:
        tried = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], capture_output=True, check=False)
        return tried.returncode == 0 and subprocess.run(["umount", place], check=False).returncode == 0


needs_debian_15 = pytest.mark.skipif(
    not DEBIAN_15.exists(), reason="no Postgres 15 of Debian's is installed: apt-get install postgresql-15"
)
needs_mounts = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("mount") or not _may_mount(),
    reason="a small disk takes a mount: run as root, with CAP_SYS_ADMIN",
)
each_of_both = pytest.mark.parametrize(
    ("kind", "version"),
    [("threads", EMBEDDED), pytest.param("asyncio", DEBIAN, marks=needs_debian_15)]
    + [("asyncio", EMBEDDED), pytest.param("threads", DEBIAN, marks=needs_debian_15)] * rounds(0, 1),
)
"""Both kinds of callers, and both versions of Postgres; in a soak, each with each."""


class Server:
    """A server that can be started, killed and started again; `environment` is what it gets at its next start."""

    def __init__(self, home: Path, version: str, settings: Mapping[str, str]) -> None:
        self.home = home
        self.version = version
        self.settings = _SETTINGS | dict(settings)
        self.environment: dict[str, str] = {}
        self.dsn = dsn(home, DATABASE)
        self.host = str(socket_directory(home))
        self._uses: list[embedded.EmbeddedPostgres] = []

    @property
    def data(self) -> Path:
        """The directory of its data."""
        return self.home / "data"

    def start(self) -> None:
        """Start it, or join it while it starts, and wait until it answers: what a service manager does."""
        with mock.patch.dict(os.environ, self.environment):
            started = embedded.start(self.home, bin_dir=_PROGRAMS[self.version], settings=self.settings)
        self._uses.append(started)

    def stop(self) -> None:
        """Stop it as a service manager does."""
        while self._uses:
            self._uses.pop().close()

    @property
    def postmaster(self) -> int | None:
        """Its first process; None when it does not run."""
        with suppress(OSError, ValueError):
            pid = int((self.data / "postmaster.pid").read_text().split("\n", 1)[0])
            if str(self.data) in _title(pid):
                return pid
        return None

    def processes(self) -> dict[int, str]:
        """Give its other processes, and what each says it is."""
        postmaster = self.postmaster
        if postmaster is None:
            return {}
        with suppress(OSError):
            pids = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
            return {int(pid): _title(int(pid)) for pid in pids}
        return {}

    def process(self, kind: str) -> int:
        """Give the process of a kind ("checkpointer", "walwriter", "walsender"...), once there is one."""
        return until(lambda: [pid for pid, title in self.processes().items() if f": {kind}" in title], f"a {kind}")[0]

    def kill(self) -> None:
        """Kill its first process (-9); the others find out, and go."""
        if postmaster := self.postmaster:
            _kill(postmaster)
            until(lambda: self.postmaster is None, "the postmaster to be gone")

    def lose(self) -> None:
        """Kill all of it at one blow, as if its machine were gone."""
        postmaster = self.postmaster
        if postmaster is None:
            return
        os.kill(postmaster, signal.SIGSTOP)  # so that it starts no others
        for pid in self.processes():
            _kill(pid)
        self.kill()

    def end(self) -> None:
        """End all of it, whatever state it is in, and leave nothing behind."""
        self.lose()
        self._remove_shared_memory()
        while self._uses:
            self._uses.pop().close()  # which finds nothing left to stop

    def _remove_shared_memory(self) -> None:
        """Remove what the next start would: one that is killed leaves a piece of System V's shared memory."""
        with suppress(OSError):
            lines = (self.data / "postmaster.pid").read_text().splitlines()
            if len(lines) > _SHARED_MEMORY and (known := lines[_SHARED_MEMORY].split()):
                subprocess.run(["ipcrm", "-m", known[-1]], capture_output=True, check=False)

    def log(self) -> str:
        """Read what it says."""
        return (self.home / "server.log").read_text(errors="replace")

    def program(self, name: str, *arguments: str) -> str:
        """Run one of its programs as its account; give what it wrote."""
        bin_dir = _PROGRAMS[self.version]
        assert bin_dir is not None
        status, output = run([str(bin_dir / name), *arguments], server_account())
        assert status == 0, output
        return output


Servers: TypeAlias = Callable[..., Server]
"""Makes a server of a version, with settings, migrated and started unless it is told otherwise; all end with the test.
"""


def _title(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


class Homes:
    """Homes for servers, and a migrated one of each version to copy, made when it is first asked for."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._made: dict[str, Path] = {}

    def new(self) -> Path:
        """Make an empty one."""
        home = Path(tempfile.mkdtemp(dir=self._place))
        home.chmod(0o711)  # as root, the server runs under another account, which must get through
        return home

    def copied(self, version: str) -> Path:
        """Make one with the data of a server that has a registry."""
        if version not in self._made:
            self._made[version] = self._migrated(version)
        home = self.new()
        subprocess.run(["cp", "-a", str(self._made[version] / "data"), str(home)], check=True)
        return home

    def _migrated(self, version: str) -> Path:
        server = Server(self.new(), version, {"fsync": "off"})
        server.start()
        try:
            PostgresCommandRegistry.open(server.dsn, migrate=True).close()
        finally:
            server.stop()
        return server.home


@contextmanager
def homes() -> Iterator[Homes]:
    """Keep homes until the block ends: in memory, if there is room, as no test here lets a machine crash.

    In a soak they are on the disk.
    """
    in_memory = Path("/dev/shm")  # noqa: S108 - a directory of our own in it
    is_roomy = in_memory.is_dir() and shutil.disk_usage(in_memory).free > _ROOM
    place = Path(tempfile.mkdtemp(prefix="crf-", dir=in_memory if is_roomy and rounds(1, 0) else os.environ[HOME]))
    try:
        place.chmod(0o711)
        yield Homes(place)
    finally:
        shutil.rmtree(place, ignore_errors=True)


@contextmanager
def servers_of_their_own(homes: Homes) -> Iterator[Servers]:
    """Give what makes servers; they are gone when the block ends, whatever state they are in."""
    with ExitStack() as stack:

        def make(version: str = EMBEDDED, *, start: bool = True, **settings: str) -> Server:
            server = Server(homes.copied(version), version, settings)
            stack.callback(shutil.rmtree, server.home, ignore_errors=True)
            stack.callback(server.end)
            if start:
                server.start()
            return server

        yield make


@contextmanager
def standby_of(primary: Server, **settings: str) -> Iterator[Server]:
    """Copy a server that runs, and let the copy follow it."""
    home = Path(tempfile.mkdtemp(dir=primary.home.parent))
    home.chmod(0o711)
    standby = Server(home, primary.version, settings)
    try:
        standby.data.mkdir(mode=0o700)
        give_to(server_account(), standby.data)
        where = ("-h", primary.host, "-p", "5432", "-U", SUPERUSER, "-D", str(standby.data))
        primary.program("pg_basebackup", *where, "-R", "-X", "stream", "-c", "fast", "--no-sync")
        standby.start()
        yield standby
    finally:
        standby.end()
        shutil.rmtree(home, ignore_errors=True)


@contextmanager
def on_a_small_disk(directory: Path, megabytes: int) -> Iterator[Path]:
    """Put a directory of a server that does not run on a small disk of its own."""
    aside = directory.with_name(f"{directory.name}.aside")
    directory.rename(aside)
    facts = aside.stat()
    directory.mkdir(mode=0o700)
    options = f"size={megabytes}m,uid={facts.st_uid},gid={facts.st_gid},mode=0700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(directory)], check=True)
    try:
        subprocess.run(["cp", "-a", f"{aside}/.", str(directory)], check=True)
        shutil.rmtree(aside)
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


def connected(dsn: str) -> psycopg.Connection[Any]:
    """Connect to a server that may still be recovering."""

    def connect() -> list[psycopg.Connection[Any]]:
        try:
            return [psycopg.connect(dsn, autocommit=True)]
        except psycopg.OperationalError:
            return []

    return until(connect, "the server to recover")[0]
