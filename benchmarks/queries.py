"""Every SQL text of the benchmark's own; {names in braces} are filled in with quoted identifiers by `psycopg.sql`."""

from typing import Final, LiteralString

CREATE_DATABASE: Final[LiteralString] = "CREATE DATABASE {database} TEMPLATE {template} ENCODING 'UTF8'"
DROP_DATABASE: Final[LiteralString] = "DROP DATABASE IF EXISTS {database} WITH (FORCE)"

CHECKPOINT: Final[LiteralString] = "CHECKPOINT"

# The roles that a migration creates, and that outlive its database.
OUR_ROLES: Final[LiteralString] = """
    SELECT rolname
    FROM pg_catalog.pg_roles
    WHERE rolname IN ('command_registry_writer', 'command_registry_reader')
"""
DROP_ROLE: Final[LiteralString] = "DROP ROLE IF EXISTS {role}"

# The columns that are left out, of the place in the log, are the server's to fill, as in an append.
COPY: Final[LiteralString] = "COPY {table} ({columns}) FROM STDIN"
# In the order in which a rebuild reads.
COPY_OUT: Final[LiteralString] = """
    COPY (SELECT {columns} FROM ONLY {table} ORDER BY stream_id, version) TO STDOUT
"""
LAZY_COMMITS: Final[LiteralString] = "SET synchronous_commit = off"
VACUUM: Final[LiteralString] = "VACUUM (ANALYZE) {table}"

# A read model's table, with the view that shows it.
DROP_TABLE: Final[LiteralString] = "DROP TABLE IF EXISTS {table} CASCADE"

SETTING: Final[LiteralString] = "SELECT pg_catalog.current_setting(%s)"

# Each table of the registry that holds events or statuses, with its TOAST and maps; and each index of one.
SIZES: Final[LiteralString] = """
    SELECT
        relation.relname,
        relation.relkind = 'i',
        CASE relation.relkind
            WHEN 'i' THEN pg_catalog.pg_relation_size(relation.oid)
            ELSE pg_catalog.pg_table_size(relation.oid)
        END
    FROM pg_catalog.pg_class AS relation
    LEFT JOIN pg_catalog.pg_index AS index ON index.indexrelid = relation.oid
    WHERE coalesce(index.indrelid, relation.oid) = ANY(%s::regclass[])
    ORDER BY coalesce(index.indrelid, relation.oid)::regclass::text DESC, relation.relkind DESC, relation.relname
"""
COUNT_EVENTS: Final[LiteralString] = "SELECT count(*) FROM ONLY command_registry.events"

# What somebody would write by hand to read a status.
SELECT_STATUS: Final[LiteralString] = "SELECT * FROM ONLY {table} WHERE {key} = %s"
