"""The methods that can be called: those of `AsyncCommandRegistry`, read from the protocol itself."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType, NoneType
from typing import Final, get_args, get_type_hints

from pydantic import JsonValue

from registry.errors import InvalidCommand
from registry.models import EventContext, accept
from registry.protocol import AsyncCommandRegistry
from registry.rpc.messages import INVALID_PARAMS, Params, RpcError

__all__ = ["METHODS", "Method"]

_NOT_OVER_A_PIPE: Final = {"self", "connection"}


@dataclass(frozen=True, slots=True)
class Method:
    """A call of the registry: its parameters in Python's order, and how each is read from JSON."""

    name: str
    positional: tuple[str, ...]
    required: frozenset[str]
    readers: Mapping[str, Callable[[str, JsonValue], object]]

    def arguments(self, params: Params) -> dict[str, object]:
        """Read the arguments of a call; the registry itself checks what they mean.

        Raises:
            RpcError: a parameter is unknown, missing or one too many.
            InvalidCommand: an argument is of the wrong type.
        """
        named = self._named(params) if isinstance(params, list) else params
        unknown = next((name for name in named if name not in self.readers), None)
        if unknown is not None:
            raise RpcError(
                INVALID_PARAMS, f"{self.name} takes {', '.join(self.readers)}, not {unknown!r}", {"parameter": unknown}
            )
        missing = next((name for name in self.readers if name in self.required and name not in named), None)
        if missing is not None:
            raise RpcError(INVALID_PARAMS, f"{self.name} needs {missing!r}", {"parameter": missing})
        # A null for what may be left out is as if it were.
        given = {name: value for name, value in named.items() if value is not None or name in self.required}
        return {name: self.readers[name](name, value) for name, value in given.items()}

    def _named(self, params: list[JsonValue]) -> dict[str, JsonValue]:
        if len(params) > len(self.positional):
            raise RpcError(
                INVALID_PARAMS, f"{self.name} takes at most {len(self.positional)} by position, not {len(params)}"
            )
        return dict(zip(self.positional, params, strict=False))


def _as_given(name: str, value: JsonValue) -> object:  # noqa: ARG001
    return value


def _text(name: str, value: JsonValue) -> object:
    if not isinstance(value, str):
        raise InvalidCommand(name, f"must be text, not {_json_type(value)}")
    return value


def _optional_text(name: str, value: JsonValue) -> object:
    return None if value is None else _text(name, value)


def _context(name: str, value: JsonValue) -> object:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise InvalidCommand(name, f"must be an object, not {_json_type(value)}")
    unknown = next((key for key in value if key not in EventContext.model_fields), None)
    if unknown is not None:
        raise InvalidCommand(f"{name}.{unknown}", f"is not one of {', '.join(EventContext.model_fields)}")
    try:
        return accept(EventContext, **value)
    except InvalidCommand as error:
        raise InvalidCommand(f"{name}.{error.field}", error.problem) from None


def _json_type(value: JsonValue) -> str:
    names = {
        NoneType: "null",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        list: "an array",
        dict: "an object",
    }
    return names.get(type(value), "text")


_READERS: Final[Mapping[object, Callable[[str, JsonValue], object]]] = MappingProxyType(
    {frozenset({str}): _text, frozenset({str, NoneType}): _optional_text, frozenset({EventContext, NoneType}): _context}
)


def _reader(annotation: object) -> Callable[[str, JsonValue], object]:
    return _READERS.get(frozenset(get_args(annotation) or {annotation}), _as_given)


def _method(name: str, call: Callable[..., object]) -> Method:
    parameters = [p for p in inspect.signature(call).parameters.values() if p.name not in _NOT_OVER_A_PIPE]
    annotations = get_type_hints(call)
    return Method(
        name,
        tuple(p.name for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD),
        frozenset(p.name for p in parameters if p.default is inspect.Parameter.empty),
        {p.name: _reader(annotations[p.name]) for p in parameters},
    )


METHODS: Final[Mapping[str, Method]] = MappingProxyType(
    {
        name: _method(name, call)
        for name, call in vars(AsyncCommandRegistry).items()
        if inspect.iscoroutinefunction(call)
    }
)
"""Every method, by name."""
