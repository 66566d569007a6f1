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

INSERT_IDEMPOTENCY_KEY: Final[LiteralString] = """
    INSERT INTO command_registry.idempotency_keys (key, arguments_hash, command_id)
    VALUES (%s, %s, %s)
"""

FIND_IDEMPOTENCY_KEY: Final[LiteralString] = """
    SELECT command_id, arguments_hash
    FROM command_registry.idempotency_keys
    WHERE key = %s
"""

OVERDUE: Final[LiteralString] = """
    SELECT command_id
    FROM ONLY {table}
    WHERE deadline IS NOT NULL
        AND state IN ('PENDING_UPLOAD', 'PENDING', 'DISPATCHED')
        AND deadline <= %s
    ORDER BY deadline
    LIMIT %s
"""
