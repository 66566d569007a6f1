"""The command line: `command-registry`."""

import logging
import signal
import sys
from types import FrameType
from typing import Final, NoReturn

__all__ = ["main"]


_TERMINATED: Final = 128 + signal.SIGTERM


def main() -> NoReturn:
    """Run the command line, and exit with its status."""
    signal.signal(signal.SIGTERM, _leave)
    # What it would say of a connection is said by the error that follows.
    logging.getLogger("psycopg.pool").addHandler(logging.NullHandler())
    try:
        from registry.cli.app import app
    except KeyboardInterrupt:
        sys.exit(130)
    app(prog_name="command-registry")
    sys.exit(0)


def _leave(_signal: int, _frame: FrameType | None) -> NoReturn:
    """End as an interrupt does, so that connections are closed, and the embedded Postgres left as it should be."""
    sys.exit(_TERMINATED)
