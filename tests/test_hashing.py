"""The hash chain: its format, told three times independently, and that no change slips through."""

import subprocess
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, LiteralString

import psycopg
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from eventstore import InvalidEvent, NewEvent, StreamEnd, StreamEvent, encode_json, plans
from eventstore.event import MAX_STREAM_VERSION
from eventstore.hashing import GENESIS_HASH, chain, event_hash, microseconds, rehash
from eventstore.verification import ChainCheck, Problem
from tests.lending import NOON, acquired, instants, json_values, lent, names, on, returned

BOOK = StreamEvent(
    stream_id="book-7",
    version=3,
    type="Lent",
    schema_version=2,
    occurred_at=datetime(2026, 11, 24, 10, 0, 0, 123456, UTC),
    data='{"borrower":"Ada"}',
    metadata='{"actor":"desk"}',
    hash=b"",
)
PREVIOUS = bytes(range(32))

# An auditor's own words for it: nothing but a shell.
AUDITOR = r"""
hash_of() { printf '%s' "$1" | sha256sum | cut -d ' ' -f 1; }
printf '\0001\n%s\n%s\n%s\n%s\n%s\n%s\n%s\n%s\n' "$PREVIOUS" "$STREAM" 3 Lent 2 1795514400123456 \
    "$(hash_of "$METADATA")" "$(hash_of "$DATA")" | sha256sum | cut -d ' ' -f 1
"""

# And Postgres's, over the rows as stored.
RECOMPUTE: LiteralString = r"""
    SELECT
        stream_id,
        version,
        hash,
        sha256(
            '\x00'::bytea || convert_to(
                concat_ws(
                    E'\n',
                    '1',
                    encode(lag(hash, 1, decode(repeat('00', 32), 'hex')) OVER stream, 'hex'),
                    stream_id,
                    version,
                    type,
                    schema_version,
                    (extract(epoch FROM occurred_at) * 1000000)::bigint,
                    encode(sha256(convert_to(metadata::text, 'UTF8')), 'hex'),
                    encode(sha256(convert_to(data::text, 'UTF8')), 'hex'),
                    ''
                ),
                'UTF8'
            )
        )
    FROM command_registry.events
    WINDOW stream AS (PARTITION BY stream_id ORDER BY version)
"""


def events(**fields: Any) -> st.SearchStrategy[StreamEvent]:
    known = {
        "stream_id": names,
        "version": st.integers(1, 2**31 - 1),
        "type": names,
        "schema_version": st.integers(1, 32767),
        "occurred_at": instants,
        "data": json_values.map(encode_json),
        "metadata": json_values.map(encode_json),
        "hash": st.just(b""),
    }
    return st.builds(StreamEvent, **known | fields)


def test_a_shell_computes_the_same_hash() -> None:
    environment = {
        "PREVIOUS": PREVIOUS.hex(),
        "STREAM": BOOK.stream_id,
        "DATA": BOOK.data,
        "METADATA": BOOK.metadata,
        "PATH": "/usr/bin:/bin",
    }
    told = subprocess.run(["sh", "-c", AUDITOR], env=environment, capture_output=True, text=True, check=True)
    assert rehash(BOOK, PREVIOUS).hex() == told.stdout.strip()


def test_the_format_has_not_changed_since_the_first_release() -> None:
    assert rehash(BOOK, PREVIOUS).hex() == "0bf178e9a3b727b5f00e8cf3c46f599b9c5f625b99932f7eef71bbd1082080a3"


@pytest.mark.every_postgres
def test_postgres_computes_the_same_hashes_over_the_rows_as_stored(connection: psycopg.Connection[Any]) -> None:
    first, last = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
    for stream_id in ("book", "Bücher 📚", "it's; %_\\ \u2028"):
        for expected, event in enumerate(
            [
                replace(acquired("Les Misérables"), occurred_at=first),
                replace(lent("O'Brien \\ \u0000"), occurred_at=last, metadata=' {"spaced" : [1e21, -0.0, 1.0]} '),
                replace(returned(note={"ünï": "\U0001f4da"}), schema_version=32767, type="Zurück 📖"),
                NewEvent("Lent", '{"a":1,"a":"\\u0000"}', "null", datetime(1969, 12, 31, 23, 59, 59, 999999, UTC)),
            ]
        ):
            on(connection, plans.append(stream_id, expected, [event]))
    rows = connection.execute(RECOMPUTE).fetchall()
    assert len(rows) == 12
    assert [stored for *_, stored, _ in rows] == [computed for *_, computed in rows]


CHANGES: dict[str, st.SearchStrategy[Any]] = {
    "stream_id": names,
    "version": st.integers(1, 2**31 - 1),
    "type": names,
    "schema_version": st.integers(1, 32767),
    "occurred_at": instants,
    "data": json_values.map(encode_json),
    "metadata": json_values.map(encode_json),
}


