"""The figures of a registry, plain and as OpenTelemetry metrics."""

import asyncio
import subprocess
import sys
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from eventstore import Unavailable
from eventstore.metrics import Histogram
from registry import AsyncPostgresCommandRegistry, PostgresCommandRegistry
from registry.telemetry import instrument

CALLERS = 20


def exported(reader: InMemoryMetricReader) -> dict[str, Any]:
    data = reader.get_metrics_data()
    assert data is not None
    return {
        metric.name: metric.data.data_points[0]
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


async def test_opentelemetry_is_told_what_stats_tell(dsn: str) -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    async with AsyncPostgresCommandRegistry.open(dsn) as registry:
        instrument(registry, provider)
        before = registry.stats().statement_time.count
        command_id = (await registry.create_command("dep", "sync")).command_id
        await asyncio.gather(*(registry.increment_attempt(command_id) for _ in range(CALLERS)))
        stats = registry.stats()
        points = exported(reader)
    provider.shutdown()
    assert points["command_registry.calls"].value == stats.calls == CALLERS + 1
    assert points["command_registry.conflicts"].value == stats.conflicts == 0
    assert points["command_registry.batch.size"].sum == stats.batch_size.sum == CALLERS + 1
    assert points["command_registry.batch.size"].max == stats.batch_size.max > 1
    assert points["command_registry.statement.time"].count == stats.statement_time.count - before
    assert points["command_registry.queue.time"].count == stats.batch_size.count
    for name in ("retries", "reconnections", "unknown_outcomes"):
        assert points[f"command_registry.{name}"].value == 0


def test_a_conflict_with_another_registry_is_counted(dsn: str) -> None:
    with PostgresCommandRegistry.open(dsn) as mine, PostgresCommandRegistry.open(dsn) as other:
        command_id = mine.create_command("dep", "sync").command_id
        assert other.increment_attempt(command_id) == 2
        assert mine.stats().conflicts == 0
        assert mine.increment_attempt(command_id) == 3  # it believed in version 1
        assert (mine.stats().conflicts, other.stats().conflicts) == (1, 0)


def test_only_an_open_registry_has_figures(dsn: str) -> None:
    with pytest.raises(Unavailable, match="not open"):
        instrument(PostgresCommandRegistry(dsn))


def test_a_histogram_counts_a_value_in_the_bucket_whose_bound_it_does_not_pass() -> None:
    histogram = Histogram((1, 2, 4))
    for value in (0.5, 1, 1.5, 4, 4.1, 100):
        histogram.record(value)
    assert histogram.counts == [2, 1, 1, 2]
    assert (histogram.count, histogram.max, histogram.mean) == (6, 100, 111.1 / 6)
    assert Histogram((1,)).mean == 0


def test_without_opentelemetry_the_error_names_the_extra() -> None:
    code = "import sys; sys.modules['opentelemetry.metrics'] = None; import registry.telemetry"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'command-registry[opentelemetry]'" in result.stderr
