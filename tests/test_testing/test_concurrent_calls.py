"""Many clients at once: right registries stand it, and of wrong ones it is shown which calls contradict each other."""

from pathlib import Path
from typing import Any

import pytest

from registry import AsyncMemoryCommandRegistry, CommandRegistry, MemoryCommandRegistry
from registry.testing import HistoryError, check_concurrent_calls
from registry.testing.recording import load
from tests.load import chosen_seed
from tests.test_lifecycle_machine import Shared
from tests.test_testing.racing import RACES
from tests.test_testing.somebodys import SomebodysAsyncRegistry, SomebodysLaterRegistry, SomebodysRegistry

RIGHT = [
    MemoryCommandRegistry,
    AsyncMemoryCommandRegistry,
    SomebodysRegistry,
    SomebodysLaterRegistry,
    SomebodysAsyncRegistry,
]


@pytest.mark.parametrize("factory", RIGHT)
def test_a_right_registry_of_any_kind_passes(factory: Any) -> None:
    check_concurrent_calls(factory)


@pytest.mark.own_database
def test_every_implementation_passes(registry: CommandRegistry) -> None:
    check_concurrent_calls(lambda: Shared(registry), seed=chosen_seed())


@pytest.mark.parametrize("race", RACES)
def test_every_race_is_found_within_the_default_settings(race: Any, tmp_path: Path) -> None:
    with pytest.raises(HistoryError, match="not linearizable") as failure:
        until_found(race, tmp_path / "kept")
    assert (tmp_path / "kept" / "timeline.svg").exists()
    assert load(tmp_path / "kept" / "history.jsonl")
    assert str(failure.value.contradictions[0].command_id) in (tmp_path / "kept" / "history.jsonl").read_text()


def until_found(race: Any, save_to: Path) -> None:
    for _ in range(3):  # threads take turns as they like
        check_concurrent_calls(race, save_to=save_to)
