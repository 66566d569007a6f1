"""Users: the first one starts the server, the last one stops it, and none can hold up the others."""

import signal
from pathlib import Path

import pytest

from registry.embedded import start
from registry.errors import EmbeddedPostgresError
from tests.test_embedded.servers import SETTINGS, User, ask, processes_of, server_of


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
