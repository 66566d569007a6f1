"""The benchmark measures all that it should, with rows that are right, and leaves nothing behind. Not: how fast."""

import io
import json
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from benchmarks import pgbench
from benchmarks.contenders import QUICK, Contender, Group, chosen, contenders
from benchmarks.copying import LOADS as COPYING
from benchmarks.copying import load
from benchmarks.disk import measure_disk
from benchmarks.disturbance import Watch
from benchmarks.life import command_id, life, retried_life
from benchmarks.progress import Progress
from benchmarks.rebuilding import LOADS as REBUILDING
from benchmarks.results import FIGURES, Results
from benchmarks.rounds import play
from benchmarks.sample import Job, Sample, percentile
from benchmarks.server import Server, opened
from benchmarks.targets import TARGETS
from benchmarks.usage import server_cpu
from registry import CommandState, PostgresCommandRegistry
from registry.ids import new_command_id
from tests.conftest import Databases
from tests.waiting import until

ROOT = Path(__file__).parent.parent
PROGRAM = pgbench.find_pgbench()

needs_pgbench = pytest.mark.skipif(PROGRAM is None, reason="pgbench is not to be had here")


def bench(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False)


NEEDED = sorted({name for target in TARGETS for name in (target.contenders[0], target.over[0])})
"""Contenders enough for every ratio: all of them would take half a minute."""


@pytest.fixture(scope="module")
def run(
    servers: Callable[[str], Databases], tmp_path_factory: pytest.TempPathFactory
) -> tuple[subprocess.CompletedProcess[str], Path]:
    document = tmp_path_factory.mktemp("bench") / "bench.json"
    options = ["--quick", "--seconds", "0.1", "--dsn", servers("default").server_dsn]
    options += [part for name in NEEDED for part in ("--only", name)]
    return bench(*options, BENCH_JSON=str(document)), document


@needs_pgbench
def test_all_take_part_that_should() -> None:
    names = [each.name for each in contenders(PROGRAM, growth=True)]
    assert [name for name in names if name.startswith("asyncio")] == [f"asyncio-{n}" for n in (1, 8, 64, 512)]
    assert [name for name in names if name.startswith("threads")] == [f"threads-{n}" for n in (1, 8, 64)]
    assert {f"pgbench-{n}" for n in (1, 8, 32)} | {"copy"} | {f"eventsourcing-{n}" for n in (1, 2, 4, 8, 16)} < set(
        names
    )
    assert {f"{what}-at-{size}" for what in ("lives", "reads") for size in ("10k", "100k", "1m")} < set(names)
    assert {f"rebuild-at-{size}" for size in ("100k", "1m", "5m")} < set(names)
    assert {name for target in TARGETS for name in (*target.contenders, *target.over)} < set(names)
    assert not any("-at-" in each.name for each in contenders(PROGRAM, growth=False))
    assert [each.name for each in contenders(None, growth=True)] == [name for name in names if "pgbench" not in name]


