"""The codec: what is accepted reads back equal, and old events read as new ones."""

from decimal import Decimal
from enum import IntEnum
from typing import Any, cast

import orjson
import pytest
from hypothesis import given
from pydantic import BaseModel, JsonValue, ValidationError

from eventstore import EventCodec, EventType, InvalidEvent, UnknownEventType, encode_json, json_text
from eventstore.codec import MAX_JSON_BYTES
from eventstore.event import StreamEvent
from tests.lending import (
    CODEC,
    NOON,
    Acquired,
    BookEvent,
    Lent,
    Returned,
    acquired,
    exactly,
    instants,
    json_values,
    texts,
)


class Measured(BaseModel):
    millimetres: int
    by: str


class Weighed(BaseModel):
    grams: int


def from_metres(data: dict[str, Any]) -> dict[str, Any]:
    return {"centimetres": data["metres"] * 100}


def from_centimetres(data: dict[str, Any]) -> dict[str, Any]:
    return {"millimetres": data["centimetres"] * 10, "by": "unknown"}


MEASURED = EventType("Measured", Measured, schema_version=3)
UPCASTERS = {("Measured", 1): from_metres, ("Measured", 2): from_centimetres}


def stored(data: str, schema_version: int = 1, event_type: str = "Measured") -> StreamEvent:
    return StreamEvent("s", 1, event_type, schema_version, NOON, data, "{}", bytes(32))


@pytest.mark.parametrize(
    ("schema_version", "data"),
    [(1, '{"metres":2}'), (2, '{"centimetres":200}'), (3, '{"millimetres":2000,"by":"unknown"}')],
)
def test_upcasters_are_chained_from_the_version_stored_to_the_one_in_force(schema_version: int, data: str) -> None:
    event = stored(data, schema_version)
    assert EventCodec(MEASURED, upcasters=UPCASTERS).decode(event) == Measured(millimetres=2000, by="unknown")
    assert event.data == data


def test_a_new_event_is_written_with_the_schema_version_in_force() -> None:
    event = EventCodec(MEASURED, upcasters=UPCASTERS).encode(Measured(millimetres=1, by="me"), NOON, "{}")
    assert (event.type, event.schema_version, event.data) == ("Measured", 3, '{"millimetres":1,"by":"me"}')


@pytest.mark.parametrize("missing", [1, 2])
def test_a_missing_upcaster_is_refused_before_anything_is_read(missing: int) -> None:
    upcasters = {key: function for key, function in UPCASTERS.items() if key[1] != missing}
    with pytest.raises(ValueError, match=f"no upcaster for 'Measured', schema version {missing}"):
        EventCodec(MEASURED, upcasters=upcasters)


@pytest.mark.parametrize("again", [EventType("Measured", Weighed), EventType("Weighed", Measured)])
def test_a_name_or_a_model_given_twice_is_refused(again: EventType[Any]) -> None:
    with pytest.raises(ValueError, match="a name and a model of its own"):
        EventCodec(EventType("Measured", Measured), again)


def test_an_event_of_an_unknown_type_is_refused_with_its_facts() -> None:
    with pytest.raises(UnknownEventType, match="no reader for event type 'Burnt', schema version 2") as refusal:
        CODEC.decode(stored("{}", 2, "Burnt"))
    assert (refusal.value.event_type, refusal.value.schema_version) == ("Burnt", 2)


def test_an_event_from_the_future_is_refused_with_its_facts() -> None:
    with pytest.raises(UnknownEventType, match="a later one") as refusal:
        EventCodec(MEASURED, upcasters=UPCASTERS).decode(stored("{}", 4))
    assert (refusal.value.event_type, refusal.value.schema_version) == ("Measured", 4)


def test_data_that_is_not_what_the_model_says_is_refused() -> None:
    with pytest.raises(ValidationError):
        EventCodec(MEASURED, upcasters=UPCASTERS).decode(stored('{"millimetres":"many"}', 3))


def test_an_object_of_another_model_is_no_event() -> None:
    with pytest.raises(KeyError):
        CODEC.encode(cast("BookEvent", Weighed(grams=1)), NOON, "{}")


def test_a_none_is_left_out_and_read_back() -> None:
    event = CODEC.encode(Returned(fee=None, note=None), NOON, "{}")
    assert event.data == "{}"
    assert CODEC.decode(stored(event.data, event_type="Returned")) == Returned()


@given(texts, instants)
def test_any_text_and_any_instant_of_an_event_reads_back_equal(text: str, due: Any) -> None:
    for object_ in (Acquired(title=text), Lent(borrower=text, due=due)):
        event = CODEC.encode(object_, NOON, "{}")
        assert CODEC.decode(stored(event.data, event_type=event.type)) == object_


