"""Every SQL text of the projections; {names in braces} are filled in with quoted identifiers by `psycopg.sql`."""

from typing import Final, LiteralString

CREATE_TABLE: Final[LiteralString] = """
    CREATE TABLE IF NOT EXISTS {table} (
        {columns},
        PRIMARY KEY ({key})
    )
"""

READABLE_INSTANT: Final[LiteralString] = (
    " CHECK ({column} >= '0001-01-01 00:00:00+00' AND {column} < '10000-01-01 00:00:00+00')"
)

CREATE_INDEX: Final[LiteralString] = "CREATE INDEX IF NOT EXISTS {index} ON {table} ({columns})"

# For the roles that there are.
GRANT: Final[LiteralString] = """
    DO $$
    BEGIN
        IF to_regrole('command_registry_writer') IS NOT NULL THEN
            GRANT SELECT, INSERT, UPDATE ON {table} TO command_registry_writer;
        END IF;
        IF to_regrole('command_registry_reader') IS NOT NULL THEN
            GRANT SELECT ON {table} TO command_registry_reader;
        END IF;
    END
    $$
"""

# The upsert: the same text for live writes, repair, catch-up and rebuild; of one row, or of an array a column.
UPSERT: Final[LiteralString] = """
    INSERT INTO {table} AS stored ({columns})
    SELECT {values}
    FROM {rows} AS folded ({columns})
    {ordered}
    ON CONFLICT ({key}) DO UPDATE SET {assignments}
"""
ONE_ROW: Final[LiteralString] = "(SELECT {parameters})"
MANY_ROWS: Final[LiteralString] = "unnest({parameters})"
ORDERED: Final[LiteralString] = "ORDER BY folded.{key}"
UNLESS_NEWER: Final[LiteralString] = "WHERE stored.version <= excluded.version"

SELECT_ROWS: Final[LiteralString] = "SELECT {selected} FROM ONLY {table} AS stored WHERE {key} = ANY(%s)"

SELECT_ORPHANS: Final[LiteralString] = """
    SELECT {key}, count(*) OVER ()
    FROM ONLY {table} AS stored
    WHERE NOT EXISTS (SELECT FROM ONLY command_registry.events WHERE stream_id = stored.{key})
    ORDER BY {key}
    LIMIT %s
"""

COUNT: Final[LiteralString] = "SELECT count(*) FROM ONLY {table}"

# The ends of streams, and their rows (NULLs where there is none), as of one moment.
LOAD: Final[LiteralString] = """
    SELECT wanted.stream_id, last.version, last.hash, {selected}
    FROM {wanted} AS wanted (stream_id)
    CROSS JOIN LATERAL (
        SELECT version, hash
        FROM ONLY command_registry.events
        WHERE stream_id = wanted.stream_id
        ORDER BY version DESC
        LIMIT 1
    ) AS last
    LEFT JOIN ONLY {table} AS stored ON stored.{key} = wanted.stream_id
"""
ONE_STREAM: Final[LiteralString] = "(SELECT %s::text)"
MANY_STREAMS: Final[LiteralString] = "unnest(%s::text[])"

TABLE_EXISTS: Final[LiteralString] = "SELECT to_regclass(%s) IS NOT NULL"

IS_REGISTERED: Final[LiteralString] = """
    SELECT EXISTS (SELECT FROM command_registry.projections WHERE name = %s AND version = %s)
"""

# (RETURNING does not see what a statement writes: whether any version, this one included, was in force before.)
REGISTER: Final[LiteralString] = """
    INSERT INTO command_registry.projections (name, version, in_force)
    VALUES (%s, %s, false)
    ON CONFLICT (name, version) DO UPDATE SET updated_at = clock_timestamp()
    RETURNING (SELECT version FROM command_registry.projections AS other WHERE other.name = %s AND other.in_force)
"""

BEGIN: Final[LiteralString] = "BEGIN ISOLATION LEVEL READ COMMITTED"
TRUSTED_PATH: Final[LiteralString] = "SET LOCAL search_path = pg_catalog, pg_temp"
# The same lock as schema.sql takes: one migration at a time.
LOCK_MIGRATIONS: Final[LiteralString] = "SELECT pg_advisory_xact_lock(7234017283807667300)"

