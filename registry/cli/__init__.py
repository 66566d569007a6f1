"""The command line: `command-registry`."""

import sys
from typing import NoReturn

__all__ = ["main"]


def main() -> NoReturn:
    """Run the command line, and exit with its status."""
    try:
        from registry.cli.app import app
    except KeyboardInterrupt:
        sys.exit(130)
    app(prog_name="command-registry")
    sys.exit(0)
