"""Read models folded from the log, for any event-sourced domain."""

from projections.projection import Index, Projection, Values
from projections.table import Table

__all__ = ["Index", "Projection", "Table", "Values"]
