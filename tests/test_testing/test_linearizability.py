import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registry.testing.linearizability import Logged, check_against_log
from registry.testing.model import Envelope, Refused
from registry.testing.recording import Operation
from registry.testing.search import check_by_search
from tests.test_testing.simulating import (
    LATER,
    NOON,
    Script,
    Story,
    calls,
    explained,
    lies,
    simulated,
    status,
    stories,
    told,
)

many = settings(max_examples=400, deadline=None)


@many
@given(stories())
def test_what_happened_is_accepted(story: Story) -> None:
    assert check_against_log(story.history, story.log) == []


@many
@given(stories(), lies)
def test_what_the_search_rejects_is_rejected_by_the_log(story: Story, some_lies: Any) -> None:
    story = told(story, some_lies)
    if check_by_search(story.history):
        assert check_against_log(story.history, story.log)


_tiny = st.builds(
    lambda first, others, steps, versions: simulated([first, *others], steps, versions=versions),
    calls(["create_command"]),
    st.lists(calls(), max_size=5),
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1)), max_size=30),
    st.booleans(),
)


@many
@given(_tiny, lies)
def test_by_the_log_a_tiny_history_is_accepted_if_and_only_if_one_of_all_orders_explains_it(
    story: Story, some_lies: Any
) -> None:
    story = told(story, some_lies)
    found = check_against_log(story.history, story.log)
    in_order = all(
        [event.version for event in story.log if event.command_id == command_id]
        == list(range(1, 1 + sum(event.command_id == command_id for event in story.log)))
        for command_id in ("c1", "c2")
    )
    for command_id in ("c1", "c2", "nobody"):
        right = in_order and explained(story.history, command_id, story.log)
        of_it = [each for each in found if each.command_id == command_id]
        if right:
            assert all("idempotency key" in each.message or ", too" in each.message for each in of_it)
        elif in_order:
            assert of_it


def script() -> tuple[Script, Operation, Operation]:
    """Give a command that is created and then counted up, one after the other."""
    made = Script()
    created, counted = made.create(0, 10), made.call("increment_attempt", 20, 30, 2)
    made.wrote(created, counted)
    return made, created, counted


def only_message(made: Script, log: list[Logged] | None = None) -> str:
    [found] = check_against_log(made.history, made.log if log is None else log)
    return found.message


def rejected_by_both(made: Script) -> str:
    assert check_by_search(made.history)
    return only_message(made)


def test_a_lost_update_is_rejected() -> None:
    made, created, counted = script()
    lost = made.call("increment_attempt", 40, 50, 2, client="b")
    message = rejected_by_both(made)
    assert message == (
        "increment_attempt by client b answered 2, but the log has no event of it, "
        "without which that is right at no version"
    )
    made.wrote(created, counted, lost)
    assert only_message(made) == "increment_attempt by client b answered 2, but the event at version 3 makes it 3"


def test_an_increment_that_was_counted_twice_is_rejected() -> None:
    made, created, counted = script()
    made.wrote(created, counted, counted)
    assert only_message(made) == "increment_attempt by client a has two events, at versions 2 and 3"
    made.call("get_command_status", 40, 50, status(attempt=3, version=3))
    assert check_by_search(made.history)


def test_a_stale_read_after_an_acknowledged_write_is_rejected() -> None:
    made, _, counted = script()
    read = made.call("get_command_status", 31, 40, status(version=1), client="b")
    assert rejected_by_both(made) == (
        "get_command_status by client b answered status PENDING, attempt 1, version 1, which was right at version 1, "
        "but increment_attempt by client a, which had ended before it began, is at version 2, "
        "and it is not right from there on"
    )
    [found] = check_against_log(made.history, made.log)
    assert found.operations == (counted, read)
    assert found.places == {"r1": "wrote version 1", "r2": "wrote version 2", "r3": "at no version"}


def test_a_read_that_is_concurrent_with_a_write_may_tell_either() -> None:
    for version in (1, 2):
        made, _, _ = script()
        made.call("get_command_status", 30, 40, status(attempt=version, version=version), client="b")
        assert check_against_log(made.history, made.log) == []
        assert check_by_search(made.history) == []


def test_reads_that_go_back_in_time_are_rejected_and_those_at_a_time_are_not() -> None:
    made, _, _ = script()
    made.call("get_command_status", 22, 23, status(attempt=2, version=2), client="b")
    made.call("get_command_status", 24, 25, status(version=1), client="c")
    assert "is at version 2" in rejected_by_both(made)
    made.history[-1].start = 23
    assert check_against_log(made.history, made.log) == check_by_search(made.history) == []


