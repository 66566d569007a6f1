-- The schema of Command Registry, as it runs: read it top to bottom.
--
-- Run it with `command-registry migrate`, or with psql. It may be run again, and by several at once: what is there
-- stays as it is, and takes no lock that would stop writers. Postgres 15 to 18, a database in UTF8.
-- (`migrate` also creates the tables of the read models, command_registry.command_status_v1 first of all: they are made
-- from the projections in the code, and can be rebuilt from the log at any time.)

BEGIN ISOLATION LEVEL READ COMMITTED;

SET LOCAL search_path = pg_catalog, pg_temp;  -- so that nobody's functions stand in for the server's own
SET LOCAL client_min_messages = warning;
SET LOCAL lock_timeout = '10s';

-- One migration at a time in this database. (Only migrations use this lock; writing commands takes none.)
SELECT pg_advisory_xact_lock(7234017283807667300);

CREATE SCHEMA IF NOT EXISTS command_registry;


-- Versions of this file that ran here, the last one in force. A registry opens only on the one it was written for.

CREATE TABLE IF NOT EXISTS command_registry.schema_versions (
    version int PRIMARY KEY,
    installed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    installed_by text NOT NULL DEFAULT current_user
);


-- The log. One row is one event; a stream is a command; the versions of a stream are 1, 2, 3 without a gap.
--
-- * PRIMARY KEY (stream_id, version) is the only lock: of two writers of one next version, the second is refused.
-- * COLLATE "C": ids compare by their bytes, whatever the operating system's locales do over the years.
-- * json, not jsonb: the text stored is the text hashed and the text read back.
-- * hash: SHA-256 over the event and the hash of the one before it (eventstore/hashing.py says how).
-- * (transaction_id, position) is the order of the log. A reader takes only transactions below the oldest one under
--   way, so that a transaction which commits late is never skipped. (transaction_id is that of the event's own
--   transaction, or of the event before it in the stream where that is later: streams stay in order.)
-- * Instants are finite and in the years that RFC 3339 can write.
-- * No identity column, generated column or foreign key: the table may be distributed by stream_id.

CREATE SEQUENCE IF NOT EXISTS command_registry.events_position_seq AS bigint;

CREATE TABLE IF NOT EXISTS command_registry.events (
    stream_id text COLLATE "C" NOT NULL,
    version int NOT NULL CHECK (version >= 1),
    type text NOT NULL,
    schema_version smallint NOT NULL,
    occurred_at timestamptz(6) NOT NULL
        CHECK (occurred_at >= '0001-01-01 00:00:00+00' AND occurred_at < '10000-01-01 00:00:00+00'),
    data json NOT NULL,
    metadata json NOT NULL,
    hash bytea NOT NULL CHECK (octet_length(hash) = 32),
    position bigint NOT NULL DEFAULT nextval('command_registry.events_position_seq'::regclass),
    transaction_id xid8 NOT NULL DEFAULT pg_current_xact_id(),
    recorded_at timestamptz NOT NULL DEFAULT clock_timestamp()
        CHECK (recorded_at >= '0001-01-01 00:00:00+00' AND recorded_at < '10000-01-01 00:00:00+00'),
    PRIMARY KEY (stream_id, version)
);

-- (CREATE INDEX IF NOT EXISTS would stop writers to find out that the index is there.)
DO $$
BEGIN
    IF to_regclass('command_registry.events_log_order') IS NULL THEN
        CREATE INDEX events_log_order ON command_registry.events (transaction_id, position);
    END IF;
END
$$;


-- The guards: the log is append-only for everybody, its owner included, and in replica mode, too.

CREATE OR REPLACE FUNCTION command_registry.refuse_change() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path = pg_catalog
AS $$
BEGIN
    RAISE EXCEPTION 'command_registry.events is append-only: % is refused', TG_OP
        USING ERRCODE = 'restrict_violation',
              HINT = 'The log is the record of what happened. To correct it, append a further event.';
END
$$;

