"""The messages of JSON-RPC 2.0: reading a line, checking a request, writing an answer."""

import json
import math
from dataclasses import dataclass
from typing import Final, TypeAlias

import orjson
from pydantic import BaseModel, JsonValue

from eventstore.codec import object_of

__all__ = [
    "INTERNAL_ERROR",
    "INVALID_PARAMS",
    "INVALID_REQUEST",
    "METHOD_NOT_FOUND",
    "PARSE_ERROR",
    "Id",
    "Params",
    "Request",
    "RpcError",
    "error_answer",
    "joined",
    "parse",
    "read_id",
    "read_request",
    "result_answer",
]

Id: TypeAlias = str | int | float | None
Params: TypeAlias = dict[str, JsonValue] | list[JsonValue]

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
INTERNAL_ERROR: Final = -32603

_NAMES: Final = {
    PARSE_ERROR: "Parse error",
    INVALID_REQUEST: "Invalid Request",
    METHOD_NOT_FOUND: "Method not found",
    INVALID_PARAMS: "Invalid params",
    INTERNAL_ERROR: "Internal error",
}

_ENOUGH_DIGITS: Final = 1_000
"""Nothing takes integers of so many digits: to be refused, they need not be read to their end."""


class RpcError(Exception):
    """An error as the answer carries it: a code, a message (the code's name and the problem), and facts."""

    def __init__(self, code: int, problem: str = "", data: dict[str, JsonValue] | None = None) -> None:
        self.code = code
        self.message = ": ".join(part for part in (_NAMES.get(code), problem) if part)
        self.data = data
        super().__init__(self.message)


@dataclass(frozen=True, slots=True)
class Request:
    """One call; a notification is not answered."""

    id: Id
    is_notification: bool
    method: str
    params: Params


def parse(line: bytes) -> JsonValue:
    """Read a line.

    The standard library reads it because its integers are exact, and it tells of every key, also one named twice.

    Raises:
        RpcError: it is not one JSON text in UTF-8, or nests too deep, or an object names a key twice.
    """
    try:
        text = line.decode()
        value: JsonValue = json.loads(
            text, parse_int=_integer, parse_constant=_no_constant, object_pairs_hook=object_of
        )
    except UnicodeDecodeError as error:
        raise RpcError(PARSE_ERROR, f"not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise RpcError(PARSE_ERROR, f"{error.msg} at character {error.pos}") from None
    except ValueError as error:  # of object_of
        raise RpcError(PARSE_ERROR, str(error)) from None
    except RecursionError:
        raise RpcError(PARSE_ERROR, "nested too deep") from None
    return value


def _integer(digits: str) -> int:
    return int(digits[:_ENOUGH_DIGITS])


def _no_constant(name: str) -> float:
    raise RpcError(PARSE_ERROR, f"{name} is no JSON")


def read_id(message: JsonValue) -> Id:
    """Return the id of what may be no request; None when it has none that an answer could carry."""
    value = message.get("id") if isinstance(message, dict) else None
    return value if _can_be_id(value) else None  # type: ignore[return-value]


def _can_be_id(value: JsonValue) -> bool:
    match value:
        case None:
            return True
        case bool():
            return False
        case int():
            return -(2**63) <= value < 2**64
        case float():
            return math.isfinite(value)
        case str():
            return _printable(value) == value
        case _:
            return False


def read_request(message: JsonValue) -> Request:
    """Check one request.

    Raises:
        RpcError: it is none.
    """
    if not isinstance(message, dict):
        raise RpcError(INVALID_REQUEST, "must be an object")
    if message.get("jsonrpc") != "2.0":
        raise RpcError(INVALID_REQUEST, '"jsonrpc" must be "2.0"')
    if not _can_be_id(message.get("id")):
        raise RpcError(INVALID_REQUEST, '"id" must be a string, a number within 64 bits, or null')
    method = message.get("method")
    if not isinstance(method, str):
        raise RpcError(INVALID_REQUEST, '"method" must be a string')
    params = message.get("params", {})
    if not isinstance(params, dict | list):
        raise RpcError(INVALID_REQUEST, '"params" must be an object or an array')
    return Request(read_id(message), "id" not in message, method, params)


def result_answer(request_id: Id, result: object) -> bytes:
    """Write the answer of a request that went well."""
    return orjson.dumps({"jsonrpc": "2.0", "id": request_id, "result": result}, default=_model)


def error_answer(request_id: Id, error: RpcError) -> bytes:
    """Write the answer of a request that did not."""
    body: dict[str, JsonValue] = {"code": error.code, "message": _printable(error.message)}
    if error.data is not None:
        body["data"] = {name: _printable(fact) if isinstance(fact, str) else fact for name, fact in error.data.items()}
    return orjson.dumps({"jsonrpc": "2.0", "id": request_id, "error": body})


def joined(answers: list[bytes]) -> bytes:
    """Write the answer of a batch."""
    return b"[" + b",".join(answers) + b"]"


def _model(value: object) -> orjson.Fragment:
    if isinstance(value, BaseModel):
        return orjson.Fragment(value.model_dump_json())
    raise TypeError(f"no result is a {type(value).__name__}")


def _printable(text: str) -> str:
    """Lone surrogates, which are no text in UTF-8, are shown by their escapes."""
    return text.encode(errors="backslashreplace").decode()