def test_a_read_of_long_ago_that_ends_late_does_not_take_back_what_others_saw() -> None:
    made, _, _ = script()
    made.call("get_command_status", 11, 40, status(version=1), client="b")
    assert check_against_log(made.history, made.log) == check_by_search(made.history) == []
    made.call("get_command_status", 50, 60, status(version=1), client="c")
    rejected_by_both(made)


def test_what_holds_a_call_back_is_told_with_what_holds_that_back() -> None:
    made = Script()
    created = made.create(0, 1)
    there = made.call("mark_dispatched_if_not_terminal", 2, 3, True, dispatched_at=NOON)
    elsewhere = made.call("mark_dispatched_if_not_terminal", 4, 5, True, dispatched_at=LATER)
    back = made.call("mark_dispatched_if_not_terminal", 6, 50, True, dispatched_at=NOON)
    again = made.call("mark_dispatched_if_not_terminal", 7, 8, True, client="b", dispatched_at=NOON)
    read = made.call("get_command_status", 9, 10, status("DISPATCHED", version=3, dispatched_at=LATER), client="b")
    made.wrote(created, there, elsewhere, back)
    found = check_against_log(made.history, made.log)
    assert [each.operations for each in found] == [(elsewhere, again, read)]
    assert check_by_search(made.history)


def test_a_terminal_command_that_is_overwritten_is_rejected() -> None:
    made, created, counted = script()
    won = made.call("complete_command", 40, 50, True, state="FAILED", completed_at=NOON)
    late = made.call("complete_command", 60, 70, True, state="SUCCEEDED", completed_at=NOON)
    made.wrote(created, counted, won, late)
    message = rejected_by_both(made)
    assert message == (
        "the event at version 4 is of complete_command by client a, "
        "which at version 3 changes nothing, and answers False"
    )
    made.wrote(created, counted, won)
    assert "the log has no event of it" in only_message(made)


def test_both_of_two_racing_completions_cannot_win_nor_lose() -> None:
    for answer in (True, False):
        made = Script()
        created = made.create(0, 1)
        one = made.call("complete_command", 2, 9, answer, state="FAILED", completed_at=NOON)
        made.call("complete_command", 3, 8, answer, client="b", state="SUCCEEDED", completed_at=NOON)
        made.wrote(created, *([one] if answer else []))
        assert check_by_search(made.history)
        assert check_against_log(made.history, made.log)


def test_an_event_that_nobody_asked_for_is_rejected() -> None:
    made, _, _ = script()
    for request_id, why in (("r99", "is of no call (request id 'r99')"), (None, "has no request id")):
        assert only_message(made, [*made.log, Logged("c1", 3, request_id)]) == f"the event at version 3 {why}"
    assert only_message(made, [*made.log, Logged("c7", 1, None)]) == "the event at version 1 has no request id"


def test_an_event_of_a_read_or_of_a_call_about_another_command_is_rejected() -> None:
    made, _, _ = script()
    made.call("get_command_access_context", 40, 50, "dep")
    made.call("increment_attempt", 40, 50, Refused("COMMAND_NOT_FOUND"), client="b", command_id="c2")
    made.call("increment_attempt", 40, None, client="c", command_id="c2")
    said = ("which writes nothing", "which was refused: COMMAND_NOT_FOUND", "which is about command c2")
    for request_id, why in zip(("r3", "r4", "r5"), said, strict=True):
        assert only_message(made, [*made.log, Logged("c1", 3, request_id)]).endswith(why)


def test_a_call_that_was_told_that_nothing_was_written_has_no_event() -> None:
    made, created, counted = script()
    failed = made.call("increment_attempt", 40, 50, Refused("UNAVAILABLE"))
    assert check_against_log(made.history, made.log) == []
    made.wrote(created, counted, failed)
    assert only_message(made).endswith("which was refused: UNAVAILABLE")


def test_an_acknowledged_creation_without_its_event_is_rejected() -> None:
    made = Script()
    made.create(0, 1)
    assert only_message(made).startswith("create_command by client a answered c1, but the log has no event of it")
    assert check_by_search(made.history) == []


def test_a_call_that_nobody_was_told_of_happened_if_its_event_is_there_and_once_at_most() -> None:
    made, created, counted = script()
    unknown = made.call("increment_attempt", 25, None)
    assert check_against_log(made.history, made.log) == []
    made.wrote(created, counted, unknown)
    assert check_against_log(made.history, made.log) == []
    made.wrote(created, counted, unknown, unknown)
    assert only_message(made) == "increment_attempt by client a has two events, at versions 3 and 4"