DO $$
BEGIN
    IF NOT EXISTS (
        SELECT FROM pg_trigger
        WHERE tgrelid = 'command_registry.events'::regclass AND tgname = 'events_refuse_change' AND tgenabled = 'A'
    ) THEN
        CREATE OR REPLACE TRIGGER events_refuse_change
            BEFORE UPDATE OR DELETE ON command_registry.events
            FOR EACH ROW EXECUTE FUNCTION command_registry.refuse_change();
        ALTER TABLE command_registry.events ENABLE ALWAYS TRIGGER events_refuse_change;
    END IF;
    IF NOT EXISTS (
        SELECT FROM pg_trigger
        WHERE tgrelid = 'command_registry.events'::regclass AND tgname = 'events_refuse_truncate' AND tgenabled = 'A'
    ) THEN
        CREATE OR REPLACE TRIGGER events_refuse_truncate
            BEFORE TRUNCATE ON command_registry.events
            FOR EACH STATEMENT EXECUTE FUNCTION command_registry.refuse_change();
        ALTER TABLE command_registry.events ENABLE ALWAYS TRIGGER events_refuse_truncate;
    END IF;
END
$$;


-- Who decides whether a deployment is pushed to or pulls (optional: a registry may ask another directory).
-- targets: a JSON array of {"resource_id", "resource_type": worker | container | daemon}; NULL means that none are
-- declared, and the deployment itself is the one target.

CREATE TABLE IF NOT EXISTS command_registry.deployments (
    id text COLLATE "C" PRIMARY KEY,
    workspace_id text NOT NULL,
    project_id text NOT NULL,
    deployment_model text NOT NULL CHECK (deployment_model IN ('push', 'pull')),
    name text NOT NULL,
    deployment_group text,
    targets json,
    status text NOT NULL DEFAULT 'running',
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp()
);


-- One row for each idempotency key that made a command, written by the statement that appended the command's creation.
-- arguments_hash: SHA-256 over the arguments of that call, so that the same key with other arguments is found out.

CREATE TABLE IF NOT EXISTS command_registry.idempotency_keys (
    key text COLLATE "C" PRIMARY KEY,
    arguments_hash bytea NOT NULL CHECK (octet_length(arguments_hash) = 32),
    command_id text COLLATE "C" NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);


-- The read models: which versions of a projection have a table that is whole, and which one is in force (the view points
-- to it).

CREATE TABLE IF NOT EXISTS command_registry.projections (
    name text NOT NULL,
    version int NOT NULL CHECK (version >= 1),
    in_force boolean NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (name, version)
);

DO $$
BEGIN
    IF to_regclass('command_registry.projections_one_in_force') IS NULL THEN
        CREATE UNIQUE INDEX projections_one_in_force ON command_registry.projections (name) WHERE in_force;
    END IF;
END
$$;


-- Who builds a version of a read model, or follows the log for it, and how far that has come.
--
-- * (transaction_id, position) is the last event of the log that is in the table; it moves in the transaction that writes
--   the rows, so each event is folded exactly once.
-- * The lease: `owner` may write until lease_until. `token` grows with each new owner; every write checks it, so that one
--   who was stopped, lost the lease and wakes up writes nothing.
-- * inline: every append writes the rows, so that the log is followed only while there are several versions.
-- * events_done, events_total (an estimate), events_per_second, last_error: for whoever watches.

CREATE TABLE IF NOT EXISTS command_registry.projectors (
    name text NOT NULL,
    version int NOT NULL CHECK (version >= 1),
    inline boolean NOT NULL,
    phase text NOT NULL CHECK (phase IN ('bulk', 'catch-up', 'verify', 'built', 'following')),
    transaction_id xid8 NOT NULL,
    position bigint NOT NULL,
    owner text,
    token bigint NOT NULL DEFAULT 0,
    lease_until timestamptz,
    events_done bigint NOT NULL DEFAULT 0,
    events_total bigint NOT NULL DEFAULT 0,
    events_per_second real NOT NULL DEFAULT 0,
    last_error text,
    view_definition text,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (name, version)
);


