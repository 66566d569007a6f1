"""A real Postgres for the tests: one server for all worker processes, a fresh database for every test.

COMMAND_REGISTRY_TEST_DSN points the tests at another server instead, whose user may create databases and roles.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, settings

from registry import (
    AsyncMemoryCommandRegistry,
    AsyncPostgresCommandRegistry,
    CommandRegistry,
    DeploymentModel,
    FixedDeployments,
    MemoryCommandRegistry,
    PostgresCommandRegistry,
    embedded,
)
from registry.rpc.client import RpcCommandRegistry
from registry.testing.databases import Databases as Databases
from tests.pgbouncer import PgBouncer, needs_pgbouncer, pgbouncer
from tests.rpc_client import child_argv
from tests.synchronous import Synchronous

HOME = "COMMAND_REGISTRY_TEST_HOME"
DEBIAN_15 = Path("/usr/lib/postgresql/15/bin")

# Durability is not what these tests are about; the faults that need it start servers of their own.
SERVER_SETTINGS = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "max_connections": "300"}

settings.register_profile(
    "tests", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("tests")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "own_database: give this test a registry that no other test has used")
    config.addinivalue_line("markers", "every_postgres: run on each version of Postgres that is installed")
    if not hasattr(config, "workerinput"):
        home = Path(tempfile.mkdtemp(prefix="crt-", dir="/tmp"))
        home.chmod(0o711)  # as root, the server runs under another account, which must get through
        os.environ[HOME] = str(home)


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ.pop(HOME), ignore_errors=True)


IN_MEMORY = ["memory", "async_memory", "rpc_memory"]
ON_POSTGRES = ["postgres", "async_postgres", "rpc_postgres"]
POOLED = ["pooled_postgres", "async_pooled_postgres"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    every = metafunc.definition.get_closest_marker("every_postgres") is not None
    older = ["15"] if every and DEBIAN_15.exists() and "COMMAND_REGISTRY_TEST_DSN" not in os.environ else []
    if "open_registry" in metafunc.fixturenames:
        implementations = IN_MEMORY + ON_POSTGRES + [f"{name}@{version}" for version in older for name in ON_POSTGRES]
        pooled = [pytest.param(name, marks=needs_pgbouncer) for name in POOLED]
        metafunc.parametrize("open_registry", [*implementations, *pooled], indirect=True)
    elif "databases" in metafunc.fixturenames:
        metafunc.parametrize("databases", ["default", *older], indirect=True)


@contextmanager
def server(version: str) -> Iterator[str]:
    given = os.environ.get("COMMAND_REGISTRY_TEST_DSN")
    if given:
        yield given
        return
    bin_dir = DEBIAN_15 if version == "15" else None
    with embedded.start(Path(os.environ[HOME]) / version, bin_dir=bin_dir, settings=SERVER_SETTINGS) as started:
        yield started.dsn


@pytest.fixture(scope="session")
def servers() -> Iterator[Callable[[str], Databases]]:
    """Starts a server of a version when it is first asked for, and stops them all."""
    started: dict[str, Databases] = {}
    with ExitStack() as stack:

        def of_version(version: str) -> Databases:
            if version not in started:
                started[version] = Databases(stack.enter_context(server(version)))
                stack.callback(started[version].close)
            return started[version]

        yield of_version


Poolers = Callable[[Databases], PgBouncer]


@pytest.fixture(scope="session")
def poolers() -> Iterator[Poolers]:
    """Starts a PgBouncer before a server when it is first asked for, and ends them all."""
    started: dict[str, PgBouncer] = {}
    with ExitStack() as stack:

        def before(databases: Databases) -> PgBouncer:
            server_dsn = databases.server_dsn
            if server_dsn not in started:
                started[server_dsn] = stack.enter_context(pgbouncer(server_dsn))
            return started[server_dsn]

        yield before


@pytest.fixture
def databases(request: pytest.FixtureRequest, servers: Callable[[str], Databases]) -> Databases:
    """The server to make databases on."""
    return servers(getattr(request, "param", "default"))


@pytest.fixture
def empty_dsn(databases: Databases) -> Iterator[str]:
    """A database of its own, with nothing in it."""
    name = databases.create()
    yield databases.dsn(name)
    databases.drop(name)


@pytest.fixture
def dsn(databases: Databases) -> Iterator[str]:
    """A database of its own, migrated."""
    name = databases.migrated()
    yield databases.dsn(name)
    databases.drop(name)


@pytest.fixture
def connection(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """A superuser's connection to the database of `dsn`, in autocommit."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        yield connection


