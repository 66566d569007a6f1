"""Every SQL text of the doctor: catalog queries that any user may run, and a few that read the log."""

from typing import Final, LiteralString

SERVER: Final[LiteralString] = """
    SELECT
        current_setting('server_version_num')::int,
        current_setting('server_encoding'),
        current_database()::text,
        current_user::text,
        pg_is_in_recovery()
"""

# No row: there is no such schema. (Nothing else may be asked about its tables without USAGE.)
SCHEMA_USAGE: Final[LiteralString] = """
    SELECT has_schema_privilege(oid, 'USAGE')
    FROM pg_namespace
    WHERE nspname = 'command_registry'
"""

MISSING_TABLES: Final[LiteralString] = """
    SELECT wanted.name
    FROM unnest(%s::text[]) AS wanted (name)
    WHERE to_regclass('command_registry.' || wanted.name) IS NULL
"""

MAY_READ: Final[LiteralString] = "SELECT coalesce(has_table_privilege(to_regclass(%s)::oid, 'SELECT'), false)"

# Under a search_path of its own (a pooler keeps none for us), so that defaults are written with their schemas.
EVENT_COLUMNS: Final[LiteralString] = """
    SELECT
        attname::text,
        format_type(atttypid, atttypmod)
            || CASE WHEN attnotnull THEN ' NOT NULL' ELSE '' END
            || coalesce(' DEFAULT ' || pg_get_expr(adbin, adrelid), '')
    FROM pg_attribute
    CROSS JOIN (SELECT set_config('search_path', 'pg_catalog, pg_temp', true)) AS trusted
    LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
    WHERE attrelid = to_regclass('command_registry.events')
        AND attnum > 0
        AND NOT attisdropped
    ORDER BY attnum
"""

# What is set on the log that would hide rows, or change what is written: row security, rules.
EVENT_HAZARDS: Final[LiteralString] = """
    SELECT 'row level security is enabled', 'ALTER TABLE command_registry.events DISABLE ROW LEVEL SECURITY'
    FROM pg_class
    WHERE oid = to_regclass('command_registry.events') AND relrowsecurity
    UNION ALL
    SELECT
        format('rule %%I rewrites statements', rulename),
        format('DROP RULE %%I ON command_registry.events', rulename)
    FROM pg_rules
    WHERE schemaname = 'command_registry' AND tablename = 'events'
"""

TRIGGERS: Final[LiteralString] = """
    SELECT
        installed.tgname::text,
        installed.tgenabled::text,
        installed.tgtype::int,
        function.pronamespace::regnamespace::text || '.' || function.proname,
        installed.tgqual IS NOT NULL OR cardinality(installed.tgattr::int2[]) > 0
    FROM pg_trigger AS installed
    JOIN pg_proc AS function ON function.oid = installed.tgfoid
    WHERE installed.tgrelid = to_regclass('command_registry.events')
        AND NOT installed.tgisinternal
    ORDER BY installed.tgname
"""

GUARD_BODY: Final[LiteralString] = """
    SELECT prosrc
    FROM pg_proc
    WHERE oid = to_regprocedure('command_registry.refuse_change()')::oid
"""

INDEXES: Final[LiteralString] = """
    SELECT
        relation.relname::text,
        index.indisprimary,
        index.indisvalid AND index.indisready,
        (
            SELECT string_agg(attname, ', ' ORDER BY key.place)
            FROM unnest(index.indkey::int2[]) WITH ORDINALITY AS key (attnum, place)
            JOIN pg_attribute ON attrelid = index.indrelid AND pg_attribute.attnum = key.attnum
        )
    FROM pg_index AS index
    JOIN pg_class AS relation ON relation.oid = index.indexrelid
    WHERE index.indrelid = to_regclass(%s)
"""

# transaction_id of the log's last event, and the one that this server gives out next.
LOG_ORDER: Final[LiteralString] = """
    SELECT
        (
            SELECT transaction_id
            FROM ONLY command_registry.events
            ORDER BY transaction_id DESC, position DESC
            LIMIT 1
        )::text,
        pg_snapshot_xmax(pg_current_snapshot())::text
"""

# Committed, and not given to readers of the log yet.
HELD_BACK: Final[LiteralString] = """
    SELECT count(*)
    FROM ONLY command_registry.events
    WHERE transaction_id >= pg_snapshot_xmin(pg_current_snapshot())
"""

ROLES: Final[LiteralString] = "SELECT rolname::text FROM pg_roles WHERE rolname = ANY(%s)"

