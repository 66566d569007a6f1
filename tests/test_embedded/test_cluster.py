"""The cluster: what a first start makes, what a later one finds or refuses, and how it is reached."""

import asyncio
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from registry.embedded import start
from registry.errors import EmbeddedPostgresError
from tests.test_embedded.servers import SETTINGS, ask, processes_of, tell


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


def test_nothing_listens_on_tcp_whatever_the_settings(home: Path) -> None:
    with start(home, settings=SETTINGS | {"listen_addresses": "*"}) as postgres:
        assert ask(postgres.dsn, "SHOW listen_addresses") == ""
        assert (home / "data" / "postmaster.pid").read_text().split("\n")[5] == ""
        methods = "SELECT string_agg(DISTINCT auth_method, ' ') FROM pg_hba_file_rules WHERE type <> 'local'"
        assert ask(postgres.dsn, methods) == "reject"


def test_the_callers_pghostaddr_does_not_lead_away_from_the_socket(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask_async(dsn: str) -> object:
        async with await psycopg.AsyncConnection.connect(dsn) as connection:
            row = await (await connection.execute("SELECT inet_server_addr()")).fetchone()
            return row[0] if row else "nothing"

    with start(home, settings=SETTINGS):
        monkeypatch.setenv("PGHOSTADDR", "127.0.0.1")
        with start(home, start_timeout=1) as postgres:
            assert ask(postgres.dsn, "SELECT inet_server_addr()") is None
            assert ask(make_conninfo(postgres.dsn, dbname="postgres"), "SELECT inet_server_addr()") is None
            assert asyncio.run(ask_async(postgres.dsn)) is None


def test_data_of_another_major_version_is_refused_with_a_way_out(fresh: Path) -> None:
    (fresh / "data").mkdir(parents=True, mode=0o755)
    (fresh / "data" / "PG_VERSION").write_text("14\n")
    with pytest.raises(EmbeddedPostgresError, match=r"is of Postgres 14, .*pg_upgrade.*COMMAND_REGISTRY_HOME"):
        start(fresh)


def test_a_data_directory_without_data_is_refused(fresh: Path) -> None:
    (fresh / "data").mkdir(parents=True, mode=0o755)
    with pytest.raises(EmbeddedPostgresError, match="holds no Postgres data"):
        start(fresh)


def test_a_server_that_cannot_start_shows_its_log(home: Path) -> None:
    with pytest.raises(
        EmbeddedPostgresError, match=r'(?s)server\.log:.*unrecognized configuration parameter "nonsense"'
    ):
        start(home, settings={"nonsense": "1", "fsync": "off"})
    with start(home, settings=SETTINGS) as postgres:
        assert ask(postgres.dsn, "SELECT 1") == 1
