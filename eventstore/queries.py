"""Every SQL text of the event store."""

from typing import Final, LiteralString

# Instants go out as UTC without a zone, so that neither the session's TimeZone nor its DateStyle can change them.
_APPENDED_COLUMNS: Final[LiteralString] = """
    stream_id,
    version,
    type,
    schema_version,
    occurred_at AT TIME ZONE 'UTC',
    data::text,
    metadata::text,
    hash"""
_EVENT_COLUMNS: Final[LiteralString] = (
    _APPENDED_COLUMNS
    + """,
    position,
    transaction_id::text,
    recorded_at AT TIME ZONE 'UTC'
"""
)

# The primary key refuses a version that is there already. The NOT NULL of `hash` refuses events whose stream does not
# end where the writer believes (end_version 0: it is empty): a state remembered from a transaction that rolled back, or
# from a server that failed over, leaves no gap.
# An event is filed under its own transaction or that of the event before it, whichever is later: so the order of the
# log never contradicts that of a stream, not even when an old transaction adds to a stream that a younger one began.
# (Readers wait for both to end, so nothing is skipped.)
# The last parameter: for how many milliseconds the statement may wait for other transactions (NULL: as long as the
# session says).
_INSERT: Final[LiteralString] = """
    INSERT INTO command_registry.events
        (stream_id, version, type, schema_version, occurred_at, data, metadata, hash, transaction_id)
    SELECT
        new.stream_id,
        new.version,
        new.type,
        new.schema_version,
        new.occurred_at,
        new.data::json,
        new.metadata::json,
        CASE WHEN new.end_version = 0 OR stream_end.transaction_id IS NOT NULL THEN new.hash END,
        greatest(pg_current_xact_id(), stream_end.transaction_id)
    FROM """

_AS_NEW: Final[LiteralString] = """
        AS new (stream_id, version, type, schema_version, occurred_at, data, metadata, hash, end_version, end_hash)
    LEFT JOIN LATERAL (
        SELECT stored.transaction_id
        FROM ONLY command_registry.events AS stored
        WHERE stored.stream_id = new.stream_id
            AND stored.version = new.end_version
            AND stored.hash = new.end_hash
        LIMIT 1
    ) AS stream_end ON true
    CROSS JOIN (
        SELECT set_config('lock_timeout', coalesce(%s::text, current_setting('lock_timeout')), true)
    ) AS patience
"""

# One event costs a third less this way than as arrays of one.
INSERT_EVENT: Final[LiteralString] = (
    _INSERT
    + """(
        SELECT
            %s::text,
            %s::int,
            %s::text,
            %s::smallint,
            %s::timestamptz,
            %s::text,
            %s::text,
            %s::bytea,
            %s::int,
            %s::bytea
    )"""
    + _AS_NEW
)

# Many, of as many streams as one likes; in the order of the streams, so that two such statements never wait for each
# other.
INSERT_EVENTS: Final[LiteralString] = (
    _INSERT
    + """unnest(
        %s::text[],
        %s::int[],
        %s::text[],
        %s::smallint[],
        %s::timestamptz[],
        %s::text[],
        %s::text[],
        %s::bytea[],
        %s::int[],
        %s::bytea[]
    )"""
    + _AS_NEW
    + """
    ORDER BY new.stream_id COLLATE "C", new.version
"""
)

# What the log added; to be read in the same order as `FIND_APPENDED`.
RETURNING_RECORDED: Final[LiteralString] = """
    RETURNING
        stream_id,
        version,
        position,
        transaction_id::text,
        recorded_at AT TIME ZONE 'UTC'
"""

APPEND: Final[LiteralString] = INSERT_EVENTS + RETURNING_RECORDED

# Which of these are there: (stream, version) and the hash to compare.
FIND_HASHES: Final[LiteralString] = """
    SELECT sent.stream_id, sent.version, stored.hash
    FROM unnest(%s::text[], %s::int[]) AS sent (stream_id, version)
    JOIN ONLY command_registry.events AS stored USING (stream_id, version)
"""

# What `APPEND` returned, read later, and with the hash to tell whose they are.
FIND_APPENDED: Final[LiteralString] = """
    SELECT
        stream_id,
        version,
        hash,
        position,
        transaction_id::text,
        recorded_at AT TIME ZONE 'UTC'
    FROM ONLY command_registry.events
    WHERE stream_id = %s
        AND version >= %s
    ORDER BY version
    LIMIT %s
"""

PAUSE: Final[LiteralString] = "SELECT FROM pg_sleep(0.02)"

