"""The fixtures for other people's tests, run as they run them: by pytest, in a directory of theirs."""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.conftest import Databases

TESTS = """
import asyncio
import pytest
from registry import DeploymentModel, FixedDeployments

made = []

@pytest.mark.parametrize("turn", range(2))
def test_each_test_has_an_empty_database_of_its_own(command_registry, turn):
    assert list(command_registry.export()) == []
    made.append(command_registry.create_command("dep_eu1", "sync-data").command_id)
    assert command_registry.verify().events == 1

def test_what_another_test_has_made_is_not_there(command_registry):
    assert [command_registry.get_command_status(each) for each in made] == [None, None]

def test_of_asyncio(async_command_registry):
    async def life():
        async with async_command_registry as registry:
            created = await registry.create_command("dep_eu1", "sync-data")
            return await registry.increment_attempt(created.command_id)
    assert asyncio.run(life()) == 2

@pytest.mark.command_registry(deployments=FixedDeployments(DeploymentModel.PUSH), timeout=5)
def test_the_marker_gives_settings(command_registry):
    assert command_registry.create_command("dep_eu1", "sync-data").delivery_mode == "push"
"""


def run(tmp_path: Path, *options: str, tests: str = TESTS, **environment: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "test_theirs.py").write_text(tests)
    others = {name: value for name, value in os.environ.items() if not name.startswith(("COMMAND_REGISTRY", "PYTEST"))}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--strict-markers", "-p", "no:cacheprovider", *options],
        cwd=tmp_path,
        env=others | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def databases_of(databases: Databases) -> set[str]:
    import psycopg

    with psycopg.connect(databases.server_dsn, autocommit=True) as connection:
        return {name for (name,) in connection.execute("SELECT datname FROM pg_database WHERE datname LIKE 'test_%'")}


def test_the_fixtures_give_registries_on_an_embedded_postgres(tmp_path: Path) -> None:
    before = set(Path(tempfile.gettempdir()).glob("crp-*"))
    done = run(tmp_path)
    assert "5 passed" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0
    assert set(Path(tempfile.gettempdir()).glob("crp-*")) <= before


@pytest.mark.parametrize("how", ["option", "environment", "workers"])
def test_or_on_the_server_that_is_named(tmp_path: Path, databases: Databases, how: str) -> None:
    dsn = databases.server_dsn
    if how == "environment":
        done = run(tmp_path, COMMAND_REGISTRY_TEST_DSN=dsn)
    else:
        done = run(
            tmp_path, "--command-registry-dsn", dsn, *(["-n", "2", "--dist", "loadfile"] if how == "workers" else [])
        )
    assert "5 passed" in done.stdout, done.stdout + done.stderr


def test_a_server_that_is_not_there_is_an_error_that_says_so(tmp_path: Path) -> None:
    done = run(tmp_path, "--command-registry-dsn", "host=/nowhere dbname=postgres")
    assert "/nowhere" in done.stdout
    assert done.returncode == 1


def test_help_tells_of_the_option_and_the_marker(tmp_path: Path) -> None:
    told = re.sub(r"\s+", " ", run(tmp_path, "--help").stdout)
    assert "--command-registry-dsn" in told
    assert "command_registry(**settings)" in re.sub(r"\s+", " ", run(tmp_path, "--markers").stdout)


UNASKED = """
import sys

def test_nothing_of_the_registry_is_imported_unless_a_test_asks_for_it():
    assert not {name.split(".")[0] for name in sys.modules} & {"eventstore", "projections", "registry", "psycopg"}
"""


def test_who_does_not_use_it_does_not_notice_it(tmp_path: Path) -> None:
    done = run(tmp_path, tests=UNASKED)
    assert "1 passed" in done.stdout, done.stdout
