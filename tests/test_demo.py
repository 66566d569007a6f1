import asyncio
import io
import json
import re
import signal
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from registry import (
    AsyncPostgresCommandRegistry,
    CommandState,
    InvalidCommand,
    PostgresCommandRegistry,
    Unavailable,
    is_terminal,
)
from registry.cli.demo import run_demo
from registry.cli.fleet.clock import STEP, STEPS, SimulatedClock
from registry.cli.fleet.day import live_through
from registry.cli.fleet.fates import Fate, Kind, deal
from registry.cli.fleet.lines import DEPLOYMENTS
from registry.cli.fleet.story import read_back
from tests.waiting import until

NOW = datetime(2026, 11, 24, 10, 0, tzinfo=UTC)


def demo(
    dsn: str, *, commands: int = 60, seed: int | None = 7, as_json: bool = False, width: int = 80
) -> tuple[bool, str]:
    printed = io.StringIO()
    console = Console(file=printed, width=width)
    holds = run_demo(dsn, commands=commands, seed=seed, as_json=as_json, console=console)
    return holds, printed.getvalue()


def demo_as_json(dsn: str, **arguments: Any) -> dict[str, Any]:
    holds, printed = demo(dsn, as_json=True, **arguments)
    assert holds
    story: dict[str, Any] = json.loads(printed)
    return story


def rows(dsn: str, sql: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn) as connection:
        return connection.execute(sql.encode()).fetchall()


@pytest.mark.parametrize("seed", [0, 1, None])
def test_every_state_and_every_turn_of_a_command_occurs_in_a_day_of_60_commands(dsn: str, seed: int | None) -> None:
    story = demo_as_json(dsn, seed=seed)
    ended = {state for state, count in story["states"].items() if count}
    assert ended == {"SUCCEEDED", "FAILED", "EXPIRED"}
    passed_through = rows(dsn, "SELECT DISTINCT data ->> 'to_state' FROM command_registry.events WHERE version > 1")
    assert {state for (state,) in passed_through if state} == {"PENDING", "DISPATCHED", *ended}
    created_as = rows(dsn, "SELECT DISTINCT data ->> 'state' FROM command_registry.events WHERE version = 1")
    assert set(created_as) == {("PENDING_UPLOAD",), ("PENDING",)}
    turns = (
        "uploads",
        "dispatches",
        "releases",
        "leases_expired",
        "responses_accepted",
        "responses_refused",
        "expired",
    )
    assert [turn for turn in turns if not story["answers"][turn]] == []
    assert story["redelivered"] > 0
    assert story["in_flight"] == 0


def test_the_figures_add_up_and_are_what_the_database_says(dsn: str) -> None:
    demo(dsn, commands=30)  # the figures are those of one run, whatever was in the database before
    story = demo_as_json(dsn, commands=60)
    run = story["trail"]["history"][0]["context"]["attributes"]["demo_run"]
    mine = f"""
        FROM command_registry.command_status_v1
        JOIN command_registry.events ON stream_id = command_id AND events.version = 1
        WHERE metadata -> 'attributes' ->> 'demo_run' = '{run}'
    """
    states = dict(rows(dsn, f"SELECT state, count(*) {mine} GROUP BY state"))
    attempts = dict(rows(dsn, f"SELECT attempt::text, count(*) {mine} GROUP BY attempt"))
    assert {state: count for state, count in story["states"].items() if count} == states
    assert story["attempts"] == attempts
    assert sum(states.values()) == sum(attempts.values()) == story["commands"] == 60
    assert sum(deployment["commands"] for deployment in story["deployments"]) == 60
    answers = story["answers"]
    assert answers["responses_accepted"] + answers["expired"] == 60
    again = sum((int(attempt) - 1) * count for attempt, count in attempts.items())
    assert answers["releases"] + answers["leases_expired"] == again
    assert story["redelivered"] == 60 - attempts["1"]
    [(events,)] = rows(dsn, "SELECT count(*) FROM command_registry.events")
    verification = story["verification"]
    assert (verification["events"], verification["commands"], verification["rows"]) == (events, 90, 90)


def test_every_event_says_who_caused_it_in_the_course_of_which_request(dsn: str) -> None:
    demo(dsn)
    actors = rows(dsn, "SELECT DISTINCT split_part(metadata ->> 'actor', ':', 1) FROM command_registry.events")
    assert {actor for (actor,) in actors} == {"server", "worker", "reaper", "sweeper"}
    unexplained = (
        "SELECT FROM command_registry.events WHERE num_nulls(metadata -> 'request_id', metadata -> 'traceparent') > 0"
    )
    assert rows(dsn, unexplained) == []