STREAM_END: Final[LiteralString] = """
    SELECT version, hash
    FROM ONLY command_registry.events
    WHERE stream_id = %s
    ORDER BY version DESC
    LIMIT 1
"""

READ_STREAM: Final[LiteralString] = (
    "SELECT"
    + _EVENT_COLUMNS
    + """
    FROM ONLY command_registry.events
    WHERE stream_id = %s
        AND version > %s::bigint
    ORDER BY version
    LIMIT %s
"""
)

# Behind the xmin barrier: every transaction below it has ended, so none of its events can still turn up.
# (Ordered by the column itself: `transaction_id` alone would be the text that is selected, in which 10 is before 9.)
READ_LOG: Final[LiteralString] = (
    "SELECT"
    + _EVENT_COLUMNS
    + """
    FROM ONLY command_registry.events AS stored
    WHERE (stored.transaction_id, stored.position) > (%s::text::xid8, %s)
        AND stored.transaction_id < pg_snapshot_xmin(pg_current_snapshot())
    ORDER BY stored.transaction_id, stored.position
    LIMIT %s
"""
)

READ_ALL_STREAMS: Final[LiteralString] = (
    "SELECT"
    + _EVENT_COLUMNS
    + """
    FROM ONLY command_registry.events
    WHERE (stream_id, version) > (%s, %s)
    ORDER BY stream_id, version
    LIMIT %s
"""
)

# The same of the streams up to one, in pages of the events as they were appended.
READ_STREAMS_TO: Final[LiteralString] = (
    "SELECT"
    + _APPENDED_COLUMNS
    + """
    FROM ONLY command_registry.events
    WHERE (stream_id, version) > (%s, %s)
        AND stream_id <= %s
    ORDER BY stream_id, version
    LIMIT %s
"""
)

READ_THESE_STREAMS: Final[LiteralString] = (
    "SELECT"
    + _EVENT_COLUMNS
    + """
    FROM ONLY command_registry.events
    WHERE stream_id = ANY(%s)
    ORDER BY stream_id, version
"""
)

# What the planner knows of the number of events, or else what the table's size says.
ESTIMATE_EVENTS: Final[LiteralString] = """
    SELECT greatest(reltuples, pg_relation_size(oid) / 700)::bigint
    FROM pg_catalog.pg_class
    WHERE oid = 'command_registry.events'::regclass
"""

# Some streams, wherever they lie; the percentage is of the table's pages.
SAMPLE_STREAMS: Final[LiteralString] = """
    SELECT DISTINCT stream_id
    FROM command_registry.events TABLESAMPLE SYSTEM (%s)
    LIMIT %s
"""

BEGIN_SNAPSHOT: Final[LiteralString] = "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY"
COMMIT: Final[LiteralString] = "COMMIT"
ROLLBACK: Final[LiteralString] = "ROLLBACK"

SCHEMA_IS_THERE: Final[LiteralString] = "SELECT to_regclass('command_registry.schema_versions') IS NOT NULL"
SCHEMA_VERSION: Final[LiteralString] = "SELECT max(version) FROM command_registry.schema_versions"
ENCODING: Final[LiteralString] = "SELECT current_setting('server_encoding'), current_setting('server_version_num')::int"

LOG_END: Final[LiteralString] = """
    SELECT transaction_id::text, position
    FROM ONLY command_registry.events AS stored
    ORDER BY stored.transaction_id DESC, stored.position DESC
    LIMIT 1
"""

# Whose transaction holds readers of the log back: the oldest one that writes, in any database of the server.
OLDEST_WRITER: Final[LiteralString] = """
    SELECT writer.name, writer.seconds, writer.database, writer.usename, writer.remedy, writer.query_start
    FROM (
        SELECT
            'pid ' || pid AS name,
            extract(epoch FROM clock_timestamp() - xact_start)::float8 AS seconds,
            datname::text AS database,
            usename::text,
            format('SELECT pg_terminate_backend(%%s)', pid) AS remedy,
            query_start,
            age(backend_xid) AS age
        FROM pg_stat_activity
        WHERE backend_xid IS NOT NULL
            AND pid <> pg_backend_pid()
        UNION ALL
        SELECT
            format('prepared transaction %%L', gid),
            extract(epoch FROM clock_timestamp() - prepared)::float8,
            database::text,
            owner::text,
            format('ROLLBACK PREPARED %%L', gid),
            prepared,
            age(transaction)
        FROM pg_prepared_xacts
    ) AS writer
    ORDER BY writer.age DESC
    LIMIT 1
"""
