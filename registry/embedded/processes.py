"""Running programs, as ourselves or as another account, and looking at processes that run."""

import contextlib
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

__all__ = ["Account", "command_line", "exists", "run", "spawn"]


@dataclass(frozen=True, slots=True)
class Account:
    """A user and its group, for root to run programs as."""

    uid: int
    gid: int


def run(command: Sequence[str], account: Account | None, *, patience: float = 0.0) -> tuple[int, str]:
    """Run a program and give its exit status and what it wrote.

    It writes to a file, for the server inherits what pg_ctl writes to, and a pipe would never end. It has a session of
    its own, so that a Ctrl-C in the terminal reaches us alone; then it is given `patience` seconds to come to its end.

    Raises:
        OSError: there is no such program, or it may not be run as that account.
    """
    process = None
    with tempfile.TemporaryFile() as output:
        try:
            with _interrupt_put_off():
                process = spawn(command, account, output)
            status = process.wait()
        except BaseException:
            if process:
                _end(process, patience)
            raise
        output.seek(0)
        return status, output.read().decode(errors="replace")


def spawn(command: Sequence[str], account: Account | None, output: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own, with nothing of ours but `output`.

    Raises:
        OSError: as `run`.
    """
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


def exists(pid: int) -> bool:
    """Say whether a process, a zombie too, has this id."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def command_line(pid: int) -> str:
    """Give the command line of a process, empty for one that is gone or a zombie."""
    if Path("/proc/self").exists():
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="surrogateescape")
        except OSError:
            return ""
    return run(["/bin/ps", "-ww", "-o", "command=", "-p", str(pid)], None)[1]