# Tables by name; USAGE is asked of a sequence.
MISSING_PRIVILEGES: Final[LiteralString] = """
    SELECT needed.privilege || ' on ' || needed.object
    FROM (
        SELECT object, privilege, to_regclass('command_registry.' || object)::oid AS relation
        FROM unnest(%s::text[], %s::text[]) AS wanted (object, privilege)
    ) AS needed
    WHERE NOT CASE needed.privilege
        WHEN 'USAGE' THEN has_sequence_privilege(%s::name, needed.relation, needed.privilege)
        WHEN 'SELECT' THEN has_table_privilege(%s::name, needed.relation, needed.privilege)
        ELSE has_any_column_privilege(%s::name, needed.relation, needed.privilege)
    END
"""

ROLE_MAY_USE_SCHEMA: Final[LiteralString] = "SELECT has_schema_privilege(%s::name, 'command_registry', 'USAGE')"

# Rights by which a role other than the owner could change the log, however it came by them.
ROLE_MAY_CHANGE_LOG: Final[LiteralString] = """
    SELECT forbidden.privilege
    FROM unnest(ARRAY['UPDATE', 'DELETE', 'TRUNCATE', 'TRIGGER']) AS forbidden (privilege)
    WHERE has_table_privilege(%s::name, 'command_registry.events', forbidden.privilege)
"""

# Grants that nobody should have, as the statements that take them back: to change the log, or to everybody.
EXTRA_GRANTS: Final[LiteralString] = """
    WITH granted AS (
        SELECT
            relname = 'events' AS is_log,
            format('%%I.%%I', 'command_registry', relname) AS object,
            privilege.grantee,
            privilege.privilege_type AS right_given,
            privilege.privilege_type AS kind
        FROM pg_class
        CROSS JOIN LATERAL aclexplode(relacl) AS privilege
        WHERE relnamespace = to_regnamespace('command_registry')
            AND privilege.grantee <> relowner
        UNION ALL
        SELECT
            relname = 'events',
            format('%%I.%%I', 'command_registry', relname),
            privilege.grantee,
            format('%%s (%%I)', privilege.privilege_type, attname),
            privilege.privilege_type
        FROM pg_attribute
        JOIN pg_class ON pg_class.oid = attrelid
        CROSS JOIN LATERAL aclexplode(attacl) AS privilege
        WHERE relnamespace = to_regnamespace('command_registry')
            AND privilege.grantee <> relowner
        UNION ALL
        SELECT false, 'SCHEMA command_registry', privilege.grantee, privilege.privilege_type, privilege.privilege_type
        FROM pg_namespace
        CROSS JOIN LATERAL aclexplode(nspacl) AS privilege
        WHERE nspname = 'command_registry'
    )
    SELECT format(
        'REVOKE %%s ON %%s FROM %%s',
        right_given,
        object,
        CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END
    )
    FROM granted
    WHERE grantee = 0
        OR (is_log AND kind IN ('UPDATE', 'DELETE', 'TRUNCATE', 'TRIGGER'))
    ORDER BY 1
"""

PROJECTION_IN_FORCE: Final[LiteralString] = """
    SELECT version, in_force
    FROM command_registry.projections
    WHERE name = %s
    ORDER BY version
"""

# Columns that are not as wanted: name, kind wanted (NULL: none), kind found (NULL: none).
WRONG_COLUMNS: Final[LiteralString] = """
    SELECT
        coalesce(wanted.name, found.attname::text),
        format_type(to_regtype(wanted.kind), NULL),
        format_type(found.atttypid, NULL)
    FROM unnest(%s::text[], %s::text[]) AS wanted (name, kind)
    FULL JOIN (
        SELECT attname, atttypid
        FROM pg_attribute
        WHERE attrelid = to_regclass(%s)
            AND attnum > 0
            AND NOT attisdropped
    ) AS found ON found.attname = wanted.name
    WHERE to_regtype(wanted.kind)::oid IS DISTINCT FROM found.atttypid
"""

VIEW_SHOWS_TABLE: Final[LiteralString] = """
    SELECT EXISTS (
        SELECT
        FROM pg_rewrite
        JOIN pg_depend ON classid = 'pg_rewrite'::regclass AND objid = pg_rewrite.oid
        WHERE ev_class = to_regclass(%s)
            AND refclassid = 'pg_class'::regclass
            AND refobjid = to_regclass(%s)
    )
"""

COUNT_EVENTS: Final[LiteralString] = "SELECT count(*) FROM ONLY command_registry.events"
