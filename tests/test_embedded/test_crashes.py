"""What is killed or interrupted, be it a server or who starts it, leaves nothing in the way of the next start."""

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import psycopg
import pytest

from registry.embedded import processes, start
from registry.embedded.accounts import server_account
from registry.embedded.processes import Account
from tests.test_embedded.servers import SETTINGS, User, ask, processes_of, server_of, tell
from tests.waiting import until


def test_a_killed_server_recovers_with_everything_committed(home: Path) -> None:
    lost = start(home, settings=SETTINGS)
    tell(lost.dsn, "CREATE TABLE kept AS SELECT 42 AS answer")
    server = server_of(home)
    os.kill(server, signal.SIGKILL)
    until(lambda: server not in processes_of(home))
    with start(home, settings=SETTINGS) as postgres:
        assert server_of(home) != server
        assert ask(postgres.dsn, "SELECT answer FROM kept") == 42
        lost.close()
        assert ask(postgres.dsn, "SELECT 1") == 1
    assert processes_of(home) == []


def test_a_busy_session_that_outlives_a_killed_server_is_waited_for(home: Path) -> None:
    with start(home, settings=SETTINGS) as postgres, contextlib.closing(psycopg.connect(postgres.dsn)) as busy:
        busy.pgconn.send_query(b"SELECT count(*) FROM generate_series(1, 5000000)")
        until(lambda: ask(postgres.dsn, "SELECT count(*) FROM pg_stat_activity WHERE state = 'active'") == 2)
        os.kill(server_of(home), signal.SIGKILL)
        with start(home, settings=SETTINGS) as again:
            assert ask(again.dsn, "SELECT 1") == 1
    assert "is still in use" in (home / "server.log").read_text()


def test_a_pid_file_whose_process_is_another_program_now_does_not_keep_it_from_starting(home: Path) -> None:
    with tempfile.TemporaryFile() as output:
        other = processes.spawn(["sleep", "60"], server_account(), output)
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
        until(lambda: any(fresh.glob(moment)))
        assert "KeyboardInterrupt" in user.signal(signal.SIGINT)
    assert processes_of(fresh) == []
    assert not any(fresh.glob(".data.*"))
    with start(fresh, settings=SETTINGS) as postgres:
        assert ask(postgres.dsn, "SELECT 1") == 1


def test_ctrl_c_while_a_program_is_spawned_does_not_lose_sight_of_it(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spawn = processes.spawn

    def interrupted(command: Sequence[str], account: Account | None, output: IO[bytes]) -> subprocess.Popen[bytes]:
        process = spawn(command, account, output)
        if "start" in command:
            signal.raise_signal(signal.SIGINT)
        return process

    monkeypatch.setattr(processes, "spawn", interrupted)
    with pytest.raises(KeyboardInterrupt):
        start(home, settings=SETTINGS)
    assert processes_of(home) == []


def test_a_kill_during_initdb_leaves_no_half_made_cluster(fresh: Path) -> None:
    with User(fresh) as user:
        until(lambda: any(fresh.glob(".data.*/PG_VERSION")))
        user.signal(signal.SIGKILL)
    assert not (fresh / "data").exists()
    until(lambda: not processes_of(fresh))  # initdb comes to its end
    with start(fresh, settings=SETTINGS) as postgres:
        assert ask(postgres.dsn, "SELECT 1") == 1
    assert not any(fresh.glob(".data.*"))