# --- Building and following (`projector.py`, `rebuild.py`)

# The bookkeeping of a version, if it has none: from the start of the log, or from where everything before is committed,
# and so visible to whoever reads after this.
ENROL: Final[LiteralString] = """
    INSERT INTO command_registry.projectors (name, version, inline, phase, transaction_id, position)
    VALUES (%s, %s, %s, %s, '0', 0)
    ON CONFLICT DO NOTHING
"""
# (One that every append writes, and that is the only one so far, has had no need to be followed up to here.)
ENROL_FROM_NOW: Final[LiteralString] = """
    INSERT INTO command_registry.projectors (name, version, inline, phase, transaction_id, position)
    SELECT
        built.name,
        built.version,
        %s,
        'following',
        (pg_snapshot_xmin(pg_current_snapshot())::text::bigint - 1)::text::xid8,
        9223372036854775807
    FROM command_registry.projections AS built
    WHERE built.name = %s
    ON CONFLICT (name, version) DO UPDATE SET transaction_id = excluded.transaction_id, position = excluded.position
        WHERE projectors.inline
            AND (SELECT count(*) FROM command_registry.projections AS other WHERE other.name = excluded.name) = 1
"""

# Take the lease, or keep it. (By the server's clock: nobody else's counts.) A table that is not whole yet is only for
# who builds it. A lease that ends so late was taken before that clock was put back: whoever had it may be gone, and if
# not, is fenced by the token.
LEASE: Final[LiteralString] = """
    UPDATE command_registry.projectors AS held SET
        owner = mine.owner,
        token = CASE WHEN held.token = mine.token THEN held.token ELSE held.token + 1 END,
        lease_until = clock_timestamp() + make_interval(secs => mine.seconds)
    FROM (SELECT %s::text, %s::bigint, %s::float8, %s::boolean) AS mine (owner, token, seconds, builds)
    WHERE held.name = %s
        AND held.version = %s
        AND (
            held.lease_until IS NULL
            OR held.lease_until < clock_timestamp()
            OR held.lease_until > clock_timestamp() + make_interval(secs => greatest(10 * mine.seconds, 600))
            OR held.token = mine.token
        )
        AND (
            mine.builds
            OR held.phase IN ('built', 'following')
            OR EXISTS (
                SELECT FROM command_registry.projections AS built
                WHERE built.name = held.name AND built.version = held.version
            )
        )
    RETURNING held.token, held.transaction_id::text, held.position, held.phase
"""

# Keep it, if it is still ours.
RENEW: Final[LiteralString] = """
    UPDATE command_registry.projectors SET lease_until = clock_timestamp() + make_interval(secs => %s)
    WHERE name = %s
        AND version = %s
        AND token = %s
"""

RELEASE: Final[LiteralString] = """
    UPDATE command_registry.projectors SET owner = NULL, lease_until = NULL
    WHERE name = %s
        AND version = %s
        AND token = %s
"""

OWNER: Final[LiteralString] = "SELECT owner FROM command_registry.projectors WHERE name = %s AND version = %s"

# Go on from one place in the log to another, and keep the lease; no row: somebody else has it, or we are elsewhere.
ADVANCE: Final[LiteralString] = """
    UPDATE command_registry.projectors SET
        transaction_id = %s::text::xid8,
        position = %s,
        events_done = events_done + %s,
        events_per_second = %s,
        last_error = NULL,
        lease_until = clock_timestamp() + make_interval(secs => %s),
        updated_at = clock_timestamp()
    WHERE name = %s
        AND version = %s
        AND token = %s
        AND transaction_id = %s::text::xid8
        AND position = %s
    RETURNING token
"""

# Both or neither, in one statement: whoever is stopped or cut off in between leaves no transaction open, which would
# keep the lease, and hold back every reader of the log.
ADVANCE_AND_WRITE: Final[LiteralString] = "WITH kept AS ({advance}), written AS ({upsert}) SELECT token FROM kept"

