"""Between event objects and the JSON text that is stored: type names, schema versions, upcasters.

Event objects are frozen pydantic models. A model's fields become the keys of one JSON object; a None is left out.
"""

import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from types import MappingProxyType
from typing import Any, Generic, TypeAlias, TypeVar

import orjson
from pydantic import BaseModel, JsonValue

from eventstore.errors import InvalidEvent, UnknownEventType, UpcastFailed
from eventstore.event import NewEvent, StreamEvent, check_instant

__all__ = [
    "MAX_JSON_BYTES",
    "MAX_JSON_DEPTH",
    "EventCodec",
    "EventType",
    "Upcaster",
    "encode_json",
    "json_text",
    "object_of",
]

MAX_JSON_DEPTH = 64
"""How deep arrays and objects of a free JSON value may nest."""

MAX_JSON_BYTES = 64 * 1024
"""How long a free JSON value may be, in bytes of its UTF-8 text."""

_MIN_INTEGER, _MAX_INTEGER = -(2**63), 2**64 - 1
_LEAVES = (str, bool, type(None))

E = TypeVar("E", bound=BaseModel)

Upcaster: TypeAlias = Callable[[dict[str, Any]], dict[str, Any]]
"""A pure function from the decoded JSON of one schema version to that of the next."""


def encode_json(value: object) -> str:
    """Encode a value as JSON text: no white space, instants as RFC 3339 with Z, models as objects without their Nones.

    Raises:
        TypeError: a value, or a text with lone surrogates, that JSON cannot hold.
    """
    kind: Any = type(value)
    plain = _model_fields(value) if _is_model(kind) else value
    return orjson.dumps(plain, default=_model_fields, option=orjson.OPT_UTC_Z).decode()


@cache
def _is_model(kind: Hashable) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _model_fields(value: object) -> object:
    kind: Any = type(value)
    if _is_model(kind):
        return {name: field for name, field in vars(value).items() if field is not None}
    if isinstance(value, datetime):  # of a class derived from it, as a clock in a test may give
        return check_instant("instant", value)
    raise TypeError(f"JSON cannot hold a {type(value).__name__}")


def json_text(field: str, value: JsonValue) -> str:
    """Encode a free JSON value that reads back equal, for ever.

    Raises:
        InvalidEvent: it holds a NaN or an infinity, an integer outside -2**63..2**64-1, a key that is no text, lone
            surrogates or a type that JSON has not; it nests deeper than 64; its text is longer than 64 KiB. The error
            names `field`.
    """
    _check_values(field, value)
    try:
        text = encode_json(value)
    except TypeError as error:
        raise InvalidEvent(field, f"must be JSON: {error}") from None
    if len(text) * 4 > MAX_JSON_BYTES and (size := len(text.encode())) > MAX_JSON_BYTES:
        raise InvalidEvent(field, f"must be at most {MAX_JSON_BYTES} bytes of JSON, not {size}")
    return text


def object_of(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    """Make an object of its names and values, as `json.loads` reads them (its `object_pairs_hook`).

    Raises:
        ValueError: a key is named twice, of which one would be lost.
    """
    value = dict(pairs)
    if len(value) != len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"an object names {twice!r} twice")
    return value


def _check_values(field: str, value: object) -> None:
    pending, seen = [(value, 0)], 1
    while pending:
        item, depth = pending.pop()
        if isinstance(item, _LEAVES):
            continue
        if isinstance(item, dict | list):
            if depth == MAX_JSON_DEPTH:
                raise InvalidEvent(field, f"must not nest deeper than {MAX_JSON_DEPTH}")
            seen += len(item)
            if seen > MAX_JSON_BYTES:  # before it is walked: what holds one list many times over may be endless
                raise InvalidEvent(field, f"must be at most {MAX_JSON_BYTES} bytes of JSON")
            pending += [(inner, depth + 1) for inner in (item.values() if isinstance(item, dict) else item)]
        else:
            _check_number(field, item)


def _check_number(field: str, item: object) -> None:
    if isinstance(item, int):
        if not _MIN_INTEGER <= item <= _MAX_INTEGER:
            raise InvalidEvent(field, "must not hold integers outside 64 bits; send such a number as text")
    elif isinstance(item, float):
        if not math.isfinite(item):
            raise InvalidEvent(field, f"must not hold {item}: JSON has no such number")
    else:
        raise InvalidEvent(field, f"must be JSON (dict, list, str, int, float, bool, None), not {type(item).__name__}")


@dataclass(frozen=True, slots=True)
class EventType(Generic[E]):
    """A type of event: its name in the log, its model, and the schema version that is written now."""

    name: str
    model: type[E]
    schema_version: int = 1


class EventCodec(Generic[E]):
    """Encodes and decodes the events of one domain.

    `upcasters` maps (type name, schema version n) to the function from version n to n + 1. The stored event never
    changes; it is brought up to date each time it is decoded.

    Raises:
        ValueError: a type is given twice, or an old schema version has no upcaster.
    """

    def __init__(
        self,
        *types: EventType[E],
        upcasters: Mapping[tuple[str, int], Upcaster] = MappingProxyType({}),
    ) -> None:
        self._by_name = {event_type.name: event_type for event_type in types}
        self._by_model = {event_type.model: event_type for event_type in types}
        self._upcasters = dict(upcasters)
        if not len(self._by_name) == len(self._by_model) == len(types):
            raise ValueError("every event type needs a name and a model of its own")
        for event_type in types:
            for version in range(1, event_type.schema_version):
                if (event_type.name, version) not in self._upcasters:
                    raise ValueError(f"no upcaster for {event_type.name!r}, schema version {version}")

    @property
    def type_names(self) -> tuple[str, ...]:
        """The names of its types, as they were given."""
        return tuple(self._by_name)

    def current_version(self, type_name: str) -> int | None:
        """Tell the schema version in force of a type, which older events are upcast to; None: no type has this name."""
        event_type = self._by_name.get(type_name)
        return None if event_type is None else event_type.schema_version

    def encode(self, event: E, occurred_at: datetime, metadata: str) -> NewEvent:
        """Make a new event of an event object.

        Raises:
            KeyError: the object's model is no type of this codec.
            InvalidEvent: the event could not be stored.
        """
        event_type = self._by_model[type(event)]
        return NewEvent(event_type.name, encode_json(event), metadata, occurred_at, event_type.schema_version)

    def decode(self, event: StreamEvent) -> E:
        """Read a stored event as an object of the schema version in force.

        Raises:
            UnknownEventType: no type of this codec has its name, or its schema version is from the future.
            UpcastFailed: an upcaster raised, or what the last one made is not what the model says.
            pydantic.ValidationError: its data, of the schema version in force, is not what the model says.
        """
        event_type = self._by_name.get(event.type)
        if event_type is None or event.schema_version > event_type.schema_version:
            raise UnknownEventType(event.type, event.schema_version)
        if event.schema_version == event_type.schema_version:
            return event_type.model.model_validate_json(event.data)
        data = orjson.loads(event.data)
        try:
            for version in range(event.schema_version, event_type.schema_version):
                data = self._upcasters[event.type, version](data)
            return event_type.model.model_validate(data)
        except Exception as error:
            versions = (event.schema_version, event_type.schema_version)
            raise UpcastFailed(event.stream_id, event.version, event.type, versions, error) from error
