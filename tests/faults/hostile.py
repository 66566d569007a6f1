"""What nobody should give a registry, for every parameter of every call; and the judgement of what became of it.

The parameters are read from the protocol's signatures: one that is added later fails the tests until it is told
here how what it takes is read back (`PARAMETERS`).
"""

import enum
import inspect
import json
import math
import reprlib
import uuid
from collections import ChainMap, Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any, Final

from hypothesis import strategies as st

from eventstore import RecordedEvent
from eventstore.errors import Unavailable
from registry import (
    CommandNotFound,
    CommandRegistry,
    CommandState,
    DeploymentNotFound,
    EventContext,
    InvalidCommand,
    decider,
)
from registry.errors import TargetError
from registry.events import CODEC
from registry.history import HistoryEntry
from registry.models import CommandStatus
from registry.testing.implementation import Implementation
from registry.testing.observing import folded, observed
from registry.testing.values import HOSTILE

__all__ = ["ACTING", "NOON", "PARAMETERS", "TEXTS", "ZOO", "Judge", "anything", "parameters_of"]

NOON: Final = datetime(2026, 11, 24, 12, tzinfo=UTC)

ACTING: Final = [
    chr(code) for code in (*range(0x20), *range(0x7F, 0xA0), 0x61C, 0x200E, 0x200F, *range(0x2028, 0x202F))
]
ACTING.extend([chr(code) for code in (*range(0x2066, 0x206A), 0xE0001, 0xE0041)])
"""Characters that do something on a terminal, or turn text round."""


class _Offset(tzinfo):
    """A time zone of somebody's own, which says whatever it was told to say."""

    def __init__(self, said: Any) -> None:
        self._said = said

    def utcoffset(self, _: datetime | None) -> Any:
        return self._said

    def dst(self, _: datetime | None) -> None:
        return None

    def tzname(self, _: datetime | None) -> None:
        return None


class _Instant(datetime):
    """As freezegun, pendulum and pandas have them."""


class _Finer(datetime):
    """As pandas' Timestamp: more than a datetime can hold, and equal to none."""

    __hash__ = datetime.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other

    def __ne__(self, other: object) -> bool:
        return self is not other


class _Text(str):
    __slots__ = ()


class _Number(int):
    pass


class _Named(str, enum.Enum):  # noqa: UP042 - whose str() is its name, and not its value
    SYNC = "sync-data"
    FAILED = "FAILED"


def _nested(depth: int, kind: Callable[[Any], Any] = lambda inner: [inner]) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = kind(value)
    return value


_CYCLE: Final[list[Any]] = []
_CYCLE.append(_CYCLE)

TEXTS: Final[list[str]] = [
    *HOSTILE,
    *["", "\x00", "a\x00b", "a\ud800", "\udfff", "\ud83d\ude00", "x" * 255, "x" * 256, "x" * 1_000_000, "é" * 255],
    *[
        "\x1b[31mred",
        "\x9b31m",
        "\x1b]0;title\x07",
        "\x7f",
        "\x85",
        "a\nb",
        "a\u2028b",
        "a\u202eb",
        "\u2066\u061c",
        "\ufeff",
    ],
    *[
        "' OR 1=1 --",
        "'; DROP TABLE command_registry.events; --",
        "%_\\",
        "%(x)s%s{}{0}",
        "$1",
        "${HOME}",
        "`id`",
        "a:b",
    ],
    *["NULL", "null", "NaN", "true", "0", "1e400", "9" * 5_000, "-1", "٣", "failed", "FAILED", "{}", "[" * 10_000],
    *["0000-01-01T00:00:00Z", "10000-01-01T00:00:00Z", "2026-12-31T23:59:60Z", "2026-01-01T00:00:00+24:00"],
    *[
        "2026-01-01T00:00:00.1234567Z",
        "2026-01-01T00:00:00",
        "2026-01-01",
        "2026-01-01T00:00:00Z\n",
        "٢٠٢٦-01-01T00:00:00Z",
    ],
    *["9999-12-31T23:59:59-00:01", "0001-01-01T00:00:00+00:01", "2026-01-01t00:00:00.5z", "2026-01-01T00:00:00-23:59"],
]

