"""The records of the log: what can be an event, and what cannot."""

from dataclasses import FrozenInstanceError, replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventstore import InvalidEvent, LogPosition, NewEvent, RecordedEvent
from eventstore.event import check_instant, check_name, name_problem
from tests.lending import NOON, instants, names

CONTROL = ["\x00", "\n", "\r", "\t", "\x1f", "\x7f", "\x80", "\x9f"]


def new(**changes: object) -> NewEvent:
    fields: dict[str, object] = {"type": "Lent", "data": "{}", "metadata": "{}", "occurred_at": NOON} | changes
    return NewEvent(**fields)  # type: ignore[arg-type]


@given(names)
def test_a_text_without_control_characters_and_surrogates_is_a_name(name: str) -> None:
    assert name_problem(name) is None
    assert check_name("type", name) == name
    assert new(type=name).type == name


@pytest.mark.parametrize(
    "name", ["a" * 255, "ÿ" * 255, "📚" * 255, " ", "'; DROP TABLE x; --", "%_\\", "\u200b", "\u2028"]
)
def test_255_characters_and_metacharacters_are_a_name(name: str) -> None:
    assert name_problem(name) is None


@pytest.mark.parametrize("character", CONTROL)
@pytest.mark.parametrize("before", ["", "book", "Büch"])
def test_a_control_character_is_refused_and_named_with_its_place(before: str, character: str) -> None:
    with pytest.raises(InvalidEvent, match=rf"control characters \(U\+{ord(character):04X} at index {len(before)}\)"):
        new(type=f"{before}{character}x")


@pytest.mark.parametrize("surrogate", [chr(code) for code in (0xD800, 0xDBFF, 0xDC00, 0xDFFF)])
def test_a_lone_surrogate_is_refused(surrogate: str) -> None:
    with pytest.raises(InvalidEvent, match=r"type: must not hold lone surrogates \(U\+D[0-9A-F]{3} at index 1\)"):
        new(type=f"a{surrogate}")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("", "must not be empty"),
        ("a" * 256, "at most 255 characters, not 256"),
        ("📚" * 256, "at most 255 characters, not 256"),
        (None, "must be text, not NoneType"),
        (b"Lent", "must be text, not bytes"),
        (7, "must be text, not int"),
    ],
)
def test_what_is_no_name_is_refused_and_the_field_is_named(name: object, problem: str) -> None:
    with pytest.raises(InvalidEvent, match=problem) as refusal:
        new(type=name)
    assert refusal.value.field == "type"
    assert isinstance(refusal.value, ValueError)


@pytest.mark.parametrize("schema_version", [1, 2, 32767])
def test_a_schema_version_is_a_smallint_from_one_on(schema_version: int) -> None:
    assert new(schema_version=schema_version).schema_version == schema_version


@pytest.mark.parametrize("schema_version", [-1, 0, 32768])
def test_a_schema_version_outside_its_bounds_is_refused(schema_version: int) -> None:
    with pytest.raises(InvalidEvent, match=rf"schema_version: must be in 1\.\.32767, not {schema_version}"):
        new(schema_version=schema_version)


def test_a_naive_instant_is_refused() -> None:
    with pytest.raises(InvalidEvent, match="occurred_at: must have a time zone"):
        new(occurred_at=datetime(2026, 11, 24))


@given(st.datetimes(timezones=st.timezones()))
def test_an_instant_is_kept_in_utc_to_the_microsecond_or_refused(instant: datetime) -> None:
    try:
        kept = check_instant("occurred_at", instant)
    except InvalidEvent:
        assert instant.replace(tzinfo=None) < datetime(1, 1, 3) or instant.year == 9999
    else:
        assert kept.tzinfo is UTC
        assert kept - instant == timedelta(0)


@pytest.mark.parametrize("instant", [datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)])
def test_the_first_and_the_last_microsecond_are_accepted(instant: datetime) -> None:
    assert new(occurred_at=instant).occurred_at == instant


@pytest.mark.parametrize(
    "instant",
    [
        datetime.min.replace(tzinfo=timezone(timedelta(minutes=1))),
        datetime.max.replace(tzinfo=timezone(timedelta(minutes=-1))),
    ],
)
def test_an_instant_that_leaves_the_years_1_to_9999_in_utc_is_refused(instant: datetime) -> None:
    with pytest.raises(InvalidEvent, match=r"years 1\.\.9999"):
        new(occurred_at=instant)


@pytest.mark.parametrize("field", ["data", "metadata"])
@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "{",
        "{'a': 1}",
        "NaN",
        "Infinity",
        "1 2",
        "[1,]",
        '"\n"',
        '"\ud800"',
        "\ufeff{}",
        "{a: 1}",
        "01",
        "\x00",
    ],
)
def test_what_is_not_json_is_refused_and_the_field_is_named(field: str, text: str) -> None:
    with pytest.raises(InvalidEvent, match=f"{field}: must be JSON") as refusal:
        new(**{field: text})
    assert refusal.value.field == field


@pytest.mark.parametrize("text", ["null", "0", "-0.0", '""', " [ ] ", '{"a":1,"a":2}', '"\\u0000"', "1e21"])
def test_any_json_is_kept_to_the_letter(text: str) -> None:
    assert new(data=text, metadata=text).data == text


def test_an_event_is_immutable() -> None:
    event = new()
    with pytest.raises(FrozenInstanceError):
        event.data = "[]"  # type: ignore[misc]


@given(instants, instants)
def test_a_changed_copy_is_checked_again(first: datetime, second: datetime) -> None:
    assert replace(new(occurred_at=first), occurred_at=second) == new(occurred_at=second)
    with pytest.raises(InvalidEvent):
        replace(new(), data="{")


def test_log_positions_compare_by_transaction_and_then_by_position() -> None:
    event = RecordedEvent("b", 1, "Lent", 1, NOON, "{}", "{}", bytes(32), 9, 3, NOON)
    assert event.log_position == LogPosition(3, 9)
    assert LogPosition(2, 10) < LogPosition(3, 9) < LogPosition(3, 10)
