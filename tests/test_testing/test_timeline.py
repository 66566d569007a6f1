import re
from typing import Any
from xml.etree import ElementTree as ET

from hypothesis import given, settings

from registry.testing.contradictions import Contradiction
from registry.testing.linearizability import check_against_log
from registry.testing.recording import Operation
from registry.testing.timeline import as_svg, as_text
from registry.testing.values import HOSTILE
from tests.test_testing.simulating import Script, Story, lies, status, stories, told

SVG = "{http://www.w3.org/2000/svg}"


def stale() -> tuple[list[Operation], Contradiction]:
    made = Script()
    created = made.create(0, 10)
    counted = made.call("increment_attempt", 20, 30, 2, client="b")
    made.call("increment_attempt", 22, None, client="c")
    made.call("get_command_status", 31, 40, status(), client="b")
    made.wrote(created, counted)
    [found] = check_against_log(made.history, made.log)
    return made.history, found


def test_text_shows_lanes_answers_places_and_what_must_come_before_what() -> None:
    title, _, drawn = as_text(*stale()).partition("\n\n")
    assert title.startswith("command c1: get_command_status by client b answered status PENDING, attempt 1, version 1")
    assert (
        drawn
        == """\
a  ├1─────┤
b                  ╞2═════════════╡        ╞4═════╡
c                          ├3──────────────────────────────────────────────────────────────────────────────────────────>

   1  a: create_command(deployment_id=dep, command_name=x) → c1  [wrote version 1]
*  2  b: increment_attempt() → 2  [wrote version 2]
   3  c: increment_attempt() → ?  [never happened]
*  4  b: get_command_status() → status PENDING, attempt 1, version 1  [at no version]

      2 (wrote version 2) must come before 4 (at no version): it had ended before that began.
"""
    )


@settings(max_examples=200, deadline=None)
@given(stories(50), lies)
def test_any_history_can_be_drawn(story: Story, some_lies: Any) -> None:
    story = told(story, some_lies)
    found = check_against_log(story.history, story.log)
    for contradiction in [None, *found[:1]]:
        text = as_text(story.history, contradiction)
        assert all(len(line) <= 120 for line in text.splitlines())
        root = ET.fromstring(as_svg(story.history, contradiction))  # noqa: S314 - it is our own
        assert len(root.findall(f"{SVG}g")) == min(len(story.history), 40)


def test_nothing_can_be_drawn() -> None:
    nothing = Contradiction("c1", "the event at version 1 has no request id")
    assert as_text([], nothing) == "command c1: the event at version 1 has no request id\n"
    ET.fromstring(as_svg([], nothing))  # noqa: S314


def test_every_bar_is_where_its_call_was() -> None:
    text = as_text(*stale())
    lanes = {line[0]: line for line in text.splitlines() if re.match(r"[abc]  .*[├╞]", line)}
    assert lanes["a"].index("┤") < lanes["b"].index("╞2") < lanes["c"].index("├3") < lanes["b"].index("╡")
    assert lanes["b"].index("╡") < lanes["b"].index("╞4")


def test_calls_of_one_client_at_a_time_are_in_rows_of_their_own() -> None:
    made = Script()
    for number in range(3):
        made.call("increment_attempt", number, 10 + number, number, client="tasks")
    bars = [line for line in as_text(made.history).splitlines() if "├" in line]
    assert [line.partition("├")[0].strip() for line in bars] == ["tasks", "", ""]


def test_what_is_nearest_to_the_contradiction_is_drawn_of_many_operations() -> None:
    made = Script()
    for number in range(300):
        made.call("increment_attempt", 2 * number, 2 * number + 1, number, client="abc"[number % 3])
    found = Contradiction("c1", "cannot be", (made.history[250],))
    text = as_text(made.history, found)
    assert "(260 more operations are not shown)" in text
    assert "increment_attempt() → 250" in text
    assert "260 more operations are not shown" in as_svg(made.history, found)
    assert all(len(line) <= 120 for line in text.splitlines())


def test_nothing_that_was_said_can_break_the_drawing() -> None:
    made = Script()
    for number, nasty in enumerate([*HOSTILE, "\x00", "<b>&amp;</b>", "\ud800", "\x1b[31m", "]]>", "a\nb"]):
        made.call("update_command_state", number, number + 5, nasty, client=nasty * 9, state=nasty, error=nasty)
    found = Contradiction("<&>\x00\n", "\u202e" * 300, tuple(made.history))
    svg = as_svg(made.history, found)
    svg.encode()
    root = ET.fromstring(svg)  # noqa: S314
    assert "<b>&amp;</b>" in "".join(root.itertext())
    text = as_text(made.history, found)
    text.encode()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e]", text)


def test_what_cannot_be_is_marked_and_joined_by_an_arrow() -> None:
    history, found = stale()
    root = ET.fromstring(as_svg(history, found))  # noqa: S314
    kinds = [path.get("class") for path in root.iter(f"{SVG}path")]
    assert (kinds.count("told"), kinds.count("bar"), kinds.count("edge")) == (2, 2, 1)
    assert not re.search(r"(href|url\(http|<script|<image)", as_svg(history, found))


def test_an_arrow_leads_only_to_what_comes_next() -> None:
    made = Script()
    for number in range(3):
        made.call("increment_attempt", 10 * number, 10 * number + 5, 2)
    made.call("increment_attempt", 0, 100, 2, client="b")
    text = as_text(made.history, Contradiction("c1", "cannot be", tuple(made.history)))
    assert re.findall(r"(\d) must come before (\d)", text) == [("1", "3"), ("3", "4")]