Open = Callable[[str], CommandRegistry]
"""Opens a registry of one implementation, for deployments of one model ("pull" or "push")."""


def _implementation(name: str, dsn: str | None) -> Callable[[str], Any]:
    def fixed(model: str) -> FixedDeployments:
        return FixedDeployments(DeploymentModel(model))

    match name:
        case "memory":
            return lambda model: MemoryCommandRegistry(fixed(model))
        case "async_memory":
            return lambda model: Synchronous(AsyncMemoryCommandRegistry(fixed(model)))
        case "postgres":
            return lambda model: PostgresCommandRegistry.open(dsn, deployments=fixed(model))
        case "async_postgres":
            return lambda model: Synchronous(AsyncPostgresCommandRegistry.open(dsn, deployments=fixed(model)))
        case "pooled_postgres":
            return lambda model: PostgresCommandRegistry.open(dsn, deployments=fixed(model), pooler="transaction")
        case "async_pooled_postgres":
            return lambda model: Synchronous(
                AsyncPostgresCommandRegistry.open(dsn, deployments=fixed(model), pooler="transaction")
            )
        case "rpc_memory":
            return lambda model: RpcCommandRegistry(
                child_argv(deployment_model=model, memory=True, dsn=None, deployments_table=False)
            )
        case _:
            return lambda model: RpcCommandRegistry(
                child_argv(deployment_model=model, memory=False, dsn=dsn, deployments_table=False)
            )


class Registries:
    """Opens registries of one implementation, each once for its database and model, and closes them together."""

    def __init__(self, name: str, databases: Databases | None, pooler: PgBouncer | None) -> None:
        self._databases = databases
        self._database = databases.migrated() if databases else None
        dsn = databases.dsn(self._database) if databases and self._database else None
        self._implementation = _implementation(name, pooler.dsn(dsn) if pooler and dsn else dsn)
        self._opened: dict[str, Any] = {}

    def open(self, model: str) -> CommandRegistry:
        if model not in self._opened:
            self._opened[model] = self._implementation(model)
        return self._opened[model]  # type: ignore[no-any-return]

    def close(self) -> None:
        for registry in self._opened.values():
            if hasattr(registry, "close"):
                registry.close()
        if self._databases and self._database:
            self._databases.drop(self._database)


@pytest.fixture(scope="session")
def shared_registries(servers: Callable[[str], Databases], poolers: Poolers) -> Iterator[Callable[[str], Registries]]:
    """Registries that many tests share: each test works on commands of its own."""
    opened: dict[str, Registries] = {}
    with ExitStack() as stack:

        def of_implementation(param: str) -> Registries:
            if param not in opened:
                opened[param] = _registries(param, servers, poolers)
                stack.callback(opened[param].close)
            return opened[param]

        yield of_implementation


def _registries(param: str, servers: Callable[[str], Databases], poolers: Poolers) -> Registries:
    name, _, version = param.partition("@")
    databases = servers(version or "default") if name in ON_POSTGRES + POOLED else None
    return Registries(name, databases, poolers(databases) if databases and name in POOLED else None)


@pytest.fixture
def open_registry(
    request: pytest.FixtureRequest,
    servers: Callable[[str], Databases],
    poolers: Poolers,
    shared_registries: Callable[[str], Registries],
) -> Iterator[Open]:
    """Opens registries of every implementation in turn; with the mark own_database, ones that no other test used."""
    if request.node.get_closest_marker("own_database") is None:
        yield shared_registries(request.param).open
        return
    own = _registries(request.param, servers, poolers)
    yield own.open
    own.close()


@pytest.fixture
def registry(open_registry: Open) -> CommandRegistry:
    """A registry of every implementation in turn."""
    return open_registry("pull")