_INSTANTS: Final[list[Any]] = [
    datetime(2026, 1, 1),
    date(2026, 1, 1),
    datetime.min.replace(tzinfo=UTC),
    datetime.max.replace(tzinfo=UTC),
    datetime.max.replace(tzinfo=timezone(timedelta(hours=-14))),
    datetime.min.replace(tzinfo=timezone(timedelta(hours=14))),
    datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=5, seconds=17, microseconds=3))),
    *[datetime(2026, 1, 1, tzinfo=_Offset(said)) for said in (timedelta(days=3), "+01:00", 7, None)],
    datetime(2026, 1, 1, tzinfo=tzinfo()),  # type: ignore[abstract]
    _Instant(2026, 1, 1, tzinfo=UTC),
    _Instant(2026, 1, 1, tzinfo=timezone(timedelta(hours=1))),
    _Finer(2026, 1, 1, tzinfo=UTC),
]

ZOO: Final[list[Any]] = [
    *TEXTS,
    *_INSTANTS,
    *[
        None,
        True,
        False,
        0,
        -1,
        1,
        2**31,
        2**32,
        2**63,
        2**64 - 1,
        2**64,
        -(2**63) - 1,
        10**400,
        10**5_000,
        -(10**5_000),
    ],
    *[math.nan, math.inf, -math.inf, -0.0, 1.5, 5e-324, 1.7976931348623157e308, Decimal("NaN"), Decimal(1), 1j],
    *[
        b"",
        b"a\x00\xff",
        bytearray(b"x"),
        memoryview(b"x"),
        object(),
        object,
        str,
        (),
        (1,),
        {1},
        frozenset(),
        range(3),
    ],
    *[[], ["x"], {}, {"a": {1: 2}}, {"\ud800": 1}, {"a": math.nan}, [b"x"], {"a": object()}, ChainMap(), _CYCLE],
    *[_nested(63), _nested(65), _nested(10_000), _nested(200, lambda inner: {"a": inner})],
    *[_nested(60, lambda inner: [inner, inner]), ["x" * 60_000, "x" * 10_000], [0] * 100_000, {"x" * 70_000: 1}],
    *[_Text("FAILED"), _Number(3), _Named.SYNC, _Named.FAILED, CommandState.FAILED, uuid.UUID(int=7), len, ...],
    *[EventContext(actor="x"), EventContext, {"actor": "x"}, EventContext.model_construct(actor="\x00")],
    *[
        EventContext().model_copy(update=update)
        for update in ({"actor": "\x1b"}, {"request_id": 7}, {"traceparent": ""})
    ],
    *[EventContext().model_copy(update=update) for update in ({"attributes": [1]}, {"attributes": None}, {"more": 1})],
]


def _changed_afterwards(value: Any) -> EventContext:
    context = EventContext(actor="x", attributes={"a": 1})
    context.attributes["b"] = value
    return context


ZOO.extend(
    [_changed_afterwards(value) for value in (math.nan, object(), "\ud800", 2**64, "x" * 70_000, "\x1b[31m", 1.0)]
)


_keys: Final = st.text(st.characters(exclude_categories=[]), max_size=4) | st.integers() | st.none()
_leaves: Final = st.one_of(
    st.text(st.characters(exclude_categories=[]), max_size=8),
    st.integers(),
    st.floats(),
    st.binary(max_size=4),
    st.datetimes(),
    st.datetimes(timezones=st.timezones()),
    st.sampled_from([each for each in TEXTS if len(each) <= 256]),
)
anything: Final = st.recursive(
    _leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_keys, inner, max_size=3), max_leaves=6
)
"""Whatever Python has."""


