"""How long the tests at random go on: for seconds in CI, for as long as one likes in `make soak`."""

import os
from typing import Final

__all__ = ["SOAK", "rounds"]

SOAK: Final = "COMMAND_REGISTRY_TEST_SOAK"


def rounds(usual: int, soak: int) -> int:
    """Say how many rounds to go: the usual number, or that of a soak."""
    return soak if os.environ.get(SOAK, "0") not in {"", "0"} else usual
