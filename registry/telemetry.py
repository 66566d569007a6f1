"""A registry's figures as OpenTelemetry metrics (extra `opentelemetry`: the API only; the program brings its SDK).

    from registry.telemetry import instrument

    instrument(registry)  # once it is open; `registry.stats()` gives the same figures without OpenTelemetry

Counters: command_registry.calls, .conflicts, .retries, .reconnections, .unknown_outcomes. Histograms:
command_registry.batch.size (calls), .queue.time and .statement.time (seconds). What each means: `eventstore.metrics`.
"""

from collections.abc import Callable, Iterable
from typing import Final, Protocol

from eventstore.metrics import DURATIONS, SIZES, Metrics

try:
    from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation, get_meter_provider
except ImportError as error:
    raise ImportError("OpenTelemetry is not installed: pip install 'command-registry[opentelemetry]'") from error

__all__ = ["instrument"]

_COUNTERS: Final = {
    "calls": ("calls", "{call}", "Calls that went in batches"),
    "conflicts": ("conflicts", "{statement}", "Statements refused because another writer came first"),
    "retries": ("retries", "{statement}", "Statements sent again after a deadlock and the like"),
    "reconnections": ("reconnections", "{connection}", "Connections lost while a statement was under way"),
    "unknown": ("unknown_outcomes", "{call}", "Calls that ended with OutcomeUnknown"),
}
_HISTOGRAMS: Final = {
    "batch_size": ("batch.size", "{call}", "Calls in a batch", SIZES),
    "queue_time": ("queue.time", "s", "How long the first call of a batch waited for it to begin", DURATIONS),
    "statement_time": ("statement.time", "s", "How long a statement took", DURATIONS),
}


class _HasStats(Protocol):
    def stats(self) -> Metrics: ...


def instrument(registry: _HasStats, meter_provider: MeterProvider | None = None) -> None:
    """Export the figures of an open registry on Postgres; `meter_provider`: default the process's own.

    Raises:
        Unavailable: the registry is not open.
    """
    metrics = registry.stats()
    meter = (meter_provider or get_meter_provider()).get_meter("command_registry")
    for field, (name, unit, description) in _COUNTERS.items():
        meter.create_observable_counter(
            f"command_registry.{name}", [_observe(metrics, field)], unit=unit, description=description
        )
    histograms = {
        field: meter.create_histogram(
            f"command_registry.{name}", unit=unit, description=description, explicit_bucket_boundaries_advisory=bounds
        )
        for field, (name, unit, description, bounds) in _HISTOGRAMS.items()
    }
    metrics.listener = lambda field, value: histograms[field].record(value)


def _observe(metrics: Metrics, field: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
    return lambda _: [Observation(getattr(metrics, field))]