@given(json_values)
def test_any_accepted_json_reads_back_equal_with_its_types(value: JsonValue) -> None:
    assert exactly(orjson.loads(json_text("note", value))) == exactly(value)
    event = CODEC.encode(Returned(note=value), NOON, "{}")
    read = CODEC.decode(stored(event.data, event_type="Returned"))
    assert isinstance(read, Returned)
    assert exactly(read.note) == exactly(value)


@pytest.mark.parametrize(
    "value", [1, 1.0, True, 0, 0.0, -0.0, False, None, "1", 1e21, 5e-324, 2**64 - 1, -(2**63), "\x00"]
)
def test_values_that_python_takes_for_equal_stay_apart(value: JsonValue) -> None:
    assert exactly(orjson.loads(json_text("note", [value]))) == exactly([value])


def test_instants_are_written_as_rfc_3339_with_z() -> None:
    assert encode_json([NOON, NOON.replace(microsecond=1)]) == '["2026-11-24T12:00:00Z","2026-11-24T12:00:00.000001Z"]'


def nested(depth: int, leaf: JsonValue = None, *, objects: bool = False) -> JsonValue:
    value = leaf
    for _ in range(depth):
        value = {"a": value} if objects else [value]
    return value


@pytest.mark.parametrize("objects", [False, True])
def test_json_may_nest_64_deep_and_no_deeper(objects: bool) -> None:
    assert orjson.loads(json_text("note", nested(64, objects=objects))) == nested(64, objects=objects)
    with pytest.raises(InvalidEvent, match="note: must not nest deeper than 64"):
        json_text("note", nested(65, objects=objects))


def test_a_value_that_holds_itself_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(InvalidEvent, match="nest deeper"):
        json_text("note", endless)


@pytest.mark.parametrize("character", ["a", "é", "📚"])
def test_json_may_be_64_kib_of_utf_8_and_no_longer(character: str) -> None:
    room = MAX_JSON_BYTES - 2
    size = len(character.encode())
    fits = character * (room // size)
    assert orjson.loads(json_text("note", fits + "a" * (room % size))) == fits + "a" * (room % size)
    with pytest.raises(InvalidEvent, match=f"note: must be at most 65536 bytes of JSON, not {MAX_JSON_BYTES + 1}"):
        json_text("note", fits + "a" * (room % size + 1))


@pytest.mark.parametrize("character", ["\x00", "\x1f", '"', "\\"])
def test_what_json_escapes_counts_as_it_is_written(character: str) -> None:
    with pytest.raises(InvalidEvent, match="at most 65536 bytes"):
        json_text("note", character * (MAX_JSON_BYTES // 2))


class Level(IntEnum):
    HIGH = 3


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (float("nan"), "must not hold nan: JSON has no such number"),
        (float("inf"), "must not hold inf: JSON has no such number"),
        (float("-inf"), "must not hold -inf: JSON has no such number"),
        (2**64, "integers outside 64 bits"),
        (-(2**63) - 1, "integers outside 64 bits"),
        (10**400, "integers outside 64 bits"),
        ("\ud800", "must be JSON"),
        ({"\udfff": 1}, "must be JSON"),
        ({1: "one"}, "must be JSON"),
        ({None: 1}, "must be JSON"),
        ((1, 2), "not tuple"),
        ({1, 2}, "not set"),
        (b"bytes", "not bytes"),
        (Decimal("1.5"), "not Decimal"),
        (NOON, "not datetime"),
        (1j, "not complex"),
        (object(), "not object"),
        (Acquired(title="x"), "not Acquired"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_what_could_not_be_read_back_equal_is_refused_at_any_depth(value: Any, problem: str, depth: int) -> None:
    with pytest.raises(InvalidEvent, match=f"^note: .*{problem}") as refusal:
        json_text("note", nested(depth, value))
    assert refusal.value.field == "note"


class Text(str):
    __slots__ = ()


@pytest.mark.parametrize("value", [Level.HIGH, Text("x"), type("Dict", (dict,), {})(a=1), type("List", (list,), {})()])
def test_a_value_of_a_subclass_is_refused_or_reads_back_equal(value: Any) -> None:
    try:
        text = json_text("note", value)
    except InvalidEvent:
        return
    assert orjson.loads(text) == value


def test_the_codec_of_a_domain_encodes_its_events() -> None:
    assert acquired("Emma").data == '{"title":"Emma"}'
    with pytest.raises(TypeError, match="JSON"):
        encode_json({"a": {1}})