IF_KEPT: Final[LiteralString] = "WHERE EXISTS (SELECT FROM kept) "

NOTE_ERROR: Final[LiteralString] = """
    UPDATE command_registry.projectors SET last_error = %s, updated_at = clock_timestamp()
    WHERE name = %s
        AND version = %s
        AND token = %s
"""

SKIPS: Final[LiteralString] = """
    SELECT stream_id, stream_version
    FROM command_registry.projection_skips
    WHERE name = %s
        AND version = %s
"""

SKIP: Final[LiteralString] = """
    INSERT INTO command_registry.projection_skips (name, version, stream_id, stream_version, reason)
    VALUES (%s, %s, %s, %s, %s)
    ON CONFLICT DO NOTHING
    RETURNING stream_version
"""

BEGIN_BULK: Final[LiteralString] = """
    UPDATE command_registry.projectors AS projector SET
        phase = 'bulk',
        transaction_id = CASE
            WHEN mine.stays THEN projector.transaction_id
            ELSE (pg_snapshot_xmin(pg_current_snapshot())::text::bigint - 1)::text::xid8
        END,
        position = CASE WHEN mine.stays THEN projector.position ELSE 9223372036854775807 END,
        events_done = 0,
        events_total = mine.events,
        events_per_second = 0,
        last_error = NULL,
        updated_at = clock_timestamp()
    FROM (SELECT %s::bigint, %s::boolean) AS mine (events, stays)
    WHERE name = %s
        AND version = %s
        AND token = %s
    RETURNING transaction_id::text, position
"""

ENTER_PHASE: Final[LiteralString] = """
    UPDATE command_registry.projectors SET
        phase = %s,
        lease_until = clock_timestamp() + make_interval(secs => %s),
        updated_at = clock_timestamp()
    WHERE name = %s
        AND version = %s
        AND token = %s
    RETURNING token
"""

PROGRESS: Final[LiteralString] = """
    SELECT phase, events_done, events_total, events_per_second, last_error
    FROM command_registry.projectors
    WHERE name = %s
        AND version = %s
"""

FORGET_CHUNKS: Final[LiteralString] = "DELETE FROM command_registry.rebuild_chunks WHERE name = %s AND version = %s"

# Cut all streams into parts of about the same size, by a sample of the log. A stream is always in one part.
PLAN_CHUNKS: Final[LiteralString] = """
    INSERT INTO command_registry.rebuild_chunks (name, version, number, after_stream, last_stream)
    SELECT
        %s,
        %s,
        row_number() OVER (ORDER BY border),
        lag(border, 1, '') OVER (ORDER BY border),
        border
    FROM (
        SELECT unnest(percentile_disc(%s::float8[]) WITHIN GROUP (ORDER BY stream_id)) AS border
        FROM command_registry.events TABLESAMPLE SYSTEM (%s)
        UNION
        SELECT max(stream_id) FROM ONLY command_registry.events
    ) AS borders
    WHERE border IS NOT NULL
"""

UNFINISHED_CHUNKS: Final[LiteralString] = """
    SELECT count(*) FILTER (WHERE events IS NULL), count(*)
    FROM command_registry.rebuild_chunks
    WHERE name = %s
        AND version = %s
"""

# Claims of an owner before us are void.
CLAIM_CHUNK: Final[LiteralString] = """
    UPDATE command_registry.rebuild_chunks AS chunk SET claim = mine.token
    FROM (SELECT %s::text, %s::int, %s::bigint) AS mine (name, version, token)
    WHERE chunk.name = mine.name
        AND chunk.version = mine.version
        AND chunk.number = (
            SELECT number
            FROM command_registry.rebuild_chunks AS free
            WHERE free.name = mine.name
                AND free.version = mine.version
                AND free.events IS NULL
                AND free.claim IS DISTINCT FROM mine.token
            ORDER BY number
            LIMIT 1
            FOR UPDATE SKIP LOCKED
        )
        AND EXISTS (
            SELECT FROM command_registry.projectors AS projector
            WHERE projector.name = mine.name AND projector.version = mine.version AND projector.token = mine.token
        )
    RETURNING chunk.number, chunk.after_stream, chunk.last_stream
"""

