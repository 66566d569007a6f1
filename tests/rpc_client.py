"""Child processes that serve a registry over JSON-RPC."""

import sys

__all__ = ["child_argv"]


def child_argv(*, deployment_model: str, memory: bool, dsn: str | None, deployments_table: bool) -> list[str]:
    """The command line of a child that serves a registry."""
    call = (
        f"run_rpc({dsn!r}, memory={memory!r}, deployment_model=DeploymentModel({str(deployment_model)!r}), "
        f"deployments_table={deployments_table!r})"
    )
    return [sys.executable, "-c", f"from registry import DeploymentModel; from registry.rpc import run_rpc; {call}"]
