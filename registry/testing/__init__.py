"""For tests of what is built on the registry; needs Hypothesis, which comes with the extra `testing`."""

import projections.testing  # noqa: F401 - says what to install where Hypothesis is missing
from registry.testing.logs import command_logs

__all__ = ["command_logs"]
