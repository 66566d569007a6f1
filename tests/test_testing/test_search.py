from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registry.testing.contradictions import Contradiction
from registry.testing.model import Refused
from registry.testing.search import Undecided, check_by_search
from tests.test_testing.simulating import (
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
@given(stories(40))
def test_what_happened_is_accepted(story: Story) -> None:
    assert check_by_search(story.history) == []


_tiny = st.builds(
    lambda first, others, steps, versions: simulated([first, *others], steps, versions=versions),
    calls(["create_command"]),
    st.lists(calls(), max_size=5),
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1)), max_size=30),
    st.booleans(),
)


@many
@given(_tiny, lies)
def test_a_tiny_history_is_accepted_if_and_only_if_one_of_all_orders_explains_it(story: Story, some_lies: Any) -> None:
    history = told(story, some_lies).history
    found = [each for each in check_by_search(history) if not of_a_key(each)]
    rejected = {command_id for command_id in ("c1", "c2", "nobody") if not explained(history, command_id)}
    assert {each.command_id for each in found} - {None} == rejected


def of_a_key(contradiction: Contradiction) -> bool:
    return "for the same idempotency key" in contradiction.message


def test_a_move_to_where_the_command_is_already_may_be_one_that_comes_later() -> None:
    made = Script()
    made.create(0, 1)
    made.call("mark_dispatched_if_not_terminal", 2, 3, True, dispatched_at=NOON)
    made.call("update_command_state", 4, 10, True, client="again", state="DISPATCHED")
    made.call("update_command_state", 5, 6, True, client="released", state="PENDING")
    made.call("get_command_status", 11, 12, status("DISPATCHED", version=4, dispatched_at=NOON))
    assert check_by_search(made.history) == []


def test_many_calls_at_a_time_are_explained_in_few_steps() -> None:
    made = Script()
    made.create(0, 1)
    for number in range(8):
        made.call("increment_attempt", 2, 100, number + 2, client=f"{number}")
        made.call("get_command_status", 2, 100, status(attempt=number + 1, version=number + 1), client=f"r{number}")
    assert check_by_search(made.history, steps=2_000) == []


def test_hundreds_of_calls_in_turn_take_few_steps() -> None:
    made = Script()
    made.create(0, 1)
    for number in range(400):
        made.call("increment_attempt", 2 + number, 4 + number, number + 2, client=f"{number % 4}")
    assert check_by_search(made.history, steps=10_000) == []


def test_calls_that_nobody_was_told_of_and_that_are_equal_are_tried_once() -> None:
    made = Script()
    made.create(0, 1)
    for number in range(30):
        made.call("increment_attempt", 2 + number, None)
    made.call("get_command_status", 99, 100, status(attempt=16, version=16))
    assert check_by_search(made.history, steps=5_000) == []
    made.call("get_command_status", 101, 102, status(attempt=15, version=15))
    assert check_by_search(made.history, steps=50_000)


def test_what_was_tried_once_is_not_tried_again() -> None:
    made = Script()
    made.create(0, 1)
    for number in range(8):
        made.call("mark_dispatched_if_not_terminal", 2, 100, True, dispatched_at=NOON.replace(minute=number))
    made.call("get_command_status", 101, 102, status("PENDING", version=9))
    assert check_by_search(made.history, steps=40_000)


def test_a_search_that_takes_too_long_says_so() -> None:
    made = Script()
    made.create(0, 1)
    for number in range(12):
        made.call("mark_dispatched_if_not_terminal", 2, 100, True, dispatched_at=NOON.replace(minute=number))
    made.call("get_command_status", 101, 102, status("PENDING", version=13))
    with pytest.raises(Undecided, match="command c1: the search has not come to an end in 1000 steps") as caught:
        check_by_search(made.history, steps=1_000)
    assert (caught.value.command_id, caught.value.steps) == ("c1", 1_000)


def test_a_contradiction_tells_how_far_the_calls_can_be_explained() -> None:
    made = Script()
    made.create(0, 1)
    made.call("increment_attempt", 2, 3, 2)
    made.call("increment_attempt", 4, 5, 2, client="b")
    [found] = check_by_search(made.history)
    assert found.command_id == "c1"
    assert found.operations == tuple(made.history)
    assert found.message == (
        "no order of its 3 answered calls explains every answer: one that explains 2 of them has 3 "
        "where increment_attempt by client b answered 2"
    )


def test_a_call_whose_arguments_nobody_accepts_and_whose_end_nobody_was_told_never_happened() -> None:
    made = Script()
    made.create(1, 2)
    made.call("complete_command", 0, None)
    made.call("get_command_status", 3, 4, status())
    assert check_by_search(made.history) == []


def test_a_call_that_was_told_that_nothing_was_written_has_not_happened() -> None:
    made = Script()
    made.create(0, 1)
    made.call("increment_attempt", 2, 3, Refused("UNAVAILABLE"))
    read = made.call("get_command_status", 4, 5, status())
    assert check_by_search(made.history) == []
    read.answer = status(attempt=2, version=2)
    assert check_by_search(made.history)
