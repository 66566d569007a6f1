"""Any sequence of calls, on every implementation, gives the answers of the contract."""

from typing import Any

import pytest
from hypothesis import settings

from registry import CommandRegistry
from registry.testing import SETTINGS, check_registry
from tests.soak import rounds


class Shared:
    """A registry that nobody closes between one sequence and the next."""

    def __init__(self, registry: CommandRegistry) -> None:
        self._registry = registry

    def __getattr__(self, name: str) -> Any:
        return getattr(self._registry, name)


@pytest.mark.own_database
def test_any_sequence_of_calls_gives_the_answers_of_the_contract(registry: CommandRegistry) -> None:
    check_registry(lambda: Shared(registry), settings=settings(SETTINGS, max_examples=rounds(30, 300)))
    if hasattr(registry, "verify"):
        report = registry.verify()
        assert report.ok, report.problems
        assert report.events > 0
