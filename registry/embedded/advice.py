"""What an error says to do instead: each one ends with one of these."""

from typing import Final

__all__ = ["ANOTHER_HOME", "OWN_POSTGRES"]

OWN_POSTGRES: Final = 'use a Postgres of your own: --dsn, COMMAND_REGISTRY_DSN, or open("postgresql://...")'
ANOTHER_HOME: Final = f"set COMMAND_REGISTRY_HOME to another directory, or {OWN_POSTGRES}"
