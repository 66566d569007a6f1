"""Read models folded from the log, for any event-sourced domain."""

from projections.projection import Index, Projection, StreamProjection, Values
from projections.table import Table

__all__ = ["Index", "Projection", "StreamProjection", "Table", "Values"]
