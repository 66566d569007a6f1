"""Python values as the text of Postgres parameters: exact, in one pass, and whatever the session's settings are.

Text is what the server reads fastest after what a driver would have to make one element at a time in Python: an array
of a column is joined in a few calls. Instants are written as ISO 8601 with their offset, bytes in hex.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from types import NoneType
from typing import Any, Final

__all__ = ["as_parameter"]


def as_parameter(value: object) -> bytes | None:
    """Encode a value, or a list of values of one type, as a parameter in text format.

    Raises:
        ValueError: a text holds NUL, or a lone surrogate (UnicodeEncodeError): Postgres has no such text.
        TypeError: a value of a type that no statement here takes.
    """
    if value is None:
        return None
    encode = _ENCODERS.get(type(value)) or _encoder(_SCALARS, type(value))
    encoded: bytes = encode(value).encode()
    if 0 in encoded:
        raise ValueError("a parameter must not hold NUL: Postgres has no such text")
    return encoded


def _array(values: Sequence[object]) -> str:
    kind = next((type(value) for value in values if value is not None), NoneType)
    if issubclass(kind, str) and None not in values:
        joined = '","'.join(values)  # type: ignore[arg-type]
        if "\\" not in joined and joined.count('"') == 2 * (len(values) - 1):
            return '{"' + joined + '"}'  # as nearly always: nothing in it needs an escape
    element = _encoder(_ELEMENTS, kind)
    if None in values:
        return "{" + ",".join(["NULL" if value is None else element(value) for value in values]) + "}"
    return "{" + ",".join([element(value) for value in values]) + "}"


def _bytes(value: bytes) -> str:
    return "\\x" + value.hex()


def _quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


_SCALARS: Final[Mapping[type, Callable[[Any], str]]] = {
    str: str,
    bool: str,
    int: str,
    float: repr,
    datetime: datetime.isoformat,
    date: date.isoformat,
    bytes: _bytes,
}

_ENCODERS: Final[Mapping[type, Callable[[Any], str]]] = {**_SCALARS, list: _array}

_ELEMENTS: Final[Mapping[type, Callable[[Any], str]]] = {
    **_SCALARS,  # none of which an array would have to quote, but for these
    str: _quoted,
    bytes: lambda value: '"\\\\x' + value.hex() + '"',
    NoneType: str,
}


def _encoder(encoders: Mapping[type, Callable[[Any], str]], kind: type) -> Callable[[Any], str]:
    encode = encoders.get(kind) or next((encoders[base] for base in kind.__mro__ if base in encoders), None)
    if encode is None:
        raise TypeError(f"no parameter can be a {kind.__name__}")
    return encode