Read = Callable[[CommandStatus, HistoryEntry], Any]

PARAMETERS: Final[Mapping[str, Read | None]] = {
    "deployment_id": lambda status, _: status.deployment_id,
    "command_name": lambda status, _: status.command,
    "initial_state": lambda status, _: status.state,
    "state": lambda status, _: status.state,
    "deadline": lambda status, _: status.deadline,
    "request_size_bytes": lambda status, _: status.request_size_bytes,
    "dispatched_at": lambda status, _: status.dispatched_at,
    "completed_at": lambda status, _: status.completed_at,
    "response_size_bytes": lambda status, _: status.response_size_bytes,
    "error": lambda status, _: status.error,
    "target": lambda status, _: status.target and status.target.resource_id,
    "idempotency_key": lambda _, entry: entry.idempotency_key,
    "context": lambda _, entry: entry.context,
    **dict.fromkeys(["command_id", "requested", "now", "limit", "at", "version", "connection", "timeout"]),
}
"""Every parameter: how it is read from the status and the last event; None: it is not kept."""

_SAID_OTHERWISE: Final[Mapping[str, tuple[type[Exception], ...]]] = {
    "command_id": (CommandNotFound,),
    "deployment_id": (DeploymentNotFound,),
    "target": (TargetError,),
    "requested": (TargetError,),
    "timeout": (Unavailable,),
}
"""The errors that are about one parameter by what they say, beside `InvalidCommand`, which names it."""

_NEEDED: Final[Mapping[str, Any]] = {
    "deployment_id": "dep_eu1",
    "command_name": "sync-data",
    "state": CommandState.FAILED,
    "completed_at": NOON,
    "dispatched_at": NOON,
}
_LEAKS: Final = ("Traceback", "SELECT", "INSERT", "22P02", "pydantic", "orjson", " line ")
_LONGEST_MESSAGE: Final = 5_000


def parameters_of(call: str) -> dict[str, inspect.Parameter]:
    """Give the parameters of a call, as the protocol has them."""
    parameters = dict(inspect.signature(getattr(CommandRegistry, call)).parameters)
    del parameters["self"]
    return parameters


def same(value: Any, read: Any) -> bool:
    """Tell whether what was read is what was given: no more like it, and no less, and nothing derived from it."""
    match value:
        case EventContext():
            return isinstance(read, EventContext) and same(value.model_dump(), read.model_dump())
        case datetime():
            return type(read) is datetime and read == value
        case str() if isinstance(read, datetime):
            return read == datetime.fromisoformat(value.upper())
        case str() if isinstance(read, CommandState):
            return value == read.value
        case _:
            return json.dumps(value) == json.dumps(read) and type(read) in {
                str,
                int,
                float,
                bool,
                list,
                dict,
                type(None),
            }