-- The parts of a table under construction: streams after one and up to another. `claim` is the token of the owner for whom
-- somebody is at work on it; `events`, how many it had, is known when it is done.

CREATE TABLE IF NOT EXISTS command_registry.rebuild_chunks (
    name text NOT NULL,
    version int NOT NULL,
    number int NOT NULL,
    after_stream text COLLATE "C" NOT NULL,
    last_stream text COLLATE "C" NOT NULL,
    claim bigint,
    events bigint,
    PRIMARY KEY (name, version, number)
);


-- Events that a projection was told to leave out, because it cannot fold them: which, why, and who said so.

CREATE TABLE IF NOT EXISTS command_registry.projection_skips (
    name text NOT NULL,
    version int NOT NULL,
    stream_id text COLLATE "C" NOT NULL,
    stream_version int NOT NULL,
    reason text NOT NULL,
    skipped_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    skipped_by text NOT NULL DEFAULT current_user,
    PRIMARY KEY (name, version, stream_id, stream_version)
);


-- The roles, for GRANT command_registry_writer TO my_service: a writer appends, a reader reads; neither can change the
-- log. They belong to the whole server, so another database of it may be creating them at this moment.

DO $$
DECLARE
    wanted text;
BEGIN
    FOREACH wanted IN ARRAY ARRAY['command_registry_writer', 'command_registry_reader'] LOOP
        IF to_regrole(wanted) IS NOT NULL THEN
            CONTINUE;
        END IF;
        BEGIN
            EXECUTE format('CREATE ROLE %I NOLOGIN', wanted);
        EXCEPTION
            WHEN duplicate_object OR unique_violation THEN
                NULL;
            WHEN insufficient_privilege THEN
                RAISE WARNING 'role % was not created: % may not create roles', wanted, current_user
                    USING HINT = format('Let an administrator run "CREATE ROLE %I NOLOGIN", then migrate again; '
                                        'or grant the rights on schema command_registry yourself.', wanted);
        END;
    END LOOP;
END
$$;

DO $$
BEGIN
    IF to_regrole('command_registry_writer') IS NOT NULL THEN
        GRANT USAGE ON SCHEMA command_registry TO command_registry_writer;
        GRANT SELECT ON command_registry.schema_versions, command_registry.projections TO command_registry_writer;
        -- To follow the log. (Tables are made, put in force and dropped by the owner of the schema.)
        -- (Not view_definition, which the owner runs; nor phase, which says that a table is whole.)
        REVOKE UPDATE ON command_registry.projectors FROM command_registry_writer;
        GRANT SELECT ON command_registry.projectors TO command_registry_writer;
        GRANT UPDATE (owner, token, lease_until, transaction_id, position, events_done, events_per_second, last_error,
            updated_at) ON command_registry.projectors TO command_registry_writer;
        GRANT SELECT ON command_registry.projection_skips TO command_registry_writer;
        GRANT SELECT ON command_registry.events, command_registry.idempotency_keys TO command_registry_writer;
        -- Not of position, recorded_at and created_at: the server alone says when and where something was written.
        GRANT INSERT (stream_id, version, type, schema_version, occurred_at, data, metadata, hash, transaction_id)
            ON command_registry.events TO command_registry_writer;
        GRANT INSERT (key, arguments_hash, command_id) ON command_registry.idempotency_keys TO command_registry_writer;
        GRANT USAGE ON SEQUENCE command_registry.events_position_seq TO command_registry_writer;
        GRANT SELECT, INSERT, UPDATE, DELETE ON command_registry.deployments TO command_registry_writer;
    END IF;
    IF to_regrole('command_registry_reader') IS NOT NULL THEN
        GRANT USAGE ON SCHEMA command_registry TO command_registry_reader;
        GRANT SELECT ON command_registry.schema_versions, command_registry.projections, command_registry.events,
            command_registry.deployments, command_registry.projectors, command_registry.rebuild_chunks,
            command_registry.projection_skips TO command_registry_reader;
    END IF;
END
$$;


INSERT INTO command_registry.schema_versions (version) VALUES (2) ON CONFLICT DO NOTHING;

COMMIT;
