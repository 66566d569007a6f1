"""Checks that any projection has to pass: what it makes of a log is the same, however it comes to it.

Needs Hypothesis, which comes with the extra `testing`.
"""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, islice, repeat
from typing import Any, Final, NoReturn, TypeVar

try:
    import hypothesis
    from hypothesis import strategies as st
except ImportError as error:
    raise ImportError("this needs Hypothesis: pip install 'command-registry[testing]'") from error

from eventstore.event import StreamEvent
from projections.memory import MemoryProjection, as_stored
from projections.projection import Projection, StreamProjection, Values

__all__ = ["check_projection", "replay_equals_incremental"]

S = TypeVar("S")
E = TypeVar("E", bound=StreamEvent)

_PAGES: Final = (1, 2, 3, 7)


def check_projection(projection: Projection[Any], log: Sequence[StreamEvent], pages: Iterable[int] = ()) -> None:
    """Check a projection on a log: a list of events in log order, each stream from its first event on.

    - Folded in one go, or page by page, with every state made a row and read back between the pages, it comes to the
      same rows. `pages`: sizes of pages to try as well, one after the other (sizes 1, 2, 3 and 7 always are).
    - The fold is pure: once more, it comes to the same, and it leaves the state that it is given as it is.
    - `row(state(r)) == r`, and the table can hold each row.
    - A StreamProjection's row says the version of its stream's last event, and the streams may come one by one.

    Raises:
        AssertionError: it is not so; says where, and what differs.
        InvalidProjection, InvalidRow: it cannot be made a table, or a row does not fit into it.
        PoisonEvent: it cannot fold an event.
        Gap: the log is none.
    """
    whole = _in_pages(projection, log, ())
    _check_each_fold(projection, log)
    _compare(projection, "folded once more", _in_pages(projection, log, ()), whole)
    for size in _PAGES:
        _compare(projection, f"in pages of {size}", _in_pages(projection, log, repeat(size)), whole)
    sizes = tuple(pages)
    _compare(projection, f"in pages of {list(sizes)}", _in_pages(projection, log, sizes), whole)
    if isinstance(projection, StreamProjection):
        by_stream = sorted(log, key=lambda event: (event.stream_id, event.version))
        _compare(projection, "stream by stream", _in_pages(projection, by_stream, ()), whole)


def replay_equals_incremental(
    projection: Projection[Any],
    logs: "st.SearchStrategy[list[E]]",
    settings: hypothesis.settings | None = None,
) -> Callable[[], None]:
    """Make a test of a projection: `check_projection` on any log, in pages of any sizes.

        test_mine = replay_equals_incremental(MyProjection(), logs)

    `logs`: a Hypothesis strategy of lists of events in log order, each stream from its first event on. `settings`: how
    Hypothesis tries (without: as its profile in force says, with no deadline).
    """

    def test(log: list[E], pages: list[int]) -> None:
        check_projection(projection, log, pages)

    test.__name__ = test.__qualname__ = f"replay_equals_incremental_of_{projection.name}"
    sizes = st.lists(st.integers(1, 20), max_size=10)
    given: Callable[[], None] = hypothesis.given(log=logs, pages=sizes)(test)
    return (settings or hypothesis.settings(deadline=None, print_blob=True))(given)


def _in_pages(projection: Projection[S], log: Sequence[StreamEvent], sizes: Iterable[int]) -> Mapping[str, Values]:
    """Fold a log page by page, the last one of whatever is left; by another object each time, as after a restart."""
    twin, events = MemoryProjection(copy.deepcopy(projection)), iter(log)
    for size in chain(sizes, [len(log)]):
        page = list(islice(events, size))
        if not page:
            break
        twin.projection = copy.deepcopy(projection)
        twin.apply(page)
    return twin.rows


def _compare(projection: Projection[Any], how: str, found: Mapping[str, Values], whole: Mapping[str, Values]) -> None:
    for key in sorted({*found, *whole}):
        if key not in found or key not in whole:
            there, missing = (how, "folded in one go") if key in found else ("folded in one go", how)
            raise AssertionError(f"{projection.name}: {there}, it has a row {key!r}; {missing}, it has none")
        for column, one, other in zip(projection.columns, found[key], whole[key], strict=True):
            if one != other:
                raise AssertionError(
                    f"{projection.name}, row {key!r}: {how}, {column} is {one!r}; folded in one go, it is {other!r}"
                )


def _check_each_fold(projection: Projection[S], log: Sequence[StreamEvent]) -> None:
    projection = copy.deepcopy(projection)
    states: dict[str, S] = {}
    for event in log:
        try:
            key = projection.key(event)
            if projection.key(event) != key:
                _fail(projection, event, "key is not pure: asked twice, it answers differently")
            if key is not None:
                states[key] = _check_fold(projection, key, states.get(key), event)
        except AssertionError:
            raise
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
            raise _failure(projection, event, f"is not pure: it went well before, and now raised {problem}") from error


def _check_fold(projection: Projection[S], key: str, before: S | None, event: StreamEvent) -> S:
    kept = copy.deepcopy(before)
    state = projection.fold(before, event)
    if not _same(before, kept):
        _fail(projection, event, f"fold changes the state that it is given, from {kept!r} to {before!r}")
    row = as_stored(projection, key, projection.row(state))
    again = as_stored(projection, key, projection.row(projection.fold(kept, event)))
    _check_same_row(projection, event, row, again, "fold is not pure: the second time,")
    back = _read_back(projection, key, row, event)
    _check_same_row(projection, event, row, back, "row(state(r)) is not r: read back,")
    if isinstance(projection, StreamProjection):
        _check_stream(projection, key, row, event)
    return state


def _read_back(projection: Projection[Any], key: str, row: Values, event: StreamEvent) -> Values:
    try:
        return as_stored(projection, key, projection.row(projection.state(row)))
    except Exception as error:
        problem = f"row(state(r)) raised {type(error).__name__}: {error}"
        raise _failure(projection, event, problem) from error


def _check_same_row(projection: Projection[Any], event: StreamEvent, row: Values, other: Values, what: str) -> None:
    for column, one, found in zip(projection.columns, row, other, strict=True):
        if one != found:
            _fail(projection, event, f"{what} {column} is {found!r}, and was {one!r}")


def _check_stream(projection: StreamProjection[Any], key: str, row: Values, event: StreamEvent) -> None:
    if key != event.stream_id:
        _fail(projection, event, f"the key of a StreamProjection is the stream's id, not {key!r}")
    version = row[list(projection.columns).index("version")]
    if version != event.version:
        _fail(projection, event, f"the row's version is {version}, and that of its stream's last event {event.version}")


def _fail(projection: Projection[Any], event: StreamEvent, problem: str) -> NoReturn:
    raise _failure(projection, event, problem)


def _failure(projection: Projection[Any], event: StreamEvent, problem: str) -> AssertionError:
    at = f"version {event.version} of stream {event.stream_id!r} ({event.type})"
    return AssertionError(f"{projection.name}, at {at}: {problem}")


def _same(one: object, other: object) -> bool:
    """Compare states deeply, those without an __eq__ of their own as well."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    fields = _fields(one)
    return _same(fields, _fields(other)) if fields else one == other


def _fields(value: object) -> dict[str, object]:
    names = [*getattr(value, "__dict__", {})]
    for kind in type(value).__mro__:
        slots = getattr(kind, "__slots__", ())
        names += [slots] if isinstance(slots, str) else slots
    return {name: getattr(value, name) for name in names if hasattr(value, name)}
