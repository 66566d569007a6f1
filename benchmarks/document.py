"""The results as JSON, for programs: the names of contenders and ratios stay the same from version to version."""

import json
from pathlib import Path

from pydantic import JsonValue

from benchmarks.contenders import Group, Pace
from benchmarks.machine import Machine
from benchmarks.results import FIGURES, Results, figure

__all__ = ["document", "write"]


def write(path: Path, results: Results, machine: Machine, pace: Pace) -> None:
    """Write the document to a file, all of it or nothing."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(document(results, machine, pace), indent=2, allow_nan=False) + "\n", "utf-8")
    part.replace(path)


def document(results: Results, machine: Machine, pace: Pace) -> dict[str, JsonValue]:
    """Make the document.

    Rates are events a second (of reads: reads a second), as `median`, `least` and `most` of the rounds. A quick run
    does not say whether a target is met.
    """
    growth = [each.name for each in results.contenders if each.group is Group.GROWTH]
    figures, shares = _figures(results), results.disturbance
    return {
        "ratios": {
            ratio.target.name: {
                "value": ratio.value,
                "target": ratio.target.least,
                "met": None if pace.quick else ratio.met,
                "least": ratio.least,
                "most": ratio.most,
                "contender": ratio.contender,
                "over": ratio.over,
                "complete": ratio.complete,
            }
            for ratio in results.ratios()
        },
        "contenders": {name: value for name, value in figures.items() if name not in growth},
        "growth": {name: value for name, value in figures.items() if name in growth},
        "disk": _disk(results),
        "others": {"disturbed": results.disturbed, "cpu_share": shares._asdict() if shares else None},
        "audit": {
            "databases": len(results.audits),
            "events": sum(audit.events for audit in results.audits),
            "problems": sum(len(audit.problems) for audit in results.audits),
        },
        "machine": {**machine.model_dump(), "durable": not machine.not_durable},
        "run": {
            "quick": pace.quick,
            "rounds": pace.rounds,
            "seconds": pace.seconds,
            "warm_up": pace.warm_up,
            "commands": {name: log.commands for name, log in pace.sizes.items()},
        },
    }


def _figures(results: Results) -> dict[str, JsonValue]:
    return {
        contender.name: {
            "title": contender.title,
            **{name: known._asdict() if (known := figure(samples, value)) else None for name, value in FIGURES.items()},
        }
        for contender, samples in results.measured()
    }


def _disk(results: Results) -> JsonValue:
    if results.disk is None:
        return None
    disk = results.disk
    return {
        "events": disk.events,
        "bytes_per_event": disk.per_event(),
        "relations": {relation.name: disk.per_event(relation) for relation in disk.relations},
    }
