"""Every SQL text of the registry itself."""

from typing import Final, LiteralString

FIND_DEPLOYMENT: Final[LiteralString] = """
    SELECT id, workspace_id, project_id, deployment_model, name, deployment_group, targets::text, status
    FROM command_registry.deployments
    WHERE id = %s
"""

PUT_DEPLOYMENT: Final[LiteralString] = """
    INSERT INTO command_registry.deployments
        (id, workspace_id, project_id, deployment_model, name, deployment_group, targets, status)
    VALUES (%s, %s, %s, %s, %s, %s, %s::text::json, %s)
    ON CONFLICT (id) DO UPDATE SET
        workspace_id = excluded.workspace_id,
        project_id = excluded.project_id,
        deployment_model = excluded.deployment_model,
        name = excluded.name,
        deployment_group = excluded.deployment_group,
        targets = excluded.targets,
        status = excluded.status,
        updated_at = clock_timestamp()
"""

REMOVE_DEPLOYMENT: Final[LiteralString] = """
    DELETE FROM command_registry.deployments
    WHERE id = %s
    RETURNING id
"""

INSERT_IDEMPOTENCY_KEYS: Final[LiteralString] = """
    INSERT INTO command_registry.idempotency_keys (key, arguments_hash, command_id)
    SELECT new.key, new.arguments_hash, new.command_id
    FROM unnest(%s::text[], %s::bytea[], %s::text[]) AS new (key, arguments_hash, command_id)
    ORDER BY new.key COLLATE "C"
"""

FIND_IDEMPOTENCY_KEYS: Final[LiteralString] = """
    SELECT key, command_id, arguments_hash
    FROM command_registry.idempotency_keys
    WHERE key = ANY(%s)
"""

LOCK_TIMEOUT: Final[LiteralString] = "SELECT current_setting('lock_timeout')"
SET_LOCK_TIMEOUT: Final[LiteralString] = "SELECT set_config('lock_timeout', %s, true)"

OVERDUE: Final[LiteralString] = """
    SELECT command_id
    FROM ONLY {table}
    WHERE deadline IS NOT NULL
        AND state IN ('PENDING_UPLOAD', 'PENDING', 'DISPATCHED')
        AND deadline <= %s
    ORDER BY deadline
    LIMIT %s
"""
