"""The calls that led to a failure, as Python that can be pasted and run."""

import math
import re
import types
from collections.abc import Callable, Mapping
from datetime import datetime
from enum import Enum
from typing import Any, Final

__all__ = ["ANSWER", "Transcript", "source"]

_INDENT: Final = "    "

ANSWER: Final = "\x1a"
"""Stands for the answer of a call in a claim about it; no source of a value holds it."""


def source(value: object) -> str:
    """Write a value as the Python that makes it, after `import datetime` and `from registry import *`."""
    match value:
        case Enum():
            return f"{type(value).__name__}.{value.name}"
        case datetime():
            aware = "" if value.tzinfo is None else f", tzinfo={_zone(value)})"
            return repr(value.replace(tzinfo=None))[: -len(")") if aware else None] + aware
        case float() if not math.isfinite(value):
            return f"float('{value}')"
        case dict():
            return "{" + ", ".join(f"{source(key)}: {source(item)}" for key, item in value.items()) + "}"
        case list():
            return "[" + ", ".join(map(source, value)) + "]"
        case _:
            return repr(value)


def _zone(value: datetime) -> str:
    offset = value.utcoffset()
    return f"datetime.timezone({offset!r})" if offset else "datetime.timezone.utc"


class Transcript:
    """Notes the calls that are made of a registry, and at last what one of them had to answer and did not."""

    def __init__(self, factory: Callable[[], Any], registry: object, *, is_asynchronous: bool) -> None:
        self._factory, self._type = factory, type(registry)
        self._is_asynchronous = is_asynchronous
        self._subscripts = False  # answers are models, until one is a mapping
        self._names: dict[str, str] = {}
        self._lines: list[str] = []

    def created(self, arguments: Mapping[str, Any], answer: object, command_id: str) -> None:
        """Note a creation, and the name that its command has from now on."""
        self._subscripts = isinstance(answer, Mapping)
        made = self._made("create_command", arguments)
        name = self._names.setdefault(command_id, f"c{len(self._names) + 1}")
        self._lines.append(f"{name} = {self._claimed(f'{ANSWER}.command_id', made)}")

    def answered(self, call: str, arguments: Mapping[str, Any]) -> None:
        """Note a call that was answered as it should be."""
        self._lines.append(self._made(call, arguments))

    def refused(self, call: str, arguments: Mapping[str, Any], error: str) -> None:
        """Note a call that was refused as it should be; `error`: the name of the exception's class."""
        self._lines += [f"try: {self._made(call, arguments)}", f"except {error}: pass"]

    def not_refused(self, call: str, arguments: Mapping[str, Any], error: str) -> None:
        """Note a call that was answered, and had to be refused."""
        self.refused(call, arguments, error)
        self._lines.append(f"else: raise AssertionError('{call} must raise {error}')")

    def wrong(self, call: str, arguments: Mapping[str, Any], claim: str) -> None:
        """Note what a call had to answer: a claim such as f"{ANSWER}.state == 'PENDING'"."""
        self._lines.append(f"assert {self._claimed(claim, self._made(call, arguments))}")

    def raised(self, call: str, arguments: Mapping[str, Any], error: BaseException) -> None:
        """Note a call that raised what it must not."""
        text = " ".join(f"{type(error).__name__}: {error}".split())
        self._lines.append(f"{self._made(call, arguments)}  # raises {text[:200]}")

    def source(self, value: object) -> str:
        """Write a value as Python; the id of a command by its name."""
        if isinstance(value, list):
            return "[" + ", ".join(map(self.source, value)) + "]"
        known = self._names.get(value) if isinstance(value, str) else None
        return known or source(value)

    def _made(self, call: str, arguments: Mapping[str, Any]) -> str:
        given = ", ".join(f"{name}={self.source(value)}" for name, value in arguments.items())
        made = f"registry.{call}({given})"
        return f"(await {made})" if self._is_asynchronous else made

    def _claimed(self, claim: str, made: str) -> str:
        if self._subscripts:
            claim = re.sub(rf"{ANSWER}\.(\w+)", rf'{ANSWER}["\1"]', claim)
        return claim.replace(ANSWER, made)

    def __str__(self) -> str:
        """Give the program."""
        imports, made = _maker(self._factory)
        program = [f"registry = {made}", *self._lines]
        if hasattr(self._type, "__enter__"):
            program = [f"with {made} as registry:", *_indented(self._lines)]
        elif hasattr(self._type, "__aenter__"):
            program = [f"async with {made} as registry:", *_indented(self._lines)]
        if self._is_asynchronous:
            imports = ["import asyncio", *imports]
            program = ["async def main():", *_indented(program), "", "asyncio.run(main())"]
        known = ["from registry import *", "from registry.testing import Status, folded"]
        return "\n".join(["import datetime", *imports, *known, "", *program])


def _indented(lines: list[str]) -> list[str]:
    return [_INDENT + line for line in lines or ["pass"]]


def _maker(factory: Callable[[], Any]) -> tuple[list[str], str]:
    """Say how a registry is made: what to import, and the expression."""
    name = getattr(factory, "__qualname__", "")
    if not isinstance(factory, type | types.FunctionType) or not name.isidentifier():
        return [], "make_registry()"  # what was given to check_registry has no name
    return ([] if factory.__module__ == "__main__" else [f"from {factory.__module__} import {name}"]), f"{name}()"