def test_a_call_that_nobody_was_told_of_happened_after_it_began() -> None:
    made, created, counted = script()
    unknown = made.call("increment_attempt", 31, None, client="b")
    counted.answer = 3
    made.wrote(created, unknown, counted)
    assert check_by_search(made.history)
    assert only_message(made) == (
        "increment_attempt by client b wrote version 2, but increment_attempt by client a, "
        "which had ended before it began, is at version 3"
    )


def test_versions_with_a_gap_or_twice_or_not_from_one_are_rejected() -> None:
    made, _, _ = script()
    one, two = made.log
    assert only_message(made, [one, two._replace(version=3)]) == "the log has version 3 after version 1"
    assert only_message(made, [one, two._replace(version=1)]) == "the log has version 1 twice"
    found = check_against_log(made.history, [one._replace(version=2), two._replace(version=3)])
    assert [each.message for each in found] == ["the log has version 2 after version 0"]


def test_events_out_of_order_are_put_in_order_of_their_versions() -> None:
    made, _, _ = script()
    assert check_against_log(made.history, made.log[::-1]) == []


def test_writes_in_the_wrong_order_are_rejected() -> None:
    made, created, _ = script()
    first = made.call("mark_dispatched_if_not_terminal", 40, 41, True, dispatched_at=NOON)
    second = made.call("mark_dispatched_if_not_terminal", 42, 43, True, client="b", dispatched_at=LATER)
    made.wrote(created, made.history[1], second, first)
    assert only_message(made).startswith("mark_dispatched_if_not_terminal by client b wrote version 3, but")
    made.call("get_command_status", 44, 45, status("DISPATCHED", attempt=2, version=4, dispatched_at=NOON))
    assert check_by_search(made.history)


def test_a_repeated_creation_is_the_first_one() -> None:
    made = Script()
    created = made.create(0, 10, key="k")
    made.create(5, 6, key="k", client="b")
    made.create(20, 30, key="k", client="b")
    made.wrote(created)
    assert check_against_log(made.history, made.log) == check_by_search(made.history) == []
    made.history[-1].arguments["command_name"] = "y"
    assert "the log has no event of it" in rejected_by_both(made)


def test_a_creation_without_a_key_cannot_be_repeated() -> None:
    made = Script()
    created = made.create(0, 10)
    made.create(5, 6, client="b")
    made.wrote(created)
    assert "the log has no event of it" in rejected_by_both(made)


def test_a_creation_that_nobody_was_told_of_is_found_by_its_event() -> None:
    made = Script()
    created = made.create(10, None, key="k")
    made.create(20, 30, key="k", client="b")
    made.wrote(created)
    assert check_against_log(made.history, made.log) == check_by_search(made.history) == []
    made.call("get_command_access_context", 5, 9, "dep")
    assert "had ended before it began" in rejected_by_both(made)


def test_one_creation_of_two_commands_and_two_of_one_key_are_rejected() -> None:
    made = Script()
    created = made.create(0, None, key="k")
    twice = [Logged("c1", 1, created.request_id), Logged("c2", 1, created.request_id)]
    [found] = check_against_log(made.history, twice)
    assert (found.command_id, found.message) == ("c2", "create_command by client a has created command c1, too")
    one, two = made.create(1, 2, key="l"), made.create(3, 4, key="l", client="b")
    two.answer = "c2"
    log = [Logged("c1", 1, one.request_id), Logged("c2", 1, two.request_id)]
    [found] = check_against_log(made.history, log)
    assert found.message == "create_command by client b has created it with the idempotency key 'l' of command c1"
    assert found.operations == (one, two)
    assert check_by_search(made.history)


def test_a_refused_creation_concerns_no_command() -> None:
    made, _, _ = script()
    made.call("create_command", 40, 50, Refused("DEPLOYMENT_NOT_FOUND"), deployment_id="nowhere", command_name="x")
    assert check_against_log(made.history, made.log) == check_by_search(made.history) == []


@pytest.mark.parametrize("call", ["create_command", "expire_overdue"])
def test_an_answer_that_is_of_no_command_is_rejected(call: str) -> None:
    made = Script()
    made.call(call, 0, 1, None, deployment_id="dep", command_name="x", now=NOON)
    assert check_by_search(made.history)
    [found] = check_against_log(made.history, [])
    assert found.command_id is None
    assert found.operations == tuple(made.history)


def expiring() -> tuple[Script, Operation, Operation]:
    made = Script()
    created = made.create(0, 10, deadline=NOON)
    expired = made.call("expire_overdue", 20, 30, ["c1"], client="b", now=LATER)
    return made.wrote(created, expired), created, expired


