"""Servers of a test's own, for the faults that only those can be given."""

from collections.abc import Iterator

import pytest

from tests.faults.servers import Homes, Servers, homes, servers_of_their_own


@pytest.fixture(scope="session")
def server_homes() -> Iterator[Homes]:
    """Where the servers are."""
    with homes() as made:
        yield made


@pytest.fixture
def own_servers(server_homes: Homes) -> Iterator[Servers]:
    """Makes servers whose acknowledged commits outlive a crash, and that end with the test."""
    with servers_of_their_own(server_homes) as make:
        yield make
