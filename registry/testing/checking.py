"""One line that proves a registry right, or shows the shortest calls that it answers wrongly."""

from collections.abc import Sequence
from typing import Final

import hypothesis
from hypothesis import HealthCheck, Phase
from hypothesis.errors import Flaky, FlakyFailure
from hypothesis.stateful import run_state_machine_as_test

from registry.testing.game import shortest
from registry.testing.implementation import Factory, opened
from registry.testing.machine import CommandRegistryMachine
from registry.testing.play import ContractBroken

__all__ = ["SETTINGS", "check_registry"]

SETTINGS: Final = hypothesis.settings(
    max_examples=100,
    stateful_step_count=30,
    deadline=None,  # a registry may be slow at times; what it answers is the question
    print_blob=True,
    report_multiple_bugs=False,  # one counterexample at a time is read
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # `shortest` leaves calls out in a hundredth of the time
    suppress_health_check=list(HealthCheck),
)
"""What `check_registry` goes by unless told otherwise: a hundred sequences of at most thirty calls."""


def check_registry(
    factory: Factory, *, settings: hypothesis.settings | None = None, deployments: Sequence[str] | None = None
) -> None:
    """Check that a registry gives every sequence of calls the answers of the contract.

    `factory`: makes a new, empty or shared registry for each sequence, for threads or for asyncio: a class, or a
    function that returns a registry, a context manager, or an awaitable of either. Calls that it does not have are not
    made. `settings`: of Hypothesis (default: `SETTINGS`). `deployments`: ids that its directory knows, if not every id
    will do.

    Raises:
        ContractBroken: an AssertionError, with the shortest sequence of calls that was found to be answered wrongly, as
            Python to paste and run.
        TypeError: what the factory makes is no registry.
    """
    last: list[CommandRegistryMachine] = []
    found: list[ContractBroken] = []

    class Machine(CommandRegistryMachine):
        def __init__(self) -> None:
            super().__init__()
            last[:] = [self]

        def teardown(self) -> None:
            found.extend(self.game.play.broken_by)
            super().teardown()

    Machine.factory, Machine.deployments = staticmethod(factory), deployments
    with opened(factory) as implementation:
        kind, missing = type(implementation.registry).__name__, implementation.missing()
    if missing:
        print(f"check_registry: {kind} has no {', '.join(missing)}: not checked")  # noqa: T201 - shown on a failure
    try:
        run_state_machine_as_test(Machine, settings=settings or SETTINGS)
    except ContractBroken as broken:
        raise shortest(factory, last[0].game.moves, broken) from broken.__cause__
    except (Flaky, FlakyFailure):
        if not found:
            raise
        found[0].add_note("It did not happen again: what this registry answers depends on more than its calls.")
        raise found[0] from None