def test_an_expiry_is_one_call_for_each_command() -> None:
    made, _, expired = expiring()
    other = made.create(0, 10, deadline=NOON)
    other.answer, expired.answer = "c2", ["c2", "c1"]
    log = [*made.log, Logged("c2", 1, other.request_id), Logged("c2", 2, expired.request_id)]
    assert check_against_log(made.history, log) == check_by_search(made.history) == []
    assert check_against_log(made.history, log[:-1])


def test_an_expiry_of_a_command_that_was_not_answered_is_rejected_unless_nobody_was_told() -> None:
    made, _, expired = expiring()
    expired.answer = []
    assert only_message(made) == "the event at version 2 is of expire_overdue by client b, which answered []"
    expired.end = None
    assert check_against_log(made.history, made.log) == check_by_search(made.history) == []


def test_an_expiry_that_was_answered_and_did_not_happen_or_twice_is_rejected() -> None:
    made, created, expired = expiring()
    made.wrote(created)
    assert "the log has no event of it" in only_message(made)
    made.wrote(created, expired)
    expired.answer = ["c1", "c1"]
    assert rejected_by_both(made) == "expire_overdue by client b answered this command twice"


def test_an_expiry_before_the_deadline_is_rejected() -> None:
    made, _, expired = expiring()
    expired.arguments["now"] = NOON.replace(hour=11)
    assert "changes nothing, and answers False" in rejected_by_both(made)


@pytest.mark.parametrize("end", [None, 30])
def test_an_expiry_has_to_tell_now(end: int | None) -> None:
    made = Script()
    made.call("expire_overdue", 20, end, None if end is None else [])
    for check in (check_by_search, lambda history: check_against_log(history, [])):
        with pytest.raises(ValueError, match=r"expire_overdue by client a .*does not tell `now`"):
            check(made.history)


def test_operations_that_cannot_be_told_apart_or_end_before_they_begin_are_no_history() -> None:
    made, _, counted = script()
    with pytest.raises(ValueError, match="2 operations have the same request id, 'r1'"):
        check_against_log([*made.history, made.history[0]], made.log)
    counted.end = 19
    with pytest.raises(ValueError, match="increment_attempt by client a ends before it begins"):
        check_against_log(made.history, made.log)


def test_commands_that_the_log_does_not_know_do_not_exist() -> None:
    made = Script()
    not_found = Refused("COMMAND_NOT_FOUND")
    made.call("increment_attempt", 0, 1, not_found, command_id="nobody")
    made.call("complete_command", 0, 1, Refused("INVALID_COMMAND"), command_id="nobody", state="PENDING")
    made.call("get_command_status", 0, 1, None, command_id="nobody")
    made.call("history", 0, 1, 0, command_id="nobody")
    assert check_against_log(made.history, []) == check_by_search(made.history) == []
    made.call("get_command_access_context", 0, 1, "dep", command_id="nobody")
    assert rejected_by_both(made).endswith("that is right at no version: at 0, the last one, it is None")


def test_a_command_is_not_found_before_it_is_created_and_found_afterwards() -> None:
    made, _, _ = script()
    early = made.call("increment_attempt", 0, 5, Refused("COMMAND_NOT_FOUND"), client="b")
    assert check_against_log(made.history, made.log) == check_by_search(made.history) == []
    early.start, early.end = 11, 12
    assert "had ended before it began, is at version 1" in rejected_by_both(made)


def test_refusals_are_judged_by_the_state() -> None:
    made, _, _ = script()
    forbidden = Refused("INVALID_STATE_TRANSITION")
    made.call("update_command_state", 11, 35, forbidden, client="b", state="SUCCEEDED")
    assert check_against_log(made.history, made.log) == check_by_search(made.history) == []
    made.call("update_command_state", 11, 35, forbidden, client="c", state="DISPATCHED")
    rejected_by_both(made)


def test_refusals_are_judged_by_the_state_that_was_asked_for() -> None:
    made = Script()
    created = made.create(0, 1)
    dispatched = made.call("mark_dispatched_if_not_terminal", 10, 11, True, dispatched_at=NOON)
    made.wrote(created, dispatched)
    forbidden = Refused("INVALID_STATE_TRANSITION")
    made.call("update_command_state", 2, 3, forbidden, client="b", state="SUCCEEDED")
    made.call("update_command_state", 12, 13, forbidden, client="b", state="PENDING_UPLOAD")
    assert check_against_log(made.history, made.log) == check_by_search(made.history) == []
    made.call("update_command_state", 14, 15, forbidden, client="b", state="SUCCEEDED")
    rejected_by_both(made)


