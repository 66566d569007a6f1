"""What came of a run: every sample; and of them medians, with their spread, and ratios."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import NamedTuple

from benchmarks.contenders import Contender
from benchmarks.disk import Disk
from benchmarks.disturbance import TOO_MUCH
from benchmarks.sample import Sample
from benchmarks.targets import TARGETS, Target

__all__ = ["FIGURES", "Audit", "Figure", "Ratio", "Results", "figure"]


class Figure(NamedTuple):
    """A median over the rounds, with the least and the most of them."""

    median: float
    least: float
    most: float


class Ratio(NamedTuple):
    """A ratio of medians, and what it came to in the worst and in the best round.

    `contender`, `over`: whose figures are above and below. `complete`: both are the best of all that they could be, and
    none of those was left out.
    """

    target: Target
    contender: str
    over: str
    complete: bool
    value: float
    least: float
    most: float

    @property
    def met(self) -> bool:
        """Whether it is as large as it should be."""
        return self.value >= self.target.least


class Audit(NamedTuple):
    """What a verification found in a database that the registry wrote; without problems, everything is as written."""

    contender: str
    events: int
    problems: tuple[str, ...]


@dataclass(slots=True)
class Results:
    """Every sample of a run, by contender and round; the audits; and the sizes on disk.

    `others`: which share of all CPU others took, in each measurement where that could be known.
    """

    contenders: Sequence[Contender]
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    others: list[float] = field(default_factory=list)
    audits: list[Audit] = field(default_factory=list)
    disk: Disk | None = None

    def add(self, contender: Contender, sample: Sample, others: float | None) -> None:
        """Note what came of a measurement."""
        self.samples.setdefault(contender.name, []).append(sample)
        if others is not None:
            self.others.append(others)

    @property
    def disturbance(self) -> Figure | None:
        """The share of all CPU that others took."""
        return Figure(median(self.others), min(self.others), max(self.others)) if self.others else None

    @property
    def disturbed(self) -> bool:
        """Whether others took so much that the ratios are not to be trusted."""
        return any(share > TOO_MUCH for share in self.others)

    @property
    def intact(self) -> bool:
        """Whether everything that the registry wrote verified."""
        return not any(audit.problems for audit in self.audits)

    def measured(self) -> Iterable[tuple[Contender, list[Sample]]]:
        """Give the contenders that were measured, and their samples."""
        return [(each, self.samples[each.name]) for each in self.contenders if self.samples.get(each.name)]

    def ratios(self) -> list[Ratio]:
        """Give the ratios of which both sides were measured."""
        return [ratio for target in TARGETS if (ratio := self._ratio(target))]

    def _ratio(self, target: Target) -> Ratio | None:
        rates = {name: [sample.rate for sample in samples] for name, samples in self.samples.items() if samples}
        sides = [[name for name in names if name in rates] for names in (target.contenders, target.over)]
        if not all(sides):
            return None
        contender, over = (max(known, key=lambda name: median(rates[name])) for known in sides)
        by_round = [above / below for above, below in zip(rates[contender], rates[over], strict=False)]
        value = median(rates[contender]) / median(rates[over])
        complete = sides == [list(target.contenders), list(target.over)]
        return Ratio(target, contender, over, complete, value, min(by_round), max(by_round))


def figure(samples: Sequence[Sample], value: Callable[[Sample], float | None]) -> Figure | None:
    """Give the median of a value over the rounds, if it could be had in each of them."""
    values = [known for sample in samples if (known := value(sample)) is not None]
    return Figure(median(values), min(values), max(values)) if values else None


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000


def _per_thousand(seconds: float | None, sample: Sample) -> float | None:
    """Give CPU seconds for each 1,000 of what was done."""
    return None if seconds is None else seconds * 1000 / sample.work


FIGURES: Mapping[str, Callable[[Sample], float | None]] = {
    "rate": lambda sample: sample.rate,
    "p50_ms": lambda sample: _milliseconds(sample.p50),
    "p99_ms": lambda sample: _milliseconds(sample.p99),
    "client_cpu_s_per_1000": lambda sample: _per_thousand(sample.client_cpu, sample),
    "server_cpu_s_per_1000": lambda sample: _per_thousand(sample.server_cpu, sample),
    "peak_memory_mib": lambda sample: None if sample.peak_memory is None else sample.peak_memory / 2**20,
}
"""What is told of every contender."""
