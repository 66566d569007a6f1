"""A registry on a real Postgres for tests under pytest; loaded by itself where the package is installed.

    def test_mine(command_registry):
        created = command_registry.create_command("dep_eu1", "sync-data")

Each test gets a database of its own. The Postgres is the embedded one, started on demand for this run of the tests (by
all workers of pytest-xdist together) and stopped at its end; or that of `--command-registry-dsn`. Nothing of the
registry is imported unless a test asks for it.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import pytest

if TYPE_CHECKING:
    from registry import AsyncPostgresCommandRegistry, PostgresCommandRegistry
    from registry.testing.databases import Databases

__all__ = ["async_command_registry", "command_registry", "command_registry_databases"]

_DSN: Final = "COMMAND_REGISTRY_TEST_DSN"
_HOME: Final = pytest.StashKey[Path]()
_INPUT: Final = "command_registry_home"
_MARKER: Final = (
    "command_registry(**settings): open the registry of command_registry or async_command_registry with these settings "
    "of its class, such as deployments=, timeout=, clock= or pool_size="
)
# Nobody's data: a crash of the machine may lose it.
_SETTINGS: Final = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option for a server to test on."""
    parser.getgroup("command-registry").addoption(
        "--command-registry-dsn",
        metavar="DSN",
        default=os.environ.get(_DSN),
        help="Postgres to make the databases of the fixtures on, by a user who may create databases and roles "
        f"(default: ${_DSN}, or else an embedded Postgres of this run's own)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Describe the marker, and choose where an embedded Postgres would be."""
    config.addinivalue_line("markers", _MARKER)
    given = getattr(config, "workerinput", {}).get(_INPUT)
    place = Path("/tmp")  # noqa: S108 - the path of a socket must be short
    place = place if place.is_dir() else Path(tempfile.gettempdir())
    config.stash[_HOME] = Path(given) if given else place / f"crp-{uuid4().hex[:12]}"


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the data of the embedded Postgres, if it was wanted; the last to use it has stopped it."""
    if not hasattr(config, "workerinput"):
        shutil.rmtree(config.stash[_HOME], ignore_errors=True)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:  # noqa: ANN401 - of pytest-xdist
    """Tell a worker where the embedded Postgres of all would be."""
    node.workerinput[_INPUT] = str(node.config.stash[_HOME])


@pytest.fixture(scope="session")
def command_registry_databases(request: pytest.FixtureRequest) -> Iterator["Databases"]:
    """Makes databases on the server of this run; see `registry.testing.databases`."""
    from registry import embedded
    from registry.testing.databases import Databases

    with ExitStack() as stack:
        dsn = request.config.getoption("--command-registry-dsn")
        if dsn is None:
            home = request.config.stash[_HOME]
            home.mkdir(mode=0o711, exist_ok=True)  # as root, the server runs under another account
            dsn = stack.enter_context(embedded.start(home / "postgres", settings=_SETTINGS)).dsn
        databases = Databases(dsn)
        stack.callback(databases.close)
        yield databases


def _settings(request: pytest.FixtureRequest) -> dict[str, Any]:
    marker = request.node.get_closest_marker("command_registry")
    return {} if marker is None else dict(marker.kwargs)


@pytest.fixture
def command_registry(
    request: pytest.FixtureRequest, command_registry_databases: "Databases"
) -> Iterator["PostgresCommandRegistry"]:
    """A registry for threads, open, in a database of its own."""
    from registry import PostgresCommandRegistry

    with (
        command_registry_databases.one() as dsn,
        PostgresCommandRegistry.open(dsn, **_settings(request)) as registry,
    ):
        yield registry


@pytest.fixture
def async_command_registry(
    request: pytest.FixtureRequest, command_registry_databases: "Databases"
) -> Iterator["AsyncPostgresCommandRegistry"]:
    """A registry for asyncio, in a database of its own; `async with` opens it, on whatever event loop the test has."""
    from registry import AsyncPostgresCommandRegistry

    with command_registry_databases.one() as dsn:
        yield AsyncPostgresCommandRegistry.open(dsn, **_settings(request))