RELEASE_CHUNKS: Final[LiteralString] = """
    UPDATE command_registry.rebuild_chunks SET claim = NULL
    WHERE name = %s
        AND version = %s
        AND events IS NULL
"""

# A chunk is done, and the lease kept; no row: somebody else has it.
FINISH_CHUNK: Final[LiteralString] = """
    WITH kept AS (
        UPDATE command_registry.projectors AS projector SET
            events_done = events_done + mine.events,
            events_per_second = (CASE WHEN events_per_second = 0 THEN 1 ELSE 0.2 END) * mine.events
                / greatest(extract(epoch FROM clock_timestamp() - updated_at), 0.001) + 0.8 * events_per_second,
            last_error = NULL,
            lease_until = clock_timestamp() + make_interval(secs => mine.seconds),
            updated_at = clock_timestamp()
        FROM (SELECT %s::bigint, %s::float8) AS mine (events, seconds)
        WHERE name = %s
            AND version = %s
            AND token = %s
        RETURNING projector.name, projector.version, projector.token, mine.events
    )
    UPDATE command_registry.rebuild_chunks AS chunk SET events = kept.events
    FROM kept
    WHERE chunk.name = kept.name
        AND chunk.version = kept.version
        AND chunk.claim = kept.token
        AND chunk.number = %s
    RETURNING chunk.number
"""

# A read model's view may differ from the one before in any column, so it is made anew, with the rights that it had.
DROP_VIEW: Final[LiteralString] = "DROP VIEW IF EXISTS {view}"

ALL_OF: Final[LiteralString] = "SELECT {columns} FROM {table}"

CREATE_VIEW: Final[LiteralString] = "CREATE VIEW {view} AS {query}"

VIEW_READERS: Final[LiteralString] = """
    SELECT CASE WHEN acl.grantee = 0 THEN 'PUBLIC' ELSE acl.grantee::regrole::text END
    FROM pg_catalog.pg_class AS shown
    CROSS JOIN aclexplode(shown.relacl) AS acl
    WHERE shown.oid = to_regclass(%s)
        AND acl.privilege_type = 'SELECT'
        AND acl.grantee <> shown.relowner
"""

GRANT_TO: Final[LiteralString] = "GRANT SELECT ON {view} TO {role}"

OUT_OF_FORCE: Final[LiteralString] = """
    UPDATE command_registry.projections SET in_force = false, updated_at = clock_timestamp()
    WHERE name = %s
        AND in_force
        AND version <> %s
"""

IN_FORCE: Final[LiteralString] = """
    UPDATE command_registry.projections SET in_force = true, updated_at = clock_timestamp()
    WHERE name = %s
        AND version = %s
    RETURNING pg_current_xact_id()::text
"""

KEEP_VIEW: Final[LiteralString] = """
    UPDATE command_registry.projectors SET view_definition = %s
    WHERE name = %s
        AND version = %s
"""

KEPT_VIEW: Final[LiteralString] = """
    SELECT projector.view_definition
    FROM command_registry.projections AS built
    LEFT JOIN command_registry.projectors AS projector USING (name, version)
    WHERE built.name = %s
        AND built.version = %s
"""

OLDEST_RUNNING: Final[LiteralString] = "SELECT pg_snapshot_xmin(pg_current_snapshot())::text"

# The last event after a transaction that may have been filed by an older one, under that of the event before it in its
# stream. (xmin is its own, or a subtransaction's.)
LAST_OF_OLDER: Final[LiteralString] = """
    SELECT transaction_id::text, position
    FROM ONLY command_registry.events AS stored
    WHERE stored.transaction_id > %s::text::xid8
        AND stored.transaction_id::xid <> stored.xmin
    ORDER BY stored.transaction_id DESC, stored.position DESC
    LIMIT 1
"""

ANALYZE: Final[LiteralString] = "ANALYZE {table}"

DROP_TABLE: Final[LiteralString] = "DROP TABLE IF EXISTS {table}"

TRUNCATE: Final[LiteralString] = "TRUNCATE {table}"