def test_commands_are_pushed_by_the_server_and_pulled_by_workers(dsn: str) -> None:
    demo(dsn)
    dispatchers = """
        SELECT DISTINCT deployment_id, split_part(metadata ->> 'actor', ':', 1)
        FROM command_registry.events JOIN command_registry.command_status_v1 ON command_id = stream_id
        WHERE data ->> 'to_state' = 'DISPATCHED'
    """
    assert set(rows(dsn, dispatchers)) == {
        ("dep_demo_eu", "worker"),
        ("dep_demo_us", "server"),
        ("dep_demo_onprem", "worker"),
    }


def test_the_trail_is_the_most_eventful_commands_and_its_status_is_told_of_an_earlier_moment(dsn: str) -> None:
    story = demo_as_json(dsn)
    trail = story["trail"]
    assert trail["now"]["attempt"] == max(map(int, story["attempts"]))
    assert trail["then_by_time"] == trail["then_by_version"]
    assert trail["then_by_time"]["version"] == trail["version"] < trail["now"]["version"] == len(trail["history"])
    with PostgresCommandRegistry.open(dsn) as registry:
        history = registry.history(trail["command_id"])
    assert [event["hash"] for event in trail["history"]] == [event.hash for event in history]


async def outcomes(dsn: str, fates: list[Fate]) -> list[tuple[CommandState, int]]:
    clock = SimulatedClock(NOW, seed=0)
    async with AsyncPostgresCommandRegistry.open(dsn, deployments="table", clock=clock) as registry:
        for deployment in DEPLOYMENTS:
            await registry.deployment_table.put(deployment)
        statuses = await read_back(registry, await live_through(registry, clock, fates))
    decided = [(status.state, status.attempt) for status in statuses]
    return [outcome for fate, outcome in zip(fates, decided, strict=True) if fate.kind is not Kind.PHOTO_FINISH]


async def test_the_same_seed_gives_the_same_fates_but_for_photo_finishes(dsn: str) -> None:
    assert await outcomes(dsn, deal(80, seed=3)) == await outcomes(dsn, deal(80, seed=3))


@given(seed=st.integers(0, 2**63 - 1), commands=st.integers(50, 200))
@settings(max_examples=50)
def test_every_kind_of_fate_is_dealt_whatever_the_seed(seed: int, commands: int) -> None:
    fates = deal(commands, seed)
    assert {fate.kind for fate in fates} == set(Kind)
    assert fates == deal(commands, seed) != deal(commands, seed + 1)
    assert len(fates) == commands


def test_a_log_that_was_tampered_with_makes_the_demo_fail(dsn: str) -> None:
    with PostgresCommandRegistry.open(dsn) as registry:
        command_id = registry.create_command("dep_1", "sync-data").command_id
    with psycopg.connect(dsn) as superuser:
        superuser.execute("ALTER TABLE command_registry.events DISABLE TRIGGER events_refuse_change")
        superuser.execute("UPDATE command_registry.events SET data = replace(data::text, 'sync-data', 'nothing')::json")
        superuser.execute("ALTER TABLE command_registry.events ENABLE ALWAYS TRIGGER events_refuse_change")
    holds, printed = demo(dsn, commands=5, width=500)
    assert not holds
    assert f"stream {command_id}, version 1: the hash does not match" in printed


def test_the_demo_finds_a_read_model_that_does_not_say_what_its_callers_were_told(dsn: str) -> None:
    with psycopg.connect(dsn) as superuser:
        superuser.execute("""
            CREATE FUNCTION forge() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN NEW.state := 'SUCCEEDED'; RETURN NEW; END $$;
            CREATE TRIGGER forge BEFORE UPDATE ON command_registry.command_status_v1
            FOR EACH ROW WHEN (NEW.state = 'FAILED') EXECUTE FUNCTION forge();
        """)
    holds, printed = demo(dsn, commands=50, width=200)
    assert not holds
    assert "was ended as FAILED, and is SUCCEEDED" in printed


def test_an_overdue_command_of_somebody_else_expires_and_is_not_counted_as_the_demos(dsn: str) -> None:
    with PostgresCommandRegistry.open(dsn) as registry:
        now = datetime.now(UTC)
        overdue = registry.create_command("dep_1", "late", deadline=now - timedelta(hours=1)).command_id
        waiting = registry.create_command("dep_1", "in time", deadline=now + timedelta(minutes=5)).command_id
        story = demo_as_json(dsn, commands=5)
        states = [registry.get_command_status(command_id) for command_id in (overdue, waiting)]
    assert [status and status.state for status in states] == [CommandState.EXPIRED, CommandState.PENDING]
    assert story["answers"]["expired_for_others"] == 1
    assert sum(story["states"].values()) == 5


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_story_is_plain_text_in_a_pipe_and_fits_the_terminal(dsn: str, width: int) -> None:
    holds, printed = demo(dsn, commands=20, width=width)
    assert holds
    assert "\x1b" not in printed
    assert [line for line in printed.splitlines() if len(line.rstrip()) > width] == []
    assert re.search(r"seed\s7", printed)
    assert "…" not in printed


