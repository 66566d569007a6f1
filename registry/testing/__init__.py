"""For tests of what is built on the registry, and of registries; needs Hypothesis, which comes with `[testing]`.

    def test_mine():
        check_registry(MyRegistry)
        check_concurrent_calls(MyRegistry)

docs/testing-your-registry.md has the rest.
"""

import projections.testing  # noqa: F401 - says what to install where Hypothesis is missing
from registry.testing.checking import SETTINGS, check_registry
from registry.testing.concurrency import check_concurrent_calls
from registry.testing.histories import HistoryError, check_history, exported, log_of
from registry.testing.linearizability import Logged
from registry.testing.logs import command_logs
from registry.testing.machine import CommandRegistryMachine
from registry.testing.model import Status
from registry.testing.observing import folded
from registry.testing.play import ContractBroken
from registry.testing.recording import Operation, Recorder
from registry.testing.strategies import (
    PlannedCall,
    command_names,
    deadlines,
    deployment_ids,
    errors,
    events,
    hostile_deadlines,
    hostile_errors,
    hostile_names,
    hostile_sizes,
    hostile_states,
    lifecycles,
    request_sizes,
)

__all__ = [
    "SETTINGS",
    "CommandRegistryMachine",
    "ContractBroken",
    "HistoryError",
    "Logged",
    "Operation",
    "PlannedCall",
    "Recorder",
    "Status",
    "check_concurrent_calls",
    "check_history",
    "check_registry",
    "command_logs",
    "command_names",
    "deadlines",
    "deployment_ids",
    "errors",
    "events",
    "exported",
    "folded",
    "hostile_deadlines",
    "hostile_errors",
    "hostile_names",
    "hostile_sizes",
    "hostile_states",
    "lifecycles",
    "log_of",
    "request_sizes",
]