class Judge:
    """Makes calls with hostile arguments of a registry, and says what is wrong with what becomes of them."""

    def __init__(self, registry: Implementation) -> None:
        self.registry = registry
        self.counts: Counter[str] = Counter()
        self.statuses: dict[str, CommandStatus] = {}
        self._ready: str | None = None

    def problems(self, call: str, parameters: Iterable[str] = (), values: Iterable[Any] = ZOO) -> Iterator[str]:
        """Try each value for each parameter of a call (by default all); give what is wrong."""
        given = list(values)
        for parameter in parameters or parameters_of(call):
            for value in given:
                try:
                    self.judge(call, parameter, value)
                except Exception as error:
                    yield f"{call}({parameter}={_short(value)}): {type(error).__name__}: {_short(error)}"

    def judge(self, call: str, parameter: str, value: Any) -> None:
        """Make a call with one hostile argument: it is refused, and changes nothing, or reads back equal."""
        arguments = self.ordinary(call, parameter)
        command_id = arguments.get("command_id")
        before = self._seen(command_id) if command_id and parameter != "command_id" else None
        try:
            answer = self.registry.call(call, **{**arguments, parameter: value})
        except Exception as error:
            self.counts["refused"] += 1
            _check_refusal(parameter, error)
            assert before is None or self._seen(command_id) == before, "it was refused, and changed something"
            return
        self.counts["accepted"] += 1
        self._ready = None
        made = answer.command_id if call == "create_command" else command_id
        if parameter != "command_id" and made is not None:
            self._check_accepted(made, parameter, value)

    def ordinary(self, call: str, parameter: str) -> dict[str, Any]:
        """Give what a call needs, beside a parameter that is tried."""
        parameters = parameters_of(call)
        needed = {name for name, each in parameters.items() if each.default is inspect.Parameter.empty}
        arguments: dict[str, Any] = {name: _NEEDED[name] for name in needed - {"command_id"}}
        if "command_id" in needed:
            arguments["command_id"] = self._ready = self._ready or self._created()
        if call == "status_at" and parameter not in {"at", "version"}:
            arguments["version"] = 1
        if call == "update_command_state" and parameter in {"dispatched_at", "completed_at", "response_size_bytes"}:
            arguments["state"] = CommandState.DISPATCHED
        return arguments

    def _created(self) -> str:
        created: str = self.registry.call("create_command", "dep_eu1", "sync-data").command_id
        return created

    def _seen(self, command_id: str | None) -> Any:
        return self.registry.call("get_command_status", command_id)

    def _check_accepted(self, command_id: str, parameter: str, value: Any) -> None:
        status, entries = self._seen(command_id), self.registry.history(command_id)
        read = PARAMETERS[parameter]
        if read is not None and value is not None:
            found = read(status, entries[-1])
            assert same(value, found), f"it was accepted, and reads back as {_short(found)}"
        assert self.registry.call("status_at", command_id, version=len(entries)) == status
        assert folded(entries) == observed("get_command_status", status)
        envelope = self.registry.call("get_command_metadata", command_id)
        assert (envelope.command, envelope.deadline, envelope.state) == (status.command, status.deadline, status.state)
        assert self.registry.call("get_command_access_context", command_id).target == status.target
        self.statuses[command_id] = status

    def is_in(self, log: Iterable[RecordedEvent]) -> bool:
        """Tell whether the log has all that was read."""
        versions = Counter(event.stream_id for event in log)
        return all(versions[command_id] >= status.version for command_id, status in self.statuses.items())

    def check_log(self, log: Iterable[RecordedEvent]) -> None:
        """Check that a fresh fold of the log has every status that was read."""
        streams: dict[str, list[Any]] = {}
        for event in log:
            json.loads(event.metadata)
            streams.setdefault(event.stream_id, []).append(CODEC.decode(event))
        for command_id in self.statuses:
            assert decider.replay(streams[command_id], None) == self._seen(command_id)


def _check_refusal(parameter: str, error: Exception) -> None:
    text = str(error)
    if isinstance(error, InvalidCommand):
        assert error.field.partition(".")[0] in _names(parameter), f"it names {error.field}: {text}"
    elif parameter == "connection":
        assert isinstance(error, TypeError | ValueError), repr(error)
        assert text.startswith("connection"), text
    else:
        assert isinstance(error, _SAID_OTHERWISE.get(parameter, ())), f"{type(error).__name__}: {text}"
    assert len(text) <= _LONGEST_MESSAGE, f"a message of {len(text)} characters"
    assert not [leak for leak in _LEAKS if leak in text], text
    assert not set(ACTING).intersection(text), repr(text)
    text.encode()


def _names(parameter: str) -> set[str]:
    return {"at", "version"} if parameter in {"at", "version"} else {parameter}


def _short(value: object) -> str:
    try:
        text = str(value) if isinstance(value, Exception) else reprlib.repr(value)
    except (ValueError, RecursionError) as error:
        text = f"<{type(value).__name__}: {error}>"
    return text if len(text) <= 200 else f"{text[:200]}... ({len(text)})"