EVERYTHING: Final[LiteralString] = "SELECT * FROM {table}"

FROM_START: Final[LiteralString] = """
    UPDATE command_registry.projectors SET transaction_id = '0', position = 0
    WHERE name = %s
        AND version = %s
        AND token = %s
"""

WHICH_IN_FORCE: Final[LiteralString] = """
    SELECT version
    FROM command_registry.projections
    WHERE name = %s
        AND in_force
"""

SAMPLE_KEYS: Final[LiteralString] = "SELECT {key} FROM ONLY {table} ORDER BY random() LIMIT %s"

VERSIONS: Final[LiteralString] = "SELECT count(*) FROM command_registry.projections WHERE name = %s"

# Rows whose last event is not in the log: whatever wrote them, it was not the fold.
DELETE_UNFOUNDED: Final[LiteralString] = """
    DELETE FROM {table} AS stored
    WHERE NOT EXISTS (
        SELECT FROM ONLY command_registry.events AS event
        WHERE event.stream_id = stored.{key} AND event.version = stored.version
    )
"""

STATUS: Final[LiteralString] = """
    SELECT
        name,
        version,
        coalesce(built.in_force, false),
        built.name IS NOT NULL,
        CASE
            WHEN projector.inline AND built.name IS NOT NULL AND count(built.name) OVER (PARTITION BY name) = 1
            THEN 'inline'
            ELSE coalesce(projector.phase, 'inline')
        END,
        projector.transaction_id::text,
        projector.position,
        CASE WHEN projector.lease_until >= clock_timestamp() THEN projector.owner END,
        projector.events_done,
        projector.events_total,
        CASE WHEN projector.updated_at > clock_timestamp() - interval '10 s' THEN projector.events_per_second END,
        projector.last_error,
        projector.updated_at AT TIME ZONE 'UTC',
        (
            SELECT count(*)
            FROM command_registry.projection_skips AS skip
            WHERE skip.name = projector.name AND skip.version = projector.version
        )
    FROM command_registry.projections AS built
    FULL JOIN command_registry.projectors AS projector USING (name, version)
    ORDER BY 1, 2
"""

# How many events come after a place, counted up to a limit; and since when the first of them waits, in seconds.
LAG: Final[LiteralString] = """
    SELECT
        count(*),
        extract(epoch FROM clock_timestamp() - min(recorded_at))::float8
    FROM (
        SELECT stored.recorded_at
        FROM ONLY command_registry.events AS stored
        WHERE (stored.transaction_id, stored.position) > (%s::text::xid8, %s)
        ORDER BY stored.transaction_id, stored.position
        LIMIT %s
    ) AS following
"""

PLACES: Final[LiteralString] = """
    SELECT
        name,
        version,
        transaction_id::text,
        position,
        CASE WHEN lease_until >= clock_timestamp() THEN owner END,
        last_error,
        CASE
            WHEN inline
                AND ARRAY[version] = (
                    SELECT array_agg(built.version)
                    FROM command_registry.projections AS built
                    WHERE built.name = projector.name
                )
            THEN 'inline'
            ELSE phase
        END
    FROM command_registry.projectors AS projector
    WHERE (name, version) IN (SELECT * FROM unnest(%s::text[], %s::int[]))
"""

DEREGISTER: Final[LiteralString] = """
    WITH projector AS (
        DELETE FROM command_registry.projectors WHERE name = %s AND version = %s
    ), chunks AS (
        DELETE FROM command_registry.rebuild_chunks WHERE name = %s AND version = %s
    )
    DELETE FROM command_registry.projections WHERE name = %s AND version = %s
"""

# What a table's users do to it, as the server counts: rows read by an index or in full, written.
USES: Final[LiteralString] = """
    SELECT coalesce(idx_scan, 0) + seq_scan + n_tup_ins + n_tup_upd + n_tup_del
    FROM pg_catalog.pg_stat_all_tables
    WHERE relid = to_regclass(%s)
"""

LOCK_BRIEFLY: Final[LiteralString] = "SET LOCAL lock_timeout = '2s'"

WAIT: Final[LiteralString] = "SELECT FROM pg_sleep(%s)"
