"""What the registry and the event store raise, as errors of JSON-RPC: a code, whether to try again, and the facts."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from pydantic import JsonValue

from eventstore.errors import Conflict, OutcomeUnknown, Unavailable
from registry.errors import RegistryError
from registry.rpc.messages import RpcError

__all__ = ["DOMAIN_ERROR", "EXPECTED", "refusal"]

DOMAIN_ERROR: Final = -32000
"""The code of every error that is the registry's own; `data.code` tells which."""

EXPECTED: Final = (RegistryError, Conflict, Unavailable)
"""What a caller is told of; anything else is an internal error."""

_EVENT_STORE_CODES: Final[Mapping[type[Exception], str]] = MappingProxyType(
    {Conflict: "CONFLICT", Unavailable: "UNAVAILABLE", OutcomeUnknown: "OUTCOME_UNKNOWN"}
)
_RETRYABLE: Final = frozenset({"CONFLICT", "IDEMPOTENCY_CONFLICT", "UNAVAILABLE", "OUTCOME_UNKNOWN"})


def refusal(error: Exception) -> RpcError:
    """Make the answer's error of one of `EXPECTED`; its attributes are the facts."""
    code = error.code if isinstance(error, RegistryError) else _event_store_code(error)
    facts = {name: _fact(value) for name, value in vars(error).items() if not name.startswith("_")}
    return RpcError(DOMAIN_ERROR, str(error), {"code": code, "retryable": code in _RETRYABLE, **facts})


def _event_store_code(error: Exception) -> str:
    return next(_EVENT_STORE_CODES[kind] for kind in type(error).__mro__ if kind in _EVENT_STORE_CODES)


def _fact(value: object) -> JsonValue:
    if isinstance(value, bytes):
        return value.hex()
    return value if value is None or isinstance(value, int) else str(value)
