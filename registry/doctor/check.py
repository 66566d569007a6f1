"""What one check of the doctor found."""

from typing import Final, Literal

from registry.models import Model

__all__ = ["MIGRATE", "Check", "failed", "ok", "warning"]

MIGRATE: Final = "run: command-registry migrate"


class Check(Model):
    """One check: its name, how it went, what was found, and where something is amiss, what mends it."""

    name: str
    status: Literal["ok", "warning", "failed"]
    found: str
    mend: str | None = None


def ok(name: str, found: str) -> Check:
    """Make a check that found everything as it should be."""
    return Check(name=name, status="ok", found=found)


def warning(name: str, found: str, mend: str) -> Check:
    """Make a check that found something to know about, with which the registry works."""
    return Check(name=name, status="warning", found=found, mend=mend)


def failed(name: str, found: str, mend: str) -> Check:
    """Make a check that found something to mend."""
    return Check(name=name, status="failed", found=found, mend=mend)
