"""Every SQL text of the command line itself."""

from typing import Final, LiteralString

# The last event that readers of the log get now: nothing can still come before it.
LOG_END: Final[LiteralString] = """
    SELECT stored.transaction_id::text, stored.position
    FROM ONLY command_registry.events AS stored
    WHERE stored.transaction_id < pg_snapshot_xmin(pg_current_snapshot())
    ORDER BY stored.transaction_id DESC, stored.position DESC
    LIMIT 1
"""

# The first one in the order of the log, up to a place, that was recorded since an instant. The instants of recording
# are nearly in that order, but not quite (a transaction may be long), so every event before it is looked at.
FIRST_RECORDED_SINCE: Final[LiteralString] = """
    SELECT stored.transaction_id::text, stored.position
    FROM ONLY command_registry.events AS stored
    WHERE (stored.transaction_id, stored.position) <= (%s::text::xid8, %s)
        AND stored.recorded_at >= %s::timestamptz
    ORDER BY stored.transaction_id, stored.position
    LIMIT 1
"""
