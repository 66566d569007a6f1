"""What may be wrong with a registry's database, and how to mend it."""

from registry.doctor.check import Check
from registry.doctor.examination import examine
from registry.doctor.figures import READ_MODEL, Installed, count_events, held_back, installed

__all__ = ["READ_MODEL", "Check", "Installed", "count_events", "examine", "held_back", "installed"]