def test_the_smallest_demo_is_one_command(dsn: str) -> None:
    assert demo_as_json(dsn, commands=1)["commands"] == 1


@pytest.mark.parametrize("commands", [0, -1, 100_001])
def test_a_number_of_commands_out_of_range_is_refused_before_anything_is_opened(commands: int) -> None:
    with pytest.raises(InvalidCommand, match=r"commands: must be in 1\.\.100000"):
        run_demo("host=nowhere.invalid", commands=commands, seed=None, as_json=False, console=Console())


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_out_of_range_is_refused_before_anything_is_opened(seed: int) -> None:
    with pytest.raises(InvalidCommand, match="seed: must be in"):
        run_demo("host=nowhere.invalid", commands=1, seed=seed, as_json=False, console=Console())


async def test_a_failure_in_the_middle_of_a_day_rises_as_it_is(dsn: str) -> None:
    clock = SimulatedClock(NOW, seed=0)
    registry = AsyncPostgresCommandRegistry.open(dsn, clock=clock)
    with pytest.raises(Unavailable, match="not open"):
        await live_through(registry, clock, deal(10, seed=0))


def test_a_demo_that_is_interrupted_leaves_no_connection_and_a_log_that_holds(dsn: str) -> None:
    script = (
        "import sys; from rich.console import Console; from registry.cli.demo import run_demo\n"
        "run_demo(sys.argv[1], commands=5000, seed=1, as_json=False, console=Console())"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, f"{dsn} application_name=interrupted"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        restore_signals=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        until(lambda: rows(dsn, "SELECT FROM command_registry.events LIMIT 1"), "the demo to write")
        process.send_signal(signal.SIGINT)
        _, complaint = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == -signal.SIGINT
    assert complaint.rstrip().endswith("KeyboardInterrupt")
    assert "never" not in complaint  # awaited, or retrieved
    left = "SELECT FROM pg_stat_activity WHERE application_name = 'interrupted'"
    until(lambda: not rows(dsn, left), "the demo's connections to go")
    with PostgresCommandRegistry.open(dsn) as registry:
        assert registry.verify().ok


async def test_actors_of_one_step_run_at_once_and_the_clock_waits_for_them() -> None:
    clock = SimulatedClock(NOW, seed=0)
    meeting = asyncio.Barrier(3)
    steps: list[int] = []

    async def actor() -> None:
        await clock.sleep(10)
        await meeting.wait()  # would never end if one came after the other
        steps.append(clock.step)
        await clock.sleep(STEPS)
        raise AssertionError("the day is over")

    await clock.run(*(actor() for _ in range(3)))
    assert steps == [10, 10, 10]


async def test_an_actor_whose_cancellation_got_lost_in_a_call_still_ends_with_the_day() -> None:
    clock = SimulatedClock(NOW, seed=0)
    called = asyncio.Event()

    async def actor() -> None:
        called.set()
        with suppress(asyncio.CancelledError):  # as asyncio.wait_for may do until Python 3.12
            await asyncio.Event().wait()
        await clock.sleep()

    day = asyncio.create_task(clock.run(actor()))
    await called.wait()
    day.cancel()
    done, _ = await asyncio.wait([day], timeout=20)
    assert done == {day}
    assert day.cancelled()


@given(seed=st.integers(0, 1000), readings=st.lists(st.integers(1, 40), max_size=50))
def test_the_simulated_time_never_goes_back_and_never_leaves_its_step_or_its_day(
    seed: int, readings: list[int]
) -> None:
    clock = SimulatedClock(NOW, seed)
    told = [clock.start]

    async def actor() -> None:
        for count in readings:
            for _ in range(count):
                told.append(clock())
                assert clock.at(clock.step) <= told[-1] < clock.at(clock.step) + STEP <= NOW
            await clock.sleep()

    asyncio.run(clock.run(actor()))
    assert told == sorted(told)


def test_no_fate_reaches_beyond_the_day() -> None:
    for fate in deal(2_000, seed=0):
        assert fate.created + (fate.upload or 0) + sum(attempt.steps for attempt in fate.attempts) < STEPS
        assert is_terminal(fate.result)