def test_calls_that_the_model_does_not_know_are_ignored() -> None:
    made, _, _ = script()
    made.call("status_at", 11, 12, status(version=7), version=7)
    made.call("list_commands", 11, 12, ["x"])
    made.call("resolve_target", 11, 12, None)
    assert check_against_log(made.history, made.log) == check_by_search(made.history) == []


def test_a_read_without_a_version_is_right_wherever_the_rest_is() -> None:
    made, _, _ = script()
    read = made.call("get_command_status", 31, 40, status(attempt=2, version=None), client="b")
    envelope = Envelope("dep", "x", "PENDING", 2, None, None)
    made.call("get_command_metadata", 31, 40, envelope, client="c")
    assert check_against_log(made.history, made.log) == check_by_search(made.history) == []
    read.answer = status(attempt=1, version=None)
    assert "had ended before it began" in rejected_by_both(made)


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        ("get_command_status", status(attempt=True, version=None)),
        ("get_command_status", status(attempt=True, version=1)),
        ("get_command_status", status(attempt=1, version=True)),
        ("get_command_status", status(attempt=1, version=1, request_size_bytes=0)),
        ("get_command_metadata", Envelope("dep", "x", "PENDING", True, None, 1)),
        ("get_command_metadata", status(attempt=1, version=1)),
        ("history", True),
        ("history", "1"),
        ("increment_attempt", True),
        ("complete_command", 1),
        ("get_command_status", True),
        ("get_command_access_context", 1),
    ],
)
def test_types_count(call: str, answer: Any) -> None:
    made = Script()
    created = made.create(0, 1)
    made.call(call, 2, 3, answer, **({"state": "FAILED"} if call == "complete_command" else {}))
    made.wrote(created)
    rejected_by_both(made)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (status("DISPATCHED", attempt=2, version=2), "at version 2 it is: state PENDING, not DISPATCHED"),
        (status(attempt=2, version=7), "the log ends at version 2"),
        (status(attempt=2, version=0), "the log ends at version 2"),
        (
            None,
            "but create_command by client a, which had ended before it began, is at version 1, "
            "and it is not right from there on",
        ),
    ],
)
def test_a_read_that_is_wrong_is_told_what_is_right(answer: Any, why: str) -> None:
    made, _, _ = script()
    made.call("get_command_status", 11, 40, answer, client="b")
    assert rejected_by_both(made).endswith(why)


def steps_of(check: Callable[[], object]) -> int:
    """Count the lines that a call runs, of all functions."""
    count = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        check()
    finally:
        sys.settrace(before)
    return count


def hot_command(size: int) -> Script:
    """Make a history of one command, of many versions, and of calls of every kind that have to find theirs."""
    made = Script()
    events = [made.create(0, 1)]
    now = 1
    for number in range(size):
        now += 10
        at = NOON.replace(microsecond=number)
        wrote = made.call("mark_dispatched_if_not_terminal", now, now + 1, True, dispatched_at=at)
        events.append(wrote)
        version = len(events)
        seen = status("DISPATCHED", version=None, dispatched_at=at)
        made.call("mark_dispatched_if_not_terminal", now + 2, now + 3, True, client="b", dispatched_at=at)
        made.call("mark_dispatched_if_not_terminal", 5, now + 3, True, client="l", dispatched_at=at)
        made.call("update_command_state", now + 2, now + 3, True, client="c", state="DISPATCHED")
        refused = Refused("INVALID_STATE_TRANSITION")
        made.call("update_command_state", 0, now, refused, client="d", state="SUCCEEDED", error=f'"{number}"')
        made.call("complete_command", 0, now, Refused("INVALID_COMMAND"), client="e", state="PENDING")
        made.call("get_command_status", now + 2, now + 3, seen, client="f")
        made.call("get_command_status", now + 2, now + 3, seen._replace(version=version), client="g")
        made.call("history", now + 2, now + 3, version, client="h")
        made.call("get_command_access_context", 5, now + 3, "dep", client="i")
        made.call("complete_command", 0, 10**9, False, client="j", state="FAILED", completed_at=at)
        made.call("increment_attempt", 0, 10**9, 1, client="k")
    events.append(made.call("complete_command", now + 2, now + 3, True, state="FAILED", completed_at=NOON))
    return made.wrote(*events)


def test_the_work_grows_as_the_history_does_even_if_it_is_all_about_one_command() -> None:
    small, large = hot_command(100), hot_command(400)
    for made in (small, large):
        assert check_against_log(made.history, made.log) == []
    few = steps_of(lambda: check_against_log(small.history, small.log))
    lots = steps_of(lambda: check_against_log(large.history, large.log))
    assert lots < 4.4 * few
