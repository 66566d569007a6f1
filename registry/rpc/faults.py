"""What the registry and the event store raise, as errors of JSON-RPC: a code, whether to try again, and the facts."""

from typing import Final

from pydantic import JsonValue

from eventstore.errors import Conflict, EventStoreError, Unavailable
from registry.errors import RegistryError
from registry.rpc.messages import RpcError

__all__ = ["DOMAIN_ERROR", "EXPECTED", "refusal"]

DOMAIN_ERROR: Final = -32000
"""The code of every error that is the registry's own; `data.code` tells which."""

EXPECTED: Final = (RegistryError, Conflict, Unavailable)
"""What a caller is told of; anything else is an internal error."""

_RETRYABLE: Final = frozenset({"CONFLICT", "IDEMPOTENCY_CONFLICT", "UNAVAILABLE", "OUTCOME_UNKNOWN"})


def refusal(error: RegistryError | EventStoreError) -> RpcError:
    """Make the answer's error of one of `EXPECTED`; its attributes are the facts."""
    facts = {name: _fact(value) for name, value in vars(error).items() if not name.startswith("_")}
    return RpcError(DOMAIN_ERROR, str(error), {"code": error.code, "retryable": error.code in _RETRYABLE, **facts})


def _fact(value: object) -> JsonValue:
    if isinstance(value, bytes):
        return value.hex()
    return value if value is None or isinstance(value, int) else str(value)