@given(events(), st.data())
def test_any_change_of_any_field_changes_the_hash(event: StreamEvent, data: st.DataObject) -> None:
    field = data.draw(st.sampled_from(sorted(CHANGES)))
    changed = replace(event, **{field: data.draw(CHANGES[field])})
    assume(changed != event)
    assert rehash(changed, GENESIS_HASH) != rehash(event, GENESIS_HASH)


@given(events(), st.binary(min_size=32, max_size=32))
def test_the_hash_before_it_is_part_of_the_hash(event: StreamEvent, previous: bytes) -> None:
    assume(previous != GENESIS_HASH)
    assert rehash(event, previous) != rehash(event, GENESIS_HASH)


@given(events())
def test_data_and_metadata_are_not_interchangeable(event: StreamEvent) -> None:
    assume(event.data != event.metadata)
    swapped = replace(event, data=event.metadata, metadata=event.data)
    assert rehash(swapped, GENESIS_HASH) != rehash(event, GENESIS_HASH)


def test_what_moves_from_one_field_into_the_next_changes_the_hash() -> None:
    def hash_of(stream_id: str, version: int, event_type: str, schema_version: int) -> bytes:
        return event_hash(GENESIS_HASH, stream_id, version, event_type, schema_version, NOON, "{}", "{}")

    hashes = {hash_of("a", 11, "b", 1), hash_of("a1", 1, "b", 1), hash_of("a", 1, "b1", 1), hash_of("a", 1, "b", 11)}
    assert len(hashes) == 4


@pytest.mark.parametrize(
    ("instant", "count"),
    [
        (datetime(1970, 1, 1, tzinfo=UTC), 0),
        (datetime(1969, 12, 31, 23, 59, 59, 999999, UTC), -1),
        (datetime.min.replace(tzinfo=UTC), -62_135_596_800_000_000),
        (datetime.max.replace(tzinfo=UTC), 253_402_300_799_999_999),
    ],
)
def test_microseconds_are_exact_from_year_1_to_9999(instant: datetime, count: int) -> None:
    assert microseconds(instant) == count


@given(instants)
def test_no_microsecond_is_lost(instant: datetime) -> None:
    assert datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds(instant)) == instant


def test_a_chain_starts_at_64_zeros_and_goes_on_from_the_end_given() -> None:
    whole = chain("book", None, [acquired(), lent(), returned()])
    assert [event.version for event in whole] == [1, 2, 3]
    assert whole[0].hash == rehash(whole[0], GENESIS_HASH) == rehash(whole[0], bytes.fromhex("0" * 64))
    assert whole[1].hash == rehash(whole[1], whole[0].hash)
    assert chain("book", StreamEnd(1, whole[0].hash), [lent(), returned()]) == whole[1:]


@pytest.mark.parametrize("stream_id", ["", "a" * 256, "a\nb", "\x00", "\ud800"])
def test_a_chain_needs_a_stream_id_that_is_a_name(stream_id: str) -> None:
    with pytest.raises(InvalidEvent, match="stream_id: "):
        chain(stream_id, None, [acquired()])


def test_a_stream_ends_at_version_2147483647() -> None:
    end = StreamEnd(MAX_STREAM_VERSION - 1, PREVIOUS)
    assert chain("book", end, [lent()])[0].version == 2**31 - 1
    with pytest.raises(InvalidEvent, match="stream 'book' is full"):
        chain("book", end, [lent(), returned()])


@given(st.lists(json_values, min_size=1, max_size=8), names)
def test_every_chain_verifies(notes: list[Any], stream_id: str) -> None:
    check = ChainCheck(stream_id)
    assert [check.feed(event) for event in chain(stream_id, None, [returned(note=note) for note in notes])] == [
        [] for _ in notes
    ]


@given(st.integers(0, 4), st.data())
def test_one_changed_event_is_one_problem_at_its_version(index: int, data: st.DataObject) -> None:
    stored = list(chain("book", None, [returned(note=n) for n in range(5)]))
    field = data.draw(st.sampled_from(["type", "schema_version", "occurred_at", "data", "metadata"]))
    changed = replace(stored[index], **{field: data.draw(CHANGES[field])})
    assume(changed != stored[index])
    stored[index] = changed
    check = ChainCheck("book")
    problems = [problem for event in stored for problem in check.feed(event)]
    assert [(problem.stream_id, problem.version) for problem in problems] == [("book", index + 1)]
    assert "hash does not match" in str(problems[0])


def test_a_missing_version_is_told_by_its_number() -> None:
    first, _, third = chain("book", None, [acquired(), lent(), returned()])
    check = ChainCheck("book")
    assert check.feed(first) == []
    [problem] = check.feed(third)
    assert problem == Problem("book", 2, "version 2 is missing: the stream goes on with version 3")
    assert str(problem) == "stream book, version 2: version 2 is missing: the stream goes on with version 3"


def test_an_event_of_another_stream_does_not_fit_into_the_chain() -> None:
    first, _ = chain("book", None, [acquired(), lent()])
    _, foreign = chain("other", None, [acquired(), lent()])
    check = ChainCheck("book")
    assert check.feed(first) == []
    assert [problem.version for problem in check.feed(replace(foreign, stream_id="book"))] == [2]