@needs_pgbench
def test_a_run_tells_of_every_contender_and_every_ratio(run: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    done, _ = run
    assert done.returncode == 0, done.stderr
    for contender in chosen(list(contenders(PROGRAM, growth=True)), NEEDED):
        assert contender.title in done.stdout
    for target in TARGETS:
        assert re.search(rf"^ ?{re.escape(target.name)} +\d+\.\d\d .* not judged$", done.stdout, re.MULTILINE), target
    assert "targets met" not in done.stdout
    assert re.search(r"^Verified: [\d,]+ events in 5 databases", done.stdout, re.MULTILINE)


@needs_pgbench
def test_the_document_holds_every_figure(run: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    told = json.loads(run[1].read_text("utf-8"))
    assert {name: ratio["target"] for name, ratio in told["ratios"].items()} == {
        target.name: target.least for target in TARGETS
    }
    assert all(ratio["value"] > 0 for ratio in told["ratios"].values())
    assert all(ratio["met"] is None for ratio in told["ratios"].values())
    assert [ratio["complete"] for ratio in told["ratios"].values()] == [len(target.over) == 1 for target in TARGETS]
    figures = told["contenders"] | told["growth"]
    assert sorted(figures) == NEEDED
    assert all(name.startswith(("lives-at-", "reads-at-", "rebuild-at-")) for name in told["growth"])
    for name, known in figures.items():
        assert {*FIGURES, "title"} == set(known), name
        assert known["rate"]["least"] <= known["rate"]["median"] <= known["rate"]["most"]
        if name == "tailing":  # nobody calls it
            assert known["p50_ms"] is known["p99_ms"] is None
        else:
            assert 0 < known["p50_ms"]["median"] <= known["p99_ms"]["median"], name
    assert told["disk"]["relations"].keys() >= {"events", "events_pkey", "command_status_v1", "command_status_v1_pkey"}
    assert told["audit"]["problems"] == 0
    assert told["machine"]["durable"] is False
    assert told["run"]["quick"] is True


def test_a_server_that_may_lose_commits_is_warned_of(run: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    done, _ = run
    warning = "WARNING: fsync and synchronous_commit and full_page_writes off on this server"
    assert warning in done.stdout
    assert warning in done.stderr


def left_behind(databases: Databases, stderr: str) -> list[str]:
    found = re.search(r"called (crb_[0-9a-f]{8})_", stderr)
    assert found, stderr
    with psycopg.connect(databases.server_dsn) as connection:
        rows = connection.execute("SELECT datname FROM pg_database WHERE starts_with(datname, %s)", (found[1],))
        return [name for (name,) in rows]


def test_a_run_leaves_no_database_behind(
    run: tuple[subprocess.CompletedProcess[str], Path], databases: Databases
) -> None:
    assert left_behind(databases, run[0].stderr) == []


def test_an_interrupted_run_leaves_nothing_behind(databases: Databases) -> None:
    command = [sys.executable, "-m", "benchmarks", "--seconds", "60", "--only", "asyncio-1"]
    process = subprocess.Popen(
        [*command, "--dsn", databases.server_dsn], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    told = ""
    while "round 1" not in told:
        line = process.stderr.readline()
        assert line, told
        told += line
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in rest
    assert left_behind(databases, told) == []


@pytest.mark.parametrize(
    ("arguments", "document", "told"),
    [
        (["--only", "nobody"], "", "there are: asyncio-1, asyncio-8"),
        (["--quick"], "/nowhere/bench.json", "/nowhere/bench.json cannot be written"),
    ],
    ids=["an unknown contender", "a document that cannot be written"],
)
def test_a_wrong_call_is_told_at_once(arguments: list[str], document: str, told: str) -> None:
    done = bench(*arguments, BENCH_JSON=document, COLUMNS="1000")
    assert done.returncode == 2
    assert told in done.stderr


def test_a_server_that_cannot_be_reached_is_one_line(tmp_path: Path) -> None:
    done = bench("--quick", "--dsn", f"host={tmp_path} password=geheim")
    assert done.returncode == 1
    assert re.fullmatch(r"error: .*\n", done.stderr)
    assert "geheim" not in done.stderr


def test_copied_commands_are_as_the_registry_would_have_written_them(dsn: str) -> None:
    progress: list[int] = []
    load(dsn, 1_500, progress.append)
    assert progress == [1_000, 1_500]
    with PostgresCommandRegistry.open(dsn) as registry:
        report = registry.verify()
        assert (report.events, report.streams, report.rows, report.problems) == (4_500, 1_500, 1_500, [])
        status = registry.get_command_status(command_id(1_234))
        assert status is not None
        assert (status.state, status.version) == (CommandState.SUCCEEDED, 3)
        assert [entry.context.actor for entry in registry.history(command_id(0))] == ["scheduler"] * 3
    assert measure_disk(dsn).events == 4_500


def test_copied_commands_may_have_had_a_second_attempt(dsn: str) -> None:
    load(dsn, 10, lived=retried_life)
    with PostgresCommandRegistry.open(dsn) as registry:
        report = registry.verify()
        assert (report.events, report.streams, report.rows, report.problems) == (40, 10, 10, [])
        status = registry.get_command_status(command_id(9))
        assert status is not None
        assert (status.state, status.version, status.attempt) == (CommandState.SUCCEEDED, 4, 2)


def test_numbered_ids_are_as_long_as_the_registrys_own_and_come_before_them() -> None:
    ids = [command_id(0), command_id(1), command_id(10**15), new_command_id()]
    assert sorted(ids) == ids
    assert len({len(each) for each in ids}) == 1


def job(dsn: str, load: str, callers: int = 3, commands: int = 0) -> Job:
    return Job(dsn=dsn, load=load, callers=callers, seconds=0.01, warm_up=0.0, commands=commands, postmaster=None)


@needs_pgbench
def test_pgbench_writes_what_the_registry_writes_but_for_the_hashes(
    dsn: str, connection: psycopg.Connection[Any]
) -> None:
    assert PROGRAM is not None
    sample = pgbench.measure(PROGRAM, job(dsn, "lives"))
    assert sample.work >= 90
    expected = [write.event for write in life(command_id(0), datetime.now(UTC))]
    stored = connection.execute(
        "SELECT version, type, length(data::text), count(*) FROM command_registry.events GROUP BY 1, 2, 3"
    )
    assert sorted(stored) == [
        (event.version, event.type, len(event.data), (sample.work + 90) // 3) for event in expected
    ]
    statuses = connection.execute("SELECT DISTINCT state, version, attempt FROM command_registry.command_status_v1")
    assert statuses.fetchall() == [("SUCCEEDED", 3, 1)]
    ids = connection.execute("SELECT DISTINCT length(stream_id) FROM command_registry.events")
    assert ids.fetchall() == [(len(command_id(0)),)]


@needs_pgbench
def test_pgbench_reads_rows_that_are_there(dsn: str, connection: psycopg.Connection[Any]) -> None:
    assert PROGRAM is not None
    load(dsn, 1_000)  # in a small table Postgres would look at every row
    sample = pgbench.measure(PROGRAM, job(dsn, "reads", commands=1_000))
    fetched = "SELECT FROM pg_stat_user_tables WHERE relname = 'command_status_v1' AND idx_tup_fetch >= %s"
    until(
        lambda: connection.execute(fetched, (sample.work + 90,)).fetchall(), "the server's count of rows found by key"
    )


@pytest.mark.parametrize(
    ("load_name", "events"), [("rebuild", 800), ("follow", 800), ("append", None)], ids=["built", "followed", "both"]
)
def test_a_read_model_is_made_of_the_whole_log_and_leaves_nothing_behind(
    dsn: str, connection: psycopg.Connection[Any], load_name: str, events: int | None
) -> None:
    load(dsn, 200, lived=retried_life)
    seconds = 10.0 if load_name == "follow" else 0.1  # it ends with the log
    sample = REBUILDING[load_name](job(dsn, load_name, 2, 200).model_copy(update={"seconds": seconds}))
    assert sample.work == events or events is None
    assert sample.work > 0
    relations = "SELECT relname FROM pg_class WHERE relname ~ '(command|followed)_status' AND relkind IN ('r', 'v')"
    assert sorted(connection.execute(relations).fetchall()) == [("command_status",), ("command_status_v1",)]
    known = connection.execute("SELECT name, version, in_force FROM command_registry.projections")
    assert known.fetchall() == [("command_status", 1, True)]
    with PostgresCommandRegistry.open(dsn) as registry:
        report = registry.verify()
    assert report.problems == []
    shown = connection.execute("SELECT count(*) FROM command_registry.command_status").fetchone()
    assert shown == (report.streams,)


def test_the_whole_log_is_copied_out(dsn: str) -> None:
    load(dsn, 200, lived=retried_life)
    sample = COPYING["copy-out"](job(dsn, "copy-out"))
    assert sample.work >= 800
    assert sample.work % 800 == 0


@pytest.fixture
def server(databases: Databases) -> Iterator[Server]:
    with opened(databases.server_dsn) as server:
        yield server


def contender(client: Callable[[Job], Sample]) -> Contender:
    return Contender("asyncio-64", "somebody", Group.LIVES, client, "asyncio", 1, audited=True)


def played(server: Server, client: Callable[[Job], Sample]) -> Results:
    with Progress(Console(file=io.StringIO()), 1.0) as progress:
        return play(server, [contender(client)], QUICK, progress)


def sample(work: int, seconds: float = 1.0) -> Sample:
    return Sample(work=work, seconds=seconds, p50=0.1, p99=0.2, client_cpu=0.3, server_cpu=None)


def write(job: Job, then: str = "") -> Sample:
    with PostgresCommandRegistry.open(job.dsn) as registry:
        registry.create_command("dep_eu1", "sync-data")
    with psycopg.connect(job.dsn) as connection:
        connection.execute(then.encode())
    return sample(1)


def test_what_the_registry_wrote_is_verified(server: Server) -> None:
    results = played(server, write)
    assert results.intact
    assert [audit.events for audit in results.audits] == [301]
    assert results.disk is not None
    assert results.disk.events == 301


def test_a_row_that_is_not_what_was_written_is_a_failure(server: Server) -> None:
    change = "UPDATE command_registry.command_status_v1 SET state = 'FAILED' WHERE state = 'PENDING'"
    results = played(server, lambda job: write(job, change))
    assert not results.intact
    assert "state is 'FAILED', the log says" in results.audits[0].problems[0]


def test_an_event_that_was_counted_and_is_not_there_is_a_failure(server: Server) -> None:
    results = played(server, lambda job: sample(2))
    assert results.audits[0].problems == ("300 events are there, and 302 were said to be written",)


def test_the_servers_cpu_is_that_of_all_its_processes_those_that_ended_included(server: Server) -> None:
    server.create()
    if server.postmaster is None:
        pytest.skip("the server is not on this machine")
    before = server_cpu(server.postmaster)
    with psycopg.connect(server.dsn("postgres")) as connection:
        connection.execute("SELECT count(*) FROM generate_series(1, 1000000)")
    after = server_cpu(server.postmaster)
    assert before is not None
    assert after is not None
    assert after > before


def test_what_others_take_of_the_cpu_is_seen(server: Server) -> None:
    server.create()
    if server.postmaster is None:
        pytest.skip("the server is not on this machine")
    watch = Watch(server.postmaster)
    script = "import time\nwhile time.process_time() < 0.4: pass\nprint(flush=True)\ninput()"
    other = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with other:
        assert other.stdout is not None
        other.stdout.readline()
        share = watch.share()  # not one of our clients: those have ended
        other.communicate(b"\n")
    assert share is not None
    assert share > 0.02


@pytest.mark.parametrize(("others", "disturbed"), [([], False), ([0.02, 0.05], False), ([0.02, 0.2], True)])
def test_a_run_that_others_disturbed_says_so(others: list[float], disturbed: bool) -> None:
    assert Results([], others=others).disturbed is disturbed


def test_ratios_are_of_medians_and_over_the_best_of_several() -> None:
    rates = {"asyncio-64": [30, 10, 20], "pgbench-1": [1, 1, 1], "pgbench-8": [5, 10, 20], "pgbench-32": [2, 2, 90]}
    samples = {name: [sample(rate) for rate in of_rounds] for name, of_rounds in rates.items()}
    [ratio] = Results([], samples).ratios()
    assert ratio.target.name == "64 asyncio callers / pgbench best"
    assert (ratio.over, ratio.value, ratio.least, ratio.most, ratio.met) == ("pgbench-8", 2.0, 1.0, 6.0, True)
    assert ratio.complete


def test_ratios_are_of_the_best_of_several() -> None:
    rates = {"rebuild-1": [30, 30, 30], "rebuild-2": [20, 80, 50], "copy-out": [100, 100, 100]}
    samples = {name: [sample(rate) for rate in of_rounds] for name, of_rounds in rates.items()}
    first, second = Results([], samples).ratios()
    assert (first.target.name, first.contender, first.value) == ("rebuild, end to end / COPY out", "rebuild-2", 0.5)
    assert (first.least, first.most, first.complete) == (0.2, 0.8, True)
    assert (second.target.name, second.value) == ("rebuild, 2 workers / 1 worker", 5 / 3)
    del samples["rebuild-2"]
    [only] = Results([], samples).ratios()
    assert (only.contender, only.value, only.complete) == ("rebuild-1", 0.3, False)


@given(st.lists(st.floats(0, 1e6), min_size=1), st.sampled_from([50, 99]))
def test_a_percentile_is_the_smallest_value_that_so_many_do_not_exceed(values: list[float], percent: int) -> None:
    found = percentile(sorted(values), percent)
    assert sum(value <= found for value in values) >= len(values) * percent / 100
    assert sum(value < found for value in values) < math.ceil(len(values) * percent / 100)
