"""Homes: who may enter them, where their socket is, and which ones are refused."""

import socket
from pathlib import Path

import pytest

from registry.embedded import default_home, start
from registry.errors import EmbeddedPostgresError
from tests.test_embedded.servers import SETTINGS, User, as_root, ask, socket_dir


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
    assert default_home() == parent
    monkeypatch.setenv("COMMAND_REGISTRY_HOME", "")
    assert default_home().name == "command-registry"


@as_root
def test_root_never_opens_a_closed_directory_above_the_home(parent: Path) -> None:
    parent.chmod(0o700)
    with pytest.raises(EmbeddedPostgresError, match=rf"cannot enter {parent}: .*COMMAND_REGISTRY_HOME"):
        start(parent / "home")
    assert parent.stat().st_mode & 0o777 == 0o700
    assert not (parent / "home").exists()
