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
UNLESS_NEWER: Final[LiteralString] = "WHERE stored.version < excluded.version"

SELECT_ROW: Final[LiteralString] = "SELECT {selected} FROM ONLY {table} AS stored WHERE {key} = %s"

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

REGISTER: Final[LiteralString] = """
    INSERT INTO command_registry.projections (name, version, in_force)
    SELECT
        new.name,
        new.version,
        NOT EXISTS (SELECT FROM command_registry.projections AS other WHERE other.name = new.name AND other.in_force)
    FROM (SELECT %s::text, %s::int) AS new (name, version)
    ON CONFLICT (name, version) DO UPDATE SET updated_at = clock_timestamp()
    RETURNING in_force
"""

CREATE_VIEW: Final[LiteralString] = "CREATE OR REPLACE VIEW {view} AS SELECT {columns} FROM {table}"

BEGIN: Final[LiteralString] = "BEGIN ISOLATION LEVEL READ COMMITTED"
TRUSTED_PATH: Final[LiteralString] = "SET LOCAL search_path = pg_catalog, pg_temp"
# The same lock as schema.sql takes: one migration at a time.
LOCK_MIGRATIONS: Final[LiteralString] = "SELECT pg_advisory_xact_lock(7234017283807667300)"
